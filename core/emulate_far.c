// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Far control transfers in the emulator: far JMP, CALL and RET, call gates, IRET, and INT n as the
// event that the hardware then delivers. Intel SDM volume 2 under each name, volume 3 sections 5.8
// and 8.3; AMD APM volume 3. What is loaded goes to c->seg, for the caller to commit. Faults come
// before effects, but for accessed bits and the memory below the stack pointer.

#include "emulate_internal.h"
#include <nestor/string.h>

#define MAX_PARAMETERS 31

// What IRET and POPF load at any privilege.
#define FLAGS_USER                                                                       \
    (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_TF | RFLAGS_DF | \
     RFLAGS_OF | RFLAGS_NT)

// --- stacks ---

static u8 stack_width(const struct emulate_ctx *c, const struct segment *ss, bool code_64)
{
    (void)c;
    return code_64 ? 8 : ss->access & SEG_DB ? 4 : 2;
}

static struct far_stack current_stack(struct emulate_ctx *c)
{
    struct far_stack st = {.ss = emu_segment(c, SEG_SS), .sp = c->gpr[GPR_RSP]};

    st.width = stack_width(c, &st.ss, insn_mode_is_64(c->mode));
    return st;
}

static enum emulate_result stack_linear(struct emulate_ctx *c, const struct far_stack *st,
                                        unsigned size, gva_t *la)
{
    u64 offset = st->sp & size_mask(st->width);
    bool ok;

    if (st->width == 8) {
        *la = offset;
        ok = emu_canonical(c, offset) && emu_canonical(c, offset + size - 1);
    } else {
        *la = (u32)(st->ss.base + offset);
        ok = !(st->ss.access & SEG_UNUSABLE) && emu_limit_allows(&st->ss, offset, size);
    }
    return ok ? EMULATE_OK : emu_raise_selector(c, VECTOR_SS, st->error);
}

static void stack_step(struct far_stack *st, u64 bytes)
{
    u64 mask = size_mask(st->width);

    st->sp = (st->sp & ~mask) | ((st->sp + bytes) & mask);
}

enum emulate_result emu_far_push(struct emulate_ctx *c, struct far_stack *st, u64 value,
                                 unsigned size)
{
    enum emulate_result r;
    gva_t la;

    stack_step(st, 0ull - size);
    r = stack_linear(c, st, size, &la);
    return r == EMULATE_OK ? emu_mem_write(c, la, &value, size) : r;
}

static enum emulate_result far_pop(struct emulate_ctx *c, struct far_stack *st, u64 *value)
{
    unsigned size = c->insn.opsize;
    enum emulate_result r;
    gva_t la;

    *value = 0;
    r = stack_linear(c, st, size, &la);
    if (r == EMULATE_OK)
        r = emu_mem_read(c, la, value, size, EMULATE_READ);
    stack_step(st, size);
    return r;
}

static enum emulate_result far_pops(struct emulate_ctx *c, struct far_stack *st, u64 *values,
                                    unsigned count)
{
    enum emulate_result r = EMULATE_OK;

    for (unsigned i = 0; r == EMULATE_OK && i < count; i++)
        r = far_pop(c, st, &values[i]);
    return r;
}

// Values are written from the first to the last; there is room for all, or #SS.
static enum emulate_result far_pushes(struct emulate_ctx *c, struct far_stack *st,
                                      const u64 *values, unsigned count, unsigned size)
{
    enum emulate_result r = EMULATE_OK;

    for (unsigned i = 0; r == EMULATE_OK && i < count; i++)
        r = emu_far_push(c, st, values[i], size);
    return r;
}

// Whether `bytes` fit: each push is checked again, but this comes before the target's checks.
static enum emulate_result stack_room(struct emulate_ctx *c, const struct far_stack *st,
                                      unsigned bytes, unsigned size)
{
    struct far_stack last = *st;
    enum emulate_result r = EMULATE_OK;
    gva_t la;

    for (unsigned n = 0; r == EMULATE_OK && n < bytes; n += size) {
        stack_step(&last, 0ull - size);
        r = stack_linear(c, &last, size, &la);
    }
    return r;
}

