// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Into an L2: VMCS12's guest state and controls into the model, the MSR-load area, the event to
// inject (SDM vol. 3 "VM Entries" from "Loading Guest State" on).

#include "nested_stage2.h"
#include "vmcs12_switch.h"
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/breakpoint.h>
#include <nestor/device.h>
#include <nestor/log.h>
#include <nestor/string.h>

// --- guest state ---

static void segments_from_vmcs12(struct nested *n, struct guest_state *s)
{
    const struct vmcs12_segments from = vmcs12_segments(n);

    for (unsigned i = 0; i < SEG_COUNT; i++) {
        s->seg[i].selector = (u16)from.selector[i];
        s->seg[i].limit = (u32)from.limit[i];
        s->seg[i].access = (u32)from.access[i];
        s->seg[i].base = from.base[i];
    }
}

// Without "load IA32_EFER" an entry sets LMA, and LME where paging is on ("Loading Guest Control
// Registers, Debug Registers, and MSRs").
static u64 loaded_efer(const struct guest_state *s, u64 efer, bool ia32e)
{
    u64 bits = EFER_LMA | (s->cr0 & CR0_PG ? EFER_LME : 0);

    return (efer & ~bits) | (ia32e ? bits : 0);
}

static u8 injected_type(const struct nested *n)
{
    return vmcs12_read(n, ENTRY_INTERRUPTION_INFO) >> INFO_TYPE_SHIFT & 7;
}

// A pending MTF is no vectored event.
static bool vectoring(const struct nested *n)
{
    return (vmcs12_read(n, ENTRY_INTERRUPTION_INFO) & INFO_VALID) &&
           injected_type(n) != EVENT_OTHER;
}

// Returns `group` if that changes the member, else 0.
static inline u32 change(u64 *member, u64 value, u32 group)
{
    if (likely(*member == value))
        return 0;
    *member = value;
    return group;
}

static inline u32 change32(u32 *member, u64 value, u32 group)
{
    if (likely(*member == (u32)value))
        return 0;
    *member = (u32)value;
    return group;
}

// What L1 keeps some of, and what loads by controls. Returns the groups that change.
static u32 load_shared(struct vcpu *vcpu, struct guest_state *s)
{
    const u64 all = ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT | ENTRY_CTL_LOAD_EFER;
    struct nested *n = vcpu->nested;
    u64 entry = vmcs12_read(n, ENTRY_CONTROLS);
    const struct guest_state *l1 =
        vcpu_state(vcpu, (entry & all) == all ? 0 : GROUP_EFER_PAT | GROUP_DEBUG);
    u32 changed = 0;

    // What of CR0 is not loaded, a VMX guest does not change without Nestor: it need not be pulled.
    changed |= change(
        &s->cr0, (vmcs12_read(n, GUEST_CR0) & CR0_LOADED) | (l1->cr0 & ~(u64)CR0_LOADED), GROUP_CR);
    changed |= change(
        &s->dr7, (entry & ENTRY_CTL_LOAD_DEBUG ? vmcs12_read(n, GUEST_DR7) : l1->dr7) | DR7_FIXED,
        GROUP_DEBUG);
    vcpu->breakpoints |= (s->dr7 & DR7_ENABLES) != 0; // L1's MOV to DR7 need not have enabled any
    // LBR may be set, but has no effect here (core/msr.c).
    changed |= change(&s->debugctl,
                      entry & ENTRY_CTL_LOAD_DEBUG ? vmcs12_read(n, GUEST_DEBUGCTL) & DEBUGCTL_BTF
                                                   : l1->debugctl,
                      GROUP_DEBUG);
    changed |= change(&s->pat, entry & ENTRY_CTL_LOAD_PAT ? vmcs12_read(n, GUEST_PAT) : l1->pat,
                      GROUP_EFER_PAT);
    changed |= change(&s->efer,
                      entry & ENTRY_CTL_LOAD_EFER
                          ? vmcs12_read(n, GUEST_EFER)
                          : loaded_efer(s, l1->efer, entry & ENTRY_CTL_IA32E_GUEST),
                      GROUP_EFER_PAT);
    return changed;
}

