// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Nestor's own address space and those of the VMs: 4- and 5-level tables (SDM vol. 3, "4-Level
// Paging and 5-Level Paging"). All spaces share the tables of Nestor's half: its PML4 entries are
// complete before the first VM's space is made and never change after, so that a change below them
// is seen everywhere. A VM's space has PML4 entries of its own for its window only.

#include <arch/x86/insn.h>
#include <arch/x86/regs.h>
#include <nestor/cpu.h>
#include <nestor/log.h>
#include <nestor/page.h>
#include <nestor/spinlock.h>
#include <nestor/string.h>

#define PTE_P       BIT(0)
#define PTE_W       BIT(1)
#define PTE_UC      (BIT(3) | BIT(4)) // PWT and PCD: entry 3 of the PAT as the CPU starts
#define PTE_A       BIT(5)
#define PTE_D       BIT(6)
#define PTE_PS      BIT(7)
#define PTE_G       BIT(8)
#define PTE_RETIRED BIT(9) // ours: not present, but some TLB may still hold it
#define PTE_ADDR    BITS(51, 12)
#define PTE_NX      BIT(63)

#define TABLE  (PTE_P | PTE_W | PTE_A)
#define TEXT   (PTE_P | PTE_A | PTE_G)
#define RODATA (PTE_P | PTE_A | PTE_G | PTE_NX)
#define DATA   (PTE_P | PTE_W | PTE_A | PTE_D | PTE_G | PTE_NX)
#define WINDOW (PTE_P | PTE_W | PTE_A | PTE_D | PTE_NX)

#define ENTRIES       512u
#define WINDOW_FIRST  384u
#define WINDOW_LAST   447u
#define MAP_MAX_LEVEL 2u // of Nestor's half

extern const char image_start[], image_end[], text_start[], text_end[], rodata_start[],
    rodata_end[], data_start[], data_end[];

typedef void *(*table_source)(void);

hpa_t host_cr3;
static u64 *master; // PML4 of Nestor's own space

// The tables that are needed before there are pages: PML5, PML4; a PDPT each for physmap, dynmap
// and image; PD and PTs of the image (4 MiB); PD and PTs of the first mappings and of the first
// frame.
static u64 pool[16][ENTRIES] ALIGNED(PAGE_SIZE);
static u32 pool_used;

static struct spinlock
    // the tables of dynmap; those of the physmap are under the page allocator's, taken after it
    map_lock;
static u64 map_hint = DYNMAP_BASE;

static u32 index_of(u64 va, unsigned level)
{
    return (u32)(va >> (3 + 9 * level)) % ENTRIES;
}

static u64 span_of(unsigned level)
{
    return 1ull << (3 + 9 * level);
}

static u64 *table_at(u64 entry)
{
    hpa_t hpa = entry & PTE_ADDR, first = virt_to_phys(pool);

    return hpa - first < sizeof(pool) ? (u64 *)((u64)pool + hpa - first) : phys_to_virt(hpa);
}

static void store(u64 *entry, u64 value)
{
    __atomic_store_n(entry, value, __ATOMIC_RELEASE);
}

static void *pool_alloc(void)
{
    u32 i = __atomic_load_n(&pool_used, __ATOMIC_RELAXED);

    while (i < ARRAY_SIZE(pool))
        if (__atomic_compare_exchange_n(&pool_used, &i, i + 1, false, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED))
            return pool[i];
    return NULL;
}

static void *table_alloc(void)
{
    void *table = pool_alloc();

    return table ? table : page_alloc(0);
}

static void *physmap_table_alloc(void)
{
    void *table = pool_alloc();

    return table ? table : page_alloc_table();
}

static void *window_table_alloc(void)
{
    return page_alloc(0);
}

