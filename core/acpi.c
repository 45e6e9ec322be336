// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The host's ACPI tables (ACPI 6.5 chapters 5 and 20): RSDP, RSDT or XSDT, MADT, FADT, and the one
// object of the DSDT's AML that switching the machine off needs. Firmware is not trusted: what is
// torn or has a wrong checksum is logged and left out.

#include <arch/x86/insn.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/page.h>
#include <nestor/string.h>

enum { TABLE_MAX = 64, TABLE_SIZE_MAX = 16 << 20 };
enum { EBDA_POINTER = 0x40e, EBDA_SCAN = 1024, BIOS_AREA = 0xe0000, BIOS_AREA_SIZE = 0x20000 };

enum { // FADT fields: byte offsets
    FADT_DSDT = 40,
    FADT_SMI_CMD = 48,
    FADT_ACPI_ENABLE = 52,
    FADT_PM1A_CNT = 64,
    FADT_PM1B_CNT = 68,
    FADT_PM_TMR = 76,
    FADT_PM_TMR_LEN = 91,
    FADT_CENTURY = 108,
    FADT_FLAGS = 112,
    FADT_X_DSDT = 140,
    FADT_X_PM1A_CNT = 172,
    FADT_X_PM1B_CNT = 184,
};

#define FADT_TMR_VAL_EXT BIT(8)
#define GAS_IO           1
#define MADT_ENTRIES     44
#define LEAF1_HYPERVISOR BIT(31)

enum { AML_ZERO = 0x00, AML_ONE = 0x01, AML_NAME = 0x08, AML_BYTE = 0x0a, AML_WORD = 0x0b };
enum { AML_PACKAGE = 0x12, AML_ONES = 0xff };

static const struct acpi_header *tables[TABLE_MAX];
static u32 table_count;
static const struct acpi_header *dsdt;

static bool sum_is_zero(const void *data, size_t size)
{
    const u8 *p = data;
    u8 sum = 0;

    while (size-- > 0)
        sum = (u8)(sum + *p++);
    return sum == 0;
}

static bool address_exists(u64 address, u64 size)
{
    u32 bits = cpuid(0x80000000, 0).eax >= 0x80000008 ? cpuid(0x80000008, 0).eax & 0xff : 36;

    return address >= 0x400 && address < BIT(bits) && size <= BIT(bits) - address;
}

static INIT_TEXT bool rsdp_is_valid(const struct acpi_rsdp *rsdp)
{
    if (memcmp(rsdp->signature, "RSD PTR ", 8) != 0 || !sum_is_zero(rsdp, ACPI_RSDP_SIZE_1))
        return false;
    return rsdp->revision < 2 ||
           (rsdp->length >= ACPI_RSDP_SIZE_2 && sum_is_zero(rsdp, sizeof(*rsdp)));
}

static INIT_TEXT bool scan_for_rsdp(hpa_t base, u64 size, struct acpi_rsdp *out)
{
    const u8 *area = mmio_map(base, size, MAP_READ_ONLY);
    bool found = false;

    for (u64 at = 0; area && at + sizeof(*out) <= size && !found; at += 16) {
        if (memcmp(area + at, "RSD PTR ", 8) != 0)
            continue;
        memcpy(out, area + at, sizeof(*out));
        found = rsdp_is_valid(out);
    }
    if (area)
        mmio_unmap((void *)area, size);
    return found;
}

static INIT_TEXT bool find_rsdp(const void *given, struct acpi_rsdp *out)
{
    const u8 *bda;
    hpa_t ebda = 0;

    if (given) {
        memcpy(out, given, sizeof(*out));
        if (rsdp_is_valid(out))
            return true;
        log_error("ACPI: the RSDP that the boot loader gave is corrupt: looking for another");
    }
    bda = mmio_map(EBDA_POINTER, 2, MAP_READ_ONLY);
    if (bda) {
        ebda = (hpa_t)(bda[0] | bda[1] << 8) << 4;
        mmio_unmap((void *)bda, 2);
    }
    if (ebda >= 0x80000 && ebda < 0xa0000 && scan_for_rsdp(ebda, EBDA_SCAN, out))
        return true;
    return scan_for_rsdp(BIOS_AREA, BIOS_AREA_SIZE, out);
}

