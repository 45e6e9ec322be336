// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Which event a guest sees next, in one place (SDM vol. 3 "Priority Among Concurrent Events" and
// "Event Injection"; APM vol. 2 "Event Injection", "Interrupt and Exception Priorities"). At each
// boundary, before an entry:
//   SMI, INIT (not over an L2's delivery that an exit interrupted), SIPI; such a delivery, or an
//   exception raised by emulation; MTF; #DB traps; NMI; interrupts.
// Between them the front end is asked for what only its manual has (enum nested_event).
// Events keep their payload (DR6 bits, CR2) until they are delivered.

#include <arch/x86/regs.h>
#include <nestor/device.h>
#include <nestor/log.h>
#include <nestor/nested.h>
#include <nestor/run.h>
#include <nestor/string.h>

// --- exceptions that meet (SDM vol. 3, table "Conditions for Generating a Double Fault") ---

// An L1 may inject software exceptions with any vector.
static bool is_contributory(u8 vector)
{
    const u32 contributory = BIT(VECTOR_DE) | BIT(VECTOR_TS) | BIT(VECTOR_NP) | BIT(VECTOR_SS) |
                             BIT(VECTOR_GP) | BIT(VECTOR_CP);

    return vector < 32 && (contributory >> vector & 1);
}

static bool is_page_fault(u8 vector)
{
    return vector == VECTOR_PF || vector == VECTOR_VE;
}

enum event_merge event_merge_exceptions(u8 first, u8 second)
{
    if (first == VECTOR_DF && (is_contributory(second) || is_page_fault(second)))
        return MERGE_TRIPLE_FAULT;
    if (is_contributory(first) && is_contributory(second))
        return MERGE_DOUBLE_FAULT;
    if (is_page_fault(first) && (is_contributory(second) || is_page_fault(second)))
        return MERGE_DOUBLE_FAULT;
    return MERGE_SECOND;
}

static void triple_fault(struct vcpu *vcpu)
{
    struct vm_exit exit = {.kind = EXIT_TRIPLE_FAULT};

    vcpu->events.exception.valid = false;
    vcpu->events.reinject.valid = false;
    if (vcpu->level && nested_reflect(vcpu, &exit))
        return;
    exit_handle(vcpu, &exit);
}

bool vcpu_shutdown_l2(struct vcpu *vcpu)
{
    if (!vcpu->level)
        return false;
    triple_fault(vcpu);
    return true;
}

static bool is_exception(const struct event *event)
{
    return event->valid && (event->type == EVENT_EXCEPTION || event->type == EVENT_SOFT_EXCEPTION ||
                            event->type == EVENT_INT1);
}

void vcpu_inject_event(struct vcpu *vcpu, const struct event *event)
{
    struct vcpu_events *ev = &vcpu->events;
    const struct event *first = is_exception(&ev->reinject) ? &ev->reinject : &ev->exception;
    enum event_merge merge = MERGE_SECOND;

    if (is_exception(first) && event->type == EVENT_EXCEPTION)
        merge = event_merge_exceptions(first->vector, event->vector);
    if (merge == MERGE_TRIPLE_FAULT) {
        triple_fault(vcpu);
        return;
    }
    // The first event is lost: what raised it comes again when the handler of the second returns.
    ev->reinject.valid = false;
    ev->exception = *event;
    ev->exception.valid = true;
    if (merge == MERGE_DOUBLE_FAULT)
        ev->exception = (struct event){
            .valid = true, .vector = VECTOR_DF, .type = EVENT_EXCEPTION, .has_error = true};
}

void vcpu_inject_exception(struct vcpu *vcpu, u8 vector, bool has_error, u32 error)
{
    vcpu_inject_event(vcpu, &(struct event){.vector = vector,
                                            .type = EVENT_EXCEPTION,
                                            .has_error = has_error,
                                            .error = error});
}

void vcpu_inject_page_fault(struct vcpu *vcpu, u32 error, u64 cr2)
{
    vcpu_inject_event(vcpu, &(struct event){.vector = VECTOR_PF,
                                            .type = EVENT_EXCEPTION,
                                            .has_error = true,
                                            .error = error,
                                            .has_payload = true,
                                            .payload = cr2});
}

// --- delivery ---

