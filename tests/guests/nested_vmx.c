// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small hypervisor: VMX operation and its capabilities, what VMXON, VMCLEAR, VMPTRLD, VMREAD and
// VMWRITE refuse, a VMCS's fields; VMLAUNCH and VMRESUME of guests of a few instructions, and what
// the VMCS and the registers hold after each exit, with EPT off and on (SDM vol. 3 "VM Entries",
// "VM Exits", "VMX Instruction Reference"). Its L2's events, exits and entry checks are in
// nested_vmx_events, nested_vmx_exits and nested_vmx_checks.

#include "vmx.h"

static void try_vmxon(void *region)
{
    vmxon(region);
}
static void try_vmclear(void *region)
{
    vmclear(region);
}
static void try_vmptrld(void *region)
{
    vmptrld(region);
}
static void try_vmptrst(void *at)
{
    __asm__ volatile("vmptrst %0" : "=m"(*(u64 *)at) : : "cc");
}
static void try_vmread(void *field)
{
    vmread((u64)field);
}
static void try_vmwrite(void *field)
{
    vmwrite((u64)field, 0);
}
static void try_vmlaunch(void *unused)
{
    (void)unused;
    __asm__ volatile("vmlaunch" : : : "cc", "memory");
}
static void try_vmresume(void *unused)
{
    (void)unused;
    __asm__ volatile("vmresume" : : : "cc", "memory");
}
static void try_vmxoff(void *unused)
{
    (void)unused;
    vmxoff();
}
static void try_cr0(void *value)
{
    write_cr0((u64)value);
}
static void try_cr4(void *value)
{
    write_cr4((u64)value);
}
static void try_wrmsr(void *msr)
{
    msr_write((u32)(u64)msr, 0);
}

// --- VMX operation ---

static const struct {
    void (*fn)(void *);
    const char *name;
} instructions[] = {
    {try_vmclear, "VMCLEAR"},   {try_vmptrld, "VMPTRLD"}, {try_vmptrst, "VMPTRST"},
    {try_vmread, "VMREAD"},     {try_vmwrite, "VMWRITE"}, {try_vmlaunch, "VMLAUNCH"},
    {try_vmresume, "VMRESUME"}, {try_vmxoff, "VMXOFF"},
};

// IA32_FEATURE_CONTROL before firmware has locked it (SDM vol. 3, "Enabling and Entering VMX
// Operation"): VMXON takes both bits.
static void test_unlocked(void)
{
    static const u64 values[] = {0, FEATURE_CONTROL_VMX_OUTSIDE_SMX};
    u64 cr4 = read_cr4();

    if (msr_read(MSR_FEATURE_CONTROL) & FEATURE_CONTROL_LOCK)
        return;
    write_cr4(cr4 | CR4_VMXE);
    for (unsigned i = 0; i < ARRAY_SIZE(values); i++) {
        msr_write(MSR_FEATURE_CONTROL, values[i]);
        report(msr_read(MSR_FEATURE_CONTROL) == values[i] &&
                   try(try_vmxon, vmxon_region) == VECTOR_GP,
               "VMXON with IA32_FEATURE_CONTROL %llu: #GP", LLU(values[i]));
    }
    write_cr4(cr4);
    msr_write(MSR_FEATURE_CONTROL, FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX);
}

