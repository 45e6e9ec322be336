// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulated instructions that work on the stack (Intel SDM volume 2: PUSH, POP, PUSHA, POPA,
// ENTER, LEAVE, PUSHF, POPF), and the pushes and pops of near transfers.

#include "emulate_internal.h"

static unsigned stack_width(struct emulate_ctx *c)
{
    struct segment ss = {0};

    if (insn_mode_is_64(c->mode))
        return 8;
    c->ops->get_seg(c, SEG_SS, &ss);
    return ss.access & SEG_DB ? 4 : 2;
}

void emu_stack_move(struct emulate_ctx *c, u64 bytes)
{
    emu_reg_set(c, GPR_RSP, stack_width(c), c->gpr[GPR_RSP] + bytes);
}

static enum emulate_result stack_address(struct emulate_ctx *c, unsigned access, gva_t *la)
{
    u64 offset = c->gpr[GPR_RSP] & size_mask(stack_width(c));

    return emulate_linear(c, SEG_SS, offset, c->insn.opsize, access, la);
}

enum emulate_result emu_push(struct emulate_ctx *c, u64 value)
{
    enum emulate_result r;
    gva_t la;

    emu_stack_move(c, 0ull - c->insn.opsize);
    r = stack_address(c, EMULATE_WRITE, &la);
    return r == EMULATE_OK ? emu_mem_write(c, la, &value, c->insn.opsize) : r;
}

enum emulate_result emu_pop(struct emulate_ctx *c, u64 *value)
{
    enum emulate_result r;
    gva_t la;

    *value = 0;
    r = stack_address(c, EMULATE_READ, &la);
    if (r == EMULATE_OK)
        r = emu_mem_read(c, la, value, c->insn.opsize, EMULATE_READ);
    if (r == EMULATE_OK)
        emu_stack_move(c, c->insn.opsize);
    return r;
}

enum emulate_result emu_run_push(struct emulate_ctx *c)
{
    return emu_push(c, c->src);
}

// The destination's address is worked out with the RSP after the emu_pop, and POP RSP keeps the
// value.
enum emulate_result emu_run_pop(struct emulate_ctx *c)
{
    u64 value;
    enum emulate_result r = emu_pop(c, &value);

    if (r != EMULATE_OK)
        return r;
    if (c->insn.dst == OPERAND_RM && c->insn.has_mem) {
        r = emu_operand_address(c, EMULATE_WRITE);
        return r == EMULATE_OK ? emu_mem_write(c, c->linear, &value, c->insn.opsize) : r;
    }
    emu_operand_set(c, c->insn.dst, c->insn.opsize, value);
    return EMULATE_OK;
}

enum emulate_result emu_run_pop_sreg(struct emulate_ctx *c)
{
    u64 value;
    enum emulate_result r = emu_pop(c, &value);

    return r == EMULATE_OK
               ? emu_load_segment(c, (enum segment_index)(c->insn.opcode >> 3 & 7), value)
               : r;
}

// Whether `count` values can be pushed: all of them, or the instruction has no effect.
static enum emulate_result check_pushes(struct emulate_ctx *c, unsigned count)
{
    u64 sp = c->gpr[GPR_RSP];
    enum emulate_result r = EMULATE_OK;
    gva_t la;

    while (r == EMULATE_OK && count--) {
        emu_stack_move(c, 0ull - c->insn.opsize);
        r = stack_address(c, EMULATE_WRITE, &la);
        if (r == EMULATE_OK)
            r = emu_mem_check(c, la, c->insn.opsize);
    }
    c->gpr[GPR_RSP] = sp;
    return r;
}

enum emulate_result emu_run_pusha(struct emulate_ctx *c)
{
    u64 sp = c->gpr[GPR_RSP];
    enum emulate_result r = check_pushes(c, 8);

    for (unsigned i = 0; r == EMULATE_OK && i < 8; i++)
        r = emu_push(c, i == GPR_RSP ? sp : c->gpr[i]);
    return r;
}

enum emulate_result emu_run_popa(struct emulate_ctx *c)
{
    for (unsigned i = 8; i-- > 0;) {
        u64 value;
        enum emulate_result r = emu_pop(c, &value);

        if (r != EMULATE_OK)
            return r;
        if (i != GPR_RSP)
            emu_reg_set(c, i, c->insn.opsize, value);
    }
    return EMULATE_OK;
}

