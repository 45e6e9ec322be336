// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMCS12: the VMCS of a guest hypervisor, as Nestor keeps it (fields by encoding, SDM vol. 3
// appendix B), the controls that Nestor offers, and what vmcs12's three files share.
// nested/vmcs12.c: instructions and MSRs; vmcs12_check.c: the checks of VM entry; vmcs12_switch.c:
// entering L2 and the exit to L1.

#pragma once

#include "nested.h"
#include <arch/x86/vmx.h>

enum { VMCS12_REVISION = 0x4e455354, VMCS12_FIELDS = 160 };
#define VMCS12_NONE (~0ull)

// The region in L1's memory: a copy while it is current, written back when it no longer is.
struct vmcs12 {
    u32 revision;
    u32 abort;
    u32 launched;
    u32 reserved;
    u64 field[VMCS12_FIELDS];
};

struct nested {
    bool vmxon;
    bool was_launched; // before the entry that is under way
    u64 feature_control;
    gpa_t vmxon_gpa;
    gpa_t current; // VMCS12_NONE = no current VMCS
    struct vmcs12 vmcs;
};

// A field's place: its value in the current VMCS12, NULL if Nestor does not have the field.
u64 *vmcs12_field(struct nested *n, u32 encoding);
static inline u64 vmcs12_read(struct nested *n, enum vmcs_field field)
{
    return *vmcs12_field(n, field);
}
static inline void vmcs12_write(struct nested *n, enum vmcs_field field, u64 value)
{
    *vmcs12_field(n, field) = value;
}

// What is offered: low half must be 1, high half may be 1 (the capability MSRs' format).
u64 vmcs12_capability(const struct vcpu *vcpu, u32 msr);

// VM-instruction error numbers (SDM vol. 3 "VM Instruction Error Numbers").
enum vmx_error {
    VMX_ERROR_VMCALL_ROOT = 1,
    VMX_ERROR_VMCLEAR_ADDRESS = 2,
    VMX_ERROR_VMCLEAR_VMXON = 3,
    VMX_ERROR_LAUNCH_NOT_CLEAR = 4,
    VMX_ERROR_RESUME_NOT_LAUNCHED = 5,
    VMX_ERROR_CONTROLS = 7,
    VMX_ERROR_HOST_STATE = 8,
    VMX_ERROR_VMPTRLD_ADDRESS = 9,
    VMX_ERROR_VMPTRLD_VMXON = 10,
    VMX_ERROR_VMPTRLD_REVISION = 11,
    VMX_ERROR_UNSUPPORTED_FIELD = 12,
    VMX_ERROR_READ_ONLY_FIELD = 13,
    VMX_ERROR_VMXON_ROOT = 15,
    VMX_ERROR_ENTRY_MOV_SS = 26,
    VMX_ERROR_INVALID_OPERAND = 28,
};

// Each returns 0, or what to report. Nothing is changed.
int vmcs12_check_controls(struct vcpu *vcpu); // VMX_ERROR_CONTROLS
int vmcs12_check_host(struct vcpu *vcpu);     // VMX_ERROR_HOST_STATE
int vmcs12_check_guest(struct vcpu *vcpu);    // exit reason 33; *qualification 0

void vmcs12_enter(struct vcpu *vcpu);
// The exit to L1.
void vmcs12_exit(struct vcpu *vcpu, u32 reason, u64 qualification, const struct vm_exit *exit);
// The entry failed behind the checks that VMfail; L1 goes on at its host RIP. The vCPU is at level
// 0.
void vmcs12_entry_failed(struct vcpu *vcpu, u32 reason, u64 qualification);

bool vmcs12_reflect(struct vcpu *vcpu, struct vm_exit *exit);
enum nested_answer vmcs12_event(struct vcpu *vcpu, enum nested_event event);
bool vmcs12_wants_exception(struct vcpu *vcpu, const struct event *event);
