// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The keyboard controller, without a keyboard or a mouse. Under the machine's lock.

#pragma once

#include <nestor/types.h>

struct machine;
struct vcpu;

struct i8042_state {
    u8 command_byte;
    u8 output_port;
    u8 pending;   // the command whose data byte is awaited, 0: none
    bool full;    // the output buffer holds `data`
    bool aux;     // ... from the mouse port
    bool timeout; // ... and it says that no device answered
    u8 data;
};

struct i8042 {
    struct i8042_state s;
    struct machine *machine;
};

void i8042_reset(struct i8042 *i8042);
void i8042_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value);
