// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources:
// unit-libs:
//
// The page allocator, the RAM extents and the heap, with their files included so that each test
// starts anew. Memory is made where page_map_chunk asks for it, so that a touch of anything
// unmapped is a crash. The model is one state for each page.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "mmu/page.c"
#include "mmu/heap.c"

#include "rng.h"

u64 image_phys_offset = 0x200000;
enum log_level log_level = LOG_DEBUG;

static unsigned warnings, tables_taken, pool_left;
static bool refuse_maps;
static u8 have_pd[1 << 16]; // 1 GiB each
static u8 have_pt[1 << 20]; // 2 MiB each, below 2 TiB

void log_line(enum log_level level, const char *fmt, ...)
{
    (void)fmt;
    warnings += level <= LOG_WARN;
}

void panic(const char *fmt, ...)
{
    mock_assert(0, fmt, __FILE__, __LINE__);
    abort();
}

// Tables cost what they cost in host.c: a PD for each GiB, a PT for each frame that is mapped in
// pieces; a few are static.
static bool table(u8 *have)
{
    if (*have)
        return true;
    if (pool_left)
        pool_left--;
    else if (page_alloc_table())
        tables_taken++;
    else
        return false;
    *have = 1;
    return true;
}

int page_map_prepare(hpa_t hpa, u64 size)
{
    return hpa + size <= PHYSMAP_SIZE ? 0 : -E_NOMEM;
}

int page_map_chunk(hpa_t hpa, u64 size)
{
    void *at = phys_to_virt(hpa);

    assert_true(size && IS_ALIGNED(hpa | size, PAGE_SIZE));
    assert_int_equal(hpa / SIZE_2M, (hpa + size - 1) / SIZE_2M);
    if (refuse_maps || !table(&have_pd[hpa / SIZE_1G]))
        return -E_NOMEM;
    if (size < SIZE_2M && !table(&have_pt[hpa / SIZE_2M]))
        return -E_NOMEM;
    assert_ptr_equal(mmap(at, size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0),
                     at);
    memset(at, 0xcc, size); // free memory is not zero
    return 0;
}

static int setup(void **state)
{
    static hpa_t bases[4096]; // `frames` may be in one of them
    u32 i;

    (void)state;
    assert_true(frame_count <= ARRAY_SIZE(bases));
    for (i = 0; i < frame_count; i++)
        bases[i] = frames[i].base;
    for (i = 0; i < frame_count; i++)
        munmap(phys_to_virt(bases[i]), SIZE_2M);
    page_lock = heap_lock = (struct spinlock){0};
    extents = first_extents;
    extent_count = frame_count = frame_hint = low_count = 0;
    extent_max = ARRAY_SIZE(first_extents);
    frames = first_frames;
    frame_max = ARRAY_SIZE(first_frames);
    spare_trees = first_trees;
    spare_tree_count = 4;
    pages_free = pages_used = 0;
    memset(partial, 0, sizeof(partial));
    memset(have_pd, 0, sizeof(have_pd));
    memset(have_pt, 0, sizeof(have_pt));
    page_image = (struct mem_region){0x200000, 0x80000, 0};
    warnings = tables_taken = 0;
    pool_left = 2;
    refuse_maps = false;
    rng_state = 0x9e3779b97f4a7c15ull;
    return 0;
}

// What a node of a tree must say, worked out from the pages. taken: a node above is an allocated
// block.
static u32 tree_value(const u8 *tree, u32 node, unsigned order)
{
    u32 left, right;

    if (order == 0)
        return tree[node] & FREE_MASK;
    if (!tree[node])
        return 0; // taken as a whole, or nothing free
    if (tree[node] == order + 1)
        return order + 1;
    left = tree_value(tree, 2 * node, order - 1);
    right = tree_value(tree, 2 * node + 1, order - 1);
    return MAX(left, right);
}

static void check_tree(const u8 *tree, u32 node, unsigned order)
{
    if (order == 0 || tree[node] == order + 1 || !tree[node])
        return;
    assert_int_equal(tree[node], tree_value(tree, node, order));
    check_tree(tree, 2 * node, order - 1);
    check_tree(tree, 2 * node + 1, order - 1);
}

