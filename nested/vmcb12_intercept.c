// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Which exits of its L2 an L1 on SVM wants, and what EXITINFO1, EXITINFO2 and nRIP say of them (APM
// vol. 2, 15.7 to 15.14, appendix C). What the hardware below leaves unsaid (without nRIP save or
// decode assists) is found by decoding the instruction, once it is known that L1 wants the exit.

#include "vmcb12.h"
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/decode.h>
#include <nestor/string.h>

// --- what the hardware did not say ---

static u64 linear_of(struct vcpu *vcpu, const struct insn *insn, u64 next_rip)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CODE | GROUP_DATA | GROUP_SYSTEM);
    u64 gpr[16], linear;

    memcpy(gpr, vcpu->gpr, sizeof(gpr));
    gpr[GPR_RSP] = s->rsp;
    linear = insn_offset(insn, gpr, next_rip);
    if (!vcpu_mode_64bit(vcpu))
        return (u32)(linear + s->seg[insn->seg].base);
    return insn->seg == SEG_FS || insn->seg == SEG_GS ? linear + s->seg[insn->seg].base : linear;
}

static void take_operands(struct vcpu *vcpu, const struct insn *insn, struct vm_exit *exit)
{
    switch (exit->kind) {
    case EXIT_CR:
        if (insn->op == INSN_MOV_TO_CR || insn->op == INSN_MOV_FROM_CR)
            exit->cr.gpr = insn->rm; // CLTS, LMSW and SMSW have none to report
        else if (insn->op == INSN_CLTS || insn->op == INSN_LMSW)
            exit->cr.access = insn->op == INSN_CLTS ? CR_CLTS : CR_LMSW;
        break;
    case EXIT_DR:
        exit->dr.gpr = insn->rm;
        break;
    case EXIT_INVLPG:
        exit->linear = linear_of(vcpu, insn, vcpu->cur->state.rip + insn->length);
        break;
    case EXIT_SOFT_INT:
        exit->event.vector = (u8)insn->imm;
        if (insn->op != INSN_INT) { // QEMU's INT3 and INTO come so
            exit->kind = EXIT_EXCEPTION;
            exit->event = (struct event){
                .valid = true,
                .vector = insn->op == INSN_INT3 ? VECTOR_BP : VECTOR_OF,
                .type = EVENT_SOFT_EXCEPTION,
                .insn_len = insn->length,
            };
        }
        break;
    case EXIT_IO:
        exit->io.seg = insn->op == INSN_INS ? (u8)SEG_ES : insn->seg;
        exit->io.addr_size = insn->addr_size;
        break;
    case EXIT_RDTSC: // QEMU's RDTSCP comes so, and its INVD as WBINVD
        if (insn->op == INSN_RDTSCP)
            exit->kind = EXIT_RDTSCP;
        break;
    case EXIT_WBINVD:
        if (insn->op == INSN_INVD)
            exit->kind = EXIT_INVD;
        break;
    default:
        break;
    }
}

static bool lacks_operands(const struct vm_exit *exit)
{
    switch (exit->kind) {
    case EXIT_CR:
        return exit->cr.gpr == EXIT_GPR_UNKNOWN;
    case EXIT_DR:
        return exit->dr.gpr == EXIT_GPR_UNKNOWN;
    case EXIT_INVLPG:
        return !exit->operand.known;
    case EXIT_SOFT_INT:
        return !exit->event.valid;
    case EXIT_IO:
        return exit->io.string && exit->io.seg == 0xff;
    case EXIT_RDTSC:
    case EXIT_WBINVD:
        return !exit->next_rip && !exit->operand.known;
    default:
        return false;
    }
}

// Completes an instruction's exit. False: L2 has a fault at it instead.
static bool complete(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct insn insn;
    bool known = exit->insn_len || exit->next_rip;

    if (!known && !lacks_operands(exit)) {
        if (!insn_find_length(vcpu, exit))
            return false;
        known = exit->insn_len;
    }
    if (known && !lacks_operands(exit))
        return true;
    if (!insn_decode_current(vcpu, &insn))
        return false;
    take_operands(vcpu, &insn, exit);
    exit->operand.known = true;
    exit->insn_len = insn.length;
    return true;
}