static void test_enable(void)
{
    u64 cr0 = read_cr0(), lock;

    vmx_basic = msr_read(MSR_VMX_BASIC);
    vmxon_region = new_region();
    vmcs_region = new_region();
    test_unlocked();
    lock = msr_read(MSR_FEATURE_CONTROL);
    report((lock & 5) == 5, "IA32_FEATURE_CONTROL %#llx", LLU(lock));
    report(try(try_wrmsr, (void *)MSR_FEATURE_CONTROL) == VECTOR_GP,
           "WRMSR to it when locked: #GP");
    report(try(try_wrmsr, (void *)MSR_VMX_BASIC) == VECTOR_GP, "WRMSR to IA32_VMX_BASIC: #GP");
    report((vmx_basic >> 32 & 0x1fff) <= PAGE_SIZE && (vmx_basic >> 50 & 15) == 6,
           "IA32_VMX_BASIC %#llx", LLU(vmx_basic));
    report(try(try_vmxon, vmxon_region) == VECTOR_UD, "VMXON without CR4.VMXE: #UD");
    write_cr4(read_cr4() | msr_read(MSR_VMX_CR4_FIXED0) | CR4_VMXE);
    for (unsigned i = 0; i < ARRAY_SIZE(instructions); i++)
        report(try(instructions[i].fn, vmcs_region) == VECTOR_UD, "%s outside VMX operation: #UD",
               instructions[i].name);
    write_cr0(cr0 & ~CR0_NE);
    report(try(try_vmxon, vmxon_region) == VECTOR_GP, "VMXON without CR0.NE: #GP");
    write_cr0(cr0 | msr_read(MSR_VMX_CR0_FIXED0));
    report(try_user(try_vmxon, vmxon_region) == VECTOR_GP, "VMXON at CPL 3: #GP");
    report(vmxon((u8 *)vmxon_region + 8) == RFLAGS_CF, "VMXON, misaligned: CF");
    report(vmxon((void *)(1ull << 52)) == RFLAGS_CF, "VMXON, beyond the physical addresses: CF");
    *(u32 *)vmxon_region ^= 1;
    report(vmxon(vmxon_region) == RFLAGS_CF, "VMXON, wrong revision: CF");
    *(u32 *)vmxon_region ^= 1;
    report(vmxon(vmxon_region) == 0, "VMXON");
}

static bool subset(u32 msr, u32 true_msr)
{
    u64 plain = msr_read(msr), exact = msr_read(true_msr);

    return plain >> 32 == exact >> 32 && !((u32)exact & ~(u32)plain) &&
           !((u32)plain & ~(u32)(plain >> 32));
}

static void test_capabilities(void)
{
    u64 highest = msr_read(MSR_VMX_VMCS_ENUM) >> 1 & 0x1ff, value;
    bool fits = true;

    if (vmx_basic & VMX_BASIC_TRUE_CTLS)
        report(subset(MSR_VMX_PINBASED_CTLS, MSR_VMX_TRUE_PINBASED_CTLS) &&
                   subset(MSR_VMX_PROCBASED_CTLS, MSR_VMX_TRUE_PROCBASED_CTLS) &&
                   subset(MSR_VMX_EXIT_CTLS, MSR_VMX_TRUE_EXIT_CTLS) &&
                   subset(MSR_VMX_ENTRY_CTLS, MSR_VMX_TRUE_ENTRY_CTLS),
               "the TRUE capability MSRs allow what the others do");
    report(!(~read_cr0() & msr_read(MSR_VMX_CR0_FIXED0)) &&
               !(read_cr0() & ~msr_read(MSR_VMX_CR0_FIXED1)) &&
               !(~read_cr4() & msr_read(MSR_VMX_CR4_FIXED0)) &&
               !(read_cr4() & ~msr_read(MSR_VMX_CR4_FIXED1)),
           "CR0 and CR4 fit their fixed bits");
    for (u64 field = 0; field < 0x6c20; field += 2)
        if (vmread_flags(field, &value) == 0 && (field >> 1 & 0x1ff) > highest)
            fits = false;
    report(fits, "no field's index is above IA32_VMX_VMCS_ENUM's %#llx", LLU(highest));
    report(try(try_cr4, (void *)(read_cr4() & ~CR4_VMXE)) == VECTOR_GP,
           "CR4.VMXE can't be cleared: #GP");
    report(try(try_cr0, (void *)(read_cr0() & ~CR0_NE)) == VECTOR_GP, "nor CR0.NE: #GP");
}

