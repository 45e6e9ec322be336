// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The 16550A UART (National Semiconductor PC16550D data sheet). A byte takes no time: the
// transmitter is always empty again, and input below the FIFO's trigger level has always waited
// long enough for the character timeout. Input is taken from the physical port only as fast as the
// guest reads.

#include "uart.h"

#include <nestor/host.h>

enum { IER_RX = 1, IER_THRE = 2, IER_LINE = 4, IER_MODEM = 8 };
enum { IIR_NONE = 1, IIR_MODEM = 0, IIR_THRE = 2, IIR_RX = 4, IIR_LINE = 6, IIR_TIMEOUT = 12 };
enum { FCR_ENABLE = 1, FCR_CLEAR_RX = 2 };
enum { LCR_DLAB = 0x80 };
enum { MCR_OUT2 = 0x08, MCR_LOOP = 0x10 };
enum { LSR_READY = 0x01, LSR_OVERRUN = 0x02, LSR_ERRORS = 0x1e, LSR_EMPTY = 0x60 };
enum { MSR_CONNECTED = 0xb0 }; // DCD, DSR, CTS

static bool uart_has_fifo(const struct uart *uart)
{
    return uart->s.fcr & FCR_ENABLE;
}

static unsigned uart_trigger(const struct uart *uart)
{
    static const u8 levels[4] = {1, 4, 8, 14};

    return uart_has_fifo(uart) ? levels[uart->s.fcr >> 6] : 1;
}

static u8 uart_interrupt_id(const struct uart *uart)
{
    const struct uart_state *s = &uart->s;

    if (s->ier & IER_LINE && s->line_errors)
        return IIR_LINE;
    if (s->ier & IER_RX && s->rx_count)
        return s->rx_count >= uart_trigger(uart) ? IIR_RX : IIR_TIMEOUT;
    if (s->ier & IER_THRE && s->thre_pending)
        return IIR_THRE;
    if (s->ier & IER_MODEM && s->modem_delta)
        return IIR_MODEM;
    return IIR_NONE;
}

