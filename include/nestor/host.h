// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The machine that Nestor runs on: command line and Multiboot modules, ACPI, the real local APIC
// and IOAPIC, the serial ports, power.

#pragma once

#include <nestor/types.h>

struct boot_module {
    const char *name; // first word of its string
    const char *args; // the rest
    hpa_t start;
    u64 size;
    const void *data; // mapped read-only, in Nestor's own address space
};

enum { BOOT_MODULE_MAX = 64 };

extern struct boot_module boot_modules[BOOT_MODULE_MAX];
extern u32 boot_module_count;

// Finds a module by its name; NULL if there is none.
const struct boot_module *boot_module_find(const char *name);

// A hypervisor option `name=value` (or `name` alone, value "") of the GRUB command line. NULL if it
// is not given. Marks the option as known; options_check() logs a line for each given option that
// nobody asked for.
const char *option_get(const char *name);
bool option_is(const char *name, const char *value);
// Whether a switch `name=auto|off` is off; options_check() warns of any other value.
bool option_off(const char *name);
void options_check(void);

// Host ACPI. Tables are mapped, their length and checksum checked; NULL if there is none (a corrupt
// one: logged, and NULL).
const void *acpi_table(const char signature[4], u32 instance);

struct apic_ops; // xAPIC or x2APIC, chosen at boot
void apic_eoi(void);
void apic_send_ipi(u32 apic_id, u8 vector);
void apic_send_nmi(u32 apic_id);

// Physical COM1, for a guest's console. console_rx is false when nothing is there. console_on_rx:
// called (from irq_handle) when input may be there. Boot decides whether the log shares the port
// (lines are prefixed then).
bool console_rx(u8 *byte);
void console_tx(u8 byte);
void console_on_rx(void (*fn)(void));

// Whether the machine is Bochs, by its firmware's tables and CPUID.
bool acpi_is_bochs(void);

// Ends the machine: logs "machine off, status N", then ACPI S5, then the exit ports of emulators.
// Never returns.
_Noreturn void machine_power_off(u32 status);
