// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// One entry into a guest and its exit: what is dirty, the event to inject, windows, the preemption
// timer and the flushes owed are written before; the exit is read after. SDM vol. 3 "VM Entries",
// "VM Exits".
//
// The preemption timer is for immediate exits and for runs with interrupts closed (cpu.c);
// deadlines come as the real LAPIC's interrupt, which costs nothing on entries.

#include "exit.h"
#include "vmx.h"
#include <arch/x86/regs.h>
#include <nestor/host.h>
#include <nestor/time.h>
#include <nestor/tlb.h>

_Static_assert(offsetof(struct backend_ctx, host_rsp) == HW_HOST_RSP, "run.h");
_Static_assert(offsetof(struct backend_ctx, host_spec_ctrl) == HW_HOST_SPEC_CTRL, "run.h");
_Static_assert(offsetof(struct vcpu, gpr) == 0, "enter.S");
_Static_assert(offsetof(struct backend_ctx, guest_spec_ctrl) == HW_GUEST_SPEC_CTRL, "run.h");
_Static_assert(HOST_RSP == VMCS_HOST_RSP, "run.h");
_Static_assert(RUN_LAUNCHED == 1, "taken from a bool");

// --- before ---

static void flush(struct vcpu_ctx *ctx)
{
    const struct backend_ctx *hw = ctx->hw;

    if (ctx->flush & TLB_FLUSH_STAGE2)
        invept(INVEPT_SINGLE, hw->eptp);
    if ((ctx->flush & TLB_FLUSH_GUEST) && hw->vpid)
        invvpid(INVVPID_SINGLE, hw->vpid); // without VPID every entry flushes
    ctx->flush = 0;
}

// The CPU clears the field's valid bit on the next exit.
static void inject(struct vcpu *vcpu, const struct event *event)
{
    struct vcpu_ctx *ctx = vcpu->cur;
    u64 info = event->vector | (u64)event->type << INFO_TYPE_SHIFT | INFO_VALID;

    if (event->has_error) {
        info |= INFO_ERROR_CODE;
        vmwrite(ENTRY_EXCEPTION_ERROR_CODE, event->error);
    }
    vmwrite(ENTRY_INTERRUPTION_INFO, info);
    if (vmx_event_is_soft((u32)info))
        vmwrite(ENTRY_INSTRUCTION_LENGTH, event->insn_len);
    // An NMI whose delivery an exit interrupted comes again with its blocking already in force; the
    // entry refuses that.
    if (event->type == EVENT_NMI &&
        (vcpu_state(vcpu, GROUP_BLOCKING)->interruptibility & BLOCK_NMI)) {
        ctx->state.interruptibility &= ~(u32)BLOCK_NMI;
        vmwrite(GUEST_INTERRUPTIBILITY, ctx->state.interruptibility);
    }
}

// Where the interrupt of a deadline does not end the run (cpu.c), the timer does, at the same time.
// Each entry starts it anew, so a guest that polls something with its interrupts closed is not to
// outrun it.
static inline u32 timer_masked(const struct cpu *this)
{
    u64 now = tsc_now(), deadline = __atomic_load_n(&this->timer_first, __ATOMIC_RELAXED);

    if (likely(deadline > now + vmx_caps.masked_ticks))
        return vmx_caps.timer_masked;
    return deadline > now ? (u32)((deadline - now) >> (vmx_caps.misc & VMX_MISC_TIMER_RATE)) : 0;
}

static void write_rip(struct vcpu_ctx *ctx)
{
    struct backend_ctx *hw = ctx->hw;

    vmwrite_changed(GUEST_RIP, &hw->rip, ctx->state.rip);
    vmwrite_changed(GUEST_RSP, &hw->rsp, ctx->state.rsp);
    vmwrite_changed(GUEST_RFLAGS, &hw->rflags, ctx->state.rflags);
}

// Not every CPU counts blocking by STI as a reason to keep the NMI window closed, and then each
// entry would exit at once; the interrupt window waits for its end, and IF is 1 under it.
static u32 nmi_window(const struct vcpu_ctx *ctx)
{
    return ctx->state.interruptibility & BLOCK_STI ? PRIMARY_INTERRUPT_WINDOW : PRIMARY_NMI_WINDOW;
}

static void write_primary(const struct vcpu_ctx *ctx, struct backend_ctx *hw)
{
    u32 primary = hw->primary;

    if (unlikely(ctx->ctl.interrupt_window))
        primary |= PRIMARY_INTERRUPT_WINDOW;
    if (unlikely(ctx->ctl.nmi_window))
        primary |= nmi_window(ctx);
    vmwrite32_changed(PRIMARY_CONTROLS, &hw->primary_written, primary);
}

