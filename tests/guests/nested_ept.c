// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small hypervisor with EPT (SDM vol. 3 "The Extended Page Table Mechanism (EPT)"): an L2 that
// touches what its tables map, forbid, misconfigure or lack, in pages of each size, L1's devices,
// and its own paging structures; accessed and dirty flags; INVEPT; more tables and more roots than
// any cache may hold. EPT maps the first 4 GiB to themselves, but for a window.

#include "vmx.h"

#define WINDOW   0x50000000ull // 2 MiB of guest-physical addresses, with entries of their own
#define LARGE    0x60000000ull
#define HUGE     0x80000000ull
#define NOWHERE  0xa0000000ull // no RAM, no device
#define IOAPIC   0xfec00000ull
#define EPT_LEAF BIT(7)
#define EPT_A    BIT(8)
#define EPT_D    BIT(9)
#define QUAL     0x1bfull // what all CPUs report alike: access, rights, linear address

static u64 *ept_root, *ept_pdpt, *ept_directories, *window; // tables of EPT
static u64 *data;                                           // L1's page behind the window
static u64 caps;

L2(l2_get, "mov (%rdi), %rax; l2_got: vmcall");
L2(l2_put, "mov %rax, (%rdi); l2_was_put: vmcall");
L2(l2_fxsave, "fxsave (%rdi); vmcall");
L2(l2_int, "int $0x44; vmcall");
L2(l2_get32, "mov (%rdi), %eax; vmcall");
L2(l2_put32, "mov %eax, (%rdi); vmcall");
L2(l2_go, "call *%rdi; l2_returned: vmcall");
L2(l2_copy, "movsl; l2_copied: vmcall");
L2(l2_walk, "1: add (%rdi), %rax; add %rdx, %rdi; loop 1b; vmcall");
// Port E4h of the test device drops all that is known of guest-physical addresses.
L2(l2_drop, "mov (%rdi), %rax; mov $0xe4, %edx; out %eax, %dx; mov (%rdi), %rbx; vmcall");
extern char l2_got[], l2_was_put[], l2_returned[], l2_copied[];

static void make_tables(void)
{
    ept_root = identity_tables(EPT_RWX, EPT_WB | EPT_RWX);
    ept_pdpt = ept_root + PDPT;
    ept_directories = ept_root + DIRECTORIES;
    window = pages(1);
    data = pages(1);
    ept_directories[WINDOW / SIZE_2M] = (u64)window | EPT_RWX;
    data[0] = 0x1122334455667788;
    ((u8 *)data)[64] = 0xc3; // RET
}

static void start(const void *code, u64 rdi, u64 rax)
{
    init(code);
    use_ept(eptp_of(ept_root, false));
    l2_registers[RDI] = rdi;
    l2_registers[RAX] = rax;
}

static bool violated(u64 qualification, u64 gpa, const void *rip)
{
    return vmread(EXIT_REASON) == REASON_EPT_VIOLATION &&
           (vmread(EXIT_QUALIFICATION) & QUAL) == qualification &&
           vmread(GUEST_PHYSICAL_ADDRESS) == gpa && at(rip);
}

// --- rights ---

static const struct {
    const char *name;
    char *code, *after;
    u64 bit;
} accesses[] = {
    {"read", l2_get, l2_got, EPT_R},
    {"write", l2_put, l2_was_put, EPT_W},
    {"fetch", l2_go, l2_returned, EPT_X},
};

static u64 address_of(unsigned access) // what the access is for, in the window
{
    return WINDOW + (accesses[access].bit == EPT_X ? 64 : 0);
}

static void check_access(unsigned access, u64 rights, const char *what)
{
    u64 gpa = address_of(access);

    start(accesses[access].code, gpa, data[0]);
    invept(1, eptp_of(ept_root, false));
    run();
    if (rights & accesses[access].bit)
        report_exit(vmread(EXIT_REASON) == REASON_VMCALL && at(accesses[access].after), what);
    else
        report_exit(violated(accesses[access].bit | rights << 3 | 0x180, gpa,
                             accesses[access].bit == EPT_X ? (char *)gpa : accesses[access].code) &&
                        vmread(GUEST_LINEAR_ADDRESS) == gpa,
                    what);
}

