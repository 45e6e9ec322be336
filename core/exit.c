// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What Nestor does with each kind of exit, as a table. An exit that no row handles ends the guest
// with a report; no instruction is ever skipped.

#include <arch/x86/insn.h>
#include <arch/x86/regs.h>
#include <nestor/decode.h>
#include <nestor/device.h>
#include <nestor/log.h>
#include <nestor/nested.h>
#include <nestor/run.h>
#include <nestor/time.h>
#include <nestor/tlb.h>

#define LLU(x) ((unsigned long long)(x))

static void on_cpuid(struct vcpu *vcpu, struct vm_exit *exit)
{
    u32 out[4];

    cpuid_read(vcpu, (u32)vcpu->gpr[GPR_RAX], (u32)vcpu->gpr[GPR_RCX], out);
    vcpu->gpr[GPR_RAX] = out[0];
    vcpu->gpr[GPR_RBX] = out[1];
    vcpu->gpr[GPR_RCX] = out[2];
    vcpu->gpr[GPR_RDX] = out[3];
    vcpu_finish_exit(vcpu, exit);
}

static void on_hlt(struct vcpu *vcpu, struct vm_exit *exit)
{
    vcpu_modify(vcpu, GROUP_BLOCKING)->activity = ACTIVITY_HLT;
    vcpu->events.interrupts_check = true;
    vcpu_finish_exit(vcpu, exit);
}

static void on_io(struct vcpu *vcpu, struct vm_exit *exit)
{
    u32 value = exit->io.in ? ~0u : (u32)vcpu->gpr[GPR_RAX];
    u64 *rax = &vcpu->gpr[GPR_RAX];

    if (unlikely(exit->io.string | vcpu->breakpoints)) {
        vcpu_emulate(vcpu, exit);
        return;
    }
    bus_pio(vcpu, exit->io.port, exit->io.size, !exit->io.in, &value);
    if (exit->io.in) {
        if (exit->io.size == 4)
            *rax = value;
        else if (exit->io.size == 2)
            *rax = (*rax & ~0xffffull) | (u16)value;
        else
            *rax = (*rax & ~0xffull) | (u8)value;
    }
    vcpu_finish_exit(vcpu, exit);
}

static void on_rdmsr(struct vcpu *vcpu, struct vm_exit *exit)
{
    u64 value = 0;

    if (msr_read_guest(vcpu, (u32)vcpu->gpr[GPR_RCX], &value)) {
        vcpu_inject_gp0(vcpu);
        return;
    }
    vcpu->gpr[GPR_RAX] = (u32)value;
    vcpu->gpr[GPR_RDX] = value >> 32;
    vcpu_finish_exit(vcpu, exit);
}

static void on_wrmsr(struct vcpu *vcpu, struct vm_exit *exit)
{
    u64 value = (u32)vcpu->gpr[GPR_RAX] | vcpu->gpr[GPR_RDX] << 32;

    if (msr_write_guest(vcpu, (u32)vcpu->gpr[GPR_RCX], value))
        vcpu_inject_gp0(vcpu);
    else
        vcpu_finish_exit(vcpu, exit);
}

// --- control and debug registers ---

// MOV to or from the CR, with at most a REX prefix, where the cache knows the code.
static bool usual_cr(struct vcpu *vcpu, struct vm_exit *exit)
{
    u32 word, rex = 0, modrm;

    if (!insn_first_word(vcpu, &word))
        return false;
    if ((word & 0xf0) == 0x40 && state_is_64bit(&vcpu->cur->state)) {
        rex = word & 0xf;
        word >>= 8;
        exit->insn_len = 1;
    }
    modrm = word >> 16 & 0xff;
    if ((word & 0xfdff) != 0x200f || (modrm >> 3 & 7) + (rex << 1 & 8) != exit->cr.number) {
        exit->insn_len = 0;
        return false;
    }
    exit->insn_len = (u8)(exit->insn_len + 3);
    exit->cr.access = word & 0x200 ? CR_WRITE : CR_READ;
    exit->cr.gpr = (u8)((modrm & 7) + (rex << 3 & 8));
    return true;
}

