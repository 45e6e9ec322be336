// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The way into the small hypervisors' L2 and back: VMLAUNCH and VMRESUME (vmx.h), VMRUN (svm.h).

#include "asm.inc"

	// L2's registers but RAX and RSP. Keeps the flags.
	.macro load_l2
	lea l2_registers(%rip), %rdi
	mov 8(%rdi), %rcx
	mov 16(%rdi), %rdx
	mov 24(%rdi), %rbx
	mov 40(%rdi), %rbp
	mov 48(%rdi), %rsi
	mov 64(%rdi), %r8
	mov 72(%rdi), %r9
	mov 80(%rdi), %r10
	mov 88(%rdi), %r11
	mov 96(%rdi), %r12
	mov 104(%rdi), %r13
	mov 112(%rdi), %r14
	mov 120(%rdi), %r15
	mov 56(%rdi), %rdi
	.endm

	// All but RSP, without a stack. Clobbers RDI.
	.macro store_l2
	mov %rdi, l2_registers + 56(%rip)
	lea l2_registers(%rip), %rdi
	mov %rax, (%rdi)
	mov %rcx, 8(%rdi)
	mov %rdx, 16(%rdi)
	mov %rbx, 24(%rdi)
	mov %rbp, 40(%rdi)
	mov %rsi, 48(%rdi)
	mov %r8, 64(%rdi)
	mov %r9, 72(%rdi)
	mov %r10, 80(%rdi)
	mov %r11, 88(%rdi)
	mov %r12, 96(%rdi)
	mov %r13, 104(%rdi)
	mov %r14, 112(%rdi)
	mov %r15, 120(%rdi)
	.endm

	.text
	.code64
	// void svm_run(u64 vmcb): VMRUN and nothing else. GIF is 0 afterwards.
	.globl svm_run
svm_run:
	push_preserved
	mov %rdi, %rax
	load_l2
	vmrun %rax
	store_l2
	pop_preserved
	ret

	// u64 vmx_enter(u64 how): VMLAUNCH (0), VMRESUME (1), or VMLAUNCH behind MOV SS (2). Returns
	// RFLAGS & (CF | ZF) if that failed, 0 after an exit to vmx_exit or vmx_exit_anyhow.
	.globl vmx_enter
vmx_enter:
	push_preserved
	mov %rsp, l1_saved(%rip)
	mov %cr3, %rax
	mov %rax, l1_saved + 8(%rip)
	mov %cr4, %rax
	mov %rax, l1_saved + 16(%rip)
	sgdt l1_saved + 24(%rip)
	sidt l1_saved + 40(%rip)
	cmp $1, %rdi
	load_l2
	mov l2_registers(%rip), %rax
	je 1f
	ja 2f
	vmlaunch
	jmp 3f
1:	vmresume
	jmp 3f
2:	mov l1_ss(%rip), %ss
	vmlaunch
3:	pushfq
	pop %rax
	and $0x41, %eax
	jmp returns

	// HOST_RIP. L1's state is as VMX made it; HOST_RSP is l1_saved's address.
	.globl vmx_exit
vmx_exit:
	store_l2
	mov (%rsp), %rsp
	jmp exited

	// HOST_RIP for a host state of anything, as long as CR3 and RIP hold: nothing is pushed before RSP
	// is back.
	.globl vmx_exit_anyhow
vmx_exit_anyhow:
	store_l2
	mov l1_saved(%rip), %rsp
	lgdt l1_saved + 24(%rip)
	lidt l1_saved + 40(%rip)
	mov l1_ss(%rip), %ds
	mov l1_ss(%rip), %es
	mov l1_ss(%rip), %ss
	xor %eax, %eax
	mov %eax, %fs
	mov %eax, %gs
	push $8
	lea 1f(%rip), %rax
	push %rax
	lretq
1:	mov l1_saved + 8(%rip), %rax
	mov %rax, %cr3
	mov l1_saved + 16(%rip), %rax
	mov %rax, %cr4
exited:
	xor %eax, %eax
returns:
	pop_preserved
	ret

	.section .rodata, "a", @progbits
l1_ss:
	.word 0x10 // DATA

	// RSP, CR3, CR4, GDTR and IDTR of L1; below them the stack of what comes in before RSP is back.
	.bss
	.balign 16
	.skip 4096
	.globl l1_saved
l1_saved:
	.skip 64
	.section .note.GNU-stack, "", @progbits
