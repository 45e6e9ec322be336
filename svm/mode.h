// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The hot half of svm/state.c: what says in which mode the guest is (APM vol. 2 appendix B).
// Without nRIP save most exits need it, to find the instruction's length.

#pragma once

#include <arch/x86/regs.h>

#include "svm.h"

#define SVM_MODE_GROUPS (GROUP_CR | GROUP_CODE | GROUP_EFER_PAT)

static inline u64 svm_segment_differs(const struct vmcb_segment *a, const struct vmcb_segment *b)
{
    const u64 *x = (const u64 *)a, *y = (const u64 *)b;

    return (x[0] ^ y[0]) | (x[1] ^ y[1]);
}

// Whether CS, SS or the CPL are not those that the model has taken last.
static inline u64 svm_code_differs(const struct backend_ctx *hw)
{
    const struct vmcb *vmcb = hw->vmcb;

    return svm_segment_differs(&vmcb->cs, &hw->seen_cs) |
           svm_segment_differs(&vmcb->ss, &hw->seen_ss) | (u64)(vmcb->cpl ^ hw->seen_cpl);
}

// Whether what the model has taken last, or what was written from it, is no longer the guest's.
// SVME is always set in hardware; the guest's own bit and PAT are the model's, because WRMSR to
// EFER and PAT exits.
static inline u64 svm_mode_differs(const struct vcpu_ctx *ctx)
{
    const struct vmcb *vmcb = ctx->hw->vmcb;
    const struct guest_state *state = &ctx->state;

    return svm_code_differs(ctx->hw) | (vmcb->cr0 ^ state->cr0) | (vmcb->cr3 ^ state->cr3) |
           ((vmcb->cr4 | ctx->hw->cr4_held) ^ state->cr4) |
           (vmcb->efer ^ ctx->hw->efer_added ^ state->efer);
}

// After an exit: the whole mode, if it is known already. Else it is pulled when asked for.
static inline void svm_see_mode(struct vcpu_ctx *ctx)
{
    if (likely(!svm_mode_differs(ctx)))
        ctx->valid |= SVM_MODE_GROUPS;
}
