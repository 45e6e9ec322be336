// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Physical memory and Nestor's own address space (mmu/page.c, mmu/host.c).
// Two kinds of memory: *pages* (and heap objects) are Nestor's own and mapped in its physmap; *RAM*
// extents are for guests, and mapped only in the address space of the VM that owns them.
//
// Virtual layout, the same with 4 and 5 levels (everything is below PML5 entry 511):
//   0xffff800000000000  physmap: Nestor's own pages, at HPA + PHYSMAP_BASE, mapped as they are allocated (NX, writable)
//   0xffffc00000000000  VM window: guest-physical GPA of the current VM at GPA + VM_WINDOW_BASE (NX, writable), 32 TiB
//   0xfffffe8000000000  mappings of devices and firmware tables (mmio_map), stacks with guard pages
//   0xffffffff80000000  the image, linked here wherever GRUB put it; text RX, rodata R, data RW NX

#pragma once

#include <nestor/types.h>

// Unit tests (a hosted compiler) put the physmap where a process may map memory.
#if __STDC_HOSTED__
#define PHYSMAP_BASE 0x400000000000ull
#else
#define PHYSMAP_BASE 0xffff800000000000ull
#endif
#define PHYSMAP_SIZE   (64ull << 40)
#define VM_WINDOW_BASE 0xffffc00000000000ull
#define VM_WINDOW_SIZE (32ull << 40)
#define DYNMAP_BASE    0xfffffe8000000000ull
#define DYNMAP_SIZE    (512ull << 30)
#define IMAGE_BASE     0xffffffff80000000ull

extern u64
    // HPA of the image = VA - IMAGE_BASE + image_phys_offset; the entry code defines and sets it
    image_phys_offset;

// --- Nestor's own memory. All zeroed. Any CPU; own lock. ---
enum { PAGE_ORDER_MAX = 9 }; // 2 MiB

// 2^order contiguous pages, naturally aligned; NULL if there is none, or order > PAGE_ORDER_MAX.
void *page_alloc(unsigned order);
void page_free(void *page, unsigned order);
// Small objects, 16-byte aligned; above 2 KiB whole pages. heap_free needs the same size.
void *heap_alloc(size_t size);
void heap_free(void *object, size_t size);
// For page_alloc'd, heap and image addresses (not for stacks and mmio_map).
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
u64 page_used_bytes(
    void); // Nestor's own pages in use (heap, tables and metadata included; the image is not)
u64 page_owned_bytes(void); // Nestor's own pages, used or free: what guests cannot get
// Whether any byte of [base, +size) is Nestor's own: a page of the allocator (used or free) or of
// the image.
bool page_is_own(hpa_t base, u64 size);

// --- Mappings in Nestor's own half of every address space. Boot or slow paths; own lock. ---
enum map_type { MAP_CACHED, MAP_UNCACHED, MAP_READ_ONLY }; // read-only ones are cached
// NX, with an unmapped page on either side. base and size need not be aligned: whole pages are
// mapped, and the address of `base` itself is returned. NULL: no memory for tables.
void *mmio_map(hpa_t base, u64 size, enum map_type type);
// va and size as mmio_map had them. Flushes the TLB of every CPU by cpu_call before it returns, so
// that the range can be used again at once: hold no lock that another CPU could be waiting for.
void mmio_unmap(void *va, u64 size);
// A stack of `pages` pages with a guard page below (and above); returns its top, NULL if there is
// no memory.
void *stack_alloc(unsigned pages);

// --- Address spaces: Nestor's half is shared by all, the VM window is each one's own. ---
struct host_space {
    hpa_t cr3;
};

int host_space_create(struct host_space *space);
void host_space_destroy(struct host_space *space); // no CPU may have it loaded
// Maps RAM [hpa, +size) at VM_WINDOW_BASE + gpa with the largest pages that fit. Before any CPU
// loads the space. Returns 0, -E_NOMEM, or -E_INVAL (not page-aligned, beyond the window). After an
// error only host_space_destroy is left.
int host_space_map(struct host_space *space, gpa_t gpa, hpa_t hpa, u64 size);
// Loads the space on this CPU (NULL: Nestor's own, with an empty window). Does nothing if it is
// loaded already.
void host_space_load(struct host_space *space);

// --- Boot. In this order, on the boot CPU: host_map_init, page_init. ---
// Builds Nestor's final tables from static pages and loads them: W^X for the image by
// text_start/text_end (RX), rodata_start/rodata_end (R), data_start/data_end (RW, NX; with .bss),
// all page-aligned and within image_start/image_end; nothing else is mapped after it, no identity
// map. Sets CR4.PGE. Wants EFER.NXE, CR0.WP and image_phys_offset set, CR4.LA57 final. mmio_map
// works from here on; before page_init for a few MiB at most (boot information).
void host_map_init(void);
// The root of Nestor's own address space, below 4 GiB; other CPUs load it at their start.
extern hpa_t host_cr3;
// Unmaps [start, end) of the image on every CPU (page-aligned; boot code) and gives the memory to
// the allocator. As mmio_unmap.
void host_image_release(const void *start, const void *end);

struct mem_region {
    u64 base, size;
    u32 type;
};
// map: each region of the memory map, as the boot loader told (type 1 = RAM; any order, overlaps:
// what is not RAM wins); reserved: what to leave out for now: the image, the boot information, the
// modules. The first MiB is always left out, but for low_page_alloc. Panics if there are not 2 MiB
// to start from.
void page_init(const struct mem_region *map, u32 count, const struct mem_region *reserved,
               u32 reserved_count);
// Gives back a range that was reserved (boot code, released modules); only whole pages within it
// are taken.
void page_give(hpa_t base, u64 size);
// A page below 640 KiB, never given back, for trampolines; not zeroed, not mapped (mmio_map). 0 if
// there is none left.
hpa_t low_page_alloc(void);

// --- Between page.c and host.c (unit tests put their own in). The allocator's lock is held. ---
// The shared upper-level tables that [hpa, +size) of the physmap needs, so that all address spaces
// have them. Boot only.
int page_map_prepare(hpa_t hpa, u64 size);
// Maps [hpa, +size), within one 2 MiB frame, in the physmap. 0, or -E_NOMEM with nothing mapped.
int page_map_chunk(hpa_t hpa, u64 size);
// For these two: a zeroed page out of what the allocator has at hand.
void *page_alloc_table(void);
extern struct mem_region page_image; // where the image is; host_map_init sets it
