// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The bus: registration, splitting, what nobody answers.
// unit-sources: devices/lapic.c devices/lapic_accel.c devices/lapic_timer.c devices/apic_bus.c
// unit-sources: devices/ioapic.c
// unit-sources: devices/pic.c
// unit-sources: devices/pit.c devices/rtc.c devices/uart.c devices/i8042.c devices/acpi_pm.c
// unit-sources: devices/pci.c devices/chipset.c devices/fwcfg.c devices/testdev.c devices/tables.c
// unit-sources: devices/pci_testdev.c devices/bus.c devices/machine.c

#include "machine_fake.h"

static struct {
    unsigned calls;
    u64 at[16];
    unsigned size[16];
    u64 value[16];
} seen;

static void note(u64 at, unsigned size, bool write, u64 *value)
{
    unsigned n = seen.calls++;

    seen.at[n] = at;
    seen.size[n] = size;
    if (write)
        seen.value[n] = *value;
    else
        *value = 0xa0 + (at & 15);
}

static void pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value)
{
    u64 wide = *value;

    (void)device, (void)vcpu;
    note(port, size, write, &wide);
    *value = (u32)wide;
}

static void mmio(void *device, struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write, u64 *value)
{
    (void)device, (void)vcpu;
    note(gpa, size, write, value);
}

static u64 mmio_in(gpa_t gpa, unsigned size)
{
    u64 value = 0;

    bus_mmio(&fake_vcpu[0], gpa, size, false, &value);
    return value;
}

static void test_registration(void **state)
{
    (void)state;
    assert_int_equal(bus_add_pio(&fake_vm, 0x1000, 0x1003, pio, NULL, "a"), 0);
    assert_int_equal(bus_add_pio(&fake_vm, 0x1003, 0x1007, pio, NULL, "b"), -E_EXIST);
    assert_int_equal(bus_add_pio(&fake_vm, 0x0ffe, 0x1000, pio, NULL, "b"), -E_EXIST);
    assert_int_equal(bus_add_pio(&fake_vm, 0x1004, 0x1007, pio, NULL, "b"), 0);
    assert_int_equal(bus_add_mmio(&fake_vm, 0xd0000000, 0x1000, mmio, NULL, "a"), 0);
    assert_int_equal(bus_add_mmio(&fake_vm, 0xd0000fff, 1, mmio, NULL, "b"), -E_EXIST);
    assert_int_equal(bus_add_mmio(&fake_vm, 0xcffff000, 0x1001, mmio, NULL, "b"), -E_EXIST);
    assert_int_equal(bus_add_mmio(&fake_vm, 0xcffff000, 0x1000, mmio, NULL, "b"), 0);
    assert_int_equal(bus_add_mmio(&fake_vm, 0xd0001000, 0x1000, mmio, NULL, "b"), 0);
    assert_int_equal(bus_add_mmio(&fake_vm, ~0ull, 2, mmio, NULL, "b"), -E_INVAL);
}

// A device that knows only 32 bits gives no more than was asked for.
static void test_read_lanes(void **state)
{
    u64 value = 0;

    (void)state;
    ioapic_set_reg(0x10, 0x12345);
    bus_mmio(&fake_vcpu[0], IOAPIC_BASE + 0x10, 2, false, &value);
    assert_in_range(value, 0, 0xffff);
}

static int add_port_far_from_others(unsigned n)
{
    u16 port = (u16)(0x9000 + 256 * (n % 64) + n / 64);

    return bus_add_pio(&fake_vm, port, port, pio, NULL, "x");
}

static void test_tables_fill_up(void **state)
{
    int error = 0;

    (void)state;
    for (unsigned i = 0; i < 256 && !error; i++)
        error = add_port_far_from_others(i);
    assert_int_equal(error, -E_NOSPC);
    error = 0;
    for (unsigned i = 0; i < 64 && !error; i++)
        error = bus_add_mmio(&fake_vm, 0xd0000000 + i * 0x1000, 0x1000, mmio, NULL, "x");
    assert_int_equal(error, -E_NOSPC);
}

static void test_whole_accesses(void **state)
{
    (void)state;
    seen.calls = 0;
    bus_add_pio(&fake_vm, 0x1000, 0x1007, pio, NULL, "a");
    out(4, 0x1004, 0x12345678);
    assert_int_equal(seen.calls, 1);
    assert_int_equal(seen.size[0], 4);
    assert_int_equal(seen.value[0], 0x12345678);
    assert_int_equal(in(2, 0x1002), 0xa2);
}

