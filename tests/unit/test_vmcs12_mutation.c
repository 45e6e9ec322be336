// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: nested/vmcs12_fields.c nested/vmcs12_caps.c nested/vmcs12_check.c nested/vmcs12_check_host.c nested/vmcs12_check_guest.c
//
// A million mutated VMCS12s, with every control of the SDM offered, are judged by the checks of VM
// entry as a second statement of the manual's rules, made without the tables, judges them.

#include "rng.h"
#include "vmcs12_entry_fake.h"

enum { CASES = 1000000 };
enum verdict { PASSES, CONTROLS, HOST, GUEST };

static bool canonical(u64 address)
{
    return address + NONCAN < 2 * NONCAN;
}

static bool page(u64 address)
{
    return !(address & 0xfff) && address < BEYOND;
}

static bool fixed(u64 value, u32 msr)
{
    u64 cap = *capability_of(msr);

    return (value & (u32)cap) == (u32)cap && (value | cap >> 32) == cap >> 32;
}

static bool area_fits(u32 count, u32 address)
{
    return !at(count) ||
           (!(at(address) & 15) && at(address) < BEYOND && at(address) + 16 * at(count) <= BEYOND);
}

static bool apic_right(u64 pin, u64 primary, u64 secondary)
{
    u8 threshold = (u8)at(TPR_THRESHOLD), vtpr = 0xff;
    bool delivery = secondary & SECONDARY_INTERRUPT_DELIVERY;

    if (!(primary & PRIMARY_TPR_SHADOW))
        return !(secondary & (SECONDARY_X2APIC | SECONDARY_APIC_REGISTERS)) && !delivery;
    if (!page(at(VIRTUAL_APIC_ADDRESS)) || (delivery && !(pin & PIN_EXTERNAL_INTERRUPT)))
        return false;
    guest_read_gpa(&vcpu, at(VIRTUAL_APIC_ADDRESS) + 0x80, &vtpr, 1);
    if (!delivery && at(TPR_THRESHOLD) > 15)
        return false;
    if (!delivery && !(secondary & SECONDARY_APIC_ACCESSES) && threshold > vtpr >> 4)
        return false;
    return !((secondary & SECONDARY_X2APIC) && (secondary & SECONDARY_APIC_ACCESSES));
}

static bool eptp_right(u64 eptp)
{
    u64 rest = eptp & 0x7f;

    rest &= ~(u64)EPTP_AD;
    return (rest == (3 << 3) || rest == (3 << 3 | 6) || rest == (4 << 3) || rest == (4 << 3 | 6)) &&
           page(eptp & ~0x7full) && eptp < BEYOND;
}

static bool secondary_right(u64 pin, u64 secondary)
{
    bool ept = secondary & SECONDARY_EPT;

    if (ept && !eptp_right(at(EPT_POINTER)))
        return false;
    if (!ept && (secondary & (SECONDARY_PML | SECONDARY_UNRESTRICTED_GUEST | SECONDARY_MBEC)))
        return false;
    if (secondary & SECONDARY_VM_FUNCTIONS) {
        if (at(VM_FUNCTION_CONTROLS) > 1)
            return false;
        if (at(VM_FUNCTION_CONTROLS) == 1 && (!ept || !page(at(EPTP_LIST_ADDRESS))))
            return false;
    }
    if ((pin & PIN_POSTED_INTERRUPTS) &&
        (!(secondary & SECONDARY_INTERRUPT_DELIVERY) ||
         !(at(EXIT_CONTROLS) & EXIT_CTL_ACK_INTERRUPT) || at(POSTED_INTERRUPT_VECTOR) > 255 ||
         (at(POSTED_INTERRUPT_DESCRIPTOR) & 63) || at(POSTED_INTERRUPT_DESCRIPTOR) >= BEYOND))
        return false;
    return (!(secondary & SECONDARY_VPID) || at(VPID)) &&
           (!(secondary & SECONDARY_APIC_ACCESSES) || page(at(APIC_ACCESS_ADDRESS))) &&
           (!(secondary & SECONDARY_PML) || page(at(PML_ADDRESS))) &&
           (!(secondary & SECONDARY_VMCS_SHADOWING) ||
            (page(at(VMREAD_BITMAP)) && page(at(VMWRITE_BITMAP)))) &&
           (!(secondary & SECONDARY_EPT_VIOLATION_VE) || page(at(VE_INFO_ADDRESS))) &&
           (!(secondary & SECONDARY_TSC_SCALING) || at(TSC_MULTIPLIER));
}

