// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Code that one CPU writes over while another executes it: an instruction that exits turns into one
// that does not and back. What the CPU executes is one or the other; that a hypervisor finds the
// other one in memory when it looks is no end (SDM vol. 3 "Handling Self- and Cross-Modifying
// Code"). QEMU's TCG fetches byte by byte: the three differ in one byte, so that what it mixes is
// one of them. (With a NOP of two bytes, 66 90, it ran 66 a2 now and then, on the bare machine as
// well.)

#include "guest.h"

enum { CALLS = 300000, CPUID_BYTES = 0xa20f, BSWAP_BYTES = 0xcb0f, RDMSR_BYTES = 0x320f };

static volatile u16 *code; // aligned: written at once
static volatile bool done;
static volatile u64 writes;

static void rewrite(void *unused)
{
    static const u16 bytes[] = {BSWAP_BYTES, CPUID_BYTES, RDMSR_BYTES};

    (void)unused;
    for (unsigned i = 0; !done; i++) {
        *code = bytes[i % ARRAY_SIZE(bytes)];
        writes = writes + 1;
        for (volatile unsigned wait = i % 13; wait; wait = wait - 1)
            ;
    }
}

static void call_code(void)
{
    u32 eax = 0, ecx = 0x10; // the TSC, for RDMSR

    __asm__ volatile("call *%2" : "+a"(eax), "+c"(ecx) : "r"(code) : "rbx", "rdx", "memory", "cc");
}

void guest_main(void)
{
    code = pages(1);
    code[0] = BSWAP_BYTES;
    *(volatile u8 *)(code + 1) = 0xc3; // RET
    report(smp_start(2), "2 CPUs");
    if (cpus_online < 2)
        return;
    smp_call(1, rewrite, NULL);
    while (!writes)
        pause();
    for (unsigned i = 0; i < CALLS; i++)
        call_code();
    done = true;
    report(smp_wait(1) && writes > 2, "%u calls of code that was written over %llu times", CALLS,
           (unsigned long long)writes);
}
