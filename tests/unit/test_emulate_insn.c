// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/decode.c core/decode_table.c core/emulate.c
// unit-sources: core/emulate_stack.c core/emulate_string.c
// unit-sources: core/emulate_alu.c core/emulate_ops.c core/emulate_rare.c core/emulate_vector.c
// unit-sources: core/emulate_system.c core/emulate_selector.c core/emulate_syscall.c
// unit-sources: core/task.c
// unit-sources: core/emulate_far.c core/emulate_segment.c core/descriptor.c
//
// The emulator's instructions by hand cases from the manuals: ports, privileges and flags, the
// stack, LOCK, the intercept points, and what is refused.

#include "emulate_fake.h"

// --- ports ---

static void test_ports(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    m.port_value = 0x12345678;
    regs.gpr[0] = ~0ull;
    regs.gpr[2] = 0xffff0cfc;
    done(RUN("\xec"), 1); // in al, dx
    assert_int_equal(regs.gpr[0], 0xffffffffffffff78);
    assert_int_equal(m.last_port, 0xcfc);
    done(RUN("\x48\xed"), 2); // in eax, dx: REX.W changes nothing
    assert_int_equal(regs.gpr[0], 0x12345679);
    done(RUN("\x66\xe7\x80"), 3); // out 0x80, ax
    assert_int_equal(m.port_value, 0x5679);
    assert_int_equal(m.last_port, 0x80);
    regs.gpr[1] = 3;
    regs.gpr[7] = DATA + PAGE_SIZE - 8;
    m.state[DATA / PAGE_SIZE + 1] = PAGE_READ_ONLY;
    m.port_reads = 0;
    assert_fault(RUN("\xf3\x6d"), VECTOR_PF,
                 PF_P | PF_W); // rep insd: the port is not read for nothing
    assert_int_equal(m.port_reads, 2);
    assert_int_equal(regs.gpr[1], 1);
    assert_int_equal(load(DATA + PAGE_SIZE - 4, 4), 0x567a);
    regs.gpr[1] = 2;
    regs.gpr[6] = DATA + PAGE_SIZE - 8;
    done(RUN("\xf3\x6f"), 2);
    assert_int_equal(m.port_writes, 3);
    assert_int_equal(m.port_value, 0x567a);
}

static void test_port_permission(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    ctx.cpl = 3;
    regs.gpr[2] = 0x3f9;
    store(0x20000 + 102, 0x80, 2); // bitmap at 0x80: ports 0..0xbff are within the limit
    done(RUN("\xec"), 1);
    store(0x20000 + 0x80 + 0x3f9 / 8, 1 << 2, 1); // forbid 0x3fa
    done(RUN("\xec"), 1);
    assert_fault(RUN("\x66\xed"), VECTOR_GP, 0);
    regs.gpr[2] = 0x3ff; // the check looks into the next byte
    store(0x20000 + 0x80 + 0x400 / 8, 1, 1);
    assert_fault(RUN("\x66\xed"), VECTOR_GP, 0);
    regs.gpr[2] = (0x200 - 0x80) * 8; // the last byte must have one behind it
    assert_fault(RUN("\xec"), VECTOR_GP, 0);
    regs.gpr[2] -= 8;
    done(RUN("\xec"), 1);
    m.seg[SEG_TR].access = SEG_P | 3; // 16-bit TSS: no bitmap
    assert_fault(RUN("\xec"), VECTOR_GP, 0);
    regs.rflags |= RFLAGS_IOPL;
    done(RUN("\xec"), 1);
    begin(INSN_MODE_16);
    ctx.cpl = 3;
    regs.rflags |= RFLAGS_IOPL | RFLAGS_VM; // VM86 asks the bitmap whatever the IOPL is
    store(0x20000 + 102, 0x1ff, 2);
    assert_fault(RUN("\xe4\x60"), VECTOR_GP, 0);
    assert_int_equal(m.port_reads, 0);
    begin(INSN_MODE_32); // compatibility mode, with the TSS where only 64-bit code can look
    ctx.cpl = 3;
    ctx.long_mode = true;
    m.seg[SEG_TR].base = KERNEL + 0x20000;
    m.seg[SEG_TR].limit = 0x1fff;
    store(0x20000 + 102, 0xf00, 2);
    store(0x21000, 1, 1); // what lies behind the page of port 0x7f8's byte
    regs.gpr[2] = 0x7ff;
    done(RUN("\xec"), 1);
    assert_fault(RUN("\x66\xed"), VECTOR_GP, 0);
}

