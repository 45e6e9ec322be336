// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The test device: the exit port, a latch, TLB flushes and interrupt lines at a guest's command,
// memory behind MMIO, and the power-off ports of other virtual machines.

#include "testdev.h"
#include "machine.h"

#include <nestor/device.h>
#include <nestor/page.h>
#include <nestor/string.h>
#include <nestor/tlb.h>

// The runner is told codes up to 119; the ones above are its own.
enum { EXIT_CODE_MAX = 119, EXIT_CODE_OTHER = 120 };
enum { SLEEP_ENABLE = 0x2000, LINES_BASE = 0x2000 };

static void exit_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                     u32 *value)
{
    struct testdev *testdev = device;

    (void)vcpu, (void)port, (void)size;
    if (write)
        vm_power_off(testdev->machine->vm, *value <= EXIT_CODE_MAX ? *value : EXIT_CODE_OTHER);
    else
        *value = 0;
}

static void latch_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                      u32 *value)
{
    struct testdev *testdev = device;
    unsigned shift = 8 * (port & 3);
    u32 lanes = (u32)(BITS(8 * size - 1, 0) << shift);

    (void)vcpu;
    if (write)
        testdev->s.latch = (testdev->s.latch & ~lanes) | (*value << shift & lanes);
    else
        *value = testdev->s.latch >> shift;
}

// The page's translation is dropped; the next access brings the same one back. Without the lock.
static void flush_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                      u32 *value)
{
    struct testdev *testdev = device;

    (void)vcpu, (void)port, (void)size, (void)value;
    if (write)
        tlb_flush_vm(testdev->machine->vm, TLB_FLUSH_STAGE2);
}

static void lines_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                      u32 *value)
{
    struct testdev *testdev = device;

    (void)vcpu, (void)size;
    if (write)
        ioapic_set_pin(&testdev->machine->ioapic, port - LINES_BASE, *value != 0);
}

static void shutdown_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                         u32 *value)
{
    static const char word[] = "Shutdown";
    struct testdev *testdev = device;
    u8 *seen = &testdev->s.shutdown_seen;

    (void)vcpu, (void)port, (void)size;
    if (!write)
        return;
    *seen = (u8)*value == (u8)word[*seen] ? *seen + 1 : (u8)*value == 'S';
    if (*seen < sizeof(word) - 1)
        return;
    *seen = 0;
    vm_power_off(testdev->machine->vm, 0);
}

static void sleep_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                      u32 *value)
{
    struct testdev *testdev = device;

    (void)vcpu, (void)port, (void)size;
    if (write && *value & SLEEP_ENABLE)
        vm_power_off(testdev->machine->vm, 0);
}

static void memory_mmio(void *device, struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write,
                        u64 *value)
{
    struct testdev *testdev = device;
    u8 *at = testdev->memory + (gpa - TESTDEV_MEMORY_GPA);

    (void)vcpu;
    if (write) {
        memcpy(at, value, size);
    } else {
        *value = 0;
        memcpy(value, at, size);
    }
}

static const struct {
    u16 first, last;
    pio_fn fn;
    u32 flags;
} ports[] = {
    {0xe0, 0xe3, latch_pio, 0},     {0xe4, 0xe7, flush_pio, BUS_UNLOCKED},
    {0xf4, 0xf7, exit_pio, 0},      {LINES_BASE, LINES_BASE + IOAPIC_PINS - 1, lines_pio, 0},
    {0x4004, 0x4005, sleep_pio, 0}, {0x8900, 0x8900, shutdown_pio, BUS_BYTE},
};

int testdev_create(struct testdev *testdev, struct machine *machine)
{
    int error = 0;

    testdev->machine = machine;
    testdev->memory = page_alloc(TESTDEV_MEMORY_ORDER);
    if (!testdev->memory)
        return -E_NOMEM;
    for (size_t i = 0; i < ARRAY_SIZE(ports) && !error; i++)
        error = bus_add_pio_flags(machine->vm, ports[i].first, ports[i].last, ports[i].fn, testdev,
                                  "test device", ports[i].flags);
    if (error)
        return error;
    return bus_add_mmio(machine->vm, TESTDEV_MEMORY_GPA, TESTDEV_MEMORY, memory_mmio, testdev,
                        "test device");
}

void testdev_destroy(struct testdev *testdev)
{
    if (testdev->memory)
        page_free(testdev->memory, TESTDEV_MEMORY_ORDER);
    testdev->memory = NULL;
}

void testdev_reset(struct testdev *testdev)
{
    testdev->s = (struct testdev_state){0};
    if (testdev->memory)
        memset(testdev->memory, 0, TESTDEV_MEMORY);
}
