// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Guest state between the model and the VMCB's state save area (APM vol. 2 appendix B, table B-2),
// and what no VMCB holds: DR0-3, XCR0, XSS, TSC_AUX, the FPU. A VMCB is memory: reading and writing
// groups costs moves, but the CPU may keep groups of it whose clean bit is set, so each write
// clears its bit.
//
// The VMLOAD group (FS, GS, TR, LDTR, SYSENTER, STAR.., KernelGSBase) is moved to the VMCB by the
// stub on every exit. SVM has no field for PDPTEs, pending debug exceptions and (here) CET: the
// model's value is the only one. DEBUGCTL and the last branches are the VMCB's where the CPU has
// LBR virtualization (15.23), else there are none.

#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/switched.h>
#include <nestor/cpu.h>
#include <nestor/string.h>
#include <nestor/tlb.h>

#include "mode.h"

#define MSR_PRED_CMD_IBPB BIT(0)

// --- segments: the descriptor's attribute bits are packed into 12; unusable means not present ---

static inline void unpack(struct segment *seg, const struct vmcb_segment *hw)
{
    u32 access = (hw->attrib & 0xffu) | (hw->attrib & 0xf00u) << 4;

    seg->selector = hw->selector;
    seg->access = access & SEG_P ? access : access | (u32)SEG_UNUSABLE;
    seg->limit = hw->limit;
    seg->base = hw->base;
}

static struct vmcb_segment pack(const struct segment *seg)
{
    u32 attrib = (seg->access & 0xff) | (seg->access & (SEG_AVL | SEG_L | SEG_DB | SEG_G)) >> 4;

    if (seg->access & SEG_UNUSABLE)
        attrib &= ~(u32)SEG_P;
    return (struct vmcb_segment){
        .selector = seg->selector, .attrib = (u16)attrib, .limit = seg->limit, .base = seg->base};
}

// The model's CPL is SS.DPL, as in VMX; the VMCB has a field of its own, and SS may be a null
// segment with any DPL.
static void take_code(struct backend_ctx *hw, struct guest_state *state)
{
    const struct vmcb *vmcb = hw->vmcb;
    struct segment *ss = &state->seg[SEG_SS];

    hw->seen_cs = vmcb->cs;
    hw->seen_ss = vmcb->ss;
    hw->seen_cpl = vmcb->cpl;
    unpack(&state->seg[SEG_CS], &vmcb->cs);
    unpack(ss, &vmcb->ss);
    ss->access = (ss->access & ~(u32)SEG_DPL) | (u32)vmcb->cpl << SEG_DPL_SHIFT;
}

static void pull_data(struct vcpu_ctx *ctx)
{
    struct backend_ctx *hw = ctx->hw;
    const struct vmcb *vmcb = hw->vmcb;

    if (hw->seen_data && !(svm_segment_differs(&vmcb->ds, &hw->seen_ds) |
                           svm_segment_differs(&vmcb->es, &hw->seen_es)))
        return;
    hw->seen_ds = vmcb->ds;
    hw->seen_es = vmcb->es;
    hw->seen_data = true;
    unpack(&ctx->state.seg[SEG_DS], &vmcb->ds);
    unpack(&ctx->state.seg[SEG_ES], &vmcb->es);
    ctx->news |= GROUP_DATA;
}

static u8 cpl_of(const struct guest_state *state, u64 cr0)
{
    if (!(cr0 & CR0_PE))
        return 0;
    if (state->rflags & RFLAGS_VM)
        return 3;
    return (u8)((state->seg[SEG_SS].access & SEG_DPL) >> SEG_DPL_SHIFT);
}

static void pull_system(struct guest_state *state, const struct vmcb *vmcb)
{
    unpack(&state->seg[SEG_FS], &vmcb->fs);
    unpack(&state->seg[SEG_GS], &vmcb->gs);
    unpack(&state->seg[SEG_LDTR], &vmcb->ldtr);
    unpack(&state->seg[SEG_TR], &vmcb->tr);
    state->seg[SEG_TR].access |= 2; // always busy; the CPU need not show it here
}

static void write_system(const struct guest_state *state, struct vmcb *vmcb)
{
    vmcb->fs = pack(&state->seg[SEG_FS]);
    vmcb->gs = pack(&state->seg[SEG_GS]);
    vmcb->ldtr = pack(&state->seg[SEG_LDTR]);
    vmcb->tr = pack(&state->seg[SEG_TR]);
}