static void check_state(void)
{
    u32 i;

    for (i = 0; i < extent_count; i++) {
        assert_true(extents[i].size && IS_ALIGNED(extents[i].base | extents[i].size, SIZE_2M));
        if (i)
            assert_true(extents[i - 1].base + extents[i - 1].size < extents[i].base);
    }
    for (i = 0; i < frame_count; i++) {
        assert_true(IS_ALIGNED(frames[i].base, SIZE_2M));
        assert_true(!i || frames[i - 1].base < frames[i].base);
        check_tree(frames[i].tree, 1, PAGE_ORDER_MAX);
    }
    assert_true(extent_count <= extent_max && frame_count <= frame_max);
}

static bool in_extent(hpa_t hpa)
{
    u32 i;

    for (i = 0; i < extent_count; i++)
        if (hpa >= extents[i].base && hpa < extents[i].base + extents[i].size)
            return true;
    return false;
}

static void init_simple(u64 mib)
{
    const struct mem_region map[] = {
        {0, 0x9fc00, 1}, {0x9fc00, 0x400, 2}, {0x100000, MIB(mib) - 0x100000, 1}};
    const struct mem_region reserved[] = {{0x200000, 0x80000, 0}};

    page_init(map, 3, reserved, 1);
}

// --- The memory map. ---

enum { MODEL_PAGES = 64 * 256 };

static bool byte_is_ram(const struct mem_region *map, u32 count, const struct mem_region *res,
                        u32 res_count, u64 at)
{
    bool ram = false;
    u32 i;

    for (i = 0; i < count; i++)
        if (at - map[i].base < map[i].size) {
            if (map[i].type != 1)
                return false;
            ram = true;
        }
    for (i = 0; i < res_count; i++)
        if (at - res[i].base < res[i].size)
            return false;
    return ram;
}

// All edges in the random maps are multiples of 512 bytes.
static bool page_is_ram(const struct mem_region *map, u32 count, const struct mem_region *res,
                        u32 res_count, u64 page)
{
    u64 at;

    for (at = page; at < page + PAGE_SIZE; at += 512)
        if (!byte_is_ram(map, count, res, res_count, at))
            return false;
    return true;
}

static void random_region(struct mem_region *region, u64 largest)
{
    u64 unit = below(3) == 0 ? 512 : below(2) ? PAGE_SIZE : SIZE_2M;

    region->base = below(MODEL_PAGES * PAGE_SIZE / unit) * unit;
    region->size = below(largest / unit + 1) * unit;
    region->size = MIN(region->size, MODEL_PAGES * PAGE_SIZE - region->base);
    region->type = below(3) ? 1 : 2 + (u32)below(4);
}

static void check_map(const struct mem_region *map, u32 count, const struct mem_region *res,
                      u32 res_count)
{
    u64 page;
    hpa_t low;

    for (page = 0; page < MODEL_PAGES * PAGE_SIZE; page += PAGE_SIZE) {
        bool usable = page >= FIRST_MIB && page_is_ram(map, count, res, res_count, page);
        struct frame *frame = frame_of(page);
        bool own = frame && frame->tree[FRAME_PAGES + (page - frame->base) / PAGE_SIZE] != NOT_OWN;

        assert_false(own && in_extent(page));
        assert_int_equal(own || in_extent(page), usable);
        if (page - page_image.base >= page_image.size)
            assert_int_equal(page_is_own(page, PAGE_SIZE), own);
    }
    while ((low = low_page_alloc()) != 0)
        assert_true(low < LOW_TOP && page_is_ram(map, count, res, res_count, low));
}

static void test_random_maps(void **state)
{
    struct mem_region map[24], res[8];
    u32 round, i, count, res_count;

    for (round = 0; round < 60; round++) {
        u64 seed = rng_state;

        setup(state);
        rng_state = seed;
        count = 4 + (u32)below(20);
        res_count = (u32)below(8);
        for (i = 0; i < count; i++)
            random_region(&map[i], MIB(24));
        map[below(count)] = (struct mem_region){MIB(24), MIB(8), 1};
        for (i = 0; i < res_count; i++)
            random_region(&res[i], MIB(2));
        for (i = 0; i < count; i++) // a piece to start from
            if (map[i].type != 1 && map[i].base < MIB(28) && map[i].base + map[i].size > MIB(26))
                map[i].type = 1;
        for (i = 0; i < res_count; i++)
            if (res[i].base < MIB(28) && res[i].base + res[i].size > MIB(26))
                res[i].size = 0;
        page_init(map, count, res, res_count);
        check_state();
        check_map(map, count, res, res_count);
        assert_int_equal(warnings, 0);
    }
}

