// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: nested/vmcs12_fields.c nested/vmcs12_caps.c nested/vmcs12_check.c nested/vmcs12_check_host.c nested/vmcs12_check_guest.c
//
// The checks of VM entry on guest state (nested/vmcs12_check_guest.c) by spoiling one field of a
// VMCS12 that passes (SDM vol. 3 "Checking and Loading Guest State").

#include "vmcs12_check_fake.h"

static void test_guest(void **state)
{
    static const struct row rows[] = {
        {GUEST_CR0, CR0_NE, 0, "CR0.NE clear"},
        {GUEST_CR0, CR0_PG, 0, "CR0.PG clear"},
        {GUEST_CR0, 0, 1ull << 32, "CR0[32]"},
        {GUEST_CR4, CR4_VMXE, 0, "CR4.VMXE clear"},
        {GUEST_CR4, 0, CR4_SMXE, "CR4.SMXE"},
        {GUEST_CR4, CR4_PAE, 0, "CR4.PAE clear"},
        {GUEST_CR3, 0, 1ull << PHYS_BITS, "CR3"},
        {GUEST_DR7, 0, 1ull << 32, "DR7"},
        {GUEST_DEBUGCTL, 0, 1ull << 2, "DEBUGCTL"},
        {GUEST_SYSENTER_ESP, 0, BAD_ADDRESS, "SYSENTER_ESP"},
        {GUEST_SYSENTER_EIP, 0, BAD_ADDRESS, "SYSENTER_EIP"},
        {GUEST_PAT, 0xff, 2, "PAT 2"},
        {GUEST_EFER, 0, BIT(1), "EFER[1]"},
        {GUEST_EFER, EFER_LMA, 0, "EFER.LMA"},
        {GUEST_EFER, EFER_LME, 0, "EFER.LME"},
        {GUEST_CS_ACCESS, 0xf, 3, "CS, data"},
        {GUEST_CS_ACCESS, 1, 0, "CS, not accessed"},
        {GUEST_CS_ACCESS, SEG_S, 0, "CS, system"},
        {GUEST_CS_ACCESS, SEG_P, 0, "CS, not present"},
        {GUEST_CS_ACCESS, SEG_P, SEG_UNUSABLE, "CS, not present, unusable"},
        {GUEST_CS_ACCESS, 0, SEG_DB, "CS.L and CS.D"},
        {GUEST_CS_ACCESS, 0, BIT(8), "CS, bit 8"},
        {GUEST_CS_ACCESS, 0, BIT(17), "CS, bit 17"},
        {GUEST_CS_ACCESS, 0, SEG_DPL, "CS.DPL"},
        {GUEST_CS_ACCESS, 0, SEG_DPL | 4, "CS.DPL, conforming"},
        {GUEST_CS_LIMIT, 1, 0, "CS limit with G"},
        {GUEST_CS_ACCESS, SEG_G, 0, "CS limit without G"},
        {GUEST_CS_SELECTOR, 0, 1, "CS.RPL"},
        {GUEST_CS_BASE, 0, 1ull << 32, "CS base"},
        {GUEST_SS_ACCESS, 0xf, 0xb, "SS, code"},
        {GUEST_SS_ACCESS, 0xf, 1, "SS, read-only"},
        {GUEST_SS_ACCESS, SEG_S, 0, "SS, system"},
        {GUEST_SS_ACCESS, SEG_P, 0, "SS, not present"},
        {GUEST_SS_ACCESS, 0, SEG_DPL, "SS.DPL"},
        {GUEST_SS_SELECTOR, 0, 3, "SS.RPL"},
        {GUEST_SS_BASE, 0, 1ull << 32, "SS base"},
        {GUEST_ES_ACCESS, 1, 0, "ES, not accessed"},
        {GUEST_DS_ACCESS, 0xf, 9, "DS, code that can't be read"},
        {GUEST_FS_ACCESS, SEG_S, 0, "FS, system"},
        {GUEST_GS_ACCESS, SEG_P, 0, "GS, not present"},
        {GUEST_DS_SELECTOR, 0, 3, "DS.RPL above DPL"},
        {GUEST_DS_ACCESS, 0, BIT(11), "DS, bit 11"},
        {GUEST_DS_LIMIT, 1, 0, "DS limit with G"},
        {GUEST_DS_BASE, 0, 1ull << 32, "DS base"},
        {GUEST_ES_BASE, 0, 1ull << 32, "ES base"},
        {GUEST_FS_BASE, 0, BAD_ADDRESS, "FS base"},
        {GUEST_GS_BASE, 0, BAD_ADDRESS, "GS base"},
        {GUEST_TR_SELECTOR, 0, 4, "TR with TI"},
        {GUEST_TR_ACCESS, 0xf, 3, "TR, 16-bit"},
        {GUEST_TR_ACCESS, 0xf, 9, "TR, not busy"},
        {GUEST_TR_ACCESS, 0, SEG_S, "TR, not system"},
        {GUEST_TR_ACCESS, SEG_P, 0, "TR, not present"},
        {GUEST_TR_ACCESS, 0, SEG_UNUSABLE, "TR, unusable"},
        {GUEST_TR_ACCESS, 0, BIT(9), "TR, bit 9"},
        {GUEST_TR_ACCESS, 0, BIT(31), "TR, bit 31"},
        {GUEST_TR_ACCESS, 0, SEG_G, "TR limit with G"},
        {GUEST_TR_LIMIT, 0, 1 << 20, "TR limit without G"},
        {GUEST_TR_BASE, 0, BAD_ADDRESS, "TR base"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 0x83, "LDTR, type 3"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 0x92, "LDTR, not system"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 2, "LDTR, not present"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 0x182, "LDTR, bit 8"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 0x8082, "LDTR limit with G"},
        {GUEST_GDTR_BASE, 0, BAD_ADDRESS, "GDTR base"},
        {GUEST_IDTR_BASE, 0, BAD_ADDRESS, "IDTR base"},
        {GUEST_GDTR_LIMIT, 0, 1 << 16, "GDTR limit"},
        {GUEST_IDTR_LIMIT, 0, 1 << 31, "IDTR limit"},
        {GUEST_RIP, 0, 1ull << 48, "RIP, bit 48"},
        {GUEST_RIP, 0, 1ull << 63, "RIP, bit 63"},
        {GUEST_RFLAGS, RFLAGS_FIXED, 0, "RFLAGS[1] clear"},
        {GUEST_RFLAGS, 0, BIT(3), "RFLAGS[3]"},
        {GUEST_RFLAGS, 0, BIT(5), "RFLAGS[5]"},
        {GUEST_RFLAGS, 0, BIT(15), "RFLAGS[15]"},
        {GUEST_RFLAGS, 0, BIT(22), "RFLAGS[22]"},
        {GUEST_RFLAGS, 0, BIT(63), "RFLAGS[63]"},
        {GUEST_RFLAGS, 0, RFLAGS_VM, "RFLAGS.VM"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(0, 0x40), "an interrupt with IF = 0"},
        {GUEST_ACTIVITY_STATE, 0, 4, "activity state 4"},
        {GUEST_INTERRUPTIBILITY, 0, BLOCK_STI, "STI with IF = 0"},
        {GUEST_INTERRUPTIBILITY, 0, BLOCK_SMI, "SMI blocking"},
        {GUEST_INTERRUPTIBILITY, 0, BIT(4), "enclave interruption"},
        {GUEST_INTERRUPTIBILITY, 0, BIT(31), "interruptibility, bit 31"},
        {GUEST_PENDING_DBG, 0, BIT(4), "pending debug, bit 4"},
        {GUEST_PENDING_DBG, 0, BIT(11), "pending debug, bit 11"},
        {GUEST_PENDING_DBG, 0, BIT(13), "pending debug, bit 13"},
        {GUEST_PENDING_DBG, 0, BIT(15), "pending debug, bit 15"},
        {GUEST_PENDING_DBG, 0, BIT(16), "pending debug, RTM"},
        {GUEST_PENDING_DBG, 0, BIT(63), "pending debug, bit 63"},
        {VMCS_LINK_POINTER, 1, 0, "VMCS link pointer"},
    };

    (void)state;
    check_rows(rows, ARRAY_SIZE(rows), GUEST);
}