static void pull_tables(struct guest_state *state, const struct vmcb *vmcb)
{
    state->gdtr = (struct table_register){.base = vmcb->gdtr.base, .limit = vmcb->gdtr.limit};
    state->idtr = (struct table_register){.base = vmcb->idtr.base, .limit = vmcb->idtr.limit};
}

static void write_tables(const struct guest_state *state, struct vmcb *vmcb)
{
    vmcb->gdtr.base = state->gdtr.base;
    vmcb->gdtr.limit = state->gdtr.limit;
    vmcb->idtr.base = state->idtr.base;
    vmcb->idtr.limit = state->idtr.limit;
}

// --- pull ---

// Who needs one of the mode's groups needs the others next. What is valid may be newer.
static void pull_mode(struct vcpu *vcpu, struct vcpu_ctx *ctx)
{
    const struct vmcb *vmcb = ctx->hw->vmcb;
    struct guest_state *state = &ctx->state;
    u32 missing = SVM_MODE_GROUPS & ~ctx->valid;

    ctx->valid |= missing;
    if (likely(!svm_mode_differs(ctx)))
        return;
    ctx->mode = ++vcpu->modes;
    if (missing & GROUP_CR) {
        state->cr0 = vmcb->cr0;
        state->cr3 = vmcb->cr3;
        state->cr4 = vmcb->cr4 | ctx->hw->cr4_held;
    }
    if (missing & GROUP_EFER_PAT)
        state->efer = vmcb->efer ^ ctx->hw->efer_added;
    if ((missing & GROUP_CODE) && svm_code_differs(ctx->hw)) {
        take_code(ctx->hw, state);
        ctx->news |= GROUP_CODE;
    }
}

static void pull_debug(struct guest_state *state, const struct vmcb *vmcb)
{
    state->dr7 = vmcb->dr7;
    if (!svm_has(SVM_FEATURE_LBR_VIRT))
        return;
    state->debugctl = vmcb->dbgctl;
    state->last_branch[0] = vmcb->br_from;
    state->last_branch[1] = vmcb->br_to;
    state->last_branch[2] = vmcb->last_excp_from;
    state->last_branch[3] = vmcb->last_excp_to;
}

static void pull_others(struct vcpu_ctx *ctx, u32 groups)
{
    const struct vmcb *vmcb = ctx->hw->vmcb;
    struct guest_state *state = &ctx->state;

    if (groups & GROUP_DATA)
        pull_data(ctx);
    if (groups & GROUP_SYSTEM)
        pull_system(state, vmcb);
    if (groups & GROUP_TABLES)
        pull_tables(state, vmcb);
    if (groups & GROUP_SYSENTER) {
        state->sysenter_cs = vmcb->sysenter_cs;
        state->sysenter_esp = vmcb->sysenter_esp;
        state->sysenter_eip = vmcb->sysenter_eip;
    }
    if (groups & GROUP_DEBUG)
        pull_debug(state, vmcb);
    ctx->valid |= groups & GROUP_ALL_CTX;
}

static void pull_shared(struct vcpu *vcpu, u32 groups)
{
    const struct vmcb *vmcb = vcpu->cur->hw->vmcb;

    if (groups & GROUP_SYSCALL) {
        vcpu->star = vmcb->star;
        vcpu->lstar = vmcb->lstar;
        vcpu->cstar = vmcb->cstar;
        vcpu->sfmask = vmcb->sfmask;
        vcpu->kernel_gs_base = vmcb->kernel_gs_base;
    }
    if (groups & GROUP_CR2)
        vcpu->cr2 = vmcb->cr2;
    if (groups & GROUP_DR) // DR0-3 stay in their registers: an exit leaves DR7 disabled
        read_dr0_to_3(vcpu->dr);
    if (groups & GROUP_DR6)
        vcpu->dr6 = vmcb->dr6;
    if (groups & GROUP_SWITCHED)
        switched_pull(vcpu);
    vcpu->shared_valid |= groups & GROUP_ALL_SHARED;
}

