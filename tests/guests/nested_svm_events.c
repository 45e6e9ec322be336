// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Events of a small L1's L2: exceptions that are intercepted and those that go to L2's own
// handlers, EVENTINJ and deliveries that are interrupted, GIF, interrupts and NMIs (APM vol. 2,
// 15.12, 15.17, 15.20, 15.21). What is rarer is in svm_events.

#include "svm.h"

// --- exceptions ---

L2(l2_ud, "ud2");
L2(l2_read, "mov (%rdi), %eax; vmmcall");
L2(l2_load_ds, "mov %edi, %ds; vmmcall");
L2(l2_int3, "int3; l2_after_int3: vmmcall");
L2(l2_nops, "nop; nop; vmmcall");
L2(l2_hlt_user, "hlt");
extern char l2_after_int3[];

static u64 run_intercepted(const void *code, unsigned vector, u64 rdi)
{
    l2_init(code);
    vmcb->intercept[SVM_WORD_EXCEPTIONS] = 1u << vector;
    vmcb->cr2 = 0x1234;
    l2_registers[RDI] = rdi;
    return l2_run();
}

static void test_intercepted_exceptions(void)
{
    u64 code = run_intercepted(l2_ud, VECTOR_UD, 0);

    report(code == VMEXIT_EXCP0 + VECTOR_UD && l2_at(l2_ud), "#UD: EXITCODE %#llx", LLU(code));
    code = run_intercepted(l2_read, VECTOR_PF, UNMAPPED + 8);
    report(code == VMEXIT_EXCP0 + VECTOR_PF && l2_at(l2_read) && vmcb->exitinfo1 == 0 &&
               vmcb->exitinfo2 == UNMAPPED + 8,
           "#PF: EXITCODE %#llx, error %#llx, address %#llx", LLU(code), LLU(vmcb->exitinfo1),
           LLU(vmcb->exitinfo2));
    // QEMU 7.2 writes CR2 before it looks at the intercept
    report_cpu(MACHINE_QEMU, vmcb->cr2 == 0x1234, "an intercepted #PF leaves CR2 alone: %#llx",
               LLU(vmcb->cr2));
    code = run_intercepted(l2_read, VECTOR_GP, BAD_ADDRESS);
    report(code == VMEXIT_EXCP0 + VECTOR_GP && l2_at(l2_read) && vmcb->exitinfo1 == 0,
           "#GP(0): EXITCODE %#llx", LLU(code));
    code = run_intercepted(l2_load_ds, VECTOR_GP, 0x1f8);
    report(code == VMEXIT_EXCP0 + VECTOR_GP && l2_at(l2_load_ds) && vmcb->exitinfo1 == 0x1f8,
           "#GP(selector): EXITCODE %#llx, error %#llx", LLU(code), LLU(vmcb->exitinfo1));
    // QEMU 7.2 takes INT3 for INT n and asks no exception intercept
    code = run_intercepted(l2_int3, VECTOR_BP, 0);
    report_cpu(MACHINE_QEMU, code == VMEXIT_EXCP0 + VECTOR_BP && l2_at(l2_int3),
               "#BP: EXITCODE %#llx", LLU(code));
    l2_init(l2_nops);
    vmcb->intercept[SVM_WORD_EXCEPTIONS] = 1u << VECTOR_DB;
    vmcb->rflags |= RFLAGS_TF;
    code = l2_run();
    report(code == VMEXIT_EXCP0 + VECTOR_DB && l2_at(l2_nops + 1) && (vmcb->dr6 & DR6_BS),
           "#DB: EXITCODE %#llx, DR6 %#llx", LLU(code), LLU(vmcb->dr6));
    l2_init(l2_hlt_user);
    vmcb->intercept[SVM_WORD_EXCEPTIONS] = 1u << VECTOR_GP;
    set_segment(&vmcb->cs, USER_CODE64, 0xafb);
    set_segment(&vmcb->ss, USER_DATA, 0xcf3);
    vmcb->cpl = 3;
    code = l2_run();
    report(code == VMEXIT_EXCP0 + VECTOR_GP && vmcb->cpl == 3,
           "HLT at CPL 3: #GP comes before the intercept, EXITCODE %#llx", LLU(code));
}

