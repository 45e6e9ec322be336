// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A guest's end: its VMCS by the SDM's field names.

#include "vmx.h"

#define FIELD(encoding)     \
    {                       \
        encoding, #encoding \
    }
static const struct {
    u16 encoding;
    const char *name;
} fields[] = {
    FIELD(VM_INSTRUCTION_ERROR),
    FIELD(EXIT_REASON),
    FIELD(EXIT_QUALIFICATION),
    FIELD(GUEST_LINEAR_ADDRESS),
    FIELD(GUEST_PHYSICAL_ADDRESS),
    FIELD(EXIT_INTERRUPTION_INFO),
    FIELD(EXIT_INTERRUPTION_ERROR_CODE),
    FIELD(IDT_VECTORING_INFO),
    FIELD(IDT_VECTORING_ERROR_CODE),
    FIELD(EXIT_INSTRUCTION_LENGTH),
    FIELD(EXIT_INSTRUCTION_INFO),
    FIELD(PIN_BASED_CONTROLS),
    FIELD(PRIMARY_CONTROLS),
    FIELD(SECONDARY_CONTROLS),
    FIELD(EXIT_CONTROLS),
    FIELD(ENTRY_CONTROLS),
    FIELD(ENTRY_INTERRUPTION_INFO),
    FIELD(ENTRY_EXCEPTION_ERROR_CODE),
    FIELD(ENTRY_INSTRUCTION_LENGTH),
    FIELD(EXCEPTION_BITMAP),
    FIELD(CR0_GUEST_HOST_MASK),
    FIELD(CR0_READ_SHADOW),
    FIELD(CR4_GUEST_HOST_MASK),
    FIELD(CR4_READ_SHADOW),
    FIELD(EPT_POINTER),
    FIELD(TSC_OFFSET),
    FIELD(HOST_CR3),
    FIELD(HOST_RSP),
};

void vmx_report(struct vcpu *vcpu)
{
    if (!vcpu->cur->hw || vmx_this_cpu()->loaded != vcpu->cur->hw)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
        log_info("VMCS %s = %#llx", fields[i].name, (unsigned long long)vmread(fields[i].encoding));
    vmx_report_state();
}
