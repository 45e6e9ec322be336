// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The two 8259 interrupt controllers and the 8254 timer (Intel's data sheets of both), through the
// local APIC's LINT0 as ExtINT; and the x87's errors, which reach them by FERR#.

#include "guest.h"

enum { MASTER = 0x20, SLAVE = 0xa0, BASE = 0x30, PIT0 = 0x40, PIT2 = 0x42, PIT_CONTROL = 0x43 };

static volatile u32 taken[16];
static volatile u32 isr_seen;
static bool keep; // no EOI

static u8 pic_read(u16 port, u8 ocw3)
{
    out8(port, ocw3);
    return in8(port);
}

static void handler(struct trap *trap)
{
    u32 line = (u32)trap->vector - BASE;

    taken[line]++;
    isr_seen = pic_read(MASTER, 0x0b) | (u32)pic_read(SLAVE, 0x0b) << 8;
    if (keep)
        return;
    if (line >= 8)
        out8(SLAVE, 0x20);
    out8(MASTER, 0x20);
}

static void pic_start(u8 icw4)
{
    out8(MASTER, 0x11);
    out8(SLAVE, 0x11);
    out8(MASTER + 1, BASE);
    out8(SLAVE + 1, BASE + 8);
    out8(MASTER + 1, 4);
    out8(SLAVE + 1, 2);
    out8(MASTER + 1, icw4);
    out8(SLAVE + 1, icw4);
    out8(MASTER + 1, 0xff);
    out8(SLAVE + 1, 0xff);
}

static void pit_start(u8 control, u32 count)
{
    out8(PIT_CONTROL, control);
    out8(PIT0, (u8)count);
    out8(PIT0, (u8)(count >> 8));
}

// Lets interrupts in for a moment.
static void open(u32 us)
{
    sti();
    delay_us(us);
    cli();
}

static void test_masks(void)
{
    out8(MASTER + 1, 0xa5);
    out8(SLAVE + 1, 0x5a);
    report(in8(MASTER + 1) == 0xa5 && in8(SLAVE + 1) == 0x5a, "the masks are kept");
    out8(MASTER + 1, 0xff);
    out8(SLAVE + 1, 0xff);
}

static void test_pit_interrupt(void)
{
    pit_start(0x30, 1193); // mode 0: 1 ms, once
    for (unsigned i = 0; i < 100 && !(pic_read(MASTER, 0x0a) & 1); i++)
        delay_us(1000);
    report(taken[0] == 0 && pic_read(MASTER, 0x0a) & 1, "masked: IRR %#x", pic_read(MASTER, 0x0a));
    open(100);
    report(taken[0] == 0, "masked: it does not come");
    out8(MASTER + 1, 0xfe);
    open(1000);
    report(taken[0] == 1 && isr_seen == 1, "unmasked: %u taken, ISR in its handler %#x", taken[0],
           isr_seen);
    report(!(pic_read(MASTER, 0x0b) & 1), "ISR is clear after the EOI");
    open(10000);
    report(taken[0] == 1, "mode 0 comes once");
}

static void test_periodic(void)
{
    taken[0] = 0;
    pit_start(0x34, 1193); // mode 2: 1 kHz
    open(50000);
    report(taken[0] >= 5 && taken[0] < 500, "mode 2: %u in 50 ms at 1 kHz", taken[0]);
    keep = true;
    taken[0] = 0;
    open(10000);
    report(taken[0] == 1, "without EOI no other comes: %u", taken[0]);
    keep = false;
    out8(MASTER, 0x60); // specific EOI of line 0
    open(50000);
    report(taken[0] >= 2, "after a specific EOI they go on: %u", taken[0]);
    pit_start(0x30, 0);
    open(100);
    out8(MASTER + 1, 0xff);
}

static void test_automatic_eoi(void)
{
    pic_start(3);
    out8(MASTER + 1, 0xfe);
    taken[0] = 0;
    keep = true;
    pit_start(0x34, 1193);
    open(50000);
    report(taken[0] >= 3, "automatic EOI: %u", taken[0]);
    keep = false;
    pit_start(0x30, 0);
    open(100);
    pic_start(1);
}

// The RTC's periodic interrupt, line 8, behind the slave.
static void test_slave(void)
{
    u8 b;

    trap_handlers[BASE + 8] = handler;
    out8(0x70, 0x0a);
    out8(0x71, 0x26); // 1024 Hz
    out8(0x70, 0x0b);
    b = in8(0x71);
    out8(0x71, b | 0x40);
    out8(0x70, 0x0c);
    in8(0x71);
    out8(MASTER + 1, 0xfb);
    out8(SLAVE + 1, 0xfe);
    for (unsigned i = 0; i < 50 && taken[8] < 3; i++) {
        open(2000);
        out8(0x70, 0x0c);
        in8(0x71);
    }
    report(taken[8] >= 3 && isr_seen == 0x104, "RTC through the slave: %u, ISRs %#x", taken[8],
           isr_seen);
    out8(0x70, 0x0b);
    out8(0x71, b);
    out8(0x70, 0x0c);
    in8(0x71);
    out8(MASTER + 1, 0xff);
    out8(SLAVE + 1, 0xff);
}

