// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// EXITCODE, EXITINFO1, EXITINFO2 and EXITINTINFO to struct vm_exit (APM vol. 2 appendix C, 15.7.2, 15.9 to 15.12, 15.20, 15.25.6). Pure.
//
// Without nRIP save the length of an instruction is not known (but of IN and OUT); without decode assists neither are the register
// of a CR or DR access, INVLPG's address, INTn's vector: core decodes the instruction. INVLPG's `linear` counts when operand.known.
// A CR0 write with an unknown register may be MOV, CLTS or LMSW, a CR0 read MOV or SMSW.
// QEMU's RDTSCP exits as RDTSC, and its INT3 and INTO as INTn intercepts or, in EXITINTINFO, as type 4.

#include <arch/x86/regs.h>
#include <nestor/string.h>

#include "svm.h"

typedef void fill_fn(const struct vmcb *vmcb, struct vm_exit *exit);

enum { INSN = true, NOT_INSN = false };

struct exit_row {
    fill_fn *fill;
    u8 kind;
    bool insn; // an instruction's intercept: nRIP is the next one's address
};

static const u32 error_code_vectors = BIT(VECTOR_DF) | BIT(VECTOR_TS) | BIT(VECTOR_NP) | BIT(VECTOR_SS) | BIT(VECTOR_GP) |
                                      BIT(VECTOR_PF) | BIT(VECTOR_AC) | BIT(VECTOR_CP) | BIT(29) | BIT(VECTOR_SX);

static void fill_nothing(const struct vmcb *vmcb, struct vm_exit *exit)
{
    (void)vmcb;
    (void)exit;
}

static bool assists(void)
{
    return svm_has(SVM_FEATURE_DECODE_ASSISTS);
}

// 0: not known.
static u8 insn_length(const struct vmcb *vmcb)
{
    u64 length = vmcb->nrip - vmcb->rip;

    return svm_has(SVM_FEATURE_NRIPS) && length <= 15 ? (u8)length : 0;
}

static void fill_cr(const struct vmcb *vmcb, struct vm_exit *exit)
{
    bool known = assists() && (vmcb->exitinfo1 & SVM_CR_VALID);

    exit->cr = (struct exit_cr){
        .number = (u8)(vmcb->exitcode & 0xf),
        .access = vmcb->exitcode & 0x10 ? CR_WRITE : CR_READ,
        .gpr = known ? (u8)(vmcb->exitinfo1 & 0xf) : EXIT_GPR_UNKNOWN,
    };
}

static void fill_cr0_selective(const struct vmcb *vmcb, struct vm_exit *exit)
{
    fill_cr(vmcb, exit);
    exit->cr.number = 0;
    exit->cr.access = CR_WRITE;
    exit->cr.selective = true;
}

static void fill_dr(const struct vmcb *vmcb, struct vm_exit *exit)
{
    exit->dr = (struct exit_dr){
        .number = (u8)(vmcb->exitcode & 0xf),
        .write = vmcb->exitcode & 0x10,
        .gpr = assists() ? (u8)(vmcb->exitinfo1 & 0xf) : EXIT_GPR_UNKNOWN,
    };
}

static void copy_insn_bytes(const struct vmcb *vmcb, struct vm_exit *exit)
{
    if (!assists())
        return;
    exit->bytes_count = MIN(vmcb->insn_bytes_count, (u8)sizeof(exit->bytes));
    memcpy(exit->bytes, vmcb->insn_bytes, exit->bytes_count);
}

// The VMCB's DR6 is what the handler would see.
static u64 debug_payload(u64 dr6)
{
    return (dr6 & (0xf | DR6_BD | DR6_BS | DR6_BT)) | (~dr6 & (DR6_BLD | DR6_RTM));
}

static void fill_exception(const struct vmcb *vmcb, struct vm_exit *exit)
{
    u8 vector = (u8)(vmcb->exitcode - VMEXIT_EXCP0);
    bool software = vector == VECTOR_BP || vector == VECTOR_OF;

    exit->event = (struct event){
        .valid = true,
        .vector = vector,
        .type = software ? EVENT_SOFT_EXCEPTION : EVENT_EXCEPTION,
        .has_error = error_code_vectors & BIT(vector),
        .error = error_code_vectors & BIT(vector) ? (u32)vmcb->exitinfo1 : 0,
        .insn_len = software ? insn_length(vmcb) : 0,
    };
    if (vector == VECTOR_PF || vector == VECTOR_DB) {
        exit->event.has_payload = true;
        exit->event.payload = vector == VECTOR_PF ? vmcb->exitinfo2 : debug_payload(vmcb->dr6);
    }
    if (vector == VECTOR_PF)
        copy_insn_bytes(vmcb, exit);
}

