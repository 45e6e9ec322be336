// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The guest's machine: the bus that finds a device by port or address, and what core asks of the
// devices. A device's lock is its VM's own; nothing here is shared between VMs but the physical
// console.

#pragma once

#include <nestor/types.h>

struct vm;
struct vcpu;

// A device's register access. `value` is read for writes and filled for reads (all ones
// beforehand); size in bytes (1, 2, 4; MMIO also 8).
typedef void (*pio_fn)(void *device, struct vcpu *vcpu, u16 port, unsigned size, bool write,
                       u32 *value);
typedef void (*mmio_fn)(void *device, struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write,
                        u64 *value);

// --- the bus (devices/bus.c). Registration: while the VM is built. 0, -E_EXIST (overlap) or
// -E_NOSPC. ---
int bus_add_pio(struct vm *vm, u16 first, u16 last, pio_fn fn, void *device, const char *name);
int bus_add_mmio(struct vm *vm, gpa_t first, u64 size, mmio_fn fn, void *device, const char *name);
enum bus_flags {
    BUS_BYTE = BIT(0),     // the device's data path is 8 bits wide: fn sees single bytes only
    BUS_UNLOCKED = BIT(1), // fn is called without the machine's lock
};
int bus_add_pio_flags(struct vm *vm, u16 first, u16 last, pio_fn fn, void *device, const char *name,
                      u32 flags);
// Performs an access. An unknown port or address reads all ones, drops writes, and is logged once.
// Cheap.
void bus_pio(struct vcpu *vcpu, u16 port, unsigned size, bool write, u32 *value);
void bus_mmio(struct vcpu *vcpu, gpa_t gpa, unsigned size, bool write, u64 *value);

// --- the whole machine (devices/machine.c) ---
// Allocates every device, registers it; LAPICs into vcpu->lapic. The vCPUs are there, with their
// CPUs. machine_reset is due before they run. 0 or -E_*.
int machine_create(struct vm *vm);
void machine_destroy(
    struct vm *vm);                // timers cancelled first; nothing to do if the VM has no machine
void machine_reset(struct vm *vm); // as after power-on; no vCPU runs
bool machine_asleep(struct vm *vm); // in S3, and nothing has woken it
// Leaves S3, with devices reset as power-on does, but not the RTC and ACPI's. Returns the waking
// vector; 0: none. No vCPU runs; the VM's space is loaded.
u32 machine_wake(struct vm *vm);
// Writes the ACPI tables, SMBIOS-free, into guest RAM (0xe0000..0xfffff and below) and returns the
// RSDP's GPA. The VM's space is loaded.
gpa_t machine_write_tables(struct vm *vm);
// FERR#: an x87 error with CR0.NE = 0. IRQ 13 until port 0F0h is written.
void machine_raise_ferr(struct vm *vm);

// --- interrupts, from the vCPU's own pCPU (devices/lapic.c, pic.c) ---
// The interrupt that would be taken if RFLAGS.IF and the shadow allowed (PPR is taken into
// account): the local APIC's vector, 0 for an ExtINT (the PIC's), -1 for none.
int irq_next(struct vcpu *vcpu);
static inline bool irq_pending(struct vcpu *vcpu)
{
    return irq_next(vcpu) >= 0;
}
// Acknowledges and returns the vector, or -E_NOENT if it has gone meanwhile (PIC spurious ones
// return their vector).
int irq_ack(struct vcpu *vcpu);
void irq_end(struct vcpu *vcpu); // EOI, to the local APIC
// The CPU may deliver this vector of the local APIC by itself: until irq_offered says whether it
// has, the vector is out of IRR, so that one that comes meanwhile is another.
void irq_offer(struct vcpu *vcpu, u8 vector);
void irq_offered(struct vcpu *vcpu, u8 vector, bool taken);

// The same of the PIC's interrupts alone.
bool irq_ext_pending(struct vcpu *vcpu);
int irq_ext_ack(struct vcpu *vcpu);

// An accelerated LAPIC (vcpu->apic, devices/lapic_accel.c). Gives the CPU what waits, at level 0
// before an entry; whether any of it would be taken if RFLAGS.IF and the shadow allowed.
bool irq_hand_over(struct vcpu *vcpu);
// Takes the registers back from the CPU: irq_pending and irq_ack are right again.
void irq_take_back(struct vcpu *vcpu);
// The model's IRR gets what was posted for the CPU.
void irq_take_posted(struct vcpu *vcpu);
void lapic_written(struct vcpu *vcpu, u32 offset); // the CPU wrote this register's word in the page
void lapic_ended(struct vcpu *vcpu, u8 vector);    // and ended a vector of apic.eoi_exit

void lapic_reset(struct vcpu *vcpu, bool init); // power-on or INIT
u64 lapic_read_cr8(struct vcpu *vcpu);
void lapic_write_cr8(struct vcpu *vcpu, u64 value);
// IA32_APIC_BASE, x2APIC registers (800h-8FFh), TSC_DEADLINE. 0, or -E_FAULT where the manual says
// #GP.
int lapic_read_msr(struct vcpu *vcpu, u32 msr, u64 *value);
int lapic_write_msr(struct vcpu *vcpu, u32 msr, u64 value);
// The guest's TSC jumped (TSC written, offset changed): deadlines are computed again.
void lapic_tsc_changed(struct vcpu *vcpu);
// Takes back what paravirt_offer_eoi offered, and ends the interrupt if the guest has.
void lapic_end_offered(struct vcpu *vcpu);
// For the CPUID policy: whether the guest's IA32_APIC_BASE.EN is set.
bool lapic_enabled(const struct vcpu *vcpu);

// --- the hypervisor's leaves and KVM's paravirtual interface (devices/paravirt.c), own pCPU ---
void paravirt_cpuid(const struct vm *vm, u32 leaf, u32 out[4]); // 40000000H..400001FFH; out is 0
int paravirt_read_msr(struct vcpu *vcpu, u32 msr, u64 *value);  // 0, or -E_FAULT: #GP
int paravirt_write_msr(struct vcpu *vcpu, u32 msr, u64 value);
void paravirt_hypercall(struct vcpu *vcpu);   // VMCALL, VMMCALL: reads and writes GPRs only
void paravirt_tsc_changed(struct vcpu *vcpu); // as lapic_tsc_changed
void paravirt_reset(struct vcpu *vcpu);

// Guest's TSC (core/time of the vCPU): host TSC scaled and offset.
u64 vcpu_guest_tsc(struct vcpu *vcpu, u64 host_tsc);
// The same as the running level reads it: an L2's has L1's offset and multiplier on top.
u64 vcpu_level_tsc(struct vcpu *vcpu, u64 host_tsc);
