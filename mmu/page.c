// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Physical memory. RAM is kept as a sorted list of free extents in 2 MiB frames: whole extents go
// to guests. Nestor's own pages come from frames taken off that list one at a time, and from the
// odd pieces that are no whole frame; only those are ever mapped. In a frame a tree of the largest
// free order below each node finds buddies. All bookkeeping is in Nestor's own pages or .bss, never
// in memory that is free or a guest's.

#include <nestor/log.h>
#include <nestor/page.h>
#include <nestor/spinlock.h>
#include <nestor/string.h>

#define FRAME_SIZE  SIZE_2M
#define FRAME_PAGES 512u
#define HPA_LIMIT   BIT(52)
#define LOW_TOP     0xa0000ull // the SIPI vectors above it are reserved
#define FIRST_MIB   MIB(1)

struct extent {
    u64 base, size;
};

// A frame with pages of Nestor's own. tree[1] is the root, tree[2n] and tree[2n + 1] are the halves
// of tree[n], tree[512 + i] is page i. A node holds 1 + the largest order that is free below it, 0
// if there is none; a page that is not Nestor's has NOT_OWN.
struct frame {
    hpa_t base;
    u8 *tree;
};

enum { TREE_SIZE = 2 * FRAME_PAGES, NOT_OWN = 0x80, FREE_MASK = 0x7f };

// Pages that stay free so that one more frame can always be taken: its PD and PT, and a page of
// trees.
enum { RESERVE_PAGES = 4 };

static struct spinlock page_lock; // everything below, and the physmap's tables

static struct extent first_extents[64];
static struct extent *extents =
    first_extents; // free for guests, ascending, never touching each other
static u32 extent_count, extent_max = ARRAY_SIZE(first_extents);

static struct frame first_frames[64];
static struct frame *frames = first_frames; // ascending
static u32 frame_count, frame_max = ARRAY_SIZE(first_frames);
static u32 frame_hint; // where the last search ended

static u8 first_trees[4 * TREE_SIZE] ALIGNED(16);
static u8 *spare_trees = first_trees;
static u32 spare_tree_count = 4;

static u64 pages_free, pages_used;

static struct extent low_memory[8]; // below LOW_TOP
static u32 low_count;

struct mem_region page_image;

// --- Trees of orders. ---

static void tree_update(u8 *tree, u32 node, unsigned order)
{
    for (; node > 1; order++) {
        u32 left, right;

        node /= 2;
        left = tree[2 * node] & FREE_MASK;
        right = tree[2 * node + 1] & FREE_MASK;
        tree[node] = (u8)(left == order + 1 && right == order + 1 ? order + 2 : MAX(left, right));
    }
}

// Takes 2^order pages; the caller has looked that tree[1] > order. Returns the first page's index.
static u32 tree_take(u8 *tree, unsigned order)
{
    u32 node = 1, level;

    for (level = PAGE_ORDER_MAX; level > order; level--) {
        // A wholly free node's halves may be stale: only its own value counts.
        if (tree[node] == level + 1)
            tree[2 * node] = tree[2 * node + 1] = (u8)level;
        node *= 2;
        // The tighter half, so that large pieces stay whole.
        if ((tree[node] & FREE_MASK) <= order ||
            ((tree[node + 1] & FREE_MASK) > order &&
             (tree[node + 1] & FREE_MASK) < (tree[node] & FREE_MASK)))
            node++;
    }
    tree[node] = 0;
    tree_update(tree, node, order);
    return (node << order) - FRAME_PAGES;
}

// Whether the block at `node` is out: nothing below it is free, and no node above it is free as a
// whole.
static bool tree_is_taken(const u8 *tree, u32 node, unsigned order)
{
    if (tree[node] != 0)
        return false;
    for (; node > 1; node /= 2, order++)
        if (tree[node / 2] == order + 2)
            return false;
    return true;
}

