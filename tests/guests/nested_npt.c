// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small L1 with nested paging (APM vol. 2, 15.25): an L2 that touches what L1's tables map,
// forbid or lack, in pages of each size, L1's devices, and its own paging structures; accessed and
// dirty flags; TLB_CONTROL and ASIDs; more tables and more roots than any cache may hold. The
// tables map the first 4 GiB to themselves, but for a window.

#include "svm.h"

#define WINDOW  0x50000000ull // 2 MiB of guest-physical addresses, with entries of their own
#define LARGE   0x60000000ull
#define HUGE    0x80000000ull
#define NOWHERE 0xa0000000ull // no RAM, no device
#define IOAPIC  0xfec00000ull
#define P       BIT(0)
#define W       BIT(1)
#define U       BIT(2)
#define A       BIT(5)
#define D       BIT(6)
#define LEAF    BIT(7)
#define NX      BIT(63)
#define ALL     (P | W | U)

static u64 *npt, *npt_pdpt, *npt_directories, *window;
static u64 *data; // L1's page behind the window

L2(l2_get, "mov (%rdi), %rax; l2_got: vmmcall");
L2(l2_put, "mov %rax, (%rdi); l2_was_put: vmmcall");
L2(l2_get32, "mov (%rdi), %eax; vmmcall");
L2(l2_put32, "mov %eax, (%rdi); vmmcall");
L2(l2_go, "call *%rdi; l2_returned: vmmcall");
L2(l2_copy, "movsl; l2_copied: vmmcall");
L2(l2_walk, "1: add (%rdi), %rax; add %rdx, %rdi; loop 1b; vmmcall");
L2(l2_unpaged, ".code32; mov (%edi), %eax; vmmcall; .code64");
L2(l2_write_pat, "mov $0x277, %ecx; mov %esi, %edx; wrmsr; vmmcall");
// Port E4h of the test device drops all that is known of guest-physical addresses.
L2(l2_drop, "mov (%rdi), %rax; mov $0xe4, %edx; out %eax, %dx; mov (%rdi), %rbx; vmmcall");
extern char l2_got[], l2_was_put[], l2_returned[], l2_copied[];

static void make_tables(void)
{
    npt = identity_tables(ALL, ALL);
    npt_pdpt = npt + PDPT;
    npt_directories = npt + DIRECTORIES;
    window = pages(1);
    data = pages(2);
    npt_directories[WINDOW / SIZE_2M] = (u64)window | ALL;
    data[0] = 0x1122334455667788;
    ((u8 *)data)[64] = 0xc3; // RET
}

// With an empty TLB.
static void start(const void *code, u64 rdi, u64 rax)
{
    l2_init(code);
    vmcb->np_enable = SVM_NP_ENABLE;
    vmcb->n_cr3 = (u64)npt;
    vmcb->tlb_control = SVM_TLB_FLUSH_ALL;
    vmcb->rax = rax;
    l2_registers[RDI] = rdi;
}

static u64 run_again(const void *code)
{
    vmcb->tlb_control = SVM_TLB_NOTHING;
    vmcb->rip = (u64)code;
    return l2_run();
}

static bool faulted(u64 info, u64 gpa, const void *rip)
{
    return vmcb->exitcode == VMEXIT_NPF && vmcb->exitinfo1 == info && vmcb->exitinfo2 == gpa &&
           l2_at(rip);
}

// --- rights ---

static const struct {
    const char *name;
    char *code, *after;
    u64 bits; // of the error code
} accesses[] = {
    {"read", l2_get, l2_got, 0},
    {"write", l2_put, l2_was_put, PF_W},
    {"fetch", l2_go, l2_returned, PF_I},
};

static u64 address_of(unsigned access)
{
    return WINDOW + (accesses[access].bits == PF_I ? 64 : 0);
}

static bool nx_on(void)
{
    return msr_read(MSR_EFER) & EFER_NX;
}

