// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/event.c
//
// core/event.c: the table of exceptions that meet, what a #DB leaves in DR6, and the order in which
// events are taken at a boundary. With an L2: test_event_l2.c.

#include "event_fake.h"

// --- pure ---

// SDM vol. 3, tables "Interrupt and Exception Classes" and "Conditions for Generating a Double
// Fault"; #CP is contributory, #VE like #PF.
static void test_merge_table(void **state)
{
    enum { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };
    static const u8 class_of[32] = {
        [VECTOR_DE] = CONTRIBUTORY, [VECTOR_TS] = CONTRIBUTORY, [VECTOR_NP] = CONTRIBUTORY,
        [VECTOR_SS] = CONTRIBUTORY, [VECTOR_GP] = CONTRIBUTORY, [VECTOR_CP] = CONTRIBUTORY,
        [VECTOR_PF] = PAGE_FAULT,   [VECTOR_VE] = PAGE_FAULT,   [VECTOR_DF] = DOUBLE_FAULT,
    };
    static const u8 table[4][4] = {
        // second: benign, contributory, page fault, double fault
        [BENIGN] = {MERGE_SECOND, MERGE_SECOND, MERGE_SECOND, MERGE_SECOND},
        [CONTRIBUTORY] = {MERGE_SECOND, MERGE_DOUBLE_FAULT, MERGE_SECOND, MERGE_SECOND},
        [PAGE_FAULT] = {MERGE_SECOND, MERGE_DOUBLE_FAULT, MERGE_DOUBLE_FAULT, MERGE_SECOND},
        [DOUBLE_FAULT] = {MERGE_SECOND, MERGE_TRIPLE_FAULT, MERGE_TRIPLE_FAULT, MERGE_SECOND},
    };

    (void)state;
    for (unsigned first = 0; first < 256; first++)
        for (unsigned second = 0; second < 32; second++)
            assert_int_equal(event_merge_exceptions((u8)first, (u8)second),
                             table[first < 32 ? class_of[first] : BENIGN][class_of[second]]);
}

// SDM vol. 3 "Debug Status Register (DR6)": B0-B3 are as the exception found them, BD, BS and BT
// stay once set, BLD and RTM are inverted.
static void test_dr6(void **state)
{
    static const struct {
        u64 before, payload, after;
    } cases[] = {
        {DR6_FIXED, 0, DR6_FIXED},
        {DR6_FIXED, 1, DR6_FIXED | 1},
        {DR6_FIXED | 3, 4, DR6_FIXED | 4},
        {DR6_FIXED, DR6_BS, DR6_FIXED | DR6_BS},
        {DR6_FIXED | DR6_BS, 2, DR6_FIXED | DR6_BS | 2},
        {DR6_FIXED | DR6_BD, DR6_BT, DR6_FIXED | DR6_BD | DR6_BT},
        {DR6_FIXED, DR6_BLD, DR6_FIXED & ~DR6_BLD},
        {DR6_FIXED & ~DR6_BLD, 1, DR6_FIXED | 1},
        {DR6_FIXED, DR6_RTM | 8, (DR6_FIXED & ~DR6_RTM) | 8},
        {DR6_FIXED, BIT(12) | 1, DR6_FIXED | 1}, // enabled breakpoint: no bit of DR6
    };

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
        assert_int_equal(event_db_dr6(cases[i].before, cases[i].payload), cases[i].after);
}

// --- exceptions ---

static void test_exception(void **state)
{
    (void)state;
    vcpu_inject_exception(&vcpu, VECTOR_GP, true, 0x18);
    assert_false(injected()->valid); // the boundary decides
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_GP);
    assert_true(injected()->has_error);
    assert_int_equal(injected()->error, 0x18);
    assert_true(vcpu.cur->state.rflags & RFLAGS_RF); // a fault
    events_prepare(&vcpu);
    assert_false(injected()->valid); // once
}

static void test_exceptions_meet(void **state)
{
    (void)state;
    vcpu_inject_exception(&vcpu, VECTOR_GP, true, 0x18);
    vcpu_inject_exception(&vcpu, VECTOR_NP, true, 0x20);
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_DF);
    assert_true(injected()->has_error);
    assert_int_equal(injected()->error, 0);
    // A second one while the double fault is delivered
    events_take_interrupted(&vcpu, injected());
    vcpu_inject_page_fault(&vcpu, 2, 0x1000);
    assert_int_equal(stops, 1);
    assert_false(vcpu.events.reinject.valid || vcpu.events.exception.valid);
}

