// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// RDMSR and WRMSR: values kept, halves of registers, and #GP where the manuals say so (SDM vol. 4;
// vol. 2 "RDMSR", "WRMSR").

#include "guest.h"

struct access {
    u32 msr;
    u64 value;
};

static void do_read(void *arg)
{
    struct access *a = arg;

    a->value = msr_read(a->msr);
}

static void do_write(void *arg)
{
    const struct access *a = arg;

    msr_write(a->msr, a->value);
}

static bool read_faults(u32 msr)
{
    struct access a = {.msr = msr};

    return try(do_read, &a) == VECTOR_GP && last_trap.error == 0;
}

static bool write_faults(u32 msr, u64 value)
{
    struct access a = {msr, value};

    return try(do_write, &a) == VECTOR_GP && last_trap.error == 0;
}

// Plain registers that keep what is written.
static const struct kept {
    const char *name;
    u32 msr;
    u64 value;
    bool canonical; // only such values
} kept[] = {
    {"IA32_SYSENTER_CS", MSR_SYSENTER_CS, 0x1238, false},
    {"IA32_SYSENTER_ESP", MSR_SYSENTER_ESP, 0xffff800012345678, false},
    {"IA32_SYSENTER_EIP", MSR_SYSENTER_EIP, 0x7fff12345678, false},
    {"IA32_STAR", MSR_STAR, 0x0123456789abcdef, false},
    {"IA32_LSTAR", MSR_LSTAR, 0xffff812345678000, true},
    {"IA32_CSTAR", MSR_CSTAR, 0x7fffffffffff, false},
    {"IA32_FMASK", MSR_SFMASK, 0x47700, false},
    {"IA32_FS_BASE", MSR_FS_BASE, 0x123456789abc, true},
    {"IA32_GS_BASE", MSR_GS_BASE, 0xffff8000deadbeef, true},
    {"IA32_KERNEL_GS_BASE", MSR_KERNEL_GS_BASE, 0xffffffff12345678, true},
    {"IA32_PAT", MSR_PAT, 0x0007040100050406, false},
};

static void test_kept(void)
{
    for (size_t i = 0; i < ARRAY_SIZE(kept); i++) {
        u64 before = msr_read(kept[i].msr);

        msr_write(kept[i].msr, kept[i].value);
        cpuid(0, 0); // an exit in between
        report(msr_read(kept[i].msr) == kept[i].value, "%s keeps %#llx", kept[i].name,
               (unsigned long long)kept[i].value);
        msr_write(kept[i].msr, before);
        if (kept[i].canonical)
            report_known(MACHINE_QEMU, write_faults(kept[i].msr, 0x1234567890abcdef),
                         "%s takes no non-canonical address", kept[i].name);
        msr_write(kept[i].msr, before);
    }
}

static void test_registers(void)
{
    u64 a = ~0ull, c = 0xdeadbeef00000000 | MSR_PAT, d = ~0ull, pat = msr_read(MSR_PAT);

    __asm__ volatile("rdmsr" : "+a"(a), "+d"(d) : "c"(c));
    report(a == (u32)pat && d == pat >> 32, "RDMSR clears the upper halves and looks only at ECX");
    a = 0xabcd000000000000 | (u32)pat;
    d = 0x1234000000000000 | pat >> 32;
    __asm__ volatile("wrmsr" : : "a"(a), "d"(d), "c"(c));
    report(msr_read(MSR_PAT) == pat, "WRMSR looks only at EAX, ECX, EDX");
}

static void user_rdmsr(void *unused)
{
    (void)unused;
    msr_read(MSR_PAT);
}

static void user_wrmsr(void *unused)
{
    (void)unused;
    msr_write(MSR_PAT, 0);
}

// MSRs that exist nowhere.
static const u32 unknown[] = {0x2f, 0x12345678, 0x40001234, 0xbfffffff, 0xc0007777, 0xffffffff};

