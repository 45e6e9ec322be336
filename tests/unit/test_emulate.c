// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/decode.c core/decode_table.c core/emulate.c
// unit-sources: core/emulate_stack.c core/emulate_string.c
// unit-sources: core/emulate_alu.c core/emulate_ops.c core/emulate_rare.c core/emulate_vector.c
// unit-sources: core/emulate_system.c core/emulate_selector.c core/emulate_syscall.c
// unit-sources: core/task.c
// unit-sources: core/emulate_far.c core/descriptor.c
//
// The emulator by hand cases from the manuals: segmentation, page crossing, REP boundaries,
// privileges, LOCK, the intercept points. test_emulate_host.c compares it with the CPU that runs
// the tests.

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

// --- memory faults leave nothing behind ---

static void test_page_crossing(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[3] = DATA + PAGE_SIZE - 3;
    regs.gpr[0] = 0x1122334455667788;
    done(RUN("\x48\x89\x03"), 3); // mov [rbx], rax
    assert_int_equal(load(DATA + PAGE_SIZE - 3, 8), 0x1122334455667788);
    done(RUN("\x48\x8b\x0b"), 3); // mov rcx, [rbx]
    assert_int_equal(regs.gpr[1], 0x1122334455667788);
    m.state[DATA / PAGE_SIZE + 1] = PAGE_READ_ONLY;
    regs.gpr[0] = 0;
    assert_fault(RUN("\x48\x89\x03"), VECTOR_PF, PF_P | PF_W);
    assert_int_equal(ctx.fault.payload, DATA + PAGE_SIZE);
    assert_int_equal(load(DATA + PAGE_SIZE - 3, 8), 0x1122334455667788);
    assert_fault(RUN("\x48\x01\x03"), VECTOR_PF, PF_P | PF_W); // add [rbx], rax: write intent
    m.state[DATA / PAGE_SIZE + 1] = PAGE_ABSENT;
    assert_fault(RUN("\x48\x8b\x0b"), VECTOR_PF, 0);
    m.state[DATA / PAGE_SIZE] = PAGE_ABSENT;
    assert_fault(RUN("\x48\x8b\x0b"), VECTOR_PF, 0);
    assert_int_equal(ctx.fault.payload, DATA + PAGE_SIZE - 3);
}

static void test_fault_commits_nothing(void **state)
{
    static const char cases[][5] = {
        "\x8f\x03",         // pop [rbx]
        "\x48\x87\x03",     // xchg [rbx], rax
        "\x48\x0f\xc1\x03", // xadd [rbx], rax
        "\x48\x0f\xb1\x03", // cmpxchg [rbx], rax
        "\x48\x0f\xc7\x0b", // cmpxchg16b [rbx]
        "\xc9",             // leave
        "\x54",             // push rsp
        "\xff\x13",         // call [rbx]
        "\x48\xa5",         // movsq
    };
    struct emulate_regs before;

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        begin(INSN_MODE_64);
        m.state[DATA / PAGE_SIZE] = PAGE_READ_ONLY;
        m.state[7] = PAGE_ABSENT;
        for (unsigned r = 0; r < 16; r++)
            regs.gpr[r] = 0x100 + r;
        regs.gpr[3] = regs.gpr[7] = DATA + 0x10;
        regs.gpr[4] = i == 6 || i == 7 ? 0x8000 : 0x6000;
        regs.gpr[5] = 0x7000;
        store(DATA + 0x10, CODE, 8);
        before = regs;
        assert_int_equal(run_bytes(cases[i], 4), EMULATE_FAULT);
        assert_int_equal(ctx.fault.vector, VECTOR_PF);
        assert_memory_equal(&before, &regs, sizeof(regs));
        assert_int_equal(load(DATA + 0x10, 8), CODE);
    }
}

// ENTER whose enclosing frame can't be read has pushed nothing yet.
static void test_enter_fault(void **state)
{
    (void)state;
    begin(INSN_MODE_32);
    m.state[5] = PAGE_ABSENT;
    regs.gpr[4] = 0x8000;
    regs.gpr[5] = 0x6004;
    store(0x7ffc, 0x12345678, 4);
    assert_fault(RUN("\xc8\x10\x00\x03"), VECTOR_PF, 0); // enter 16, 3
    assert_int_equal(ctx.fault.payload, 0x5ffc);
    assert_int_equal(load(0x7ffc, 4), 0x12345678);
}

// --- segmentation ---

