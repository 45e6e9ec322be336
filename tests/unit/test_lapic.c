// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The local APIC against SDM vol. 3 "Advanced Programmable Interrupt Controller".
// unit-sources: devices/lapic.c devices/lapic_accel.c devices/lapic_timer.c devices/apic_bus.c
// unit-sources: devices/ioapic.c
// unit-sources: devices/pic.c
// unit-sources: devices/pit.c devices/rtc.c devices/uart.c devices/i8042.c devices/acpi_pm.c
// unit-sources: devices/pci.c devices/chipset.c devices/fwcfg.c devices/testdev.c devices/tables.c
// unit-sources: devices/pci_testdev.c devices/bus.c devices/machine.c

#include "machine_fake.h"

#define ENABLE_X2APIC(cpu) \
    assert_int_equal(      \
        lapic_write_msr(&fake_vcpu[cpu], MSR_APIC_BASE, base_of(cpu) | APIC_BASE_X2APIC), 0)

static u64 base_of(unsigned cpu)
{
    u64 base;

    assert_int_equal(lapic_read_msr(&fake_vcpu[cpu], MSR_APIC_BASE, &base), 0);
    return base;
}

static u64 msr(unsigned cpu, u32 number)
{
    u64 value = 0;

    assert_int_equal(lapic_read_msr(&fake_vcpu[cpu], number, &value), 0);
    return value;
}

static void set_msr(unsigned cpu, u32 number, u64 value)
{
    assert_int_equal(lapic_write_msr(&fake_vcpu[cpu], number, value), 0);
}

static void expect_gp_write(unsigned cpu, u32 number, u64 value)
{
    assert_int_equal(lapic_write_msr(&fake_vcpu[cpu], number, value), -E_FAULT);
}

static void expect_gp_read(unsigned cpu, u32 number)
{
    u64 value;

    assert_int_equal(lapic_read_msr(&fake_vcpu[cpu], number, &value), -E_FAULT);
}

static void self_ipi(unsigned cpu, u8 vector)
{
    apic_write(cpu, APIC_ICR_LOW, 0x44000 | vector);
}

static void enable(unsigned cpu)
{
    apic_write(cpu, APIC_SVR, 0x1ff);
}

static void test_state_after_reset(void **state)
{
    (void)state;
    // The boot CPU as firmware leaves it, the others as INIT leaves them.
    assert_int_equal(base_of(0), APIC_GPA | APIC_BASE_ENABLE | APIC_BASE_BSP);
    assert_int_equal(base_of(1), APIC_GPA | APIC_BASE_ENABLE);
    assert_int_equal(apic_read(0, APIC_SVR), 0x1ff);
    assert_int_equal(apic_read(0, APIC_LVT_LINT0), 0x700);
    assert_int_equal(apic_read(0, APIC_LVT_LINT1), 0x400);
    assert_int_equal(apic_read(1, APIC_SVR), 0xff);
    assert_int_equal(apic_read(1, APIC_LVT_LINT0), 0x10000);
    assert_int_equal(apic_read(1, APIC_DFR), ~0u);
    assert_int_equal(apic_read(3, APIC_ID), 3u << 24);
    assert_int_equal(apic_read(3, APIC_VERSION) & 0xff, 0x14);
    assert_int_equal(apic_read(3, APIC_VERSION) >> 16 & 0xff, 5);
    for (u32 reg = APIC_ISR; reg < APIC_ESR; reg += 16)
        assert_int_equal(apic_read(1, reg), 0);
}

static void test_priorities(void **state)
{
    (void)state;
    self_ipi(0, 0x41);
    self_ipi(0, 0x52);
    assert_int_equal(apic_read(0, APIC_IRR + 0x20), 1u << 1 | 1u << 18);
    assert_true(fake_vcpu[0].events.interrupts_check);
    assert_int_equal(take_irq(0), 0x52);
    assert_int_equal(apic_read(0, APIC_PPR), 0x50);
    assert_int_equal(take_irq(0), -1); // class 4 waits for class 5
    self_ipi(0, 0x5f);                 // the same class does not nest
    assert_int_equal(take_irq(0), -1);
    self_ipi(0, 0x60);
    assert_int_equal(take_irq(0), 0x60);
    apic_write(0, APIC_EOI, 0);
    assert_int_equal(apic_read(0, APIC_PPR), 0x50);
    apic_write(0, APIC_EOI, 0);
    assert_int_equal(take_irq(0), 0x5f);
    apic_write(0, APIC_EOI, 0);
    assert_int_equal(take_irq(0), 0x41);
    apic_write(0, APIC_EOI, 0);
    assert_int_equal(apic_read(0, APIC_PPR), 0);
    apic_write(0, APIC_EOI, 0); // nothing in service: nothing happens
}

