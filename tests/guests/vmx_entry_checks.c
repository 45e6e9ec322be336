// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The checks of VM entry that depend on secondary controls or on several fields (SDM vol. 3 "VM
// Entries"): each case starts from a VMCS that enters and changes what one rule is about. What one
// field of a plain VMCS shows is in nested_vmx_checks.

#include <nestor/segment.h>

#include "vmx.h"

enum { CHANGES = 5, PHYS_52 = 52 };
#define BEYOND        (1ull << PHYS_52)
#define INVALID_STATE (EXIT_REASON_ENTRY_FAILURE | REASON_INVALID_GUEST_STATE)
#define MSR_FAILURE   (EXIT_REASON_ENTRY_FAILURE | REASON_MSR_LOADING)

L2(l2_vmcall, "vmcall");
L2(l2_vmcall_32, ".code32; vmcall; .code64");
L2(l2_vmcall_16, ".code16; vmcall; .code64");

struct change {
    u16 field;
    u64 clear, set;
};

enum expected { PASSES, CONTROLS = 7, HOST = 8, GUEST = INVALID_STATE & 0xff };

struct test_case {
    const char *name;
    u8 expected; // enum expected
    u8 qualification;
    u8 not_on;     // enum machine: bare, that does not check this (Bochs: an NMI's only in 2.7)
    u32 secondary; // what it needs
    u32 primary, pin;
    void (*prepare)(void);
    struct change changes[CHANGES];
};

static u64 *ept, *pdpt, *msr_area, *apic_page, *other_region;
static u64 eptp, capabilities;

static u32 secondary_offered(void)
{
    return offers(MSR_VMX_PROCBASED_CTLS, PRIMARY_SECONDARY)
               ? (u32)(msr_read(MSR_VMX_PROCBASED_CTLS2) >> 32)
               : 0;
}

static void make_tables(void)
{
    ept = identity_tables(EPT_RWX, EPT_WB | EPT_RWX);
    eptp = eptp_of(ept, false);
    if (secondary_offered() & (SECONDARY_EPT | SECONDARY_VPID))
        capabilities = msr_read(MSR_VMX_EPT_VPID_CAP);
    pdpt = pages(1);
    for (unsigned i = 0; i < 4; i++)
        pdpt[i] = (u64)(directories + 512 * i) | 1;
    msr_area = pages(1);
    apic_page = pages(1);
    other_region = new_region();
}

// --- states that enter ---

static void put_addresses(void)
{
    vmwrite(EPT_POINTER, eptp);
    vmwrite(VPID, 1);
    vmwrite(VIRTUAL_APIC_ADDRESS, (u64)apic_page);
    vmwrite(TPR_THRESHOLD, 0);
    vmwrite(TSC_MULTIPLIER, 1ull << 48);
    vmwrite(ENTRY_EXCEPTION_ERROR_CODE, 0);
    vmwrite(ENTRY_MSR_LOAD_ADDRESS, (u64)msr_area);
    vmwrite(EXIT_MSR_LOAD_ADDRESS, (u64)msr_area);
    vmwrite(EXIT_MSR_STORE_ADDRESS, (u64)msr_area);
    apic_page[APIC_TPR / 8] = 0x30;
    memset(msr_area, 0, PAGE_SIZE);
}

static void enable(u32 secondary)
{
    vmwrite(PRIMARY_CONTROLS, vmread(PRIMARY_CONTROLS) | PRIMARY_SECONDARY);
    vmwrite(SECONDARY_CONTROLS, vmread(SECONDARY_CONTROLS) | secondary);
}

// 32-bit code with PAE paging.
static void make_pae(void)
{
    vmwrite(GUEST_RIP, (u64)l2_vmcall_32);
    vmwrite(ENTRY_CONTROLS, vmread(ENTRY_CONTROLS) & ~(u64)ENTRY_CTL_IA32E_GUEST);
    vmwrite(GUEST_EFER, 0);
    vmwrite(GUEST_CR4, vmread(GUEST_CR4) & ~(u64)CR4_PCIDE);
    vmwrite(GUEST_CR3, (u64)pdpt);
    put_segment(SEG_CS, CODE32, 0xc09b, ~0u, 0);
}

