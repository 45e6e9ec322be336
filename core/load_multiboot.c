// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Loads a Multiboot image (Multiboot Specification 0.6.96): by its address fields, else by the
// program headers of an ELF file. The guest starts in 32-bit protected mode, EAX = magic, EBX =
// information. Pure.

#include "load_plan.h"
#include <nestor/string.h>

enum { SEARCH = 8192 };

struct multiboot_header {
    u32 magic, flags, checksum;
    u32 header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

enum {
    HEADER_MAGIC = 0x1badb002,
    LOADER_MAGIC = 0x2badb002,
    HEADER_SIZE = 12,      // without address fields
    HEADER_PAGE_ALIGN = 1, // of modules: always so
    HEADER_MEMORY_INFO = 2,
    HEADER_REQUIRED = 0xffff,
    HEADER_ADDRESSES = 1 << 16,
};

enum info_flag {
    INFO_MEMORY = 1,
    INFO_CMDLINE = 1 << 2,
    INFO_MODS = 1 << 3,
    INFO_MMAP = 1 << 6,
    INFO_BOOT_LOADER_NAME = 1 << 9,
};

struct multiboot_info {
    u32 flags;
    u32 mem_lower, mem_upper; // KiB
    u32 boot_device;
    u32 cmdline;
    u32 mods_count, mods_addr;
    u32 syms[4];
    u32 mmap_length, mmap_addr;
    u32 drives_length, drives_addr;
    u32 config_table;
    u32 boot_loader_name;
    u32 apm_table;
};

struct multiboot_module {
    u32 mod_start, mod_end, string, reserved;
};

struct PACKED multiboot_mmap {
    u32 size; // of what follows
    u64 base_addr, length;
    u32 type;
};

struct plan {
    struct load_plan p;
    struct multiboot_info info;
};

// Returns the header's offset, or -E_NOENT.
static s32 find_header(const struct load_file *kernel, struct multiboot_header *h)
{
    u64 limit = MIN(kernel->size, (u64)SEARCH);

    memset(h, 0, sizeof(*h));
    for (u32 at = 0; at + HEADER_SIZE <= limit; at += 4) {
        memcpy(h, kernel->data + at, HEADER_SIZE);
        if (h->magic == HEADER_MAGIC && h->magic + h->flags + h->checksum == 0) {
            memcpy(h, kernel->data + at, MIN(sizeof(*h), limit - at));
            return (s32)at;
        }
    }
    return -E_NOENT;
}

bool load_is_multiboot(const struct load_file *kernel)
{
    struct multiboot_header h;

    return find_header(kernel, &h) >= 0;
}

static int plan_addresses(struct plan *plan, const struct multiboot_header *h, u32 header_offset)
{
    struct load *load = plan->p.load;
    u32 before = h->header_addr - h->load_addr; // bytes loaded from before the header
    struct load_segment s = {.gpa = h->load_addr, .address = h->load_addr};
    u32 end = h->load_end_addr, bss_end = h->bss_end_addr;
    int error;

    if (h->load_addr > h->header_addr || before > header_offset || (end && end < h->load_addr) ||
        (bss_end && bss_end < end))
        return load_fail(
            load,
            "%s: addresses of header 0x%x (at offset %u), load 0x%x..0x%x, bss end 0x%x "
            "contradict each other",
            load->kernel.name, h->header_addr, header_offset, h->load_addr, end, bss_end);
    s.file_size = end ? end - h->load_addr : load->kernel.size - (header_offset - before);
    s.memory_size = MAX(s.file_size, bss_end > h->load_addr ? bss_end - h->load_addr : 0);
    error = load_plan_segment(&plan->p, header_offset - before, &s);
    return error ? error : load_plan_entry(&plan->p, h->entry_addr);
}

// --- the information that the guest gets ---

static int put_modules(struct plan *plan)
{
    struct load *load = plan->p.load;
    u32 list = load_info_alloc(&plan->p, load->file_count * sizeof(struct multiboot_module));

    if (!list)
        return load_fail(load, "no room for the list of modules");
    for (u32 i = 0; i < load->file_count; i++) {
        const struct load_file *file = &load->files[i];
        struct multiboot_module m = {.string = load_info_string(&plan->p, file->name, file->args)};

        if (load_plan_module(&plan->p, file, &m.mod_start))
            return -E_INVAL;
        if (!m.string)
            return load_fail(load, "%s: no room for the module's string", file->name);
        m.mod_end = (u32)plan->p.top;
        load_copy(load, list + i * sizeof(m), &m, sizeof(m), sizeof(m));
    }
    plan->info.mods_count = load->file_count;
    plan->info.mods_addr = list;
    return 0;
}

static void put_memory_map(struct plan *plan)
{
    struct load_region map[LOAD_REGION_MAX];
    u32 count = load_memory_map(plan->p.load, map);
    u32 size = count * (u32)sizeof(struct multiboot_mmap);
    u32 at = load_info_alloc(&plan->p, size);

    for (u32 i = 0; i < count; i++) {
        struct multiboot_mmap entry = {sizeof(entry) - sizeof(entry.size), map[i].base, map[i].size,
                                       map[i].type};

        load_copy(plan->p.load, at + i * sizeof(entry), &entry, sizeof(entry), sizeof(entry));
    }
    plan->info.mmap_addr = at;
    plan->info.mmap_length = size;
}

static int put_info(struct plan *plan)
{
    struct load *load = plan->p.load;
    struct multiboot_info *info = &plan->info;
    u32 at;

    plan->p.next = LOAD_INFO_GPA + LOAD_GDT_SIZE;
    at = load_info_alloc(&plan->p, sizeof(*info));
    put_memory_map(plan);
    info->boot_loader_name = load_info_string(&plan->p, "Nestor", "");
    info->cmdline = load_info_string(&plan->p, load->kernel.name, load->command_line);
    if (!info->cmdline)
        return load_fail(load, "command line of %zu bytes, expected at most %u",
                         strlen(load->command_line), (u32)(LOAD_INFO_END - LOAD_INFO_GPA) / 2);
    if (put_modules(plan))
        return -E_INVAL;
    info->flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODS | INFO_MMAP | INFO_BOOT_LOADER_NAME;
    info->mem_lower = (u32)(LOAD_EBDA >> 10);
    info->mem_upper = (u32)((load->low_size - LOAD_HIGH_MEMORY) >> 10);
    load_copy(load, at, info, sizeof(*info), sizeof(*info));
    load->rbx = at;
    return 0;
}

static int make_plan(struct plan *plan)
{
    struct multiboot_header h;
    s32 offset = find_header(&plan->p.load->kernel, &h);
    u32 unknown = h.flags & HEADER_REQUIRED & ~(u32)(HEADER_PAGE_ALIGN | HEADER_MEMORY_INFO);

    if (offset < 0)
        return load_fail(plan->p.load, "%s: no Multiboot header", plan->p.load->kernel.name);
    if (unknown)
        return load_fail(plan->p.load, "%s: Multiboot flags 0x%x, of which 0x%x are not supported",
                         plan->p.load->kernel.name, h.flags, unknown);
    return h.flags & HEADER_ADDRESSES ? plan_addresses(plan, &h, (u32)offset)
                                      : load_plan_elf(&plan->p);
}

int load_multiboot(struct load *load)
{
    struct plan plan = {.p.load = load};

    if (make_plan(&plan) || put_info(&plan))
        return -E_INVAL;
    load_plan_start(&plan.p, LOADER_MAGIC);
    return 0;
}