// Rows that look wrong and are right.
static void test_guest_allowed(void **state)
{
    static const struct row rows[] = {
        {GUEST_CS_ACCESS, 0, SEG_UNUSABLE, "CS's unusable bit alone"},
        {GUEST_CS_ACCESS, 0, 4, "CS, conforming"},
        {GUEST_SS_ACCESS, 0, SEG_UNUSABLE, "SS, unusable"},
        {GUEST_SS_ACCESS, 0, 4, "SS, expand-down"},
        {GUEST_DS_ACCESS, ~0ull, SEG_UNUSABLE, "DS, null"},
        {GUEST_ES_ACCESS, 0xf, 0xb, "ES, code that can be read"},
        {GUEST_DS_ACCESS, 0, SEG_AVL | SEG_DPL, "DS, AVL, DPL 3"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 0x82, "LDTR, an LDT"},
        {GUEST_RIP, ~0ull, 0x800000000000, "RIP, not canonical, but its high bits are alike"},
        {GUEST_RIP, ~0ull, 0xffff000000000000, "the same with ones"},
        {GUEST_RFLAGS, 0, 0x3f7fd5 & ~RFLAGS_VM & ~(u64)RFLAGS_TF, "RFLAGS, every bit"},
        {GUEST_INTERRUPTIBILITY, 0, BLOCK_MOV_SS, "MOV SS with IF = 0"},
        {GUEST_INTERRUPTIBILITY, 0, BLOCK_NMI, "NMI blocking"},
        {GUEST_PENDING_DBG, 0, BIT(12) | BIT(14) | 0xf, "pending debug, every bit"},
        {GUEST_ACTIVITY_STATE, 0, ACTIVITY_HLT, "HLT"},
        {GUEST_DEBUGCTL, 0, DEBUGCTL_LBR | DEBUGCTL_BTF, "LBR and BTF"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(2, VECTOR_NMI), "an NMI with IF = 0"},
    };

    (void)state;
    check_rows(rows, ARRAY_SIZE(rows), PASSES);
}

