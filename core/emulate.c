// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulator's frame: fetch and decode, privilege checks, segmentation, memory and register
// operands, LOCK, and the commit. Intel SDM volume 3 chapters 3, 5 and 6, volume 1 section 19.5
// (I/O permission).

#include "emulate_internal.h"
#include <arch/x86/msr.h>
#include <nestor/string.h>

#define LOCK_TRIES 16
#define TSS_IO_MAP 102 // offset of the I/O map base in a 32- or 64-bit TSS

enum emulate_result emulate_raise(struct emulate_ctx *c, u8 vector, bool has_error, u32 error)
{
    c->fault = (struct event){
        .valid = true,
        .vector = vector,
        .type = EVENT_EXCEPTION,
        .has_error = has_error && c->cr0 & CR0_PE,
        .error = error,
    };
    return EMULATE_FAULT;
}

enum emulate_result emu_intercept(struct emulate_ctx *c, enum emulate_point point)
{
    return c->ops->intercept ? c->ops->intercept(c, point) : EMULATE_OK;
}

// --- segmentation ---

static bool canonical(u64 address, bool wide)
{
    unsigned unused = wide ? 64 - 57 : 64 - 48;

    return (u64)((s64)(address << unused) >> unused) == address;
}

bool emu_canonical(const struct emulate_ctx *c, u64 address)
{
    return canonical(address, c->cr4 & CR4_LA57);
}

bool emu_canonical_base(const struct emulate_ctx *c, u64 address)
{
    return canonical(address, c->la57);
}

static u64 linear_wrap(const struct emulate_ctx *c, u64 address)
{
    return insn_mode_is_64(c->mode) ? address : (u32)address;
}

static bool segment_type_allows(const struct segment *s, unsigned access)
{
    bool code = s->access & BIT(3), read_write = s->access & BIT(1);

    if (access == EMULATE_FETCH)
        return true;
    if (access == EMULATE_READ)
        return !code || read_write;
    return !code && read_write;
}

bool emu_limit_allows(const struct segment *s, u64 offset, unsigned size)
{
    u64 last = offset + size - 1;
    bool expand_down = (s->access & (BIT(3) | BIT(2))) == BIT(2);

    if (!expand_down)
        return last <= s->limit;
    return offset > s->limit && last <= (s->access & SEG_DB ? 0xffffffffull : 0xffff);
}

static bool segment_allows(struct emulate_ctx *c, const struct segment *s, u64 offset,
                           unsigned size, unsigned access)
{
    bool protected_mode = c->cr0 & CR0_PE && !in_vm86(c);

    if (protected_mode && (s->access & SEG_UNUSABLE || !segment_type_allows(s, access)))
        return false;
    return emu_limit_allows(s, offset, size);
}

// Intel SDM volume 3, table "Alignment Requirements by Data Type": 8 for 10 bytes, 4 for 6, a far
// pointer's like its offset's. Wide vectors that may lie anywhere: Intel leaves it open and names 8
// ("Alignment Check Exception (#AC)"); 16 on AMD (APM volume 2, table "Data-Type Alignment").
static unsigned alignment(const struct emulate_ctx *c, unsigned size)
{
    u8 op = c->insn.op;

    if (size == c->insn.opsize + 2u &&
        (op == INSN_CALL_FAR || op == INSN_JMP_FAR || op == INSN_LSS || op == INSN_LFAR))
        return c->insn.opsize;
    return MIN(1u << (31 - __builtin_clz(size)), c->amd ? 16u : 8u);
}

// What must be aligned whatever CR0.AM says is #GP instead.
static bool must_be_aligned(const struct emulate_ctx *c, unsigned size)
{
    return size > 8 && (c->insn.move & MOVE_ALIGNED || c->insn.op == INSN_CMPXCHG8B);
}

