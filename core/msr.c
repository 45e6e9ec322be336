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

enum { MTRR_VARIABLE = 8, MC_BANKS = 1, REPORT_MAX = 32 };

#define MISC_ENABLE_DEFAULT (BIT(0) | BIT(11) | BIT(12))       // fast strings; no BTS, no PEBS
#define MCG_CAP_VALUE       (MC_BANKS | BIT(8))                // MCG_CTL present
#define MTRRCAP_VALUE       (MTRR_VARIABLE | BIT(8) | BIT(10)) // fixed ranges, write-combining

struct vcpu_msrs {
    u64 mtrr_def_type;
    u64 mtrr_fixed[11];
    u64 mtrr_variable[MTRR_VARIABLE * 2];
    u64 misc_enable;
    u64 mcg_status, mcg_ctl;
    u64 mc_bank[MC_BANKS * 4];
    u64 hwcr, de_cfg, misc_features;
};

static struct spinlock report_lock;
static u32 reported[REPORT_MAX];
static u32 reported_count;

void msr_destroy(struct vcpu *vcpu)
{
    if (vcpu->msrs)
        heap_free(vcpu->msrs, sizeof(*vcpu->msrs));
}

void msr_reset(struct vcpu *vcpu, bool init)
{
    struct vcpu_msrs *m = vcpu->msrs;

    if (init)
        return;
    memset(m, 0, sizeof(*m));
    vcpu->tsc_offset_base = 0;
    m->misc_enable = MISC_ENABLE_DEFAULT;
    // As firmware leaves them: everything write-back but the hole below 4 GiB and the VGA range.
    m->mtrr_def_type = BIT(11) | BIT(10) | MEM_WB;
    for (unsigned i = 0; i < ARRAY_SIZE(m->mtrr_fixed); i++)
        m->mtrr_fixed[i] = i == 2 ? 0 : 0x0606060606060606ull; // [2]: A0000-BFFFF
    m->mtrr_variable[0] = VM_LOW_RAM_LIMIT | MEM_UC;
    m->mtrr_variable[1] = (BITS(cpuid_phys_bits(vcpu->vm) - 1, 30)) | BIT(11);
    m->hwcr = BIT(24); // TSC counts at the frequency of P0
}

static bool canonical(struct vcpu *vcpu, u64 value)
{
    unsigned bits = cr_read_guest(vcpu, 4) & CR4_LA57 ? 57 : 48;

    return (u64)((s64)(value << (64 - bits)) >> (64 - bits)) == value;
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

static int write_debugctl(struct vcpu *vcpu, u32 msr, u64 value)
{
    u64 unused;
    // BTF where the CPU has it and the back end switches it (SVM without LBR virtualization does
    // not). No test machine has any of the MSR's functions: last-branch records are not offered.
    bool btf = backend == &vmx_backend && !msr_read_safe(MSR_DEBUGCTL, &unused);

    return value & ~(btf ? DEBUGCTL_BTF : 0ull) ? -E_FAULT : write_state(vcpu, msr, value);
}

static int read_efer(struct vcpu *vcpu, u32 msr, u64 *value)
{
    (void)msr;
    *value = vcpu_state(vcpu, GROUP_EFER_PAT)->efer;
    return 0;
}

static int write_efer(struct vcpu *vcpu, u32 msr, u64 value)
{
    struct guest_state *s = vcpu_state(vcpu, GROUP_EFER_PAT | GROUP_CR);
    u64 allowed = nested_efer_bits(vcpu) | EFER_LMA;

    (void)msr;
    allowed |= cpuid_has(vcpu->vm, 0x80000001, 3, 11) ? EFER_SCE : 0;
    allowed |= cpuid_has(vcpu->vm, 0x80000001, 3, 20) ? EFER_NX : 0;
    allowed |= cpuid_has(vcpu->vm, 0x80000001, 3, 25) ? EFER_FFXSR : 0;
    allowed |= cpuid_has(vcpu->vm, 0x80000001, 3, 29) ? EFER_LME : 0;
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
    *value = vcpu_guest_tsc(vcpu, tsc_now());
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
        vcpu->ctx[1].ctl.tsc_offset += by;
        vcpu->ctx[1].ctl_dirty |= CTL_TSC;
    }
    lapic_tsc_changed(vcpu);
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
    return cpuid_has(vcpu->vm, 7, 1, 1) ? 0 : -E_FAULT;
}

