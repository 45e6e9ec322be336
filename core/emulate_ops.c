// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulated instructions (Intel SDM volume 2, each under its own name), and the table that the
// frame in emulate.c runs them by. A function sees its operands in c->dst and c->src and leaves its
// result in c->dst; registers it changes beside that go to c->gpr, which counts only if all of it
// succeeds.

#include "emulate_internal.h"

// --- data movement ---

static enum emulate_result run_mov(struct emulate_ctx *c)
{
    c->dst = c->src;
    return EMULATE_OK;
}

static enum emulate_result run_movsx(struct emulate_ctx *c)
{
    c->dst = sign_extend(c->src, c->insn.src_size);
    return EMULATE_OK;
}

static u64 swap_bytes(u64 value, unsigned size)
{
    return __builtin_bswap64(value) >> (64 - 8 * size);
}

static enum emulate_result run_movbe(struct emulate_ctx *c)
{
    c->dst = swap_bytes(c->src, c->insn.opsize);
    return EMULATE_OK;
}

static enum emulate_result run_bswap(struct emulate_ctx *c)
{
    if (c->insn.opsize == 2)
        return EMULATE_UNHANDLED; // undefined
    c->dst = swap_bytes(c->dst, c->insn.opsize);
    return EMULATE_OK;
}

static enum emulate_result run_lea(struct emulate_ctx *c)
{
    c->dst = insn_offset(&c->insn, c->gpr, c->next_rip);
    return EMULATE_OK;
}

static enum emulate_result run_cmov(struct emulate_ctx *c)
{
    if (alu_condition(c->insn.opcode & 15, c->next_rflags))
        c->dst = c->src;
    return EMULATE_OK;
}

static enum emulate_result run_setcc(struct emulate_ctx *c)
{
    c->dst = alu_condition(c->insn.opcode & 15, c->next_rflags);
    return EMULATE_OK;
}

static enum emulate_result run_xchg(struct emulate_ctx *c)
{
    u64 old = c->dst;

    c->dst = c->src;
    emu_operand_set(c, c->insn.src, c->insn.opsize, old);
    return EMULATE_OK;
}

static enum emulate_result run_xadd(struct emulate_ctx *c)
{
    u64 old = c->dst;

    c->dst = alu_binary(INSN_ADD, old, c->src, c->insn.opsize, &c->next_rflags);
    emu_operand_set(c, c->insn.src, c->insn.opsize, old);
    return EMULATE_OK;
}

// Memory is written in both cases, as the CPU does. A 32-bit register that differs keeps its upper
// half on AMD (seen on an EPYC), while Intel's pseudo-code writes it back, so that is left alone.
static enum emulate_result run_cmpxchg(struct emulate_ctx *c)
{
    unsigned size = c->insn.opsize;
    u64 acc = emu_reg_get(c, 0, size);

    alu_binary(INSN_CMP, acc, c->dst, size, &c->next_rflags);
    if (c->next_rflags & RFLAGS_ZF)
        c->dst = c->src;
    else if (c->insn.has_mem || size != 4 || !insn_mode_is_64(c->mode))
        emu_reg_set(c, 0, size, c->dst);
    else
        return EMULATE_UNHANDLED;
    return EMULATE_OK;
}

static enum emulate_result store_pair(struct emulate_ctx *c, void *old, const void *value,
                                      unsigned size)
{
    bool swapped = false;
    enum emulate_result r;

    if (!(c->insn.prefixes & INSN_LOCK))
        return emu_mem_write(c, c->linear, value, size);
    if (!c->ops->cmpxchg_mem)
        return EMULATE_UNHANDLED;
    r = c->ops->cmpxchg_mem(c, c->linear, old, value, size, &swapped);
    return r == EMULATE_OK && !swapped ? EMULATE_REPEAT : r;
}

static u64 pair_half(const u8 *pair, unsigned half)
{
    u64 value = 0;

    for (unsigned i = half; i > 0; i--)
        value = value << 8 | pair[i - 1];
    return value;
}

static void pair_put(u8 *pair, unsigned half, u64 value)
{
    for (unsigned i = 0; i < half; i++)
        pair[i] = (u8)(value >> (8 * i));
}

