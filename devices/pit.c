// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The 8254 programmable interval timer (Intel 8254 data sheet: modes 0 to 5, counter latch,
// read-back) and the PC's port 61h. Nothing ticks: counts and outputs are worked out from the
// elapsed time, and one timer waits for channel 0's next rising edge.
//
// On a PC an edge that finds the one before it not yet taken is lost. Here it may find it so
// because Nestor, or what Nestor runs on, was late; and edges may have passed unseen. As KVM does,
// both are made up for, four times as fast as they come and a second's worth at most, so that a
// clock that counts them does not drift. While one waits for the guest no other is tried before its
// time: what a slow guest lacks is not more exits. What the guest masks is lost.

#include "pit.h"
#include "clock.h"
#include "machine.h"

enum { PIT_MIN_TICKS = 12 };  // channel 0 costs at most one interrupt in 10 microseconds
enum { CATCH_UP = 4 };        // owed edges come so many times as fast as others, but
enum { OWED_MIN_TICKS = 60 }; // 50 microseconds apart: an exit too early is one more to catch up on
#define NO_SWITCH (~0ull)

static u64 pit_now(const struct pit *pit)
{
    return clock_ticks(machine_now() - pit->machine->start, PIT_HZ);
}

static bool mode_is_periodic(const struct pit_channel *c)
{
    return c->mode == 2 || c->mode == 3;
}

static bool mode_is_triggered(const struct pit_channel *c)
{
    return c->mode == 1 || c->mode == 5;
}

static u32 from_bcd(u16 bcd)
{
    return (bcd >> 12) * 1000u + (bcd >> 8 & 15) * 100u + (bcd >> 4 & 15) * 10u + (bcd & 15);
}

static u16 to_bcd(u32 n)
{
    return (u16)(n / 1000 % 10 << 12 | n / 100 % 10 << 8 | n / 10 % 10 << 4 | n % 10);
}

static u32 channel_modulus(const struct pit_channel *c)
{
    return c->bcd ? 10000 : 65536;
}

static u32 channel_count(const struct pit_channel *c)
{
    u32 count = c->bcd ? from_bcd(c->reload) : c->reload;

    return count ? count : channel_modulus(c);
}

static u64 channel_elapsed(const struct pit_channel *c, u64 now)
{
    return !c->gate && !mode_is_triggered(c) ? c->paused : now - c->start;
}

// Lets a count that waited for the end of the period take over.
static void channel_settle(struct pit_channel *c, u64 now)
{
    if (c->switch_at > now)
        return;
    c->start = c->switch_at;
    c->reload = c->next_reload;
    c->switch_at = NO_SWITCH;
}

static u16 channel_value(const struct pit_channel *c, u64 now)
{
    u64 n = channel_count(c), elapsed = channel_elapsed(c, now), value = n;

    if (c->loaded && mode_is_periodic(c))
        value = c->mode == 2 ? n - elapsed % n : (n - elapsed * 2 % n) & ~1ull;
    else if (c->loaded && (c->triggered || !mode_is_triggered(c)))
        value = n - elapsed;
    // Counts that have gone below zero wrap around.
    if (c->bcd)
        return to_bcd((u32)((value + (elapsed / 10000 + 1) * 10000) % 10000));
    return (u16)value;
}

static bool channel_out(const struct pit_channel *c, u64 now)
{
    u64 n = channel_count(c), elapsed = channel_elapsed(c, now);

    if (!c->loaded)
        return c->mode != 0;
    if (mode_is_triggered(c) && !c->triggered)
        return true;
    if (mode_is_periodic(c) && !c->gate)
        return true;
    switch (c->mode) {
    case 0:
    case 1:
        return elapsed >= n;
    case 2:
        return elapsed % n != n - 1;
    case 3:
        return elapsed % n < (n + 1) / 2;
    default:
        return elapsed != n;
    }
}

// --- channel 0's interrupt ---

// The next rising edge of OUT after `now`, ~0 if none will come by itself.
static u64 channel_next_edge(const struct pit_channel *c, u64 now)
{
    u64 n = channel_count(c), elapsed = now - c->start;

    if (!c->loaded || mode_is_triggered(c) || !c->gate)
        return ~0ull;
    if (c->switch_at != NO_SWITCH)
        return c->switch_at;
    if (mode_is_periodic(c))
        return c->start + (elapsed / n + 1) * n;
    return elapsed < n ? c->start + n : ~0ull;
}

