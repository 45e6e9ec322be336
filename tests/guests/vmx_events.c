// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Events between a small hypervisor and its L2: virtual NMIs and windows, the monitor trap flag,
// pending debug exceptions, what goes first where several meet, IDT-vectoring information (SDM
// vol. 3 "Event Injection", "Special Features of VM Entry", "Monitor Trap Flag", "Information for
// VM Exits That Occur During Event Delivery").

#include "vmx.h"

L2(l2_nops, "nop; nop; nop; vmcall");
L2(l2_hlt, "hlt; l2_woken: vmcall");
L2(l2_sti, "sti; l2_sti_nop: nop; l2_sti_end: nop; vmcall");
L2(l2_mov_ss, "mov %ecx, %ss; l2_mov_ss_nop: nop; l2_mov_ss_end: nop; vmcall");
L2(l2_wbinvd, "wbinvd; l2_wbinvd_end: nop; vmcall");
L2(l2_int, "int $0x44; vmcall");
L2(l2_ud, "ud2");
L2(l2_read, "mov (%rdi), %eax; vmcall");
L2(l2_int1, ".byte 0xf1; vmcall");
L2(l2_write_dr, "mov %rax, %dr0; vmcall");
extern char l2_woken[], l2_sti_nop[], l2_sti_end[], l2_mov_ss_nop[], l2_mov_ss_end[],
    l2_wbinvd_end[];

static bool use_virtual_nmis(const void *code)
{
    init(code);
    if (!offers(pin_msr(), PIN_VIRTUAL_NMIS))
        return false;
    set_pin(PIN_NMI | PIN_VIRTUAL_NMIS);
    return true;
}

// Ends an L2 that nothing else ends.
static void guard(u32 pin)
{
    if (!offers(pin_msr(), PIN_PREEMPTION_TIMER))
        return;
    set_pin(pin | PIN_PREEMPTION_TIMER);
    vmwrite(PREEMPTION_TIMER_VALUE, 1000000);
}

// --- virtual NMIs ---

L2(l2_nmi_iret, "l2_iret: iretq");
extern char l2_iret[];

static void test_virtual_nmis(void)
{
    if (!use_virtual_nmis(l2_nops)) {
        report_skip("no virtual NMIs");
        return;
    }
    set_primary(PRIMARY_HLT | PRIMARY_NMI_WINDOW);
    report_exit(run() == REASON_NMI_WINDOW && at(l2_nops), "a window that is open exits at once");
    use_virtual_nmis(l2_nops);
    set_primary(PRIMARY_HLT | PRIMARY_NMI_WINDOW);
    vmwrite(GUEST_INTERRUPTIBILITY, 2);
    report_exit(run() == REASON_NMI_WINDOW && at(l2_nops + 1), "behind MOV SS's shadow");
    use_virtual_nmis(l2_nops);
    set_primary(PRIMARY_HLT | PRIMARY_NMI_WINDOW);
    vmwrite(GUEST_ACTIVITY_STATE, 1);
    report_exit(run() == REASON_NMI_WINDOW && at(l2_nops), "a halted L2's");
    use_virtual_nmis(l2_nops);
    vmwrite(ENTRY_INTERRUPTION_INFO, INJECT(TYPE_NMI, VECTOR_NMI));
    run();
    report(in_handler(VECTOR_NMI) && vmread(GUEST_INTERRUPTIBILITY) == 8,
           "an injected NMI blocks virtual NMIs: %#llx", LLU(vmread(GUEST_INTERRUPTIBILITY)));
    apic_icr(apic_id(), ICR_NMI | ICR_ASSERT);
    // Bochs 2.7 keeps the blocking where an entry says that there is none
    report_cpu(MACHINE_BOCHS, nmi_count == 1, "L1 has none blocked behind that exit");
    set_primary(PRIMARY_HLT | PRIMARY_NMI_WINDOW);
    vmwrite(GUEST_RIP, (u64)l2_iret);
    run();
    report_cpu(MACHINE_BOCHS,
               vmread(EXIT_REASON) == REASON_NMI_WINDOW && at(l2_nops) &&
                   vmread(GUEST_INTERRUPTIBILITY) == 0,
               "the window opens behind IRET: reason %#llx", LLU(vmread(EXIT_REASON)));
}

L2(l2_send_nmi, "mov %eax, (%rdi); l2_nmi_wait: pause; jmp l2_nmi_wait");

