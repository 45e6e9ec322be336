// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The guest's paging (SDM vol. 3, chapter "Paging": "32-Bit Paging", "PAE Paging", "4-Level Paging
// and 5-Level Paging", "Access Rights", "Page-Fault Exceptions", "Accessed and Dirty Flags"; APM
// vol. 2, "Legacy PAE Mode" under nested paging). A walk collects the entries, then checks the
// rights, then sets A and D.

#include <arch/x86/regs.h>
#include <nestor/guest_walk.h>

#define ENTRY_P         BIT(0)
#define ENTRY_W         BIT(1)
#define ENTRY_U         BIT(2)
#define ENTRY_A         BIT(5)
#define ENTRY_D         BIT(6)
#define ENTRY_PS        BIT(7)
#define ENTRY_G         BIT(8)
#define ENTRY_KEY_SHIFT 59
#define ENTRY_XD        BIT(63)

enum { LEVELS_MAX = 5, TRIES = 64 };

struct walk {
    const struct paging_state *ps;
    const struct walk_memory *mem;
    struct walk_fault *fault;
    u32 access;
    bool long_mode, pae, nx;
    unsigned levels, index_bits, entry_size;
    u64 address; // the bits of an entry that hold one

    unsigned level; // of the leaf
    gpa_t gpa[LEVELS_MAX + 1];
    u64 entry[LEVELS_MAX + 1];
    bool writable_above, writable, user, no_execute;
};

static unsigned shift_of(const struct walk *w, unsigned level)
{
    return PAGE_SHIFT + (level - 1) * w->index_bits;
}

static void walk_prepare(struct walk *w)
{
    const struct paging_state *ps = w->ps;

    w->long_mode = ps->efer & EFER_LMA;
    w->pae = !w->long_mode && (ps->cr4 & CR4_PAE);
    w->nx = (ps->efer & EFER_NX) && (w->long_mode || w->pae);
    w->levels = w->long_mode ? (ps->cr4 & CR4_LA57 ? 5 : 4) : w->pae ? 3 : 2;
    w->index_bits = w->long_mode || w->pae ? 9 : 10;
    w->entry_size = w->long_mode || w->pae ? 8 : 4;
    w->address = BITS(MIN(ps->phys_bits, w->long_mode || w->pae ? 52 : 32) - 1, 12);
}

// --- Faults. ---

static int page_fault(const struct walk *w, u64 why)
{
    bool tells_fetch = w->nx || (w->ps->cr4 & CR4_SMEP);

    *w->fault = (struct walk_fault){
        .error_code = (u32)(why | (w->access & (PF_W | PF_U | PF_SS | (tells_fetch ? PF_I : 0)))),
    };
    return -E_FAULT;
}

static int table_fault(const struct walk *w, gpa_t gpa, bool write)
{
    *w->fault = (struct walk_fault){.stage2 = true, .table_write = write, .table_gpa = gpa};
    return -E_FAULT;
}

// --- Entries. ---

static bool is_pdpte(const struct walk *w, unsigned level)
{
    return w->pae && level == 3;
}

static bool is_large(const struct walk *w, u64 entry, unsigned level)
{
    if (!(entry & ENTRY_PS))
        return false;
    if (w->long_mode || w->pae)
        return level == 2 || level == 3;
    return level == 2 && (w->ps->cr4 & CR4_PSE);
}

static u64 reserved_bits_32(const struct walk *w, u64 entry, unsigned level)
{
    // PSE-36: bits 20:13 are address bits 39:32, as far as there are any.
    return is_large(w, entry, level) ? BITS(21, MAX(MIN(w->ps->phys_bits, 40), 32) - 19) : 0;
}

static u64 reserved_bits(const struct walk *w, u64 entry, unsigned level)
{
    u64 bits = BITS(51, w->ps->phys_bits);

    if (!w->long_mode && !w->pae)
        return reserved_bits_32(w, entry, level);
    if (w->pae)
        bits |= BITS(62, 52);
    // With nested paging QEMU 7.2 sets A (bit 5) in the PDPTEs that it reads from memory, and does
    // not mind it afterwards; the manuals have it reserved.
    if (is_pdpte(w, level))
        return bits | BITS(2, 1) | BITS(8, w->ps->pdpte_from_memory ? 6 : 5) | ENTRY_XD;
    if (!w->nx)
        bits |= ENTRY_XD;
    if (level > 3 || (level == 3 && !w->ps->page1g))
        bits |= ENTRY_PS;
    if (level > 3 && w->ps->g_reserved)
        bits |= ENTRY_G;
    if (is_large(w, entry, level))
        bits |= BITS(shift_of(w, level) - 1, 13);
    return bits;
}

static int read_entry(struct walk *w, u64 table, gva_t la, unsigned level)
{
    u64 index = la >> shift_of(w, level) & (BIT(w->index_bits) - 1);

    w->entry[level] = 0;
    w->gpa[level] = table + index * w->entry_size;
    if (is_pdpte(w, level) && !w->ps->pdpte_from_memory)
        w->entry[level] = w->ps->pdpte[index];
    else if (w->mem->read(w->mem->ctx, w->gpa[level], &w->entry[level], w->entry_size) != 0)
        return table_fault(w, w->gpa[level], false);
    if (!(w->entry[level] & ENTRY_P))
        return page_fault(w, 0);
    if (w->entry[level] & reserved_bits(w, w->entry[level], level))
        return page_fault(w, PF_P | PF_RSVD);
    return 0;
}

