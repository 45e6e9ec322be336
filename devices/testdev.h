// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What test images expect of a machine made for them (README, `test-device`).

#pragma once

#include <nestor/types.h>

struct vm;
struct machine;

struct testdev_state {
    u32 latch;        // 0E0h
    u8 shutdown_seen; // how many bytes of "Shutdown" have come by 8900h
};

struct testdev {
    struct testdev_state s;
    u8 *memory; // TESTDEV_MEMORY bytes behind MMIO
    struct machine *machine;
};

#define TESTDEV_MEMORY_GPA 0xff000000ull
enum { TESTDEV_MEMORY = 0x10000, TESTDEV_MEMORY_ORDER = 4 };

// Registers the ports; only where the configuration asks for them. 0 or -E_*.
int testdev_create(struct testdev *testdev, struct machine *machine);
void testdev_destroy(struct testdev *testdev);
void testdev_reset(struct testdev *testdev);
