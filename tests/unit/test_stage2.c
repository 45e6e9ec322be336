// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: mmu/stage2.c
// unit-libs:
//
// Stage-2 tables as the hardware reads them: a walker written from the manuals (EPT: SDM vol. 3,
// tables "Format of an EPT ..."; NPT: APM vol. 2, figures of the long-mode entries), which fails on
// misconfigured entries, beside a model with one state for each page. Freed tables are filled with
// ones, so that a walk through one is found.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include <nestor/log.h>
#include <nestor/page.h>
#include <nestor/stage2.h>

#include "rng.h"

enum { ARENA_PAGES = 16384 };
#define ARENA_SIZE (ARENA_PAGES * PAGE_SIZE)

static u8 *arena;
static u32 free_pages[ARENA_PAGES], free_count;
static u32 allowed = ~0u; // page_alloc fails when it is used up

void panic(const char *fmt, ...)
{
    mock_assert(0, fmt, __FILE__, __LINE__);
    abort();
}

void *page_alloc(unsigned order)
{
    u8 *page;

    assert_int_equal(order, 0);
    if (!allowed || !free_count)
        return NULL;
    allowed -= allowed != ~0u;
    page = arena + free_pages[--free_count] * PAGE_SIZE;
    return memset(page, 0, PAGE_SIZE);
}

void page_free(void *page, unsigned order)
{
    u64 offset = (u64)page - (u64)arena;

    assert_true(order == 0 && offset < ARENA_SIZE && IS_ALIGNED(offset, PAGE_SIZE) &&
                free_count < ARENA_PAGES);
    memset(page, 0xff, PAGE_SIZE);
    free_pages[free_count++] = (u32)(offset / PAGE_SIZE);
}

hpa_t virt_to_phys(const void *va)
{
    return (u64)va - PHYSMAP_BASE;
}

bool page_is_own(hpa_t base, u64 size)
{
    return size && base < ARENA_SIZE;
}

static u32 pages_out(void)
{
    return ARENA_PAGES - free_count;
}

