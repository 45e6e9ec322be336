// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMRUN: VMCB12's state and controls into the model (APM vol. 2, 15.5 "VMRUN Instruction"; 15.9 to
// 15.11 intercepts and permission maps; 15.16 TLB control; 15.20 event injection). What the CPUID
// of this guest does not offer is ignored, as by a CPU without it.

#include "nested_stage2.h"
#include "vmcb12.h"
#include <arch/x86/regs.h>
#include <nestor/breakpoint.h>
#include <nestor/log.h>
#include <nestor/string.h>

struct segment vmcb12_get_segment(const struct vmcb_segment *v)
{
    struct segment s = {.selector = v->selector, .limit = v->limit, .base = v->base};

    s.access = (v->attrib & 0xffu) | (v->attrib & 0xf00u) << 4;
    if (!(s.access & SEG_P))
        s.access |= SEG_UNUSABLE;
    return s;
}

struct vmcb_segment vmcb12_put_segment(const struct segment *s)
{
    struct vmcb_segment v = {.selector = s->selector, .limit = s->limit, .base = s->base};

    v.attrib = (u16)((s->access & 0xff) | (s->access >> 4 & 0xf00));
    if (s->access & SEG_UNUSABLE)
        v.attrib &= (u16)~SEG_P;
    return v;
}

// --- VMCB12 as it is read ---

// Whether the words from `first` on, up to `behind`, are others than at the last time: then they
// are taken. With constants it is three moves a word.
static inline __attribute__((always_inline)) bool take(struct vmcb *v, const struct vmcb *from,
                                                       size_t first, size_t behind)
{
    u64 *to = (u64 *)v + first / sizeof(u64), differs = 0;
    const u64 *word = (const u64 *)from + first / sizeof(u64);
    size_t count = behind / sizeof(u64) - first / sizeof(u64);

#pragma GCC unroll 8
    for (size_t i = 0; i < count; i++)
        differs |= to[i] ^ word[i];
    if (likely(!differs))
        return false;
    memcpy(to, word, count * sizeof(u64));
    return true;
}

#define TAKE(first, behind) \
    take(v, from, offsetof(struct vmcb, first), offsetof(struct vmcb, behind))

static u32 read_controls(struct nested *n, const struct vmcb *from)
{
    struct vmcb *v = &n->vmcb;
    u32 news = 0;

    if (TAKE(intercept, reserved018) | TAKE(iopm_base_pa, guest_asid))
        news |= CTL_NEW | CHECK_NEW;
    if (TAKE(guest_asid, v_tpr) | TAKE(np_enable, avic_apic_bar) | TAKE(n_cr3, lbr_control))
        news |= CHECK_NEW;
    v->pause_filter_threshold = from->pause_filter_threshold;
    n->pauses_left = v->pause_filter_count = from->pause_filter_count;
    memcpy(&v->v_tpr, &from->v_tpr, sizeof(u64));
    v->interrupt_shadow = from->interrupt_shadow;
    v->eventinj = from->eventinj;
    v->lbr_control = from->lbr_control;
    v->nrip = from->nrip;
    if (unlikely(v->lbr_control & SVM_VIRTUAL_LBR))
        memcpy(&v->dbgctl, &from->dbgctl,
               offsetof(struct vmcb, reserved698) - offsetof(struct vmcb, dbgctl));
    return v->eventinj & SVM_EVENT_V ? news | CHECK_NEW : news;
}

static u32 read_state(struct nested *n, const struct vmcb *from)
{
    struct vmcb *v = &n->vmcb;
    u32 news = 0;

    if (TAKE(es, fs) | TAKE(cpl, efer))
        news |= GROUP_CODE | GROUP_DATA;
    if (TAKE(gdtr, ldtr) | TAKE(idtr, tr))
        news |= GROUP_TABLES;
    if (TAKE(efer, reserved4d8) | TAKE(g_pat, dbgctl))
        news |= GROUP_EFER_PAT;
    if (TAKE(cr4, dr7))
        news |= GROUP_CR | GROUP_EFER_PAT; // LMA follows from CR0.PG
    if (TAKE(dr7, rflags))
        news |= GROUP_DEBUG;
    v->rflags = from->rflags;
    v->rip = from->rip;
    v->rsp = from->rsp;
    v->rax = from->rax;
    v->cr2 = from->cr2;
    return news ? news | CHECK_NEW : 0;
}

u32 vmcb12_read(struct nested *n, const struct vmcb *from)
{
    return read_controls(n, from) | read_state(n, from);
}