static void fill_nmi(const struct vmcb *vmcb, struct vm_exit *exit)
{
    (void)vmcb;
    exit->event = (struct event){.valid = true, .vector = VECTOR_NMI, .type = EVENT_NMI};
}

static void fill_soft_int(const struct vmcb *vmcb, struct vm_exit *exit)
{
    exit->event = (struct event){
        .valid = assists(), // else the instruction has to be decoded
        .vector = (u8)vmcb->exitinfo1,
        .type = EVENT_SOFT_INTERRUPT,
        .insn_len = exit->insn_len,
    };
}

static void fill_linear(const struct vmcb *vmcb, struct vm_exit *exit)
{
    exit->operand.known = assists();
    exit->linear = vmcb->exitinfo1;
}

// SGDT SIDT LGDT LIDT, and the same for LDTR and TR: exit.h's `identity` from the order of the codes.
static void fill_tables(const struct vmcb *vmcb, struct vm_exit *exit)
{
    static const u8 identity[] = {
        [VMEXIT_IDTR_READ - VMEXIT_IDTR_READ] = 1,  [VMEXIT_GDTR_READ - VMEXIT_IDTR_READ] = 0,
        [VMEXIT_LDTR_READ - VMEXIT_IDTR_READ] = 0,  [VMEXIT_TR_READ - VMEXIT_IDTR_READ] = 1,
        [VMEXIT_IDTR_WRITE - VMEXIT_IDTR_READ] = 3, [VMEXIT_GDTR_WRITE - VMEXIT_IDTR_READ] = 2,
        [VMEXIT_LDTR_WRITE - VMEXIT_IDTR_READ] = 2, [VMEXIT_TR_WRITE - VMEXIT_IDTR_READ] = 3,
    };

    exit->operand.identity = identity[vmcb->exitcode - VMEXIT_IDTR_READ];
}

static void fill_io(const struct vmcb *vmcb, struct vm_exit *exit)
{
    u64 info = vmcb->exitinfo1;
    u8 addr = (u8)((info & SVM_IOIO_ADDR) >> SVM_IOIO_ADDR_SHIFT);

    exit->io = (struct exit_io){
        .port = (u16)(info >> SVM_IOIO_PORT_SHIFT),
        .size = (u8)((info & SVM_IOIO_SIZE) >> SVM_IOIO_SIZE_SHIFT),
        .in = info & SVM_IOIO_IN,
        .string = info & SVM_IOIO_STR,
        .rep = info & SVM_IOIO_REP,
        .addr_size = addr ? (u8)(addr << 1) : 0xff,
        .seg = assists() ? (u8)(info >> SVM_IOIO_SEG_SHIFT & 7) : 0xff,
    };
    exit->next_rip = vmcb->exitinfo2;
    exit->insn_len = (u8)(exit->next_rip - vmcb->rip);
}

static void fill_msr(const struct vmcb *vmcb, struct vm_exit *exit)
{
    exit->kind = vmcb->exitinfo1 & 1 ? EXIT_WRMSR : EXIT_RDMSR;
}

static void fill_task_switch(const struct vmcb *vmcb, struct vm_exit *exit)
{
    u64 info = vmcb->exitinfo2;
    u8 source = 0;

    if (info & SVM_TASK_IRET)
        source = 1;
    else if (info & SVM_TASK_JMP)
        source = 2;
    else if (vmcb->exitintinfo & SVM_EVENT_V)
        source = 3;
    exit->task = (struct exit_task_switch){
        .selector = (u16)vmcb->exitinfo1,
        .source = source,
        .has_error = info & SVM_TASK_HAS_ERROR,
        .error = (u32)info,
        .rf = info & SVM_TASK_RF,
    };
}

static void fill_npf(const struct vmcb *vmcb, struct vm_exit *exit)
{
    u64 error = vmcb->exitinfo1;

    exit->stage2 = (struct exit_stage2){
        .gpa = vmcb->exitinfo2,
        .gla_final = error & SVM_NPF_FINAL,
        .read = !(error & (PF_W | PF_I)),
        .write = error & PF_W,
        .execute = error & PF_I,
        .present = error & PF_P,
        .user = error & PF_U,
        .reserved = error & PF_RSVD,
        .shadow_stack = error & (PF_SS | SVM_NPF_SHADOW_STACK),
    };
    if (error & SVM_NPF_FINAL)
        copy_insn_bytes(vmcb, exit);
}

