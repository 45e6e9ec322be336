// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The checks of segment descriptors, each with its own fault. Intel SDM volume 3 sections 5.5 to
// 5.8 and the pseudo-code of MOV, JMP, CALL, RET and IRET in volume 2.

#include <arch/x86/regs.h>
#include <nestor/descriptor.h>

#define CONFORMING_OR_DOWN BIT(2)
#define READ_OR_WRITE      BIT(1)
#define CODE               BIT(3)

struct segment descriptor_segment(const struct descriptor *d)
{
    u32 limit = (u32)((d->low & 0xffff) | (d->low >> 32 & 0xf0000));
    u32 access = (u32)(d->low >> 40) & 0xf0ff;

    return (struct segment){
        .selector = d->selector,
        .access = access,
        .limit = access & SEG_G ? limit << 12 | 0xfff : limit,
        .base = (d->low >> 16 & 0xffffff) | (d->low >> 32 & 0xff000000) | d->high << 32,
    };
}

struct segment segment_null(u16 selector, unsigned dpl)
{
    return (struct segment){.selector = selector, .access = SEG_UNUSABLE | dpl << SEG_DPL_SHIFT};
}

u64 descriptor_gate_offset(const struct descriptor *gate)
{
    if (!(descriptor_access(gate) & DESCRIPTOR_32))
        return gate->low & 0xffff;
    return (gate->low & 0xffff) | (gate->low >> 32 & 0xffff0000) | gate->high << 32;
}

static unsigned rpl(const struct descriptor *d)
{
    return d->selector & 3;
}

static u8 if_present(const struct descriptor *d, u8 vector)
{
    return descriptor_access(d) & SEG_P ? 0 : vector;
}

u8 descriptor_check_data(const struct descriptor *d, unsigned cpl)
{
    u8 access = descriptor_access(d);
    bool conforming = (access & (CODE | CONFORMING_OR_DOWN)) == (CODE | CONFORMING_OR_DOWN);

    if (!(access & SEG_S) || (access & (CODE | READ_OR_WRITE)) == CODE)
        return VECTOR_GP;
    if (!conforming && MAX(rpl(d), cpl) > descriptor_dpl(d))
        return VECTOR_GP;
    return if_present(d, VECTOR_NP);
}

u8 descriptor_check_stack(const struct descriptor *d, unsigned cpl)
{
    u8 access = descriptor_access(d);

    if ((access & (SEG_S | CODE | READ_OR_WRITE)) != (SEG_S | READ_OR_WRITE) || rpl(d) != cpl ||
        descriptor_dpl(d) != cpl)
        return VECTOR_GP;
    return if_present(d, VECTOR_SS);
}

u8 descriptor_check_ldt(const struct descriptor *d)
{
    if ((descriptor_access(d) & (SEG_S | SEG_TYPE)) != DESCRIPTOR_LDT)
        return VECTOR_GP;
    return if_present(d, VECTOR_NP);
}

static bool code_privilege(const struct descriptor *d, unsigned cpl, enum code_transfer how)
{
    unsigned dpl = descriptor_dpl(d);
    bool conforming = descriptor_access(d) & CONFORMING_OR_DOWN;

    switch (how) {
    case CODE_DIRECT:
        return conforming ? dpl <= cpl : dpl == cpl && rpl(d) <= cpl;
    case CODE_GATE_JUMP:
        return conforming ? dpl <= cpl : dpl == cpl;
    case CODE_GATE_CALL:
        return dpl <= cpl;
    default:
        return rpl(d) >= cpl && (conforming ? dpl <= rpl(d) : dpl == rpl(d));
    }
}

u8 descriptor_check_code(const struct descriptor *d, unsigned cpl, enum code_transfer how,
                         bool long_mode)
{
    bool gate = how == CODE_GATE_JUMP || how == CODE_GATE_CALL;
    u64 size = d->low >> 40 & (SEG_L | SEG_DB);

    if (!descriptor_is_code(d))
        return VECTOR_GP;
    // In IA-32e mode L and D may not both be set, and a gate leads to 64-bit code only.
    if (long_mode && (size == (SEG_L | SEG_DB) || (gate && size != SEG_L)))
        return VECTOR_GP;
    if (!code_privilege(d, cpl, how))
        return VECTOR_GP;
    return if_present(d, VECTOR_NP);
}

u8 descriptor_check_gate(const struct descriptor *d, unsigned cpl)
{
    if (descriptor_dpl(d) < MAX(rpl(d), cpl))
        return VECTOR_GP;
    return if_present(d, VECTOR_NP);
}