// The exit to L1 that an instruction makes. True always: L1 has it, or L2 a fault.
static bool exit_insn(struct vcpu *vcpu, struct vm_exit *exit, u64 code, u64 info1, u64 info2)
{
    if (complete(vcpu, exit))
        vmcb12_exit(vcpu, code, info1, info2, exit);
    return true;
}

// --- by one bit ---

struct exit_row {
    u8 kind, word;
    u32 bit;
    u16 code;
};

static const struct exit_row exit_rows[] = {
    {EXIT_CPUID, SVM_WORD_3, SVM_INTERCEPT_CPUID, VMEXIT_CPUID},
    {EXIT_HLT, SVM_WORD_3, SVM_INTERCEPT_HLT, VMEXIT_HLT},
    {EXIT_INVD, SVM_WORD_3, SVM_INTERCEPT_INVD, VMEXIT_INVD},
    {EXIT_WBINVD, SVM_WORD_4, SVM_INTERCEPT_WBINVD, VMEXIT_WBINVD},
    {EXIT_INVLPGA, SVM_WORD_3, SVM_INTERCEPT_INVLPGA, VMEXIT_INVLPGA},
    {EXIT_RDTSC, SVM_WORD_3, SVM_INTERCEPT_RDTSC, VMEXIT_RDTSC},
    {EXIT_RDTSCP, SVM_WORD_4, SVM_INTERCEPT_RDTSCP, VMEXIT_RDTSCP},
    {EXIT_RDPMC, SVM_WORD_3, SVM_INTERCEPT_RDPMC, VMEXIT_RDPMC},
    {EXIT_RSM, SVM_WORD_3, SVM_INTERCEPT_RSM, VMEXIT_RSM},
    {EXIT_FERR_FREEZE, SVM_WORD_3, SVM_INTERCEPT_FERR_FREEZE, VMEXIT_FERR_FREEZE},
    {EXIT_PUSHF, SVM_WORD_3, SVM_INTERCEPT_PUSHF, VMEXIT_PUSHF},
    {EXIT_POPF, SVM_WORD_3, SVM_INTERCEPT_POPF, VMEXIT_POPF},
    {EXIT_IRET, SVM_WORD_3, SVM_INTERCEPT_IRET, VMEXIT_IRET},
    {EXIT_TRIPLE_FAULT, SVM_WORD_3, SVM_INTERCEPT_SHUTDOWN, VMEXIT_SHUTDOWN},
    {EXIT_VMRUN, SVM_WORD_4, SVM_INTERCEPT_VMRUN, VMEXIT_VMRUN},
    {EXIT_VMMCALL, SVM_WORD_4, SVM_INTERCEPT_VMMCALL, VMEXIT_VMMCALL},
    {EXIT_VMLOAD, SVM_WORD_4, SVM_INTERCEPT_VMLOAD, VMEXIT_VMLOAD},
    {EXIT_VMSAVE, SVM_WORD_4, SVM_INTERCEPT_VMSAVE, VMEXIT_VMSAVE},
    {EXIT_STGI, SVM_WORD_4, SVM_INTERCEPT_STGI, VMEXIT_STGI},
    {EXIT_CLGI, SVM_WORD_4, SVM_INTERCEPT_CLGI, VMEXIT_CLGI},
    {EXIT_SKINIT, SVM_WORD_4, SVM_INTERCEPT_SKINIT, VMEXIT_SKINIT},
    {EXIT_MONITOR, SVM_WORD_4, SVM_INTERCEPT_MONITOR, VMEXIT_MONITOR},
    {EXIT_MWAIT, SVM_WORD_4, SVM_INTERCEPT_MWAIT, VMEXIT_MWAIT},
    {EXIT_XSETBV, SVM_WORD_4, SVM_INTERCEPT_XSETBV, VMEXIT_XSETBV},
    {EXIT_RDPRU, SVM_WORD_4, SVM_INTERCEPT_RDPRU, VMEXIT_RDPRU},
    {EXIT_ICEBP, SVM_WORD_4, SVM_INTERCEPT_ICEBP, VMEXIT_ICEBP},
    {EXIT_INVPCID, SVM_WORD_5, SVM_INTERCEPT_INVPCID, VMEXIT_INVPCID},
};

