// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The bus: registration, and the way of a port or memory access to its device. An access that does
// not lie wholly in one device, or is wider than the device's data path, is split into halves as a
// PC's bridges do it; what nobody answers reads all ones and is logged once.

#include "bus.h"
#include "lapic.h"
#include "machine.h"

#include <nestor/log.h>
#include <nestor/vcpu.h>
#include <nestor/vm.h>

static bool bus_chunk_get(struct bus *bus, unsigned high)
{
    if (!bus->chunk_of[high] && bus->chunks + 1 < BUS_CHUNKS)
        bus->chunk_of[high] = (u8)++bus->chunks;
    return bus->chunk_of[high] != 0;
}

static u8 bus_port_index(const struct bus *bus, u16 port)
{
    return bus->chunk[bus->chunk_of[port >> 8]][port & 0xff];
}

int bus_add_pio_flags(struct vm *vm, u16 first, u16 last, pio_fn fn, void *device, const char *name,
                      u32 flags)
{
    struct bus *bus = &vm->machine->bus;

    if (last < first || bus->port_ranges == BUS_RANGES)
        return -E_NOSPC;
    for (unsigned port = first; port <= last; port++)
        if (bus_port_index(bus, (u16)port))
            return -E_EXIST;
    for (unsigned high = first >> 8; high <= last >> 8; high++)
        if (!bus_chunk_get(bus, high))
            return -E_NOSPC;
    bus->ports[++bus->port_ranges] = (struct bus_range){
        .device = device, .name = name, .first = first, .last = last, .pio = fn, .flags = flags};
    for (unsigned port = first; port <= last; port++)
        bus->chunk[bus->chunk_of[port >> 8]][port & 0xff] = (u8)bus->port_ranges;
    return 0;
}

int bus_add_pio(struct vm *vm, u16 first, u16 last, pio_fn fn, void *device, const char *name)
{
    return bus_add_pio_flags(vm, first, last, fn, device, name, 0);
}

int bus_add_mmio(struct vm *vm, gpa_t first, u64 size, mmio_fn fn, void *device, const char *name)
{
    struct bus *bus = &vm->machine->bus;
    u32 at = 0;

    if (!size || first + size - 1 < first)
        return -E_INVAL;
    if (bus->mmio_ranges == BUS_MMIO_RANGES)
        return -E_NOSPC;
    while (at < bus->mmio_ranges && bus->mmio[at].last < first)
        at++;
    if (at < bus->mmio_ranges && bus->mmio[at].first <= first + size - 1)
        return -E_EXIST;
    for (u32 i = bus->mmio_ranges++; i > at; i--)
        bus->mmio[i] = bus->mmio[i - 1];
    bus->mmio[at] = (struct bus_range){
        .device = device, .name = name, .first = first, .last = first + size - 1, .mmio = fn};
    return 0;
}

// Whether one more line about the unknown may be written; a guest can't fill the log with them.
static bool bus_may_log(struct bus *bus)
{
    if (bus->logged_lines >= BUS_UNKNOWN_LINES)
        return false;
    if (++bus->logged_lines == BUS_UNKNOWN_LINES)
        log_info("this guest's further unknown ports and addresses are not logged");
    return true;
}

static void bus_log_port(struct machine *machine, u16 port, unsigned size, bool write)
{
    struct bus *bus = &machine->bus;
    bool seen;

    spin_lock(&machine->lock);
    seen = bus->logged_ports[port / 64] & BIT(port % 64);
    bus->logged_ports[port / 64] |= BIT(port % 64);
    if (!seen && bus_may_log(bus))
        log_info("%s: %s of unknown port 0x%x, %u bytes", machine->vm->config->name,
                 write ? "write" : "read", port, size);
    spin_unlock(&machine->lock);
}

static bool bus_note_page(struct bus *bus, u64 page)
{
    for (u32 i = 0; i < bus->logged_page_count; i++)
        if (bus->logged_pages[i] == page)
            return false;
    if (bus->logged_page_count < BUS_UNKNOWN_LINES)
        bus->logged_pages[bus->logged_page_count++] = page;
    return true;
}

static void bus_log_page(struct machine *machine, gpa_t gpa, unsigned size, bool write)
{
    spin_lock(&machine->lock);
    if (bus_note_page(&machine->bus, gpa >> PAGE_SHIFT) && bus_may_log(&machine->bus))
        log_info("%s: %s of unknown address 0x%llx, %u bytes", machine->vm->config->name,
                 write ? "write" : "read", (unsigned long long)gpa, size);
    spin_unlock(&machine->lock);
}

static bool bus_pio_unknown(const struct bus *bus, u16 port, unsigned size)
{
    for (unsigned i = 0; i < size; i++)
        if (bus_port_index(bus, (u16)(port + i)))
            return false;
    return true;
}

static void bus_pio_part(struct machine *machine, struct vcpu *vcpu, u16 port, unsigned size,
                         bool write, u32 *value);