static u64 error_of(unsigned access, bool present)
{
    u64 bits = accesses[access].bits;

    return SVM_NPF_FINAL | PF_U | (bits & PF_I && !nx_on() ? 0 : bits) | (present ? PF_P : 0);
}

static void check_access(unsigned access, bool allowed, bool present, const char *what)
{
    u64 gpa = address_of(access);

    start(accesses[access].code, gpa, data[0]);
    l2_run();
    if (allowed)
        report_vmexit(vmcb->exitcode == VMEXIT_VMMCALL && l2_at(accesses[access].after), what);
    else
        report_vmexit(faulted(error_of(access, present), gpa,
                              accesses[access].bits == PF_I ? (char *)gpa : accesses[access].code),
                      what);
}

static void test_rights(void)
{
    u64 *entry = &npt_directories[WINDOW / SIZE_2M];

    for (unsigned access = 0; access < 3; access++) {
        bool write = accesses[access].bits == PF_W, fetch = accesses[access].bits == PF_I;

        window[0] = 0;
        check_access(access, false, false, accesses[access].name);
        window[0] = (u64)data | P | W;
        check_access(access, false, true, "supervisor only");
        window[0] = (u64)data | P | U;
        check_access(access, !write, true, "read-only");
        window[0] = (u64)data | ALL;
        check_access(access, true, true, "all");
        *entry &= ~W;
        check_access(access, !write, true, "below a read-only directory entry");
        *entry = 0;
        check_access(access, false, false, "no directory entry");
        *entry = (u64)window | ALL;
        if (!nx_on())
            continue;
        window[0] = (u64)data | ALL | NX;
        check_access(access, !fetch, true, "no execute");
        window[0] = (u64)data | ALL;
        npt_pdpt[1] |= NX;
        check_access(access, !fetch, true, "below a PDPTE with no execute");
        npt_pdpt[1] &= ~NX;
    }
}

// What was missing is there after the exit: no flush is needed.
static void test_mends(void)
{
    window[1] = 0;
    start(l2_put, WINDOW + PAGE_SIZE + 8, 0xfeedface);
    report_vmexit(l2_run() == VMEXIT_NPF, "a page that is missing");
    window[1] = (u64)data | P | U;
    report_vmexit(run_again(l2_put) == VMEXIT_NPF &&
                      vmcb->exitinfo1 == (SVM_NPF_FINAL | PF_U | PF_W | PF_P),
                  "is there, read-only");
    window[1] |= W;
    report_vmexit(run_again(l2_put) == VMEXIT_VMMCALL && data[1] == 0xfeedface, "is writable");
}

static void test_sizes(void)
{
    npt_directories[LARGE / SIZE_2M] = ALIGN_DOWN((u64)data, SIZE_2M) | LEAF | ALL;
    start(l2_put, LARGE + ((u64)data + 16) % SIZE_2M, 0xabcdef);
    report_vmexit(l2_run() == VMEXIT_VMMCALL && data[2] == 0xabcdef, "a page of 2 MiB");
    if (!(cpuid(0x80000001, 0).edx & BIT(26))) {
        report_skip("no pages of 1 GiB");
        return;
    }
    npt_pdpt[HUGE / SIZE_1G] = 0 | LEAF | ALL;
    start(l2_put, HUGE + (u64)data + 24, 0xabcdee);
    report_vmexit(l2_run() == VMEXIT_VMMCALL && data[3] == 0xabcdee, "a page of 1 GiB");
    npt_pdpt[HUGE / SIZE_1G] = (u64)(npt_directories + 512 * (HUGE / SIZE_1G)) | ALL;
}

// --- reserved bits ---

static void check_reserved(u64 *entry, u64 value, const char *what)
{
    u64 before = *entry;

    *entry = value;
    start(l2_get, WINDOW + 8, 0);
    l2_run();
    // QEMU leaves P out, and reads zeros where nothing is
    report_known(MACHINE_QEMU, faulted(SVM_NPF_FINAL | PF_U | PF_P | PF_RSVD, WINDOW + 8, l2_get),
                 "%s: EXITCODE %#llx, EXITINFO1 %#llx", what, LLU(vmcb->exitcode),
                 LLU(vmcb->exitinfo1));
    *entry = before;
}

