// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The CPUID policy: a table says what of the CPU's leaves a guest sees; each VM's leaves are worked
// out once, so that a CPUID exit is a look-up (executing CPUID would itself be an exit where Nestor
// runs nested). SDM vol. 2 "CPUID", APM vol. 3 appendix E.

#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/cpu.h>
#include <nestor/device.h>
#include <nestor/log.h>
#include <nestor/nested.h>
#include <nestor/page.h>
#include <nestor/run.h>
#include <nestor/string.h>
#include <nestor/time.h>

enum reg { EAX, EBX, ECX, EDX };
enum { BASIC_MAX = 0xd, EXTENDED_MAX = 0x22, XSAVE_MAX = 64, HYPERVISOR_LEAF = 0x40000000 };

struct cpuid_table {
    u32 basic[BASIC_MAX + 1][4];
    u32 extended[EXTENDED_MAX + 1][4];
    u32 seven_1[4];
    u32 cache[8][4]; // leaf 4 / 8000001Dh by subleaf
    u32 xsave[XSAVE_MAX][4];
    u32 max_basic, max_extended;
    bool amd;
    u32 vcpus;
    u64 features_xcr0;
    u8 phys_bits;
};

// --- the policy ---

// Bits passed on when the CPU has them: those whose state Nestor handles wholly. `force`: supplied
// whatever the CPU has.
struct policy {
    u32 leaf, subleaf;
    u8 reg;
    u32 pass, force;
};

#define B(n) (1u << (n))

static const struct policy policies[] = {
    // SSE3 PCLMUL SSSE3 FMA CX16 PCID SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND; x2APIC,
    // TSC-deadline, hypervisor by Nestor
    {1, 0, ECX,
     B(0) | B(1) | B(9) | B(12) | B(13) | B(17) | B(19) | B(20) | B(22) | B(23) | B(25) | B(26) |
         B(28) | B(29) | B(30),
     B(21) | B(24) | B(31)},
    // all but PSN, DS, ACPI, SS, HTT (by count), TM, PBE
    {1, 0, EDX,
     B(0) | B(1) | B(2) | B(3) | B(4) | B(5) | B(6) | B(7) | B(8) | B(9) | B(11) | B(12) | B(13) |
         B(14) | B(15) | B(16) | B(17) | B(19) | B(23) | B(24) | B(25) | B(26),
     B(9)},
    // FSGSBASE TSC_ADJUST BMI1 AVX2 FDP SMEP BMI2 ERMS INVPCID NOFPUCSDS AVX512F DQ RDSEED ADX SMAP
    // IFMA CLFLUSHOPT CLWB AVX512.. SHA BW VL
    {7, 0, EBX,
     B(0) | B(3) | B(5) | B(6) | B(7) | B(8) | B(9) | B(10) | B(13) | B(16) | B(17) | B(18) |
         B(19) | B(20) | B(21) | B(23) | B(24) | B(26) | B(27) | B(28) | B(29) | B(30) | B(31),
     B(1)},
    // AVX512_VBMI UMIP PKU WAITPKG VBMI2 CET_SS GFNI VAES VPCLMULQDQ VNNI BITALG VPOPCNTDQ LA57
    // RDPID CLDEMOTE MOVDIRI MOVDIR64B PKS. OSPKE is the guest's CR4's.
    {7, 0, ECX,
     B(1) | B(2) | B(3) | B(5) | B(6) | B(7) | B(8) | B(9) | B(10) | B(11) | B(12) | B(14) | B(16) |
         B(22) | B(25) | B(27) | B(28) | B(31),
     0},
    // AVX512_4VNNIW 4FMAPS FSRM VP2INTERSECT SERIALIZE CET_IBT AVX512_FP16
    {7, 0, EDX, B(2) | B(3) | B(4) | B(8) | B(14) | B(20) | B(23), 0},
    // SHA512 SM3 SM4 AVX-VNNI AVX512_BF16 CMPCCXADD FZLRM FSRS FSRCS AVX-IFMA
    {7, 1, EAX, B(0) | B(1) | B(2) | B(4) | B(5) | B(7) | B(10) | B(11) | B(12) | B(23), 0},
    {7, 1, EBX, 0, 0},
    {7, 1, ECX, 0, 0},
    // AVX-VNNI-INT8 NE-CONVERT VNNI-INT16 PREFETCHI. Not CET_SSS: an exit in the middle of a
    // supervisor shadow-stack switch leaves its token busy.
    {7, 1, EDX, B(4) | B(5) | B(10) | B(14), 0},
    {0xd, 0, EAX, 0x2e7, 0}, // x87 SSE AVX AVX-512 PKRU
    {0xd, 0, EDX, 0, 0},
    {0xd, 1, EAX, 0xf, 0},           // XSAVEOPT XSAVEC XGETBV1 XSAVES
    {0xd, 1, ECX, B(11) | B(12), 0}, // CET_U CET_S
    {0xd, 1, EDX, 0, 0},
    // LAHF CMPLEGACY(by count) CR8LEGACY ABM SSE4A MISALIGNSSE PREFETCHW XOP FMA4 TBM
    {0x80000001, 0, ECX, B(0) | B(4) | B(5) | B(6) | B(7) | B(8) | B(11) | B(16) | B(21), 0},
    // as leaf 1, with SYSCALL NX MMXEXT FXSR FFXSR 1G RDTSCP LM 3DNOW
    {0x80000001, 0, EDX,
     B(0) | B(1) | B(2) | B(3) | B(4) | B(5) | B(6) | B(7) | B(8) | B(9) | B(11) | B(12) | B(13) |
         B(14) | B(15) | B(16) | B(17) | B(20) | B(22) | B(23) | B(24) | B(25) | B(26) | B(27) |
         B(29) | B(30) | B(31),
     B(9)},
    {0x80000007, 0, EBX, 0, 0},                  // no RAS: ScalableMca's MSRs are not there
    {0x80000007, 0, EDX, B(8), 0},               // invariant TSC
    {0x80000008, 0, EBX, B(0) | B(2) | B(9), 0}, // CLZERO, RstrFpErrPtrs, WBNOINVD; no RDPRU
};

