// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The PCI test device: BAR 0 is memory, BAR 1 ports. Each begins with a header that describes the
// test whose number was written to its first byte: the width, offset and data of the writes to be
// made, how many have come, and the test's name (QEMU's docs/specs/pci-testdev). It comes up as
// firmware would leave it, with both BARs placed and decoded.

#include "pci_testdev.h"

#include <nestor/string.h>

enum { MEMORY_BASE = 0xc0000000, PORT_BASE = 0xc000, TARGET = 0x40, NAME_SIZE = 16 };

struct PACKED header {
    u8 test, width, pad[2];
    u32 offset, data, count;
    char name[NAME_SIZE];
};

_Static_assert(sizeof(struct header) <= TARGET, "what is written lies behind the header");

static const struct pci_bar bars[PCI_BARS] = {{0x1000, false}, {0x100, true}};

// The command register's I/O, memory and bus master bits, the two BARs, the interrupt line.
static const u8 writable[PCI_CONFIG] = {
    [PCI_COMMAND] = 7, [PCI_BAR0 + 1] = 0xf0, 0xff, 0xff, [PCI_BAR0 + 5] = 0xff, 0xff, 0xff,
    [0x3c] = 0xff,
};

static const struct test {
    u8 width;
    u32 data;
    char name[PCI_TESTDEV_BARS][NAME_SIZE];
} tests[] = {
    {1, 0xfa, {"mmio-byte", "port-byte"}},
    {2, 0xface, {"mmio-word", "port-word"}},
    {4, 0xfacade01, {"mmio-long", "port-long"}},
};

static const struct test *testdev_test(const struct pci_testdev *testdev, unsigned bar)
{
    unsigned number = testdev->s.selected[bar];

    return number && number <= ARRAY_SIZE(tests) ? &tests[number - 1] : NULL;
}

static void testdev_read(const struct pci_testdev *testdev, unsigned bar, u32 offset, unsigned size,
                         u64 *value)
{
    const struct test *test = testdev_test(testdev, bar);
    struct header header = {0};

    if (test) {
        header = (struct header){.width = test->width,
                                 .offset = TARGET,
                                 .data = test->data,
                                 .count = testdev->s.count[bar]};
        memcpy(header.name, test->name[bar], NAME_SIZE);
    }
    *value = 0;
    if (offset < sizeof(header))
        memcpy(value, (const u8 *)&header + offset, MIN(size, sizeof(header) - offset));
}

static void testdev_write(struct pci_testdev *testdev, unsigned bar, u32 offset, unsigned size,
                          u64 value)
{
    const struct test *test = testdev_test(testdev, bar);

    if (offset == 0) {
        testdev->s.selected[bar] = (u8)value < ARRAY_SIZE(tests) ? (u8)(value + 1) : 0;
        testdev->s.count[bar] = 0;
    } else if (test && offset == TARGET && size == test->width && value == test->data) {
        testdev->s.count[bar]++;
    }
}

static void testdev_access(struct pci_function *function, unsigned bar, u32 offset, unsigned size,
                           bool write, u64 *value)
{
    struct pci_testdev *testdev = CONTAINER_OF(function, struct pci_testdev, function);

    if (write)
        testdev_write(testdev, bar, offset, size, *value);
    else
        testdev_read(testdev, bar, offset, size, value);
}

void pci_testdev_init(struct pci_testdev *testdev, struct pci *pci)
{
    testdev->function.writable = writable;
    testdev->function.bars = bars;
    testdev->function.bar_access = testdev_access;
    pci->slot[PCI_TESTDEV_SLOT] = &testdev->function;
    pci->has_bars = true;
}

void pci_testdev_reset(struct pci_testdev *testdev)
{
    struct pci_function *function = &testdev->function;

    testdev->s = (struct pci_testdev_state){0};
    function->s = (struct pci_function_state){0};
    pci_put16(function, PCI_VENDOR_ID, 0x1b36);
    pci_put16(function, PCI_DEVICE_ID, 0x0005);
    pci_put16(function, PCI_CLASS_CODE, 0x00ff);
    pci_put16(function, PCI_COMMAND, PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
    pci_put32(function, PCI_BAR0, MEMORY_BASE);
    pci_put32(function, PCI_BAR0 + 4, PORT_BASE | PCI_BAR_IO);
}