// The entry of `va` at `level`; tables that are missing above it are made. NULL if there is no
// memory for one.
static u64 *walk(u64 *pml4, u64 va, unsigned level, table_source source)
{
    u64 *table = pml4, *entry, *below;
    unsigned l;

    for (l = 4; l > level; l--) {
        entry = &table[index_of(va, l)];
        if (!*entry) {
            below = source();
            if (!below)
                return NULL;
            store(entry, virt_to_phys(below) | TABLE);
        }
        ASSERT(!(*entry & PTE_PS));
        table = table_at(*entry);
    }
    return &table[index_of(va, level)];
}

// The entry that decides about `va`: a leaf, or one that is not present; *level tells where it is.
static u64 *leaf(u64 *pml4, u64 va, unsigned *level)
{
    u64 *table = pml4, *entry;

    for (*level = 4;; --*level) {
        entry = &table[index_of(va, *level)];
        if (!(*entry & PTE_P) || *level == 1 || (*entry & PTE_PS))
            return entry;
        table = table_at(*entry);
    }
}

static unsigned level_that_fits(u64 va, hpa_t hpa, u64 size, unsigned max_level)
{
    unsigned level = max_level;

    while (level > 1 && (!IS_ALIGNED(va | hpa, span_of(level)) || size < span_of(level)))
        level--;
    return level;
}

// Maps what is not mapped yet. On -E_NOMEM a first part of it is.
static int map_range(u64 *pml4, u64 va, hpa_t hpa, u64 size, u64 flags, unsigned max_level,
                     table_source source)
{
    while (size) {
        unsigned level = level_that_fits(va, hpa, size, max_level);
        u64 *entry = walk(pml4, va, level, source);

        // Where a table is left from earlier mappings, below it.
        while (entry && *entry && level > 1)
            entry = walk(pml4, va, --level, source);
        if (!entry)
            return -E_NOMEM;
        ASSERT(!*entry);
        store(entry, hpa | flags | (level > 1 ? PTE_PS : 0));
        va += span_of(level);
        hpa += span_of(level);
        size -= span_of(level);
    }
    return 0;
}

// Replaces the leaves of [va, +size), which are wholly in it, by `value`.
static void clear_range(u64 va, u64 size, u64 value)
{
    u64 end = va + size;
    unsigned level;

    while (va < end) {
        u64 *entry = leaf(master, va, &level);

        if (*entry)
            store(entry, value);
        va = ALIGN_DOWN(va, span_of(level)) + span_of(level);
    }
}

static void flush_local(void *unused)
{
    u64 cr4 = read_cr4();

    (void)unused;
    write_cr4(cr4 & ~CR4_PGE);
    write_cr4(cr4 | CR4_PGE);
}

static void flush_everywhere(void)
{
    u32 i;

    for (i = 0; cpu_count > 1 && i < cpu_count; i++)
        if (cpus[i] != this_cpu())
            cpu_call(cpus[i], flush_local, NULL);
    flush_local(NULL);
}

// --- Mappings in dynmap: its tables are the record of what is free. ---

// Finds `size` bytes of free addresses from `va` on; 0 if there are none.
static u64 find_run(u64 va, u64 size)
{
    u64 start = va, end = DYNMAP_BASE + DYNMAP_SIZE;
    unsigned level;

    while (va < end && va - start < size) {
        u64 *entry = leaf(master, va, &level);

        va = ALIGN_DOWN(va, span_of(level)) + span_of(level);
        if (*entry)
            start = va;
    }
    return MIN(va, end) - start >= size ? start : 0;
}

// Addresses for `size` bytes, with a free page on either side, in step with hpa for large pages if
// that pays.
static u64 address_alloc(u64 size, hpa_t hpa)
{
    u64 room = size + 2 * PAGE_SIZE + (size >= SIZE_2M ? SIZE_2M : 0);
    u64 start = find_run(map_hint, room);

    if (!start)
        start = find_run(DYNMAP_BASE, room);
    if (!start)
        return 0;
    start += PAGE_SIZE;
    if (size >= SIZE_2M)
        start += (hpa - start) & (SIZE_2M - 1);
    map_hint = start + size;
    return start;
}

