// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What VMRUN refuses and what it does not (APM vol. 2, 15.5.1, 15.20, 15.25.3, 15.25.4): fields at
// their limits, nested paging's own checks, PAE's pointers; and VM_CR against EFER.SVME (15.30.1).

#include "svm.h"

L2(l2_vmmcall, "vmmcall");
L2(l2_clear_svme, "mov $0xc0000080, %ecx; rdmsr; btr $12, %eax; wrmsr; vmmcall");
L2(l2_vmmcall_32, ".code32; vmmcall; .code64");

// 64-bit code counts up, 32-bit code down and up.
L2(l2_inc, ".byte 0x48; inc %eax; vmmcall");
L2(l2_inc_32, ".code32; mov $1, %eax; vmmcall; .code64");

static u64 address_limit;

enum { LEGAL = VMEXIT_VMMCALL };

static void check(u64 expected, const char *what)
{
    u64 code = l2_run();

    // QEMU 7.2 stores the low half only, and lacks most checks
    report_known(MACHINE_QEMU, code == expected, "%s: EXITCODE %#llx", what, LLU(code));
}

static void test_maps(void)
{
    static const struct {
        bool msrpm;
        u32 below; // the physical addresses' end
        u64 expected;
        const char *what;
    } rows[] = {
        {true, 0x1000, VMEXIT_INVALID, "MSRPM one page below the end"},
        {true, 0, VMEXIT_INVALID, "MSRPM at the end"},
        {false, 0x3000, LEGAL, "IOPM just fits"},
        {false, 0x2001, LEGAL, "IOPM just fits, with low bits, which are ignored"},
        {false, 0x2000, VMEXIT_INVALID, "IOPM's third page is at the end"},
        {false, 0, VMEXIT_INVALID, "IOPM at the end"},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        l2_init(l2_vmmcall);
        *(rows[i].msrpm ? &vmcb->msrpm_base_pa : &vmcb->iopm_base_pa) =
            address_limit - rows[i].below;
        check(rows[i].expected, rows[i].what);
    }
    l2_init(l2_vmmcall);
    vmcb->msrpm_base_pa |= 0xfff;
    vmcb->iopm_base_pa |= 0xfff;
    check(LEGAL, "maps' low bits are ignored");
}

static void test_registers(void)
{
    l2_init(l2_vmmcall);
    vmcb->cr3 |= address_limit;
    check(VMEXIT_INVALID, "CR3 beyond the physical addresses");
    l2_init(l2_vmmcall);
    vmcb->cr0 |= CR0_CD;
    check(LEGAL, "CR0.CD");
    l2_init(l2_vmmcall);
    vmcb->efer |= BIT(63);
    check(VMEXIT_INVALID, "EFER[63]");
    l2_init(l2_vmmcall);
    vmcb->efer &= ~EFER_LMA;
    check(LEGAL, "EFER.LMA is not looked at where LME and PG say the same");
    l2_init(l2_vmmcall);
    vmcb->rflags = 0;
    check(LEGAL, "RFLAGS without its fixed bit");
    l2_init(l2_vmmcall);
    vmcb->guest_asid = 0xffffffff;
    check(LEGAL, "any ASID but 0");
    l2_init(l2_vmmcall);
    vmcb->tlb_control = 0xff;
    vmcb->clean = 0xffffffff;
    check(LEGAL, "reserved TLB_CONTROL and clean bits");
}

// Protected mode without paging, then long mode by CR0.PG and CS.L alone: EFER is as it was left.
static void test_lma(void)
{
    l2_init(l2_inc_32);
    vmcb->cr0 &= ~CR0_PG;
    vmcb->efer &= ~EFER_LMA;
    set_segment(&vmcb->cs, CODE32, 0xc9b);
    l2_run();
    report_vmexit(vmcb->exitcode == VMEXIT_VMMCALL && vmcb->rax == 1 && (vmcb->efer & EFER_LME) &&
                      !(vmcb->efer & EFER_LMA),
                  "L2 without paging: LME without LMA");
    vmcb->cr0 |= CR0_PG;
    set_segment(&vmcb->cs, CODE64, 0xa9b);
    vmcb->rip = (u64)l2_inc;
    vmcb->rax = 1;
    l2_run();
    // QEMU 7.2 takes LMA from the VMCB
    report_known(MACHINE_QEMU,
                 vmcb->exitcode == VMEXIT_VMMCALL && vmcb->rax == 2 && (vmcb->efer & EFER_LMA),
                 "with it, LMA follows: EXITCODE %#llx, EAX %#llx, EFER %#llx", LLU(vmcb->exitcode),
                 LLU(vmcb->rax), LLU(vmcb->efer));
}

