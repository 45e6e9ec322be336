// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: mmu/guest_walk.c
// unit-libs:
//
// The guest page-table walker against tables whose builder knows what they mean: each case chooses
// what every level says, writes the entries as the SDM's figures show them, and works out the
// outcome from the choices, by the lists of "Determination of Access Rights", never by reading the
// entries again.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/regs.h>
#include <nestor/guest_walk.h>

#include "rng.h"

static bool often(void)
{
    return below(8) != 0;
}

// --- Guest memory: one page for each level. ---

static struct {
    u64 gpa;
    u8 bytes[PAGE_SIZE];
} tables[6];

static u32 reads, exchanges;
static u64 unreadable, unwritable; // entries that stage 2 hides
static void (*racer)(gpa_t gpa);   // another vCPU, just before the exchange

static u8 *at(gpa_t gpa)
{
    u32 i;

    for (i = 0; i < ARRAY_SIZE(tables); i++)
        if (tables[i].gpa && gpa - tables[i].gpa < PAGE_SIZE)
            return &tables[i].bytes[gpa - tables[i].gpa];
    return NULL;
}

static int mem_read(void *ctx, gpa_t gpa, void *value, unsigned size)
{
    assert_ptr_equal(ctx, &tables);
    assert_true((size == 4 || size == 8) && IS_ALIGNED(gpa, size));
    reads++;
    if (gpa == unreadable || !at(gpa))
        return -E_FAULT;
    memcpy(value, at(gpa), size);
    return 0;
}

static int mem_cmpxchg(void *ctx, gpa_t gpa, u64 old, u64 new_value, unsigned size)
{
    u64 now = 0;

    assert_ptr_equal(ctx, &tables);
    exchanges++;
    if (racer)
        racer(gpa);
    if (gpa == unwritable)
        return -E_FAULT;
    memcpy(&now, at(gpa), size);
    if (now != old)
        return -E_AGAIN;
    memcpy(at(gpa), &new_value, size);
    return 0;
}

static const struct walk_memory memory = {mem_read, mem_cmpxchg, &tables};

// --- Cases. ---

enum mode { MODE_OFF, MODE_32, MODE_PAE, MODE_4, MODE_5 };

struct level {
    bool present, w, u, xd, a, d, reserved;
    u64 entry, gpa;
    unsigned size;
};

struct test_case {
    enum mode mode;
    struct paging_state ps;
    int top, leaf;
    struct level level[6];
    u32 access, key;
    u64 la, page; // where the leaf points to
    bool bad_pdpte_registers;
};

static int shift_of(const struct test_case *c, int level)
{
    return 12 + (level - 1) * (c->mode == MODE_32 ? 10 : 9);
}

static bool wide(const struct test_case *c)
{
    return c->mode >= MODE_4;
}

static bool nxe(const struct test_case *c)
{
    return c->mode != MODE_32 && (c->ps.efer & EFER_NX);
}

// A bit that must be 0 in the entry of `level`, by the figures of the formats; -1 if there is none.
static int reserved_bit(const struct test_case *c, int level)
{
    bool leaf = level == c->leaf, pdpte = c->mode == MODE_PAE && level == 3;
    int bits[64], count = 0, bit, phys = c->ps.phys_bits;

    if (c->mode == MODE_32) {
        for (bit = (phys < 40 ? phys : 40) - 19; leaf && level == 2 && bit <= 21; bit++)
            bits[count++] = bit;
        return count ? bits[below((u64)count)] : -1;
    }
    for (bit = phys; bit <= (wide(c) ? 51 : 62); bit++)
        bits[count++] = bit;
    if (pdpte || !nxe(c))
        bits[count++] = 63;
    for (bit = 1; pdpte && bit <= 8; bit += bit == 2 ? 3 : 1)
        if (bit != 5 || !c->ps.pdpte_from_memory) // QEMU sets A there
            bits[count++] = bit;
    if (wide(c) && (level >= 4 || (level == 3 && !c->ps.page1g)))
        bits[count++] = 7;
    for (bit = 13; leaf && level > 1 && bit < shift_of(c, level); bit++)
        bits[count++] = bit;
    return count ? bits[below((u64)count)] : -1;
}

