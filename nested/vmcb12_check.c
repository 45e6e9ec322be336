// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMRUN's consistency checks, a row each (APM vol. 2, 15.5.1 "Basic Operation": "Canonicalization
// and Consistency Checks"; 15.20 "Event Injection"; 15.25.3, 15.25.4 nested paging). What the list
// does not name is not checked: the CPU makes it canonical or ignores it. Pure.

#include "vmcb12.h"
#include <arch/x86/regs.h>
#include <nestor/vcpu.h>

typedef const struct vmcb12_limits limits;

static bool long_mode(const struct vmcb *v)
{
    return (v->efer & EFER_LME) && (v->cr0 & CR0_PG);
}

static bool beyond(u64 base, u64 size, limits *l)
{
    u64 limit = BIT(l->phys_bits);

    base &= PAGE_MASK; // bits 11:0 are ignored
    return base >= limit || limit - base < size;
}

static bool svme_clear(const struct vmcb *v, limits *l)
{
    (void)l;
    return !(v->efer & EFER_SVME);
}

static bool nw_without_cd(const struct vmcb *v, limits *l)
{
    (void)l;
    return !(v->cr0 & CR0_CD) && (v->cr0 & CR0_NW);
}

static bool cr0_high(const struct vmcb *v, limits *l)
{
    (void)l;
    return v->cr0 >> 32;
}

static bool cr3_reserved(const struct vmcb *v, limits *l)
{
    return v->cr3 >> l->phys_bits;
}

static bool cr4_reserved(const struct vmcb *v, limits *l)
{
    return v->cr4 & ~l->cr4;
}

static bool dr6_high(const struct vmcb *v, limits *l)
{
    (void)l;
    return v->dr6 >> 32;
}

static bool dr7_high(const struct vmcb *v, limits *l)
{
    (void)l;
    return v->dr7 >> 32;
}

static bool efer_reserved(const struct vmcb *v, limits *l)
{
    return v->efer & ~(l->efer | EFER_LMA | EFER_LME); // those have the next row
}

static bool no_long_mode(const struct vmcb *v, limits *l)
{
    return !l->long_mode && (v->efer & (EFER_LMA | EFER_LME));
}

static bool long_without_pae(const struct vmcb *v, limits *l)
{
    (void)l;
    return long_mode(v) && !(v->cr4 & CR4_PAE);
}

static bool long_without_pe(const struct vmcb *v, limits *l)
{
    (void)l;
    return long_mode(v) && !(v->cr0 & CR0_PE);
}

static bool cs_long_and_default(const struct vmcb *v, limits *l)
{
    (void)l;
    return long_mode(v) && (v->cr4 & CR4_PAE) && (v->cs.attrib & BIT(9)) &&
           (v->cs.attrib & BIT(10));
}

static bool vmrun_not_intercepted(const struct vmcb *v, limits *l)
{
    (void)l;
    return !(v->intercept[SVM_WORD_4] & SVM_INTERCEPT_VMRUN);
}

static bool msrpm_beyond(const struct vmcb *v, limits *l)
{
    return beyond(v->msrpm_base_pa, MSRPM_SIZE, l);
}

static bool iopm_beyond(const struct vmcb *v, limits *l)
{
    return beyond(v->iopm_base_pa, IOPM_SIZE, l);
}

static u8 injected_type(const struct vmcb *v)
{
    return v->eventinj >> SVM_EVENT_TYPE_SHIFT & 7;
}

static bool type_reserved(const struct vmcb *v, limits *l)
{
    u8 type = injected_type(v);

    (void)l;
    return (v->eventinj & SVM_EVENT_V) && (type == 1 || type > SVM_EVENT_SOFT_INT);
}

// Vector 2 is the NMI; 9, 15, 20, 22 to 27 and 31 are reserved; #CP, #HV and #VC take features that
// no guest here is offered.
static bool no_exception(const struct vmcb *v, limits *l)
{
    const u32 exceptions = BIT(VECTOR_SX) | BITS(19, 16) | BITS(14, 10) | BITS(8, 3) | BITS(1, 0);
    u8 vector = (u8)v->eventinj;

    (void)l;
    return (v->eventinj & SVM_EVENT_V) && injected_type(v) == SVM_EVENT_EXCEPTION &&
           (vector > 31 || !(exceptions >> vector & 1));
}

// There is no BOUND in 64-bit code.
static bool no_bound(const struct vmcb *v, limits *l)
{
    (void)l;
    return (v->eventinj & SVM_EVENT_V) && injected_type(v) == SVM_EVENT_EXCEPTION &&
           (u8)v->eventinj == VECTOR_BR && long_mode(v) && (v->cs.attrib & BIT(9));
}

static bool asid_zero(const struct vmcb *v, limits *l)
{
    (void)l;
    return !v->guest_asid;
}

static bool wants_npt(const struct vmcb *v, limits *l)
{
    return l->nested_paging && (v->np_enable & 1);
}

static bool npt_without_paging(const struct vmcb *v, limits *l)
{
    return wants_npt(v, l) && !l->host_paging;
}

static bool ncr3_reserved(const struct vmcb *v, limits *l)
{
    return wants_npt(v, l) && v->n_cr3 >> l->phys_bits;
}

static bool pat_illegal(const struct vmcb *v, limits *l)
{
    return wants_npt(v, l) && pat_is_illegal(v->g_pat);
}

static const struct {
    bool (*illegal)(const struct vmcb *v, limits *l);
    const char *what;
} rows[] = {
    {svme_clear, "15.5.1: EFER.SVME is zero"},
    {nw_without_cd, "15.5.1: CR0.CD is zero and CR0.NW is set"},
    {cr0_high, "15.5.1: CR0[63:32] are not zero"},
    {cr3_reserved, "15.5.1: an MBZ bit of CR3 is set"},
    {cr4_reserved, "15.5.1: an MBZ bit of CR4 is set"},
    {dr6_high, "15.5.1: DR6[63:32] are not zero"},
    {dr7_high, "15.5.1: DR7[63:32] are not zero"},
    {efer_reserved, "15.5.1: an MBZ bit of EFER is set"},
    {no_long_mode, "15.5.1: EFER.LMA or EFER.LME without long mode"},
    {long_without_pae, "15.5.1: EFER.LME and CR0.PG without CR4.PAE"},
    {long_without_pe, "15.5.1: EFER.LME and CR0.PG without CR0.PE"},
    {cs_long_and_default, "15.5.1: EFER.LME, CR0.PG, CR4.PAE, CS.L and CS.D"},
    {vmrun_not_intercepted, "15.5.1: VMRUN is not intercepted"},
    {msrpm_beyond, "15.5.1: the MSRPM reaches beyond the physical addresses"},
    {iopm_beyond, "15.5.1: the IOPM reaches beyond the physical addresses"},
    {type_reserved, "15.20: EVENTINJ has a reserved type"},
    {no_exception, "15.20: EVENTINJ is an exception by a vector that is none"},
    {no_bound, "15.20: EVENTINJ is #BR in 64-bit mode"},
    {asid_zero, "15.5.1: the ASID is zero"},
    {npt_without_paging, "15.25.3: nested paging while L1 has none"},
    {ncr3_reserved, "15.25.3: an MBZ bit of nCR3 is set"},
    {pat_illegal, "15.25.4: G_PAT has a type that does not exist"},
};

const char *vmcb12_check(const struct vmcb *v, const struct vmcb12_limits *l)
{
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        if (rows[i].illegal(v, l))
            return rows[i].what;
    return NULL;
}
