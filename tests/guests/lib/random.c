// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The small guests' random numbers (xorshift64*).

#include "random.h"
#include "guest.h"

static u64 random_state;

void random_seed(u64 seed)
{
    random_state = seed * 0x9e3779b97f4a7c15ull | 1;
}

u64 random_u64(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1dull;
}

u32 below(u32 limit)
{
    return (u32)((random_u64() >> 32) * limit >> 32);
}

u64 random_value(void)
{
    u64 value = random_u64();

    switch (below(6)) {
    case 0:
        return value & 0xff;
    case 1:
        return 1ull << below(64);
    case 2:
        return ~(1ull << below(64));
    case 3:
        return below(2) ? 0 : ~0ull;
    case 4:
        return value & random_u64() & random_u64();
    default:
        return value;
    }
}

u64 number(const char *word, u64 otherwise)
{
    const char *at = command_line;
    u64 value = 0;

    while (*at && memcmp(at, word, strlen(word)) != 0)
        at++;
    if (!*at)
        return otherwise;
    for (at += strlen(word); *at >= '0' && *at <= '9'; at++)
        value = value * 10 + (u64)(*at - '0');
    return value;
}
