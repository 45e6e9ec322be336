// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The accelerated local APIC against SDM vol. 3 "APIC Virtualization and Virtual Interrupts"; the
// test does in the page what a CPU does there.
// unit-sources: devices/lapic.c devices/lapic_accel.c devices/lapic_timer.c devices/apic_bus.c
// unit-sources: devices/ioapic.c
// unit-sources: devices/pic.c
// unit-sources: devices/pit.c devices/rtc.c devices/uart.c devices/i8042.c devices/acpi_pm.c
// unit-sources: devices/pci.c devices/chipset.c devices/fwcfg.c devices/testdev.c devices/tables.c
// unit-sources: devices/pci_testdev.c devices/bus.c devices/machine.c

#include "machine_fake.h"

static u8 pages[FAKE_CPUS][PAGE_SIZE] ALIGNED(PAGE_SIZE);

static u32 *reg(unsigned cpu, u32 offset)
{
    return (u32 *)(void *)(pages[cpu] + offset);
}

static u32 *vector_word(unsigned cpu, u32 offset, u8 vector)
{
    return reg(cpu, offset + vector / 32 * 16u);
}

// What the CPU does with RVI.
static void deliver(unsigned cpu)
{
    u8 vector = fake_vcpu[cpu].apic.requesting;

    *vector_word(cpu, APIC_IRR, vector) &= ~(1u << vector % 32);
    *vector_word(cpu, APIC_ISR, vector) |= 1u << vector % 32;
    *reg(cpu, APIC_PPR) = vector & 0xf0u;
}

static void end(unsigned cpu, u8 vector)
{
    *vector_word(cpu, APIC_ISR, vector) &= ~(1u << vector % 32);
}

static bool hand_over(unsigned cpu)
{
    fake_vcpu[cpu].events.interrupts_check = false;
    return irq_hand_over(&fake_vcpu[cpu]);
}

static int setup_accelerated(void **state)
{
    (void)state;
    make_machine(4);
    memset(pages, 0xaa, sizeof(pages));
    for (unsigned i = 0; i < 4; i++) {
        fake_vcpu[i].apic =
            (struct apic_accel){.page = pages[i], .offered = BIT(ACCEL_XAPIC) | BIT(ACCEL_X2APIC)};
        lapic_reset(&fake_vcpu[i], false);
        lapic_reg_write(fake_vcpu[i].lapic, APIC_SVR, 0x1ff);
    }
    return 0;
}

static void test_registers_shown(void **state)
{
    (void)state;
    assert_true(fake_apic_page);
    assert_int_equal(fake_vcpu[2].apic.mode, ACCEL_XAPIC);
    assert_true(fake_vcpu[2].events.interrupts_check);
    apic_write(2, APIC_TPR, 0x35);
    apic_write(2, APIC_LVT_ERROR, 0x44);
    apic_write(2, APIC_ICR_HIGH, 0x01000000);
    assert_false(hand_over(2));
    assert_int_equal(*reg(2, APIC_ID), 2u << 24);
    assert_int_equal(*reg(2, APIC_VERSION), apic_read(2, APIC_VERSION));
    hand_over(2);
    assert_int_equal(*reg(2, APIC_TPR), 0x35);
    assert_int_equal(*reg(2, APIC_PPR), 0x35);
    assert_int_equal(*reg(2, APIC_SVR), 0x1ff);
    assert_int_equal(*reg(2, APIC_DFR), ~0u);
    assert_int_equal(*reg(2, APIC_LVT_ERROR), 0x44);
    assert_int_equal(*reg(2, APIC_ICR_HIGH), 0x01000000);
    assert_int_equal(*reg(2, APIC_TIMER_INITIAL), 0);
    for (u32 i = APIC_ISR; i < APIC_ESR; i += 16)
        assert_int_equal(*reg(2, i), 0);
}

