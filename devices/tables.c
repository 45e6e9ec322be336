// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The ACPI tables (ACPI 6.3, chapter 5): RSDP, RSDT and XSDT, FADT, FACS, MADT, MCFG, and the DSDT
// that iasl has compiled from dsdt.asl. They say what the other files here do.

#include "tables.h"
#include "acpi_pm.h"
#include "ioapic.h"
#include "pci.h"
#include "rtc.h"

#include <arch/x86/acpi.h>
#include <nestor/string.h>

struct PACKED acpi_address { // Generic Address Structure
    u8 space, width, offset, access;
    u64 address;
};

enum { SPACE_IO = 1 };

enum { POINTERS = 3 }; // FADT, MADT, MCFG

struct PACKED acpi_rsdt {
    struct acpi_header header;
    u32 table[POINTERS];
};

struct PACKED acpi_xsdt {
    struct acpi_header header;
    u64 table[POINTERS];
};

struct PACKED acpi_fadt {
    struct acpi_header header;
    u32 firmware_ctrl, dsdt;
    u8 reserved0, preferred_pm_profile;
    u16 sci_int;
    u32 smi_cmd;
    u8 acpi_enable, acpi_disable, s4bios_req, pstate_cnt;
    u32 pm1a_evt_blk, pm1b_evt_blk, pm1a_cnt_blk, pm1b_cnt_blk, pm2_cnt_blk, pm_tmr_blk, gpe0_blk,
        gpe1_blk;
    u8 pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_blk_len, gpe1_blk_len, gpe1_base,
        cst_cnt;
    u16 p_lvl2_lat, p_lvl3_lat, flush_size, flush_stride;
    u8 duty_offset, duty_width, day_alrm, mon_alrm, century;
    u16 iapc_boot_arch;
    u8 reserved1;
    u32 flags;
    struct acpi_address reset_reg;
    u8 reset_value;
    u16 arm_boot_arch;
    u8 minor_version;
    u64 x_firmware_ctrl, x_dsdt;
    struct acpi_address x_pm1a_evt_blk, x_pm1b_evt_blk, x_pm1a_cnt_blk, x_pm1b_cnt_blk,
        x_pm2_cnt_blk, x_pm_tmr_blk, x_gpe0_blk, x_gpe1_blk, sleep_control_reg, sleep_status_reg;
    u64 hypervisor_vendor_id;
};

_Static_assert(sizeof(struct acpi_fadt) == 276, "the FADT of ACPI 6");

struct PACKED acpi_facs {
    char signature[4];
    u32 length, hardware_signature, waking_vector, global_lock, flags;
    u64 x_waking_vector;
    u8 version, reserved[31];
};

struct PACKED madt_lapic {
    u8 type, length, uid, id;
    u32 flags;
};

struct PACKED madt_x2apic {
    u8 type, length;
    u16 reserved;
    u32 id, flags, uid;
};

struct PACKED madt_ioapic {
    u8 type, length, id, reserved;
    u32 address, gsi_base;
};

struct PACKED madt_override {
    u8 type, length, bus, source;
    u32 gsi;
    u16 flags;
};

struct PACKED madt_lapic_nmi {
    u8 type, length, uid;
    u16 flags;
    u8 lint;
};

struct PACKED madt_x2apic_nmi {
    u8 type, length;
    u16 flags;
    u32 uid;
    u8 lint, reserved[3];
};

struct PACKED acpi_madt {
    struct acpi_header header;
    u32 lapic_address, flags;
};

struct PACKED acpi_mcfg { // PCI Firmware Specification 3.2, 4.1.2
    struct acpi_header header;
    u64 reserved0, base;
    u16 segment;
    u8 first_bus, last_bus;
    u32 reserved1;
};

enum {
    MADT_LAPIC = 0,
    MADT_IOAPIC = 1,
    MADT_OVERRIDE = 2,
    MADT_LAPIC_NMI = 4,
    MADT_X2APIC = 9,
    MADT_X2APIC_NMI = 10
};
enum { MADT_ENABLED = 1, MADT_PCAT_COMPAT = 1, MADT_LEVEL_HIGH = 0xd, XAPIC_IDS = 255 };
enum { FADT_LEGACY_DEVICES = BIT(0), FADT_NO_VGA = BIT(2) }; // no 8042, a CMOS clock
enum {
    FADT_WBINVD = BIT(0),
    FADT_PROC_C1 = BIT(2),
    FADT_NO_POWER_BUTTON = BIT(4), // not as fixed hardware
    FADT_NO_SLEEP_BUTTON = BIT(5),
    FADT_TMR_VAL_EXT = BIT(8),
    FADT_RESET_REG = BIT(10),
};
enum { RESET_PORT = 0xcf9, RESET_VALUE = 6, SCI = 9, NO_C2 = 101, NO_C3 = 1001 };

