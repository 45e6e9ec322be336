// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The x86 instruction decoder: bytes in, one description out. Pure; knows no CPU state but the code
// size. Exact lengths for the one-byte, 0F, 0F38 and 0F3A maps and for VEX, XOP and EVEX forms;
// full operand description for the integer instructions. Intel SDM volume 2 chapter 2 and appendix
// A, AMD APM volume 3 chapter 1 and appendix A.
#pragma once

#include <nestor/segment.h>
#include <nestor/types.h>

#define INSN_MAX_LENGTH 15

// Default code size: real mode, VM86 and CS.D = 0 are 16, CS.D = 1 is 32, CS.L = 1 is 64. The
// vendors differ in one thing, so it is a mode: AMD obeys prefix 66 on near branches in 64-bit
// code.
enum insn_mode { INSN_MODE_16, INSN_MODE_32, INSN_MODE_64, INSN_MODE_64_AMD };

enum insn_status {
    INSN_OK = 0,
    INSN_TRUNCATED, // a valid beginning: more bytes decide
    INSN_INVALID,   // #UD
    INSN_TOO_LONG,  // more than 15 bytes: #GP(0)
};

#define INSN_REG_NONE 0xff // no base or no index
#define INSN_REG_RIP  16   // base is the address of the next instruction

enum insn_prefix {
    INSN_REP = BIT(0),   // F3 was the last of F2, F3
    INSN_REPNE = BIT(1), // F2 was the last of F2, F3
    INSN_LOCK = BIT(2),
    INSN_OPSIZE = BIT(3),   // 66
    INSN_ADDRSIZE = BIT(4), // 67
    INSN_SEGMENT = BIT(5),  // an override that counts
};

enum insn_map { INSN_MAP_1, INSN_MAP_0F, INSN_MAP_0F38, INSN_MAP_0F3A, INSN_MAP_EXTENDED };

// What an operand slot holds. "reg" and "rm" are fields of struct insn.
enum insn_operand {
    OPERAND_NONE,
    OPERAND_RM,   // register rm, or memory when has_mem
    OPERAND_REG,  // register reg
    OPERAND_ACC,  // rAX
    OPERAND_IMM,  // imm
    OPERAND_CL,   // the register CL
    OPERAND_SREG, // segment register reg
};

// Instruction identities. INSN_OTHER is valid as far as the decoder knows, has its exact length,
// and nothing else is said of it. The order within ADD..CMP, ROL..SAR and BT..BTC is the
// encoding's.
// clang-format off
enum insn_op {
    INSN_NONE, // the table's holes: invalid
    INSN_OTHER,
    INSN_ADD, INSN_OR, INSN_ADC, INSN_SBB, INSN_AND, INSN_SUB, INSN_XOR, INSN_CMP,
    INSN_ROL, INSN_ROR, INSN_RCL, INSN_RCR, INSN_SHL, INSN_SHR, INSN_SAL, INSN_SAR,
    INSN_BT, INSN_BTS, INSN_BTR, INSN_BTC,
    INSN_TEST, INSN_NOT, INSN_NEG, INSN_MUL, INSN_IMUL1, INSN_DIV, INSN_IDIV,
    INSN_IMUL2, // dst = dst * src
    INSN_IMUL3, // dst = src * imm
    INSN_INC, INSN_DEC, INSN_SHLD, INSN_SHRD, INSN_BSWAP,
    INSN_XCHG, INSN_CMPXCHG, INSN_XADD, INSN_CMPXCHG8B,
    INSN_MOV, INSN_MOVZX, INSN_MOVSX, INSN_MOVBE, INSN_MOVNTI, INSN_LEA, INSN_CMOVCC, INSN_SETCC,
    INSN_MOV_FROM_SREG, INSN_MOV_TO_SREG,
    INSN_PUSH, INSN_POP, INSN_PUSH_SREG, INSN_POP_SREG, INSN_PUSHF, INSN_POPF, INSN_PUSHA,
    INSN_POPA, INSN_ENTER, INSN_LEAVE,
    INSN_CALL, INSN_JMP, // near, relative
    INSN_CALL_IND, INSN_JMP_IND, INSN_RET,
    INSN_JCC, INSN_LOOPNE, INSN_LOOPE, INSN_LOOP, INSN_JCXZ,
    INSN_CALL_FAR, INSN_JMP_FAR, INSN_RET_FAR, INSN_IRET, INSN_INT, INSN_INT3, INSN_INTO, INSN_INT1,
    INSN_MOVS, INSN_CMPS, INSN_STOS, INSN_LODS, INSN_SCAS, INSN_INS, INSN_OUTS, INSN_IN, INSN_OUT,
    INSN_CBW, INSN_CWD, INSN_LAHF, INSN_SAHF, INSN_XLAT,
    INSN_BSF, INSN_BSR, INSN_TZCNT, INSN_LZCNT, INSN_POPCNT, INSN_CRC32, INSN_BOUND,
    INSN_AAA, INSN_AAS, INSN_DAA, INSN_DAS, INSN_AAM, INSN_AAD, INSN_ARPL,
    INSN_VEC_LOAD, INSN_VEC_STORE, // moves of vector registers from and to memory
    INSN_X87,                      // any with a memory operand but environments and states
    INSN_CMC, INSN_CLC, INSN_STC, INSN_CLI, INSN_STI, INSN_CLD, INSN_STD,
    INSN_NOP, // and the hints: multi-byte NOP, ENDBR, PREFETCH
    INSN_PAUSE, INSN_HLT,
    INSN_UD, // UD0, UD1, UD2
    // System instructions: identified so that an exit can be checked against its bytes.
    INSN_MOV_FROM_CR, INSN_MOV_TO_CR, INSN_MOV_FROM_DR, INSN_MOV_TO_DR, INSN_CLTS, INSN_LMSW,
    INSN_SMSW,
    INSN_CPUID, INSN_RDMSR, INSN_WRMSR, INSN_RDTSC, INSN_RDTSCP, INSN_RDPMC, INSN_XGETBV,
    INSN_XSETBV,
    INSN_INVD, INSN_WBINVD, INSN_INVLPG, INSN_INVPCID, INSN_MONITOR, INSN_MWAIT, INSN_RSM,
    INSN_SGDT, INSN_SIDT, INSN_LGDT, INSN_LIDT, INSN_SLDT, INSN_STR, INSN_LLDT, INSN_LTR,
    INSN_LAR, INSN_LSL, INSN_VERR, INSN_VERW,
    INSN_SYSCALL, INSN_SYSRET, INSN_SYSENTER, INSN_SYSEXIT, INSN_SWAPGS, INSN_LSS,
    INSN_LFAR, // LES LDS LFS LGS
    INSN_XBEGIN, // C6: XABORT
   
