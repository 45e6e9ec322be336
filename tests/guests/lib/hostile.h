// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the hostile hypervisors of both vendors share: an L2 in pages of its own, which its paging
// and its nested paging map and nothing else, so that whatever becomes of it, L1's memory stays
// whole; addresses to point things at; and a timer that gets L1 its CPU back.

#pragma once

#include "guest.h"
#include "random.h"

enum { HOSTILE_SCRATCH = 16 }; // pages
enum { HOSTILE_RAM = 64 << 20, WATCHDOG_VECTOR = 0x50 };

struct hostile_l2 {
    u64 *paging, *nested; // roots
    u64 *nested_leaves;   // of the first 2 MiB that hold L2's pages
    u8 *code, *stack;
    u64 *idt, *gdt;
    u8 *tss;
    u8 *scratch; // HOSTILE_SCRATCH pages, where whatever may be written
};
extern struct hostile_l2 l2;

// `code`: position-independent. `nested_bits`, `leaf_bits`: of the nested paging's entries.
void hostile_l2_make(const char *code, const char *code_end, u64 nested_bits, u64 leaf_bits);
// L2's pages as they were at first.
void hostile_l2_again(void);
// Some flags of some nested entries, or where they lead.
void hostile_l2_spoil(void);
// Whether the nested paging has changed since this was asked, so that there is something to flush.
bool hostile_l2_stale(void);
// L2's CR3 where its paging alone keeps it away from L1: its own, or one that no entry takes.
u64 hostile_root(u64 value);
// An address of a page that may be overwritten.
u64 hostile_target(void);
void hostile_add_target(void *page);
// Anything: MMIO, past RAM, not aligned, not canonical, a target; L1's other memory never.
u64 hostile_address(void);

void watchdog_start(void);
void watchdog_arm(u64 ticks);
// Takes what is pending, and ends what is in service.
void watchdog_quiet(void);
extern volatile u32 watchdog_count;
