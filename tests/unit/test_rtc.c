// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The clock and CMOS RAM against the MC146818A data sheet.
// unit-sources: devices/lapic.c devices/lapic_accel.c devices/lapic_timer.c devices/apic_bus.c
// unit-sources: devices/ioapic.c
// unit-sources: devices/pic.c
// unit-sources: devices/pit.c devices/rtc.c devices/uart.c devices/i8042.c devices/acpi_pm.c
// unit-sources: devices/pci.c devices/chipset.c devices/fwcfg.c devices/testdev.c devices/tables.c
// unit-sources: devices/pci_testdev.c devices/bus.c devices/machine.c

#include "machine_fake.h"

#include <time.h>

static u8 cmos(u8 index)
{
    outb(0x70, index);
    return inb(0x71);
}

static void set_cmos(u8 index, u8 value)
{
    outb(0x70, index);
    outb(0x71, value);
}

static void expect_time(const char *text)
{
    char now[32];

    snprintf(now, sizeof(now), "%02x%02x-%02x-%02x %02x:%02x:%02x %x", cmos(0x32), cmos(9), cmos(8),
             cmos(7), cmos(4), cmos(2), cmos(0), cmos(6));
    assert_string_equal(now, text);
}

// Sets the time as systems do, with the clock stopped; BCD, 24 hours.
static void set_time(u32 century_year, u32 month_day, u32 time)
{
    set_cmos(0x0b, 0x82);
    set_cmos(0x32, (u8)(century_year >> 8));
    set_cmos(9, (u8)century_year);
    set_cmos(8, (u8)(month_day >> 8));
    set_cmos(7, (u8)month_day);
    set_cmos(4, (u8)(time >> 16));
    set_cmos(2, (u8)(time >> 8));
    set_cmos(0, (u8)time);
    set_cmos(0x0b, 0x02);
}

static void listen(void)
{
    outb(0x20, 0x11);
    outb(0x21, 0x20);
    outb(0x21, 0x04);
    outb(0x21, 0x03); // automatic EOI
    outb(0xa0, 0x11);
    outb(0xa1, 0x28);
    outb(0xa1, 0x02);
    outb(0xa1, 0x03);
    outb(0x21, 0xfb);
    outb(0xa1, 0xfe);
}

static void test_wall_time(void **state)
{
    (void)state;
    expect_time("2025-12-31 23:59:59 4");
    advance(SECOND);
    expect_time("2026-01-01 00:00:00 5");
    advance(40 * 86400 * SECOND + 3661 * SECOND);
    expect_time("2026-02-10 01:01:01 3");
}

static void test_set_time(void **state)
{
    (void)state;
    set_time(0x2024, 0x0228, 0x235958);
    expect_time("2024-02-28 23:59:58 4");
    advance(2 * SECOND);
    expect_time("2024-02-29 00:00:00 5");
    advance(86400 * SECOND);
    expect_time("2024-03-01 00:00:00 6");
    set_time(0x2100, 0x0228, 0x235959); // no leap year
    advance(SECOND);
    expect_time("2100-03-01 00:00:00 2");
}

static void test_set_bit_stops_the_clock(void **state)
{
    (void)state;
    set_cmos(0x0b, 0x82);
    advance(10 * SECOND);
    expect_time("2025-12-31 23:59:59 4");
    set_cmos(0x0b, 0x02);
    advance(SECOND);
    expect_time("2026-01-01 00:00:00 5");
}

// SET holds off updates only: the divider chain goes on, with its periodic interrupts and its
// phase.
static void test_set_bit_leaves_the_divider(void **state)
{
    unsigned count = 0;

    (void)state;
    listen();
    advance(SECOND - 100 * US);
    assert_int_equal(cmos(0x0a), 0xa6);
    set_cmos(0x0b, 0xc2);
    assert_int_equal(cmos(0x0a), 0x26); // the update is given up
    take_irq(0);
    cmos(0x0c);
    for (unsigned i = 0; i < 4096; i++) {
        advance(SECOND / 4096);
        if (take_irq(0) == 0x28) {
            count++;
            assert_int_equal(cmos(0x0c) & 0xf0, 0xc0); // no update has ended
        }
    }
    assert_in_range(count, 1023, 1024);
    expect_time("2025-12-31 23:59:59 4");
    advance(SECOND / 4 + 100 * US);
    set_time(0x2026, 0x0301, 0x120000);
    advance(SECOND * 3 / 4 - MS);
    expect_time("2026-03-01 12:00:00 1");
    advance(2 * MS);
    expect_time("2026-03-01 12:00:01 1");
}

