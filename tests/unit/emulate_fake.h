// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A flat machine for the emulator's hand cases: memory, ports and segments that note what the
// emulator asked of them.

#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/regs.h>
#include <nestor/emulate.h>

#define PAGES 64

enum page_state { PAGE_RAM, PAGE_READ_ONLY, PAGE_ABSENT };

// One flat machine: linear 0..PAGES*4096 is memory, everything else faults.
static struct machine {
    u8 memory[PAGES * PAGE_SIZE];
    u8 state[PAGES];
    struct segment seg[SEG_COUNT];
    u32 port_value;
    unsigned port_reads, port_writes, writes, races;
    u16 last_port;
    u8 points[16], point_count;
    int intercept_at; // enum emulate_point, -1 = never
    int loaded_seg;
    u16 loaded_selector;
} m;

static struct emulate_regs regs;
static struct emulate_ctx ctx;

static enum emulate_result page_fault(struct emulate_ctx *c, gva_t la, unsigned access,
                                      bool present)
{
    u32 error = (present ? PF_P : 0) |
                (access == EMULATE_WRITE || access == EMULATE_READ_MODIFY ? PF_W : 0);

    if (access == EMULATE_FETCH)
        error |= PF_I;
    if (c->cpl == 3 && !(access & EMULATE_SUPERVISOR))
        error |= PF_U;
    emulate_raise(c, VECTOR_PF, true, error);
    c->fault.has_payload = true;
    c->fault.payload = la;
    return EMULATE_FAULT;
}

// The same memory is there once more, above 4 GiB.
#define KERNEL 0xffff800000100000

static gva_t index_of(gva_t la)
{
    return la >= KERNEL ? la - KERNEL : la;
}

static enum emulate_result check(struct emulate_ctx *c, gva_t la, unsigned size, unsigned access)
{
    bool write = access == EMULATE_WRITE || access == EMULATE_READ_MODIFY;

    la = index_of(la);
    assert_true((la & ~PAGE_MASK) + size <= PAGE_SIZE);
    if (la >= sizeof(m.memory) || m.state[la / PAGE_SIZE] == PAGE_ABSENT)
        return page_fault(c, la, access, false);
    if (write && m.state[la / PAGE_SIZE] == PAGE_READ_ONLY)
        return page_fault(c, la, access, true);
    return EMULATE_OK;
}

static enum emulate_result read_mem(struct emulate_ctx *c, gva_t la, void *buf, unsigned size,
                                    unsigned access)
{
    enum emulate_result r = check(c, la, size, access);

    assert_int_not_equal(access, EMULATE_WRITE);
    if (r == EMULATE_OK)
        memcpy(buf, m.memory + index_of(la), size);
    return r;
}

static enum emulate_result write_mem(struct emulate_ctx *c, gva_t la, const void *buf,
                                     unsigned size, unsigned access)
{
    enum emulate_result r = check(c, la, size, access);

    if (r == EMULATE_OK)
        memcpy(m.memory + la, buf, size);
    m.writes++;
    return r;
}

// While races are left, another CPU adds one to the first byte just before the exchange.
static enum emulate_result cmpxchg_mem(struct emulate_ctx *c, gva_t la, void *old,
                                       const void *value, unsigned size, bool *swapped)
{
    enum emulate_result r = check(c, la, size, EMULATE_WRITE);

    if (r != EMULATE_OK)
        return r;
    if (m.races) {
        m.races--;
        m.memory[la]++;
    }
    *swapped = memcmp(m.memory + la, old, size) == 0;
    if (*swapped)
        memcpy(m.memory + la, value, size);
    else
        memcpy(old, m.memory + la, size);
    return EMULATE_OK;
}

static enum emulate_result io_in(struct emulate_ctx *c, u16 port, unsigned size, u32 *value)
{
    (void)c;
    (void)size;
    m.port_reads++;
    m.last_port = port;
    *value = m.port_value++;
    return EMULATE_OK;
}

