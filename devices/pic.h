// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The pair of 8259A interrupt controllers. Everything under the machine's lock, but `intr`, which
// is written under it and read by anybody.

#pragma once

#include "line.h"

#include <nestor/types.h>

struct vcpu;

struct pic_chip {
    u8 irr, imr, isr;
    u8 lines; // the levels of IR0-7
    u8 elcr;  // 1: level-triggered
    u8 vector_base;
    u8 lowest;   // the IR with the lowest priority: 7 unless rotated
    u8 next_icw; // 2..4: which ICW is awaited, 0: none
    bool wants_icw4, single;
    bool auto_eoi, rotate_on_auto_eoi;
    bool special_mask, special_nested;
    bool read_isr, poll;
};

struct pic_state {
    struct pic_chip chip[2]; // master, slave
};

struct pic {
    struct pic_state s;
    struct irq_line out; // INTR
    u8 intr;             // its level
};

void pic_reset(struct pic *pic);
void pic_set_irq(struct pic *pic, unsigned irq, bool level); // 0..15 without 2
// The INTA cycles: returns the vector; that of IR7 if the request has gone (the chip's "spurious").
int pic_ack(struct pic *pic);
void pic_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value);
void pic_elcr_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value);