// What goes with a component of XCR0, or with a feature of the leaves above.
static const struct {
    u64 xcr0;
    u32 leaf, subleaf;
    u8 reg;
    u32 bits;
} of_component[] = {
    {XCR0_AVX, 1, 0, ECX, B(12) | B(28) | B(29)},
    {XCR0_AVX, 7, 0, EBX, B(5)},
    {XCR0_AVX, 7, 0, ECX, B(9) | B(10)},
    {XCR0_AVX, 7, 1, EAX, B(0) | B(1) | B(2) | B(4) | B(23)},
    {XCR0_AVX, 7, 1, EDX, B(4) | B(5) | B(10)},
    {XCR0_AVX, 0x80000001, 0, ECX, B(11) | B(16)},
    {XCR0_AVX512, 7, 0, EBX, B(16) | B(17) | B(21) | B(26) | B(27) | B(28) | B(30) | B(31)},
    {XCR0_AVX512, 7, 0, ECX, B(1) | B(6) | B(11) | B(12) | B(14)},
    {XCR0_AVX512, 7, 0, EDX, B(2) | B(3) | B(8) | B(23)},
    {XCR0_AVX512, 7, 1, EAX, B(5)},
};

// The bits of what a back end may lack or switch off.
static const struct {
    u32 isa; // enum guest_isa
    u32 leaf, subleaf;
    u8 reg;
    u32 bits;
} of_isa[] = {
    {ISA_RDTSCP, 0x80000001, 0, EDX, B(27)},
    {ISA_RDTSCP, 7, 0, ECX, B(22)}, // and RDPID
    {ISA_INVPCID, 7, 0, EBX, B(10)},
    {ISA_XSAVES, 0xd, 1, EAX, B(3)},
    {ISA_USER_WAIT, 7, 0, ECX, B(5)},
    {ISA_CET, 7, 0, ECX, B(7)},
    {ISA_CET, 7, 0, EDX, B(20)},
    {ISA_CET, 0xd, 1, ECX, B(11) | B(12)},
};

