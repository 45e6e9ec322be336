// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A guest's machine without a guest: the devices' real code, with a clock that stands until it is
// told to go on, and records of what the devices ask of core. For the tests of devices/.

#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/msr.h>
#include <devices/clock.h>
#include <devices/lapic.h>
#include <devices/machine.h>
#include <nestor/cpu.h>
#include <nestor/device.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/run.h>
#include <nestor/tlb.h>
#include <nestor/vcpu.h>

enum { FAKE_CPUS = 20, FAKE_TEXT = 4096 };
#define US     1000ull // ticks of the fake TSC, which runs at 1 GHz
#define MS     1000000ull
#define SECOND 1000000000ull

u64 tsc_hz = SECOND;
enum log_level log_level = LOG_INFO;
struct cpu *cpus[CPU_MAX];
const u8 dsdt_aml[64] = "DSDT\x40", dsdt_aml_end[1];

static u64 fake_time;
static struct timer *fake_timers; // all that are armed
static struct cpu fake_cpu[FAKE_CPUS];
static struct vcpu fake_vcpu[FAKE_CPUS], *fake_vcpus[FAKE_CPUS];
static struct vm_config fake_config;
static struct vm fake_vm;
static unsigned fake_log_lines, fake_resets, fake_power_offs, fake_flushes, fake_sleeps;
static u32 fake_status;
static char fake_output[FAKE_TEXT];
static const char *fake_input = "";
static void (*fake_on_rx)(void);

static bool fake_apic_page, fake_no_deadline; // the latter: what CPUID is not to have
static unsigned fake_apic_updates;

static void count_apic_update(struct vcpu *vcpu)
{
    vcpu->apic.eoi_exit_new = false;
    fake_apic_updates++;
}

static const struct backend fake_backend = {.apic_update = count_apic_update};
const struct backend *backend = &fake_backend;

void vm_apic_page(struct vm *vm, bool mapped)
{
    (void)vm;
    fake_apic_page = mapped;
}

u64 machine_now(void)
{
    return fake_time;
}

void timer_cancel(struct timer *timer)
{
    struct timer **link = &fake_timers;

    while (*link && *link != timer)
        link = &(*link)->next;
    if (*link)
        *link = timer->next;
    timer->armed = false;
}

void timer_arm(struct timer *timer, u32 cpu, u64 deadline)
{
    timer_cancel(timer);
    timer->cpu = cpu;
    timer->deadline = deadline;
    timer->armed = true;
    timer->next = fake_timers;
    fake_timers = timer;
}

void machine_timer_arm(struct machine *machine, struct timer *timer, u64 deadline)
{
    timer_arm(timer, machine->vm->vcpus[0]->cpu->id, deadline);
}

static inline struct timer *first_timer(void)
{
    struct timer *first = fake_timers;

    for (struct timer *timer = fake_timers; timer; timer = timer->next)
        if (timer->deadline < first->deadline)
            first = timer;
    return first;
}

// Lets time pass, each timer at its own moment.
static inline void advance(u64 ticks)
{
    u64 end = fake_time + ticks;
    struct timer *timer;

    while ((timer = first_timer()) && timer->deadline <= end) {
        fake_time = fake_time > timer->deadline ? fake_time : timer->deadline;
        timer_cancel(timer);
        timer->fn(timer);
    }
    fake_time = end;
}

void vcpu_post(struct vcpu *vcpu, u32 requests)
{
    vcpu->requests |= requests;
}

u64 vcpu_guest_tsc(struct vcpu *vcpu, u64 host_tsc)
{
    return host_tsc + vcpu->tsc_offset_base;
}

static bool fake_eoi_flag; // in the guest's memory

void paravirt_offer_eoi(struct vcpu *vcpu)
{
    vcpu->pv.eoi_offered = fake_eoi_flag = true;
}

bool paravirt_take_eoi(struct vcpu *vcpu)
{
    bool used = !fake_eoi_flag;

    vcpu->pv.eoi_offered = fake_eoi_flag = false;
    return used;
}

void vm_power_off(struct vm *vm, u32 status)
{
    (void)vm;
    fake_power_offs++;
    fake_status = status;
}

void vm_sleep(struct vm *vm)
{
    (void)vm;
    fake_sleeps++;
}

bool vm_may_log(struct vm *vm)
{
    (void)vm;
    return true;
}

void vm_reset(struct vm *vm)
{
    (void)vm;
    fake_resets++;
}

void tlb_flush_vm(struct vm *vm, unsigned kinds)
{
    (void)vm, (void)kinds;
    fake_flushes++;
}

void cpu_call(struct cpu *cpu, void (*fn)(void *), void *arg)
{
    (void)cpu;
    fn(arg);
}

u8 cpuid_phys_bits(const struct vm *vm)
{
    (void)vm;
    return 40;
}

bool cpuid_has(const struct vm *vm, u32 leaf, unsigned reg, unsigned bit)
{
    (void)vm;
    return !(fake_no_deadline && leaf == 1 && reg == 2 && bit == 24);
}

u64 time_wall_seconds(void)
{
    return 1767225599; // 2025-12-31 23:59:59, a Wednesday
}

