// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the guest loaders share: telling kinds of kernels apart, checked access to guest RAM, the
// memory map and a flat GDT. Pure.

#include <arch/x86/regs.h>
#include <nestor/load.h>
#include <nestor/string.h>
#include <nestor/vm.h>

int load_fail(struct load *load, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    fmt_vsnprintf(load->why, sizeof(load->why), fmt, args);
    va_end(args);
    return -E_INVAL;
}

int load_image(struct load *load)
{
    if (load_is_linux(&load->kernel))
        return load_linux(load);
    if (load_is_multiboot(&load->kernel))
        return load_multiboot(load);
    if (load_is_multiboot2(&load->kernel))
        return load_multiboot2(load);
    return load_fail(load, "%s (%llu bytes): no bzImage and no Multiboot image", load->kernel.name,
                     (unsigned long long)load->kernel.size);
}

void *load_ram(const struct load *load, gpa_t gpa, u64 size)
{
    u64 end = gpa < LOAD_EBDA ? MIN(LOAD_EBDA, load->low_size) : load->low_size;

    if (gpa < PAGE_SIZE || (gpa >= LOAD_EBDA && gpa < LOAD_HIGH_MEMORY))
        return NULL;
    return gpa < end && size <= end - gpa ? load->window + gpa : NULL;
}

void load_copy(const struct load *load, gpa_t gpa, const void *data, u64 size, u64 memory_size)
{
    memcpy(load->window + gpa, data, size);
    memset(load->window + gpa + size, 0, memory_size - size);
}

u32 load_memory_map(const struct load *load, struct load_region map[LOAD_REGION_MAX])
{
    u32 count = 3;

    map[0] = (struct load_region){0, LOAD_EBDA, LOAD_REGION_RAM};
    map[1] = (struct load_region){LOAD_EBDA, LOAD_HIGH_MEMORY - LOAD_EBDA, LOAD_REGION_RESERVED};
    map[2] =
        (struct load_region){LOAD_HIGH_MEMORY, load->low_size - LOAD_HIGH_MEMORY, LOAD_REGION_RAM};
    if (load->high_size)
        map[count++] = (struct load_region){VM_HIGH_RAM_BASE, load->high_size, LOAD_REGION_RAM};
    return count;
}

// A descriptor of base 0 and limit 4 GiB (SDM vol. 3 "Segment Descriptors").
static u64 flat_descriptor(u32 access)
{
    return 0x000f00000000ffffull | (u64)(access & 0xf0ff) << 40;
}

void load_put_gdt(struct load *load, gpa_t gdt, u32 code_access)
{
    u64 table[LOAD_GDT_SIZE / 8] = {
        [LOAD_GDT_CODE / 8] = flat_descriptor(code_access),
        [LOAD_GDT_DATA / 8] = flat_descriptor(LOAD_DATA_ACCESS),
    };

    load_copy(load, gdt, table, sizeof(table), sizeof(table));
    load->gdt = gdt;
    load->code_access = code_access;
}