static void make_pae_ept(void)
{
    make_pae();
    enable(SECONDARY_EPT);
    for (unsigned i = 0; i < 4; i++)
        vmwrite(GUEST_PDPTE0 + 2 * i, pdpt[i]);
}

static void make_unrestricted(void)
{
    enable(SECONDARY_EPT | SECONDARY_UNRESTRICTED_GUEST);
}

// Real mode, in the segment of the code.
static void make_real(void)
{
    u64 base = (u64)l2_vmcall_16 & ~0xfull;

    make_pae();
    make_unrestricted();
    vmwrite(GUEST_CR0, vmread(GUEST_CR0) & ~(u64)(CR0_PE | CR0_PG));
    vmwrite(GUEST_CR4, vmread(GUEST_CR4) & ~(u64)CR4_PAE);
    for (unsigned i = SEG_ES; i <= SEG_GS; i++)
        put_segment(i, 0, 0x93, 0xffff, 0);
    put_segment(SEG_CS, (u16)(base >> 4), 0x93, 0xffff, base);
    vmwrite(GUEST_RIP, (u64)l2_vmcall_16 & 0xf);
}

static void make_shadow_step(void) // STI blocking, and the single step that is due
{
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF | RFLAGS_TF);
    vmwrite(GUEST_INTERRUPTIBILITY, 1);
    vmwrite(GUEST_PENDING_DBG, DR6_BS);
}

static void make_tpr_shadow(void)
{
    vmwrite(TPR_THRESHOLD, 3);
}

// --- the cases ---

#define ALL    (~0ull)
#define ACTIVE (1u << 31) // the secondary controls, whatever is 1 of them
#define EPT    SECONDARY_EPT
#define URG    (SECONDARY_EPT | SECONDARY_UNRESTRICTED_GUEST)
#define B      MACHINE_BOCHS

