// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The checks of VM entry on the guest-state area (SDM vol. 3 "VM Entries", section "Checks on the
// Guest State Area" and its sections 1 to 6), in its order, whatever the CPU below would check
// itself: some emulators leave out some. Pure but for the guest's memory.

#include "vmcs12_check.h"

// --- "Checks on Guest Control Registers, Debug Registers, and MSRs" ---

// With unrestricted guest PE and PG are free, but PG needs PE.
static bool cr0(const struct check *c, const struct check_row *row)
{
    u64 value = field_of(c, row), fixed0 = capability(c, MSR_VMX_CR0_FIXED0);

    if (c->unrestricted)
        fixed0 &= ~(u64)(CR0_PE | CR0_PG);
    return (fixed0 & ~value) || (value & ~capability(c, MSR_VMX_CR0_FIXED1));
}

static bool paging_without_protection(const struct check *c, const struct check_row *row)
{
    return (field_of(c, row) & (CR0_PE | CR0_PG)) == CR0_PG;
}

static bool cet_without_wp(const struct check *c, const struct check_row *row)
{
    return (field_of(c, row) & CR4_CET) && !(get(c, GUEST_CR0) & CR0_WP);
}

static bool ia32e_without_paging(const struct check *c, const struct check_row *row)
{
    return c->ia32e && (!(get(c, GUEST_CR0) & CR0_PG) || !(field_of(c, row) & CR4_PAE));
}

static bool pcid_without_ia32e(const struct check *c, const struct check_row *row)
{
    return !c->ia32e && (field_of(c, row) & CR4_PCIDE);
}

static bool efer(const struct check *c, const struct check_row *row)
{
    u64 value = field_of(c, row);

    if ((value & ~EFER_KNOWN) || !!(value & EFER_LMA) != c->ia32e)
        return true;
    return (get(c, GUEST_CR0) & CR0_PG) && !!(value & EFER_LME) != c->ia32e;
}

// --- "Checks on Guest Segment Registers"; `field` is the segment ---

static u64 selector_of(const struct check *c, unsigned seg)
{
    return get(c, (enum vmcs_field)(GUEST_ES_SELECTOR + 2 * seg));
}

static u64 base_of(const struct check *c, unsigned seg)
{
    return get(c, (enum vmcs_field)(GUEST_ES_BASE + 2 * seg));
}

static u64 limit_of(const struct check *c, unsigned seg)
{
    return get(c, (enum vmcs_field)(GUEST_ES_LIMIT + 2 * seg));
}

static u32 access_of(const struct check *c, unsigned seg)
{
    return (u32)get(c, (enum vmcs_field)(GUEST_ES_ACCESS + 2 * seg));
}

static u32 type_of(const struct check *c, unsigned seg)
{
    return access_of(c, seg) & SEG_TYPE;
}

static u32 dpl_of(const struct check *c, unsigned seg)
{
    return access_of(c, seg) >> SEG_DPL_SHIFT & 3;
}

static bool is_usable(const struct check *c, unsigned seg)
{
    return !(access_of(c, seg) & SEG_UNUSABLE);
}

// Whether the rules of ES to GS outside virtual-8086 mode apply: always to CS.
static bool applies(const struct check *c, unsigned seg)
{
    return !c->v8086 && (seg == SEG_CS || is_usable(c, seg));
}

static bool table_indicator(const struct check *c, const struct check_row *row)
{
    return (row->field == SEG_TR || is_usable(c, row->field)) && (selector_of(c, row->field) & 4);
}

static bool ss_rpl(const struct check *c, const struct check_row *row)
{
    (void)row;
    return !c->v8086 && !c->unrestricted && ((selector_of(c, SEG_SS) ^ selector_of(c, SEG_CS)) & 3);
}

static bool v8086_base(const struct check *c, const struct check_row *row)
{
    return c->v8086 && base_of(c, row->field) != selector_of(c, row->field) << 4;
}

// TR, FS and GS always, LDTR if usable.
static bool long_base(const struct check *c, const struct check_row *row)
{
    return (row->field != SEG_LDTR || is_usable(c, SEG_LDTR)) &&
           !is_sign_extended(base_of(c, row->field), c->linear_bits);
}

