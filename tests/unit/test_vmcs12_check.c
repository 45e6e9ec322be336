// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: nested/vmcs12_fields.c nested/vmcs12_caps.c nested/vmcs12_check.c nested/vmcs12_check_host.c nested/vmcs12_check_guest.c
//
// The checks of VM entry on controls and host state (nested/vmcs12_check.c, vmcs12_check_host.c) by
// spoiling one field of a VMCS12 that passes (SDM vol. 3 "Checks on VMX Controls and Host-State
// Area").

#include "vmcs12_check_fake.h"

static void test_good(void **state)
{
    (void)state;
    assert_int_equal(check(), PASSES);
}

// --- controls ---

static void test_controls(void **state)
{
    static const struct row rows[] = {
        {PIN_BASED_CONTROLS, 2, 0, "pin-based, bit 1 clear"},
        {PIN_BASED_CONTROLS, 0, PIN_VIRTUAL_NMIS, "virtual NMIs"},
        {PIN_BASED_CONTROLS, 0, PIN_POSTED_INTERRUPTS, "posted interrupts"},
        {PRIMARY_CONTROLS, 2, 0, "primary, bit 1 clear"},
        {PRIMARY_CONTROLS, 0, PRIMARY_MTF, "MTF"},
        {PRIMARY_CONTROLS, 0, PRIMARY_NMI_WINDOW, "NMI window"},
        {CR3_TARGET_COUNT, 0, 5, "CR3-target count"},
        {IO_BITMAP_A, 0, 1, "I/O bitmap A, misaligned"},
        {IO_BITMAP_A, 0, 1ull << PHYS_BITS, "I/O bitmap A, beyond"},
        {IO_BITMAP_B, 0, 0x800, "I/O bitmap B, misaligned"},
        {MSR_BITMAP, 0, 0x800, "MSR bitmap, misaligned"},
        {MSR_BITMAP, 0, 1ull << 63, "MSR bitmap, beyond"},
        {EXIT_CONTROLS, 1, 0, "exit, bit 0 clear"},
        {EXIT_CONTROLS, 0, EXIT_CTL_SAVE_TIMER, "save timer"},
        {ENTRY_CONTROLS, 1, 0, "entry, bit 0 clear"},
        {ENTRY_CONTROLS, 0, ENTRY_CTL_SMM, "entry to SMM"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(1, 0x40), "type 1"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(7, 0), "type 7"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(0, 0x40) | BIT(12), "information, bit 12"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(0, 0x40) | BIT(30), "information, bit 30"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(2, 3), "NMI, vector 3"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(3, 32), "exception 32"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(3, VECTOR_GP), "#GP without error code"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(3, VECTOR_UD) | INFO_ERROR_CODE, "#UD with error code"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(0, VECTOR_GP) | INFO_ERROR_CODE, "interrupt with one"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(4, 0x40), "INT n, length 0"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(5, VECTOR_DB), "INT1, length 0"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(6, VECTOR_BP), "INT3, length 0"},
    };

    (void)state;
    check_rows(rows, ARRAY_SIZE(rows), CONTROLS);
}

static void test_bitmaps_that_are_not_used(void **state)
{
    (void)state;
    change(PRIMARY_CONTROLS, PRIMARY_IO_BITMAPS | PRIMARY_MSR_BITMAPS, 0);
    put(IO_BITMAP_A, 1);
    put(IO_BITMAP_B, 1);
    put(MSR_BITMAP, 1);
    put(CR3_TARGET_COUNT, 4);
    assert_int_equal(check(), PASSES);
}