static void test_rights(void)
{
    static const u64 rights[] = {0, 1, 3, 4, 5, 7};

    for (unsigned i = 0; i < ARRAY_SIZE(rights); i++)
        for (unsigned access = 0; access < 3; access++) {
            if (rights[i] == EPT_X && !(caps & EPT_CAP_EXECUTE_ONLY))
                continue;
            window[0] = (u64)data | EPT_WB | rights[i];
            check_access(access, rights[i], accesses[access].name);
        }
    window[0] = (u64)data | EPT_WB | EPT_RWX;
}

// The rights of all levels count together.
static void test_upper_levels(void)
{
    u64 *entry = &ept_directories[WINDOW / SIZE_2M], *pdpte = &ept_pdpt[WINDOW / SIZE_1G];

    *entry &= ~EPT_W;
    check_access(1, EPT_R | EPT_X, "write below a read-only directory entry");
    check_access(0, EPT_R | EPT_X, "read below it");
    window[0] &= ~EPT_X;
    check_access(1, EPT_R, "write, a page without execute besides");
    window[0] |= EPT_X;
    *entry = 0;
    check_access(0, 0, "no directory entry");
    *entry = (u64)window | EPT_RWX;
    *pdpte &= ~EPT_X;
    check_access(2, EPT_R | EPT_W, "fetch below a PDPTE without execute");
    *pdpte |= EPT_X;
    check_access(2, EPT_RWX, "and with it");
}

// What was missing is there after the exit: no INVEPT is needed.
static void test_mends(void)
{
    window[1] = 0;
    start(l2_put, WINDOW + PAGE_SIZE + 8, 0xfeedface);
    invept(1, eptp_of(ept_root, false));
    report_exit(run() == REASON_EPT_VIOLATION, "a page that is missing");
    window[1] = (u64)data | EPT_WB | EPT_R;
    report_exit(run() == REASON_EPT_VIOLATION &&
                    (vmread(EXIT_QUALIFICATION) & QUAL) == (EPT_W | EPT_R << 3 | 0x180),
                "is there, read-only");
    window[1] |= EPT_W;
    report_exit(run() == REASON_VMCALL && data[1] == 0xfeedface, "is writable");
}

static void test_sizes(void)
{
    ept_directories[LARGE / SIZE_2M] = ALIGN_DOWN((u64)data, SIZE_2M) | EPT_LEAF | EPT_WB | EPT_RWX;
    start(l2_put, LARGE + ((u64)data + 16) % SIZE_2M, 0xabcdef);
    invept(2, 0);
    report_exit(run() == REASON_VMCALL && data[2] == 0xabcdef, "a page of 2 MiB");
    if (!(caps & EPT_CAP_1G)) {
        report_skip("no pages of 1 GiB");
        return;
    }
    ept_pdpt[HUGE / SIZE_1G] = 0 | EPT_LEAF | EPT_WB | EPT_RWX;
    start(l2_put, HUGE + (u64)data + 24, 0xabcdee);
    invept(2, 0);
    report_exit(run() == REASON_VMCALL && data[3] == 0xabcdee, "a page of 1 GiB");
    ept_pdpt[HUGE / SIZE_1G] = (u64)(ept_directories + 512 * (HUGE / SIZE_1G)) | EPT_RWX;
    invept(2, 0);
}

// --- misconfigurations ---

static void check_misconfigured(u64 *entry, u64 value, const char *what)
{
    u64 before = *entry;

    *entry = value;
    start(l2_get, WINDOW + 8, 0);
    invept(1, eptp_of(ept_root, false));
    run();
    report(vmread(EXIT_REASON) == REASON_EPT_MISCONFIGURATION && at(l2_get) &&
               vmread(GUEST_PHYSICAL_ADDRESS) == WINDOW + 8,
           "%s: reason %#llx, address %#llx", what, LLU(vmread(EXIT_REASON)),
           LLU(vmread(GUEST_PHYSICAL_ADDRESS)));
    *entry = before;
}