// CS always; SS, DS and ES if usable.
static bool short_base(const struct check *c, const struct check_row *row)
{
    return (row->field == SEG_CS || is_usable(c, row->field)) && base_of(c, row->field) >> 32;
}

static bool v8086_limit(const struct check *c, const struct check_row *row)
{
    return c->v8086 && limit_of(c, row->field) != 0xffff;
}

static bool v8086_access(const struct check *c, const struct check_row *row)
{
    return c->v8086 && access_of(c, row->field) != 0xf3;
}

static bool segment_type(const struct check *c, const struct check_row *row)
{
    u32 type = type_of(c, row->field);

    if (!applies(c, row->field))
        return false;
    if (row->field == SEG_CS)
        return (type & 9) != 9 && !(type == 3 && c->unrestricted);
    if (row->field == SEG_SS)
        return type != 3 && type != 7;
    return !(type & 1) || (type & 10) == 8; // accessed; code that can be read
}

static bool segment_system(const struct check *c, const struct check_row *row)
{
    return applies(c, row->field) && !(access_of(c, row->field) & SEG_S);
}

static bool code_dpl(const struct check *c)
{
    u32 dpl = dpl_of(c, SEG_CS), type = type_of(c, SEG_CS);

    if (type == 3)
        return dpl;
    return type & 4 ? dpl > dpl_of(c, SEG_SS) : dpl != dpl_of(c, SEG_SS);
}

// Also if it is unusable.
static bool stack_dpl(const struct check *c)
{
    if (!c->unrestricted && dpl_of(c, SEG_SS) != (selector_of(c, SEG_SS) & 3))
        return true;
    return (type_of(c, SEG_CS) == 3 || !(get(c, GUEST_CR0) & CR0_PE)) && dpl_of(c, SEG_SS);
}

static bool segment_dpl(const struct check *c, const struct check_row *row)
{
    unsigned seg = row->field;

    if (c->v8086)
        return false;
    if (seg == SEG_CS)
        return code_dpl(c);
    if (seg == SEG_SS)
        return stack_dpl(c);
    return !c->unrestricted && is_usable(c, seg) && type_of(c, seg) <= 11 &&
           dpl_of(c, seg) < (selector_of(c, seg) & 3);
}

static bool segment_present(const struct check *c, const struct check_row *row)
{
    return applies(c, row->field) && !(access_of(c, row->field) & SEG_P);
}

#define SEG_RESERVED ((u32)(BITS(11, 8) | BITS(31, 17)))

static bool segment_reserved(const struct check *c, const struct check_row *row)
{
    return applies(c, row->field) && (access_of(c, row->field) & SEG_RESERVED);
}

static bool code_size(const struct check *c, const struct check_row *row)
{
    u32 access = access_of(c, SEG_CS);

    (void)row;
    return !c->v8086 && c->ia32e && (access & SEG_L) && (access & SEG_DB);
}

static bool granularity_wrong(const struct check *c, unsigned seg)
{
    u64 limit = limit_of(c, seg);
    bool pages = access_of(c, seg) & SEG_G;

    return (pages && (limit & 0xfff) != 0xfff) || (!pages && limit >> 20);
}

static bool segment_granularity(const struct check *c, const struct check_row *row)
{
    return applies(c, row->field) && granularity_wrong(c, row->field);
}

// Busy; a 16-bit one only outside IA-32e mode.
static bool task_type(const struct check *c, const struct check_row *row)
{
    u32 type = type_of(c, row->field);

    return type != 11 && (c->ia32e || type != 3);
}

static bool ldt_type(const struct check *c, const struct check_row *row)
{
    return is_usable(c, row->field) && type_of(c, row->field) != 2;
}

// TR, and LDTR if usable: a system segment that is present, with no reserved bit.
static bool system_access(const struct check *c, const struct check_row *row)
{
    u32 access = access_of(c, row->field);

    return (row->field == SEG_TR || is_usable(c, row->field)) &&
           ((access & (SEG_S | SEG_RESERVED)) || !(access & SEG_P));
}

static bool system_granularity(const struct check *c, const struct check_row *row)
{
    return (row->field == SEG_TR || is_usable(c, row->field)) && granularity_wrong(c, row->field);
}

static bool task_unusable(const struct check *c, const struct check_row *row)
{
    return !is_usable(c, row->field);
}

