// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/decode.c core/decode_table.c core/emulate.c
// unit-sources: core/emulate_stack.c core/emulate_string.c
// unit-sources: core/emulate_alu.c core/emulate_ops.c core/emulate_rare.c core/emulate_vector.c
// unit-sources: core/emulate_system.c core/emulate_selector.c core/emulate_syscall.c
// unit-sources: core/task.c core/emulate_far.c core/emulate_segment.c core/descriptor.c
//
// The emulator's system instructions, vector moves, x87 operands, selectors and decimal arithmetic
// by hand cases from the manuals.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/emulate.h>

#define DATA 0x2000
#define GDT  0x3000
#define CODE 0x1000

static struct machine {
    u8 memory[0x8000];
    struct segment seg[SEG_COUNT];
    u8 reg[64]; // what a vector register has, and what was written
    enum emulate_bank bank;
    unsigned number, writes, systems;
    u64 xcr0, dst, src, u_cet, s_cet;
    u16 status, raises; // FSW, and what an x87 instruction adds to it
    bool offered;
} m;
static struct emulate_regs regs;
static struct emulate_ctx ctx;

static enum emulate_result check(struct emulate_ctx *c, gva_t la, unsigned size, unsigned access)
{
    if (la <= sizeof(m.memory) - size)
        return EMULATE_OK;
    return emulate_raise(c, VECTOR_PF, true, access == EMULATE_READ ? 0 : PF_W);
}

static enum emulate_result read_mem(struct emulate_ctx *c, gva_t la, void *buf, unsigned size,
                                    unsigned access)
{
    enum emulate_result r = check(c, la, size, access);

    if (r == EMULATE_OK)
        memcpy(buf, m.memory + la, size);
    return r;
}

static enum emulate_result write_mem(struct emulate_ctx *c, gva_t la, const void *buf,
                                     unsigned size, unsigned access)
{
    enum emulate_result r = check(c, la, size, access);

    if (r == EMULATE_OK)
        memcpy(m.memory + la, buf, size);
    return r;
}

static void get_seg(struct emulate_ctx *c, enum segment_index seg, struct segment *out)
{
    (void)c;
    *out = m.seg[seg];
}

static void get_gdt(struct emulate_ctx *c, u64 *base, u32 *limit)
{
    (void)c;
    *base = GDT;
    *limit = 0x4f;
}

static enum emulate_result system_insn(struct emulate_ctx *c)
{
    m.systems++;
    m.dst = c->dst;
    m.src = c->src;
    c->dst = 0x1122334455667788;
    c->src = 0xffff800012345678;
    return EMULATE_OK;
}

static bool offers(struct emulate_ctx *c, u8 op)
{
    (void)c;
    (void)op;
    return m.offered;
}

static void vector(struct emulate_ctx *c, enum emulate_bank bank, unsigned n, bool write, void *buf)
{
    static const u8 sizes[] = {8, 16, 32, 64};

    (void)c;
    if (write) {
        m.bank = bank;
        m.number = n;
        m.writes++;
    }
    memcpy(write ? m.reg : buf, write ? buf : m.reg, sizes[bank]);
}

static void x87(struct emulate_ctx *c, unsigned opcode, unsigned reg, void *buf)
{
    (void)c;
    m.number = opcode * 8 + reg;
    memset(buf, 0x5a, 2);
    m.status |= m.raises;
}

static u16 x87_status(struct emulate_ctx *c)
{
    (void)c;
    return m.status;
}

static u64 xcr0(struct emulate_ctx *c)
{
    (void)c;
    return m.xcr0;
}

static u64 msr(struct emulate_ctx *c, u32 number)
{
    (void)c;
    // clang-format off
    switch (number) {
    case MSR_U_CET: return m.u_cet;
    case MSR_S_CET: return m.s_cet;
    case MSR_EFER: return EFER_SCE;
    case MSR_STAR: return 0x0023001000401234;
    case MSR_LSTAR: return 0xffff800000001000;
    case MSR_SFMASK: return RFLAGS_IF | RFLAGS_DF;
    case MSR_SYSENTER_CS: return 0x10;
    case MSR_SYSENTER_ESP: return 0x7000;
    default: return 0x4000;
    }
    // clang-format on
}

