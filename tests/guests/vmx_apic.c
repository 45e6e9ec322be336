// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// An L2's virtual local APIC where other events are due as well: the exit by the TPR threshold
// behind a VM entry (SDM vol. 3 "VM Exits Induced by the TPR Threshold", "Delivery of Pending Debug
// Exceptions after VM Entry"), virtual interrupts beside L1's own ("Virtual-Interrupt Delivery"),
// and both in the states of inactivity.

#include "vmx.h"

L2(l2_nops, "nop; nop; nop; vmcall");
L2(l2_hlt, "hlt; vmcall");

static u32 *apic_page;
static u8 *access_page;

static u32 *vreg(u32 offset)
{
    return apic_page + offset / 4;
}

// Ends an L2 that nothing else ends.
static void guard(u32 pin)
{
    if (!offers(pin_msr(), PIN_PREEMPTION_TIMER)) {
        set_pin(pin);
        return;
    }
    set_pin(pin | PIN_PREEMPTION_TIMER);
    vmwrite(PREEMPTION_TIMER_VALUE, 100000);
}

static bool use_apic(const void *code, u32 secondary)
{
    init(code);
    memset(apic_page, 0, PAGE_SIZE);
    if (!use_secondary(PRIMARY_TPR_SHADOW, secondary))
        return false;
    vmwrite(VIRTUAL_APIC_ADDRESS, (u64)apic_page);
    vmwrite(TPR_THRESHOLD, 0);
    return true;
}

// --- the TPR threshold ---

static bool use_threshold(const void *code)
{
    if (!use_apic(code, SECONDARY_APIC_ACCESSES))
        return false;
    vmwrite(APIC_ACCESS_ADDRESS, (u64)access_page);
    vmwrite(TPR_THRESHOLD, 4);
    *vreg(APIC_TPR) = 0x30;
    return true;
}

static void test_threshold(void)
{
    if (!use_threshold(l2_nops)) {
        report_skip("no TPR shadow or APIC accesses");
        return;
    }
    report_exit(run() == REASON_TPR_BELOW_THRESHOLD && at(l2_nops), "the threshold at an entry");
    use_threshold(l2_nops);
    vmwrite(ENTRY_INTERRUPTION_INFO, INJECT(TYPE_EXCEPTION, VECTOR_UD));
    report_exit(run() == REASON_TPR_BELOW_THRESHOLD && at(l2_handlers + 4 * VECTOR_UD),
                "behind an injection");
    use_threshold(l2_nops);
    vmwrite(GUEST_PENDING_DBG, DR6_BS);
    report_exit(run() == REASON_TPR_BELOW_THRESHOLD && at(l2_nops), "before a pending #DB");
    report(vmread(GUEST_PENDING_DBG) == DR6_BS, "which is still pending: %#llx",
           LLU(vmread(GUEST_PENDING_DBG)));
    use_threshold(l2_hlt);
    vmwrite(GUEST_ACTIVITY_STATE, 1);
    guard(0);
    report_exit(run() == REASON_TPR_BELOW_THRESHOLD && at(l2_hlt), "a halted L2's");
    if (!(msr_read(MSR_VMX_MISC) & VMX_MISC_ACTIVITY_SHUTDOWN))
        return;
    use_threshold(l2_nops);
    vmwrite(GUEST_ACTIVITY_STATE, 2);
    guard(0);
    run();
    // Bochs exits there as well
    report_known(MACHINE_BOCHS,
                 vmread(EXIT_REASON) == REASON_PREEMPTION_TIMER &&
                     vmread(GUEST_ACTIVITY_STATE) == 2,
                 "none in shutdown: reason %#llx", LLU(vmread(EXIT_REASON)));
}

// --- virtual interrupts ---

static bool use_delivery(const void *code)
{
    if (!use_apic(code, SECONDARY_X2APIC | SECONDARY_INTERRUPT_DELIVERY))
        return false;
    for (unsigned i = 0; i < 4; i++)
        vmwrite(EOI_EXIT_BITMAP_0 + 2 * i, 0);
    *vreg(APIC_IRR + 0x20) = 1u << 5;
    vmwrite(GUEST_INTERRUPT_STATUS, 0x45);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    guard(PIN_EXTERNAL_INTERRUPT);
    return true;
}

static void test_delivery(void)
{
    if (!use_delivery(l2_nops)) {
        report_skip("no virtual-interrupt delivery");
        return;
    }
    report_exit(run() == REASON_VMCALL && in_handler(0x45), "a virtual interrupt at an entry");
    use_delivery(l2_nops);
    apic_icr(apic_id(), IPI_VECTOR | ICR_ASSERT);
    run();
    report(vmread(EXIT_REASON) == REASON_EXTERNAL_INTERRUPT && at(l2_handlers + 4 * 0x45) &&
               pushed(0) == (u64)l2_nops,
           "before an interrupt of L1's: reason %#llx, RIP %#llx", LLU(vmread(EXIT_REASON)),
           LLU(vmread(GUEST_RIP)));
    report(vmread(GUEST_INTERRUPT_STATUS) == 0x4500, "it is in service: %#llx",
           LLU(vmread(GUEST_INTERRUPT_STATUS)));
    ipi_count = 0;
    sti();
    cli();
    report(ipi_count == 1, "L1's own is not lost");
    use_delivery(l2_hlt);
    vmwrite(GUEST_ACTIVITY_STATE, 1);
    run();
    // Bochs sleeps on
    report_known(MACHINE_BOCHS, vmread(EXIT_REASON) == REASON_VMCALL && in_handler(0x45),
                 "one wakes a halted L2: reason %#llx", LLU(vmread(EXIT_REASON)));
    if (!(msr_read(MSR_VMX_MISC) & VMX_MISC_ACTIVITY_SHUTDOWN))
        return;
    use_delivery(l2_nops);
    vmwrite(GUEST_ACTIVITY_STATE, 2);
    report_exit(run() == REASON_PREEMPTION_TIMER && vmread(GUEST_ACTIVITY_STATE) == 2 &&
                    vmread(GUEST_INTERRUPT_STATUS) == 0x45,
                "none in shutdown");
}

void guest_main(void)
{
    if (!vmx_start()) {
        report(false, "no VMX");
        return;
    }
    apic_enable();
    apic_page = pages(1);
    access_page = pages(1);
    test_threshold();
    test_delivery();
}
