// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: svm/exit.c
//
// The SVM back end's pure parts: EXITCODE and EXITINFO to struct vm_exit, EXITINTINFO to an event,
// with and without nRIP save and decode assists.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/regs.h>

#include "svm/exit.h"

u32 svm_features;

static struct vmcb vmcb;
static struct vm_exit result;

static int reset(void **state)
{
    (void)state;
    memset(&vmcb, 0, sizeof(vmcb));
    memset(&result, 0xee, sizeof(result));
    vmcb.rip = 0x1000;
    svm_features = 0;
    return 0;
}

static void take(u64 code, u64 info1, u64 info2)
{
    vmcb.exitcode = code;
    vmcb.exitinfo1 = info1;
    vmcb.exitinfo2 = info2;
    svm_fill_exit(&vmcb, &result);
    assert_int_equal(result.raw_reason, code);
    assert_int_equal(result.entry_failed, result.kind == EXIT_ENTRY_FAILED);
}

static void test_cpuid_without_nrip(void **state)
{
    (void)state;
    vmcb.nrip = 0x1002; // what the CPU does not promise is not used
    take(VMEXIT_CPUID, 0, 0);
    assert_int_equal(result.kind, EXIT_CPUID);
    assert_int_equal(result.insn_len, 0);
    assert_int_equal(result.next_rip, 0);
    assert_false(result.interrupted.valid);
    assert_false(result.operand.known);
}

static void test_cpuid_with_nrip(void **state)
{
    (void)state;
    svm_features = SVM_FEATURE_NRIPS;
    vmcb.nrip = 0x1002;
    take(VMEXIT_CPUID, 0, 0);
    assert_int_equal(result.insn_len, 2);
    assert_int_equal(result.next_rip, 0x1002);
    // An exit that is no instruction's has no length, whatever nRIP holds.
    take(VMEXIT_INTR, 0, 0);
    assert_int_equal(result.kind, EXIT_EXTERNAL_INTERRUPT);
    assert_int_equal(result.insn_len, 0);
    assert_false(result.vector_valid);
}

static void test_kinds(void **state)
{
    static const struct {
        u64 code;
        u8 kind;
    } rows[] = {
        {VMEXIT_CR0_READ, EXIT_CR},
        {VMEXIT_CR0_WRITE + 15, EXIT_CR},
        {VMEXIT_DR0_READ, EXIT_DR},
        {VMEXIT_DR0_WRITE + 15, EXIT_DR},
        {VMEXIT_EXCP0, EXIT_EXCEPTION},
        {VMEXIT_EXCP0 + 17, EXIT_EXCEPTION},
        {VMEXIT_EXCP0 + 18, EXIT_MACHINE_CHECK},
        {VMEXIT_EXCP0 + 19, EXIT_EXCEPTION},
        {VMEXIT_EXCP0 + 31, EXIT_EXCEPTION},
        {VMEXIT_NMI, EXIT_NMI},
        {VMEXIT_SMI, EXIT_NONE},
        {VMEXIT_INIT, EXIT_INIT},
        {VMEXIT_VINTR, EXIT_INTERRUPT_WINDOW},
        {VMEXIT_CR0_SEL_WRITE, EXIT_CR},
        {VMEXIT_RDTSC, EXIT_RDTSC},
        {VMEXIT_RDPMC, EXIT_RDPMC},
        {VMEXIT_PUSHF, EXIT_PUSHF},
        {VMEXIT_POPF, EXIT_POPF},
        {VMEXIT_RSM, EXIT_RSM},
        {VMEXIT_IRET, EXIT_IRET},
        {VMEXIT_SWINT, EXIT_SOFT_INT},
        {VMEXIT_INVD, EXIT_INVD},
        {VMEXIT_PAUSE, EXIT_PAUSE},
        {VMEXIT_HLT, EXIT_HLT},
        {VMEXIT_INVLPG, EXIT_INVLPG},
        {VMEXIT_INVLPGA, EXIT_INVLPGA},
        {VMEXIT_IOIO, EXIT_IO},
        {VMEXIT_TASK_SWITCH, EXIT_TASK_SWITCH},
        {VMEXIT_FERR_FREEZE, EXIT_FERR_FREEZE},
        {VMEXIT_SHUTDOWN, EXIT_TRIPLE_FAULT},
        {VMEXIT_VMRUN, EXIT_VMRUN},
        {VMEXIT_VMMCALL, EXIT_VMMCALL},
        {VMEXIT_VMLOAD, EXIT_VMLOAD},
        {VMEXIT_VMSAVE, EXIT_VMSAVE},
        {VMEXIT_STGI, EXIT_STGI},
        {VMEXIT_CLGI, EXIT_CLGI},
        {VMEXIT_SKINIT, EXIT_SKINIT},
        {VMEXIT_RDTSCP, EXIT_RDTSCP},
        {VMEXIT_ICEBP, EXIT_ICEBP},
        {VMEXIT_WBINVD, EXIT_WBINVD},
        {VMEXIT_MONITOR, EXIT_MONITOR},
        {VMEXIT_MWAIT, EXIT_MWAIT},
        {VMEXIT_MWAIT_CONDITIONAL, EXIT_MWAIT},
        {VMEXIT_XSETBV, EXIT_XSETBV},
        {VMEXIT_RDPRU, EXIT_RDPRU},
        {VMEXIT_INVPCID, EXIT_INVPCID},
        {VMEXIT_INVLPGB, EXIT_UNDEFINED}, // which would end the guest, or a guest's L1
        {VMEXIT_INVLPGB_ILLEGAL, EXIT_UNDEFINED},
        {VMEXIT_TLBSYNC, EXIT_UNDEFINED},
        {VMEXIT_NPF, EXIT_STAGE2},
        {VMEXIT_INVALID, EXIT_ENTRY_FAILED},
        {0xffffffff, EXIT_ENTRY_FAILED},
        {VMEXIT_BUSY, EXIT_ENTRY_FAILED},
        {0xa7, EXIT_UNKNOWN},
        {0x3ff, EXIT_UNKNOWN},
        {VMEXIT_AVIC_NOACCEL, EXIT_UNKNOWN},
        {VMEXIT_VMGEXIT, EXIT_UNKNOWN},
        {0x8000000000000000ull, EXIT_UNKNOWN},
    };

    (void)state;
    for (u32 i = 0; i < ARRAY_SIZE(rows); i++) {
        take(rows[i].code, 0, 0);
        assert_int_equal(result.kind, rows[i].kind);
    }
    for (u64 code = 0; code < 0x500; code++)
        take(code, 0, 0); // every code is safe to take
}

