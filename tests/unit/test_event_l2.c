// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/event.c
//
// core/event.c with an L2: what L1 takes and when, what L2 takes, and that nothing is lost in
// between.

#include "event_fake.h"

static void test_l1_takes_an_exception(void **state)
{
    (void)state;
    in_l2();
    wanted_exceptions = BIT(VECTOR_PF);
    vcpu_inject_page_fault(&vcpu, PF_W, 0x5000);
    events_prepare(&vcpu);
    assert_int_equal(exits, 1);
    assert_int_equal(reflected.payload, 0x5000);
    assert_int_equal(vcpu.cr2, 0); // not delivered
    assert_int_equal(vcpu.level, 0);
    assert_false(vcpu.ctx[0].ctl.inject.valid || vcpu.ctx[1].ctl.inject.valid);
}

static void test_injection_is_not_asked_for(void **state)
{
    static const struct event gp = {.valid = true, .vector = VECTOR_GP, .type = EVENT_EXCEPTION};

    (void)state;
    in_l2();
    wanted_exceptions = ~0u;
    vcpu.events.reinject = gp;
    events_prepare(&vcpu);
    assert_int_equal(asked_exception, 0);
    expect_injected(EVENT_EXCEPTION, VECTOR_GP);
    assert_false(vcpu.cur->state.rflags & RFLAGS_RF); // L1's own value
}

static void test_injection_is_done_before_an_exit(void **state)
{
    static const struct event gp = {.valid = true, .vector = VECTOR_GP, .type = EVENT_EXCEPTION};

    (void)state;
    in_l2();
    answers[NESTED_INTERRUPT] = answers[NESTED_NMI] = NESTED_EXITED;
    vcpu.events.reinject = gp;
    vcpu.events.nmi_count = 1;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    assert_int_equal(exits, 0);
    assert_true(vcpu.immediate_exit);
    expect_injected(EVENT_EXCEPTION, VECTOR_GP);
    vcpu.immediate_exit = false;
    events_prepare(&vcpu);
    assert_int_equal(exits, 1);
    assert_int_equal(asked[NESTED_NMI], 1); // before the interrupt
    assert_int_equal(asked[NESTED_INTERRUPT], 0);
}

static void test_nmi_is_done_before_an_exit(void **state)
{
    (void)state;
    in_l2();
    answers[NESTED_INTERRUPT] = NESTED_EXITED; // L1 leaves NMIs to L2
    vcpu.events.nmi_count = 1;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    assert_int_equal(exits, 0);
    assert_true(vcpu.immediate_exit);
    expect_injected(EVENT_NMI, VECTOR_NMI);
    vcpu.immediate_exit = false;
    events_prepare(&vcpu);
    assert_int_equal(exits, 1);
}

// The exit is made in L2's pass; what L1 gets is chosen in its own, once.
static void test_l1_gets_its_own_pass(void **state)
{
    (void)state;
    in_l2();
    wanted_exceptions = BIT(VECTOR_UD);
    vcpu.ctx[0].ctl.inject.valid = true; // of the entry before VMLAUNCH: stale
    vcpu.ctx[0].ctl.nmi_window = true;
    vcpu_inject_exception(&vcpu, VECTOR_UD, false, 0);
    vcpu.events.nmi_count = 1;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    assert_int_equal(exits, 1);
    assert_int_equal(vcpu.level, 0);
    expect_injected(EVENT_NMI, VECTOR_NMI);
    assert_int_equal(vcpu.events.nmi_count, 0);
    assert_true(vcpu.cur->ctl.interrupt_window && !vcpu.cur->ctl.nmi_window);
    assert_int_equal(interrupt, 0x40);
}

static void test_nothing_is_lost_in_l2s_pass(void **state)
{
    (void)state;
    in_l2();
    answers[NESTED_NMI] = NESTED_EXITED;
    vcpu.events.nmi_count = 1;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    assert_int_equal(exits, 1);
    expect_injected(EVENT_INTERRUPT, 0x40); // by L1's own IDT
    setup(NULL);
    in_l2();
    wanted_exceptions = BIT(VECTOR_UD);
    vcpu_inject_exception(&vcpu, VECTOR_UD, false, 0);
    vcpu.ctx[0].state.pending_dbg = DR6_BS; // of VMRUN itself
    vcpu.events.debug_check = true;
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_DB);
}

static void test_blocked_until_l2_exits(void **state)
{
    (void)state;
    in_l2();
    answers[NESTED_INTERRUPT] = NESTED_BLOCKED;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    assert_false(injected()->valid || vcpu.cur->ctl.interrupt_window);
    assert_int_equal(interrupt, 0x40);
}

// V_INTR_MASKING without the intercept: L2's IF does not count, its shadow and an injection do.
static void test_l2s_if_does_not_mask(void **state)
{
    (void)state;
    in_l2();
    answers[NESTED_INTERRUPT] = NESTED_DELIVER_OPEN;
    vcpu.cur->state.rflags &= ~RFLAGS_IF;
    vcpu.cur->state.interruptibility = BLOCK_STI;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    assert_false(injected()->valid);
    assert_true(vcpu.cur->ctl.nmi_window);
    vcpu.cur->state.interruptibility = 0;
    events_prepare(&vcpu);
    expect_injected(EVENT_INTERRUPT, 0x40);
}

