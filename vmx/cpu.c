// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMX on one physical CPU: what it must have, switching it on and off, and which mitigations its
// entries need. SDM vol. 3 "Introduction to Virtual Machine Extensions" (discovering, enabling and
// entering VMX operation) and appendix A.

#include "vmx.h"
#include <arch/x86/fpu.h>
#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/host.h>
#include <nestor/page.h>
#include <nestor/string.h>
#include <nestor/time.h>

struct vmx_caps vmx_caps;

// How long a guest runs with its interrupts closed before it exits, so that it sees requests of
// other CPUs: 1 ms, but at least so many ticks. Bochs works out what is masked before the CPU
// counts as being in the guest, so it takes no external-interrupt exit from one that was entered
// with RFLAGS.IF = 0, where the SDM (vol. 3 "Other Causes of VM Exits") asks for it whatever IF is.
// Shown by tests/guests/nested_vmx_events.c; and Bochs' TSC may run at a few MHz.
enum { MASKED_RUN_TICKS = 1 << 16 };

void vmx_instruction_failed(const char *what, u64 operand)
{
    u64 error = vmread(VM_INSTRUCTION_ERROR);

    panic("%s of %#llx failed (VM-instruction error %llu)", what, (unsigned long long)operand,
          (unsigned long long)error);
}

// --- probe ---

static void missing(const char *where, const char *what)
{
    log_error("VMX: CPU %u lacks %s: %s", this_cpu()->id, where, what);
}

static const struct {
    u64 bit;
    const char *name;
} ept_needs[] = {
    {EPT_CAP_WALK_4, "page-walk length 4"},
    {EPT_CAP_WB, "EPT paging structures of type WB"},
    {EPT_CAP_2M, "2-MByte pages"},
    {EPT_CAP_INVEPT, "INVEPT"},
    {EPT_CAP_INVEPT_SINGLE, "single-context INVEPT"},
    {EPT_CAP_INVEPT_ALL, "all-context INVEPT"},
};

static unsigned check_ept(struct vmx_caps *caps)
{
    const u64 vpid_needs = VPID_CAP_INVVPID | VPID_CAP_INVVPID_SINGLE | VPID_CAP_INVVPID_ALL;
    unsigned count = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(ept_needs); i++) {
        if (!(caps->ept_vpid & ept_needs[i].bit)) {
            missing("IA32_VMX_EPT_VPID_CAP", ept_needs[i].name);
            count++;
        }
    }
    if ((caps->ept_vpid & vpid_needs) != vpid_needs) // VPID is no use without them
        caps->controls.base[CONTROL_SECONDARY] &= ~(u32)SECONDARY_VPID;
    return count;
}

static bool check_feature_control(void)
{
    u64 value = msr_read(MSR_FEATURE_CONTROL);

    if (!(value & FEATURE_CONTROL_LOCK) || (value & FEATURE_CONTROL_VMX_OUTSIDE_SMX))
        return true;
    missing("IA32_FEATURE_CONTROL", "VMX outside SMX operation is off and locked by the firmware");
    return false;
}

static unsigned check_controls(struct vmx_caps *caps)
{
    u64 msrs[CONTROL_FIELDS];
    bool true_ctls = caps->basic & VMX_BASIC_TRUE_CTLS;

    msrs[CONTROL_PIN] = msr_read(true_ctls ? MSR_VMX_TRUE_PINBASED_CTLS : MSR_VMX_PINBASED_CTLS);
    msrs[CONTROL_PRIMARY] =
        msr_read(true_ctls ? MSR_VMX_TRUE_PROCBASED_CTLS : MSR_VMX_PROCBASED_CTLS);
    msrs[CONTROL_EXIT] = msr_read(true_ctls ? MSR_VMX_TRUE_EXIT_CTLS : MSR_VMX_EXIT_CTLS);
    msrs[CONTROL_ENTRY] = msr_read(true_ctls ? MSR_VMX_TRUE_ENTRY_CTLS : MSR_VMX_ENTRY_CTLS);
    msrs[CONTROL_SECONDARY] = 0;
    if (msrs[CONTROL_PRIMARY] >> 32 & PRIMARY_SECONDARY)
        msrs[CONTROL_SECONDARY] = msr_read(MSR_VMX_PROCBASED_CTLS2);
    return vmx_controls_negotiate(msrs, &caps->controls, missing);
}

static unsigned read_caps(struct vmx_caps *caps)
{
    unsigned count;

    memset(caps, 0, sizeof(*caps));
    caps->basic = msr_read(MSR_VMX_BASIC);
    caps->misc = msr_read(MSR_VMX_MISC);
    caps->cr0_fixed0 = msr_read(MSR_VMX_CR0_FIXED0);
    caps->cr4_fixed0 = msr_read(MSR_VMX_CR4_FIXED0);
    count = check_controls(caps);
    if (option_off("preemption-timer"))
        caps->controls.base[CONTROL_PIN] &= ~(u32)PIN_PREEMPTION_TIMER;
    if (!(caps->controls.allowed[CONTROL_SECONDARY] & SECONDARY_EPT))
        return count; // IA32_VMX_EPT_VPID_CAP may not exist
    caps->ept_vpid = msr_read(MSR_VMX_EPT_VPID_CAP);
    vmx_apic_probe(caps);
    return count + check_ept(caps);
}