static void test_write_while_running(void **state)
{
    (void)state;
    set_cmos(4, 0x12);
    expect_time("2025-12-31 12:59:59 4");
    advance(SECOND);
    expect_time("2025-12-31 13:00:00 4");
}

static void test_binary_and_12_hours(void **state)
{
    (void)state;
    set_cmos(0x0b, 0x06);
    assert_int_equal(cmos(2), 59);
    assert_int_equal(cmos(9), 25);
    assert_int_equal(cmos(4), 23);
    set_cmos(0x0b, 0x04);
    assert_int_equal(cmos(4), 0x80 | 11);
    set_cmos(0x0b, 0x00);
    assert_int_equal(cmos(4), 0x80 | 0x11);
    advance(SECOND);
    assert_int_equal(cmos(4), 0x12); // midnight
    set_cmos(4, 0x80 | 0x12);
    set_cmos(0x0b, 0x02);
    assert_int_equal(cmos(4), 0x12); // noon
}

static void test_nonsense_is_some_time(void **state)
{
    (void)state;
    set_cmos(0x0b, 0x82);
    for (u8 i = 0; i < 10; i++)
        set_cmos(i, 0xff);
    set_cmos(0x32, 0xff);
    set_cmos(0x0b, 0x02);
    cmos(0);
    advance(SECOND);
    set_cmos(0x0b, 0x82);
    for (u8 i = 0; i < 10; i++)
        set_cmos(i, 0);
    set_cmos(0x32, 0);
    set_cmos(0x0b, 0x02);
    assert_int_equal(cmos(8), 1);
}

static void test_update_in_progress(void **state)
{
    (void)state;
    advance(SECOND - 300 * US);
    assert_int_equal(cmos(0x0a), 0x26);
    advance(100 * US);
    assert_int_equal(cmos(0x0a), 0xa6); // 244 us before the update
    advance(200 * US);
    assert_int_equal(cmos(0x0a), 0x26);
}

static void test_registers(void **state)
{
    (void)state;
    assert_int_equal(cmos(0x0b), 0x02);
    assert_int_equal(cmos(0x0c), 0);
    assert_int_equal(cmos(0x0d), 0x80);
    set_cmos(0x0c, 0xff);
    set_cmos(0x0d, 0);
    assert_int_equal(cmos(0x0c), 0);
    assert_int_equal(cmos(0x0d), 0x80);
    set_cmos(0x8f, 0x0a); // bit 7 is not the index's
    assert_int_equal(cmos(0x0f), 0x0a);
    assert_int_equal(inb(0x70), 0xff);
    assert_int_equal(cmos(0x15) | cmos(0x16) << 8, 640);
    assert_int_equal(cmos(0x34) | cmos(0x35) << 8, (512 - 16) * 16);
    machine_reset(&fake_vm);
    assert_int_equal(cmos(0x0f), 0x0a); // the battery keeps it
}

static void test_flags_without_interrupts(void **state)
{
    (void)state;
    cmos(0x0c);
    advance(SECOND / 2);
    assert_int_equal(cmos(0x0c), 0x40); // 1024 Hz is set up
    advance(SECOND / 2 + MS);
    assert_int_equal(cmos(0x0c) & 0x50, 0x50);
    assert_int_equal(cmos(0x0c), 0);
    assert_int_equal(take_irq(0), -1);
}