static const struct test_case cases[] = {
    // controls
    {"nothing", PASSES, 0, 0, 0, 0, 0, NULL, {{0}}},
    {"secondary controls, all bits, not activated",
     PASSES,
     0,
     0,
     ACTIVE,
     0,
     0,
     NULL,
     {{SECONDARY_CONTROLS, 0, ALL}, {PRIMARY_CONTROLS, PRIMARY_SECONDARY, 0}}},
    {"secondary controls, a reserved bit",
     CONTROLS,
     0,
     0,
     ACTIVE,
     0,
     0,
     NULL,
     {{SECONDARY_CONTROLS, 0, BIT(31)}}},
    {"EPT", PASSES, 0, 0, EPT, 0, 0, NULL, {{0}}},
    {"EPTP, memory type 1", CONTROLS, 0, 0, EPT, 0, 0, NULL, {{EPT_POINTER, 7, 1}}},
    {"EPTP, memory type 7", CONTROLS, 0, 0, EPT, 0, 0, NULL, {{EPT_POINTER, 7, 7}}},
    {"EPTP, three levels", CONTROLS, 0, 0, EPT, 0, 0, NULL, {{EPT_POINTER, 0x38, 2 << 3}}},
    {"EPTP, six levels", CONTROLS, 0, 0, EPT, 0, 0, NULL, {{EPT_POINTER, 0x38, 5 << 3}}},
    {"EPTP, bit 8", CONTROLS, 0, 0, EPT, 0, 0, NULL, {{EPT_POINTER, 0, BIT(8)}}},
    {"EPTP, bit 11", CONTROLS, 0, 0, EPT, 0, 0, NULL, {{EPT_POINTER, 0, BIT(11)}}},
    {"EPTP beyond the physical addresses",
     CONTROLS,
     0,
     0,
     EPT,
     0,
     0,
     NULL,
     {{EPT_POINTER, 0, BEYOND}}},
    {"VPID 1", PASSES, 0, 0, SECONDARY_VPID, 0, 0, NULL, {{0}}},
    {"VPID 0", CONTROLS, 0, 0, SECONDARY_VPID, 0, 0, NULL, {{VPID, ALL, 0}}},
    {"unrestricted guest without EPT",
     CONTROLS,
     0,
     0,
     URG,
     0,
     0,
     NULL,
     {{SECONDARY_CONTROLS, EPT, 0}}},
    {"TPR threshold as VTPR's class",
     PASSES,
     0,
     0,
     0,
     PRIMARY_TPR_SHADOW,
     0,
     make_tpr_shadow,
     {{0}}},
    {"TPR threshold above it",
     CONTROLS,
     0,
     0,
     0,
     PRIMARY_TPR_SHADOW,
     0,
     make_tpr_shadow,
     {{TPR_THRESHOLD, 0, 4}}},
    {"TPR threshold, bit 4",
     CONTROLS,
     0,
     0,
     0,
     PRIMARY_TPR_SHADOW,
     0,
     make_tpr_shadow,
     {{TPR_THRESHOLD, ALL, 0x10}}},
    {"virtual-APIC address, misaligned",
     CONTROLS,
     0,
     0,
     0,
     PRIMARY_TPR_SHADOW,
     0,
     NULL,
     {{VIRTUAL_APIC_ADDRESS, 0, 0x80}}},
    {"virtual-APIC address beyond",
     CONTROLS,
     0,
     0,
     0,
     PRIMARY_TPR_SHADOW,
     0,
     NULL,
     {{VIRTUAL_APIC_ADDRESS, 0, BEYOND}}},
    {"virtualize x2APIC mode without TPR shadow",
     CONTROLS,
     0,
     0,
     SECONDARY_X2APIC,
     0,
     0,
     NULL,
     {{0}}},
    {"APIC-register virtualization without TPR shadow",
     CONTROLS,
     0,
     0,
     SECONDARY_APIC_REGISTERS,
     0,
     0,
     NULL,
     {{0}}},
    {"interrupt delivery without TPR shadow",
     CONTROLS,
     0,
     0,
     SECONDARY_INTERRUPT_DELIVERY,
     0,
     PIN_EXTERNAL_INTERRUPT,
     NULL,
     {{0}}},
    {"interrupt delivery",
     PASSES,
     0,
     0,
     SECONDARY_INTERRUPT_DELIVERY,
     PRIMARY_TPR_SHADOW,
     PIN_EXTERNAL_INTERRUPT,
     NULL,
     {{0}}},
    {"interrupt delivery without external-interrupt exiting",
     CONTROLS,
     0,
     0,
     SECONDARY_INTERRUPT_DELIVERY,
     PRIMARY_TPR_SHADOW,
     0,
     NULL,
     {{0}}},
    {"x2APIC mode with virtualize APIC accesses",
     CONTROLS,
     0,
     0,
     SECONDARY_X2APIC | SECONDARY_APIC_ACCESSES,
     PRIMARY_TPR_SHADOW,
     0,
     NULL,
     {{0}}},
    {"APIC-access address, misaligned",
     CONTROLS,
     0,
     0,
     SECONDARY_APIC_ACCESSES,
     0,
     0,
     NULL,
     {{APIC_ACCESS_ADDRESS, 0, 8}}},
    {"virtual NMIs", PASSES, 0, 0, 0, 0, PIN_NMI | PIN_VIRTUAL_NMIS, NULL, {{0}}},
    {"virtual NMIs without NMI exiting", CONTROLS, 0, 0, 0, 0, PIN_VIRTUAL_NMIS, NULL, {{0}}},
    {"NMI-window exiting without virtual NMIs",
     CONTROLS,
     0,
     0,
     0,
     PRIMARY_NMI_WINDOW,
     PIN_NMI,
     NULL,
     {{0}}},
    {"TSC scaling, multiplier 0",
     CONTROLS,
     0,
     0,
     SECONDARY_TSC_SCALING,
     0,
     0,
     NULL,
     {{TSC_MULTIPLIER, ALL, 0}}},
    {"PML without EPT", CONTROLS, 0, 0, SECONDARY_PML, 0, 0, NULL, {{0}}},
    {"VMREAD bitmap, misaligned",
     CONTROLS,
     0,
     0,
     SECONDARY_VMCS_SHADOWING,
     0,
     0,
     NULL,
     {{VMREAD_BITMAP, 0, 1}}},
    {"INT n, length 16",
     CONTROLS,
     0,
     0,
     0,
     0,
     0,
     NULL,
     {{ENTRY_INTERRUPTION_INFO, ALL, INJECT(4, 0x40)}, {ENTRY_INSTRUCTION_LENGTH, ALL, 16}}},
    {"#GP, error code bit 16",
     CONTROLS,
     0,
     0,
     0,
     0,
     0,
     NULL,
     {{ENTRY_INTERRUPTION_INFO, ALL, INJECT(3, 13) | INFO_ERROR_CODE},
      {ENTRY_EXCEPTION_ERROR_CODE, ALL, BIT(16)}}},
    {"exit MSR-store area, end beyond",
     CONTROLS,
     0,
     0,
     0,
     0,
     0,
     NULL,
     {{EXIT_MSR_STORE_COUNT, ALL, 2}, {EXIT_MSR_STORE_ADDRESS, ALL, BEYOND - 16}}},
    {"entry MSR-load area beyond",
     CONTROLS,
     0,
     0,
     0,
     0,
     0,
     NULL,
     {{ENTRY_MSR_LOAD_COUNT, ALL, 1}, {ENTRY_MSR_LOAD_ADDRESS, ALL, BEYOND}}},
    {"the area of no entries anywhere",
     PASSES,
     0,
     0,
     0,
     0,
     0,
     NULL,
     {{ENTRY_MSR_LOAD_ADDRESS, ALL, BEYOND | 1}}},
    // controls come first, then host state
    {"a wrong control and a wrong host",
     CONTROLS,
     0,
     0,
     0,
     0,
     0,
     NULL,
     {{PIN_BASED_CONTROLS, 2, 0}, {HOST_CR4, CR4_VMXE, 0}}},
    {"a wrong host and a wrong guest",
     HOST,
     0,
     0,
     0,
     0,
     0,
     NULL,
     {{HOST_CR4, CR4_VMXE, 0}, {GUEST_CR4, CR4_VMXE, 0}}},
    // guest state
    {"PAE paging", PASSES, 0, 0, 0, 0, 0, make_pae, {{0}}},
    {"PAE paging, a reserved bit in memory's PDPTE",
     GUEST,
     2,
     0,
     0,
     0,
     0,
     make_pae,
     {{GUEST_CR3, 0, 0x20}}}, // at pdpt[4], see main
    {"PAE paging with EPT", PASSES, 0, 0, EPT, 0, 0, make_pae_ept, {{0}}},
    {"PAE paging with EPT, PDPTE 2, bit 1",
     GUEST,
     2,
     0,
     EPT,
     0,
     0,
     make_pae_ept,
     {{GUEST_PDPTE2, 0, BIT(1)}}},
    {"PAE paging with EPT, PDPTE 3, bit 62",
     GUEST,
     2,
     0,
     EPT,
     0,
     0,
     make_pae_ept,
     {{GUEST_PDPTE3, 0, BIT(62)}}},
    {"PAE paging with EPT, an absent PDPTE's bits",
     PASSES,
     0,
     0,
     EPT,
     0,
     0,
     make_pae_ept,
     {{GUEST_PDPTE3, 1, BITS(62, 1)}}},
    {"real mode", PASSES, 0, 0, URG, 0, 0, make_real, {{0}}},
    {"real mode, CR0.NE 0", GUEST, 0, 0, URG, 0, 0, make_real, {{GUEST_CR0, CR0_NE, 0}}},
    {"real mode, CR0.PG", GUEST, 0, 0, URG, 0, 0, make_real, {{GUEST_CR0, 0, CR0_PG}}},
    {"real mode, IA-32e mode guest",
     GUEST,
     0,
     0,
     URG,
     0,
     0,
     make_real,
     {{ENTRY_CONTROLS, ENTRY_CTL_LOAD_EFER, ENTRY_CTL_IA32E_GUEST}}},
    {"real mode, SS.DPL", GUEST, 0, 0, URG, 0, 0, make_real, {{GUEST_SS_ACCESS, 0, SEG_DPL}}},
    {"real mode, CS.DPL", GUEST, 0, 0, URG, 0, 0, make_real, {{GUEST_CS_ACCESS, 0, SEG_DPL}}},
    {"real mode, CS not accessed", GUEST, 0, 0, URG, 0, 0, make_real, {{GUEST_CS_ACCESS, 1, 0}}},
    {"real mode, TR not busy", GUEST, 0, 0, URG, 0, 0, make_real, {{GUEST_TR_ACCESS, 2, 0}}},
    // newer Bochs allow it: IA32_VMX_BASIC[56]
    {"real mode, #GP with error code",
     CONTROLS,
     0,
     B,
     URG,
     0,
     0,
     make_real,
     {{ENTRY_INTERRUPTION_INFO, ALL, INJECT(3, 13) | INFO_ERROR_CODE}}},
    {"unrestricted, RPL of DS above its DPL",
     PASSES,
     0,
     0,
     URG,
     0,
     0,
     make_unrestricted,
     {{GUEST_DS_SELECTOR, 0, 3}}},
    {"TF and STI blocking with BS pending",
     PASSES,
     0,
     0,
     0,
     0,
     0,
     make_shadow_step,
     {{EXCEPTION_BITMAP, 0, BIT(1)}}},
    {"TF and STI blocking without BS pending",
     GUEST,
     0,
     B,
     0,
     0,
     0,
     make_shadow_step,
     {{GUEST_PENDING_DBG, DR6_BS, 0}}},
    {"BS pending with STI blocking and no TF",
     GUEST,
     0,
     B,
     0,
     0,
     0,
     make_shadow_step,
     {{GUEST_RFLAGS, RFLAGS_TF, 0}}},
    {"HLT with STI blocking",
     GUEST,
     0,
     0,
     0,
     0,
     0,
     NULL,
     {{GUEST_RFLAGS, 0, RFLAGS_IF}, {GUEST_INTERRUPTIBILITY, 0, 1}, {GUEST_ACTIVITY_STATE, 0, 1}}},
    {"HLT and an injected #UD",
     GUEST,
     0,
     B,
     0,
     0,
     0,
     NULL,
     {{ENTRY_INTERRUPTION_INFO, ALL, INJECT(3, 6)}, {GUEST_ACTIVITY_STATE, 0, 1}}},
    {"an NMI injected with MOV SS blocking",
     GUEST,
     0,
     0,
     0,
     0,
     0,
     NULL,
     {{ENTRY_INTERRUPTION_INFO, ALL, INJECT(2, 2)}, {GUEST_INTERRUPTIBILITY, 0, 2}}},
    {"an NMI injected with virtual-NMI blocking",
     GUEST,
     0,
     B,
     0,
     0,
     PIN_NMI | PIN_VIRTUAL_NMIS,
     NULL,
     {{ENTRY_INTERRUPTION_INFO, ALL, INJECT(2, 2)}, {GUEST_INTERRUPTIBILITY, 0, 8}}},
    {"link pointer, misaligned", GUEST, 4, 0, 0, 0, 0, NULL, {{VMCS_LINK_POINTER, ALL, 8}}},
    {"link pointer beyond", GUEST, 4, 0, 0, 0, 0, NULL, {{VMCS_LINK_POINTER, ALL, BEYOND}}},
};