static void pit_arm(struct pit *pit, bool waits)
{
    u64 now = pit_now(pit), edge = channel_next_edge(&pit->s.channel[0], now);

    pit->s.edge = edge;
    if (edge == ~0ull) {
        timer_cancel(&pit->timer);
        return;
    }
    if (unlikely(pit->s.owed) && !waits)
        edge = MIN(edge, now + MAX(channel_count(&pit->s.channel[0]) / CATCH_UP, OWED_MIN_TICKS));
    edge = MAX(edge, now + PIT_MIN_TICKS);
    machine_timer_arm(pit->machine, &pit->timer, pit->machine->start + clock_tsc(edge, PIT_HZ));
}

static void pit_pulse(struct pit *pit)
{
    const struct pit_channel *c = &pit->s.channel[0];

    if (c->mode)
        irq_line_set(&pit->irq, false);
    irq_line_set(&pit->irq, c->mode || channel_out(c, pit_now(pit)));
}

static u64 pit_owed_max(const struct pit *pit)
{
    const struct pit_channel *c = &pit->s.channel[0];
    u64 n = channel_count(c);

    return mode_is_periodic(c) && n >= CATCH_UP * PIT_MIN_TICKS ? PIT_HZ / n : 0;
}

// The edges between the one that was due and now.
static void pit_owe_missed(struct pit *pit, u64 now)
{
    u64 missed = (now - pit->s.edge) / channel_count(&pit->s.channel[0]);

    pit->s.owed = MIN(pit->s.owed + missed, pit_owed_max(pit));
}

static void pit_tick(struct pit *pit, u64 now)
{
    bool edge = now >= pit->s.edge, waits = machine_irq_waits(pit->machine, pit->irq.pin);

    if (edge)
        pit_owe_missed(pit, now);
    if (waits) {
        pit->s.owed = MIN(pit->s.owed + edge, pit_owed_max(pit));
    } else if (edge || pit->s.owed) { // else another CPU has programmed it anew in the meantime
        pit->s.owed -= !edge;
        pit_pulse(pit);
    }
    pit_arm(pit, waits);
}

static void pit_fire(struct timer *timer)
{
    struct pit *pit = CONTAINER_OF(timer, struct pit, timer);
    struct pit_channel *c = &pit->s.channel[0];
    u64 now;

    spin_lock(&pit->machine->lock);
    now = pit_now(pit);
    channel_settle(c, now);
    if (c->loaded)
        pit_tick(pit, now);
    spin_unlock(&pit->machine->lock);
}

static void channel_changed(struct pit *pit, struct pit_channel *c)
{
    if (c != &pit->s.channel[0])
        return;
    pit->s.owed = 0;
    irq_line_set(&pit->irq, channel_out(c, pit_now(pit)));
    pit_arm(pit, false);
}

// --- programming ---

static void channel_load(struct pit *pit, struct pit_channel *c, u16 reload)
{
    u64 now = pit_now(pit), n;

    channel_settle(c, now);
    if (c->loaded && mode_is_periodic(c) && c->gate) {
        n = channel_count(c);
        c->next_reload = reload;
        c->switch_at = c->start + ((now - c->start) / n + 1) * n;
    } else {
        // Modes 1 and 5 start at their trigger; until then the old count runs on.
        c->next_reload = reload;
        c->switch_at = mode_is_triggered(c) && c->triggered ? NO_SWITCH : now;
        channel_settle(c, now);
        c->paused = 0;
    }
    c->loaded = true;
    channel_changed(pit, c);
}

static void channel_write(struct pit *pit, struct pit_channel *c, u8 value)
{
    if (c->access == 1) {
        channel_load(pit, c, value);
    } else if (c->access == 2) {
        channel_load(pit, c, (u16)(value << 8));
    } else if (!c->write_high) {
        c->write_low = value;
        c->write_high = true;
        if (c->mode == 0 && c->loaded) { // the first byte stops mode 0
            c->loaded = false;
            channel_changed(pit, c);
        }
    } else {
        c->write_high = false;
        channel_load(pit, c, (u16)(value << 8 | c->write_low));
    }
}

static void channel_latch(struct pit *pit, struct pit_channel *c)
{
    u64 now = pit_now(pit);

    if (c->latched_bytes)
        return;
    channel_settle(c, now);
    c->latch = channel_value(c, now);
    c->latched_bytes = c->access == 3 ? 2 : 1;
}