static void test_task_priority(void **state)
{
    (void)state;
    lapic_write_cr8(&fake_vcpu[0], 4);
    assert_int_equal(apic_read(0, APIC_TPR), 0x40);
    self_ipi(0, 0x4f);
    assert_false(irq_pending(&fake_vcpu[0]));
    fake_vcpu[0].events.interrupts_check = false;
    apic_write(0, APIC_TPR, 0x3f);
    assert_true(fake_vcpu[0].events.interrupts_check);
    assert_int_equal(lapic_read_cr8(&fake_vcpu[0]), 3);
    assert_int_equal(apic_read(0, APIC_PPR), 0x3f);
    assert_int_equal(take_irq(0), 0x4f);
    assert_int_equal(apic_read(0, APIC_PPR), 0x40); // TPR's class is lower now
}

static void test_irq_gone(void **state)
{
    (void)state;
    assert_int_equal(irq_ack(&fake_vcpu[0]), -E_NOENT);
}

static void test_ipi_physical(void **state)
{
    (void)state;
    enable(2);
    apic_write(0, APIC_ICR_HIGH, 2u << 24);
    apic_write(0, APIC_ICR_LOW, 0x4045);
    assert_int_equal(fake_vcpu[2].requests, REQUEST_EVENT);
    assert_int_equal(take_irq(2), 0x45);
    assert_int_equal(fake_vcpu[1].requests, 0);
    apic_write(0, APIC_ICR_HIGH, 9u << 24); // nobody there
    apic_write(0, APIC_ICR_LOW, 0x4045);
    apic_write(0, APIC_ICR_HIGH, 1u << 24); // software-disabled
    apic_write(0, APIC_ICR_LOW, 0x4045);
    assert_int_equal(fake_vcpu[1].requests, 0);
    apic_write(0, APIC_ICR_HIGH, 0xffu << 24); // broadcast
    enable(1);
    apic_write(0, APIC_ICR_LOW, 0x4046);
    assert_int_equal(take_irq(0), 0x46);
    assert_int_equal(take_irq(1), 0x46);
    assert_int_equal(take_irq(3), -1);
}

static void test_ipi_shorthands(void **state)
{
    (void)state;
    for (unsigned i = 1; i < 4; i++)
        enable(i);
    apic_write(0, APIC_ICR_LOW, 0xc4050); // all but self
    assert_int_equal(take_irq(0), -1);
    for (unsigned i = 1; i < 4; i++)
        assert_int_equal(take_irq(i), 0x50);
    apic_write(0, APIC_ICR_LOW, 0x84061); // all
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(take_irq(i), 0x61);
}

static void test_init_and_sipi(void **state)
{
    (void)state;
    apic_write(0, APIC_ICR_LOW, 0xc4500);
    assert_int_equal(fake_vcpu[0].requests, 0);
    for (unsigned i = 1; i < 4; i++)
        assert_int_equal(fake_vcpu[i].requests, REQUEST_INIT);
    fake_vcpu[1].requests = 0;
    apic_write(0, APIC_ICR_LOW, 0xc8500); // level de-assert: nothing
    assert_int_equal(fake_vcpu[1].requests, 0);
    apic_write(0, APIC_ICR_LOW, 0xc4609);
    assert_int_equal(fake_vcpu[1].requests, REQUEST_SIPI);
    assert_int_equal(fake_vcpu[1].events.sipi_vector, 9);
    apic_write(0, APIC_ICR_HIGH, 1u << 24);
    apic_write(0, APIC_ICR_LOW, 0x4400);
    assert_int_equal(fake_vcpu[1].requests, REQUEST_SIPI | REQUEST_NMI);
}

static void test_ipi_logical_flat(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        enable(i);
        apic_write(i, APIC_LDR, 1u << (24 + i));
    }
    apic_write(0, APIC_ICR_HIGH, 0x0au << 24);
    apic_write(0, APIC_ICR_LOW, 0x4870);
    assert_int_equal(take_irq(0), -1);
    assert_int_equal(take_irq(1), 0x70);
    assert_int_equal(take_irq(2), -1);
    assert_int_equal(take_irq(3), 0x70);
}

