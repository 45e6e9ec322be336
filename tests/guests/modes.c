// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Every mode of the CPU: real, with 64 KiB and with 4 GiB segments; protected with 16-bit and
// 32-bit code, without paging and with 32-bit paging, PSE and PAE; long mode with 4 and 5 levels.
// In each one memory, MMIO through that mode's page tables, CPUID, ports, MSRs, interrupts, HLT,
// INTO, BOUND and a page fault (SDM vol. 3 "Mode Switching", "Paging").

#include "guest.h"

enum {
    BLOCK = 0x7000,
    LOW = 0x8000,
    ALIAS = 0x50000000,      // where the tables map PAGE
    MMIO_ALIAS = 0x50400000, // the local APIC
    BAD = 0x50800123,        // not mapped
    PAGE = 0x1800000,        // RAM
    REAL_PAGE = 0x3000,      // RAM for real mode
};

enum kind { PROTECTED32, PAGED32, PROTECTED16, REAL, UNREAL, LONG };

struct block {
    u32 kind, cr3, cr4, ram, mmio, bad, resume;
    // what the probe saw
    u32 memory, version, icr2, cpuid, port, msr, error, cr2, soft, irq, into, bound, string, done,
        cr0;
    u32 far_read;
    u16 di, cx, called, cs, flags, unused;
    u32 bounds[2];
};
_Static_assert(offsetof(struct block, bounds) == 104, "modes.S");
static volatile struct block *const block = (void *)BLOCK;

extern char modes_low[], modes_low_end[];
extern char fault32[], soft32[], irq32[], into32[], bound32[];
extern char soft16[], irq16[], into16[], bound16[];
extern u64 idt32[256];
void mode_run(void);
void probe64(void);

static void put_gate32(unsigned vector, const void *handler)
{
    u64 at = (u64)handler;

    idt32[vector] = (at & 0xffff) | CODE32 << 16 | 0x8e0000000000ull | (at >> 16 & 0xffff) << 48;
}

static void put_vector16(unsigned vector, const char *handler)
{
    volatile u32 *vectors;

    __asm__("" : "=r"(vectors) : "0"(0ull)); // or GCC warns of address 0
    vectors[vector] = LOW + (u32)(handler - modes_low);
}

static void prepare(void)
{
    memcpy((void *)LOW, modes_low, (size_t)(modes_low_end - modes_low));
    put_gate32(4, into32);
    put_gate32(5, bound32);
    put_gate32(14, fault32);
    put_gate32(0x40, soft32);
    put_gate32(0x41, irq32);
    put_vector16(4, into16);
    put_vector16(5, bound16);
    put_vector16(0x40, soft16);
    put_vector16(0x41, irq16);
}

// --- page tables: identity for the first 4 MiB and the image, the aliases, and nothing at BAD ---

static u32 table32(bool large)
{
    u32 *directory = pages(1), *table = pages(1), *low = pages(1), *apic = pages(1),
        *image = pages(1);

    for (u32 i = 0; i < 1024; i++) {
        low[i] = i << 12 | 3;
        image[i] = 0x400000 + (i << 12) + 3;
    }
    table[0] = PAGE | 3;
    apic[0] = APIC_BASE | 0x1b;
    directory[0] = (u32)(u64)low | 3;
    directory[1] = (u32)(u64)image | 3;
    directory[ALIAS >> 22] = large ? (PAGE & 0xffc00000) | 0x83 : (u32)(u64)table | 3;
    directory[MMIO_ALIAS >> 22] = large ? (APIC_BASE & 0xffc00000) | 0x9b : (u32)(u64)apic | 3;
    return (u32)(u64)directory;
}

static u32 table_pae(void)
{
    u64 *pdpt = pages(1), *low = pages(1), *high = pages(1), *table = pages(1);

    pdpt[0] = (u64)low | 1;
    pdpt[1] = (u64)high | 1;
    for (u64 i = 0; i < 4; i++)
        low[i] = i * SIZE_2M | 0x83;
    table[0] = APIC_BASE | 0x1b;
    high[(ALIAS - SIZE_1G) / SIZE_2M] = PAGE | 0x83;
    high[(MMIO_ALIAS - SIZE_1G) / SIZE_2M] = (u64)table | 3;
    return (u32)(u64)pdpt;
}

// With a 5th level on top if `five`: the aliases are there also at the same place of its entry 1.
static u32 table_long(bool five)
{
    u64 *top = pages(1), *pml4_copy = pages(1), *pdpt = pages(1), *low = pages(1), *high = pages(1);
    u64 *table = pages(1);

    for (u64 i = 0; i < 4; i++)
        low[i] = i * SIZE_2M | 0x83;
    table[0] = APIC_BASE | 0x1b;
    high[(ALIAS - SIZE_1G) / SIZE_2M] = PAGE | 0x83;
    high[(MMIO_ALIAS - SIZE_1G) / SIZE_2M] = (u64)table | 3;
    pdpt[0] = (u64)low | 3;
    pdpt[1] = (u64)high | 3;
    pml4_copy[0] = pml4_copy[511] = (u64)pdpt | 3;
    top[0] = top[1] = top[511] = (u64)pml4_copy | 3;
    return (u32)(u64)(five ? top : pml4_copy);
}

// --- the probes' reports ---

static void run(enum kind kind, u32 cr3, u32 cr4, u32 ram, u32 mmio, u32 bad)
{
    u32 physical = ram == ALIAS ? PAGE : ram;

    memset((void *)block, 0, sizeof(*block));
    *(volatile u32 *)(u64)physical = 0x12345678;
    *(volatile u32 *)(u64)(physical + 4) = 0;
    block->kind = kind;
    block->cr3 = cr3;
    block->cr4 = cr4;
    block->ram = ram;
    block->mmio = mmio;
    block->bad = bad;
    mode_run();
}

