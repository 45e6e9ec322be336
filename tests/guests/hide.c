// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Features that the configuration hides (tests.cfg names them): the CPUID bit is clear, the MSR
// raises #GP, and so does the bit of CR4; what is not hidden stays.

#include "guest.h"

static void read_msr(void *msr)
{
    (void)msr_read((u32)(u64)msr);
}

static void set_cr4(void *bit)
{
    write_cr4(read_cr4() | (u64)bit);
}

static void set_x2apic(void *unused)
{
    (void)unused;
    msr_write(MSR_APIC_BASE, msr_read(MSR_APIC_BASE) | APIC_BASE_X2APIC);
}

static void set_all_components(void *unused)
{
    (void)unused;
    xsetbv(0, XCR0_X87 | XCR0_SSE | XCR0_AVX);
}

static void execute_rdtscp(void *unused)
{
    (void)unused;
    __asm__ volatile("rdtscp" : : : "rax", "rcx", "rdx");
}

static void execute_invpcid(void *unused)
{
    u64 descriptor[2] = {0, 0};

    (void)unused;
    __asm__ volatile("invpcid %0, %1" : : "m"(descriptor), "r"(2ull) : "memory");
}

static const struct {
    const char *name;
    u32 leaf, ecx, ebx, edx; // the bits
    u64 msr, cr4;            // 0: none
} hidden[] = {
    {"x2APIC", 1, BIT(21), 0, 0, 0x802, 0},
    {"TSC-deadline", 1, BIT(24), 0, 0, MSR_TSC_DEADLINE, 0},
    {"TSC_ADJUST", 7, 0, BIT(1), 0, MSR_TSC_ADJUST, 0},
    {"UMIP", 7, BIT(2), 0, 0, 0, CR4_UMIP},
    {"SMEP", 7, 0, BIT(7), 0, 0, CR4_SMEP},
    {"FSGSBASE", 7, 0, BIT(0), 0, 0, CR4_FSGSBASE},
    {"PKU", 7, BIT(3), 0, 0, 0, CR4_PKE},
    {"PKS", 7, BIT(31), 0, 0, MSR_PKRS, CR4_PKS},
    {"RDTSCP", 0x80000001, 0, 0, BIT(27), 0, 0},
    {"INVPCID", 7, 0, BIT(10), 0, 0, 0},
};

static u64 vmcall_ipi(void)
{
    u64 result = 10; // PV IPI, to nobody

    if (cpuid(0, 0).ecx == 0x444d4163) // "cAMD"
        __asm__ volatile("vmmcall" : "+a"(result) : "b"(0), "c"(0), "d"(0), "S"(0) : "memory");
    else
        __asm__ volatile("vmcall" : "+a"(result) : "b"(0), "c"(0), "d"(0), "S"(0) : "memory");
    return result;
}

static void test_paravirt(void)
{
    static const u32 msrs[] = {0x11, 0x12, 0x4b564d00, 0x4b564d01, 0x4b564d03, 0x4b564d04};

    report(cpuid(0x40000000, 0).ebx == 0x7473654e && cpuid(0x40000001, 0).eax == 0,
           "KVM's leaves: Nestor's own stand first"); // "Nest"
    for (unsigned i = 0; i < ARRAY_SIZE(msrs); i++)
        report(try(read_msr, (void *)(u64)msrs[i]) == VECTOR_GP, "KVM's MSR %#x is #GP", msrs[i]);
    report((s64)vmcall_ipi() == -1000, "PV IPI is unknown");
}

void guest_main(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(hidden); i++) {
        struct cpuid_regs leaf = cpuid(hidden[i].leaf, 0);

        report(!(leaf.ecx & hidden[i].ecx) && !(leaf.ebx & hidden[i].ebx) &&
                   !(leaf.edx & hidden[i].edx),
               "%s is not in CPUID", hidden[i].name);
        if (hidden[i].msr)
            report(try(read_msr, (void *)hidden[i].msr) == VECTOR_GP, "%s: MSR %#llx is #GP",
                   hidden[i].name, (unsigned long long)hidden[i].msr);
        if (hidden[i].cr4)
            report(try(set_cr4, (void *)hidden[i].cr4) == VECTOR_GP, "%s: its bit in CR4 is #GP",
                   hidden[i].name);
    }
    apic_enable();
    apic_write(0x320, BIT(18) | BIT(16) | 0x40); // the timer's
    report(apic_read(0x320) == (BIT(16) | 0x40), "TSC-deadline: its bit in the LVT stays 0");
    report(try(set_x2apic, NULL) == VECTOR_GP, "x2APIC: IA32_APIC_BASE's bit is #GP");
    // QEMU's SVM does not intercept it.
    report_cpu(MACHINE_QEMU, try(execute_rdtscp, NULL) == VECTOR_UD, "RDTSCP is #UD");
    report(try(execute_invpcid, NULL) == VECTOR_UD, "INVPCID is #UD");
    report(cpuid(1, 0).ecx & BIT(26), "XSAVE is not hidden");
    report(!(cpuid(0xd, 0).eax & XCR0_AVX) && !(cpuid(1, 0).ecx & BIT(28)), "AVX is");
    set_cr4((void *)CR4_OSXSAVE);
    // QEMU's SVM does not intercept XSETBV.
    report_cpu(MACHINE_QEMU, try(set_all_components, NULL) == VECTOR_GP,
               "XCR0's bit for AVX is #GP");
    report(try(read_msr, (void *)MSR_EFER) == NO_TRAP, "other MSRs are there");
    test_paravirt();
}
