// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The checks of VM entry (SDM vol. 3 "VM Entries"): each row spoils one field of a VMCS that
// enters. Checks that depend on secondary controls or on several fields are in vmx_entry_checks.

#include "vmx.h"

L2(l2_cpuid, "cpuid; vmcall");

struct spoil {
    u16 field;
    u64 clear, set;
    const char *name;
    enum machine not_on; // lacks the check
};

static const struct spoil control_spoils[] = {
    {PIN_BASED_CONTROLS, 2, 0, "pin-based controls, bit 1 clear", MACHINE_NONE},
    {PIN_BASED_CONTROLS, 0, 1u << 31, "pin-based controls, bit 31", MACHINE_NONE},
    {PRIMARY_CONTROLS, 2, 0, "primary controls, bit 1 clear", MACHINE_NONE},
    {PRIMARY_CONTROLS, 0, 1, "primary controls, bit 0", MACHINE_NONE},
    {PRIMARY_CONTROLS, 0, PRIMARY_NMI_WINDOW, "NMI window without virtual NMIs", MACHINE_NONE},
    {CR3_TARGET_COUNT, 0, 0x100, "CR3-target count", MACHINE_NONE},
    {EXIT_CONTROLS, 1, 0, "exit controls, bit 0 clear", MACHINE_NONE},
    {EXIT_CONTROLS, 0, 1u << 31, "exit controls, bit 31", MACHINE_NONE},
    {ENTRY_CONTROLS, 1, 0, "entry controls, bit 0 clear", MACHINE_NONE},
    {ENTRY_CONTROLS, 0, 1u << 31, "entry controls, bit 31", MACHINE_NONE},
    {ENTRY_INTERRUPTION_INFO, 0, INFO_VALID | 1 << 8, "injection of type 1", MACHINE_NONE},
    {ENTRY_INTERRUPTION_INFO, 0, INFO_VALID | 1 << 12 | 0x40, "injection, bit 12", MACHINE_NONE},
    {ENTRY_INTERRUPTION_INFO, 0, INFO_VALID | 2 << 8 | 3, "injection of NMI 3", MACHINE_NONE},
    {ENTRY_INTERRUPTION_INFO, 0, INFO_VALID | 3 << 8 | 32, "injection of exception 32",
     MACHINE_NONE},
    {EXIT_MSR_STORE_COUNT, 0, 1, "exit MSR-store area, misaligned", MACHINE_NONE},
    {EXIT_MSR_LOAD_COUNT, 0, 1, "exit MSR-load area, misaligned", MACHINE_NONE},
    {ENTRY_MSR_LOAD_COUNT, 0, 1, "entry MSR-load area, misaligned", MACHINE_NONE},
};
static const struct spoil error_code_spoils[] = {
    {ENTRY_INTERRUPTION_INFO, 0, INFO_VALID | 3 << 8 | VECTOR_GP,
     "injection of #GP without error code", MACHINE_NONE},
    {ENTRY_INTERRUPTION_INFO, 0, INFO_VALID | 1 << 11 | 3 << 8 | VECTOR_UD,
     "injection of #UD with error code", MACHINE_NONE},
};

