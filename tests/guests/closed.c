// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// With IF = 0 no interrupt is taken, whatever made it pending and whatever else comes meanwhile
// (SDM vol. 3 "Masking Maskable Hardware Interrupts"). A timer's interrupt always comes in that
// time; in a virtual machine it is an external interrupt of the host first. In xAPIC and x2APIC
// mode.

#include "guest.h"

enum { LOG_MAX = 16, TIMER_VECTOR = 0x41, LOW = 0x51, HIGH = 0x71 };

static volatile u32 taken;
static u32 vectors[LOG_MAX];
static void (*volatile during)(void); // called in a handler, in place of the EOI

static void handler(struct trap *trap)
{
    void (*fn)(void) = during;
    u32 n = taken++;

    if (n < LOG_MAX)
        vectors[n] = (u32)trap->vector;
    during = NULL;
    (fn ? fn : apic_eoi)();
}

static void send(u32 vector)
{
    if (x2apic)
        msr_write(MSR_X2APIC_FIRST + 0x3f, vector);
    else
        apic_icr(0, ICR_SELF | ICR_ASSERT | vector);
}

static bool pending(u32 vector)
{
    return apic_read(APIC_IRR + vector / 32 * 16) & BIT(vector % 32);
}

static void write_cr8(u64 value)
{
    __asm__ volatile("mov %0, %%cr8" : : "r"(value) : "memory");
}

// Nothing in here makes an exit, but the clock's interrupt comes in it.
static void spin(void)
{
    for (volatile u32 i = 0; i < 400000; i++)
        ;
}

// With IF = 1. On a busy machine QEMU's timer may come much later than it should.
static void wait_until(u32 count)
{
    for (unsigned i = 0; i < 100 && taken < count; i++)
        spin();
}

static void start_timer(void)
{
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, TIMER_VECTOR);
    apic_write(APIC_TIMER_INITIAL, 50000);
}

// IF = 1 for the last instruction that may exit, then 0; STI's shadow would be in the way.
static void begin(void)
{
    do {
        taken = 0;
        sti();
        start_timer();
        __asm__ volatile("nop; cli");
    } while (taken); // it came too soon
}

static void end(const char *what, u32 count)
{
    report(taken == 0 && pending(LOW), "%s: %u taken with IF = 0", what, taken);
    sti();
    wait_until(count);
    cli();
    report(taken == count && vectors[0] == LOW, "then they are taken: %u, %x first", taken,
           vectors[0]);
}

static void spin_after_eoi(void)
{
    apic_eoi();
    spin();
    report(taken == 1 && pending(LOW), "after an EOI in a handler: %u taken with IF = 0",
           taken - 1);
}

// The guest was entered with IF = 0, and an exception's delivery clears it again.
static void raise_ud(void *arg)
{
    (void)arg;
    __asm__ volatile("ud2");
}

static void test(const char *mode)
{
    print("%s mode\n", mode);
    begin();
    send(LOW);
    spin();
    end("sent to itself", 2);

    write_cr8(HIGH >> 4);
    send(LOW);
    begin();
    write_cr8(0);
    spin();
    end("TPR falls", 2);

    begin();
    send(LOW);
    cpuid(0, 0); // exits
    try(raise_ud, NULL);
    spin();
    end("CPUID and an exception", 2);

    write_cr8(HIGH >> 4);
    send(LOW);
    send(HIGH);
    during = spin_after_eoi;
    begin();
    sti();
    write_cr8(0);
    wait_until(3);
    cli();
    report(taken == 3 && vectors[0] == HIGH && vectors[1] == LOW, "then they are taken: %u", taken);
}

void guest_main(void)
{
    for (unsigned i = 0x40; i < 0x80; i++)
        trap_handlers[i] = handler;
    test("xAPIC");
    if (apic_enable_x2())
        test("x2APIC");
}