    INSN_RDRAND, INSN_RDSEED, INSN_XSAVES, INSN_XRSTORS, INSN_GETSEC, INSN_TPAUSE, INSN_UMWAIT,
    INSN_VMCALL, INSN_VMLAUNCH, INSN_VMRESUME, INSN_VMXOFF, INSN_VMXON, INSN_VMPTRLD, INSN_VMPTRST,
    INSN_VMCLEAR, INSN_VMREAD, INSN_VMWRITE, INSN_VMFUNC, INSN_INVEPT, INSN_INVVPID,
    INSN_VMRUN, INSN_VMMCALL, INSN_VMLOAD, INSN_VMSAVE, INSN_STGI, INSN_CLGI, INSN_SKINIT,
    INSN_INVLPGA,
    INSN_OP_COUNT
};
// clang-format on

// How the opcode is encoded, and so what a write does to the rest of a vector register.
enum insn_encoding { INSN_LEGACY, INSN_VEX, INSN_EVEX, INSN_XOP };

enum insn_move {
    MOVE_ALIGNED = BIT(0), // memory must be aligned to its size: #GP(0)
    MOVE_MMX = BIT(1),
    MOVE_LOW = BIT(2),     // a load changes the low 8 bytes only, the high ones come from vvvv
    MOVE_HIGH = BIT(3),    // the same for bytes 15:8; a store stores these
    MOVE_STORE = BIT(4),   // (the decoder's)
    MOVE_GPR = BIT(5),     // (the decoder's) 4 or 8 bytes by W
    MOVE_NO_EVEX = BIT(6), // (the decoder's)
};

struct insn {
    u8 op;     // enum insn_op
    u8 length; // bytes, 1..15
    u8 mode;   // enum insn_mode
    u8 map;    // enum insn_map
    u8 opcode; // last opcode byte; its low nibble is the condition of INSN_JCC, SETCC, CMOVCC
    u8 prefixes;
    u8 rex;       // the REX byte, or 0
    u8 opsize;    // operand size in bytes: 1, 2, 4, 8
    u8 src_size;  // size of src: differs from opsize for MOVZX, MOVSX
    u8 addr_size; // address size in bytes: 2, 4, 8
    u8 dst, src;  // enum insn_operand
    u8 modrm;
    u8 reg, rm; // register numbers with REX applied
    bool has_modrm;
    bool has_mem; // the fields below describe an explicit memory operand
    u8 mem_size;  // bytes accessed; 0 = address only, or INSN_OTHER
    u8 base, index;
    u8 scale; // 1, 2, 4, 8
    u8 seg;   // enum segment_index: also that of implicit rSI and rBX operands
    s64 disp;
    u64 imm;       // sign- or zero-extended as the instruction uses it; relative branch offset
    u8 encoding;   // enum insn_encoding
    u8 move;       // enum insn_move, of INSN_VEC_*
    u8 vex_length; // bytes of a vector register in a VEX or EVEX form: 16, 32, 64
    u8 vvvv;       // its second source register
    u16 imm2;      // ENTER's nesting level, the selector of a far pointer
};

// Describes the instruction at bytes[0..len). Returns an enum insn_status; out is meaningful only
// with INSN_OK. Never reads beyond len.
int insn_decode(struct insn *out, const u8 *bytes, unsigned len, enum insn_mode mode);

// The offset (effective address, before segmentation) of an explicit memory operand, wrapped to
// the address size. gpr is in encoding order; next_rip is the address after the instruction.
u64 insn_offset(const struct insn *insn, const u64 gpr[16], u64 next_rip);

static inline bool insn_mode_is_64(enum insn_mode mode)
{
    return mode >= INSN_MODE_64;
}
