// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: nested/vmcs12_fields.c nested/vmcs12_caps.c nested/vmcs12_check.c nested/vmcs12_check_host.c nested/vmcs12_check_guest.c
//
// The checks of VM entry with every control of the SDM offered, also those that no L1 has yet: each
// row of the tables is met alone by a VMCS12 that is right but for it; and a million mutated ones
// are judged as a second statement of the manual's rules, made without the tables, judges them.

#include "nested/vmcs12_check.h"
#include "vmcs12_fake.h"

enum { CASES = 1000000 };
#define BEYOND (1ull << PHYS_BITS)
#define NONCAN 0x0000800000000000ull

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

// --- each row ---

static const struct check_row *refusing(u64 *qualification)
{
    u32 result;
    const struct check_row *row = vmcs12_refusing_row(&vcpu, &result);

    *qualification = row ? row->qualification : 0;
    return row;
}

#define INFO(type, vector) (INFO_VALID | (u64)(type) << INFO_TYPE_SHIFT | (vector))
#define ALL                (~0ull)

static const struct spoiled {
    const char *row;
    void (*state)(void);
    u16 field;
    u64 clear, set;
    u8 qualification;
} spoiled[] = {
    {"pin-based controls: reserved bits", good, PIN_BASED_CONTROLS, 0, BIT(8), 0},
    {"pin-based controls: reserved bits", good, PIN_BASED_CONTROLS, BIT(1), 0, 0},
    {"primary controls: reserved bits", good, PRIMARY_CONTROLS, BIT(1), 0, 0},
    {"primary controls: reserved bits", good, PRIMARY_CONTROLS, 0, PRIMARY_TERTIARY, 0},
    {"secondary controls: reserved bits", good, SECONDARY_CONTROLS, 0, BIT(31), 0},
    {"CR3-target count", good, CR3_TARGET_COUNT, 0, 5, 0},
    {"I/O-bitmap A address", good, IO_BITMAP_A, 0, 1, 0},
    {"I/O-bitmap A address", good, IO_BITMAP_A, 0, BEYOND, 0},
    {"I/O-bitmap B address", good, IO_BITMAP_B, 0, 0x800, 0},
    {"MSR-bitmap address", good, MSR_BITMAP, 0, BIT(63), 0},
    {"virtual-APIC address", good, VIRTUAL_APIC_ADDRESS, 0, 0x10, 0},
    {"TPR threshold: bits 31:4", good, TPR_THRESHOLD, 0, 0x10, 0},
    {"TPR threshold: above VTPR", good, TPR_THRESHOLD, 0, 4, 0},
    {"virtual NMIs without NMI exiting", good_apic, PIN_BASED_CONTROLS, PIN_NMI, 0, 0},
    {"NMI-window exiting without virtual NMIs", good, PRIMARY_CONTROLS, 0, PRIMARY_NMI_WINDOW, 0},
    {"APIC-access address", good_accesses, APIC_ACCESS_ADDRESS, 0, BEYOND, 0},
    {"x2APIC, APIC registers, interrupt delivery without TPR shadow", good_apic, PRIMARY_CONTROLS,
     PRIMARY_TPR_SHADOW, 0, 0},
    {"x2APIC mode with APIC accesses", good_accesses, SECONDARY_CONTROLS, 0, SECONDARY_X2APIC, 0},
    {"interrupt delivery without external-interrupt exiting", good_apic, PIN_BASED_CONTROLS,
     PIN_EXTERNAL_INTERRUPT, 0, 0},
    {"posted interrupts without interrupt delivery", good, PIN_BASED_CONTROLS, 0,
     PIN_POSTED_INTERRUPTS, 0},
    {"posted interrupts without acknowledge on exit", good_apic, EXIT_CONTROLS,
     EXIT_CTL_ACK_INTERRUPT, 0, 0},
    {"posted-interrupt notification vector", good_apic, POSTED_INTERRUPT_VECTOR, 0, 0x100, 0},
    {"posted-interrupt descriptor address", good_apic, POSTED_INTERRUPT_DESCRIPTOR, 0, 0x20, 0},
    {"VPID 0", good, VPID, ALL, 0, 0},
    {"EPTP", good, EPT_POINTER, 7, 1, 0},
    {"EPTP", good, EPT_POINTER, 7, 7, 0},
    {"EPTP", good, EPT_POINTER, 0x38, 2 << 3, 0},
    {"EPTP", good, EPT_POINTER, 0x38, 5 << 3, 0},
    {"EPTP", good, EPT_POINTER, 0, BIT(7), 0},
    {"EPTP", good, EPT_POINTER, 0, BIT(11), 0},
    {"EPTP", good, EPT_POINTER, 0, BEYOND, 0},
    {"PML without EPT", good, SECONDARY_CONTROLS, SECONDARY_EPT, 0, 0},
    {"PML address", good, PML_ADDRESS, 0, 8, 0},
    {"unrestricted guest without EPT", good_real, SECONDARY_CONTROLS, SECONDARY_EPT | SECONDARY_PML,
     0, 0},
    {"VM-function controls: reserved bits", good, VM_FUNCTION_CONTROLS, 0, 2, 0},
    {"EPTP-list address", good, EPTP_LIST_ADDRESS, 0, 0x10, 0},
    {"EPTP-list address", good, SECONDARY_CONTROLS, SECONDARY_EPT | SECONDARY_PML, 0, 0},
    {"VMREAD-bitmap address", good, VMREAD_BITMAP, 0, 4, 0},
    {"VMWRITE-bitmap address", good, VMWRITE_BITMAP, 0, BEYOND, 0},
    {"virtualization-exception information address", good, VE_INFO_ADDRESS, 0, 4, 0},
    {"TSC multiplier 0", good, TSC_MULTIPLIER, ALL, 0, 0},
    {"exit controls: reserved bits", good, EXIT_CONTROLS, 1, 0, 0},
    {"save preemption timer without the timer", good, EXIT_CONTROLS, 0, EXIT_CTL_SAVE_TIMER, 0},
    {"entry controls: reserved bits", good, ENTRY_CONTROLS, 0, ENTRY_CTL_SMM, 0},
    {"interruption information: type", good, ENTRY_INTERRUPTION_INFO, 0, INFO(1, 0x40), 0},
    {"interruption information: vector", good, ENTRY_INTERRUPTION_INFO, 0, INFO(2, 3), 0},
    {"interruption information: vector", good, ENTRY_INTERRUPTION_INFO, 0, INFO(3, 32), 0},
    {"interruption information: vector", good, ENTRY_INTERRUPTION_INFO, 0, INFO(7, 1), 0},
    {"interruption information: deliver error code", good, ENTRY_INTERRUPTION_INFO, 0,
     INFO(3, VECTOR_GP), 0},
    {"interruption information: deliver error code", good, ENTRY_INTERRUPTION_INFO, 0,
     INFO(3, VECTOR_UD) | INFO_ERROR_CODE, 0},
    {"interruption information: deliver error code", good_real, ENTRY_INTERRUPTION_INFO, 0,
     INFO(3, VECTOR_GP) | INFO_ERROR_CODE, 0},
    {"interruption information: bits 30:12", good, ENTRY_INTERRUPTION_INFO, 0,
     INFO(0, 0x40) | BIT(12), 0},
    {"exception error code: bits 31:16", good_injection, ENTRY_EXCEPTION_ERROR_CODE, 0, BIT(16), 0},
    {"instruction length", good, ENTRY_INTERRUPTION_INFO, 0, INFO(6, VECTOR_BP), 0},
    {"host CR0: fixed bits", good, HOST_CR0, CR0_NE, 0, 0},
    {"host CR0: fixed bits", good, HOST_CR0, 0, BIT(32), 0},
    {"host CR4: fixed bits", good, HOST_CR4, CR4_VMXE, 0, 0},
    {"host CR3", good, HOST_CR3, 0, BEYOND, 0},
    {"host IA32_SYSENTER_ESP", good, HOST_SYSENTER_ESP, 0, NONCAN, 0},
    {"host IA32_SYSENTER_EIP", good, HOST_SYSENTER_EIP, 0, NONCAN, 0},
    {"host IA32_PERF_GLOBAL_CTRL", good, HOST_PERF_GLOBAL_CTRL, 0, BIT(8), 0},
    {"host IA32_PAT", good, HOST_PAT, 0xff, 2, 0},
    {"host IA32_EFER", good, HOST_EFER, EFER_LMA, 0, 0},
    {"host IA32_EFER", good, HOST_EFER, 0, BIT(1), 0},
    {"host IA32_S_CET", good, HOST_S_CET, 0, BIT(6), 0},
    {"host IA32_S_CET", good, HOST_S_CET, 0, BITS(11, 10), 0},
    {"host IA32_INTERRUPT_SSP_TABLE_ADDR", good, HOST_INTERRUPT_SSP_TABLE, 0, NONCAN, 0},
    {"host SSP: bits 1:0", good, HOST_SSP, 0, 2, 0},
    {"host SSP", good, HOST_SSP, 0, NONCAN, 0},
    {"host IA32_PKRS", good, HOST_PKRS, 0, BIT(32), 0},
    {"host selectors: RPL and TI", good, HOST_FS_SELECTOR, 0, 4, 0},
    {"host CS 0", good, HOST_CS_SELECTOR, ALL, 0, 0},
    {"host TR 0", good, HOST_TR_SELECTOR, ALL, 0, 0},
    {"host SS 0", good_host_32, HOST_SS_SELECTOR, ALL, 0, 0},
    {"host FS base", good, HOST_FS_BASE, 0, NONCAN, 0},
    {"host GS base", good, HOST_GS_BASE, 0, NONCAN, 0},
    {"host GDTR base", good, HOST_GDTR_BASE, 0, NONCAN, 0},
    {"host IDTR base", good, HOST_IDTR_BASE, 0, NONCAN, 0},
    {"host TR base", good, HOST_TR_BASE, 0, NONCAN, 0},
    {"host address-space size", good_32, EXIT_CONTROLS, EXIT_CTL_HOST_64 | EXIT_CTL_LOAD_EFER, 0,
     0},
    {"IA-32e mode guest of a 32-bit host", good_host_32, ENTRY_CONTROLS, 0, ENTRY_CTL_IA32E_GUEST,
     0},
    {"host CR4.PCIDE of a 32-bit host", good_host_32, HOST_CR4, 0, CR4_PCIDE, 0},
    {"host RIP of a 32-bit host", good_host_32, HOST_RIP, 0, BIT(32), 0},
    {"host IA32_S_CET and SSP of a 32-bit host", good_host_32, HOST_S_CET, 0, BIT(32), 0},
    {"host IA32_S_CET and SSP of a 32-bit host", good_host_32, HOST_SSP, 0, BIT(40), 0},
    {"host CR4.PAE of a 64-bit host", good, HOST_CR4, CR4_PAE, 0, 0},
    {"host RIP", good, HOST_RIP, BIT(63), 0, 0},
    {"guest CR0: fixed bits", good, GUEST_CR0, CR0_PE | CR0_PG, 0, 0},
    {"guest CR0: fixed bits", good_real, GUEST_CR0, CR0_NE, 0, 0},
    {"guest CR0.PG without PE", good_real, GUEST_CR0, 0, CR0_PG, 0},
    {"guest CR4: fixed bits", good, GUEST_CR4, 0, BIT(25), 0},
    {"guest IA32_DEBUGCTL", good, GUEST_DEBUGCTL, 0, BIT(2), 0},
    {"IA-32e mode guest without CR0.PG or CR4.PAE", good, GUEST_CR4, CR4_PAE, 0, 0},
    {"guest CR4.PCIDE outside IA-32e mode", good_32, GUEST_CR4, 0, CR4_PCIDE, 0},
    {"guest CR3", good, GUEST_CR3, 0, BEYOND, 0},
    {"guest DR7", good, GUEST_DR7, 0, BIT(32), 0},
    {"guest IA32_SYSENTER_ESP", good, GUEST_SYSENTER_ESP, 0, NONCAN, 0},
    {"guest IA32_SYSENTER_EIP", good, GUEST_SYSENTER_EIP, 0, NONCAN, 0},
    {"guest IA32_S_CET", good, GUEST_S_CET, 0, BIT(9), 0},
    {"guest IA32_INTERRUPT_SSP_TABLE_ADDR", good, GUEST_INTERRUPT_SSP_TABLE, 0, NONCAN, 0},
    {"guest IA32_PERF_GLOBAL_CTRL", good, GUEST_PERF_GLOBAL_CTRL, 0, 1, 0},
    {"guest IA32_PAT", good, GUEST_PAT, 0, BIT(63), 0},
    {"guest IA32_EFER", good, GUEST_EFER, EFER_LMA, 0, 0},
    {"guest IA32_EFER", good, GUEST_EFER, EFER_LME, 0, 0},
    {"guest IA32_PKRS", good, GUEST_PKRS, 0, BIT(63), 0},
    {"TI flag: TR", good, GUEST_TR_SELECTOR, 0, 4, 0},
    {"TI flag: LDTR", good, GUEST_LDTR_SELECTOR, 0, 4, 0},
    {"SS.RPL is not CS.RPL", good, GUEST_SS_SELECTOR, 0, 1, 0},
    {"virtual-8086 base: ES", good_v8086, GUEST_ES_BASE, 0, 1, 0},
    {"virtual-8086 base: CS", good_v8086, GUEST_CS_BASE, 0, 1, 0},
    {"virtual-8086 base: SS", good_v8086, GUEST_SS_BASE, 0, 1, 0},
    {"virtual-8086 base: DS", good_v8086, GUEST_DS_BASE, 0, 1, 0},
    {"virtual-8086 base: FS", good_v8086, GUEST_FS_BASE, 0, 1, 0},
    {"virtual-8086 base: GS", good_v8086, GUEST_GS_BASE, 0, 1, 0},
    {"base: TR", good, GUEST_TR_BASE, 0, NONCAN, 0},
    {"base: FS", good, GUEST_FS_BASE, 0, NONCAN, 0},
    {"base: GS", good, GUEST_GS_BASE, 0, NONCAN, 0},
    {"base: LDTR", good, GUEST_LDTR_BASE, 0, NONCAN, 0},
    {"base: CS", good, GUEST_CS_BASE, 0, BIT(32), 0},
    {"base: SS", good, GUEST_SS_BASE, 0, BIT(32), 0},
    {"base: DS", good, GUEST_DS_BASE, 0, BIT(32), 0},
    {"base: ES", good, GUEST_ES_BASE, 0, BIT(32), 0},
    {"virtual-8086 limit: ES", good_v8086, GUEST_ES_LIMIT, 1, 0, 0},
    {"virtual-8086 limit: CS", good_v8086, GUEST_CS_LIMIT, 1, 0, 0},
    {"virtual-8086 limit: SS", good_v8086, GUEST_SS_LIMIT, 1, 0, 0},
    {"virtual-8086 limit: DS", good_v8086, GUEST_DS_LIMIT, 1, 0, 0},
    {"virtual-8086 limit: FS", good_v8086, GUEST_FS_LIMIT, 1, 0, 0},
    {"virtual-8086 limit: GS", good_v8086, GUEST_GS_LIMIT, 0, BIT(16), 0},
    {"virtual-8086 access rights: ES", good_v8086, GUEST_ES_ACCESS, 0x60, 0, 0},
    {"virtual-8086 access rights: CS", good_v8086, GUEST_CS_ACCESS, 0, 8, 0},
    {"virtual-8086 access rights: SS", good_v8086, GUEST_SS_ACCESS, 0x60, 0, 0},
    {"virtual-8086 access rights: DS", good_v8086, GUEST_DS_ACCESS, 0, SEG_UNUSABLE, 0},
    {"virtual-8086 access rights: FS", good_v8086, GUEST_FS_ACCESS, 0x60, 0, 0},
    {"virtual-8086 access rights: GS", good_v8086, GUEST_GS_ACCESS, 0x60, 0, 0},
    {"type: ES", good, GUEST_ES_ACCESS, 1, 0, 0},
    {"type: CS", good, GUEST_CS_ACCESS, 1, 0, 0},
    {"type: CS", good, GUEST_CS_ACCESS, 0xf, 3, 0}, // without unrestricted guest
    {"type: SS", good, GUEST_SS_ACCESS, 2, 0, 0},
    {"type: DS", good, GUEST_DS_ACCESS, 2, 8, 0}, // code that can't be read
    {"type: FS", good, GUEST_FS_ACCESS, 1, 0, 0},
    {"type: GS", good, GUEST_GS_ACCESS, 1, 0, 0},
    {"S: ES", good, GUEST_ES_ACCESS, SEG_S, 0, 0},
    {"S: CS", good, GUEST_CS_ACCESS, SEG_S, 0, 0},
    {"S: SS", good, GUEST_SS_ACCESS, SEG_S, 0, 0},
    {"S: DS", good, GUEST_DS_ACCESS, SEG_S, 0, 0},
    {"S: FS", good, GUEST_FS_ACCESS, SEG_S, 0, 0},
    {"S: GS", good, GUEST_GS_ACCESS, SEG_S, 0, 0},
    {"DPL: ES", good, GUEST_ES_SELECTOR, 0, 3, 0},
    {"DPL: CS", good, GUEST_CS_ACCESS, 0, SEG_DPL, 0},
    {"DPL: CS", good_real, GUEST_CS_ACCESS, 0, SEG_DPL, 0},
    {"DPL: SS", good_real, GUEST_SS_ACCESS, 0, SEG_DPL, 0},
    {"DPL: DS", good, GUEST_DS_SELECTOR, 0, 3, 0},
    {"DPL: FS", good, GUEST_FS_SELECTOR, 0, 3, 0},
    {"DPL: GS", good, GUEST_GS_SELECTOR, 0, 3, 0},
    {"P: ES", good, GUEST_ES_ACCESS, SEG_P, 0, 0},
    {"P: CS", good, GUEST_CS_ACCESS, SEG_P, 0, 0},
    {"P: SS", good, GUEST_SS_ACCESS, SEG_P, 0, 0},
    {"P: DS", good, GUEST_DS_ACCESS, SEG_P, 0, 0},
    {"P: FS", good, GUEST_FS_ACCESS, SEG_P, 0, 0},
    {"P: GS", good, GUEST_GS_ACCESS, SEG_P, 0, 0},
    {"access rights: reserved bits: ES", good, GUEST_ES_ACCESS, 0, BIT(8), 0},
    {"access rights: reserved bits: CS", good, GUEST_CS_ACCESS, 0, BIT(11), 0},
    {"access rights: reserved bits: SS", good, GUEST_SS_ACCESS, 0, BIT(17), 0},
    {"access rights: reserved bits: DS", good, GUEST_DS_ACCESS, 0, BIT(31), 0},
    {"access rights: reserved bits: FS", good, GUEST_FS_ACCESS, 0, BIT(9), 0},
    {"access rights: reserved bits: GS", good, GUEST_GS_ACCESS, 0, BIT(10), 0},
    {"CS.L and D/B", good, GUEST_CS_ACCESS, 0, SEG_DB, 0},
    {"G: ES", good, GUEST_ES_LIMIT, 1, 0, 0},
    {"G: CS", good, GUEST_CS_ACCESS, SEG_G, 0, 0},
    {"G: SS", good, GUEST_SS_ACCESS, SEG_G, 0, 0},
    {"G: DS", good, GUEST_DS_LIMIT, 0x800, 0, 0},
    {"G: FS", good, GUEST_FS_LIMIT, 1, 0, 0},
    {"G: GS", good, GUEST_GS_LIMIT, 1, 0, 0},
    {"type: TR", good, GUEST_TR_ACCESS, 0xf, 3, 0},
    {"type: TR", good_32, GUEST_TR_ACCESS, 0xf, 9, 0},
    {"access rights: TR", good, GUEST_TR_ACCESS, SEG_P, 0, 0},
    {"access rights: TR", good, GUEST_TR_ACCESS, 0, SEG_S, 0},
    {"access rights: TR", good, GUEST_TR_ACCESS, 0, BIT(8), 0},
    {"G: TR", good, GUEST_TR_ACCESS, 0, SEG_G, 0},
    {"unusable: TR", good, GUEST_TR_ACCESS, 0, SEG_UNUSABLE, 0},
    {"type: LDTR", good, GUEST_LDTR_ACCESS, 0, 1, 0},
    {"access rights: LDTR", good, GUEST_LDTR_ACCESS, 0, BIT(31), 0},
    {"G: LDTR", good, GUEST_LDTR_LIMIT, 0, BIT(20), 0},
    {"guest GDTR base", good, GUEST_GDTR_BASE, 0, NONCAN, 0},
    {"guest IDTR base", good, GUEST_IDTR_BASE, 0, NONCAN, 0},
    {"guest GDTR limit", good, GUEST_GDTR_LIMIT, 0, BIT(16), 0},
    {"guest IDTR limit", good, GUEST_IDTR_LIMIT, 0, BIT(31), 0},
    {"guest RIP", good, GUEST_RIP, 0, BIT(48), 0},
    {"guest RIP", good_32, GUEST_RIP, 0, BIT(32), 0},
    {"guest RFLAGS: fixed bits", good, GUEST_RFLAGS, RFLAGS_FIXED, 0, 0},
    {"guest RFLAGS: fixed bits", good, GUEST_RFLAGS, 0, BIT(22), 0},
    {"guest SSP", good, GUEST_SSP, 0, 1, 0},
    {"guest SSP", good_32, GUEST_SSP, 0, BIT(60), 0},
    {"activity state", good, GUEST_ACTIVITY_STATE, 0, 4, 0},
    {"activity state", good, GUEST_ACTIVITY_STATE, 0, ACTIVITY_SHUTDOWN, 0},
    {"activity state HLT with SS.DPL", good_cpl3, GUEST_ACTIVITY_STATE, 0, 1, 0},
    {"activity state with STI or MOV SS blocking", good_halted, GUEST_INTERRUPTIBILITY, 0,
     BLOCK_STI, 0},
    {"activity state and the event injected", good_injection, GUEST_ACTIVITY_STATE, 0, 1, 0},
    {"activity state and the event injected", good_injection, GUEST_ACTIVITY_STATE, 0, 3, 0},
    {"interruptibility state: reserved bits", good, GUEST_INTERRUPTIBILITY, 0, BIT(4), 0},
    {"STI and MOV SS blocking", good, GUEST_INTERRUPTIBILITY, 0, BLOCK_STI | BLOCK_MOV_SS, 0},
    {"SMI blocking outside SMM", good, GUEST_INTERRUPTIBILITY, 0, BLOCK_SMI, 0},
    {"pending debug exceptions: reserved bits", good, GUEST_PENDING_DBG, 0, BIT(16), 0},
    {"pending debug exceptions: BS", good_halted, GUEST_PENDING_DBG, 0, DR6_BS, 0},
    {"pending debug exceptions: BS", good_halted, GUEST_RFLAGS, 0, RFLAGS_TF, 0},
    {"pending debug exceptions: BS", good_stepped, GUEST_DEBUGCTL, 0, DEBUGCTL_BTF, 0},
    {"VMCS link pointer: address", good, VMCS_LINK_POINTER, 0, 1, 4},
    {"VMCS link pointer: address", good, VMCS_LINK_POINTER, 0, BEYOND, 4},
    {"VMCS link pointer: revision", good, VMCS_LINK_POINTER, ALL, 0x7000, 4}, // no shadow VMCS
    {"VMCS link pointer: revision", good, VMCS_LINK_POINTER, ALL, 0x100000, 4},
    {"PDPTEs", good_32, GUEST_PDPTE3, 0, BIT(1) | 1, 2},
    {"PDPTEs", good_32, GUEST_PDPTE0, 0, BEYOND | 1, 2},
};

