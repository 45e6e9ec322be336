// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Moves between vector registers behind the forced-emulation prefix (UD2 and "kvm"), which a guest
// with the test device has: SDM vol. 2 MOVAPS, MOVDQU, MOVDQA, and what VEX forms do to the upper half;
// and single steps of branches (SDM vol. 3 "Single-Stepping on Branches", APM vol. 2, 13.1.4) and of
// SYSCALL, whose trap is by the new TF as debug.c has it of the CPU's.

#include "guest.h"

#define FORCED ".byte 0x0f, 0x0b, 0x6b, 0x76, 0x6d\n"

static u64 from[4] ALIGNED(32) = {0x1111, 0x2222, 0x3333, 0x4444};
static u64 to[4] ALIGNED(32);

static bool is(u64 a, u64 b, u64 c, u64 d)
{
    return to[0] == a && to[1] == b && to[2] == c && to[3] == d;
}

static void test_sse(void)
{
    __asm__ volatile("movaps %1, %%xmm9\n" FORCED "movaps %%xmm9, %%xmm2\n"
                     "movaps %%xmm2, %0"
                     : "=m"(to)
                     : "m"(from));
    report(to[0] == 0x1111 && to[1] == 0x2222, "MOVAPS XMM2, XMM9");
    __asm__ volatile("pxor %%xmm10, %%xmm10\n" FORCED
                     ".byte 0xf3, 0x41, 0x0f, 0x7f, 0xc2\n" // MOVDQU XMM10, XMM0: the store's form
                     "movaps %1, %%xmm0\n" FORCED ".byte 0xf3, 0x41, 0x0f, 0x7f, 0xc2\n"
                     "movaps %%xmm10, %0"
                     : "=m"(to)
                     : "m"(from));
    report(to[0] == 0x1111 && to[1] == 0x2222, "MOVDQU XMM10, XMM0 by opcode 7F");
}

static void test_avx(void)
{
    __asm__ volatile("vmovdqa %1, %%ymm0\n" FORCED "vmovdqa %%ymm0, %%ymm15\n"
                     "vmovdqa %%ymm15, %0"
                     : "=m"(to)
                     : "m"(from));
    report(is(0x1111, 0x2222, 0x3333, 0x4444), "VMOVDQA YMM15, YMM0");
    __asm__ volatile(FORCED "vmovdqa %%xmm0, %%xmm15\n"
                            "vmovdqa %%ymm15, %0"
                     : "=m"(to));
    report(is(0x1111, 0x2222, 0, 0), "VMOVDQA XMM15, XMM0 zeroes the upper half");
}

// --- DEBUGCTL.BTF ---

static volatile u32 traps;
static u64 trap_rip, trap_dr6;

static void on_debug(struct trap *trap)
{
    traps++;
    trap_rip = trap->rip;
    trap_dr6 = read_dr6();
    write_dr6(DR6_FIXED);
    trap->rflags &= ~RFLAGS_TF;
}

// The last one is taken, to where it would have gone anyway.
extern char btf_jump[], btf_next[], btf_jcc[], btf_behind[];
__asm__("btf_jump: pushfq; orl $0x100, (%rsp); popfq\n" FORCED "nop\n" FORCED
        "jmp btf_next; nop; btf_next: nop; ret\n"
        "btf_jcc: pushfq; orl $0x101, (%rsp); popfq\n" FORCED "jnc btf_behind\n" FORCED
        "jc btf_behind; btf_behind: nop; ret");

static void set_debugctl(void *value)
{
    msr_write(MSR_DEBUGCTL, *(u64 *)value);
}

static void test_branches(void)
{
    u64 btf = DEBUGCTL_BTF;

    if (try(set_debugctl, &btf) != NO_TRAP || msr_read(MSR_DEBUGCTL) != DEBUGCTL_BTF) {
        report_skip("no BTF");
        return;
    }
    trap_handlers[VECTOR_DB] = on_debug;
    write_dr6(DR6_FIXED);
    ((void (*)(void))(void *)btf_jump)();
    report(traps == 1 && trap_rip == (u64)btf_next && trap_dr6 == (DR6_FIXED | DR6_BS),
           "BTF: %u traps, behind the jump's %lld, DR6 %#llx", traps,
           (long long)(trap_rip - (u64)btf_next), (unsigned long long)trap_dr6);
    report(msr_read(MSR_DEBUGCTL) == 0, "which clears BTF");
    traps = 0;
    set_debugctl(&btf);
    ((void (*)(void))(void *)btf_jcc)();
    report(traps == 1 && trap_rip == (u64)btf_behind,
           "BTF: %u traps by a jump to the next instruction", traps);
    set_debugctl(&(u64){0});
    trap_handlers[VECTOR_DB] = NULL;
}

extern char tf_syscall[], tf_target[];
__asm__("tf_syscall: pushfq; orl $0x100, (%rsp); popfq\n" FORCED "syscall; nop\n"
        "tf_target: nop; ret");

static void step_over_syscall(u64 mask)
{
    traps = 0;
    msr_write(MSR_SFMASK, mask);
    __asm__ volatile("call *%0" : : "r"(tf_syscall) : "rcx", "r11", "memory", "cc");
}

static void test_syscall(void)
{
    msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_SCE);
    msr_write(MSR_STAR, (u64)CODE64 << 32);
    msr_write(MSR_LSTAR, (u64)tf_target);
    trap_handlers[VECTOR_DB] = on_debug;
    write_dr6(DR6_FIXED);
    step_over_syscall(0);
    report(traps == 1 && trap_rip == (u64)tf_target && trap_dr6 == (DR6_FIXED | DR6_BS),
           "SYSCALL with TF: %u traps, off by %lld", traps, (long long)(trap_rip - (u64)tf_target));
    step_over_syscall(RFLAGS_TF);
    report(traps == 0, "SYSCALL with TF in SFMASK: %u traps", traps);
    trap_handlers[VECTOR_DB] = NULL;
}

static void forced_avx(void *unused)
{
    (void)unused;
    __asm__ volatile(FORCED "vmovdqa %%ymm0, %%ymm15" : : : "memory");
}

static void forced_nop(void *unused)
{
    (void)unused;
    __asm__ volatile(FORCED "nop");
}

void guest_main(void)
{
    if (!has_test_device()) {
        report(try(forced_nop, NULL) == VECTOR_UD, "the prefix is UD2 without the test device");
        return;
    }
    test_sse();
    test_branches();
    test_syscall();
    if (!(cpuid(1, 0).ecx & BIT(28))) {
        report_skip("no AVX");
        return;
    }
    report(try(forced_avx, NULL) == VECTOR_UD, "VMOVDQA without CR4.OSXSAVE is #UD");
    write_cr4(read_cr4() | CR4_OSXSAVE);
    xsetbv(0, XCR0_X87 | XCR0_SSE | XCR0_AVX);
    test_avx();
}
