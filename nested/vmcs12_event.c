// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Events at an L2's instruction boundaries that its L1 may want: INIT, SIPI, NMI, interrupts and
// their windows, the preemption timer, MTF (SDM vol. 3 "Other Causes of VM Exits", "VM Entries":
// "Special Features"). When, is core/event.c's.

#include "vmcs12_switch.h"
#include <arch/x86/regs.h>
#include <nestor/device.h>

enum nested_answer vmcs12_event(struct vcpu *vcpu, enum nested_event event)
{
    struct nested *n = vcpu->nested;
    u64 pin = vmcs12_read(n, PIN_BASED_CONTROLS);
    struct vm_exit exit = {.kind = EXIT_NONE};
    const struct guest_state *s = vcpu_state(vcpu, GROUP_RIP | GROUP_BLOCKING);

    switch (event) {
    case NESTED_INIT: // an L1 in VMX operation takes INIT as an exit of L2
        vmcs12_exit(vcpu, REASON_INIT, 0, &exit);
        return NESTED_EXITED;
    case NESTED_NMI:
        if (!(pin & PIN_NMI) || (s->interruptibility & (BLOCK_NMI | BLOCK_MOV_SS)))
            return NESTED_DELIVER; // or waits for its window
        vcpu->events.nmi_count--;
        exit.kind = EXIT_NMI;
        exit.event = (struct event){.valid = true, .vector = VECTOR_NMI, .type = EVENT_NMI};
        vmcs12_exit(vcpu, REASON_EXCEPTION_NMI, 0, &exit);
        vcpu_modify(vcpu, GROUP_BLOCKING)->interruptibility |= BLOCK_NMI;
        return NESTED_EXITED;
    case NESTED_INTERRUPT:
        if (!(pin & PIN_EXTERNAL_INTERRUPT))
            return NESTED_DELIVER;
        if ((s->rflags & RFLAGS_IF) && (s->interruptibility & (BLOCK_STI | BLOCK_MOV_SS)))
            return NESTED_DELIVER; // waits for its window
        if (vmcs12_read(n, EXIT_CONTROLS) & EXIT_CTL_ACK_INTERRUPT) {
            int vector = irq_ack(vcpu);

            exit.kind = EXIT_EXTERNAL_INTERRUPT;
            exit.event =
                (struct event){.valid = vector >= 0, .vector = (u8)vector, .type = EVENT_INTERRUPT};
        }
        vmcs12_exit(vcpu, REASON_EXTERNAL_INTERRUPT, 0, &exit);
        return NESTED_EXITED;
    default:
        return NESTED_DELIVER;
    }
}
