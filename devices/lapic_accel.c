// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A local APIC that the CPU itself plays (SDM vol. 3 "APIC Virtualization and Virtual Interrupts").
// While it runs the guest, TPR, PPR, ISR and IRR are those of the virtual-APIC page; struct
// lapic_state's irr is the inbox, which irq_hand_over empties into the page, and the other
// registers in the page are copies for the guest's reads. When the model is to work on the
// registers itself, irq_take_back makes lapic_state whole again. Nothing here runs for a vCPU whose
// CPU can't.

#include "lapic.h"

#include <nestor/device.h>
#include <nestor/string.h>
#include <nestor/vcpu.h>

enum { VECTOR_WORDS = 8 }; // of 32 bits, 16 bytes apart

static u32 *page_reg(const struct lapic *lapic, u32 reg)
{
    return (u32 *)(void *)(lapic->vcpu->apic.page + reg);
}

static u32 *page_vectors(const struct lapic *lapic, u32 reg, unsigned word)
{
    return page_reg(lapic, reg + 16 * word);
}

static bool requested(const struct lapic *lapic, u8 vector)
{
    return __atomic_load_n(&lapic->s.irr[vector >> 6], __ATOMIC_ACQUIRE) >> (vector & 63) & 1;
}

// An offer begins before its bit leaves IRR and ends after it is back: whoever looks from another
// CPU sees one of both if he looks at IRR on either side.
bool lapic_waits(const struct lapic *lapic, u8 vector)
{
    return vector && // 0, of an LVT that is not set up, is none
           (requested(lapic, vector) ||
            __atomic_load_n(&lapic->vcpu->ctx[0].ctl.offer, __ATOMIC_ACQUIRE) == vector ||
            requested(lapic, vector) ||
            (lapic->in_page && *page_vectors(lapic, APIC_IRR, vector >> 5) >> (vector & 31) & 1));
}

static bool page_has_any(const struct lapic *lapic, u32 reg)
{
    u32 any = 0;

#pragma GCC unroll 8
    for (unsigned i = 0; i < VECTOR_WORDS; i++)
        any |= *page_vectors(lapic, reg, i);
    return any;
}

// 0 if there is none, as RVI and SVI.
static u8 page_highest(const struct lapic *lapic, u32 reg)
{
    if (likely(!page_has_any(lapic, reg)))
        return 0;
    for (unsigned i = VECTOR_WORDS; i-- > 0;) {
        u32 word = *page_vectors(lapic, reg, i);

        if (word)
            return (u8)(32 * i + 31 - (unsigned)__builtin_clz(word));
    }
    return 0;
}

static void vectors_to_page(const struct lapic *lapic, u32 reg, const u64 bits[4])
{
    for (unsigned i = 0; i < VECTOR_WORDS; i++)
        *page_vectors(lapic, reg, i) = (u32)(bits[i / 2] >> 32 * (i & 1));
}

u32 lapic_tpr(const struct lapic *lapic)
{
    return lapic->in_page ? *page_reg(lapic, APIC_TPR) : lapic->s.tpr;
}

// What the guest reads in the page without an exit; ICR_HIGH it also writes so.
static void show_registers(const struct lapic *lapic)
{
    static const u16 shown[] = {
        APIC_ID,        APIC_VERSION,   APIC_LDR,       APIC_DFR,           APIC_SVR,
        APIC_ESR,       APIC_ICR_LOW,   APIC_LVT_TIMER, APIC_LVT_THERMAL,   APIC_LVT_PERF,
        APIC_LVT_LINT0, APIC_LVT_LINT1, APIC_LVT_ERROR, APIC_TIMER_INITIAL, APIC_TIMER_DIVIDE,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(shown); i++)
        *page_reg(lapic, shown[i]) = lapic_reg_read(lapic, shown[i]);
}

