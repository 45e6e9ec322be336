// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The instruction decoder: prefixes, opcode, ModRM, SIB, displacement, immediate, in that order,
// with the knowledge in decode_table.c. Intel SDM volume 2 chapter 2; AMD APM volume 3 chapter 1.

#include "decode_table.h"

struct cursor {
    const u8 *bytes;
    unsigned len, pos;
    int status; // sticky
    struct insn *insn;
    const struct opcode_entry *entry;
    u32 flags; // of the entry, after the group's have been added
    u8 pp;     // mandatory prefix: 0 none, 1 66, 2 F3, 3 F2
    u8 vex_map, evex_reg;
    bool masked; // EVEX: a mask, zeroing or broadcast, or what must be fixed is not
};

static u64 take(struct cursor *c, unsigned size)
{
    u64 value = 0;

    for (unsigned i = 0; i < size && c->status == INSN_OK; i++) {
        if (c->pos >= INSN_MAX_LENGTH)
            c->status = INSN_TOO_LONG;
        else if (c->pos >= c->len)
            c->status = INSN_TRUNCATED;
        else
            value |= (u64)c->bytes[c->pos++] << (8 * i);
    }
    return value;
}

static u64 take_signed(struct cursor *c, unsigned size)
{
    u64 value = take(c, size), sign;

    if (size == 0)
        return 0;
    sign = 1ull << (8 * size - 1);
    return (value ^ sign) - sign;
}

static u8 peek(struct cursor *c)
{
    u8 byte = (u8)take(c, 1);

    if (c->status == INSN_OK)
        c->pos--;
    return byte;
}

// In 64-bit code the ES, CS, SS and DS overrides are ignored, so they don't undo an FS or GS.
static void segment_prefix(struct insn *insn, u8 seg)
{
    if (insn_mode_is_64(insn->mode) && seg < SEG_FS)
        return;
    insn->seg = seg;
    insn->prefixes |= INSN_SEGMENT;
}

static bool legacy_prefix(struct insn *insn, u8 byte)
{
    // clang-format off
    switch (byte) {
    case 0x26: case 0x2e: case 0x36: case 0x3e:
        segment_prefix(insn, (byte >> 3) & 3);
        return true;
    case 0x64: case 0x65:
        segment_prefix(insn, byte & 7);
        return true;
    case 0x66:
        insn->prefixes |= INSN_OPSIZE;
        return true;
    case 0x67:
        insn->prefixes |= INSN_ADDRSIZE;
        return true;
    case 0xf0:
        insn->prefixes |= INSN_LOCK;
        return true;
    case 0xf2: case 0xf3:
        insn->prefixes &= (u8)~(INSN_REP | INSN_REPNE);
        insn->prefixes |= byte == 0xf3 ? INSN_REP : INSN_REPNE;
        return true;
    default:
        return false;
    }
    // clang-format on
}

// A REX prefix counts only directly before the opcode: a legacy prefix after it cancels it.
static u8 take_prefixes(struct cursor *c)
{
    struct insn *insn = c->insn;
    u8 byte;

    while (byte = (u8)take(c, 1), c->status == INSN_OK) {
        if (legacy_prefix(insn, byte))
            insn->rex = 0;
        else if (insn_mode_is_64(insn->mode) && (byte & 0xf0) == 0x40)
            insn->rex = byte;
        else
            break;
    }
    return byte;
}

static void address_size(struct insn *insn)
{
    bool other = insn->prefixes & INSN_ADDRSIZE;

    if (insn_mode_is_64(insn->mode))
        insn->addr_size = other ? 4 : 8;
    else
        insn->addr_size = (insn->mode == INSN_MODE_16) == other ? 4 : 2;
}

static u8 native_size(const struct insn *insn)
{
    return insn_mode_is_64(insn->mode) ? 8 : 4;
}

static u8 plain_size(const struct insn *insn)
{
    bool other = insn->prefixes & INSN_OPSIZE;

    if (insn->rex & REX_W)
        return 8;
    return (insn->mode == INSN_MODE_16) == other ? 4 : 2;
}