static const struct emulate_ops ops = {
    .read_mem = read_mem,
    .write_mem = write_mem,
    .check_mem = check,
    .get_seg = get_seg,
    .get_gdt = get_gdt,
    .system = system_insn,
    .offers = offers,
    .vector = vector,
    .x87 = x87,
    .x87_status = x87_status,
    .xcr0 = xcr0,
    .msr = msr,
};

static void begin(enum insn_mode mode, unsigned cpl)
{
    memset(&m, 0, sizeof(m));
    memset(&regs, 0, sizeof(regs));
    memset(&ctx, 0, sizeof(ctx));
    for (unsigned i = 0; i < SEG_COUNT; i++)
        m.seg[i] = (struct segment){.limit = ~0u, .access = 0xc093, .selector = 0x10};
    m.seg[SEG_CS].access = mode == INSN_MODE_64 ? 0xa09b : 0xc09b;
    m.offered = true;
    m.xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX | BITS(7, 5);
    regs.rip = CODE;
    regs.rflags = RFLAGS_FIXED;
    regs.gpr[3] = DATA;
    regs.gpr[4] = 0x5000;
    ctx.ops = &ops;
    ctx.regs = &regs;
    ctx.mode = mode;
    ctx.cpl = (u8)cpl;
    ctx.cr0 = CR0_PE;
    ctx.cr4 = CR4_OSFXSR | CR4_OSXSAVE;
    ctx.long_mode = mode == INSN_MODE_64;
}

static enum emulate_result run(const char *bytes, unsigned size)
{
    memcpy(m.memory + CODE, bytes, size);
    ctx.bytes_count = 0;
    return emulate_insn(&ctx);
}
#define RUN(text) run(text, sizeof(text) - 1)

// The vector of the fault that the instruction makes, -1: none.
#define FAULT(text) (RUN(text) == EMULATE_FAULT ? ctx.fault.vector : -1)

static void test_tables(void **state)
{
    (void)state;
    begin(INSN_MODE_64, 0);
    assert_int_equal(RUN("\x0f\x01\x03"), EMULATE_OK); // sgdt (%rbx)
    assert_memory_equal(m.memory + DATA, "\x88\x77\x78\x56\x34\x12\x00\x80\xff\xff\0", 11);
    assert_int_equal(RUN("\x0f\x01\x13"), EMULATE_OK); // lgdt
    assert_int_equal(m.dst, 0x7788);
    assert_true(m.src == 0xffff800012345678);
    m.memory[DATA + 8] = 1;
    assert_int_equal(FAULT("\x0f\x01\x1b"), VECTOR_GP); // lidt, not canonical
    assert_int_equal(RUN("\x0f\x01\x23"), EMULATE_OK);  // smsw: two bytes
    assert_memory_equal(m.memory + DATA, "\x88\x77\x78\x56", 4);
    assert_int_equal(RUN("\x0f\x01\xe0"), EMULATE_OK); // smsw %eax
    assert_int_equal(regs.gpr[0], 0x55667788);
    begin(INSN_MODE_32, 0);
    memset(m.memory + DATA, 0xee, 6);
    assert_int_equal(RUN("\x66\x0f\x01\x13"), EMULATE_OK); // 24 bits of base
    assert_int_equal(m.src, 0xeeeeee);
}

