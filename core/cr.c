// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Control registers as a guest writes them, with every check of MOV to CR (SDM vol. 2 "MOV - Move
// to/from Control Registers", vol. 3 "Control Registers"; APM vol. 2 "System-Control Registers").
// Values in the model are what the guest has; a back end adds its own.

#include <arch/x86/regs.h>
#include <nestor/device.h>
#include <nestor/nested.h>
#include <nestor/l1_stage2.h>
#include <nestor/run.h>

#define CR0_KNOWN                                                                              \
    (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | \
     CR0_PG)
#define CR0_PAGING (CR0_PG | CR0_WP | CR0_CD | CR0_NW)
#define CR4_PAGING                                                                        \
    (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_LA57 | CR4_PKE | \
     CR4_PKS | CR4_CET)

// CR4 bits that exist when a CPUID bit of the guest's says so.
static const struct {
    u64 bit;
    u32 leaf;
    u8 reg, cpuid_bit;
} cr4_features[] = {
    {CR4_VME | CR4_PVI, 1, 3, 1}, {CR4_TSD, 1, 3, 4},      {CR4_DE, 1, 3, 2},
    {CR4_PSE, 1, 3, 3},           {CR4_PAE, 1, 3, 6},      {CR4_MCE, 1, 3, 7},
    {CR4_PGE, 1, 3, 13},          {CR4_OSFXSR, 1, 3, 24},  {CR4_OSXMMEXCPT, 1, 3, 25},
    {CR4_UMIP, 7, 2, 2},          {CR4_LA57, 7, 2, 16},    {CR4_FSGSBASE, 7, 1, 0},
    {CR4_PCIDE, 1, 2, 17},        {CR4_OSXSAVE, 1, 2, 26}, {CR4_SMEP, 7, 1, 7},
    {CR4_SMAP, 7, 1, 20},         {CR4_PKE, 7, 2, 3},      {CR4_PKS, 7, 2, 31},
    {CR4_CET, 7, 2, 7},           {CR4_CET, 7, 3, 20},
};

u64 cr4_allowed(const struct vcpu *vcpu)
{
    u64 bits = nested_cr4_bits(vcpu) | CR4_PCE;

    for (unsigned i = 0; i < ARRAY_SIZE(cr4_features); i++)
        if (cpuid_has(vcpu->vm, cr4_features[i].leaf, cr4_features[i].reg,
                      cr4_features[i].cpuid_bit))
            bits |= cr4_features[i].bit;
    return bits;
}

static u64 read_cr8(struct vcpu *vcpu)
{
    u64 value;

    if (unlikely(vcpu->level) && nested_cr8(vcpu, false, &value))
        return value;
    return lapic_read_cr8(vcpu);
}

static int write_cr8(struct vcpu *vcpu, u64 value)
{
    if (value >> 4)
        return -E_FAULT;
    if (likely(!vcpu->level) || !nested_cr8(vcpu, true, &value))
        lapic_write_cr8(vcpu, value);
    vcpu->events.interrupts_check = true;
    return 0;
}

u64 cr_read_guest(struct vcpu *vcpu, unsigned number)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_CR2);

    switch (number) {
    case 0:
        return s->cr0;
    case 2:
        return vcpu->cr2;
    case 3:
        return s->cr3;
    case 4:
        return s->cr4;
    default:
        return read_cr8(vcpu);
    }
}

static u64 cr3_reserved(struct vcpu *vcpu)
{
    return vcpu_mode_long(vcpu) ? ~BITS(cpuid_phys_bits(vcpu->vm) - 1, 0) : 0;
}

// PAE's four pointers are loaded, and checked, when CR3 is or when paging comes on (SDM vol. 3
// "PDPTE Registers").
static int load_pdptes(struct vcpu *vcpu, u64 cr0, u64 cr3, u64 cr4, u64 efer, u64 pdpte[4])
{
    gpa_t gpa = cr3 & BITS(31, 5);
    u64 reserved;

    if (!backend->holds_pdptes || !(cr0 & CR0_PG) || !(cr4 & CR4_PAE) || (efer & EFER_LMA))
        return 0;
    if (vcpu->level && nested_translate(vcpu, &gpa, 0, L1_READ | L1_TABLE | L1_NO_LINEAR))
        return -E_FAULT;
    if (guest_read_gpa(vcpu, gpa, pdpte, 4 * sizeof(pdpte[0])))
        return -E_FAULT;
    reserved = ~BITS(cpuid_phys_bits(vcpu->vm) - 1, 0) | BITS(8, 5) | BITS(2, 1);
    for (unsigned i = 0; i < 4; i++)
        if ((pdpte[i] & 1) && (pdpte[i] & reserved))
            return -E_FAULT;
    return 1;
}

static void commit_pdptes(struct vcpu *vcpu, const u64 pdpte[4], int loaded)
{
    struct guest_state *s;

    if (loaded <= 0)
        return;
    s = vcpu_modify(vcpu, GROUP_PDPTE);
    for (unsigned i = 0; i < 4; i++)
        s->pdpte[i] = pdpte[i];
}

