// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The IDT's entry points: one of 16 bytes for each vector. All save a struct trap_frame and call
// trap_handle(frame) with it.

#include <arch/x86/desc.h>

#define MSR_GS_BASE 0xc0000101
#define FRAME_BELOW_HARDWARE (17 * 8) // struct trap_frame up to rip
// #DF #TS #NP #SS #GP #PF #AC #CP #VC #SX bring an error code of their own.
#define ERROR_CODE_VECTORS 0x60227d00
#define HARDWARE_FRAME (5 * 8)

        .macro save_registers
        push    %rax
        push    %rbx
        push    %rcx
        push    %rdx
        push    %rsi
        push    %rdi
        push    %rbp
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        cld
        .endm

        .text
        .balign 16
        .globl  trap_stubs
trap_stubs:
        .set    vector, 0
        .rept   256
        .balign 16
        .if     vector > 31 || !((ERROR_CODE_VECTORS >> (vector & 31)) & 1)
        push    $0
        .endif
        push    $vector
        .if     vector == 2 || vector == 8 || vector == 18
        jmp     trap_on_ist
        .else
        jmp     trap_common
        .endif
        .set    vector, vector + 1
        .endr

trap_common:
        save_registers
        mov     %rsp, %rdi
        call    trap_handle
trap_return:
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rbp
        pop     %rdi
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rbx
        pop     %rax
        add     $16, %rsp
        iretq

// NMI, #DF, #MC come anywhere, also while GS is a guest's: the word at the top of their stack says
// which CPU this is.
trap_on_ist:
        save_registers
        mov     $MSR_GS_BASE, %ecx
        rdmsr
        shl     $32, %rdx
        lea     (%rdx, %rax), %rbx
        mov     FRAME_BELOW_HARDWARE + HARDWARE_FRAME(%rsp), %rax
        mov     %rax, %rdx
        shr     $32, %rdx
        wrmsr
        mov     %rsp, %rdi
        call    trap_handle
        mov     %rbx, %rax
        mov     %rbx, %rdx
        shr     $32, %rdx
        mov     $MSR_GS_BASE, %ecx
        wrmsr
        jmp     trap_return

        .section .note.GNU-stack, "", @progbits
