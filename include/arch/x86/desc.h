// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Nestor's own segments: the same selectors on every CPU (core/smp.c builds each one's GDT). Also
// read by assembly.

#pragma once

#define GDT_CODE   0x08 // 64-bit, ring 0
#define GDT_DATA   0x10
#define GDT_TSS    0x18 // 16 bytes
#define GDT_SIZE   0x28
#define GDT_CODE32 0x18 // in place of the TSS, only in the AP trampoline's

#define GDT_CODE_DESCRIPTOR   0x00af9b000000ffff
#define GDT_DATA_DESCRIPTOR   0x00cf93000000ffff
#define GDT_CODE32_DESCRIPTOR 0x00cf9b000000ffff

// Interrupt stacks of the TSS: these vectors may come at any instruction.
#define IST_NMI 1
#define IST_DF  2
#define IST_MC  3
