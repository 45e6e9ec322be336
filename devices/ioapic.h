// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The I/O APIC: 24 pins, under the machine's lock.

#pragma once

#include <nestor/time.h>
#include <nestor/types.h>

struct machine;
struct vcpu;

enum { IOAPIC_PINS = 24 };
#define IOAPIC_BASE 0xfec00000ull

struct ioapic_state {
    u64 entry[IOAPIC_PINS];
    u32 lines; // the pins' levels
    u8 id, select;
    u8 repeats[IOAPIC_PINS]; // how often a level came again since the line rose
};

struct ioapic {
    struct ioapic_state s;
    struct machine *machine;
    struct timer timer; // for levels that come again too often
};

void ioapic_init(struct ioapic *ioapic, struct machine *machine);
void ioapic_reset(struct ioapic *ioapic);
// The vector of an edge-triggered pin, -1 if it is masked or level-triggered.
int ioapic_edge_vector(const struct ioapic *ioapic, unsigned pin);
void ioapic_set_pin(void *ioapic, unsigned pin, bool level);
// A CPU ended a level-triggered vector. Takes the machine's lock.
void ioapic_eoi_broadcast(struct machine *machine, u8 vector);
void ioapic_mmio(void *device, struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write, u64 *value);