static void test_interrupted_delivery_meets(void **state)
{
    static const struct event irq = {.valid = true, .vector = 0x40, .type = EVENT_INTERRUPT};

    (void)state;
    events_take_interrupted(&vcpu, &irq);
    vcpu_inject_exception(&vcpu, VECTOR_GP, true, 0);
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_GP); // an interrupt is no exception: no double fault
}

static void test_page_fault_payload(void **state)
{
    (void)state;
    vcpu_inject_page_fault(&vcpu, PF_W, 0x123456);
    assert_int_equal(vcpu.cr2, 0); // not before it is delivered
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_PF);
    assert_int_equal(vcpu.cr2, 0x123456);
    assert_true(vcpu.shared_dirty & GROUP_CR2);
}

// A delivery that an exit interrupted has written CR2 or DR6 when it began.
static void test_payload_is_committed_once(void **state)
{
    static const struct event pf = {.valid = true,
                                    .vector = VECTOR_PF,
                                    .type = EVENT_EXCEPTION,
                                    .has_payload = true,
                                    .payload = 0x777};

    (void)state;
    vcpu.cr2 = 0x555;
    events_take_interrupted(&vcpu, &pf);
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_PF);
    assert_int_equal(vcpu.cr2, 0x555);
}

static void test_delivery_ends_the_shadow(void **state)
{
    (void)state;
    vcpu.cur->state.interruptibility = BLOCK_MOV_SS | BLOCK_NMI;
    vcpu_inject_exception(&vcpu, VECTOR_UD, false, 0);
    events_prepare(&vcpu);
    assert_int_equal(vcpu.cur->state.interruptibility, BLOCK_NMI);
}

static void test_real_mode_pushes_no_error(void **state)
{
    (void)state;
    vcpu.cur->state.cr0 = 0;
    vcpu_inject_exception(&vcpu, VECTOR_GP, true, 0);
    events_prepare(&vcpu);
    assert_false(injected()->has_error);
}

static void test_reinjection_is_first(void **state)
{
    static const struct event nmi = {.valid = true, .vector = VECTOR_NMI, .type = EVENT_NMI};

    (void)state;
    events_take_interrupted(&vcpu, &nmi);
    vcpu.cur->state.pending_dbg = DR6_BS;
    vcpu.events.debug_check = true;
    vcpu.events.nmi_count = 1;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    expect_injected(EVENT_NMI, VECTOR_NMI);
    assert_true(vcpu.cur->ctl.nmi_window && vcpu.cur->ctl.interrupt_window);
    assert_false(vcpu.cur->state.rflags & RFLAGS_RF);
    assert_int_equal(interrupt, 0x40); // still there
}

static void test_order(void **state)
{
    (void)state;
    vcpu_inject_exception(&vcpu, VECTOR_UD, false, 0);
    vcpu.cur->state.pending_dbg = DR6_BS | 1;
    vcpu.events.debug_check = true;
    vcpu.events.nmi_count = 2;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_UD);
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_DB);
    assert_int_equal(vcpu.dr6, DR6_FIXED | DR6_BS | 1);
    assert_int_equal(vcpu.cur->state.pending_dbg, 0);
    events_prepare(&vcpu);
    expect_injected(EVENT_NMI, VECTOR_NMI);
    assert_true(vcpu.cur->ctl.nmi_window); // the other one waits
    vcpu.cur->state.interruptibility = BLOCK_NMI;
    events_prepare(&vcpu);
    expect_injected(EVENT_INTERRUPT, 0x40);
    assert_true(vcpu.cur->ctl.nmi_window);
    vcpu.cur->state.interruptibility = 0;
    events_prepare(&vcpu);
    expect_injected(EVENT_NMI, VECTOR_NMI);
    events_prepare(&vcpu);
    assert_false(injected()->valid || vcpu.cur->ctl.nmi_window || vcpu.cur->ctl.interrupt_window);
}

// --- blocking ---