// SGDT and the like: word 3 has their bits, appendix C their codes, in one order.
static bool reflect_tables(struct vcpu *vcpu, struct vm_exit *exit)
{
    static const u8 order[2][4] = {{1, 0, 5, 4},
                                   {2, 3, 6, 7}}; // by `identity`: GDTR and IDTR, LDTR and TR
    unsigned n = order[exit->kind == EXIT_LDTR_TR][exit->operand.identity & 3];

    if (!vmcb12_intercepts(vcpu, SVM_WORD_3, (u32)SVM_INTERCEPT_IDTR_READ << n))
        return false;
    return exit_insn(vcpu, exit, (u64)VMEXIT_IDTR_READ + n, 0, 0);
}

static const struct exit_row *find_row(u8 kind)
{
    for (unsigned i = 0; i < ARRAY_SIZE(exit_rows); i++)
        if (exit_rows[i].kind == kind)
            return &exit_rows[i];
    return NULL;
}

static bool reflect_by_bit(struct vcpu *vcpu, struct vm_exit *exit)
{
    const struct exit_row *row = find_row(exit->kind);

    if (!row || !vmcb12_intercepts(vcpu, row->word, row->bit))
        return false;
    if (exit->kind != EXIT_TRIPLE_FAULT && exit->kind != EXIT_FERR_FREEZE)
        return exit_insn(vcpu, exit, row->code, 0, 0);
    vmcb12_exit(vcpu, row->code, 0, 0, NULL);
    return true;
}

// Where QEMU takes one instruction for another, which of them it was.
static bool reflect_twin(struct vcpu *vcpu, struct vm_exit *exit)
{
    bool other = exit->kind == EXIT_RDTSC
                     ? vmcb12_intercepts(vcpu, SVM_WORD_4, SVM_INTERCEPT_RDTSCP)
                     : vmcb12_intercepts(vcpu, SVM_WORD_3, SVM_INTERCEPT_INVD);

    if (other && !complete(vcpu, exit))
        return true;
    return reflect_by_bit(vcpu, exit);
}

// --- with information ---

static bool assists(const struct vcpu *vcpu)
{
    return vmcb12_has(vcpu, SVM_FEATURE_DECODE_ASSISTS);
}

static bool reflect_invlpg(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (!vmcb12_intercepts(vcpu, SVM_WORD_3, SVM_INTERCEPT_INVLPG))
        return false;
    if (complete(vcpu, exit))
        vmcb12_exit(vcpu, VMEXIT_INVLPG, assists(vcpu) ? exit->linear : 0, 0, exit);
    return true;
}

static bool reflect_soft_int(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (!vmcb12_intercepts(vcpu, SVM_WORD_3, SVM_INTERCEPT_SWINT))
        return false;
    if (!complete(vcpu, exit))
        return true;
    if (exit->kind == EXIT_EXCEPTION)
        vcpu_inject_event(vcpu, &exit->event);
    else
        vmcb12_exit(vcpu, VMEXIT_SWINT, assists(vcpu) ? exit->event.vector : 0, 0, exit);
    return true;
}

// EXITINFO1 of IOIO and EXITINFO2 of task switches (APM 15.10.2, 15.14.1), from the neutral exit:
// one that Nestor makes itself has no other.
static u64 io_info(struct vcpu *vcpu, const struct exit_io *io)
{
    unsigned addr_size = io->addr_size <= 8 ? io->addr_size : vcpu_code_size(vcpu);
    u64 seg = io->seg < SEG_LDTR ? io->seg : SEG_DS;

    return (io->in ? SVM_IOIO_IN : 0) |
           (io->string ? SVM_IOIO_STR | seg << SVM_IOIO_SEG_SHIFT : 0) |
           (io->rep ? SVM_IOIO_REP : 0) | (u64)io->size << SVM_IOIO_SIZE_SHIFT |
           (u64)(addr_size / 2) << SVM_IOIO_ADDR_SHIFT | (u64)io->port << SVM_IOIO_PORT_SHIFT;
}