// Rows that need two fields to be met alone.
static const struct {
    const char *row;
    void (*state)(void);
    u16 field[2];
    u64 set[2];
    u8 qualification;
} two[] = {
    {"exit MSR-store address", good, {EXIT_MSR_STORE_COUNT, EXIT_MSR_STORE_ADDRESS}, {1, 8}, 0},
    {"exit MSR-load address", good, {EXIT_MSR_LOAD_COUNT, EXIT_MSR_LOAD_ADDRESS}, {1, BEYOND}, 0},
    {"entry MSR-load address",
     good,
     {ENTRY_MSR_LOAD_COUNT, ENTRY_MSR_LOAD_ADDRESS},
     {2, BEYOND - 16},
     0},
    {"host CR4.CET without CR0.WP",
     good,
     {HOST_CR0, HOST_CR4},
     {CR0_PE | CR0_NE | CR0_PG, CR4_PAE | CR4_VMXE | CR4_CET},
     0},
    {"guest CR4.CET without CR0.WP",
     good,
     {GUEST_CR0, GUEST_CR4},
     {CR0_PE | CR0_NE | CR0_PG, CR4_PAE | CR4_VMXE | CR4_CET},
     0},
    {"guest RFLAGS.VM",
     good_v8086,
     {SECONDARY_CONTROLS, GUEST_CR0},
     {SECONDARY_EPT | SECONDARY_UNRESTRICTED_GUEST | SECONDARY_VMCS_SHADOWING, CR0_NE},
     0},
    {"guest RFLAGS.IF", good, {ENTRY_INTERRUPTION_INFO, GUEST_RFLAGS}, {INFO(0, 64), 2}, 0},
    {"STI blocking with RFLAGS.IF 0",
     good,
     {GUEST_INTERRUPTIBILITY, GUEST_RFLAGS},
     {BLOCK_STI, RFLAGS_FIXED},
     0},
    {"an interrupt with STI or MOV SS blocking",
     good,
     {ENTRY_INTERRUPTION_INFO, GUEST_INTERRUPTIBILITY},
     {INFO(0, 64), BLOCK_MOV_SS},
     0},
    {"an NMI with MOV SS blocking",
     good,
     {ENTRY_INTERRUPTION_INFO, GUEST_INTERRUPTIBILITY},
     {INFO(2, 2), BLOCK_MOV_SS},
     0},
    {"an NMI with virtual-NMI blocking",
     good_injection,
     {ENTRY_INTERRUPTION_INFO, GUEST_INTERRUPTIBILITY},
     {INFO(2, 2), BLOCK_NMI},
     0},
    {"VMCS link pointer: the current VMCS",
     good,
     {SECONDARY_CONTROLS, VMCS_LINK_POINTER},
     {SECONDARY_EPT, 0x7000},
     4},
};

