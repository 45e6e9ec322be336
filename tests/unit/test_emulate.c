// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/decode.c core/decode_table.c core/emulate.c
// unit-sources: core/emulate_stack.c core/emulate_string.c
// unit-sources: core/emulate_alu.c core/emulate_ops.c core/emulate_rare.c core/emulate_vector.c
// unit-sources: core/emulate_system.c core/emulate_selector.c core/emulate_syscall.c
// unit-sources: core/task.c
// unit-sources: core/emulate_far.c core/emulate_segment.c core/descriptor.c
//
// The emulator's memory accesses by hand cases from the manuals: segmentation, page crossing,
// alignment, fetching, REP boundaries. test_emulate_insn.c has the instructions that do more than
// that; test_emulate_host.c compares the emulator with the CPU that runs the tests.

#include "emulate_fake.h"

// --- memory faults leave nothing behind ---

static void test_page_crossing(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[3] = DATA + PAGE_SIZE - 3;
    regs.gpr[0] = 0x1122334455667788;
    done(RUN("\x48\x89\x03"), 3); // mov [rbx], rax
    assert_int_equal(load(DATA + PAGE_SIZE - 3, 8), 0x1122334455667788);
    done(RUN("\x48\x8b\x0b"), 3); // mov rcx, [rbx]
    assert_int_equal(regs.gpr[1], 0x1122334455667788);
    m.state[DATA / PAGE_SIZE + 1] = PAGE_READ_ONLY;
    regs.gpr[0] = 0;
    assert_fault(RUN("\x48\x89\x03"), VECTOR_PF, PF_P | PF_W);
    assert_int_equal(ctx.fault.payload, DATA + PAGE_SIZE);
    assert_int_equal(load(DATA + PAGE_SIZE - 3, 8), 0x1122334455667788);
    assert_fault(RUN("\x48\x01\x03"), VECTOR_PF, PF_P | PF_W); // add [rbx], rax: write intent
    m.state[DATA / PAGE_SIZE + 1] = PAGE_ABSENT;
    assert_fault(RUN("\x48\x8b\x0b"), VECTOR_PF, 0);
    m.state[DATA / PAGE_SIZE] = PAGE_ABSENT;
    assert_fault(RUN("\x48\x8b\x0b"), VECTOR_PF, 0);
    assert_int_equal(ctx.fault.payload, DATA + PAGE_SIZE - 3);
}

static void test_fault_commits_nothing(void **state)
{
    static const char cases[][5] = {
        "\x8f\x03",         // pop [rbx]
        "\x48\x87\x03",     // xchg [rbx], rax
        "\x48\x0f\xc1\x03", // xadd [rbx], rax
        "\x48\x0f\xb1\x03", // cmpxchg [rbx], rax
        "\x48\x0f\xc7\x0b", // cmpxchg16b [rbx]
        "\xc9",             // leave
        "\x54",             // push rsp
        "\xff\x13",         // call [rbx]
        "\x48\xa5",         // movsq
    };
    struct emulate_regs before;

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        begin(INSN_MODE_64);
        m.state[DATA / PAGE_SIZE] = PAGE_READ_ONLY;
        m.state[7] = PAGE_ABSENT;
        for (unsigned r = 0; r < 16; r++)
            regs.gpr[r] = 0x100 + r;
        regs.gpr[3] = regs.gpr[7] = DATA + 0x10;
        regs.gpr[4] = i == 6 || i == 7 ? 0x8000 : 0x6000;
        regs.gpr[5] = 0x7000;
        store(DATA + 0x10, CODE, 8);
        before = regs;
        assert_int_equal(run_bytes(cases[i], 4), EMULATE_FAULT);
        assert_int_equal(ctx.fault.vector, VECTOR_PF);
        assert_memory_equal(&before, &regs, sizeof(regs));
        assert_int_equal(load(DATA + 0x10, 8), CODE);
    }
}

// ENTER whose enclosing frame can't be read has pushed nothing yet.
static void test_enter_fault(void **state)
{
    (void)state;
    begin(INSN_MODE_32);
    m.state[5] = PAGE_ABSENT;
    regs.gpr[4] = 0x8000;
    regs.gpr[5] = 0x6004;
    store(0x7ffc, 0x12345678, 4);
    assert_fault(RUN("\xc8\x10\x00\x03"), VECTOR_PF, 0); // enter 16, 3
    assert_int_equal(ctx.fault.payload, 0x5ffc);
    assert_int_equal(load(0x7ffc, 4), 0x12345678);
}

// --- segmentation ---

