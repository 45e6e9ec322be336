// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// core/acpi.c on a made-up 64 KiB of physical memory: right tables, corrupt ones, and mutations.
//
// unit-sources: core/acpi.c

#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/page.h>
#include <nestor/string.h>
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

enum { MEMORY = 0x10000000, MEMORY_SIZE = 0x10000, XSDT = 0x100, RSDT = 0x400, MADT = 0x800 };
enum { FADT = 0xc00, DSDT = 0x1000, RSDP = 0x10 };

static u8 memory[MEMORY_SIZE];
static u32 errors;
static u32 mapped;

enum log_level log_level = LOG_INFO;

void log_line(enum log_level level, const char *fmt, ...)
{
    (void)fmt;
    errors += level == LOG_ERROR;
}

// A mapping is a block of exactly its size: the sanitizer sees a step beyond. What is no memory
// reads as all ones.
void *mmio_map(hpa_t base, u64 size, enum map_type type)
{
    u8 *copy = malloc(size);

    (void)type;
    assert_true(size > 0 && size <= 16 << 20);
    for (u64 i = 0; i < size; i++)
        copy[i] = base + i - MEMORY < MEMORY_SIZE ? memory[base + i - MEMORY] : 0xff;
    mapped++;
    return copy;
}

void mmio_unmap(void *va, u64 size)
{
    (void)size;
    mapped--;
    free(va);
}

static void *keep[4096]; // tables stay mapped for good: no leak
static u32 kept;

static void sum(void *data, u32 size, u8 *field)
{
    u8 total = 0;

    *field = 0;
    for (u32 i = 0; i < size; i++)
        total = (u8)(total + ((u8 *)data)[i]);
    *field = (u8)-total;
}

static struct acpi_header *table(u32 at, const char *signature, const void *body, u32 size)
{
    struct acpi_header *h = (struct acpi_header *)(memory + at);

    memset(h, 0, sizeof(*h));
    memcpy(h->signature, signature, 4);
    memcpy(h->oem_id, "BOCHS ", 6);
    h->length = (u32)sizeof(*h) + size;
    memcpy(h + 1, body, size);
    sum(h, h->length, &h->checksum);
    return h;
}

static void build(u8 revision)
{
    u64 xsdt[] = {MEMORY + MADT, 0, MEMORY + FADT};
    u32 rsdt[] = {MEMORY + MADT, MEMORY + FADT};
    static const u8 madt[] = {
        0,    0,  0xe0, 0xfe, 1, 0, 0,    0,                            // address, flags
        0,    8,  0,    0,    1, 0, 0,    0,                            // LAPIC 0, enabled
        0,    8,  1,    4,    0, 0, 0,    0,                            // LAPIC 4, disabled
        1,    12, 0,    0,    0, 0, 0xc0, 0xfe, 0, 0, 0, 0,             // IOAPIC
        2,    10, 0,    0,    2, 0, 0,    0,    0, 0,                   // IRQ 0 -> GSI 2
        0x7f, 3,  0,                                                    // nobody knows
        9,    16, 0,    0,    0, 1, 0,    0,    1, 0, 0, 0, 0, 0, 0, 0, // x2APIC 256
    };
    static const u8 dsdt[] = {0x5b, 0x80, '_',  'S',  '5',  '_', // no Name before it
                              0x08, '_',  'S',  '5',  '_',  0x12, 0x0a,
                              0x04, 0x0a, 0x05, 0x01, 0x00, 0x00};
    u8 fadt[208] = {0};
    u8 *rsdp = memory + RSDP;

    memset(memory, 0, sizeof(memory));
    *(u32 *)(fadt + 40 - 36) = MEMORY + DSDT;
    *(u32 *)(fadt + 48 - 36) = 0xb2;
    fadt[52 - 36] = 0xf1;
    *(u32 *)(fadt + 64 - 36) = 0x604;
    *(u32 *)(fadt + 76 - 36) = 0x608;
    fadt[91 - 36] = 4;
    fadt[108 - 36] = 0x32;
    table(XSDT, "XSDT", xsdt, sizeof(xsdt));
    table(RSDT, "RSDT", rsdt, sizeof(rsdt));
    table(MADT, "APIC", madt, sizeof(madt));
    table(FADT, "FACP", fadt, sizeof(fadt));
    table(DSDT, "DSDT", dsdt, sizeof(dsdt));
    memcpy(rsdp, "RSD PTR ", 8);
    rsdp[15] = revision;
    *(u32 *)(rsdp + 16) = MEMORY + RSDT;
    *(u32 *)(rsdp + 20) = 36;
    *(u64 *)(rsdp + 24) = MEMORY + XSDT;
    sum(rsdp, 20, rsdp + 8);
    sum(rsdp, 36, rsdp + 32);
    errors = 0;
}

// What stays mapped is freed at the next start.
static void start(const void *rsdp)
{
    while (kept > 0)
        free(keep[--kept]);
    acpi_init(rsdp);
    for (u32 i = 0; i < 64; i++)
        for (const char *s = "APICFACPXXXX"; *s; s += 4)
            if (acpi_table(s, i))
                keep[kept++] = (void *)acpi_table(s, i);
}

