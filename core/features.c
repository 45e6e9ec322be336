// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What Nestor needs of every CPU and what it merely notes, by the manuals' names (SDM vol. 2
// "CPUID", APM vol. 3 appendix E); that all CPUs are alike, also in their MTRRs and PAT; and the
// choice of the back end.

#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/string.h>
#include <nestor/vcpu.h>

enum reg { EAX, EBX, ECX, EDX };
enum { STATUS_MISSING = 126, VALUE_MAX = 96 };

struct feature {
    u32 leaf;
    u8 reg, bit;
    const char *name;
};

static const struct feature needed[] = {
    {0x1, EDX, 4, "CPUID.01H:EDX.TSC[bit 4]"},
    {0x1, EDX, 5, "CPUID.01H:EDX.MSR[bit 5]"},
    {0x1, EDX, 7, "CPUID.01H:EDX.MCE[bit 7]"},
    {0x1, EDX, 8, "CPUID.01H:EDX.CX8[bit 8]"},
    {0x1, EDX, 9, "CPUID.01H:EDX.APIC[bit 9]"},
    {0x1, EDX, 12, "CPUID.01H:EDX.MTRR[bit 12]"},
    {0x1, EDX, 13, "CPUID.01H:EDX.PGE[bit 13]"},
    {0x1, EDX, 16, "CPUID.01H:EDX.PAT[bit 16]"},
    {0x1, EDX, 24, "CPUID.01H:EDX.FXSR[bit 24]"},
    {0x1, EDX, 26, "CPUID.01H:EDX.SSE2[bit 26]"},
    {0x80000001, EDX, 11, "CPUID.80000001H:EDX.SYSCALL[bit 11]"},
    {0x80000001, EDX, 20, "CPUID.80000001H:EDX.NX[bit 20], execute disable"},
    {0x80000001, EDX, 29, "CPUID.80000001H:EDX.LM[bit 29], Intel 64"},
};

static const struct feature noted[] = {
    {0x1, ECX, 5, "VMX"},
    {0x80000001, ECX, 2, "SVM"},
    {0x1, ECX, 26, "XSAVE"},
    {0x1, ECX, 21, "x2APIC"},
    {0x1, ECX, 24, "TSC-deadline"},
    {0x80000007, EDX, 8, "invariant TSC"},
    {0x7, EBX, 7, "SMEP"},
    {0x7, EBX, 20, "SMAP"},
    {0x7, ECX, 2, "UMIP"},
    {0x7, ECX, 16, "LA57"},
    {0x7, ECX, 3, "PKU"},
    {0x7, ECX, 31, "PKS"},
    {0x7, ECX, 7, "CET_SS"},
    {0x1, ECX, 17, "PCID"},
    {0x80000001, EDX, 26, "1-GByte pages"},
    {0x80000001, EDX, 27, "RDTSCP"},
    {0x1, ECX, 31, "hypervisor"},
};

const struct backend *backend;

static u32 cpuid_reg(u32 leaf, u32 subleaf, u8 reg)
{
    struct cpuid_regs r;

    if (cpuid(leaf & 0x80000000, 0).eax < leaf)
        return 0;
    r = cpuid(leaf, subleaf);
    return reg == EAX ? r.eax : reg == EBX ? r.ebx : reg == ECX ? r.ecx : r.edx;
}

static bool has(const struct feature *f)
{
    return cpuid_reg(f->leaf, 0, f->reg) >> f->bit & 1;
}

// --- What is there. ---

static INIT_TEXT void log_model(void)
{
    struct cpuid_regs vendor = cpuid(0, 0);
    u32 signature = cpuid(1, 0).eax, family = signature >> 8 & 15, model = signature >> 4 & 15;
    u64 microcode = 0;
    u32 brand[13] = {0};
    bool is_intel = vendor.ecx == 0x6c65746e; // "ntel"

    for (u32 i = 0; i < 3 && cpuid(0x80000000, 0).eax >= 0x80000004; i++)
        *(struct cpuid_regs *)&brand[4 * i] = cpuid(0x80000002 + i, 0);
    model |= family == 6 || family == 15 ? signature >> 12 & 0xf0 : 0;
    family += family == 15 ? signature >> 20 & 0xff : 0;
    // Intel's CPUs load the register in CPUID, and have the revision in the high half.
    if (is_intel && msr_write_safe(MSR_UCODE_REV, 0) == 0)
        (void)cpuid(1, 0);
    (void)msr_read_safe(MSR_UCODE_REV, &microcode);
    log_info("CPU: %.4s%.4s%.4s, %s, family %u model 0x%x stepping %u, microcode 0x%llx",
             (char *)&vendor.ebx, (char *)&vendor.edx, (char *)&vendor.ecx,
             brand[0] ? (char *)brand : "no brand string", family, model, signature & 15,
             is_intel ? microcode >> 32 : microcode & 0xffffffff);
}

