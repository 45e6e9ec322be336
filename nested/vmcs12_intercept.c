// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Which exits of its L2 an L1 wants, looked up in VMCS12 at the exit (SDM vol. 3 "VMX Non-Root
// Operation": "Instructions That Cause VM Exits", "Other Causes of VM Exits"), and their
// qualifications.

#include "vmcs12_switch.h"
#include <arch/x86/regs.h>

// --- does L1 want this exit? ---

// Exits by one bit of the primary or secondary controls (neither: always), with their reasons.
static const struct {
    u8 kind;
    u8 reason;
    u32 primary, secondary;
} rows[] = {
    {EXIT_CPUID, REASON_CPUID, 0, 0},
    {EXIT_INVD, REASON_INVD, 0, 0},
    {EXIT_XSETBV, REASON_XSETBV, 0, 0},
    {EXIT_GETSEC, REASON_GETSEC, 0, 0},
    {EXIT_VMCALL, REASON_VMCALL, 0, 0},
    {EXIT_VMXON, REASON_VMXON, 0, 0},
    {EXIT_VMXOFF, REASON_VMXOFF, 0, 0},
    {EXIT_VMCLEAR, REASON_VMCLEAR, 0, 0},
    {EXIT_VMPTRLD, REASON_VMPTRLD, 0, 0},
    {EXIT_VMPTRST, REASON_VMPTRST, 0, 0},
    {EXIT_VMREAD, REASON_VMREAD, 0, 0},
    {EXIT_VMWRITE, REASON_VMWRITE, 0, 0},
    {EXIT_VMLAUNCH, REASON_VMLAUNCH, 0, 0},
    {EXIT_VMRESUME, REASON_VMRESUME, 0, 0},
    {EXIT_INVEPT, REASON_INVEPT, 0, 0},
    {EXIT_INVVPID, REASON_INVVPID, 0, 0},
    {EXIT_TRIPLE_FAULT, REASON_TRIPLE_FAULT, 0, 0},
    {EXIT_XSAVES, REASON_XSAVES, 0, 0}, // by the XSS-exiting bitmap, which is L1's alone
    {EXIT_XRSTORS, REASON_XRSTORS, 0, 0},
    {EXIT_HLT, REASON_HLT, PRIMARY_HLT, 0},
    {EXIT_INVLPG, REASON_INVLPG, PRIMARY_INVLPG, 0},
    {EXIT_INVPCID, REASON_INVPCID, PRIMARY_INVLPG, 0},
    {EXIT_MWAIT, REASON_MWAIT, PRIMARY_MWAIT, 0},
    {EXIT_RDPMC, REASON_RDPMC, PRIMARY_RDPMC, 0},
    {EXIT_RDTSC, REASON_RDTSC, PRIMARY_RDTSC, 0},
    {EXIT_RDTSCP, REASON_RDTSCP, PRIMARY_RDTSC, 0},
    {EXIT_MONITOR, REASON_MONITOR, PRIMARY_MONITOR, 0},
    {EXIT_PAUSE, REASON_PAUSE, PRIMARY_PAUSE, SECONDARY_PAUSE_LOOP},
    {EXIT_DR, REASON_MOV_DR, PRIMARY_MOV_DR, 0},
    {EXIT_MTF, REASON_MTF, PRIMARY_MTF, 0},
    {EXIT_GDTR_IDTR, REASON_GDTR_IDTR, 0, SECONDARY_DESCRIPTOR_TABLE},
    {EXIT_LDTR_TR, REASON_LDTR_TR, 0, SECONDARY_DESCRIPTOR_TABLE},
    {EXIT_WBINVD, REASON_WBINVD, 0, SECONDARY_WBINVD},
    {EXIT_UMWAIT, REASON_UMWAIT, PRIMARY_RDTSC, 0},
    {EXIT_TPAUSE, REASON_TPAUSE, PRIMARY_RDTSC, 0},
    {EXIT_RDRAND, REASON_RDRAND, 0, SECONDARY_RDRAND},
    {EXIT_RDSEED, REASON_RDSEED, 0, SECONDARY_RDSEED},
};

static bool bitmap_bit(struct vcpu *vcpu, gpa_t bitmap, u32 bit)
{
    u8 byte = 0xff;

    guest_read_gpa(vcpu, bitmap + bit / 8, &byte, 1);
    return byte >> (bit % 8) & 1;
}