// What an L2 leaves is checked like what L1 writes. (What becomes of an L2 without SVME is not
// defined; QEMU 7.2 shuts it down.)
static void test_left(void)
{
    l2_init(l2_clear_svme);
    report_known(MACHINE_QEMU, l2_run() == VMEXIT_VMMCALL && !(vmcb->efer & EFER_SVME),
                 "L2 can clear its EFER.SVME");
    check(VMEXIT_INVALID, "but not be entered again then");
}

static void test_events(void)
{
    for (unsigned type = 0; type < 8; type++) {
        bool legal = type == SVM_EVENT_INTR || type == SVM_EVENT_NMI ||
                     type == SVM_EVENT_EXCEPTION || type == SVM_EVENT_SOFT_INT;

        l2_init(l2_vmmcall);
        vmcb->eventinj = SVM_EVENT_V | type << SVM_EVENT_TYPE_SHIFT | VECTOR_UD;
        report_known(MACHINE_QEMU, (l2_run() == VMEXIT_INVALID) == !legal, "EVENTINJ type %u",
                     type);
    }
    for (unsigned vector = 0; vector < 256; vector += vector < 34 ? 1 : 37) {
        // 9, 15, 20, 22..27 and 31 are no exceptions; #CP, #HV and #VC come with features; 64-bit
        // code has no #BR
        bool legal = vector < 32 && !(0xbff08224 >> vector & 1);

        l2_init(l2_vmmcall);
        vmcb->eventinj = SVM_EVENT_V | SVM_EVENT_EXCEPTION << SVM_EVENT_TYPE_SHIFT | vector;
        // QEMU 7.2 itself refuses 31 only
        if ((l2_run() == VMEXIT_INVALID) != !legal)
            report_cpu(MACHINE_QEMU, false, "EVENTINJ exception %u", vector);
    }
    report(true, "EVENTINJ's exceptions by vector");
    l2_init(l2_vmmcall_32);
    vmcb->eventinj = SVM_EVENT_V | SVM_EVENT_EXCEPTION << SVM_EVENT_TYPE_SHIFT | VECTOR_BR;
    set_segment(&vmcb->cs, CODE32, 0xc9b);
    report(l2_run() != VMEXIT_INVALID, "EVENTINJ #BR in compatibility mode is legal");
}

// --- rAX by the effective address size ---

u64 svm_run_addr32(u64 rax); // VMRUN EAX; RAX afterwards
__asm__(".pushsection .text; svm_run_addr32: push %rbx; push %rbp; push %r12; push %r13; push %r14;"
        "push %r15; mov %rdi, %rax; addr32 vmrun; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp;"
        "pop %rbx; ret; .popsection");

static void vmload_addr32(void *rax)
{
    __asm__ volatile("addr32 vmsave; addr32 vmload" : : "a"(rax) : "memory");
}

static void test_address_size(void)
{
    u64 rax = (u64)vmcb | 0xdead00000000, after;

    l2_init(l2_vmmcall);
    vmcb->rflags = ~(u64)(RFLAGS_TF | RFLAGS_VM | RFLAGS_NT | RFLAGS_RF);
    clgi();
    after = svm_run_addr32(rax);
    stgi();
    // QEMU 7.2 takes RAX whole, or gives it back so
    report_known(MACHINE_QEMU, vmcb->exitcode == VMEXIT_VMMCALL && after == rax,
                 "VMRUN EAX: EXITCODE %#llx, RAX is %#llx behind it", LLU(vmcb->exitcode),
                 LLU(after));
    report_known(MACHINE_QEMU, !(vmcb->rflags & ~(u64)RFLAGS_KNOWN),
                 "L2's reserved RFLAGS read as zero: %#llx", LLU(vmcb->rflags));
    report_known(MACHINE_QEMU, try(vmload_addr32, (void *)rax) == NO_TRAP,
                 "VMSAVE EAX, VMLOAD EAX");
}

// --- nested paging ---

static u64 *tables;

