// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/decode.c core/decode_table.c core/emulate.c
// unit-sources: core/emulate_stack.c core/emulate_string.c
// unit-sources: core/emulate_alu.c core/emulate_ops.c core/emulate_rare.c core/emulate_vector.c
// unit-sources: core/emulate_system.c core/emulate_selector.c core/emulate_syscall.c
// unit-sources: core/task.c
// unit-sources: core/emulate_far.c core/emulate_segment.c core/descriptor.c
//
// Segment loads, far transfers, IRET and task switches of the emulator, in each mode, by hand cases
// from SDM volume 2. tests/guests/task.c compares the task switch with the CPU.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/regs.h>
#include <nestor/emulate.h>

#define MEMORY 0x40000
#define CODE   0x1000
#define GDT    0x10000
#define TSS    0x12000
#define STACK  0x6000
#define INNER  0x7000

enum { // selectors
    C0 = 0x08,
    D0 = 0x10,
    C3 = 0x18 | 3,
    D3 = 0x20 | 3,
    L0 = 0x28,
    CALL3 = 0x30 | 3,
    T0 = 0x38,
    T1 = 0x48,
    CONF = 0x58,
    ABSENT = 0x60,
    CALL64 = 0x68,
    TGATE = 0x78,
    CALL16 = 0x80,
    L3 = 0x88 | 3
};

static u8 memory[MEMORY];
static struct segment segments[SEG_COUNT];
static struct emulate_regs regs;
static struct emulate_ctx ctx;
static u64 new_cr3;

static enum emulate_result check_mem(struct emulate_ctx *c, gva_t la, unsigned size,
                                     unsigned access)
{
    (void)access;
    if (la + size <= MEMORY)
        return EMULATE_OK;
    return emulate_raise(c, VECTOR_PF, true, 0);
}

static enum emulate_result read_mem(struct emulate_ctx *c, gva_t la, void *buf, unsigned size,
                                    unsigned access)
{
    enum emulate_result r = check_mem(c, la, size, access);

    if (r == EMULATE_OK)
        memcpy(buf, memory + la, size);
    return r;
}

static enum emulate_result write_mem(struct emulate_ctx *c, gva_t la, const void *buf,
                                     unsigned size, unsigned access)
{
    enum emulate_result r = check_mem(c, la, size, access);

    if (r == EMULATE_OK)
        memcpy(memory + la, buf, size);
    return r;
}

static void get_seg(struct emulate_ctx *c, enum segment_index seg, struct segment *out)
{
    (void)c;
    *out = segments[seg];
}

static void get_gdt(struct emulate_ctx *c, u64 *base, u32 *limit)
{
    (void)c;
    *base = GDT;
    *limit = 0x8f;
}

static enum emulate_result load_cr3(struct emulate_ctx *c, u64 cr3)
{
    (void)c;
    new_cr3 = cr3;
    return EMULATE_OK;
}

static const struct emulate_ops ops = {
    .read_mem = read_mem,
    .write_mem = write_mem,
    .check_mem = check_mem,
    .get_seg = get_seg,
    .load_seg = emulate_load_seg,
    .get_gdt = get_gdt,
    .task_switch = emulate_task_switch,
    .load_cr3 = load_cr3,
};

static void store(u64 la, u64 value, unsigned size)
{
    memcpy(memory + la, &value, size);
}

static u64 load(u64 la, unsigned size)
{
    u64 value = 0;

    memcpy(&value, memory + la, size);
    return value;
}

static void put(unsigned selector, u64 low)
{
    store(GDT + (selector & ~7u), low, 8);
}

static struct segment segment(u16 selector, u32 access)
{
    return (struct segment){.selector = selector, .access = access, .limit = ~0u};
}

static u64 tss_descriptor(u32 base, unsigned limit, unsigned type)
{
    return limit | (u64)base << 16 | (u64)(0x80 | type) << 40;
}

static u64 call_gate(u32 selector, u32 offset, unsigned type, unsigned count)
{
    return (offset & 0xffff) | selector << 16 | (u64)count << 32 | (u64)(0xe0 | type) << 40 |
           (u64)(offset >> 16) << 48;
}

