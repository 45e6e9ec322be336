// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMCB12: the VMCB of a guest hypervisor on SVM, and what vmcb12's files share. vmcb12.c:
// instructions, MSRs, CPUID; vmcb12_check.c: VMRUN's consistency checks; vmcb12_enter.c: into L2;
// vmcb12_exit.c: #VMEXIT; vmcb12_intercept.c: which exits L1 wants; vmcb12_event.c: events.

#pragma once

#include "nested.h"
#include <arch/x86/svm.h>

enum vmcb12_news { CTL_NEW = BIT(30), CHECK_NEW = BIT(31) };
enum { MSRPM_SIZE = 0x2000, IOPM_SIZE = 0x3000, VMCB12_ASIDS = 64 };

struct nested {
    u64 hsave_pa, vm_cr; // first, because INIT keeps them
    u32 features;        // what CPUID Fn8000_000A_EDX offers this guest (SVM_FEATURE_*)
    gpa_t vmcb12_gpa;
    u64 host_rax; // L1's RAX at VMRUN
    bool host_if; // and its RFLAGS.IF: HIF
    u16 pauses_left;
    u16 open[8]; // words of the VM's MSR map that are not all ones
    u8 open_count;
    // VMCB12 as it was read at VMRUN: checked and used from here, never read twice. While L2 runs,
    // V_TPR, V_IRQ and V_GIF here are the ones that count. Behind an exit it is what the exit left.
    struct vmcb vmcb;
    bool loaded; // ctx[1] is what it says: the next VMRUN loads what L1 has changed
    bool passed; // it has passed VMRUN's checks, with
    struct vmcb12_limits {
        u64 cr4, efer; // the bits that this guest may set
        u8 phys_bits;
        bool long_mode, nested_paging, host_paging;
        bool page1g;
    } limits;
};

static inline bool vmcb12_intercepts(const struct vcpu *vcpu, unsigned word, u32 bits)
{
    return vcpu->nested->vmcb.intercept[word] & bits;
}

static inline bool vmcb12_has(const struct vcpu *vcpu, u32 feature)
{
    return vcpu->nested->features & feature;
}
// Whether the running L2's virtual GIF (15.33) is enabled.
static inline bool vmcb12_vgif(const struct vcpu *vcpu)
{
    return (vcpu->nested->vmcb.v_ctl & SVM_V_GIF_ENABLE) && vmcb12_has(vcpu, SVM_FEATURE_VGIF);
}
// Whether the running L2 has nested paging (15.25), and with it a PAT of its own.
static inline bool vmcb12_npt(const struct vcpu *vcpu)
{
    return (vcpu->nested->vmcb.np_enable & SVM_NP_ENABLE) && vmcb12_has(vcpu, SVM_FEATURE_NP);
}

// Whether DEBUGCTL and the last branches are L2's own (15.23), not L1's.
static inline bool vmcb12_lbrv(const struct vcpu *vcpu)
{
    return (vcpu->nested->vmcb.lbr_control & SVM_VIRTUAL_LBR) &&
           vmcb12_has(vcpu, SVM_FEATURE_LBR_VIRT);
}

// L1's. Where the hardware keeps it, it is written with the controls.
static inline void vmcb12_set_gif(struct vcpu *vcpu, bool gif)
{
    vcpu->events.gif_clear = !gif;
    vcpu->ctx[0].ctl_dirty |= CTL_GIF;
}

// --- vmcb12_check.c: pure ---
// NULL: legal; else what is wrong.
const char *vmcb12_check(const struct vmcb *v, const struct vmcb12_limits *limits);

// --- vmcb12_enter.c ---
struct segment vmcb12_get_segment(const struct vmcb_segment *v);
struct vmcb_segment vmcb12_put_segment(const struct segment *s);
// DEBUGCTL and the last branches of one context to another.
static inline void vmcb12_hand_branches(const struct guest_state *from, struct guest_state *to)
{
    to->debugctl = from->debugctl;
    for (unsigned i = 0; i < ARRAY_SIZE(to->last_branch); i++)
        to->last_branch[i] = from->last_branch[i];
}
void vmcb12_prepare_msrpm(struct vcpu *vcpu); // once
// What VMRUN reads of VMCB12. Returns the groups of L2's state, CTL_NEW, CHECK_NEW: what differs
// from the last time.
u32 vmcb12_read(struct nested *n, const struct vmcb *from);
// VMRUN of the VMCB at vmcb12_gpa, whose instruction is over; `news`: what was read.
void vmcb12_enter(struct vcpu *vcpu, u32 news);

// --- vmcb12_exit.c ---
// #VMEXIT: the one place that fills VMCB12 from the model. `exit`: an instruction's intercept,
// with what the CPU left out of it filled in; NULL for all others.
void vmcb12_exit(struct vcpu *vcpu, u64 code, u64 info1, u64 info2, const struct vm_exit *exit);
// A VMRUN that its checks refuse: nothing of L2's is loaded (15.5.1).
void vmcb12_exit_invalid(struct vcpu *vcpu);
void vmcb12_stage2_fault(struct vcpu *vcpu, const struct vm_exit *exit,
                         const struct l1_fault *fault);

// --- vmcb12.c ---
// Of SVM's instructions: #UD without SVME or outside protected mode, then #GP for the CPL. True: go on.
bool vmcb12_may_execute(struct vcpu *vcpu);

// --- vmcb12_intercept.c, vmcb12_event.c ---
bool vmcb12_reflect(struct vcpu *vcpu, struct vm_exit *exit);
bool vmcb12_wants_exception(struct vcpu *vcpu, const struct event *event);
enum nested_answer vmcb12_event(struct vcpu *vcpu, enum nested_event event);
int vmcb12_virtual_interrupt(struct vcpu *vcpu);
// L2's CR8 under V_INTR_MASKING: false where it is the LAPIC's.
bool vmcb12_cr8(struct vcpu *vcpu, bool write, u64 *value);
// Notes whether a virtual interrupt waits.
void vmcb12_note_virtual(struct vcpu *vcpu);