static void init_nested(void)
{
    l2_init(l2_vmmcall);
    vmcb->np_enable = 1;
    vmcb->n_cr3 = (u64)tables;
}

static void test_nested_paging(void)
{
    if (!(cpuid(0x8000000a, 0).edx & SVM_FEATURE_NP)) {
        report_skip("no nested paging");
        return;
    }
    tables = identity_tables(NPT_ALL, NPT_ALL);
    init_nested();
    check(LEGAL, "nested paging");
    init_nested();
    vmcb->n_cr3 |= address_limit;
    check(VMEXIT_INVALID, "nCR3 beyond the physical addresses");
    for (unsigned i = 0; i < 8; i++) {
        init_nested();
        vmcb->g_pat = (vmcb->g_pat & ~(0xffull << 8 * i)) | (i & 1 ? 2ull : 9ull) << 8 * i;
        check(VMEXIT_INVALID, "G_PAT with a type that does not exist");
    }
    l2_init(l2_vmmcall);
    vmcb->n_cr3 = vmcb->g_pat = ~0ull;
    check(LEGAL, "neither counts without nested paging");
}

// --- PAE without nested paging: VMRUN loads the pointers ---

static void init_pae(u64 *pointers)
{
    l2_init(l2_vmmcall_32);
    set_segment(&vmcb->cs, CODE32, 0xc9b);
    vmcb->efer &= ~(EFER_LME | EFER_LMA);
    vmcb->cr3 = (u64)pointers;
    pointers[0] = (u64)directories | 1;
    pointers[1] = pointers[2] = pointers[3] = 0;
}

static void test_pae(void)
{
    u64 *pointers = pages(1);

    init_pae(pointers);
    check(LEGAL, "PAE");
    for (unsigned i = 0; i < 4; i++) {
        init_pae(pointers);
        pointers[i] |= BIT(52) | 1;
        check(VMEXIT_INVALID, "PAE, a pointer with a reserved bit");
        init_pae(pointers);
        pointers[i] = i ? BIT(52) : pointers[0];
        check(LEGAL, "PAE, the same not present");
    }
}

// --- VM_CR ---

static void write_vm_cr(void *value)
{
    msr_write(MSR_VM_CR, (u64)value);
}

static void write_efer(void *value)
{
    msr_write(MSR_EFER, (u64)value);
}

static void test_vm_cr(void)
{
    u64 efer = msr_read(MSR_EFER);

    if (msr_read(MSR_VM_CR) & VM_CR_LOCK) {
        report_skip("VM_CR is locked");
        return;
    }
    report_known(MACHINE_QEMU, try(write_vm_cr, (void *)VM_CR_SVMDIS) == VECTOR_GP,
                 "VM_CR.SVMDIS can't be set while EFER.SVME is: #GP");
    report_known(MACHINE_QEMU, try(write_vm_cr, (void *)BIT(5)) == VECTOR_GP,
                 "VM_CR's reserved bits: #GP");
    msr_write(MSR_EFER, efer & ~EFER_SVME);
    if (try(write_vm_cr, (void *)VM_CR_SVMDIS) != NO_TRAP ||
        !(msr_read(MSR_VM_CR) & VM_CR_SVMDIS)) {
        report_known(MACHINE_QEMU, false, "VM_CR.SVMDIS can be set");
        return;
    }
    report(try(write_efer, (void *)efer) == VECTOR_GP, "then EFER.SVME can't: #GP");
    msr_write(MSR_VM_CR, 0);
    report(try(write_efer, (void *)efer) == NO_TRAP, "and can when it is clear");
    msr_write(MSR_VM_CR, VM_CR_LOCK);
    msr_write(MSR_EFER, efer & ~EFER_SVME);
    msr_write(MSR_VM_CR, VM_CR_SVMDIS);
    report(msr_read(MSR_VM_CR) == VM_CR_LOCK, "VM_CR.LOCK holds SVMDIS and itself: %#llx",
           LLU(msr_read(MSR_VM_CR)));
    msr_write(MSR_EFER, efer);
}

void guest_main(void)
{
    if (!svm_start()) {
        report_skip("no SVM");
        return;
    }
    address_limit = BIT(cpuid(0x80000008, 0).eax & 0xff);
    test_maps();
    test_registers();
    test_lma();
    test_left();
    test_events();
    test_address_size();
    test_nested_paging();
    test_pae();
    test_vm_cr();
}