static void test_misconfigurations(void)
{
    u64 page = (u64)data | EPT_WB | EPT_RWX, *entry = &ept_directories[WINDOW / SIZE_2M];
    u64 beyond = BIT(cpuid(0x80000008, 0).eax & 0xff);

    check_misconfigured(&window[0], (u64)data | EPT_WB | EPT_W, "writable, not readable");
    check_misconfigured(&window[0], (u64)data | EPT_WB | EPT_W | EPT_X,
                        "writable and executable, not readable");
    check_misconfigured(&window[0], (page & ~(7ull << 3)) | 2 << 3, "memory type 2");
    check_misconfigured(&window[0], (page & ~(7ull << 3)) | 3 << 3, "memory type 3");
    check_misconfigured(&window[0], (page & ~(7ull << 3)) | 7 << 3, "memory type 7");
    check_misconfigured(entry, (u64)window | EPT_RWX | 1 << 3, "bit 3 of a directory entry");
    check_misconfigured(entry, (u64)data | EPT_WB | EPT_LEAF | EPT_RWX,
                        "a large page that is not aligned");
    if (!IS_ALIGNED((u64)data, SIZE_2M))
        check_misconfigured(&ept_pdpt[WINDOW / SIZE_1G], ept_pdpt[WINDOW / SIZE_1G] | BIT(6),
                            "bit 6 of a PDPTE");
    if (beyond < BIT(52))
        check_misconfigured(&window[0], page | beyond, "an address beyond MAXPHYADDR");
    if (!(caps & EPT_CAP_EXECUTE_ONLY))
        check_misconfigured(&window[0], (u64)data | EPT_WB | EPT_X, "execute-only");
    check_access(0, EPT_RWX, "all is well again");
}

// A table where there is no memory reads as all ones.
static void test_no_table(void)
{
    u64 *entry = &ept_directories[WINDOW / SIZE_2M];

    check_misconfigured(entry, NOWHERE | EPT_RWX, "a table that is nowhere");
}

// --- devices ---

static void test_devices(void)
{
    u32 version = *(volatile u32 *)(APIC_BASE + APIC_VERSION);

    if (msr_read(MSR_APIC_BASE) & BIT(10)) {
        report_skip("the LAPIC is in x2APIC mode");
        return;
    }
    start(l2_get32, APIC_BASE + APIC_VERSION, 0);
    report_exit(run() == REASON_VMCALL && (u32)l2_registers[RAX] == version, "L1's LAPIC, read");
    start(l2_put32, IOAPIC, 1);
    report_exit(run() == REASON_VMCALL && *(volatile u32 *)IOAPIC == 1, "L1's IOAPIC, written");
    window[2] = APIC_BASE | EPT_R;
    start(l2_get32, WINDOW + 2 * PAGE_SIZE + APIC_VERSION, 0);
    report_exit(run() == REASON_VMCALL && (u32)l2_registers[RAX] == version,
                "L1's LAPIC at another address");
    start(l2_put32, WINDOW + 2 * PAGE_SIZE + APIC_TPR, 0);
    report_exit(
        run() == REASON_EPT_VIOLATION &&
            violated(EPT_W | EPT_R << 3 | 0x180, WINDOW + 2 * PAGE_SIZE + APIC_TPR, l2_put32),
        "and read-only there");
}

// What is no memory is no place for code, tables and stacks; L2 alone sees what comes of it.
static void test_on_devices(void)
{
    if (bare_machine() != MACHINE_OTHER) {
        report_skip("what a CPU reads there as code differs");
        return;
    }
    start(l2_go, IOAPIC + 0x40, 0);
    run();
    report(in_handler(VECTOR_UD) && pushed(0) == IOAPIC + 0x40, "#UD for code on L1's IOAPIC");
    start(l2_fxsave, IOAPIC, 0);
    run();
    report(in_handler(VECTOR_UD) && pushed(0) == (u64)l2_fxsave,
           "#UD for what can't be done there: reason %#llx", LLU(vmread(EXIT_REASON)));
    start(l2_int, 0, 0);
    vmwrite(GUEST_IDTR_BASE, IOAPIC);
    report_exit(run() == REASON_TRIPLE_FAULT, "shutdown with the IDT there");
    start(l2_int, 0, 0);
    vmwrite(GUEST_RSP, IOAPIC + 0x800);
    report_exit(run() == REASON_TRIPLE_FAULT, "or the stack");
    start(l2_get, (u64)data, 0);
    vmwrite(GUEST_CR3, IOAPIC);
    report_exit(run() == REASON_TRIPLE_FAULT, "or the paging structures");
}