static bool wants_msr(struct vcpu *vcpu, bool write)
{
    struct nested *n = vcpu->nested;
    u32 msr = (u32)vcpu->gpr[GPR_RCX];
    gpa_t bitmap = vmcs12_read(n, MSR_BITMAP) + (write ? 0x800 : 0);

    if (!(vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_MSR_BITMAPS))
        return true;
    if (msr < 0x2000)
        return bitmap_bit(vcpu, bitmap, msr);
    if (msr - 0xc0000000u < 0x2000)
        return bitmap_bit(vcpu, bitmap + 0x400, msr - 0xc0000000u);
    return true;
}

// "VMCS shadowing": the bitmaps say which fields of its shadow VMCS an L2 may reach.
static bool wants_field(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    u64 encoding;

    if (!(vmcs12_secondary(n) & SECONDARY_VMCS_SHADOWING))
        return true;
    encoding = vmcs12_register(vcpu, exit->operand.reg2);
    return encoding >> 15 ||
           bitmap_bit(vcpu,
                      vmcs12_read(n, exit->kind == EXIT_VMREAD ? VMREAD_BITMAP : VMWRITE_BITMAP),
                      (u32)encoding);
}

static bool wants_io(struct vcpu *vcpu, const struct exit_io *io)
{
    struct nested *n = vcpu->nested;
    u64 primary = vmcs12_read(n, PRIMARY_CONTROLS);

    if (!(primary & PRIMARY_IO_BITMAPS))
        return primary & PRIMARY_UNCONDITIONAL_IO;
    for (unsigned i = 0; i < io->size; i++) {
        u32 port = io->port + i;

        if (port > 0xffff) // wraps around: exits
            return true;
        if (bitmap_bit(vcpu, vmcs12_read(n, port & 0x8000 ? IO_BITMAP_B : IO_BITMAP_A),
                       port & 0x7fff))
            return true;
    }
    return false;
}

static u64 io_qualification(const struct exit_io *io)
{
    return (u64)(io->size - 1) | (u64)io->in << 3 | (u64)io->string << 4 | (u64)io->rep << 5 |
           (u64)io->immediate << 6 | (u64)io->port << 16;
}

static bool wants_cr_write(struct vcpu *vcpu, const struct exit_cr *cr)
{
    struct nested *n = vcpu->nested;
    u64 value = cr->access == CR_WRITE
                    ? vcpu_gpr(vcpu, cr->gpr) & (vcpu_mode_64bit(vcpu) ? ~0ull : 0xffffffffull)
                    : 0;
    u64 mask = vmcs12_read(n, CR0_GUEST_HOST_MASK), shadow = vmcs12_read(n, CR0_READ_SHADOW);

    if (cr->access == CR_CLTS)
        return (mask & CR0_TS) && (shadow & CR0_TS);
    if (cr->access == CR_LMSW) {
        u64 change = (cr->lmsw_source ^ shadow) & mask & (CR0_MP | CR0_EM | CR0_TS);

        return change || ((cr->lmsw_source & CR0_PE) && (mask & CR0_PE) && !(shadow & CR0_PE));
    }
    if (cr->number == 0)
        return (value ^ shadow) & mask;
    if (cr->number == 4)
        return (value ^ vmcs12_read(n, CR4_READ_SHADOW)) & vmcs12_read(n, CR4_GUEST_HOST_MASK);
    if (cr->number == 8)
        return vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_CR8_LOAD;
    if (!(vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_CR3_LOAD))
        return false;
    for (unsigned i = 0; i < vmcs12_read(n, CR3_TARGET_COUNT); i++)
        if (value == vmcs12_read(n, (enum vmcs_field)(CR3_TARGET_VALUE0 + 2 * i)))
            return false;
    return true;
}

static bool wants_cr(struct vcpu *vcpu, const struct exit_cr *cr)
{
    u64 primary = vmcs12_read(vcpu->nested, PRIMARY_CONTROLS);

    if (cr->access == CR_READ)
        return primary & (cr->number == 3   ? PRIMARY_CR3_STORE
                          : cr->number == 8 ? PRIMARY_CR8_STORE
                                            : 0); // CR0: an emulated SMSW
    return wants_cr_write(vcpu, cr);
}

static u64 cr_qualification(const struct exit_cr *cr)
{
    return cr->number | (u64)cr->access << 4 |
           (cr->access == CR_LMSW ? (u64)cr->lmsw_memory << 6 : (u64)(cr->gpr & 0xf) << 8) |
           (u64)cr->lmsw_source << 16;
}