// What of an entry is the event's: windows opened and closed, the injection, an immediate exit.
static inline u32 has_events(const struct vcpu *vcpu, const struct vcpu_ctx *ctx)
{
    return ctx->ctl.inject.valid | ctx->ctl.windows | vcpu->immediate_exit |
           (ctx->hw->primary ^ ctx->hw->primary_written);
}

static void prepare_events(struct vcpu *vcpu, u32 *timer)
{
    struct vcpu_ctx *ctx = vcpu->cur;

    write_primary(ctx, ctx->hw);
    if (ctx->ctl.inject.valid)
        inject(vcpu, &ctx->ctl.inject);
    if (likely(!vcpu->immediate_exit))
        return;
    *timer = 0;
    if (!vmx_caps.timer)
        apic_send_ipi(vcpu->cpu->apic_id, HOST_VECTOR_KICK);
}

// Whether prepare_state() has something to do. GROUP_RIP is looked at each time.
static inline u64 has_state(const struct vcpu *vcpu, const struct vcpu_ctx *ctx,
                            const struct cpu *this)
{
    return ((ctx->dirty & ~(u32)GROUP_RIP) | vcpu->shared_dirty | ctx->ctl_dirty | ctx->flush) |
           (ctx->hw->host_cr3 ^ this->cr3);
}

static void prepare_state(struct vcpu *vcpu, const struct cpu *this)
{
    struct vcpu_ctx *ctx = vcpu->cur;

    if (ctx->ctl_dirty)
        vmx_write_controls(ctx);
    if (ctx->dirty & ~(u32)GROUP_RIP)
        vmx_write_state(ctx, ctx->dirty);
    if (vcpu->shared_dirty)
        vmx_write_shared(vcpu);
    if (ctx->flush)
        flush(ctx);
    vmwrite_changed(HOST_CR3, &ctx->hw->host_cr3, this->cr3);
}

// Returns RUN_* for the stub.
static u32 prepare(struct vcpu *vcpu, const struct cpu *this)
{
    const struct vmx_cpu *cpu = this->backend;
    struct vcpu_ctx *ctx = vcpu->cur;
    struct backend_ctx *hw = ctx->hw;
    u32 flags = cpu->run_flags | hw->launched, timer = TIMER_NEVER;

    if (unlikely(has_state(vcpu, ctx, this)))
        prepare_state(vcpu, this);
    write_rip(ctx);
    ctx->dirty = 0;
    if (!(hw->rflags & RFLAGS_IF))
        timer = timer_masked(this);
    if (unlikely(has_events(vcpu, ctx)))
        prepare_events(vcpu, &timer);
    if (vmx_caps.timer)
        vmwrite32_changed(PREEMPTION_TIMER_VALUE, &hw->timer, timer);
    if (unlikely((vcpu->spec_ctrl & ~cpu->host_spec_ctrl) || (flags & RUN_SPEC_CTRL))) {
        hw->guest_spec_ctrl = vcpu->spec_ctrl | cpu->kept_spec_ctrl;
        flags |= RUN_SPEC_CTRL;
    }
    return flags;
}

// --- after ---

// What belongs to the interruption information: error code, DR6 bits or CR2, length.
static void read_event(struct vmx_exit_info *info)
{
    u32 interruption = vmread32(EXIT_INTERRUPTION_INFO);
    u32 vector = interruption & INFO_VECTOR;

    info->interruption = interruption;
    info->interruption_error =
        interruption & INFO_ERROR_CODE ? vmread32(EXIT_INTERRUPTION_ERROR_CODE) : 0;
    if (vector == VECTOR_PF || vector == VECTOR_DB)
        info->qualification = vmread(EXIT_QUALIFICATION);
    if (vmx_event_is_soft(interruption))
        info->insn_len = vmread32(EXIT_INSTRUCTION_LENGTH);
}

static void read_interrupted(struct vm_exit *exit, u32 vectoring)
{
    u32 error = vectoring & INFO_ERROR_CODE ? vmread32(IDT_VECTORING_ERROR_CODE) : 0;
    u32 len = vmx_event_is_soft(vectoring) ? vmread32(EXIT_INSTRUCTION_LENGTH) : 0;

    vmx_event(&exit->interrupted, vectoring, error, len);
}

