// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// From a VMX exit to struct vm_exit. SDM vol. 3 appendix C "VMX Basic Exit Reasons" and "Recording
// VM-Exit Information and Updating VM-Entry Control Fields" (exit qualifications, instruction
// information). Pure.

#include "exit.h"
#include <arch/x86/regs.h>
#include <nestor/segment.h>

static u8 bits(u64 value, unsigned high, unsigned low)
{
    return (u8)(value >> low & (BIT(high - low + 1) - 1));
}

void vmx_event(struct event *event, u32 info, u32 error, u32 insn_len)
{
    *event = (struct event){
        .valid = true,
        .vector = (u8)info,
        .type = bits(info, 10, 8),
        .has_error = info & INFO_ERROR_CODE,
        .error = info & INFO_ERROR_CODE ? error : 0,
        .insn_len = vmx_event_is_soft(info) ? (u8)insn_len : 0,
    };
}

static void fill_exception(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    struct event *event = &exit->event;

    vmx_event(event, info->interruption, info->interruption_error, info->insn_len);
    exit->raw_info2 = info->interruption;
    if (event->type == EVENT_NMI) {
        exit->kind = EXIT_NMI;
        return;
    }
    if (event->vector == VECTOR_MC)
        exit->kind = EXIT_MACHINE_CHECK;
    if (event->vector == VECTOR_PF || event->vector == VECTOR_DB) {
        event->has_payload = true;
        event->payload = event->vector == VECTOR_PF ? info->qualification
                                                    : info->qualification & QUAL_DB_PAYLOAD;
    }
    // INT1 and general detect end no instruction that could have been stepped over; Bochs reports a
    // step all the same (2.7 for INT1, the newer ones too for general detect).
    if (event->vector == VECTOR_DB && (event->type == EVENT_INT1 || (event->payload & DR6_BD)))
        event->payload &= ~(u64)DR6_BS;
    if (event->vector != VECTOR_DF && !info->vectoring)
        exit->nmi_unblocked_by_iret = info->interruption & INFO_NMI_UNBLOCKING;
}

static void fill_interrupt(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    exit->vector_valid = info->interruption & INFO_VALID;
    exit->vector = (u8)info->interruption;
}

static void fill_sipi(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    exit->vector = (u8)info->qualification;
    exit->vector_valid = true;
}

static void fill_stage2(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    u64 q = info->qualification;

    exit->stage2 = (struct exit_stage2){
        .gpa = info->gpa,
        .gla = info->gla,
        .gla_valid = q & QUAL_EPT_GLA_VALID,
        .gla_final = q & QUAL_EPT_GLA_FINAL,
        .read = q & QUAL_EPT_READ,
        .write = q & QUAL_EPT_WRITE,
        .execute = q & QUAL_EPT_EXECUTE,
        .rights = bits(q, 5, 3),
        .present = bits(q, 5, 3),
        .shadow_stack = q & QUAL_EPT_SHADOW_STACK,
    };
    if (!info->vectoring)
        exit->nmi_unblocked_by_iret = q & QUAL_EPT_NMI_UNBLOCKING;
}

static void fill_misconfig(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    exit->stage2 = (struct exit_stage2){.gpa = info->gpa, .reserved = true, .present = true};
}

static void fill_io(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    u64 q = info->qualification;

    exit->io = (struct exit_io){
        .port = (u16)(q >> 16),
        .size = (u8)(bits(q, 2, 0) + 1),
        .in = q & BIT(3),
        .string = q & BIT(4),
        .rep = q & BIT(5),
        .immediate = q & BIT(6),
        .addr_size = 0xff,
        .seg = 0xff,
    };
    if (!exit->io.string || !info->has_insn_info)
        return;
    exit->io.addr_size = (u8)(2u << bits(info->insn_info, 9, 7));
    exit->io.seg = exit->io.in ? SEG_ES : bits(info->insn_info, 17, 15);
}

