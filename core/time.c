// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The clock: the TSC's frequency (CPUID leaf 15h, the ACPI PM timer or the 8254, whichever there
// is), the LAPIC timer's along with it, and the wall clock (MC146818).

#include <arch/x86/insn.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/time.h>

enum { PM_TIMER_HZ = 3579545, PIT_HZ = 1193182, WINDOW_US = 2000, TRIES = 6, READS_MAX = 1000000 };
enum { PIT_CHANNEL2 = 0x42, PIT_MODE = 0x43, PORT_B = 0x61 };
enum { CMOS_INDEX = 0x70, CMOS_DATA = 0x71, RTC_A = 10, RTC_A_UIP = 0x80, RTC_B = 11 };
enum { RTC_B_24H = 2, RTC_B_BINARY = 4, RTC_PM = 0x80 };

u64 tsc_hz, apic_timer_hz, boot_tsc;

static u64 wall_seconds; // at wall_tsc
static u64 wall_tsc;

struct tick_source {
    const char *name;
    u32 hz, mask;
    u32 (*read)(void); // counts up
};

static u16 pm_timer_port;

static INIT_TEXT u32 pm_timer_read(void)
{
    return in32(pm_timer_port);
}

static INIT_TEXT u32 pit_read(void)
{
    u32 low;

    out8(PIT_MODE, 0x80); // latch channel 2
    low = in8(PIT_CHANNEL2);
    return 0xffff - (low | (u32)in8(PIT_CHANNEL2) << 8);
}

// Channel 2, gate open, speaker off, counting from 65,536 in mode 2.
static INIT_TEXT void pit_start(void)
{
    out8(PORT_B, (u8)((in8(PORT_B) & ~2) | 1));
    out8(PIT_MODE, 0xb4);
    out8(PIT_CHANNEL2, 0);
    out8(PIT_CHANNEL2, 0);
}

static const struct tick_source pit = {"8254", PIT_HZ, 0xffff, pit_read};
static const struct tick_source pm_timer = {"ACPI PM timer", PM_TIMER_HZ, 0xffffff, pm_timer_read};

struct sample {
    u32 ticks, apic;
    u64 tsc;
};

// Waits until at least `ticks` have passed since `since`, and takes all clocks at the edge. False
// if the source stands still.
static INIT_TEXT bool sample_after(const struct tick_source *source, u32 since, u32 ticks,
                                   struct sample *out)
{
    for (u32 reads = 0; reads < READS_MAX; reads++) {
        out->ticks = source->read();
        out->tsc = tsc_now();
        if (((out->ticks - since) & source->mask) >= ticks) {
            out->apic = apic_timer_count();
            return true;
        }
    }
    return false;
}

// The frequencies seen in one window; tsc = 0 if the source does not count.
static INIT_TEXT void measure(const struct tick_source *source, u64 *tsc, u64 *apic)
{
    u32 want = (u32)((u64)source->hz * WINDOW_US / 1000000), ticks;
    struct sample start, end;

    *tsc = 0;
    if (!sample_after(source, source->read(), 1, &start) ||
        !sample_after(source, start.ticks, want, &end))
        return;
    ticks = (end.ticks - start.ticks) & source->mask;
    *tsc = mul_div(end.tsc - start.tsc, source->hz, ticks);
    *apic = mul_div(start.apic - end.apic, source->hz, ticks);
}

// Two windows must agree to 1 in 1,000: an SMI in one of them spoils it.
static INIT_TEXT bool calibrate(const struct tick_source *source)
{
    u64 before = 0, tsc, apic;

    for (u32 i = 0; i < TRIES; i++) {
        measure(source, &tsc, &apic);
        if (tsc == 0)
            return false;
        if (before && (before > tsc ? before - tsc : tsc - before) <= tsc / 1000) {
            tsc_hz = (before + tsc) / 2;
            apic_timer_hz = apic;
            return true;
        }
        before = tsc;
    }
    tsc_hz = tsc;
    apic_timer_hz = apic;
    log_warn("clock: the TSC does not keep step with the %s", source->name);
    return true;
}