static void test_io(void **state)
{
    (void)state;
    // REP INSW with a 32-bit address from ES, port 0x1f0.
    take(VMEXIT_IOIO, 0x1f00000 | BIT(8) | BIT(5) | SVM_IOIO_REP | SVM_IOIO_STR | SVM_IOIO_IN,
         0x1003);
    assert_int_equal(result.io.port, 0x1f0);
    assert_int_equal(result.io.size, 2);
    assert_true(result.io.in && result.io.string && result.io.rep);
    assert_int_equal(result.io.addr_size, 4);
    assert_int_equal(result.io.seg, 0xff);
    assert_int_equal(result.insn_len, 3);
    assert_int_equal(result.next_rip, 0x1003);
    svm_features = SVM_FEATURE_DECODE_ASSISTS;
    take(VMEXIT_IOIO, 0x800000 | 5 << 10 | BIT(9) | BIT(6) | SVM_IOIO_STR, 0x1002); // OUTSD from GS
    assert_int_equal(result.io.seg, SEG_GS);
    assert_int_equal(result.io.addr_size, 8);
    assert_int_equal(result.io.size, 4);
    assert_false(result.io.in || result.io.rep);
    take(VMEXIT_IOIO, 0x4020000 | BIT(4), 0x1001); // QEMU gives no address size
    assert_int_equal(result.io.addr_size, 0xff);
    assert_int_equal(result.io.port, 0x402);
}

static void test_msr(void **state)
{
    (void)state;
    take(VMEXIT_MSR, 0, 0);
    assert_int_equal(result.kind, EXIT_RDMSR);
    take(VMEXIT_MSR, 1, 0);
    assert_int_equal(result.kind, EXIT_WRMSR);
}

static void test_cr_and_dr(void **state)
{
    (void)state;
    take(VMEXIT_CR0_WRITE + 4, SVM_CR_VALID | 11, 0);
    assert_int_equal(result.cr.number, 4);
    assert_int_equal(result.cr.access, CR_WRITE);
    assert_int_equal(result.cr.gpr, EXIT_GPR_UNKNOWN);
    svm_features = SVM_FEATURE_DECODE_ASSISTS;
    take(VMEXIT_CR0_READ + 8, SVM_CR_VALID | 11, 0);
    assert_int_equal(result.cr.number, 8);
    assert_int_equal(result.cr.access, CR_READ);
    assert_int_equal(result.cr.gpr, 11);
    take(VMEXIT_CR0_WRITE, 3, 0); // CLTS or LMSW: not a MOV
    assert_int_equal(result.cr.gpr, EXIT_GPR_UNKNOWN);
    assert_false(result.cr.selective);
    take(VMEXIT_CR0_SEL_WRITE, SVM_CR_VALID | 2, 0);
    assert_int_equal(result.cr.number, 0);
    assert_int_equal(result.cr.access, CR_WRITE);
    assert_true(result.cr.selective);
    take(VMEXIT_DR0_WRITE + 7, 6, 0);
    assert_int_equal(result.dr.number, 7);
    assert_true(result.dr.write);
    assert_int_equal(result.dr.gpr, 6);
    take(VMEXIT_DR0_READ + 6, 6, 0);
    assert_false(result.dr.write);
}

