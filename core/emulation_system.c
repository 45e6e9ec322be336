// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulator's system instructions on a vCPU: those that can exit go to the exit's handler,
// so that there is one of each; the rest are done here. And the vector and x87 registers, which are
// the guest's while Nestor runs.

#include "emulation.h"
#include <arch/x86/insn.h>
#include <arch/x86/regs.h>
#include <nestor/breakpoint.h>
#include <nestor/cpu.h>
#include <nestor/device.h>
#include <nestor/nested.h>
#include <nestor/run.h>
#include <nestor/time.h>

// clang-format off
static const u8 exits[INSN_OP_COUNT] = {
    [INSN_CPUID] = EXIT_CPUID, [INSN_RDMSR] = EXIT_RDMSR, [INSN_WRMSR] = EXIT_WRMSR,
    [INSN_RDPMC] = EXIT_RDPMC, [INSN_XSETBV] = EXIT_XSETBV, [INSN_INVD] = EXIT_INVD,
    [INSN_WBINVD] = EXIT_WBINVD, [INSN_INVLPG] = EXIT_INVLPG, [INSN_MONITOR] = EXIT_MONITOR,
    [INSN_MWAIT] = EXIT_MWAIT, [INSN_RSM] = EXIT_RSM,
    [INSN_MOV_FROM_CR] = EXIT_CR, [INSN_MOV_TO_CR] = EXIT_CR, [INSN_CLTS] = EXIT_CR,
    [INSN_LMSW] = EXIT_CR,
    [INSN_VMCALL] = EXIT_VMCALL, [INSN_VMLAUNCH] = EXIT_VMLAUNCH, [INSN_VMRESUME] = EXIT_VMRESUME,
    [INSN_VMXOFF] = EXIT_VMXOFF, [INSN_VMXON] = EXIT_VMXON, [INSN_VMPTRLD] = EXIT_VMPTRLD,
    [INSN_VMPTRST] = EXIT_VMPTRST, [INSN_VMCLEAR] = EXIT_VMCLEAR, [INSN_VMREAD] = EXIT_VMREAD,
    [INSN_VMWRITE] = EXIT_VMWRITE, [INSN_VMFUNC] = EXIT_VMFUNC, [INSN_INVEPT] = EXIT_INVEPT,
    [INSN_INVVPID] = EXIT_INVVPID, [INSN_VMRUN] = EXIT_VMRUN, [INSN_VMMCALL] = EXIT_VMMCALL,
    [INSN_VMLOAD] = EXIT_VMLOAD, [INSN_VMSAVE] = EXIT_VMSAVE, [INSN_STGI] = EXIT_STGI,
    [INSN_CLGI] = EXIT_CLGI, [INSN_SKINIT] = EXIT_SKINIT, [INSN_INVLPGA] = EXIT_INVLPGA,
};
// clang-format on

static void fill_cr(const struct emulate_ctx *ctx, struct exit_cr *cr)
{
    static const u8 access[INSN_OP_COUNT] = {
        [INSN_MOV_FROM_CR] = CR_READ,
        [INSN_MOV_TO_CR] = CR_WRITE,
        [INSN_CLTS] = CR_CLTS,
        [INSN_LMSW] = CR_LMSW,
    };

    *cr = (struct exit_cr){.access = access[ctx->insn.op],
                           .number = ctx->insn.reg,
                           .gpr = ctx->insn.rm,
                           .lmsw_source = (u16)ctx->src,
                           .lmsw_memory = ctx->insn.has_mem};
    if (cr->access >= CR_CLTS)
        cr->number = 0;
}

static void as_exit(struct emulate_ctx *ctx)
{
    struct vcpu *vcpu = ctx->opaque;
    struct vm_exit exit = {
        .kind = exits[ctx->insn.op], .insn_len = ctx->insn.length, .next_rip = ctx->next_rip};

    if (exit.kind == EXIT_CR)
        fill_cr(ctx, &exit.cr);
    else if (exit.kind == EXIT_INVLPG)
        exit.linear = ctx->linear;
    else if (ctx->insn.has_modrm)
        insn_exit_operand(&ctx->insn, ctx->next_rip, &exit.operand);
    if (!vcpu->level || !nested_reflect(vcpu, &exit))
        exit_handle(vcpu, &exit);
}