static void test_wild_map(void **state)
{
    // Regions that wrap, reach beyond any address, or are empty; RAM above 4 GiB, 512 GiB and the
    // physmap.
    const struct mem_region map[] = {
        {~0ull - 4095, 8192, 1},
        {BIT(52) - SIZE_2M, ~0ull, 1},
        {BIT(60), SIZE_2M, 2},
        {MIB(8), 0, 2},
        {MIB(1), MIB(31), 1},
        {4 * SIZE_1G, SIZE_1G, 1},
        {600 * SIZE_1G, 2 * SIZE_1G, 1},
        {100ull << 40, SIZE_1G + KIB(64), 1},
        {4 * SIZE_1G, SIZE_1G, 1},
    };

    (void)state;
    page_init(map, ARRAY_SIZE(map), NULL, 0);
    check_state();
    assert_int_equal(ram_free_bytes(), SIZE_2M + MIB(28) + SIZE_1G + 2 * SIZE_1G + SIZE_1G);
    assert_int_equal(ram_largest_extent(), 2 * SIZE_1G);
    assert_int_equal(low_page_alloc(), 0);
    // One frame, the odd MiB, and nothing else: what Nestor costs before guests.
    assert_int_equal(page_owned_bytes(), SIZE_2M + MIB(1));
}

static void test_no_memory(void **state)
{
    const struct mem_region map[] = {{0, 0xa0000, 1}, {0x100000, 0x200000, 1}};
    const struct mem_region high = {100ull << 40, SIZE_1G, 1};

    expect_assert_failure(page_init(map, 2, NULL, 0));
    setup(state);
    expect_assert_failure(page_init(&high, 1, NULL, 0));
}

static void test_low_pages(void **state)
{
    u64 seen = 0, expected = 0x9f000, page;

    (void)state;
    init_simple(32);
    while ((page = low_page_alloc()) != 0) {
        expected -= PAGE_SIZE;
        assert_int_equal(page, expected);
        seen++;
    }
    assert_int_equal(seen, 0x9e); // not page 0, not the one that the BIOS cuts
}

static void test_many_extents(void **state)
{
    enum { COUNT = 700 };
    static struct mem_region map[COUNT];
    u64 total = 0;
    u32 i;

    (void)state;
    for (i = 0; i < COUNT; i++) { // from the top down
        map[i] = (struct mem_region){MIB(2) + (COUNT - i) * MIB(6), MIB(4), 1};
        total += MIB(4);
    }
    page_init(map, COUNT, NULL, 0);
    check_state();
    assert_int_equal(extent_count, COUNT - page_owned_bytes() / MIB(4));
    assert_int_equal(ram_free_bytes() + page_owned_bytes(), total);
    assert_int_equal(warnings, 0);
}

// Pieces that cost more than they bring.
static void test_many_pieces(void **state)
{
    enum { COUNT = 3000 };
    static struct mem_region map[COUNT + 1];
    u32 i;

    (void)state;
    for (i = 0; i < COUNT; i++)
        map[i] = (struct mem_region){SIZE_1G + i * SIZE_2M + KIB(64), PAGE_SIZE, 1};
    map[COUNT] = (struct mem_region){MIB(2), MIB(8), 1};
    page_init(map, COUNT + 1, NULL, 0);
    check_state();
    for (i = 0; i < COUNT; i++)
        assert_true(page_is_own(map[i].base, PAGE_SIZE));
    assert_int_equal(warnings, 0);
    assert_int_equal(page_owned_bytes() + ram_free_bytes(), COUNT * PAGE_SIZE + MIB(8));
}