static void test_delivery(void **state)
{
    struct apic_accel *apic = &fake_vcpu[0].apic;

    (void)state;
    apic_write(0, APIC_ICR_LOW, 0x44041);
    apic_write(0, APIC_ICR_LOW, 0x440e3);
    assert_true(hand_over(0));
    assert_int_equal(apic->requesting, 0xe3);
    assert_int_equal(apic->in_service, 0);
    deliver(0);
    assert_false(hand_over(0)); // 41h is of a lower class
    assert_int_equal(apic->requesting, 0x41);
    assert_int_equal(apic->in_service, 0xe3);
    end(0, 0xe3);
    *reg(0, APIC_TPR) = 0x4f;
    assert_false(hand_over(0));
    *reg(0, APIC_TPR) = 0x3f;
    assert_true(hand_over(0));
}

// The model sees what the CPU has done, and the CPU goes on where the model stopped.
static void test_take_back(void **state)
{
    (void)state;
    apic_write(0, APIC_ICR_LOW, 0x44041);
    apic_write(0, APIC_ICR_LOW, 0x44081);
    hand_over(0);
    deliver(0);
    *reg(0, APIC_TPR) = 0x20;
    assert_int_equal(lapic_tpr(fake_vcpu[0].lapic), 0x20);
    fake_vcpu[0].events.interrupts_check = false;
    assert_int_equal(apic_read(0, APIC_PPR), 0x80);
    assert_true(fake_vcpu[0].events.interrupts_check);
    assert_int_equal(apic_read(0, APIC_TPR), 0x20);
    assert_int_equal(apic_read(0, APIC_ISR + 0x40), 2);
    assert_int_equal(apic_read(0, APIC_IRR + 0x20), 2);
    assert_int_equal(take_irq(0), -1);
    apic_write(0, APIC_EOI, 0);
    assert_int_equal(take_irq(0), 0x41);
    assert_false(hand_over(0));
    assert_int_equal(fake_vcpu[0].apic.requesting, 0);
    assert_int_equal(fake_vcpu[0].apic.in_service, 0x41);
    assert_int_equal(lapic_read_cr8(&fake_vcpu[0]), 2);
}

static void written(unsigned cpu, u32 offset, u32 value)
{
    *reg(cpu, offset) = value;
    lapic_written(&fake_vcpu[cpu], offset);
}

static void test_writes(void **state)
{
    u32 version;

    (void)state;
    hand_over(0);
    version = *reg(0, APIC_VERSION);
    *reg(0, APIC_ICR_HIGH) = 2u << 24; // the CPU does that without an exit
    written(0, APIC_ICR_LOW, 0x4055);
    assert_true(hand_over(2));
    assert_int_equal(fake_vcpu[2].apic.requesting, 0x55);
    written(0, APIC_LVT_ERROR, 0xfff7ff);
    assert_int_equal(*reg(0, APIC_LVT_ERROR), 0x100ff | (0xfff7ff & 0x10000));
    written(0, APIC_VERSION, 0x77000000); // read-only
    assert_int_equal(*reg(0, APIC_VERSION), version);
    written(0, APIC_ID, 0x77000000);
    assert_int_equal(*reg(0, APIC_ID), 0x77000000);
    written(0, APIC_ID, 0);
    written(0, APIC_ICR_LOW, 0x44003); // an illegal vector is told of
    written(0, APIC_ESR, 0);
    assert_int_equal(*reg(0, APIC_ESR), BIT(5));
    written(0, APIC_LVT_TIMER, 0x40066);
    written(0, APIC_TIMER_INITIAL, 1000); // ignored in TSC-deadline mode
    assert_int_equal(*reg(0, APIC_TIMER_INITIAL), 0);
}

// A software-disabled APIC masks its LVT and takes no IPI: the model does it all.
static void test_switched_off_and_on(void **state)
{
    (void)state;
    written(1, APIC_LVT_ERROR, 0x44);
    apic_write(1, APIC_ICR_LOW, 0x44041);
    hand_over(1);
    fake_vcpu[1].ctx[0].ctl_dirty = 0;
    written(1, APIC_SVR, 0xff);
    assert_int_equal(fake_vcpu[1].apic.mode, ACCEL_OFF);
    assert_int_equal(fake_vcpu[1].ctx[0].ctl_dirty, CTL_INTERCEPTS | CTL_BITMAPS);
    assert_int_equal(apic_read(1, APIC_LVT_ERROR), 0x10044);
    assert_int_equal(take_irq(1), 0x41);
    apic_write(1, APIC_SVR, 0x1ff);
    assert_int_equal(fake_vcpu[1].apic.mode, ACCEL_XAPIC);
    hand_over(1);
    assert_int_equal(*reg(1, APIC_LVT_ERROR), 0x10044);
    assert_int_equal(fake_vcpu[1].apic.in_service, 0x41);
}

