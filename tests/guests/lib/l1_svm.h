// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A minimal hypervisor for small guests, SVM: a VMCB whose L2 shares L1's paging and GDT.

#pragma once

#include <arch/x86/svm.h>

#include "guest.h"

extern struct vmcb *l1_vmcb;
extern u64 l1_registers_svm[16]; // L2's in the CPU's order; RAX and RSP are in the VMCB

// EFER.SVME, VM_HSAVE_PA and a VMCB; false: no SVM.
bool l1_svm_start(void);
// The whole VMCB, for an L2 that runs `code` until it halts.
void l1_svm_init(const void *code);
// VMRUN with L2's registers in and out, and nothing else: GIF is 0 afterwards.
void l1_svm_switch(u64 *registers, u64 vmcb);
// VMRUN of the VMCB at that address, with GIF clear and RFLAGS.IF set around it, and all of L1's
// state that it leaves to VMLOAD put back.
void l1_svm_enter(u64 vmcb);

static inline void stgi(void)
{
    __asm__ volatile("stgi" : : : "memory");
}

static inline void clgi(void)
{
    __asm__ volatile("clgi" : : : "memory");
}