// A place in guest memory that grows.
struct writer {
    u8 *memory;
    size_t used, size;
    gpa_t gpa;
    bool full;
};

// Zeroed room; NULL once the memory is full.
static void *take(struct writer *w, size_t size, size_t align)
{
    size_t at = ALIGN_UP(w->used, align);

    if (w->full || at > w->size || size > w->size - at) {
        w->full = true;
        return NULL;
    }
    w->used = at + size;
    return memset(w->memory + at, 0, size);
}

static gpa_t where(const struct writer *w, const void *object)
{
    return w->gpa + (gpa_t)((const u8 *)object - w->memory);
}

static u8 checksum(const void *data, size_t size)
{
    const u8 *bytes = data;
    u8 sum = 0;

    while (size--)
        sum = (u8)(sum + *bytes++);
    return (u8)-sum;
}

static void finish(void *table, const char *signature, u8 revision, size_t size)
{
    struct acpi_header *header = table;

    memcpy(header->signature, signature, 4);
    header->length = (u32)size;
    header->revision = revision;
    memcpy(header->oem_id, "NESTOR", 6);
    memcpy(header->oem_table_id, "NESTORPC", 8);
    header->oem_revision = 1;
    memcpy(header->creator_id, "NSTR", 4);
    header->creator_revision = 1;
    header->checksum = 0;
    header->checksum = checksum(table, size);
}

static struct acpi_address io_address(u16 port, u8 width)
{
    u8 access = width == 8 ? 1 : width == 16 ? 2 : 3;

    return (struct acpi_address){SPACE_IO, width, 0, access, port};
}

static void put_fadt(struct acpi_fadt *fadt, gpa_t facs, gpa_t dsdt)
{
    fadt->firmware_ctrl = (u32)facs;
    fadt->dsdt = (u32)dsdt;
    fadt->sci_int = SCI;
    fadt->pm1a_evt_blk = PM1_EVENT;
    fadt->pm1a_cnt_blk = PM1_CONTROL;
    fadt->pm_tmr_blk = PM_TIMER;
    fadt->pm1_evt_len = 4;
    fadt->pm1_cnt_len = 2;
    fadt->pm_tmr_len = 4;
    fadt->p_lvl2_lat = NO_C2;
    fadt->p_lvl3_lat = NO_C3;
    fadt->century = RTC_CENTURY;
    fadt->iapc_boot_arch = FADT_LEGACY_DEVICES | FADT_NO_VGA;
    fadt->flags = FADT_WBINVD | FADT_PROC_C1 | FADT_NO_POWER_BUTTON | FADT_NO_SLEEP_BUTTON |
                  FADT_TMR_VAL_EXT | FADT_RESET_REG;
    fadt->reset_reg = io_address(RESET_PORT, 8);
    fadt->reset_value = RESET_VALUE;
    fadt->minor_version = 3;
    fadt->x_dsdt = dsdt; // x_firmware_ctrl stays 0: only one of the two may be used
    fadt->x_pm1a_evt_blk = io_address(PM1_EVENT, 32);
    fadt->x_pm1a_cnt_blk = io_address(PM1_CONTROL, 16);
    fadt->x_pm_tmr_blk = io_address(PM_TIMER, 32);
    finish(fadt, "FACP", 6, sizeof(*fadt));
}

_Static_assert(sizeof(struct acpi_rsdp) <= TABLES_FACS &&
                   TABLES_FACS + offsetof(struct acpi_facs, waking_vector) == TABLES_WAKING_VECTOR,
               "the FACS comes second");

static void put_facs(struct acpi_facs *facs)
{
    memcpy(facs->signature, "FACS", 4);
    facs->length = sizeof(*facs);
    facs->version = 2;
}

// Entries go where the writer is; those that don't fit are left out, and the writer says so.
static void put_entry(struct writer *w, const void *entry, size_t size)
{
    void *at = take(w, size, 1);

    if (at)
        memcpy(at, entry, size);
}

