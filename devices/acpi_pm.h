// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// ACPI fixed hardware: PM1a event and control registers, the PM timer. Under the machine's lock,
// but the timer, which is read without.

#pragma once

#include "line.h"

#include <nestor/time.h>
#include <nestor/types.h>

struct machine;
struct vcpu;

#define PM_TIMER_HZ 3579545ull
enum { PM_BASE = 0x600, PM1_EVENT = PM_BASE, PM1_CONTROL = PM_BASE + 4, PM_TIMER = PM_BASE + 8 };

struct acpi_pm_state {
    u16 status, enable, control;
    bool asleep; // in S3, and nothing has woken it
    bool alarm;  // the level of the RTC's
    u64 seen;    // PM timer ticks up to which TMR_STS tells
};

struct acpi_pm {
    struct acpi_pm_state s;
    struct irq_line sci;
    struct machine *machine;
    struct timer timer;
};

void acpi_pm_init(struct acpi_pm *pm, struct machine *machine);
void acpi_pm_reset(struct acpi_pm *pm);
void acpi_pm_woken(struct acpi_pm *pm);                          // from S3
void acpi_pm_set_alarm(void *acpi_pm, unsigned pin, bool level); // the RTC's line
void acpi_pm1_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value);
void acpi_pm_timer_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                       u32 *value);
