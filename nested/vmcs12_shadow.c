// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMCS12's fields that an L1 reads and writes most, where the CPU serves them without an exit (VMCS
// shadowing): VMCS12 is published when L1 gets it, by VMPTRLD or an exit of its L2, and what L1 has
// written is collected before it counts. While it is published, what the CPU holds of the writable
// fields is newer.

#include "vmcs12_switch.h"

// The writable ones first.
static const struct shadow_field candidates[] = {
    {GUEST_RIP, 0, true},
    {GUEST_RSP, 0, true},
    {GUEST_RFLAGS, 0, true},
    {GUEST_INTERRUPTIBILITY, 0, true},
    {GUEST_CR0, 0, true},
    {GUEST_CR3, 0, true},
    {GUEST_CR4, 0, true},
    {PRIMARY_CONTROLS, 0, true},
    {EXCEPTION_BITMAP, 0, true},
    {ENTRY_INTERRUPTION_INFO, 0, true},
    {ENTRY_EXCEPTION_ERROR_CODE, 0, true},
    {ENTRY_INSTRUCTION_LENGTH, 0, true},
    {TPR_THRESHOLD, 0, true},
    {EXIT_REASON, 0, false},
    {GUEST_CS_ACCESS, 0, false}, // CPUs may not keep all bits that are written
    {GUEST_SS_ACCESS, 0, false},
    {EXIT_QUALIFICATION, 0, false},
    {EXIT_INTERRUPTION_INFO, 0, false},
    {EXIT_INTERRUPTION_ERROR_CODE, 0, false},
    {IDT_VECTORING_INFO, 0, false},
    {IDT_VECTORING_ERROR_CODE, 0, false},
    {EXIT_INSTRUCTION_LENGTH, 0, false},
    {EXIT_INSTRUCTION_INFO, 0, false},
    {GUEST_LINEAR_ADDRESS, 0, false},
    {GUEST_PHYSICAL_ADDRESS, 0, false},
};
_Static_assert(ARRAY_SIZE(candidates) <= VMCS12_SHADOWED, "too many");

void vmcs12_shadow_reset(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;

    n->shadowed_count = n->shadowed_writable = 0;
    n->published = false;
    if (!backend->shadows_vmcs)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(candidates); i++)
        if (vmcs12_field(n, candidates[i].encoding)) {
            n->shadowed[n->shadowed_count++] = (struct shadow_field){
                candidates[i].encoding, (u16)vmcs12_slot(candidates[i].encoding),
                candidates[i].writable};
            n->shadowed_writable += candidates[i].writable;
        }
    backend->shadow_allow(vcpu, n->shadowed, n->shadowed_count);
    backend->shadow_close(vcpu);
}

// What the CPU does not have yet. While L2 runs it keeps what it had: L1 cannot change it.
void vmcs12_publish(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    const struct shadow_field *field = n->shadowed, *end = field + n->shadowed_count;
    struct shadow_field news[VMCS12_SHADOWED];
    u64 unknown = !n->published;
    unsigned count = 0;

    for (u64 *told = n->told; field < end; field++, told++) {
        u64 value = n->vmcs.field[field->slot];

        if (likely(!((*told ^ value) | unknown)))
            continue;
        *told = value;
        news[count++] = *field;
    }
    if (!count)
        return;
    backend->shadow_publish(vcpu, news, count, n->vmcs.field);
    n->published = true;
}

void vmcs12_collect(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    u64 values[VMCS12_SHADOWED];

    if (!n->published)
        return;
    backend->shadow_collect(vcpu, n->shadowed, n->shadowed_writable, values);
    for (unsigned i = 0; i < n->shadowed_writable; i++) {
        u64 *field = &n->vmcs.field[n->shadowed[i].slot];

        n->told[i] = values[i];
        if (likely(*field == values[i]))
            continue;
        vmcs12_note_write(n, n->shadowed[i].encoding, *field ^ values[i]);
        *field = values[i];
    }
}

// Where the CPU has this field, NULL if it has not.
static const struct shadow_field *published_field(const struct nested *n, u32 encoding)
{
    for (unsigned i = 0; n->published && i < n->shadowed_count; i++)
        if (n->shadowed[i].encoding == encoding)
            return &n->shadowed[i];
    return NULL;
}

void vmcs12_shadow_lead(struct vcpu *vcpu, u32 encoding)
{
    const struct shadow_field *field = published_field(vcpu->nested, encoding);

    if (field && field->writable)
        vmcs12_collect(vcpu);
}

void vmcs12_shadow_follow(struct vcpu *vcpu, u32 encoding)
{
    struct nested *n = vcpu->nested;
    const struct shadow_field *field = published_field(n, encoding);

    if (!field)
        return;
    n->told[field - n->shadowed] = n->vmcs.field[field->slot];
    backend->shadow_publish(vcpu, field, 1, n->vmcs.field);
}

void vmcs12_unpublish(struct vcpu *vcpu)
{
    if (!vcpu->nested->published)
        return;
    vmcs12_collect(vcpu);
    backend->shadow_close(vcpu);
    vcpu->nested->published = false;
}
