// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Physical memory and Nestor's own address space (mmu/page.c, mmu/host.c).
// Two kinds of memory: *pages* (and heap objects) are Nestor's own and mapped in its physmap; *RAM* extents are for guests, and
// mapped only in the address space of the VM that owns them (DESIGN.md section 5).
//
// Virtual layout, the same with 4 and 5 levels (everything is below PML5 entry 511):
//   0xffff800000000000  physmap: Nestor's own pages, at HPA + PHYSMAP_BASE, mapped as they are allocated (NX, writable)
//   0xffffc00000000000  VM window: guest-physical GPA of the current VM at GPA + VM_WINDOW_BASE (NX, writable), 32 TiB
//   0xfffffe8000000000  mappings of devices and firmware tables (mmio_map), stacks with guard pages
//   0xffffffff80000000  the image, linked here wherever GRUB put it; text RX, rodata R, data RW NX

#pragma once

#include <nestor/types.h>

#define PHYSMAP_BASE 0xffff800000000000ull
#define VM_WINDOW_BASE 0xffffc00000000000ull
#define VM_WINDOW_SIZE (32ull << 40)
#define DYNMAP_BASE 0xfffffe8000000000ull
#define IMAGE_BASE 0xffffffff80000000ull

extern u64 image_phys_offset; // HPA of the image = VA - IMAGE_BASE + image_phys_offset

// --- Nestor's own memory. All zeroed. Any CPU; own lock. ---
// 2^order contiguous pages, naturally aligned; NULL if there is none.
void *page_alloc(unsigned order);
void page_free(void *page, unsigned order);
// Small objects, 16-byte aligned; above 2 KiB whole pages. heap_free needs the same size.
void *heap_alloc(size_t size);
void heap_free(void *object, size_t size);
// For page_alloc'd, heap and image addresses.
hpa_t virt_to_phys(const void *va);
// For the HPA of Nestor's own pages only.
static inline void *phys_to_virt(hpa_t hpa)
{
    return (void *)(hpa + PHYSMAP_BASE);
}

// --- RAM for guests: whole extents. Not mapped, not zeroed. Any CPU; own lock. ---
// `size` and `align` in bytes (2 MiB granularity). Returns 0 or -E_NOMEM; above 4 GiB first.
int ram_alloc(u64 size, u64 align, hpa_t *out);
void ram_free(hpa_t base, u64 size);
u64 ram_free_bytes(void); // still free for guests
u64 ram_largest_extent(void);
u64 page_used_bytes(void); // Nestor's own in use

// --- Mappings in Nestor's own half of every address space. Boot or slow paths; own lock. ---
enum map_type { MAP_CACHED, MAP_UNCACHED };
void *mmio_map(hpa_t base, u64 size, enum map_type type); // read-write, NX; page-granular
void mmio_unmap(void *va, u64 size);
// A stack of `pages` pages with a guard page below; returns its top.
void *stack_alloc(unsigned pages);

// --- Address spaces: Nestor's half is shared by all, the VM window is each one's own. ---
struct host_space {
    hpa_t cr3;
};

int host_space_create(struct host_space *space);
void host_space_destroy(struct host_space *space); // no CPU may have it loaded
// Maps RAM [hpa, +size) at VM_WINDOW_BASE + gpa with the largest pages that fit. Before any CPU loads the space.
int host_space_map(struct host_space *space, gpa_t gpa, hpa_t hpa, u64 size);
// Loads the space on this CPU (NULL: Nestor's own, with an empty window).
void host_space_load(struct host_space *space);

// Boot. boot_mem_region: each region of the memory map, as the boot loader told (type 1 = RAM), minus nothing: page_init takes out
// the image, the boot information, the modules and the first MiB by the reservations.
struct mem_region {
    u64 base, size;
    u32 type;
};
void page_init(const struct mem_region *map, u32 count, const struct mem_region *reserved, u32 reserved_count);
// Gives back a range that was reserved (boot code, released modules).
void page_give(hpa_t base, u64 size);