// --- "Checks on Guest RIP, RFLAGS, and SSP" ---

static bool high_alike(const struct check *c, u64 address)
{
    u64 high = ~0ull << c->linear_bits;

    return !(address & high) || (address & high) == high;
}

// In 64-bit code the bits above the CPU's width must be alike; RIP need not be canonical.
static bool rip(const struct check *c, const struct check_row *row)
{
    if (c->ia32e && (access_of(c, SEG_CS) & SEG_L))
        return !high_alike(c, field_of(c, row));
    return field_of(c, row) >> 32;
}

static bool injects(const struct check *c, u8 type)
{
    u64 info = c->word[WORD_EVENT];

    return info && (info >> INFO_TYPE_SHIFT & 7) == type;
}

static bool rflags_fixed(const struct check *c, const struct check_row *row)
{
    return check_reserved(c, row) || !(field_of(c, row) & RFLAGS_FIXED);
}

static bool rflags_vm(const struct check *c, const struct check_row *row)
{
    (void)row;
    return c->v8086 && (c->ia32e || !(get(c, GUEST_CR0) & CR0_PE));
}

static bool rflags_if(const struct check *c, const struct check_row *row)
{
    return injects(c, EVENT_INTERRUPT) && !(field_of(c, row) & RFLAGS_IF);
}

// Need not be canonical either, whatever the mode.
static bool ssp(const struct check *c, const struct check_row *row)
{
    return (field_of(c, row) & 3) || !high_alike(c, field_of(c, row));
}

// --- "Checks on Guest Non-Register State" ---

static u64 activity(const struct check *c)
{
    return get(c, GUEST_ACTIVITY_STATE);
}

static bool activity_unknown(const struct check *c, const struct check_row *row)
{
    (void)row;
    return activity(c) > ACTIVITY_WAIT_SIPI ||
           (activity(c) &&
            !(capability(c, MSR_VMX_MISC) & VMX_MISC_ACTIVITY_HLT << (activity(c) - ACTIVITY_HLT)));
}

static bool halted_cpl(const struct check *c, const struct check_row *row)
{
    (void)row;
    return activity(c) == ACTIVITY_HLT && dpl_of(c, SEG_SS);
}

static bool blocked(const struct check *c)
{
    return get(c, GUEST_INTERRUPTIBILITY) & (BLOCK_STI | BLOCK_MOV_SS);
}

static bool inactive_and_blocked(const struct check *c, const struct check_row *row)
{
    (void)row;
    return activity(c) != ACTIVITY_ACTIVE && blocked(c);
}

// What may be injected into a state: what would end it.
static bool activity_injection(const struct check *c, const struct check_row *row)
{
    u64 info = c->word[WORD_EVENT];
    bool exception = injects(c, EVENT_EXCEPTION), mc = exception && (u8)info == VECTOR_MC;

    (void)row;
    if (!info)
        return false;
    switch (activity(c)) {
    case ACTIVITY_HLT:
        return !injects(c, EVENT_INTERRUPT) && !injects(c, EVENT_NMI) && !mc &&
               !(exception && (u8)info == VECTOR_DB) && !injects(c, EVENT_OTHER);
    case ACTIVITY_SHUTDOWN:
        return !injects(c, EVENT_NMI) && !mc;
    default:
        return activity(c) == ACTIVITY_WAIT_SIPI;
    }
}

static bool both_shadows(const struct check *c, const struct check_row *row)
{
    return (field_of(c, row) & (BLOCK_STI | BLOCK_MOV_SS)) == (BLOCK_STI | BLOCK_MOV_SS);
}

static bool sti_without_if(const struct check *c, const struct check_row *row)
{
    return (field_of(c, row) & BLOCK_STI) && !(get(c, GUEST_RFLAGS) & RFLAGS_IF);
}

static bool blocked_interrupt(const struct check *c, const struct check_row *row)
{
    (void)row;
    return injects(c, EVENT_INTERRUPT) && blocked(c);
}

static bool blocked_nmi(const struct check *c, const struct check_row *row)
{
    return injects(c, EVENT_NMI) && check_reserved(c, row);
}

