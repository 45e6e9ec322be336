// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Breakpoints on what Nestor does in the guest's place: data breakpoints on a device's memory, I/O
// breakpoints, each repetition of a string instruction, and general detect. A data or I/O
// breakpoint is a trap: RIP behind the instruction, its bits in DR6. Intel SDM volume 3 sections
// 18.2 and 18.3.1.

#include "guest.h"

enum { DEVICE = 0xff000000, PORT = 0xe0 };
#define ENABLE(n)       (1ull << (2 * (n) + 1))
#define SET(n, rw, len) ((u64)((len) << 2 | (rw)) << (16 + 4 * (n)))
enum {
    ON_WRITE = 1,
    ON_PORT = 2,
    ON_ACCESS = 3,
    BYTES_1 = 0,
    BYTES_2 = 1,
    BYTES_8 = 2,
    BYTES_4 = 3
};

static unsigned traps;
static u64 trap_dr6, trap_rip, trap_rcx;

static void on_debug(struct trap *trap)
{
    traps++;
    trap_dr6 |= read_dr6() & 0xe00f;
    trap_rip = trap->rip;
    trap_rcx = trap->rcx;
    write_dr6(DR6_FIXED);
}

static void arm(u64 dr7, u64 dr0, u64 dr1)
{
    traps = 0;
    trap_dr6 = 0;
    write_dr6(DR6_FIXED);
    write_dr0(dr0);
    write_dr1(dr1);
    write_dr7(dr7 | DR7_FIXED);
}

// Runs `insn` with `dr7` in force; the value is the address behind it.
#define GUARDED(dr7, dr0, dr1, insn)                                                     \
    ({                                                                                   \
        u64 after_, rax_ = 0x55, rcx_ = 4, rdi_ = DEVICE + 0x100, rsi_ = DEVICE + 0x200; \
                                                                                         \
        arm(dr7, dr0, dr1);                                                              \
        __asm__ volatile(insn "; 1: lea 1b(%%rip), %0"                                   \
                         : "=&r"(after_), "+a"(rax_), "+c"(rcx_), "+D"(rdi_), "+S"(rsi_) \
                         :                                                               \
                         : "rdx", "memory", "cc");                                       \
        write_dr7(DR7_FIXED);                                                            \
        after_;                                                                          \
    })

static void expect_trap(u64 after, u64 dr6, const char *what)
{
    report(traps == 1 && trap_dr6 == dr6 && trap_rip == after, "%s: %u traps, DR6 %#llx", what,
           traps, (unsigned long long)trap_dr6);
}

static void test_device_memory(void)
{
    u64 at = DEVICE + 0x100, write = ENABLE(0) | SET(0, ON_WRITE, BYTES_4);
    u64 access = ENABLE(0) | SET(0, ON_ACCESS, BYTES_4), after;

    after = GUARDED(write, at, 0, "mov %%eax, (%%rdi)");
    expect_trap(after, 1, "MOV to a watched word of a device");
    after = GUARDED(access, at, 0, "mov 2(%%rdi), %%al");
    expect_trap(after, 1, "MOV from the middle of one");
    GUARDED(write, at, 0, "mov (%%rdi), %%eax");
    report(traps == 0, "reading where writes are watched: %u traps", traps);
    GUARDED(access, at, 0, "mov %%eax, 4(%%rdi)");
    report(traps == 0, "writing beside it: %u traps", traps);
    GUARDED(SET(0, ON_WRITE, BYTES_4), at, 0, "mov %%eax, (%%rdi)");
    report(traps == 0, "with no enable bit: %u traps", traps);
    after = GUARDED(write, at, 0, "lock addl $1, (%%rdi)");
    expect_trap(after, 1, "LOCK ADD");
    after = GUARDED(access, at, 0, "cmpl $1, (%%rdi)");
    expect_trap(after, 1, "CMP");
    after = GUARDED(access | ENABLE(1) | SET(1, ON_ACCESS, BYTES_1), at, DEVICE + 0x200, "movsl");
    report_known(MACHINE_QEMU, traps == 1 && trap_dr6 == 3 && trap_rip == after,
                 "MOVSL between two of them: %u traps, DR6 %#llx", traps,
                 (unsigned long long)trap_dr6);
    after = GUARDED(access, at, 0, "push (%%rdi); pop %%rdx; nop");
    report(traps == 1 && trap_dr6 == 1, "PUSH from one: %u traps", traps);
}

// After the repetition that touched it, with the rest to come.
static void test_strings(void)
{
    u64 write = ENABLE(0) | SET(0, ON_WRITE, BYTES_1);

    GUARDED(write, DEVICE + 0x101, 0, "rep stosb");
    report(traps == 1 && trap_dr6 == 1 && trap_rcx == 2, "REP STOSB: %u traps, RCX %llu", traps,
           (unsigned long long)trap_rcx);
}

static void test_ports(void)
{
    u64 port = ENABLE(0) | SET(0, ON_PORT, BYTES_1), after;

    write_cr4(read_cr4() | CR4_DE);
    after = GUARDED(port, PORT, 0, "out %%al, $0xe0");
    expect_trap(after, 1, "OUT to a watched port");
    after = GUARDED(port, PORT, 0, "in $0xe0, %%al");
    expect_trap(after, 1, "IN");
    after = GUARDED(port, PORT, 0, "mov $0xe0, %%edx; outsb");
    expect_trap(after, 1, "OUTSB");
    after = GUARDED(port, PORT, 0, "mov $0xe0, %%edx; insb");
    expect_trap(after, 1, "INSB");
    GUARDED(port, PORT + 4, 0, "out %%al, $0xe0");
    report(traps == 0, "another port: %u traps", traps);
    write_cr4(read_cr4() & ~CR4_DE);
}

static void read_dr(void *unused)
{
    (void)unused;
    (void)read_dr0();
}

static void test_general_detect(void)
{
    int vector;

    trap_handlers[VECTOR_DB] = NULL;
    write_dr6(DR6_FIXED);
    write_dr7(DR7_FIXED | DR7_GD);
    vector = try(read_dr, NULL);
    report_known(MACHINE_QEMU, vector == VECTOR_DB && read_dr6() & DR6_BD,
                 "MOV from DR0 with DR7.GD: #DB, DR6 %#llx", (unsigned long long)read_dr6());
    report_known(MACHINE_QEMU, !(read_dr7() & DR7_GD), "which clears GD");
    write_dr6(DR6_FIXED);
    write_dr7(DR7_FIXED);
}

void guest_main(void)
{
    if (!has_test_device()) {
        report_skip("no test device: no memory behind MMIO and no port to watch");
        return;
    }
    write_dr0(0x123456789abcdef0);
    report(read_dr0() == 0x123456789abcdef0, "DR0 holds what is written");
    test_general_detect();
    trap_handlers[VECTOR_DB] = on_debug;
    test_device_memory();
    test_strings();
    test_ports();
}
