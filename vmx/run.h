// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Numbers that enter.S shares with C; enter.c asserts that they are right.

#pragma once

// struct backend_ctx
#define HW_HOST_RSP        0
#define HW_HOST_SPEC_CTRL  8
#define HW_GUEST_SPEC_CTRL 16

// vmx_run's flags
#define RUN_LAUNCHED  0x01 // VMRESUME
#define RUN_SPEC_CTRL 0x02 // SPEC_CTRL: the guest's before the entry, Nestor's after the exit
#define RUN_L1D_FLUSH 0x04 // before the entry
#define RUN_VERW      0x08 // before the entry
#define RUN_RSB_FILL  0x10 // after the exit: 32 entries
#define RUN_RSB_ONE   0x20 // after the exit: one entry (PBRSB)
#define RUN_CLEAR     0x40 // after the exit: no guest value stays in a register
#define RUN_BEFORE    (RUN_SPEC_CTRL | RUN_L1D_FLUSH | RUN_VERW)
#define RUN_AFTER     (RUN_SPEC_CTRL | RUN_RSB_FILL | RUN_RSB_ONE | RUN_CLEAR)

#define VMCS_HOST_RSP 0x6c14
