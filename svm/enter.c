// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// One entry: what is dirty goes to the VMCB, VMRUN, the exit comes back as a value (APM vol. 2,
// 15.5, 15.6; 15.15 clean bits; 15.16 ASIDs; 15.20 event injection; 15.21 virtual interrupts and
// interrupt shadows).
//
// Interrupt window: V_IRQ with an intercepted VINTR. An offered interrupt is a V_IRQ with its
// vector that is not intercepted: it costs no exit (V_IRQ is 0 behind an exit when the guest has
// taken it).
//
// NMI blocking (SVM of the test machines has no virtual NMI): the model's BLOCK_NMI is set when an
// NMI is injected. While it is set, IRET is intercepted. The exit comes before IRET has executed,
// so the next entry that injects nothing lets exactly this IRET run: intercept off, RFLAGS.TF set,
// all exceptions intercepted. IRET takes the guest's own RFLAGS from its stack, so nobody sees our
// TF. The single-step #DB after it ends the blocking, and is EXIT_NMI_WINDOW if core waits for
// that. Any other exit means that IRET has not completed (it faulted, or an interrupt came first):
// TF is taken back, NMIs stay blocked, and a fault goes to core as an interrupted delivery. An NMI
// held up only by an interrupt shadow is waited for by the same step over one instruction; a PUSHF,
// POPF or INT there would see or lose TF.
//
// Software interrupts: with nRIP save the CPU pushes the VMCB's nRIP. Without it, it pushes RIP,
// which is therefore advanced for the injection and put back if an exit interrupts the delivery; a
// fault in the delivery that does not exit sees the advanced RIP.
//
// The hot path is one test of everything that is rare on the way in (is_rare), a copy of RAX, RIP,
// RSP and RFLAGS each way, and one test on the way out.

#include <arch/x86/regs.h>
#include <nestor/cpu.h>
#include <nestor/host.h>
#include <nestor/tlb.h>

#include "exit.h"
#include "mode.h"
#include "quirks.h"

// --- ASIDs ---

// Gives the context an ASID whose translations are all gone: flushed, or never used since the CPU's
// last flush of all. Tags of an older generation, or of another CPU, are noticed by svm_load; while
// the vCPU is here only it takes new ones.
static void flush_asid(struct vcpu *vcpu, struct svm_cpu *cpu)
{
    struct vcpu_ctx *ctx = vcpu->cur;
    struct vmcb *vmcb = ctx->hw->vmcb;
    u16 *tag = &vcpu->tag[vcpu->level];

    ctx->flush = TLB_FLUSH_NONE;
    if (*tag && svm_has(SVM_FEATURE_FLUSH_BY_ASID)) {
        vmcb->tlb_control = SVM_TLB_FLUSH_ASID;
        return;
    }
    if (cpu->next_asid == cpu->asid_count) { // a new generation
        if (++cpu->asid_generation == 0)
            cpu->asid_generation = 1;
        cpu->next_asid = 1;
        vmcb->tlb_control = SVM_TLB_FLUSH_ALL;
        svm_drop_tags(vcpu);
        ctx->flush = TLB_FLUSH_NONE;
    }
    vcpu->asid_generation = cpu->asid_generation;
    *tag = (u16)cpu->next_asid++;
    vmcb->guest_asid = *tag;
    vmcb->clean &= ~(u32)SVM_CLEAN_ASID;
}

// --- events ---

u64 svm_encode_event(const struct event *event)
{
    u64 type = event->type;

    // INT1, INT3 and INTO are exceptions; the other encodings are VMX's.
    if (type == EVENT_INT1 || type == EVENT_SOFT_EXCEPTION)
        type = SVM_EVENT_EXCEPTION;
    return event->vector | type << SVM_EVENT_TYPE_SHIFT | SVM_EVENT_V |
           (event->has_error ? SVM_EVENT_EV | (u64)event->error << 32 : 0);
}

static bool is_software(const struct event *event)
{
    return event->type == EVENT_SOFT_INTERRUPT || event->type == EVENT_SOFT_EXCEPTION ||
           event->type == EVENT_INT1;
}