#define PUT(w, type, ...) put_entry(w, &(type){__VA_ARGS__}, sizeof(type))

static void put_madt_cpus(struct writer *w, u32 vcpus)
{
    for (u32 id = 0; id < vcpus && id < XAPIC_IDS; id++)
        PUT(w, struct madt_lapic, MADT_LAPIC, 8, (u8)id, (u8)id, MADT_ENABLED);
    for (u32 id = XAPIC_IDS; id < vcpus; id++)
        PUT(w, struct madt_x2apic, MADT_X2APIC, 16, 0, id, MADT_ENABLED, id);
}

static struct acpi_madt *put_madt(struct writer *w, u32 vcpus)
{
    struct acpi_madt *madt = take(w, sizeof(*madt), 16);

    if (!madt)
        return NULL;
    madt->lapic_address = 0xfee00000;
    madt->flags = MADT_PCAT_COMPAT;
    put_madt_cpus(w, vcpus);
    PUT(w, struct madt_ioapic, MADT_IOAPIC, 12, 0, 0, (u32)IOAPIC_BASE, 0);
    PUT(w, struct madt_override, MADT_OVERRIDE, 10, 0, 0, 2, 0);
    PUT(w, struct madt_override, MADT_OVERRIDE, 10, 0, SCI, SCI, MADT_LEVEL_HIGH);
    PUT(w, struct madt_lapic_nmi, MADT_LAPIC_NMI, 6, 0xff, 0, 1);
    if (vcpus > XAPIC_IDS)
        PUT(w, struct madt_x2apic_nmi, MADT_X2APIC_NMI, 12, 0, ~0u, 1, {0});
    finish(madt, "APIC", 5, (size_t)(w->memory + w->used - (u8 *)madt));
    return madt;
}

static void put_mcfg(struct acpi_mcfg *mcfg)
{
    mcfg->base = PCI_ECAM_BASE;
    finish(mcfg, "MCFG", 1, sizeof(*mcfg));
}

static void put_rsdp(struct acpi_rsdp *rsdp, gpa_t rsdt, gpa_t xsdt)
{
    memcpy(rsdp->signature, "RSD PTR ", 8);
    memcpy(rsdp->oem_id, "NESTOR", 6);
    rsdp->revision = 2;
    rsdp->rsdt = (u32)rsdt;
    rsdp->length = sizeof(*rsdp);
    rsdp->xsdt = xsdt;
    rsdp->checksum = checksum(rsdp, ACPI_RSDP_SIZE_1);
    rsdp->extended_checksum = checksum(rsdp, sizeof(*rsdp));
}

s64 tables_build(const struct tables_input *input, u8 *memory, size_t size, gpa_t gpa)
{
    struct writer w = {.memory = memory, .size = size, .gpa = gpa};
    struct acpi_rsdp *rsdp = take(&w, sizeof(*rsdp), 16);
    struct acpi_facs *facs = take(&w, sizeof(*facs), TABLES_FACS);
    struct acpi_rsdt *rsdt = take(&w, sizeof(*rsdt), 16);
    struct acpi_xsdt *xsdt = take(&w, sizeof(*xsdt), 16);
    struct acpi_fadt *fadt = take(&w, sizeof(*fadt), 16);
    void *dsdt = take(&w, input->dsdt_size, 16);
    struct acpi_mcfg *mcfg = take(&w, sizeof(*mcfg), 16);
    struct acpi_madt *madt = put_madt(&w, input->vcpus);

    if (w.full)
        return -E_NOSPC;
    memcpy(dsdt, input->dsdt, input->dsdt_size);
    put_facs(facs);
    put_fadt(fadt, where(&w, facs), where(&w, dsdt));
    put_mcfg(mcfg);
    rsdt->table[0] = (u32)(xsdt->table[0] = where(&w, fadt));
    rsdt->table[1] = (u32)(xsdt->table[1] = where(&w, madt));
    rsdt->table[2] = (u32)(xsdt->table[2] = where(&w, mcfg));
    finish(rsdt, "RSDT", 1, sizeof(*rsdt));
    finish(xsdt, "XSDT", 1, sizeof(*xsdt));
    put_rsdp(rsdp, where(&w, rsdt), where(&w, xsdt));
    return (s64)w.used;
}