// CMPXCHG8B and, with REX.W, CMPXCHG16B. A lost race is EMULATE_REPEAT with nothing changed.
static enum emulate_result run_cmpxchg8b(struct emulate_ctx *c)
{
    unsigned size = c->insn.mem_size, half = size / 2;
    u8 old[16] = {0}, value[16] = {0};
    enum emulate_result r = emu_operand_address(c, EMULATE_READ_MODIFY);
    bool equal;

    if (r == EMULATE_OK && size == 16 && c->linear & 15)
        r = raise_gp0(c);
    if (r == EMULATE_OK)
        r = emu_mem_read(c, c->linear, old, size, EMULATE_READ_MODIFY);
    if (r == EMULATE_OK)
        r = emu_intercept(c, EMULATE_ACCESSED);
    if (r != EMULATE_OK)
        return r;
    equal = pair_half(old, half) == emu_reg_get(c, 0, half) &&
            pair_half(old + half, half) == emu_reg_get(c, 2, half);
    pair_put(value, half, equal ? c->gpr[3] : pair_half(old, half));
    pair_put(value + half, half, equal ? c->gpr[1] : pair_half(old + half, half));
    if (!equal) {
        emu_reg_set(c, 0, half, pair_half(old, half));
        emu_reg_set(c, 2, half, pair_half(old + half, half));
    }
    c->next_rflags = (c->next_rflags & ~RFLAGS_ZF) | (equal ? RFLAGS_ZF : 0);
    r = store_pair(c, old, value, size);
    if (r != EMULATE_REPEAT)
        return r;
    emu_start_over(c);
    return emu_repeat(c);
}

enum emulate_result emu_load_segment(struct emulate_ctx *c, enum segment_index seg, u64 selector)
{
    if (!c->ops->load_seg)
        return EMULATE_UNHANDLED;
    if (seg == SEG_SS)
        c->shadow = EMULATE_SHADOW_MOV_SS;
    return c->ops->load_seg(c, seg, (u16)selector);
}

static enum emulate_result run_mov_to_sreg(struct emulate_ctx *c)
{
    return emu_load_segment(c, (enum segment_index)(c->insn.reg & 7), c->src);
}

static enum emulate_result run_xlat(struct emulate_ctx *c)
{
    u64 offset = (c->gpr[3] + (c->gpr[0] & 0xff)) & size_mask(c->insn.addr_size), value = 0;
    enum emulate_result r = emulate_linear(c, c->insn.seg, offset, 1, EMULATE_READ, &c->linear);

    if (r == EMULATE_OK)
        r = emu_mem_read(c, c->linear, &value, 1, EMULATE_READ);
    if (r == EMULATE_OK)
        emu_reg_set(c, 0, 1, value);
    return r;
}

static enum emulate_result run_cbw(struct emulate_ctx *c)
{
    unsigned size = c->insn.opsize;

    emu_reg_set(c, 0, size, sign_extend(c->gpr[0], size / 2));
    return EMULATE_OK;
}

static enum emulate_result run_cwd(struct emulate_ctx *c)
{
    unsigned size = c->insn.opsize;

    emu_reg_set(c, 2, size, sign_extend(c->gpr[0], size) >> 63 ? ~0ull : 0);
    return EMULATE_OK;
}

// --- arithmetic ---

static enum emulate_result run_binary(struct emulate_ctx *c)
{
    c->dst = alu_binary(c->insn.op, c->dst, c->src, c->insn.opsize, &c->next_rflags);
    return EMULATE_OK;
}

static enum emulate_result run_step(struct emulate_ctx *c)
{
    c->dst = alu_step(c->insn.op, c->dst, c->insn.opsize, &c->next_rflags);
    return EMULATE_OK;
}

static enum emulate_result run_not(struct emulate_ctx *c)
{
    c->dst = ~c->dst;
    return EMULATE_OK;
}

static enum emulate_result run_neg(struct emulate_ctx *c)
{
    c->dst = alu_binary(INSN_SUB, 0, c->dst, c->insn.opsize, &c->next_rflags);
    return EMULATE_OK;
}