static void inject(struct vcpu *vcpu, const struct event *event)
{
    struct backend_ctx *hw = vcpu->cur->hw;
    struct vmcb *vmcb = hw->vmcb;
    u8 length = event->insn_len;

    vmcb->eventinj = svm_encode_event(event);
    if (event->type == EVENT_NMI && !event->nmis_open)
        vcpu->cur->state.interruptibility |= BLOCK_NMI;
    if (!is_software(event))
        return;
    if (event->rip_is_next)
        length = 0;
    else if (!length)
        length = event->type == EVENT_SOFT_INTERRUPT ? 2 : 1;
    vmcb->nrip = vmcb->rip + length;
    if (svm_has(SVM_FEATURE_NRIPS) && event->type != EVENT_INT1) // which is any #DB to the CPU
        return;
    hw->soft_rip = vmcb->rip;
    hw->soft_len = length;
    vmcb->rip += length;
}

static void set_virtual_interrupt(struct backend_ctx *hw, bool window, u8 offer, bool gif)
{
    u8 v_irq = (window || offer ? SVM_V_IRQ : 0) | (gif ? SVM_V_GIF : 0);

    if (hw->vmcb->v_irq == v_irq && hw->vmcb->v_intr_vector == offer)
        return;
    hw->vmcb->v_irq = v_irq;
    hw->vmcb->v_intr_vector = offer;
    hw->vmcb->clean &= ~(u32)SVM_CLEAN_TPR;
}

static void begin_step(struct vcpu_ctx *ctx, enum svm_step step)
{
    struct backend_ctx *hw = ctx->hw;

    hw->step = (u8)step;
    hw->step_rflags = hw->vmcb->rflags;
    hw->step_dr6 = hw->vmcb->dr6;
    hw->vmcb->rflags |= RFLAGS_TF | RFLAGS_RF; // a breakpoint on this instruction was taken before
}

static enum svm_step wanted_step(const struct vcpu_ctx *ctx)
{
    const struct backend_ctx *hw = ctx->hw;
    bool blocked = ctx->state.interruptibility & BLOCK_NMI;

    if (ctx->ctl.inject.valid)
        return SVM_STEP_NONE;
    if (blocked && hw->at_iret && hw->iret_rip == ctx->state.rip)
        return SVM_STEP_IRET;
    return (ctx->ctl.nmi_window && !blocked) || svm_window_needs_step(ctx) ? SVM_STEP_SHADOW
                                                                           : SVM_STEP_NONE;
}

static void prepare_intercepts(struct vcpu_ctx *ctx)
{
    struct backend_ctx *hw = ctx->hw;
    enum svm_step step = wanted_step(ctx);
    u32 word3 = hw->word3, exceptions = hw->exceptions;

    hw->at_iret = false;
    if (ctx->ctl.offer)
        word3 &= ~(u32)SVM_INTERCEPT_VINTR;
    if (step != SVM_STEP_NONE) {
        begin_step(ctx, step);
        exceptions |= ~(u32)BIT(VECTOR_NMI);
    }
    if (step != SVM_STEP_IRET && (ctx->state.interruptibility & BLOCK_NMI))
        word3 |= SVM_INTERCEPT_IRET;
    if (hw->vmcb->intercept[SVM_WORD_3] != word3 ||
        hw->vmcb->intercept[SVM_WORD_EXCEPTIONS] != exceptions) {
        hw->vmcb->intercept[SVM_WORD_3] = word3;
        hw->vmcb->intercept[SVM_WORD_EXCEPTIONS] = exceptions;
        hw->vmcb->clean &= ~(u32)SVM_CLEAN_I;
    }
    // Look again at the next entry; but with V_IRQ = 0 VINTR makes no difference.
    if (step != SVM_STEP_NONE || ((word3 ^ hw->word3) & ~(u32)SVM_INTERCEPT_VINTR))
        hw->prepare |= SVM_PREPARE_EVENTS;
}

