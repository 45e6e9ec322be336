// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the files of boot/ and the machine's part of core/ want of each other. Nobody else includes
// it.

#pragma once

#include <arch/x86/acpi.h>
#include <nestor/cpu.h>
#include <nestor/main.h>
#include <nestor/types.h>

// --- core/serial.c: the two ports. Lines and bytes take the port's lock. ---
enum serial_index { SERIAL_COM1, SERIAL_COM2, SERIAL_COUNT };
void serial_init(void);
bool serial_present(enum serial_index port);
bool serial_in_line(enum serial_index port); // the last byte out was no line end
void serial_write(enum serial_index port, const char *text, size_t len);
void serial_write_panic(enum serial_index port, const char *text, size_t len); // no lock
void serial_flush(void);       // until all is sent, or the ports are stuck
void serial_start_input(void); // COM1's interrupt, or polling; after ACPI and time

// --- core/log.c ---
void log_init(void); // after serial_init and options_init

// --- core/options.c ---
void options_init(const char *cmdline); // keeps a copy

// --- core/acpi.c ---
enum madt_type {
    MADT_LAPIC = 0,
    MADT_IOAPIC = 1,
    MADT_OVERRIDE = 2,
    MADT_X2APIC = 9,
};

struct PACKED madt_entry {
    u8 type, length;
    union {
        struct PACKED {
            u8 uid, apic_id;
            u32 flags;
        } lapic;
        struct PACKED {
            u8 id, reserved;
            u32 address, gsi_base;
        } ioapic;
        struct PACKED {
            u8 bus, source;
            u32 gsi;
            u16 flags;
        } override;
        struct PACKED {
            u16 reserved;
            u32 apic_id, flags, uid;
        } x2apic;
    };
};

struct acpi_power { // from FADT and DSDT
    u16 pm1a_control, pm1b_control, smi_command;
    u8 acpi_enable;
    u8 s5_type_a, s5_type_b;
    bool has_s5;
};

// rsdp: a copy from the boot loader, or NULL: it is looked for in the BIOS areas. Logs what is
// wrong.
void acpi_init(const void *rsdp);
// The MADT's next entry after `entry` (NULL: the first), NULL at the end or where an entry is torn.
const struct madt_entry *madt_next(const struct madt_entry *entry);
u16 acpi_pm_timer_port(bool *is_32bit); // 0: none
void acpi_power(struct acpi_power *out);
u8 acpi_century_register(void); // RTC index, 0: none
bool acpi_is_emulator(void);    // the tables' OEM ID is the one of QEMU and Bochs

// --- core/apic.c ---
void apic_init_cpu(void); // enables this CPU's LAPIC, x2APIC if there is one
u32 apic_id(void);        // this CPU's
void apic_send_init(u32 apic_id);
void apic_send_startup(u32 apic_id, u8 vector);
void apic_timer_start(u8 vector, bool deadline_mode); // LVT timer
void apic_timer_set_count(u32 count);                 // divided by 1; 0 stops it
u32 apic_timer_count(void);
bool apic_is_x2apic(void);

// --- core/ioapic.c ---
// Routes an ISA interrupt to a CPU by the MADT. Returns 0 or -E_NODEV. irq_chips_init masks every
// pin.
void irq_chips_init(void);
int irq_route_isa(u8 irq, u8 vector, u32 apic_id);

// --- core/time.c ---
void time_init(void);
extern u64 apic_timer_hz; // 0: not measured

// --- core/idt.c ---
struct trap_frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
    u64 vector, error;
    u64 rip, cs, rflags, rsp, ss;
};
void idt_init(void);     // boot CPU
void idt_load_cpu(void); // each CPU

// --- core/panic.c ---
_Noreturn void panic_trap(const struct trap_frame *frame);

// --- core/symbols.c ---
// The function that `address` is in, NULL if it is in none.
const char *symbol_find(u64 address, u64 *offset);

// --- core/features.c ---
void features_log(void); // CPU model, microcode, optional features
// On all CPUs: logs what is missing, and where CPUs differ. Does not return if anything that is
// needed is missing.
void features_check(void);
void features_backend_on(void); // chosen by features_check; all CPUs

// --- core/smp.c ---
void cpu_init_boot(void);        // GDT, TSS, IDT on static stacks; before anything can fault
void cpu_init_boot_stacks(void); // stacks with guard pages for the boot CPU; returns on the old one
void cpu_init_registers(void);   // CR0, CR4, PAT of this CPU
void cpu_check_tsc(void);        // are the TSCs of all CPUs one clock?
void cpu_release_all(void);      // the others go to core_main_cpu

// --- core/power.c ---
void power_exit_emulator(u32 status); // returns where there is none
