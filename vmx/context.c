// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A context's VMCS: its making, Nestor's host state and the controls in it, where it is active, and
// the guest state that lives in registers while a vCPU is on a CPU. SDM vol. 3 "Virtual Machine
// Control Structures", "Software Use of Virtual-Machine Control Structures".

#include "vmx.h"
#include <arch/x86/fpu.h>
#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/page.h>
#include <nestor/spinlock.h>
#include <nestor/string.h>
#include <nestor/tlb.h>
#include <nestor/vm.h>

// --- the MSR bitmap: SDM vol. 3 "MSR-Bitmap Address" ---

enum { MSR_READ_LOW = 0, MSR_READ_HIGH = 1024, MSR_WRITE_LOW = 2048 };

static u8 msr_bitmap[PAGE_SIZE] ALIGNED(PAGE_SIZE); // one for all VMs, constant after boot

// What no guest needs Nestor for: state that is the guest's alone, and that the model pulls when it
// is asked.
static const struct {
    u32 msr;
    bool read, write;
} msr_passed[] = {
    {MSR_TSC, true, false},           {MSR_SYSENTER_CS, true, true},
    {MSR_SYSENTER_ESP, true, true},   {MSR_SYSENTER_EIP, true, true},
    {MSR_STAR, true, true},           {MSR_LSTAR, true, true},
    {MSR_CSTAR, true, true},          {MSR_SFMASK, true, true},
    {MSR_FS_BASE, true, true},        {MSR_GS_BASE, true, true},
    {MSR_KERNEL_GS_BASE, true, true},
};

void vmx_msr_pass(u8 *bitmap, u32 msr, bool read, bool write)
{
    u8 *byte = bitmap + (msr >= 0xc0000000u ? MSR_READ_HIGH : MSR_READ_LOW) + (msr & 0x1fff) / 8;

    if (read)
        byte[0] &= (u8)~BIT(msr % 8);
    if (write)
        byte[MSR_WRITE_LOW] &= (u8)~BIT(msr % 8);
}

void vmx_msr_bitmap_init(void)
{
    memset(msr_bitmap, 0xff, sizeof(msr_bitmap));
    for (unsigned i = 0; i < ARRAY_SIZE(msr_passed); i++)
        vmx_msr_pass(msr_bitmap, msr_passed[i].msr, msr_passed[i].read, msr_passed[i].write);
    vmx_apic_accept(msr_bitmap);
}

// --- VPIDs ---

enum { VPID_COUNT = 65536 };

static u64 vpid_used[VPID_COUNT / 64] = {1}; // 0 is Nestor's own; under vpid_lock
static struct spinlock vpid_lock;

// 0 if there is none left: the context then runs without VPID.
static u16 vpid_alloc(void)
{
    u16 vpid = 0;

    spin_lock(&vpid_lock);
    for (unsigned i = 0; i < ARRAY_SIZE(vpid_used) && !vpid; i++) {
        if (~vpid_used[i]) {
            vpid = (u16)(i * 64 + (unsigned)__builtin_ctzll(~vpid_used[i]));
            vpid_used[i] |= BIT(vpid % 64);
        }
    }
    spin_unlock(&vpid_lock);
    return vpid;
}

static void vpid_free(u16 vpid)
{
    spin_lock(&vpid_lock);
    if (vpid)
        vpid_used[vpid / 64] &= ~BIT(vpid % 64);
    spin_unlock(&vpid_lock);
}

// --- making and unmaking ---

// What only level 0's context has.
static int create_own(struct vcpu *vcpu, struct backend_ctx *hw)
{
    if (vmx_backend.shadows_vmcs && vcpu->vm->config->nested && vmx_shadow_create(hw))
        return -E_NOMEM;
    if (!vmx_caps.apic_modes)
        return 0;
    if (vmx_apic_create(vcpu))
        return -E_NOMEM;
    hw->apic = &vcpu->apic;
    return 0;
}

static void free_ctx(struct backend_ctx *hw)
{
    vmx_shadow_destroy(hw);
    vpid_free(hw->vpid);
    page_free(hw->vmcs, 0);
    heap_free(hw, sizeof(*hw));
}