static void address_free(u64 va, u64 size)
{
    clear_range(va, size, 0);
    map_hint = MIN(map_hint, va - PAGE_SIZE);
}

// The addresses are not free for others before the last TLB has forgotten them.
void mmio_unmap(void *va, u64 size)
{
    u64 first = ALIGN_DOWN((u64)va, PAGE_SIZE), bytes = ALIGN_UP((u64)va + size, PAGE_SIZE) - first;

    if (!va)
        return;
    spin_lock(&map_lock);
    clear_range(first, bytes, PTE_RETIRED);
    spin_unlock(&map_lock);
    flush_everywhere();
    spin_lock(&map_lock);
    address_free(first, bytes);
    spin_unlock(&map_lock);
}

void *mmio_map(hpa_t base, u64 size, enum map_type type)
{
    static const u64 flags[] = {
        [MAP_CACHED] = DATA,
        [MAP_UNCACHED] = DATA | PTE_UC,
        [MAP_READ_ONLY] = RODATA,
    };
    hpa_t first = ALIGN_DOWN(base, PAGE_SIZE);
    u64 bytes = ALIGN_UP(base + size, PAGE_SIZE) - first, va;
    int error = 0;

    if (!size || base + size < base || base + size > BIT(52) || bytes > DYNMAP_SIZE)
        return NULL;
    spin_lock(&map_lock);
    va = address_alloc(bytes, first);
    if (va)
        error = map_range(master, va, first, bytes, flags[type], MAP_MAX_LEVEL, table_alloc);
    spin_unlock(&map_lock);
    if (error)
        mmio_unmap((void *)va, bytes);
    return va && !error ? (void *)(va + (base - first)) : NULL;
}

static void free_list(void *page)
{
    void *next;

    for (; page; page = next) {
        next = *(void **)page;
        page_free(page, 0);
    }
}

void *stack_alloc(unsigned pages)
{
    u64 va, size = pages * PAGE_SIZE;
    void *list = NULL, *page;
    int error = 0;
    unsigned i;

    spin_lock(&map_lock);
    va = address_alloc(size, 0);
    for (i = 0; va && i < pages && !error; i++) {
        page = page_alloc(0);
        if (page) {
            *(void **)page = list; // what is to be freed if the rest is not to be had
            list = page;
        }
        error = page ? map_range(master, va + i * PAGE_SIZE, virt_to_phys(page), PAGE_SIZE, DATA, 1,
                                 table_alloc)
                     : -E_NOMEM;
    }
    spin_unlock(&map_lock);
    if (error) {
        mmio_unmap((void *)va, size);
        free_list(list);
    }
    return va && !error ? (void *)(va + size) : NULL;
}

// --- The physmap, for the page allocator. ---

INIT_TEXT int page_map_prepare(hpa_t hpa, u64 size)
{
    u64 at;

    for (at = ALIGN_DOWN(hpa, span_of(4)); at < hpa + size; at += span_of(4))
        if (!walk(master, PHYSMAP_BASE + at, 3, physmap_table_alloc))
            return -E_NOMEM;
    return 0;
}

int page_map_chunk(hpa_t hpa, u64 size)
{
    return map_range(master, PHYSMAP_BASE + hpa, hpa, size, DATA, MAP_MAX_LEVEL,
                     physmap_table_alloc);
}

// --- The image. ---

INIT_TEXT static void map_image(const char *start, const char *end, u64 flags)
{
    if (map_range(master, (u64)start, virt_to_phys(start), (u64)(end - start), flags, 1,
                  pool_alloc))
        panic("the image of %llu KiB is too large for the static page tables",
              (unsigned long long)(image_end - image_start) >> 10);
}

