// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The task switch, which neither VMX nor SVM does for a guest: by JMP, CALL or IRET to a TSS, or an
// event through a task gate. Intel SDM volume 3 chapter 8 (7.3 "Task Switching" in older
// numbering); AMD APM volume 2 chapter 12. Pure, like the rest of the emulator.
//
// Faults before the old task is stored leave everything as it was. Those after it (c->switched) are
// the new task's: its registers are loaded, and its segments as far as they were good.

#include "emulate_internal.h"
#include <nestor/string.h>

// The words from IP on lie alike in both forms: IP, flags, eight registers, selectors, LDT.
struct tss_form {
    u8 width, ip, segments;
    u32 limit; // the least
};

static const struct tss_form tss_forms[] = {
    {.width = 2, .ip = 14, .segments = 4, .limit = 43},
    {.width = 4, .ip = 32, .segments = 6, .limit = 103},
};

#define TSS_CR3     28
#define TSS_TRAP    100
#define MAX_WORDS   17
#define TASK_ACCESS (EMULATE_SUPERVISOR | EMULATE_READ)

// What a TSS holds of a task's state.
struct task_state {
    u32 ip, flags, gpr[8], segment[6], ldt, cr3;
    bool trap;
};

static const struct tss_form *form_of(u32 access)
{
    return &tss_forms[!!(access & DESCRIPTOR_32)];
}

static enum emulate_result tss_store(struct emulate_ctx *c, gva_t la, const void *buf,
                                     unsigned size)
{
    unsigned part = MIN(size, (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK)));
    enum emulate_result r = c->ops->write_mem(c, la, buf, part, EMULATE_WRITE | EMULATE_SUPERVISOR);

    if (r == EMULATE_OK && part < size)
        r = c->ops->write_mem(c, (u32)(la + part), (const u8 *)buf + part, size - part,
                              EMULATE_WRITE | EMULATE_SUPERVISOR);
    return r;
}

// Whether both ends can be written: a TSS spans two pages at most.
static enum emulate_result tss_check(struct emulate_ctx *c, gva_t la, unsigned size)
{
    enum emulate_result r = c->ops->check_mem(c, (u32)la, 1, EMULATE_WRITE | EMULATE_SUPERVISOR);

    if (r == EMULATE_OK)
        r = c->ops->check_mem(c, (u32)(la + size - 1), 1, EMULATE_WRITE | EMULATE_SUPERVISOR);
    return r;
}

static enum emulate_result store_old(struct emulate_ctx *c, const struct segment *tr, bool iret)
{
    const struct tss_form *form = form_of(tr->access);
    u64 flags = iret ? c->next_rflags & ~RFLAGS_NT : c->next_rflags;
    unsigned count = 10u + form->segments;
    u8 bytes[4 * MAX_WORDS];
    u32 words[MAX_WORDS] = {(u32)c->next_rip, (u32)flags};

    for (unsigned i = 0; i < 8; i++)
        words[2 + i] = (u32)c->gpr[i];
    for (unsigned i = 0; i < form->segments; i++)
        words[10 + i] = emu_segment(c, (enum segment_index)i).selector;
    for (unsigned i = 0; i < count; i++)
        memcpy(bytes + i * form->width, &words[i], form->width);
    return tss_store(c, (u32)(tr->base + form->ip), bytes, count * form->width);
}

static enum emulate_result fetch_new(struct emulate_ctx *c, const struct segment *tr,
                                     struct task_state *task)
{
    const struct tss_form *form = form_of(tr->access);
    unsigned count = 11u + form->segments;
    u8 tss[TSS_TRAP + 4] = {0};
    u32 words[MAX_WORDS] = {0};
    enum emulate_result r = emu_mem_read(c, tr->base, tss, form->limit + 1, TASK_ACCESS);

    for (unsigned i = 0; i < count; i++)
        memcpy(&words[i], tss + form->ip + i * form->width, form->width);
    *task = (struct task_state){.ip = words[0], .flags = words[1], .ldt = (u16)words[count - 1]};
    memcpy(task->gpr, words + 2, sizeof(task->gpr));
    memcpy(task->segment, words + 10, form->segments * sizeof(words[0]));
    memcpy(&task->cr3, tss + TSS_CR3, sizeof(task->cr3));
    task->trap = form->width == 4 && tss[TSS_TRAP] & 1;
    return r;
}