void svm_pull(struct vcpu *vcpu, u32 groups)
{
    if (groups & SVM_MODE_GROUPS)
        pull_mode(vcpu, vcpu->cur);
    if (likely(!(groups & ~(u32)SVM_MODE_GROUPS)))
        return;
    pull_others(vcpu->cur, groups);
    if (groups & GROUP_ALL_SHARED)
        pull_shared(vcpu, groups);
}

// --- write ---

static u32 write_control_registers(struct vcpu_ctx *ctx, struct vmcb *vmcb)
{
    const struct guest_state *state = &ctx->state;

    if (svm_cr_reads(&ctx->ctl, vmcb->cr0, vmcb->cr4 | ctx->hw->cr4_held) !=
        svm_cr_reads(&ctx->ctl, state->cr0, state->cr4))
        ctx->ctl_dirty |= CTL_INTERCEPTS;
    ctx->hw->cr4_held = state->cr4 & svm_cr4_supplied;
    vmcb->cr0 = state->cr0;
    vmcb->cr3 = state->cr3;
    vmcb->cr4 = state->cr4 & ~svm_cr4_supplied;
    return SVM_CLEAN_CRX;
}

static u32 write_segments(struct backend_ctx *hw, const struct guest_state *state, u32 dirty)
{
    struct vmcb *vmcb = hw->vmcb;

    if (dirty & GROUP_CODE) { // what is packed need not come back as it was
        hw->seen_cpl = SVM_CPL_UNKNOWN;
        vmcb->cs = pack(&state->seg[SEG_CS]);
        vmcb->ss = pack(&state->seg[SEG_SS]);
    }
    if (dirty & GROUP_DATA) {
        hw->seen_data = false;
        vmcb->ds = pack(&state->seg[SEG_DS]);
        vmcb->es = pack(&state->seg[SEG_ES]);
    }
    return SVM_CLEAN_SEG;
}

static u32 write_debug(const struct guest_state *state, struct vmcb *vmcb)
{
    vmcb->dr7 = state->dr7;
    if (!svm_has(SVM_FEATURE_LBR_VIRT))
        return SVM_CLEAN_DRX;
    vmcb->dbgctl = state->debugctl;
    vmcb->br_from = state->last_branch[0];
    vmcb->br_to = state->last_branch[1];
    vmcb->last_excp_from = state->last_branch[2];
    vmcb->last_excp_to = state->last_branch[3];
    return SVM_CLEAN_DRX | SVM_CLEAN_LBR;
}

// Returns the clean bits that go.
static u32 write_ctx(struct vcpu_ctx *ctx, struct vmcb *vmcb, u32 dirty)
{
    const struct guest_state *state = &ctx->state;
    u32 touched = 0;

    if (dirty & GROUP_CR)
        touched |= write_control_registers(ctx, vmcb);
    if (dirty & (GROUP_CODE | GROUP_DATA))
        touched |= write_segments(ctx->hw, state, dirty);
    if (dirty & GROUP_CODE) // CR0 is written before, and RFLAGS is always valid
        vmcb->cpl = cpl_of(state, vmcb->cr0);
    if (dirty & GROUP_SYSTEM)
        write_system(state, vmcb);
    if (dirty & GROUP_TABLES) {
        write_tables(state, vmcb);
        touched |= SVM_CLEAN_DT;
    }
    if (dirty & GROUP_SYSENTER) {
        vmcb->sysenter_cs = state->sysenter_cs;
        vmcb->sysenter_esp = state->sysenter_esp;
        vmcb->sysenter_eip = state->sysenter_eip;
    }
    if (dirty & GROUP_EFER_PAT) {
        vmcb->efer = state->efer | EFER_SVME;
        ctx->hw->efer_added = vmcb->efer ^ state->efer;
        ctx->hw->prepare |= SVM_PREPARE_GIF; // without SVME STGI and CLGI are #UD
        vmcb->g_pat = state->pat;
        touched |= SVM_CLEAN_CRX | SVM_CLEAN_NP;
    }
    if (dirty & GROUP_DEBUG)
        touched |= write_debug(state, vmcb);
    return touched;
}