static void test_injection(void **state)
{
    static const u8 with_error[] = {VECTOR_DF, VECTOR_TS, VECTOR_NP, VECTOR_SS,
                                    VECTOR_GP, VECTOR_PF, VECTOR_AC};

    (void)state;
    for (unsigned vector = 0; vector < 32; vector++) {
        bool error = memchr(with_error, (int)vector, sizeof(with_error)) != NULL;

        put(ENTRY_INTERRUPTION_INFO, INFO(3, vector) | (error ? INFO_ERROR_CODE : 0));
        assert_int_equal(check(), PASSES);
        put(ENTRY_INTERRUPTION_INFO, INFO(3, vector) | (error ? 0 : INFO_ERROR_CODE));
        assert_int_equal(check(), CONTROLS);
    }
    put(ENTRY_INTERRUPTION_INFO, INFO(3, VECTOR_GP) | INFO_ERROR_CODE);
    put(ENTRY_EXCEPTION_ERROR_CODE, 0xffff);
    assert_int_equal(check(), PASSES);
    put(ENTRY_EXCEPTION_ERROR_CODE, 0x10000);
    assert_int_equal(check(), CONTROLS);
    for (unsigned type = 4; type <= 6; type++) {
        put(ENTRY_INTERRUPTION_INFO, INFO(type, 3));
        for (unsigned length = 0; length <= 16; length++) {
            put(ENTRY_INSTRUCTION_LENGTH, length);
            assert_int_equal(check(), length >= 1 && length <= 15 ? PASSES : CONTROLS);
        }
    }
    put(ENTRY_INTERRUPTION_INFO, 0x7fffffff); // not valid: nothing is looked at
    assert_int_equal(check(), PASSES);
}

static void test_msr_areas(void **state)
{
    static const struct {
        enum vmcs_field count, address;
    } areas[] = {
        {EXIT_MSR_STORE_COUNT, EXIT_MSR_STORE_ADDRESS},
        {EXIT_MSR_LOAD_COUNT, EXIT_MSR_LOAD_ADDRESS},
        {ENTRY_MSR_LOAD_COUNT, ENTRY_MSR_LOAD_ADDRESS},
    };

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(areas); i++) {
        setup(NULL);
        put(areas[i].address, 8);
        assert_int_equal(check(), PASSES); // no entry
        put(areas[i].count, 1);
        assert_int_equal(check(), CONTROLS);
        put(areas[i].address, (1ull << PHYS_BITS) - 32);
        put(areas[i].count, 2);
        assert_int_equal(check(), PASSES);
        put(areas[i].count, 3); // its last byte is beyond
        assert_int_equal(check(), CONTROLS);
        put(areas[i].address, 1ull << PHYS_BITS);
        put(areas[i].count, 1);
        assert_int_equal(check(), CONTROLS);
        put(areas[i].address, ~0xfull); // wraps around
        put(areas[i].count, 2);
        assert_int_equal(check(), CONTROLS);
    }
}

// With CET an exception may have an error code or not, but not in real mode, nor what is none.
static void test_any_error_code(void **state)
{
    (void)state;
    offer_cet(true, true);
    for (unsigned vector = 0; vector < 32; vector++)
        for (unsigned error = 0; error < 2; error++) {
            put(ENTRY_INTERRUPTION_INFO, INFO(3, vector) | (error ? INFO_ERROR_CODE : 0));
            assert_int_equal(check(), PASSES);
        }
    put(ENTRY_INTERRUPTION_INFO, INFO(0, 0x40) | INFO_ERROR_CODE);
    assert_int_equal(check(), CONTROLS);
    put(ENTRY_INTERRUPTION_INFO, INFO(2, VECTOR_NMI) | INFO_ERROR_CODE);
    assert_int_equal(check(), CONTROLS);
}

// --- host state ---