static void bus_pio_split(struct machine *machine, struct vcpu *vcpu, u16 port, unsigned size,
                          bool write, u32 *value)
{
    unsigned half = size / 2;
    u32 low = *value & (u32)BITS(8 * half - 1, 0), high = *value >> (8 * half);

    bus_pio_part(machine, vcpu, port, half, write, &low);
    bus_pio_part(machine, vcpu, (u16)(port + half), size - half, write, &high);
    if (!write)
        *value = (low & (u32)BITS(8 * half - 1, 0)) | high << (8 * half);
}

// Performs an access that lies in one device and fits it; else returns false.
static inline bool bus_pio_whole(struct machine *machine, struct vcpu *vcpu, u16 port,
                                 unsigned size, bool write, u32 *value)
{
    struct bus *bus = &machine->bus;
    const struct bus_range *range = &bus->ports[bus_port_index(bus, port)];
    bool locked = !(range->flags & BUS_UNLOCKED);

    if (!range->pio || port + size - 1 > range->last || (size > 1 && range->flags & BUS_BYTE))
        return false;
    if (locked)
        spin_lock(&machine->lock);
    range->pio(range->device, vcpu, port, size, write, value);
    if (locked)
        spin_unlock(&machine->lock);
    return true;
}

// Ports that are nobody's may be a PCI device's at this moment.
static enum pci_decode bus_pci(struct machine *machine, bool io, u64 address, unsigned size,
                               bool write, u64 *value)
{
    enum pci_decode decode;

    spin_lock(&machine->lock);
    decode = pci_bar_access(&machine->pci, io, address, size, write, value);
    spin_unlock(&machine->lock);
    return decode;
}

static enum pci_decode bus_pci_port(struct machine *machine, u16 port, unsigned size, bool write,
                                    u32 *value)
{
    u64 wide = *value;
    enum pci_decode decode = bus_pci(machine, true, port, size, write, &wide);

    if (decode == PCI_DONE)
        *value = (u32)wide;
    return decode;
}

static void bus_pio_part(struct machine *machine, struct vcpu *vcpu, u16 port, unsigned size,
                         bool write, u32 *value)
{
    enum pci_decode decode = PCI_ACROSS;

    if (bus_pio_whole(machine, vcpu, port, size, write, value))
        return;
    if (bus_pio_unknown(&machine->bus, port, size))
        decode = bus_pci_port(machine, port, size, write, value);
    if (decode == PCI_ACROSS)
        bus_pio_split(machine, vcpu, port, size, write, value);
    else if (decode == PCI_NOBODY)
        bus_log_port(machine, port, size, write);
}

void bus_pio(struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value)
{
    struct machine *machine = vcpu->vm->machine;
    u32 lanes = ~0u >> (32 - 8 * size);

    *value = write ? *value & lanes : lanes;
    if (unlikely(!bus_pio_whole(machine, vcpu, port, size, write, value)))
        bus_pio_part(machine, vcpu, port, size, write, value);
    *value &= lanes; // whatever else a device has filled in
}

// The first range that does not end before gpa.
static const struct bus_range *bus_mmio_find(const struct bus *bus, gpa_t gpa)
{
    u32 low = 0, high = bus->mmio_ranges;

    while (low < high) {
        u32 middle = (low + high) / 2;

        if (bus->mmio[middle].last < gpa)
            low = middle + 1;
        else
            high = middle;
    }
    return low < bus->mmio_ranges ? &bus->mmio[low] : NULL;
}

static void bus_mmio_split(struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write, u64 *value)
{
    unsigned half = size / 2;
    u64 low = *value & BITS(8 * half - 1, 0), high = *value >> (8 * half);

    bus_mmio(vcpu, gpa, half, write, &low);
    bus_mmio(vcpu, gpa + half, size - half, write, &high);
    if (!write)
        *value = (low & BITS(8 * half - 1, 0)) | high << (8 * half);
}

void bus_mmio(struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write, u64 *value)
{
    struct machine *machine = vcpu->vm->machine;
    const struct bus_range *range;
    enum pci_decode decode = PCI_ACROSS;

    if (!write)
        *value = BITS(8 * size - 1, 0);
    if (likely(lapic_mmio_hit(vcpu, gpa, size))) {
        lapic_mmio(vcpu, gpa, size, write, value);
        return;
    }
    range = bus_mmio_find(&machine->bus, gpa);
    if (range && range->first <= gpa && gpa + size - 1 <= range->last) {
        spin_lock(&machine->lock);
        range->mmio(range->device, vcpu, gpa, size, write, value);
        spin_unlock(&machine->lock);
        *value &= BITS(8 * size - 1, 0); // whatever else a device has filled in
        return;
    }
    if (!range || gpa + size - 1 < range->first)
        decode = bus_pci(machine, false, gpa, size, write, value);
    if (decode == PCI_ACROSS)
        bus_mmio_split(vcpu, gpa, size, write, value);
    else if (decode == PCI_NOBODY)
        bus_log_page(machine, gpa, size, write);
}
