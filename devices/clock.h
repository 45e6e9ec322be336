// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The one clock of a guest's devices: the host's TSC, and conversions to a device's own ticks.

#pragma once

#include <nestor/time.h>
#include <nestor/types.h>

struct machine;

// Host TSC. Unit tests put their own in its place.
u64 machine_now(void);

// Ticks of an oscillator of `hz` in `tsc` ticks of the host's TSC, rounded down; and the other way,
// rounded up, so that at the resulting TSC the device's tick has surely happened.
static inline u64 clock_ticks(u64 tsc, u64 hz)
{
    return mul_div(tsc, hz, tsc_hz);
}

static inline u64 clock_tsc(u64 ticks, u64 hz)
{
    return mul_div(ticks, tsc_hz, hz) + 1;
}

// Arms a device's timer on the physical CPU of vCPU 0.
void machine_timer_arm(struct machine *machine, struct timer *timer, u64 deadline);