static void operand_size(struct cursor *c)
{
    struct insn *insn = c->insn;
    bool long_mode = insn_mode_is_64(insn->mode);
    u8 size = plain_size(insn);

    if (c->flags & F_BYTE)
        size = 1;
    else if (c->flags & F_WORD)
        size = 2;
    else if (c->flags & F_NATIVE)
        size = native_size(insn);
    else if (c->flags & F_BRANCH && insn->mode == INSN_MODE_64)
        size = 8;
    else if (c->flags & (F_STACK | F_BRANCH) && long_mode && size == 4)
        size = 8;
    else if (c->flags & F_MAX4 && size == 8)
        size = 4;
    else if (c->flags & F_MIN4 && size == 2)
        size = 4;
    insn->opsize = size;
}

// One of VEX (C4, C5), EVEX (62), XOP (8F): what follows the escape byte decides outside 64-bit
// code.
static bool is_extended(struct cursor *c, u8 byte)
{
    if (byte != 0xc4 && byte != 0xc5 && byte != 0x62 && byte != 0x8f)
        return false;
    if (byte == 0x8f)
        return (peek(c) & 0x1f) >= 8;
    return insn_mode_is_64(c->insn->mode) || peek(c) >= 0xc0;
}

static const struct opcode_entry other = {.op = INSN_OTHER, .flags = F_MODRM};
static const struct opcode_entry other_ib = {.op = INSN_OTHER, .flags = F_MODRM | IMM(IB)};
static const struct opcode_entry other_id = {.op = INSN_OTHER, .flags = F_MODRM | IMM(ID)};
static const struct opcode_entry other_bare = {.op = INSN_OTHER};

static const struct opcode_entry *extended_entry(u8 escape, u8 map, u8 opcode)
{
    bool imm =
        (opcode >= 0x70 && opcode <= 0x73) || opcode == 0xc2 || (opcode >= 0xc4 && opcode <= 0xc6);

    if (escape == 0x8f)
        return map == 8 ? &other_ib : map == 9 ? &other : map == 10 ? &other_id : NULL;
    if (map == 1 && opcode == 0x77)
        return escape == 0x62 ? NULL : &other_bare;
    if (map == 1)
        return imm ? &other_ib : &other;
    if (map == 3)
        return &other_ib;
    if (map == 2 || (escape == 0x62 && (map == 5 || map == 6)))
        return &other;
    return NULL;
}

static u8 legacy_pp(const struct insn *insn)
{
    if (insn->prefixes & (INSN_REP | INSN_REPNE))
        return insn->prefixes & INSN_REP ? 2 : 3;
    return insn->prefixes & INSN_OPSIZE ? 1 : 0;
}

// VEX's second byte (of three) and third: inverted R, X, B; W, inverted vvvv, L, pp. The two-byte
// form has R where that has W. Outside 64-bit code the registers are the low eight.
static void take_vex(struct cursor *c, u8 first, u8 last, bool two_bytes)
{
    struct insn *insn = c->insn;
    u8 rex = (u8)(~first >> 5 & (two_bytes ? REX_R : REX_R | REX_X | REX_B));

    if (!two_bytes)
        rex |= last >> 4 & REX_W;
    insn->rex = (u8)(0x40 | (insn_mode_is_64(insn->mode) ? rex : rex & REX_W));
    insn->vvvv = (u8)(~last >> 3 & (insn_mode_is_64(insn->mode) ? 15 : 7));
    insn->vex_length = last & 4 ? 32 : 16;
    c->pp = last & 3;
}

// EVEX's three bytes: R X B R' 0 mmm; W vvvv 1 pp; z L'L b V' aaa. All of registers' bits inverted.
static void take_evex(struct cursor *c, u8 first, u8 second)
{
    struct insn *insn = c->insn;
    u8 third = (u8)take(c, 1);

    take_vex(c, first, (u8)(second & ~4), false);
    if (insn_mode_is_64(insn->mode)) {
        insn->vvvv |= third & 8 ? 0 : 16;
        c->evex_reg = first & 0x10 ? 0 : 16;
    }
    insn->vex_length = (u8)(16 << (third >> 5 & 3));
    c->masked = third & 0x97 || insn->vex_length > 64 || first & 8 || !(second & 4) ||
                (!insn_mode_is_64(insn->mode) && !(third & 8));
}