static void test_reserved(void)
{
    u64 beyond = BIT(cpuid(0x80000008, 0).eax & 0xff), page = (u64)data | ALL;
    u64 *entry = &npt_directories[WINDOW / SIZE_2M];

    if (beyond < BIT(52))
        check_reserved(&window[0], page | beyond, "an address beyond MAXPHYADDR");
    check_reserved(entry, (u64)data | LEAF | ALL | BIT(13), "a large page that is not aligned");
    check_reserved(entry, NOWHERE | ALL, "a table that is nowhere");
    check_access(0, true, true, "all is well again");
}

// --- devices ---

static void test_devices(void)
{
    u32 version = *(volatile u32 *)(APIC_BASE + APIC_VERSION);

    start(l2_get32, APIC_BASE + APIC_VERSION, 0);
    report_vmexit(l2_run() == VMEXIT_VMMCALL && (u32)vmcb->rax == version, "L1's LAPIC, read");
    start(l2_put32, IOAPIC, 1);
    report_vmexit(l2_run() == VMEXIT_VMMCALL && *(volatile u32 *)IOAPIC == 1,
                  "L1's IOAPIC, written");
    window[2] = APIC_BASE | P | U;
    start(l2_get32, WINDOW + 2 * PAGE_SIZE + APIC_VERSION, 0);
    report_vmexit(l2_run() == VMEXIT_VMMCALL && (u32)vmcb->rax == version,
                  "L1's LAPIC at another address");
    start(l2_put32, WINDOW + 2 * PAGE_SIZE + APIC_TPR, 0);
    l2_run();
    report_vmexit(
        faulted(SVM_NPF_FINAL | PF_U | PF_W | PF_P, WINDOW + 2 * PAGE_SIZE + APIC_TPR, l2_put32),
        "and read-only there");
}

// An instruction that a hypervisor below may have to emulate, because of its source.
static void test_copy_from_device(void)
{
    u32 version = *(volatile u32 *)(APIC_BASE + APIC_VERSION);
    u64 gpa = WINDOW + 3 * PAGE_SIZE + 32;

    window[3] = 0;
    start(l2_copy, gpa, 0);
    l2_registers[RSI] = APIC_BASE + APIC_VERSION;
    l2_run();
    report_vmexit(faulted(SVM_NPF_FINAL | PF_U | PF_W, gpa, l2_copy),
                  "a copy from L1's LAPIC to a page that is missing");
    window[3] = (u64)data | ALL;
    report_vmexit(run_again(l2_copy) == VMEXIT_VMMCALL && l2_at(l2_copied) &&
                      *(u32 *)(data + 4) == version,
                  "and when it is there");
    window[3] &= ~W;
    start(l2_copy, gpa, 0);
    l2_registers[RSI] = APIC_BASE + APIC_VERSION;
    l2_run();
    report_vmexit(faulted(SVM_NPF_FINAL | PF_U | PF_W | PF_P, gpa, l2_copy),
                  "and when it is read-only");
}

// --- L2's paging structures ---

static void with_tables_in_window(const void *code)
{
    start(code, WINDOW, 0);
    vmcb->cr3 = WINDOW + 4 * PAGE_SIZE;
    l2_run();
}

// Each access to them is a write (15.25.6).
static void test_paging_structures(void)
{
    u64 *tables = pages(1), gpa = WINDOW + 4 * PAGE_SIZE;

    memcpy(tables, (void *)read_cr3(), PAGE_SIZE);
    window[4] = (u64)tables | ALL;
    with_tables_in_window(l2_get);
    report_vmexit(vmcb->exitcode == VMEXIT_VMMCALL && (window[4] & (A | D)) == (A | D),
                  "an L2 with a PML4 in the window, which becomes dirty");
    window[4] = 0;
    with_tables_in_window(l2_get);
    report_vmexit(faulted(SVM_NPF_TABLE | PF_U | PF_W, gpa, l2_get), "its PML4 is missing");
    window[4] = (u64)tables | P | U;
    with_tables_in_window(l2_get);
    report_vmexit(faulted(SVM_NPF_TABLE | PF_U | PF_W | PF_P, gpa, l2_get), "it is read-only");
    window[4] = 0;
}