enum emulate_result emulate_linear(struct emulate_ctx *c, enum segment_index seg, u64 offset,
                                   unsigned size, unsigned access, gva_t *la)
{
    bool long_mode = insn_mode_is_64(c->mode), ok;
    struct segment s = {0};

    if (!long_mode || seg == SEG_FS || seg == SEG_GS)
        c->ops->get_seg(c, seg, &s);
    *la = linear_wrap(c, s.base + offset);
    if (long_mode)
        ok = emu_canonical(c, *la) && emu_canonical(c, *la + size - 1);
    else
        ok = segment_allows(c, &s, offset, size, access);
    if (!ok)
        return emulate_raise(c, seg == SEG_SS ? VECTOR_SS : VECTOR_GP, true, 0);
    if (c->cpl == 3 && c->cr0 & CR0_AM && c->regs->rflags & RFLAGS_AC && access != EMULATE_FETCH &&
        *la & (alignment(c, size) - 1) && !must_be_aligned(c, size))
        return emulate_raise(c, VECTOR_AC, true, 0);
    return EMULATE_OK;
}

// --- linear memory ---

// Behind a page's end. Outside 64-bit code too the TSS, the tables and an inner stack may lie above
// 4 GiB.
static gva_t next_part(const struct emulate_ctx *c, gva_t la, unsigned part)
{
    return la >> 32 ? la + part : linear_wrap(c, la + part);
}

static unsigned first_part(gva_t la, unsigned size)
{
    unsigned left = (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK));

    return MIN(size, left);
}

enum emulate_result emu_mem_read(struct emulate_ctx *c, gva_t la, void *buf, unsigned size,
                                 unsigned access)
{
    unsigned part = first_part(la, size);
    enum emulate_result r = c->ops->read_mem(c, la, buf, part, access);

    if (r == EMULATE_OK && part < size)
        r = c->ops->read_mem(c, next_part(c, la, part), (u8 *)buf + part, size - part, access);
    return r;
}

enum emulate_result emu_mem_check(struct emulate_ctx *c, gva_t la, unsigned size)
{
    unsigned part = first_part(la, size);
    enum emulate_result r = c->ops->check_mem(c, la, part, EMULATE_WRITE);

    if (r == EMULATE_OK && part < size)
        r = c->ops->check_mem(c, next_part(c, la, part), size - part, EMULATE_WRITE);
    return r;
}

enum emulate_result emu_mem_write(struct emulate_ctx *c, gva_t la, const void *buf, unsigned size)
{
    unsigned part = first_part(la, size);
    enum emulate_result r = part < size ? emu_mem_check(c, la, size) : EMULATE_OK;

    if (r == EMULATE_OK)
        r = c->ops->write_mem(c, la, buf, part, EMULATE_WRITE);
    if (r == EMULATE_OK && part < size)
        r = c->ops->write_mem(c, next_part(c, la, part), (const u8 *)buf + part, size - part,
                              EMULATE_WRITE);
    return r;
}

// --- registers and operands ---

static bool is_high_byte(const struct emulate_ctx *c, unsigned n, unsigned size)
{
    return size == 1 && n >= 4 && n < 8 && !c->insn.rex;
}

u64 emu_reg_get(const struct emulate_ctx *c, unsigned n, unsigned size)
{
    if (is_high_byte(c, n, size))
        return c->gpr[n - 4] >> 8 & 0xff;
    return c->gpr[n & 15] & size_mask(size);
}

void emu_reg_set(struct emulate_ctx *c, unsigned n, unsigned size, u64 value)
{
    u64 mask = size_mask(size);

    if (is_high_byte(c, n, size))
        c->gpr[n - 4] = (c->gpr[n - 4] & ~0xff00ull) | (value & 0xff) << 8;
    else if (size >= 4)
        c->gpr[n & 15] = value & mask;
    else
        c->gpr[n & 15] = (c->gpr[n & 15] & ~mask) | (value & mask);
}

// MOV has the segment register in ModRM, PUSH in the opcode.
static u64 selector_get(struct emulate_ctx *c)
{
    unsigned seg = (c->insn.has_modrm ? c->insn.modrm : c->insn.opcode) >> 3 & 7;
    struct segment s = {0};

    c->ops->get_seg(c, (enum segment_index)seg, &s);
    return s.selector;
}

u64 emu_operand_get(struct emulate_ctx *c, u8 operand, unsigned size)
{
    // clang-format off
    switch (operand) {
    case OPERAND_RM: return emu_reg_get(c, c->insn.rm, size);
    case OPERAND_REG: return emu_reg_get(c, c->insn.reg, size);
    case OPERAND_ACC: return emu_reg_get(c, 0, size);
    case OPERAND_IMM: return c->insn.imm;
    case OPERAND_CL: return c->gpr[1] & 0xff;
    case OPERAND_SREG: return selector_get(c);
    default: return 0;
    }
    // clang-format on
}