u64 event_db_dr6(u64 dr6, u64 payload)
{
    dr6 &= ~0xfull;
    dr6 |= payload & (0xf | DR6_BD | DR6_BS | DR6_BT);
    dr6 |= DR6_BLD | DR6_RTM;
    return dr6 & ~(payload & (DR6_BLD | DR6_RTM)); // inverted in DR6
}

// What the CPU changes when it delivers an exception and injection does not: CR2; DR6, DR7.GD and
// the branch tracing.
static void commit_payload(struct vcpu *vcpu, const struct event *event)
{
    struct guest_state *state;

    if (!event->has_payload)
        return;
    if (event->vector == VECTOR_PF) {
        vcpu_modify(vcpu, GROUP_CR2);
        vcpu->cr2 = event->payload;
        return;
    }
    state = vcpu_modify(vcpu, GROUP_DR6 | GROUP_DEBUG);
    vcpu->dr6 = event_db_dr6(vcpu->dr6, event->payload);
    state->dr7 &= ~DR7_GD;
    state->debugctl &= ~(DEBUGCTL_LBR | DEBUGCTL_BTF);
}

// An interrupt shadow ends with the delivery. Left in force it does no harm to that (SDM vol. 3
// "Interruptibility State"), but VM entry refuses it together with RFLAGS.TF unless a single step
// is pending ("Checks on Guest Non-Register State").
static void end_shadow(struct vcpu *vcpu)
{
    if (vcpu_state(vcpu, GROUP_BLOCKING)->interruptibility & (BLOCK_STI | BLOCK_MOV_SS))
        vcpu_modify(vcpu, GROUP_BLOCKING)->interruptibility &= ~(u32)(BLOCK_STI | BLOCK_MOV_SS);
}

static void inject(struct vcpu *vcpu, const struct event *event)
{
    struct event *out = &vcpu->cur->ctl.inject;

    *out = *event;
    end_shadow(vcpu);
    if (out->type == EVENT_EXCEPTION && !(vcpu_state(vcpu, GROUP_CR)->cr0 & CR0_PE))
        out->has_error = false; // real mode pushes none
    commit_payload(vcpu, event);
}

// Fault-class exceptions push RF = 1 (SDM vol. 3 "Restarting Instructions"), and an exit that one
// makes saves it; an entry takes RFLAGS as it is. Of debug exceptions only general detect is such a
// fault: an instruction breakpoint leaves RF to its handler. A delivery that was interrupted, and
// what L1 injects, has its own RF.
static void set_rf(struct vcpu *vcpu, const struct event *event)
{
    u32 others = BIT(VECTOR_DF) | BIT(VECTOR_MC);

    if (!(event->has_payload && (event->payload & DR6_BD)))
        others |= BIT(VECTOR_DB);
    if (event->type == EVENT_EXCEPTION && !(others & BIT(event->vector)))
        vcpu_modify(vcpu, GROUP_RIP)->rflags |= RFLAGS_RF;
}

static bool deliver_exception(struct vcpu *vcpu)
{
    struct vcpu_events *ev = &vcpu->events;
    struct event event;

    if (ev->reinject.valid) {
        inject(vcpu, &ev->reinject);
        ev->reinject.valid = false;
        return true;
    }
    if (!ev->exception.valid)
        return false;
    event = ev->exception;
    ev->exception.valid = false;
    set_rf(vcpu, &event);
    if (vcpu->level && nested_wants_exception(vcpu, &event))
        return false;
    inject(vcpu, &event);
    return true;
}

// By GIF, in VMX root operation, and until an injection into L2 is done.
static bool init_blocked(const struct vcpu *vcpu)
{
    const struct vcpu_events *ev = &vcpu->events;

    return ev->gif_clear || (vcpu->level ? ev->reinject.valid : ev->init_blocked);
}

// There is no SMM: its handler would have nothing to do. But an L1 may want to hear of it.
static void take_smi(struct vcpu *vcpu)
{
    vcpu->events.smi = false;
    if (vcpu->level)
        nested_event(vcpu, NESTED_SMI);
}

// APM vol. 2, 15.30.1: VM_CR.R_INIT. True: not now, since another event goes first.
static bool redirect_init(struct vcpu *vcpu)
{
    struct vcpu_events *ev = &vcpu->events;

    if (ev->reinject.valid || ev->exception.valid)
        return vcpu->immediate_exit = true;
    vcpu_modify(vcpu, GROUP_BLOCKING)->activity = ACTIVITY_ACTIVE;
    vcpu_inject_exception(vcpu, VECTOR_SX, true, 1);
    return false;
}