// SVM without decode assists says neither the register nor the value; without nRIP save, not the
// length.
static bool decode_cr(struct vcpu *vcpu, struct vm_exit *exit)
{
    bool told = exit->cr.gpr != EXIT_GPR_UNKNOWN || exit->cr.access == CR_CLTS ||
                exit->cr.access == CR_LMSW;
    struct insn insn;

    if (told && (exit->insn_len || exit->next_rip))
        return true;
    if (likely(usual_cr(vcpu, exit)))
        return true;
    if (!insn_decode_current(vcpu, &insn))
        return false;
    exit->insn_len = insn.length;
    exit->cr.gpr = insn.rm;
    switch (insn.op) {
    case INSN_MOV_TO_CR:
        exit->cr.access = CR_WRITE;
        return true;
    case INSN_MOV_FROM_CR:
        exit->cr.access = CR_READ;
        return true;
    case INSN_CLTS:
        exit->cr.access = CR_CLTS;
        return true;
    case INSN_LMSW:
        exit->cr.access = CR_LMSW;
        exit->cr.lmsw_source = (u16)vcpu_gpr(vcpu, insn.rm);
        return !insn.has_mem;
    default:
        return false;
    }
}

// Bits that L1 owns of its L2 keep their value; the guest reads the shadow for them (SDM vol. 3
// "Guest/Host Masks and Read Shadows"). What Nestor masks for itself is not offered: it is refused.
static u64 cr_merge_owned(struct vcpu *vcpu, unsigned number, u64 value)
{
    const struct controls *ctl = &vcpu->cur->ctl;
    u64 mask = 0;

    if (likely(!vcpu->level))
        return value;
    if (number == 0)
        mask = ctl->cr0_owned;
    else if (number == 4)
        mask = ctl->cr4_owned;
    return (value & ~mask) | (cr_read_guest(vcpu, number) & mask);
}

u64 cr_visible(struct vcpu *vcpu, unsigned number)
{
    const struct controls *ctl = &vcpu->cur->ctl;
    u64 mask = number == 0 ? ctl->cr0_mask : number == 4 ? ctl->cr4_mask : 0;
    u64 shadow = number == 0 ? ctl->cr0_shadow : ctl->cr4_shadow;

    return (cr_read_guest(vcpu, number) & ~mask) | (shadow & mask);
}

static u64 cr_new_value(struct vcpu *vcpu, const struct exit_cr *cr)
{
    u64 cr0;

    if (cr->access == CR_WRITE) {
        u64 value = vcpu_gpr(vcpu, cr->gpr);

        return vcpu_mode_64bit(vcpu) ? value : (u32)value;
    }
    cr0 = cr_read_guest(vcpu, 0);
    if (cr->access == CR_CLTS)
        return cr0 & ~CR0_TS;
    // LMSW sets PE but never clears it.
    return (cr0 & ~(u64)(CR0_MP | CR0_EM | CR0_TS)) |
           (cr->lmsw_source & (CR0_PE | CR0_MP | CR0_EM | CR0_TS));
}

static void on_cr(struct vcpu *vcpu, struct vm_exit *exit)
{
    unsigned level = vcpu->level;

    if (!decode_cr(vcpu, exit)) {
        if (vcpu->events.exception.valid || vcpu->level != level)
            return; // its fetch has faulted, or is L1's business
        if (exit->cr.number == 0 && (exit->cr.access == CR_READ || exit->cr.access == CR_LMSW))
            vcpu_emulate(vcpu, exit); // SMSW, or LMSW of memory
        else if (!insn_retry(vcpu) && !vcpu_shutdown_l2(vcpu))
            vm_stop(vcpu->vm, vcpu, "a control-register access that is not decoded");
        return;
    }
    if (exit->cr.access == CR_READ) {
        u64 value = cr_visible(vcpu, exit->cr.number);

        vcpu_set_gpr(vcpu, exit->cr.gpr, vcpu_mode_64bit(vcpu) ? value : (u32)value);
    } else if (cr_write_guest(
                   vcpu, exit->cr.number,
                   cr_merge_owned(vcpu, exit->cr.number, cr_new_value(vcpu, &exit->cr)))) {
        if (!nested_tell_refused(vcpu)) // of its PDPTEs
            vcpu_inject_gp0(vcpu);
        return;
    }
    vcpu_finish_exit(vcpu, exit);
}