static void test_instructions(void)
{
    u64 value = 0, *other = new_region();

    report(try(try_vmptrst, &value) == NO_TRAP && value == ~0ull,
           "VMPTRST without a current VMCS: %#llx", LLU(value));
    report(vmread_flags(GUEST_RIP, &value) == RFLAGS_CF && vmwrite(GUEST_RIP, 0) == RFLAGS_CF &&
               vmx_enter(0) == RFLAGS_CF && vmx_enter(1) == RFLAGS_CF,
           "VMREAD, VMWRITE, VMLAUNCH, VMRESUME without a current VMCS: CF");
    report(vmptrld(vmxon_region) == RFLAGS_CF,
           "VMPTRLD of the VMXON region without a current VMCS: CF");
    for (unsigned i = 0; i < ARRAY_SIZE(instructions); i++)
        report(try_user(instructions[i].fn, vmcs_region) == VECTOR_GP && last_trap.error == 0,
               "%s at CPL 3: #GP(0)", instructions[i].name);
    report(vmclear(vmcs_region) == 0 && vmptrld(vmcs_region) == 0, "VMCLEAR, VMPTRLD");
    report(try(try_vmptrst, &value) == NO_TRAP && value == (u64)vmcs_region, "VMPTRST");
    report(failed_with(vmclear((u8 *)vmcs_region + 1), 2), "VMCLEAR, misaligned: error 2");
    report(failed_with(vmclear((void *)(1ull << 52)), 2),
           "VMCLEAR, beyond the physical addresses: error 2");
    report(failed_with(vmclear(vmxon_region), 3), "VMCLEAR of the VMXON region: error 3");
    report(failed_with(vmx_enter(1), 5), "VMRESUME of a clear VMCS: error 5");
    report(failed_with(vmptrld((u8 *)vmcs_region + 1), 9), "VMPTRLD, misaligned: error 9");
    report(failed_with(vmptrld(vmxon_region), 10), "VMPTRLD of the VMXON region: error 10");
    *(u32 *)other ^= 1;
    report(failed_with(vmptrld(other), 11), "VMPTRLD, wrong revision: error 11");
    *(u32 *)other ^= 1;
    report(failed_with(vmwrite(0x6c30, 0), 12) && failed_with(vmread_flags(0x6c30, &value), 12),
           "a field that is none: error 12");
    report(failed_with(vmwrite(0x100000000 | GUEST_RIP, 0), 12), "a field with bit 32: error 12");
    if (!(msr_read(MSR_VMX_MISC) & VMX_MISC_VMWRITE_ANY))
        report(failed_with(vmwrite(EXIT_REASON, 0), 13), "VMWRITE to a read-only field: error 13");
    report(failed_with(vmxon(vmxon_region), 15), "VMXON in VMX operation: error 15");
    vmptrld(other);
    report(vmclear(other) == 0 && vmread_flags(GUEST_RIP, &value) == RFLAGS_CF,
           "VMCLEAR of the current VMCS: none is current");
}

static void test_fields(void)
{
    u64 memory[2] = {0x1111222233334444, ~0ull}, field = TSC_OFFSET, value = 0;
    void *other = new_region();

    vmptrld(vmcs_region);
    __asm__ volatile("vmwrite %1, %0" : : "r"(field), "m"(memory[0]) : "cc");
    __asm__ volatile("vmread %1, %0" : "=m"(memory[1]) : "r"(field) : "cc");
    report(memory[1] == memory[0], "VMWRITE from memory, VMREAD to memory");
    vmread_flags(TSC_OFFSET | 1, &value);
    report(value == 0x11112222, "the high half of a 64-bit field: %#llx", LLU(value));
    vmwrite(TSC_OFFSET | 1, 0xffffffff55556666);
    report(vmread(TSC_OFFSET) == 0x5555666633334444, "VMWRITE to it: %#llx",
           LLU(vmread(TSC_OFFSET)));
    vmwrite(GUEST_ES_SELECTOR, 0xffff1234);
    vmwrite(EXCEPTION_BITMAP, 0xffffffff12345678);
    report(vmread(GUEST_ES_SELECTOR) == 0x1234 && vmread(EXCEPTION_BITMAP) == 0x12345678,
           "16- and 32-bit fields are cut");
    report(failed_with(vmread_flags(GUEST_RIP | 1, &value), 12),
           "no high half of a natural-width field: error 12");
    vmclear(other);
    vmptrld(other);
    vmwrite(TSC_OFFSET, 1);
    vmptrld(vmcs_region);
    report(vmread(TSC_OFFSET) == 0x5555666633334444, "each VMCS has its own fields");
    vmptrld(other);
    report(vmread(TSC_OFFSET) == 1, "and keeps them");
    vmclear(other);
}

