// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Where the machines that play AMD depart from the manual, as far as the back end has to know it:
// QEMU 7.2 (TCG) and Bochs 2.7. Elsewhere the code is the manual's (APM vol. 2 chapter 15) and asks
// here. What a CPU of silicon never does is either behind a flag that svm_probe_quirks sets, or
// reads a value that silicon does not give.
//
// Two more need no rule here, since core decodes the instruction where it matters: QEMU's RDTSCP
// exits as RDTSC and its INVD as WBINVD; its INT3 and INTO come as INTn, also in EXITINTINFO
// (15.7.2, 15.9, 15.12.4, 15.12.5).

#pragma once

#include <arch/x86/regs.h>

#include "svm.h"

extern bool svm_forgets_shadow;
extern bool svm_repeats_injection;

// Sets both, by the hypervisor leaf of QEMU's own.
void svm_probe_quirks(void);

// QEMU's WRMSR takes addresses that are not canonical, where the APM (vol. 3, "WRMSR") has #GP.
// Such writes exit then, and core/msr.c looks at them. Tried on the CPU itself.
bool svm_wrmsr_checks_addresses(void);

// QEMU remembers the vector of an interrupt in EVENTINJ until the next exit and, if it has to leave
// its loop before (the end of an icount slice, another thread's request), delivers it once more,
// whatever IF is; 15.20 wants it once. So an exit has to follow at once, which forgets the vector.
// Shown by tests/guests/once.c.
static inline bool svm_may_come_twice(const struct event *event)
{
    return svm_repeats_injection && event->valid && event->type == EVENT_INTERRUPT;
}

// QEMU's VMRUN does not load the VMCB's interrupt shadow (15.21.5). Shown by
// tests/guests/svm_events.c. These are the causes of one that this entry loses.
static inline u32 svm_lost_shadow(const struct vcpu_ctx *ctx)
{
    return svm_forgets_shadow ? ctx->state.interruptibility & (BLOCK_STI | BLOCK_MOV_SS) : 0;
}

// Whether an interrupt window would open too early by that: one instruction is to be stepped over
// instead.
static inline bool svm_window_needs_step(const struct vcpu_ctx *ctx)
{
    return svm_forgets_shadow && ctx->ctl.interrupt_window && !ctx->ctl.inject.valid &&
           (ctx->state.rflags & RFLAGS_IF) &&
           (ctx->state.interruptibility & (BLOCK_STI | BLOCK_MOV_SS));
}

// In EXITINTINFO QEMU gives what it took from V_IRQ the type of an exception, with a vector that is
// none; 15.7.2 has type 0, an interrupt.
static inline void svm_name_interrupted(const struct vcpu_ctx *ctx, struct event *event)
{
    if (svm_repeats_injection && ctx->ctl.offer && event->valid && event->type == EVENT_EXCEPTION &&
        event->vector == ctx->ctl.offer)
        *event = (struct event){.valid = true, .vector = ctx->ctl.offer, .type = EVENT_INTERRUPT};
}

// V_IRQ is 0 once the guest has taken the interrupt (15.21.4). QEMU takes it away only behind the
// delivery; where an exit interrupts that, EXITINTINFO tells, unless it was EVENTINJ's.
static inline bool svm_offer_taken(const struct vcpu_ctx *ctx, const struct vm_exit *exit)
{
    const struct event *event = &exit->interrupted, *injected = &ctx->ctl.inject;
    u8 offer = ctx->ctl.offer;

    if (!offer || !(ctx->hw->vmcb->v_irq & SVM_V_IRQ))
        return offer;
    return event->valid && event->type == EVENT_INTERRUPT && event->vector == offer &&
           !(injected->valid && injected->vector == offer);
}

// QEMU stores only the low half of VMEXIT_INVALID (appendix C: -1, EXITCODE has 64 bits).
static inline bool svm_is_invalid(u64 code)
{
    return code == VMEXIT_INVALID || code == (u32)VMEXIT_INVALID;
}

// What DR6 tells of a #DB that exited (15.12.2: DR6 and DR7 are as the handler would see them).
// Bochs leaves DR6 as it was, so no cause at all means a single step.
static inline u64 svm_debug_causes(u64 payload)
{
    return payload ? payload : DR6_BS;
}