static bool has_all(u32 msr, u32 bits)
{
    return !(bits & ~(u32)(msr_read(msr) >> 32));
}

static bool is_offered(const struct test_case *t)
{
    return !(t->secondary & ~ACTIVE & ~secondary_offered()) &&
           (!t->secondary || secondary_offered()) && has_all(MSR_VMX_PROCBASED_CTLS, t->primary) &&
           has_all(MSR_VMX_PINBASED_CTLS, t->pin);
}

static void set_up(const struct test_case *t)
{
    init(l2_vmcall);
    set_pin(t->pin);
    set_primary(PRIMARY_HLT | t->primary);
    put_addresses();
    vmwrite(SECONDARY_CONTROLS, 0);
    if (t->secondary)
        enable(t->secondary & ~ACTIVE);
    if (t->prepare)
        t->prepare();
    for (unsigned i = 0; i < CHANGES; i++)
        if (t->changes[i].clear | t->changes[i].set)
            vmwrite(t->changes[i].field,
                    (vmread(t->changes[i].field) & ~t->changes[i].clear) | t->changes[i].set);
}

static bool as_expected(const struct test_case *t, u64 reason)
{
    if (t->expected == PASSES)
        return reason == REASON_VMCALL || reason == REASON_EXCEPTION_NMI;
    if (t->expected == GUEST)
        return reason == INVALID_STATE && vmread(EXIT_QUALIFICATION) == t->qualification;
    return reason == (FAILED | RFLAGS_ZF) && vmread(VM_INSTRUCTION_ERROR) == t->expected;
}

