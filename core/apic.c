// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The real local APIC, as xAPIC (MMIO) or x2APIC (MSRs): SDM vol. 3, "Advanced Programmable
// Interrupt Controller".

#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/page.h>

enum { // register offsets of the xAPIC; x2APIC's MSR is 0x800 + offset / 16
    APIC_ID = 0x20,
    APIC_TPR = 0x80,
    APIC_EOI = 0xb0,
    APIC_SVR = 0xf0,
    APIC_ISR = 0x100,
    APIC_ICR = 0x300,
    APIC_ICR_HIGH = 0x310,
    APIC_LVT_TIMER = 0x320,
    APIC_LVT_LINT0 = 0x350,
    APIC_LVT_LINT1 = 0x360,
    APIC_TIMER_INITIAL = 0x380,
    APIC_TIMER_CURRENT = 0x390,
    APIC_TIMER_DIVIDE = 0x3e0,
};

#define SVR_ENABLE       0x100u
#define LVT_MASKED       0x10000u
#define LVT_TSC_DEADLINE 0x40000u
#define DELIVERY_NMI     0x400u
#define DELIVERY_INIT    0x500u
#define DELIVERY_STARTUP 0x600u
#define ICR_PENDING      0x1000u
#define ICR_ASSERT       0x4000u
#define DIVIDE_BY_1      0xbu

struct apic_ops {
    u32 (*read)(u32 reg);
    void (*write)(u32 reg, u32 value);
    void (*send)(u32 apic_id, u32 icr);
};

static volatile u8 *apic_mmio;

static u32 xapic_read(u32 reg)
{
    return *(volatile u32 *)(apic_mmio + reg);
}

static void xapic_write(u32 reg, u32 value)
{
    *(volatile u32 *)(apic_mmio + reg) = value;
}

// The command is one only when its low half is written; a pending one must have gone first. An NMI
// handler sends none, so nothing comes between.
static void xapic_send(u32 apic_id, u32 icr)
{
    for (u32 polls = 1000000; (xapic_read(APIC_ICR) & ICR_PENDING) && polls > 0; polls--)
        __builtin_ia32_pause();
    xapic_write(APIC_ICR_HIGH, apic_id << 24);
    xapic_write(APIC_ICR, icr);
}

static u32 x2apic_read(u32 reg)
{
    return (u32)msr_read(MSR_X2APIC_FIRST + reg / 16);
}

static void x2apic_write(u32 reg, u32 value)
{
    msr_write(MSR_X2APIC_FIRST + reg / 16, value);
}

// WRMSR to an x2APIC register does not wait for stores before it (SDM vol. 3, "MSR Access in x2APIC
// Mode").
static void x2apic_send(u32 apic_id, u32 icr)
{
    __asm__ volatile("mfence; lfence" : : : "memory");
    msr_write(MSR_X2APIC_FIRST + APIC_ICR / 16, (u64)apic_id << 32 | icr);
}

static const struct apic_ops xapic = {xapic_read, xapic_write, xapic_send};
static const struct apic_ops x2apic = {x2apic_read, x2apic_write, x2apic_send};
static const struct apic_ops *apic;

bool apic_is_x2apic(void)
{
    return apic == &x2apic;
}

static INIT_TEXT void choose_mode(u64 base)
{
    bool wanted = !option_off("x2apic");

    if ((cpuid(1, 0).ecx & BIT(21)) && ((base & APIC_BASE_X2APIC) || wanted)) {
        apic = &x2apic;
        return;
    }
    apic = &xapic;
    apic_mmio = mmio_map(base & BITS(51, 12), PAGE_SIZE, MAP_UNCACHED);
    if (!apic_mmio)
        panic("no memory to map the local APIC");
}

// What the firmware left in service would keep lower interrupts away.
static void drain(void)
{
    for (u32 i = 0; i < 256; i++) {
        u32 any = 0;

        for (u32 word = 0; word < 8; word++)
            any |= apic->read(APIC_ISR + word * 16);
        if (!any)
            return;
        apic_eoi();
    }
}

// On the boot CPU it chooses the mode for all. IA32_APIC_BASE.EN is never cleared: not every
// machine lets one set it again.
void apic_init_cpu(void)
{
    u64 base = msr_read(MSR_APIC_BASE) | APIC_BASE_ENABLE;

    if (!apic)
        choose_mode(base);
    msr_write(MSR_APIC_BASE, base);
    if (apic == &x2apic)
        msr_write(MSR_APIC_BASE, base | APIC_BASE_X2APIC);
    apic->write(APIC_SVR, SVR_ENABLE | HOST_VECTOR_SPURIOUS);
    apic->write(APIC_TPR, 0);
    apic->write(APIC_LVT_LINT0, LVT_MASKED);
    apic->write(APIC_LVT_LINT1, DELIVERY_NMI);
    drain();
}

u32 apic_id(void)
{
    return apic == &x2apic ? apic->read(APIC_ID) : apic->read(APIC_ID) >> 24;
}

void apic_eoi(void)
{
    apic->write(APIC_EOI, 0);
}

void apic_send_ipi(u32 id, u8 vector)
{
    apic->send(id, ICR_ASSERT | vector);
}

void apic_send_nmi(u32 id)
{
    apic->send(id, ICR_ASSERT | DELIVERY_NMI);
}

void apic_send_init(u32 id)
{
    apic->send(id, ICR_ASSERT | DELIVERY_INIT);
}

void apic_send_startup(u32 id, u8 vector)
{
    apic->send(id, ICR_ASSERT | DELIVERY_STARTUP | vector);
}

void apic_timer_start(u8 vector, bool deadline_mode)
{
    apic->write(APIC_TIMER_DIVIDE, DIVIDE_BY_1);
    apic->write(APIC_LVT_TIMER, vector | (deadline_mode ? LVT_TSC_DEADLINE : 0));
    if (deadline_mode)
        __asm__ volatile("mfence" : : : "memory"); // or a deadline may be written before the mode
}

void apic_timer_set_count(u32 count)
{
    apic->write(APIC_TIMER_INITIAL, count);
}

u32 apic_timer_count(void)
{
    return apic->read(APIC_TIMER_CURRENT);
}
