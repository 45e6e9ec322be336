// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Breakpoint matching for emulated accesses (core/breakpoint.c).

#pragma once

#include <nestor/types.h>

#define DR7_ENABLES BITS(7, 0)

// PORT only with CR4.DE.
enum breakpoint_access { BREAKPOINT_EXECUTE, BREAKPOINT_WRITE, BREAKPOINT_READ, BREAKPOINT_PORT };

// DR6's bits B0 to B3 for the enabled breakpoints that an access of `size` bytes touches.
u64 breakpoint_hits(u64 dr7, const u64 dr[4], enum breakpoint_access access, u64 address,
                    unsigned size);
