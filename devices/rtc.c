// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The real-time clock and CMOS RAM at ports 70h and 71h (Motorola MC146818A data sheet: time,
// calendar and alarm bytes, registers A to D, update cycle, periodic, alarm and update-ended
// interrupts). The time is worked out when it is read; a timer waits only for interrupts that are
// enabled. Periodic ones that passed because Nestor came late are made up for, as the 8254's are
// (pit.c).

#include "rtc.h"
#include "clock.h"
#include "machine.h"

enum {
    SECONDS = 0,
    SECONDS_ALARM,
    MINUTES,
    MINUTES_ALARM,
    HOURS,
    HOURS_ALARM,
    WEEKDAY,
    DAY,
    MONTH,
    YEAR,
    REG_A,
    REG_B,
    REG_C,
    REG_D,
};

enum { A_UIP = 0x80, A_RATE = 0x0f, A_DIVIDER = 0x70, A_DIVIDER_ON = 0x20, A_DIVIDER_RESET = 0x60 };
enum { B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_BINARY = 0x04, B_24H = 0x02 };
enum { C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10, C_FLAGS = 0x70 };
enum { D_VALID = 0x80, HOUR_PM = 0x80, ALARM_ANY = 0xc0 };
enum { UIP_TICKS = 8 }; // 244 microseconds
#define DAY_SECONDS 86400ull

static u64 rtc_ticks(const struct rtc *rtc)
{
    return clock_ticks(machine_now() - rtc->machine->start, RTC_HZ);
}

// Whether the divider chain does, and with it periodic interrupts.
static bool rtc_divides(const struct rtc *rtc)
{
    return (rtc->s.ram[REG_A] & A_DIVIDER) == A_DIVIDER_ON;
}

// Whether the time is updated: SET holds off that, not the divider chain.
static bool rtc_runs(const struct rtc *rtc)
{
    return rtc_divides(rtc) && !(rtc->s.ram[REG_B] & B_SET);
}

// --- calendar ---

struct calendar {
    u32 year, month, day; // 1970.., 1..12, 1..31
    u32 hour, minute, second;
    u32 weekday; // 1 = Sunday
};

static bool is_leap(u64 year)
{
    return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}

static u32 days_of_month(u64 year, u32 month)
{
    static const u8 days[12] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

    return days[month - 1] + (month == 2 && is_leap(year) ? 1u : 0u);
}

// Days from 1970-01-01 to the first day of a year.
static u64 days_before_year(u64 year)
{
    u64 y = year - 1;

    return 365 * (year - 1970) + (y / 4 - 1969 / 4) - (y / 100 - 1969 / 100) +
           (y / 400 - 1969 / 400);
}

static struct calendar calendar_of(u64 seconds)
{
    u64 days = seconds / DAY_SECONDS, rest = seconds % DAY_SECONDS, year = 1970 + days / 366;
    u32 month = 1;

    while (days_before_year(year + 1) <= days)
        year++;
    days -= days_before_year(year);
    while (days >= days_of_month(year, month))
        days -= days_of_month(year, month++);
    return (struct calendar){
        .year = (u32)year,
        .month = month,
        .day = (u32)days + 1,
        .hour = (u32)(rest / 3600),
        .minute = (u32)(rest / 60 % 60),
        .second = (u32)(rest % 60),
        .weekday = (u32)((seconds / DAY_SECONDS + 4) % 7) + 1, // 1970-01-01 was a Thursday
    };
}

// Whatever bytes a guest has written, this gives some time.
static u64 calendar_seconds(const struct calendar *c)
{
    u64 year = MAX(c->year, 1970u), days = days_before_year(year);
    u32 month = MIN(MAX(c->month, 1u), 12u);

    for (u32 m = 1; m < month; m++)
        days += days_of_month(year, m);
    return (days + MAX(c->day, 1u) - 1) * DAY_SECONDS + c->hour * 3600ull + c->minute * 60ull +
           c->second;
}

// --- the bytes' encodings ---

static u8 encode(const struct rtc *rtc, u32 n)
{
    return (u8)(rtc->s.ram[REG_B] & B_BINARY ? n : (n / 10 % 10 << 4 | n % 10));
}

static u32 decode(const struct rtc *rtc, u8 byte)
{
    return rtc->s.ram[REG_B] & B_BINARY ? byte : (byte >> 4) * 10u + (byte & 15);
}

static u8 encode_hour(const struct rtc *rtc, u32 hour)
{
    if (rtc->s.ram[REG_B] & B_24H)
        return encode(rtc, hour);
    return encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? HOUR_PM : 0);
}