// With STI or MOV SS blocking, or halted, BS must say whether a single step is due: by the field of
// IA32_DEBUGCTL, whether or not the entry loads that. (Without "load debug controls" L2 has L1's
// BTF, which the CPU below then judges by; it refuses what does not fit, and L1 gets reason 33.)
static bool single_step(const struct check *c, const struct check_row *row)
{
    bool step = (get(c, GUEST_RFLAGS) & RFLAGS_TF) && !(get(c, GUEST_DEBUGCTL) & DEBUGCTL_BTF);

    if (!blocked(c) && activity(c) != ACTIVITY_HLT)
        return false;
    return !!(field_of(c, row) & DR6_BS) != step;
}

// --- the VMCS link pointer ---

// The first word of the VMCS that it points to: revision, and shadow-VMCS indicator.
static bool link_revision(const struct check *c, const struct check_row *row)
{
    bool shadowing = c->word[WORD_SECONDARY] & SECONDARY_VMCS_SHADOWING;
    u32 word = ~0u; // what a read of no memory gives

    guest_read_gpa(c->vcpu, field_of(c, row), &word, sizeof(word));
    return word != (VMCS12_REVISION | (shadowing ? VMCS12_SHADOW : 0));
}

static bool link_to_current(const struct check *c, const struct check_row *row)
{
    return field_of(c, row) == c->n->current;
}

// --- "Checks on Guest Page-Directory-Pointer-Table Entries", with EPT; without, they are in memory
// and the loading of guest state checks them ---

static bool pdptes(const struct check *c, const struct check_row *row)
{
    u64 reserved = (~0ull << c->phys_bits) | BITS(8, 5) | BITS(2, 1);

    if (c->ia32e || !(get(c, GUEST_CR0) & CR0_PG) || !(get(c, GUEST_CR4) & CR4_PAE))
        return false;
    for (unsigned i = 0; i < 4; i++) {
        u64 pdpte = get(c, (enum vmcs_field)(row->field + 2 * i));

        if ((pdpte & 1) && (pdpte & reserved))
            return true;
    }
    return false;
}

#define PAGE_LOW 0xfff
#define EACH_OF_6(name, fails)                                                              \
    {name ": ES", fails, 0, 0, 0, SEG_ES, 0}, {name ": CS", fails, 0, 0, 0, SEG_CS, 0},     \
        {name ": SS", fails, 0, 0, 0, SEG_SS, 0}, {name ": DS", fails, 0, 0, 0, SEG_DS, 0}, \
        {name ": FS", fails, 0, 0, 0, SEG_FS, 0},                                           \
    {                                                                                       \
        name ": GS", fails, 0, 0, 0, SEG_GS, 0                                              \
    }

enum { QUALIFICATION_PDPTE = 2, QUALIFICATION_LINK = 4 };

