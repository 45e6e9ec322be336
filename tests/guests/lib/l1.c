// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the small hypervisors on VMX and SVM share (l1.h).

#include "l1.h"

u64 l2_registers[REGISTERS];
u64 l2_idt[512] ALIGNED(16);
u8 l2_stack[L2_STACK] ALIGNED(16);
char l2_handlers[256 * 4] ALIGNED(16);
volatile u32 timer_count, ipi_count, nmi_count;

static void on_timer(struct trap *trap)
{
    (void)trap;
    timer_count++;
    apic_eoi();
}

static void on_ipi(struct trap *trap)
{
    (void)trap;
    ipi_count++;
    apic_eoi();
}

static void on_nmi(struct trap *trap)
{
    (void)trap;
    nmi_count++;
}

void start_timer(u32 ticks)
{
    timer_count = 0;
    apic_write(APIC_LVT_TIMER, TIMER_VECTOR);
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    apic_write(APIC_TIMER_INITIAL, ticks);
}

void self_ipi(void)
{
    ipi_count = 0;
    apic_icr(0, ICR_SELF | ICR_FIXED | ICR_ASSERT | IPI_VECTOR);
}

void self_nmi(void)
{
    nmi_count = 0;
    apic_icr(apic_id(), ICR_NMI | ICR_ASSERT);
}

void iret(void)
{
    __asm__ volatile("mov %%rsp, %%rcx; mov %%ss, %%eax; push %%rax; push %%rcx; pushfq;"
                     "mov %%cs, %%eax; push %%rax; lea 1f(%%rip), %%rax; push %%rax; iretq; 1:"
                     :
                     :
                     : "rax", "rcx", "memory");
}

void l1_prepare(const char *call)
{
    for (unsigned i = 0; i < 256; i++) {
        memcpy(l2_handlers + 4 * i, call, 3);
        make_gate(&l2_idt[2 * i], l2_handlers + 4 * i, CODE64, 0, GATE_INTERRUPT);
    }
    trap_handlers[TIMER_VECTOR] = on_timer;
    trap_handlers[IPI_VECTOR] = on_ipi;
    trap_handlers[VECTOR_NMI] = on_nmi;
}

u64 *identity_tables(u64 bits, u64 leaf)
{
    u64 *root = pages(6);

    root[0] = (u64)(root + PDPT) | bits;
    for (unsigned i = 0; i < 4; i++)
        root[PDPT + i] = (u64)(root + DIRECTORIES + 512 * i) | bits;
    for (u64 i = 0; i < 2048; i++)
        root[DIRECTORIES + i] = i * SIZE_2M | BIT(7) | leaf;
    return root;
}

u64 *tables_with_page(const u64 *root, u64 gpa, u64 bits, u64 leaf, u64 **page)
{
    u64 *t = pages(5); // PML4, PDPT, directory, table, data

    t[0] = (u64)(t + 512) | bits;
    memcpy(t + 512, root + PDPT, PAGE_SIZE);
    t[512 + gpa / SIZE_1G] = (u64)(t + 1024) | bits;
    memcpy(t + 1024, root + DIRECTORIES + 512 * (gpa / SIZE_1G), PAGE_SIZE);
    t[1024 + gpa / SIZE_2M % 512] = (u64)(t + 1536) | bits;
    t[1536] = (u64)(t + 2048) | leaf;
    *page = t + 2048;
    return t;
}