// Where the CPU delivers by itself no window is opened: but not for the PIC's interrupt, in an
// interrupt shadow, while an NMI waits or is in service, or in an L2.
static void test_offer(void **state)
{
    static const u32 refused[] = {BLOCK_STI, BLOCK_MOV_SS, BLOCK_NMI};
    struct controls *ctl = &vcpu.ctx[0].ctl;
    struct guest_state *s = &vcpu.ctx[0].state;

    (void)state;
    fake_backend.delivers_offers = true;
    s->rflags &= ~(u64)RFLAGS_IF;
    interrupt = 0x41;
    vcpu.events.interrupts_check = true;
    events_choose(&vcpu);
    assert_true(ctl->offer == 0x41 && !ctl->interrupt_window && offered == 0x41);
    assert_false(vcpu.events.interrupts_check); // nothing is left to look at
    interrupt = 0x41;
    vcpu.events.interrupts_check = true; // by irq_offered, when nothing has come of it
    events_prepare(&vcpu);               // offered again
    assert_int_equal(ctl->offer, 0x41);
    interrupt = 0x41;
    vcpu.events.interrupts_check = true;
    s->activity = ACTIVITY_HLT; // is not entered, so nobody would take the offer back
    events_choose(&vcpu);
    assert_true(!ctl->offer && interrupt == 0x41);
    s->activity = ACTIVITY_ACTIVE;
    for (unsigned i = 0; i < ARRAY_SIZE(refused); i++) {
        s->interruptibility = refused[i];
        events_choose(&vcpu);
        assert_true(!ctl->offer && ctl->interrupt_window);
    }
    s->interruptibility = 0;
    interrupt = 0; // ExtINT
    events_choose(&vcpu);
    assert_true(!ctl->offer && ctl->interrupt_window);
    interrupt = 0x41;
    answers[NESTED_INTERRUPT] = NESTED_DELIVER;
    in_l2();
    vcpu.cur->state.rflags &= ~(u64)RFLAGS_IF;
    events_choose(&vcpu);
    assert_true(!vcpu.cur->ctl.offer && vcpu.cur->ctl.interrupt_window);
    fake_backend.delivers_offers = false;
}

// Where an injection costs an exit, an interrupt that can be taken at once is offered, too; but not
// if the guest has asked to end it without an exit, nor behind another event.
static void test_offer_of_open_interrupt(void **state)
{
    struct controls *ctl = &vcpu.ctx[0].ctl;
    struct guest_state *s = &vcpu.ctx[0].state;

    (void)state;
    fake_backend.delivers_offers = fake_backend.injects_dearly = true;
    s->rflags |= RFLAGS_IF;
    s->activity = ACTIVITY_HLT;
    raise_interrupt(0x41);
    events_prepare(&vcpu);
    assert_true(ctl->offer == 0x41 && !injected()->valid && !ctl->interrupt_window);
    assert_int_equal(s->activity, ACTIVITY_ACTIVE);
    assert_false(vcpu.events.interrupts_check);
    ctl->offer = 0;
    vcpu.pv.eoi = 1;
    raise_interrupt(0x42);
    events_prepare(&vcpu);
    expect_injected(EVENT_INTERRUPT, 0x42);
    vcpu.pv.eoi = 0;
    vcpu.events.nmi_count = 1;
    raise_interrupt(0x43);
    events_prepare(&vcpu);
    expect_injected(EVENT_NMI, VECTOR_NMI);
    fake_backend.delivers_offers = fake_backend.injects_dearly = false;
}

static void test_interrupt_window(void **state)
{
    (void)state;
    vcpu.cur->state.rflags &= ~RFLAGS_IF;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    assert_true(!injected()->valid && vcpu.cur->ctl.interrupt_window);
    vcpu.cur->state.rflags |= RFLAGS_IF;
    vcpu.cur->state.interruptibility = BLOCK_STI;
    events_prepare(&vcpu);
    assert_true(!injected()->valid && vcpu.cur->ctl.interrupt_window);
    vcpu.cur->state.interruptibility = 0;
    events_prepare(&vcpu);
    expect_injected(EVENT_INTERRUPT, 0x40);
    assert_false(vcpu.cur->ctl.interrupt_window);
}

static void test_mov_ss(void **state)
{
    (void)state;
    vcpu.cur->state.interruptibility = BLOCK_MOV_SS;
    vcpu.cur->state.pending_dbg = BIT(12) | 1;
    vcpu.events.debug_check = true;
    vcpu.events.nmi_count = 1;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    assert_false(injected()->valid);
    assert_true(vcpu.cur->ctl.nmi_window && vcpu.cur->ctl.interrupt_window);
    vcpu.cur->state.interruptibility = 0;
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_DB);
    assert_int_equal(vcpu.dr6, DR6_FIXED | 1);
}