// A physical NMI exits whatever virtual-NMI blocking says.
static void test_nmi_exit(void)
{
    if (!use_virtual_nmis(l2_send_nmi))
        return;
    guard(PIN_NMI | PIN_VIRTUAL_NMIS);
    vmwrite(GUEST_INTERRUPTIBILITY, 8);
    l2_registers[RAX] = ICR_NMI | ICR_ASSERT | ICR_SELF;
    l2_registers[RDI] = APIC_BASE + APIC_ICR;
    nmi_count = 0;
    run();
    // Bochs blocks physical ones too
    report_known(
        MACHINE_BOCHS, excepted(TYPE_NMI, VECTOR_NMI, false) && vmread(GUEST_INTERRUPTIBILITY) == 8,
        "a physical NMI, with virtual ones blocked: reason %#llx", LLU(vmread(EXIT_REASON)));
    apic_icr(apic_id(), ICR_NMI | ICR_ASSERT);
    report_known(MACHINE_BOCHS, nmi_count == 0, "L1 has NMIs blocked behind it");
    iret();
    report_known(MACHINE_BOCHS, nmi_count == 1, "until IRET");
}

// --- windows that meet ---

static void test_windows(void)
{
    if (use_virtual_nmis(l2_nops)) {
        set_primary(PRIMARY_HLT | PRIMARY_NMI_WINDOW | PRIMARY_INTERRUPT_WINDOW);
        vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
        run();
        // Bochs still has NMIs blocked
        report_known(MACHINE_BOCHS, vmread(EXIT_REASON) == REASON_NMI_WINDOW,
                     "the NMI window before the interrupt window: reason %#llx",
                     LLU(vmread(EXIT_REASON)));
    }
    init(l2_sti);
    set_primary(PRIMARY_HLT | PRIMARY_INTERRUPT_WINDOW);
    report_exit(run() == REASON_INTERRUPT_WINDOW && at(l2_sti_end), "a window behind STI");
    init(l2_hlt);
    set_primary(PRIMARY_INTERRUPT_WINDOW);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    vmwrite(GUEST_ACTIVITY_STATE, 1);
    guard(0);
    run();
    // Bochs sleeps on
    report_known(MACHINE_BOCHS,
                 vmread(EXIT_REASON) == REASON_INTERRUPT_WINDOW && at(l2_hlt) &&
                     vmread(GUEST_ACTIVITY_STATE) == 1,
                 "a halted L2's: reason %#llx", LLU(vmread(EXIT_REASON)));
    init(l2_nops);
    set_primary(PRIMARY_HLT | PRIMARY_INTERRUPT_WINDOW);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    vmwrite(ENTRY_INTERRUPTION_INFO, INJECT(TYPE_EXCEPTION, VECTOR_UD));
    run();
    report(in_handler(VECTOR_UD), "an injection through an interrupt gate shuts it");
}

// --- interrupts ---

static void test_interrupts(void)
{
    init(l2_nops);
    set_pin(PIN_EXTERNAL_INTERRUPT);
    set_exit(EXIT_CTL_HOST_64 | EXIT_CTL_SAVE_DEBUG | EXIT_CTL_ACK_INTERRUPT);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    apic_icr(apic_id(), IPI_VECTOR | ICR_ASSERT);
    run();
    report_exit(vmread(EXIT_REASON) == REASON_EXTERNAL_INTERRUPT && at(l2_nops) &&
                    vmread(EXIT_INTERRUPTION_INFO) == INJECT(TYPE_INTERRUPT, IPI_VECTOR),
                "an interrupt, acknowledged");
    apic_eoi();
    init(l2_nops);
    set_pin(PIN_EXTERNAL_INTERRUPT);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    vmwrite(ENTRY_INTERRUPTION_INFO, INJECT(TYPE_EXCEPTION, VECTOR_UD));
    apic_icr(apic_id(), IPI_VECTOR | ICR_ASSERT);
    run();
    // Bochs takes no interrupt exit of an L2 that is in an interrupt gate's handler
    report_known(MACHINE_BOCHS,
                 vmread(EXIT_REASON) == REASON_EXTERNAL_INTERRUPT &&
                     vmread(GUEST_RIP) == (u64)l2_handlers + 4 * VECTOR_UD,
                 "an interrupt waits for the injection: reason %#llx", LLU(vmread(EXIT_REASON)));
    ipi_count = 0;
    sti();
    cli();
    report(ipi_count == 1, "and is L1's then");
}

