// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Whether the machine's clocks agree: the interrupts of the 8254, of the RTC and of the local
// APIC's timer, the RTC's seconds, the TSC and kvmclock, all against the ACPI PM timer, while the
// CPU is busy, while it is halted, and while it is interrupted 10,000 times a second. None may
// drift by 0.1 %. Words on the command line: "minute": each load takes one; "slow": for an emulator
// in real time, which is not up to more than 250 interrupts a second.

#include "guest.h"

enum { PM_HZ = 3579545, PIT_HZ = 1193182, LIMIT_PPM = 1000, SETTLE_MS = 500 };
enum { PIT_VECTOR = 0x40, RTC_VECTOR, APIC_VECTOR, PERIODIC = 1 << 17, DIVIDE_BY_1 = 0xb };
enum { RTC_HZ = 64, RTC_RATE = 10, SLOW_HZ = 100, FIRST = 30 };

// What comes by interrupts. A clock that only counts them is late by the time that passed but for
// count periods. The host may keep any of them waiting, so that it is the least late of the first
// ones that tells where they began.
static struct ticker {
    const char *name;
    u32 hz, period; // in ticks of a clock of `hz`
    volatile u32 count;
    u64 first, last; // TSC, less count periods
    s64 ppm;         // the best of what was seen at the end
} tickers[] = {{.name = "8254", .hz = PIT_HZ},
               {.name = "RTC", .hz = RTC_HZ, .period = 1},
               {.name = "APIC timer"}};
enum { PIT, RTC, APIC };

static u16 pm_port = 0x608;
static u64 pm_total; // PM timer ticks since the start, whatever its width
static u32 pm_last;
static u64 tsc_hz;
static u32 jitter_ms; // how long the host may stop the whole machine

static u64 mul_div(u64 a, u64 b, u64 c)
{
    u64 low, high, rest;

    __asm__("mulq %3" : "=a"(low), "=d"(high) : "a"(a), "r"(b));
    __asm__("divq %4" : "=a"(low), "=d"(rest) : "a"(low), "d"(high), "r"(c));
    return low;
}

// The first two may have waited since before.
static void tick(struct ticker *t)
{
    t->count++;
    t->last = rdtsc() - mul_div((u64)t->count * t->period, tsc_hz, t->hz);
    if (t->count < 3 || (t->count < FIRST && (s64)(t->last - t->first) < 0))
        t->first = t->last;
}

static void on_pit(struct trap *trap)
{
    (void)trap;
    tick(&tickers[PIT]);
    apic_eoi();
}

static void on_rtc(struct trap *trap)
{
    (void)trap;
    tick(&tickers[RTC]);
    cmos_read(0xc);
    apic_eoi();
}

static void on_apic(struct trap *trap)
{
    (void)trap;
    tick(&tickers[APIC]);
    apic_eoi();
}

// 24 bits are all that every PM timer has: it is to be looked at every 4 s.
static u64 pm_now(void)
{
    u32 now = in32(pm_port);

    pm_total += (now - pm_last) & 0xffffff;
    pm_last = now;
    return pm_total;
}

static u64 pm_ms(u64 ms)
{
    return ms * PM_HZ / 1000;
}

// Both at one moment, as far as the best of some tries is one.
struct moment {
    u64 tsc, pm;
};

static struct moment moment(void)
{
    struct moment best = {0};
    u64 least = ~0ull;

    for (unsigned i = 0; i < 20; i++) {
        u64 before = rdtsc(), pm = pm_now(), after = rdtsc();

        if (after - before < least) {
            least = after - before;
            best = (struct moment){before + (after - before) / 2, pm};
        }
    }
    return best;
}

// How far `ticks` of a clock of `hz` are from `by` ticks of one of `by_hz`, in millionths.
static s64 off(u64 ticks, u64 hz, u64 by, u64 by_hz)
{
    u64 want = mul_div(by, hz * 1000, by_hz);

    return want ? (s64)(ticks * 1000 - want) * 1000000 / (s64)want : -1000000;
}

static bool agrees(s64 ppm)
{
    return ppm < LIMIT_PPM && ppm > -LIMIT_PPM;
}