// --- state ---

static void load_segments(struct guest_state *s, const struct vmcb *v)
{
    s->seg[SEG_ES] = vmcb12_get_segment(&v->es);
    s->seg[SEG_CS] = vmcb12_get_segment(&v->cs);
    s->seg[SEG_SS] = vmcb12_get_segment(&v->ss);
    s->seg[SEG_DS] = vmcb12_get_segment(&v->ds);
    // The CPL field counts; the model keeps it in SS.DPL.
    s->seg[SEG_SS].access = (s->seg[SEG_SS].access & ~(u32)SEG_DPL) | (u32)(v->cpl & 3)
                                                                          << SEG_DPL_SHIFT;
}

static void load_tables(struct guest_state *s, const struct vmcb *v)
{
    s->gdtr = (struct table_register){v->gdtr.base, v->gdtr.limit & 0xffff};
    s->idtr = (struct table_register){v->idtr.base, v->idtr.limit & 0xffff};
}

// LMA is not loaded but follows from LME and PG.
static u64 efer_of(const struct vmcb *v)
{
    bool lma = (v->efer & EFER_LME) && (v->cr0 & CR0_PG);

    return (v->efer & ~EFER_LMA) | (lma ? EFER_LMA : 0);
}

static void load_groups(struct guest_state *s, const struct vmcb *v, u32 groups)
{
    if (groups & (GROUP_CODE | GROUP_DATA))
        load_segments(s, v);
    if (groups & GROUP_TABLES)
        load_tables(s, v);
    s->cr0 = v->cr0;
    s->cr3 = v->cr3;
    s->cr4 = v->cr4;
    s->efer = efer_of(v);
    s->dr7 = v->dr7 | DR7_FIXED;
}

// The shared groups are L1's until here: what VMRUN loads of them is changed in the model. Of the
// others that is what L1 has changed in VMCB12 since the last exit.
static void load_state(struct vcpu *vcpu, const struct vmcb *v, u32 groups)
{
    struct guest_state *s = &vcpu->ctx[1].state;

    if (groups) {
        load_groups(s, v, groups);
        vcpu->ctx[1].valid |= groups;
        vcpu->ctx[1].dirty |= groups;
    }
    s->rip = v->rip;
    s->rsp = v->rsp;
    s->rflags = (v->rflags & RFLAGS_KNOWN) | RFLAGS_FIXED;
    // NMI blocking is the CPU's, whatever runs on it.
    s->interruptibility = (v->interrupt_shadow & 1 ? BLOCK_STI : 0) |
                          (vcpu->ctx[0].state.interruptibility & BLOCK_NMI);
    s->activity = ACTIVITY_ACTIVE;
    s->pending_dbg = 0;
    vcpu->gpr[GPR_RAX] = v->rax;
    vcpu->shared_valid |= GROUP_CR2 | GROUP_DR6;
    vcpu->shared_dirty |= GROUP_CR2 | GROUP_DR6;
    vcpu->cr2 = v->cr2;
    vcpu->dr6 = (v->dr6 & 0xe00f) | DR6_FIXED;
    vcpu->breakpoints |= (v->dr7 & DR7_ENABLES) != 0;
}

// --- controls ---

// L2's own MSR map: what Nestor passes, less what L1 intercepts. All but a few words of Nestor's
// are full of ones, and so is the rest of the merged map from its creation on.
static void merge_msrpm(struct vcpu *vcpu, const struct vmcb *v)
{
    u64 *merged = vcpu->nested_bitmap, differs = 0;
    const u64 *own = (const u64 *)vcpu->vm->msr_bitmap, *l1s;
    struct nested *n = vcpu->nested;

    if (!(v->intercept[SVM_WORD_3] & SVM_INTERCEPT_MSR))
        return; // Nestor's own
    l1s = vm_ram_ptr(vcpu->vm, v->msrpm_base_pa & PAGE_MASK, MSRPM_SIZE);
    for (unsigned i = 0; i < n->open_count; i++) {
        u64 word = own[n->open[i]] | l1s[n->open[i]];

        differs |= merged[n->open[i]] ^ word;
        merged[n->open[i]] = word;
    }
    vcpu->ctx[1].ctl.msr_bitmap = merged;
    if (differs)
        vcpu->ctx[1].ctl_dirty |= CTL_BITMAPS;
}