enum { ROWS_OF_OTHER_STATES = 23, ROWS_FROM_RIP = 9 }; // the last ones
static const struct check_row rows[] = {
    // "Checks on Guest Control Registers, Debug Registers, and MSRs"
    {"guest CR0: fixed bits", cr0, 0, 0, 0, GUEST_CR0, 0},
    {"guest CR0.PG without PE", paging_without_protection, 0, 0, 0, GUEST_CR0, 0},
    {"guest CR4: fixed bits", check_cr4, 0, 0, 0, GUEST_CR4, 0},
    {"guest CR4.CET without CR0.WP", cet_without_wp, 0, 0, 0, GUEST_CR4, 0},
    {"guest IA32_DEBUGCTL", check_reserved, WORD_ENTRY, 0, ENTRY_CTL_LOAD_DEBUG, GUEST_DEBUGCTL,
     ~(u64)(DEBUGCTL_LBR | DEBUGCTL_BTF)},
    {"IA-32e mode guest without CR0.PG or CR4.PAE", ia32e_without_paging, 0, 0, 0, GUEST_CR4, 0},
    {"guest CR4.PCIDE outside IA-32e mode", pcid_without_ia32e, 0, 0, 0, GUEST_CR4, 0},
    {"guest CR3", check_address, 0, 0, 0, GUEST_CR3, 0},
    {"guest DR7", check_reserved, WORD_ENTRY, 0, ENTRY_CTL_LOAD_DEBUG, GUEST_DR7, BITS(63, 32)},
    {"guest IA32_SYSENTER_ESP", check_canonical, 0, 0, 0, GUEST_SYSENTER_ESP, 0},
    {"guest IA32_SYSENTER_EIP", check_canonical, 0, 0, 0, GUEST_SYSENTER_EIP, 0},
    {"guest IA32_S_CET", check_s_cet, WORD_ENTRY, 0, ENTRY_CTL_LOAD_CET, GUEST_S_CET, 0},
    {"guest IA32_INTERRUPT_SSP_TABLE_ADDR", check_canonical, WORD_ENTRY, 0, ENTRY_CTL_LOAD_CET,
     GUEST_INTERRUPT_SSP_TABLE, 0},
    {"guest IA32_PERF_GLOBAL_CTRL", check_reserved, WORD_ENTRY, 0, ENTRY_CTL_LOAD_PERF_GLOBAL,
     GUEST_PERF_GLOBAL_CTRL, ~0ull},
    {"guest IA32_PAT", check_pat, WORD_ENTRY, 0, ENTRY_CTL_LOAD_PAT, GUEST_PAT, 0},
    {"guest IA32_PKRS", check_reserved, WORD_ENTRY, 0, ENTRY_CTL_LOAD_PKRS, GUEST_PKRS,
     BITS(63, 32)},
    // "Checks on Guest Segment Registers"
    {"TI flag: TR", table_indicator, 0, 0, 0, SEG_TR, 0},
    {"TI flag: LDTR", table_indicator, 0, 0, 0, SEG_LDTR, 0},
    {"SS.RPL is not CS.RPL", ss_rpl, 0, 0, 0, SEG_SS, 0},
    EACH_OF_6("virtual-8086 base", v8086_base),
    {"base: TR", long_base, 0, 0, 0, SEG_TR, 0},
    {"base: FS", long_base, 0, 0, 0, SEG_FS, 0},
    {"base: GS", long_base, 0, 0, 0, SEG_GS, 0},
    {"base: LDTR", long_base, 0, 0, 0, SEG_LDTR, 0},
    {"base: CS", short_base, 0, 0, 0, SEG_CS, 0},
    {"base: SS", short_base, 0, 0, 0, SEG_SS, 0},
    {"base: DS", short_base, 0, 0, 0, SEG_DS, 0},
    {"base: ES", short_base, 0, 0, 0, SEG_ES, 0},
    EACH_OF_6("virtual-8086 limit", v8086_limit),
    EACH_OF_6("virtual-8086 access rights", v8086_access),
    EACH_OF_6("type", segment_type),
    EACH_OF_6("S", segment_system),
    EACH_OF_6("DPL", segment_dpl),
    EACH_OF_6("P", segment_present),
    EACH_OF_6("access rights: reserved bits", segment_reserved),
    {"CS.L and D/B", code_size, 0, 0, 0, SEG_CS, 0},
    EACH_OF_6("G", segment_granularity),
    {"type: TR", task_type, 0, 0, 0, SEG_TR, 0},
    {"access rights: TR", system_access, 0, 0, 0, SEG_TR, 0},
    {"G: TR", system_granularity, 0, 0, 0, SEG_TR, 0},
    {"unusable: TR", task_unusable, 0, 0, 0, SEG_TR, 0},
    {"type: LDTR", ldt_type, 0, 0, 0, SEG_LDTR, 0},
    {"access rights: LDTR", system_access, 0, 0, 0, SEG_LDTR, 0},
    {"G: LDTR", system_granularity, 0, 0, 0, SEG_LDTR, 0},
    // "Checks on Guest Descriptor-Table Registers"
    {"guest GDTR base", check_canonical, 0, 0, 0, GUEST_GDTR_BASE, 0},
    {"guest IDTR base", check_canonical, 0, 0, 0, GUEST_IDTR_BASE, 0},
    {"guest GDTR limit", check_reserved, 0, 0, 0, GUEST_GDTR_LIMIT, BITS(31, 16)},
    {"guest IDTR limit", check_reserved, 0, 0, 0, GUEST_IDTR_LIMIT, BITS(31, 16)},
    // From here on, looked at also if nothing is due: these need an event or a state that is not
    // the plain one, and the link pointer leads to L1's memory.
    {"guest RFLAGS.IF", rflags_if, WORD_STATE, 0, 1, GUEST_RFLAGS, 0},
    // "Checks on Guest Non-Register State"
    {"activity state", activity_unknown, WORD_STATE, 0, 1, GUEST_ACTIVITY_STATE, 0},
    {"activity state HLT with SS.DPL", halted_cpl, WORD_STATE, 0, 1, GUEST_ACTIVITY_STATE, 0},
    {"activity state with STI or MOV SS blocking", inactive_and_blocked, WORD_STATE, 0, 1,
     GUEST_ACTIVITY_STATE, 0},
    {"activity state and the event injected", activity_injection, WORD_STATE, 0, 1,
     GUEST_ACTIVITY_STATE, 0},
    {"interruptibility state: reserved bits", check_reserved, WORD_STATE, 0, 1,
     GUEST_INTERRUPTIBILITY, BITS(63, 4)}, // bit 4: no SGX
    {"STI and MOV SS blocking", both_shadows, WORD_STATE, 0, 1, GUEST_INTERRUPTIBILITY, 0},
    {"STI blocking with RFLAGS.IF 0", sti_without_if, WORD_STATE, 0, 1, GUEST_INTERRUPTIBILITY, 0},
    {"an interrupt with STI or MOV SS blocking", blocked_interrupt, WORD_STATE, 0, 1,
     GUEST_INTERRUPTIBILITY, 0},
    {"an NMI with MOV SS blocking", blocked_nmi, WORD_STATE, 0, 1, GUEST_INTERRUPTIBILITY,
     BLOCK_MOV_SS},
    {"SMI blocking outside SMM", check_reserved, WORD_STATE, 0, 1, GUEST_INTERRUPTIBILITY,
     BLOCK_SMI},
    {"pending debug exceptions: reserved bits", check_reserved, WORD_STATE, 0, 1, GUEST_PENDING_DBG,
     ~(BITS(3, 0) | BIT(12) | DR6_BS)}, // RTM: not offered
    {"pending debug exceptions: BS", single_step, WORD_STATE, 0, 1, GUEST_PENDING_DBG, 0},
    {"guest IA32_EFER", efer, WORD_ENTRY, 0, ENTRY_CTL_LOAD_EFER, GUEST_EFER, 0},
    // "Checks on Guest RIP, RFLAGS, and SSP"
    {"guest RIP", rip, 0, 0, 0, GUEST_RIP, 0},
    {"guest RFLAGS: fixed bits", rflags_fixed, 0, 0, 0, GUEST_RFLAGS,
     BITS(63, 22) | BIT(15) | BIT(5) | BIT(3)},
    {"guest RFLAGS.VM", rflags_vm, 0, 0, 0, GUEST_RFLAGS, 0},
    {"guest SSP", ssp, WORD_ENTRY, 0, ENTRY_CTL_LOAD_CET, GUEST_SSP, 0},
    {"an NMI with virtual-NMI blocking", blocked_nmi, WORD_PIN, 0, PIN_VIRTUAL_NMIS,
     GUEST_INTERRUPTIBILITY, BLOCK_NMI},
    {"VMCS link pointer: address", check_address, WORD_LINK, QUALIFICATION_LINK, 1,
     VMCS_LINK_POINTER, PAGE_LOW},
    {"VMCS link pointer: revision", link_revision, WORD_LINK, QUALIFICATION_LINK, 1,
     VMCS_LINK_POINTER, 0},
    {"VMCS link pointer: the current VMCS", link_to_current, WORD_LINK, QUALIFICATION_LINK, 1,
     VMCS_LINK_POINTER, 0},
    // "Checks on Guest Page-Directory-Pointer-Table Entries"
    {"PDPTEs", pdptes, WORD_SECONDARY, QUALIFICATION_PDPTE, SECONDARY_EPT, GUEST_PDPTE0, 0},
};

const struct check_table vmcs12_guest_checks = {rows,
                                                ARRAY_SIZE(rows),
                                                ARRAY_SIZE(rows) - ROWS_OF_OTHER_STATES,
                                                ARRAY_SIZE(rows) - ROWS_FROM_RIP,
                                                WORD_EACH_GUEST,
                                                DUE_GUEST,
                                                DUE_RIP,
                                                REASON_INVALID_GUEST_STATE};
