// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The small guests' minimal SVM hypervisor (APM vol. 2, 15.5 "VMRUN Instruction").

#include "l1_svm.h"

struct vmcb *l1_vmcb;
u64 l1_registers_svm[16];
static u8 *iopm, *msrpm, *own;
static u8 l2_stack[4096] ALIGNED(16);

__asm__(".globl l1_svm_switch\n"
        "l1_svm_switch:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "push %rdi\n"
        "mov %rsi, %rax\n"
        "mov 8(%rdi), %rcx; mov 16(%rdi), %rdx; mov 24(%rdi), %rbx\n"
        "mov 40(%rdi), %rbp; mov 48(%rdi), %rsi; mov 64(%rdi), %r8\n"
        "mov 72(%rdi), %r9; mov 80(%rdi), %r10; mov 88(%rdi), %r11\n"
        "mov 96(%rdi), %r12; mov 104(%rdi), %r13; mov 112(%rdi), %r14\n"
        "mov 120(%rdi), %r15; mov 56(%rdi), %rdi\n"
        "vmrun %rax\n"
        "xchg %rdi, (%rsp)\n"
        "mov %rcx, 8(%rdi); mov %rdx, 16(%rdi); mov %rbx, 24(%rdi)\n"
        "mov %rbp, 40(%rdi); mov %rsi, 48(%rdi); mov %r8, 64(%rdi)\n"
        "mov %r9, 72(%rdi); mov %r10, 80(%rdi); mov %r11, 88(%rdi)\n"
        "mov %r12, 96(%rdi); mov %r13, 104(%rdi); mov %r14, 112(%rdi)\n"
        "mov %r15, 120(%rdi); pop 56(%rdi)\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "ret\n");

bool l1_svm_start(void)
{
    if (!(cpuid(0x80000001, 0).ecx & BIT(2)))
        return false;
    msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_SVME);
    msr_write(MSR_VM_HSAVE_PA, (u64)pages(1));
    l1_vmcb = pages(1);
    own = pages(1);
    iopm = pages(3);
    msrpm = pages(2);
    return true;
}

static void set_segment(struct vmcb_segment *s, u16 selector, u16 attrib)
{
    *s = (struct vmcb_segment){.selector = selector, .attrib = attrib, .limit = 0xffffffff};
}

void l1_svm_init(const void *code)
{
    struct vmcb *v = l1_vmcb;

    memset(v, 0, sizeof(*v));
    memset(l1_registers_svm, 0, sizeof(l1_registers_svm));
    v->intercept[SVM_WORD_3] = SVM_INTERCEPT_INTR | SVM_INTERCEPT_NMI | SVM_INTERCEPT_CPUID |
                               SVM_INTERCEPT_HLT | SVM_INTERCEPT_SHUTDOWN;
    v->intercept[SVM_WORD_4] = SVM_INTERCEPT_VMRUN | SVM_INTERCEPT_VMMCALL;
    v->v_ctl = SVM_V_INTR_MASKING;
    v->iopm_base_pa = (u64)iopm;
    v->msrpm_base_pa = (u64)msrpm;
    v->guest_asid = 1;
    set_segment(&v->cs, CODE64, 0xa9b);
    set_segment(&v->ss, DATA, 0xc93);
    set_segment(&v->ds, DATA, 0xc93);
    set_segment(&v->es, DATA, 0xc93);
    set_segment(&v->tr, TSS, 0x8b);
    v->tr.base = (u64)&tss;
    v->tr.limit = 103;
    v->gdtr.base = (u64)gdt;
    v->gdtr.limit = 0x67;
    v->idtr.base = (u64)idt;
    v->idtr.limit = sizeof(idt) - 1;
    v->efer = msr_read(MSR_EFER);
    v->cr0 = read_cr0();
    v->cr3 = read_cr3();
    v->cr4 = read_cr4();
    v->dr6 = DR6_FIXED;
    v->dr7 = DR7_FIXED;
    v->g_pat = msr_read(MSR_PAT);
    v->rflags = RFLAGS_FIXED;
    v->rip = v->nrip = (u64)code;
    v->rsp = (u64)(l2_stack + sizeof(l2_stack));
}

void l1_svm_enter(u64 vmcb)
{
    __asm__ volatile("vmsave; clgi; sti" : : "a"(own) : "memory");
    l1_svm_switch(l1_registers_svm, vmcb);
    __asm__ volatile("cli; vmload; stgi" : : "a"(own) : "memory");
}
