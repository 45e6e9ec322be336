// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small L1 on SVM: one VMCB, an L2 that shares L1's paging and GDT and has an IDT of its own,
// behind whose gates there is a VMMCALL each; a timer, an IPI and an NMI for L1 itself.

#pragma once

#include "guest.h"
#include <arch/x86/svm.h>

enum { TIMER_VECTOR = 0x50, IPI_VECTOR = 0x51, L2_STACK_SIZE = 4096 };
#define UNMAPPED    (1ull << 40)
#define BAD_ADDRESS 0x8000000000000000ull
#define LLU(x)      ((unsigned long long)(x))

// L2's code: a label and its instructions.
#define L2(name, code)  \
    extern char name[]; \
    __asm__(".pushsection .text; " #name ": " code "; .popsection")

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 };
extern u64 l2_regs[16]; // all but RAX and RSP; L1's RAX after the exit
extern struct vmcb *vmcb;
extern u8 *iopm, *msrpm;
extern u64 svm_l2_idt[512];
extern u8 svm_l2_stack[L2_STACK_SIZE];
extern char l2_gates[]; // 4 bytes for each vector
extern volatile u32 timer_count, ipi_count, nmi_count;

void svm_run(u64 regs[16], u64 vmcb); // VMRUN; GIF is 0 afterwards

static inline void stgi(void)
{
    __asm__ volatile("stgi" : : : "memory");
}

static inline void clgi(void)
{
    __asm__ volatile("clgi" : : : "memory");
}

void l2_prepare(void);
// SVM on, with what it needs; false: there is none.
bool svm_enable(void);
void set_segment(struct vmcb_segment *s, u16 selector, u16 attrib);
void l2_init(const void *code); // a 64-bit L2 at CPL 0
u64 l2_run(void);               // EXITCODE; GIF is 1
u64 l2_run_code(const void *code);
// A report with what the VMCB says of the exit.
void report_vmexit(bool ok, const char *what);
bool l2_at(const void *code);
// Whether L2 ended in its own handler of `vector`, with what the CPU pushed.
bool l2_in_handler(unsigned vector);
u64 l2_pushed(unsigned i);
void start_timer(u32 ticks);
void self_ipi(void);
void self_nmi(void);