static void test_give(void **state)
{
    const struct mem_region map[] = {{MIB(1), MIB(63), 1}};
    const struct mem_region reserved[] = {{MIB(10) + 0x3000, MIB(20) + 0x234, 0},
                                          {MIB(40), 0x5000, 0}};
    u64 owned, ram;

    (void)state;
    page_init(map, 1, reserved, 2);
    owned = page_owned_bytes();
    ram = ram_free_bytes();
    assert_false(page_is_own(MIB(40), 0x5000));
    page_give(MIB(40), 0x5000);
    assert_true(page_is_own(MIB(40), PAGE_SIZE) && page_is_own(MIB(40) + 0x4000, 1));
    assert_int_equal(page_owned_bytes(), owned + 0x5000);
    page_give(MIB(10) + 0x3000, MIB(20) + 0x234); // its last page is not whole
    assert_int_equal(ram_free_bytes(), ram + MIB(18));
    assert_int_equal(page_owned_bytes(), owned + 0x5000 + MIB(2));
    assert_true(page_is_own(MIB(30) + 0x2fff, 1) && page_is_own(MIB(10) + 0x3000, 1));
    assert_false(page_is_own(MIB(30) + 0x3000, PAGE_SIZE));
    assert_false(page_is_own(MIB(12), MIB(18)));
    assert_true(page_is_own(MIB(12), MIB(18) + 1) && page_is_own(MIB(12) - 1, MIB(18)));
    check_state();
    expect_assert_failure(page_give(MIB(40), 0x1000));
}

static void test_give_without_pages(void **state)
{
    const struct mem_region map[] = {{MIB(1), MIB(63), 1}};
    const struct mem_region reserved[] = {{MIB(40), SIZE_2M, 0}};

    (void)state;
    page_init(map, 1, reserved, 1);
    pool_left = 0;
    while (page_alloc_table())
        ;
    page_give(MIB(40) + KIB(64), PAGE_SIZE);
    assert_true(page_is_own(MIB(40) + KIB(64), 1) && warnings == 0);
}

// --- Guests' RAM. ---

static void test_ram_policy(void **state)
{
    const struct mem_region map[] = {{MIB(1), 3 * SIZE_1G - MIB(1), 1},
                                     {4 * SIZE_1G, MIB(300), 1},
                                     {5 * SIZE_1G - MIB(512), 4 * SIZE_1G + MIB(512), 1}};
    hpa_t hpa;

    (void)state;
    page_init(map, 3, NULL, 0);
    assert_int_equal(ram_alloc(SIZE_1G, 0, &hpa), 0);
    assert_int_equal(hpa, 5 * SIZE_1G); // aligned, though an unaligned place is lower
    assert_int_equal(ram_alloc(MIB(200), 0, &hpa), 0);
    assert_int_equal(hpa, 4 * SIZE_1G); // the smallest extent that fits
    assert_int_equal(ram_alloc(3 * SIZE_1G + MIB(2), 0, &hpa), -E_NOMEM);
    assert_int_equal(ram_alloc(3 * SIZE_1G, 0, &hpa), 0);
    assert_int_equal(hpa, 6 * SIZE_1G);
    assert_int_equal(ram_alloc(SIZE_1G + MIB(700), 0, &hpa), 0);
    assert_int_equal(hpa, SIZE_1G); // below 4 GiB, since there is no other
    assert_int_equal(ram_alloc(1, MIB(256), &hpa), 0);
    assert_int_equal(hpa, 4 * SIZE_1G + MIB(256));
    assert_int_equal(ram_alloc(0, 0, &hpa), -E_INVAL);
    assert_int_equal(ram_alloc(SIZE_2M, 3 * SIZE_2M, &hpa), -E_INVAL);
    assert_int_equal(ram_alloc(~0ull, 0, &hpa), -E_INVAL);
    check_state();
}

static void test_ram_random(void **state)
{
    enum { LIVE = 200 };
    struct extent live[LIVE];
    u64 before, used = 0;
    u32 count = 0, round, i;

    (void)state;
    init_simple(1024);
    before = ram_free_bytes();
    for (round = 0; round < 6000; round++) {
        if (count < LIVE && below(5) < 3) {
            u64 size = (1 + below(8)) * SIZE_2M, align = SIZE_2M << below(3);

            if (ram_alloc(size, align, &live[count].base) != 0)
                continue;
            assert_true(IS_ALIGNED(live[count].base, align) &&
                        !page_is_own(live[count].base, size));
            for (i = 0; i < count; i++)
                assert_true(live[i].base >= live[count].base + size ||
                            live[i].base + live[i].size <= live[count].base);
            live[count++].size = size;
            used += size;
        } else if (count) {
            i = (u32)below(count);
            ram_free(live[i].base, live[i].size);
            used -= live[i].size;
            live[i] = live[--count];
        }
        check_state();
        assert_int_equal(ram_free_bytes() + used, before);
    }
    while (count--)
        ram_free(live[count].base, live[count].size);
    assert_int_equal(ram_free_bytes(), before);
    assert_int_equal(ram_largest_extent(), before);
    expect_assert_failure(ram_free(MIB(512), SIZE_2M));
}

