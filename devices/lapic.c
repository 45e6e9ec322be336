// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The local APIC: registers by MMIO and by MSR, IA32_APIC_BASE, priorities, acceptance of messages,
// acknowledge and EOI (SDM vol. 3 "Advanced Programmable Interrupt Controller", APM vol. 2 chapter
// 16).

#include "lapic.h"
#include "machine.h"
#include "paravirt.h"
#include "pic.h"

#include <arch/x86/msr.h>
#include <nestor/device.h>
#include <nestor/run.h>
#include <nestor/string.h>
#include <nestor/vcpu.h>
#include <nestor/vm.h>

#define ESR_ILLEGAL_REGISTER       BIT(7)
#define ESR_RECEIVE_ILLEGAL_VECTOR BIT(6)
// Version 14h with 6 LVT entries and EOI-broadcast suppression.
#define APIC_VERSION_VALUE (0x14 | (LVT_COUNT - 1) << 16 | BIT(24))
// Delivery status; remote IRR, which LINT0 and LINT1 alone have.
#define LVT_READ_ONLY  BIT(12)
#define LINT_READ_ONLY BIT(14)
enum { ECX = 2 };

// --- priorities ---

// The highest vector in a 256-bit register, -1 if it is empty.
static inline int apic_highest(const u64 bits[4])
{
#pragma GCC unroll 4
    for (int i = 3; i >= 0; i--) {
        u64 word = __atomic_load_n(&bits[i], __ATOMIC_RELAXED);

        if (word)
            return i * 64 + 63 - __builtin_clzll(word);
    }
    return -1;
}

static void apic_bit_set(u64 bits[4], u8 vector)
{
    __atomic_fetch_or(&bits[vector >> 6], BIT(vector & 63), __ATOMIC_SEQ_CST);
}

static void apic_bit_clear(u64 bits[4], u8 vector)
{
    __atomic_fetch_and(&bits[vector >> 6], ~BIT(vector & 63), __ATOMIC_SEQ_CST);
}

static bool apic_bit(const u64 bits[4], u8 vector)
{
    return bits[vector >> 6] & BIT(vector & 63);
}

static int lapic_deliverable(const struct lapic *lapic)
{
    int vector = apic_highest(lapic->s.irr);

    return vector >= 0 && ((u32)vector & 0xf0) > (lapic->ppr & 0xf0) ? vector : -1;
}

void lapic_update_ppr(struct lapic *lapic)
{
    int in_service = apic_highest(lapic->s.isr);
    u32 class = in_service < 0 ? 0 : (u32)in_service & 0xf0;

    lapic->ppr = (lapic->s.tpr & 0xf0) >= class ? lapic->s.tpr : class;
    if (lapic_deliverable(lapic) >= 0) // what comes later says so itself
        lapic->vcpu->events.interrupts_check = true;
}

// --- acceptance ---

// False for an illegal vector; else TMR is right for it.
static bool lapic_set_trigger(struct lapic *lapic, u8 vector, bool level)
{
    if (vector < 16) {
        lapic_error(lapic, ESR_RECEIVE_ILLEGAL_VECTOR);
        return false;
    }
    if (level)
        apic_bit_set(lapic->s.tmr, vector);
    else if (unlikely(apic_bit(lapic->s.tmr, vector)))
        apic_bit_clear(lapic->s.tmr, vector);
    return true;
}

static void lapic_set_irr(struct lapic *lapic, u8 vector, bool level)
{
    if (lapic_set_trigger(lapic, vector, level))
        apic_bit_set(lapic->s.irr, vector);
}

static void lapic_post_sipi(struct vcpu *vcpu, u8 vector)
{
    __atomic_store_n(&vcpu->events.sipi_vector, vector, __ATOMIC_RELEASE);
    vcpu_post(vcpu, REQUEST_SIPI);
}

static void lapic_post_nmi(struct vcpu *vcpu)
{
    __atomic_fetch_add(&vcpu->nmis, 1, __ATOMIC_ACQ_REL);
    vcpu_post(vcpu, REQUEST_NMI);
}

