// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A vCPU for tests of core/event.c, with fakes of the LAPIC, the back end and the front end that
// note what they were asked.

#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/regs.h>
#include <nestor/device.h>
#include <nestor/nested.h>
#include <nestor/run.h>

static struct vcpu vcpu;
static struct vm vm;
static int interrupt; // in the LAPIC; -1: none
static unsigned resets, vm_resets, exits, stops;
static u32 wanted_exceptions;               // by L1
static enum nested_answer answers[16];      // by enum nested_event
static unsigned asked[16], asked_exception; // how often
static struct event reflected;

// --- fakes ---

static void no_pull(struct vcpu *v, u32 groups)
{
    v->cur->valid |= groups & GROUP_ALL_CTX;
    v->shared_valid |= groups & GROUP_ALL_SHARED;
}

static struct backend fake_backend = {.pull = no_pull};
const struct backend *backend = &fake_backend;

int irq_next(struct vcpu *v)
{
    (void)v;
    return interrupt;
}

static bool hand_over_ready, ext_pending;
static unsigned hand_overs;

bool irq_hand_over(struct vcpu *v)
{
    (void)v;
    hand_overs++;
    return hand_over_ready;
}

bool irq_ext_pending(struct vcpu *v)
{
    (void)v;
    return ext_pending;
}

int irq_ext_ack(struct vcpu *v)
{
    (void)v;
    ext_pending = false;
    return 0x70;
}

static int offered = -1; // out of the LAPIC

void irq_offer(struct vcpu *v, u8 vector)
{
    (void)v;
    assert_int_equal(vector, interrupt);
    offered = interrupt;
    interrupt = -1;
}

int irq_ack(struct vcpu *v)
{
    int vector = interrupt;

    (void)v;
    interrupt = -1;
    return vector;
}

void vcpu_reset(struct vcpu *v, bool init)
{
    (void)v;
    resets += init;
}

void vm_reset(struct vm *v)
{
    (void)v;
    vm_resets++;
}

unsigned vcpu_code_size(struct vcpu *v)
{
    return (v->cur->state.efer & EFER_LMA) ? 8 : 4;
}

void exit_handle(struct vcpu *v, struct vm_exit *exit)
{
    (void)v;
    stops += exit->kind == EXIT_TRIPLE_FAULT;
}

static void to_l1(struct vcpu *v)
{
    v->level = 0;
    v->cur = &v->ctx[0];
    v->events.nested_check = false;
    exits++;
}

bool nested_reflect(struct vcpu *v, struct vm_exit *exit)
{
    assert_int_equal(exit->kind, EXIT_TRIPLE_FAULT);
    to_l1(v);
    return true;
}

bool nested_wants_exception(struct vcpu *v, const struct event *event)
{
    asked_exception++;
    if (!(wanted_exceptions & BIT(event->vector)))
        return false;
    reflected = *event;
    to_l1(v);
    return true;
}

static int virtual_vector = -E_NOENT; // of L1's for L2
static bool virtual_first;

int nested_virtual_interrupt(struct vcpu *v, bool first)
{
    (void)v;
    return first && !virtual_first ? -E_NOENT : virtual_vector;
}

enum nested_answer nested_event(struct vcpu *v, enum nested_event event)
{
    asked[event]++;
    if (answers[event] == NESTED_EXITED) {
        if (event == NESTED_NMI)
            v->events.nmi_count--; // as VMX's front end does
        if (event == NESTED_INTERRUPT)
            interrupt = -1;
        to_l1(v);
    }
    return answers[event];
}

void panic(const char *fmt, ...)
{
    fail_msg("%s", fmt);
    abort();
}

// --- a vCPU ---

static int setup(void **state)
{
    (void)state;
    memset(&vcpu, 0, sizeof(vcpu));
    memset(answers, 0, sizeof(answers));
    memset(asked, 0, sizeof(asked));
    vcpu.vm = &vm;
    vcpu.id = 1;
    vcpu.cur = &vcpu.ctx[0];
    for (unsigned i = 0; i < 2; i++) {
        struct guest_state *s = &vcpu.ctx[i].state;

        s->cr0 = CR0_PE | CR0_PG;
        s->efer = EFER_LMA;
        s->rflags = RFLAGS_FIXED | RFLAGS_IF;
        vcpu.ctx[i].valid = GROUP_ALL_CTX;
    }
    vcpu.dr6 = DR6_FIXED;
    interrupt = -1;
    resets = vm_resets = exits = stops = asked_exception = 0;
    wanted_exceptions = 0;
    memset(&reflected, 0, sizeof(reflected));
    return 0;
}

static void in_l2(void)
{
    vcpu.level = 1;
    vcpu.cur = &vcpu.ctx[1];
}

static const struct event *injected(void)
{
    return &vcpu.cur->ctl.inject;
}

static void expect_injected(u8 type, u8 vector)
{
    assert_true(injected()->valid);
    assert_int_equal(injected()->type, type);
    assert_int_equal(injected()->vector, vector);
}

static void raise_interrupt(int vector)
{
    interrupt = vector;
    vcpu.events.interrupts_check = true;
}
