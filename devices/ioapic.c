// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The I/O APIC (Intel 82093AA data sheet; version 20h with the EOI register as in the ICH data
// sheets). Polarity is ignored: a pin's level here says whether the interrupt is asserted.

#include "ioapic.h"
#include "clock.h"
#include "lapic.h"
#include "machine.h"

#include <nestor/device.h>

#define ENTRY_VECTOR(entry)  ((u8)(entry))
#define ENTRY_MODE(entry)    ((u8)((entry) >> 8 & 7))
#define ENTRY_LOGICAL        BIT(11)
#define ENTRY_REMOTE_IRR     BIT(14)
#define ENTRY_LEVEL          BIT(15)
#define ENTRY_MASKED         BIT(16)
#define ENTRY_WRITABLE       (BITS(63, 56) | BITS(16, 15) | BIT(13) | BITS(11, 0))
#define IOAPIC_VERSION_VALUE (0x20 | (IOAPIC_PINS - 1) << 16)

enum { IOREGSEL = 0x00, IOWIN = 0x10, IOEOI = 0x40 };
enum { IOAPIC_ID = 0, IOAPIC_VERSION = 1, IOAPIC_ARBITRATION = 2, IOAPIC_ENTRIES = 0x10 };

// A level that stays asserted after its EOI comes again. On a PC the message takes its time, so
// that the CPU gets on; here the first few come at once, the others wait a little.
// (REPEAT_TICKS is for machines with a slow TSC, where exits cost more of it.)
enum { REPEATS_AT_ONCE = 2, REPEAT_NS = 20000, REPEAT_TICKS = 20000, RETRY_NS = 1000000 };

static bool ioapic_send(struct ioapic *ioapic, u64 entry)
{
    struct apic_message message = {
        .dest = (u32)(entry >> 56),
        .mode = ENTRY_MODE(entry),
        .vector = ENTRY_VECTOR(entry),
        .logical = entry & ENTRY_LOGICAL,
        .level = entry & ENTRY_LEVEL,
    };

    // NMI, SMI, INIT and ExtINT are edges whatever the trigger mode says.
    if (message.mode > DELIVER_LOWEST)
        message.level = false;
    return message.mode != DELIVER_SIPI && apic_bus_send(ioapic->machine, &message, NULL);
}

static bool entry_is_level(u64 entry)
{
    return (entry & ENTRY_LEVEL) && ENTRY_MODE(entry) <= DELIVER_LOWEST;
}

// All pins have one timer: the first of them counts.
static void ioapic_wait(struct ioapic *ioapic, u64 ticks)
{
    u64 deadline = machine_now() + ticks;

    if (!ioapic->timer.armed || deadline < ioapic->timer.deadline)
        machine_timer_arm(ioapic->machine, &ioapic->timer, deadline);
}

// Sends an asserted level-triggered pin's interrupt unless it is on its way already. What no APIC
// accepts stays asserted and is tried again: its CPU may only have disabled its APIC for a while.
static void ioapic_send_level(struct ioapic *ioapic, unsigned pin)
{
    u64 entry = ioapic->s.entry[pin];

    if (!entry_is_level(entry) || entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR) ||
        !(ioapic->s.lines & BIT(pin)))
        return;
    if (ioapic_send(ioapic, entry))
        ioapic->s.entry[pin] |= ENTRY_REMOTE_IRR;
    else
        ioapic_wait(ioapic, ns_to_tsc(RETRY_NS));
}

int ioapic_edge_vector(const struct ioapic *ioapic, unsigned pin)
{
    u64 entry = ioapic->s.entry[pin];

    return entry & ENTRY_MASKED || entry_is_level(entry) ? -1 : (int)ENTRY_VECTOR(entry);
}

void ioapic_set_pin(void *receiver, unsigned pin, bool level)
{
    struct ioapic *ioapic = receiver;
    bool was = ioapic->s.lines & BIT(pin);
    u64 entry = ioapic->s.entry[pin];

    if (!level) {
        ioapic->s.lines &= ~(u32)BIT(pin);
        ioapic->s.repeats[pin] = 0;
        return;
    }
    ioapic->s.lines |= (u32)BIT(pin);
    if (entry_is_level(entry))
        ioapic_send_level(ioapic, pin);
    else if (!was && !(entry & ENTRY_MASKED))
        ioapic_send(ioapic, entry);
}

