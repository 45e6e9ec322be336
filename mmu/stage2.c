// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Stage-2 tables: one walker and builder; a struct stage2_format says how entries look. EPT: SDM
// vol. 3, "Format of EPT Entries" and "EPT Memory Type"; NPT: APM vol. 2, "Nested Page Tables" and
// "Long-Mode Page Translation". A change goes over its range twice: first it counts the tables that
// it needs, then, with these at hand, it cannot fail. A new table is filled before the one store
// that makes it visible. Tables that fall out of use may still be known to a TLB: they wait on a
// list for stage2_reap().

#include <nestor/log.h>
#include <nestor/page.h>
#include <nestor/stage2.h>
#include <nestor/string.h>

#define ENTRIES     512u
#define ENTRY_ADDR  BITS(51, 12)
#define HPA_LIMIT   BIT(52)
#define LEAF        BIT(7) // in both formats, above the lowest level
#define NO_ENCODING (~0ull)

struct stage2_format {
    u64 present; // any of these
    u64 table;   // an entry that points to a table
    u64 leaf;    // what every leaf has
    u64 rights_mask, rights[8];
    u64 type_mask, types[8]; // a type that the format has not got: the next stricter one
    u32 type_first;          // where decoding starts, of types with the same encoding
};

// A and D are preset: nothing uses them yet, and the CPU need not write them. WB has "ignore PAT"
// set: whatever the guest's PAT says, its RAM is cached as Nestor's own mapping of it is.
const struct stage2_format stage2_ept = {
    .present = BITS(2, 0),
    .table = BITS(2, 0) | BIT(8),
    .leaf = BIT(8) | BIT(9),
    .rights_mask = BITS(2, 0),
    .rights = {NO_ENCODING, 1, NO_ENCODING, 3, 4, 5, NO_ENCODING, 7},
    .type_mask = BITS(6, 3),
    .types = {[MEM_UC] = 0 << 3,
              [MEM_WC] = 1 << 3,
              [2] = NO_ENCODING,
              [3] = NO_ENCODING,
              [MEM_WT] = 4 << 3,
              [MEM_WP] = 5 << 3,
              [MEM_WB] = 6 << 3 | BIT(6),
              [MEM_UC_MINUS] = 0 << 3},
    .type_first = MEM_UC,
};

// Types are entries of the host's PAT as the CPU starts: 0 = WB, 1 = WT, 2 = UC-, 3 = UC (PWT is
// bit 3, PCD bit 4). Every access of the guest counts as a user access.
const struct stage2_format stage2_npt = {
    .present = BIT(0),
    .table = BITS(2, 0) | BIT(5),
    .leaf = BIT(0) | BIT(2) | BIT(5) | BIT(6),
    .rights_mask = BIT(1) | BIT(63),
    .rights = {NO_ENCODING, BIT(63), NO_ENCODING, BIT(1) | BIT(63), NO_ENCODING, 0, NO_ENCODING,
               BIT(1)},
    .type_mask = BITS(4, 3),
    .types = {[MEM_UC] = 3 << 3,
              [MEM_WC] = 2 << 3,
              [2] = NO_ENCODING,
              [3] = NO_ENCODING,
              [MEM_WT] = 1 << 3,
              [MEM_WP] = 3 << 3,
              [MEM_WB] = 0 << 3,
              [MEM_UC_MINUS] = 2 << 3},
    .type_first = MEM_UC_MINUS,
};

enum change_kind { CHANGE_MAP, CHANGE_UNMAP, CHANGE_PROTECT };

struct change {
    struct stage2 *s2;
    enum change_kind kind;
    u64 delta;        // map: HPA - GPA
    u64 rights, type; // encoded
    bool commit;      // the second pass
    bool flush;
    u64 need;   // tables, counted in the first pass
    u64 *spare; // as many, linked by their first entries
};

static u64 encode(const u64 encodings[8], unsigned value)
{
    return value < 8 ? encodings[value] : NO_ENCODING;
}

static unsigned decode(const u64 encodings[8], u64 value, unsigned first)
{
    unsigned i;

    for (i = first; encodings[i % 8] != value; i++)
        ASSERT(i < first + 8);
    return i % 8;
}

static u64 span_of(unsigned level)
{
    return 1ull << (3 + 9 * level);
}