static const struct spoil host_spoils[] = {
    {HOST_CR0, CR0_PG, 0, "CR0.PG clear", MACHINE_NONE},
    {HOST_CR0, 0, 1ull << 32, "CR0[32]", MACHINE_NONE},
    {HOST_CR4, CR4_VMXE, 0, "CR4.VMXE clear", MACHINE_NONE},
    {HOST_CR4, 0, 1ull << 31, "CR4[31]", MACHINE_NONE},
    {HOST_CR4, CR4_PAE, 0, "CR4.PAE clear", MACHINE_NONE},
    {HOST_CR3, 0, 1ull << 52, "CR3[52]", MACHINE_NONE},
    {HOST_SYSENTER_ESP, 0, BAD_ADDRESS, "SYSENTER_ESP", MACHINE_NONE},
    {HOST_SYSENTER_EIP, 0, BAD_ADDRESS, "SYSENTER_EIP", MACHINE_NONE},
    {HOST_PAT, 0xff, 2, "PAT 2", MACHINE_NONE},
    {HOST_EFER, 0, 1ull << 40, "EFER[40]", MACHINE_NONE},
    {HOST_EFER, EFER_LMA, 0, "EFER.LMA clear", MACHINE_NONE},
    {HOST_EFER, EFER_LME, 0, "EFER.LME clear", MACHINE_NONE},
    {HOST_CS_SELECTOR, 0xffff, 0, "CS 0", MACHINE_NONE},
    {HOST_CS_SELECTOR, 0, 3, "CS with RPL 3", MACHINE_NONE},
    {HOST_DS_SELECTOR, 0, 4, "DS with TI", MACHINE_NONE},
    {HOST_TR_SELECTOR, 0xffff, 0, "TR 0", MACHINE_NONE},
    {HOST_FS_BASE, 0, BAD_ADDRESS, "FS base", MACHINE_NONE},
    {HOST_GS_BASE, 0, BAD_ADDRESS, "GS base", MACHINE_NONE},
    {HOST_GDTR_BASE, 0, BAD_ADDRESS, "GDTR base", MACHINE_NONE},
    {HOST_IDTR_BASE, 0, BAD_ADDRESS, "IDTR base", MACHINE_NONE},
    {HOST_TR_BASE, 0, BAD_ADDRESS, "TR base", MACHINE_NONE},
    {HOST_RIP, 0, BAD_ADDRESS, "RIP", MACHINE_NONE},
    {EXIT_CONTROLS, EXIT_CTL_HOST_64, 0, "host address-space size 0", MACHINE_NONE},
};

