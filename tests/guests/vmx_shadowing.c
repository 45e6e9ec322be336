// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMCS shadowing for a small hypervisor: its L2's VMREAD and VMWRITE reach the VMCS that the link
// pointer names where the bitmaps allow it, and exit where they don't (SDM vol. 3 "VMCS Types:
// Ordinary and Shadow", "Instructions That Cause VM Exits Conditionally"; VMREAD, VMWRITE).

#include "vmx.h"

#define SHADOW_INDICATOR BIT(31)

// Field in RCX, value in RDX; the flags in RBX.
L2(l2_read, "vmread %rcx, %rdx; pushfq; pop %rbx; vmcall");
L2(l2_write, "vmwrite %rdx, %rcx; pushfq; pop %rbx; vmcall");
L2(l2_read_memory, "vmread %rcx, (%rdi); pushfq; pop %rbx; vmcall");
L2(l2_write_memory, "vmwrite (%rdi), %rcx; pushfq; pop %rbx; vmcall");
// The same as a user: to 64-bit code at CPL 3 by IRET.
L2(l2_read_as_user,
   "push $0x33; push %rsp; pushfq; push $0x3b; lea 1f(%rip), %rax; push %rax; iretq; 1: vmread "
   "%rcx, %rdx; hlt");

static u32 *shadow;
static u8 *read_bitmap, *write_bitmap;

static void allow(u64 field, bool read, bool write)
{
    u8 bit = (u8)(1 << (field & 7));

    read_bitmap[field / 8] = (u8)((read_bitmap[field / 8] & ~bit) | (read ? 0 : bit));
    write_bitmap[field / 8] = (u8)((write_bitmap[field / 8] & ~bit) | (write ? 0 : bit));
}

static bool prepare(const void *code, u64 field, u64 value)
{
    init(code);
    if (!use_secondary(0, SECONDARY_VMCS_SHADOWING))
        return false;
    vmwrite(VMREAD_BITMAP, (u64)read_bitmap);
    vmwrite(VMWRITE_BITMAP, (u64)write_bitmap);
    vmwrite(VMCS_LINK_POINTER, (u64)shadow);
    l2_registers[RCX] = field;
    l2_registers[RDX] = value;
    return true;
}

// What the shadow VMCS holds, or its new value. It is current meanwhile, and clear at the end.
static u64 shadow_field(u64 field, const u64 *value)
{
    u64 old;

    vmptrld(shadow);
    old = vmread(field);
    if (value)
        vmwrite(field, *value);
    vmclear(shadow);
    vmptrld(vmcs_region);
    return old;
}

static void set_shadow(u64 field, u64 value)
{
    shadow_field(field, &value);
}

static u64 l2_flags(void)
{
    return l2_registers[RBX] & (RFLAGS_CF | RFLAGS_ZF);
}

static void test_reads(void)
{
    static const struct {
        const char *name;
        u64 field, value, seen;
    } rows[] = {
        {"16 bits", GUEST_CS_SELECTOR, 0x1238, 0x1238},
        {"32 bits", GUEST_CS_LIMIT, 0x12345678, 0x12345678},
        {"64 bits", TSC_OFFSET, 0x123456789abcdef0, 0x123456789abcdef0},
        {"the high half of 64 bits", TSC_OFFSET + 1, 0, 0x12345678},
        {"natural width", GUEST_RIP, 0xffff800012345678, 0xffff800012345678},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        prepare(l2_read, rows[i].field, 0);
        if (!(rows[i].field & 1))
            set_shadow(rows[i].field, rows[i].value);
        allow(rows[i].field, true, false);
        report_exit(run() == REASON_VMCALL && !l2_flags() && l2_registers[RDX] == rows[i].seen,
                    rows[i].name);
        prepare(l2_write, rows[i].field, 1);
        report_exit(run() == REASON_VMWRITE && at(l2_write), "a write that is not allowed exits");
        allow(rows[i].field, false, false);
        prepare(l2_read, rows[i].field, 1);
        report_exit(run() == REASON_VMREAD && at(l2_read), "a read that is not allowed exits");
    }
}