static int setup(void **state)
{
    u32 i;

    (void)state;
    if (!arena)
        arena = mmap((void *)PHYSMAP_BASE, ARENA_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    assert_ptr_equal(arena, (void *)PHYSMAP_BASE);
    memset(arena, 0xff, ARENA_SIZE);
    for (i = 0; i < ARENA_PAGES; i++)
        free_pages[i] = i;
    free_count = ARENA_PAGES;
    allowed = ~0u;
    rng_state = 0x2545f4914f6cdd1dull;
    return 0;
}

// --- What the hardware sees. ---

struct seen {
    bool present;
    u64 hpa, page_size;
    unsigned rights;
    unsigned type; // EPT: the type and 8 * "ignore PAT"; NPT: index of the PAT
};

static struct seen ept_walk(u64 root, unsigned levels, u64 gpa)
{
    struct seen seen = {.rights = 7};
    u64 table = root;
    int shift;

    for (shift = 12 + 9 * ((int)levels - 1);; shift -= 9) {
        u64 entry = ((u64 *)(PHYSMAP_BASE + table))[gpa >> shift & 511];

        if ((entry & 7) == 0)
            return (struct seen){0};
        assert_true((entry & 3) != 2);                   // misconfiguration: writable, not readable
        assert_int_equal(entry & 0xfff0000000000c00, 0); // what Nestor does not use
        seen.rights &= entry & 7;
        if (shift == 12 || (shift <= 30 && (entry >> 7 & 1))) {
            unsigned type = entry >> 3 & 7;

            assert_true(type == 0 || type == 1 || type == 4 || type == 5 || type == 6);
            assert_true(shift > 12 || !(entry >> 7 & 1));
            assert_int_equal((entry & 0xffffffffff000) & ((1ull << shift) - 1), 0);
            seen.present = true;
            seen.page_size = 1ull << shift;
            seen.hpa = (entry & 0xffffffffff000) | (gpa & (seen.page_size - 1));
            seen.type = type + 8 * (entry >> 6 & 1);
            return seen;
        }
        assert_int_equal(entry & 0xf8, 0); // reserved in entries that point to tables
        table = entry & 0xffffffffff000;
    }
}

static struct seen npt_walk(u64 root, unsigned levels, u64 gpa)
{
    struct seen seen = {.rights = 7};
    u64 table = root;
    int shift;

    for (shift = 12 + 9 * ((int)levels - 1);; shift -= 9) {
        u64 entry = ((u64 *)(PHYSMAP_BASE + table))[gpa >> shift & 511];

        if (!(entry & 1))
            return (struct seen){0};
        assert_true(entry & 4); // guest accesses are user accesses
        assert_int_equal(entry & 0x7ff0000000000f00, 0);
        if (!(entry & 2))
            seen.rights &= ~2u;
        if (entry >> 63)
            seen.rights &= ~4u;
        if (shift == 12 || (shift <= 30 && (entry >> 7 & 1))) {
            assert_int_equal((entry & 0xffffffffff000) & ((1ull << shift) - 1),
                             0); // with the PAT bit of large pages
            seen.present = true;
            seen.page_size = 1ull << shift;
            seen.hpa = (entry & 0xffffffffff000) | (gpa & (seen.page_size - 1));
            seen.type = (entry >> 3 & 3) + (shift == 12 ? (entry >> 7 & 1) * 4 : 0);
            return seen;
        }
        assert_int_equal(entry & 0x98, 0); // reserved PS; tables are read as WB
        table = entry & 0xffffffffff000;
    }
}

static struct seen walk(const struct stage2 *s2, u64 gpa)
{
    return (s2->format == &stage2_ept ? ept_walk : npt_walk)(s2->root, s2->levels, gpa);
}

static unsigned seen_type(const struct stage2 *s2, enum mem_type type)
{
    static const unsigned ept[8] = {0, 1, 99, 99, 4, 5, 6 + 8, 0};
    static const unsigned npt[8] = {3, 2, 99, 99, 1, 3, 0, 2}; // PAT after reset: WB WT UC- UC

    return (s2->format == &stage2_ept ? ept : npt)[type];
}

// --- The model. ---

enum { MODEL_PAGES = 3 * 512 * 512 }; // 3 GiB

struct page_state {
    u64 hpa;
    u8 rights, type; // rights 0: not mapped
};

static struct page_state model[MODEL_PAGES];
static u64 model_base;

static void check_page(const struct stage2 *s2, u64 page)
{
    u64 gpa = model_base + page * PAGE_SIZE + below(PAGE_SIZE);
    struct seen seen = walk(s2, gpa);
    struct stage2_entry entry;

    assert_int_equal(seen.present, model[page].rights != 0);
    assert_int_equal(stage2_lookup(s2, gpa, &entry), seen.present ? 0 : -E_NOENT);
    if (!seen.present)
        return;
    assert_int_equal(seen.hpa, model[page].hpa + gpa % PAGE_SIZE);
    assert_true(seen.page_size <= (s2->has_1g ? SIZE_1G : SIZE_2M));
    assert_int_equal(seen.rights, model[page].rights);
    assert_int_equal(seen.type, seen_type(s2, model[page].type));
    assert_true(entry.hpa == seen.hpa && entry.page_size == seen.page_size &&
                entry.rights == seen.rights);
    assert_int_equal(seen_type(s2, entry.type), seen.type);
}

static void check_around(const struct stage2 *s2, u64 page, u64 count)
{
    u64 i;

    for (i = 0; i < 2; i++) {
        if (page >= i + 1)
            check_page(s2, page - i - 1);
        if (page + count + i < MODEL_PAGES)
            check_page(s2, page + count + i);
        check_page(s2, page + MIN(i, count - 1));
        check_page(s2, page + count - 1 - MIN(i, count - 1));
    }
    for (i = 0; i < 12; i++) {
        check_page(s2, page + below(count));
        check_page(s2, below(MODEL_PAGES));
    }
}

static void random_range(u64 *page, u64 *count)
{
    static const u64 units[] = {1, 1, 16, 512, 512, 512 * 512};
    u64 unit = units[below(6)];

    *page = below(MODEL_PAGES / unit) * unit;
    *count = (1 + below(unit == 512 * 512 ? 2 : 40)) * unit;
    *count = MIN(*count, MODEL_PAGES - *page);
    if (below(4) == 0 && *count > 1)
        *count -= below(*count - 1);
}

static unsigned random_rights(const struct stage2 *s2)
{
    static const unsigned rights[] = {7, 3, 1, 5, 4};

    return rights[below(s2->format == &stage2_ept ? 5 : 4)];
}

// One random change to both. Returns what stage2 said.
static int random_change(struct stage2 *s2, u64 *page, u64 *count)
{
    static const u8 types[] = {MEM_WB, MEM_WB, MEM_UC, MEM_WC, MEM_WT, MEM_WP, MEM_UC_MINUS};
    u64 size, gpa, hpa, i, kind = below(3);
    unsigned rights = random_rights(s2);
    u8 type = types[below(ARRAY_SIZE(types))];
    bool owes = false;
    int result;

    random_range(page, count);
    gpa = model_base + *page * PAGE_SIZE;
    size = *count * PAGE_SIZE;
    hpa = (8 + below(4)) * SIZE_1G + gpa % SIZE_1G;
    if (below(3) == 0)
        hpa += below(1024) * PAGE_SIZE;
    result = kind == 0   ? stage2_map(s2, gpa, hpa, size, rights, type)
             : kind == 1 ? stage2_unmap(s2, gpa, size)
                         : stage2_protect(s2, gpa, size, rights);
    if (result < 0)
        return result;
    for (i = 0; i < *count; i++) {
        struct page_state *at = &model[*page + i], old = *at;

        if (kind == 0)
            *at = (struct page_state){hpa + i * PAGE_SIZE, (u8)rights, type};
        else if (old.rights)
            at->rights = kind == 1 ? 0 : (u8)rights;
        owes |= old.rights && (old.rights != at->rights || old.hpa != at->hpa ||
                               seen_type(s2, old.type) != seen_type(s2, at->type));
    }
    assert_true(!owes || result == STAGE2_FLUSH);
    return result;
}

static void random_run(const struct stage2_format *format, unsigned levels, bool has_1g)
{
    struct stage2 s2;
    u64 page, count, i;
    u32 round, failures = 0, flushes = 0;

    setup(NULL);
    memset(model, 0, sizeof(model));
    model_base = levels == 5 ? BIT(48) - SIZE_1G : 0; // over the edge of a PML5 entry
    assert_int_equal(stage2_create(&s2, format, levels, has_1g), 0);
    for (round = 0; round < 1500; round++) {
        u32 out = pages_out(), pages = s2.pages;
        int result;

        allowed = below(4) == 0 ? (u32)below(4) : ~0u;
        result = random_change(&s2, &page, &count);
        allowed = ~0u;
        if (result == -E_NOMEM) {
            assert_true(pages_out() == out && s2.pages == pages);
            failures++;
        }
        flushes += result == STAGE2_FLUSH;
        check_around(&s2, page, count);
        if (below(2))
            stage2_reap(&s2);
        assert_true(s2.retired || pages_out() == s2.pages);
    }
    for (i = 0; i < MODEL_PAGES; i += 1 + below(8))
        check_page(&s2, i);
    assert_true(failures > 20 && flushes > 100);
    stage2_destroy(&s2);
    assert_int_equal(pages_out(), 0);
}

static void test_random(void **state)
{
    (void)state;
    random_run(&stage2_ept, 4, true);
    random_run(&stage2_ept, 5, false);
    random_run(&stage2_npt, 4, true);
    random_run(&stage2_npt, 5, true);
    random_run(&stage2_npt, 4, false);
}

static void test_largest_pages(void **state)
{
    struct stage2 s2;
    u64 gpa = SIZE_1G - SIZE_2M - PAGE_SIZE, end = 3 * SIZE_1G + SIZE_2M + PAGE_SIZE;

    (void)state;
    stage2_create(&s2, &stage2_ept, 4, true);
    assert_int_equal(stage2_map(&s2, gpa, gpa + 8 * SIZE_1G, end - gpa, STAGE2_RWX, MEM_WB), 0);
    assert_int_equal(walk(&s2, gpa).page_size, PAGE_SIZE);
    assert_int_equal(walk(&s2, gpa + PAGE_SIZE).page_size, SIZE_2M);
    assert_int_equal(walk(&s2, SIZE_1G).page_size, SIZE_1G);
    assert_int_equal(walk(&s2, 3 * SIZE_1G - 1).page_size, SIZE_1G);
    assert_int_equal(walk(&s2, 3 * SIZE_1G).page_size, SIZE_2M);
    assert_int_equal(walk(&s2, end - 1).page_size, PAGE_SIZE);
    assert_false(walk(&s2, end).present || walk(&s2, gpa - 1).present);
    assert_int_equal(s2.pages, 1 + 1 + 2 + 2); // PML4, PDPT, a PD and a PT at either end
    stage2_destroy(&s2);
    stage2_create(&s2, &stage2_npt, 4, true); // out of step by 4 KiB, then by 2 MiB
    assert_int_equal(stage2_map(&s2, 0, 8 * SIZE_1G + PAGE_SIZE, SIZE_2M, STAGE2_RWX, MEM_WB), 0);
    assert_int_equal(walk(&s2, 0).page_size, PAGE_SIZE);
    assert_int_equal(
        stage2_map(&s2, 4 * SIZE_1G, 8 * SIZE_1G + SIZE_2M, SIZE_1G, STAGE2_RWX, MEM_WB), 0);
    assert_int_equal(walk(&s2, 4 * SIZE_1G).page_size, SIZE_2M);
    stage2_destroy(&s2);
    assert_int_equal(pages_out(), 0);
}

static void test_split_and_rejoin(void **state)
{
    struct stage2 s2;

    (void)state;
    stage2_create(&s2, &stage2_ept, 4, true);
    stage2_map(&s2, 0, 8 * SIZE_1G, SIZE_1G, STAGE2_RWX, MEM_WB);
    assert_int_equal(s2.pages, 2);
    assert_int_equal(stage2_protect(&s2, SIZE_2M + PAGE_SIZE, PAGE_SIZE, STAGE2_R), STAGE2_FLUSH);
    assert_int_equal(s2.pages, 4);
    assert_int_equal(walk(&s2, SIZE_2M).page_size, PAGE_SIZE);
    assert_int_equal(walk(&s2, SIZE_2M).rights, 7);
    assert_int_equal(walk(&s2, SIZE_2M + PAGE_SIZE).rights, 1);
    assert_int_equal(walk(&s2, 0).page_size, SIZE_2M);
    // Nothing to do is no change: no table, no flush.
    assert_int_equal(stage2_protect(&s2, 0, PAGE_SIZE, STAGE2_RWX), 0);
    assert_int_equal(stage2_unmap(&s2, 4 * SIZE_1G + PAGE_SIZE, SIZE_2M), 0);
    assert_int_equal(stage2_protect(&s2, 4 * SIZE_1G, SIZE_2M, STAGE2_R), 0);
    assert_int_equal(stage2_map(&s2, 0, 8 * SIZE_1G, SIZE_2M, STAGE2_RWX, MEM_WB), 0);
    assert_int_equal(stage2_unmap(&s2, 0, 0), 0);
    assert_int_equal(s2.pages, 4);
    // The tables below go, but not before the flush is done.
    assert_int_equal(stage2_map(&s2, 0, 8 * SIZE_1G, SIZE_1G, STAGE2_RWX, MEM_WB), STAGE2_FLUSH);
    assert_int_equal(walk(&s2, SIZE_2M + PAGE_SIZE).page_size, SIZE_1G);
    assert_true(s2.pages == 2 && pages_out() == 4);
    stage2_reap(&s2);
    assert_int_equal(pages_out(), 2);
    stage2_destroy(&s2);
    assert_int_equal(pages_out(), 0);
}

static void test_refused(void **state)
{
    static const struct {
        const struct stage2_format *format;
        unsigned rights;
        int result;
    } rights[] = {
        {&stage2_ept, 0, -E_INVAL}, {&stage2_ept, 2, -E_INVAL}, {&stage2_ept, 6, -E_INVAL},
        {&stage2_ept, 8, -E_INVAL}, {&stage2_ept, 4, 0},        {&stage2_npt, 4, -E_INVAL},
        {&stage2_npt, 6, -E_INVAL}, {&stage2_npt, 2, -E_INVAL}, {&stage2_npt, 0, -E_INVAL},
        {&stage2_npt, 1, 0},
    };
    struct stage2 s2;
    struct stage2_entry entry;
    u32 i;

    (void)state;
    for (i = 0; i < ARRAY_SIZE(rights); i++) {
        stage2_create(&s2, rights[i].format, 4, true);
        assert_int_equal(stage2_map(&s2, 0, SIZE_1G, PAGE_SIZE, rights[i].rights, MEM_WB),
                         rights[i].result);
        assert_int_equal(stage2_protect(&s2, 0, PAGE_SIZE, rights[i].rights), rights[i].result);
        assert_int_equal(s2.pages, rights[i].result ? 1 : 4);
        stage2_destroy(&s2);
    }
    stage2_create(&s2, &stage2_ept, 4, true);
    assert_int_equal(stage2_map(&s2, 0, SIZE_1G, PAGE_SIZE, 7, 2), -E_INVAL);
    assert_int_equal(stage2_map(&s2, 0, SIZE_1G, PAGE_SIZE, 7, 3), -E_INVAL);
    assert_int_equal(stage2_map(&s2, 1, SIZE_1G, PAGE_SIZE, 7, MEM_WB), -E_INVAL);
    assert_int_equal(stage2_map(&s2, 0, SIZE_1G + 1, PAGE_SIZE, 7, MEM_WB), -E_INVAL);
    assert_int_equal(stage2_map(&s2, 0, SIZE_1G, PAGE_SIZE + 1, 7, MEM_WB), -E_INVAL);
    assert_int_equal(stage2_map(&s2, BIT(48), SIZE_1G, PAGE_SIZE, 7, MEM_WB), -E_INVAL);
    assert_int_equal(stage2_map(&s2, BIT(48) - PAGE_SIZE, SIZE_1G, 2 * PAGE_SIZE, 7, MEM_WB),
                     -E_INVAL);
    assert_int_equal(stage2_map(&s2, 0, BIT(52) - PAGE_SIZE, 2 * PAGE_SIZE, 7, MEM_WB), -E_INVAL);
    assert_int_equal(stage2_map(&s2, 0, SIZE_1G, -PAGE_SIZE, 7, MEM_WB), -E_INVAL);
    assert_int_equal(stage2_unmap(&s2, PAGE_SIZE, -PAGE_SIZE), -E_INVAL);
    assert_int_equal(
        stage2_map(&s2, BIT(48) - PAGE_SIZE, BIT(52) - PAGE_SIZE, PAGE_SIZE, 7, MEM_WB), 0);
    assert_int_equal(walk(&s2, BIT(48) - 1).hpa, BIT(52) - 1);
    assert_int_equal(stage2_lookup(&s2, BIT(48) + BIT(47), &entry), -E_NOENT);
    stage2_destroy(&s2);
    stage2_create(&s2, &stage2_npt, 5, true);
    assert_int_equal(stage2_map(&s2, BIT(52) - PAGE_SIZE, SIZE_1G, PAGE_SIZE, 7, MEM_WB), 0);
    assert_int_equal(stage2_map(&s2, BIT(52), SIZE_1G, PAGE_SIZE, 7, MEM_WB), -E_INVAL);
    stage2_destroy(&s2);
    stage2_destroy(&s2); // once more does no harm
    assert_int_equal(pages_out(), 0);
}

static void test_own_pages_stay_out(void **state)
{
    struct stage2 s2;

    (void)state;
    stage2_create(&s2, &stage2_ept, 4, true);
    expect_assert_failure(stage2_map(&s2, 0, ARENA_SIZE - PAGE_SIZE, PAGE_SIZE, 7, MEM_WB));
    stage2_destroy(&s2);
}

static void test_no_memory(void **state)
{
    struct stage2 s2;
    u32 n;

    (void)state;
    allowed = 0;
    assert_int_equal(stage2_create(&s2, &stage2_ept, 4, true), -E_NOMEM);
    allowed = ~0u;
    stage2_create(&s2, &stage2_ept, 5, true);
    for (n = 0; n < 7; n++) { // two PTs, two PDs, a PDPT, a PML4 ...
        allowed = n;
        assert_int_equal(
            stage2_map(&s2, SIZE_1G - PAGE_SIZE, 4 * SIZE_1G, 2 * PAGE_SIZE, 7, MEM_WB),
            n < 6 ? -E_NOMEM : 0);
        assert_int_equal(s2.pages, n < 6 ? 1 : 7);
        assert_int_equal(pages_out(), s2.pages);
    }
    allowed = ~0u;
    stage2_map(&s2, 4 * SIZE_1G, 8 * SIZE_1G, SIZE_1G, 7, MEM_WB);
    allowed = 1;
    assert_int_equal(stage2_unmap(&s2, 4 * SIZE_1G, PAGE_SIZE), -E_NOMEM);
    assert_int_equal(walk(&s2, 4 * SIZE_1G).page_size, SIZE_1G);
    allowed = 0;
    assert_int_equal(stage2_unmap(&s2, 4 * SIZE_1G, SIZE_1G), STAGE2_FLUSH);
    assert_false(walk(&s2, 4 * SIZE_1G).present);
    stage2_destroy(&s2);
    assert_int_equal(pages_out(), 0);
}

// --- Shadows: what is there is what was filled last; what was filled may be gone. ---

static u32 pool_free(const struct stage2_pool *pool)
{
    const u64 *table = pool->free;
    u32 n;

    for (n = 0; table; n++)
        table = (const u64 *)table[0];
    return n;
}

enum { FILLS = 4000 };
static struct {
    u64 gpa, hpa, size;
    unsigned rights;
} fills[FILLS];

static void check_fills(const struct stage2 *s2, unsigned first, unsigned count)
{
    unsigned i, j;

    for (i = first; i < count; i++) {
        u64 gpa = fills[i].gpa + below(fills[i].size);
        struct seen seen = walk(s2, gpa);

        for (j = count - 1; gpa - fills[j].gpa >= fills[j].size; j--)
            ;
        assert_true(seen.present || j < count - 1);
        if (!seen.present)
            continue;
        assert_int_equal(seen.hpa, fills[j].hpa + (gpa - fills[j].gpa));
        assert_int_equal(seen.page_size, fills[j].size);
        assert_int_equal(seen.rights, fills[j].rights);
    }
}

static void test_shadow(void **state)
{
    static const u64 sizes[] = {PAGE_SIZE, SIZE_2M, SIZE_1G};
    struct stage2_pool pool;
    struct stage2 s2;
    unsigned i, n = 0, first = 0, limited = 0;

    (void)state;
    assert_int_equal(stage2_create(&s2, &stage2_ept, 4, true), 0);
    assert_int_equal(stage2_pool_create(&pool, 50), 0);
    for (i = 0; i < FILLS; i++) {
        u64 size = fills[n].size = sizes[below(60) ? below(5) == 0 : 2];
        int ret;

        fills[n].gpa = ALIGN_DOWN(below(3 * SIZE_1G), size) + below(2) * 600 * SIZE_1G;
        fills[n].hpa = (1 + below(60)) * SIZE_1G;
        fills[n].rights = random_rights(&s2);
        ret = stage2_fill(&s2, &pool, fills[n].gpa + (size - PAGE_SIZE), // any page of it will do
                          fills[n].hpa + (size - PAGE_SIZE), size, fills[n].rights, MEM_WB);
        if (ret == -E_NOMEM) {
            assert_int_equal(pool.pages, pool.limit);
            stage2_clear(&s2, &pool);
            assert_false(walk(&s2, fills[n - 1].gpa).present);
            assert_int_equal(s2.pages, 1);
            first = n;
            limited++;
            continue;
        }
        n++;
        assert_true(ret == 0 || ret == STAGE2_FLUSH);
        assert_int_equal(s2.pages - 1 + pool_free(&pool), pool.pages);
        if (first < n && below(8) == 0)
            check_fills(&s2, first, n);
    }
    assert_true(limited > 2);
    stage2_clear(&s2, &pool);
    assert_int_equal(pool_free(&pool), pool.pages);
    stage2_pool_destroy(&pool);
    stage2_destroy(&s2);
    assert_int_equal(pages_out(), 0);
}

static void test_pool_without_memory(void **state)
{
    struct stage2_pool pool;

    (void)state;
    allowed = 3;
    assert_int_equal(stage2_pool_create(&pool, 50), -E_NOMEM);
    stage2_pool_destroy(&pool);
    assert_int_equal(pages_out(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_random, setup),
        cmocka_unit_test_setup(test_largest_pages, setup),
        cmocka_unit_test_setup(test_split_and_rejoin, setup),
        cmocka_unit_test_setup(test_refused, setup),
        cmocka_unit_test_setup(test_own_pages_stay_out, setup),
        cmocka_unit_test_setup(test_no_memory, setup),
        cmocka_unit_test_setup(test_shadow, setup),
        cmocka_unit_test_setup(test_pool_without_memory, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
