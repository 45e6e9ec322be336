// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The guest's vector and x87 registers, which stay in the CPU while Nestor runs: moves of a
// register whose number is known only at run time, and x87 instructions on a buffer. C is compiled
// without any of these registers, and the Makefile checks that nothing but this routine uses them.

    .macro stub insn:vararg
    .balign 16, 0xcc
    \insn
    ret
    .endm

// In: rdi = buffer, esi = stub: MMX reads 0..7 and writes 8..15, XMM 16.. and 32.., YMM 48.. and
// 64.., ZMM 80.. and 112.., x87 instruction (opcode - D8h) * 8 + ModRM.reg 144.. Out: the buffer or
// the register. Clobbers rax, rsi.
    .section .text.vector_stubs, "ax"
    .global vector_stubs
    .type vector_stubs, @function
    .balign 16
vector_stubs:
    shl $4, %rsi
    lea .Lfirst(%rip), %rax
    add %rsi, %rax
    jmp *%rax

    .balign 16, 0xcc
.Lfirst:
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    stub movq %mm\n, (%rdi)
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    stub movq (%rdi), %mm\n
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    stub movups %xmm\n, (%rdi)
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    stub movups (%rdi), %xmm\n
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    stub vmovups %ymm\n, (%rdi)
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    stub vmovups (%rdi), %ymm\n
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    stub vmovups %zmm\n, (%rdi)
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    stub vmovups %zmm\n, (%rdi)
    .endr
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    stub vmovups (%rdi), %zmm\n
    .endr
    .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    stub vmovups (%rdi), %zmm\n
    .endr
    .set .Lx87, 0
    .rept 64
    stub .byte 0xd8 + .Lx87 / 8, .Lx87 % 8 * 8 + 7
    .set .Lx87, .Lx87 + 1
    .endr
    .size vector_stubs, . - vector_stubs
