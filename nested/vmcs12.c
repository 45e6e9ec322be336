// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMX for guests: the VMX instructions as L1 executes them, and the capability MSRs that say
// exactly what is offered: pin-based, primary, entry and exit controls; no secondary controls yet
// (no EPT, VPID or unrestricted guest). SDM vol. 3 "VMX Instruction Reference", appendices A and B.

#include "vmcs12.h"
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/guest_walk.h>
#include <nestor/log.h>
#include <nestor/string.h>

// --- fields ---

// clang-format off
static const u16 fields[] = {
    GUEST_ES_SELECTOR, GUEST_CS_SELECTOR, GUEST_SS_SELECTOR, GUEST_DS_SELECTOR, GUEST_FS_SELECTOR, GUEST_GS_SELECTOR,
    GUEST_LDTR_SELECTOR, GUEST_TR_SELECTOR,
    HOST_ES_SELECTOR, HOST_CS_SELECTOR, HOST_SS_SELECTOR, HOST_DS_SELECTOR, HOST_FS_SELECTOR, HOST_GS_SELECTOR, HOST_TR_SELECTOR,
    IO_BITMAP_A, IO_BITMAP_B, MSR_BITMAP, EXIT_MSR_STORE_ADDRESS, EXIT_MSR_LOAD_ADDRESS, ENTRY_MSR_LOAD_ADDRESS,
    EXECUTIVE_VMCS_POINTER, TSC_OFFSET,
    VMCS_LINK_POINTER, GUEST_DEBUGCTL, GUEST_PAT, GUEST_EFER,
    HOST_PAT, HOST_EFER,
    PIN_BASED_CONTROLS, PRIMARY_CONTROLS, EXCEPTION_BITMAP, PF_ERROR_CODE_MASK, PF_ERROR_CODE_MATCH, CR3_TARGET_COUNT,
    EXIT_CONTROLS, EXIT_MSR_STORE_COUNT, EXIT_MSR_LOAD_COUNT, ENTRY_CONTROLS, ENTRY_MSR_LOAD_COUNT, ENTRY_INTERRUPTION_INFO,
    ENTRY_EXCEPTION_ERROR_CODE, ENTRY_INSTRUCTION_LENGTH,
    VM_INSTRUCTION_ERROR, EXIT_REASON, EXIT_INTERRUPTION_INFO, EXIT_INTERRUPTION_ERROR_CODE, IDT_VECTORING_INFO,
    IDT_VECTORING_ERROR_CODE, EXIT_INSTRUCTION_LENGTH, EXIT_INSTRUCTION_INFO,
    GUEST_ES_LIMIT, GUEST_CS_LIMIT, GUEST_SS_LIMIT, GUEST_DS_LIMIT, GUEST_FS_LIMIT, GUEST_GS_LIMIT, GUEST_LDTR_LIMIT,
    GUEST_TR_LIMIT, GUEST_GDTR_LIMIT, GUEST_IDTR_LIMIT, GUEST_ES_ACCESS, GUEST_CS_ACCESS, GUEST_SS_ACCESS, GUEST_DS_ACCESS,
    GUEST_FS_ACCESS, GUEST_GS_ACCESS, GUEST_LDTR_ACCESS, GUEST_TR_ACCESS, GUEST_INTERRUPTIBILITY, GUEST_ACTIVITY_STATE,
    GUEST_SMBASE, GUEST_SYSENTER_CS,
    HOST_SYSENTER_CS,
    CR0_GUEST_HOST_MASK, CR4_GUEST_HOST_MASK, CR0_READ_SHADOW, CR4_READ_SHADOW, CR3_TARGET_VALUE0, CR3_TARGET_VALUE1,
    CR3_TARGET_VALUE2, CR3_TARGET_VALUE3,
    EXIT_QUALIFICATION, IO_RCX, IO_RSI, IO_RDI, IO_RIP, GUEST_LINEAR_ADDRESS,
    GUEST_CR0, GUEST_CR3, GUEST_CR4, GUEST_ES_BASE, GUEST_CS_BASE, GUEST_SS_BASE, GUEST_DS_BASE, GUEST_FS_BASE, GUEST_GS_BASE,
    GUEST_LDTR_BASE, GUEST_TR_BASE, GUEST_GDTR_BASE, GUEST_IDTR_BASE, GUEST_DR7, GUEST_RSP, GUEST_RIP, GUEST_RFLAGS,
    GUEST_PENDING_DBG, GUEST_SYSENTER_ESP, GUEST_SYSENTER_EIP,
    HOST_CR0, HOST_CR3, HOST_CR4, HOST_FS_BASE, HOST_GS_BASE, HOST_TR_BASE, HOST_GDTR_BASE, HOST_IDTR_BASE, HOST_SYSENTER_ESP,
    HOST_SYSENTER_EIP, HOST_RSP, HOST_RIP,
};
// clang-format on
_Static_assert(ARRAY_SIZE(fields) <= VMCS12_FIELDS, "VMCS12 is too small");
_Static_assert(sizeof(struct vmcs12) <= PAGE_SIZE, "a VMCS region is 4 KiB");

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

