// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A 16550A serial port, under the machine's lock.

#pragma once

#include "line.h"

#include <nestor/types.h>

struct vcpu;

enum { UART_FIFO = 16 };

struct uart_state {
    u8 ier, fcr, lcr, mcr, scr;
    u8 line_errors; // LSR bits that stay until the LSR is read
    u8 modem_delta; // MSR bits 3:0
    u16 divisor;
    bool thre_pending; // the transmitter-empty interrupt has not been seen yet
    u8 rx[UART_FIFO];
    u8 rx_first, rx_count;
};

struct uart {
    struct uart_state s;
    struct irq_line irq;
    bool console;       // it is wired to the machine's physical COM1
    bool input_waiting; // the physical port may have more
};

void uart_reset(struct uart *uart);
// The physical port has input: takes what fits.
void uart_input(struct uart *uart);
void uart_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value);
