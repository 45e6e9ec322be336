// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// AMD SVM: the VMCB (APM vol. 2 appendix B), intercepts (15.9), exit codes (appendix C), EVENTINJ
// (15.20), CPUID Fn8000_000A. Names are the manual's; every field's offset is asserted.

#pragma once

#include <nestor/types.h>

// CPUID Fn8000_000A_EDX
#define SVM_FEATURE_NP             BIT(0)
#define SVM_FEATURE_LBR_VIRT       BIT(1)
#define SVM_FEATURE_SVML           BIT(2)
#define SVM_FEATURE_NRIPS          BIT(3)
#define SVM_FEATURE_TSC_RATE_MSR   BIT(4)
#define SVM_FEATURE_VMCB_CLEAN     BIT(5)
#define SVM_FEATURE_FLUSH_BY_ASID  BIT(6)
#define SVM_FEATURE_DECODE_ASSISTS BIT(7)
#define SVM_FEATURE_PAUSE_FILTER   BIT(10)
#define SVM_FEATURE_VLS            BIT(15)
#define SVM_FEATURE_VGIF           BIT(16)

// MSR VM_CR (15.30.1)
#define VM_CR_R_INIT BIT(1)
#define VM_CR_LOCK   BIT(3)
#define VM_CR_SVMDIS BIT(4)

// The intercept vectors: word n is at offset 4 * n.
enum svm_intercept_word {
    SVM_WORD_CR, // reads in bits 15:0, writes in bits 31:16
    SVM_WORD_DR, // the same
    SVM_WORD_EXCEPTIONS,
    SVM_WORD_3,
    SVM_WORD_4,
    SVM_WORD_5,
    SVM_WORD_COUNT,
};
#define SVM_CR_READ(n)   ((u32)BIT(n))
#define SVM_CR_WRITE(n)  ((u32)BIT(16 + (n)))
#define SVM_DR_READ_ALL  0xffffu
#define SVM_DR_WRITE_ALL 0xffff0000u

enum svm_intercept3 {
    SVM_INTERCEPT_INTR = 1 << 0,
    SVM_INTERCEPT_NMI = 1 << 1,
    SVM_INTERCEPT_SMI = 1 << 2,
    SVM_INTERCEPT_INIT = 1 << 3,
    SVM_INTERCEPT_VINTR = 1 << 4,
    SVM_INTERCEPT_CR0_SEL_WRITE = 1 << 5,
    SVM_INTERCEPT_IDTR_READ = 1 << 6,
    SVM_INTERCEPT_GDTR_READ = 1 << 7,
    SVM_INTERCEPT_LDTR_READ = 1 << 8,
    SVM_INTERCEPT_TR_READ = 1 << 9,
    SVM_INTERCEPT_IDTR_WRITE = 1 << 10,
    SVM_INTERCEPT_GDTR_WRITE = 1 << 11,
    SVM_INTERCEPT_LDTR_WRITE = 1 << 12,
    SVM_INTERCEPT_TR_WRITE = 1 << 13,
    SVM_INTERCEPT_RDTSC = 1 << 14,
    SVM_INTERCEPT_RDPMC = 1 << 15,
    SVM_INTERCEPT_PUSHF = 1 << 16,
    SVM_INTERCEPT_POPF = 1 << 17,
    SVM_INTERCEPT_CPUID = 1 << 18,
    SVM_INTERCEPT_RSM = 1 << 19,
    SVM_INTERCEPT_IRET = 1 << 20,
    SVM_INTERCEPT_SWINT = 1 << 21,
    SVM_INTERCEPT_INVD = 1 << 22,
    SVM_INTERCEPT_PAUSE = 1 << 23,
    SVM_INTERCEPT_HLT = 1 << 24,
    SVM_INTERCEPT_INVLPG = 1 << 25,
    SVM_INTERCEPT_INVLPGA = 1 << 26,
    SVM_INTERCEPT_IOIO = 1 << 27,
    SVM_INTERCEPT_MSR = 1 << 28,
    SVM_INTERCEPT_TASK_SWITCH = 1 << 29,
    SVM_INTERCEPT_FERR_FREEZE = 1 << 30,
};
#define SVM_INTERCEPT_SHUTDOWN ((u32)BIT(31))