static void ioapic_repeat(struct ioapic *ioapic, unsigned pin)
{
    if (!(ioapic->s.lines & BIT(pin)))
        return;
    if (ioapic->s.repeats[pin] < REPEATS_AT_ONCE) {
        ioapic->s.repeats[pin]++;
        ioapic_send_level(ioapic, pin);
    } else {
        ioapic_wait(ioapic, MAX(ns_to_tsc(REPEAT_NS), (u64)REPEAT_TICKS));
    }
}

static void ioapic_fire(struct timer *timer)
{
    struct ioapic *ioapic = CONTAINER_OF(timer, struct ioapic, timer);

    spin_lock(&ioapic->machine->lock);
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        ioapic_send_level(ioapic, pin);
    spin_unlock(&ioapic->machine->lock);
}

static void ioapic_eoi(struct ioapic *ioapic, u8 vector)
{
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
        u64 entry = ioapic->s.entry[pin];

        if (!(entry & ENTRY_REMOTE_IRR) || ENTRY_VECTOR(entry) != vector)
            continue;
        ioapic->s.entry[pin] = entry & ~ENTRY_REMOTE_IRR;
        ioapic_repeat(ioapic, pin);
    }
}

void ioapic_eoi_broadcast(struct machine *machine, u8 vector)
{
    spin_lock(&machine->lock);
    ioapic_eoi(&machine->ioapic, vector);
    spin_unlock(&machine->lock);
}

static u32 ioapic_read(const struct ioapic *ioapic)
{
    u32 reg = ioapic->s.select, pin = (reg - IOAPIC_ENTRIES) / 2;

    switch (reg) {
    case IOAPIC_ID:
    case IOAPIC_ARBITRATION:
        return (u32)ioapic->s.id << 24;
    case IOAPIC_VERSION:
        return IOAPIC_VERSION_VALUE;
    }
    if (reg < IOAPIC_ENTRIES || pin >= IOAPIC_PINS)
        return ~0u;
    return (u32)(ioapic->s.entry[pin] >> (reg & 1 ? 32 : 0));
}

static void ioapic_write_entry(struct ioapic *ioapic, unsigned pin, bool high, u32 value)
{
    u64 old = ioapic->s.entry[pin];
    u64 entry = high ? (old & BITS(31, 0)) | (u64)value << 32 : (old & BITS(63, 32)) | value;

    entry = (entry & ENTRY_WRITABLE) | (old & ENTRY_REMOTE_IRR);
    if (!entry_is_level(
            entry)) // a pin that becomes edge-triggered forgets (what old systems rely on)
        entry &= ~ENTRY_REMOTE_IRR;
    ioapic->s.entry[pin] = entry;
    ioapic_send_level(ioapic, pin);
}

static void ioapic_write(struct ioapic *ioapic, u32 value)
{
    u32 reg = ioapic->s.select, pin = (reg - IOAPIC_ENTRIES) / 2;

    if (reg == IOAPIC_ID)
        ioapic->s.id = value >> 24 & 0xf;
    else if (reg >= IOAPIC_ENTRIES && pin < IOAPIC_PINS)
        ioapic_write_entry(ioapic, pin, reg & 1, value);
}

void ioapic_mmio(void *device, struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write, u64 *value)
{
    struct ioapic *ioapic = device;
    u32 offset = (u32)(gpa & 0xff);

    (void)vcpu;
    if (!write) {
        *value = offset == IOREGSEL ? ioapic->s.select : offset == IOWIN ? ioapic_read(ioapic) : 0;
        return;
    }
    if (offset == IOREGSEL)
        ioapic->s.select = (u8)*value;
    else if (size < 4) // the window and the EOI register take whole words only
        return;
    else if (offset == IOWIN)
        ioapic_write(ioapic, (u32)*value);
    else if (offset == IOEOI)
        ioapic_eoi(ioapic, (u8)*value);
}

void ioapic_init(struct ioapic *ioapic, struct machine *machine)
{
    ioapic->machine = machine;
    ioapic->timer.fn = ioapic_fire;
}

void ioapic_reset(struct ioapic *ioapic)
{
    ioapic->s = (struct ioapic_state){.lines = ioapic->s.lines};
    for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
        ioapic->s.entry[pin] = ENTRY_MASKED;
}