// A legacy 66, F2, F3, F0 or REX before them is #UD.
static void take_extended(struct cursor *c, u8 escape)
{
    struct insn *insn = c->insn;
    const u8 bad = INSN_REP | INSN_REPNE | INSN_LOCK | INSN_OPSIZE;
    u8 map = 1, first, second;

    if (insn->prefixes & bad || insn->rex) {
        c->status = INSN_INVALID;
        return;
    }
    first = second = (u8)take(c, 1);
    if (escape != 0xc5) {
        map = first & (escape == 0x62 ? 7 : 0x1f);
        second = (u8)take(c, 1);
    }
    insn->encoding = escape == 0x62 ? INSN_EVEX : escape == 0x8f ? INSN_XOP : INSN_VEX;
    if (escape == 0x62)
        take_evex(c, first, second);
    else
        take_vex(c, first, second, escape == 0xc5);
    insn->map = INSN_MAP_EXTENDED;
    c->vex_map = map;
    insn->opcode = (u8)take(c, 1);
    c->entry = extended_entry(escape, map, insn->opcode);
}

static const struct opcode_entry *entry_0f38(const struct insn *insn)
{
    // F2 makes these CRC32; F3 nothing.
    if ((insn->opcode & 0xfe) != 0xf0 || insn->prefixes & INSN_REP)
        return &other;
    return insn->prefixes & INSN_REPNE ? &opcode_crc32[insn->opcode & 1]
                                       : &opcode_movbe[insn->opcode & 1];
}

static const struct opcode_entry *entry_0f(const struct insn *insn)
{
    bool f3 = insn->prefixes & INSN_REP;

    switch (insn->opcode) {
    case 0xbc:
        return &opcode_bits[0][f3];
    case 0xbd:
        return &opcode_bits[1][f3];
    case 0xb8:
        return &opcode_bits[2][f3];
    default:
        return &opcode_map_0f[insn->opcode];
    }
}

static void take_opcode(struct cursor *c, u8 byte)
{
    struct insn *insn = c->insn;

    if (is_extended(c, byte)) {
        take_extended(c, byte);
        return;
    }
    insn->opcode = byte;
    c->entry = &opcode_map_1[byte];
    if (byte == 0x63 && !insn_mode_is_64(insn->mode))
        c->entry = &opcode_arpl;
    if (byte != 0x0f)
        return;
    insn->opcode = (u8)take(c, 1);
    insn->map = INSN_MAP_0F;
    c->entry = entry_0f(insn);
    if (insn->opcode != 0x38 && insn->opcode != 0x3a)
        return;
    insn->map = insn->opcode == 0x38 ? INSN_MAP_0F38 : INSN_MAP_0F3A;
    insn->opcode = (u8)take(c, 1);
    c->entry = insn->map == INSN_MAP_0F38 ? entry_0f38(insn) : &other_ib;
}

static void memory_16(struct cursor *c, unsigned mod, unsigned rm)
{
    static const u8 base[8] = {3, 3, 5, 5, 6, 7, 5, 3};
    static const u8 index[4] = {6, 7, 6, 7};
    struct insn *insn = c->insn;

    if (mod == 0 && rm == 6) {
        insn->disp = (s64)take_signed(c, 2);
        return;
    }
    insn->base = base[rm];
    if (rm < 4)
        insn->index = index[rm];
    insn->disp = (s64)take_signed(c, mod);
}

static void take_sib(struct cursor *c, unsigned mod)
{
    struct insn *insn = c->insn;
    u8 sib = (u8)take(c, 1);
    u8 index = (u8)(((sib >> 3) & 7) | (insn->rex & REX_X ? 8 : 0));

    insn->scale = (u8)(1 << (sib >> 6));
    if (index != 4)
        insn->index = index;
    if (mod != 0 || (sib & 7) != 5)
        insn->base = (u8)((sib & 7) | (insn->rex & REX_B ? 8 : 0));
}

static void memory_32(struct cursor *c, unsigned mod, unsigned rm)
{
    struct insn *insn = c->insn;
    bool disp32 = mod == 2;

    if (rm == 4)
        take_sib(c, mod);
    else if (mod != 0 || rm != 5)
        insn->base = insn->rm;
    else if (insn_mode_is_64(insn->mode))
        insn->base = INSN_REG_RIP;
    if (mod == 0)
        disp32 = insn->base == INSN_REG_NONE || insn->base == INSN_REG_RIP;
    insn->disp = (s64)take_signed(c, disp32 ? 4 : mod);
}

static void default_segment(struct insn *insn)
{
    if (!(insn->prefixes & INSN_SEGMENT) && (insn->base == 4 || insn->base == 5))
        insn->seg = SEG_SS;
}