// clang-format off
static const u8 asked[INSN_OP_COUNT] = {
    [INSN_INS ... INSN_OUT] = EXIT_IO, [INSN_HLT] = EXIT_HLT, [INSN_PAUSE] = EXIT_PAUSE,
    [INSN_RDTSC] = EXIT_RDTSC, [INSN_RDTSCP] = EXIT_RDTSCP,
    [INSN_MOV_FROM_DR ... INSN_MOV_TO_DR] = EXIT_DR,
    [INSN_SGDT ... INSN_LIDT] = EXIT_GDTR_IDTR, [INSN_SLDT ... INSN_LTR] = EXIT_LDTR_TR,
    [INSN_PUSHF] = EXIT_PUSHF, [INSN_POPF] = EXIT_POPF, [INSN_IRET] = EXIT_IRET,
    [INSN_INT] = EXIT_SOFT_INT, [INSN_INT1] = EXIT_ICEBP, [INSN_SMSW] = EXIT_CR,
};
// clang-format on

static void fill_io(const struct emulate_ctx *ctx, struct exit_io *io)
{
    const struct insn *insn = &ctx->insn;
    bool string = insn->op == INSN_INS || insn->op == INSN_OUTS;

    *io = (struct exit_io){.port = ctx->port,
                           .size = insn->opsize,
                           .in = insn->op == INSN_INS || insn->op == INSN_IN,
                           .string = string,
                           .rep = string && insn->prefixes & (INSN_REP | INSN_REPNE),
                           .immediate = insn->src == OPERAND_IMM,
                           .addr_size = insn->addr_size,
                           .seg = insn->op == INSN_INS ? SEG_ES : insn->seg};
}

// What goes before all exceptions. VMX: MOV DR before #GP and #UD (SDM vol. 3 "Instructions That
// Cause VM Exits Conditionally"); SVM: what is about RFLAGS (APM vol. 2, 15.9).
static enum emulate_point asked_at(const struct emulate_ctx *ctx)
{
    u8 kind = asked[ctx->insn.op];
    bool first = ctx->amd ? kind == EXIT_PUSHF || kind == EXIT_POPF || kind == EXIT_IRET ||
                                kind == EXIT_SOFT_INT
                          : kind == EXIT_DR;

    return first ? EMULATE_DECODED : EMULATE_PRIVILEGED;
}

// What an L2 executes here need not be what has exited, since another vCPU of it may write over the
// code: L1 is asked about the instruction itself.
enum emulate_result op_intercept(struct emulate_ctx *ctx, enum emulate_point point)
{
    struct vcpu *vcpu = ctx->opaque;
    u8 op = ctx->insn.op;
    struct vm_exit exit = {
        .kind = asked[op], .insn_len = ctx->insn.length, .next_rip = ctx->next_rip};

    if (likely(!vcpu->level) || point != asked_at(ctx) || !exit.kind)
        return EMULATE_OK;
    if (exit.kind == EXIT_IO)
        fill_io(ctx, &exit.io);
    else if (exit.kind == EXIT_DR)
        exit.dr = (struct exit_dr){ctx->insn.reg, ctx->insn.rm, op == INSN_MOV_TO_DR};
    else if (exit.kind == EXIT_CR) // SMSW, which VMX does not intercept
        exit.cr = (struct exit_cr){.access = CR_READ, .gpr = EXIT_GPR_UNKNOWN};
    else if (exit.kind == EXIT_GDTR_IDTR || exit.kind == EXIT_LDTR_TR) {
        insn_exit_operand(&ctx->insn, ctx->next_rip, &exit.operand);
        exit.operand.identity = (u8)(op - (exit.kind == EXIT_LDTR_TR ? INSN_SLDT : INSN_SGDT));
    }
    return nested_reflect(vcpu, &exit) ? EMULATE_INTERCEPTED : EMULATE_OK;
}

static enum emulate_result read_tsc(struct emulate_ctx *ctx)
{
    struct vcpu *vcpu = ctx->opaque;
    u64 tsc = vcpu_level_tsc(vcpu, tsc_now());

