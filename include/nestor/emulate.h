// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The instruction emulator: executes one decoded instruction against registers and an ops table.
// Pure; all state is in the context. What it does not know it refuses (EMULATE_UNHANDLED) without
// any effect. Intel SDM volume 2 (instructions), volume 3 chapters 5 and 6 (protection, faults);
// AMD APM volume 3.

#pragma once

#include <nestor/decode.h>
#include <nestor/exit.h>
#include <nestor/segment.h>
#include <nestor/types.h>

// General registers in encoding order, with the guest's RSP among them.
struct emulate_regs {
    u64 gpr[16];
    u64 rip, rflags;
};

enum emulate_result {
    EMULATE_OK = 0, // done: gpr[] is updated; commit next_rflags, shadow, then next_rip
    EMULATE_REPEAT, // a boundary inside REP, or a lost LOCK race: as OK, but next_rip is RIP
    EMULATE_HALT,   // HLT: as OK, then halt
    EMULATE_FAULT,  // inject `fault`; RIP and RFLAGS stay. gpr[] has completed repetitions only
    // All is done and committed: the front end, or an operation, has made it an exit to L1, or an
    // owner of system registers has executed it.
    EMULATE_INTERCEPTED,
    EMULATE_UNHANDLED, // not known here, or an operation refused it
};

// What a memory operation is for. READ_MODIFY needs write permission, as the CPU's does.
enum emulate_access {
    EMULATE_READ,
    EMULATE_WRITE,
    EMULATE_READ_MODIFY,
    EMULATE_FETCH,
    EMULATE_SUPERVISOR = BIT(4), // or'ed in: implicit supervisor access, whatever the CPL
};

enum emulate_point { // in this order: whether an intercept or a fault comes first is the vendor's
    EMULATE_DECODED,
    EMULATE_PRIVILEGED, // the privilege and I/O permission checks have passed
    EMULATE_ACCESSED,   // operands have been read, nothing is changed yet
};

// The interrupt shadow after the instruction; the same values as enum interruptibility.
enum emulate_shadow {
    EMULATE_SHADOW_STI = BIT(0),
    EMULATE_SHADOW_MOV_SS = BIT(1),
};

// Vector registers as `vector` takes them: a write of XMM keeps the rest of the register, one of
// YMM or ZMM is the whole register (YMM: what is above becomes zero).
enum emulate_bank { EMULATE_MMX, EMULATE_XMM, EMULATE_YMM, EMULATE_ZMM };

struct emulate_ctx;

// Functions return EMULATE_OK, or EMULATE_FAULT (with ctx->fault set, see emulate_raise), or
// EMULATE_INTERCEPTED or EMULATE_UNHANDLED. `access` is an enum emulate_access. Accesses lie in one
// 4 KiB page of linear space, but for cmpxchg_mem, which refuses (UNHANDLED) what it can't do.
struct emulate_ops {
    enum emulate_result (*read_mem)(struct emulate_ctx *ctx, gva_t la, void *buf, unsigned size,
                                    unsigned access);
    enum emulate_result (*write_mem)(struct emulate_ctx *ctx, gva_t la, const void *buf,
                                     unsigned size, unsigned access);
    // Only the checks and faults of write_mem.
    enum emulate_result (*check_mem)(struct emulate_ctx *ctx, gva_t la, unsigned size,
                                     unsigned access);
    // Locked: if memory equals *old, stores *new_value and sets *swapped; else clears *swapped and
    // sets *old to what is there. MMIO: just the write. 1 to 16 bytes. NULL: LOCK is unhandled.
    enum emulate_result (*cmpxchg_mem)(struct emulate_ctx *ctx, gva_t la, void *old,
                                       const void *new_value, unsigned size, bool *swapped);
    enum emulate_result (*io_in)(struct emulate_ctx *ctx, u16 port, unsigned size, u32 *value);
    enum emulate_result (*io_out)(struct emulate_ctx *ctx, u16 port, unsigned size, u32 value);
    void (*get_seg)(struct emulate_ctx *ctx, enum segment_index seg, struct segment *out);
    // MOV and POP to a segment register, with its descriptor checks and faults. NULL: unhandled.
    enum emulate_result (*load_seg)(struct emulate_ctx *ctx, enum segment_index seg, u16 selector);
    // Executes or helps to execute ctx->insn, a system instruction whose checks have passed:
    // EMULATE_INTERCEPTED if that was all of it; EMULATE_OK with what it stores in ctx->dst
    // (SGDT, SIDT: the limit, and the base in ctx->src) or with what it loads taken from ctx->src
    // (LGDT, LIDT: limit and base as said). NULL: unhandled.
    enum emulate_result (*system)(struct emulate_ctx *ctx);
    // Whether the guest's CPUID has the instruction INSN_x. NULL: yes.
    bool (*offers)(struct emulate_ctx *ctx, u8 op);
    // The registers that live in the CPU: a vector register of 8, 16, 32 or 64 bytes; an x87
    // instruction (D8 + opcode, ModRM.reg) with `buf` as its memory operand; FSW. NULL: unhandled.
    void (*vector)(struct emulate_ctx *ctx, enum emulate_bank bank, unsigned n, bool write,
                   void *buf);
    void (*x87)(struct emulate_ctx *ctx, unsigned opcode, unsigned reg, void *buf);
    u16 (*x87_status)(struct emulate_ctx *ctx);
    u64 (*xcr0)(struct emulate_ctx *ctx);
    // EFER and the MSRs of SYSCALL and SYSENTER. NULL: unhandled.
    u64 (*msr)(struct emulate_ctx *ctx, u32 msr);
    // Asked at each point; ctx->insn, linear and port describe the instruction. String I/O asks
    // EMULATE_ACCESSED for each repetition; an instruction that is not emulated is asked about at
    // EMULATE_DECODED only. NULL: nobody to ask.
    enum emulate_result (*intercept)(struct emulate_ctx *ctx, enum emulate_point point);
    void (*get_gdt)(struct emulate_ctx *ctx, u64 *base, u32 *limit); // NULL: unhandled
    // A far transfer or IRET names a task: emulate_task_switch, or an exit to L1. NULL: unhandled.
    enum emulate_result (*task_switch)(struct emulate_ctx *ctx,
                                       const struct exit_task_switch *task);
    // Whether an event may wait for the boundary behind a repetition. NULL: none comes.
    bool (*interrupted)(struct emulate_ctx *ctx);
    // CR3 of the new task, at once: #GP if it is refused. NULL: CR3 stays.
    enum emulate_result (*load_cr3)(struct emulate_ctx *ctx, u64 cr3);
};

