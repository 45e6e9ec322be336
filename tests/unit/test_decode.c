// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/decode.c core/decode_table.c
// unit-libs: -lZydis
//
// The decoder against an independent one (Zydis): an exhaustive sweep over maps, opcodes, ModRM
// bytes and the prefixes that matter, then random and mutated instructions with a fixed seed, in
// all code sizes. What Zydis calls valid must have the same length here; what this decoder names
// must be valid there, and must be the same instruction with the same sizes and memory operand.
// Then hand cases.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <Zydis/Zydis.h>

#include <nestor/decode.h>

#include "rng.h"

#define BYTES (INSN_MAX_LENGTH + 1)

static ZydisDecoder decoders[4];
static unsigned long compared, both_valid, operands_compared, mismatches;

static u64 rng(void)
{
    return random_u64() >> 8;
}

static int setup(void **state)
{
    (void)state;
    ZydisDecoderInit(&decoders[INSN_MODE_16], ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    ZydisDecoderInit(&decoders[INSN_MODE_32], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    for (int mode = INSN_MODE_64; mode <= INSN_MODE_64_AMD; mode++)
        ZydisDecoderInit(&decoders[mode], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderEnableMode(&decoders[INSN_MODE_64_AMD], ZYDIS_DECODER_MODE_AMD_BRANCHES, ZYAN_TRUE);
    return 0;
}

// The beginning of the mnemonic that Zydis must give; NULL: a name is not compared.
// clang-format off
static const char *const names[INSN_OP_COUNT] = {
    [INSN_ADD] = "add", [INSN_OR] = "or", [INSN_ADC] = "adc", [INSN_SBB] = "sbb",
    [INSN_AND] = "and",
    [INSN_SUB] = "sub", [INSN_XOR] = "xor", [INSN_CMP] = "cmp", [INSN_ROL] = "rol",
    [INSN_ROR] = "ror",
    [INSN_RCL] = "rcl", [INSN_RCR] = "rcr", [INSN_SHL] = "shl", [INSN_SHR] = "shr",
    [INSN_SAL] = "shl",
    [INSN_SAR] = "sar", [INSN_BT] = "bt", [INSN_BTS] = "bts", [INSN_BTR] = "btr",
    [INSN_BTC] = "btc",
    [INSN_TEST] = "test", [INSN_NOT] = "not", [INSN_NEG] = "neg", [INSN_MUL] = "mul",
    [INSN_IMUL1] = "imul", [INSN_DIV] = "div", [INSN_IDIV] = "idiv", [INSN_IMUL2] = "imul",
    [INSN_IMUL3] = "imul", [INSN_INC] = "inc", [INSN_DEC] = "dec", [INSN_SHLD] = "shld",
    [INSN_SHRD] = "shrd", [INSN_BSWAP] = "bswap", [INSN_XCHG] = "xchg", [INSN_CMPXCHG] = "cmpxchg",
    [INSN_XADD] = "xadd", [INSN_CMPXCHG8B] = "cmpxchg", [INSN_MOV] = "mov", [INSN_MOVZX] = "movzx",
    [INSN_MOVSX] = "movsx", [INSN_MOVBE] = "movbe", [INSN_MOVNTI] = "movnti", [INSN_LEA] = "lea",
    [INSN_CMOVCC] = "cmov", [INSN_SETCC] = "set", [INSN_MOV_FROM_SREG] = "mov",
    [INSN_MOV_TO_SREG] = "mov", [INSN_PUSH] = "push", [INSN_POP] = "pop", [INSN_PUSH_SREG] = "push",
    [INSN_POP_SREG] = "pop", [INSN_PUSHF] = "pushf", [INSN_POPF] = "popf", [INSN_PUSHA] = "pusha",
    [INSN_POPA] = "popa", [INSN_ENTER] = "enter", [INSN_LEAVE] = "leave", [INSN_CALL] = "call",
    [INSN_JMP] = "jmp", [INSN_CALL_IND] = "call", [INSN_JMP_IND] = "jmp", [INSN_RET] = "ret",
    [INSN_JCC] = "j", [INSN_LOOPNE] = "loopne", [INSN_LOOPE] = "loope", [INSN_LOOP] = "loop",
    [INSN_JCXZ] = "j", [INSN_CALL_FAR] = "call", [INSN_JMP_FAR] = "jmp", [INSN_RET_FAR] = "ret",
    [INSN_IRET] = "iret", [INSN_INT] = "int", [INSN_INT3] = "int3", [INSN_INTO] = "into",
    [INSN_INT1] = "int1", [INSN_MOVS] = "movs", [INSN_CMPS] = "cmps", [INSN_STOS] = "stos",
    [INSN_LODS] = "lods", [INSN_SCAS] = "scas", [INSN_INS] = "ins", [INSN_OUTS] = "outs",
    [INSN_IN] = "in", [INSN_OUT] = "out", [INSN_CBW] = "c", [INSN_CWD] = "c", [INSN_LAHF] = "lahf",
    [INSN_SAHF] = "sahf", [INSN_XLAT] = "xlat", [INSN_CMC] = "cmc", [INSN_CLC] = "clc",
    [INSN_STC] = "stc", [INSN_CLI] = "cli", [INSN_STI] = "sti", [INSN_CLD] = "cld",
    [INSN_STD] = "std",
    [INSN_PAUSE] = "pause", [INSN_HLT] = "hlt", [INSN_UD] = "ud", [INSN_MOV_FROM_CR] = "mov",
    [INSN_MOV_TO_CR] = "mov", [INSN_MOV_FROM_DR] = "mov", [INSN_MOV_TO_DR] = "mov",
    [INSN_CLTS] = "clts", [INSN_LMSW] = "lmsw", [INSN_SMSW] = "smsw", [INSN_CPUID] = "cpuid",
    [INSN_RDMSR] = "rdmsr", [INSN_WRMSR] = "wrmsr", [INSN_RDTSC] = "rdtsc",
    [INSN_RDTSCP] = "rdtscp",
    [INSN_RDPMC] = "rdpmc", [INSN_XGETBV] = "xgetbv", [INSN_XSETBV] = "xsetbv",
    [INSN_INVD] = "invd",
    [INSN_WBINVD] = "wb", [INSN_INVLPG] = "invlpg", [INSN_INVPCID] = "invpcid",
    [INSN_MONITOR] = "monitor", [INSN_MWAIT] = "mwait", [INSN_RSM] = "rsm", [INSN_SGDT] = "sgdt",
    [INSN_SIDT] = "sidt", [INSN_LGDT] = "lgdt", [INSN_LIDT] = "lidt", [INSN_SLDT] = "sldt",
    [INSN_STR] = "str", [INSN_LLDT] = "lldt", [INSN_LTR] = "ltr", [INSN_SYSCALL] = "syscall",
    [INSN_SYSRET] = "sysret", [INSN_SYSENTER] = "sysenter", [INSN_SYSEXIT] = "sysexit",
    [INSN_SWAPGS] = "swapgs", [INSN_LSS] = "lss", [INSN_LFAR] = "l", [INSN_XBEGIN] = "x", [INSN_RDRAND] = "rdrand",
    [INSN_RDSEED] = "rdseed", [INSN_XSAVES] = "xsaves", [INSN_XRSTORS] = "xrstors",
    [INSN_GETSEC] = "getsec", [INSN_TPAUSE] = "tpause", [INSN_UMWAIT] = "umwait",
    [INSN_VMCALL] = "vmcall", [INSN_VMLAUNCH] = "vmlaunch", [INSN_VMRESUME] = "vmresume",
    [INSN_VMXOFF] = "vmxoff", [INSN_VMXON] = "vmxon", [INSN_VMPTRLD] = "vmptrld",
    [INSN_VMPTRST] = "vmptrst", [INSN_VMCLEAR] = "vmclear", [INSN_VMREAD] = "vmread",
    [INSN_VMWRITE] = "vmwrite", [INSN_VMFUNC] = "vmfunc", [INSN_INVEPT] = "invept",
    [INSN_INVVPID] = "invvpid", [INSN_VMRUN] = "vmrun", [INSN_VMMCALL] = "vmmcall",
    [INSN_VMLOAD] = "vmload", [INSN_VMSAVE] = "vmsave", [INSN_STGI] = "stgi", [INSN_CLGI] = "clgi",
    [INSN_SKINIT] = "skinit", [INSN_INVLPGA] = "invlpga",
    [INSN_BSF] = "bsf", [INSN_BSR] = "bsr", [INSN_TZCNT] = "tzcnt", [INSN_LZCNT] = "lzcnt",
    [INSN_POPCNT] = "popcnt", [INSN_CRC32] = "crc32", [INSN_AAA] = "aaa", [INSN_AAS] = "aas",
    [INSN_DAA] = "daa", [INSN_DAS] = "das", [INSN_AAM] = "aam", [INSN_AAD] = "aad",
    [INSN_BOUND] = "bound", [INSN_ARPL] = "arpl", [INSN_LAR] = "lar", [INSN_LSL] = "lsl",
    [INSN_VERR] = "verr", [INSN_VERW] = "verw", [INSN_X87] = "f",
    // MOVLPS and the like; VMOV..; LDDQU
    [INSN_VEC_LOAD] = "", [INSN_VEC_STORE] = "",
};
// clang-format on

static void report(const char *what, const u8 *bytes, int mode, const struct insn *insn,
                   const ZydisDecodedInstruction *z, ZyanStatus status, int ours)
{
    static u8 seen[5][256]; // one line for each opcode is enough to read

    mismatches++;
    if (seen[insn->map][insn->opcode]++)
        return;
    printf("%s: mode %d ours %d op %u len %u; zydis %s len %u %s:", what, mode, ours, insn->op,
           insn->length, ZYAN_SUCCESS(status) ? "valid" : "invalid", z->length,
           ZYAN_SUCCESS(status) ? ZydisMnemonicGetString(z->mnemonic) : "-");
    for (int i = 0; i < BYTES; i++)
        printf(" %02x", bytes[i]);
    printf("\n");
}

static u8 zydis_register(ZydisRegister reg)
{
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR16:
    case ZYDIS_REGCLASS_GPR32:
    case ZYDIS_REGCLASS_GPR64:
        return (u8)ZydisRegisterGetId(reg);
    case ZYDIS_REGCLASS_IP:
        return INSN_REG_RIP;
    default:
        return INSN_REG_NONE;
    }
}

static u8 zydis_segment(ZydisRegister reg)
{
    switch (reg) {
    case ZYDIS_REGISTER_ES:
        return SEG_ES;
    case ZYDIS_REGISTER_CS:
        return SEG_CS;
    case ZYDIS_REGISTER_SS:
        return SEG_SS;
    case ZYDIS_REGISTER_DS:
        return SEG_DS;
    case ZYDIS_REGISTER_FS:
        return SEG_FS;
    case ZYDIS_REGISTER_GS:
        return SEG_GS;
    default:
        return 0xff;
    }
}

static bool is_port(const struct insn *insn)
{
    return insn->op >= INSN_INS && insn->op <= INSN_OUT;
}

// With the NOPs, MOV SREG, ports under REX.W and the address-only forms Zydis's operand width means
// something else.
static bool width_comparable(const struct insn *insn)
{
    return names[insn->op] && insn->op < INSN_MOV_FROM_CR && insn->op != INSN_NOP &&
           insn->op != INSN_PAUSE && insn->op != INSN_UD && insn->op != INSN_CMPXCHG8B &&
           insn->op != INSN_XBEGIN && insn->op != INSN_LSS && insn->op != INSN_MOV_FROM_SREG &&
           insn->op != INSN_MOV_TO_SREG && insn->op != INSN_CRC32 &&
           (insn->op < INSN_AAA || insn->op > INSN_X87) && insn->op != INSN_XLAT &&
           insn->op != INSN_MOVNTI && !(is_port(insn) && insn->rex & 8);
}

static const char *compare_memory(const struct insn *insn, const ZydisDecodedOperand *o)
{
    u8 scale = o->mem.scale ? o->mem.scale : 1;
    u64 mask = insn->addr_size == 8 ? ~0ull : (1ull << (8 * insn->addr_size)) - 1;

    if (!insn->has_mem)
        return "has no memory operand";
    if (insn->base != zydis_register(o->mem.base))
        return "base";
    if (insn->index != zydis_register(o->mem.index))
        return "index";
    if (insn->index != INSN_REG_NONE && insn->scale != scale)
        return "scale";
    if (o->mem.disp.has_displacement && (((u64)insn->disp ^ (u64)o->mem.disp.value) & mask))
        return "displacement";
    if (!o->mem.disp.has_displacement && insn->disp)
        return "displacement from nowhere";
    if (insn->op != INSN_LEA && insn->seg != zydis_segment(o->mem.segment))
        return "segment";
    if (insn->op < INSN_MOV_FROM_CR && insn->op != INSN_UD && insn->mem_size &&
        insn->mem_size * 8 != o->size)
        return "memory size";
    return NULL;
}

static const char *compare_immediate(const struct insn *insn, const ZydisDecodedOperand *o)
{
    u64 mask = insn->opsize == 8 ? ~0ull : (1ull << (8 * insn->opsize)) - 1;

    if (insn->op >= INSN_MOV_FROM_CR || insn->op == INSN_ENTER)
        return NULL;
    if ((insn->imm ^ o->imm.value.u) & mask)
        return "immediate";
    return NULL;
}

static const char *compare_described(const struct insn *insn, const ZydisDecodedInstruction *z,
                                     const ZydisDecodedOperand *ops)
{
    const char *error = NULL, *mnemonic = ZydisMnemonicGetString(z->mnemonic);
    bool memory = false;

    if (!names[insn->op])
        return NULL;
    if (strncmp(mnemonic, names[insn->op], strlen(names[insn->op])))
        return "mnemonic";
    if (insn->addr_size * 8 != z->address_width)
        return "address size";
    if (width_comparable(insn) && insn->opsize * 8 != z->operand_width)
        return "operand size";
    for (int i = 0; i < z->operand_count && !error; i++) {
        const ZydisDecodedOperand *o = &ops[i];

        if (o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN)
            continue;
        if (o->type == ZYDIS_OPERAND_TYPE_MEMORY && o->encoding != ZYDIS_OPERAND_ENCODING_NONE) {
            memory = true;
            error = compare_memory(insn, o);
        } else if (o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
            error = compare_immediate(insn, o);
        }
    }
    operands_compared++;
    if (!error && insn->has_mem && !memory)
        error = "memory operand from nowhere";
    return error;
}

// Where Zydis 4.0 is known to differ from the manuals or the silicon. Each names its reason.
static bool accepted_difference(const struct insn *insn, const ZydisDecodedInstruction *z, int mode,
                                const char *error)
{
    // Knights Corner's mask branches in the VEX space; on every other CPU these are mask
    // operations.
    if (z->mnemonic == ZYDIS_MNEMONIC_JKZD || z->mnemonic == ZYDIS_MNEMONIC_JKNZD)
        return true;
    // F3 REX.B 90 exchanges r8 (seen on an AMD EPYC); Zydis calls it PAUSE.
    if (z->mnemonic == ZYDIS_MNEMONIC_PAUSE && insn->op == INSN_XCHG && insn->rex & 1)
        return true;
    // AMD obeys 66 on short branches and RET too (seen on an AMD EPYC).
    if (mode == INSN_MODE_64_AMD && insn->op >= INSN_CALL && insn->op <= INSN_JCXZ &&
        insn->prefixes & INSN_OPSIZE && !strcmp(error, "operand size"))
        return true;
    // SIB without a base: REX.B does not make it r13 (SDM volume 2 table 2-3); only with 67 in
    // Zydis.
    return mode >= INSN_MODE_64 && insn->addr_size == 4 && insn->rex & 1 &&
           insn->base == INSN_REG_NONE && !strcmp(error, "base");
}

static void compare(const u8 *bytes, int mode)
{
    ZydisDecodedInstruction z = {0};
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    struct insn insn;
    ZyanStatus status = ZydisDecoderDecodeFull(&decoders[mode], bytes, BYTES, &z, ops);
    int ours = insn_decode(&insn, bytes, BYTES, (enum insn_mode)mode);
    const char *error = NULL;

    compared++;
    if (ours == INSN_TRUNCATED)
        error = "truncated with 16 bytes";
    else if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG && ours == INSN_OK)
        error = "too long";
    else if (ZYAN_SUCCESS(status) && ours != INSN_OK)
        error = "refused";
    else if (!ZYAN_SUCCESS(status) && ours == INSN_OK && insn.op != INSN_OTHER &&
             insn.op != INSN_NOP)
        error = "accepted";
    else if (ZYAN_SUCCESS(status) && insn.length != z.length)
        error = "length";
    else if (ZYAN_SUCCESS(status)) {
        both_valid++;
        error = compare_described(&insn, &z, ops);
    }
    if (error && !accepted_difference(&insn, &z, mode, error))
        report(error, bytes, mode, &insn, &z, status, ours);
}

static void finish(const char *name)
{
    printf("%s: %lu compared, %lu valid in both, %lu operand descriptions\n", name, compared,
           both_valid, operands_compared);
    assert_int_equal(mismatches, 0);
    assert_true(both_valid > compared / 4);
    compared = both_valid = operands_compared = 0;
}

static unsigned put_map(u8 *bytes, unsigned map)
{
    static const u8 escapes[4][2] = {{0}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
    unsigned len = map == 0 ? 0 : map == 1 ? 1 : 2;

    memcpy(bytes, escapes[map], len);
    return len;
}

static void sweep_prefix(const u8 *prefix, unsigned count, int mode)
{
    u8 bytes[BYTES];

    for (unsigned n = 0; n < 4 * 256 * 256; n++) {
        unsigned len = count;

        for (unsigned i = 0; i < BYTES; i++)
            bytes[i] = (u8)rng();
        memcpy(bytes, prefix, count);
        len += put_map(bytes + len, n >> 16);
        bytes[len] = (u8)(n >> 8);
        bytes[len + 1] = (u8)n;
        compare(bytes, mode);
    }
}

static void test_sweep(void **state)
{
    static const u8 prefixes[][4] = {{0}, {1, 0x66}, {1, 0xf3}, {1, 0xf0}, {1, 0x67}, {1, 0xf2}};

    (void)state;
    for (int mode = INSN_MODE_16; mode <= INSN_MODE_64; mode++)
        for (unsigned p = 0; p < ARRAY_SIZE(prefixes); p++)
            sweep_prefix(prefixes[p] + 1, prefixes[p][0], mode);
    sweep_prefix((const u8[]){0x48}, 1, INSN_MODE_64);
    sweep_prefix((const u8[]){0x66, 0x45}, 2, INSN_MODE_64);
    finish("sweep");
}

// Prefixes, perhaps REX, an opcode of one of the maps or an extended escape, then noise.
static void random_insn(u8 *bytes)
{
    static const u8 prefixes[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65,
                                  0x66, 0x66, 0x67, 0xf0, 0xf2, 0xf3};
    static const u8 escapes[] = {0xc4, 0xc5, 0x62, 0x8f};
    unsigned len = 0;

    for (unsigned i = 0; i < BYTES; i++)
        bytes[i] = (u8)rng();
    while (rng() % 3 == 0 && len < 8)
        bytes[len++] = prefixes[rng() % sizeof(prefixes)];
    if (rng() % 3 == 0)
        bytes[len++] = (u8)(0x40 | (rng() & 15));
    if (rng() % 8 == 0)
        bytes[len] = escapes[rng() % 4];
    else
        put_map(bytes + len, rng() % 4);
}

static void test_random(void **state)
{
    u8 bytes[BYTES];

    (void)state;
    for (unsigned n = 0; n < 1200000; n++) {
        random_insn(bytes);
        compare(bytes, n & 3);
    }
    finish("random");
}

static void test_mutated(void **state)
{
    u8 bytes[BYTES];

    (void)state;
    for (unsigned n = 0; n < 800000; n++) {
        if (n % 16 == 0)
            random_insn(bytes);
        bytes[rng() % 6] ^= (u8)(1 << (rng() & 7));
        compare(bytes, (n >> 4) & 3);
    }
    finish("mutated");
}

// VEX.W and EVEX.W tell the width of a general register and, in an EVEX move, the element's.
static void test_extended_width(void **state)
{
    static const struct {
        u8 bytes[7], op, size;
    } cases[] = {
        {{0xc4, 0xe1, 0x79, 0x6e, 0x00}, INSN_VEC_LOAD, 4}, // vmovd (%rax), %xmm0
        {{0xc4, 0xe1, 0xf9, 0x6e, 0x00}, INSN_VEC_LOAD, 8},
        {{0xc4, 0xe1, 0x79, 0x7e, 0x00}, INSN_VEC_STORE, 4},
        {{0x62, 0xf1, 0x7c, 0x48, 0x10, 0x00}, INSN_VEC_LOAD, 64}, // vmovups
        {{0x62, 0xf1, 0xfc, 0x48, 0x10, 0x00}, INSN_OTHER, 0},     // W1 is not its form
        {{0x62, 0xf1, 0xfd, 0x48, 0x10, 0x00}, INSN_VEC_LOAD, 64}, // vmovupd
        {{0x62, 0xf1, 0x7d, 0x48, 0x10, 0x00}, INSN_OTHER, 0},
    };
    struct insn insn;

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_int_equal(insn_decode(&insn, cases[i].bytes, 7, INSN_MODE_64), INSN_OK);
        assert_int_equal(insn.op, cases[i].op);
        assert_int_equal(insn.mem_size, cases[i].size);
    }
}

// Every valid instruction is TRUNCATED at each shorter length, and the same with exactly its bytes.
static void test_truncated(void **state)
{
    u8 bytes[BYTES];
    struct insn insn, again;

    (void)state;
    for (unsigned n = 0; n < 100000; n++) {
        int mode = n & 3;

        random_insn(bytes);
        if (insn_decode(&insn, bytes, BYTES, (enum insn_mode)mode) != INSN_OK)
            continue;
        for (unsigned len = 0; len < insn.length; len++) {
            u8 exact[BYTES];

            memcpy(exact + BYTES - len, bytes, len); // so that ASan sees a read beyond len
            assert_int_equal(insn_decode(&again, exact + BYTES - len, len, (enum insn_mode)mode),
                             INSN_TRUNCATED);
        }
        memset(&again, 0, sizeof(again));
        assert_int_equal(insn_decode(&again, bytes, insn.length, (enum insn_mode)mode), INSN_OK);
        assert_int_equal(again.length, insn.length);
        assert_int_equal(again.op, insn.op);
        assert_int_equal(again.disp, insn.disp);
    }
}

static struct insn decoded(enum insn_mode mode, const char *text, unsigned len)
{
    struct insn insn;

    assert_int_equal(insn_decode(&insn, (const u8 *)text, len, mode), INSN_OK);
    assert_int_equal(insn.length, len);
    return insn;
}

#define DECODED(mode, text) decoded(mode, text, sizeof(text) - 1)

static void test_length_limit(void **state)
{
    u8 bytes[20];
    struct insn insn;

    (void)state;
    memset(bytes, 0x66, sizeof(bytes));
    bytes[14] = 0x90;
    assert_int_equal(insn_decode(&insn, bytes, 20, INSN_MODE_64), INSN_OK);
    assert_int_equal(insn.length, 15);
    bytes[14] = 0x66;
    bytes[15] = 0x90;
    assert_int_equal(insn_decode(&insn, bytes, 20, INSN_MODE_64), INSN_TOO_LONG);
    assert_int_equal(insn_decode(&insn, bytes, 15, INSN_MODE_64), INSN_TOO_LONG);
    assert_int_equal(insn_decode(&insn, bytes, 14, INSN_MODE_64), INSN_TRUNCATED);
}

static void test_hand_cases(void **state)
{
    u64 gpr[16] = {[0] = 0x10, [1] = 0x100, [3] = 0xffff, [5] = 7, [6] = 2};
    struct insn insn;

    (void)state;
    insn = DECODED(INSN_MODE_64, "\x48\x8b\x05\x78\x56\x34\x12"); // mov rax, [rip + 0x12345678]
    assert_int_equal(insn.op, INSN_MOV);
    assert_int_equal(insn.base, INSN_REG_RIP);
    assert_int_equal(insn_offset(&insn, gpr, 0x1000), 0x12346678);
    insn = DECODED(INSN_MODE_16, "\x8b\x00"); // mov ax, [bx + si], wraps at 64 KiB
    assert_int_equal(insn_offset(&insn, gpr, 0), 1);
    insn = DECODED(INSN_MODE_16, "\x8b\x46\xff"); // mov ax, [bp - 1]
    assert_int_equal(insn.seg, SEG_SS);
    assert_int_equal(insn_offset(&insn, gpr, 0), 6);
    insn = DECODED(INSN_MODE_64, "\x64\x2e\x8b\x04\x88"); // mov eax, fs:[rax + rcx * 4]; CS ignored
    assert_int_equal(insn.seg, SEG_FS);
    assert_int_equal(insn_offset(&insn, gpr, 0), 0x410);
    insn = DECODED(INSN_MODE_64, "\x40\x66\x8b\x00"); // a REX before another prefix does not count
    assert_int_equal(insn.rex, 0);
    insn = DECODED(INSN_MODE_64, "\x66\xe9\x00\x00\x00\x00"); // Intel ignores 66 here, AMD obeys it
    assert_int_equal(insn.opsize, 8);
    insn = DECODED(INSN_MODE_64_AMD, "\x66\xe9\x00\x00");
    assert_int_equal(insn.opsize, 2);
    insn = DECODED(INSN_MODE_64, "\xf3\x0f\x1e\xfa"); // ENDBR64
    assert_int_equal(insn.op, INSN_NOP);
    assert_int_equal(insn_decode(&insn, (const u8 *)"\xf0\x89\xc0", 3, INSN_MODE_64), INSN_INVALID);
    assert_int_equal(insn_decode(&insn, (const u8 *)"\xf0\x89\x00", 3, INSN_MODE_64), INSN_INVALID);
    assert_int_equal(insn_decode(&insn, (const u8 *)"\x06", 1, INSN_MODE_64), INSN_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hand_cases),     cmocka_unit_test(test_length_limit),
        cmocka_unit_test(test_extended_width), cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_sweep),          cmocka_unit_test(test_random),
        cmocka_unit_test(test_mutated),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
