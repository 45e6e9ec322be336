// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The checks of VM entry on VMCS12, in the SDM's groups and order (vol. 3 "VM Entries": checks on
// VMX controls, host state, guest state). Each row is one check; a row that returns true refuses
// the entry.

#include "vmcs12.h"
#include <arch/x86/regs.h>

struct check_context {
    struct vcpu *vcpu;
    struct nested *n;
};

typedef bool (*check_fn)(const struct check_context *c);

static u64 get(const struct check_context *c, enum vmcs_field field)
{
    return vmcs12_read(c->n, field);
}

// --- controls (section "Checks on VMX Controls") ---

static bool outside(const struct check_context *c, u64 value, u32 msr)
{
    u64 capability = vmcs12_capability(c->vcpu, msr);
    u32 must = (u32)capability, may = (u32)(capability >> 32);

    return (~value & must) || (value & ~(u64)may);
}

static bool pin_bits(const struct check_context *c)
{
    return outside(c, get(c, PIN_BASED_CONTROLS), MSR_VMX_TRUE_PINBASED_CTLS);
}

static bool primary_bits(const struct check_context *c)
{
    return outside(c, get(c, PRIMARY_CONTROLS), MSR_VMX_TRUE_PROCBASED_CTLS);
}

static bool cr3_targets(const struct check_context *c)
{
    return get(c, CR3_TARGET_COUNT) > 4;
}

static bool bad_address(const struct check_context *c, u64 address)
{
    return !IS_ALIGNED(address, PAGE_SIZE) || address >> cpuid_phys_bits(c->vcpu->vm);
}

static bool io_bitmaps(const struct check_context *c)
{
    return (get(c, PRIMARY_CONTROLS) & PRIMARY_IO_BITMAPS) &&
           (bad_address(c, get(c, IO_BITMAP_A)) || bad_address(c, get(c, IO_BITMAP_B)));
}

static bool msr_bitmap(const struct check_context *c)
{
    return (get(c, PRIMARY_CONTROLS) & PRIMARY_MSR_BITMAPS) && bad_address(c, get(c, MSR_BITMAP));
}

static bool nmi_controls(const struct check_context *c)
{
    return get(c, PRIMARY_CONTROLS) &
           PRIMARY_NMI_WINDOW; // needs virtual NMIs, which are not offered
}

static bool exit_bits(const struct check_context *c)
{
    return outside(c, get(c, EXIT_CONTROLS), MSR_VMX_TRUE_EXIT_CTLS);
}

// An area of `count` entries: 16-byte aligned, its last byte within the physical addresses too.
static bool bad_msr_area(const struct check_context *c, enum vmcs_field count,
                         enum vmcs_field address)
{
    u64 entries = get(c, count), start = get(c, address), last = start + entries * 16 - 1;

    return entries &&
           ((start & 0xf) || (start | last) >> cpuid_phys_bits(c->vcpu->vm) || last < start);
}

static bool exit_msr_areas(const struct check_context *c)
{
    return bad_msr_area(c, EXIT_MSR_STORE_COUNT, EXIT_MSR_STORE_ADDRESS) ||
           bad_msr_area(c, EXIT_MSR_LOAD_COUNT, EXIT_MSR_LOAD_ADDRESS);
}

static bool entry_msr_area(const struct check_context *c)
{
    return bad_msr_area(c, ENTRY_MSR_LOAD_COUNT, ENTRY_MSR_LOAD_ADDRESS);
}

static bool entry_bits(const struct check_context *c)
{
    return outside(c, get(c, ENTRY_CONTROLS), MSR_VMX_TRUE_ENTRY_CTLS);
}

static bool has_error_code(u8 vector)
{
    return BIT(vector) & (BIT(VECTOR_DF) | BIT(VECTOR_TS) | BIT(VECTOR_NP) | BIT(VECTOR_SS) |
                          BIT(VECTOR_GP) | BIT(VECTOR_PF) | BIT(VECTOR_AC));
}

static bool injection(const struct check_context *c)
{
    u64 info = get(c, ENTRY_INTERRUPTION_INFO), length = get(c, ENTRY_INSTRUCTION_LENGTH);
    u8 vector = (u8)info, type = info >> INFO_TYPE_SHIFT & 7;
    bool wants_error;

    if (!(info & INFO_VALID))
        return false;
    if (type == 1 || type == EVENT_OTHER || (info & BITS(30, 12)))
        return true;
    if ((type == EVENT_NMI && vector != VECTOR_NMI) || (type == EVENT_EXCEPTION && vector > 31))
        return true;
    wants_error = type == EVENT_EXCEPTION &&
                  has_error_code(vector); // L2 always has CR0.PE = 1: no unrestricted guest
    if (!!(info & INFO_ERROR_CODE) != wants_error)
        return true;
    if ((info & INFO_ERROR_CODE) && (get(c, ENTRY_EXCEPTION_ERROR_CODE) & BITS(31, 16)))
        return true;
    return type >= EVENT_SOFT_INTERRUPT && (!length || length > 15);
}