enum svm_intercept4 {
    SVM_INTERCEPT_VMRUN = 1 << 0,
    SVM_INTERCEPT_VMMCALL = 1 << 1,
    SVM_INTERCEPT_VMLOAD = 1 << 2,
    SVM_INTERCEPT_VMSAVE = 1 << 3,
    SVM_INTERCEPT_STGI = 1 << 4,
    SVM_INTERCEPT_CLGI = 1 << 5,
    SVM_INTERCEPT_SKINIT = 1 << 6,
    SVM_INTERCEPT_RDTSCP = 1 << 7,
    SVM_INTERCEPT_ICEBP = 1 << 8,
    SVM_INTERCEPT_WBINVD = 1 << 9,
    SVM_INTERCEPT_MONITOR = 1 << 10,
    SVM_INTERCEPT_MWAIT = 1 << 11,
    SVM_INTERCEPT_MWAIT_CONDITIONAL = 1 << 12,
    SVM_INTERCEPT_XSETBV = 1 << 13,
    SVM_INTERCEPT_RDPRU = 1 << 14,
    SVM_INTERCEPT_EFER_WRITE_TRAP = 1 << 15,
};
#define SVM_INTERCEPT_CR0_WRITE_TRAP ((u32)BIT(16)) // and so on to CR15

enum svm_intercept5 {
    SVM_INTERCEPT_INVLPGB = 1 << 0,
    SVM_INTERCEPT_INVLPGB_ILLEGAL = 1 << 1,
    SVM_INTERCEPT_INVPCID = 1 << 2,
    SVM_INTERCEPT_MCOMMIT = 1 << 3,
    SVM_INTERCEPT_TLBSYNC = 1 << 4,
};

