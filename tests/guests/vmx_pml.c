// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Page-modification logging for a small hypervisor (SDM vol. 3 "Page-Modification Logging"): what
// its L2 makes dirty stands in the log, once, from the last entry down; a full log exits before any
// flag is set. EPT maps the first 4 GiB to themselves, but for a window of 4 KiB pages.

#include "vmx.h"

#define WINDOW   0x50000000ull
#define EPT_LEAF BIT(7)
#define EPT_A    BIT(8)
#define EPT_D    BIT(9)

enum { ENTRIES = 512, FULL = 0xffff, WINDOW_PAGES = 8 };

L2(l2_get, "mov (%rdi), %rax; vmcall");
L2(l2_put, "mov %rax, (%rdi); l2_put_done: vmcall");
L2(l2_add, "lock addl $1, (%rdi); vmcall");
// Three pages, one of them twice.
L2(l2_put_more, "mov %rax, 8(%rdi); mov %rax, 0x2ff8(%rdi); mov %rax, 16(%rdi); mov %rax, "
                "0x1000(%rdi); vmcall");
extern char l2_put_done[];

static u64 *root, *ept_directories, *window, *log_page;

static void make_tables(void)
{
    u8 *data = pages(WINDOW_PAGES);

    root = identity_tables(EPT_RWX, EPT_WB | EPT_A | EPT_D | EPT_RWX);
    ept_directories = root + DIRECTORIES;
    window = pages(1);
    log_page = pages(1);
    ept_directories[WINDOW / SIZE_2M] = (u64)window | EPT_RWX;
    for (unsigned i = 0; i < WINDOW_PAGES; i++)
        window[i] = (u64)(data + i * PAGE_SIZE) | EPT_WB | EPT_RWX;
}

// The window is clean again, and what the L2's own tables and stack lie in is dirty already.
static bool prepare(const void *code, u64 at_offset, u64 index, bool ad)
{
    init(code);
    if (!use_secondary(0, SECONDARY_EPT | SECONDARY_PML))
        return false;
    for (unsigned i = 0; i < WINDOW_PAGES; i++)
        window[i] &= ~(EPT_A | EPT_D);
    ept_directories[WINDOW / SIZE_2M] &= ~EPT_A;
    invept(INVEPT_ALL, 0);
    memset(log_page, 0xee, PAGE_SIZE);
    vmwrite(EPT_POINTER, eptp_of(root, ad));
    vmwrite(PML_ADDRESS, (u64)log_page);
    vmwrite(PML_INDEX, index);
    l2_registers[RDI] = WINDOW + at_offset;
    return true;
}

static bool nothing_else(unsigned from, unsigned to)
{
    for (unsigned i = 0; i < ENTRIES; i++)
        if ((i < from || i > to) && log_page[i] != 0xeeeeeeeeeeeeeeeeull)
            return false;
    return true;
}

static void test_log(void)
{
    prepare(l2_get, 0, ENTRIES - 1, true);
    report_exit(run() == REASON_VMCALL && vmread(PML_INDEX) == ENTRIES - 1 && nothing_else(1, 0) &&
                    (window[0] & (EPT_A | EPT_D)) == EPT_A,
                "a read is not logged");
    prepare(l2_put, 0x1abc, ENTRIES - 1, true);
    // Bochs 2.7 logs all bits of the address
    report_known(MACHINE_BOCHS,
                 run() == REASON_VMCALL && vmread(PML_INDEX) == ENTRIES - 2 &&
                     log_page[ENTRIES - 1] == WINDOW + 0x1000 &&
                     nothing_else(ENTRIES - 1, ENTRIES - 1) && (window[1] & EPT_D),
                 "a write is, by its page");
    vmwrite(GUEST_RIP, (u64)l2_put);
    report_exit(run() == REASON_VMCALL && vmread(PML_INDEX) == ENTRIES - 2,
                "a second one to the same page is not");
    // Nothing but combined mappings know the flag, and an entry without VPID drops them.
    window[1] &= ~EPT_D;
    vmwrite(GUEST_RIP, (u64)l2_put);
    report_exit(run() == REASON_VMCALL && vmread(PML_INDEX) == ENTRIES - 3 && (window[1] & EPT_D),
                "it is with its D flag cleared, without INVEPT");
    prepare(l2_add, 0x3000, 0, true);
    report_exit(run() == REASON_VMCALL && vmread(PML_INDEX) == FULL &&
                    log_page[0] == WINDOW + 0x3000,
                "the last entry: the index becomes FFFFH");
    prepare(l2_put_more, 0, 100, true);
    report_known(MACHINE_BOCHS,
                 run() == REASON_VMCALL && vmread(PML_INDEX) == 97 && log_page[100] == WINDOW &&
                     log_page[99] == WINDOW + 0x2000 && log_page[98] == WINDOW + 0x1000 &&
                     nothing_else(98, 100),
                 "three pages, in their order");
    prepare(l2_put, 0, 10, false);
    report_exit(run() == REASON_VMCALL && vmread(PML_INDEX) == 10 && nothing_else(1, 0),
                "without A and D flags there is no log");
}