// The new TSS's descriptor: available, or busy for IRET; present; long enough.
static enum emulate_result find_new(struct emulate_ctx *c, const struct exit_task_switch *t,
                                    struct descriptor *d)
{
    bool iret = t->source == TASK_IRET;
    u8 wrong = iret ? VECTOR_TS : VECTOR_GP, type;
    struct segment tr;
    enum emulate_result r;

    if (t->selector & 4)
        return emu_raise_selector(c, wrong, t->selector);
    r = emu_read_descriptor(c, t->selector, wrong, d);
    if (r != EMULATE_OK)
        return r;
    type = descriptor_access(d) & (SEG_S | SEG_TYPE);
    if ((type & ~DESCRIPTOR_32) !=
        (iret ? DESCRIPTOR_TSS16 | DESCRIPTOR_TSS_BUSY : DESCRIPTOR_TSS16))
        return emu_raise_selector(c, wrong, t->selector);
    if (!(descriptor_access(d) & SEG_P))
        return emu_raise_selector(c, VECTOR_NP, t->selector);
    tr = descriptor_segment(d);
    return tr.limit < form_of(tr.access)->limit ? emu_raise_selector(c, VECTOR_TS, t->selector)
                                                : EMULATE_OK;
}

enum emulate_result emulate_task_check(struct emulate_ctx *c, const struct exit_task_switch *t)
{
    struct descriptor d;

    return find_new(c, t, &d);
}

// All that can fault by paging before anything is changed.
static enum emulate_result check_both(struct emulate_ctx *c, const struct segment *old,
                                      const struct segment *tr, bool link)
{
    const struct tss_form *form = form_of(old->access);
    enum emulate_result r =
        tss_check(c, old->base + form->ip, (10u + form->segments) * form->width);

    return r == EMULATE_OK && link ? tss_check(c, tr->base, 2) : r;
}

static enum emulate_result change_busy(struct emulate_ctx *c, u16 selector, bool busy)
{
    struct descriptor d;
    enum emulate_result r = emu_read_descriptor(c, selector, VECTOR_TS, &d);

    if (r != EMULATE_OK)
        return r;
    return emu_change_type(c, &d, busy ? DESCRIPTOR_TSS_BUSY : 0, busy ? 0 : DESCRIPTOR_TSS_BUSY);
}

static enum emulate_result leave_old(struct emulate_ctx *c, const struct segment *old, u8 source)
{
    enum emulate_result r = store_old(c, old, source == TASK_IRET);

    if (r == EMULATE_OK && (source == TASK_JMP || source == TASK_IRET))
        r = change_busy(c, old->selector, false);
    return r;
}

// The registers of the new task; its segments are there, but can't be used yet.
static void load_registers(struct emulate_ctx *c, const struct task_state *task)
{
    bool vm86 = task->flags & RFLAGS_VM;
    unsigned level = vm86 ? 3 : task->segment[SEG_CS] & 3;

    c->next_rip = task->ip;
    c->next_rflags = (task->flags & RFLAGS_LOADED) | RFLAGS_FIXED;
    for (unsigned i = 0; i < 8; i++)
        c->gpr[i] = task->gpr[i];
    for (unsigned i = 0; i < 6; i++)
        emu_set_segment(c, (enum segment_index)i,
                        vm86 ? segment_vm86((u16)task->segment[i])
                             : segment_null((u16)task->segment[i], level));
    if (!vm86)
        c->seg[SEG_CS].access = SEG_P | SEG_S | 11 | level << SEG_DPL_SHIFT;
    emu_set_segment(c, SEG_LDTR, segment_null((u16)task->ldt, 0));
    c->cpl = (u8)level;
}

static enum emulate_result load_ldt(struct emulate_ctx *c, u16 selector)
{
    struct descriptor d;
    enum emulate_result r;

    if (!selector_error(selector))
        return EMULATE_OK;
    if (selector & 4)
        return emu_raise_selector(c, VECTOR_TS, selector);
    r = emu_read_descriptor(c, selector, VECTOR_TS, &d);
    if (r == EMULATE_OK && descriptor_check_ldt(&d))
        r = emu_raise_selector(c, VECTOR_TS, selector);
    if (r == EMULATE_OK)
        emu_set_segment(c, SEG_LDTR, descriptor_segment(&d));
    return r;
}