static void test_periodic(void **state)
{
    unsigned count = 0;

    (void)state;
    listen();
    set_cmos(0x0b, 0x42);
    for (unsigned i = 0; i < 4096; i++) {
        advance(SECOND / 4096);
        if (take_irq(0) == 0x28) {
            count++;
            assert_int_equal(cmos(0x0c) & 0xc0, 0xc0);
        }
    }
    assert_in_range(count, 1023, 1024);
    take_irq(0);
    cmos(0x0c);
    advance(MS);
    take_irq(0); // not answered by reading C: no further one
    advance(SECOND);
    assert_int_equal(take_irq(0), -1);
    cmos(0x0c);
    set_cmos(0x0a, 0x20); // no rate
    advance(SECOND);
    assert_int_equal(take_irq(0), -1);
}

static void test_update_ended(void **state)
{
    (void)state;
    listen();
    set_cmos(0x0b, 0x12);
    advance(SECOND - MS);
    assert_int_equal(take_irq(0), -1);
    advance(2 * MS);
    assert_int_equal(take_irq(0), 0x28);
    assert_int_equal(cmos(0), 0);
    assert_int_equal(cmos(0x0c) & 0x90, 0x90);
    advance(SECOND);
    assert_int_equal(take_irq(0), 0x28);
    set_cmos(0x0b, 0x92); // SET clears UIE
    assert_int_equal(cmos(0x0b), 0x82);
}

static void test_alarm(void **state)
{
    (void)state;
    listen();
    set_time(0x2026, 0x0301, 0x120000);
    set_cmos(1, 0x30);
    set_cmos(3, 0x05);
    set_cmos(5, 0x12);
    cmos(0x0c);
    set_cmos(0x0b, 0x22);
    advance(330 * SECOND - MS);
    assert_int_equal(take_irq(0), -1);
    advance(2 * MS);
    assert_int_equal(take_irq(0), 0x28);
    assert_int_equal(cmos(0x0c) & 0xa0, 0xa0);
    advance(86400 * SECOND - 2 * MS);
    assert_int_equal(take_irq(0), -1);
    advance(2 * MS);
    assert_int_equal(take_irq(0), 0x28);
    cmos(0x0c);
    // Any hour and minute.
    set_cmos(3, 0xff);
    set_cmos(5, 0xc0);
    for (unsigned i = 0; i < 3; i++) {
        advance(60 * SECOND);
        assert_int_equal(take_irq(0), 0x28);
        cmos(0x0c);
    }
    set_cmos(5, 0x99); // never
    advance(3 * 86400 * SECOND);
    assert_int_equal(take_irq(0), -1);
}

// Linux sets the time with the divider in reset, half a second before it is right.
static void test_divider_reset(void **state)
{
    (void)state;
    set_cmos(0x0a, 0x66);
    set_time(0x2026, 0x0301, 0x120000);
    advance(5 * SECOND);
    expect_time("2026-03-01 12:00:00 4");
    set_cmos(0x0a, 0x26);
    advance(SECOND / 2 - MS);
    expect_time("2026-03-01 12:00:00 1");
    advance(2 * MS);
    expect_time("2026-03-01 12:00:01 1");
    advance(SECOND - 2 * MS);
    expect_time("2026-03-01 12:00:01 1");
    advance(2 * MS);
    expect_time("2026-03-01 12:00:02 1");
}

// A guest can't keep its CPU busy by alarms that match nowhere: each second looks for one.
static void test_impossible_alarm(void **state)
{
    clock_t start = clock();

    (void)state;
    set_cmos(1, 0x7f);
    set_cmos(3, 0xff);
    set_cmos(5, 0xff);
    set_cmos(0x0b, 0x32);
    for (unsigned i = 0; i < 20000; i++) {
        advance(SECOND);
        cmos(0x0c);
    }
    assert_true(clock() - start < 5 * CLOCKS_PER_SEC);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_1(test_wall_time),
        TEST_1(test_set_time),
        TEST_1(test_set_bit_stops_the_clock),
        TEST_1(test_set_bit_leaves_the_divider),
        TEST_1(test_write_while_running),
        TEST_1(test_binary_and_12_hours),
        TEST_1(test_nonsense_is_some_time),
        TEST_1(test_update_in_progress),
        TEST_1(test_registers),
        TEST_1(test_flags_without_interrupts),
        TEST_1(test_periodic),
        TEST_1(test_update_ended),
        TEST_1(test_alarm),
        TEST_1(test_divider_reset),
        TEST_1(test_impossible_alarm),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
