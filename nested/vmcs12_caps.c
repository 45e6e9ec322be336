// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What VMX an L1 is offered: the capability MSRs (SDM vol. 3 appendix A) and IA32_FEATURE_CONTROL.
// One table, `offered`, says it all: a control stands there once Nestor implements its effect.

#include "vmcs12.h"
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/string.h>

// --- the offered controls ---

#define F(feature) BIT(OFFER_##feature)

enum cpuid_register { EAX, EBX, ECX, EDX };

// Bits by the MSR that reports them. Of controls they are those that may be 1.
static const struct {
    u32 msr;
    u64 bits;
    u64 features; // `nested-features` must leave all of these
    u32 leaf;     // 0, or the guest must have CPUID's bit
    u8 reg, bit;
} offered[] = {
    {MSR_VMX_PINBASED_CTLS, PIN_EXTERNAL_INTERRUPT | PIN_NMI, 0, 0, 0, 0},
    {MSR_VMX_PINBASED_CTLS, PIN_VIRTUAL_NMIS, F(VIRTUAL_NMIS), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS, PRIMARY_NMI_WINDOW, F(VIRTUAL_NMIS), 0, 0, 0},
    {MSR_VMX_PINBASED_CTLS, PIN_PREEMPTION_TIMER, F(PREEMPTION_TIMER), 0, 0, 0},
    {MSR_VMX_EXIT_CTLS, EXIT_CTL_SAVE_TIMER, F(PREEMPTION_TIMER), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS, PRIMARY_TPR_SHADOW, F(TPR_SHADOW), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_X2APIC, F(TPR_SHADOW) | F(X2APIC), 1, ECX, 21},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_APIC_REGISTERS, F(TPR_SHADOW) | F(APIC_REGISTERS), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_INTERRUPT_DELIVERY, F(TPR_SHADOW) | F(INTERRUPT_DELIVERY),
     0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_APIC_ACCESSES, F(APIC_ACCESSES), 0, 0, 0},
    {MSR_VMX_PINBASED_CTLS, PIN_POSTED_INTERRUPTS,
     F(TPR_SHADOW) | F(INTERRUPT_DELIVERY) | F(POSTED_INTERRUPTS), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_DESCRIPTOR_TABLE, F(DESCRIPTOR_TABLE), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_RDTSCP, F(RDTSCP), 0x80000001, EDX, 27},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_INVPCID, F(INVPCID), 7, EBX, 10},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_WBINVD, F(WBINVD), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_TSC_SCALING, F(TSC_SCALING), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_XSAVES, F(XSAVES), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_VMCS_SHADOWING, F(VMCS_SHADOWING), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_USER_WAIT_PAUSE, F(USER_WAIT), 7, ECX, 5},
    {MSR_VMX_PROCBASED_CTLS, PRIMARY_MTF, F(MTF), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_PAUSE_LOOP, F(PAUSE_LOOP), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_RDRAND, F(RDRAND), 1, ECX, 30},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_RDSEED, F(RDRAND), 7, EBX, 18},
    {MSR_VMX_PROCBASED_CTLS,
     PRIMARY_INTERRUPT_WINDOW | PRIMARY_TSC_OFFSETTING | PRIMARY_HLT | PRIMARY_INVLPG |
         PRIMARY_MWAIT | PRIMARY_RDPMC | PRIMARY_RDTSC | PRIMARY_CR3_LOAD | PRIMARY_CR3_STORE |
         PRIMARY_CR8_LOAD | PRIMARY_CR8_STORE | PRIMARY_MOV_DR | PRIMARY_UNCONDITIONAL_IO |
         PRIMARY_IO_BITMAPS | PRIMARY_MSR_BITMAPS | PRIMARY_MONITOR | PRIMARY_PAUSE,
     0, 0, 0, 0},
    {MSR_VMX_EXIT_CTLS,
     EXIT_CTL_SAVE_DEBUG | EXIT_CTL_HOST_64 | EXIT_CTL_ACK_INTERRUPT | EXIT_CTL_SAVE_PAT |
         EXIT_CTL_LOAD_PAT | EXIT_CTL_SAVE_EFER | EXIT_CTL_LOAD_EFER,
     0, 0, 0, 0},
    {MSR_VMX_ENTRY_CTLS,
     ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_IA32E_GUEST | ENTRY_CTL_LOAD_PAT | ENTRY_CTL_LOAD_EFER, 0, 0,
     0, 0},
    {MSR_VMX_BASIC, VMX_BASIC_ANY_ERROR, F(CET), 0, 0, 0}, // any CPU with CET has it (vmx/cpu.c)
    {MSR_VMX_EXIT_CTLS, EXIT_CTL_LOAD_CET, F(CET), 0, 0, 0},
    {MSR_VMX_ENTRY_CTLS, ENTRY_CTL_LOAD_CET, F(CET), 0, 0, 0},
    {MSR_VMX_EXIT_CTLS, EXIT_CTL_LOAD_PKRS, F(PKRS), 7, ECX, 31},
    {MSR_VMX_ENTRY_CTLS, ENTRY_CTL_LOAD_PKRS, F(PKRS), 7, ECX, 31},
    // four CR3 targets; 0 in bits 27:25: 512 entries in an MSR area; 0 in bits 4:0: the preemption
    // timer counts every tick of the TSC
    {MSR_VMX_MISC,
     4ull << 16 | VMX_MISC_ACTIVITY_HLT | VMX_MISC_ACTIVITY_SHUTDOWN | VMX_MISC_ACTIVITY_WAIT_SIPI |
         VMX_MISC_STORE_LMA,
     0, 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT, F(EPT), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_UNRESTRICTED_GUEST, F(EPT) | F(UNRESTRICTED_GUEST), 0, 0,
     0},
    {MSR_VMX_EPT_VPID_CAP,
     EPT_CAP_WALK_4 | EPT_CAP_UC | EPT_CAP_WB | EPT_CAP_2M | EPT_CAP_INVEPT |
         EPT_CAP_INVEPT_SINGLE | EPT_CAP_INVEPT_ALL,
     F(EPT), 0, 0, 0},
    {MSR_VMX_EPT_VPID_CAP, EPT_CAP_WALK_5, F(EPT) | F(EPT_5_LEVEL), 0, 0, 0},
    {MSR_VMX_EPT_VPID_CAP, EPT_CAP_1G, F(EPT) | F(EPT_1G), 0, 0, 0},
    {MSR_VMX_EPT_VPID_CAP, EPT_CAP_EXECUTE_ONLY, F(EPT) | F(EPT_EXECUTE_ONLY), 0, 0, 0},
    {MSR_VMX_EPT_VPID_CAP, EPT_CAP_AD, F(EPT) | F(EPT_AD), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_VPID, F(VPID), 0, 0, 0},
    {MSR_VMX_EPT_VPID_CAP,
     VPID_CAP_INVVPID | VPID_CAP_INVVPID_ADDRESS | VPID_CAP_INVVPID_SINGLE | VPID_CAP_INVVPID_ALL |
         VPID_CAP_INVVPID_SINGLE_GLOBAL,
     F(VPID), 0, 0, 0},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_PML, F(EPT) | F(EPT_AD) | F(PML), 0, 0, 0},
    {MSR_VMX_MISC, VMX_MISC_VMWRITE_ANY, F(VMWRITE_ANY), 0, 0, 0},
};