static bool is_present(const struct stage2_format *format, u64 entry)
{
    return entry & format->present;
}

static bool is_leaf(u64 entry, unsigned level)
{
    return level == 1 || (entry & LEAF);
}

static u64 load(const u64 *entry)
{
    return __atomic_load_n(entry, __ATOMIC_ACQUIRE);
}

static void store(u64 *entry, u64 value)
{
    __atomic_store_n(entry, value, __ATOMIC_RELEASE);
}

static u64 *table_of(u64 entry)
{
    return phys_to_virt(entry & ENTRY_ADDR);
}

// The i-th part, at `level`, of what the entry one level above maps: nothing, or a leaf.
static u64 part_of(const struct stage2_format *format, u64 above, unsigned level, u32 i)
{
    if (!is_present(format, above))
        return 0;
    above += i * span_of(level);
    return level == 1 ? above & ~LEAF : above;
}

// A table that no entry points to any more, with all that is below it. Its links are 0 in the bits
// that make an entry present.
static void retire(struct stage2 *s2, u64 *table, unsigned level)
{
    u32 i;

    for (i = 0; i < ENTRIES && level > 1; i++) {
        u64 entry = table[i];

        if (is_present(s2->format, entry) && !is_leaf(entry, level))
            retire(s2, table_of(entry), level - 1);
    }
    store(&table[0], (u64)s2->retired);
    s2->retired = table;
    s2->pages--;
}

static u64 *table_take(struct change *change, u64 above, unsigned level)
{
    u64 *table = change->spare;
    u32 i;

    change->spare = (u64 *)table[0];
    for (i = 0; i < ENTRIES; i++)
        table[i] = part_of(change->s2->format, above, level, i);
    change->s2->pages++;
    return table;
}

static u64 leaf_for(const struct change *change, u64 old, gpa_t gpa, unsigned level)
{
    const struct stage2_format *format = change->s2->format;

    switch (change->kind) {
    case CHANGE_MAP:
        return (gpa + change->delta) | format->leaf | change->rights | change->type |
               (level > 1 ? LEAF : 0);
    case CHANGE_PROTECT:
        return (old & ~format->rights_mask) | change->rights;
    default:
        return 0;
    }
}

// Whether [gpa, +size) can be changed by this one entry.
static bool entry_fits(const struct change *change, u64 old, gpa_t gpa, u64 size, unsigned level)
{
    bool present = is_present(change->s2->format, old);

    if (size != span_of(level))
        return level == 1 || (change->kind != CHANGE_MAP && !present);
    switch (change->kind) {
    case CHANGE_MAP:
        return level <= (change->s2->has_1g ? 3 : 2) &&
               IS_ALIGNED(gpa + change->delta, span_of(level));
    case CHANGE_PROTECT:
        return !present || is_leaf(old, level);
    default:
        return true;
    }
}

static void entry_set(struct change *change, u64 *entry, u64 old, u64 value, unsigned level)
{
    bool present = is_present(change->s2->format, old);

    if (value == old || (!present && change->kind != CHANGE_MAP))
        return;
    store(entry, value);
    if (present)
        change->flush = true;
    if (present && !is_leaf(old, level))
        retire(change->s2, table_of(old), level - 1);
}

// table: at `level`; in the first pass NULL if it is still to be made, as parts of `above`.
static void change_range(struct change *change, u64 *table, u64 above, unsigned level, gpa_t gpa,
                         gpa_t end);

// One entry that must point to a table because only a part of it changes.
static void change_below(struct change *change, u64 *entry, u64 old, unsigned level, gpa_t gpa,
                         gpa_t end)
{
    const struct stage2_format *format = change->s2->format;
    u64 *table;

    if (is_present(format, old) && !is_leaf(old, level)) {
        change_range(change, table_of(old), 0, level - 1, gpa, end);
        return;
    }
    if (change->kind == CHANGE_PROTECT && leaf_for(change, old, gpa, level) == old)
        return;
    if (!change->commit) {
        change->need++;
        change_range(change, NULL, old, level - 1, gpa, end);
        return;
    }
    table = table_take(change, old, level - 1);
    change_range(change, table, 0, level - 1, gpa, end);
    store(entry, virt_to_phys(table) | format->table); // what is new in it has set `flush`
}

