// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the files of the transitions between L1 and L2 share: vmcs12_enter.c, vmcs12_exit.c,
// vmcs12_intercept.c, vmcs12_event.c.

#pragma once

#include "vmcs12.h"

// An entry of an MSR area.
struct msr_entry {
    u32 index, reserved;
    u64 value;
};

// Loads an MSR area entry by entry, as WRMSR would at CPL 0. Returns 0, or the number of the entry
// that fails, from 1 on.
u32 vmcs12_load_msrs(struct vcpu *vcpu, gpa_t gpa, u64 count);
// PAE paging loads its pointers from memory. False: one of them is reserved.
bool vmcs12_load_pdptes(struct vcpu *vcpu, struct guest_state *s);

// Fields whose place in the model is a u64 of guest_state, both ways alike.
struct vmcs12_plain {
    u16 field, offset;
};
enum { VMCS12_PLAIN = 12 };
extern const struct vmcs12_plain vmcs12_plain[VMCS12_PLAIN];

static inline u64 *vmcs12_plain_at(struct guest_state *s, unsigned i)
{
    return (u64 *)((u8 *)s + vmcs12_plain[i].offset);
}