static void uart_update(struct uart *uart)
{
    // OUT2 gates the interrupt on a PC; in loopback mode it is disconnected.
    bool wired = (uart->s.mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2;

    irq_line_set(&uart->irq, wired && uart_interrupt_id(uart) != IIR_NONE);
}

static void uart_receive(struct uart *uart, u8 byte)
{
    struct uart_state *s = &uart->s;

    if (s->rx_count == (uart_has_fifo(uart) ? UART_FIFO : 1)) {
        s->line_errors |= LSR_OVERRUN;
        if (!uart_has_fifo(uart)) // the receiver buffer is overwritten, the FIFO is not
            s->rx[s->rx_first] = byte;
        return;
    }
    s->rx[(s->rx_first + s->rx_count++) % UART_FIFO] = byte;
}

static void uart_fill(struct uart *uart)
{
    unsigned room = uart_has_fifo(uart) ? UART_FIFO : 1;
    u8 byte;

    while (uart->input_waiting && !(uart->s.mcr & MCR_LOOP) && uart->s.rx_count < room) {
        uart->input_waiting = console_rx(&byte);
        if (uart->input_waiting)
            uart_receive(uart, byte);
    }
}

void uart_input(struct uart *uart)
{
    uart->input_waiting = uart->console;
    uart_fill(uart);
    uart_update(uart);
}

static u8 uart_read_data(struct uart *uart)
{
    struct uart_state *s = &uart->s;
    u8 byte = s->rx[s->rx_first];

    if (!s->rx_count)
        return 0;
    s->rx_first = (u8)((s->rx_first + 1) % UART_FIFO);
    s->rx_count--;
    if (!s->rx_count)
        uart_fill(uart);
    return byte;
}

static void uart_write_data(struct uart *uart, u8 byte)
{
    // The interrupt goes away with the byte that is written and comes again once it is sent: an
    // edge.
    uart->s.thre_pending = false;
    uart_update(uart);
    uart->s.thre_pending = true;
    if (uart->s.mcr & MCR_LOOP)
        uart_receive(uart, byte);
    else if (uart->console)
        console_tx(byte);
}

static u8 uart_modem_lines(const struct uart *uart)
{
    u8 mcr = uart->s.mcr;

    if (!(mcr & MCR_LOOP))
        return MSR_CONNECTED;
    // DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD
    return (u8)((mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4);
}

static void uart_write_mcr(struct uart *uart, u8 value)
{
    u8 before = uart_modem_lines(uart), after;

    uart->s.mcr = value & 0x1f;
    after = uart_modem_lines(uart);
    uart->s.modem_delta |= (before ^ after) >> 4 & 0x0b;
    uart->s.modem_delta |= (before & ~after) >> 4 & 0x04; // RI tells of its trailing edge only
    uart_fill(uart);
}

static void uart_write_ier(struct uart *uart, u8 value)
{
    if (value & ~uart->s.ier & IER_THRE)
        uart->s.thre_pending = true;
    uart->s.ier = value & 0x0f;
}

static void uart_write_fcr(struct uart *uart, u8 value)
{
    if (value & FCR_CLEAR_RX || (value ^ uart->s.fcr) & FCR_ENABLE)
        uart->s.rx_count = 0;
    uart->s.fcr = value & FCR_ENABLE ? value & 0xc9 : 0;
    uart_fill(uart);
}

static u8 uart_read_iir(struct uart *uart)
{
    u8 id = uart_interrupt_id(uart);

    if (id == IIR_THRE)
        uart->s.thre_pending = false;
    return (u8)(id | (uart_has_fifo(uart) ? 0xc0 : 0));
}

static u8 uart_read_lsr(struct uart *uart)
{
    u8 lsr;

    uart_fill(uart);
    lsr = (u8)(LSR_EMPTY | (uart->s.line_errors & LSR_ERRORS) | (uart->s.rx_count ? LSR_READY : 0));
    uart->s.line_errors = 0;
    return lsr;
}

static u8 uart_read_msr(struct uart *uart)
{
    u8 msr = uart_modem_lines(uart) | uart->s.modem_delta;

    uart->s.modem_delta = 0;
    return msr;
}

static u8 uart_read(struct uart *uart, unsigned reg)
{
    bool dlab = uart->s.lcr & LCR_DLAB;

    switch (reg) {
    case 0:
        return dlab ? (u8)uart->s.divisor : uart_read_data(uart);
    case 1:
        return dlab ? (u8)(uart->s.divisor >> 8) : uart->s.ier;
    case 2:
        return uart_read_iir(uart);
    case 3:
        return uart->s.lcr;
    case 4:
        return uart->s.mcr;
    case 5:
        return uart_read_lsr(uart);
    case 6:
        return uart_read_msr(uart);
    default:
        return uart->s.scr;
    }
}

static void uart_write_divisor(struct uart *uart, unsigned reg, u8 value)
{
    u16 keep = uart->s.divisor & (reg ? 0x00ff : 0xff00);

    uart->s.divisor = (u16)(keep | value << (reg ? 8 : 0));
}

static void uart_write(struct uart *uart, unsigned reg, u8 value)
{
    if (reg < 2 && uart->s.lcr & LCR_DLAB) {
        uart_write_divisor(uart, reg, value);
        return;
    }
    switch (reg) {
    case 0:
        uart_write_data(uart, value);
        break;
    case 1:
        uart_write_ier(uart, value);
        break;
    case 2:
        uart_write_fcr(uart, value);
        break;
    case 3:
        uart->s.lcr = value;
        break;
    case 4:
        uart_write_mcr(uart, value);
        break;
    case 7:
        uart->s.scr = value;
        break;
    }
}

void uart_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value)
{
    struct uart *uart = device;

    (void)vcpu, (void)size;
    if (write)
        uart_write(uart, port & 7, (u8)*value);
    else
        *value = uart_read(uart, port & 7);
    uart_update(uart);
}

void uart_reset(struct uart *uart)
{
    uart->s = (struct uart_state){.divisor = 12};
    uart->input_waiting = uart->console;
    uart_update(uart);
}
