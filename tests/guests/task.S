// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The 32-bit side of task.c: the way there and back, what the main task does, the other tasks, and
// the handlers of the faults.

#include "asm.inc"

#define SUB 0x60
#define GATE 0x68
#define SUB16 0x70
#define ABSENT 0x78
#define SHORT 0x80
#define MAIN 0x58

	.text
	.code64
	.globl task_run
task_run: // (the step, CR3 or 0, CR4)
	push_preserved
	mov %rsp, saved_rsp(%rip)
	mov %edi, step(%rip)
	mov %esi, step_cr3(%rip)
	mov %edx, step_cr4(%rip)
	mov $main_stack_top, %esp
	leave_long
	lgdt gdt32_pointer
	lidt idt32_pointer
	mov step_cr4, %eax
	mov %eax, %cr4
	mov step_cr3, %eax
	test %eax, %eax
	jz 1f
	mov %eax, %cr3
	mov %cr0, %ecx
	or $0x80000000, %ecx
	mov %ecx, %cr0
1:	mov $MAIN, %eax
	ltr %ax
	mov $0x5a5a0001, %ebx
	mov $0x5a5a0002, %esi
	mov $0x5a5a0003, %edi
	mov $0x5a5a0004, %ebp
	call *step
	mov %cr3, %eax
	mov %eax, main_cr3
	xor $0x5a5a0001, %ebx
	xor $0x5a5a0002, %esi
	xor $0x5a5a0003, %edi
	xor $0x5a5a0004, %ebp
	or %esi, %ebx
	or %edi, %ebx
	or %ebp, %ebx
	mov %ebx, main_lost
	xor %eax, %eax
	str %ax
	mov %eax, main_tr
	mov %cr0, %eax
	mov %eax, main_cr0
	and $0x7ffffff7, %eax
	mov %eax, %cr0
	pushf
	pop main_flags
	push $2
	popf
	call enter_long
	.code64
	lidt idt64_pointer(%rip)
	mov saved_rsp(%rip), %rsp
	pop_preserved
	ret

	.code32
	.globl step_call, step_gate, step_jmp, step_int, step_int3, step_fault, step_call16, step_absent, step_short, step_busy, step_iret
step_call:
	lcall $SUB, $0xf4f4f4f4
	ret
step_gate:
	lcall $GATE, $0xf4f4f4f4
	ret
step_jmp:
	ljmp $SUB, $0xf4f4f4f4
	ret
step_int:
	int $0x50
	ret
step_int3:
	int3
	ret
step_fault: // #GP(1230h)
	mov $0x1233, %eax
	mov %eax, %es
	ret
step_call16:
	lcall $SUB16, $0
	ret
step_absent:
	lcall $ABSENT, $0
	ret
step_short:
	lcall $SHORT, $0
	ret
step_busy:
	ljmp $MAIN, $0
	ret
step_iret: // NT is set, and the main TSS's link leads to a TSS that is not busy
	pushf
	orl $0x4000, (%esp)
	popf
	iretl
	pushf
	andl $~0x4000, (%esp)
	popf
	ret

	// What another task sees. It goes on behind its IRET or JMP when it is switched to again.
	.macro SEE
	mov %esp, seen_esp
	mov %eax, seen_eax
	pushf
	pop seen_flags
	xor %eax, %eax
	str %ax
	mov %eax, seen_tr
	mov %cr0, %eax
	mov %eax, seen_cr0
	mov %cr3, %eax
	mov %eax, seen_cr3
	sldt %eax
	mov %eax, seen_ldt
	mov %gs, %eax
	mov %eax, seen_gs
	incl seen_count
	.endm
	.globl sub_iret, sub_jmp, sub_fault, sub_abandon, sub16
sub_iret:
	SEE
	iretl
	jmp sub_iret
sub_jmp:
	SEE
	ljmp $MAIN, $0xf4f4f4f4
	jmp sub_jmp
sub_fault:
	pop seen_error
	SEE
	addl $2, main_tss + 32 // over the MOV
	iretl
	jmp sub_fault
sub_abandon: // instead of the task that could not begin
	pop seen_error
	incl seen_count
	andb $~2, gdt32 + MAIN + 5
	ljmp $MAIN, $0
sub16:
	SEE
	iretl

	// DS may be what was wrong.
	.macro FAULT name, vector, error = 1
	.globl \name
\name:
	push %eax
	mov $0x10, %eax
	mov %eax, %ds
	pop %eax
	.if \error
	pop seen_error
	.endif
	movl $\vector, seen_vector
	push %eax
	xor %eax, %eax
	str %ax
	mov %eax, fault_tr
	mov %dr6, %eax
	mov %eax, fault_dr6
	mov skip, %eax
	add %eax, 4(%esp)
	pop %eax
	iretl
	.endm
	FAULT on_db, 1, 0
	FAULT on_ts, 10
	FAULT on_np, 11
	FAULT on_ss, 12
	FAULT on_gp, 13

	.data
	.balign 4
gdt32_pointer:
	.word 0xaf
	.long gdt32
idt32_pointer:
	.word 0x7ff
	.long idt32
idt64_pointer:
	.word 0xfff
	.quad idt
	.bss
	.balign 16
	.macro WORDS names:vararg
	.irp name, \names
	.globl \name
\name:
	.long 0
	.endr
	.endm
	WORDS seen_esp, seen_eax, seen_flags, seen_tr, seen_cr0, seen_cr3, seen_ldt, seen_gs, seen_count, seen_error
	WORDS seen_vector, fault_tr, fault_dr6, skip, main_cr3, main_lost, main_tr, main_cr0, main_flags
step:
	.long 0
step_cr3:
	.long 0
step_cr4:
	.long 0
	.balign 8
saved_rsp:
	.quad 0
	.skip 4096
main_stack_top:
	.section .note.GNU-stack, "", @progbits
