// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// fuzz-tests: test_vmcs12_check
//
// The checks of VM entry on a VMCS12 of which any fields hold anything: they change nothing but
// what is still due to be checked, and say the same twice.

#define main unit_main
#include "tests/unit/test_vmcs12_check.c"
#undef main
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    static struct nested before;
    enum result first;

    input.at = data;
    input.left = size;
    setup(NULL);
    while (input.left) {
        u8 number = (u8)take(1), how = (u8)take(1);
        u64 *field = &nested.vmcs.field[number % VMCS12_FIELDS];

        *field = how < 64   ? *field ^ 1ull << how
                 : how < 80 ? how & 15
                 : how < 96 ? *field + (u64)how - 88
                            : take(8);
    }
    before = nested;
    first = check();
    before.due = nested.due;
    FUZZ_CHECK(memcmp(&before, &nested, sizeof(nested)) == 0);
    FUZZ_CHECK(check() == first);
    return 0;
}