static bool lapic_accept_fixed(struct lapic *lapic, const struct apic_message *message, bool self)
{
    if (!(lapic->s.svr & SVR_ENABLED))
        return false;
    // A level is not posted: its EOI must exit, which this vCPU sees to before it takes it.
    if (lapic->vcpu->apic.posted && !self && !message->level) {
        if (lapic_set_trigger(lapic, message->vector, false))
            lapic_post_fixed(lapic, message->vector);
        return true;
    }
    lapic_set_irr(lapic, message->vector, message->level);
    if (self)
        lapic->vcpu->events.interrupts_check = true;
    else
        vcpu_post(lapic->vcpu, REQUEST_EVENT);
    return true;
}

bool lapic_accept(struct lapic *lapic, const struct apic_message *message, bool self)
{
    if (unlikely(!(lapic->s.apic_base & APIC_BASE_ENABLE)))
        return false;
    switch (message->mode) {
    case DELIVER_FIXED:
    case DELIVER_LOWEST:
        return lapic_accept_fixed(lapic, message, self);
    case DELIVER_NMI:
        lapic_post_nmi(lapic->vcpu);
        return true;
    case DELIVER_INIT:
        vcpu_post(lapic->vcpu, REQUEST_INIT);
        return true;
    case DELIVER_SIPI:
        lapic_post_sipi(lapic->vcpu, message->vector);
        return true;
    case DELIVER_EXTINT:
        __atomic_store_n(&lapic->s.ext_int, 1, __ATOMIC_RELEASE);
        vcpu_post(lapic->vcpu, REQUEST_EVENT);
        return true;
    case DELIVER_SMI:
        vcpu_post(lapic->vcpu, REQUEST_SMI);
        return true;
    default:
        return false;
    }
}

void lapic_local(struct lapic *lapic, enum lvt_index index)
{
    u32 lvt = lapic->s.lvt[index];

    if (lvt & LVT_MASKED)
        return;
    switch (LVT_DELIVERY(lvt)) {
    case DELIVER_FIXED:
        lapic_set_irr(lapic, (u8)lvt, false);
        vcpu_post(lapic->vcpu, REQUEST_EVENT);
        break;
    case DELIVER_NMI:
        lapic_post_nmi(lapic->vcpu);
        break;
    case DELIVER_INIT:
        vcpu_post(lapic->vcpu, REQUEST_INIT);
        break;
    case DELIVER_EXTINT:
        vcpu_post(lapic->vcpu, REQUEST_EVENT);
        break;
    }
}

void lapic_error(struct lapic *lapic, u32 bits)
{
    u32 old = __atomic_fetch_or(&lapic->s.esr_pending, bits, __ATOMIC_SEQ_CST);

    // An error that is known already is not told again; so an illegal vector in LVT_ERROR ends
    // here.
    if ((old & bits) != bits)
        lapic_local(lapic, LVT_ERROR);
}

void lapic_lint0_raised(struct lapic *lapic)
{
    if (lapic->s.apic_base & APIC_BASE_ENABLE)
        lapic_local(lapic, LVT_LINT0);
    else if (lapic->s.id == 0) // a disabled APIC is out of the way of the BSP's INTR pin
        vcpu_post(lapic->vcpu, REQUEST_EVENT);
}

bool lapic_takes_ext_int(const struct lapic *lapic)
{
    u32 lint0 = lapic->s.lvt[LVT_LINT0];

    if (!(lapic->s.apic_base & APIC_BASE_ENABLE))
        return lapic->s.id == 0;
    return (!(lint0 & LVT_MASKED) && LVT_DELIVERY(lint0) == DELIVER_EXTINT) ||
           __atomic_load_n(&lapic->s.ext_int, __ATOMIC_ACQUIRE);
}

// --- what core asks at a boundary ---

static bool ext_int_pending(const struct lapic *lapic)
{
    return __atomic_load_n(&lapic->machine->pic.intr, __ATOMIC_ACQUIRE) &&
           lapic_takes_ext_int(lapic);
}

bool irq_ext_pending(struct vcpu *vcpu)
{
    return ext_int_pending(vcpu->lapic);
}

int irq_next(struct vcpu *vcpu)
{
    if (vcpu->apic.posted)
        irq_take_posted(vcpu);
    // As long as nothing waits for the end, it makes no difference.
    if (unlikely(vcpu->pv.eoi_offered) && apic_highest(vcpu->lapic->s.irr) >= 0)
        lapic_end_offered(vcpu);
    return unlikely(ext_int_pending(vcpu->lapic)) ? 0 : lapic_deliverable(vcpu->lapic);
}