static void test_host(void **state)
{
    static const struct row rows[] = {
        {HOST_CR0, CR0_PE, 0, "CR0.PE clear"},
        {HOST_CR0, CR0_NE, 0, "CR0.NE clear"},
        {HOST_CR0, CR0_PG, 0, "CR0.PG clear"},
        {HOST_CR0, 0, 1ull << 32, "CR0[32]"},
        {HOST_CR4, CR4_VMXE, 0, "CR4.VMXE clear"},
        {HOST_CR4, 0, CR4_SMXE, "CR4.SMXE"},
        {HOST_CR4, CR4_PAE, 0, "CR4.PAE clear"},
        {HOST_CR3, 0, 1ull << PHYS_BITS, "CR3"},
        {HOST_SYSENTER_ESP, 0, BAD_ADDRESS, "SYSENTER_ESP"},
        {HOST_SYSENTER_EIP, 0, BAD_ADDRESS, "SYSENTER_EIP"},
        {HOST_PAT, 0xff, 2, "PAT 2"},
        {HOST_PAT, 0xffull << 56, 3ull << 56, "PAT 3 in the last"},
        {HOST_PAT, 0xff00, 8 << 8, "PAT 8"},
        {HOST_EFER, 0, BIT(1), "EFER[1]"},
        {HOST_EFER, 0, EFER_SVME, "EFER.SVME"},
        {HOST_EFER, EFER_LMA, 0, "EFER.LMA"},
        {HOST_EFER, EFER_LME, 0, "EFER.LME"},
        {HOST_ES_SELECTOR, 0, 1, "ES"},
        {HOST_CS_SELECTOR, 0, 4, "CS with TI"},
        {HOST_SS_SELECTOR, 0, 2, "SS"},
        {HOST_DS_SELECTOR, 0, 3, "DS"},
        {HOST_FS_SELECTOR, 0, 3, "FS"},
        {HOST_GS_SELECTOR, 0, 3, "GS"},
        {HOST_TR_SELECTOR, 0, 3, "TR"},
        {HOST_CS_SELECTOR, 0xffff, 0, "CS 0"},
        {HOST_TR_SELECTOR, 0xffff, 0, "TR 0"},
        {HOST_FS_BASE, 0, BAD_ADDRESS, "FS base"},
        {HOST_GS_BASE, 0, BAD_ADDRESS, "GS base"},
        {HOST_TR_BASE, 0, BAD_ADDRESS, "TR base"},
        {HOST_GDTR_BASE, 0, BAD_ADDRESS, "GDTR base"},
        {HOST_IDTR_BASE, 0, BAD_ADDRESS, "IDTR base"},
        {HOST_RIP, 0xffff000000000000, 0, "RIP"},
        {EXIT_CONTROLS, EXIT_CTL_HOST_64, 0, "host address-space size"},
    };

    (void)state;
    check_rows(rows, ARRAY_SIZE(rows), HOST);
}

// What no control asks for is not looked at; SS may be 0 for a 64-bit host.
static void test_host_not_checked(void **state)
{
    (void)state;
    put(HOST_SS_SELECTOR, 0);
    change(EXIT_CONTROLS, EXIT_CTL_LOAD_PAT | EXIT_CTL_LOAD_EFER, 0);
    put(HOST_PAT, 2);
    put(HOST_EFER, ~0ull);
    assert_int_equal(check(), PASSES);
}

static void test_32bit_host(void **state)
{
    (void)state;
    vcpu.cur->state.efer = 0;
    change(EXIT_CONTROLS, EXIT_CTL_HOST_64 | EXIT_CTL_LOAD_EFER, 0);
    assert_int_equal(check(), HOST); // IA-32e mode guest
    change(ENTRY_CONTROLS, ENTRY_CTL_IA32E_GUEST, 0);
    put(HOST_RIP, 0x1000);
    assert_int_not_equal(check(), HOST);
    put(HOST_RIP, 1ull << 32);
    assert_int_equal(check(), HOST);
    put(HOST_RIP, 0x1000);
    put(HOST_SS_SELECTOR, 0);
    assert_int_equal(check(), HOST);
    put(HOST_SS_SELECTOR, 0x10);
    change(HOST_CR4, 0, CR4_PCIDE);
    assert_int_equal(check(), HOST);
    change(HOST_CR4, CR4_PCIDE, 0);
    change(EXIT_CONTROLS, 0, EXIT_CTL_HOST_64);
    assert_int_equal(check(), HOST); // from outside IA-32e mode
}

static void test_57bit_addresses(void **state)
{
    (void)state;
    la57 = true;
    vmcs12_caps_reset(&vcpu);
    put(HOST_FS_BASE, 1ull << 50);
    put(GUEST_FS_BASE, 1ull << 50);
    assert_int_equal(check(), PASSES); // by the CPU's width
    put(HOST_RIP, 1ull << 50);
    assert_int_equal(check(), HOST); // by the host's CR4
    change(HOST_CR4, 0, CR4_LA57);
    assert_int_equal(check(), PASSES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_good, setup),
        cmocka_unit_test_setup(test_controls, setup),
        cmocka_unit_test_setup(test_bitmaps_that_are_not_used, setup),
        cmocka_unit_test_setup(test_injection, setup),
        cmocka_unit_test_setup(test_msr_areas, setup),
        cmocka_unit_test_setup(test_any_error_code, setup),
        cmocka_unit_test_setup(test_host, setup),
        cmocka_unit_test_setup(test_host_not_checked, setup),
        cmocka_unit_test_setup(test_32bit_host, setup),
        cmocka_unit_test_setup(test_57bit_addresses, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