static void test_ipi_logical_cluster(void **state)
{
    static const u32 ldr[4] = {0x01, 0x02, 0x11, 0x12}; // two clusters of two

    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        enable(i);
        apic_write(i, APIC_DFR, 0x0fffffff);
        apic_write(i, APIC_LDR, ldr[i] << 24);
    }
    apic_write(0, APIC_ICR_HIGH, 0x13u << 24);
    apic_write(0, APIC_ICR_LOW, 0x4871);
    assert_int_equal(take_irq(0), -1);
    assert_int_equal(take_irq(1), -1);
    assert_int_equal(take_irq(2), 0x71);
    assert_int_equal(take_irq(3), 0x71);
    apic_write(0, APIC_ICR_HIGH, 0xffu << 24);
    apic_write(0, APIC_ICR_LOW, 0x4882);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(take_irq(i), 0x82);
}

static void test_lowest_priority(void **state)
{
    unsigned taken[4] = {0};

    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        enable(i);
        apic_write(i, APIC_LDR, 1u << (24 + i));
    }
    apic_write(0, APIC_TPR, 0x20);
    apic_write(0, APIC_ICR_HIGH, 0x07u << 24);
    for (unsigned n = 0; n < 10; n++) {
        apic_write(0, APIC_ICR_LOW, 0x4990);
        for (unsigned i = 0; i < 4; i++)
            if (take_irq(i) == 0x90) {
                taken[i]++;
                apic_write(i, APIC_EOI, 0);
            }
    }
    assert_int_equal(taken[0], 0); // its task priority is higher
    assert_int_equal(taken[1], 5); // equals take turns
    assert_int_equal(taken[2], 5);
    assert_int_equal(taken[3], 0); // not addressed
}

static void test_errors(void **state)
{
    (void)state;
    apic_write(0, APIC_LVT_ERROR, 0xfe);
    self_ipi(0, 15);
    assert_int_equal(take_irq(0), 0xfe);
    assert_int_equal(apic_read(0, APIC_ESR), 0); // not before a write
    apic_write(0, APIC_ESR, 0);
    assert_int_equal(apic_read(0, APIC_ESR), 0x20); // send illegal vector
    apic_write(0, APIC_EOI, 0);
    apic_read(0, 0x40);
    apic_write(0, APIC_ESR, 0);
    assert_int_equal(apic_read(0, APIC_ESR), 0x80); // illegal register address
    assert_int_equal(take_irq(0), 0xfe);
    apic_write(0, APIC_ESR, 0);
    assert_int_equal(apic_read(0, APIC_ESR), 0);
    // An illegal vector in the error entry itself does not go round in circles.
    apic_write(0, APIC_LVT_ERROR, 3);
    self_ipi(0, 15);
    apic_write(0, APIC_ESR, 0);
    assert_int_equal(apic_read(0, APIC_ESR), 0x60);
}

static void test_software_disable(void **state)
{
    (void)state;
    apic_write(0, APIC_LVT_TIMER, 0x33);
    self_ipi(0, 0x41);
    apic_write(0, APIC_SVR, 0xff);
    assert_int_equal(apic_read(0, APIC_LVT_TIMER), 0x10033);
    apic_write(0, APIC_LVT_TIMER, 0x33); // the mask bit can't be cleared now
    assert_int_equal(apic_read(0, APIC_LVT_TIMER), 0x10033);
    self_ipi(0, 0x42);
    assert_int_equal(apic_read(0, APIC_IRR + 0x20), 1u << 1); // kept, and nothing new accepted
    apic_write(0, APIC_SVR, 0x1ff);
    assert_int_equal(apic_read(0, APIC_LVT_TIMER), 0x10033);
}

static void test_access_widths(void **state)
{
    u64 value = 0;

    (void)state;
    bus_mmio(&fake_vcpu[3], APIC_GPA + APIC_ID + 3, 1, false, &value);
    assert_int_equal(value, 3);
    bus_mmio(&fake_vcpu[3], APIC_GPA + APIC_ID + 4, 4, false, &value);
    assert_int_equal(value, 0);
    bus_mmio(&fake_vcpu[3], APIC_GPA + APIC_ID, 8, false, &value);
    assert_int_equal(value, 3u << 24);
    value = 0x1ff;
    bus_mmio(&fake_vcpu[3], APIC_GPA + APIC_SVR + 1, 4, true, &value); // unaligned: dropped
    bus_mmio(&fake_vcpu[3], APIC_GPA + APIC_SVR, 2, true, &value);
    assert_int_equal(apic_read(3, APIC_SVR), 0xff);
}

