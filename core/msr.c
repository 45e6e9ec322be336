// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The MSR policy as a table: which MSRs a guest has, what it reads, what it may write. What is not
// in the table raises #GP and is logged once. SDM vol. 4; APM vol. 2 appendix A. Those that no row
// names but hardware passes through (FS_BASE, STAR, ...) are here too, because emulation and front
// ends read them by number.

#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/device.h>
#include <nestor/log.h>
#include <nestor/nested.h>
#include <nestor/page.h>
#include <nestor/run.h>
#include <nestor/string.h>
#include <nestor/switched.h>
#include <nestor/time.h>
#include <nestor/tlb.h>

enum { MTRR_VARIABLE = 8, MC_BANKS = 4, REPORT_MAX = 32, KEPT_MAX = 160, ROWS_MAX = 96 };
enum { DIRECT_MSRS = MSR_X2APIC_LAST + 1 };

#define MCG_CAP_VALUE  (MC_BANKS | BIT(8)) // MCG_CTL present; no LMCE: no MCG_EXT_CTL
#define MTRRCAP_VALUE  (MTRR_VARIABLE | BIT(8) | BIT(10)) // fixed ranges, write-combining
#define WRITE_BACK     0x0606060606060606ull
#define HWCR_MC_STATUS BIT(18) // McStatusWrEn

struct vcpu_msrs {
    u64 kept[KEPT_MAX];     // those of the rows with read_kept, one after the other
    const u64 *misc_enable; // IA32_MISC_ENABLE's of them, NULL: the guest has none
    u64 ucode_cpuids;       // CPUID exits when the microcode revision was last written, + 1
    // Most MSRs that a guest uses often are low ones: their rows are found by their numbers. The
    // row's number + 1, 0: the guest has no such MSR.
    u8 direct[DIRECT_MSRS];
    bool has[ROWS_MAX]; // the same of each row
};

static struct spinlock report_lock;
static u32 reported[REPORT_MAX];
static u32 reported_count;

void msr_destroy(struct vcpu *vcpu)
{
    if (vcpu->msrs)
        heap_free(vcpu->msrs, sizeof(*vcpu->msrs));
}

// Of what is only remembered: its place, NULL if the guest has no such MSR.
static u64 *kept(struct vcpu *vcpu, u32 msr);

static bool kept_has(struct vcpu *vcpu, u32 msr, u64 bits)
{
    const u64 *slot = kept(vcpu, msr);

    return slot && *slot & bits;
}

// By the widest addresses that the CPU has, whatever CR4.LA57 says.
static bool canonical(const struct vcpu *vcpu, u64 value)
{
    unsigned unused = cpuid_has(vcpu->vm, 7, 2, 16) ? 64 - 57 : 64 - 48;

    return (u64)((s64)(value << unused) >> unused) == value;
}

// --- state that the back end switches ---

static u64 *state_slot(struct vcpu *vcpu, u32 msr, u32 *group)
{
    struct guest_state *s = &vcpu->cur->state;

    switch (msr) {
    case MSR_SYSENTER_CS:
        *group = GROUP_SYSENTER;
        return &s->sysenter_cs;
    case MSR_SYSENTER_ESP:
        *group = GROUP_SYSENTER;
        return &s->sysenter_esp;
    case MSR_SYSENTER_EIP:
        *group = GROUP_SYSENTER;
        return &s->sysenter_eip;
    case MSR_FS_BASE:
        *group = GROUP_SYSTEM;
        return &s->seg[SEG_FS].base;
    case MSR_GS_BASE:
        *group = GROUP_SYSTEM;
        return &s->seg[SEG_GS].base;
    case MSR_DEBUGCTL:
        *group = GROUP_DEBUG;
        return &s->debugctl;
    case MSR_PAT:
        *group = GROUP_EFER_PAT;
        return &s->pat;
    case MSR_STAR:
        *group = GROUP_SYSCALL;
        return &vcpu->star;
    case MSR_LSTAR:
        *group = GROUP_SYSCALL;
        return &vcpu->lstar;
    case MSR_CSTAR:
        *group = GROUP_SYSCALL;
        return &vcpu->cstar;
    case MSR_SFMASK:
        *group = GROUP_SYSCALL;
        return &vcpu->sfmask;
    default:
        *group = GROUP_SYSCALL;
        return &vcpu->kernel_gs_base;
    }
}

