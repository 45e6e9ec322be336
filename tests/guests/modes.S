// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The ways from 64-bit mode into the others and back, and the probes that run there. All share the
// block at BLOCK (struct block in modes.c), which is mapped to itself in every mode.

#include "asm.inc"

#define LOW 0x8000
#define L(x) (LOW + x - modes_low)
#define STACK 0x6ff0
#define BLOCK 0x7000

#define b_kind BLOCK + 0
#define b_cr3 BLOCK + 4
#define b_cr4 BLOCK + 8
#define b_ram BLOCK + 12
#define b_mmio BLOCK + 16
#define b_bad BLOCK + 20
#define b_resume BLOCK + 24
#define r_ram BLOCK + 28
#define r_mmio BLOCK + 32
#define r_mmio2 BLOCK + 36
#define r_cpuid BLOCK + 40
#define r_port BLOCK + 44
#define r_msr BLOCK + 48
#define r_error BLOCK + 52
#define r_cr2 BLOCK + 56
#define r_soft BLOCK + 60
#define r_irq BLOCK + 64
#define r_into BLOCK + 68
#define r_bound BLOCK + 72
#define r_string BLOCK + 76
#define r_done BLOCK + 80
#define r_cr0 BLOCK + 84
#define r_extra BLOCK + 88
#define b_bounds BLOCK + 104

// The same source for 16-bit and 32-bit code: the assembler adds the prefixes. Far pointers are
// DS's.
	.macro PROBE
	mov %cr0, %eax
	mov %eax, r_cr0
	mov b_ram, %ebx
	mov (%ebx), %eax
	mov %eax, r_ram
	movl $0xcafe0001, 4(%ebx)
	xor %eax, %eax
	cpuid
	mov %ebx, r_cpuid
	mov $0xa5, %al
	out %al, $0x21
	xor %eax, %eax
	in $0x21, %al
	mov %eax, r_port
	mov $0xff, %al
	out %al, $0x21
	mov $0x277, %ecx
	rdmsr
	mov %eax, r_msr
	int $0x40
	mov $0x7f, %al
	add $1, %al // overflow
	into
	mov $1000, %eax
	bound %eax, b_bounds
	mov b_mmio, %ebx
	test %ebx, %ebx
	jz 3f
	mov 0x30(%ebx), %eax
	mov %eax, r_mmio
	movl $0x5a000000, 0x310(%ebx)
	orb $0, r_done // RAM between, by a byte
	mov 0x310(%ebx), %eax
	mov %eax, r_mmio2
	lea 0x310(%ebx), %esi
	mov $r_string, %edi
	mov $1, %ecx
	cld
	rep movsl %ds:(%esi), %es:(%edi)
	movl $0x44041, 0x300(%ebx) // to itself, vector 41h
	sti
	hlt
	cli
3:	mov b_bad, %ebx
	test %ebx, %ebx
	jz 4f
	movl $4f, b_resume // of 32-bit code only
	mov (%ebx), %eax
4:	movl $1, r_done
	.endm

	.text
	.code64
	.globl mode_run
mode_run:
	push_preserved
	mov %rsp, saved_rsp(%rip)
	mov $STACK, %esp
	leave_long
	mov b_cr4, %eax
	mov %eax, %cr4
	mov b_cr3, %eax
	mov %eax, %cr3
	lidt idt32_pointer
	mov b_kind, %eax
	cmp $5, %eax
	je long_mode
	cmpl $0, b_cr3
	je 1f
	mov %cr0, %ecx
	or $0x80000000, %ecx
	mov %ecx, %cr0
1:	cmp $2, %eax
	jae to16
	PROBE
back32:
	mov %cr0, %eax
	and $0x7fffffff, %eax
	mov %eax, %cr0
	mov $STACK, %esp
	call enter_long
	.code64
	lidt idt64_pointer(%rip)
	mov saved_rsp(%rip), %rsp
	pop_preserved
	ret

	// Long mode with the CR3 and CR4 of the block; CR4.LA57 is set here, where paging is off.
	.code32