static void on_xsetbv(struct vcpu *vcpu, struct vm_exit *exit)
{
    u64 value = (u32)vcpu->gpr[GPR_RAX] | vcpu->gpr[GPR_RDX] << 32;

    if (!(cr_read_guest(vcpu, 4) & CR4_OSXSAVE)) {
        vcpu_inject_ud(vcpu);
        return;
    }
    if (vcpu_cpl(vcpu) || (u32)vcpu->gpr[GPR_RCX] || xcr0_refused(vcpu, value)) {
        vcpu_inject_gp0(vcpu);
        return;
    }
    vcpu_modify(vcpu, GROUP_EXTENDED);
    vcpu->xcr0 = value;
    vcpu_finish_exit(vcpu, exit);
}

// --- memory ---

// What stage 2 does not map is a device, or nothing; the emulator finds out which. It knows
// instructions: the CPU's own accesses when it fetches one or delivers an event are none. They end
// a guest, but not the hypervisor whose L2 makes them: an L2 finds no instruction there, as on
// most buses, and a delivery shuts it down.
static void on_stage2(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (unlikely(vcpu->level && exit->stage2.execute))
        vcpu_inject_ud(vcpu);
    else if (unlikely(vcpu->level && exit->interrupted.valid))
        vcpu_shutdown_l2(vcpu);
    else if (exit->stage2.execute)
        vm_stop(vcpu->vm, vcpu, "instruction fetch where there is no RAM, GPA %#llx",
                LLU(exit->stage2.gpa));
    else if (exit->interrupted.valid)
        vm_stop(vcpu->vm, vcpu, "delivery of vector %u needs GPA %#llx, where there is no RAM",
                exit->interrupted.vector, LLU(exit->stage2.gpa));
    else
        vcpu_emulate(vcpu, exit);
}

// A mistake of Nestor's own, but in this guest's tables only.
static void on_stage2_misconfig(struct vcpu *vcpu, struct vm_exit *exit)
{
    vm_stop(vcpu->vm, vcpu, "stage-2 entry misconfigured, GPA %#llx", LLU(exit->stage2.gpa));
}

static void on_invlpg(struct vcpu *vcpu, struct vm_exit *exit)
{
    tlb_flush_vcpu(vcpu, TLB_FLUSH_GUEST);
    vcpu_finish_exit(vcpu, exit);
}

// --- events ---

// While GIF is 0 breakpoints that match are discarded; other causes of a #DB are not (APM vol. 2,
// 15.17).
static bool is_discarded(struct vcpu *vcpu, struct event *event)
{
    u64 hits = event->payload & 0xf;

    if (event->vector != VECTOR_DB || event->type != EVENT_EXCEPTION || !hits)
        return false;
    vcpu_modify(vcpu, GROUP_DR6 | GROUP_RIP);
    vcpu->dr6 &= ~hits;
    event->payload &= ~hits;
    if (event->payload & (DR6_BD | DR6_BS | DR6_BT))
        return false;
    vcpu->cur->state.rflags |= RFLAGS_RF; // past a breakpoint on the instruction
    return true;
}

// An x87 error with CR0.NE = 0, at the next waiting instruction (SDM vol. 1 "MS-DOS Compatibility
// Sub-mode"; APM vol. 2, "Using the FERR# and IGNNE# Signals"): IRQ 13, and the CPU stands before
// that instruction until an interrupt comes. IGNNE# has no counterpart here: a handler clears the
// error by an instruction that does not wait, as all do.
static void on_ferr(struct vcpu *vcpu, struct vm_exit *exit)
{
    (void)exit;
    machine_raise_ferr(vcpu->vm);
    vcpu_modify(vcpu, GROUP_BLOCKING)->activity = ACTIVITY_HLT;
    vcpu->events.interrupts_check = true;
}