static void set_base(unsigned cpu, u64 value)
{
    assert_int_equal(lapic_write_msr(&fake_vcpu[cpu], MSR_APIC_BASE, value), 0);
}

static void test_modes(void **state)
{
    u64 value;

    (void)state;
    hand_over(3);
    set_base(3, 0xfed40000 | APIC_BASE_ENABLE);
    assert_int_equal(fake_vcpu[3].apic.mode, ACCEL_OFF);
    set_base(3, APIC_GPA | APIC_BASE_ENABLE);
    assert_int_equal(fake_vcpu[3].apic.mode, ACCEL_XAPIC);
    *reg(3, APIC_TPR) = 0;
    hand_over(3);
    *reg(3, APIC_TPR) = 0x40;
    set_base(3, APIC_GPA | APIC_BASE_ENABLE | APIC_BASE_X2APIC);
    assert_int_equal(fake_vcpu[3].apic.mode, ACCEL_X2APIC);
    assert_false(fake_apic_page);
    hand_over(3);
    assert_int_equal(*reg(3, APIC_TPR), 0x40);
    assert_int_equal(*reg(3, APIC_ID), 3);
    assert_int_equal(*reg(3, APIC_LDR), 8);
    assert_int_equal(lapic_read_msr(&fake_vcpu[3], 0x830, &value), 0);
    set_base(3, APIC_GPA);
    assert_int_equal(fake_vcpu[3].apic.mode, ACCEL_OFF);
    assert_int_equal(lapic_read_cr8(&fake_vcpu[3]), 0);
    lapic_reset(&fake_vcpu[3], false);
    assert_true(fake_apic_page);
}

static void test_level(void **state)
{
    struct apic_accel *apic = &fake_vcpu[0].apic;

    (void)state;
    hand_over(0);
    ioapic_set_entry(10, 0, 0x8051);
    machine_set_irq(fake_vm.machine, 10, true);
    apic->eoi_exit_new = false;
    assert_true(hand_over(0));
    assert_int_equal(apic->eoi_exit[1], BIT(0x11));
    assert_int_equal(*reg(0, APIC_TMR + 0x20), BIT(0x11));
    deliver(0);
    assert_true(ioapic_reg(0x10 + 2 * 10) & BIT(14));
    end(0, 0x51);
    lapic_ended(&fake_vcpu[0], 0x51); // still asserted: it comes again
    assert_true(hand_over(0));
    deliver(0);
    machine_set_irq(fake_vm.machine, 10, false);
    end(0, 0x51);
    lapic_ended(&fake_vcpu[0], 0x51);
    assert_false(hand_over(0));
    assert_false(ioapic_reg(0x10 + 2 * 10) & BIT(14));
    written(0, APIC_SVR, 0x11ff); // EOI-broadcast suppression
    machine_set_irq(fake_vm.machine, 10, true);
    lapic_ended(&fake_vcpu[0], 0x51);
    assert_true(ioapic_reg(0x10 + 2 * 10) & BIT(14));
}

// A leaky CPU is not to find the next interrupt by itself: every EOI exits while one is behind
// another. What is level-triggered is shown as ever.
static void test_leaky(void **state)
{
    struct apic_accel *apic = &fake_vcpu[0].apic;

    (void)state;
    apic->leaky = true;
    apic_write(0, APIC_ICR_LOW, 0x44041);
    assert_true(hand_over(0));
    assert_int_equal(apic->eoi_exit[0] | apic->eoi_exit[1], 0);
    apic_write(0, APIC_ICR_LOW, 0x44042);
    assert_true(hand_over(0));
    for (unsigned i = 0; i < 4; i++)
        assert_true(apic->eoi_exit[i] == ~0ull);
    for (u32 i = APIC_TMR; i < APIC_TMR + 0x80; i += 16)
        assert_int_equal(*reg(0, i), 0);
    deliver(0); // 42h; 41h is behind it
    assert_false(hand_over(0));
    assert_true(apic->eoi_exit[1] == ~0ull);
    end(0, 0x42);
    lapic_ended(&fake_vcpu[0], 0x42);
    assert_true(hand_over(0));
    assert_int_equal(apic->requesting, 0x41);
    assert_int_equal(apic->eoi_exit[1], 0);
    deliver(0);
    assert_false(hand_over(0));
    assert_int_equal(apic->eoi_exit[1], 0);
}