static void take_init(struct vcpu *vcpu)
{
    vcpu->events.init = false;
    if (vcpu->level && nested_event(vcpu, NESTED_INIT) != NESTED_DELIVER)
        return;
    if (unlikely(vcpu->events.init_redirected)) {
        vcpu->events.init = redirect_init(vcpu);
        return;
    }
    if (vcpu->id == 0)
        vm_reset(vcpu->vm); // the boot CPU starts in the firmware, which boots the machine anew
    else
        vcpu_reset(vcpu, true);
}

static void take_sipi(struct vcpu *vcpu)
{
    struct guest_state *state;
    u8 vector = __atomic_load_n(&vcpu->events.sipi_vector, __ATOMIC_ACQUIRE);

    vcpu->events.sipi = false;
    if (vcpu_state(vcpu, GROUP_BLOCKING)->activity != ACTIVITY_WAIT_SIPI)
        return; // counts only in wait-for-SIPI
    if (vcpu->level && nested_event(vcpu, NESTED_SIPI) != NESTED_DELIVER)
        return;
    state = vcpu_modify(vcpu, GROUP_RIP | GROUP_CODE | GROUP_BLOCKING);
    state->seg[SEG_CS].selector = (u16)(vector << 8);
    state->seg[SEG_CS].base = (u64)vector << 12;
    state->rip = 0;
    state->activity = ACTIVITY_ACTIVE;
}

// Without one of these, breakpoints that matched are not enabled.
#define PENDING_DBG_ENABLED BIT(12)
#define PENDING_DB          (PENDING_DBG_ENABLED | DR6_BS | DR6_RTM)

// #DB traps that wait: with MOV SS blocking they wait for the next instruction.
static bool deliver_pending_debug(struct vcpu *vcpu)
{
    struct guest_state *state = vcpu_state(vcpu, GROUP_PENDING_DBG | GROUP_BLOCKING);
    struct event event;

    if (likely(!(state->pending_dbg & PENDING_DB)) || (state->interruptibility & BLOCK_MOV_SS))
        return false;
    event = (struct event){.valid = true,
                           .vector = VECTOR_DB,
                           .type = EVENT_EXCEPTION,
                           .has_payload = true,
                           .payload = state->pending_dbg & ~BIT(12)}; // which never reaches DR6
    vcpu_modify(vcpu, GROUP_PENDING_DBG)->pending_dbg = 0;
    if (vcpu->level && nested_wants_exception(vcpu, &event)) // halted, perhaps
        return false;
    vcpu_modify(vcpu, GROUP_BLOCKING)->activity = ACTIVITY_ACTIVE;
    inject(vcpu, &event);
    return true;
}

static bool deliver_nmi(struct vcpu *vcpu)
{
    struct guest_state *state;

    if (!vcpu->events.nmi_count)
        return false;
    if (vcpu->level && nested_event(vcpu, NESTED_NMI) != NESTED_DELIVER)
        return false;
    state = vcpu_modify(vcpu, GROUP_BLOCKING);
    if (state->interruptibility & (BLOCK_NMI | BLOCK_MOV_SS | BLOCK_STI)) {
        vcpu->cur->ctl.nmi_window = true;
        return false;
    }
    vcpu->events.nmi_count--;
    state->activity = ACTIVITY_ACTIVE;
    inject(vcpu, &(struct event){.valid = true, .vector = VECTOR_NMI, .type = EVENT_NMI});
    if (vcpu->events.nmi_count)
        vcpu->cur->ctl.nmi_window = true;
    return true;
}

static bool interrupts_open(struct vcpu *vcpu)
{
    struct guest_state *state = vcpu_state(vcpu, GROUP_RIP | GROUP_BLOCKING);

    return (state->rflags & RFLAGS_IF) && !(state->interruptibility & (BLOCK_STI | BLOCK_MOV_SS));
}

// Whether the CPU can deliver the local APIC's interrupt by itself. What L1 gets of its L2's
// interrupts is decided here; an interrupt shadow (QEMU forgets it at VMRUN) and the single step
// that finds an NMI's window must not meet a delivery. 0 is the PIC's, whose vector is known only
// when it is acknowledged.
static bool can_offer(const struct vcpu *vcpu, int next)
{
    return next && backend->delivers_offers && !vcpu->level && !vcpu->cur->state.interruptibility &&
           !vcpu->cur->ctl.nmi_window;
}

