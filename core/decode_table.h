// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The form of the decoder's tables, shared by decode.c and decode_table.c only.

#pragma once

#include <nestor/decode.h>

#define REX_B 1
#define REX_X 2
#define REX_R 4
#define REX_W 8

enum immediate_kind {
    IMM_NONE,
    IMM_IB,    // byte, sign-extended
    IMM_UB,    // byte, zero-extended
    IMM_IW,    // 2 bytes
    IMM_ID,    // 4 bytes
    IMM_IZ,    // operand size, at most 4 bytes
    IMM_IV,    // operand size
    IMM_ONE,   // the constant 1, no bytes
    IMM_FAR,   // offset and selector
    IMM_MOFFS, // a memory operand's offset of the address size
    IMM_ENTER, // word and byte
    IMM_EXTRQ, // two bytes with 66 or F2, else none
};

#define IMM(kind)     ((u32)IMM_##kind)
#define IMM_OF(flags) ((flags)&15)

#define F_MODRM  (1u << 4)
#define F_BYTE   (1u << 5)  // operand size 1
#define F_NATIVE (1u << 6)  // operand size 4, in 64-bit code 8
#define F_STACK  (1u << 7)  // operand size 8 in 64-bit code unless 66
#define F_BRANCH (1u << 8)  // the same, but Intel ignores 66
#define F_MAX4   (1u << 9)  // operand size at most 4
#define F_NO64   (1u << 10) // invalid in 64-bit code
#define F_ONLY64 (1u << 11)
#define F_LOCK   (1u << 12) // LOCK allowed if the destination is memory
#define F_MEM    (1u << 13) // a register as rm is invalid
#define F_NP     (1u << 14) // 66, F2, F3 make it something else
#define F_GROUP  (1u << 15) // op is a group number, ModRM.reg the index
#define F_NOMEM  (1u << 16) // ModRM.mod is ignored: a register always (MOV CR, MOV DR)
#define F_OPREG  (1u << 17) // reg is in the opcode's low bits
#define F_MIN4   (1u << 18) // operand size at least 4
#define F_WORD   (1u << 19) // operand size 2

struct opcode_entry {
    u8 op;       // enum insn_op or enum opcode_group; INSN_NONE: invalid
    u8 dst, src; // enum insn_operand
    u8 src_size; // 0: the operand size
    u32 flags;
};

// clang-format off
enum opcode_group {
    GROUP_ALU = 1, GROUP_SHIFT_IMM, GROUP_SHIFT_CL, GROUP_POP, GROUP_MOV, GROUP_F6, GROUP_FE,
    GROUP_FF,
    GROUP_BT, GROUP_0FC7, GROUP_COUNT
};
// clang-format on

#define PREFIX_ANY 0xff
enum special_where { ANYWHERE, MEMORY, REGISTER };

struct special_entry {
    u8 map, opcode, prefix;
    u8 where;
    u8 mask, modrm;
    u8 op;
};

// Moves between vector registers and memory. pp: the mandatory prefix as VEX.pp has it (none, 66,
// F3, F2).
struct vector_entry {
    u8 map, opcode, pp;
    u8 size;  // bytes of memory, 0: the whole vector
    u8 flags; // enum insn_move
};

extern const struct vector_entry opcode_vector[]; // ends with opcode 0
extern const u8 opcode_x87[8][8]; // memory bytes of D8..DF by ModRM.reg, 0x80: it stores; 0: none

extern const struct opcode_entry opcode_map_1[256], opcode_map_0f[256], opcode_movbe[2];
extern const struct opcode_entry opcode_arpl, opcode_crc32[2], opcode_bits[3][2];
extern const struct opcode_entry opcode_groups[GROUP_COUNT][8];
extern const struct special_entry opcode_special[]; // ends with op INSN_NONE
