// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulator's system instructions: what the manual checks before and stores behind them; their
// effects are the owner's of the registers (ops->system). Intel SDM volume 2, each under its own
// name; volume 3 sections 2.8, 17.2.

#include "emulate_internal.h"
#include <nestor/string.h>

enum emulate_result emu_run_system(struct emulate_ctx *c)
{
    return c->ops->system ? c->ops->system(c) : EMULATE_UNHANDLED;
}

// DR4 and DR5 are there without CR4.DE only; the upper halves of DR6 and DR7 are zero.
static enum emulate_result check_dr(struct emulate_ctx *c)
{
    if ((c->insn.reg & 6) == 4 && c->cr4 & CR4_DE)
        return emulate_raise(c, VECTOR_UD, false, 0);
    if (c->insn.op == INSN_MOV_TO_DR && c->insn.reg >= 4 &&
        emu_operand_get(c, c->insn.src, c->insn.src_size) >> 32)
        return raise_gp0(c);
    return EMULATE_OK;
}

// RDTSC, RDTSCP, RDPMC, XSETBV, MOV DR: what CR4, and MOV DR's value, say before an intercept of
// theirs.
enum emulate_result emu_check_cr4(struct emulate_ctx *c)
{
    bool allowed = false; // at CPL 3

    if (c->insn.op == INSN_MOV_FROM_DR || c->insn.op == INSN_MOV_TO_DR)
        return check_dr(c);
    if (c->insn.op == INSN_XSETBV && !(c->cr4 & CR4_OSXSAVE))
        return emulate_raise(c, VECTOR_UD, false, 0);
    if (c->insn.op == INSN_RDPMC)
        allowed = c->cr4 & CR4_PCE;
    else if (c->insn.op == INSN_XSETBV)
        allowed = c->amd; // SVM's intercept goes before #GP, which its exit's handler looks for
    else
        allowed = !(c->cr4 & CR4_TSD);
    return c->cpl != 0 && !allowed ? raise_gp0(c) : EMULATE_OK;
}

enum emulate_result emu_run_xgetbv(struct emulate_ctx *c)
{
    if (!(c->cr4 & CR4_OSXSAVE))
        return emulate_raise(c, VECTOR_UD, false, 0);
    if ((u32)c->gpr[GPR_RCX])
        return raise_gp0(c);
    return emu_run_system(c);
}

enum emulate_result emu_run_mov_dr(struct emulate_ctx *c)
{
    if ((c->insn.reg & 6) == 4) // DR4 and DR5 are DR6 and DR7
        c->insn.reg |= 2;
    return emu_run_system(c);
}

// The address only, whatever is there: a non-canonical one does nothing.
enum emulate_result emu_run_invlpg(struct emulate_ctx *c)
{
    emulate_linear(c, c->insn.seg, insn_offset(&c->insn, c->gpr, c->next_rip), 1, EMULATE_READ,
                   &c->linear);
    return emu_run_system(c);
}

// SGDT, SIDT: the limit in c->dst, the base in c->src.
enum emulate_result emu_run_store_table(struct emulate_ctx *c)
{
    enum emulate_result r = emu_operand_address(c, EMULATE_WRITE);
    u8 value[10];

    if (r == EMULATE_OK)
        r = emu_run_system(c);
    if (r != EMULATE_OK)
        return r;
    memcpy(value, &c->dst, 2);
    memcpy(value + 2, &c->src, 8);
    return emu_mem_write(c, c->linear, value, c->insn.mem_size);
}

// LGDT, LIDT. With 16-bit operands the base has 24 bits.
enum emulate_result emu_run_load_table(struct emulate_ctx *c)
{
    enum emulate_result r = emu_operand_address(c, EMULATE_READ);
    u8 value[10] = {0};

    if (r == EMULATE_OK)
        r = emu_mem_read(c, c->linear, value, c->insn.mem_size, EMULATE_READ);
    if (r != EMULATE_OK)
        return r;
    c->dst = c->src = 0;
    memcpy(&c->dst, value, 2);
    memcpy(&c->src, value + 2, 8);
    if (!insn_mode_is_64(c->mode) && c->insn.opsize == 2)
        c->src &= 0xffffff;
    if (!emu_canonical_base(c, c->src))
        return raise_gp0(c);
    return emu_run_system(c);
}