// A breakpoint of MOV SS, which the hardware holds, is due behind the next instruction and before
// an interrupt: the entry that injects one would drop it.
static void test_mov_ss_ends(void **state)
{
    (void)state;
    vcpu.cur->state.interruptibility = BLOCK_MOV_SS;
    vcpu.cur->state.pending_dbg = BIT(12) | 1;
    raise_interrupt(0x40);
    vcpu_finish_insn(&vcpu, 0x100);
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_DB);
    assert_int_equal(vcpu.dr6, DR6_FIXED | 1);
    events_prepare(&vcpu);
    expect_injected(EVENT_INTERRUPT, 0x40);
}

// General detect is a fault; other debug exceptions leave RF as it is.
static void test_general_detect(void **state)
{
    static const struct event detect = {
        .vector = VECTOR_DB, .type = EVENT_EXCEPTION, .has_payload = true, .payload = DR6_BD};
    static const struct event breakpoint = {
        .vector = VECTOR_DB, .type = EVENT_EXCEPTION, .has_payload = true, .payload = 1};
    static const struct event int1 = {.vector = VECTOR_DB, .type = EVENT_INT1, .has_payload = true};

    (void)state;
    vcpu.cur->state.dr7 = DR7_FIXED | DR7_GD;
    vcpu_inject_event(&vcpu, &detect);
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_DB);
    assert_true(vcpu.cur->state.rflags & RFLAGS_RF);
    assert_int_equal(vcpu.dr6, DR6_FIXED | DR6_BD);
    assert_int_equal(vcpu.cur->state.dr7, DR7_FIXED);
    vcpu.cur->state.rflags &= ~RFLAGS_RF;
    vcpu_inject_event(&vcpu, &breakpoint);
    events_prepare(&vcpu);
    assert_false(vcpu.cur->state.rflags & RFLAGS_RF);
    vcpu_inject_event(&vcpu, &int1);
    events_prepare(&vcpu);
    expect_injected(EVENT_INT1, VECTOR_DB);
    assert_false(vcpu.cur->state.rflags & RFLAGS_RF);
    assert_int_equal(vcpu.dr6, DR6_FIXED | DR6_BD); // no cause of its own
}

// Breakpoints that matched but are not enabled wait for a cause of #DB.
static void test_breakpoints_not_enabled(void **state)
{
    (void)state;
    vcpu.cur->state.pending_dbg = 5;
    vcpu.events.debug_check = true;
    events_prepare(&vcpu);
    assert_false(injected()->valid);
}

static void test_gif(void **state)
{
    (void)state;
    vcpu.events.gif_clear = true;
    vcpu.events.init = true;
    vcpu.events.nmi_count = 1;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    assert_false(injected()->valid || vcpu.cur->ctl.nmi_window || vcpu.cur->ctl.interrupt_window);
    assert_int_equal(resets, 0);
    vcpu_inject_exception(&vcpu, VECTOR_UD, false, 0);
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_UD); // exceptions do not wait
    vcpu.events.gif_clear = false;
    events_prepare(&vcpu);
    assert_int_equal(resets, 1);
    expect_injected(EVENT_NMI, VECTOR_NMI);
}

static void test_halt_ends(void **state)
{
    (void)state;
    vcpu.cur->state.activity = ACTIVITY_HLT;
    raise_interrupt(0x40);
    events_prepare(&vcpu);
    expect_injected(EVENT_INTERRUPT, 0x40);
    assert_int_equal(vcpu.cur->state.activity, ACTIVITY_ACTIVE);
    vcpu.cur->state.activity = ACTIVITY_HLT;
    vcpu.events.nmi_count = 1;
    events_prepare(&vcpu);
    assert_int_equal(vcpu.cur->state.activity, ACTIVITY_ACTIVE);
}