// Bits that the CPU ignores, or that say nothing about rights (PWT, PCD, G, PAT).
static u64 free_bits(const struct test_case *c, int level)
{
    bool leaf = level == c->leaf;
    u64 bits = BIT(3) | BIT(4) | BITS(11, 9);

    if (c->mode == MODE_PAE && level == 3)
        return bits;
    if (leaf)
        bits |= BIT(8) | (level == 1 ? BIT(7) : BIT(12));
    if (c->mode == MODE_32 && level == 2 && !leaf)
        bits |= BIT(8) | (c->ps.cr4 & CR4_PSE ? 0 : BIT(7));
    if (wide(c))
        bits |= BITS(58, 52);
    if (wide(c) && !leaf)
        bits |= BITS(62, 59);
    return bits;
}

static void build_level(struct test_case *c, int level, u64 points_to)
{
    struct level *l = &c->level[level];
    bool leaf = level == c->leaf, pdpte = c->mode == MODE_PAE && level == 3;
    int reserved = below(24) ? -1 : reserved_bit(c, level);

    l->present = below(24);
    l->w = often();
    l->u = below(3);
    l->xd = nxe(c) && !often();
    l->a = below(2);
    l->d = below(2);
    l->size = c->mode == MODE_32 ? 4 : 8;
    l->entry = points_to | (below(~0ull) & free_bits(c, level)) | (u64)l->present;
    if (pdpte)
        l->w = l->u = true, l->xd = false;
    else
        l->entry |=
            (u64)l->w << 1 | (u64)l->u << 2 | (u64)l->xd << 63 | (u64)l->a << 5 | (u64)l->d << 6;
    if (leaf && level > 1)
        l->entry |= BIT(7);
    if (leaf && wide(c))
        l->entry |= (u64)c->key << 59;
    l->reserved = reserved >= 0 && !(l->entry >> reserved & 1);
    if (l->reserved)
        l->entry |= BIT(reserved);
    if (!l->present && below(2)) // then nothing else counts
        l->entry = below(~0ull) & ~1ull;
    l->entry &= c->mode == MODE_32 ? 0xffffffff : ~0ull;
}

static u64 random_page(const struct test_case *c, int shift)
{
    int bits = wide(c) || c->mode == MODE_PAE ? c->ps.phys_bits : 32;

    return (below(BIT(bits - shift) - 1) + 1) << shift;
}

static void choose_state(struct test_case *c)
{
    static const u8 phys[] = {36, 40, 46, 52, 39, 32};
    struct paging_state *ps = &c->ps;

    c->mode = (enum mode)(1 + below(4));
    ps->phys_bits = phys[below(ARRAY_SIZE(phys))];
    ps->page1g = below(2);
    ps->nx = true;
    ps->cr0 = CR0_PE | CR0_PG | (below(3) ? CR0_WP : 0);
    ps->cr4 = (below(2) ? CR4_PSE : 0) | (below(2) ? CR4_SMEP : 0) | (below(2) ? CR4_SMAP : 0) |
              (below(2) ? CR4_PKE : 0) | (below(2) ? CR4_PKS : 0) |
              (c->mode >= MODE_PAE ? CR4_PAE : 0) | (c->mode == MODE_5 ? CR4_LA57 : 0);
    ps->efer = (wide(c) ? EFER_LME | EFER_LMA : 0) | (below(3) ? EFER_NX : 0);
    ps->rflags = below(2) ? RFLAGS_AC : 0;
    c->key = (u32)below(16);
    ps->pkru = (u32)(below(3) ? 0 : below(4)) << (2 * c->key);
    ps->pkrs = (u32)(below(3) ? 0 : below(4)) << (2 * c->key);
    ps->pkru |= (u32)below(~0u) & ~(3u << (2 * c->key)); // the other keys do not matter
    ps->pkrs |= (u32)below(~0u) & ~(3u << (2 * c->key));
    ps->pdpte_from_memory = below(2);
}

static void choose_access(struct test_case *c)
{
    static const u32 kinds[] = {WALK_READ, WALK_WRITE, WALK_FETCH, WALK_SHADOW_STACK,
                                WALK_SHADOW_STACK | WALK_WRITE};

    c->access = kinds[below(below(4) ? 3 : 5)] | (below(2) ? WALK_USER : 0);
    if (!(c->access & (WALK_USER | WALK_FETCH | WALK_SHADOW_STACK)) && below(3) == 0)
        c->access |= WALK_IMPLICIT;
    if (c->access & WALK_SHADOW_STACK)
        c->ps.cr0 |= CR0_WP; // CR4.CET wants it
}

