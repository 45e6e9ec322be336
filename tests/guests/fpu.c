// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// x87, SSE and AVX state over exits of every common kind, XCR0, CR0.TS (SDM vol. 1 "Managing State
// Using the XSAVE Feature Set").

#include "guest.h"

static u8 wanted[16][32] ALIGNED(32), found[16][32] ALIGNED(32);
static bool avx;

#define EACH16(op)                                                                                 \
    op(0) op(1) op(2) op(3) op(4) op(5) op(6) op(7) op(8) op(9) op(10) op(11) op(12) op(13) op(14) \
        op(15)
#define LOAD_X(n)  "movups " #n "*32(%0), %%xmm" #n ";"
#define STORE_X(n) "movups %%xmm" #n ", " #n "*32(%0);"
#define LOAD_Y(n)  "vmovups " #n "*32(%0), %%ymm" #n ";"
#define STORE_Y(n) "vmovups %%ymm" #n ", " #n "*32(%0);"

static void load(void)
{
    if (avx)
        __asm__ volatile(EACH16(LOAD_Y) : : "r"(wanted) : "memory");
    else
        __asm__ volatile(EACH16(LOAD_X) : : "r"(wanted) : "memory");
}

static bool kept(void)
{
    memcpy(found, wanted, sizeof(found));
    if (avx)
        __asm__ volatile(EACH16(STORE_Y) : : "r"(found) : "memory");
    else
        __asm__ volatile(EACH16(STORE_X) : : "r"(found) : "memory");
    return memcmp(wanted, found, sizeof(found)) == 0;
}

static volatile u32 taken;

static void handler(struct trap *trap)
{
    (void)trap;
    taken++;
    apic_eoi();
}

static void do_cpuid(void)
{
    cpuid(0, 0);
}

static void do_io(void)
{
    in8(0x21);
    out8(0x80, 0);
}

static void do_msr(void)
{
    msr_write(MSR_PAT, msr_read(MSR_PAT));
}

static void do_mmio(void)
{
    apic_write(APIC_ICR2, apic_read(APIC_ICR2));
}

static void do_halt(void)
{
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    apic_write(APIC_LVT_TIMER, 0x51);
    apic_write(APIC_TIMER_INITIAL, 100000);
    __asm__ volatile("sti; hlt; cli");
}

static void do_string(void)
{
    u8 buffer[16];
    void *at = buffer;
    u64 count = 16;

    __asm__ volatile("rep insb" : "+D"(at), "+c"(count) : "d"(0x21) : "memory");
}

static void do_ipi(void)
{
    apic_icr(0, ICR_SELF | ICR_ASSERT | 0x51);
    sti();
    cli();
}

static const struct {
    const char *name;
    void (*fn)(void);
} exits[] = {
    {"CPUID", do_cpuid}, {"IN and OUT", do_io},   {"RDMSR and WRMSR", do_msr}, {"MMIO", do_mmio},
    {"HLT", do_halt},    {"REP INSB", do_string}, {"a self-IPI", do_ipi},
};

static void test_registers(const char *what)
{
    for (size_t i = 0; i < ARRAY_SIZE(exits); i++) {
        bool ok = true;

        for (unsigned round = 0; round < 20; round++) {
            for (unsigned n = 0; n < sizeof(wanted); n++)
                ((u8 *)wanted)[n] = (u8)(n * 13 + round * 5 + i);
            load();
            exits[i].fn();
            ok &= kept();
        }
        report(ok, "%s over %s", what, exits[i].name);
    }
}

static void test_x87(void)
{
    static u8 before[512] ALIGNED(16), after[512] ALIGNED(16); // AMD leaves some of it alone
    u32 mxcsr = 0x1f80 | 0x6000, mxcsr_after;

    __asm__ volatile("fninit; fldpi; fldl2e; fld1; fldz; ldmxcsr %1; fxsave64 %0"
                     : "=m"(before)
                     : "m"(mxcsr));
    for (size_t i = 0; i < ARRAY_SIZE(exits); i++)
        exits[i].fn();
    __asm__ volatile("fxsave64 %0; stmxcsr %1" : "=m"(after), "=m"(mxcsr_after));
    report(memcmp(before, after, 160) == 0, "x87 registers and control words over exits");
    report(mxcsr_after == mxcsr, "MXCSR over exits: %#x", mxcsr_after);
    mxcsr = 0x1f80;
    __asm__ volatile("fninit; ldmxcsr %0" : : "m"(mxcsr));
}

static void write_xcr0(void *value)
{
    xsetbv(0, (u64)value);
}

static void write_xcr1(void *value)
{
    xsetbv(1, (u64)value);
}

static void use_avx(void *unused)
{
    (void)unused;
    __asm__ volatile("vxorps %ymm0, %ymm0, %ymm0");
}

static void test_xcr0(void)
{
    u64 all = (u64)cpuid(0xd, 0).edx << 32 | cpuid(0xd, 0).eax;

    xsetbv(0, XCR0_X87 | XCR0_SSE);
    report(xgetbv(0) == (XCR0_X87 | XCR0_SSE), "XCR0 is kept");
    report(try(write_xcr0, (void *)XCR0_SSE) == VECTOR_GP, "XCR0 without x87: #GP");
    report(try(write_xcr0, (void *)(XCR0_X87 | XCR0_AVX)) == VECTOR_GP, "AVX without SSE: #GP");
    report(try(write_xcr0, (void *)(BIT(62) | 3)) == VECTOR_GP,
           "a bit that CPUID does not have: #GP");
    report(try(write_xcr1, (void *)1) == VECTOR_GP, "XCR1: #GP");
    report(try_user(write_xcr0, (void *)3) == VECTOR_GP, "XSETBV at CPL 3: #GP");
    report(xgetbv(0) == (XCR0_X87 | XCR0_SSE), "XCR0 is as before");
    if (!(all & XCR0_AVX)) {
        report_skip("no AVX");
        return;
    }
    report(try(use_avx, NULL) == VECTOR_UD, "AVX without its bit in XCR0: #UD");
    xsetbv(0, XCR0_X87 | XCR0_SSE | XCR0_AVX);
    report(try(use_avx, NULL) == NO_TRAP, "AVX with it");
    avx = true;
    test_registers("YMM");
}

static void use_sse(void *unused)
{
    (void)unused;
    __asm__ volatile("movaps %xmm0, %xmm0");
}

static void test_ts(void)
{
    load();
    write_cr0(read_cr0() | CR0_TS);
    cpuid(0, 0);
    report(read_cr0() & CR0_TS, "CR0.TS is kept over an exit");
    report(try(use_sse, NULL) == VECTOR_NM, "SSE with CR0.TS: #NM");
    do_io();
    __asm__ volatile("clts");
    report(!(read_cr0() & CR0_TS) && kept(), "after CLTS the registers are as they were");
}

void guest_main(void)
{
    trap_handlers[0x51] = handler;
    test_registers("XMM");
    test_x87();
    test_ts();
    if (!(cpuid(1, 0).ecx & BIT(26))) {
        report_skip("no XSAVE");
        return;
    }
    write_cr4(read_cr4() | CR4_OSXSAVE);
    test_xcr0();
}
