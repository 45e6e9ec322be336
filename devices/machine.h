// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// One guest's machine: all its devices in one allocation.
//
// Locks, outermost first: console (machine.c) - machine->lock - vm->lock, the timers', the log's.
// machine->lock covers every device but the local APICs, whose owners need none (lapic.h). Devices'
// timers run without it and take it. Core calls into the machine with none of these held, except
// that machine_create, _destroy and _reset may be called under vm->lock, since no vCPU runs then.
//
// Times: devices reckon in ticks of their own clocks since `start`, which is a host TSC; it does
// not change at a reset.

#pragma once

#include "acpi_pm.h"
#include "bus.h"
#include "chipset.h"
#include "fwcfg.h"
#include "i8042.h"
#include "ioapic.h"
#include "pci.h"
#include "pci_testdev.h"
#include "pic.h"
#include "pit.h"
#include "rtc.h"
#include "testdev.h"
#include "uart.h"

#include <nestor/spinlock.h>
#include <nestor/types.h>
#include <nestor/vm.h>

struct lapic;

enum { IRQ_PIT = 0, IRQ_COM1 = 4, IRQ_RTC = 8, IRQ_SCI = 9, IRQ_FERR = 13 };

struct machine {
    struct vm *vm;
    struct spinlock lock;
    u64 start;
    u8 phys_bits;         // written before vCPUs run
    bool renamed;         // some local APIC's xAPIC ID is not its vCPU's number; atomic
    u32 lowest_turn;      // who is first asked for a lowest-priority interrupt; atomic
    struct lapic *lapics; // one for each vCPU
    struct bus bus;
    struct pic pic;
    struct ioapic ioapic;
    struct pit pit;
    struct rtc rtc;
    struct uart uart;
    struct i8042 i8042;
    struct acpi_pm acpi_pm;
    struct pci pci;
    struct chipset chipset;
    struct fwcfg fwcfg; // these two only where config->test_device
    struct testdev testdev;
    struct pci_testdev pci_testdev; // only where config->pci_test_device
};

// The level of an ISA interrupt line (0..15, not 2), to the PIC and the IOAPIC. Under
// machine->lock.
void machine_set_irq(void *machine, unsigned irq, bool level);
// Whether an edge of that line (0..7) still waits for a CPU to take it. Under machine->lock.
bool machine_irq_waits(struct machine *machine, unsigned irq);