static const check_fn control_checks[] = {
    pin_bits,  primary_bits,   cr3_targets, io_bitmaps, msr_bitmap,     nmi_controls,
    exit_bits, exit_msr_areas, entry_bits,  injection,  entry_msr_area,
};

// --- host state ("Checks on Host Control Registers, MSRs, Segment and Descriptor-Table Registers,
// Address-Space Size") ---

static bool is_sign_extended(u64 address, unsigned bits)
{
    return (u64)((s64)(address << (64 - bits)) >> (64 - bits)) == address;
}

// By the width that the CPU has, whatever paging is in use.
static unsigned linear_bits(const struct check_context *c)
{
    return cpuid_has(c->vcpu->vm, 7, 2, 16) ? 57 : 48; // LA57
}

static bool not_canonical(const struct check_context *c, u64 address)
{
    return !is_sign_extended(address, linear_bits(c));
}

static bool bad_cr0(const struct check_context *c, u64 value)
{
    u64 fixed0 = vmcs12_capability(c->vcpu, MSR_VMX_CR0_FIXED0),
        fixed1 = vmcs12_capability(c->vcpu, MSR_VMX_CR0_FIXED1);

    return (~value & fixed0) || (value & ~fixed1);
}

static bool bad_cr4(const struct check_context *c, u64 value)
{
    u64 fixed0 = vmcs12_capability(c->vcpu, MSR_VMX_CR4_FIXED0),
        fixed1 = vmcs12_capability(c->vcpu, MSR_VMX_CR4_FIXED1);

    return (~value & fixed0) || (value & ~fixed1);
}

static bool host_control_registers(const struct check_context *c)
{
    return bad_cr0(c, get(c, HOST_CR0)) || bad_cr4(c, get(c, HOST_CR4)) ||
           get(c, HOST_CR3) >> cpuid_phys_bits(c->vcpu->vm);
}

static bool host_sysenter(const struct check_context *c)
{
    return not_canonical(c, get(c, HOST_SYSENTER_ESP)) ||
           not_canonical(c, get(c, HOST_SYSENTER_EIP));
}

static bool bad_pat(u64 pat)
{
    for (unsigned i = 0; i < 8; i++) {
        u8 type = (u8)(pat >> i * 8);

        if (type > 7 || type == 2 || type == 3)
            return true;
    }
    return false;
}

static bool host_pat(const struct check_context *c)
{
    return (get(c, EXIT_CONTROLS) & EXIT_CTL_LOAD_PAT) && bad_pat(get(c, HOST_PAT));
}

#define EFER_KNOWN (EFER_SCE | EFER_LME | EFER_LMA | EFER_NX)

static bool host_efer(const struct check_context *c)
{
    u64 efer = get(c, HOST_EFER),
        size = get(c, EXIT_CONTROLS) & EXIT_CTL_HOST_64 ? EFER_LMA | EFER_LME : 0;

    return (get(c, EXIT_CONTROLS) & EXIT_CTL_LOAD_EFER) &&
           ((efer & ~EFER_KNOWN) || (efer & (EFER_LMA | EFER_LME)) != size);
}

static bool host_selectors(const struct check_context *c)
{
    static const u16 fields[] = {HOST_ES_SELECTOR, HOST_CS_SELECTOR, HOST_SS_SELECTOR,
                                 HOST_DS_SELECTOR, HOST_FS_SELECTOR, HOST_GS_SELECTOR,
                                 HOST_TR_SELECTOR};

    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
        if (get(c, fields[i]) & 7)
            return true;
    return !get(c, HOST_CS_SELECTOR) || !get(c, HOST_TR_SELECTOR) ||
           (!get(c, HOST_SS_SELECTOR) && !(get(c, EXIT_CONTROLS) & EXIT_CTL_HOST_64));
}

static bool host_bases(const struct check_context *c)
{
    static const u16 fields[] = {HOST_FS_BASE, HOST_GS_BASE, HOST_GDTR_BASE, HOST_IDTR_BASE,
                                 HOST_TR_BASE};

    for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
        if (not_canonical(c, get(c, fields[i])))
            return true;
    return false;
}

