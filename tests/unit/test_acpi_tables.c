// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The guest's ACPI tables, read as a system reads them: found by signature, followed by pointers,
// summed up (ACPI 6, chapter 5).
// unit-sources: devices/tables.c

#include <devices/tables.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { GPA = 0xe0000, SIZE = 0x20000 };

static u8 memory[SIZE];
static u8 dsdt[100] = "DSDT\x64";

static u64 get(const u8 *at, unsigned size)
{
    u64 value = 0;

    memcpy(&value, at, size);
    return value;
}

static void expect_sum_0(const u8 *table, size_t size)
{
    u8 sum = 0;

    while (size--)
        sum = (u8)(sum + table[size]);
    assert_int_equal(sum, 0);
}

static const u8 *table_at(u64 gpa, const char *signature)
{
    const u8 *table = memory + (gpa - GPA);

    assert_in_range(gpa, GPA, GPA + SIZE - 36);
    assert_memory_equal(table, signature, 4);
    if (strcmp(signature, "FACS") && strcmp(signature, "DSDT"))
        expect_sum_0(table, get(table + 4, 4));
    return table;
}

static void build(u32 vcpus)
{
    struct tables_input input = {vcpus, dsdt, sizeof(dsdt)};

    memset(memory, 0xaa, sizeof(memory));
    assert_in_range(tables_build(&input, memory, SIZE, GPA), 500, SIZE);
}

static const u8 *find(const char *signature)
{
    const u8 *xsdt = table_at(get(memory + 24, 8), "XSDT");

    for (u64 at = 36; at < get(xsdt + 4, 4); at += 8) {
        const u8 *table = memory + (get(xsdt + at, 8) - GPA);

        if (!memcmp(table, signature, 4))
            return table_at(get(xsdt + at, 8), signature);
    }
    fail();
    return NULL;
}

static void test_roots(void **state)
{
    const u8 *rsdt, *xsdt;

    (void)state;
    build(2);
    assert_memory_equal(memory, "RSD PTR ", 8);
    expect_sum_0(memory, 20);
    expect_sum_0(memory, 36);
    assert_int_equal(memory[15], 2);
    rsdt = table_at(get(memory + 16, 4), "RSDT");
    xsdt = table_at(get(memory + 24, 8), "XSDT");
    assert_int_equal(get(rsdt + 4, 4), 36 + 3 * 4);
    assert_int_equal(get(xsdt + 4, 4), 36 + 3 * 8);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(get(rsdt + 36 + 4 * i, 4), get(xsdt + 36 + 8 * i, 8));
}

static void test_fadt(void **state)
{
    const u8 *fadt, *facs;

    (void)state;
    build(1);
    fadt = find("FACP");
    assert_int_equal(get(fadt + 4, 4), 276);
    facs = table_at(get(fadt + 36, 4), "FACS");
    assert_int_equal((facs - memory) % 64, 0);
    assert_int_equal(get(facs + 4, 4), 64);
    table_at(get(fadt + 40, 4), "DSDT");
    assert_int_equal(get(fadt + 140, 8), get(fadt + 40, 4));
    assert_int_equal(get(fadt + 46, 2), 9);     // SCI
    assert_int_equal(get(fadt + 48, 4), 0);     // no SMI command port: always in ACPI mode
    assert_int_equal(get(fadt + 56, 4), 0x600); // PM1a event
    assert_int_equal(get(fadt + 64, 4), 0x604); // PM1a control
    assert_int_equal(get(fadt + 76, 4), 0x608); // PM timer
    assert_int_equal(fadt[88], 4);
    assert_int_equal(fadt[89], 2);
    assert_int_equal(fadt[91], 4);
    assert_int_equal(fadt[108], 0x32);
    assert_int_equal(get(fadt + 109, 2) & 2, 0); // no 8042
    assert_int_equal(get(fadt + 112, 4) & (1u << 10 | 1u << 8), 1u << 10 | 1u << 8);
    assert_int_equal(fadt[116], 1); // the reset register: a byte at 0CF9h
    assert_int_equal(fadt[117], 8);
    assert_int_equal(get(fadt + 120, 8), 0xcf9);
    assert_int_equal(fadt[128], 6);
    assert_int_equal(get(fadt + 152, 8), 0x600); // X_PM1a_EVT_BLK's address
    assert_int_equal(fadt[149], 32);
    assert_int_equal(get(fadt + 212, 8), 0x608); // X_PM_TMR_BLK's
}

// Counts the MADT's entries of a type; checks that the lengths add up.
static unsigned count(const u8 *madt, u8 type)
{
    u64 at = 44, length = get(madt + 4, 4);
    unsigned found = 0;

    while (at < length) {
        assert_in_range(madt[at + 1], 2, length - at);
        found += madt[at] == type;
        at += madt[at + 1];
    }
    assert_int_equal(at, length);
    return found;
}

static void test_madt(void **state)
{
    const u8 *madt;

    (void)state;
    build(3);
    madt = find("APIC");
    assert_int_equal(get(madt + 36, 4), 0xfee00000);
    assert_int_equal(get(madt + 40, 4), 1);
    assert_int_equal(count(madt, 0), 3);
    assert_int_equal(count(madt, 1), 1);
    assert_int_equal(count(madt, 2), 2);
    assert_int_equal(count(madt, 4), 1);
    assert_int_equal(count(madt, 9), 0);
    assert_memory_equal(madt + 44 + 16, "\x00\x08\x02\x02\x01\x00\x00\x00", 8);
    assert_memory_equal(madt + 44 + 24, "\x01\x0c\x00\x00\x00\x00\xc0\xfe\x00\x00\x00\x00", 12);
    assert_memory_equal(madt + 44 + 36, "\x02\x0a\x00\x00\x02\x00\x00\x00\x00\x00", 10);
    assert_memory_equal(madt + 44 + 46, "\x02\x0a\x00\x09\x09\x00\x00\x00\x0d\x00", 10);
    assert_memory_equal(madt + 44 + 56, "\x04\x06\xff\x00\x00\x01", 6);
}

static void test_many_cpus(void **state)
{
    const u8 *madt;

    (void)state;
    build(300);
    madt = find("APIC");
    assert_int_equal(count(madt, 0), 255);
    assert_int_equal(count(madt, 9), 45);
    assert_int_equal(count(madt, 10), 1);
}

static void test_no_room(void **state)
{
    struct tables_input input = {1, dsdt, sizeof(dsdt)};

    (void)state;
    for (size_t size = 0; size < 400; size++) {
        u8 *small = malloc(size + 1);

        assert_int_equal(tables_build(&input, small, size, GPA), -E_NOSPC);
        free(small);
    }
}

static void test_mcfg(void **state)
{
    const u8 *mcfg;

    (void)state;
    build(1);
    mcfg = find("MCFG");
    assert_int_equal(get(mcfg + 4, 4), 60);
    assert_int_equal(get(mcfg + 44, 8), 0xfeb00000);
    assert_int_equal(get(mcfg + 52, 8), 0); // segment 0, buses 0 to 0
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_roots),   cmocka_unit_test(test_fadt),
        cmocka_unit_test(test_madt),    cmocka_unit_test(test_many_cpus),
        cmocka_unit_test(test_no_room), cmocka_unit_test(test_mcfg),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
