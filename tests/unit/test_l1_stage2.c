// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: mmu/l1_stage2.c mmu/guest_walk.c
//
// The walk of an L1's EPT and NPT against tables whose builder knows what they mean: a case chooses
// what each level says, and its outcome is worked out from the choices by the SDM's sections "EPT
// Misconfigurations", "EPT Violations", "Accessed and Dirty Flags for EPT" and "Exit Qualification
// for EPT Violations", and by the APM's 15.25.6 "Nested versus Guest Page Faults".

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/regs.h>
#include <arch/x86/vmx.h>
#include <nestor/l1_stage2.h>

#include "rng.h"

#define GPA   0x0000123456789abcull
#define TABLE 0x10000ull // the table of level n is at n * TABLE
#define LEAF  BIT(7)
#define A     BIT(8)
#define D     BIT(9)
#define WB    (6ull << 3)

enum { R = STAGE2_R, W = STAGE2_W, X = STAGE2_X, RWX = STAGE2_RWX, PHYS_BITS = 40 };

// --- L1's memory: one page for each level. ---

static u64 tables[6][512];
static u32 exchanges, races; // the exchanges that another CPU is to win
static bool read_only;       // flags can't be set
static gpa_t no_memory;      // a table that is not in RAM

static u8 *at(gpa_t gpa)
{
    unsigned level = (unsigned)(gpa / TABLE);

    assert_in_range(level, 1, 5);
    assert_true(gpa % TABLE < PAGE_SIZE);
    return (u8 *)tables[level] + gpa % TABLE;
}

static int mem_read(void *ctx, gpa_t gpa, void *value, unsigned size)
{
    assert_null(ctx);
    assert_true(IS_ALIGNED(gpa, size));
    if (no_memory && ALIGN_DOWN(gpa, PAGE_SIZE) == no_memory)
        memset(value, 0xff, size);
    else
        memcpy(value, at(gpa), size);
    return 0;
}

static int mem_cmpxchg(void *ctx, gpa_t gpa, u64 old, u64 new_value, unsigned size)
{
    assert_null(ctx);
    exchanges++;
    if (read_only)
        return -E_FAULT;
    if (races) {
        races--;
        return -E_AGAIN;
    }
    assert_memory_equal(at(gpa), &old, size);
    memcpy(at(gpa), &new_value, size);
    return 0;
}

static const struct walk_memory memory = {mem_read, mem_cmpxchg, NULL};

static struct l1_translation result;
static struct l1_fault fault;

static int walk(const struct l1_stage2 *l1, gpa_t gpa, u32 access)
{
    memset(&result, 0xee, sizeof(result));
    memset(&fault, 0, sizeof(fault));
    return l1_stage2_walk(l1, &memory, gpa, access, &result, &fault);
}

static int setup(void **state)
{
    (void)state;
    memset(tables, 0, sizeof(tables));
    exchanges = races = 0;
    no_memory = 0;
    read_only = false;
    return 0;
}

// --- EPT ---

static struct l1_stage2 ept(unsigned levels, bool ad)
{
    return (struct l1_stage2){
        .kind = L1_STAGE2_EPT,
        .phys_bits = PHYS_BITS,
        .page1g = true,
        .execute_only = true,
        .root = levels * TABLE | (levels - 1) << EPTP_LEVELS_SHIFT | (ad ? EPTP_AD : 0) | 6,
    };
}

static u64 *entry(unsigned level)
{
    return &tables[level][GPA >> (12 + 9 * (level - 1)) & 511];
}

static u64 page_size(unsigned level)
{
    return 1ull << (12 + 9 * (level - 1));
}

static u64 page_of(unsigned leaf) // what the leaf maps to: aligned, below PHYS_BITS
{
    return 0x5555555000ull & ~(page_size(leaf) - 1) & BITS(PHYS_BITS - 1, 0);
}

static void build(unsigned levels, unsigned leaf, u64 rights)
{
    memset(tables, 0, sizeof(tables));
    for (unsigned level = levels; level > leaf; level--)
        *entry(level) = (level - 1) * TABLE | rights;
    *entry(leaf) = page_of(leaf) | rights | WB | (leaf > 1 ? LEAF : 0);
}