static void test_privileges(void **state)
{
    static const char *const umip[] = {"\x0f\x01\x03", "\x0f\x01\x0b", "\x0f\x01\x23",
                                       "\x0f\x00\x03", "\x0f\x00\x0b"};
    static const char *const cpl0[] = {
        "\x0f\x01\x13", "\x0f\x01\x1b", "\x0f\x01\x33", "\x0f\x20\xc0", "\x0f\x22\xc0",
        "\x0f\x23\xc0", "\x0f\x06\x90", "\x0f\x30\x90", "\x0f\x32\x90", "\x0f\x01\x3b",
        "\x0f\x09\x90", "\x0f\x00\x13", "\x0f\x00\x1b"};

    (void)state;
    begin(INSN_MODE_64, 3);
    for (unsigned i = 0; i < ARRAY_SIZE(cpl0); i++) {
        assert_int_equal(run(cpl0[i], 3), EMULATE_FAULT);
        assert_int_equal(ctx.fault.vector, VECTOR_GP);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(umip); i++) {
        ctx.cr4 = 0;
        assert_int_equal(run(umip[i], 3), EMULATE_OK);
        ctx.cr4 = CR4_UMIP;
        assert_int_equal(run(umip[i], 3), EMULATE_FAULT);
        assert_int_equal(ctx.fault.vector, VECTOR_GP);
        ctx.cpl = 0;
        assert_int_equal(run(umip[i], 3), EMULATE_OK);
        ctx.cpl = 3;
    }
    assert_int_equal(RUN("\x0f\x31"), EMULATE_OK);
    ctx.cr4 = CR4_TSD;
    assert_int_equal(FAULT("\x0f\x31"), VECTOR_GP);
    assert_int_equal(FAULT("\x0f\x01\xd0"), VECTOR_UD); // xgetbv without OSXSAVE
    begin(INSN_MODE_16, 0);
    ctx.cr0 = 0;
    assert_int_equal(FAULT("\x0f\x00\x07"), VECTOR_UD); // sldt in real mode
    begin(INSN_MODE_64, 0);
    regs.gpr[0] = BIT(32);
    assert_int_equal(FAULT("\x0f\x23\xf8"), VECTOR_GP); // DR7's upper half
    ctx.cr4 = CR4_DE;
    assert_int_equal(FAULT("\x0f\x21\xe0"), VECTOR_UD); // DR4
    ctx.cr4 = 0;
    assert_int_equal(RUN("\x0f\x21\xe0"), EMULATE_OK);
    assert_int_equal(ctx.insn.reg, 6);
}

// What must be aligned is #GP also with alignment checks; of what may lie anywhere the vendors
// check 8 or 16 bytes.
static void test_vector_alignment(void **state)
{
    (void)state;
    begin(INSN_MODE_64, 3);
    ctx.cr0 |= CR0_AM;
    regs.rflags |= RFLAGS_AC;
    for (unsigned amd = 0; amd < 2; amd++) {
        ctx.amd = amd;
        assert_int_equal(FAULT("\x0f\x28\x43\x08"), VECTOR_GP);     // movaps 8(%rbx), %xmm0
        assert_int_equal(FAULT("\x0f\x28\x43\x04"), VECTOR_GP);     // 4
        assert_int_equal(FAULT("\xc5\xfd\x6f\x43\x14"), VECTOR_GP); // vmovdqa of 32 bytes
        assert_int_equal(FAULT("\x48\x0f\xc7\x4b\x08"), VECTOR_GP); // cmpxchg16b
        assert_int_equal(FAULT("\x0f\x10\x43\x04"), VECTOR_AC);     // movups
        assert_int_equal(FAULT("\x0f\x6f\x43\x04"), VECTOR_AC);     // movq to %mm0
        assert_int_equal(RUN("\x0f\x6f\x43\x08"), EMULATE_OK);
        assert_int_equal(RUN("\x0f\x10\x43\x10"), EMULATE_OK);
        assert_int_equal(RUN("\xc5\xfe\x6f\x43\x10"), EMULATE_OK); // vmovdqu of 32 bytes
        if (amd)
            assert_int_equal(FAULT("\x0f\x10\x43\x08"), VECTOR_AC);
        else
            assert_int_equal(RUN("\x0f\x10\x43\x08"), EMULATE_OK);
        // far pointers of 32 and 48 bits: 2 and 4
        assert_int_not_equal(FAULT("\x66\xff\x6b\x02"), VECTOR_AC); // ljmpw *2(%rbx)
        assert_int_equal(FAULT("\x66\xff\x6b\x01"), VECTOR_AC);
        assert_int_not_equal(FAULT("\xff\x6b\x04"), VECTOR_AC); // ljmp *4(%rbx)
        assert_int_equal(FAULT("\xff\x6b\x02"), VECTOR_AC);
    }
}