static void channel_latch_status(struct pit *pit, struct pit_channel *c)
{
    u64 now = pit_now(pit);
    bool null_count;

    if (c->status_latched)
        return;
    channel_settle(c, now);
    null_count = !c->loaded || c->switch_at != NO_SWITCH;
    c->status =
        (u8)(channel_out(c, now) << 7 | null_count << 6 | c->access << 4 | c->mode << 1 | c->bcd);
    c->status_latched = true;
}

static u8 latch_byte(struct pit_channel *c)
{
    u8 byte = (u8)(c->access == 2 || (c->access == 3 && c->latched_bytes == 1) ? c->latch >> 8
                                                                               : c->latch);

    c->latched_bytes--;
    return byte;
}

static u8 channel_read(struct pit *pit, struct pit_channel *c)
{
    u64 now = pit_now(pit);
    u16 value;
    bool high;

    if (c->status_latched) {
        c->status_latched = false;
        return c->status;
    }
    if (c->latched_bytes)
        return latch_byte(c);
    channel_settle(c, now);
    value = channel_value(c, now);
    high = c->access == 2 || (c->access == 3 && c->read_high);
    c->read_high = c->access == 3 && !c->read_high;
    return (u8)(high ? value >> 8 : value);
}

static void pit_read_back(struct pit *pit, u8 command)
{
    for (unsigned i = 0; i < 3; i++) {
        if (!(command & 2u << i))
            continue;
        if (!(command & 0x20))
            channel_latch(pit, &pit->s.channel[i]);
        if (!(command & 0x10))
            channel_latch_status(pit, &pit->s.channel[i]);
    }
}

static void pit_write_control(struct pit *pit, u8 command)
{
    struct pit_channel *c = &pit->s.channel[(command >> 6) % 3];

    if (command >> 6 == 3) {
        pit_read_back(pit, command);
        return;
    }
    if (!(command & 0x30)) {
        channel_latch(pit, c);
        return;
    }
    *c = (struct pit_channel){
        .gate = c->gate,
        .access = command >> 4 & 3,
        .mode = command >> 1 & (command & 4 ? 3 : 7), // x10b is mode 2, x11b mode 3
        .bcd = command & 1,
        .switch_at = NO_SWITCH,
        .start = pit_now(pit),
    };
    channel_changed(pit, c);
}

void pit_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value)
{
    struct pit *pit = device;
    unsigned n = port & 3;

    (void)vcpu, (void)size;
    if (write && n == 3)
        pit_write_control(pit, (u8)*value);
    else if (write)
        channel_write(pit, &pit->s.channel[n], (u8)*value);
    else if (n < 3)
        *value = channel_read(pit, &pit->s.channel[n]);
}

// --- port 61h: channel 2's gate and output, the speaker, the refresh toggle ---

static void channel_set_gate(struct pit *pit, struct pit_channel *c, bool gate)
{
    u64 now = pit_now(pit);

    if (gate == c->gate)
        return;
    channel_settle(c, now);
    if (!gate) {
        c->paused = now - c->start;
    } else if (c->mode == 0 || c->mode == 4) {
        c->start = now - c->paused;
    } else {
        if (c->switch_at != NO_SWITCH || mode_is_triggered(c))
            c->reload = c->next_reload;
        c->switch_at = NO_SWITCH;
        c->start = now;
        c->triggered = true;
    }
    c->gate = gate;
}

void pit_port61_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                    u32 *value)
{
    struct pit *pit = device;
    u64 now = pit_now(pit);

    (void)vcpu, (void)port, (void)size;
    if (write) {
        pit->s.port61 = (u8)*value & 0x0f;
        channel_set_gate(pit, &pit->s.channel[2], *value & 1);
        return;
    }
    channel_settle(&pit->s.channel[2], now);
    *value =
        pit->s.port61 | (u32)(now / 18 & 1) << 4 | (u32)channel_out(&pit->s.channel[2], now) << 5;
}

void pit_init(struct pit *pit, struct machine *machine)
{
    pit->machine = machine;
    pit->timer.fn = pit_fire;
}

// As a PC's BIOS leaves it: channel 0 in mode 3 at 18.2 Hz, the others still.
void pit_reset(struct pit *pit)
{
    pit->s = (struct pit_state){0};
    for (unsigned i = 0; i < 3; i++)
        pit->s.channel[i] = (struct pit_channel){
            .mode = 3, .access = 3, .gate = i != 2, .switch_at = NO_SWITCH, .start = pit_now(pit)};
    channel_load(pit, &pit->s.channel[0], 0);
}