// Likewise, of what no exit leaves as an entry would load it, and L1 writes without more to look
// at.
static u32 load_volatile(struct nested *n, struct guest_state *s)
{
    u32 changed = GROUP_RIP;

    s->rip = vmcs12_read(n, GUEST_RIP);
    s->rsp = vmcs12_read(n, GUEST_RSP);
    s->rflags = vmcs12_read(n, GUEST_RFLAGS);
    changed |=
        change32(&s->interruptibility, vmcs12_read(n, GUEST_INTERRUPTIBILITY), GROUP_BLOCKING);
    // An injected event wakes a halted L2, if it has a vector.
    changed |= change32(&s->activity,
                        vectoring(n) ? (u64)ACTIVITY_ACTIVE : vmcs12_read(n, GUEST_ACTIVITY_STATE),
                        GROUP_BLOCKING);
    // Neither of the states behind HLT knows of debug exceptions.
    changed |=
        change(&s->pending_dbg, s->activity <= ACTIVITY_HLT ? vmcs12_read(n, GUEST_PENDING_DBG) : 0,
               GROUP_PENDING_DBG);
    return changed;
}

static void load_guest_state(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    struct guest_state *s = &vcpu->ctx[1].state;

#define LOAD(field, member) s->member = vmcs12_read(n, field);
    VMCS12_PLAIN(LOAD)
    VMCS12_PLAIN_LATE(LOAD)
#undef LOAD
    segments_from_vmcs12(n, s);
    s->gdtr.limit = (u32)vmcs12_read(n, GUEST_GDTR_LIMIT);
    s->idtr.limit = (u32)vmcs12_read(n, GUEST_IDTR_LIMIT);
    load_shared(vcpu, s);
    load_volatile(n, s);
    vmcs12_cet_enter(vcpu, s);
}

// Returns false if one is reserved.
bool vmcs12_load_pdptes(struct vcpu *vcpu, struct guest_state *s)
{
    u64 reserved = ~BITS(cpuid_phys_bits(vcpu->vm) - 1, 0) | BITS(8, 5) | BITS(2, 1);

    if ((s->efer & EFER_LMA) || !(s->cr4 & CR4_PAE) || !(s->cr0 & CR0_PG))
        return true;
    if (guest_read_gpa(vcpu, s->cr3 & BITS(31, 5), s->pdpte, sizeof(s->pdpte)))
        return false;
    for (unsigned i = 0; i < 4; i++)
        if ((s->pdpte[i] & 1) && (s->pdpte[i] & reserved))
            return false;
    return true;
}

// --- entry ---

// L2's own MSR bitmap: what Nestor passes, less what L1 intercepts. Nestor passes few MSRs: only
// their words can ever differ from all ones.
void vmcs12_bitmap_reset(struct vcpu *vcpu)
{
    const u64 *own = (const u64 *)vcpu->vm->msr_bitmap;
    struct nested *n = vcpu->nested;

    memset(vcpu->nested_bitmap, 0xff, PAGE_SIZE);
    for (unsigned i = 0; i < PAGE_SIZE / sizeof(u64); i++)
        if (~own[i] && n->passed_count < ARRAY_SIZE(n->passed))
            n->passed[n->passed_count++] = (u16)i;
}

static void merge_msr_bitmap(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    const u64 *own = (const u64 *)vcpu->vm->msr_bitmap, *l1s = NULL;
    const u16 *word = n->passed, *end = word + n->passed_count;
    u64 *merged = vcpu->nested_bitmap;

    if (vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_MSR_BITMAPS)
        l1s = vm_ram_ptr(vcpu->vm, vmcs12_read(n, MSR_BITMAP), PAGE_SIZE);
    vcpu->ctx[1].ctl.msr_bitmap = merged;
    for (; l1s && word < end; word++)
        merged[*word] = own[*word] | l1s[*word];
    for (; word < end; word++)
        merged[*word] = ~0ull;
}