// V_IRQ: by L2's IF, behind what is physical, and at most to L1.
static void test_virtual_interrupt(void **state)
{
    (void)state;
    in_l2();
    virtual_vector = 0x55;
    vcpu.events.nested_check = true;
    vcpu.cur->state.rflags &= ~RFLAGS_IF;
    events_prepare(&vcpu);
    assert_false(injected()->valid);
    assert_true(vcpu.cur->ctl.interrupt_window);
    vcpu.cur->state.rflags |= RFLAGS_IF;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    expect_injected(EVENT_INTERRUPT, 0x40);
    assert_true(vcpu.cur->ctl.interrupt_window);
    events_prepare(&vcpu);
    expect_injected(EVENT_INTERRUPT, 0x55);
    answers[NESTED_VIRTUAL_INTERRUPT] = NESTED_EXITED;
    events_prepare(&vcpu);
    assert_int_equal(exits, 1);
    virtual_vector = -E_NOENT;
}

// VMX: the virtual one first, and then L1's own exits at the boundary behind it.
static void test_virtual_interrupt_first(void **state)
{
    (void)state;
    in_l2();
    virtual_vector = 0x55;
    virtual_first = vcpu.events.nested_check = true;
    raise_interrupt(0x40);
    answers[NESTED_INTERRUPT] = NESTED_EXITED;
    events_prepare(&vcpu);
    expect_injected(EVENT_INTERRUPT, 0x55);
    assert_true(vcpu.immediate_exit);
    assert_int_equal(exits, 0);
    virtual_vector = -E_NOENT; // taken
    events_prepare(&vcpu);
    assert_int_equal(exits, 1);
    virtual_first = false;
}

static void test_l2_takes_what_l1_does_not_want(void **state)
{
    (void)state;
    in_l2();
    vcpu_inject_exception(&vcpu, VECTOR_UD, false, 0);
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_UD);
    assert_int_equal(asked_exception, 1);
    vcpu.cur->state.pending_dbg = DR6_BS;
    vcpu.events.debug_check = true;
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_DB);
    vcpu.events.nmi_count = 1;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    expect_injected(EVENT_NMI, VECTOR_NMI);
    events_prepare(&vcpu);
    expect_injected(EVENT_INTERRUPT, 0x40);
    assert_int_equal(exits, 0);
}

static void test_l1_takes_a_debug_trap(void **state)
{
    (void)state;
    in_l2();
    wanted_exceptions = BIT(VECTOR_DB);
    vcpu.cur->state.pending_dbg = BIT(12) | 2;
    vcpu.events.debug_check = true;
    events_prepare(&vcpu);
    assert_int_equal(exits, 1);
    assert_int_equal(reflected.payload, 2);
    assert_int_equal(vcpu.dr6, DR6_FIXED);
}

static void test_triple_fault_of_l2(void **state)
{
    (void)state;
    in_l2();
    vcpu.events.reinject =
        (struct event){.valid = true, .vector = VECTOR_DF, .type = EVENT_EXCEPTION};
    vcpu_inject_exception(&vcpu, VECTOR_GP, true, 0);
    assert_int_equal(exits, 1);
    assert_int_equal(stops, 0);
}

static void test_window_for_l1(void **state)
{
    (void)state;
    in_l2();
    vcpu.cur->ctl.intercepts = INTERCEPT_INTERRUPT_WINDOW;
    events_prepare(&vcpu);
    assert_true(vcpu.cur->ctl.interrupt_window);
    vcpu.cur->ctl.intercepts = 0;
    events_prepare(&vcpu);
    assert_false(vcpu.cur->ctl.interrupt_window);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_l1_takes_an_exception, setup),
        cmocka_unit_test_setup(test_injection_is_not_asked_for, setup),
        cmocka_unit_test_setup(test_injection_is_done_before_an_exit, setup),
        cmocka_unit_test_setup(test_nmi_is_done_before_an_exit, setup),
        cmocka_unit_test_setup(test_l1_gets_its_own_pass, setup),
        cmocka_unit_test_setup(test_nothing_is_lost_in_l2s_pass, setup),
        cmocka_unit_test_setup(test_blocked_until_l2_exits, setup),
        cmocka_unit_test_setup(test_l2s_if_does_not_mask, setup),
        cmocka_unit_test_setup(test_virtual_interrupt, setup),
        cmocka_unit_test_setup(test_virtual_interrupt_first, setup),
        cmocka_unit_test_setup(test_l2_takes_what_l1_does_not_want, setup),
        cmocka_unit_test_setup(test_l1_takes_a_debug_trap, setup),
        cmocka_unit_test_setup(test_triple_fault_of_l2, setup),
        cmocka_unit_test_setup(test_window_for_l1, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