static void test_base_moves(void **state)
{
    (void)state;
    set_msr(0, MSR_APIC_BASE, 0x80000000 | APIC_BASE_ENABLE | APIC_BASE_BSP);
    assert_int_equal(mmio_read(0, 0x80000000 + APIC_SVR), 0x1ff);
    assert_int_equal(mmio_read(0, APIC_GPA + APIC_SVR), ~0u);
    assert_int_equal(mmio_read(1, APIC_GPA + APIC_SVR), 0xff); // each CPU's own
}

static void test_mode_changes(void **state)
{
    u64 base = base_of(0);

    (void)state;
    expect_gp_write(0, MSR_APIC_BASE, base | 1);
    expect_gp_write(0, MSR_APIC_BASE, base | BIT(9));
    expect_gp_write(0, MSR_APIC_BASE, base | BIT(40)); // beyond MAXPHYADDR
    expect_gp_write(0, MSR_APIC_BASE, (base & ~APIC_BASE_ENABLE) | APIC_BASE_X2APIC);
    expect_gp_read(0, 0x802); // x2APIC registers only in x2APIC mode
    ENABLE_X2APIC(0);
    expect_gp_write(0, MSR_APIC_BASE, base);       // not back to xAPIC
    assert_int_equal(apic_read(0, APIC_SVR), ~0u); // no MMIO any more
    set_msr(0, MSR_APIC_BASE, base & ~APIC_BASE_ENABLE);
    assert_false(lapic_enabled(&fake_vcpu[0]));
    expect_gp_write(0, MSR_APIC_BASE, base | APIC_BASE_X2APIC); // not straight from disabled
    set_msr(0, MSR_APIC_BASE, base);
    assert_int_equal(apic_read(0, APIC_SVR), 0xff); // as after power-up
    assert_int_equal(apic_read(0, APIC_LVT_LINT0), 0x10000);
}

static void test_x2apic_registers(void **state)
{
    (void)state;
    ENABLE_X2APIC(0);
    ENABLE_X2APIC(3);
    assert_int_equal(msr(3, 0x802), 3);
    assert_int_equal(msr(3, 0x80d), 8);
    expect_gp_write(3, 0x802, 3); // read-only
    expect_gp_write(3, 0x80d, 8); // LDR is read-only here
    expect_gp_read(3, 0x80b);     // EOI is write-only
    expect_gp_write(3, 0x80b, 1); // and takes 0 only
    expect_gp_write(3, 0x828, 1); // as the ESR does
    expect_gp_read(3, 0x80e);     // no DFR
    expect_gp_read(3, 0x831);     // no second ICR word
    expect_gp_read(3, 0x83f);     // self-IPI is write-only
    expect_gp_read(3, 0x82f);     // no CMCI
    expect_gp_read(3, 0x840);
    expect_gp_read(3, 0x8ff);
    expect_gp_write(3, 0x808, 0x100);
    expect_gp_write(3, 0x808, BIT(32));
    expect_gp_write(3, 0x832, BIT(19));
    expect_gp_write(3, 0x83e, 4);
    expect_gp_write(3, 0x832, BIT(14) | 0x10020); // remote IRR: LINT0's and LINT1's
    expect_gp_write(3, 0x837, BIT(14) | 0x10020);
    set_msr(3, 0x832, BIT(12) | 0x10020); // delivery status is read-only
    set_msr(3, 0x835, BIT(14) | 0x10020);
    assert_int_equal(msr(3, 0x835), 0x10020);
    set_msr(0, 0x83f, 0x77);
    assert_int_equal(take_irq(0), 0x77);
    set_msr(0, 0x80b, 0);
    set_msr(3, 0x80f, 0x1ff);
    expect_gp_write(0, 0x830, BIT(13) | 0x50);
    set_msr(0, 0x830, 3ull << 32 | 0x4050);
    assert_int_equal(msr(0, 0x830), 3ull << 32 | 0x4050);
    assert_int_equal(take_irq(3), 0x50);
}

