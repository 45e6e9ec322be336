// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The exception table: an instruction that may fault, and where to go on if it does (core/idt.c).
// For use in asm templates.

#pragma once

// If the instruction at label `insn` faults (any vector below 32 but NMI, #DF and #MC), execution
// goes on at label `fixup`.
#define EXTABLE(insn, fixup)                    \
    ".pushsection .extable, \"a\", @progbits\n" \
    ".long " insn " - ., " fixup " - .\n"       \
    ".popsection\n"
