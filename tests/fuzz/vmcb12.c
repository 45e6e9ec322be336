// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// fuzz-tests: test_vmcb12_check
//
// VMRUN's consistency checks on a VMCB12 of which any bytes hold anything, for a guest of any
// limits: they change nothing, and say what the unit test's second reading of the manual says.

#define main unit_main
#include "tests/unit/test_vmcb12_check.c"
#undef main
#include "fuzz.h"

// The limits that the second reading knows are the usual ones.
static void take_limits(void)
{
    limits.cr4 = take(8);
    limits.efer = take(8) | EFER_SVME;
    limits.phys_bits = (u8)(36 + take(1) % 17);
    limits.long_mode = take(1) & 1;
    limits.nested_paging = take(1) & 1;
    limits.host_paging = take(1) & 1;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    static struct vmcb before;
    const char *first;
    bool odd;

    input.at = data;
    input.left = size;
    make_legal();
    odd = take(1) & 1;
    if (odd)
        take_limits();
    while (input.left) {
        size_t offset = take(2) % (sizeof(vmcb) - 8);
        u8 how = (u8)take(1), *at = (u8 *)&vmcb + offset;
        u64 value;

        memcpy(&value, at, 8);
        value = how < 64   ? value ^ 1ull << how
                : how < 80 ? how & 15
                : how < 96 ? value + (u64)how - 88
                           : take(8);
        memcpy(at, &value, 8);
    }
    before = vmcb;
    first = vmcb12_check(&vmcb, &limits);
    FUZZ_CHECK(memcmp(&before, &vmcb, sizeof(vmcb)) == 0);
    FUZZ_CHECK(vmcb12_check(&vmcb, &limits) == first);
    FUZZ_CHECK(odd || !first == expected(&vmcb));
    return 0;
}
