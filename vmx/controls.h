// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Which VMX controls Nestor uses: the negotiation with a CPU's capability MSRs, and what of
// controls.intercepts becomes which control. Pure (controls.c).

#pragma once

#include <nestor/types.h>

enum vmx_control_field {
    CONTROL_PIN,
    CONTROL_PRIMARY,
    CONTROL_SECONDARY,
    CONTROL_EXIT,
    CONTROL_ENTRY,
    CONTROL_FIELDS
};

struct vmx_controls {
    u32 base[CONTROL_FIELDS];    // must be 1, or wanted always and allowed
    u32 allowed[CONTROL_FIELDS]; // may be 1
};

// `msrs` are the five capability MSRs (the TRUE ones where there are any). Calls `missing` with MSR
// and control for each control that Nestor needs and does not find; returns their number.
unsigned vmx_controls_negotiate(const u64 msrs[CONTROL_FIELDS], struct vmx_controls *out,
                                void (*missing)(const char *msr, const char *control));
// The name of the n-th optional control that is used, NULL behind the last.
const char *vmx_controls_optional(const struct vmx_controls *controls, unsigned n);
// The bits of the primary or secondary controls that `intercepts` (enum intercept) asks for.
u32 vmx_intercept_controls(u64 intercepts, enum vmx_control_field field);
// What this CPU cannot give to a guest, as enum guest_isa; and the secondary controls that are 0
// for a guest that is not offered `isa`.
u32 vmx_controls_lacks(const struct vmx_controls *controls);
u32 vmx_secondary_disabled(u32 isa);