    if (ctx->insn.op == INSN_RDTSCP) {
        if (!cpuid_has(vcpu->vm, 0x80000001, 3, 27))
            return emulate_raise(ctx, VECTOR_UD, false, 0);
        ctx->gpr[GPR_RCX] = (u32)vcpu->tsc_aux;
    }
    ctx->gpr[GPR_RAX] = (u32)tsc;
    ctx->gpr[GPR_RDX] = tsc >> 32;
    return EMULATE_OK;
}

static enum emulate_result read_xcr(struct emulate_ctx *ctx)
{
    u64 xcr0 = op_xcr0(ctx);

    ctx->gpr[GPR_RAX] = (u32)xcr0;
    ctx->gpr[GPR_RDX] = xcr0 >> 32;
    return EMULATE_OK;
}

static enum emulate_result swapgs(struct emulate_ctx *ctx)
{
    struct vcpu *vcpu = ctx->opaque;
    struct guest_state *s = vcpu_modify(vcpu, GROUP_SYSTEM | GROUP_SYSCALL);
    u64 base = s->seg[SEG_GS].base;

    s->seg[SEG_GS].base = vcpu->kernel_gs_base;
    vcpu->kernel_gs_base = base;
    return EMULATE_OK;
}

// A guest that uses breakpoints has the debug registers to itself from then on. General detect is
// looked for here too: QEMU (7.2) knows nothing of it. Whether MOV DR exits.
static bool watch_debug_registers(struct vcpu *vcpu, u64 dr7)
{
    u64 intercepts = dr7 & DR7_GD ? INTERCEPT_DR_READ | INTERCEPT_DR_WRITE : 0;

    vcpu->breakpoints |= (dr7 & DR7_ENABLES) != 0;
    if (!vcpu->breakpoints)
        intercepts |= INTERCEPT_DR_WRITE;
    for (unsigned i = 0; i < ARRAY_SIZE(vcpu->ctx); i++) {
        struct controls *ctl = &vcpu->ctx[i].ctl;

        ctl->intercepts &= ~(u64)(INTERCEPT_DR_READ | INTERCEPT_DR_WRITE);
        ctl->intercepts |= intercepts;
        vcpu->ctx[i].ctl_dirty |= CTL_INTERCEPTS;
    }
    return intercepts;
}

// With DR7.GD each MOV DR is a fault before anything is read or written.
static enum emulate_result move_dr(struct emulate_ctx *ctx)
{
    struct vcpu *vcpu = ctx->opaque;
    struct guest_state *s = vcpu_state(vcpu, GROUP_DR | GROUP_DR6 | GROUP_DEBUG);
    unsigned n = ctx->insn.reg;
    u64 *reg = n == 7 ? &s->dr7 : n == 6 ? &vcpu->dr6 : &vcpu->dr[n & 3];

    if (s->dr7 & DR7_GD) {
        emulate_raise(ctx, VECTOR_DB, false, 0);
        ctx->fault.has_payload = true;
        ctx->fault.payload = DR6_BD;
        return EMULATE_FAULT;
    }
    if (ctx->insn.op == INSN_MOV_FROM_DR) {
        ctx->dst = *reg;
        return EMULATE_OK;
    }
    if (n == 7 && !watch_debug_registers(vcpu, ctx->src)) {
        ctx->fault.valid = false; // the guest does it itself: QEMU arms none at VMRUN
        return EMULATE_FAULT;
    }
    vcpu_modify(vcpu, n == 7 ? GROUP_DEBUG : n == 6 ? GROUP_DR6 : GROUP_DR);
    if (n == 7)
        *reg = (ctx->src & DR7_WRITABLE) | DR7_FIXED;
    else
        *reg = n == 6 ? (ctx->src & DR6_WRITABLE) | DR6_FIXED : ctx->src;
    return EMULATE_OK;
}

