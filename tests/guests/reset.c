// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Resets by each way that a PC has: the guest boots again, with registers and devices as at
// power-on. How far it is stands in three bytes of the RTC's battery-backed memory, which a reset
// leaves alone.

#include "guest.h"

enum { CMOS_STAGE = 0x51, CMOS_MAGIC = 0x52, CMOS_MAGIC2 = 0x53, MAGIC = 0x4e, MAGIC2 = 0xb1 };

static void reset_cf9(void)
{
    out8(0xcf9, 2);
    out8(0xcf9, 6);
}

static void reset_keyboard(void)
{
    for (unsigned i = 0; i < 100000 && in8(0x64) & 2; i++)
        pause();
    out8(0x64, 0xfe);
}

static void reset_port92(void)
{
    out8(0x92, (u8)(in8(0x92) & ~1));
    out8(0x92, in8(0x92) | 1);
}

static const struct {
    const char *name;
    void (*fn)(void);
} ways[] = {{"port CF9h", reset_cf9},
            {"the keyboard controller", reset_keyboard},
            {"port 92h", reset_port92}};

// MSRs of features by their bit in CPUID leaf 7's ECX, each 0 after a reset.
static const struct {
    u32 bit, msr;
    u64 value;
} features[] = {{BIT(31), MSR_PKRS, 0x10},
                {BIT(7), MSR_PL0_SSP + 2, 0x1000},
                {BIT(7), MSR_U_CET, 0x10},
                {BIT(7), MSR_S_CET, 0x10},
                {BIT(5), MSR_UMWAIT_CONTROL, 100000}};

static void disturb_features(void)
{
    u32 offered = cpuid(7, 0).ecx;

    for (unsigned i = 0; i < ARRAY_SIZE(features); i++)
        if (offered & features[i].bit)
            msr_write(features[i].msr, features[i].value);
    if (!(offered & BIT(3)))
        return;
    write_cr4(read_cr4() | CR4_PKE);
    __asm__ volatile(".byte 0x0f, 0x01, 0xef" : : "a"(0x10), "c"(0), "d"(0) : "memory"); // WRPKRU
}

static void check_features(const char *way)
{
    u32 offered = cpuid(7, 0).ecx;
    bool clean = true;

    for (unsigned i = 0; i < ARRAY_SIZE(features); i++)
        clean &= !(offered & features[i].bit) || msr_read(features[i].msr) == 0;
    if (offered & BIT(3)) {
        clean &= !(read_cr4() & CR4_PKE);
        write_cr4(read_cr4() | CR4_PKE);
        clean &= rdpkru() == 0;
    }
    report(clean, "after a reset by %s: PKRU and the MSRs of features are reset", way);
}

// What a reset must undo.
static void disturb(void)
{
    disturb_features();
    apic_write(APIC_TPR, 0x80);
    apic_write(APIC_LVT_TIMER, 0x20051);
    apic_write(APIC_TIMER_INITIAL, 100000);
    ioapic_write(0x10 + 2 * 5, 0x55);
    write_dr0(0x1234);
    write_dr7(DR7_FIXED);
    msr_write(MSR_LSTAR, 0x1234);
    out8(0x21, 0xfe);
}

static void check_state(const char *way)
{
    report(apic_read(APIC_TPR) == 0 && apic_read(APIC_LVT_TIMER) & LVT_MASKED &&
               apic_read(APIC_TIMER_INITIAL) == 0,
           "after a reset by %s: the local APIC is reset", way);
    report(ioapic_read(0x10 + 2 * 5) & BIT(16), "after a reset by %s: the IOAPIC is reset", way);
    report(read_dr0() == 0 && read_dr7() == DR7_FIXED && msr_read(MSR_LSTAR) == 0,
           "after a reset by %s: DRs and MSRs are reset", way);
    check_features(way);
}

void guest_main(void)
{
    u32 stage = cmos_read(CMOS_STAGE);

    if (cmos_read(CMOS_MAGIC) != MAGIC || cmos_read(CMOS_MAGIC2) != MAGIC2 || stage == 0 ||
        stage > ARRAY_SIZE(ways))
        stage = 0;
    else
        check_state(ways[stage - 1].name);
    if (stage == ARRAY_SIZE(ways)) {
        cmos_write(CMOS_MAGIC, 0);
        return;
    }
    print("reset by %s\n", ways[stage].name);
    cmos_write(CMOS_MAGIC, MAGIC);
    cmos_write(CMOS_MAGIC2, MAGIC2);
    cmos_write(CMOS_STAGE, (u8)(stage + 1));
    disturb();
    ways[stage].fn();
    delay_us(50000);
    cmos_write(CMOS_MAGIC, 0);
    report(false, "no reset by %s", ways[stage].name);
}