static void test_guest_not_checked(void **state)
{
    (void)state;
    change(ENTRY_CONTROLS, ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT | ENTRY_CTL_LOAD_EFER, 0);
    put(GUEST_DR7, ~0ull);
    put(GUEST_PAT, 2);
    put(GUEST_EFER, 0);
    assert_int_equal(check(), PASSES);
}

static void test_unusable_segments(void **state)
{
    (void)state;
    put(GUEST_DS_ACCESS, SEG_UNUSABLE);
    put(GUEST_DS_BASE, ~0ull);
    put(GUEST_DS_LIMIT, 1 << 21);
    put(GUEST_DS_SELECTOR, 3);
    put(GUEST_LDTR_BASE, BAD_ADDRESS);
    put(GUEST_LDTR_SELECTOR, 4);
    put(GUEST_LDTR_LIMIT, 1 << 21);
    assert_int_equal(check(), PASSES);
    put(GUEST_FS_ACCESS, SEG_UNUSABLE);
    put(GUEST_FS_BASE, BAD_ADDRESS); // of FS, GS and TR it counts always
    assert_int_equal(check(), GUEST);
}

static void test_ldtr(void **state)
{
    (void)state;
    put(GUEST_LDTR_ACCESS, 0x82);
    put(GUEST_LDTR_SELECTOR, 4);
    assert_int_equal(check(), GUEST);
    put(GUEST_LDTR_SELECTOR, 0x20);
    put(GUEST_LDTR_BASE, BAD_ADDRESS);
    assert_int_equal(check(), GUEST);
    put(GUEST_LDTR_BASE, 0xffff800000000000);
    assert_int_equal(check(), PASSES);
}

static void test_cpl3(void **state)
{
    (void)state;
    put_segment(SEG_CS, 0x33, 0xa0fb, ~0u, 0);
    put_segment(SEG_SS, 0x2b, 0xc0f3, ~0u, 0);
    put_segment(SEG_DS, 0x2b, 0xc0f3, ~0u, 0);
    assert_int_equal(check(), PASSES);
    put_segment(SEG_DS, 0x2b, 0xc093, ~0u, 0); // DPL 0, RPL 3
    assert_int_equal(check(), GUEST);
    put_segment(SEG_DS, 0x2b, 0xc09f, ~0u, 0); // conforming code
    assert_int_equal(check(), PASSES);
    put_segment(SEG_DS, 0x2a, 0xc0b3, ~0u, 0); // DPL 1, RPL 2
    assert_int_equal(check(), GUEST);
    put_segment(SEG_DS, 0x2a, 0xc0d3, ~0u, 0);
    put_segment(SEG_CS, 0x33, 0xa09f, ~0u, 0); // conforming, of a lower DPL
    assert_int_equal(check(), PASSES);
    put_segment(SEG_CS, 0x33, 0xa09b, ~0u, 0); // not conforming
    assert_int_equal(check(), GUEST);
    put_segment(SEG_CS, 0x33, 0xa0fb, ~0u, 0);
    put(GUEST_ACTIVITY_STATE, ACTIVITY_HLT); // HLT is of CPL 0
    assert_int_equal(check(), GUEST);
}

