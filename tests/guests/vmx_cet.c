// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// CET, IA32_PKRS and user waits of a small hypervisor and its L2: the VMCS's fields and when an
// entry and an exit load and save them, their checks, #CP, shadow stacks and branch tracking of an
// L2 (SDM vol. 3 "VM Entries", "VM Exits"; vol. 1 "Control-Flow Enforcement Technology").

#include "vmx.h"

enum { EAX, EBX, ECX, EDX };
#define SH_STK_EN BIT(0)
#define WR_SHSTK  BIT(1)
#define ENDBR_EN  BIT(2)
#define SUPPRESS  BIT(10)
#define TRACKER   BIT(11)
#define AWAY      0x200000000000ull // nothing is mapped there

// Beyond the machine's RAM in linear addresses: shadow stacks, at 34 MiB.
#define SHADOW_PAGE 0x40400000ull
#define SHADOW_RAM  0x2200000ull
#define SHADOW_TOP  (SHADOW_PAGE + 4096)
#define SHADOW_WORD ((volatile u64 *)(SHADOW_RAM + 4096))

#define RDMSR(msr, to) "mov $" #msr ", %ecx; rdmsr; mov %eax, " #to ";"
#define RDSSPQ_RBX     ".byte 0xf3, 0x48, 0x0f, 0x1e, 0xcb;"

L2(l2_vmcall, "endbr64; vmcall");
L2(l2_read_cet, RDMSR(0x6a2, % ebx) RDMSR(0x6a8, % esi) "vmcall");
L2(l2_write_cet,
   "xor %edx, %edx; mov $0x6a2, %ecx; mov $0x10, %eax; wrmsr; mov $0x6a8, %ecx; mov $0x3000, %eax;"
   "wrmsr; vmcall");
L2(l2_call, "call 1f; l2_called: " RDSSPQ_RBX "vmcall; 1: vmcall; ret");
L2(l2_bad_return, "call 1f; 1: l2_return: ret");
L2(l2_jump, "jmp *%rax");
L2(l2_rdpkrs, RDMSR(0x6e1, % ebx) "vmcall");
L2(l2_load, "mov (%rdi), %eax; vmcall");
L2(l2_tpause, ".byte 0x66, 0x0f, 0xae, 0xf3; vmcall");   // TPAUSE EBX
L2(l2_umwait, ".byte 0xf2, 0x0f, 0xae, 0xf3; vmcall");   // UMWAIT EBX
L2(l2_umonitor, ".byte 0xf3, 0x0f, 0xae, 0xf7; vmcall"); // UMONITOR RDI
extern char l2_called[], l2_return[];

static void *msr_bitmap;

static bool has(unsigned reg, unsigned bit)
{
    struct cpuid_regs r = cpuid(7, 0);
    const u32 regs[4] = {r.eax, r.ebx, r.ecx, r.edx};

    return regs[reg] >> bit & 1;
}

static bool missing(u64 field)
{
    return vmwrite(field, 0) && vmread(VM_INSTRUCTION_ERROR) == 12;
}

static void map_shadow_stacks(void)
{
    u64 *pdpt = (u64 *)(pml4[0] & ~0xfffull);

    // Bochs takes PKRU's rights, not PKRS's, if only the last entry makes it a supervisor-mode
    // page.
    pdpt[SHADOW_PAGE >> 30] &= ~BIT(2);
    directories[SHADOW_PAGE >> 21] = SHADOW_RAM | BIT(0) | BIT(5) | BIT(6) | BIT(7); // P A D PS
    write_cr3((u64)pml4);
}

// --- what there is ---

// Controls that the CPU lacks are refused, and their fields are not there.
static void test_absent(u32 entry, u32 exit, u64 guest_field, u64 host_field, const char *what)
{
    u64 result;

    init(l2_vmcall);
    report(missing(guest_field) && missing(host_field), "no %s: no fields", what);
    vmwrite(ENTRY_CONTROLS, vmread(ENTRY_CONTROLS) | entry);
    result = run();
    report((result & FAILED) && vmread(VM_INSTRUCTION_ERROR) == 7,
           "no %s: the entry control is refused", what);
    init(l2_vmcall);
    vmwrite(EXIT_CONTROLS, vmread(EXIT_CONTROLS) | exit);
    result = run();
    report((result & FAILED) && vmread(VM_INSTRUCTION_ERROR) == 7,
           "no %s: the exit control is refused", what);
}