INIT_TEXT void host_map_init(void)
{
    bool la57 = read_cr4() & CR4_LA57;
    u64 *root = pool_alloc();

    page_image.base = virt_to_phys(image_start);
    page_image.size = (u64)(image_end - image_start);
    master = root;
    if (la57) {
        master = pool_alloc();
        root[ENTRIES - 1] = virt_to_phys(master) | TABLE;
    }
    map_image(text_start, text_end, TEXT);
    map_image(rodata_start, rodata_end, RODATA);
    map_image(data_start, data_end, DATA);
    // Dynmap's one PML4 entry, for all spaces to share.
    ASSERT(walk(master, DYNMAP_BASE, 3, pool_alloc));
    host_cr3 = virt_to_phys(root);
    ASSERT(host_cr3 < BIT(32));
    write_cr3(host_cr3);
    flush_local(NULL);
}

void host_image_release(const void *start, const void *end)
{
    u64 size = (u64)end - (u64)start;

    ASSERT(IS_ALIGNED((u64)start | (u64)end, PAGE_SIZE));
    clear_range((u64)start, size, 0);
    flush_everywhere();
    page_give(virt_to_phys(start), size);
}

// --- VMs' address spaces. ---

static u64 *space_pml4(const struct host_space *space)
{
    u64 *root = phys_to_virt(space->cr3);

    return host_cr3 == virt_to_phys(master) ? root : table_at(root[ENTRIES - 1]);
}

int host_space_create(struct host_space *space)
{
    u64 *pml4 = page_alloc(0), *root = pml4;
    u32 i;

    if (pml4 && host_cr3 != virt_to_phys(master)) {
        root = page_alloc(0);
        if (root)
            root[ENTRIES - 1] = virt_to_phys(pml4) | TABLE;
    }
    if (!root) {
        page_free(pml4, 0);
        return -E_NOMEM;
    }
    for (i = ENTRIES / 2; i < ENTRIES; i++)
        if (i < WINDOW_FIRST || i > WINDOW_LAST)
            pml4[i] = master[i];
    space->cr3 = virt_to_phys(root);
    return 0;
}

// Frees what is below entries first..last of a table at `level`.
static void tables_free(u64 *table, unsigned level, u32 first, u32 last)
{
    u32 i;

    for (i = first; level > 1 && i <= last; i++) {
        if (!(table[i] & PTE_P) || (table[i] & PTE_PS))
            continue;
        tables_free(table_at(table[i]), level - 1, 0, ENTRIES - 1);
        page_free(table_at(table[i]), 0);
    }
}

void host_space_destroy(struct host_space *space)
{
    u64 *pml4;

    if (!space->cr3)
        return;
    pml4 = space_pml4(space);
    tables_free(pml4, 4, WINDOW_FIRST, WINDOW_LAST);
    page_free(pml4, 0);
    if (virt_to_phys(pml4) != space->cr3)
        page_free(phys_to_virt(space->cr3), 0);
    space->cr3 = 0;
}

static bool has_1g_pages(void)
{
    return cpuid(0x80000001, 0).edx & BIT(26);
}

int host_space_map(struct host_space *space, gpa_t gpa, hpa_t hpa, u64 size)
{
    if (!IS_ALIGNED(gpa | hpa | size, PAGE_SIZE) || gpa > VM_WINDOW_SIZE ||
        size > VM_WINDOW_SIZE - gpa)
        return -E_INVAL;
    ASSERT(!page_is_own(hpa, size));
    return map_range(space_pml4(space), VM_WINDOW_BASE + gpa, hpa, size, WINDOW,
                     has_1g_pages() ? 3 : 2, window_table_alloc);
}

void host_space_load(struct host_space *space)
{
    hpa_t cr3 = space ? space->cr3 : host_cr3;
    struct cpu *cpu = this_cpu();

    if (cpu->cr3 == cr3)
        return;
    write_cr3(cr3);
    cpu->cr3 = cr3;
    cpu->vm_space = space;
}
