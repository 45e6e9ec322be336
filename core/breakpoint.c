// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Which breakpoints an access hits, for accesses that Nestor makes in the guest's place. Pure.
// Intel SDM volume 3 sections 18.2.4, 18.2.5; AMD APM volume 2 section 13.1.1.

#include <arch/x86/regs.h>
#include <nestor/breakpoint.h>

static unsigned breakpoint_length(u64 dr7, unsigned n)
{
    static const u8 lengths[] = {1, 2, 8, 4};

    return lengths[dr7 >> (18 + 4 * n) & 3];
}

// The R/W field: 0 execution, 1 writes, 2 ports, 3 reads and writes.
static bool kind_fits(u64 dr7, unsigned n, enum breakpoint_access access)
{
    static const u8 kinds[] = {
        [BREAKPOINT_EXECUTE] = BIT(0),
        [BREAKPOINT_WRITE] = BIT(1) | BIT(3),
        [BREAKPOINT_READ] = BIT(3),
        [BREAKPOINT_PORT] = BIT(2),
    };

    return kinds[access] >> (dr7 >> (16 + 4 * n) & 3) & 1;
}

u64 breakpoint_hits(u64 dr7, const u64 dr[4], enum breakpoint_access access, u64 address,
                    unsigned size)
{
    u64 hits = 0;

    for (unsigned n = 0; n < 4; n++) {
        unsigned length = breakpoint_length(dr7, n);
        u64 first = dr[n] & ~(u64)(length - 1);

        if (dr7 >> (2 * n) & 3 && kind_fits(dr7, n, access) && address <= first + length - 1 &&
            first <= address + size - 1)
            hits |= DR6_B(n);
    }
    return hits;
}
