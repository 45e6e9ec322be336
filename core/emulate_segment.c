// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Segment registers and descriptors in the emulator: what a selector loads in each mode, MOV, POP
// and LDS.. to a segment register. Intel SDM volume 2 under each name, volume 3 "Segment
// Descriptors" and section 5.8; AMD APM volume 3. What is loaded goes to c->seg, for the caller to
// commit. Faults come before effects, but for accessed bits.

#include "emulate_internal.h"
#include <nestor/string.h>

enum emulate_result emu_raise_selector(struct emulate_ctx *c, u8 vector, u16 selector)
{
    return emulate_raise(c, vector, true, selector_error(selector));
}

struct segment emu_segment(struct emulate_ctx *c, enum segment_index seg)
{
    struct segment s = {0};

    if (c->seg_loaded & BIT(seg))
        return c->seg[seg];
    c->ops->get_seg(c, seg, &s);
    return s;
}

void emu_set_segment(struct emulate_ctx *c, enum segment_index seg, struct segment s)
{
    c->seg[seg] = s;
    c->seg_loaded |= (u8)BIT(seg);
}

// Real mode changes the selector and the base only, so that a big limit stays.
static struct segment real_segment(struct emulate_ctx *c, enum segment_index seg, u16 selector)
{
    struct segment s = emu_segment(c, seg);

    if (s.access & SEG_UNUSABLE)
        s.access = SEG_P | SEG_S | 3;
    s.selector = selector;
    s.base = (u64)selector << 4;
    return s;
}

struct segment segment_vm86(u16 selector)
{
    return (struct segment){.selector = selector,
                            .access = SEG_P | SEG_S | SEG_DPL | 3,
                            .limit = 0xffff,
                            .base = (u64)selector << 4};
}

bool emu_is_real(const struct emulate_ctx *c)
{
    return !(c->cr0 & CR0_PE) || in_vm86(c);
}

struct segment emu_real_or_vm86(struct emulate_ctx *c, enum segment_index seg, u16 selector)
{
    return in_vm86(c) ? segment_vm86(selector) : real_segment(c, seg, selector);
}

enum emulate_result emu_read_descriptor(struct emulate_ctx *c, u16 selector, u8 vector,
                                        struct descriptor *d)
{
    struct segment ldt;
    u64 base;
    u32 limit;

    *d = (struct descriptor){.selector = selector};
    if (selector & 4) {
        ldt = emu_segment(c, SEG_LDTR);
        base = ldt.base;
        limit = ldt.limit;
        if (ldt.access & SEG_UNUSABLE)
            return emu_raise_selector(c, vector, selector);
    } else if (c->ops->get_gdt) {
        c->ops->get_gdt(c, &base, &limit);
    } else {
        return EMULATE_UNHANDLED;
    }
    if ((selector | 7u) > limit)
        return emu_raise_selector(c, vector, selector);
    d->la = base + (selector & ~7u);
    if (!c->long_mode)
        d->la = (u32)d->la;
    return emu_mem_read(c, d->la, &d->low, 8, EMULATE_READ | EMULATE_SUPERVISOR);
}

// The upper half of a system descriptor in IA-32e mode; its type field must be 0.
enum emulate_result emu_read_high(struct emulate_ctx *c, struct descriptor *d)
{
    struct descriptor high;
    enum emulate_result r;

    if (!c->long_mode)
        return EMULATE_OK;
    if (d->selector >= 0xfff8) // the upper half is beyond any limit
        return emu_raise_selector(c, VECTOR_GP, d->selector);
    r = emu_read_descriptor(c, (u16)(d->selector + 8), VECTOR_GP, &high);
    if (r == EMULATE_FAULT && c->fault.vector == VECTOR_GP)
        return emu_raise_selector(c, VECTOR_GP, d->selector);
    if (r == EMULATE_OK && high.low >> 40 & (SEG_TYPE | SEG_S))
        return emu_raise_selector(c, VECTOR_GP, d->selector);
    d->high = (u32)high.low;
    return r;
}

enum emulate_result emu_change_type(struct emulate_ctx *c, struct descriptor *d, u8 set, u8 clear)
{
    u8 access = (u8)((descriptor_access(d) | set) & ~clear);

    if (access == descriptor_access(d))
        return EMULATE_OK;
    d->low = (d->low & ~(0xffull << 40)) | (u64)access << 40;
    return c->ops->write_mem(c, d->la + 5, &access, 1, EMULATE_WRITE | EMULATE_SUPERVISOR);
}

static enum emulate_result load_null(struct emulate_ctx *c, enum segment_index seg, u16 selector)
{
    // SS may be null in 64-bit code below privilege 3.
    if (seg == SEG_SS && !(insn_mode_is_64(c->mode) && c->cpl < 3 && (selector & 3) == c->cpl))
        return raise_gp0(c);
    emu_set_segment(c, seg, segment_null(selector, seg == SEG_SS ? c->cpl : 0));
    return EMULATE_OK;
}

enum emulate_result emulate_load_seg(struct emulate_ctx *c, enum segment_index seg, u16 selector)
{
    struct descriptor d;
    enum emulate_result r;
    u8 vector;

    if (emu_is_real(c)) {
        emu_set_segment(c, seg, emu_real_or_vm86(c, seg, selector));
        return EMULATE_OK;
    }
    if (!selector_error(selector))
        return load_null(c, seg, selector);
    r = emu_read_descriptor(c, selector, VECTOR_GP, &d);
    if (r != EMULATE_OK)
        return r;
    vector = seg == SEG_SS ? descriptor_check_stack(&d, c->cpl) : descriptor_check_data(&d, c->cpl);
    if (vector)
        return emu_raise_selector(c, vector, selector);
    r = emu_change_type(c, &d, DESCRIPTOR_ACCESSED, 0);
    if (r == EMULATE_OK)
        emu_set_segment(c, seg, descriptor_segment(&d));
    return r;
}

// The pointer in memory: the offset, then the selector.
enum emulate_result emu_far_pointer(struct emulate_ctx *c, u64 *offset, u16 *selector)
{
    u8 bytes[10];
    enum emulate_result r = emu_operand_address(c, EMULATE_READ);

    *offset = 0;
    if (r == EMULATE_OK)
        r = emu_mem_read(c, c->linear, bytes, c->insn.opsize + 2u, EMULATE_READ);
    if (r != EMULATE_OK)
        return r;
    memcpy(offset, bytes, c->insn.opsize);
    memcpy(selector, bytes + c->insn.opsize, 2);
    return emu_intercept(c, EMULATE_ACCESSED);
}

// LES, LDS, LSS, LFS, LGS: the opcode's low bits tell the register.
enum emulate_result emu_run_load_far(struct emulate_ctx *c)
{
    static const u8 segments[8] = {
        [2] = SEG_SS, [4] = SEG_FS, [5] = SEG_GS}; // of map 0F; C4 and C5 are ES and DS
    enum segment_index seg = segments[c->insn.opcode & 7];
    enum emulate_result r;
    u64 offset;
    u16 selector;

    if (c->insn.map == INSN_MAP_1)
        seg = c->insn.opcode & 1 ? SEG_DS : SEG_ES;
    if (!c->ops->load_seg)
        return EMULATE_UNHANDLED;
    r = emu_far_pointer(c, &offset, &selector);
    if (r == EMULATE_OK)
        r = c->ops->load_seg(c, seg, selector);
    if (r == EMULATE_OK)
        emu_reg_set(c, c->insn.reg, c->insn.opsize, offset);
    return r;
}
