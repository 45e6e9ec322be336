// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small hypervisor: VMXON, a VMCS, VMLAUNCH and VMRESUME of guests of a few instructions; what
// the VMCS and the registers hold after each exit, with EPT off and on; events, controls,
// interrupts; failures of the instructions and of each check of VM entry (SDM vol. 3 "VM Entries",
// "VM Exits", "VMX Instruction Reference"). An L2 shares L1's paging and GDT and has an IDT of its
// own, behind whose gates there is a VMCALL each.

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

static bool failed_with(u64 flags, u64 error)
{
    return flags == RFLAGS_ZF && vmread(VM_INSTRUCTION_ERROR) == error;
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

// --- exceptions ---

L2(l2_ud, "ud2");
L2(l2_read, "mov (%rdi), %eax; vmcall");
L2(l2_load_ds, "mov %edi, %ds; vmcall");
L2(l2_int3, "int3; l2_after_int3: vmcall");
L2(l2_nops, "nop; nop; vmcall");
extern char l2_after_int3[];

static void run_intercepted(const void *code, unsigned vector, u64 rdi)
{
    init(code);
    vmwrite(EXCEPTION_BITMAP, 1u << vector);
    l2_registers[RDI] = rdi;
    run();
}

static void test_exceptions(void)
{
    run_intercepted(l2_ud, VECTOR_UD, 0);
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_UD, false) && at(l2_ud) &&
                    vmread(EXIT_QUALIFICATION) == 0,
                "#UD");
    // Bochs saves the RF that was
    report_cpu(MACHINE_BOCHS, vmread(GUEST_RFLAGS) & RFLAGS_RF, "a fault's exit saves RF = 1");
    __asm__ volatile("mov %0, %%cr2" : : "r"(0x1234ull));
    run_intercepted(l2_read, VECTOR_PF, UNMAPPED + 8);
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_PF, true) && at(l2_read) &&
                    vmread(EXIT_QUALIFICATION) == UNMAPPED + 8 &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 0,
                "#PF");
    report(read_cr2() == 0x1234, "its exit leaves CR2 alone: %#llx", LLU(read_cr2()));
    run_intercepted(l2_read, VECTOR_GP, BAD_ADDRESS);
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_GP, true) &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 0,
                "#GP(0)");
    run_intercepted(l2_load_ds, VECTOR_GP, 0x1f8);
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_GP, true) &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 0x1f8,
                "#GP(selector)");
    run_intercepted(l2_int3, VECTOR_BP, 0);
    report_exit(excepted(TYPE_SOFT_EXCEPTION, VECTOR_BP, false) && at(l2_int3) &&
                    vmread(EXIT_INSTRUCTION_LENGTH) == 1,
                "INT3");
    init(l2_nops);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_DB);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_TF);
    write_dr6(DR6_FIXED);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_DB, false) && at(l2_nops + 1) &&
                    vmread(EXIT_QUALIFICATION) == DR6_BS,
                "#DB");
    report(read_dr6() == DR6_FIXED, "its exit leaves DR6 alone: %#llx", LLU(read_dr6()));
}

static void test_page_fault_filter(void)
{
    static const struct {
        bool bit, exits;
        u32 mask, match;
    } cases[] = {
        // the error code is 0
        {true, true, 0, 0},        {true, false, 0, 1},     {true, true, PF_W, 0},
        {true, false, PF_W, PF_W}, {false, false, PF_W, 0}, {false, true, PF_W, PF_W},
        {false, true, 0, 1},       {false, false, 0, 0},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        init(l2_read);
        vmwrite(EXCEPTION_BITMAP, cases[i].bit ? 1u << VECTOR_PF : 0);
        vmwrite(PF_ERROR_CODE_MASK, cases[i].mask);
        vmwrite(PF_ERROR_CODE_MATCH, cases[i].match);
        l2_registers[RDI] = UNMAPPED;
        run();
        report(cases[i].exits ? excepted(TYPE_EXCEPTION, VECTOR_PF, true) : in_handler(VECTOR_PF),
               "#PF, bitmap %u, mask %u, match %u: %s", cases[i].bit, cases[i].mask, cases[i].match,
               cases[i].exits ? "exits" : "goes to L2");
    }
}

