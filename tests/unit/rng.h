// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Random numbers for the unit tests (xorshift64*), the same in each run.

#pragma once

#include <nestor/types.h>

static u64 rng_state = 0x9e3779b97f4a7c15ull;

static u64 random_u64(void)
{
    rng_state ^= rng_state << 13;
    rng_state ^= rng_state >> 7;
    rng_state ^= rng_state << 17;
    return rng_state * 0x2545f4914f6cdd1dull;
}

static inline u64 below(u64 limit)
{
    return (random_u64() >> 11) % limit;
}
