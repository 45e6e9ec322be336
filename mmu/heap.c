// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Small objects: pages of equal pieces, with a header at the page's start; a page whose pieces are
// all free goes back. Larger objects are whole pages.

#include <nestor/log.h>
#include <nestor/page.h>
#include <nestor/spinlock.h>
#include <nestor/string.h>

struct slab {
    struct slab *next, *prev; // among those of its class that have a free piece
    // offset in the page of the first free piece, which holds the next one's; 0 ends the list
    u16 free;
    u16 used;
    u32 piece; // size
} ALIGNED(32);

// 254, 127, 63, 31, 16, 8, 4 and 2 in a page beside the header.
static const u16 pieces[] = {16, 32, 64, 128, 240, 496, 1008, 2032};

static struct spinlock heap_lock;
static struct slab *partial[ARRAY_SIZE(pieces)];

static u32 class_of(size_t size)
{
    u32 class = 0;

    while (class < ARRAY_SIZE(pieces) && pieces[class] < size)
        class ++;
    return class;
}

static unsigned order_of(size_t size)
{
    unsigned order = 0;

    while (order <= PAGE_ORDER_MAX && (PAGE_SIZE << order) < size)
        order++;
    return order;
}

static u16 *piece_at(struct slab *slab, u32 offset)
{
    return (u16 *)((u8 *)slab + offset);
}

static void slab_link(u32 class, struct slab *slab)
{
    slab->prev = NULL;
    slab->next = partial[class];
    if (slab->next)
        slab->next->prev = slab;
    partial[class] = slab;
}

static void slab_unlink(u32 class, struct slab *slab)
{
    if (slab->next)
        slab->next->prev = slab->prev;
    if (slab->prev)
        slab->prev->next = slab->next;
    else
        partial[class] = slab->next;
}

static struct slab *slab_create(u32 class)
{
    struct slab *slab = page_alloc(0);
    u32 offset;

    if (!slab)
        return NULL;
    slab->piece = pieces[class];
    for (offset = sizeof(*slab); offset + slab->piece <= PAGE_SIZE; offset += slab->piece) {
        *piece_at(slab, offset) = slab->free;
        slab->free = (u16)offset;
    }
    slab_link(class, slab);
    return slab;
}

static void *slab_take(u32 class)
{
    struct slab *slab = partial[class] ? partial[class] : slab_create(class);
    u16 *object;

    if (!slab)
        return NULL;
    object = piece_at(slab, slab->free);
    slab->free = *object;
    slab->used++;
    if (!slab->free)
        slab_unlink(class, slab);
    return object;
}

static void slab_give(u32 class, u16 *object)
{
    struct slab *slab = (struct slab *)ALIGN_DOWN((u64)object, PAGE_SIZE);

    ASSERT(slab->piece == pieces[class] && slab->used);
    if (!slab->free)
        slab_link(class, slab);
    *object = slab->free;
    slab->free = (u16)((u8 *)object - (u8 *)slab);
    if (--slab->used == 0) {
        slab_unlink(class, slab);
        page_free(slab, 0);
    }
}

void *heap_alloc(size_t size)
{
    u32 class = class_of(size);
    void *object;

    if (class == ARRAY_SIZE(pieces))
        return page_alloc(order_of(size));
    spin_lock(&heap_lock);
    object = slab_take(class);
    spin_unlock(&heap_lock);
    return object ? memset(object, 0, pieces[class]) : NULL;
}

void heap_free(void *object, size_t size)
{
    u32 class = class_of(size);

    if (!object)
        return;
    if (class == ARRAY_SIZE(pieces)) {
        page_free(object, order_of(size));
        return;
    }
    spin_lock(&heap_lock);
    slab_give(class, object);
    spin_unlock(&heap_lock);
}