static int read_state(struct vcpu *vcpu, u32 msr, u64 *value)
{
    u32 group;
    const u64 *slot = state_slot(vcpu, msr, &group);

    vcpu_state(vcpu, group);
    *value = *slot;
    return 0;
}

static void set_state(struct vcpu *vcpu, u32 msr, u64 value)
{
    u32 group;
    u64 *slot = state_slot(vcpu, msr, &group);

    vcpu_modify(vcpu, group);
    *slot = value;
}

static int write_state(struct vcpu *vcpu, u32 msr, u64 value)
{
    set_state(vcpu, msr, value);
    return 0;
}

static int write_low32(struct vcpu *vcpu, u32 msr, u64 value)
{
    if (value >> 32)
        return -E_FAULT;
    return write_state(vcpu, msr, value);
}

static int write_address(struct vcpu *vcpu, u32 msr, u64 value)
{
    return canonical(vcpu, value) ? write_state(vcpu, msr, value) : -E_FAULT;
}

static bool memory_type_valid(u8 type)
{
    return type == MEM_UC || type == MEM_WC || type == MEM_WT || type == MEM_WP || type == MEM_WB;
}

static int write_pat(struct vcpu *vcpu, u32 msr, u64 value)
{
    for (unsigned i = 0; i < 8; i++) {
        u8 type = (u8)(value >> i * 8);

        if (!memory_type_valid(type) && type != MEM_UC_MINUS)
            return -E_FAULT;
    }
    return write_state(vcpu, msr, value);
}

// What of DEBUGCTL the back end switches. VMX: BTF where the CPU has it; no last branches, which no
// test machine has.
static u64 debugctl_works(void)
{
    u64 unused;

    if (backend->last_branches)
        return DEBUGCTL_LBR | DEBUGCTL_BTF;
    return backend == &vmx_backend && !msr_read_safe(MSR_DEBUGCTL, &unused) ? DEBUGCTL_BTF : 0;
}

// Every CPU since the P6 takes LBR and BTF, so both can be written; what has no effect here reads
// 0, as KVM has it.
static int write_debugctl(struct vcpu *vcpu, u32 msr, u64 value)
{
    if (value & ~(u64)(DEBUGCTL_LBR | DEBUGCTL_BTF))
        return -E_FAULT;
    return write_state(vcpu, msr, value & debugctl_works());
}

static int read_last_branch(struct vcpu *vcpu, u32 msr, u64 *value)
{
    *value = vcpu_state(vcpu, GROUP_DEBUG)->last_branch[msr - MSR_LAST_BRANCH_FROM];
    return 0;
}

static int read_efer(struct vcpu *vcpu, u32 msr, u64 *value)
{
    (void)msr;
    *value = vcpu_state(vcpu, GROUP_EFER_PAT)->efer;
    return 0;
}

u64 efer_allowed(struct vcpu *vcpu)
{
    u64 allowed = nested_efer_bits(vcpu) | EFER_LMA;

    allowed |= cpuid_has(vcpu->vm, 0x80000001, 3, 11) ? EFER_SCE : 0;
    allowed |= cpuid_has(vcpu->vm, 0x80000001, 3, 20) ? EFER_NX : 0;
    allowed |= cpuid_has(vcpu->vm, 0x80000001, 3, 25) ? EFER_FFXSR : 0;
    allowed |= cpuid_has(vcpu->vm, 0x80000001, 3, 29) ? EFER_LME : 0;
    if (kept_has(vcpu, MSR_MISC_ENABLE, MISC_XD))
        allowed &= ~(u64)EFER_NX;
    return allowed;
}

static int write_efer(struct vcpu *vcpu, u32 msr, u64 value)
{
    struct guest_state *s = vcpu_state(vcpu, GROUP_EFER_PAT | GROUP_CR);
    u64 allowed = efer_allowed(vcpu);

    (void)msr;
    if ((value & ~allowed) || ((s->cr0 & CR0_PG) && ((value ^ s->efer) & EFER_LME)))
        return -E_FAULT;
    s = vcpu_modify(vcpu, GROUP_EFER_PAT);
    if ((value ^ s->efer) & EFER_NX)
        tlb_flush_vcpu(vcpu, TLB_FLUSH_GUEST);
    s->efer = (value & ~EFER_LMA) | (s->efer & EFER_LMA); // LMA is the CPU's
    return 0;
}