static void offer(struct vcpu *vcpu, int next)
{
    vcpu->cur->ctl.offer = (u8)next;
    irq_offer(vcpu, (u8)next);
    vcpu->events.interrupts_check = false; // until it comes back
}

// A window tells when what can't be offered can be taken. A vCPU that is not active is not entered.
static void wait_for_window(struct vcpu *vcpu, int next)
{
    if (can_offer(vcpu, next) && vcpu->cur->state.activity == ACTIVITY_ACTIVE)
        offer(vcpu, next);
    else
        vcpu->cur->ctl.interrupt_window = true;
}

static void wake(struct vcpu *vcpu)
{
    if (vcpu->cur->state.activity != ACTIVITY_ACTIVE)
        vcpu_modify(vcpu, GROUP_BLOCKING)->activity = ACTIVITY_ACTIVE;
}

static void inject_interrupt(struct vcpu *vcpu, int vector)
{
    wake(vcpu);
    inject(vcpu, &(struct event){.valid = true, .vector = (u8)vector, .type = EVENT_INTERRUPT});
}

// The CPU delivers the LAPIC's interrupts itself; only the PIC's are injected, and go first. A
// leaky CPU is not to know of one that the guest can't take at once.
static void deliver_accelerated(struct vcpu *vcpu)
{
    struct vcpu_events *ev = &vcpu->events;
    bool ready = irq_hand_over(vcpu), open;
    int vector = -E_NOENT;

    ev->interrupts_check = irq_ext_pending(vcpu);
    if (!ready && !ev->interrupts_check)
        return;
    open = interrupts_open(vcpu);
    if (ev->interrupts_check && open && !vcpu->cur->ctl.inject.valid) {
        vector = irq_ext_ack(vcpu);
        ev->interrupts_check = irq_ext_pending(vcpu);
    }
    if (vector >= 0)
        inject_interrupt(vcpu, vector);
    else if (ready && open)
        wake(vcpu);
    vcpu->cur->ctl.interrupt_window |= ev->interrupts_check;
    if (ready && unlikely(vcpu->apic.leaky)) {
        ev->interrupts_check = true; // as long as it waits
        vcpu->cur->ctl.interrupt_window |= !open || vcpu->cur->ctl.inject.valid;
    }
}

// An interrupt that L2's IF does not mask: no window tells when it can be taken.
static bool open_for_masked(struct vcpu *vcpu)
{
    const struct guest_state *state = vcpu_state(vcpu, GROUP_BLOCKING);

    if (!(state->interruptibility & (BLOCK_STI | BLOCK_MOV_SS)))
        return true;
    vcpu->cur->ctl.nmi_window = true; // behind the shadow
    return false;
}

static void deliver_masked(struct vcpu *vcpu)
{
    int vector = open_for_masked(vcpu) ? irq_ack(vcpu) : -E_NOENT;

    if (vector >= 0)
        inject_interrupt(vcpu, vector);
}

// L1's, for its L2. True: one is injected.
static bool deliver_virtual(struct vcpu *vcpu, bool first)
{
    int vector = nested_virtual_interrupt(vcpu, first);

    if (vector < 0)
        return false;
    if (!interrupts_open(vcpu) || vcpu->cur->ctl.inject.valid) {
        vcpu->cur->ctl.interrupt_window = true;
        return false;
    }
    if (nested_event(vcpu, NESTED_VIRTUAL_INTERRUPT) != NESTED_DELIVER)
        return false;
    inject_interrupt(vcpu, vector);
    return true;
}

