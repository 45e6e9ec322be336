// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The I/O APIC against the 82093AA data sheet, with the EOI register of later ones.
// unit-sources: devices/lapic.c devices/lapic_accel.c devices/lapic_timer.c devices/apic_bus.c
// unit-sources: devices/ioapic.c
// unit-sources: devices/pic.c
// unit-sources: devices/pit.c devices/rtc.c devices/uart.c devices/i8042.c devices/acpi_pm.c
// unit-sources: devices/pci.c devices/chipset.c devices/fwcfg.c devices/testdev.c devices/tables.c
// unit-sources: devices/pci_testdev.c devices/bus.c devices/machine.c

#include "machine_fake.h"

enum { LEVEL = 0x8000, MASKED = 0x10000, REMOTE_IRR = 0x4000, PIN = 10 };

static void line(unsigned pin, bool level)
{
    ioapic_set_pin(&fake_vm.machine->ioapic, pin, level);
}

static u32 entry(unsigned pin)
{
    return ioapic_reg((u8)(0x10 + 2 * pin));
}

static void test_registers(void **state)
{
    (void)state;
    assert_int_equal(ioapic_reg(1), 0x00170020);
    ioapic_set_reg(1, 0);
    assert_int_equal(ioapic_reg(1), 0x00170020);
    ioapic_set_reg(0, ~0u);
    assert_int_equal(ioapic_reg(0), 0x0f000000);
    assert_int_equal(ioapic_reg(2), 0x0f000000);
    ioapic_set_reg(2, 0);
    assert_int_equal(ioapic_reg(2), 0x0f000000);
    assert_int_equal(entry(23), MASKED); // after reset
    ioapic_set_reg(0x3f, ~0u);
    ioapic_set_reg(0x3e, ~0u);
    assert_int_equal(ioapic_reg(0x3f), 0xff000000);
    assert_int_equal(ioapic_reg(0x3e), 0x1afff); // delivery status and remote IRR are read-only
    assert_int_equal(ioapic_reg(0x40), ~0u);     // there is no 25th pin
    ioapic_set_reg(0x40, 0);
    assert_int_equal(ioapic_reg(0xff), ~0u);
}

static void test_edge(void **state)
{
    (void)state;
    ioapic_set_entry(PIN, 0, 0x41);
    line(PIN, true);
    assert_int_equal(take_irq(0), 0x41);
    apic_write(0, APIC_EOI, 0);
    line(PIN, true); // no edge
    assert_int_equal(take_irq(0), -1);
    line(PIN, false);
    line(PIN, true);
    assert_int_equal(take_irq(0), 0x41);
    apic_write(0, APIC_EOI, 0);
    // An edge while masked is lost.
    line(PIN, false);
    ioapic_set_entry(PIN, 0, MASKED | 0x41);
    line(PIN, true);
    ioapic_set_entry(PIN, 0, 0x41);
    assert_int_equal(take_irq(0), -1);
}

static void test_level(void **state)
{
    (void)state;
    ioapic_set_entry(PIN, 0, LEVEL | 0x42);
    line(PIN, true);
    assert_int_equal(entry(PIN), LEVEL | REMOTE_IRR | 0x42);
    assert_int_equal(take_irq(0), 0x42);
    assert_int_equal(apic_read(0, APIC_TMR + 0x20), 1u << 2);
    line(PIN, false);
    line(PIN, true); // nothing while the remote IRR is set
    assert_int_equal(take_irq(0), -1);
    apic_write(0, APIC_EOI, 0); // still asserted: comes again
    assert_int_equal(take_irq(0), 0x42);
    line(PIN, false);
    apic_write(0, APIC_EOI, 0);
    assert_int_equal(entry(PIN), LEVEL | 0x42);
    assert_int_equal(take_irq(0), -1);
}

// A level that nobody lowers does not keep its CPU from everything else.
static void test_screaming_level(void **state)
{
    unsigned taken = 0;

    (void)state;
    ioapic_set_entry(PIN, 0, LEVEL | 0x42);
    line(PIN, true);
    while (take_irq(0) == 0x42) {
        assert_in_range(++taken, 1, 10);
        apic_write(0, APIC_EOI, 0);
    }
    advance(10 * MS);
    assert_int_equal(take_irq(0), 0x42);
    line(PIN, false);
    apic_write(0, APIC_EOI, 0);
    advance(10 * MS);
    assert_int_equal(take_irq(0), -1);
}

static void test_level_masked(void **state)
{
    (void)state;
    ioapic_set_entry(PIN, 0, MASKED | LEVEL | 0x42);
    line(PIN, true);
    assert_int_equal(take_irq(0), -1);
    ioapic_set_entry(PIN, 0, LEVEL | 0x42); // levels wait
    assert_int_equal(take_irq(0), 0x42);
}

