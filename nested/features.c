// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What an L1 is offered beyond the least that VMX or SVM is, by the names that a configuration's
// `nested-features` uses. Pure.

#include <nestor/nested.h>

static const char *const names[OFFER_FEATURE_COUNT] = {
    // VMX
    [OFFER_TRUE_CONTROLS] = "true-controls",
    [OFFER_VMWRITE_ANY] = "vmwrite-any",
    [OFFER_VIRTUAL_NMIS] = "virtual-nmis",
    [OFFER_PREEMPTION_TIMER] = "preemption-timer",
    [OFFER_POSTED_INTERRUPTS] = "posted-interrupts",
    [OFFER_MTF] = "mtf",
    [OFFER_EPT] = "ept",
    [OFFER_EPT_5_LEVEL] = "ept-5-level",
    [OFFER_EPT_EXECUTE_ONLY] = "ept-execute-only",
    [OFFER_EPT_1G] = "ept-1g",
    [OFFER_EPT_AD] = "ept-ad",
    [OFFER_VPID] = "vpid",
    [OFFER_UNRESTRICTED_GUEST] = "unrestricted-guest",
    [OFFER_TPR_SHADOW] = "tpr-shadow",
    [OFFER_APIC_ACCESSES] = "apic-accesses",
    [OFFER_X2APIC] = "x2apic",
    [OFFER_APIC_REGISTERS] = "apic-registers",
    [OFFER_INTERRUPT_DELIVERY] = "interrupt-delivery",
    [OFFER_DESCRIPTOR_TABLE] = "descriptor-table",
    [OFFER_RDTSCP] = "rdtscp",
    [OFFER_INVPCID] = "invpcid",
    [OFFER_WBINVD] = "wbinvd",
    [OFFER_PAUSE_LOOP] = "pause-loop",
    [OFFER_RDRAND] = "rdrand",
    [OFFER_XSAVES] = "xsaves",
    [OFFER_VMCS_SHADOWING] = "vmcs-shadowing",
    [OFFER_PML] = "pml",
    [OFFER_TSC_SCALING] = "tsc-scaling",
    [OFFER_USER_WAIT] = "user-wait",
    [OFFER_CET] = "cet",
    [OFFER_PKRS] = "pkrs",
    // SVM
    [OFFER_NPT] = "npt",
    [OFFER_NRIP] = "nrip",
    [OFFER_DECODE_ASSISTS] = "decode-assists",
    [OFFER_FLUSH_BY_ASID] = "flush-by-asid",
    [OFFER_CLEAN_BITS] = "clean-bits",
    [OFFER_VGIF] = "vgif",
    [OFFER_VIRTUAL_VMLOAD] = "virtual-vmload",
    [OFFER_PAUSE_FILTER] = "pause-filter",
    [OFFER_LBRV] = "lbrv",
};

const char *nested_feature_name(u32 n)
{
    return n < OFFER_FEATURE_COUNT ? names[n] : NULL;
}
