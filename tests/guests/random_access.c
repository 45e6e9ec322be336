// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Random accesses of all widths to ports, MSRs, the local APIC, the IOAPIC, PCI configuration space
// (0CF8h and ECAM), devices' memory and addresses where nobody is, from a fixed seed. Nothing that
// they do may harm anybody but this guest; that it still runs afterwards is its report. Words on
// the command line: count=N (50,000), seed=N (1).
//
// What ends a guest by design, or destroys its memory at its own command, is left out, see the
// functions called spare_*: resets (0CF9h, 92h, the keyboard controller), power-off (PM1 control,
// the test device's exit and sleep ports), INIT to this CPU, the local APIC moved over RAM, and the
// addresses that paravirtual MSRs are given, which are led to a page kept for them.

#include "guest.h"
#include "random.h"

enum { PORT_COM1 = 0x3f8, RAM_END = 0x8000000, WINDOW_EVERY = 64, PIC_BASE = 0xf0 };

static u32 faults, nmis, interrupts;
static u8 buffer[64] ALIGNED(64);
static u8 *shared; // where paravirtual MSRs may point
static u32 kinds[8];

// --- ports ---

static const struct {
    u16 first, last;
} known_ports[] = {
    {0x20, 0x21},   {0x40, 0x43},   {0x60, 0x61},     {0x64, 0x64},     {0x70, 0x71},
    {0x80, 0x80},   {0x92, 0x92},   {0xa0, 0xa1},     {0xe0, 0xe9},     {0xf0, 0xff},
    {0x3f8, 0x3ff}, {0x4d0, 0x4d1}, {0x510, 0x511},   {0x600, 0x60f},   {0xcf8, 0xcff},
    {0xcf8, 0xcff}, {0xcf8, 0xcff}, {0xc000, 0xc0ff}, {0x2000, 0x2017}, {0x4000, 0x4007},
};

static u16 random_port(void)
{
    u32 row = below(ARRAY_SIZE(known_ports));

    if (below(4) == 0)
        return (u16)random_u64();
    return (u16)(known_ports[row].first - 2 +
                 below(known_ports[row].last - known_ports[row].first + 4u));
}

// Writes whose bytes reach these ports are left out.
static const u16 spared_ports[] = {0x60,  0x64,  0x92,  0xf4,   0xf5,   0xf6,  0xf7,
                                   0x604, 0x605, 0xcf9, 0x4004, 0x4005, 0x8900};

static bool spare_port(u16 port, unsigned size)
{
    if (port == 0xcf8 && size == 4)
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(spared_ports); i++)
        if ((u16)(spared_ports[i] - port) < size)
            return true;
    return false;
}

// The spared ones in harmless ways: the keyboard controller's commands but for its output port and
// its pulses, A20, PM1 control without SLP_EN.
static void harmless_port(void)
{
    u8 command = (u8)random_u64();

    if (command < 0xf0 && command != 0xd1)
        out8(0x64, command);
    out8(0x92, (u8)(random_u64() & ~1ull));
    out16(0x604, (u16)(random_u64() & ~0x2000ull));
}

static void port_write(u16 port, unsigned size, u32 value)
{
    const void *from = buffer;
    u64 count = 1 + below(4);

    if (below(8) == 0 && size == 4)
        __asm__ volatile("rep outsl" : "+S"(from), "+c"(count) : "d"(port) : "memory");
    else if (below(8) == 0 && size == 1)
        __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(port) : "memory");
    else if (size == 1)
        out8(port, (u8)value);
    else if (size == 2)
        out16(port, (u16)value);
    else
        out32(port, value);
}

static void port_read(u16 port, unsigned size)
{
    void *to = buffer;
    u64 count = 1 + below(4);

    if (below(8) == 0 && size == 2)
        __asm__ volatile("rep insw" : "+D"(to), "+c"(count) : "d"(port) : "memory");
    else if (below(8) == 0 && size == 1)
        __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(port) : "memory");
    else if (size == 1)
        in8(port);
    else if (size == 2)
        in16(port);
    else
        in32(port);
}