// What is injected: -1 nothing, else the type.
static int injected(void)
{
    u64 info = at(ENTRY_INTERRUPTION_INFO);

    return info & INFO_VALID ? (int)(info >> 8 & 7) : -1;
}

static bool injection_right(u64 secondary)
{
    u64 info = at(ENTRY_INTERRUPTION_INFO), length = at(ENTRY_INSTRUCTION_LENGTH);
    u8 vector = (u8)info;
    bool urg = secondary & SECONDARY_UNRESTRICTED_GUEST, error = info & INFO_ERROR_CODE;
    static const u32 with_error = 1u << 8 | 0x1f << 10 | 1u << 17; // 15 is none
    bool wanted, can = injected() == 3 && (!urg || (at(GUEST_CR0) & 1));

    if (injected() < 0)
        return true;
    if (info & 0x7ffff000)
        return false;
    wanted = can && vector < 32 && vector != 15 && (with_error >> vector & 1);
    if (can && (*capability_of(MSR_VMX_BASIC) & VMX_BASIC_ANY_ERROR))
        wanted = error;
    if (error != wanted || (error && at(ENTRY_EXCEPTION_ERROR_CODE) > 0xffff))
        return false;
    switch (injected()) {
    case 0:
        return true;
    case 2:
        return vector == 2;
    case 3:
        return vector < 32;
    case 4:
    case 5:
    case 6:
        return length >= 1 && length <= 15;
    case 7:
        return vector == 0;
    default:
        return false;
    }
}

static bool controls_right(u64 secondary)
{
    u64 pin = at(PIN_BASED_CONTROLS), primary = at(PRIMARY_CONTROLS);

    if (!fixed(pin, MSR_VMX_TRUE_PINBASED_CTLS) || !fixed(primary, MSR_VMX_TRUE_PROCBASED_CTLS) ||
        !fixed(secondary, MSR_VMX_PROCBASED_CTLS2) ||
        !fixed(at(EXIT_CONTROLS), MSR_VMX_TRUE_EXIT_CTLS) ||
        !fixed(at(ENTRY_CONTROLS), MSR_VMX_TRUE_ENTRY_CTLS) || at(CR3_TARGET_COUNT) > 4)
        return false;
    if (((primary & PRIMARY_IO_BITMAPS) && !(page(at(IO_BITMAP_A)) && page(at(IO_BITMAP_B)))) ||
        ((primary & PRIMARY_MSR_BITMAPS) && !page(at(MSR_BITMAP))))
        return false;
    if (((pin & PIN_VIRTUAL_NMIS) && !(pin & PIN_NMI)) ||
        ((primary & PRIMARY_NMI_WINDOW) && !(pin & PIN_VIRTUAL_NMIS)) ||
        ((at(EXIT_CONTROLS) & EXIT_CTL_SAVE_TIMER) && !(pin & PIN_PREEMPTION_TIMER)))
        return false;
    return apic_right(pin, primary, secondary) && secondary_right(pin, secondary) &&
           area_fits(EXIT_MSR_STORE_COUNT, EXIT_MSR_STORE_ADDRESS) &&
           area_fits(EXIT_MSR_LOAD_COUNT, EXIT_MSR_LOAD_ADDRESS) &&
           area_fits(ENTRY_MSR_LOAD_COUNT, ENTRY_MSR_LOAD_ADDRESS) && injection_right(secondary);
}

static bool pat_right(u64 pat)
{
    for (; pat; pat >>= 8)
        if (!(0xf3 >> (pat & 0xff & 7) & 1) || (pat & 0xf8))
            return false;
    return true;
}

static bool s_cet_right(u64 value)
{
    return canonical(value) && !(value & 0x3c0) && (value & 0xc00) != 0xc00;
}

