// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The small hypervisor of the guests that use SVM: a VMCB with an L2 of a few instructions, VMRUN,
// and what the VMCB holds after each exit (APM vol. 2, 15.5 "VMRUN Instruction").

#include "svm.h"

struct vmcb *vmcb;
u8 *iopm, *msrpm;

void set_segment(struct vmcb_segment *s, u16 selector, u16 attrib)
{
    *s = (struct vmcb_segment){.selector = selector, .attrib = attrib, .limit = 0xffffffff};
}

void l2_init(const void *code)
{
    memset(vmcb, 0, sizeof(*vmcb));
    memset(l2_registers, 0, sizeof(l2_registers));
    vmcb->intercept[SVM_WORD_3] = SVM_INTERCEPT_CPUID | SVM_INTERCEPT_HLT | SVM_INTERCEPT_SHUTDOWN;
    vmcb->intercept[SVM_WORD_4] = SVM_INTERCEPT_VMRUN | SVM_INTERCEPT_VMMCALL;
    vmcb->iopm_base_pa = (u64)iopm;
    vmcb->msrpm_base_pa = (u64)msrpm;
    vmcb->guest_asid = 1;
    set_segment(&vmcb->cs, CODE64, 0xa9b);
    set_segment(&vmcb->ss, DATA, 0xc93);
    set_segment(&vmcb->ds, DATA, 0xc93);
    set_segment(&vmcb->es, DATA, 0xc93);
    vmcb->gdtr.base = (u64)gdt;
    vmcb->gdtr.limit = 0x67;
    vmcb->idtr.base = (u64)l2_idt;
    vmcb->idtr.limit = sizeof(l2_idt) - 1;
    vmcb->efer = msr_read(MSR_EFER);
    vmcb->cr0 = read_cr0();
    vmcb->cr3 = read_cr3();
    vmcb->cr4 = read_cr4();
    vmcb->dr6 = DR6_FIXED;
    vmcb->dr7 = DR7_FIXED;
    vmcb->g_pat = msr_read(MSR_PAT);
    vmcb->rflags = RFLAGS_FIXED;
    vmcb->rip = vmcb->nrip = (u64)code; // with nRIP save an injected INT n pushes nRIP
    vmcb->rsp = (u64)(l2_stack + sizeof(l2_stack));
}

u64 l2_run(void)
{
    svm_run((u64)vmcb);
    stgi();
    return vmcb->exitcode;
}

u64 l2_run_code(const void *code)
{
    l2_init(code);
    return l2_run();
}

void report_vmexit(bool ok, const char *what)
{
    report(ok, "%s: EXITCODE %#llx, EXITINFO1 %#llx", what, LLU(vmcb->exitcode),
           LLU(vmcb->exitinfo1));
}

bool l2_at(const void *code)
{
    return vmcb->rip == (u64)code;
}

bool l2_in_handler(unsigned vector)
{
    return vmcb->exitcode == VMEXIT_VMMCALL && vmcb->rip == (u64)l2_handlers + 4 * (u64)vector;
}

u64 l2_pushed(unsigned i)
{
    return ((const u64 *)vmcb->rsp)[i];
}

void svm_prepare(void)
{
    vmcb = pages(1);
    iopm = pages(3);
    msrpm = pages(2);
    l1_prepare(VMMCALL);
}

bool svm_start(void)
{
    if (!(cpuid(0x80000001, 0).ecx & BIT(2)) || cpuid(0x80000000, 0).eax < 0x8000000a)
        return false;
    svm_prepare();
    msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_SVME);
    msr_write(MSR_VM_HSAVE_PA, (u64)pages(1));
    return true;
}