// Random rights at each level, each access: the first entry that is not present or misconfigured
// ends it; then all must allow the access.
static void test_ept_rights(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 200000; i++) {
        unsigned levels = 4 + (unsigned)below(2), leaf = 1 + (unsigned)below(3), all = RWX;
        u32 access = 1u << below(3);
        bool misconfigured = false, missing = false, ad = below(2);
        struct l1_stage2 l1 = ept(levels, ad);
        int error;

        build(levels, leaf, 0);
        l1.execute_only = below(2);
        for (unsigned level = levels; level >= leaf && !misconfigured && !missing; level--) {
            unsigned rights = below(4) ? RWX : (unsigned)below(8);

            *entry(level) |= rights;
            all &= rights;
            missing = !rights;
            misconfigured = (rights & (R | W)) == W || (rights == X && !l1.execute_only);
        }
        error = walk(&l1, GPA, access);
        if (misconfigured) {
            assert_int_equal(error, -E_FAULT);
            assert_true(fault.misconfigured);
        } else if (missing || (access & ~all)) {
            assert_int_equal(error, -E_FAULT);
            assert_false(fault.misconfigured);
            assert_int_equal(fault.rights, all);
            assert_int_equal(fault.access, access);
        } else {
            assert_int_equal(error, 0);
            assert_int_equal(result.gpa, page_of(leaf) | (GPA & (page_size(leaf) - 1)));
            assert_int_equal(result.page_size, page_size(leaf));
            assert_int_equal(result.rights, ad && access != W ? all & ~(unsigned)W : all);
        }
    }
}

// Which bits of an entry must be 0, by the tables "Format of ...": the rest is ignored.
static u64 ept_reserved(unsigned level, bool is_leaf, bool page1g)
{
    u64 bits = BITS(51, PHYS_BITS);

    if (level >= 4)
        return bits | BITS(7, 3);
    if (!is_leaf)
        return bits | BITS(6, 3) | (level == 3 && !page1g ? LEAF : 0);
    return bits | (level == 1 ? 0 : BITS(12 + 9 * (level - 1) - 1, 12));
}

static void test_ept_reserved_bits(void **state)
{
    (void)state;
    for (unsigned leaf = 1; leaf <= 3; leaf++)
        for (unsigned level = leaf; level <= 5; level++)
            for (unsigned bit = 3; bit < 64; bit++) {
                struct l1_stage2 l1 = ept(5, false);
                u64 reserved = ept_reserved(level, level == leaf, true);
                bool page = level == leaf;

                if ((bit == 7 && level <= 3) || (page && bit <= 5) ||
                    (bit >= 12 && bit < PHYS_BITS && !(reserved & BIT(bit))))
                    continue; // means something else
                build(5, leaf, RWX);
                *entry(level) ^= BIT(bit);
                assert_int_equal(walk(&l1, GPA, R), reserved & BIT(bit) ? -E_FAULT : 0);
                assert_int_equal(fault.misconfigured, !!(reserved & BIT(bit)));
            }
}

static void test_ept_1g_not_offered(void **state)
{
    struct l1_stage2 l1 = ept(4, false);

    (void)state;
    l1.page1g = false;
    build(4, 3, RWX);
    assert_int_equal(walk(&l1, GPA, R), -E_FAULT);
    assert_true(fault.misconfigured);
}

static void test_ept_memory_types(void **state)
{
    static const bool exists[8] = {[0] = true, [1] = true, [4] = true, [5] = true, [6] = true};
    struct l1_stage2 l1 = ept(4, false);

    (void)state;
    for (unsigned leaf = 1; leaf <= 3; leaf++)
        for (u64 type = 0; type < 8; type++) {
            build(4, leaf, RWX);
            *entry(leaf) = (*entry(leaf) & ~BITS(5, 3)) | type << 3;
            assert_int_equal(walk(&l1, GPA, R), exists[type] ? 0 : -E_FAULT);
            assert_int_equal(fault.misconfigured, !exists[type]);
        }
}

