// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Single ports of a PC's chip set. Under the machine's lock.

#pragma once

#include <nestor/types.h>

struct machine;
struct vcpu;

enum { CHIPSET_LINE = 120 };

struct chipset_state {
    u8 post_code; // 80h
    u8 port92;
    u8 line_size; // of what came by 0E9h and is not logged yet
    char line[CHIPSET_LINE + 1];
};

struct chipset {
    struct chipset_state s;
    struct machine *machine;
};

void chipset_reset(struct chipset *chipset);
void chipset_post_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                      u32 *value);
void chipset_port92_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                        u32 *value);
void chipset_ferr_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                      u32 *value);
void chipset_debug_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                       u32 *value);