static void fill_cr(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    u64 q = info->qualification;

    exit->cr = (struct exit_cr){
        .number = bits(q, 3, 0),
        .access = bits(q, 5, 4), // as enum cr_access
        .gpr = bits(q, 11, 8),
        .lmsw_memory = q & BIT(6),
        .lmsw_source = (u16)(q >> 16),
    };
}

static void fill_dr(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    u64 q = info->qualification;

    exit->dr =
        (struct exit_dr){.number = bits(q, 2, 0), .gpr = bits(q, 11, 8), .write = !(q & BIT(4))};
}

static void fill_task_switch(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    exit->task = (struct exit_task_switch){
        .selector = (u16)info->qualification,
        .source = bits(info->qualification, 31, 30),
        .has_error = exit->interrupted.valid && exit->interrupted.has_error,
        .error = exit->interrupted.error,
    };
}

static void fill_linear(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    exit->linear = info->qualification;
}

static void fill_apic_offset(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    exit->apic_offset = info->qualification & 0xfff;
}

static void fill_eoi(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    exit->vector = (u8)info->qualification;
    exit->vector_valid = true;
}

// Tables "Format of the VM-Exit Instruction-Information Field as Used for ...": scaling, address
// size, segment, index and base lie alike in all of them.
static void fill_memory(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    u32 i = info->insn_info;

    exit->operand = (struct exit_operand){
        .known = true,
        .seg = bits(i, 17, 15),
        .base = i & BIT(27) ? EXIT_GPR_UNKNOWN : bits(i, 26, 23),
        .index = i & BIT(22) ? EXIT_GPR_UNKNOWN : bits(i, 21, 18),
        .scale = bits(i, 1, 0),
        .addr_size = (u8)(2u << bits(i, 9, 7)),
        .displacement = (s64)info->qualification,
    };
}

// INVEPT, INVPCID, INVVPID: memory and a register.
static void fill_memory_reg(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    fill_memory(exit, info);
    exit->operand.reg2 = bits(info->insn_info, 31, 28);
}

// VMREAD, VMWRITE: memory or a register, and a register.
static void fill_rm_reg(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    fill_memory_reg(exit, info);
    exit->operand.is_reg = info->insn_info & BIT(10);
    exit->operand.reg1 = bits(info->insn_info, 6, 3);
}

static void fill_gdtr_idtr(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    fill_memory(exit, info);
    exit->operand.op_size = info->insn_info & BIT(11) ? 4 : 2;
    exit->operand.identity = bits(info->insn_info, 29, 28);
}

static void fill_ldtr_tr(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    fill_memory(exit, info);
    exit->operand.is_reg = info->insn_info & BIT(10);
    exit->operand.reg1 = bits(info->insn_info, 6, 3);
    exit->operand.identity = bits(info->insn_info, 29, 28);
}

// RDRAND, RDSEED, TPAUSE, UMWAIT.
static void fill_reg(struct vm_exit *exit, const struct vmx_exit_info *info)
{
    exit->operand = (struct exit_operand){
        .known = true,
        .is_reg = true,
        .reg1 = bits(info->insn_info, 6, 3),
        .op_size = (u8)(2u << bits(info->insn_info, 12, 11)),
    };
}

#define NEED_OPERAND                      (NEED_QUALIFICATION | NEED_LENGTH | NEED_INFO)
#define NO_REASON(n)                      [n] = {EXIT_UNKNOWN, NEED_QUALIFICATION, NULL, "unknown"}
#define REASON(reason, kind, needs, fill) [REASON_##reason] = {kind, needs, fill, #reason}

