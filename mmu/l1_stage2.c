// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The walk of an L1's stage 2 (l1_stage2.h). EPT: a walk collects the entries, refuses what is
// misconfigured or missing as it meets it, then checks the rights, then sets A and D. NPT is what
// guest_walk() does, with every access a user's and those to L2's paging structures writes
// (APM vol. 2 "Nested versus Guest Page Faults").

#include <arch/x86/regs.h>
#include <arch/x86/vmx.h>
#include <nestor/l1_stage2.h>

#define EPT_PRESENT BITS(2, 0)
#define EPT_TYPE    BITS(5, 3)
#define EPT_LEAF    BIT(7)
#define EPT_A       BIT(8)
#define EPT_D       BIT(9)
#define EPT_ADDRESS BITS(51, 12)

// What of L1's CR4 and EFER tells how its NPT looks. No bit is in both.
#define NPT_CR4  (CR4_PAE | CR4_PSE | CR4_LA57 | CR4_SMEP)
#define NPT_EFER (EFER_LMA | EFER_NX)
_Static_assert(!(NPT_CR4 & NPT_EFER), "the mode is one word");

enum { LEVELS_MAX = 5, TRIES = 64, EPT_TYPE_SHIFT = 3 };

struct ept_walk {
    const struct l1_stage2 *l1;
    const struct walk_memory *mem;
    unsigned level; // of the last entry read
    gpa_t gpa[LEVELS_MAX + 1];
    u64 entry[LEVELS_MAX + 1];
    u8 rights; // of all entries read
};

static unsigned shift_of(unsigned level)
{
    return PAGE_SHIFT + 9 * (level - 1);
}

static bool is_leaf(u64 entry, unsigned level)
{
    return level == 1 || (level <= 3 && (entry & EPT_LEAF));
}

// SDM "EPT Misconfigurations", by the tables "Format of an EPT ... Entry". `beyond`: the address
// bits that L1 has not got.
static u64 reserved_bits(const struct l1_stage2 *l1, u64 beyond, u64 entry, unsigned level)
{
    if (level == 1)
        return beyond;
    if (level > 3 || (level == 3 && !l1->page1g))
        return beyond | BITS(7, 3);
    return beyond | (entry & EPT_LEAF ? BITS(shift_of(level) - 1, 12) : BITS(6, 3));
}

static bool is_misconfigured(const struct l1_stage2 *l1, u64 beyond, u64 entry, unsigned level)
{
    static const bool types[8] = {[0] = true, [1] = true, [4] = true, [5] = true, [6] = true};

    if ((entry & STAGE2_RW) == STAGE2_W || ((entry & EPT_PRESENT) == STAGE2_X && !l1->execute_only))
        return true;
    if (entry & reserved_bits(l1, beyond, entry, level))
        return true;
    return is_leaf(entry, level) && !types[(entry & EPT_TYPE) >> EPT_TYPE_SHIFT];
}

static int ept_fault(const struct ept_walk *w, bool misconfigured, u8 access,
                     struct l1_fault *fault)
{
    *fault =
        (struct l1_fault){.misconfigured = misconfigured, .access = access, .rights = w->rights};
    return -E_FAULT;
}

// Reads the entries down to the leaf.
static int ept_walk_down(struct ept_walk *w, gpa_t gpa, u8 access, struct l1_fault *fault)
{
    u64 beyond = w->l1->phys_bits < 52 ? BITS(51, w->l1->phys_bits) : 0;
    u64 table = w->l1->root & EPT_ADDRESS, entry;

    for (w->level = EPTP_WALK_LENGTH(w->l1->root);; w->level--) {
        w->gpa[w->level] = table + (gpa >> shift_of(w->level) & 511) * sizeof(entry);
        if (w->mem->read(w->mem->ctx, w->gpa[w->level], &entry, sizeof(entry)))
            entry = ~0ull;
        w->entry[w->level] = entry;
        w->rights &= (u8)(entry & EPT_PRESENT);
        if (!(entry & EPT_PRESENT))
            return ept_fault(w, false, access, fault);
        if (is_misconfigured(w->l1, beyond, entry, w->level))
            return ept_fault(w, true, access, fault);
        if (is_leaf(entry, w->level))
            return 0;
        table = entry & EPT_ADDRESS;
    }
}

// A full log is found before any flag is set.
static int ept_set_flags(struct ept_walk *w, u8 access, struct l1_translation *out,
                         struct l1_fault *fault)
{
    int error;

