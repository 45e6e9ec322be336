// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The end of Nestor over an invariant of its own that does not hold: one CPU stops the others by
// NMI and says what it knows.

#include <arch/x86/insn.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/page.h>
#include <nestor/string.h>
#include <nestor/time.h>

enum { BACKTRACE_MAX = 24, PANIC_STATUS = 125 };

u32 panic_active;
void (*panic_hook)(void);

_Noreturn void panic_stop(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

// The first to come goes on; a panic within the panic, or on another CPU, stops here.
static void begin(void)
{
    if (__atomic_exchange_n(&panic_active, 1, __ATOMIC_SEQ_CST))
        panic_stop();
    for (u32 i = 0; i < cpu_count; i++)
        if (cpus[i] != this_cpu() && __atomic_load_n(&cpus[i]->online, __ATOMIC_ACQUIRE))
            apic_send_nmi(cpus[i]->apic_id);
    if (cpu_count > 1)
        time_delay_us(1000); // they may be in the middle of a line
}

static void print_address(const char *what, u64 address)
{
    u64 offset;
    const char *name = symbol_find(address, &offset);

    if (name)
        log_panic("%s %016llx %s+0x%llx", what, address, name, offset);
    else
        log_panic("%s %016llx", what, address);
}

// Frame pointers lead upwards within one stack; what does not look so ends the walk.
static void print_backtrace(u64 rbp)
{
    u64 limit = rbp + 4 * PAGE_SIZE;
    const u64 *frame;

    for (u32 i = 0; i < BACKTRACE_MAX && rbp >= PHYSMAP_BASE && (rbp & 7) == 0; i++) {
        frame = (const u64 *)rbp;
        print_address("  from", frame[1]);
        if (frame[0] <= rbp || frame[0] >= limit)
            break;
        rbp = frame[0];
    }
}

static void print_frame(const struct trap_frame *f)
{
    print_address("RIP", f->rip);
    log_panic("CS %04llx SS %04llx RFLAGS %08llx RSP %016llx", f->cs, f->ss, f->rflags, f->rsp);
    log_panic("RAX %016llx RBX %016llx RCX %016llx RDX %016llx", f->rax, f->rbx, f->rcx, f->rdx);
    log_panic("RSI %016llx RDI %016llx RBP %016llx R8  %016llx", f->rsi, f->rdi, f->rbp, f->r8);
    log_panic("R9  %016llx R10 %016llx R11 %016llx R12 %016llx", f->r9, f->r10, f->r11, f->r12);
    log_panic("R13 %016llx R14 %016llx R15 %016llx", f->r13, f->r14, f->r15);
}

static _Noreturn void finish(u64 rbp)
{
    log_panic("CR0 %08llx CR2 %016llx CR3 %016llx CR4 %08llx", read_cr0(), read_cr2(), read_cr3(),
              read_cr4());
    print_backtrace(rbp);
    if (panic_hook)
        panic_hook();
    log_panic("PANIC: every CPU is stopped");
    serial_flush();
    power_exit_emulator(PANIC_STATUS);
    panic_stop();
}

_Noreturn void panic(const char *fmt, ...)
{
    char text[200];
    va_list args;

    begin();
    va_start(args, fmt);
    fmt_vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    log_panic("PANIC: %s", text);
    finish((u64)__builtin_frame_address(0));
}

static const char *const exception_names[32] = {
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9",   "#TS",
    "#NP", "#SS", "#GP", "#PF", "15",  "#MF", "#AC", "#MC", "#XM", "#VE", "#CP",
    "22",  "23",  "24",  "25",  "26",  "27",  "#HV", "#VC", "#SX", "31",
};

_Noreturn void panic_trap(const struct trap_frame *frame)
{
    begin();
    log_panic("PANIC: exception %s, error code 0x%llx", exception_names[frame->vector & 31],
              frame->error);
    print_frame(frame);
    finish(frame->rbp);
}

// What libfdt's stack protector calls.
_Noreturn void __stack_chk_fail(void);
_Noreturn void __stack_chk_fail(void)
{
    panic("the stack is overwritten");
}