static void right(u8 revision)
{
    const struct madt_entry *e;
    struct acpi_power power;
    bool is_32bit;
    u32 n = 0;

    build(revision);
    start(memory + RSDP);
    assert_int_equal(errors, 0);
    assert_non_null(acpi_table("APIC", 0));
    assert_null(acpi_table("APIC", 1));
    assert_null(acpi_table("MCFG", 0));
    for (e = madt_next(NULL); e; e = madt_next(e), n++)
        if (e->type == MADT_X2APIC)
            assert_int_equal(e->x2apic.apic_id, 256);
    assert_int_equal(n, 6);
    assert_int_equal(acpi_pm_timer_port(&is_32bit), 0x608);
    assert_false(is_32bit);
    assert_int_equal(acpi_century_register(), 0x32);
    assert_true(acpi_is_emulator());
    acpi_power(&power);
    assert_true(power.has_s5);
    assert_int_equal(power.s5_type_a, 5);
    assert_int_equal(power.s5_type_b, 1);
    assert_int_equal(power.pm1a_control, 0x604);
    assert_int_equal(power.smi_command, 0xb2);
    assert_int_equal(power.acpi_enable, 0xf1);
}

static void by_xsdt(void **state)
{
    (void)state;
    right(2);
}

static void by_rsdt(void **state)
{
    (void)state;
    right(0);
}

static void no_rsdp(void **state)
{
    struct acpi_power power;
    bool is_32bit;

    (void)state;
    build(2);
    start(NULL);
    assert_int_equal(errors, 1);
    assert_null(madt_next(NULL));
    assert_int_equal(acpi_pm_timer_port(&is_32bit), 0);
    acpi_power(&power);
    assert_false(power.has_s5);
    assert_false(acpi_is_emulator());
}

static void bad_checksums(void **state)
{
    (void)state;
    build(2);
    memory[RSDP + 9] ^= 1;
    start(memory + RSDP);
    assert_int_equal(errors, 2);
    assert_null(acpi_table("APIC", 0));
    build(2);
    memory[MADT + 40] ^= 1; // the others stay
    start(memory + RSDP);
    assert_int_equal(errors, 1);
    assert_null(acpi_table("APIC", 0));
    assert_non_null(acpi_table("FACP", 0));
    build(2);
    memory[XSDT + 10] ^= 1; // the RSDT does instead
    start(memory + RSDP);
    assert_int_equal(errors, 1);
    assert_non_null(acpi_table("APIC", 0));
}

static void bad_lengths(void **state)
{
    const u32 lengths[] = {0, 1, 35, 0xffffffff, 17 << 20};

    (void)state;
    for (u32 i = 0; i < ARRAY_SIZE(lengths); i++) {
        build(2);
        ((struct acpi_header *)(memory + FADT))->length = lengths[i];
        start(memory + RSDP);
        assert_int_equal(errors, 1);
        assert_null(acpi_table("FACP", 0));
        assert_non_null(acpi_table("APIC", 0));
    }
    build(2);
    memset(memory + XSDT + 37, 0xff, 7); // no such address
    sum(memory + XSDT, 36 + 24, memory + XSDT + 9);
    start(memory + RSDP);
    assert_int_equal(errors, 1);
}

static void torn_madt(void **state)
{
    const struct madt_entry *e;
    u32 n = 0;

    (void)state;
    build(2);
    memory[MADT + 44 + 8 + 1] = 0; // the second entry has no length: no endless loop
    sum(memory + MADT, ((struct acpi_header *)(memory + MADT))->length, memory + MADT + 9);
    start(memory + RSDP);
    for (e = madt_next(NULL); e; e = madt_next(e))
        n++;
    assert_int_equal(n, 1);
    assert_int_equal(errors, 1);
}

static void mutated(void **state)
{
    struct acpi_power power;
    const struct madt_entry *e;

    (void)state;
    srand(2);
    for (u32 round = 0; round < 20000; round++) {
        static const u32 at[] = {XSDT, RSDT, MADT, FADT, DSDT};
        u32 which = at[(u32)rand() % ARRAY_SIZE(at)];
        struct acpi_header *h = (struct acpi_header *)(memory + which);

        build(2);
        for (u32 i = 0; i < 3; i++)
            memory[which + 36 + (u32)rand() % (h->length - 36)] = (u8)rand();
        if (rand() & 1)
            h->length -= (u32)rand() % 40;
        if (h->length >= 36)
            sum(h, h->length, &h->checksum);
        start(memory + RSDP);
        for (e = madt_next(NULL); e; e = madt_next(e))
            continue;
        acpi_power(&power);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(by_xsdt),       cmocka_unit_test(by_rsdt),     cmocka_unit_test(no_rsdp),
        cmocka_unit_test(bad_checksums), cmocka_unit_test(bad_lengths), cmocka_unit_test(torn_madt),
        cmocka_unit_test(mutated),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Roots and the DSDT are mapped for good and nobody can ask for them.
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
