// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The hypervisor's CPUID leaves, and KVM's paravirtual interface for guests that look for it, as
// the Linux kernel documents it (Documentation/virt/kvm/x86: cpuid, msr, hypercalls): kvmclock,
// steal time, PV EOI and PV IPI, each of which a configuration may hide. KVM's leaves stand first,
// where its guests look; Nestor's own follow at the next base, or stand first where all of KVM's
// are hidden.
//
// What a guest names by an MSR is RAM, checked when it is written; RAM stays. A vCPU has its CPU
// for itself, so no time is ever stolen (the hint that would say so is not given: Linux polls
// before it halts then). The host's TSC is one clock for all CPUs, so kvmclock is stable: every
// vCPU's page tells the same line from the guest's start.

#include "paravirt.h"
#include "lapic.h"

#include <nestor/config.h>
#include <nestor/device.h>
#include <nestor/run.h>
#include <nestor/string.h>
#include <nestor/time.h>

enum reg { EAX, EBX, ECX, EDX };
enum { LEAF = 0x40000000, FEATURES_LEAF = LEAF + 1, TIMING = 0x10, NEXT_BASE = 0x100 };
enum {
    FEATURE_CLOCK_OLD = BIT(0), // MSRs 11H and 12H
    FEATURE_CLOCK = BIT(3),
    FEATURE_STEAL_TIME = BIT(5),
    FEATURE_PV_EOI = BIT(6),
    FEATURE_PV_IPI = BIT(11),
    FEATURE_CLOCK_STABLE = BIT(24),
    FEATURES_ALL = FEATURE_CLOCK_OLD | FEATURE_CLOCK | FEATURE_STEAL_TIME | FEATURE_PV_EOI |
                   FEATURE_PV_IPI | FEATURE_CLOCK_STABLE,
};
enum { ENABLED = BIT(0), CLOCK_STABLE = BIT(0), STEAL_SIZE = 64 };
enum {
    HYPERCALL_SEND_IPI = 10,
    HYPERCALL_EPERM = 1,
    HYPERCALL_EINVAL = 22,
    HYPERCALL_ENOSYS = 1000
};
enum { ICR_DESTINATION_BITS = 3 << 18 | BIT(11) }; // shorthand, logical

struct clock_page {
    u32 version, reserved0;
    u64 tsc_timestamp, system_time;
    u32 tsc_to_system_mul;
    s8 tsc_shift;
    u8 flags, reserved1[2];
};

struct wall_clock_page {
    u32 version, seconds, nanoseconds;
};

_Static_assert(sizeof(struct clock_page) == 32 && sizeof(struct wall_clock_page) == 12,
               "the ABI's");

static u32 features(const struct vm *vm)
{
    if (!cpuid_has(vm, 1, ECX, 31))
        return 0;
    return FEATURES_ALL & ~config_hidden_bits(vm->config, FEATURES_LEAF, 0, EAX);
}

// --- CPUID ---

void paravirt_cpuid(const struct vm *vm, u32 leaf, u32 out[4])
{
    u32 offered = features(vm), own = offered ? LEAF + NEXT_BASE : LEAF;

    if (leaf == own || leaf == LEAF) {
        out[EAX] = leaf + TIMING;
        memcpy(&out[EBX], leaf == own ? "NestorNestor" : "KVMKVMKVM\0\0", 12);
    } else if (leaf == FEATURES_LEAF) {
        out[EAX] = offered;
    } else if (leaf == own + TIMING || leaf == LEAF + TIMING) {
        // The timing leaf that guests know from others: TSC and local APIC timer in kHz. The timer
        // counts ticks of the host's TSC (devices/lapic_timer.c).
        out[EAX] = (u32)(vm->tsc_hz / 1000);
        out[EBX] = (u32)(tsc_hz / 1000);
    }
}

// --- kvmclock: nanoseconds since the guest's start ---

