// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// An L1 that is offered every control of the SDM, also those that none has yet, and states that
// pass the checks of VM entry: in each mode, and where a rule needs something beside it. For tests
// of nested/vmcs12_check*.c.

#pragma once

#include "nested/vmcs12_check.h"
#include "vmcs12_fake.h"

#define BEYOND             (1ull << PHYS_BITS)
#define NONCAN             0x0000800000000000ull
#define INFO(type, vector) (INFO_VALID | (u64)(type) << INFO_TYPE_SHIFT | (vector))

// --- fakes ---

const struct backend *backend = &(const struct backend){.scales_tsc = true};

bool cpuid_has(const struct vm *v, u32 leaf, unsigned reg, unsigned bit)
{
    (void)v, (void)leaf, (void)reg, (void)bit;
    return true;
}

bool cpuid_has_xsaves(const struct vm *v)
{
    (void)v;
    return true;
}

u64 cr4_allowed(const struct vcpu *v)
{
    (void)v;
    return BITS(10, 0) | CR4_VMXE | CR4_PCIDE | CR4_CET | (la57 ? CR4_LA57 : 0);
}

// Memory: VTPR's page at 5000H, a shadow VMCS at 6000H, an ordinary one at 7000H.
int guest_read_gpa(struct vcpu *v, gpa_t gpa, void *buf, u64 size)
{
    u32 word = gpa == 0x5080   ? 0x30
               : gpa == 0x6000 ? VMCS12_REVISION | (u32)VMCS12_SHADOW
               : gpa == 0x7000 ? VMCS12_REVISION
                               : 0;

    (void)v;
    if (gpa < 0x5000 || gpa >= 0x8000)
        return -E_FAULT;
    memcpy(buf, &word, size);
    return 0;
}

// --- good states ---

static u64 at(u32 field)
{
    return vmcs12_read(&nested, (enum vmcs_field)field);
}

static void change(u32 field, u64 clear, u64 set)
{
    put(field, (at(field) & ~clear) | set);
}

static u64 *capability_of(u32 msr)
{
    return &nested.capability[msr - MSR_VMX_BASIC];
}

#define SECONDARY_ALL                                                                         \
    (SECONDARY_APIC_ACCESSES | SECONDARY_EPT | SECONDARY_X2APIC | SECONDARY_VPID |            \
     SECONDARY_UNRESTRICTED_GUEST | SECONDARY_APIC_REGISTERS | SECONDARY_INTERRUPT_DELIVERY | \
     SECONDARY_VM_FUNCTIONS | SECONDARY_VMCS_SHADOWING | SECONDARY_PML |                      \
     SECONDARY_EPT_VIOLATION_VE | SECONDARY_TSC_SCALING | SECONDARY_MBEC | BIT(3))

static void offer(u32 msr, u32 exact, u64 bits)
{
    *capability_of(msr) |= bits << 32;
    if (exact)
        *capability_of(exact) |= bits << 32;
}

static void offer_everything(void)
{
    offer(MSR_VMX_PINBASED_CTLS, MSR_VMX_TRUE_PINBASED_CTLS,
          PIN_VIRTUAL_NMIS | PIN_PREEMPTION_TIMER | PIN_POSTED_INTERRUPTS);
    offer(MSR_VMX_PROCBASED_CTLS, MSR_VMX_TRUE_PROCBASED_CTLS,
          PRIMARY_TPR_SHADOW | PRIMARY_NMI_WINDOW | PRIMARY_MTF | PRIMARY_SECONDARY);
    offer(MSR_VMX_PROCBASED_CTLS2, 0, SECONDARY_ALL);
    offer(MSR_VMX_EXIT_CTLS, MSR_VMX_TRUE_EXIT_CTLS,
          EXIT_CTL_SAVE_TIMER | EXIT_CTL_LOAD_PERF_GLOBAL | EXIT_CTL_LOAD_CET | EXIT_CTL_LOAD_PKRS);
    offer(MSR_VMX_ENTRY_CTLS, MSR_VMX_TRUE_ENTRY_CTLS,
          ENTRY_CTL_LOAD_PERF_GLOBAL | ENTRY_CTL_LOAD_CET | ENTRY_CTL_LOAD_PKRS);
    *capability_of(MSR_VMX_EPT_VPID_CAP) =
        EPT_CAP_WALK_4 | EPT_CAP_WALK_5 | EPT_CAP_UC | EPT_CAP_WB | EPT_CAP_AD;
    *capability_of(MSR_VMX_VMFUNC) = 1;
    *capability_of(MSR_VMX_BASIC) &= ~VMX_BASIC_ANY_ERROR; // unless a case has it
    *capability_of(MSR_VMX_MISC) &= ~VMX_MISC_ACTIVITY_SHUTDOWN;
    *capability_of(MSR_VMX_MISC) |= VMX_MISC_ACTIVITY_HLT | VMX_MISC_ACTIVITY_WAIT_SIPI;
}