static void take_modrm(struct cursor *c)
{
    struct insn *insn = c->insn;
    unsigned mod, rm;

    insn->has_modrm = true;
    insn->modrm = (u8)take(c, 1);
    mod = insn->modrm >> 6;
    rm = insn->modrm & 7;
    insn->reg = (u8)(((insn->modrm >> 3) & 7) | (insn->rex & REX_R ? 8 : 0));
    insn->rm = (u8)(rm | (insn->rex & REX_B ? 8 : 0));
    if (mod == 3 || c->flags & F_NOMEM)
        return;
    insn->has_mem = true;
    if (insn->addr_size == 2)
        memory_16(c, mod, rm);
    else
        memory_32(c, mod, rm);
    default_segment(insn);
}

// The entry of a group is chosen by ModRM.reg, peeked at because it may change what follows.
static void select_group(struct cursor *c)
{
    u8 modrm;

    if (!c->entry || c->entry->op == INSN_NONE) {
        c->status = INSN_INVALID;
        return;
    }
    c->flags = c->entry->flags;
    if (!(c->flags & F_GROUP))
        return;
    modrm = peek(c);
    c->flags &= ~F_GROUP;
    c->entry = &opcode_groups[c->entry->op][(modrm >> 3) & 7];
    c->flags |= c->entry->flags;
    if (c->entry->op == INSN_NONE && c->status == INSN_OK)
        c->status = INSN_INVALID;
}

static void take_far(struct cursor *c)
{
    c->insn->imm = take(c, c->insn->opsize);
    c->insn->imm2 = (u16)take(c, 2);
}

static void take_moffs(struct cursor *c)
{
    c->insn->disp = (s64)take(c, c->insn->addr_size);
    c->insn->has_mem = true;
}

static void take_immediate(struct cursor *c)
{
    struct insn *insn = c->insn;
    u8 size = insn->opsize;

    // clang-format off
    switch (IMM_OF(c->flags)) {
    case IMM_IB: insn->imm = take_signed(c, 1); break;
    case IMM_UB: insn->imm = take(c, 1); break;
    case IMM_IW: insn->imm = take(c, 2); break;
    case IMM_ID: insn->imm = take_signed(c, 4); break;
    case IMM_IZ: insn->imm = take_signed(c, size == 8 ? 4 : size); break;
    case IMM_IV: insn->imm = take_signed(c, size); break;
    case IMM_ONE: insn->imm = 1; break;
    case IMM_FAR: take_far(c); break;
    case IMM_MOFFS: take_moffs(c); break;
    case IMM_ENTER:
        insn->imm = take(c, 2);
        insn->imm2 = (u16)take(c, 1);
        break;
    case IMM_EXTRQ: // SSE4a: two immediate bytes on what is VMREAD without prefix
        if (insn->prefixes & (INSN_OPSIZE | INSN_REPNE))
            insn->imm = take(c, 2);
        break;
    default: break;
    }
    // clang-format on
}

static void set_operands(struct cursor *c)
{
    struct insn *insn = c->insn;

    insn->op = c->entry->op;
    insn->dst = c->entry->dst;
    insn->src = c->entry->src;
    insn->src_size = c->entry->src_size ? c->entry->src_size : insn->opsize;
    // MOVSXD with 66: Intel reads 16 bits, AMD documents no such form.
    if (insn->op == INSN_MOVSX && insn->src_size > insn->opsize)
        insn->op = INSN_OTHER;
    // The register in the opcode's low bits becomes an ordinary register operand.
    if (c->flags & F_OPREG) {
        insn->reg = (u8)((insn->opcode & 7) | (insn->rex & REX_B ? 8 : 0));
        if (insn->op == INSN_XCHG && insn->reg == 0)
            insn->op = insn->prefixes & INSN_REP ? INSN_PAUSE : INSN_NOP;
    }
}

static u8 memory_size(const struct insn *insn)
{
    // clang-format off
    switch (insn->op) {
    case INSN_OTHER: case INSN_LEA: case INSN_NOP: return 0;
    case INSN_MOV_FROM_SREG: case INSN_MOV_TO_SREG: return 2;
    case INSN_CMPXCHG8B: return insn->rex & REX_W ? 16 : 8;
    case INSN_SGDT: case INSN_SIDT: case INSN_LGDT: case INSN_LIDT:
        return (u8)(native_size(insn) + 2);
    case INSN_SMSW: case INSN_LMSW: case INSN_SLDT: case INSN_STR: case INSN_LLDT: case INSN_LTR:
    case INSN_VERR: case INSN_VERW: return 2;
    case INSN_INVLPG: return 0;
    case INSN_BOUND: return (u8)(2 * insn->opsize);
    case INSN_CALL_FAR: case INSN_JMP_FAR: case INSN_LSS: case INSN_LFAR:
        return (u8)(insn->opsize + 2);
    default: return insn->src == OPERAND_RM ? insn->src_size : insn->opsize;
    }
    // clang-format on
}