static void test_lowest_priority(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        apic_write(i, APIC_LDR, 1u << (24 + i));
        hand_over(i);
        *reg(i, APIC_TPR) = i == 2 ? 0x10 : 0x20;
    }
    *reg(0, APIC_ICR_HIGH) = 0xf000000;
    written(0, APIC_ICR_LOW, 0x4900 | 0x61);
    assert_true(hand_over(2));
}

static void test_reset(void **state)
{
    (void)state;
    apic_write(1, APIC_ICR_LOW, 0x44041);
    hand_over(1);
    deliver(1);
    lapic_reset(&fake_vcpu[1], true);
    assert_int_equal(fake_vcpu[1].apic.mode, ACCEL_OFF);
    assert_int_equal(apic_read(1, APIC_ISR + 0x20), 0);
    apic_write(1, APIC_SVR, 0x1ff);
    assert_false(hand_over(1));
    assert_int_equal(fake_vcpu[1].apic.requesting | fake_vcpu[1].apic.in_service, 0);
}

static struct apic_posted posted;
static unsigned notified;

static void count_notify(struct vcpu *vcpu)
{
    notified += vcpu == &fake_vcpu[1];
}

static void test_posted(void **state)
{
    (void)state;
    backend =
        &(const struct backend){.apic_update = count_apic_update, .apic_notify = count_notify};
    notified = 0;
    fake_vcpu[1].apic.posted = &posted;
    memset(&posted, 0, sizeof(posted));
    hand_over(1);
    apic_write(0, APIC_ICR_HIGH, 1u << 24);
    apic_write(0, APIC_ICR_LOW, 0x4055);
    apic_write(0, APIC_ICR_LOW, 0x40e5); // told already
    assert_int_equal(notified, 1);
    assert_int_equal(fake_vcpu[1].requests, 0);
    assert_true(posted.outstanding & 1);
    assert_true(hand_over(1));
    assert_int_equal(posted.outstanding, 0);
    assert_int_equal(fake_vcpu[1].apic.requesting, 0xe5);
    // Levels and the APIC's own go the usual way.
    ioapic_set_entry(10, 1, 0x8051);
    machine_set_irq(fake_vm.machine, 10, true);
    apic_write(1, APIC_ICR_LOW, 0x44061);
    assert_int_equal(notified, 1);
    assert_int_equal(fake_vcpu[1].requests, REQUEST_EVENT);
    // Not accelerated any more: the model finds what was posted.
    written(1, APIC_SVR, 0x11ff);
    set_base(1, 0xfed40000 | APIC_BASE_ENABLE);
    apic_write(0, APIC_ICR_LOW, 0x40f1);
    assert_int_equal(notified, 2);
    assert_int_equal(take_irq(1), 0xf1);
    // What was posted to an APIC that is switched off, or to a CPU before its INIT, is gone.
    for (unsigned init = 0; init < 2; init++) {
        apic_write(0, APIC_ICR_LOW, 0x40f2);
        if (init)
            lapic_reset(&fake_vcpu[1], true);
        else
            set_base(1, APIC_GPA);
        set_base(1, APIC_GPA | APIC_BASE_ENABLE);
        apic_write(1, APIC_SVR, 0x1ff);
        assert_false(hand_over(1));
        assert_int_equal(fake_vcpu[1].apic.requesting, 0);
    }
    backend = &fake_backend;
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup_accelerated, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_registers_shown), TEST(test_delivery), TEST(test_take_back),
        TEST(test_writes),          TEST(test_modes),    TEST(test_switched_off_and_on),
        TEST(test_level),           TEST(test_reset),    TEST(test_lowest_priority),
        TEST(test_posted),          TEST(test_leaky),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
