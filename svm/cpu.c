// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// SVM on a physical CPU: what it must have, what it may have, turning it on and off (APM vol. 2,
// 15.4 "Enabling SVM", 15.30 "SVM Related MSRs"), and the back end's table.
//
// Not supported, because no test machine runs it: TSC ratio, pause filter, AVIC, virtual VMLOAD and
// VMSAVE, SPEC_CTRL virtualization, shadow stacks.

#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/cpu.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/page.h>
#include <nestor/stage2.h>
#include <nestor/string.h>

#include "quirks.h"
#include "svm.h"

_Static_assert(offsetof(struct svm_cpu, host_vmcb_pa) == SVM_CPU_HOST_VMCB, "enter.S");
_Static_assert(offsetof(struct svm_cpu, stub_flags) == SVM_CPU_STUB_FLAGS, "enter.S");
_Static_assert(offsetof(struct svm_cpu, host_spec_ctrl) == SVM_CPU_HOST_SPEC_CTRL, "enter.S");
_Static_assert(offsetof(struct vcpu, gpr) == 0, "enter.S");
_Static_assert(offsetof(struct vcpu, spec_ctrl) == VCPU_SPEC_CTRL, "enter.S");

#define CPUID_1_ECX_XSAVE                BIT(26)
#define CPUID_80000001_ECX_SVM           BIT(2)
#define CPUID_80000001_EDX_PAGE1GB       BIT(26)
#define CPUID_80000001_EDX_RDTSCP        BIT(27)
#define CPUID_80000008_EBX_XSAVE_ERR_PTR BIT(2)
#define CPUID_80000008_EBX_IBPB          BIT(12)
#define CPUID_80000008_EBX_SPEC_CTRL     (BIT(14) | BIT(15) | BIT(24)) // IBRS, STIBP, SSBD

u32 svm_features = ~0u;
u64 svm_cr4_supplied;
u32 svm_clean_after;

// The optional features that Nestor uses, and the options that turn them off.
static const struct {
    u32 bit;
    const char *option, *name;
} optional[] = {
    {SVM_FEATURE_NRIPS, "nrip", "nRIP save"},
    {SVM_FEATURE_VMCB_CLEAN, "vmcb-clean", "VMCB clean bits"},
    {SVM_FEATURE_FLUSH_BY_ASID, "flush-by-asid", "flush by ASID"},
    {SVM_FEATURE_DECODE_ASSISTS, "decode-assists", "decode assists"},
    {SVM_FEATURE_VGIF, "vgif", "virtual GIF"},
    {SVM_FEATURE_LBR_VIRT, "lbrv", "LBR virtualization"},
};

static bool need(bool there, const char *what)
{
    if (!there)
        log_error("CPU %u lacks %s", this_cpu()->id, what);
    return there;
}

static bool allowed_by_firmware(void)
{
    u64 vm_cr;

    if (msr_read_safe(MSR_VM_CR, &vm_cr) || !(vm_cr & VM_CR_SVMDIS))
        return true;
    if (!(vm_cr & VM_CR_LOCK)) // svm_cpu_on clears it
        return true;
    return need(false, "SVM: the firmware disabled it (VM_CR.SVMDIS) and locked that (VM_CR.LOCK)");
}

// The CPUs' common subset, less what options turn off.
static void note_features(u32 edx)
{
    u32 wanted = 0;

    for (u32 i = 0; i < ARRAY_SIZE(optional); i++)
        if (!option_off(optional[i].option))
            wanted |= optional[i].bit;
    __atomic_fetch_and(&svm_features, edx & wanted, __ATOMIC_RELAXED);
    svm_clean_after = svm_has(SVM_FEATURE_VMCB_CLEAN) ? SVM_CLEAN_ALL : 0;
}

int svm_probe(void)
{
    struct cpuid_regs leaf;
    bool ok;

    if (!need(cpuid(0x80000000, 0).eax >= 0x8000000a &&
                  (cpuid(0x80000001, 0).ecx & CPUID_80000001_ECX_SVM),
              "CPUID Fn8000_0001_ECX[SVM]"))
        return -E_NODEV;
    leaf = cpuid(0x8000000a, 0);
    ok = allowed_by_firmware();
    ok &= need(leaf.edx & SVM_FEATURE_NP, "CPUID Fn8000_000A_EDX[NP] (nested paging)");
    ok &= need(leaf.ebx >= 2, "CPUID Fn8000_000A_EBX[NASID] >= 2 (address space identifiers)");
    if (!ok)
        return -E_NODEV;
    note_features(leaf.edx);
    svm_backend.last_branches = svm_has(SVM_FEATURE_LBR_VIRT);
    svm_probe_quirks();
    svm_backend.injects_dearly = svm_repeats_injection;
    if (!(cpuid(7, 0).ecx & BIT(2)))
        svm_cr4_supplied = CR4_UMIP;
    svm_backend.supplies_umip = svm_cr4_supplied;
    if (!(cpuid(0x80000001, 0).edx & CPUID_80000001_EDX_PAGE1GB))
        svm_backend.stage2_1g = false;
    return 0;
}

void svm_describe(char *buf, size_t size)
{
    const struct svm_cpu *cpu = this_cpu()->backend;
    int used = fmt_snprintf(buf, size, "nested paging with %u levels, %u ASIDs",
                            svm_stage2_levels(), cpu->asid_count);

    for (u32 i = 0; i < ARRAY_SIZE(optional) && (size_t)used < size; i++)
        if (svm_has(optional[i].bit))
            used += fmt_snprintf(buf + used, size - (size_t)used, ", %s", optional[i].name);
}

