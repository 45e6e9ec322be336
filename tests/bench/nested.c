// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What nesting costs, by a minimal hypervisor as L1 and an L2 that is the bench guest's own code:
// it shares L1's memory and paging, behind nested paging that is the identity. Rows called l1- are
// measured by L1, the others by L2 itself. One round holds L1's handler, too, of some sixty
// instructions, or as many as the row says.

#include "bench.h"
#include "svm.h"
#include "vmx.h"

enum { FRESH_PAGES = 1024, ENTRIES = 512 };
enum { FRESH = 32 << 20, MISSING = 40 << 20 }; // GPAs of pages that L1 maps, and does not map yet

static bool intel;
static u64 *root, *directory, *leaves; // of both regions, in the order of their addresses
static u64 leaf_bits;
static u8 stack[16384] ALIGNED(16);
static u32 fresh_at, missing_at;

// Also for an entry that fails.
static u64 enter(bool resume)
{
    if (intel)
        return vmx_enter(resume);
    svm_run((u64)vmcb);
    return 0;
}

// --- nested paging: 2 MiB pages, and 4 KiB ones in the two regions ---

static void make_tables(u64 bits, u64 leaf)
{
    root = identity_tables(bits, leaf);
    directory = root + DIRECTORIES;
    leaves = pages(2 * FRESH_PAGES / ENTRIES);
    leaf_bits = leaf;
    for (u64 i = 0; i < FRESH_PAGES / ENTRIES; i++) {
        directory[(FRESH >> 21) + i] = (u64)(leaves + i * ENTRIES) | bits;
        directory[(MISSING >> 21) + i] = (u64)(leaves + FRESH_PAGES + i * ENTRIES) | bits;
    }
    for (u64 i = 0; i < FRESH_PAGES; i++)
        leaves[i] = (FRESH + i * PAGE_SIZE) | leaf;
}

static void map_missing(u64 gpa)
{
    leaves[FRESH_PAGES + (gpa - MISSING) / PAGE_SIZE] = (gpa & PAGE_MASK) | leaf_bits;
}

// --- rows of L2 ---

static void row_fresh(void)
{
    *(volatile u8 *)(FRESH + (u64)(fresh_at++ % FRESH_PAGES) * PAGE_SIZE) = 1;
}

static void row_missing(void)
{
    *(volatile u8 *)(MISSING + (u64)(missing_at++ % FRESH_PAGES) * PAGE_SIZE) = 1;
}

static void l2_main(void)
{
    bench_empty();
    bench("l2-cpuid-emulated", row_cpuid, true);
    bench("l2-port-l0", row_pic_read, true);
    bench("l2-msr-l0", row_rdmsr, cpuid(7, 0).ebx & BIT(1));
    bench("l2-stage2-l0", row_fresh, true);
    bench("l2-stage2-l1", row_missing, true);
    if (intel)
        __asm__ volatile("vmcall");
    else
        __asm__ volatile("vmmcall");
}

// --- L1 ---

static void emulate_cpuid(u64 *rax, u64 *rbx, u64 *rcx, u64 *rdx)
{
    struct cpuid_regs r = cpuid((u32)*rax, (u32)*rcx);

    *rax = r.eax;
    *rbx = r.ebx;
    *rcx = r.ecx;
    *rdx = r.edx;
}

// Until L2 ends by VMCALL; false: by something else.
static bool run_vmx(void)
{
    for (bool resume = false;; resume = true) {
        u64 *r = l2_registers, reason;

        if (vmx_enter(resume))
            return false;
        reason = vmread(EXIT_REASON);
        if (reason == REASON_CPUID) {
            emulate_cpuid(&r[RAX], &r[RBX], &r[RCX], &r[RDX]);
            vmwrite(GUEST_RIP, vmread(GUEST_RIP) + 2);
        } else if (reason == REASON_EPT_VIOLATION) {
            map_missing(vmread(GUEST_PHYSICAL_ADDRESS));
        } else {
            return reason == REASON_VMCALL;
        }
    }
}

static bool run_svm(void)
{
    struct vmcb *v = vmcb;
    u64 *r = l2_registers;

    for (;;) {
        svm_run((u64)v);
        if (v->exitcode == VMEXIT_CPUID) {
            emulate_cpuid(&v->rax, &r[RBX], &r[RCX], &r[RDX]);
            v->rip += 2;
        } else if (v->exitcode == VMEXIT_NPF) {
            map_missing(v->exitinfo2);
        } else {
            return v->exitcode == VMEXIT_VMMCALL;
        }
    }
}

L2(l2_cpuid, "cpuid; jmp l2_cpuid");

// L2 executes the same CPUID again, as L1 changes nothing.
static void row_round_trip(void)
{
    enter(true);
}

static void prepare(const void *code)
{
    if (intel) {
        init(code);
        vmwrite(GUEST_RSP, (u64)(stack + sizeof(stack) - 8));
        return;
    }
    l2_init(code);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR | SVM_INTERCEPT_NMI;
    vmcb->v_ctl = SVM_V_INTR_MASKING;
    vmcb->rsp = (u64)(stack + sizeof(stack) - 8);
}

static void nested_paging(void)
{
    if (intel) {
        vmwrite(PRIMARY_CONTROLS,
                vmread(PRIMARY_CONTROLS) | PRIMARY_SECONDARY | PRIMARY_MSR_BITMAPS);
        vmwrite(MSR_BITMAP, (u64)pages(1));
        vmwrite(SECONDARY_CONTROLS,
                control(MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT | SECONDARY_VPID));
        vmwrite(EPT_POINTER, eptp_of(root, false));
        vmwrite(VPID, 1);
        return;
    }
    vmcb->np_enable = SVM_NP_ENABLE;
    vmcb->n_cr3 = (u64)root;
}

static void bench_refused(void)
{
    if (!intel) {
        vmcb->guest_asid = 0;
        bench("l1-refused-controls", row_round_trip, true);
        report(vmcb->exitcode == VMEXIT_INVALID, "VMRUN was refused");
        return;
    }
    vmwrite(ENTRY_MSR_LOAD_COUNT, 1);
    vmwrite(ENTRY_MSR_LOAD_ADDRESS, 1); // the last check of the controls
    bench("l1-refused-controls", row_round_trip, true);
    report(vmread(VM_INSTRUCTION_ERROR) == 7, "VMRESUME was refused");
    vmwrite(ENTRY_MSR_LOAD_COUNT, 0);
    vmwrite(VMCS_LINK_POINTER, 1);
    bench("l1-refused-guest", row_round_trip, true);
    report(vmread(EXIT_REASON) ==
               (REASON_INVALID_GUEST_STATE | (u64)(u32)EXIT_REASON_ENTRY_FAILURE),
           "L2's state was refused");
}

void bench_nested(void)
{
    intel = cpuid(0, 0).ecx == 0x6c65746e; // "ntel"
    if (!(intel ? vmx_start() : svm_start())) {
        report_skip("no VMX, no SVM");
        return;
    }
    make_tables(EPT_RWX, intel ? EPT_WB | EPT_RWX : NPT_ALL);
    prepare(l2_cpuid);
    enter(false);
    bench_empty();
    bench("l1-cpuid-plain", row_round_trip, true); // without nested paging
    nested_paging();
    bench("l1-cpuid", row_round_trip, true);
    bench_refused();
    prepare(l2_main);
    nested_paging();
    report(intel ? run_vmx() : run_svm(), "L2 ran to its end");
    if (!intel)
        stgi();
}
