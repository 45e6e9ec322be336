// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/breakpoint.c
//
// Breakpoint matching by SDM volume 3 section 18.2.5 and its table "Breakpoint Examples".

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <nestor/breakpoint.h>

#define ENABLE(n)       (1ull << (2 * (n)))
#define SET(n, rw, len) ((u64)((len) << 2 | (rw)) << (16 + 4 * (n)))

// The table's settings: R/W 3 at A0001, 1 byte; writes at A0002, 1 byte; R/W at B0002, 2 bytes;
// writes at C0000, 4 bytes.
static const u64 dr[4] = {0xa0001, 0xa0002, 0xb0002, 0xc0000};
static const u64 dr7 = ENABLE(0) | ENABLE(1) | ENABLE(2) | ENABLE(3) | SET(0, 3, 0) | SET(1, 1, 0) |
                       SET(2, 3, 1) | SET(3, 1, 3);

static void test_table(void **state)
{
    (void)state;
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_READ, 0xa0001, 1), 1);
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_READ, 0xa0001, 2), 1);
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_WRITE, 0xa0002, 1), 2);
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_WRITE, 0xa0001, 4), 3);
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_READ, 0xb0001, 4), 4);
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_READ, 0xb0002, 1), 4);
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_WRITE, 0xc0000, 4), 8);
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_WRITE, 0xc0003, 1), 8);
    // and what does not trap
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_READ, 0xa0000, 1), 0);
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_READ, 0xa0002, 1), 0);
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_READ, 0xb0000, 2), 0);
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_READ, 0xc0000, 2), 0);
    assert_int_equal(breakpoint_hits(dr7, dr, BREAKPOINT_READ, 0xc0004, 4), 0);
}

static void test_kinds(void **state)
{
    (void)state;
    assert_int_equal(
        breakpoint_hits(ENABLE(0) | SET(0, 2, 1), (u64[4]){0x3f8}, BREAKPOINT_PORT, 0x3f9, 1), 1);
    assert_int_equal(
        breakpoint_hits(ENABLE(0) | SET(0, 2, 1), (u64[4]){0x3f8}, BREAKPOINT_WRITE, 0x3f9, 1), 0);
    assert_int_equal(breakpoint_hits(ENABLE(0), (u64[4]){0x1000}, BREAKPOINT_EXECUTE, 0x1000, 1),
                     1);
    assert_int_equal(breakpoint_hits(ENABLE(0), (u64[4]){0x1000}, BREAKPOINT_READ, 0x1000, 1), 0);
    assert_int_equal(breakpoint_hits(SET(0, 3, 0), (u64[4]){0x1000}, BREAKPOINT_READ, 0x1000, 1),
                     0);
    // local or global enables; eight bytes; the low address bits do not count
    assert_int_equal(
        breakpoint_hits(2 | SET(0, 3, 2), (u64[4]){0x1005}, BREAKPOINT_READ, 0x1000, 1), 1);
    // the last bytes of the address space
    assert_int_equal(
        breakpoint_hits(1 | SET(0, 3, 2), (u64[4]){~0ull}, BREAKPOINT_READ, ~0ull - 1, 2), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_table), cmocka_unit_test(test_kinds)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
