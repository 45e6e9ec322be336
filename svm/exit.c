// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// EXITCODE, EXITINFO1, EXITINFO2 and EXITINTINFO to struct vm_exit (APM vol. 2 appendix C, 15.7.2,
// 15.9 to 15.12, 15.20, 15.25.6). Pure.
//
// Without nRIP save the length of an instruction is not known (but of IN and OUT); without decode
// assists neither are the register of a CR or DR access, INVLPG's address, INTn's vector: core
// decodes the instruction. INVLPG's `linear` counts when operand.known. A CR0 write with an unknown
// register may be MOV, CLTS or LMSW, a CR0 read MOV or SMSW.

#include <arch/x86/regs.h>
#include <nestor/string.h>

#include "exit.h"
#include "quirks.h"

static const u32 error_code_vectors = BIT(VECTOR_DF) | BIT(VECTOR_TS) | BIT(VECTOR_NP) |
                                      BIT(VECTOR_SS) | BIT(VECTOR_GP) | BIT(VECTOR_PF) |
                                      BIT(VECTOR_AC) | BIT(VECTOR_CP) | BIT(29) | BIT(VECTOR_SX);

static bool assists(void)
{
    return svm_has(SVM_FEATURE_DECODE_ASSISTS);
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

static u64 debug_payload(u64 dr6)
{
    return svm_debug_causes((dr6 & (0xf | DR6_BD | DR6_BS | DR6_BT)) |
                            (~dr6 & (DR6_BLD | DR6_RTM)));
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
        .insn_len = software ? svm_insn_length(vmcb) : 0,
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

// SGDT SIDT LGDT LIDT, and the same for LDTR and TR: exit.h's `identity` from the order of the
// codes.
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

static void fill_string_io(u64 info, struct exit_io *io)
{
    u8 addr = (u8)((info & SVM_IOIO_ADDR) >> SVM_IOIO_ADDR_SHIFT);

    io->string = true;
    io->rep = info & SVM_IOIO_REP;
    if (addr)
        io->addr_size = (u8)(addr << 1);
    if (assists())
        io->seg = (u8)(info >> SVM_IOIO_SEG_SHIFT & 7);
}

static void fill_io(const struct vmcb *vmcb, struct vm_exit *exit)
{
    u64 info = vmcb->exitinfo1;

    exit->io.port = (u16)(info >> SVM_IOIO_PORT_SHIFT);
    exit->io.size = (u8)((info & SVM_IOIO_SIZE) >> SVM_IOIO_SIZE_SHIFT);
    exit->io.in = info & SVM_IOIO_IN;
    exit->io.string = exit->io.rep = exit->io.immediate = false;
    exit->io.addr_size = exit->io.seg = 0xff;
    exit->next_rip = vmcb->exitinfo2;
    exit->insn_len = (u8)(exit->next_rip - vmcb->rip);
    if (unlikely(info & SVM_IOIO_STR))
        fill_string_io(info, &exit->io);
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

static void fill_refused(const struct vmcb *vmcb, struct vm_exit *exit)
{
    (void)vmcb;
    exit->entry_failed = true;
}

const struct exit_row svm_exit_rows[SVM_EXIT_ROWS] = {
    [VMEXIT_CR0_READ... VMEXIT_CR0_WRITE + 15] = {fill_cr, EXIT_CR, INSN},
    [VMEXIT_DR0_READ... VMEXIT_DR0_WRITE + 15] = {fill_dr, EXIT_DR, INSN},
    [VMEXIT_EXCP0... VMEXIT_EXCP0 + VECTOR_MF + 1] = {fill_exception, EXIT_EXCEPTION, 0},
    [VMEXIT_EXCP0 + VECTOR_MC] = {NULL, EXIT_MACHINE_CHECK, 0},
    [VMEXIT_EXCP0 + VECTOR_XM... VMEXIT_EXCP0 + 31] = {fill_exception, EXIT_EXCEPTION, 0},
    [VMEXIT_INTR] = {NULL, EXIT_EXTERNAL_INTERRUPT, ADJUST},
    [VMEXIT_NMI] = {fill_nmi, EXIT_NMI, 0},
    [VMEXIT_SMI] = {NULL, EXIT_NONE, 0}, // the machine's own: taken at STGI
    [VMEXIT_INIT] = {NULL, EXIT_INIT, 0},
    [VMEXIT_VINTR] = {NULL, EXIT_INTERRUPT_WINDOW, 0},
    [VMEXIT_CR0_SEL_WRITE] = {fill_cr0_selective, EXIT_CR, INSN},
    [VMEXIT_IDTR_READ] = {fill_tables, EXIT_GDTR_IDTR, INSN},
    [VMEXIT_GDTR_READ] = {fill_tables, EXIT_GDTR_IDTR, INSN},
    [VMEXIT_LDTR_READ] = {fill_tables, EXIT_LDTR_TR, INSN},
    [VMEXIT_TR_READ] = {fill_tables, EXIT_LDTR_TR, INSN},
    [VMEXIT_IDTR_WRITE] = {fill_tables, EXIT_GDTR_IDTR, INSN},
    [VMEXIT_GDTR_WRITE] = {fill_tables, EXIT_GDTR_IDTR, INSN},
    [VMEXIT_LDTR_WRITE] = {fill_tables, EXIT_LDTR_TR, INSN},
    [VMEXIT_TR_WRITE] = {fill_tables, EXIT_LDTR_TR, INSN},
    [VMEXIT_RDTSC] = {NULL, EXIT_RDTSC, INSN},
    [VMEXIT_RDPMC] = {NULL, EXIT_RDPMC, INSN},
    [VMEXIT_PUSHF] = {NULL, EXIT_PUSHF, INSN},
    [VMEXIT_POPF] = {NULL, EXIT_POPF, INSN},
    [VMEXIT_CPUID] = {NULL, EXIT_CPUID, INSN},
    [VMEXIT_RSM] = {NULL, EXIT_RSM, INSN},
    [VMEXIT_IRET] = {NULL, EXIT_IRET, INSN | ADJUST},
    [VMEXIT_SWINT] = {fill_soft_int, EXIT_SOFT_INT, INSN},
    [VMEXIT_INVD] = {NULL, EXIT_INVD, INSN},
    [VMEXIT_PAUSE] = {NULL, EXIT_PAUSE, INSN},
    [VMEXIT_HLT] = {NULL, EXIT_HLT, INSN},
    [VMEXIT_INVLPG] = {fill_linear, EXIT_INVLPG, INSN},
    [VMEXIT_INVLPGA] = {NULL, EXIT_INVLPGA, INSN},
    [VMEXIT_IOIO] = {fill_io, EXIT_IO, 0}, // its next RIP is in EXITINFO2
    [VMEXIT_MSR] = {fill_msr, EXIT_RDMSR, INSN},
    [VMEXIT_TASK_SWITCH] = {fill_task_switch, EXIT_TASK_SWITCH, 0},
    [VMEXIT_FERR_FREEZE] = {NULL, EXIT_FERR_FREEZE, 0},
    [VMEXIT_SHUTDOWN] = {NULL, EXIT_TRIPLE_FAULT, 0},
    [VMEXIT_VMRUN] = {NULL, EXIT_VMRUN, INSN},
    [VMEXIT_VMMCALL] = {NULL, EXIT_VMMCALL, INSN},
    [VMEXIT_VMLOAD] = {NULL, EXIT_VMLOAD, INSN},
    [VMEXIT_VMSAVE] = {NULL, EXIT_VMSAVE, INSN},
    [VMEXIT_STGI] = {NULL, EXIT_STGI, INSN},
    [VMEXIT_CLGI] = {NULL, EXIT_CLGI, INSN},
    [VMEXIT_SKINIT] = {NULL, EXIT_SKINIT, INSN},
    [VMEXIT_RDTSCP] = {NULL, EXIT_RDTSCP, INSN},
    [VMEXIT_ICEBP] = {NULL, EXIT_ICEBP, INSN},
    [VMEXIT_WBINVD] = {NULL, EXIT_WBINVD, INSN},
    [VMEXIT_MONITOR] = {NULL, EXIT_MONITOR, INSN},
    [VMEXIT_MWAIT] = {NULL, EXIT_MWAIT, INSN},
    [VMEXIT_MWAIT_CONDITIONAL] = {NULL, EXIT_MWAIT, INSN},
    [VMEXIT_XSETBV] = {NULL, EXIT_XSETBV, INSN},
    [VMEXIT_RDPRU] = {NULL, EXIT_RDPRU, INSN},
    // Never asked for, as all that follow as unknown.
    [VMEXIT_EFER_WRITE_TRAP] = {NULL, EXIT_UNKNOWN, 0},
    [VMEXIT_CR0_WRITE_TRAP... VMEXIT_CR0_WRITE_TRAP + 15] = {NULL, EXIT_UNKNOWN, 0},
    [VMEXIT_INVLPGB] = {NULL, EXIT_UNDEFINED, INSN},
    [VMEXIT_INVLPGB_ILLEGAL] = {NULL, EXIT_UNDEFINED, INSN},
    [VMEXIT_INVPCID] = {NULL, EXIT_INVPCID, INSN},
    [VMEXIT_MCOMMIT] = {NULL, EXIT_UNKNOWN, INSN},
    [VMEXIT_TLBSYNC] = {NULL, EXIT_UNDEFINED, INSN},
    [VMEXIT_BUSLOCK] = {NULL, EXIT_UNKNOWN, 0},
    [VMEXIT_IDLE_HLT] = {NULL, EXIT_HLT, INSN},
};
static const struct exit_row npf_row = {fill_npf, EXIT_STAGE2, 0};
static const struct exit_row refused_row = {fill_refused, EXIT_ENTRY_FAILED, 0};
static const struct exit_row unknown_row = {NULL, EXIT_UNKNOWN, 0};

const struct exit_row *svm_find_exit_row(u64 code)
{
    if (code == VMEXIT_NPF)
        return &npf_row;
    if (svm_is_invalid(code) || code == VMEXIT_BUSY || code == VMEXIT_IDLE_REQUIRED)
        return &refused_row;
    return &unknown_row; // AVIC's and VMGEXIT: never asked for
}

void svm_fill_interrupted(const struct vmcb *vmcb, struct event *event)
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
        .insn_len = software ? svm_insn_length(vmcb) : 0,
    };
}
