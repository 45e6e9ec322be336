// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The rest of the machine: power, resets, PCI, the keyboard controller, the test device; and random
// accesses to all of it.
// unit-sources: devices/lapic.c devices/lapic_accel.c devices/lapic_timer.c devices/apic_bus.c
// unit-sources: devices/ioapic.c
// unit-sources: devices/pic.c
// unit-sources: devices/pit.c devices/rtc.c devices/uart.c devices/i8042.c devices/acpi_pm.c
// unit-sources: devices/pci.c devices/chipset.c devices/fwcfg.c devices/testdev.c devices/tables.c
// unit-sources: devices/pci_testdev.c devices/bus.c devices/machine.c

#include "machine_fake.h"

static void listen_to_sci(void)
{
    ioapic_set_entry(9, 0, 0x8000 | 0x39);
}

static void test_power_off(void **state)
{
    (void)state;
    assert_int_equal(in(2, 0x604), 1); // SCI_EN: always in ACPI mode
    out(2, 0x604, 0x0000);
    out(2, 0x604, 0x2000 | 5 << 10); // another sleep type
    assert_int_equal(fake_power_offs, 0);
    out(2, 0x604, 0x2000);
    assert_int_equal(fake_power_offs, 1);
    assert_int_equal(fake_status, 0);
    assert_int_equal(in(2, 0x604), 1); // SLP_EN reads 0
}

static void test_pm_timer(void **state)
{
    u32 start = in(4, 0x608);

    (void)state;
    advance(SECOND);
    assert_in_range(in(4, 0x608) - start, 3579545, 3579546);
    assert_int_equal(inb(0x609), in(4, 0x608) >> 8 & 0xff);
    out(4, 0x608, 0);
    assert_int_not_equal(in(4, 0x608), 0);
}

static void test_pm_timer_status(void **state)
{
    (void)state;
    listen_to_sci();
    assert_int_equal(in(2, 0x600), 0);
    advance(601 * SECOND); // 2^31 ticks are 599.9 seconds
    assert_int_equal(in(2, 0x600), 1);
    assert_int_equal(take_irq(0), -1);
    out(2, 0x602, 1);
    assert_int_equal(take_irq(0), 0x39);
    out(1, 0x600, 1);
    assert_int_equal(in(4, 0x600), 0x00010000);
    apic_write(0, APIC_EOI, 0);
    assert_int_equal(take_irq(0), -1); // the level has gone
    advance(600 * SECOND);
    assert_int_equal(take_irq(0), 0x39);
    out(2, 0x602, 0xffff);
    assert_int_equal(in(2, 0x602), 0x0721);
}

static void test_resets(void **state)
{
    (void)state;
    outb(0xcf9, 0x02);
    assert_int_equal(fake_resets, 0);
    outb(0xcf9, 0x06);
    assert_int_equal(fake_resets, 1);
    outb(0x92, 0x02);
    assert_int_equal(fake_resets, 1);
    outb(0x92, 0x03);
    assert_int_equal(fake_resets, 2);
    outb(0x64, 0xfe);
    assert_int_equal(fake_resets, 3);
    outb(0x64, 0xff); // pulses nothing
    outb(0x64, 0xd1);
    outb(0x60, 0xdf);
    assert_int_equal(fake_resets, 3);
    outb(0x64, 0xd1);
    outb(0x60, 0xde);
    assert_int_equal(fake_resets, 4);
}

static void test_pci(void **state)
{
    (void)state;
    out(4, 0xcf8, 0x80000000);
    assert_int_equal(in(4, 0xcf8), 0x80000000);
    assert_int_equal(in(4, 0xcfc), 0x00081b36);
    assert_int_equal(in(2, 0xcfe), 0x0008);
    assert_int_equal(inb(0xcfd), 0x1b);
    out(4, 0xcfc, 0);
    assert_int_equal(in(4, 0xcfc), 0x00081b36);
    out(4, 0xcf8, 0x80000008);
    assert_int_equal(in(4, 0xcfc), 0x06000000);
    out(4, 0xcf8, 0x80001000); // device 2
    assert_int_equal(in(4, 0xcfc), ~0u);
    out(4, 0xcf8, 0x80000100); // function 1
    assert_int_equal(in(4, 0xcfc), ~0u);
    out(4, 0xcf8, 0x80010000); // bus 1
    assert_int_equal(in(4, 0xcfc), ~0u);
    out(4, 0xcf8, 0x00000000); // not enabled
    assert_int_equal(in(4, 0xcfc), ~0u);
    out(4, 0xcf8, ~0u);
    assert_int_equal(in(4, 0xcf8), 0x80fffffc);
    out(2, 0xcf8, 0); // words are not the address register's
    assert_int_equal(in(4, 0xcf8), 0x80fffffc);
}

