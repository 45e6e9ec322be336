// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The library of the small guests. A guest is one C file with guest_main(), which runs in 64-bit
// mode on CPU 0 with interrupts off, the first 4 GiB mapped to themselves (2 MiB pages, for CPL 3
// too), an IDT whose gates lead to C functions, and COM1. It reports what it finds and returns.
// What a guest expects comes from the manuals; where an emulator without Nestor is known to differ,
// that one check says so by report_known().

#pragma once

#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/string.h>
#include <nestor/types.h>

// --- the GDT (start.S) ---
enum {
    CODE64 = 0x08,
    DATA = 0x10,
    CODE32 = 0x18,
    CODE16 = 0x20,
    DATA16 = 0x28,
    USER_DATA = 0x30 | 3,
    USER_CODE64 = 0x38 | 3,
    USER_CODE32 = 0x40 | 3,
    TSS = 0x48,   // two entries
    SPARE = 0x58, // three entries for the guest's own use
};
extern u64 gdt[];

struct PACKED tss64 {
    u32 reserved0;
    u64 rsp[3];
    u64 reserved1;
    u64 ist[7];
    u64 reserved2;
    u16 reserved3;
    u16 io_map; // beyond the limit: none
    u8 bitmap[8192 + 1];
};
extern struct tss64 tss;  // CPU 0's
void tss_load(u32 limit); // with that limit

// --- reports ---
void guest_main(void);
void print(const char *fmt, ...) PRINTF_LIKE(1, 2);
void report(bool ok, const char *fmt, ...) PRINTF_LIKE(2, 3);
// Checks that are known to fail on an emulator: shown, not counted. report_known: on that machine
// without Nestor; report_cpu: also under Nestor there, because the emulator's CPU itself is wrong.
enum machine { MACHINE_OTHER, MACHINE_QEMU, MACHINE_BOCHS, MACHINE_NONE };
void report_known(enum machine machine, bool ok, const char *fmt, ...) PRINTF_LIKE(3, 4);
void report_cpu(enum machine machine, bool ok, const char *fmt, ...) PRINTF_LIKE(3, 4);
void report_skip(const char *fmt, ...) PRINTF_LIKE(1, 2);
// Ends the machine with what was reported, or with a code.
_Noreturn void finish(void);
_Noreturn void finish_with(u32 code);
void print_summary(void);
enum machine bare_machine(void); // MACHINE_OTHER under Nestor
enum machine cpu_machine(void);  // whose CPU this is, at the bottom
bool under_hypervisor(void);
bool has_test_device(void);    // by its latch at port 0xE0
extern char command_line[256]; // without the program's name
bool option(const char *word); // of the command line

// --- exceptions and interrupts ---
struct trap {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    u64 vector, error; // error ~0: the vector has none
    u64 rip, cs, rflags, rsp, ss;
};

enum { NO_ERROR_CODE = -1, NO_TRAP = -1, USER_RETURN = 0x80 };

typedef void (*trap_fn)(struct trap *trap);
extern trap_fn trap_handlers[256];
extern struct trap last_trap; // of the last try()
extern u64 last_cr2;
extern u64 idt[512];
void make_gate(u64 gate[2], const void *handler, unsigned selector, unsigned ist,
               unsigned attributes);
void set_gate(unsigned vector, const void *handler, unsigned selector, unsigned ist,
              unsigned attributes); // in idt
enum { GATE_INTERRUPT = 0x8e, GATE_TRAP = 0x8f, GATE_USER = 0xee };
extern char trap_stubs[]; // 16 bytes each

// Calls fn and returns NO_TRAP, or the vector of the exception that ended it. CPU 0 only.
int try(void (*fn)(void *), void *arg);
// The same at CPL 3; USER_RETURN if nothing happened.
int try_user(void (*fn)(void *), void *arg);