// What is sent shows nowhere but in the ICR; other writes may change several registers.
void lapic_show_written(const struct lapic *lapic, u32 reg)
{
    if (reg == APIC_ICR_LOW)
        *page_reg(lapic, APIC_ICR_LOW) = lapic->s.icr_low;
    else if (reg != APIC_SELF_IPI)
        show_registers(lapic);
}

static void give_registers(struct lapic *lapic)
{
    struct lapic_state *s = &lapic->s;

    show_registers(lapic);
    *page_reg(lapic, APIC_ICR_HIGH) = s->icr_high;
    *page_reg(lapic, APIC_TPR) = s->tpr;
    *page_reg(lapic, APIC_PPR) = lapic->ppr;
    vectors_to_page(lapic, APIC_ISR, s->isr);
    // No notification finds IRR empty, which Bochs 3 takes for vector FFh (SDM: RVI stays); vector
    // 0 is none.
    if (lapic->vcpu->apic.posted)
        *page_reg(lapic, APIC_IRR) = 1;
    __atomic_store_n(&lapic->in_page, true, __ATOMIC_RELEASE);
}

// Whether the end of one interrupt may be the turn of another.
static bool one_behind_another(const struct lapic *lapic)
{
    const struct apic_accel *apic = &lapic->vcpu->apic;
    unsigned top = apic->requesting / 32;
    u32 behind = apic->in_service;

    if (!apic->requesting)
        return false;
    for (unsigned i = 0; i < top; i++) // words above have no bit
        behind |= *page_vectors(lapic, APIC_IRR, i);
    return behind | (*page_vectors(lapic, APIC_IRR, top) & ~(1u << apic->requesting % 32));
}

// Whose EOI the CPU is not to keep to itself: the level-triggered ones.
static void follow_tmr(struct lapic *lapic)
{
    struct apic_accel *apic = &lapic->vcpu->apic;
    u64 others = unlikely(apic->leaky) && one_behind_another(lapic) ? ~0ull : 0;
    u64 tmr[4], different = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(tmr); i++) {
        tmr[i] = __atomic_load_n(&lapic->s.tmr[i], __ATOMIC_ACQUIRE);
        different |= apic->eoi_exit[i] ^ (tmr[i] | others);
    }
    if (likely(!different))
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(tmr); i++)
        apic->eoi_exit[i] = tmr[i] | others;
    apic->eoi_exit_new = true;
    vectors_to_page(lapic, APIC_TMR, tmr);
}

void lapic_post_fixed(struct lapic *lapic, u8 vector)
{
    struct apic_posted *posted = lapic->vcpu->apic.posted;

    __atomic_fetch_or(&posted->requests[vector >> 6], BIT(vector & 63), __ATOMIC_SEQ_CST);
    if (!(__atomic_fetch_or(&posted->outstanding, 1, __ATOMIC_SEQ_CST) & 1))
        backend->apic_notify(lapic->vcpu);
}

void irq_take_posted(struct vcpu *vcpu)
{
    struct apic_posted *posted = vcpu->apic.posted;

    if (!posted || !(__atomic_fetch_and(&posted->outstanding, ~1u, __ATOMIC_SEQ_CST) & 1))
        return;
    for (unsigned i = 0; i < 4; i++)
        __atomic_fetch_or(&vcpu->lapic->s.irr[i],
                          __atomic_exchange_n(&posted->requests[i], 0, __ATOMIC_ACQ_REL),
                          __ATOMIC_SEQ_CST);
}

static void empty_inbox(u64 inbox[4], const struct lapic *lapic)
{
    for (unsigned i = 0; i < 4; i++) {
        u64 bits;

        if (!__atomic_load_n(&inbox[i], __ATOMIC_RELAXED))
            continue;
        bits = __atomic_exchange_n(&inbox[i], 0, __ATOMIC_ACQ_REL);
        *page_vectors(lapic, APIC_IRR, 2 * i) |= (u32)bits;
        *page_vectors(lapic, APIC_IRR, 2 * i + 1) |= (u32)(bits >> 32);
    }
}