static void test_large_page(void)
{
    u64 saved = ept_directories[WINDOW / SIZE_2M];

    prepare(l2_put, 0x3210, 5, true);
    ept_directories[WINDOW / SIZE_2M] =
        ALIGN_DOWN((u64)log_page, SIZE_2M) | EPT_LEAF | EPT_WB | EPT_RWX;
    l2_registers[RDI] = WINDOW + ((u64)log_page & (SIZE_2M - 1)) + 8;
    report_known(MACHINE_BOCHS,
                 run() == REASON_VMCALL && vmread(PML_INDEX) == 4 &&
                     log_page[5] == WINDOW + ((u64)log_page & (SIZE_2M - 1)) &&
                     (ept_directories[WINDOW / SIZE_2M] & EPT_D),
                 "of a large page the 4 KiB that are written");
    ept_directories[WINDOW / SIZE_2M] = saved;
}

static void check_full(u64 index)
{
    prepare(l2_put, 0x2000, index, true);
    report_exit(run() == REASON_PML_FULL && at(l2_put) && vmread(EXIT_QUALIFICATION) == 0 &&
                    !(window[2] & (EPT_A | EPT_D)) && vmread(PML_INDEX) == index,
                "a full log exits, with no flag set");
    vmwrite(PML_INDEX, ENTRIES - 1);
    report_exit(run() == REASON_VMCALL && at(l2_put_done) && (window[2] & EPT_D) &&
                    log_page[ENTRIES - 1] == WINDOW + 0x2000,
                "and goes on with room in it");
}

static void test_full(void)
{
    check_full(FULL);
    check_full(ENTRIES);
    // "...that it first needs to set an accessed or dirty flag"
    prepare(l2_get, 0x2000, FULL, true);
    report_exit(run() == REASON_PML_FULL && at(l2_get) && !(window[2] & EPT_A),
                "a read that is to set an A flag exits, too");
    prepare(l2_put, 0x2000, FULL, true);
    window[2] |= EPT_A | EPT_D;
    ept_directories[WINDOW / SIZE_2M] |= EPT_A;
    // Bochs asks for room at each walk
    report_known(MACHINE_BOCHS, run() == REASON_VMCALL, "a write to what is dirty does not");
    prepare(l2_put, 0x2000, FULL, true);
    window[2] &= ~2ull;
    report_known(MACHINE_BOCHS, run() == REASON_EPT_VIOLATION, "a violation comes before");
    window[2] |= 2;
}

static void test_checks(void)
{
    prepare(l2_put, 0, 0, true);
    vmwrite(PML_ADDRESS, (u64)log_page + 8);
    report(run() == (FAILED | RFLAGS_ZF) && vmread(VM_INSTRUCTION_ERROR) == 7,
           "a log that is not aligned: error 7");
    prepare(l2_put, 0, 0, true);
    use_secondary(0, SECONDARY_PML);
    report(run() == (FAILED | RFLAGS_ZF) && vmread(VM_INSTRUCTION_ERROR) == 7,
           "a log without EPT: error 7");
}

void guest_main(void)
{
    if (!vmx_start()) {
        report(false, "no VMX");
        return;
    }
    make_tables();
    if (!prepare(l2_get, 0, 0, true)) {
        report_skip("no page-modification logging");
        return;
    }
    // What the L2 itself lies in is accessed and dirty.
    prepare(l2_put, 0, ENTRIES - 1, true);
    run();
    root[0] |= EPT_A;
    for (unsigned i = 0; i < 4; i++)
        root[PDPT + i] |= EPT_A;
    test_log();
    test_large_page();
    test_full();
    test_checks();
}