// What test images rely on: the address's low bits count while a register holds it all.
static void test_pci_low_bits(void **state)
{
    (void)state;
    out(4, 0xcf8, 0x80000002);
    assert_int_equal(in(4, 0xcf8), 0x80000000);
    assert_int_equal(in(2, 0xcfc), 0x0008);
    assert_int_equal(in(2, 0xcfe), 0x0008);
    assert_int_equal(in(4, 0xcfc), 0x00081b36);
    out(4, 0xcf8, 0x800000ff);
    assert_int_equal(in(4, 0xcfc), 0);
    assert_int_equal(inb(0xcfc), 0);
}

static u32 ecam(unsigned slot, unsigned offset)
{
    return mmio_read(0, PCI_ECAM_BASE + slot * 0x8000ull + offset);
}

static void test_ecam(void **state)
{
    u64 value = 0;

    (void)state;
    assert_int_equal(ecam(0, 0), 0x00081b36);
    assert_int_equal(ecam(0, 2) & 0xffff, 8); // across two registers
    assert_int_equal(ecam(0, 8), 0x06000000);
    assert_int_equal(ecam(0, 0x100), ~0u); // no extended registers
    assert_int_equal(ecam(2, 0), ~0u);
    assert_int_equal(mmio_read(0, PCI_ECAM_BASE + 0x1000), ~0u); // function 1
    assert_int_equal(mmio_read(0, PCI_ECAM_BASE + PCI_ECAM_SIZE - 4), ~0u);
    bus_mmio(&fake_vcpu[0], PCI_ECAM_BASE, 8, false, &value);
    assert_int_equal(value, 0x81b36);
    mmio_write(0, PCI_ECAM_BASE + 4, ~0u);
    assert_int_equal(ecam(0, 4), 0);
    assert_int_equal(fake_log_lines, 0);
}

static u32 test_config(unsigned offset)
{
    out(4, 0xcf8, 0x80000800 | offset);
    return in(4, 0xcfc);
}

static void set_test_config(unsigned offset, u32 value)
{
    out(4, 0xcf8, 0x80000800 | offset);
    out(4, 0xcfc, value);
    assert_int_equal(ecam(1, offset), in(4, 0xcfc));
}

static void test_pci_bars(void **state)
{
    (void)state;
    assert_int_equal(test_config(0), 0x00051b36);
    assert_int_equal(test_config(4), 3);
    assert_int_equal(test_config(0x10), 0xc0000000);
    assert_int_equal(test_config(0x14), 0xc001);
    set_test_config(0x10, ~0u); // sizes
    assert_int_equal(test_config(0x10), 0xfffff000);
    set_test_config(0x14, ~0u);
    assert_int_equal(test_config(0x14), 0xffffff01);
    set_test_config(0x18, ~0u);
    assert_int_equal(test_config(0x18), 0);
    assert_int_equal(in(4, 0xff04), ~0u); // a base beyond 64 KiB decodes nothing
    set_test_config(0x10, 0xd0001000);
    set_test_config(0x14, 0x1000);
    mmio_write(0, 0xd0001000, 0x01);
    assert_int_equal(mmio_read(0, 0xd0001004), 0x40);
    assert_int_equal(mmio_read(0, 0xd0001008), 0xface);
    assert_int_equal(mmio_read(0, 0xd0000ffe), 0x0200ffff); // half of it before the BAR
    assert_int_equal(mmio_read(0, 0xc0000004), ~0u);        // where it was
    outb(0x1000, 2);
    assert_int_equal(in(4, 0x1008), 0xfacade01);
    assert_int_equal(in(4, 0x10fe), 0xffff0000);
    set_test_config(4, 1);
    assert_int_equal(mmio_read(0, 0xd0001008), ~0u);
    assert_int_equal(in(4, 0x1008), 0xfacade01);
    set_test_config(4, 2);
    assert_int_equal(in(4, 0x1008), ~0u);
    out(4, 0xcf8, 0x80000810); // a single byte of a register
    outb(0xcff, 0xe0);
    assert_int_equal(mmio_read(0, 0xe0001008), 0xface);
    machine_reset(&fake_vm);
    assert_int_equal(test_config(0x10), 0xc0000000);
}