static void check(const char *mode, bool paging)
{
    u32 physical = block->ram == ALIAS ? PAGE : block->ram;

    report(block->done == 1, "%s: the probe ran", mode);
    report(block->memory == 0x12345678 && *(volatile u32 *)(u64)(physical + 4) == 0xcafe0001,
           "%s: memory", mode);
    report(block->cpuid == cpuid(0, 0).ebx && block->port == 0xa5 &&
               block->msr == (u32)msr_read(MSR_PAT),
           "%s: CPUID, IN and OUT, RDMSR", mode);
    if (block->kind != LONG)
        report(block->soft == 1 && block->into == 1 && block->bound == 1,
               "%s: INT %u, INTO %u, BOUND %u", mode, block->soft, block->into, block->bound);
    if (block->mmio) {
        report(block->version == apic_read(APIC_VERSION) && block->icr2 == 0x5a000000 &&
                   block->string == 0x5a000000,
               "%s: MMIO %#x %#x %#x", mode, block->version, block->icr2, block->string);
        report(block->irq == 1, "%s: an interrupt out of HLT", mode);
    }
    if (block->bad)
        report(block->error == 0 && block->cr2 == block->bad, "%s: page fault, error %#x, CR2 %#x",
               mode, block->error, block->cr2);
    if (block->kind != LONG)
        report(!(block->cr0 >> 31) == !paging && (block->cr0 & 1) == (block->kind < REAL),
               "%s: CR0 %#x", mode, block->cr0);
}

static void test_real(const char *mode, enum kind kind)
{
    *(volatile u32 *)0x10010 = 0xabcdef01;
    *(volatile u32 *)0x10020 = 0;
    run(kind, 0, 0, REAL_PAGE, kind == UNREAL ? APIC_BASE : 0, 0);
    check(mode, false);
    report(block->far_read == 0xabcdef01, "%s: DS 1000h", mode);
    report(*(volatile u32 *)0x10020 == 0x00ffffff && block->di == 0x23 && block->cx == 0,
           "%s: REP INSB to ES 1000h", mode);
    report(block->called == 0x1234 && block->cs == 0 && !(block->flags & RFLAGS_IF), "%s: far call",
           mode);
}

// Also in 64-bit mode; called by modes.S with the tables under test.
static u64 high_half; // added to the aliases for the second look

static volatile u32 long_irqs;

static void irq(struct trap *trap)
{
    (void)trap;
    long_irqs++;
    *(volatile u32 *)(high_half + MMIO_ALIAS + APIC_EOI) = 0;
}

static void page_fault(struct trap *trap)
{
    block->error = (u32)trap->error;
    block->cr2 = (u32)read_cr2();
    trap->rip += 2; // mov (%rax), %eax
}

void probe64(void)
{
    volatile u32 *ram = (void *)(high_half + ALIAS), *apic = (void *)(high_half + MMIO_ALIAS);

    block->memory = ram[0];
    ram[1] = 0xcafe0001;
    block->cpuid = cpuid(0, 0).ebx;
    out8(0x21, 0xa5);
    block->port = in8(0x21);
    out8(0x21, 0xff);
    block->msr = (u32)msr_read(MSR_PAT);
    block->version = apic[APIC_VERSION / 4];
    apic[APIC_ICR2 / 4] = 0x5a000000;
    block->icr2 = block->string = apic[APIC_ICR2 / 4];
    long_irqs = 0;
    apic[APIC_ICR / 4] = ICR_SELF | ICR_ASSERT | 0x41;
    __asm__ volatile("sti; hlt; cli");
    block->irq = long_irqs;
    __asm__ volatile("mov (%0), %%eax" : : "a"(high_half + BAD) : "memory");
    block->done = 1;
}

static void test_long(const char *mode, bool five, u64 high)
{
    trap_handlers[0x41] = irq;
    trap_handlers[VECTOR_PF] = page_fault;
    high_half = high;
    run(LONG, table_long(five), CR4_PAE | (five ? CR4_LA57 : 0), ALIAS, MMIO_ALIAS, BAD);
    check(mode, true);
    trap_handlers[VECTOR_PF] = NULL;
}

void guest_main(void)
{
    prepare();
    test_real("real", REAL);
    test_real("real, 4 GiB segments", UNREAL);
    run(PROTECTED16, 0, 0, PAGE, APIC_BASE, 0);
    check("16-bit protected", false);
    run(PROTECTED32, 0, 0, PAGE, APIC_BASE, 0);
    check("32-bit protected", false);
    run(PAGED32, table32(false), 0, ALIAS, MMIO_ALIAS, BAD);
    check("32-bit paging", true);
    run(PAGED32, table32(true), CR4_PSE, ALIAS + (PAGE & 0x3ff000),
        MMIO_ALIAS + (APIC_BASE & 0x3ff000), BAD);
    check("32-bit paging with PSE", true);
    run(PAGED32, table_pae(), CR4_PAE, ALIAS, MMIO_ALIAS, BAD);
    check("PAE", true);
    test_long("4 levels", false, 0);
    test_long("4 levels, upper half", false, 0xffffff8000000000);
    if (cpuid(7, 0).ecx & BIT(16)) {
        test_long("5 levels", true, 0);
        test_long("5 levels, beyond 47 bits", true, BIT(48));
        test_long("5 levels, upper half", true, 0xff00000000000000 | BIT(48) * 255 | BIT(39) * 511);
    } else {
        report_skip("no 5-level paging");
    }
}
