// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What an instruction that a hypervisor emulates reads from RAM and writes to it is one access, as
// the CPU's own are (SDM vol. 3 "Guaranteed Atomic Operations": aligned words, doublewords and
// quadwords): another CPU sees all of a value or nothing of it. MOVS between RAM and the test
// device's memory, in both directions, while the other CPU looks at the RAM or changes it.

#include "guest.h"

enum { DEVICE = 0xff000000, ZEROS = DEVICE + 0x100, ONES = DEVICE + 0x200, COPIES = 3000 };

static u64 *shared; // aligned
static volatile bool done;
static volatile u64 turns, torn;

static u64 mask(unsigned size)
{
    return size == 8 ? ~0ull : (1ull << 8 * size) - 1;
}

static u64 look(const volatile void *at, unsigned size)
{
    return size == 2   ? *(const volatile u16 *)at
           : size == 4 ? *(const volatile u32 *)at
                       : *(const volatile u64 *)at;
}

static void put(volatile void *at, unsigned size, u64 value)
{
    if (size == 2)
        *(volatile u16 *)at = (u16)value;
    else if (size == 4)
        *(volatile u32 *)at = (u32)value;
    else
        *(volatile u64 *)at = value;
}

static bool is_torn(u64 value, unsigned size)
{
    return value && value != mask(size);
}

static void watch(void *size)
{
    while (!done) {
        torn = torn + is_torn(look(shared, (unsigned)(u64)size), (unsigned)(u64)size);
        turns = turns + 1;
    }
}

static void change(void *size)
{
    while (!done) {
        put(shared, (unsigned)(u64)size, turns & 1 ? ~0ull : 0);
        turns = turns + 1;
    }
}

static void copy(const void *from, void *to, unsigned size)
{
    if (size == 2)
        __asm__ volatile("movsw" : "+S"(from), "+D"(to) : : "memory");
    else if (size == 4)
        __asm__ volatile("movsl" : "+S"(from), "+D"(to) : : "memory");
    else
        __asm__ volatile("movsq" : "+S"(from), "+D"(to) : : "memory");
}

static void begin(void (*other)(void *), unsigned size)
{
    done = false;
    turns = torn = 0;
    *shared = 0;
    smp_call(1, other, (void *)(u64)size);
    while (!turns)
        pause();
}

static void end(const char *what, unsigned size)
{
    done = true;
    report(smp_wait(1) && !torn, "%s RAM, %u bytes: %llu of %llu torn", what, size,
           (unsigned long long)torn, (unsigned long long)turns);
}

static void test(unsigned size)
{
    put((void *)ZEROS, size, 0);
    put((void *)ONES, size, ~0ull);
    begin(watch, size);
    for (unsigned i = 0; i < COPIES; i++)
        copy(i & 1 ? (void *)ONES : (void *)ZEROS, shared, size);
    end("MOVS from a device to", size);
    begin(change, size);
    for (unsigned i = 0; i < COPIES; i++) {
        copy(shared, (void *)ONES, size);
        torn = torn + is_torn(look((void *)ONES, size), size);
    }
    end("MOVS to a device from", size);
}

void guest_main(void)
{
    shared = pages(1);
    report(smp_start(2), "2 CPUs");
    if (cpus_online < 2)
        return;
    for (unsigned size = 2; size <= 8; size *= 2)
        test(size);
}