static bool cr0_refused(struct vcpu *vcpu, const struct guest_state *s, u64 value)
{
    u64 known = (value & CR0_KNOWN) | CR0_ET;

    if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) ||
        ((value & CR0_NW) && !(value & CR0_CD)))
        return true;
    if ((value & ~s->cr0 & CR0_PG) && (s->efer & EFER_LME) &&
        (!(s->cr4 & CR4_PAE) || (s->seg[SEG_CS].access & SEG_L)))
        return true;
    if ((~value & s->cr0 & CR0_PG) && ((s->cr4 & CR4_PCIDE) || vcpu_mode_64bit(vcpu)))
        return true;
    return (!(value & CR0_WP) && (s->cr4 & CR4_CET)) || nested_check_cr(vcpu, 0, known);
}

static int write_cr0(struct vcpu *vcpu, u64 value)
{
    struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_EFER_PAT | GROUP_CODE);
    u64 efer = s->efer, changed, pdpte[4];
    int loaded;

    if (cr0_refused(vcpu, s, value))
        return -E_FAULT;
    value = (value & CR0_KNOWN) | CR0_ET;
    if ((value & ~s->cr0 & CR0_PG) && (efer & EFER_LME))
        efer |= EFER_LMA;
    if (!(value & CR0_PG))
        efer &= ~EFER_LMA;
    changed = value ^ s->cr0;
    loaded = changed & CR0_PAGING ? load_pdptes(vcpu, value, s->cr3, s->cr4, efer, pdpte) : 0;
    if (loaded < 0)
        return -E_FAULT;
    s = vcpu_modify(vcpu, GROUP_CR | (efer != s->efer ? (u32)GROUP_EFER_PAT : 0));
    s->cr0 = value;
    s->efer = efer;
    commit_pdptes(vcpu, pdpte, loaded);
    if (changed & CR0_PAGING)
        tlb_flush_vcpu(vcpu, TLB_FLUSH_GUEST);
    return 0;
}

static bool cr3_refused(struct vcpu *vcpu, const struct guest_state *s, u64 value)
{
    return value & cr3_reserved(vcpu) & ~(s->cr4 & CR4_PCIDE ? BIT(63) : 0);
}

static int write_cr3(struct vcpu *vcpu, u64 value)
{
    struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_EFER_PAT);
    bool keep = (s->cr4 & CR4_PCIDE) && (value & BIT(63));
    u64 pdpte[4];
    int loaded;

    if (cr3_refused(vcpu, s, value))
        return -E_FAULT;
    if (s->cr4 & CR4_PCIDE)
        value &= ~BIT(63);
    loaded = load_pdptes(vcpu, s->cr0, value, s->cr4, s->efer, pdpte);
    if (loaded < 0)
        return -E_FAULT;
    vcpu_modify(vcpu, GROUP_CR)->cr3 = value;
    commit_pdptes(vcpu, pdpte, loaded);
    if (!keep)
        tlb_flush_vcpu(vcpu, TLB_FLUSH_GUEST);
    return 0;
}

static bool cr4_refused(struct vcpu *vcpu, const struct guest_state *s, u64 value)
{
    bool lma = s->efer & EFER_LMA;

    if (value & ~vcpu->cr4_allowed)
        return true;
    if (lma && (!(value & CR4_PAE) || ((value ^ s->cr4) & CR4_LA57)))
        return true;
    if ((value & ~s->cr4 & CR4_PCIDE) && (!lma || (s->cr3 & BITS(11, 0))))
        return true;
    if ((value & CR4_CET) && !(s->cr0 & CR0_WP))
        return true;
    return nested_check_cr(vcpu, 4, value);
}

static int write_cr4(struct vcpu *vcpu, u64 value)
{
    struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_EFER_PAT);
    u64 changed = value ^ s->cr4, pdpte[4];
    int loaded = 0;

    if (cr4_refused(vcpu, s, value))
        return -E_FAULT;
    if (changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP))
        loaded = load_pdptes(vcpu, s->cr0, s->cr3, value, s->efer, pdpte);
    if (loaded < 0)
        return -E_FAULT;
    vcpu_modify(vcpu, GROUP_CR)->cr4 = value;
    commit_pdptes(vcpu, pdpte, loaded);
    if (changed & CR4_PAGING)
        tlb_flush_vcpu(vcpu, TLB_FLUSH_GUEST);
    return 0;
}

int cr_write_guest(struct vcpu *vcpu, unsigned number, u64 value)
{
    switch (number) {
    case 0:
        return write_cr0(vcpu, value);
    case 2:
        vcpu_modify(vcpu, GROUP_CR2);
        vcpu->cr2 = value;
        return 0;
    case 3:
        return write_cr3(vcpu, value);
    case 4:
        return write_cr4(vcpu, value);
    case 8:
        return write_cr8(vcpu, value);
    default:
        return -E_FAULT;
    }
}

bool cr_refuses_guest(struct vcpu *vcpu, unsigned number, u64 value)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_EFER_PAT | GROUP_CODE);

    switch (number) {
    case 0:
        return cr0_refused(vcpu, s, value);
    case 3:
        return cr3_refused(vcpu, s, value);
    case 4:
        return cr4_refused(vcpu, s, value);
    default:
        return number == 8 && value >> 4;
    }
}