static void name_operand(struct insn *insn)
{
    // clang-format off
    switch (insn->op) {
    case INSN_SMSW: case INSN_SLDT: case INSN_STR:
        insn->dst = OPERAND_RM;
        break;
    case INSN_LMSW: case INSN_LLDT: case INSN_LTR: case INSN_VERR: case INSN_VERW:
        insn->src = OPERAND_RM;
        insn->src_size = 2;
        break;
    default:
        break;
    }
    // clang-format on
}

// System instructions share opcodes with others; a short list tells them apart.
static void name_special(struct insn *insn)
{
    u8 prefix = insn->prefixes & (INSN_REP | INSN_REPNE | INSN_OPSIZE);

    for (const struct special_entry *s = opcode_special; s->op; s++) {
        if (s->map != insn->map || s->opcode != insn->opcode || (insn->modrm & s->mask) != s->modrm)
            continue;
        if (s->prefix != PREFIX_ANY && s->prefix != prefix)
            continue;
        if (s->where != ANYWHERE && (s->where == MEMORY) != insn->has_mem)
            continue;
        insn->op = s->op;
        name_operand(insn);
        return;
    }
}

static bool evex_width_fits(const struct insn *insn, const struct vector_entry *v)
{
    bool wide = insn->rex & REX_W;

    if (v->opcode >= 0x10 && v->opcode <= 0x2b && v->map == INSN_MAP_0F)
        return wide == (v->pp & 1);
    if (v->opcode == 0xd6 || (v->opcode == 0x7e && v->pp == 2))
        return wide;
    return v->flags & MOVE_GPR || v->opcode == 0x6f || v->opcode == 0x7f || !wide;
}

// Whether the fields of VEX and EVEX are as the move's manual page has them.
static bool vector_form_fits(const struct cursor *c, const struct vector_entry *v)
{
    const struct insn *insn = c->insn;
    bool merges = v->flags & (MOVE_LOW | MOVE_HIGH) && !(v->flags & MOVE_STORE);
    bool scalar = (v->opcode & 0xfe) == 0x10 && v->pp >= 2 && v->map == INSN_MAP_0F;

    if (insn->encoding == INSN_LEGACY)
        return true;
    if (v->flags & MOVE_MMX || insn->encoding == INSN_XOP || (insn->vvvv && !merges))
        return false;
    if (v->size && !scalar && insn->vex_length != 16)
        return false;
    return insn->encoding == INSN_VEX ||
           (!c->masked && !(v->flags & MOVE_NO_EVEX) && evex_width_fits(insn, v));
}

// EVEX scales an 8-bit displacement by the size of these moves' memory operand.
static void name_vector(struct cursor *c, const struct vector_entry *v)
{
    struct insn *insn = c->insn;
    u8 size = v->size;

    if (size == 0)
        size = insn->encoding == INSN_LEGACY ? 16 : insn->vex_length;
    else if (v->flags & MOVE_GPR && insn->rex & REX_W && insn_mode_is_64(insn->mode))
        size = 8;
    insn->op = v->flags & MOVE_STORE ? INSN_VEC_STORE : INSN_VEC_LOAD;
    insn->move = v->flags;
    insn->src_size = insn->mem_size = size;
    insn->reg = (u8)(insn->reg | c->evex_reg);
    if (insn->encoding == INSN_EVEX && insn->modrm >> 6 == 1)
        insn->disp *= size;
}

// MOVUPS, MOVAPS, MOVDQA and their like move between registers, too; the other moves' register
// forms are other instructions, or none.
static bool moves_registers(const struct insn *insn, const struct vector_entry *v)
{
    u8 opcode = v->opcode & 0xfe;

    return v->size == 0 && v->map == INSN_MAP_0F && insn->encoding != INSN_EVEX &&
           (opcode == 0x10 || opcode == 0x28 || v->opcode == 0x6f || v->opcode == 0x7f);
}