void emu_operand_set(struct emulate_ctx *c, u8 operand, unsigned size, u64 value)
{
    // clang-format off
    switch (operand) {
    case OPERAND_RM: emu_reg_set(c, c->insn.rm, size, value); break;
    case OPERAND_REG: emu_reg_set(c, c->insn.reg, size, value); break;
    case OPERAND_ACC: emu_reg_set(c, 0, size, value); break;
    default: break;
    }
    // clang-format on
}

static bool is_memory(const struct emulate_ctx *c, u8 operand)
{
    return operand == OPERAND_RM && c->insn.has_mem;
}

static enum emulate_result operand_load(struct emulate_ctx *c, u8 operand, unsigned size,
                                        unsigned access, u64 *value)
{
    *value = 0;
    if (is_memory(c, operand))
        return emu_mem_read(c, c->linear, value, c->insn.mem_size, access);
    *value = emu_operand_get(c, operand, size);
    return EMULATE_OK;
}

static enum emulate_result operand_store(struct emulate_ctx *c)
{
    if (is_memory(c, c->insn.dst))
        return emu_mem_write(c, c->linear, &c->dst, c->insn.mem_size);
    emu_operand_set(c, c->insn.dst, c->insn.opsize, c->dst);
    return EMULATE_OK;
}

// BT with a register: the bit offset is signed and reaches beyond the operand.
static u64 bit_displacement(const struct emulate_ctx *c)
{
    const struct insn *insn = &c->insn;
    unsigned size = insn->opsize, shift = size == 8 ? 6 : size == 4 ? 5 : 4;
    s64 bit;

    if (insn->op < INSN_BT || insn->op > INSN_BTC || insn->src != OPERAND_REG)
        return 0;
    bit = (s64)sign_extend(emu_reg_get(c, insn->reg, size), size);
    return (u64)(bit >> shift) * size;
}

enum emulate_result emu_operand_address(struct emulate_ctx *c, unsigned access)
{
    const struct insn *insn = &c->insn;
    u64 offset = insn_offset(insn, c->gpr, c->next_rip);

    offset = (offset + bit_displacement(c)) & size_mask(insn->addr_size);
    return emulate_linear(c, insn->seg, offset, insn->mem_size, access, &c->linear);
}

// --- fetch and decode ---

static enum emulate_result fetch_more(struct emulate_ctx *c)
{
    u64 offset = c->regs->rip + c->bytes_count;
    unsigned want = INSN_MAX_LENGTH - c->bytes_count;
    enum emulate_result r;
    struct segment cs;
    gva_t la;

    if (!insn_mode_is_64(c->mode))
        offset = (u32)offset;
    r = emulate_linear(c, SEG_CS, offset, 1, EMULATE_FETCH, &la);
    if (r != EMULATE_OK)
        return r;
    want = first_part(la, want);
    if (!insn_mode_is_64(c->mode)) { // only the bytes within the limit
        c->ops->get_seg(c, SEG_CS, &cs);
        want = (unsigned)MIN((u64)want, cs.limit - offset + 1);
    }
    r = c->ops->read_mem(c, la, c->bytes + c->bytes_count, want, EMULATE_FETCH);
    if (r == EMULATE_OK)
        c->bytes_count = (u8)(c->bytes_count + want);
    return r;
}

enum emulate_result emulate_decode(struct emulate_ctx *c)
{
    enum emulate_result r;

    c->next_rip = c->regs->rip;
    c->next_rflags = c->regs->rflags;
    for (;;) {
        // clang-format off
        switch (insn_decode(&c->insn, c->bytes, c->bytes_count, c->mode)) {
        case INSN_OK:
            c->next_rip = linear_wrap(c, c->regs->rip + c->insn.length);
            return EMULATE_OK;
        case INSN_INVALID: return emulate_raise(c, VECTOR_UD, false, 0);
        case INSN_TOO_LONG: return raise_gp0(c);
        default: break;
        }
        // clang-format on
        r = fetch_more(c);
        if (r != EMULATE_OK)
            return r;
    }
}