static void test_x2apic_destinations(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 20; i++) {
        enable(i);
        ENABLE_X2APIC(i);
    }
    set_msr(0, 0x830, 1ull << 48 | 5ull << 32 | 0x4860); // cluster 1, its first and third
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(take_irq(i), i == 16 || i == 18 ? 0x60 : -1);
    set_msr(0, 0x830, 0xffffffffull << 32 | 0x4070); // broadcast
    for (unsigned i = 0; i < 20; i++)
        assert_int_equal(take_irq(i), 0x70);
    set_msr(0, 0x830, 0xffull << 32 | 0x4090); // 0xff is an ID here
    assert_int_equal(take_irq(0), -1);
}

static int setup_20(void **state)
{
    (void)state;
    make_machine(20);
    return 0;
}

static void test_timer_one_shot(void **state)
{
    (void)state;
    apic_write(0, APIC_TIMER_DIVIDE, 0xb); // by 1
    apic_write(0, APIC_LVT_TIMER, 0x30);
    apic_write(0, APIC_TIMER_INITIAL, 1000);
    advance(400);
    assert_int_equal(apic_read(0, APIC_TIMER_CURRENT), 600);
    advance(599);
    assert_int_equal(take_irq(0), -1);
    advance(1);
    assert_int_equal(fake_vcpu[0].requests, REQUEST_EVENT);
    assert_int_equal(take_irq(0), 0x30);
    assert_int_equal(apic_read(0, APIC_TIMER_CURRENT), 0);
    assert_int_equal(apic_read(0, APIC_TIMER_INITIAL), 1000);
    apic_write(0, APIC_EOI, 0);
    advance(10000);
    assert_int_equal(take_irq(0), -1);
}

static void test_timer_divide(void **state)
{
    static const u8 config[8] = {0, 1, 2, 3, 8, 9, 10, 11};
    static const u8 divisor[8] = {2, 4, 8, 16, 32, 64, 128, 1};

    (void)state;
    for (unsigned i = 0; i < 8; i++) {
        apic_write(0, APIC_TIMER_DIVIDE, config[i]);
        apic_write(0, APIC_TIMER_INITIAL, 1000);
        advance(100u * divisor[i]);
        assert_int_equal(apic_read(0, APIC_TIMER_CURRENT), 900);
    }
}

static void test_timer_periodic(void **state)
{
    unsigned ticks = 0;

    (void)state;
    apic_write(0, APIC_TIMER_DIVIDE, 0xb);
    apic_write(0, APIC_LVT_TIMER, 0x20030);
    apic_write(0, APIC_TIMER_INITIAL, 100 * US);
    for (unsigned i = 0; i < 1000; i++) {
        advance(10 * US);
        if (take_irq(0) == 0x30) {
            ticks++;
            apic_write(0, APIC_EOI, 0);
        }
    }
    assert_int_equal(ticks, 100);
    advance(30 * US);
    assert_int_equal(apic_read(0, APIC_TIMER_CURRENT), 70 * US);
    // To one-shot in the middle: it counts on to its end and stops; back: it stays stopped.
    apic_write(0, APIC_LVT_TIMER, 0x30);
    assert_int_equal(apic_read(0, APIC_TIMER_CURRENT), 70 * US);
    advance(70 * US);
    assert_int_equal(take_irq(0), 0x30);
    assert_int_equal(apic_read(0, APIC_TIMER_CURRENT), 0);
    apic_write(0, APIC_LVT_TIMER, 0x20030);
    advance(MS);
    assert_int_equal(apic_read(0, APIC_TIMER_CURRENT), 0);
    assert_false(irq_pending(&fake_vcpu[0]));
}

// Two CPUs may go by one ID, and one may go by none that an interrupt names.
static void test_xapic_id_written(void **state)
{
    (void)state;
    for (unsigned i = 1; i < 3; i++)
        apic_write(i, APIC_SVR, 0x1ff);
    apic_write(1, APIC_ID, 2u << 24);
    assert_int_equal(apic_read(1, APIC_ID), 2u << 24);
    apic_write(0, APIC_ICR_HIGH, 2u << 24);
    apic_write(0, APIC_ICR_LOW, 0x4051);
    assert_int_equal(irq_ack(&fake_vcpu[1]), 0x51);
    assert_int_equal(irq_ack(&fake_vcpu[2]), 0x51);
    apic_write(0, APIC_ICR_HIGH, 1u << 24);
    apic_write(0, APIC_ICR_LOW, 0x4061);
    assert_int_equal(irq_next(&fake_vcpu[1]), -1);
    lapic_reset(&fake_vcpu[1], true);
    assert_int_equal(apic_read(1, APIC_ID), 2u << 24); // INIT leaves it
    lapic_reset(&fake_vcpu[1], false);
    assert_int_equal(apic_read(1, APIC_ID), 1u << 24);
}