static const struct spoil guest_spoils[] = {
    {GUEST_CR0, CR0_NE, 0, "CR0.NE clear", MACHINE_NONE},
    {GUEST_CR0, 0, 1ull << 32, "CR0[32]", MACHINE_NONE},
    {GUEST_CR4, CR4_VMXE, 0, "CR4.VMXE clear", MACHINE_NONE},
    {GUEST_CR4, 0, 1ull << 31, "CR4[31]", MACHINE_NONE},
    {GUEST_CR4, CR4_PAE, 0, "CR4.PAE clear", MACHINE_NONE},
    {GUEST_CR3, 0, 1ull << 52, "CR3[52]", MACHINE_NONE},
    {GUEST_DR7, 0, 1ull << 32, "DR7[32]", MACHINE_NONE},
    {GUEST_SYSENTER_ESP, 0, BAD_ADDRESS, "SYSENTER_ESP", MACHINE_NONE},
    {GUEST_SYSENTER_EIP, 0, BAD_ADDRESS, "SYSENTER_EIP", MACHINE_NONE},
    {GUEST_PAT, 0xff, 3, "PAT 3", MACHINE_NONE},
    {GUEST_EFER, 0, 1ull << 40, "EFER[40]", MACHINE_NONE},
    {GUEST_EFER, EFER_LMA, 0, "EFER.LMA clear", MACHINE_NONE},
    {GUEST_EFER, EFER_LME, 0, "EFER.LME clear", MACHINE_NONE},
    {GUEST_CS_ACCESS, 0xf, 0x3, "CS is data", MACHINE_NONE},
    {GUEST_CS_ACCESS, 1, 0, "CS is not accessed", MACHINE_NONE},
    {GUEST_CS_ACCESS, SEG_S, 0, "CS is a system segment", MACHINE_NONE},
    {GUEST_CS_ACCESS, SEG_P, 0, "CS is not present", MACHINE_NONE},
    {GUEST_CS_ACCESS, 0, SEG_DB, "CS.L and CS.D", MACHINE_NONE},
    {GUEST_CS_ACCESS, 0, 1 << 8, "CS access rights, bit 8", MACHINE_NONE},
    {GUEST_CS_ACCESS, 0, 1 << 17, "CS access rights, bit 17", MACHINE_NONE},
    {GUEST_CS_ACCESS, 0, SEG_DPL, "CS.DPL is not SS.DPL", MACHINE_NONE},
    {GUEST_CS_LIMIT, 1, 0, "CS limit's low bits with G", MACHINE_NONE},
    {GUEST_CS_ACCESS, SEG_G, 0, "CS limit's high bits without G", MACHINE_NONE},
    {GUEST_CS_SELECTOR, 0, 3, "CS.RPL is not SS.RPL", MACHINE_NONE},
    {GUEST_CS_BASE, 0, 1ull << 32, "CS base, bit 32", MACHINE_NONE},
    {GUEST_SS_ACCESS, 0xf, 0xb, "SS is code", MACHINE_NONE},
    {GUEST_SS_ACCESS, 0xf, 0x1, "SS is read-only", MACHINE_NONE},
    {GUEST_SS_ACCESS, 0, SEG_DPL, "SS.DPL is not its RPL", MACHINE_NONE},
    {GUEST_SS_BASE, 0, 1ull << 32, "SS base, bit 32", MACHINE_NONE},
    {GUEST_DS_ACCESS, 1, 0, "DS is not accessed", MACHINE_NONE},
    {GUEST_DS_ACCESS, 0xf, 0x9, "DS is unreadable code", MACHINE_NONE},
    {GUEST_DS_ACCESS, SEG_S, 0, "DS is a system segment", MACHINE_NONE},
    {GUEST_ES_ACCESS, SEG_P, 0, "ES is not present", MACHINE_NONE},
    {GUEST_FS_SELECTOR, 0, 3, "FS.RPL is above its DPL", MACHINE_NONE},
    {GUEST_ES_BASE, 0, 1ull << 32, "ES base, bit 32", MACHINE_NONE},
    {GUEST_FS_BASE, 0, BAD_ADDRESS, "FS base", MACHINE_NONE},
    {GUEST_GS_BASE, 0, BAD_ADDRESS, "GS base", MACHINE_NONE},
    {GUEST_TR_SELECTOR, 0, 4, "TR with TI", MACHINE_NONE},
    {GUEST_TR_ACCESS, 0xf, 0x3, "TR is a 16-bit TSS", MACHINE_NONE},
    {GUEST_TR_ACCESS, 0xf, 0x9, "TR is not busy", MACHINE_NONE},
    {GUEST_TR_ACCESS, 0, SEG_S, "TR is no system segment", MACHINE_NONE},
    {GUEST_TR_ACCESS, SEG_P, 0, "TR is not present", MACHINE_NONE},
    {GUEST_TR_ACCESS, 0, SEG_UNUSABLE, "TR is unusable", MACHINE_NONE},
    {GUEST_TR_ACCESS, 0, SEG_G, "TR limit's low bits with G", MACHINE_NONE},
    {GUEST_TR_ACCESS, 0, 1 << 9, "TR access rights, bit 9", MACHINE_NONE},
    {GUEST_TR_BASE, 0, BAD_ADDRESS, "TR base", MACHINE_NONE},
    {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 0x83, "LDTR is no LDT", MACHINE_NONE},
    {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 2, "LDTR is not present", MACHINE_NONE},
    {GUEST_GDTR_BASE, 0, BAD_ADDRESS, "GDTR base", MACHINE_NONE},
    {GUEST_IDTR_BASE, 0, BAD_ADDRESS, "IDTR base", MACHINE_NONE},
    {GUEST_GDTR_LIMIT, 0, 1 << 16, "GDTR limit", MACHINE_NONE},
    {GUEST_IDTR_LIMIT, 0, 1 << 16, "IDTR limit", MACHINE_NONE},
    {GUEST_RIP, 0, BAD_ADDRESS, "RIP", MACHINE_BOCHS},
    {GUEST_RFLAGS, RFLAGS_FIXED, 0, "RFLAGS[1] clear", MACHINE_NONE},
    {GUEST_RFLAGS, 0, 1 << 3, "RFLAGS[3]", MACHINE_NONE},
    {GUEST_RFLAGS, 0, 1 << 15, "RFLAGS[15]", MACHINE_NONE},
    {GUEST_RFLAGS, 0, 1ull << 22, "RFLAGS[22]", MACHINE_NONE},
    {GUEST_RFLAGS, 0, RFLAGS_VM, "RFLAGS.VM in IA-32e mode", MACHINE_NONE},
    {ENTRY_INTERRUPTION_INFO, 0, INFO_VALID | 0x40, "injection of an interrupt with IF = 0",
     MACHINE_NONE},
    {GUEST_ACTIVITY_STATE, 0, 4, "activity state 4", MACHINE_NONE},
    {GUEST_INTERRUPTIBILITY, 0, 1 << 5, "interruptibility, bit 5", MACHINE_NONE},
    {GUEST_INTERRUPTIBILITY, 0, 1, "STI blocking with IF = 0", MACHINE_NONE},
    {GUEST_INTERRUPTIBILITY, 0, 4, "SMI blocking outside SMM", MACHINE_NONE},
    {GUEST_PENDING_DBG, 0, 1 << 4, "pending debug exceptions, bit 4", MACHINE_NONE},
    {GUEST_PENDING_DBG, 0, 1 << 13, "pending debug exceptions, bit 13", MACHINE_NONE},
    {VMCS_LINK_POINTER, ~0ull, 1, "VMCS link pointer 1", MACHINE_NONE},
};