static u32 decode_hour(const struct rtc *rtc, u8 byte)
{
    if (rtc->s.ram[REG_B] & B_24H)
        return decode(rtc, byte);
    return decode(rtc, byte & 0x7f) % 12 + (byte & HOUR_PM ? 12 : 0);
}

static void time_to_ram(struct rtc *rtc, u64 seconds)
{
    struct calendar c = calendar_of(seconds);
    u8 *ram = rtc->s.ram;

    ram[SECONDS] = encode(rtc, c.second);
    ram[MINUTES] = encode(rtc, c.minute);
    ram[HOURS] = encode_hour(rtc, c.hour);
    ram[WEEKDAY] = encode(rtc, c.weekday);
    ram[DAY] = encode(rtc, c.day);
    ram[MONTH] = encode(rtc, c.month);
    ram[YEAR] = encode(rtc, c.year % 100);
    ram[RTC_CENTURY] = encode(rtc, c.year / 100);
}

// The bytes change once a second, unless somebody writes them or the way they are encoded.
static void rtc_show(struct rtc *rtc, u64 seconds)
{
    if (rtc->shown == seconds + 1)
        return;
    time_to_ram(rtc, seconds);
    rtc->shown = seconds + 1;
}

static u64 time_from_ram(const struct rtc *rtc)
{
    const u8 *ram = rtc->s.ram;
    struct calendar c = {
        .year = decode(rtc, ram[RTC_CENTURY]) * 100 + decode(rtc, ram[YEAR]),
        .month = decode(rtc, ram[MONTH]),
        .day = decode(rtc, ram[DAY]),
        .hour = decode_hour(rtc, ram[HOURS]),
        .minute = decode(rtc, ram[MINUTES]),
        .second = decode(rtc, ram[SECONDS]),
    };

    return calendar_seconds(&c);
}

// --- time and events ---

// Oscillator ticks since the base; they stand still while the divider chain does.
static u64 rtc_chain(const struct rtc *rtc)
{
    return rtc_divides(rtc) ? rtc_ticks(rtc) - rtc->s.base : rtc->s.seen;
}

static u64 rtc_seconds(const struct rtc *rtc, u64 chain)
{
    return rtc->s.seconds + chain / RTC_HZ;
}

// The divider chain is so far into its second.
static void rtc_set_phase(struct rtc *rtc, u64 phase)
{
    rtc->s.base = rtc_ticks(rtc) - phase;
    rtc->s.seen = phase;
}

// The divider chain goes on: the next update comes when it would have come.
static void rtc_set_time(struct rtc *rtc, u64 seconds)
{
    rtc->s.seconds = seconds;
    rtc_set_phase(rtc, rtc_chain(rtc) % RTC_HZ);
}

// The periodic interrupt's period in oscillator ticks, 0 for none. Rates 1 and 2 are those of 8 and
// 9.
static u64 rtc_period(const struct rtc *rtc)
{
    u32 rate = rtc->s.ram[REG_A] & A_RATE;

    return !rate ? 0 : BIT(rate < 3 ? rate + 6 : rate - 1);
}

static bool alarm_matches(u8 alarm, u8 byte)
{
    return (alarm & ALARM_ANY) == ALARM_ANY || alarm == byte;
}

static bool alarm_at_minute(const struct rtc *rtc, u32 minute_of_day)
{
    return alarm_matches(rtc->s.ram[HOURS_ALARM], encode_hour(rtc, minute_of_day / 60)) &&
           alarm_matches(rtc->s.ram[MINUTES_ALARM], encode(rtc, minute_of_day % 60));
}

// From the given second of a minute on, the next one at which the alarm matches; 60 if none does.
static u32 alarm_second(const struct rtc *rtc, u32 second)
{
    while (second < 60 && !alarm_matches(rtc->s.ram[SECONDS_ALARM], encode(rtc, second)))
        second++;
    return second;
}

// The first second after `seconds` at which the alarm matches; ~0 if it never does. Some alarms
// match in the rest of this minute, some up to a day later; what matches in no minute is not looked
// for in every one of them.
static u64 rtc_next_alarm(const struct rtc *rtc, u64 seconds)
{
    u64 start = seconds + 1, minute = start / 60;
    u32 first = alarm_second(rtc, 0), second = alarm_second(rtc, (u32)(start % 60));

    if (first == 60)
        return ~0ull;
    for (; minute <= start / 60 + 1440; minute++) {
        if (second < 60 && alarm_at_minute(rtc, (u32)(minute % 1440)))
            return minute * 60 + second;
        second = first;
    }
    return ~0ull;
}