static void choose_leaf(struct test_case *c)
{
    c->top = c->mode == MODE_32 ? 2 : c->mode == MODE_PAE ? 3 : c->mode == MODE_4 ? 4 : 5;
    c->leaf = 1;
    if (below(2) && (c->mode != MODE_32 || (c->ps.cr4 & CR4_PSE)))
        c->leaf = wide(c) && c->ps.page1g && below(2) ? 3 : 2;
}

static void make_case(struct test_case *c)
{
    int level, bits;
    u64 points_to;

    *c = (struct test_case){0};
    choose_state(c);
    choose_access(c);
    choose_leaf(c);
    c->la = below(~0ull);
    if (!wide(c))
        c->la &= 0xffffffff;
    memset(tables, 0, sizeof(tables));
    c->page = points_to = random_page(c, shift_of(c, c->leaf));
    if (c->mode == MODE_32 && c->leaf == 2 && c->ps.phys_bits > 32) { // PSE-36
        bits = (c->ps.phys_bits < 40 ? c->ps.phys_bits : 40) - 32;
        c->page |= below(BIT(bits)) << 32;
        points_to = (c->page & 0xffffffff) | (c->page >> 32) << 13;
    }
    for (level = c->leaf; level <= c->top; level++) {
        build_level(c, level, points_to);
        do
            tables[level].gpa =
                random_page(c, 12) & (c->mode == MODE_PAE && level == 3 ? 0xffffffff : ~0ull);
        while (!tables[level].gpa);
        points_to = tables[level].gpa;
        c->level[level].gpa = points_to + (c->la >> shift_of(c, level)) %
                                              (c->mode == MODE_32 ? 1024 : 512) *
                                              c->level[level].size;
        memcpy(at(c->level[level].gpa), &c->level[level].entry, c->level[level].size);
    }
    c->ps.cr3 = points_to | (below(2) ? 0x18 : 0); // PCD, PWT
    if (c->mode == MODE_PAE) {
        c->ps.cr3 = points_to + 32 * below(2);
        if (c->ps.cr3 != points_to && c->ps.pdpte_from_memory) { // the four need not start a page
            memmove(at(c->level[3].gpa) + 32, at(c->level[3].gpa), 8);
            memset(at(c->level[3].gpa), 0, 8);
            c->level[3].gpa += 32;
        }
        c->ps.pdpte[c->la >> 30] = c->level[3].entry;
        if (!c->ps.pdpte_from_memory)
            memset(at(points_to), 0, 64); // memory does not count
        else
            memset(c->ps.pdpte, 0, sizeof(c->ps.pdpte));
    }
}

// --- The outcome. ---

// SDM vol. 3, "Determination of Access Rights": the lists, one after the other.
static bool access_allowed(const struct test_case *c, bool user_page, bool w, bool above_w, bool xd,
                           bool leaf_w, bool leaf_d)
{
    const struct paging_state *ps = &c->ps;
    bool wp = ps->cr0 & CR0_WP;

    if (c->access & WALK_SHADOW_STACK)
        return above_w && !leaf_w && leaf_d && user_page == !!(c->access & WALK_USER);
    if (c->access & WALK_USER) {
        if (!user_page)
            return false;
        if (c->access & WALK_FETCH)
            return !xd;
        return !(c->access & WALK_WRITE) || w;
    }
    if (c->access & WALK_FETCH) {
        if (user_page)
            return !(ps->cr4 & CR4_SMEP) && !xd;
        return !xd;
    }
    if (user_page && (ps->cr4 & CR4_SMAP)) {
        if (c->access & WALK_IMPLICIT)
            return false;
        if (!(ps->rflags & RFLAGS_AC))
            return false;
    }
    if (c->access & WALK_WRITE)
        return wp ? w : true;
    return true;
}

static bool key_allows(const struct test_case *c, bool user_page)
{
    u32 bits = (user_page ? c->ps.pkru : c->ps.pkrs) >> (2 * c->key) & 3;

    if (!wide(c) || (c->access & WALK_FETCH))
        return true;
    if (!(c->ps.cr4 & (user_page ? CR4_PKE : CR4_PKS)))
        return true;
    if (bits & 1)
        return false;
    if (!(bits & 2) || !(c->access & WALK_WRITE))
        return true;
    if (user_page && (c->access & WALK_USER))
        return false;
    if (c->access & WALK_USER)
        return false; // the page's own rights forbid it too
    return !(c->ps.cr0 & CR0_WP);
}