INIT_TEXT void features_log(void)
{
    char list[256];
    int len = 0;

    log_model();
    for (u32 i = 0; i < ARRAY_SIZE(noted); i++)
        if (has(&noted[i]))
            len += fmt_snprintf(list + len, sizeof(list) - (size_t)len, " %s", noted[i].name);
    log_info("CPU: has%s", len ? list : " none of the optional features");
}

// --- What has to be there. Runs on each CPU. ---

static INIT_TEXT void check_cpu(void *arg)
{
    bool *ok = arg;

    for (u32 i = 0; i < ARRAY_SIZE(needed); i++) {
        if (has(&needed[i]))
            continue;
        log_error("missing: %s", needed[i].name);
        *ok = false;
    }
    if (backend && backend->probe() < 0)
        *ok = false;
}

static INIT_TEXT void choose_backend(void)
{
    if (cpuid_reg(0x1, 0, ECX) >> 5 & 1)
        backend = &vmx_backend;
    else if (cpuid_reg(0x80000001, 0, ECX) >> 2 & 1)
        backend = &svm_backend;
    else
        log_error("missing: CPUID.01H:ECX.VMX[bit 5] or CPUID.80000001H:ECX.SVM[bit 2]");
}

// --- What has to be the same. ---

struct sameness {
    enum { SAME_CPUID, SAME_MSR } kind;
    u32 index, subleaf; // the leaf, or the first MSR
    u32 count;          // of MSRs
    u8 reg;
    bool needed; // a back end works out its controls once for all CPUs
    u64 ignore;
    const char *name;
};

static const struct sameness same[] = {
    {SAME_CPUID, 0x1, 0, 1, EAX, false, 0, "CPUID.01H:EAX"},
    {SAME_CPUID, 0x1, 0, 1, ECX, true, BIT(27), "CPUID.01H:ECX"}, // but OSXSAVE
    {SAME_CPUID, 0x1, 0, 1, EDX, true, 0, "CPUID.01H:EDX"},
    {SAME_CPUID, 0x7, 0, 1, EBX, false, 0, "CPUID.07H:EBX"},
    {SAME_CPUID, 0x7, 0, 1, ECX, false, BIT(4), "CPUID.07H:ECX"}, // but OSPKE
    {SAME_CPUID, 0x7, 0, 1, EDX, false, 0, "CPUID.07H:EDX"},
    {SAME_CPUID, 0xd, 0, 1, EAX, true, 0, "CPUID.0DH:EAX"},
    {SAME_CPUID, 0x80000001, 0, 1, ECX, true, 0, "CPUID.80000001H:ECX"},
    {SAME_CPUID, 0x80000001, 0, 1, EDX, true, 0, "CPUID.80000001H:EDX"},
    {SAME_CPUID, 0x80000008, 0, 1, EAX, true, 0, "CPUID.80000008H:EAX"},
    {SAME_CPUID, 0x8000000a, 0, 1, EDX, true, 0, "CPUID.8000000AH:EDX"},
    {SAME_MSR, MSR_VMX_BASIC, 0, 19, 0, true, 0, "IA32_VMX capability MSR"},
    {SAME_MSR, MSR_MTRRCAP, 0, 1, 0, false, 0, "IA32_MTRRCAP"},
    {SAME_MSR, MSR_PAT, 0, 1, 0, false, 0, "IA32_PAT"},
};

static u64 same_values[VALUE_MAX] INIT_BSS; // the boot CPU's

static INIT_TEXT u64 same_value(const struct sameness *s, u32 i)
{
    u64 value = 0;

    if (s->kind == SAME_CPUID)
        return cpuid_reg(s->index, s->subleaf, s->reg) & ~s->ignore;
    (void)msr_read_safe(s->index + i, &value); // one that is not there reads as 0
    return value;
}

// arg: NULL on the boot CPU, which only notes its values.
static INIT_TEXT void compare_cpu(void *arg)
{
    bool *ok = arg;
    u32 at = 0;

    for (const struct sameness *s = same; s < same + ARRAY_SIZE(same); s++) {
        for (u32 i = 0; i < s->count && at < VALUE_MAX; i++, at++) {
            u64 value = same_value(s, i);

            if (!ok)
                same_values[at] = value;
            if (value == same_values[at])
                continue;
            log_at(s->needed ? LOG_ERROR : LOG_WARN,
                   "this CPU differs from cpu0: %s (0x%x) is 0x%llx, expected 0x%llx", s->name,
                   s->index + i, value, same_values[at]);
            *ok = *ok && !s->needed;
        }
    }
}

