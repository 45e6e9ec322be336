// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Random numbers from a seed, and the numbers of a command line, for the guests that throw them at
// their machine.

#pragma once

#include <nestor/types.h>

void random_seed(u64 seed);
u64 random_u64(void);
u32 below(u32 limit);
// Few bits set, few clear, small, or anything.
u64 random_value(void);
// The digits behind `word` on the command line.
u64 number(const char *word, u64 otherwise);
