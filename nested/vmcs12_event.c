// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Events at an L2's instruction boundaries that its L1 may want: INIT, SIPI, NMI, interrupts and
// their windows, the preemption timer, MTF (SDM vol. 3 "Other Causes of VM Exits", "VM Entries":
// "Special Features"). When, is core/event.c's.

#include "vmcs12_switch.h"
#include <arch/x86/regs.h>
#include <nestor/cpu.h>
#include <nestor/device.h>

// --- the VMX-preemption timer ---

// It counts with L1's TSC (0 in IA32_VMX_MISC[4:0]).
static u64 timer_now(struct vcpu *vcpu)
{
    return vcpu_guest_tsc(vcpu, tsc_now());
}

static bool timer_used(const struct vcpu *vcpu)
{
    return vmcs12_read(vcpu->nested, PIN_BASED_CONTROLS) & PIN_PREEMPTION_TIMER;
}

static void timer_fired(struct timer *timer)
{
    vcpu_post(CONTAINER_OF(timer, struct vcpu, l2_timer), REQUEST_EVENT);
}

// The end is kept in L1's ticks; the host's timer only wakes the run loop.
void vmcs12_timer_start(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    u64 left = vmcs12_read(n, PREEMPTION_TIMER_VALUE);

    if (!timer_used(vcpu))
        return;
    n->timer_end = timer_now(vcpu) + left;
    if (vcpu->vm->tsc_multiplier)
        left = mul_div(left, tsc_hz, vcpu->vm->tsc_hz) + 1;
    vcpu->l2_timer.fn = timer_fired;
    timer_arm(&vcpu->l2_timer, vcpu->cpu->id, tsc_now() + left);
}

void vmcs12_timer_stop(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    u64 now;

    if (!timer_used(vcpu))
        return;
    now = timer_now(vcpu);
    if (vmcs12_read(n, EXIT_CONTROLS) & EXIT_CTL_SAVE_TIMER)
        vmcs12_write(n, PREEMPTION_TIMER_VALUE, now < n->timer_end ? n->timer_end - now : 0);
}

// --- the boundary ---

static enum nested_answer leave(struct vcpu *vcpu, u32 reason, u64 qualification)
{
    struct vm_exit exit = {.kind = EXIT_NONE};

    vmcs12_exit(vcpu, reason, qualification, &exit);
    return NESTED_EXITED;
}

static bool wants(const struct vcpu *vcpu, u32 primary)
{
    return vmcs12_read(vcpu->nested, PRIMARY_CONTROLS) & primary;
}

static enum nested_answer on_init(struct vcpu *vcpu)
{
    if (vcpu->cur->state.activity != ACTIVITY_WAIT_SIPI)
        return leave(vcpu, REASON_INIT, 0);
    vcpu->events.init = true; // blocked
    return NESTED_BLOCKED;
}

static bool timer_expired(struct vcpu *vcpu)
{
    return timer_used(vcpu) && timer_now(vcpu) >= vcpu->nested->timer_end;
}

// Windows of a halted L2 are open or not as it stands: it is not entered.
static enum nested_answer before_nmi(struct vcpu *vcpu)
{
    const struct guest_state *s;

    if (vmcs12_tpr_exit_due(vcpu))
        return leave(vcpu, REASON_TPR_BELOW_THRESHOLD, 0);
    if (timer_expired(vcpu))
        return leave(vcpu, REASON_PREEMPTION_TIMER, 0);
    if (!wants(vcpu, PRIMARY_NMI_WINDOW))
        return NESTED_DELIVER;
    s = vcpu_state(vcpu, GROUP_BLOCKING);
    if (s->interruptibility & (BLOCK_NMI | BLOCK_MOV_SS | BLOCK_STI))
        return NESTED_DELIVER;
    return leave(vcpu, REASON_NMI_WINDOW, 0);
}

static enum nested_answer on_nmi(struct vcpu *vcpu)
{
    u64 pin = vmcs12_read(vcpu->nested, PIN_BASED_CONTROLS);
    u32 blocked = vcpu_state(vcpu, GROUP_BLOCKING)->interruptibility & (BLOCK_NMI | BLOCK_MOV_SS);
    struct vm_exit exit = {.kind = EXIT_NMI,
                           .event = {.valid = true, .vector = VECTOR_NMI, .type = EVENT_NMI}};