static void test_nested_page_fault(void **state)
{
    (void)state;
    vmcb.insn_bytes_count = 15;
    vmcb.insn_bytes[0] = 0x8b;
    take(VMEXIT_NPF, SVM_NPF_FINAL | PF_W | PF_U | PF_P, 0xfee000b0);
    assert_int_equal(result.stage2.gpa, 0xfee000b0);
    assert_true(result.stage2.write && result.stage2.present && result.stage2.gla_final &&
                result.stage2.user);
    assert_false(result.stage2.read || result.stage2.execute || result.stage2.gla_valid ||
                 result.stage2.reserved);
    assert_int_equal(result.bytes_count, 0);
    svm_features = SVM_FEATURE_DECODE_ASSISTS;
    take(VMEXIT_NPF, SVM_NPF_FINAL | PF_U, 0x1000);
    assert_true(result.stage2.read);
    assert_false(result.stage2.present);
    assert_int_equal(result.bytes_count, 15);
    assert_int_equal(result.bytes[0], 0x8b);
    take(VMEXIT_NPF, SVM_NPF_TABLE | PF_U | PF_W | PF_RSVD, 0x1000);
    assert_false(result.stage2.gla_final);
    assert_true(result.stage2.reserved);
    assert_int_equal(result.bytes_count, 0);
    take(VMEXIT_NPF, SVM_NPF_FINAL | PF_I, 0);
    assert_true(result.stage2.execute && !result.stage2.read);
}

static void test_exceptions(void **state)
{
    (void)state;
    take(VMEXIT_EXCP0 + VECTOR_PF, PF_W | PF_U, 0x7fff1234);
    assert_true(result.event.valid && result.event.has_error && result.event.has_payload);
    assert_int_equal(result.event.type, EVENT_EXCEPTION);
    assert_int_equal(result.event.error, PF_W | PF_U);
    assert_int_equal(result.event.payload, 0x7fff1234);
    take(VMEXIT_EXCP0 + VECTOR_UD, 0x55, 0);
    assert_false(result.event.has_error || result.event.has_payload);
    assert_int_equal(result.event.error, 0);
    vmcb.dr6 = DR6_FIXED | DR6_BS | DR6_B(1);
    take(VMEXIT_EXCP0 + VECTOR_DB, 0, 0);
    assert_int_equal(result.event.payload, DR6_BS | DR6_B(1));
    vmcb.dr6 = (DR6_FIXED & ~(u64)DR6_RTM) | DR6_BD;
    take(VMEXIT_EXCP0 + VECTOR_DB, 0, 0);
    assert_int_equal(result.event.payload, DR6_BD | DR6_RTM);
    vmcb.dr6 = DR6_FIXED;
    take(VMEXIT_EXCP0 + VECTOR_DB, 0, 0);
    assert_int_equal(result.event.payload, DR6_BS); // Bochs 2.7
    take(VMEXIT_EXCP0 + VECTOR_BP, 0, 0);
    assert_int_equal(result.event.type, EVENT_SOFT_EXCEPTION);
    assert_int_equal(result.event.insn_len, 0);
    svm_features = SVM_FEATURE_NRIPS;
    vmcb.nrip = 0x1001;
    take(VMEXIT_EXCP0 + VECTOR_BP, 0, 0);
    assert_int_equal(result.event.insn_len, 1);
    vmcb.nrip = 0; // not valid for this exit: no nonsense length
    take(VMEXIT_EXCP0 + VECTOR_OF, 0, 0);
    assert_int_equal(result.event.insn_len, 0);
}

