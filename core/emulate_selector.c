// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulator's instructions about a selector: LAR, LSL, VERR and VERW, which only look at its
// descriptor, and LLDT and LTR. Intel SDM volume 2, each under its own name; volume 3 sections 5.10
// and 8.2.4.

#include "emulate_internal.h"

#define TYPES_LAR      (BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(9) | BIT(11) | BIT(12))
#define TYPES_LSL      (BIT(1) | BIT(2) | BIT(3) | BIT(9) | BIT(11))
#define TYPES_LONG     (BIT(2) | BIT(9) | BIT(11) | BIT(12)) // of both, in IA-32e mode
#define CODE           BIT(3)
#define CONFORMING     BIT(2)
#define READ_OR_WRITE  BIT(1)
#define ACCESS_OF_HIGH 0x00f0ff00u // access rights where the descriptor's second word has them

static bool type_fits(const struct emulate_ctx *c, u8 access)
{
    u32 types = c->insn.op == INSN_LAR ? TYPES_LAR : TYPES_LSL;
    bool code = access & CODE;

    if (!(access & SEG_S))
        return c->insn.op <= INSN_LSL &&
               BIT(access & SEG_TYPE) & (c->long_mode ? types & TYPES_LONG : types);
    if (c->insn.op == INSN_VERR)
        return !code || access & READ_OR_WRITE;
    return c->insn.op != INSN_VERW || (!code && access & READ_OR_WRITE);
}

// Whether the descriptor can be seen at this privilege and is of a type that the instruction
// takes. A null selector and one beyond its table are none such; only reading may fault.
static enum emulate_result look(struct emulate_ctx *c, struct descriptor *d, bool *found)
{
    u16 selector = (u16)c->src;
    enum emulate_result r;
    u8 access;

    *found = false;
    if (!(selector & ~3u))
        return EMULATE_OK;
    r = emu_read_descriptor(c, selector, VECTOR_GP, d);
    if (r == EMULATE_FAULT && c->fault.valid && c->fault.vector == VECTOR_GP)
        return EMULATE_OK;
    access = descriptor_access(d);
    *found = type_fits(c, access);
    if ((access & (SEG_S | CODE | CONFORMING)) != (SEG_S | CODE | CONFORMING) &&
        descriptor_dpl(d) < MAX((unsigned)c->cpl, selector & 3u))
        *found = false;
    return r;
}

enum emulate_result emu_run_look(struct emulate_ctx *c)
{
    struct descriptor d;
    bool found;
    enum emulate_result r = look(c, &d, &found);

    if (r != EMULATE_OK)
        return r;
    c->next_rflags = found ? c->next_rflags | RFLAGS_ZF : c->next_rflags & ~RFLAGS_ZF;
    if (found && c->insn.op == INSN_LAR)
        emu_reg_set(c, c->insn.reg, c->insn.opsize, d.low >> 32 & ACCESS_OF_HIGH);
    else if (found && c->insn.op == INSN_LSL)
        emu_reg_set(c, c->insn.reg, c->insn.opsize, descriptor_segment(&d).limit);
    return EMULATE_OK;
}

static u8 check_tss(const struct emulate_ctx *c, const struct descriptor *d)
{
    u8 type = descriptor_access(d) & (SEG_S | SEG_TYPE);

    if (type != DESCRIPTOR_TSS && (c->long_mode || type != DESCRIPTOR_TSS16))
        return VECTOR_GP;
    return descriptor_access(d) & SEG_P ? 0 : VECTOR_NP;
}

enum emulate_result emu_run_load_system(struct emulate_ctx *c)
{
    bool task = c->insn.op == INSN_LTR;
    enum segment_index seg = task ? SEG_TR : SEG_LDTR;
    u16 selector = (u16)c->src;
    struct descriptor d;
    enum emulate_result r;
    u8 vector;

    if (!(selector & ~3u) && task)
        return raise_gp0(c);
    if (!(selector & ~3u)) {
        emu_set_segment(c, seg, segment_null(selector, 0));
        return EMULATE_OK;
    }
    if (selector & 4)
        return emu_raise_selector(c, VECTOR_GP, selector);
    r = emu_read_descriptor(c, selector, VECTOR_GP, &d);
    if (r != EMULATE_OK)
        return r;
    vector = task ? check_tss(c, &d) : descriptor_check_ldt(&d);
    if (vector)
        return emu_raise_selector(c, vector, selector);
    r = emu_read_high(c, &d);
    if (r == EMULATE_OK && c->long_mode && !emu_canonical_base(c, descriptor_segment(&d).base))
        return emu_raise_selector(c, VECTOR_GP, selector);
    if (r == EMULATE_OK && task)
        r = emu_change_type(c, &d, DESCRIPTOR_TSS_BUSY, 0);
    if (r == EMULATE_OK)
        emu_set_segment(c, seg, descriptor_segment(&d));
    return r;
}
