// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// PCI: configuration mechanism #1 and, under Nestor, ECAM to the same registers; base address
// registers sized, moved and switched off, by the PCI test device (PCI Local Bus Specification 3.0,
// 3.2.2.3.2 and 6.2.5; QEMU's docs/specs/pci-testdev).

#include "guest.h"

enum { ADDRESS = 0xcf8, DATA_PORT = 0xcfc, TEST_DEVICE = 0x00051b36, SLOTS = 32 };
enum { COMMAND = 4, BAR0 = 0x10, BAR1 = 0x14, NEW_PORT = 0xd000 };
#define ECAM       0xfeb00000ull
#define NEW_MEMORY 0xd0000000ull

static u32 slot;

static u32 config(u32 reg)
{
    out32(ADDRESS, 0x80000000 | slot << 11 | reg);
    return in32(DATA_PORT);
}

static void set_config(u32 reg, u32 value)
{
    out32(ADDRESS, 0x80000000 | slot << 11 | reg);
    out32(DATA_PORT, value);
}

static bool find(void)
{
    for (slot = 0; slot < SLOTS; slot++)
        if (config(0) == TEST_DEVICE)
            return true;
    return false;
}

static void test_mechanism(void)
{
    report(in16(DATA_PORT + 2) == TEST_DEVICE >> 16 && in8(DATA_PORT + 1) == 0x1b,
           "words and bytes of a register");
    out32(ADDRESS, slot << 11);
    report(in32(DATA_PORT) == ~0u, "no access without the enable bit");
    slot += 0x20; // bus 1
    report(config(0) == ~0u, "nothing on bus 1");
    slot -= 0x20;
}

static void test_ecam(void)
{
    volatile u32 *registers = (void *)(ECAM + slot * 0x8000);
    bool same = true;

    for (u32 reg = 0; reg < 256; reg += 4)
        same &= registers[reg / 4] == config(reg);
    report(same, "ECAM has the same registers");
    report(*(volatile u16 *)((u64)registers + 2) == TEST_DEVICE >> 16, "words of them");
    report(registers[64] == ~0u, "no extended registers");
}

static void test_bars(void)
{
    u32 memory = config(BAR0), port = config(BAR1), command = config(COMMAND), size, ports;
    volatile u32 *registers = (void *)NEW_MEMORY;

    set_config(BAR0, ~0u);
    set_config(BAR1, ~0u);
    size = ~(config(BAR0) & ~15u) + 1;
    ports = ~(config(BAR1) & ~3u) + 1;
    report(!(memory & 1) && size >= 16 && size <= 4096 && !(size & (size - 1)),
           "BAR 0 is memory, %u bytes", size);
    report((port & 1) && ports >= 16 && ports <= 4096 && !(ports & (ports - 1)),
           "BAR 1 is ports, %u of them", ports);
    set_config(BAR0, NEW_MEMORY);
    set_config(BAR1, NEW_PORT);
    set_config(COMMAND, command | 3);
    *(volatile u8 *)NEW_MEMORY = 0;
    out8(NEW_PORT, 0);
    report(((volatile u8 *)NEW_MEMORY)[1] == 1 && registers[3] == 0, "BAR 0 moved: width 1");
    report(in8(NEW_PORT + 1) == 1 && in32(NEW_PORT + 12) == 0, "BAR 1 moved: width 1");
    for (int i = 0; i < 3; i++) {
        ((volatile u8 *)NEW_MEMORY)[registers[1]] = (u8)registers[2];
        out8((u16)(NEW_PORT + in32(NEW_PORT + 4)), (u8)in32(NEW_PORT + 8));
    }
    // QEMU's does not count writes to its first test; nor does its bus read as all ones
    report_known(MACHINE_QEMU, registers[3] == 3 && in32(NEW_PORT + 12) == 3,
                 "three writes are counted");
    set_config(COMMAND, command & ~3u);
    report_known(MACHINE_QEMU, registers[2] == ~0u && in32(NEW_PORT + 8) == ~0u,
                 "neither is decoded when switched off");
    set_config(BAR0, memory);
    set_config(BAR1, port);
    set_config(COMMAND, command);
}

void guest_main(void)
{
    if (!find()) {
        report_skip("no PCI test device");
        report(true, "the bus is searched");
        return;
    }
    test_mechanism();
    if (bare_machine() == MACHINE_OTHER)
        test_ecam();
    test_bars();
}
