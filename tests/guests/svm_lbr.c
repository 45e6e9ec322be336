// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// LBR virtualization (APM vol. 2, 15.23; 13.1.1 DebugCtl): L2's DEBUGCTL and last branches are its
// own with it, and L1's without. No test machine records branches; what is written is kept.

#include "svm.h"

enum { LAST_BRANCH_FROM = MSR_LAST_BRANCH_FROM, LAST_EXCEPTION_TO = MSR_LAST_BRANCH_FROM + 3 };

// DEBUGCTL to RSI, the last branch's origin to RDI, EBX to DEBUGCTL.
L2(l2_look, "mov $0x1d9, %ecx; rdmsr; mov %rax, %rsi; mov $0x1db, %ecx; rdmsr; mov %rax, %rdi;"
            "mov $0x1d9, %ecx; mov %ebx, %eax; xor %edx, %edx; wrmsr; vmmcall");

static void write_record(void *unused)
{
    (void)unused;
    msr_write(LAST_BRANCH_FROM, 0);
}

static void write_reserved(void *unused)
{
    (void)unused;
    msr_write(MSR_DEBUGCTL, BIT(40));
}

static void run(u32 control, u64 debugctl)
{
    l2_init(l2_look);
    vmcb->lbr_control = control;
    vmcb->dbgctl = debugctl;
    vmcb->br_from = 0x1234;
    l2_registers[RBX] = DEBUGCTL_BTF;
    l2_run();
}

static void test_virtual(void)
{
    msr_write(MSR_DEBUGCTL, DEBUGCTL_BTF);
    report(msr_read(MSR_DEBUGCTL) == DEBUGCTL_BTF, "DEBUGCTL.BTF is kept");
    run(0, 0);
    report_vmexit(l2_registers[RSI] == DEBUGCTL_BTF, "without it L2 has L1's DEBUGCTL");
    msr_write(MSR_DEBUGCTL, 0);
    run(0, 0);
    report(msr_read(MSR_DEBUGCTL) == DEBUGCTL_BTF && vmcb->dbgctl == 0, "and L1 has L2's");
    msr_write(MSR_DEBUGCTL, 0);
    run(SVM_VIRTUAL_LBR, BIT(40));
    report(l2_registers[RSI] == 0 && l2_registers[RDI] == 0x1234,
           "with it they are VMCB's, without reserved bits: %#llx, %#llx", LLU(l2_registers[RSI]),
           LLU(l2_registers[RDI]));
    report(vmcb->dbgctl == DEBUGCTL_BTF && vmcb->br_from == 0x1234 && msr_read(MSR_DEBUGCTL) == 0,
           "and saved there: %#llx, %#llx; L1 has its own, %#llx", LLU(vmcb->dbgctl),
           LLU(vmcb->br_from), LLU(msr_read(MSR_DEBUGCTL)));
}

void guest_main(void)
{
    if (bare_machine() != MACHINE_OTHER || !svm_start()) {
        report_skip("no SVM, or a bare emulator, which has no DEBUGCTL");
        return;
    }
    report(try(write_reserved, NULL) == VECTOR_GP, "DEBUGCTL's reserved bits: #GP");
    report(try(write_record, NULL) == VECTOR_GP, "the records can't be written: #GP");
    msr_write(MSR_DEBUGCTL, DEBUGCTL_BTF | DEBUGCTL_LBR);
    report(msr_read(LAST_EXCEPTION_TO) == 0, "no exception is recorded");
    msr_write(MSR_DEBUGCTL, 0);
    if (cpuid(0x8000000a, 0).edx & SVM_FEATURE_LBR_VIRT)
        test_virtual();
    else
        report_skip("no LBR virtualization");
}