static bool met[256];

static void meet(const char *name)
{
    static const struct check_table *const tables[] = {&vmcs12_control_checks, &vmcs12_host_checks,
                                                       &vmcs12_guest_checks};
    unsigned n = 0;

    for (unsigned t = 0; t < ARRAY_SIZE(tables); t++)
        for (unsigned i = 0; i < tables[t]->count; i++, n++)
            if (!name && !met[n])
                fail_msg("no case for the row \"%s\"", tables[t]->rows[i].name);
            else if (name && !strcmp(name, tables[t]->rows[i].name))
                met[n] = true;
}

static void expect_row(const char *name, u8 expected_qualification)
{
    u64 qualification;
    const struct check_row *row = refusing(&qualification);

    if (!row || strcmp(row->name, name))
        fail_msg("expected \"%s\", refused by \"%s\"", name, row ? row->name : "nothing");
    assert_int_equal(qualification, expected_qualification);
    meet(name);
}

static void test_good(void **state)
{
    u64 qualification;

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(states); i++) {
        const struct check_row *row;

        states[i]();
        row = refusing(&qualification);
        if (row)
            fail_msg("good state %u is refused by \"%s\"", i, row->name);
    }
}

static void test_rows(void **state)
{
    (void)state;
    memset(met, 0, sizeof(met));
    for (unsigned i = 0; i < ARRAY_SIZE(spoiled); i++) {
        spoiled[i].state();
        change(spoiled[i].field, spoiled[i].clear, spoiled[i].set);
        expect_row(spoiled[i].row, spoiled[i].qualification);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(two); i++) {
        two[i].state();
        put(two[i].field[0], two[i].set[0]);
        put(two[i].field[1], two[i].set[1]);
        expect_row(two[i].row, two[i].qualification);
    }
    meet(NULL);
}

