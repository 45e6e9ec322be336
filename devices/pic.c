// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The pair of 8259A interrupt controllers at 20h and A0h (Intel 8259A data sheet: "Interrupt
// Sequence", ICW1-4, OCW1-3, poll, special modes) with the edge/level registers at 4D0h (PIIX/ICH
// data sheets).

#include "pic.h"

enum { CASCADE = 2, SPURIOUS = 7 };

// Positions in the order of priority: 0 is the highest. 8 if the mask is empty.
static unsigned pic_rank(const struct pic_chip *chip, unsigned mask)
{
    unsigned first = (chip->lowest + 1) & 7, rotated = (mask << 8 | mask) >> first & 0xff;

    return (unsigned)__builtin_ctz(rotated | 1u << 8);
}

static u8 pic_ir_of_rank(const struct pic_chip *chip, unsigned rank)
{
    return (chip->lowest + 1 + rank) & 7;
}

// The IR that would interrupt now, -1 if none does.
static int pic_request(const struct pic_chip *chip, bool master)
{
    unsigned requests = chip->irr & (u8)~chip->imr, in_service = chip->isr, rank;

    if (!requests)
        return -1;
    // Special mask mode: masked levels in service inhibit nothing. Special fully nested mode: the
    // slave may ask again while it is in service.
    if (chip->special_mask)
        in_service &= ~chip->imr;
    if (master && chip->special_nested)
        in_service &= ~(1u << CASCADE);
    rank = pic_rank(chip, requests);
    return rank < pic_rank(chip, in_service) ? pic_ir_of_rank(chip, rank) : -1;
}

static void pic_chip_set(struct pic_chip *chip, unsigned ir, bool level)
{
    u8 bit = (u8)(1u << ir);

    // A latched edge is lost when the line falls before it is acknowledged, as on the chip.
    if (!level)
        chip->irr &= (u8)~bit;
    else if (chip->elcr & bit || !(chip->lines & bit))
        chip->irr |= bit;
    chip->lines = (u8)((chip->lines & ~bit) | (level ? bit : 0));
}

static void pic_update(struct pic *pic)
{
    u8 level;

    pic_chip_set(&pic->s.chip[0], CASCADE, pic_request(&pic->s.chip[1], false) >= 0);
    level = pic_request(&pic->s.chip[0], true) >= 0;
    if (level == pic->intr)
        return;
    __atomic_store_n(&pic->intr, level, __ATOMIC_RELEASE);
    irq_line_set(&pic->out, level);
}

void pic_set_irq(struct pic *pic, unsigned irq, bool level)
{
    pic_chip_set(&pic->s.chip[irq >> 3 & 1], irq & 7, level);
    pic_update(pic);
}

static void pic_chip_ack(struct pic_chip *chip, unsigned ir)
{
    u8 bit = (u8)(1u << ir);

    if (!(chip->elcr & bit))
        chip->irr &= (u8)~bit;
    if (!chip->auto_eoi)
        chip->isr |= bit;
    else if (chip->rotate_on_auto_eoi)
        chip->lowest = (u8)ir;
}

int pic_ack(struct pic *pic)
{
    struct pic_chip *master = &pic->s.chip[0], *slave = &pic->s.chip[1];
    int ir = pic_request(master, true), slave_ir, vector = master->vector_base + SPURIOUS;

    if (ir >= 0) {
        pic_chip_ack(master, (unsigned)ir);
        vector = master->vector_base + ir;
    }
    if (ir == CASCADE) {
        slave_ir = pic_request(slave, false);
        vector = slave->vector_base + (slave_ir >= 0 ? slave_ir : SPURIOUS);
        if (slave_ir >= 0)
            pic_chip_ack(slave, (unsigned)slave_ir);
        // The cascade line falls with the acknowledge and rises again for the slave's next request.
        pic_chip_set(master, CASCADE, false);
    }
    // So does INTR.
    __atomic_store_n(&pic->intr, 0, __ATOMIC_RELEASE);
    irq_line_set(&pic->out, false);
    pic_update(pic);
    return vector;
}

static void pic_icw1(struct pic_chip *chip, u8 value)
{
    u8 lines = chip->lines, elcr = chip->elcr;

    *chip = (struct pic_chip){.lines = lines, .elcr = elcr, .lowest = 7, .next_icw = 2};
    chip->vector_base = 0;
    chip->wants_icw4 = value & 1;
    chip->single = value & 2;
    chip->irr = lines & elcr; // the edge sense is cleared, levels count on
}

