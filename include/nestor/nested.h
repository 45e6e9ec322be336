// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What core asks of the nested front ends (nested/). One front end per VM, of the CPU's own vendor,
// chosen when nested is on.

#pragma once

#include <nestor/exit.h>
#include <nestor/types.h>

struct vcpu;
struct vm;

// What L1 may be offered, each by its own name (nested/features.c) in `nested-features`: bits of
// vm_config.nested_features.
enum nested_feature {
    OFFER_TRUE_CONTROLS,
    OFFER_VMWRITE_ANY,
    OFFER_VIRTUAL_NMIS,
    OFFER_PREEMPTION_TIMER,
    OFFER_POSTED_INTERRUPTS,
    OFFER_MTF,
    OFFER_EPT,
    OFFER_EPT_5_LEVEL,
    OFFER_EPT_EXECUTE_ONLY,
    OFFER_EPT_1G,
    OFFER_EPT_AD,
    OFFER_VPID,
    OFFER_UNRESTRICTED_GUEST,
    OFFER_TPR_SHADOW,
    OFFER_APIC_ACCESSES,
    OFFER_X2APIC,
    OFFER_APIC_REGISTERS,
    OFFER_INTERRUPT_DELIVERY,
    OFFER_DESCRIPTOR_TABLE,
    OFFER_RDTSCP,
    OFFER_INVPCID,
    OFFER_WBINVD,
    OFFER_PAUSE_LOOP,
    OFFER_RDRAND,
    OFFER_XSAVES,
    OFFER_VMCS_SHADOWING,
    OFFER_PML,
    OFFER_TSC_SCALING,
    OFFER_USER_WAIT,
    OFFER_CET,
    OFFER_PKRS,
    OFFER_NPT,
    OFFER_NRIP,
    OFFER_DECODE_ASSISTS,
    OFFER_FLUSH_BY_ASID,
    OFFER_CLEAN_BITS,
    OFFER_VGIF,
    OFFER_VIRTUAL_VMLOAD,
    OFFER_PAUSE_FILTER,
    OFFER_LBRV,
    OFFER_FEATURE_COUNT,
};
_Static_assert(OFFER_FEATURE_COUNT <= 64, "vm_config.nested_features has a bit for each");

const char *nested_feature_name(u32 n); // NULL behind the last

int nested_create(struct vcpu *vcpu); // 0 when nested is off; else ctx[1] and the front end's state
void nested_destroy(struct vcpu *vcpu);
void nested_reset(struct vcpu *vcpu, bool init);

// An L2 exited: if L1 wants it, makes L1's exit (the vCPU is at level 0 afterwards) and returns
// true.
bool nested_reflect(struct vcpu *vcpu, struct vm_exit *exit);
// A hypervisor instruction by L1 (or by L2, which then goes through nested_reflect first): emulated
// wholly.
void nested_instruction(struct vcpu *vcpu, struct vm_exit *exit);

// Events at a boundary while L2 runs, the first one first; core/event.c asks before it delivers.
enum nested_event {
    NESTED_SMI, // SVM
    NESTED_INIT,
    NESTED_SIPI,
    NESTED_MTF,
    NESTED_BEHIND_INJECTION, // NESTED_BLOCKED: something of L1's waits for its end
    NESTED_BEFORE_NMI,       // VMX: the TPR threshold, the preemption timer, the NMI window
    NESTED_NMI,
    NESTED_BEFORE_INTERRUPT, // VMX: the interrupt window
    NESTED_INTERRUPT,
    NESTED_VIRTUAL_INTERRUPT, // which nested_virtual_interrupt has named; delivered: it is taken
};
enum nested_answer {
    NESTED_DELIVER,      // L1 does not want it: it goes to L2 like to any guest
    NESTED_EXITED,       // the exit to L1 was made; the vCPU is at level 0
    NESTED_DELIVER_OPEN, // the same, and L2's IF does not mask it (SVM: V_INTR_MASKING)
    NESTED_BLOCKED,      // it waits until L2 exits (SVM: V_INTR_MASKING with L1's IF clear)
};
// The vector of a virtual interrupt that L1 has for its L2 and that its priority lets through
// (SVM: V_IRQ), or -E_NOENT. `first`: before L1's own interrupts are looked at. While one may wait,
// events.nested_check is set.
int nested_virtual_interrupt(struct vcpu *vcpu, bool first);
// L2's access to CR8, if L1 has a TPR of its own for it; false: it is the LAPIC's.
bool nested_cr8(struct vcpu *vcpu, bool write, u64 *value);
// L1's TSC was moved under its L2: how far that moves L2's.
u64 nested_tsc_moved(struct vcpu *vcpu, u64 by);
enum nested_answer nested_event(struct vcpu *vcpu, enum nested_event event);
// An exception that would be delivered to L2 (raised by emulation, or re-injected from an exit of
// Nestor's own): true if L1's exception intercept took it and the exit to L1 was made.
bool nested_wants_exception(struct vcpu *vcpu, const struct event *event);

// The running L2's guest-physical address, of an access for `la`, into L1's, through L1's stage 2
// if it has one. access: enum l1_access. 0; -E_AGAIN; or -E_FAULT: L1's tables refuse it, and
// nested_tell_refused() makes the exit to L1, where a page fault would be injected; it returns
// whether there was one to make.
int nested_translate(struct vcpu *vcpu, gpa_t *gpa, gva_t la, u32 access);
bool nested_refused(const struct vcpu *vcpu);
bool nested_tell_refused(struct vcpu *vcpu);
// Nestor's own stage 2 has changed: nothing that came from it may serve an L2.
void nested_stage2_drop(struct vcpu *vcpu);

// MSRs of the VMX capability range / VM_CR, VM_HSAVE_PA. -E_NOENT: not one of them (or nested is
// off); -E_FAULT: #GP.
int nested_read_msr(struct vcpu *vcpu, u32 msr, u64 *value);
int nested_write_msr(struct vcpu *vcpu, u32 msr, u64 value);
// Bits that nesting adds to what L1 may set: CR4.VMXE or EFER.SVME.
u64 nested_cr4_bits(const struct vcpu *vcpu);
u64 nested_efer_bits(const struct vcpu *vcpu);
// CR0/CR4 writes in VMX operation must keep the fixed bits: 0 or -E_FAULT.
int nested_check_cr(const struct vcpu *vcpu, unsigned number, u64 value);
// CPUID bits of the front end, put into the VM's leaves.
void nested_cpuid(const struct vm *vm, u32 leaf, u32 regs[4]);
bool nested_offered(const struct vm *vm);
// What the VM can't have beside nesting as it is offered: bits of enum guest_isa.
u32 nested_lacks(const struct vm *vm);
