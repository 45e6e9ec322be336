// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: nested/vmcb12_check.c
//
// VMRUN's consistency checks (nested/vmcb12_check.c; APM vol. 2, 15.5.1, 15.20, 15.25): a legal
// VMCB spoiled in one place, and a million mutations whose verdict a second reading of the manual
// gives.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/regs.h>

#include "nested/vmcb12.h"
#include "rng.h"

#define PHYS_BITS  40
#define CR4_KNOWN  (BITS(11, 0) | CR4_OSXSAVE | CR4_SMEP | CR4_SMAP)
#define EFER_KNOWN (EFER_SCE | EFER_LME | EFER_LMA | EFER_NX | EFER_SVME | EFER_FFXSR)
#define EXCEPTION  (SVM_EVENT_V | SVM_EVENT_EXCEPTION << SVM_EVENT_TYPE_SHIFT)

static const struct vmcb12_limits usual = {
    .cr4 = CR4_KNOWN,
    .efer = EFER_KNOWN,
    .phys_bits = PHYS_BITS,
    .long_mode = true,
    .nested_paging = true,
    .host_paging = true,
};
static struct vmcb12_limits limits;
static struct vmcb vmcb;

static void make_legal(void)
{
    memset(&vmcb, 0, sizeof(vmcb));
    limits = usual;
    vmcb.intercept[SVM_WORD_4] = SVM_INTERCEPT_VMRUN;
    vmcb.guest_asid = 1;
    vmcb.msrpm_base_pa = 0x10000;
    vmcb.iopm_base_pa = 0x20000;
    vmcb.cs.attrib = 0xa9b; // 64-bit code
    vmcb.efer = EFER_SVME | EFER_LME | EFER_LMA | EFER_NX | EFER_SCE;
    vmcb.cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_WP;
    vmcb.cr3 = 0x1000;
    vmcb.cr4 = CR4_PAE | CR4_PGE;
    vmcb.dr6 = DR6_FIXED;
    vmcb.dr7 = DR7_FIXED;
    vmcb.rflags = RFLAGS_FIXED;
    vmcb.np_enable = 1;
    vmcb.n_cr3 = 0x3000;
    vmcb.g_pat = 0x0007040600070406;
}