// --- the monitor trap flag ---

static bool use_mtf(const void *code)
{
    init(code);
    if (!offers(MSR_VMX_PROCBASED_CTLS, PRIMARY_MTF))
        return false;
    set_primary(PRIMARY_HLT | PRIMARY_MTF);
    return true;
}

static void mtf_at(const void *rip, const char *what)
{
    run();
    report(vmread(EXIT_REASON) == REASON_MTF && at(rip), "MTF %s: reason %#llx, RIP %#llx", what,
           LLU(vmread(EXIT_REASON)), LLU(vmread(GUEST_RIP)));
}

static void test_mtf(void)
{
    if (!use_mtf(l2_nops)) {
        report_skip("no monitor trap flag");
        return;
    }
    mtf_at(l2_nops + 1, "behind an instruction");
    mtf_at(l2_nops + 2, "and the next");
    use_mtf(l2_wbinvd);
    mtf_at(l2_wbinvd_end, "behind one that Nestor emulates");
    use_mtf(l2_nops);
    vmwrite(ENTRY_INTERRUPTION_INFO, INJECT(TYPE_EXCEPTION, VECTOR_UD));
    mtf_at(l2_handlers + 4 * VECTOR_UD, "behind an injection");
    use_mtf(l2_int);
    mtf_at(l2_handlers + 4 * 0x44, "behind INT n");
    use_mtf(l2_ud);
    mtf_at(l2_handlers + 4 * VECTOR_UD, "behind a fault's delivery");
    use_mtf(l2_sti);
    mtf_at(l2_sti_nop, "behind STI");
    report(vmread(GUEST_INTERRUPTIBILITY) == 1, "its shadow is saved");
    use_mtf(l2_mov_ss);
    l2_registers[RCX] = DATA;
    mtf_at(l2_mov_ss_nop, "behind MOV SS");
    report(vmread(GUEST_INTERRUPTIBILITY) == 2, "its shadow is saved");
    use_mtf(l2_hlt);
    set_primary(PRIMARY_MTF);
    mtf_at(l2_woken, "behind HLT");
    report(vmread(GUEST_ACTIVITY_STATE) == 1, "L2 is halted then");
    use_mtf(l2_nops);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_TF);
    mtf_at(l2_nops + 1, "before a single step's #DB");
    report(vmread(GUEST_PENDING_DBG) == DR6_BS, "which is pending: %#llx",
           LLU(vmread(GUEST_PENDING_DBG)));
}

// An injected pending MTF exits before any instruction, also without the control.
static void test_pending_mtf(void)
{
    if (!use_mtf(l2_nops))
        return;
    set_primary(PRIMARY_HLT);
    vmwrite(ENTRY_INTERRUPTION_INFO, INJECT(TYPE_OTHER, 0));
    mtf_at(l2_nops, "injected");
}

// --- pending debug exceptions ---

static void test_pending_debug(void)
{
    init(l2_nops);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_DB);
    vmwrite(GUEST_PENDING_DBG, DR6_BS);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_DB, false) && at(l2_nops) &&
                    vmread(EXIT_QUALIFICATION) == DR6_BS && vmread(GUEST_PENDING_DBG) == 0,
                "a pending #DB comes first");
    init(l2_nops);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_DB);
    vmwrite(GUEST_PENDING_DBG, BIT(12) | 1);
    vmwrite(GUEST_INTERRUPTIBILITY, 2);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_DB, false) && at(l2_nops + 1) &&
                    vmread(EXIT_QUALIFICATION) == 1,
                "a breakpoint behind MOV SS's shadow");
    init(l2_int1);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_DB);
    vmwrite(GUEST_PENDING_DBG, BIT(12) | 1);
    vmwrite(GUEST_INTERRUPTIBILITY, 2);
    run();
    report_exit(excepted(TYPE_INT1, VECTOR_DB, false) && vmread(GUEST_PENDING_DBG) == 0,
                "another debug exception's exit in that shadow keeps none");
    init(l2_write_dr);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_DB);
    vmwrite(GUEST_DR7, DR7_FIXED | DR7_GD);
    vmwrite(GUEST_PENDING_DBG, BIT(12) | 1);
    vmwrite(GUEST_INTERRUPTIBILITY, 2);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_DB, false) && vmread(GUEST_PENDING_DBG) == 0,
                "nor does general detect, which Nestor may find");
    init(l2_nops + 3);
    vmwrite(GUEST_PENDING_DBG, BIT(12) | 1);
    vmwrite(GUEST_INTERRUPTIBILITY, 2);
    report_exit(run() == REASON_VMCALL && vmread(GUEST_PENDING_DBG) == (BIT(12) | 1),
                "any other exit there keeps it");
    init(l2_nops);
    vmwrite(GUEST_PENDING_DBG, BIT(12) | 2);
    write_dr6(DR6_FIXED);
    run();
    report(in_handler(VECTOR_DB) && pushed(0) == (u64)l2_nops && (read_dr6() & 0xf) == 2,
           "L2's own, with its DR6 bits: %#llx", LLU(read_dr6()));
    write_dr6(DR6_FIXED);
    init(l2_nops);
    vmwrite(GUEST_PENDING_DBG, 1);
    report_exit(run() == REASON_VMCALL && !in_handler(VECTOR_DB),
                "a breakpoint that is not enabled is none");
    init(l2_wbinvd);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_DB);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_TF);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_DB, false) && at(l2_wbinvd_end) &&
                    vmread(EXIT_QUALIFICATION) == DR6_BS,
                "a step over what Nestor emulates");
}