static void on_exception(struct vcpu *vcpu, struct vm_exit *exit)
{
    // VMX runs every guest with NE set.
    if (unlikely(exit->event.vector == VECTOR_MF) && !(vcpu_state(vcpu, GROUP_CR)->cr0 & CR0_NE)) {
        on_ferr(vcpu, exit);
        return;
    }
    if (unlikely(vcpu->events.gif_clear) && is_discarded(vcpu, &exit->event))
        return;
    if (unlikely(exit->event.vector == VECTOR_UD) && vcpu_emulate_forced(vcpu))
        return;
    vcpu_inject_event(vcpu, &exit->event);
}

// SVM; VMX tells INT1 from other debug exceptions. No cause of its own in DR6; a trap.
static void on_icebp(struct vcpu *vcpu, struct vm_exit *exit)
{
    vcpu_inject_event(vcpu, &(struct event){.vector = VECTOR_DB,
                                            .type = EVENT_INT1,
                                            .insn_len = exit->insn_len,
                                            .has_payload = true});
}

static void on_window(struct vcpu *vcpu, struct vm_exit *exit)
{
    (void)exit;
    vcpu->events.interrupts_check = true;
}

// --- the accelerated LAPIC ---

// An access that the CPU does not do itself; as on_stage2.
static void on_apic_access(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (exit->interrupted.valid)
        vm_stop(vcpu->vm, vcpu, "delivery of vector %u accesses the LAPIC",
                exit->interrupted.vector);
    else
        vcpu_emulate(vcpu, exit);
}

// The instruction is over; the page has the value.
static void on_apic_write(struct vcpu *vcpu, struct vm_exit *exit)
{
    lapic_written(vcpu, exit->apic_offset);
}

static void on_eoi(struct vcpu *vcpu, struct vm_exit *exit)
{
    lapic_ended(vcpu, exit->vector);
    vcpu->events.interrupts_check = true; // on a leaky CPU the next one's way may be free
}

static void on_triple_fault(struct vcpu *vcpu, struct vm_exit *exit)
{
    (void)exit;
    vm_stop(vcpu->vm, vcpu, "triple fault");
}

static void on_entry_failed(struct vcpu *vcpu, struct vm_exit *exit)
{
    vm_stop(vcpu->vm, vcpu, "the CPU refused to enter the guest (%#llx, %#llx, %#llx)",
            LLU(exit->raw_reason), LLU(exit->raw_info1), LLU(exit->raw_info2));
}

// --- small instructions ---

static void on_nop(struct vcpu *vcpu,
                   struct vm_exit *exit) // WBINVD, INVD, PAUSE: guest memory is coherent
{
    vcpu_finish_exit(vcpu, exit);
}

static void on_ud(struct vcpu *vcpu, struct vm_exit *exit) // not offered in CPUID
{
    (void)exit;
    vcpu_inject_ud(vcpu);
}

static void on_gp(struct vcpu *vcpu, struct vm_exit *exit) // RDPMC: no counter exists
{
    (void)exit;
    vcpu_inject_gp0(vcpu);
}

static void on_hypercall(struct vcpu *vcpu, struct vm_exit *exit)
{
    paravirt_hypercall(vcpu);
    vcpu_finish_exit(vcpu, exit);
}

static void on_unknown(struct vcpu *vcpu, struct vm_exit *exit)
{
    vm_stop(vcpu->vm, vcpu, "exit %s (%#llx, %#llx, %#llx) that Nestor does not handle",
            exit_kind_names[exit->kind], LLU(exit->raw_reason), LLU(exit->raw_info1),
            LLU(exit->raw_info2));
}

typedef void (*exit_handler)(struct vcpu *vcpu, struct vm_exit *exit);

