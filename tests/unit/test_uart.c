// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The serial port against the PC16550D data sheet.
// unit-sources: devices/lapic.c devices/lapic_accel.c devices/lapic_timer.c devices/apic_bus.c
// unit-sources: devices/ioapic.c
// unit-sources: devices/pic.c
// unit-sources: devices/pit.c devices/rtc.c devices/uart.c devices/i8042.c devices/acpi_pm.c
// unit-sources: devices/pci.c devices/chipset.c devices/fwcfg.c devices/testdev.c devices/tables.c
// unit-sources: devices/pci_testdev.c devices/bus.c devices/machine.c

#include "machine_fake.h"

enum { COM1 = 0x3f8 };

static void listen(void)
{
    outb(0x20, 0x13);
    outb(0x21, 0x20);
    outb(0x21, 0x03); // automatic EOI
    outb(0x21, 0xef);
    outb(COM1 + 4, 0x0b);
}

static void type(const char *text)
{
    fake_input = text;
    fake_on_rx();
}

static void test_output(void **state)
{
    (void)state;
    for (const char *p = "hello\n"; *p; p++) {
        assert_int_equal(inb(COM1 + 5), 0x60);
        outb(COM1, (u8)*p);
    }
    assert_string_equal(fake_output, "hello\n");
}

static void test_divisor_and_scratch(void **state)
{
    (void)state;
    outb(COM1 + 3, 0x83);
    out(2, COM1, 0x1234);
    assert_int_equal(in(2, COM1), 0x1234);
    outb(COM1 + 3, 0x03);
    assert_string_equal(fake_output, "");
    assert_int_equal(inb(COM1 + 1), 0);
    outb(COM1 + 1, 0xff);
    assert_int_equal(inb(COM1 + 1), 0x0f);
    outb(COM1 + 7, 0xa5);
    assert_int_equal(inb(COM1 + 7), 0xa5);
    assert_int_equal(inb(COM1 + 3), 0x03);
}

static void test_fifo_is_a_16550a(void **state)
{
    (void)state;
    assert_int_equal(inb(COM1 + 2), 0x01);
    outb(COM1 + 2, 0x01);
    assert_int_equal(inb(COM1 + 2), 0xc1);
    outb(COM1 + 2, 0x00);
    assert_int_equal(inb(COM1 + 2), 0x01);
}

static void test_input_polled(void **state)
{
    (void)state;
    type("ab");
    assert_int_equal(inb(COM1 + 5), 0x61);
    assert_int_equal(inb(COM1), 'a');
    assert_int_equal(inb(COM1), 'b');
    assert_int_equal(inb(COM1 + 5), 0x60);
    assert_int_equal(inb(COM1), 0);
}

static void test_input_by_interrupt(void **state)
{
    (void)state;
    listen();
    outb(COM1 + 2, 0x41); // FIFO, trigger 4
    outb(COM1 + 1, 0x01);
    assert_int_equal(take_irq(0), -1);
    fake_vcpu[0].requests = 0;
    type("xyz");
    assert_int_equal(fake_vcpu[0].requests, REQUEST_EVENT); // wakes an idle guest
    assert_int_equal(take_irq(0), 0x24);
    assert_int_equal(inb(COM1 + 2), 0xcc); // fewer than the trigger: timeout
    type("1");
    assert_int_equal(inb(COM1 + 2), 0xc4);
    for (const char *p = "xyz1"; *p; p++)
        assert_int_equal(inb(COM1), (u8)*p);
    assert_int_equal(inb(COM1 + 2), 0xc1);
    type("2");
    assert_int_equal(take_irq(0), 0x24); // a new edge
}

// More than fits is left where it is until there is room: nothing is lost.
static void test_input_is_throttled(void **state)
{
    const char *text = "0123456789abcdefghijklmnopqrstuvwxyz";

    (void)state;
    outb(COM1 + 2, 0x01);
    type(text);
    assert_int_equal(strlen(fake_input), 20);
    for (const char *p = text; *p; p++) {
        assert_int_equal(inb(COM1 + 5), 0x61);
        assert_int_equal(inb(COM1), (u8)*p);
    }
    assert_int_equal(inb(COM1 + 5), 0x60);
}