// What is done to a legal VMCB, and whether it is legal then.
static const struct {
    u16 offset;
    u8 size;
    u64 clear, set; // bits of the field
    bool legal;
} spoils[] = {
#define SPOIL(field, clear, set, legal)                                                    \
    {                                                                                      \
        offsetof(struct vmcb, field), sizeof(((struct vmcb *)0)->field), clear, set, legal \
    }
    SPOIL(efer, EFER_SVME, 0, false),
    SPOIL(cr0, 0, CR0_NW, false),
    SPOIL(cr0, 0, CR0_CD, true),
    SPOIL(cr0, 0, CR0_CD | CR0_NW, true),
    SPOIL(cr0, 0, BIT(32), false),
    SPOIL(cr0, 0, BIT(63), false),
    SPOIL(cr3, 0, BIT(39), true),
    SPOIL(cr3, 0, BIT(40), false),
    SPOIL(cr3, 0, BIT(63), false),
    SPOIL(cr3, 0, BITS(11, 0), true),
    SPOIL(cr4, 0, BIT(12), false), // LA57, which this CPU does not have
    SPOIL(cr4, 0, BIT(15), false),
    SPOIL(cr4, 0, BIT(32), false),
    SPOIL(cr4, 0, CR4_SMEP, true),
    SPOIL(dr6, 0, BIT(32), false),
    SPOIL(dr6, 0, BIT(31), true),
    SPOIL(dr7, 0, BIT(32), false),
    SPOIL(dr7, 0, BIT(31), true),
    SPOIL(efer, 0, BIT(9), false),
    SPOIL(efer, 0, BIT(40), false),
    SPOIL(efer, 0, EFER_FFXSR, true),
    SPOIL(cr4, CR4_PAE, 0, false),
    SPOIL(cr0, CR0_PE, 0, false),
    SPOIL(cr0, CR0_PG, 0, true),
    SPOIL(cr0, CR0_PE | CR0_PG, 0, true),
    SPOIL(cs.attrib, 0, BIT(10), false),
    SPOIL(cs.attrib, BIT(9), BIT(10), true),
    SPOIL(intercept[SVM_WORD_4], SVM_INTERCEPT_VMRUN, 0, false),
    SPOIL(msrpm_base_pa, ~0ull, BIT(40), false),
    SPOIL(msrpm_base_pa, ~0ull, BIT(40) - 0x1000, false), // its second page
    SPOIL(msrpm_base_pa, ~0ull, BIT(40) - 0x2000, true),
    SPOIL(msrpm_base_pa, ~0ull, ~0ull, false),
    SPOIL(msrpm_base_pa, 0, 0xfff, true), // ignored
    SPOIL(iopm_base_pa, ~0ull, BIT(40) - 0x2000, false),
    SPOIL(iopm_base_pa, ~0ull, BIT(40) - 0x3000, true),
    SPOIL(iopm_base_pa, ~0ull, BIT(52), false),
    SPOIL(guest_asid, ~0ull, 0, false),
    SPOIL(guest_asid, 0, ~0ull, true),
    SPOIL(eventinj, 0, SVM_EVENT_V | 1 << SVM_EVENT_TYPE_SHIFT, false),
    SPOIL(eventinj, 0, 1 << SVM_EVENT_TYPE_SHIFT, true), // not valid
    SPOIL(eventinj, 0, SVM_EVENT_V | 5 << SVM_EVENT_TYPE_SHIFT, false),
    SPOIL(eventinj, 0, SVM_EVENT_V | 6 << SVM_EVENT_TYPE_SHIFT, false),
    SPOIL(eventinj, 0, SVM_EVENT_V | 7 << SVM_EVENT_TYPE_SHIFT, false),
    SPOIL(eventinj, 0, SVM_EVENT_V | 255, true),
    SPOIL(eventinj, 0, SVM_EVENT_V | SVM_EVENT_NMI << SVM_EVENT_TYPE_SHIFT | 2, true),
    SPOIL(eventinj, 0, SVM_EVENT_V | SVM_EVENT_SOFT_INT << SVM_EVENT_TYPE_SHIFT | 255, true),
    SPOIL(eventinj, 0, EXCEPTION | 2, false),
    SPOIL(eventinj, 0, EXCEPTION | 5, false), // #BR in 64-bit mode
    SPOIL(eventinj, 0, EXCEPTION | 9, false),
    SPOIL(eventinj, 0, EXCEPTION | 14, true),
    SPOIL(eventinj, 0, EXCEPTION | 15, false),
    SPOIL(eventinj, 0, EXCEPTION | 19, true),
    SPOIL(eventinj, 0, EXCEPTION | 20, false), // Intel's #VE
    SPOIL(eventinj, 0, EXCEPTION | 21, false), // no shadow stacks, no #CP
    SPOIL(eventinj, 0, EXCEPTION | 30, true),
    SPOIL(eventinj, 0, EXCEPTION | 31, false),
    SPOIL(eventinj, 0, EXCEPTION | 32, false),
    SPOIL(eventinj, 0, EXCEPTION | 255, false),
    SPOIL(n_cr3, 0, BIT(40), false),
    SPOIL(n_cr3, 0, BIT(63), false),
    SPOIL(g_pat, 0, BIT(1), true), // 6 stays 6
    SPOIL(g_pat, ~0ull, 2, false),
    SPOIL(g_pat, ~0ull, 3ull << 56, false),
    SPOIL(g_pat, 0, 8, false),
    // What no rule names
    SPOIL(rip, 0, BIT(63), true),
    SPOIL(rflags, 0, ~0ull, true),
    SPOIL(es.base, 0, BIT(60), true),
    SPOIL(cpl, 0, 3, true),
    SPOIL(tlb_control, 0, 0xff, true),
    SPOIL(lbr_control, 0, 3, true),
    SPOIL(clean, 0, ~0ull, true),
#undef SPOIL
};

static bool is_legal(void)
{
    return !vmcb12_check(&vmcb, &limits);
}

static void test_rows(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(spoils); i++) {
        u64 value = 0;
        u8 *at = (u8 *)&vmcb + spoils[i].offset;

        make_legal();
        assert_true(is_legal());
        memcpy(&value, at, spoils[i].size);
        value = (value & ~spoils[i].clear) | spoils[i].set;
        memcpy(at, &value, spoils[i].size);
        if (is_legal() != spoils[i].legal)
            fail_msg("row %u, field at %#x", i, spoils[i].offset);
    }
}