static u64 next_rip_of(struct vcpu *vcpu, const struct vm_exit *exit)
{
    return exit->next_rip ? exit->next_rip : vcpu->cur->state.rip + exit->insn_len;
}

static u64 task_info(const struct exit_task_switch *task)
{
    enum { SOURCE_IRET = 1, SOURCE_JMP = 2 };

    return task->error | (task->source == SOURCE_IRET ? SVM_TASK_IRET : 0) |
           (task->source == SOURCE_JMP ? SVM_TASK_JMP : 0) |
           (task->has_error ? SVM_TASK_HAS_ERROR : 0) | (task->rf ? SVM_TASK_RF : 0);
}

// IOPM: a bit per port; an access exits if the bit of any byte is set (APM 15.10.1).
static bool reflect_io(struct vcpu *vcpu, struct vm_exit *exit)
{
    const struct vmcb *v = &vcpu->nested->vmcb;
    u8 bytes[2] = {0xff, 0xff};
    unsigned mask = (1u << exit->io.size) - 1;

    if (!(v->intercept[SVM_WORD_3] & SVM_INTERCEPT_IOIO))
        return false;
    guest_read_gpa(vcpu, (v->iopm_base_pa & PAGE_MASK) + exit->io.port / 8, bytes, 2);
    if (!((unsigned)(bytes[0] | bytes[1] << 8) >> (exit->io.port % 8) & mask))
        return false;
    if (complete(vcpu, exit))
        vmcb12_exit(vcpu, VMEXIT_IOIO, io_info(vcpu, &exit->io), next_rip_of(vcpu, exit), exit);
    return true;
}

// MSRPM: two bits an MSR, three ranges (APM 15.11); MSRs outside them always exit.
static bool reflect_msr(struct vcpu *vcpu, struct vm_exit *exit)
{
    static const u32 bases[] = {0, 0xc0000000, 0xc0010000};
    const struct vmcb *v = &vcpu->nested->vmcb;
    u32 msr = (u32)vcpu->gpr[GPR_RCX];
    bool write = exit->kind == EXIT_WRMSR;
    u8 byte = 0xff;

    if (!(v->intercept[SVM_WORD_3] & SVM_INTERCEPT_MSR))
        return false;
    for (unsigned i = 0; i < ARRAY_SIZE(bases); i++)
        if (msr - bases[i] < 0x2000)
            guest_read_gpa(vcpu, (v->msrpm_base_pa & PAGE_MASK) + i * 0x800 + (msr - bases[i]) / 4,
                           &byte, 1);
    if (!(byte >> (msr % 4 * 2 + write) & 1))
        return false;
    return exit_insn(vcpu, exit, VMEXIT_MSR, write, 0);
}

static u64 written(struct vcpu *vcpu, u8 gpr)
{
    u64 value = vcpu_gpr(vcpu, gpr);

    return vcpu_mode_64bit(vcpu) ? value : (u32)value;
}

// Whether the selective intercept takes a write that is complete: MOV to CR0 that changes more than
// TS and MP, and any LMSW; never CLTS (15.8.1).
static bool is_selective(struct vcpu *vcpu, const struct exit_cr *cr)
{
    if (cr->selective || cr->number)
        return cr->selective;
    if (cr->access != CR_WRITE)
        return cr->access == CR_LMSW;
    return (vcpu_gpr(vcpu, cr->gpr) ^ vcpu_state(vcpu, GROUP_CR)->cr0) & ~(CR0_TS | CR0_MP);
}

static bool exit_cr(struct vcpu *vcpu, struct vm_exit *exit, u64 code)
{
    u8 gpr;

    if (!complete(vcpu, exit))
        return true;
    gpr = exit->cr.access == CR_READ || exit->cr.access == CR_WRITE ? exit->cr.gpr
                                                                    : (u8)EXIT_GPR_UNKNOWN;
    vmcb12_exit(vcpu, code, assists(vcpu) && gpr != EXIT_GPR_UNKNOWN ? SVM_CR_VALID | gpr : 0, 0,
                exit);
    return true;
}

