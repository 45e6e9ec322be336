// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Exit reasons as data (exit.c, pure): which neutral kind each is, which VMCS fields have to be
// read for it, and how they become struct vm_exit.

#pragma once

#include <arch/x86/vmx.h>
#include <nestor/exit.h>

enum vmx_exit_needs {
    NEED_QUALIFICATION = BIT(0),
    NEED_LENGTH = BIT(1), // an instruction: its length, and GROUP_BLOCKING
    NEED_INFO = BIT(2),   // VM-exit instruction information
    NEED_STRING = BIT(3), // the same if it is a string instruction
    NEED_STAGE2 = BIT(4), // guest-physical address, and the linear one if it is valid
    NEED_EVENT = BIT(5),  // interruption information, and what belongs to it
};

// What the VMCS says; only what the needs (and the values themselves) ask for is filled.
struct vmx_exit_info {
    u64 qualification, gpa, gla;
    u32 interruption, interruption_error;
    u32 insn_len, insn_info;
    bool vectoring;     // the IDT-vectoring information is valid
    bool has_insn_info; // insn_info was read: NEED_STRING, and IA32_VMX_BASIC[54]
};

struct vmx_exit_reason {
    u8 kind;  // enum exit_kind
    u8 needs; // enum vmx_exit_needs
    void (*fill)(struct vm_exit *exit, const struct vmx_exit_info *info);
    const char *name;
};

// By basic exit reason; the last one is for all that have no name.
extern const struct vmx_exit_reason vmx_exit_reasons[REASON_COUNT + 1];

static inline const struct vmx_exit_reason *vmx_exit_reason(u32 reason)
{
    u32 basic = reason & EXIT_REASON_BASIC;

    return &vmx_exit_reasons[basic < REASON_COUNT ? basic : REASON_COUNT];
}

// An event from interruption or IDT-vectoring information.
void vmx_event(struct event *event, u32 info, u32 error, u32 insn_len);

// Whether an event of this information has an instruction length: INT n, INT1, INT3, INTO.
static inline bool vmx_event_is_soft(u32 info)
{
    return (info >> 8 & 7) >= EVENT_SOFT_INTERRUPT && (info >> 8 & 7) <= EVENT_SOFT_EXCEPTION;
}
