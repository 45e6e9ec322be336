// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Loads a Multiboot2 image (Multiboot2 Specification 2.0) at the addresses of its ELF file: Nestor
// itself is one. The guest starts in 32-bit protected mode, EAX = magic, EBX = information, as on a
// machine with a BIOS. Pure.

#include "load_plan.h"
#include <arch/x86/acpi.h>
#include <arch/x86/multiboot2.h>
#include <nestor/string.h>

enum { SEARCH = 32768, HEADER_MAGIC = 0xe85250d6, LOADER_MAGIC = 0x36d76289 };

struct header {
    u32 magic, architecture, length, checksum;
};

struct header_tag {
    u16 type, flags;
    u32 size;
};

enum header_tag_type {
    HEADER_END = 0,
    HEADER_REQUEST = 1,
    HEADER_CONSOLE = 4,
    HEADER_FRAMEBUFFER = 5, // a wish
    HEADER_ALIGN = 6,       // of modules: always so
    HEADER_EFI_ENTRY_32 = 8,
    HEADER_EFI_ENTRY_64 = 9, // both for other firmware
    HEADER_RELOCATABLE = 10,
};
enum { HEADER_OPTIONAL = 1 };

enum { MMAP_ENTRY_SIZE = 24, MMAP_ENTRY_USED = 20 }; // the rest is reserved

// What an image may require: bits by type.
#define HEADER_KNOWN                                                                           \
    (BIT(HEADER_REQUEST) | BIT(HEADER_CONSOLE) | BIT(HEADER_FRAMEBUFFER) | BIT(HEADER_ALIGN) | \
     BIT(HEADER_EFI_ENTRY_32) | BIT(HEADER_EFI_ENTRY_64) | BIT(HEADER_RELOCATABLE))
#define TAGS_KNOWN                                                                            \
    (BIT(TAG_CMDLINE) | BIT(TAG_LOADER) | BIT(TAG_MODULE) | BIT(TAG_MEMORY) | BIT(TAG_MMAP) | \
     BIT(TAG_RSDP_1) | BIT(TAG_RSDP_2))

// Returns the header's offset, or -E_NOENT.
static s32 find_header(const struct load_file *kernel, struct header *h)
{
    u64 limit = MIN(kernel->size, (u64)SEARCH);

    for (u32 at = 0; at + sizeof(*h) <= limit; at += 8) {
        memcpy(h, kernel->data + at, sizeof(*h));
        if (h->magic == HEADER_MAGIC && h->magic + h->architecture + h->length + h->checksum == 0)
            return (s32)at;
    }
    return -E_NOENT;
}

bool load_is_multiboot2(const struct load_file *kernel)
{
    struct header h;

    return find_header(kernel, &h) >= 0;
}

// The information that an image asks for, each a word behind the tag.
static int check_request(struct load *load, const u8 *words, u32 count)
{
    u32 type;

    for (u32 i = 0; i < count; i++) {
        memcpy(&type, words + i * 4, 4);
        if (type > TAG_RSDP_2 || !(TAGS_KNOWN & BIT(type)))
            return load_fail(load, "%s: Multiboot2 information %u is not supported",
                             load->kernel.name, type);
    }
    return 0;
}

static int check_tag(struct load *load, const struct header_tag *tag, const u8 *rest)
{
    if (tag->flags & HEADER_OPTIONAL)
        return 0;
    if (tag->type > HEADER_RELOCATABLE || !(HEADER_KNOWN & BIT(tag->type)))
        return load_fail(load, "%s: Multiboot2 header tag %u is not supported", load->kernel.name,
                         tag->type);
    if (tag->type != HEADER_REQUEST)
        return 0;
    return check_request(load, rest, (tag->size - (u32)sizeof(*tag)) / 4);
}

static int check_header(struct load *load)
{
    struct header h;
    struct header_tag tag;
    u64 at = (u64)find_header(&load->kernel, &h), end = at + h.length;

    if (h.architecture || end > load->kernel.size)
        return load_fail(load, "%s: Multiboot2 header for architecture %u, of %u bytes at %llu",
                         load->kernel.name, h.architecture, h.length, (unsigned long long)at);
    for (at += sizeof(h); at + sizeof(tag) <= end; at += ALIGN_UP((u64)tag.size, 8ull)) {
        memcpy(&tag, load->kernel.data + at, sizeof(tag));
        if (tag.size < sizeof(tag) || tag.size > end - at)
            break;
        if (tag.type == HEADER_END)
            return 0;
        if (check_tag(load, &tag, load->kernel.data + at + sizeof(tag)))
            return -E_INVAL;
    }
    return load_fail(load, "%s: Multiboot2 header without an end", load->kernel.name);
}

