// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The VMX back end's operations. Traps of this vendor: NMIs stay blocked after an NMI exit until an
// IRET (enter.c); INIT is blocked in VMX root operation, so a CPU can't be reset by one; a VMCS is
// active on one CPU at a time (context.c).

#include "vmx.h"
#include <nestor/stage2.h>

struct backend vmx_backend = {
    .name = "VMX",
    .stage2_format = &stage2_ept,
    .probe = vmx_probe,
    .describe = vmx_describe,
    .cpu_on = vmx_cpu_on,
    .cpu_off = vmx_cpu_off,
    .ctx_create = vmx_ctx_create,
    .ctx_destroy = vmx_ctx_destroy,
    .load = vmx_load,
    .put = vmx_put,
    .select = vmx_select,
    .pull = vmx_pull,
    .enter = vmx_enter,
    .apic_update = vmx_apic_update,
    .apic_notify = vmx_apic_notify,
    .shadow_allow = vmx_shadow_allow,
    .shadow_publish = vmx_shadow_publish,
    .shadow_collect = vmx_shadow_collect,
    .shadow_close = vmx_shadow_close,
    .stage2_levels = vmx_stage2_levels,
    .holds_pdptes = true,
    .report = vmx_report,
};