// The VMCSs are made for what the first CPU has; one that differs can't run them.
static bool same_caps(const struct vmx_caps *a, const struct vmx_caps *b)
{
    return !memcmp(&a->controls, &b->controls, sizeof(a->controls)) && a->ept_vpid == b->ept_vpid &&
           a->cr0_fixed0 == b->cr0_fixed0 && a->cr4_fixed0 == b->cr4_fixed0 && a->misc == b->misc &&
           a->basic == b->basic;
}

static void accept_caps(const struct vmx_caps *caps)
{
    vmx_caps = *caps;
    vmx_caps.timer = caps->controls.base[CONTROL_PIN] & PIN_PREEMPTION_TIMER;
    vmx_msr_bitmap_init();
    if (!(cpuid(7, 0).ecx & BIT(2)) &&
        (caps->controls.allowed[CONTROL_SECONDARY] & SECONDARY_DESCRIPTOR_TABLE))
        vmx_caps.cr4_supplied = CR4_UMIP;
    vmx_backend.supplies_umip = vmx_caps.cr4_supplied;
    vmx_backend.stage2_1g = caps->ept_vpid & EPT_CAP_1G;
    vmx_backend.stage2_execute_only = caps->ept_vpid & EPT_CAP_EXECUTE_ONLY;
    vmx_backend.stage2_ad = caps->ept_vpid & EPT_CAP_AD;
    vmx_backend.lacks = vmx_controls_lacks(&caps->controls);
    // A #CP that an exit interrupted has to be injected with its error code.
    if (!(caps->basic & VMX_BASIC_ANY_ERROR))
        vmx_backend.lacks |= ISA_CET;
    vmx_shadow_probe(caps);
    vmx_backend.scales_tsc = caps->controls.allowed[CONTROL_SECONDARY] & SECONDARY_TSC_SCALING;
    vmx_backend.has_mtf = caps->controls.allowed[CONTROL_PRIMARY] & PRIMARY_MTF;
}

int vmx_probe(void)
{
    struct vmx_caps caps;

    if (!(cpuid(1, 0).ecx & BIT(5))) {
        missing("CPUID.1:ECX", "VMX");
        return -E_NODEV;
    }
    if (!check_feature_control() || read_caps(&caps))
        return -E_NODEV;
    if (!vmx_caps.basic) {
        accept_caps(&caps);
        return 0;
    }
    if (!same_caps(&caps, &vmx_caps)) {
        missing("the VMX capability MSRs of CPU 0", "its values differ");
        return -E_NODEV;
    }
    return 0;
}

static const struct {
    u64 bit;
    const char *name;
} ept_options[] = {
    {EPT_CAP_1G, "EPT 1G"},
    {EPT_CAP_AD, "EPT A/D"},
    {EPT_CAP_EXECUTE_ONLY, "EPT X-only"},
    {EPT_CAP_WALK_5, "EPT 5-level"},
};

static void append(char *buf, size_t size, const char *name)
{
    size_t used = strlen(buf);

    if (used < size)
        fmt_snprintf(buf + used, size - used, "%s%s", used ? ", " : "", name);
}

void vmx_describe(char *buf, size_t size)
{
    const char *name;

    buf[0] = 0;
    for (unsigned n = 0; (name = vmx_controls_optional(&vmx_caps.controls, n)); n++)
        append(buf, size, name);
    for (unsigned i = 0; i < ARRAY_SIZE(ept_options); i++)
        if (vmx_caps.ept_vpid & ept_options[i].bit)
            append(buf, size, ept_options[i].name);
    if (vmx_backend.has_mtf)
        append(buf, size, "MTF");
    if (vmx_caps.apic_modes & BIT(ACCEL_XAPIC))
        append(buf, size, "APICv (xAPIC)");
    if (vmx_caps.apic_modes & BIT(ACCEL_X2APIC))
        append(buf, size, "APICv (x2APIC)");
    if (vmx_caps.posts_interrupts)
        append(buf, size, "posted interrupts");
}

u8 vmx_stage2_levels(void)
{
    // Four levels reach 48 bits. The fifth costs a memory access for each miss, so only where the
    // machine is that large.
    bool large = (cpuid(0x80000008, 0).eax & 0xff) > 48;

    return large && (vmx_caps.ept_vpid & EPT_CAP_WALK_5) ? 5 : 4;
}

// --- mitigations (Intel's guidance on L1TF, MDS, MMIO stale data, RFDS, Spectre v2 and PBRSB) ---