long_mode:
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000000, %eax
	mov %eax, %cr0
	ljmp $0x08, $1f
	.code64
1:	lidt idt64_pointer(%rip)
	lea long_stack_top(%rip), %rsp
	call probe64
	mov $STACK, %esp
	pushq $0x18
	lea 2f(%rip), %rax
	push %rax
	lretq
	.code32
2:	mov %cr0, %eax
	and $0x7fffffff, %eax
	mov %eax, %cr0
	jmp back32

	// 32-bit handlers.
	.globl fault32, soft32, irq32, into32, bound32
fault32:
	pop r_error
	push %eax
	mov %cr2, %eax
	mov %eax, r_cr2
	mov b_resume, %eax
	mov %eax, 4(%esp)
	pop %eax
	iretl
soft32:
	incl r_soft
	iretl
into32:
	incl r_into
	iretl
bound32: // a fault: go on behind the 32-bit BOUND (2 + displacement), or the 16-bit one with its prefix
	incl r_bound
	addl $6, (%esp)
	cmpl $2, b_kind
	jb 1f
	subl $1, (%esp) // 66 62 06 disp16
1:	iretl
irq32:
	incl r_irq
	push %eax
	mov b_mmio, %eax
	movl $0, 0xb0(%eax)
	pop %eax
	iretl

to16:
	je 1f
	ljmp $0x20, $L(to_real)
1:	ljmp $0x20, $L(protected16)

	// --- 16-bit code, copied to LOW ---
	.globl modes_low, modes_low_end
modes_low:
	.code16
protected16:
	PROBE
	ljmpl $0x18, $back32

to_real:
	cmpb $4, b_kind // 4: with 4 GiB limits, which stay
	je 1f
	mov $0x28, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
1:	lidtl L(ivt_pointer)
	mov %cr0, %eax
	and $~1, %eax
	mov %eax, %cr0
	ljmp $0, $L(real)
real:
	xor %ax, %ax
	mov %ax, %ss
	mov %ax, %ds
	mov %ax, %es
	PROBE
	// segments: DS:0010h of 1000h is 10010h; strings and far calls
	mov $0x1000, %ax
	mov %ax, %ds
	mov 0x10, %eax
	xor %bx, %bx
	mov %bx, %ds
	mov %eax, r_extra
	mov $0x1000, %ax
	mov %ax, %es
	mov $0x20, %di
	mov $3, %cx
	mov $0x21, %dx
	rep insb
	mov %bx, %es
	mov %di, r_extra + 4
	mov %cx, r_extra + 6
	pusha
	popa
	lcall $0x0, $L(far_function)
	mov %cs, %ax
	mov %ax, r_extra + 10
	pushf
	pop %ax
	mov %ax, r_extra + 12
	lidtl L(idt32_low)
	lgdtl L(gdt_low)
	mov %cr0, %eax
	or $1, %eax
	mov %eax, %cr0
	ljmpl $0x18, $from_real

far_function:
	movw $0x1234, r_extra + 8
	lret

	.globl soft16, irq16, into16, bound16
soft16:
	incl r_soft
	iret
into16:
	incl r_into
	iret
bound16:
	incl r_bound
	push %bp
	mov %sp, %bp
	addw $5, 2(%bp)
	pop %bp
	iret
irq16:
	incl r_irq
	push %eax
	mov b_mmio, %eax
	movl $0, 0xb0(%eax)
	pop %eax
	iret

ivt_pointer:
	.word 0x3ff
	.long 0
idt32_low:
	.word 0x7ff
	.long idt32
gdt_low:
	.word 0x6f
	.long gdt
modes_low_end:

	.code32
from_real:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	jmp back32

	.data
	.globl idt32_pointer
idt32_pointer:
	.word 0x7ff
	.quad idt32
idt64_pointer:
	.word 0xfff
	.quad idt
	.bss
	.balign 16
	.globl idt32
idt32:
	.skip 2048
saved_rsp:
	.quad 0
	.balign 16
	.skip 8192
long_stack_top:
	.section .note.GNU-stack, "", @progbits
