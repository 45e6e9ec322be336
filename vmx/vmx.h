// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The VMX back end's own room: what a CPU can do, what a context and a CPU keep, and the VMX
// instructions as functions.

#pragma once

#include "controls.h"
#include "run.h"
#include <arch/x86/vmx.h>
#include <nestor/cpu.h>
#include <nestor/log.h>
#include <nestor/vcpu.h>

// CR0 and CR4 bits that the back end owns beside those that core masks: the guest's value is in
// hw->cr0 / hw->cr4, the real one is Nestor's. An entry does not load CR0.NW and CD at all. MCE:
// with it clear a machine check would shut the CPU down. UMIP where the CPU lacks it.
#define CR0_OWN (CR0_NE | CR0_NW | CR0_CD)
#define CR4_OWN (CR4_VMXE | CR4_MCE | vmx_caps.cr4_supplied)

// A context's hardware part. Copies of VMCS fields hold what the VMCS holds, so that unchanged ones
// are not written again.
struct backend_ctx {
    u64 host_rsp;        // 0: for the stub
    u64 host_spec_ctrl;  // 8
    u64 guest_spec_ctrl; // 16: with RUN_SPEC_CTRL
    bool launched;
    bool initialised;
    u32 cpu; // where the VMCS is active, NO_CPU = nowhere
    void *vmcs;
    hpa_t vmcs_pa;
    u64 host_cr3;
    u64 rip, rsp, rflags;
    u64 cr0, cr4; // the guest's values, as last written
    u64 cr0_shadow, cr4_shadow;
    u64 eptp;
    u32 primary, secondary; // without the windows; without TSC scaling
    u32 primary_written, secondary_written;
    u32 timer;
    u16 vpid;
    u8 *shadow; // of level 0, for VMCS shadowing: its pages, else NULL
    hpa_t shadow_pa;
    bool shadow_open;        // L1 has its fields
    struct apic_accel *apic; // of level 0, where the CPU can be its LAPIC; else NULL
};

enum { NO_CPU = ~0u };

// this_cpu()->backend.
struct vmx_cpu {
    void *vmxon;
    struct backend_ctx *loaded; // the current VMCS
    const struct vcpu *last;    // the last vCPU that was loaded here
    u32 run_flags;              // RUN_*: what every entry and exit of this CPU needs
    bool has_ibpb;
    u64 host_spec_ctrl, kept_spec_ctrl; // in Nestor; and those of its bits that stay set in guests
    u64 fpu_components;
    u64 xcr0, xss, tsc_aux; // what the registers hold; ~0 = not known
};

// Found by probe on the first CPU; every other must find the same. Constant afterwards.
struct vmx_caps {
    struct vmx_controls controls;
    u64 basic, misc, ept_vpid;
    u64 cr0_fixed0, cr4_fixed0;
    u64 cr4_supplied;      // UMIP, where the CPU lacks it: by descriptor-table exiting
    bool timer;            // the preemption timer is used
    u8 apic_modes;         // APIC acceleration: BIT(enum apic_accel_mode)
    bool posts_interrupts; // with apic_modes
    bool apic_leaky;       // struct apic_accel
    u32 timer_masked;      // its value for a guest that is entered with interrupts closed
    u64 masked_ticks;      // the same in TSC ticks
};
extern struct vmx_caps vmx_caps;

enum { TIMER_NEVER = ~0u };

static inline struct vmx_cpu *vmx_this_cpu(void)
{
    return this_cpu()->backend;
}

static inline bool vmx_has(enum vmx_control_field field, u32 bits)
{
    return (vmx_caps.controls.allowed[field] & bits) == bits;
}

static inline bool vmx_uses(enum vmx_control_field field, u32 bits)
{
    return (vmx_caps.controls.base[field] & bits) == bits;
}

// --- instructions ---
_Noreturn void vmx_instruction_failed(const char *what, u64 operand);

static inline u64 vmread(enum vmcs_field field)
{
    u64 value;

    __asm__ volatile("vmread %1, %0" : "=r"(value) : "r"((u64)field) : "cc");
    return value;
}

static inline u32 vmread32(enum vmcs_field field)
{
    return (u32)vmread(field);
}

static inline void vmwrite(enum vmcs_field field, u64 value)
{
    __asm__ goto("vmwrite %0, %1\n\tjna %l2" : : "r"(value), "r"((u64)field) : "cc" : failed);
    return;
failed:
    vmx_instruction_failed("VMWRITE", field);
}

static inline void vmwrite_changed(enum vmcs_field field, u64 *copy, u64 value)
{
    if (*copy != value) {
        *copy = value;
        vmwrite(field, value);
    }
}

static inline void vmwrite32_changed(enum vmcs_field field, u32 *copy, u32 value)
{
    if (*copy != value) {
        *copy = value;
        vmwrite(field, value);
    }
}

#define DEFINE_VMX_ADDRESS_INSN(name, text)                                             \
    static inline void name(hpa_t address)                                              \
    {                                                                                   \
        __asm__ goto(text " %0\n\tjna %l1" : : "m"(address) : "cc", "memory" : failed); \
        return;                                                                         \
    failed:                                                                             \
        vmx_instruction_failed(text, address);                                          \
    }