int irq_ext_ack(struct vcpu *vcpu)
{
    struct lapic *lapic = vcpu->lapic;
    struct machine *machine = lapic->machine;
    int vector = -E_NOENT;

    spin_lock(&machine->lock);
    if (ext_int_pending(lapic)) {
        __atomic_store_n(&lapic->s.ext_int, 0, __ATOMIC_RELEASE);
        vector = pic_ack(&machine->pic);
    }
    spin_unlock(&machine->lock);
    return vector;
}

static void begin_service(struct lapic *lapic, u8 vector)
{
    lapic->s.isr[vector >> 6] |= BIT(vector & 63);
    lapic_update_ppr(lapic);
}

void irq_offer(struct vcpu *vcpu, u8 vector)
{
    apic_bit_clear(vcpu->lapic->s.irr, vector);
}

void irq_offered(struct vcpu *vcpu, u8 vector, bool taken)
{
    if (taken) {
        begin_service(vcpu->lapic, vector);
        return;
    }
    apic_bit_set(vcpu->lapic->s.irr, vector);
    vcpu->events.interrupts_check = true;
}

int irq_ack(struct vcpu *vcpu)
{
    struct lapic *lapic = vcpu->lapic;
    int vector = -E_NOENT;

    if (unlikely(ext_int_pending(lapic)))
        vector = irq_ext_ack(vcpu);
    if (vector >= 0)
        return vector;
    vector = lapic_deliverable(lapic);
    if (vector < 0)
        return -E_NOENT;
    apic_bit_clear(lapic->s.irr, (u8)vector);
    begin_service(lapic, (u8)vector);
    if (unlikely(vcpu->pv.eoi) && vcpu->apic.mode == ACCEL_OFF &&
        !apic_bit(lapic->s.tmr, (u8)vector) && apic_highest(lapic->s.irr) < 0)
        paravirt_offer_eoi(vcpu);
    return vector;
}

void lapic_ended(struct vcpu *vcpu, u8 vector)
{
    struct lapic *lapic = vcpu->lapic;

    if (apic_bit(lapic->s.tmr, vector) && !(lapic->s.svr & SVR_NO_EOI_BROADCAST))
        lapic->eoi_broadcast(lapic->machine, vector);
}

static void lapic_eoi(struct lapic *lapic)
{
    int vector = apic_highest(lapic->s.isr);

    if (vector < 0)
        return;
    lapic->s.isr[vector >> 6] &= ~BIT(vector & 63);
    lapic_update_ppr(lapic);
    lapic_ended(lapic->vcpu, (u8)vector);
}

void lapic_end_offered(struct vcpu *vcpu)
{
    if (vcpu->pv.eoi_offered && paravirt_take_eoi(vcpu))
        lapic_eoi(vcpu->lapic);
}

// --- the registers ---

enum access {
    R = BIT(0),
    W = BIT(1),
    RW = R | W,
    NO_X2 = BIT(2),       // not there in x2APIC mode
    NO_X2_WRITE = BIT(3), // read-only there
    ONLY_X2 = BIT(4),
};

struct apic_reg_info {
    u8 access;
    u16 state;    // where in struct lapic_state, when there is no read function
    u32 writable; // the other bits are reserved: #GP in x2APIC mode, dropped in xAPIC mode
    u32 (*read)(const struct lapic *lapic, u32 reg);
    void (*write)(struct lapic *lapic, u32 reg, u32 value); // NULL: to the state
};

static u32 read_id(const struct lapic *lapic, u32 reg)
{
    (void)reg;
    return lapic_mode(lapic) == APIC_X2APIC ? lapic->s.id : (u32)lapic->s.xapic_id << 24;
}

static u32 read_version(const struct lapic *lapic, u32 reg)
{
    (void)lapic, (void)reg;
    return APIC_VERSION_VALUE;
}

static u32 read_ppr(const struct lapic *lapic, u32 reg)
{
    (void)reg;
    return lapic->ppr;
}

static u32 read_vectors(const struct lapic *lapic, u32 reg)
{
    const u64 *bits = reg >= APIC_IRR   ? lapic->s.irr
                      : reg >= APIC_TMR ? lapic->s.tmr
                                        : lapic->s.isr;
    u32 word = reg >> 4 & 7;

    return (u32)(bits[word / 2] >> 32 * (word & 1));
}

static u32 read_current(const struct lapic *lapic, u32 reg)
{
    (void)reg;
    return lapic_timer_current(lapic);
}