// Brings register C up to date.
static void rtc_catch_up(struct rtc *rtc)
{
    u64 seen = rtc->s.seen, chain = rtc_chain(rtc), period = rtc_period(rtc);
    u64 before = rtc_seconds(rtc, seen), now = rtc_seconds(rtc, chain);
    u8 *flags = &rtc->s.ram[REG_C];

    if (period && chain / period > seen / period)
        *flags |= C_PF;
    if (rtc_runs(rtc) && now > before) {
        *flags |= C_UF;
        if (!(*flags & C_AF) && rtc_next_alarm(rtc, before) <= now)
            *flags |= C_AF;
    }
    rtc->s.seen = chain;
}

static void rtc_update_irq(struct rtc *rtc)
{
    u8 *c = &rtc->s.ram[REG_C];
    bool pending = *c & rtc->s.ram[REG_B] & C_FLAGS;

    *c = (u8)((*c & C_FLAGS) | (pending ? C_IRQF : 0));
    irq_line_set(&rtc->irq, pending);
    irq_line_set(&rtc->alarm, *c & rtc->s.ram[REG_B] & C_AF);
}

// Of the periods that passed until `chain` the guest sees one; for the others the timer was late.
static void rtc_owe_missed(struct rtc *rtc, u64 chain)
{
    u64 period = rtc_period(rtc), passed;

    if (!period || !(rtc->s.ram[REG_B] & B_PIE))
        return;
    passed = chain / period - rtc->s.seen / period;
    if (passed > 1) {
        rtc->s.owed = MIN(rtc->s.owed + passed - 1, RTC_HZ / period);
    } else if (!passed && rtc->s.owed && !(rtc->s.ram[REG_C] & C_PF)) {
        rtc->s.owed--;
        rtc->s.ram[REG_C] |= C_PF;
    }
}

// When the next flag rises that is enabled and not up yet, since the base.
static u64 rtc_next_event(const struct rtc *rtc)
{
    u8 wanted = (u8)(rtc->s.ram[REG_B] & ~rtc->s.ram[REG_C] & C_FLAGS);
    u64 seen = rtc->s.seen, period = rtc_period(rtc), now = rtc_seconds(rtc, seen), next = ~0ull,
        at;

    if (wanted & C_PF && period)
        next = MIN((seen / period + 1) * period, rtc->s.owed ? seen + period / 4 : ~0ull);
    if (!rtc_runs(rtc))
        return next;
    if (wanted & C_UF)
        next = MIN(next, (seen / RTC_HZ + 1) * RTC_HZ);
    if (wanted & C_AF) {
        at = rtc_next_alarm(rtc, now);
        if (at != ~0ull)
            next = MIN(next, (at - rtc->s.seconds) * RTC_HZ);
    }
    return next;
}

static void rtc_arm(struct rtc *rtc)
{
    u64 next = rtc_divides(rtc) ? rtc_next_event(rtc) : ~0ull;

    if (next == ~0ull)
        timer_cancel(&rtc->timer);
    else
        machine_timer_arm(rtc->machine, &rtc->timer,
                          rtc->machine->start + clock_tsc(rtc->s.base + next, RTC_HZ));
}

static void rtc_changed(struct rtc *rtc)
{
    rtc_update_irq(rtc);
    rtc_arm(rtc);
}

static void rtc_fire(struct timer *timer)
{
    struct rtc *rtc = CONTAINER_OF(timer, struct rtc, timer);

    spin_lock(&rtc->machine->lock);
    rtc_owe_missed(rtc, rtc_chain(rtc));
    rtc_catch_up(rtc);
    rtc_changed(rtc);
    spin_unlock(&rtc->machine->lock);
}

// --- registers ---

static bool is_time(unsigned index)
{
    return index == SECONDS || index == MINUTES || index == HOURS ||
           (index >= WEEKDAY && index <= YEAR) || index == RTC_CENTURY;
}

static u8 rtc_read_a(const struct rtc *rtc)
{
    bool updating = rtc_runs(rtc) && rtc_chain(rtc) % RTC_HZ >= RTC_HZ - UIP_TICKS;

    return (u8)(rtc->s.ram[REG_A] | (updating ? A_UIP : 0));
}

static u8 rtc_read_c(struct rtc *rtc)
{
    u8 flags;

    rtc_catch_up(rtc);
    rtc_update_irq(rtc);
    flags = rtc->s.ram[REG_C];
    rtc->s.ram[REG_C] = 0;
    rtc_changed(rtc);
    return flags;
}

static u8 rtc_read(struct rtc *rtc, unsigned index)
{
    if (index == REG_A)
        return rtc_read_a(rtc);
    if (index == REG_C)
        return rtc_read_c(rtc);
    if (is_time(index) && rtc_runs(rtc))
        rtc_show(rtc, rtc_seconds(rtc, rtc_chain(rtc)));
    return rtc->s.ram[index];
}