// A for all that the walk used, D for the leaf of a write; nothing if it fails, or without bit 6.
static void test_ept_flags(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 64; i++) {
        unsigned levels = 4 + (i & 1), leaf = 1 + i / 2 % 3;
        bool ad = i & 8, write = i & 16, refused = i & 32;
        struct l1_stage2 l1 = ept(levels, ad);

        build(levels, leaf, RWX);
        if (refused)
            *entry(leaf) &= write ? ~(u64)W : ~(u64)X;
        exchanges = 0;
        assert_int_equal(walk(&l1, GPA, write ? W : X), refused ? -E_FAULT : 0);
        for (unsigned level = leaf; level <= levels; level++) {
            u64 want = ad && !refused ? A | (level == leaf && write ? D : 0) : 0;

            assert_int_equal(*entry(level) & (A | D), want);
        }
        assert_int_equal(exchanges, ad && !refused ? levels - leaf + 1 : 0);
        exchanges = 0; // again: all are set
        walk(&l1, GPA, write ? W : X);
        assert_int_equal(exchanges, 0);
        if (!refused) // W waits for D
            assert_int_equal(result.rights & W, ad && !write ? 0 : W);
    }
}

// "Page-Modification Logging": a D flag that is set is told; with no room in the log nothing is
// set, and what needs no flag passes; the rights come first.
static void test_ept_log(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 64; i++) {
        bool full = i & 1, write = i & 2, refused = i & 4, accessed = i & 8, dirty = i & 16;
        bool ad = i & 32, due = ad && (!accessed || (write && !dirty));
        struct l1_stage2 l1 = ept(4, ad);
        u64 before;

        l1.log_full = full;
        build(4, 2, refused ? X : RWX);
        for (unsigned level = 4; level > 2; level--)
            *entry(level) |= A;
        *entry(2) |= (accessed ? A : 0) | (dirty ? D : 0);
        before = *entry(2);
        if (refused || (full && due)) {
            assert_int_equal(walk(&l1, GPA, write ? W : R), -E_FAULT);
            assert_int_equal(fault.log_full, !refused);
            assert_int_equal(*entry(2), before);
            continue;
        }
        assert_int_equal(walk(&l1, GPA, write ? W : R), 0);
        assert_int_equal(result.dirtied, ad && write && !dirty);
    }
}

static void test_ept_races(void **state)
{
    struct l1_stage2 l1 = ept(4, true);

    (void)state;
    build(4, 1, RWX);
    races = 3;
    assert_int_equal(walk(&l1, GPA, W), 0);
    assert_int_equal(result.gpa, page_of(1) | (GPA & ~PAGE_MASK));
    build(4, 1, RWX);
    races = ~0u;
    assert_int_equal(walk(&l1, GPA, W), -E_AGAIN);
}

static void test_ept_reach(void **state)
{
    struct l1_stage2 l1 = ept(4, false);

    (void)state;
    build(4, 1, RWX);
    assert_int_equal(walk(&l1, GPA, R), 0);
    assert_int_equal(walk(&l1, GPA | BIT(48), R), -E_FAULT); // a violation, with no rights
    assert_false(fault.misconfigured);
    assert_int_equal(fault.rights, 0);
    l1 = ept(5, false);
    build(5, 1, RWX);
    assert_int_equal(walk(&l1, GPA, R), 0);
    assert_int_equal(walk(&l1, GPA | BIT(48), R), -E_FAULT); // nothing there
    tables[5][(GPA | BIT(48)) >> 48 & 511] = 4 * TABLE | RWX;
    assert_int_equal(walk(&l1, GPA | BIT(48), R), 0);
}

// What is no RAM reads as all ones, which no table may say.
static void test_ept_not_in_ram(void **state)
{
    (void)state;
    for (unsigned level = 1; level <= 4; level++) {
        struct l1_stage2 l1 = ept(4, true);

        build(4, 1, RWX);
        no_memory = level * TABLE;
        assert_int_equal(walk(&l1, GPA, R), -E_FAULT);
        assert_true(fault.misconfigured);
        l1.phys_bits = 52;
        assert_int_equal(walk(&l1, GPA, R), -E_FAULT);
        assert_true(fault.misconfigured);
        assert_int_equal(exchanges, 0);
    }
}

// --- accesses to L2's paging structures ---

