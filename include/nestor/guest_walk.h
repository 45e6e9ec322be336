// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The guest's own paging, walked in software for the emulator and the loaders: 32-bit (with PSE),
// PAE, 4- and 5-level (SDM vol. 3 "Paging"; APM vol. 2 "Page Translation and Protection"). Pure:
// reads the tables through the caller's functions.

#pragma once

#include <nestor/types.h>

enum walk_access {
    WALK_READ = 0,
    WALK_WRITE = BIT(1), // the bits of a page-fault error code
    WALK_USER = BIT(2),
    WALK_FETCH = BIT(4),
    WALK_SHADOW_STACK = BIT(6),
    WALK_IMPLICIT = BIT(
        // an implicit supervisor access (descriptor tables): RFLAGS.AC does not open SMAP for it
        16),
};

struct paging_state {
    u64 cr0, cr3, cr4, efer, rflags;
    u64 pdpte
        // PAE: the four that the CPU holds (VMX); `pdpte_from_memory` reads them anew (SVM with
        // nested paging)
        [4];
    bool pdpte_from_memory;
    u32 pkru, pkrs;
    u8 phys_bits;    // the guest's MAXPHYADDR, for the reserved bits
    bool nx, page1g; // what the guest's CPUID offers
    bool g_reserved; // bit 8 of PML4 and PML5 entries is (AMD)
};

// How the walker reaches guest-physical memory: whole entries of 4 or 8 bytes, aligned. Each
// returns 0, or -E_FAULT if stage 2 has nothing there (then fault->stage2 is set).
struct walk_memory {
    int (*read)(void *ctx, gpa_t gpa, void *value, unsigned size);
    // Compare-and-exchange of an entry, for A and D bits: 0, -E_AGAIN if it changed meanwhile, or
    // -E_FAULT.
    int (*cmpxchg)(void *ctx, gpa_t gpa, u64 old, u64 new_value, unsigned size);
    void *ctx;
};

struct walk_result {
    gpa_t gpa;
    u64 page_size;
    bool writable, user, executable; // the combined rights, for a caller's cache
    bool dirty;
};

struct walk_fault {
    u32 error_code;   // of the #PF, complete
    bool stage2;      // not a #PF: the table entry at `table_gpa` could not be reached
    bool table_write; // ... for writing (A and D bits)
    gpa_t table_gpa;
};

// Translates `la` for `access`. Rights are checked first, then A (and D for writes) bits are set,
// top down, in one atomic step each; an entry that changes meanwhile starts the walk again. Returns
// 0; -E_FAULT with *fault filled; or -E_AGAIN if another vCPU keeps changing the entries: let the
// guest execute the instruction again. Canonicality and segmentation are the caller's; outside long
// mode `la` counts modulo 4 GiB. Writes to a shadow stack are WALK_WRITE | WALK_SHADOW_STACK.
// Without paging all is allowed.
int guest_walk(const struct paging_state *ps, const struct walk_memory *mem, gva_t la, u32 access,
               struct walk_result *out, struct walk_fault *fault);