static void test_own_exceptions(void)
{
    run_code(l2_ud);
    report(in_handler(VECTOR_UD) && pushed(0) == (u64)l2_ud && pushed(1) == CODE64 &&
               pushed(3) == (u64)(l2_stack + sizeof(l2_stack)) && pushed(4) == DATA,
           "#UD goes to L2's own handler");
    init(l2_read);
    l2_registers[RDI] = UNMAPPED + 16;
    run();
    report(in_handler(VECTOR_PF) && pushed(0) == 0 && pushed(1) == (u64)l2_read &&
               read_cr2() == UNMAPPED + 16,
           "#PF goes to L2's own handler, CR2 %#llx", LLU(read_cr2()));
    run_code(l2_int3);
    report(in_handler(VECTOR_BP) && pushed(0) == (u64)l2_after_int3,
           "INT3 goes to L2's own handler");
    init(l2_ud);
    vmwrite(GUEST_IDTR_LIMIT, 0);
    report_exit(run() == REASON_TRIPLE_FAULT, "a triple fault");
    init(l2_ud);
    vmwrite(GUEST_IDTR_LIMIT, 0);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_DF);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_DF, true) &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 0,
                "a double fault");
}

// --- event injection ---

static void run_injected(u64 type, unsigned vector, u64 error, unsigned length)
{
    init(l2_nops);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    vmwrite(ENTRY_INTERRUPTION_INFO,
            INFO_VALID | type << INFO_TYPE_SHIFT | vector | (error ? INFO_ERROR_CODE : 0));
    vmwrite(ENTRY_EXCEPTION_ERROR_CODE, error);
    vmwrite(ENTRY_INSTRUCTION_LENGTH, length);
    run();
}

static void test_injection(void)
{
    run_injected(TYPE_EXCEPTION, VECTOR_GP, 0x1234, 0);
    report(in_handler(VECTOR_GP) && pushed(0) == 0x1234 && pushed(1) == (u64)l2_nops,
           "#GP(1234h) injected");
    report(!(vmread(ENTRY_INTERRUPTION_INFO) & INFO_VALID),
           "the exit clears the information's valid bit");
    report(!(vmread(IDT_VECTORING_INFO) & INFO_VALID), "no IDT-vectoring information after it");
    run_injected(TYPE_EXCEPTION, VECTOR_UD, 0, 0);
    // SDM vol. 3 "Details of Vectored-Event Injection": RF is not modified by the type of the event
    report(in_handler(VECTOR_UD) && pushed(0) == (u64)l2_nops && !(pushed(2) & RFLAGS_RF),
           "#UD injected, RFLAGS pushed %#llx", LLU(in_handler(VECTOR_UD) ? pushed(2) : 0));
    run_injected(TYPE_INTERRUPT, 0x40, 0, 0);
    report(in_handler(0x40) && pushed(0) == (u64)l2_nops && (pushed(2) & RFLAGS_IF) &&
               !(vmread(GUEST_RFLAGS) & RFLAGS_IF),
           "an interrupt injected");
    run_injected(TYPE_NMI, VECTOR_NMI, 0, 0);
    report(in_handler(VECTOR_NMI) && pushed(0) == (u64)l2_nops, "an NMI injected");
    report(vmread(GUEST_INTERRUPTIBILITY) == 8, "NMIs are blocked then: interruptibility %#llx",
           LLU(vmread(GUEST_INTERRUPTIBILITY)));
    run_injected(TYPE_SOFT_INTERRUPT, 0x41, 0, 2);
    report(in_handler(0x41) && pushed(0) == (u64)l2_nops + 2, "INT n injected, RIP is advanced");
    run_injected(TYPE_SOFT_EXCEPTION, VECTOR_BP, 0, 1);
    report(in_handler(VECTOR_BP) && pushed(0) == (u64)l2_nops + 1,
           "INT3 injected, RIP is advanced");
    run_injected(TYPE_INT1, VECTOR_DB, 0, 1);
    report(in_handler(VECTOR_DB) && pushed(0) == (u64)l2_nops + 1,
           "INT1 injected, RIP is advanced");
}