DEFINE_VMX_ADDRESS_INSN(vmxon, "vmxon")
DEFINE_VMX_ADDRESS_INSN(vmclear, "vmclear")
DEFINE_VMX_ADDRESS_INSN(vmptrld, "vmptrld")
#undef DEFINE_VMX_ADDRESS_INSN

struct vmx_inv_descriptor {
    u64 tag, address;
};

#define DEFINE_VMX_INV_INSN(name, text)                                                          \
    static inline void name(u64 type, u64 tag)                                                   \
    {                                                                                            \
        struct vmx_inv_descriptor d = {tag, 0};                                                  \
                                                                                                 \
        __asm__ goto(text " %0, %1\n\tjna %l2" : : "m"(d), "r"(type) : "cc", "memory" : failed); \
        return;                                                                                  \
    failed:                                                                                      \
        vmx_instruction_failed(text, tag);                                                       \
    }
DEFINE_VMX_INV_INSN(invept, "invept")
DEFINE_VMX_INV_INSN(invvpid, "invvpid")
#undef DEFINE_VMX_INV_INSN

// --- enter.S --- Enters the guest of the current VMCS; returns after the exit, or a status if
// VMLAUNCH or VMRESUME itself failed.
enum vmx_run_status { VMX_RUN_EXIT = 0, VMX_RUN_FAIL_INVALID = 1, VMX_RUN_FAIL_VALID = 2 };
// The stub destroys every register but gives *vcpu and *hw back, so nothing is saved twice: neither
// by it nor, beyond what an exit's reader needs, by its caller.
void vmx_run(void);
static inline u32 vmx_call_run(struct vcpu **vcpu, struct backend_ctx **hw, u32 flags)
{
    u32 status;

    __asm__ volatile("call vmx_run"
                     : "=a"(status), "+D"(*vcpu), "+S"(*hw), "+d"(flags)
                     :
                     : "rbx", "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory",
                       "cc");
    return status;
}
void vmx_exit_entry(void); // HOST_RIP
void vmx_unblock_nmi(void);

// --- the back end's operations, by file ---
int vmx_probe(void); // cpu.c
void vmx_describe(char *buf, size_t size);
int vmx_cpu_on(void);
void vmx_cpu_off(void);
u8 vmx_stage2_levels(void);

int vmx_ctx_create(struct vcpu *vcpu, unsigned level); // context.c
void vmx_ctx_destroy(struct vcpu *vcpu, unsigned level);
void vmx_load(struct vcpu *vcpu);
void vmx_put(struct vcpu *vcpu);
void vmx_select(struct vcpu *vcpu, unsigned level, u32 kept);
void vmx_write_controls(struct vcpu_ctx *ctx);
void vmx_write_extended(struct vmx_cpu *cpu, const struct vcpu *vcpu);
void vmx_msr_bitmap_init(void);
void vmx_msr_pass(u8 *bitmap, u32 msr, bool read, bool write);

void vmx_apic_probe(struct vmx_caps *caps); // apic.c
void vmx_apic_accept(const u8 *msr_bitmap); // once, of the caps that all CPUs have
int vmx_apic_create(struct vcpu *vcpu);     // 0 or -E_NOMEM
void vmx_apic_destroy(struct vcpu *vcpu);
void vmx_apic_write_constants(const struct backend_ctx *hw);
void vmx_apic_controls(struct backend_ctx *hw); // hw->primary and secondary
const u8 *vmx_apic_msr_bitmap(const struct backend_ctx *hw, const u8 *plain);
void vmx_apic_update(struct vcpu *vcpu);
void vmx_apic_notify(struct vcpu *vcpu);

void vmx_shadow_probe(const struct vmx_caps *caps); // shadow.c
int vmx_shadow_create(struct backend_ctx *hw);      // 0 or -E_NOMEM
void vmx_shadow_destroy(struct backend_ctx *hw);
void vmx_shadow_write_constants(const struct backend_ctx *hw);
void vmx_shadow_controls(struct backend_ctx *hw); // hw->secondary
u32 vmx_shadow_allow(struct vcpu *vcpu, const struct shadow_field *fields, unsigned count,
                     u32 offered);
void vmx_shadow_publish(struct vcpu *vcpu, const struct shadow_field *fields, u32 which,
                        const u64 *values);
u32 vmx_shadow_collect(struct vcpu *vcpu, const struct shadow_field *fields, unsigned count,
                       u64 *values);
void vmx_shadow_close(struct vcpu *vcpu);

void vmx_pull(struct vcpu *vcpu, u32 groups);          // state.c
void vmx_write_state(struct vcpu_ctx *ctx, u32 dirty); // all but GROUP_RIP
void vmx_write_shared(struct vcpu *vcpu);
void vmx_write_shadows(struct vcpu_ctx *ctx);
void vmx_report_state(void); // logs the current VMCS's guest state

void vmx_enter(struct vcpu *vcpu, struct vm_exit *exit); // enter.c

void vmx_report(struct vcpu *vcpu); // report.c