// --- time ---

static int read_tsc(struct vcpu *vcpu, u32 msr, u64 *value)
{
    (void)msr;
    *value = vcpu_level_tsc(vcpu, tsc_now());
    return 0;
}

static void move_tsc(struct vcpu *vcpu, u64 by)
{
    if (!by)
        return;
    vcpu->tsc_offset_base += by;
    vcpu->tsc_adjust += by;
    vcpu->ctx[0].ctl.tsc_offset += by;
    vcpu->ctx[0].ctl_dirty |= CTL_TSC;
    if (vcpu->level) {
        vcpu->ctx[1].ctl.tsc_offset += nested_tsc_moved(vcpu, by);
        vcpu->ctx[1].ctl_dirty |= CTL_TSC;
    }
    lapic_tsc_changed(vcpu);
    paravirt_tsc_changed(vcpu);
}

static int write_tsc(struct vcpu *vcpu, u32 msr, u64 value)
{
    (void)msr;
    move_tsc(vcpu, value - vcpu_guest_tsc(vcpu, tsc_now()));
    return 0;
}

static int read_tsc_adjust(struct vcpu *vcpu, u32 msr, u64 *value)
{
    (void)msr;
    *value = vcpu->tsc_adjust;
    return 0;
}

static int write_tsc_adjust(struct vcpu *vcpu, u32 msr, u64 value)
{
    (void)msr;
    move_tsc(vcpu, value - vcpu->tsc_adjust);
    return 0;
}

static int read_tsc_aux(struct vcpu *vcpu, u32 msr, u64 *value)
{
    (void)msr;
    *value = vcpu->tsc_aux;
    return vcpu->vm->disabled_isa & ISA_RDTSCP ? -E_FAULT : 0;
}

static int write_tsc_aux(struct vcpu *vcpu, u32 msr, u64 value)
{
    if ((vcpu->vm->disabled_isa & ISA_RDTSCP) || value >> 32)
        return -E_FAULT;
    (void)msr;
    vcpu_modify(vcpu, GROUP_EXTENDED);
    vcpu->tsc_aux = value;
    return 0;
}

// --- MTRRs: remembered; guest memory is write-back whatever they say, as stage 2 has it ---

static bool fixed_types_valid(u64 value)
{
    for (unsigned i = 0; i < 8; i++)
        if (!memory_type_valid((u8)(value >> i * 8)))
            return false;
    return true;
}

static int write_mtrr(struct vcpu *vcpu, u32 msr, u64 value)
{
    u64 address = BITS(cpuid_phys_bits(vcpu->vm) - 1, 12);
    bool ok;

    if (msr == MSR_MTRR_DEF_TYPE)
        ok = !(value & ~(BIT(11) | BIT(10) | 0xff)) && memory_type_valid((u8)value);
    else if (msr >= MSR_MTRR_FIX64K)
        ok = fixed_types_valid(value);
    else if (msr & 1)
        ok = !(value & ~(address | BIT(11)));
    else
        ok = !(value & ~(address | 0xff)) && memory_type_valid((u8)value);
    if (!ok)
        return -E_FAULT;
    *kept(vcpu, msr) = value;
    return 0;
}

// --- machine check: banks where nothing ever happens ---

static int write_all_or_none(struct vcpu *vcpu, u32 msr, u64 value)
{
    if (value && ~value)
        return -E_FAULT;
    *kept(vcpu, msr) = value;
    return 0;
}

// STATUS can only be cleared; what ADDR and MISC hold beside it, their makers leave to software.
static int write_bank(struct vcpu *vcpu, u32 msr, u64 value)
{
    if ((msr & 3) == 0)
        return write_all_or_none(vcpu, msr, value);
    if ((msr & 3) == 1 && value && !kept_has(vcpu, MSR_HWCR, HWCR_MC_STATUS))
        return -E_FAULT;
    *kept(vcpu, msr) = value;
    return 0;
}

static int write_apic_base(struct vcpu *vcpu, u32 msr, u64 value)
{
    if ((value & APIC_BASE_X2APIC) && !cpuid_has(vcpu->vm, 1, 2, 21)) // hidden
        return -E_FAULT;
    return lapic_write_msr(vcpu, msr, value);
}