static void test_split_at_ranges(void **state)
{
    (void)state;
    seen.calls = 0;
    bus_add_pio(&fake_vm, 0x1000, 0x1001, pio, NULL, "a");
    bus_add_pio(&fake_vm, 0x1002, 0x1002, pio, NULL, "b");
    assert_int_equal(in(4, 0x1000), 0xffa200a0); // one word, one byte, one byte of nobody's
    assert_int_equal(seen.calls, 2);
    assert_int_equal(seen.size[0], 2);
    assert_int_equal(seen.size[1], 1);
    seen.calls = 0;
    out(4, 0x0fff, 0x44332211);
    assert_int_equal(seen.calls, 3);
    assert_int_equal(seen.value[0], 0x22);
    assert_int_equal(seen.value[1], 0x33);
    assert_int_equal(seen.value[2], 0x44);
}

static void test_byte_wide_devices(void **state)
{
    (void)state;
    seen.calls = 0;
    bus_add_pio_flags(&fake_vm, 0x1000, 0x1007, pio, NULL, "a", BUS_BYTE);
    assert_int_equal(in(4, 0x1000), 0xa3a2a1a0);
    assert_int_equal(seen.calls, 4);
    seen.calls = 0;
    out(2, 0x1002, 0xbbaa);
    assert_int_equal(seen.calls, 2);
    assert_int_equal(seen.value[0], 0xaa);
    assert_int_equal(seen.value[1], 0xbb);
}

static void test_unknown_ports(void **state)
{
    (void)state;
    assert_int_equal(in(1, 0x5555), 0xff);
    assert_int_equal(in(2, 0x5555), 0xffff);
    assert_int_equal(in(4, 0x5555), 0xffffffff);
    out(4, 0x5555, 1);
    assert_int_equal(fake_log_lines, 1);         // once
    assert_int_equal(in(4, 0xfffe), 0xffffffff); // around the end of the port space
    assert_int_equal(fake_log_lines, 2);
    for (unsigned port = 0x6000; port < 0x9000; port++)
        in(1, (u16)port);
    assert_in_range(fake_log_lines, 200, BUS_UNKNOWN_LINES + 1); // a guest can't fill the log
}

static void test_unknown_addresses(void **state)
{
    (void)state;
    assert_int_equal(mmio_in(0xd0000000, 8), ~0ull);
    assert_int_equal(mmio_in(0xd0000ff8, 1), 0xff);
    assert_int_equal(fake_log_lines, 1); // once for each page
    for (unsigned page = 0; page < 1000; page++)
        mmio_in(0xd0000000 + page * PAGE_SIZE, 4);
    assert_in_range(fake_log_lines, 200, BUS_UNKNOWN_LINES + 1);
    assert_int_equal(mmio_in(~0ull, 1), 0xff);
}

static void test_mmio(void **state)
{
    (void)state;
    seen.calls = 0;
    for (unsigned i = 0; i < 8; i++) // not in order
        bus_add_mmio(&fake_vm, 0xd0000000 + (i * 5 % 8) * 0x2000, 0x1000, mmio, NULL, "a");
    for (unsigned i = 0; i < 8; i++) {
        assert_int_equal(mmio_in(0xd0000000 + i * 0x2000 + 8, 8), 0xa8);
        assert_int_equal(mmio_in(0xd0001000 + i * 0x2000, 4), 0xffffffff);
    }
    assert_int_equal(seen.calls, 8);
    seen.calls = 0;
    assert_int_equal(mmio_in(0xd0000ffe, 4), 0xffff0000 | 0xae); // half of it is nobody's
    assert_int_equal(seen.calls, 1);
    assert_int_equal(seen.size[0], 2);
    seen.calls = 0;
    assert_int_equal(mmio_in(0xd0001ffd, 4), 0xa0ffffff);
    assert_int_equal(seen.at[0], 0xd0002000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_1(test_registration),   TEST_1(test_read_lanes),        TEST_1(test_tables_fill_up),
        TEST_1(test_whole_accesses), TEST_1(test_split_at_ranges),   TEST_1(test_byte_wide_devices),
        TEST_1(test_unknown_ports),  TEST_1(test_unknown_addresses), TEST_1(test_mmio),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
