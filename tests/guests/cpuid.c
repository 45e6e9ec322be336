// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// CPUID: what it says agrees with itself and with the machine (SDM vol. 2 "CPUID"; APM vol. 3
// appendix E).

#include "guest.h"

static bool is_intel(void)
{
    return cpuid(0, 0).ebx == 0x756e6547;
}

static bool same(struct cpuid_regs a, struct cpuid_regs b)
{
    return memcmp(&a, &b, sizeof(a)) == 0;
}

static void test_ranges(void)
{
    u32 basic = cpuid(0, 0).eax, extended = cpuid(0x80000000, 0).eax;
    struct cpuid_regs none = {0}, beyond = cpuid(basic + 1, 0);

    report(basic >= 7 && basic < 0x100, "highest basic leaf %#x", basic);
    report(extended >= 0x80000008 && extended < 0x80000100, "highest extended leaf %#x", extended);
    // Intel: the data of the highest basic leaf; AMD: zeros
    if (is_intel())
        report(same(beyond, cpuid(basic, 0)),
               "a leaf out of range gives the highest basic one's data");
    else
        report_known(MACHINE_QEMU, same(beyond, none), "a leaf out of range gives zeros");
}

static void test_upper_halves(void)
{
    u64 a = 0xdeadbeef00000000, b = ~0ull, c = 0xffffffff00000000, d = ~0ull;

    __asm__ volatile("cpuid" : "+a"(a), "+b"(b), "+c"(c), "+d"(d));
    report(!((a | b | c | d) >> 32), "RAX, RBX, RCX, RDX have their upper halves zero");
    report(same((struct cpuid_regs){(u32)a, (u32)b, (u32)c, (u32)d}, cpuid(0, 0)),
           "only EAX and ECX are looked at");
}

static void lock_cpuid(void *unused)
{
    (void)unused;
    __asm__ volatile(".byte 0xf0; cpuid" : : : "rax", "rbx", "rcx", "rdx");
}

static void test_prefixes(void)
{
    u64 a = 0, b, c = 0, d;

    __asm__ volatile(".byte 0x66, 0x67, 0xf3, 0x48; cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    report(b == cpuid(0, 0).ebx, "CPUID with prefixes 66, 67, F3 and REX.W");
    report_cpu(MACHINE_QEMU, try(lock_cpuid, NULL) == VECTOR_UD, "CPUID with LOCK is #UD");
}

static void test_features(void)
{
    struct cpuid_regs one = cpuid(1, 0);

    report(one.ebx >> 24 == apic_id(), "initial APIC ID %u is the APIC's", one.ebx >> 24);
    report(one.edx & BIT(9), "APIC bit is set while the APIC is enabled");
    report(!(one.ecx & BIT(27)), "OSXSAVE is clear with CR4.OSXSAVE");
    if (!(one.ecx & BIT(26))) {
        report_skip("no XSAVE");
        return;
    }
    write_cr4(read_cr4() | CR4_OSXSAVE);
    report(cpuid(1, 0).ecx & BIT(27), "OSXSAVE is set with CR4.OSXSAVE");
}

// Leaf 0Dh: EBX is the size for what XCR0 has on, ECX for all that it may have.
static void test_xsave(void)
{
    struct cpuid_regs xsave;
    u32 size = 512 + 64;

    if (!(read_cr4() & CR4_OSXSAVE))
        return;
    xsetbv(0, XCR0_X87);
    report(cpuid(0xd, 0).ebx == 576, "XSAVE area with x87 alone: %u", cpuid(0xd, 0).ebx);
    xsetbv(0, XCR0_X87 | XCR0_SSE);
    report(cpuid(0xd, 0).ebx == 576, "XSAVE area with SSE: %u", cpuid(0xd, 0).ebx);
    if (cpuid(0xd, 0).eax & XCR0_AVX) {
        xsetbv(0, XCR0_X87 | XCR0_SSE | XCR0_AVX);
        report(cpuid(0xd, 0).ebx == cpuid(0xd, 2).eax + cpuid(0xd, 2).ebx,
               "XSAVE area with AVX: %u", cpuid(0xd, 0).ebx);
    }
    xsave = cpuid(0xd, 0);
    for (u32 i = 2; i < 63; i++)
        if (((u64)xsave.edx << 32 | xsave.eax) & BIT(i))
            size = MAX(size, cpuid(0xd, i).eax + cpuid(0xd, i).ebx);
    report(size == xsave.ecx, "largest XSAVE area %u, by its parts %u", xsave.ecx, size);
    xsetbv(0, XCR0_X87 | XCR0_SSE);
}

static void test_misc(void)
{
    u32 physical = cpuid(0x80000008, 0).eax & 0xff, linear = cpuid(0x80000008, 0).eax >> 8 & 0xff;
    bool la57 = cpuid(7, 0).ecx & BIT(16);

    report(physical >= 36 && physical <= 52, "%u physical address bits", physical);
    report(linear == (la57 ? 57 : 48), "%u linear address bits", linear);
    report(cpuid(1, 0).edx & BIT(25), "SSE, which 64-bit mode has always");
    report(cpuid(0x80000001, 0).edx & BIT(29), "long mode");
    if (under_hypervisor() && bare_machine() == MACHINE_OTHER)
        report(cpuid(0x40000000, 0).eax >= 0x40000000 && cpuid(0x40000000, 0).eax < 0x40001000,
               "hypervisor leaves up to %#x", cpuid(0x40000000, 0).eax);
}

void guest_main(void)
{
    test_ranges();
    test_upper_halves();
    test_prefixes();
    test_features();
    test_xsave();
    test_misc();
}
