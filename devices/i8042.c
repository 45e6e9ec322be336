// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The 8042 keyboard controller at ports 60h and 64h as the AT has it: self tests, command byte,
// output port with A20 and reset. Nothing is plugged into it, and it raises no interrupts; the FADT
// says that there is none, so that only those find it who reset the machine by it or don't read the
// FADT.

#include "i8042.h"
#include "machine.h"

enum {
    STATUS_FULL = 0x01,
    STATUS_SYSTEM = 0x04,
    STATUS_UNLOCKED = 0x10,
    STATUS_AUX = 0x20,
    STATUS_TIMEOUT = 0x40
};
enum { OUTPUT_NOT_RESET = 0x01, OUTPUT_A20 = 0x02 };
enum { NO_DEVICE = 0xfe, COMMAND_BYTE_RESET = 0x74 }; // translated, both ports off, system flag
enum {
    READ_COMMAND_BYTE = 0x20,
    WRITE_COMMAND_BYTE = 0x60,
    TEST_AUX = 0xa9,
    SELF_TEST = 0xaa,
    TEST_KEYBOARD = 0xab,
    DISABLE_AUX = 0xa7,
    ENABLE_AUX = 0xa8,
    DISABLE_KEYBOARD = 0xad,
    ENABLE_KEYBOARD = 0xae,
    READ_OUTPUT = 0xd0,
    WRITE_OUTPUT = 0xd1,
    WRITE_KEYBOARD_BUFFER = 0xd2,
    WRITE_AUX_BUFFER = 0xd3,
    WRITE_AUX = 0xd4,
    PULSE = 0xf0,
};
enum { KEYBOARD_OFF = 0x10, AUX_OFF = 0x20 };

static void put(struct i8042 *i8042, u8 byte, bool aux, bool timeout)
{
    i8042->s.data = byte;
    i8042->s.full = true;
    i8042->s.aux = aux;
    i8042->s.timeout = timeout;
}

static void reply(struct i8042 *i8042, u8 byte)
{
    put(i8042, byte, false, false);
}

static void write_output_port(struct i8042 *i8042, u8 value)
{
    i8042->s.output_port = value;
    if (!(value & OUTPUT_NOT_RESET))
        vm_reset(i8042->machine->vm);
}

static void command(struct i8042 *i8042, u8 value)
{
    u8 *byte = &i8042->s.command_byte;

    i8042->s.pending = 0;
    switch (value) {
    case READ_COMMAND_BYTE:
        reply(i8042, *byte);
        break;
    case SELF_TEST:
        *byte = COMMAND_BYTE_RESET;
        reply(i8042, 0x55);
        break;
    case TEST_AUX:
    case TEST_KEYBOARD:
        reply(i8042, 0);
        break;
    case DISABLE_AUX:
        *byte |= AUX_OFF;
        break;
    case ENABLE_AUX:
        *byte &= (u8)~AUX_OFF;
        break;
    case DISABLE_KEYBOARD:
        *byte |= KEYBOARD_OFF;
        break;
    case ENABLE_KEYBOARD:
        *byte &= (u8)~KEYBOARD_OFF;
        break;
    case READ_OUTPUT:
        reply(i8042, i8042->s.output_port);
        break;
    case WRITE_COMMAND_BYTE:
    case WRITE_OUTPUT ... WRITE_AUX:
        i8042->s.pending = value;
        break;
    case PULSE ... 0xff: // the lines whose bits are 0; the lowest is the CPU's reset
        if (!(value & OUTPUT_NOT_RESET))
            vm_reset(i8042->machine->vm);
        break;
    }
}

static void write_data(struct i8042 *i8042, u8 value)
{
    u8 pending = i8042->s.pending;

    i8042->s.pending = 0;
    switch (pending) {
    case WRITE_COMMAND_BYTE:
        i8042->s.command_byte = value;
        break;
    case WRITE_OUTPUT:
        write_output_port(i8042, value);
        break;
    case WRITE_KEYBOARD_BUFFER:
        reply(i8042, value);
        break;
    case WRITE_AUX_BUFFER:
        put(i8042, value, true, false);
        break;
    default: // for a device that is not there
        put(i8042, NO_DEVICE, pending == WRITE_AUX, true);
    }
}

static u8 read_status(const struct i8042 *i8042)
{
    const struct i8042_state *s = &i8042->s;

    return (u8)(STATUS_SYSTEM | STATUS_UNLOCKED | (s->full ? STATUS_FULL : 0) |
                (s->full && s->aux ? STATUS_AUX : 0) |
                (s->full && s->timeout ? STATUS_TIMEOUT : 0));
}

void i8042_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value)
{
    struct i8042 *i8042 = device;

    (void)vcpu, (void)size;
    if (port == 0x64) {
        if (write)
            command(i8042, (u8)*value);
        else
            *value = read_status(i8042);
    } else if (write) {
        write_data(i8042, (u8)*value);
    } else {
        *value = i8042->s.data;
        i8042->s.full = false;
    }
}

void i8042_reset(struct i8042 *i8042)
{
    i8042->s = (struct i8042_state){
        .command_byte = COMMAND_BYTE_RESET,
        .output_port = 0xcc | OUTPUT_NOT_RESET | OUTPUT_A20,
    };
}
