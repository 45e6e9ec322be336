// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The virtual local APIC that an L1 gives its L2: CR8 and x2APIC MSRs from the virtual-APIC page,
// which is L1's memory, TPR threshold, virtual-interrupt delivery (SDM vol. 3 "APIC Virtualization
// and Virtual Interrupts"). All of it is worked out here, whatever the CPU has.

#include "vmcs12_switch.h"
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/decode.h>
#include <nestor/device.h>
#include <nestor/page.h>

enum apic_register {
    APIC_TPR = 0x80,
    APIC_PPR = 0xa0,
    APIC_EOI = 0xb0,
    APIC_ISR = 0x100,
    APIC_IRR = 0x200,
    APIC_ICR = 0x300,
    APIC_ICR_HIGH = 0x310,
    APIC_SELF_IPI = 0x3f0,
};
enum { ICR_LOGICAL = BIT(11), ICR_ASSERT = BIT(14), ICR_SELF = BIT(18) };

// --- the page ---

// What is not RAM reads as all ones, and is not written.
static u64 page_read(struct vcpu *vcpu, u32 offset, unsigned size)
{
    u64 value = 0;

    if (guest_read_gpa(vcpu, vmcs12_read(vcpu->nested, VIRTUAL_APIC_ADDRESS) + offset, &value,
                       size))
        return size == 8 ? ~0ull : 0xffffffff;
    return value;
}

static void page_write(struct vcpu *vcpu, u32 offset, u64 value, unsigned size)
{
    guest_write_gpa(vcpu, vmcs12_read(vcpu->nested, VIRTUAL_APIC_ADDRESS) + offset, &value, size);
}

static u32 reg_read(struct vcpu *vcpu, u32 offset)
{
    return (u32)page_read(vcpu, offset, 4);
}

static void reg_write(struct vcpu *vcpu, u32 offset, u32 value)
{
    page_write(vcpu, offset, value, 4);
}

static void vector_change(struct vcpu *vcpu, u32 bank, u8 vector, bool set)
{
    u32 offset = bank + (vector >> 5) * 0x10, bit = (u32)BIT(vector & 31);
    u32 value = reg_read(vcpu, offset);

    reg_write(vcpu, offset, set ? value | bit : value & ~bit);
}

static u8 vector_highest(struct vcpu *vcpu, u32 bank)
{
    for (unsigned word = 8; word--;) {
        u32 value = reg_read(vcpu, bank + word * 0x10);

        if (value)
            return (u8)(word * 32 + 31 - (unsigned)__builtin_clz(value));
    }
    return 0;
}

static bool primary_has(const struct vcpu *vcpu, u32 bit)
{
    return vmcs12_read(vcpu->nested, PRIMARY_CONTROLS) & bit;
}

static bool secondary_has(const struct vcpu *vcpu, u32 bit)
{
    return vmcs12_secondary(vcpu->nested) & bit;
}

// --- virtual interrupts ("Evaluation of Pending Virtual Interrupts", "Virtual-Interrupt
// Delivery") ---

static u8 requesting(const struct vcpu *vcpu)
{
    return (u8)vmcs12_read(vcpu->nested, GUEST_INTERRUPT_STATUS);
}

static u8 in_service(const struct vcpu *vcpu)
{
    return (u8)(vmcs12_read(vcpu->nested, GUEST_INTERRUPT_STATUS) >> 8);
}

static void set_status(struct vcpu *vcpu, u8 rvi, u8 svi)
{
    vmcs12_write(vcpu->nested, GUEST_INTERRUPT_STATUS, rvi | (u64)svi << 8);
}

static void virtualize_ppr(struct vcpu *vcpu)
{
    u8 tpr = (u8)reg_read(vcpu, APIC_TPR), svi = in_service(vcpu);

    reg_write(vcpu, APIC_PPR, tpr >> 4 >= svi >> 4 ? tpr : svi & 0xf0);
}

// RVI and VPPR change only where the SDM has it evaluated, so that at a boundary it can be worked
// out anew. It wakes what an external interrupt would.
int vmcs12_virtual_interrupt(struct vcpu *vcpu)
{
    u8 vector = requesting(vcpu);

    if (vcpu->cur->state.activity > ACTIVITY_HLT || primary_has(vcpu, PRIMARY_INTERRUPT_WINDOW) ||
        vector >> 4 <= (u8)reg_read(vcpu, APIC_PPR) >> 4)
        return -E_NOENT;
    return vector;
}