static u64 root_of(const struct walk *w)
{
    return w->ps->cr3 & (w->pae ? BITS(31, 5) : w->address);
}

// Reads the entries down to the leaf and combines their rights.
static int walk_down(struct walk *w, gva_t la)
{
    u64 table = root_of(w), entry;
    int error;

    w->writable = w->user = true;
    w->no_execute = false;
    for (w->level = w->levels;; w->level--) {
        error = read_entry(w, table, la, w->level);
        if (error)
            return error;
        entry = w->entry[w->level];
        w->writable_above = w->writable;
        if (!is_pdpte(w, w->level)) {
            w->writable = w->writable && (entry & ENTRY_W);
            w->user = w->user && (entry & ENTRY_U);
            w->no_execute = w->no_execute || (entry & ENTRY_XD);
        }
        if (w->level == 1 || is_large(w, entry, w->level))
            return 0;
        table = entry & w->address;
    }
}

// --- Rights. ---

// The access is a data access; keys apply to user-mode addresses by PKRU and to others by PKRS.
static bool key_denies(const struct walk *w)
{
    const struct paging_state *ps = w->ps;
    u32 key = w->entry[w->level] >> ENTRY_KEY_SHIFT & 15;
    u32 rights = (w->user ? ps->pkru : ps->pkrs) >> (2 * key);

    if (!w->long_mode || (w->access & WALK_FETCH) || !(ps->cr4 & (w->user ? CR4_PKE : CR4_PKS)))
        return false;
    if (rights & 1) // AD
        return true;
    return (rights & 2) && (w->access & WALK_WRITE) &&
           ((w->access & WALK_USER) || (ps->cr0 & CR0_WP));
}

static bool fetch_denied(const struct walk *w)
{
    return w->no_execute || (!(w->access & WALK_USER) && w->user && (w->ps->cr4 & CR4_SMEP));
}

// A shadow-stack page is dirty and read-only by its last entry alone; user and supervisor have
// their own.
static bool shadow_stack_denied(const struct walk *w)
{
    u64 entry = w->entry[w->level];

    return !w->writable_above || (entry & ENTRY_W) || !(entry & ENTRY_D) ||
           w->user != !!(w->access & WALK_USER);
}

static bool data_denied(const struct walk *w)
{
    const struct paging_state *ps = w->ps;
    bool user = w->access & WALK_USER;

    if ((w->access & WALK_WRITE) && !w->writable && (user || (ps->cr0 & CR0_WP)))
        return true;
    return !user && w->user && (ps->cr4 & CR4_SMAP) &&
           ((w->access & WALK_IMPLICIT) || !(ps->rflags & RFLAGS_AC));
}

static int check_rights(const struct walk *w)
{
    bool key = key_denies(w), denied = (w->access & WALK_USER) && !w->user;

    if (w->access & WALK_SHADOW_STACK)
        denied = denied || shadow_stack_denied(w);
    else
        denied = denied || (w->access & WALK_FETCH ? fetch_denied(w) : data_denied(w));
    return denied || key ? page_fault(w, PF_P | (key ? PF_PK : 0)) : 0;
}

// --- A and D. ---

static int set_bits(struct walk *w, unsigned level)
{
    u64 old = w->entry[level], bits = ENTRY_A;
    int error;

    if (level == w->level && (w->access & WALK_WRITE))
        bits |= ENTRY_D;
    if (is_pdpte(w, level) || (old & bits) == bits)
        return 0;
    error = w->mem->cmpxchg(w->mem->ctx, w->gpa[level], old, old | bits, w->entry_size);
    if (error)
        return error == -E_AGAIN ? error : table_fault(w, w->gpa[level], true);
    w->entry[level] |= bits;
    return 0;
}

static int set_accessed(struct walk *w)
{
    unsigned level;
    int error;

    for (level = w->levels; level >= w->level; level--) {
        error = set_bits(w, level);
        if (error)
            return error;
    }
    return 0;
}

static void walk_result(const struct walk *w, gva_t la, struct walk_result *out)
{
    u64 entry = w->entry[w->level], size = 1ull << shift_of(w, w->level);
    u64 page = entry & w->address & ~(size - 1);

    if (!w->long_mode && !w->pae && w->level == 2)
        page |= (entry & BITS(20, 13)) << (32 - 13);
    *out = (struct walk_result){
        .gpa = page | (la & (size - 1)),
        .page_size = size,
        .writable = w->writable,
        .user = w->user,
        .executable = !w->no_execute,
        .dirty = entry & ENTRY_D,
    };
}

int guest_walk(const struct paging_state *ps, const struct walk_memory *mem, gva_t la, u32 access,
               struct walk_result *out, struct walk_fault *fault)
{
    struct walk w = {.ps = ps, .mem = mem, .fault = fault, .access = access};
    int error, tries = 0;

    walk_prepare(&w);
    if (!w.long_mode)
        la = (u32)la;
    if (!(ps->cr0 & CR0_PG)) {
        *out = (struct walk_result){la, PAGE_SIZE, true, true, true, true};
        return 0;
    }
    do {
        error = walk_down(&w, la);
        if (!error)
            error = check_rights(&w);
        if (!error)
            error = set_accessed(&w);
    } while (error == -E_AGAIN && ++tries < TRIES);
    if (!error)
        walk_result(&w, la, out);
    return error;
}
