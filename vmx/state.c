// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The guest state between the model and the VMCS, by groups: pull reads on demand, writing takes
// what is dirty. SDM vol. 3 "Guest-State Area". The shared groups live in registers that no VM
// entry or exit touches.

#include "vmx.h"
#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/switched.h>

// clang-format off
// The fields of each group, as X(field, member of struct guest_state).
#define SEGMENT(X, name)                                                                           \
    X(GUEST_##name##_SELECTOR, seg[SEG_##name].selector)                                           \
    X(GUEST_##name##_BASE, seg[SEG_##name].base)                                                   \
    X(GUEST_##name##_LIMIT, seg[SEG_##name].limit)                                                 \
    X(GUEST_##name##_ACCESS, seg[SEG_##name].access)
#define RIP_FIELDS(X) X(GUEST_RIP, rip) X(GUEST_RSP, rsp) X(GUEST_RFLAGS, rflags)
#define CR_FIELDS(X) X(GUEST_CR0, cr0) X(GUEST_CR3, cr3) X(GUEST_CR4, cr4)
#define PDPTE_FIELDS(X)                                                                            \
    X(GUEST_PDPTE0, pdpte[0])                                                                      \
    X(GUEST_PDPTE1, pdpte[1])                                                                      \
    X(GUEST_PDPTE2, pdpte[2])                                                                      \
    X(GUEST_PDPTE3, pdpte[3])
#define CODE_FIELDS(X) SEGMENT(X, CS) SEGMENT(X, SS)
#define DATA_FIELDS(X) SEGMENT(X, DS) SEGMENT(X, ES)
#define SYSTEM_FIELDS(X) SEGMENT(X, FS) SEGMENT(X, GS) SEGMENT(X, LDTR) SEGMENT(X, TR)
#define TABLES_FIELDS(X)                                                                           \
    X(GUEST_GDTR_BASE, gdtr.base)                                                                  \
    X(GUEST_GDTR_LIMIT, gdtr.limit)                                                                \
    X(GUEST_IDTR_BASE, idtr.base)                                                                  \
    X(GUEST_IDTR_LIMIT, idtr.limit)
#define SYSENTER_FIELDS(X)                                                                         \
    X(GUEST_SYSENTER_CS, sysenter_cs)                                                              \
    X(GUEST_SYSENTER_ESP, sysenter_esp)                                                            \
    X(GUEST_SYSENTER_EIP, sysenter_eip)
#define EFER_PAT_FIELDS(X) X(GUEST_EFER, efer) X(GUEST_PAT, pat)
#define DEBUG_FIELDS(X) X(GUEST_DR7, dr7) X(GUEST_DEBUGCTL, debugctl)
#define CET_FIELDS(X)                                                                              \
    X(GUEST_S_CET, s_cet) X(GUEST_SSP, ssp) X(GUEST_INTERRUPT_SSP_TABLE, interrupt_ssp_table)
#define BLOCKING_FIELDS(X)                                                                         \
    X(GUEST_INTERRUPTIBILITY, interruptibility) X(GUEST_ACTIVITY_STATE, activity)
#define PENDING_DBG_FIELDS(X) X(GUEST_PENDING_DBG, pending_dbg)

// All groups: what is written in a way of its own, what changes often, and the others.
#define SPECIAL(X) X(RIP) X(CR) X(EFER_PAT)
#define OFTEN(X) X(BLOCKING) X(PENDING_DBG)
#define SELDOM(X) X(CODE) X(DATA) X(SYSTEM) X(TABLES) X(SYSENTER) X(DEBUG) X(PDPTE) X(CET)

#define READ(field, member) s->member = (typeof(s->member))vmread(field);
#define READ_GROUP(name)                                                                           \
    if (groups & GROUP_##name) {                                                                   \
        name##_FIELDS(READ)                                                                        \
    }
#define WRITE(field, member) vmwrite(field, s->member);
#define WRITE_GROUP(name)                                                                          \
    if (dirty & GROUP_##name) {                                                                    \
        name##_FIELDS(WRITE)                                                                       \
    }

#define GROUP_BIT(name) GROUP_##name |
#define SELDOM_GROUPS (SELDOM(GROUP_BIT) 0)
_Static_assert((SPECIAL(GROUP_BIT) OFTEN(GROUP_BIT) SELDOM_GROUPS) == GROUP_ALL_CTX,
               "a group has no fields");

#define FIELD_NAME(field, member) {field, #field},
#define GROUP_NAMES(name) name##_FIELDS(FIELD_NAME)
static const struct {
    u16 field;
    const char *name;
} names[] = {SPECIAL(GROUP_NAMES) OFTEN(GROUP_NAMES) SELDOM(GROUP_NAMES)};

// clang-format on

// The groups whose fields the CPU has.
static u32 groups_present(u32 groups)
{
    return vmx_uses(CONTROL_ENTRY, ENTRY_CTL_LOAD_CET) ? groups : groups & ~(u32)GROUP_CET;
}

static void pull_groups(struct vcpu_ctx *ctx, u32 wanted)
{
    const struct backend_ctx *hw = ctx->hw;
    struct guest_state *s = &ctx->state;
    u32 groups = groups_present(wanted);

    SPECIAL(READ_GROUP)
    OFTEN(READ_GROUP)
    if (groups & SELDOM_GROUPS) {
        SELDOM(READ_GROUP)
    }
    if (groups & GROUP_CR) {
        s->cr0 = (s->cr0 & ~CR0_OWN) | (hw->cr0 & CR0_OWN);
        s->cr4 = (s->cr4 & ~CR4_OWN) | (hw->cr4 & CR4_OWN);
    }
    ctx->valid |= wanted;
}

static void pull_shared(struct vcpu *vcpu, u32 groups)
{
    if (groups & GROUP_SYSCALL) {
        vcpu->star = msr_read(MSR_STAR);
        vcpu->lstar = msr_read(MSR_LSTAR);
        vcpu->cstar = msr_read(MSR_CSTAR);
        vcpu->sfmask = msr_read(MSR_SFMASK);
        vcpu->kernel_gs_base = msr_read(MSR_KERNEL_GS_BASE);
    }
    if (groups & GROUP_DR)
        read_dr0_to_3(vcpu->dr);
    if (groups & GROUP_DR6)
        vcpu->dr6 = read_dr6();
    if (groups & GROUP_CR2)
        vcpu->cr2 = read_cr2();
    if (groups & GROUP_SWITCHED)
        switched_pull(vcpu);
    vcpu->shared_valid |= groups & GROUP_ALL_SHARED;
}

void vmx_pull(struct vcpu *vcpu, u32 groups)
{
    if (groups & GROUP_ALL_CTX)
        pull_groups(vcpu->cur, groups & GROUP_ALL_CTX);
    if (groups & GROUP_ALL_SHARED)
        pull_shared(vcpu, groups);
}

void vmx_write_shared(struct vcpu *vcpu)
{
    if (vcpu->shared_dirty & GROUP_SYSCALL) {
        msr_write(MSR_STAR, vcpu->star);
        msr_write(MSR_LSTAR, vcpu->lstar);
        msr_write(MSR_CSTAR, vcpu->cstar);
        msr_write(MSR_SFMASK, vcpu->sfmask);
        msr_write(MSR_KERNEL_GS_BASE, vcpu->kernel_gs_base);
    }
    if (vcpu->shared_dirty & GROUP_DR)
        write_dr0_to_3(vcpu->dr);
    if (vcpu->shared_dirty & GROUP_DR6)
        write_dr6(vcpu->dr6);
    if (vcpu->shared_dirty & GROUP_CR2)
        write_cr2(vcpu->cr2);
    if (vcpu->shared_dirty & GROUP_SWITCHED)
        switched_write(vcpu);
    if (vcpu->shared_dirty & GROUP_EXTENDED)
        vmx_write_extended(vmx_this_cpu(), vcpu);
    vcpu->shared_dirty = 0;
}

// What the guest reads of masked bits: core's shadow where core masks, the guest's own value where
// only the back end does.
void vmx_write_shadows(struct vcpu_ctx *ctx)
{
    const struct controls *ctl = &ctx->ctl;
    struct backend_ctx *hw = ctx->hw;

    vmwrite_changed(CR0_READ_SHADOW, &hw->cr0_shadow,
                    (ctl->cr0_shadow & ctl->cr0_mask) | (hw->cr0 & ~ctl->cr0_mask));
    vmwrite_changed(CR4_READ_SHADOW, &hw->cr4_shadow,
                    (ctl->cr4_shadow & ctl->cr4_mask) | (hw->cr4 & ~ctl->cr4_mask));
}

static void write_cr(struct vcpu_ctx *ctx)
{
    const struct guest_state *state = &ctx->state;
    struct backend_ctx *hw = ctx->hw;
    bool umip = (state->cr4 ^ hw->cr4) & vmx_caps.cr4_supplied;

    // Unrestricted guest: PE and PG are the guest's, whatever IA32_VMX_CR0_FIXED0 says.
    vmwrite(GUEST_CR0,
            (state->cr0 & ~(CR0_NW | CR0_CD)) | (vmx_caps.cr0_fixed0 & ~(CR0_PE | CR0_PG)));
    vmwrite(GUEST_CR3, state->cr3);
    vmwrite(GUEST_CR4, (state->cr4 & ~vmx_caps.cr4_supplied) | vmx_caps.cr4_fixed0 | CR4_MCE);
    hw->cr0 = state->cr0;
    hw->cr4 = state->cr4;
    vmx_write_shadows(ctx);
    if (unlikely(umip)) {
        ctx->ctl_dirty |= CTL_INTERCEPTS;
        vmx_write_controls(ctx);
    }
}

// The CPU keeps EFER.LMA, and with it this entry control, in step with CR0.PG by itself
// (IA32_VMX_MISC[5], which comes with unrestricted guest); so neither is a copy that stays true.
static void write_efer_pat(const struct guest_state *state)
{
    u32 entry = vmx_caps.controls.base[CONTROL_ENTRY];

    vmwrite(GUEST_EFER, state->efer);
    vmwrite(GUEST_PAT, state->pat);
    vmwrite(ENTRY_CONTROLS, entry | (state->efer & EFER_LMA ? ENTRY_CTL_IA32E_GUEST : 0));
}

// GROUP_RIP is written in enter.c.
void vmx_write_state(struct vcpu_ctx *ctx, u32 changed)
{
    const struct guest_state *s = &ctx->state;
    u32 dirty = groups_present(changed);

    if (dirty & GROUP_CR)
        write_cr(ctx);
    if (dirty & GROUP_EFER_PAT)
        write_efer_pat(s);
    OFTEN(WRITE_GROUP)
    if (dirty & SELDOM_GROUPS) {
        SELDOM(WRITE_GROUP)
    }
}

void vmx_report_state(void)
{
    bool cet = groups_present(GROUP_CET);

    for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
        if (cet || names[i].field < GUEST_S_CET || names[i].field > GUEST_INTERRUPT_SSP_TABLE)
            log_info("VMCS %s = %#llx", names[i].name, (unsigned long long)vmread(names[i].field));
}