static void test_perf_global(void)
{
    if (!offers(MSR_VMX_ENTRY_CTLS, ENTRY_CTL_LOAD_PERF_GLOBAL))
        test_absent(ENTRY_CTL_LOAD_PERF_GLOBAL, EXIT_CTL_LOAD_PERF_GLOBAL, GUEST_PERF_GLOBAL_CTRL,
                    HOST_PERF_GLOBAL_CTRL, "performance counters");
}

static bool has_cet(void)
{
    bool entry = offers(MSR_VMX_ENTRY_CTLS, ENTRY_CTL_LOAD_CET);
    bool exit = offers(MSR_VMX_EXIT_CTLS, EXIT_CTL_LOAD_CET);
    bool cet = has(ECX, 7) || has(EDX, 20);

    report(entry == cet && exit == cet, "\"load CET state\" is there with CET");
    report(!!(msr_read(MSR_VMX_CR4_FIXED1) & CR4_CET) == cet, "so is CR4.CET in CR4_FIXED1");
    if (!cet)
        test_absent(ENTRY_CTL_LOAD_CET, EXIT_CTL_LOAD_CET, GUEST_S_CET, HOST_S_CET, "CET");
    return entry && exit && cet;
}

// --- loading and saving ---

static void init_cet(const void *code, u32 entry, u32 exit)
{
    init(code);
    vmwrite(ENTRY_CONTROLS, vmread(ENTRY_CONTROLS) | entry);
    vmwrite(EXIT_CONTROLS, vmread(EXIT_CONTROLS) | exit);
    set_primary(PRIMARY_HLT | PRIMARY_MSR_BITMAPS);
    vmwrite(MSR_BITMAP, (u64)msr_bitmap);
    vmwrite(GUEST_S_CET, WR_SHSTK);
    vmwrite(GUEST_SSP, 0x1008);
    vmwrite(GUEST_INTERRUPT_SSP_TABLE, 0x2000);
    vmwrite(HOST_S_CET, BIT(5));
    vmwrite(HOST_SSP, 0x4008);
    vmwrite(HOST_INTERRUPT_SSP_TABLE, 0x5000);
    msr_write(MSR_S_CET, BIT(3) | WR_SHSTK);
    msr_write(MSR_INTERRUPT_SSP_TABLE, 0x6000);
}

static bool mine(u64 s_cet, u64 table)
{
    u64 is_cet = msr_read(MSR_S_CET), is_table = msr_read(MSR_INTERRUPT_SSP_TABLE);

    msr_write(MSR_S_CET, 0);
    msr_write(MSR_INTERRUPT_SSP_TABLE, 0);
    return is_cet == s_cet && is_table == table;
}

static bool saved(u64 s_cet, u64 table)
{
    return vmread(GUEST_S_CET) == s_cet && vmread(GUEST_INTERRUPT_SSP_TABLE) == table;
}

static void test_loads(void)
{
    bool own;

    init_cet(l2_read_cet, ENTRY_CTL_LOAD_CET, EXIT_CTL_LOAD_CET);
    report_exit(run() == REASON_VMCALL, "both controls");
    own = mine(BIT(5), 0x5000);
    report(l2_registers[RBX] == WR_SHSTK && l2_registers[RSI] == 0x2000, "an entry loads the MSRs");
    report(own, "an exit loads the host's");
    report(saved(WR_SHSTK, 0x2000) && vmread(GUEST_SSP) == 0x1008, "it saves L2's, and SSP");

    init_cet(l2_read_cet, 0, EXIT_CTL_LOAD_CET);
    run();
    own = mine(BIT(5), 0x5000);
    report(l2_registers[RBX] == (BIT(3) | WR_SHSTK) && l2_registers[RSI] == 0x6000,
           "an entry without the control leaves the MSRs");
    report(own && saved(BIT(3) | WR_SHSTK, 0x6000), "an exit saves them even so");

    init_cet(l2_write_cet, ENTRY_CTL_LOAD_CET, 0);
    run();
    report(mine(BIT(4), 0x3000), "an exit without the control leaves them as L2's");
    report(saved(BIT(4), 0x3000), "what L2 wrote is saved");

    init_cet(l2_vmcall, ENTRY_CTL_LOAD_CET, EXIT_CTL_LOAD_CET);
    vmwrite(GUEST_RFLAGS, 0);
    report(run() == (EXIT_REASON_ENTRY_FAILURE | REASON_INVALID_GUEST_STATE) &&
               mine(BIT(5), 0x5000),
           "an entry that fails loads the host's");
}