static void test_faults(void)
{
    u64 efer = msr_read(MSR_EFER);

    // Bochs is run with ignore_bad_msrs; QEMU knows no unknown MSRs
    for (size_t i = 0; i < ARRAY_SIZE(unknown); i++) {
        bool read = read_faults(unknown[i]), write = write_faults(unknown[i], 0);

        report_known(bare_machine(), read, "RDMSR %#x is #GP(0)", unknown[i]);
        report_known(bare_machine(), write, "WRMSR %#x is #GP(0)", unknown[i]);
    }
    report_cpu(MACHINE_QEMU, write_faults(MSR_PAT, 0x0007040600070402), "PAT type 2 is #GP(0)");
    report_cpu(MACHINE_QEMU, write_faults(MSR_PAT, 0x0807040600070406), "PAT type 8 is #GP(0)");
    report_cpu(MACHINE_QEMU, write_faults(MSR_EFER, efer | BIT(9)), "EFER bit 9 is #GP(0)");
    report_cpu(MACHINE_QEMU, write_faults(MSR_EFER, efer & ~EFER_LME),
               "EFER.LME cleared with paging is #GP(0)");
    report_cpu(MACHINE_QEMU, msr_read(MSR_EFER) == efer, "EFER is as before");
    msr_write(MSR_EFER, efer);
    report(try_user(user_rdmsr, NULL) == VECTOR_GP, "RDMSR at CPL 3 is #GP");
    report(try_user(user_wrmsr, NULL) == VECTOR_GP, "WRMSR at CPL 3 is #GP");
}

static void test_efer(void)
{
    u64 efer = msr_read(MSR_EFER);

    report((efer & (EFER_LME | EFER_LMA)) == (EFER_LME | EFER_LMA), "EFER has LME and LMA");
    report(!(efer & EFER_SVME), "EFER.SVME is clear");
    msr_write(MSR_EFER, efer | EFER_SCE | EFER_NX);
    report(msr_read(MSR_EFER) == (efer | EFER_SCE | EFER_NX), "EFER keeps SCE and NXE");
    msr_write(MSR_EFER, efer);
    report(msr_read(MSR_EFER) == efer, "and lets them go");
}

static void test_tsc(void)
{
    u64 a = rdtsc(), b = msr_read(MSR_TSC), c = rdtsc(), jump;
    u32 aux = 0;

    report_known(MACHINE_QEMU, a <= b && b <= c, "IA32_TIME_STAMP_COUNTER is what RDTSC reads");
    msr_write(MSR_TSC, c + (1ull << 40));
    jump = rdtsc() - c;
    report_known(MACHINE_QEMU, jump >= 1ull << 40 && jump < 1ull << 41,
                 "the TSC can be written: it went on by %#llx", (unsigned long long)jump);
    if (cpuid(7, 0).ebx & BIT(1)) {
        u64 adjust = msr_read(MSR_TSC_ADJUST);

        a = rdtsc();
        msr_write(MSR_TSC_ADJUST, adjust + (1ull << 42));
        jump = rdtsc() - a;
        report(jump >= 1ull << 42 && jump < 1ull << 43, "IA32_TSC_ADJUST moves it");
        msr_write(MSR_TSC, rdtsc() + (1ull << 41));
        jump = msr_read(MSR_TSC_ADJUST) - adjust - (1ull << 42);
        report_known(MACHINE_BOCHS, jump > 1ull << 40 && jump < 1ull << 42, "and follows it");
    } else {
        report_skip("no IA32_TSC_ADJUST");
    }
    if (cpuid(0x80000001, 0).edx & BIT(27)) {
        msr_write(MSR_TSC_AUX, 0x12345);
        cpuid(0, 0);
        __asm__ volatile("rdtscp" : "=c"(aux) : : "eax", "edx");
        report(aux == 0x12345, "RDTSCP gives IA32_TSC_AUX");
    } else {
        report_skip("no RDTSCP");
    }
}

