// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The real IOAPICs (Intel 82093AA datasheet) and 8259s: everything is masked but COM1's interrupt.

#include <arch/x86/insn.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/page.h>

enum { IOAPIC_SELECT = 0x00, IOAPIC_WINDOW = 0x10, IOAPIC_VERSION = 1, IOAPIC_PIN0 = 0x10 };
enum { PIC1_COMMAND = 0x20, PIC1_DATA = 0x21, PIC2_COMMAND = 0xa0, PIC2_DATA = 0xa1 };
enum { PIC_VECTOR = 0x20 }; // where a spurious one does no harm

#define PIN_MASKED     0x10000u
#define PIN_LEVEL      0x8000u
#define PIN_ACTIVE_LOW 0x2000u

// MPS INTI flags of an interrupt source override.
#define INTI_POLARITY(flags) ((flags)&3)
#define INTI_TRIGGER(flags)  ((flags) >> 2 & 3)
#define INTI_LOW_OR_LEVEL    3

static u32 ioapic_read(volatile u8 *ioapic, u32 reg)
{
    *(volatile u32 *)(ioapic + IOAPIC_SELECT) = reg;
    return *(volatile u32 *)(ioapic + IOAPIC_WINDOW);
}

static void ioapic_write(volatile u8 *ioapic, u32 reg, u32 value)
{
    *(volatile u32 *)(ioapic + IOAPIC_SELECT) = reg;
    *(volatile u32 *)(ioapic + IOAPIC_WINDOW) = value;
}

static INIT_TEXT u32 pin_count(volatile u8 *ioapic)
{
    return (ioapic_read(ioapic, IOAPIC_VERSION) >> 16 & 0xff) + 1;
}

static INIT_TEXT void mask_pics(void)
{
    out8(PIC1_COMMAND, 0x11); // ICW1..4
    out8(PIC2_COMMAND, 0x11);
    out8(PIC1_DATA, PIC_VECTOR);
    out8(PIC2_DATA, PIC_VECTOR + 8);
    out8(PIC1_DATA, 4);
    out8(PIC2_DATA, 2);
    out8(PIC1_DATA, 1);
    out8(PIC2_DATA, 1);
    out8(PIC1_DATA, 0xff);
    out8(PIC2_DATA, 0xff);
}

static INIT_TEXT void mask_pins(hpa_t address)
{
    volatile u8 *ioapic = mmio_map(address, PAGE_SIZE, MAP_UNCACHED);

    if (!ioapic)
        return;
    for (u32 pin = 0; pin < pin_count(ioapic); pin++)
        ioapic_write(ioapic, IOAPIC_PIN0 + 2 * pin, PIN_MASKED);
    mmio_unmap((void *)ioapic, PAGE_SIZE);
}

INIT_TEXT void irq_chips_init(void)
{
    mask_pics();
    for (const struct madt_entry *e = madt_next(NULL); e; e = madt_next(e))
        if (e->type == MADT_IOAPIC)
            mask_pins(e->ioapic.address);
}

static INIT_TEXT void find_gsi(u8 irq, u32 *gsi, u32 *pin_flags)
{
    *gsi = irq;
    *pin_flags = 0;
    for (const struct madt_entry *e = madt_next(NULL); e; e = madt_next(e)) {
        if (e->type != MADT_OVERRIDE || e->override.bus != 0 || e->override.source != irq)
            continue;
        *gsi = e->override.gsi;
        if (INTI_POLARITY(e->override.flags) == INTI_LOW_OR_LEVEL)
            *pin_flags |= PIN_ACTIVE_LOW;
        if (INTI_TRIGGER(e->override.flags) == INTI_LOW_OR_LEVEL)
            *pin_flags |= PIN_LEVEL;
    }
}

INIT_TEXT int irq_route_isa(u8 irq, u8 vector, u32 apic_id)
{
    u32 gsi, flags, pin;

    find_gsi(irq, &gsi, &flags);
    for (const struct madt_entry *e = madt_next(NULL); e && apic_id < 0xff; e = madt_next(e)) {
        volatile u8 *ioapic;
        bool has_pin;

        if (e->type != MADT_IOAPIC || gsi < e->ioapic.gsi_base)
            continue;
        ioapic = mmio_map(e->ioapic.address, PAGE_SIZE, MAP_UNCACHED);
        if (!ioapic)
            continue;
        pin = gsi - e->ioapic.gsi_base;
        has_pin = pin < pin_count(ioapic);
        if (has_pin) {
            ioapic_write(ioapic, IOAPIC_PIN0 + 2 * pin + 1, apic_id << 24);
            ioapic_write(ioapic, IOAPIC_PIN0 + 2 * pin, flags | vector);
        }
        mmio_unmap((void *)ioapic, PAGE_SIZE);
        if (has_pin)
            return 0;
    }
    return -E_NODEV;
}