// --- privileges and flags ---

static void test_interrupt_flag(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    done(RUN("\xfb"), 1);
    assert_true(ctx.next_rflags & RFLAGS_IF);
    assert_int_equal(ctx.shadow, EMULATE_SHADOW_STI);
    regs.rflags |= RFLAGS_IF;
    done(RUN("\xfb"), 1); // no shadow if IF was set
    assert_int_equal(ctx.shadow, 0);
    done(RUN("\xfa"), 1);
    assert_false(ctx.next_rflags & RFLAGS_IF);
    ctx.cpl = 3;
    assert_fault(RUN("\xfa"), VECTOR_GP, 0);
    assert_fault(RUN("\xfb"), VECTOR_GP, 0);
    ctx.cr4 = CR4_PVI;
    done(RUN("\xfb"), 1);
    assert_true(ctx.next_rflags & RFLAGS_VIF);
    assert_int_equal(ctx.shadow, 0);
    regs.rflags |= RFLAGS_VIP;
    assert_fault(RUN("\xfb"), VECTOR_GP, 0);
    done(RUN("\xfa"), 1);
    regs.rflags |= RFLAGS_IOPL;
    done(RUN("\xfa"), 1);
    assert_false(ctx.next_rflags & RFLAGS_IF);
    assert_fault(RUN("\xf4"), VECTOR_GP, 0);
    ctx.cpl = 0;
    assert_int_equal(RUN("\xf4"), EMULATE_HALT);
    assert_int_equal(ctx.next_rip, CODE + 1);
}

static void test_pushf_popf(void **state)
{
    const u64 all = RFLAGS_IF | RFLAGS_IOPL | RFLAGS_TF | RFLAGS_AC | RFLAGS_ID | RFLAGS_NT;

    (void)state;
    begin(INSN_MODE_64);
    regs.rflags |= RFLAGS_RF | RFLAGS_VIF;
    done(RUN("\x9c"), 1);
    assert_int_equal(load(0x5ff8, 8), RFLAGS_FIXED | RFLAGS_VIF);
    store(0x5ff8, all | RFLAGS_VM | RFLAGS_RF | RFLAGS_VIP, 8);
    done(RUN("\x9d"), 1);
    assert_int_equal(ctx.next_rflags, all | RFLAGS_FIXED | RFLAGS_VIF);
    regs.gpr[4] = 0x5ff8;
    regs.rflags |= RFLAGS_ID;
    done(RUN("\x66\x9d"), 2); // 16 bits only
    assert_int_equal(ctx.next_rflags & BITS(31, 16), RFLAGS_VIF | RFLAGS_ID);
    regs.rflags &= ~RFLAGS_ID;
    regs.gpr[4] = 0x5ff8;
    ctx.cpl = 3;
    done(RUN("\x9d"), 1); // neither IF nor IOPL
    assert_int_equal(ctx.next_rflags & (RFLAGS_IF | RFLAGS_IOPL | RFLAGS_AC), RFLAGS_AC);
    regs.gpr[4] = 0x5ff8;
    regs.rflags |= RFLAGS_IOPL;
    store(0x5ff8, RFLAGS_IF, 8);
    done(RUN("\x9d"), 1);
    assert_int_equal(ctx.next_rflags & (RFLAGS_IF | RFLAGS_IOPL), RFLAGS_IF | RFLAGS_IOPL);
}