static void test_interrupted_delivery(void)
{
    u64 gate = l2_idt[0x40 * 2], info;

    l2_idt[0x40 * 2] &= ~(1ull << 47);
    init(l2_nops);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_NP);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    vmwrite(ENTRY_INTERRUPTION_INFO, INFO_VALID | 0x40);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_NP, true) && at(l2_nops) &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 0x40 * 8 + 3,
                "#NP while an interrupt is delivered");
    info = vmread(IDT_VECTORING_INFO);
    report(info == (INFO_VALID | 0x40), "IDT-vectoring information %#llx", LLU(info));
    l2_idt[0x40 * 2] = gate;
    vmwrite(ENTRY_INTERRUPTION_INFO, info);
    run();
    report(in_handler(0x40) && pushed(0) == (u64)l2_nops,
           "it is delivered when L1 injects it again");
}

// --- instructions ---

L2(l2_vmcall, "vmcall");
L2(l2_vmxoff, "vmxoff");
L2(l2_vmlaunch, "vmlaunch");
L2(l2_vmread, "vmread %rcx, 8(%rdi, %rsi, 4)");
L2(l2_vmwrite, "vmwrite %rdx, %rcx");
L2(l2_vmptrld, "vmptrld 0x40(%rbx)");
L2(l2_invd, "invd");
L2(l2_xsetbv, "xsetbv");
L2(l2_rdtsc, "rdtsc; hlt");
L2(l2_rdpmc, "rdpmc");
L2(l2_invlpg, "invlpg 16(%rdi); hlt");
L2(l2_pause, "pause; hlt");
L2(l2_read_cr3, "mov %cr3, %rbx; hlt");
L2(l2_write_cr3, "mov %rbx, %cr3; hlt");
L2(l2_read_cr8, "mov %cr8, %rbx; hlt");
L2(l2_write_cr8, "mov %rbx, %cr8; hlt");
L2(l2_read_dr7, "mov %dr7, %rbx; hlt");
L2(l2_write_dr0, "mov %rcx, %dr0; hlt");
L2(l2_monitor, "monitor");
L2(l2_mwait, "mwait");
L2(l2_rdmsr, "rdmsr; hlt");
L2(l2_wrmsr, "wrmsr; hlt");

static const struct {
    const char *name;
    char *code;
    u32 primary;
    u16 reason;
    u8 length;
    u64 qualification;
} exits[] = {
    {"VMCALL", l2_vmcall, 0, REASON_VMCALL, 3, 0},
    {"VMXOFF", l2_vmxoff, 0, REASON_VMXOFF, 3, 0},
    {"VMLAUNCH", l2_vmlaunch, 0, REASON_VMLAUNCH, 3, 0},
    {"VMREAD", l2_vmread, 0, REASON_VMREAD, 5, 8},
    {"VMWRITE", l2_vmwrite, 0, REASON_VMWRITE, 3, 0},
    {"VMPTRLD", l2_vmptrld, 0, REASON_VMPTRLD, 4, 0x40},
    {"INVD", l2_invd, 0, REASON_INVD, 2, 0},
    {"RDMSR", l2_rdmsr, 0, REASON_RDMSR, 2, 0},
    {"WRMSR", l2_wrmsr, 0, REASON_WRMSR, 2, 0},
    {"RDTSC", l2_rdtsc, PRIMARY_RDTSC, REASON_RDTSC, 2, 0},
    {"RDPMC", l2_rdpmc, PRIMARY_RDPMC, REASON_RDPMC, 2, 0},
    {"INVLPG", l2_invlpg, PRIMARY_INVLPG, REASON_INVLPG, 4, UNMAPPED + 16},
    {"PAUSE", l2_pause, PRIMARY_PAUSE, REASON_PAUSE, 2, 0},
    {"MOV from CR3", l2_read_cr3, PRIMARY_CR3_STORE, REASON_CR_ACCESS, 3, 3 | 1 << 4 | 3 << 8},
    {"MOV to CR3", l2_write_cr3, PRIMARY_CR3_LOAD, REASON_CR_ACCESS, 3, 3 | 3 << 8},
    {"MOV from CR8", l2_read_cr8, PRIMARY_CR8_STORE, REASON_CR_ACCESS, 4, 8 | 1 << 4 | 3 << 8},
    {"MOV to CR8", l2_write_cr8, PRIMARY_CR8_LOAD, REASON_CR_ACCESS, 4, 8 | 3 << 8},
    {"MOV from DR7", l2_read_dr7, PRIMARY_MOV_DR, REASON_MOV_DR, 3, 7 | 1 << 4 | 3 << 8},
    {"MOV to DR0", l2_write_dr0, PRIMARY_MOV_DR, REASON_MOV_DR, 3, 1 << 8},
    {"MONITOR", l2_monitor, PRIMARY_MONITOR, REASON_MONITOR, 3, 0},
    {"MWAIT", l2_mwait, PRIMARY_MWAIT, REASON_MWAIT, 3, 0},
};