static void test_real_mode(void **state)
{
    (void)state;
    begin(INSN_MODE_16);
    ctx.cr0 = 0;
    m.seg[SEG_DS].base = 0x10000;
    regs.gpr[3] = 0xfff0;
    regs.gpr[6] = 0x20;
    store(0x10010, 0xbeef, 2);
    done(RUN("\x8b\x00"), 2); // mov ax, [bx + si]: the offset wraps
    assert_int_equal(regs.gpr[0], 0xbeef);
    regs.gpr[3] = 0xffff;
    regs.gpr[6] = 0;
    assert_fault(RUN("\x8b\x00"), VECTOR_GP, -1); // the word does not; no error code in real mode
    done(RUN("\x8a\x00"), 2);
    regs.gpr[5] = 0xffff;
    assert_fault(RUN("\x8b\x46\x00"), VECTOR_SS, -1); // bp: stack segment
    assert_fault(RUN("\x3e\x8b\x46\x00"), VECTOR_GP, -1);
    regs.gpr[4] = 0xabcd0000;
    regs.gpr[0] = 0x1234;
    done(RUN("\x50"), 1); // push ax wraps SP, and leaves the upper half alone
    assert_int_equal(regs.gpr[4], 0xabcdfffe);
    assert_int_equal(load(0xfffe, 2), 0x1234);
    regs.gpr[4] = 1;
    assert_fault(RUN("\x50"), VECTOR_SS, -1);
}

static void test_protected_segments(void **state)
{
    (void)state;
    begin(INSN_MODE_32);
    m.seg[SEG_DS].limit = 0x7fff;
    regs.gpr[3] = 0x7ffc;
    done(RUN("\x8b\x03"), 2);
    regs.gpr[3] = 0x7ffd;
    assert_fault(RUN("\x8b\x03"), VECTOR_GP, 0);
    m.seg[SEG_DS].access = SEG_P | SEG_S | 7; // expand down: valid above the limit only
    assert_fault(RUN("\x8b\x03"), VECTOR_GP, 0);
    regs.gpr[3] = 0x7fff;
    assert_fault(RUN("\x8a\x03"), VECTOR_GP, 0);
    regs.gpr[3] = 0x8000;
    done(RUN("\x8b\x03"), 2);
    regs.gpr[3] = 0xfffd; // a small segment ends at 64 KiB
    assert_fault(RUN("\x8b\x03"), VECTOR_GP, 0);
    m.seg[SEG_DS].access |= SEG_DB;
    done(RUN("\x8b\x03"), 2);
    m.seg[SEG_DS] = (struct segment){.access = SEG_P | SEG_S | 1, .limit = 0xffffffff}; // read-only
    done(RUN("\x8b\x03"), 2);
    assert_fault(RUN("\x89\x03"), VECTOR_GP, 0);
    assert_fault(RUN("\x01\x03"), VECTOR_GP, 0);
    m.seg[SEG_CS].access = SEG_P | SEG_S | SEG_DB | 9; // execute-only
    assert_fault(RUN("\x2e\x8b\x03"), VECTOR_GP, 0);
    m.seg[SEG_DS].access = SEG_UNUSABLE | 3;
    assert_fault(RUN("\x8b\x03"), VECTOR_GP, 0);
    m.seg[SEG_SS].access = SEG_UNUSABLE | 3;
    assert_fault(RUN("\x8b\x04\x24"), VECTOR_SS, 0);
    m.seg[SEG_ES].base = 0xfffff000; // linear addresses wrap at 4 GiB
    regs.gpr[3] = DATA + 0x1000;
    store(DATA, 0x55aa, 4);
    done(RUN("\x26\x8b\x03"), 3);
    assert_int_equal(regs.gpr[0], 0x55aa);
}