struct emulate_ctx {
    // The caller's, before the call.
    const struct emulate_ops *ops;
    void *opaque; // for ops
    struct emulate_regs *regs;
    enum insn_mode mode;
    u8 cpl; // VM86: 3
    u64 cr0, cr4;
    bool la57;                 // the CPU has 57-bit addresses
    bool amd;                  // where the vendors differ
    bool long_mode;            // EFER.LMA
    u64 dr7, hits;             // for ops: breakpoints to look for, DR6 bits of those found
    u32 max_repeat;            // repetitions for one call, 0 = 256
    u8 bytes[INSN_MAX_LENGTH]; // the instruction's first bytes if the hardware gave them
    u8 bytes_count;            // 0: fetched through read_mem
    // Results.
    struct insn insn;
    u64 next_rip, next_rflags;
    u8 shadow; // enum emulate_shadow
    struct event fault;
    gva_t linear; // of the explicit or string memory operand, for intercept
    u16 port;
    struct segment seg[SEG_COUNT]; // commit those of seg_loaded (bits by enum segment_index)
    u8 seg_loaded;
    bool branched;    // a near branch was taken
    bool unblock_nmi; // IRET: also where it faults
    // The task was switched: set CR0.TS, clear DR7's local enables, commit all, also before a
    // fault; then, if task_trap, raise #DB with BT.
    bool switched, task_trap;
    // Private.
    u64 gpr[16]; // becomes regs->gpr
    u64 dst, src;
};

// Fetches and decodes the instruction at RIP into ctx->insn. OK, or the fault of doing so.
enum emulate_result emulate_decode(struct emulate_ctx *ctx);

// Executes one instruction (of a repeated one, at most max_repeat repetitions).
enum emulate_result emulate_insn(struct emulate_ctx *ctx);

// Fills ctx->fault and returns EMULATE_FAULT. The error code is dropped in real mode.
enum emulate_result emulate_raise(struct emulate_ctx *ctx, u8 vector, bool has_error, u32 error);

// The load_seg of a machine with descriptor tables: to ctx->seg, or its fault.
enum emulate_result emulate_load_seg(struct emulate_ctx *ctx, enum segment_index seg, u16 selector);

// The task switch of ctx->gpr, next_rip and next_rflags (as they go to the old TSS) to `task`.
// What is checked of the new task before the switch may exit (SDM vol. 3 "Treatment of Task
// Switches").
enum emulate_result emulate_task_check(struct emulate_ctx *ctx,
                                       const struct exit_task_switch *task);
enum emulate_result emulate_task_switch(struct emulate_ctx *ctx,
                                        const struct exit_task_switch *task);

// Segmentation: the linear address of an access, or its fault (#GP, #SS, #AC). Intel SDM volume 3
// sections 5.3, 5.5; canonical addresses volume 1 section 3.3.7.1.
enum emulate_result emulate_linear(struct emulate_ctx *ctx, enum segment_index seg, u64 offset,
                                   unsigned size, unsigned access, gva_t *la);