// --- privileges ---

// Intel SDM volume 1 section 19.5.2: the TSS must hold both bytes around the permission bits.
static enum emulate_result io_bitmap_allows(struct emulate_ctx *c, u16 port, unsigned size)
{
    struct segment tr = {0};
    enum emulate_result r;
    u16 base = 0, bits = 0;
    u32 offset;

    c->ops->get_seg(c, SEG_TR, &tr);
    if (tr.access & SEG_UNUSABLE || (tr.access & BITS(3, 0) & ~2ull) != 9 ||
        tr.limit < TSS_IO_MAP + 1)
        return raise_gp0(c);
    r = emu_mem_read(c, tr.base + TSS_IO_MAP, &base, 2, EMULATE_READ | EMULATE_SUPERVISOR);
    if (r != EMULATE_OK)
        return r;
    offset = base + port / 8u;
    if (offset + 1 > tr.limit)
        return raise_gp0(c);
    r = emu_mem_read(c, tr.base + offset, &bits, 2, EMULATE_READ | EMULATE_SUPERVISOR);
    if (r != EMULATE_OK)
        return r;
    return bits >> (port & 7) & ((1u << size) - 1) ? raise_gp0(c) : EMULATE_OK;
}

static enum emulate_result check_port(struct emulate_ctx *c)
{
    bool immediate = c->insn.src == OPERAND_IMM;

    c->port = immediate ? (u16)c->insn.imm : (u16)c->gpr[2];
    if (!(c->cr0 & CR0_PE) || (!in_vm86(c) && c->cpl <= iopl(c)))
        return EMULATE_OK;
    return io_bitmap_allows(c, c->port, c->insn.opsize);
}

// Intel SDM volume 1 chapter 17, "Control-flow Enforcement Technology". Suppressed tracking, and
// NOTRACK, count as tracking.
bool emu_cet_sees(struct emulate_ctx *c, u16 flags)
{
    bool user = c->cpl == 3;
    u64 enabled;

    if (!(flags & OP_CET) || !(c->cr4 & CR4_CET) || !(c->cr0 & CR0_PE) ||
        (in_vm86(c) && !(flags & OP_INWARD)))
        return false;
    if (!c->ops->msr)
        return true;
    enabled = c->ops->msr(c, user ? MSR_U_CET : MSR_S_CET);
    if (flags & (user ? OP_INWARD : OP_OUTWARD))
        enabled |= c->ops->msr(c, user ? MSR_S_CET : MSR_U_CET);
    return (flags & OP_SHSTK && enabled & CET_SH_STK_EN) ||
           (flags & OP_IBT && enabled & CET_ENDBR_EN);
}

static enum emulate_result check_privilege(struct emulate_ctx *c, u16 flags)
{
    if ((flags & OP_PROTECTED && (!(c->cr0 & CR0_PE) || in_vm86(c))) ||
        (flags & OP_LONG && !insn_mode_is_64(c->mode)))
        return emulate_raise(c, VECTOR_UD, false, 0);
    if (flags & OP_UMIP && c->cr4 & CR4_UMIP && c->cpl != 0)
        return raise_gp0(c);
    if (flags & OP_CPL0 && c->cpl != 0)
        return raise_gp0(c);
    if (flags & OP_PORT)
        return check_port(c);
    if (flags & OP_CR4)
        return emu_check_cr4(c);
    if (flags & OP_VM86 && flags_virtual(c) && !(c->cr4 & CR4_VME && c->insn.opsize == 2))
        return raise_gp0(c);
    return emu_cet_sees(c, flags) ? EMULATE_UNHANDLED : EMULATE_OK;
}

// --- execution ---

void emu_commit(struct emulate_ctx *c)
{
    memcpy(c->regs->gpr, c->gpr, sizeof(c->gpr));
}

static enum emulate_result load_operands(struct emulate_ctx *c, u16 flags, unsigned access)
{
    const struct insn *insn = &c->insn;
    enum emulate_result r = EMULATE_OK;