// An L2 without paging, and one with PAE, whose pointers are read through L1's tables.
static void test_modes(void)
{
    u64 *pdpt = pages(1);

    for (unsigned i = 0; i < 4; i++)
        pdpt[i] = (u64)&directories[512 * i] | P;
    window[5] = (u64)pdpt | ALL;
    data[0] = 0x77;
    start(l2_unpaged, WINDOW, 0);
    vmcb->cr0 &= ~CR0_PG;
    vmcb->efer &= ~(EFER_LME | EFER_LMA);
    set_segment(&vmcb->cs, CODE32, 0xc9b);
    report_vmexit(l2_run() == VMEXIT_VMMCALL && (u32)vmcb->rax == 0x77, "an L2 without paging");
    start(l2_unpaged, WINDOW, 0);
    vmcb->cr3 = WINDOW + 5 * PAGE_SIZE;
    vmcb->efer &= ~(EFER_LME | EFER_LMA);
    set_segment(&vmcb->cs, CODE32, 0xc9b);
    report_vmexit(l2_run() == VMEXIT_VMMCALL && (u32)vmcb->rax == 0x77, "an L2 with PAE");
    start(l2_unpaged, WINDOW, 0);
    vmcb->cr3 = WINDOW + 6 * PAGE_SIZE;
    vmcb->efer &= ~(EFER_LME | EFER_LMA);
    set_segment(&vmcb->cs, CODE32, 0xc9b);
    l2_run();
    report_vmexit(vmcb->exitcode == VMEXIT_NPF && vmcb->exitinfo2 == WINDOW + 6 * PAGE_SIZE,
                  "and its pointers are missing");
}

// L2 has a PAT of its own (15.25.8).
static void test_pat(void)
{
    u64 pat = msr_read(MSR_PAT);

    start(l2_write_pat, 0, 0x00070106);
    l2_registers[RSI] = 0x00070406;
    l2_run();
    // QEMU knows no G_PAT
    report_known(MACHINE_QEMU, vmcb->exitcode == VMEXIT_VMMCALL && msr_read(MSR_PAT) == pat,
                 "L2's write to PAT leaves L1's alone: %#llx", LLU(msr_read(MSR_PAT)));
    report_known(MACHINE_QEMU, vmcb->g_pat == 0x0007040600070106, "and is in G_PAT: %#llx",
                 LLU(vmcb->g_pat));
    msr_write(MSR_PAT, pat);
}

// --- accessed and dirty ---

static u64 flags_after(const void *code)
{
    window[0] = (u64)data | ALL;
    npt_directories[WINDOW / SIZE_2M] &= ~(A | D);
    start(code, address_of(0), 0x600d);
    l2_run();
    return window[0] & (A | D);
}

static void test_flags(void)
{
    u64 *entry = &npt_directories[WINDOW / SIZE_2M];

    report(flags_after(l2_get) == A && (*entry & (A | D)) == A, "a read sets A: %#llx",
           LLU(window[0]));
    report(flags_after(l2_put) == (A | D) && !(*entry & D), "a write sets D: %#llx",
           LLU(window[0]));
    flags_after(l2_get);
    run_again(l2_put);
    report((window[0] & (A | D)) == (A | D), "a write behind a read sets D: %#llx", LLU(window[0]));
    window[0] = (u64)data | P | U;
    start(l2_put, address_of(0), 0);
    report_vmexit(l2_run() == VMEXIT_NPF && !(window[0] & D), "a refused write sets no D");
    window[0] = (u64)data | ALL;
}

