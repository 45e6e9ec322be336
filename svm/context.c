// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A context's VMCB: its creation, and the neutral controls written into it (APM vol. 2, 15.9 to
// 15.13 intercepts, 15.10 IOPM, 15.11 MSRPM, 15.25 nested paging).
//
// The guest's CR0 and CR4 are in the VMCB as they are. Bits in a control mask make all writes of
// that register exit (CR0: by the selective intercept where TS and MP are the guest's own, so that
// CLTS does not exit), and reads only while a shadowed bit differs. A guest that core lets set
// CR0.CD runs uncached on its CPU, as on a bare one.

#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/page.h>
#include <nestor/spinlock.h>
#include <nestor/string.h>
#include <nestor/tlb.h>
#include <nestor/vm.h>

#include "quirks.h"
#include "svm.h"

enum { MSRPM_ORDER = 1, IOPM_ORDER = 2 }; // 8 KiB; 12 KiB and one bit more

u8 *svm_msrpm;
static u8 *iopm;
static struct spinlock maps_lock;

// MSRs that the guest reads and writes itself: what VMLOAD and VMSAVE switch.
static const struct {
    u32 msr;
    bool address; // #GP if it is not canonical
} passed_msrs[] = {
    {MSR_SYSENTER_CS, false},   {MSR_SYSENTER_ESP, false}, {MSR_SYSENTER_EIP, false},
    {MSR_STAR, false},          {MSR_LSTAR, true},         {MSR_CSTAR, true},
    {MSR_SFMASK, false},        {MSR_FS_BASE, true},       {MSR_GS_BASE, true},
    {MSR_KERNEL_GS_BASE, true},
};

// Two bits an MSR, read and write; 2 KiB each for 0-1fff, c0000000-c0001fff, c0010000-c0011fff.
static void pass_msr(u8 *map, u32 msr, bool write)
{
    u32 bit = (msr & 0x1fff) * 2 + (msr >= 0xc0000000 ? 0x800 * 8 : 0);

    map[bit / 8] &= (u8) ~((write ? 3u : 1u) << bit % 8);
}

static void fill_maps(void)
{
    bool checks = svm_wrmsr_checks_addresses();

    memset(iopm, 0xff, (size_t)PAGE_SIZE << IOPM_ORDER);
    memset(svm_msrpm, 0xff, (size_t)PAGE_SIZE << MSRPM_ORDER);
    for (u32 i = 0; i < ARRAY_SIZE(passed_msrs); i++)
        pass_msr(svm_msrpm, passed_msrs[i].msr, checks || !passed_msrs[i].address);
}

int svm_maps_create(void)
{
    spin_lock(&maps_lock);
    if (!iopm) {
        svm_msrpm = page_alloc(MSRPM_ORDER);
        iopm = page_alloc(IOPM_ORDER);
        if (iopm && svm_msrpm)
            fill_maps();
    }
    spin_unlock(&maps_lock);
    return iopm && svm_msrpm ? 0 : -E_NOMEM;
}

int svm_ctx_create(struct vcpu *vcpu, unsigned level)
{
    struct backend_ctx *hw = heap_alloc(sizeof(*hw));
    struct vmcb *vmcb = page_alloc(0);

    if (!hw || !vmcb) {
        if (hw)
            heap_free(hw, sizeof(*hw));
        if (vmcb)
            page_free(vmcb, 0);
        return -E_NOMEM;
    }
    hw->vmcb = vmcb;
    hw->vmcb_pa = virt_to_phys(vmcb);
    hw->seen_cpl = SVM_CPL_UNKNOWN;
    hw->stays = SVM_STAYING_GROUPS;
    vmcb->lbr_control = svm_has(SVM_FEATURE_LBR_VIRT) ? SVM_VIRTUAL_LBR : 0;
    vmcb->iopm_base_pa = virt_to_phys(iopm);
    vmcb->np_enable = 1;
    vmcb->v_ctl = SVM_V_INTR_MASKING;
    // The interrupt window: a virtual interrupt above any TPR, whose delivery is intercepted.
    vmcb->v_prio = 0xf << SVM_V_INTR_PRIO_SHIFT | SVM_V_IGN_TPR;
    vmcb->dr6 = DR6_FIXED;
    vcpu->ctx[level].hw = hw;
    vcpu->ctx[level].ctl_dirty = CTL_ALL;
    vcpu->vm->msr_bitmap = svm_msrpm;
    return 0;
}

