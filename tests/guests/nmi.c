// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// NMIs, sent by the local APIC to itself: taken whatever IF is, blocked until IRET, one more
// latched meanwhile (SDM vol. 3 "Nonmaskable Interrupt (NMI)", "Handling Multiple NMIs").

#include "guest.h"

static volatile u32 taken, depth, deepest;
static void (*volatile during)(void);

static void send_nmi(void)
{
    apic_icr(apic_id(), ICR_NMI | ICR_ASSERT);
}

static void handler(struct trap *trap)
{
    (void)trap;
    taken++;
    depth++;
    deepest = MAX(deepest, depth);
    if (during)
        during();
    depth--;
}

static void start(void (*fn)(void))
{
    taken = depth = deepest = 0;
    during = fn;
    send_nmi();
    delay_us(200);
}

static void test_plain(void)
{
    start(NULL);
    report(taken == 1, "NMI with IF = 0");
    sti();
    start(NULL);
    cli();
    report(taken == 1, "NMI with IF = 1");
}

static volatile u32 taken_inside;

static void send_two(void)
{
    during = NULL;
    send_nmi();
    send_nmi();
    for (int i = 0; i < 10; i++)
        cpuid(0, 0);
    delay_us(200);
    taken_inside = taken;
}

static void test_blocking(void)
{
    start(send_two);
    report(taken_inside == 1, "no NMI in an NMI's handler: %u", taken_inside);
    report(taken == 2 && deepest == 1, "two that came meanwhile are one: %u taken", taken);
    start(NULL);
    report(taken == 1, "and NMIs are open again");
}

static void nothing(struct trap *trap)
{
    (void)trap;
}

// An exception's IRET in the handler opens NMIs, as the manual warns.
static void iret_inside(void)
{
    during = NULL;
    send_nmi();
    delay_us(200);
    taken_inside = taken;
    __asm__ volatile("int3");
    delay_us(200);
    report(taken_inside == 1 && taken == 2, "IRET of a nested exception unblocks NMIs: %u taken",
           taken);
}

static void test_nested_iret(void)
{
    trap_handlers[VECTOR_BP] = nothing;
    start(iret_inside);
    report(deepest == 2, "the second NMI came inside the first");
}

// An interrupt waits for IF, not for the NMI's handler.
static volatile u32 interrupts;

static void interrupt(struct trap *trap)
{
    (void)trap;
    interrupts++;
    apic_eoi();
}

static void interrupt_inside(void)
{
    apic_icr(0, ICR_SELF | ICR_ASSERT | 0x51);
    delay_us(200);
    taken_inside = interrupts;
    sti();
    delay_us(200);
    cli();
}

static void test_interrupt(void)
{
    trap_handlers[0x51] = interrupt;
    start(interrupt_inside);
    report(taken_inside == 0 && interrupts == 1, "an interrupt in the handler comes after STI");
    during = NULL;
    start(NULL);
    report(taken == 1, "NMIs are open at the end");
}

void guest_main(void)
{
    trap_handlers[VECTOR_NMI] = handler;
    test_plain();
    test_blocking();
    test_nested_iret();
    test_interrupt();
}