static void deliver_interrupt(struct vcpu *vcpu)
{
    enum nested_answer answer = NESTED_DELIVER;
    int vector;

    if (vcpu->apic.mode && !vcpu->level) {
        deliver_accelerated(vcpu);
        return;
    }
    vector = irq_next(vcpu);
    if (vector < 0) {
        vcpu->events.interrupts_check = false;
        return;
    }
    // An exit to L1 would lose what has been injected: an NMI, or anything if this has just come.
    if (unlikely(vcpu->level) && vcpu->cur->ctl.inject.valid) {
        vcpu->immediate_exit = true;
        return;
    }
    if (unlikely(vcpu->level))
        answer = nested_event(vcpu, NESTED_INTERRUPT);
    if (answer == NESTED_DELIVER_OPEN)
        deliver_masked(vcpu);
    if (answer != NESTED_DELIVER)
        return;
    if (!interrupts_open(vcpu) || vcpu->cur->ctl.inject.valid) {
        wait_for_window(vcpu, vector);
        return;
    }
    // Not where the guest may end it without an exit, which irq_ack sees to.
    if (backend->injects_dearly && !vcpu->pv.eoi && can_offer(vcpu, vector)) {
        wake(vcpu);
        offer(vcpu, vector);
        return;
    }
    vector = irq_ack(vcpu);
    if (vector < 0)
        return;
    inject_interrupt(vcpu, vector);
    // One more behind it is taken as soon as the handler opens for it.
    vector = irq_next(vcpu);
    vcpu->events.interrupts_check = vector >= 0;
    if (vector >= 0)
        wait_for_window(vcpu, vector);
}

// While an injection into L2 is on its way nothing may exit to L1: what waits does so at the
// boundary behind it.
static bool injection_first(struct vcpu *vcpu)
{
    const struct vcpu_events *ev = &vcpu->events;

    if (!vcpu->level ||
        !(ev->nmi_count || ev->init || (ev->interrupts_check && irq_pending(vcpu)) ||
          nested_event(vcpu, NESTED_BEHIND_INJECTION) == NESTED_BLOCKED))
        return false;
    vcpu->immediate_exit = true;
    return true;
}

// VMX: virtual interrupts go before L1's own (SDM vol. 3 "Virtual-Interrupt Delivery"), which may
// have posted one more; SVM: physical ones go first (APM vol. 2, 15.21.4).
static void deliver_interrupts_l2(struct vcpu *vcpu)
{
    if (deliver_virtual(vcpu, true) && injection_first(vcpu))
        return;
    if (vcpu->events.interrupts_check)
        deliver_interrupt(vcpu);
    if (vcpu->level)
        deliver_virtual(vcpu, false);
}

// One pass; it ends where an exit to L1 is made on the way.
static void prepare_boundary(struct vcpu *vcpu)
{
    struct vcpu_events *ev = &vcpu->events;
    u8 level = vcpu->level;
    bool injected;

    vcpu->cur->ctl.inject.valid = false;
    vcpu->cur->ctl.windows = controls_windows(&vcpu->cur->ctl);
    if (unlikely(ev->smi) && !init_blocked(vcpu))
        take_smi(vcpu);
    if (unlikely(ev->init) && !init_blocked(vcpu))
        take_init(vcpu);
    if (unlikely(ev->sipi))
        take_sipi(vcpu);
    if (unlikely(vcpu->cur->state.activity == ACTIVITY_WAIT_SIPI) || vcpu->level != level)
        return;
    injected = deliver_exception(vcpu);
    if (!injected && unlikely(ev->mtf_pending) && vcpu->level &&
        nested_event(vcpu, NESTED_MTF) != NESTED_DELIVER)
        return;
    if (!injected && vcpu->level == level &&
        (ev->debug_check || ev->nmi_count || ev->interrupts_check)) {
        injected = deliver_pending_debug(vcpu);
        ev->debug_check = vcpu->cur->state.pending_dbg; // blocked by MOV SS: look again
    }
    if (unlikely(ev->gif_clear) && ev->interrupts_check)
        ev->interrupts_check = irq_pending(vcpu); // what waits for STGI, which then exits
    if (unlikely(ev->gif_clear) || vcpu->level != level || (injected && injection_first(vcpu)))
        return;
    if (level && !injected && nested_event(vcpu, NESTED_BEFORE_NMI) == NESTED_EXITED)
        return;
    if (!injected)
        injected = deliver_nmi(vcpu);
    else if (ev->nmi_count)
        vcpu->cur->ctl.nmi_window = true;
    if (!injected && vcpu->level && nested_event(vcpu, NESTED_BEFORE_INTERRUPT) == NESTED_EXITED)
        return;
    if (unlikely(ev->nested_check) && vcpu->level == level)
        deliver_interrupts_l2(vcpu);
    else if (ev->interrupts_check && vcpu->level == level)
        deliver_interrupt(vcpu);
}