static void test_vm86_flags(void **state)
{
    (void)state;
    begin(INSN_MODE_16);
    ctx.cpl = 3;
    regs.rflags |= RFLAGS_VM | RFLAGS_VIF;
    assert_fault(RUN("\x9c"), VECTOR_GP, 0);
    assert_fault(RUN("\x9d"), VECTOR_GP, 0);
    ctx.cr4 = CR4_VME;
    assert_fault(RUN("\x66\x9c"), VECTOR_GP, 0);
    done(RUN("\x9c"), 1); // IF shows VIF, IOPL shows 3
    assert_int_equal(load(0x5ffe, 2), RFLAGS_FIXED | RFLAGS_IF | RFLAGS_IOPL);
    store(0x5ffe, 0, 2);
    done(RUN("\x9d"), 1);
    assert_int_equal(ctx.next_rflags & (RFLAGS_VIF | RFLAGS_IF), 0);
    regs.gpr[4] = 0x5ffe;
    store(0x5ffe, RFLAGS_TF, 2);
    assert_fault(RUN("\x9d"), VECTOR_GP, 0);
    store(0x5ffe, RFLAGS_IF, 2);
    regs.rflags |= RFLAGS_VIP;
    assert_fault(RUN("\x9d"), VECTOR_GP, 0);
    assert_int_equal(regs.gpr[4], 0x5ffe);
}

static void test_segment_moves(void **state)
{
    (void)state;
    begin(INSN_MODE_32);
    regs.gpr[0] = ~0ull;
    regs.gpr[3] = DATA;
    store(DATA, ~0ull, 8);
    done(RUN("\x8c\xd0"), 2); // mov eax, ss
    assert_int_equal(regs.gpr[0], 8 * SEG_SS);
    done(RUN("\x8c\x2b"), 2); // mov [ebx], gs: 16 bits
    assert_int_equal(load(DATA, 4), 0xffff0000 | 8 * SEG_GS);
    done(RUN("\x0f\xa0"), 2); // push fs
    assert_int_equal(load(0x5ffc, 4), 8 * SEG_FS);
    done(RUN("\x17"), 1); // pop ss
    assert_int_equal(m.loaded_seg, SEG_SS);
    assert_int_equal(m.loaded_selector, 8 * SEG_FS);
    assert_int_equal(ctx.shadow, EMULATE_SHADOW_MOV_SS);
    done(RUN("\x8e\xd8"), 2); // mov ds, ax
    assert_int_equal(m.loaded_seg, SEG_DS);
    assert_int_equal(ctx.shadow, 0);
}

// --- stack and branches ---

static void test_pusha(void **state)
{
    (void)state;
    begin(INSN_MODE_32);
    for (unsigned i = 0; i < 8; i++)
        regs.gpr[i] = 0x100 + i;
    regs.gpr[4] = 0x6010;
    m.state[5] = PAGE_READ_ONLY;
    assert_fault(RUN("\x60"), VECTOR_PF, PF_P | PF_W); // the fifth push would fault: none is done
    assert_int_equal(m.writes, 0);
    assert_int_equal(regs.gpr[4], 0x6010);
    m.state[5] = PAGE_RAM;
    done(RUN("\x60"), 1);
    assert_int_equal(regs.gpr[4], 0x5ff0);
    assert_int_equal(load(0x5ff0, 4), 0x107);
    assert_int_equal(load(0x5ffc, 4), 0x6010);
    assert_int_equal(load(0x600c, 4), 0x100);
    for (unsigned i = 0; i < 8; i++)
        regs.gpr[i] = i == 4 ? regs.gpr[4] : 0;
    done(RUN("\x61"), 1);
    assert_int_equal(regs.gpr[4], 0x6010);
    assert_int_equal(regs.gpr[0], 0x100);
    assert_int_equal(regs.gpr[7], 0x107);
    done(RUN("\x40"), 1); // inc eax
    assert_int_equal(regs.gpr[0], 0x101);
}