// --- the rest ---

static int read_kept(struct vcpu *vcpu, u32 msr, u64 *value)
{
    *value = *kept(vcpu, msr);
    return 0;
}

static int write_kept(struct vcpu *vcpu, u32 msr, u64 value);

static int write_physical(struct vcpu *vcpu, u32 msr, u64 value)
{
    return value >> cpuid_phys_bits(vcpu->vm) ? -E_FAULT : write_kept(vcpu, msr, value);
}

static int read_zero(struct vcpu *vcpu, u32 msr, u64 *value)
{
    (void)vcpu, (void)msr;
    *value = 0;
    return 0;
}

static int read_none(struct vcpu *vcpu, u32 msr, u64 *value) // can only be written
{
    (void)vcpu, (void)msr, (void)value;
    return -E_FAULT;
}

static int write_ignored(struct vcpu *vcpu, u32 msr, u64 value)
{
    (void)vcpu, (void)msr, (void)value;
    return 0;
}

static int write_zero(struct vcpu *vcpu, u32 msr, u64 value) // no bit exists
{
    (void)vcpu, (void)msr;
    return value ? -E_FAULT : 0;
}

// Microcode revision: the CPU's own, so that guests judge its errata rightly; loading is refused in
// silence, as KVM does.
static int read_ucode(struct vcpu *vcpu, u32 msr, u64 *value)
{
    (void)vcpu;
    return msr_read_safe(msr, value);
}

// Intel: what was written stays until CPUID puts the revision there.
static int read_ucode_sign(struct vcpu *vcpu, u32 msr, u64 *value)
{
    if (vcpu->msrs->ucode_cpuids != vcpu->exit_counts[EXIT_CPUID] + 1)
        return read_ucode(vcpu, msr, value);
    *value = *kept(vcpu, msr);
    return 0;
}

static int write_ucode_sign(struct vcpu *vcpu, u32 msr, u64 value)
{
    vcpu->msrs->ucode_cpuids = vcpu->exit_counts[EXIT_CPUID] + 1;
    *kept(vcpu, msr) = value;
    return 0;
}

// The TSC's ratio to a bus clock of 100 MHz: PLATFORM_INFO (also as the lowest), PERF_STATUS.
static int read_ratio(struct vcpu *vcpu, u32 msr, u64 *value)
{
    u64 ratio = MIN(vcpu->vm->tsc_hz / 100000000, 0xffull);

    *value = ratio << 8 | (msr == MSR_PLATFORM_INFO ? ratio << 40 : 0);
    return 0;
}

struct msr_row {
    u32 first, last;
    int (*read)(struct vcpu *vcpu, u32 msr, u64 *value);
    int (*write)(struct vcpu *vcpu, u32 msr, u64 value); // NULL: #GP
    u8 vendor;
    u16 feature; // without which the guest has no such MSR; 0: none
    // Of what is kept: the bits that can be written, and what reset leaves. Those that only `reset`
    // has can't be changed; all others are reserved.
    u64 writable, reset;
};

enum { VENDOR_ANY, VENDOR_INTEL, VENDOR_AMD };
enum { EAX, EBX, ECX, EDX };

#define FEATURE(leaf, reg, bit) (((leaf) >> 16 & 0x8000) | ((leaf)&0x3f) << 7 | (reg) << 5 | (bit))
#define F_SYSENTER              FEATURE(1u, EDX, 11)
#define F_MTRR                  FEATURE(1u, EDX, 12)
#define F_MCA                   FEATURE(1u, EDX, 14)
#define F_PAT                   FEATURE(1u, EDX, 16)
#define F_X2APIC                FEATURE(1u, ECX, 21)
#define F_TSC_DEADLINE          FEATURE(1u, ECX, 24)
#define F_TSC_ADJUST            FEATURE(7u, EBX, 1)
#define F_SYSCALL               FEATURE(0x80000001u, EDX, 11)

#define PHYSICAL BITS(51, 12) // write_physical knows which of them there are
// Fast strings, TCC, EIST, MONITOR, CPUID limit, xTPR messages, XD, turbo
#define MISC_ENABLE_BITS \
    (BIT(0) | BIT(3) | BIT(16) | BIT(18) | MISC_CPUID_LIMIT | BIT(23) | MISC_XD | BIT(38))
