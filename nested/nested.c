// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What both front ends share: choosing one, changing the level of a vCPU, and the answers where
// nesting is off.

#include "nested.h"
#include "nested_stage2.h"
#include <nestor/device.h>
#include <nestor/log.h>
#include <nestor/page.h>
#include <nestor/string.h>

static const struct nested_ops *ops; // chosen with the first guest that nests

static void choose(void)
{
    ops = backend == &svm_backend ? &vmcb12_ops : &vmcs12_ops;
}

bool nested_offered(const struct vm *vm)
{
    return vm->config->nested;
}

// With CET, but no controls to switch its state, L1's would be its guests' as well.
u32 nested_lacks(const struct vm *vm)
{
    return nested_offered(vm) && !(vm->config->nested_features & BIT(OFFER_CET)) ? ISA_CET : 0;
}

int nested_create(struct vcpu *vcpu)
{
    if (!nested_offered(vcpu->vm))
        return 0;
    choose();
    vcpu->nested = heap_alloc(ops->state_size);
    if (!vcpu->nested)
        return -E_NOMEM;
    vcpu->nested_bitmap = page_alloc(ops->bitmap_order);
    if (!vcpu->nested_bitmap || nested_stage2_create(vcpu))
        return -E_NOMEM;
    return backend->ctx_create(vcpu, 1);
}

void nested_destroy(struct vcpu *vcpu)
{
    if (!vcpu->nested)
        return;
    if (vcpu->l2_timer.armed)
        timer_cancel(&vcpu->l2_timer);
    if (vcpu->ctx[1].hw)
        backend->ctx_destroy(vcpu, 1);
    if (vcpu->nested_bitmap)
        page_free(vcpu->nested_bitmap, ops->bitmap_order);
    nested_stage2_destroy(vcpu);
    heap_free(vcpu->nested, ops->state_size);
    vcpu->nested_bitmap = vcpu->nested = NULL;
}

void nested_reset(struct vcpu *vcpu, bool init)
{
    size_t kept;

    if (!vcpu->nested) // perhaps there are no ops, either
        return;
    kept = init ? ops->init_keeps : 0;
    if (vcpu->level)
        nested_leave_l2(vcpu);
    nested_stage2_drop(vcpu);
    memset((u8 *)vcpu->nested + kept, 0, ops->state_size - kept);
    ops->reset(vcpu);
}

void nested_base_controls(struct vcpu *vcpu)
{
    vcpu->ctx[1].ctl = vcpu->ctx[0].ctl;
    vcpu->ctx[1].ctl_dirty = CTL_ALL;
}

// Nothing that waited has gone; but what an accelerated LAPIC has is looked for only at the other
// level.
static void look_for_interrupts(struct vcpu *vcpu)
{
    vcpu->events.interrupts_check |= vcpu->apic.mode != ACCEL_OFF;
}

void nested_enter_l2(struct vcpu *vcpu)
{
    irq_take_back(vcpu); // what L2's exits ask for are L1's interrupts
    backend->select(vcpu, 1, ops->kept);
    vcpu->world = nested_stage2_world(vcpu);
    nested_stage2_prefetch(vcpu);
    look_for_interrupts(vcpu);
}

void nested_leave_l2(struct vcpu *vcpu)
{
    if (vcpu->l2_timer.armed)
        timer_cancel(&vcpu->l2_timer);
    backend->select(vcpu, 0, ops->kept);
    vcpu->world = 0;
    look_for_interrupts(vcpu);
    vcpu->events.mtf_pending = vcpu->events.nested_check = false;
}

void nested_tell_refusal(struct vcpu *vcpu, u64 reason)
{
    if (vcpu->refusal_told)
        return;
    vcpu->refusal_told = true;
    log_error("guest %s: the CPU refused an L2 that Nestor's checks passed (%#llx); this is not "
              "logged again for vCPU %u",
              vcpu->vm->config->name, (unsigned long long)reason, vcpu->id);
}

void nested_stage2_fault(struct vcpu *vcpu, struct vm_exit *exit, const struct l1_fault *fault)
{
    exit->kind = fault->misconfigured ? EXIT_STAGE2_MISCONFIG : EXIT_STAGE2;
    ops->stage2_fault(vcpu, exit, fault);
}

bool nested_reflect(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (exit->kind == EXIT_STAGE2 && nested_stage2_exit(vcpu, exit))
        return true;
    return ops->reflect(vcpu, exit);
}

void nested_instruction(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (vcpu->nested)
        ops->instruction(vcpu, exit);
    else
        vcpu_inject_ud(vcpu);
}

enum nested_answer nested_event(struct vcpu *vcpu, enum nested_event event)
{
    return ops->event(vcpu, event);
}

bool nested_wants_exception(struct vcpu *vcpu, const struct event *event)
{
    return ops->wants_exception(vcpu, event);
}

int nested_virtual_interrupt(struct vcpu *vcpu, bool first)
{
    return first && !ops->virtual_first ? -E_NOENT : ops->virtual_interrupt(vcpu);
}

u64 nested_tsc_moved(struct vcpu *vcpu, u64 by)
{
    return ops->tsc_moved ? ops->tsc_moved(vcpu, by) : by;
}

bool nested_cr8(struct vcpu *vcpu, bool write, u64 *value)
{
    return ops->cr8 && ops->cr8(vcpu, write, value);
}

int nested_read_msr(struct vcpu *vcpu, u32 msr, u64 *value)
{
    return vcpu->nested ? ops->read_msr(vcpu, msr, value) : -E_NOENT;
}

int nested_write_msr(struct vcpu *vcpu, u32 msr, u64 value)
{
    return vcpu->nested ? ops->write_msr(vcpu, msr, value) : -E_NOENT;
}

u64 nested_cr4_bits(const struct vcpu *vcpu)
{
    return vcpu->nested ? ops->cr4_bits : 0;
}

u64 nested_efer_bits(const struct vcpu *vcpu)
{
    return vcpu->nested && ops->efer_bits ? ops->efer_bits(vcpu) : 0;
}

int nested_check_cr(const struct vcpu *vcpu, unsigned number, u64 value)
{
    return vcpu->nested ? ops->check_cr(vcpu, number, value) : 0;
}

void nested_cpuid(const struct vm *vm, u32 leaf, u32 regs[4])
{
    choose(); // it may come before any vCPU
    ops->cpuid(vm, leaf, regs);
}
