// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the two Multiboot loaders share: the plan of what goes where, made and checked before guest
// RAM is touched; the program headers of an ELF file for the 386 or x86-64 (System V ABI, "Program
// Header"); room in the loader's part of low memory; modules above the segments. Pure.

#include "load_plan.h"
#include <arch/x86/regs.h>
#include <nestor/string.h>

// --- segments, from the file to the plan ---

static bool overlap(u64 a, u64 a_size, u64 b, u64 b_size)
{
    return a < b + b_size && b < a + a_size;
}

int load_plan_segment(struct load_plan *plan, u64 offset, const struct load_segment *s)
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
    if (!load_ram(load, gpa, size) ||
        overlap(gpa, size, LOAD_INFO_GPA, LOAD_INFO_END - LOAD_INFO_GPA))
        return load_fail(load, "%s: segment of %llu bytes at 0x%llx, not in the guest's free RAM",
                         name, (unsigned long long)size, (unsigned long long)gpa);
    for (u32 i = 0; i < plan->segment_count; i++)
        if (overlap(gpa, size, plan->segments[i].gpa, plan->segments[i].memory_size))
            return load_fail(load, "%s: segments at 0x%llx and 0x%llx overlap", name,
                             (unsigned long long)plan->segments[i].gpa, (unsigned long long)gpa);
    if (plan->segment_count == LOAD_SEGMENT_MAX)
        return load_fail(load, "%s: more than %u segments", name, LOAD_SEGMENT_MAX);
    plan->segments[plan->segment_count] = *s;
    plan->segments[plan->segment_count++].data = load->kernel.data + offset;
    plan->top = MAX(plan->top, gpa + size);
    return 0;
}

// The entry as a physical address: that of the segment whose (virtual) addresses hold it.
int load_plan_entry(struct load_plan *plan, u64 entry)
{
    for (u32 i = 0; i < plan->segment_count; i++) {
        const struct load_segment *s = &plan->segments[i];

        if (entry - s->address < s->memory_size) {
            plan->entry = entry - s->address + s->gpa;
            return 0;
        }
    }
    return load_fail(plan->load, "%s: entry 0x%llx, not in any segment", plan->load->kernel.name,
                     (unsigned long long)entry);
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

int load_plan_elf(struct load_plan *plan)
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
        struct load_segment s = {
            .file_size = field(p + c->p_filesz, c->word),
            .memory_size = field(p + c->p_memsz, c->word),
            .gpa = field(p + c->p_paddr, c->word),
            .address = field(p + c->p_vaddr, c->word),
        };

        if (field(p, 4) != PT_LOAD || s.memory_size == 0)
            continue;
        if (load_plan_segment(plan, field(p + c->p_offset, c->word), &s))
            return -E_INVAL;
    }
    return load_plan_entry(plan, field(e + c->entry, c->word));
}

// --- the information that the guest gets ---

// Takes `size` bytes of the loader's part of low memory; 0 if there is not so much left.
u32 load_info_alloc(struct load_plan *plan, u64 size)
{
    gpa_t at = plan->next;

    if (size > LOAD_INFO_END - at)
        return 0;
    plan->next = ALIGN_UP(at + size, 8ull);
    return (u32)at;
}

// "first second", or "first" alone.
u32 load_info_string(struct load_plan *plan, const char *first, const char *second)
{
    size_t size = strlen(first) + strlen(second) + 2;
    u32 at = load_info_alloc(plan, size);

    if (at)
        fmt_snprintf((char *)plan->load->window + at, size, "%s%s%s", first, *second ? " " : "",
                     second);
    return at;
}

int load_plan_module(struct load_plan *plan, const struct load_file *file, u32 *start)
{
    struct load *load = plan->load;
    gpa_t at = ALIGN_UP(MAX(plan->top, LOAD_HIGH_MEMORY), PAGE_SIZE);

    if (!load_ram(load, at, file->size))
        return load_fail(load, "%s: module of %llu bytes, no RAM is left for it at 0x%llx",
                         file->name, (unsigned long long)file->size, (unsigned long long)at);
    load_copy(load, at, file->data, file->size, file->size);
    plan->top = at + file->size;
    *start = (u32)at;
    return 0;
}

void load_plan_start(struct load_plan *plan, u64 magic)
{
    struct load *load = plan->load;

    for (u32 i = 0; i < plan->segment_count; i++)
        load_copy(load, plan->segments[i].gpa, plan->segments[i].data, plan->segments[i].file_size,
                  plan->segments[i].memory_size);
    load_put_gdt(load, LOAD_INFO_GPA, LOAD_CODE32_ACCESS);
    load->rip = plan->entry;
    load->rax = magic;
    load->cr0 = CR0_ET | CR0_PE;
}
