// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/descriptor.c
//
// Descriptors: their fields, and every check of type, privilege and presence against the rules of
// SDM volume 3 sections 5.5 to 5.8, written here the other way round: what may be loaded.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <arch/x86/regs.h>
#include <nestor/descriptor.h>

static struct descriptor make(unsigned type, unsigned s, unsigned dpl, unsigned present,
                              unsigned rpl)
{
    return (struct descriptor){.selector = (u16)(0x40 | rpl),
                               .low = (u64)(type | s << 4 | dpl << 5 | present << 7) << 40};
}

static void test_fields(void **state)
{
    struct descriptor d = {.selector = 0x43, .low = 0x12c39a345678abcdull}, gate;
    struct segment s = descriptor_segment(&d);

    (void)state;
    assert_int_equal(s.selector, 0x43);
    assert_int_equal(s.base, 0x12345678);
    assert_int_equal(s.limit, 0x3abcdfff);
    assert_int_equal(s.access, 0xc09a);
    d.low &= ~((u64)SEG_G << 40);
    assert_int_equal(descriptor_segment(&d).limit, 0x3abcd);
    d.high = 0xffff8000;
    assert_int_equal(descriptor_segment(&d).base, 0xffff800012345678);
    gate = (struct descriptor){.low = 0x12348c0000085678, .high = 0x9abc};
    assert_int_equal(descriptor_gate_offset(&gate), 0x9abc12345678);
    gate.low = 0x1234840000085678;
    assert_int_equal(descriptor_gate_offset(&gate), 0x5678);
    s = segment_null(3, 2);
    assert_int_equal(s.access, SEG_UNUSABLE | 2 << 5);
    assert_int_equal(selector_error(0x1237), 0x1234);
}

#define EACH(type, s, dpl, rpl, cpl)                       \
    for (unsigned type = 0; type < 16; type++)             \
        for (unsigned s = 0; s < 2; s++)                   \
            for (unsigned dpl = 0; dpl < 4; dpl++)         \
                for (unsigned rpl = 0; rpl < 4; rpl++)     \
                    for (unsigned cpl = 0; cpl < 4; cpl++) \
                        for (unsigned p = 0; p < 2; p++)

static void expect(unsigned vector, bool allowed, unsigned present, unsigned absent)
{
    assert_int_equal(vector, !allowed ? VECTOR_GP : present ? 0 : absent);
}

static void test_data_and_stack(void **state)
{
    (void)state;
    EACH(type, s, dpl, rpl, cpl)
    {
        struct descriptor d = make(type, s, dpl, p, rpl);
        bool code = type & 8, conforming = code && type & 4, readable = !code || type & 2;
        bool data_ok = s && readable && (conforming || (rpl <= dpl && cpl <= dpl));
        bool stack_ok = s && !code && type & 2 && rpl == cpl && dpl == cpl;

        expect(descriptor_check_data(&d, cpl), data_ok, p, VECTOR_NP);
        expect(descriptor_check_stack(&d, cpl), stack_ok, p, VECTOR_SS);
        expect(descriptor_check_ldt(&d), !s && type == 2, p, VECTOR_NP);
        expect(descriptor_check_gate(&d, cpl), rpl <= dpl && cpl <= dpl, p, VECTOR_NP);
    }
}

static void test_code(void **state)
{
    (void)state;
    EACH(type, s, dpl, rpl, cpl)
    {
        struct descriptor d = make(type, s, dpl, p, rpl);
        bool code = s && type & 8, conforming = type & 4;
        bool direct = conforming ? dpl <= cpl : dpl == cpl && rpl <= cpl;
        bool jump = conforming ? dpl <= cpl : dpl == cpl;
        bool back = rpl >= cpl && (conforming ? dpl <= rpl : dpl == rpl);

        expect(descriptor_check_code(&d, cpl, CODE_DIRECT, false), code && direct, p, VECTOR_NP);
        expect(descriptor_check_code(&d, cpl, CODE_GATE_JUMP, false), code && jump, p, VECTOR_NP);
        expect(descriptor_check_code(&d, cpl, CODE_GATE_CALL, false), code && dpl <= cpl, p,
               VECTOR_NP);
        expect(descriptor_check_code(&d, cpl, CODE_RETURN, false), code && back, p, VECTOR_NP);
    }
}

static void test_code_sizes(void **state)
{
    (void)state;
    for (u64 size = 0; size < 4; size++) { // bit 0 L, bit 1 D
        struct descriptor d = make(10, 1, 0, 1, 0);

        d.low |= size << 53;
        assert_int_equal(descriptor_check_code(&d, 0, CODE_DIRECT, false), 0);
        expect(descriptor_check_code(&d, 0, CODE_DIRECT, true), size != 3, 1, 0);
        expect(descriptor_check_code(&d, 0, CODE_RETURN, true), size != 3, 1, 0);
        expect(descriptor_check_code(&d, 0, CODE_GATE_CALL, true), size == 1, 1, 0);
        expect(descriptor_check_code(&d, 0, CODE_GATE_JUMP, true), size == 1, 1, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_data_and_stack),
        cmocka_unit_test(test_code),
        cmocka_unit_test(test_code_sizes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
