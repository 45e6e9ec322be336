# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
#
# Makes the table of function names (core/symbols.c) from `nm -n`: an array of {offset from
# IMAGE_BASE, offset of the name}, its length, and the names.

BEGIN {
    print ".section .note.GNU-stack,\"\",@progbits"
    print ".section .symbols,\"a\",@progbits\n.balign 8\n.globl symbol_table\nsymbol_table:"
}
($2 == "t" || $2 == "T") && $3 !~ /^\.|_(start|end)$|^\$/ {
    printf "\t.long 0x%s - 0xffffffff80000000, %d\n", $1, offset
    names = names "\t.asciz \"" $3 "\"\n"
    offset += length($3) + 1
    count++
}
END {
    print ".globl symbol_count\nsymbol_count: .long " count + 0
    print ".globl symbol_names\nsymbol_names:\n" names
}