bool irq_hand_over(struct vcpu *vcpu)
{
    struct lapic *lapic = vcpu->lapic;
    struct apic_accel *apic = &vcpu->apic;

    if (!lapic->in_page)
        give_registers(lapic);
    irq_take_posted(vcpu);
    empty_inbox(lapic->s.irr, lapic);
    apic->requesting = page_highest(lapic, APIC_IRR);
    apic->in_service = page_highest(lapic, APIC_ISR);
    follow_tmr(lapic); // behind the inbox: TMR is written before IRR
    backend->apic_update(vcpu);
    return apic->requesting >> 4 > MAX(apic->in_service, *page_reg(lapic, APIC_TPR)) >> 4;
}

void irq_take_back(struct vcpu *vcpu)
{
    struct lapic *lapic = vcpu->lapic;
    struct lapic_state *s = &lapic->s;

    if (!lapic->in_page)
        return;
    s->tpr = *page_reg(lapic, APIC_TPR);
    if (vcpu->apic.mode == ACCEL_XAPIC)
        s->icr_high = *page_reg(lapic, APIC_ICR_HIGH);
    for (unsigned i = 0; i < VECTOR_WORDS; i++) {
        u32 *irr = page_vectors(lapic, APIC_IRR, i), shift = 32 * (i & 1);
        u64 in_service = *page_vectors(lapic, APIC_ISR, i);

        s->isr[i / 2] = (s->isr[i / 2] & ~(BITS(31, 0) << shift)) | in_service << shift;
        __atomic_fetch_or(&s->irr[i / 2], (u64)*irr << shift, __ATOMIC_SEQ_CST);
        *irr = 0;
    }
    if (vcpu->apic.posted)
        __atomic_fetch_and(&s->irr[0], ~1ull, __ATOMIC_SEQ_CST);
    __atomic_store_n(&lapic->in_page, false, __ATOMIC_RELEASE);
    lapic_update_ppr(lapic);
    vcpu->events.interrupts_check = true; // to hand over again
}

void lapic_written(struct vcpu *vcpu, u32 offset)
{
    struct lapic *lapic = vcpu->lapic;

    if (vcpu->apic.mode == ACCEL_XAPIC)
        lapic->s.icr_high = *page_reg(lapic, APIC_ICR_HIGH);
    lapic_reg_write(lapic, offset & 0xff0, *page_reg(lapic, offset & 0xff0));
    if (lapic->in_page)
        lapic_show_written(lapic, offset & 0xff0);
}

void lapic_accel_choose(struct lapic *lapic)
{
    static const u8 modes[4] = {[APIC_XAPIC] = ACCEL_XAPIC, [APIC_X2APIC] = ACCEL_X2APIC};
    struct vcpu *vcpu = lapic->vcpu;
    u8 mode = modes[lapic_mode(lapic)];

    // A software-disabled APIC takes no IPIs, not its own either.
    if (!(vcpu->apic.offered & BIT(mode)) || !(lapic->s.svr & SVR_ENABLED) ||
        (mode == ACCEL_XAPIC && lapic->s.apic_base >> 12 != APIC_DEFAULT_BASE >> 12))
        mode = ACCEL_OFF;
    if (mode == vcpu->apic.mode)
        return;
    lapic_end_offered(vcpu);
    irq_take_back(vcpu);
    vcpu->apic.mode = mode;
    vcpu->ctx[0].ctl_dirty |= CTL_INTERCEPTS | CTL_BITMAPS;
    vcpu->events.interrupts_check = true; // hands over
}

void lapic_accel_reset(struct lapic *lapic)
{
    if (!lapic->vcpu->apic.page)
        return;
    lapic->in_page = false;
    memset(lapic->vcpu->apic.page, 0, PAGE_SIZE);
    memset(lapic->vcpu->apic.eoi_exit, 0, sizeof(lapic->vcpu->apic.eoi_exit));
    lapic->vcpu->apic.eoi_exit_new = true;
    lapic_accel_choose(lapic);
}
