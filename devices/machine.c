// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The machine as a whole: its devices' allocation, wiring, order of reset and end, the interrupt
// lines between them, and the physical console's way in.

#include "machine.h"
#include "clock.h"
#include "lapic.h"
#include "tables.h"

#include <nestor/cpu.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/page.h>
#include <nestor/run.h>
#include <nestor/vcpu.h>

// Whose COM1 the physical one is. The lock is for the interrupt handler, which may run on any CPU.
static struct spinlock console_lock;
static struct machine *console_owner;

static void console_input(void)
{
    spin_lock(&console_lock);
    if (console_owner) {
        spin_lock(&console_owner->lock);
        uart_input(&console_owner->uart);
        spin_unlock(&console_owner->lock);
    }
    spin_unlock(&console_lock);
}

// False if another guest has it.
static bool console_take(struct machine *machine)
{
    bool free;

    spin_lock(&console_lock);
    free = !console_owner;
    if (free)
        console_owner = machine;
    spin_unlock(&console_lock);
    return free;
}

static void console_leave(struct machine *machine)
{
    spin_lock(&console_lock);
    if (console_owner == machine)
        console_owner = NULL;
    spin_unlock(&console_lock);
}

enum { TABLES_GPA = 0xe0000, TABLES_SIZE = 0x20000 };

// --- interrupt lines ---

void machine_set_irq(void *receiver, unsigned irq, bool level)
{
    struct machine *machine = receiver;

    pic_set_irq(&machine->pic, irq, level);
    ioapic_set_pin(&machine->ioapic, irq == IRQ_PIT ? 2 : irq, level);
}

bool machine_irq_waits(struct machine *machine, unsigned irq)
{
    const struct pic_chip *chip = &machine->pic.s.chip[0];
    int vector = ioapic_edge_vector(&machine->ioapic, irq == IRQ_PIT ? 2 : irq);
    bool waits = chip->irr & ~chip->imr & 1u << irq;

    for (u32 i = 0; i < machine->vm->vcpu_count && vector >= 0 && !waits; i++)
        waits = lapic_waits(&machine->lapics[i], (u8)vector);
    return waits;
}

// INTR goes to every CPU's LINT0 and to the IOAPIC's pin 0.
static void machine_set_intr(void *receiver, unsigned pin, bool level)
{
    struct machine *machine = receiver;

    ioapic_set_pin(&machine->ioapic, pin, level);
    if (level)
        for (u32 i = 0; i < machine->vm->vcpu_count; i++)
            lapic_lint0_raised(&machine->lapics[i]);
}

static struct irq_line machine_line(struct machine *machine, u8 irq)
{
    return (struct irq_line){machine_set_irq, machine, irq};
}

void machine_raise_ferr(struct vm *vm)
{
    spin_lock(&vm->machine->lock);
    machine_set_irq(vm->machine, IRQ_FERR, true);
    spin_unlock(&vm->machine->lock);
}

// --- building ---

static size_t lapics_size(const struct vm *vm)
{
    return vm->vcpu_count * sizeof(struct lapic);
}

struct port_row {
    u16 first, last;
    pio_fn fn;
    size_t device; // offset in struct machine
    const char *name;
    u32 flags;
};

#define DEVICE(field) offsetof(struct machine, field)

