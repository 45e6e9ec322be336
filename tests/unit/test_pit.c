// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The 8254 and port 61h against Intel's data sheet.
// unit-sources: devices/lapic.c devices/lapic_accel.c devices/lapic_timer.c devices/apic_bus.c
// unit-sources: devices/ioapic.c
// unit-sources: devices/pic.c
// unit-sources: devices/pit.c devices/rtc.c devices/uart.c devices/i8042.c devices/acpi_pm.c
// unit-sources: devices/pci.c devices/chipset.c devices/fwcfg.c devices/testdev.c devices/tables.c
// unit-sources: devices/pci_testdev.c devices/bus.c devices/machine.c

#include "machine_fake.h"

// The fake TSC runs at 1 GHz; one tick of the PIT is a little more than 838 of it.
static void advance_pit(u64 ticks)
{
    struct machine *machine = fake_vm.machine;
    u64 now = clock_ticks(fake_time - machine->start, PIT_HZ);

    advance(machine->start + clock_tsc(now + ticks, PIT_HZ) - fake_time);
}

static void program(unsigned channel, unsigned mode, u16 count)
{
    outb(0x43, (u8)(channel << 6 | 0x30 | mode << 1));
    outb((u16)(0x40 + channel), (u8)count);
    outb((u16)(0x40 + channel), (u8)(count >> 8));
}

static u16 read_count(unsigned channel)
{
    u8 low;

    outb(0x43, (u8)(channel << 6));
    low = inb((u16)(0x40 + channel));
    return (u16)(low | inb((u16)(0x40 + channel)) << 8);
}

static u8 read_status(unsigned channel)
{
    outb(0x43, (u8)(0xe0 | 2u << channel));
    return inb((u16)(0x40 + channel));
}

static bool out2(void)
{
    return inb(0x61) & 0x20;
}

static void count_irq0_from_here(void)
{
    outb(0x20, 0x13);
    outb(0x21, 0x20);
    outb(0x21, 0x03);
    outb(0x21, 0xfe);
}

static void test_mode_0(void **state)
{
    (void)state;
    outb(0x61, 1);
    program(2, 0, 1000);
    assert_false(out2());
    advance_pit(999);
    assert_int_equal(read_count(2), 1);
    assert_false(out2());
    advance_pit(1);
    assert_true(out2());
    assert_int_equal(read_count(2), 0);
    advance_pit(1);
    assert_int_equal(read_count(2), 0xffff); // counts on, OUT stays
    assert_true(out2());
}

static void test_mode_0_gate(void **state)
{
    (void)state;
    outb(0x61, 1);
    program(2, 0, 1000);
    advance_pit(400);
    outb(0x61, 0);
    advance_pit(5000);
    assert_int_equal(read_count(2), 600);
    assert_false(out2());
    outb(0x61, 1);
    advance_pit(599);
    assert_false(out2());
    advance_pit(1);
    assert_true(out2());
}

static void test_mode_1(void **state)
{
    (void)state;
    program(2, 1, 100);
    assert_true(out2());
    outb(0x61, 1);
    assert_false(out2());
    advance_pit(99);
    assert_false(out2());
    outb(0x61, 0);
    outb(0x61, 1); // retriggered
    advance_pit(99);
    assert_false(out2());
    advance_pit(1);
    assert_true(out2());
}

static void test_mode_2(void **state)
{
    (void)state;
    outb(0x61, 1);
    program(2, 2, 10);
    assert_int_equal(read_count(2), 10);
    advance_pit(8);
    assert_true(out2());
    advance_pit(1);
    assert_int_equal(read_count(2), 1);
    assert_false(out2());
    advance_pit(1);
    assert_int_equal(read_count(2), 10);
    assert_true(out2());
    outb(0x61, 0); // GATE low: OUT is high
    advance_pit(9);
    assert_true(out2());
}

static void test_mode_3(void **state)
{
    unsigned high = 0;

    (void)state;
    outb(0x61, 1);
    program(2, 3, 9); // odd: one tick longer high than low
    for (unsigned i = 0; i < 90; i++) {
        high += out2();
        advance_pit(1);
    }
    assert_int_equal(high, 50);
    program(2, 3, 100);
    advance_pit(10);
    assert_int_equal(read_count(2), 80); // counts by two
    advance_pit(50);
    assert_int_equal(read_count(2), 80);
    assert_false(out2());
}

