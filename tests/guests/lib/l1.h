// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the small hypervisors of guests that nest share, on VMX (vmx.h) and on SVM (svm.h): an L2 of
// a few instructions, which shares L1's paging and GDT and has an IDT of its own, behind whose
// gates there is a call of L1 each (VMCALL, VMMCALL); nested paging that is the identity; and a
// timer, an IPI and an NMI for L1 itself.

#pragma once

#include "guest.h"

enum { TIMER_VECTOR = 0x50, IPI_VECTOR = 0x51, L2_STACK = 4096 };
#define UNMAPPED    (1ull << 40)
#define BAD_ADDRESS 0x8000000000000000ull // not canonical
#define LLU(x)      ((unsigned long long)(x))

// L2's code: a label and its instructions.
#define L2(name, code)  \
    extern char name[]; \
    __asm__(".pushsection .text; " #name ": " code "; .popsection")

// L2's registers in the CPU's order. RSP is in the VMCS or VMCB; with SVM RAX is in the VMCB, and
// l2_registers[RAX] gets L1's after an exit.
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15, REGISTERS };
extern u64 l2_registers[REGISTERS];
extern u64 l2_idt[512];
extern u8 l2_stack[L2_STACK];
extern char l2_handlers[256 * 4]; // behind the gates, 4 bytes apart

// L2's IDT with `call`, an instruction of 3 bytes, behind each gate; and L1's handlers of the
// timer, the IPI and the NMI.
void l1_prepare(const char *call);

// Nested paging of the first 4 GiB by 2 MiB pages: the root's table, behind it the one below,
// behind that the four directories. `bits`: of entries that lead to a table; `leaf`: of the others.
enum { PDPT = 512, DIRECTORIES = 1024 }; // where they are, in entries
u64 *identity_tables(u64 bits, u64 leaf);
// Another root, with tables of its own on the way to `gpa` (of 2 MiB), where there is but one page,
// which this returns in *page; all else is as with the root given.
u64 *tables_with_page(const u64 *root, u64 gpa, u64 bits, u64 leaf, u64 **page);

extern volatile u32 timer_count, ipi_count, nmi_count; // what L1's handlers saw
void start_timer(u32 ticks);
void self_ipi(void);
void self_nmi(void);
void iret(void); // to what follows: ends blocking by NMI