static inline void cli(void)
{
    __asm__ volatile("cli" : : : "memory");
}
static inline void sti(void)
{
    __asm__ volatile("sti; nop" : : : "memory");
}
static inline u64 rdtsc(void)
{
    u32 lo, hi;

    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
    return (u64)hi << 32 | lo;
}
static inline u64 read_rflags(void)
{
    u64 v;

    __asm__ volatile("pushfq; pop %0" : "=r"(v));
    return v;
}
static inline void pause(void)
{
    __asm__ volatile("pause" : : : "memory");
}

// The RTC's registers and memory.
static inline u8 cmos_read(u8 index)
{
    out8(0x70, index);
    return in8(0x71);
}
static inline void cmos_write(u8 index, u8 value)
{
    out8(0x70, index);
    out8(0x71, value);
}

// Time by the PIT's channel 2, without interrupts; at most 50 ms at a time.
void delay_us(u32 us);
// Waits until *word >= value, about `ms` at most.
bool wait_for(volatile u32 *word, u32 value, u32 ms);

// --- local APIC ---
enum {
    APIC_ID = 0x20,
    APIC_VERSION = 0x30,
    APIC_TPR = 0x80,
    APIC_PPR = 0xa0,
    APIC_EOI = 0xb0,
    APIC_LDR = 0xd0,
    APIC_DFR = 0xe0,
    APIC_SVR = 0xf0,
    APIC_ISR = 0x100,
    APIC_TMR = 0x180,
    APIC_IRR = 0x200,
    APIC_ESR = 0x280,
    APIC_ICR = 0x300,
    APIC_ICR2 = 0x310,
    APIC_LVT_TIMER = 0x320,
    APIC_LVT_LINT0 = 0x350,
    APIC_LVT_LINT1 = 0x360,
    APIC_LVT_ERROR = 0x370,
    APIC_TIMER_INITIAL = 0x380,
    APIC_TIMER_CURRENT = 0x390,
    APIC_TIMER_DIVIDE = 0x3e0,
    APIC_BASE = 0xfee00000,
    APIC_SPURIOUS = 0xff, // vector
};
enum {
    ICR_FIXED = 0,
    ICR_NMI = 4 << 8,
    ICR_INIT = 5 << 8,
    ICR_SIPI = 6 << 8,
    ICR_LOGICAL = 1 << 11,
    ICR_PENDING = 1 << 12,
    ICR_ASSERT = 1 << 14,
    ICR_LEVEL = 1 << 15,
    ICR_SELF = 1 << 18,
    ICR_ALL = 2 << 18,
    ICR_OTHERS = 3 << 18,
    LVT_MASKED = 1 << 16,
};
extern bool x2apic;        // whether apic_read and apic_write use MSRs
void apic_enable(void);    // xAPIC, SVR 0x1ff
bool apic_enable_x2(void); // false: the CPU has none
u32 apic_read(u32 reg);
void apic_write(u32 reg, u32 value);
void apic_icr(u32 dest, u32 low); // waits until it is sent
void apic_eoi(void);
u32 apic_id(void);
void pic_mask_all(void);

// --- more CPUs ---
enum { CPU_MAX = 16 };
extern volatile u32 cpus_online; // CPU 0 counts
extern u32 cpu_apic_ids[CPU_MAX];
// Starts all others by INIT and SIPI; whether `count` CPUs are there in the end.
bool smp_start(u32 count);
// Lets a CPU call fn(arg), with interrupts off; smp_wait waits until it is done, and says whether
// that was within 5 s.
void smp_call(u32 cpu, void (*fn)(void *), void *arg);
bool smp_wait(u32 cpu);
u32 this_cpu_number(void);

// --- memory ---
extern u64 pml4[512];
extern u64 directories[2048]; // of 2 MiB pages
// A 4 KiB page (no more) mapped at a 1 TiB, the page behind it missing. One at a time; NULL takes
// it away.
u8 *map_half(void *page);
// Zeroed pages from the guest's end on.
void *pages(unsigned count);
void ioapic_write(u32 reg, u32 value);
u32 ioapic_read(u32 reg);