void vmcs12_virtual_taken(struct vcpu *vcpu)
{
    u8 vector = requesting(vcpu);

    vector_change(vcpu, APIC_ISR, vector, true);
    reg_write(vcpu, APIC_PPR, vector & 0xf0);
    vector_change(vcpu, APIC_IRR, vector, false);
    set_status(vcpu, vector_highest(vcpu, APIC_IRR), vector);
}

// --- TPR, EOI and self-IPI virtualization ---

static bool below_threshold(struct vcpu *vcpu)
{
    return (reg_read(vcpu, APIC_TPR) >> 4 & 0xf) < (vmcs12_read(vcpu->nested, TPR_THRESHOLD) & 0xf);
}

// Exits that are made behind the instruction.
static void exit_after(struct vcpu *vcpu, u32 reason, u64 qualification)
{
    const struct vm_exit none = {.kind = EXIT_NONE};

    vmcs12_exit(vcpu, reason, qualification, &none);
}

static void virtualize_tpr(struct vcpu *vcpu)
{
    if (secondary_has(vcpu, SECONDARY_INTERRUPT_DELIVERY)) {
        virtualize_ppr(vcpu);
    } else if (below_threshold(vcpu)) {
        exit_after(vcpu, REASON_TPR_BELOW_THRESHOLD, 0);
    }
}

static void virtualize_eoi(struct vcpu *vcpu)
{
    u8 vector = in_service(vcpu);
    u64 exits = vmcs12_read(vcpu->nested, (enum vmcs_field)(EOI_EXIT_BITMAP_0 + 2 * (vector >> 6)));

    vector_change(vcpu, APIC_ISR, vector, false);
    set_status(vcpu, requesting(vcpu), vector_highest(vcpu, APIC_ISR));
    virtualize_ppr(vcpu);
    if (exits >> (vector & 63) & 1)
        exit_after(vcpu, REASON_VIRTUALIZED_EOI, vector);
}

static void virtualize_self_ipi(struct vcpu *vcpu, u8 vector)
{
    vector_change(vcpu, APIC_IRR, vector, true);
    set_status(vcpu, MAX(requesting(vcpu), vector), in_service(vcpu));
}

// "VM Exits Induced by the TPR Threshold": once, before L2's first instruction; in shutdown not
// until something has ended that.
bool vmcs12_tpr_exit_due(struct vcpu *vcpu)
{
    if (vcpu->nested->tpr_checked || vcpu->cur->state.activity > ACTIVITY_HLT)
        return false;
    vcpu->nested->tpr_checked = true;
    return below_threshold(vcpu);
}

// That exit goes before all events that wait, but behind an injection (vmcs12_event.c).
void vmcs12_apic_enter(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;

    n->tpr_checked =
        !primary_has(vcpu, PRIMARY_TPR_SHADOW) || secondary_has(vcpu, SECONDARY_INTERRUPT_DELIVERY);
    if (secondary_has(vcpu, SECONDARY_INTERRUPT_DELIVERY)) {
        virtualize_ppr(vcpu);
        vcpu->events.nested_check = true;
    } else if (!vcpu->events.reinject.valid && vmcs12_tpr_exit_due(vcpu)) {
        n->exit_tsc = tsc_now();
        exit_after(vcpu, REASON_TPR_BELOW_THRESHOLD, 0);
    }
}

// --- CR8 ---

bool vmcs12_apic_cr8(struct vcpu *vcpu, struct vm_exit *exit)
{
    u64 value;

    if (!primary_has(vcpu, PRIMARY_TPR_SHADOW))
        return false;
    if (exit->cr.access == CR_READ) {
        vcpu_set_gpr(vcpu, exit->cr.gpr, reg_read(vcpu, APIC_TPR) >> 4 & 0xf);
        vcpu_finish_exit(vcpu, exit);
        return true;
    }
    value = vcpu_gpr(vcpu, exit->cr.gpr);
    if (value >> 4) {
        vcpu_inject_gp0(vcpu);
        return true;
    }
    reg_write(vcpu, APIC_TPR, (u32)value << 4);
    vcpu_finish_exit(vcpu, exit);
    virtualize_tpr(vcpu);
    return true;
}

// --- x2APIC MSRs ("Virtualizing MSR-Based APIC Accesses") ---

static bool read_msr(struct vcpu *vcpu, struct vm_exit *exit, u32 offset)
{
    u64 value;

    if (offset != APIC_TPR && !secondary_has(vcpu, SECONDARY_APIC_REGISTERS))
        return false;
    value = page_read(vcpu, offset, 8);
    vcpu->gpr[GPR_RAX] = (u32)value;
    vcpu->gpr[GPR_RDX] = value >> 32;
    vcpu_finish_exit(vcpu, exit);
    return true;
}

