// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Into S3, and the way back: from real mode at the waking vector to 64-bit mode and the caller.

#include "asm.inc"

#define WAKE 0x6008 // where C copies s3_wake to: CS 600h, IP 8
#define L(x) (WAKE + (x) - s3_wake)

	// u32 s3_sleep(u16 port, u16 value): 1 after waking, 0 if nothing happens
	.text
	.code64
	.globl s3_sleep
s3_sleep:
	push_preserved
	mov %rsp, saved_rsp
	sidt saved_idt
	mov %esi, %eax
	mov %edi, %edx
	out %ax, %dx
	mov $0x20000000, %ecx
1:	pause
	loop 1b
	xor %eax, %eax
	jmp back

	.code16
	.globl s3_wake, s3_wake_end
s3_wake:
	cli
	xor %bx, %bx
	mov %bx, %ds
	mov %cs, %cx
	mov %cr0, %ebp
	lgdtl L(wake_gdt)
	mov $0x11, %eax
	mov %eax, %cr0
	ljmpl $0x18, $wake32
wake_gdt:
	.word 0x6f
	.long gdt
s3_wake_end:

	.code32
wake32:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	movzwl %cx, %ecx
	mov %ecx, s3_cs
	mov %ebp, s3_cr0
	mov $stack_end, %esp
	call enter_long
	.code64
	lidt saved_idt
	mov saved_rsp, %rsp
	mov $1, %eax
back:
	pop_preserved
	ret

	.bss
	.balign 16
	.skip 64
stack_end:
saved_rsp:
	.skip 8
saved_idt:
	.skip 16
	.globl s3_cs, s3_cr0
s3_cs:
	.skip 4
s3_cr0:
	.skip 4