static u32 write_shared(struct vcpu *vcpu, struct vmcb *vmcb, u32 dirty)
{
    u32 touched = 0;

    if (dirty & GROUP_SYSCALL) {
        vmcb->star = vcpu->star;
        vmcb->lstar = vcpu->lstar;
        vmcb->cstar = vcpu->cstar;
        vmcb->sfmask = vcpu->sfmask;
        vmcb->kernel_gs_base = vcpu->kernel_gs_base;
    }
    if (dirty & GROUP_CR2) {
        vmcb->cr2 = vcpu->cr2;
        touched |= SVM_CLEAN_CR2;
    }
    if (dirty & GROUP_DR)
        write_dr0_to_3(vcpu->dr);
    if (dirty & GROUP_DR6) {
        vmcb->dr6 = vcpu->dr6;
        touched |= SVM_CLEAN_DRX;
    }
    if (dirty & GROUP_SWITCHED)
        switched_write(vcpu);
    if (dirty & GROUP_EXTENDED)
        svm_load_registers(vcpu, this_cpu()->backend);
    return touched;
}

void svm_write_state(struct vcpu *vcpu)
{
    struct vcpu_ctx *ctx = vcpu->cur;
    struct vmcb *vmcb = ctx->hw->vmcb;

    if (ctx->dirty & ~(u32)(GROUP_RIP | GROUP_BLOCKING))
        vmcb->clean &= ~write_ctx(ctx, vmcb, ctx->dirty);
    if (vcpu->shared_dirty)
        vmcb->clean &= ~write_shared(vcpu, vmcb, vcpu->shared_dirty);
    if (ctx->dirty & SVM_MODE_GROUPS)
        ctx->mode = ++vcpu->modes;
    ctx->news |= ctx->dirty;
    ctx->dirty = 0;
    vcpu->shared_dirty = 0;
}

// --- level, load, put ---

// Groups that VMLOAD loads, as the VMCB has them: the model's new values are written first. All of
// them, as whoever keeps one keeps the others.
static inline void keep_groups(struct vcpu_ctx *from, struct vcpu_ctx *to, u32 kept)
{
    struct vmcb *old = from->hw->vmcb, *new = to->hw->vmcb;

    if (unlikely(from->dirty & kept))
        write_ctx(from, old, from->dirty & kept);
    from->dirty &= ~kept;
    to->valid &= ~kept;
    to->dirty &= ~kept;
    new->fs = old->fs;
    new->gs = old->gs;
    new->ldtr = old->ldtr;
    new->tr = old->tr;
    new->sysenter_cs = old->sysenter_cs;
    new->sysenter_esp = old->sysenter_esp;
    new->sysenter_eip = old->sysenter_eip;
}

// The shared groups that live in VMCBs follow; DR0-3 stay in their registers. What is dirty in the
// model goes to the new VMCB at the next entry anyway.
void svm_select(struct vcpu *vcpu, unsigned level, u32 kept)
{
    struct vcpu_ctx *old = vcpu->cur, *new = &vcpu->ctx[level];
    const struct vmcb *from = old->hw->vmcb;
    struct vmcb *to = new->hw->vmcb;

    if (level == vcpu->level)
        return;
    if (kept)
        keep_groups(old, new, kept);
    to->star = from->star;
    to->lstar = from->lstar;
    to->cstar = from->cstar;
    to->sfmask = from->sfmask;
    to->kernel_gs_base = from->kernel_gs_base;
    to->cr2 = from->cr2;
    to->dr6 = from->dr6;
    to->clean &= ~(u32)(SVM_CLEAN_CR2 | SVM_CLEAN_DRX);
    vcpu->level = (u8)level;
    vcpu->cur = new;
}

void svm_load_registers(struct vcpu *vcpu, struct svm_cpu *cpu)
{
    if (cpu->xcr0_all && cpu->xcr0 != vcpu->xcr0)
        xsetbv(0, vcpu->xcr0);
    if (cpu->xss != vcpu->xss)
        msr_write(MSR_XSS, vcpu->xss);
    if (cpu->has_rdtscp && cpu->tsc_aux != vcpu->tsc_aux)
        msr_write(MSR_TSC_AUX, vcpu->tsc_aux);
    cpu->xcr0 = vcpu->xcr0;
    cpu->xss = vcpu->xss;
    cpu->tsc_aux = vcpu->tsc_aux;
}

// The legacy region that XSAVE and FXSAVE share, and XSAVE's header.
struct fpu_area {
    u8 legacy[24];
    u32 mxcsr;
    u8 rest[512 - 28];
    u64 xstate_bv;
};

