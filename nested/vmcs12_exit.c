// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Out of an L2: the model and an exit into VMCS12, the MSR areas, L1's host state (SDM vol. 3
// "VM Exits" from "Recording VM-Exit Information" on).

#include "vmcs12_switch.h"
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/decode.h>
#include <nestor/device.h>
#include <nestor/log.h>

static void segment_to_vmcs12(struct nested *n, const struct guest_state *s, unsigned i)
{
    const struct vmcs12_segments to = vmcs12_segments(n);

    to.selector[i] = s->seg[i].selector;
    to.limit[i] = s->seg[i].limit;
    to.access[i] = s->seg[i].access;
    to.base[i] = s->seg[i].base;
}

#define SAVE(field, member) vmcs12_write(n, field, s->member);

static void save_late(struct nested *n, const struct guest_state *s)
{
    VMCS12_PLAIN_LATE(SAVE)
    vmcs12_write(n, GUEST_GDTR_LIMIT, s->gdtr.limit);
    vmcs12_write(n, GUEST_IDTR_LIMIT, s->idtr.limit);
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (i != SEG_CS && i != SEG_SS)
            segment_to_vmcs12(n, s, i);
    n->unsaved = false;
}

void vmcs12_settle(struct vcpu *vcpu)
{
    if (likely(!vcpu->nested->unsaved))
        return;
    backend->select(vcpu, 1, 0);
    save_late(vcpu->nested, vcpu_state(vcpu, VMCS12_LATE));
    backend->select(vcpu, 0, 0);
}

static void save_pdptes(struct nested *n, const struct guest_state *s)
{
    for (unsigned i = 0; i < ARRAY_SIZE(s->pdpte); i++)
        vmcs12_write(n, (enum vmcs_field)(GUEST_PDPTE0 + 2 * i), s->pdpte[i]);
}

// RF as an exit saves it ("Saving RIP, RSP, RFLAGS, and SSP"): 0 where an instruction exits; 1 by
// an access that stage 2 refuses, outside the delivery of an event. An emulated instruction's exit
// need not be of the kind that the CPU's was.
static void settle_rf(struct vcpu *vcpu, const struct vm_exit *exit)
{
    u64 rflags = vcpu->cur->state.rflags, settled = rflags;

    if (exit->kind >= EXIT_CPUID)
        settled &= ~(u64)RFLAGS_RF;
    else if ((exit->kind == EXIT_STAGE2 || exit->kind == EXIT_STAGE2_MISCONFIG) &&
             !vcpu->events.reinject.valid)
        settled |= RFLAGS_RF;
    if (unlikely(settled != rflags))
        vcpu_modify(vcpu, GROUP_RIP)->rflags = settled;
}

// "Saving Non-Register State": debug exceptions that are pending are kept by exits that may come
// before them, and in MOV SS's shadow.
static u64 kept_pending(const struct guest_state *s, u32 reason)
{
    const u64 before = BIT(REASON_INIT) | BIT(REASON_MTF) | BIT(REASON_TPR_BELOW_THRESHOLD) |
                       BIT(REASON_VIRTUALIZED_EOI) | BIT(REASON_APIC_WRITE);

    if (likely(!s->pending_dbg) || (s->interruptibility & BLOCK_MOV_SS))
        return s->pending_dbg;
    return reason < 64 && (before >> reason & 1) ? s->pending_dbg : 0;
}

// "Saving Control Registers, Debug Registers, and MSRs": "IA-32e mode guest", before CR0. VMCS12's
// IA32_EFER, which is not saved without a control, need not fit any longer.
static void save_mode(struct nested *n, const struct guest_state *s)
{
    u64 before = vmcs12_read(n, ENTRY_CONTROLS);
    u64 now = (before & ~(u64)ENTRY_CTL_IA32E_GUEST) |
              (s->efer & EFER_LMA ? (u64)ENTRY_CTL_IA32E_GUEST : 0);

    if (unlikely((before ^ now) | ((vmcs12_read(n, GUEST_CR0) ^ s->cr0) & CR0_PG)))
        n->due |= DUE_GUEST;
    vmcs12_write(n, ENTRY_CONTROLS, now);
}

