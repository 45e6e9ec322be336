// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Events of a small hypervisor's L2: exceptions that exit and those that go to L2's own handlers,
// the page-fault filter, injection and deliveries that are interrupted, interrupts and NMIs that
// exit or do not, and the interrupt window (SDM vol. 3 "Exception Bitmap", "Event Injection",
// "Other Causes of VM Exits"). What is rarer is in vmx_events.

#include "vmx.h"

// --- exceptions ---

L2(l2_ud, "ud2");
L2(l2_read, "mov (%rdi), %eax; vmcall");
L2(l2_load_ds, "mov %edi, %ds; vmcall");
L2(l2_int3, "int3; l2_after_int3: vmcall");
L2(l2_nops, "nop; nop; vmcall");
extern char l2_after_int3[];

static void run_intercepted(const void *code, unsigned vector, u64 rdi)
{
    init(code);
    vmwrite(EXCEPTION_BITMAP, 1u << vector);
    l2_registers[RDI] = rdi;
    run();
}

static void test_exceptions(void)
{
    run_intercepted(l2_ud, VECTOR_UD, 0);
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_UD, false) && at(l2_ud) &&
                    vmread(EXIT_QUALIFICATION) == 0,
                "#UD");
    // Bochs saves the RF that was
    report_cpu(MACHINE_BOCHS, vmread(GUEST_RFLAGS) & RFLAGS_RF, "a fault's exit saves RF = 1");
    __asm__ volatile("mov %0, %%cr2" : : "r"(0x1234ull));
    run_intercepted(l2_read, VECTOR_PF, UNMAPPED + 8);
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_PF, true) && at(l2_read) &&
                    vmread(EXIT_QUALIFICATION) == UNMAPPED + 8 &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 0,
                "#PF");
    report(read_cr2() == 0x1234, "its exit leaves CR2 alone: %#llx", LLU(read_cr2()));
    run_intercepted(l2_read, VECTOR_GP, BAD_ADDRESS);
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_GP, true) &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 0,
                "#GP(0)");
    run_intercepted(l2_load_ds, VECTOR_GP, 0x1f8);
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_GP, true) &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 0x1f8,
                "#GP(selector)");
    run_intercepted(l2_int3, VECTOR_BP, 0);
    report_exit(excepted(TYPE_SOFT_EXCEPTION, VECTOR_BP, false) && at(l2_int3) &&
                    vmread(EXIT_INSTRUCTION_LENGTH) == 1,
                "INT3");
    init(l2_nops);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_DB);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_TF);
    write_dr6(DR6_FIXED);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_DB, false) && at(l2_nops + 1) &&
                    vmread(EXIT_QUALIFICATION) == DR6_BS,
                "#DB");
    report(read_dr6() == DR6_FIXED, "its exit leaves DR6 alone: %#llx", LLU(read_dr6()));
}

static void test_page_fault_filter(void)
{
    static const struct {
        bool bit, exits;
        u32 mask, match;
    } cases[] = {
        // the error code is 0
        {true, true, 0, 0},        {true, false, 0, 1},     {true, true, PF_W, 0},
        {true, false, PF_W, PF_W}, {false, false, PF_W, 0}, {false, true, PF_W, PF_W},
        {false, true, 0, 1},       {false, false, 0, 0},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        init(l2_read);
        vmwrite(EXCEPTION_BITMAP, cases[i].bit ? 1u << VECTOR_PF : 0);
        vmwrite(PF_ERROR_CODE_MASK, cases[i].mask);
        vmwrite(PF_ERROR_CODE_MATCH, cases[i].match);
        l2_registers[RDI] = UNMAPPED;
        run();
        report(cases[i].exits ? excepted(TYPE_EXCEPTION, VECTOR_PF, true) : in_handler(VECTOR_PF),
               "#PF, bitmap %u, mask %u, match %u: %s", cases[i].bit, cases[i].mask, cases[i].match,
               cases[i].exits ? "exits" : "goes to L2");
    }
}