// --- the same rules once more, without the tables ---

enum verdict { PASSES, CONTROLS, HOST, GUEST };

static bool canonical(u64 address)
{
    return address + NONCAN < 2 * NONCAN;
}

static bool page(u64 address)
{
    return !(address & 0xfff) && address < BEYOND;
}

static bool fixed(u64 value, u32 msr)
{
    u64 cap = *capability_of(msr);

    return (value & (u32)cap) == (u32)cap && (value | cap >> 32) == cap >> 32;
}

static bool area_fits(u32 count, u32 address)
{
    return !at(count) ||
           (!(at(address) & 15) && at(address) < BEYOND && at(address) + 16 * at(count) <= BEYOND);
}

static bool apic_right(u64 pin, u64 primary, u64 secondary)
{
    u8 threshold = (u8)at(TPR_THRESHOLD), vtpr = 0xff;
    bool delivery = secondary & SECONDARY_INTERRUPT_DELIVERY;

    if (!(primary & PRIMARY_TPR_SHADOW))
        return !(secondary & (SECONDARY_X2APIC | SECONDARY_APIC_REGISTERS)) && !delivery;
    if (!page(at(VIRTUAL_APIC_ADDRESS)) || (delivery && !(pin & PIN_EXTERNAL_INTERRUPT)))
        return false;
    guest_read_gpa(&vcpu, at(VIRTUAL_APIC_ADDRESS) + 0x80, &vtpr, 1);
    if (!delivery && at(TPR_THRESHOLD) > 15)
        return false;
    if (!delivery && !(secondary & SECONDARY_APIC_ACCESSES) && threshold > vtpr >> 4)
        return false;
    return !((secondary & SECONDARY_X2APIC) && (secondary & SECONDARY_APIC_ACCESSES));
}

