// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The one entry point for flushing translations. A flush is a request: it is carried out by the CPU
// that next enters with the tag or the stage-2 in question, before it enters; CPUs that are in a
// guest are kicked and waited for.

#pragma once

#include <nestor/types.h>

struct vm;
struct vcpu;

enum tlb_flush_kind {
    TLB_FLUSH_NONE = 0,
    TLB_FLUSH_GUEST = BIT(0),  // linear and combined mappings of the vCPU's tag (VPID/ASID)
    TLB_FLUSH_STAGE2 = BIT(1), // mappings that came from its stage-2 root, all tags
};

// This vCPU, before its next entry. From its own CPU. Nothing is done but to note it.
void tlb_flush_vcpu(struct vcpu *vcpu, unsigned kinds);
// All vCPUs of the VM, and returns when none of them can use the old mappings any more. Any CPU;
// not with a lock held that a vCPU's exit handling takes.
void tlb_flush_vm(struct vm *vm, unsigned kinds);
