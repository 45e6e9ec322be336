// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Architectural register bits and vectors (SDM vol. 3 chapters 2, 6 and 17; APM vol. 2 chapters 1,
// 3 and 13).

#pragma once

#include <nestor/types.h>

#define CR0_PE BIT(0)
#define CR0_MP BIT(1)
#define CR0_EM BIT(2)
#define CR0_TS BIT(3)
#define CR0_ET BIT(4)
#define CR0_NE BIT(5)
#define CR0_WP BIT(16)
#define CR0_AM BIT(18)
#define CR0_NW BIT(29)
#define CR0_CD BIT(30)
#define CR0_PG BIT(31)

#define CR4_VME        BIT(0)
#define CR4_PVI        BIT(1)
#define CR4_TSD        BIT(2)
#define CR4_DE         BIT(3)
#define CR4_PSE        BIT(4)
#define CR4_PAE        BIT(5)
#define CR4_MCE        BIT(6)
#define CR4_PGE        BIT(7)
#define CR4_PCE        BIT(8)
#define CR4_OSFXSR     BIT(9)
#define CR4_OSXMMEXCPT BIT(10)
#define CR4_UMIP       BIT(11)
#define CR4_LA57       BIT(12)
#define CR4_VMXE       BIT(13)
#define CR4_SMXE       BIT(14)
#define CR4_FSGSBASE   BIT(16)
#define CR4_PCIDE      BIT(17)
#define CR4_OSXSAVE    BIT(18)
#define CR4_SMEP       BIT(20)
#define CR4_SMAP       BIT(21)
#define CR4_PKE        BIT(22)
#define CR4_CET        BIT(23)
#define CR4_PKS        BIT(24)

#define EFER_SCE   BIT(0)
#define EFER_LME   BIT(8)
#define EFER_LMA   BIT(10)
#define EFER_NX    BIT(11)
#define EFER_SVME  BIT(12)
#define EFER_LMSLE BIT(13)
#define EFER_FFXSR BIT(14)

#define RFLAGS_CF    BIT(0)
#define RFLAGS_FIXED BIT(1)
#define RFLAGS_PF    BIT(2)
#define RFLAGS_AF    BIT(4)
#define RFLAGS_ZF    BIT(6)
#define RFLAGS_SF    BIT(7)
#define RFLAGS_TF    BIT(8)
#define RFLAGS_IF    BIT(9)
#define RFLAGS_DF    BIT(10)
#define RFLAGS_OF    BIT(11)
#define RFLAGS_IOPL  BITS(13, 12)
#define RFLAGS_NT    BIT(14)
#define RFLAGS_RF    BIT(16)
#define RFLAGS_VM    BIT(17)
#define RFLAGS_AC    BIT(18)
#define RFLAGS_VIF   BIT(19)
#define RFLAGS_VIP   BIT(20)
#define RFLAGS_ID    BIT(21)
// all that exist
#define RFLAGS_KNOWN (BITS(21, 16) | BITS(14, 6) | RFLAGS_AF | RFLAGS_PF | RFLAGS_FIXED | RFLAGS_CF)

#define DR6_FIXED \
    0xffff0ff0ull // bits that read 1 (incl. the inverted BLD and RTM when they do not apply)
#define DR6_B(n)     BIT(n)
#define DR6_BLD      BIT(11)
#define DR6_BD       BIT(13)
#define DR6_BS       BIT(14)
#define DR6_BT       BIT(15)
#define DR6_RTM      BIT(16)
#define DR6_WRITABLE (DR6_B(0) | DR6_B(1) | DR6_B(2) | DR6_B(3) | DR6_BD | DR6_BS | DR6_BT)
#define DR7_FIXED    0x400ull
#define DR7_WRITABLE (BITS(9, 0) | DR7_GD | BITS(31, 16))
#define DR7_GD       BIT(13)
#define DR7_LOCAL    (BIT(0) | BIT(2) | BIT(4) | BIT(6) | BIT(8)) // L0 to L3, LE

#define DEBUGCTL_LBR BIT(0)
#define DEBUGCTL_BTF BIT(1)

#define XCR0_X87 BIT(0)
#define XCR0_SSE BIT(1)
#define XCR0_AVX BIT(2)

enum exception_vector {
    VECTOR_DE = 0,
#define XCR0_AVX512 BITS(7, 5)
    VECTOR_DB = 1,
    VECTOR_NMI = 2,
    VECTOR_BP = 3,
    VECTOR_OF = 4,
    VECTOR_BR = 5,
    VECTOR_UD = 6,
    VECTOR_NM = 7,
    VECTOR_DF = 8,
    VECTOR_TS = 10,
    VECTOR_NP = 11,
    VECTOR_SS = 12,
    VECTOR_GP = 13,
    VECTOR_PF = 14,
    VECTOR_MF = 16,
    VECTOR_AC = 17,
    VECTOR_MC = 18,
    VECTOR_XM = 19,
    VECTOR_VE = 20,
    VECTOR_CP = 21,
    VECTOR_SX = 30,
};

// Page-fault error code.
#define PF_P    BIT(0)
#define PF_W    BIT(1)
#define PF_U    BIT(2)
#define PF_RSVD BIT(3)
#define PF_I    BIT(4)
#define PF_PK   BIT(5)
#define PF_SS   BIT(6)

// Segment access rights in the layout of a descriptor's second word, bits 8..23 shifted to 0, as
// VMX stores them; bit 16 is VMX's.
#define SEG_TYPE      BITS(3, 0)
#define SEG_S         BIT(4)
#define SEG_DPL_SHIFT 5
#define SEG_DPL       BITS(6, 5)
#define SEG_P         BIT(7)
#define SEG_AVL       BIT(12)
#define SEG_L         BIT(13)
#define SEG_DB        BIT(14)
#define SEG_G         BIT(15)
#define SEG_UNUSABLE  BIT(16)