static const struct exit_row exit_rows[] = {
    [VMEXIT_CR0_READ ... VMEXIT_CR0_WRITE + 15] = {fill_cr, EXIT_CR, INSN},
    [VMEXIT_DR0_READ ... VMEXIT_DR0_WRITE + 15] = {fill_dr, EXIT_DR, INSN},
    [VMEXIT_EXCP0 ... VMEXIT_EXCP0 + VECTOR_MF + 1] = {fill_exception, EXIT_EXCEPTION, NOT_INSN},
    [VMEXIT_EXCP0 + VECTOR_MC] = {fill_nothing, EXIT_MACHINE_CHECK, NOT_INSN},
    [VMEXIT_EXCP0 + VECTOR_XM ... VMEXIT_EXCP0 + 31] = {fill_exception, EXIT_EXCEPTION, NOT_INSN},
    [VMEXIT_INTR] = {fill_nothing, EXIT_EXTERNAL_INTERRUPT, NOT_INSN},
    [VMEXIT_NMI] = {fill_nmi, EXIT_NMI, NOT_INSN},
    [VMEXIT_SMI] = {fill_nothing, EXIT_NONE, NOT_INSN}, // the machine's own: taken at STGI
    [VMEXIT_INIT] = {fill_nothing, EXIT_INIT, NOT_INSN},
    [VMEXIT_VINTR] = {fill_nothing, EXIT_INTERRUPT_WINDOW, NOT_INSN},
    [VMEXIT_CR0_SEL_WRITE] = {fill_cr0_selective, EXIT_CR, INSN},
    [VMEXIT_IDTR_READ] = {fill_tables, EXIT_GDTR_IDTR, INSN},
    [VMEXIT_GDTR_READ] = {fill_tables, EXIT_GDTR_IDTR, INSN},
    [VMEXIT_LDTR_READ] = {fill_tables, EXIT_LDTR_TR, INSN},
    [VMEXIT_TR_READ] = {fill_tables, EXIT_LDTR_TR, INSN},
    [VMEXIT_IDTR_WRITE] = {fill_tables, EXIT_GDTR_IDTR, INSN},
    [VMEXIT_GDTR_WRITE] = {fill_tables, EXIT_GDTR_IDTR, INSN},
    [VMEXIT_LDTR_WRITE] = {fill_tables, EXIT_LDTR_TR, INSN},
    [VMEXIT_TR_WRITE] = {fill_tables, EXIT_LDTR_TR, INSN},
    [VMEXIT_RDTSC] = {fill_nothing, EXIT_RDTSC, INSN},
    [VMEXIT_RDPMC] = {fill_nothing, EXIT_RDPMC, INSN},
    [VMEXIT_PUSHF] = {fill_nothing, EXIT_PUSHF, INSN},
    [VMEXIT_POPF] = {fill_nothing, EXIT_POPF, INSN},
    [VMEXIT_CPUID] = {fill_nothing, EXIT_CPUID, INSN},
    [VMEXIT_RSM] = {fill_nothing, EXIT_RSM, INSN},
    [VMEXIT_IRET] = {fill_nothing, EXIT_IRET, INSN},
    [VMEXIT_SWINT] = {fill_soft_int, EXIT_SOFT_INT, INSN},
    [VMEXIT_INVD] = {fill_nothing, EXIT_INVD, INSN},
    [VMEXIT_PAUSE] = {fill_nothing, EXIT_PAUSE, INSN},
    [VMEXIT_HLT] = {fill_nothing, EXIT_HLT, INSN},
    [VMEXIT_INVLPG] = {fill_linear, EXIT_INVLPG, INSN},
    [VMEXIT_INVLPGA] = {fill_nothing, EXIT_INVLPGA, INSN},
    [VMEXIT_IOIO] = {fill_io, EXIT_IO, NOT_INSN}, // its next RIP is in EXITINFO2
    [VMEXIT_MSR] = {fill_msr, EXIT_RDMSR, INSN},
    [VMEXIT_TASK_SWITCH] = {fill_task_switch, EXIT_TASK_SWITCH, NOT_INSN},
    [VMEXIT_FERR_FREEZE] = {fill_nothing, EXIT_FERR_FREEZE, NOT_INSN},
    [VMEXIT_SHUTDOWN] = {fill_nothing, EXIT_TRIPLE_FAULT, NOT_INSN},
    [VMEXIT_VMRUN] = {fill_nothing, EXIT_VMRUN, INSN},
    [VMEXIT_VMMCALL] = {fill_nothing, EXIT_VMMCALL, INSN},
    [VMEXIT_VMLOAD] = {fill_nothing, EXIT_VMLOAD, INSN},
    [VMEXIT_VMSAVE] = {fill_nothing, EXIT_VMSAVE, INSN},
    [VMEXIT_STGI] = {fill_nothing, EXIT_STGI, INSN},
    [VMEXIT_CLGI] = {fill_nothing, EXIT_CLGI, INSN},
    [VMEXIT_SKINIT] = {fill_nothing, EXIT_SKINIT, INSN},
    [VMEXIT_RDTSCP] = {fill_nothing, EXIT_RDTSCP, INSN},
    [VMEXIT_ICEBP] = {fill_nothing, EXIT_ICEBP, INSN},
    [VMEXIT_WBINVD] = {fill_nothing, EXIT_WBINVD, INSN},
    [VMEXIT_MONITOR] = {fill_nothing, EXIT_MONITOR, INSN},
    [VMEXIT_MWAIT] = {fill_nothing, EXIT_MWAIT, INSN},
    [VMEXIT_MWAIT_CONDITIONAL] = {fill_nothing, EXIT_MWAIT, INSN},
    [VMEXIT_XSETBV] = {fill_nothing, EXIT_XSETBV, INSN},
    [VMEXIT_RDPRU] = {fill_nothing, EXIT_RDPRU, INSN},
    [VMEXIT_EFER_WRITE_TRAP] = {fill_nothing, EXIT_UNKNOWN, NOT_INSN}, // never asked for, as all that follow but INVPCID
    [VMEXIT_CR0_WRITE_TRAP ... VMEXIT_CR0_WRITE_TRAP + 15] = {fill_nothing, EXIT_UNKNOWN, NOT_INSN},
    [VMEXIT_INVLPGB] = {fill_nothing, EXIT_UNKNOWN, INSN},
    [VMEXIT_INVLPGB_ILLEGAL] = {fill_nothing, EXIT_UNKNOWN, INSN},
    [VMEXIT_INVPCID] = {fill_nothing, EXIT_INVPCID, INSN},
    [VMEXIT_MCOMMIT] = {fill_nothing, EXIT_UNKNOWN, INSN},
    [VMEXIT_TLBSYNC] = {fill_nothing, EXIT_UNKNOWN, INSN},
    [VMEXIT_BUSLOCK] = {fill_nothing, EXIT_UNKNOWN, NOT_INSN},
    [VMEXIT_IDLE_HLT] = {fill_nothing, EXIT_HLT, INSN},
};
static const struct exit_row npf_row = {fill_npf, EXIT_STAGE2, NOT_INSN};
static const struct exit_row refused_row = {fill_nothing, EXIT_ENTRY_FAILED, NOT_INSN};
static const struct exit_row unknown_row = {fill_nothing, EXIT_UNKNOWN, NOT_INSN};

