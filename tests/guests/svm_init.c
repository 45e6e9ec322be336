// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What INIT leaves of SVM, and its redirection (APM vol. 2, 14.1.3 "Processor Initialization
// State", 15.17, 15.30.1 VM_CR, 15.30.4 VM_HSAVE_PA): EFER and SVMDIS are cleared, the latter
// unless LOCK holds it, VM_HSAVE_PA and the rest of VM_CR stay; with R_INIT set an INIT becomes
// #SX.

#include "svm.h"

enum { PAGE = 8, HSAVE = 0x123000 };

static volatile u32 ready;
static u64 seen_efer, seen_hsave, seen_vm_cr;

// --- on CPU 1 ---

static void prepare(void *vm_cr)
{
    msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_SVME);
    msr_write(MSR_VM_HSAVE_PA, HSAVE);
    clgi();
    stgi();
    msr_write(MSR_EFER, msr_read(MSR_EFER) & ~(u64)EFER_SVME);
    msr_write(MSR_VM_CR, (u64)vm_cr);
    if (!((u64)vm_cr & VM_CR_SVMDIS))
        msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_SVME);
    ready = 1;
    for (;;)
        pause();
}

static void look(void *unused)
{
    (void)unused;
    seen_efer = msr_read(MSR_EFER);
    seen_hsave = msr_read(MSR_VM_HSAVE_PA);
    seen_vm_cr = msr_read(MSR_VM_CR);
}

// --- on CPU 0 ---

// The library's trampoline gives CPU 1 the next number each time.
static void test_init(u32 number, u64 before, u64 after)
{
    u32 id = cpu_apic_ids[number];

    ready = 0;
    smp_call(number, prepare, (void *)before);
    if (!wait_for(&ready, 1, 1000)) {
        report(false, "CPU %u takes VM_CR %#llx", number, LLU(before));
        return;
    }
    apic_icr(id, ICR_INIT | ICR_ASSERT | ICR_LEVEL);
    apic_icr(id, ICR_INIT | ICR_LEVEL);
    delay_us(20000);
    apic_icr(id, ICR_SIPI | ICR_ASSERT | PAGE);
    if (!wait_for(&cpus_online, number + 2, 1000)) {
        report(false, "CPU %u starts again", number);
        return;
    }
    smp_call(number + 1, look, NULL);
    smp_wait(number + 1);
    report(!(seen_efer & EFER_SVME), "INIT clears EFER.SVME: %#llx", LLU(seen_efer));
    report(seen_hsave == HSAVE, "but not VM_HSAVE_PA: %#llx", LLU(seen_hsave));
    // QEMU 7.2 keeps no VM_CR
    report_known(MACHINE_QEMU, seen_vm_cr == after, "VM_CR %#llx is %#llx then, expected %#llx",
                 LLU(before), LLU(seen_vm_cr), LLU(after));
}

// --- redirection ---

volatile u32 sx_count;
u64 sx_error;
// RSP is a multiple of 16 before the CPU pushes five words, or six with an error code.
extern char sx_stub[];
__asm__(".pushsection .text; sx_stub: test $8, %spl; jnz 1f; pop sx_error; 1: incl sx_count;"
        "iretq; .popsection");

L2(l2_nops, "nop; nop; vmmcall");

static void send_init(void)
{
    apic_icr(apic_id(), ICR_INIT | ICR_ASSERT | ICR_LEVEL);
    apic_icr(apic_id(), ICR_INIT | ICR_LEVEL);
}

static void test_redirection(void)
{
    if (bare_machine() == MACHINE_QEMU || !svm_start()) {
        report_skip("QEMU 7.2 has no VM_CR, and resets the machine");
        return;
    }
    set_gate(VECTOR_SX, sx_stub, CODE64, 0, GATE_INTERRUPT);
    msr_write(MSR_VM_CR, VM_CR_R_INIT);
    send_init();
    report(wait_for(&sx_count, 1, 10), "VM_CR.R_INIT: INIT is #SX");
    // QEMU 7.2 pushes none for this vector
    report_cpu(MACHINE_QEMU, sx_error == 1, "its error code is %llu", LLU(sx_error));
    clgi();
    send_init();
    delay_us(100);
    report(sx_count == 1, "GIF holds it up");
    l2_init(l2_nops);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INIT;
    svm_run((u64)vmcb);
    report_vmexit(vmcb->exitcode == VMEXIT_INIT && sx_count == 1,
                  "L2's intercept of INIT goes first");
    stgi();
    report(wait_for(&sx_count, 2, 10), "and L1 has its #SX at STGI: %u", sx_count);
    l2_init(l2_nops);
    clgi();
    send_init();
    svm_run((u64)vmcb);
    stgi();
    report_vmexit(l2_in_handler(VECTOR_SX), "without it, L2 has the #SX");
    l2_init(l2_nops);
    vmcb->intercept[SVM_WORD_EXCEPTIONS] = BIT(VECTOR_SX);
    clgi();
    send_init();
    svm_run((u64)vmcb);
    stgi();
    report_vmexit(vmcb->exitcode == VMEXIT_EXCP0 + VECTOR_SX && vmcb->exitinfo1 == 1,
                  "or L1, which intercepts that");
    msr_write(MSR_VM_CR, 0);
}

void guest_main(void)
{
    if (!(cpuid(0x80000001, 0).ecx & BIT(2))) {
        report_skip("no SVM");
        return;
    }
    test_redirection();
    report(smp_start(2), "%u CPUs, expected 2", cpus_online);
    if (cpus_online < 2)
        return;
    test_init(1, BIT(2), BIT(2));
    test_init(2, VM_CR_SVMDIS, 0);
    test_init(3, VM_CR_SVMDIS | VM_CR_LOCK, VM_CR_SVMDIS | VM_CR_LOCK);
}