// An L1's STGI and CLGI act on a GIF of its own, where the CPU has one (15.33). STGI exits only
// while something waits for it. Without EFER.SVME both are #UD, which takes an exit.
static void prepare_gif(const struct vcpu *vcpu, struct backend_ctx *hw)
{
    const struct vcpu_events *ev = &vcpu->events;
    bool waits = ev->nmi_count || ev->init || ev->smi || ev->interrupts_check;
    u32 intercepts = SVM_INTERCEPT_STGI | SVM_INTERCEPT_CLGI, *word = &hw->vmcb->intercept[4];

    hw->vgif = svm_has(SVM_FEATURE_VGIF) && !vcpu->level && !(hw->efer_added & EFER_SVME);
    if (hw->vgif)
        intercepts = ev->gif_clear && waits ? SVM_INTERCEPT_STGI : 0;
    hw->vmcb->v_ctl = SVM_V_INTR_MASKING | (hw->vgif ? SVM_V_GIF_ENABLE : 0);
    if ((*word & (SVM_INTERCEPT_STGI | SVM_INTERCEPT_CLGI)) == intercepts)
        return;
    *word = (*word & ~(u32)(SVM_INTERCEPT_STGI | SVM_INTERCEPT_CLGI)) | intercepts;
    hw->vmcb->clean &= ~(u32)(SVM_CLEAN_I | SVM_CLEAN_TPR);
}

static void prepare_events(struct vcpu *vcpu)
{
    struct vcpu_ctx *ctx = vcpu->cur;
    struct backend_ctx *hw = ctx->hw;

    hw->vmcb->interrupt_shadow = ctx->state.interruptibility & (BLOCK_STI | BLOCK_MOV_SS) ? 1 : 0;
    hw->prepare = ctx->ctl.interrupt_window ? SVM_PREPARE_EVENTS : 0; // to close it
    if (ctx->ctl.inject.valid)
        inject(vcpu, &ctx->ctl.inject);
    if (vcpu->nested)
        prepare_gif(vcpu, hw);
    set_virtual_interrupt(hw, ctx->ctl.interrupt_window && !svm_window_needs_step(ctx),
                          ctx->ctl.offer, hw->vgif && !vcpu->events.gif_clear);
    prepare_intercepts(ctx);
    hw->shadow = (u8)svm_lost_shadow(ctx);
    hw->shadow_rip = hw->vmcb->rip;
    hw->blocking = (u8)(ctx->state.interruptibility & (BLOCK_NMI | BLOCK_SMI));
    // The immediate exit: an interrupt to itself, taken as soon as the injection is done. An NMI
    // that waits for no more than this injection comes then.
    if (vcpu->immediate_exit || svm_may_come_twice(&ctx->ctl.inject) ||
        (ctx->ctl.nmi_window && ctx->ctl.inject.valid &&
         !(ctx->state.interruptibility & BLOCK_NMI)))
        apic_send_ipi(vcpu->cpu->apic_id, HOST_VECTOR_KICK);
}

// What of the events core asks for.
static inline u32 wants_events(const struct vcpu *vcpu, const struct vcpu_ctx *ctx)
{
    return ctx->state.interruptibility | ctx->ctl.inject.valid | ctx->ctl.windows |
           vcpu->immediate_exit;
}

// Everything that an entry does not need every time.
static __attribute__((noinline)) void prepare(struct vcpu *vcpu, struct svm_cpu *cpu)
{
    struct vcpu_ctx *ctx = vcpu->cur;
    struct backend_ctx *hw = ctx->hw;

    if ((ctx->dirty & ~(u32)(GROUP_RIP | GROUP_BLOCKING)) | vcpu->shared_dirty)
        svm_write_state(vcpu);
    if (ctx->ctl_dirty & CTL_GIF)
        hw->prepare |= SVM_PREPARE_GIF;
    if (ctx->ctl_dirty & ~(u32)CTL_GIF)
        svm_write_controls(vcpu);
    ctx->ctl_dirty = 0;
    if (ctx->flush)
        flush_asid(vcpu, cpu);
    hw->adjust = true;
    hw->blocking = hw->shadow = 0;
    if (wants_events(vcpu, ctx) | (hw->prepare & SVM_PREPARE_EVENTS)) {
        prepare_events(vcpu);
    } else if (hw->prepare) {
        hw->prepare = 0;
        if (!vcpu->nested)
            return;
        prepare_gif(vcpu, hw);
        set_virtual_interrupt(hw, false, 0, hw->vgif && !vcpu->events.gif_clear);
    }
}

// --- after the exit ---

