// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The hot half of svm/exit.c, inlined into svm_enter: what every exit takes, and the way to the
// table.

#pragma once

#include "svm.h"

enum { INSN = 1, ADJUST = 2 };

struct exit_row {
    void (*fill)(const struct vmcb *vmcb,
                 struct vm_exit *exit); // NULL: there is nothing but the kind
    u8 kind;
    u8 flags; // INSN: an instruction's intercept, nRIP is the next's address; ADJUST: see below
};

enum { SVM_EXIT_ROWS = VMEXIT_IDLE_HLT + 1 };

extern const struct exit_row svm_exit_rows[SVM_EXIT_ROWS]; // no holes
const struct exit_row *svm_find_exit_row(u64 code);        // of a code beyond
void svm_fill_interrupted(const struct vmcb *vmcb, struct event *event);

// 0: not known.
static inline u8 svm_insn_length(const struct vmcb *vmcb)
{
    u64 length = vmcb->nrip - vmcb->rip;

    return svm_has(SVM_FEATURE_NRIPS) && length <= 15 ? (u8)length : 0;
}

// Fills *exit from the VMCB's exit fields. Returns what svm_enter has to do besides: ADJUST for an
// interrupted delivery, INTR and IRET; INSN for an instruction of unknown length. Pure.
static inline u32 svm_fill_exit(const struct vmcb *vmcb, struct vm_exit *exit)
{
    u64 code = vmcb->exitcode;
    const struct exit_row *row =
        likely(code < SVM_EXIT_ROWS) ? &svm_exit_rows[code] : svm_find_exit_row(code);
    u32 flags = row->flags;

    exit_begin(exit, row->kind);
    exit->raw_reason = code;
    exit->raw_info1 = vmcb->exitinfo1;
    exit->raw_info2 = vmcb->exitinfo2;
    if (svm_has(SVM_FEATURE_NRIPS) && (flags & INSN) && svm_insn_length(vmcb)) {
        exit->next_rip = vmcb->nrip;
        exit->insn_len = svm_insn_length(vmcb);
        flags &= ~(u32)INSN;
    }
    if (row->fill)
        row->fill(vmcb, exit);
    if (likely(!(vmcb->exitintinfo & SVM_EVENT_V)))
        return flags;
    svm_fill_interrupted(vmcb, &exit->interrupted);
    return flags | ADJUST;
}