static bool eptp_right(u64 eptp)
{
    u64 rest = eptp & 0x7f;

    rest &= ~(u64)EPTP_AD;
    return (rest == (3 << 3) || rest == (3 << 3 | 6) || rest == (4 << 3) || rest == (4 << 3 | 6)) &&
           page(eptp & ~0x7full) && eptp < BEYOND;
}

static bool secondary_right(u64 pin, u64 secondary)
{
    bool ept = secondary & SECONDARY_EPT;

    if (ept && !eptp_right(at(EPT_POINTER)))
        return false;
    if (!ept && (secondary & (SECONDARY_PML | SECONDARY_UNRESTRICTED_GUEST | SECONDARY_MBEC)))
        return false;
    if (secondary & SECONDARY_VM_FUNCTIONS) {
        if (at(VM_FUNCTION_CONTROLS) > 1)
            return false;
        if (at(VM_FUNCTION_CONTROLS) == 1 && (!ept || !page(at(EPTP_LIST_ADDRESS))))
            return false;
    }
    if ((pin & PIN_POSTED_INTERRUPTS) &&
        (!(secondary & SECONDARY_INTERRUPT_DELIVERY) ||
         !(at(EXIT_CONTROLS) & EXIT_CTL_ACK_INTERRUPT) || at(POSTED_INTERRUPT_VECTOR) > 255 ||
         (at(POSTED_INTERRUPT_DESCRIPTOR) & 63) || at(POSTED_INTERRUPT_DESCRIPTOR) >= BEYOND))
        return false;
    return (!(secondary & SECONDARY_VPID) || at(VPID)) &&
           (!(secondary & SECONDARY_APIC_ACCESSES) || page(at(APIC_ACCESS_ADDRESS))) &&
           (!(secondary & SECONDARY_PML) || page(at(PML_ADDRESS))) &&
           (!(secondary & SECONDARY_VMCS_SHADOWING) ||
            (page(at(VMREAD_BITMAP)) && page(at(VMWRITE_BITMAP)))) &&
           (!(secondary & SECONDARY_EPT_VIOLATION_VE) || page(at(VE_INFO_ADDRESS))) &&
           (!(secondary & SECONDARY_TSC_SCALING) || at(TSC_MULTIPLIER));
}

// What is injected: -1 nothing, else the type.
static int injected(void)
{
    u64 info = at(ENTRY_INTERRUPTION_INFO);

    return info & INFO_VALID ? (int)(info >> 8 & 7) : -1;
}