static bool host_address_space(const struct check_context *c)
{
    bool long_mode = vcpu_mode_long(c->vcpu), host64 = get(c, EXIT_CONTROLS) & EXIT_CTL_HOST_64;

    if (long_mode != host64 || (!long_mode && (get(c, ENTRY_CONTROLS) & ENTRY_CTL_IA32E_GUEST)))
        return true;
    if (!host64)
        return (get(c, HOST_CR4) & CR4_PCIDE) || get(c, HOST_RIP) >> 32;
    return !(get(c, HOST_CR4) & CR4_PAE) ||
           !is_sign_extended(get(c, HOST_RIP), get(c, HOST_CR4) & CR4_LA57 ? 57 : 48);
}

static const check_fn host_checks[] = {
    host_control_registers, host_sysenter, host_pat,           host_efer,
    host_selectors,         host_bases,    host_address_space,
};

// --- guest state ("Checks on the Guest State Area") ---

static bool ia32e(const struct check_context *c)
{
    return get(c, ENTRY_CONTROLS) & ENTRY_CTL_IA32E_GUEST;
}

static bool guest_control_registers(const struct check_context *c)
{
    u64 cr0 = get(c, GUEST_CR0), cr4 = get(c, GUEST_CR4);

    if (bad_cr0(c, cr0) || bad_cr4(c, cr4)) // which never allows CR4.CET
        return true;
    if (ia32e(c) ? !(cr4 & CR4_PAE) : (cr4 & CR4_PCIDE) != 0)
        return true;
    return get(c, GUEST_CR3) >> cpuid_phys_bits(c->vcpu->vm);
}

static bool guest_debug(const struct check_context *c)
{
    return (get(c, ENTRY_CONTROLS) & ENTRY_CTL_LOAD_DEBUG) &&
           (get(c, GUEST_DR7) >> 32 || (get(c, GUEST_DEBUGCTL) & ~(u64)DEBUGCTL_BTF));
}

static bool guest_sysenter(const struct check_context *c)
{
    return not_canonical(c, get(c, GUEST_SYSENTER_ESP)) ||
           not_canonical(c, get(c, GUEST_SYSENTER_EIP));
}

static bool guest_pat(const struct check_context *c)
{
    return (get(c, ENTRY_CONTROLS) & ENTRY_CTL_LOAD_PAT) && bad_pat(get(c, GUEST_PAT));
}

static bool guest_efer(const struct check_context *c)
{
    u64 efer = get(c, GUEST_EFER);

    if (!(get(c, ENTRY_CONTROLS) & ENTRY_CTL_LOAD_EFER))
        return false;
    // CR0.PG is 1, so LMA and LME must both be what "IA-32e mode guest" says.
    return (efer & ~EFER_KNOWN) || !!(efer & EFER_LMA) != ia32e(c) ||
           !!(efer & EFER_LME) != ia32e(c);
}

static u32 access_of(const struct check_context *c, unsigned seg)
{
    return (u32)get(c, (enum vmcs_field)(GUEST_ES_ACCESS + 2 * seg));
}

static u64 limit_of(const struct check_context *c, unsigned seg)
{
    return get(c, (enum vmcs_field)(GUEST_ES_LIMIT + 2 * seg));
}

static bool v8086(const struct check_context *c)
{
    return get(c, GUEST_RFLAGS) & RFLAGS_VM;
}

static bool granularity_wrong(u64 limit, u32 access)
{
    return ((limit & 0xfff) != 0xfff && (access & SEG_G)) || ((limit >> 20) && !(access & SEG_G));
}

static u64 selector_of(const struct check_context *c, unsigned seg)
{
    return get(c, (enum vmcs_field)(GUEST_ES_SELECTOR + 2 * seg));
}

static u64 base_of(const struct check_context *c, unsigned seg)
{
    return get(c, (enum vmcs_field)(GUEST_ES_BASE + 2 * seg));
}

static u32 dpl_of(const struct check_context *c, unsigned seg)
{
    return access_of(c, seg) >> SEG_DPL_SHIFT & 3;
}

static bool is_usable(const struct check_context *c, unsigned seg)
{
    return !(access_of(c, seg) & SEG_UNUSABLE);
}

#define SEG_RESERVED ((u32)(BITS(11, 8) | BITS(31, 17)))

// The rules that CS and the usable ones of SS, DS, ES, FS, GS share outside virtual-8086 mode.
static bool segment_common(const struct check_context *c, unsigned seg)
{
    u32 access = access_of(c, seg);

    if (seg != SEG_CS && !is_usable(c, seg))
        return false;
    return !(access & SEG_S) || !(access & SEG_P) || !(access & 1) || (access & SEG_RESERVED) ||
           granularity_wrong(limit_of(c, seg), access);
}

