// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The guest state between the model and the VMCS, by groups: pull reads on demand, writing takes what is dirty. SDM vol. 3 "Guest-State
// Area". The shared groups live in registers that no VM entry or exit touches.

#include "vmx.h"
#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>

struct field {
    u16 encoding; // enum vmcs_field
    u16 offset;   // in struct guest_state
    u8 size;
    const char *name;
};

#define FIELD(encoding, member)                                     \
    {                                                               \
        encoding, offsetof(struct guest_state, member),             \
            sizeof(((struct guest_state *)NULL)->member), #encoding \
    }
#define SEGMENT(name)                                         \
    FIELD(GUEST_##name##_SELECTOR, seg[SEG_##name].selector), \
        FIELD(GUEST_##name##_BASE, seg[SEG_##name].base),     \
        FIELD(GUEST_##name##_LIMIT, seg[SEG_##name].limit),   \
        FIELD(GUEST_##name##_ACCESS, seg[SEG_##name].access)

// GROUP_RIP (enter.c), GROUP_CR and EFER are written by hand; the tables serve their reading and the
// report.
static const struct field rip_fields[] = {FIELD(GUEST_RIP, rip), FIELD(GUEST_RSP, rsp),
                                          FIELD(GUEST_RFLAGS, rflags)};
static const struct field cr_fields[] = {FIELD(GUEST_CR0, cr0), FIELD(GUEST_CR3, cr3),
                                         FIELD(GUEST_CR4, cr4)};
static const struct field pdpte_fields[] = {
    FIELD(GUEST_PDPTE0, pdpte[0]), FIELD(GUEST_PDPTE1, pdpte[1]), FIELD(GUEST_PDPTE2, pdpte[2]),
    FIELD(GUEST_PDPTE3, pdpte[3])};
static const struct field code_fields[] = {SEGMENT(CS), SEGMENT(SS)};
static const struct field data_fields[] = {SEGMENT(DS), SEGMENT(ES)};
static const struct field system_fields[] = {SEGMENT(FS), SEGMENT(GS), SEGMENT(LDTR), SEGMENT(TR)};
static const struct field tables_fields[] = {
    FIELD(GUEST_GDTR_BASE, gdtr.base), FIELD(GUEST_GDTR_LIMIT, gdtr.limit),
    FIELD(GUEST_IDTR_BASE, idtr.base), FIELD(GUEST_IDTR_LIMIT, idtr.limit)};
static const struct field sysenter_fields[] = {FIELD(GUEST_SYSENTER_CS, sysenter_cs),
                                               FIELD(GUEST_SYSENTER_ESP, sysenter_esp),
                                               FIELD(GUEST_SYSENTER_EIP, sysenter_eip)};
static const struct field efer_pat_fields[] = {FIELD(GUEST_EFER, efer), FIELD(GUEST_PAT, pat)};
static const struct field debug_fields[] = {FIELD(GUEST_DR7, dr7), FIELD(GUEST_DEBUGCTL, debugctl)};
static const struct field cet_fields[] = {FIELD(GUEST_S_CET, s_cet), FIELD(GUEST_SSP, ssp),
                                          FIELD(GUEST_INTERRUPT_SSP_TABLE, interrupt_ssp_table)};
static const struct field blocking_fields[] = {FIELD(GUEST_INTERRUPTIBILITY, interruptibility),
                                               FIELD(GUEST_ACTIVITY_STATE, activity)};
static const struct field pending_dbg_fields[] = {FIELD(GUEST_PENDING_DBG, pending_dbg)};

#define GROUP(name)                              \
    {                                            \
        name##_fields, ARRAY_SIZE(name##_fields) \
    }
// By the bit number of enum state_group.
static const struct {
    const struct field *fields;
    u8 count;
} groups_table[] = {
    GROUP(rip),    GROUP(cr),       GROUP(pdpte),       GROUP(code),     GROUP(data),
    GROUP(system), GROUP(tables),   GROUP(sysenter),    GROUP(efer_pat), GROUP(debug),
    GROUP(cet),    GROUP(blocking), GROUP(pending_dbg),
};
_Static_assert(BITS(ARRAY_SIZE(groups_table) - 1, 0) == GROUP_ALL_CTX, "a group has no fields");

static u64 get_member(const struct guest_state *state, const struct field *field)
{
    const void *p = (const char *)state + field->offset;

    return field->size == 8   ? *(const u64 *)p
           : field->size == 4 ? *(const u32 *)p
                              : *(const u16 *)p;
}

static void set_member(struct guest_state *state, const struct field *field, u64 value)
{
    void *p = (char *)state + field->offset;

    if (field->size == 8)
        *(u64 *)p = value;
    else if (field->size == 4)
        *(u32 *)p = (u32)value;
    else
        *(u16 *)p = (u16)value;
}

// The groups whose fields the CPU has.
static u32 groups_present(u32 groups)
{
    return vmx_uses(CONTROL_ENTRY, ENTRY_CTL_LOAD_CET) ? groups : groups & ~(u32)GROUP_CET;
}

static void pull_groups(struct vcpu_ctx *ctx, u32 groups)
{
    const struct backend_ctx *hw = ctx->hw;

    for (u32 left = groups_present(groups); left; left &= left - 1) {
        unsigned i = (unsigned)__builtin_ctz(left);

        for (unsigned j = 0; j < groups_table[i].count; j++)
            set_member(&ctx->state, &groups_table[i].fields[j],
                       vmread(groups_table[i].fields[j].encoding));
    }
    if (groups & GROUP_CR) {
        ctx->state.cr0 = (ctx->state.cr0 & ~CR0_OWN) | (hw->cr0 & CR0_OWN);
        ctx->state.cr4 = (ctx->state.cr4 & ~CR4_OWN) | (hw->cr4 & CR4_OWN);
    }
    ctx->valid |= groups;
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
    if (groups & GROUP_DR) {
        vcpu->dr[0] = read_dr0();
        vcpu->dr[1] = read_dr1();
        vcpu->dr[2] = read_dr2();
        vcpu->dr[3] = read_dr3();
        vcpu->dr6 = read_dr6();
    }
    if (groups & GROUP_CR2)
        vcpu->cr2 = read_cr2();
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
    if (vcpu->shared_dirty & GROUP_DR) {
        write_dr0(vcpu->dr[0]);
        write_dr1(vcpu->dr[1]);
        write_dr2(vcpu->dr[2]);
        write_dr3(vcpu->dr[3]);
        write_dr6(vcpu->dr6);
    }
    if (vcpu->shared_dirty & GROUP_CR2)
        write_cr2(vcpu->cr2);
    vcpu->shared_dirty = 0;
}

// What the guest reads of masked bits: core's shadow where core masks, the guest's own value where only the back end does.
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

    // Unrestricted guest: PE and PG are the guest's, whatever IA32_VMX_CR0_FIXED0 says.
    vmwrite(GUEST_CR0,
            (state->cr0 & ~(CR0_NW | CR0_CD)) | (vmx_caps.cr0_fixed0 & ~(CR0_PE | CR0_PG)));
    vmwrite(GUEST_CR3, state->cr3);
    vmwrite(GUEST_CR4, state->cr4 | vmx_caps.cr4_fixed0 | CR4_MCE);
    hw->cr0 = state->cr0;
    hw->cr4 = state->cr4;
    vmx_write_shadows(ctx);
}

// The CPU keeps EFER.LMA, and with it this entry control, in step with CR0.PG by itself (IA32_VMX_MISC[5], which comes with
// unrestricted guest); so neither is a copy that stays true.
static void write_efer_pat(const struct guest_state *state)
{
    u32 entry = vmx_caps.controls.base[CONTROL_ENTRY];

    vmwrite(GUEST_EFER, state->efer);
    vmwrite(GUEST_PAT, state->pat);
    vmwrite(ENTRY_CONTROLS, entry | (state->efer & EFER_LMA ? ENTRY_CTL_IA32E_GUEST : 0));
}

void vmx_write_state(struct vcpu_ctx *ctx, u32 dirty)
{
    if (dirty & GROUP_CR)
        write_cr(ctx);
    if (dirty & GROUP_EFER_PAT)
        write_efer_pat(&ctx->state);
    for (u32 left = groups_present(dirty & ~(u32)(GROUP_RIP | GROUP_CR | GROUP_EFER_PAT)); left;
         left &= left - 1) {
        unsigned i = (unsigned)__builtin_ctz(left);

        for (unsigned j = 0; j < groups_table[i].count; j++)
            vmwrite(groups_table[i].fields[j].encoding,
                    get_member(&ctx->state, &groups_table[i].fields[j]));
    }
}

void vmx_report_state(void)
{
    u32 present = groups_present(GROUP_ALL_CTX);

    for (unsigned i = 0; i < ARRAY_SIZE(groups_table); i++)
        for (unsigned j = 0; (present & BIT(i)) && j < groups_table[i].count; j++)
            log_info("VMCS %s = %#llx", groups_table[i].fields[j].name,
                     (unsigned long long)vmread(groups_table[i].fields[j].encoding));
}
