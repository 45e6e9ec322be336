// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Numbers that assembly shares with C; boot/main.c asserts that they are right.

#pragma once

// struct cpu
#define CPU_SELF 0
#define CPU_STACK_TOP 8
#define CPU_SCRATCH 16
#define CPU_CURRENT 32

// struct trampoline_args
#define TRAMPOLINE_CR3 0
#define TRAMPOLINE_CR4 8
#define TRAMPOLINE_GDTR 16
#define TRAMPOLINE_ENTRY32 24
#define TRAMPOLINE_ENTRY64 32

// Frame of core/idt.S
#define FRAME_VECTOR 120
#define FRAME_SIZE_BELOW_RIP 136