static void test_own_exceptions(void)
{
    run_code(l2_ud);
    report(in_handler(VECTOR_UD) && pushed(0) == (u64)l2_ud && pushed(1) == CODE64 &&
               pushed(3) == (u64)(l2_stack + sizeof(l2_stack)) && pushed(4) == DATA,
           "#UD goes to L2's own handler");
    init(l2_read);
    l2_registers[RDI] = UNMAPPED + 16;
    run();
    report(in_handler(VECTOR_PF) && pushed(0) == 0 && pushed(1) == (u64)l2_read &&
               read_cr2() == UNMAPPED + 16,
           "#PF goes to L2's own handler, CR2 %#llx", LLU(read_cr2()));
    run_code(l2_int3);
    report(in_handler(VECTOR_BP) && pushed(0) == (u64)l2_after_int3,
           "INT3 goes to L2's own handler");
    init(l2_ud);
    vmwrite(GUEST_IDTR_LIMIT, 0);
    report_exit(run() == REASON_TRIPLE_FAULT, "a triple fault");
    init(l2_ud);
    vmwrite(GUEST_IDTR_LIMIT, 0);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_DF);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_DF, true) &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 0,
                "a double fault");
}

// --- event injection ---

static void run_injected(u64 type, unsigned vector, u64 error, unsigned length)
{
    init(l2_nops);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    vmwrite(ENTRY_INTERRUPTION_INFO,
            INFO_VALID | type << INFO_TYPE_SHIFT | vector | (error ? INFO_ERROR_CODE : 0));
    vmwrite(ENTRY_EXCEPTION_ERROR_CODE, error);
    vmwrite(ENTRY_INSTRUCTION_LENGTH, length);
    run();
}

static void test_injection(void)
{
    run_injected(TYPE_EXCEPTION, VECTOR_GP, 0x1234, 0);
    report(in_handler(VECTOR_GP) && pushed(0) == 0x1234 && pushed(1) == (u64)l2_nops,
           "#GP(1234h) injected");
    report(!(vmread(ENTRY_INTERRUPTION_INFO) & INFO_VALID),
           "the exit clears the information's valid bit");
    report(!(vmread(IDT_VECTORING_INFO) & INFO_VALID), "no IDT-vectoring information after it");
    run_injected(TYPE_EXCEPTION, VECTOR_UD, 0, 0);
    // SDM vol. 3 "Details of Vectored-Event Injection": RF is not modified by the type of the event
    report(in_handler(VECTOR_UD) && pushed(0) == (u64)l2_nops && !(pushed(2) & RFLAGS_RF),
           "#UD injected, RFLAGS pushed %#llx", LLU(in_handler(VECTOR_UD) ? pushed(2) : 0));
    run_injected(TYPE_INTERRUPT, 0x40, 0, 0);
    report(in_handler(0x40) && pushed(0) == (u64)l2_nops && (pushed(2) & RFLAGS_IF) &&
               !(vmread(GUEST_RFLAGS) & RFLAGS_IF),
           "an interrupt injected");
    run_injected(TYPE_NMI, VECTOR_NMI, 0, 0);
    report(in_handler(VECTOR_NMI) && pushed(0) == (u64)l2_nops, "an NMI injected");
    report(vmread(GUEST_INTERRUPTIBILITY) == 8, "NMIs are blocked then: interruptibility %#llx",
           LLU(vmread(GUEST_INTERRUPTIBILITY)));
    run_injected(TYPE_SOFT_INTERRUPT, 0x41, 0, 2);
    report(in_handler(0x41) && pushed(0) == (u64)l2_nops + 2, "INT n injected, RIP is advanced");
    run_injected(TYPE_SOFT_EXCEPTION, VECTOR_BP, 0, 1);
    report(in_handler(VECTOR_BP) && pushed(0) == (u64)l2_nops + 1,
           "INT3 injected, RIP is advanced");
    run_injected(TYPE_INT1, VECTOR_DB, 0, 1);
    report(in_handler(VECTOR_DB) && pushed(0) == (u64)l2_nops + 1,
           "INT1 injected, RIP is advanced");
}