// --- on and off ---

// Which mitigations the stub and vCPU switches apply. AMD CPUs predict RETs from what the guest's
// CALLs left, so the return stack is filled on all of them.
static void choose_mitigations(struct svm_cpu *cpu)
{
    if (option_off("mitigations"))
        return;
    cpu->stub_flags = SVM_STUB_CLEAR;
    if (cpuid(0x80000008, 0).ebx & CPUID_80000008_EBX_SPEC_CTRL) {
        cpu->stub_flags |= SVM_STUB_SPEC_CTRL;
        cpu->host_spec_ctrl = msr_read(MSR_SPEC_CTRL);
    }
    cpu->has_ibpb = cpuid(0x80000008, 0).ebx & CPUID_80000008_EBX_IBPB;
    cpu->restores_fp_pointers = cpuid(0x80000008, 0).ebx & CPUID_80000008_EBX_XSAVE_ERR_PTR;
}

// Nestor's own CR4 and CR0 as XSAVE, XRSTOR and XSETBV need them.
static void enable_fpu(struct svm_cpu *cpu)
{
    struct cpuid_regs components = cpuid(0xd, 0);

    write_cr0(read_cr0() & ~(CR0_TS | CR0_EM));
    write_cr4(read_cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
    if (!(cpuid(1, 0).ecx & CPUID_1_ECX_XSAVE))
        return;
    write_cr4(read_cr4() | CR4_OSXSAVE);
    cpu->xcr0 = xgetbv(0);
    cpu->xcr0_all = (u64)components.edx << 32 | components.eax;
}

static void free_cpu(struct svm_cpu *cpu)
{
    if (cpu->host_vmcb)
        page_free(cpu->host_vmcb, 0);
    if (cpu->save_area)
        page_free(cpu->save_area, 0);
    heap_free(cpu, sizeof(*cpu));
}

static struct svm_cpu *alloc_cpu(void)
{
    struct svm_cpu *cpu = heap_alloc(sizeof(*cpu));

    if (!cpu)
        return NULL;
    cpu->host_vmcb = page_alloc(0);
    cpu->save_area = page_alloc(0);
    if (cpu->host_vmcb && cpu->save_area)
        return cpu;
    free_cpu(cpu);
    return NULL;
}

int svm_cpu_on(void)
{
    struct svm_cpu *cpu = svm_maps_create() ? NULL : alloc_cpu();
    u64 vm_cr, de_cfg;

    if (!cpu)
        return -E_NOMEM;
    cpu->host_vmcb_pa = virt_to_phys(cpu->host_vmcb);
    cpu->asid_count = MIN(cpuid(0x8000000a, 0).ebx, 0x10000u);
    cpu->next_asid = 1;
    cpu->asid_generation = 1;
    cpu->has_rdtscp = cpuid(0x80000001, 0).edx & CPUID_80000001_EDX_RDTSCP;
    cpu->tsc_aux = ~0ull; // not known: the first load writes it
    choose_mitigations(cpu);
    enable_fpu(cpu);
    // Guests read it as set (core/msr.c): LFENCE waits for all before it (APM vol. 2, 3.2.10).
    if (!msr_read_safe(MSR_DE_CFG, &de_cfg))
        (void)msr_write_safe(MSR_DE_CFG, de_cfg | DE_CFG_LFENCE_SERIALIZE);
    if (!msr_read_safe(MSR_VM_CR, &vm_cr) && (vm_cr & VM_CR_SVMDIS))
        msr_write(MSR_VM_CR, vm_cr & ~VM_CR_SVMDIS);
    msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_SVME);
    msr_write(MSR_VM_HSAVE_PA, virt_to_phys(cpu->save_area));
    // Nestor's FS, GS, TR and LDTR, which no CPU changes after its boot: enter.S loads them after
    // each exit.
    __asm__ volatile("vmsave %0" : : "a"(cpu->host_vmcb_pa) : "memory");
    this_cpu()->backend = cpu;
    return 0;
}

void svm_cpu_off(void)
{
    struct svm_cpu *cpu = this_cpu()->backend;

    if (!cpu)
        return;
    msr_write(MSR_VM_HSAVE_PA, 0);
    msr_write(MSR_EFER, msr_read(MSR_EFER) & ~EFER_SVME);
    this_cpu()->backend = NULL;
    free_cpu(cpu);
}

// A nested walk has as many levels as the host's own (APM vol. 2, 15.25.3).
u8 svm_stage2_levels(void)
{
    return read_cr4() & CR4_LA57 ? 5 : 4;
}

struct backend svm_backend = {
    .name = "SVM",
    .stage2_format = &stage2_npt,
    .probe = svm_probe,
    .describe = svm_describe,
    .cpu_on = svm_cpu_on,
    .cpu_off = svm_cpu_off,
    .ctx_create = svm_ctx_create,
    .ctx_destroy = svm_ctx_destroy,
    .load = svm_load,
    .put = svm_put,
    .select = svm_select,
    .pull = svm_pull,
    .enter = svm_enter,
    .stage2_levels = svm_stage2_levels,
    .lacks = ISA_CET | ISA_USER_WAIT, // no machine to try them on
    .stage2_1g = true,                // unless a CPU lacks it: svm_probe
    .delivers_offers = true,
    .report = svm_report,
};