static void test_own_exceptions(void)
{
    l2_run_code(l2_ud);
    report(l2_in_handler(VECTOR_UD) && l2_pushed(0) == (u64)l2_ud && l2_pushed(1) == CODE64 &&
               l2_pushed(3) == (u64)(l2_stack + sizeof(l2_stack)) && l2_pushed(4) == DATA,
           "#UD goes to L2's own handler");
    l2_init(l2_read);
    l2_registers[RDI] = UNMAPPED + 16;
    l2_run();
    report(l2_in_handler(VECTOR_PF) && l2_pushed(0) == 0 && l2_pushed(1) == (u64)l2_read &&
               vmcb->cr2 == UNMAPPED + 16,
           "#PF goes to L2's own handler, CR2 %#llx", LLU(vmcb->cr2));
    l2_run_code(l2_int3);
    report(l2_in_handler(VECTOR_BP) && l2_pushed(0) == (u64)l2_after_int3,
           "INT3 goes to L2's own handler");
    l2_init(l2_ud);
    vmcb->idtr.limit = 0;
    report_vmexit(l2_run() == VMEXIT_SHUTDOWN, "a triple fault");
    l2_init(l2_ud);
    vmcb->idtr.limit = 0;
    vmcb->intercept[SVM_WORD_EXCEPTIONS] = 1u << VECTOR_DF;
    // QEMU 7.2 asks no exception intercept for #DF
    report_cpu(MACHINE_QEMU, l2_run() == VMEXIT_EXCP0 + VECTOR_DF && vmcb->exitinfo1 == 0,
               "a double fault exits");
}

// --- event injection ---

static void run_injected(u64 type, unsigned vector, u64 more)
{
    l2_init(l2_nops);
    vmcb->cr2 = 0x5678;
    vmcb->eventinj = vector | type << SVM_EVENT_TYPE_SHIFT | SVM_EVENT_V | more;
    l2_run();
}

static void test_injection(void)
{
    run_injected(SVM_EVENT_EXCEPTION, VECTOR_GP, SVM_EVENT_EV | 0x1234ull << 32);
    report(l2_in_handler(VECTOR_GP) && l2_pushed(0) == 0x1234 && l2_pushed(1) == (u64)l2_nops,
           "#GP(1234h) injected");
    report(!(vmcb->eventinj & SVM_EVENT_V), "#VMEXIT clears EVENTINJ.V");
    report(!(vmcb->exitintinfo & SVM_EVENT_V), "EXITINTINFO is not valid after it");
    run_injected(SVM_EVENT_EXCEPTION, VECTOR_PF, SVM_EVENT_EV | 2ull << 32);
    report(l2_in_handler(VECTOR_PF) && l2_pushed(0) == 2 && vmcb->cr2 == 0x5678,
           "#PF injected, CR2 is the VMCB's");
    run_injected(SVM_EVENT_EXCEPTION, VECTOR_UD, 0);
    report(l2_in_handler(VECTOR_UD) && l2_pushed(0) == (u64)l2_nops, "#UD injected");
    run_injected(SVM_EVENT_INTR, 0x40, 0);
    report(l2_in_handler(0x40) && l2_pushed(0) == (u64)l2_nops && !(l2_pushed(2) & RFLAGS_IF),
           "an interrupt injected, with IF = 0");
    run_injected(SVM_EVENT_NMI, VECTOR_NMI, 0);
    report(l2_in_handler(VECTOR_NMI) && l2_pushed(0) == (u64)l2_nops, "an NMI injected");
    run_injected(SVM_EVENT_SOFT_INT, 0x41, 0);
    report(l2_in_handler(0x41) && l2_pushed(0) == (u64)l2_nops, "INT n injected, RIP off by %lld",
           (long long)(l2_in_handler(0x41) ? l2_pushed(0) - (u64)l2_nops : 0));
    run_injected(SVM_EVENT_EXCEPTION, VECTOR_BP, 0);
    report(l2_in_handler(VECTOR_BP) && l2_pushed(0) == (u64)l2_nops,
           "#BP injected, RIP off by %lld",
           (long long)(l2_in_handler(VECTOR_BP) ? l2_pushed(0) - (u64)l2_nops : 0));
}