static void test_real_mode(void **state)
{
    (void)state;
    begin(INSN_MODE_16);
    ctx.cr0 = 0;
    m.seg[SEG_DS].base = 0x10000;
    regs.gpr[3] = 0xfff0;
    regs.gpr[6] = 0x20;
    store(0x10010, 0xbeef, 2);
    done(RUN("\x8b\x00"), 2); // mov ax, [bx + si]: the offset wraps
    assert_int_equal(regs.gpr[0], 0xbeef);
    regs.gpr[3] = 0xffff;
    regs.gpr[6] = 0;
    assert_fault(RUN("\x8b\x00"), VECTOR_GP, -1); // the word does not; no error code in real mode
    done(RUN("\x8a\x00"), 2);
    regs.gpr[5] = 0xffff;
    assert_fault(RUN("\x8b\x46\x00"), VECTOR_SS, -1); // bp: stack segment
    assert_fault(RUN("\x3e\x8b\x46\x00"), VECTOR_GP, -1);
    regs.gpr[4] = 0xabcd0000;
    regs.gpr[0] = 0x1234;
    done(RUN("\x50"), 1); // push ax wraps SP, and leaves the upper half alone
    assert_int_equal(regs.gpr[4], 0xabcdfffe);
    assert_int_equal(load(0xfffe, 2), 0x1234);
    regs.gpr[4] = 1;
    assert_fault(RUN("\x50"), VECTOR_SS, -1);
}

static void test_protected_segments(void **state)
{
    (void)state;
    begin(INSN_MODE_32);
    m.seg[SEG_DS].limit = 0x7fff;
    regs.gpr[3] = 0x7ffc;
    done(RUN("\x8b\x03"), 2);
    regs.gpr[3] = 0x7ffd;
    assert_fault(RUN("\x8b\x03"), VECTOR_GP, 0);
    m.seg[SEG_DS].access = SEG_P | SEG_S | 7; // expand down: valid above the limit only
    assert_fault(RUN("\x8b\x03"), VECTOR_GP, 0);
    regs.gpr[3] = 0x7fff;
    assert_fault(RUN("\x8a\x03"), VECTOR_GP, 0);
    regs.gpr[3] = 0x8000;
    done(RUN("\x8b\x03"), 2);
    regs.gpr[3] = 0xfffd; // a small segment ends at 64 KiB
    assert_fault(RUN("\x8b\x03"), VECTOR_GP, 0);
    m.seg[SEG_DS].access |= SEG_DB;
    done(RUN("\x8b\x03"), 2);
    m.seg[SEG_DS] = (struct segment){.access = SEG_P | SEG_S | 1, .limit = 0xffffffff}; // read-only
    done(RUN("\x8b\x03"), 2);
    assert_fault(RUN("\x89\x03"), VECTOR_GP, 0);
    assert_fault(RUN("\x01\x03"), VECTOR_GP, 0);
    m.seg[SEG_CS].access = SEG_P | SEG_S | SEG_DB | 9; // execute-only
    assert_fault(RUN("\x2e\x8b\x03"), VECTOR_GP, 0);
    m.seg[SEG_DS].access = SEG_UNUSABLE | 3;
    assert_fault(RUN("\x8b\x03"), VECTOR_GP, 0);
    m.seg[SEG_SS].access = SEG_UNUSABLE | 3;
    assert_fault(RUN("\x8b\x04\x24"), VECTOR_SS, 0);
    m.seg[SEG_ES].base = 0xfffff000; // linear addresses wrap at 4 GiB
    regs.gpr[3] = DATA + 0x1000;
    store(DATA, 0x55aa, 4);
    done(RUN("\x26\x8b\x03"), 3);
    assert_int_equal(regs.gpr[0], 0x55aa);
}

static void test_canonical(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[3] = regs.gpr[5] = 1ull << 47;
    assert_fault(RUN("\x8b\x03"), VECTOR_GP, 0);
    assert_fault(RUN("\x8b\x45\x00"), VECTOR_SS, 0);     // rbp
    assert_fault(RUN("\x64\x8b\x45\x00"), VECTOR_GP, 0); // fs:rbp
    assert_fault(RUN("\x3e\x8b\x45\x00"), VECTOR_SS, 0); // DS means nothing
    regs.gpr[13] = 1ull << 47;
    assert_fault(RUN("\x41\x8b\x45\x00"), VECTOR_GP, 0); // r13 is not rbp
    regs.gpr[3] = (1ull << 47) - 4;
    assert_fault(RUN("\x8b\x03"), VECTOR_PF, 0);
    assert_fault(RUN("\x48\x8b\x03"), VECTOR_GP, 0); // reaches over the edge
    ctx.cr4 = CR4_LA57;
    assert_fault(RUN("\x48\x8b\x03"), VECTOR_PF, 0);
    regs.gpr[3] = 1ull << 56;
    assert_fault(RUN("\x48\x8b\x03"), VECTOR_GP, 0);
    regs.gpr[4] = 1ull << 60;
    assert_fault(RUN("\x50"), VECTOR_SS, 0);
    assert_fault(RUN("\xff\xe3"), VECTOR_GP, 0); // jmp rbx
    regs.gpr[4] = 0x6000;
    assert_fault(RUN("\xff\xd3"), VECTOR_GP, 0); // call rbx: nothing pushed
    assert_int_equal(regs.gpr[4], 0x6000);
    assert_int_equal(m.writes, 0);
    regs.gpr[3] = 0x100;
    m.seg[SEG_FS].base = DATA;
    m.seg[SEG_DS].base = 0x123456; // ignored
    store(DATA + 0x100, 0x77, 4);
    store(0x100, 0x88, 4);
    done(RUN("\x64\x8b\x03"), 3);
    assert_int_equal(regs.gpr[0], 0x77);
    done(RUN("\x8b\x03"), 2);
    assert_int_equal(regs.gpr[0], 0x88);
    // LGDT goes by what the CPU has, whatever CR4.LA57 says
    begin(INSN_MODE_64);
    regs.gpr[3] = DATA;
    store(DATA + 2, 1ull << 50, 8);
    assert_fault(RUN("\x0f\x01\x13"), VECTOR_GP, 0);
    ctx.cr4 = CR4_LA57;
    assert_fault(RUN("\x0f\x01\x13"), VECTOR_GP, 0);
    ctx.cr4 = 0;
    ctx.la57 = true;
    assert_int_equal(RUN("\x0f\x01\x13"), EMULATE_UNHANDLED); // no system operations here
}

