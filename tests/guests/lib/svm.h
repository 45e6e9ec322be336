// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small hypervisor for guests that use SVM (lib/svm.c).

#pragma once

#include <arch/x86/svm.h>

#include "l1.h"

#define VMMCALL "\x0f\x01\xd9"
enum { NPT_ALL = 7 }; // P, W and U

extern struct vmcb *vmcb;
extern u8 *iopm, *msrpm;

void svm_run(u64 address); // VMRUN of a VMCB, with l2_registers; GIF is 0 afterwards

static inline void stgi(void)
{
    __asm__ volatile("stgi" : : : "memory");
}

static inline void clgi(void)
{
    __asm__ volatile("clgi" : : : "memory");
}

// What precedes the first VMRUN, but for EFER and VM_HSAVE_PA: the VMCB, permission maps that
// permit all, L2's IDT.
void svm_prepare(void);
// The same and EFER.SVME and VM_HSAVE_PA; false: there is no SVM.
bool svm_start(void);
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