static u32 pit_count(u8 channel)
{
    u32 low;

    out8(PIT_CONTROL, (u8)(channel << 6)); // latch
    low = in8((u16)(PIT0 + channel));
    return low | (u32)in8((u16)(PIT0 + channel)) << 8;
}

static void test_counter(void)
{
    u32 first, second;
    u8 status;

    pit_start(0x34, 0);
    first = pit_count(0);
    delay_us(5000);
    second = pit_count(0);
    first = (first - second) & 0xffff;
    report(first > 4000 && first < 20000, "mode 2 counts down by ones: %u in 5 ms", first);
    out8(PIT_CONTROL, 0xe2); // read back the status of channel 0
    status = in8(PIT0);
    report((status & 0x3f) == 0x34, "read-back status %#x", status);
    out8(PIT_CONTROL, 0xc2); // status, then count
    status = in8(PIT0);
    second = in8(PIT0);
    second |= (u32)in8(PIT0) << 8;
    report((status & 0x3f) == 0x34, "read-back status and count: %#x, %u", status, second);
    pit_start(0x30, 0xffff);
    report(pit_count(0) > 0xf000, "mode 0 from 65535");
}

static void test_port61(void)
{
    u8 before, after;

    out8(0x61, (u8)(in8(0x61) & ~3));
    out8(PIT_CONTROL, 0xb0);
    out8(PIT2, 0);
    out8(PIT2, 2); // 512 ticks
    report(!(in8(0x61) & 0x20), "channel 2's output is low");
    for (unsigned i = 0; i < 100000; i++)
        pause();
    report_known(MACHINE_QEMU, !(in8(0x61) & 0x20), "and stays low while its gate is closed");
    out8(0x61, (u8)(in8(0x61) | 1));
    for (unsigned i = 0; i < 10000000 && !(in8(0x61) & 0x20); i++)
        pause();
    report(in8(0x61) & 0x20, "and goes high when the count is over");
    before = in8(0x61) & 0x10;
    for (unsigned i = 0; i < 100000; i++) {
        after = in8(0x61) & 0x10;
        if (before != after)
            break;
    }
    report(before != after, "the refresh bit toggles");
}

// A line that falls before it is acknowledged gives line 7's vector, with nothing in service.
static void spurious(struct trap *trap)
{
    (void)trap;
    if (pic_read(MASTER, 0x0b) & 0x80)
        out8(MASTER, 0x20);
}

// --- FERR#: x87 errors with CR0.NE = 0 (SDM vol. 1 "MS-DOS Compatibility Sub-mode") ---

static volatile u16 ferr_status;

static void ferr_handler(struct trap *trap)
{
    u16 status;

    __asm__ volatile("fnstsw %0" : "=a"(status));
    ferr_status = status;
    out8(0xf0, 0);
    __asm__ volatile("fnclex");
    handler(trap);
}

static void test_ferr(void)
{
    static const u16 unmasked = 0x37b; // zero divide
    u64 cr0;

    if (bare_machine() == MACHINE_QEMU) {
        report_skip("QEMU 7.2's IRQ 13 falls before it is acknowledged");
        return;
    }
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("mov %0, %%cr0" : : "r"(cr0 & ~(u64)(CR0_NE | CR0_TS | CR0_EM)));
    trap_handlers[BASE + 13] = ferr_handler;
    out8(MASTER + 1, 0xfb);
    out8(SLAVE + 1, 0xdf);
    sti();
    for (unsigned i = 1; i <= 2; i++) {
        __asm__ volatile("fninit; fldcw %0; fld1; fldz; fdivrp; fwait; fninit" : : "m"(unmasked));
        // QEMU 7.2 raises its own machine's IRQ 13, with no exit (APM vol. 2, 15.14.2)
        report_cpu(MACHINE_QEMU, taken[13] == i,
                   "CR0.NE = 0: a division by zero is IRQ 13, once: %u", taken[13]);
    }
    cli();
    report_cpu(MACHINE_QEMU, (ferr_status & 0x84) == 0x84,
               "the handler sees it pending: status %#x", ferr_status);
    out8(MASTER + 1, 0xff);
    out8(SLAVE + 1, 0xff);
    __asm__ volatile("mov %0, %%cr0" : : "r"(cr0));
}

void guest_main(void)
{
    apic_write(APIC_LVT_LINT0, 0x700);
    trap_handlers[BASE] = handler;
    trap_handlers[BASE + 7] = spurious;
    pic_start(1);
    test_masks();
    test_pit_interrupt();
    test_periodic();
    test_automatic_eoi();
    test_slave();
    test_counter();
    test_port61();
    test_ferr();
    report(pic_read(MASTER, 0x0b) == 0 && pic_read(SLAVE, 0x0b) == 0, "nothing is in service");
}