static enum emulate_result run_shift(struct emulate_ctx *c)
{
    c->dst =
        alu_shift(c->insn.op, c->dst, (unsigned)c->src & 0xff, c->insn.opsize, &c->next_rflags);
    return EMULATE_OK;
}

static enum emulate_result run_double_shift(struct emulate_ctx *c)
{
    u64 count = c->insn.opcode & 1 ? c->gpr[1] : c->insn.imm;

    c->dst = alu_double_shift(c->insn.op, c->dst, c->src, (unsigned)count & 0xff, c->insn.opsize,
                              &c->next_rflags);
    return EMULATE_OK;
}

static enum emulate_result run_bit(struct emulate_ctx *c)
{
    u64 bit = 1ull << (c->src & (8u * c->insn.opsize - 1));

    c->next_rflags = (c->next_rflags & ~RFLAGS_CF) | (c->dst & bit ? RFLAGS_CF : 0);
    if (c->insn.op == INSN_BTS)
        c->dst |= bit;
    else if (c->insn.op == INSN_BTR)
        c->dst &= ~bit;
    else if (c->insn.op == INSN_BTC)
        c->dst ^= bit;
    return EMULATE_OK;
}

static enum emulate_result run_imul(struct emulate_ctx *c)
{
    u64 factor = c->insn.op == INSN_IMUL3 ? c->insn.imm : c->dst, high;

    alu_multiply(factor, c->src, true, c->insn.opsize, &c->dst, &high, &c->next_rflags);
    return EMULATE_OK;
}

// The double-width accumulator: AX for bytes, else rDX:rAX.
static void wide_get(const struct emulate_ctx *c, u64 *low, u64 *high)
{
    unsigned size = c->insn.opsize;

    *low = c->gpr[0] & size_mask(size);
    *high = size == 1 ? c->gpr[0] >> 8 & 0xff : c->gpr[2] & size_mask(size);
}

static void wide_set(struct emulate_ctx *c, u64 low, u64 high)
{
    unsigned size = c->insn.opsize;

    if (size == 1) {
        emu_reg_set(c, 0, 2, low | high << 8);
        return;
    }
    emu_reg_set(c, 0, size, low);
    emu_reg_set(c, 2, size, high);
}

static enum emulate_result run_mul(struct emulate_ctx *c)
{
    u64 low, high;

    alu_multiply(c->gpr[0], c->src, c->insn.op == INSN_IMUL1, c->insn.opsize, &low, &high,
                 &c->next_rflags);
    wide_set(c, low, high);
    return EMULATE_OK;
}

static enum emulate_result run_div(struct emulate_ctx *c)
{
    u64 low, high;

    wide_get(c, &low, &high);
    if (!alu_divide(&low, &high, c->src, c->insn.op == INSN_IDIV, c->insn.opsize))
        return emulate_raise(c, VECTOR_DE, false, 0);
    wide_set(c, low, high);
    return EMULATE_OK;
}

// --- control transfer ---

// Sets next_rip, or faults with #GP(0) (code segment limit, canonical address).
static enum emulate_result branch(struct emulate_ctx *c, u64 target)
{
    gva_t la;
    enum emulate_result r;

    target &= size_mask(c->insn.opsize);
    r = emulate_linear(c, SEG_CS, target, 1, EMULATE_FETCH, &la);
    if (r != EMULATE_OK)
        return r;
    c->next_rip = target;
    c->branched = true;
    return EMULATE_OK;
}

static enum emulate_result run_jmp(struct emulate_ctx *c)
{
    return branch(c, c->next_rip + c->insn.imm);
}

static enum emulate_result run_jmp_indirect(struct emulate_ctx *c)
{
    return branch(c, c->src);
}

static enum emulate_result call(struct emulate_ctx *c, u64 target)
{
    u64 back = c->next_rip;
    enum emulate_result r = branch(c, target);

    return r == EMULATE_OK ? emu_push(c, back) : r;
}

static enum emulate_result run_call(struct emulate_ctx *c)
{
    return call(c, c->next_rip + c->insn.imm);
}