static void test_pci_test_device(void **state)
{
    static const struct {
        u8 width;
        u32 data;
    } expected[] = {{1, 0xfa}, {2, 0xface}, {4, 0xfacade01}};

    (void)state;
    assert_int_equal(mmio_read(0, 0xc0000000), 0);
    for (unsigned i = 0; i < 3; i++) {
        u64 value = expected[i].data;

        outb(0xc000, (u8)i);
        mmio_write(0, 0xc0000000, i);
        assert_int_equal(inb(0xc001), expected[i].width);
        assert_int_equal(in(4, 0xc008), expected[i].data);
        assert_int_equal(in(4, 0xc00c), 0);
        assert_int_equal(inb(0xc010), 'p');
        assert_int_equal(mmio_read(0, 0xc0000010), 'm' | 'm' << 8 | 'i' << 16 | 'o' << 24);
        for (unsigned n = 0; n < 3; n++)
            out(expected[i].width, 0xc040, expected[i].data);
        out(expected[i].width, 0xc040, 1); // another value
        bus_mmio(&fake_vcpu[0], 0xc0000040, expected[i].width, true, &value);
        assert_int_equal(in(4, 0xc00c), 3);
        assert_int_equal(mmio_read(0, 0xc000000c), 1);
    }
    outb(0xc000, 3);
    assert_int_equal(in(4, 0xc000), 0);
    outb(0xc000, 0xff);
    assert_int_equal(in(4, 0xc000), 0);
}

static void test_i8042(void **state)
{
    (void)state;
    assert_int_equal(inb(0x64) & 1, 0);
    outb(0x64, 0xaa);
    assert_int_equal(inb(0x64) & 1, 1);
    assert_int_equal(inb(0x60), 0x55);
    assert_int_equal(inb(0x64) & 1, 0);
    outb(0x64, 0x60);
    outb(0x60, 0x65);
    outb(0x64, 0x20);
    assert_int_equal(inb(0x60), 0x65);
    outb(0x64, 0xd0);
    assert_int_equal(inb(0x60) & 3, 3); // A20 open
    outb(0x60, 0xff);                   // reset, to a keyboard that is not there
    assert_int_equal(inb(0x64) & 0x41, 0x41);
    assert_int_equal(inb(0x60), 0xfe);
    outb(0x64, 0xd3);
    outb(0x60, 0x5a); // loops back as the mouse's
    assert_int_equal(inb(0x64) & 0x21, 0x21);
    assert_int_equal(inb(0x60), 0x5a);
}

static void test_small_ports(void **state)
{
    (void)state;
    outb(0x80, 0x42);
    assert_int_equal(inb(0x80), 0x42);
    assert_int_equal(inb(0xe9), 0xe9);
    for (const char *p = "to the log\n"; *p; p++)
        outb(0xe9, (u8)*p);
    assert_int_equal(fake_log_lines, 1);
    for (unsigned i = 0; i < 10 * CHIPSET_LINE; i++)
        outb(0xe9, 'x');
    assert_int_equal(fake_log_lines, 11);
}

static u64 fwcfg(u16 key, unsigned size)
{
    u64 value = 0;

    out(2, 0x510, key);
    for (unsigned i = 0; i < size; i++)
        value |= (u64)inb(0x511) << 8 * i;
    return value;
}

static void test_fwcfg(void **state)
{
    (void)state;
    assert_int_equal(fwcfg(0, 4), 'Q' | 'E' << 8 | 'M' << 16 | 'U' << 24);
    assert_int_equal(fwcfg(1, 4), 1);
    assert_int_equal(fwcfg(3, 8), MIB(512));
    assert_int_equal(fwcfg(5, 2), 1);
    assert_int_equal(fwcfg(0x11, 8), MIB(512));
    assert_int_equal(fwcfg(0x19, 4), 0);
    assert_int_equal(fwcfg(0xffff, 8), 0);
    fwcfg(3, 8);
    assert_int_equal(inb(0x511), 0); // beyond the end
}

static void test_exit_codes(void **state)
{
    static const struct {
        u32 code, status;
    } rows[] = {{0, 0}, {1, 1}, {119, 119}, {120, 120}, {127, 120}, {~0u, 120}};

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        out(4, 0xf4, rows[i].code);
        assert_int_equal(fake_status, rows[i].status);
    }
}

static void test_shutdown_string(void **state)
{
    (void)state;
    for (const char *p = "ShShutdow Shutdown"; *p; p++) {
        assert_int_equal(fake_power_offs, 0);
        outb(0x8900, (u8)*p);
    }
    assert_int_equal(fake_power_offs, 1);
    out(2, 0x4004, 0x3400);
    assert_int_equal(fake_power_offs, 2);
}

static void test_test_device(void **state)
{
    u64 value = 0x1122334455667788;

    (void)state;
    out(4, 0xe0, 0x12345678);
    assert_int_equal(in(4, 0xe0), 0x12345678);
    out(2, 0xe0, 0xabcd);
    outb(0xe3, 0xef);
    assert_int_equal(in(4, 0xe0), 0xef34abcd);
    assert_int_equal(in(2, 0xe0), 0xabcd);
    out(4, 0xe4, 0x1000);
    assert_int_equal(fake_flushes, 1);
    ioapic_set_entry(14, 0, 0x77);
    outb(0x2000 + 14, 1);
    assert_int_equal(take_irq(0), 0x77);
    bus_mmio(&fake_vcpu[0], 0xff00fff8, 8, true, &value);
    assert_int_equal(mmio_read(0, 0xff00fffc), 0x11223344);
    assert_int_equal(mmio_read(0, 0xff000000), 0);
}

