// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The VMX entry stub: guest registers in, VMLAUNCH or VMRESUME, guest registers out, with the
// speculation control that belongs right before an entry and right after an exit. SDM vol. 3 "VM
// Entries", "Loading Host State".

#include "run.h"

#define GPR(n) (8 * (n))
#define MSR_SPEC_CTRL 0x48
#define MSR_FLUSH_CMD 0x10b
#define DATA_SELECTOR 0x10

    .text

// vmx_run, called by vmx_call_run (vmx.h)
// In:   rdi = vcpu, rsi = hw, edx = flags (run.h); interrupts closed; hw's VMCS is current.
// Out:  eax = enum vmx_run_status; rdi and rsi as they were. The guest's registers are in vcpu->gpr
//       (all but RSP).
// Clob: all but RSP and RBP, which is kept on the stack; HOST_RSP points there.
    .globl vmx_run
    .type vmx_run, @function
vmx_run:
    push %rbp
    push %rdx // 16(%rsp) flags
    push %rsi // 8(%rsp) hw
    push %rdi // (%rsp) vcpu
    cmp %rsp, HW_HOST_RSP(%rsi)
    jne 7f
1:  test $RUN_BEFORE, %edx
    jnz 8f
2:  test $RUN_LAUNCHED, %edx // MOV leaves the flags alone
    mov GPR(0)(%rdi), %rax
    mov GPR(1)(%rdi), %rcx
    mov GPR(2)(%rdi), %rdx
    mov GPR(3)(%rdi), %rbx
    mov GPR(5)(%rdi), %rbp
    mov GPR(6)(%rdi), %rsi
    mov GPR(8)(%rdi), %r8
    mov GPR(9)(%rdi), %r9
    mov GPR(10)(%rdi), %r10
    mov GPR(11)(%rdi), %r11
    mov GPR(12)(%rdi), %r12
    mov GPR(13)(%rdi), %r13
    mov GPR(14)(%rdi), %r14
    mov GPR(15)(%rdi), %r15
    mov GPR(7)(%rdi), %rdi
    jz 3f
    vmresume
    jmp 4f
3:  vmlaunch
4:  sete %bl // VMfailValid; else CF: VMfailInvalid
    movzbl %bl, %ebx
    inc %ebx
    jmp 5f

    .globl vmx_exit_entry
    .type vmx_exit_entry, @function
vmx_exit_entry:
    push %rdi
    mov 8(%rsp), %rdi
    mov %rax, GPR(0)(%rdi)
    mov %rcx, GPR(1)(%rdi)
    mov %rdx, GPR(2)(%rdi)
    mov %rbx, GPR(3)(%rdi)
    mov %rbp, GPR(5)(%rdi)
    mov %rsi, GPR(6)(%rdi)
    mov %r8, GPR(8)(%rdi)
    mov %r9, GPR(9)(%rdi)
    mov %r10, GPR(10)(%rdi)
    mov %r11, GPR(11)(%rdi)
    mov %r12, GPR(12)(%rdi)
    mov %r13, GPR(13)(%rdi)
    mov %r14, GPR(14)(%rdi)
    mov %r15, GPR(15)(%rdi)
    pop GPR(7)(%rdi)
    xor %ebx, %ebx
5:  mov 16(%rsp), %edx
    test $RUN_AFTER, %edx
    jnz 9f
6:  mov %ebx, %eax
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rbp
    ret

// The stack is another one than at the last entry.
7:  mov %rsp, HW_HOST_RSP(%rsi)
    mov $VMCS_HOST_RSP, %eax
    vmwrite %rsp, %rax
    jmp 1b

// Before an entry. VERW stands before the guest's registers are loaded: after it only vcpu->gpr is
// read, which is the guest's own.
8:  mov %edx, %r8d
    test $RUN_L1D_FLUSH, %r8d
    jz 81f
    mov $MSR_FLUSH_CMD, %ecx
    mov $1, %eax
    xor %edx, %edx
    wrmsr
81: test $RUN_SPEC_CTRL, %r8d
    jz 82f
    mov $MSR_SPEC_CTRL, %ecx
    mov HW_GUEST_SPEC_CTRL(%rsi), %eax
    mov HW_GUEST_SPEC_CTRL+4(%rsi), %edx
    wrmsr
82: test $RUN_VERW, %r8d
    jz 83f
    verw verw_selector(%rip)
83: mov %r8d, %edx
    jmp 2b

// After an exit: nothing that the guest trained is used by Nestor's first indirect branch or
// return.
9:  mov %edx, %r8d
    test $RUN_SPEC_CTRL, %r8d
    jz 91f
    mov 8(%rsp), %rsi
    mov $MSR_SPEC_CTRL, %ecx
    mov HW_HOST_SPEC_CTRL(%rsi), %eax
    mov HW_HOST_SPEC_CTRL+4(%rsi), %edx
    wrmsr
91: test $RUN_RSB_FILL, %r8d
    jz 93f
    mov $16, %ecx
92: call 921f
    int3
921: call 922f
    int3
922: add $16, %rsp
    dec %ecx
    jnz 92b
    lfence
93: test $RUN_RSB_ONE, %r8d
    jz 95f
    call 94f
    int3
94: add $8, %rsp
    lfence
95: xor %ecx, %ecx
    xor %edx, %edx
    xor %esi, %esi
    xor %edi, %edi
    xor %ebp, %ebp
    xor %r8d, %r8d
    xor %r9d, %r9d
    xor %r10d, %r10d
    xor %r11d, %r11d
    xor %r12d, %r12d
    xor %r13d, %r13d
    xor %r14d, %r14d
    xor %r15d, %r15d
    jmp 6b
    .size vmx_run, . - vmx_run

// void vmx_unblock_nmi(void): an NMI exit leaves NMIs blocked as if an NMI handler ran; only IRET
// opens them again.
// Clob: rax, flags.
    .globl vmx_unblock_nmi
    .type vmx_unblock_nmi, @function
vmx_unblock_nmi:
    mov %rsp, %rax
    push $DATA_SELECTOR
    push %rax
    pushf
    mov %cs, %eax
    push %rax
    lea 1f(%rip), %rax
    push %rax
    iretq
1:  ret
    .size vmx_unblock_nmi, . - vmx_unblock_nmi

    .section .rodata
    .balign 2
verw_selector:
    .word DATA_SELECTOR // any writable segment
    .section .note.GNU-stack, "", @progbits
