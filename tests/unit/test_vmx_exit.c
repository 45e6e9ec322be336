// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// VMX exit information to struct vm_exit, with values laid out by hand from the SDM's tables.
// unit-sources: vmx/exit.c

#include "vmx/exit.h"
#include <nestor/segment.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct vm_exit decode(u32 reason, const struct vmx_exit_info *info)
{
    const struct vmx_exit_reason *entry = vmx_exit_reason(reason);
    struct vm_exit exit;

    memset(&exit, 0, sizeof(exit));
    exit.kind = entry->kind;
    if (entry->fill)
        entry->fill(&exit, info);
    return exit;
}

static void test_every_reason_has_a_name(void **state)
{
    (void)state;
    for (u32 i = 0; i <= REASON_COUNT; i++)
        assert_non_null(vmx_exit_reason(i)->name);
    assert_int_equal(vmx_exit_reason(REASON_COUNT)->kind, EXIT_UNKNOWN);
    assert_int_equal(vmx_exit_reason(0xffff)->kind, EXIT_UNKNOWN);
    assert_int_equal(vmx_exit_reason(35)->kind, EXIT_UNKNOWN);
    // they exit at any CPL: a user program must not end its guest
    assert_int_equal(vmx_exit_reason(76)->kind, EXIT_UNDEFINED); // SEAMCALL
    assert_int_equal(vmx_exit_reason(77)->kind, EXIT_UNDEFINED); // TDCALL
    assert_int_equal(vmx_exit_reason(0x80000021)->kind, EXIT_ENTRY_FAILED);
    assert_string_equal(vmx_exit_reason(10)->name, "CPUID");
    assert_int_equal(vmx_exit_reason(10)->needs, NEED_LENGTH);
}

static void test_exceptions(void **state)
{
    // #PF, error code delivered, with the address in the qualification
    struct vmx_exit_info info = {
        .interruption = 0x80000b0e, .interruption_error = 6, .qualification = 0x1234567890};
    struct vm_exit exit = decode(REASON_EXCEPTION_NMI, &info);

    (void)state;
    assert_int_equal(exit.kind, EXIT_EXCEPTION);
    assert_int_equal(exit.event.vector, 14);
    assert_int_equal(exit.event.type, EVENT_EXCEPTION);
    assert_true(exit.event.has_error && exit.event.has_payload);
    assert_int_equal(exit.event.error, 6);
    assert_true(exit.event.payload == 0x1234567890);
    assert_false(exit.nmi_unblocked_by_iret);

    // #DB: B1, BS; what is no payload is dropped
    info = (struct vmx_exit_info){.interruption = 0x80000301,
                                  .qualification = 0x4002 | BIT(12) | BIT(5)};
    exit = decode(REASON_EXCEPTION_NMI, &info);
    assert_true(exit.event.payload == 0x4002);
    assert_false(exit.event.has_error);

    // neither INT1 nor general detect is a step
    info =
        (struct vmx_exit_info){.interruption = 0x80000501, .qualification = 0x4001, .insn_len = 1};
    exit = decode(REASON_EXCEPTION_NMI, &info);
    assert_true(exit.event.type == EVENT_INT1 && exit.event.insn_len == 1);
    assert_true(exit.event.payload == 1);
    info = (struct vmx_exit_info){.interruption = 0x80000301, .qualification = 0x6000};
    assert_true(decode(REASON_EXCEPTION_NMI, &info).event.payload == 0x2000);

    // #GP by IRET that had opened NMIs; not so while an event was being delivered, or for #DF
    info = (struct vmx_exit_info){.interruption = 0x80001b0d};
    assert_true(decode(REASON_EXCEPTION_NMI, &info).nmi_unblocked_by_iret);
    info.vectoring = true;
    assert_false(decode(REASON_EXCEPTION_NMI, &info).nmi_unblocked_by_iret);
    info = (struct vmx_exit_info){.interruption = 0x80001b08};
    assert_false(decode(REASON_EXCEPTION_NMI, &info).nmi_unblocked_by_iret);

    // INT3 has a length, #UD has none
    info = (struct vmx_exit_info){.interruption = 0x80000603, .insn_len = 1};
    exit = decode(REASON_EXCEPTION_NMI, &info);
    assert_int_equal(exit.event.type, EVENT_SOFT_EXCEPTION);
    assert_int_equal(exit.event.insn_len, 1);
    info = (struct vmx_exit_info){.interruption = 0x80000306, .insn_len = 7};
    assert_int_equal(decode(REASON_EXCEPTION_NMI, &info).event.insn_len, 0);

    info = (struct vmx_exit_info){.interruption = 0x80000202};
    assert_int_equal(decode(REASON_EXCEPTION_NMI, &info).kind, EXIT_NMI);
    info = (struct vmx_exit_info){.interruption = 0x80000312};
    assert_int_equal(decode(REASON_EXCEPTION_NMI, &info).kind, EXIT_MACHINE_CHECK);
}