// Without the configuration's word there is no test device.
static void test_no_test_device(void **state)
{
    (void)state;
    machine_destroy(&fake_vm);
    fake_config.test_device = false;
    assert_int_equal(machine_create(&fake_vm), 0);
    machine_reset(&fake_vm);
    out(4, 0xf4, 0);
    assert_int_equal(fake_power_offs, 0);
    assert_int_equal(in(4, 0xe0), ~0u);
    assert_int_equal(mmio_read(0, 0xff000000), ~0u);
}

static void test_one_console(void **state)
{
    struct machine *first = fake_vm.machine;

    (void)state;
    assert_true(first->uart.console);
    assert_int_equal(machine_create(&fake_vm), 0);
    assert_false(fake_vm.machine->uart.console); // the first has it
    machine_destroy(&fake_vm);
    fake_vm.machine = first;
    for (unsigned i = 0; i < fake_vm.vcpu_count; i++)
        fake_vcpu[i].lapic = &first->lapics[i];
    machine_destroy(&fake_vm);
    fake_on_rx(); // nobody's
    assert_int_equal(machine_create(&fake_vm), 0);
    assert_true(fake_vm.machine->uart.console);
    machine_reset(&fake_vm);
}

// --- random accesses ---

static u64 random_state;

static u32 random_below(u32 n)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (u32)(random_state >> 33) % n;
}

static u16 random_port(void)
{
    static const u16 near[] = {0x20,  0x40,  0x60,  0x70,  0x80,  0x92,   0xa0,  0xe0,
                               0x3f8, 0x4d0, 0x510, 0x600, 0xcf8, 0x2000, 0x8900};

    return (u16)(near[random_below(ARRAY_SIZE(near))] + random_below(random_below(8) ? 16 : 65536));
}

static gpa_t random_address(void)
{
    static const gpa_t near[] = {APIC_GPA, APIC_GPA + 0x300, IOAPIC_BASE, IOAPIC_BASE + 0x10,
                                 0xff000000};

    return near[random_below(ARRAY_SIZE(near))] + random_below(random_below(8) ? 0x100 : 0x12000);
}

static void random_msr(struct vcpu *vcpu, u64 value)
{
    u32 number = random_below(16)  ? 0x800 + random_below(0x41)
                 : random_below(2) ? MSR_APIC_BASE
                                   : MSR_TSC_DEADLINE;

    if (random_below(2))
        lapic_write_msr(vcpu, number, number == MSR_APIC_BASE ? APIC_GPA | value % 4 << 10 : value);
    else
        lapic_read_msr(vcpu, number, &value);
}

static void random_access(void)
{
    static const u8 sizes[] = {1, 2, 4, 8, 3};
    struct vcpu *vcpu = &fake_vcpu[random_below(4)];
    u64 value = (u64)random_below(~0u) << 32 | random_below(random_below(2) ? 256 : ~0u);
    u32 narrow = (u32)value;

    switch (random_below(8)) {
    case 0 ... 2:
        bus_pio(vcpu, random_port(), sizes[random_below(3)], random_below(2), &narrow);
        break;
    case 3 ... 4:
        bus_mmio(vcpu, random_address(), sizes[random_below(5)], random_below(2), &value);
        break;
    case 5:
        random_msr(vcpu, value);
        break;
    case 6:
        if (irq_pending(vcpu))
            irq_ack(vcpu);
        break;
    default:
        advance(random_below(random_below(16) ? 100 * US : SECOND));
    }
}

static void test_random_accesses(void **state)
{
    (void)state;
    random_state = 1;
    for (unsigned i = 0; i < 500000; i++) {
        random_access();
        if (i % 5000 == 0)
            fake_input = "some input for the serial port", fake_on_rx();
        if (i % 50000 == 0)
            machine_reset(&fake_vm);
        if (i % 1000 == 0)
            lapic_reset(&fake_vcpu[random_below(4)], random_below(2));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_1(test_power_off),
        TEST_1(test_pm_timer),
        TEST_1(test_pm_timer_status),
        TEST_1(test_resets),
        TEST_1(test_pci),
        TEST_1(test_pci_low_bits),
        TEST_1(test_ecam),
        TEST_1(test_pci_bars),
        TEST_1(test_pci_test_device),
        TEST_1(test_i8042),
        TEST_1(test_small_ports),
        TEST_1(test_fwcfg),
        TEST_1(test_exit_codes),
        TEST_1(test_shutdown_string),
        TEST_1(test_test_device),
        TEST_1(test_no_test_device),
        TEST_1(test_one_console),
        TEST_4(test_random_accesses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