#define MISC_ENABLE_RESET (BIT(0) | BIT(11) | BIT(12)) // fast strings; no BTS, no PEBS
#define POWER_CTL_BITS    (BIT(1) | BIT(19) | BIT(20)) // C1E; energy efficiency, race to halt
// TlbCacheDis, INVDWBINVD, FFDis, IgnneEm, TscFreqSel, CpbDis: nothing here depends on them
#define HWCR_BITS (BIT(3) | BIT(4) | BIT(6) | BIT(8) | HWCR_MC_STATUS | BIT(24) | BIT(25))

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmissing-field-initializers" // those that a row leaves out are 0

static const struct msr_row rows[] = {
    {0x0, 0x1, read_zero, NULL, VENDOR_ANY}, // P5_MC_ADDR, P5_MC_TYPE
    {MSR_TSC, MSR_TSC, read_tsc, write_tsc, VENDOR_ANY},
    {0x11, 0x12, paravirt_read_msr, paravirt_write_msr, VENDOR_ANY}, // kvmclock's first ones
    {MSR_PLATFORM_ID, MSR_PLATFORM_ID, read_zero, NULL, VENDOR_INTEL},
    {MSR_APIC_BASE, MSR_APIC_BASE, lapic_read_msr, write_apic_base, VENDOR_ANY},
    {0x34, 0x34, read_zero, NULL, VENDOR_INTEL}, // SMI_COUNT
    {MSR_TSC_ADJUST, MSR_TSC_ADJUST, read_tsc_adjust, write_tsc_adjust, VENDOR_ANY, F_TSC_ADJUST},
    {MSR_UCODE_WRITE, MSR_UCODE_WRITE, read_none, write_ignored, VENDOR_INTEL},
    {MSR_UCODE_REV, MSR_UCODE_REV, read_ucode, write_ignored, VENDOR_AMD},
    {MSR_UCODE_REV, MSR_UCODE_REV, read_ucode_sign, write_ucode_sign, VENDOR_INTEL},
    {MSR_PLATFORM_INFO, MSR_PLATFORM_INFO, read_ratio, NULL, VENDOR_INTEL},
    {MSR_UMWAIT_CONTROL, MSR_UMWAIT_CONTROL, switched_read_msr, switched_write_msr, VENDOR_INTEL},
    {MSR_MTRRCAP, MSR_MTRRCAP, read_kept, NULL, VENDOR_ANY, F_MTRR, 0, MTRRCAP_VALUE},
    {MSR_MISC_FEATURES_ENABLES, MSR_MISC_FEATURES_ENABLES, read_zero, write_zero, VENDOR_INTEL},
    {MSR_SYSENTER_CS, MSR_SYSENTER_CS, read_state, write_low32, VENDOR_ANY, F_SYSENTER},
    {MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, read_state, write_address, VENDOR_INTEL, F_SYSENTER},
    {MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, read_state, write_state, VENDOR_AMD, F_SYSENTER},
    {MSR_MCG_CAP, MSR_MCG_CAP, read_kept, NULL, VENDOR_ANY, F_MCA, 0, MCG_CAP_VALUE},
    {MSR_MCG_STATUS, MSR_MCG_STATUS, read_kept, write_kept, VENDOR_ANY, F_MCA, 7, 0},
    {MSR_MCG_CTL, MSR_MCG_CTL, read_kept, write_all_or_none, VENDOR_ANY, F_MCA},
    {0x198, 0x198, read_ratio, NULL, VENDOR_INTEL}, // PERF_STATUS
    {0x199, 0x199, read_zero, NULL, VENDOR_INTEL},  // PERF_CTL, without CPUID.EIST
    {MSR_MISC_ENABLE, MSR_MISC_ENABLE, read_kept, write_kept, VENDOR_INTEL, 0, MISC_ENABLE_BITS,
     MISC_ENABLE_RESET},
    {MSR_DEBUGCTL, MSR_DEBUGCTL, read_state, write_debugctl, VENDOR_ANY},
    {MSR_LAST_BRANCH_FROM, MSR_LAST_BRANCH_FROM + 3, read_last_branch, NULL, VENDOR_AMD},
    {0x1fc, 0x1fc, read_kept, write_kept, VENDOR_INTEL, 0, POWER_CTL_BITS, 0}, // POWER_CTL
    {MSR_MTRR_PHYSBASE0, MSR_MTRR_PHYSBASE0 + MTRR_VARIABLE * 2 - 1, read_kept, write_mtrr,
     VENDOR_ANY, F_MTRR},
    {MSR_MTRR_FIX64K, MSR_MTRR_FIX64K, read_kept, write_mtrr, VENDOR_ANY, F_MTRR, 0, WRITE_BACK},
    {MSR_MTRR_FIX16K_80000, MSR_MTRR_FIX16K_80000, read_kept, write_mtrr, VENDOR_ANY, F_MTRR, 0,
     WRITE_BACK},
    {MSR_MTRR_FIX16K_A0000, MSR_MTRR_FIX16K_A0000, read_kept, write_mtrr, VENDOR_ANY, F_MTRR},
    {MSR_MTRR_FIX4K_C0000, MSR_MTRR_FIX4K_C0000 + 7, read_kept, write_mtrr, VENDOR_ANY, F_MTRR, 0,
     WRITE_BACK},
    {MSR_PAT, MSR_PAT, read_state, write_pat, VENDOR_ANY, F_PAT},
    // As firmware leaves them: everything write-back but the hole below 4 GiB and the VGA range.
    {MSR_MTRR_DEF_TYPE, MSR_MTRR_DEF_TYPE, read_kept, write_mtrr, VENDOR_ANY, F_MTRR, 0,
     BIT(11) | BIT(10) | MEM_WB},
    {MSR_MC0_CTL, MSR_MC0_CTL + MC_BANKS * 4 - 1, read_kept, write_bank, VENDOR_ANY, F_MCA},
    {0x606, 0x606, read_zero, NULL, VENDOR_INTEL}, // RAPL: power unit; energy of package, ...
    {0x611, 0x611, read_zero, NULL, VENDOR_INTEL},
    {0x619, 0x619, read_zero, NULL, VENDOR_INTEL}, // ... memory, cores, graphics: no meter
    {0x639, 0x639, read_zero, NULL, VENDOR_INTEL},
    {0x641, 0x641, read_zero, NULL, VENDOR_INTEL},
    {MSR_U_CET, MSR_INTERRUPT_SSP_TABLE, switched_read_msr, switched_write_msr, VENDOR_ANY},
    {MSR_TSC_DEADLINE, MSR_TSC_DEADLINE, lapic_read_msr, lapic_write_msr, VENDOR_ANY,
     F_TSC_DEADLINE},
    {MSR_PKRS, MSR_PKRS, switched_read_msr, switched_write_msr, VENDOR_ANY},
    {MSR_X2APIC_FIRST, MSR_X2APIC_LAST, lapic_read_msr, lapic_write_msr, VENDOR_ANY, F_X2APIC},
    {MSR_XSS, MSR_XSS, switched_read_msr, switched_write_msr, VENDOR_ANY},
    {0x4b564d00, 0x4b564d04, paravirt_read_msr, paravirt_write_msr, VENDOR_ANY},
    {MSR_EFER, MSR_EFER, read_efer, write_efer, VENDOR_ANY},
    {MSR_STAR, MSR_STAR, read_state, write_state, VENDOR_ANY, F_SYSCALL},
    {MSR_LSTAR, MSR_CSTAR, read_state, write_address, VENDOR_ANY, F_SYSCALL},
    {MSR_SFMASK, MSR_SFMASK, read_state, write_low32, VENDOR_ANY, F_SYSCALL},
    {MSR_FS_BASE, MSR_KERNEL_GS_BASE, read_state, write_address, VENDOR_ANY},
    {MSR_TSC_AUX, MSR_TSC_AUX, read_tsc_aux, write_tsc_aux, VENDOR_ANY},
    // PerfEvtSel0-3, PerfCtr0-3: count nothing
    {0xc0010000, 0xc0010007, read_zero, write_ignored, VENDOR_AMD},
    {MSR_SYSCFG, MSR_SYSCFG, read_kept, write_kept, VENDOR_AMD, 0, BITS(22, 18), 0},
    {MSR_HWCR, MSR_HWCR, read_kept, write_kept, VENDOR_AMD, 0, HWCR_BITS, BIT(24)},
    // IORRBase0, IORRMask0, and the next pair
    {0xc0010016, 0xc0010016, read_kept, write_physical, VENDOR_AMD, 0, PHYSICAL | BITS(4, 3)},
    {0xc0010017, 0xc0010017, read_kept, write_physical, VENDOR_AMD, 0, PHYSICAL | BIT(11)},
    {0xc0010018, 0xc0010018, read_kept, write_physical, VENDOR_AMD, 0, PHYSICAL | BITS(4, 3)},
    {0xc0010019, 0xc0010019, read_kept, write_physical, VENDOR_AMD, 0, PHYSICAL | BIT(11)},
    {MSR_TOP_MEM, MSR_TOP_MEM, read_kept, write_physical, VENDOR_AMD, 0, BITS(51, 23)},
    {MSR_TOP_MEM2, MSR_TOP_MEM2, read_kept, write_physical, VENDOR_AMD, 0, BITS(51, 23)},
    {0xc001001f, 0xc0010020, read_zero, write_ignored, VENDOR_AMD}, // NB_CFG, PATCH_LOADER
    {0xc0010055, 0xc0010055, read_zero, NULL, VENDOR_AMD},          // interrupt-pending message
    {0xc0010058, 0xc0010058, read_zero, write_zero, VENDOR_AMD},    // MMIO configuration base
    {0xc0010061, 0xc001006b, read_zero, NULL, VENDOR_AMD},       // P-states: none, at none of them
    {0xc0010112, 0xc0010113, read_zero, write_zero, VENDOR_AMD}, // SMM_ADDR, SMM_MASK
    {0xc0011020, 0xc0011023, read_zero, write_ignored, VENDOR_AMD}, // LS_CFG .. BU_CFG
    {MSR_DE_CFG, MSR_DE_CFG, read_kept, write_kept, VENDOR_AMD, 0, 0, DE_CFG_LFENCE_SERIALIZE},
    {0xc001102a, 0xc001102c, read_zero, write_ignored, VENDOR_AMD}, // BU_CFG2 .. EX_CFG
};