// Leaves that go on as the CPU has them (registers that a policy names are masked besides).
static const u32 passed_leaves[] = {0,          1,          2,          7,          0xd,
                                    0x80000000, 0x80000001, 0x80000002, 0x80000003, 0x80000004,
                                    0x80000005, 0x80000006, 0x80000007, 0x80000008, 0x8000000a};

static u32 *leaf_regs(struct cpuid_table *t, u32 leaf, u32 subleaf)
{
    if (subleaf)
        return leaf == 7 ? t->seven_1 : t->xsave[subleaf];
    if (leaf <= BASIC_MAX)
        return t->basic[leaf];
    if (leaf - 0x80000000u <= EXTENDED_MAX)
        return t->extended[leaf - 0x80000000u];
    return NULL;
}

static void read_host(u32 leaf, u32 subleaf, u32 out[4])
{
    struct cpuid_regs r = cpuid(leaf, subleaf);

    memcpy(out, &r, sizeof(r));
}

static void pass_leaves(struct cpuid_table *t)
{
    u32 host_basic = cpuid(0, 0).eax, host_extended = cpuid(0x80000000, 0).eax;

    for (unsigned i = 0; i < ARRAY_SIZE(passed_leaves); i++) {
        u32 leaf = passed_leaves[i];

        if (leaf <= (leaf >> 31 ? host_extended : host_basic))
            read_host(leaf, 0, leaf_regs(t, leaf, 0));
    }
    if (backend->supplies_umip)
        t->basic[7][ECX] |= B(2);
    if (t->basic[7][EAX])
        read_host(7, 1, t->seven_1);
    if (t->basic[1][ECX] & B(26))
        read_host(0xd, 1, t->xsave[1]);
    t->max_basic = MIN(MAX(host_basic, 0xdu), (u32)BASIC_MAX);
    t->max_extended = MIN(host_extended, 0x80000000u + EXTENDED_MAX);
    t->basic[0][EAX] = t->max_basic;
    t->extended[0][EAX] = t->max_extended;
}

static void apply_policies(struct cpuid_table *t, const struct vm_config *config)
{
    for (unsigned i = 0; i < ARRAY_SIZE(policies); i++) {
        const struct policy *p = &policies[i];
        u32 *reg = &leaf_regs(t, p->leaf, p->subleaf)[p->reg];

        *reg = (*reg & p->pass) | p->force;
        *reg &= ~config_hidden_bits(config, p->leaf, p->subleaf, p->reg);
    }
    memset(t->extended[0xa], 0, sizeof(t->extended[0xa])); // SVM: the front end's to say
}

static void mask_cores(struct cpuid_table *t)
{
    t->basic[1][EBX] &= 0xffff; // brand, CLFLUSH; APIC ID and count per vCPU
    t->extended[8][ECX] = t->amd ? t->vcpus - 1 : 0;
    t->extended[8][EDX] = 0;
    if (!(t->basic[7][ECX] & B(16))) // without LA57
        t->extended[8][EAX] =
            (t->extended[8][EAX] & ~0xff00u) | MIN(t->extended[8][EAX] & 0xff00, 48u << 8);
    if (t->vcpus > 1) {
        t->basic[1][EBX] |= MIN(t->vcpus, 255u) << 16;
        t->basic[1][EDX] |= B(28);
        if (t->amd)
            t->extended[1][ECX] |= B(1); // CmpLegacy: cores, not threads
    }
}

