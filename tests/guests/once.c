// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// An interrupt comes once, however long its handler runs without an exit, and whatever deadlines
// pass meanwhile: to the guest, and to an L2 into which it is injected (APM vol. 2, 15.20).

#include "svm.h"

enum { LONG = 3000000, WITHIN = 500000, VECTOR = 0x60 };

static volatile u32 entered, deepest, depth;

static void on_long(struct trap *trap)
{
    (void)trap;
    entered++;
    depth++;
    deepest = MAX(deepest, depth);
    for (u32 i = 0; i < LONG / 2; i++)
        __asm__ volatile("");
    depth--;
    apic_eoi();
}

static void test_own(void)
{
    trap_handlers[VECTOR] = on_long;
    start_timer(WITHIN);
    sti();
    apic_icr(0, ICR_SELF | ICR_ASSERT | VECTOR);
    wait_for(&timer_count, 1, 100);
    cli();
    report(entered == 1 && deepest == 1, "one IPI, one interrupt: %u, %u deep", entered, deepest);
    report(timer_count == 1, "and the timer's behind it: %u", timer_count);
}

L2(l2_at_first, "nop; vmmcall");
L2(l2_long, "incq l2_entered(%rip); mov $1500000, %ecx; 1: dec %ecx; jnz 1b; vmmcall");
u64 l2_entered;

static void test_l2(u64 rflags)
{
    l2_init(l2_at_first);
    l2_entered = 0;
    make_gate(&l2_idt[2 * VECTOR], l2_long, CODE64, 0, GATE_INTERRUPT);
    vmcb->v_ctl = SVM_V_INTR_MASKING;
    vmcb->rflags |= rflags;
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR;
    vmcb->eventinj = VECTOR | SVM_EVENT_INTR << SVM_EVENT_TYPE_SHIFT | SVM_EVENT_V;
    start_timer(WITHIN);
    do {
        clgi();
        sti();
        svm_run((u64)vmcb);
        stgi();
        pause();
        cli();
    } while (vmcb->exitcode == VMEXIT_INTR);
    // QEMU 7.2 keeps the vector, and delivers it again when it next has something else to do
    report_known(MACHINE_QEMU,
                 vmcb->exitcode == VMEXIT_VMMCALL && timer_count == 1 && l2_entered == 1,
                 "one injected with IF = %u: EXITCODE %#llx, %llu times", rflags != 0,
                 LLU(vmcb->exitcode), LLU(l2_entered));
}

void guest_main(void)
{
    l1_prepare(VMMCALL);
    test_own();
    if (!svm_start()) {
        report_skip("no SVM");
        return;
    }
    test_l2(RFLAGS_IF);
    test_l2(0);
}
