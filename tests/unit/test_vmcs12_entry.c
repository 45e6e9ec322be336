// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: nested/vmcs12_fields.c nested/vmcs12_caps.c nested/vmcs12_check.c nested/vmcs12_check_host.c nested/vmcs12_check_guest.c
//
// The checks of VM entry with every control of the SDM offered: each row of the tables is met alone
// by a VMCS12 that is right but for it.

#include "vmcs12_entry_fake.h"

#define ALL (~0ull)

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_rows),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