static void tree_give(u8 *tree, u32 page, unsigned order)
{
    u32 node = (FRAME_PAGES + page) >> order;

    ASSERT(IS_ALIGNED(page, 1u << order) && tree_is_taken(tree, node, order));
    tree[node] = (u8)(order + 1);
    tree_update(tree, node, order);
}

// --- Frames. ---

// The first frame whose end is above hpa.
static u32 frame_search(hpa_t hpa)
{
    u32 low = 0, high = frame_count;

    while (low < high) {
        u32 mid = (low + high) / 2;

        if (frames[mid].base + FRAME_SIZE > hpa)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

static struct frame *frame_of(hpa_t hpa)
{
    u32 i = frame_search(hpa);

    return i < frame_count && frames[i].base <= hpa ? &frames[i] : NULL;
}

// Takes pages out of the frames there are. Returns 0 if there is no such block (page 0 is never
// Nestor's).
static hpa_t frames_take(unsigned order)
{
    u32 i, n;

    for (n = 0, i = frame_hint; n < frame_count; n++, i = i + 1 < frame_count ? i + 1 : 0) {
        if ((frames[i].tree[1] & FREE_MASK) <= order)
            continue;
        frame_hint = i;
        pages_free -= 1u << order;
        pages_used += 1u << order;
        return frames[i].base + (u64)tree_take(frames[i].tree, order) * PAGE_SIZE;
    }
    return 0;
}

static void *take_zeroed(unsigned order)
{
    hpa_t hpa = frames_take(order);

    return hpa ? memset(phys_to_virt(hpa), 0, PAGE_SIZE << order) : NULL;
}

void *page_alloc_table(void)
{
    return take_zeroed(0);
}

static void give(hpa_t hpa, unsigned order)
{
    struct frame *frame = frame_of(hpa);

    ASSERT(frame && IS_ALIGNED(hpa, PAGE_SIZE));
    tree_give(frame->tree, (u32)((hpa - frame->base) / PAGE_SIZE), order);
    pages_free += 1u << order;
    pages_used -= 1u << order;
}

// Moves an array of `size` bytes into one of twice that. NULL if there is no memory for it.
static void *array_double(void *old, const void *initial, size_t size, hpa_t (*take)(unsigned))
{
    unsigned order = 0;
    hpa_t hpa;

    while ((PAGE_SIZE << order) < 2 * size)
        order++;
    hpa = order <= PAGE_ORDER_MAX ? take(order) : 0;
    if (!hpa)
        return NULL;
    memcpy(phys_to_virt(hpa), old, size);
    if (old != initial)
        give(virt_to_phys(old), order ? order - 1 : 0);
    return phys_to_virt(hpa);
}

// Called when a frame has just been added, since there are pages then, and early enough that a
// failure can be made good later.
static void frames_reserve(void)
{
    void *array;

    if (frame_count < frame_max / 2)
        return;
    array = array_double(frames, first_frames, frame_max * sizeof(frames[0]), frames_take);
    if (array) {
        frames = array;
        frame_max *= 2;
    }
}

static u8 *tree_alloc(void)
{
    if (!spare_tree_count) {
        spare_trees = take_zeroed(0);
        if (!spare_trees)
            return NULL;
        spare_tree_count = PAGE_SIZE / TREE_SIZE;
    }
    return spare_trees + --spare_tree_count * TREE_SIZE;
}

static struct frame *frame_add(hpa_t base)
{
    u32 i = frame_search(base);
    u8 *tree = frame_count < frame_max ? tree_alloc() : NULL;

    if (!tree)
        return NULL;
    memmove(&frames[i + 1], &frames[i], (frame_count - i) * sizeof(frames[0]));
    frame_count++;
    frames[i] = (struct frame){.base = base, .tree = tree};
    memset(tree, 0, FRAME_PAGES);
    memset(tree + FRAME_PAGES, NOT_OWN, FRAME_PAGES);
    return &frames[i];
}

// Makes [base, +size), within one frame, Nestor's own pages. False if there is no memory for the
// metadata.
static bool frame_own(hpa_t base, u64 size)
{
    hpa_t start = ALIGN_DOWN(base, FRAME_SIZE);
    struct frame *frame = frame_of(start);
    u32 page, first = (u32)((base - start) / PAGE_SIZE), count = (u32)(size / PAGE_SIZE);

    if (!frame)
        frame = frame_add(start);
    if (!frame)
        return false;
    for (page = first; page < first + count; page++)
        ASSERT(frame->tree[FRAME_PAGES + page] == NOT_OWN);
    if (page_map_chunk(base, size) != 0)
        return false;
    for (page = first; page < first + count; page++) {
        frame->tree[FRAME_PAGES + page] = 0;
        tree_give(frame->tree, page, 0);
    }
    pages_free += count;
    frames_reserve();
    return true;
}

// --- Extents. ---

// The first extent whose end is above hpa.
static u32 extent_search(hpa_t hpa)
{
    u32 i = 0;

    while (i < extent_count && extents[i].base + extents[i].size <= hpa)
        i++;
    return i;
}

static void extent_delete(u32 i)
{
    extent_count--;
    memmove(&extents[i], &extents[i + 1], (extent_count - i) * sizeof(extents[0]));
}

// There is room: extents_reserve().
static void extent_insert(u32 i, u64 base, u64 size)
{
    memmove(&extents[i + 1], &extents[i], (extent_count - i) * sizeof(extents[0]));
    extents[i] = (struct extent){.base = base, .size = size};
    extent_count++;
}

// Takes [base, +size) out of extent i, which contains it.
static void extent_cut(u32 i, u64 base, u64 size)
{
    struct extent old = extents[i];

    if (old.base == base) {
        extents[i].base += size;
        extents[i].size -= size;
        if (!extents[i].size)
            extent_delete(i);
        return;
    }
    extents[i].size = base - old.base;
    if (base + size < old.base + old.size)
        extent_insert(i + 1, base + size, old.base + old.size - base - size);
}

static void extent_add(u64 base, u64 size)
{
    u32 i = extent_search(base);

    ASSERT(i == extent_count || extents[i].base >= base + size);
    if (i < extent_count && extents[i].base == base + size) {
        extents[i].base = base;
        extents[i].size += size;
    } else {
        extent_insert(i, base, size);
    }
    if (i > 0 && extents[i - 1].base + extents[i - 1].size == base) {
        extents[i - 1].size += extents[i].size;
        extent_delete(i);
    }
}

// Takes one more frame, the lowest, for Nestor's own pages.
static bool grow(void)
{
    hpa_t base;

    if (!extent_count || extents[0].base + FRAME_SIZE > PHYSMAP_SIZE)
        return false;
    base = extents[0].base;
    if (!frame_own(base, FRAME_SIZE))
        return false;
    extent_cut(0, base, FRAME_SIZE);
    return true;
}

static hpa_t take_growing(unsigned order)
{
    hpa_t hpa = 0;

    // More than one frame if the reserve takes a bite out of the first.
    while (pages_free < RESERVE_PAGES + (1u << order) || !(hpa = frames_take(order)))
        if (!grow())
            return 0;
    return hpa;
}

// Room for what one change can add. False if there is none.
static bool extents_reserve(void)
{
    void *array;

    if (extent_count + 2 <= extent_max)
        return true;
    array = array_double(extents, first_extents, extent_max * sizeof(extents[0]), take_growing);
    if (array) {
        extents = array;
        extent_max *= 2;
    }
    return extent_count < extent_max;
}

// Whole frames go to the extents.
static void frames_free(u64 base, u64 size)
{
    if (extents_reserve())
        extent_add(base, size);
    else
        log_error("no memory to note that %llu MiB at 0x%llx are free: they stay unused",
                  (unsigned long long)size >> 20, (unsigned long long)base);
}

// --- Nestor's own pages. ---

void *page_alloc(unsigned order)
{
    hpa_t hpa;

    if (order > PAGE_ORDER_MAX)
        return NULL;
    spin_lock(&page_lock);
    hpa = take_growing(order);
    spin_unlock(&page_lock);
    return hpa ? memset(phys_to_virt(hpa), 0, PAGE_SIZE << order) : NULL;
}

void page_free(void *page, unsigned order)
{
    if (!page)
        return;
    ASSERT(order <= PAGE_ORDER_MAX);
    spin_lock(&page_lock);
    give(virt_to_phys(page), order);
    spin_unlock(&page_lock);
}

hpa_t virt_to_phys(const void *va)
{
    u64 address = (u64)va;

    if (address - PHYSMAP_BASE < PHYSMAP_SIZE)
        return address - PHYSMAP_BASE;
    ASSERT(address >= IMAGE_BASE);
    return address - IMAGE_BASE + image_phys_offset;
}

static bool frame_overlaps(const struct frame *frame, hpa_t base, hpa_t end)
{
    u64 first = base <= frame->base ? 0 : (base - frame->base) / PAGE_SIZE;
    u64 last = MIN(ALIGN_UP(end - frame->base, PAGE_SIZE) / PAGE_SIZE, FRAME_PAGES);

    for (; first < last; first++)
        if (frame->tree[FRAME_PAGES + first] != NOT_OWN)
            return true;
    return false;
}

bool page_is_own(hpa_t base, u64 size)
{
    hpa_t end = base + size;
    bool own = base < page_image.base + page_image.size && end > page_image.base;
    u32 i;

    spin_lock(&page_lock);
    for (i = frame_search(base); !own && i < frame_count && frames[i].base < end; i++)
        own = frame_overlaps(&frames[i], base, end);
    spin_unlock(&page_lock);
    return own;
}

static u64 locked_read(const u64 *value)
{
    u64 copy;

    spin_lock(&page_lock);
    copy = *value;
    spin_unlock(&page_lock);
    return copy;
}

u64 page_used_bytes(void)
{
    return locked_read(&pages_used) * PAGE_SIZE;
}

u64 page_owned_bytes(void)
{
    u64 pages;

    spin_lock(&page_lock);
    pages = pages_used + pages_free;
    spin_unlock(&page_lock);
    return pages * PAGE_SIZE;
}

// --- RAM for guests. ---

// Where [base, +size) with `align` fits in the extent at or above `floor`; 0 if it does not (frame
// 0 is never free).
static hpa_t extent_fit(const struct extent *extent, u64 floor, u64 size, u64 align)
{
    hpa_t base = ALIGN_UP(MAX(extent->base, floor), align), end = extent->base + extent->size;

    return base < end && end - base >= size ? base : 0;
}

// The smallest extent that fits.
static hpa_t ram_find(u64 floor, u64 size, u64 align, u32 *index)
{
    hpa_t best = 0;
    u32 i;

    for (i = 0; i < extent_count; i++) {
        hpa_t base = extent_fit(&extents[i], floor, size, align);

        if (base && (!best || extents[i].size < extents[*index].size)) {
            best = base;
            *index = i;
        }
    }
    return best;
}

int ram_alloc(u64 size, u64 align, hpa_t *out)
{
    static const u64 floors[] = {4 * SIZE_1G, 0};
    u64 aligns[2] = {0, MAX(align, FRAME_SIZE)}, tried;
    u32 i = 0;
    hpa_t base = 0;

    if (!size || size > HPA_LIMIT || align > HPA_LIMIT || (align & (align - 1)))
        return -E_INVAL;
    size = ALIGN_UP(size, FRAME_SIZE);
    aligns[0] = size >= SIZE_1G ? MAX(aligns[1], SIZE_1G) : aligns[1];
    spin_lock(&page_lock);
    if (extents_reserve())
        for (tried = 0; !base && tried < 4; tried++)
            base = ram_find(floors[tried / 2], size, aligns[tried % 2], &i);
    if (base)
        extent_cut(i, base, size);
    spin_unlock(&page_lock);
    *out = base;
    return base ? 0 : -E_NOMEM;
}

void ram_free(hpa_t base, u64 size)
{
    size = ALIGN_UP(size, FRAME_SIZE);
    ASSERT(size && IS_ALIGNED(base, FRAME_SIZE));
    ASSERT(!page_is_own(base, size));
    spin_lock(&page_lock);
    frames_free(base, size);
    spin_unlock(&page_lock);
}

u64 ram_free_bytes(void)
{
    u64 sum = 0;
    u32 i;

    spin_lock(&page_lock);
    for (i = 0; i < extent_count; i++)
        sum += extents[i].size;
    spin_unlock(&page_lock);
    return sum;
}

u64 ram_largest_extent(void)
{
    u64 largest = 0;
    u32 i;

    spin_lock(&page_lock);
    for (i = 0; i < extent_count; i++)
        largest = MAX(largest, extents[i].size);
    spin_unlock(&page_lock);
    return largest;
}

// --- What boot hands over. ---

struct ram_sweep {
    const struct mem_region *map, *reserved;
    u32 count, reserved_count;
};

static u64 region_end(const struct mem_region *region)
{
    return region->base < HPA_LIMIT ? region->base + MIN(region->size, HPA_LIMIT - region->base)
                                    : 0;
}

// The i-th thing that keeps RAM from being used, as far as it is one.
INIT_TEXT static const struct mem_region *sweep_blocker(const struct ram_sweep *sweep, u32 i)
{
    if (i >= sweep->count)
        return &sweep->reserved[i - sweep->count];
    return sweep->map[i].type != 1 ? &sweep->map[i] : NULL;
}

// The end of a blocker that contains `at`, or `at` itself.
INIT_TEXT static u64 sweep_skip(const struct ram_sweep *sweep, u64 at)
{
    u32 i;

    for (i = 0; i < sweep->count + sweep->reserved_count; i++) {
        const struct mem_region *b = sweep_blocker(sweep, i);

        if (b && b->base <= at && region_end(b) > at)
            return region_end(b);
    }
    return at;
}

// The lowest RAM address that is not below `from`; HPA_LIMIT if there is none.
INIT_TEXT static u64 sweep_ram(const struct ram_sweep *sweep, u64 from)
{
    u64 best = HPA_LIMIT;
    u32 i;

    for (i = 0; i < sweep->count; i++)
        if (sweep->map[i].type == 1 && region_end(&sweep->map[i]) > from)
            best = MIN(best, MAX(sweep->map[i].base, from));
    return best;
}

// How far the RAM at `start` reaches, over all regions that go on from one another, up to the next
// blocker.
INIT_TEXT static u64 sweep_extend(const struct ram_sweep *sweep, u64 start)
{
    u64 end = start, next;
    u32 i;

    for (next = start; next == end;) {
        for (i = 0; i < sweep->count; i++)
            if (sweep->map[i].type == 1 && sweep->map[i].base <= next)
                next = MAX(next, region_end(&sweep->map[i]));
        if (next == end)
            break;
        end = next;
    }
    for (i = 0; i < sweep->count + sweep->reserved_count; i++) {
        const struct mem_region *b = sweep_blocker(sweep, i);

        if (b && b->size && b->base > start)
            end = MIN(end, b->base);
    }
    return end;
}

// The next piece of usable RAM from *at on, in bytes. Needs no memory, whatever the map's size,
// order and overlaps.
INIT_TEXT static bool sweep_next(const struct ram_sweep *sweep, u64 *at, struct extent *out)
{
    u64 start = *at, skipped;

    for (;;) {
        start = sweep_ram(sweep, start);
        if (start >= HPA_LIMIT)
            return false;
        skipped = sweep_skip(sweep, start);
        if (skipped == start)
            break;
        start = skipped;
    }
    *at = sweep_extend(sweep, start);
    *out = (struct extent){.base = start, .size = *at - start};
    return true;
}

static void give_frames(u64 base, u64 end)
{
    u64 first = ALIGN_UP(base, FRAME_SIZE), last = ALIGN_DOWN(end, FRAME_SIZE);

    if (first < last)
        frames_free(first, last - first);
}

// A piece that is no whole frame becomes Nestor's own. Where there is no memory for its metadata it
// stays unused.
static void give_piece(u64 base, u64 end)
{
    if (base >= end || end > PHYSMAP_SIZE)
        return;
    if (pages_free < RESERVE_PAGES || frame_count > frame_max / 4 * 3)
        grow();
    if (!frame_own(base, end - base))
        log_warn("%llu KiB at 0x%llx are left unused", (unsigned long long)(end - base) >> 10,
                 (unsigned long long)base);
}

static void give_pieces(u64 base, u64 end)
{
    u64 first, last;

    base = ALIGN_UP(base, PAGE_SIZE);
    end = ALIGN_DOWN(end, PAGE_SIZE);
    first = ALIGN_UP(base, FRAME_SIZE);
    last = ALIGN_DOWN(end, FRAME_SIZE);
    if (first > last) { // within one frame
        give_piece(base, end);
        return;
    }
    give_piece(base, first);
    give_piece(last, end);
}

INIT_TEXT static void give_low(u64 base, u64 end)
{
    base = MAX(ALIGN_UP(base, PAGE_SIZE), PAGE_SIZE); // page 0 belongs to the BIOS
    end = MIN(ALIGN_DOWN(end, PAGE_SIZE), LOW_TOP);
    if (base < end && low_count < ARRAY_SIZE(low_memory))
        low_memory[low_count++] = (struct extent){.base = base, .size = end - base};
}

hpa_t low_page_alloc(void)
{
    struct extent *low;
    hpa_t page = 0;

    spin_lock(&page_lock);
    while (low_count && !low_memory[low_count - 1].size)
        low_count--;
    if (low_count) {
        low = &low_memory[low_count - 1];
        low->size -= PAGE_SIZE;
        page = low->base + low->size;
    }
    spin_unlock(&page_lock);
    return page;
}

INIT_TEXT static void sweep_all(const struct ram_sweep *sweep, u64 floor,
                                void (*fn)(u64 base, u64 end))
{
    struct extent piece;
    u64 at = 0;

    while (sweep_next(sweep, &at, &piece))
        if (at > floor)
            fn(MAX(piece.base, floor), at);
}

// The frames come first: the pieces need memory for their tables.
INIT_TEXT void page_init(const struct mem_region *map, u32 count, const struct mem_region *reserved,
                         u32 reserved_count)
{
    struct ram_sweep sweep = {map, reserved, count, reserved_count};
    u32 i;

    spin_lock(&page_lock);
    sweep_all(&sweep, 0, give_low);
    sweep_all(&sweep, FIRST_MIB, give_frames);
    if (!grow())
        panic("no 2 MiB of free RAM, aligned and below 64 TiB, in a memory map of %u regions",
              count);
    for (i = 0; i < count; i++)
        if (map[i].type == 1 && map[i].base < PHYSMAP_SIZE &&
            page_map_prepare(map[i].base, MIN(region_end(&map[i]), PHYSMAP_SIZE) - map[i].base) !=
                0)
            panic("no memory for the page tables of %u regions of RAM", count);
    sweep_all(&sweep, FIRST_MIB, give_pieces);
    spin_unlock(&page_lock);
}

void page_give(hpa_t base, u64 size)
{
    u64 start = MAX(ALIGN_UP(base, PAGE_SIZE), FIRST_MIB);
    u64 end = ALIGN_DOWN(base + size, PAGE_SIZE);

    if (start >= end)
        return;
    spin_lock(&page_lock);
    give_frames(start, end);
    give_pieces(start, end);
    spin_unlock(&page_lock);
}
