// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Files that the build puts into the image: the built-in configuration (core/default.dts, or make
// CONFIG=my.dts) and the AML of the guests' DSDT (devices/dsdt.asl).

        .section .rodata.blobs, "a", @progbits
        .balign 16
        .globl  builtin_dtb_start, builtin_dtb_end
builtin_dtb_start:
        .incbin "builtin.dtb"
builtin_dtb_end:

        .balign 16
        .globl  dsdt_aml, dsdt_aml_end
dsdt_aml:
        .incbin "dsdt.aml"
dsdt_aml_end:

        .section .note.GNU-stack, "", @progbits