// HOST_RIP of an L1 that has a shadow stack itself: notes SSP and goes on without.
extern char shadowed_exit[];
extern u64 exit_saved[3], exit_ssp, exit_to;
u64 exit_saved[3], exit_ssp, exit_to;
__asm__(
    "shadowed_exit:\n"
    "mov %rax, exit_saved(%rip); mov %rcx, exit_saved + 8(%rip); mov %rdx, exit_saved + 16(%rip)\n"
    "xor %eax, %eax\n"
    ".byte 0xf3, 0x48, 0x0f, 0x1e, 0xc8\n" // RDSSPQ RAX
    "mov %rax, exit_ssp(%rip)\n"
    "mov $0x6a2, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr\n"
    "mov exit_saved(%rip), %rax; mov exit_saved + 8(%rip), %rcx; mov exit_saved + 16(%rip), %rdx\n"
    "jmp *exit_to(%rip)\n");

// --- shadow stacks and branch tracking of L2 ---

static void init_shadow_stack(const void *code, u64 s_cet)
{
    init_cet(code, ENTRY_CTL_LOAD_CET, EXIT_CTL_LOAD_CET);
    msr_write(MSR_S_CET, 0);
    vmwrite(HOST_S_CET, 0);
    vmwrite(GUEST_CR4, vmread(GUEST_CR4) | CR4_CET);
    vmwrite(GUEST_CR0, vmread(GUEST_CR0) | CR0_WP);
    vmwrite(GUEST_S_CET, s_cet);
    vmwrite(GUEST_SSP, SHADOW_TOP);
    SHADOW_WORD[-1] = 0;
}

static void test_shadow_stack(void)
{
    init_shadow_stack(l2_call, SH_STK_EN);
    report_exit(run() == REASON_VMCALL, "a CALL");
    report(vmread(GUEST_SSP) == SHADOW_TOP - 8 && SHADOW_WORD[-1] == (u64)l2_called,
           "it pushes on the shadow stack: SSP %#llx", LLU(vmread(GUEST_SSP)));
    vmwrite(GUEST_RIP, vmread(GUEST_RIP) + 3);
    report_exit(run() == REASON_VMCALL, "its RET");
    report(vmread(GUEST_SSP) == SHADOW_TOP && l2_registers[RBX] == SHADOW_TOP, "which pops it");

    init_shadow_stack(l2_bad_return, SH_STK_EN);
    SHADOW_WORD[-2] = 0x1234;
    vmwrite(GUEST_SSP, SHADOW_TOP - 8); // one behind another
    vmwrite(EXCEPTION_BITMAP, BIT(VECTOR_CP));
    vmwrite(GUEST_RIP, (u64)l2_return);
    ((u64 *)l2_stack)[L2_STACK / 8 - 1] = (u64)l2_vmcall;
    vmwrite(GUEST_RSP, (u64)(l2_stack + L2_STACK - 8));
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_CP, true) && at(l2_return) &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 1,
                "a RET to another address exits by #CP");
    vmwrite(EXCEPTION_BITMAP, 0);
    run();
    report_exit(in_handler(VECTOR_CP) && pushed(0) == 1 && pushed(1) == (u64)l2_return,
                "or #CP is L2's own");

    init_shadow_stack(l2_call, SH_STK_EN);
    vmwrite(HOST_CR4, vmread(HOST_CR4) | CR4_CET);
    vmwrite(HOST_CR0, vmread(HOST_CR0) | CR0_WP);
    vmwrite(HOST_S_CET, SH_STK_EN);
    vmwrite(HOST_SSP, SHADOW_TOP - 0x800);
    exit_to = vmread(HOST_RIP);
    vmwrite(HOST_RIP, (u64)shadowed_exit);
    exit_ssp = 0;
    report_exit(run() == REASON_VMCALL && exit_ssp == SHADOW_TOP - 0x800,
                "an exit to an L1 with a shadow stack");
    write_cr4(read_cr4() & ~CR4_CET);
}