static void test_compatibility_mode(void **state)
{
    (void)state;
    put_segment(SEG_CS, 8, 0xc09b, ~0u, 0);
    assert_int_equal(check(), PASSES);
    put(GUEST_RIP, 0xffff800000000000);
    assert_int_equal(check(), GUEST);
}

static void make_32bit(void)
{
    change(ENTRY_CONTROLS, ENTRY_CTL_IA32E_GUEST, 0);
    put(GUEST_EFER, 0);
    put(GUEST_CR4, CR4_VMXE);
    put_segment(SEG_CS, 8, 0xc09b, ~0u, 0);
}

static void test_32bit_guest(void **state)
{
    (void)state;
    make_32bit();
    assert_int_equal(check(), PASSES);
    put(GUEST_TR_ACCESS, 0x83); // a 16-bit TSS
    assert_int_equal(check(), PASSES);
    put(GUEST_RIP, 1ull << 32);
    assert_int_equal(check(), GUEST);
    put(GUEST_RIP, 0);
    change(GUEST_CR4, 0, CR4_PCIDE);
    assert_int_equal(check(), GUEST);
    change(GUEST_CR4, CR4_PCIDE, 0);
    put(GUEST_EFER, EFER_LME);
    assert_int_equal(check(), GUEST); // CR0.PG is 1
}

static void make_v8086(void)
{
    make_32bit();
    put(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_VM);
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++) {
        put_segment(seg, 0x1234, 0xf3, 0xffff, 0);
        put((enum vmcs_field)(GUEST_ES_BASE + 2 * seg), 0x12340);
    }
}

static void test_v8086(void **state)
{
    (void)state;
    make_v8086();
    assert_int_equal(check(), PASSES);
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++) {
        make_v8086();
        put((enum vmcs_field)(GUEST_ES_BASE + 2 * seg), 0x12341);
        assert_int_equal(check(), GUEST);
        make_v8086();
        put((enum vmcs_field)(GUEST_ES_LIMIT + 2 * seg), 0xfffff);
        assert_int_equal(check(), GUEST);
        make_v8086();
        put((enum vmcs_field)(GUEST_ES_ACCESS + 2 * seg), 0x93);
        assert_int_equal(check(), GUEST);
    }
}