static bool guest_segments(const struct check_context *c)
{
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++)
        if (!v8086(c) && segment_common(c, seg))
            return true;
    return false;
}

static bool guest_code_segment(const struct check_context *c)
{
    u32 access = access_of(c, SEG_CS), type = access & SEG_TYPE;

    if (v8086(c))
        return false;
    if (!(type & 8)) // data only with unrestricted guest
        return true;
    if (type & 4 ? dpl_of(c, SEG_CS) > dpl_of(c, SEG_SS) : dpl_of(c, SEG_CS) != dpl_of(c, SEG_SS))
        return true;
    return ia32e(c) && (access & SEG_L) && (access & SEG_DB);
}

static bool guest_stack_segment(const struct check_context *c)
{
    u32 type = access_of(c, SEG_SS) & SEG_TYPE;
    u64 rpl = selector_of(c, SEG_SS) & 3;

    if (v8086(c))
        return false;
    if (rpl != (selector_of(c, SEG_CS) & 3) || rpl != dpl_of(c, SEG_SS))
        return true;
    return is_usable(c, SEG_SS) && ((type != 3 && type != 7) || base_of(c, SEG_SS) >> 32);
}

static bool bad_data_segment(const struct check_context *c, unsigned seg)
{
    u32 type = access_of(c, seg) & SEG_TYPE;

    if ((type & 8) && !(type & 2)) // code that can't be read
        return true;
    return type <= 11 && dpl_of(c, seg) < (selector_of(c, seg) & 3);
}

static bool guest_data_segments(const struct check_context *c)
{
    static const u8 segs[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

    for (unsigned i = 0; i < ARRAY_SIZE(segs); i++)
        if (!v8086(c) && is_usable(c, segs[i]) && bad_data_segment(c, segs[i]))
            return true;
    return false;
}

static bool guest_v8086_segments(const struct check_context *c)
{
    if (!v8086(c))
        return false;
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++)
        if (access_of(c, seg) != 0xf3 || limit_of(c, seg) != 0xffff ||
            base_of(c, seg) != selector_of(c, seg) << 4)
            return true;
    return false;
}

static bool guest_task_register(const struct check_context *c)
{
    u32 tr = access_of(c, SEG_TR), type = tr & SEG_TYPE;

    if (!is_usable(c, SEG_TR) || (tr & (SEG_S | SEG_RESERVED)) || !(tr & SEG_P))
        return true;
    if (type != 11 && (ia32e(c) || type != 3)) // busy, and a 16-bit one only outside IA-32e mode
        return true;
    return (selector_of(c, SEG_TR) & 4) || not_canonical(c, base_of(c, SEG_TR)) ||
           granularity_wrong(limit_of(c, SEG_TR), tr);
}

static bool guest_ldtr(const struct check_context *c)
{
    u32 ldtr = access_of(c, SEG_LDTR);

    if (!is_usable(c, SEG_LDTR))
        return false;
    return (ldtr & (SEG_TYPE | SEG_S)) != 2 || !(ldtr & SEG_P) || (ldtr & SEG_RESERVED) ||
           (selector_of(c, SEG_LDTR) & 4) || not_canonical(c, base_of(c, SEG_LDTR)) ||
           granularity_wrong(limit_of(c, SEG_LDTR), ldtr);
}

static bool guest_bases(const struct check_context *c)
{
    if (not_canonical(c, base_of(c, SEG_FS)) || not_canonical(c, base_of(c, SEG_GS)))
        return true;
    return base_of(c, SEG_CS) >> 32 || (is_usable(c, SEG_DS) && base_of(c, SEG_DS) >> 32) ||
           (is_usable(c, SEG_ES) && base_of(c, SEG_ES) >> 32);
}

static bool guest_tables(const struct check_context *c)
{
    return not_canonical(c, get(c, GUEST_GDTR_BASE)) || not_canonical(c, get(c, GUEST_IDTR_BASE)) ||
           get(c, GUEST_GDTR_LIMIT) >> 16 || get(c, GUEST_IDTR_LIMIT) >> 16;
}

// In 64-bit code the bits above the CPU's width must be alike; RIP need not be canonical.
static bool guest_rip(const struct check_context *c)
{
    u64 rip = get(c, GUEST_RIP), high = ~0ull << linear_bits(c);

    if (ia32e(c) && (access_of(c, SEG_CS) & SEG_L))
        return (rip & high) && (rip & high) != high;
    return rip >> 32;
}