static void test_cases(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct test_case *t = &cases[i];
        u64 reason;

        if (!is_offered(t)) {
            report_skip("%s: not offered", t->name);
            continue;
        }
        set_up(t);
        reason = run();
        report_known(t->not_on ? t->not_on : MACHINE_NONE, as_expected(t, reason),
                     "%s: %#llx, error %llu, qualification %llu", t->name, LLU(reason),
                     LLU(vmread(VM_INSTRUCTION_ERROR)), LLU(vmread(EXIT_QUALIFICATION)));
    }
}

// --- the link pointer's VMCS; MSR areas ---

static void test_link(void)
{
    static const struct test_case plain = {.name = "plain"};

    set_up(&plain);
    vmwrite(VMCS_LINK_POINTER, (u64)other_region);
    report(run() == REASON_VMCALL, "link pointer to a VMCS region");
    set_up(&plain);
    *(u32 *)other_region ^= 1;
    vmwrite(VMCS_LINK_POINTER, (u64)other_region);
    report(run() == INVALID_STATE && vmread(EXIT_QUALIFICATION) == 4,
           "link pointer to another revision: qualification %llu", LLU(vmread(EXIT_QUALIFICATION)));
    *(u32 *)other_region ^= 1 | 1u << 31;
    report(run() == INVALID_STATE && vmread(EXIT_QUALIFICATION) == 4,
           "link pointer to a shadow VMCS without VMCS shadowing");
    *(u32 *)other_region ^= 1u << 31;
    vmwrite(VMCS_LINK_POINTER, (u64)vmcs_region);
    report(run() == INVALID_STATE && vmread(EXIT_QUALIFICATION) == 4,
           "link pointer to the current VMCS");
    vmwrite(VMCS_LINK_POINTER, ~0ull);
    report(run() == REASON_VMCALL, "... mended: it enters");
}