static void test_apic_base(void)
{
    u64 base = msr_read(MSR_APIC_BASE);

    report((base & (BITS(35, 12) | APIC_BASE_ENABLE)) == (APIC_BASE | APIC_BASE_ENABLE),
           "IA32_APIC_BASE %#llx", (unsigned long long)base);
    report(base & APIC_BASE_BSP, "this is the boot CPU");
}

// A base register reaches what is addressed by it, also over exits.
static void test_bases(void)
{
    static u32 word;
    u32 seen;

    msr_write(MSR_FS_BASE, (u64)&word - 64);
    word = 0x600df00d;
    cpuid(0, 0);
    __asm__ volatile("mov %%fs:64, %0" : "=r"(seen));
    report(seen == 0x600df00d, "FS base addresses memory");
    msr_write(MSR_GS_BASE, 0);
    msr_write(MSR_KERNEL_GS_BASE, (u64)&word);
    __asm__ volatile("swapgs; mov %%gs:0, %0; swapgs" : "=r"(seen));
    report(seen == 0x600df00d && msr_read(MSR_GS_BASE) == 0,
           "SWAPGS swaps with IA32_KERNEL_GS_BASE");
}

enum cpu_vendor { ANY, INTEL, AMD };

static bool vendor_is(enum cpu_vendor vendor)
{
    bool intel = cpuid(0, 0).ecx == 0x6c65746e; // "ntel"

    return vendor == ANY || (vendor == INTEL) == intel;
}

// What a register takes and reads back, and what it refuses. On bare emulators only what they do
// right is counted: QEMU has no reserved bits, Bochs no machine-check banks to write to.
static const struct rule {
    const char *name;
    u32 msr;
    enum cpu_vendor vendor;
    u64 takes, refuses; // ~0: nothing is refused
} rules[] = {
    {"IA32_MISC_ENABLE", MSR_MISC_ENABLE, INTEL, 0x400c51809, BIT(1)},
    {"IA32_MCG_STATUS", MSR_MCG_STATUS, ANY, 5, BIT(3)},
    {"IA32_MCG_CTL", MSR_MCG_CTL, ANY, ~0ull, 1},
    {"IA32_MC0_CTL", MSR_MC0_CTL, ANY, ~0ull, 2},
    {"IA32_MC0_STATUS", MSR_MC0_CTL + 1, ANY, 0, 1},
    {"IA32_MC0_ADDR", MSR_MC0_CTL + 2, ANY, 0x1234567890, ~0ull},
    {"IA32_MTRR_DEF_TYPE", MSR_MTRR_DEF_TYPE, ANY, 0xc00, 0xc02},
    {"IA32_MTRR_DEF_TYPE", MSR_MTRR_DEF_TYPE, ANY, 0x806, BIT(12)},
    {"IA32_MTRR_PHYSBASE1", MSR_MTRR_PHYSBASE0 + 2, ANY, 0x80000006, 0x80000007},
    {"IA32_MTRR_PHYSBASE1", MSR_MTRR_PHYSBASE0 + 2, ANY, 0x80000001, BIT(63)},
    {"IA32_MTRR_PHYSMASK1", MSR_MTRR_PHYSBASE0 + 3, ANY, 0xf0000000, BIT(10)},
    {"IA32_MTRR_FIX64K_00000", MSR_MTRR_FIX64K, ANY, 0x0605040100060606, 0x0600000000000002},
    {"IA32_MTRR_FIX4K_F8000", MSR_MTRR_FIX4K_C0000 + 7, ANY, 0x0505050505050505, 7},
    {"HWCR", MSR_HWCR, AMD, BIT(24) | BIT(18) | BIT(6), BIT(63)},
    {"HWCR", MSR_HWCR, AMD, BIT(24), BIT(5)},
    {"DE_CFG", MSR_DE_CFG, AMD, BIT(1), BIT(40)},
    {"SYSCFG", MSR_SYSCFG, AMD, BIT(20), BIT(40)},
    {"TOP_MEM", MSR_TOP_MEM, AMD, 0x4000000, 0x4000001},
    {"TOP_MEM2", MSR_TOP_MEM2, AMD, 0x140000000, BIT(60)},
    {"IORRBase0", 0xc0010016, AMD, 0x80000018, BIT(0)},
    {"IORRMask0", 0xc0010017, AMD, 0x80000800, BIT(10)},
};