static enum emulate_result table_register(struct emulate_ctx *ctx)
{
    struct vcpu *vcpu = ctx->opaque;
    bool load = ctx->insn.op == INSN_LGDT || ctx->insn.op == INSN_LIDT;
    struct guest_state *s = load ? vcpu_modify(vcpu, GROUP_TABLES) : vcpu_state(vcpu, GROUP_TABLES);
    struct table_register *t =
        ctx->insn.op == INSN_LGDT || ctx->insn.op == INSN_SGDT ? &s->gdtr : &s->idtr;

    if (load)
        *t = (struct table_register){.base = ctx->src, .limit = (u32)ctx->dst};
    ctx->dst = t->limit;
    ctx->src = t->base;
    return EMULATE_OK;
}

static enum emulate_result selector(struct emulate_ctx *ctx)
{
    const struct guest_state *s = vcpu_state(ctx->opaque, GROUP_SYSTEM);

    ctx->dst = s->seg[ctx->insn.op == INSN_STR ? SEG_TR : SEG_LDTR].selector;
    return EMULATE_OK;
}

enum emulate_result op_system(struct emulate_ctx *ctx)
{
    if (exits[ctx->insn.op]) {
        as_exit(ctx);
        return EMULATE_INTERCEPTED;
    }
    // clang-format off
    switch (ctx->insn.op) {
    case INSN_RDTSC: case INSN_RDTSCP: return read_tsc(ctx);
    case INSN_XGETBV: return read_xcr(ctx);
    case INSN_SWAPGS: return swapgs(ctx);
    case INSN_MOV_FROM_DR: case INSN_MOV_TO_DR: return move_dr(ctx);
    case INSN_SGDT: case INSN_SIDT: case INSN_LGDT: case INSN_LIDT: return table_register(ctx);
    case INSN_SLDT: case INSN_STR: return selector(ctx);
    case INSN_SMSW: ctx->dst = cr_visible(ctx->opaque, 0); return EMULATE_OK;
    default: return EMULATE_UNHANDLED;
    }
    // clang-format on
}

bool op_offers(struct emulate_ctx *ctx, u8 op)
{
    static const struct {
        u8 op;
        u32 leaf;
        u8 reg, bit;
    } features[] = {
        {INSN_TZCNT, 7, 1, 3},  {INSN_LZCNT, 0x80000001, 2, 5}, {INSN_POPCNT, 1, 2, 23},
        {INSN_CRC32, 1, 2, 20}, {INSN_MOVBE, 1, 2, 22},
    };
    const struct vcpu *vcpu = ctx->opaque;

    for (unsigned i = 0; i < ARRAY_SIZE(features); i++)
        if (features[i].op == op)
            return cpuid_has(vcpu->vm, features[i].leaf, features[i].reg, features[i].bit);
    return true;
}

// --- vector.S ---

void vector_stubs(void *buf, u32 stub);

void op_vector(struct emulate_ctx *ctx, enum emulate_bank bank, unsigned n, bool write, void *buf)
{
    static const u8 first[][2] = {
        [EMULATE_MMX] = {0, 8},
        [EMULATE_XMM] = {16, 32},
        [EMULATE_YMM] = {48, 64},
        [EMULATE_ZMM] = {80, 112},
    };

    (void)ctx;
    vector_stubs(buf, first[bank][write] + n);
}

// What the CPU keeps as the last instruction's and operand's addresses is Nestor's then.
void op_x87(struct emulate_ctx *ctx, unsigned opcode, unsigned reg, void *buf)
{
    (void)ctx;
    vector_stubs(buf, 144 + opcode * 8 + reg);
}

u16 op_x87_status(struct emulate_ctx *ctx)
{
    u16 status;

    (void)ctx;
    __asm__ volatile("fnstsw %0" : "=a"(status));
    return status;
}

// The register, not vcpu->xcr0: QEMU's SVM (7.2) does not intercept XSETBV.
u64 op_xcr0(struct emulate_ctx *ctx)
{
    const struct vcpu *vcpu = ctx->opaque;

    return cpuid_has(vcpu->vm, 1, 2, 26) ? xgetbv(0) : XCR0_X87 | XCR0_SSE;
}

u64 op_msr(struct emulate_ctx *ctx, u32 msr)
{
    u64 value = 0;

    msr_read_guest(ctx->opaque, msr, &value); // they always can be read
    return value;
}
