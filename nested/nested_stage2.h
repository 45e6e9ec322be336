// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Nested stage 2 for the front ends: which tables of L1's translate an L2's guest-physical
// addresses, which tag (VPID, ASID) its translations have, and what L1 flushes of both. A vCPU has
// its own shadow tables and tag, as a CPU has its own TLB: flushes act on the vCPU that executes
// them. All on the vCPU's own pCPU.

#pragma once

#include <nestor/exit.h>
#include <nestor/l1_stage2.h>
#include <nestor/vcpu.h>

// Page-modification logging (SDM vol. 3): 512 addresses, from the last one down.
struct l1_log {
    gpa_t address;
    u64 *index; // of the next one; beyond 511: the log is full
};

// --- at VM entry or VMRUN, behind nested_base_controls() and before nested_enter_l2() ---

// VMRUN's TLB_CONTROL (enum svm_tlb_control) for L2's ASID; before the two below.
void nested_tlb_control(struct vcpu *vcpu, u32 asid, u32 tlb_control);
// L2's translations have this tag of L1's: VPID or ASID. 0: none, nothing of an earlier entry's
// serves.
void nested_tag_use(struct vcpu *vcpu, u32 tag);
// While `on`, accesses to this page of L1's exit, with its address; Nestor's own emulation has `to`
// in its place. Before nested_stage2_use.
void nested_stage2_divert(struct vcpu *vcpu, bool on, gpa_t page, gpa_t to);
// L2's stage 2 is `l1` from now on (kind NONE: L1's addresses). `log`: NULL, or where pages are
// logged as their D flags are set.
void nested_stage2_use(struct vcpu *vcpu, const struct l1_stage2 *l1, const struct l1_log *log);
// Instead of the three above: stage 2 and tag are those of the last entry.
void nested_stage2_again(struct vcpu *vcpu);

// --- what L1 executes ---

// INVEPT (SDM vol. 3 "INVEPT"), its operands checked: one EPTP's mappings, or all.
void nested_invept(struct vcpu *vcpu, bool all, u64 eptp);
// INVVPID and INVLPGA: linear and combined mappings of one tag, or of all but L1's own. Any part of
// a tag: all of it goes. INVLPGA's ASID 0 is L1's own.
void nested_invalidate_tag(struct vcpu *vcpu, bool all, u32 tag);

// --- for nested.c ---

// vcpu->world of the L2 that nested_stage2_use() was told of.
u64 nested_stage2_world(const struct vcpu *vcpu);
int nested_stage2_create(struct vcpu *vcpu);
void nested_stage2_destroy(struct vcpu *vcpu);
// The exit to L1 because its tables refuse what `exit` says.
void nested_stage2_fault(struct vcpu *vcpu, struct vm_exit *exit, const struct l1_fault *fault);
// At the end of an entry.
void nested_stage2_prefetch(struct vcpu *vcpu);
// An L2's EXIT_STAGE2: true if it is done with, by an entry that was missing or an exit to L1; else
// it is for Nestor, with L1's address in exit->stage2.gpa.
bool nested_stage2_exit(struct vcpu *vcpu, struct vm_exit *exit);