static void begin(enum insn_mode mode, unsigned cpl)
{
    bool code64 = mode == INSN_MODE_64;
    u32 dpl = cpl << 5;

    memset(memory, 0, sizeof(memory));
    memset(&regs, 0, sizeof(regs));
    memset(&ctx, 0, sizeof(ctx));
    put(C0, 0x00cf9a000000ffff);
    put(D0, 0x00cf92000000ffff);
    put(C3, 0x00cffa000000ffff);
    put(D3, 0x00cff2000000ffff);
    put(L0, 0x00af9a000000ffff);
    put(L3, 0x00affa000000ffff);
    put(CONF, 0x00cf9e000000ffff);
    put(ABSENT, 0x00cf12000000ffff);
    put(CALL3, call_gate(C0, 0x2345, 12, 2));
    put(CALL16, call_gate(C0, 0x2345, 4, 1));
    put(CALL64, call_gate(L0, 0x2345, 12, 0));
    put(T0, tss_descriptor(TSS, 103, 11));
    put(T1, tss_descriptor(TSS + 0x100, 103, 9));
    put(TGATE, (u64)T1 << 16 | 0xe5ull << 40);
    store(TSS + 4, INNER, code64 ? 8 : 4);
    if (!code64)
        store(TSS + 8, D0, 2);
    for (unsigned i = 0; i < 6; i++)
        segments[i] = segment((u16)(cpl ? D3 : D0), SEG_P | SEG_S | 3 | dpl | SEG_DB | SEG_G);
    segments[SEG_CS] =
        segment((u16)(cpl ? C3 : C0), SEG_P | SEG_S | 11 | dpl | SEG_G | (code64 ? SEG_L : SEG_DB));
    segments[SEG_LDTR] = segment(0, SEG_UNUSABLE);
    segments[SEG_TR] =
        (struct segment){.selector = T0, .access = SEG_P | 11, .limit = 103, .base = TSS};
    ctx.ops = &ops;
    ctx.regs = &regs;
    ctx.mode = mode;
    ctx.cpl = (u8)cpl;
    ctx.cr0 = CR0_PE | CR0_PG;
    ctx.long_mode = code64;
    regs.rip = CODE;
    regs.rflags = RFLAGS_FIXED;
    regs.gpr[4] = STACK;
}

static void begin_real(void)
{
    begin(INSN_MODE_16, 0);
    for (unsigned i = 0; i < 6; i++)
        segments[i] = (struct segment){.access = SEG_P | SEG_S | 3, .limit = 0xffff};
    ctx.cr0 = 0;
}

static enum emulate_result run_bytes(const char *bytes, unsigned len)
{
    memcpy(memory + CODE, bytes, len);
    ctx.bytes_count = 0;
    return emulate_insn(&ctx);
}

#define RUN(text) run_bytes(text, sizeof(text) - 1)

static void fault(enum emulate_result r, unsigned vector, u32 error)
{
    assert_int_equal(r, EMULATE_FAULT);
    assert_int_equal(ctx.fault.vector, vector);
    assert_int_equal(ctx.fault.error, error);
}

static void at(enum emulate_result r, u16 selector, u64 rip, u64 rsp)
{
    assert_int_equal(r, EMULATE_OK);
    assert_true(ctx.seg_loaded & BIT(SEG_CS));
    assert_int_equal(ctx.seg[SEG_CS].selector, selector);
    assert_int_equal(ctx.next_rip, rip);
    assert_int_equal(regs.gpr[4], rsp);
}

static void push(u64 value, unsigned size)
{
    regs.gpr[4] -= size;
    store(regs.gpr[4], value, size);
}

// --- segment registers ---

