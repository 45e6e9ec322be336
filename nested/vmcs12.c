// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMX for guests: the VMX instructions as L1 executes them, in the order of checks that their
// "Operation" sections have (SDM vol. 3 "VMX Instruction Reference").

#include "nested_stage2.h"
#include "vmcs12_check.h"
#include "vmcs12_switch.h"
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/guest_walk.h>
#include <nestor/log.h>
#include <nestor/string.h>

static void vmcs12_cpuid(const struct vm *vm, u32 leaf, u32 regs[4])
{
    (void)vm;
    if (leaf == 1)
        regs[2] |= BIT(5); // VMX
}

static int vmcs12_check_cr(const struct vcpu *vcpu, unsigned number, u64 value)
{
    u64 fixed0 = vmcs12_capability(vcpu, number ? MSR_VMX_CR4_FIXED0 : MSR_VMX_CR0_FIXED0);

    if (!number && vcpu->level && (vmcs12_secondary(vcpu->nested) & SECONDARY_UNRESTRICTED_GUEST))
        fixed0 &= ~(CR0_PE | CR0_PG);
    return vcpu->nested->vmxon && (value & fixed0) != fixed0 ? -E_FAULT : 0;
}

static void vmcs12_reset(struct vcpu *vcpu)
{
    // As firmware leaves it: locked, VMX outside SMX allowed. A test gets it as hardware does, to
    // see what VMXON does before.
    if (!vcpu->vm->config->test_device)
        vcpu->nested->feature_control = FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX;
    vcpu->nested->current = VMCS12_NONE;
    vmcs12_caps_reset(vcpu);
    vmcs12_shadow_reset(vcpu);
    vmcs12_bitmap_reset(vcpu);
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

// --- regions ---

static bool bad_region(struct vcpu *vcpu, gpa_t gpa)
{
    return !IS_ALIGNED(gpa, PAGE_SIZE) || gpa >> cpuid_phys_bits(vcpu->vm);
}

// The first word of a region: revision identifier and shadow-VMCS indicator. Where there is no
// memory, what a read gives there.
static u32 first_word(struct vcpu *vcpu, gpa_t gpa)
{
    u32 word = ~0u;

    guest_read_gpa(vcpu, gpa, &word, sizeof(word));
    return word;
}

static bool supports_fixed(struct vcpu *vcpu, u32 fixed0, u64 value)
{
    return !(vmcs12_capability(vcpu, fixed0) & ~value) &&
           !(value & ~vmcs12_capability(vcpu, fixed0 + 1));
}

static bool vmxon_allowed(struct vcpu *vcpu)
{
    const u64 needed = FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX;
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_RIP);

    return supports_fixed(vcpu, MSR_VMX_CR0_FIXED0, s->cr0) &&
           supports_fixed(vcpu, MSR_VMX_CR4_FIXED0, s->cr4) &&
           (vcpu->nested->feature_control & needed) == needed;
}

static void run_vmxon(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    gpa_t gpa = 0;

    if (n->vmxon) {
        vm_fail(vcpu, exit, VMX_ERROR_VMXON_ROOT);
        return;
    }
    if (!vmxon_allowed(vcpu)) {
        vcpu_inject_gp0(vcpu);
        return;
    }
    if (!vmcs12_operand_read(vcpu, exit, &gpa, 8))
        return;
    if (bad_region(vcpu, gpa) || first_word(vcpu, gpa) != VMCS12_REVISION) {
        finish(vcpu, exit, RFLAGS_CF);
        return;
    }
    n->vmxon = vcpu->events.init_blocked = true;
    n->long_mode = vcpu_mode_long(vcpu);
    n->vmxon_gpa = gpa;
    n->current = VMCS12_NONE;
    vm_succeed(vcpu, exit);
}

static void put_current(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;

    vmcs12_unpublish(vcpu);
    vmcs12_settle(vcpu);
    if (n->current != VMCS12_NONE)
        guest_write_gpa(vcpu, n->current, &n->vmcs, sizeof(n->vmcs));
    n->current = VMCS12_NONE;
}

