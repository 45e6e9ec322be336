// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMCS12: the VMCS of a guest hypervisor, as Nestor keeps it (fields by encoding, SDM vol. 3
// appendix B), the controls that Nestor offers, and what vmcs12's files share.
// nested/vmcs12.c: instructions; vmcs12_operand.c: their operands; vmcs12_fields.c: which fields
// there are; vmcs12_caps.c: the capability MSRs; vmcs12_check*.c: the checks of VM entry;
// vmcs12_switch.h and its files: entering L2 and the exit to L1.

#pragma once

#include "nested.h"
#include <arch/x86/msr.h>
#include <arch/x86/vmx.h>

// The first place of each width and type (bits 14:13 and 11:10 of an encoding): in between they
// stand by index (bits 9:1), so that the place of a field that the compiler knows is a constant.
static const u8 vmcs12_groups[17] = {0,  5,   5,   16,  23,  58,  59,  72, 76,
                                     94, 102, 126, 127, 135, 141, 164, 179};
enum { VMCS12_REVISION = 0x4e455354, VMCS12_FIELDS = 179, VMCS12_CAPABILITIES = 18 };
#define VMCS12_NONE   (~0ull)
#define VMCS12_SHADOW BIT(31) // in `revision`: the shadow-VMCS indicator

static inline unsigned vmcs12_group(u32 encoding)
{
    return (encoding >> 11 & 0xc) | (encoding >> 10 & 3);
}

static inline unsigned vmcs12_slot(u32 encoding)
{
    return vmcs12_groups[vmcs12_group(encoding)] + (encoding >> 1 & 0x1ff);
}

// The region in L1's memory: a copy while it is current, written back when it no longer is.
struct vmcs12 {
    u32 revision;
    u32 abort;
    u32 launched;
    u32 reserved;
    u64 field[VMCS12_FIELDS];
};

enum { VMCS12_SHADOWED = 26 }; // fields that may be (vmcs12_shadow.c)

struct nested {
    u64 feature_control; // first: INIT leaves it
    bool vmxon;
    bool published;            // of the current VMCS12, `shadowed` are with the CPU
    u32 shadowed;              // which of them the CPU has; constant after reset
    u64 told[VMCS12_SHADOWED]; // what the CPU has of them, while published
    bool long_mode;            // L1's, which in VMX operation does not change: CR0.PG stays 1
    bool was_launched;         // before the entry that is under way
    u8 due;                    // enum vmcs12_due
    bool unsaved;              // VMCS12 lacks fields of the last exit's state: ctx[1] has them
    bool tpr_checked;          // the TPR threshold since then
    // NMI exiting without virtual NMIs: what blocks NMIs at the entry does so until the exit.
    bool nmis_stay_blocked;
    u64 exit_tsc;  // the host's, of the exit or event that is being handled
    u64 timer_end; // of the preemption timer, in its ticks
    gpa_t vmxon_gpa;
    gpa_t current; // VMCS12_NONE = no current VMCS
    struct vmcs12 vmcs;
    // What this L1 is offered: constant after reset. By MSR, from IA32_VMX_BASIC on; fields by
    // slot.
    u64 capability[VMCS12_CAPABILITIES];
    u64 present[3];
    u16 passed[32]; // words of the MSR bitmap in which Nestor passes something
    u8 passed_count;
    u16 highest_index; // of the fields, as IA32_VMX_VMCS_ENUM has it
};

// A field's place in the current VMCS12 by its encoding (access type 0), NULL if this L1 does not
// have it.
u64 *vmcs12_field(struct nested *n, u32 encoding);
// Cuts each field of the current VMCS12 to its width: it was read from L1's memory, where there may
// be what no VMWRITE can write.
void vmcs12_fields_cut(struct nested *n);
// Saves what the last exit has left for later: at level 0, before such a field is read or written,
// or the current VMCS12 leaves.
void vmcs12_settle(struct vcpu *vcpu);
// What Nestor itself reads and writes. The controls that a field belongs to say whether it counts.
static inline u64 vmcs12_read(const struct nested *n, enum vmcs_field field)
{
    return n->vmcs.field[vmcs12_slot(field)];
}
static inline void vmcs12_write(struct nested *n, enum vmcs_field field, u64 value)
{
    n->vmcs.field[vmcs12_slot(field)] = value;
}

// Computes what is offered (vmcs12_caps.c), and from it the fields.
void vmcs12_caps_reset(struct vcpu *vcpu);
void vmcs12_fields_reset(struct nested *n);
// A capability MSR: of controls, low half must be 1, high half may be 1. 0 if it does not exist.
static inline u64 vmcs12_capability(const struct vcpu *vcpu, u32 msr)
{
    return vcpu->nested->capability[msr - MSR_VMX_BASIC];
}
int vmcs12_read_msr(struct vcpu *vcpu, u32 msr, u64 *value);
int vmcs12_write_msr(struct vcpu *vcpu, u32 msr, u64 value);

