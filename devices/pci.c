// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// PCI configuration mechanism #1 (PCI Local Bus Specification 3.0, 3.2.2.3.2): one bus with a host
// bridge; what is not there reads all ones. Port 0CF9h is the chip set's reset control register.

#include "pci.h"
#include "machine.h"

#include <nestor/string.h>

enum { CONFIG_ADDRESS = 0xcf8, RESET_CONTROL = 0xcf9, CONFIG_DATA = 0xcfc };
enum { SYS_RST = BIT(1), RST_CPU = BIT(2) };
enum { VENDOR_ID = 0x00, DEVICE_ID = 0x02, CLASS_CODE = 0x0a };
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

// The access lies within the four bytes at CONFIG_DATA, so within one register.
static void pci_data(struct pci *pci, u16 port, unsigned size, bool write, u32 *value)
{
    struct pci_function *function = pci_target(pci);
    unsigned offset = (pci->s.address & 0xfc) | (port & 3);

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
        pci->s.address = *value & ((u32)CONFIG_ENABLE | 0x00fffffc);
    else if (port == CONFIG_ADDRESS && size == 4)
        *value = pci->s.address;
}

static void put16(u8 *config, unsigned offset, u16 value)
{
    memcpy(config + offset, &value, sizeof(value));
}

void pci_init(struct pci *pci, struct machine *machine)
{
    u8 *bridge = pci->host_bridge.s.config;

    pci->machine = machine;
    // A generic host bridge that no system has quirks for.
    put16(bridge, VENDOR_ID, 0x1b36);
    put16(bridge, DEVICE_ID, 0x0008);
    put16(bridge, CLASS_CODE, 0x0600);
    pci->slot[0] = &pci->host_bridge;
}

void pci_reset(struct pci *pci)
{
    pci->s = (struct pci_state){0};
}