// An offer to end an interrupt in memory stands until another one comes.
static void test_offered_eoi(void **state)
{
    (void)state;
    fake_vcpu[0].pv.eoi = 1;
    apic_write(0, APIC_ICR_LOW, 0x44051); // to itself
    assert_int_equal(irq_ack(&fake_vcpu[0]), 0x51);
    assert_int_equal(irq_next(&fake_vcpu[0]), -1);
    assert_true(fake_eoi_flag);
    fake_eoi_flag = false; // the guest ends it
    apic_write(0, APIC_ICR_LOW, 0x44050);
    assert_int_equal(irq_next(&fake_vcpu[0]), 0x50);
    assert_int_equal(irq_ack(&fake_vcpu[0]), 0x50);
    apic_write(0, APIC_ICR_LOW, 0x44051);
    assert_int_equal(irq_next(&fake_vcpu[0]), -1); // the same class: 50h is in service yet
    assert_false(fake_eoi_flag);
    apic_write(0, APIC_EOI, 0);
    assert_int_equal(irq_next(&fake_vcpu[0]), 0x51);
    fake_vcpu[0].pv.eoi = 0;
}

// What a guest owed ticks keeps waiting is owed it too, but no more than a second's worth.
static void test_timer_owed(void **state)
{
    unsigned ticks = 0;

    (void)state;
    apic_write(0, APIC_TIMER_DIVIDE, 0xb);
    apic_write(0, APIC_LVT_TIMER, 0x20030);
    apic_write(0, APIC_TIMER_INITIAL, MS);
    fake_time += 10 * MS; // nobody looked
    advance(5000 * MS);   // nobody took them
    for (unsigned i = 0; i < 30000; i++) {
        advance(100 * US);
        if (take_irq(0) == 0x30) {
            ticks++;
            apic_write(0, APIC_EOI, 0);
        }
    }
    assert_in_range(ticks, 3990, 4010);
}

// 10,000 interrupts a second keep their pace although each is served a little late, and what passed
// while nobody looked is made up for.
static void test_timer_fast_period(void **state)
{
    unsigned ticks = 0;

    (void)state;
    apic_write(0, APIC_TIMER_DIVIDE, 0xb);
    apic_write(0, APIC_LVT_TIMER, 0x20030);
    apic_write(0, APIC_TIMER_INITIAL, 100 * US);
    fake_time += 5 * MS; // 50 of them
    for (unsigned i = 0; i < 1000000 / 7; i++) {
        advance(7 * US);
        if (take_irq(0) == 0x30) {
            ticks++;
            apic_write(0, APIC_EOI, 0);
        }
    }
    assert_in_range(ticks, 10045, 10055);
}

// A period of one tick must not hold Nestor up.
static void test_timer_shortest_period(void **state)
{
    (void)state;
    apic_write(0, APIC_TIMER_DIVIDE, 0xb);
    apic_write(0, APIC_LVT_TIMER, 0x20030);
    apic_write(0, APIC_TIMER_INITIAL, 1);
    fake_vcpu[0].requests = 0;
    advance(50 * US);
    assert_int_equal(fake_vcpu[0].requests, 0);
    advance(60 * US);
    assert_int_equal(fake_vcpu[0].requests, REQUEST_EVENT);
}

static void test_timer_masked(void **state)
{
    (void)state;
    apic_write(0, APIC_LVT_TIMER, 0x10030);
    apic_write(0, APIC_TIMER_INITIAL, 100);
    advance(MS);
    assert_int_equal(take_irq(0), -1);
}