static void spoil(const struct spoil *s)
{
    init(l2_cpuid);
    vmwrite(EXIT_MSR_STORE_ADDRESS, 8);
    vmwrite(EXIT_MSR_LOAD_ADDRESS, 8);
    vmwrite(ENTRY_MSR_LOAD_ADDRESS, 8);
    vmwrite(s->field, (vmread(s->field) & ~s->clear) | s->set);
}

static void check_failures(const struct spoil *spoils, unsigned count, u64 error, const char *what)
{
    for (unsigned i = 0; i < count; i++) {
        u64 reason;

        spoil(&spoils[i]);
        vmwrite(VM_INSTRUCTION_ERROR, 0);
        reason = run();
        report_known(spoils[i].not_on,
                     reason == (FAILED | RFLAGS_ZF) && vmread(VM_INSTRUCTION_ERROR) == error,
                     "%s, %s: error %llu (%#llx)", what, spoils[i].name,
                     LLU(vmread(VM_INSTRUCTION_ERROR)), LLU(reason));
    }
}

static void test_entry_checks(void)
{
    check_failures(control_spoils, ARRAY_SIZE(control_spoils), 7, "controls");
    if (!(vmx_basic & VMX_BASIC_ANY_ERROR)) // vmx_cet has the others
        check_failures(error_code_spoils, ARRAY_SIZE(error_code_spoils), 7, "controls");
    init(l2_cpuid);
    set_primary(PRIMARY_HLT | PRIMARY_IO_BITMAPS | PRIMARY_MSR_BITMAPS);
    vmwrite(IO_BITMAP_A, 0);
    vmwrite(MSR_BITMAP, 0);
    vmwrite(IO_BITMAP_B, 0x800);
    report(failed_with(vmx_enter(0), 7), "controls, I/O bitmap B, misaligned: error 7");
    vmwrite(IO_BITMAP_B, 0);
    vmwrite(MSR_BITMAP, 1ull << 52);
    report(failed_with(vmx_enter(0), 7),
           "controls, MSR bitmap beyond the physical addresses: error 7");
    check_failures(host_spoils, ARRAY_SIZE(host_spoils), 8, "host");
    for (unsigned i = 0; i < ARRAY_SIZE(guest_spoils); i++) {
        const struct spoil *s = &guest_spoils[i];
        u64 reason, cr3 = read_cr3();

        spoil(s);
        reason = run();
        report_known(s->not_on,
                     reason == (EXIT_REASON_ENTRY_FAILURE | REASON_INVALID_GUEST_STATE) &&
                         (vmread(EXIT_QUALIFICATION) == 0 || s->field == VMCS_LINK_POINTER) &&
                         read_cr3() == cr3,
                     "guest, %s: reason %#llx, qualification %llu", s->name, LLU(reason),
                     LLU(vmread(EXIT_QUALIFICATION)));
    }
    init(l2_cpuid);
    vmwrite(GUEST_RFLAGS, 0);
    run();
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED);
    report(failed_with(vmx_enter(1), 5) && run() == REASON_CPUID,
           "a VMCS whose entry failed is still clear");
}

void guest_main(void)
{
    if (!vmx_start()) {
        report(false, "no VMX");
        return;
    }
    test_entry_checks();
}