// The nesting level's frame pointers are copied from the enclosing frame; or only read, to see
// whether that can be done.
static enum emulate_result copy_display(struct emulate_ctx *c, unsigned level, bool check)
{
    u64 value = 0, rbp = c->gpr[GPR_RBP];
    enum emulate_result r = EMULATE_OK;

    for (unsigned i = 1; r == EMULATE_OK && i < level; i++) {
        u64 offset;
        gva_t la;

        emu_reg_set(c, GPR_RBP, stack_width(c), c->gpr[GPR_RBP] - c->insn.opsize);
        offset = c->gpr[GPR_RBP] & size_mask(stack_width(c));
        r = emulate_linear(c, SEG_SS, offset, c->insn.opsize, EMULATE_READ, &la);
        if (r == EMULATE_OK)
            r = emu_mem_read(c, la, &value, c->insn.opsize, EMULATE_READ);
        if (r == EMULATE_OK && !check)
            r = emu_push(c, value);
    }
    if (check)
        c->gpr[GPR_RBP] = rbp;
    return r;
}

// The final stack pointer must be writable.
enum emulate_result emu_run_enter(struct emulate_ctx *c)
{
    unsigned level = c->insn.imm2 & 31;
    u64 frame, sp = c->gpr[GPR_RSP];
    enum emulate_result r = check_pushes(c, level + 1);
    gva_t la;

    emu_stack_move(c, 0ull - c->insn.opsize * (level + 1) - c->insn.imm);
    if (r == EMULATE_OK)
        r = stack_address(c, EMULATE_WRITE, &la);
    if (r == EMULATE_OK)
        r = emu_mem_check(c, la, c->insn.opsize);
    if (r == EMULATE_OK)
        r = copy_display(c, level, true);
    if (r != EMULATE_OK)
        return r;
    c->gpr[GPR_RSP] = sp;
    r = emu_push(c, c->gpr[GPR_RBP]);
    frame = c->gpr[GPR_RSP];
    if (r == EMULATE_OK && level)
        r = copy_display(c, level, false);
    if (r == EMULATE_OK && level)
        r = emu_push(c, frame);
    emu_reg_set(c, GPR_RBP, c->insn.opsize, frame);
    emu_stack_move(c, 0ull - c->insn.imm);
    return r;
}

enum emulate_result emu_run_leave(struct emulate_ctx *c)
{
    u64 value;
    enum emulate_result r;

    emu_reg_set(c, GPR_RSP, stack_width(c), c->gpr[GPR_RBP]);
    r = emu_pop(c, &value);
    if (r == EMULATE_OK)
        emu_reg_set(c, GPR_RBP, c->insn.opsize, value);
    return r;
}

enum emulate_result emu_run_pushf(struct emulate_ctx *c)
{
    u64 flags = c->regs->rflags & ~(RFLAGS_VM | RFLAGS_RF);

    if (flags_virtual(c)) {
        flags |= RFLAGS_IOPL;
        flags = (flags & ~RFLAGS_IF) | (flags & RFLAGS_VIF ? RFLAGS_IF : 0);
    }
    return emu_push(c, flags);
}

static u64 popf_writable(const struct emulate_ctx *c)
{
    u64 mask = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_TF | RFLAGS_DF |
               RFLAGS_OF | RFLAGS_NT;

    if (c->insn.opsize > 2)
        mask |= RFLAGS_AC | RFLAGS_ID;
    if (!(c->cr0 & CR0_PE) || c->cpl == 0)
        return mask | RFLAGS_IF | RFLAGS_IOPL;
    return c->cpl <= iopl(c) ? mask | RFLAGS_IF : mask;
}

enum emulate_result emu_run_popf(struct emulate_ctx *c)
{
    u64 flags, mask = popf_writable(c);
    enum emulate_result r;

    r = emu_pop(c, &flags);
    if (r != EMULATE_OK)
        return r;
    if (flags_virtual(c)) {
        if (flags & RFLAGS_TF || (flags & RFLAGS_IF && c->regs->rflags & RFLAGS_VIP))
            return raise_gp0(c);
        mask |= RFLAGS_VIF;
        flags |= flags & RFLAGS_IF ? RFLAGS_VIF : 0;
    }
    c->next_rflags = (c->next_rflags & ~mask) | (flags & mask);
    return EMULATE_OK;
}
