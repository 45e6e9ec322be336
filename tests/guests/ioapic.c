// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The IOAPIC: registers, edge and level interrupts, masks, remote IRR and EOI (Intel 82093AA data
// sheet). Edges come from the PIT (pin 2); levels from the test device, where there is one.

#include "guest.h"

enum {
    ID = 0,
    VERSION = 1,
    VECTOR = 0x51,
    PIT_PIN = 2,
    LINE = 11,
    TEST_LINES = 0x2000, // of the test device
    ACTIVE_LOW = 1 << 13,
    REMOTE_IRR = 1 << 14,
    LEVEL = 1 << 15,
    MASKED = 1 << 16,
    DELIVERY_PENDING = 1 << 12,
};

static volatile u32 taken;
static u64 taken_rip, taken_rcx; // of the last one
static void (*volatile during)(void);

static void handler(struct trap *trap)
{
    taken++;
    taken_rip = trap->rip;
    taken_rcx = trap->rcx;
    if (during)
        during();
    apic_eoi();
}

static void route(unsigned pin, u32 low)
{
    ioapic_write(0x10 + pin * 2, MASKED);
    ioapic_write(0x11 + pin * 2, apic_id() << 24);
    ioapic_write(0x10 + pin * 2, low);
}

static u32 entry(unsigned pin)
{
    return ioapic_read(0x10 + pin * 2);
}

static void open(u32 us)
{
    sti();
    delay_us(us);
    cli();
}

static void test_registers(void)
{
    u32 version = ioapic_read(VERSION), pins = (version >> 16 & 0xff) + 1;

    report((version & 0xff) >= 0x11 && (version & 0xff) <= 0x20 && pins >= 24,
           "version %#x, %u pins", version & 0xff, pins);
    ioapic_write(0x10 + 2 * 10, MASKED | LEVEL | ACTIVE_LOW | 0x34);
    ioapic_write(0x11 + 2 * 10, 0x5000000);
    report(entry(10) == (MASKED | LEVEL | ACTIVE_LOW | 0x34) &&
               ioapic_read(0x11 + 2 * 10) == 0x5000000,
           "an entry keeps what is written: %#x", entry(10));
    ioapic_write(0x10 + 2 * 10, MASKED | DELIVERY_PENDING | REMOTE_IRR);
    report(entry(10) == MASKED, "its status bits are read-only: %#x", entry(10));
}

static void pit(u8 control, u32 count)
{
    out8(0x43, control);
    out8(0x40, (u8)count);
    out8(0x40, (u8)(count >> 8));
}

static void test_edge(void)
{
    route(PIT_PIN, VECTOR);
    pit(0x30, 1193);
    sti();
    wait_for(&taken, 1, 100);
    open(5000);
    report(taken == 1, "edge: the PIT once: %u", taken);
    taken = 0;
    pit(0x34, 1193);
    open(50000);
    report(taken >= 5 && taken < 500, "edge: the PIT at 1 kHz, %u in 50 ms", taken);
    route(PIT_PIN, MASKED | VECTOR);
    open(1000);
    taken = 0;
    open(10000);
    report(taken == 0, "masked: %u", taken);
    pit(0x30, 0);
}

static void set_line(unsigned line, bool high)
{
    out8((u16)(TEST_LINES + line), high);
}

static void lower(void)
{
    set_line(LINE, false);
}

static void lower_third(void)
{
    if (taken == 3)
        set_line(LINE, false);
}

static void test_level(void)
{
    if (!has_test_device()) {
        report_skip("no test device: level interrupts");
        return;
    }
    taken = 0;
    route(LINE, LEVEL | VECTOR);
    during = lower;
    set_line(LINE, true);
    open(1000);
    report(taken == 1 && !(entry(LINE) & REMOTE_IRR), "level: lowered in the handler: %u taken",
           taken);
    during = lower_third;
    taken = 0;
    set_line(LINE, true);
    report(entry(LINE) & REMOTE_IRR, "remote IRR is set while it waits");
    open(1000);
    report(taken == 3, "level: it comes again after each EOI while the line is up: %u", taken);
    taken = 0;
    route(LINE, MASKED | LEVEL | VECTOR);
    set_line(LINE, true);
    open(1000);
    report(taken == 0, "level: masked");
    during = lower;
    route(LINE, LEVEL | VECTOR);
    open(1000);
    report(taken == 1, "level: it comes when it is unmasked");
    set_line(LINE, false);
}

static void test_test_edge(void)
{
    if (!has_test_device())
        return;
    during = NULL;
    taken = 0;
    route(LINE, VECTOR);
    set_line(LINE, true);
    open(1000);
    report(taken == 1, "edge: up is one: %u", taken);
    open(1000);
    report(taken == 1, "edge: staying up is none");
    set_line(LINE, false);
    open(1000);
    report(taken == 1, "edge: down is none");
    set_line(LINE, true);
    set_line(LINE, false);
    open(1000);
    report(taken == 2, "edge: a pulse is one");
    route(LINE, MASKED);
}

// Between two repetitions of a string instruction, of which the first raises the line and the
// others lower it. STI's shadow ends with the first.
static void test_repetition(bool shadow)
{
    static const u8 levels[16] = {1};
    const u8 *from = levels;
    u64 at, count = sizeof(levels);

    if (!has_test_device())
        return;
    taken = 0;
    route(LINE, VECTOR);
    if (!shadow)
        sti();
    __asm__ volatile("lea 1f(%%rip), %0; test %b4, %b4; jz 1f; sti; 1: rep outsb"
                     : "=&r"(at), "+S"(from), "+c"(count)
                     : "d"(TEST_LINES + LINE), "r"(shadow)
                     : "memory");
    cli();
    set_line(LINE, false);
    // QEMU 7.2 holds interrupts up over all of them
    report_known(shadow ? MACHINE_QEMU : MACHINE_NONE,
                 taken == 1 && taken_rip == at && taken_rcx == sizeof(levels) - 1 && count == 0,
                 "%sREP OUTSB: %u taken, RIP off by %lld, RCX %llu", shadow ? "STI; " : "", taken,
                 (long long)(taken_rip - at), (unsigned long long)taken_rcx);
    route(LINE, MASKED);
}

void guest_main(void)
{
    trap_handlers[VECTOR] = handler;
    test_registers();
    test_edge();
    test_level();
    test_test_edge();
    test_repetition(false);
    test_repetition(true);
}
