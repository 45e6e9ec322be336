// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// When an interrupt is taken: IF, the shadow of STI, POPF, the task priority and CR8, the order of
// vectors, what is latched (SDM vol. 3 "Masking Maskable Hardware Interrupts", "Task Priority",
// "Interrupt Acceptance for Fixed Interrupts").

#include "guest.h"

enum { LOG_MAX = 16 };

static volatile u32 taken;
static u32 vectors[LOG_MAX];
static u64 rips[LOG_MAX];
static void (*volatile during)(u32 vector); // called in a handler, before the EOI

static void handler(struct trap *trap)
{
    u32 n = taken++;

    if (n < LOG_MAX) {
        vectors[n] = (u32)trap->vector;
        rips[n] = trap->rip;
    }
    if (during)
        during((u32)trap->vector);
    apic_eoi();
}

static void send(u32 vector)
{
    apic_icr(0, ICR_SELF | ICR_ASSERT | vector);
}

static bool pending(u32 vector)
{
    return apic_read(APIC_IRR + vector / 32 * 16) & BIT(vector % 32);
}

// Runs code with an interrupt pending and IF clear before; label 1 in it is where it must be taken.
#define TAKEN_AT(what, code)                                                                    \
    do {                                                                                        \
        u64 expected;                                                                           \
                                                                                                \
        taken = 0;                                                                              \
        send(0x51);                                                                             \
        delay_us(100);                                                                          \
        __asm__ volatile("lea 1f(%%rip), %0; mov %0, %%r8;" code "; nop; nop; cli"              \
                         : "=&r"(expected)                                                      \
                         : "D"((u64)APIC_BASE + APIC_VERSION)                                   \
                         : "rax", "rbx", "rcx", "rdx", "r8", "memory", "cc");                   \
        report(taken == 1 && rips[0] == expected, "%s: %u taken, RIP off by %lld", what, taken, \
               (long long)(rips[0] - expected));                                                \
    } while (0)

static void test_shadow(void)
{
    TAKEN_AT("STI, NOP", "sti; nop; 1:");
    TAKEN_AT("STI, CPUID", "xor %%eax, %%eax; sti; cpuid; 1:");
    TAKEN_AT("STI, IN", "sti; in $0x21, %%al; 1:");
    TAKEN_AT("STI, OUT", "mov $0xff, %%al; sti; out %%al, $0x21; 1:");
    TAKEN_AT("STI, RDMSR", "mov $0x277, %%ecx; sti; rdmsr; 1:");
    TAKEN_AT("STI, MOV from MMIO", "sti; mov (%%rdi), %%eax; 1:");
    TAKEN_AT("STI, STI: one shadow only", "sti; sti; 1:");
    TAKEN_AT("STI, HLT", "sti; hlt; 1:");
    TAKEN_AT("POPF has no shadow", "pushfq; orl $0x200, (%%rsp); popfq; 1:");
    TAKEN_AT("IRETQ has no shadow", "mov %%rsp, %%rax; push $0x10; push %%rax; pushfq; "
                                    "orl $0x200, (%%rsp); push $8; push %%r8; iretq; 1:");
    taken = 0;
    send(0x51);
    __asm__ volatile("sti; cli");
    report(taken == 0 && pending(0x51), "STI, CLI: no interrupt between them");
    sti();
    cli();
    report(taken == 1, "and then it comes");
}

static void test_masked(void)
{
    taken = 0;
    send(0x51);
    for (int i = 0; i < 100; i++)
        cpuid(0, 0);
    report(taken == 0 && pending(0x51), "IF = 0: it stays in IRR");
    sti();
    report(taken == 1 && !pending(0x51), "IF = 1: it is taken");
    cli();
}

static void write_cr8(u64 value)
{
    __asm__ volatile("mov %0, %%cr8" : : "r"(value) : "memory");
}

static u64 read_cr8(void)
{
    u64 value;

    __asm__ volatile("mov %%cr8, %0" : "=r"(value));
    return value;
}

static void test_priority(void)
{
    taken = 0;
    write_cr8(5);
    report(apic_read(APIC_TPR) == 0x50 && read_cr8() == 5, "CR8 is the task priority register");
    send(0x5f);
    sti();
    delay_us(100);
    report(taken == 0, "CR8 = 5 holds vector 5Fh back");
    send(0x60);
    sti();
    report(taken == 1 && vectors[0] == 0x60, "but not 60h");
    write_cr8(4);
    __asm__ volatile("nop");
    report(taken == 2 && vectors[1] == 0x5f, "CR8 = 4 lets it through");
    apic_write(APIC_TPR, 0x65);
    report(read_cr8() == 6 && (apic_read(APIC_PPR) & 0xf0) == 0x60, "TPR 65h: CR8 %llu, PPR %#x",
           (unsigned long long)read_cr8(), apic_read(APIC_PPR));
    send(0x61);
    delay_us(100);
    report(taken == 2, "TPR 65h holds vector 61h back");
    apic_write(APIC_TPR, 0);
    __asm__ volatile("nop");
    report(taken == 3 && vectors[2] == 0x61, "TPR 0 lets it through");
    cli();
}

static void test_order(void)
{
    taken = 0;
    send(0x41);
    send(0x71);
    send(0x51);
    send(0x71);
    sti();
    delay_us(100);
    cli();
    report(taken == 3 && vectors[0] == 0x71 && vectors[1] == 0x51 && vectors[2] == 0x41,
           "the higher vector first, one that came twice once: %x %x %x", vectors[0], vectors[1],
           vectors[2]);
}

static void nest(u32 vector)
{
    if (vector != 0x51)
        return;
    during = NULL;
    send(0x41); // lower: must wait
    send(0x52); // the same class: must wait
    send(0x51); // latched again
    send(0x61); // higher
    sti();
    delay_us(100);
    cli();
    report(taken == 2 && vectors[1] == 0x61, "only a higher class interrupts a handler: %u taken",
           taken);
    report(apic_read(APIC_ISR + 0x51 / 32 * 16) & BIT(0x51 % 32), "51h is in ISR");
    report(pending(0x41) && pending(0x51) && pending(0x52), "the others are in IRR");
}

static void test_nested(void)
{
    taken = 0;
    during = nest;
    send(0x51);
    sti();
    delay_us(100);
    cli();
    report(taken == 5 && vectors[2] == 0x52 && vectors[3] == 0x51 && vectors[4] == 0x41,
           "then the others: %x %x %x", vectors[2], vectors[3], vectors[4]);
}

// A disabled APIC's LVT is masked; SVR's vector is for what has gone.
static void test_software_disable(void)
{
    apic_write(APIC_LVT_TIMER, 0x51);
    apic_write(APIC_SVR, 0xff);
    report_known(MACHINE_QEMU, apic_read(APIC_LVT_TIMER) & LVT_MASKED,
                 "SVR bit 8 clear masks the LVT");
    apic_write(APIC_SVR, 0x1ff);
    report_known(MACHINE_QEMU, apic_read(APIC_LVT_TIMER) & LVT_MASKED, "and it stays masked");
}

void guest_main(void)
{
    for (unsigned i = 0x40; i < 0x80; i++)
        trap_handlers[i] = handler;
    test_masked();
    test_shadow();
    test_priority();
    test_order();
    test_nested();
    test_software_disable();
}
