// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The local APIC's timer (SDM vol. 3 "APIC Timer"): one-shot, periodic and TSC-deadline. Its input
// clock is the host's TSC before the divider, so that a count is a shift of a TSC difference; the
// current count is worked out when it is read.

#include "clock.h"
#include "lapic.h"

#include <nestor/cpu.h>
#include <nestor/device.h>
#include <nestor/vcpu.h>
#include <nestor/vm.h>

enum timer_mode { TIMER_ONE_SHOT, TIMER_PERIODIC, TIMER_TSC_DEADLINE, TIMER_RESERVED };

#define TIMER_FAR BIT(62) // a host's uptime does not come so far

// A periodic timer of a shorter period costs at most one interrupt in this time: enough for an L2's
// handler to end under an emulated CPU. Longer ones keep their phase, however late one was. What is
// owed comes so many times as fast, but so far apart: an exit too early is one more to catch up on.
enum { TIMER_MIN_PERIOD_NS = 100000, TIMER_CATCH_UP = 4, TIMER_OWED_MIN_NS = 50000 };

static enum timer_mode timer_mode(const struct lapic *lapic)
{
    return (enum timer_mode)(lapic->s.lvt[LVT_TIMER] >> 17 & 3);
}

// The divide configuration 000b..111b means 2, 4, ..., 128, 1.
static unsigned timer_shift(const struct lapic *lapic)
{
    u32 divide = lapic->s.timer_divide;

    return (((divide & 3) | (divide >> 1 & 4)) + 1) & 7;
}

static u64 timer_period(const struct lapic *lapic)
{
    return (u64)lapic->s.timer_initial << timer_shift(lapic);
}

u32 lapic_timer_current(const struct lapic *lapic)
{
    u64 period = timer_period(lapic), elapsed = machine_now() - lapic->s.timer_start;

    if (!lapic->s.timer_running || !period)
        return 0;
    if (elapsed >= period) {
        if (timer_mode(lapic) != TIMER_PERIODIC)
            return 0;
        elapsed %= period;
    }
    return (u32)(lapic->s.timer_initial - (elapsed >> timer_shift(lapic)));
}

static void timer_arm_at(struct lapic *lapic, u64 deadline)
{
    timer_arm(&lapic->timer, lapic->vcpu->cpu->id, deadline);
}

static void timer_disarm(struct lapic *lapic)
{
    // Only this CPU arms and fires it, so this look needs no lock.
    if (lapic->timer.armed)
        timer_cancel(&lapic->timer);
}

static void timer_stop(struct lapic *lapic)
{
    lapic->s.timer_running = false;
    lapic->s.timer_owed = 0;
    lapic->s.tsc_deadline = 0;
    timer_disarm(lapic);
}

static void timer_raise(struct lapic *lapic)
{
    lapic_local(lapic, LVT_TIMER);
}

// The next deadline of a running count. While one interrupt waits for the guest, one that is owed
// is not tried before the next period's end: what a slow guest lacks is not more exits.
static void timer_arm_count(struct lapic *lapic, bool waits)
{
    u64 period = timer_period(lapic), next = lapic->s.timer_start + period, now;

    if (timer_mode(lapic) == TIMER_PERIODIC) {
        now = machine_now();
        if (unlikely(lapic->s.timer_owed) && !waits)
            next = MIN(next, now + MAX(period / TIMER_CATCH_UP, ns_to_tsc(TIMER_OWED_MIN_NS)));
        if (unlikely(period < ns_to_tsc(TIMER_MIN_PERIOD_NS)))
            next = MAX(next, now + ns_to_tsc(TIMER_MIN_PERIOD_NS));
    }
    timer_arm_at(lapic, next);
}

// Periods that went by because Nestor came late are made up for, a second's worth at most, as the
// 8254's (pit.c); the phase is kept. What the guest itself keeps waiting is lost, as in hardware.
static void timer_fire_period(struct lapic *lapic, u64 period)
{
    bool waits = false;
    u64 elapsed = machine_now() - lapic->s.timer_start, passed = elapsed / period;
    u64 most = tsc_hz / period;

    lapic->s.timer_start += passed * period;
    if (passed > 1 && period >= ns_to_tsc(TIMER_MIN_PERIOD_NS))
        lapic->s.timer_owed = MIN(lapic->s.timer_owed + passed - 1, most);
    if (unlikely(lapic->s.timer_owed))
        waits = lapic_waits(lapic, (u8)lapic->s.lvt[LVT_TIMER]);
    if (waits) {
        lapic->s.timer_owed = MIN(lapic->s.timer_owed + (passed != 0), most);
    } else {
        lapic->s.timer_owed -= lapic->s.timer_owed && passed == 0;
        timer_raise(lapic);
    }
    timer_arm_count(lapic, waits);
}