static void test_interrupt(void **state)
{
    struct vmx_exit_info info = {.interruption = 0x800000f0};
    struct vm_exit exit = decode(REASON_EXTERNAL_INTERRUPT, &info);

    (void)state;
    assert_true(exit.vector_valid);
    assert_int_equal(exit.vector, 0xf0);
    info.interruption = 0;
    assert_false(decode(REASON_EXTERNAL_INTERRUPT, &info).vector_valid);
}

static void test_ept_violation(void **state)
{
    struct vmx_exit_info info = {.qualification = BIT(1) | 5 << 3 | BIT(7) | BIT(8) | BIT(12),
                                 .gpa = 0xfee00300,
                                 .gla = 0xffff800000001300};
    struct vm_exit exit = decode(REASON_EPT_VIOLATION, &info);

    (void)state;
    assert_int_equal(exit.kind, EXIT_STAGE2);
    assert_true(exit.stage2.write && !exit.stage2.read && !exit.stage2.execute);
    assert_true(exit.stage2.present && exit.stage2.gla_valid && exit.stage2.gla_final);
    assert_int_equal(exit.stage2.rights, 5);
    assert_true(exit.stage2.gpa == 0xfee00300 && exit.stage2.gla == 0xffff800000001300);
    assert_true(exit.nmi_unblocked_by_iret);
    info.qualification = BIT(2);
    exit = decode(REASON_EPT_VIOLATION, &info);
    assert_true(exit.stage2.execute && !exit.stage2.present && !exit.stage2.gla_valid);
    assert_true(decode(REASON_EPT_MISCONFIGURATION, &info).stage2.reserved);
}

static void test_io(void **state)
{
    // REP OUTSD fs:[esi], port DX = 0x1f0
    struct vmx_exit_info info = {.qualification = 0x1f00000 | 3 | BIT(4) | BIT(5),
                                 .insn_info = 1 << 7 | 4 << 15,
                                 .has_insn_info = true};
    struct vm_exit exit = decode(REASON_IO, &info);

    (void)state;
    assert_int_equal(exit.io.port, 0x1f0);
    assert_int_equal(exit.io.size, 4);
    assert_true(exit.io.string && exit.io.rep && !exit.io.in && !exit.io.immediate);
    assert_int_equal(exit.io.addr_size, 4);
    assert_int_equal(exit.io.seg, SEG_FS);
    // INSB always writes to ES
    info.qualification = 0x600000 | BIT(3) | BIT(4);
    info.insn_info = 2 << 7 | 3 << 15;
    exit = decode(REASON_IO, &info);
    assert_true(exit.io.in);
    assert_int_equal(exit.io.size, 1);
    assert_int_equal(exit.io.addr_size, 8);
    assert_int_equal(exit.io.seg, SEG_ES);
    info.has_insn_info = false;
    assert_int_equal(decode(REASON_IO, &info).io.addr_size, 0xff);
    // OUT 0x80, AX
    info.qualification = 0x800000 | 1 | BIT(6);
    exit = decode(REASON_IO, &info);
    assert_true(exit.io.immediate && !exit.io.string);
    assert_int_equal(exit.io.size, 2);
}