// The traps come behind the write, which has had its checks (15.9).
static bool reflect_cr_trap(struct vcpu *vcpu, struct vm_exit *exit)
{
    u8 number = exit->cr.number;

    if (exit->cr.access == CR_READ ||
        !vmcb12_intercepts(vcpu, SVM_WORD_4, SVM_INTERCEPT_CR0_WRITE_TRAP << number))
        return false;
    exit_handle(vcpu, exit);
    if (vcpu->level && !vcpu->events.exception.valid)
        vmcb12_exit(vcpu, (u64)VMEXIT_CR0_WRITE_TRAP + number, cr_read_guest(vcpu, number), 0,
                    NULL);
    return true;
}

static bool reflect_efer_trap(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (exit->kind != EXIT_WRMSR || (u32)vcpu->gpr[GPR_RCX] != MSR_EFER ||
        !vmcb12_intercepts(vcpu, SVM_WORD_4, SVM_INTERCEPT_EFER_WRITE_TRAP))
        return false;
    exit_handle(vcpu, exit);
    if (vcpu->level && !vcpu->events.exception.valid)
        vmcb12_exit(vcpu, VMEXIT_EFER_WRITE_TRAP, vcpu_state(vcpu, GROUP_EFER_PAT)->efer, 0, NULL);
    return true;
}

// A value that the CPU refuses is #GP before the intercept (15.9); QEMU (7.2) looks at none.
static bool cr_faults(struct vcpu *vcpu, const struct exit_cr *cr)
{
    return cr->access == CR_WRITE && cr_refuses_guest(vcpu, cr->number, written(vcpu, cr->gpr));
}

static bool reflect_cr(struct vcpu *vcpu, struct vm_exit *exit)
{
    bool read = exit->cr.access == CR_READ;
    u32 bit = read ? SVM_CR_READ(exit->cr.number) : SVM_CR_WRITE(exit->cr.number);

    if (vmcb12_intercepts(vcpu, SVM_WORD_CR, bit)) {
        if (!complete(vcpu, exit))
            return true;
        return !cr_faults(vcpu, &exit->cr) &&
               exit_cr(vcpu, exit,
                       (u64)(read ? VMEXIT_CR0_READ : VMEXIT_CR0_WRITE) + exit->cr.number);
    }
    if (!read && vmcb12_intercepts(vcpu, SVM_WORD_3, SVM_INTERCEPT_CR0_SEL_WRITE)) {
        if (!complete(vcpu, exit))
            return true;
        if (is_selective(vcpu, &exit->cr) && !cr_faults(vcpu, &exit->cr))
            return exit_cr(vcpu, exit, VMEXIT_CR0_SEL_WRITE);
    }
    return reflect_cr_trap(vcpu, exit);
}

// Its exceptions go first (15.9); QEMU (7.2) looks for none of these.
static bool dr_faults(struct vcpu *vcpu, const struct exit_dr *dr)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_DEBUG);

    return s->dr7 & DR7_GD || ((dr->number & 6) == 4 && s->cr4 & CR4_DE) ||
           (dr->write && dr->number >= 4 && written(vcpu, dr->gpr) >> 32);
}

static bool reflect_dr(struct vcpu *vcpu, struct vm_exit *exit)
{
    u32 bit = 1u << (exit->dr.number + (exit->dr.write ? 16 : 0));
    u64 code = (u64)(exit->dr.write ? VMEXIT_DR0_WRITE : VMEXIT_DR0_READ) + exit->dr.number;

    if (!vmcb12_intercepts(vcpu, SVM_WORD_DR, bit))
        return false;
    if (!complete(vcpu, exit))
        return true;
    if (dr_faults(vcpu, &exit->dr))
        return false;
    vmcb12_exit(vcpu, code, assists(vcpu) ? exit->dr.gpr : 0, 0, exit);
    return true;
}

static bool reflect_task_switch(struct vcpu *vcpu, const struct vm_exit *exit)
{
    if (!vmcb12_intercepts(vcpu, SVM_WORD_3, SVM_INTERCEPT_TASK_SWITCH))
        return false;
    vmcb12_exit(vcpu, VMEXIT_TASK_SWITCH, exit->task.selector, task_info(&exit->task), NULL);
    return true;
}