enum svm_exit_code {
    VMEXIT_CR0_READ = 0x00, // ..0f
    VMEXIT_CR0_WRITE = 0x10,
    VMEXIT_DR0_READ = 0x20,
    VMEXIT_DR0_WRITE = 0x30,
    VMEXIT_EXCP0 = 0x40, // ..5f
    VMEXIT_INTR = 0x60,
    VMEXIT_NMI = 0x61,
    VMEXIT_SMI = 0x62,
    VMEXIT_INIT = 0x63,
    VMEXIT_VINTR = 0x64,
    VMEXIT_CR0_SEL_WRITE = 0x65,
    VMEXIT_IDTR_READ = 0x66,
    VMEXIT_GDTR_READ = 0x67,
    VMEXIT_LDTR_READ = 0x68,
    VMEXIT_TR_READ = 0x69,
    VMEXIT_IDTR_WRITE = 0x6a,
    VMEXIT_GDTR_WRITE = 0x6b,
    VMEXIT_LDTR_WRITE = 0x6c,
    VMEXIT_TR_WRITE = 0x6d,
    VMEXIT_RDTSC = 0x6e,
    VMEXIT_RDPMC = 0x6f,
    VMEXIT_PUSHF = 0x70,
    VMEXIT_POPF = 0x71,
    VMEXIT_CPUID = 0x72,
    VMEXIT_RSM = 0x73,
    VMEXIT_IRET = 0x74,
    VMEXIT_SWINT = 0x75,
    VMEXIT_INVD = 0x76,
    VMEXIT_PAUSE = 0x77,
    VMEXIT_HLT = 0x78,
    VMEXIT_INVLPG = 0x79,
    VMEXIT_INVLPGA = 0x7a,
    VMEXIT_IOIO = 0x7b,
    VMEXIT_MSR = 0x7c,
    VMEXIT_TASK_SWITCH = 0x7d,
    VMEXIT_FERR_FREEZE = 0x7e,
    VMEXIT_SHUTDOWN = 0x7f,
    VMEXIT_VMRUN = 0x80,
    VMEXIT_VMMCALL = 0x81,
    VMEXIT_VMLOAD = 0x82,
    VMEXIT_VMSAVE = 0x83,
    VMEXIT_STGI = 0x84,
    VMEXIT_CLGI = 0x85,
    VMEXIT_SKINIT = 0x86,
    VMEXIT_RDTSCP = 0x87,
    VMEXIT_ICEBP = 0x88,
    VMEXIT_WBINVD = 0x89,
    VMEXIT_MONITOR = 0x8a,
    VMEXIT_MWAIT = 0x8b,
    VMEXIT_MWAIT_CONDITIONAL = 0x8c,
    VMEXIT_XSETBV = 0x8d,
    VMEXIT_RDPRU = 0x8e,
    VMEXIT_EFER_WRITE_TRAP = 0x8f,
    VMEXIT_CR0_WRITE_TRAP = 0x90, // ..9f
    VMEXIT_INVLPGB = 0xa0,
    VMEXIT_INVLPGB_ILLEGAL = 0xa1,
    VMEXIT_INVPCID = 0xa2,
    VMEXIT_MCOMMIT = 0xa3,
    VMEXIT_TLBSYNC = 0xa4,
    VMEXIT_BUSLOCK = 0xa5,
    VMEXIT_IDLE_HLT = 0xa6,
    VMEXIT_NPF = 0x400,
    VMEXIT_AVIC_INCOMPLETE_IPI = 0x401,
    VMEXIT_AVIC_NOACCEL = 0x402,
    VMEXIT_VMGEXIT = 0x403,
};
#define VMEXIT_INVALID       (~0ull)
#define VMEXIT_BUSY          (~1ull)
#define VMEXIT_IDLE_REQUIRED (~2ull)

// EVENTINJ and EXITINTINFO; the error code is in bits 63:32.
#define SVM_EVENT_VECTOR     BITS(7, 0)
#define SVM_EVENT_TYPE_SHIFT 8
#define SVM_EVENT_EV         BIT(11)
#define SVM_EVENT_V          BIT(31)
enum svm_event_type {
    SVM_EVENT_INTR = 0,
    SVM_EVENT_NMI = 2,
    SVM_EVENT_EXCEPTION = 3,
    SVM_EVENT_SOFT_INT = 4
};

// Virtual interrupt control at 0x60, by bytes: V_TPR; V_IRQ, V_GIF; V_INTR_PRIO, V_IGN_TPR;
// V_INTR_MASKING, V_GIF enable.
#define SVM_V_IRQ             0x01
#define SVM_V_GIF             0x02
#define SVM_V_INTR_PRIO_SHIFT 0
#define SVM_V_IGN_TPR         0x10
#define SVM_V_INTR_MASKING    0x01
#define SVM_V_GIF_ENABLE      0x02

enum svm_tlb_control {
    SVM_TLB_NOTHING = 0,
    SVM_TLB_FLUSH_ALL = 1,
    SVM_TLB_FLUSH_ASID = 3,
    SVM_TLB_FLUSH_ASID_NON_GLOBAL = 7
};

// VMCB clean bits (15.15): groups that the CPU may take from its cache of this VMCB.
enum svm_clean {
    SVM_CLEAN_I = 1 << 0,
    SVM_CLEAN_IOPM = 1 << 1,
    SVM_CLEAN_ASID = 1 << 2,
    SVM_CLEAN_TPR = 1 << 3,
    SVM_CLEAN_NP = 1 << 4,
    SVM_CLEAN_CRX = 1 << 5,
    SVM_CLEAN_DRX = 1 << 6,
    SVM_CLEAN_DT = 1 << 7,
    SVM_CLEAN_SEG = 1 << 8,
    SVM_CLEAN_CR2 = 1 << 9,
    SVM_CLEAN_LBR = 1 << 10,
    SVM_CLEAN_ALL = (1 << 11) - 1,
};