static void pic_ocw2(struct pic_chip *chip, u8 value)
{
    unsigned ir = value & 7;
    bool specific = value & 0x40, rotate = value & 0x80, eoi = value & 0x20;

    if (!eoi && !specific) { // rotate in automatic EOI mode: set, clear
        chip->rotate_on_auto_eoi = rotate;
        return;
    }
    if (!eoi && !rotate) // no operation
        return;
    if (!specific) {
        unsigned rank = pic_rank(chip, chip->special_mask ? chip->isr & ~chip->imr : chip->isr);

        if (rank == 8)
            return;
        ir = pic_ir_of_rank(chip, rank);
    }
    if (eoi)
        chip->isr &= (u8) ~(1u << ir);
    if (rotate)
        chip->lowest = (u8)ir;
}

static void pic_ocw3(struct pic_chip *chip, u8 value)
{
    if (value & 0x04)
        chip->poll = true;
    if (value & 0x02)
        chip->read_isr = value & 0x01;
    if (value & 0x40)
        chip->special_mask = value & 0x20;
}

static void pic_write_even(struct pic_chip *chip, u8 value)
{
    if (value & 0x10)
        pic_icw1(chip, value);
    else if (value & 0x08)
        pic_ocw3(chip, value);
    else
        pic_ocw2(chip, value);
}

static void pic_write_odd(struct pic_chip *chip, u8 value)
{
    switch (chip->next_icw) {
    case 2:
        chip->vector_base = value & 0xf8;
        chip->next_icw = !chip->single ? 3 : chip->wants_icw4 ? 4 : 0;
        break;
    case 3: // the wiring of the cascade is the PC's, whatever is written
        chip->next_icw = chip->wants_icw4 ? 4 : 0;
        break;
    case 4:
        chip->auto_eoi = value & 0x02;
        chip->special_nested = value & 0x10;
        chip->next_icw = 0;
        break;
    default:
        chip->imr = value;
    }
}

static u8 pic_read_poll(struct pic_chip *chip, bool master)
{
    int ir = pic_request(chip, master);

    chip->poll = false;
    if (ir < 0)
        return 0;
    pic_chip_ack(chip, (unsigned)ir);
    return (u8)(0x80 | ir);
}

// A read that is no poll changes nothing.
static u8 pic_read(struct pic *pic, struct pic_chip *chip, bool master, bool odd)
{
    u8 value;

    if (unlikely(chip->poll)) {
        value = pic_read_poll(chip, master);
        pic_update(pic);
        return value;
    }
    if (odd)
        return chip->imr;
    return chip->read_isr ? chip->isr : chip->irr;
}

void pic_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value)
{
    struct pic *pic = device;
    struct pic_chip *chip = &pic->s.chip[port >> 7];

    (void)vcpu, (void)size;
    if (!write) {
        *value = pic_read(pic, chip, port < 0x80, port & 1);
        return;
    }
    if (port & 1)
        pic_write_odd(chip, (u8)*value);
    else
        pic_write_even(chip, (u8)*value);
    pic_update(pic);
}

void pic_elcr_pio(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value)
{
    // IRQ 0, 1, 2, 8 and 13 can't be level-triggered.
    static const u8 writable[2] = {0xf8, 0xde};
    struct pic *pic = device;
    struct pic_chip *chip = &pic->s.chip[port & 1];

    (void)vcpu, (void)size;
    if (!write) {
        *value = chip->elcr;
        return;
    }
    chip->elcr = (u8)*value & writable[port & 1];
    chip->irr |= chip->lines & chip->elcr;
    pic_update(pic);
}

// As a PC's firmware leaves them: the timer's line (and the second chip's) open, the others masked.
void pic_reset(struct pic *pic)
{
    for (unsigned i = 0; i < 2; i++) {
        u8 lines = pic->s.chip[i].lines;

        pic->s.chip[i] = (struct pic_chip){.imr = 0xff, .lines = lines, .lowest = 7};
    }
    pic->s.chip[0].imr = 0xfa;
    pic->s.chip[0].vector_base = 0x08;
    pic->s.chip[1].vector_base = 0x70;
    pic->s.chip[1].elcr = BIT(1); // IRQ 9 is the SCI
    pic_update(pic);
}