static void test_stack_forms(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    store(0x6000, 0x1234567890, 8);
    store(0x6008, 0x99, 8);
    done(RUN("\xff\x34\x24"), 3); // push [rsp]: the old RSP
    assert_int_equal(load(0x5ff8, 8), 0x1234567890);
    done(RUN("\x8f\x44\x24\x08"), 4); // pop [rsp + 8]: the new RSP
    assert_int_equal(load(0x6008, 8), 0x1234567890);
    done(RUN("\x54"), 1); // push rsp: the old one
    assert_int_equal(load(0x5ff8, 8), 0x6000);
    store(0x5ff8, 0x7000, 8);
    done(RUN("\x5c"), 1); // pop rsp: the value
    assert_int_equal(regs.gpr[4], 0x7000);
    assert_int_equal(RUN("\xe8\x10\x00\x00\x00"), EMULATE_OK);
    assert_int_equal(ctx.next_rip, CODE + 0x15);
    assert_int_equal(load(0x6ff8, 8), CODE + 5);
    assert_int_equal(RUN("\xc2\x10\x00"), EMULATE_OK);
    assert_int_equal(ctx.next_rip, CODE + 5);
    assert_int_equal(regs.gpr[4], 0x7010);
    done(RUN("\x66\x6a\xff"), 3);
    assert_int_equal(regs.gpr[4], 0x700e);
    assert_int_equal(load(0x700e, 2), 0xffff);
    begin(INSN_MODE_16);
    regs.rip = 0;
    memcpy(m.memory, "\xe9\xfd\xff", 3); // IP wraps at 64 KiB: to itself
    assert_int_equal(emulate_insn(&ctx), EMULATE_OK);
    assert_int_equal(ctx.next_rip, 0);
    begin(INSN_MODE_64_AMD);
    assert_int_equal(RUN("\x66\xe9\x10\x00"), EMULATE_OK);
    regs.rip = 0x11000;
    memcpy(m.memory + 0x11000, "\x66\xeb\x00", 3);
    ctx.bytes_count = 0;
    assert_int_equal(emulate_insn(&ctx), EMULATE_OK);
    assert_int_equal(ctx.next_rip, 0x1003);
}

// --- LOCK ---

static void test_lock(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[3] = DATA;
    regs.gpr[0] = 5;
    store(DATA, 10, 8);
    m.races = 3;
    done(RUN("\xf0\x48\x0f\xc1\x03"), 5); // lock xadd [rbx], rax sees the last value
    assert_int_equal(load(DATA, 8), 18);
    assert_int_equal(regs.gpr[0], 13);
    assert_int_equal(m.writes, 0);
    m.races = 1;
    done(RUN("\x87\x03"), 2); // xchg locks without a prefix
    assert_int_equal(m.races, 0);
    assert_int_equal(load(DATA, 4), 13);
    assert_int_equal(regs.gpr[0], 19);
    m.races = 1000;
    assert_int_equal(RUN("\xf0\xff\x03"), EMULATE_REPEAT); // lost too often: try again later
    assert_int_equal(ctx.next_rip, CODE);
    m.races = 1;
    regs.gpr[0] = (u32)load(DATA, 4);
    regs.gpr[2] = 0;
    regs.gpr[1] = 7;
    assert_int_equal(RUN("\xf0\x0f\xc7\x0b"), EMULATE_REPEAT); // lock cmpxchg8b
    assert_int_equal(RUN("\xf0\x0f\xc7\x0b"), EMULATE_OK);     // now different: loaded
    assert_false(ctx.next_rflags & RFLAGS_ZF);
    assert_int_equal(regs.gpr[0], load(DATA, 4));
    assert_int_equal(RUN("\xf0\x0f\xc7\x0b"), EMULATE_OK);
    assert_true(ctx.next_rflags & RFLAGS_ZF);
    assert_int_equal(load(DATA, 8), 7ull << 32 | DATA);
    m.state[DATA / PAGE_SIZE] = PAGE_READ_ONLY;
    assert_fault(RUN("\xf0\xff\x03"), VECTOR_PF, PF_P | PF_W);
    regs.gpr[1] = ~0ull; // lock btr [rbx], rcx: the bit before the operand's first
    regs.gpr[3] = DATA + PAGE_SIZE;
    m.state[DATA / PAGE_SIZE] = PAGE_RAM;
    store(DATA + PAGE_SIZE - 8, ~0ull, 8);
    done(RUN("\xf0\x48\x0f\xb3\x0b"), 5);
    assert_int_equal(load(DATA + PAGE_SIZE - 8, 8), ~0ull >> 1);
    assert_true(ctx.next_rflags & RFLAGS_CF);
}