static void put_controls(void)
{
    put(PIN_BASED_CONTROLS,
        (u32)*capability_of(MSR_VMX_TRUE_PINBASED_CTLS) | PIN_EXTERNAL_INTERRUPT | PIN_NMI);
    put(PRIMARY_CONTROLS, (u32)*capability_of(MSR_VMX_TRUE_PROCBASED_CTLS) | PRIMARY_IO_BITMAPS |
                              PRIMARY_MSR_BITMAPS | PRIMARY_TPR_SHADOW | PRIMARY_SECONDARY);
    put(SECONDARY_CONTROLS, SECONDARY_EPT | SECONDARY_VPID | SECONDARY_VM_FUNCTIONS |
                                SECONDARY_VMCS_SHADOWING | SECONDARY_PML |
                                SECONDARY_EPT_VIOLATION_VE | SECONDARY_TSC_SCALING);
    put(EXIT_CONTROLS, (u32)*capability_of(MSR_VMX_TRUE_EXIT_CTLS) | EXIT_CTL_HOST_64 |
                           EXIT_CTL_LOAD_PAT | EXIT_CTL_LOAD_EFER | EXIT_CTL_LOAD_PERF_GLOBAL |
                           EXIT_CTL_LOAD_CET | EXIT_CTL_LOAD_PKRS | EXIT_CTL_ACK_INTERRUPT);
    put(ENTRY_CONTROLS, (u32)*capability_of(MSR_VMX_TRUE_ENTRY_CTLS) | ENTRY_CTL_IA32E_GUEST |
                            ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT | ENTRY_CTL_LOAD_EFER |
                            ENTRY_CTL_LOAD_PERF_GLOBAL | ENTRY_CTL_LOAD_CET | ENTRY_CTL_LOAD_PKRS);
    put(VIRTUAL_APIC_ADDRESS, 0x5000);
    put(TPR_THRESHOLD, 3);
    put(VPID, 1);
    put(EPT_POINTER, 0x1000 | 3 << EPTP_LEVELS_SHIFT | EPTP_TYPE_WB);
    put(VM_FUNCTION_CONTROLS, 1);
    put(TSC_MULTIPLIER, 1);
    put(VMCS_LINK_POINTER, 0x6000);
}

static void good(void)
{
    fake_reset();
    lacks_fields = true;
    nested.current = 0x7000;
    offer_everything();
    put_controls();
    put_host();
    put_guest();
    put(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    put_segment(SEG_LDTR, 0x28, 0x82, 0xff, 0);
    nested.due = DUE_ALL;
}

static void good_32(void) // PAE paging
{
    good();
    change(ENTRY_CONTROLS, ENTRY_CTL_IA32E_GUEST, 0);
    put(GUEST_EFER, 0);
    put_segment(SEG_CS, 8, 0xc09b, ~0u, 0);
}

static void good_v8086(void)
{
    good_32();
    change(GUEST_RFLAGS, 0, RFLAGS_VM);
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++)
        put_segment(seg, 0x1234, 0xf3, 0xffff, 0x12340);
}

static void good_real(void)
{
    good_32();
    change(SECONDARY_CONTROLS, 0, SECONDARY_UNRESTRICTED_GUEST);
    put(GUEST_CR0, CR0_NE | CR0_WP);
    put(GUEST_CR4, CR4_VMXE);
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++)
        put_segment(seg, 0x1234, 0x93, 0xffff, 0x12340);
}

static void good_host_32(void) // of a 32-bit L1
{
    good_32();
    vcpu.cur->state.efer = 0;
    change(EXIT_CONTROLS, EXIT_CTL_HOST_64, 0);
    put(HOST_EFER, 0);
    put(HOST_RIP, 0x1000);
}

static void good_apic(void)
{
    good();
    change(SECONDARY_CONTROLS, 0, SECONDARY_INTERRUPT_DELIVERY | SECONDARY_APIC_REGISTERS);
    change(PIN_BASED_CONTROLS, 0, PIN_POSTED_INTERRUPTS | PIN_VIRTUAL_NMIS);
    change(PRIMARY_CONTROLS, 0, PRIMARY_NMI_WINDOW);
}

static void good_accesses(void)
{
    good();
    change(SECONDARY_CONTROLS, 0, SECONDARY_APIC_ACCESSES);
}

static void good_injection(void)
{
    good();
    change(PIN_BASED_CONTROLS, 0, PIN_VIRTUAL_NMIS);
    put(ENTRY_INTERRUPTION_INFO, INFO_VALID | INFO_ERROR_CODE | EVENT_EXCEPTION << 8 | VECTOR_GP);
    put(ENTRY_INSTRUCTION_LENGTH, 1);
}

static void good_halted(void)
{
    good();
    put(GUEST_ACTIVITY_STATE, ACTIVITY_HLT);
}

// A single step is due behind the shadow; the entry loads no IA32_DEBUGCTL, the field counts.
static void good_stepped(void)
{
    good();
    change(ENTRY_CONTROLS, ENTRY_CTL_LOAD_DEBUG, 0);
    put(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_TF | RFLAGS_IF);
    put(GUEST_INTERRUPTIBILITY, BLOCK_STI);
    put(GUEST_PENDING_DBG, DR6_BS);
}

static void good_cpl3(void)
{
    good();
    put_segment(SEG_CS, 0x33, 0xa0fb, ~0u, 0);
    put_segment(SEG_SS, 0x2b, 0xc0f3, ~0u, 0);
}

static void (*const states[])(void) = {good_cpl3,      good,         good_32,     good_v8086,
                                       good_real,      good_host_32, good_apic,   good_accesses,
                                       good_injection, good_halted,  good_stepped};

static const struct check_row *refusing(u64 *qualification)
{
    u32 result;
    const struct check_row *row = vmcs12_refusing_row(&vcpu, &result);

    *qualification = row ? row->qualification : 0;
    return row;
}
