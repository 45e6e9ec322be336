// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small guest's way from its loader (32-bit protected mode, EBX = Multiboot information), or from
// a SIPI (real mode), to 64-bit C.

#define LOW 0x8000 // where the AP's first code is copied to
#define L(x) (LOW + x - low_start)

	.section .multiboot, "ax"
	.balign 4
	.long 0x1badb002, 0, -0x1badb002

	.text
	.code32
	.globl _start
_start:
	mov %eax, multiboot_magic
	mov %ebx, multiboot_info
	mov $stack_top, %esp
	movl $pdpt + 7, pml4
	mov $4, %ecx
1:	mov %ecx, %eax
	shl $12, %eax
	add $directories - 4096 + 7, %eax
	mov %eax, pdpt - 8(, %ecx, 8)
	loop 1b
	mov $2048, %ecx
2:	lea -1(%ecx), %eax
	shl $21, %eax
	or $0x87, %eax
	mov %eax, directories - 8(, %ecx, 8)
	loop 2b
	call enter_long
	.code64
	lea stack_top(%rip), %rsp
	mov $0x48, %eax
	ltr %ax
	call lib_main

	// From flat 32-bit mode without paging to 64-bit mode, behind the call. Changes EAX, ECX, EDX; the
	// stack holds 4 bytes less.
	.code32
	.globl enter_long
enter_long:
	mov $0x620, %eax // PAE, OSFXSR, OSXMMEXCPT
	mov %eax, %cr4
	mov $pml4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx
	rdmsr
	or $0x100, %eax // LME
	wrmsr
	mov $0x80000033, %eax // PG, NE, ET, MP, PE
	mov %eax, %cr0
	lgdt gdt_pointer
	ljmp $0x08, $1f
	.code64
1:	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	xor %eax, %eax
	mov %eax, %fs
	mov %eax, %gs
	mov (%rsp), %eax
	add $4, %rsp
	jmp *%rax

	// An AP: real mode at LOW.
	.code16
	.globl low_start, low_end
low_start:
	cli
	xor %ax, %ax
	mov %ax, %ds
	lgdtl L(low_gdt_pointer)
	mov $0x11, %eax
	mov %eax, %cr0
	ljmpl $0x18, $ap_start32
low_gdt_pointer:
	.word 0x6f
	.long gdt
low_end:

	.code32
ap_start32:
	mov $0x10, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $1, %edi
	lock xadd %edi, ap_count
	inc %edi // this CPU's number: 1 ...
	mov %edi, %eax
	shl $14, %eax
	lea ap_stacks(%eax), %esp // of 16 KiB each, the first one is for CPU 1
	call enter_long
	.code64
	mov %edi, %edi
	call ap_main
	ud2

	.globl gdt
	.data
	.balign 16
gdt:
	.quad 0
	.quad 0x00af9b000000ffff // 08 code, 64-bit
	.quad 0x00cf93000000ffff // 10 data
	.quad 0x00cf9b000000ffff // 18 code, 32-bit
	.quad 0x00009b000000ffff // 20 code, 16-bit, base 0
	.quad 0x000093000000ffff // 28 data, 64 KiB
	.quad 0x00cff3000000ffff // 30 user data
	.quad 0x00affb000000ffff // 38 user code, 64-bit
	.quad 0x00cffb000000ffff // 40 user code, 32-bit
	.quad 0x0000890000000067 // 48 TSS; lib_main completes it
	.quad 0
	.quad 0, 0, 0 // 58 spare
	.globl gdt_pointer
gdt_pointer:
	.word . - gdt - 1
	.quad gdt

	.bss
	.balign 4096
	.globl pml4
pml4:
	.skip 4096
pdpt:
	.skip 4096
	.globl directories
directories:
	.skip 4 * 4096
	.skip 65536
stack_top:
	.balign 16384
ap_stacks:
	.skip 16384 * 16
	.globl multiboot_info, multiboot_magic
multiboot_info:
	.quad 0
multiboot_magic:
	.quad 0
ap_count:
	.long 0
	.section .note.GNU-stack, "", @progbits