// Leaf 4: the CPU's caches, each private to one vCPU; cores in the package = vCPUs.
static void build_caches(struct cpuid_table *t)
{
    u32 leaf = t->amd ? 0x8000001d : 4;

    if (t->amd || cpuid(0, 0).eax < 4)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(t->cache); i++) {
        read_host(leaf, i, t->cache[i]);
        if (!(t->cache[i][EAX] & 0x1f))
            break;
        t->cache[i][EAX] = (t->cache[i][EAX] & 0x3fff) | (t->vcpus - 1) << 26;
    }
}

static u32 xsave_size(const struct cpuid_table *t, u64 xcr0, bool compacted)
{
    u32 size = 576;

    for (unsigned i = 2; i < XSAVE_MAX && xcr0 >> i; i++) {
        if (!(xcr0 & BIT(i)))
            continue;
        if (compacted)
            size = (t->xsave[i][ECX] & B(1) ? ALIGN_UP(size, 64u) : size) + t->xsave[i][EAX];
        else
            size = MAX(size, t->xsave[i][EAX] + t->xsave[i][EBX]);
    }
    return size;
}

// XSAVEC is offered only if the CPU's own sizes add up. Bochs 2.7 gives the standard size for the
// compacted format, and a guest that uses XSAVEC on it loses registers.
static bool compaction_consistent(const struct cpuid_table *t)
{
    u64 before = xgetbv(0);
    u32 size;

    xsetbv(0, t->features_xcr0);
    size = cpuid(0xd, 1).ebx;
    xsetbv(0, before);
    return size == xsave_size(t, t->features_xcr0, true);
}

// Of XCR0's components, those that have a place. Bochs 2.7 forgets the leaf of PKRU's: a guest that
// trusts the leaves makes its area too small.
static u64 placed_components(u64 xcr0)
{
    for (unsigned i = 2; i < 32; i++)
        if ((xcr0 & BIT(i)) && !cpuid(0xd, i).eax)
            xcr0 &= ~BIT(i);
    return xcr0;
}

static void build_xsave(struct cpuid_table *t)
{
    u64 components;

    if (!(t->basic[1][ECX] & B(26))) {
        memset(t->basic[0xd], 0, sizeof(t->basic[0xd]));
        memset(t->xsave[1], 0, sizeof(t->xsave[1]));
        return;
    }
    if (!(t->basic[7][ECX] & B(3)))
        t->basic[0xd][EAX] &= ~B(9);
    if (!(t->basic[7][ECX] & B(7))) // no PLn_SSP, so nobody switches what these would load there
        t->xsave[1][ECX] &= ~(B(11) | B(12));
    t->basic[0xd][EAX] = (u32)placed_components(t->basic[0xd][EAX]);
    t->features_xcr0 = t->basic[0xd][EAX];
    components = t->features_xcr0 | t->xsave[1][ECX];
    t->basic[0xd][ECX] = 576;
    for (unsigned i = 2; i < XSAVE_MAX; i++) {
        if (!(components & BIT(i)))
            continue;
        read_host(0xd, i, t->xsave[i]);
        if (t->features_xcr0 & BIT(i))
            t->basic[0xd][ECX] = MAX(t->basic[0xd][ECX], t->xsave[i][EAX] + t->xsave[i][EBX]);
    }
    if ((t->xsave[1][EAX] & (B(1) | B(3))) && !compaction_consistent(t)) {
        log_warn("CPUID.(EAX=0DH,ECX=1):EBX is not the sum of the sizes: XSAVEC is not offered");
        t->xsave[1][EAX] &= ~(B(1) | B(3));
    }
    if (!(t->xsave[1][EAX] & B(3)))
        t->xsave[1][ECX] = 0;
}