static void test_canonical(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[3] = regs.gpr[5] = 1ull << 47;
    assert_fault(RUN("\x8b\x03"), VECTOR_GP, 0);
    assert_fault(RUN("\x8b\x45\x00"), VECTOR_SS, 0);     // rbp
    assert_fault(RUN("\x64\x8b\x45\x00"), VECTOR_GP, 0); // fs:rbp
    assert_fault(RUN("\x3e\x8b\x45\x00"), VECTOR_SS, 0); // DS means nothing
    regs.gpr[13] = 1ull << 47;
    assert_fault(RUN("\x41\x8b\x45\x00"), VECTOR_GP, 0); // r13 is not rbp
    regs.gpr[3] = (1ull << 47) - 4;
    assert_fault(RUN("\x8b\x03"), VECTOR_PF, 0);
    assert_fault(RUN("\x48\x8b\x03"), VECTOR_GP, 0); // reaches over the edge
    ctx.cr4 = CR4_LA57;
    assert_fault(RUN("\x48\x8b\x03"), VECTOR_PF, 0);
    regs.gpr[3] = 1ull << 56;
    assert_fault(RUN("\x48\x8b\x03"), VECTOR_GP, 0);
    regs.gpr[4] = 1ull << 60;
    assert_fault(RUN("\x50"), VECTOR_SS, 0);
    assert_fault(RUN("\xff\xe3"), VECTOR_GP, 0); // jmp rbx
    regs.gpr[4] = 0x6000;
    assert_fault(RUN("\xff\xd3"), VECTOR_GP, 0); // call rbx: nothing pushed
    assert_int_equal(regs.gpr[4], 0x6000);
    assert_int_equal(m.writes, 0);
    regs.gpr[3] = 0x100;
    m.seg[SEG_FS].base = DATA;
    m.seg[SEG_DS].base = 0x123456; // ignored
    store(DATA + 0x100, 0x77, 4);
    store(0x100, 0x88, 4);
    done(RUN("\x64\x8b\x03"), 3);
    assert_int_equal(regs.gpr[0], 0x77);
    done(RUN("\x8b\x03"), 2);
    assert_int_equal(regs.gpr[0], 0x88);
    // LGDT goes by what the CPU has, whatever CR4.LA57 says
    begin(INSN_MODE_64);
    regs.gpr[3] = DATA;
    store(DATA + 2, 1ull << 50, 8);
    assert_fault(RUN("\x0f\x01\x13"), VECTOR_GP, 0);
    ctx.cr4 = CR4_LA57;
    assert_fault(RUN("\x0f\x01\x13"), VECTOR_GP, 0);
    ctx.cr4 = 0;
    ctx.la57 = true;
    assert_int_equal(RUN("\x0f\x01\x13"), EMULATE_UNHANDLED); // no system operations here
}

static void test_alignment_check(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[3] = DATA + 2;
    regs.rflags |= RFLAGS_AC;
    ctx.cr0 |= CR0_AM;
    done(RUN("\x8b\x03"), 2); // not at CPL 0
    ctx.cpl = 3;
    assert_fault(RUN("\x8b\x03"), VECTOR_AC, 0);
    done(RUN("\x66\x8b\x03"), 3);
    ctx.cr0 &= ~CR0_AM;
    done(RUN("\x8b\x03"), 2);
    regs.gpr[3] = DATA + 8;
    assert_fault(RUN("\x48\x0f\xc7\x0b"), VECTOR_GP, 0); // cmpxchg16b wants 16 always
}

// --- fetching ---

static void test_fetch(void **state)
{
    static const u8 movabs[] = {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8};

    (void)state;
    begin(INSN_MODE_64);
    regs.rip = CODE + PAGE_SIZE - 4;
    memcpy(m.memory + regs.rip, movabs, sizeof(movabs));
    assert_int_equal(emulate_insn(&ctx), EMULATE_OK);
    assert_int_equal(regs.gpr[0], 0x0807060504030201);
    m.state[2] = PAGE_ABSENT;
    ctx.bytes_count = 0;
    assert_int_equal(emulate_insn(&ctx), EMULATE_FAULT);
    assert_int_equal(ctx.fault.vector, VECTOR_PF);
    assert_int_equal(ctx.fault.error, PF_I);
    assert_int_equal(ctx.fault.payload, CODE + PAGE_SIZE);
    memcpy(ctx.bytes, movabs, sizeof(movabs)); // given by the hardware: nothing is fetched
    ctx.bytes_count = 15;
    assert_int_equal(emulate_insn(&ctx), EMULATE_OK);
    regs.rip = CODE;
    assert_fault(RUN("\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90"), VECTOR_GP,
                 0);
    assert_fault(RUN("\x0f\x0b"), VECTOR_UD, -1);
    assert_fault(RUN("\xf0\x90"), VECTOR_UD, -1);
    begin(INSN_MODE_32);
    m.seg[SEG_CS].limit = CODE + 4;
    assert_fault(RUN("\x81\xc3\x00\x00\x00\x00"), VECTOR_GP,
                 0); // the sixth byte is beyond the limit
    done(RUN("\xb8\x00\x00\x00\x00"), 5);
    assert_fault(RUN("\xeb\x10"), VECTOR_GP, 0); // and so is this target
    done(RUN("\x74\x10"), 2);
}

// --- strings ---

static void test_repeat(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[1] = 10;
    regs.gpr[6] = DATA;
    regs.gpr[7] = DATA + 0x100;
    ctx.max_repeat = 4;
    for (unsigned i = 0; i < 80; i++)
        m.memory[DATA + i] = (u8)i;
    assert_int_equal(RUN("\xf3\x48\xa5"), EMULATE_REPEAT);
    assert_int_equal(ctx.next_rip, CODE);
    assert_true(ctx.next_rflags & RFLAGS_RF);
    assert_int_equal(regs.gpr[1], 6);
    assert_int_equal(regs.gpr[7], DATA + 0x120);
    assert_int_equal(RUN("\xf3\x48\xa5"), EMULATE_REPEAT);
    done(RUN("\xf3\x48\xa5"), 3);
    assert_false(ctx.next_rflags & RFLAGS_RF);
    assert_int_equal(regs.gpr[1], 0);
    assert_memory_equal(m.memory + DATA, m.memory + DATA + 0x100, 80);
    regs.gpr[6] = 1ull << 62; // no count, no access, no fault
    done(RUN("\xf3\x48\xa5"), 3);
}