static void test_activity(void **state)
{
    static const struct {
        u64 info;
        enum result result;
    } cases[] = {
        {0, PASSES},
        {INFO(0, 0x40), PASSES},
        {INFO(2, VECTOR_NMI), PASSES},
        {INFO(3, VECTOR_DB), PASSES},
        {INFO(3, VECTOR_MC), PASSES},
        {INFO(3, VECTOR_UD), GUEST},
        {INFO(4, 0x40), GUEST},
        {INFO(5, VECTOR_DB), GUEST},
        {INFO(6, VECTOR_BP), GUEST},
    };

    (void)state;
    put(GUEST_ACTIVITY_STATE, ACTIVITY_HLT);
    put(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    put(ENTRY_INSTRUCTION_LENGTH, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        put(ENTRY_INTERRUPTION_INFO, cases[i].info);
        assert_int_equal(check(), cases[i].result);
    }
    put(ENTRY_INTERRUPTION_INFO, 0);
    put(GUEST_INTERRUPTIBILITY, BLOCK_STI);
    assert_int_equal(check(), GUEST);
    put(GUEST_INTERRUPTIBILITY, BLOCK_MOV_SS);
    assert_int_equal(check(), GUEST);
    put(GUEST_INTERRUPTIBILITY, BLOCK_NMI);
    assert_int_equal(check(), PASSES);
}

static void test_interruptibility(void **state)
{
    static const struct {
        u64 blocking, info;
        enum result result;
    } cases[] = {
        {BLOCK_STI, 0, PASSES},
        {BLOCK_MOV_SS, 0, PASSES},
        {BLOCK_STI | BLOCK_MOV_SS, 0, GUEST},
        {BLOCK_STI, INFO(0, 0x40), GUEST},
        {BLOCK_MOV_SS, INFO(0, 0x40), GUEST},
        {BLOCK_NMI, INFO(0, 0x40), PASSES},
        {BLOCK_STI, INFO(2, VECTOR_NMI), PASSES},
        {BLOCK_MOV_SS, INFO(2, VECTOR_NMI), GUEST},
        {BLOCK_NMI, INFO(2, VECTOR_NMI), PASSES}, // no virtual NMIs
        {BLOCK_MOV_SS, INFO(3, VECTOR_UD), PASSES},
    };

    (void)state;
    put(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        put(GUEST_INTERRUPTIBILITY, cases[i].blocking);
        put(ENTRY_INTERRUPTION_INFO, cases[i].info);
        assert_int_equal(check(), cases[i].result);
    }
}

// With STI or MOV SS blocking, or halted, BS must say whether a single step is due.
static void test_pending_step(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 16; i++) {
        bool tf = i & 1, btf = i & 2, bs = i & 4, blocked = i & 8;

        put(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF | (tf ? RFLAGS_TF : 0));
        put(GUEST_DEBUGCTL, btf ? DEBUGCTL_BTF : 0);
        put(GUEST_PENDING_DBG, bs ? DR6_BS : 0);
        put(GUEST_INTERRUPTIBILITY, blocked ? BLOCK_MOV_SS : 0);
        put(GUEST_ACTIVITY_STATE, ACTIVITY_ACTIVE);
        assert_int_equal(check(), !blocked || bs == (tf && !btf) ? PASSES : GUEST);
        put(GUEST_INTERRUPTIBILITY, blocked ? BLOCK_STI : BLOCK_NMI);
        assert_int_equal(check(), !blocked || bs == (tf && !btf) ? PASSES : GUEST);
        put(GUEST_INTERRUPTIBILITY, 0);
        put(GUEST_ACTIVITY_STATE, ACTIVITY_HLT);
        assert_int_equal(check(), bs == (tf && !btf) ? PASSES : GUEST);
    }
}

static void test_s_cet(void **state)
{
    static const struct {
        u64 value;
        bool ss, ibt; // passes with
    } values[] = {
        {0, true, true},        {1, true, false},        {2, true, false},
        {BIT(2), false, true},  {BIT(5), false, true},   {BIT(6), false, false},
        {BIT(9), false, false}, {BIT(10), false, true},  {BIT(11), false, true},
        {0x1000, false, true},  {BIT(47), false, false}, {BITS(63, 47), false, true},
        {0xc00, false, false},
    };

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(values); i++) {
        offer_cet(true, false);
        put(GUEST_S_CET, values[i].value);
        assert_int_equal(check(), values[i].ss ? PASSES : GUEST);
        offer_cet(false, true);
        assert_int_equal(check(), values[i].ibt ? PASSES : GUEST);
        offer_cet(true, true);
        assert_int_equal(check(), values[i].ss || values[i].ibt ? PASSES : GUEST);
    }
}

// The bits above the CPU's width must be alike; canonical it need not be.
static void test_guest_ssp(void **state)
{
    (void)state;
    offer_cet(true, true);
    put(GUEST_S_CET, 0);
    put(GUEST_SSP, BIT(47));
    assert_int_equal(check(), PASSES);
    put(GUEST_SSP, BITS(63, 48));
    assert_int_equal(check(), PASSES);
    put(GUEST_SSP, BIT(48));
    assert_int_equal(check(), GUEST);
    put(GUEST_SSP, 1);
    assert_int_equal(check(), GUEST);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_guest, setup),
        cmocka_unit_test_setup(test_guest_allowed, setup),
        cmocka_unit_test_setup(test_guest_not_checked, setup),
        cmocka_unit_test_setup(test_unusable_segments, setup),
        cmocka_unit_test_setup(test_ldtr, setup),
        cmocka_unit_test_setup(test_cpl3, setup),
        cmocka_unit_test_setup(test_compatibility_mode, setup),
        cmocka_unit_test_setup(test_32bit_guest, setup),
        cmocka_unit_test_setup(test_v8086, setup),
        cmocka_unit_test_setup(test_activity, setup),
        cmocka_unit_test_setup(test_interruptibility, setup),
        cmocka_unit_test_setup(test_pending_step, setup),
        cmocka_unit_test_setup(test_s_cet, setup),
        cmocka_unit_test_setup(test_guest_ssp, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
