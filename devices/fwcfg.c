// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// fw_cfg: a 16-bit key is written to 510h, its value is read byte by byte from 511h, little-endian,
// and zeros after its end (QEMU's docs/specs/fw_cfg). Read-only, no DMA, an empty file directory.

#include "fwcfg.h"
#include "machine.h"

#include <nestor/string.h>

enum { SELECTOR = 0x510, DATA = 0x511 };
enum {
    KEY_SIGNATURE = 0,
    KEY_ID = 1,
    KEY_RAM_SIZE = 3,
    KEY_CPUS = 5,
    KEY_MAX_CPUS = 0x0f,
    KEY_MAX_RAM = 0x11
};

static u64 fwcfg_value(const struct fwcfg *fwcfg)
{
    static const char signature[4] = {'Q', 'E', 'M', 'U'};
    const struct vm *vm = fwcfg->machine->vm;
    u32 word;

    switch (fwcfg->s.key) {
    case KEY_SIGNATURE:
        memcpy(&word, signature, sizeof(word));
        return word;
    case KEY_ID:
        return 1; // the traditional interface
    case KEY_RAM_SIZE:
    case KEY_MAX_RAM:
        return vm->ram_size;
    case KEY_CPUS:
    case KEY_MAX_CPUS:
        return vm->vcpu_count;
    default: // the file directory (19h) says by its zeros that there are none
        return 0;
    }
}

static u8 fwcfg_read(struct fwcfg *fwcfg)
{
    u32 offset = fwcfg->s.offset;

    if (offset >= sizeof(u64))
        return 0;
    fwcfg->s.offset++;
    return (u8)(fwcfg_value(fwcfg) >> 8 * offset);
}

void fwcfg_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value)
{
    struct fwcfg *fwcfg = device;

    (void)vcpu;
    if (write && port == SELECTOR && size == 2)
        fwcfg->s = (struct fwcfg_state){.key = (u16)*value};
    else if (!write && port == DATA && size == 1)
        *value = fwcfg_read(fwcfg);
}

void fwcfg_reset(struct fwcfg *fwcfg)
{
    fwcfg->s = (struct fwcfg_state){0};
}
