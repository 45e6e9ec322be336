// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The decoder's opcode maps as data, in the order of Intel SDM volume 2 appendix A.2 to A.4 and AMD
// APM volume 3 appendix A. A hole is an invalid opcode.

#include "decode_table.h"

// clang-format off
#define E(o, d, s, f)      {.op = INSN_##o, .dst = OPERAND_##d, .src = OPERAND_##s, .flags = (f)}
#define EX(o, d, s, n, f)                                                                   \
    {.op = INSN_##o, .dst = OPERAND_##d, .src = OPERAND_##s, .src_size = (n), .flags = (f)}
#define G(group, f)        {.op = GROUP_##group, .flags = (f) | F_GROUP | M}
#define OTHER(f)           {.op = INSN_OTHER, .flags = (f)}
#define BARE(o)            {.op = INSN_##o}
#define M                  F_MODRM
#define B                  F_BYTE
#define R                  F_OPREG

#define ALU(n, o, lock)                                                                    \
    [n] = E(o, RM, REG, M | B | (lock)), [n + 1] = E(o, RM, REG, M | (lock)),              \
    [n + 2] = E(o, REG, RM, M | B | (lock)), [n + 3] = E(o, REG, RM, M | (lock)),          \
    [n + 4] = E(o, ACC, IMM, B | IMM(IZ)), [n + 5] = E(o, ACC, IMM, IMM(IZ))

const struct opcode_entry opcode_map_1[256] = {
    ALU(0x00, ADD, F_LOCK), ALU(0x08, OR, F_LOCK), ALU(0x10, ADC, F_LOCK), ALU(0x18, SBB, F_LOCK),
    ALU(0x20, AND, F_LOCK), ALU(0x28, SUB, F_LOCK), ALU(0x30, XOR, F_LOCK), ALU(0x38, CMP, 0),
    [0x06] = E(PUSH_SREG, NONE, SREG, F_NO64), [0x07] = E(POP_SREG, SREG, NONE, F_NO64),
    [0x0e] = E(PUSH_SREG, NONE, SREG, F_NO64),
    [0x16] = E(PUSH_SREG, NONE, SREG, F_NO64), [0x17] = E(POP_SREG, SREG, NONE, F_NO64),
    [0x1e] = E(PUSH_SREG, NONE, SREG, F_NO64), [0x1f] = E(POP_SREG, SREG, NONE, F_NO64),
    [0x27] = E(DAA, NONE, NONE, B | F_NO64), [0x2f] = E(DAS, NONE, NONE, B | F_NO64),
    [0x37] = E(AAA, NONE, NONE, B | F_NO64), [0x3f] = E(AAS, NONE, NONE, B | F_NO64),
    [0x40 ... 0x47] = E(INC, REG, NONE, R | F_NO64),
    [0x48 ... 0x4f] = E(DEC, REG, NONE, R | F_NO64),
    [0x50 ... 0x57] = E(PUSH, NONE, REG, R | F_STACK),
    [0x58 ... 0x5f] = E(POP, REG, NONE, R | F_STACK),
    [0x60] = E(PUSHA, NONE, NONE, F_NO64), [0x61] = E(POPA, NONE, NONE, F_NO64),
    [0x62] = E(BOUND, REG, RM, M | F_MEM | F_NO64),
    [0x63] = EX(MOVSX, REG, RM, 4, M | F_ONLY64),
    [0x68] = E(PUSH, NONE, IMM, F_STACK | IMM(IZ)), [0x6a] = E(PUSH, NONE, IMM, F_STACK | IMM(IB)),
    [0x69] = E(IMUL3, REG, RM, M | IMM(IZ)), [0x6b] = E(IMUL3, REG, RM, M | IMM(IB)),
    [0x6c] = E(INS, NONE, NONE, B), [0x6d] = E(INS, NONE, NONE, F_MAX4),
    [0x6e] = E(OUTS, NONE, NONE, B), [0x6f] = E(OUTS, NONE, NONE, F_MAX4),
    [0x70 ... 0x7f] = E(JCC, NONE, IMM, F_BRANCH | IMM(IB)),
    [0x80] = G(ALU, B | IMM(IZ)), [0x81] = G(ALU, IMM(IZ)),
    [0x82] = G(ALU, B | IMM(IZ) | F_NO64), [0x83] = G(ALU, IMM(IB)),
    [0x84] = E(TEST, RM, REG, M | B), [0x85] = E(TEST, RM, REG, M),
    [0x86] = E(XCHG, RM, REG, M | B | F_LOCK), [0x87] = E(XCHG, RM, REG, M | F_LOCK),
    [0x88] = E(MOV, RM, REG, M | B), [0x89] = E(MOV, RM, REG, M),
    [0x8a] = E(MOV, REG, RM, M | B), [0x8b] = E(MOV, REG, RM, M),
    [0x8c] = E(MOV_FROM_SREG, RM, SREG, M), [0x8d] = E(LEA, REG, RM, M | F_MEM),
    [0x8e] = E(MOV_TO_SREG, SREG, RM, M), [0x8f] = G(POP, F_STACK),
    [0x90 ... 0x97] = E(XCHG, REG, ACC, R),
    [0x98] = BARE(CBW), [0x99] = BARE(CWD), [0x9b] = OTHER(0),
    [0x9a] = E(CALL_FAR, NONE, IMM, F_NO64 | IMM(FAR)),
    [0x9c] = E(PUSHF, NONE, NONE, F_STACK), [0x9d] = E(POPF, NONE, NONE, F_STACK),
    [0x9e] = BARE(SAHF), [0x9f] = BARE(LAHF),
    [0xa0] = E(MOV, ACC, RM, B | IMM(MOFFS)), [0xa1] = E(MOV, ACC, RM, IMM(MOFFS)),
    [0xa2] = E(MOV, RM, ACC, B | IMM(MOFFS)), [0xa3] = E(MOV, RM, ACC, IMM(MOFFS)),
    [0xa4] = E(MOVS, NONE, NONE, B), [0xa5] = BARE(MOVS),
    [0xa6] = E(CMPS, NONE, NONE, B), [0xa7] = BARE(CMPS),
    [0xa8] = E(TEST, ACC, IMM, B | IMM(IZ)), [0xa9] = E(TEST, ACC, IMM, IMM(IZ)),
    [0xaa] = E(STOS, NONE, NONE, B), [0xab] = BARE(STOS),
    [0xac] = E(LODS, NONE, NONE, B), [0xad] = BARE(LODS),
    [0xae] = E(SCAS, NONE, NONE, B), [0xaf] = BARE(SCAS),
    [0xb0 ... 0xb7] = E(MOV, REG, IMM, R | B | IMM(IV)),
    [0xb8 ... 0xbf] = E(MOV, REG, IMM, R | IMM(IV)),
    [0xc0] = G(SHIFT_IMM, B | IMM(UB)), [0xc1] = G(SHIFT_IMM, IMM(UB)),
    [0xc2] = E(RET, NONE, IMM, F_BRANCH | IMM(IW)), [0xc3] = E(RET, NONE, NONE, F_BRANCH),
    [0xc4 ... 0xc5] = E(LFAR, REG, RM, M | F_MEM | F_NO64),
    [0xc6] = G(MOV, B | IMM(IZ)), [0xc7] = G(MOV, IMM(IZ)),
    [0xc8] = E(ENTER, NONE, NONE, F_STACK | IMM(ENTER)), [0xc9] = E(LEAVE, NONE, NONE, F_STACK),
    [0xca] = E(RET_FAR, NONE, IMM, IMM(IW)), [0xcb] = BARE(RET_FAR),
    [0xcc] = BARE(INT3), [0xcd] = E(INT, NONE, IMM, IMM(UB)),
    [0xce] = E(INTO, NONE, NONE, F_NO64), [0xcf] = BARE(IRET),
    [0xd0] = G(SHIFT_IMM, B | IMM(ONE)), [0xd1] = G(SHIFT_IMM, IMM(ONE)),
    [0xd2] = G(SHIFT_CL, B), [0xd3] = G(SHIFT_CL, 0),
    [0xd4] = E(AAM, NONE, IMM, B | F_NO64 | IMM(UB)),
    [0xd5] = E(AAD, NONE, IMM, B | F_NO64 | IMM(UB)), [0xd6] = OTHER(F_NO64),
    [0xd7] = E(XLAT, NONE, NONE, B),
    [0xd8 ... 0xdf] = OTHER(M),
    [0xe0] = E(LOOPNE, NONE, IMM, F_BRANCH | IMM(IB)),
    [0xe1] = E(LOOPE, NONE, IMM, F_BRANCH | IMM(IB)),
    [0xe2] = E(LOOP, NONE, IMM, F_BRANCH | IMM(IB)),
    [0xe3] = E(JCXZ, NONE, IMM, F_BRANCH | IMM(IB)),
    [0xe4] = E(IN, ACC, IMM, B | IMM(UB)), [0xe5] = E(IN, ACC, IMM, F_MAX4 | IMM(UB)),
    [0xe6] = E(OUT, NONE, IMM, B | IMM(UB)), [0xe7] = E(OUT, NONE, IMM, F_MAX4 | IMM(UB)),
    [0xe8] = E(CALL, NONE, IMM, F_BRANCH | IMM(IZ)), [0xe9] = E(JMP, NONE, IMM, F_BRANCH | IMM(IZ)),
    [0xea] = E(JMP_FAR, NONE, IMM, F_NO64 | IMM(FAR)),
    [0xeb] = E(JMP, NONE, IMM, F_BRANCH | IMM(IB)),
    [0xec] = E(IN, ACC, NONE, B), [0xed] = E(IN, ACC, NONE, F_MAX4),
    [0xee] = E(OUT, NONE, NONE, B), [0xef] = E(OUT, NONE, NONE, F_MAX4),
    [0xf1] = BARE(INT1), [0xf4] = BARE(HLT), [0xf5] = BARE(CMC),
    [0xf6] = G(F6, B), [0xf7] = G(F6, 0),
    [0xf8] = BARE(CLC), [0xf9] = BARE(STC), [0xfa] = BARE(CLI), [0xfb] = BARE(STI),
    [0xfc] = BARE(CLD), [0xfd] = BARE(STD),
    [0xfe] = G(FE, B), [0xff] = G(FF, 0),
};

const struct opcode_entry opcode_map_0f[256] = {
    [0x00 ... 0x01] = OTHER(M), [0x02] = EX(LAR, REG, RM, 2, M), [0x03] = EX(LSL, REG, RM, 2, M),
    [0x05] = BARE(SYSCALL), [0x06] = BARE(CLTS), [0x07] = BARE(SYSRET),
    [0x08] = BARE(INVD), [0x09] = BARE(WBINVD), [0x0b] = BARE(UD),
    [0x0d] = E(NOP, NONE, NONE, M), [0x0e] = OTHER(0), [0x0f] = OTHER(M | IMM(IB)),
    [0x10 ... 0x17] = OTHER(M), [0x18 ... 0x19] = E(NOP, NONE, NONE, M),
    [0x1a ... 0x1b] = OTHER(M), [0x1c ... 0x1f] = E(NOP, NONE, NONE, M),
    [0x20] = E(MOV_FROM_CR, RM, NONE, M | F_NATIVE | F_NOMEM),
    [0x21] = E(MOV_FROM_DR, RM, NONE, M | F_NATIVE | F_NOMEM),
    [0x22] = E(MOV_TO_CR, NONE, RM, M | F_NATIVE | F_NOMEM),
    [0x23] = E(MOV_TO_DR, NONE, RM, M | F_NATIVE | F_NOMEM),
    [0x28 ... 0x2f] = OTHER(M),
    [0x30] = BARE(WRMSR), [0x31] = BARE(RDTSC), [0x32] = BARE(RDMSR), [0x33] = BARE(RDPMC),
    [0x34] = BARE(SYSENTER), [0x35] = BARE(SYSEXIT), [0x37] = E(GETSEC, NONE, NONE, F_NP),
    [0x40 ... 0x4f] = E(CMOVCC, REG, RM, M),
    [0x50 ... 0x6f] = OTHER(M), [0x70 ... 0x73] = OTHER(M | IMM(IB)), [0x74 ... 0x76] = OTHER(M),
    [0x77] = OTHER(0), [0x78] = OTHER(M | IMM(EXTRQ)), [0x79] = OTHER(M),
    [0x7c ... 0x7f] = OTHER(M),
    [0x80 ... 0x8f] = E(JCC, NONE, IMM, F_BRANCH | IMM(IZ)),
    [0x90 ... 0x9f] = E(SETCC, RM, NONE, M | B),
    [0xa0] = E(PUSH_SREG, NONE, SREG, F_STACK), [0xa1] = E(POP_SREG, SREG, NONE, F_STACK),
    [0xa8] = E(PUSH_SREG, NONE, SREG, F_STACK), [0xa9] = E(POP_SREG, SREG, NONE, F_STACK),
    [0xa2] = BARE(CPUID), [0xaa] = BARE(RSM),
    [0xa3] = E(BT, RM, REG, M), [0xab] = E(BTS, RM, REG, M | F_LOCK),
    [0xb3] = E(BTR, RM, REG, M | F_LOCK), [0xbb] = E(BTC, RM, REG, M | F_LOCK),
    [0xa4] = E(SHLD, RM, REG, M | IMM(UB)), [0xa5] = E(SHLD, RM, REG, M),
    [0xac] = E(SHRD, RM, REG, M | IMM(UB)), [0xad] = E(SHRD, RM, REG, M),
    [0xae] = OTHER(M), [0xa6 ... 0xa7] = OTHER(M), [0xaf] = E(IMUL2, REG, RM, M),
    [0xb0] = E(CMPXCHG, RM, REG, M | B | F_LOCK), [0xb1] = E(CMPXCHG, RM, REG, M | F_LOCK),
    [0xb2] = E(LSS, REG, RM, M | F_MEM), [0xb4 ... 0xb5] = E(LFAR, REG, RM, M | F_MEM),
    [0xb6] = EX(MOVZX, REG, RM, 1, M), [0xb7] = EX(MOVZX, REG, RM, 2, M),
    [0xb8] = OTHER(M), [0xb9] = E(UD, NONE, NONE, M),
    [0xba] = G(BT, IMM(UB)), [0xbc ... 0xbd] = OTHER(M),
    [0xbe] = EX(MOVSX, REG, RM, 1, M), [0xbf] = EX(MOVSX, REG, RM, 2, M),
    [0xc0] = E(XADD, RM, REG, M | B | F_LOCK), [0xc1] = E(XADD, RM, REG, M | F_LOCK),
    [0xc2] = OTHER(M | IMM(IB)), [0xc3] = E(MOVNTI, RM, REG, M | F_MEM | F_NP | F_MIN4),
    [0xc4 ... 0xc6] = OTHER(M | IMM(IB)), [0xc7] = G(0FC7, 0),
    [0xc8 ... 0xcf] = E(BSWAP, REG, NONE, R),
    [0xd0 ... 0xfe] = OTHER(M), [0xff] = E(UD, NONE, NONE, M),
};

const struct opcode_entry opcode_movbe[2] = {
    E(MOVBE, REG, RM, M | F_MEM), E(MOVBE, RM, REG, M | F_MEM),
};

const struct opcode_entry opcode_arpl = E(ARPL, RM, REG, M | F_WORD);
// F2 0F38 F0, F1: the source has the operand size, the destination 4 bytes, with REX.W 8.
const struct opcode_entry opcode_crc32[2] = {
    E(CRC32, REG, RM, M | B), E(CRC32, REG, RM, M),
};
// 0F BC, BD, B8 without prefix and with F3. CPUs without BMI1 and LZCNT ignore the F3.
const struct opcode_entry opcode_bits[3][2] = {
    {E(BSF, REG, RM, M), E(TZCNT, REG, RM, M)}, {E(BSR, REG, RM, M), E(LZCNT, REG, RM, M)},
    {OTHER(M), E(POPCNT, REG, RM, M)},
};

#define SHIFTS(s)                                                                          \
    E(ROL, RM, s, 0), E(ROR, RM, s, 0), E(RCL, RM, s, 0), E(RCR, RM, s, 0),                \
    E(SHL, RM, s, 0), E(SHR, RM, s, 0), E(SAL, RM, s, 0), E(SAR, RM, s, 0)

const struct opcode_entry opcode_groups[GROUP_COUNT][8] = {
    [GROUP_ALU] = {
        E(ADD, RM, IMM, F_LOCK), E(OR, RM, IMM, F_LOCK), E(ADC, RM, IMM, F_LOCK),
        E(SBB, RM, IMM, F_LOCK),
        E(AND, RM, IMM, F_LOCK), E(SUB, RM, IMM, F_LOCK), E(XOR, RM, IMM, F_LOCK),
        E(CMP, RM, IMM, 0),
    },
    [GROUP_SHIFT_IMM] = {SHIFTS(IMM)},
    [GROUP_SHIFT_CL] = {SHIFTS(CL)},
    [GROUP_POP] = {E(POP, RM, NONE, 0)},
    [GROUP_MOV] = {[0] = E(MOV, RM, IMM, 0), [7] = BARE(XBEGIN)},
    [GROUP_F6] = {
        E(TEST, RM, IMM, IMM(IZ)), E(TEST, RM, IMM, IMM(IZ)),
        E(NOT, RM, NONE, F_LOCK), E(NEG, RM, NONE, F_LOCK),
        E(MUL, NONE, RM, 0), E(IMUL1, NONE, RM, 0), E(DIV, NONE, RM, 0), E(IDIV, NONE, RM, 0),
    },
    [GROUP_FE] = {E(INC, RM, NONE, F_LOCK), E(DEC, RM, NONE, F_LOCK)},
    [GROUP_FF] = {
        E(INC, RM, NONE, F_LOCK), E(DEC, RM, NONE, F_LOCK),
        E(CALL_IND, NONE, RM, F_BRANCH), E(CALL_FAR, NONE, RM, F_MEM),
        E(JMP_IND, NONE, RM, F_BRANCH), E(JMP_FAR, NONE, RM, F_MEM), E(PUSH, NONE, RM, F_STACK),
    },
    [GROUP_BT] = {
        [4] = E(BT, RM, IMM, 0), [5] = E(BTS, RM, IMM, F_LOCK),
        [6] = E(BTR, RM, IMM, F_LOCK), [7] = E(BTC, RM, IMM, F_LOCK),
    },
    [GROUP_0FC7] = {[1] = E(CMPXCHG8B, RM, NONE, F_MEM | F_LOCK), [3 ... 7] = OTHER(0)},
};

#define S(map, opcode, prefix, where, mask, modrm, op) \
    {INSN_MAP_##map, opcode, prefix, where, mask, modrm, INSN_##op}
#define ANY PREFIX_ANY
#define O16 INSN_OPSIZE
#define RP  INSN_REP
#define RNP INSN_REPNE

const struct special_entry opcode_special[] = {
    S(0F, 0x00, ANY, ANYWHERE, 0x38, 0x00, SLDT), S(0F, 0x00, ANY, ANYWHERE, 0x38, 0x08, STR),
    S(0F, 0x00, ANY, ANYWHERE, 0x38, 0x20, VERR), S(0F, 0x00, ANY, ANYWHERE, 0x38, 0x28, VERW),
    S(0F, 0x00, ANY, ANYWHERE, 0x38, 0x10, LLDT), S(0F, 0x00, ANY, ANYWHERE, 0x38, 0x18, LTR),
    S(0F, 0x01, ANY, MEMORY, 0x38, 0x00, SGDT), S(0F, 0x01, ANY, MEMORY, 0x38, 0x08, SIDT),
    S(0F, 0x01, ANY, MEMORY, 0x38, 0x10, LGDT), S(0F, 0x01, ANY, MEMORY, 0x38, 0x18, LIDT),
    S(0F, 0x01, ANY, ANYWHERE, 0x38, 0x20, SMSW), S(0F, 0x01, ANY, ANYWHERE, 0x38, 0x30, LMSW),
    S(0F, 0x01, ANY, MEMORY, 0x38, 0x38, INVLPG),
    S(0F, 0x01, 0, REGISTER, 0xff, 0xc1, VMCALL), S(0F, 0x01, 0, REGISTER, 0xff, 0xc2, VMLAUNCH),
    S(0F, 0x01, 0, REGISTER, 0xff, 0xc3, VMRESUME), S(0F, 0x01, 0, REGISTER, 0xff, 0xc4, VMXOFF),
    S(0F, 0x01, 0, REGISTER, 0xff, 0xc8, MONITOR), S(0F, 0x01, 0, REGISTER, 0xff, 0xc9, MWAIT),
    S(0F, 0x01, 0, REGISTER, 0xff, 0xd0, XGETBV), S(0F, 0x01, 0, REGISTER, 0xff, 0xd1, XSETBV),
    S(0F, 0x01, 0, REGISTER, 0xff, 0xd4, VMFUNC),
    S(0F, 0x01, ANY, REGISTER, 0xff, 0xd8, VMRUN), S(0F, 0x01, 0, REGISTER, 0xff, 0xd9, VMMCALL),
    S(0F, 0x01, ANY, REGISTER, 0xff, 0xda, VMLOAD), S(0F, 0x01, ANY, REGISTER, 0xff, 0xdb, VMSAVE),
    S(0F, 0x01, ANY, REGISTER, 0xff, 0xdc, STGI), S(0F, 0x01, ANY, REGISTER, 0xff, 0xdd, CLGI),
    S(0F, 0x01, ANY, REGISTER, 0xff, 0xde, SKINIT), S(0F, 0x01, ANY, REGISTER, 0xff, 0xdf, INVLPGA),
    S(0F, 0x01, ANY, REGISTER, 0xff, 0xf8, SWAPGS), S(0F, 0x01, ANY, REGISTER, 0xff, 0xf9, RDTSCP),
    S(0F, 0x0d, ANY, REGISTER, 0, 0, OTHER), // PREFETCHW of a register is #UD on AMD, NOP on Intel
    S(0F, 0x1e, RP, REGISTER, 0x38, 0x08, OTHER), // RDSSP is no hint once CET is on
    S(0F, 0x1e, RP | O16, REGISTER, 0x38, 0x08, OTHER),
    S(0F, 0x78, 0, ANYWHERE, 0, 0, VMREAD), S(0F, 0x79, 0, ANYWHERE, 0, 0, VMWRITE),
    S(0F, 0xae, O16, REGISTER, 0x38, 0x30, TPAUSE), S(0F, 0xae, RNP, REGISTER, 0x38, 0x30, UMWAIT),
    S(0F, 0xc7, 0, MEMORY, 0x38, 0x18, XRSTORS), S(0F, 0xc7, 0, MEMORY, 0x38, 0x28, XSAVES),
    S(0F, 0xc7, 0, MEMORY, 0x38, 0x30, VMPTRLD), S(0F, 0xc7, O16, MEMORY, 0x38, 0x30, VMCLEAR),
    S(0F, 0xc7, RP, MEMORY, 0x38, 0x30, VMXON), S(0F, 0xc7, 0, MEMORY, 0x38, 0x38, VMPTRST),
    S(0F, 0xc7, 0, REGISTER, 0x38, 0x30, RDRAND), S(0F, 0xc7, O16, REGISTER, 0x38, 0x30, RDRAND),
    S(0F, 0xc7, 0, REGISTER, 0x38, 0x38, RDSEED), S(0F, 0xc7, O16, REGISTER, 0x38, 0x38, RDSEED),
    S(0F38, 0x80, O16, MEMORY, 0, 0, INVEPT), S(0F38, 0x81, O16, MEMORY, 0, 0, INVVPID),
    S(0F38, 0x82, O16, MEMORY, 0, 0, INVPCID),
    {.op = INSN_NONE},
};

#define V(map, opcode, pp, size, flags) {INSN_MAP_##map, opcode, pp, size, flags}
#define A  MOVE_ALIGNED
#define ST MOVE_STORE
#define NE MOVE_NO_EVEX

const struct vector_entry opcode_vector[] = {
    V(0F, 0x10, 0, 0, 0), V(0F, 0x10, 1, 0, 0), V(0F, 0x10, 2, 4, 0), V(0F, 0x10, 3, 8, 0),
    V(0F, 0x11, 0, 0, ST), V(0F, 0x11, 1, 0, ST), V(0F, 0x11, 2, 4, ST), V(0F, 0x11, 3, 8, ST),
    V(0F, 0x12, 0, 8, MOVE_LOW), V(0F, 0x12, 1, 8, MOVE_LOW),
    V(0F, 0x13, 0, 8, ST), V(0F, 0x13, 1, 8, ST),
    V(0F, 0x16, 0, 8, MOVE_HIGH), V(0F, 0x16, 1, 8, MOVE_HIGH),
    V(0F, 0x17, 0, 8, MOVE_HIGH | ST), V(0F, 0x17, 1, 8, MOVE_HIGH | ST),
    V(0F, 0x28, 0, 0, A), V(0F, 0x28, 1, 0, A),
    V(0F, 0x29, 0, 0, A | ST), V(0F, 0x29, 1, 0, A | ST),
    V(0F, 0x2b, 0, 0, A | ST), V(0F, 0x2b, 1, 0, A | ST),
    V(0F, 0x6e, 0, 4, MOVE_MMX | MOVE_GPR), V(0F, 0x6e, 1, 4, MOVE_GPR),
    V(0F, 0x7e, 0, 4, MOVE_MMX | MOVE_GPR | ST), V(0F, 0x7e, 1, 4, MOVE_GPR | ST),
    V(0F, 0x7e, 2, 8, 0), V(0F, 0xd6, 1, 8, ST),
    V(0F, 0x6f, 0, 8, MOVE_MMX), V(0F, 0x6f, 1, 0, A), V(0F, 0x6f, 2, 0, 0),
    V(0F, 0x7f, 0, 8, MOVE_MMX | ST), V(0F, 0x7f, 1, 0, A | ST), V(0F, 0x7f, 2, 0, ST),
    V(0F, 0xe7, 0, 8, MOVE_MMX | ST), V(0F, 0xe7, 1, 0, A | ST), V(0F, 0xf0, 3, 0, NE),
    V(0F38, 0x2a, 1, 0, A),
    {.opcode = 0},
};

#define STORES 0x80
const u8 opcode_x87[8][8] = {
    {4, 4, 4, 4, 4, 4, 4, 4},
    {4, 0, STORES | 4, STORES | 4, 0, 2, 0, STORES | 2},
    {4, 4, 4, 4, 4, 4, 4, 4},
    {4, STORES | 4, STORES | 4, STORES | 4, 0, 10, 0, STORES | 10},
    {8, 8, 8, 8, 8, 8, 8, 8},
    {8, STORES | 8, STORES | 8, STORES | 8, 0, 0, 0, STORES | 2},
    {2, 2, 2, 2, 2, 2, 2, 2},
    {2, STORES | 2, STORES | 2, STORES | 2, 10, 8, STORES | 10, STORES | 8},
};
// clang-format on
