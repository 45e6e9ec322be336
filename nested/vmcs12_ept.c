// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// EPT and VPID for an L1: what an entry makes of them, and the exits by EPT violation,
// misconfiguration and a full page-modification log (SDM vol. 3 "Extended-Page-Table Pointer
// (EPTP)", "EPT-Induced VM Exits", "Exit Qualification for EPT Violations", "Page-Modification
// Logging").

#include "nested_stage2.h"
#include "vmcs12_switch.h"
#include <arch/x86/msr.h>
#include <nestor/device.h>
#include <nestor/run.h>

void vmcs12_use_stage2(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    u64 caps = vmcs12_capability(vcpu, MSR_VMX_EPT_VPID_CAP);
    bool ept = vmcs12_secondary(n) & SECONDARY_EPT;
    // Without TPR shadow every access exits, and the address of the virtual-APIC page is unchecked.
    bool virtual = vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_TPR_SHADOW;
    const struct l1_log log = {vmcs12_read(n, PML_ADDRESS), &n->vmcs.field[vmcs12_slot(PML_INDEX)]};

    nested_tag_use(vcpu, vmcs12_vpid(n));
    nested_stage2_divert(vcpu, vmcs12_secondary(n) & SECONDARY_APIC_ACCESSES,
                         vmcs12_read(n, APIC_ACCESS_ADDRESS),
                         vmcs12_read(n, virtual ? VIRTUAL_APIC_ADDRESS : APIC_ACCESS_ADDRESS));
    nested_stage2_use(vcpu,
                      &(struct l1_stage2){
                          .kind = ept ? L1_STAGE2_EPT : L1_STAGE2_NONE,
                          .phys_bits = cpuid_phys_bits(vcpu->vm),
                          .page1g = caps & EPT_CAP_1G,
                          .execute_only = caps & EPT_CAP_EXECUTE_ONLY,
                          .root = ept ? vmcs12_read(n, EPT_POINTER) : 0,
                      },
                      vmcs12_secondary(n) & SECONDARY_PML ? &log : NULL);
}

void vmcs12_stage2_fault(struct vcpu *vcpu, const struct vm_exit *exit,
                         const struct l1_fault *fault)
{
    const struct exit_stage2 *s = &exit->stage2;
    u64 qualification = (fault->access & STAGE2_RWX) | (u64)fault->rights << QUAL_EPT_RIGHTS_SHIFT;

    vcpu->nested->exit_tsc = tsc_now();
    if (fault->misconfigured) {
        vmcs12_exit(vcpu, REASON_EPT_MISCONFIGURATION, 0, exit);
        return;
    }
    if (fault->log_full) {
        vmcs12_exit(vcpu, REASON_PML_FULL,
                    exit->nmi_unblocked_by_iret ? QUAL_EPT_NMI_UNBLOCKING : 0, exit);
        return;
    }
    if (s->gla_valid)
        qualification |= QUAL_EPT_GLA_VALID | (s->gla_final ? QUAL_EPT_GLA_FINAL : 0);
    if (s->shadow_stack)
        qualification |= QUAL_EPT_SHADOW_STACK;
    if (exit->nmi_unblocked_by_iret)
        qualification |= QUAL_EPT_NMI_UNBLOCKING;
    vmcs12_exit(vcpu, REASON_EPT_VIOLATION, qualification, exit);
}
