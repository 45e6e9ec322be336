// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Suspend to RAM and the RTC's alarm that ends it (ACPI specification 6.5: "PM1 Event Grouping",
// "Waking and System Behavior", "Firmware ACPI Control Structure").

#include "guest.h"

enum { WAKE = 0x6008, PATTERN = 0x600df00d };
enum { FADT_FACS = 36, FADT_DSDT = 40, FADT_PM1A_EVT = 56, FADT_PM1A_CNT = 64, FACS_VECTOR = 12 };
enum { RTC_STS = BIT(10), WAK_STS = BIT(15), SLP_EN = BIT(13), SLP_TYP = 7 << 10 };
enum { SECONDS_ALARM = 1, MINUTES_ALARM = 3, HOURS_ALARM = 5, REG_B = 11, REG_C = 12, AIE = 0x20 };

extern u32 s3_sleep(u16 port, u16 value);
extern const char s3_wake[], s3_wake_end[];
extern u32 s3_cs, s3_cr0;

static u32 get32(const void *at)
{
    u32 value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static u8 *find_rsdp(void)
{
    for (u8 *at = (u8 *)0xe0000; at < (u8 *)0x100000; at += 16)
        if (memcmp(at, "RSD PTR ", 8) == 0)
            return at;
    return NULL;
}

static u8 *find_table(const u8 *rsdp, const char *signature)
{
    const u8 *rsdt = (u8 *)(u64)get32(rsdp + 16);

    for (u32 at = 36; at + 4 <= get32(rsdt + 4); at += 4)
        if (memcmp((u8 *)(u64)get32(rsdt + at), signature, 4) == 0)
            return (u8 *)(u64)get32(rsdt + at);
    return NULL;
}

// The first value of the package \_S3_: NameOp, name, PackageOp, length, count, an integer.
static int s3_type(const u8 *dsdt)
{
    for (u32 i = 36; dsdt && i + 10 < get32(dsdt + 4); i++) {
        if (memcmp(dsdt + i, "_S3_", 4) != 0 || dsdt[i + 4] != 0x12)
            continue;
        i += 7 + (dsdt[i + 5] >> 6);
        return dsdt[i] == 0x0a ? dsdt[i + 1] : dsdt[i] <= 1 ? dsdt[i] : -1;
    }
    return -1;
}

static void alarm_each_second(void)
{
    cmos_write(SECONDS_ALARM, 0xc0);
    cmos_write(MINUTES_ALARM, 0xc0);
    cmos_write(HOURS_ALARM, 0xc0);
    cmos_read(REG_C);
    cmos_write(REG_B, cmos_read(REG_B) | AIE);
}

static void test_sleep(u16 event, u16 control, int type, u8 *facs)
{
    volatile u32 *memory = pages(1);
    u64 star = msr_read(MSR_STAR);
    u32 vector = WAKE, woke;

    memcpy((void *)WAKE, s3_wake, (size_t)(s3_wake_end - s3_wake));
    memcpy(facs + FACS_VECTOR, &vector, sizeof(vector));
    *memory = PATTERN;
    msr_write(MSR_STAR, 0x1234);
    apic_write(APIC_TPR, 0x50);
    out16(event, RTC_STS | WAK_STS);
    report(!(in16(event) & (RTC_STS | WAK_STS)), "RTC_STS and WAK_STS are cleared by ones");
    out16((u16)(event + 2), RTC_STS);
    report(in16((u16)(event + 2)) & RTC_STS, "RTC_EN keeps 1");
    alarm_each_second();
    woke = s3_sleep(control, (u16)((in16(control) & ~SLP_TYP) | type << 10 | SLP_EN));
    report(woke, "the RTC's alarm wakes the machine");
    report(!woke || s3_cs == WAKE >> 4, "CS is the waking vector's upper part: %#x", s3_cs);
    report(!woke || !(s3_cr0 & (CR0_PE | CR0_PG)), "in real mode: CR0 %#x", s3_cr0);
    report(*memory == PATTERN, "memory is kept");
    report(in16(event) & WAK_STS, "WAK_STS is set");
    report(in16(event) & RTC_STS, "RTC_STS is set");
    // bare QEMU resets the RTC's flags, shows SLP_EN, and its firmware leaves the alarm going
    report_known(MACHINE_QEMU, cmos_read(REG_C) & AIE, "the alarm's flag is in register C");
    report_known(MACHINE_QEMU, !(in16(control) & SLP_EN), "SLP_EN reads as 0");
    report(msr_read(MSR_STAR) == 0, "MSRs are as after a reset");
    report(apic_read(APIC_TPR) == 0, "so is the local APIC");
    msr_write(MSR_STAR, star);
    cmos_write(REG_B, (u8)(cmos_read(REG_B) & ~AIE));
    out16(event, RTC_STS | WAK_STS);
}

void guest_main(void)
{
    u8 *rsdp = find_rsdp(), *fadt = rsdp ? find_table(rsdp, "FACP") : NULL, *facs;
    int type;

    report(fadt != NULL, "FADT");
    if (!fadt)
        return;
    facs = (u8 *)(u64)get32(fadt + FADT_FACS);
    report(facs && memcmp(facs, "FACS", 4) == 0, "FACS");
    type = s3_type((u8 *)(u64)get32(fadt + FADT_DSDT));
    report(type >= 0, "S3: type %d", type);
    if (type < 0)
        return;
    for (unsigned i = 0; i < (bare_machine() == MACHINE_QEMU ? 1 : 2);
         i++) // the second one shows what the first leaves behind
        test_sleep((u16)get32(fadt + FADT_PM1A_EVT), (u16)get32(fadt + FADT_PM1A_CNT), type, facs);
}
