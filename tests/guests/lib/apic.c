// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The small guests' APICs and further CPUs (SDM vol. 3 "Advanced Programmable Interrupt
// Controller", "Multiple-Processor Initialization").

#include "guest.h"

enum { TRAMPOLINE = 0x8000, IOAPIC_BASE = 0xfec00000 };

extern char low_start[], low_end[];
void ap_main(u32 cpu);

bool x2apic;
volatile u32 cpus_online = 1;
u32 cpu_apic_ids[CPU_MAX];

static struct {
    void (*volatile fn)(void *);
    void *volatile arg;
} work[CPU_MAX];

void pic_mask_all(void)
{
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
}

void apic_enable(void)
{
    u64 base = msr_read(MSR_APIC_BASE);

    // From x2APIC mode only disabling leads back.
    if (base & APIC_BASE_X2APIC)
        msr_write(MSR_APIC_BASE, base & ~(APIC_BASE_X2APIC | APIC_BASE_ENABLE));
    msr_write(MSR_APIC_BASE, (base & ~APIC_BASE_X2APIC) | APIC_BASE_ENABLE);
    x2apic = false;
    apic_write(APIC_SVR, 0x1ff);
}

bool apic_enable_x2(void)
{
    if (!(cpuid(1, 0).ecx & BIT(21)))
        return false;
    msr_write(MSR_APIC_BASE, msr_read(MSR_APIC_BASE) | APIC_BASE_ENABLE | APIC_BASE_X2APIC);
    x2apic = true;
    apic_write(APIC_SVR, 0x1ff);
    return true;
}

u32 apic_read(u32 reg)
{
    if (x2apic)
        return (u32)msr_read(MSR_X2APIC_FIRST + reg / 16);
    return *(volatile u32 *)(APIC_BASE + (u64)reg);
}

void apic_write(u32 reg, u32 value)
{
    if (x2apic)
        msr_write(MSR_X2APIC_FIRST + reg / 16, value);
    else
        *(volatile u32 *)(APIC_BASE + (u64)reg) = value;
}

void apic_icr(u32 dest, u32 low)
{
    if (x2apic) {
        msr_write(MSR_X2APIC_FIRST + APIC_ICR / 16, (u64)dest << 32 | low);
        return;
    }
    apic_write(APIC_ICR2, dest << 24);
    apic_write(APIC_ICR, low);
    while (apic_read(APIC_ICR) & ICR_PENDING)
        pause();
}

void apic_eoi(void)
{
    apic_write(APIC_EOI, 0);
}

u32 apic_id(void)
{
    return x2apic ? apic_read(APIC_ID) : apic_read(APIC_ID) >> 24;
}

u32 ioapic_read(u32 reg)
{
    *(volatile u32 *)(u64)IOAPIC_BASE = reg;
    return *(volatile u32 *)(u64)(IOAPIC_BASE + 0x10);
}

void ioapic_write(u32 reg, u32 value)
{
    *(volatile u32 *)(u64)IOAPIC_BASE = reg;
    *(volatile u32 *)(u64)(IOAPIC_BASE + 0x10) = value;
}

u32 this_cpu_number(void)
{
    u32 id = apic_id();

    for (u32 i = 0; i < cpus_online; i++)
        if (cpu_apic_ids[i] == id)
            return i;
    return ~0u;
}

void ap_main(u32 cpu)
{
    struct table_pointer pointer = {sizeof(idt) - 1, (u64)idt};

    __asm__ volatile("lidt %0" : : "m"(pointer));
    apic_write(APIC_SVR, 0x1ff);
    cpu_apic_ids[cpu] = apic_id();
    __atomic_add_fetch(&cpus_online, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        while (!work[cpu].fn)
            pause();
        work[cpu].fn(work[cpu].arg);
        cli();
        work[cpu].fn = NULL;
    }
}

bool smp_start(u32 count)
{
    cpu_apic_ids[0] = apic_id();
    memcpy((void *)TRAMPOLINE, low_start, (size_t)(low_end - low_start));
    apic_icr(0, ICR_OTHERS | ICR_INIT | ICR_ASSERT);
    delay_us(10000);
    apic_icr(0, ICR_OTHERS | ICR_SIPI | ICR_ASSERT | TRAMPOLINE >> 12);
    wait_for(&cpus_online, count, 2000);
    return cpus_online == count;
}

void smp_call(u32 cpu, void (*fn)(void *), void *arg)
{
    work[cpu].arg = arg;
    work[cpu].fn = fn;
}

bool smp_wait(u32 cpu)
{
    for (u32 i = 0; work[cpu].fn && i < 50000; i++)
        delay_us(100);
    return !work[cpu].fn;
}