// Whether they can be written, all of them: before the first is.
static enum emulate_result stack_writable(struct emulate_ctx *c, const struct far_stack *st,
                                          unsigned count, unsigned size)
{
    struct far_stack last = *st;
    enum emulate_result r = EMULATE_OK;
    gva_t la;

    while (r == EMULATE_OK && count--) {
        stack_step(&last, 0ull - size);
        r = stack_linear(c, &last, size, &la);
        if (r == EMULATE_OK)
            r = emu_mem_check(c, la, size);
    }
    return r;
}

// --- targets ---

static bool to_64bit(const struct emulate_ctx *c, const struct segment *cs)
{
    return c->long_mode && cs->access & SEG_L;
}

// Sets CS and the next RIP, or raises #GP(0).
static enum emulate_result check_target(struct emulate_ctx *c, const struct segment *cs, u64 ip)
{
    bool ok = to_64bit(c, cs) ? emu_canonical(c, ip) : ip <= cs->limit;

    return ok ? EMULATE_OK : raise_gp0(c);
}

static void set_target(struct emulate_ctx *c, struct segment cs, u64 ip)
{
    emu_set_segment(c, SEG_CS, cs);
    c->next_rip = ip;
}

// JMP or CALL that keeps the privilege; `size` is of what CALL pushes.
static enum emulate_result transfer(struct emulate_ctx *c, struct segment cs, u64 ip, unsigned size)
{
    u64 values[] = {emu_segment(c, SEG_CS).selector, c->next_rip};
    bool call = c->insn.op == INSN_CALL_FAR;
    struct far_stack st = current_stack(c);
    enum emulate_result r = EMULATE_OK;

    if (size == 8)
        st.width = 8;
    if (call)
        r = stack_room(c, &st, 2 * size, size);
    if (r == EMULATE_OK)
        r = check_target(c, &cs, ip);
    if (r == EMULATE_OK && call)
        r = stack_writable(c, &st, 2, size);
    if (r == EMULATE_OK && call)
        r = far_pushes(c, &st, values, 2, size);
    if (r != EMULATE_OK)
        return r;
    c->gpr[GPR_RSP] = st.sp;
    set_target(c, cs, ip);
    return EMULATE_OK;
}

static enum emulate_result transfer_code(struct emulate_ctx *c, struct descriptor *d, u64 ip,
                                         unsigned size)
{
    struct segment cs = descriptor_segment(d);
    enum emulate_result r;

    if (c->long_mode && !(cs.access & SEG_L) && emu_cet_sees(c, OP_SHSTK))
        return EMULATE_UNHANDLED; // #GP if SSP lies above 4 GiB
    r = emu_change_type(c, d, DESCRIPTOR_ACCESSED, 0);
    cs.selector = (u16)(selector_error(cs.selector) | c->cpl);
    return r == EMULATE_OK ? transfer(c, cs, ip, size) : r;
}

// The stack of a privilege level, as the TSS has it.
static enum emulate_result tss_stack(struct emulate_ctx *c, unsigned level, struct far_stack *st,
                                     u16 *selector)
{
    struct segment tr = emu_segment(c, SEG_TR);
    bool wide = tr.access & DESCRIPTOR_32;
    u32 offset = wide ? 4 + 8 * level : 2 + 4 * level;
    unsigned size = c->long_mode ? 8 : wide ? 6 : 4, sp_size = c->long_mode ? 8 : size - 2;
    enum emulate_result r;
    u8 bytes[8];

    *st = (struct far_stack){.width = c->long_mode ? 8 : 4};
    *selector = (u16)level; // IA-32e mode: null
    if (offset + size - 1 > tr.limit)
        return emu_raise_selector(c, VECTOR_TS, tr.selector);
    r = emu_mem_read(c, tr.base + offset, bytes, size, EMULATE_READ | EMULATE_SUPERVISOR);
    if (r != EMULATE_OK)
        return r;
    memcpy(&st->sp, bytes, sp_size);
    if (!c->long_mode)
        memcpy(selector, bytes + sp_size, 2);
    return EMULATE_OK;
}