static void test_init_sipi(void **state)
{
    (void)state;
    vcpu.events.init = true;
    events_prepare(&vcpu);
    assert_int_equal(resets, 1);
    vcpu.events.sipi = true; // not waited for: lost
    vcpu.events.sipi_vector = 9;
    events_prepare(&vcpu);
    assert_int_equal(vcpu.cur->state.seg[SEG_CS].base, 0);
    vcpu.cur->state.activity = ACTIVITY_WAIT_SIPI;
    vcpu.events.nmi_count = 1;
    events_prepare(&vcpu);
    assert_false(injected()->valid); // nothing but SIPI
    vcpu.events.nmi_count = 0;
    vcpu.events.sipi = true;
    events_prepare(&vcpu);
    assert_int_equal(vcpu.cur->state.seg[SEG_CS].base, 0x9000);
    assert_int_equal(vcpu.cur->state.seg[SEG_CS].selector, 0x900);
    assert_int_equal(vcpu.cur->state.activity, ACTIVITY_ACTIVE);
    vcpu.id = 0; // the boot CPU's INIT resets the machine
    vcpu.events.init = true;
    events_prepare(&vcpu);
    assert_int_equal(vm_resets, 1);
}

static void test_redirected_init(void **state)
{
    (void)state;
    vcpu.events.init_redirected = true;
    vcpu.cur->state.activity = ACTIVITY_HLT;
    vcpu.events.init = true;
    events_prepare(&vcpu);
    assert_int_equal(vm_resets + resets, 0);
    assert_true(injected()->valid && injected()->has_error);
    assert_int_equal(injected()->vector, VECTOR_SX);
    assert_int_equal(injected()->error, 1);
    assert_int_equal(vcpu.cur->state.activity, ACTIVITY_ACTIVE);
    // An interrupted delivery is not lost to it.
    vcpu.events.reinject = (struct event){.valid = true, .vector = 14, .type = EVENT_EXCEPTION};
    vcpu.events.init = true;
    events_prepare(&vcpu);
    assert_int_equal(injected()->vector, 14);
    assert_true(vcpu.events.init && vcpu.immediate_exit);
    events_prepare(&vcpu);
    assert_int_equal(injected()->vector, VECTOR_SX);
    assert_false(vcpu.events.init);
}

// --- the end of an instruction ---

static void test_finish(void **state)
{
    struct vm_exit exit = {.kind = EXIT_CPUID, .insn_len = 2};

    (void)state;
    vcpu.cur->state.rip = 0xffffffff;
    vcpu.cur->state.rflags |= RFLAGS_RF;
    vcpu.cur->state.interruptibility = BLOCK_STI | BLOCK_NMI;
    vcpu_finish_exit(&vcpu, &exit);
    assert_int_equal(vcpu.cur->state.rip, 0x100000001);
    assert_false(vcpu.cur->state.rflags & RFLAGS_RF);
    assert_int_equal(vcpu.cur->state.interruptibility, BLOCK_NMI);
    assert_true(vcpu.cur->dirty & GROUP_RIP);
    vcpu.cur->state.efer = 0; // 32-bit code wraps
    vcpu.cur->state.rip = 0xffffffff;
    exit.next_rip = 0;
    vcpu_finish_exit(&vcpu, &exit);
    assert_int_equal(vcpu.cur->state.rip, 1);
}

static void test_single_step(void **state)
{
    (void)state;
    vcpu.cur->state.rflags |= RFLAGS_TF;
    vcpu_finish_insn(&vcpu, 0x100);
    assert_int_equal(vcpu.cur->state.pending_dbg, DR6_BS);
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_DB);
    assert_int_equal(vcpu.dr6, DR6_FIXED | DR6_BS);
    assert_false(vcpu.cur->state.rflags & RFLAGS_RF); // a trap
    vcpu.cur->state.debugctl = DEBUGCTL_BTF;          // branches only
    vcpu_finish_insn(&vcpu, 0x102);
    assert_int_equal(vcpu.cur->state.pending_dbg, 0);
    vcpu_trap_branch(&vcpu);
    vcpu_finish_insn(&vcpu, 0x200);
    assert_int_equal(vcpu.cur->state.pending_dbg, DR6_BS);
    events_prepare(&vcpu);
    expect_injected(EVENT_EXCEPTION, VECTOR_DB);
    assert_int_equal(vcpu.cur->state.debugctl, 0); // its delivery ends that
    vcpu_trap_branch(&vcpu);
    assert_int_equal(vcpu.cur->state.pending_dbg, 0);
}