// --- MTRRs: SDM vol. 3, "MTRR Considerations in MP Systems". INIT may have cleared them (QEMU), so
// they are not only compared. ---

static const struct {
    u32 first, count;
} mtrrs[] = {
    {MSR_MTRR_FIX64K, 1},
    {MSR_MTRR_FIX16K_80000, 2},
    {MSR_MTRR_FIX4K_C0000, 8},
    {MSR_MTRR_PHYSBASE0, 32},
};

static u64 mtrr_values[48] INIT_BSS; // the boot CPU's
static u64 mtrr_def_type INIT_BSS;
static bool mtrr_noted INIT_BSS;

// Calls fn for each MTRR there is but IA32_MTRR_DEF_TYPE; returns how many times it was true.
static INIT_TEXT u32 mtrr_each(bool (*fn)(u32 msr, u64 now, u64 *wanted))
{
    u32 variable = 2 * (msr_read(MSR_MTRRCAP) & 0xff), at = 0, n = 0;

    for (u32 i = 0; i < ARRAY_SIZE(mtrrs); i++) {
        u32 count = mtrrs[i].first == MSR_MTRR_PHYSBASE0 ? MIN(variable, 32) : mtrrs[i].count;
        u64 value;

        for (u32 j = 0; j < count; j++, at++)
            if (msr_read_safe(mtrrs[i].first + j, &value) == 0)
                n += fn(mtrrs[i].first + j, value, &mtrr_values[at]);
    }
    return n;
}

static INIT_TEXT bool mtrr_note(u32 msr, u64 now, u64 *wanted)
{
    (void)msr;
    *wanted = now;
    return false;
}

static INIT_TEXT bool mtrr_differs(u32 msr, u64 now, u64 *wanted)
{
    (void)msr;
    return now != *wanted;
}

static INIT_TEXT bool mtrr_write(u32 msr, u64 now, u64 *wanted)
{
    (void)now;
    return msr_write_safe(msr, *wanted) == 0;
}

// With caches off and flushed, and MTRRs off meanwhile. Interrupts are off anyway.
static INIT_TEXT void mtrr_copy(void)
{
    u64 cr0 = read_cr0(), cr4 = read_cr4();

    write_cr0((cr0 | CR0_CD) & ~CR0_NW);
    __asm__ volatile("wbinvd" : : : "memory");
    write_cr4(cr4 & ~CR4_PGE);
    msr_write(MSR_MTRR_DEF_TYPE, 0);
    (void)mtrr_each(mtrr_write);
    msr_write(MSR_MTRR_DEF_TYPE, mtrr_def_type);
    __asm__ volatile("wbinvd" : : : "memory");
    write_cr0(cr0);
    write_cr4(cr4);
}

// arg: the number of CPUs that had others.
static INIT_TEXT void check_mtrrs(void *arg)
{
    if (!mtrr_noted) {
        mtrr_def_type = msr_read(MSR_MTRR_DEF_TYPE);
        (void)mtrr_each(mtrr_note);
        mtrr_noted = true;
    }
    if (mtrr_each(mtrr_differs) == 0 && msr_read(MSR_MTRR_DEF_TYPE) == mtrr_def_type)
        return;
    ++*(u32 *)arg;
    mtrr_copy();
}

INIT_TEXT void features_check(void)
{
    u32 other_mtrrs = 0;
    bool ok = true;

    choose_backend();
    for (u32 i = 0; i < cpu_count; i++) {
        cpu_call(cpus[i], check_mtrrs, &other_mtrrs);
        cpu_call(cpus[i], check_cpu, &ok);
    }
    if (other_mtrrs)
        log_warn("the MTRRs of %u CPUs differed from cpu0's: they are the same now", other_mtrrs);
    compare_cpu(NULL);
    for (u32 i = 1; i < cpu_count; i++)
        cpu_call(cpus[i], compare_cpu, &ok);
    if (ok && backend)
        return;
    log_error("this machine cannot run guests: it lacks what the lines above name");
    machine_power_off(STATUS_MISSING);
}

// --- The back end. ---

static INIT_TEXT void backend_cpu_on(void *arg)
{
    int err = backend->cpu_on();

    if (err) {
        log_error("%s could not be switched on (%d)", backend->name, err);
        *(bool *)arg = false;
    }
}

INIT_TEXT void features_backend_on(void)
{
    char list[300] = "";
    bool ok = true;

    for (u32 i = 0; i < cpu_count; i++)
        cpu_call(cpus[i], backend_cpu_on, &ok);
    if (!ok)
        machine_power_off(STATUS_MISSING);
    backend->describe(list, sizeof(list));
    log_info("back end: %s: %s", backend->name, list);
}