static void merge_cr_masks(struct nested *n, struct controls *ctl)
{
    u64 mask0 = vmcs12_read(n, CR0_GUEST_HOST_MASK), mask4 = vmcs12_read(n, CR4_GUEST_HOST_MASK);
    // Nestor's own VMCS has unrestricted guest always: what L1 does not allow must exit.
    u64 guarded = vmcs12_secondary(n) & SECONDARY_UNRESTRICTED_GUEST ? 0 : CR0_PE | CR0_PG;

    ctl->cr0_owned = mask0;
    ctl->cr0_mask |= mask0 | guarded;
    ctl->cr0_shadow = (vmcs12_read(n, CR0_READ_SHADOW) & mask0) | (guarded & ~mask0);
    ctl->cr4_owned = mask4;
    ctl->cr4_mask |= mask4;
    ctl->cr4_shadow = vmcs12_read(n, CR4_READ_SHADOW) & mask4;
}

// Controls that are intercepts of the model's, by their bits.
static const struct {
    u32 bit;
    u64 intercept;
} primary_rows[] =
    {
        {PRIMARY_HLT, INTERCEPT_HLT},
        {PRIMARY_INVLPG, INTERCEPT_INVLPG | INTERCEPT_INVPCID},
        {PRIMARY_MWAIT, INTERCEPT_MWAIT},
        {PRIMARY_RDPMC, INTERCEPT_RDPMC},
        {PRIMARY_RDTSC, INTERCEPT_RDTSC},
        {PRIMARY_CR3_LOAD, INTERCEPT_CR3_WRITE},
        {PRIMARY_CR3_STORE, INTERCEPT_CR3_READ},
        {PRIMARY_CR8_LOAD, INTERCEPT_CR8_WRITE},
        {PRIMARY_CR8_STORE, INTERCEPT_CR8_READ},
        {PRIMARY_TPR_SHADOW, INTERCEPT_CR8_READ | INTERCEPT_CR8_WRITE},
        {PRIMARY_MOV_DR, INTERCEPT_DR_READ | INTERCEPT_DR_WRITE},
        {PRIMARY_MTF, INTERCEPT_MTF},
        {PRIMARY_MONITOR, INTERCEPT_MONITOR},
        {PRIMARY_PAUSE, INTERCEPT_PAUSE},
        {PRIMARY_INTERRUPT_WINDOW, INTERCEPT_INTERRUPT_WINDOW},
        {PRIMARY_NMI_WINDOW, INTERCEPT_NMI_WINDOW},
},
  secondary_rows[] = {
      {SECONDARY_DESCRIPTOR_TABLE, INTERCEPT_TABLES_READ | INTERCEPT_TABLES_WRITE},
      {SECONDARY_WBINVD, INTERCEPT_WBINVD},
      {SECONDARY_PAUSE_LOOP, INTERCEPT_PAUSE_LOOP},
      {SECONDARY_RDRAND, INTERCEPT_RDRAND},
      {SECONDARY_RDSEED, INTERCEPT_RDSEED},
};

// Controls without which an instruction is #UD.
static const struct {
    u32 bit, isa;
} isa_rows[] = {
    {SECONDARY_RDTSCP, ISA_RDTSCP},
    {SECONDARY_INVPCID, ISA_INVPCID},
    {SECONDARY_XSAVES, ISA_XSAVES},
    {SECONDARY_USER_WAIT_PAUSE, ISA_USER_WAIT},
};