static void test_alignment_check(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[3] = DATA + 2;
    regs.rflags |= RFLAGS_AC;
    ctx.cr0 |= CR0_AM;
    done(RUN("\x8b\x03"), 2); // not at CPL 0
    ctx.cpl = 3;
    assert_fault(RUN("\x8b\x03"), VECTOR_AC, 0);
    done(RUN("\x66\x8b\x03"), 3);
    ctx.cr0 &= ~CR0_AM;
    done(RUN("\x8b\x03"), 2);
    regs.gpr[3] = DATA + 8;
    assert_fault(RUN("\x48\x0f\xc7\x0b"), VECTOR_GP, 0); // cmpxchg16b wants 16 always
}

// --- fetching ---

static void test_fetch(void **state)
{
    static const u8 movabs[] = {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8};

    (void)state;
    begin(INSN_MODE_64);
    regs.rip = CODE + PAGE_SIZE - 4;
    memcpy(m.memory + regs.rip, movabs, sizeof(movabs));
    assert_int_equal(emulate_insn(&ctx), EMULATE_OK);
    assert_int_equal(regs.gpr[0], 0x0807060504030201);
    m.state[2] = PAGE_ABSENT;
    ctx.bytes_count = 0;
    assert_int_equal(emulate_insn(&ctx), EMULATE_FAULT);
    assert_int_equal(ctx.fault.vector, VECTOR_PF);
    assert_int_equal(ctx.fault.error, PF_I);
    assert_int_equal(ctx.fault.payload, CODE + PAGE_SIZE);
    memcpy(ctx.bytes, movabs, sizeof(movabs)); // given by the hardware: nothing is fetched
    ctx.bytes_count = 15;
    assert_int_equal(emulate_insn(&ctx), EMULATE_OK);
    regs.rip = CODE;
    assert_fault(RUN("\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90"), VECTOR_GP,
                 0);
    assert_fault(RUN("\x0f\x0b"), VECTOR_UD, -1);
    assert_fault(RUN("\xf0\x90"), VECTOR_UD, -1);
    begin(INSN_MODE_32);
    m.seg[SEG_CS].limit = CODE + 4;
    assert_fault(RUN("\x81\xc3\x00\x00\x00\x00"), VECTOR_GP,
                 0); // the sixth byte is beyond the limit
    done(RUN("\xb8\x00\x00\x00\x00"), 5);
    assert_fault(RUN("\xeb\x10"), VECTOR_GP, 0); // and so is this target
    done(RUN("\x74\x10"), 2);
}

// --- strings ---

static void test_repeat(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[1] = 10;
    regs.gpr[6] = DATA;
    regs.gpr[7] = DATA + 0x100;
    ctx.max_repeat = 4;
    for (unsigned i = 0; i < 80; i++)
        m.memory[DATA + i] = (u8)i;
    assert_int_equal(RUN("\xf3\x48\xa5"), EMULATE_REPEAT);
    assert_int_equal(ctx.next_rip, CODE);
    assert_true(ctx.next_rflags & RFLAGS_RF);
    assert_int_equal(regs.gpr[1], 6);
    assert_int_equal(regs.gpr[7], DATA + 0x120);
    assert_int_equal(RUN("\xf3\x48\xa5"), EMULATE_REPEAT);
    done(RUN("\xf3\x48\xa5"), 3);
    assert_false(ctx.next_rflags & RFLAGS_RF);
    assert_int_equal(regs.gpr[1], 0);
    assert_memory_equal(m.memory + DATA, m.memory + DATA + 0x100, 80);
    regs.gpr[6] = 1ull << 62; // no count, no access, no fault
    done(RUN("\xf3\x48\xa5"), 3);
}