// --- the round trip ---

L2(l2_cpuid,
   "push %rax; stc; l2_at_cpuid: cpuid; l2_after_cpuid: mov %rbx, %r15; add $1, %r8; l2_hlt: hlt");
extern char l2_at_cpuid[], l2_after_cpuid[], l2_hlt[];

static void check_round_trip(const char *mode)
{
    u64 reason;

    for (unsigned i = 0; i < REGISTERS; i++)
        l2_registers[i] = 0x1111111111111111ull * i;
    reason = run();
    report(reason == REASON_CPUID && at(l2_at_cpuid) && vmread(EXIT_INSTRUCTION_LENGTH) == 2,
           "%s: CPUID exits: reason %#llx", mode, LLU(reason));
    report(l2_registers[RAX] == 0 && l2_registers[RCX] == 0x1111111111111111 &&
               l2_registers[RBX] == 0x3333333333333333 && l2_registers[R14] == 0xeeeeeeeeeeeeeeee,
           "%s: registers went in and came out", mode);
    report(vmread(GUEST_RSP) == (u64)(l2_stack + sizeof(l2_stack) - 8) && pushed(0) == 0 &&
               vmread(GUEST_RFLAGS) == (RFLAGS_FIXED | RFLAGS_CF),
           "%s: RSP, RFLAGS %#llx", mode, LLU(vmread(GUEST_RFLAGS)));
    report(!(vmread(EXIT_INTERRUPTION_INFO) & INFO_VALID) &&
               !(vmread(IDT_VECTORING_INFO) & INFO_VALID) && vmread(GUEST_INTERRUPTIBILITY) == 0 &&
               vmread(GUEST_ACTIVITY_STATE) == 0,
           "%s: no event, nothing blocked", mode);
    vmwrite(GUEST_RIP, (u64)l2_after_cpuid); // as a hypervisor emulates CPUID
    l2_registers[RBX] = 0xfeedface12345678;
    reason = run();
    report(reason == REASON_HLT && at(l2_hlt) && vmread(EXIT_INSTRUCTION_LENGTH) == 1,
           "%s: HLT exits: reason %#llx", mode, LLU(reason));
    report(l2_registers[R15] == 0xfeedface12345678 && l2_registers[R8] == 0x8888888888888889,
           "%s: L2 worked with what it got", mode);
}

static void test_round_trip(void)
{
    init(l2_cpuid);
    check_round_trip("no EPT");
    report(failed_with(vmx_enter(0), 4), "VMLAUNCH of a launched VMCS: error 4");
    init(l2_cpuid);
    report(failed_with(vmx_enter(2), 26), "VMLAUNCH behind MOV SS: error 26");
}

