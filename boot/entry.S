// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// From GRUB to C: works out where the image is, builds the first page tables (identity and physmap
// of the first 4 GiB, the image at IMAGE_BASE; W^X comes with mmu/host.c), chooses 4 or 5 levels,
// and goes to 64-bit mode (SDM vol. 3, "Initializing IA-32e Mode"). Everything here runs once and
// is given back.

#include <arch/x86/desc.h>

#define IMAGE_BASE 0xffffffff80000000
#define MULTIBOOT_MAGIC 0x36d76289
#define PAGE_FLAGS 0x03 // present, writable
#define LARGE_FLAGS 0x83
#define BOOT_STACK 16384

// Where a symbol is, EBP being the physical address of IMAGE_BASE.
#define PHYS(symbol) (symbol - IMAGE_BASE)(%ebp)

        .section .init.text, "ax", @progbits
        .code32

// EAX = MULTIBOOT_MAGIC, EBX = information; protected mode, paging and interrupts off. There is no
// stack yet: the reserved second word of the information serves for the one CALL.
        .globl  _start
_start: cli
        cld
        lea     8(%ebx), %esp
        call    1f
1:      pop     %ebp
        sub     $(1b - IMAGE_BASE), %ebp
        lea     PHYS(boot_stack_top), %esp
        mov     $(message_loader - IMAGE_BASE), %esi
        cmp     $MULTIBOOT_MAGIC, %eax
        jne     boot_fail
        mov     %ebx, PHYS(boot_information)
        call    check_cpu
        call    build_tables
        call    choose_levels // EDX = root, ESI = CR4

        mov     %esi, %cr4
        mov     %edx, %cr3
        mov     $0xc0000080, %ecx // EFER: LME, NXE
        rdmsr
        or      $0x900, %eax
        wrmsr
        mov     $0x80010033, %eax // PG, WP, NE, ET, MP, PE
        mov     %eax, %cr0

        lea     PHYS(boot_gdt), %eax
        mov     %eax, PHYS(boot_gdtr + 2)
        lgdt    PHYS(boot_gdtr)
        pushl   $GDT_CODE
        lea     PHYS(start64_low), %eax
        push    %eax
        lret

// Long mode (CPUID.80000001H:EDX[29]) and NX ([20]) are what the tables need; the other features
// are core/features.c's.
check_cpu:
        mov     $(message_cpu - IMAGE_BASE), %esi
        mov     $0x80000000, %eax
        cpuid
        cmp     $0x80000001, %eax
        jb      boot_fail
        mov     $0x80000001, %eax
        cpuid
        and     $0x20100000, %edx
        cmp     $0x20100000, %edx
        jne     boot_fail
        ret

// The .bss is zeroed: only low words are written.
build_tables:
        lea     PHYS(boot_pd_low), %edi // 2,048 entries of 2 MiB
        mov     $LARGE_FLAGS, %eax
1:      mov     %eax, (%edi)
        add     $8, %edi
        add     $0x200000, %eax
        jnc     1b

        lea     PHYS(boot_pd_low + PAGE_FLAGS), %eax
        lea     PHYS(boot_pdpt_low), %edi
        mov     $4, %ecx
1:      mov     %eax, (%edi)
        add     $8, %edi
        add     $4096, %eax
        loop    1b

        lea     LARGE_FLAGS(%ebp), %eax // the image: 4 MiB
        mov     %eax, PHYS(boot_pd_image)
        add     $0x200000, %eax
        mov     %eax, PHYS(boot_pd_image + 8)
        lea     PHYS(boot_pd_image + PAGE_FLAGS), %eax
        mov     %eax, PHYS(boot_pdpt_image + 510 * 8)

        lea     PHYS(boot_pdpt_low + PAGE_FLAGS), %eax
        mov     %eax, PHYS(boot_pml4)           // identity
        mov     %eax, PHYS(boot_pml4 + 256 * 8) // PHYSMAP_BASE
        lea     PHYS(boot_pdpt_image + PAGE_FLAGS), %eax
        mov     %eax, PHYS(boot_pml4 + 511 * 8)
        lea     PHYS(boot_pml4 + PAGE_FLAGS), %eax
        mov     %eax, PHYS(boot_pml5)
        mov     %eax, PHYS(boot_pml5 + 511 * 8)
        ret