static unsigned repetitions;

static bool every_third(struct emulate_ctx *c)
{
    (void)c;
    return ++repetitions % 3 == 0;
}

static void test_repeat_interrupted(void **state)
{
    struct emulate_ops with_events;

    (void)state;
    begin(INSN_MODE_64);
    with_events = *ctx.ops;
    with_events.interrupted = every_third;
    ctx.ops = &with_events;
    regs.gpr[1] = 7;
    regs.gpr[7] = DATA;
    assert_int_equal(RUN("\xf3\xaa"), EMULATE_REPEAT);
    assert_int_equal(regs.gpr[1], 4);
    assert_int_equal(ctx.next_rip, CODE);
    assert_int_equal(RUN("\xf3\xaa"), EMULATE_REPEAT);
    done(RUN("\xf3\xaa"), 2); // the last one ends the instruction, whatever waits
    assert_int_equal(regs.gpr[1], 0);
}

static void test_repeat_fault(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[1] = 8;
    regs.gpr[0] = 0x5a;
    regs.gpr[7] = DATA + PAGE_SIZE - 3;
    m.state[DATA / PAGE_SIZE + 1] = PAGE_ABSENT;
    assert_fault(RUN("\xf3\xaa"), VECTOR_PF, PF_W); // rep stosb: three done, the fourth faults
    assert_int_equal(regs.gpr[1], 5);
    assert_int_equal(regs.gpr[7], DATA + PAGE_SIZE);
    assert_int_equal(load(DATA + PAGE_SIZE - 3, 3), 0x5a5a5a);
    m.state[DATA / PAGE_SIZE + 1] = PAGE_RAM;
    done(RUN("\xf3\xaa"), 2);
    assert_int_equal(regs.gpr[1], 0);
    m.seg[SEG_FS].base = 0x10000; // an override moves the source, never the destination
    regs.gpr[6] = regs.gpr[7] = DATA;
    store(DATA + 0x10000, 0x99, 1);
    done(RUN("\x64\xa4"), 2);
    assert_int_equal(load(DATA, 1), 0x99);
    begin(INSN_MODE_16); // indices and count are 16 bits wide and wrap
    regs.gpr[1] = 0x70002;
    regs.gpr[7] = 0x3ffff;
    regs.gpr[0] = 0x41;
    done(RUN("\xf3\xaa"), 2);
    assert_int_equal(regs.gpr[1], 0x70000);
    assert_int_equal(regs.gpr[7], 0x30001);
    assert_int_equal(load(0xffff, 1), 0x41);
    assert_int_equal(load(0, 1), 0x41);
}

static void test_compare_strings(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    memcpy(m.memory + DATA, "hypervisor", 10);
    memcpy(m.memory + DATA + 0x40, "hyperspace", 10);
    regs.gpr[1] = 10;
    regs.gpr[6] = DATA;
    regs.gpr[7] = DATA + 0x40;
    done(RUN("\xf3\xa6"), 2); // repe cmpsb stops behind the first difference
    assert_int_equal(regs.gpr[1], 4);
    assert_int_equal(regs.gpr[6], DATA + 6);
    assert_false(ctx.next_rflags & (RFLAGS_ZF | RFLAGS_CF)); // 'v' > 's'
    regs.gpr[0] = 'e';
    regs.gpr[1] = 10;
    regs.gpr[7] = DATA + 0x40;
    done(RUN("\xf2\xae"), 2); // repne scasb
    assert_int_equal(regs.gpr[7], DATA + 0x44);
    assert_true(ctx.next_rflags & RFLAGS_ZF);
    regs.rflags |= RFLAGS_DF;
    regs.gpr[6] = DATA + 4;
    done(RUN("\xac"), 1); // lodsb downwards
    assert_int_equal(regs.gpr[6], DATA + 3);
    assert_int_equal(regs.gpr[0], 'r');
}

// --- ports ---

static void test_ports(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    m.port_value = 0x12345678;
    regs.gpr[0] = ~0ull;
    regs.gpr[2] = 0xffff0cfc;
    done(RUN("\xec"), 1); // in al, dx
    assert_int_equal(regs.gpr[0], 0xffffffffffffff78);
    assert_int_equal(m.last_port, 0xcfc);
    done(RUN("\x48\xed"), 2); // in eax, dx: REX.W changes nothing
    assert_int_equal(regs.gpr[0], 0x12345679);
    done(RUN("\x66\xe7\x80"), 3); // out 0x80, ax
    assert_int_equal(m.port_value, 0x5679);
    assert_int_equal(m.last_port, 0x80);
    regs.gpr[1] = 3;
    regs.gpr[7] = DATA + PAGE_SIZE - 8;
    m.state[DATA / PAGE_SIZE + 1] = PAGE_READ_ONLY;
    m.port_reads = 0;
    assert_fault(RUN("\xf3\x6d"), VECTOR_PF,
                 PF_P | PF_W); // rep insd: the port is not read for nothing
    assert_int_equal(m.port_reads, 2);
    assert_int_equal(regs.gpr[1], 1);
    assert_int_equal(load(DATA + PAGE_SIZE - 4, 4), 0x567a);
    regs.gpr[1] = 2;
    regs.gpr[6] = DATA + PAGE_SIZE - 8;
    done(RUN("\xf3\x6f"), 2);
    assert_int_equal(m.port_writes, 3);
    assert_int_equal(m.port_value, 0x567a);
}