// An instruction that a hypervisor below may have to emulate, because of its source.
static void test_copy_from_device(void)
{
    u32 version = *(volatile u32 *)(APIC_BASE + APIC_VERSION);
    u64 gpa = WINDOW + 3 * PAGE_SIZE + 32;

    window[3] = 0;
    start(l2_copy, gpa, 0);
    l2_registers[RSI] = APIC_BASE + APIC_VERSION;
    invept(1, eptp_of(ept_root, false));
    run();
    report_exit(violated(EPT_W | 0x180, gpa, l2_copy) && vmread(GUEST_LINEAR_ADDRESS) == gpa,
                "a copy from L1's LAPIC to a page that is missing");
    window[3] = (u64)data | EPT_WB | EPT_RWX;
    report_exit(run() == REASON_VMCALL && at(l2_copied) && *(u32 *)(data + 4) == version,
                "and when it is there");
    window[3] &= ~EPT_W;
    start(l2_copy, gpa, 0);
    l2_registers[RSI] = APIC_BASE + APIC_VERSION;
    invept(1, eptp_of(ept_root, false));
    run();
    report_exit(violated(EPT_W | (EPT_R | EPT_X) << 3 | 0x180, gpa, l2_copy),
                "and when it is read-only");
}

// --- L2's paging structures ---

static void with_tables_in_window(const void *code, bool ad)
{
    init(code);
    use_ept(eptp_of(ept_root, ad));
    vmwrite(GUEST_CR3, WINDOW + 4 * PAGE_SIZE);
    l2_registers[RDI] = WINDOW;
    invept(2, 0);
    run();
}

static void test_paging_structures(void)
{
    u64 *tables = pages(1), gpa = WINDOW + 4 * PAGE_SIZE;

    *(volatile u8 *)l2_get; // L1's own walks set A
    memcpy(tables, (void *)read_cr3(), PAGE_SIZE);
    tables[0] |= BIT(5);
    window[4] = (u64)tables | EPT_WB | EPT_RWX;
    with_tables_in_window(l2_get, false);
    report_exit(vmread(EXIT_REASON) == REASON_VMCALL, "an L2 with a PML4 in the window");
    window[4] = 0;
    with_tables_in_window(l2_get, false);
    report_exit(violated(EPT_R | 0x80, gpa, l2_get) && vmread(GUEST_LINEAR_ADDRESS) == (u64)l2_get,
                "its PML4 is missing");
    window[4] = (u64)tables | EPT_WB | EPT_R;
    with_tables_in_window(l2_get, false);
    report_exit(vmread(EXIT_REASON) == REASON_VMCALL, "read-only, all A flags set");
    tables[0] &= ~BIT(5);
    with_tables_in_window(l2_get, false);
    // Bochs writes A and D flags without asking EPT
    report_cpu(MACHINE_BOCHS, violated(EPT_R | EPT_W | EPT_R << 3 | 0x80, gpa, l2_get),
               "read-only, and its A flag is to be set: qualification %#llx",
               LLU(vmread(EXIT_QUALIFICATION)));
    tables[0] |= BIT(5);
    if (!(caps & EPT_CAP_AD))
        return;
    with_tables_in_window(l2_get, true);
    // Bochs reports but a write, where the manual has both
    report_known(MACHINE_BOCHS, violated(EPT_R | EPT_W | EPT_R << 3 | 0x80, gpa, l2_get),
                 "read-only, and EPT has A and D flags: qualification %#llx",
                 LLU(vmread(EXIT_QUALIFICATION)));
    window[4] = 0;
    with_tables_in_window(l2_get, true);
    report_known(MACHINE_BOCHS, violated(EPT_R | EPT_W | 0x80, gpa, l2_get),
                 "missing, with A and D flags: qualification %#llx",
                 LLU(vmread(EXIT_QUALIFICATION)));
    window[4] = (u64)tables | EPT_WB | EPT_RWX;
    with_tables_in_window(l2_get, true);
    report_exit(vmread(EXIT_REASON) == REASON_VMCALL && (window[4] & (EPT_A | EPT_D)) == 0x300,
                "there, and its entry becomes dirty");
}

