// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the bench guest's files share.

#pragma once

#include <nestor/types.h>

// One row, if it is `there`.
void bench(const char *name, void (*row)(void), bool there);
// Measures the empty round, which is taken off the rows that follow: at each level anew.
void bench_empty(void);
void row_nothing(void), row_cpuid(void), row_pic_read(void), row_rdmsr(void);

// The rows of a guest hypervisor (nested.c).
void bench_nested(void);
