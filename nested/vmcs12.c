// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMX for guests: the VMX instructions as L1 executes them (SDM vol. 3 "VMX Instruction
// Reference").

#include "vmcs12.h"
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/guest_walk.h>
#include <nestor/log.h>
#include <nestor/string.h>

// --- fields ---

enum field_width { WIDTH_16, WIDTH_64, WIDTH_32, WIDTH_NATURAL };
enum field_type { TYPE_CONTROL, TYPE_READ_ONLY, TYPE_GUEST, TYPE_HOST };

static enum field_width field_width(u64 encoding)
{
    return encoding >> 13 & 3;
}

static enum field_type field_type(u64 encoding)
{
    return encoding >> 10 & 3;
}

static void vmcs12_cpuid(u32 leaf, u32 regs[4])
{
    if (leaf == 1)
        regs[2] |= BIT(5); // VMX
}

static int vmcs12_check_cr(const struct vcpu *vcpu, unsigned number, u64 value)
{
    u64 fixed0 = vmcs12_capability(vcpu, number ? MSR_VMX_CR4_FIXED0 : MSR_VMX_CR0_FIXED0);

    return vcpu->nested->vmxon && (value & fixed0) != fixed0 ? -E_FAULT : 0;
}

static void vmcs12_reset(struct vcpu *vcpu)
{
    // As firmware leaves it: locked, VMX outside SMX allowed.
    vcpu->nested->feature_control = FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX;
    vcpu->nested->current = VMCS12_NONE;
    vmcs12_caps_reset(vcpu);
}

// --- how an instruction ends (SDM vol. 3 "Conventions") ---

#define RFLAGS_STATUS (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF)

static void finish(struct vcpu *vcpu, struct vm_exit *exit, u64 flag)
{
    struct guest_state *s = vcpu_modify(vcpu, GROUP_RIP);

    s->rflags = (s->rflags & ~RFLAGS_STATUS) | flag;
    vcpu_finish_exit(vcpu, exit);
}

static void vm_succeed(struct vcpu *vcpu, struct vm_exit *exit)
{
    finish(vcpu, exit, 0);
}

static void vm_fail(struct vcpu *vcpu, struct vm_exit *exit, enum vmx_error error)
{
    if (vcpu->nested->current == VMCS12_NONE) {
        finish(vcpu, exit, RFLAGS_CF);
        return;
    }
    vmcs12_write(vcpu->nested, VM_INSTRUCTION_ERROR, error);
    finish(vcpu, exit, RFLAGS_ZF);
}

// --- operands ---

static u64 operand_address(struct vcpu *vcpu, const struct exit_operand *op)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CODE | GROUP_DATA | GROUP_SYSTEM);
    u64 offset = (u64)op->displacement;

    if (op->base != EXIT_GPR_UNKNOWN)
        offset += vcpu_gpr(vcpu, op->base);
    if (op->index != EXIT_GPR_UNKNOWN)
        offset += vcpu_gpr(vcpu, op->index) << op->scale;
    if (op->addr_size < 8)
        offset &= op->addr_size == 4 ? 0xffffffffull : 0xffffull;
    if (vcpu_mode_64bit(vcpu))
        return offset + (op->seg == SEG_FS || op->seg == SEG_GS ? s->seg[op->seg].base : 0);
    return (u32)(offset + s->seg[op->seg].base);
}

static bool is_canonical(struct vcpu *vcpu, u64 la)
{
    unsigned shift = cr_read_guest(vcpu, 4) & CR4_LA57 ? 7 : 16;

    return (u64)((s64)(la << shift) >> shift) == la;
}

// Reads or writes the memory operand; false: a fault is injected.
static bool operand_access(struct vcpu *vcpu, const struct exit_operand *op, u64 *value,
                           unsigned size, bool write)
{
    u64 la = operand_address(vcpu, op);
    int err;

    if (!is_canonical(vcpu, la) || !is_canonical(vcpu, la + size - 1)) {
        vcpu_inject_exception(vcpu, op->seg == SEG_SS ? VECTOR_SS : VECTOR_GP, true, 0);
        return false;
    }
    err = write ? guest_write_linear(vcpu, la, value, size, 0)
                : guest_read_linear(vcpu, la, value, size, 0);
    if (err && !vcpu->events.exception.valid)
        vm_stop(vcpu->vm, vcpu, "operand of a VMX instruction is not in RAM");
    return !err;
}

// --- the instructions ---

static bool may_execute(struct vcpu *vcpu)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_RIP);

    if (!vcpu->nested->vmxon || !(s->cr0 & CR0_PE) || (s->rflags & RFLAGS_VM) ||
        (vcpu_mode_long(vcpu) && !vcpu_mode_64bit(vcpu))) {
        vcpu_inject_ud(vcpu);
        return false;
    }
    if (vcpu_cpl(vcpu)) {
        vcpu_inject_gp0(vcpu);
        return false;
    }
    return true;
}

