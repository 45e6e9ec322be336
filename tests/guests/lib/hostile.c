// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The hostile hypervisors' common part.

#include "hostile.h"

enum { GOOD_EVERY = 16 };
enum { L2_PAGES = 6, TABLES = 4, TARGETS = 16, LVT_DEADLINE = 2 << 17, ENTRIES = 512 };

struct hostile_l2 l2;
volatile u32 watchdog_count;
volatile bool hostile_stop_race;
bool hostile_racing;
static u64 targets[TARGETS];
static u32 target_count;
static u8 *first;      // of L2's pages, tables included
static u32 page_count; // of them
static bool spoiled;
static u8 *original; // a copy
static const u64 PAGE_P_W_U = 7;

void hostile_add_target(void *page)
{
    if (target_count < TARGETS)
        targets[target_count++] = (u64)page;
}

u64 hostile_target(void)
{
    return targets[below(target_count)];
}

// Root, two tables in between and one of leaves, for L2's pages.
static u64 *make_tables(u64 *at, u64 bits, u64 leaf_bits)
{
    u64 base = (u64)first;

    at[base >> 39 & 511] = (u64)(at + ENTRIES) | bits;
    at[ENTRIES + (base >> 30 & 511)] = (u64)(at + 2 * ENTRIES) | bits;
    at[2 * ENTRIES + (base >> 21 & 511)] = (u64)(at + 3 * ENTRIES) | bits;
    for (u32 i = 0; i < page_count; i++)
        at[3 * ENTRIES + (base >> 12 & 511) + i] = (base + i * PAGE_SIZE) | leaf_bits;
    return at;
}

void hostile_l2_make(const char *code, const char *code_end, u64 nested_bits, u64 leaf_bits)
{
    u8 *at;

    page_count = 2 * TABLES + L2_PAGES + HOSTILE_SCRATCH;
    while (((u64)pages(1) & (BIT(21) - 1)) != BIT(21) - PAGE_SIZE)
        ; // all in one table
    first = at = pages(page_count);
    l2.paging = make_tables((u64 *)at, PAGE_P_W_U, PAGE_P_W_U);
    at += TABLES * PAGE_SIZE;
    l2.nested = make_tables((u64 *)at, nested_bits, leaf_bits);
    l2.nested_leaves = l2.nested + 3 * ENTRIES + ((u64)first >> 12 & 511);
    at += TABLES * PAGE_SIZE;
    l2.code = at;
    l2.stack = at + 2 * PAGE_SIZE; // its top
    l2.idt = (u64 *)(at + 2 * PAGE_SIZE);
    l2.gdt = (u64 *)(at + 3 * PAGE_SIZE);
    l2.tss = at + 4 * PAGE_SIZE;
    l2.scratch = at + L2_PAGES * PAGE_SIZE;
    memcpy(l2.code, code, (size_t)(code_end - code));
    memcpy(l2.gdt, gdt, 0x70);
    for (u32 i = 0; i < 256; i++)
        make_gate(&l2.idt[i * 2], l2.code + HOSTILE_L2_GATES, CODE64, 0, GATE_INTERRUPT);
    for (u32 i = 0; i < HOSTILE_SCRATCH / 2; i += 2) // a free page behind each
        hostile_add_target(l2.scratch + i * PAGE_SIZE);
    original = pages(page_count);
    memcpy(original, first, page_count * PAGE_SIZE);
}

void hostile_l2_again(void)
{
    spoiled |= memcmp(first, original, (page_count - HOSTILE_SCRATCH) * PAGE_SIZE) != 0;
    memcpy(first, original, (page_count - HOSTILE_SCRATCH) * PAGE_SIZE);
}

// An L2 whose code, stack or tables lie in a device's memory ends the guest by design, so only the
// pages that it but reads and writes may lead to anything.
void hostile_l2_spoil(void)
{
    spoiled = true;
    for (u32 n = 1 + below(3); n; n--) {
        u32 page = below(page_count);
        u64 *entry = l2.nested_leaves + page;
        bool anywhere = page >= page_count - HOSTILE_SCRATCH / 2;

        if (!below(4))
            entry = l2.nested + below(3) * ENTRIES + (below(2) ? 0 : (u64)first >> 21 & 511);
        switch (below(4)) {
        case 0:
            *entry ^= BIT(below(12));
            break;
        case 1:
            *entry ^= BIT(52 + below(12));
            break;
        case 2:
            *entry = ((anywhere ? hostile_address() : hostile_target()) & BITS(51, 12)) |
                     (*entry & 0xfff);
            break;
        default:
            *entry = anywhere ? hostile_address() : hostile_target();
        }
    }
}