static enum emulate_result run_call_indirect(struct emulate_ctx *c)
{
    return call(c, c->src);
}

static enum emulate_result run_ret(struct emulate_ctx *c)
{
    u64 target;
    enum emulate_result r = emu_pop(c, &target);

    if (r == EMULATE_OK)
        emu_stack_move(c, c->insn.imm);
    return r == EMULATE_OK ? branch(c, target) : r;
}

static enum emulate_result run_jcc(struct emulate_ctx *c)
{
    return alu_condition(c->insn.opcode & 15, c->next_rflags) ? run_jmp(c) : EMULATE_OK;
}

static enum emulate_result run_loop(struct emulate_ctx *c)
{
    unsigned size = c->insn.addr_size;
    u64 count = (c->gpr[1] - (c->insn.op != INSN_JCXZ)) & size_mask(size);
    bool zero = c->next_rflags & RFLAGS_ZF, taken = count != 0;

    if (c->insn.op == INSN_JCXZ)
        return count == 0 ? run_jmp(c) : EMULATE_OK;
    // REP prefixes mean nothing here on Intel, but do change the condition on AMD (seen on an
    // EPYC).
    if (c->insn.op != INSN_LOOP && c->insn.prefixes & (INSN_REP | INSN_REPNE))
        return EMULATE_UNHANDLED;
    emu_reg_set(c, 1, size, count);
    if (c->insn.op == INSN_LOOPE)
        taken = taken && zero;
    else if (c->insn.op == INSN_LOOPNE)
        taken = taken && !zero;
    return taken ? run_jmp(c) : EMULATE_OK;
}

// --- flags and the rest ---

static enum emulate_result run_lahf(struct emulate_ctx *c)
{
    c->gpr[0] = (c->gpr[0] & ~0xff00ull) | ((c->next_rflags & 0xd5) | RFLAGS_FIXED) << 8;
    return EMULATE_OK;
}

static enum emulate_result run_sahf(struct emulate_ctx *c)
{
    c->next_rflags = (c->next_rflags & ~0xd5ull) | (c->gpr[0] >> 8 & 0xd5);
    return EMULATE_OK;
}

static enum emulate_result run_flag(struct emulate_ctx *c)
{
    switch (c->insn.op) {
    case INSN_CMC:
        c->next_rflags ^= RFLAGS_CF;
        break;
    case INSN_CLC:
        c->next_rflags &= ~RFLAGS_CF;
        break;
    case INSN_STC:
        c->next_rflags |= RFLAGS_CF;
        break;
    case INSN_CLD:
        c->next_rflags &= ~RFLAGS_DF;
        break;
    default:
        c->next_rflags |= RFLAGS_DF;
        break;
    }
    return EMULATE_OK;
}

// Intel SDM volume 2, tables "Decision Table for CLI Results" and "for STI Results".
static enum emulate_result run_if(struct emulate_ctx *c)
{
    bool set = c->insn.op == INSN_STI, real = !(c->cr0 & CR0_PE);
    bool virtual = in_vm86(c) ? c->cr4 & CR4_VME : c->cr4 & CR4_PVI && c->cpl == 3;
    u64 flag = RFLAGS_IF;

    if (!real && iopl(c) < c->cpl) {
        if (!virtual || (set && c->regs->rflags & RFLAGS_VIP))
            return raise_gp0(c);
        flag = RFLAGS_VIF;
    }
    if (set && flag == RFLAGS_IF && !(c->regs->rflags & RFLAGS_IF))
        c->shadow = EMULATE_SHADOW_STI;
    c->next_rflags = set ? c->next_rflags | flag : c->next_rflags & ~flag;
    return EMULATE_OK;
}

static enum emulate_result run_nop(struct emulate_ctx *c)
{
    (void)c;
    return EMULATE_OK;
}

static enum emulate_result run_hlt(struct emulate_ctx *c)
{
    (void)c;
    return EMULATE_HALT;
}

static enum emulate_result run_ud(struct emulate_ctx *c)
{
    return emulate_raise(c, VECTOR_UD, false, 0);
}

#define D OP_LOAD_DST
#define S OP_LOAD_SRC
#define W OP_STORE_DST
#define X OP_OWN_ACCESS