static bool bad_region(struct vcpu *vcpu, gpa_t gpa)
{
    return !IS_ALIGNED(gpa, PAGE_SIZE) || !vm_ram_ptr(vcpu->vm, gpa, PAGE_SIZE);
}

static void run_vmxon(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_RIP);
    gpa_t gpa = 0;
    u32 revision = 0;

    if (!(s->cr0 & CR0_PE) || !(s->cr4 & CR4_VMXE) || (s->rflags & RFLAGS_VM) ||
        (vcpu_mode_long(vcpu) && !vcpu_mode_64bit(vcpu))) {
        vcpu_inject_ud(vcpu);
        return;
    }
    if (n->vmxon) {
        if (vcpu_cpl(vcpu))
            vcpu_inject_gp0(vcpu);
        else
            vm_fail(vcpu, exit, VMX_ERROR_VMXON_ROOT);
        return;
    }
    if (vcpu_cpl(vcpu) || (~s->cr0 & vmcs12_capability(vcpu, MSR_VMX_CR0_FIXED0)) ||
        (~n->feature_control & (FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX))) {
        vcpu_inject_gp0(vcpu);
        return;
    }
    if (!operand_access(vcpu, &exit->operand, &gpa, 8, false))
        return;
    if (bad_region(vcpu, gpa) || guest_read_gpa(vcpu, gpa, &revision, 4) ||
        revision != VMCS12_REVISION) {
        finish(vcpu, exit, RFLAGS_CF);
        return;
    }
    n->vmxon = true;
    n->vmxon_gpa = gpa;
    n->current = VMCS12_NONE;
    vm_succeed(vcpu, exit);
}

static void put_current(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;

    if (n->current != VMCS12_NONE)
        guest_write_gpa(vcpu, n->current, &n->vmcs, sizeof(n->vmcs));
    n->current = VMCS12_NONE;
}

static void run_vmxoff(struct vcpu *vcpu, struct vm_exit *exit)
{
    put_current(vcpu);
    vcpu->nested->vmxon = false;
    vm_succeed(vcpu, exit);
}

static void run_vmclear(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    u32 clear = 0;
    gpa_t gpa = 0;

    if (!operand_access(vcpu, &exit->operand, &gpa, 8, false))
        return;
    if (bad_region(vcpu, gpa)) {
        vm_fail(vcpu, exit, VMX_ERROR_VMCLEAR_ADDRESS);
        return;
    }
    if (gpa == n->vmxon_gpa) {
        vm_fail(vcpu, exit, VMX_ERROR_VMCLEAR_VMXON);
        return;
    }
    if (gpa == n->current)
        put_current(vcpu);
    guest_write_gpa(vcpu, gpa + offsetof(struct vmcs12, launched), &clear, sizeof(clear));
    vm_succeed(vcpu, exit);
}

static void run_vmptrld(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    gpa_t gpa = 0;
    u32 revision = 0;

    if (!operand_access(vcpu, &exit->operand, &gpa, 8, false))
        return;
    if (bad_region(vcpu, gpa)) {
        vm_fail(vcpu, exit, VMX_ERROR_VMPTRLD_ADDRESS);
        return;
    }
    if (gpa == n->vmxon_gpa) {
        vm_fail(vcpu, exit, VMX_ERROR_VMPTRLD_VMXON);
        return;
    }
    guest_read_gpa(vcpu, gpa, &revision, sizeof(revision));
    if (revision != VMCS12_REVISION) {
        vm_fail(vcpu, exit, VMX_ERROR_VMPTRLD_REVISION);
        return;
    }
    if (gpa != n->current) {
        put_current(vcpu);
        guest_read_gpa(vcpu, gpa, &n->vmcs, sizeof(n->vmcs));
        n->current = gpa;
    }
    vm_succeed(vcpu, exit);
}

static void run_vmptrst(struct vcpu *vcpu, struct vm_exit *exit)
{
    u64 value = vcpu->nested->current;

    if (operand_access(vcpu, &exit->operand, &value, 8, true))
        vm_succeed(vcpu, exit);
}

static u64 field_operand(struct vcpu *vcpu, const struct exit_operand *op)
{
    u64 value = vcpu_gpr(vcpu, op->reg2);

    return vcpu_mode_64bit(vcpu) ? value : (u32)value;
}

// NULL: there is no such field. Bit 0 names the high half of a 64-bit field.
static u64 *field_slot(struct nested *n, u64 encoding)
{
    if (encoding >> 32 || ((encoding & 1) && field_width((u32)encoding) != WIDTH_64))
        return NULL;
    return vmcs12_field(n, (u32)encoding & ~1u);
}

static u64 truncated(u64 encoding, u64 value)
{
    switch (field_width(encoding)) {
    case WIDTH_16:
        return (u16)value;
    case WIDTH_32:
        return (u32)value;
    default:
        return value;
    }
}