static void test_tsc_deadline(void **state)
{
    (void)state;
    fake_vcpu[0].tsc_offset_base = 5000;
    set_msr(0, MSR_TSC_DEADLINE, fake_time + 100000); // not in that mode: ignored
    assert_int_equal(msr(0, MSR_TSC_DEADLINE), 0);
    apic_write(0, APIC_LVT_TIMER, 0x40031);
    set_msr(0, MSR_TSC_DEADLINE, fake_time + 5000 + 1000);
    assert_int_not_equal(msr(0, MSR_TSC_DEADLINE), 0);
    apic_write(0, APIC_TIMER_INITIAL, 50); // ignored in this mode
    assert_int_equal(apic_read(0, APIC_TIMER_CURRENT), 0);
    advance(999);
    assert_int_equal(take_irq(0), -1);
    advance(1);
    assert_int_equal(take_irq(0), 0x31);
    assert_int_equal(msr(0, MSR_TSC_DEADLINE), 0);
    apic_write(0, APIC_EOI, 0);
    set_msr(0, MSR_TSC_DEADLINE, 1); // long past
    assert_int_equal(take_irq(0), 0x31);
    apic_write(0, APIC_EOI, 0);
    set_msr(0, MSR_TSC_DEADLINE, fake_time + 5000 + 1000);
    set_msr(0, MSR_TSC_DEADLINE, 0); // disarmed
    advance(MS);
    assert_int_equal(take_irq(0), -1);
    set_msr(0, MSR_TSC_DEADLINE, fake_time + 5000 + 1000);
    set_msr(0, MSR_TSC_DEADLINE, ~0ull); // far away, not wrapped into the past
    advance(MS);
    assert_int_equal(take_irq(0), -1);
    set_msr(0, MSR_TSC_DEADLINE, fake_time + 5000 + 1000);
    apic_write(0, APIC_LVT_TIMER, 0x31); // a change of mode disarms
    advance(MS);
    assert_int_equal(take_irq(0), -1);
}

// SDM "Local Vector Table": bit 18 is reserved without the mode.
static void test_no_tsc_deadline(void **state)
{
    (void)state;
    fake_no_deadline = true;
    apic_write(0, APIC_LVT_TIMER, 0x40031);
    assert_int_equal(apic_read(0, APIC_LVT_TIMER), 0x31);
    lapic_reg_write(fake_vcpu[0].lapic, APIC_LVT_TIMER, 0x60032); // as APICv hands it over
    assert_int_equal(apic_read(0, APIC_LVT_TIMER), 0x20032);
    set_msr(0, MSR_TSC_DEADLINE, fake_time + 1000);
    assert_int_equal(msr(0, MSR_TSC_DEADLINE), 0);
    ENABLE_X2APIC(0);
    expect_gp_write(0, 0x832, 0x40031);
    set_msr(0, 0x832, 0x33 | BIT(12)); // what is read-only may be written
    assert_int_equal(msr(0, 0x832), 0x33);
    fake_no_deadline = false;
    set_msr(0, 0x832, 0x40031);
    assert_int_equal(msr(0, 0x832), 0x40031);
}

static void test_tsc_deadline_follows_tsc(void **state)
{
    (void)state;
    apic_write(0, APIC_LVT_TIMER, 0x40031);
    set_msr(0, MSR_TSC_DEADLINE, fake_time + MS);
    fake_vcpu[0].tsc_offset_base = MS / 2;
    lapic_tsc_changed(&fake_vcpu[0]);
    advance(MS / 2);
    assert_int_equal(take_irq(0), 0x31);
}

// While the CPU has a vector to deliver, one that comes is another.
static void test_offered(void **state)
{
    (void)state;
    apic_write(1, APIC_ICR_HIGH, 0);
    apic_write(1, APIC_ICR_LOW, 0x4041);
    assert_int_equal(irq_next(&fake_vcpu[0]), 0x41);
    assert_false(lapic_waits(fake_vcpu[0].lapic, 0));
    irq_offer(&fake_vcpu[0], 0x41);
    fake_vcpu[0].ctx[0].ctl.offer = 0x41;
    assert_true(lapic_waits(fake_vcpu[0].lapic, 0x41));
    fake_vcpu[0].ctx[0].ctl.offer = 0;
    fake_vcpu[0].events.interrupts_check = false;
    irq_offered(&fake_vcpu[0], 0x41, false);
    assert_true(fake_vcpu[0].events.interrupts_check);
    assert_int_equal(irq_next(&fake_vcpu[0]), 0x41);
    irq_offer(&fake_vcpu[0], 0x41);
    apic_write(1, APIC_ICR_LOW, 0x4041);
    irq_offered(&fake_vcpu[0], 0x41, true);
    assert_int_equal(apic_read(0, APIC_ISR + 0x20), 2);
    assert_int_equal(take_irq(0), -1);
    apic_write(0, APIC_EOI, 0);
    assert_int_equal(take_irq(0), 0x41);
    apic_write(0, APIC_EOI, 0);
    assert_int_equal(take_irq(0), -1);
}