// L2's memory is L1's, but its shadow stack may not be written at first.
static u64 make_ept(u64 **shadow)
{
    u64 *ept = pages(6);

    ept[0] = (u64)(ept + 512) | 7;
    for (unsigned i = 0; i < 4; i++)
        ept[512 + i] = (u64)(ept + 1024 + 512 * i) | 7;
    for (u64 i = 0; i < 2048; i++)
        ept[1024 + i] = i << 21 | 0xb7; // write-back, 2 MiB, RWX
    *shadow = &ept[1024 + (SHADOW_RAM >> 21)];
    **shadow &= ~(u64)2;
    return (u64)ept | 3 << EPTP_LEVELS_SHIFT | EPTP_TYPE_WB;
}

static void test_shadow_stack_ept(void)
{
    u64 *shadow, qualification;

    init_shadow_stack(l2_call, SH_STK_EN);
    if (!use_secondary(0, SECONDARY_EPT))
        return;
    vmwrite(EPT_POINTER, make_ept(&shadow));
    run();
    qualification = vmread(EXIT_QUALIFICATION);
    report_exit(vmread(EXIT_REASON) == REASON_EPT_VIOLATION && at(l2_call) &&
                    (qualification & QUAL_EPT_SHADOW_STACK) && (qualification & 2) &&
                    vmread(GUEST_LINEAR_ADDRESS) == SHADOW_TOP - 8 &&
                    vmread(GUEST_PHYSICAL_ADDRESS) == SHADOW_RAM + 4096 - 8,
                "a CALL whose shadow stack EPT does not let be written");
    report(vmread(GUEST_SSP) == SHADOW_TOP && SHADOW_WORD[-1] == 0, "nothing has been pushed");
    *shadow |= 2;
    report_exit(run() == REASON_VMCALL && SHADOW_WORD[-1] == (u64)l2_called, "it runs again");
}

static void test_branch_tracking(void)
{
    init_shadow_stack(l2_jump, ENDBR_EN);
    vmwrite(EXCEPTION_BITMAP, BIT(VECTOR_PF) | BIT(VECTOR_CP));
    l2_registers[RAX] = AWAY;
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_PF, true) && at((void *)AWAY),
                "a jump to nowhere exits by #PF");
    report(vmread(GUEST_S_CET) == (ENDBR_EN | TRACKER), "the tracker waits: IA32_S_CET %#llx",
           LLU(vmread(GUEST_S_CET)));
    vmwrite(GUEST_RIP, (u64)l2_vmcall + 4); // behind the ENDBR64
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_CP, true) &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == 3,
                "and goes on waiting behind an entry: #CP");
    vmwrite(GUEST_RIP, (u64)l2_vmcall);
    vmwrite(GUEST_S_CET, ENDBR_EN | TRACKER);
    report_exit(run() == REASON_VMCALL && vmread(GUEST_S_CET) == ENDBR_EN, "ENDBR64 ends it");
}

// --- #CP ---

static void test_injection(void)
{
    const u64 cp = INFO_VALID | TYPE_EXCEPTION << INFO_TYPE_SHIFT | VECTOR_CP;

    init(l2_vmcall);
    vmwrite(ENTRY_INTERRUPTION_INFO, cp | INFO_ERROR_CODE);
    vmwrite(ENTRY_EXCEPTION_ERROR_CODE, 2);
    run();
    report_exit(in_handler(VECTOR_CP) && pushed(0) == 2 && pushed(1) == (u64)l2_vmcall,
                "an injected #CP has an error code");
    init(l2_vmcall);
    vmwrite(ENTRY_INTERRUPTION_INFO, cp);
    if (vmx_basic & VMX_BASIC_ANY_ERROR)
        report_exit(run() == REASON_VMCALL && in_handler(VECTOR_CP) && pushed(0) == (u64)l2_vmcall,
                    "or none, as IA32_VMX_BASIC[56] says");
    else
        report((run() & FAILED) && vmread(VM_INSTRUCTION_ERROR) == 7,
               "without one it is refused: error %llu", LLU(vmread(VM_INSTRUCTION_ERROR)));
}

