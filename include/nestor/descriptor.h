// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Segment descriptors: what one says, and whether a selector for it may be loaded. Pure; memory and
// tables are the caller's. Intel SDM volume 3 sections 3.4.5, 3.5, 5.5 to 5.8; AMD APM volume 2
// sections 4.7, 4.8, 4.11.

#pragma once

#include <nestor/segment.h>
#include <nestor/types.h>

// Types of system descriptors (S = 0).
enum descriptor_type {
    DESCRIPTOR_TSS16 = 1,
    DESCRIPTOR_LDT = 2,
    DESCRIPTOR_CALL_GATE16 = 4,
    DESCRIPTOR_TASK_GATE = 5,
    DESCRIPTOR_TSS = 9,
    DESCRIPTOR_CALL_GATE = 12,
    DESCRIPTOR_TSS_BUSY = BIT(1), // or'ed to TSS16 and TSS
    DESCRIPTOR_32 = BIT(3),       // of a TSS or a gate: not the 16-bit form
};

#define DESCRIPTOR_ACCESSED 1

struct descriptor {
    u16 selector; // where it was found
    u64 low;
    u64 high; // the second half of a 16-byte system descriptor, else 0
    gva_t la;
};

static inline u8 descriptor_access(const struct descriptor *d)
{
    return (u8)(d->low >> 40);
}

static inline bool descriptor_is_code(const struct descriptor *d)
{
    return (descriptor_access(d) & (SEG_S | BIT(3))) == (SEG_S | BIT(3));
}

static inline unsigned descriptor_dpl(const struct descriptor *d)
{
    return (descriptor_access(d) & SEG_DPL) >> SEG_DPL_SHIFT;
}

// The error code of a fault about a selector.
static inline u16 selector_error(u16 selector)
{
    return selector & (u16)~3;
}

// What the CPU keeps of it once loaded.
struct segment descriptor_segment(const struct descriptor *d);
// After a null selector was loaded; `dpl` is for SS in 64-bit code.
struct segment segment_null(u16 selector, unsigned dpl);
// A gate's target: the selector is in bits 31:16 of the low half.
u64 descriptor_gate_offset(const struct descriptor *gate);

// The vector of the fault that loading this segment raises, 0 if it may be loaded. Its error code
// is selector_error(); a null selector is the caller's. In a task switch #GP becomes #TS.
u8 descriptor_check_data(const struct descriptor *d, unsigned cpl);
u8 descriptor_check_stack(const struct descriptor *d, unsigned cpl);
u8 descriptor_check_ldt(const struct descriptor *d);
enum code_transfer {
    CODE_DIRECT,    // far JMP or CALL
    CODE_GATE_JUMP, // through a call gate
    CODE_GATE_CALL,
    CODE_RETURN, // RET, IRET; with cpl 0 a task switch
};
u8 descriptor_check_code(const struct descriptor *d, unsigned cpl, enum code_transfer how,
                         bool long_mode);
// A call gate, task gate or TSS that a far JMP or CALL names.
u8 descriptor_check_gate(const struct descriptor *d, unsigned cpl);
