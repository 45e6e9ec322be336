// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Where boot hands over to core.

#pragma once

#include <nestor/types.h>

extern const u8 builtin_dtb_start[],
    builtin_dtb_end[]; // the built-in configuration, compiled by dtc

// On the boot CPU, when every CPU is up: starts the guests.
void core_main(void);
// On each other CPU, at the end of its bring-up (and on the boot CPU from core_main).
_Noreturn void core_main_cpu(void);