// The version is odd while the rest changes; compilers and CPUs keep stores to RAM in order here.
static void page_begin(u32 *version)
{
    __atomic_store_n(version, (*version | 1) + (*version & 1 ? 2 : 0), __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void page_end(u32 *version)
{
    __atomic_store_n(version, *version + 1, __ATOMIC_RELEASE);
}

// ns = ticks * 2^shift * mul / 2^32, with as many bits in mul as it has room for.
static void clock_rate(u64 hz, struct clock_page *page)
{
    s8 shift = 0;

    for (; hz > 2000000000; hz >>= 1)
        shift--;
    for (; hz <= 1000000000; hz <<= 1)
        shift++;
    page->tsc_shift = shift;
    page->tsc_to_system_mul = (u32)((1000000000ull << 32) / hz);
}

void paravirt_tsc_changed(struct vcpu *vcpu)
{
    struct clock_page *page = vm_ram_ptr(vcpu->vm, vcpu->pv.clock & ~(u64)ENABLED, sizeof(*page));
    u32 version;

    if (!(vcpu->pv.clock & ENABLED) || !page)
        return;
    page_begin(&page->version);
    version = page->version;
    *page = (struct clock_page){.version = version,
                                .tsc_timestamp = vcpu_guest_tsc(vcpu, vcpu->vm->tsc_base),
                                .flags = CLOCK_STABLE};
    clock_rate(vcpu->vm->tsc_hz, page);
    page_end(&page->version);
}

static int write_clock(struct vcpu *vcpu, u64 value)
{
    vcpu->pv.clock = value;
    paravirt_tsc_changed(vcpu);
    return 0;
}

// The wall clock's time when kvmclock was 0. The MSR is the same on all CPUs.
static int write_wall_clock(struct vcpu *vcpu, u64 value)
{
    struct wall_clock_page *page = vm_ram_ptr(vcpu->vm, value, sizeof(*page));
    u64 ns = time_wall_ns(vcpu->vm->tsc_base);

    __atomic_store_n(&vcpu->vm->wall_clock, value, __ATOMIC_RELAXED);
    if (!value) // no page, as KVM has it
        return 0;
    page_begin(&page->version);
    page->seconds = (u32)(ns / 1000000000);
    page->nanoseconds = (u32)(ns % 1000000000);
    page_end(&page->version);
    return 0;
}

// --- steal time: none, ever ---

static int write_steal_time(struct vcpu *vcpu, u64 value)
{
    if (value & ENABLED)
        memset(vm_ram_ptr(vcpu->vm, value & ~(u64)ENABLED, STEAL_SIZE), 0, STEAL_SIZE);
    vcpu->pv.steal_time = value;
    return 0;
}

// --- PV EOI ---

static u32 *eoi_flag(const struct vcpu *vcpu)
{
    return vm_ram_ptr(vcpu->vm, vcpu->pv.eoi & ~(u64)ENABLED, sizeof(u32));
}

void paravirt_offer_eoi(struct vcpu *vcpu)
{
    __atomic_store_n(eoi_flag(vcpu), 1, __ATOMIC_RELEASE);
    vcpu->pv.eoi_offered = true;
}

bool paravirt_take_eoi(struct vcpu *vcpu)
{
    vcpu->pv.eoi_offered = false;
    return !(__atomic_exchange_n(eoi_flag(vcpu), 0, __ATOMIC_ACQ_REL) & 1);
}

static int write_eoi(struct vcpu *vcpu, u64 value)
{
    lapic_end_offered(vcpu);
    if (value & ENABLED)
        *(u32 *)vm_ram_ptr(vcpu->vm, value & ~(u64)ENABLED, sizeof(u32)) = 0;
    vcpu->pv.eoi = value & ENABLED ? value : 0;
    return 0;
}

// --- the MSRs ---

#define SHARED 0xffff

// The wall clock's address is to be aligned by 4, but KVM takes any.
static const struct pv_msr {
    u32 msr, feature;
    u8 align, size; // of what it names; where it names it at all, bit 0 says so
    bool switched;
    u16 state; // in struct paravirt; SHARED: the wall clock's
    int (*write)(struct vcpu *vcpu, u64 value);
} pv_msrs[] = {
    {0x11, FEATURE_CLOCK_OLD, 1, sizeof(struct wall_clock_page), false, SHARED, write_wall_clock},
    {0x12, FEATURE_CLOCK_OLD, 4, sizeof(struct clock_page), true, offsetof(struct paravirt, clock),
     write_clock},
    {0x4b564d00, FEATURE_CLOCK, 1, sizeof(struct wall_clock_page), false, SHARED, write_wall_clock},
    {0x4b564d01, FEATURE_CLOCK, 4, sizeof(struct clock_page), true,
     offsetof(struct paravirt, clock), write_clock},
    {0x4b564d03, FEATURE_STEAL_TIME, 64, STEAL_SIZE, true, offsetof(struct paravirt, steal_time),
     write_steal_time},
    {0x4b564d04, FEATURE_PV_EOI, 4, sizeof(u32), true, offsetof(struct paravirt, eoi), write_eoi},
};

static const struct pv_msr *find_msr(const struct vcpu *vcpu, u32 msr)
{
    for (u32 i = 0; i < ARRAY_SIZE(pv_msrs); i++)
        if (pv_msrs[i].msr == msr && (features(vcpu->vm) & pv_msrs[i].feature))
            return &pv_msrs[i];
    return NULL;
}

int paravirt_read_msr(struct vcpu *vcpu, u32 msr, u64 *value)
{
    const struct pv_msr *row = find_msr(vcpu, msr);

    if (!row)
        return -E_FAULT;
    *value = row->state == SHARED ? __atomic_load_n(&vcpu->vm->wall_clock, __ATOMIC_RELAXED)
                                  : *(u64 *)((char *)&vcpu->pv + row->state);
    return 0;
}

int paravirt_write_msr(struct vcpu *vcpu, u32 msr, u64 value)
{
    const struct pv_msr *row = find_msr(vcpu, msr);
    gpa_t gpa = row && row->switched ? value & ~(u64)ENABLED : value;

    if (!row)
        return -E_FAULT;
    if ((!row->switched || value & ENABLED) &&
        (gpa % row->align || !vm_ram_ptr(vcpu->vm, gpa, row->size)))
        return -E_FAULT;
    return row->write(vcpu, value);
}

void paravirt_reset(struct vcpu *vcpu)
{
    memset(&vcpu->pv, 0, sizeof(vcpu->pv));
    if (!vcpu->id)
        vcpu->vm->wall_clock = 0;
}

// --- hypercalls ---

// RBX, RCX: a bitmap of APIC IDs, counted from RDX; RSI: the ICR. Returns how many there are.
static u64 send_ipis(struct vcpu *vcpu, const u64 arg[4], unsigned width)
{
    u32 first = (u32)arg[2], icr = (u32)arg[3];
    u64 sent = 0;

    if (icr & ICR_DESTINATION_BITS)
        return (u64)-HYPERCALL_EINVAL;
    for (u32 id = first; id < vcpu->vm->vcpu_count && id - first < 2 * width; id++) {
        if (!(arg[(id - first) / width] >> (id - first) % width & 1))
            continue;
        apic_bus_send_icr(vcpu->lapic, icr, id);
        sent++;
    }
    return sent;
}

void paravirt_hypercall(struct vcpu *vcpu)
{
    u64 *gpr = vcpu->gpr, arg[4] = {gpr[GPR_RBX], gpr[GPR_RCX], gpr[GPR_RDX], gpr[GPR_RSI]};

    if ((u32)gpr[GPR_RAX] != HYPERCALL_SEND_IPI || !(features(vcpu->vm) & FEATURE_PV_IPI))
        gpr[GPR_RAX] = (u64)-HYPERCALL_ENOSYS;
    else if (vcpu_cpl(vcpu))
        gpr[GPR_RAX] = (u64)-HYPERCALL_EPERM;
    else
        gpr[GPR_RAX] = send_ipis(vcpu, arg, vcpu_mode_64bit(vcpu) ? 64 : 32);
}