static void access_port(void)
{
    u16 port = random_port();
    unsigned size = 1u << below(3);

    if (below(64) == 0)
        harmless_port();
    if (below(2))
        port_read(port, size);
    else if (!spare_port(port, size))
        port_write(port, size, (u32)random_value());
}

// --- PCI configuration space ---

// Any register of any device, mostly one that is there; then bytes of it, moved BARs included.
static void access_pci(void)
{
    u32 address = below(4) ? (u32)random_u64() & 0x8fc : (u32)random_value();
    u16 port = (u16)(0xcfc + below(4));
    unsigned size = 1u << below(3);

    if (below(2))
        out32(0xcf8, address | (below(8) ? 0x80000000 : 0));
    if (below(2))
        port_read(port, size);
    else
        port_write(port, size, (u32)random_value());
}

// --- MSRs ---

struct msr_access {
    u32 msr;
    u64 value;
};

static void do_read(void *arg)
{
    struct msr_access *a = arg;

    a->value = msr_read(a->msr);
}

static void do_write(void *arg)
{
    const struct msr_access *a = arg;

    msr_write(a->msr, a->value);
}

static const struct {
    u32 first, size;
} msr_ranges[] = {
    {0x0, 0x1000},      {0x0, 0x200},        {0x800, 0x40},       {0x800, 0x40},
    {0xc0000080, 0x80}, {0xc0010000, 0x140}, {0x40000000, 0x100}, {0x4b564d00, 0x20},
    {0x1b, 1},          {0x6e0, 1},          {0x10, 1},           {0x48, 2},
};

static u32 random_msr(void)
{
    u32 row = below(ARRAY_SIZE(msr_ranges));

    return below(8) ? msr_ranges[row].first + below(msr_ranges[row].size) : (u32)random_u64();
}

// No delivery mode INIT in any byte: local APIC, IOAPIC.
static u64 spare_init(u64 value)
{
    for (unsigned shift = 0; shift < 64; shift += 8)
        if ((value >> shift & 7) == 5)
            value ^= 1ull << shift;
    return value;
}

static u64 spare_msr(u32 msr, u64 value)
{
    if (msr == MSR_APIC_BASE)
        return APIC_BASE | (value & 0xfff);
    if (msr - 0x800 < 0x100)
        return spare_init(value);
    if ((msr & 0xffffff00) == 0x4b564d00 || msr == 0x11 || msr == 0x12)
        return (u64)shared | (value & 0x3f);
    return value;
}

static void access_msr(void)
{
    struct msr_access a = {.msr = random_msr()};

    if (below(2)) {
        faults += try(do_read, &a) != NO_TRAP;
        return;
    }
    a.value = spare_msr(a.msr, random_value());
    faults += try(do_write, &a) != NO_TRAP;
}

// --- memory ---

static u64 random_address(void)
{
    switch (below(10)) {
    case 0 ... 2:
        return APIC_BASE + (below(4) ? below(0x40) * 16 : below(PAGE_SIZE - 8));
    case 3 ... 4:
        return 0xfec00000 + (below(4) ? below(8) * 4 : below(PAGE_SIZE - 8));
    case 5:
        return 0xfeb00000 + (below(4) ? below(0x10000 - 8) : below(0x100000 - 8)); // ECAM
    case 6:
        return 0xc0000000 + below(2 * PAGE_SIZE); // the PCI test device
    case 7:
        return 0xff000000 + below(0x10000 + 16); // the test device
    case 8:
        return 0xa0000 + below(0x20000 - 8); // VGA
    default:
        return RAM_END + below(~0u - RAM_END - 8);
    }
}

#define WRITE(at, size, value) *(volatile size *)(at) = (size)(value)
#define READ(at, size)         (void)*(volatile size *)(at)

