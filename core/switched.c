// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// MSRs that a guest has in the registers as long as its vCPU is on a CPU: CET's (SDM vol. 1
// "Control-Flow Enforcement Technology"), IA32_PKRS (vol. 3 "Protection Keys"), IA32_UMWAIT_CONTROL
// (vol. 4). All of them are intercepted; but CET's change also by XRSTORS and by control transfers.

#include <arch/x86/msr.h>
#include <nestor/run.h>
#include <nestor/switched.h>

enum reg { EAX, EBX, ECX, EDX };

// A row exists if CPUID leaf 7 offers it by `ecx` or `edx`.
static const struct {
    u32 msr;
    u16 offset;
    bool changes; // also without WRMSR
    u32 ecx, edx;
} rows[] = {
#define ROW(msr, field, changes, ecx, edx)                   \
    {                                                        \
        msr, offsetof(struct vcpu, field), changes, ecx, edx \
    }
    ROW(MSR_U_CET, u_cet, true, BIT(7), BIT(20)),
    ROW(MSR_PL0_SSP, pl_ssp[0], true, BIT(7), 0),
    ROW(MSR_PL0_SSP + 1, pl_ssp[1], true, BIT(7), 0),
    ROW(MSR_PL0_SSP + 2, pl_ssp[2], true, BIT(7), 0),
    ROW(MSR_PL0_SSP + 3, pl_ssp[3], true, BIT(7), 0),
    ROW(MSR_PKRS, pkrs, false, BIT(31), 0),
    ROW(MSR_UMWAIT_CONTROL, umwait_control, false, BIT(5), 0),
};

static u64 *slot(const struct vcpu *vcpu, u32 row)
{
    return (u64 *)((const u8 *)vcpu + rows[row].offset);
}

u32 switched_rows(const struct vm *vm)
{
    u32 found = 0;

    for (u32 i = 0; i < ARRAY_SIZE(rows); i++)
        for (u32 bit = 0; bit < 32; bit++)
            if (((rows[i].ecx >> bit & 1) && cpuid_has(vm, 7, ECX, bit)) ||
                ((rows[i].edx >> bit & 1) && cpuid_has(vm, 7, EDX, bit)))
                found |= (u32)BIT(i);
    return found;
}

// INIT leaves IA32_PKRS and IA32_UMWAIT_CONTROL as they are (core/vcpu.c resets them).
void switched_reset(struct vcpu *vcpu)
{
    for (u32 i = 0; i < ARRAY_SIZE(rows); i++)
        if (rows[i].changes)
            *slot(vcpu, i) = 0;
    vcpu->shared_valid |= GROUP_SWITCHED;
    vcpu->shared_dirty |= GROUP_SWITCHED;
}

void switched_pull(struct vcpu *vcpu)
{
    for (u32 left = vcpu->switched; left; left &= left - 1) {
        u32 i = (u32)__builtin_ctz(left);

        if (rows[i].changes)
            *slot(vcpu, i) = msr_read(rows[i].msr);
    }
}

void switched_write(const struct vcpu *vcpu)
{
    for (u32 left = vcpu->switched; left; left &= left - 1)
        msr_write(rows[__builtin_ctz(left)].msr, *slot(vcpu, (u32)__builtin_ctz(left)));
}

// --- as MSRs ---

#define CET_SS      BITS(1, 0) // SH_STK_EN WR_SHSTK_EN
#define CET_IBT     (BITS(63, 10) | BITS(5, 2))
#define CET_TRACKER BITS(11, 10) // SUPPRESS and WAIT_FOR_ENDBRANCH, not both

static bool canonical(const struct vcpu *vcpu, u64 value)
{
    unsigned unused = cpuid_has(vcpu->vm, 7, ECX, 16) ? 64 - 57 : 64 - 48;

    return (u64)((s64)(value << unused) >> unused) == value;
}

static bool cet_refused(const struct vcpu *vcpu, u64 value)
{
    u64 exist = (cpuid_has(vcpu->vm, 7, ECX, 7) ? CET_SS : 0) |
                (cpuid_has(vcpu->vm, 7, EDX, 20) ? CET_IBT : 0);

    return (value & ~exist) || (value & CET_TRACKER) == CET_TRACKER ||
           !canonical(vcpu, value & ~BITS(11, 0));
}

static bool refused(const struct vcpu *vcpu, u32 msr, u64 value)
{
    switch (msr) {
    case MSR_U_CET:
    case MSR_S_CET:
        return cet_refused(vcpu, value);
    case MSR_INTERRUPT_SSP_TABLE:
        return !canonical(vcpu, value);
    case MSR_PKRS:
        return value >> 32;
    case MSR_UMWAIT_CONTROL:
        return value >> 32 || (value & BIT(1));
    case MSR_XSS:
        return value & ~cpuid_xss(vcpu->vm);
    default: // IA32_PLn_SSP
        return (value & BITS(1, 0)) || !canonical(vcpu, value);
    }
}

// Where the model keeps it, and its group; NULL: the guest has no such MSR.
static u64 *slot_of(struct vcpu *vcpu, u32 msr, u32 *group)
{
    struct guest_state *s = &vcpu->cur->state;
    const struct vm *vm = vcpu->vm;

    *group = GROUP_CET;
    if (msr == MSR_S_CET)
        return vm->disabled_isa & ISA_CET ? NULL : &s->s_cet;
    if (msr == MSR_INTERRUPT_SSP_TABLE)
        return cpuid_has(vm, 7, ECX, 7) ? &s->interrupt_ssp_table : NULL;
    *group = GROUP_EXTENDED;
    if (msr == MSR_XSS)
        return cpuid_has_xsaves(vm) ? &vcpu->xss : NULL;
    *group = GROUP_SWITCHED;
    for (u32 i = 0; i < ARRAY_SIZE(rows); i++)
        if (rows[i].msr == msr && (vcpu->switched & BIT(i)))
            return slot(vcpu, i);
    return NULL;
}

int switched_read_msr(struct vcpu *vcpu, u32 msr, u64 *value)
{
    u32 group;
    const u64 *at = slot_of(vcpu, msr, &group);

    if (!at)
        return -E_FAULT;
    vcpu_state(vcpu, group);
    *value = *at;
    return 0;
}

int switched_write_msr(struct vcpu *vcpu, u32 msr, u64 value)
{
    u32 group;
    u64 *at = slot_of(vcpu, msr, &group);

    if (!at || refused(vcpu, msr, value))
        return -E_FAULT;
    vcpu_modify(vcpu, group);
    *at = value;
    return 0;
}