static int write_tsc_adjust(struct vcpu *vcpu, u32 msr, u64 value)
{
    (void)msr;
    if (!cpuid_has(vcpu->vm, 7, 1, 1))
        return -E_FAULT;
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
    vcpu->tsc_aux = value; // the back end loads it before the next entry
    return 0;
}

// --- MTRRs: remembered; guest memory is write-back whatever they say, as stage 2 has it ---

static u64 *mtrr_slot(struct vcpu_msrs *m, u32 msr)
{
    if (msr == MSR_MTRR_DEF_TYPE)
        return &m->mtrr_def_type;
    if (msr == MSR_MTRR_FIX64K)
        return &m->mtrr_fixed[0];
    if (msr == MSR_MTRR_FIX16K_80000 || msr == MSR_MTRR_FIX16K_A0000)
        return &m->mtrr_fixed[1 + msr - MSR_MTRR_FIX16K_80000];
    if (msr - MSR_MTRR_FIX4K_C0000 < 8)
        return &m->mtrr_fixed[3 + msr - MSR_MTRR_FIX4K_C0000];
    return &m->mtrr_variable[msr - MSR_MTRR_PHYSBASE0];
}

static int read_mtrr(struct vcpu *vcpu, u32 msr, u64 *value)
{
    *value = *mtrr_slot(vcpu->msrs, msr);
    return 0;
}

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
    *mtrr_slot(vcpu->msrs, msr) = value;
    return 0;
}

static int read_mtrrcap(struct vcpu *vcpu, u32 msr, u64 *value)
{
    (void)vcpu, (void)msr;
    *value = MTRRCAP_VALUE;
    return 0;
}

// --- machine check: one bank where nothing ever happens ---

static int read_mcg(struct vcpu *vcpu, u32 msr, u64 *value)
{
    *value = msr == MSR_MCG_CAP      ? MCG_CAP_VALUE
             : msr == MSR_MCG_STATUS ? vcpu->msrs->mcg_status
                                     : vcpu->msrs->mcg_ctl;
    return 0;
}

static int write_mcg(struct vcpu *vcpu, u32 msr, u64 value)
{
    if (msr == MSR_MCG_STATUS) {
        if (value & ~(u64)7)
            return -E_FAULT;
        vcpu->msrs->mcg_status = value;
        return 0;
    }
    if (value && ~value)
        return -E_FAULT; // all zeros or all ones
    vcpu->msrs->mcg_ctl = value;
    return 0;
}

static int read_bank(struct vcpu *vcpu, u32 msr, u64 *value)
{
    *value = vcpu->msrs->mc_bank[msr - MSR_MC0_CTL];
    return 0;
}

static int write_bank(struct vcpu *vcpu, u32 msr, u64 value)
{
    if ((msr & 3) == 0 ? (value && ~value) : value)
        return -E_FAULT; // CTL: all zeros or all ones; STATUS, ADDR, MISC: only 0
    vcpu->msrs->mc_bank[msr - MSR_MC0_CTL] = value;
    return 0;
}

// --- the rest ---

static u64 *kept_slot(struct vcpu_msrs *m, u32 msr)
{
    switch (msr) {
    case MSR_MISC_ENABLE:
        return &m->misc_enable;
    case MSR_HWCR:
        return &m->hwcr;
    case MSR_DE_CFG:
        return &m->de_cfg;
    default:
        return &m->misc_features;
    }
}

static int read_kept(struct vcpu *vcpu, u32 msr, u64 *value)
{
    *value = *kept_slot(vcpu->msrs, msr);
    return 0;
}

static int write_kept(struct vcpu *vcpu, u32 msr, u64 value)
{
    *kept_slot(vcpu->msrs, msr) = value;
    return 0;
}

