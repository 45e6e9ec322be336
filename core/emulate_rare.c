// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulator's rarer integer instructions: bit scans and counts, CRC32, the decimal adjustments,
// BOUND, ARPL. Intel SDM volume 2, each under its own name. Flags that it leaves undefined are
// arbitrary here.

#include "emulate_internal.h"

static void put(struct emulate_ctx *c, u64 flag, bool value)
{
    c->next_rflags = value ? c->next_rflags | flag : c->next_rflags & ~flag;
}

// Without a bit set the destination is not changed: documented by AMD, and true of Intel's.
enum emulate_result emu_run_scan(struct emulate_ctx *c)
{
    put(c, RFLAGS_ZF, c->src == 0);
    if (c->src)
        c->dst =
            (u64)(c->insn.op == INSN_BSF ? __builtin_ctzll(c->src) : 63 - __builtin_clzll(c->src));
    else if (c->insn.opsize == 4) // not even the upper half
        c->dst = c->gpr[c->insn.reg & 15], c->insn.opsize = 8;
    return EMULATE_OK;
}

static bool offered(struct emulate_ctx *c)
{
    return !c->ops->offers || c->ops->offers(c, c->insn.op);
}

// A CPU without them ignores the F3 of TZCNT and LZCNT.
enum emulate_result emu_run_count_zeros(struct emulate_ctx *c)
{
    unsigned bits = 8u * c->insn.opsize;
    bool trailing = c->insn.op == INSN_TZCNT;

    if (!offered(c)) {
        c->insn.op = trailing ? INSN_BSF : INSN_BSR;
        return emu_run_scan(c);
    }
    put(c, RFLAGS_CF, c->src == 0);
    if (c->src == 0)
        c->dst = bits;
    else
        c->dst =
            (u64)(trailing ? __builtin_ctzll(c->src) : __builtin_clzll(c->src) - (64 - (int)bits));
    put(c, RFLAGS_ZF, c->dst == 0);
    return EMULATE_OK;
}

enum emulate_result emu_run_popcnt(struct emulate_ctx *c)
{
    if (!offered(c))
        return emulate_raise(c, VECTOR_UD, false, 0);
    c->dst = 0;
    for (u64 left = c->src; left; left &= left - 1)
        c->dst++;
    c->next_rflags &= ~(u64)(RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF);
    put(c, RFLAGS_ZF, c->src == 0);
    return EMULATE_OK;
}

// The polynomial 11EDC6F41h, bits reflected; the destination has 4 bytes, with REX.W 8.
enum emulate_result emu_run_crc32(struct emulate_ctx *c)
{
    u32 crc = (u32)c->gpr[c->insn.reg & 15];

    if (!offered(c))
        return emulate_raise(c, VECTOR_UD, false, 0);
    for (unsigned i = 0; i < 8u * c->insn.src_size; i++) {
        bool out = (crc ^ c->src >> i) & 1;

        crc = crc >> 1 ^ (out ? 0x82f63b78 : 0);
    }
    c->dst = crc;
    c->insn.opsize = 8; // the upper half becomes zero either way
    return EMULATE_OK;
}

// AAA, AAS: AL and AH are adjusted together.
static void ascii_adjust(struct emulate_ctx *c)
{
    u64 ax = c->gpr[0] & 0xffff;
    bool adjust = (ax & 15) > 9 || c->next_rflags & RFLAGS_AF;

    if (adjust)
        ax += c->insn.op == INSN_AAA ? 0x106 : 0ull - 0x106;
    emu_reg_set(c, 0, 2, ax & 0xff0f);
    put(c, RFLAGS_AF, adjust);
    put(c, RFLAGS_CF, adjust);
}

static void decimal_adjust(struct emulate_ctx *c)
{
    u64 al = c->gpr[0] & 0xff, old = al, flags = c->next_rflags;
    u8 op = c->insn.op == INSN_DAA ? INSN_ADD : INSN_SUB;
    bool low = (al & 15) > 9 || flags & RFLAGS_AF;
    bool high = old > 0x99 || flags & RFLAGS_CF;
    bool carry = high || (op == INSN_SUB && low && al < 6);

    al = alu_binary(op, al, (low ? 6u : 0u) + (high ? 0x60u : 0u), 1, &c->next_rflags);
    emu_reg_set(c, 0, 1, al);
    put(c, RFLAGS_AF, low);
    put(c, RFLAGS_CF, carry);
}

enum emulate_result emu_run_adjust(struct emulate_ctx *c)
{
    u64 al = c->gpr[0] & 0xff, ah = c->gpr[0] >> 8 & 0xff, base = c->insn.imm & 0xff, flags = 0;

    if (c->insn.op == INSN_AAA || c->insn.op == INSN_AAS) {
        ascii_adjust(c);
        return EMULATE_OK;
    }
    if (c->insn.op == INSN_DAA || c->insn.op == INSN_DAS) {
        decimal_adjust(c);
        return EMULATE_OK;
    }
    if (c->insn.op == INSN_AAM) {
        if (base == 0)
            return emulate_raise(c, VECTOR_DE, false, 0);
        ah = al / base;
        al = al % base;
    } else {
        al = (al + ah * base) & 0xff;
        ah = 0;
    }
    emu_reg_set(c, 0, 2, ah << 8 | al);
    alu_binary(INSN_AND, al, al, 1, &flags);
    put(c, RFLAGS_ZF, flags & RFLAGS_ZF);
    put(c, RFLAGS_SF, flags & RFLAGS_SF);
    put(c, RFLAGS_PF, flags & RFLAGS_PF);
    return EMULATE_OK;
}

enum emulate_result emu_run_bound(struct emulate_ctx *c)
{
    unsigned size = c->insn.opsize;
    u64 bounds = 0;
    s64 index = (s64)sign_extend(emu_reg_get(c, c->insn.reg, size), size);
    enum emulate_result r = emu_operand_address(c, EMULATE_READ);

    if (r == EMULATE_OK)
        r = emu_mem_read(c, c->linear, &bounds, 2 * size, EMULATE_READ);
    if (r != EMULATE_OK)
        return r;
    if (index < (s64)sign_extend(bounds, size) ||
        index > (s64)sign_extend(bounds >> (8 * size), size))
        return emulate_raise(c, VECTOR_BR, false, 0);
    return EMULATE_OK;
}

enum emulate_result emu_run_arpl(struct emulate_ctx *c)
{
    bool raise = (c->dst & 3) < (c->src & 3);

    if (raise)
        c->dst = (c->dst & ~3ull) | (c->src & 3);
    put(c, RFLAGS_ZF, raise);
    return EMULATE_OK;
}