static void test_exits(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(exits); i++) {
        u64 reason;

        if (!offers(MSR_VMX_PROCBASED_CTLS, exits[i].primary) && exits[i].primary)
            continue;
        init(exits[i].code);
        set_primary(PRIMARY_HLT | exits[i].primary);
        l2_registers[RDI] = UNMAPPED;
        reason = run();
        report(reason == exits[i].reason && at(exits[i].code) &&
                   vmread(EXIT_INSTRUCTION_LENGTH) == exits[i].length &&
                   vmread(EXIT_QUALIFICATION) == exits[i].qualification,
               "%s exits: reason %llu, length %llu, qualification %#llx", exits[i].name,
               LLU(reason), LLU(vmread(EXIT_INSTRUCTION_LENGTH)), LLU(vmread(EXIT_QUALIFICATION)));
    }
}

// Table "Format of the VM-Exit Instruction-Information Field as Used for VMREAD and VMWRITE", and
// for VMPTRLD.
static void test_instruction_information(void)
{
    u64 info;

    run_code(l2_vmread);
    info = vmread(EXIT_INSTRUCTION_INFO);
    report((info & 0xffff8783) == (2 | 2 << 7 | 3 << 15 | 6u << 18 | 7u << 23 | 1u << 28),
           "VMREAD to memory: information %#llx", LLU(info));
    run_code(l2_vmwrite);
    info = vmread(EXIT_INSTRUCTION_INFO);
    report((info & 0xf0000478) == (2 << 3 | 1 << 10 | 1u << 28),
           "VMWRITE from a register: information %#llx", LLU(info));
    run_code(l2_vmptrld);
    info = vmread(EXIT_INSTRUCTION_INFO);
    report((info & 0x0fc38780) == (2 << 7 | 3 << 15 | 1 << 22 | 3u << 23),
           "VMPTRLD: information %#llx", LLU(info));
}

L2(l2_read_cr0, "mov %cr0, %rbx; mov %cr4, %rcx; hlt");
L2(l2_write_cr0, "mov %rbx, %cr0; mov %cr0, %rcx; hlt");
L2(l2_clts, "clts; mov %cr0, %rcx; hlt");
L2(l2_lmsw, "lmsw %bx; hlt");
L2(l2_write_cr4, "mov %rbx, %cr4; hlt");

static void test_control_registers(void)
{
    u64 cr0 = read_cr0();

    init(l2_read_cr0);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_AM | CR0_WP);
    vmwrite(CR0_READ_SHADOW, CR0_AM);
    vmwrite(CR4_GUEST_HOST_MASK, CR4_VMXE);
    report_exit(run() == REASON_HLT && l2_registers[RBX] == ((cr0 & ~CR0_WP) | CR0_AM) &&
                    l2_registers[RCX] == (read_cr4() & ~CR4_VMXE),
                "L2 reads the shadows of masked bits");
    init(l2_write_cr0);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_AM);
    l2_registers[RBX] = cr0 ^ CR0_AM;
    report_exit(run() == REASON_CR_ACCESS && vmread(EXIT_QUALIFICATION) == 3 << 8 &&
                    at(l2_write_cr0),
                "MOV to CR0 that differs from the shadow in a masked bit");
    init(l2_write_cr0);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_AM);
    l2_registers[RBX] = cr0 ^ CR0_WP;
    report_exit(run() == REASON_HLT && vmread(GUEST_CR0) == (cr0 ^ CR0_WP) &&
                    l2_registers[RCX] == ((cr0 ^ CR0_WP) & ~CR0_AM),
                "MOV to CR0 that does not");
    init(l2_write_cr0);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_GP);
    l2_registers[RBX] = cr0 & ~CR0_NE;
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_GP, true),
                "MOV to CR0 against its fixed bits: #GP");
    init(l2_clts);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_TS);
    vmwrite(CR0_READ_SHADOW, CR0_TS);
    report_exit(run() == REASON_CR_ACCESS && vmread(EXIT_QUALIFICATION) == 2 << 4, "CLTS");
    init(l2_clts);
    vmwrite(GUEST_CR0, cr0 | CR0_TS);
    report_exit(run() == REASON_HLT && vmread(GUEST_CR0) == cr0, "CLTS that L1 does not want");
    init(l2_lmsw);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_TS);
    l2_registers[RBX] = CR0_PE | CR0_TS;
    report_exit(run() == REASON_CR_ACCESS &&
                    vmread(EXIT_QUALIFICATION) == (3 << 4 | (CR0_PE | CR0_TS) << 16),
                "LMSW");
    init(l2_write_cr4);
    vmwrite(CR4_GUEST_HOST_MASK, CR4_PGE);
    l2_registers[RBX] = read_cr4() | CR4_PGE;
    report_exit(run() == REASON_CR_ACCESS && vmread(EXIT_QUALIFICATION) == (4 | 3 << 8),
                "MOV to CR4 of a masked bit");
    init(l2_write_cr4);
    l2_registers[RBX] = read_cr4() | CR4_DE;
    report_exit(run() == REASON_HLT && vmread(GUEST_CR4) == (read_cr4() | CR4_DE),
                "MOV to CR4 of another");
    init(l2_write_cr4);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_GP);
    l2_registers[RBX] = read_cr4() | 1ull << 31;
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_GP, true), "MOV to CR4 of a reserved bit: #GP");
    init(l2_write_cr3);
    set_primary(PRIMARY_HLT | PRIMARY_CR3_LOAD);
    vmwrite(CR3_TARGET_COUNT, 2);
    vmwrite(CR3_TARGET_VALUE1, read_cr3());
    l2_registers[RBX] = read_cr3();
    report_exit(run() == REASON_HLT, "MOV to CR3 of a target value");
}

