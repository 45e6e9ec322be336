// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The 8259A pair against Intel's data sheet.
// unit-sources: devices/lapic.c devices/lapic_accel.c devices/lapic_timer.c devices/apic_bus.c
// unit-sources: devices/ioapic.c
// unit-sources: devices/pic.c
// unit-sources: devices/pit.c devices/rtc.c devices/uart.c devices/i8042.c devices/acpi_pm.c
// unit-sources: devices/pci.c devices/chipset.c devices/fwcfg.c devices/testdev.c devices/tables.c
// unit-sources: devices/pci_testdev.c devices/bus.c devices/machine.c

#include "machine_fake.h"

// ICW1-4 as PC systems write them, nothing masked, vectors 20h and 28h.
static void program(u8 icw4)
{
    outb(0x20, 0x11);
    outb(0x21, 0x20);
    outb(0x21, 0x04);
    outb(0x21, icw4);
    outb(0xa0, 0x11);
    outb(0xa1, 0x28);
    outb(0xa1, 0x02);
    outb(0xa1, icw4);
    outb(0x21, 0);
    outb(0xa1, 0);
    // The PIT's line is high after reset; it does not matter here.
    machine_set_irq(fake_vm.machine, 0, false);
}

static void raise(unsigned irq)
{
    machine_set_irq(fake_vm.machine, irq, true);
}

static void drop(unsigned irq)
{
    machine_set_irq(fake_vm.machine, irq, false);
}

static void pulse(unsigned irq)
{
    raise(irq);
    drop(irq);
    raise(irq);
}

static u8 read_isr(u16 port)
{
    outb(port, 0x0b);
    return inb(port);
}

static u8 read_irr(u16 port)
{
    outb(port, 0x0a);
    return inb(port);
}

static void test_edge(void **state)
{
    (void)state;
    program(1);
    raise(4);
    assert_int_equal(read_irr(0x20), 0x10);
    assert_int_equal(take_irq(0), 0x24);
    assert_int_equal(read_irr(0x20), 0);
    assert_int_equal(read_isr(0x20), 0x10);
    outb(0x20, 0x20);
    assert_int_equal(read_isr(0x20), 0);
    assert_int_equal(take_irq(0), -1); // the line is still high: no edge
    pulse(4);
    assert_int_equal(take_irq(0), 0x24);
}

static void test_mask(void **state)
{
    (void)state;
    program(1);
    outb(0x21, 0x10);
    assert_int_equal(inb(0x21), 0x10);
    raise(4);
    assert_int_equal(take_irq(0), -1);
    outb(0x21, 0); // the edge was kept
    assert_int_equal(take_irq(0), 0x24);
}

static void test_priorities_and_slave(void **state)
{
    (void)state;
    program(1);
    raise(6);
    raise(12);
    raise(10);
    assert_int_equal(take_irq(0), 0x2a);
    assert_int_equal(take_irq(0), -1); // 12 is lower than 10, which is in service
    assert_int_equal(read_isr(0x20), 0x04);
    raise(1); // higher on the master: nests
    assert_int_equal(take_irq(0), 0x21);
    outb(0x20, 0x20);
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
    assert_int_equal(take_irq(0), 0x2c);
    outb(0xa0, 0x20);
    outb(0x20, 0x20);
    assert_int_equal(take_irq(0), 0x26);
}

static void test_specific_eoi(void **state)
{
    (void)state;
    program(1);
    raise(5);
    assert_int_equal(take_irq(0), 0x25);
    raise(3);
    assert_int_equal(take_irq(0), 0x23);
    outb(0x20, 0x65); // specific EOI of 5
    assert_int_equal(read_isr(0x20), 0x08);
}

static void test_level(void **state)
{
    (void)state;
    program(1);
    outb(0x4d0, 0xff);
    outb(0x4d1, 0xff);
    assert_int_equal(in(2, 0x4d0), 0xdef8); // IRQ 0, 1, 2, 8, 13 stay edges
    raise(5);
    assert_int_equal(take_irq(0), 0x25);
    assert_int_equal(read_irr(0x20), 0x20); // as long as the line is high
    outb(0x20, 0x20);
    assert_int_equal(take_irq(0), 0x25);
    drop(5);
    outb(0x20, 0x20);
    assert_int_equal(take_irq(0), -1);
}

