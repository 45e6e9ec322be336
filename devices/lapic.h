// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The local APIC of a vCPU (SDM vol. 3 "Advanced Programmable Interrupt Controller"), and the
// messages that carry interrupts to it.
//
// Who writes: the vCPU's own pCPU writes everything, without a lock. Any CPU may set bits in irr
// and tmr, and in esr_pending, atomically, and set ext_int; it posts a request afterwards. What
// other CPUs read to find a message's destination (apic_base, ldr, dfr, svr, tpr, lvt) are single
// words; a message that races with a change may see the old value, as on a bus.

#pragma once

#include <nestor/time.h>
#include <nestor/types.h>

struct machine;
struct vcpu;

enum apic_reg { // byte offsets in the xAPIC page; MSR 800h + offset / 16
    APIC_ID = 0x20,
    APIC_VERSION = 0x30,
    APIC_TPR = 0x80,
    APIC_PPR = 0xa0,
    APIC_EOI = 0xb0,
    APIC_LDR = 0xd0,
    APIC_DFR = 0xe0,
    APIC_SVR = 0xf0,
    APIC_ISR = 0x100,
    APIC_TMR = 0x180,
    APIC_IRR = 0x200,
    APIC_ESR = 0x280,
    APIC_ICR_LOW = 0x300,
    APIC_ICR_HIGH = 0x310,
    APIC_LVT_TIMER = 0x320,
    APIC_LVT_THERMAL = 0x330,
    APIC_LVT_PERF = 0x340,
    APIC_LVT_LINT0 = 0x350,
    APIC_LVT_LINT1 = 0x360,
    APIC_LVT_ERROR = 0x370,
    APIC_TIMER_INITIAL = 0x380,
    APIC_TIMER_CURRENT = 0x390,
    APIC_TIMER_DIVIDE = 0x3e0,
    APIC_SELF_IPI = 0x3f0,
};

enum lvt_index { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

enum apic_delivery { // delivery modes of ICR, LVT and IOAPIC entries
    DELIVER_FIXED,
    DELIVER_LOWEST,
    DELIVER_SMI,
    DELIVER_RESERVED,
    DELIVER_NMI,
    DELIVER_INIT,
    DELIVER_SIPI,
    DELIVER_EXTINT,
};

#define APIC_DEFAULT_BASE    0xfee00000ull
#define LVT_MASKED           BIT(16)
#define LVT_DELIVERY(lvt)    ((lvt) >> 8 & 7)
#define SVR_ENABLED          BIT(8)
#define SVR_NO_EOI_BROADCAST BIT(12)

// IA32_APIC_BASE bits 11:10.
enum apic_mode { APIC_DISABLED, APIC_INVALID, APIC_XAPIC, APIC_X2APIC };

struct lapic_state {
    u64 apic_base;
    u32 id;      // the vCPU's id; never changes
    u8 xapic_id; // the same until the guest writes another; atomic
    u32 tpr, ldr, dfr, svr;
    u32 esr, esr_pending;
    u32 icr_low, icr_high;
    u32 lvt[LVT_COUNT];
    u32 ext_int; // an ExtINT message from the IOAPIC is waiting for the PIC's vector
    u64 irr[4], isr[4], tmr[4];
    u32 timer_initial, timer_divide;
    bool timer_running;
    u64 timer_start;  // host TSC when the count was timer_initial
    u64 timer_owed;   // periods whose interrupts are still to come, because Nestor came late
    u64 tsc_deadline; // in the guest's TSC; 0 = not armed
};

struct lapic {
    struct lapic_state s;
    u32 ppr;      // from tpr and isr; what irq_pending compares with
    bool in_page; // tpr, ppr, isr and the older part of irr are in the virtual-APIC page
    struct vcpu *vcpu;
    struct machine *machine;
    struct timer timer;
    // A level-triggered vector has been ended: the IOAPIC's part. Called without a lock.
    void (*eoi_broadcast)(struct machine *machine, u8 vector);
};

struct apic_message {
    u32 dest;
    u8 mode; // enum apic_delivery
    u8 vector;
    bool logical, level; // level: level-triggered
    bool wide;           // a 32-bit destination (from an x2APIC); else 8 bits
};

static inline enum apic_mode lapic_mode(const struct lapic *lapic)
{
    return (enum apic_mode)(lapic->s.apic_base >> 10 & 3);
}

// --- lapic.c ---
void lapic_init(struct lapic *lapic, struct vcpu *vcpu, struct machine *machine);
void lapic_mmio(struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write, u64 *value);
bool lapic_mmio_hit(const struct vcpu *vcpu, gpa_t gpa, unsigned size);
// Takes a message that is meant for this APIC; `self`: the caller is the vCPU's own pCPU, handling
// its exit. False if the APIC does not accept it. Any CPU.
bool lapic_accept(struct lapic *lapic, const struct apic_message *message, bool self);
// Raises an LVT's interrupt, if it is not masked. Own pCPU, or LINT0 from any.
void lapic_local(struct lapic *lapic, enum lvt_index index);
// The PIC's INTR line, which LINT0 of every CPU is wired to, went up. Any CPU.
void lapic_lint0_raised(struct lapic *lapic);
// Whether the vector that the PIC gives would go to this CPU.
bool lapic_takes_ext_int(const struct lapic *lapic);
// Notes ESR bits that LVT_ERROR then tells of. Any CPU.
void lapic_error(struct lapic *lapic, u32 bits);

u32 lapic_reg_read(const struct lapic *lapic, u32 reg); // of the registers that can be read
void lapic_reg_write(struct lapic *lapic, u32 reg, u32 value);
void lapic_update_ppr(struct lapic *lapic);

// --- lapic_accel.c (and in nestor/device.h): own pCPU, but lapic_tpr ---
u32 lapic_tpr(const struct lapic *lapic);
void lapic_post_fixed(struct lapic *lapic, u8 vector); // to apic.posted; any CPU
void lapic_accel_choose(struct lapic *lapic);          // apic_base or SVR has changed
// With in_page: the guest's reads find what a write of `reg` has changed.
void lapic_show_written(const struct lapic *lapic, u32 reg);
void lapic_accel_reset(struct lapic *lapic);

// Whether a vector is requested and not yet taken. Any CPU.
bool lapic_waits(const struct lapic *lapic, u8 vector);

// --- lapic_timer.c: all on the vCPU's own pCPU ---
void lapic_timer_init(struct lapic *lapic);
void lapic_timer_write_initial(struct lapic *lapic, u32 count);
void lapic_timer_write_divide(struct lapic *lapic, u32 divide);
void lapic_timer_write_lvt(struct lapic *lapic, u32 lvt);
void lapic_timer_write_deadline(struct lapic *lapic, u64 deadline);
u32 lapic_timer_current(const struct lapic *lapic);

// --- apic_bus.c: any CPU, no lock needed --- Sends a message to whom it names; `sender` is NULL
// for the IOAPIC. Returns whether anybody took it.
bool apic_bus_send(struct machine *machine, const struct apic_message *message,
                   struct lapic *sender);
// What a write of the ICR does.
void apic_bus_send_icr(struct lapic *sender, u32 low, u32 dest);