// Maps the table at hpa for good and checks it; NULL (after a line of log) if it is not what it
// says.
static INIT_TEXT const struct acpi_header *map_table(hpa_t hpa, const char *signature)
{
    const struct acpi_header *table = NULL;
    u32 length;

    if (address_exists(hpa, sizeof(*table)))
        table = mmio_map(hpa, sizeof(*table), MAP_READ_ONLY);
    if (!table) {
        log_error("ACPI: a table at 0x%llx, where no memory can be: left out", hpa);
        return NULL;
    }
    length = table->length;
    mmio_unmap((void *)table, sizeof(*table));
    if (length < sizeof(*table) || length > TABLE_SIZE_MAX || !address_exists(hpa, length)) {
        log_error("ACPI: the table at 0x%llx says it has %u bytes: left out", hpa, length);
        return NULL;
    }
    table = mmio_map(hpa, length, MAP_READ_ONLY);
    if (!table ||
        (sum_is_zero(table, length) && (!signature || memcmp(table->signature, signature, 4) == 0)))
        return table;
    log_error("ACPI: the table at 0x%llx (%.4s) has a wrong checksum or signature: left out", hpa,
              table->signature);
    mmio_unmap((void *)table, length);
    return NULL;
}

static INIT_TEXT void add_tables(const struct acpi_header *root, u32 entry_size)
{
    const u8 *entry = (const u8 *)(root + 1);
    u32 count = (root->length - (u32)sizeof(*root)) / entry_size;

    for (u32 i = 0; i < count; i++, entry += entry_size) {
        u64 address = 0;

        memcpy(&address, entry, entry_size);
        if (table_count == TABLE_MAX) {
            log_warn("ACPI: more than %u tables: the rest is left out", TABLE_MAX);
            return;
        }
        if (address)
            tables[table_count] = map_table(address, NULL);
        if (address && tables[table_count])
            table_count++;
    }
}

static u64 fadt_field(u32 offset, u32 size)
{
    const struct acpi_header *fadt = acpi_table("FACP", 0);
    u64 value = 0;

    if (fadt && offset + size <= fadt->length)
        memcpy(&value, (const u8 *)fadt + offset, size);
    return value;
}

INIT_TEXT void acpi_init(const void *given)
{
    const struct acpi_header *root = NULL;
    struct acpi_rsdp rsdp;
    u64 address;

    table_count = 0;
    dsdt = NULL;
    if (!find_rsdp(given, &rsdp)) {
        log_error("ACPI: no RSDP: going on without ACPI tables");
        return;
    }
    if (rsdp.revision >= 2 && rsdp.xsdt)
        root = map_table(rsdp.xsdt, "XSDT");
    if (root) {
        add_tables(root, 8);
    } else {
        root = map_table(rsdp.rsdt, "RSDT");
        if (root)
            add_tables(root, 4);
    }
    address = fadt_field(FADT_X_DSDT, 8);
    if (!address)
        address = fadt_field(FADT_DSDT, 4);
    if (address)
        dsdt = map_table(address, "DSDT");
    log_debug("ACPI: %u tables", table_count);
}

const void *acpi_table(const char signature[4], u32 instance)
{
    for (u32 i = 0; i < table_count; i++)
        if (memcmp(tables[i]->signature, signature, 4) == 0 && instance-- == 0)
            return tables[i];
    return NULL;
}

static u32 madt_entry_size(u8 type)
{
    switch (type) {
    case MADT_LAPIC:
        return 8;
    case MADT_IOAPIC:
        return 12;
    case MADT_OVERRIDE:
        return 10;
    case MADT_X2APIC:
        return 16;
    default:
        return 2;
    }
}

