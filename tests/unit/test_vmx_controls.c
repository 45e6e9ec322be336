// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Negotiating VMX controls: a CPU with everything, one that lacks single controls, one with bits
// that must be 1; and what intercepts become.
// unit-sources: vmx/controls.c

#include "vmx/controls.h"
#include <arch/x86/vmx.h>
#include <nestor/vcpu.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const char *missing_msr, *missing_control;

static void note_missing(const char *msr, const char *control)
{
    missing_msr = msr;
    missing_control = control;
}

static const u64 everything[CONTROL_FIELDS] = {~0ull << 32, ~0ull << 32, ~0ull << 32, ~0ull << 32,
                                               ~0ull << 32};

static unsigned negotiate_without(enum vmx_control_field field, u32 bit, struct vmx_controls *out)
{
    u64 msrs[CONTROL_FIELDS];

    memcpy(msrs, everything, sizeof(msrs));
    msrs[field] &= ~((u64)bit << 32);
    missing_msr = missing_control = NULL;
    return vmx_controls_negotiate(msrs, out, note_missing);
}

static void test_everything_there(void **state)
{
    struct vmx_controls controls;

    (void)state;
    assert_int_equal(negotiate_without(CONTROL_PIN, 0, &controls), 0);
    assert_null(missing_msr);
    assert_true(controls.base[CONTROL_SECONDARY] & SECONDARY_UNRESTRICTED_GUEST);
    assert_true(controls.base[CONTROL_SECONDARY] & SECONDARY_VPID);
    // never on by themselves: windows, MTF, HLT, descriptor tables, guest mode
    assert_false(controls.base[CONTROL_PRIMARY] &
                 (PRIMARY_INTERRUPT_WINDOW | PRIMARY_NMI_WINDOW | PRIMARY_MTF | PRIMARY_HLT));
    assert_false(controls.base[CONTROL_SECONDARY] & SECONDARY_DESCRIPTOR_TABLE);
    assert_false(controls.base[CONTROL_ENTRY] & ENTRY_CTL_IA32E_GUEST);
    // and nothing that Nestor has no name for
    assert_false(controls.base[CONTROL_SECONDARY] &
                 (SECONDARY_VM_FUNCTIONS | SECONDARY_ENCLS | SECONDARY_PML));
    assert_string_equal(vmx_controls_optional(&controls, 0), "VMX-preemption timer");
    assert_null(vmx_controls_optional(&controls, 32));
}

static void test_missing(void **state)
{
    struct vmx_controls controls;

    (void)state;
    assert_int_equal(negotiate_without(CONTROL_SECONDARY, SECONDARY_UNRESTRICTED_GUEST, &controls),
                     1);
    assert_string_equal(missing_msr, "IA32_VMX_PROCBASED_CTLS2");
    assert_string_equal(missing_control, "unrestricted guest");
    assert_int_equal(negotiate_without(CONTROL_PRIMARY, PRIMARY_NMI_WINDOW, &controls), 1);
    assert_string_equal(missing_control, "NMI-window exiting");
    assert_int_equal(
        negotiate_without(CONTROL_EXIT, EXIT_CTL_ACK_INTERRUPT | EXIT_CTL_LOAD_PAT, &controls), 2);
    // optional ones
    assert_int_equal(
        negotiate_without(CONTROL_SECONDARY, SECONDARY_VPID | SECONDARY_XSAVES, &controls), 0);
    assert_false(controls.base[CONTROL_SECONDARY] & (SECONDARY_VPID | SECONDARY_XSAVES));
    assert_int_equal(negotiate_without(CONTROL_PIN, PIN_PREEMPTION_TIMER, &controls), 0);
    assert_string_equal(vmx_controls_optional(&controls, 0), "RDTSCP");
}

static void test_must_be_one(void **state)
{
    u64 msrs[CONTROL_FIELDS];
    struct vmx_controls controls;

    (void)state;
    memcpy(msrs, everything, sizeof(msrs));
    msrs[CONTROL_PIN] |= 0x16;
    msrs[CONTROL_PRIMARY] |= 0x0401e172;
    assert_int_equal(vmx_controls_negotiate(msrs, &controls, note_missing), 0);
    assert_int_equal(controls.base[CONTROL_PIN] & 0x16, 0x16);
    assert_int_equal(controls.base[CONTROL_PRIMARY] & 0x0401e172, 0x0401e172);
}

static void test_intercepts(void **state)
{
    (void)state;
    assert_int_equal(vmx_intercept_controls(0, CONTROL_PRIMARY), 0);
    assert_int_equal(vmx_intercept_controls(INTERCEPT_HLT | INTERCEPT_WBINVD, CONTROL_PRIMARY),
                     PRIMARY_HLT);
    assert_int_equal(vmx_intercept_controls(INTERCEPT_HLT | INTERCEPT_WBINVD, CONTROL_SECONDARY),
                     SECONDARY_WBINVD);
    assert_int_equal(
        vmx_intercept_controls(INTERCEPT_CR3_WRITE | INTERCEPT_DR_READ, CONTROL_PRIMARY),
        PRIMARY_CR3_LOAD | PRIMARY_MOV_DR);
    assert_int_equal(vmx_intercept_controls(INTERCEPT_TABLES_WRITE, CONTROL_SECONDARY),
                     SECONDARY_DESCRIPTOR_TABLE);
    // what VMX can't intercept asks for nothing
    assert_int_equal(
        vmx_intercept_controls(INTERCEPT_IRET | INTERCEPT_PUSHF | INTERCEPT_SVM, CONTROL_PRIMARY),
        0);
}

// What a CPU lacks, and what is off for a guest that is not offered it.
static void test_isa(void **state)
{
    struct vmx_controls controls, none = {0};

    (void)state;
    assert_int_equal(vmx_controls_negotiate(everything, &controls, note_missing), 0);
    assert_int_equal(vmx_controls_lacks(&controls), 0);
    assert_int_equal(vmx_controls_lacks(&none), ISA_ALL);
    controls.base[CONTROL_EXIT] &= ~(u32)EXIT_CTL_LOAD_CET; // one of CET's two
    controls.base[CONTROL_SECONDARY] &= ~(u32)SECONDARY_XSAVES;
    assert_int_equal(vmx_controls_lacks(&controls), ISA_CET | ISA_XSAVES);
    assert_int_equal(vmx_secondary_disabled(0), 0);
    assert_int_equal(vmx_secondary_disabled(ISA_CET), 0);
    assert_int_equal(vmx_secondary_disabled(ISA_RDTSCP | ISA_INVPCID | ISA_XSAVES | ISA_USER_WAIT),
                     SECONDARY_RDTSCP | SECONDARY_INVPCID | SECONDARY_XSAVES |
                         SECONDARY_USER_WAIT_PAUSE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everything_there),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_must_be_one),
        cmocka_unit_test(test_intercepts),
        cmocka_unit_test(test_isa),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
