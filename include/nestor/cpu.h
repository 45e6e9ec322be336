// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Physical CPUs: the per-CPU area, bringing CPUs up, interrupts that Nestor itself takes, and
// stopping. GS base points to the running CPU's struct cpu; the back ends restore it on every exit.

#pragma once

#include <nestor/spinlock.h>
#include <nestor/types.h>

struct vcpu;
struct timer;

enum { CPU_MAX = 1024 };

// Nestor's own interrupt vectors (all above the guest-visible ones in name only: the real LAPIC
// belongs to Nestor).
enum host_vector {
    HOST_VECTOR_COM1 = 0x40,   // the physical COM1 that carries the guest's console
    HOST_VECTOR_TIMER = 0xf0,  // this CPU's deadline (core/timer.c)
    HOST_VECTOR_KICK = 0xf1,   // look at your vCPU's requests; the handler itself does nothing
    HOST_VECTOR_CALL = 0xf2,   // run cpu->call (cpu_call)
    HOST_VECTOR_POSTED = 0xf3, // look at your vCPU's posted interrupts
    HOST_VECTOR_SPURIOUS = 0xff,
};

struct cpu {
    // Assembly knows these offsets (boot/offsets.h checks them).
    struct cpu *self;     // 0: for this_cpu()
    u64 stack_top;        // 8: this CPU's own stack
    u64 scratch[2];       // 16: for entry code
    struct vcpu *current; // 32: the vCPU whose state is in this CPU; written by this CPU only

    // Public: read by any CPU, written by this CPU or by the boot CPU before it starts.
    u32 id;      // 0 .. cpu_count - 1
    u32 apic_id; // x2APIC ID if the CPU has one
    u32 online;  // set with release order when the CPU is up
    // set before entry, cleared after exit, by this CPU; a kick needs an IPI only while it is set
    u32 in_guest;
    u32 idle; // set while halted in cpu_idle

    // Private to this CPU.
    struct timer *timers; // sorted by deadline, under timer_lock
    struct spinlock timer_lock;
    // the first one's deadline, ~0 = none: written under timer_lock, read by this CPU without
    u64 timer_first;
    u64 timer_armed; // the deadline that the hardware has, ~0 = none
    u32 nmi_pending; // an NMI came while Nestor ran; the run loop decides whose it is
    u32 irq_count;
    void *backend;  // the back end's per-CPU part (VMXON region, host save area, ...)
    hpa_t cr3;      // the address space that is loaded
    void *vm_space; // whose (struct host_space *), NULL for Nestor's own
    void *call_fn;  // cpu_call's mailbox, under cpu_call's lock
    void *call_arg;
    u32 call_done;
};

extern struct cpu *cpus[CPU_MAX];
extern u32 cpu_count; // CPUs online, ids are dense

static inline struct cpu *this_cpu(void)
{
    struct cpu *cpu;

    __asm__("mov %%gs:0, %0" : "=r"(cpu));
    return cpu;
}

// Starts every CPU in the MADT in parallel (INIT-SIPI-SIPI, SDM vol. 3 "MP initialization
// protocol"); those that do not answer are reported and left out. Boot CPU only, once. Each CPU
// that came up runs cpu_main_ap().
void cpu_start_all(void);
// Runs fn(arg) on `cpu` and waits for its end (also when it is in a guest: it is kicked). Not from
// interrupt handlers.
void cpu_call(struct cpu *cpu, void (*fn)(void *), void *arg);
// Runs the mailbox, if one is waiting. Called from the run loop and from idle.
void cpu_call_poll(void);
// Makes `cpu` leave its guest or its HLT soon: IPI HOST_VECTOR_KICK, nothing if it is neither in a
// guest nor idle. Any CPU.
void cpu_kick(struct cpu *cpu);
// Waits in HLT with interrupts open until any interrupt, unless *wake is already non-zero (checked
// with interrupts closed).
void cpu_idle(const u32 *wake);
// Handles one of Nestor's own interrupts, taken by the IDT or (VMX, acknowledge-interrupt-on-exit)
// by an exit, including EOI.
void irq_handle(u8 vector);

// Registers `fn` for a vector of Nestor's own; boot only.
void irq_register(u8 vector, void (*fn)(void));