static void run_vmxoff(struct vcpu *vcpu, struct vm_exit *exit)
{
    put_current(vcpu);
    vcpu->nested->vmxon = vcpu->events.init_blocked = false;
    vm_succeed(vcpu, exit);
}

// The operand of VMCLEAR and VMPTRLD: the address of a region that is not VMXON's. False: the
// instruction has failed, with one of these errors, or faulted.
static bool region_operand(struct vcpu *vcpu, struct vm_exit *exit, gpa_t *gpa,
                           enum vmx_error bad_address, enum vmx_error is_vmxon)
{
    if (!vmcs12_operand_read(vcpu, exit, gpa, 8))
        return false;
    if (!bad_region(vcpu, *gpa) && *gpa != vcpu->nested->vmxon_gpa)
        return true;
    vm_fail(vcpu, exit, bad_region(vcpu, *gpa) ? bad_address : is_vmxon);
    return false;
}

static void run_vmclear(struct vcpu *vcpu, struct vm_exit *exit)
{
    u32 clear = 0;
    gpa_t gpa = 0;

    if (!region_operand(vcpu, exit, &gpa, VMX_ERROR_VMCLEAR_ADDRESS, VMX_ERROR_VMCLEAR_VMXON))
        return;
    if (gpa == vcpu->nested->current)
        put_current(vcpu);
    guest_write_gpa(vcpu, gpa + offsetof(struct vmcs12, launched), &clear, sizeof(clear));
    vm_succeed(vcpu, exit);
}

static bool revision_supported(struct vcpu *vcpu, u32 word)
{
    bool shadowing =
        vmcs12_capability(vcpu, MSR_VMX_PROCBASED_CTLS2) >> 32 & SECONDARY_VMCS_SHADOWING;

    return (word & ~(shadowing ? (u32)VMCS12_SHADOW : 0)) == VMCS12_REVISION;
}

static void run_vmptrld(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    gpa_t gpa = 0;
    u32 revision;

    if (!region_operand(vcpu, exit, &gpa, VMX_ERROR_VMPTRLD_ADDRESS, VMX_ERROR_VMPTRLD_VMXON))
        return;
    // the copy of the current VMCS knows better than memory
    if (gpa != n->current) {
        revision = first_word(vcpu, gpa);
        if (!revision_supported(vcpu, revision)) {
            vm_fail(vcpu, exit, VMX_ERROR_VMPTRLD_REVISION);
            return;
        }
        put_current(vcpu);
        guest_read_gpa(vcpu, gpa, &n->vmcs, sizeof(n->vmcs));
        n->vmcs.revision = revision; // another vCPU may have changed the one in memory
        vmcs12_fields_cut(n);
        n->current = gpa;
        n->due = DUE_ALL;
        if (!(n->vmcs.revision & VMCS12_SHADOW))
            vmcs12_publish(vcpu);
    }
    vm_succeed(vcpu, exit);
}

static void run_vmptrst(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (vmcs12_operand_write(vcpu, exit, &vcpu->nested->current, 8))
        vm_succeed(vcpu, exit);
}

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

// The VMCS that VMREAD and VMWRITE mean: the current one; an L2's (VMCS shadowing), the one that
// the link pointer names, in L1's memory. VMCS12_NONE: none.
static gpa_t accessed_vmcs(const struct nested *n, const struct vcpu *vcpu)
{
    return vcpu->level ? vmcs12_read(n, VMCS_LINK_POINTER) : n->current;
}

static gpa_t linked_field(const struct nested *n, const u64 *slot)
{
    return vmcs12_read(n, VMCS_LINK_POINTER) + (gpa_t)((const u8 *)slot - (const u8 *)&n->vmcs);
}