#pragma GCC diagnostic pop

_Static_assert(ARRAY_SIZE(rows) <= ROWS_MAX && ROWS_MAX < 255, "a row's number fits a byte");
static u8 kept_first[ARRAY_SIZE(rows)]; // of each row's, in vcpu_msrs.kept

static bool row_applies(const struct vm *vm, const struct msr_row *row)
{
    u16 f = row->feature;
    u32 v[4];

    cpuid_read(vm->vcpus[0], 0, 0, v); // "AuthenticAMD", "HygonGenuine"
    if (row->vendor && (row->vendor == VENDOR_AMD) != (v[2] == 0x444d4163 || v[2] == 0x656e6975))
        return false;
    return !f || cpuid_has(vm, (f & 0x8000u) << 16 | (f >> 7 & 0x3f), f >> 5 & 3, f & 31);
}

static const struct msr_row *search_row(const struct vcpu *vcpu, u32 msr)
{
    unsigned low = 0, high = ARRAY_SIZE(rows);

    while (low < high) {
        unsigned mid = (low + high) / 2;

        if (msr > rows[mid].last)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == ARRAY_SIZE(rows) || msr < rows[low].first || !vcpu->msrs->has[low])
        return NULL;
    return &rows[low];
}

static inline const struct msr_row *find_row(const struct vcpu *vcpu, u32 msr)
{
    u8 row;

    if (unlikely(msr >= DIRECT_MSRS))
        return search_row(vcpu, msr);
    row = vcpu->msrs->direct[msr];
    return likely(row) ? &rows[row - 1] : NULL;
}

