// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Where the IDT's gates lead: struct trap on the stack, then trap_handle in C; and the calls that
// an exception may end.

#include "asm.inc"

	.text
	.code64
	.globl trap_stubs
	.balign 16
trap_stubs:
	.set vector, 0
	.rept 256
	.balign 16
	.if (vector != 8) && (vector != 10) && (vector != 11) && (vector != 12) && (vector != 13) && \
		(vector != 14) && (vector != 17) && (vector != 21)
	push $-1
	.endif
	push $vector
	jmp trap_common
	.set vector, vector + 1
	.endr

trap_common:
	push %rax
	push %rcx
	push %rdx
	push %rbx
	push %rbp
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	push %r12
	push %r13
	push %r14
	push %r15
	cld
	mov %rsp, %rdi
	mov %rsp, %rbx
	and $-16, %rsp
	call trap_handle
	mov %rbx, %rsp
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rbp
	pop %rbx
	pop %rdx
	pop %rcx
	pop %rax
	add $16, %rsp
	iretq

	// int try(void (*fn)(void *), void *arg): trap_handle ends it at try_end with RAX = vector and RSP
	// = try_rsp.
	.globl try, try_end
try:
	push_preserved
	pushfq
	mov %rsp, try_rsp(%rip)
	mov %rdi, %rax
	mov %rsi, %rdi
	call *%rax
	mov $-1, %rax
try_end:
	movq $0, try_rsp(%rip)
	popfq
	pop_preserved
	ret

	// Calls user_fn(user_arg) at CPL 3, which comes back by INT 0x80; called within try().
	.globl enter_user
enter_user:
	lea 1f(%rip), %rax
	push $0x33
	lea user_stack_top(%rip), %rcx
	push %rcx
	push $2
	push $0x3b
	push %rax
	iretq
1:	mov user_arg(%rip), %rdi
	call *user_fn(%rip)
	int $0x80

	.data
	.globl try_rsp, user_fn, user_arg
try_rsp:
	.quad 0
user_fn:
	.quad 0
user_arg:
	.quad 0
	.bss
	.balign 16
	.globl user_stack_top
	.skip 16384
user_stack_top:
	.section .note.GNU-stack, "", @progbits
