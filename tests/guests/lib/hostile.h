// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the hostile hypervisors of both vendors share: an L2 in pages of its own, which its paging
// and its nested paging map and nothing else, so that whatever becomes of it, L1's memory stays
// whole; addresses to point things at; a timer that gets L1 its CPU back; and the course of a run.

#pragma once

#include "l1.h"
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

// L2's code: what exits, what touches the scratch pages, and behind its gates the call of L1.
enum { HOSTILE_L2_GATES = 2048 };
#define HOSTILE_L2(call, last)                             \
    extern char l2_code[], l2_code_end[];                  \
    __asm__(".pushsection .text\n"                         \
            "l2_code: cpuid\n"                             \
            "lea l2_code(%rip), %rbx; add $0x6000, %rbx\n" \
            "mov (%rbx), %eax; mov %eax, 0x1000(%rbx)\n"   \
            "movb $0, 0x2002(%rbx)\n"                      \
            "mov $0x10, %ecx; rdmsr\n"                     \
            "mov $0x80, %dx; in %dx, %al\n"                \
            "push %rax; pop %rax\n"                        \
            "mov %cr0, %rax; mov %cr8, %rax\n"             \
            "pause; " last "; jmp l2_code\n"               \
            ".org l2_code + 2048\n" call "; jmp l2_code\n" \
            "l2_code_end: .popsection\n")

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

// What the second CPU of a race does: flips bits of one of `at`'s pages, and of the nested paging.
// `spare`: how much of the first page's start it leaves alone.
struct hostile_race {
    u64 state;
    u8 *const *at;
    u32 count, spare;
};
void hostile_race_step(struct hostile_race *race);

// A hostile hypervisor. Words on the command line: count=N (300), seed=N (1); race: a second CPU
// overwrites what the first one enters with; fatal=N: what ends the guest; show=N: cases from this
// one on.
struct hostile {
    const char *cases;          // what is spoiled
    bool (*start)(void);        // false: this CPU has nothing to be hostile with
    void (*race)(void *unused); // on the second CPU, until hostile_stop_race
    void (*fatal)(u64 which);   // must not return
    void (*instructions)(void); // the vendor's instructions on anything
    bool (*run_good)(void);     // what is not spoiled, which must work
    void (*load)(void);         // before spoil
    void (*spoil)(void);
    void (*show)(u64 number);
    bool (*run_spoiled)(u64 number); // whether it ended as the manual says
    void (*report)(void);
};
void hostile_main(const struct hostile *h);
extern volatile bool hostile_stop_race;
extern bool hostile_racing;