static void test_load_seg(void **state)
{
    (void)state;
    begin(INSN_MODE_32, 0);
    regs.gpr[0] = D3;
    assert_int_equal(RUN("\x8e\xd8"), EMULATE_OK); // mov ds, eax
    assert_int_equal(ctx.seg_loaded, BIT(SEG_DS));
    assert_int_equal(ctx.seg[SEG_DS].access, 0xc0f3);
    assert_int_equal(memory[GDT + (D3 & ~7) + 5], 0xf3); // accessed
    fault(RUN("\x8e\xd0"), VECTOR_GP, D3 & ~3);          // ss
    regs.gpr[0] = ABSENT;
    fault(RUN("\x8e\xd8"), VECTOR_NP, ABSENT);
    fault(RUN("\x8e\xd0"), VECTOR_SS, ABSENT);
    regs.gpr[0] = 0x90;
    fault(RUN("\x8e\xd8"), VECTOR_GP, 0x90); // beyond the limit
    regs.gpr[0] = 0xc;
    fault(RUN("\x8e\xd8"), VECTOR_GP, 0xc); // no LDT
    regs.gpr[0] = 3;
    fault(RUN("\x8e\xd0"), VECTOR_GP, 0);
    assert_int_equal(RUN("\x8e\xd8"), EMULATE_OK);
    assert_true(ctx.seg[SEG_DS].access & SEG_UNUSABLE);
    store(0x3000, 0x12345678, 4);
    store(0x3004, D0, 2);
    regs.gpr[3] = 0x3000;
    assert_int_equal(RUN("\xc4\x0b"), EMULATE_OK); // les ecx, [ebx]
    assert_int_equal(regs.gpr[1], 0x12345678);
    assert_int_equal(ctx.seg[SEG_ES].selector, D0);
    assert_int_equal(RUN("\x0f\xb5\x0b"), EMULATE_OK); // lgs
    assert_int_equal(ctx.seg_loaded, BIT(SEG_GS));
    begin(INSN_MODE_64, 0);
    assert_int_equal(RUN("\x8e\xd0"), EMULATE_OK); // null SS in 64-bit code
    begin_real();
    regs.gpr[0] = 0x1234;
    segments[SEG_DS].limit = ~0u;
    assert_int_equal(RUN("\x8e\xd8"), EMULATE_OK);
    assert_int_equal(ctx.seg[SEG_DS].base, 0x12340);
    assert_int_equal(ctx.seg[SEG_DS].limit, ~0u); // stays
    ctx.cr0 = CR0_PE;
    ctx.cpl = 3;
    regs.rflags |= RFLAGS_VM;
    assert_int_equal(RUN("\x8e\xd8"), EMULATE_OK);
    assert_int_equal(ctx.seg[SEG_DS].limit, 0xffff);
    assert_int_equal(ctx.seg[SEG_DS].access, 0xf3);
}

// --- far JMP, CALL, RET ---

static void test_far(void **state)
{
    (void)state;
    begin(INSN_MODE_32, 0);
    at(RUN("\xea\x00\x20\x00\x00\x08\x00"), C0, 0x2000, STACK);
    at(RUN("\x9a\x00\x20\x00\x00\x58\x00"), CONF, 0x2000, STACK - 8);
    assert_int_equal(load(STACK - 8, 8), (u64)C0 << 32 | (CODE + 7));
    at(RUN("\xcb"), C0, CODE + 7, STACK);
    push(0x1111, 4);
    push(C0, 4);
    push(0x3000, 4);
    at(RUN("\xca\x04\x00"), C0, 0x3000, STACK);
    fault(RUN("\xea\x00\x20\x00\x00\x00\x00"), VECTOR_GP, 0);
    fault(RUN("\xea\x00\x20\x00\x00\x10\x00"), VECTOR_GP, D0);
    fault(RUN("\xea\x00\x20\x00\x00\x18\x00"), VECTOR_GP, C3 & ~3);
    put(C0, 0x00409a0000000fff);
    fault(RUN("\xea\x00\x20\x00\x00\x08\x00"), VECTOR_GP, 0); // beyond the new limit
    put(C0, 0x00cf1a000000ffff);
    fault(RUN("\xea\x00\x20\x00\x00\x08\x00"), VECTOR_NP, C0);
    begin_real();
    at(RUN("\x9a\x00\x20\x34\x12"), 0x1234, 0x2000, STACK - 4);
    assert_int_equal(ctx.seg[SEG_CS].base, 0x12340);
    at(RUN("\xcb"), 0, CODE + 5, STACK);
    begin(INSN_MODE_64, 0);
    store(0x3000, 0x2000, 8);
    store(0x3008, L0, 2);
    regs.gpr[3] = 0x3000;
    at(RUN("\x48\xff\x1b"), L0, 0x2000, STACK - 16); // call far [rbx]
    store(0x3000, BIT(60), 8);
    fault(RUN("\x48\xff\x2b"), VECTOR_GP, 0); // not canonical
}

