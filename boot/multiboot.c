// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The Multiboot2 information (Multiboot2 specification 2.0, "Boot information format"). Nothing in
// it is believed: sizes are checked against the whole, strings against their ends. Pure.

#include "multiboot.h"
#include <arch/x86/acpi.h>
#include <arch/x86/multiboot2.h>
#include <nestor/string.h>

enum { TAG_COUNT = TAG_EFI_MMAP + 1 };

struct tag {
    u32 type, size;
};

struct mmap_tag {
    struct tag tag;
    u32 entry_size, version;
};

struct mmap_entry {
    u64 base, length;
    u32 type, reserved;
};

struct efi_mmap_tag {
    struct tag tag;
    u32 entry_size, version;
};

struct efi_entry { // EFI_MEMORY_DESCRIPTOR
    u32 type, pad;
    u64 physical, virtual, pages, attribute;
};

struct module_tag {
    struct tag tag;
    u32 start, end;
};

enum { EFI_LOADER_CODE = 1, EFI_BOOT_SERVICES_DATA = 4, EFI_CONVENTIONAL = 7 };
enum { REGION_RAM = 1, REGION_RESERVED = 2 };

// A string that ends within its tag; "" for one that does not.
static const char *tag_string(const struct tag *tag, u32 offset)
{
    const char *text = (const char *)tag + offset;

    return tag->size > offset && memchr(text, 0, tag->size - offset) ? text : "";
}

static void add_region(struct boot_info *out, u64 base, u64 size, u32 type)
{
    if (size == 0 || base + size - 1 < base)
        return;
    if (out->region_count == BOOT_REGION_MAX) {
        out->regions_lost++;
        return;
    }
    out->regions[out->region_count++] = (struct mem_region){base, size, type};
}

static void read_cmdline(const struct tag *tag, struct boot_info *out)
{
    out->cmdline = tag_string(tag, sizeof(*tag));
}

static void read_loader(const struct tag *tag, struct boot_info *out)
{
    out->loader = tag_string(tag, sizeof(*tag));
}

static void read_module(const struct tag *tag, struct boot_info *out)
{
    const struct module_tag *module = (const struct module_tag *)tag;

    if (tag->size < sizeof(*module) || module->end < module->start)
        return;
    if (out->module_count == BOOT_MODULE_MAX) {
        out->modules_lost++;
        return;
    }
    out->modules[out->module_count].start = module->start;
    out->modules[out->module_count].end = module->end;
    out->modules[out->module_count++].string = tag_string(tag, sizeof(*module));
}

static void read_mmap(const struct tag *tag, struct boot_info *out)
{
    const struct mmap_tag *mmap = (const struct mmap_tag *)tag;
    struct mmap_entry entry;

    if (tag->size < sizeof(*mmap) || mmap->entry_size < sizeof(entry))
        return;
    for (u64 at = sizeof(*mmap); at + mmap->entry_size <= tag->size; at += mmap->entry_size) {
        memcpy(&entry, (const u8 *)tag + at, sizeof(entry));
        add_region(out, entry.base, entry.length, entry.type);
    }
}

// The other map says the same in other words; this one is the firmware's own about what is still
// its (runtime services), and that counts against RAM.
static void read_efi_mmap(const struct tag *tag, struct boot_info *out)
{
    const struct efi_mmap_tag *mmap = (const struct efi_mmap_tag *)tag;
    struct efi_entry entry;

    out->efi = true;
    if (tag->size < sizeof(*mmap) || mmap->entry_size < sizeof(entry))
        return;
    for (u64 at = sizeof(*mmap); at + mmap->entry_size <= tag->size; at += mmap->entry_size) {
        memcpy(&entry, (const u8 *)tag + at, sizeof(entry));
        if ((entry.type >= EFI_LOADER_CODE && entry.type <= EFI_BOOT_SERVICES_DATA) ||
            entry.type == EFI_CONVENTIONAL || entry.pages > BIT(40))
            continue;
        add_region(out, entry.physical, entry.pages << PAGE_SHIFT, REGION_RESERVED);
    }
}

// Version 2 comes in a tag of its own, and is better.
static void read_rsdp(const struct tag *tag, struct boot_info *out)
{
    u32 size = tag->type == TAG_RSDP_2 ? ACPI_RSDP_SIZE_2 : ACPI_RSDP_SIZE_1;

    if (tag->size < sizeof(*tag) + size || (out->rsdp && out->rsdp_size > size))
        return;
    out->rsdp = (const u8 *)(tag + 1);
    out->rsdp_size = size;
}

static void (*const readers[TAG_COUNT])(const struct tag *tag, struct boot_info *out) = {
    [TAG_CMDLINE] = read_cmdline, [TAG_LOADER] = read_loader,     [TAG_MODULE] = read_module,
    [TAG_MMAP] = read_mmap,       [TAG_EFI_MMAP] = read_efi_mmap, [TAG_RSDP_1] = read_rsdp,
    [TAG_RSDP_2] = read_rsdp,
};

int multiboot_parse(const void *info, u64 size, struct boot_info *out)
{
    const u8 *p = info;
    u64 at = 8;

    out->region_count = out->regions_lost = out->module_count = out->modules_lost = 0;
    out->cmdline = out->loader = "";
    out->rsdp = NULL;
    out->efi = false;
    for (;;) {
        const struct tag *tag = (const struct tag *)(p + at);

        if (at > size || size - at < sizeof(*tag) || tag->size < sizeof(*tag) ||
            tag->size > size - at)
            break;
        if (tag->type == TAG_END)
            return 0;
        if (tag->type < TAG_COUNT && readers[tag->type])
            readers[tag->type](tag, out);
        at += ALIGN_UP((u64)tag->size, 8ull);
    }
    return -E_INVAL;
}
