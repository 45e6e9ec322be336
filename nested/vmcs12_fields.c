// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMCS12's fields: which there are for the L1 at hand (SDM vol. 3 appendix B: many exist only on
// processors that support some control), and where each is kept. Pure.

#include "vmcs12.h"
#include <arch/x86/msr.h>
#include <nestor/string.h>

// Fields that exist always, and those that exist with a control (its capability MSR and bit) or
// with a bit of IA32_VMX_EPT_VPID_CAP (appendix B's notes).
static const struct {
    u32 msr; // 0: always
    u64 control;
    u16 first, last; // every second encoding between them
} fields[] = {
    // 16-bit
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_VPID, VPID, VPID},
    {MSR_VMX_PINBASED_CTLS, PIN_POSTED_INTERRUPTS, POSTED_INTERRUPT_VECTOR,
     POSTED_INTERRUPT_VECTOR},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT_VIOLATION_VE, EPTP_INDEX, EPTP_INDEX},
    {0, 0, GUEST_ES_SELECTOR, GUEST_TR_SELECTOR},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_INTERRUPT_DELIVERY, GUEST_INTERRUPT_STATUS,
     GUEST_INTERRUPT_STATUS},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_PML, PML_INDEX, PML_INDEX},
    {0, 0, HOST_ES_SELECTOR, HOST_TR_SELECTOR},
    // 64-bit
    {0, 0, IO_BITMAP_A, EXECUTIVE_VMCS_POINTER},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_PML, PML_ADDRESS, PML_ADDRESS},
    {0, 0, TSC_OFFSET, TSC_OFFSET},
    {MSR_VMX_PROCBASED_CTLS, PRIMARY_TPR_SHADOW, VIRTUAL_APIC_ADDRESS, VIRTUAL_APIC_ADDRESS},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_APIC_ACCESSES, APIC_ACCESS_ADDRESS, APIC_ACCESS_ADDRESS},
    {MSR_VMX_PINBASED_CTLS, PIN_POSTED_INTERRUPTS, POSTED_INTERRUPT_DESCRIPTOR,
     POSTED_INTERRUPT_DESCRIPTOR},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_VM_FUNCTIONS, VM_FUNCTION_CONTROLS, VM_FUNCTION_CONTROLS},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT, EPT_POINTER, EPT_POINTER},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_INTERRUPT_DELIVERY, EOI_EXIT_BITMAP_0, EOI_EXIT_BITMAP_3},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_VM_FUNCTIONS, EPTP_LIST_ADDRESS, EPTP_LIST_ADDRESS},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_VMCS_SHADOWING, VMREAD_BITMAP, VMWRITE_BITMAP},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT_VIOLATION_VE, VE_INFO_ADDRESS, VE_INFO_ADDRESS},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_XSAVES, XSS_EXITING_BITMAP, XSS_EXITING_BITMAP},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_TSC_SCALING, TSC_MULTIPLIER, TSC_MULTIPLIER},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT, GUEST_PHYSICAL_ADDRESS, GUEST_PHYSICAL_ADDRESS},
    {0, 0, VMCS_LINK_POINTER, GUEST_DEBUGCTL},
    {MSR_VMX_ENTRY_CTLS, ENTRY_CTL_LOAD_PAT, GUEST_PAT, GUEST_PAT},
    {MSR_VMX_ENTRY_CTLS, ENTRY_CTL_LOAD_EFER, GUEST_EFER, GUEST_EFER},
    {MSR_VMX_ENTRY_CTLS, ENTRY_CTL_LOAD_PERF_GLOBAL, GUEST_PERF_GLOBAL_CTRL,
     GUEST_PERF_GLOBAL_CTRL},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT, GUEST_PDPTE0, GUEST_PDPTE3},
    {MSR_VMX_ENTRY_CTLS, ENTRY_CTL_LOAD_PKRS, GUEST_PKRS, GUEST_PKRS},
    {MSR_VMX_EXIT_CTLS, EXIT_CTL_LOAD_PAT, HOST_PAT, HOST_PAT},
    {MSR_VMX_EXIT_CTLS, EXIT_CTL_LOAD_EFER, HOST_EFER, HOST_EFER},
    {MSR_VMX_EXIT_CTLS, EXIT_CTL_LOAD_PERF_GLOBAL, HOST_PERF_GLOBAL_CTRL, HOST_PERF_GLOBAL_CTRL},
    {MSR_VMX_EXIT_CTLS, EXIT_CTL_LOAD_PKRS, HOST_PKRS, HOST_PKRS},
    // 32-bit
    {0, 0, PIN_BASED_CONTROLS, ENTRY_INSTRUCTION_LENGTH},
    {MSR_VMX_PROCBASED_CTLS, PRIMARY_TPR_SHADOW, TPR_THRESHOLD, TPR_THRESHOLD},
    {MSR_VMX_PROCBASED_CTLS, PRIMARY_SECONDARY, SECONDARY_CONTROLS, SECONDARY_CONTROLS},
    {MSR_VMX_PROCBASED_CTLS2, SECONDARY_PAUSE_LOOP, PLE_GAP, PLE_WINDOW},
    {0, 0, VM_INSTRUCTION_ERROR, EXIT_INSTRUCTION_INFO},
    {0, 0, GUEST_ES_LIMIT, GUEST_SYSENTER_CS},
    {MSR_VMX_PINBASED_CTLS, PIN_PREEMPTION_TIMER, PREEMPTION_TIMER_VALUE, PREEMPTION_TIMER_VALUE},
    {0, 0, HOST_SYSENTER_CS, HOST_SYSENTER_CS},
    // natural width
    {0, 0, CR0_GUEST_HOST_MASK, CR3_TARGET_VALUE3},
    {0, 0, EXIT_QUALIFICATION, GUEST_LINEAR_ADDRESS},
    {0, 0, GUEST_CR0, GUEST_SYSENTER_EIP},
    {MSR_VMX_ENTRY_CTLS, ENTRY_CTL_LOAD_CET, GUEST_S_CET, GUEST_INTERRUPT_SSP_TABLE},
    {0, 0, HOST_CR0, HOST_RIP},
    {MSR_VMX_EXIT_CTLS, EXIT_CTL_LOAD_CET, HOST_S_CET, HOST_INTERRUPT_SSP_TABLE},
};
_Static_assert(sizeof(struct vmcs12) <= PAGE_SIZE, "a VMCS region is 4 KiB");
_Static_assert(VMCS12_FIELDS <= 64 * ARRAY_SIZE(((struct nested *)0)->present), "a bit for each");