struct outcome {
    bool fault;
    u32 code;
    bool w, u, x;
};

static struct outcome expect_outcome(const struct test_case *c)
{
    struct outcome o = {.code = c->access & (2 | 4 | 64), .w = true, .u = true, .x = true};
    bool above_w = true, key;
    int level;

    if ((c->access & WALK_FETCH) && (nxe(c) || (c->ps.cr4 & CR4_SMEP)))
        o.code |= 16;
    for (level = c->top; level >= c->leaf; level--) {
        const struct level *l = &c->level[level];

        if (!l->present) {
            o.fault = true;
            return o;
        }
        if (l->reserved) {
            o.fault = true;
            o.code |= 1 | 8;
            return o;
        }
        if (level > c->leaf)
            above_w &= l->w;
        o.w &= l->w;
        o.u &= l->u;
        o.x &= !l->xd;
    }
    key = key_allows(c, o.u);
    o.fault = !key ||
              !access_allowed(c, o.u, o.w, above_w, !o.x, c->level[c->leaf].w, c->level[c->leaf].d);
    o.code |= 1 | (key ? 0 : 32);
    return o;
}

static u64 entry_now(const struct test_case *c, int level)
{
    u64 entry = 0;

    memcpy(&entry, at(c->level[level].gpa), c->level[level].size);
    return entry;
}

static void check_accessed(const struct test_case *c, bool fault)
{
    int level;

    for (level = c->leaf; level <= c->top; level++) {
        u64 expected = c->level[level].entry;

        if (c->mode == MODE_PAE && level == 3) {
            if (!c->ps.pdpte_from_memory)
                continue;
        } else if (!fault) {
            expected |= BIT(5);
            if (level == c->leaf && (c->access & WALK_WRITE))
                expected |= BIT(6);
        }
        assert_int_equal(entry_now(c, level), expected);
    }
}

static void test_random(void **state)
{
    u32 round, faults[2] = {0}, codes = 0;
    static u8 seen[128];

    (void)state;
    for (round = 0; round < 400000; round++) {
        struct test_case c;
        struct outcome expected;
        struct walk_result out = {0};
        struct walk_fault fault = {0};
        u64 size;
        int result;

        make_case(&c);
        expected = expect_outcome(&c);
        result = guest_walk(&c.ps, &memory, c.la | (wide(&c) ? 0 : below(4) << 32), c.access, &out,
                            &fault);
        assert_int_equal(result, expected.fault ? -E_FAULT : 0);
        faults[expected.fault]++;
        check_accessed(&c, expected.fault);
        if (expected.fault) {
            assert_false(fault.stage2);
            assert_int_equal(fault.error_code, expected.code);
            seen[expected.code] = 1;
            continue;
        }
        size = BIT(shift_of(&c, c.leaf));
        assert_int_equal(out.page_size, size);
        assert_int_equal(out.gpa, c.page + (c.la & (size - 1)));
        assert_true(out.writable == expected.w && out.user == expected.u &&
                    out.executable == expected.x);
        assert_int_equal(out.dirty, c.level[c.leaf].d || (c.access & WALK_WRITE));
    }
    for (round = 0; round < sizeof(seen); round++)
        codes += seen[round];
    assert_true(faults[0] > 100000 && faults[1] > 100000 && codes > 35);
}

// The PS bit of a PDPTE alone: everything else in the entry is right for a 1 GiB page.
static void test_page1g(void **state)
{
    struct paging_state ps = {
        .cr0 = CR0_PG, .cr3 = 0x1000, .cr4 = CR4_PAE, .efer = EFER_LMA, .phys_bits = 40};
    struct walk_result out;
    struct walk_fault fault;
    u64 pml4e = 0x2000 | 0x27, pdpte = 5 * SIZE_1G | 0xe7;

    (void)state;
    memset(tables, 0, sizeof(tables));
    tables[0].gpa = 0x1000;
    tables[1].gpa = 0x2000;
    memcpy(tables[0].bytes, &pml4e, 8);
    memcpy(tables[1].bytes, &pdpte, 8);
    assert_int_equal(guest_walk(&ps, &memory, 0x1234567, WALK_READ, &out, &fault), -E_FAULT);
    assert_int_equal(fault.error_code, PF_P | PF_RSVD);
    ps.page1g = true;
    assert_int_equal(guest_walk(&ps, &memory, 0x1234567, WALK_READ, &out, &fault), 0);
    assert_int_equal(out.gpa, 5 * SIZE_1G + 0x1234567);
}