// The TSC's and the APIC timer's frequency by the PM timer; the latter as the timing leaf says it,
// where there is one.
static void calibrate(void)
{
    struct moment from = moment(), to;
    u32 count;

    apic_write(APIC_TIMER_DIVIDE, DIVIDE_BY_1);
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
    while (pm_now() - from.pm < pm_ms(300))
        ;
    to = moment();
    tsc_hz = mul_div(to.tsc - from.tsc, PM_HZ, to.pm - from.pm);
    from.tsc = rdtsc();
    apic_write(APIC_TIMER_INITIAL, ~0u);
    while (rdtsc() - from.tsc < tsc_hz / 4)
        ;
    count = ~0u - apic_read(APIC_TIMER_CURRENT);
    tickers[APIC].hz = (u32)mul_div(count, tsc_hz, rdtsc() - from.tsc);
    if (under_hypervisor() && cpuid(0x40000000, 0).eax >= 0x40000010)
        tickers[APIC].hz = cpuid(0x40000010, 0).ebx * 1000;
}

// --- kvmclock (the Linux kernel's Documentation/virt/kvm/x86/msr) ---

static struct {
    volatile u32 version, reserved0;
    volatile u64 tsc, ns;
    volatile u32 mul;
    volatile s8 shift;
    volatile u8 flags, reserved1[2];
} kvmclock __attribute__((aligned(32)));

static bool has_kvmclock(void)
{
    struct cpuid_regs r = cpuid(0x40000000, 0);

    return under_hypervisor() && r.ebx == 0x4b4d564b && (cpuid(0x40000001, 0).eax & 8);
}

static u64 kvmclock_ns(u64 tsc)
{
    u64 delta = tsc - kvmclock.tsc;

    delta = kvmclock.shift < 0 ? delta >> -kvmclock.shift : delta << kvmclock.shift;
    return kvmclock.ns + mul_div(delta, kvmclock.mul, 1ull << 32);
}

static void test_kvmclock(void)
{
    struct moment from, to;
    u64 ns;

    if (!has_kvmclock()) {
        report_skip("no kvmclock");
        return;
    }
    msr_write(0x4b564d01, (u64)&kvmclock | 1);
    report(kvmclock.version && !(kvmclock.version & 1) && kvmclock.flags & 1,
           "kvmclock: version %u, stable", kvmclock.version);
    from = moment();
    ns = kvmclock_ns(from.tsc);
    msr_write(MSR_TSC, rdtsc() + 100 * tsc_hz);
    from.tsc += 100 * tsc_hz;
    while (pm_now() - from.pm < pm_ms(300))
        ;
    to = moment();
    ns = kvmclock_ns(to.tsc) - ns;
    report(agrees(off(ns, 1000000000, to.pm - from.pm, PM_HZ)),
           "kvmclock goes on when the TSC is written: %lld ppm off",
           (long long)off(ns, 1000000000, to.pm - from.pm, PM_HZ));
    msr_write(0x4b564d01, 0);
}

// --- one load ---

static void pit_start(u32 hz)
{
    u32 n = PIT_HZ / hz;

    out8(0x43, 0x34); // channel 0, both bytes, mode 2
    out8(0x40, (u8)n);
    out8(0x40, (u8)(n >> 8));
    tickers[PIT].period = n;
}

static void apic_start(u32 hz)
{
    tickers[APIC].period = tickers[APIC].hz / hz;
    apic_write(APIC_LVT_TIMER, PERIODIC | APIC_VECTOR);
    apic_write(APIC_TIMER_INITIAL, tickers[APIC].period);
}

static void look(struct ticker *t, u64 start)
{
    s64 late = (s64)(t->last - t->first), jitter = (s64)(tsc_hz / 1000 * jitter_ms), ppm;

    late = late > jitter ? late - jitter : late < -jitter ? late + jitter : 0;
    ppm = late * 1000000 / (s64)(rdtsc() - start);
    if ((ppm < 0 ? -ppm : ppm) < (t->ppm < 0 ? -t->ppm : t->ppm))
        t->ppm = ppm;
}

