// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The configuration: which guests there are (core/config.c reads the device tree).

#pragma once

#include <nestor/types.h>

enum { CONFIG_GUEST_MAX = 64, CONFIG_VCPU_MAX = 64, CONFIG_MODULE_MAX = 8, CONFIG_NAME_MAX = 32 };

struct vm_config {
    char name[CONFIG_NAME_MAX]; // the node's name
    u64 memory;                 // bytes, multiple of 2 MiB
    u32 vcpus;
    const char *kernel; // names of Multiboot modules
    const char *initrd; // NULL: none
    const char *command_line;
    const char *modules[CONFIG_MODULE_MAX]; // for Multiboot guests, after initrd
    u32 module_count;
    bool nested;
    u64 nested_features;  // bits by enum nested_feature: all, or what `nested-features` leaves
    bool test_device;     // testdev.h's devices, and fwcfg.h's
    bool pci_test_device; // pci_testdev.h's
    bool console;         // COM1 is the machine's console; the first guest's by default
    bool pinned;
    u64 tsc_frequency;         // Hz; 0: the machine's
    u64 hidden;                // features that the guest is not to see: core/hide.c's rows
    u32 cpus[CONFIG_VCPU_MAX]; // pCPU of each vCPU; assigned in order if not pinned
};

struct config {
    struct vm_config guests[CONFIG_GUEST_MAX];
    u32 guest_count;
};

// Reads the dtb: checks the meaning of everything; a wrong guest is left out with a line that names
// the node's path, the property, what was found and what was expected. Strings point into the dtb,
// which must stay. `report` gets each such line. Returns the number of guests that are right, or
// -E_INVAL if the whole tree is unusable (report says why).
int config_parse(struct config *config, const void *dtb, u64 dtb_size,
                 void (*report)(const char *line));

// The features that `hide` may name (core/hide.c). A name's rows as bits of vm_config.hidden, 0: no
// such name; the names by row, NULL behind the last (a name may have several rows); and the CPUID
// bits that a guest is not to see.
u64 config_hideable(const char *name);
const char *config_hideable_name(u32 n);
u32 config_hidden_bits(const struct vm_config *vm, u32 leaf, u32 subleaf, unsigned reg);
