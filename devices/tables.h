// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The guest's ACPI tables. Pure.

#pragma once

#include <nestor/types.h>

struct tables_input {
    u32 vcpus;
    const void *dsdt; // AML with its header, as iasl made it
    size_t dsdt_size;
};

enum { TABLES_FACS = 64, TABLES_WAKING_VECTOR = TABLES_FACS + 12 }; // from the first byte on

// Writes the tables to `memory`, which the guest has at `gpa` (both 64-byte aligned, gpa below 4
// GiB). The RSDP comes first. Returns the bytes used, or -E_NOSPC.
s64 tables_build(const struct tables_input *input, u8 *memory, size_t size, gpa_t gpa);
