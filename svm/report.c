// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The raw VMCB in the log, for a guest's end: what the neutral report of core does not show.

#include <nestor/log.h>

#include "svm.h"

typedef unsigned long long ull;

static void report_vmcb(const struct vcpu *vcpu, unsigned level)
{
    const struct vmcb *v = vcpu->ctx[level].hw->vmcb;

    log_error("VMCB of level %u at %#llx: EXITCODE %#llx EXITINFO1 %#llx EXITINFO2 %#llx "
              "EXITINTINFO %#llx",
              level, (ull)vcpu->ctx[level].hw->vmcb_pa, (ull)v->exitcode, (ull)v->exitinfo1,
              (ull)v->exitinfo2, (ull)v->exitintinfo);
    log_error("  intercepts CR %#x DR %#x exceptions %#x %#x %#x %#x", v->intercept[SVM_WORD_CR],
              v->intercept[SVM_WORD_DR], v->intercept[SVM_WORD_EXCEPTIONS],
              v->intercept[SVM_WORD_3], v->intercept[SVM_WORD_4], v->intercept[SVM_WORD_5]);
    log_error("  ASID %u nCR3 %#llx IOPM %#llx MSRPM %#llx TSC offset %#llx nRIP %#llx "
              "shadow %llu V_IRQ %u",
              v->guest_asid, (ull)v->n_cr3, (ull)v->iopm_base_pa, (ull)v->msrpm_base_pa,
              (ull)v->tsc_offset, (ull)v->nrip, (ull)v->interrupt_shadow, v->v_irq);
    log_error(
        "  CR0 %#llx CR3 %#llx CR4 %#llx CR2 %#llx EFER %#llx PAT %#llx DR6 %#llx DR7 %#llx CPL %u",
        (ull)v->cr0, (ull)v->cr3, (ull)v->cr4, (ull)v->cr2, (ull)v->efer, (ull)v->g_pat,
        (ull)v->dr6, (ull)v->dr7, v->cpl);
}

static void report_segments(const struct vmcb *vmcb)
{
    static const char names[][5] = {"ES", "CS",   "SS",   "DS",   "FS",
                                    "GS", "GDTR", "LDTR", "IDTR", "TR"};
    const struct vmcb_segment *seg = &vmcb->es;

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        log_error("  %-4s %04x attrib %03x limit %08x base %016llx", names[i], seg[i].selector,
                  seg[i].attrib, seg[i].limit, (ull)seg[i].base);
}

void svm_report(struct vcpu *vcpu)
{
    for (unsigned level = 0; level < 2; level++)
        if (vcpu->ctx[level].hw)
            report_vmcb(vcpu, level);
    report_segments(vcpu->cur->hw->vmcb);
}
