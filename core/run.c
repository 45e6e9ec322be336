// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The run loop: requests, events, enter, exit, again; and waiting while the vCPU is halted.

#include <nestor/cpu.h>
#include <nestor/device.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/nested.h>
#include <nestor/run.h>
#include <nestor/tlb.h>
#include <nestor/time.h>
#include <nestor/vm_life.h>

void vcpu_post(struct vcpu *vcpu, u32 requests)
{
    __atomic_fetch_or(&vcpu->requests, requests, __ATOMIC_SEQ_CST);
    if (vcpu->cpu != this_cpu())
        cpu_kick(vcpu->cpu);
}

static void flush_all(struct vcpu *vcpu)
{
    for (unsigned i = 0; i < ARRAY_SIZE(vcpu->ctx); i++)
        vcpu->ctx[i].flush |= TLB_FLUSH_GUEST | TLB_FLUSH_STAGE2;
    nested_stage2_drop(vcpu);
}

// While an NMI is in service the CPU latches one more; before, one is as good as in service.
static void latch_nmis(struct vcpu *vcpu)
{
    bool in_service = vcpu_state(vcpu, GROUP_BLOCKING)->interruptibility & BLOCK_NMI;
    u32 count = __atomic_exchange_n(&vcpu->nmis, 0, __ATOMIC_ACQ_REL) + vcpu->events.nmi_count;

    vcpu->events.nmi_count = (u8)MIN(count, in_service ? 1u : 2u);
}

// Takes what others posted. Returns false if the vCPU is to leave the loop.
static bool take_requests(struct vcpu *vcpu)
{
    u32 requests = __atomic_exchange_n(&vcpu->requests, 0, __ATOMIC_ACQ_REL);

    if (requests & REQUEST_STOP)
        return false;
    if (requests & REQUEST_TLB_FLUSH)
        flush_all(vcpu);
    if (requests & REQUEST_NMI)
        latch_nmis(vcpu);
    if (requests & REQUEST_INIT)
        vcpu->events.init = true;
    if (requests & REQUEST_SMI)
        vcpu->events.smi = true;
    if (requests & REQUEST_SIPI)
        vcpu->events.sipi = true;
    vcpu->events.interrupts_check = true;
    return true;
}

// timer_next() of the CPU that this is.
static inline u64 next_deadline(const struct cpu *cpu)
{
    return __atomic_load_n(&cpu->timer_first, __ATOMIC_RELAXED);
}

// The hardware timer follows the head of this CPU's queue; a deadline that has passed is run at
// once rather than by an exit.
static void follow_deadline(struct vcpu *vcpu)
{
    struct cpu *cpu = vcpu->cpu;

    if (likely(next_deadline(cpu) == cpu->timer_armed))
        return;
    timer_arm_hardware(timer_poll());
}

static void wait_while_halted(struct vcpu *vcpu)
{
    timer_arm_hardware(timer_poll());
    if (__atomic_load_n(&vcpu->requests, __ATOMIC_ACQUIRE))
        return;
    cpu_idle(&vcpu->requests);
    cpu_call_poll();
}

static void account(struct vcpu *vcpu, const struct vm_exit *exit)
{
    unsigned slot = (unsigned)vcpu->exits++ % ARRAY_SIZE(vcpu->history);

    vcpu->exit_counts[exit->kind]++;
    vcpu->history[slot].kind = exit->kind;
    vcpu->history[slot].level = vcpu->level;
    vcpu->history[slot].raw = (u32)exit->raw_reason;
    vcpu->history[slot].rip = vcpu->cur->state.rip;
}

// Exits that concern Nestor's machine, whoever was running.
static bool handle_host_exit(const struct vm_exit *exit)
{
    switch (exit->kind) {
    case EXIT_EXTERNAL_INTERRUPT:
        if (exit->vector_valid)
            irq_handle(exit->vector);
        cpu_call_poll();
        return true;
    case EXIT_TIMER: // the deadline's interrupt may still be pending: follow_deadline would wait for it
        timer_arm_hardware(timer_poll());
        cpu_call_poll();
        return true;
    case EXIT_NMI: // a panic's, perhaps (VMX: no handler has run)
        cpu_call_poll();
        return true;
    case EXIT_NONE:
        return true;
    case EXIT_MACHINE_CHECK:
        panic("machine check while a guest ran (%#llx %#llx)", (unsigned long long)exit->raw_reason,
              (unsigned long long)exit->raw_info1);
    default:
        return false;
    }
}

static void enter_once(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct cpu *cpu = vcpu->cpu;

    // The exchange orders the flag before the checks: who posts a request, or arms a deadline of
    // this CPU, either sees in_guest and kicks, or is seen here.
    __atomic_store_n(&cpu->in_guest, 1, __ATOMIC_SEQ_CST);
    if (unlikely(__atomic_load_n(&vcpu->requests, __ATOMIC_RELAXED) ||
                 next_deadline(cpu) < cpu->timer_armed))
        vcpu->immediate_exit = true;
    backend->enter(vcpu, exit);
    __atomic_store_n(&cpu->in_guest, 0, __ATOMIC_RELEASE);
    vcpu->immediate_exit = false;
    account(vcpu, exit);
    // The IRET of an NMI handler that exits has unblocked NMIs although it will run again (SDM vol.
    // 3 "NMI unblocking due to IRET").
    if (unlikely(exit->nmi_unblocked_by_iret) && !exit->interrupted.valid)
        vcpu_modify(vcpu, GROUP_BLOCKING)->interruptibility |= BLOCK_NMI;
    if (unlikely(vcpu->cur->ctl.offer)) {
        irq_offered(vcpu, vcpu->cur->ctl.offer, exit->offer_taken);
        vcpu->cur->ctl.offer = 0;
    }
    if (unlikely(exit->interrupted.valid)) {
        insn_name_interrupted(vcpu, &exit->interrupted);
        events_take_interrupted(vcpu, &exit->interrupted);
    }
}

void vcpu_run(struct vcpu *vcpu)
{
    struct vm_exit exit;

    for (;;) {
        follow_deadline(vcpu); // first, since what is due posts requests
        if (unlikely(__atomic_load_n(&vcpu->requests, __ATOMIC_RELAXED)) && !take_requests(vcpu))
            break;
        events_prepare(vcpu);
        if (unlikely(vcpu->cur->state.activity != ACTIVITY_ACTIVE)) {
            wait_while_halted(vcpu);
            vcpu->events.interrupts_check = true;
            continue;
        }
        enter_once(vcpu, &exit);
        if (unlikely(handle_host_exit(&exit)))
            continue;
        if (unlikely(vcpu->level) && nested_reflect(vcpu, &exit))
            continue;
        exit_handle(vcpu, &exit);
    }
    vcpu_log_exits(vcpu);
}
