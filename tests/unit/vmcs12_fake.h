// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A vCPU with a VMCS12 that passes the checks of VM entry, to spoil in tests of nested/vmcs12_*.c.
// The controls are each test's own.

#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/msr.h>
#include <arch/x86/regs.h>

#include "nested/vmcs12.h"

enum { PHYS_BITS = 40 };
#define EFER_64 (EFER_LME | EFER_LMA | EFER_SCE | EFER_NX)

static struct vcpu vcpu;
static struct vm_config config;
static struct vm vm = {.config = &config};
static struct nested nested;
static bool la57;         // what L1's CPU has
static bool lacks_fields; // what is put may have no place in this L1's VMCS

u8 cpuid_phys_bits(const struct vm *v)
{
    (void)v;
    return PHYS_BITS;
}

bool vcpu_mode_long(struct vcpu *v)
{
    return v->cur->state.efer & EFER_LMA;
}

static void put(u32 field, u64 value)
{
    assert_true(lacks_fields || vmcs12_field(&nested, field));
    vmcs12_write(&nested, (enum vmcs_field)field, value);
}

static void put_segment(unsigned n, u16 selector, u32 access, u32 limit, u64 base)
{
    put(GUEST_ES_SELECTOR + 2 * n, selector);
    put(GUEST_ES_ACCESS + 2 * n, access);
    put(GUEST_ES_LIMIT + 2 * n, limit);
    put(GUEST_ES_BASE + 2 * n, base);
}

static void put_host(void)
{
    put(HOST_CR0, CR0_PE | CR0_NE | CR0_PG | CR0_WP);
    put(HOST_CR4, CR4_PAE | CR4_VMXE);
    put(HOST_EFER, EFER_64);
    put(HOST_PAT, 0x0007040600070406);
    put(HOST_CS_SELECTOR, 8);
    put(HOST_SS_SELECTOR, 0x10);
    put(HOST_TR_SELECTOR, 0x18);
    put(HOST_RIP, 0xffff800000001000);
}

static void put_guest(void)
{
    put(GUEST_CR0, CR0_PE | CR0_NE | CR0_PG | CR0_WP);
    put(GUEST_CR4, CR4_PAE | CR4_VMXE);
    put(GUEST_EFER, EFER_64);
    put(GUEST_PAT, 0x0007040600070406);
    put(GUEST_DR7, DR7_FIXED);
    put(GUEST_RFLAGS, RFLAGS_FIXED);
    put(GUEST_RIP, 0x401000);
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++)
        put_segment(seg, 0x10, 0xc093, ~0u, 0);
    put_segment(SEG_CS, 8, 0xa09b, ~0u, 0);
    put_segment(SEG_LDTR, 0, SEG_UNUSABLE, 0, 0);
    put_segment(SEG_TR, 0x18, 0x8b, 0x67, 0);
}

// A vCPU in 64-bit mode, with an empty VMCS12 and the capability MSRs.
static void fake_reset(void)
{
    memset(&vcpu, 0, sizeof(vcpu));
    memset(&nested, 0, sizeof(nested));
    vcpu.vm = &vm;
    vcpu.cur = &vcpu.ctx[0];
    vcpu.nested = &nested;
    vcpu.cur->state.efer = EFER_64;
    config.nested_features = ~0ull;
    vmcs12_caps_reset(&vcpu);
}