u64 *vmcs12_field(struct nested *n, u32 encoding)
{
    unsigned low = 0, high = ARRAY_SIZE(fields);

    while (low < high) {
        unsigned mid = (low + high) / 2;

        if (fields[mid] < encoding)
            low = mid + 1;
        else
            high = mid;
    }
    return low < ARRAY_SIZE(fields) && fields[low] == encoding ? &n->vmcs.field[low] : NULL;
}

// --- capability MSRs ---

#define CONTROLS(must, may) ((u64)((must) | (may)) << 32 | (must))
#define PIN_DEFAULT1        0x16u
#define PRIMARY_DEFAULT1    0x0401e172u
#define EXIT_DEFAULT1       0x00036dffu
#define ENTRY_DEFAULT1      0x000011ffu

#define PIN_OFFERED ((u32)(PIN_EXTERNAL_INTERRUPT | PIN_NMI))
#define PRIMARY_OFFERED                                                                           \
    ((u32)(PRIMARY_INTERRUPT_WINDOW | PRIMARY_TSC_OFFSETTING | PRIMARY_HLT | PRIMARY_INVLPG |     \
           PRIMARY_MWAIT | PRIMARY_RDPMC | PRIMARY_RDTSC | PRIMARY_CR3_LOAD | PRIMARY_CR3_STORE | \
           PRIMARY_CR8_LOAD | PRIMARY_CR8_STORE | PRIMARY_MOV_DR | PRIMARY_UNCONDITIONAL_IO |     \
           PRIMARY_IO_BITMAPS | PRIMARY_MSR_BITMAPS | PRIMARY_MONITOR | PRIMARY_PAUSE))
#define EXIT_OFFERED                                                                             \
    ((u32)(EXIT_CTL_SAVE_DEBUG | EXIT_CTL_HOST_64 | EXIT_CTL_ACK_INTERRUPT | EXIT_CTL_SAVE_PAT | \
           EXIT_CTL_LOAD_PAT | EXIT_CTL_SAVE_EFER | EXIT_CTL_LOAD_EFER))
#define ENTRY_OFFERED \
    ((u32)(ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_IA32E_GUEST | ENTRY_CTL_LOAD_PAT | ENTRY_CTL_LOAD_EFER))

#define CR0_FIXED0_VALUE (CR0_PE | CR0_NE | CR0_PG)
#define CR4_FIXED0_VALUE CR4_VMXE
#define VMX_MEMORY_WB    (6ull << 50)

