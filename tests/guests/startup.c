// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// INIT and SIPI: a CPU is stopped wherever it is and starts anew, in real mode at the SIPI's page
// (SDM vol. 3 "MP Initialization Protocol Algorithm", "Processor State After INIT").

#include "guest.h"

enum { VECTOR = 0x51, PAGE = 8, ROUNDS = 4 };

static volatile u32 taken, busy;

static void handler(struct trap *trap)
{
    (void)trap;
    taken++;
    apic_eoi();
}

static void spin(void *unused)
{
    (void)unused;
    busy = 1;
    sti();
    for (;;)
        pause();
}

static void exits(void *unused)
{
    (void)unused;
    busy = 1;
    sti();
    for (;;)
        cpuid(0, 0);
}

static void halt(void *unused)
{
    (void)unused;
    busy = 1;
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void in_nmi(struct trap *trap)
{
    (void)trap;
    halt(NULL);
}

static void nmi(void *unused)
{
    (void)unused;
    apic_icr(apic_id(), ICR_NMI | ICR_ASSERT);
    spin(NULL);
}

static const struct {
    const char *name;
    void (*fn)(void *);
} states[ROUNDS] = {
    {"in a loop", spin}, {"between exits", exits}, {"halted", halt}, {"in an NMI's handler", nmi}};

// lib's trampoline gives the CPU the next number each time.
static void test_round(u32 n)
{
    u32 id = cpu_apic_ids[1], number = n + 1;

    busy = taken = 0;
    smp_call(number, states[n].fn, NULL);
    wait_for(&busy, 1, 1000);
    delay_us(1000);
    apic_icr(id, ICR_INIT | ICR_ASSERT | ICR_LEVEL);
    apic_icr(id, ICR_INIT | ICR_LEVEL);
    delay_us(20000);
    taken = 0;
    apic_icr(id, ICR_ASSERT | VECTOR);
    delay_us(2000);
    report(taken == 0 && cpus_online == number + 1, "%s: after INIT it takes no interrupt",
           states[n].name);
    apic_icr(id, ICR_SIPI | ICR_ASSERT | PAGE);
    report(wait_for(&cpus_online, number + 2, 1000), "%s: SIPI starts it", states[n].name);
    report(cpu_apic_ids[number + 1] == id, "%s: its APIC ID is %u", states[n].name,
           cpu_apic_ids[number + 1]);
}

void guest_main(void)
{
    trap_handlers[VECTOR] = handler;
    trap_handlers[VECTOR_NMI] = in_nmi;
    report(smp_start(2), "%u CPUs, expected 2", cpus_online);
    if (cpus_online < 2)
        return;
    for (u32 n = 0; n < ROUNDS; n++)
        test_round(n);
    apic_icr(cpu_apic_ids[1], ICR_SIPI | ICR_ASSERT | PAGE);
    delay_us(20000);
    report(cpus_online == ROUNDS + 2, "SIPI to a running CPU is ignored");
}