// --- the MSRs ---

// Controls that must be 1: the default1 class, and less of it by the TRUE MSRs (A.2 to A.5).
static const struct {
    u16 plain, exact;
    u32 default1, may_be_0;
} control_msrs[] = {
    {MSR_VMX_PINBASED_CTLS, MSR_VMX_TRUE_PINBASED_CTLS, 0x16, 0},
    {MSR_VMX_PROCBASED_CTLS, MSR_VMX_TRUE_PROCBASED_CTLS, 0x0401e172,
     PRIMARY_CR3_LOAD | PRIMARY_CR3_STORE},
    {MSR_VMX_EXIT_CTLS, MSR_VMX_TRUE_EXIT_CTLS, 0x00036dff, EXIT_CTL_SAVE_DEBUG},
    {MSR_VMX_ENTRY_CTLS, MSR_VMX_TRUE_ENTRY_CTLS, 0x000011ff, ENTRY_CTL_LOAD_DEBUG},
};

#define CR0_FIXED0_VALUE (CR0_PE | CR0_NE | CR0_PG)
#define CR4_FIXED0_VALUE CR4_VMXE
#define VMX_MEMORY_WB    (6ull << 50)

static u64 *slot(struct nested *n, u32 msr)
{
    return &n->capability[msr - MSR_VMX_BASIC];
}

static bool is_offered(const struct vcpu *vcpu, unsigned i)
{
    const struct vm *vm = vcpu->vm;

    if (((offered[i].features & F(TSC_SCALING)) && !backend->scales_tsc) ||
        ((offered[i].features & F(MTF)) && !backend->has_mtf) ||
        ((offered[i].features & F(XSAVES)) && !cpuid_has_xsaves(vm)) ||
        ((offered[i].features & F(CET)) && (vm->disabled_isa & ISA_CET)))
        return false;
    return !(offered[i].features & ~vm->config->nested_features) &&
           (!offered[i].leaf || cpuid_has(vm, offered[i].leaf, offered[i].reg, offered[i].bit));
}

