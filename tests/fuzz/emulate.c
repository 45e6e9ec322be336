// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// fuzz-tests: test_emulate
//
// The decoder and the emulator against emulate_fake.h's flat memory, whose functions themselves
// refuse accesses over a page's end. What must hold of every instruction: RIP and RFLAGS are left
// to the caller; one that faults, is intercepted or unknown leaves registers, memory, ports and
// segment registers as they were, but for a repeated one's repetitions that are done; and those
// are no more than asked for.

#define main unit_main
#include "tests/unit/test_emulate.c"
#undef main
#include "fuzz.h"

static const u64 pointers[] = {0,
                               1,
                               DATA,
                               DATA + PAGE_SIZE - 4,
                               DATA + PAGE_SIZE - 1,
                               0xffff,
                               0x10000,
                               0x7fffffff,
                               0xffffffff,
                               0x100000000,
                               0x7fffffffffff,
                               0x800000000000,
                               ~0ull,
                               1ull << 63,
                               sizeof(m.memory) - 8,
                               0x6000};

// Two writes where the unit tests' model has no answer, as core/emulation.c does it.
static enum emulate_result cmpxchg_anywhere(struct emulate_ctx *c, gva_t la, void *old,
                                            const void *value, unsigned size, bool *swapped)
{
    unsigned first = (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK));
    enum emulate_result r;

    if (size <= first)
        return cmpxchg_mem(c, la, old, value, size, swapped);
    r = check(c, la + first, size - first, EMULATE_WRITE);
    if (r == EMULATE_OK)
        r = write_mem(c, la, value, first, EMULATE_WRITE);
    if (r == EMULATE_OK)
        r = write_mem(c, la + first, (const u8 *)value + first, size - first, EMULATE_WRITE);
    *swapped = true;
    return r;
}

static void take_registers(void)
{
    for (unsigned i = 0; i < 16; i++) {
        u8 byte = (u8)take(1);

        regs.gpr[i] = pointers[byte & 15] + (u64)((s8)byte >> 4);
    }
    if (!insn_mode_is_64(ctx.mode))
        for (unsigned i = 0; i < 16; i++)
            regs.gpr[i] = i < 8 ? (u32)regs.gpr[i] : 0;
    regs.rflags = RFLAGS_FIXED | (take(3) & (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF |
                                             RFLAGS_SF | RFLAGS_DF | RFLAGS_OF | RFLAGS_IF |
                                             RFLAGS_IOPL | RFLAGS_NT | RFLAGS_AC));
}

// Type, expand-down, presence and limit of ES, SS, DS, FS and GS.
static void take_segments(void)
{
    for (unsigned i = 0; i < 6; i++) {
        u8 byte = (u8)take(1);

        if (i == SEG_CS || !byte)
            continue;
        m.seg[i].access = (m.seg[i].access & ~15u) | (byte & 15);
        if (byte & 0x10)
            m.seg[i].limit = 0x8fff;
        if (byte & 0x20)
            m.seg[i].access &= ~(u32)SEG_P;
        m.seg[i].base = (u64)(byte >> 6) << 12;
    }
}

static void take_world(void)
{
    static struct emulate_ops my_ops;
    u8 flags;

    begin((enum insn_mode)(take(1) % 4));
    my_ops = ops;
    my_ops.cmpxchg_mem = cmpxchg_anywhere;
    ctx.ops = &my_ops;
    flags = (u8)take(1);
    if (ctx.mode == INSN_MODE_16 && flags & 1)
        ctx.cr0 = 0;
    else
        ctx.cpl = flags & 2 ? 3 : 0;
    ctx.cr0 |= flags & 4 ? CR0_AM : 0;
    ctx.cr4 |= flags & 8 ? CR4_UMIP : 0;
    m.races = flags >> 4 & 1;
    m.intercept_at = flags & 0x20 ? flags >> 6 : -1;
    ctx.max_repeat = (u32)take(1);
    m.state[DATA / PAGE_SIZE + 1] = (u8)take(1) % 3;
    m.state[5] = (u8)take(1) % 3;
    take_registers();
    take_segments();
    regs.rip = take(1) & 1 ? CODE + PAGE_SIZE - 2 : CODE;
    for (unsigned i = 0; i < 15; i++)
        m.memory[regs.rip + i] = (u8)take(1);
    for (size_t i = DATA - 0x2000; i < DATA + 0x2000; i += 16)
        m.memory[i] = (u8)i;
}

static bool is_string(void)
{
    return ctx.insn.op >= INSN_MOVS && ctx.insn.op <= INSN_OUTS;
}

static u64 counter(const struct emulate_regs *r)
{
    u64 mask = ctx.insn.addr_size == 8 ? ~0ull : ctx.insn.addr_size == 4 ? ~0u : 0xffff;

    return r->gpr[1] & mask;
}

static void check_repeat(const struct emulate_regs *before)
{
    u64 first = counter(before), last = counter(&regs);
    u32 most = ctx.max_repeat ? ctx.max_repeat : 256;

    FUZZ_CHECK(last <= first && first - last <= most);
}

static void check_nothing(const struct emulate_regs *before, const u8 *memory)
{
    FUZZ_CHECK(memcmp(before->gpr, regs.gpr, sizeof(regs.gpr)) == 0);
    FUZZ_CHECK(memcmp(memory, m.memory, sizeof(m.memory)) == 0);
    FUZZ_CHECK(m.port_writes == 0 && m.port_reads == 0);
    FUZZ_CHECK(m.loaded_seg == -1);
}

static void check_done(void)
{
    FUZZ_CHECK(ctx.insn.length >= 1 && ctx.insn.length <= INSN_MAX_LENGTH);
    FUZZ_CHECK(ctx.next_rflags & RFLAGS_FIXED && !(ctx.next_rflags & 0x8028));
    FUZZ_CHECK(insn_mode_is_64(ctx.mode) || ctx.next_rip <= 0xffffffff);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    static u8 memory[sizeof(m.memory)];
    struct emulate_regs before;
    enum emulate_result r;
    bool repeated;

    input.at = data;
    input.left = size;
    take_world();
    before = regs;
    memcpy(memory, m.memory, sizeof(memory));
    r = emulate_insn(&ctx);
    FUZZ_CHECK(regs.rip == before.rip && regs.rflags == before.rflags);
    repeated = ctx.insn.prefixes & (INSN_REP | INSN_REPNE) && is_string();
    if (repeated)
        check_repeat(&before);
    if (r == EMULATE_FAULT)
        FUZZ_CHECK(ctx.fault.valid && (ctx.fault.type != EVENT_EXCEPTION || ctx.fault.vector < 32));
    if (r == EMULATE_OK || r == EMULATE_REPEAT || r == EMULATE_HALT)
        check_done();
    else if (!repeated)
        check_nothing(&before, memory);
    return 0;
}