static bool reflect_exception(struct vcpu *vcpu, const struct event *event, bool nmi_unblocked)
{
    struct nested *n = vcpu->nested;
    struct vm_exit exit = {
        .kind = EXIT_EXCEPTION, .event = *event, .nmi_unblocked_by_iret = nmi_unblocked};
    bool wanted = vmcs12_read(n, EXCEPTION_BITMAP) & BIT(event->vector);

    if (event->type == EVENT_SOFT_INTERRUPT)
        return false;
    if (event->vector == VECTOR_PF &&
        (event->error & vmcs12_read(n, PF_ERROR_CODE_MASK)) != vmcs12_read(n, PF_ERROR_CODE_MATCH))
        wanted = !wanted;
    if (!wanted)
        return false;
    exit.event.valid = true;
    exit.insn_len = event->insn_len;
    // "Saving Non-Register State": MOV SS's shadow keeps no others for a debug exception's exit.
    if (event->vector == VECTOR_DB && vcpu_state(vcpu, GROUP_PENDING_DBG)->pending_dbg)
        vcpu_modify(vcpu, GROUP_PENDING_DBG)->pending_dbg = 0;
    vmcs12_exit(vcpu, REASON_EXCEPTION_NMI, event->has_payload ? event->payload : 0, &exit);
    return true;
}

bool vmcs12_wants_exception(struct vcpu *vcpu, const struct event *event)
{
    vcpu->nested->exit_tsc = tsc_now();
    return reflect_exception(vcpu, event, false);
}

static bool exit_if(struct vcpu *vcpu, bool wanted, u32 reason, u64 qualification,
                    const struct vm_exit *exit)
{
    if (wanted)
        vmcs12_exit(vcpu, reason, qualification, exit);
    return wanted;
}

static bool reflect_by_row(struct vcpu *vcpu, const struct vm_exit *exit)
{
    u64 primary = vmcs12_read(vcpu->nested, PRIMARY_CONTROLS), qualification = 0;
    u32 secondary = vmcs12_secondary(vcpu->nested);

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        if (rows[i].kind != exit->kind)
            continue;
        if (exit->kind == EXIT_INVLPG)
            qualification = exit->linear;
        else if (exit->operand.known && !exit->operand.is_reg)
            qualification = (u64)exit->operand.displacement;
        else if (exit->kind == EXIT_DR)
            qualification =
                exit->dr.number | (exit->dr.write ? 0 : BIT(4)) | (u64)exit->dr.gpr << 8;
        return exit_if(vcpu,
                       !(rows[i].primary | rows[i].secondary) || (primary & rows[i].primary) ||
                           (secondary & rows[i].secondary),
                       rows[i].reason, qualification, exit);
    }
    return false;
}

bool vmcs12_reflect(struct vcpu *vcpu, struct vm_exit *exit)
{
    vcpu->nested->exit_tsc = tsc_now();
    switch (exit->kind) {
    case EXIT_EXCEPTION:
        return reflect_exception(vcpu, &exit->event, exit->nmi_unblocked_by_iret);
    case EXIT_RDMSR:
        return exit_if(vcpu, wants_msr(vcpu, false), REASON_RDMSR, 0, exit) ||
               vmcs12_apic_msr(vcpu, exit);
    case EXIT_WRMSR:
        return exit_if(vcpu, wants_msr(vcpu, true), REASON_WRMSR, 0, exit) ||
               vmcs12_apic_msr(vcpu, exit);
    case EXIT_VMREAD:
    case EXIT_VMWRITE:
        return !vmcs12_operand(vcpu, exit) ||
               (wants_field(vcpu, exit) && reflect_by_row(vcpu, exit));
    case EXIT_IO:
        return exit_if(vcpu, wants_io(vcpu, &exit->io), REASON_IO, io_qualification(&exit->io),
                       exit);
    case EXIT_CR:
        return exit_if(vcpu, wants_cr(vcpu, &exit->cr), REASON_CR_ACCESS,
                       cr_qualification(&exit->cr), exit) ||
               (exit->cr.number == 8 && vmcs12_apic_cr8(vcpu, exit));
    case EXIT_STAGE2:
        return vmcs12_apic_page(vcpu, exit);
    case EXIT_TASK_SWITCH:
        return exit_if(vcpu, true, REASON_TASK_SWITCH,
                       exit->task.selector | (u64)exit->task.source << 30, exit);
    case EXIT_ENTRY_FAILED:
        nested_tell_refusal(vcpu, exit->raw_reason);
        vcpu->nested->vmcs.launched = vcpu->nested->was_launched;
        vcpu->events.reinject.valid = false;
        nested_leave_l2(vcpu);
        vmcs12_entry_failed(vcpu, REASON_INVALID_GUEST_STATE, 0);
        return true;
    default:
        return reflect_by_row(vcpu, exit);
    }
}