static bool write_msr(struct vcpu *vcpu, struct vm_exit *exit, u32 offset)
{
    u64 value = (u32)vcpu->gpr[GPR_RAX] | vcpu->gpr[GPR_RDX] << 32;
    bool delivers = secondary_has(vcpu, SECONDARY_INTERRUPT_DELIVERY);

    if (offset != APIC_TPR && !(delivers && (offset == APIC_EOI || offset == APIC_SELF_IPI)))
        return false;
    if (value >> (offset == APIC_EOI ? 0 : 8)) {
        vcpu_inject_gp0(vcpu);
        return true;
    }
    page_write(vcpu, offset, value, 8);
    vcpu_finish_exit(vcpu, exit);
    if (offset == APIC_TPR)
        virtualize_tpr(vcpu);
    else if (offset == APIC_EOI)
        virtualize_eoi(vcpu);
    else if (value >> 4)
        virtualize_self_ipi(vcpu, (u8)value);
    else
        exit_after(vcpu, REASON_APIC_WRITE, APIC_SELF_IPI);
    return true;
}

bool vmcs12_apic_msr(struct vcpu *vcpu, struct vm_exit *exit)
{
    u32 msr = (u32)vcpu->gpr[GPR_RCX], offset = (msr & 0xff) << 4;

    if (msr >> 8 != MSR_X2APIC_FIRST >> 8 || !secondary_has(vcpu, SECONDARY_X2APIC))
        return false;
    return exit->kind == EXIT_RDMSR ? read_msr(vcpu, exit, offset) : write_msr(vcpu, exit, offset);
}

// --- the APIC-access page ("Virtualizing Memory-Mapped APIC Accesses") ---

enum { ACCESS_VIRTUAL_READ = BIT(0), ACCESS_VIRTUAL_WRITE = BIT(1) };

// With APIC-register virtualization, by offset.
static const struct {
    u16 first, last;
    u8 virtual;
} page_rows[] = {
    {0x020, 0x020, ACCESS_VIRTUAL_READ | ACCESS_VIRTUAL_WRITE}, // ID
    {0x030, 0x030, ACCESS_VIRTUAL_READ},                        // version
    {0x080, 0x080, ACCESS_VIRTUAL_READ | ACCESS_VIRTUAL_WRITE}, // TPR
    {0x0b0, 0x0b0, ACCESS_VIRTUAL_READ | ACCESS_VIRTUAL_WRITE}, // EOI
    {0x0d0, 0x0f0, ACCESS_VIRTUAL_READ | ACCESS_VIRTUAL_WRITE}, // LDR, DFR, SVR
    {0x100, 0x270, ACCESS_VIRTUAL_READ},                        // ISR, TMR, IRR
    {0x280, 0x280, ACCESS_VIRTUAL_READ | ACCESS_VIRTUAL_WRITE}, // ESR
    {0x300, 0x380, ACCESS_VIRTUAL_READ | ACCESS_VIRTUAL_WRITE}, // ICR, LVT, initial count
    {0x3e0, 0x3e0, ACCESS_VIRTUAL_READ | ACCESS_VIRTUAL_WRITE}, // divide configuration
};

// The bytes that an instruction accesses there, 0: not known. The emulator does many repetitions of
// a string instruction at once, and not all of them need be virtual.
static unsigned access_size(const struct insn *insn)
{
    if (insn->op >= INSN_MOVS && insn->op <= INSN_OUTS && insn->prefixes & (INSN_REP | INSN_REPNE))
        return 0;
    return insn->has_mem ? insn->mem_size : insn->opsize;
}

// Whether an access to this register is virtualized; else it exits. All of it must lie in the low
// four bytes of the register's sixteen.
static bool is_virtual(const struct vcpu *vcpu, u32 offset, unsigned size, u8 access)
{
    u32 reg = offset & ~0xfu;

    if (!primary_has(vcpu, PRIMARY_TPR_SHADOW) || !size || (offset & 0xf) + size > 4)
        return false;
    if (reg == APIC_TPR)
        return true;
    if (access == ACCESS_VIRTUAL_WRITE && (reg == APIC_EOI || reg == APIC_ICR) &&
        secondary_has(vcpu, SECONDARY_INTERRUPT_DELIVERY))
        return true;
    if (!secondary_has(vcpu, SECONDARY_APIC_REGISTERS))
        return false;
    for (unsigned i = 0; i < ARRAY_SIZE(page_rows); i++)
        if (reg >= page_rows[i].first && reg <= page_rows[i].last)
            return page_rows[i].virtual & access;
    return false;
}

