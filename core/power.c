// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Switching the machine off: ACPI S5 (ACPI 6.5, "Transitioning from the Working to the Sleeping
// State"), and where that does nothing, the exit ports of emulators.

#include <arch/x86/insn.h>
#include <arch/x86/regs.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/string.h>
#include <nestor/time.h>

enum { PM1_SCI_EN = 1, PM1_SLP_TYP_SHIFT = 10, PM1_SLP_EN = 1 << 13, PM1_SLP_TYP = 7 << 10 };
enum { QEMU_DEBUG_EXIT = 0xf4, BOCHS_SHUTDOWN = 0x8900, S5_WAIT_US = 500000 };

static void enter_s5(void)
{
    struct acpi_power power;
    u32 value;

    acpi_power(&power);
    if (!power.has_s5)
        return;
    if (power.smi_command && power.acpi_enable && !(in16(power.pm1a_control) & PM1_SCI_EN)) {
        out8(power.smi_command, power.acpi_enable);
        for (u32 i = 0; i < 3000 && !(in16(power.pm1a_control) & PM1_SCI_EN); i++)
            time_delay_us(100);
    }
    value = (in16(power.pm1a_control) & ~(u32)PM1_SLP_TYP) | PM1_SLP_EN;
    out16(power.pm1a_control, (u16)(value | (u32)power.s5_type_a << PM1_SLP_TYP_SHIFT));
    if (power.pm1b_control) {
        value = (in16(power.pm1b_control) & ~(u32)PM1_SLP_TYP) | PM1_SLP_EN;
        out16(power.pm1b_control, (u16)(value | (u32)power.s5_type_b << PM1_SLP_TYP_SHIFT));
    }
    time_delay_us(S5_WAIT_US);
}

void power_exit_emulator(u32 status)
{
    static const char word[] = "Shutdown";

    if (!acpi_is_emulator())
        return;
    if (!acpi_is_bochs()) {
        out32(QEMU_DEBUG_EXIT, status);
        return;
    }
    for (const char *p = word; *p; p++)
        out8(BOCHS_SHUTDOWN, (u8)*p);
}

_Noreturn void machine_power_off(u32 status)
{
    log_line(LOG_INFO, "machine off, status %u", status);
    serial_flush();
    enter_s5();
    power_exit_emulator(status);
    log_line(LOG_WARN, "the machine cannot be switched off: halted");
    for (;;)
        __asm__ volatile("cli; hlt");
}