void vmcb12_prepare_msrpm(struct vcpu *vcpu)
{
    u64 *merged = vcpu->nested_bitmap;
    const u64 *own = (const u64 *)vcpu->vm->msr_bitmap;
    struct nested *n = vcpu->nested;

    for (u16 i = 0; i < MSRPM_SIZE / 8; i++) {
        merged[i] = ~0ull;
        if (own[i] != ~0ull && n->open_count < ARRAY_SIZE(n->open))
            n->open[n->open_count++] = i;
    }
}

// What L1 wants beside what Nestor needs; the neutral controls name it, the answer is looked up in
// VMCB12 at the exit.
static const struct {
    u8 word;
    u32 bits;
    u64 intercept;
} intercept_rows[] = {
    {SVM_WORD_3, SVM_INTERCEPT_CR0_SEL_WRITE, INTERCEPT_CR0_SELECTIVE},
    {SVM_WORD_3, SVM_INTERCEPT_IDTR_READ, INTERCEPT_IDTR_READ},
    {SVM_WORD_3, SVM_INTERCEPT_GDTR_READ, INTERCEPT_GDTR_READ},
    {SVM_WORD_3, SVM_INTERCEPT_LDTR_READ, INTERCEPT_LDTR_READ},
    {SVM_WORD_3, SVM_INTERCEPT_TR_READ, INTERCEPT_TR_READ},
    {SVM_WORD_3, SVM_INTERCEPT_IDTR_WRITE, INTERCEPT_IDTR_WRITE},
    {SVM_WORD_3, SVM_INTERCEPT_GDTR_WRITE, INTERCEPT_GDTR_WRITE},
    {SVM_WORD_3, SVM_INTERCEPT_LDTR_WRITE, INTERCEPT_LDTR_WRITE},
    {SVM_WORD_3, SVM_INTERCEPT_TR_WRITE, INTERCEPT_TR_WRITE},
    {SVM_WORD_3, SVM_INTERCEPT_RDTSC, INTERCEPT_RDTSC},
    {SVM_WORD_3, SVM_INTERCEPT_RDPMC, INTERCEPT_RDPMC},
    {SVM_WORD_3, SVM_INTERCEPT_PUSHF, INTERCEPT_PUSHF},
    {SVM_WORD_3, SVM_INTERCEPT_POPF, INTERCEPT_POPF},
    {SVM_WORD_3, SVM_INTERCEPT_RSM, INTERCEPT_RSM},
    {SVM_WORD_3, SVM_INTERCEPT_IRET, INTERCEPT_IRET},
    {SVM_WORD_3, SVM_INTERCEPT_SWINT, INTERCEPT_SOFT_INT},
    {SVM_WORD_3, SVM_INTERCEPT_PAUSE, INTERCEPT_PAUSE},
    {SVM_WORD_3, SVM_INTERCEPT_HLT, INTERCEPT_HLT},
    {SVM_WORD_3, SVM_INTERCEPT_INVLPG, INTERCEPT_INVLPG},
    {SVM_WORD_4, SVM_INTERCEPT_RDTSCP, INTERCEPT_RDTSCP},
    {SVM_WORD_4, SVM_INTERCEPT_ICEBP, INTERCEPT_ICEBP},
    {SVM_WORD_4, SVM_INTERCEPT_WBINVD, INTERCEPT_WBINVD},
    {SVM_WORD_4, SVM_INTERCEPT_MONITOR, INTERCEPT_MONITOR},
    {SVM_WORD_4, SVM_INTERCEPT_MWAIT | SVM_INTERCEPT_MWAIT_CONDITIONAL, INTERCEPT_MWAIT},
    {SVM_WORD_4, SVM_INTERCEPT_RDPRU, INTERCEPT_RDPRU},
    {SVM_WORD_5, SVM_INTERCEPT_INVPCID, INTERCEPT_INVPCID},
};