static void test_msr_area(void)
{
    static const struct {
        u64 index, value;
        const char *name;
    } bad[] = {
        {MSR_FS_BASE, 0, "IA32_FS_BASE"},
        {MSR_GS_BASE, 0, "IA32_GS_BASE"},
        {0x808, 0, "an x2APIC MSR"},
        {BIT(32) | MSR_SYSENTER_ESP, 0, "reserved bits"},
        {MSR_SYSENTER_ESP, 0x0000800000000000, "a value that is not canonical"},
        {MSR_PAT, 2, "a memory type that is none"},
        {0x3fffffff, 0, "an MSR that is none"},
    };
    static const struct test_case plain = {.name = "plain"};

    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        u64 reason;

        set_up(&plain);
        msr_area[0] = MSR_KERNEL_GS_BASE;
        msr_area[2] = bad[i].index;
        msr_area[3] = bad[i].value;
        vmwrite(ENTRY_MSR_LOAD_COUNT, 2);
        reason = run();
        report_known(i == ARRAY_SIZE(bad) - 1 ? B : MACHINE_NONE, // it is run with ignore_bad_msrs
                     reason == MSR_FAILURE && vmread(EXIT_QUALIFICATION) == 2,
                     "MSR-load area, %s: %#llx, qualification %llu", bad[i].name, LLU(reason),
                     LLU(vmread(EXIT_QUALIFICATION)));
    }
    set_up(&plain);
    msr_area[0] = MSR_KERNEL_GS_BASE;
    vmwrite(ENTRY_MSR_LOAD_COUNT, 1);
    report(run() == REASON_VMCALL, "MSR-load area that can be loaded");
}

