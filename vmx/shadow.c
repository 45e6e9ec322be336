// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMCS shadowing: a guest hypervisor's VMREAD and VMWRITE of some fields go to a shadow VMCS
// without an exit (SDM vol. 3 "VMCS Shadowing", "VMREAD Bitmap and VMWRITE Bitmap"). It is active
// and current only while Nestor writes or reads it.

#include "vmx.h"
#include <nestor/host.h>
#include <nestor/page.h>
#include <nestor/string.h>
#include <nestor/vm.h>

enum { SHADOW_ORDER = 2 }; // the VMCS, the VMREAD bitmap, the VMWRITE bitmap
#define SHADOW_INDICATOR (1u << 31)

void vmx_shadow_probe(const struct vmx_caps *caps)
{
    const u32 *allowed = caps->controls.allowed;

    vmx_backend.shadows_vmcs = !option_off("shadow-vmcs") && (caps->misc & VMX_MISC_VMWRITE_ANY) &&
                               (allowed[CONTROL_SECONDARY] & SECONDARY_VMCS_SHADOWING) &&
                               (allowed[CONTROL_PRIMARY] & PRIMARY_TPR_SHADOW) &&
                               (allowed[CONTROL_PIN] & PIN_PREEMPTION_TIMER);
}

int vmx_shadow_create(struct backend_ctx *hw)
{
    u8 *pages = page_alloc(SHADOW_ORDER);

    if (!pages)
        return -E_NOMEM;
    *(u32 *)(void *)pages = (u32)(vmx_caps.basic & VMX_BASIC_REVISION) | SHADOW_INDICATOR;
    memset(pages + PAGE_SIZE, 0xff, 2 * PAGE_SIZE);
    hw->shadow = pages;
    hw->shadow_pa = virt_to_phys(pages);
    return 0;
}

void vmx_shadow_destroy(struct backend_ctx *hw)
{
    if (hw->shadow)
        page_free(hw->shadow, SHADOW_ORDER);
}

void vmx_shadow_write_constants(const struct backend_ctx *hw)
{
    vmwrite(VMREAD_BITMAP, virt_to_phys(hw->shadow + PAGE_SIZE));
    vmwrite(VMWRITE_BITMAP, virt_to_phys(hw->shadow + 2 * PAGE_SIZE));
}

// With the context's VMCS current.
void vmx_shadow_controls(struct backend_ctx *hw)
{
    if (hw->shadow_open)
        hw->secondary |= SECONDARY_VMCS_SHADOWING;
    vmwrite(VMCS_LINK_POINTER, hw->shadow_open ? hw->shadow_pa : ~0ull);
}

// Fields that a CPU with VMCS shadowing may lack, as far as they are asked for.
static const struct {
    u16 field;
    u32 secondary;
} optional[] = {
    {GUEST_INTERRUPT_STATUS, SECONDARY_INTERRUPT_DELIVERY},
    {PML_INDEX, SECONDARY_PML},
};

static bool has_field(u16 field)
{
    for (unsigned i = 0; i < ARRAY_SIZE(optional); i++)
        if (optional[i].field == field)
            return vmx_has(CONTROL_SECONDARY, optional[i].secondary);
    return true;
}

u32 vmx_shadow_allow(struct vcpu *vcpu, const struct shadow_field *fields, unsigned count,
                     u32 offered)
{
    u8 *read = vcpu->ctx[0].hw->shadow + PAGE_SIZE, *write = read + PAGE_SIZE;
    u32 there = 0;

    memset(read, 0xff, 2 * PAGE_SIZE);
    for (unsigned i = 0; i < count; i++) {
        u8 keep = (u8)~BIT(fields[i].encoding % 8);

        if (!has_field(fields[i].encoding))
            continue;
        there |= (u32)BIT(i);
        if (!(offered & BIT(i)))
            continue;
        read[fields[i].encoding / 8] &= keep;
        if (fields[i].writable)
            write[fields[i].encoding / 8] &= keep;
    }
    return there;
}

static void set_open(struct vcpu *vcpu, bool open)
{
    struct vcpu_ctx *ctx = &vcpu->ctx[0];

    if (ctx->hw->shadow_open != open)
        ctx->ctl_dirty |= CTL_INTERCEPTS;
    ctx->hw->shadow_open = open;
}

// What the CPU has of it goes to memory; what was current is so again.
static void leave_shadow(const struct backend_ctx *hw)
{
    vmclear(hw->shadow_pa);
    vmptrld(vmx_this_cpu()->loaded->vmcs_pa);
}

void vmx_shadow_publish(struct vcpu *vcpu, const struct shadow_field *fields, u32 which,
                        const u64 *values)
{
    const struct backend_ctx *hw = vcpu->ctx[0].hw;

    vmptrld(hw->shadow_pa);
    for (u32 left = which; left; left &= left - 1)
        vmwrite(fields[__builtin_ctz(left)].encoding, values[__builtin_ctz(left)]);
    leave_shadow(hw);
    set_open(vcpu, true);
}

u32 vmx_shadow_collect(struct vcpu *vcpu, const struct shadow_field *fields, unsigned count,
                       u64 *values)
{
    const struct backend_ctx *hw = vcpu->ctx[0].hw;
    u32 changed = 0;

    vmptrld(hw->shadow_pa);
    for (unsigned i = 0; i < count; i++) {
        u64 value = vmread(fields[i].encoding);

        if (unlikely(values[i] != value)) {
            values[i] = value;
            changed |= (u32)BIT(i);
        }
    }
    leave_shadow(hw);
    return changed;
}

void vmx_shadow_close(struct vcpu *vcpu)
{
    set_open(vcpu, false);
}