u64 vmcs12_capability(const struct vcpu *vcpu, u32 msr)
{
    switch (msr) {
    case MSR_VMX_BASIC:
        return VMCS12_REVISION | PAGE_SIZE << 32 | VMX_MEMORY_WB | VMX_BASIC_INS_OUTS_INFO |
               VMX_BASIC_TRUE_CTLS;
    case MSR_VMX_PINBASED_CTLS:
    case MSR_VMX_TRUE_PINBASED_CTLS:
        return CONTROLS(PIN_DEFAULT1, PIN_OFFERED);
    case MSR_VMX_PROCBASED_CTLS:
        return CONTROLS(PRIMARY_DEFAULT1, PRIMARY_OFFERED);
    case MSR_VMX_TRUE_PROCBASED_CTLS: // the CR3 exits may be 0
        return CONTROLS(PRIMARY_DEFAULT1 & ~(u32)(PRIMARY_CR3_LOAD | PRIMARY_CR3_STORE),
                        PRIMARY_OFFERED);
    case MSR_VMX_EXIT_CTLS:
        return CONTROLS(EXIT_DEFAULT1, EXIT_OFFERED);
    case MSR_VMX_TRUE_EXIT_CTLS:
        return CONTROLS(EXIT_DEFAULT1 & ~(u32)EXIT_CTL_SAVE_DEBUG, EXIT_OFFERED);
    case MSR_VMX_ENTRY_CTLS:
        return CONTROLS(ENTRY_DEFAULT1, ENTRY_OFFERED);
    case MSR_VMX_TRUE_ENTRY_CTLS:
        return CONTROLS(ENTRY_DEFAULT1 & ~(u32)ENTRY_CTL_LOAD_DEBUG, ENTRY_OFFERED);
    case MSR_VMX_MISC:
        return 4ull << 16 | VMX_MISC_ACTIVITY_HLT |
               VMX_MISC_STORE_LMA; // four CR3 targets, 512 entries in an MSR area
    case MSR_VMX_CR0_FIXED0:
        return CR0_FIXED0_VALUE;
    case MSR_VMX_CR0_FIXED1:
        return 0xffffffff;
    case MSR_VMX_CR4_FIXED0:
        return CR4_FIXED0_VALUE;
    case MSR_VMX_CR4_FIXED1:
        return cr4_allowed(vcpu);
    case MSR_VMX_VMCS_ENUM:
        return GUEST_SYSENTER_CS & BITS(9, 1); // the highest index of `fields`
    default:
        return 0;
    }
}

static int vmcs12_read_msr(struct vcpu *vcpu, u32 msr, u64 *value)
{
    if (msr == MSR_FEATURE_CONTROL) {
        *value = vcpu->nested->feature_control;
        return 0;
    }
    if (msr < MSR_VMX_BASIC || msr > MSR_VMX_TRUE_ENTRY_CTLS)
        return -E_NOENT;
    if (msr == MSR_VMX_PROCBASED_CTLS2 || msr == MSR_VMX_EPT_VPID_CAP)
        return -E_FAULT; // without secondary controls these do not exist
    *value = vmcs12_capability(vcpu, msr);
    return 0;
}

static int vmcs12_write_msr(struct vcpu *vcpu, u32 msr, u64 value)
{
    struct nested *n = vcpu->nested;

    if (msr != MSR_FEATURE_CONTROL)
        return msr >= MSR_VMX_BASIC && msr <= MSR_VMX_TRUE_ENTRY_CTLS ? -E_FAULT : -E_NOENT;
    if ((n->feature_control & FEATURE_CONTROL_LOCK) ||
        (value & ~(FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX)))
        return -E_FAULT;
    n->feature_control = value;
    return 0;
}

static void vmcs12_cpuid(u32 leaf, u32 regs[4])
{
    if (leaf == 1)
        regs[2] |= BIT(5); // VMX
}

static int vmcs12_check_cr(const struct vcpu *vcpu, unsigned number, u64 value)
{
    u64 fixed0 = number ? CR4_FIXED0_VALUE : CR0_FIXED0_VALUE;

    return vcpu->nested->vmxon && (value & fixed0) != fixed0 ? -E_FAULT : 0;
}

static void vmcs12_reset(struct vcpu *vcpu)
{
    // As firmware leaves it: locked, VMX outside SMX allowed.
    vcpu->nested->feature_control = FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX;
    vcpu->nested->current = VMCS12_NONE;
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
    if (vcpu_cpl(vcpu) || (s->cr0 & CR0_FIXED0_VALUE) != CR0_FIXED0_VALUE ||
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