// Rows that need not be looked at again must be looked at when they change.
static void test_again(void)
{
    static const struct test_case plain = {.name = "plain"};

    set_up(&plain);
    report(run() == REASON_VMCALL && run() == REASON_VMCALL, "entered twice");
    vmwrite(GUEST_TR_ACCESS, vmread(GUEST_TR_ACCESS) & ~2ull);
    report(run() == INVALID_STATE, "TR is no longer busy");
    vmwrite(GUEST_TR_ACCESS, vmread(GUEST_TR_ACCESS) | 2);
    vmwrite(HOST_TR_SELECTOR, 0);
    report(run() == (FAILED | RFLAGS_ZF) && vmread(VM_INSTRUCTION_ERROR) == HOST,
           "the host's TR is 0");
    vmwrite(HOST_TR_SELECTOR, TSS);
    vmwrite(ENTRY_CONTROLS, vmread(ENTRY_CONTROLS) & ~(u64)ENTRY_CTL_IA32E_GUEST);
    report(run() == INVALID_STATE, "EFER.LMA and no IA-32e mode guest");
    vmwrite(ENTRY_CONTROLS, vmread(ENTRY_CONTROLS) | ENTRY_CTL_IA32E_GUEST);
    vmwrite(GUEST_RIP, BIT(62));
    report_known(B, run() == INVALID_STATE, "RIP");
    vmwrite(GUEST_RIP, (u64)l2_vmcall);
    report(run() == REASON_VMCALL, "all is well");
}

// What the MSR-load area has loaded before an entry fails is not saved: the guest-state area stays.
static void test_failed_keeps(void)
{
    static const struct test_case plain = {.name = "plain"};
    u64 reason, esp;

    set_up(&plain);
    vmwrite(GUEST_SYSENTER_ESP, 0x1000);
    report(run() == REASON_VMCALL, "entered once");
    msr_area[0] = MSR_SYSENTER_ESP;
    msr_area[1] = 0x2000;
    msr_area[2] = MSR_FS_BASE;
    vmwrite(ENTRY_MSR_LOAD_COUNT, 2);
    reason = run();
    esp = vmread(GUEST_SYSENTER_ESP);
    report(reason == MSR_FAILURE && esp == 0x1000,
           "an entry that fails saves nothing: SYSENTER_ESP %#llx", LLU(esp));
    vmwrite(ENTRY_MSR_LOAD_COUNT, 0);
    report(run() == REASON_VMCALL && vmread(GUEST_SYSENTER_ESP) == 0x1000,
           "the next one loads what there was");
}

// Nor is L1's own state back where no control says so: an MSR that the entry had loaded stays.
static void test_failed_leaves(void)
{
    static const struct test_case plain = {.name = "plain"};
    u64 pat = msr_read(MSR_PAT), other = pat ^ 1ull << 8, reason, seen;

    set_up(&plain);
    vmwrite(EXIT_CONTROLS, vmread(EXIT_CONTROLS) & ~(u64)EXIT_CTL_LOAD_PAT);
    vmwrite(GUEST_PAT, other);
    msr_area[0] = MSR_FS_BASE;
    vmwrite(ENTRY_MSR_LOAD_COUNT, 1);
    reason = run();
    seen = msr_read(MSR_PAT);
    report(reason == MSR_FAILURE && seen == other,
           "without \"load IA32_PAT\" a failed entry leaves L2's: %#llx", LLU(seen));
    msr_write(MSR_PAT, pat);
}

void guest_main(void)
{
    if (!(cpuid(1, 0).ecx & CPUID_VMX)) {
        report_skip("no VMX");
        return;
    }
    report(vmx_start(), "VMXON");
    make_tables();
    pdpt[4] = pdpt[0] | BIT(1); // the tables of CR3 + 20H
    memcpy(pdpt + 5, pdpt + 1, 3 * sizeof(*pdpt));
    test_cases();
    test_link();
    test_msr_area();
    test_again();
    test_failed_keeps();
    test_failed_leaves();
}