static void test_modes_4_and_5(void **state)
{
    (void)state;
    outb(0x61, 1);
    program(2, 4, 10);
    advance_pit(9);
    assert_true(out2());
    advance_pit(1);
    assert_false(out2()); // the strobe
    advance_pit(1);
    assert_true(out2());
    outb(0x61, 0);
    program(2, 5, 10);
    advance_pit(10);
    assert_true(out2());
    outb(0x61, 1);
    advance_pit(10);
    assert_false(out2());
}

static void test_new_count_waits_for_the_period(void **state)
{
    (void)state;
    outb(0x61, 1);
    program(2, 2, 100);
    advance_pit(30);
    outb(0x42, 50);
    outb(0x42, 0);
    assert_int_equal(read_status(2) & 0x40, 0x40); // null count
    assert_int_equal(read_count(2), 70);
    advance_pit(70);
    assert_int_equal(read_count(2), 50);
    assert_int_equal(read_status(2) & 0x40, 0);
    advance_pit(50);
    assert_int_equal(read_count(2), 50);
}

static void test_latch_and_read_back(void **state)
{
    (void)state;
    outb(0x61, 1);
    program(2, 0, 0x1234);
    outb(0x43, 0x80);
    advance_pit(100);
    outb(0x43, 0x80); // already latched: ignored
    assert_int_equal(inb(0x42), 0x34);
    assert_int_equal(inb(0x42), 0x12);
    assert_int_equal(inb(0x42), (0x1234 - 100) & 0xff); // live again
    assert_int_equal(inb(0x42), (0x1234 - 100) >> 8);
    outb(0x43, 0xc8); // status and count of channel 2
    assert_int_equal(inb(0x42), 0x30);
    assert_int_equal(inb(0x42), (0x1234 - 100) & 0xff);
    assert_int_equal(inb(0x42), (0x1234 - 100) >> 8);
}

static void test_access_modes(void **state)
{
    (void)state;
    outb(0x61, 1);
    outb(0x43, 0x90); // channel 2, low byte only, mode 0
    outb(0x42, 200);
    assert_int_equal(inb(0x42), 200);
    assert_int_equal(inb(0x42), 200);
    outb(0x43, 0xa0); // high byte only
    outb(0x42, 0x12);
    assert_int_equal(inb(0x42), 0x12);
    advance_pit(1);
    assert_int_equal(inb(0x42), 0x11);
}

static void test_bcd(void **state)
{
    (void)state;
    outb(0x61, 1);
    outb(0x43, 0xb1); // mode 0, BCD
    outb(0x42, 0x00);
    outb(0x42, 0x10);
    advance_pit(1);
    assert_int_equal(read_count(2), 0x0999);
    advance_pit(1000);
    assert_int_equal(read_count(2), 0x9999);
    assert_int_equal(read_status(2) & 0x3f, 0x31);
}

static unsigned count_irqs(u64 ticks, u64 step)
{
    unsigned count = 0;

    for (u64 done = 0; done < ticks; done += step) {
        advance_pit(step);
        if (take_irq(0) == 0x20) {
            count++;
            outb(0x20, 0x20);
        }
    }
    return count;
}

static void test_irq0(void **state)
{
    (void)state;
    count_irq0_from_here();
    program(0, 2, 1000);
    assert_int_equal(count_irqs(100000, 100), 100);
    program(0, 3, 500);
    assert_int_equal(count_irqs(100000, 100), 200);
    program(0, 0, 300); // once
    assert_int_equal(count_irqs(100000, 100), 1);
    program(0, 4, 300);
    assert_int_equal(count_irqs(100000, 100), 1);
    outb(0x43, 0x34); // a control word stops it
    take_irq(0);
    outb(0x20, 0x20);
    assert_int_equal(count_irqs(100000, 100), 0);
}

static void test_irq0_as_firmware_leaves_it(void **state)
{
    (void)state;
    count_irq0_from_here();
    assert_int_equal(count_irqs(65536 * 10, 1024), 10);
}

