// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the files of the transitions between L1 and L2 share: vmcs12_enter.c: into L2;
// vmcs12_exit.c: to L1; vmcs12_intercept.c: which exits L1 wants; vmcs12_event.c: events;
// vmcs12_apic.c, vmcs12_ept.c, vmcs12_cet.c: what these features have of each; vmcs12_shadow.c:
// VMCS12 where the CPU serves it.

#pragma once

#include "vmcs12.h"

// --- vmcs12_event.c ---
void vmcs12_timer_start(struct vcpu *vcpu); // at an entry
void vmcs12_timer_stop(struct vcpu *vcpu);  // at an exit: saves it

// --- vmcs12_apic.c: the virtual-APIC page ---
// At the end of an entry: PPR and TPR virtualization. It may exit at once.
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
// Whether an interrupt of L1's, which is acknowledged, only notifies of interrupts that are posted
// for its L2; takes them.
bool vmcs12_is_posted(const struct vcpu *vcpu, int vector);
void vmcs12_take_posted(struct vcpu *vcpu);

// --- vmcs12_cet.c ---
static inline bool vmcs12_offers_entry(const struct vcpu *vcpu, u32 control)
{
    return vmcs12_capability(vcpu, MSR_VMX_ENTRY_CTLS) >> 32 & control;
}
// L1 has CET or protection keys for supervisor pages: without, all below do nothing.
static inline bool vmcs12_has_cet(const struct vcpu *vcpu)
{
    return unlikely(vmcs12_offers_entry(vcpu, ENTRY_CTL_LOAD_CET | ENTRY_CTL_LOAD_PKRS));
}
// GROUP_CET if L1 has CET, else 0.
static inline u32 vmcs12_cet_group(const struct vcpu *vcpu)
{
    return vmcs12_offers_entry(vcpu, ENTRY_CTL_LOAD_CET) ? GROUP_CET : 0;
}
// Of L2's state in `s`, at an entry; the vCPU's is L1's. GROUP_CET if that changes `s`, else 0.
u32 vmcs12_cet_enter(struct vcpu *vcpu, struct guest_state *s);
void vmcs12_pkrs_enter(struct vcpu *vcpu); // at an entry that loads L2's state
void vmcs12_cet_save(struct vcpu *vcpu);   // with IA32_PKRS, here and below
// Into L1's state; `before`: L2's, or L1's own if L2's was not loaded.
void vmcs12_cet_leave(struct vcpu *vcpu, const struct guest_state *before);

// --- vmcs12_enter.c, vmcs12_exit.c ---
// An entry of an MSR area.
struct msr_entry {
    u32 index, reserved;
    u64 value;
};

enum { VMCS12_MSR_AREA = 512 }; // entries, by IA32_VMX_MISC[27:25]; one more is one that fails

// Bits of CR0 that neither an entry nor an exit loads: ET, CD and NW, and those that are reserved
// (SDM vol. 3 "Loading Guest Control Registers", "Loading Host Control Registers").
#define CR0_LOADED (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM | CR0_PG)

// Loads an MSR area entry by entry, as WRMSR would at CPL 0. Returns 0, or the number of the entry
// that fails, from 1 on.
u32 vmcs12_load_msrs(struct vcpu *vcpu, gpa_t gpa, u64 count);
// PAE paging loads its pointers from memory. False: one of them is reserved.
bool vmcs12_load_pdptes(struct vcpu *vcpu, struct guest_state *s);
// What an exit leaves where L2 has it, until L1 reads or changes such a field.
#define VMCS12_LATE (GROUP_DATA | GROUP_SYSTEM | GROUP_TABLES | GROUP_SYSENTER)
// L2's stage 2 and tag are what VMCS12 says.
void vmcs12_use_stage2(struct vcpu *vcpu);

// Fields whose place in the model is a u64 of guest_state, both ways alike.
// clang-format off
#define VMCS12_PLAIN(X)                                                                          \
    X(GUEST_RIP, rip) X(GUEST_RSP, rsp) X(GUEST_RFLAGS, rflags)                                  \
    X(GUEST_CR0, cr0) X(GUEST_CR3, cr3) X(GUEST_CR4, cr4)
#define VMCS12_PLAIN_LATE(X)                                                                     \
    X(GUEST_GDTR_BASE, gdtr.base) X(GUEST_IDTR_BASE, idtr.base)                                  \
    X(GUEST_SYSENTER_CS, sysenter_cs) X(GUEST_SYSENTER_ESP, sysenter_esp)                        \
    X(GUEST_SYSENTER_EIP, sysenter_eip)
// clang-format on

// The fields of the segments stand in one order in every width, which is enum segment_index's.
struct vmcs12_segments {
    u64 *selector, *limit, *access, *base;
};
static inline struct vmcs12_segments vmcs12_segments(struct nested *n)
{
    u64 *field = n->vmcs.field;

    return (struct vmcs12_segments){
        field + vmcs12_slot(GUEST_ES_SELECTOR), field + vmcs12_slot(GUEST_ES_LIMIT),
        field + vmcs12_slot(GUEST_ES_ACCESS), field + vmcs12_slot(GUEST_ES_BASE)};
}