static void test_interrupted_delivery(void **state)
{
    (void)state;
    vmcb.exitintinfo = SVM_EVENT_V | SVM_EVENT_EV | SVM_EVENT_EXCEPTION << SVM_EVENT_TYPE_SHIFT |
                       VECTOR_PF | 7ull << 32;
    take(VMEXIT_NPF, SVM_NPF_FINAL | PF_W, 0x5000);
    assert_true(result.interrupted.valid && result.interrupted.has_error);
    assert_false(result.interrupted.has_payload);
    assert_int_equal(result.interrupted.vector, VECTOR_PF);
    assert_int_equal(result.interrupted.type, EVENT_EXCEPTION);
    assert_int_equal(result.interrupted.error, 7);
    vmcb.exitintinfo = SVM_EVENT_V | SVM_EVENT_SOFT_INT << SVM_EVENT_TYPE_SHIFT | 0x80;
    take(VMEXIT_NPF, SVM_NPF_FINAL | PF_W, 0x5000);
    assert_int_equal(result.interrupted.type, EVENT_SOFT_INTERRUPT);
    assert_int_equal(result.interrupted.vector, 0x80);
    assert_false(result.interrupted.has_error);
    vmcb.exitintinfo = SVM_EVENT_V | SVM_EVENT_EXCEPTION << SVM_EVENT_TYPE_SHIFT | VECTOR_BP;
    take(VMEXIT_NPF, 0, 0);
    assert_int_equal(result.interrupted.type, EVENT_SOFT_EXCEPTION);
    vmcb.exitintinfo = SVM_EVENT_V | SVM_EVENT_NMI << SVM_EVENT_TYPE_SHIFT | 2;
    take(VMEXIT_NPF, 0, 0);
    assert_int_equal(result.interrupted.type, EVENT_NMI);
    vmcb.exitintinfo = SVM_EVENT_V | 0x30;
    take(VMEXIT_NPF, 0, 0);
    assert_int_equal(result.interrupted.type, EVENT_INTERRUPT);
    assert_int_equal(result.interrupted.vector, 0x30);
}

static void test_task_switch(void **state)
{
    (void)state;
    take(VMEXIT_TASK_SWITCH, 0x28, SVM_TASK_IRET);
    assert_int_equal(result.task.selector, 0x28);
    assert_int_equal(result.task.source, 1);
    take(VMEXIT_TASK_SWITCH, 0x28, SVM_TASK_JMP | SVM_TASK_RF);
    assert_int_equal(result.task.source, 2);
    assert_true(result.task.rf);
    take(VMEXIT_TASK_SWITCH, 0x28, 0);
    assert_int_equal(result.task.source, 0);
    vmcb.exitintinfo = SVM_EVENT_V | SVM_EVENT_EXCEPTION << SVM_EVENT_TYPE_SHIFT | VECTOR_DF;
    take(VMEXIT_TASK_SWITCH, 0x28, SVM_TASK_HAS_ERROR | 0x123);
    assert_int_equal(result.task.source, 3);
    assert_true(result.task.has_error);
    assert_int_equal(result.task.error, 0x123);
}

static void test_tables_and_linear(void **state)
{
    static const u8 identity[] = {1, 0, 0, 1, 3, 2, 2, 3};

    (void)state;
    for (u32 i = 0; i < 8; i++) {
        take(VMEXIT_IDTR_READ + i, 0, 0);
        assert_int_equal(result.operand.identity, identity[i]);
        assert_int_equal(result.kind, i % 4 < 2 ? EXIT_GDTR_IDTR : EXIT_LDTR_TR);
    }
    take(VMEXIT_INVLPG, 0x4000, 0);
    assert_false(result.operand.known);
    svm_features = SVM_FEATURE_DECODE_ASSISTS;
    take(VMEXIT_INVLPG, 0x4000, 0);
    assert_true(result.operand.known);
    assert_int_equal(result.linear, 0x4000);
    take(VMEXIT_SWINT, 0x80, 0);
    assert_true(result.event.valid);
    assert_int_equal(result.event.vector, 0x80);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_cpuid_without_nrip, reset),
        cmocka_unit_test_setup(test_cpuid_with_nrip, reset),
        cmocka_unit_test_setup(test_kinds, reset),
        cmocka_unit_test_setup(test_io, reset),
        cmocka_unit_test_setup(test_msr, reset),
        cmocka_unit_test_setup(test_cr_and_dr, reset),
        cmocka_unit_test_setup(test_nested_page_fault, reset),
        cmocka_unit_test_setup(test_exceptions, reset),
        cmocka_unit_test_setup(test_interrupted_delivery, reset),
        cmocka_unit_test_setup(test_task_switch, reset),
        cmocka_unit_test_setup(test_tables_and_linear, reset),
    };

    return cmocka_run_group_tests_name("svm exits", tests, NULL, NULL);
}