static void test_vector(void **state)
{
    static const u8 zero[64];

    (void)state;
    begin(INSN_MODE_64, 0);
    memset(m.memory + DATA, 0xab, 0x100);
    memset(m.reg, 0xcd, sizeof(m.reg));
    assert_int_equal(RUN("\xc5\xf8\x10\x03"), EMULATE_OK); // vmovups (%rbx), %xmm0
    assert_int_equal(m.bank, EMULATE_YMM);
    assert_memory_equal(m.reg, m.memory + DATA, 16);
    assert_memory_equal(m.reg + 16, zero, 16);
    assert_int_equal(RUN("\x62\xe1\x7e\x48\x6f\x4b\x02"), EMULATE_OK); // 128(%rbx), %zmm17
    assert_int_equal(m.number, 17);
    assert_int_equal(m.bank, EMULATE_ZMM);
    assert_int_equal(ctx.linear, DATA + 128);
    assert_int_equal(RUN("\x62\xe1\x7e\x49\x6f\x4b\x02"), EMULATE_UNHANDLED); // masked
    assert_int_equal(RUN("\xc5\xfe\x6f\x43\x01"), EMULATE_OK);                // not aligned
    assert_int_equal(FAULT("\xc5\xfd\x6f\x43\x10"), VECTOR_GP);               // 32 bytes are to be
    assert_int_equal(RUN("\xc5\xf9\x6f\x43\x10"), EMULATE_OK);
    assert_int_equal(FAULT("\x0f\x28\x43\x08"), VECTOR_GP);
    m.xcr0 &= ~BITS(7, 5);
    assert_int_equal(FAULT("\x62\xe1\x7e\x48\x6f\x4b\x02"), VECTOR_UD);
    ctx.cr0 |= CR0_EM; // not looked at by VEX forms
    assert_int_equal(RUN("\xc5\xf8\x10\x03"), EMULATE_OK);
    assert_int_equal(FAULT("\x0f\x10\x03"), VECTOR_UD);
    ctx.cr0 = CR0_PE | CR0_TS;
    assert_int_equal(FAULT("\xc5\xf8\x10\x03"), VECTOR_NM);
    assert_int_equal(FAULT("\x0f\x6f\x03"), VECTOR_NM);
    ctx.cr0 = CR0_PE;
    m.status = 0x80;
    assert_int_equal(FAULT("\x0f\x6f\x03"), VECTOR_MF);
    assert_int_equal(FAULT("\xd9\x2b"), VECTOR_MF); // fldcw
    assert_int_equal(RUN("\xd9\x3b"), EMULATE_OK);  // fnstcw waits for nothing
    assert_int_equal(m.number, 15);
    assert_memory_equal(m.memory + DATA, "\x5a\x5a\xab", 3);
    m.status = 1;    // an invalid operation that was masked, and so
    m.raises = 0xa0; // it is precision that is reported: the result is there
    memset(m.memory + DATA, 0xab, 4);
    assert_int_equal(RUN("\xd9\x13"), EMULATE_OK); // fst
    assert_memory_equal(m.memory + DATA, "\x5a\x5a\x00\x00", 4);
    m.status = 0;
    m.raises = 0x81;
    memset(m.memory + DATA, 0xab, 4);
    assert_int_equal(RUN("\xd9\x13"), EMULATE_OK);
    assert_memory_equal(m.memory + DATA, "\xab\xab\xab\xab", 4);
    m.raises = 0;
    m.xcr0 = XCR0_X87;
    assert_int_equal(FAULT("\xc5\xf8\x10\x03"), VECTOR_UD);
    ctx.cr4 = 0;
    assert_int_equal(FAULT("\x0f\x10\x03"), VECTOR_UD);
}

static void test_failure_leaves_nothing(void **state)
{
    struct emulate_regs before;
    struct machine machine;

    (void)state;
    begin(INSN_MODE_32, 0);
    regs.gpr[4] = 0x8010; // the stack's upper end is not there
    regs.gpr[3] = 0x7ffd;
    before = regs;
    memcpy(m.memory + CODE, "\xc8\x10\x00\x04", 4);
    machine = m;
    assert_int_equal(FAULT("\xc8\x10\x00\x04"), VECTOR_PF); // enter
    assert_int_equal(FAULT("\x60"), VECTOR_PF);             // pusha
    m.memory[CODE] = machine.memory[CODE];
    assert_memory_equal(&regs, &before, sizeof(regs));
    assert_memory_equal(&m, &machine, sizeof(m));
    regs.gpr[4] = 0x5000;
    assert_int_equal(FAULT("\x0f\x11\x03"), VECTOR_PF); // movups over the end
    assert_int_equal(FAULT("\xdb\x3b"), VECTOR_PF);     // fstp, 10 bytes: nothing is popped
    assert_int_equal(m.number, 0);
}