static bool host_right(void)
{
    u64 exit = at(EXIT_CONTROLS), cr4 = at(HOST_CR4), any = 0;
    bool wide = exit & EXIT_CTL_HOST_64;
    static const u16 addresses[] = {HOST_SYSENTER_ESP, HOST_SYSENTER_EIP, HOST_FS_BASE,
                                    HOST_GS_BASE,      HOST_GDTR_BASE,    HOST_IDTR_BASE,
                                    HOST_TR_BASE};

    for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++)
        if (!canonical(at(addresses[i])))
            return false;
    for (u32 field = HOST_ES_SELECTOR; field <= HOST_TR_SELECTOR; field += 2)
        any |= at(field);
    if ((any & 7) || !at(HOST_CS_SELECTOR) || !at(HOST_TR_SELECTOR) ||
        (!wide && !at(HOST_SS_SELECTOR)))
        return false;
    if ((at(HOST_CR0) & 0x80000021) != 0x80000021 || at(HOST_CR0) >> 32 || !(cr4 & CR4_VMXE) ||
        (cr4 & ~cr4_allowed(&vcpu)) || ((cr4 & CR4_CET) && !(at(HOST_CR0) & CR0_WP)) ||
        at(HOST_CR3) >= BEYOND)
        return false;
    if (((exit & EXIT_CTL_LOAD_PERF_GLOBAL) && at(HOST_PERF_GLOBAL_CTRL)) ||
        ((exit & EXIT_CTL_LOAD_PAT) && !pat_right(at(HOST_PAT))) ||
        ((exit & EXIT_CTL_LOAD_PKRS) && at(HOST_PKRS) >> 32))
        return false;
    if ((exit & EXIT_CTL_LOAD_EFER) && (at(HOST_EFER) & ~0x801ull) != (wide ? 0x500 : 0))
        return false;
    if ((exit & EXIT_CTL_LOAD_CET) &&
        (!s_cet_right(at(HOST_S_CET)) || !canonical(at(HOST_INTERRUPT_SSP_TABLE)) ||
         !canonical(at(HOST_SSP)) || (at(HOST_SSP) & 3)))
        return false;
    if (wide != !!(vcpu.cur->state.efer & EFER_LMA))
        return false;
    if (!wide && (exit & EXIT_CTL_LOAD_CET) && (at(HOST_S_CET) >> 32 || at(HOST_SSP) >> 32))
        return false;
    if (wide)
        return (cr4 & CR4_PAE) && canonical(at(HOST_RIP));
    return !(at(ENTRY_CONTROLS) & ENTRY_CTL_IA32E_GUEST) && !(cr4 & CR4_PCIDE) &&
           !(at(HOST_RIP) >> 32);
}

struct seg {
    u64 selector, access, limit, base;
    unsigned type, dpl;
    bool usable;
};

static struct seg seg_of(unsigned n)
{
    struct seg s = {at(GUEST_ES_SELECTOR + 2 * n),
                    at(GUEST_ES_ACCESS + 2 * n),
                    at(GUEST_ES_LIMIT + 2 * n),
                    at(GUEST_ES_BASE + 2 * n),
                    0,
                    0,
                    true};

    s.type = s.access & 15;
    s.dpl = s.access >> 5 & 3;
    s.usable = !(s.access >> 16 & 1);
    return s;
}

static bool limit_right(const struct seg *s)
{
    if (s->limit >= 1 << 20 && !(s->access & 0x8000))
        return false;
    return (s->limit & 0xfff) == 0xfff || !(s->access & 0x8000);
}

static bool ordinary_right(unsigned n, const struct seg *s, bool urg, bool wide)
{
    const struct seg cs = seg_of(SEG_CS), ss = seg_of(SEG_SS);

    if (n == SEG_SS && ((!urg && ss.dpl != (ss.selector & 3)) ||
                        ((cs.type == 3 || !(at(GUEST_CR0) & 1)) && ss.dpl)))
        return false;
    if (n == SEG_CS) {
        bool right = s->type == 3    ? urg && s->dpl == 0
                     : s->type >= 12 ? s->dpl <= ss.dpl
                                     : s->dpl == ss.dpl;

        if (!right || (s->type != 3 && (s->type < 8 || !(s->type & 1))) ||
            (wide && (s->access & 0x6000) == 0x6000))
            return false;
    } else if (!s->usable) {
        return true;
    } else if (n == SEG_SS) {
        if (s->type != 3 && s->type != 7)
            return false;
    } else if (!(s->type & 1) || s->type == 9 || s->type == 13) {
        return false;
    } else if (!urg && s->type < 12 && s->dpl < (s->selector & 3)) {
        return false;
    }
    return (s->access & 0x90) == 0x90 && !(s->access & 0xfffe0f00) && limit_right(s);
}

