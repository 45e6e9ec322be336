// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// SYSCALL, SYSRET, SYSENTER and SYSEXIT in the emulator: Intel SDM volume 2, AMD APM volume 3, each
// under its own name. The vendors differ: AMD has SYSCALL outside 64-bit code, Intel SYSENTER and
// SYSEXIT in IA-32e mode.

#include "emulate_internal.h"
#include <arch/x86/msr.h>

#define SYSRET_FLAGS 0x3c7fd7ull // all but RF and VM

static enum emulate_result raise_ud(struct emulate_ctx *c)
{
    return emulate_raise(c, VECTOR_UD, false, 0);
}

// Flat code and stack segments that no descriptor describes. `size`: bytes of the code's addresses.
static void load_flat(struct emulate_ctx *c, u16 code, u16 stack, unsigned dpl, unsigned size)
{
    u32 access = SEG_P | SEG_S | SEG_G | dpl << SEG_DPL_SHIFT;

    emu_set_segment(c, SEG_CS,
                    (struct segment){.selector = (u16)(code | dpl),
                                     .access = access | 0xb | (size == 8 ? SEG_L : SEG_DB),
                                     .limit = ~0u});
    emu_set_segment(c, SEG_SS,
                    (struct segment){.selector = (u16)(stack | dpl),
                                     .access = access | 3 | SEG_DB,
                                     .limit = ~0u});
}

static u64 msr(struct emulate_ctx *c, u32 number)
{
    return c->ops->msr(c, number);
}

// SYSCALL and SYSRET need EFER.SCE; SYSENTER and SYSEXIT a code segment.
static enum emulate_result check_mode(struct emulate_ctx *c, bool fast)
{
    if (!c->ops->msr)
        return EMULATE_UNHANDLED;
    if (fast) {
        bool here = insn_mode_is_64(c->mode) || (c->amd && c->cr0 & CR0_PE);

        return here && msr(c, MSR_EFER) & EFER_SCE ? EMULATE_OK : raise_ud(c);
    }
    if (c->amd && c->long_mode)
        return raise_ud(c);
    return c->cr0 & CR0_PE && msr(c, MSR_SYSENTER_CS) & 0xfffc ? EMULATE_OK : raise_gp0(c);
}

enum emulate_result emu_run_syscall(struct emulate_ctx *c)
{
    enum emulate_result r = check_mode(c, true);
    u64 star, back = c->next_rip;
    u16 code;

    if (r != EMULATE_OK)
        return r;
    star = msr(c, MSR_STAR);
    code = (u16)(star >> 32 & 0xfffc);
    load_flat(c, code, (u16)(code + 8), 0, c->long_mode ? 8 : 4);
    emu_reg_set(c, GPR_RCX, c->long_mode ? 8 : 4, back);
    if (!c->long_mode) {
        c->next_rip = (u32)star;
        c->next_rflags &= ~(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF);
        return EMULATE_OK;
    }
    c->gpr[11] = c->regs->rflags & ~RFLAGS_RF;
    c->next_rip = msr(c, insn_mode_is_64(c->mode) ? MSR_LSTAR : MSR_CSTAR);
    c->next_rflags = (c->next_rflags & ~(msr(c, MSR_SFMASK) | RFLAGS_RF)) | RFLAGS_FIXED;
    return EMULATE_OK;
}

enum emulate_result emu_run_sysret(struct emulate_ctx *c)
{
    enum emulate_result r = check_mode(c, true);
    bool to_64 = c->insn.opsize == 8;
    u16 code;

    if (r != EMULATE_OK)
        return r;
    if (c->cpl != 0 || (to_64 && !c->amd && !emu_canonical(c, c->gpr[GPR_RCX])))
        return raise_gp0(c);
    code = (u16)(msr(c, MSR_STAR) >> 48 & 0xfffc);
    load_flat(c, (u16)(code + (to_64 ? 16 : 0)), (u16)(code + 8), 3, to_64 ? 8 : 4);
    c->next_rip = to_64 ? c->gpr[GPR_RCX] : (u32)c->gpr[GPR_RCX];
    if (c->long_mode)
        c->next_rflags = (c->gpr[11] & SYSRET_FLAGS) | RFLAGS_FIXED;
    else
        c->next_rflags |= RFLAGS_IF;
    return EMULATE_OK;
}

enum emulate_result emu_run_sysenter(struct emulate_ctx *c)
{
    enum emulate_result r = check_mode(c, false);
    unsigned size = c->long_mode ? 8 : 4;
    u16 code;

    if (r != EMULATE_OK)
        return r;
    code = (u16)(msr(c, MSR_SYSENTER_CS) & 0xfffc);
    load_flat(c, code, (u16)(code + 8), 0, size);
    c->gpr[GPR_RSP] = msr(c, MSR_SYSENTER_ESP) & size_mask(size);
    c->next_rip = msr(c, MSR_SYSENTER_EIP) & size_mask(size);
    c->next_rflags &= ~(RFLAGS_VM | RFLAGS_IF | RFLAGS_RF);
    return EMULATE_OK;
}

enum emulate_result emu_run_sysexit(struct emulate_ctx *c)
{
    enum emulate_result r = check_mode(c, false);
    unsigned size = c->insn.opsize == 8 ? 8 : 4;
    u16 code;

    if (r != EMULATE_OK)
        return r;
    if (c->cpl != 0 ||
        (size == 8 && !(emu_canonical(c, c->gpr[GPR_RCX]) && emu_canonical(c, c->gpr[GPR_RDX]))))
        return raise_gp0(c);
    code = (u16)((msr(c, MSR_SYSENTER_CS) & 0xfffc) + (size == 8 ? 32 : 16));
    load_flat(c, code, (u16)(code + 8), 3, size);
    c->gpr[GPR_RSP] = c->gpr[GPR_RCX] & size_mask(size);
    c->next_rip = c->gpr[GPR_RDX] & size_mask(size);
    return EMULATE_OK;
}
