// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Names for code addresses, from the table that the build makes (boot/symbols.awk). The first of
// its two links has none.

#include <nestor/machine.h>
#include <nestor/page.h>

struct symbol {
    u32 offset; // from IMAGE_BASE, ascending
    u32 name;
};

extern const struct symbol symbol_table[] __attribute__((weak));
extern const u32 symbol_count __attribute__((weak));
extern const char symbol_names[] __attribute__((weak));
extern const char text_start[], text_end[];

const char *symbol_find(u64 address, u64 *offset)
{
    u32 low = 0, high, middle;

    if (address < (u64)text_start || address >= (u64)text_end || !&symbol_count)
        return NULL;
    high = symbol_count;
    while (low < high) { // the first symbol above address
        middle = (low + high) / 2;
        if (symbol_table[middle].offset + IMAGE_BASE > address)
            high = middle;
        else
            low = middle + 1;
    }
    if (low == 0)
        return NULL;
    *offset = address - IMAGE_BASE - symbol_table[low - 1].offset;
    return symbol_names + symbol_table[low - 1].name;
}