static void merge_intercepts(struct nested *n, struct controls *ctl)
{
    u64 primary = vmcs12_read(n, PRIMARY_CONTROLS);
    u32 secondary = vmcs12_secondary(n);

    for (unsigned i = 0; i < ARRAY_SIZE(primary_rows); i++)
        if (primary & primary_rows[i].bit)
            ctl->intercepts |= primary_rows[i].intercept;
    for (unsigned i = 0; i < ARRAY_SIZE(secondary_rows); i++)
        if (secondary & secondary_rows[i].bit)
            ctl->intercepts |= secondary_rows[i].intercept;
    for (unsigned i = 0; i < ARRAY_SIZE(isa_rows); i++)
        if (!(secondary & isa_rows[i].bit))
            ctl->disabled_isa |= isa_rows[i].isa;
    ctl->pause_gap = (u32)vmcs12_read(n, PLE_GAP);
    ctl->pause_window = (u32)vmcs12_read(n, PLE_WINDOW);
    ctl->xss_exits = secondary & SECONDARY_XSAVES ? vmcs12_read(n, XSS_EXITING_BITMAP) : 0;
    ctl->exception_bitmap |= (u32)vmcs12_read(n, EXCEPTION_BITMAP);
    if (vmcs12_read(n, PF_ERROR_CODE_MASK) || vmcs12_read(n, PF_ERROR_CODE_MATCH))
        ctl->exception_bitmap |= BIT(VECTOR_PF); // mask and match are looked up at the exit
}

// L2's TSC is L1's, scaled and with the offset of L1's own (SDM vol. 3 "Time-Stamp Counter Offset
// and Multiplier"); a multiplier of 0 in the model is none.
static bool scales_tsc(const struct nested *n)
{
    return (vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_TSC_OFFSETTING) &&
           (vmcs12_secondary(n) & SECONDARY_TSC_SCALING);
}

static u64 scaled_offset(const struct nested *n, u64 offset)
{
    return (u64)((__int128)(s64)offset * vmcs12_read(n, TSC_MULTIPLIER) >> 48);
}

static void compose_tsc(struct nested *n, struct controls *ctl)
{
    u64 multiplier = vmcs12_read(n, TSC_MULTIPLIER);

    if (!(vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_TSC_OFFSETTING))
        return;
    if (scales_tsc(n)) {
        ctl->tsc_offset = scaled_offset(n, ctl->tsc_offset);
        ctl->tsc_multiplier = ctl->tsc_multiplier
                                  ? (u64)((unsigned __int128)ctl->tsc_multiplier * multiplier >> 48)
                                  : multiplier;
    }
    ctl->tsc_offset += vmcs12_read(n, TSC_OFFSET);
}

// The preemption timer counts on as before.
u64 vmcs12_tsc_moved(struct vcpu *vcpu, u64 by)
{
    struct nested *n = vcpu->nested;

    n->timer_end += by;
    return scales_tsc(n) ? scaled_offset(n, by) : by;
}

// L2's controls and stage 2.
static void use_controls(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    struct controls *ctl = &vcpu->ctx[1].ctl;
    struct vcpu_ctx *own = &vcpu->ctx[0];

    if (likely(!(n->due & DUE_MERGE) && !(own->ctl_news | own->ctl_dirty))) {
        merge_msr_bitmap(vcpu); // whose words L1 may change at any time
        nested_stage2_again(vcpu);
        return;
    }
    own->ctl_news = 0;
    n->due &= (u8)~DUE_MERGE;
    nested_base_controls(vcpu);
    merge_intercepts(n, ctl);
    merge_cr_masks(n, ctl);
    merge_msr_bitmap(vcpu);
    compose_tsc(n, ctl);
    vmcs12_use_stage2(vcpu);
}

static void take_injection(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    u64 info = vmcs12_read(n, ENTRY_INTERRUPTION_INFO);

    vcpu->events.mtf_pending = (info & INFO_VALID) && !vectoring(n);
    if (!vectoring(n))
        return;
    vcpu->events.reinject = (struct event){
        .valid = true,
        .vector = (u8)info,
        .type = injected_type(n),
        .has_error = info & INFO_ERROR_CODE,
        .error = (u32)vmcs12_read(n, ENTRY_EXCEPTION_ERROR_CODE),
        .insn_len = (u8)vmcs12_read(n, ENTRY_INSTRUCTION_LENGTH),
    };
}

// --- the MSR areas (SDM vol. 3 "Loading MSRs", "Saving MSRs") ---

