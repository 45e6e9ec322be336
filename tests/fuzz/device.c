// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// fuzz-tests: test_machine
//
// One device of a machine of two CPUs, by the name of the program: fuzz-lapic, fuzz-ioapic and so
// on. The input is a sequence of accesses, times that pass, interrupts that are taken and resets.
// What must hold: a read gives no more than its lanes, vectors are vectors, no timer stays due
// (libFuzzer's limit of time finds one that always is), the log does not grow.

#define main unit_main
#include "tests/unit/test_machine.c"
#undef main
#include "fuzz.h"

enum { CPUS = 2, MOST_OPERATIONS = 512, MOST_LOG_LINES = BUS_UNKNOWN_LINES };

struct window {
    u64 first;
    u32 size;
};

static const struct target {
    const char *name;
    struct window ports[4];
    struct window memory[3];
    u64 longest; // time at once
} targets[] = {
    {"lapic", {{0}}, {{APIC_GPA, PAGE_SIZE}}, MS},
    {"ioapic", {{0x2000, 24}, {0x43, 1}}, {{IOAPIC_BASE, PAGE_SIZE}, {APIC_GPA, 0x400}}, MS},
    {"pit", {{0x40, 4}, {0x61, 1}, {0x20, 2}}, {{0}}, 20 * MS},
    {"rtc", {{0x70, 2}}, {{0}}, 3 * SECOND},
    {"uart", {{0x3f8, 8}}, {{0}}, 20 * MS},
    {"pci",
     {{0xcf8, 8}, {0xcf8, 8}, {0xc000, 0x100}, {0, 0x10000}},
     {{PCI_ECAM_BASE, 0x10000}, {0xc0000000, 0x2000}, {PCI_ECAM_BASE + 0x8000, 0x100}},
     MS},
    {"i8042", {{0x60, 1}, {0x64, 1}}, {{0}}, MS},
    {"pic", {{0x20, 2}, {0xa0, 2}, {0x4d0, 2}, {0x2000, 24}}, {{0}}, MS},
    {"fwcfg", {{0x510, 2}}, {{0}}, MS},
    {"machine", {{0, 0x10000}, {0x600, 16}, {0x40, 0xc0}}, {{0xfe000000, 0x2000000}}, MS},
};

static const struct target *target = &targets[ARRAY_SIZE(targets) - 1];

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char *dash = strrchr((*argv)[0], '-');

    (void)argc;
    for (size_t i = 0; dash && i < ARRAY_SIZE(targets); i++)
        if (!strcmp(targets[i].name, dash + 1))
            target = &targets[i];
    return 0;
}

// An address of one of the windows, or just beside it; 0 if the device has none.
static u64 take_address(const struct window *windows, unsigned count)
{
    u8 byte = (u8)take(1);
    unsigned used = 0;

    while (used < count && windows[used].size)
        used++;
    if (!used)
        return 0;
    windows += byte % used;
    return windows->first +
           (windows->size <= 256     ? take(1)
            : windows->size <= 65536 ? take(2)
                                     : take(4)) %
               windows->size -
           (byte >= 0xf8 ? 2 : 0);
}

static void access_ports(bool write)
{
    u64 port = take_address(target->ports, ARRAY_SIZE(target->ports));
    unsigned size = 1u << take(1) % 3;
    u32 value = write ? (u32)take(size) : 0;

    bus_pio(&fake_vcpu[0], (u16)port, size, write, &value);
    FUZZ_CHECK(size == 4 || value < 1u << 8 * size);
}

static void access_memory(bool write)
{
    u64 gpa = take_address(target->memory, ARRAY_SIZE(target->memory));
    u8 how = (u8)take(1);
    unsigned size = 1u << how % 4;
    u64 value = write ? take(size) : 0;

    if (gpa)
        bus_mmio(&fake_vcpu[how >> 2 & 1], gpa, size, write, &value);
    FUZZ_CHECK(size == 8 || write || value < 1ull << 8 * size);
}

static void take_interrupt(void)
{
    struct vcpu *vcpu = &fake_vcpu[take(1) & 1];

    if (irq_pending(vcpu)) {
        int vector = irq_ack(vcpu);

        FUZZ_CHECK(vector < 256);
    }
}

static void access_msr(void)
{
    u8 how = (u8)take(1);
    u32 msr = how < 0xc0 ? 0x800 + how : how < 0xe0 ? MSR_APIC_BASE : MSR_TSC_DEADLINE;
    struct vcpu *vcpu = &fake_vcpu[how & 1];
    u64 value = take(how & 2 ? 2 : 8);
    int error = how & 4 ? lapic_read_msr(vcpu, msr, &value) : lapic_write_msr(vcpu, msr, value);

    FUZZ_CHECK(error == 0 || error == -E_FAULT);
}

static void other(void)
{
    u8 how = (u8)take(1);

    if (how == 0)
        machine_reset(&fake_vm);
    else if (how < 8)
        lapic_reset(&fake_vcpu[how & 1], how & 2);
    else if (how < 128 && fake_on_rx)
        fake_input = "input", fake_on_rx();
    else
        lapic_write_cr8(&fake_vcpu[how & 1], how & 15);
}

static void operate(void)
{
    u8 kind = (u8)take(1) & 15;

    if (kind < 3 || (kind == 11 && !target->memory[0].size))
        access_ports(true);
    else if (kind < 5)
        access_ports(false);
    else if (kind < 8)
        access_memory(true);
    else if (kind < 10)
        access_memory(false);
    else if (kind == 10)
        advance(take(4) % target->longest);
    else if (kind == 11)
        access_msr();
    else if (kind < 14)
        take_interrupt();
    else
        other();
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    input.at = data;
    input.left = size;
    make_machine(CPUS);
    for (unsigned i = 0; i < MOST_OPERATIONS && input.left; i++)
        operate();
    FUZZ_CHECK(fake_log_lines <= MOST_LOG_LINES + MOST_OPERATIONS / 8);
    machine_destroy(&fake_vm);
    FUZZ_CHECK(!fake_timers);
    return 0;
}