static void test_tsc(void)
{
    u64 before;

    init(l2_rdtsc);
    set_primary(PRIMARY_HLT | PRIMARY_TSC_OFFSETTING);
    vmwrite(TSC_OFFSET, 1ull << 50);
    before = rdtsc();
    run();
    before = ((u32)l2_registers[RAX] | l2_registers[RDX] << 32) - before - (1ull << 50);
    report(before < 1ull << 32, "TSC offset: RDTSC is that much ahead, and %llu ticks",
           LLU(before));
}

// --- bitmaps ---

L2(l2_in8, "in %dx, %al; hlt");
L2(l2_in16, "in %dx, %ax; hlt");
L2(l2_out32, "out %eax, %dx; hlt");
L2(l2_out_imm, "out %al, $0x80; hlt");
L2(l2_outs, "rep outsb %fs:(%rsi), %dx; hlt");

static u8 *io_bitmaps, *msr_bitmap;

static u64 run_io(const void *code, u16 port)
{
    init(code);
    set_primary(PRIMARY_HLT | PRIMARY_IO_BITMAPS);
    vmwrite(IO_BITMAP_A, (u64)io_bitmaps);
    vmwrite(IO_BITMAP_B, (u64)io_bitmaps + PAGE_SIZE);
    l2_registers[RDX] = port;
    l2_registers[RCX] = 1;
    l2_registers[RSI] = (u64)l2_stack;
    return run();
}

static void test_io(void)
{
    io_bitmaps[0x80 / 8] = 1;
    io_bitmaps[0x9000 / 8] = 1;
    report_exit(run_io(l2_in8, 0x80) == REASON_IO &&
                    vmread(EXIT_QUALIFICATION) == (0x80 << 16 | 1 << 3),
                "IN");
    report_exit(run_io(l2_out32, 0x80) == REASON_IO &&
                    vmread(EXIT_QUALIFICATION) == (0x80 << 16 | 3),
                "OUT of 32 bits");
    report_exit(run_io(l2_out_imm, 0) == REASON_IO &&
                    vmread(EXIT_QUALIFICATION) == (0x80 << 16 | 1 << 6),
                "OUT to an immediate port");
    report_exit(run_io(l2_in16, 0x7f) == REASON_IO, "IN of 16 bits whose second byte's bit is set");
    report_exit(run_io(l2_in8, 0x9000) == REASON_IO, "bitmap B");
    report_exit(run_io(l2_in8, 0x81) == REASON_HLT, "another port does not exit");
    report_exit(run_io(l2_in16, 0xffff) == REASON_IO, "an access that wraps around");
    report_exit(run_io(l2_outs, 0x80) == REASON_IO &&
                    vmread(EXIT_QUALIFICATION) == (0x80 << 16 | 1 << 4 | 1 << 5) &&
                    vmread(GUEST_LINEAR_ADDRESS) == (u64)l2_stack,
                "REP OUTSB");
    if (vmx_basic & VMX_BASIC_INS_OUTS_INFO)
        report((vmread(EXIT_INSTRUCTION_INFO) & 0x38380) == (2 << 7 | 4 << 15),
               "its instruction information %#llx", LLU(vmread(EXIT_INSTRUCTION_INFO)));
    init(l2_in8);
    l2_registers[RDX] = 0x80;
    report_exit(run() == REASON_HLT, "no I/O control: no exit");
    init(l2_in8);
    set_primary(PRIMARY_HLT | PRIMARY_UNCONDITIONAL_IO);
    l2_registers[RDX] = 0x81;
    report_exit(run() == REASON_IO, "unconditional I/O exiting");
}