void svm_ctx_destroy(struct vcpu *vcpu, unsigned level)
{
    struct backend_ctx *hw = vcpu->ctx[level].hw;

    if (!hw)
        return;
    page_free(hw->vmcb, 0);
    heap_free(hw, sizeof(*hw));
    vcpu->ctx[level].hw = NULL;
}

// --- controls ---

// What always exits. VMLOAD, VMSAVE and INVLPGA would act on host-physical memory and other guests'
// ASIDs, STGI and CLGI on Nestor's own GIF, INVD on everybody's data.
static const u32 always[SVM_WORD_COUNT] = {
    [SVM_WORD_EXCEPTIONS] = BIT(VECTOR_MC),
    [SVM_WORD_3] = SVM_INTERCEPT_INTR | SVM_INTERCEPT_NMI | SVM_INTERCEPT_SMI | SVM_INTERCEPT_INIT |
                   SVM_INTERCEPT_VINTR | SVM_INTERCEPT_CPUID | SVM_INTERCEPT_INVD |
                   SVM_INTERCEPT_INVLPGA | SVM_INTERCEPT_IOIO | SVM_INTERCEPT_MSR |
                   SVM_INTERCEPT_FERR_FREEZE | SVM_INTERCEPT_SHUTDOWN,
    [SVM_WORD_4] = SVM_INTERCEPT_VMRUN | SVM_INTERCEPT_VMMCALL | SVM_INTERCEPT_VMLOAD |
                   SVM_INTERCEPT_VMSAVE | SVM_INTERCEPT_STGI | SVM_INTERCEPT_CLGI |
                   SVM_INTERCEPT_SKINIT | SVM_INTERCEPT_XSETBV,
    [SVM_WORD_5] = SVM_INTERCEPT_INVLPGB | SVM_INTERCEPT_INVLPGB_ILLEGAL | SVM_INTERCEPT_TLBSYNC,
};