// --- Pages. ---

static bool all_bytes(const u8 *at, u8 value, u64 size)
{
    return at[0] == value && memcmp(at, at + 1, size - 1) == 0;
}

static void test_pages_random(void **state)
{
    enum { LIVE = 1500 };
    static struct {
        u8 *va;
        unsigned order;
        u8 mark;
    } live[LIVE];
    u64 before, used;
    u32 count = 0, round, i;

    (void)state;
    init_simple(256);
    before = used = page_used_bytes();
    for (round = 0; round < 30000; round++) {
        if (count < LIVE && below(9) < 5) {
            unsigned order = below(20) ? (unsigned)below(4) : (unsigned)below(10);
            u64 tables = tables_taken, metadata = page_used_bytes();
            u8 *va = page_alloc(order);

            assert_non_null(va);
            assert_true(IS_ALIGNED(virt_to_phys(va), PAGE_SIZE << order) &&
                        all_bytes(va, 0, PAGE_SIZE << order));
            assert_true(page_is_own(virt_to_phys(va), PAGE_SIZE << order) &&
                        !in_extent(virt_to_phys(va)));
            memset(va, live[count].mark = (u8)(1 + below(255)), PAGE_SIZE << order);
            live[count].va = va;
            live[count++].order = order;
            metadata = page_used_bytes() - metadata - (PAGE_SIZE << order); // tables, trees, arrays
            assert_true(metadata <= 8 * PAGE_SIZE &&
                        metadata >= (tables_taken - tables) * PAGE_SIZE);
            used += metadata + (PAGE_SIZE << order);
            before += metadata;
        } else if (count) {
            i = (u32)below(count);
            assert_true(all_bytes(live[i].va, live[i].mark, PAGE_SIZE << live[i].order));
            page_free(live[i].va, live[i].order);
            used -= PAGE_SIZE << live[i].order;
            live[i] = live[--count];
        }
        assert_int_equal(page_used_bytes(), used);
        if (round % 64 == 0)
            check_state();
    }
    for (; count; count--)
        page_free(live[count - 1].va, live[count - 1].order);
    check_state();
    assert_int_equal(page_used_bytes(), before);
    assert_true(before < MIB(256) / 200);
}

static void test_pages_run_out(void **state)
{
    void *first = NULL, *page;
    u64 count = 0, used;

    (void)state;
    init_simple(512);
    used = page_used_bytes();
    while ((page = page_alloc(0)) != NULL) { // a chain through them all
        *(void **)page = first;
        first = page;
        count++;
    }
    assert_int_equal(ram_free_bytes(), 0);
    assert_true(count > 511 * 256 - 600 && pages_free <= RESERVE_PAGES);
    assert_true(frame_count > ARRAY_SIZE(first_frames));
    check_state();
    used = page_used_bytes() - count * PAGE_SIZE;
    for (; first; first = page) {
        page = *(void **)first;
        page_free(first, 0);
    }
    assert_int_equal(page_used_bytes(), used);
    assert_non_null(page = page_alloc(PAGE_ORDER_MAX)); // the buddies have found each other
    page_free(page, PAGE_ORDER_MAX);
    assert_null(page_alloc(PAGE_ORDER_MAX + 1));
    check_state();
}

static void test_pages_misuse(void **state)
{
    u8 *volatile page, *volatile block, *pair; // kept across the longjmp
    volatile u32 found = 0;

    (void)state;
    init_simple(16);
    page = page_alloc(0);
    page_free(NULL, 0);
    page_free(page, 0);
    expect_assert_failure(page_free(page, 0));
    page_lock = (struct spinlock){0};
    block = page_alloc(2);
    expect_assert_failure(page_free(block + PAGE_SIZE, 0)); // a part
    page_lock = (struct spinlock){0};
    expect_assert_failure(page_free(block + PAGE_SIZE, 2));
    page_lock = (struct spinlock){0};
    page_free(block, 2);
    while (!IS_ALIGNED(virt_to_phys(page = page_alloc(0)), 2 * PAGE_SIZE))
        ;
    block = page_alloc(0);
    assert_ptr_equal(page + PAGE_SIZE, block);
    page_free(page, 1); // a pair may go as one
    check_state();
    expect_assert_failure(page_free(block, 0)); // but once
    page_lock = (struct spinlock){0};
    for (pair = page; found < 2; found += page == pair || page == block)
        assert_non_null(page = page_alloc(0));
    expect_assert_failure(page_free(phys_to_virt(MIB(15)), 0)); // not Nestor's
    page_lock = (struct spinlock){0};
    assert_int_equal(virt_to_phys((void *)(IMAGE_BASE + 0x1234)), 0x201234);
    assert_true(page_is_own(0x27f000, 1) && page_is_own(0, MIB(512)));
}

