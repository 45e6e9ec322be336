// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMRUN and what must stand directly around it (APM vol. 2, 15.5 "VMRUN Instruction", 15.17 "Global
// Interrupt Flag").
//
// From the guest's VMLOAD to Nestor's own, FS, GS, TR and LDTR are the guest's, so no exception may
// be taken: the code touches only the stack and *vcpu, which are always mapped, and GIF is 0, which
// holds NMI, SMI, INIT, external interrupts and #MC back. With V_INTR_MASKING the RFLAGS.IF that
// VMRUN finds decides whether physical interrupts leave the guest, so it is set, under GIF = 0, and
// cleared again before STGI. What was held arrives at STGI (NMI: the host's handler runs) or at the
// next STI in C (interrupts).

#include "svm.h"

#define MSR_SPEC_CTRL 0x48

    .text
    .globl svm_vmrun
    .type svm_vmrun, @function
// rdi: struct vcpu *, GPRs at 0 (RAX and RSP are the VMCB's)
// rax: the guest VMCB's HPA
// rdx: struct svm_cpu *
// Called by svm_enter's asm with IF = 0 and GIF = 1, returns so. Clobbers every register but RSP
// and RDI.
    .balign 64
svm_vmrun:
    push %rdi
    push %rdx
    testl $SVM_STUB_SPEC_CTRL, SVM_CPU_STUB_FLAGS(%rdx)
    jnz .Lguest_spec_ctrl
.Lenter:
    clgi
    sti
    vmload %rax
    mov 1*8(%rdi), %rcx
    mov 2*8(%rdi), %rdx
    mov 3*8(%rdi), %rbx
    mov 5*8(%rdi), %rbp
    mov 6*8(%rdi), %rsi
    mov 8*8(%rdi), %r8
    mov 9*8(%rdi), %r9
    mov 10*8(%rdi), %r10
    mov 11*8(%rdi), %r11
    mov 12*8(%rdi), %r12
    mov 13*8(%rdi), %r13
    mov 14*8(%rdi), %r14
    mov 15*8(%rdi), %r15
    mov 7*8(%rdi), %rdi
    vmrun %rax
    // RAX and RSP are Nestor's again, all other GPRs the guest's; GIF = 0.
    vmsave %rax
    mov (%rsp), %rax
    mov SVM_CPU_HOST_VMCB(%rax), %rax
    vmload %rax
    mov 8(%rsp), %rax
    mov %rcx, 1*8(%rax)
    mov %rdx, 2*8(%rax)
    mov %rbx, 3*8(%rax)
    mov %rbp, 5*8(%rax)
    mov %rsi, 6*8(%rax)
    mov %rdi, 7*8(%rax)
    mov %r8, 8*8(%rax)
    mov %r9, 9*8(%rax)
    mov %r10, 10*8(%rax)
    mov %r11, 11*8(%rax)
    mov %r12, 12*8(%rax)
    mov %r13, 13*8(%rax)
    mov %r14, 14*8(%rax)
    mov %r15, 15*8(%rax)
    pop %rdx
    pop %rdi
    cmpl $0, SVM_CPU_STUB_FLAGS(%rdx)
    jne .Lmitigations
.Lleave:
    cli
    stgi
    ret

.Lguest_spec_ctrl:
    mov %rax, %rsi
    mov VCPU_SPEC_CTRL(%rdi), %rax
    cmp SVM_CPU_HOST_SPEC_CTRL(%rdx), %rax
    je 1f
    mov %rax, %rdx
    shr $32, %rdx
    mov $MSR_SPEC_CTRL, %ecx
    wrmsr
1:  mov %rsi, %rax
    jmp .Lenter

// Before the first RET or indirect branch after the exit.
// rdi: struct vcpu *; rdx: struct svm_cpu *
.Lmitigations:
    mov SVM_CPU_STUB_FLAGS(%rdx), %esi
    test $SVM_STUB_SPEC_CTRL, %esi
    jz .Lclear
    mov SVM_CPU_HOST_SPEC_CTRL(%rdx), %rax
    cmp VCPU_SPEC_CTRL(%rdi), %rax
    je .Lclear
    mov %rax, %rdx
    shr $32, %rdx
    mov $MSR_SPEC_CTRL, %ecx
    wrmsr
.Lclear:
    test $SVM_STUB_CLEAR, %esi
    jz .Lleave
    // 32 return addresses of Nestor's own over what the guest's calls left to predict RETs with.
    mov $16, %eax
1:  call 2f
    int3
2:  call 3f
    int3
3:  dec %eax
    jnz 1b
    add $32*8, %rsp
    lfence
    xor %ebx, %ebx
    xor %ecx, %ecx
    xor %ebp, %ebp
    xor %r8d, %r8d
    xor %r9d, %r9d
    xor %r10d, %r10d
    xor %r11d, %r11d
    xor %r12d, %r12d
    xor %r13d, %r13d
    xor %r14d, %r14d
    xor %r15d, %r15d
    jmp .Lleave // the others hold Nestor's own
    .size svm_vmrun, . - svm_vmrun
    .section .note.GNU-stack, "", @progbits