static u64 run_msr(const void *code, u32 msr, u64 value)
{
    init(code);
    set_primary(PRIMARY_HLT | PRIMARY_MSR_BITMAPS);
    vmwrite(MSR_BITMAP, (u64)msr_bitmap);
    l2_registers[RCX] = msr;
    l2_registers[RAX] = (u32)value;
    l2_registers[RDX] = value >> 32;
    return run();
}

static void test_msrs(void)
{
    unsigned lstar = MSR_LSTAR & 0x1fff;
    u8 bit = (u8)(1u << lstar % 8);

    msr_bitmap[0x400 + lstar / 8] = bit;
    report_exit(run_msr(l2_rdmsr, MSR_LSTAR, 0) == REASON_RDMSR && at(l2_rdmsr),
                "RDMSR whose bit is set");
    report_exit(run_msr(l2_wrmsr, MSR_LSTAR, 0x123456789ab) == REASON_HLT &&
                    msr_read(MSR_LSTAR) == 0x123456789ab,
                "WRMSR whose bit is clear; L1 sees what it wrote");
    msr_bitmap[0x400 + lstar / 8] = 0;
    msr_bitmap[0xc00 + lstar / 8] = bit;
    report_exit(run_msr(l2_wrmsr, MSR_LSTAR, 0) == REASON_WRMSR && at(l2_wrmsr),
                "WRMSR whose bit is set");
    report_exit(run_msr(l2_rdmsr, MSR_LSTAR, 0) == REASON_HLT &&
                    (l2_registers[RAX] | l2_registers[RDX] << 32) == 0x123456789ab,
                "RDMSR whose bit is clear");
    msr_bitmap[0xc00 + lstar / 8] = 0;
    report_exit(run_msr(l2_rdmsr, 0x40001234, 0) == REASON_RDMSR, "an MSR outside the bitmap");
    report_exit(run_msr(l2_wrmsr, MSR_FS_BASE, 0x8000) == REASON_HLT &&
                    vmread(GUEST_FS_BASE) == 0x8000 && msr_read(MSR_FS_BASE) == 0,
                "WRMSR to FS_BASE changes L2's");
}

// The MSR areas: 16 bytes an entry.
static void test_msr_areas(void)
{
    u64 *area = pages(1);

    msr_write(MSR_CSTAR, 0x1000);
    init(l2_cpuid);
    area[0] = MSR_CSTAR;
    area[1] = 0x2000;
    area[2] = MSR_CSTAR; // stored by the exit
    area[4] = MSR_CSTAR;
    area[5] = 0x3000;
    vmwrite(ENTRY_MSR_LOAD_ADDRESS, (u64)area);
    vmwrite(EXIT_MSR_STORE_ADDRESS, (u64)(area + 2));
    vmwrite(EXIT_MSR_LOAD_ADDRESS, (u64)(area + 4));
    vmwrite(ENTRY_MSR_LOAD_COUNT, 1);
    vmwrite(EXIT_MSR_STORE_COUNT, 1);
    vmwrite(EXIT_MSR_LOAD_COUNT, 1);
    report_exit(run() == REASON_CPUID && area[3] == 0x2000 && msr_read(MSR_CSTAR) == 0x3000,
                "the MSR areas");
    init(l2_cpuid);
    area[0] = MSR_CSTAR;
    area[1] = 0x4000;
    area[2] = MSR_FS_BASE; // is not to be loaded so
    area[3] = 0;
    vmwrite(ENTRY_MSR_LOAD_ADDRESS, (u64)area);
    vmwrite(ENTRY_MSR_LOAD_COUNT, 2);
    report_exit(run() == (EXIT_REASON_ENTRY_FAILURE | REASON_MSR_LOADING) &&
                    vmread(EXIT_QUALIFICATION) == 2 && msr_read(MSR_CSTAR) == 0x4000,
                "an entry's MSR that can't be loaded");
}