const struct vmx_exit_reason vmx_exit_reasons[REASON_COUNT + 1] = {
    REASON(EXCEPTION_NMI, EXIT_EXCEPTION, NEED_EVENT, fill_exception),
    REASON(EXTERNAL_INTERRUPT, EXIT_EXTERNAL_INTERRUPT, NEED_EVENT, fill_interrupt),
    REASON(TRIPLE_FAULT, EXIT_TRIPLE_FAULT, 0, NULL),
    REASON(INIT, EXIT_INIT, 0, NULL),
    REASON(SIPI, EXIT_SIPI, NEED_QUALIFICATION, fill_sipi),
    REASON(IO_SMI, EXIT_SMI, 0, NULL),
    REASON(OTHER_SMI, EXIT_SMI, 0, NULL),
    REASON(INTERRUPT_WINDOW, EXIT_INTERRUPT_WINDOW, 0, NULL),
    REASON(NMI_WINDOW, EXIT_NMI_WINDOW, 0, NULL),
    REASON(TASK_SWITCH, EXIT_TASK_SWITCH, NEED_QUALIFICATION | NEED_LENGTH, fill_task_switch),
    REASON(CPUID, EXIT_CPUID, NEED_LENGTH, NULL),
    REASON(GETSEC, EXIT_GETSEC, NEED_LENGTH, NULL),
    REASON(HLT, EXIT_HLT, NEED_LENGTH, NULL),
    REASON(INVD, EXIT_INVD, NEED_LENGTH, NULL),
    REASON(INVLPG, EXIT_INVLPG, NEED_QUALIFICATION | NEED_LENGTH, fill_linear),
    REASON(RDPMC, EXIT_RDPMC, NEED_LENGTH, NULL),
    REASON(RDTSC, EXIT_RDTSC, NEED_LENGTH, NULL),
    REASON(RSM, EXIT_RSM, NEED_LENGTH, NULL),
    REASON(VMCALL, EXIT_VMCALL, NEED_LENGTH, NULL),
    REASON(VMCLEAR, EXIT_VMCLEAR, NEED_OPERAND, fill_memory),
    REASON(VMLAUNCH, EXIT_VMLAUNCH, NEED_LENGTH, NULL),
    REASON(VMPTRLD, EXIT_VMPTRLD, NEED_OPERAND, fill_memory),
    REASON(VMPTRST, EXIT_VMPTRST, NEED_OPERAND, fill_memory),
    REASON(VMREAD, EXIT_VMREAD, NEED_OPERAND, fill_rm_reg),
    REASON(VMRESUME, EXIT_VMRESUME, NEED_LENGTH, NULL),
    REASON(VMWRITE, EXIT_VMWRITE, NEED_OPERAND, fill_rm_reg),
    REASON(VMXOFF, EXIT_VMXOFF, NEED_LENGTH, NULL),
    REASON(VMXON, EXIT_VMXON, NEED_OPERAND, fill_memory),
    REASON(CR_ACCESS, EXIT_CR, NEED_QUALIFICATION | NEED_LENGTH, fill_cr),
    REASON(MOV_DR, EXIT_DR, NEED_QUALIFICATION | NEED_LENGTH, fill_dr),
    REASON(IO, EXIT_IO, NEED_QUALIFICATION | NEED_LENGTH | NEED_STRING, fill_io),
    REASON(RDMSR, EXIT_RDMSR, NEED_LENGTH, NULL),
    REASON(WRMSR, EXIT_WRMSR, NEED_LENGTH, NULL),
    REASON(INVALID_GUEST_STATE, EXIT_ENTRY_FAILED, NEED_QUALIFICATION, NULL),
    REASON(MSR_LOADING, EXIT_ENTRY_FAILED, NEED_QUALIFICATION, NULL),
    REASON(MWAIT, EXIT_MWAIT, NEED_QUALIFICATION | NEED_LENGTH, NULL),
    REASON(MTF, EXIT_MTF, 0, NULL),
    REASON(MONITOR, EXIT_MONITOR, NEED_LENGTH, NULL),
    REASON(PAUSE, EXIT_PAUSE, NEED_LENGTH, NULL),
    REASON(MACHINE_CHECK_ENTRY, EXIT_ENTRY_FAILED, NEED_QUALIFICATION, NULL),
    REASON(TPR_BELOW_THRESHOLD, EXIT_TPR_THRESHOLD, 0, NULL),
    REASON(APIC_ACCESS, EXIT_APIC_ACCESS, NEED_QUALIFICATION, fill_apic_offset),
    REASON(VIRTUALIZED_EOI, EXIT_EOI, NEED_QUALIFICATION, fill_eoi),
    REASON(GDTR_IDTR, EXIT_GDTR_IDTR, NEED_OPERAND, fill_gdtr_idtr),
    REASON(LDTR_TR, EXIT_LDTR_TR, NEED_OPERAND, fill_ldtr_tr),
    REASON(EPT_VIOLATION, EXIT_STAGE2, NEED_QUALIFICATION | NEED_STAGE2, fill_stage2),
    REASON(EPT_MISCONFIGURATION, EXIT_STAGE2_MISCONFIG, NEED_STAGE2, fill_misconfig),
    REASON(INVEPT, EXIT_INVEPT, NEED_OPERAND, fill_memory_reg),
    REASON(RDTSCP, EXIT_RDTSCP, NEED_LENGTH, NULL),
    REASON(PREEMPTION_TIMER, EXIT_TIMER, 0, NULL),
    REASON(INVVPID, EXIT_INVVPID, NEED_OPERAND, fill_memory_reg),
    REASON(WBINVD, EXIT_WBINVD, NEED_LENGTH, NULL),
    REASON(XSETBV, EXIT_XSETBV, NEED_LENGTH, NULL),
    REASON(APIC_WRITE, EXIT_APIC_WRITE, NEED_QUALIFICATION, fill_apic_offset),
    REASON(RDRAND, EXIT_RDRAND, NEED_LENGTH | NEED_INFO, fill_reg),
    REASON(INVPCID, EXIT_INVPCID, NEED_OPERAND, fill_memory_reg),
    REASON(VMFUNC, EXIT_VMFUNC, NEED_LENGTH, NULL),
    REASON(ENCLS, EXIT_ENCLS, NEED_LENGTH, NULL),
    REASON(RDSEED, EXIT_RDSEED, NEED_LENGTH | NEED_INFO, fill_reg),
    REASON(PML_FULL, EXIT_UNKNOWN, NEED_QUALIFICATION, NULL),
    REASON(XSAVES, EXIT_XSAVES, NEED_OPERAND, fill_memory),
    REASON(XRSTORS, EXIT_XRSTORS, NEED_OPERAND, fill_memory),
    REASON(PCONFIG, EXIT_UNKNOWN, NEED_LENGTH, NULL),
    REASON(SPP, EXIT_UNKNOWN, NEED_QUALIFICATION, NULL),
    REASON(UMWAIT, EXIT_UMWAIT, NEED_LENGTH | NEED_INFO, fill_reg),
    REASON(TPAUSE, EXIT_TPAUSE, NEED_LENGTH | NEED_INFO, fill_reg),
    REASON(LOADIWKEY, EXIT_UNKNOWN, NEED_LENGTH, NULL),
    REASON(ENCLV, EXIT_UNKNOWN, NEED_LENGTH, NULL),
    REASON(ENQCMD_PASID, EXIT_UNKNOWN, NEED_LENGTH, NULL),
    REASON(ENQCMDS_PASID, EXIT_UNKNOWN, NEED_LENGTH, NULL),
    REASON(BUS_LOCK, EXIT_UNKNOWN, 0, NULL),
    REASON(INSTRUCTION_TIMEOUT, EXIT_UNKNOWN, NEED_QUALIFICATION, NULL),
    REASON(SEAMCALL, EXIT_UNDEFINED, NEED_LENGTH, NULL),
    REASON(TDCALL, EXIT_UNDEFINED, NEED_LENGTH, NULL),
    REASON(RDMSRLIST, EXIT_UNKNOWN, NEED_QUALIFICATION, NULL),
    REASON(WRMSRLIST, EXIT_UNKNOWN, NEED_QUALIFICATION, NULL),
    NO_REASON(35),
    NO_REASON(38),
    NO_REASON(42),
    NO_REASON(71),
    NO_REASON(REASON_COUNT),
};
