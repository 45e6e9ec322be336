// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Deadlines: a sorted list for each CPU under its own lock, and the LAPIC timer, by TSC deadline or
// by a count, for its first one. timer_first is a copy of the first deadline that anybody may read.

#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <nestor/cpu.h>
#include <nestor/machine.h>
#include <nestor/time.h>

#define NEVER (~0ull)

static bool deadline_mode; // set on the boot CPU before there are others

// Under the lock of the CPU whose queue it is.
static void queue_changed(struct cpu *cpu)
{
    __atomic_store_n(&cpu->timer_first, cpu->timers ? cpu->timers->deadline : NEVER,
                     __ATOMIC_RELAXED);
}

static void queue_remove(struct cpu *cpu, struct timer *timer)
{
    struct timer **link = &cpu->timers;

    if (!timer->armed)
        return;
    while (*link != timer)
        link = &(*link)->next;
    *link = timer->next;
    timer->armed = false;
    queue_changed(cpu);
}

static void queue_insert(struct cpu *cpu, struct timer *timer)
{
    struct timer **link = &cpu->timers;

    while (*link && (*link)->deadline <= timer->deadline)
        link = &(*link)->next;
    timer->next = *link;
    timer->armed = true;
    *link = timer;
    queue_changed(cpu);
}

void timer_cancel(struct timer *timer)
{
    struct cpu *cpu = cpus[timer->cpu];

    spin_lock(&cpu->timer_lock);
    queue_remove(cpu, timer);
    spin_unlock(&cpu->timer_lock);
}

void timer_arm(struct timer *timer, u32 id, u64 deadline)
{
    struct cpu *cpu = cpus[id];
    bool first;

    if (timer->cpu != id)
        timer_cancel(timer);
    spin_lock(&cpu->timer_lock);
    queue_remove(cpu, timer);
    timer->cpu = id;
    timer->deadline = deadline;
    queue_insert(cpu, timer);
    first = cpu->timers == timer;
    spin_unlock(&cpu->timer_lock);
    if (first && cpu != this_cpu())
        cpu_kick(cpu);
}

static struct timer *take_due(struct cpu *cpu)
{
    struct timer *timer;

    spin_lock(&cpu->timer_lock);
    timer = cpu->timers;
    if (timer && timer->deadline <= tsc_now())
        queue_remove(cpu, timer);
    else
        timer = NULL;
    spin_unlock(&cpu->timer_lock);
    return timer;
}

u64 timer_next(void)
{
    return __atomic_load_n(&this_cpu()->timer_first, __ATOMIC_RELAXED);
}

u64 timer_poll(void)
{
    struct timer *timer;
    u64 next;

    while ((next = timer_next()) != NEVER && next <= tsc_now()) {
        timer = take_due(this_cpu());
        if (timer)
            timer->fn(timer);
    }
    return next;
}

// A count that is too small for the deadline only wakes the CPU early: whoever waits arms again.
static u32 count_until(u64 deadline)
{
    u64 now = tsc_now(), count;

    if (deadline <= now)
        return 1;
    if (deadline - now > tsc_hz) // more than a second
        return (u32)MIN(apic_timer_hz, 0xffffffffull);
    count = mul_div(deadline - now, apic_timer_hz, tsc_hz) + 1;
    return (u32)MIN(count, 0xffffffffull);
}

void timer_arm_hardware(u64 deadline)
{
    struct cpu *cpu = this_cpu();

    if (cpu->timer_armed == deadline)
        return;
    cpu->timer_armed = deadline;
    if (deadline_mode)
        msr_write(MSR_TSC_DEADLINE, deadline == NEVER ? 0 : MAX(deadline, 1));
    else
        apic_timer_set_count(deadline == NEVER ? 0 : count_until(deadline));
}

void timer_init_cpu(void)
{
    struct cpu *cpu = this_cpu();

    deadline_mode = cpuid(1, 0).ecx & BIT(24);
    cpu->timer_first = NEVER;
    cpu->timer_armed = NEVER;
    apic_timer_start(HOST_VECTOR_TIMER, deadline_mode);
}
