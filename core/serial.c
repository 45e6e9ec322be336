// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The machine's two 16550 serial ports: COM1 carries the guest's console, COM2 the log; on a
// machine with one, both share it. Input on COM1 comes by IRQ 4, or is polled where that does not
// work.

#include <arch/x86/insn.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/spinlock.h>
#include <nestor/time.h>

enum { // registers
    UART_DATA = 0,
    UART_IER = 1,
    UART_IIR = 2,
    UART_FCR = 2,
    UART_LCR = 3,
    UART_MCR = 4,
    UART_LSR = 5,
    UART_SCRATCH = 7,
};

enum {
    IER_RX = 1,
    IER_TX = 2,
    LSR_DATA = 1,
    LSR_THRE = 0x20,
    LSR_IDLE = 0x40,
    FIFO_SIZE = 16,
    COM1_IRQ = 4
};
enum { TX_POLLS = 100000, POLL_US = 10000 };

struct serial {
    u16 base;
    bool present;
    bool stuck; // it did not send in time: don't wait for it again. Under lock, as room is
    u8 room;    // bytes that certainly fit into the FIFO
    u8 fifo;
    u8 last; // byte sent
    struct spinlock lock;
};

static struct serial ports[SERIAL_COUNT] = {{.base = 0x3f8}, {.base = 0x2f8}};

static void (*input_fn)(void);
static bool input_by_irq; // boot CPU only
static u32 input_irqs;
static struct timer input_timer;

// 115200 baud, 8N1, FIFOs on.
static INIT_TEXT void port_init(struct serial *port)
{
    u16 base = port->base;

    out8((u16)(base + UART_SCRATCH), 0x5a);
    if (in8((u16)(base + UART_SCRATCH)) != 0x5a || in8((u16)(base + UART_LSR)) == 0xff)
        return;
    out8((u16)(base + UART_IER), 0);
    out8((u16)(base + UART_LCR), 0x80);
    out8((u16)(base + UART_DATA), 1);
    out8((u16)(base + UART_IER), 0);
    out8((u16)(base + UART_LCR), 3);
    out8((u16)(base + UART_FCR), 7);
    out8((u16)(base + UART_MCR), 0x0b); // DTR, RTS, OUT2: the interrupt's gate
    port->fifo = in8((u16)(base + UART_IIR)) >> 6 == 3 ? FIFO_SIZE : 1;
    port->present = true;
}

INIT_TEXT void serial_init(void)
{
    port_init(&ports[SERIAL_COM1]);
    port_init(&ports[SERIAL_COM2]);
}

bool serial_present(enum serial_index port)
{
    return ports[port].present;
}

bool serial_in_line(enum serial_index port)
{
    return ports[port].last && ports[port].last != '\n';
}

// How long a full transmitter is waited for: a tenth of a second, 100 characters' time at 9,600
// baud.
static u64 tx_deadline(const struct serial *port)
{
    enum { TICKS_BEFORE_CALIBRATION = 300000000 };

    if (port->stuck)
        return 0;
    return tsc_now() + (tsc_hz ? tsc_hz / 10 : TICKS_BEFORE_CALIBRATION);
}

static void send(struct serial *port, u8 byte)
{
    u64 deadline = tx_deadline(port);

    if (port->room == 0) {
        while (!(in8((u16)(port->base + UART_LSR)) & LSR_THRE)) {
            port->stuck = tsc_now() >= deadline;
            if (port->stuck)
                return;
            __builtin_ia32_pause();
        }
        port->stuck = false;
        port->room = port->fifo;
    }
    port->room--;
    port->last = byte;
    out8(port->base, byte);
}

void serial_write_panic(enum serial_index port, const char *text, size_t len)
{
    if (!ports[port].present)
        return;
    for (size_t i = 0; i < len; i++)
        send(&ports[port], (u8)text[i]);
}

void serial_flush(void)
{
    for (u32 i = 0; i < SERIAL_COUNT; i++)
        for (u32 polls = TX_POLLS; ports[i].present && !ports[i].stuck && polls > 0; polls--)
            if (in8((u16)(ports[i].base + UART_LSR)) & LSR_IDLE)
                break;
}

void serial_write(enum serial_index port, const char *text, size_t len)
{
    spin_lock(&ports[port].lock);
    serial_write_panic(port, text, len);
    spin_unlock(&ports[port].lock);
}

void console_tx(u8 byte)
{
    serial_write(SERIAL_COM1, (const char *)&byte, 1);
}

static bool input_waits(void)
{
    const struct serial *port = &ports[SERIAL_COM1];

    return port->present && (in8((u16)(port->base + UART_LSR)) & LSR_DATA);
}

bool console_rx(u8 *byte)
{
    if (!input_waits())
        return false;
    *byte = in8(ports[SERIAL_COM1].base);
    return true;
}

void console_on_rx(void (*fn)(void))
{
    __atomic_store_n(&input_fn, fn, __ATOMIC_RELEASE);
}

// Input that its reader leaves in the FIFO makes no new edge: it is offered again by the timer.
static void offer_input(void)
{
    void (*fn)(void) = __atomic_load_n(&input_fn, __ATOMIC_ACQUIRE);

    if (fn && input_waits())
        fn();
    if (!input_by_irq || input_waits())
        timer_arm(&input_timer, this_cpu()->id, tsc_now() + ns_to_tsc(POLL_US * 1000ull));
}

static void input_irq(void)
{
    input_irqs++;
    (void)in8((u16)(ports[SERIAL_COM1].base + UART_IIR));
    offer_input();
}

static void input_poll(struct timer *timer)
{
    (void)timer;
    offer_input();
}

// An empty transmitter interrupts at once when its interrupt is allowed: so one sees whether
// interrupts come at all.
static INIT_TEXT bool irq_works(u16 base)
{
    u64 end = tsc_now() + ns_to_tsc(2000000);

    out8((u16)(base + UART_IER), IER_TX);
    __asm__ volatile("sti");
    while (__atomic_load_n(&input_irqs, __ATOMIC_RELAXED) == 0 && tsc_now() < end)
        __builtin_ia32_pause();
    __asm__ volatile("cli");
    out8((u16)(base + UART_IER), IER_RX);
    return input_irqs != 0;
}

INIT_TEXT void serial_start_input(void)
{
    u16 base = ports[SERIAL_COM1].base;

    if (!ports[SERIAL_COM1].present)
        return;
    input_timer.fn = input_poll;
    input_by_irq = true; // or the trial's interrupt arms the timer
    irq_register(HOST_VECTOR_COM1, input_irq);
    input_by_irq =
        irq_route_isa(COM1_IRQ, HOST_VECTOR_COM1, this_cpu()->apic_id) == 0 && irq_works(base);
    log_debug("COM1 input: %s", input_by_irq ? "IRQ 4" : "polled, its interrupt does not come");
    if (!input_by_irq) {
        out8((u16)(base + UART_IER), 0);
        offer_input();
    }
}