static void test_ext_int(void **state)
{
    (void)state;
    outb(0x21, 0xef); // IR4
    machine_set_irq(fake_vm.machine, 4, true);
    assert_int_equal(fake_vcpu[0].requests, REQUEST_EVENT);
    assert_int_equal(fake_vcpu[1].requests, 0);
    lapic_write_cr8(&fake_vcpu[0], 15); // ExtINT knows no priority
    apic_write(0, APIC_LVT_LINT0, 0x10700);
    assert_false(irq_pending(&fake_vcpu[0]));
    apic_write(0, APIC_LVT_LINT0, 0x700);
    assert_int_equal(take_irq(0), 0x0c);
    assert_int_equal(take_irq(0), -1);
    assert_int_equal(apic_read(0, APIC_ISR), 0); // nothing is in service in the APIC
}

static void test_ext_int_without_apic(void **state)
{
    (void)state;
    set_msr(0, MSR_APIC_BASE, base_of(0) & ~APIC_BASE_ENABLE);
    set_msr(1, MSR_APIC_BASE, base_of(1) & ~APIC_BASE_ENABLE);
    outb(0x21, 0xef);
    machine_set_irq(fake_vm.machine, 4, true);
    assert_true(irq_pending(&fake_vcpu[0]));
    assert_false(irq_pending(&fake_vcpu[1]));
    assert_int_equal(take_irq(0), 0x0c);
    enable(2);
    apic_write(2, APIC_ICR_LOW, 0xc4050); // a disabled APIC gets no messages
    assert_int_equal(take_irq(0), -1);
}

static void test_lint0_nmi_and_fixed(void **state)
{
    (void)state;
    outb(0x21, 0xef);
    apic_write(0, APIC_LVT_LINT0, 0x400);
    machine_set_irq(fake_vm.machine, 4, true);
    assert_int_equal(fake_vcpu[0].requests, REQUEST_NMI);
    assert_int_equal(fake_vcpu[0].nmis, 1);
    assert_false(irq_pending(&fake_vcpu[0]));
    machine_set_irq(fake_vm.machine, 4, false);
    apic_write(0, APIC_LVT_LINT0, 0x39);
    machine_set_irq(fake_vm.machine, 4, true);
    assert_int_equal(take_irq(0), 0x39);
}

static void test_init(void **state)
{
    (void)state;
    ENABLE_X2APIC(3);
    set_msr(3, 0x80f, 0x1ff);
    set_msr(3, 0x83f, 0x50);
    lapic_reset(&fake_vcpu[3], true);
    assert_int_equal(base_of(3) & APIC_BASE_X2APIC, APIC_BASE_X2APIC); // stays
    assert_int_equal(msr(3, 0x80f), 0xff);
    assert_int_equal(msr(3, 0x80d), 8);
    assert_false(irq_pending(&fake_vcpu[3]));
    lapic_reset(&fake_vcpu[3], false);
    assert_int_equal(base_of(3), APIC_GPA | APIC_BASE_ENABLE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_4(test_state_after_reset),
        TEST_1(test_priorities),
        TEST_1(test_task_priority),
        TEST_1(test_irq_gone),
        TEST_4(test_ipi_physical),
        TEST_4(test_ipi_shorthands),
        TEST_4(test_init_and_sipi),
        TEST_4(test_ipi_logical_flat),
        TEST_4(test_ipi_logical_cluster),
        TEST_4(test_lowest_priority),
        TEST_1(test_errors),
        TEST_1(test_software_disable),
        TEST_4(test_access_widths),
        TEST_4(test_base_moves),
        TEST_1(test_mode_changes),
        TEST_4(test_x2apic_registers),
        cmocka_unit_test_setup_teardown(test_x2apic_destinations, setup_20, teardown),
        TEST_1(test_timer_one_shot),
        TEST_1(test_timer_divide),
        TEST_1(test_timer_periodic),
        TEST_1(test_timer_owed),
        TEST_1(test_timer_fast_period),
        TEST_4(test_xapic_id_written),
        TEST_1(test_offered_eoi),
        TEST_1(test_timer_shortest_period),
        TEST_1(test_timer_masked),
        TEST_1(test_tsc_deadline),
        TEST_1(test_no_tsc_deadline),
        TEST_1(test_tsc_deadline_follows_tsc),
        TEST_4(test_offered),
        TEST_4(test_ext_int),
        TEST_4(test_ext_int_without_apic),
        TEST_1(test_lint0_nmi_and_fixed),
        TEST_4(test_init),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