// MSRs that the areas can't load: FS_BASE and GS_BASE, which have fields, the x2APIC's, and those
// of microcode updates, for "model-specific reasons".
static bool is_barred(u32 msr)
{
    return msr == MSR_FS_BASE || msr == MSR_GS_BASE || msr >> 8 == MSR_X2APIC_FIRST >> 8 ||
           msr == MSR_UCODE_WRITE || msr == MSR_UCODE_REV;
}

// Loads entry by entry, as WRMSR would at CPL 0. Returns 0, or the number of the entry that fails,
// from 1 on.
u32 vmcs12_load_msrs(struct vcpu *vcpu, gpa_t gpa, u64 count)
{
    struct msr_entry entry;

    for (u32 i = 0; i < count; i++) {
        if (i == VMCS12_MSR_AREA ||
            guest_read_gpa(vcpu, gpa + i * sizeof(entry), &entry, sizeof(entry)) ||
            entry.reserved || is_barred(entry.index) ||
            msr_write_guest(vcpu, entry.index, entry.value))
            return i + 1;
    }
    return 0;
}

// With EPT they are in VMCS12, and were checked there.
static bool load_guest_pdptes(struct vcpu *vcpu)
{
    struct guest_state *s = &vcpu->ctx[1].state;

    if (!(vmcs12_secondary(vcpu->nested) & SECONDARY_EPT))
        return vmcs12_load_pdptes(vcpu, s);
    for (unsigned i = 0; i < ARRAY_SIZE(s->pdpte); i++)
        s->pdpte[i] = vmcs12_read(vcpu->nested, (enum vmcs_field)(GUEST_PDPTE0 + 2 * i));
    return true;
}

// The groups lie one behind the other in guest_state, in pieces of 8 bytes.
static const struct {
    u32 group;
    u16 offset, end;
} pieces[] = {
#define PIECE(group, first, last)                                                           \
    {                                                                                       \
        group, offsetof(struct guest_state, first),                                         \
            offsetof(struct guest_state, last) + sizeof(((struct guest_state *)NULL)->last) \
    }
    PIECE(GROUP_RIP, rip, rflags),
    PIECE(GROUP_CR, cr0, cr4),
    PIECE(GROUP_PDPTE, pdpte, pdpte),
    PIECE(GROUP_DATA, seg[SEG_ES], seg[SEG_ES]),
    PIECE(GROUP_CODE, seg[SEG_CS], seg[SEG_SS]),
    PIECE(GROUP_DATA, seg[SEG_DS], seg[SEG_DS]),
    PIECE(GROUP_SYSTEM, seg[SEG_FS], seg[SEG_TR]),
    PIECE(GROUP_TABLES, gdtr, idtr),
    PIECE(GROUP_SYSENTER, sysenter_cs, sysenter_eip),
    PIECE(GROUP_EFER_PAT, efer, pat),
    PIECE(GROUP_DEBUG, dr7, debugctl),
    PIECE(GROUP_CET, s_cet, interrupt_ssp_table),
    PIECE(GROUP_BLOCKING, interruptibility, activity),
    PIECE(GROUP_PENDING_DBG, pending_dbg, pending_dbg),
#undef PIECE
};

static u32 changed_groups(const struct guest_state *before, const struct guest_state *now)
{
    u32 changed = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(pieces); i++)
        for (unsigned at = pieces[i].offset; at < pieces[i].end; at += 8)
            if (*(const u64 *)((const u8 *)before + at) != *(const u64 *)((const u8 *)now + at)) {
                changed |= pieces[i].group;
                break;
            }
    return changed;
}

// Whether ctx[1] is what VMCS12 says but for load_shared(), load_volatile() and CET's state: what
// the last exit saved, in a mode whose PDPTEs do not count.
static bool is_kept(const struct vcpu *vcpu)
{
    const struct vcpu_ctx *l2 = &vcpu->ctx[1];
    u32 missing = GROUP_ALL_CTX & ~(u32)(GROUP_CET | GROUP_PDPTE | VMCS12_LATE) & ~l2->valid;

    return !(vcpu->nested->due & DUE_LOAD) && !missing && (l2->state.efer & EFER_LMA) &&
           (likely(l2->valid & GROUP_CET) || !vmcs12_cet_group(vcpu));
}