    if (insn->has_mem && insn->mem_size)
        r = emu_operand_address(c, access);
    if (r == EMULATE_OK && flags & OP_LOAD_SRC)
        r = operand_load(c, insn->src, insn->src_size, access, &c->src);
    if (r == EMULATE_OK && flags & OP_LOAD_DST)
        r = operand_load(c, insn->dst, insn->opsize, access, &c->dst);
    return r == EMULATE_OK ? emu_intercept(c, EMULATE_ACCESSED) : r;
}

static unsigned operand_access(const struct emulate_ctx *c, u16 flags)
{
    if (!(flags & OP_STORE_DST) || !is_memory(c, c->insn.dst))
        return EMULATE_READ;
    return flags & OP_LOAD_DST ? EMULATE_READ_MODIFY : EMULATE_WRITE;
}

static enum emulate_result run_plain(struct emulate_ctx *c, const struct emulate_op *op)
{
    enum emulate_result r = load_operands(c, op->flags, operand_access(c, op->flags));

    if (r == EMULATE_OK)
        r = op->run(c);
    if (r == EMULATE_OK && op->flags & OP_STORE_DST)
        r = operand_store(c);
    return r;
}

// Between repetitions RF keeps a code breakpoint on this instruction from firing again.
enum emulate_result emu_repeat(struct emulate_ctx *c)
{
    c->next_rip = c->regs->rip;
    c->next_rflags |= RFLAGS_RF;
    return EMULATE_REPEAT;
}

void emu_start_over(struct emulate_ctx *c)
{
    memcpy(c->gpr, c->regs->gpr, sizeof(c->gpr));
    c->next_rflags = c->regs->rflags & ~RFLAGS_RF;
}

// The result is computed on what was read, then stored if memory still holds that.
static enum emulate_result run_locked(struct emulate_ctx *c, const struct emulate_op *op)
{
    enum emulate_result r;
    bool swapped = false;
    u64 old;

    if (!c->ops->cmpxchg_mem)
        return EMULATE_UNHANDLED;
    r = load_operands(c, op->flags, EMULATE_READ_MODIFY);
    old = c->dst;
    for (unsigned tries = 0; r == EMULATE_OK && tries < LOCK_TRIES; tries++) {
        emu_start_over(c);
        c->dst = old;
        r = operand_load(c, c->insn.src, c->insn.src_size, EMULATE_READ, &c->src);
        if (r == EMULATE_OK)
            r = op->run(c);
        if (r == EMULATE_OK)
            r = c->ops->cmpxchg_mem(c, c->linear, &old, &c->dst, c->insn.mem_size, &swapped);
        if (swapped)
            return r;
    }
    if (r != EMULATE_OK)
        return r;
    emu_start_over(c);
    return emu_repeat(c);
}

static bool is_locked(const struct emulate_ctx *c, const struct emulate_op *op)
{
    if (op->flags & OP_OWN_ACCESS || !is_memory(c, c->insn.dst))
        return false;
    return c->insn.op == INSN_XCHG || c->insn.prefixes & INSN_LOCK;
}

static enum emulate_result run(struct emulate_ctx *c)
{
    const struct emulate_op *op = &emulate_op_table[c->insn.op];
    enum emulate_result r = emu_intercept(c, EMULATE_DECODED);

    if (r == EMULATE_OK && !op->run)
        return EMULATE_UNHANDLED;
    if (r == EMULATE_OK)
        r = check_privilege(c, op->flags);
    if (r == EMULATE_OK)
        r = emu_intercept(c, EMULATE_PRIVILEGED);
    if (r != EMULATE_OK)
        return r;
    if (op->flags & OP_OWN_ACCESS)
        return op->run(c);
    return is_locked(c, op) ? run_locked(c, op) : run_plain(c, op);
}

enum emulate_result emulate_insn(struct emulate_ctx *c)
{
    enum emulate_result r = emulate_decode(c);

    if (r != EMULATE_OK)
        return r;
    c->shadow = c->seg_loaded = 0;
    c->branched = c->unblock_nmi = c->switched = c->task_trap = false;
    c->dst = c->src = 0;
    emu_start_over(c);
    r = run(c);
    if (r == EMULATE_OK || r == EMULATE_REPEAT || r == EMULATE_HALT)
        emu_commit(c);
    return r;
}