static enum emulate_result inner_stack(struct emulate_ctx *c, unsigned level, struct far_stack *st)
{
    struct descriptor d;
    u16 selector;
    u8 vector;
    enum emulate_result r = tss_stack(c, level, st, &selector);

    if (r != EMULATE_OK)
        return r;
    if (c->long_mode) {
        st->ss = segment_null(selector, level);
        return EMULATE_OK;
    }
    if (!selector_error(selector))
        return emu_raise_selector(c, VECTOR_TS, selector);
    r = emu_read_descriptor(c, selector, VECTOR_TS, &d);
    if (r != EMULATE_OK)
        return r;
    vector = descriptor_check_stack(&d, level);
    if (vector)
        return emu_raise_selector(c, vector == VECTOR_GP ? VECTOR_TS : vector, selector);
    st->ss = descriptor_segment(&d);
    st->width = stack_width(c, &st->ss, false);
    st->error = selector_error(selector);
    return emu_change_type(c, &d, DESCRIPTOR_ACCESSED, 0);
}

// CALL through a gate to an inner level: SS, RSP, the parameters and CS:RIP go to its stack.
static enum emulate_result call_inner(struct emulate_ctx *c, const struct descriptor *gate,
                                      struct descriptor *d, unsigned size)
{
    unsigned level = descriptor_dpl(d), count = c->long_mode ? 0 : (u32)(gate->low >> 32) & 31;
    u64 parameters[MAX_PARAMETERS], ip = descriptor_gate_offset(gate);
    struct far_stack old = current_stack(c), st;
    u64 outer[] = {old.ss.selector, old.sp};
    u64 code[] = {emu_segment(c, SEG_CS).selector, c->next_rip};
    enum emulate_result r = inner_stack(c, level, &st);
    struct segment cs;

    if (r == EMULATE_OK)
        r = stack_room(c, &st, (count + 4) * size, size);
    cs = descriptor_segment(d);
    cs.selector = (u16)(selector_error(cs.selector) | level);
    if (r == EMULATE_OK)
        r = check_target(c, &cs, ip);
    c->insn.opsize = (u8)size; // the gate's size, for the parameters
    for (unsigned i = count; r == EMULATE_OK && i-- > 0;)
        r = far_pop(c, &old, &parameters[i]);
    if (r == EMULATE_OK)
        r = emu_change_type(c, d, DESCRIPTOR_ACCESSED, 0);
    cs.access |= DESCRIPTOR_ACCESSED;
    if (r != EMULATE_OK)
        return r;
    c->cpl = (u8)level;
    r = stack_writable(c, &st, count + 4, size);
    if (r == EMULATE_OK)
        r = far_pushes(c, &st, outer, 2, size);
    if (r == EMULATE_OK)
        r = far_pushes(c, &st, parameters, count, size);
    if (r == EMULATE_OK)
        r = far_pushes(c, &st, code, 2, size);
    if (r != EMULATE_OK)
        return r;
    emu_set_segment(c, SEG_SS, st.ss);
    c->gpr[GPR_RSP] = st.sp;
    set_target(c, cs, ip);
    return EMULATE_OK;
}

static enum emulate_result through_call_gate(struct emulate_ctx *c, struct descriptor *gate)
{
    bool call = c->insn.op == INSN_CALL_FAR;
    unsigned size = c->long_mode ? 8 : descriptor_access(gate) & DESCRIPTOR_32 ? 4 : 2;
    u16 selector = (u16)(gate->low >> 16);
    struct descriptor d;
    enum emulate_result r = emu_read_high(c, gate);
    u8 vector;

    if (r != EMULATE_OK)
        return r;
    if (!selector_error(selector))
        return raise_gp0(c);
    r = emu_read_descriptor(c, selector, VECTOR_GP, &d);
    if (r != EMULATE_OK)
        return r;
    vector =
        descriptor_check_code(&d, c->cpl, call ? CODE_GATE_CALL : CODE_GATE_JUMP, c->long_mode);
    if (vector)
        return emu_raise_selector(c, vector, selector);
    if (call && !(descriptor_access(&d) & BIT(2)) && descriptor_dpl(&d) < c->cpl)
        return call_inner(c, gate, &d, size);
    return transfer_code(c, &d, descriptor_gate_offset(gate), size);
}