static enum emulate_result io_out(struct emulate_ctx *c, u16 port, unsigned size, u32 value)
{
    (void)c;
    (void)size;
    m.port_writes++;
    m.last_port = port;
    m.port_value = value;
    return EMULATE_OK;
}

static void get_seg(struct emulate_ctx *c, enum segment_index seg, struct segment *out)
{
    (void)c;
    *out = m.seg[seg];
}

static enum emulate_result load_seg(struct emulate_ctx *c, enum segment_index seg, u16 selector)
{
    (void)c;
    m.loaded_seg = seg;
    m.loaded_selector = selector;
    return EMULATE_OK;
}

static enum emulate_result intercept(struct emulate_ctx *c, enum emulate_point point)
{
    (void)c;
    m.points[m.point_count++ & 15] = (u8)point;
    return m.intercept_at == (int)point ? EMULATE_INTERCEPTED : EMULATE_OK;
}

static const struct emulate_ops ops = {
    .read_mem = read_mem,
    .write_mem = write_mem,
    .check_mem = check,
    .cmpxchg_mem = cmpxchg_mem,
    .io_in = io_in,
    .io_out = io_out,
    .get_seg = get_seg,
    .load_seg = load_seg,
    .intercept = intercept,
};

#define CODE 0x1000
#define DATA 0x8000

#define ACCESS_DATA (SEG_P | SEG_S | 3)
#define ACCESS_CODE (SEG_P | SEG_S | 11)

static void begin(enum insn_mode mode)
{
    u16 limit = 0xffff;

    memset(&m, 0, sizeof(m));
    memset(&regs, 0, sizeof(regs));
    memset(&ctx, 0, sizeof(ctx));
    m.intercept_at = -1;
    m.loaded_seg = -1;
    for (unsigned i = 0; i < SEG_COUNT; i++)
        m.seg[i] =
            (struct segment){.access = ACCESS_DATA, .limit = limit, .selector = (u16)(8 * i)};
    m.seg[SEG_CS].access = ACCESS_CODE;
    m.seg[SEG_TR] = (struct segment){.access = SEG_P | 11, .limit = 0x200, .base = 0x20000};
    if (mode != INSN_MODE_16)
        for (unsigned i = 0; i < 6; i++) {
            m.seg[i].limit = 0xffffffff;
            m.seg[i].access |= SEG_DB | SEG_G;
        }
    ctx.ops = &ops;
    ctx.regs = &regs;
    ctx.mode = mode;
    ctx.cr0 = CR0_PE;
    regs.rip = CODE;
    regs.rflags = RFLAGS_FIXED;
    regs.gpr[4] = 0x6000;
}

static enum emulate_result run_bytes(const char *bytes, unsigned len)
{
    memcpy(m.memory + CODE, bytes, len);
    ctx.bytes_count = 0;
    return emulate_insn(&ctx);
}

#define RUN(text) run_bytes(text, sizeof(text) - 1)

static void assert_fault(enum emulate_result r, unsigned vector, int error)
{
    assert_int_equal(r, EMULATE_FAULT);
    assert_int_equal(ctx.fault.vector, vector);
    assert_int_equal(ctx.fault.type, EVENT_EXCEPTION);
    assert_int_equal(ctx.fault.has_error, error >= 0);
    if (error >= 0)
        assert_int_equal(ctx.fault.error, error);
    assert_int_equal(regs.rip, CODE);
}

static void done(enum emulate_result r, unsigned len)
{
    assert_int_equal(r, EMULATE_OK);
    assert_int_equal(ctx.next_rip, CODE + len);
    assert_int_equal(regs.rip, CODE); // the caller's to commit
}

static u64 load(u64 la, unsigned size)
{
    u64 value = 0;

    memcpy(&value, m.memory + la, size);
    return value;
}

static void store(u64 la, u64 value, unsigned size)
{
    memcpy(m.memory + la, &value, size);
}
