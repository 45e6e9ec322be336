// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Segment registers: their numbers (the six in encoding order, then LDTR and TR) and what the CPU
// holds of each.

#pragma once

#include <nestor/types.h>

enum segment_index { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR, SEG_COUNT };

struct segment {
    u16 selector;
    u32 access; // regs.h SEG_*: a descriptor's layout, SEG_UNUSABLE as VMX has it
    u32 limit;  // in bytes, expanded
    u64 base;
};