static void test_access(void **state)
{
    struct l1_stage2 plain = ept(4, false), ad = ept(4, true), npt = {.kind = L1_STAGE2_NPT};

    (void)state;
    for (u32 access = 0; access < 8; access++) {
        assert_int_equal(l1_stage2_access(&plain, access), access);
        assert_int_equal(l1_stage2_access(&ad, access), access);
        assert_int_equal(l1_stage2_access(&npt, access), access);
    }
    assert_int_equal(l1_stage2_access(&plain, L1_TABLE | R), L1_TABLE | R);
    assert_int_equal(l1_stage2_access(&plain, L1_TABLE | R | W), L1_TABLE | R | W);
    assert_int_equal(l1_stage2_access(&ad, L1_TABLE | R), L1_TABLE | R | W);
    assert_int_equal(l1_stage2_access(&npt, L1_TABLE | R), L1_TABLE | W);
    assert_int_equal(l1_stage2_access(&npt, L1_TABLE | X), L1_TABLE | W);
}

// --- NPT ---

#define NPT_P  BIT(0)
#define NPT_W  BIT(1)
#define NPT_U  BIT(2)
#define NPT_A  BIT(5)
#define NPT_D  BIT(6)
#define NPT_NX BIT(63)
#define ALL    (NPT_P | NPT_W | NPT_U)

static struct l1_stage2 npt(unsigned levels)
{
    return (struct l1_stage2){
        .kind = L1_STAGE2_NPT,
        .phys_bits = PHYS_BITS,
        .page1g = true,
        .root = levels * TABLE,
        .mode = l1_npt_mode(CR4_PAE | (levels == 5 ? CR4_LA57 : 0) | CR4_SMAP | CR4_PGE,
                            EFER_LMA | EFER_NX | EFER_SCE),
    };
}

static void build_npt(unsigned levels, unsigned leaf)
{
    memset(tables, 0, sizeof(tables));
    for (unsigned level = levels; level > leaf; level--)
        *entry(level) = (level - 1) * TABLE | ALL;
    *entry(leaf) = page_of(leaf) | ALL | (leaf > 1 ? LEAF : 0);
}

// EXITINFO1's low half: P if the translation was there, W, U always, RSV, ID.
static void test_npt_rights(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 100000; i++) {
        unsigned levels = 4 + (unsigned)below(2), leaf = 1 + (unsigned)below(3);
        u32 access = 1u << below(3),
            bits = PF_U | (access & W ? PF_W : 0) | (access & X ? PF_I : 0);
        struct l1_stage2 l1 = npt(levels);
        bool present = true, allowed = true, writable = true, executable = true;

        build_npt(levels, leaf);
        for (unsigned level = levels; level >= leaf; level--) {
            u64 clear = below(8) ? 0 : 1ull << below(3), nx = below(10) ? 0 : NPT_NX;

            *entry(level) = (*entry(level) & ~clear) | nx;
            present = present && clear != NPT_P;
            allowed = allowed && clear != NPT_U;
            writable = writable && clear != NPT_W;
            executable = executable && !nx;
        }
        allowed = allowed && !((access & W) && !writable) && !((access & X) && !executable);
        assert_int_equal(walk(&l1, GPA, access), present && allowed ? 0 : -E_FAULT);
        assert_false(fault.misconfigured);
        if (!present || !allowed) {
            assert_int_equal(fault.error_code, bits | (present ? PF_P : 0));
            continue;
        }
        assert_int_equal(result.gpa, page_of(leaf) | (GPA & (page_size(leaf) - 1)));
        assert_int_equal(result.page_size, page_size(leaf));
        assert_int_equal(result.rights,
                         R | (writable && (access & W) ? W : 0) | (executable ? X : 0));
        assert_int_equal(*entry(leaf) & (NPT_A | NPT_D), NPT_A | (access & W ? NPT_D : 0));
    }
}

static void test_npt_reserved_bits(void **state)
{
    static const struct {
        unsigned leaf, level;
        u64 bit;
        bool reserved;
    } rows[] = {
        {1, 1, BIT(PHYS_BITS), true}, {1, 4, BIT(51), true},  {1, 4, BIT(7), true},
        {1, 4, BIT(8), true},         {1, 3, BIT(8), false},  {2, 2, BIT(13), true},
        {2, 2, BIT(20), true},        {2, 2, BIT(12), false}, {3, 3, BIT(29), true},
        {3, 3, BIT(12), false},       {1, 1, BIT(7), false},  {1, 1, BIT(58), false},
    };
    struct l1_stage2 l1 = npt(4);

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        build_npt(4, rows[i].leaf);
        *entry(rows[i].level) |= rows[i].bit;
        assert_int_equal(walk(&l1, GPA, R), rows[i].reserved ? -E_FAULT : 0);
        if (rows[i].reserved)
            assert_int_equal(fault.error_code, PF_P | PF_U | PF_RSVD);
    }
    l1.mode &= ~EFER_NX;
    build_npt(4, 1);
    *entry(2) |= NPT_NX;
    assert_int_equal(walk(&l1, GPA, X), -E_FAULT);
    assert_int_equal(fault.error_code, PF_P | PF_U | PF_RSVD); // and no ID without NX
}