// The second push faults: the first has left nothing.
static void test_far_call_fault(void **state)
{
    (void)state;
    begin_real();
    segments[SEG_SS].base = MEMORY - 0x10;
    regs.gpr[4] = 2;
    fault(RUN("\x9a\x00\x20\x34\x12"), VECTOR_PF, 0);
    assert_int_equal(load(MEMORY - 0x10, 2), 0);
    assert_int_equal(regs.gpr[4], 2);
}

static void test_gates(void **state)
{
    (void)state;
    begin(INSN_MODE_32, 3);
    store(STACK, 0x2222, 4);
    store(STACK + 4, 0x1111, 4);
    at(RUN("\x9a\x00\x00\x00\x00\x33\x00"), C0, 0x2345, INNER - 24);
    assert_int_equal(ctx.seg[SEG_SS].selector, D0);
    assert_int_equal(load(INNER - 4, 4), D3);
    assert_int_equal(load(INNER - 8, 4), STACK);
    assert_int_equal(load(INNER - 12, 4), 0x1111);
    assert_int_equal(load(INNER - 16, 4), 0x2222);
    assert_int_equal(load(INNER - 20, 4), C3);
    assert_int_equal(load(INNER - 24, 4), CODE + 7);
    assert_int_equal(memory[GDT + C0 + 5], 0x9b);
    begin(INSN_MODE_32, 3);
    fault(RUN("\xea\x00\x00\x00\x00\x33\x00"), VECTOR_GP, C0); // JMP can't change the level
    store(TSS + 8, 0, 2);
    fault(RUN("\x9a\x00\x00\x00\x00\x33\x00"), VECTOR_TS, 0);
    store(TSS + 8, D3, 2);
    fault(RUN("\x9a\x00\x00\x00\x00\x33\x00"), VECTOR_TS, D3 & ~3);
    store(TSS + 8, ABSENT, 2);
    fault(RUN("\x9a\x00\x00\x00\x00\x33\x00"), VECTOR_SS, ABSENT);
    segments[SEG_TR].limit = 8;
    fault(RUN("\x9a\x00\x00\x00\x00\x33\x00"), VECTOR_TS, T0);
    begin(INSN_MODE_32, 0);
    at(RUN("\x9a\x00\x00\x00\x00\x80\x00"), C0, 0x2345, STACK - 4); // 16-bit gate, same level
    put(CALL3, call_gate(C0, 0x2345, 12, 2) & ~(3ull << 45));
    begin(INSN_MODE_64, 3);
    store(0x3000, 0, 4);
    store(0x3004, CALL64, 2);
    regs.gpr[3] = 0x3000;
    at(RUN("\xff\x1b"), L0, 0x2345, INNER - 32);
    assert_int_equal(load(INNER - 8, 8), D3);
    assert_int_equal(load(INNER - 32, 8), CODE + 2);
    assert_true(ctx.seg[SEG_SS].access & SEG_UNUSABLE);
}

static void test_outer_return(void **state)
{
    (void)state;
    begin(INSN_MODE_32, 0);
    push(D3, 4);
    push(0x5000, 4);
    push(0xaaaa, 4); // released on both stacks
    push(C3, 4);
    push(0x2000, 4);
    at(RUN("\xca\x04\x00"), C3, 0x2000, 0x5004);
    assert_int_equal(ctx.seg[SEG_SS].selector, D3);
    assert_true(ctx.seg[SEG_DS].access & SEG_UNUSABLE); // of level 0
    begin(INSN_MODE_32, 3);
    push(C0, 4);
    push(0x2000, 4);
    fault(RUN("\xcb"), VECTOR_GP, C0); // never inwards
    begin(INSN_MODE_32, 0);
    push(D0, 4);
    push(0x5000, 4);
    push(C3, 4);
    push(0x2000, 4);
    fault(RUN("\xcb"), VECTOR_GP, D0);
    begin(INSN_MODE_32, 0);
    segments[SEG_SS].limit = STACK + 3;
    fault(RUN("\xcb"), VECTOR_SS, 0);
}

// --- IRET, INT ---