static void save_guest_state(struct vcpu *vcpu, u32 reason)
{
    struct nested *n = vcpu->nested;
    struct guest_state *s =
        vcpu_state(vcpu, GROUP_ALL_CTX & ~(u32)(GROUP_CET | GROUP_PDPTE | VMCS12_LATE));
    u64 exit = vmcs12_read(n, EXIT_CONTROLS);

    if ((vmcs12_secondary(n) & SECONDARY_EPT) && !(s->efer & EFER_LMA) && (s->cr4 & CR4_PAE) &&
        (s->cr0 & CR0_PG))
        save_pdptes(n, vcpu_state(vcpu, GROUP_PDPTE));

    save_mode(n, s);
    VMCS12_PLAIN(SAVE)
    segment_to_vmcs12(n, s, SEG_CS);
    segment_to_vmcs12(n, s, SEG_SS);
    n->unsaved = true;
    vmcs12_write(n, GUEST_PENDING_DBG, kept_pending(s, reason));
    vmcs12_write(n, GUEST_INTERRUPTIBILITY,
                 s->interruptibility | (n->nmis_stay_blocked ? BLOCK_NMI : 0));
    vmcs12_write(n, GUEST_ACTIVITY_STATE, s->activity);
    if (exit & EXIT_CTL_SAVE_DEBUG) {
        vmcs12_write(n, GUEST_DR7, s->dr7);
        vmcs12_write(n, GUEST_DEBUGCTL, s->debugctl);
    }
    if (exit & EXIT_CTL_SAVE_PAT)
        vmcs12_write(n, GUEST_PAT, s->pat);
    if (exit & EXIT_CTL_SAVE_EFER)
        vmcs12_write(n, GUEST_EFER, s->efer);
    if (vmcs12_has_cet(vcpu))
        vmcs12_cet_save(vcpu);
}

// --- the MSR-store area (SDM vol. 3 "Saving MSRs") ---

// "VMX Aborts": an indicator in the VMCS region, and the CPU is shut down.
enum vmx_abort {
    ABORT_SAVE_MSRS = 1,
    ABORT_HOST_PDPTES = 2,
    ABORT_LOAD_MSRS = 4,
    ABORT_HOST_MODE = 6, // a 32-bit host, out of IA-32e mode
};

static void abort_vmx(struct vcpu *vcpu, u32 indicator)
{
    struct nested *n = vcpu->nested;

    n->vmcs.abort = indicator;
    guest_write_gpa(vcpu, n->current + offsetof(struct vmcs12, abort), &indicator,
                    sizeof(indicator));
    vm_stop(vcpu->vm, vcpu, "VMX abort %u", indicator);
}

// The TSC is that of the exit, not of all that Nestor does for it.
static int read_stored_msr(struct vcpu *vcpu, u32 msr, u64 *value)
{
    if (msr != MSR_TSC)
        return msr_read_guest(vcpu, msr, value);
    *value = vcpu_guest_tsc(vcpu, vcpu->nested->exit_tsc);
    return 0;
}

static void store_msr_area(struct vcpu *vcpu)
{
    gpa_t gpa = vmcs12_read(vcpu->nested, EXIT_MSR_STORE_ADDRESS);
    u64 count = vmcs12_read(vcpu->nested, EXIT_MSR_STORE_COUNT);
    struct msr_entry entry;

    for (u32 i = 0; i < count; i++) {
        if (i < VMCS12_MSR_AREA &&
            !guest_read_gpa(vcpu, gpa + i * sizeof(entry), &entry, sizeof(entry)) &&
            !entry.reserved && entry.index >> 8 != MSR_X2APIC_FIRST >> 8 &&
            !read_stored_msr(vcpu, entry.index, &entry.value) &&
            !guest_write_gpa(vcpu, gpa + i * sizeof(entry), &entry, sizeof(entry)))
            continue;
        abort_vmx(vcpu, ABORT_SAVE_MSRS);
        return;
    }
}

// --- host state ---

static void host_segment(struct guest_state *s, unsigned seg, u64 selector, u64 base, u32 access)
{
    s->seg[seg] = (struct segment){
        .selector = (u16)selector, .base = base, .limit = 0xffffffff, .access = access};
    if (!selector && seg != SEG_CS)
        s->seg[seg].access |= SEG_UNUSABLE;
}