static bool injection_right(u64 secondary)
{
    u64 info = at(ENTRY_INTERRUPTION_INFO), length = at(ENTRY_INSTRUCTION_LENGTH);
    u8 vector = (u8)info;
    bool urg = secondary & SECONDARY_UNRESTRICTED_GUEST, error = info & INFO_ERROR_CODE;
    static const u32 with_error = 1u << 8 | 0x1f << 10 | 1u << 17; // 15 is none
    bool wanted, can = injected() == 3 && (!urg || (at(GUEST_CR0) & 1));

    if (injected() < 0)
        return true;
    if (info & 0x7ffff000)
        return false;
    wanted = can && vector < 32 && vector != 15 && (with_error >> vector & 1);
    if (can && (*capability_of(MSR_VMX_BASIC) & VMX_BASIC_ANY_ERROR))
        wanted = error;
    if (error != wanted || (error && at(ENTRY_EXCEPTION_ERROR_CODE) > 0xffff))
        return false;
    switch (injected()) {
    case 0:
        return true;
    case 2:
        return vector == 2;
    case 3:
        return vector < 32;
    case 4:
    case 5:
    case 6:
        return length >= 1 && length <= 15;
    case 7:
        return vector == 0;
    default:
        return false;
    }
}

static bool controls_right(u64 secondary)
{
    u64 pin = at(PIN_BASED_CONTROLS), primary = at(PRIMARY_CONTROLS);

    if (!fixed(pin, MSR_VMX_TRUE_PINBASED_CTLS) || !fixed(primary, MSR_VMX_TRUE_PROCBASED_CTLS) ||
        !fixed(secondary, MSR_VMX_PROCBASED_CTLS2) ||
        !fixed(at(EXIT_CONTROLS), MSR_VMX_TRUE_EXIT_CTLS) ||
        !fixed(at(ENTRY_CONTROLS), MSR_VMX_TRUE_ENTRY_CTLS) || at(CR3_TARGET_COUNT) > 4)
        return false;
    if (((primary & PRIMARY_IO_BITMAPS) && !(page(at(IO_BITMAP_A)) && page(at(IO_BITMAP_B)))) ||
        ((primary & PRIMARY_MSR_BITMAPS) && !page(at(MSR_BITMAP))))
        return false;
    if (((pin & PIN_VIRTUAL_NMIS) && !(pin & PIN_NMI)) ||
        ((primary & PRIMARY_NMI_WINDOW) && !(pin & PIN_VIRTUAL_NMIS)) ||
        ((at(EXIT_CONTROLS) & EXIT_CTL_SAVE_TIMER) && !(pin & PIN_PREEMPTION_TIMER)))
        return false;
    return apic_right(pin, primary, secondary) && secondary_right(pin, secondary) &&
           area_fits(EXIT_MSR_STORE_COUNT, EXIT_MSR_STORE_ADDRESS) &&
           area_fits(EXIT_MSR_LOAD_COUNT, EXIT_MSR_LOAD_ADDRESS) &&
           area_fits(ENTRY_MSR_LOAD_COUNT, ENTRY_MSR_LOAD_ADDRESS) && injection_right(secondary);
}

static bool pat_right(u64 pat)
{
    for (; pat; pat >>= 8)
        if (!(0xf3 >> (pat & 0xff & 7) & 1) || (pat & 0xf8))
            return false;
    return true;
}

static bool s_cet_right(u64 value)
{
    return canonical(value) && !(value & 0x3c0) && (value & 0xc00) != 0xc00;
}

static bool host_right(void)
{
    u64 exit = at(EXIT_CONTROLS), cr4 = at(HOST_CR4), any = 0;
    bool wide = exit & EXIT_CTL_HOST_64;
    static const u16 addresses[] = {HOST_SYSENTER_ESP, HOST_SYSENTER_EIP, HOST_FS_BASE,
                                    HOST_GS_BASE,      HOST_GDTR_BASE,    HOST_IDTR_BASE,
                                    HOST_TR_BASE};

    for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++)
        if (!canonical(at(addresses[i])))
            return false;
    for (u32 field = HOST_ES_SELECTOR; field <= HOST_TR_SELECTOR; field += 2)
        any |= at(field);
    if ((any & 7) || !at(HOST_CS_SELECTOR) || !at(HOST_TR_SELECTOR) ||
        (!wide && !at(HOST_SS_SELECTOR)))
        return false;
    if ((at(HOST_CR0) & 0x80000021) != 0x80000021 || at(HOST_CR0) >> 32 || !(cr4 & CR4_VMXE) ||
        (cr4 & ~cr4_allowed(&vcpu)) || ((cr4 & CR4_CET) && !(at(HOST_CR0) & CR0_WP)) ||
        at(HOST_CR3) >= BEYOND)
        return false;
    if (((exit & EXIT_CTL_LOAD_PERF_GLOBAL) && at(HOST_PERF_GLOBAL_CTRL)) ||
        ((exit & EXIT_CTL_LOAD_PAT) && !pat_right(at(HOST_PAT))) ||
        ((exit & EXIT_CTL_LOAD_PKRS) && at(HOST_PKRS) >> 32))
        return false;
    if ((exit & EXIT_CTL_LOAD_EFER) && (at(HOST_EFER) & ~0x801ull) != (wide ? 0x500 : 0))
        return false;
    if ((exit & EXIT_CTL_LOAD_CET) &&
        (!s_cet_right(at(HOST_S_CET)) || !canonical(at(HOST_INTERRUPT_SSP_TABLE)) ||
         !canonical(at(HOST_SSP)) || (at(HOST_SSP) & 3)))
        return false;
    if (wide != !!(vcpu.cur->state.efer & EFER_LMA))
        return false;
    if (!wide && (exit & EXIT_CTL_LOAD_CET) && (at(HOST_S_CET) >> 32 || at(HOST_SSP) >> 32))
        return false;
    if (wide)
        return (cr4 & CR4_PAE) && canonical(at(HOST_RIP));
    return !(at(ENTRY_CONTROLS) & ENTRY_CTL_IA32E_GUEST) && !(cr4 & CR4_PCIDE) &&
           !(at(HOST_RIP) >> 32);
}

struct seg {
    u64 selector, access, limit, base;
    unsigned type, dpl;
    bool usable;
};

static struct seg seg_of(unsigned n)
{
    struct seg s = {at(GUEST_ES_SELECTOR + 2 * n),
                    at(GUEST_ES_ACCESS + 2 * n),
                    at(GUEST_ES_LIMIT + 2 * n),
                    at(GUEST_ES_BASE + 2 * n),
                    0,
                    0,
                    true};

    s.type = s.access & 15;
    s.dpl = s.access >> 5 & 3;
    s.usable = !(s.access >> 16 & 1);
    return s;
}

static bool limit_right(const struct seg *s)
{
    if (s->limit >= 1 << 20 && !(s->access & 0x8000))
        return false;
    return (s->limit & 0xfff) == 0xfff || !(s->access & 0x8000);
}

