// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The clock and the timers of a guest's devices. Every slow device's deadline waits on the physical
// CPU of vCPU 0, so that one queue holds them all and nobody else is woken for them.

#include "clock.h"
#include "machine.h"

#include <nestor/cpu.h>
#include <nestor/vcpu.h>

u64 machine_now(void)
{
    return tsc_now();
}

void machine_timer_arm(struct machine *machine, struct timer *timer, u64 deadline)
{
    timer_arm(timer, machine->vm->vcpus[0]->cpu->id, deadline);
}
