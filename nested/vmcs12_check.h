// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// How the checks of VM entry are written down (vmcs12_check.c: controls; vmcs12_check_host.c;
// vmcs12_check_guest.c): tables in the SDM's groups and order, one row for each check.

#pragma once

#include "vmcs12.h"
#include <arch/x86/regs.h>

// The words that a row may depend on. Secondary controls count as 0 unless activated. WORD_EVENT is
// the interruption information, 0 if nothing is injected; WORD_STATE is 0 where the non-register
// state is the plain one and nothing is injected, else 1; WORD_LINK is 0 without a link pointer.
// The last two are not 0 where each entry looks at rows of that group, whether it is due or not.
enum check_word {
    WORD_NONE,
    WORD_PIN,
    WORD_PRIMARY,
    WORD_SECONDARY,
    WORD_EXIT,
    WORD_ENTRY,
    WORD_EVENT,
    WORD_STATE,
    WORD_LINK,
    WORD_EACH_CONTROLS,
    WORD_EACH_GUEST,
    WORD_COUNT
};

struct check {
    struct vcpu *vcpu;
    const struct nested *n;
    u64 word[WORD_COUNT];
    u8 phys_bits, linear_bits;
    bool unrestricted, ia32e, v8086;
};

// A row counts if `word` has any of `bits`, or if that is 0; it refuses the entry if fails() is
// true.
struct check_row {
    const char *name; // the SDM's words for what must hold
    bool (*fails)(const struct check *c, const struct check_row *row);
    u8 word;
    u8 qualification; // of exit reason 33
    u32 bits;
    u16 field;
    u64 arg;
};

struct check_table {
    const struct check_row *rows;
    // The first row of those that are looked at even if the group is not due, where the word `each`
    // is not 0; and of those that are if `due_late` is due.
    unsigned count, always, late;
    u8 each;          // enum check_word
    u8 due, due_late; // enum vmcs12_due
    u32 result;       // of vmcs12_check_entry
};

extern const struct check_table vmcs12_control_checks, vmcs12_host_checks, vmcs12_guest_checks;

// The first row that fails; NULL if none does: then no group is due any longer.
const struct check_row *vmcs12_refusing_row(struct vcpu *vcpu, u32 *result);

static inline u64 get(const struct check *c, enum vmcs_field field)
{
    return vmcs12_read(c->n, field);
}

static inline u64 field_of(const struct check *c, const struct check_row *row)
{
    return get(c, (enum vmcs_field)row->field);
}

static inline u64 capability(const struct check *c, u32 msr)
{
    return vmcs12_capability(c->vcpu, msr);
}

// An address whose low bits are not 0 or that has bits beyond the physical-address width.
static inline bool bad_address(const struct check *c, u64 address, u64 low)
{
    return (address & low) || address >> c->phys_bits;
}

static inline bool is_sign_extended(u64 address, unsigned bits)
{
    return (u64)((s64)(address << (64 - bits)) >> (64 - bits)) == address;
}

// --- for rows of any group ---

// `field` has bits of `arg`.
bool check_reserved(const struct check *c, const struct check_row *row);
bool check_zero(const struct check *c, const struct check_row *row); // `field` is 0
// An address; `arg`: the low bits that must be 0.
bool check_address(const struct check *c, const struct check_row *row);
bool check_canonical(const struct check *c, const struct check_row *row); // an address that is not
bool check_pat(const struct check *c, const struct check_row *row);
bool check_cr0(const struct check *c, const struct check_row *row); // fixed bits
bool check_cr4(const struct check *c, const struct check_row *row);
bool check_s_cet(const struct check *c, const struct check_row *row);

#define EFER_KNOWN (EFER_SCE | EFER_LME | EFER_LMA | EFER_NX)
