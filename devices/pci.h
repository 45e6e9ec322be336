// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// PCI configuration space by 0CF8h and 0CFCh and by the memory-mapped window (ECAM) that the MCFG
// table names, the reset register between the ports, and the way of an access to the device whose
// base address register decodes it. Under the machine's lock.

#pragma once

#include <nestor/device.h>

struct machine;

enum { PCI_SLOTS = 32, PCI_CONFIG = 256, PCI_BARS = 6 };

// ECAM of bus 0: what bus_add_mmio, the MCFG and the DSDT say of it.
#define PCI_ECAM_BASE 0xfeb00000ull
#define PCI_ECAM_SIZE 0x100000ull

enum pci_register {
    PCI_VENDOR_ID = 0x00,
    PCI_DEVICE_ID = 0x02,
    PCI_COMMAND = 0x04,
    PCI_CLASS_CODE = 0x0a,
    PCI_BAR0 = 0x10,
};
enum { PCI_COMMAND_IO = BIT(0), PCI_COMMAND_MEMORY = BIT(1), PCI_BAR_IO = BIT(0) };

struct pci_function_state {
    u8 config[PCI_CONFIG];
};

// A 32-bit base address register; size 0: none. The function's bar_access sees offsets.
struct pci_bar {
    u32 size; // a power of 2, 16 or more
    bool io;
};

struct pci_function {
    struct pci_function_state s;
    const u8 *writable;         // PCI_CONFIG bytes: the bits that a guest may change; NULL: none
    const struct pci_bar *bars; // PCI_BARS of them; NULL: none
    void (*bar_access)(struct pci_function *function, unsigned bar, u32 offset, unsigned size,
                       bool write, u64 *value);
};

struct pci_state {
    u32 address;      // 0CF8h
    u8 reset_control; // 0CF9h
};

struct pci {
    struct pci_state s;
    struct pci_function *slot[PCI_SLOTS]; // function 0 of each device on bus 0
    struct pci_function host_bridge;
    struct machine *machine;
    bool has_bars; // some function has base address registers
};

void pci_init(struct pci *pci, struct machine *machine);
void pci_reset(struct pci *pci);
void pci_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value);
void pci_ecam(void *device, struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write, u64 *value);
void pci_put16(struct pci_function *function, unsigned offset, u16 value);
void pci_put32(struct pci_function *function, unsigned offset, u32 value);

// What a base address register decodes now. An access may lie wholly in it, outside of all, or
// across an edge; only the first is performed.
enum pci_decode { PCI_NOBODY, PCI_DONE, PCI_ACROSS };
enum pci_decode pci_bar_access(struct pci *pci, bool io, u64 address, unsigned size, bool write,
                               u64 *value);