static void test_decimal(void **state)
{
    // The op, AX and flags before; AX and CF, AF after (SDM volume 2, the pages' examples among
    // them).
    static const struct {
        const char *bytes;
        u16 ax, flags, result, after;
    } cases[] = {
        {"\x27\x90", 0x00ae, 0, 0x0014, RFLAGS_CF | RFLAGS_AF}, // daa: 79h + 35h
        {"\x27\x90", 0x002e, 0, 0x0034, RFLAGS_AF},
        {"\x2f\x90", 0x00ee, RFLAGS_CF | RFLAGS_AF, 0x0088, RFLAGS_CF | RFLAGS_AF},
        {"\x2f\x90", 0x0003, RFLAGS_AF, 0x00fd, RFLAGS_CF | RFLAGS_AF},
        {"\x37\x90", 0x000a, 0, 0x0100, RFLAGS_CF | RFLAGS_AF}, // aaa
        {"\x37\x90", 0x0115, 0, 0x0105, 0},
        {"\x3f\x90", 0x020b, 0, 0x0105, RFLAGS_CF | RFLAGS_AF}, // aas
        {"\xd4\x0a", 0x002a, 0, 0x0402, 0},                     // aam
        {"\xd5\x0a", 0x0402, 0, 0x002a, 0},                     // aad
    };

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        begin(INSN_MODE_32, 0);
        regs.gpr[0] = cases[i].ax;
        regs.rflags |= cases[i].flags;
        assert_int_equal(run(cases[i].bytes, 2), EMULATE_OK);
        assert_int_equal(regs.gpr[0], cases[i].result);
        assert_int_equal(ctx.next_rflags & (RFLAGS_CF | RFLAGS_AF), cases[i].after);
    }
    assert_int_equal(FAULT("\xd4\x00"), VECTOR_DE);
}

static void test_rare(void **state)
{
    (void)state;
    begin(INSN_MODE_32, 3);
    memcpy(m.memory + DATA, "\xfe\xff\xff\xff\x05\0\0\0", 8);
    regs.gpr[0] = (u32)-2;
    assert_int_equal(RUN("\x62\x03"), EMULATE_OK); // bound
    regs.gpr[0] = 6;
    assert_int_equal(FAULT("\x62\x03"), VECTOR_BR);
    regs.gpr[0] = 0x13;
    m.memory[DATA] = 0x10;
    assert_int_equal(RUN("\x63\x03"), EMULATE_OK); // arpl %ax, (%ebx)
    assert_int_equal(m.memory[DATA], 0x13);
    assert_true(ctx.next_rflags & RFLAGS_ZF);
    begin(INSN_MODE_64, 3);
    m.offered = false;
    assert_int_equal(FAULT("\xf3\x0f\xb8\xc3"), VECTOR_UD); // popcnt
    assert_int_equal(RUN("\xf3\x0f\xbd\xc3"), EMULATE_OK);  // without LZCNT it is BSR
    assert_int_equal(regs.gpr[0], 13);
}

static void put_descriptor(unsigned selector, u64 value)
{
    memcpy(m.memory + GDT + selector, &value, 8);
}