// --- accessed and dirty ---

static u64 flags_after(const void *code, bool ad)
{
    window[0] &= ~(EPT_A | EPT_D);
    ept_directories[WINDOW / SIZE_2M] &= ~(EPT_A | EPT_D);
    start(code, address_of(0), 0x600d);
    use_ept(eptp_of(ept_root, ad));
    invept(2, 0);
    run();
    return window[0] & (EPT_A | EPT_D);
}

static void test_flags(void)
{
    u64 *entry = &ept_directories[WINDOW / SIZE_2M];

    report(flags_after(l2_put, false) == 0 && !(*entry & EPT_A), "no A and D flags");
    if (!(caps & EPT_CAP_AD)) {
        report_skip("EPT has none");
        return;
    }
    report(flags_after(l2_get, true) == EPT_A && (*entry & (EPT_A | EPT_D)) == EPT_A &&
               (ept_root[0] & EPT_A) && (ept_pdpt[1] & EPT_A),
           "a read sets A: %#llx", LLU(window[0]));
    report(flags_after(l2_put, true) == (EPT_A | EPT_D) && !(*entry & EPT_D),
           "a write sets D: %#llx", LLU(window[0]));
    window[0] &= ~(EPT_A | EPT_D);
    start(l2_get, address_of(0), 0);
    use_ept(eptp_of(ept_root, true));
    invept(2, 0);
    run();
    vmwrite(GUEST_RIP, (u64)l2_put);
    run();
    report((window[0] & (EPT_A | EPT_D)) == (EPT_A | EPT_D), "a write behind a read sets D: %#llx",
           LLU(window[0]));
    window[0] = (window[0] & ~(EPT_A | EPT_D | EPT_W));
    start(l2_put, address_of(0), 0);
    use_ept(eptp_of(ept_root, true));
    invept(2, 0);
    report_exit(run() == REASON_EPT_VIOLATION && !(window[0] & EPT_D), "a refused write sets no D");
    window[0] |= EPT_W;
}

// --- INVEPT and many roots ---

static void test_invept(void)
{
    u64 eptp = eptp_of(ept_root, false), value;

    window[5] = (u64)data | EPT_WB | EPT_RWX;
    data[0] = 1;
    data[512] = 2; // pages() are adjacent
    start(l2_get, WINDOW + 5 * PAGE_SIZE, 0);
    run();
    value = l2_registers[RAX];
    window[5] = (u64)(data + 512) | EPT_WB | EPT_RWX;
    invept(1, eptp);
    vmwrite(GUEST_RIP, (u64)l2_get);
    report_exit(run() == REASON_VMCALL && value == 1 && l2_registers[RAX] == 2,
                "INVEPT, single-context");
    window[5] = (u64)data | EPT_WB | EPT_RWX;
    invept(2, 0);
    vmwrite(GUEST_RIP, (u64)l2_get);
    report_exit(run() == REASON_VMCALL && l2_registers[RAX] == 1, "INVEPT, global");
    window[5] = 0;
    invept(1, eptp);
    vmwrite(GUEST_RIP, (u64)l2_get);
    report_exit(run() == REASON_EPT_VIOLATION, "INVEPT of a page that is gone");
    report(invept(0, eptp) == RFLAGS_ZF && vmread(VM_INSTRUCTION_ERROR) == 28,
           "INVEPT of type 0: error 28");
    report(invept(1, eptp | BIT(7)) == RFLAGS_ZF && vmread(VM_INSTRUCTION_ERROR) == 28,
           "INVEPT of an EPTP that no entry takes: error 28");
}

static void test_dropped_below(void)
{
    if (!has_test_device()) {
        report_skip("no test device");
        return;
    }
    window[5] = (u64)data | EPT_WB | EPT_RWX;
    data[0] = 0xd0d0;
    start(l2_drop, WINDOW + 5 * PAGE_SIZE, 0);
    invept(1, eptp_of(ept_root, false));
    report_exit(run() == REASON_VMCALL && l2_registers[RAX] == 0xd0d0 &&
                    l2_registers[RBX] == 0xd0d0,
                "an L2 goes on when the hypervisor below flushes");
}