void events_choose(struct vcpu *vcpu)
{
    u8 level;

    // An exit to L1 on the way makes it L1's boundary.
    do {
        level = vcpu->level;
        prepare_boundary(vcpu);
    } while (unlikely(vcpu->level != level));
}

void events_take_interrupted(struct vcpu *vcpu, const struct event *event)
{
    vcpu->events.reinject = *event;
    vcpu->events.reinject.has_payload = false; // CR2 and DR6 were written when the delivery began
}

void events_reset(struct vcpu *vcpu)
{
    bool sipi = vcpu->events.sipi;

    memset(&vcpu->events, 0, offsetof(struct vcpu_events, sipi_vector));
    vcpu->events.sipi = sipi; // posted behind the INIT that resets the CPU
    vcpu->events.interrupts_check = true;
}

// --- the end of an instruction ---

static void trap_step(struct vcpu *vcpu)
{
    if (likely(!(vcpu->cur->state.rflags & RFLAGS_TF)) ||
        (vcpu_state(vcpu, GROUP_DEBUG)->debugctl & DEBUGCTL_BTF))
        return;
    vcpu_modify(vcpu, GROUP_PENDING_DBG)->pending_dbg |= DR6_BS;
    vcpu->events.debug_check = true;
}

// BTF: a single step is one branch (SDM vol. 3 "Single-Stepping on Branches").
void vcpu_trap_branch(struct vcpu *vcpu)
{
    if (!(vcpu_state(vcpu, GROUP_DEBUG)->debugctl & DEBUGCTL_BTF))
        return;
    vcpu_modify(vcpu, GROUP_PENDING_DBG)->pending_dbg |= DR6_BS;
    vcpu->events.debug_check = true;
}

void vcpu_trap_breakpoints(struct vcpu *vcpu, u64 hits)
{
    if (unlikely(vcpu->events.gif_clear)) // discarded (APM vol. 2, 15.17)
        return;
    vcpu_modify(vcpu, GROUP_PENDING_DBG)->pending_dbg |= hits | PENDING_DBG_ENABLED;
    vcpu->events.debug_check = true;
}

static inline void move_on(struct vcpu_ctx *ctx, u64 next_rip)
{
    ctx->dirty |= GROUP_RIP; // which is always valid between an exit and the next entry
    ctx->state.rip = next_rip;
    ctx->state.rflags &= ~RFLAGS_RF;
}

// Whether an instruction's end is nothing but the next one's address.
static inline bool end_is_plain(const struct vcpu_ctx *ctx)
{
    return likely((ctx->valid & GROUP_BLOCKING) &&
                  !(ctx->state.interruptibility & (BLOCK_STI | BLOCK_MOV_SS)) &&
                  !(ctx->state.rflags & RFLAGS_TF) && !(ctx->ctl.intercepts & INTERCEPT_MTF));
}

void vcpu_finish_repetition(struct vcpu *vcpu)
{
    end_shadow(vcpu);
    trap_step(vcpu);
    if (vcpu->cur->ctl.intercepts & INTERCEPT_MTF)
        vcpu->events.mtf_pending = true;
}

static __attribute__((noinline)) void finish_fully(struct vcpu *vcpu, u64 next_rip)
{
    move_on(vcpu->cur, next_rip);
    vcpu_finish_repetition(vcpu);
}

void vcpu_finish_insn(struct vcpu *vcpu, u64 next_rip)
{
    if (end_is_plain(vcpu->cur))
        move_on(vcpu->cur, next_rip);
    else
        finish_fully(vcpu, next_rip);
}

// A carry out of the low half: it is lost in all but 64-bit code.
static __attribute__((noinline)) void finish_wrapped(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (vcpu_code_size(vcpu) != 8)
        exit->next_rip = (u32)exit->next_rip;
    vcpu_finish_insn(vcpu, exit->next_rip);
}

void vcpu_finish_exit(struct vcpu *vcpu, struct vm_exit *exit)
{
    u64 rip = vcpu->cur->state.rip;

    if (!exit->next_rip) { // exit_handle has found the length
        exit->next_rip = rip + exit->insn_len;
        if (unlikely((exit->next_rip ^ rip) >> 32)) {
            finish_wrapped(vcpu, exit);
            return;
        }
    }
    vcpu_finish_insn(vcpu, exit->next_rip);
}
