// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Time: the host TSC as the one clock, its frequency, and one deadline queue per CPU.

#pragma once

#include <nestor/types.h>

extern u64 tsc_hz;   // calibrated at boot by CPUID 15h, the PM timer or the PIT
extern u64 boot_tsc; // when Nestor began: the log's zero

static inline u64 tsc_now(void)
{
    u32 lo, hi;

    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (u64)hi << 32 | lo;
}

// a * b / c with a 128-bit product.
static inline u64 mul_div(u64 a, u64 b, u64 c)
{
    u64 lo, hi, quot, rem;

    __asm__("mulq %3" : "=a"(lo), "=d"(hi) : "a"(a), "r"(b));
    __asm__("divq %4" : "=a"(quot), "=d"(rem) : "a"(lo), "d"(hi % c), "r"(c));
    return quot;
}

static inline u64 ns_to_tsc(u64 ns)
{
    return mul_div(ns, tsc_hz, 1000000000ull);
}

static inline u64 tsc_to_ns(u64 ticks)
{
    return mul_div(ticks, 1000000000ull, tsc_hz);
}

// Nanoseconds since 1970 at a host TSC, from the machine's RTC, read once at boot; seconds, now.
u64 time_wall_ns(u64 tsc);
u64 time_wall_seconds(void);
// Busy-waits.
void time_delay_us(u32 us);

// A deadline. It fires once, on the CPU that it was armed for, from the run loop or from idle
// (never inside an interrupt handler), with no lock held: fn may arm again. Owned by whoever embeds
// it.
struct timer {
    u64 deadline; // host TSC
    void (*fn)(struct timer *timer);
    struct timer *next; // under timer_lock
    u32 cpu;            // the id of the CPU whose queue it is in
    bool armed;
};

// Arms (or moves) the timer to fire on CPU `cpu` at host TSC `deadline`; the past fires at once.
// Any CPU; kicks `cpu` if its earliest deadline changed.
void timer_arm(struct timer *timer, u32 cpu, u64 deadline);
// After it returns, fn will not be called until armed again (it may be running on its CPU at this
// moment).
void timer_cancel(struct timer *timer);
// Runs this CPU's due timers and returns the next deadline, ~0 if none. Cheap when nothing is due
// (no lock).
u64 timer_poll(void);
// This CPU's next deadline without running anything.
u64 timer_next(void);
// Has the hardware interrupt this CPU (HOST_VECTOR_TIMER) at `deadline`; ~0 disarms. Does nothing
// if it is armed so already. A back end with a timer of its own (the VMX preemption timer) needs it
// only for idle.
void timer_arm_hardware(u64 deadline);
void timer_init_cpu(void);