static void test_thre_interrupt(void **state)
{
    (void)state;
    listen();
    outb(COM1 + 1, 0x02); // at once: the transmitter is empty
    assert_int_equal(take_irq(0), 0x24);
    assert_int_equal(inb(COM1 + 2), 0x02);
    assert_int_equal(inb(COM1 + 2), 0x01); // reading it takes it away
    assert_int_equal(take_irq(0), -1);
    outb(COM1, 'a');
    assert_int_equal(take_irq(0), 0x24);
    outb(COM1, 'b'); // not acknowledged by reading IIR: still an edge
    assert_int_equal(take_irq(0), 0x24);
    assert_int_equal(inb(COM1 + 2), 0x02);
    outb(COM1 + 1, 0x02); // IER written again: no new interrupt
    assert_int_equal(take_irq(0), -1);
}

static void test_out2_gates_the_interrupt(void **state)
{
    (void)state;
    listen();
    outb(COM1 + 4, 0x03);
    outb(COM1 + 1, 0x02);
    assert_int_equal(take_irq(0), -1);
    outb(COM1 + 4, 0x0b);
    assert_int_equal(take_irq(0), 0x24);
}

static void test_loopback(void **state)
{
    (void)state;
    assert_int_equal(inb(COM1 + 6), 0xb0);
    outb(COM1 + 4, 0x1a); // as Linux's probe: OUT2, RTS
    assert_int_equal(inb(COM1 + 6) & 0xf0, 0x90);
    outb(COM1, 'q');
    assert_string_equal(fake_output, "");
    assert_int_equal(inb(COM1), 'q');
    outb(COM1, '1');
    outb(COM1, '2'); // without FIFO: overrun
    assert_int_equal(inb(COM1 + 5), 0x63);
    assert_int_equal(inb(COM1 + 5), 0x61); // cleared by reading
    assert_int_equal(inb(COM1), '2');
    inb(COM1 + 6);
    outb(COM1 + 4, 0x14); // OUT1: RI; RTS and OUT2 fall
    assert_int_equal(inb(COM1 + 6), 0x49);
    outb(COM1 + 4, 0x10);
    assert_int_equal(inb(COM1 + 6), 0x04); // the trailing edge of RI
    assert_int_equal(inb(COM1 + 6), 0x00);
}

static void test_priorities_of_interrupts(void **state)
{
    (void)state;
    outb(COM1 + 1, 0x0f);
    outb(COM1 + 4, 0x10); // the inputs fall
    outb(COM1, '1');
    outb(COM1, '2');
    assert_int_equal(inb(COM1 + 2), 0x06); // line status
    inb(COM1 + 5);
    assert_int_equal(inb(COM1 + 2), 0x04); // data
    inb(COM1);
    assert_int_equal(inb(COM1 + 2), 0x02); // transmitter
    assert_int_equal(inb(COM1 + 2), 0x00); // modem
    inb(COM1 + 6);
    assert_int_equal(inb(COM1 + 2), 0x01);
}

static void test_fifo_clear(void **state)
{
    (void)state;
    outb(COM1 + 2, 0x01);
    type("abc");
    outb(COM1 + 2, 0x03);
    assert_int_equal(inb(COM1 + 5), 0x60);
    type("d");
    assert_int_equal(inb(COM1), 'd');
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_1(test_output),
        TEST_1(test_divisor_and_scratch),
        TEST_1(test_fifo_is_a_16550a),
        TEST_1(test_input_polled),
        TEST_1(test_input_by_interrupt),
        TEST_1(test_input_is_throttled),
        TEST_1(test_thre_interrupt),
        TEST_1(test_out2_gates_the_interrupt),
        TEST_1(test_loopback),
        TEST_1(test_priorities_of_interrupts),
        TEST_1(test_fifo_clear),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
