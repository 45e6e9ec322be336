// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Stage-2 tables: guest-physical to host-physical, in EPT format (SDM vol. 3, "The Extended Page
// Table Mechanism") or NPT format (APM vol. 2, "Nested Paging"), by one walker and builder that a
// const struct describes. Nestor's own pages are never in one.

#pragma once

#include <nestor/spinlock.h>
#include <nestor/types.h>

enum stage2_rights { STAGE2_R = 1, STAGE2_W = 2, STAGE2_X = 4, STAGE2_RWX = 7, STAGE2_RW = 3 };

// Memory types as the PAT and EPT encode them.
enum mem_type { MEM_UC = 0, MEM_WC = 1, MEM_WT = 4, MEM_WP = 5, MEM_WB = 6, MEM_UC_MINUS = 7 };

struct stage2_format; // encodings of present, leaf, rights, memory type
extern const struct stage2_format stage2_ept;
extern const struct stage2_format stage2_npt;

struct stage2 {
    const struct stage2_format *format;
    struct spinlock lock; // serialises changes; walks by hardware and stage2_lookup take no lock
    hpa_t root;
    u8 levels;    // 4 or 5
    bool has_1g;  // the hardware allows 1 GiB leaves
    u32 pages;    // table pages in use
    u64 *retired; // tables out of use, until stage2_reap; under lock
};

// levels: 4 or 5. Returns 0 or -E_NOMEM.
int stage2_create(struct stage2 *s2, const struct stage2_format *format, unsigned levels,
                  bool has_1g);
void stage2_destroy(struct stage2 *s2);
// Maps [gpa, +size) to [hpa, +size) with the largest pages that fit (page-granular). Replaces what
// is there. Returns >= 0: bit 0 (STAGE2_FLUSH) set if something that was present changed, so that
// the caller owes a tlb_flush_vm(); or -E_NOMEM / -E_INVAL (unaligned, beyond the levels' reach
// or 52 bits, rights that the format cannot say: none, W or WX without R, with NPT anything without
// R) with nothing changed that the guest can see. WB maps RAM cached whatever the guest's PAT says
// where the hardware can (EPT); other types combine with the guest's PAT.
enum { STAGE2_FLUSH = 1 };
int stage2_map(struct stage2 *s2, gpa_t gpa, hpa_t hpa, u64 size, unsigned rights,
               enum mem_type type);
// What is not mapped stays so. Both return as stage2_map does; unmapping needs memory only where it
// splits a large page.
int stage2_unmap(struct stage2 *s2, gpa_t gpa, u64 size);
int stage2_protect(struct stage2 *s2, gpa_t gpa, u64 size, unsigned rights);
// Frees the tables that changes have put out of use, and that stay allocated until this or
// stage2_destroy: call it when no CPU can use them any more, that is after the flush that
// STAGE2_FLUSH asked for, and with no stage2_lookup under way.
void stage2_reap(struct stage2 *s2);

struct stage2_entry {
    hpa_t hpa; // of gpa itself, not of the page's start
    u64 page_size;
    unsigned rights;
    enum mem_type type;
};
// Returns 0, or -E_NOENT if gpa is not mapped.
int stage2_lookup(const struct stage2 *s2, gpa_t gpa, struct stage2_entry *out);

// --- A shadow (nested/nested_stage2.c): tables of one owner, filled page by page as a TLB is. ---

// Tables that are not in use. Only its owner touches it, and it takes no lock but when it grows.
struct stage2_pool {
    u64 *free;        // linked by their first entries
    u32 pages, limit; // all that it has, in use or not; how many it may have
};
int stage2_pool_create(struct stage2_pool *pool, u32 limit); // 0 or -E_NOMEM
void stage2_pool_destroy(struct stage2_pool *pool);          // all must have come back

// Maps the page of `page_size` bytes (4 KiB, 2 MiB, 1 GiB) at `gpa` to what another stage 2 has at
// `hpa` (it is not checked to be no page of Nestor's); replaces what is there. The
// rights must be such as the format can say, and the size one that the hardware has. Returns as
// stage2_map does; STAGE2_FLUSH means that tables have gone back to the pool. -E_NOMEM: the pool is
// at its limit.
int stage2_fill(struct stage2 *s2, struct stage2_pool *pool, gpa_t gpa, hpa_t hpa, u64 page_size,
                unsigned rights, enum mem_type type);
// Unmaps all; the tables but the root go back to the pool. The caller owes a flush.
void stage2_clear(struct stage2 *s2, struct stage2_pool *pool);
