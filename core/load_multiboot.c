// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Loads a Multiboot image (Multiboot Specification 0.6.96): by its address fields, else by the
// program headers of an ELF file for the 386 or x86-64 (System V ABI, "Program Header"). The guest
// starts in 32-bit protected mode, EAX = magic, EBX = information. Pure.

#include <arch/x86/regs.h>
#include <nestor/load.h>
#include <nestor/string.h>

enum { SEGMENT_MAX = 32, SEARCH = 8192 };

// The loader's own part of low memory, which no segment may touch: GDT, information, lists and
// strings.
enum { INFO_GPA = 0x90000, INFO_END = LOAD_EBDA };

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

struct segment {
    const u8 *data;
    u64 file_size, memory_size;
    gpa_t gpa;
    u64 address; // virtual, for the entry
};

struct plan {
    struct load *load;
    struct segment segments[SEGMENT_MAX];
    u32 segment_count;
    gpa_t entry;
    gpa_t top; // end of the highest segment
    struct multiboot_info info;
    gpa_t next; // free, of the loader's part
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

// --- segments, from the file to the plan ---

static bool overlap(u64 a, u64 a_size, u64 b, u64 b_size)
{
    return a < b + b_size && b < a + a_size;
}

static int add_segment(struct plan *plan, u64 offset, const struct segment *s)
{
    struct load *load = plan->load;
    const char *name = load->kernel.name;
    u64 gpa = s->gpa, size = s->memory_size;

    if (offset > load->kernel.size || s->file_size > load->kernel.size - offset)
        return load_fail(load, "%s: segment of %llu bytes at offset %llu, the file has %llu", name,
                         (unsigned long long)s->file_size, (unsigned long long)offset,
                         (unsigned long long)load->kernel.size);
    if (s->file_size > size)
        return load_fail(load, "%s: segment of %llu bytes in the file, of %llu in memory", name,
                         (unsigned long long)s->file_size, (unsigned long long)size);
    if (!load_ram(load, gpa, size) || overlap(gpa, size, INFO_GPA, INFO_END - INFO_GPA))
        return load_fail(load, "%s: segment of %llu bytes at 0x%llx, not in the guest's free RAM",
                         name, (unsigned long long)size, (unsigned long long)gpa);
    for (u32 i = 0; i < plan->segment_count; i++)
        if (overlap(gpa, size, plan->segments[i].gpa, plan->segments[i].memory_size))
            return load_fail(load, "%s: segments at 0x%llx and 0x%llx overlap", name,
                             (unsigned long long)plan->segments[i].gpa, (unsigned long long)gpa);
    if (plan->segment_count == SEGMENT_MAX)
        return load_fail(load, "%s: more than %u segments", name, SEGMENT_MAX);
    plan->segments[plan->segment_count] = *s;
    plan->segments[plan->segment_count++].data = load->kernel.data + offset;
    plan->top = MAX(plan->top, gpa + size);
    return 0;
}

// The entry as a physical address: that of the segment whose (virtual) addresses hold it.
static int find_entry(struct plan *plan, u64 entry)
{
    for (u32 i = 0; i < plan->segment_count; i++) {
        const struct segment *s = &plan->segments[i];

        if (entry - s->address < s->memory_size) {
            plan->entry = entry - s->address + s->gpa;
            return 0;
        }
    }
    return load_fail(plan->load, "%s: entry 0x%llx, not in any segment", plan->load->kernel.name,
                     (unsigned long long)entry);
}

static int plan_addresses(struct plan *plan, const struct multiboot_header *h, u32 header_offset)
{
    struct load *load = plan->load;
    u32 before = h->header_addr - h->load_addr; // bytes loaded from before the header
    struct segment s = {.gpa = h->load_addr, .address = h->load_addr};
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
    error = add_segment(plan, header_offset - before, &s);
    return error ? error : find_entry(plan, h->entry_addr);
}

// --- ELF: the fields that matter, of both classes ---

struct elf_class {
    u8 size; // of the header
    u8 word; // bytes of an address
    u8 machine;
    u8 entry, phoff, phentsize, phnum;                        // in the header
    u8 p_size, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz; // of a program header, and in it
};

static const struct elf_class elf32 = {52, 4, 3, 24, 28, 42, 44, 32, 4, 8, 12, 16, 20};
static const struct elf_class elf64 = {64, 8, 62, 24, 32, 54, 56, 56, 8, 16, 24, 32, 40};

enum { EI_CLASS = 4, EI_DATA = 5, E_TYPE = 16, E_MACHINE = 18, ET_EXEC = 2, PT_LOAD = 1 };

static u64 field(const u8 *at, unsigned size)
{
    u64 value = 0;

    memcpy(&value, at, size);
    return value;
}

static const struct elf_class *elf_class(const struct load_file *kernel)
{
    const u8 *e = kernel->data;
    const struct elf_class *c;

    if (kernel->size < elf32.size || memcmp(e, "\177ELF", 4) != 0 || e[EI_DATA] != 1)
        return NULL;
    c = e[EI_CLASS] == 1 ? &elf32 : e[EI_CLASS] == 2 ? &elf64 : NULL;
    if (!c || kernel->size < c->size || field(e + E_MACHINE, 2) != c->machine ||
        field(e + E_TYPE, 2) != ET_EXEC)
        return NULL;
    return c;
}

static int plan_elf(struct plan *plan)
{
    struct load *load = plan->load;
    const u8 *e = load->kernel.data;
    const struct elf_class *c = elf_class(&load->kernel);

    if (!c)
        return load_fail(load,
                         "%s: Multiboot header without addresses, and no executable ELF file for "
                         "the 386 or x86-64",
                         load->kernel.name);

    u64 phoff = field(e + c->phoff, c->word);
    u32 stride = (u32)field(e + c->phentsize, 2), count = (u32)field(e + c->phnum, 2);

    if (stride < c->p_size || phoff > load->kernel.size ||
        (u64)stride * count > load->kernel.size - phoff)
        return load_fail(load,
                         "%s: %u program headers of %u bytes at %llu, the file has %llu bytes",
                         load->kernel.name, count, stride, (unsigned long long)phoff,
                         (unsigned long long)load->kernel.size);
    for (const u8 *p = e + phoff; count--; p += stride) {
        struct segment s = {
            .file_size = field(p + c->p_filesz, c->word),
            .memory_size = field(p + c->p_memsz, c->word),
            .gpa = field(p + c->p_paddr, c->word),
            .address = field(p + c->p_vaddr, c->word),
        };

        if (field(p, 4) != PT_LOAD || s.memory_size == 0)
            continue;
        if (add_segment(plan, field(p + c->p_offset, c->word), &s))
            return -E_INVAL;
    }
    return find_entry(plan, field(e + c->entry, c->word));
}

// --- the information that the guest gets ---

// Takes `size` bytes of the loader's part of low memory; 0 if there is not so much left.
static u32 info_alloc(struct plan *plan, u64 size)
{
    gpa_t at = plan->next;

    if (size > INFO_END - at)
        return 0;
    plan->next = ALIGN_UP(at + size, 8ull);
    return (u32)at;
}

// "first second", or "first" alone.
static u32 info_string(struct plan *plan, const char *first, const char *second)
{
    size_t size = strlen(first) + strlen(second) + 2;
    u32 at = info_alloc(plan, size);

    if (at)
        fmt_snprintf((char *)plan->load->window + at, size, "%s%s%s", first, *second ? " " : "",
                     second);
    return at;
}

static int put_modules(struct plan *plan)
{
    struct load *load = plan->load;
    u32 list = info_alloc(plan, load->file_count * sizeof(struct multiboot_module));

    if (!list)
        return load_fail(load, "no room for the list of modules");
    for (u32 i = 0; i < load->file_count; i++) {
        const struct load_file *file = &load->files[i];
        gpa_t at = ALIGN_UP(MAX(plan->top, LOAD_HIGH_MEMORY), PAGE_SIZE);
        struct multiboot_module m = {(u32)at, (u32)(at + file->size),
                                     info_string(plan, file->name, file->args), 0};

        if (!load_ram(load, at, file->size))
            return load_fail(load, "%s: module of %llu bytes, no RAM is left for it at 0x%llx",
                             file->name, (unsigned long long)file->size, (unsigned long long)at);
        if (!m.string)
            return load_fail(load, "%s: no room for the module's string", file->name);
        load_copy(load, at, file->data, file->size, file->size);
        load_copy(load, list + i * sizeof(m), &m, sizeof(m), sizeof(m));
        plan->top = at + file->size;
    }
    plan->info.mods_count = load->file_count;
    plan->info.mods_addr = list;
    return 0;
}

static void put_memory_map(struct plan *plan)
{
    struct load_region map[LOAD_REGION_MAX];
    u32 count = load_memory_map(plan->load, map);
    u32 size = count * (u32)sizeof(struct multiboot_mmap);
    u32 at = info_alloc(plan, size);

    for (u32 i = 0; i < count; i++) {
        struct multiboot_mmap entry = {sizeof(entry) - sizeof(entry.size), map[i].base, map[i].size,
                                       map[i].type};

        load_copy(plan->load, at + i * sizeof(entry), &entry, sizeof(entry), sizeof(entry));
    }
    plan->info.mmap_addr = at;
    plan->info.mmap_length = size;
}

static int put_info(struct plan *plan)
{
    struct load *load = plan->load;
    struct multiboot_info *info = &plan->info;
    u32 at;

    plan->next = INFO_GPA + LOAD_GDT_SIZE;
    at = info_alloc(plan, sizeof(*info));
    put_memory_map(plan);
    info->boot_loader_name = info_string(plan, "Nestor", "");
    info->cmdline = info_string(plan, load->kernel.name, load->command_line);
    if (!info->cmdline)
        return load_fail(load, "command line of %zu bytes, expected at most %u",
                         strlen(load->command_line), (u32)(INFO_END - INFO_GPA) / 2);
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
    s32 offset = find_header(&plan->load->kernel, &h);
    u32 unknown = h.flags & HEADER_REQUIRED & ~(u32)(HEADER_PAGE_ALIGN | HEADER_MEMORY_INFO);

    if (offset < 0)
        return load_fail(plan->load, "%s: no Multiboot header", plan->load->kernel.name);
    if (unknown)
        return load_fail(plan->load, "%s: Multiboot flags 0x%x, of which 0x%x are not supported",
                         plan->load->kernel.name, h.flags, unknown);
    return h.flags & HEADER_ADDRESSES ? plan_addresses(plan, &h, (u32)offset) : plan_elf(plan);
}

int load_multiboot(struct load *load)
{
    struct plan plan = {.load = load};

    if (make_plan(&plan) || put_info(&plan))
        return -E_INVAL;
    for (u32 i = 0; i < plan.segment_count; i++)
        load_copy(load, plan.segments[i].gpa, plan.segments[i].data, plan.segments[i].file_size,
                  plan.segments[i].memory_size);
    load_put_gdt(load, INFO_GPA, LOAD_CODE32_ACCESS);
    load->rip = plan.entry;
    load->rax = LOADER_MAGIC;
    load->cr0 = CR0_ET | CR0_PE;
    return 0;
}
