// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The PCI test device (QEMU's docs/specs/pci-testdev). Under the machine's lock.

#pragma once

#include "pci.h"

enum { PCI_TESTDEV_SLOT = 1, PCI_TESTDEV_BARS = 2 };

struct pci_testdev_state {
    u8 selected[PCI_TESTDEV_BARS]; // the test's number and 1; 0: none
    u32 count[PCI_TESTDEV_BARS];
};

struct pci_testdev {
    struct pci_testdev_state s;
    struct pci_function function;
};

// Plugs it in; only where the configuration asks for it. A reset is due.
void pci_testdev_init(struct pci_testdev *testdev, struct pci *pci);
void pci_testdev_reset(struct pci_testdev *testdev);