const struct madt_entry *madt_next(const struct madt_entry *entry)
{
    const struct acpi_header *madt = acpi_table("APIC", 0);
    const u8 *end, *next;

    if (!madt)
        return NULL;
    end = (const u8 *)madt + madt->length;
    next = entry ? (const u8 *)entry + entry->length : (const u8 *)madt + MADT_ENTRIES;
    if (next >= end)
        return NULL;
    entry = (const struct madt_entry *)next;
    if (end - next < 2 || entry->length > end - next ||
        entry->length < madt_entry_size(entry->type)) {
        log_error("ACPI: the MADT has a torn entry: the rest is left out");
        return NULL;
    }
    return entry;
}

u16 acpi_pm_timer_port(bool *is_32bit)
{
    *is_32bit = fadt_field(FADT_FLAGS, 4) & FADT_TMR_VAL_EXT;
    return fadt_field(FADT_PM_TMR_LEN, 1) == 4 ? (u16)fadt_field(FADT_PM_TMR, 4) : 0;
}

u8 acpi_century_register(void)
{
    return (u8)fadt_field(FADT_CENTURY, 1);
}

bool acpi_is_emulator(void)
{
    const struct acpi_header *fadt = acpi_table("FACP", 0);

    return fadt && memcmp(fadt->oem_id, "BOCHS ", 6) == 0;
}

// Of the two only QEMU sets CPUID's hypervisor bit.
bool acpi_is_bochs(void)
{
    return acpi_is_emulator() && !(cpuid(1, 0).ecx & LEAF1_HYPERVISOR);
}

// An integer of the package; moves *p behind it. -1 if it is none.
static int aml_integer(const u8 **p, const u8 *end)
{
    u8 op = *p < end ? *(*p)++ : 0x7f;

    if (op == AML_ZERO || op == AML_ONE || op == AML_ONES)
        return op;
    if ((op != AML_BYTE && op != AML_WORD) || end - *p < (op == AML_BYTE ? 1 : 2))
        return -1;
    op = (u8)(op == AML_BYTE ? 1 : 2);
    *p += op;
    return (*p)[-op];
}

// Name (_S5_, Package () {a, b, ...}): PkgLength takes 1 to 4 bytes, by its first byte's top bits.
static bool parse_s5(const u8 *p, const u8 *end, struct acpi_power *out)
{
    int a, b;

    if (end - p < 4 || p[0] != AML_PACKAGE)
        return false;
    p += 2 + (p[1] >> 6) + 1;
    if (p >= end)
        return false;
    a = aml_integer(&p, end);
    b = aml_integer(&p, end);
    if (a < 0 || b < 0)
        return false;
    out->s5_type_a = (u8)(a & 7);
    out->s5_type_b = (u8)(b & 7);
    return true;
}

static bool find_s5(struct acpi_power *out)
{
    const u8 *p = (const u8 *)(dsdt + 1), *end;

    if (!dsdt)
        return false;
    end = (const u8 *)dsdt + dsdt->length;
    for (p++; p + 4 < end; p++)
        if (memcmp(p, "_S5_", 4) == 0 &&
            (p[-1] == AML_NAME || (p[-1] == '\\' && p[-2] == AML_NAME)) &&
            parse_s5(p + 4, end, out))
            return true;
    return false;
}

// The old field, or the extended one where it is an I/O port.
static u16 fadt_port(u32 offset, u32 extended)
{
    u64 port = fadt_field(offset, 4);

    if (!port && fadt_field(extended, 1) == GAS_IO)
        port = fadt_field(extended + 4, 8);
    return (u16)port;
}

void acpi_power(struct acpi_power *out)
{
    *out = (struct acpi_power){
        .pm1a_control = fadt_port(FADT_PM1A_CNT, FADT_X_PM1A_CNT),
        .pm1b_control = fadt_port(FADT_PM1B_CNT, FADT_X_PM1B_CNT),
        .smi_command = (u16)fadt_field(FADT_SMI_CMD, 4),
        .acpi_enable = (u8)fadt_field(FADT_ACPI_ENABLE, 1),
    };
    out->has_s5 = find_s5(out) && out->pm1a_control;
}