static void test_rules(void)
{
    for (const struct rule *r = rules; r < rules + ARRAY_SIZE(rules); r++) {
        struct access a = {r->msr, r->takes};
        u64 before;

        if (!vendor_is(r->vendor))
            continue;
        report_known(bare_machine(), !read_faults(r->msr), "%s is there", r->name);
        if (read_faults(r->msr))
            continue;
        before = msr_read(r->msr);
        report_known(bare_machine(), try(do_write, &a) == NO_TRAP && msr_read(r->msr) == r->takes,
                     "%s takes %#llx", r->name, (unsigned long long)r->takes);
        if (~r->refuses) {
            bool refused = write_faults(r->msr, r->refuses);

            report_known(bare_machine(), refused && msr_read(r->msr) == r->takes,
                         "%s refuses %#llx and stays", r->name, (unsigned long long)r->refuses);
        }
        a.value = before;
        try(do_write, &a);
    }
}

// Read-only ones, those of the other vendor, and those of features that CPUID does not offer.
static void test_absent(void)
{
    static const struct {
        const char *name;
        u32 msr;
        bool read; // can be
        enum cpu_vendor vendor;
    } absent[] = {
        {"IA32_MTRRCAP", MSR_MTRRCAP, true, ANY},
        {"IA32_MCG_CAP", MSR_MCG_CAP, true, ANY},
        {"PLATFORM_INFO", MSR_PLATFORM_INFO, true, INTEL},
        {"SMI_COUNT", 0x34, true, INTEL},
        {"RAPL_POWER_UNIT", 0x606, true, INTEL},
        {"IA32_BIOS_UPDT_TRIG", 0x79, false, AMD},
        {"IA32_MCG_EXT_CTL", 0x4d0, false, ANY},
        {"IA32_MISC_ENABLE", MSR_MISC_ENABLE, false, AMD},
        {"HWCR", MSR_HWCR, false, INTEL},
        {"DE_CFG", MSR_DE_CFG, false, INTEL},
        {"VIRT_SPEC_CTRL", 0xc001011f, false, ANY}, // CPUID does not offer it
        {"IA32_PERFEVTSEL0", 0x186, false, ANY},
        {"IA32_PERF_GLOBAL_CTRL", 0x38f, false, ANY},
        {"a machine-check bank beyond the last", 0, false, ANY},
    };

    for (size_t i = 0; i < ARRAY_SIZE(absent); i++) {
        u32 msr =
            absent[i].msr ? absent[i].msr : MSR_MC0_CTL + 4 * (u32)(msr_read(MSR_MCG_CAP) & 0xff);

        if (!vendor_is(absent[i].vendor))
            continue;
        report_known(bare_machine(), read_faults(msr) != absent[i].read, "%s can%s be read",
                     absent[i].name, absent[i].read ? "" : "not");
        report_known(bare_machine(), write_faults(msr, 0), "%s can't be written", absent[i].name);
    }
}

// Intel's revision is loaded by CPUID; AMD's is always there.
static void test_microcode(void)
{
    u64 value;

    if (read_faults(MSR_UCODE_REV)) {
        report_skip("the CPU has no microcode revision");
        return;
    }
    cpuid(1, 0);
    value = msr_read(MSR_UCODE_REV);
    msr_write(MSR_UCODE_REV, 0);
    if (vendor_is(INTEL))
        report_known(bare_machine(), msr_read(MSR_UCODE_REV) == 0, "IA32_BIOS_SIGN_ID keeps 0");
    cpuid(1, 0);
    report(msr_read(MSR_UCODE_REV) == value, "until CPUID: %#llx", (unsigned long long)value);
}