static void timer_fire_count(struct lapic *lapic)
{
    u64 period = timer_period(lapic);

    if (timer_mode(lapic) == TIMER_PERIODIC && period) {
        timer_fire_period(lapic, period);
    } else {
        lapic->s.timer_running = false;
        timer_raise(lapic);
    }
}

static void timer_fire(struct timer *timer)
{
    struct lapic *lapic = CONTAINER_OF(timer, struct lapic, timer);

    if (lapic->s.tsc_deadline) {
        lapic->s.tsc_deadline = 0;
        timer_raise(lapic);
    } else if (lapic->s.timer_running) {
        timer_fire_count(lapic);
    }
}

void lapic_timer_init(struct lapic *lapic)
{
    lapic->timer.fn = timer_fire;
}

void lapic_timer_write_initial(struct lapic *lapic, u32 count)
{
    if (timer_mode(lapic) >= TIMER_TSC_DEADLINE)
        return;
    lapic->s.timer_initial = count;
    lapic->s.timer_owed = 0;
    lapic->s.timer_start = machine_now();
    lapic->s.timer_running = count != 0;
    if (count)
        timer_arm_count(lapic, false);
    else
        timer_disarm(lapic);
}

void lapic_timer_write_divide(struct lapic *lapic, u32 divide)
{
    u64 done = lapic->s.timer_initial - lapic_timer_current(lapic);

    lapic->s.timer_divide = divide & 0xb;
    if (!lapic->s.timer_running)
        return;
    // The count goes on from where it is, at the new pace.
    lapic->s.timer_start = machine_now() - (done << timer_shift(lapic));
    timer_arm_count(lapic, false);
}

void lapic_timer_write_lvt(struct lapic *lapic, u32 lvt)
{
    enum timer_mode old = timer_mode(lapic);
    u64 period = timer_period(lapic), now = machine_now();

    // A one-shot count that has passed its end, but whose timer has not fired yet, stays ended.
    if (old == TIMER_PERIODIC && lapic->s.timer_running && now - lapic->s.timer_start >= period)
        lapic->s.timer_start = now - (now - lapic->s.timer_start) % period;
    lapic->s.lvt[LVT_TIMER] = lvt;
    if (timer_mode(lapic) == old)
        return;
    // SDM "TSC-Deadline Mode": a change between it and the other modes disarms the timer.
    if (timer_mode(lapic) >= TIMER_TSC_DEADLINE || old >= TIMER_TSC_DEADLINE) {
        timer_stop(lapic);
        if (timer_mode(lapic) == TIMER_TSC_DEADLINE)
            lapic->s.timer_initial = 0;
    } else if (lapic->s.timer_running) {
        timer_arm_count(lapic, false);
    }
}

static void timer_arm_deadline(struct lapic *lapic)
{
    u64 now = machine_now(), guest_now = vcpu_guest_tsc(lapic->vcpu, now), left;

    if (guest_now >= lapic->s.tsc_deadline) {
        timer_disarm(lapic);
        lapic->s.tsc_deadline = 0;
        timer_raise(lapic);
        return;
    }
    // As a difference: what is far enough away would come round into the past.
    left = MIN(lapic->s.tsc_deadline - guest_now, TIMER_FAR);
    if (unlikely(lapic->vcpu->vm->tsc_multiplier)) // at most twice as many of the host's
        left = mul_div(left, tsc_hz, lapic->vcpu->vm->tsc_hz) + 1;
    timer_arm_at(lapic, now + MIN(left, TIMER_FAR));
}

void lapic_timer_write_deadline(struct lapic *lapic, u64 deadline)
{
    if (timer_mode(lapic) != TIMER_TSC_DEADLINE)
        return;
    lapic->s.tsc_deadline = deadline;
    if (deadline)
        timer_arm_deadline(lapic);
    else
        timer_disarm(lapic);
}

void lapic_tsc_changed(struct vcpu *vcpu)
{
    if (vcpu->lapic->s.tsc_deadline)
        timer_arm_deadline(vcpu->lapic);
}