static void test_writes(void)
{
    static u64 operand;

    allow(GUEST_RSP, true, true);
    allow(TSC_OFFSET, true, true);
    allow(TSC_OFFSET + 1, true, true);
    prepare(l2_write, GUEST_RSP, 0x1122334455667788);
    set_shadow(GUEST_RSP, 1);
    report_exit(run() == REASON_VMCALL && !l2_flags() &&
                    shadow_field(GUEST_RSP, NULL) == 0x1122334455667788,
                "a write is in the shadow VMCS");
    report(vmread(GUEST_RSP) != 0x1122334455667788, "and not in the current one");
    prepare(l2_write, TSC_OFFSET + 1, 0xaabbccdd);
    set_shadow(TSC_OFFSET, 5);
    report_exit(run() == REASON_VMCALL && shadow_field(TSC_OFFSET, NULL) == 0xaabbccdd00000005,
                "a write of the high half");
    prepare(l2_write_memory, GUEST_RSP, 0);
    operand = 77;
    l2_registers[RDI] = (u64)&operand;
    report_exit(run() == REASON_VMCALL && shadow_field(GUEST_RSP, NULL) == 77,
                "a write from memory");
    prepare(l2_read_memory, GUEST_RSP, 0);
    l2_registers[RDI] = (u64)&operand;
    set_shadow(GUEST_RSP, 78);
    report_exit(run() == REASON_VMCALL && operand == 78, "a read to memory");
}

static void test_failures(void)
{
    const u64 nothing = 0x7ffe; // no such field

    allow(GUEST_RSP, true, true);
    allow(nothing, true, true);
    prepare(l2_read, GUEST_RSP, 0);
    vmwrite(VMCS_LINK_POINTER, ~0ull);
    report_exit(run() == REASON_VMCALL && l2_flags() == RFLAGS_CF, "a read without a link: CF");
    prepare(l2_write, GUEST_RSP, 0);
    vmwrite(VMCS_LINK_POINTER, ~0ull);
    report_exit(run() == REASON_VMCALL && l2_flags() == RFLAGS_CF, "a write without a link: CF");
    prepare(l2_read, nothing, 0);
    report_exit(run() == REASON_VMCALL && l2_flags() == RFLAGS_ZF &&
                    vmread(VM_INSTRUCTION_ERROR) == 12,
                "a field that does not exist: ZF, error 12");
    prepare(l2_read, BIT(15) | GUEST_RSP, 0);
    report_exit(run() == REASON_VMREAD, "an encoding of more than 15 bits exits");
    prepare(l2_write, BIT(40) | GUEST_RSP, 0);
    report_exit(run() == REASON_VMWRITE, "and so does one of more than 32");
    prepare(l2_read_memory, GUEST_RSP, 0);
    l2_registers[RDI] = 1ull << 62;
    run();
    report(in_handler(VECTOR_GP), "a non-canonical operand: #GP");
    prepare(l2_read_as_user, GUEST_RSP, 0);
    vmwrite(EXCEPTION_BITMAP, BIT(VECTOR_GP));
    report_exit(run() == REASON_EXCEPTION_NMI && excepted(TYPE_EXCEPTION, VECTOR_GP, true),
                "a user's read that is allowed: #GP");
    allow(GUEST_RSP, false, true);
    prepare(l2_read_as_user, GUEST_RSP, 0);
    vmwrite(EXCEPTION_BITMAP, BIT(VECTOR_GP));
    report_exit(run() == REASON_VMREAD, "a user's read that is not: it exits before #GP");
}

// "Checks on Guest Non-Register State": what is linked is a shadow VMCS just if there is shadowing.
static void test_link(void)
{
    prepare(l2_read, GUEST_RSP, 0);
    *shadow = (u32)vmx_basic & ~(u32)SHADOW_INDICATOR;
    report_exit(run() == (BIT(31) | REASON_INVALID_GUEST_STATE) && vmread(EXIT_QUALIFICATION) == 4,
                "an ordinary VMCS that is linked: reason 33, qualification 4");
    *shadow |= (u32)SHADOW_INDICATOR;
    prepare(l2_read, GUEST_RSP, 0);
    use_secondary(0, 0);
    report_exit(run() == (BIT(31) | REASON_INVALID_GUEST_STATE) && vmread(EXIT_QUALIFICATION) == 4,
                "a shadow VMCS without shadowing: the same");
    init(l2_read);
    vmclear(vmcs_region);
    vmptrld(shadow);
    // Bochs does not look
    report_known(MACHINE_BOCHS, run() == (FAILED | RFLAGS_CF), "no entry with a shadow VMCS: CF");
    vmclear(shadow);
    vmptrld(vmcs_region);
}

void guest_main(void)
{
    if (!vmx_start()) {
        report(false, "no VMX");
        return;
    }
    shadow = pages(1);
    read_bitmap = pages(1);
    write_bitmap = pages(1);
    if (!prepare(l2_read, 0, 0)) {
        report_skip("no VMCS shadowing");
        return;
    }
    for (unsigned i = 0; i < PAGE_SIZE; i++)
        read_bitmap[i] = write_bitmap[i] = 0xff;
    *shadow = (u32)vmx_basic | (u32)SHADOW_INDICATOR;
    vmclear(shadow);
    test_reads();
    test_writes();
    test_failures();
    test_link();
}