// A delivery that an intercepted exception interrupts is in EXITINTINFO.
static void test_interrupted_delivery(void)
{
    u64 gate = l2_idt[0x40 * 2];

    l2_idt[0x40 * 2] &= ~(1ull << 47);
    l2_init(l2_nops);
    vmcb->intercept[SVM_WORD_EXCEPTIONS] = 1u << VECTOR_NP;
    vmcb->eventinj = 0x40 | SVM_EVENT_V;
    l2_run();
    // QEMU 7.2 takes 16 times the vector for the error code of a gate in 64-bit mode
    report(vmcb->exitcode == VMEXIT_EXCP0 + VECTOR_NP && l2_at(l2_nops),
           "#NP while an interrupt is delivered: EXITCODE %#llx", LLU(vmcb->exitcode));
    report_cpu(MACHINE_QEMU, vmcb->exitinfo1 == 0x40 * 8 + 3, "its error code is %#llx",
               LLU(vmcb->exitinfo1));
    // QEMU 7.2 sets EXITINTINFO from EVENTINJ only
    report(vmcb->exitintinfo == (0x40 | SVM_EVENT_V), "EXITINTINFO %#llx", LLU(vmcb->exitintinfo));
    l2_idt[0x40 * 2] = gate;
    vmcb->eventinj = vmcb->exitintinfo;
    l2_run();
    report(l2_in_handler(0x40) && l2_pushed(0) == (u64)l2_nops,
           "it is delivered when L1 injects it again");
}

// --- GIF, interrupts ---

L2(l2_cpuid, "cpuid; vmmcall");
L2(l2_loop, "1: pause; jmp 1b");
L2(l2_count, "1: dec %rcx; jnz 1b; vmmcall");
L2(l2_sti_loop, "sti; 1: pause; jmp 1b");
L2(l2_halt, "sti; hlt; l2_after_halt: jmp .");
extern char l2_after_halt[];

static void test_gif(void)
{
    clgi();
    self_ipi();
    sti();
    for (unsigned i = 0; i < 100; i++)
        pause();
    report(ipi_count == 0, "CLGI holds an interrupt back");
    stgi();
    pause();
    report(ipi_count == 1, "STGI lets it come");
    cli();
    clgi();
    self_nmi();
    for (unsigned i = 0; i < 100; i++)
        pause();
    report(nmi_count == 0, "CLGI holds an NMI back");
    stgi();
    pause();
    report(nmi_count == 1, "STGI lets it come");
    // After an exit GIF is 0.
    l2_init(l2_cpuid);
    svm_run((u64)vmcb);
    self_ipi();
    sti();
    pause();
    report(vmcb->exitcode == VMEXIT_CPUID && ipi_count == 0, "#VMEXIT clears GIF");
    stgi();
    pause();
    report(ipi_count == 1, "the interrupt comes at STGI");
    cli();
}

// V_INTR_MASKING: L1's IF counts, L2's does not. SVM clears L1's IF while GIF is 0 only if L1 does.
static void test_interrupts(void)
{
    l2_init(l2_loop);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR;
    vmcb->v_ctl = SVM_V_INTR_MASKING;
    clgi();
    start_timer(100000);
    sti();
    svm_run((u64)vmcb);
    report(vmcb->exitcode == VMEXIT_INTR && vmcb->rip - (u64)l2_loop < 4 && timer_count == 0,
           "the timer while L2 runs with IF = 0: EXITCODE %#llx", LLU(vmcb->exitcode));
    report(!(vmcb->rflags & RFLAGS_IF), "L2's IF is its own");
    stgi();
    pause();
    report(timer_count == 1, "L1 takes the interrupt after STGI");
    cli();

    l2_init(l2_cpuid);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR;
    vmcb->v_ctl = SVM_V_INTR_MASKING;
    clgi();
    self_ipi();
    sti();
    svm_run((u64)vmcb);
    report(vmcb->exitcode == VMEXIT_INTR && l2_at(l2_cpuid),
           "an interrupt that waits exits before L2's first instruction: %#llx",
           LLU(vmcb->exitcode));
    stgi();
    pause();
    report(ipi_count == 1, "and is taken after STGI");
    cli();
}