int vmx_ctx_create(struct vcpu *vcpu, unsigned level)
{
    struct backend_ctx *hw = heap_alloc(sizeof(*hw));

    if (!hw)
        return -E_NOMEM;
    hw->vmcs = page_alloc(0);
    if (!hw->vmcs) {
        heap_free(hw, sizeof(*hw));
        return -E_NOMEM;
    }
    hw->vmcs_pa = virt_to_phys(hw->vmcs);
    *(u32 *)hw->vmcs = (u32)(vmx_caps.basic & VMX_BASIC_REVISION);
    hw->cpu = NO_CPU;
    if (vmx_uses(CONTROL_SECONDARY, SECONDARY_VPID))
        hw->vpid = vpid_alloc();
    if (level == 0 && create_own(vcpu, hw)) {
        free_ctx(hw);
        return -E_NOMEM;
    }
    vcpu->tag[level] = hw->vpid;
    vcpu->vm->msr_bitmap = msr_bitmap;
    vcpu->ctx[level].hw = hw;
    return 0;
}

void vmx_ctx_destroy(struct vcpu *vcpu, unsigned level)
{
    struct backend_ctx *hw = vcpu->ctx[level].hw;

    vcpu->ctx[level].hw = NULL;
    if (hw->apic)
        vmx_apic_destroy(vcpu);
    free_ctx(hw);
}

// --- the VMCS's constant parts ---

static u64 tss_base(const struct table_pointer *gdt, u16 selector)
{
    const u8 *d = (const u8 *)gdt->base + (selector & ~7u);
    u64 low = *(const u64 *)d, high = *(const u64 *)(d + 8);

    return (low >> 16 & 0xffffff) | (low >> 56 & 0xff) << 24 | high << 32;
}

// The segment registers and tables that this CPU has now are the ones that it gets back on every
// exit.
static void write_host_segments(void)
{
    struct table_pointer gdt, idt;
    u16 cs, ss, tr;

    __asm__ volatile("sgdt %0\n\tsidt %1" : "=m"(gdt), "=m"(idt));
    __asm__ volatile("mov %%cs, %0\n\tmov %%ss, %1\n\tstr %2" : "=r"(cs), "=r"(ss), "=r"(tr));
    vmwrite(HOST_CS_SELECTOR, cs);
    vmwrite(HOST_SS_SELECTOR, ss);
    vmwrite(HOST_DS_SELECTOR, 0);
    vmwrite(HOST_ES_SELECTOR, 0);
    vmwrite(HOST_FS_SELECTOR, 0);
    vmwrite(HOST_GS_SELECTOR, 0);
    vmwrite(HOST_TR_SELECTOR, tr);
    vmwrite(HOST_TR_BASE, tss_base(&gdt, tr));
    vmwrite(HOST_GDTR_BASE, gdt.base);
    vmwrite(HOST_IDTR_BASE, idt.base);
}

static void write_host_state(struct backend_ctx *hw)
{
    write_host_segments();
    vmwrite(HOST_CR0, read_cr0());
    vmwrite(HOST_CR4, read_cr4());
    vmwrite(HOST_FS_BASE, msr_read(MSR_FS_BASE)); // libfdt's canary (core/smp.c)
    vmwrite(HOST_GS_BASE, (u64)this_cpu());
    vmwrite(HOST_PAT, msr_read(MSR_PAT));
    vmwrite(HOST_EFER, msr_read(MSR_EFER));
    vmwrite(HOST_SYSENTER_CS, 0);
    vmwrite(HOST_SYSENTER_ESP, 0);
    vmwrite(HOST_SYSENTER_EIP, 0);
    vmwrite(HOST_RIP, (u64)vmx_exit_entry);
    if (vmx_uses(CONTROL_EXIT, EXIT_CTL_LOAD_CET)) {
        vmwrite(HOST_S_CET, 0);
        vmwrite(HOST_SSP, 0);
        vmwrite(HOST_INTERRUPT_SSP_TABLE, 0);
    }
    hw->host_spec_ctrl = vmx_this_cpu()->host_spec_ctrl;
    hw->host_rsp = hw->host_cr3 = 0; // written when they are known
}

static void write_constants(struct backend_ctx *hw)
{
    static const u16 zero_fields[] = {
        PF_ERROR_CODE_MASK,     PF_ERROR_CODE_MATCH,  CR3_TARGET_COUNT,
        EXIT_MSR_STORE_COUNT,   EXIT_MSR_LOAD_COUNT,  ENTRY_MSR_LOAD_COUNT,
        GUEST_INTERRUPTIBILITY, GUEST_ACTIVITY_STATE, ENTRY_INTERRUPTION_INFO,
    };
    u32 exit_controls = vmx_caps.controls.base[CONTROL_EXIT];

    for (unsigned i = 0; i < ARRAY_SIZE(zero_fields); i++)
        vmwrite(zero_fields[i], 0);
    vmwrite(PIN_BASED_CONTROLS, vmx_caps.controls.base[CONTROL_PIN]);
    vmwrite(EXIT_CONTROLS, exit_controls);
    vmwrite(VMCS_LINK_POINTER, ~0ull);
    if (hw->vpid)
        vmwrite(VPID, hw->vpid);
    // Copies that no field can have, so that the first value is written.
    hw->rip = hw->rsp = hw->rflags = hw->cr0_shadow = hw->cr4_shadow = hw->eptp = ~0ull;
    hw->primary_written = hw->secondary_written = 0;
    hw->timer = 0;
    vmwrite(GUEST_RIP, ~0ull);
    vmwrite(GUEST_RSP, ~0ull);
    vmwrite(GUEST_RFLAGS, ~0ull);
    if (vmx_caps.timer)
        vmwrite(PREEMPTION_TIMER_VALUE, 0);
    if (hw->apic)
        vmx_apic_write_constants(hw);
    if (hw->shadow)
        vmx_shadow_write_constants(hw);
}

