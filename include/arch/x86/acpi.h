// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the machine's ACPI tables and a guest's begin with (ACPI 6.3: 5.2.5.3 "Root System
// Description Pointer Structure", 5.2.6 "System Description Table Header").

#pragma once

#include <nestor/types.h>

struct PACKED acpi_rsdp {
    char signature[8];
    u8 checksum;
    char oem_id[6];
    u8 revision;
    u32 rsdt;
    u32 length; // this and what follows: since revision 2
    u64 xsdt;
    u8 extended_checksum, reserved[3];
};

enum { ACPI_RSDP_SIZE_1 = 20, ACPI_RSDP_SIZE_2 = sizeof(struct acpi_rsdp) }; // by revision

struct PACKED acpi_header {
    char signature[4];
    u32 length;
    u8 revision, checksum;
    char oem_id[6], oem_table_id[8];
    u32 oem_revision;
    char creator_id[4];
    u32 creator_revision;
};