void *heap_alloc(size_t size)
{
    return calloc(1, size);
}

void heap_free(void *object, size_t size)
{
    memset(object, 0xee, size);
    free(object);
}

void *page_alloc(unsigned order)
{
    return calloc(1, PAGE_SIZE << order);
}

void page_free(void *page, unsigned order)
{
    (void)order;
    free(page);
}

void log_line(enum log_level level, const char *fmt, ...)
{
    (void)level, (void)fmt;
    fake_log_lines++;
}

_Noreturn void panic(const char *fmt, ...)
{
    fprintf(stderr, "panic: %s\n", fmt);
    abort();
}

bool console_rx(u8 *byte)
{
    if (!*fake_input)
        return false;
    *byte = (u8)*fake_input++;
    return true;
}

void console_tx(u8 byte)
{
    size_t used = strlen(fake_output);

    if (used + 1 < FAKE_TEXT)
        fake_output[used] = (char)byte;
}

void console_on_rx(void (*fn)(void))
{
    fake_on_rx = fn;
}

static inline void make_machine(unsigned vcpus)
{
    u32 mask = 0xff;

    fake_time = 1000000;
    fake_timers = NULL;
    fake_log_lines = fake_resets = fake_power_offs = fake_flushes = fake_sleeps = 0;
    fake_status = ~0u;
    fake_no_deadline = false;
    fake_input = "";
    memset(fake_output, 0, sizeof(fake_output));
    memset(fake_vcpu, 0, sizeof(fake_vcpu));
    fake_config = (struct vm_config){.name = "fake",
                                     .vcpus = vcpus,
                                     .test_device = true,
                                     .pci_test_device = true,
                                     .console = true};
    fake_vm = (struct vm){
        .config = &fake_config, .vcpus = fake_vcpus, .vcpu_count = vcpus, .ram_size = MIB(512)};
    for (unsigned i = 0; i < vcpus; i++) {
        fake_cpu[i].id = i;
        cpus[i] = &fake_cpu[i];
        fake_vcpus[i] = &fake_vcpu[i];
        fake_vcpu[i] = (struct vcpu){.vm = &fake_vm, .id = i, .cpu = &fake_cpu[i]};
    }
    assert_int_equal(machine_create(&fake_vm), 0);
    machine_reset(&fake_vm);
    bus_pio(&fake_vcpu[0], 0x21, 1, true, &mask); // the timer's line is open then
    for (unsigned i = 0; i < vcpus; i++)
        fake_vcpu[i].requests = 0;
}

static inline int setup_1(void **state)
{
    (void)state;
    make_machine(1);
    return 0;
}

static inline int setup_4(void **state)
{
    (void)state;
    make_machine(4);
    return 0;
}

static inline int teardown(void **state)
{
    (void)state;
    machine_destroy(&fake_vm);
    assert_null(fake_timers);
    return 0;
}

#define TEST_1(fn) cmocka_unit_test_setup_teardown(fn, setup_1, teardown)
#define TEST_4(fn) cmocka_unit_test_setup_teardown(fn, setup_4, teardown)

static inline u32 in(unsigned size, u16 port)
{
    u32 value = 0;

    bus_pio(&fake_vcpu[0], port, size, false, &value);
    return value;
}

static inline void out(unsigned size, u16 port, u32 value)
{
    bus_pio(&fake_vcpu[0], port, size, true, &value);
}

static inline u8 inb(u16 port)
{
    return (u8)in(1, port);
}

static inline void outb(u16 port, u8 value)
{
    out(1, port, value);
}

static inline u32 mmio_read(unsigned cpu, gpa_t gpa)
{
    u64 value = 0;

    bus_mmio(&fake_vcpu[cpu], gpa, 4, false, &value);
    return (u32)value;
}

static inline void mmio_write(unsigned cpu, gpa_t gpa, u32 value)
{
    u64 wide = value;

    bus_mmio(&fake_vcpu[cpu], gpa, 4, true, &wide);
}

#define APIC_GPA 0xfee00000ull

static inline u32 apic_read(unsigned cpu, u32 reg)
{
    return mmio_read(cpu, APIC_GPA + reg);
}

static inline void apic_write(unsigned cpu, u32 reg, u32 value)
{
    mmio_write(cpu, APIC_GPA + reg, value);
}

static inline u32 ioapic_reg(u8 reg)
{
    mmio_write(0, IOAPIC_BASE, reg);
    return mmio_read(0, IOAPIC_BASE + 0x10);
}

static inline void ioapic_set_reg(u8 reg, u32 value)
{
    mmio_write(0, IOAPIC_BASE, reg);
    mmio_write(0, IOAPIC_BASE + 0x10, value);
}

// One pin's entry: the destination and the low word.
static inline void ioapic_set_entry(unsigned pin, u8 dest, u32 low)
{
    ioapic_set_reg((u8)(0x11 + 2 * pin), (u32)dest << 24);
    ioapic_set_reg((u8)(0x10 + 2 * pin), low);
}

// Takes the next interrupt, -1 if there is none.
static inline int take_irq(unsigned cpu)
{
    return irq_pending(&fake_vcpu[cpu]) ? irq_ack(&fake_vcpu[cpu]) : -1;
}