// An interrupt waits while L1 injects an exception: the exception is delivered, then the interrupt
// exits before its handler starts.
static void test_injection_before_exit(void)
{
    l2_idt[VECTOR_GP * 2] |= 1ull << 40; // a trap gate
    l2_init(l2_nops);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR;
    vmcb->v_ctl = SVM_V_INTR_MASKING;
    vmcb->eventinj = VECTOR_GP | SVM_EVENT_EXCEPTION << SVM_EVENT_TYPE_SHIFT | SVM_EVENT_V |
                     SVM_EVENT_EV | 0x5678ull << 32;
    clgi();
    self_ipi();
    sti();
    svm_run((u64)vmcb);
    report_vmexit(vmcb->exitcode == VMEXIT_INTR && l2_at(l2_handlers + 4 * VECTOR_GP) &&
                      l2_pushed(0) == 0x5678 && l2_pushed(1) == (u64)l2_nops &&
                      !(vmcb->exitintinfo & SVM_EVENT_V),
                  "an injection is done before an interrupt exits");
    stgi();
    pause();
    cli();
    report(ipi_count == 1, "L1 takes it then");
    l2_idt[VECTOR_GP * 2] &= ~(1ull << 40);
}

static void test_blocked_interrupts(void)
{
    l2_init(l2_count);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR;
    vmcb->v_ctl = SVM_V_INTR_MASKING;
    vmcb->rflags |= RFLAGS_IF;
    l2_registers[RCX] = 1000000;
    ipi_count = 0;
    clgi();
    start_timer(1000);
    self_ipi();
    svm_run((u64)vmcb); // L1's IF is 0
    report(vmcb->exitcode == VMEXIT_VMMCALL && l2_registers[RCX] == 0,
           "V_INTR_MASKING with L1's IF = 0: no interrupt exits, %#llx", LLU(vmcb->exitcode));
    stgi();
    report(ipi_count == 0 && timer_count == 0, "nor is taken");
    sti();
    pause();
    report(ipi_count == 1 && timer_count == 1, "both come at STI");
    cli();

    // Without V_INTR_MASKING and the intercept, L2 takes it by its own IDT.
    l2_init(l2_sti_loop);
    start_timer(1000);
    l2_run();
    report(l2_in_handler(TIMER_VECTOR) && l2_pushed(0) - (u64)l2_sti_loop < 5 &&
               (l2_pushed(2) & RFLAGS_IF) && timer_count == 0,
           "without intercept L2 takes the timer's interrupt: EXITCODE %#llx", LLU(vmcb->exitcode));
    apic_eoi();

    // With the intercept but no masking, L2's IF counts.
    l2_init(l2_count);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR;
    l2_registers[RCX] = 1000000;
    start_timer(1000);
    report_vmexit(l2_run() == VMEXIT_VMMCALL && timer_count == 0, "no masking, L2's IF = 0");
    l2_init(l2_sti_loop);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR;
    report_vmexit(l2_run() == VMEXIT_INTR && timer_count == 0, "no masking, L2 sets IF");
    sti();
    pause();
    cli();
    report(timer_count == 1, "and L1 takes it");
}

static void test_nmi(void)
{
    l2_init(l2_loop);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_NMI;
    clgi();
    self_nmi();
    svm_run((u64)vmcb);
    report(vmcb->exitcode == VMEXIT_NMI && nmi_count == 0, "an NMI exits: EXITCODE %#llx",
           LLU(vmcb->exitcode));
    stgi();
    pause();
    report(nmi_count == 1, "L1 takes it after STGI");
    l2_init(l2_loop);
    clgi();
    self_nmi();
    l2_run();
    report(l2_in_handler(VECTOR_NMI) && nmi_count == 0,
           "without intercept L2 takes it: EXITCODE %#llx", LLU(vmcb->exitcode));
}

// L2 halts without an exit; an interrupt for L1 wakes it, behind its HLT.
static void test_halted(void)
{
    l2_init(l2_halt);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR;
    vmcb->intercept[SVM_WORD_3] &= ~(u32)SVM_INTERCEPT_HLT;
    vmcb->v_ctl = SVM_V_INTR_MASKING;
    clgi();
    start_timer(100000000);
    sti();
    svm_run((u64)vmcb);
    report(vmcb->exitcode == VMEXIT_INTR && l2_at(l2_after_halt),
           "the timer while L2 halts: EXITCODE %#llx, RIP off by %lld", LLU(vmcb->exitcode),
           (long long)(vmcb->rip - (u64)l2_after_halt));
    stgi();
    pause();
    cli();
    report(timer_count == 1, "L1 takes it");
}

void guest_main(void)
{
    if (!svm_start()) {
        report_skip("no SVM");
        return;
    }
    test_intercepted_exceptions();
    test_own_exceptions();
    test_injection();
    test_interrupted_delivery();
    test_gif();
    test_interrupts();
    test_injection_before_exit();
    test_blocked_interrupts();
    test_nmi();
    test_halted();
}