// The VMCB's lbr_control
#define SVM_VIRTUAL_LBR    BIT(0)
#define SVM_VIRTUAL_VMLOAD BIT(1)

// EXITINFO1 of VMEXIT_IOIO
#define SVM_IOIO_IN         BIT(0)
#define SVM_IOIO_STR        BIT(2)
#define SVM_IOIO_REP        BIT(3)
#define SVM_IOIO_SIZE       BITS(6, 4) // one-hot, in bytes
#define SVM_IOIO_SIZE_SHIFT 4
#define SVM_IOIO_ADDR       BITS(9, 7) // one-hot: 2, 4, 8 bytes
#define SVM_IOIO_ADDR_SHIFT 7
#define SVM_IOIO_SEG_SHIFT  10
#define SVM_IOIO_PORT_SHIFT 16
#define SVM_NP_ENABLE       BIT(0)

// EXITINFO1 of VMEXIT_NPF: a page-fault error code and
#define SVM_NPF_FINAL        BIT(32)
#define SVM_NPF_TABLE        BIT(33)
#define SVM_NPF_SHADOW_STACK BIT(37)
// EXITINFO1 of CR accesses with decode assists
#define SVM_CR_VALID BIT(63)
// EXITINFO2 of VMEXIT_TASK_SWITCH
#define SVM_TASK_IRET      BIT(36)
#define SVM_TASK_JMP       BIT(38)
#define SVM_TASK_HAS_ERROR BIT(44)
#define SVM_TASK_RF        BIT(48)

struct vmcb_segment {
    u16 selector;
    u16 attrib; // descriptor bits 55:52 and 47:40 as 12 bits
    u32 limit;
    u64 base;
};

struct vmcb { // naturally aligned; the asserts below keep it so
    // control area
    u32 intercept[SVM_WORD_COUNT];
    u8 reserved018[0x3c - 0x18];
    u16 pause_filter_threshold;
    u16 pause_filter_count;
    u64 iopm_base_pa;
    u64 msrpm_base_pa;
    u64 tsc_offset;
    u32 guest_asid;
    u32 tlb_control;
    u8 v_tpr;
    u8 v_irq;  // SVM_V_IRQ, SVM_V_GIF
    u8 v_prio; // V_INTR_PRIO, SVM_V_IGN_TPR
    u8 v_ctl;  // SVM_V_INTR_MASKING, SVM_V_GIF_ENABLE
    u8 v_intr_vector;
    u8 reserved065[3];
    u32 interrupt_shadow; // bit 0; bit 1: GUEST_INTERRUPT_MASK
    u32 reserved06c;
    u64 exitcode;
    u64 exitinfo1;
    u64 exitinfo2;
    u64 exitintinfo;
    u64 np_enable; // bit 0: nested paging
    u64 avic_apic_bar;
    u64 ghcb_pa;
    u64 eventinj;
    u64 n_cr3;
    u64 lbr_control; // bit 0: LBR virtualization, bit 1: virtual VMLOAD and VMSAVE
    u32 clean;
    u32 reserved0c4;
    u64 nrip;
    u8 insn_bytes_count;
    u8 insn_bytes[15];
    u8 reserved0e0[0x400 - 0xe0];
    // state save area
    struct vmcb_segment es, cs, ss, ds, fs, gs, gdtr, ldtr, idtr, tr;
    u8 reserved4a0[0x4cb - 0x4a0];
    u8 cpl;
    u32 reserved4cc;
    u64 efer;
    u8 reserved4d8[0x548 - 0x4d8];
    u64 cr4, cr3, cr0;
    u64 dr7, dr6;
    u64 rflags, rip;
    u8 reserved580[0x5d8 - 0x580];
    u64 rsp;
    u64 s_cet, ssp, isst_addr;
    u64 rax;
    u64 star, lstar, cstar, sfmask, kernel_gs_base;
    u64 sysenter_cs, sysenter_esp, sysenter_eip;
    u64 cr2;
    u8 reserved648[0x668 - 0x648];
    u64 g_pat;
    u64 dbgctl, br_from, br_to, last_excp_from, last_excp_to;
    u8 reserved698[0x1000 - 0x698];
};

