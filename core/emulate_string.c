// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulated string instructions, which may read memory and ports ahead for a whole run of
// elements (Intel SDM volume 2: MOVS, CMPS, STOS, LODS, SCAS, INS, OUTS, REP), and IN and OUT.

#include "emulate_internal.h"

#define DEFAULT_REPEAT 256

static void string_advance(struct emulate_ctx *c, unsigned n)
{
    u64 step = c->next_rflags & RFLAGS_DF ? 0ull - c->insn.opsize : c->insn.opsize;

    emu_reg_set(c, n, c->insn.addr_size, c->gpr[n] + step);
}

static enum emulate_result string_address(struct emulate_ctx *c, unsigned n, unsigned access,
                                          gva_t *la)
{
    enum segment_index seg = n == GPR_RDI ? SEG_ES : c->insn.seg;
    u64 offset = c->gpr[n] & size_mask(c->insn.addr_size);

    return emulate_linear(c, seg, offset, c->insn.opsize, access, la);
}

static enum emulate_result string_load(struct emulate_ctx *c, unsigned n, u64 *value)
{
    enum emulate_result r = string_address(c, n, EMULATE_READ, &c->linear);

    *value = 0;
    if (r == EMULATE_OK)
        r = emu_mem_read(c, c->linear, value, c->insn.opsize, EMULATE_READ);
    if (r == EMULATE_OK)
        string_advance(c, n);
    return r;
}

static enum emulate_result string_store(struct emulate_ctx *c, u64 value)
{
    enum emulate_result r = string_address(c, GPR_RDI, EMULATE_WRITE, &c->linear);

    if (r == EMULATE_OK)
        r = emu_mem_write(c, c->linear, &value, c->insn.opsize);
    if (r == EMULATE_OK)
        string_advance(c, GPR_RDI);
    return r;
}

// The port is read only when the store can't fault any more.
static enum emulate_result string_in(struct emulate_ctx *c)
{
    enum emulate_result r = string_address(c, GPR_RDI, EMULATE_WRITE, &c->linear);
    u32 value = 0;

    if (r == EMULATE_OK)
        r = emu_mem_check(c, c->linear, c->insn.opsize);
    if (r == EMULATE_OK)
        r = emu_intercept(c, EMULATE_ACCESSED);
    if (r == EMULATE_OK)
        r = c->ops->io_in(c, c->port, c->insn.opsize, &value);
    return r == EMULATE_OK ? string_store(c, value) : r;
}

static enum emulate_result string_out(struct emulate_ctx *c)
{
    u64 value;
    enum emulate_result r = string_load(c, GPR_RSI, &value);

    if (r == EMULATE_OK)
        r = emu_intercept(c, EMULATE_ACCESSED);
    return r == EMULATE_OK ? c->ops->io_out(c, c->port, c->insn.opsize, (u32)value) : r;
}

static enum emulate_result string_compare(struct emulate_ctx *c)
{
    u64 left = c->gpr[0], right;
    enum emulate_result r = EMULATE_OK;

    if (c->insn.op == INSN_CMPS)
        r = string_load(c, GPR_RSI, &left);
    if (r == EMULATE_OK)
        r = string_load(c, GPR_RDI, &right);
    if (r == EMULATE_OK)
        alu_binary(INSN_CMP, left, right, c->insn.opsize, &c->next_rflags);
    return r;
}

static enum emulate_result string_once(struct emulate_ctx *c)
{
    enum emulate_result r;
    u64 value;

    switch (c->insn.op) {
    case INSN_INS:
        return string_in(c);
    case INSN_OUTS:
        return string_out(c);
    case INSN_STOS:
        return string_store(c, c->gpr[0]);
    case INSN_MOVS:
        r = string_load(c, GPR_RSI, &value);
        return r == EMULATE_OK ? string_store(c, value) : r;
    case INSN_LODS:
        r = string_load(c, GPR_RSI, &value);
        if (r == EMULATE_OK)
            emu_reg_set(c, 0, c->insn.opsize, value);
        return r;
    default:
        return string_compare(c);
    }
}

// CMPS and SCAS end on ZF too: REPE when it is clear, REPNE when it is set.
static bool repeat_ends(const struct emulate_ctx *c, u64 left)
{
    bool zero = c->next_rflags & RFLAGS_ZF;

    if (left == 0)
        return true;
    if (c->insn.op != INSN_CMPS && c->insn.op != INSN_SCAS)
        return false;
    return zero == !!(c->insn.prefixes & INSN_REPNE);
}

// Each completed repetition is committed at once; a fault in a later one leaves the flags as they
// were.
enum emulate_result emu_run_string(struct emulate_ctx *c)
{
    unsigned size = c->insn.addr_size;
    u32 max = c->max_repeat ? c->max_repeat : DEFAULT_REPEAT;

    if (!(c->insn.prefixes & (INSN_REP | INSN_REPNE)))
        return string_once(c);
    if ((c->gpr[1] & size_mask(size)) == 0)
        return EMULATE_OK;
    for (u32 n = 0; n < max; n++) {
        enum emulate_result r = string_once(c);

        if (r != EMULATE_OK)
            return r;
        emu_reg_set(c, 1, size, c->gpr[1] - 1);
        emu_commit(c);
        if (repeat_ends(c, c->gpr[1] & size_mask(size)))
            return EMULATE_OK;
        if (c->ops->interrupted && c->ops->interrupted(c))
            break;
    }
    return emu_repeat(c);
}

enum emulate_result emu_run_in(struct emulate_ctx *c)
{
    u32 value = 0;
    enum emulate_result r = c->ops->io_in(c, c->port, c->insn.opsize, &value);

    c->dst = value;
    return r;
}

enum emulate_result emu_run_out(struct emulate_ctx *c)
{
    return c->ops->io_out(c, c->port, c->insn.opsize, (u32)emu_reg_get(c, 0, c->insn.opsize));
}
