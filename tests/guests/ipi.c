// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Interprocessor interrupts between CPUs: destinations, NMI, waking from HLT, in xAPIC and in
// x2APIC mode (SDM vol. 3 "Issuing Interprocessor Interrupts", "MP Initialization Protocol
// Algorithm").

#include "guest.h"

enum { VECTOR = 0x51 };

static volatile u32 taken[2], nmis[2], halted;
static volatile bool stop_waiting;

static void handler(struct trap *trap)
{
    (void)trap;
    taken[this_cpu_number()]++;
    apic_eoi();
}

static void nmi_handler(struct trap *trap)
{
    (void)trap;
    nmis[this_cpu_number()]++;
}

static void clear(void)
{
    taken[0] = taken[1] = nmis[0] = nmis[1] = 0;
}

// What CPU 1 does meanwhile.
static void spin(void *unused)
{
    (void)unused;
    sti();
    halted = 1;
    while (!stop_waiting)
        pause();
    cli();
}

static void halt(void *unused)
{
    (void)unused;
    halted = 1;
    while (!stop_waiting)
        __asm__ volatile("sti; hlt; cli" : : : "memory");
}

static void halt_closed(void *unused)
{
    (void)unused;
    halted = 1;
    __asm__ volatile("cli; hlt" : : : "memory");
}

static void begin(void (*fn)(void *))
{
    clear();
    stop_waiting = false;
    halted = 0;
    smp_call(1, fn, NULL);
    wait_for(&halted, 1, 1000);
    delay_us(1000);
    clear(); // what the last end() sent may have come only now
}

static void end(void)
{
    stop_waiting = true;
    apic_icr(cpu_apic_ids[1], ICR_ASSERT | VECTOR);
    report(smp_wait(1), "CPU 1 goes on");
}

static void test_shorthands(void)
{
    sti();
    apic_icr(0, ICR_SELF | ICR_ASSERT | VECTOR);
    report(wait_for(&taken[0], 1, 100) && taken[1] == 0, "self: %u %u", taken[0], taken[1]);
    clear();
    apic_icr(0, ICR_OTHERS | ICR_ASSERT | VECTOR);
    report(wait_for(&taken[1], 1, 100) && taken[0] == 0, "all but self: %u %u", taken[0], taken[1]);
    clear();
    apic_icr(0, ICR_ALL | ICR_ASSERT | VECTOR);
    report(wait_for(&taken[1], 1, 100) && wait_for(&taken[0], 1, 100), "all: %u %u", taken[0],
           taken[1]);
    cli();
}

static void test_destinations(void)
{
    u32 broadcast = x2apic ? ~0u : 0xff;

    sti();
    clear();
    apic_icr(cpu_apic_ids[1], ICR_ASSERT | VECTOR);
    report(wait_for(&taken[1], 1, 100) && taken[0] == 0, "physical: %u %u", taken[0], taken[1]);
    clear();
    apic_icr(cpu_apic_ids[0], ICR_ASSERT | VECTOR);
    report(wait_for(&taken[0], 1, 100) && taken[1] == 0, "physical to itself: %u %u", taken[0],
           taken[1]);
    clear();
    apic_icr(broadcast, ICR_ASSERT | VECTOR);
    report(wait_for(&taken[1], 1, 100) && wait_for(&taken[0], 1, 100), "physical broadcast: %u %u",
           taken[0], taken[1]);
    clear();
    apic_icr(0x77, ICR_ASSERT | VECTOR);
    delay_us(2000);
    report(taken[0] + taken[1] == 0, "nobody's: %u %u", taken[0], taken[1]);
    cli();
}

static volatile u32 logical_id;

static void set_logical(void *id)
{
    if (!x2apic) {
        apic_write(APIC_DFR, ~0u);
        apic_write(APIC_LDR, (u32)(u64)id << 24);
    }
    logical_id = apic_read(APIC_LDR);
}

static void test_logical(void)
{
    u32 ids[2];

    set_logical((void *)1);
    ids[0] = logical_id;
    smp_call(1, set_logical, (void *)2);
    smp_wait(1);
    ids[1] = logical_id;
    if (x2apic)
        report(ids[0] == 1u << (cpu_apic_ids[0] & 15) && ids[1] == 1u << (cpu_apic_ids[1] & 15),
               "logical IDs %#x %#x", ids[0], ids[1]);
    begin(spin);
    sti();
    apic_icr(x2apic ? ids[1] : 2, ICR_LOGICAL | ICR_ASSERT | VECTOR);
    report(wait_for(&taken[1], 1, 100) && taken[0] == 0, "logical, one: %u %u", taken[0], taken[1]);
    clear();
    apic_icr(x2apic ? ids[0] | ids[1] : 3, ICR_LOGICAL | ICR_ASSERT | VECTOR);
    report(wait_for(&taken[1], 1, 100) && wait_for(&taken[0], 1, 100), "logical, both: %u %u",
           taken[0], taken[1]);
    cli();
    end();
}

static void test_halted(void)
{
    u32 count = 0;

    begin(halt);
    for (unsigned i = 0; i < 200; i++) {
        u32 before = taken[1];

        apic_icr(cpu_apic_ids[1], ICR_ASSERT | VECTOR);
        count += wait_for(&taken[1], before + 1, 100);
    }
    report(count == 200, "200 to a halted CPU: %u came", count);
    end();
}

static void test_nmi(void)
{
    begin(spin);
    apic_icr(cpu_apic_ids[1], ICR_NMI | ICR_ASSERT);
    report(wait_for(&nmis[1], 1, 100) && nmis[0] == 0, "NMI to a running CPU");
    end();
    begin(halt_closed);
    apic_icr(cpu_apic_ids[1], ICR_NMI | ICR_ASSERT);
    report(wait_for(&nmis[1], 1, 100), "NMI wakes a CPU that halted with IF = 0");
    report(smp_wait(1), "and it goes on");
}

static void go_x2(void *unused)
{
    (void)unused;
    apic_enable_x2();
}

static void test_all(const char *mode)
{
    print("%s\n", mode);
    begin(spin);
    test_shorthands();
    test_destinations();
    end();
    test_logical();
    test_halted();
    test_nmi();
}

void guest_main(void)
{
    trap_handlers[VECTOR] = handler;
    trap_handlers[VECTOR_NMI] = nmi_handler;
    report(smp_start(2), "%u CPUs, expected 2", cpus_online);
    if (cpus_online < 2)
        return;
    report(cpu_apic_ids[1] != cpu_apic_ids[0], "APIC IDs %u %u", cpu_apic_ids[0], cpu_apic_ids[1]);
    test_all("xAPIC");
    if (cpuid(1, 0).ecx & BIT(21)) {
        smp_call(1, go_x2, NULL);
        delay_us(10000);
        apic_enable_x2();
        report(smp_wait(1), "CPU 1 is in x2APIC mode");
        test_all("x2APIC");
    } else {
        report_skip("no x2APIC");
    }
}