static unsigned repetitions;

static bool every_third(struct emulate_ctx *c)
{
    (void)c;
    return ++repetitions % 3 == 0;
}

static void test_repeat_interrupted(void **state)
{
    struct emulate_ops with_events;

    (void)state;
    begin(INSN_MODE_64);
    with_events = *ctx.ops;
    with_events.interrupted = every_third;
    ctx.ops = &with_events;
    regs.gpr[1] = 7;
    regs.gpr[7] = DATA;
    assert_int_equal(RUN("\xf3\xaa"), EMULATE_REPEAT);
    assert_int_equal(regs.gpr[1], 4);
    assert_int_equal(ctx.next_rip, CODE);
    assert_int_equal(RUN("\xf3\xaa"), EMULATE_REPEAT);
    done(RUN("\xf3\xaa"), 2); // the last one ends the instruction, whatever waits
    assert_int_equal(regs.gpr[1], 0);
}

static void test_repeat_fault(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[1] = 8;
    regs.gpr[0] = 0x5a;
    regs.gpr[7] = DATA + PAGE_SIZE - 3;
    m.state[DATA / PAGE_SIZE + 1] = PAGE_ABSENT;
    assert_fault(RUN("\xf3\xaa"), VECTOR_PF, PF_W); // rep stosb: three done, the fourth faults
    assert_int_equal(regs.gpr[1], 5);
    assert_int_equal(regs.gpr[7], DATA + PAGE_SIZE);
    assert_int_equal(load(DATA + PAGE_SIZE - 3, 3), 0x5a5a5a);
    m.state[DATA / PAGE_SIZE + 1] = PAGE_RAM;
    done(RUN("\xf3\xaa"), 2);
    assert_int_equal(regs.gpr[1], 0);
    m.seg[SEG_FS].base = 0x10000; // an override moves the source, never the destination
    regs.gpr[6] = regs.gpr[7] = DATA;
    store(DATA + 0x10000, 0x99, 1);
    done(RUN("\x64\xa4"), 2);
    assert_int_equal(load(DATA, 1), 0x99);
    begin(INSN_MODE_16); // indices and count are 16 bits wide and wrap
    regs.gpr[1] = 0x70002;
    regs.gpr[7] = 0x3ffff;
    regs.gpr[0] = 0x41;
    done(RUN("\xf3\xaa"), 2);
    assert_int_equal(regs.gpr[1], 0x70000);
    assert_int_equal(regs.gpr[7], 0x30001);
    assert_int_equal(load(0xffff, 1), 0x41);
    assert_int_equal(load(0, 1), 0x41);
}

static void test_compare_strings(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    memcpy(m.memory + DATA, "hypervisor", 10);
    memcpy(m.memory + DATA + 0x40, "hyperspace", 10);
    regs.gpr[1] = 10;
    regs.gpr[6] = DATA;
    regs.gpr[7] = DATA + 0x40;
    done(RUN("\xf3\xa6"), 2); // repe cmpsb stops behind the first difference
    assert_int_equal(regs.gpr[1], 4);
    assert_int_equal(regs.gpr[6], DATA + 6);
    assert_false(ctx.next_rflags & (RFLAGS_ZF | RFLAGS_CF)); // 'v' > 's'
    regs.gpr[0] = 'e';
    regs.gpr[1] = 10;
    regs.gpr[7] = DATA + 0x40;
    done(RUN("\xf2\xae"), 2); // repne scasb
    assert_int_equal(regs.gpr[7], DATA + 0x44);
    assert_true(ctx.next_rflags & RFLAGS_ZF);
    regs.rflags |= RFLAGS_DF;
    regs.gpr[6] = DATA + 4;
    done(RUN("\xac"), 1); // lodsb downwards
    assert_int_equal(regs.gpr[6], DATA + 3);
    assert_int_equal(regs.gpr[0], 'r');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page_crossing),
        cmocka_unit_test(test_fault_commits_nothing),
        cmocka_unit_test(test_enter_fault),
        cmocka_unit_test(test_real_mode),
        cmocka_unit_test(test_protected_segments),
        cmocka_unit_test(test_canonical),
        cmocka_unit_test(test_alignment_check),
        cmocka_unit_test(test_fetch),
        cmocka_unit_test(test_repeat),
        cmocka_unit_test(test_repeat_interrupted),
        cmocka_unit_test(test_repeat_fault),
        cmocka_unit_test(test_compare_strings),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