// The controls as VM entry sees them: the secondary ones are 0 unless activated.
static inline u32 vmcs12_secondary(const struct nested *n)
{
    return vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_SECONDARY
               ? (u32)vmcs12_read(n, SECONDARY_CONTROLS)
               : 0;
}

// vcpu_mode_64bit in VMX operation: for an L1 needs less of its state.
static inline bool vmcs12_64bit(struct vcpu *vcpu)
{
    return vcpu->level ? vcpu_mode_64bit(vcpu)
                       : vcpu->nested->long_mode &&
                             (vcpu_state(vcpu, GROUP_CODE)->seg[SEG_CS].access & SEG_L);
}

// A register operand: 32 bits outside 64-bit mode.
static inline u64 vmcs12_register(struct vcpu *vcpu, unsigned reg)
{
    u64 value = vcpu_gpr(vcpu, reg);

    return vmcs12_64bit(vcpu) ? value : (u32)value;
}

// Makes sure that the exit's operand is known. False (here and below): a fault is injected, or the
// guest executes the instruction again.
bool vmcs12_operand(struct vcpu *vcpu, struct vm_exit *exit);
bool vmcs12_operand_read(struct vcpu *vcpu, struct vm_exit *exit, void *value, unsigned size);
bool vmcs12_operand_write(struct vcpu *vcpu, struct vm_exit *exit, const void *value,
                          unsigned size);

// VMCS shadowing (vmcs12_shadow.c). The current VMCS12 becomes visible to L1's VMREAD and VMWRITE
// without exits; what it has written is taken back; it is no longer visible.
void vmcs12_shadow_reset(struct vcpu *vcpu);
void vmcs12_publish(struct vcpu *vcpu);
void vmcs12_collect(struct vcpu *vcpu);
void vmcs12_unpublish(struct vcpu *vcpu);
// Before a VMREAD or VMWRITE that Nestor carries out, an emulated one perhaps: VMCS12's field is
// what L1 has written last.
void vmcs12_shadow_lead(struct vcpu *vcpu, u32 encoding);
// VMCS12's field has changed by a VMWRITE that exited: what L1 reads follows.
void vmcs12_shadow_follow(struct vcpu *vcpu, u32 encoding);

// L2's VPID, 0: none.
static inline u16 vmcs12_vpid(const struct nested *n)
{
    return vmcs12_secondary(n) & SECONDARY_VPID ? (u16)vmcs12_read(n, VPID) : 0;
}

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

// The checks of VM entry, in the order of the SDM. Returns 0, VMX_ERROR_CONTROLS,
// VMX_ERROR_HOST_STATE, or exit reason 33 with its qualification. Changes nothing of VMCS12.
u32 vmcs12_check_entry(struct vcpu *vcpu, u64 *qualification);
// Most rows need be looked at only where L1 has written to what they depend on since they passed:
// what an exit saves fits them. Of each group, whether all are due, or those of RIP and behind it;
// behind VMPTRLD they are.
// Likewise, of what an entry makes of it: merging controls, loading guest state that an exit has
// saved.
enum vmcs12_due {
    DUE_CONTROLS = BIT(0),
    DUE_HOST = BIT(1),
    DUE_GUEST = BIT(2),
    DUE_MERGE = BIT(3),
    DUE_LOAD = BIT(4),
    DUE_RIP = BIT(5),
    DUE_CHECKS = DUE_CONTROLS | DUE_HOST | DUE_GUEST | DUE_RIP,
    DUE_ALL = BITS(5, 0),
};
// L1 has written to that field; `changed`: the bits that are others than before.
void vmcs12_note_write(struct nested *n, u32 encoding, u64 changed);
// Whether an entry would take this EPTP; INVEPT asks too.
bool vmcs12_eptp_valid(const struct vcpu *vcpu, u64 eptp);

void vmcs12_enter(struct vcpu *vcpu);
u64 vmcs12_tsc_moved(struct vcpu *vcpu, u64 by);
void vmcs12_bitmap_reset(struct vcpu *vcpu);
// The exit to L1.
void vmcs12_exit(struct vcpu *vcpu, u32 reason, u64 qualification, const struct vm_exit *exit);
// The entry failed behind the checks that VMfail; L1 goes on at its host RIP. The vCPU is at level
// 1 if L2's state was loaded: what the host-state area does not say stays L2's.
void vmcs12_entry_failed(struct vcpu *vcpu, u32 reason, u64 qualification);

void vmcs12_stage2_fault(struct vcpu *vcpu, const struct vm_exit *exit,
                         const struct l1_fault *fault);
bool vmcs12_reflect(struct vcpu *vcpu, struct vm_exit *exit);
enum nested_answer vmcs12_event(struct vcpu *vcpu, enum nested_event event);
bool vmcs12_wants_exception(struct vcpu *vcpu, const struct event *event);