// Features that follow others, and what the back end cannot give to this guest: before the
// components are counted, and after.
static void settle_lacks(struct cpuid_table *t, u32 lacks)
{
    for (unsigned i = 0; i < ARRAY_SIZE(of_isa); i++)
        if (lacks & of_isa[i].isa)
            leaf_regs(t, of_isa[i].leaf, of_isa[i].subleaf)[of_isa[i].reg] &= ~of_isa[i].bits;
}

static void settle_components(struct cpuid_table *t)
{
    u32 intel_only = B(0) | B(5) | B(8); // of 80000001H:ECX

    for (unsigned i = 0; i < ARRAY_SIZE(of_component); i++)
        if ((t->features_xcr0 & of_component[i].xcr0) != of_component[i].xcr0)
            leaf_regs(t, of_component[i].leaf, of_component[i].subleaf)[of_component[i].reg] &=
                ~of_component[i].bits;
    t->extended[1][ECX] &= t->amd ? ~0u : intel_only;
    // Leaf 7 has a subleaf 1 only if something is left in it.
    t->basic[7][EAX] = t->seven_1[EAX] || t->seven_1[EDX];
}

// The instructions of which this guest's leaves know nothing.
static u32 disabled_isa(struct cpuid_table *t)
{
    u32 disabled = ISA_ALL;

    for (unsigned i = 0; i < ARRAY_SIZE(of_isa); i++)
        if (leaf_regs(t, of_isa[i].leaf, of_isa[i].subleaf)[of_isa[i].reg] & of_isa[i].bits)
            disabled &= ~of_isa[i].isa;
    return disabled;
}

int cpuid_create(struct vm *vm)
{
    struct cpuid_table *t = heap_alloc(sizeof(*t));

    if (!t)
        return -E_NOMEM;
    vm->cpuid = t;
    t->vcpus = vm->vcpu_count;
    pass_leaves(t);
    t->amd = t->basic[0][EDX] == 0x69746e65 ||
             t->basic[0][EDX] == 0x6e65476e; // "enti", "nGen": AuthenticAMD, HygonGenuine
    apply_policies(t, vm->config);
    mask_cores(t);
    build_caches(t);
    settle_lacks(t, backend->lacks | nested_lacks(vm));
    build_xsave(t);
    settle_components(t);
    vm->disabled_isa = disabled_isa(t);
    t->phys_bits = (u8)t->extended[8][EAX];
    if (nested_offered(vm))
        for (unsigned i = 0; i < ARRAY_SIZE(passed_leaves); i++)
            nested_cpuid(vm, passed_leaves[i], leaf_regs(t, passed_leaves[i], 0));
    return 0;
}

void cpuid_destroy(struct vm *vm)
{
    if (vm->cpuid)
        heap_free(vm->cpuid, sizeof(*vm->cpuid));
}

bool cpuid_has(const struct vm *vm, u32 leaf, unsigned reg, unsigned bit)
{
    return leaf_regs(vm->cpuid, leaf, 0)[reg] & B(bit);
}

u64 cpuid_xss(const struct vm *vm)
{
    return vm->cpuid->xsave[1][ECX];
}

bool cpuid_has_xsaves(const struct vm *vm)
{
    return vm->cpuid->xsave[1][EAX] & B(3);
}

u8 cpuid_phys_bits(const struct vm *vm)
{
    return vm->cpuid->phys_bits;
}

// --- what the guest reads ---

static void read_xsave(struct vcpu *vcpu, u32 subleaf, u32 out[4])
{
    const struct cpuid_table *t = vcpu->vm->cpuid;
    // The register, not vcpu->xcr0: QEMU's SVM (7.2) does not intercept XSETBV.
    u64 xcr0 = t->features_xcr0 ? xgetbv(0) : 0;

    if (subleaf == 0) {
        memcpy(out, t->basic[0xd], sizeof(t->basic[0]));
        out[EBX] = xsave_size(t, xcr0, false);
        return;
    }
    if (subleaf == 1 ||
        (subleaf < XSAVE_MAX && (t->features_xcr0 | t->xsave[1][ECX]) >> subleaf & 1))
        memcpy(out, t->xsave[subleaf], sizeof(t->xsave[0]));
    if (subleaf == 1)
        out[EBX] = xsave_size(t, xcr0 | vcpu->xss, true);
}