static void test_limits(void **state)
{
    (void)state;
    make_legal();
    limits.host_paging = false;
    assert_string_equal(vmcb12_check(&vmcb, &limits), "15.25.3: nested paging while L1 has none");
    limits.nested_paging = false; // not offered: ignored
    vmcb.g_pat = vmcb.n_cr3 = ~0ull;
    assert_true(is_legal());
    limits.long_mode = false;
    assert_non_null(vmcb12_check(&vmcb, &limits));
    vmcb.efer &= ~(EFER_LME | EFER_LMA);
    assert_true(is_legal());
    vmcb.efer |= EFER_LMA;
    assert_non_null(vmcb12_check(&vmcb, &limits));
}

// --- a million mutations ---

static bool map_fits(u64 base, unsigned pages)
{
    return (base >> 12) + pages <= 1ull << (PHYS_BITS - 12);
}

static bool event_legal(u64 event, bool code64)
{
    unsigned type = event >> 8 & 7, vector = event & 0xff;

    if (!(event >> 31 & 1) || type == 0 || type == 2 || type == 4)
        return true;
    return type == 3 && !(vector == 5 && code64) &&
           (vector == 30 || (vector < 20 && vector != 2 && vector != 9 && vector != 15));
}

static bool pat_legal(u64 pat)
{
    static const char known[] = {0, 1, 4, 5, 6, 7};

    for (unsigned i = 0; i < 8; i++)
        if (!memchr(known, (int)(pat >> (i * 8) & 0xff), sizeof(known)))
            return false;
    return true;
}

// The manual's list once more, from the other side: what is legal.
static bool expected(const struct vmcb *v)
{
    bool lm = (v->efer & 0x100) && (v->cr0 & 0x80000000);

    if (v->cr0 > 0xffffffff || v->dr6 > 0xffffffff || v->dr7 > 0xffffffff)
        return false;
    if ((v->cr0 & 0x60000000) == 0x20000000 || !(v->efer & 0x1000) || (v->efer & ~EFER_KNOWN))
        return false;
    if ((v->cr4 | CR4_KNOWN) != CR4_KNOWN)
        return false;
    if (lm && (!(v->cr0 & 1) || !(v->cr4 & 0x20) || (v->cs.attrib & 0x600) == 0x600))
        return false;
    if (v->cr3 > 0xffffffffff)
        return false;
    if (!(v->intercept[4] & 1) || v->guest_asid == 0 ||
        !event_legal(v->eventinj, lm && (v->cs.attrib & 0x200)))
        return false;
    if (!map_fits(v->msrpm_base_pa, 2) || !map_fits(v->iopm_base_pa, 3))
        return false;
    return !(v->np_enable & 1) || (v->n_cr3 <= 0xffffffffff && pat_legal(v->g_pat));
}

// A bit, or a whole field with a chance of being just a little wrong.
static void mutate(void)
{
    static const u16 fields[] = {
        offsetof(struct vmcb, intercept[SVM_WORD_4]),
        offsetof(struct vmcb, iopm_base_pa),
        offsetof(struct vmcb, msrpm_base_pa),
        offsetof(struct vmcb, guest_asid),
        offsetof(struct vmcb, np_enable),
        offsetof(struct vmcb, eventinj),
        offsetof(struct vmcb, n_cr3),
        offsetof(struct vmcb, cs),
        offsetof(struct vmcb, efer),
        offsetof(struct vmcb, cr4),
        offsetof(struct vmcb, cr3),
        offsetof(struct vmcb, cr0),
        offsetof(struct vmcb, dr7),
        offsetof(struct vmcb, dr6),
        offsetof(struct vmcb, g_pat),
    };
    u64 r = random_u64(), value;
    u8 *at = (u8 *)&vmcb + fields[r % ARRAY_SIZE(fields)];

    memcpy(&value, at, 8);
    if (r >> 60)
        value ^= 1ull << (r >> 32 & 63);
    else
        value = random_u64() >> (r >> 32 & 63);
    memcpy(at, &value, 8);
}

static void test_million(void **state)
{
    unsigned legal = 0;

    (void)state;
    for (unsigned i = 0; i < 1000000; i++) {
        make_legal();
        for (u64 n = random_u64() % 4 + 1; n; n--)
            mutate();
        if (is_legal() != expected(&vmcb))
            fail_msg("mutation %u", i);
        legal += is_legal();
    }
    assert_in_range(legal, 100000, 900000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_million),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