// --- checks ---

enum { PASSES, HOST = 8, GUEST = 33 };
static const struct {
    const char *name;
    u32 expected;
    u32 entry, exit; // controls
    bool compatible; // L2 runs 32-bit code
    u16 field;
    u64 set;
    u16 field2;
    u64 clear2;
} cases[] = {
#define IN   ENTRY_CTL_LOAD_CET, 0, false
#define OUT  0, EXIT_CTL_LOAD_CET, false
#define PIN  ENTRY_CTL_LOAD_PKRS, 0, false
#define POUT 0, EXIT_CTL_LOAD_PKRS, false
    {"host CR4.CET", PASSES, OUT, HOST_CR4, CR4_CET, 0, 0},
    {"host CR4.CET without CR0.WP", HOST, OUT, HOST_CR4, CR4_CET, HOST_CR0, CR0_WP},
    {"host IA32_S_CET, bit 6", HOST, OUT, HOST_S_CET, BIT(6), 0, 0},
    {"host IA32_S_CET, bit 9", HOST, OUT, HOST_S_CET, BIT(9), 0, 0},
    {"host IA32_S_CET, bit 9, not loaded", PASSES, IN, HOST_S_CET, BIT(9), 0, 0},
    {"host IA32_S_CET, SUPPRESS", PASSES, OUT, HOST_S_CET, SUPPRESS, 0, 0},
    {"host IA32_S_CET, SUPPRESS and TRACKER", HOST, OUT, HOST_S_CET, SUPPRESS | TRACKER, 0, 0},
    {"host IA32_S_CET, not canonical", HOST, OUT, HOST_S_CET, BIT(62), 0, 0},
    {"host SSP, bit 0", HOST, OUT, HOST_SSP, BIT(0), 0, 0},
    {"host SSP, bit 1", HOST, OUT, HOST_SSP, BIT(1), 0, 0},
    {"host SSP, not canonical", HOST, OUT, HOST_SSP, BIT(62), 0, 0},
    {"host SSP, not loaded", PASSES, IN, HOST_SSP, BIT(62) | 1, 0, 0},
    {"host IA32_INTERRUPT_SSP_TABLE_ADDR, bit 0", PASSES, OUT, HOST_INTERRUPT_SSP_TABLE, 1, 0, 0},
    {"host IA32_INTERRUPT_SSP_TABLE_ADDR, not canonical", HOST, OUT, HOST_INTERRUPT_SSP_TABLE,
     BIT(62), 0, 0},
    {"guest CR4.CET", PASSES, IN, GUEST_CR4, CR4_CET, 0, 0},
    {"guest CR4.CET without CR0.WP", GUEST, IN, GUEST_CR4, CR4_CET, GUEST_CR0, CR0_WP},
    {"guest IA32_S_CET, bit 6", GUEST, IN, GUEST_S_CET, BIT(6), 0, 0},
    {"guest IA32_S_CET, bit 6, not loaded", PASSES, OUT, GUEST_S_CET, BIT(6), 0, 0},
    {"guest IA32_S_CET, SUPPRESS and TRACKER", GUEST, IN, GUEST_S_CET, SUPPRESS | TRACKER, 0, 0},
    {"guest IA32_S_CET, not canonical", GUEST, IN, GUEST_S_CET, BIT(62), 0, 0},
    {"guest SSP, bit 1", GUEST, IN, GUEST_SSP, BIT(1), 0, 0},
    {"guest SSP, not canonical", GUEST, IN, GUEST_SSP, BIT(62), 0, 0},
    {"guest SSP, not canonical, not loaded", PASSES, OUT, GUEST_SSP, BIT(62), 0, 0},
    {"guest SSP, high", PASSES, IN, GUEST_SSP, BIT(32), 0, 0},
    {"guest SSP, high, compatibility mode", PASSES, ENTRY_CTL_LOAD_CET, 0, true, GUEST_SSP, BIT(32),
     0, 0},
    {"guest IA32_INTERRUPT_SSP_TABLE_ADDR, not canonical", GUEST, IN, GUEST_INTERRUPT_SSP_TABLE,
     BIT(62), 0, 0},
    {"host IA32_PKRS", PASSES, POUT, HOST_PKRS, 0, 0, 0},
    {"host IA32_PKRS, bit 32", HOST, POUT, HOST_PKRS, BIT(32), 0, 0},
    {"host IA32_PKRS, bit 32, not loaded", PASSES, PIN, HOST_PKRS, BIT(32), 0, 0},
    {"guest IA32_PKRS, bit 63", GUEST, PIN, GUEST_PKRS, BIT(63), 0, 0},
    {"guest IA32_PKRS, bit 63, not loaded", PASSES, POUT, GUEST_PKRS, BIT(63), 0, 0},
#undef IN
#undef OUT
#undef PIN
#undef POUT
};

