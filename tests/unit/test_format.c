// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// core/format.c against the host's own vsnprintf, and numbers.
//
// unit-sources: core/format.c
// unit-cflags: -Wno-format -Wno-format-extra-args -Wno-format-overflow -Wno-format-truncation

#include <nestor/string.h>
#include <setjmp.h>
#include <stdio.h>
#include <cmocka.h>

#define SAME(...)                                                   \
    do {                                                            \
        char ours[64], theirs[64];                                  \
        for (size_t size = 0; size <= sizeof(ours); size++) {       \
            memset(ours, '#', sizeof(ours));                        \
            memset(theirs, '#', sizeof(theirs));                    \
            assert_int_equal(fmt_snprintf(ours, size, __VA_ARGS__), \
                             snprintf(theirs, size, __VA_ARGS__));  \
            assert_memory_equal(ours, theirs, sizeof(ours));        \
        }                                                           \
    } while (0)

static void numbers(void **state)
{
    (void)state;
    SAME("%d %i %u", 0, -1, 4294967295u);
    SAME("%d|%5d|%-5d|%05d", 42, 42, 42, 42);
    SAME("%d|%5d|%-5d|%05d", -42, -42, -42, -42);
    SAME("%x %X %#x %#x", 0xbeefu, 0xbeefu, 0xbeefu, 0u);
    SAME("%08x|%8x|%-8x|%#010x", 0xabcu, 0xabcu, 0xabcu, 0xabcu);
    SAME("%llu %lld %llx", ~0ull, (long long)(1ull << 63), ~0ull);
    SAME("%lu %zu %ld", ~0ul, (size_t)7, -7l);
    SAME("%.4d|%.0d|%8.4d|%-8.4x|%.1u", 7, 0, 7, 7u, 0u);
    SAME("%*d|%-*d|%*d", 6, 1, 6, 2, -6, 3);
    SAME("%016llx", 0x123456789abcull);
    SAME("[%5llu.%06llu]", 12ull, 345ull);
}

static void texts(void **state)
{
    const char unterminated[3] = {'a', 'b', 'c'};

    (void)state;
    SAME("%s|%10s|%-10s|%.2s|%10.2s|", "text", "text", "text", "text", "text");
    SAME("%.3s|", unterminated);
    SAME("%c%c%%", 'a', 'b');
    SAME("%p", (void *)0x1234);
    SAME("plain");
    SAME("%s and a long tail that does not fit into the sixty-four bytes there are", "a head");
}

static void odd_formats(void **state)
{
    char out[32];

    (void)state;
    assert_int_equal(fmt_snprintf(out, sizeof(out), "%s", (char *)NULL), 6);
    assert_string_equal(out, "(null)");
    fmt_snprintf(out, sizeof(out), "%", 0); // a lone % at the end says nothing
    assert_string_equal(out, "");
}

static void parsing(void **state)
{
    u64 v = 1;

    (void)state;
    assert_int_equal(parse_u64("0", &v), 0);
    assert_int_equal(v, 0);
    assert_int_equal(parse_u64("18446744073709551615", &v), 0);
    assert_true(v == ~0ull);
    assert_int_equal(parse_u64("18446744073709551616", &v), -E_RANGE);
    assert_int_equal(parse_u64("0xFFFFffffFFFFffff", &v), 0);
    assert_true(v == ~0ull);
    assert_int_equal(parse_u64("0x10000000000000000", &v), -E_RANGE);
    assert_int_equal(parse_u64("0X1f", &v), 0);
    assert_int_equal(v, 31);
    assert_int_equal(parse_u64("", &v), -E_INVAL);
    assert_int_equal(parse_u64("0x", &v), -E_INVAL);
    assert_int_equal(parse_u64("12a", &v), -E_INVAL);
    assert_int_equal(parse_u64("-1", &v), -E_INVAL);
    assert_int_equal(parse_u64(" 1", &v), -E_INVAL);
    assert_int_equal(v, 31);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers),
        cmocka_unit_test(texts),
        cmocka_unit_test(odd_formats),
        cmocka_unit_test(parsing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