static void change_range(struct change *change, u64 *table, u64 above, unsigned level, gpa_t gpa,
                         gpa_t end)
{
    u64 span = span_of(level);
    gpa_t next;

    for (; gpa < end; gpa = next) {
        u32 i = (u32)(gpa / span) % ENTRIES;
        u64 old = table ? load(&table[i]) : part_of(change->s2->format, above, level, i);

        next = MIN(ALIGN_DOWN(gpa, span) + span, end);
        if (!entry_fits(change, old, gpa, next - gpa, level))
            change_below(change, table ? &table[i] : NULL, old, level, gpa, next);
        else if (change->commit)
            entry_set(change, &table[i], old, leaf_for(change, old, gpa, level), level);
    }
}

static void spare_free(struct change *change)
{
    u64 *table;

    while ((table = change->spare) != NULL) {
        change->spare = (u64 *)table[0];
        page_free(table, 0);
    }
}

static int spare_alloc(struct change *change)
{
    u64 i, *table;

    for (i = 0; i < change->need; i++) {
        table = page_alloc(0);
        if (!table) {
            spare_free(change);
            return -E_NOMEM;
        }
        table[0] = (u64)change->spare;
        change->spare = table;
    }
    return 0;
}

static int change_do(struct change *change, gpa_t gpa, u64 size)
{
    struct stage2 *s2 = change->s2;
    int error;

    if (change->rights == NO_ENCODING || change->type == NO_ENCODING ||
        !IS_ALIGNED(gpa | size, PAGE_SIZE) || gpa + size < gpa ||
        gpa + size > MIN(span_of(s2->levels + 1u), HPA_LIMIT))
        return -E_INVAL;
    spin_lock(&s2->lock);
    change_range(change, phys_to_virt(s2->root), 0, s2->levels, gpa, gpa + size);
    error = spare_alloc(change);
    if (!error) {
        change->commit = true;
        change_range(change, phys_to_virt(s2->root), 0, s2->levels, gpa, gpa + size);
        ASSERT(!change->spare);
    }
    spin_unlock(&s2->lock);
    return error ? error : change->flush ? STAGE2_FLUSH : 0;
}

int stage2_map(struct stage2 *s2, gpa_t gpa, hpa_t hpa, u64 size, unsigned rights,
               enum mem_type type)
{
    struct change change = {
        .s2 = s2,
        .kind = CHANGE_MAP,
        .delta = hpa - gpa,
        .rights = encode(s2->format->rights, rights),
        .type = encode(s2->format->types, type),
    };

    if (!IS_ALIGNED(hpa, PAGE_SIZE) || hpa + size < hpa || hpa + size > HPA_LIMIT)
        return -E_INVAL;
    ASSERT(!page_is_own(hpa, size));
    return change_do(&change, gpa, size);
}

int stage2_unmap(struct stage2 *s2, gpa_t gpa, u64 size)
{
    struct change change = {.s2 = s2, .kind = CHANGE_UNMAP};

    return change_do(&change, gpa, size);
}

int stage2_protect(struct stage2 *s2, gpa_t gpa, u64 size, unsigned rights)
{
    struct change change = {
        .s2 = s2, .kind = CHANGE_PROTECT, .rights = encode(s2->format->rights, rights)};

    return change_do(&change, gpa, size);
}

int stage2_create(struct stage2 *s2, const struct stage2_format *format, unsigned levels,
                  bool has_1g)
{
    u64 *root = page_alloc(0);

    if (!root)
        return -E_NOMEM;
    *s2 = (struct stage2){.format = format,
                          .root = virt_to_phys(root),
                          .levels = (u8)levels,
                          .has_1g = has_1g,
                          .pages = 1};
    return 0;
}

void stage2_reap(struct stage2 *s2)
{
    u64 *table, *next;

    spin_lock(&s2->lock);
    table = s2->retired;
    s2->retired = NULL;
    spin_unlock(&s2->lock);
    for (; table; table = next) {
        next = (u64 *)table[0];
        page_free(table, 0);
    }
}

void stage2_destroy(struct stage2 *s2)
{
    if (!s2->root)
        return;
    retire(s2, phys_to_virt(s2->root), s2->levels);
    s2->root = 0;
    stage2_reap(s2);
}