static void test_port_permission(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    ctx.cpl = 3;
    regs.gpr[2] = 0x3f9;
    store(0x20000 + 102, 0x80, 2); // bitmap at 0x80: ports 0..0xbff are within the limit
    done(RUN("\xec"), 1);
    store(0x20000 + 0x80 + 0x3f9 / 8, 1 << 2, 1); // forbid 0x3fa
    done(RUN("\xec"), 1);
    assert_fault(RUN("\x66\xed"), VECTOR_GP, 0);
    regs.gpr[2] = 0x3ff; // the check looks into the next byte
    store(0x20000 + 0x80 + 0x400 / 8, 1, 1);
    assert_fault(RUN("\x66\xed"), VECTOR_GP, 0);
    regs.gpr[2] = (0x200 - 0x80) * 8; // the last byte must have one behind it
    assert_fault(RUN("\xec"), VECTOR_GP, 0);
    regs.gpr[2] -= 8;
    done(RUN("\xec"), 1);
    m.seg[SEG_TR].access = SEG_P | 3; // 16-bit TSS: no bitmap
    assert_fault(RUN("\xec"), VECTOR_GP, 0);
    regs.rflags |= RFLAGS_IOPL;
    done(RUN("\xec"), 1);
    begin(INSN_MODE_16);
    ctx.cpl = 3;
    regs.rflags |= RFLAGS_IOPL | RFLAGS_VM; // VM86 asks the bitmap whatever the IOPL is
    store(0x20000 + 102, 0x1ff, 2);
    assert_fault(RUN("\xe4\x60"), VECTOR_GP, 0);
    assert_int_equal(m.port_reads, 0);
    begin(INSN_MODE_32); // compatibility mode, with the TSS where only 64-bit code can look
    ctx.cpl = 3;
    ctx.long_mode = true;
    m.seg[SEG_TR].base = KERNEL + 0x20000;
    m.seg[SEG_TR].limit = 0x1fff;
    store(0x20000 + 102, 0xf00, 2);
    store(0x21000, 1, 1); // what lies behind the page of port 0x7f8's byte
    regs.gpr[2] = 0x7ff;
    done(RUN("\xec"), 1);
    assert_fault(RUN("\x66\xed"), VECTOR_GP, 0);
}

// --- privileges and flags ---

static void test_interrupt_flag(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    done(RUN("\xfb"), 1);
    assert_true(ctx.next_rflags & RFLAGS_IF);
    assert_int_equal(ctx.shadow, EMULATE_SHADOW_STI);
    regs.rflags |= RFLAGS_IF;
    done(RUN("\xfb"), 1); // no shadow if IF was set
    assert_int_equal(ctx.shadow, 0);
    done(RUN("\xfa"), 1);
    assert_false(ctx.next_rflags & RFLAGS_IF);
    ctx.cpl = 3;
    assert_fault(RUN("\xfa"), VECTOR_GP, 0);
    assert_fault(RUN("\xfb"), VECTOR_GP, 0);
    ctx.cr4 = CR4_PVI;
    done(RUN("\xfb"), 1);
    assert_true(ctx.next_rflags & RFLAGS_VIF);
    assert_int_equal(ctx.shadow, 0);
    regs.rflags |= RFLAGS_VIP;
    assert_fault(RUN("\xfb"), VECTOR_GP, 0);
    done(RUN("\xfa"), 1);
    regs.rflags |= RFLAGS_IOPL;
    done(RUN("\xfa"), 1);
    assert_false(ctx.next_rflags & RFLAGS_IF);
    assert_fault(RUN("\xf4"), VECTOR_GP, 0);
    ctx.cpl = 0;
    assert_int_equal(RUN("\xf4"), EMULATE_HALT);
    assert_int_equal(ctx.next_rip, CODE + 1);
}