static enum emulate_result load_segment(struct emulate_ctx *c, enum segment_index seg)
{
    u16 selector = c->seg[seg].selector;
    struct descriptor d;
    enum emulate_result r;
    u8 vector;

    if (!selector_error(selector))
        return seg == SEG_CS || seg == SEG_SS ? emu_raise_selector(c, VECTOR_TS, selector)
                                              : EMULATE_OK;
    r = emu_read_descriptor(c, selector, VECTOR_TS, &d);
    if (r != EMULATE_OK)
        return r;
    if (seg == SEG_CS)
        vector = descriptor_check_code(&d, 0, CODE_RETURN, false);
    else
        vector =
            seg == SEG_SS ? descriptor_check_stack(&d, c->cpl) : descriptor_check_data(&d, c->cpl);
    if (vector)
        return emu_raise_selector(c, vector == VECTOR_GP ? VECTOR_TS : vector, selector);
    r = emu_change_type(c, &d, DESCRIPTOR_ACCESSED, 0);
    if (r == EMULATE_OK)
        emu_set_segment(c, seg, descriptor_segment(&d));
    return r;
}

static enum emulate_result load_segments(struct emulate_ctx *c, const struct task_state *task)
{
    static const u8 order[] = {SEG_CS, SEG_SS, SEG_DS, SEG_ES, SEG_FS, SEG_GS};
    enum emulate_result r = load_ldt(c, (u16)task->ldt);

    if (task->flags & RFLAGS_VM)
        return r;
    for (unsigned i = 0; r == EMULATE_OK && i < ARRAY_SIZE(order); i++)
        r = load_segment(c, order[i]);
    return r;
}

static enum emulate_result push_error(struct emulate_ctx *c, u32 error, unsigned width)
{
    struct far_stack st = {.ss = c->seg[SEG_SS], .sp = c->gpr[GPR_RSP]};
    enum emulate_result r;

    st.width = st.ss.access & SEG_DB ? 4 : 2;
    r = emu_far_push(c, &st, error, width);
    if (r == EMULATE_OK)
        c->gpr[GPR_RSP] = st.sp;
    return r;
}

static enum emulate_result enter_new(struct emulate_ctx *c, const struct exit_task_switch *t,
                                     const struct segment *tr, const struct task_state *task)
{
    bool nested = t->source == TASK_CALL || t->source == TASK_GATE;
    unsigned width = form_of(tr->access)->width;
    enum emulate_result r = EMULATE_OK;

    emu_set_segment(c, SEG_TR, *tr);
    load_registers(c, task);
    if (nested)
        c->next_rflags |= RFLAGS_NT;
    c->task_trap = task->trap;
    if (width == 4 && c->cr0 & CR0_PG && c->ops->load_cr3)
        r = c->ops->load_cr3(c, task->cr3);
    if (r == EMULATE_OK)
        r = load_segments(c, task);
    if (r == EMULATE_OK && t->has_error)
        r = push_error(c, t->error, width);
    return r;
}

enum emulate_result emulate_task_switch(struct emulate_ctx *c, const struct exit_task_switch *t)
{
    struct segment old = emu_segment(c, SEG_TR), tr;
    bool link = t->source == TASK_CALL || t->source == TASK_GATE;
    struct task_state task;
    struct descriptor d;
    u16 back = old.selector;
    enum emulate_result r;

    if (emu_cet_sees(c, OP_CET | OP_INWARD | OP_OUTWARD)) // a TSS holds an SSP as well
        return EMULATE_UNHANDLED;
    r = find_new(c, t, &d);
    if (r != EMULATE_OK)
        return r;
    tr = descriptor_segment(&d);
    r = fetch_new(c, &tr, &task);
    if (r == EMULATE_OK)
        r = check_both(c, &old, &tr, link);
    if (r == EMULATE_OK)
        r = leave_old(c, &old, t->source);
    if (r == EMULATE_OK && link)
        r = tss_store(c, tr.base, &back, sizeof(back));
    if (r == EMULATE_OK && t->source != TASK_IRET)
        r = change_busy(c, t->selector, true);
    if (r != EMULATE_OK)
        return r;
    // A task may switch to itself, and then sees what it has stored.
    if (tr.base == old.base)
        r = fetch_new(c, &tr, &task);
    c->switched = true;
    tr.access |= DESCRIPTOR_TSS_BUSY;
    if (r == EMULATE_OK)
        r = enter_new(c, t, &tr, &task);
    emu_commit(c);
    return r;
}
