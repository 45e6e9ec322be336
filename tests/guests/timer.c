// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The local APIC's timer: one-shot, periodic, TSC deadline, divider, mask; in xAPIC and in x2APIC
// mode (SDM vol. 3 "APIC Timer").

#include "guest.h"

enum { VECTOR = 0x51, PERIODIC = 1 << 17, TSC_DEADLINE = 2 << 17 };

static volatile u32 taken;
static u64 taken_at;

static void handler(struct trap *trap)
{
    (void)trap;
    taken++;
    taken_at = rdtsc();
    apic_eoi();
}

static void stop(void)
{
    apic_write(APIC_TIMER_INITIAL, 0);
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
    sti();
    cli();
    taken = 0;
}

static void start(u32 lvt, u32 divide, u32 count)
{
    stop();
    apic_write(APIC_TIMER_DIVIDE, divide);
    apic_write(APIC_LVT_TIMER, lvt);
    apic_write(APIC_TIMER_INITIAL, count);
}

// Ticks in 10 ms, by the least of some short times, for a busy host only adds to them.
static u32 measure(u32 divide)
{
    u32 least = ~0u;

    for (int i = 0; i < 20; i++) {
        start(LVT_MASKED, divide, ~0u);
        delay_us(1000);
        least = MIN(least, ~0u - apic_read(APIC_TIMER_CURRENT));
        stop();
    }
    return least * 10;
}

static void test_one_shot(u32 ticks)
{
    u32 first, second;

    start(VECTOR, 0xb, ticks);
    first = apic_read(APIC_TIMER_CURRENT);
    second = apic_read(APIC_TIMER_CURRENT);
    report(first <= ticks && second <= first && first > ticks / 2, "one-shot: it counts down");
    sti();
    report(wait_for(&taken, 1, 100), "one-shot: it comes");
    delay_us(30000);
    report(taken == 1 && apic_read(APIC_TIMER_CURRENT) == 0, "one-shot: once");
    apic_write(APIC_TIMER_INITIAL, ticks);
    report(wait_for(&taken, 2, 100), "one-shot: again when the count is written");
    apic_write(APIC_TIMER_INITIAL, ticks);
    apic_write(APIC_TIMER_INITIAL, 0);
    delay_us(20000);
    cli();
    report(taken == 2, "one-shot: a count of 0 stops it");
}

static void test_periodic(u32 ticks)
{
    u32 seen;

    start(PERIODIC | VECTOR, 0xb, ticks);
    sti();
    report(wait_for(&taken, 10, 500), "periodic: ten times");
    report(apic_read(APIC_TIMER_CURRENT) <= ticks && apic_read(APIC_TIMER_INITIAL) == ticks,
           "periodic: it goes on from the initial count");
    cli();
    delay_us(40000);
    seen = taken;
    sti();
    delay_us(1000);
    cli();
    report(taken - seen >= 1 && taken - seen <= 3, "periodic: with IF = 0 one is kept: %u",
           taken - seen);
    apic_write(APIC_LVT_TIMER, LVT_MASKED | PERIODIC | VECTOR);
    sti();
    delay_us(1000);
    seen = taken;
    delay_us(40000);
    cli();
    report(taken == seen, "periodic: masked");
}

static void test_divide(u32 ticks)
{
    static const u8 codes[] = {0xb, 0, 1, 2, 3, 8, 9, 0xa};

    for (unsigned i = 1; i < 8; i += 3) {
        u32 slower = measure(codes[i]);
        s64 off = (s64)((u64)slower << i) - ticks;

        report(off < ticks / 4 && off > -(s64)(ticks / 4), "divided by %u: %u ticks for %u",
               1u << i, slower, ticks);
    }
}

static void test_deadline(void)
{
    u64 start_tsc, deadline, frequency;

    if (!(cpuid(1, 0).ecx & BIT(24))) {
        report_skip("no TSC deadline");
        return;
    }
    start_tsc = rdtsc();
    delay_us(10000);
    frequency = rdtsc() - start_tsc;
    start(TSC_DEADLINE | VECTOR, 0xb, 0);
    deadline = rdtsc() + frequency;
    msr_write(MSR_TSC_DEADLINE, deadline);
    report(msr_read(MSR_TSC_DEADLINE) == deadline, "TSC deadline can be read back");
    sti();
    report(wait_for(&taken, 1, 100) && taken_at >= deadline,
           "TSC deadline: it comes, %lld ticks late", (long long)(taken_at - deadline));
    cli();
    report_known(MACHINE_BOCHS, msr_read(MSR_TSC_DEADLINE) == 0, "and the MSR is 0");
    msr_write(MSR_TSC_DEADLINE, rdtsc() - 1);
    sti();
    report(wait_for(&taken, 2, 10), "TSC deadline that is over: at once");
    msr_write(MSR_TSC_DEADLINE, rdtsc() + frequency);
    msr_write(MSR_TSC_DEADLINE, 0);
    delay_us(20000);
    cli();
    report(taken == 2, "TSC deadline 0 disarms it");
    apic_write(APIC_TIMER_INITIAL, 1000);
    report(apic_read(APIC_TIMER_CURRENT) == 0, "the initial count does nothing in this mode");
    stop();
    msr_write(MSR_TSC_DEADLINE, rdtsc() + 1000);
    report(msr_read(MSR_TSC_DEADLINE) == 0, "the MSR does nothing in another mode");
}

// Interrupts while many exits of other kinds go on.
static void test_load(u32 ticks)
{
    u64 sum = 0;

    start(PERIODIC | VECTOR, 0xb, ticks / 20);
    sti();
    for (unsigned i = 0; taken < 100 && i < 1000000; i++)
        sum += cpuid(0, 0).ebx + msr_read(MSR_PAT) + in8(0x21) + apic_read(APIC_VERSION);
    cli();
    report(taken >= 100 && sum, "100 between other exits: %u", taken);
    stop();
}

static void test_all(const char *mode)
{
    u32 ticks = measure(0xb);

    report(ticks > 1000, "%s: %u ticks in 10 ms", mode, ticks);
    test_one_shot(ticks);
    test_periodic(ticks);
    test_divide(ticks);
    test_deadline();
    test_load(ticks);
}

void guest_main(void)
{
    trap_handlers[VECTOR] = handler;
    test_all("xAPIC");
    if (apic_enable_x2())
        test_all("x2APIC");
    else
        report_skip("no x2APIC");
}
