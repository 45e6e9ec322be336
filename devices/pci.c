// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// PCI configuration mechanism #1 (PCI Local Bus Specification 3.0, 3.2.2.3.2) and the enhanced one
// (PCI Express Base Specification, 7.2.2) to the same registers: one bus with a host bridge; what
// is not there reads all ones. Base address registers (3.0, 6.2.5). Port 0CF9h is the chip set's
// reset control register.

#include "pci.h"
#include "machine.h"

#include <nestor/string.h>

enum { CONFIG_ADDRESS = 0xcf8, RESET_CONTROL = 0xcf9, CONFIG_DATA = 0xcfc };
enum { SYS_RST = BIT(1), RST_CPU = BIT(2) };
#define CONFIG_ENABLE BIT(31)

// The function and offset that CONFIG_ADDRESS names; NULL if there is none.
static struct pci_function *pci_target(struct pci *pci)
{
    u32 address = pci->s.address, bus = address >> 16 & 0xff, function = address >> 8 & 7;

    if (!(address & CONFIG_ENABLE) || bus || function)
        return NULL;
    return pci->slot[address >> 11 & 31];
}

static u32 pci_config_read(const struct pci_function *function, unsigned offset, unsigned size)
{
    u32 value = 0;

    memcpy(&value, &function->s.config[offset], size);
    return value;
}

static void pci_config_write(struct pci_function *function, unsigned offset, unsigned size,
                             u32 value)
{
    if (!function->writable)
        return;
    for (unsigned i = 0; i < size; i++) {
        u8 mask = function->writable[offset + i], *byte = &function->s.config[offset + i];

        *byte = (u8)((*byte & ~mask) | (value >> 8 * i & mask));
    }
}

// Bits 1:0 of CONFIG_ADDRESS read as 0 and a PC's bridge ignores them. Test images rely on a QEMU
// that adds them to the offset; as long as the access stays within one register, so does this.
static unsigned pci_data_offset(u32 address, u16 port, unsigned size)
{
    unsigned offset = (address & 0xff) | (port & 3);

    return (offset & 3) + size <= 4 ? offset : (address & 0xfc) | (port & 3);
}

// The access lies within the four bytes at CONFIG_DATA, so within one register.
static void pci_data(struct pci *pci, u16 port, unsigned size, bool write, u32 *value)
{
    struct pci_function *function = pci_target(pci);
    unsigned offset = pci_data_offset(pci->s.address, port, size);

    if (!function)
        return;
    if (write)
        pci_config_write(function, offset, size, *value);
    else
        *value = pci_config_read(function, offset, size);
}

static void pci_reset_control(struct pci *pci, bool write, u32 *value)
{
    u8 before = pci->s.reset_control;

    if (!write) {
        *value = before;
        return;
    }
    pci->s.reset_control = (u8)*value & (SYS_RST | RST_CPU | BIT(3));
    if (*value & ~(u32)before & RST_CPU)
        vm_reset(pci->machine->vm);
}

void pci_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value)
{
    struct pci *pci = device;

    (void)vcpu;
    if (port >= CONFIG_DATA)
        pci_data(pci, port, size, write, value);
    else if (port == RESET_CONTROL && size == 1)
        pci_reset_control(pci, write, value);
    else if (port == CONFIG_ADDRESS && size == 4 && write)
        pci->s.address = *value & ((u32)CONFIG_ENABLE | 0x00ffffff);
    else if (port == CONFIG_ADDRESS && size == 4)
        *value = pci->s.address & ~3u;
}

// One register of one function, whatever bytes of it; wider or crossing accesses become several.
// Registers from 100h on are PCI Express devices' only.
static void pci_ecam_byte(struct pci *pci, u32 at, bool write, u8 *byte)
{
    struct pci_function *function = at >> 12 & 7 ? NULL : pci->slot[at >> 15 & 31];
    unsigned offset = at & 0xfff;

    if (!function || offset >= PCI_CONFIG)
        return;
    if (write)
        pci_config_write(function, offset, 1, *byte);
    else
        *byte = function->s.config[offset];
}

void pci_ecam(void *device, struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write, u64 *value)
{
    (void)vcpu;
    for (unsigned i = 0; i < size; i++)
        pci_ecam_byte(device, (u32)(gpa - PCI_ECAM_BASE) + i, write, (u8 *)value + i);
}

// --- base address registers ---

struct pci_hit {
    struct pci_function *function;
    unsigned bar;
    u64 offset;
};

// Whether the function's base address register decodes the address now.
static bool pci_bar_decodes(const struct pci_function *function, unsigned bar, bool io, u64 address)
{
    const struct pci_bar *info = &function->bars[bar];
    u32 enable = io ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
    u32 base = pci_config_read(function, PCI_BAR0 + 4 * bar, 4);

    return info->size && info->io == io && function->s.config[PCI_COMMAND] & enable &&
           (address & ~(u64)(info->size - 1)) == (base & ~(info->size - 1));
}

static struct pci_hit pci_bar_find(const struct pci *pci, bool io, u64 address)
{
    for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
        struct pci_function *function = pci->slot[slot];

        for (unsigned bar = 0; function && function->bars && bar < PCI_BARS; bar++)
            if (pci_bar_decodes(function, bar, io, address))
                return (struct pci_hit){function, bar, address & (function->bars[bar].size - 1)};
    }
    return (struct pci_hit){0};
}

enum pci_decode pci_bar_access(struct pci *pci, bool io, u64 address, unsigned size, bool write,
                               u64 *value)
{
    struct pci_hit first, last;

    if (!pci->has_bars)
        return PCI_NOBODY;
    first = pci_bar_find(pci, io, address);
    last = pci_bar_find(pci, io, address + size - 1);
    if (!first.function && !last.function)
        return PCI_NOBODY;
    if (first.function != last.function || first.bar != last.bar || last.offset < first.offset)
        return PCI_ACROSS;
    first.function->bar_access(first.function, first.bar, (u32)first.offset, size, write, value);
    return PCI_DONE;
}

// --- building ---

void pci_put16(struct pci_function *function, unsigned offset, u16 value)
{
    memcpy(function->s.config + offset, &value, sizeof(value));
}

void pci_put32(struct pci_function *function, unsigned offset, u32 value)
{
    memcpy(function->s.config + offset, &value, sizeof(value));
}

void pci_init(struct pci *pci, struct machine *machine)
{
    struct pci_function *bridge = &pci->host_bridge;

    pci->machine = machine;
    // A generic host bridge that no system has quirks for.
    pci_put16(bridge, PCI_VENDOR_ID, 0x1b36);
    pci_put16(bridge, PCI_DEVICE_ID, 0x0008);
    pci_put16(bridge, PCI_CLASS_CODE, 0x0600);
    pci->slot[0] = bridge;
}

void pci_reset(struct pci *pci)
{
    pci->s = (struct pci_state){0};
}