static enum emulate_result to_task(struct emulate_ctx *c, u16 selector, u8 source)
{
    struct exit_task_switch task = {.selector = selector, .source = source};

    return c->ops->task_switch ? c->ops->task_switch(c, &task) : EMULATE_UNHANDLED;
}

static enum emulate_result far_system(struct emulate_ctx *c, struct descriptor *d)
{
    u8 type = descriptor_access(d) & SEG_TYPE, vector = descriptor_check_gate(d, c->cpl);
    u8 source = c->insn.op == INSN_CALL_FAR ? TASK_CALL : TASK_JMP;
    bool gate = type == DESCRIPTOR_CALL_GATE || type == DESCRIPTOR_CALL_GATE16;
    bool tss = type == DESCRIPTOR_TSS || type == DESCRIPTOR_TSS16;

    if ((c->long_mode && type != DESCRIPTOR_CALL_GATE) ||
        (!gate && !tss && type != DESCRIPTOR_TASK_GATE))
        vector = VECTOR_GP;
    if (vector)
        return emu_raise_selector(c, vector, d->selector);
    if (gate)
        return through_call_gate(c, d);
    return to_task(c, tss ? d->selector : (u16)(d->low >> 16), source);
}

static enum emulate_result far_protected(struct emulate_ctx *c, u16 selector, u64 ip)
{
    struct descriptor d;
    enum emulate_result r;
    u8 vector;

    if (!selector_error(selector))
        return raise_gp0(c);
    r = emu_read_descriptor(c, selector, VECTOR_GP, &d);
    if (r != EMULATE_OK)
        return r;
    if (!(descriptor_access(&d) & SEG_S))
        return far_system(c, &d);
    vector = descriptor_check_code(&d, c->cpl, CODE_DIRECT, c->long_mode);
    if (vector)
        return emu_raise_selector(c, vector, selector);
    return transfer_code(c, &d, ip, c->insn.opsize);
}

// JMP and CALL
enum emulate_result emu_run_far(struct emulate_ctx *c)
{
    u64 ip = c->insn.imm;
    u16 selector = c->insn.imm2;
    enum emulate_result r = EMULATE_OK;

    if (c->insn.has_mem)
        r = emu_far_pointer(c, &ip, &selector);
    if (r != EMULATE_OK)
        return r;
    if (emu_is_real(c))
        return transfer(c, emu_real_or_vm86(c, SEG_CS, selector), ip, c->insn.opsize);
    return far_protected(c, selector, ip);
}

// --- returns ---

static void set_stack(struct emulate_ctx *c, const struct segment *ss, unsigned width, u64 sp)
{
    emu_set_segment(c, SEG_SS, *ss);
    emu_reg_set(c, GPR_RSP, width, sp);
}

// A return to an outer level leaves no segment loaded that this level may not use.
static void drop_data_segments(struct emulate_ctx *c, unsigned level)
{
    static const u8 data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

    for (unsigned i = 0; i < ARRAY_SIZE(data); i++) {
        struct segment s = emu_segment(c, data[i]);
        bool conforming = (s.access & (BIT(3) | BIT(2))) == (BIT(3) | BIT(2));

        if (!(s.access & SEG_UNUSABLE) && !conforming &&
            (s.access & SEG_DPL) >> SEG_DPL_SHIFT < level)
            emu_set_segment(c, data[i], segment_null(0, 0));
    }
}

static enum emulate_result outer_stack(struct emulate_ctx *c, u16 selector, unsigned level,
                                       bool code_64, struct segment *ss)
{
    struct descriptor d;
    enum emulate_result r;
    u8 vector;

    if (!selector_error(selector)) {
        *ss = segment_null(selector, level);
        return code_64 && level != 3 && (selector & 3) == level ? EMULATE_OK : raise_gp0(c);
    }
    r = emu_read_descriptor(c, selector, VECTOR_GP, &d);
    if (r != EMULATE_OK)
        return r;
    vector = descriptor_check_stack(&d, level);
    if (vector)
        return emu_raise_selector(c, vector, selector);
    r = emu_change_type(c, &d, DESCRIPTOR_ACCESSED, 0);
    *ss = descriptor_segment(&d);
    return r;
}