static void test_pushf_popf(void **state)
{
    const u64 all = RFLAGS_IF | RFLAGS_IOPL | RFLAGS_TF | RFLAGS_AC | RFLAGS_ID | RFLAGS_NT;

    (void)state;
    begin(INSN_MODE_64);
    regs.rflags |= RFLAGS_RF | RFLAGS_VIF;
    done(RUN("\x9c"), 1);
    assert_int_equal(load(0x5ff8, 8), RFLAGS_FIXED | RFLAGS_VIF);
    store(0x5ff8, all | RFLAGS_VM | RFLAGS_RF | RFLAGS_VIP, 8);
    done(RUN("\x9d"), 1);
    assert_int_equal(ctx.next_rflags, all | RFLAGS_FIXED | RFLAGS_VIF);
    regs.gpr[4] = 0x5ff8;
    regs.rflags |= RFLAGS_ID;
    done(RUN("\x66\x9d"), 2); // 16 bits only
    assert_int_equal(ctx.next_rflags & BITS(31, 16), RFLAGS_VIF | RFLAGS_ID);
    regs.rflags &= ~RFLAGS_ID;
    regs.gpr[4] = 0x5ff8;
    ctx.cpl = 3;
    done(RUN("\x9d"), 1); // neither IF nor IOPL
    assert_int_equal(ctx.next_rflags & (RFLAGS_IF | RFLAGS_IOPL | RFLAGS_AC), RFLAGS_AC);
    regs.gpr[4] = 0x5ff8;
    regs.rflags |= RFLAGS_IOPL;
    store(0x5ff8, RFLAGS_IF, 8);
    done(RUN("\x9d"), 1);
    assert_int_equal(ctx.next_rflags & (RFLAGS_IF | RFLAGS_IOPL), RFLAGS_IF | RFLAGS_IOPL);
}

static void test_vm86_flags(void **state)
{
    (void)state;
    begin(INSN_MODE_16);
    ctx.cpl = 3;
    regs.rflags |= RFLAGS_VM | RFLAGS_VIF;
    assert_fault(RUN("\x9c"), VECTOR_GP, 0);
    assert_fault(RUN("\x9d"), VECTOR_GP, 0);
    ctx.cr4 = CR4_VME;
    assert_fault(RUN("\x66\x9c"), VECTOR_GP, 0);
    done(RUN("\x9c"), 1); // IF shows VIF, IOPL shows 3
    assert_int_equal(load(0x5ffe, 2), RFLAGS_FIXED | RFLAGS_IF | RFLAGS_IOPL);
    store(0x5ffe, 0, 2);
    done(RUN("\x9d"), 1);
    assert_int_equal(ctx.next_rflags & (RFLAGS_VIF | RFLAGS_IF), 0);
    regs.gpr[4] = 0x5ffe;
    store(0x5ffe, RFLAGS_TF, 2);
    assert_fault(RUN("\x9d"), VECTOR_GP, 0);
    store(0x5ffe, RFLAGS_IF, 2);
    regs.rflags |= RFLAGS_VIP;
    assert_fault(RUN("\x9d"), VECTOR_GP, 0);
    assert_int_equal(regs.gpr[4], 0x5ffe);
}

static void test_segment_moves(void **state)
{
    (void)state;
    begin(INSN_MODE_32);
    regs.gpr[0] = ~0ull;
    regs.gpr[3] = DATA;
    store(DATA, ~0ull, 8);
    done(RUN("\x8c\xd0"), 2); // mov eax, ss
    assert_int_equal(regs.gpr[0], 8 * SEG_SS);
    done(RUN("\x8c\x2b"), 2); // mov [ebx], gs: 16 bits
    assert_int_equal(load(DATA, 4), 0xffff0000 | 8 * SEG_GS);
    done(RUN("\x0f\xa0"), 2); // push fs
    assert_int_equal(load(0x5ffc, 4), 8 * SEG_FS);
    done(RUN("\x17"), 1); // pop ss
    assert_int_equal(m.loaded_seg, SEG_SS);
    assert_int_equal(m.loaded_selector, 8 * SEG_FS);
    assert_int_equal(ctx.shadow, EMULATE_SHADOW_MOV_SS);
    done(RUN("\x8e\xd8"), 2); // mov ds, ax
    assert_int_equal(m.loaded_seg, SEG_DS);
    assert_int_equal(ctx.shadow, 0);
}

// --- stack and branches ---

static void test_pusha(void **state)
{
    (void)state;
    begin(INSN_MODE_32);
    for (unsigned i = 0; i < 8; i++)
        regs.gpr[i] = 0x100 + i;
    regs.gpr[4] = 0x6010;
    m.state[5] = PAGE_READ_ONLY;
    assert_fault(RUN("\x60"), VECTOR_PF, PF_P | PF_W); // the fifth push would fault: none is done
    assert_int_equal(m.writes, 0);
    assert_int_equal(regs.gpr[4], 0x6010);
    m.state[5] = PAGE_RAM;
    done(RUN("\x60"), 1);
    assert_int_equal(regs.gpr[4], 0x5ff0);
    assert_int_equal(load(0x5ff0, 4), 0x107);
    assert_int_equal(load(0x5ffc, 4), 0x6010);
    assert_int_equal(load(0x600c, 4), 0x100);
    for (unsigned i = 0; i < 8; i++)
        regs.gpr[i] = i == 4 ? regs.gpr[4] : 0;
    done(RUN("\x61"), 1);
    assert_int_equal(regs.gpr[4], 0x6010);
    assert_int_equal(regs.gpr[0], 0x100);
    assert_int_equal(regs.gpr[7], 0x107);
    done(RUN("\x40"), 1); // inc eax
    assert_int_equal(regs.gpr[0], 0x101);
}

