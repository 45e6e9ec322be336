// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// An L1 with the usual controls, whose VMCS12 passes the checks of VM entry; a row spoils one
// field. For tests of nested/vmcs12_check*.c.

#pragma once

#include "vmcs12_fake.h"

#define BAD_ADDRESS        0x8000000000000000ull
#define INFO(type, vector) (INFO_VALID | (u64)(type) << INFO_TYPE_SHIFT | (vector))

static bool shadow_stacks, branch_tracking, pks;

// --- fakes ---

static void no_pull(struct vcpu *v, u32 groups)
{
    v->cur->valid |= groups & GROUP_ALL_CTX;
}

static const struct backend fake_backend = {.pull = no_pull};
const struct backend *backend = &fake_backend;

bool cpuid_has(const struct vm *v, u32 leaf, unsigned reg, unsigned bit)
{
    (void)v;
    return leaf == 7 &&
           ((la57 && reg == 2 && bit == 16) || (shadow_stacks && reg == 2 && bit == 7) ||
            (branch_tracking && reg == 3 && bit == 20) || (pks && reg == 2 && bit == 31));
}

bool cpuid_has_xsaves(const struct vm *v)
{
    (void)v;
    return false;
}

u64 cr4_allowed(const struct vcpu *v)
{
    (void)v;
    return BITS(10, 0) | CR4_VMXE | CR4_PCIDE | (la57 ? CR4_LA57 : 0);
}

// Memory: one page, at MEMORY.
#define MEMORY 0x5000ull
static u8 memory[PAGE_SIZE];

int guest_read_gpa(struct vcpu *v, gpa_t gpa, void *buf, u64 size)
{
    (void)v;
    if (gpa < MEMORY || gpa + size > MEMORY + PAGE_SIZE)
        return -E_FAULT;
    memcpy(buf, memory + (gpa - MEMORY), size);
    return 0;
}

// --- a VMCS12 that passes ---

static void put_controls(void)
{
    put(PIN_BASED_CONTROLS, (u32)vmcs12_capability(&vcpu, MSR_VMX_TRUE_PINBASED_CTLS));
    put(PRIMARY_CONTROLS, (u32)vmcs12_capability(&vcpu, MSR_VMX_TRUE_PROCBASED_CTLS) |
                              PRIMARY_IO_BITMAPS | PRIMARY_MSR_BITMAPS);
    put(EXIT_CONTROLS, (u32)vmcs12_capability(&vcpu, MSR_VMX_TRUE_EXIT_CTLS) | EXIT_CTL_HOST_64 |
                           EXIT_CTL_LOAD_PAT | EXIT_CTL_LOAD_EFER);
    put(ENTRY_CONTROLS, (u32)vmcs12_capability(&vcpu, MSR_VMX_TRUE_ENTRY_CTLS) |
                            ENTRY_CTL_IA32E_GUEST | ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT |
                            ENTRY_CTL_LOAD_EFER);
    put(EXIT_MSR_STORE_ADDRESS, 0x1000);
    put(EXIT_MSR_LOAD_ADDRESS, 0x2000);
    put(ENTRY_MSR_LOAD_ADDRESS, 0x3000);
}

static int setup(void **state)
{
    (void)state;
    la57 = shadow_stacks = branch_tracking = pks = false;
    vm.disabled_isa = ISA_CET;
    fake_reset();
    vcpu.cur->valid = GROUP_ALL_CTX;
    vcpu.cur->state.cr4 = CR4_PAE | CR4_VMXE;
    put_controls();
    put_host();
    put_guest();
    put(VMCS_LINK_POINTER, ~0ull);
    return 0;
}

enum result { PASSES, CONTROLS, HOST, GUEST };

static u64 qualification;

static enum result check(void)
{
    u32 result;

    nested.due = DUE_ALL;
    result = vmcs12_check_entry(&vcpu, &qualification);
    return result == VMX_ERROR_CONTROLS           ? CONTROLS
           : result == VMX_ERROR_HOST_STATE       ? HOST
           : result == REASON_INVALID_GUEST_STATE ? GUEST
                                                  : PASSES;
}

static void change(enum vmcs_field field, u64 clear, u64 set)
{
    put(field, (vmcs12_read(&nested, field) & ~clear) | set);
}

struct row {
    u16 field;
    u64 clear, set;
    const char *name;
};

// Each row spoils the good VMCS12 in one field.
static inline void check_rows(const struct row *rows, unsigned count, enum result result)
{
    for (unsigned i = 0; i < count; i++) {
        setup(NULL);
        change(rows[i].field, rows[i].clear, rows[i].set);
        if (check() != result)
            fail_msg("%s", rows[i].name);
    }
}

// CET for L1, and the control that loads its state.
static inline void offer_cet(bool ss, bool ibt)
{
    shadow_stacks = ss;
    branch_tracking = ibt;
    vm.disabled_isa = ss || ibt ? 0 : ISA_CET;
    vmcs12_caps_reset(&vcpu);
    put_controls();
    change(ENTRY_CONTROLS, 0, ss || ibt ? ENTRY_CTL_LOAD_CET : 0);
}