static void test_selectors(void **state)
{
    (void)state;
    begin(INSN_MODE_64, 3);
    put_descriptor(0x10, 0x00cf93000000ffff); // data, DPL 0
    put_descriptor(0x18, 0x00cff3000000ffff); // data, DPL 3
    put_descriptor(0x20, 0x00af9a000000ffff); // code, DPL 0
    put_descriptor(0x28, 0x00af9e000000ffff); // conforming code
    put_descriptor(0x30, 0x0000e90000000067); // TSS, DPL 3
    regs.gpr[3] = 0x18;
    assert_int_equal(RUN("\x0f\x02\xc3"), EMULATE_OK); // lar %bx, %eax
    assert_int_equal(regs.gpr[0], 0xc0f300);
    assert_true(ctx.next_rflags & RFLAGS_ZF);
    assert_int_equal(RUN("\x0f\x03\xc3"), EMULATE_OK); // lsl
    assert_int_equal(regs.gpr[0], 0xffffffff);
    assert_int_equal(RUN("\x0f\x00\xeb"), EMULATE_OK); // verw
    assert_true(ctx.next_rflags & RFLAGS_ZF);
    static const u16 unseen[] = {0, 3, 0x10, 0x20, 0x50, 0x1c};
    for (unsigned i = 0; i < ARRAY_SIZE(unseen); i++) {
        regs.gpr[3] = unseen[i];
        m.seg[SEG_LDTR].access = SEG_UNUSABLE;
        assert_int_equal(RUN("\x0f\x02\xc3"), EMULATE_OK);
        assert_false(ctx.next_rflags & RFLAGS_ZF);
        assert_int_equal(regs.gpr[0], 0xffffffff);
    }
    regs.gpr[3] = 0x28;
    assert_int_equal(RUN("\x0f\x00\xe3"), EMULATE_OK); // verr: execute-only
    assert_true(ctx.next_rflags & RFLAGS_ZF);
    begin(INSN_MODE_64, 0);
    put_descriptor(0x30, 0x0000890000000067);
    put_descriptor(0x40, 0x0000820000000067);
    regs.gpr[3] = 0x30;
    assert_int_equal(RUN("\x0f\x00\xdb"), EMULATE_OK); // ltr
    assert_int_equal(m.memory[GDT + 0x35], 0x8b);
    assert_int_equal(ctx.seg[SEG_TR].selector, 0x30);
    assert_int_equal(FAULT("\x0f\x00\xdb"), VECTOR_GP); // busy
    assert_int_equal(ctx.fault.error, 0x30);
    regs.gpr[3] = 0x40;
    assert_int_equal(RUN("\x0f\x00\xd3"), EMULATE_OK); // lldt
    regs.gpr[3] = 0;
    assert_int_equal(RUN("\x0f\x00\xd3"), EMULATE_OK);
    assert_true(ctx.seg[SEG_LDTR].access & SEG_UNUSABLE);
    assert_int_equal(FAULT("\x0f\x00\xdb"), VECTOR_GP);
}

static void test_syscall(void **state)
{
    (void)state;
    begin(INSN_MODE_64, 3);
    regs.rflags |= RFLAGS_IF | RFLAGS_CF | RFLAGS_RF;
    assert_int_equal(RUN("\x0f\x05"), EMULATE_OK);
    assert_true(ctx.next_rip == 0xffff800000001000 && regs.gpr[1] == CODE + 2);
    assert_int_equal(regs.gpr[11], RFLAGS_FIXED | RFLAGS_IF | RFLAGS_CF);
    assert_int_equal(ctx.next_rflags, RFLAGS_FIXED | RFLAGS_CF);
    assert_int_equal(ctx.seg[SEG_CS].selector, 0x10);
    assert_int_equal(ctx.seg[SEG_SS].selector, 0x18);
    assert_int_equal(FAULT("\x48\x0f\x07"), VECTOR_GP); // sysret at CPL 3
    ctx.cpl = 0;
    regs.gpr[1] = 0x7000;
    assert_int_equal(RUN("\x48\x0f\x07"), EMULATE_OK);
    assert_int_equal(ctx.next_rip, 0x7000);
    assert_int_equal(ctx.seg[SEG_CS].selector, 0x33);
    assert_int_equal(ctx.seg[SEG_SS].selector, 0x2b);
    regs.gpr[1] = BIT(63);
    assert_int_equal(FAULT("\x48\x0f\x07"), VECTOR_GP);
    assert_int_equal(RUN("\x0f\x34"), EMULATE_OK); // sysenter
    assert_true(ctx.next_rip == 0x4000 && regs.gpr[4] == 0x7000);
    ctx.amd = true;
    assert_int_equal(FAULT("\x0f\x34"), VECTOR_UD);
    begin(INSN_MODE_32, 3);
    assert_int_equal(FAULT("\x0f\x05"), VECTOR_UD);
    assert_int_equal(FAULT("\x0f\x35"), VECTOR_GP); // sysexit at CPL 3
}

