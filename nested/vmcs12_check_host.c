// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The checks of VM entry on the host-state area (SDM vol. 3 "VM Entries": "Checks on Host Control
// Registers, MSRs, and SSP", "Checks on Host Segment and Descriptor-Table Registers", "Checks
// Related to Address-Space Size"), in its order. Pure.

#include "vmcs12_check.h"

static bool host64(const struct check *c)
{
    return c->word[WORD_EXIT] & EXIT_CTL_HOST_64;
}

static bool cet_without_wp(const struct check *c, const struct check_row *row)
{
    return (field_of(c, row) & CR4_CET) && !(get(c, HOST_CR0) & CR0_WP);
}

// LMA and LME must each be the host address-space size.
static bool efer(const struct check *c, const struct check_row *row)
{
    u64 value = field_of(c, row), size = host64(c) ? EFER_LMA | EFER_LME : 0;

    return (value & ~EFER_KNOWN) || (value & (EFER_LMA | EFER_LME)) != size;
}

static bool selectors(const struct check *c, const struct check_row *row)
{
    for (u32 field = HOST_ES_SELECTOR; field <= HOST_TR_SELECTOR; field += 2)
        if (get(c, (enum vmcs_field)field) & row->arg)
            return true;
    return false;
}

static bool null_stack(const struct check *c, const struct check_row *row)
{
    return !host64(c) && check_zero(c, row);
}

// Whether L1 itself is in IA-32e mode (`field`: what must be the same).
static bool other_mode(const struct check *c, const struct check_row *row)
{
    (void)row;
    return vcpu_mode_long(c->vcpu) != host64(c);
}

static bool ia32e_guest_of_32bit_host(const struct check *c, const struct check_row *row)
{
    (void)row;
    return c->ia32e && !host64(c);
}

static bool pcid_of_32bit_host(const struct check *c, const struct check_row *row)
{
    return !host64(c) && (field_of(c, row) & CR4_PCIDE);
}

static bool high_rip_of_32bit_host(const struct check *c, const struct check_row *row)
{
    return !host64(c) && field_of(c, row) >> 32;
}

static bool high_cet_of_32bit_host(const struct check *c, const struct check_row *row)
{
    return !host64(c) && (field_of(c, row) | get(c, HOST_SSP)) >> 32;
}

static bool no_pae(const struct check *c, const struct check_row *row)
{
    return host64(c) && !(field_of(c, row) & CR4_PAE);
}

// RIP alone is canonical by the paging that the exit switches to.
static bool rip(const struct check *c, const struct check_row *row)
{
    return host64(c) && !is_sign_extended(field_of(c, row), get(c, HOST_CR4) & CR4_LA57 ? 57 : 48);
}

static const struct check_row rows[] = {
    // "Checks on Host Control Registers, MSRs, and SSP"
    {"host CR0: fixed bits", check_cr0, 0, 0, 0, HOST_CR0, 0},
    {"host CR4: fixed bits", check_cr4, 0, 0, 0, HOST_CR4, 0},
    {"host CR4.CET without CR0.WP", cet_without_wp, 0, 0, 0, HOST_CR4, 0},
    {"host CR3", check_address, 0, 0, 0, HOST_CR3, 0},
    {"host IA32_SYSENTER_ESP", check_canonical, 0, 0, 0, HOST_SYSENTER_ESP, 0},
    {"host IA32_SYSENTER_EIP", check_canonical, 0, 0, 0, HOST_SYSENTER_EIP, 0},
    {"host IA32_PERF_GLOBAL_CTRL", check_reserved, WORD_EXIT, 0, EXIT_CTL_LOAD_PERF_GLOBAL,
     HOST_PERF_GLOBAL_CTRL, ~0ull},
    {"host IA32_PAT", check_pat, WORD_EXIT, 0, EXIT_CTL_LOAD_PAT, HOST_PAT, 0},
    {"host IA32_EFER", efer, WORD_EXIT, 0, EXIT_CTL_LOAD_EFER, HOST_EFER, 0},
    {"host IA32_S_CET", check_s_cet, WORD_EXIT, 0, EXIT_CTL_LOAD_CET, HOST_S_CET, 0},
    {"host IA32_INTERRUPT_SSP_TABLE_ADDR", check_canonical, WORD_EXIT, 0, EXIT_CTL_LOAD_CET,
     HOST_INTERRUPT_SSP_TABLE, 0},
    {"host SSP: bits 1:0", check_reserved, WORD_EXIT, 0, EXIT_CTL_LOAD_CET, HOST_SSP, 3},
    {"host SSP", check_canonical, WORD_EXIT, 0, EXIT_CTL_LOAD_CET, HOST_SSP, 0},
    {"host IA32_PKRS", check_reserved, WORD_EXIT, 0, EXIT_CTL_LOAD_PKRS, HOST_PKRS, BITS(63, 32)},
    // "Checks on Host Segment and Descriptor-Table Registers"
    {"host selectors: RPL and TI", selectors, 0, 0, 0, 0, 7},
    {"host CS 0", check_zero, 0, 0, 0, HOST_CS_SELECTOR, 0},
    {"host TR 0", check_zero, 0, 0, 0, HOST_TR_SELECTOR, 0},
    {"host SS 0", null_stack, 0, 0, 0, HOST_SS_SELECTOR, 0},
    {"host FS base", check_canonical, 0, 0, 0, HOST_FS_BASE, 0},
    {"host GS base", check_canonical, 0, 0, 0, HOST_GS_BASE, 0},
    {"host GDTR base", check_canonical, 0, 0, 0, HOST_GDTR_BASE, 0},
    {"host IDTR base", check_canonical, 0, 0, 0, HOST_IDTR_BASE, 0},
    {"host TR base", check_canonical, 0, 0, 0, HOST_TR_BASE, 0},
    // "Checks Related to Address-Space Size"
    {"host address-space size", other_mode, 0, 0, 0, 0, 0},
    {"IA-32e mode guest of a 32-bit host", ia32e_guest_of_32bit_host, 0, 0, 0, 0, 0},
    {"host CR4.PCIDE of a 32-bit host", pcid_of_32bit_host, 0, 0, 0, HOST_CR4, 0},
    {"host RIP of a 32-bit host", high_rip_of_32bit_host, 0, 0, 0, HOST_RIP, 0},
    {"host IA32_S_CET and SSP of a 32-bit host", high_cet_of_32bit_host, WORD_EXIT, 0,
     EXIT_CTL_LOAD_CET, HOST_S_CET, 0},
    {"host CR4.PAE of a 64-bit host", no_pae, 0, 0, 0, HOST_CR4, 0},
    {"host RIP", rip, 0, 0, 0, HOST_RIP, 0},
};

const struct check_table vmcs12_host_checks = {
    rows, ARRAY_SIZE(rows),    ARRAY_SIZE(rows), ARRAY_SIZE(rows), WORD_NONE, DUE_HOST,
    0,    VMX_ERROR_HOST_STATE};