static bool all_agree(u64 start)
{
    bool ok = true;

    for (unsigned i = 0; i < 3; i++) {
        look(&tickers[i], start);
        ok &= agrees(tickers[i].ppm);
    }
    return ok;
}

static void spend(bool halt)
{
    if (halt)
        __asm__ volatile("hlt");
    for (u64 start = rdtsc(); !halt && rdtsc() - start < tsc_hz / 1000;)
        pause();
}

static void report_load(const char *load, const struct moment *from)
{
    struct moment now = moment();

    for (unsigned i = 0; i < 3; i++)
        report(agrees(tickers[i].ppm), "%s: %s: %u, %lld ppm off", load, tickers[i].name,
               tickers[i].count, (long long)tickers[i].ppm);
    report(agrees(off(now.tsc - from->tsc, tsc_hz, now.pm - from->pm, PM_HZ)),
           "%s: TSC: %lld ppm off", load,
           (long long)off(now.tsc - from->tsc, tsc_hz, now.pm - from->pm, PM_HZ));
}

// What has come late may still be on its way when time is up, so that is waited for; what is lost
// stays lost.
static void test_load(const char *load, bool halt, u32 pit_hz, u64 ms)
{
    struct moment from = moment();
    u64 end = from.pm + pm_ms(ms);

    for (unsigned i = 0; i < 3; i++)
        tickers[i].count = 0, tickers[i].ppm = 1000000;
    pit_start(pit_hz);
    apic_start(SLOW_HZ);
    cmos_read(0xc);
    sti();
    while (pm_now() < end)
        spend(halt);
    for (end += pm_ms(SETTLE_MS); !all_agree(from.tsc) && pm_now() < end;)
        spend(true);
    cli();
    apic_write(APIC_TIMER_INITIAL, 0);
    report_load(load, &from);
}

static u8 rtc_second(void)
{
    while (cmos_read(0xa) & 0x80)
        ;
    return cmos_read(0);
}

// From one change of the seconds to another; by polling, and so as the best of some tries.
static void test_second(void)
{
    u64 change[6], now;
    s64 best = 1000000;

    for (unsigned i = 0; i < 6; i++)
        for (u8 second = rtc_second(); now = pm_now(), rtc_second() == second;)
            change[i] = now;
    for (unsigned i = 1; i < 6; i++)
        for (unsigned k = 0; k < i; k++) {
            s64 ppm = off(change[i] - change[k], PM_HZ, i - k, 1);

            best = (ppm < 0 ? -ppm : ppm) < (best < 0 ? -best : best) ? ppm : best;
        }
    report(agrees(best), "the RTC's second: %lld ppm off", (long long)best);
}

static void start_clocks(void)
{
    trap_handlers[PIT_VECTOR] = on_pit;
    trap_handlers[RTC_VECTOR] = on_rtc;
    trap_handlers[APIC_VECTOR] = on_apic;
    pic_mask_all();
    ioapic_write(0x11 + 2 * 2, apic_id() << 24);
    ioapic_write(0x10 + 2 * 2, PIT_VECTOR);
    ioapic_write(0x11 + 2 * 8, apic_id() << 24);
    ioapic_write(0x10 + 2 * 8, RTC_VECTOR);
    calibrate();
    cmos_write(0xa, 0x20 | RTC_RATE);
    cmos_write(0xb, 0x42); // 24 hours, periodic interrupts
}

void guest_main(void)
{
    u64 ms = option("minute") ? 60000 : 1000;
    bool slow = option("slow");

    jitter_ms = slow ? 30 : 0;
    if (bare_machine() == MACHINE_BOCHS)
        pm_port = 0xb008;
    pm_last = in32(pm_port);
    start_clocks();
    test_second();
    test_kvmclock();
    test_load("busy", false, SLOW_HZ, ms);
    test_load("halted", true, SLOW_HZ, ms);
    test_load(slow ? "250 interrupts a second" : "10,000 interrupts a second", false,
              slow ? 250 : 10000, ms);
    cmos_write(0xb, 0x02);
}