// One thread a core, one package (SDM vol. 2 leaf 0Bh).
static void read_topology(struct vcpu *vcpu, u32 subleaf, u32 out[4])
{
    u32 vcpus = vcpu->vm->cpuid->vcpus;

    out[ECX] = subleaf & 0xff;
    out[EDX] = vcpu->id;
    if (subleaf > 1)
        return;
    out[EAX] = subleaf && vcpus > 1 ? 32 - (u32)__builtin_clz(vcpus - 1) : 0;
    out[EBX] = subleaf ? vcpus : 1;
    out[ECX] |= (subleaf + 1) << 8;
}

static void read_dynamic(struct vcpu *vcpu, u32 leaf, u32 subleaf, u32 out[4])
{
    switch (leaf) {
    case 1:
        out[EBX] |= vcpu->id << 24;
        if (cr_read_guest(vcpu, 4) & CR4_OSXSAVE)
            out[ECX] |= B(27);
        if (!lapic_enabled(vcpu))
            out[EDX] &= ~B(9);
        break;
    case 4:
        if (subleaf < ARRAY_SIZE(vcpu->vm->cpuid->cache))
            memcpy(out, vcpu->vm->cpuid->cache[subleaf], 16);
        break;
    case 7:
        if (subleaf == 1)
            memcpy(out, vcpu->vm->cpuid->seven_1, 16);
        else if (subleaf)
            memset(out, 0, 16);
        else if ((out[ECX] & B(3)) && (cr_read_guest(vcpu, 4) & CR4_PKE))
            out[ECX] |= B(4); // OSPKE
        break;
    case 0xb:
        read_topology(vcpu, subleaf, out);
        break;
    case 0xd:
        memset(out, 0, 16);
        read_xsave(vcpu, subleaf, out);
        break;
    default:
        break;
    }
}

static void read_extended(struct vcpu *vcpu, u32 leaf, u32 out[4])
{
    memcpy(out, vcpu->vm->cpuid->extended[leaf - 0x80000000u], 16);
    if (leaf == 0x80000001 && msr_misc_enabled(vcpu, MISC_XD))
        out[EDX] &= ~B(20);
}

void cpuid_read(struct vcpu *vcpu, u32 leaf, u32 subleaf, u32 out[4])
{
    const struct cpuid_table *t = vcpu->vm->cpuid;

    if (likely(leaf <= t->max_basic)) {
        memcpy(out, t->basic[leaf], sizeof(t->basic[0]));
        if (leaf)
            read_dynamic(vcpu, leaf, subleaf, out);
        else if (msr_misc_enabled(vcpu, MISC_CPUID_LIMIT)) // for systems that know no others
            out[EAX] = 2;
        return;
    }
    memset(out, 0, sizeof(t->basic[0]));
    if (leaf - 0x80000000u <= t->max_extended - 0x80000000u)
        read_extended(vcpu, leaf, out);
    else if (leaf - HYPERVISOR_LEAF < 0x200 && (t->basic[1][ECX] & B(31)))
        paravirt_cpuid(vcpu->vm, leaf, out);
    else if (!t->amd) // Intel: above the last leaf stands the last basic one's data
        memcpy(out, t->basic[t->max_basic], sizeof(t->basic[0]));
}

bool xcr0_refused(struct vcpu *vcpu, u64 value)
{
    u64 avx512 = XCR0_AVX512;

    if (!(value & XCR0_X87) || (value & ~vcpu->vm->cpuid->features_xcr0))
        return true;
    if ((value & XCR0_AVX) && !(value & XCR0_SSE))
        return true;
    return (value & avx512) && ((value & avx512) != avx512 || !(value & XCR0_AVX));
}