// SDM volume 1, "Control-flow Enforcement Technology": what each level's shadow stack (S) and
// branch tracking (B) see; volume 2 has them in the operation of each instruction.
static void test_cet(void **state)
{
    enum { S = CET_SH_STK_EN, B = CET_ENDBR_EN };
    static const struct {
        const char *bytes;
        unsigned size, user, outer, supervisor; // at CPL 3: U_CET's bits, S_CET's; at 0: S_CET's
        unsigned supervisor_outer;              // at 0: U_CET's
    } cases[] = {
        {"\xe8\x00\x00\x00\x00", 5, S, 0, S, 0},     // call
        {"\xff\xd3", 2, S | B, 0, S | B, 0},         // call *%rbx
        {"\xff\xe3", 2, B, 0, B, 0},                 // jmp *%rbx
        {"\xeb\x00", 2, 0, 0, 0, 0},                 // jmp
        {"\x74\x00", 2, 0, 0, 0, 0},                 // jz
        {"\xc3", 1, S, 0, S, 0},                     // ret
        {"\xff\x1b", 2, S | B, S | B, S | B, 0},     // lcall *(%rbx)
        {"\xff\x2b", 2, B, 0, B, 0},                 // ljmp *(%rbx)
        {"\xcb", 1, S, 0, S, S},                     // lret
        {"\x48\xcf", 2, S | B, 0, S | B, S | B},     // iretq
        {"\x0f\x05", 2, S | B, S | B, S | B, 0},     // syscall
        {"\x0f\x34", 2, S | B, S | B, S | B, 0},     // sysenter
        {"\x48\x0f\x07", 3, S | B, 0, S | B, S | B}, // sysret: before the #GP at CPL 3
        {"\x50", 1, 0, 0, 0, 0},                     // push
    };

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        for (unsigned n = 0; n < 32; n++) {
            unsigned cpl = n & 16 ? 3 : 0, own = (n & 1 ? S : 0) | (n & 2 ? B : 0);
            unsigned other = (n & 4 ? S : 0) | (n & 8 ? B : 0);
            bool sees = cpl ? (own & cases[i].user) | (other & cases[i].outer)
                            : (own & cases[i].supervisor) | (other & cases[i].supervisor_outer);

            begin(INSN_MODE_64, cpl);
            ctx.cr4 |= CR4_CET;
            m.u_cet = cpl ? own : other;
            m.s_cet = cpl ? other : own;
            if ((run(cases[i].bytes, cases[i].size) == EMULATE_UNHANDLED) != sees)
                fail_msg("case %u: CPL %u, U_CET %#x, S_CET %#x", i, cpl, (unsigned)m.u_cet,
                         (unsigned)m.s_cet);
            ctx.cr4 &= ~(u64)CR4_CET;
            assert_int_not_equal(run(cases[i].bytes, cases[i].size), EMULATE_UNHANDLED);
        }
    }
    begin(INSN_MODE_16, 0);
    ctx.cr0 = 0; // CR4.CET may be set in real mode, and does nothing there
    ctx.cr4 |= CR4_CET;
    m.s_cet = S | B;
    assert_int_equal(RUN("\xc3"), EMULATE_OK);
    ctx.cr0 = CR0_PE;
    assert_int_equal(RUN("\xc3"), EMULATE_UNHANDLED);
    ctx.cpl = 3;
    m.u_cet = S | B;
    regs.rflags |= RFLAGS_VM;
    assert_int_equal(RUN("\xc3"), EMULATE_OK);
    assert_int_equal(RUN("\xff\xe3"), EMULATE_OK);
}

// With a shadow stack, a far JMP from 64-bit to 32-bit code needs SSP below 4 GiB.
static void test_cet_far_jump(void **state)
{
    (void)state;
    for (unsigned wide = 0; wide < 2; wide++) {
        begin(INSN_MODE_64, 0);
        ctx.cr4 |= CR4_CET;
        memcpy(m.memory + DATA, "\x00\x40\x00\x00\x08\x00", 6);
        memcpy(m.memory + GDT + 8, wide ? "\xff\xff\0\0\0\x9b\xaf\0" : "\xff\xff\0\0\0\x9b\xcf\0",
               8);
        assert_int_equal(RUN("\xff\x2b"), EMULATE_OK);
        assert_int_equal(ctx.next_rip, 0x4000);
        m.s_cet = CET_SH_STK_EN;
        assert_int_equal(RUN("\xff\x2b"), wide ? EMULATE_OK : EMULATE_UNHANDLED);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_privileges),
        cmocka_unit_test(test_vector),
        cmocka_unit_test(test_vector_alignment),
        cmocka_unit_test(test_failure_leaves_nothing),
        cmocka_unit_test(test_decimal),
        cmocka_unit_test(test_rare),
        cmocka_unit_test(test_selectors),
        cmocka_unit_test(test_syscall),
        cmocka_unit_test(test_cet),
        cmocka_unit_test(test_cet_far_jump),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