// clang-format off
const struct emulate_op emulate_op_table[INSN_OP_COUNT] = {
    [INSN_ADD ... INSN_XOR] = {run_binary, D | S | W},
    [INSN_CMP] = {run_binary, D | S},
    [INSN_TEST] = {run_binary, D | S},
    [INSN_ROL ... INSN_SAR] = {run_shift, D | S | W},
    [INSN_BT] = {run_bit, D | S},
    [INSN_BTS ... INSN_BTC] = {run_bit, D | S | W},
    [INSN_NOT] = {run_not, D | W},
    [INSN_NEG] = {run_neg, D | W},
    [INSN_MUL ... INSN_IMUL1] = {run_mul, S},
    [INSN_DIV ... INSN_IDIV] = {run_div, S},
    [INSN_IMUL2] = {run_imul, D | S | W},
    [INSN_IMUL3] = {run_imul, S | W},
    [INSN_INC ... INSN_DEC] = {run_step, D | W},
    [INSN_SHLD ... INSN_SHRD] = {run_double_shift, D | S | W},
    [INSN_BSWAP] = {run_bswap, D | W},
    [INSN_XCHG] = {run_xchg, D | S | W},
    [INSN_CMPXCHG] = {run_cmpxchg, D | S | W},
    [INSN_XADD] = {run_xadd, D | S | W},
    [INSN_CMPXCHG8B] = {run_cmpxchg8b, X},
    [INSN_MOV ... INSN_MOVZX] = {run_mov, S | W},
    [INSN_MOVSX] = {run_movsx, S | W},
    [INSN_MOVBE] = {run_movbe, S | W},
    [INSN_MOVNTI] = {run_mov, S | W},
    [INSN_LEA] = {run_lea, W},
    [INSN_CMOVCC] = {run_cmov, D | S | W},
    [INSN_SETCC] = {run_setcc, W},
    [INSN_MOV_FROM_SREG] = {run_mov, S | W},
    [INSN_MOV_TO_SREG] = {run_mov_to_sreg, S},
    [INSN_PUSH] = {emu_run_push, S},
    [INSN_POP] = {emu_run_pop, X},
    [INSN_PUSH_SREG] = {emu_run_push, S},
    [INSN_POP_SREG] = {emu_run_pop_sreg, X},
    [INSN_PUSHF] = {emu_run_pushf, OP_VM86},
    [INSN_POPF] = {emu_run_popf, OP_VM86},
    [INSN_PUSHA] = {emu_run_pusha, 0},
    [INSN_POPA] = {emu_run_popa, 0},
    [INSN_LEAVE] = {emu_run_leave, 0},
    [INSN_CALL] = {run_call, OP_SHSTK},
    [INSN_JMP] = {run_jmp, 0},
    [INSN_CALL_IND] = {run_call_indirect, S | OP_CET},
    [INSN_JMP_IND] = {run_jmp_indirect, S | OP_IBT},
    [INSN_RET] = {run_ret, OP_SHSTK},
    [INSN_JCC] = {run_jcc, 0},
    [INSN_CALL_FAR] = {emu_run_far, X | OP_CET | OP_INWARD},
    [INSN_JMP_FAR] = {emu_run_far, X | OP_IBT},
    [INSN_RET_FAR] = {emu_run_ret_far, X | OP_SHSTK | OP_OUTWARD},
    [INSN_IRET] = {emu_run_iret, X | OP_CET | OP_OUTWARD}, // KVM's tests want OP_IBT, the SDM does not
    [INSN_INT ... INSN_INT1] = {emu_run_int, X},
    [INSN_LSS ... INSN_LFAR] = {emu_run_load_far, X},
    [INSN_LOOPNE ... INSN_JCXZ] = {run_loop, 0},
    [INSN_MOVS ... INSN_SCAS] = {emu_run_string, X},
    [INSN_INS ... INSN_OUTS] = {emu_run_string, X | OP_PORT},
    [INSN_IN] = {emu_run_in, W | OP_PORT},
    [INSN_OUT] = {emu_run_out, OP_PORT},
    [INSN_CBW] = {run_cbw, 0},
    [INSN_CWD] = {run_cwd, 0},
    [INSN_LAHF] = {run_lahf, 0},
    [INSN_SAHF] = {run_sahf, 0},
    [INSN_XLAT] = {run_xlat, X},
    [INSN_CMC ... INSN_STC] = {run_flag, 0},
    [INSN_CLI ... INSN_STI] = {run_if, 0},
    [INSN_CLD ... INSN_STD] = {run_flag, 0},
    [INSN_NOP ... INSN_PAUSE] = {run_nop, 0},
    [INSN_HLT] = {run_hlt, OP_CPL0},
    [INSN_UD] = {run_ud, X},
    [INSN_ENTER] = {emu_run_enter, 0},
    [INSN_BSF ... INSN_BSR] = {emu_run_scan, D | S | W},
    [INSN_TZCNT ... INSN_LZCNT] = {emu_run_count_zeros, D | S | W},
    [INSN_POPCNT] = {emu_run_popcnt, S | W},
    [INSN_CRC32] = {emu_run_crc32, S | W},
    [INSN_AAA ... INSN_AAD] = {emu_run_adjust, 0},
    [INSN_BOUND] = {emu_run_bound, X},
    [INSN_ARPL] = {emu_run_arpl, D | S | W | OP_PROTECTED},
    [INSN_VEC_LOAD] = {emu_run_vec_load, X},
    [INSN_VEC_STORE] = {emu_run_vec_store, X},
    [INSN_X87] = {emu_run_x87, X},
    [INSN_MOV_FROM_CR ... INSN_MOV_TO_CR] = {emu_run_system, OP_CPL0},
    [INSN_MOV_FROM_DR] = {emu_run_mov_dr, W | OP_CPL0 | OP_CR4},
    [INSN_MOV_TO_DR] = {emu_run_mov_dr, S | OP_CPL0 | OP_CR4},
    [INSN_CLTS] = {emu_run_system, OP_CPL0},
    [INSN_LMSW] = {emu_run_system, S | OP_CPL0},
    [INSN_SMSW] = {emu_run_system, W | OP_UMIP},
    [INSN_CPUID] = {emu_run_system, 0},
    [INSN_RDMSR ... INSN_WRMSR] = {emu_run_system, OP_CPL0},
    [INSN_RDTSC ... INSN_RDTSCP] = {emu_run_system, OP_CR4},
    [INSN_RDPMC] = {emu_run_system, OP_CR4},
    [INSN_XGETBV] = {emu_run_xgetbv, 0},
    [INSN_XSETBV] = {emu_run_system, OP_CR4},
    [INSN_INVD ... INSN_WBINVD] = {emu_run_system, OP_CPL0},
    [INSN_INVLPG] = {emu_run_invlpg, X | OP_CPL0},
    [INSN_MONITOR ... INSN_MWAIT] = {emu_run_system, 0},
    [INSN_RSM] = {emu_run_system, 0},
    [INSN_SGDT ... INSN_SIDT] = {emu_run_store_table, X | OP_UMIP},
    [INSN_LGDT ... INSN_LIDT] = {emu_run_load_table, X | OP_CPL0},
    [INSN_SLDT ... INSN_STR] = {emu_run_system, W | OP_UMIP | OP_PROTECTED},
    [INSN_LLDT ... INSN_LTR] = {emu_run_load_system, S | OP_CPL0 | OP_PROTECTED},
    [INSN_LAR ... INSN_VERW] = {emu_run_look, S | OP_PROTECTED},
    [INSN_SYSCALL] = {emu_run_syscall, OP_CET | OP_INWARD},
    [INSN_SYSRET] = {emu_run_sysret, OP_CET | OP_OUTWARD},
    [INSN_SYSENTER] = {emu_run_sysenter, OP_CET | OP_INWARD},
    [INSN_SYSEXIT] = {emu_run_sysexit, OP_CET | OP_OUTWARD},
    [INSN_SWAPGS] = {emu_run_system, OP_CPL0 | OP_LONG},
    [INSN_VMCALL ... INSN_INVLPGA] = {emu_run_system, 0},
};
// clang-format on