int stage2_lookup(const struct stage2 *s2, gpa_t gpa, struct stage2_entry *out)
{
    const struct stage2_format *format = s2->format;
    const u64 *table = phys_to_virt(s2->root);
    unsigned level;
    u64 entry;

    if (gpa >= MIN(span_of(s2->levels + 1u), HPA_LIMIT))
        return -E_NOENT;
    for (level = s2->levels;; level--) {
        entry = load(&table[gpa / span_of(level) % ENTRIES]);
        if (!is_present(format, entry))
            return -E_NOENT;
        if (is_leaf(entry, level))
            break;
        table = table_of(entry);
    }
    out->page_size = span_of(level);
    out->hpa = (entry & ENTRY_ADDR) | (gpa & (out->page_size - 1));
    out->rights = decode(format->rights, entry & format->rights_mask, STAGE2_RWX);
    out->type = decode(format->types, entry & format->type_mask, format->type_first);
    return 0;
}

// --- shadows ---

enum { POOL_GROWTH = 16 };

static void pool_give(struct stage2_pool *pool, u64 *table)
{
    table[0] = (u64)pool->free;
    pool->free = table;
}

static void pool_grow(struct stage2_pool *pool)
{
    for (unsigned i = 0; i < POOL_GROWTH && pool->pages < pool->limit; i++) {
        u64 *table = page_alloc(0);

        if (!table)
            return;
        pool_give(pool, table);
        pool->pages++;
    }
}

int stage2_pool_create(struct stage2_pool *pool, u32 limit)
{
    *pool = (struct stage2_pool){.limit = limit};
    pool_grow(pool);
    return pool->pages == POOL_GROWTH ? 0 : -E_NOMEM; // what any one page needs
}

static u64 *pool_take(struct stage2_pool *pool)
{
    u64 *table;

    if (!pool->free)
        pool_grow(pool);
    table = pool->free;
    if (table)
        pool->free = (u64 *)table[0];
    return table;
}

// What has fallen out of use may serve again: its owner's CPU flushes before it enters.
static void pool_adopt(struct stage2_pool *pool, struct stage2 *s2)
{
    u64 *table;

    while ((table = s2->retired) != NULL) {
        s2->retired = (u64 *)table[0];
        pool_give(pool, table);
    }
}

static u64 *fill_table(struct stage2 *s2, struct stage2_pool *pool, u64 *entry)
{
    u64 *table = pool_take(pool);

    if (!table)
        return NULL;
    memset(table, 0, PAGE_SIZE);
    s2->pages++;
    store(entry, virt_to_phys(table) | s2->format->table);
    return table;
}

int stage2_fill(struct stage2 *s2, struct stage2_pool *pool, gpa_t gpa, hpa_t hpa, u64 page_size,
                unsigned rights, enum mem_type type)
{
    const struct stage2_format *format = s2->format;
    u64 *table = phys_to_virt(s2->root), *entry, old, offset = page_size - 1;
    unsigned level;
    bool below;

    for (level = s2->levels;; level--) {
        entry = &table[gpa / span_of(level) % ENTRIES];
        old = *entry;
        below = is_present(format, old) && !is_leaf(old, level);
        if (span_of(level) == page_size)
            break;
        table = below ? table_of(old) : fill_table(s2, pool, entry);
        if (!table)
            return -E_NOMEM;
    }
    store(entry, (hpa & ~offset) | format->leaf | encode(format->rights, rights) |
                     encode(format->types, type) | (level > 1 ? LEAF : 0));
    if (!below)
        return 0;
    retire(s2, table_of(old), level - 1);
    pool_adopt(pool, s2);
    return STAGE2_FLUSH;
}

void stage2_clear(struct stage2 *s2, struct stage2_pool *pool)
{
    u64 *root = phys_to_virt(s2->root);

    for (u32 i = 0; i < ENTRIES && s2->pages > 1; i++) {
        u64 entry = root[i];

        if (is_present(s2->format, entry)) {
            store(&root[i], 0);
            retire(s2, table_of(entry), s2->levels - 1u);
        }
    }
    pool_adopt(pool, s2);
}

void stage2_pool_destroy(struct stage2_pool *pool)
{
    u64 *table;

    while ((table = pool->free) != NULL) {
        pool->free = (u64 *)table[0];
        page_free(table, 0);
        pool->pages--;
    }
    ASSERT(!pool->pages);
}