static bool segments_right(bool urg, bool wide, bool vm86)
{
    struct seg tr = seg_of(SEG_TR), ldtr = seg_of(SEG_LDTR);

    for (unsigned n = SEG_ES; n <= SEG_GS; n++) {
        struct seg s = seg_of(n);

        if (vm86 ? s.base != s.selector * 16 || s.limit != 0xffff || s.access != 0xf3
                 : !ordinary_right(n, &s, urg, wide))
            return false;
        if (n >= SEG_FS ? !canonical(s.base) : (n == SEG_CS || s.usable) && s.base >> 32)
            return false;
    }
    if (!vm86 && !urg && (seg_of(SEG_SS).selector & 3) != (seg_of(SEG_CS).selector & 3))
        return false;
    if ((tr.selector & 4) || !canonical(tr.base) || !limit_right(&tr) ||
        (tr.access & 0xffff0f90) != 0x80 || !(tr.type == 11 || (tr.type == 3 && !wide)))
        return false;
    return !ldtr.usable || (!(ldtr.selector & 4) && canonical(ldtr.base) && limit_right(&ldtr) &&
                            (ldtr.access & 0xfffe0f9f) == 0x82);
}

static bool msrs_right(u64 entry, bool wide)
{
    u64 efer = at(GUEST_EFER);

    if ((entry & ENTRY_CTL_LOAD_DEBUG) && ((at(GUEST_DEBUGCTL) & ~3ull) || at(GUEST_DR7) >> 32))
        return false;
    if (((entry & ENTRY_CTL_LOAD_PERF_GLOBAL) && at(GUEST_PERF_GLOBAL_CTRL)) ||
        ((entry & ENTRY_CTL_LOAD_PAT) && !pat_right(at(GUEST_PAT))) ||
        ((entry & ENTRY_CTL_LOAD_PKRS) && at(GUEST_PKRS) >> 32))
        return false;
    if (entry & ENTRY_CTL_LOAD_EFER) {
        if ((efer & ~0xd01ull) || !!(efer & 0x400) != wide)
            return false;
        if ((at(GUEST_CR0) >> 31 & 1) && !!(efer & 0x100) != wide)
            return false;
    }
    return !(entry & ENTRY_CTL_LOAD_CET) ||
           (s_cet_right(at(GUEST_S_CET)) && canonical(at(GUEST_INTERRUPT_SSP_TABLE)) &&
            (at(GUEST_SSP) >> 48 == 0 || at(GUEST_SSP) >> 48 == 0xffff) && !(at(GUEST_SSP) & 3));
}

static bool registers_right(u64 entry, bool urg, bool wide)
{
    u64 cr0 = at(GUEST_CR0), cr4 = at(GUEST_CR4);

    if (cr0 >> 32 || !(cr0 & CR0_NE) || ((cr0 & CR0_PG) && !(cr0 & CR0_PE)) ||
        (!urg && !(cr0 & CR0_PG)))
        return false;
    if (!(cr4 & CR4_VMXE) || (cr4 & ~cr4_allowed(&vcpu)) || ((cr4 & CR4_CET) && !(cr0 & CR0_WP)) ||
        at(GUEST_CR3) >= BEYOND)
        return false;
    if (wide ? !(cr0 & CR0_PG) || !(cr4 & CR4_PAE) : (cr4 & CR4_PCIDE) != 0)
        return false;
    return canonical(at(GUEST_SYSENTER_ESP)) && canonical(at(GUEST_SYSENTER_EIP)) &&
           canonical(at(GUEST_GDTR_BASE)) && canonical(at(GUEST_IDTR_BASE)) &&
           at(GUEST_GDTR_LIMIT) < 0x10000 && at(GUEST_IDTR_LIMIT) < 0x10000 &&
           msrs_right(entry, wide);
}