static bool ordinary_right(unsigned n, const struct seg *s, bool urg, bool wide)
{
    const struct seg cs = seg_of(SEG_CS), ss = seg_of(SEG_SS);

    if (n == SEG_SS && ((!urg && ss.dpl != (ss.selector & 3)) ||
                        ((cs.type == 3 || !(at(GUEST_CR0) & 1)) && ss.dpl)))
        return false;
    if (n == SEG_CS) {
        bool right = s->type == 3    ? urg && s->dpl == 0
                     : s->type >= 12 ? s->dpl <= ss.dpl
                                     : s->dpl == ss.dpl;

        if (!right || (s->type != 3 && (s->type < 8 || !(s->type & 1))) ||
            (wide && (s->access & 0x6000) == 0x6000))
            return false;
    } else if (!s->usable) {
        return true;
    } else if (n == SEG_SS) {
        if (s->type != 3 && s->type != 7)
            return false;
    } else if (!(s->type & 1) || s->type == 9 || s->type == 13) {
        return false;
    } else if (!urg && s->type < 12 && s->dpl < (s->selector & 3)) {
        return false;
    }
    return (s->access & 0x90) == 0x90 && !(s->access & 0xfffe0f00) && limit_right(s);
}

static bool segments_right(bool urg, bool wide, bool vm86)
{
    struct seg tr = seg_of(SEG_TR), ldtr = seg_of(SEG_LDTR);

    for (unsigned n = SEG_ES; n <= SEG_GS; n++) {
        struct seg s = seg_of(n);

        if (vm86 ? s.base != s.selector * 16 || s.limit != 0xffff || s.access != 0xf3
                 : !ordinary_right(n, &s, urg, wide))
            return false;
        if (n >= SEG_FS ? !canonical(s.base) : (n == SEG_CS || s.usable) && s.base >> 32)
            return false;
    }
    if (!vm86 && !urg && (seg_of(SEG_SS).selector & 3) != (seg_of(SEG_CS).selector & 3))
        return false;
    if ((tr.selector & 4) || !canonical(tr.base) || !limit_right(&tr) ||
        (tr.access & 0xffff0f90) != 0x80 || !(tr.type == 11 || (tr.type == 3 && !wide)))
        return false;
    return !ldtr.usable || (!(ldtr.selector & 4) && canonical(ldtr.base) && limit_right(&ldtr) &&
                            (ldtr.access & 0xfffe0f9f) == 0x82);
}

static bool msrs_right(u64 entry, bool wide)
{
    u64 efer = at(GUEST_EFER);

    if ((entry & ENTRY_CTL_LOAD_DEBUG) && ((at(GUEST_DEBUGCTL) & ~3ull) || at(GUEST_DR7) >> 32))
        return false;
    if (((entry & ENTRY_CTL_LOAD_PERF_GLOBAL) && at(GUEST_PERF_GLOBAL_CTRL)) ||
        ((entry & ENTRY_CTL_LOAD_PAT) && !pat_right(at(GUEST_PAT))) ||
        ((entry & ENTRY_CTL_LOAD_PKRS) && at(GUEST_PKRS) >> 32))
        return false;
    if (entry & ENTRY_CTL_LOAD_EFER) {
        if ((efer & ~0xd01ull) || !!(efer & 0x400) != wide)
            return false;
        if ((at(GUEST_CR0) >> 31 & 1) && !!(efer & 0x100) != wide)
            return false;
    }
    return !(entry & ENTRY_CTL_LOAD_CET) ||
           (s_cet_right(at(GUEST_S_CET)) && canonical(at(GUEST_INTERRUPT_SSP_TABLE)) &&
            (at(GUEST_SSP) >> 48 == 0 || at(GUEST_SSP) >> 48 == 0xffff) && !(at(GUEST_SSP) & 3));
}

static bool registers_right(u64 entry, bool urg, bool wide)
{
    u64 cr0 = at(GUEST_CR0), cr4 = at(GUEST_CR4);

    if (cr0 >> 32 || !(cr0 & CR0_NE) || ((cr0 & CR0_PG) && !(cr0 & CR0_PE)) ||
        (!urg && !(cr0 & CR0_PG)))
        return false;
    if (!(cr4 & CR4_VMXE) || (cr4 & ~cr4_allowed(&vcpu)) || ((cr4 & CR4_CET) && !(cr0 & CR0_WP)) ||
        at(GUEST_CR3) >= BEYOND)
        return false;
    if (wide ? !(cr0 & CR0_PG) || !(cr4 & CR4_PAE) : (cr4 & CR4_PCIDE) != 0)
        return false;
    return canonical(at(GUEST_SYSENTER_ESP)) && canonical(at(GUEST_SYSENTER_EIP)) &&
           canonical(at(GUEST_GDTR_BASE)) && canonical(at(GUEST_IDTR_BASE)) &&
           at(GUEST_GDTR_LIMIT) < 0x10000 && at(GUEST_IDTR_LIMIT) < 0x10000 &&
           msrs_right(entry, wide);
}

static bool execution_right(bool wide)
{
    u64 rflags = at(GUEST_RFLAGS), rip = at(GUEST_RIP) >> 48;

    if (wide && (at(GUEST_CS_ACCESS) & 0x2000) ? rip != 0 && rip != 0xffff
                                               : at(GUEST_RIP) > 0xffffffff)
        return false;
    if ((rflags & 0xffffffffffc0802a) != 2)
        return false;
    if ((rflags >> 17 & 1) && (wide || !(at(GUEST_CR0) & 1)))
        return false;
    return injected() != 0 || (rflags >> 9 & 1);
}

static bool sleep_right(u64 activity)
{
    u8 vector = (u8)at(ENTRY_INTERRUPTION_INFO);

    if (activity == 0)
        return true;
    if ((activity != 1 && activity != 3) || (at(GUEST_INTERRUPTIBILITY) & 3))
        return false;
    if (activity == 3)
        return injected() < 0;
    if (at(GUEST_SS_ACCESS) >> 5 & 3)
        return false;
    return injected() < 0 || injected() == 0 || injected() == 2 || injected() == 7 ||
           (injected() == 3 && (vector == 1 || vector == 18));
}

