// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The plan of a Multiboot image: see core/load_plan.c.

#pragma once

#include <nestor/load.h>

// The loader's own part of low memory, which no segment may touch: GDT, information, lists and
// strings.
enum { LOAD_INFO_GPA = 0x90000, LOAD_INFO_END = LOAD_EBDA };

enum { LOAD_SEGMENT_MAX = 32 };

struct load_segment {
    const u8 *data;
    u64 file_size, memory_size;
    gpa_t gpa;
    u64 address; // virtual, for the entry
};

struct load_plan {
    struct load *load;
    struct load_segment segments[LOAD_SEGMENT_MAX];
    u32 segment_count;
    gpa_t entry;
    gpa_t top;  // end of the highest segment or module
    gpa_t next; // free, of the loader's part
};

// All give 0 or -E_INVAL with a reason.
int load_plan_segment(struct load_plan *plan, u64 offset, const struct load_segment *s);
int load_plan_entry(struct load_plan *plan, u64 entry); // from its virtual address
int load_plan_elf(struct load_plan *plan);
int load_plan_module(struct load_plan *plan, const struct load_file *file, u32 *start);

// In the loader's part; 0 if there is no room.
u32 load_info_alloc(struct load_plan *plan, u64 size);
u32 load_info_string(struct load_plan *plan, const char *first, const char *second);

// Copies the segments and sets the first state: 32-bit protected mode, EAX = magic.
void load_plan_start(struct load_plan *plan, u64 magic);
