// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Process 1 of the Linux bench: says at which tick it runs and, on a counting Nestor, how many went
// where; and powers off. No libc: x86-64 Linux's system calls write (1) and reboot (169).

#include "count.h"

typedef unsigned long long u64;
typedef unsigned int u32;

enum { SYS_WRITE = 1, SYS_REBOOT = 169 };
enum { MAGIC1 = (int)0xfee1dead, MAGIC2 = 672274793, POWER_OFF = 0x4321fedc };

void _start(void);

static long syscall3(long number, long a, long b, long c)
{
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
}

static u64 rdtsc(void)
{
    u32 low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static u64 count(u32 number)
{
    u32 a = COUNT_LEAF, b, c = number, d;

    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return b == COUNT_SIGNATURE ? (u64)c << 32 | a : 0;
}

static void say(const char *name, u64 value)
{
    char text[64], *at = text + sizeof(text);
    const char *end = name;

    *--at = '\n';
    do
        *--at = (char)('0' + value % 10);
    while (value /= 10);
    *--at = ' ';
    while (*end)
        end++;
    while (end > name)
        *--at = *--end;
    syscall3(SYS_WRITE, 1, (long)at, text + sizeof(text) - at);
}

void _start(void)
{
    u64 tsc = rdtsc(), guest = count(COUNT_GUEST_TICKS), halted = count(COUNT_HALTED_TICKS),
        entries = count(0);

    say("INIT-TSC", tsc);
    say("INIT-GUEST", guest);
    say("INIT-HALTED", halted);
    say("INIT-ENTRIES", entries);
    syscall3(SYS_REBOOT, MAGIC1, MAGIC2, POWER_OFF);
    for (;;)
        ;
}