// INTERCEPT_MTF has no hardware (has_mtf is false); INTERCEPT_SVM and INTERCEPT_XSETBV are in
// `always`.
static const struct {
    u64 intercept; // enum intercept
    u32 word, bits;
} on_demand[] = {
    {INTERCEPT_HLT, SVM_WORD_3, SVM_INTERCEPT_HLT},
    {INTERCEPT_PAUSE, SVM_WORD_3, SVM_INTERCEPT_PAUSE},
    {INTERCEPT_RDTSC, SVM_WORD_3, SVM_INTERCEPT_RDTSC},
    {INTERCEPT_RDTSCP, SVM_WORD_4, SVM_INTERCEPT_RDTSCP},
    {INTERCEPT_RDPMC, SVM_WORD_3, SVM_INTERCEPT_RDPMC},
    {INTERCEPT_INVLPG, SVM_WORD_3, SVM_INTERCEPT_INVLPG},
    {INTERCEPT_INVPCID, SVM_WORD_5, SVM_INTERCEPT_INVPCID},
    {INTERCEPT_MWAIT, SVM_WORD_4, SVM_INTERCEPT_MWAIT | SVM_INTERCEPT_MWAIT_CONDITIONAL},
    {INTERCEPT_MONITOR, SVM_WORD_4, SVM_INTERCEPT_MONITOR},
    {INTERCEPT_WBINVD, SVM_WORD_4, SVM_INTERCEPT_WBINVD},
    {INTERCEPT_DR_READ, SVM_WORD_DR, SVM_DR_READ_ALL},
    {INTERCEPT_DR_WRITE, SVM_WORD_DR, SVM_DR_WRITE_ALL},
    {INTERCEPT_CR0_READ, SVM_WORD_CR, SVM_CR_READ(0)},
    {INTERCEPT_CR3_READ, SVM_WORD_CR, SVM_CR_READ(3)},
    {INTERCEPT_CR3_WRITE, SVM_WORD_CR, SVM_CR_WRITE(3)},
    {INTERCEPT_CR4_READ, SVM_WORD_CR, SVM_CR_READ(4)},
    {INTERCEPT_CR8_READ, SVM_WORD_CR, SVM_CR_READ(8)},
    {INTERCEPT_CR8_WRITE, SVM_WORD_CR, SVM_CR_WRITE(8)},
    {INTERCEPT_TABLES_READ, SVM_WORD_3,
     SVM_INTERCEPT_IDTR_READ | SVM_INTERCEPT_GDTR_READ | SVM_INTERCEPT_LDTR_READ |
         SVM_INTERCEPT_TR_READ},
    {INTERCEPT_TABLES_WRITE, SVM_WORD_3,
     SVM_INTERCEPT_IDTR_WRITE | SVM_INTERCEPT_GDTR_WRITE | SVM_INTERCEPT_LDTR_WRITE |
         SVM_INTERCEPT_TR_WRITE},
    {INTERCEPT_TASK_SWITCH, SVM_WORD_3, SVM_INTERCEPT_TASK_SWITCH},
    {INTERCEPT_RDPRU, SVM_WORD_4, SVM_INTERCEPT_RDPRU},
    {INTERCEPT_IRET, SVM_WORD_3, SVM_INTERCEPT_IRET},
    {INTERCEPT_PUSHF, SVM_WORD_3, SVM_INTERCEPT_PUSHF},
    {INTERCEPT_POPF, SVM_WORD_3, SVM_INTERCEPT_POPF},
    {INTERCEPT_SOFT_INT, SVM_WORD_3, SVM_INTERCEPT_SWINT},
    {INTERCEPT_RSM, SVM_WORD_3, SVM_INTERCEPT_RSM},
    {INTERCEPT_ICEBP, SVM_WORD_4, SVM_INTERCEPT_ICEBP},
    {INTERCEPT_CR0_SELECTIVE, SVM_WORD_3, SVM_INTERCEPT_CR0_SEL_WRITE},
    {INTERCEPT_IDTR_READ, SVM_WORD_3, SVM_INTERCEPT_IDTR_READ},
    {INTERCEPT_GDTR_READ, SVM_WORD_3, SVM_INTERCEPT_GDTR_READ},
    {INTERCEPT_LDTR_READ, SVM_WORD_3, SVM_INTERCEPT_LDTR_READ},
    {INTERCEPT_TR_READ, SVM_WORD_3, SVM_INTERCEPT_TR_READ},
    {INTERCEPT_IDTR_WRITE, SVM_WORD_3, SVM_INTERCEPT_IDTR_WRITE},
    {INTERCEPT_GDTR_WRITE, SVM_WORD_3, SVM_INTERCEPT_GDTR_WRITE},
    {INTERCEPT_LDTR_WRITE, SVM_WORD_3, SVM_INTERCEPT_LDTR_WRITE},
    {INTERCEPT_TR_WRITE, SVM_WORD_3, SVM_INTERCEPT_TR_WRITE},
};

// The instructions of enum guest_isa that SVM can intercept; core makes them #UD.
static const struct {
    u32 isa;
    u32 word, bits;
} hidden_isa[] = {
    {ISA_RDTSCP, SVM_WORD_4, SVM_INTERCEPT_RDTSCP}, // QEMU's executes all the same
    {ISA_INVPCID, SVM_WORD_5, SVM_INTERCEPT_INVPCID},
};

