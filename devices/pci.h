// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// PCI configuration space by 0CF8h and 0CFCh, with the reset register between them. Under the
// machine's lock.

#pragma once

#include <nestor/types.h>

struct machine;
struct vcpu;

enum { PCI_SLOTS = 32, PCI_CONFIG = 256 };

struct pci_function_state {
    u8 config[PCI_CONFIG];
};

struct pci_function {
    struct pci_function_state s;
    const u8 *writable; // PCI_CONFIG bytes: the bits that a guest may change; NULL: none
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
};

void pci_init(struct pci *pci, struct machine *machine);
void pci_reset(struct pci *pci);
void pci_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value);