// Every PAUSE exits here, and L1's filter counts them (15.14.4). Its threshold is not offered: the
// time between two is mostly Nestor's.
static bool reflect_pause(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;

    if (!vmcb12_intercepts(vcpu, SVM_WORD_3, SVM_INTERCEPT_PAUSE))
        return false;
    if (!vmcb12_has(vcpu, SVM_FEATURE_PAUSE_FILTER) || !n->pauses_left)
        return exit_insn(vcpu, exit, VMEXIT_PAUSE, 0, 0);
    n->pauses_left--;
    return false; // Nestor's own, which goes on behind it
}

static bool reflect_entry_failed(struct vcpu *vcpu, const struct vm_exit *exit)
{
    nested_tell_refusal(vcpu, exit->raw_reason);
    vmcb12_exit(vcpu, VMEXIT_INVALID, 0, 0, NULL);
    return true;
}

// What this guest's CPUID does not have is #UD before any intercept is looked at, whatever the CPU
// below has.
static bool is_undefined(struct vcpu *vcpu, u8 kind)
{
    static const struct {
        u8 kind, reg, bit;
        u32 leaf;
    } rows[] = {
        {EXIT_MONITOR, 2, 3, 1},          {EXIT_MWAIT, 2, 3, 1},
        {EXIT_INVPCID, 1, 10, 7},         {EXIT_RDPRU, 1, 4, 0x80000008},
        {EXIT_SKINIT, 2, 12, 0x80000001}, {EXIT_RDTSCP, 3, 27, 0x80000001},
    };

    if (kind == EXIT_XSETBV)
        return !(vcpu_state(vcpu, GROUP_CR)->cr4 & CR4_OSXSAVE);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        if (rows[i].kind == kind)
            return !cpuid_has(vcpu->vm, rows[i].leaf, rows[i].reg, rows[i].bit);
    return false;
}

bool vmcb12_reflect(struct vcpu *vcpu, struct vm_exit *exit)
{
    switch (exit->kind) {
    case EXIT_EXCEPTION:
        return vmcb12_wants_exception(vcpu, &exit->event);
    case EXIT_IO:
        return reflect_io(vcpu, exit);
    case EXIT_RDMSR:
    case EXIT_WRMSR:
        return reflect_msr(vcpu, exit) || reflect_efer_trap(vcpu, exit);
    case EXIT_CR:
        return reflect_cr(vcpu, exit);
    case EXIT_DR:
        return reflect_dr(vcpu, exit);
    case EXIT_RDTSC:
    case EXIT_WBINVD:
        return reflect_twin(vcpu, exit);
    case EXIT_INVLPG:
        return reflect_invlpg(vcpu, exit);
    case EXIT_SOFT_INT:
        return reflect_soft_int(vcpu, exit);
    case EXIT_PAUSE:
        return reflect_pause(vcpu, exit);
    case EXIT_TASK_SWITCH:
        return reflect_task_switch(vcpu, exit);
    case EXIT_GDTR_IDTR:
    case EXIT_LDTR_TR:
        return reflect_tables(vcpu, exit);
    case EXIT_VMMCALL: // Nestor's hypercalls are for L1
        if (!reflect_by_bit(vcpu, exit))
            vcpu_inject_ud(vcpu);
        return true;
    case EXIT_ENTRY_FAILED:
        return reflect_entry_failed(vcpu, exit);
    case EXIT_VMRUN:
    case EXIT_VMLOAD:
    case EXIT_VMSAVE:
    case EXIT_STGI:
    case EXIT_CLGI:
    case EXIT_INVLPGA: // their exceptions go first (15.9): Nestor may have emulated them
        return !vmcb12_may_execute(vcpu) || reflect_by_bit(vcpu, exit);
    default:
        if (!is_undefined(vcpu, exit->kind))
            return reflect_by_bit(vcpu, exit);
        vcpu_inject_ud(vcpu);
        return true;
    }
}