static void test_stack_forms(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    store(0x6000, 0x1234567890, 8);
    store(0x6008, 0x99, 8);
    done(RUN("\xff\x34\x24"), 3); // push [rsp]: the old RSP
    assert_int_equal(load(0x5ff8, 8), 0x1234567890);
    done(RUN("\x8f\x44\x24\x08"), 4); // pop [rsp + 8]: the new RSP
    assert_int_equal(load(0x6008, 8), 0x1234567890);
    done(RUN("\x54"), 1); // push rsp: the old one
    assert_int_equal(load(0x5ff8, 8), 0x6000);
    store(0x5ff8, 0x7000, 8);
    done(RUN("\x5c"), 1); // pop rsp: the value
    assert_int_equal(regs.gpr[4], 0x7000);
    assert_int_equal(RUN("\xe8\x10\x00\x00\x00"), EMULATE_OK);
    assert_int_equal(ctx.next_rip, CODE + 0x15);
    assert_int_equal(load(0x6ff8, 8), CODE + 5);
    assert_int_equal(RUN("\xc2\x10\x00"), EMULATE_OK);
    assert_int_equal(ctx.next_rip, CODE + 5);
    assert_int_equal(regs.gpr[4], 0x7010);
    done(RUN("\x66\x6a\xff"), 3);
    assert_int_equal(regs.gpr[4], 0x700e);
    assert_int_equal(load(0x700e, 2), 0xffff);
    begin(INSN_MODE_16);
    regs.rip = 0;
    memcpy(m.memory, "\xe9\xfd\xff", 3); // IP wraps at 64 KiB: to itself
    assert_int_equal(emulate_insn(&ctx), EMULATE_OK);
    assert_int_equal(ctx.next_rip, 0);
    begin(INSN_MODE_64_AMD);
    assert_int_equal(RUN("\x66\xe9\x10\x00"), EMULATE_OK);
    regs.rip = 0x11000;
    memcpy(m.memory + 0x11000, "\x66\xeb\x00", 3);
    ctx.bytes_count = 0;
    assert_int_equal(emulate_insn(&ctx), EMULATE_OK);
    assert_int_equal(ctx.next_rip, 0x1003);
}

// --- LOCK ---

static void test_lock(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[3] = DATA;
    regs.gpr[0] = 5;
    store(DATA, 10, 8);
    m.races = 3;
    done(RUN("\xf0\x48\x0f\xc1\x03"), 5); // lock xadd [rbx], rax sees the last value
    assert_int_equal(load(DATA, 8), 18);
    assert_int_equal(regs.gpr[0], 13);
    assert_int_equal(m.writes, 0);
    m.races = 1;
    done(RUN("\x87\x03"), 2); // xchg locks without a prefix
    assert_int_equal(m.races, 0);
    assert_int_equal(load(DATA, 4), 13);
    assert_int_equal(regs.gpr[0], 19);
    m.races = 1000;
    assert_int_equal(RUN("\xf0\xff\x03"), EMULATE_REPEAT); // lost too often: try again later
    assert_int_equal(ctx.next_rip, CODE);
    m.races = 1;
    regs.gpr[0] = (u32)load(DATA, 4);
    regs.gpr[2] = 0;
    regs.gpr[1] = 7;
    assert_int_equal(RUN("\xf0\x0f\xc7\x0b"), EMULATE_REPEAT); // lock cmpxchg8b
    assert_int_equal(RUN("\xf0\x0f\xc7\x0b"), EMULATE_OK);     // now different: loaded
    assert_false(ctx.next_rflags & RFLAGS_ZF);
    assert_int_equal(regs.gpr[0], load(DATA, 4));
    assert_int_equal(RUN("\xf0\x0f\xc7\x0b"), EMULATE_OK);
    assert_true(ctx.next_rflags & RFLAGS_ZF);
    assert_int_equal(load(DATA, 8), 7ull << 32 | DATA);
    m.state[DATA / PAGE_SIZE] = PAGE_READ_ONLY;
    assert_fault(RUN("\xf0\xff\x03"), VECTOR_PF, PF_P | PF_W);
    regs.gpr[1] = ~0ull; // lock btr [rbx], rcx: the bit before the operand's first
    regs.gpr[3] = DATA + PAGE_SIZE;
    m.state[DATA / PAGE_SIZE] = PAGE_RAM;
    store(DATA + PAGE_SIZE - 8, ~0ull, 8);
    done(RUN("\xf0\x48\x0f\xb3\x0b"), 5);
    assert_int_equal(load(DATA + PAGE_SIZE - 8, 8), ~0ull >> 1);
    assert_true(ctx.next_rflags & RFLAGS_CF);
}