static void write_tpr(struct lapic *lapic, u32 reg, u32 value)
{
    (void)reg;
    lapic->s.tpr = value;
    lapic_update_ppr(lapic);
}

void irq_end(struct vcpu *vcpu)
{
    lapic_eoi(vcpu->lapic);
}

static void write_eoi(struct lapic *lapic, u32 reg, u32 value)
{
    (void)reg, (void)value;
    lapic_end_offered(lapic->vcpu);
    lapic_eoi(lapic);
}

static void write_dfr(struct lapic *lapic, u32 reg, u32 value)
{
    (void)reg;
    lapic->s.dfr = value | 0x0fffffff;
}

// SDM "Local APIC State After It Has Been Software Disabled": every LVT entry is masked.
static void write_svr(struct lapic *lapic, u32 reg, u32 value)
{
    (void)reg;
    lapic->s.svr = value;
    if (!(value & SVR_ENABLED))
        for (unsigned i = 0; i < LVT_COUNT; i++)
            lapic->s.lvt[i] |= LVT_MASKED;
    lapic_accel_choose(lapic);
}

static void write_esr(struct lapic *lapic, u32 reg, u32 value)
{
    (void)reg, (void)value;
    lapic->s.esr = __atomic_exchange_n(&lapic->s.esr_pending, 0, __ATOMIC_SEQ_CST);
}

static void write_icr_low(struct lapic *lapic, u32 reg, u32 value)
{
    (void)reg;
    lapic->s.icr_low = value;
    apic_bus_send_icr(lapic, value, lapic->s.icr_high >> 24);
}

// The upper bit of the timer's mode, where CPUID has no TSC-deadline mode.
static u32 timer_reserved(const struct lapic *lapic)
{
    return cpuid_has(lapic->vcpu->vm, 1, ECX, 24) ? 0 : (u32)BIT(18);
}

static void write_lvt(struct lapic *lapic, u32 reg, u32 value)
{
    u32 index = (reg - APIC_LVT_TIMER) >> 4;

    if (!(lapic->s.svr & SVR_ENABLED))
        value |= LVT_MASKED;
    if (index == LVT_TIMER)
        lapic_timer_write_lvt(lapic, value & ~timer_reserved(lapic));
    else
        lapic->s.lvt[index] = value;
    lapic->vcpu->events.interrupts_check = true; // LINT0 may let the PIC through now
}

// SDM "Local APIC ID": some processors let software change it, this one among them, as KVM's does.
static void write_id(struct lapic *lapic, u32 reg, u32 value)
{
    (void)reg;
    __atomic_store_n(&lapic->machine->renamed, true, __ATOMIC_SEQ_CST);
    __atomic_store_n(&lapic->s.xapic_id, (u8)(value >> 24), __ATOMIC_SEQ_CST);
}

static void write_initial(struct lapic *lapic, u32 reg, u32 value)
{
    (void)reg;
    lapic_timer_write_initial(lapic, value);
}

static void write_divide(struct lapic *lapic, u32 reg, u32 value)
{
    (void)reg;
    lapic_timer_write_divide(lapic, value);
}

static void write_self_ipi(struct lapic *lapic, u32 reg, u32 value)
{
    (void)reg;
    apic_bus_send_icr(lapic, 1u << 18 | value, 0);
}

#define STATE(field) .state = offsetof(struct lapic_state, field)
#define LVT(index)   STATE(lvt) + 4 * (index), .write = write_lvt
#define VECTORS(reg) [(reg) >> 4 ...((reg) >> 4) + 7] = {R, .read = read_vectors}