// --- controls ---

static void write_intercepts(struct vcpu_ctx *ctx)
{
    const struct controls *ctl = &ctx->ctl;
    const u32 *base = vmx_caps.controls.base, *allowed = vmx_caps.controls.allowed;
    struct backend_ctx *hw = ctx->hw;

    hw->primary = base[CONTROL_PRIMARY] | vmx_intercept_controls(ctl->intercepts, CONTROL_PRIMARY);
    hw->primary &= allowed[CONTROL_PRIMARY];
    hw->secondary =
        base[CONTROL_SECONDARY] | vmx_intercept_controls(ctl->intercepts, CONTROL_SECONDARY);
    hw->secondary &=
        hw->vpid ? allowed[CONTROL_SECONDARY] : allowed[CONTROL_SECONDARY] & ~(u32)SECONDARY_VPID;
    if (hw->cr4 & vmx_caps.cr4_supplied)
        hw->secondary |= SECONDARY_DESCRIPTOR_TABLE;
    if (hw->apic)
        vmx_apic_controls(hw);
    if (hw->shadow)
        vmx_shadow_controls(hw);
    hw->secondary &= ~vmx_secondary_disabled(ctl->disabled_isa);
    if (hw->secondary & SECONDARY_PAUSE_LOOP) {
        vmwrite(PLE_GAP, ctl->pause_gap);
        vmwrite(PLE_WINDOW, ctl->pause_window);
    }
    if (hw->secondary & SECONDARY_XSAVES)
        vmwrite(XSS_EXITING_BITMAP, ctl->xss_exits);
    vmwrite(EXCEPTION_BITMAP, ctl->exception_bitmap | BIT(VECTOR_MC));
    vmwrite(CR0_GUEST_HOST_MASK, ctl->cr0_mask | CR0_OWN);
    vmwrite(CR4_GUEST_HOST_MASK, ctl->cr4_mask | CR4_OWN);
    vmx_write_shadows(ctx);
}

// With TSC scaling, the control that says so.
static void write_tsc(struct vcpu_ctx *ctx)
{
    const struct controls *ctl = &ctx->ctl;
    struct backend_ctx *hw = ctx->hw;
    u32 scaling = ctl->tsc_multiplier ? SECONDARY_TSC_SCALING : 0;

    vmwrite(TSC_OFFSET, ctl->tsc_offset);
    if (scaling)
        vmwrite(TSC_MULTIPLIER, ctl->tsc_multiplier);
    vmwrite32_changed(SECONDARY_CONTROLS, &hw->secondary_written, hw->secondary | scaling);
}

static void write_stage2(struct vcpu_ctx *ctx)
{
    const struct controls *ctl = &ctx->ctl;
    u64 eptp = ctl->stage2_root | EPTP_TYPE_WB | (u64)(ctl->stage2_levels - 1) << EPTP_LEVELS_SHIFT;

    if (ctl->stage2_ad && (vmx_caps.ept_vpid & EPT_CAP_AD))
        eptp |= EPTP_AD;
    vmwrite_changed(EPT_POINTER, &ctx->hw->eptp, eptp);
}

// Writes what ctl_dirty names.
void vmx_write_controls(struct vcpu_ctx *ctx)
{
    const struct controls *ctl = &ctx->ctl;
    u32 dirty = ctx->ctl_dirty;

    ctx->ctl_news |= dirty;
    ctx->ctl_dirty = 0;
    if (dirty & CTL_INTERCEPTS)
        write_intercepts(ctx);
    if (dirty & (CTL_INTERCEPTS | CTL_TSC))
        write_tsc(ctx);
    if (dirty & CTL_STAGE2)
        write_stage2(ctx);
    if (dirty & CTL_BITMAPS)
        vmwrite(MSR_BITMAP,
                virt_to_phys(ctl->msr_bitmap ? ctl->msr_bitmap
                                             : vmx_apic_msr_bitmap(ctx->hw, msr_bitmap)));
}