// NULL: there is no such field. Bit 0 names the high half of a 64-bit field.
static u64 *field_slot(struct nested *n, u64 encoding)
{
    if (encoding >> 32 || ((encoding & 1) && field_width(encoding) != WIDTH_64))
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

static inline bool lies_in(u64 encoding, enum vmcs_field first, enum vmcs_field last)
{
    return encoding >= first && encoding <= last;
}

// Whether it is of those that an exit saves late.
static bool is_late(u64 encoding)
{
    return lies_in(encoding, GUEST_ES_SELECTOR, GUEST_TR_SELECTOR) ||
           lies_in(encoding, GUEST_ES_LIMIT, GUEST_TR_ACCESS) || encoding == GUEST_SYSENTER_CS ||
           lies_in(encoding, GUEST_ES_BASE, GUEST_IDTR_BASE) ||
           lies_in(encoding, GUEST_SYSENTER_ESP, GUEST_SYSENTER_EIP);
}

// The value of a whole field.
static u64 load_field(struct vcpu *vcpu, u64 encoding, const u64 *slot)
{
    u64 value = ~0ull; // what a read of no memory gives

    if (!vcpu->level) {
        if (is_late(encoding))
            vmcs12_settle(vcpu);
        vmcs12_shadow_lead(vcpu, (u32)encoding & ~1u);
        return *slot;
    }
    guest_read_gpa(vcpu, linked_field(vcpu->nested, slot), &value, sizeof(value));
    return truncated(encoding, value);
}

static void store_field(struct vcpu *vcpu, u64 encoding, u64 *slot, u64 value)
{
    if (vcpu->level) {
        guest_write_gpa(vcpu, linked_field(vcpu->nested, slot), &value, sizeof(value));
        return;
    }
    if (is_late(encoding))
        vmcs12_settle(vcpu);
    vmcs12_note_write(vcpu->nested, (u32)encoding, *slot ^ value);
    *slot = value;
    vmcs12_shadow_follow(vcpu, (u32)encoding & ~1u);
}

static void run_vmread(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    const struct exit_operand *op = &exit->operand;
    unsigned size = vmcs12_64bit(vcpu) ? 8 : 4;
    u64 encoding, *slot, value;

    if (!vmcs12_operand(vcpu, exit))
        return;
    if (accessed_vmcs(n, vcpu) == VMCS12_NONE) {
        finish(vcpu, exit, RFLAGS_CF);
        return;
    }
    encoding = vmcs12_register(vcpu, op->reg2);
    slot = field_slot(n, encoding);
    if (!slot) {
        vm_fail(vcpu, exit, VMX_ERROR_UNSUPPORTED_FIELD);
        return;
    }
    value = load_field(vcpu, encoding, slot);
    if (encoding & 1)
        value >>= 32;
    if (size == 4)
        value = (u32)value;
    if (op->is_reg)
        vcpu_set_gpr(vcpu, op->reg1, value);
    else if (!vmcs12_operand_write(vcpu, exit, &value, size))
        return;
    vm_succeed(vcpu, exit);
}

static bool is_writable(struct vcpu *vcpu, u64 encoding)
{
    return field_type(encoding) != TYPE_READ_ONLY ||
           (vmcs12_capability(vcpu, MSR_VMX_MISC) & VMX_MISC_VMWRITE_ANY);
}

static void run_vmwrite(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    const struct exit_operand *op = &exit->operand;
    u64 encoding, *slot, old, value = 0;

    if (!vmcs12_operand(vcpu, exit))
        return;
    if (accessed_vmcs(n, vcpu) == VMCS12_NONE) {
        finish(vcpu, exit, RFLAGS_CF);
        return;
    }
    if (op->is_reg)
        value = vmcs12_register(vcpu, op->reg1);
    else if (!vmcs12_operand_read(vcpu, exit, &value, vmcs12_64bit(vcpu) ? 8 : 4))
        return;
    encoding = vmcs12_register(vcpu, op->reg2);
    slot = field_slot(n, encoding);
    if (!slot) {
        vm_fail(vcpu, exit, VMX_ERROR_UNSUPPORTED_FIELD);
        return;
    }
    if (!is_writable(vcpu, encoding)) {
        vm_fail(vcpu, exit, VMX_ERROR_READ_ONLY_FIELD);
        return;
    }
    // collects, too, before the field changes below the CPU's copy of its neighbours
    old = load_field(vcpu, encoding, slot);
    value = encoding & 1 ? (u32)old | value << 32 : truncated(encoding, value);
    store_field(vcpu, encoding, slot, value);
    vm_succeed(vcpu, exit);
}

// --- INVEPT, INVVPID ---

struct invalidation {
    u64 low, high;
};

static void run_invept(struct vcpu *vcpu, struct vm_exit *exit)
{
    u64 cap = vmcs12_capability(vcpu, MSR_VMX_EPT_VPID_CAP), type;
    struct invalidation d;

    if (!vmcs12_operand(vcpu, exit))
        return;
    type = vmcs12_register(vcpu, exit->operand.reg2);
    if (type > INVEPT_ALL || !(cap >> 24 & BIT(type) & (BIT(INVEPT_SINGLE) | BIT(INVEPT_ALL)))) {
        vm_fail(vcpu, exit, VMX_ERROR_INVALID_OPERAND);
        return;
    }
    if (!vmcs12_operand_read(vcpu, exit, &d, sizeof(d)))
        return;
    if (type == INVEPT_SINGLE && !vmcs12_eptp_valid(vcpu, d.low)) {
        vm_fail(vcpu, exit, VMX_ERROR_INVALID_OPERAND);
        return;
    }
    nested_invept(vcpu, type == INVEPT_ALL, d.low);
    vm_succeed(vcpu, exit);
}

static bool bad_invvpid(struct vcpu *vcpu, u64 type, const struct invalidation *d)
{
    unsigned bits = vmcs12_capability(vcpu, MSR_VMX_CR4_FIXED1) & CR4_LA57 ? 57 : 48;

    if (d->low >> 16 || (type != INVVPID_ALL && !d->low))
        return true;
    return type == INVVPID_ADDRESS &&
           (u64)((s64)(d->high << (64 - bits)) >> (64 - bits)) != d->high;
}

static void run_invvpid(struct vcpu *vcpu, struct vm_exit *exit)
{
    u64 cap = vmcs12_capability(vcpu, MSR_VMX_EPT_VPID_CAP), type;
    struct invalidation d;

    if (!vmcs12_operand(vcpu, exit))
        return;
    type = vmcs12_register(vcpu, exit->operand.reg2);
    if (type > INVVPID_SINGLE_GLOBAL || !(cap >> 40 & BIT(type))) {
        vm_fail(vcpu, exit, VMX_ERROR_INVALID_OPERAND);
        return;
    }
    if (!vmcs12_operand_read(vcpu, exit, &d, sizeof(d)))
        return;
    if (bad_invvpid(vcpu, type, &d)) {
        vm_fail(vcpu, exit, VMX_ERROR_INVALID_OPERAND);
        return;
    }
    nested_invalidate_tag(vcpu, type == INVVPID_ALL, (u16)d.low);
    vm_succeed(vcpu, exit);
}

// --- VMLAUNCH, VMRESUME ---

// For who writes the hypervisor in L1: `loglevel=debug` says what it has got wrong.
static u32 check_vmcs12(struct vcpu *vcpu, u64 *qualification)
{
    u32 result = vmcs12_check_entry(vcpu, qualification);

    if (result)
        log_debug("guest %s: VM entry refused (%u): %s", vcpu->vm->config->name, result,
                  vmcs12_refusing_row(vcpu, &result)->name);
    return result;
}

// "Basic VM-Entry Checks", and those of VMCS12: 0, a VM-instruction error, or exit reason 33.
static u32 check_entry(struct vcpu *vcpu, bool launch, u64 *qualification)
{
    if (vcpu_state(vcpu, GROUP_BLOCKING)->interruptibility & BLOCK_MOV_SS)
        return VMX_ERROR_ENTRY_MOV_SS;
    if (launch == (vcpu->nested->vmcs.launched != 0))
        return launch ? VMX_ERROR_LAUNCH_NOT_CLEAR : VMX_ERROR_RESUME_NOT_LAUNCHED;
    return check_vmcs12(vcpu, qualification);
}

static void run_entry(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    u64 qualification;
    u32 error;

    if (n->current == VMCS12_NONE || (n->vmcs.revision & VMCS12_SHADOW)) {
        finish(vcpu, exit, RFLAGS_CF);
        return;
    }
    vmcs12_collect(vcpu);
    if (n->due & DUE_GUEST)
        vmcs12_settle(vcpu);
    error = check_entry(vcpu, exit->kind == EXIT_VMLAUNCH, &qualification);
    if (error && error != REASON_INVALID_GUEST_STATE) {
        vm_fail(vcpu, exit, error);
        return;
    }
    // What the instruction leaves of L1's RIP, flags and blocking nobody sees: an exit loads them.
    if (error)
        vmcs12_entry_failed(vcpu, REASON_INVALID_GUEST_STATE, qualification);
    else
        vmcs12_enter(vcpu);
}

// --- all of them ---

typedef void (*instruction_fn)(struct vcpu *vcpu, struct vm_exit *exit);

static const instruction_fn instructions[EXIT_KIND_COUNT] = {
    [EXIT_VMXOFF] = run_vmxoff,   [EXIT_VMCLEAR] = run_vmclear, [EXIT_VMPTRLD] = run_vmptrld,
    [EXIT_VMPTRST] = run_vmptrst, [EXIT_VMREAD] = run_vmread,   [EXIT_VMWRITE] = run_vmwrite,
    [EXIT_VMLAUNCH] = run_entry,  [EXIT_VMRESUME] = run_entry,  [EXIT_INVEPT] = run_invept,
    [EXIT_INVVPID] = run_invvpid,
};

// VMXON is there in protected mode, but for virtual-8086 and compatibility mode, with CR4.VMXE.
static void vmcs12_vmxon(struct vcpu *vcpu, struct vm_exit *exit)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_RIP);

    if (!(s->cr0 & CR0_PE) || !(s->cr4 & CR4_VMXE) || (s->rflags & RFLAGS_VM) ||
        (vcpu_mode_long(vcpu) && !vcpu_mode_64bit(vcpu)))
        vcpu_inject_ud(vcpu);
    else if (vcpu_cpl(vcpu))
        vcpu_inject_gp0(vcpu);
    else
        run_vmxon(vcpu, exit);
}