void vmcs12_fields_reset(struct nested *n)
{
    memset(n->present, 0, sizeof(n->present));
    n->highest_index = 0;
    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++) {
        if (fields[i].msr &&
            !(n->capability[fields[i].msr - MSR_VMX_BASIC] >> 32 & fields[i].control))
            continue;
        for (u32 encoding = fields[i].first; encoding <= fields[i].last; encoding += 2) {
            unsigned slot = vmcs12_slot(encoding);

            n->present[slot / 64] |= BIT(slot % 64);
            n->highest_index = MAX(n->highest_index, (u16)(encoding & BITS(9, 1)));
        }
    }
}

void vmcs12_fields_cut(struct nested *n)
{
    const unsigned end_16 = vmcs12_groups[4], first_32 = vmcs12_groups[8];
    const unsigned end_32 = vmcs12_groups[12];

    for (unsigned i = 0; i < end_16; i++)
        n->vmcs.field[i] = (u16)n->vmcs.field[i];
    for (unsigned i = first_32; i < end_32; i++)
        n->vmcs.field[i] = (u32)n->vmcs.field[i];
}

// Bit 12 and the bits above 14 are reserved; bit 0 is the access type, which is the caller's.
u64 *vmcs12_field(struct nested *n, u32 encoding)
{
    unsigned group = vmcs12_group(encoding), slot = vmcs12_slot(encoding);

    if ((encoding & ~(u32)(BITS(14, 13) | BITS(11, 1))) || slot >= vmcs12_groups[group + 1])
        return NULL;
    return n->present[slot / 64] >> slot % 64 & 1 ? &n->vmcs.field[slot] : NULL;
}