// --- exits in the middle of a delivery ---

// Vector 0x44's gate leads to where nothing is mapped.
static void test_vectoring(void)
{
    u64 low = l2_idt[0x44 * 2], high = l2_idt[0x44 * 2 + 1];

    init(l2_int);
    l2_idt[0x44 * 2 + 1] = UNMAPPED >> 32;
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_PF);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_PF, true) &&
                    !(vmread(IDT_VECTORING_INFO) & INFO_VALID),
                "the handler's fetch is behind the delivery");
    l2_idt[0x44 * 2] = low & ~BIT(47); // not present
    l2_idt[0x44 * 2 + 1] = high;
    init(l2_int);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_NP);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_NP, true) && at(l2_int) &&
                    vmread(IDT_VECTORING_INFO) == INJECT(TYPE_SOFT_INTERRUPT, 0x44) &&
                    vmread(EXIT_INSTRUCTION_LENGTH) == 2,
                "#NP in the delivery of INT n");
    init(l2_nops);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    vmwrite(ENTRY_INTERRUPTION_INFO, INJECT(TYPE_INTERRUPT, 0x44));
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_NP);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_NP, true) && at(l2_nops) &&
                    vmread(IDT_VECTORING_INFO) == INJECT(TYPE_INTERRUPT, 0x44),
                "#NP in the delivery of what was injected");
    l2_idt[0x44 * 2] = low;
    init(l2_read);
    l2_registers[RDI] = UNMAPPED;
    vmwrite(GUEST_IDTR_LIMIT, 14 * 16 - 1);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_DF);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_DF, true) &&
                    !(vmread(IDT_VECTORING_INFO) & INFO_VALID),
                "#DF comes by itself");
}

// --- the timer and the others ---

static bool use_timer(const void *code)
{
    init(code);
    if (!offers(pin_msr(), PIN_PREEMPTION_TIMER))
        return false;
    set_pin(PIN_PREEMPTION_TIMER);
    vmwrite(PREEMPTION_TIMER_VALUE, 0);
    return true;
}

static void test_timer_order(void)
{
    if (!use_timer(l2_nops)) {
        report_skip("no VMX-preemption timer");
        return;
    }
    vmwrite(ENTRY_INTERRUPTION_INFO, INJECT(TYPE_EXCEPTION, VECTOR_UD));
    report_exit(run() == REASON_PREEMPTION_TIMER && at(l2_handlers + 4 * VECTOR_UD),
                "the timer behind an injection");
    use_timer(l2_nops);
    vmwrite(GUEST_PENDING_DBG, DR6_BS);
    report_exit(run() == REASON_PREEMPTION_TIMER && at(l2_handlers + 4 * VECTOR_DB),
                "behind a pending #DB");
    use_timer(l2_nops);
    set_primary(PRIMARY_HLT | PRIMARY_INTERRUPT_WINDOW);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    report_exit(run() == REASON_PREEMPTION_TIMER, "before the interrupt window");
}

void guest_main(void)
{
    if (!vmx_start()) {
        report(false, "no VMX");
        return;
    }
    apic_enable();
    test_virtual_nmis();
    test_nmi_exit();
    test_windows();
    test_interrupts();
    test_mtf();
    test_pending_mtf();
    test_pending_debug();
    test_vectoring();
    test_timer_order();
}