#define MXCSR_INITIAL 0x1f80
#define FCW_INITIAL   0x37f

// Where XRSTOR leaves the last x87 instruction's pointers alone (no XSaveErPtr), one of Nestor's
// own takes the place of another vCPU's (APM vol. 2, "FXSAVE and FXRSTOR Instructions").
static void forget_fp_pointers(const struct svm_cpu *cpu)
{
    static const u32 zero;

    if (!cpu->restores_fp_pointers)
        __asm__ volatile("fnclex; emms; fildl %0" : : "m"(zero));
}

// XRSTOR takes MXCSR from memory even where XSTATE_BV says that SSE is in its initial state.
static void load_fpu(struct vcpu *vcpu, struct svm_cpu *cpu)
{
    struct fpu_area *area = vcpu->fpu;

    forget_fp_pointers(cpu);
    if (!cpu->xcr0_all) {
        if (!area->mxcsr && !area->legacy[0] && !area->legacy[1]) { // never saved
            area->mxcsr = MXCSR_INITIAL;
            *(u16 *)area->legacy = FCW_INITIAL;
        }
        __asm__ volatile("fxrstor64 %0" : : "m"(*area));
        return;
    }
    if (!(area->xstate_bv & (XCR0_SSE | XCR0_AVX)))
        area->mxcsr = MXCSR_INITIAL;
    xsetbv(0, cpu->xcr0_all);
    cpu->xcr0 = cpu->xcr0_all;
    __asm__ volatile("xrstor64 %0"
                     :
                     : "m"(*area), "a"((u32)cpu->xcr0_all), "d"((u32)(cpu->xcr0_all >> 32))
                     : "memory");
}

// All components, also those that the guest's XCR0 hides at the moment.
static void save_fpu(struct vcpu *vcpu, struct svm_cpu *cpu)
{
    struct fpu_area *area = vcpu->fpu;

    if (!cpu->xcr0_all) {
        __asm__ volatile("fxsave64 %0" : "=m"(*area));
        return;
    }
    xsetbv(0, cpu->xcr0_all);
    cpu->xcr0 = cpu->xcr0_all;
    __asm__ volatile("xsave64 %0"
                     : "+m"(*area)
                     : "a"((u32)cpu->xcr0_all), "d"((u32)(cpu->xcr0_all >> 32))
                     : "memory");
}

void svm_drop_tags(struct vcpu *vcpu)
{
    for (unsigned level = 0; level < 2; level++) {
        vcpu->tag[level] = 0;
        vcpu->ctx[level].flush |= TLB_FLUSH_GUEST;
    }
}

// The vCPU comes to a CPU: was it the last that this VMCB ran on, and are its ASIDs still its own?
static void check_residence(struct vcpu *vcpu, const struct svm_cpu *cpu)
{
    bool moved = false;

    for (unsigned level = 0; level < 2; level++) {
        struct backend_ctx *hw = vcpu->ctx[level].hw;

        if (!hw || hw->ran_on == cpu)
            continue;
        hw->ran_on = cpu;
        hw->vmcb->clean = 0; // another CPU may have changed the VMCB since
        moved = true;
    }
    if (moved || vcpu->asid_generation != cpu->asid_generation)
        svm_drop_tags(vcpu);
}

void svm_load(struct vcpu *vcpu)
{
    struct svm_cpu *cpu = this_cpu()->backend;

    check_residence(vcpu, cpu);
    if (cpu->last != vcpu && cpu->has_ibpb)
        msr_write(MSR_PRED_CMD, MSR_PRED_CMD_IBPB);
    cpu->last = vcpu;
    load_fpu(vcpu, cpu);
    svm_load_registers(vcpu, cpu);
    vcpu->shared_dirty |= (GROUP_DR | GROUP_SWITCHED) & vcpu->shared_valid;
}

void svm_put(struct vcpu *vcpu)
{
    svm_pull(vcpu, GROUP_ALL_SHARED & ~vcpu->shared_valid);
    for (unsigned level = 0; level < 2; level++) {
        if (!vcpu->ctx[level].hw)
            continue;
        pull_mode(vcpu, &vcpu->ctx[level]);
        pull_others(&vcpu->ctx[level], GROUP_ALL_CTX & ~vcpu->ctx[level].valid);
    }
    save_fpu(vcpu, this_cpu()->backend);
}
