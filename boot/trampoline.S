// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Where the other CPUs begin (SDM vol. 3, "MP Initialization Protocol"): a copy of this code in a
// page below 1 MiB takes each from real mode to 64-bit mode on the boot tables, then it goes on in
// the image, on a stack of its own. Many may be in it at once: nothing is written but the ticket.

#include "offsets.h"
#include <arch/x86/desc.h>

#define HERE(symbol) (symbol - trampoline_start)

        .section .rodata.trampoline, "a", @progbits
        .balign 16
        .globl  trampoline_start, trampoline_end, trampoline_args
        .code16
// CS = the page's segment, IP = 0.
trampoline_start:
        cli
        cld
        mov     %cs, %ax
        mov     %ax, %ds
        movzwl  %ax, %ebx
        shl     $4, %ebx
        lgdtl   HERE(trampoline_args) + TRAMPOLINE_GDT_LIMIT
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   *HERE(trampoline_args) + TRAMPOLINE_JUMP32

        .code32
// EBX = the page.
trampoline32:
        mov     $GDT_DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     HERE(trampoline_args) + TRAMPOLINE_CR4(%ebx), %eax
        mov     %eax, %cr4
        mov     HERE(trampoline_args) + TRAMPOLINE_CR3(%ebx), %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx // EFER: LME, NXE
        rdmsr
        or      $0x900, %eax
        wrmsr
        mov     $0x80010033, %eax // PG, WP, NE, ET, MP, PE; not CD and NW, as INIT left them
        mov     %eax, %cr0
        ljmpl   *HERE(trampoline_args) + TRAMPOLINE_JUMP64(%ebx)

        .code64
trampoline64:
        mov     $ap_start64, %rax
        jmp     *%rax

        .balign 8
trampoline_gdt:
        .quad   0, GDT_CODE_DESCRIPTOR, GDT_DATA_DESCRIPTOR, GDT_CODE32_DESCRIPTOR

// struct trampoline_args: core/smp.c fills in CR3 and CR4, and adds the page's address to the other
// three.
trampoline_args:
        .long   0, 0
        .short  0, 31
        .long   HERE(trampoline_gdt)
        .long   HERE(trampoline32), GDT_CODE32
        .long   HERE(trampoline64), GDT_CODE
trampoline_end:

        .section .init.text, "ax", @progbits
// Draws a ticket, which is a struct cpu with a stack. One that comes when there are no tickets left
// halts.
ap_start64:
        mov     host_cr3(%rip), %rax
        mov     %rax, %cr3
        mov     $1, %edi
        lock xadd %edi, ap_ticket(%rip)
        cmp     ap_limit(%rip), %edi
        jae     1f
        mov     ap_cpus(, %rdi, 8), %rdi
        mov     CPU_STACK_TOP(%rdi), %rsp
        xor     %ebp, %ebp
        call    cpu_main_ap
1:      cli
        hlt
        jmp     1b

        .section .note.GNU-stack, "", @progbits