// --- interrupts ---

L2(l2_loop, "1: pause; jmp 1b");
L2(l2_count, "1: dec %rcx; jnz 1b; vmcall");
L2(l2_sti, "sti; l2_after_sti: nop; l2_after_nop: nop; vmcall");
L2(l2_halt, "sti; hlt; l2_after_halt: jmp .");
extern char l2_after_sti[], l2_after_nop[], l2_after_halt[];

static void init_interruptible(const void *code, u32 pin)
{
    init(code);
    set_pin(pin);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
}

static void test_interrupts(void)
{
    init_interruptible(l2_loop, PIN_EXTERNAL_INTERRUPT);
    start_timer(100000);
    report_exit(run() == REASON_EXTERNAL_INTERRUPT &&
                    !(vmread(EXIT_INTERRUPTION_INFO) & INFO_VALID) && timer_count == 0 &&
                    vmread(GUEST_RIP) - (u64)l2_loop < 4,
                "the timer while L2 runs");
    sti();
    cli();
    report(timer_count == 1, "L1 takes the interrupt");

    init_interruptible(l2_loop, PIN_EXTERNAL_INTERRUPT);
    set_exit(EXIT_CTL_HOST_64 | EXIT_CTL_ACK_INTERRUPT);
    start_timer(100000);
    report_exit(run() == REASON_EXTERNAL_INTERRUPT &&
                    vmread(EXIT_INTERRUPTION_INFO) == (INFO_VALID | TIMER_VECTOR),
                "acknowledged by the exit");
    report(apic_read(APIC_ISR + TIMER_VECTOR / 32 * 16) & 1u << TIMER_VECTOR % 32,
           "it is in service");
    sti();
    cli();
    report(timer_count == 0, "and not taken again");
    apic_eoi();

    init_interruptible(l2_cpuid, PIN_EXTERNAL_INTERRUPT);
    self_ipi();
    report_exit(run() == REASON_EXTERNAL_INTERRUPT && at(l2_cpuid),
                "one that waits exits before L2's first instruction");
    sti();
    cli();
    report(ipi_count == 1, "L1 takes it");

    // Bochs leaves it pending if the guest is entered with IF = 0 (MACHINES.md)
    init(l2_count);
    set_pin(PIN_EXTERNAL_INTERRUPT);
    l2_registers[RCX] = 1000000;
    start_timer(1000);
    report_known(MACHINE_BOCHS, run() == REASON_EXTERNAL_INTERRUPT, "it exits whatever L2's IF is");
    sti();
    cli();

    init_interruptible(l2_loop, 0);
    start_timer(100000);
    run();
    report_exit(in_handler(TIMER_VECTOR) && timer_count == 0, "without the control L2 takes it");
    apic_eoi();
}

// An interrupt waits while L1 injects an exception: the exception is delivered, then the interrupt
// exits before its handler starts.
static void test_injection_before_exit(void)
{
    l2_idt[VECTOR_GP * 2] |= 1ull << 40; // a trap gate
    init_interruptible(l2_nops, PIN_EXTERNAL_INTERRUPT);
    vmwrite(ENTRY_INTERRUPTION_INFO,
            INFO_VALID | INFO_ERROR_CODE | TYPE_EXCEPTION << INFO_TYPE_SHIFT | VECTOR_GP);
    vmwrite(ENTRY_EXCEPTION_ERROR_CODE, 0x5678);
    self_ipi();
    report_exit(run() == REASON_EXTERNAL_INTERRUPT && at(l2_handlers + 4 * VECTOR_GP) &&
                    pushed(0) == 0x5678 && pushed(1) == (u64)l2_nops &&
                    !(vmread(IDT_VECTORING_INFO) & INFO_VALID),
                "an injection is done before an interrupt exits");
    sti();
    cli();
    report(ipi_count == 1, "L1 takes it then");
    l2_idt[VECTOR_GP * 2] &= ~(1ull << 40);
}