static bool ended(u32 expected, u64 result)
{
    if (expected == PASSES)
        return result == REASON_VMCALL;
    if (expected == HOST)
        return (result & FAILED) && vmread(VM_INSTRUCTION_ERROR) == HOST;
    return result == (EXIT_REASON_ENTRY_FAILURE | REASON_INVALID_GUEST_STATE) &&
           vmread(EXIT_QUALIFICATION) == 0;
}

static void run_case(unsigned i)
{
    u64 result;

    if (!offers(MSR_VMX_ENTRY_CTLS, cases[i].entry | cases[i].exit) && cases[i].entry)
        return;
    if (cases[i].exit && !offers(MSR_VMX_EXIT_CTLS, cases[i].exit))
        return;
    init(l2_vmcall);
    vmwrite(ENTRY_CONTROLS, vmread(ENTRY_CONTROLS) | cases[i].entry);
    vmwrite(EXIT_CONTROLS, vmread(EXIT_CONTROLS) | cases[i].exit);
    for (u64 field = GUEST_S_CET; field <= GUEST_INTERRUPT_SSP_TABLE; field += 2) {
        vmwrite(field, 0);
        vmwrite(field - GUEST_S_CET + HOST_S_CET, 0);
    }
    vmwrite(GUEST_PKRS, 0);
    vmwrite(HOST_PKRS, 0);
    if (cases[i].compatible)
        put_segment(1, CODE32, 0xc09b, ~0u, 0);
    vmwrite(GUEST_CR0, vmread(GUEST_CR0) | CR0_WP);
    vmwrite(HOST_CR0, vmread(HOST_CR0) | CR0_WP);
    vmwrite(cases[i].field, vmread(cases[i].field) | cases[i].set);
    if (cases[i].field2)
        vmwrite(cases[i].field2, vmread(cases[i].field2) & ~cases[i].clear2);
    result = run();
    // Bochs loads the low half of IA32_PKRS without a look at the high one.
    report_known(cases[i].set >> 32 && cases[i].expected != PASSES &&
                         (cases[i].entry | cases[i].exit) &
                             (ENTRY_CTL_LOAD_PKRS | EXIT_CTL_LOAD_PKRS)
                     ? MACHINE_BOCHS
                     : MACHINE_NONE,
                 ended(cases[i].expected, result), "%s: %#llx, error %llu, qualification %llu",
                 cases[i].name, LLU(result), LLU(vmread(VM_INSTRUCTION_ERROR)),
                 LLU(vmread(EXIT_QUALIFICATION)));
    write_cr4(read_cr4() & ~CR4_CET);
}

// --- IA32_PKRS ---

static void init_pkrs(const void *code, u32 entry, u32 exit)
{
    init(code);
    vmwrite(ENTRY_CONTROLS, vmread(ENTRY_CONTROLS) | entry);
    vmwrite(EXIT_CONTROLS, vmread(EXIT_CONTROLS) | exit);
    set_primary(PRIMARY_HLT | PRIMARY_MSR_BITMAPS);
    vmwrite(MSR_BITMAP, (u64)msr_bitmap);
    vmwrite(GUEST_PKRS, 0x40);
    vmwrite(HOST_PKRS, 0x80);
    msr_write(MSR_PKRS, 0xc0);
}

static bool pkrs_is(u64 value)
{
    u64 is = msr_read(MSR_PKRS);

    msr_write(MSR_PKRS, 0);
    return is == value;
}