static u64 *kept(struct vcpu *vcpu, u32 msr)
{
    const struct msr_row *row = find_row(vcpu, msr);

    return row ? &vcpu->msrs->kept[kept_first[row - rows] + msr - row->first] : NULL;
}

static int write_kept(struct vcpu *vcpu, u32 msr, u64 value)
{
    const struct msr_row *row = find_row(vcpu, msr);
    u64 *slot = kept(vcpu, msr);

    if (value & ~(row->writable | row->reset))
        return -E_FAULT;
    *slot = (value & row->writable) | (*slot & ~row->writable);
    return 0;
}

bool msr_misc_enabled(struct vcpu *vcpu, u64 bits)
{
    const u64 *value = vcpu->msrs->misc_enable;

    return value && *value & bits;
}

int msr_create(struct vcpu *vcpu)
{
    u32 used = 0;

    vcpu->msrs = heap_alloc(sizeof(*vcpu->msrs));
    if (!vcpu->msrs)
        return -E_NOMEM;
    for (u32 i = 0; i < ARRAY_SIZE(rows); i++) {
        kept_first[i] = (u8)used; // the same for each vCPU
        used += rows[i].read == read_kept ? rows[i].last - rows[i].first + 1 : 1;
        ASSERT(used <= KEPT_MAX);
        vcpu->msrs->has[i] = row_applies(vcpu->vm, &rows[i]);
        for (u32 msr = rows[i].first; msr <= rows[i].last && msr < DIRECT_MSRS; msr++)
            if (vcpu->msrs->has[i])
                vcpu->msrs->direct[msr] = (u8)(i + 1);
    }
    vcpu->msrs->misc_enable = kept(vcpu, MSR_MISC_ENABLE);
    return 0;
}

