// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMCS12's fields that an L1 reads and writes most, where the CPU serves them without an exit (VMCS
// shadowing): VMCS12 is published when L1 gets it, by VMPTRLD or an exit of its L2, and what L1 has
// written is collected before it counts. While it is published, what the CPU holds of the writable
// fields is newer.

#include "vmcs12_switch.h"

// Each costs every round trip something: reading what L1 may have written most, comparing what an
// exit has changed little. What not every CPU has is first, and last.
static const struct shadow_field candidates[] = {
    {GUEST_INTERRUPT_STATUS, true},
    {PREEMPTION_TIMER_VALUE, true},
    {TPR_THRESHOLD, true},
    {GUEST_RIP, true},
    {GUEST_RSP, true},
    {GUEST_RFLAGS, true},
    {GUEST_INTERRUPTIBILITY, true},
    {PRIMARY_CONTROLS, true},
    {ENTRY_INTERRUPTION_INFO, true},
    {ENTRY_EXCEPTION_ERROR_CODE, true},
    {GUEST_CR0, false},
    {GUEST_CR3, false},
    {GUEST_CR4, false},
    {GUEST_CS_ACCESS, false}, // CPUs may not keep all bits that are written
    {GUEST_SS_ACCESS, false},
    {EXIT_REASON, false},
    {EXIT_QUALIFICATION, false},
    {EXIT_INTERRUPTION_INFO, false},
    {EXIT_INTERRUPTION_ERROR_CODE, false},
    {IDT_VECTORING_INFO, false},
    {IDT_VECTORING_ERROR_CODE, false},
    {EXIT_INSTRUCTION_LENGTH, false},
    {EXIT_INSTRUCTION_INFO, false},
    {GUEST_LINEAR_ADDRESS, false},
    {GUEST_PHYSICAL_ADDRESS, false},
    {PML_INDEX, false},
};
enum { WRITABLE = 10 };
_Static_assert(ARRAY_SIZE(candidates) == VMCS12_SHADOWED, "a place for each");

void vmcs12_shadow_reset(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    u32 offered = 0;

    n->shadowed = 0;
    n->published = false;
    if (!backend->shadows_vmcs)
        return;
    for (unsigned i = 0; i < VMCS12_SHADOWED; i++)
        if (vmcs12_field(n, candidates[i].encoding))
            offered |= (u32)BIT(i);
    n->shadowed = backend->shadow_allow(vcpu, candidates, VMCS12_SHADOWED, offered);
    backend->shadow_close(vcpu);
}

static void tell(struct vcpu *vcpu, u32 which)
{
    struct nested *n = vcpu->nested;

    for (u32 left = which; left; left &= left - 1) {
        unsigned i = (unsigned)__builtin_ctz(left);

        n->told[i] = n->vmcs.field[vmcs12_slot(candidates[i].encoding)];
    }
    backend->shadow_publish(vcpu, candidates, which, n->told);
}

// What the CPU does not have yet. While L2 runs it keeps what it had: L1 cannot change it.
void vmcs12_publish(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    u32 news = 0;

    if (!n->shadowed)
        return;
#pragma GCC unroll 32 // the places are constants then
    for (unsigned i = 0; i < VMCS12_SHADOWED; i++)
        if (unlikely(n->told[i] != n->vmcs.field[vmcs12_slot(candidates[i].encoding)]))
            news |= (u32)BIT(i);
    if (unlikely(!n->published))
        news = ~0u;
    n->published = true;
    news &= n->shadowed;
    if (news)
        tell(vcpu, news);
}

void vmcs12_collect(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    unsigned first;
    u32 changed;

    if (!n->published)
        return;
    first = (unsigned)__builtin_ctz(n->shadowed); // behind it is what every CPU has
    changed = backend->shadow_collect(vcpu, candidates + first, WRITABLE - first, n->told + first);
    for (; unlikely(changed); changed &= changed - 1) {
        unsigned i = first + (unsigned)__builtin_ctz(changed);
        u64 *field = &n->vmcs.field[vmcs12_slot(candidates[i].encoding)];

        vmcs12_note_write(n, candidates[i].encoding, *field ^ n->told[i]);
        *field = n->told[i];
    }
}

// The CPU's field of this encoding, as a bit; 0 if it has none.
static u32 published_field(const struct nested *n, u32 encoding)
{
    for (unsigned i = 0; n->published && i < VMCS12_SHADOWED; i++)
        if (candidates[i].encoding == encoding)
            return n->shadowed & (u32)BIT(i);
    return 0;
}

void vmcs12_shadow_lead(struct vcpu *vcpu, u32 encoding)
{
    if (published_field(vcpu->nested, encoding) & (BIT(WRITABLE) - 1))
        vmcs12_collect(vcpu);
}

void vmcs12_shadow_follow(struct vcpu *vcpu, u32 encoding)
{
    u32 field = published_field(vcpu->nested, encoding);

    if (field)
        tell(vcpu, field);
}

void vmcs12_unpublish(struct vcpu *vcpu)
{
    if (!vcpu->nested->published)
        return;
    vmcs12_collect(vcpu);
    backend->shadow_close(vcpu);
    vcpu->nested->published = false;
}