static bool is_allowed0(u32 msr) // the capability MSRs of controls report them in the high half
{
    return (msr >= MSR_VMX_PINBASED_CTLS && msr <= MSR_VMX_ENTRY_CTLS) ||
           msr == MSR_VMX_PROCBASED_CTLS2;
}

void vmcs12_caps_reset(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    bool exact = vcpu->vm->config->nested_features & F(TRUE_CONTROLS);

    memset(n->capability, 0, sizeof(n->capability));
    for (unsigned i = 0; i < ARRAY_SIZE(offered); i++)
        if (is_offered(vcpu, i))
            *slot(n, offered[i].msr) |= offered[i].bits << (is_allowed0(offered[i].msr) ? 32 : 0);
    // What an L2's accesses do in the shadow of L1's tables only the hardware can tell.
    if (!backend->stage2_execute_only)
        *slot(n, MSR_VMX_EPT_VPID_CAP) &= ~EPT_CAP_EXECUTE_ONLY;
    if (!backend->stage2_ad)
        *slot(n, MSR_VMX_EPT_VPID_CAP) &= ~EPT_CAP_AD;
    if (!(*slot(n, MSR_VMX_EPT_VPID_CAP) & EPT_CAP_AD)) // its log tells of them
        *slot(n, MSR_VMX_PROCBASED_CTLS2) &= ~((u64)SECONDARY_PML << 32);
    if (*slot(n, MSR_VMX_PROCBASED_CTLS2))
        *slot(n, MSR_VMX_PROCBASED_CTLS) |= PRIMARY_SECONDARY << 32;
    for (unsigned i = 0; i < ARRAY_SIZE(control_msrs); i++) {
        u64 *plain = slot(n, control_msrs[i].plain);

        *plain |= (u64)control_msrs[i].default1 << 32 | control_msrs[i].default1;
        *slot(n, control_msrs[i].exact) = *plain & ~(u64)(exact ? control_msrs[i].may_be_0 : 0);
    }
    vmcs12_fields_reset(n);
    *slot(n, MSR_VMX_BASIC) |= VMCS12_REVISION | PAGE_SIZE << 32 | VMX_MEMORY_WB |
                               VMX_BASIC_INS_OUTS_INFO | (exact ? VMX_BASIC_TRUE_CTLS : 0);
    *slot(n, MSR_VMX_CR0_FIXED0) = CR0_FIXED0_VALUE;
    *slot(n, MSR_VMX_CR0_FIXED1) = 0xffffffff;
    *slot(n, MSR_VMX_CR4_FIXED0) = CR4_FIXED0_VALUE;
    *slot(n, MSR_VMX_CR4_FIXED1) = cr4_allowed(vcpu);
    *slot(n, MSR_VMX_VMCS_ENUM) = n->highest_index;
}

// Appendix A says of these with what they exist.
static bool exists(const struct vcpu *vcpu, u32 msr)
{
    if (msr == MSR_VMX_PROCBASED_CTLS2 || msr == MSR_VMX_EPT_VPID_CAP || msr == MSR_VMX_VMFUNC)
        return vmcs12_capability(vcpu, msr);
    return msr < MSR_VMX_TRUE_PINBASED_CTLS ||
           (vmcs12_capability(vcpu, MSR_VMX_BASIC) & VMX_BASIC_TRUE_CTLS);
}

int vmcs12_read_msr(struct vcpu *vcpu, u32 msr, u64 *value)
{
    if (msr == MSR_FEATURE_CONTROL) {
        *value = vcpu->nested->feature_control;
        return 0;
    }
    if (msr < MSR_VMX_BASIC || msr > MSR_VMX_VMFUNC)
        return -E_NOENT;
    if (!exists(vcpu, msr))
        return -E_FAULT;
    *value = vmcs12_capability(vcpu, msr);
    return 0;
}

int vmcs12_write_msr(struct vcpu *vcpu, u32 msr, u64 value)
{
    struct nested *n = vcpu->nested;

    if (msr != MSR_FEATURE_CONTROL)
        return msr >= MSR_VMX_BASIC && msr <= MSR_VMX_VMFUNC ? -E_FAULT : -E_NOENT;
    if ((n->feature_control & FEATURE_CONTROL_LOCK) ||
        (value & ~(FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX)))
        return -E_FAULT;
    n->feature_control = value;
    return 0;
}
