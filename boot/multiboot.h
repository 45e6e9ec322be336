// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The Multiboot2 information, read into one struct. Pure.

#pragma once

#include <nestor/host.h>
#include <nestor/page.h>
#include <nestor/types.h>

enum { BOOT_REGION_MAX = 2048 };

struct boot_info {
    const char *cmdline; // "" if there is none
    const char *loader;
    struct mem_region regions[BOOT_REGION_MAX]; // type 1 = RAM
    u32 region_count, regions_lost;
    struct {
        u64 start, end;
        const char *string;
    } modules[BOOT_MODULE_MAX];
    u32 module_count, modules_lost;
    const u8 *rsdp; // the newest one given; NULL if none
    u32 rsdp_size;  // ACPI_RSDP_SIZE_1 or _2
    bool efi;
};

// Reads the information of `size` bytes (its own first word, checked by the caller to be mapped).
// All pointers in *out lead into it. Returns 0, or -E_INVAL if a tag is torn (what came before it
// is in *out).
int multiboot_parse(const void *info, u64 size, struct boot_info *out);