// Most L1s run an L2 with the same controls again and again: they are merged anew where L1's or
// Nestor's own have changed.
static void merge_controls(struct vcpu *vcpu, const struct vmcb *v, bool changed)
{
    struct controls *ctl = &vcpu->ctx[1].ctl;
    struct vcpu_ctx *own = &vcpu->ctx[0];

    if (likely(!changed && !((own->ctl_news | own->ctl_dirty) & ~(u32)CTL_GIF))) {
        merge_msrpm(vcpu, v); // whose words L1 may change at any time
        return;
    }
    own->ctl_news = 0;
    nested_base_controls(vcpu);
    for (unsigned i = 0; i < ARRAY_SIZE(intercept_rows); i++)
        if (v->intercept[intercept_rows[i].word] & intercept_rows[i].bits)
            ctl->intercepts |= intercept_rows[i].intercept;
    // A trap behind the write takes an intercept of the write.
    ctl->cr_intercepts = v->intercept[SVM_WORD_CR] | (v->intercept[SVM_WORD_4] & BITS(31, 16));
    ctl->dr_intercepts = v->intercept[SVM_WORD_DR];
    ctl->exception_bitmap |= v->intercept[SVM_WORD_EXCEPTIONS];
    ctl->tsc_offset += v->tsc_offset;
    merge_msrpm(vcpu, v);
}

// --- the event ---

// What is injected as INT n, INT3 or INTO pushes nRIP where nRIP save is offered (15.20), else RIP.
static void set_return(struct vcpu *vcpu, struct event *event)
{
    const struct vmcb *v = &vcpu->nested->vmcb;
    u64 length = v->nrip - v->rip;

    event->rip_is_next = true;
    if (!vmcb12_has(vcpu, SVM_FEATURE_NRIPS) || !length)
        return;
    if (length > 15) { // no instruction has it
        vcpu->ctx[1].state.rip = v->nrip;
        return;
    }
    event->rip_is_next = false;
    event->insn_len = (u8)length;
}

static void take_eventinj(struct vcpu *vcpu, u64 eventinj)
{
    struct event event = {
        .valid = true,
        .vector = (u8)eventinj,
        .type = eventinj >> SVM_EVENT_TYPE_SHIFT & 7,
        .has_error = eventinj & SVM_EVENT_EV,
        .error = (u32)(eventinj >> 32),
    };

    if (!(eventinj & SVM_EVENT_V))
        return;
    if (event.type == SVM_EVENT_NMI) {
        event.vector = VECTOR_NMI; // the field is ignored
        event.nmis_open = true;
    }
    if (event.type == SVM_EVENT_EXCEPTION &&
        (event.vector == VECTOR_BP || event.vector == VECTOR_OF))
        event.type = EVENT_SOFT_EXCEPTION;
    if (event.type == EVENT_SOFT_EXCEPTION || event.type == EVENT_SOFT_INTERRUPT)
        set_return(vcpu, &event);
    if (event.type != EVENT_EXCEPTION)
        event.has_error = false;
    vcpu->events.reinject = event;
}

// Without nested paging the pointers of PAE paging are loaded, and checked, by VMRUN. (Bit 5, which
// QEMU sets in them, is left out as in mmu/guest_walk.c.)
static bool bad_pdptes(struct vcpu *vcpu, const struct vmcb *v)
{
    u64 pdpte[4], reserved;

    if ((vmcb12_has(vcpu, SVM_FEATURE_NP) && (v->np_enable & 1)) || !(v->cr0 & CR0_PG) ||
        !(v->cr4 & CR4_PAE) || (v->efer & EFER_LME))
        return false;
    reserved = ~BITS(cpuid_phys_bits(vcpu->vm) - 1, 0) | BITS(8, 6) | BITS(2, 1);
    if (guest_read_gpa(vcpu, v->cr3 & BITS(31, 5), pdpte, sizeof(pdpte)))
        return true;
    for (unsigned i = 0; i < ARRAY_SIZE(pdpte); i++)
        if ((pdpte[i] & 1) && (pdpte[i] & reserved))
            return true;
    return false;
}

// A map that is no memory has no meaning of its own.
static bool bad_msrpm(struct vcpu *vcpu, const struct vmcb *v)
{
    return (v->intercept[SVM_WORD_3] & SVM_INTERCEPT_MSR) &&
           !vm_ram_ptr(vcpu->vm, v->msrpm_base_pa & PAGE_MASK, MSRPM_SIZE);
}

// All but the host's paging is constant while EFER.SVME is set.
static const char *check(struct vcpu *vcpu, const struct vmcb *v, bool host_paging)
{
    struct nested *n = vcpu->nested;
    const char *what;

    n->limits = (struct vmcb12_limits){
        .cr4 = vcpu->cr4_allowed,
        .efer = efer_allowed(vcpu),
        .phys_bits = cpuid_phys_bits(vcpu->vm),
        .long_mode = cpuid_has(vcpu->vm, 0x80000001, 3, 29),
        .nested_paging = vmcb12_has(vcpu, SVM_FEATURE_NP),
        .host_paging = host_paging,
        .page1g = cpuid_has(vcpu->vm, 0x80000001, 3, 26),
    };
    what = vmcb12_check(v, &n->limits);
    if (!what && bad_msrpm(vcpu, v))
        what = "15.11: the MSRPM is no memory";
    n->passed = !what;
    return what;
}