static void load_host_segments(struct nested *n, struct guest_state *s, bool host64)
{
    host_segment(s, SEG_CS, vmcs12_read(n, HOST_CS_SELECTOR), 0,
                 0x9b | SEG_P | SEG_G | (host64 ? SEG_L : SEG_DB));
    host_segment(s, SEG_SS, vmcs12_read(n, HOST_SS_SELECTOR), 0, 0x93 | SEG_G | SEG_DB);
    host_segment(s, SEG_DS, vmcs12_read(n, HOST_DS_SELECTOR), 0, 0x93 | SEG_G | SEG_DB);
    host_segment(s, SEG_ES, vmcs12_read(n, HOST_ES_SELECTOR), 0, 0x93 | SEG_G | SEG_DB);
    host_segment(s, SEG_FS, vmcs12_read(n, HOST_FS_SELECTOR), vmcs12_read(n, HOST_FS_BASE),
                 0x93 | SEG_G | SEG_DB);
    host_segment(s, SEG_GS, vmcs12_read(n, HOST_GS_SELECTOR), vmcs12_read(n, HOST_GS_BASE),
                 0x93 | SEG_G | SEG_DB);
    s->seg[SEG_TR] = (struct segment){.selector = (u16)vmcs12_read(n, HOST_TR_SELECTOR),
                                      .base = vmcs12_read(n, HOST_TR_BASE),
                                      .limit = 0x67,
                                      .access = 0x8b};
    s->seg[SEG_LDTR] = (struct segment){.access = SEG_UNUSABLE};
    s->gdtr = (struct table_register){vmcs12_read(n, HOST_GDTR_BASE), 0xffff};
    s->idtr = (struct table_register){vmcs12_read(n, HOST_IDTR_BASE), 0xffff};
}

// "Loading Host State": ctx[0] becomes what VMCS12's host-state area says. What it does not say
// stays as it is in `before`: L2's state, or L1's own if L2's was not loaded. `nmis`: 0 or
// BLOCK_NMI.
static void load_host_state(struct vcpu *vcpu, const struct guest_state *before, u32 nmis)
{
    struct nested *n = vcpu->nested;
    struct guest_state *s = &vcpu->ctx[0].state;
    u64 controls = vmcs12_read(n, EXIT_CONTROLS);
    bool host64 = controls & EXIT_CTL_HOST_64;
    u32 groups = GROUP_ALL_CTX & ~(u32)(GROUP_CET | (host64 ? GROUP_PDPTE : 0));

    vcpu->ctx[0].valid |= groups; // all of it is written here: nothing need be read
    vcpu->ctx[0].dirty |= groups;

    s->rip = vmcs12_read(n, HOST_RIP);
    s->rsp = vmcs12_read(n, HOST_RSP);
    s->rflags = RFLAGS_FIXED;
    s->cr0 = (vmcs12_read(n, HOST_CR0) & CR0_LOADED) | (before->cr0 & ~(u64)CR0_LOADED);
    s->cr3 = vmcs12_read(n, HOST_CR3);
    s->cr4 = vmcs12_read(n, HOST_CR4) | (host64 ? CR4_PAE : 0);
    if (!host64)
        s->cr4 &= ~(u64)CR4_PCIDE;
    s->efer = controls & EXIT_CTL_LOAD_EFER ? vmcs12_read(n, HOST_EFER)
                                            : before->efer & ~(EFER_LMA | EFER_LME);
    s->efer |= host64 ? EFER_LMA | EFER_LME : 0;
    s->pat = controls & EXIT_CTL_LOAD_PAT ? vmcs12_read(n, HOST_PAT) : before->pat;
    s->dr7 = DR7_FIXED;
    s->debugctl = 0;
    if (vmcs12_has_cet(vcpu))
        vmcs12_cet_leave(vcpu, before);
    load_host_segments(n, s, host64);
    s->sysenter_cs = vmcs12_read(n, HOST_SYSENTER_CS);
    s->sysenter_esp = vmcs12_read(n, HOST_SYSENTER_ESP);
    s->sysenter_eip = vmcs12_read(n, HOST_SYSENTER_EIP);
    s->interruptibility = nmis;
    s->activity = ACTIVITY_ACTIVE;
    s->pending_dbg = 0;
    if (!host64 && (before->efer & EFER_LMA))
        abort_vmx(vcpu, ABORT_HOST_MODE);
    else if (!host64 && !vmcs12_load_pdptes(vcpu, s))
        abort_vmx(vcpu, ABORT_HOST_PDPTES);
    if (!vmcs12_vpid(n))
        tlb_flush_vcpu(vcpu, TLB_FLUSH_GUEST);
    if (vmcs12_load_msrs(vcpu, vmcs12_read(n, EXIT_MSR_LOAD_ADDRESS),
                         vmcs12_read(n, EXIT_MSR_LOAD_COUNT)))
        abort_vmx(vcpu, ABORT_LOAD_MSRS);
}

static u64 event_info(const struct event *event, bool has_error)
{
    if (!event->valid)
        return 0;
    return event->vector | (u64)event->type << INFO_TYPE_SHIFT |
           (has_error ? (u64)INFO_ERROR_CODE : 0) | INFO_VALID;
}