// --- the TLB ---

static void check_flush(u32 control, u32 asid, const char *what)
{
    u64 first;

    data[0] = 1;
    data[512] = 2;
    window[6] = (u64)data | ALL;
    start(l2_get, WINDOW + 6 * PAGE_SIZE, 0);
    vmcb->guest_asid = 2;
    l2_run();
    first = vmcb->rax;
    window[6] = (u64)(data + 512) | ALL;
    vmcb->tlb_control = control;
    vmcb->guest_asid = asid;
    vmcb->rip = (u64)l2_get;
    report_vmexit(l2_run() == VMEXIT_VMMCALL && first == 1 && vmcb->rax == 2, what);
}

static void test_flushes(void)
{
    bool by_asid = cpuid(0x8000000a, 0).edx & BIT(6);

    check_flush(SVM_TLB_FLUSH_ALL, 2, "TLB_CONTROL 1");
    if (by_asid) {
        check_flush(SVM_TLB_FLUSH_ASID, 2, "TLB_CONTROL 3");
        check_flush(SVM_TLB_FLUSH_ASID_NON_GLOBAL, 2, "TLB_CONTROL 7");
    } else {
        report_skip("no flush by ASID");
    }
    check_flush(SVM_TLB_NOTHING, 3, "another ASID");
}

static void test_dropped_below(void)
{
    if (!has_test_device()) {
        report_skip("no test device");
        return;
    }
    window[6] = (u64)data | ALL;
    data[0] = 0xd0d0;
    start(l2_drop, WINDOW + 6 * PAGE_SIZE, 0);
    report_vmexit(l2_run() == VMEXIT_VMMCALL && vmcb->rax == 0xd0d0 && l2_registers[RBX] == 0xd0d0,
                  "an L2 goes on when the hypervisor below flushes");
}

enum { ROOTS = 12 };

// Each root maps the same address to another page.
static void test_roots(void)
{
    u64 *tables[ROOTS], bad = 0;

    for (unsigned i = 0; i < ROOTS; i++) {
        u64 *page;

        tables[i] = tables_with_page(npt, WINDOW, ALL, ALL, &page);
        *page = 1000 + i;
    }
    start(l2_get, WINDOW, 0);
    for (unsigned n = 0; n < 5 * ROOTS; n++) {
        unsigned i = n % 5 ? n * 7 % ROOTS : n % 3;

        vmcb->n_cr3 = (u64)tables[i];
        vmcb->guest_asid = 1 + i;
        if (run_again(l2_get) != VMEXIT_VMMCALL || vmcb->rax != 1000 + i)
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
        table[i] = (u64)data | ALL;
        npt_directories[HUGE / SIZE_2M + i] = (u64)table | ALL;
    }
    start(l2_walk, HUGE, 0);
    for (unsigned round = 1; round <= 3; round++) {
        l2_registers[RDX] = SIZE_2M + (round == 3 ? PAGE_SIZE : 0);
        l2_registers[RCX] = 500;
        l2_registers[RDI] = HUGE;
        vmcb->rax = 0;
        vmcb->rip = (u64)l2_walk;
        l2_run();
        report(vmcb->exitcode == VMEXIT_VMMCALL && vmcb->rax == 1500,
               "500 pages, one in each 2 MiB, round %u: %llu", round, LLU(vmcb->rax));
        vmcb->tlb_control = SVM_TLB_NOTHING;
    }
}

void guest_main(void)
{
    if (!svm_start() || !(cpuid(0x8000000a, 0).edx & BIT(0))) {
        report(false, "no SVM with nested paging");
        return;
    }
    make_tables();
    test_rights();
    test_mends();
    test_sizes();
    test_reserved();
    test_devices();
    test_copy_from_device();
    test_paging_structures();
    test_modes();
    test_pat();
    test_flags();
    test_flushes();
    test_dropped_below();
    test_roots();
    test_many_tables();
}