static bool execution_right(bool wide)
{
    u64 rflags = at(GUEST_RFLAGS), rip = at(GUEST_RIP) >> 48;

    if (wide && (at(GUEST_CS_ACCESS) & 0x2000) ? rip != 0 && rip != 0xffff
                                               : at(GUEST_RIP) > 0xffffffff)
        return false;
    if ((rflags & 0xffffffffffc0802a) != 2)
        return false;
    if ((rflags >> 17 & 1) && (wide || !(at(GUEST_CR0) & 1)))
        return false;
    return injected() != 0 || (rflags >> 9 & 1);
}

static bool sleep_right(u64 activity)
{
    u8 vector = (u8)at(ENTRY_INTERRUPTION_INFO);

    if (activity == 0)
        return true;
    if ((activity != 1 && activity != 3) || (at(GUEST_INTERRUPTIBILITY) & 3))
        return false;
    if (activity == 3)
        return injected() < 0;
    if (at(GUEST_SS_ACCESS) >> 5 & 3)
        return false;
    return injected() < 0 || injected() == 0 || injected() == 2 || injected() == 7 ||
           (injected() == 3 && (vector == 1 || vector == 18));
}

static bool waiting_right(void)
{
    u64 state = at(GUEST_INTERRUPTIBILITY), pending = at(GUEST_PENDING_DBG);
    bool shadow = state & 3, tf = at(GUEST_RFLAGS) >> 8 & 1, btf = at(GUEST_DEBUGCTL) & 2;

    if ((state & ~0xbull) || (state & 3) == 3 || ((state & 1) && !(at(GUEST_RFLAGS) & RFLAGS_IF)))
        return false;
    if ((injected() == 0 && shadow) || (injected() == 2 && (state & 2)) ||
        (injected() == 2 && (state & 8) && (at(PIN_BASED_CONTROLS) & PIN_VIRTUAL_NMIS)))
        return false;
    if (!sleep_right(at(GUEST_ACTIVITY_STATE)) || (pending & ~0x500full))
        return false;
    return !(shadow || at(GUEST_ACTIVITY_STATE) == 1) || !!(pending & 0x4000) == (tf && !btf);
}

static bool link_right(u64 secondary)
{
    u64 link = at(VMCS_LINK_POINTER);

    return link == ~0ull || link == (secondary & SECONDARY_VMCS_SHADOWING ? 0x6000 : ~0ull);
}

static bool pdptes_right(u64 secondary, bool wide)
{
    if (wide || !(secondary & SECONDARY_EPT) || !(at(GUEST_CR0) & CR0_PG) ||
        !(at(GUEST_CR4) & CR4_PAE))
        return true;
    for (u32 field = GUEST_PDPTE0; field <= GUEST_PDPTE3; field += 2)
        if ((at(field) & 1) && (at(field) & 0xffffff00000001e6))
            return false;
    return true;
}

static enum verdict judge(void)
{
    u64 secondary = at(PRIMARY_CONTROLS) >> 31 & 1 ? at(SECONDARY_CONTROLS) : 0;
    u64 entry = at(ENTRY_CONTROLS);
    bool urg = secondary & SECONDARY_UNRESTRICTED_GUEST, wide = entry & ENTRY_CTL_IA32E_GUEST;

    if (!controls_right(secondary))
        return CONTROLS;
    if (!host_right())
        return HOST;
    return registers_right(entry, urg, wide) &&
                   segments_right(urg, wide, at(GUEST_RFLAGS) & RFLAGS_VM) &&
                   execution_right(wide) && waiting_right() && link_right(secondary) &&
                   pdptes_right(secondary, wide)
               ? PASSES
               : GUEST;
}

// --- mutation ---

static u16 encodings[VMCS12_FIELDS];
static unsigned encoding_count;