// Operand size, as the tables of RDRAND and of descriptor-table instructions have it.
static u32 operand_size(const struct vm_exit *exit)
{
    u8 size = exit->operand.op_size;

    if (exit->kind == EXIT_GDTR_IDTR)
        return size == 2 ? 0 : (u32)BIT(11);
    return exit->operand.is_reg && size ? (u32)(size >> 2) << 11 : 0;
}

// Tables "Format of the VM-Exit Instruction-Information Field as Used for ...": what of them lies
// alike in all that have it.
static u32 instruction_info(const struct vm_exit *exit)
{
    const struct exit_operand *op = &exit->operand;
    bool tables = exit->kind == EXIT_GDTR_IDTR || exit->kind == EXIT_LDTR_TR;
    bool random = exit->kind == EXIT_RDRAND || exit->kind == EXIT_RDSEED ||
                  exit->kind == EXIT_UMWAIT || exit->kind == EXIT_TPAUSE;
    u32 info = tables ? (u32)op->identity << 28 : (u32)op->reg2 << 28;

    if (exit->kind == EXIT_IO && exit->io.string && exit->io.addr_size <= 8)
        return (u32)exit->io.addr_size >> 2 << 7 | (u32)(exit->io.seg & 7) << 15;
    if (!op->known)
        return 0;
    info |= operand_size(exit);
    if (op->is_reg)
        return info | (u32)op->reg1 << 3 | (random ? 0 : (u32)BIT(10));
    info |= op->scale | (u32)op->addr_size >> 2 << 7 | (u32)op->seg << 15;
    info |= op->index == EXIT_GPR_UNKNOWN ? (u32)BIT(22) : (u32)op->index << 18;
    return info | (op->base == EXIT_GPR_UNKNOWN ? (u32)BIT(27) : (u32)op->base << 23);
}

// INS and OUTS: where their memory operand is.
static u64 string_address(struct vcpu *vcpu, const struct exit_io *io)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CODE | GROUP_DATA | GROUP_SYSTEM);
    u64 offset = vcpu->gpr[io->in ? GPR_RDI : GPR_RSI];
    unsigned seg = io->in ? SEG_ES : io->seg <= SEG_GS ? io->seg : SEG_DS;

    if (io->addr_size == 2 || io->addr_size == 4)
        offset &= io->addr_size == 4 ? 0xffffffffull : 0xffffull;
    if (!vcpu_mode_64bit(vcpu))
        return (u32)(offset + s->seg[seg].base);
    return offset + (seg >= SEG_FS ? s->seg[seg].base : 0);
}

// LMSW's memory operand; 0 if another vCPU has written over the instruction.
static u64 lmsw_address(struct vcpu *vcpu)
{
    const struct guest_state *s =
        vcpu_state(vcpu, GROUP_RIP | GROUP_CODE | GROUP_DATA | GROUP_SYSTEM);
    struct insn insn;
    u64 offset;

    if (!insn_peek_current(vcpu, &insn) || !insn.has_mem)
        return 0;
    vcpu->gpr[GPR_RSP] = s->rsp;
    offset = insn_offset(&insn, vcpu->gpr, s->rip + insn.length);
    if (!vcpu_mode_64bit(vcpu))
        return (u32)(offset + s->seg[insn.seg].base);
    return offset + (insn.seg >= SEG_FS ? s->seg[insn.seg].base : 0);
}

static u64 linear_address(struct vcpu *vcpu, const struct vm_exit *exit)
{
    if (exit->kind == EXIT_STAGE2 && exit->stage2.gla_valid)
        return exit->stage2.gla;
    if (exit->kind == EXIT_CR && exit->cr.access == CR_LMSW && exit->cr.lmsw_memory)
        return lmsw_address(vcpu);
    return exit->kind == EXIT_IO && exit->io.string ? string_address(vcpu, &exit->io) : 0;
}

static u8 exit_length(const struct vm_exit *exit, const struct event *vectoring)
{
    bool software = vectoring->valid && vectoring->type >= EVENT_SOFT_INTERRUPT;

    return !exit->insn_len && software ? vectoring->insn_len : exit->insn_len;
}

// Kinds that have more to tell than reason, qualification, length and operand.
static const bool detailed[EXIT_KIND_COUNT] = {
    [EXIT_EXCEPTION] = true,
    [EXIT_NMI] = true,
    [EXIT_EXTERNAL_INTERRUPT] = true,
    [EXIT_IO] = true,
    [EXIT_CR] = true,
    [EXIT_STAGE2] = true,
    [EXIT_STAGE2_MISCONFIG] = true,
};