// clang-format off
static const struct apic_reg_info apic_regs[64] = {
    [APIC_ID >> 4] = {RW | NO_X2_WRITE, .writable = 0xff000000, .read = read_id, .write = write_id},
    [APIC_VERSION >> 4] = {R, .read = read_version},
    [APIC_TPR >> 4] = {RW, STATE(tpr), .writable = 0xff, .write = write_tpr},
    [APIC_PPR >> 4] = {R, .read = read_ppr},
    [APIC_EOI >> 4] = {W, .write = write_eoi},
    [APIC_LDR >> 4] = {RW | NO_X2_WRITE, STATE(ldr), .writable = 0xff000000},
    [APIC_DFR >> 4] = {RW | NO_X2, STATE(dfr), .writable = 0xf0000000, .write = write_dfr},
    [APIC_SVR >> 4] = {RW, STATE(svr), .writable = 0x13ff, .write = write_svr},
    VECTORS(APIC_ISR),
    VECTORS(APIC_TMR),
    VECTORS(APIC_IRR),
    [APIC_ESR >> 4] = {RW, STATE(esr), .write = write_esr},
    [APIC_ICR_LOW >> 4] = {RW, STATE(icr_low), .writable = 0xccfff, .write = write_icr_low},
    [APIC_ICR_HIGH >> 4] = {RW | NO_X2, STATE(icr_high), .writable = 0xff000000},
    [APIC_LVT_TIMER >> 4] = {RW, LVT(LVT_TIMER), .writable = 0x700ff},
    [APIC_LVT_THERMAL >> 4] = {RW, LVT(LVT_THERMAL), .writable = 0x107ff},
    [APIC_LVT_PERF >> 4] = {RW, LVT(LVT_PERF), .writable = 0x107ff},
    [APIC_LVT_LINT0 >> 4] = {RW, LVT(LVT_LINT0), .writable = 0x1a7ff},
    [APIC_LVT_LINT1 >> 4] = {RW, LVT(LVT_LINT1), .writable = 0x1a7ff},
    [APIC_LVT_ERROR >> 4] = {RW, LVT(LVT_ERROR), .writable = 0x100ff},
    [APIC_TIMER_INITIAL >> 4] = {RW, STATE(timer_initial), .writable = ~0u, .write = write_initial},
    [APIC_TIMER_CURRENT >> 4] = {R, .read = read_current},
    [APIC_TIMER_DIVIDE >> 4] = {RW, STATE(timer_divide), .writable = 0xb, .write = write_divide},
    [APIC_SELF_IPI >> 4] = {W | ONLY_X2, .writable = 0xff, .write = write_self_ipi},
};
// clang-format on

static u32 apic_reg_read(const struct lapic *lapic, const struct apic_reg_info *info, u32 reg)
{
    if (info->read)
        return info->read(lapic, reg);
    return *(const u32 *)((const char *)&lapic->s + info->state);
}

static void apic_reg_write(struct lapic *lapic, const struct apic_reg_info *info, u32 reg,
                           u32 value)
{
    if (info->write)
        info->write(lapic, reg, value & info->writable);
    else
        *(u32 *)((char *)&lapic->s + info->state) = value & info->writable;
}

u32 lapic_reg_read(const struct lapic *lapic, u32 reg)
{
    return apic_reg_read(lapic, &apic_regs[reg >> 4 & 63], reg);
}

void lapic_reg_write(struct lapic *lapic, u32 reg, u32 value)
{
    const struct apic_reg_info *info = &apic_regs[reg >> 4 & 63];

    if (info->access & W)
        apic_reg_write(lapic, info, reg, value);
}

// --- xAPIC mode ---

bool lapic_mmio_hit(const struct vcpu *vcpu, gpa_t gpa, unsigned size)
{
    const struct lapic *lapic = vcpu->lapic;

    return gpa - (lapic->s.apic_base & BITS(51, 12)) <= PAGE_SIZE - size &&
           lapic_mode(lapic) == APIC_XAPIC;
}

static void lapic_mmio_write(struct lapic *lapic, u32 offset, unsigned size, u32 value)
{
    const struct apic_reg_info *info = &apic_regs[offset >> 4 & 63];

    if (!info->access || info->access & ONLY_X2 || offset >= 0x400)
        lapic_error(lapic, ESR_ILLEGAL_REGISTER);
    else if (info->access & W && (offset & 0xf) == 0 && size >= 4)
        apic_reg_write(lapic, info, offset, value);
}

static u64 lapic_mmio_read(struct lapic *lapic, u32 offset, unsigned size)
{
    const struct apic_reg_info *info = &apic_regs[offset >> 4 & 63];
    u32 shift = 8 * (offset & 0xf);

    lapic_end_offered(lapic->vcpu);
    if (!info->access || info->access & ONLY_X2 || offset >= 0x400) {
        lapic_error(lapic, ESR_ILLEGAL_REGISTER);
        return 0;
    }
    // Only the first four bytes of each sixteen are there.
    if (!(info->access & R) || shift >= 32)
        return 0;
    return (u64)apic_reg_read(lapic, info, offset & ~0xfu) >> shift & BITS(8 * size - 1, 0);
}

