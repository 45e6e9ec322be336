// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: nested/vmcs12_fields.c nested/vmcs12_caps.c nested/vmcs12_check.c nested/vmcs12_check_host.c nested/vmcs12_check_guest.c
//
// VMCS12: the fields (nested/vmcs12_fields.c) and the capability MSRs (nested/vmcs12_caps.c), and
// that both follow what L1's CPU has (SDM vol. 3 appendices A and B).

#include "vmcs12_check_fake.h"

static void test_fields(void **state)
{
    unsigned count = 0;
    u64 highest = vmcs12_capability(&vcpu, MSR_VMX_VMCS_ENUM);

    (void)state;
    for (u32 encoding = 0; encoding < 0x8000; encoding++) {
        u64 *slot = vmcs12_field(&nested, encoding);

        if (!slot)
            continue;
        count++;
        assert_false(encoding & 1);
        assert_false(encoding & BIT(12));
        assert_true((encoding & BITS(9, 1)) <= highest);
        assert_true(slot >= nested.vmcs.field && slot < nested.vmcs.field + VMCS12_FIELDS);
        *slot = encoding; // each has a place of its own
    }
    assert_true(count > 100 && count <= VMCS12_FIELDS);
    for (u32 encoding = 0; encoding < 0x8000; encoding++)
        if (vmcs12_field(&nested, encoding))
            assert_int_equal(*vmcs12_field(&nested, encoding), encoding);
    assert_null(vmcs12_field(&nested, PML_ADDRESS));
    assert_null(vmcs12_field(&nested, 0x10000 | GUEST_RIP));
}

// By bits 14:13 of the encoding: 16, 64, 32 bits, natural width (appendix B).
static void test_fields_from_memory(void **state)
{
    static const u64 all[] = {0xffff, ~0ull, 0xffffffff, ~0ull};

    (void)state;
    memset(nested.vmcs.field, 0xff, sizeof(nested.vmcs.field));
    vmcs12_fields_cut(&nested);
    for (u32 encoding = 0; encoding < 0x8000; encoding++)
        if (vmcs12_field(&nested, encoding))
            assert_int_equal(*vmcs12_field(&nested, encoding), all[encoding >> 13]);
}

static bool offered(u32 entry, u32 exit)
{
    bool in = vmcs12_capability(&vcpu, MSR_VMX_ENTRY_CTLS) >> 32 & entry;

    assert_int_equal(in, !!(vmcs12_capability(&vcpu, MSR_VMX_EXIT_CTLS) >> 32 & exit));
    return in;
}

static bool has_fields(u32 guest, u32 host)
{
    assert_int_equal(!vmcs12_field(&nested, guest), !vmcs12_field(&nested, host));
    return vmcs12_field(&nested, guest);
}

// Controls and fields are there with the feature; no guest has performance counters.
static void test_offered_state(void **state)
{
    (void)state;
    assert_false(offered(ENTRY_CTL_LOAD_CET, EXIT_CTL_LOAD_CET));
    assert_false(has_fields(GUEST_S_CET, HOST_S_CET) || has_fields(GUEST_SSP, HOST_SSP));
    assert_false(offered(ENTRY_CTL_LOAD_PKRS, EXIT_CTL_LOAD_PKRS));
    assert_false(has_fields(GUEST_PKRS, HOST_PKRS));
    assert_false(vmcs12_capability(&vcpu, MSR_VMX_BASIC) & VMX_BASIC_ANY_ERROR);
    assert_false(offered(ENTRY_CTL_LOAD_PERF_GLOBAL, EXIT_CTL_LOAD_PERF_GLOBAL));
    assert_false(has_fields(GUEST_PERF_GLOBAL_CTRL, HOST_PERF_GLOBAL_CTRL));
    change(ENTRY_CONTROLS, 0, ENTRY_CTL_LOAD_PERF_GLOBAL);
    assert_int_equal(check(), CONTROLS);
    put_controls();
    change(EXIT_CONTROLS, 0, EXIT_CTL_LOAD_PERF_GLOBAL);
    assert_int_equal(check(), CONTROLS);

    pks = true;
    offer_cet(true, true);
    assert_true(offered(ENTRY_CTL_LOAD_CET, EXIT_CTL_LOAD_CET));
    assert_true(has_fields(GUEST_S_CET, HOST_S_CET) && has_fields(GUEST_SSP, HOST_SSP));
    assert_true(offered(ENTRY_CTL_LOAD_PKRS, EXIT_CTL_LOAD_PKRS));
    assert_true(has_fields(GUEST_PKRS, HOST_PKRS));
    assert_true(vmcs12_capability(&vcpu, MSR_VMX_BASIC) & VMX_BASIC_ANY_ERROR);
    config.nested_features = ~(BIT(OFFER_CET) | BIT(OFFER_PKRS));
    offer_cet(true, true);
    assert_false(offered(ENTRY_CTL_LOAD_CET, EXIT_CTL_LOAD_CET));
    assert_false(offered(ENTRY_CTL_LOAD_PKRS, EXIT_CTL_LOAD_PKRS));
}

static void test_capabilities(void **state)
{
    static const u32 pairs[][2] = {
        {MSR_VMX_PINBASED_CTLS, MSR_VMX_TRUE_PINBASED_CTLS},
        {MSR_VMX_PROCBASED_CTLS, MSR_VMX_TRUE_PROCBASED_CTLS},
        {MSR_VMX_EXIT_CTLS, MSR_VMX_TRUE_EXIT_CTLS},
        {MSR_VMX_ENTRY_CTLS, MSR_VMX_TRUE_ENTRY_CTLS},
    };
    // SDM vol. 3 appendices A.3 to A.5: the default1 classes
    static const u32 default1[] = {0x16, 0x0401e172, 0x00036dff, 0x000011ff};

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(pairs); i++) {
        u64 plain = vmcs12_capability(&vcpu, pairs[i][0]);
        u64 exact = vmcs12_capability(&vcpu, pairs[i][1]);

        assert_int_equal((u32)plain, default1[i]);
        assert_int_equal(plain >> 32, exact >> 32);
        assert_int_equal((u32)exact & ~(u32)plain, 0);    // may allow more zeros
        assert_int_equal((u32)plain & ~(plain >> 32), 0); // what must be 1 may be 1
    }
    assert_true(vmcs12_capability(&vcpu, MSR_VMX_BASIC) & VMX_BASIC_TRUE_CTLS);
    assert_int_equal(vmcs12_capability(&vcpu, MSR_VMX_CR4_FIXED1), cr4_allowed(&vcpu));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_fields, setup),
        cmocka_unit_test_setup(test_fields_from_memory, setup),
        cmocka_unit_test_setup(test_offered_state, setup),
        cmocka_unit_test_setup(test_capabilities, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