// Registers A and B may stop the clock, start it, or change how bytes are read.
static void rtc_write_control(struct rtc *rtc, unsigned index, u8 value)
{
    bool ran = rtc_runs(rtc), divided = rtc_divides(rtc);
    bool reset = (rtc->s.ram[REG_A] & A_DIVIDER_RESET) == A_DIVIDER_RESET;

    rtc_catch_up(rtc);
    rtc->s.owed = 0;
    if (ran) // what a stopped clock shows
        time_to_ram(rtc, rtc_seconds(rtc, rtc->s.seen));
    if (index == REG_A)
        value &= 0x7f;
    else if (value & B_SET)
        value &= (u8)~B_UIE;
    rtc->s.ram[index] = value;
    // Out of its reset the divider's first update comes half a second early: systems set the time
    // half a second before it is right.
    if (!divided && rtc_divides(rtc))
        rtc_set_phase(rtc, reset ? RTC_HZ / 2 : 0);
    if (!ran && rtc_runs(rtc))
        rtc_set_time(rtc, time_from_ram(rtc));
    rtc_changed(rtc);
}

static void rtc_write_time(struct rtc *rtc, unsigned index, u8 value)
{
    bool runs = rtc_runs(rtc);

    if (runs) {
        rtc_catch_up(rtc);
        time_to_ram(rtc, rtc_seconds(rtc, rtc->s.seen));
    }
    rtc->s.ram[index] = value;
    if (runs && index != WEEKDAY)
        rtc_set_time(rtc, time_from_ram(rtc));
    rtc_changed(rtc);
}

static void rtc_write(struct rtc *rtc, unsigned index, u8 value)
{
    rtc->shown = 0;
    if (index == REG_A || index == REG_B) {
        rtc_write_control(rtc, index, value);
    } else if (is_time(index)) {
        rtc_write_time(rtc, index, value);
    } else if (index == SECONDS_ALARM || index == MINUTES_ALARM || index == HOURS_ALARM) {
        rtc_catch_up(rtc);
        rtc->s.ram[index] = value;
        rtc_changed(rtc);
    } else if (index != REG_C && index != REG_D) {
        rtc->s.ram[index] = value;
    }
}

void rtc_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value)
{
    struct rtc *rtc = device;

    (void)vcpu, (void)size;
    if (!(port & 1)) {
        if (write)
            rtc->s.index = (u8)*value & 0x7f; // bit 7 is the NMI mask: nothing here raises NMI
    } else if (write) {
        rtc_write(rtc, rtc->s.index, (u8)*value);
    } else {
        *value = rtc_read(rtc, rtc->s.index);
    }
}

static void put16(u8 *ram, unsigned index, u64 value)
{
    ram[index] = (u8)value;
    ram[index + 1] = (u8)(value >> 8);
}

// Memory sizes where PC firmware keeps them.
static void rtc_put_sizes(struct rtc *rtc)
{
    const struct vm *vm = rtc->machine->vm;
    u64 low = MIN(vm->ram_size, VM_LOW_RAM_LIMIT), high = vm->ram_size - low;
    u64 extended = low > MIB(1) ? (low - MIB(1)) >> 10 : 0;
    u64 above_16m = low > MIB(16) ? (low - MIB(16)) >> 16 : 0;
    u8 *ram = rtc->s.ram;

    put16(ram, 0x15, 640);
    put16(ram, 0x17, MIN(extended, 0xffffull));
    put16(ram, 0x30, MIN(extended, 0xffffull));
    put16(ram, 0x34, MIN(above_16m, 0xffffull));
    put16(ram, 0x5b, high >> 16);
    ram[0x5d] = (u8)(high >> 32);
    ram[0x5f] = (u8)(vm->vcpu_count - 1);
    ram[0x14] = 0x02; // equipment: a coprocessor
}

void rtc_init(struct rtc *rtc, struct machine *machine)
{
    rtc->machine = machine;
    rtc->timer.fn = rtc_fire;
    rtc->s.ram[REG_A] = A_DIVIDER_ON | 6;
    rtc->s.ram[REG_B] = B_24H;
    rtc->s.ram[REG_D] = D_VALID;
    rtc_put_sizes(rtc);
    rtc_set_phase(rtc, 0);
    rtc_set_time(rtc, time_wall_seconds());
}

void rtc_reset(struct rtc *rtc)
{
    rtc->s.index = 0;
    rtc->s.ram[REG_B] &= (u8) ~(B_PIE | B_AIE | B_UIE);
    rtc->s.ram[REG_C] = 0;
    rtc_changed(rtc);
}
