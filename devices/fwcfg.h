// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The firmware configuration ports of QEMU's machines, as far as test images read them. Under the
// machine's lock.

#pragma once

#include <nestor/types.h>

struct machine;
struct vcpu;

struct fwcfg_state {
    u16 key;
    u32 offset; // of the next byte
};

struct fwcfg {
    struct fwcfg_state s;
    struct machine *machine;
};

void fwcfg_reset(struct fwcfg *fwcfg);
void fwcfg_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value);
