// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The bus of one machine: who answers at a port or a guest-physical address. Filled while the VM is
// built, read-only after that (but for the note of what has been logged).

#pragma once

#include <nestor/device.h>

enum { BUS_RANGES = 63, BUS_CHUNKS = 16, BUS_MMIO_RANGES = 24, BUS_UNKNOWN_LINES = 256 };

struct bus_range {
    void *device;
    const char *name;
    u64 first, last;
    union {
        pio_fn pio;
        mmio_fn mmio;
    };
    u32 flags; // enum bus_flags
};

// A port's owner is found by two loads: its high byte names a chunk, the chunk's byte names a
// range. Chunk 0 and range 0 are nobody's. The MMIO ranges are sorted by address.
struct bus {
    u8 chunk_of[256];
    u8 chunk[BUS_CHUNKS][256];
    struct bus_range ports[BUS_RANGES + 1];
    struct bus_range mmio[BUS_MMIO_RANGES];
    u32 chunks, port_ranges, mmio_ranges;
    // What is unknown and has been logged; under the machine's lock.
    u64 logged_ports[65536 / 64];
    u64 logged_pages[BUS_UNKNOWN_LINES];
    u32 logged_lines, logged_page_count;
};