void svm_intercepts(const struct controls *ctl, u64 cr0, u64 cr4, u32 words[SVM_WORD_COUNT])
{
    memcpy(words, always, sizeof(always));
    for (u32 i = 0; i < ARRAY_SIZE(on_demand); i++)
        if (ctl->intercepts & on_demand[i].intercept)
            words[on_demand[i].word] |= on_demand[i].bits;
    for (u32 i = 0; i < ARRAY_SIZE(hidden_isa); i++)
        if (ctl->disabled_isa & hidden_isa[i].isa)
            words[hidden_isa[i].word] |= hidden_isa[i].bits;
    words[SVM_WORD_CR] |= ctl->cr_intercepts;
    words[SVM_WORD_DR] |= ctl->dr_intercepts;
    // Vector 2 is reserved there: NMI has its own intercept.
    words[SVM_WORD_EXCEPTIONS] |= ctl->exception_bitmap & ~(u32)BIT(VECTOR_NMI);
    if (ctl->cr0_mask & (CR0_TS | CR0_MP))
        words[SVM_WORD_CR] |= SVM_CR_WRITE(0);
    else if (ctl->cr0_mask)
        words[SVM_WORD_3] |= SVM_INTERCEPT_CR0_SEL_WRITE;
    if (ctl->cr4_mask)
        words[SVM_WORD_CR] |= SVM_CR_WRITE(4);
    words[SVM_WORD_CR] |= svm_cr_reads(ctl, cr0, cr4);
    if (cr4 & svm_cr4_supplied)
        words[SVM_WORD_3] |= SVM_INTERCEPT_IDTR_READ | SVM_INTERCEPT_GDTR_READ |
                             SVM_INTERCEPT_LDTR_READ | SVM_INTERCEPT_TR_READ;
}

// Whether DR7 can't change but by an exit: MOV, #DB's delivery and a task switch do it. The last
// branches change with each.
static bool keeps_debug(const struct vmcb *vmcb)
{
    return !svm_has(SVM_FEATURE_LBR_VIRT) &&
           (vmcb->intercept[SVM_WORD_DR] & SVM_DR_WRITE_ALL) == SVM_DR_WRITE_ALL &&
           (vmcb->intercept[SVM_WORD_EXCEPTIONS] & BIT(VECTOR_DB)) &&
           (vmcb->intercept[SVM_WORD_3] & SVM_INTERCEPT_TASK_SWITCH);
}

static void write_intercepts(struct vcpu_ctx *ctx)
{
    struct vmcb *vmcb = ctx->hw->vmcb;

    svm_intercepts(&ctx->ctl, vmcb->cr0, vmcb->cr4 | ctx->hw->cr4_held, vmcb->intercept);
    ctx->hw->exceptions = vmcb->intercept[SVM_WORD_EXCEPTIONS];
    ctx->hw->word3 = vmcb->intercept[SVM_WORD_3];
    ctx->hw->prepare |= SVM_PREPARE_EVENTS;
    ctx->hw->stays = SVM_STAYING_GROUPS | (keeps_debug(vmcb) ? GROUP_DEBUG : 0);
    vmcb->clean &= ~(u32)SVM_CLEAN_I;
}

static void write_stage2(struct vcpu_ctx *ctx)
{
    struct backend_ctx *hw = ctx->hw;

    if (hw->vmcb->n_cr3 == ctx->ctl.stage2_root)
        return;
    hw->vmcb->n_cr3 = ctx->ctl.stage2_root;
    hw->vmcb->clean &= ~(u32)SVM_CLEAN_NP;
    ctx->flush |= TLB_FLUSH_STAGE2; // nothing from the old root may serve
}

void svm_write_controls(struct vcpu *vcpu)
{
    struct vcpu_ctx *ctx = vcpu->cur;
    struct backend_ctx *hw = ctx->hw;
    const void *msrpm = ctx->ctl.msr_bitmap ? ctx->ctl.msr_bitmap : svm_msrpm;

    if (ctx->ctl_dirty & CTL_INTERCEPTS)
        write_intercepts(ctx);
    if (ctx->ctl_dirty & CTL_STAGE2)
        write_stage2(ctx);
    if (ctx->ctl_dirty & CTL_TSC) {
        hw->vmcb->tsc_offset = ctx->ctl.tsc_offset;
        hw->vmcb->clean &= ~(u32)SVM_CLEAN_I;
    }
    if (ctx->ctl_dirty & CTL_BITMAPS) {
        hw->vmcb->msrpm_base_pa = virt_to_phys(msrpm);
        hw->vmcb->clean &= ~(u32)SVM_CLEAN_IOPM;
    }
    ctx->ctl_news |= ctx->ctl_dirty;
    ctx->ctl_dirty = 0;
}
