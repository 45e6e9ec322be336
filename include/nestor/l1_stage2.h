// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// An L1's own stage 2, walked in software: EPT (SDM vol. 3 "EPT Translation Mechanism",
// "EPT-Induced VM Exits", "Accessed and Dirty Flags for EPT") with 4 or 5 levels, and nested paging
// in each mode that an SVM host can be in (APM vol. 2 "Nested Paging"). Pure: reads the tables
// through the caller's functions.

#pragma once

#include <nestor/guest_walk.h>
#include <nestor/stage2.h>

enum l1_stage2_kind { L1_STAGE2_NONE, L1_STAGE2_EPT, L1_STAGE2_NPT };

struct l1_stage2 {
    u8 kind;      // enum l1_stage2_kind; NONE: L2's guest-physical addresses are L1's
    u8 phys_bits; // L1's MAXPHYADDR
    bool page1g, execute_only;
    bool log_full; // page-modification logging is on, and its index is not in the range 0-511
    u64 root;      // the EPTP or nCR3
    u64 mode; // NPT: what VMRUN found of L1's paging: CR4's PAE, PSE, LA57, SMEP and EFER's LMA, NXE
};

u64 l1_npt_mode(u64 cr4, u64 efer);

// EPTP fields (SDM table "Format of Extended-Page-Table Pointer").
#define EPTP_WALK_LENGTH(eptp) ((unsigned)((eptp) >> 3 & 7) + 1)

// An access to an L2's guest-physical memory. TABLE: not by the instruction itself but to L2's
// paging structures on its way.
enum l1_access {
    L1_READ = STAGE2_R,
    L1_WRITE = STAGE2_W,
    L1_EXECUTE = STAGE2_X,
    L1_TABLE = BIT(3),
    L1_NO_LINEAR = BIT(4), // for no linear address: PAE's PDPTEs as they are loaded
};

struct l1_translation {
    gpa_t gpa;    // L1's
    bool dirtied; // EPT: the walk has set the D flag
    u64 page_size;
    unsigned
        rights; // enum stage2_rights; W only when the entry's D flag is set, where there is one
};

struct l1_fault {
    bool misconfigured; // EPT misconfiguration; else a violation or nested page fault
    bool log_full;      // or a page-modification log-full event
    u8 access;          // enum l1_access
    u8 rights;          // EPT: what all entries that were used allow together
    u32 error_code;     // NPT: of the #PF that it would be
};

// An access as it counts: with NPT, and with EPT that has A and D flags, those to L2's paging
// structures are writes.
u32 l1_stage2_access(const struct l1_stage2 *l1, u32 access);

// Translates `gpa` for `access` (as it counts) and sets the A and D flags that this takes, after
// the rights are checked. mem->read answers what is not memory by all ones. Returns 0; -E_FAULT
// with *fault filled; or -E_AGAIN if the entries keep changing.
int l1_stage2_walk(const struct l1_stage2 *l1, const struct walk_memory *mem, gpa_t gpa, u32 access,
                   struct l1_translation *out, struct l1_fault *fault);