enum { ROOTS = 12 };

// Each ept_root maps the same address to another page.
static void test_roots(void)
{
    u64 *tables[ROOTS], bad = 0;

    for (unsigned i = 0; i < ROOTS; i++) {
        u64 *page;

        tables[i] = tables_with_page(ept_root, WINDOW, EPT_RWX, EPT_WB | EPT_RWX, &page);
        *page = 1000 + i;
    }
    start(l2_get, WINDOW, 0);
    for (unsigned n = 0; n < 5 * ROOTS; n++) {
        unsigned i = n % 5 ? n * 7 % ROOTS : n % 3;

        vmwrite(EPT_POINTER, eptp_of(tables[i], false));
        vmwrite(GUEST_RIP, (u64)l2_get);
        if (run() != REASON_VMCALL || l2_registers[RAX] != 1000 + i)
            bad++;
    }
    report(!bad, "%u roots in turn: %llu of %u runs went wrong", ROOTS, LLU(bad), 5 * ROOTS);
}

// A page in each 2 MiB of 1 GiB: one table of L1's serves for all, a shadow needs one for each.
static void test_many_tables(void)
{
    u64 *table = pages(1);

    data[0] = 3;
    for (unsigned i = 0; i < 512; i++) {
        table[i] = (u64)data | EPT_WB | EPT_RWX;
        ept_directories[HUGE / SIZE_2M + i] = (u64)table | EPT_RWX;
    }
    invept(2, 0);
    start(l2_walk, HUGE, 0);
    for (unsigned round = 1; round <= 3; round++) {
        l2_registers[RDX] = SIZE_2M + (round == 3 ? PAGE_SIZE : 0);
        l2_registers[RCX] = 500;
        l2_registers[RDI] = HUGE;
        l2_registers[RAX] = 0;
        vmwrite(GUEST_RIP, (u64)l2_walk);
        run();
        report(vmread(EXIT_REASON) == REASON_VMCALL && l2_registers[RAX] == 1500,
               "500 pages, one in each 2 MiB, round %u: %llu", round, LLU(l2_registers[RAX]));
    }
}

static void test_five_levels(void)
{
    u64 *top = pages(1);

    if (!(caps & EPT_CAP_WALK_5)) {
        report_skip("no 5-level EPT");
        return;
    }
    top[0] = (u64)ept_root | EPT_RWX;
    window[0] = (u64)data | EPT_WB | EPT_RWX;
    data[0] = 0x55;
    start(l2_get, WINDOW, 0);
    use_ept((u64)top | 4 << EPTP_LEVELS_SHIFT | EPTP_TYPE_WB);
    report_exit(run() == REASON_VMCALL && l2_registers[RAX] == 0x55, "an L2 with 5-level EPT");
    top[0] = 0;
    invept(2, 0);
    vmwrite(GUEST_RIP, (u64)l2_get);
    report_exit(run() == REASON_EPT_VIOLATION, "whose PML5 entry is gone");
}

void guest_main(void)
{
    if (!vmx_start() || !offers(MSR_VMX_PROCBASED_CTLS, PRIMARY_SECONDARY) ||
        !offers(MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT)) {
        report(false, "no VMX with EPT");
        return;
    }
    caps = msr_read(MSR_VMX_EPT_VPID_CAP);
    report((caps & (EPT_CAP_WALK_4 | EPT_CAP_WB | EPT_CAP_2M)) ==
               (EPT_CAP_WALK_4 | EPT_CAP_WB | EPT_CAP_2M),
           "IA32_VMX_EPT_VPID_CAP %#llx", LLU(caps));
    make_tables();
    test_rights();
    test_upper_levels();
    test_mends();
    test_sizes();
    test_misconfigurations();
    test_no_table();
    test_devices();
    test_on_devices();
    test_copy_from_device();
    test_paging_structures();
    test_flags();
    test_invept();
    test_dropped_below();
    test_roots();
    test_five_levels();
    test_many_tables();
}