// --- on a CPU ---

// The first time on a CPU the context's VMCS is cleared (which also initialises a new one) and gets
// this CPU's host state; translations that this CPU may have from the tag's last stay are dropped.
static __attribute__((noinline)) void settle_here(struct vcpu_ctx *ctx)
{
    struct backend_ctx *hw = ctx->hw;

    vmclear(hw->vmcs_pa);
    vmptrld(hw->vmcs_pa);
    if (!hw->initialised) {
        write_constants(hw);
        hw->initialised = true;
        ctx->dirty = GROUP_ALL_CTX;
        ctx->ctl_dirty = CTL_ALL;
    }
    write_host_state(hw);
    hw->cpu = this_cpu()->id;
    hw->launched = false;
    ctx->flush |= TLB_FLUSH_GUEST | TLB_FLUSH_STAGE2;
}

static void make_current(struct vcpu_ctx *ctx)
{
    const struct cpu *this = this_cpu();
    struct backend_ctx *hw = ctx->hw;
    struct vmx_cpu *cpu = this->backend;

    if (cpu->loaded == hw)
        return;
    cpu->loaded = hw;
    if (unlikely(hw->cpu != this->id))
        settle_here(ctx);
    else
        vmptrld(hw->vmcs_pa);
}

static void deactivate(struct backend_ctx *hw)
{
    if (hw->cpu == NO_CPU)
        return;
    vmclear(hw->vmcs_pa);
    hw->cpu = NO_CPU;
    hw->launched = false;
    if (vmx_this_cpu()->loaded == hw)
        vmx_this_cpu()->loaded = NULL;
}

// XCR0, XSS and TSC_AUX live in the registers: Nestor uses none of them.
void vmx_write_extended(struct vmx_cpu *cpu, const struct vcpu *vcpu)
{
    if (cpu->fpu_components && cpu->xcr0 != vcpu->xcr0)
        xsetbv(0, vcpu->xcr0);
    if (cpu->xss != vcpu->xss && vmx_uses(CONTROL_SECONDARY, SECONDARY_XSAVES))
        msr_write(MSR_XSS, vcpu->xss);
    if (cpu->tsc_aux != vcpu->tsc_aux && vmx_uses(CONTROL_SECONDARY, SECONDARY_RDTSCP))
        msr_write(MSR_TSC_AUX, vcpu->tsc_aux);
    cpu->xcr0 = vcpu->xcr0;
    cpu->xss = vcpu->xss;
    cpu->tsc_aux = vcpu->tsc_aux;
}

void vmx_load(struct vcpu *vcpu)
{
    struct vmx_cpu *cpu = vmx_this_cpu();

    if (cpu->has_ibpb && cpu->last != vcpu)
        msr_write(MSR_PRED_CMD, 1); // IBPB: what one guest trained steers no other
    cpu->last = vcpu;
    make_current(vcpu->cur);
    fpu_load(vcpu->fpu, cpu->fpu_components);
    cpu->xcr0 = cpu->xss = cpu->tsc_aux = ~0ull;
    vmx_write_extended(cpu, vcpu);
    vcpu->shared_valid = vcpu->shared_dirty = GROUP_ALL_SHARED;
}

// VM entry and VM exit load all that a VMCS has: nothing is kept.
void vmx_select(struct vcpu *vcpu, unsigned level, u32 kept)
{
    (void)kept;
    vcpu->level = (u8)level;
    vcpu->cur = &vcpu->ctx[level];
    make_current(vcpu->cur);
}

// The other context's state may still be only in its VMCS.
static void put_context(struct vcpu *vcpu, unsigned level)
{
    struct vcpu_ctx *ctx = &vcpu->ctx[level];

    if (!ctx->hw || ctx->hw->cpu == NO_CPU)
        return;
    vmx_select(vcpu, level, 0);
    vmx_pull(vcpu, GROUP_ALL_CTX & ~ctx->valid);
    deactivate(ctx->hw);
}

void vmx_put(struct vcpu *vcpu)
{
    unsigned level = vcpu->level;

    vmx_pull(vcpu, GROUP_ALL_SHARED & ~vcpu->shared_valid);
    fpu_store(vcpu->fpu, vmx_this_cpu()->fpu_components);
    for (unsigned i = 0; i < ARRAY_SIZE(vcpu->ctx); i++)
        put_context(vcpu, i);
    vcpu->level = (u8)level;
    vcpu->cur = &vcpu->ctx[level];
}
