// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Interrupts and exceptions that Nestor itself takes (SDM vol. 3, "Interrupt and Exception
// Handling"): one IDT for all CPUs. An exception is a broken invariant, unless the exception table
// knows the instruction; an NMI is only counted, the run loop decides whose it is.

#include <arch/x86/desc.h>
#include <arch/x86/extable.h>
#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>

struct gate {
    u16 offset_low, selector;
    u8 ist, type;
    u16 offset_middle;
    u32 offset_high, reserved;
};

struct extable_entry {
    s32 insn, fixup; // each from its own address
};

#define GATE_INTERRUPT  0x8e // present, DPL 0, 64-bit interrupt gate
#define MC_STATUS(bank) (MSR_MC0_CTL + 4 * (bank) + 1)
#define MC_STATUS_VALID BIT(63)

extern const u8 trap_stubs[256][16];
extern const struct extable_entry extable_start[], extable_end[];

static struct gate idt[256];
static void (*irq_fns[256])(void);

void trap_handle(struct trap_frame *frame);

INIT_TEXT void idt_init(void)
{
    for (u32 i = 0; i < 256; i++) {
        u64 offset = (u64)trap_stubs[i];

        idt[i] = (struct gate){
            .offset_low = (u16)offset,
            .selector = GDT_CODE,
            .type = GATE_INTERRUPT,
            .offset_middle = (u16)(offset >> 16),
            .offset_high = (u32)(offset >> 32),
        };
    }
    idt[VECTOR_NMI].ist = IST_NMI;
    idt[VECTOR_DF].ist = IST_DF;
    idt[VECTOR_MC].ist = IST_MC;
}

void idt_load_cpu(void)
{
    struct table_pointer pointer = {sizeof(idt) - 1, (u64)idt};

    __asm__ volatile("lidt %0" : : "m"(pointer));
}

void irq_register(u8 vector, void (*fn)(void))
{
    irq_fns[vector] = fn;
}

void irq_handle(u8 vector)
{
    struct cpu *cpu = this_cpu();

    cpu->irq_count++;
    if (vector == HOST_VECTOR_TIMER)
        cpu->timer_armed = ~0ull; // it has fired: the hardware has none
    if (irq_fns[vector])
        irq_fns[vector]();
    if (vector != HOST_VECTOR_SPURIOUS)
        apic_eoi();
}

static bool fix_up(struct trap_frame *frame)
{
    for (const struct extable_entry *e = extable_start; e < extable_end; e++) {
        if ((u64)&e->insn + (u64)(s64)e->insn == frame->rip) {
            frame->rip = (u64)&e->fixup + (u64)(s64)e->fixup;
            return true;
        }
    }
    return false;
}

// The machine's own error: what the banks say, then the end.
static void machine_check(void)
{
    u64 banks = 0, status = 0;

    (void)msr_read_safe(MSR_MCG_CAP, &banks);
    for (u32 bank = 0; bank < (banks & 0xff); bank++)
        if (msr_read_safe(MC_STATUS(bank), &status) == 0 && (status & MC_STATUS_VALID))
            log_panic("machine check: IA32_MC%u_STATUS %016llx", bank, status);
    if (msr_read_safe(MSR_MCG_STATUS, &status) == 0)
        log_panic("machine check: IA32_MCG_STATUS %016llx", status);
}

void trap_handle(struct trap_frame *frame)
{
    if (frame->vector >= 32) {
        irq_handle((u8)frame->vector);
        return;
    }
    if (frame->vector == VECTOR_NMI) {
        if (__atomic_load_n(&panic_active, __ATOMIC_RELAXED))
            panic_stop();
        this_cpu()->nmi_pending++;
        return;
    }
    if (frame->vector == VECTOR_MC)
        machine_check();
    else if (frame->vector != VECTOR_DF && fix_up(frame))
        return;
    panic_trap(frame);
}

int msr_read_safe(u32 msr, u64 *value)
{
    u32 lo, hi;

    __asm__ goto volatile("1: rdmsr\n" EXTABLE("1b", "%l[fault]")
                          : "=a"(lo), "=d"(hi)
                          : "c"(msr)
                          : "memory"
                          : fault);
    *value = (u64)hi << 32 | lo;
    return 0;
fault:
    return -E_FAULT;
}

int msr_write_safe(u32 msr, u64 value)
{
    __asm__ goto volatile("1: wrmsr\n" EXTABLE("1b", "%l[fault]")
                          :
                          : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32))
                          : "memory"
                          : fault);
    return 0;
fault:
    return -E_FAULT;
}