static void test_interrupted_delivery(void)
{
    u64 gate = l2_idt[0x40 * 2], info;

    l2_idt[0x40 * 2] &= ~(1ull << 47);
    init(l2_nops);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_NP);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    vmwrite(ENTRY_INTERRUPTION_INFO, INFO_VALID | 0x40);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_NP, true) && at(l2_nops) &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 0x40 * 8 + 3,
                "#NP while an interrupt is delivered");
    info = vmread(IDT_VECTORING_INFO);
    report(info == (INFO_VALID | 0x40), "IDT-vectoring information %#llx", LLU(info));
    l2_idt[0x40 * 2] = gate;
    vmwrite(ENTRY_INTERRUPTION_INFO, info);
    run();
    report(in_handler(0x40) && pushed(0) == (u64)l2_nops,
           "it is delivered when L1 injects it again");
}

// --- interrupts ---

L2(l2_cpuid, "cpuid; vmcall");
L2(l2_loop, "1: pause; jmp 1b");
L2(l2_count, "1: dec %rcx; jnz 1b; vmcall");
L2(l2_sti, "sti; l2_after_sti: nop; l2_after_nop: nop; vmcall");
L2(l2_halt, "sti; hlt; l2_after_halt: jmp .");
extern char l2_after_sti[], l2_after_nop[], l2_after_halt[];

static void init_interruptible(const void *code, u32 pin)
{
    init(code);
    set_pin(pin);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
}

static void test_interrupts(void)
{
    init_interruptible(l2_loop, PIN_EXTERNAL_INTERRUPT);
    start_timer(100000);
    report_exit(run() == REASON_EXTERNAL_INTERRUPT &&
                    !(vmread(EXIT_INTERRUPTION_INFO) & INFO_VALID) && timer_count == 0 &&
                    vmread(GUEST_RIP) - (u64)l2_loop < 4,
                "the timer while L2 runs");
    sti();
    cli();
    report(timer_count == 1, "L1 takes the interrupt");

    init_interruptible(l2_loop, PIN_EXTERNAL_INTERRUPT);
    set_exit(EXIT_CTL_HOST_64 | EXIT_CTL_ACK_INTERRUPT);
    start_timer(100000);
    report_exit(run() == REASON_EXTERNAL_INTERRUPT &&
                    vmread(EXIT_INTERRUPTION_INFO) == (INFO_VALID | TIMER_VECTOR),
                "acknowledged by the exit");
    report(apic_read(APIC_ISR + TIMER_VECTOR / 32 * 16) & 1u << TIMER_VECTOR % 32,
           "it is in service");
    sti();
    cli();
    report(timer_count == 0, "and not taken again");
    apic_eoi();

    init_interruptible(l2_cpuid, PIN_EXTERNAL_INTERRUPT);
    self_ipi();
    report_exit(run() == REASON_EXTERNAL_INTERRUPT && at(l2_cpuid),
                "one that waits exits before L2's first instruction");
    sti();
    cli();
    report(ipi_count == 1, "L1 takes it");

    // Bochs leaves it pending if the guest is entered with IF = 0
    init(l2_count);
    set_pin(PIN_EXTERNAL_INTERRUPT);
    l2_registers[RCX] = 1000000;
    start_timer(1000);
    report_known(MACHINE_BOCHS, run() == REASON_EXTERNAL_INTERRUPT, "it exits whatever L2's IF is");
    sti();
    cli();

    init_interruptible(l2_loop, 0);
    start_timer(100000);
    run();
    report_exit(in_handler(TIMER_VECTOR) && timer_count == 0, "without the control L2 takes it");
    apic_eoi();
}

// An interrupt waits while L1 injects an exception: the exception is delivered, then the interrupt
// exits before its handler starts.
static void test_injection_before_exit(void)
{
    l2_idt[VECTOR_GP * 2] |= 1ull << 40; // a trap gate
    init_interruptible(l2_nops, PIN_EXTERNAL_INTERRUPT);
    vmwrite(ENTRY_INTERRUPTION_INFO,
            INFO_VALID | INFO_ERROR_CODE | TYPE_EXCEPTION << INFO_TYPE_SHIFT | VECTOR_GP);
    vmwrite(ENTRY_EXCEPTION_ERROR_CODE, 0x5678);
    self_ipi();
    report_exit(run() == REASON_EXTERNAL_INTERRUPT && at(l2_handlers + 4 * VECTOR_GP) &&
                    pushed(0) == 0x5678 && pushed(1) == (u64)l2_nops &&
                    !(vmread(IDT_VECTORING_INFO) & INFO_VALID),
                "an injection is done before an interrupt exits");
    sti();
    cli();
    report(ipi_count == 1, "L1 takes it then");
    l2_idt[VECTOR_GP * 2] &= ~(1ull << 40);
}