// A fixed, edge-triggered IPI to itself with a vector from 16 on. Level and destination mode do not
// matter.
static bool is_self_ipi(u32 icr)
{
    return (icr & ~(u32)(BITS(7, 0) | ICR_LOGICAL | ICR_ASSERT)) == ICR_SELF && (icr & 0xf0);
}

// "APIC-Write Emulation": behind an instruction that has written to the page.
static void page_written(struct vcpu *vcpu, u32 offset)
{
    u32 reg = offset & ~0xfu, value = reg_read(vcpu, reg);
    bool delivers = secondary_has(vcpu, SECONDARY_INTERRUPT_DELIVERY);

    if (reg == APIC_TPR) {
        reg_write(vcpu, APIC_TPR, value & 0xff);
        virtualize_tpr(vcpu);
    } else if (reg == APIC_EOI && delivers) {
        reg_write(vcpu, APIC_EOI, 0);
        virtualize_eoi(vcpu);
    } else if (reg == APIC_ICR && delivers && is_self_ipi(value)) {
        virtualize_self_ipi(vcpu, (u8)value);
    } else if (reg == APIC_ICR_HIGH) {
        reg_write(vcpu, APIC_ICR_HIGH, value & (u32)BITS(31, 24));
    } else {
        exit_after(vcpu, REASON_APIC_WRITE, offset);
    }
}

// Table "Exit Qualification for APIC-Access VM Exits from Linear Accesses and Guest-Physical
// Accesses": the type in bits 15:12.
static u64 access_type(const struct vcpu *vcpu, const struct exit_stage2 *s)
{
    bool delivery = vcpu->events.reinject.valid;

    if (!s->gla_valid || !s->gla_final)
        return delivery ? 10 : 15;
    return delivery ? 3 : s->execute ? 2 : s->write ? 1 : 0;
}

bool vmcs12_apic_page(struct vcpu *vcpu, struct vm_exit *exit)
{
    const struct exit_stage2 *s = &exit->stage2;
    u32 offset = s->gpa & ~PAGE_MASK;
    u8 access = s->write ? ACCESS_VIRTUAL_WRITE : ACCESS_VIRTUAL_READ;
    u64 type, rip = vcpu->cur->state.rip;
    struct insn insn;
    bool known;

    if (!secondary_has(vcpu, SECONDARY_APIC_ACCESSES) ||
        (s->gpa & PAGE_MASK) != vmcs12_read(vcpu->nested, APIC_ACCESS_ADDRESS))
        return false;
    type = access_type(vcpu, s);
    known = type <= 1 && insn_peek_current(vcpu, &insn);
    if (!known || !is_virtual(vcpu, offset, access_size(&insn), access)) {
        if (known) // as CPUs do
            exit->insn_len = insn.length;
        vmcs12_exit(vcpu, REASON_APIC_ACCESS, offset | type << 12, exit);
        return true;
    }
    vcpu_emulate(vcpu, exit); // which finds the virtual-APIC page there
    // Not if it faults, or is to be executed again.
    if (s->write && vcpu->level && !vcpu->events.exception.valid && vcpu->cur->state.rip != rip)
        page_written(vcpu, offset);
    return true;
}

// --- posted interrupts ("Posted-Interrupt Processing") ---

// The descriptor: 256 requests, then the outstanding-notification bit.
enum { POSTED_REQUESTS = 4, POSTED_BYTES = 40 };

bool vmcs12_is_posted(const struct vcpu *vcpu, int vector)
{
    const struct nested *n = vcpu->nested;

    return (vmcs12_read(n, PIN_BASED_CONTROLS) & PIN_POSTED_INTERRUPTS) &&
           vector == (int)vmcs12_read(n, POSTED_INTERRUPT_VECTOR);
}

void vmcs12_take_posted(struct vcpu *vcpu)
{
    u64 *descriptor =
        vm_ram_ptr(vcpu->vm, vmcs12_read(vcpu->nested, POSTED_INTERRUPT_DESCRIPTOR), POSTED_BYTES);

    irq_end(vcpu);
    if (!descriptor)
        return;
    __atomic_fetch_and(&descriptor[POSTED_REQUESTS], ~1ull, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < POSTED_REQUESTS; i++) {
        u64 posted = __atomic_exchange_n(&descriptor[i], 0, __ATOMIC_SEQ_CST);

        for (; posted; posted &= posted - 1)
            virtualize_self_ipi(vcpu, (u8)(i * 64 + (unsigned)__builtin_ctzll(posted)));
    }
}