// The CPU delivers; the PIC's interrupts are injected, and a halted guest goes on.
static void test_accelerated(void **state)
{
    (void)state;
    vcpu.apic.mode = ACCEL_XAPIC;
    vcpu.events.interrupts_check = true;
    hand_over_ready = true;
    ext_pending = false;
    vcpu.cur->state.rflags &= ~RFLAGS_IF;
    vcpu.cur->state.activity = ACTIVITY_HLT;
    events_prepare(&vcpu);
    assert_int_equal(vcpu.cur->state.activity, ACTIVITY_HLT);
    assert_false(injected()->valid || vcpu.cur->ctl.interrupt_window);
    assert_false(vcpu.events.interrupts_check);
    vcpu.cur->state.rflags |= RFLAGS_IF;
    vcpu.events.interrupts_check = true;
    events_prepare(&vcpu);
    assert_int_equal(vcpu.cur->state.activity, ACTIVITY_ACTIVE);
    assert_false(injected()->valid || vcpu.cur->ctl.interrupt_window);

    ext_pending = vcpu.events.interrupts_check = true;
    vcpu.cur->state.interruptibility = BLOCK_STI;
    events_prepare(&vcpu);
    assert_true(!injected()->valid && vcpu.cur->ctl.interrupt_window);
    vcpu.cur->state.interruptibility = 0;
    events_prepare(&vcpu);
    assert_true(injected()->valid && injected()->vector == 0x70);
    assert_false(vcpu.cur->ctl.interrupt_window || vcpu.events.interrupts_check);
    hand_over_ready = false;
}

// Such a CPU is told only when the guest takes it at once, and asked again until it has.
static void test_accelerated_leaky(void **state)
{
    (void)state;
    vcpu.apic.mode = ACCEL_X2APIC;
    vcpu.apic.leaky = true;
    vcpu.events.interrupts_check = true;
    hand_over_ready = true;
    ext_pending = false;
    vcpu.cur->state.rflags &= ~RFLAGS_IF;
    events_prepare(&vcpu);
    assert_true(vcpu.cur->ctl.interrupt_window && vcpu.events.interrupts_check);
    vcpu.cur->state.rflags |= RFLAGS_IF;
    vcpu.cur->state.interruptibility = BLOCK_MOV_SS;
    events_prepare(&vcpu);
    assert_true(vcpu.cur->ctl.interrupt_window);
    vcpu.cur->state.interruptibility = 0;
    vcpu_inject_exception(&vcpu, VECTOR_GP, true, 0); // its handler begins with IF = 0
    events_prepare(&vcpu);
    assert_true(injected()->valid && vcpu.cur->ctl.interrupt_window);
    events_prepare(&vcpu);
    assert_false(injected()->valid || vcpu.cur->ctl.interrupt_window);
    assert_true(vcpu.events.interrupts_check);
    hand_over_ready = false;
    events_prepare(&vcpu);
    assert_false(vcpu.cur->ctl.interrupt_window || vcpu.events.interrupts_check);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_merge_table, setup),
        cmocka_unit_test_setup(test_dr6, setup),
        cmocka_unit_test_setup(test_exception, setup),
        cmocka_unit_test_setup(test_exceptions_meet, setup),
        cmocka_unit_test_setup(test_interrupted_delivery_meets, setup),
        cmocka_unit_test_setup(test_page_fault_payload, setup),
        cmocka_unit_test_setup(test_payload_is_committed_once, setup),
        cmocka_unit_test_setup(test_delivery_ends_the_shadow, setup),
        cmocka_unit_test_setup(test_real_mode_pushes_no_error, setup),
        cmocka_unit_test_setup(test_reinjection_is_first, setup),
        cmocka_unit_test_setup(test_order, setup),
        cmocka_unit_test_setup(test_offer, setup),
        cmocka_unit_test_setup(test_offer_of_open_interrupt, setup),
        cmocka_unit_test_setup(test_interrupt_window, setup),
        cmocka_unit_test_setup(test_mov_ss, setup),
        cmocka_unit_test_setup(test_mov_ss_ends, setup),
        cmocka_unit_test_setup(test_general_detect, setup),
        cmocka_unit_test_setup(test_breakpoints_not_enabled, setup),
        cmocka_unit_test_setup(test_gif, setup),
        cmocka_unit_test_setup(test_halt_ends, setup),
        cmocka_unit_test_setup(test_init_sipi, setup),
        cmocka_unit_test_setup(test_redirected_init, setup),
        cmocka_unit_test_setup(test_finish, setup),
        cmocka_unit_test_setup(test_single_step, setup),
        cmocka_unit_test_setup(test_accelerated, setup),
        cmocka_unit_test_setup(test_accelerated_leaky, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
