// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the files of the transitions between L1 and L2 share: vmcs12_enter.c, vmcs12_exit.c,
// vmcs12_intercept.c, vmcs12_event.c.

#pragma once

#include "vmcs12.h"

// --- vmcs12_event.c ---
void vmcs12_timer_start(struct vcpu *vcpu); // at an entry
void vmcs12_timer_stop(struct vcpu *vcpu);  // at an exit: saves it

// --- vmcs12_apic.c: the virtual-APIC page ---
// At an entry: PPR and TPR virtualization.
void vmcs12_apic_enter(struct vcpu *vcpu);
bool vmcs12_tpr_exit_due(struct vcpu *vcpu);
// L2's virtual interrupt that its PPR lets through, or -E_NOENT; it is being delivered.
int vmcs12_virtual_interrupt(struct vcpu *vcpu);
void vmcs12_virtual_taken(struct vcpu *vcpu);
// An L2's access to CR8 or to an x2APIC MSR, that L1 does not intercept: true if it is done with.
bool vmcs12_apic_cr8(struct vcpu *vcpu, struct vm_exit *exit);
bool vmcs12_apic_msr(struct vcpu *vcpu, struct vm_exit *exit);
// An L2's EXIT_STAGE2 with L1's address: the same for the APIC-access page.
bool vmcs12_apic_page(struct vcpu *vcpu, struct vm_exit *exit);
// Whether an interrupt of L1's only notifies of interrupts that are posted for its L2; takes them.
bool vmcs12_is_posted(const struct vcpu *vcpu, int vector);
void vmcs12_take_posted(struct vcpu *vcpu);

// --- vmcs12_enter.c, vmcs12_exit.c ---
// An entry of an MSR area.
struct msr_entry {
    u32 index, reserved;
    u64 value;
};

enum { VMCS12_MSR_AREA = 512 }; // entries, by IA32_VMX_MISC[27:25]; one more is one that fails

// Loads an MSR area entry by entry, as WRMSR would at CPL 0. Returns 0, or the number of the entry
// that fails, from 1 on.
u32 vmcs12_load_msrs(struct vcpu *vcpu, gpa_t gpa, u64 count);
// PAE paging loads its pointers from memory. False: one of them is reserved.
bool vmcs12_load_pdptes(struct vcpu *vcpu, struct guest_state *s);
// L2's stage 2 and tag are what VMCS12 says.
void vmcs12_use_stage2(struct vcpu *vcpu);

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
