// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Put over both entry points of Linux' protected-mode code: writes the TSC to COM1, eight bytes,
// and ends the machine. So one run says at which tick the kernel's first instruction is executed.
// The same bytes are 32-bit and 64-bit code.

    .code32
    .text
    rdtsc
    mov %eax, %esi
    mov %edx, %edi
    mov $8, %ecx
1:  mov $0x3fd, %edx
2:  in (%dx), %al
    test $0x20, %al
    jz 2b
    mov %esi, %eax
    mov $0x3f8, %edx
    out %al, (%dx)
    shrd $8, %edi, %esi
    shr $8, %edi
    loop 1b
    mov $0x3fd, %edx
3:  in (%dx), %al
    test $0x40, %al
    jz 3b
    mov $0xf4, %edx
    xor %eax, %eax
    out %eax, (%dx)
4:  jmp 4b
    .section .note.GNU-stack, "", @progbits
