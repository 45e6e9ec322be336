// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulator's moves between memory and the MMX, SSE, AVX and AVX-512 registers, and the x87
// instructions with a memory operand. Intel SDM volume 1 sections 8.6, 10.2, 14.3; volume 2
// sections 2.4 (exception classes 1, 4, 5) and 2.7; volume 3 sections 2.5, 13.1.

#include "emulate_internal.h"
#include <nestor/string.h>

#define VECTOR_MAX    64
#define X87_PENDING   0x80 // FSW.ES: an unmasked exception waits
#define X87_NO_RESULT 0x19 // IE, OE, UE: unmasked, they leave memory as it was

static enum emulate_result raise_ud(struct emulate_ctx *c)
{
    return emulate_raise(c, VECTOR_UD, false, 0);
}

static bool extended_enabled(struct emulate_ctx *c)
{
    u64 need = XCR0_SSE | XCR0_AVX | (c->insn.encoding == INSN_EVEX ? BITS(7, 5) : 0);

    return c->cr0 & CR0_PE && !in_vm86(c) && c->cr4 & CR4_OSXSAVE &&
           (c->ops->xcr0(c) & need) == need;
}

static enum emulate_result check_enabled(struct emulate_ctx *c)
{
    bool mmx = c->insn.move & MOVE_MMX;

    if (c->insn.encoding != INSN_LEGACY) {
        if (!extended_enabled(c))
            return raise_ud(c);
    } else if (c->cr0 & CR0_EM || (!mmx && !(c->cr4 & CR4_OSFXSR))) {
        return raise_ud(c);
    }
    if (c->cr0 & CR0_TS)
        return emulate_raise(c, VECTOR_NM, false, 0);
    if (mmx && c->ops->x87_status(c) & X87_PENDING)
        return emulate_raise(c, VECTOR_MF, false, 0);
    return EMULATE_OK;
}

static enum emulate_result vector_address(struct emulate_ctx *c, unsigned access)
{
    enum emulate_result r = c->ops->vector ? check_enabled(c) : EMULATE_UNHANDLED;

    if (r == EMULATE_OK)
        r = emu_operand_address(c, access);
    if (r == EMULATE_OK && c->insn.move & MOVE_ALIGNED && c->linear & (c->insn.mem_size - 1u))
        return raise_gp0(c);
    return r;
}

// A register as far as a write changes it: what a VEX or EVEX form does not write becomes zero.
static enum emulate_bank bank(const struct emulate_ctx *c)
{
    if (c->insn.move & MOVE_MMX)
        return EMULATE_MMX;
    return c->insn.encoding == INSN_LEGACY ? EMULATE_XMM
           : c->insn.encoding == INSN_VEX  ? EMULATE_YMM
                                           : EMULATE_ZMM;
}

static unsigned bank_number(const struct emulate_ctx *c, unsigned n)
{
    return c->insn.move & MOVE_MMX ? n & 7 : n;
}

// The half that MOVLPS, MOVHPS and their like do not load.
static void merge_half(struct emulate_ctx *c, u8 *value)
{
    unsigned kept = c->insn.move & MOVE_HIGH ? 0 : 8;
    u8 other[VECTOR_MAX];

    c->ops->vector(c, bank(c), c->insn.encoding == INSN_LEGACY ? c->insn.reg : c->insn.vvvv, false,
                   other);
    memcpy(value + kept, other + kept, 8);
}

static enum emulate_result move_registers(struct emulate_ctx *c, unsigned to, unsigned from)
{
    enum emulate_result r = c->ops->vector ? check_enabled(c) : EMULATE_UNHANDLED;
    u8 value[VECTOR_MAX];

    if (r == EMULATE_OK)
        r = emu_intercept(c, EMULATE_ACCESSED);
    if (r != EMULATE_OK)
        return r;
    c->ops->vector(c, bank(c), from, false, value);
    memset(value + c->insn.src_size, 0, sizeof(value) - c->insn.src_size);
    c->ops->vector(c, bank(c), to, true, value);
    return EMULATE_OK;
}

enum emulate_result emu_run_vec_load(struct emulate_ctx *c)
{
    unsigned at = c->insn.move & MOVE_HIGH ? 8 : 0;
    u8 value[VECTOR_MAX] = {0};
    enum emulate_result r;

    if (!c->insn.has_mem)
        return move_registers(c, c->insn.reg, c->insn.rm);
    r = vector_address(c, EMULATE_READ);
    if (r == EMULATE_OK)
        r = emu_mem_read(c, c->linear, value + at, c->insn.mem_size, EMULATE_READ);
    if (r == EMULATE_OK)
        r = emu_intercept(c, EMULATE_ACCESSED);
    if (r != EMULATE_OK)
        return r;
    if (c->insn.move & (MOVE_LOW | MOVE_HIGH))
        merge_half(c, value);
    c->ops->vector(c, bank(c), bank_number(c, c->insn.reg), true, value);
    return EMULATE_OK;
}

enum emulate_result emu_run_vec_store(struct emulate_ctx *c)
{
    unsigned at = c->insn.move & MOVE_HIGH ? 8 : 0;
    enum emulate_result r;
    u8 value[VECTOR_MAX];

    if (!c->insn.has_mem)
        return move_registers(c, c->insn.rm, c->insn.reg);
    r = vector_address(c, EMULATE_WRITE);
    if (r == EMULATE_OK)
        r = emu_intercept(c, EMULATE_ACCESSED);
    if (r != EMULATE_OK)
        return r;
    c->ops->vector(c, bank(c), bank_number(c, c->insn.reg), false, value);
    return emu_mem_write(c, c->linear, value + at, c->insn.mem_size);
}

// The instruction itself is executed by the CPU, on a buffer instead of memory. FNSTCW and FNSTSW
// do not wait for pending exceptions.
enum emulate_result emu_run_x87(struct emulate_ctx *c)
{
    bool store = c->insn.move & MOVE_STORE, waits = !store || (c->insn.modrm >> 3 & 7) != 7 ||
                                                    !(c->insn.opcode & 1) || c->insn.mem_size != 2;
    enum emulate_result r;
    u8 value[16] = {0};
    u16 before, after;

    if (!c->ops->x87)
        return EMULATE_UNHANDLED;
    if (c->cr0 & (CR0_EM | CR0_TS))
        return emulate_raise(c, VECTOR_NM, false, 0);
    before = c->ops->x87_status(c);
    if (waits && before & X87_PENDING)
        return emulate_raise(c, VECTOR_MF, false, 0);
    r = emu_operand_address(c, store ? EMULATE_WRITE : EMULATE_READ);
    if (r == EMULATE_OK && store)
        r = emu_mem_check(c, c->linear, c->insn.mem_size);
    else if (r == EMULATE_OK)
        r = emu_mem_read(c, c->linear, value, c->insn.mem_size, EMULATE_READ);
    if (r == EMULATE_OK)
        r = emu_intercept(c, EMULATE_ACCESSED);
    if (r != EMULATE_OK)
        return r;
    c->ops->x87(c, c->insn.opcode & 7, c->insn.modrm >> 3 & 7, value);
    after = c->ops->x87_status(c);
    // Flags that have been there without a pending exception are masked ones.
    if (!store || (waits && after & X87_PENDING && after & ~before & X87_NO_RESULT))
        return EMULATE_OK;
    return emu_mem_write(c, c->linear, value, c->insn.mem_size);
}