static const struct port_row port_rows[] = {
    {0x20, 0x21, pic_pio, DEVICE(pic), "PIC", BUS_BYTE},
    {0x40, 0x43, pit_pio, DEVICE(pit), "PIT", BUS_BYTE},
    {0x60, 0x60, i8042_pio, DEVICE(i8042), "i8042", BUS_BYTE},
    {0x61, 0x61, pit_port61_pio, DEVICE(pit), "port 61h", BUS_BYTE},
    {0x64, 0x64, i8042_pio, DEVICE(i8042), "i8042", BUS_BYTE},
    {0x70, 0x71, rtc_pio, DEVICE(rtc), "RTC", BUS_BYTE},
    {0x80, 0x80, chipset_post_pio, DEVICE(chipset), "POST code", BUS_BYTE},
    {0x92, 0x92, chipset_port92_pio, DEVICE(chipset), "port 92h", BUS_BYTE},
    {0xa0, 0xa1, pic_pio, DEVICE(pic), "PIC", BUS_BYTE},
    {0xe9, 0xe9, chipset_debug_pio, DEVICE(chipset), "debug console", BUS_BYTE},
    {0xf0, 0xf0, chipset_ferr_pio, DEVICE(chipset), "FERR# latch", BUS_BYTE},
    {0x3f8, 0x3ff, uart_pio, DEVICE(uart), "COM1", BUS_BYTE},
    {0x4d0, 0x4d1, pic_elcr_pio, DEVICE(pic), "ELCR", BUS_BYTE},
    {PM1_EVENT, PM1_EVENT + 3, acpi_pm1_pio, DEVICE(acpi_pm), "PM1 events", 0},
    {PM1_CONTROL, PM1_CONTROL + 1, acpi_pm1_pio, DEVICE(acpi_pm), "PM1 control", 0},
    {PM_TIMER, PM_TIMER + 3, acpi_pm_timer_pio, DEVICE(acpi_pm), "PM timer", BUS_UNLOCKED},
    {0xcf8, 0xcff, pci_pio, DEVICE(pci), "PCI configuration", 0},
};

static int machine_add_ports(struct machine *machine)
{
    for (size_t i = 0; i < ARRAY_SIZE(port_rows); i++) {
        const struct port_row *row = &port_rows[i];
        int error = bus_add_pio_flags(machine->vm, row->first, row->last, row->fn,
                                      (char *)machine + row->device, row->name, row->flags);

        if (error)
            return error;
    }
    return bus_add_mmio(machine->vm, PCI_ECAM_BASE, PCI_ECAM_SIZE, pci_ecam, &machine->pci, "ECAM")
               ?: bus_add_mmio(machine->vm, IOAPIC_BASE, PAGE_SIZE, ioapic_mmio, &machine->ioapic,
                               "IOAPIC");
}

static int machine_add_test_devices(struct machine *machine)
{
    int error;

    machine->fwcfg.machine = machine;
    if (machine->vm->config->pci_test_device)
        pci_testdev_init(&machine->pci_testdev, &machine->pci);
    if (!machine->vm->config->test_device)
        return 0;
    error = testdev_create(&machine->testdev, machine);
    if (error)
        return error;
    return bus_add_pio(machine->vm, 0x510, 0x511, fwcfg_pio, &machine->fwcfg, "fw_cfg");
}

static void machine_wire(struct machine *machine)
{
    machine->pic.out = (struct irq_line){machine_set_intr, machine, 0};
    machine->pit.irq = machine_line(machine, IRQ_PIT);
    machine->uart.irq = machine_line(machine, IRQ_COM1);
    machine->rtc.irq = machine_line(machine, IRQ_RTC);
    machine->rtc.alarm = (struct irq_line){acpi_pm_set_alarm, &machine->acpi_pm, 0};
    machine->acpi_pm.sci = machine_line(machine, IRQ_SCI);
    machine->i8042.machine = machine;
    machine->chipset.machine = machine;
    ioapic_init(&machine->ioapic, machine);
    pit_init(&machine->pit, machine);
    rtc_init(&machine->rtc, machine);
    acpi_pm_init(&machine->acpi_pm, machine);
    pci_init(&machine->pci, machine);
}

static void machine_add_lapics(struct machine *machine)
{
    struct vm *vm = machine->vm;

    for (u32 i = 0; i < vm->vcpu_count; i++) {
        vm->vcpus[i]->lapic = &machine->lapics[i];
        machine->lapics[i].eoi_broadcast = ioapic_eoi_broadcast;
        lapic_init(&machine->lapics[i], vm->vcpus[i], machine);
    }
}

static void machine_free(struct vm *vm)
{
    struct machine *machine = vm->machine;

    testdev_destroy(&machine->testdev);
    heap_free(machine->lapics, lapics_size(vm));
    heap_free(machine, sizeof(*machine));
    vm->machine = NULL;
}