// Returns EDX = the root table, ESI = CR4: 5 levels if the CPU has them (CPUID.07H:ECX[16]) and no
// option `la57=off` is given.
choose_levels:
        lea     PHYS(boot_pml4), %edx
        mov     $0x20, %esi // PAE
        push    %edx
        xor     %eax, %eax
        cpuid
        cmp     $7, %eax
        jb      1f
        mov     $7, %eax
        xor     %ecx, %ecx
        cpuid
        bt      $16, %ecx
        jnc     1f
        call    find_la57_off
        jc      1f
        pop     %edx
        lea     PHYS(boot_pml5), %edx
        mov     $0x1020, %esi // LA57, PAE
        ret
1:      pop     %edx
        ret

// CF = 1 if the command line (Multiboot2 tag 1) has the word "la57=off". Clobbers EAX, EBX, ECX,
// EDI.
find_la57_off:
        push    %esi
        mov     PHYS(boot_information), %ebx
        mov     (%ebx), %ecx // total size
        add     %ebx, %ecx
        add     $8, %ebx
1:      cmp     %ecx, %ebx
        jae     4f
        cmpl    $1, (%ebx)
        je      2f
        mov     4(%ebx), %eax
        cmp     $8, %eax
        jb      4f
        add     $7, %eax
        and     $~7, %eax
        add     %eax, %ebx
        jmp     1b

2:      add     $7, %ebx
3:      inc     %ebx // at the beginning of a word
        cmpl    $0x3735616c, (%ebx) // "la57"
        jne     5f
        cmpl    $0x66666f3d, 4(%ebx) // "=off"
        jne     5f
        testb   $0xdf, 8(%ebx) // a space or the end
        jz      6f
5:      mov     (%ebx), %al // on to the next one
        test    %al, %al
        jz      4f
        cmp     $0x20, %al
        je      3b
        inc     %ebx
        jmp     5b
4:      clc
        pop     %esi
        ret
6:      stc
        pop     %esi
        ret

// ESI = offset of a message. Says it on both serial ports, as the firmware set them up, and stops.
boot_fail:
        add     %ebp, %esi
1:      lodsb
        test    %al, %al
        jz      3f
        mov     %al, %bl
        mov     $0x2f8, %edx
        call    2f
        mov     $0x3f8, %edx
        call    2f
        jmp     1b
2:      mov     $0x10000, %ecx
        add     $5, %edx
4:      in      %dx, %al
        test    $0x20, %al
        loopz   4b
        sub     $5, %edx
        mov     %bl, %al
        out     %al, %dx
        ret
3:      hlt
        jmp     3b

        .code64
start64_low:
        mov     %ebp, %ebp // image_phys_offset, zero-extended
        mov     $start64, %rax
        jmp     *%rax

// At IMAGE_BASE: flat segments, the boot stack, GS and FS bases for this_cpu() and libfdt's canary,
// then C.
start64:
        mov     $GDT_DATA, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        xor     %eax, %eax
        mov     %eax, %fs
        mov     %eax, %gs
        mov     %rbp, image_phys_offset(%rip)
        mov     $boot_stack_top, %rsp
        movl    boot_information(%rip), %edi
        xor     %ebp, %ebp
        call    boot_main
1:      hlt
        jmp     1b

// Leaves the boot stack: goes on in fn(void) on the stack whose top is `top`. RDI = top, RSI = fn.
        .globl  boot_switch_stack
boot_switch_stack:
        mov     %rdi, %rsp
        xor     %ebp, %ebp
        call    *%rsi
        ud2

        .section .init.data, "aw", @progbits
message_loader:
        .asciz  "Nestor: not started by a Multiboot2 loader\r\n"
message_cpu:
        .asciz  "Nestor: this CPU lacks long mode (CPUID.80000001H:EDX[29]) or NX (EDX[20])\r\n"
        .balign 8
boot_gdt:
        .quad   0
        .quad   GDT_CODE_DESCRIPTOR
        .quad   GDT_DATA_DESCRIPTOR
        .balign 8
        .short  0, 0, 0
boot_gdtr:
        .short  23
        .quad   0

        .section .bss.init, "aw", @nobits
        .balign 4096
        .globl  boot_pml4, boot_pml5
boot_pml5:
        .skip   4096
boot_pml4:
        .skip   4096
boot_pdpt_low:
        .skip   4096
boot_pdpt_image:
        .skip   4096
boot_pd_image:
        .skip   4096
boot_pd_low:
        .skip   4 * 4096
        .globl  boot_stack_top
        .skip   BOOT_STACK
boot_stack_top:
boot_information:
        .skip   8

        .section .note.GNU-stack, "", @progbits