void lapic_mmio(struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write, u64 *value)
{
    struct lapic *lapic = vcpu->lapic;
    u32 offset = (u32)(gpa & (PAGE_SIZE - 1));

    if (unlikely(lapic->in_page))
        irq_take_back(vcpu);
    if (write)
        lapic_mmio_write(lapic, offset, size, (u32)*value);
    else
        *value = lapic_mmio_read(lapic, offset, size);
}

// --- x2APIC mode and the other MSRs ---

static int x2apic_write_icr(struct lapic *lapic, u64 value)
{
    // Delivery status (bit 12) is gone from the x2APIC's ICR, but what was read may be written.
    if (value & (BITS(31, 20) | BITS(17, 16) | BIT(13)))
        return -E_FAULT;
    lapic->s.icr_low = (u32)value & ~(u32)BIT(12);
    lapic->s.icr_high = (u32)(value >> 32);
    apic_bus_send_icr(lapic, lapic->s.icr_low, lapic->s.icr_high);
    return 0;
}

static const struct apic_reg_info *x2apic_reg(const struct lapic *lapic, u32 msr)
{
    const struct apic_reg_info *info = &apic_regs[msr & 63];

    if (lapic_mode(lapic) != APIC_X2APIC || msr - MSR_X2APIC_FIRST >= 64 || info->access & NO_X2)
        return NULL;
    return info;
}

static int x2apic_read(struct lapic *lapic, u32 msr, u64 *value)
{
    const struct apic_reg_info *info = x2apic_reg(lapic, msr);
    u32 reg = (msr & 63) << 4;

    lapic_end_offered(lapic->vcpu);
    if (!info || !(info->access & R))
        return -E_FAULT;
    *value = apic_reg_read(lapic, info, reg);
    if (reg == APIC_ICR_LOW)
        *value |= (u64)lapic->s.icr_high << 32;
    return 0;
}

static int x2apic_write(struct lapic *lapic, u32 msr, u64 value)
{
    const struct apic_reg_info *info = x2apic_reg(lapic, msr);
    u32 reg = (msr & 63) << 4;
    u64 allowed;

    if (!info || !(info->access & W) || info->access & NO_X2_WRITE)
        return -E_FAULT;
    if (reg == APIC_ICR_LOW)
        return x2apic_write_icr(lapic, value);
    allowed = info->writable;
    if (reg >= APIC_LVT_TIMER && reg <= APIC_LVT_ERROR)
        allowed |= LVT_READ_ONLY;
    if (reg == APIC_LVT_LINT0 || reg == APIC_LVT_LINT1)
        allowed |= LINT_READ_ONLY;
    if (reg == APIC_LVT_TIMER)
        allowed &= ~timer_reserved(lapic);
    if (value & ~allowed)
        return -E_FAULT;
    apic_reg_write(lapic, info, reg, (u32)value);
    if (unlikely(lapic->in_page))
        lapic_show_written(lapic, reg);
    return 0;
}

static bool apic_mode_change_is_legal(enum apic_mode from, enum apic_mode to)
{
    // SDM "x2APIC State Transitions": out of x2APIC mode only by disabling, into it only from
    // xAPIC.
    static const u8 legal[4] = {
        [APIC_DISABLED] = BIT(APIC_DISABLED) | BIT(APIC_XAPIC),
        [APIC_XAPIC] = BIT(APIC_DISABLED) | BIT(APIC_XAPIC) | BIT(APIC_X2APIC),
        [APIC_X2APIC] = BIT(APIC_DISABLED) | BIT(APIC_X2APIC),
    };

    return legal[from] & BIT(to);
}

static void lapic_clear(struct lapic *lapic);

static int apic_base_write(struct lapic *lapic, u64 value)
{
    enum apic_mode from = lapic_mode(lapic), to = (enum apic_mode)(value >> 10 & 3);

    if (value & (BITS(7, 0) | BIT(9)) || value >> lapic->machine->phys_bits ||
        !apic_mode_change_is_legal(from, to))
        return -E_FAULT;
    lapic->s.apic_base = value;
    if (to == APIC_X2APIC)
        vm_apic_page(lapic->vcpu->vm, false); // the other vCPUs' loss, until they follow
    if (from != to && (to == APIC_DISABLED || from == APIC_DISABLED)) {
        lapic->s.xapic_id = (u8)lapic->s.id;
        lapic_clear(lapic);
    }
    if (from != to && to == APIC_X2APIC) {
        lapic->s.ldr = (lapic->s.id >> 4) << 16 | 1u << (lapic->s.id & 15);
        lapic->s.icr_high = 0;
    }
    lapic_accel_choose(lapic);
    lapic->vcpu->events.interrupts_check = true;
    return 0;
}

