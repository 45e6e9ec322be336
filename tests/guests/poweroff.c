// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// ACPI's tables as an operating system reads them, its PM timer, and power-off by S5 (ACPI
// specification 6.5, chapters 4, 5 and 7).

#include "guest.h"

struct PACKED table {
    char signature[4];
    u32 length;
    u8 revision, checksum;
    char oem[6], oem_table[8];
    u32 oem_revision, creator, creator_revision;
};

enum { FADT_DSDT = 40, FADT_PM1A_CNT = 64, FADT_PM_TMR = 76, FADT_X_DSDT = 140 };

static bool sum_is_zero(const void *data, size_t size)
{
    u8 sum = 0;

    for (size_t i = 0; i < size; i++)
        sum = (u8)(sum + ((const u8 *)data)[i]);
    return sum == 0;
}

static const u8 *find_rsdp(void)
{
    for (const u8 *at = (const u8 *)0xe0000; at < (const u8 *)0x100000; at += 16)
        if (memcmp(at, "RSD PTR ", 8) == 0 && sum_is_zero(at, 20))
            return at;
    return NULL;
}

static u64 get(const void *at, unsigned size)
{
    u64 value = 0;

    memcpy(&value, at, size);
    return value;
}

static const struct table *find_table(const u8 *rsdp, const char *signature, bool needed)
{
    bool xsdt = rsdp[15] >= 2 && get(rsdp + 24, 8);
    const struct table *root = (void *)get(rsdp + (xsdt ? 24 : 16), xsdt ? 8 : 4);
    unsigned size = xsdt ? 8 : 4;

    for (u32 at = sizeof(*root); at + size <= root->length; at += size) {
        const struct table *table = (void *)get((const u8 *)root + at, size);

        if (memcmp(table->signature, signature, 4) == 0) {
            report(sum_is_zero(table, table->length), "%s: checksum over %u bytes", signature,
                   table->length);
            return table;
        }
    }
    if (needed)
        report(false, "there is no %s", signature);
    return NULL;
}

// The first value of the package \_S5_ in the DSDT's AML: NameOp, name, PackageOp, length, count,
// an integer.
static int s5_type(const struct table *dsdt)
{
    const u8 *aml = (const u8 *)dsdt;

    for (u32 i = sizeof(*dsdt); i + 8 < dsdt->length; i++) {
        if (memcmp(aml + i, "_S5_", 4) != 0 || aml[i + 4] != 0x12)
            continue;
        i += 5;
        i += 1 + (aml[i] >> 6) + 1;
        if (aml[i] == 0x0a)
            return aml[i + 1];
        return aml[i] <= 1 ? aml[i] : -1;
    }
    return -1;
}

static void test_pm_timer(const u8 *fadt)
{
    u16 port = (u16)get(fadt + FADT_PM_TMR, 4);
    u32 start = in32(port), ticks;

    delay_us(10000);
    ticks = (in32(port) - start) & 0xffffff;
    report(ticks > 20000 && ticks < 200000,
           "PM timer at port %#x: %u ticks in 10 ms, 35795 in truth", port, ticks);
}

void guest_main(void)
{
    const u8 *rsdp = find_rsdp(), *fadt;
    const struct table *dsdt;
    u16 port;
    int type;

    report(rsdp != NULL, "RSDP");
    if (!rsdp)
        return;
    find_table(rsdp, "APIC", true);
    fadt = (const u8 *)find_table(rsdp, "FACP", true);
    if (!fadt)
        return;
    test_pm_timer(fadt);
    dsdt = (void *)get(fadt + FADT_DSDT, 4);
    port = (u16)get(fadt + FADT_PM1A_CNT, 4);
    type = s5_type(dsdt);
    if (type < 0 && (dsdt = find_table(rsdp, "SSDT", false)))
        type = s5_type(dsdt); // Bochs has it there
    report(port && type >= 0, "S5: type %d at port %#x", type, port);
    if (!(in16(port) & 1)) {
        out8((u16)get(fadt + 48, 4), fadt[52]); // SMI_CMD, ACPI_ENABLE
        for (unsigned i = 0; i < 1000 && !(in16(port) & 1); i++)
            delay_us(100);
    }
    report(in16(port) & 1, "SCI_EN");
    print_summary();
    out16(port, (u16)((in16(port) & ~0x1c00) | type << 10 | 1 << 13));
    delay_us(50000);
    delay_us(50000);
    report(false, "the machine goes on");
    finish();
}