static void test_spurious(void **state)
{
    (void)state;
    program(1);
    raise(4);
    assert_true(irq_pending(&fake_vcpu[0]));
    drop(4);
    assert_int_equal(irq_ack(&fake_vcpu[0]), -E_NOENT); // noticed before the acknowledge
    assert_int_equal(pic_ack(&fake_vm.machine->pic), 0x27);
    assert_int_equal(read_isr(0x20), 0); // a spurious IR7 is not in service
    raise(12);
    fake_vm.machine->pic.s.chip[1].irr = 0; // goes away between the two INTA cycles
    assert_int_equal(pic_ack(&fake_vm.machine->pic), 0x2f);
    assert_int_equal(read_isr(0xa0), 0);
    assert_int_equal(read_isr(0x20), 0x04); // the master does not know
}

static void test_auto_eoi(void **state)
{
    (void)state;
    program(3);
    pulse(4);
    assert_int_equal(take_irq(0), 0x24);
    assert_int_equal(read_isr(0x20), 0);
    pulse(4);
    assert_int_equal(take_irq(0), 0x24);
}

static void test_rotation(void **state)
{
    (void)state;
    program(1);
    outb(0x20, 0xc3); // IR3 is the lowest: IR4 the highest
    raise(1);
    raise(4);
    raise(3);
    assert_int_equal(take_irq(0), 0x24);
    outb(0x20, 0xa0); // EOI and rotate: now IR4 is the lowest, IR5 the highest
    pulse(4);
    assert_int_equal(take_irq(0), 0x21);
    outb(0x20, 0x20);
    assert_int_equal(take_irq(0), 0x23);
    outb(0x20, 0x20);
    assert_int_equal(take_irq(0), 0x24);
}

static void test_special_mask(void **state)
{
    (void)state;
    program(1);
    raise(2 + 1);
    assert_int_equal(take_irq(0), 0x23);
    outb(0x20, 0x68); // special mask mode
    outb(0x21, 0x08);
    raise(6); // lower, but the masked level in service does not inhibit it
    assert_int_equal(take_irq(0), 0x26);
}

static void test_special_fully_nested(void **state)
{
    (void)state;
    program(0x11);
    raise(12);
    assert_int_equal(take_irq(0), 0x2c);
    raise(9); // of the same slave, higher: the master lets it through
    assert_int_equal(take_irq(0), 0x29);
}

static void test_poll(void **state)
{
    (void)state;
    program(1);
    outb(0x20, 0x0c);
    assert_int_equal(inb(0x20), 0);
    raise(6);
    outb(0x20, 0x0c);
    assert_int_equal(inb(0x20), 0x86);
    assert_int_equal(read_isr(0x20), 0x40);
    assert_int_equal(take_irq(0), -1);
}

static void test_icw1(void **state)
{
    (void)state;
    program(1);
    raise(4);
    outb(0x21, 0xff);
    outb(0x20, 0x13); // single, with ICW4: the next write is ICW2, then ICW4
    outb(0x21, 0x40);
    outb(0x21, 0x01);
    assert_int_equal(inb(0x21), 0); // ICW1 clears the mask
    assert_int_equal(inb(0x20), 0); // and the edges, and selects the IRR
    pulse(4);
    assert_int_equal(take_irq(0), 0x44);
}

// INTR falls with each acknowledge, so that a LINT0 that is edge-triggered sees the next request.
static void test_intr_edges(void **state)
{
    (void)state;
    program(3);
    ioapic_set_entry(0, 0, 0x00700); // ExtINT by the IOAPIC's pin 0
    apic_write(0, APIC_LVT_LINT0, 0x10700);
    raise(4);
    raise(5);
    assert_int_equal(take_irq(0), 0x24);
    assert_int_equal(take_irq(0), 0x25);
    assert_int_equal(take_irq(0), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_1(test_edge),
        TEST_1(test_mask),
        TEST_1(test_priorities_and_slave),
        TEST_1(test_specific_eoi),
        TEST_1(test_level),
        TEST_1(test_spurious),
        TEST_1(test_auto_eoi),
        TEST_1(test_rotation),
        TEST_1(test_special_mask),
        TEST_1(test_special_fully_nested),
        TEST_1(test_poll),
        TEST_1(test_icw1),
        TEST_1(test_intr_edges),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