static void run_vmread(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    const struct exit_operand *op = &exit->operand;
    unsigned size = vcpu_mode_64bit(vcpu) ? 8 : 4;
    u64 encoding = field_operand(vcpu, op), *slot, value;

    if (n->current == VMCS12_NONE) {
        finish(vcpu, exit, RFLAGS_CF);
        return;
    }
    slot = field_slot(n, encoding);
    if (!slot) {
        vm_fail(vcpu, exit, VMX_ERROR_UNSUPPORTED_FIELD);
        return;
    }
    value = encoding & 1 ? *slot >> 32 : *slot;
    if (size == 4)
        value = (u32)value;
    if (op->is_reg)
        vcpu_set_gpr(vcpu, op->reg1, value);
    else if (!operand_access(vcpu, op, &value, size, true))
        return;
    vm_succeed(vcpu, exit);
}

static void run_vmwrite(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    const struct exit_operand *op = &exit->operand;
    unsigned size = vcpu_mode_64bit(vcpu) ? 8 : 4;
    u64 encoding = field_operand(vcpu, op), *slot, value = 0;

    if (n->current == VMCS12_NONE) {
        finish(vcpu, exit, RFLAGS_CF);
        return;
    }
    if (op->is_reg)
        value = size == 8 ? vcpu_gpr(vcpu, op->reg1) : (u32)vcpu_gpr(vcpu, op->reg1);
    else if (!operand_access(vcpu, op, &value, size, false))
        return;
    slot = field_slot(n, encoding);
    if (!slot) {
        vm_fail(vcpu, exit, VMX_ERROR_UNSUPPORTED_FIELD);
        return;
    }
    if (field_type(encoding) == TYPE_READ_ONLY) {
        vm_fail(vcpu, exit, VMX_ERROR_READ_ONLY_FIELD);
        return;
    }
    if (encoding & 1)
        *slot = (u32)*slot | value << 32;
    else
        *slot = truncated(encoding, value);
    vm_succeed(vcpu, exit);
}

// VMLAUNCH, VMRESUME: the checks in the SDM's order ("Basic VM-Entry Checks"), then the controls,
// host state, guest state.
static void run_entry(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    bool launch = exit->kind == EXIT_VMLAUNCH;

    if (n->current == VMCS12_NONE) {
        finish(vcpu, exit, RFLAGS_CF);
        return;
    }
    if (vcpu_state(vcpu, GROUP_BLOCKING)->interruptibility & BLOCK_MOV_SS) {
        vm_fail(vcpu, exit, VMX_ERROR_ENTRY_MOV_SS);
        return;
    }
    if (launch == (n->vmcs.launched != 0)) {
        vm_fail(vcpu, exit, launch ? VMX_ERROR_LAUNCH_NOT_CLEAR : VMX_ERROR_RESUME_NOT_LAUNCHED);
        return;
    }
    if (vmcs12_check_controls(vcpu)) {
        vm_fail(vcpu, exit, VMX_ERROR_CONTROLS);
        return;
    }
    if (vmcs12_check_host(vcpu)) {
        vm_fail(vcpu, exit, VMX_ERROR_HOST_STATE);
        return;
    }
    vm_succeed(vcpu,
               exit); // L1's RIP is behind the instruction; the exit loads it from VMCS12 anyway
    if (vmcs12_check_guest(vcpu))
        vmcs12_entry_failed(vcpu, REASON_INVALID_GUEST_STATE, 0);
    else
        vmcs12_enter(vcpu);
}

typedef void (*instruction_fn)(struct vcpu *vcpu, struct vm_exit *exit);

static const instruction_fn instructions[EXIT_KIND_COUNT] = {
    [EXIT_VMXOFF] = run_vmxoff,   [EXIT_VMCLEAR] = run_vmclear, [EXIT_VMPTRLD] = run_vmptrld,
    [EXIT_VMPTRST] = run_vmptrst, [EXIT_VMREAD] = run_vmread,   [EXIT_VMWRITE] = run_vmwrite,
    [EXIT_VMLAUNCH] = run_entry,  [EXIT_VMRESUME] = run_entry,
};

static void vmcs12_instruction(struct vcpu *vcpu, struct vm_exit *exit)
{
    instruction_fn run = instructions[exit->kind];

    if (exit->kind == EXIT_VMXON) {
        run_vmxon(vcpu, exit);
        return;
    }
    if (!run) { // INVEPT, INVVPID are not offered
        vcpu_inject_ud(vcpu);
        return;
    }
    if (may_execute(vcpu))
        run(vcpu, exit);
}

const struct nested_ops vmcs12_ops = {
    .state_size = sizeof(struct nested),
    .bitmap_order = 0,
    .reset = vmcs12_reset,
    .reflect = vmcs12_reflect,
    .instruction = vmcs12_instruction,
    .event = vmcs12_event,
    .wants_exception = vmcs12_wants_exception,
    .read_msr = vmcs12_read_msr,
    .write_msr = vmcs12_write_msr,
    .cr4_bits = CR4_VMXE,
    .check_cr = vmcs12_check_cr,
    .cpuid = vmcs12_cpuid,
};