static void test_iret(void **state)
{
    (void)state;
    begin(INSN_MODE_32, 0);
    push(RFLAGS_IF | RFLAGS_RF | RFLAGS_FIXED | RFLAGS_IOPL, 4);
    push(C0, 4);
    push(0x2000, 4);
    at(RUN("\xcf"), C0, 0x2000, STACK);
    assert_int_equal(ctx.next_rflags, RFLAGS_IF | RFLAGS_RF | RFLAGS_FIXED | RFLAGS_IOPL);
    assert_true(ctx.unblock_nmi);
    begin(INSN_MODE_32, 3);
    push(RFLAGS_IF | RFLAGS_CF | RFLAGS_IOPL, 4);
    push(C3, 4);
    push(0x2000, 4);
    at(RUN("\xcf"), C3, 0x2000, STACK);
    assert_int_equal(ctx.next_rflags, RFLAGS_CF | RFLAGS_FIXED); // neither IF nor IOPL
    begin(INSN_MODE_64, 0);
    push(0, 8);
    push(0x5000, 8);
    push(RFLAGS_FIXED, 8);
    push(L0, 8);
    push(0x2000, 8);
    at(RUN("\x48\xcf"), L0, 0x2000, 0x5000); // pops SS:RSP also at the same level
    regs.rflags |= RFLAGS_NT;
    fault(RUN("\x48\xcf"), VECTOR_GP, 0);
    begin(INSN_MODE_64, 0);
    push(D3, 8);
    push(0x5000, 8);
    push(RFLAGS_FIXED, 8);
    push(L3, 8);
    push(0x2000, 8);
    at(RUN("\x48\xcf"), L3, 0x2000, 0x5000);
    begin_real();
    push(0x0ed7, 2);
    push(0x1234, 2);
    push(0x2000, 2);
    at(RUN("\xcf"), 0x1234, 0x2000, STACK);
    assert_int_equal(ctx.next_rflags, 0xed7);
}

static void test_vm86(void **state)
{
    static const u16 selectors[] = {0x55, 0x44, 0x33, 0x22, 0x11}; // GS FS DS ES SS

    (void)state;
    begin(INSN_MODE_32, 0);
    for (unsigned i = 0; i < ARRAY_SIZE(selectors); i++)
        push(selectors[i], 4);
    push(0x7777, 4);
    push(RFLAGS_VM | RFLAGS_FIXED, 4);
    push(0x66, 4);
    push(0x2000, 4);
    at(RUN("\xcf"), 0x66, 0x2000, 0x7777);
    assert_int_equal(ctx.next_rflags, RFLAGS_VM | RFLAGS_FIXED);
    assert_int_equal(ctx.seg[SEG_GS].base, 0x550);
    assert_int_equal(ctx.seg[SEG_SS].access, 0xf3);
    begin_real();
    ctx.cr0 = CR0_PE;
    ctx.cpl = 3;
    regs.rflags |= RFLAGS_VM;
    fault(RUN("\xcf"), VECTOR_GP, 0); // IOPL
    fault(RUN("\xcd\x21"), VECTOR_GP, 0);
    regs.rflags |= RFLAGS_IOPL;
    push(RFLAGS_FIXED, 2);
    push(0x100, 2);
    push(0x2000, 2);
    at(RUN("\xcf"), 0x100, 0x2000, STACK);
    assert_true(ctx.next_rflags & RFLAGS_VM);
    assert_true((ctx.next_rflags & RFLAGS_IOPL) == RFLAGS_IOPL);
}

static void test_int(void **state)
{
    (void)state;
    begin(INSN_MODE_32, 0);
    assert_int_equal(RUN("\xcd\x80"), EMULATE_FAULT);
    assert_int_equal(ctx.fault.vector, 0x80);
    assert_int_equal(ctx.fault.type, EVENT_SOFT_INTERRUPT);
    assert_int_equal(ctx.fault.insn_len, 2);
    assert_int_equal(RUN("\x2e\xcc"), EMULATE_FAULT);
    assert_int_equal(ctx.fault.vector, VECTOR_BP);
    assert_int_equal(ctx.fault.type, EVENT_SOFT_EXCEPTION);
    assert_int_equal(ctx.fault.insn_len, 2);
    assert_int_equal(RUN("\xf1"), EMULATE_FAULT);
    assert_int_equal(ctx.fault.type, EVENT_INT1);
    assert_int_equal(RUN("\xce"), EMULATE_OK);
    regs.rflags |= RFLAGS_OF;
    assert_int_equal(RUN("\xce"), EMULATE_FAULT);
    assert_int_equal(ctx.fault.vector, VECTOR_OF);
}