// The others are there in VMX operation, where L1's CR0.PE is 1: not in those two modes; INVEPT and
// INVVPID if they are supported. Of an L2's only VMREAD and VMWRITE come here.
static bool recognized(struct vcpu *vcpu, u8 kind)
{
    const struct nested *n = vcpu->nested;

    if (!instructions[kind] || !n->vmxon || (vcpu->cur->state.rflags & RFLAGS_VM))
        return false;
    if (vcpu->level)
        return (vcpu_state(vcpu, GROUP_CR)->cr0 & CR0_PE) &&
               (!vcpu_mode_long(vcpu) || vmcs12_64bit(vcpu));
    if (n->long_mode && !vmcs12_64bit(vcpu))
        return false;
    if (kind == EXIT_INVEPT)
        return vmcs12_capability(vcpu, MSR_VMX_EPT_VPID_CAP) & EPT_CAP_INVEPT;
    if (kind == EXIT_INVVPID)
        return vmcs12_capability(vcpu, MSR_VMX_EPT_VPID_CAP) & VPID_CAP_INVVPID;
    return true;
}

static void vmcs12_instruction(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (exit->kind == EXIT_VMXON)
        vmcs12_vmxon(vcpu, exit);
    else if (!recognized(vcpu, exit->kind))
        vcpu_inject_ud(vcpu);
    else if (vcpu_state(vcpu, GROUP_CODE)->seg[SEG_SS].access & SEG_DPL)
        vcpu_inject_gp0(vcpu);
    else
        instructions[exit->kind](vcpu, exit);
}

const struct nested_ops vmcs12_ops = {
    .state_size = sizeof(struct nested),
    .init_keeps = offsetof(struct nested, vmxon),
    .bitmap_order = 0,
    .virtual_first = true,
    .reset = vmcs12_reset,
    .reflect = vmcs12_reflect,
    .instruction = vmcs12_instruction,
    .event = vmcs12_event,
    .wants_exception = vmcs12_wants_exception,
    .virtual_interrupt = vmcs12_virtual_interrupt,
    .tsc_moved = vmcs12_tsc_moved,
    .read_msr = vmcs12_read_msr,
    .write_msr = vmcs12_write_msr,
    .cr4_bits = CR4_VMXE,
    .check_cr = vmcs12_check_cr,
    .stage2_fault = vmcs12_stage2_fault,
    .cpuid = vmcs12_cpuid,
};