// What an exit loads of the host's, and what an entry loads of the guest's.
static void test_state(void)
{
    u64 *other_pml4 = pages(1), cr0 = read_cr0(), cr3 = read_cr3(), cr4 = read_cr4(),
        efer = msr_read(MSR_EFER), pat = msr_read(MSR_PAT);
    struct table_pointer gdtr;
    u16 ds, tr, ldtr;

    memcpy(other_pml4, pml4, PAGE_SIZE);
    init(l2_cpuid);
    vmwrite(GUEST_CR0, cr0 ^ CR0_AM ^ CR0_WP);
    vmwrite(GUEST_CR3, (u64)other_pml4);
    vmwrite(GUEST_CR4, cr4 ^ CR4_PGE ^ CR4_DE);
    vmwrite(GUEST_EFER, efer ^ EFER_SCE ^ EFER_NX);
    vmwrite(GUEST_PAT, pat ^ 1ull << 8);
    vmwrite(GUEST_SYSENTER_CS, 0x77);
    vmwrite(GUEST_SYSENTER_ESP, 0x7777);
    vmwrite(GUEST_SYSENTER_EIP, 0x7778);
    vmwrite(GUEST_FS_BASE, 0x5000);
    vmwrite(GUEST_DR7, DR7_FIXED | 1);
    vmwrite(GUEST_DS_SELECTOR, USER_DATA);
    put_segment(3, USER_DATA, 0xc0f3, ~0u, 0);
    vmwrite(HOST_SYSENTER_CS, 0x55);
    vmwrite(HOST_SYSENTER_ESP, 0x5555);
    vmwrite(HOST_SYSENTER_EIP, 0x5556);
    vmwrite(HOST_FS_BASE, 0x6000);
    vmwrite(HOST_GS_BASE, 0x7000);
    vmwrite(HOST_ES_SELECTOR, 0);
    report_exit(run() == REASON_CPUID, "an L2 with other registers");
    __asm__ volatile("sgdt %0; mov %%ds, %1; str %2; sldt %3"
                     : "=m"(gdtr), "=m"(ds), "=m"(tr), "=m"(ldtr));
    report(read_cr0() == cr0 && read_cr3() == cr3 && read_cr4() == cr4, "L1's CR0, CR3, CR4");
    report(msr_read(MSR_EFER) == efer && msr_read(MSR_PAT) == pat, "L1's EFER, PAT");
    report(msr_read(MSR_SYSENTER_CS) == 0x55 && msr_read(MSR_SYSENTER_ESP) == 0x5555 &&
               msr_read(MSR_SYSENTER_EIP) == 0x5556,
           "L1's SYSENTER MSRs");
    report(msr_read(MSR_FS_BASE) == 0x6000 && msr_read(MSR_GS_BASE) == 0x7000 && ds == DATA &&
               tr == TSS && ldtr == 0,
           "L1's segments");
    report(gdtr.base == (u64)gdt && gdtr.limit == 0xffff, "GDTR's limit is ffffh: %#x", gdtr.limit);
    report((read_dr7() & 0xffff) == DR7_FIXED &&
               (read_rflags() & ~(RFLAGS_PF | RFLAGS_ZF | RFLAGS_CF | RFLAGS_AF | RFLAGS_SF)) ==
                   RFLAGS_FIXED,
           "DR7 %#llx", LLU(read_dr7()));
    report(vmread(GUEST_CR0) == (cr0 ^ CR0_AM ^ CR0_WP) && vmread(GUEST_CR3) == (u64)other_pml4 &&
               vmread(GUEST_CR4) == (cr4 ^ CR4_PGE ^ CR4_DE) &&
               vmread(GUEST_EFER) == (efer ^ EFER_SCE ^ EFER_NX) &&
               vmread(GUEST_PAT) == (pat ^ 1ull << 8),
           "L2's control registers, EFER %#llx and PAT are in the VMCS", LLU(vmread(GUEST_EFER)));
    report(vmread(GUEST_SYSENTER_ESP) == 0x7777 && vmread(GUEST_FS_BASE) == 0x5000 &&
               vmread(GUEST_DS_ACCESS) == 0xc0f3 && vmread(GUEST_DR7) == (DR7_FIXED | 1) &&
               vmread(GUEST_TR_ACCESS) == 0x8b,
           "and SYSENTER, segments, DR7");
    msr_write(MSR_FS_BASE, 0);
    msr_write(MSR_GS_BASE, 0);
}

L2(l2_32, ".code32; mov $0x12345678, %eax; cpuid; .code64");