// To protected or 64-bit code, with the frame popped so far; `release` is RET's operand.
static enum emulate_result return_protected(struct emulate_ctx *c, struct far_stack *st, u64 ip,
                                            u16 selector, u64 release)
{
    bool iret = c->insn.op == INSN_IRET;
    unsigned level = selector & 3, width;
    struct descriptor d;
    struct segment cs, ss = {0};
    u64 outer[2];
    u8 vector;
    enum emulate_result r;

    if (!selector_error(selector))
        return raise_gp0(c);
    r = emu_read_descriptor(c, selector, VECTOR_GP, &d);
    if (r != EMULATE_OK)
        return r;
    vector = descriptor_check_code(&d, c->cpl, CODE_RETURN, c->long_mode);
    if (vector)
        return emu_raise_selector(c, vector, selector);
    cs = descriptor_segment(&d);
    stack_step(st, release);
    if (level > c->cpl || (iret && insn_mode_is_64(c->mode))) {
        r = far_pops(c, st, outer, 2);
        if (r == EMULATE_OK)
            r = outer_stack(c, (u16)outer[1], level, to_64bit(c, &cs), &ss);
        if (r == EMULATE_OK)
            r = check_target(c, &cs, ip);
        if (r != EMULATE_OK)
            return r;
        width = stack_width(c, &ss, to_64bit(c, &cs));
        set_stack(c, &ss, width, outer[0] + release);
        if (level > c->cpl)
            drop_data_segments(c, level);
    } else {
        r = check_target(c, &cs, ip);
        c->gpr[GPR_RSP] = st->sp;
    }
    if (r == EMULATE_OK)
        r = emu_change_type(c, &d, DESCRIPTOR_ACCESSED, 0);
    cs.access |= DESCRIPTOR_ACCESSED;
    set_target(c, cs, ip);
    return r;
}

static enum emulate_result return_real(struct emulate_ctx *c, struct far_stack *st, u64 ip,
                                       u16 selector, u64 release)
{
    struct segment cs = emu_real_or_vm86(c, SEG_CS, selector);
    enum emulate_result r = check_target(c, &cs, ip);

    stack_step(st, release);
    c->gpr[GPR_RSP] = st->sp;
    set_target(c, cs, ip);
    return r;
}

static enum emulate_result far_return(struct emulate_ctx *c, struct far_stack *st, u64 ip,
                                      u16 selector, u64 release)
{
    return (emu_is_real(c) ? return_real : return_protected)(c, st, ip, selector, release);
}

enum emulate_result emu_run_ret_far(struct emulate_ctx *c)
{
    struct far_stack st = current_stack(c);
    u64 frame[2];
    enum emulate_result r = far_pops(c, &st, frame, 2);

    return r == EMULATE_OK ? far_return(c, &st, frame[0], (u16)frame[1], c->insn.imm) : r;
}

static u64 iret_writable(const struct emulate_ctx *c)
{
    u64 mask = FLAGS_USER;

    if (c->insn.opsize > 2)
        mask |= RFLAGS_RF | RFLAGS_AC | RFLAGS_ID;
    if (!(c->cr0 & CR0_PE) || c->cpl <= iopl(c))
        mask |= RFLAGS_IF;
    if (!(c->cr0 & CR0_PE))
        return mask | RFLAGS_IOPL;
    if (c->cpl == 0)
        mask |= RFLAGS_IOPL | (c->insn.opsize > 2 ? RFLAGS_VIF | RFLAGS_VIP : 0);
    return mask;
}