// --- tasks ---

static void make_task(void)
{
    u32 tss = TSS + 0x100;

    store(tss + 28, 0x9000, 4);
    store(tss + 32, 0x2000, 4);
    store(tss + 36, RFLAGS_FIXED, 4);
    store(tss + 40, 0x1234, 4);
    store(tss + 56, 0x5000, 4);
    for (unsigned i = 0; i < 6; i++)
        store(tss + 72 + 4 * i, i == SEG_CS ? C0 : D0, 4);
}

static void test_task(void **state)
{
    (void)state;
    begin(INSN_MODE_32, 0);
    make_task();
    at(RUN("\x9a\x00\x00\x00\x00\x78\x00"), C0, 0x2000, 0x5000); // CALL through a task gate
    assert_true(ctx.switched);
    assert_int_equal(ctx.seg[SEG_TR].selector, T1);
    assert_int_equal(ctx.next_rflags, RFLAGS_FIXED | RFLAGS_NT);
    assert_int_equal(regs.gpr[0], 0x1234);
    assert_int_equal(new_cr3, 0x9000);
    assert_int_equal(load(TSS + 0x100, 2), T0);
    assert_int_equal(load(TSS + 32, 4), CODE + 7);
    assert_int_equal(load(TSS + 56, 4), STACK);
    assert_int_equal(memory[GDT + T1 + 5], 0x8b);
    assert_int_equal(memory[GDT + T0 + 5], 0x8b);
    begin(INSN_MODE_32, 0);
    make_task();
    at(RUN("\xea\x00\x00\x00\x00\x48\x00"), C0, 0x2000, 0x5000); // JMP
    assert_int_equal(memory[GDT + T0 + 5], 0x89);
    assert_int_equal(ctx.next_rflags, RFLAGS_FIXED);
    begin(INSN_MODE_32, 0);
    make_task();
    store(TSS, T1, 2);
    regs.rflags |= RFLAGS_NT;
    fault(RUN("\xcf"), VECTOR_TS, T1); // not busy
    assert_false(ctx.switched);
    memory[GDT + T1 + 5] = 0x8b;
    at(RUN("\xcf"), C0, 0x2000, 0x5000);
    assert_int_equal(load(TSS + 36, 4), RFLAGS_FIXED); // NT is stored clear
    assert_int_equal(memory[GDT + T1 + 5], 0x8b);
}

static void test_task_faults(void **state)
{
    static const struct {
        unsigned offset, value, vector, error;
    } cases[] = {
        {76, 0, VECTOR_TS, 0},           {76, D0, VECTOR_TS, D0},
        {80, 0, VECTOR_TS, 0},           {80, D3, VECTOR_TS, D3 & ~3},
        {80, ABSENT, VECTOR_SS, ABSENT}, {84, ABSENT, VECTOR_NP, ABSENT},
        {92, 0x90, VECTOR_TS, 0x90},     {96, D0, VECTOR_TS, D0},
    };

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {

        begin(INSN_MODE_32, 0);
        make_task();
        store(TSS + 0x100 + cases[i].offset, cases[i].value, 4);
        fault(RUN("\xea\x00\x00\x00\x00\x48\x00"), cases[i].vector, cases[i].error);
        assert_true(ctx.switched); // in the new task
        assert_int_equal(regs.gpr[0], 0x1234);
        assert_int_equal(ctx.seg[SEG_TR].selector, T1);
    }
    begin(INSN_MODE_32, 0);
    put(T1, tss_descriptor(TSS + 0x100, 102, 9));
    fault(RUN("\xea\x00\x00\x00\x00\x48\x00"), VECTOR_TS, T1);
    put(T1, tss_descriptor(MEMORY - 8, 103, 9));
    fault(RUN("\xea\x00\x00\x00\x00\x48\x00"), VECTOR_PF, 0);
    assert_false(ctx.switched);
    assert_int_equal(load(TSS + 32, 4), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_seg),       cmocka_unit_test(test_far),
        cmocka_unit_test(test_far_call_fault), cmocka_unit_test(test_gates),
        cmocka_unit_test(test_outer_return),   cmocka_unit_test(test_iret),
        cmocka_unit_test(test_vm86),           cmocka_unit_test(test_int),
        cmocka_unit_test(test_task),           cmocka_unit_test(test_task_faults),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