static void test_pkrs(void)
{
    init_pkrs(l2_rdpkrs, ENTRY_CTL_LOAD_PKRS, EXIT_CTL_LOAD_PKRS);
    report_exit(run() == REASON_VMCALL && l2_registers[RBX] == 0x40, "an entry loads IA32_PKRS");
    report(pkrs_is(0x80), "an exit loads the host's");
    report(vmread(GUEST_PKRS) == 0x40, "it saves L2's");
    init_pkrs(l2_rdpkrs, 0, EXIT_CTL_LOAD_PKRS);
    run();
    report(l2_registers[RBX] == 0xc0 && pkrs_is(0x80) && vmread(GUEST_PKRS) == 0xc0,
           "an entry without the control leaves it, an exit saves it even so");
    init_pkrs(l2_rdpkrs, ENTRY_CTL_LOAD_PKRS, 0);
    run();
    report(pkrs_is(0x40), "an exit without the control leaves it");

    // Key 3 of a supervisor-mode page: what L2 may do is by L2's rights.
    directories[(SHADOW_PAGE >> 21) + 1] =
        SHADOW_RAM | BIT(0) | BIT(5) | BIT(6) | BIT(7) | 3ull << 59;
    write_cr3((u64)pml4);
    init_pkrs(l2_load, ENTRY_CTL_LOAD_PKRS, EXIT_CTL_LOAD_PKRS);
    vmwrite(GUEST_CR4, vmread(GUEST_CR4) | CR4_PKS);
    vmwrite(EXCEPTION_BITMAP, BIT(VECTOR_PF));
    l2_registers[RDI] = SHADOW_PAGE + (2 << 20);
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_PF, true) &&
                    vmread(EXIT_INTERRUPTION_ERROR_CODE) == (BIT(5) | 1),
                "L2's rights refuse its access");
    vmwrite(GUEST_PKRS, 0);
    report_exit(run() == REASON_VMCALL, "or let it pass");
    msr_write(MSR_PKRS, 0);
}

// --- user waits ---

static void test_user_wait(const void *code, u64 reason, const char *name)
{
    init(code);
    set_primary(PRIMARY_HLT | PRIMARY_RDTSC);
    vmwrite(EXCEPTION_BITMAP, BIT(VECTOR_UD));
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_UD, false) && at(code), name);
    init(code);
    l2_registers[RDI] = (u64)l2_stack;
    if (!use_secondary(0, SECONDARY_USER_WAIT_PAUSE))
        return;
    report_exit(run() == REASON_VMCALL, "with \"enable user wait and pause\" it waits, until now");
    if (!reason)
        return;
    init(code);
    use_secondary(PRIMARY_RDTSC, SECONDARY_USER_WAIT_PAUSE);
    run();
    report_exit(vmread(EXIT_REASON) == reason && at(code) && vmread(EXIT_INSTRUCTION_LENGTH) == 4,
                "with \"RDTSC exiting\" it exits");
    report_cpu(MACHINE_BOCHS, (vmread(EXIT_INSTRUCTION_INFO) & BITS(6, 3)) == 3 << 3,
               "its instruction information names EBX: %#llx", LLU(vmread(EXIT_INSTRUCTION_INFO)));
}

void guest_main(void)
{
    bool cet, pks;

    if (!vmx_start()) {
        report_skip("no VMX");
        return;
    }
    msr_bitmap = pages(1);
    map_shadow_stacks();
    test_perf_global();
    cet = has_cet();
    if (cet) {
        test_loads();
        test_shadow_stack();
        test_shadow_stack_ept();
        test_branch_tracking();
        test_injection();
    }
    pks = offers(MSR_VMX_ENTRY_CTLS, ENTRY_CTL_LOAD_PKRS);
    report(pks == has(ECX, 31) && offers(MSR_VMX_EXIT_CTLS, EXIT_CTL_LOAD_PKRS) == pks,
           "\"load PKRS\" is there with PKS");
    if (pks)
        test_pkrs();
    else
        test_absent(ENTRY_CTL_LOAD_PKRS, EXIT_CTL_LOAD_PKRS, GUEST_PKRS, HOST_PKRS, "PKS");
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
        run_case(i);
    if (has(ECX, 5)) {
        test_user_wait(l2_tpause, REASON_TPAUSE, "TPAUSE is #UD");
        test_user_wait(l2_umwait, REASON_UMWAIT, "UMWAIT is #UD");
        test_user_wait(l2_umonitor, 0, "UMONITOR is #UD");
    }
}
