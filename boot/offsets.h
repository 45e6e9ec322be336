// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Numbers that assembly shares with C; core/smp.c asserts that they are right.

#pragma once

// struct cpu
#define CPU_SELF      0
#define CPU_STACK_TOP 8
#define CPU_SCRATCH   16
#define CPU_CURRENT   32

// struct trampoline_args
#define TRAMPOLINE_CR3       0
#define TRAMPOLINE_CR4       4
#define TRAMPOLINE_GDT_LIMIT 10
#define TRAMPOLINE_GDT       12
#define TRAMPOLINE_JUMP32    16
#define TRAMPOLINE_JUMP64    24