// What the CPU says of itself: crystal * numerator / denominator. 0 if it does not say.
static INIT_TEXT u64 cpuid_tsc_hz(void)
{
    struct cpuid_regs r = {0};

    if (cpuid(0, 0).eax >= 0x15)
        r = cpuid(0x15, 0);
    return r.eax && r.ebx && r.ecx ? (u64)r.ecx * r.ebx / r.eax : 0;
}

static INIT_TEXT const struct tick_source *calibrate_by_ticks(void)
{
    bool is_32bit;

    pm_timer_port = acpi_pm_timer_port(&is_32bit);
    if (pm_timer_port && calibrate(&pm_timer))
        return &pm_timer;
    pit_start();
    return calibrate(&pit) ? &pit : NULL;
}

static INIT_TEXT u8 cmos_read(u8 index)
{
    out8(CMOS_INDEX, index);
    return in8(CMOS_DATA);
}

static INIT_TEXT u32 from_bcd(u32 value, u8 mode)
{
    return mode & RTC_B_BINARY ? value : (value >> 4) * 10 + (value & 15);
}

struct rtc_time {
    u8 second, minute, hour, day, month, year, century;
};

static INIT_TEXT struct rtc_time rtc_read(void)
{
    u8 century = acpi_century_register();

    for (u32 polls = 0; polls < 10000 && (cmos_read(RTC_A) & RTC_A_UIP); polls++)
        __builtin_ia32_pause();
    return (struct rtc_time){
        .second = cmos_read(0),
        .minute = cmos_read(2),
        .hour = cmos_read(4),
        .day = cmos_read(7),
        .month = cmos_read(8),
        .year = cmos_read(9),
        .century = century && century < 0x80 ? cmos_read(century) : 0,
    };
}

// Days from 1970-01-01 in the Gregorian calendar; years are counted from March.
static INIT_TEXT u64 days_since_1970(u32 year, u32 month, u32 day)
{
    u32 y = month <= 2 ? year - 1 : year, m = month <= 2 ? month + 9 : month - 3;

    return (u64)y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719468;
}

static INIT_TEXT void read_wall_clock(void)
{
    u8 mode = cmos_read(RTC_B);
    struct rtc_time t = rtc_read();
    u32 hour = from_bcd(t.hour & (u8)~RTC_PM, mode), year = from_bcd(t.year, mode);
    u32 century = from_bcd(t.century, mode);

    if (!(mode & RTC_B_24H))
        hour = hour % 12 + (t.hour & RTC_PM ? 12 : 0);
    year += century >= 19 && century < 30 ? century * 100 : 2000;
    wall_tsc = tsc_now();
    wall_seconds = days_since_1970(year, from_bcd(t.month, mode), from_bcd(t.day, mode)) * 86400 +
                   hour * 3600 + from_bcd(t.minute, mode) * 60 + from_bcd(t.second, mode);
}

// CPUID's word is checked against a timer: emulators copy the leaf of the CPU that they imitate,
// but not its clock.
INIT_TEXT void time_init(void)
{
    u64 said = cpuid_tsc_hz();
    const char *by = "CPUID.15H";
    const struct tick_source *source;

    apic_timer_start(HOST_VECTOR_TIMER, false);
    apic_timer_set_count(~0u);
    source = calibrate_by_ticks();
    apic_timer_set_count(0);
    if (source && (!said || tsc_hz > said + said / 100 || tsc_hz < said - said / 100))
        by = source->name;
    else if (said)
        tsc_hz = said;
    else
        panic(
            "no clock to measure the TSC by: neither CPUID.15H, nor an ACPI PM timer, nor an 8254");
    read_wall_clock();
    log_info("clock: TSC %llu.%03llu MHz by the %s", tsc_hz / 1000000, tsc_hz / 1000 % 1000, by);
}

u64 time_wall_ns(u64 tsc)
{
    return wall_seconds * 1000000000 + tsc_to_ns(tsc - wall_tsc);
}

u64 time_wall_seconds(void)
{
    return time_wall_ns(tsc_now()) / 1000000000;
}

void time_delay_us(u32 us)
{
    u64 end = tsc_now() + ns_to_tsc(us * 1000ull);

    while (tsc_now() < end)
        __builtin_ia32_pause();
}