// The single-step #DB of an SVM_STEP_*: true, and what of it is the guest's own is left in
// exit->interrupted.
static bool step_done(struct vcpu_ctx *ctx, struct vm_exit *exit)
{
    struct backend_ctx *hw = ctx->hw;
    bool own_tf = hw->step_rflags & RFLAGS_TF;
    u64 payload = exit->event.payload;

    if (exit->kind != EXIT_EXCEPTION || exit->event.vector != VECTOR_DB || !(payload & DR6_BS))
        return false;
    if (!own_tf) {
        payload &= ~(u64)DR6_BS;
        hw->vmcb->dr6 = (hw->vmcb->dr6 & ~DR6_BS) | (hw->step_dr6 & DR6_BS);
        hw->vmcb->clean &= ~(u32)SVM_CLEAN_DRX;
        if (hw->step == SVM_STEP_SHADOW)
            ctx->state.rflags &= ~RFLAGS_TF;
    }
    if (payload & ~(hw->step_dr6 & (0xf | DR6_BD | DR6_BT))) {
        exit->interrupted = exit->event;
        exit->interrupted.payload = payload;
    }
    return true;
}

static void finish_step(struct vcpu_ctx *ctx, struct vm_exit *exit)
{
    struct backend_ctx *hw = ctx->hw;
    bool iret = hw->step == SVM_STEP_IRET;

    if (step_done(ctx, exit)) {
        if (iret)
            ctx->state.interruptibility &= ~(u32)BLOCK_NMI;
        exit->kind = ctx->ctl.nmi_window ? EXIT_NMI_WINDOW : EXIT_NONE;
    } else {
        ctx->state.rflags &= ~(RFLAGS_TF | RFLAGS_RF);
        ctx->state.rflags |= hw->step_rflags & (RFLAGS_TF | RFLAGS_RF);
        // Core did not ask for this exception: it is the guest's. Its CR2 is written when a
        // delivery begins, so here.
        if (exit->kind == EXIT_EXCEPTION && !(hw->exceptions & BIT(exit->event.vector))) {
            if (exit->event.vector == VECTOR_PF) {
                hw->vmcb->cr2 = exit->event.payload;
                hw->vmcb->clean &= ~(u32)SVM_CLEAN_CR2;
            }
            exit->interrupted = exit->event;
            exit->kind = EXIT_NONE;
        }
    }
    hw->step = SVM_STEP_NONE;
}

// An exit in the middle of the delivery that was injected: what injection changed of the model goes
// back.
static void take_back_injection(struct vcpu_ctx *ctx, struct vm_exit *exit)
{
    struct backend_ctx *hw = ctx->hw;
    struct event *event = &exit->interrupted;

    event->nmis_open =
        event->type == EVENT_NMI && ctx->ctl.inject.valid && ctx->ctl.inject.nmis_open;
    if (event->type == EVENT_NMI && !event->nmis_open)
        ctx->state.interruptibility &= ~(u32)BLOCK_NMI; // core injects it anew
    event->rip_is_next = ctx->ctl.inject.valid && ctx->ctl.inject.rip_is_next &&
                         is_software(event) && event->vector == ctx->ctl.inject.vector;
    if (!hw->soft_len || event->vector != ctx->ctl.inject.vector)
        return;
    // EXITINTINFO cannot tell what was injected from what the guest did in its place, so RIP must
    // still be ours.
    if (ctx->state.rip == hw->soft_rip + hw->soft_len) {
        ctx->state.rip = hw->soft_rip;
        event->type = ctx->ctl.inject.type;
        event->insn_len = hw->soft_len;
    }
}

// Core offers it anew if it is still to be had.
static void withdraw_offer(struct vmcb *vmcb)
{
    if (!(vmcb->v_irq & SVM_V_IRQ)) // taken
        return;
    vmcb->v_irq &= (u8)~SVM_V_IRQ;
    vmcb->clean &= ~(u32)SVM_CLEAN_TPR;
}