static bool injects(const struct check_context *c, u8 type)
{
    u64 info = get(c, ENTRY_INTERRUPTION_INFO);

    return (info & INFO_VALID) && (info >> INFO_TYPE_SHIFT & 7) == type;
}

static bool guest_rflags(const struct check_context *c)
{
    u64 rflags = get(c, GUEST_RFLAGS);

    if ((rflags & (BITS(63, 22) | BIT(15) | BIT(5) | BIT(3))) || !(rflags & RFLAGS_FIXED))
        return true;
    return ((rflags & RFLAGS_VM) && ia32e(c)) ||
           (injects(c, EVENT_INTERRUPT) && !(rflags & RFLAGS_IF));
}

// What may be injected into HLT: what would end it.
static bool wakes(const struct check_context *c)
{
    u8 vector = (u8)get(c, ENTRY_INTERRUPTION_INFO);

    return injects(c, EVENT_INTERRUPT) || injects(c, EVENT_NMI) ||
           (injects(c, EVENT_EXCEPTION) && (vector == VECTOR_DB || vector == VECTOR_MC));
}

static bool guest_activity(const struct check_context *c)
{
    u64 activity = get(c, GUEST_ACTIVITY_STATE);

    if (activity == ACTIVITY_ACTIVE)
        return false;
    if (activity != ACTIVITY_HLT || dpl_of(c, SEG_SS)) // IA32_VMX_MISC offers no other
        return true;
    if (get(c, GUEST_INTERRUPTIBILITY) & (BLOCK_STI | BLOCK_MOV_SS))
        return true;
    return (get(c, ENTRY_INTERRUPTION_INFO) & INFO_VALID) && !wakes(c);
}

static bool guest_interruptibility(const struct check_context *c)
{
    u64 blocking = get(c, GUEST_INTERRUPTIBILITY);
    bool sti = blocking & BLOCK_STI, mov_ss = blocking & BLOCK_MOV_SS;

    if ((blocking & ~(u64)(BLOCK_STI | BLOCK_MOV_SS | BLOCK_NMI)) ||
        (sti && mov_ss)) // SMI: only within SMM
        return true;
    if (sti && !(get(c, GUEST_RFLAGS) & RFLAGS_IF))
        return true;
    return (injects(c, EVENT_INTERRUPT) && (sti || mov_ss)) || (injects(c, EVENT_NMI) && mov_ss);
}

// Bit 16 needs RTM, which is not offered.
static bool guest_pending_debug(const struct check_context *c)
{
    u64 pending = get(c, GUEST_PENDING_DBG);
    bool tf = get(c, GUEST_RFLAGS) & RFLAGS_TF, btf = get(c, GUEST_DEBUGCTL) & DEBUGCTL_BTF;

    if (pending & ~(u64)(BITS(3, 0) | BIT(12) | DR6_BS))
        return true;
    if (!(get(c, GUEST_INTERRUPTIBILITY) & (BLOCK_STI | BLOCK_MOV_SS)) &&
        get(c, GUEST_ACTIVITY_STATE) != ACTIVITY_HLT)
        return false;
    return !!(pending & DR6_BS) != (tf && !btf);
}

static bool guest_link_pointer(const struct check_context *c)
{
    return get(c, VMCS_LINK_POINTER) != ~0ull; // no shadowing offered
}

static const check_fn guest_checks[] = {
    guest_control_registers,
    guest_debug,
    guest_sysenter,
    guest_pat,
    guest_efer,
    guest_segments,
    guest_code_segment,
    guest_stack_segment,
    guest_data_segments,
    guest_v8086_segments,
    guest_task_register,
    guest_ldtr,
    guest_bases,
    guest_tables,
    guest_rip,
    guest_rflags,
    guest_activity,
    guest_interruptibility,
    guest_pending_debug,
    guest_link_pointer,
};

static int run_checks(struct vcpu *vcpu, const check_fn *checks, unsigned count, int result)
{
    const struct check_context c = {vcpu, vcpu->nested};

    for (unsigned i = 0; i < count; i++)
        if (checks[i](&c))
            return result;
    return 0;
}

int vmcs12_check_controls(struct vcpu *vcpu)
{
    return run_checks(vcpu, control_checks, ARRAY_SIZE(control_checks), VMX_ERROR_CONTROLS);
}

int vmcs12_check_host(struct vcpu *vcpu)
{
    return run_checks(vcpu, host_checks, ARRAY_SIZE(host_checks), VMX_ERROR_HOST_STATE);
}

int vmcs12_check_guest(struct vcpu *vcpu)
{
    return run_checks(vcpu, guest_checks, ARRAY_SIZE(guest_checks), REASON_INVALID_GUEST_STATE);
}