static void find_vector(struct cursor *c)
{
    struct insn *insn = c->insn;
    bool legacy = insn->encoding == INSN_LEGACY;
    u8 map = legacy            ? insn->map
             : c->vex_map == 1 ? INSN_MAP_0F
             : c->vex_map == 2 ? INSN_MAP_0F38
                               : 0;
    u8 pp = legacy ? legacy_pp(insn) : c->pp;

    for (const struct vector_entry *v = opcode_vector; v->opcode; v++)
        if (v->opcode == insn->opcode && v->pp == pp && v->map == map && vector_form_fits(c, v) &&
            (insn->has_mem || moves_registers(insn, v))) {
            name_vector(c, v);
            return;
        }
}

static void find_x87(struct insn *insn)
{
    u8 size = opcode_x87[insn->opcode & 7][insn->modrm >> 3 & 7];

    if (insn->map != INSN_MAP_1 || (insn->opcode & 0xf8) != 0xd8 || !size)
        return;
    insn->op = INSN_X87;
    insn->move = size & 0x80 ? MOVE_STORE : 0;
    insn->src_size = insn->mem_size = size & 0x7f;
}

static bool valid_system_register(const struct insn *insn)
{
    if (insn->opcode & 1)
        return insn->reg < 8;
    return insn->reg < 9 && BIT(insn->reg) & (BIT(0) | BIT(2) | BIT(3) | BIT(4) | BIT(8));
}

static bool valid(const struct cursor *c)
{
    const struct insn *insn = c->insn;
    const u8 mandatory = INSN_REP | INSN_REPNE | INSN_OPSIZE;

    if (c->flags & F_MEM && !insn->has_mem)
        return false;
    if (c->flags & F_NP && insn->prefixes & mandatory)
        return false;
    if (insn->prefixes & INSN_LOCK && insn->op != INSN_OTHER &&
        !(c->flags & F_LOCK && insn->has_mem && insn->dst == OPERAND_RM))
        return false;
    if (c->flags & F_NOMEM)
        return valid_system_register(insn);
    // clang-format off
    switch (insn->op) {
    case INSN_MOV_FROM_SREG: return (insn->modrm >> 3 & 7) < 6;
    case INSN_MOV_TO_SREG: return (insn->modrm >> 3 & 7) < 6 && (insn->modrm >> 3 & 7) != SEG_CS;
    case INSN_XBEGIN: return insn->modrm == 0xf8;
    case INSN_SWAPGS: return insn_mode_is_64(insn->mode);
    default: return true;
    }
    // clang-format on
}

static void decode_body(struct cursor *c)
{
    struct insn *insn = c->insn;

    select_group(c);
    if (c->status != INSN_OK)
        return;
    if (c->flags & (insn_mode_is_64(insn->mode) ? F_NO64 : F_ONLY64)) {
        c->status = INSN_INVALID;
        return;
    }
    operand_size(c);
    if (c->flags & F_MODRM)
        take_modrm(c);
    take_immediate(c);
    if (c->status != INSN_OK)
        return;
    set_operands(c);
    if (insn->op == INSN_OTHER || insn->op == INSN_NOP)
        name_special(insn);
    if (insn->has_mem)
        insn->mem_size = memory_size(insn);
    if (insn->has_modrm && insn->op == INSN_OTHER && !(insn->prefixes & INSN_LOCK)) {
        if (insn->has_mem)
            find_x87(insn);
        find_vector(c);
    }
    if (!valid(c))
        c->status = INSN_INVALID;
}

int insn_decode(struct insn *out, const u8 *bytes, unsigned len, enum insn_mode mode)
{
    struct cursor c = {.bytes = bytes, .len = len, .insn = out};
    u8 byte;

    *out = (struct insn){
        .mode = (u8)mode,
        .seg = SEG_DS,
        .base = INSN_REG_NONE,
        .index = INSN_REG_NONE,
        .scale = 1,
    };
    byte = take_prefixes(&c);
    address_size(out);
    if (c.status == INSN_OK)
        take_opcode(&c, byte);
    if (c.status == INSN_OK)
        decode_body(&c);
    out->length = (u8)c.pos;
    return c.status;
}

u64 insn_offset(const struct insn *insn, const u64 gpr[16], u64 next_rip)
{
    u64 offset = (u64)insn->disp;

    if (insn->base == INSN_REG_RIP)
        offset += next_rip;
    else if (insn->base != INSN_REG_NONE)
        offset += gpr[insn->base & 15];
    if (insn->index != INSN_REG_NONE)
        offset += gpr[insn->index & 15] * insn->scale;
    if (insn->addr_size < 8)
        offset &= (1ull << (8 * insn->addr_size)) - 1;
    return offset;
}