// No drift: a minute at 1000 Hz, interrupts served late.
static void test_no_drift(void **state)
{
    unsigned count = 0;

    (void)state;
    count_irq0_from_here();
    program(0, 2, 1193);
    for (unsigned i = 0; i < 60 * 4000; i++) {
        advance(SECOND / 4000);
        if (i % 3 == 0 && take_irq(0) == 0x20) {
            count++;
            outb(0x20, 0x20);
        }
    }
    assert_in_range(count, 60 * 1000, 60 * 1000 + 20);
}

// What came late, or found the one before it waiting, is made up for; what is masked is not.
static void test_late(void **state)
{
    (void)state;
    count_irq0_from_here();
    program(0, 2, 1193);
    fake_time += 50 * MS; // nobody looked
    assert_in_range(count_irqs(119300, 200), 147, 151);
    assert_in_range(count_irqs(119300, 200), 99, 101);
    advance(50 * MS); // nobody took them
    assert_in_range(count_irqs(119300, 200), 147, 151);
    outb(0x21, 0xff);
    advance(50 * MS);
    outb(0x21, 0);
    assert_in_range(count_irqs(119300, 200), 99, 102);
}

// The timer may go off while another CPU programs the channel: that one's edge is not due.
static void test_reprogrammed_meanwhile(void **state)
{
    struct timer *timer = &fake_vm.machine->pit.timer;

    (void)state;
    count_irq0_from_here();
    program(0, 2, 1193);
    timer_cancel(timer);
    timer->fn(timer);
    assert_int_equal(take_irq(0), -1);
    assert_in_range(count_irqs(11930, 200), 9, 11);
}

// A guest too slow for its ticks is not made slower by ones that it can't take.
static void test_late_and_waiting(void **state)
{
    unsigned fired = 0;

    (void)state;
    count_irq0_from_here();
    program(0, 2, 1193);
    advance(10 * MS); // one waits, the others are owed
    for (u64 end = fake_time + 50 * MS; fake_time < end; fired++)
        advance(first_timer()->deadline - fake_time);
    assert_in_range(fired, 49, 51);
}

// Owed ones leave the guest time to handle them: 50 microseconds, however fast they come.
static void test_owed_apart(void **state)
{
    unsigned fired = 0;

    (void)state;
    count_irq0_from_here();
    program(0, 2, 119); // 100 microseconds
    fake_time += 10 * MS;
    for (u64 end = fake_time + 5 * MS; fake_time < end; fired++) {
        advance(first_timer()->deadline - fake_time);
        assert_int_equal(take_irq(0), 0x20);
        outb(0x20, 0x20);
    }
    assert_in_range(fired, 90, 110);
}

// The shortest period costs Nestor no more than one interrupt in 10 microseconds.
static void test_shortest_period(void **state)
{
    unsigned fired = 0;

    (void)state;
    program(0, 2, 1);
    for (u64 end = fake_time + MS; fake_time < end; fired++)
        advance(first_timer()->deadline - fake_time);
    assert_in_range(fired, 50, 100);
}

static void test_port_61(void **state)
{
    unsigned toggles = 0;
    u8 last = inb(0x61) & 0x10;

    (void)state;
    outb(0x61, 0xff);
    assert_int_equal(inb(0x61) & 0xcf, 0x0f); // the upper half can't be written
    for (unsigned i = 0; i < 100; i++) {
        advance(15 * US);
        toggles += (inb(0x61) & 0x10) != last;
        last = inb(0x61) & 0x10;
    }
    assert_in_range(toggles, 90, 100); // the refresh clock
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_1(test_mode_0),
        TEST_1(test_mode_0_gate),
        TEST_1(test_mode_1),
        TEST_1(test_mode_2),
        TEST_1(test_mode_3),
        TEST_1(test_modes_4_and_5),
        TEST_1(test_new_count_waits_for_the_period),
        TEST_1(test_latch_and_read_back),
        TEST_1(test_access_modes),
        TEST_1(test_bcd),
        TEST_1(test_irq0),
        TEST_1(test_irq0_as_firmware_leaves_it),
        TEST_1(test_no_drift),
        TEST_1(test_late),
        TEST_1(test_reprogrammed_meanwhile),
        TEST_1(test_late_and_waiting),
        TEST_1(test_owed_apart),
        TEST_1(test_shortest_period),
        TEST_1(test_port_61),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
