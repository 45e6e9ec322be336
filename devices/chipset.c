// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Single ports: 80h (POST codes, which systems write to pass a microsecond), 92h (fast A20 and
// reset), 0F0h (the latch of the x87's FERR#), and 0E9h, the debug console of virtual machines,
// whose lines go to Nestor's log.

#include "chipset.h"
#include "machine.h"

#include <nestor/log.h>
#include <nestor/string.h>

enum { PORT92_RESET = 0x01, PORT92_A20 = 0x02, DEBUG_PRESENT = 0xe9 };

void chipset_post_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                      u32 *value)
{
    struct chipset *chipset = device;

    (void)vcpu, (void)port, (void)size;
    if (write)
        chipset->s.post_code = (u8)*value;
    else
        *value = chipset->s.post_code;
}

void chipset_port92_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                        u32 *value)
{
    struct chipset *chipset = device;
    u8 before = chipset->s.port92;

    (void)vcpu, (void)port, (void)size;
    if (!write) {
        *value = before;
        return;
    }
    chipset->s.port92 = (u8)*value & (PORT92_RESET | PORT92_A20); // A20 itself is always open
    if (*value & ~(u32)before & PORT92_RESET)
        vm_reset(chipset->machine->vm);
}

// A write takes the x87's request back, whatever its value.
void chipset_ferr_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                      u32 *value)
{
    struct chipset *chipset = device;

    (void)vcpu, (void)port, (void)size;
    if (write)
        machine_set_irq(chipset->machine, IRQ_FERR, false);
    else
        *value = 0xff;
}

static void debug_byte(struct chipset *chipset, u8 byte)
{
    struct chipset_state *s = &chipset->s;

    if (byte >= ' ' && byte <= '~')
        s->line[s->line_size++] = (char)byte;
    if (byte != '\n' && s->line_size < CHIPSET_LINE)
        return;
    s->line[s->line_size] = 0;
    s->line_size = 0;
    vm_log(chipset->machine->vm, "%s: %s", chipset->machine->vm->config->name, s->line);
}

void chipset_debug_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                       u32 *value)
{
    (void)vcpu, (void)port, (void)size;
    if (write)
        debug_byte(device, (u8)*value);
    else
        *value = DEBUG_PRESENT;
}

void chipset_reset(struct chipset *chipset)
{
    chipset->s = (struct chipset_state){.port92 = PORT92_A20};
}