// 32-bit L2s: with 4 MiB pages, and with PAE.
static void test_paging_modes(void)
{
    u32 *directory = pages(1);
    u64 *pdpt = pages(1);

    for (u32 i = 0; i < 1024; i++)
        directory[i] = i << 22 | 0x87;
    for (unsigned i = 0; i < 4; i++)
        pdpt[i] = (u64)&directories[512 * i] | 1;
    init(l2_32);
    set_entry(ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT | ENTRY_CTL_LOAD_EFER);
    put_segment(1, CODE32, 0xc09b, ~0u, 0);
    vmwrite(GUEST_EFER, 0);
    vmwrite(GUEST_CR4, (read_cr4() & ~CR4_PAE) | CR4_PSE);
    vmwrite(GUEST_CR3, (u64)directory);
    report_exit(run() == REASON_CPUID && l2_registers[RAX] == 0x12345678 && at(l2_32 + 5),
                "an L2 in 32-bit mode");
    report(!(vmread(ENTRY_CONTROLS) & ENTRY_CTL_IA32E_GUEST) && vmread(GUEST_EFER) == 0,
           "it is not in IA-32e mode");
    init(l2_32);
    set_entry(ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT | ENTRY_CTL_LOAD_EFER);
    put_segment(1, CODE32, 0xc09b, ~0u, 0);
    vmwrite(GUEST_EFER, 0);
    vmwrite(GUEST_CR3, (u64)pdpt);
    report_exit(run() == REASON_CPUID && l2_registers[RAX] == 0x12345678, "an L2 with PAE");
    pdpt[2] |= 2;
    vmwrite(GUEST_RIP, (u64)l2_32);
    report_exit(run() == (EXIT_REASON_ENTRY_FAILURE | REASON_INVALID_GUEST_STATE) &&
                    vmread(EXIT_QUALIFICATION) == 2,
                "a reserved bit in a PDPTE");
}

// --- EPT ---

L2(l2_write, "mov %rax, (%rdi); vmcall");

static u64 *ept;

static bool has_ept(void)
{
    return offers(MSR_VMX_PROCBASED_CTLS, PRIMARY_SECONDARY) &&
           offers(MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT);
}

static void test_ept(void)
{
    u64 target = 0x30000000, *entry;

    if (!has_ept()) {
        report_skip("no EPT");
        return;
    }
    ept = identity_tables(EPT_RWX, EPT_WB | EPT_RWX);
    init(l2_cpuid);
    use_ept(eptp_of(ept, false));
    check_round_trip("EPT");
    entry = &ept[DIRECTORIES + target / SIZE_2M];
    *entry = 0;
    invept(INVEPT_SINGLE, eptp_of(ept, false));
    init(l2_write);
    use_ept(eptp_of(ept, false));
    l2_registers[RAX] = 0x600df00d;
    l2_registers[RDI] = target + 8;
    report_exit(run() == REASON_EPT_VIOLATION && at(l2_write) &&
                    (vmread(EXIT_QUALIFICATION) & 0x1bf) == 0x182 &&
                    vmread(GUEST_PHYSICAL_ADDRESS) == target + 8 &&
                    vmread(GUEST_LINEAR_ADDRESS) == target + 8,
                "EPT violation");
    *entry = 0x2000000 | 0xb7; // mapped elsewhere now
    report_exit(run() == REASON_VMCALL && *(volatile u64 *)0x2000008 == 0x600df00d,
                "L2 goes on when the page is there, and its write lands where L1 mapped it");
    *entry = target | 0x86; // write without read
    invept(INVEPT_SINGLE, eptp_of(ept, false));
    vmwrite(GUEST_RIP, (u64)l2_write);
    report_exit(run() == REASON_EPT_MISCONFIGURATION && at(l2_write), "EPT misconfiguration");
}

void guest_main(void)
{
    if (!(cpuid(1, 0).ecx & CPUID_VMX)) {
        report(false, "CPUID has no VMX");
        return;
    }
    l1_prepare(VMCALL);
    test_enable();
    test_capabilities();
    test_instructions();
    test_fields();
    test_round_trip();
    test_state();
    test_paging_modes();
    test_ept();
    vmclear(vmcs_region);
    report(try(try_vmxoff, NULL) == NO_TRAP && try(try_vmread, (void *)GUEST_RIP) == VECTOR_UD,
           "VMXOFF: VMREAD raises #UD again");
}