static void save_exit_information(struct vcpu *vcpu, u32 reason, u64 qualification,
                                  const struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    const struct event *event = &exit->event, *vectoring = &vcpu->events.reinject;
    bool details = detailed[exit->kind];
    bool has_event = details && (exit->kind == EXIT_EXCEPTION || exit->kind == EXIT_NMI ||
                                 exit->kind == EXIT_EXTERNAL_INTERRUPT);
    // An EPT violation's qualification says the same in a bit of its own.
    bool unblocked = exit->nmi_unblocked_by_iret && !n->nmis_stay_blocked &&
                     (exit->kind == EXIT_EXCEPTION || exit->kind == EXIT_STAGE2);
    u64 unblocking = unblocked && has_event ? INFO_NMI_UNBLOCKING : 0;
    // "Information for VM Exits Due to Vectored Events": none in real-address mode.
    bool codes = vmcs12_read(n, GUEST_CR0) & CR0_PE;
    bool code = codes && event->has_error, vectoring_code = codes && vectoring->has_error;

    // The IRET will run again; the model has the blocking as it will be then.
    if (unblocked)
        vmcs12_write(n, GUEST_INTERRUPTIBILITY,
                     vmcs12_read(n, GUEST_INTERRUPTIBILITY) & ~(u64)BLOCK_NMI);

    vmcs12_write(n, EXIT_REASON, reason);
    vmcs12_write(n, EXIT_QUALIFICATION, qualification);
    vmcs12_write(n, EXIT_INTERRUPTION_INFO, has_event ? event_info(event, code) | unblocking : 0);
    vmcs12_write(n, EXIT_INTERRUPTION_ERROR_CODE, has_event && code ? event->error : 0);
    vmcs12_write(n, IDT_VECTORING_INFO, event_info(vectoring, vectoring_code));
    vmcs12_write(n, IDT_VECTORING_ERROR_CODE, vectoring_code ? vectoring->error : 0);
    vmcs12_write(n, EXIT_INSTRUCTION_LENGTH, exit_length(exit, vectoring));
    vmcs12_write(n, EXIT_INSTRUCTION_INFO,
                 details || exit->operand.known ? instruction_info(exit) : 0);
    vmcs12_write(n, GUEST_LINEAR_ADDRESS, details ? linear_address(vcpu, exit) : 0);
    if (details && (exit->kind == EXIT_STAGE2 || exit->kind == EXIT_STAGE2_MISCONFIG))
        vmcs12_write(n, GUEST_PHYSICAL_ADDRESS, exit->stage2.gpa);
    vmcs12_write(n, ENTRY_INTERRUPTION_INFO,
                 vmcs12_read(n, ENTRY_INTERRUPTION_INFO) & ~(u64)INFO_VALID);
}

// Virtual NMIs' blocking is L2's; the CPU's own ended with the entry.
static u32 nmis_blocked(const struct nested *n)
{
    if (vmcs12_read(n, PIN_BASED_CONTROLS) & PIN_VIRTUAL_NMIS)
        return 0;
    return (u32)vmcs12_read(n, GUEST_INTERRUPTIBILITY) & BLOCK_NMI;
}

void vmcs12_exit(struct vcpu *vcpu, u32 reason, u64 qualification, const struct vm_exit *exit)
{
    settle_rf(vcpu, exit);
    save_guest_state(vcpu, reason);
    vmcs12_timer_stop(vcpu);
    save_exit_information(vcpu, reason, qualification, exit);
    store_msr_area(vcpu);
    vcpu->events.reinject.valid = false;
    vcpu->events.exception.valid = false;
    nested_leave_l2(vcpu);
    load_host_state(vcpu, &vcpu->ctx[1].state, nmis_blocked(vcpu->nested));
    vmcs12_publish(vcpu);
}

// "VM-Entry Failures During or After Loading Guest State": no guest state is saved, host state is
// loaded as by an exit, but NMIs are blocked as they were before.
void vmcs12_entry_failed(struct vcpu *vcpu, u32 reason, u64 qualification)
{
    struct guest_state before =
        *vcpu_state(vcpu, GROUP_CR | GROUP_EFER_PAT | vmcs12_cet_group(vcpu));
    u32 nmis = vcpu->ctx[0].state.interruptibility & BLOCK_NMI; // the checks have looked at it

    if (vcpu->level)
        nested_leave_l2(vcpu);
    vcpu->nested->due |= DUE_LOAD; // nothing is saved of what was loaded
    vmcs12_write(vcpu->nested, EXIT_REASON, reason | EXIT_REASON_ENTRY_FAILURE);
    vmcs12_write(vcpu->nested, EXIT_QUALIFICATION, qualification);
    load_host_state(vcpu, &before, nmis);
    vmcs12_publish(vcpu);
}