static void reset_kept(struct vcpu *vcpu, u32 msr, u64 value)
{
    u64 *slot = kept(vcpu, msr);

    if (slot)
        *slot = value;
}

void msr_reset(struct vcpu *vcpu, bool init)
{
    u64 size = vcpu->vm->ram_size, low = MIN(size, VM_LOW_RAM_LIMIT);
    u8 phys_bits = cpuid_phys_bits(vcpu->vm);

    if (init)
        return;
    vcpu->tsc_offset_base = 0;
    vcpu->msrs->ucode_cpuids = 0;
    for (u32 i = 0; i < ARRAY_SIZE(rows); i++)
        for (u32 n = 0; rows[i].read == read_kept && n <= rows[i].last - rows[i].first; n++)
            vcpu->msrs->kept[kept_first[i] + n] = rows[i].reset;
    reset_kept(vcpu, MSR_MTRR_PHYSBASE0, VM_LOW_RAM_LIMIT | MEM_UC);
    reset_kept(vcpu, MSR_MTRR_PHYSBASE0 + 1, BITS(phys_bits - 1, 30) | BIT(11));
    reset_kept(vcpu, MSR_TOP_MEM, low & BITS(51, 23));
    if (size == low)
        return;
    reset_kept(vcpu, MSR_TOP_MEM2, (VM_HIGH_RAM_BASE + size - low) & BITS(51, 23));
    // MtrrTom2En, Tom2ForceMemTypeWB
    reset_kept(vcpu, MSR_SYSCFG, BIT(21) | BIT(22));
}

static void report_unknown(struct vcpu *vcpu, u32 msr, bool write, u64 value)
{
    bool known = false;

    spin_lock(&report_lock);
    for (u32 i = 0; i < reported_count; i++)
        known |= reported[i] == msr;
    if (!known && reported_count < REPORT_MAX)
        reported[reported_count++] = msr;
    else
        known = true;
    spin_unlock(&report_lock);
    if (!known)
        log_info("guest %s: %s of unknown MSR %#x (%#llx): #GP", vcpu->vm->config->name,
                 write ? "write" : "read", msr, (unsigned long long)value);
}

int msr_read_guest(struct vcpu *vcpu, u32 msr, u64 *value)
{
    const struct msr_row *row;
    int err = unlikely(vcpu->nested != NULL) ? nested_read_msr(vcpu, msr, value) : -E_NOENT;

    if (err != -E_NOENT)
        return err;
    row = find_row(vcpu, msr);
    if (row)
        return row->read(vcpu, msr, value);
    report_unknown(vcpu, msr, false, 0);
    return -E_FAULT;
}

int msr_write_guest(struct vcpu *vcpu, u32 msr, u64 value)
{
    const struct msr_row *row;
    int err = unlikely(vcpu->nested != NULL) ? nested_write_msr(vcpu, msr, value) : -E_NOENT;

    if (err != -E_NOENT)
        return err;
    row = find_row(vcpu, msr);
    if (row && row->write)
        return row->write(vcpu, msr, value);
    if (!row)
        report_unknown(vcpu, msr, true, value);
    return -E_FAULT;
}