static void test_no_paging(void **state)
{
    struct paging_state ps = {.cr0 = CR0_PE, .cr4 = CR4_SMEP, .phys_bits = 40};
    struct walk_result out;
    struct walk_fault fault;

    (void)state;
    reads = 0;
    assert_int_equal(guest_walk(&ps, &memory, 0x1fedcba98, WALK_WRITE | WALK_USER, &out, &fault),
                     0);
    assert_true(out.gpa == 0xfedcba98 && out.writable && out.executable && out.user && reads == 0);
}

// --- What the memory answers. ---

static struct test_case fixed;

static int setup_fixed(void **state)
{
    int level;

    (void)state;
    unreadable = unwritable = 0;
    racer = NULL;
    do {
        make_case(&fixed);
        for (level = 1; level < 5; level++)
            fixed.level[level].entry &= ~(BIT(5) | BIT(6));
    } while (fixed.mode != MODE_4 || fixed.leaf != 1 || fixed.access != WALK_WRITE ||
             expect_outcome(&fixed).fault);
    for (level = 1; level < 5; level++)
        memcpy(at(fixed.level[level].gpa), &fixed.level[level].entry, 8);
    return 0;
}

static int walk_fixed(struct walk_fault *fault)
{
    struct walk_result out;

    *fault = (struct walk_fault){0};
    reads = exchanges = 0;
    return guest_walk(&fixed.ps, &memory, fixed.la, fixed.access, &out, fault);
}

static void test_stage2_faults(void **state)
{
    struct walk_fault fault;
    int level;

    for (level = 4; level >= 1; level--) {
        setup_fixed(state);
        unreadable = fixed.level[level].gpa;
        assert_int_equal(walk_fixed(&fault), -E_FAULT);
        assert_true(fault.stage2 && !fault.table_write && fault.table_gpa == unreadable);
        assert_int_equal(exchanges, 0);
        unreadable = 0;
        unwritable = fixed.level[level].gpa;
        assert_int_equal(walk_fixed(&fault), -E_FAULT);
        assert_true(fault.stage2 && fault.table_write && fault.table_gpa == unwritable);
        unwritable = 0;
        assert_int_equal(walk_fixed(&fault), 0);
        assert_int_equal(exchanges, level); // those above have been done
        unwritable = fixed.level[level].gpa;
        assert_int_equal(walk_fixed(&fault), 0); // all is set: nothing is written
        assert_int_equal(exchanges, 0);
    }
}

static u32 races;

static void race_unmap(gpa_t gpa)
{
    if (gpa == fixed.level[1].gpa && races++ == 0)
        at(gpa)[0] &= 0xfe;
}

static void race_accessed(gpa_t gpa)
{
    if (races++ == 0)
        at(gpa)[0] |= 0x20;
}

static void race_always(gpa_t gpa)
{
    races++;
    at(gpa)[1] ^= 2; // an ignored bit
}

static void test_races(void **state)
{
    struct walk_fault fault;

    (void)state;
    races = 0;
    racer = race_unmap;
    assert_int_equal(walk_fixed(&fault), -E_FAULT);
    assert_true(!fault.stage2 && fault.error_code == PF_W);
    setup_fixed(state);
    races = 0;
    racer = race_accessed;
    assert_int_equal(walk_fixed(&fault), 0);
    assert_int_equal(entry_now(&fixed, 1) & 0x60, 0x60);
    setup_fixed(state);
    races = 0;
    racer = race_always;
    assert_int_equal(walk_fixed(&fault), -E_AGAIN);
    assert_in_range(races, 8, 1000);
    racer = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_page1g),
        cmocka_unit_test(test_no_paging),
        cmocka_unit_test_setup(test_stage2_faults, setup_fixed),
        cmocka_unit_test_setup(test_races, setup_fixed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