static void test_directed_eoi(void **state)
{
    (void)state;
    apic_write(0, APIC_SVR, 0x11ff); // no EOI broadcasts
    ioapic_set_entry(PIN, 0, LEVEL | 0x42);
    line(PIN, true);
    assert_int_equal(take_irq(0), 0x42);
    line(PIN, false);
    apic_write(0, APIC_EOI, 0);
    assert_int_equal(entry(PIN), LEVEL | REMOTE_IRR | 0x42);
    mmio_write(0, IOAPIC_BASE + 0x40, 0x41); // another vector
    assert_int_equal(entry(PIN), LEVEL | REMOTE_IRR | 0x42);
    mmio_write(0, IOAPIC_BASE + 0x40, 0x42);
    assert_int_equal(entry(PIN), LEVEL | 0x42);
}

// Systems made for version 11h end a level by making the pin edge-triggered and back.
static void test_eoi_by_trigger_mode(void **state)
{
    (void)state;
    apic_write(0, APIC_SVR, 0x11ff);
    ioapic_set_entry(PIN, 0, LEVEL | 0x42);
    line(PIN, true);
    line(PIN, false);
    ioapic_set_entry(PIN, 0, MASKED | 0x42);
    ioapic_set_entry(PIN, 0, LEVEL | 0x42);
    assert_int_equal(entry(PIN), LEVEL | 0x42);
}

static void test_nobody_accepts(void **state)
{
    (void)state;
    ioapic_set_entry(PIN, 1, LEVEL | 0x42); // CPU 1's APIC is software-disabled
    line(PIN, true);
    assert_int_equal(entry(PIN), LEVEL | 0x42);
    apic_write(1, APIC_SVR, 0x1ff);
    ioapic_set_entry(PIN, 1, LEVEL | 0x42);
    assert_int_equal(take_irq(1), 0x42);
}

// A CPU that has disabled its APIC for a while finds what came in the meantime.
static void test_accepted_later(void **state)
{
    (void)state;
    ioapic_set_entry(PIN, 1, LEVEL | 0x42);
    line(PIN, true);
    advance(10 * MS);
    assert_int_equal(take_irq(1), -1);
    apic_write(1, APIC_SVR, 0x1ff);
    advance(2 * MS);
    assert_int_equal(entry(PIN), LEVEL | REMOTE_IRR | 0x42);
    assert_int_equal(take_irq(1), 0x42);
    line(PIN, false);
    apic_write(1, APIC_EOI, 0);
    advance(10 * MS);
    assert_int_equal(take_irq(1), -1);
    assert_false(fake_vm.machine->ioapic.timer.armed);
}

static void test_delivery_modes(void **state)
{
    (void)state;
    ioapic_set_entry(PIN, 2, 0x400);
    line(PIN, true);
    assert_int_equal(fake_vcpu[2].requests, REQUEST_NMI);
    line(PIN, false);
    ioapic_set_entry(PIN, 3, LEVEL | 0x500); // INIT: an edge all the same
    line(PIN, true);
    assert_int_equal(fake_vcpu[3].requests, REQUEST_INIT);
    assert_int_equal(entry(PIN), LEVEL | 0x500);
    line(PIN, false);
    ioapic_set_entry(PIN, 1, 0x600); // start-up is no mode of this chip
    line(PIN, true);
    assert_int_equal(fake_vcpu[1].requests, 0);
    line(PIN, false);
    apic_write(0, APIC_LDR, 1u << 24);
    ioapic_set_entry(PIN, 1, 0x950); // logical, lowest priority
    line(PIN, true);
    assert_int_equal(take_irq(0), 0x50);
}

static void test_isa_routes(void **state)
{
    (void)state;
    ioapic_set_entry(2, 0, 0x30);
    machine_set_irq(fake_vm.machine, 0, false);
    machine_set_irq(fake_vm.machine, 0, true);
    assert_int_equal(take_irq(0), 0x30); // IRQ 0 comes by pin 2
    ioapic_set_entry(8, 0, 0x51);
    machine_set_irq(fake_vm.machine, 8, true);
    assert_int_equal(take_irq(0), 0x51);
}

static void test_access_widths(void **state)
{
    u64 value = 1;

    (void)state;
    bus_mmio(&fake_vcpu[0], IOAPIC_BASE, 1, true, &value); // the select register takes bytes
    bus_mmio(&fake_vcpu[0], IOAPIC_BASE + 0x10, 4, false, &value);
    assert_int_equal(value, 0x00170020);
    value = 0x14;
    bus_mmio(&fake_vcpu[0], IOAPIC_BASE, 1, true, &value);
    value = 0x55;
    bus_mmio(&fake_vcpu[0], IOAPIC_BASE + 0x10, 1, true, &value); // the window does not
    assert_int_equal(ioapic_reg(0x14), MASKED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_1(test_registers),           TEST_1(test_edge),           TEST_1(test_level),
        TEST_1(test_screaming_level),     TEST_1(test_level_masked),   TEST_1(test_directed_eoi),
        TEST_1(test_eoi_by_trigger_mode), TEST_4(test_nobody_accepts), TEST_4(test_accepted_later),
        TEST_4(test_delivery_modes),      TEST_1(test_isa_routes),     TEST_1(test_access_widths),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