// --- the front end's points, and what is refused ---

static void test_intercept_points(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    done(RUN("\xec"), 1);
    assert_int_equal(m.point_count, 3);
    assert_memory_equal(m.points, "\0\1\2", 3);
    ctx.cpl = 3; // no permission: asked before the check only
    store(0x20000 + 102, 0x200, 2);
    m.point_count = 0;
    assert_fault(RUN("\xec"), VECTOR_GP, 0);
    assert_int_equal(m.point_count, 1);
    ctx.cpl = 0;
    for (int point = EMULATE_DECODED; point <= EMULATE_ACCESSED; point++) {
        m.port_reads = 0;
        m.point_count = 0;
        m.intercept_at = point;
        regs.gpr[7] = DATA;
        assert_int_equal(RUN("\x6d"), EMULATE_INTERCEPTED);
        assert_int_equal(m.point_count, point + 1);
        assert_int_equal(m.port_reads, 0);
        assert_int_equal(regs.gpr[7], DATA);
    }
    assert_int_equal(ctx.linear, DATA);
    m.state[DATA / PAGE_SIZE] = PAGE_READ_ONLY; // the store's fault comes before the last point
    assert_fault(RUN("\x6d"), VECTOR_PF, PF_P | PF_W);
}

static void test_unhandled(void **state)
{
    static const char cases[][5] = {
        "\x0f\xa2\x90\x90", "\x0f\x10\x03\x90", "\xd9\x03\x90\x90", "\x0f\x22\xc0\x90",
        "\x0f\x20\xc0\x90", "\xc5\xf8\x77\x90", "\x0f\x32\x90\x90", "\x0f\x01\xc1\x90",
        "\x0f\x05\x90\x90", "\x66\x0f\xc8\x90",
    };
    struct emulate_regs before;

    (void)state;
    begin(INSN_MODE_64);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        before = regs;
        assert_int_equal(run_bytes(cases[i], 4), EMULATE_UNHANDLED);
        assert_memory_equal(&before, &regs, sizeof(regs));
    }
    ctx.cr4 = CR4_CET; // a shadow stack may be there
    assert_int_equal(RUN("\xe8\x00\x00\x00\x00"), EMULATE_UNHANDLED);
    assert_int_equal(RUN("\xc3"), EMULATE_UNHANDLED);
    assert_int_equal(m.writes, 0);
}

static void test_divide(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[1] = 0;
    assert_fault(RUN("\x48\xf7\xf1"), VECTOR_DE, -1);
    regs.gpr[1] = regs.gpr[2] = 5;
    assert_fault(RUN("\x48\xf7\xf1"), VECTOR_DE, -1); // the quotient does not fit
    regs.gpr[2] = 4;
    regs.gpr[0] = 7;
    done(RUN("\x48\xf7\xf1"), 3);
    assert_int_equal(regs.gpr[0], 0xccccccccccccccce);
    assert_int_equal(regs.gpr[2], 1);
    regs.gpr[0] = 0x8000000000000000;
    regs.gpr[2] = ~0ull;
    regs.gpr[1] = ~0ull;
    assert_fault(RUN("\x48\xf7\xf9"), VECTOR_DE, -1); // idiv: -2^63 / -1
    regs.gpr[0] = (u64)-7;
    regs.gpr[1] = 2;
    done(RUN("\x48\xf7\xf9"), 3);
    assert_int_equal(regs.gpr[0], (u64)-3);
    assert_int_equal(regs.gpr[2], (u64)-1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ports),          cmocka_unit_test(test_port_permission),
        cmocka_unit_test(test_interrupt_flag), cmocka_unit_test(test_pushf_popf),
        cmocka_unit_test(test_vm86_flags),     cmocka_unit_test(test_segment_moves),
        cmocka_unit_test(test_pusha),          cmocka_unit_test(test_stack_forms),
        cmocka_unit_test(test_lock),           cmocka_unit_test(test_intercept_points),
        cmocka_unit_test(test_unhandled),      cmocka_unit_test(test_divide),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