// PAE and legacy paging of a 32-bit L1: guest-physical addresses above 4 GiB have no translation.
static void test_npt_short(void **state)
{
    const gpa_t gpa = 0x40201abc;
    struct l1_stage2 l1 = {.kind = L1_STAGE2_NPT, .phys_bits = PHYS_BITS, .root = 3 * TABLE};

    (void)state;
    l1.mode = l1_npt_mode(CR4_PAE, EFER_NX);
    tables[3][1] = 2 * TABLE | NPT_P;
    tables[2][1] = TABLE | ALL;
    tables[1][1] = 0x7654321000ull | ALL;
    assert_int_equal(walk(&l1, gpa, W), 0);
    assert_int_equal(result.gpa, 0x7654321abcull);
    assert_int_equal(walk(&l1, gpa | BIT(32), W), -E_FAULT);
    assert_int_equal(fault.error_code, PF_U | PF_W);
    tables[3][1] |= BIT(5); // reserved in a PDPTE, whatever one walk of an emulator's sets
    assert_int_equal(walk(&l1, gpa, W), 0);
    tables[3][1] |= BIT(6);
    assert_int_equal(walk(&l1, gpa, W), -E_FAULT);
    assert_int_equal(fault.error_code, PF_P | PF_U | PF_W | PF_RSVD);
    l1.mode = l1_npt_mode(CR4_PSE, 0);
    l1.root = 2 * TABLE;
    ((u32 *)tables[2])[gpa >> 22] = 0x00c00000 | (u32)ALL | (u32)LEAF;
    assert_int_equal(walk(&l1, gpa, R), 0);
    assert_int_equal(result.gpa, 0x00c00000 | (gpa & 0x3fffff));
    assert_int_equal(result.page_size, 4 << 20);
}

// A walk that may set no flag finds only what has them.
static void test_no_flags(void **state)
{
    struct l1_stage2 with_ept = ept(4, true), with_npt = npt(4);

    (void)state;
    build(4, 1, RWX);
    read_only = true;
    assert_int_equal(walk(&with_ept, GPA, W), -E_FAULT);
    assert_int_equal(exchanges, 1);
    read_only = false;
    walk(&with_ept, GPA, W);
    read_only = true;
    assert_int_equal(walk(&with_ept, GPA, W), 0);
    build_npt(4, 1);
    assert_int_equal(walk(&with_npt, GPA, W), -E_FAULT);
    read_only = false;
    walk(&with_npt, GPA, W);
    read_only = true;
    assert_int_equal(walk(&with_npt, GPA, W), 0);
}

static void test_npt_not_in_ram(void **state)
{
    struct l1_stage2 l1 = npt(4);

    (void)state;
    build_npt(4, 1);
    no_memory = 2 * TABLE;
    assert_int_equal(walk(&l1, GPA, W), -E_FAULT);
    assert_int_equal(fault.error_code, PF_P | PF_U | PF_W | PF_RSVD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_ept_rights, setup),
        cmocka_unit_test_setup(test_ept_reserved_bits, setup),
        cmocka_unit_test_setup(test_ept_1g_not_offered, setup),
        cmocka_unit_test_setup(test_ept_memory_types, setup),
        cmocka_unit_test_setup(test_ept_flags, setup),
        cmocka_unit_test_setup(test_ept_log, setup),
        cmocka_unit_test_setup(test_ept_races, setup),
        cmocka_unit_test_setup(test_ept_reach, setup),
        cmocka_unit_test_setup(test_ept_not_in_ram, setup),
        cmocka_unit_test_setup(test_access, setup),
        cmocka_unit_test_setup(test_npt_rights, setup),
        cmocka_unit_test_setup(test_npt_reserved_bits, setup),
        cmocka_unit_test_setup(test_npt_short, setup),
        cmocka_unit_test_setup(test_npt_not_in_ram, setup),
        cmocka_unit_test_setup(test_no_flags, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