static const exit_handler exit_table[EXIT_KIND_COUNT] = {
    [EXIT_STAGE2] = on_stage2,
    [EXIT_STAGE2_MISCONFIG] = on_stage2_misconfig,
    [EXIT_EXCEPTION] = on_exception,
    [EXIT_TRIPLE_FAULT] = on_triple_fault,
    [EXIT_ICEBP] = on_icebp,
    [EXIT_FERR_FREEZE] = on_ferr,
    [EXIT_INTERRUPT_WINDOW] = on_window,
    [EXIT_NMI_WINDOW] = on_window,
    [EXIT_TASK_SWITCH] = vcpu_task_switch,
    [EXIT_IRET] = vcpu_emulate, // SVM: of a nested task, with NMIs blocked
    [EXIT_APIC_ACCESS] = on_apic_access,
    [EXIT_APIC_WRITE] = on_apic_write,
    [EXIT_EOI] = on_eoi,
    [EXIT_ENTRY_FAILED] = on_entry_failed,
    [EXIT_CPUID] = on_cpuid,
    [EXIT_HLT] = on_hlt,
    [EXIT_IO] = on_io,
    [EXIT_RDMSR] = on_rdmsr,
    [EXIT_WRMSR] = on_wrmsr,
    [EXIT_CR] = on_cr,
    [EXIT_DR] = vcpu_emulate,
    [EXIT_GDTR_IDTR] = vcpu_emulate,
    [EXIT_LDTR_TR] = vcpu_emulate,
    [EXIT_INVD] = on_nop,
    [EXIT_WBINVD] = on_nop,
    [EXIT_INVLPG] = on_invlpg,
    [EXIT_RDPMC] = on_gp,
    [EXIT_RDPRU] = on_ud,
    [EXIT_RDTSCP] = on_ud, // SVM: hidden ones
    [EXIT_INVPCID] = on_ud,
    [EXIT_RSM] = on_ud,
    [EXIT_PAUSE] = on_nop,
    [EXIT_MONITOR] = on_ud,
    [EXIT_MWAIT] = on_ud,
    [EXIT_XSETBV] = on_xsetbv,
    [EXIT_GETSEC] = on_ud,
    [EXIT_VMFUNC] = on_ud,
    [EXIT_ENCLS] = on_ud,
    [EXIT_UNDEFINED] = on_ud,
    [EXIT_VMCALL] = on_hypercall,
    [EXIT_VMMCALL] = on_hypercall,
    [EXIT_VMXON] = nested_instruction,
    [EXIT_VMXOFF] = nested_instruction,
    [EXIT_VMCLEAR] = nested_instruction,
    [EXIT_VMPTRLD] = nested_instruction,
    [EXIT_VMPTRST] = nested_instruction,
    [EXIT_VMREAD] = nested_instruction,
    [EXIT_VMWRITE] = nested_instruction,
    [EXIT_VMLAUNCH] = nested_instruction,
    [EXIT_VMRESUME] = nested_instruction,
    [EXIT_INVEPT] = nested_instruction,
    [EXIT_INVVPID] = nested_instruction,
    [EXIT_VMRUN] = nested_instruction,
    [EXIT_VMLOAD] = nested_instruction,
    [EXIT_VMSAVE] = nested_instruction,
    [EXIT_STGI] = nested_instruction,
    [EXIT_CLGI] = nested_instruction,
    [EXIT_SKINIT] = nested_instruction,
    [EXIT_INVLPGA] = nested_instruction,
};

static inline void dispatch(struct vcpu *vcpu, struct vm_exit *exit)
{
    exit_handler handler = exit_table[exit->kind];

    if (likely(handler != NULL))
        handler(vcpu, exit);
    else
        on_unknown(vcpu, exit);
}

// Where the hardware does not say the length, it is found before any effect: the bytes may be no
// instruction at all.
static __attribute__((noinline)) void measure_and_dispatch(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (insn_find_length(vcpu, exit))
        dispatch(vcpu, exit);
}

void exit_handle(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (unlikely(!exit->insn_len && !exit->next_rip))
        measure_and_dispatch(vcpu, exit);
    else
        dispatch(vcpu, exit);
}