#define VMCB_AT(field, offset) _Static_assert(offsetof(struct vmcb, field) == (offset), #field)
VMCB_AT(intercept, 0x000);
VMCB_AT(pause_filter_threshold, 0x03c);
VMCB_AT(pause_filter_count, 0x03e);
VMCB_AT(iopm_base_pa, 0x040);
VMCB_AT(msrpm_base_pa, 0x048);
VMCB_AT(tsc_offset, 0x050);
VMCB_AT(guest_asid, 0x058);
VMCB_AT(tlb_control, 0x05c);
VMCB_AT(v_tpr, 0x060);
VMCB_AT(v_intr_vector, 0x064);
VMCB_AT(interrupt_shadow, 0x068);
VMCB_AT(exitcode, 0x070);
VMCB_AT(exitinfo1, 0x078);
VMCB_AT(exitinfo2, 0x080);
VMCB_AT(exitintinfo, 0x088);
VMCB_AT(np_enable, 0x090);
VMCB_AT(avic_apic_bar, 0x098);
VMCB_AT(ghcb_pa, 0x0a0);
VMCB_AT(eventinj, 0x0a8);
VMCB_AT(n_cr3, 0x0b0);
VMCB_AT(lbr_control, 0x0b8);
VMCB_AT(clean, 0x0c0);
VMCB_AT(nrip, 0x0c8);
VMCB_AT(insn_bytes_count, 0x0d0);
VMCB_AT(insn_bytes, 0x0d1);
VMCB_AT(es, 0x400);
VMCB_AT(cs, 0x410);
VMCB_AT(ss, 0x420);
VMCB_AT(ds, 0x430);
VMCB_AT(fs, 0x440);
VMCB_AT(gs, 0x450);
VMCB_AT(gdtr, 0x460);
VMCB_AT(ldtr, 0x470);
VMCB_AT(idtr, 0x480);
VMCB_AT(tr, 0x490);
VMCB_AT(cpl, 0x4cb);
VMCB_AT(efer, 0x4d0);
VMCB_AT(cr4, 0x548);
VMCB_AT(cr3, 0x550);
VMCB_AT(cr0, 0x558);
VMCB_AT(dr7, 0x560);
VMCB_AT(dr6, 0x568);
VMCB_AT(rflags, 0x570);
VMCB_AT(rip, 0x578);
VMCB_AT(rsp, 0x5d8);
VMCB_AT(s_cet, 0x5e0);
VMCB_AT(ssp, 0x5e8);
VMCB_AT(isst_addr, 0x5f0);
VMCB_AT(rax, 0x5f8);
VMCB_AT(star, 0x600);
VMCB_AT(lstar, 0x608);
VMCB_AT(cstar, 0x610);
VMCB_AT(sfmask, 0x618);
VMCB_AT(kernel_gs_base, 0x620);
VMCB_AT(sysenter_cs, 0x628);
VMCB_AT(sysenter_esp, 0x630);
VMCB_AT(sysenter_eip, 0x638);
VMCB_AT(cr2, 0x640);
VMCB_AT(g_pat, 0x668);
VMCB_AT(dbgctl, 0x670);
VMCB_AT(br_from, 0x678);
VMCB_AT(br_to, 0x680);
VMCB_AT(last_excp_from, 0x688);
VMCB_AT(last_excp_to, 0x690);
#undef VMCB_AT
_Static_assert(sizeof(struct vmcb) == PAGE_SIZE, "VMCB");