static void test_control_and_debug_registers(void **state)
{
    struct vmx_exit_info info = {.qualification = 4 | 1 << 4 | 11 << 8}; // MOV R11, CR4
    struct vm_exit exit = decode(REASON_CR_ACCESS, &info);

    (void)state;
    assert_int_equal(exit.cr.number, 4);
    assert_int_equal(exit.cr.access, CR_READ);
    assert_int_equal(exit.cr.gpr, 11);
    info.qualification = 3 << 4 | BIT(6) | 0xfff1ull << 16; // LMSW from memory
    exit = decode(REASON_CR_ACCESS, &info);
    assert_int_equal(exit.cr.access, CR_LMSW);
    assert_true(exit.cr.lmsw_memory);
    assert_int_equal(exit.cr.lmsw_source, 0xfff1);
    info.qualification = 7 | 3 << 8; // MOV DR7, RBX
    exit = decode(REASON_MOV_DR, &info);
    assert_int_equal(exit.dr.number, 7);
    assert_int_equal(exit.dr.gpr, 3);
    assert_true(exit.dr.write);
    info.qualification |= BIT(4);
    assert_false(decode(REASON_MOV_DR, &info).dr.write);
}

static void test_operands(void **state)
{
    // VMREAD [gs:rax + r9 * 8 - 16], RDX
    struct vmx_exit_info info = {.qualification = (u64)-16,
                                 .insn_info = 3 | 2 << 7 | 5 << 15 | 9 << 18 | 0 << 23 | 2u << 28};
    struct vm_exit exit = decode(REASON_VMREAD, &info);

    (void)state;
    assert_true(exit.operand.known && !exit.operand.is_reg);
    assert_int_equal(exit.operand.scale, 3);
    assert_int_equal(exit.operand.addr_size, 8);
    assert_int_equal(exit.operand.seg, SEG_GS);
    assert_int_equal(exit.operand.index, 9);
    assert_int_equal(exit.operand.base, 0);
    assert_int_equal(exit.operand.reg2, 2);
    assert_int_equal(exit.operand.displacement, -16);
    // VMWRITE R15, RBX: register form
    info.insn_info = 3 << 3 | BIT(10) | 15u << 28;
    exit = decode(REASON_VMWRITE, &info);
    assert_true(exit.operand.is_reg);
    assert_int_equal(exit.operand.reg1, 3);
    assert_int_equal(exit.operand.reg2, 15);
    // VMPTRLD with neither base nor index
    info.insn_info = BIT(22) | BIT(27) | 2 << 7 | 3 << 15;
    info.qualification = 0x5000;
    exit = decode(REASON_VMPTRLD, &info);
    assert_int_equal(exit.operand.base, EXIT_GPR_UNKNOWN);
    assert_int_equal(exit.operand.index, EXIT_GPR_UNKNOWN);
    assert_int_equal(exit.operand.displacement, 0x5000);
    // LIDT, 32-bit operand; LTR CX
    info.insn_info = 3u << 28 | BIT(11) | 1 << 7;
    exit = decode(REASON_GDTR_IDTR, &info);
    assert_int_equal(exit.operand.identity, 3);
    assert_int_equal(exit.operand.op_size, 4);
    info.insn_info = 3u << 28 | BIT(10) | 1 << 3;
    exit = decode(REASON_LDTR_TR, &info);
    assert_int_equal(exit.operand.identity, 3);
    assert_true(exit.operand.is_reg);
    assert_int_equal(exit.operand.reg1, 1);
    info.insn_info = 12 << 3 | 2 << 11; // RDRAND R12, 64 bits
    exit = decode(REASON_RDRAND, &info);
    assert_int_equal(exit.operand.reg1, 12);
    assert_int_equal(exit.operand.op_size, 8);
}

static void test_task_switch(void **state)
{
    struct vmx_exit_info info = {.qualification = 3u << 30 | 0x48};
    struct vm_exit exit = {.interrupted = {.valid = true, .has_error = true, .error = 0x10}};

    (void)state;
    vmx_exit_reason(REASON_TASK_SWITCH)->fill(&exit, &info);
    assert_int_equal(exit.task.selector, 0x48);
    assert_int_equal(exit.task.source, 3);
    assert_true(exit.task.has_error);
    assert_int_equal(exit.task.error, 0x10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_reason_has_a_name),
        cmocka_unit_test(test_exceptions),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_ept_violation),
        cmocka_unit_test(test_io),
        cmocka_unit_test(test_control_and_debug_registers),
        cmocka_unit_test(test_operands),
        cmocka_unit_test(test_task_switch),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
