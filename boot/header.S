// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The Multiboot2 header (Multiboot2 specification, "OS image format"): what Nestor asks of GRUB, on
// BIOS and UEFI alike.

#define HEADER_MAGIC 0xe85250d6
#define TAG_OPTIONAL 1

        .section .multiboot, "a", @progbits
        .balign 8
header:
        .long   HEADER_MAGIC, 0, multiboot_header_end - header
        .long   -(HEADER_MAGIC + (multiboot_header_end - header))

        // Information: command line, modules, memory map, RSDP 1 and 2, EFI memory map, load base.
        .balign 8
0:      .short  1, TAG_OPTIONAL
        .long   1f - 0b
        .long   1, 3, 6, 14, 15, 17, 21
1:
        // Modules on page boundaries.
        .balign 8
        .short  6, 0
        .long   8

        // Anywhere from 1 MiB to 4 GiB on a 2 MiB boundary, low by preference.
        .balign 8
        .short  10, 0
        .long   24
        .long   0x100000, 0xffffffff, 0x200000, 1

        .balign 8
        .short  0, 0
        .long   8
        .globl  multiboot_header_end
multiboot_header_end:

        .section .note.GNU-stack, "", @progbits