// --- the front end's points, and what is refused ---

static void test_intercept_points(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    done(RUN("\xec"), 1);
    assert_int_equal(m.point_count, 3);
    assert_memory_equal(m.points, "\0\1\2", 3);
    ctx.cpl = 3; // no permission: asked before the check only
    store(0x20000 + 102, 0x200, 2);
    m.point_count = 0;
    assert_fault(RUN("\xec"), VECTOR_GP, 0);
    assert_int_equal(m.point_count, 1);
    ctx.cpl = 0;
    for (int point = EMULATE_DECODED; point <= EMULATE_ACCESSED; point++) {
        m.port_reads = 0;
        m.point_count = 0;
        m.intercept_at = point;
        regs.gpr[7] = DATA;
        assert_int_equal(RUN("\x6d"), EMULATE_INTERCEPTED);
        assert_int_equal(m.point_count, point + 1);
        assert_int_equal(m.port_reads, 0);
        assert_int_equal(regs.gpr[7], DATA);
    }
    assert_int_equal(ctx.linear, DATA);
    m.state[DATA / PAGE_SIZE] = PAGE_READ_ONLY; // the store's fault comes before the last point
    assert_fault(RUN("\x6d"), VECTOR_PF, PF_P | PF_W);
}

static void test_unhandled(void **state)
{
    static const char cases[][5] = {
        "\x0f\xa2\x90\x90", "\x0f\x10\x03\x90", "\xd9\x03\x90\x90", "\x0f\x22\xc0\x90",
        "\x0f\x20\xc0\x90", "\xc5\xf8\x77\x90", "\x0f\x32\x90\x90", "\x0f\x01\xc1\x90",
        "\x0f\x05\x90\x90", "\x66\x0f\xc8\x90",
    };
    struct emulate_regs before;

    (void)state;
    begin(INSN_MODE_64);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        before = regs;
        assert_int_equal(run_bytes(cases[i], 4), EMULATE_UNHANDLED);
        assert_memory_equal(&before, &regs, sizeof(regs));
    }
    ctx.cr4 = CR4_CET; // a shadow stack may be there
    assert_int_equal(RUN("\xe8\x00\x00\x00\x00"), EMULATE_UNHANDLED);
    assert_int_equal(RUN("\xc3"), EMULATE_UNHANDLED);
    assert_int_equal(m.writes, 0);
}

static void test_divide(void **state)
{
    (void)state;
    begin(INSN_MODE_64);
    regs.gpr[1] = 0;
    assert_fault(RUN("\x48\xf7\xf1"), VECTOR_DE, -1);
    regs.gpr[1] = regs.gpr[2] = 5;
    assert_fault(RUN("\x48\xf7\xf1"), VECTOR_DE, -1); // the quotient does not fit
    regs.gpr[2] = 4;
    regs.gpr[0] = 7;
    done(RUN("\x48\xf7\xf1"), 3);
    assert_int_equal(regs.gpr[0], 0xccccccccccccccce);
    assert_int_equal(regs.gpr[2], 1);
    regs.gpr[0] = 0x8000000000000000;
    regs.gpr[2] = ~0ull;
    regs.gpr[1] = ~0ull;
    assert_fault(RUN("\x48\xf7\xf9"), VECTOR_DE, -1); // idiv: -2^63 / -1
    regs.gpr[0] = (u64)-7;
    regs.gpr[1] = 2;
    done(RUN("\x48\xf7\xf9"), 3);
    assert_int_equal(regs.gpr[0], (u64)-3);
    assert_int_equal(regs.gpr[2], (u64)-1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page_crossing),
        cmocka_unit_test(test_fault_commits_nothing),
        cmocka_unit_test(test_enter_fault),
        cmocka_unit_test(test_real_mode),
        cmocka_unit_test(test_protected_segments),
        cmocka_unit_test(test_canonical),
        cmocka_unit_test(test_alignment_check),
        cmocka_unit_test(test_fetch),
        cmocka_unit_test(test_repeat),
        cmocka_unit_test(test_repeat_interrupted),
        cmocka_unit_test(test_repeat_fault),
        cmocka_unit_test(test_compare_strings),
        cmocka_unit_test(test_ports),
        cmocka_unit_test(test_port_permission),
        cmocka_unit_test(test_interrupt_flag),
        cmocka_unit_test(test_pushf_popf),
        cmocka_unit_test(test_vm86_flags),
        cmocka_unit_test(test_segment_moves),
        cmocka_unit_test(test_pusha),
        cmocka_unit_test(test_stack_forms),
        cmocka_unit_test(test_lock),
        cmocka_unit_test(test_intercept_points),
        cmocka_unit_test(test_unhandled),
        cmocka_unit_test(test_divide),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
