// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The front ends' own room: what each of the two fills in, and what both use.

#pragma once

#include <nestor/nested.h>
#include <nestor/l1_stage2.h>
#include <nestor/run.h>

struct nested_ops {
    size_t state_size;
    size_t init_keeps;     // bytes at the state's start that INIT leaves as they are
    unsigned bitmap_order; // of vcpu->nested_bitmap
    u32 kept;              // groups of the context that neither way switches
    bool virtual_first;    // virtual interrupts go before L1's own
    void (*reset)(struct vcpu *vcpu);
    bool (*reflect)(struct vcpu *vcpu, struct vm_exit *exit);
    void (*instruction)(struct vcpu *vcpu, struct vm_exit *exit);
    enum nested_answer (*event)(struct vcpu *vcpu, enum nested_event event);
    bool (*wants_exception)(struct vcpu *vcpu, const struct event *event);
    int (*virtual_interrupt)(struct vcpu *vcpu);
    bool (*cr8)(struct vcpu *vcpu, bool write, u64 *value); // NULL: the LAPIC's
    u64 (*tsc_moved)(struct vcpu *vcpu, u64 by);            // NULL: as far as L1's
    int (*read_msr)(struct vcpu *vcpu, u32 msr, u64 *value);
    int (*write_msr)(struct vcpu *vcpu, u32 msr, u64 value);
    u64 cr4_bits;
    u64 (*efer_bits)(const struct vcpu *vcpu); // NULL: none
    int (*check_cr)(const struct vcpu *vcpu, unsigned number, u64 value);
    // L1's tables refuse an access of L2's: the exit to L1. Of `exit`, `stage2` and what an exit of
    // hardware's has beside.
    void (*stage2_fault)(struct vcpu *vcpu, const struct vm_exit *exit,
                         const struct l1_fault *fault);
    void (*cpuid)(const struct vm *vm, u32 leaf, u32 regs[4]);
};

extern const struct nested_ops vmcs12_ops; // VMX for guests
extern const struct nested_ops vmcb12_ops; // SVM for guests

// The level changes. The caller has filled ctx[1]'s state, and its valid and dirty groups (enter),
// or is about to correct ctx[0]'s (leave).
void nested_enter_l2(struct vcpu *vcpu);
void nested_leave_l2(struct vcpu *vcpu);
// Starts an L2 context's controls from what Nestor needs for itself; the front end adds L1's.
void nested_base_controls(struct vcpu *vcpu);
// The CPU has refused what the front end's checks passed: logged once, L1 can do it again and
// again.
void nested_tell_refusal(struct vcpu *vcpu, u64 reason);

// A PAT with a type that does not exist: 2, 3 and above 7 (SDM vol. 3 "IA32_PAT MSR", APM vol. 2,
// 7.8.1), in all eight bytes at once: bits 7:3, or bit 1 without bit 2.
static inline bool pat_is_illegal(u64 pat)
{
    return (pat & 0xf8f8f8f8f8f8f8f8) || (pat & ~(pat >> 1) & 0x0202020202020202);
}