static void test_map_refused(void **state)
{
    u64 ram, n = 0;

    (void)state;
    init_simple(64);
    ram = ram_free_bytes();
    refuse_maps = true;
    while (page_alloc(0))
        n++;
    assert_int_equal(pages_free, RESERVE_PAGES);
    assert_true(n > 512 && ram_free_bytes() == ram);
    refuse_maps = false;
    assert_non_null(page_alloc(0));
    assert_int_equal(ram_free_bytes(), ram - SIZE_2M);
    check_state();
}

// --- The heap. ---

static void test_heap(void **state)
{
    enum { LIVE = 1000 };
    static struct {
        u8 *at;
        size_t size;
        u8 mark;
    } live[LIVE];
    u64 before;
    u32 count = 0, round, i;

    (void)state;
    init_simple(64);
    before = page_used_bytes();
    for (round = 0; round < 40000; round++) {
        if (count < LIVE && below(9) < 5) {
            size_t size = below(8) ? below(200) : below(2) ? below(2100) : below(20000);
            u8 *at = heap_alloc(size);

            assert_non_null(at);
            assert_true(IS_ALIGNED((u64)at, 16) && (!size || all_bytes(at, 0, size)));
            memset(at, live[count].mark = (u8)(1 + below(255)), size);
            live[count].at = at;
            live[count++].size = size;
        } else if (count) {
            i = (u32)below(count);
            assert_true(!live[i].size || all_bytes(live[i].at, live[i].mark, live[i].size));
            heap_free(live[i].at, live[i].size);
            live[i] = live[--count];
        }
    }
    for (; count; count--)
        heap_free(live[count - 1].at, live[count - 1].size);
    heap_free(NULL, 16);
    assert_int_equal(page_used_bytes(), before);
    assert_null(heap_alloc(SIZE_2M + 1));
    live[0].at = heap_alloc(100);
    expect_assert_failure(heap_free(live[0].at, 200)); // another class
}

static void test_heap_is_dense(void **state)
{
    static const struct {
        size_t size;
        u32 in_page;
    } cases[] = {{16, 254}, {64, 63}, {128, 31}, {240, 16}, {496, 8}, {1008, 4}, {2032, 2}};
    void *object = NULL;
    u32 i, j;

    (void)state;
    init_simple(64);
    for (i = 0; i < ARRAY_SIZE(cases); i++) {
        u64 before = page_used_bytes();

        for (j = 0; j < cases[i].in_page; j++)
            object = heap_alloc(cases[i].size);
        assert_int_equal(page_used_bytes(), before + PAGE_SIZE);
        heap_free(object, cases[i].size);
        assert_ptr_equal(heap_alloc(cases[i].size), object);
        heap_alloc(cases[i].size);
        assert_int_equal(page_used_bytes(), before + 2 * PAGE_SIZE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_random_maps, setup),
        cmocka_unit_test_setup(test_wild_map, setup),
        cmocka_unit_test_setup(test_no_memory, setup),
        cmocka_unit_test_setup(test_low_pages, setup),
        cmocka_unit_test_setup(test_many_extents, setup),
        cmocka_unit_test_setup(test_many_pieces, setup),
        cmocka_unit_test_setup(test_give, setup),
        cmocka_unit_test_setup(test_give_without_pages, setup),
        cmocka_unit_test_setup(test_ram_policy, setup),
        cmocka_unit_test_setup(test_ram_random, setup),
        cmocka_unit_test_setup(test_pages_random, setup),
        cmocka_unit_test_setup(test_pages_run_out, setup),
        cmocka_unit_test_setup(test_pages_misuse, setup),
        cmocka_unit_test_setup(test_map_refused, setup),
        cmocka_unit_test_setup(test_heap, setup),
        cmocka_unit_test_setup(test_heap_is_dense, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