// NULL: legal. What has passed and is the same still does; so does what L2 has made of it, but for
// SVME, which L2 can clear.
static const char *what_is_illegal(struct vcpu *vcpu, const struct vmcb *v, u32 news)
{
    bool host_paging = vcpu_state(vcpu, GROUP_CR)->cr0 & CR0_PG;
    const struct nested *n = vcpu->nested;
    const char *what = NULL;

    if (unlikely((news & CHECK_NEW) || !n->passed || n->limits.host_paging != host_paging ||
                 !(v->efer & EFER_SVME)))
        what = check(vcpu, v, host_paging);
    if (!what && bad_pdptes(vcpu, v)) // in memory
        what = "15.5.1: a reserved bit of a PDPTE is set";
    return what;
}

// The tables at nCR3 are of the mode that L1 itself is in (15.25.3).
static void use_stage2(struct vcpu *vcpu, const struct vmcb *v)
{
    const struct guest_state *l1 = vcpu_state(vcpu, GROUP_CR | GROUP_EFER_PAT);
    struct l1_stage2 npt = {
        .kind = L1_STAGE2_NPT,
        .phys_bits = vcpu->nested->limits.phys_bits,
        .page1g = vcpu->nested->limits.page1g,
        .root = v->n_cr3,
        .mode = l1_npt_mode(l1->cr4, l1->efer),
    };

    if (unlikely(v->tlb_control != SVM_TLB_NOTHING))
        nested_tlb_control(vcpu, v->guest_asid, v->tlb_control);
    nested_tag_use(vcpu, v->guest_asid);
    nested_stage2_use(vcpu, vmcb12_npt(vcpu) ? &npt : &(struct l1_stage2){.kind = L1_STAGE2_NONE},
                      NULL);
}

// One PAT for both, but with nested paging (15.25.8).
static void load_pat(struct vcpu *vcpu, u64 pat)
{
    if (vcpu->ctx[1].state.pat == pat)
        return;
    vcpu->ctx[1].state.pat = pat;
    vcpu->ctx[1].dirty |= GROUP_EFER_PAT;
}

// Reserved bits of DEBUGCTL are ignored (15.23).
static void load_branches(struct vcpu *vcpu, const struct vmcb *v)
{
    struct guest_state *s = &vcpu->ctx[1].state;

    if (vmcb12_lbrv(vcpu)) {
        s->debugctl = v->dbgctl & (DEBUGCTL_LBR | DEBUGCTL_BTF);
        s->last_branch[0] = v->br_from;
        s->last_branch[1] = v->br_to;
        s->last_branch[2] = v->last_excp_from;
        s->last_branch[3] = v->last_excp_to;
    } else {
        vmcb12_hand_branches(vcpu_state(vcpu, GROUP_DEBUG), s);
    }
    vcpu->ctx[1].dirty |= GROUP_DEBUG;
}

void vmcb12_enter(struct vcpu *vcpu, u32 news)
{
    struct nested *n = vcpu->nested;
    const struct vmcb *v = &n->vmcb;
    const struct guest_state *l1 = vcpu_state(vcpu, GROUP_RIP | GROUP_EFER_PAT | GROUP_BLOCKING);
    const char *illegal;

    n->host_if = l1->rflags & RFLAGS_IF;
    illegal = what_is_illegal(vcpu, v, news);
    if (!n->loaded)
        news |= GROUP_ALL_CTX | CTL_NEW;
    n->loaded = !illegal;
    if (illegal) {
        log_debug("guest %s: VMRUN refused: %s", vcpu->vm->config->name, illegal);
        vmcb12_exit_invalid(vcpu);
        return;
    }
    load_state(vcpu, v, news & GROUP_ALL_CTX);
    if (unlikely(backend->last_branches))
        load_branches(vcpu, v);
    load_pat(vcpu, vmcb12_npt(vcpu) ? v->g_pat : l1->pat);
    merge_controls(vcpu, v, news & CTL_NEW);
    use_stage2(vcpu, v);
    vmcb12_set_gif(vcpu, true);
    nested_enter_l2(vcpu);
    take_eventinj(vcpu, v->eventinj);
    vmcb12_note_virtual(vcpu);
}
