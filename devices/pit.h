// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The 8254 interval timer and port 61h, under the machine's lock. Times are in ticks of the 8254's
// clock since the machine was created.

#pragma once

#include "line.h"

#include <nestor/time.h>
#include <nestor/types.h>

struct machine;
struct vcpu;

#define PIT_HZ 1193182ull

struct pit_channel {
    u8 mode;   // 0..5
    u8 access; // 1 low byte, 2 high byte, 3 both
    bool bcd;
    bool loaded;      // a count was written since the control word
    bool gate;        // the GATE input
    bool triggered;   // modes 1 and 5: GATE has risen since
    bool write_high;  // the next written byte is the high one
    bool read_high;   // the same for reads
    u8 write_low;     // the low byte that waits for its high one
    u8 latched_bytes; // of `latch`, that have not been read
    bool status_latched;
    u8 status;
    u16 latch;
    u16 reload;      // as written
    u16 next_reload; // modes 1, 2, 3, 5: takes over at `switch_at`
    u64 switch_at;   // ~0: none waits
    u64 start;       // when the count was loaded
    u64 paused;      // modes 0 and 4 with GATE low: how far the count had come
};

struct pit_state {
    struct pit_channel channel[3];
    u8 port61;
    u64 edge; // channel 0's, that the timer waits for
    u64 owed; // edges that the guest has not seen because the timer came late
};

struct pit {
    struct pit_state s;
    struct irq_line irq; // channel 0's OUT
    struct machine *machine;
    struct timer timer;
};

void pit_init(struct pit *pit, struct machine *machine);
void pit_reset(struct pit *pit);
void pit_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value);
void pit_port61_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                    u32 *value);
