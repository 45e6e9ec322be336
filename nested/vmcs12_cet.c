// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// CET's state and IA32_PKRS of an L2 and its L1 (SDM vol. 3 "VM Entries": "Loading Guest Control
// Registers, Debug Registers, and MSRs", "Loading Guest RIP, RSP, RFLAGS, and SSP"; "VM Exits":
// "Saving Control Registers, Debug Registers, and MSRs", "Saving RIP, RSP, RFLAGS, and SSP", and
// their counterparts for host state). A control says whether an entry or an exit loads each, else
// it stays as it was; an exit saves it always.

#include "vmcs12_switch.h"
#include <arch/x86/msr.h>

// The fields stand in this order in both areas.
static void load_cet(struct guest_state *s, const struct nested *n, enum vmcs_field first)
{
    s->s_cet = vmcs12_read(n, first);
    s->ssp = vmcs12_read(n, first + 2);
    s->interrupt_ssp_table = vmcs12_read(n, first + 4);
}

static void keep_cet(struct guest_state *s, const struct guest_state *before)
{
    s->s_cet = before->s_cet;
    s->ssp = before->ssp;
    s->interrupt_ssp_table = before->interrupt_ssp_table;
}

// The register has it as long as the vCPU is on its CPU.
static void load_pkrs(struct vcpu *vcpu, u64 value)
{
    if (vcpu->pkrs == value)
        return;
    vcpu_modify(vcpu, GROUP_SWITCHED);
    vcpu->pkrs = value;
}

u32 vmcs12_cet_enter(struct vcpu *vcpu, struct guest_state *s)
{
    u64 s_cet = s->s_cet, ssp = s->ssp, table = s->interrupt_ssp_table;

    if (!vmcs12_cet_group(vcpu))
        return 0;
    if (vmcs12_read(vcpu->nested, ENTRY_CONTROLS) & ENTRY_CTL_LOAD_CET)
        load_cet(s, vcpu->nested, GUEST_S_CET);
    else
        keep_cet(s, vcpu_state(vcpu, GROUP_CET));
    return (s_cet ^ s->s_cet) | (ssp ^ s->ssp) | (table ^ s->interrupt_ssp_table) ? GROUP_CET : 0;
}

void vmcs12_pkrs_enter(struct vcpu *vcpu)
{
    if (vmcs12_read(vcpu->nested, ENTRY_CONTROLS) & ENTRY_CTL_LOAD_PKRS)
        load_pkrs(vcpu, vmcs12_read(vcpu->nested, GUEST_PKRS));
}

void vmcs12_cet_save(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;

    if (vmcs12_cet_group(vcpu)) {
        const struct guest_state *s = vcpu_state(vcpu, GROUP_CET);

        vmcs12_write(n, GUEST_S_CET, s->s_cet);
        vmcs12_write(n, GUEST_SSP, s->ssp);
        vmcs12_write(n, GUEST_INTERRUPT_SSP_TABLE, s->interrupt_ssp_table);
    }
    if (vmcs12_offers_entry(vcpu, ENTRY_CTL_LOAD_PKRS))
        vmcs12_write(n, GUEST_PKRS, vcpu->pkrs);
}

void vmcs12_cet_leave(struct vcpu *vcpu, const struct guest_state *before)
{
    struct nested *n = vcpu->nested;
    struct guest_state *s = &vcpu->ctx[0].state;
    u64 controls = vmcs12_read(n, EXIT_CONTROLS);

    if (controls & EXIT_CTL_LOAD_PKRS)
        load_pkrs(vcpu, vmcs12_read(n, HOST_PKRS));
    if (!vmcs12_cet_group(vcpu))
        return;
    vcpu->ctx[0].valid |= GROUP_CET;
    vcpu->ctx[0].dirty |= GROUP_CET;
    if (controls & EXIT_CTL_LOAD_CET)
        load_cet(s, n, HOST_S_CET);
    else
        keep_cet(s, before);
}