// L2 halts without an exit; an interrupt for L1 wakes it, behind its HLT.
static void test_halted(void)
{
    init(l2_halt);
    set_pin(PIN_EXTERNAL_INTERRUPT);
    set_primary(0);
    start_timer(5000000);
    report_exit(run() == REASON_EXTERNAL_INTERRUPT && at(l2_after_halt),
                "the timer while L2 halts");
    // Bochs saves the active state
    report_known(MACHINE_BOCHS, vmread(GUEST_ACTIVITY_STATE) == 1, "activity state %llu",
                 LLU(vmread(GUEST_ACTIVITY_STATE)));
    sti();
    cli();
    report(timer_count == 1, "L1 takes it");
}

static void test_window(void)
{
    if (!offers(MSR_VMX_PROCBASED_CTLS, PRIMARY_INTERRUPT_WINDOW))
        return;
    init(l2_sti);
    set_primary(PRIMARY_HLT | PRIMARY_INTERRUPT_WINDOW);
    report_exit(run() == REASON_INTERRUPT_WINDOW && at(l2_after_nop),
                "the interrupt window opens behind STI's shadow");
    init_interruptible(l2_nops, 0);
    set_primary(PRIMARY_HLT | PRIMARY_INTERRUPT_WINDOW);
    report_exit(run() == REASON_INTERRUPT_WINDOW && at(l2_nops), "at once if IF is set");
    init(l2_nops);
    set_primary(PRIMARY_HLT | PRIMARY_INTERRUPT_WINDOW);
    report_exit(run() == REASON_VMCALL, "not if it never opens");
}

L2(l2_self_nmi, "mov %ecx, 0x310(%rdi); mov %ebx, 0x300(%rdi); 1: pause; jmp 1b");

static void init_nmi(u32 pin)
{
    init(l2_self_nmi);
    set_pin(pin);
    l2_registers[RDI] = APIC_BASE;
    l2_registers[RCX] = apic_id() << 24;
    l2_registers[RBX] = ICR_NMI | ICR_ASSERT;
    nmi_count = 0;
}

static void check_nmi_blocked(const char *what)
{
    self_nmi();
    for (unsigned i = 0; i < 100; i++)
        pause();
    report(nmi_count == 0, "%s: NMIs are blocked in L1", what);
    iret();
    for (unsigned i = 0; i < 100; i++)
        pause();
    report(nmi_count == 1, "%s: until IRET", what);
}

static void test_nmi(void)
{
    init_nmi(PIN_NMI);
    run();
    report_exit(excepted(TYPE_NMI, VECTOR_NMI, false) && nmi_count == 0, "an NMI");
    check_nmi_blocked("behind its exit");
    init_nmi(0);
    run();
    // Bochs saves the RIP that the NMI interrupted, if the handler's first instruction exits
    report_known(MACHINE_BOCHS, in_handler(VECTOR_NMI) && nmi_count == 0,
                 "without the control L2 takes it");
    report(vmread(GUEST_INTERRUPTIBILITY) == 8, "interruptibility %#llx",
           LLU(vmread(GUEST_INTERRUPTIBILITY)));
    check_nmi_blocked("L2 is in its handler");
}

void guest_main(void)
{
    if (!vmx_start()) {
        report(false, "no VMX");
        return;
    }
    test_exceptions();
    test_page_fault_filter();
    test_own_exceptions();
    test_injection();
    test_interrupted_delivery();
    test_interrupts();
    test_injection_before_exit();
    test_halted();
    test_window();
    test_nmi();
}