static const struct exit_row *find_row(u64 code)
{
    if (likely(code < ARRAY_SIZE(exit_rows)))
        return exit_rows[code].fill ? &exit_rows[code] : &unknown_row;
    if (code == VMEXIT_NPF)
        return &npf_row;
    // QEMU stores only the low half of VMEXIT_INVALID.
    if (code == VMEXIT_INVALID || code == (u32)VMEXIT_INVALID || code == VMEXIT_BUSY || code == VMEXIT_IDLE_REQUIRED)
        return &refused_row;
    return &unknown_row; // AVIC's and VMGEXIT: never asked for
}

static void fill_interrupted(const struct vmcb *vmcb, struct event *event)
{
    u64 info = vmcb->exitintinfo;
    u8 vector = (u8)(info & SVM_EVENT_VECTOR);
    u8 type = info >> SVM_EVENT_TYPE_SHIFT & 7; // the encodings are VMX's but for what follows
    bool software;

    if (type == SVM_EVENT_EXCEPTION && (vector == VECTOR_BP || vector == VECTOR_OF))
        type = EVENT_SOFT_EXCEPTION;
    software = type == EVENT_SOFT_EXCEPTION || type == EVENT_SOFT_INTERRUPT;
    *event = (struct event){
        .valid = true,
        .vector = vector,
        .type = type,
        .has_error = info & SVM_EVENT_EV,
        .error = info & SVM_EVENT_EV ? (u32)(info >> 32) : 0,
        .insn_len = software ? insn_length(vmcb) : 0,
    };
}

void svm_fill_exit(const struct vmcb *vmcb, struct vm_exit *exit)
{
    const struct exit_row *row = find_row(vmcb->exitcode);

    exit->kind = row->kind;
    exit->entry_failed = false;
    exit->insn_len = 0;
    exit->bytes_count = 0;
    exit->nmi_unblocked_by_iret = false;
    exit->vector_valid = false;
    exit->next_rip = 0;
    exit->raw_reason = vmcb->exitcode;
    exit->raw_info1 = vmcb->exitinfo1;
    exit->raw_info2 = vmcb->exitinfo2;
    exit->interrupted.valid = false;
    exit->operand.known = false;
    if (row->insn && insn_length(vmcb)) {
        exit->next_rip = vmcb->nrip;
        exit->insn_len = insn_length(vmcb);
    }
    row->fill(vmcb, exit);
    if (unlikely(vmcb->exitintinfo & SVM_EVENT_V))
        fill_interrupted(vmcb, &exit->interrupted);
    if (unlikely(exit->kind == EXIT_ENTRY_FAILED))
        exit->entry_failed = true;
}