static void memory_write(u64 at, u64 value)
{
    const void *from = buffer;
    void *to = (void *)at;
    u64 count = 2;

    switch (below(8)) {
    case 0:
        WRITE(at, u8, value);
        break;
    case 1:
        WRITE(at, u16, value);
        break;
    case 2:
        WRITE(at, u64, value);
        break;
    case 3:
        __asm__ volatile("xchg %0, %1" : "+r"(value), "+m"(*(u32 *)at));
        break;
    case 4:
        __asm__ volatile("rep movsb" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
        break;
    default:
        WRITE(at, u32, value);
    }
}

static void memory_read(u64 at)
{
    const void *from = (void *)at;
    void *to = buffer;
    u64 count = 2;

    switch (below(8)) {
    case 0:
        READ(at, u8);
        break;
    case 1:
        READ(at, u16);
        break;
    case 2:
        READ(at, u64);
        break;
    case 3:
        __asm__ volatile("rep movsl" : "+S"(from), "+D"(to), "+c"(count) : : "memory");
        break;
    default:
        READ(at, u32);
    }
}

static void access_memory(void)
{
    u64 at = random_address();

    if (below(2))
        memory_read(at);
    else
        memory_write(at, spare_init(random_value()));
}

// --- interrupts ---

static void on_nmi(struct trap *trap)
{
    (void)trap;
    nmis++;
}

static void end_of_interrupt(void *unused)
{
    (void)unused;
    if (msr_read(MSR_APIC_BASE) & APIC_BASE_X2APIC)
        msr_write(MSR_X2APIC_FIRST + APIC_EOI / 16, 0);
    else
        *(volatile u32 *)(u64)(APIC_BASE + APIC_EOI) = 0;
}

// One is taken, the next waits for the next window: a level line may ask for ever.
static void on_interrupt(struct trap *trap)
{
    interrupts++;
    trap->rflags &= ~RFLAGS_IF;
    try(end_of_interrupt, NULL);
}

// Timers that want more interrupts than an emulator's CPU can take would leave no time for more.
static void quiet_timers(void)
{
    apic_enable();
    apic_write(APIC_TIMER_INITIAL, 0);
    out8(0x43, 0x34); // channel 0, mode 2, the longest period
    out8(0x40, 0);
    out8(0x40, 0);
}

// The PIC's vectors and those of priority class 2 and less, which exceptions have, are kept out.
static void interrupt_window(void)
{
    static const u8 setup[][2] = {
        {0x20, 0x11}, {0x21, PIC_BASE},     {0x21, 4}, {0x21, 1}, {0x21, 0},
        {0xa0, 0x11}, {0xa1, PIC_BASE + 8}, {0xa1, 2}, {0xa1, 1}, {0xa1, 0}};

    for (size_t i = 0; i < ARRAY_SIZE(setup); i++)
        out8(setup[i][0], setup[i][1]);
    quiet_timers();
    if (below(2)) // something to take
        apic_icr(0, ICR_SELF | (below(4) ? 0x30 + below(0xc0) : ICR_NMI));
    __asm__ volatile("mov %0, %%cr8" : : "r"(2ull));
    sti();
    cli();
    out8(0x20, 0x20);
    out8(0xa0, 0x20);
}

// --- all of it ---

static void access(void)
{
    static void (*const fns[])(void) = {access_port,   access_port,   access_pci, access_msr,
                                        access_memory, access_memory, access_msr};
    u32 kind = below(ARRAY_SIZE(fns));

    kinds[kind]++;
    fns[kind]();
}

// The console as it was, whatever has been written to it.
static void console_again(void)
{
    static const u8 setup[][2] = {{3, 0x83}, {0, 1}, {1, 0}, {3, 3}, {2, 7}, {4, 3}};

    for (size_t i = 0; i < ARRAY_SIZE(setup); i++)
        out8((u16)(PORT_COM1 + setup[i][0]), setup[i][1]);
    print("\n");
}

void guest_main(void)
{
    u64 count = number("count=", 50000), seed = number("seed=", 1), done = 0;

    random_seed(seed);
    shared = pages(1);
    trap_handlers[VECTOR_NMI] = on_nmi;
    for (unsigned vector = 0x30; vector < 256; vector++)
        trap_handlers[vector] = on_interrupt;
    for (; done < count; done++) {
        access();
        if (done % WINDOW_EVERY == 0)
            interrupt_window();
    }
    console_again();
    report(done == count, "%llu random accesses from seed %llu", (unsigned long long)count,
           (unsigned long long)seed);
    report(faults > 0, "%u faults", faults);
    report(interrupts > 0, "%u interrupts, %u NMIs", interrupts, nmis);
}