static bool waiting_right(void)
{
    u64 state = at(GUEST_INTERRUPTIBILITY), pending = at(GUEST_PENDING_DBG);
    bool shadow = state & 3, tf = at(GUEST_RFLAGS) >> 8 & 1, btf = at(GUEST_DEBUGCTL) & 2;

    if ((state & ~0xbull) || (state & 3) == 3 || ((state & 1) && !(at(GUEST_RFLAGS) & RFLAGS_IF)))
        return false;
    if ((injected() == 0 && shadow) || (injected() == 2 && (state & 2)) ||
        (injected() == 2 && (state & 8) && (at(PIN_BASED_CONTROLS) & PIN_VIRTUAL_NMIS)))
        return false;
    if (!sleep_right(at(GUEST_ACTIVITY_STATE)) || (pending & ~0x500full))
        return false;
    return !(shadow || at(GUEST_ACTIVITY_STATE) == 1) || !!(pending & 0x4000) == (tf && !btf);
}

static bool link_right(u64 secondary)
{
    u64 link = at(VMCS_LINK_POINTER);

    return link == ALL || link == (secondary & SECONDARY_VMCS_SHADOWING ? 0x6000 : ALL);
}

static bool pdptes_right(u64 secondary, bool wide)
{
    if (wide || !(secondary & SECONDARY_EPT) || !(at(GUEST_CR0) & CR0_PG) ||
        !(at(GUEST_CR4) & CR4_PAE))
        return true;
    for (u32 field = GUEST_PDPTE0; field <= GUEST_PDPTE3; field += 2)
        if ((at(field) & 1) && (at(field) & 0xffffff00000001e6))
            return false;
    return true;
}

static enum verdict judge(void)
{
    u64 secondary = at(PRIMARY_CONTROLS) >> 31 & 1 ? at(SECONDARY_CONTROLS) : 0;
    u64 entry = at(ENTRY_CONTROLS);
    bool urg = secondary & SECONDARY_UNRESTRICTED_GUEST, wide = entry & ENTRY_CTL_IA32E_GUEST;

    if (!controls_right(secondary))
        return CONTROLS;
    if (!host_right())
        return HOST;
    return registers_right(entry, urg, wide) &&
                   segments_right(urg, wide, at(GUEST_RFLAGS) & RFLAGS_VM) &&
                   execution_right(wide) && waiting_right() && link_right(secondary) &&
                   pdptes_right(secondary, wide)
               ? PASSES
               : GUEST;
}

// --- mutation ---

static u64 seed;

static u64 next(void) // xorshift64*
{
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return seed * 0x2545f4914f6cdd1dull;
}

static unsigned below(unsigned n)
{
    return (unsigned)((next() >> 32) * n >> 32);
}

static u16 encodings[VMCS12_FIELDS];
static unsigned encoding_count;

static void list_fields(void)
{
    encoding_count = 0;
    for (u32 encoding = 0; encoding < 0x8000; encoding += 2)
        if (!(encoding & BIT(12)) &&
            vmcs12_slot(encoding) < vmcs12_groups[vmcs12_group(encoding) + 1])
            encodings[encoding_count++] = (u16)encoding;
    assert_int_equal(encoding_count, VMCS12_FIELDS);
}

static u64 mutated(u64 value)
{
    static const u64 values[] = {0,      1,      ~0ull,      NONCAN,     NONCAN - 1,
                                 BEYOND, 0xffff, 0x80000000, 0xffffffff, 0xffffffffffff0000};

    switch (below(6)) {
    case 0:
        return next();
    case 1:
        return values[below(ARRAY_SIZE(values))];
    case 2:
        return value + (next() & 0xff);
    case 3:
        return value ^ SEG_UNUSABLE;
    default:
        return value ^ BIT(below(below(3) ? 32 : 64));
    }
}

static u16 any_field(void)
{
    static const u16 of_segments[] = {GUEST_ES_SELECTOR, GUEST_ES_LIMIT, GUEST_ES_ACCESS,
                                      GUEST_ES_ACCESS, GUEST_ES_BASE};
    static u16 segment; // mostly the same one again: rules are about several of its fields

    if (below(3))
        return encodings[below(encoding_count)];
    if (below(4) == 0)
        segment = (u16)below(SEG_COUNT);
    return (u16)(of_segments[below(ARRAY_SIZE(of_segments))] + 2 * segment);
}

static void mutate(void)
{
    static const u64 widths[] = {0xffff, ~0ull, 0xffffffff, ~0ull};
    static const u64 events[] = {INFO(0, 0x40), INFO(2, 2), INFO(3, 13) | INFO_ERROR_CODE,
                                 INFO(3, 1),    INFO(6, 3), INFO(7, 0)};
    u32 field = any_field();
    u64 value = mutated(at(field)) & widths[field >> 13 & 3];

    if (below(16) == 0) {
        field = ENTRY_INTERRUPTION_INFO;
        value = events[below(ARRAY_SIZE(events))];
    }
    vmcs12_note_write(&nested, field, at(field) ^ value);
    put(field, value);
}

static enum verdict verdict(void)
{
    u64 qualification;

    switch (vmcs12_check_entry(&vcpu, &qualification)) {
    case 0:
        return PASSES;
    case VMX_ERROR_CONTROLS:
        return CONTROLS;
    case VMX_ERROR_HOST_STATE:
        return HOST;
    default:
        return GUEST;
    }
}

static void test_mutation(void **state)
{
    struct nested start[ARRAY_SIZE(states)];
    u64 efer[ARRAY_SIZE(states)];
    unsigned counts[GUEST + 1] = {0};

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(states); i++) {
        u64 qualification;

        states[i]();
        assert_null(refusing(&qualification));
        // From here on, what has been written counts; the rest is the entry's.
        assert_int_equal(nested.due & (DUE_CONTROLS | DUE_HOST | DUE_GUEST), 0);
        start[i] = nested;
        efer[i] = vcpu.cur->state.efer;
    }
    list_fields();
    seed = 0x4e4553544f52;
    for (unsigned i = 0; i < CASES; i++) {
        unsigned from = below(ARRAY_SIZE(states));
        enum verdict first, expected;
        struct vmcs12 before;

        nested = start[from];
        *capability_of(MSR_VMX_BASIC) |= below(2) ? VMX_BASIC_ANY_ERROR : 0;
        vcpu.cur->state.efer = efer[from];
        for (unsigned n = 1 + below(3); n; n--)
            mutate();
        before = nested.vmcs;
        first = verdict();
        expected = judge();
        nested.due |= i % 2 ? DUE_ALL : 0;
        if (first != expected || verdict() != first) {
            u64 qualification;
            const struct check_row *row = refusing(&qualification);

            fail_msg("case %u of state %u: %d (\"%s\"), expected %d", i, from, first,
                     row ? row->name : "", expected);
        }
        assert_memory_equal(&before, &nested.vmcs, sizeof(before));
        counts[first]++;
    }
    for (unsigned i = 0; i <= GUEST; i++) // each verdict is met often
        assert_true(counts[i] > CASES / 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_mutation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
