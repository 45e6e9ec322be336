// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The memory operands of VMX instructions: the address, with the checks of segments or canonical
// form (SDM vol. 2 and 3, "Exceptions" of each instruction; vol. 3 "Protection"), and the access.

#include "vmcs12.h"
#include <arch/x86/regs.h>
#include <nestor/decode.h>
#include <nestor/guest_walk.h>

// An exit made by Nestor's emulator has its operand like the hardware's; where it is not known, the
// instruction says it.
bool vmcs12_operand(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct insn insn;

    if (likely(exit->operand.known))
        return true;
    if (!insn_decode_current(vcpu, &insn))
        return false;
    insn_exit_operand(&insn, vcpu_state(vcpu, GROUP_RIP)->rip + insn.length, &exit->operand);
    return true;
}

static u64 effective_address(struct vcpu *vcpu, const struct exit_operand *op)
{
    u64 offset = (u64)op->displacement;

    if (op->base != EXIT_GPR_UNKNOWN)
        offset += vcpu_gpr(vcpu, op->base);
    if (op->index != EXIT_GPR_UNKNOWN)
        offset += vcpu_gpr(vcpu, op->index) << op->scale;
    return op->addr_size == 8 ? offset : offset & (op->addr_size == 4 ? 0xffffffff : 0xffff);
}

static bool is_canonical(struct vcpu *vcpu, u64 la)
{
    unsigned shift = cr_read_guest(vcpu, 4) & CR4_LA57 ? 7 : 16;

    return (u64)((s64)(la << shift) >> shift) == la;
}

// Outside 64-bit code: usable, of a type that can be read or written, within the limit.
static bool segment_allows(const struct segment *s, u64 offset, unsigned size, bool write)
{
    bool code = s->access & 8, read_write = s->access & 2;
    bool expand_down = (s->access & 0xc) == 4;
    u64 last = offset + size - 1;

    if ((s->access & SEG_UNUSABLE) || (write ? code || !read_write : code && !read_write))
        return false;
    if (!expand_down)
        return last <= s->limit;
    return offset > s->limit && last <= (s->access & SEG_DB ? 0xffffffff : 0xffff);
}

static bool is_64bit(struct vcpu *vcpu) // VMXON comes before VMX operation
{
    return vcpu->nested->vmxon ? vmcs12_64bit(vcpu) : vcpu_mode_64bit(vcpu);
}

// False: a fault is injected.
static bool linear_address(struct vcpu *vcpu, const struct exit_operand *op, unsigned size,
                           bool write, gva_t *la)
{
    static const u32 groups[SEG_COUNT] = {GROUP_DATA,   GROUP_CODE,   GROUP_CODE,   GROUP_DATA,
                                          GROUP_SYSTEM, GROUP_SYSTEM, GROUP_SYSTEM, GROUP_SYSTEM};
    const struct guest_state *s = vcpu_state(vcpu, groups[op->seg & 7]);
    const struct segment *seg = &s->seg[op->seg & 7];
    u64 offset = effective_address(vcpu, op);
    bool allowed;

    if (is_64bit(vcpu)) {
        *la = offset + (op->seg == SEG_FS || op->seg == SEG_GS ? seg->base : 0);
        allowed = is_canonical(vcpu, *la) && is_canonical(vcpu, *la + size - 1);
    } else {
        *la = (u32)(offset + seg->base);
        allowed = segment_allows(seg, offset, size, write);
    }
    if (!allowed)
        vcpu_inject_exception(vcpu, op->seg == SEG_SS ? VECTOR_SS : VECTOR_GP, true, 0);
    return allowed;
}

bool vmcs12_operand_read(struct vcpu *vcpu, struct vm_exit *exit, void *value, unsigned size)
{
    gva_t la;

    return vmcs12_operand(vcpu, exit) && linear_address(vcpu, &exit->operand, size, false, &la) &&
           !guest_read_linear(vcpu, la, value, size, 0);
}

// Nothing is written if the end of the operand lies in a page that faults: that fault comes first.
static bool end_is_writable(struct vcpu *vcpu, gva_t la, const u8 *value, unsigned size)
{
    unsigned before = (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK));
    struct walk_fault fault;
    gpa_t gpa;
    u8 *host;

    return before >= size || !guest_translate(vcpu, la + before, WALK_WRITE, &gpa, &host, &fault) ||
           !guest_write_linear(vcpu, la + before, value + before, size - before, 0);
}

bool vmcs12_operand_write(struct vcpu *vcpu, struct vm_exit *exit, const void *value, unsigned size)
{
    gva_t la;

    return vmcs12_operand(vcpu, exit) && linear_address(vcpu, &exit->operand, size, true, &la) &&
           end_is_writable(vcpu, la, value, size) && !guest_write_linear(vcpu, la, value, size, 0);
}