// --- the information that the guest gets ---

// A tag with room for `size` bytes behind its type and size; where they go, 0 for nowhere.
static gpa_t put_tag(struct load_plan *plan, u32 type, u64 size)
{
    u32 tag[2] = {type, (u32)(sizeof(tag) + size)};
    gpa_t at = load_info_alloc(plan, sizeof(tag) + size);

    if (!at)
        return 0;
    load_copy(plan->load, at, tag, sizeof(tag), sizeof(tag) + size);
    return at + sizeof(tag);
}

// `skip` bytes, then "first second", or "first" alone.
static gpa_t put_string(struct load_plan *plan, u32 type, u32 skip, const char *first,
                        const char *second)
{
    size_t size = strlen(first) + strlen(second) + 2;
    gpa_t at = put_tag(plan, type, skip + size);

    if (at)
        fmt_snprintf((char *)plan->load->window + at + skip, size, "%s%s%s", first,
                     *second ? " " : "", second);
    return at;
}

static int put_modules(struct load_plan *plan)
{
    struct load *load = plan->load;

    for (u32 i = 0; i < load->file_count; i++) {
        const struct load_file *file = &load->files[i];
        u32 range[2];
        gpa_t at = put_string(plan, TAG_MODULE, sizeof(range), file->name, file->args);

        if (!at)
            return load_fail(load, "%s: no room for the module's string", file->name);
        if (load_plan_module(plan, file, &range[0]))
            return -E_INVAL;
        range[1] = (u32)plan->top;
        load_copy(load, at, range, sizeof(range), sizeof(range));
    }
    return 0;
}

static bool put_memory(struct load_plan *plan)
{
    struct load *load = plan->load;
    u32 sizes[2] = {LOAD_EBDA >> 10, (u32)((load->low_size - LOAD_HIGH_MEMORY) >> 10)};
    u32 format[2] = {MMAP_ENTRY_SIZE, 0};
    struct load_region map[LOAD_REGION_MAX];
    u32 count = load_memory_map(load, map);
    gpa_t basic = put_tag(plan, TAG_MEMORY, sizeof(sizes));
    gpa_t at = put_tag(plan, TAG_MMAP, sizeof(format) + (u64)count * MMAP_ENTRY_SIZE);

    if (!basic || !at)
        return false;
    load_copy(load, basic, sizes, sizeof(sizes), sizeof(sizes));
    load_copy(load, at, format, sizeof(format), sizeof(format));
    for (u32 i = 0; i < count; i++)
        load_copy(load, at + sizeof(format) + i * MMAP_ENTRY_SIZE, &map[i], MMAP_ENTRY_USED,
                  MMAP_ENTRY_SIZE);
    return true;
}

static bool put_rsdp(struct load_plan *plan, u32 type, u64 size)
{
    const struct load *load = plan->load;
    gpa_t at = put_tag(plan, type, size);

    if (at)
        load_copy(load, at, load->window + load->rsdp, size, size);
    return at;
}

static int put_info(struct load_plan *plan)
{
    struct load *load = plan->load;
    u32 total;

    plan->next = LOAD_INFO_GPA + LOAD_GDT_SIZE;
    load->rbx = load_info_alloc(plan, 8); // the whole's size and a reserved word
    if (!put_string(plan, TAG_CMDLINE, 0, load->command_line, "") ||
        !put_string(plan, TAG_LOADER, 0, "Nestor", "") || !put_memory(plan) ||
        !put_rsdp(plan, TAG_RSDP_1, ACPI_RSDP_SIZE_1) ||
        !put_rsdp(plan, TAG_RSDP_2, ACPI_RSDP_SIZE_2))
        return load_fail(load, "command line of %zu bytes, expected at most %u",
                         strlen(load->command_line), (u32)(LOAD_INFO_END - LOAD_INFO_GPA) / 2);
    if (put_modules(plan))
        return -E_INVAL;
    if (!put_tag(plan, TAG_END, 0))
        return load_fail(load, "no room for the end of the information");
    total = (u32)(plan->next - load->rbx);
    load_copy(load, load->rbx, &total, sizeof(total), 8);
    return 0;
}

int load_multiboot2(struct load *load)
{
    struct load_plan plan = {.load = load};

    if (check_header(load) || load_plan_elf(&plan) || put_info(&plan))
        return -E_INVAL;
    load_plan_start(&plan, LOADER_MAGIC);
    return 0;
}