// An instruction that exits ends an interrupt shadow, so core always wants to know whether there is
// one.
static void read_instruction(struct vcpu_ctx *ctx, struct vm_exit *exit)
{
    u64 rip = ctx->state.rip, next;

    exit->insn_len = (u8)vmread(EXIT_INSTRUCTION_LENGTH);
    next = rip + exit->insn_len;
    if (likely(!((rip ^ next) >> 32))) // else only the code size tells whether it wraps
        exit->next_rip = next;
    ctx->state.interruptibility = vmread32(GUEST_INTERRUPTIBILITY);
    ctx->state.activity = ACTIVITY_ACTIVE;
    ctx->valid |= GROUP_BLOCKING;
}

static void read_details(struct vm_exit *exit, const struct vmx_exit_reason *reason, bool vectoring)
{
    u8 needs = reason->needs;
    struct vmx_exit_info info; // of which `fill` looks at what the needs name

    info.vectoring = vectoring;
    info.has_insn_info = false;
    if (needs & NEED_QUALIFICATION)
        exit->raw_info1 = info.qualification = vmread(EXIT_QUALIFICATION);
    if ((needs & NEED_STRING) && (info.qualification & BIT(4)) &&
        (vmx_caps.basic & VMX_BASIC_INS_OUTS_INFO))
        needs |= NEED_INFO;
    if (needs & NEED_INFO) {
        exit->raw_info2 = info.insn_info = vmread32(EXIT_INSTRUCTION_INFO);
        info.has_insn_info = true;
    }
    if (needs & NEED_STAGE2) {
        info.gpa = vmread(GUEST_PHYSICAL_ADDRESS);
        info.gla = vmread(GUEST_LINEAR_ADDRESS);
    }
    if (needs & NEED_EVENT)
        read_event(&info);
    if (reason->fill)
        reason->fill(exit, &info);
}

static void read_exit(struct vcpu_ctx *ctx, struct vm_exit *exit, u32 number)
{
    const struct vmx_exit_reason *reason = vmx_exit_reason(number);
    u32 vectoring = vmread32(IDT_VECTORING_INFO);

    exit_begin(exit, reason->kind);
    exit->event.valid = false;
    exit->raw_reason = number;
    exit->raw_info1 = exit->raw_info2 = 0;
    if (unlikely(vectoring & INFO_VALID))
        read_interrupted(exit, vectoring);
    if (reason->needs & NEED_LENGTH)
        read_instruction(ctx, exit);
    if (reason->needs & ~NEED_LENGTH)
        read_details(exit, reason, vectoring & INFO_VALID);
}

// VMLAUNCH or VMRESUME failed (a control or host-state field), or the entry did (guest state, MSR
// loading, machine check).
static void entry_failed(struct vm_exit *exit, u32 status)
{
    u32 number = vmread32(EXIT_REASON);

    exit_begin(exit, EXIT_ENTRY_FAILED);
    exit->entry_failed = true;
    exit->raw_reason = status == VMX_RUN_EXIT ? number : 0;
    exit->raw_info1 = vmread(status == VMX_RUN_EXIT ? EXIT_QUALIFICATION : VM_INSTRUCTION_ERROR);
    exit->raw_info2 = 0;
    vmwrite(ENTRY_INTERRUPTION_INFO, 0); // not cleared by a failed entry
}

void vmx_enter(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct backend_ctx *hw = vcpu->cur->hw;
    u32 flags = prepare(vcpu, this_cpu());
    u32 status = vmx_call_run(&vcpu, &hw, flags);
    u32 number = vmread32(EXIT_REASON);
    struct vcpu_ctx *ctx = vcpu->cur;

    if (unlikely(status != VMX_RUN_EXIT || (number & EXIT_REASON_ENTRY_FAILURE))) {
        entry_failed(exit, status);
        return; // the guest's state is what it was
    }
    hw->launched = true;
    ctx->valid = GROUP_RIP;
    vcpu->shared_valid = 0;
    ctx->state.rip = hw->rip = vmread(GUEST_RIP);
    ctx->state.rsp = hw->rsp = vmread(GUEST_RSP);
    ctx->state.rflags = hw->rflags = vmread(GUEST_RFLAGS);
    read_exit(ctx, exit, number);
    if (unlikely(exit->kind == EXIT_NMI))
        vmx_unblock_nmi();
    // On Bochs a guest entered with IF = 0 gets no external-interrupt exit (cpu.c): what waits is
    // taken here. On silicon it would come at the next entry.
    if (unlikely(!(ctx->state.rflags & RFLAGS_IF)))
        __asm__ volatile("sti; nop; cli" : : : "memory");
}
