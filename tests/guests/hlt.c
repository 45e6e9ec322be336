// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// HLT: what wakes it, where it goes on, and that it waits (SDM vol. 2 "HLT").

#include "guest.h"

static volatile u32 taken;
static u64 rip;

static void handler(struct trap *trap)
{
    taken++;
    rip = trap->rip;
    apic_eoi();
}

static void start_timer(u32 count)
{
    apic_write(APIC_TIMER_DIVIDE, 0xb); // by 1
    apic_write(APIC_LVT_TIMER, 0x51);
    apic_write(APIC_TIMER_INITIAL, count);
}

// Whether the interrupt found the CPU behind a HLT.
static bool halt(void)
{
    u64 after;

    __asm__ volatile("lea 1f(%%rip), %0; sti; hlt; 1: cli" : "=&r"(after) : : "memory");
    return rip == after;
}

// Ticks of the APIC timer in 10 ms.
static u32 measure(void)
{
    start_timer(~0u);
    delay_us(10000);

    u32 ticks = ~0u - apic_read(APIC_TIMER_CURRENT);

    apic_write(APIC_TIMER_INITIAL, 0);
    return ticks;
}

static void test_timer(u32 ticks)
{
    u32 woken = 0;

    taken = 0;
    start_timer(ticks);
    report(halt() && taken == 1, "woken by the APIC timer: %u taken", taken);
    report(apic_read(APIC_TIMER_CURRENT) == 0, "when it had run down");
    for (unsigned i = 0; i < 200; i++) {
        start_timer(ticks / 100 + i * 7);
        woken += halt();
    }
    report(taken == 201, "200 short ones: %u taken, %u found it halted", taken - 1, woken);
}

static void test_pending(void)
{
    taken = 0;
    apic_icr(0, ICR_SELF | ICR_ASSERT | 0x51);
    report(halt() && taken == 1, "one that is pending wakes it at once");
}

// Interrupts that are not let through don't wake it: the timer comes first at a lower priority,
// then at a higher one.
static void test_priority(u32 ticks)
{
    taken = 0;
    __asm__ volatile("mov %0, %%cr8" : : "r"(5ull));
    apic_icr(0, ICR_SELF | ICR_ASSERT | 0x41);
    apic_write(APIC_LVT_TIMER, 0x61);
    apic_write(APIC_TIMER_INITIAL, ticks);
    trap_handlers[0x61] = handler;
    report(halt() && taken == 1, "an interrupt below the task priority does not wake it: %u taken",
           taken);
    __asm__ volatile("mov %0, %%cr8; sti; nop; cli" : : "r"(0ull));
    report(taken == 2, "it comes when the priority is lowered");
}

static void test_pit(void)
{
    taken = 0;
    trap_handlers[0x30] = handler;
    out8(0x20, 0x11);
    out8(0x21, 0x30);
    out8(0x21, 4);
    out8(0x21, 3); // automatic EOI
    out8(0x21, 0xfe);
    apic_write(APIC_LVT_LINT0, 0x700);
    out8(0x43, 0x30);
    out8(0x40, 0);
    out8(0x40, 0x10);
    report(halt() && taken == 1, "woken by the PIT through the PIC");
    out8(0x21, 0xff);
    apic_write(APIC_LVT_LINT0, LVT_MASKED | 0x700);
}

void guest_main(void)
{
    u32 ticks;

    trap_handlers[0x51] = handler;
    trap_handlers[0x41] = handler;
    ticks = measure();
    report(ticks > 1000, "the APIC timer runs: %u ticks in 10 ms", ticks);
    test_timer(ticks);
    test_pending();
    test_priority(ticks);
    test_pit();
}