int machine_create(struct vm *vm)
{
    struct machine *machine = heap_alloc(sizeof(*machine));
    int error;

    if (!machine)
        return -E_NOMEM;
    machine->lapics = heap_alloc(lapics_size(vm));
    if (!machine->lapics) {
        heap_free(machine, sizeof(*machine));
        return -E_NOMEM;
    }
    vm->machine = machine;
    machine->vm = vm;
    machine->start = machine_now();
    machine->phys_bits = cpuid_phys_bits(vm);
    machine_wire(machine);
    error = machine_add_ports(machine);
    if (!error)
        error = machine_add_test_devices(machine);
    if (error) {
        machine_free(vm);
        return error;
    }
    machine_add_lapics(machine);
    machine->uart.console = vm->config->console && console_take(machine);
    if (machine->uart.console)
        console_on_rx(console_input);
    return 0;
}

static void machine_stop_timers(struct machine *machine)
{
    timer_cancel(&machine->ioapic.timer);
    timer_cancel(&machine->pit.timer);
    timer_cancel(&machine->rtc.timer);
    timer_cancel(&machine->acpi_pm.timer);
}

// What loses its power in S3, too.
static void reset_devices(struct machine *machine)
{
    for (u32 i = 0; i < machine->vm->vcpu_count; i++)
        lapic_reset(machine->vm->vcpus[i], false);
    spin_lock(&machine->lock);
    timer_cancel(&machine->ioapic.timer);
    timer_cancel(&machine->pit.timer);
    ioapic_reset(&machine->ioapic);
    pic_reset(&machine->pic);
    pit_reset(&machine->pit);
    uart_reset(&machine->uart);
    i8042_reset(&machine->i8042);
    pci_reset(&machine->pci);
    chipset_reset(&machine->chipset);
    fwcfg_reset(&machine->fwcfg);
    testdev_reset(&machine->testdev);
    pci_testdev_reset(&machine->pci_testdev);
    spin_unlock(&machine->lock);
}

void machine_reset(struct vm *vm)
{
    struct machine *machine = vm->machine;

    reset_devices(machine);
    spin_lock(&machine->lock);
    timer_cancel(&machine->rtc.timer);
    timer_cancel(&machine->acpi_pm.timer);
    rtc_reset(&machine->rtc);
    acpi_pm_reset(&machine->acpi_pm);
    spin_unlock(&machine->lock);
}

bool machine_asleep(struct vm *vm)
{
    bool asleep;

    spin_lock(&vm->machine->lock);
    asleep = vm->machine->acpi_pm.s.asleep;
    spin_unlock(&vm->machine->lock);
    return asleep;
}

u32 machine_wake(struct vm *vm)
{
    const u32 *vector = vm_ram_ptr(vm, TABLES_GPA + TABLES_WAKING_VECTOR, sizeof(*vector));

    reset_devices(vm->machine);
    spin_lock(&vm->machine->lock);
    acpi_pm_woken(&vm->machine->acpi_pm);
    spin_unlock(&vm->machine->lock);
    return vector ? *vector : 0;
}

static void vcpu_timer_stop(void *arg)
{
    struct vcpu *vcpu = arg;

    timer_cancel(&vcpu->lapic->timer);
    if (vcpu->id == 0)
        machine_stop_timers(vcpu->vm->machine);
}

void machine_destroy(struct vm *vm)
{
    if (!vm->machine)
        return;
    console_leave(vm->machine);
    // A timer's function may be running at this moment, but not on a CPU that answers a call.
    for (u32 i = 0; i < vm->vcpu_count; i++) {
        cpu_call(vm->vcpus[i]->cpu, vcpu_timer_stop, vm->vcpus[i]);
        vm->vcpus[i]->lapic = NULL;
    }
    machine_free(vm);
}

// --- the tables ---

// boot/blobs.S
extern const u8 dsdt_aml[], dsdt_aml_end[];

gpa_t machine_write_tables(struct vm *vm)
{
    struct tables_input input = {vm->vcpu_count, dsdt_aml, (size_t)(dsdt_aml_end - dsdt_aml)};
    u8 *memory = vm_ram_ptr(vm, TABLES_GPA, TABLES_SIZE);

    ASSERT(memory && tables_build(&input, memory, TABLES_SIZE, TABLES_GPA) > 0);
    return TABLES_GPA;
}
