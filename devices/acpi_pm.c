// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// ACPI fixed hardware (ACPI 6 "ACPI Hardware Specification": PM1 event and control grouping, power
// management timer of 32 bits). The machine is always in ACPI mode; S5 is sleep type 0, S3 is 1
// (dsdt.asl), and what wakes from it is the RTC's alarm.

#include "acpi_pm.h"
#include "clock.h"
#include "machine.h"

enum { TMR_STS = BIT(0), RTC_STS = BIT(10), WAK_STS = BIT(15), PM1_ENABLES = 0x0721 };
enum {
    SCI_EN = BIT(0),
    BM_RLD = BIT(1),
    SLP_TYP = 7 << 10,
    SLP_EN = BIT(13),
    SLP_TYP_S5 = 0,
    SLP_TYP_S3 = 1
};

static u64 pm_ticks(const struct acpi_pm *pm)
{
    return clock_ticks(machine_now() - pm->machine->start, PM_TIMER_HZ);
}

static void pm_catch_up(struct acpi_pm *pm)
{
    u64 now = pm_ticks(pm);

    if (now >> 31 != pm->s.seen >> 31) // the highest bit has changed
        pm->s.status |= TMR_STS;
    pm->s.seen = now;
}

static void pm_changed(struct acpi_pm *pm)
{
    irq_line_set(&pm->sci, pm->s.status & pm->s.enable & PM1_ENABLES);
    if (pm->s.status & pm->s.enable & RTC_STS)
        pm->s.asleep = false; // core/vm.c looks at it
    if (pm->s.enable & ~pm->s.status & TMR_STS)
        machine_timer_arm(pm->machine, &pm->timer,
                          pm->machine->start +
                              clock_tsc(((pm->s.seen >> 31) + 1) << 31, PM_TIMER_HZ));
    else
        timer_cancel(&pm->timer);
}

void acpi_pm_set_alarm(void *receiver, unsigned pin, bool level)
{
    struct acpi_pm *pm = receiver;

    (void)pin;
    if (level && !pm->s.alarm)
        pm->s.status |= RTC_STS;
    pm->s.alarm = level;
    pm_changed(pm);
}

static void pm_fire(struct timer *timer)
{
    struct acpi_pm *pm = CONTAINER_OF(timer, struct acpi_pm, timer);

    spin_lock(&pm->machine->lock);
    pm_catch_up(pm);
    pm_changed(pm);
    spin_unlock(&pm->machine->lock);
}

static void pm_write_event(struct acpi_pm *pm, u32 value, u32 lanes)
{
    u32 enable = (pm->s.enable & ~(lanes >> 16)) | ((value & lanes) >> 16);

    pm->s.status &= (u16) ~(value & lanes); // written ones clear
    pm->s.enable = (u16)(enable & PM1_ENABLES);
    pm_changed(pm);
}

static void pm_sleep(struct acpi_pm *pm, u32 type)
{
    if (type == SLP_TYP_S5)
        vm_power_off(pm->machine->vm, 0);
    if (type != SLP_TYP_S3)
        return;
    pm->s.asleep = true;
    pm_changed(pm); // may wake it at once
    vm_sleep(pm->machine->vm);
}

static void pm_write_control(struct acpi_pm *pm, u32 value, u32 lanes)
{
    u32 control = (pm->s.control & ~lanes) | (value & lanes);

    pm->s.control = (u16)((control & (BM_RLD | SLP_TYP)) | SCI_EN);
    if (value & lanes & SLP_EN)
        pm_sleep(pm, (control & SLP_TYP) >> 10);
}

void acpi_pm1_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value)
{
    struct acpi_pm *pm = device;
    unsigned shift = 8 * (port & 3);
    u32 lanes = (u32)(BITS(8 * size - 1, 0) << shift);
    bool event = port < PM1_CONTROL;

    (void)vcpu;
    pm_catch_up(pm);
    if (!write)
        *value = (event ? pm->s.status | (u32)pm->s.enable << 16 : pm->s.control) >> shift;
    else if (event)
        pm_write_event(pm, *value << shift, lanes);
    else
        pm_write_control(pm, *value << shift, lanes);
}

void acpi_pm_timer_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                       u32 *value)
{
    const struct acpi_pm *pm = device;

    (void)vcpu, (void)size;
    if (!write)
        *value = (u32)pm_ticks(pm) >> 8 * (port & 3);
}

void acpi_pm_init(struct acpi_pm *pm, struct machine *machine)
{
    pm->machine = machine;
    pm->timer.fn = pm_fire;
}

void acpi_pm_reset(struct acpi_pm *pm)
{
    pm->s = (struct acpi_pm_state){.control = SCI_EN, .seen = pm_ticks(pm), .alarm = pm->s.alarm};
    pm_changed(pm);
}

void acpi_pm_woken(struct acpi_pm *pm)
{
    pm->s.status |= WAK_STS;
}