// IRET of a VM86 monitor: all segments come from the stack.
static enum emulate_result return_to_vm86(struct emulate_ctx *c, struct far_stack *st,
                                          const u64 *frame)
{
    static const u8 order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
    struct segment cs = segment_vm86((u16)frame[1]);
    u64 more[6];
    enum emulate_result r = far_pops(c, st, more, 6);

    if (r == EMULATE_OK)
        r = check_target(c, &cs, frame[0]);
    if (r != EMULATE_OK)
        return r;
    for (unsigned i = 0; i < ARRAY_SIZE(order); i++)
        emu_set_segment(c, order[i], segment_vm86((u16)more[1 + i]));
    emu_reg_set(c, GPR_RSP, 4, more[0]);
    set_target(c, cs, frame[0]);
    c->next_rflags = (frame[2] & (FLAGS_USER | RFLAGS_IF | RFLAGS_IOPL | RFLAGS_RF | RFLAGS_VM |
                                  RFLAGS_AC | RFLAGS_VIF | RFLAGS_VIP | RFLAGS_ID)) |
                     RFLAGS_FIXED;
    return EMULATE_OK;
}

// VM86 with IOPL < 3 and VME, 16-bit IRET: IF is VIF (SDM volume 2 "IRET").
static enum emulate_result vm86_flags(struct emulate_ctx *c, u64 *flags, u64 *mask)
{
    if (!(c->cr4 & CR4_VME) || c->insn.opsize != 2 || *flags & RFLAGS_TF ||
        (*flags & RFLAGS_IF && c->regs->rflags & RFLAGS_VIP))
        return raise_gp0(c);
    *mask |= RFLAGS_VIF;
    *flags |= *flags & RFLAGS_IF ? RFLAGS_VIF : 0;
    return EMULATE_OK;
}

static enum emulate_result task_return(struct emulate_ctx *c)
{
    struct segment tr = emu_segment(c, SEG_TR);
    enum emulate_result r;
    u16 link;

    if (c->long_mode)
        return raise_gp0(c);
    r = emu_mem_read(c, tr.base, &link, 2, EMULATE_READ | EMULATE_SUPERVISOR);
    return r == EMULATE_OK ? to_task(c, link, TASK_IRET) : r;
}

enum emulate_result emu_run_iret(struct emulate_ctx *c)
{
    struct far_stack st = current_stack(c);
    u64 frame[3], mask = iret_writable(c);
    enum emulate_result r;

    c->unblock_nmi = true;
    if (!emu_is_real(c) && c->regs->rflags & RFLAGS_NT)
        return task_return(c);
    if (flags_virtual(c) && !(c->cr4 & CR4_VME && c->insn.opsize == 2))
        return raise_gp0(c);
    r = far_pops(c, &st, frame, 3);
    if (r == EMULATE_OK)
        r = emu_intercept(c, EMULATE_ACCESSED);
    if (r == EMULATE_OK && flags_virtual(c))
        r = vm86_flags(c, &frame[2], &mask);
    if (r != EMULATE_OK)
        return r;
    if (!emu_is_real(c) && !c->long_mode && c->cpl == 0 && c->insn.opsize == 4 &&
        frame[2] & RFLAGS_VM)
        return return_to_vm86(c, &st, frame);
    r = far_return(c, &st, frame[0], (u16)frame[1], 0);
    c->next_rflags = (c->next_rflags & ~mask) | (frame[2] & mask);
    return r;
}

// --- software interrupts ---

// The hardware delivers them, with the checks of the gate. VM86 asks IOPL first.
enum emulate_result emu_run_int(struct emulate_ctx *c)
{
    static const struct {
        u8 vector, type;
    } events[] = {
        [INSN_INT - INSN_INT] = {0, EVENT_SOFT_INTERRUPT},
        [INSN_INT3 - INSN_INT] = {VECTOR_BP, EVENT_SOFT_EXCEPTION},
        [INSN_INTO - INSN_INT] = {VECTOR_OF, EVENT_SOFT_EXCEPTION},
        [INSN_INT1 - INSN_INT] = {VECTOR_DB, EVENT_INT1},
    };
    unsigned which = c->insn.op - INSN_INT;

    if (c->insn.op == INSN_INTO && !(c->regs->rflags & RFLAGS_OF))
        return EMULATE_OK;
    if (c->insn.op == INSN_INT && flags_virtual(c) && !(c->cr4 & CR4_VME))
        return raise_gp0(c);
    c->fault = (struct event){
        .valid = true,
        .vector = c->insn.op == INSN_INT ? (u8)c->insn.imm : events[which].vector,
        .type = events[which].type,
        .insn_len = c->insn.length,
    };
    return EMULATE_FAULT;
}