// What few exits need, in the order in which it touches the exit.
static __attribute__((noinline)) void adjust_exit(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct vcpu_ctx *ctx = vcpu->cur;
    struct backend_ctx *hw = ctx->hw;

    if (hw->adjust) {
        hw->adjust = false;
        hw->vmcb->clean = svm_clean_after;
        hw->vmcb->eventinj = 0;
        hw->vmcb->tlb_control = SVM_TLB_NOTHING;
        ctx->state.interruptibility |= hw->blocking;
        if (unlikely(hw->shadow) && ctx->state.rip == hw->shadow_rip) // it has not executed
            ctx->state.interruptibility |= hw->shadow;
        svm_name_interrupted(ctx, &exit->interrupted);
    }
    if (hw->vgif) {
        vcpu->events.gif_clear = !(hw->vmcb->v_irq & SVM_V_GIF);
        if (vcpu->events.gif_clear)
            hw->prepare |= SVM_PREPARE_GIF; // to see what begins to wait
    }
    exit->offer_taken = svm_offer_taken(ctx, exit);
    if (ctx->ctl.offer)
        withdraw_offer(hw->vmcb);
    if (exit->interrupted.valid)
        take_back_injection(ctx, exit);
    hw->soft_len = 0;
    if (hw->step != SVM_STEP_NONE)
        finish_step(ctx, exit);
    // The IRET of a nested task is left to core, since the step's TF would go to its TSS.
    if (exit->kind == EXIT_IRET && !(ctx->ctl.intercepts & INTERCEPT_IRET) &&
        !(ctx->state.rflags & RFLAGS_NT)) {
        hw->at_iret = true;
        hw->iret_rip = ctx->state.rip;
        hw->prepare |= SVM_PREPARE_EVENTS;
        exit->kind = EXIT_NONE;
    }
    if (exit->kind == EXIT_EXTERNAL_INTERRUPT) // still pending: the IDT takes it here
        __asm__ volatile("sti; nop; cli" : : : "memory");
}

// Whether prepare() has something to do: dirty state, controls, events, windows, blocking, a flush.
// GROUP_RIP is always written.
static inline u32 is_rare(const struct vcpu *vcpu, const struct vcpu_ctx *ctx)
{
    u32 groups = (ctx->dirty & ~(u32)(GROUP_RIP | GROUP_BLOCKING)) | vcpu->shared_dirty |
                 ctx->ctl_dirty | ctx->flush;

    return groups | ctx->hw->prepare | wants_events(vcpu, ctx);
}

// All GPRs but RSP are lost to the guest. The stub gives vcpu back and the rest follows from that:
// the compiler need save nothing.
static inline struct vcpu *run(struct vcpu *vcpu, hpa_t vmcb_pa, struct svm_cpu *cpu)
{
    __asm__ volatile("push %%rbp; call svm_vmrun; pop %%rbp"
                     : "+D"(vcpu), "+a"(vmcb_pa), "+d"(cpu)
                     :
                     : "rbx", "rcx", "rsi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                       "cc", "memory");
    return vcpu;
}

static inline struct vcpu *enter(struct vcpu *vcpu)
{
    struct svm_cpu *cpu = vcpu->cpu->backend;
    const struct vcpu_ctx *ctx = vcpu->cur;
    struct vmcb *vmcb = ctx->hw->vmcb;

    vmcb->rax = vcpu->gpr[GPR_RAX];
    vmcb->rip = ctx->state.rip;
    vmcb->rsp = ctx->state.rsp;
    vmcb->rflags = ctx->state.rflags;
    vmcb->interrupt_shadow = 0;
    if (unlikely(is_rare(vcpu, ctx)))
        prepare(vcpu, cpu);
    return run(vcpu, ctx->hw->vmcb_pa, cpu);
}

static inline void take_state(struct vcpu *vcpu, const struct vmcb *vmcb)
{
    struct vcpu_ctx *ctx = vcpu->cur;
    struct guest_state *state = &ctx->state;

    vcpu->gpr[GPR_RAX] = vmcb->rax;
    state->rip = vmcb->rip;
    state->rsp = vmcb->rsp;
    state->rflags = vmcb->rflags;
    // adjust_exit adds what prepare() found
    state->interruptibility = vmcb->interrupt_shadow & BLOCK_STI;
    ctx->valid = ctx->hw->stays;
    ctx->dirty = 0;
    vcpu->shared_valid = 0;
}

void svm_enter(struct vcpu *caller, struct vm_exit *exit)
{
    struct vcpu *vcpu = enter(caller);
    struct vcpu_ctx *ctx = vcpu->cur;
    struct backend_ctx *hw = ctx->hw;
    u32 todo;

    take_state(vcpu, hw->vmcb);
    todo = svm_fill_exit(hw->vmcb, exit);
    if (todo & INSN)
        svm_see_mode(ctx);
    if (unlikely((todo & ADJUST) | hw->after))
        adjust_exit(vcpu, exit);
}