bool hostile_l2_stale(void)
{
    bool stale = spoiled;

    spoiled = false;
    return stale;
}

u64 hostile_root(u64 value)
{
    return value >> (cpuid(0x80000008, 0).eax & 0xff) ? value : (u64)l2.paging;
}

u64 hostile_address(void)
{
    static const u32 devices[] = {0xfee00000, 0xfec00000, 0xfeb00000, 0xc0000000,
                                  0xa0000,    0xff000000, 0xfed00000};
    u64 at;

    switch (below(8)) {
    case 0:
        return devices[below(ARRAY_SIZE(devices))];
    case 1:
        return HOSTILE_RAM + below(0x7000) * (u64)PAGE_SIZE;
    case 2:
        return hostile_target() + below(PAGE_SIZE);
    case 3:
        return HOSTILE_RAM - PAGE_SIZE;
    case 4:
        at = BIT(below(64)) | (below(2) ? 0 : hostile_target());
        break;
    case 5:
        at = random_value();
        break;
    default:
        return hostile_target();
    }
    return at < HOSTILE_RAM ? hostile_target() : at;
}

// --- the watchdog ---

static void on_watchdog(struct trap *trap)
{
    (void)trap;
    watchdog_count++;
    apic_eoi();
}

void watchdog_start(void)
{
    for (unsigned vector = 0x20; vector < 256; vector++)
        trap_handlers[vector] = on_watchdog;
    trap_handlers[VECTOR_NMI] = on_watchdog;
    apic_enable();
    apic_write(APIC_LVT_TIMER,
               cpuid(1, 0).ecx & BIT(24) ? LVT_DEADLINE | WATCHDOG_VECTOR : WATCHDOG_VECTOR);
}

void watchdog_arm(u64 ticks)
{
    if (cpuid(1, 0).ecx & BIT(24))
        msr_write(MSR_TSC_DEADLINE, rdtsc() + ticks);
    else
        apic_write(APIC_TIMER_INITIAL, (u32)ticks);
}

void watchdog_quiet(void)
{
    sti();
    cli();
    while (apic_read(APIC_PPR) & 0xf0) // something is in service
        apic_eoi();
    sti();
    cli();
}

// --- a run ---

void hostile_race_step(struct hostile_race *race)
{
    u64 s = race->state;
    u32 which, offset;

    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    race->state = s;
    which = (s >> 8 & 0xff) % race->count;
    offset = s >> 16 & 0xfff;
    if (which || offset >= race->spare)
        race->at[which][offset] ^= (u8)(s >> 32);
    if (!(s & 0xf))
        l2.nested_leaves[s >> 48 & 15] ^= BIT(s >> 24 & 7);
}

void hostile_main(const struct hostile *h)
{
    u64 count = number("count=", 300), seed = number("seed=", 1), good = 0, end = 0;

    random_seed(seed);
    if (!h->start())
        return;
    if (number("fatal=", ~0ull) != ~0ull) {
        h->load();
        h->fatal(number("fatal=", 0));
        report(false, "fatal=%llu was none", LLU(number("fatal=", 0)));
        return;
    }
    hostile_racing = option("race");
    if (hostile_racing) {
        report(smp_start(2), "two CPUs");
        smp_call(1, h->race, NULL);
    }
    for (u64 done = 0; done < count; done++) {
        if (done % GOOD_EVERY == 0) {
            h->instructions();
            good += h->run_good() || hostile_racing;
        }
        h->load();
        h->spoil();
        if (done >= number("show=", ~0ull))
            h->show(done);
        end += h->run_spoiled(done);
        hostile_l2_again();
    }
    hostile_stop_race = true;
    report(end == count, "%llu spoiled %s from seed %llu, %llu ended as the manual says",
           LLU(count), h->cases, LLU(seed), LLU(end));
    report(good == (count + GOOD_EVERY - 1) / GOOD_EVERY, "the good one worked %llu times",
           LLU(good));
    h->report();
}