// AMD: a STATUS register takes any value while HWCR.McStatusWrEn is set.
static void test_status_write(void)
{
    u64 hwcr;

    if (!vendor_is(AMD))
        return;
    hwcr = msr_read(MSR_HWCR);
    msr_write(MSR_HWCR, hwcr | BIT(18));
    report_known(bare_machine(), !write_faults(MSR_MC0_CTL + 1, BIT(61) | 5),
                 "McStatusWrEn lets STATUS be written");
    report_known(bare_machine(), msr_read(MSR_MC0_CTL + 1) == (BIT(61) | 5), "and it stays");
    msr_write(MSR_MC0_CTL + 1, 0);
    msr_write(MSR_HWCR, hwcr);
}

// IA32_MISC_ENABLE: XD bit disable (34) takes the bit out of CPUID and EFER, limit CPUID maxval
// (22) leaves no basic leaf above 2.
static void set_nx(void *unused)
{
    (void)unused;
    msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_NX);
}

static void test_misc_enable(void)
{
    u64 before, efer = msr_read(MSR_EFER);

    if (!vendor_is(INTEL) || bare_machine() != MACHINE_OTHER) { // Bochs has no such MSR
        report_skip("IA32_MISC_ENABLE and CPUID");
        return;
    }
    before = msr_read(MSR_MISC_ENABLE);
    msr_write(MSR_EFER, efer & ~(u64)EFER_NX);
    msr_write(MSR_MISC_ENABLE, before | MISC_XD | MISC_CPUID_LIMIT);
    report(cpuid(0, 0).eax == 2, "limit CPUID maxval: %u", cpuid(0, 0).eax);
    report(!(cpuid(0x80000001, 0).edx & BIT(20)), "XD bit disable: not in CPUID");
    report(try(set_nx, NULL) == VECTOR_GP, "XD bit disable: EFER.NXE is #GP");
    msr_write(MSR_MISC_ENABLE, before);
    report(cpuid(0, 0).eax > 2 && (cpuid(0x80000001, 0).edx & BIT(20)), "both back");
    report(try(set_nx, NULL) == NO_TRAP, "EFER.NXE again");
    msr_write(MSR_EFER, efer);
}

// SYSENTER's addresses by WRMSR that the CPU executes and by one that is emulated: Intel's must be
// canonical, AMD's need not (APM vol. 2 "SYSENTER and SYSEXIT MSRs"; only 32 bits of them count).
static void forced_wrmsr(void *access)
{
    const struct access *a = access;

    __asm__ volatile(".byte 0x0f, 0x0b, 0x6b, 0x76, 0x6d; wrmsr"
                     :
                     : "c"(a->msr), "a"((u32)a->value), "d"((u32)(a->value >> 32)));
}

static void test_sysenter(void)
{
    struct access a = {MSR_SYSENTER_EIP, BIT(63) | 0x1234};
    int wanted = vendor_is(INTEL) ? VECTOR_GP : NO_TRAP;

    report(try(do_write, &a) == wanted, "IA32_SYSENTER_EIP, not canonical");
    if (bare_machine() == MACHINE_OTHER && has_test_device())
        report(try(forced_wrmsr, &a) == wanted, "the same, emulated");
    msr_write(MSR_SYSENTER_EIP, 0);
}

void guest_main(void)
{
    test_misc_enable();
    test_sysenter();
    test_kept();
    test_rules();
    test_absent();
    test_microcode();
    test_status_write();
    test_registers();
    test_efer();
    test_faults();
    test_tsc();
    test_apic_base();
    test_bases();
}