// L2 halts without an exit; an interrupt for L1 wakes it, behind its HLT.
static void test_halted(void)
{
    init(l2_halt);
    set_pin(PIN_EXTERNAL_INTERRUPT);
    set_primary(0);
    start_timer(5000000);
    report_exit(run() == REASON_EXTERNAL_INTERRUPT && at(l2_after_halt),
                "the timer while L2 halts");
    // Bochs saves the active state
    report_known(MACHINE_BOCHS, vmread(GUEST_ACTIVITY_STATE) == 1, "activity state %llu",
                 LLU(vmread(GUEST_ACTIVITY_STATE)));
    sti();
    cli();
    report(timer_count == 1, "L1 takes it");
}

static void test_window(void)
{
    if (!offers(MSR_VMX_PROCBASED_CTLS, PRIMARY_INTERRUPT_WINDOW))
        return;
    init(l2_sti);
    set_primary(PRIMARY_HLT | PRIMARY_INTERRUPT_WINDOW);
    report_exit(run() == REASON_INTERRUPT_WINDOW && at(l2_after_nop),
                "the interrupt window opens behind STI's shadow");
    init_interruptible(l2_nops, 0);
    set_primary(PRIMARY_HLT | PRIMARY_INTERRUPT_WINDOW);
    report_exit(run() == REASON_INTERRUPT_WINDOW && at(l2_nops), "at once if IF is set");
    init(l2_nops);
    set_primary(PRIMARY_HLT | PRIMARY_INTERRUPT_WINDOW);
    report_exit(run() == REASON_VMCALL, "not if it never opens");
}

L2(l2_self_nmi, "mov %ecx, 0x310(%rdi); mov %ebx, 0x300(%rdi); 1: pause; jmp 1b");

static void init_nmi(u32 pin)
{
    init(l2_self_nmi);
    set_pin(pin);
    l2_registers[RDI] = APIC_BASE;
    l2_registers[RCX] = apic_id() << 24;
    l2_registers[RBX] = ICR_NMI | ICR_ASSERT;
    nmi_count = 0;
}

static void check_nmi_blocked(const char *what)
{
    self_nmi();
    for (unsigned i = 0; i < 100; i++)
        pause();
    report(nmi_count == 0, "%s: NMIs are blocked in L1", what);
    iret();
    for (unsigned i = 0; i < 100; i++)
        pause();
    report(nmi_count == 1, "%s: until IRET", what);
}

static void test_nmi(void)
{
    init_nmi(PIN_NMI);
    run();
    report_exit(excepted(TYPE_NMI, VECTOR_NMI, false) && nmi_count == 0, "an NMI");
    check_nmi_blocked("behind its exit");
    init_nmi(0);
    run();
    // Bochs saves the RIP that the NMI interrupted, if the handler's first instruction exits
    report_known(MACHINE_BOCHS, in_handler(VECTOR_NMI) && nmi_count == 0,
                 "without the control L2 takes it");
    report(vmread(GUEST_INTERRUPTIBILITY) == 8, "interruptibility %#llx",
           LLU(vmread(GUEST_INTERRUPTIBILITY)));
    check_nmi_blocked("L2 is in its handler");
}

// --- the checks of VM entry: each row spoils one field of a good VMCS ---

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

static void prepare(void)
{
    l1_prepare(VMCALL);
    io_bitmaps = pages(2);
    msr_bitmap = pages(1);
}

void guest_main(void)
{
    if (!(cpuid(1, 0).ecx & CPUID_VMX)) {
        report(false, "CPUID has no VMX");
        return;
    }
    prepare();
    test_enable();
    test_capabilities();
    test_instructions();
    test_fields();
    test_round_trip();
    test_state();
    test_paging_modes();
    test_exceptions();
    test_page_fault_filter();
    test_own_exceptions();
    test_injection();
    test_interrupted_delivery();
    test_exits();
    test_instruction_information();
    test_control_registers();
    test_tsc();
    test_io();
    test_msrs();
    test_msr_areas();
    test_interrupts();
    test_injection_before_exit();
    test_halted();
    test_window();
    test_nmi();
    test_entry_checks();
    test_ept();
    vmclear(vmcs_region);
    report(try(try_vmxoff, NULL) == NO_TRAP && try(try_vmread, (void *)GUEST_RIP) == VECTOR_UD,
           "VMXOFF: VMREAD raises #UD again");
}