    if (vcpu->nested->nmis_stay_blocked)
        return NESTED_BLOCKED;
    // Virtual NMIs: blocked by MOV SS only. Behind both kinds of blocking no window would open.
    if ((pin & PIN_VIRTUAL_NMIS) && (blocked & BLOCK_NMI))
        blocked = 0;
    if (!(pin & PIN_NMI) || blocked)
        return NESTED_DELIVER; // or waits for its window
    vcpu->events.nmi_count--;
    vmcs12_exit(vcpu, REASON_EXCEPTION_NMI, 0, &exit);
    vcpu_modify(vcpu, GROUP_BLOCKING)->interruptibility |= BLOCK_NMI;
    return NESTED_EXITED;
}

static bool interrupts_open(struct vcpu *vcpu)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_RIP | GROUP_BLOCKING);

    return (s->rflags & RFLAGS_IF) && !(s->interruptibility & (BLOCK_STI | BLOCK_MOV_SS)) &&
           s->activity <= ACTIVITY_HLT;
}

static enum nested_answer before_interrupt(struct vcpu *vcpu)
{
    if (wants(vcpu, PRIMARY_INTERRUPT_WINDOW) && interrupts_open(vcpu))
        return leave(vcpu, REASON_INTERRUPT_WINDOW, 0);
    return NESTED_DELIVER;
}

static enum nested_answer on_interrupt(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    const struct guest_state *s = vcpu_state(vcpu, GROUP_RIP | GROUP_BLOCKING);
    struct vm_exit exit = {.kind = EXIT_NONE};

    if (s->activity == ACTIVITY_SHUTDOWN)
        return NESTED_BLOCKED;
    if (!(vmcs12_read(n, PIN_BASED_CONTROLS) & PIN_EXTERNAL_INTERRUPT))
        return NESTED_DELIVER;
    if ((s->rflags & RFLAGS_IF) && (s->interruptibility & (BLOCK_STI | BLOCK_MOV_SS)))
        return NESTED_DELIVER; // waits for its window
    if (vmcs12_read(n, EXIT_CONTROLS) & EXIT_CTL_ACK_INTERRUPT) {
        int vector = irq_ack(vcpu);

        if (vmcs12_is_posted(vcpu, vector)) {
            vmcs12_take_posted(vcpu);
            return NESTED_BLOCKED;
        }
        exit.kind = EXIT_EXTERNAL_INTERRUPT;
        exit.event =
            (struct event){.valid = vector >= 0, .vector = (u8)vector, .type = EVENT_INTERRUPT};
    }
    vmcs12_exit(vcpu, REASON_EXTERNAL_INTERRUPT, 0, &exit);
    return NESTED_EXITED;
}

enum nested_answer vmcs12_event(struct vcpu *vcpu, enum nested_event event)
{
    vcpu->nested->exit_tsc = tsc_now();
    switch (event) {
    case NESTED_INIT:
        return on_init(vcpu);
    case NESTED_SIPI:
        return leave(vcpu, REASON_SIPI, vcpu->events.sipi_vector);
    case NESTED_MTF:
        return leave(vcpu, REASON_MTF, 0);
    case NESTED_BEHIND_INJECTION:
        return timer_expired(vcpu) || !vcpu->nested->tpr_checked ? NESTED_BLOCKED : NESTED_DELIVER;
    case NESTED_BEFORE_NMI:
        return before_nmi(vcpu);
    case NESTED_NMI:
        return on_nmi(vcpu);
    case NESTED_BEFORE_INTERRUPT:
        return before_interrupt(vcpu);
    case NESTED_INTERRUPT:
        return on_interrupt(vcpu);
    case NESTED_VIRTUAL_INTERRUPT:
        vmcs12_virtual_taken(vcpu);
        return NESTED_DELIVER;
    default:
        return NESTED_DELIVER;
    }
}