static int read_zero(struct vcpu *vcpu, u32 msr, u64 *value)
{
    (void)vcpu, (void)msr;
    *value = 0;
    return 0;
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

struct msr_row {
    u32 first, last;
    int (*read)(struct vcpu *vcpu, u32 msr, u64 *value);
    int (*write)(struct vcpu *vcpu, u32 msr, u64 value); // NULL: #GP
    u8 vendor;
};

enum { VENDOR_ANY, VENDOR_INTEL, VENDOR_AMD };

static const struct msr_row rows[] = {
    {0x0, 0x1, read_zero, write_ignored, VENDOR_ANY}, // P5_MC_ADDR, P5_MC_TYPE
    {MSR_TSC, MSR_TSC, read_tsc, write_tsc, VENDOR_ANY},
    {MSR_PLATFORM_ID, MSR_PLATFORM_ID, read_zero, NULL, VENDOR_INTEL},
    {MSR_APIC_BASE, MSR_APIC_BASE, lapic_read_msr, lapic_write_msr, VENDOR_ANY},
    {MSR_TSC_ADJUST, MSR_TSC_ADJUST, read_tsc_adjust, write_tsc_adjust, VENDOR_ANY},
    {0x79, 0x79, read_zero, write_ignored, VENDOR_INTEL}, // BIOS_UPDT_TRIG
    {MSR_UCODE_REV, MSR_UCODE_REV, read_ucode, write_ignored, VENDOR_ANY},
    {0xce, 0xce, read_zero, NULL, VENDOR_INTEL}, // PLATFORM_INFO
    {MSR_UMWAIT_CONTROL, MSR_UMWAIT_CONTROL, switched_read_msr, switched_write_msr, VENDOR_INTEL},
    {MSR_MTRRCAP, MSR_MTRRCAP, read_mtrrcap, NULL, VENDOR_ANY},
    {MSR_MISC_FEATURES_ENABLES, MSR_MISC_FEATURES_ENABLES, read_zero, write_zero, VENDOR_INTEL},
    {MSR_SYSENTER_CS, MSR_SYSENTER_CS, read_state, write_low32, VENDOR_ANY},
    {MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, read_state, write_address, VENDOR_ANY},
    {MSR_MCG_CAP, MSR_MCG_CAP, read_mcg, NULL, VENDOR_ANY},
    {MSR_MCG_STATUS, MSR_MCG_CTL, read_mcg, write_mcg, VENDOR_ANY},
    {MSR_MISC_ENABLE, MSR_MISC_ENABLE, read_kept, write_kept, VENDOR_INTEL},
    {MSR_DEBUGCTL, MSR_DEBUGCTL, read_state, write_debugctl, VENDOR_ANY},
    {MSR_MTRR_PHYSBASE0, MSR_MTRR_PHYSBASE0 + MTRR_VARIABLE * 2 - 1, read_mtrr, write_mtrr,
     VENDOR_ANY},
    {MSR_MTRR_FIX64K, MSR_MTRR_FIX64K, read_mtrr, write_mtrr, VENDOR_ANY},
    {MSR_MTRR_FIX16K_80000, MSR_MTRR_FIX16K_A0000, read_mtrr, write_mtrr, VENDOR_ANY},
    {MSR_MTRR_FIX4K_C0000, MSR_MTRR_FIX4K_C0000 + 7, read_mtrr, write_mtrr, VENDOR_ANY},
    {MSR_PAT, MSR_PAT, read_state, write_pat, VENDOR_ANY},
    {MSR_MTRR_DEF_TYPE, MSR_MTRR_DEF_TYPE, read_mtrr, write_mtrr, VENDOR_ANY},
    {MSR_MC0_CTL, MSR_MC0_CTL + MC_BANKS * 4 - 1, read_bank, write_bank, VENDOR_ANY},
    {MSR_U_CET, MSR_INTERRUPT_SSP_TABLE, switched_read_msr, switched_write_msr, VENDOR_ANY},
    {MSR_TSC_DEADLINE, MSR_TSC_DEADLINE, lapic_read_msr, lapic_write_msr, VENDOR_ANY},
    {MSR_PKRS, MSR_PKRS, switched_read_msr, switched_write_msr, VENDOR_ANY},
    {MSR_X2APIC_FIRST, MSR_X2APIC_LAST, lapic_read_msr, lapic_write_msr, VENDOR_ANY},
    {MSR_XSS, MSR_XSS, switched_read_msr, switched_write_msr, VENDOR_ANY},
    {MSR_EFER, MSR_EFER, read_efer, write_efer, VENDOR_ANY},
    {MSR_STAR, MSR_STAR, read_state, write_state, VENDOR_ANY},
    {MSR_LSTAR, MSR_CSTAR, read_state, write_address, VENDOR_ANY},
    {MSR_SFMASK, MSR_SFMASK, read_state, write_low32, VENDOR_ANY},
    {MSR_FS_BASE, MSR_KERNEL_GS_BASE, read_state, write_address, VENDOR_ANY},
    {MSR_TSC_AUX, MSR_TSC_AUX, read_tsc_aux, write_tsc_aux, VENDOR_ANY},
    {0xc0010000, 0xc0010007, read_zero, write_ignored,
     VENDOR_AMD}, // PerfEvtSel0-3, PerfCtr0-3: count nothing
    {MSR_SYSCFG, MSR_SYSCFG, read_zero, write_ignored, VENDOR_AMD},
    {MSR_HWCR, MSR_HWCR, read_kept, write_kept, VENDOR_AMD},
    {0xc001001a, 0xc001001a, read_zero, write_ignored, VENDOR_AMD}, // TOP_MEM
    {0xc001001d, 0xc001001d, read_zero, write_ignored, VENDOR_AMD}, // TOP_MEM2
    {0xc001001f, 0xc001001f, read_zero, write_ignored, VENDOR_AMD}, // NB_CFG
    {0xc0010055, 0xc0010055, read_zero, NULL, VENDOR_AMD},          // interrupt-pending message
    {0xc0010058, 0xc0010058, read_zero, NULL, VENDOR_AMD},          // MMIO configuration base
    {0xc0011020, 0xc0011023, read_zero, write_ignored, VENDOR_AMD}, // LS_CFG .. DC_CFG
    {MSR_DE_CFG, MSR_DE_CFG, read_kept, write_kept, VENDOR_AMD},
};

static bool row_applies(const struct msr_row *row)
{
    bool svm = backend == &svm_backend;

    return row->vendor == VENDOR_ANY || (row->vendor == VENDOR_AMD) == svm;
}

// Most MSRs that a guest uses often are low ones: their rows are found by their numbers.
enum { DIRECT_MSRS = MSR_X2APIC_LAST + 1 };
static u8 direct[DIRECT_MSRS]; // the row's number + 1, 0: there is none
_Static_assert(ARRAY_SIZE(rows) < 255, "a row's number fits a byte");

// The same for each vCPU that is created.
static void fill_direct(void)
{
    for (u32 i = 0; i < ARRAY_SIZE(rows); i++)
        for (u32 msr = rows[i].first; msr <= rows[i].last && msr < DIRECT_MSRS; msr++)
            if (row_applies(&rows[i]))
                direct[msr] = (u8)(i + 1);
}

int msr_create(struct vcpu *vcpu)
{
    fill_direct();
    vcpu->msrs = heap_alloc(sizeof(*vcpu->msrs));
    return vcpu->msrs ? 0 : -E_NOMEM;
}

static const struct msr_row *search_row(u32 msr)
{
    unsigned low = 0, high = ARRAY_SIZE(rows);

    while (low < high) {
        unsigned mid = (low + high) / 2;

        if (msr > rows[mid].last)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == ARRAY_SIZE(rows) || msr < rows[low].first || !row_applies(&rows[low]))
        return NULL;
    return &rows[low];
}

static inline const struct msr_row *find_row(u32 msr)
{
    if (unlikely(msr >= DIRECT_MSRS))
        return search_row(msr);
    return likely(direct[msr]) ? &rows[direct[msr] - 1] : NULL;
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
    row = find_row(msr);
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
    row = find_row(msr);
    if (row && row->write)
        return row->write(vcpu, msr, value);
    if (!row)
        report_unknown(vcpu, msr, true, value);
    return -E_FAULT;
}
