// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The MC146818 clock and its CMOS RAM, under the machine's lock. Times are in ticks of its 32.768
// kHz oscillator since the machine was created.

#pragma once

#include "line.h"

#include <nestor/time.h>
#include <nestor/types.h>

struct machine;
struct vcpu;

#define RTC_HZ 32768ull
enum { RTC_RAM = 128, RTC_CENTURY = 0x32 }; // the FADT tells guests of the century byte

struct rtc_state {
    u8 index;
    u8 ram[RTC_RAM]; // with the registers; the time's only while the clock is set or stopped
    u64 seconds;     // since 1970, in the guest's time, ...
    u64 base;        // ... when the oscillator was here
    u64 owed;        // periodic interrupts still to come, because the timer came late
    u64 seen;        // up to here PF, UF and AF tell of what has passed; since base
};

struct rtc {
    struct rtc_state s;
    struct irq_line irq, alarm; // alarm: what ACPI sees of it
    struct machine *machine;
    struct timer timer;
    u64 shown; // the second that the time bytes say, + 1; 0: not known
};

void rtc_init(struct rtc *rtc, struct machine *machine);
// Power-on: the RAM's contents and the time survive all later resets, as a battery would have it.
void rtc_reset(struct rtc *rtc);
void rtc_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value);