#define CPUID_7_EDX_MD_CLEAR          BIT(10)
#define CPUID_7_EDX_IBRS              BIT(26)
#define CPUID_7_EDX_L1D_FLUSH         BIT(28)
#define CPUID_7_EDX_ARCH_CAPABILITIES BIT(29)
#define ARCH_CAP_RDCL_NO              BIT(0)
#define ARCH_CAP_IBRS_ALL             BIT(1)
#define ARCH_CAP_SKIP_L1DFL_VMENTRY   BIT(3)
#define ARCH_CAP_MDS_NO               BIT(5)
#define ARCH_CAP_FB_CLEAR             BIT(17)
#define ARCH_CAP_PBRSB_NO             BIT(24)
#define ARCH_CAP_RFDS_CLEAR           BIT(28)
#define SPEC_CTRL_IBRS                BIT(0)

static void choose_mitigations(struct vmx_cpu *cpu)
{
    u32 edx = cpuid(0, 0).eax >= 7 ? cpuid(7, 0).edx : 0;
    u64 arch = edx & CPUID_7_EDX_ARCH_CAPABILITIES ? msr_read(MSR_ARCH_CAPABILITIES) : 0;

    if (option_off("mitigations"))
        return;
    cpu->run_flags = RUN_CLEAR;
    if ((edx & CPUID_7_EDX_L1D_FLUSH) && !(arch & (ARCH_CAP_RDCL_NO | ARCH_CAP_SKIP_L1DFL_VMENTRY)))
        cpu->run_flags |= RUN_L1D_FLUSH;
    if ((edx & CPUID_7_EDX_MD_CLEAR) &&
        (!(arch & ARCH_CAP_MDS_NO) || (arch & (ARCH_CAP_FB_CLEAR | ARCH_CAP_RFDS_CLEAR))))
        cpu->run_flags |= RUN_VERW;
    if (!(arch & ARCH_CAP_IBRS_ALL))
        cpu->run_flags |= RUN_RSB_FILL;
    else if (!(arch & ARCH_CAP_PBRSB_NO))
        cpu->run_flags |= RUN_RSB_ONE;
    if (edx & CPUID_7_EDX_IBRS) {
        cpu->has_ibpb = true;
        cpu->host_spec_ctrl = SPEC_CTRL_IBRS;
        // Older IBRS protects only what runs after it was written in the more privileged mode: on
        // every exit.
        if (arch & ARCH_CAP_IBRS_ALL)
            cpu->kept_spec_ctrl = SPEC_CTRL_IBRS;
        else
            cpu->run_flags |= RUN_SPEC_CTRL;
        msr_write(MSR_SPEC_CTRL, cpu->host_spec_ctrl);
    }
}

// --- on and off ---

static int cpu_alloc(struct vmx_cpu **out)
{
    struct vmx_cpu *cpu = heap_alloc(sizeof(*cpu));

    if (!cpu)
        return -E_NOMEM;
    cpu->vmxon = page_alloc(0);
    if (!cpu->vmxon) {
        heap_free(cpu, sizeof(*cpu));
        return -E_NOMEM;
    }
    *out = cpu;
    return 0;
}

static void enter_vmx_operation(struct vmx_cpu *cpu)
{
    u64 control = msr_read(MSR_FEATURE_CONTROL);

    if (!(control & FEATURE_CONTROL_LOCK))
        msr_write(MSR_FEATURE_CONTROL,
                  control | FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX);
    write_cr0(read_cr0() | vmx_caps.cr0_fixed0);
    write_cr4(read_cr4() | vmx_caps.cr4_fixed0 | CR4_VMXE);
    *(u32 *)cpu->vmxon = (u32)(vmx_caps.basic & VMX_BASIC_REVISION);
    vmxon(virt_to_phys(cpu->vmxon));
    invept(INVEPT_ALL, 0);
    if (vmx_uses(CONTROL_SECONDARY, SECONDARY_VPID))
        invvpid(INVVPID_ALL, 0);
}

int vmx_cpu_on(void)
{
    u32 rate = (u32)(vmx_caps.misc & VMX_MISC_TIMER_RATE);
    struct vmx_cpu *cpu;
    int err = cpu_alloc(&cpu);

    if (err)
        return err;
    cpu->xcr0 = cpu->xss = cpu->tsc_aux = ~0ull;
    cpu->fpu_components = fpu_components();
    vmx_caps.timer_masked = (u32)MIN(MAX(tsc_hz / 1000, MASKED_RUN_TICKS) >> rate, TIMER_NEVER);
    vmx_caps.masked_ticks = (u64)vmx_caps.timer_masked << rate;
    choose_mitigations(cpu);
    enter_vmx_operation(cpu);
    this_cpu()->backend = cpu;
    return 0;
}

void vmx_cpu_off(void)
{
    struct vmx_cpu *cpu = vmx_this_cpu();

    if (!cpu)
        return;
    __asm__ volatile("vmxoff" : : : "cc", "memory");
    write_cr4(read_cr4() & ~CR4_VMXE);
    this_cpu()->backend = NULL;
    page_free(cpu->vmxon, 0);
    heap_free(cpu, sizeof(*cpu));
}