int lapic_read_msr(struct vcpu *vcpu, u32 msr, u64 *value)
{
    struct lapic *lapic = vcpu->lapic;

    if (msr == MSR_APIC_BASE)
        *value = lapic->s.apic_base;
    else if (msr == MSR_TSC_DEADLINE)
        *value = lapic->s.tsc_deadline;
    else {
        if (unlikely(lapic->in_page))
            irq_take_back(vcpu);
        return x2apic_read(lapic, msr, value);
    }
    return 0;
}

// Of the registers in the virtual-APIC page only these are written.
static bool changes_page(u32 msr)
{
    return msr == MSR_APIC_BASE || msr == MSR_X2APIC_FIRST + (APIC_TPR >> 4) ||
           msr == MSR_X2APIC_FIRST + (APIC_EOI >> 4);
}

int lapic_write_msr(struct vcpu *vcpu, u32 msr, u64 value)
{
    struct lapic *lapic = vcpu->lapic;

    if (msr == MSR_TSC_DEADLINE) {
        lapic_timer_write_deadline(lapic, value);
        return 0;
    }
    if (unlikely(lapic->in_page) && changes_page(msr))
        irq_take_back(vcpu);
    if (msr == MSR_APIC_BASE)
        return apic_base_write(lapic, value);
    return x2apic_write(lapic, msr, value);
}

u64 lapic_read_cr8(struct vcpu *vcpu)
{
    return lapic_tpr(vcpu->lapic) >> 4;
}

void lapic_write_cr8(struct vcpu *vcpu, u64 value)
{
    irq_take_back(vcpu);
    write_tpr(vcpu->lapic, APIC_TPR, (u32)(value & 0xf) << 4);
}

bool lapic_enabled(const struct vcpu *vcpu)
{
    return vcpu->lapic->s.apic_base & APIC_BASE_ENABLE;
}

// --- reset ---

// SDM "Local APIC State After Power-Up or Reset"; the ID and IA32_APIC_BASE stay.
static void lapic_clear(struct lapic *lapic)
{
    struct lapic_state *s = &lapic->s;

    timer_cancel(&lapic->timer);
    irq_take_posted(lapic->vcpu); // they go too
    *s = (struct lapic_state){
        .apic_base = s->apic_base, .id = s->id, .xapic_id = s->xapic_id, .dfr = ~0u, .svr = 0xff};
    for (unsigned i = 0; i < LVT_COUNT; i++)
        s->lvt[i] = LVT_MASKED;
    if (lapic_mode(lapic) == APIC_X2APIC)
        s->ldr = (s->id >> 4) << 16 | 1u << (s->id & 15);
    lapic_update_ppr(lapic);
}

// What firmware has done on the boot CPU before it hands over: enabled, in virtual wire mode.
static void lapic_firmware(struct lapic *lapic)
{
    lapic->s.svr = 0x1ff;
    lapic->s.lvt[LVT_LINT0] = DELIVER_EXTINT << 8;
    lapic->s.lvt[LVT_LINT1] = DELIVER_NMI << 8;
}

void lapic_reset(struct vcpu *vcpu, bool init)
{
    struct lapic *lapic = vcpu->lapic;
    bool bsp = lapic->s.id == 0;

    if (!init) {
        lapic->s.apic_base = APIC_DEFAULT_BASE | APIC_BASE_ENABLE | (bsp ? APIC_BASE_BSP : 0);
        lapic->s.xapic_id = (u8)lapic->s.id;
    }
    lapic_clear(lapic);
    if (!init && bsp)
        lapic_firmware(lapic);
    if (!init)
        vm_apic_page(vcpu->vm, true);
    lapic_accel_reset(lapic);
}

void lapic_init(struct lapic *lapic, struct vcpu *vcpu, struct machine *machine)
{
    lapic->vcpu = vcpu;
    lapic->machine = machine;
    lapic->s.id = vcpu->id;
    lapic_timer_init(lapic);
    lapic_reset(vcpu, false);
}