// L2's state from VMCS12. What it has of that already since its last exit is not written again.
static bool load_all(struct vcpu *vcpu)
{
    struct vcpu_ctx *l2 = &vcpu->ctx[1];
    struct guest_state before;
    bool loaded;

    vmcs12_settle(vcpu);
    before = l2->state;
    load_guest_state(vcpu);
    loaded = load_guest_pdptes(vcpu);
    l2->dirty |= (GROUP_ALL_CTX & ~l2->valid) | changed_groups(&before, &l2->state);
    l2->valid = GROUP_ALL_CTX;
    vcpu->nested->due &= (u8)~DUE_LOAD;
    return loaded;
}

static bool load_l2(struct vcpu *vcpu)
{
    struct vcpu_ctx *l2 = &vcpu->ctx[1];

    if (!is_kept(vcpu))
        return load_all(vcpu);
    l2->dirty |= load_shared(vcpu, &l2->state) | load_volatile(vcpu->nested, &l2->state);
    if (vmcs12_has_cet(vcpu))
        l2->dirty |= vmcs12_cet_enter(vcpu, &l2->state);
    return likely(l2->state.efer & EFER_LMA) || load_all(vcpu);
}

// "Changes to Instruction Behavior in VMX Non-Root Operation": IRET ends the blocking of NMIs
// without NMI exiting, and that of virtual NMIs; between the two it does not.
static bool nmis_stay_blocked(const struct nested *n)
{
    bool injected = vectoring(n) && injected_type(n) == EVENT_NMI;

    return (vmcs12_read(n, PIN_BASED_CONTROLS) & (PIN_NMI | PIN_VIRTUAL_NMIS)) == PIN_NMI &&
           (injected || (vmcs12_read(n, GUEST_INTERRUPTIBILITY) & BLOCK_NMI));
}

// Whether there may be something to do before L2's first instruction beside what core knows of: a
// debug exception, or an exit that waits for no event.
static bool looks_at_boundary(const struct vcpu *vcpu)
{
    const struct nested *n = vcpu->nested;

    return vcpu->ctx[1].state.pending_dbg ||
           (vmcs12_read(n, PRIMARY_CONTROLS) &
            (PRIMARY_TPR_SHADOW | PRIMARY_NMI_WINDOW | PRIMARY_INTERRUPT_WINDOW)) ||
           (vmcs12_read(n, PIN_BASED_CONTROLS) & PIN_PREEMPTION_TIMER);
}

void vmcs12_enter(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    u32 failed;

    if (!load_l2(vcpu)) {
        vmcs12_entry_failed(vcpu, REASON_INVALID_GUEST_STATE, 2); // qualification 2: PDPTE loading
        return;
    }
    if (vmcs12_read(n, ENTRY_MSR_LOAD_COUNT)) // may change what is unsaved, and fail then
        vmcs12_settle(vcpu);
    if (vmcs12_has_cet(vcpu))
        vmcs12_pkrs_enter(vcpu);
    use_controls(vcpu);
    nested_enter_l2(vcpu);
    failed = vmcs12_load_msrs(vcpu, vmcs12_read(n, ENTRY_MSR_LOAD_ADDRESS),
                              vmcs12_read(n, ENTRY_MSR_LOAD_COUNT));
    if (failed) {
        vmcs12_entry_failed(vcpu, REASON_MSR_LOADING, failed);
        return;
    }
    n->was_launched = n->vmcs.launched;
    n->vmcs.launched = 1;
    n->nmis_stay_blocked = nmis_stay_blocked(n);
    take_injection(vcpu);
    vcpu->events.debug_check = looks_at_boundary(vcpu);
    vmcs12_timer_start(vcpu);
    vmcs12_apic_enter(vcpu);
}
