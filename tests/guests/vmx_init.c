// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What INIT leaves of VMX: IA32_FEATURE_CONTROL, which only a reset clears (SDM vol. 3 "Enabling
// and Entering VMX Operation", table "IA-32 and Intel 64 Processor States Following Power-up,
// Reset, or INIT"), and an INIT that VMX root operation blocks until VMXOFF.

#include "vmx.h"

enum { PAGE = 8 };
#define CONTROL (FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX)

static volatile u32 ready, released;
static u64 seen;

// --- on CPU 1 ---

static void lock_control(void *unused)
{
    (void)unused;
    if (!(msr_read(MSR_FEATURE_CONTROL) & FEATURE_CONTROL_LOCK))
        msr_write(MSR_FEATURE_CONTROL, CONTROL);
    ready = 1;
    for (;;)
        pause();
}

static void in_root(void *unused)
{
    (void)unused;
    seen = msr_read(MSR_FEATURE_CONTROL);
    vmx_prepare();
    if (vmxon(vmxon_region))
        return;
    ready = 1;
    while (!released)
        pause();
    ready = 2; // the INIT has come, and waits
    vmxoff();
    ready = 3;
    for (;;)
        pause();
}

static void look(void *unused)
{
    (void)unused;
    seen = msr_read(MSR_FEATURE_CONTROL);
}

// --- on CPU 0 ---

static void send_init(u32 id)
{
    apic_icr(id, ICR_INIT | ICR_ASSERT | ICR_LEVEL);
    apic_icr(id, ICR_INIT | ICR_LEVEL);
    delay_us(20000);
}

// The library's trampoline gives CPU 1 the next number each time.
static bool start_again(u32 number)
{
    apic_icr(cpu_apic_ids[number], ICR_SIPI | ICR_ASSERT | PAGE);
    if (wait_for(&cpus_online, number + 2, 1000))
        return true;
    report(false, "CPU %u starts again", number);
    return false;
}

void guest_main(void)
{
    if (!(cpuid(1, 0).ecx & CPUID_VMX) || !smp_start(2)) {
        report(false, "VMX and two CPUs");
        return;
    }
    smp_call(1, lock_control, NULL);
    report(wait_for(&ready, 1, 1000), "CPU 1 has IA32_FEATURE_CONTROL");
    send_init(cpu_apic_ids[1]);
    if (!start_again(1))
        return;
    ready = 0;
    smp_call(2, in_root, NULL);
    report(wait_for(&ready, 1, 1000), "VMX is on");
    report(seen == CONTROL, "INIT leaves IA32_FEATURE_CONTROL: %#llx", LLU(seen));
    send_init(cpu_apic_ids[2]);
    released = 1;
    delay_us(20000);
    // Bochs forgets it
    report_known(MACHINE_BOCHS, ready == 2, "VMX root operation blocks an INIT until VMXOFF: %u",
                 ready);
    if (bare_machine() == MACHINE_BOCHS || !start_again(2))
        return;
    smp_call(3, look, NULL);
    smp_wait(3);
    report(seen == CONTROL, "and VMXOFF: %#llx", LLU(seen));
}
