// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// An interrupt line from a device to whatever it is soldered to. The receiver remembers levels; a
// device may set the level it has already.

#pragma once

#include <nestor/types.h>

struct irq_line {
    void (*set)(void *receiver, unsigned pin, bool level); // under the machine's lock
    void *receiver;
    u8 pin;
};

static inline void irq_line_set(const struct irq_line *line, bool level)
{
    line->set(line->receiver, line->pin, level);
}