    for (unsigned level = EPTP_WALK_LENGTH(w->l1->root); level >= w->level; level--) {
        u64 old = w->entry[level], bits = EPT_A;

        if (level == w->level && (access & L1_WRITE))
            bits |= EPT_D;
        if ((old & bits) == bits)
            continue;
        if (w->l1->log_full) {
            *fault = (struct l1_fault){.log_full = true, .access = access, .rights = w->rights};
            return -E_FAULT;
        }
        error = w->mem->cmpxchg(w->mem->ctx, w->gpa[level], old, old | bits, sizeof(old));
        if (error)
            return error;
        w->entry[level] |= bits;
        out->dirtied = bits & ~old & EPT_D;
    }
    return 0;
}

static int ept_walk_once(const struct l1_stage2 *l1, const struct walk_memory *mem, gpa_t gpa,
                         u8 access, struct l1_translation *out, struct l1_fault *fault)
{
    struct ept_walk w;
    bool ad = l1->root & EPTP_AD;
    u64 size, entry;
    int error;

    w.l1 = l1;
    w.mem = mem;
    w.rights = 0;
    if (gpa >> shift_of(EPTP_WALK_LENGTH(l1->root) + 1)) // beyond the tables' reach
        return ept_fault(&w, false, access, fault);
    w.rights = STAGE2_RWX;
    error = ept_walk_down(&w, gpa, access, fault);
    if (!error && (access & EPT_PRESENT & ~w.rights))
        error = ept_fault(&w, false, access, fault);
    out->dirtied = false;
    if (!error && ad)
        error = ept_set_flags(&w, access, out, fault);
    if (error)
        return error;
    entry = w.entry[w.level];
    size = 1ull << shift_of(w.level);
    *out = (struct l1_translation){
        .gpa = (entry & EPT_ADDRESS & ~(size - 1)) | (gpa & (size - 1)),
        .dirtied = out->dirtied,
        .page_size = size,
        .rights = ad && !(entry & EPT_D) ? w.rights & ~(unsigned)STAGE2_W : w.rights,
    };
    return 0;
}

static int ept_walk(const struct l1_stage2 *l1, const struct walk_memory *mem, gpa_t gpa,
                    u32 access, struct l1_translation *out, struct l1_fault *fault)
{
    int error, tries = 0;

    do
        error = ept_walk_once(l1, mem, gpa, (u8)access, out, fault);
    while (error == -E_AGAIN && ++tries < TRIES);
    return error;
}

static int npt_walk(const struct l1_stage2 *l1, const struct walk_memory *mem, gpa_t gpa,
                    u32 access, struct l1_translation *out, struct l1_fault *fault)
{
    const struct paging_state ps = {
        .cr0 = CR0_PG | CR0_PE | CR0_WP,
        .cr3 = l1->root,
        .cr4 = l1->mode & NPT_CR4,
        .efer = l1->mode & NPT_EFER,
        .pdpte_from_memory = true,
        .phys_bits = l1->phys_bits,
        .nx = true,
        .page1g = l1->page1g,
        .g_reserved = true,
    };
    unsigned reach = !(ps.efer & EFER_LMA) ? 32 : ps.cr4 & CR4_LA57 ? 57 : 48;
    u32 walk = WALK_USER;
    struct walk_result result;
    struct walk_fault bad = {0};
    int error;

    if (access & L1_WRITE)
        walk |= WALK_WRITE;
    if (access & L1_EXECUTE)
        walk |= WALK_FETCH;
    *fault = (struct l1_fault){.access = (u8)access, .error_code = walk};
    if (gpa >> reach)
        return -E_FAULT;
    error = guest_walk(&ps, mem, gpa, walk, &result, &bad);
    fault->error_code = bad.error_code;
    if (error)
        return error;
    *out = (struct l1_translation){
        .gpa = result.gpa,
        .page_size = result.page_size,
        .rights = STAGE2_R | (result.writable && result.dirty ? STAGE2_W : 0u) |
                  (result.executable ? STAGE2_X : 0u),
    };
    return 0;
}

u64 l1_npt_mode(u64 cr4, u64 efer)
{
    return (cr4 & NPT_CR4) | (efer & NPT_EFER);
}

u32 l1_stage2_access(const struct l1_stage2 *l1, u32 access)
{
    if (!(access & L1_TABLE))
        return access;
    if (l1->kind == L1_STAGE2_NPT) // whatever L2 does
        return L1_WRITE | L1_TABLE;
    return l1->root & EPTP_AD ? access | L1_READ | L1_WRITE : access;
}

int l1_stage2_walk(const struct l1_stage2 *l1, const struct walk_memory *mem, gpa_t gpa, u32 access,
                   struct l1_translation *out, struct l1_fault *fault)
{
    if (l1->kind == L1_STAGE2_NONE) {
        *out = (struct l1_translation){gpa, false, SIZE_1G, STAGE2_RWX};
        return 0;
    }
    return (l1->kind == L1_STAGE2_EPT ? ept_walk : npt_walk)(l1, mem, gpa, access, out, fault);
}