static void list_fields(void)
{
    encoding_count = 0;
    for (u32 encoding = 0; encoding < 0x8000; encoding += 2)
        if (!(encoding & BIT(12)) &&
            vmcs12_slot(encoding) < vmcs12_groups[vmcs12_group(encoding) + 1])
            encodings[encoding_count++] = (u16)encoding;
    assert_int_equal(encoding_count, VMCS12_FIELDS);
}

static u64 mutated(u64 value)
{
    static const u64 values[] = {0,      1,      ~0ull,      NONCAN,     NONCAN - 1,
                                 BEYOND, 0xffff, 0x80000000, 0xffffffff, 0xffffffffffff0000};

    switch (below(6)) {
    case 0:
        return random_u64();
    case 1:
        return values[below(ARRAY_SIZE(values))];
    case 2:
        return value + (random_u64() & 0xff);
    case 3:
        return value ^ SEG_UNUSABLE;
    default:
        return value ^ BIT(below(below(3) ? 32 : 64));
    }
}

static u16 any_field(void)
{
    static const u16 of_segments[] = {GUEST_ES_SELECTOR, GUEST_ES_LIMIT, GUEST_ES_ACCESS,
                                      GUEST_ES_ACCESS, GUEST_ES_BASE};
    static u16 segment; // mostly the same one again: rules are about several of its fields

    if (below(3))
        return encodings[below(encoding_count)];
    if (below(4) == 0)
        segment = (u16)below(SEG_COUNT);
    return (u16)(of_segments[below(ARRAY_SIZE(of_segments))] + 2 * segment);
}

static void mutate(void)
{
    static const u64 widths[] = {0xffff, ~0ull, 0xffffffff, ~0ull};
    static const u64 events[] = {INFO(0, 0x40), INFO(2, 2), INFO(3, 13) | INFO_ERROR_CODE,
                                 INFO(3, 1),    INFO(6, 3), INFO(7, 0)};
    u32 field = any_field();
    u64 value = mutated(at(field)) & widths[field >> 13 & 3];

    if (below(16) == 0) {
        field = ENTRY_INTERRUPTION_INFO;
        value = events[below(ARRAY_SIZE(events))];
    }
    vmcs12_note_write(&nested, field, at(field) ^ value);
    put(field, value);
}

static enum verdict verdict(void)
{
    u64 qualification;

    switch (vmcs12_check_entry(&vcpu, &qualification)) {
    case 0:
        return PASSES;
    case VMX_ERROR_CONTROLS:
        return CONTROLS;
    case VMX_ERROR_HOST_STATE:
        return HOST;
    default:
        return GUEST;
    }
}

static void test_mutation(void **state)
{
    struct nested start[ARRAY_SIZE(states)];
    u64 efer[ARRAY_SIZE(states)];
    unsigned counts[GUEST + 1] = {0};

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(states); i++) {
        u64 qualification;

        states[i]();
        assert_null(refusing(&qualification));
        // From here on, what has been written counts; the rest is the entry's.
        assert_int_equal(nested.due & (DUE_CONTROLS | DUE_HOST | DUE_GUEST), 0);
        start[i] = nested;
        efer[i] = vcpu.cur->state.efer;
    }
    list_fields();
    rng_state = 0x4e4553544f52;
    for (unsigned i = 0; i < CASES; i++) {
        unsigned from = below(ARRAY_SIZE(states));
        enum verdict first, expected;
        struct vmcs12 before;

        nested = start[from];
        *capability_of(MSR_VMX_BASIC) |= below(2) ? VMX_BASIC_ANY_ERROR : 0;
        vcpu.cur->state.efer = efer[from];
        for (unsigned n = 1 + below(3); n; n--)
            mutate();
        before = nested.vmcs;
        first = verdict();
        expected = judge();
        nested.due |= i % 2 ? DUE_ALL : 0;
        if (first != expected || verdict() != first) {
            u64 qualification;
            const struct check_row *row = refusing(&qualification);

            fail_msg("case %u of state %u: %d (\"%s\"), expected %d", i, from, first,
                     row ? row->name : "", expected);
        }
        assert_memory_equal(&before, &nested.vmcs, sizeof(before));
        counts[first]++;
    }
    for (unsigned i = 0; i <= GUEST; i++) // each verdict is met often
        assert_true(counts[i] > CASES / 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mutation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
