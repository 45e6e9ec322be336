// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Interrupt messages between local APICs and from the IOAPIC: finding the destination (SDM vol. 3
// "Determining IPI Destination", "x2APIC" destinations) and the interrupt command register.

#include "lapic.h"
#include "machine.h"

#include <arch/x86/msr.h>
#include <nestor/vcpu.h>
#include <nestor/vm.h>

#define ICR_LOGICAL BIT(11)
#define ICR_ASSERT  BIT(14)
#define ICR_LEVEL   BIT(15)

enum { SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS };
enum { ESR_SEND_ILLEGAL_VECTOR = BIT(5) };

static bool apic_message_is_broadcast(const struct apic_message *message)
{
    return message->dest == (message->wide ? ~0u : 0xffu);
}

static bool apic_matches_xapic(const struct lapic *lapic, u32 mda)
{
    u32 id = lapic->s.ldr >> 24;

    if (lapic->s.dfr >> 28 == 0xf)
        return (id & mda) != 0;
    return id >> 4 == mda >> 4 && (id & mda & 0xf);
}

static bool apic_matches_logical(const struct lapic *lapic, const struct apic_message *message)
{
    u32 dest = message->dest, ldr = lapic->s.ldr;

    // A flat xAPIC is addressed by all the bits of its MDA, 0xff included.
    if (lapic_mode(lapic) == APIC_XAPIC)
        return dest <= 0xff && (dest == 0xff || apic_matches_xapic(lapic, dest));
    return apic_message_is_broadcast(message) || (dest >> 16 == ldr >> 16 && (dest & ldr & 0xffff));
}

// One CPU by its ID, which is its vCPU's number unless the guest has changed it.
static bool apic_bus_send_physical(struct machine *machine, const struct apic_message *message,
                                   struct lapic *sender)
{
    struct vm *vm = machine->vm;
    struct lapic *lapic;

    if (message->dest >= vm->vcpu_count)
        return false;
    lapic = vm->vcpus[message->dest]->lapic;
    return lapic_accept(lapic, message, lapic == sender);
}

static u32 apic_physical_id(const struct lapic *lapic)
{
    if (lapic_mode(lapic) == APIC_X2APIC)
        return lapic->s.id;
    return __atomic_load_n(&lapic->s.xapic_id, __ATOMIC_SEQ_CST);
}

static bool apic_bus_matches(const struct lapic *lapic, const struct apic_message *message)
{
    if (!message->logical)
        return apic_message_is_broadcast(message) || message->dest == apic_physical_id(lapic);
    return apic_matches_logical(lapic, message);
}

static bool apic_bus_send_all(struct machine *machine, const struct apic_message *message,
                              struct lapic *sender)
{
    struct vm *vm = machine->vm;
    bool taken = false;

    for (u32 i = 0; i < vm->vcpu_count; i++) {
        struct lapic *lapic = vm->vcpus[i]->lapic;

        if (apic_bus_matches(lapic, message))
            taken |= lapic_accept(lapic, message, lapic == sender);
    }
    return taken;
}

// SDM "Lowest Priority Delivery": whoever has the lowest task priority; among equals they take
// turns.
static bool apic_bus_send_lowest(struct machine *machine, const struct apic_message *message,
                                 struct lapic *sender)
{
    struct vm *vm = machine->vm;
    struct lapic *best = NULL;
    u32 first = __atomic_load_n(&machine->lowest_turn, __ATOMIC_RELAXED);

    for (u32 n = 0; n < vm->vcpu_count; n++) {
        struct lapic *lapic = vm->vcpus[(first + n) % vm->vcpu_count]->lapic;

        if (!(lapic->s.apic_base & APIC_BASE_ENABLE) || !(lapic->s.svr & SVR_ENABLED) ||
            !apic_bus_matches(lapic, message))
            continue;
        if (!best || lapic_tpr(lapic) >> 4 < lapic_tpr(best) >> 4)
            best = lapic;
    }
    if (!best)
        return false;
    __atomic_store_n(&machine->lowest_turn, best->s.id + 1, __ATOMIC_RELAXED);
    return lapic_accept(best, message, best == sender);
}

bool apic_bus_send(struct machine *machine, const struct apic_message *message,
                   struct lapic *sender)
{
    if (message->mode == DELIVER_LOWEST)
        return apic_bus_send_lowest(machine, message, sender);
    if (!message->logical && !apic_message_is_broadcast(message) &&
        likely(!__atomic_load_n(&machine->renamed, __ATOMIC_SEQ_CST)))
        return apic_bus_send_physical(machine, message, sender);
    return apic_bus_send_all(machine, message, sender);
}

static void apic_bus_send_others(struct lapic *sender, const struct apic_message *message)
{
    struct vm *vm = sender->machine->vm;

    for (u32 i = 0; i < vm->vcpu_count; i++)
        if (vm->vcpus[i]->lapic != sender)
            lapic_accept(vm->vcpus[i]->lapic, message, false);
}

static bool icr_is_sendable(struct lapic *sender, u32 low)
{
    u32 mode = low >> 8 & 7;

    // INIT level de-assert has had no effect since the Pentium 4.
    if (mode == DELIVER_INIT && (low & (ICR_LEVEL | ICR_ASSERT)) == ICR_LEVEL)
        return false;
    if (mode == DELIVER_RESERVED || mode == DELIVER_EXTINT)
        return false;
    if (mode <= DELIVER_LOWEST && (low & 0xff) < 16) {
        lapic_error(sender, ESR_SEND_ILLEGAL_VECTOR);
        return false;
    }
    return true;
}

void apic_bus_send_icr(struct lapic *sender, u32 low, u32 dest)
{
    // IPIs are edge-triggered whatever bit 15 says (SDM: only INIT de-assert has a level).
    struct apic_message message = {
        .dest = dest,
        .mode = low >> 8 & 7,
        .vector = (u8)low,
        .logical = low & ICR_LOGICAL,
        .wide = lapic_mode(sender) == APIC_X2APIC,
    };

    if (!icr_is_sendable(sender, low))
        return;
    switch (low >> 18 & 3) {
    case SHORTHAND_NONE:
        apic_bus_send(sender->machine, &message, sender);
        return;
    case SHORTHAND_SELF:
        lapic_accept(sender, &message, true);
        return;
    case SHORTHAND_ALL:
        lapic_accept(sender, &message, true);
        break;
    case SHORTHAND_OTHERS:
        break;
    }
    apic_bus_send_others(sender, &message);
}
