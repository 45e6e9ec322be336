// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Events while an L2 runs on SVM: what exits to L1, what L2 takes, and L1's virtual interrupts for
// it (APM vol. 2, 15.12 exception intercepts; 15.13 interrupt intercepts; 15.21 "Interrupt and
// Local APIC Support"; 15.33 virtual GIF). core/event.c asks in its order.

#include "vmcb12.h"
#include <arch/x86/regs.h>
#include <nestor/decode.h>

static bool masks_interrupts(const struct vcpu *vcpu)
{
    return vcpu->nested->vmcb.v_ctl & SVM_V_INTR_MASKING;
}

// INT n is no exception, whatever its vector; nor is INT1 (15.12.2).
bool vmcb12_wants_exception(struct vcpu *vcpu, const struct event *event)
{
    u64 info2 = event->vector == VECTOR_PF ? event->payload : 0;
    bool insn = event->type == EVENT_SOFT_EXCEPTION; // INT3, INTO: nRIP counts (15.7.1)
    struct vm_exit exit = {.insn_len = event->insn_len ? event->insn_len : 1};
    struct guest_state *s;
    struct insn bound;

    if (event->type == EVENT_SOFT_INTERRUPT || event->type == EVENT_INT1 ||
        !vmcb12_intercepts(vcpu, SVM_WORD_EXCEPTIONS, 1u << event->vector))
        return false;
    if (event->vector == VECTOR_DB &&
        event->has_payload) { // DR6 and DR7 are what the handler would see ("#DB (Debug)")
        s = vcpu_modify(vcpu, GROUP_DR6 | GROUP_DEBUG);
        vcpu->dr6 = event_db_dr6(vcpu->dr6, event->payload);
        s->dr7 &= ~DR7_GD;
    }
    if (event->vector == VECTOR_BR && insn_peek_current(vcpu, &bound)) { // so with BOUND
        insn = true;
        exit.insn_len = bound.length;
    }
    vmcb12_exit(vcpu, (u64)VMEXIT_EXCP0 + event->vector, event->has_error ? event->error : 0, info2,
                insn ? &exit : NULL);
    return true;
}

static enum nested_answer exit_if(struct vcpu *vcpu, u32 bit, u64 code)
{
    if (!vmcb12_intercepts(vcpu, SVM_WORD_3, bit))
        return NESTED_DELIVER;
    vmcb12_exit(vcpu, code, 0, 0, NULL);
    return NESTED_EXITED;
}

// Physical interrupts: with V_INTR_MASKING L1's IF counts and L2's does not, whether they exit or
// not (15.21.1). An interrupt shadow holds no exit up.
static enum nested_answer interrupt(struct vcpu *vcpu)
{
    enum nested_answer answer;

    if (masks_interrupts(vcpu) && !vcpu->nested->host_if)
        return NESTED_BLOCKED;
    if (!masks_interrupts(vcpu) && !(vcpu_state(vcpu, GROUP_RIP)->rflags & RFLAGS_IF))
        return NESTED_DELIVER; // opens a window
    answer = exit_if(vcpu, SVM_INTERCEPT_INTR, VMEXIT_INTR);
    if (answer == NESTED_DELIVER && masks_interrupts(vcpu))
        return NESTED_DELIVER_OPEN;
    return answer;
}

static enum nested_answer virtual_interrupt(struct vcpu *vcpu)
{
    enum nested_answer answer = exit_if(vcpu, SVM_INTERCEPT_VINTR, VMEXIT_VINTR);

    if (answer == NESTED_DELIVER) {
        vcpu->nested->vmcb.v_irq &= (u8)~SVM_V_IRQ;
        vmcb12_note_virtual(vcpu);
    }
    return answer;
}

// What has made the exit stays pending for L1, until its STGI (15.13).
static enum nested_answer init(struct vcpu *vcpu)
{
    enum nested_answer answer = exit_if(vcpu, SVM_INTERCEPT_INIT, VMEXIT_INIT);

    vcpu->events.init = answer == NESTED_EXITED;
    return answer;
}

enum nested_answer vmcb12_event(struct vcpu *vcpu, enum nested_event event)
{
    switch (event) {
    case NESTED_SMI:
        return exit_if(vcpu, SVM_INTERCEPT_SMI, VMEXIT_SMI);
    case NESTED_INIT:
        return init(vcpu);
    case NESTED_NMI: // an IRET of L1's or L2's ends the blocking, and then it exits
        if (vcpu_state(vcpu, GROUP_BLOCKING)->interruptibility & BLOCK_NMI)
            return NESTED_DELIVER;
        return exit_if(vcpu, SVM_INTERCEPT_NMI, VMEXIT_NMI);
    case NESTED_INTERRUPT:
        return interrupt(vcpu);
    case NESTED_VIRTUAL_INTERRUPT:
        return virtual_interrupt(vcpu);
    default:
        return NESTED_DELIVER;
    }
}

// --- virtual interrupts ---

void vmcb12_note_virtual(struct vcpu *vcpu)
{
    vcpu->events.nested_check = vcpu->nested->vmcb.v_irq & SVM_V_IRQ;
}

int vmcb12_virtual_interrupt(struct vcpu *vcpu)
{
    const struct vmcb *v = &vcpu->nested->vmcb;

    if (!(v->v_irq & SVM_V_IRQ) || (vmcb12_vgif(vcpu) && !(v->v_irq & SVM_V_GIF)))
        return -E_NOENT;
    if (!(v->v_prio & SVM_V_IGN_TPR) && (v->v_prio & 0xf) <= (v->v_tpr & 0xf))
        return -E_NOENT;
    return v->v_intr_vector;
}

bool vmcb12_cr8(struct vcpu *vcpu, bool write, u64 *value)
{
    struct vmcb *v = &vcpu->nested->vmcb;

    if (!masks_interrupts(vcpu))
        return false;
    if (write)
        v->v_tpr = (u8)(*value & 0xf);
    else
        *value = v->v_tpr & 0xf;
    return true;
}
