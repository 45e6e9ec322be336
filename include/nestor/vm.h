// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A VM: its memory, its vCPUs, its machine (devices/machine.h) and its life.

#pragma once

#include <nestor/config.h>
#include <nestor/page.h>
#include <nestor/spinlock.h>
#include <nestor/stage2.h>
#include <nestor/types.h>

struct vcpu;
struct machine;

enum { VM_RAM_MAX = 16 };

// RAM below the PCI hole and above 4 GiB, as a PC has it.
#define VM_LOW_RAM_LIMIT 0xc0000000ull
#define VM_HIGH_RAM_BASE 0x100000000ull

struct vm_ram {
    gpa_t gpa;
    u64 size;
    hpa_t hpa;
};

enum vm_state {
    VM_OFF,
    VM_RUNNING,
    VM_RESETTING,
    VM_SLEEPING, /* S3 */
    VM_POWERED_OFF,
    VM_STOPPED /* by Nestor, with a report */
};

struct vm {
    u32 id;
    const struct vm_config *config;
    u32 state;       // enum vm_state; written under lock
    u32 exit_status; // what the runner is told: the test device's code, 126 when stopped
    struct spinlock lock;
    struct stage2 stage2;
    struct host_space space;
    struct vm_ram ram[VM_RAM_MAX];
    u32 ram_count;
    u64 ram_size;
    u32 vcpu_count;
    struct vcpu **vcpus;
    struct machine *machine;
    struct cpuid_table *cpuid; // core/cpuid.c
    u32 disabled_isa;          // enum guest_isa: what its CPUID does not offer
    // How the VM's CPUs wait for each other (core/vm.c), all atomic.
    u64 zeroed;           // slices of RAM zeroed, ever
    u32 run_generation;   // starts
    u32 ended_generation; // ends
    u32 left;             // vCPUs that have left the current run
    u32 next;             // enum vm_state after a run: vCPU 0's, published by ended_generation
    const u8 *msr_bitmap; // of the back end for this VM's own policy
    hpa_t apic_access_page;
    bool apic_page_mapped; // vm_apic_page
    u64 log_due;           // vm_may_log's, and log_dropped, under lock
    u32 log_dropped;
    u64 tsc_base;       // host TSC when the guest's TSC was 0
    u64 tsc_hz;         // the guest's TSC's
    u64 tsc_multiplier; // 0: the guest's TSC goes as the host's; as in struct controls
    u64 wall_clock;     // where the guest wanted it last (devices/paravirt.c)
};

// RAM at gpa as a host pointer, NULL unless [gpa, +len) is RAM wholly. Valid while the VM's space
// is loaded on this CPU.
static inline void *vm_ram_ptr(const struct vm *vm, gpa_t gpa, u64 len)
{
    for (u32 i = 0; i < vm->ram_count; i++)
        if (gpa - vm->ram[i].gpa < vm->ram[i].size)
            return len <= vm->ram[i].size - (gpa - vm->ram[i].gpa) ? (void *)(VM_WINDOW_BASE + gpa)
                                                                   : NULL;
    return NULL;
}

// Ends a VM's run. Any of its vCPUs, any CPU; returns at once, the vCPUs leave soon.
void vm_power_off(struct vm *vm, u32 status);
void vm_reset(struct vm *vm);
void vm_sleep(struct vm *vm); // S3: no vCPU runs until !machine_asleep()
// Maps or unmaps apic_access_page at the xAPIC's address, if the back end knows it; unmapped,
// accesses exit as a device's. Where it can't be mapped, it is not.
void vm_apic_page(struct vm *vm, bool mapped);
// The guest can't go on: logs the reason, registers and bytes at RIP of `vcpu` (may be NULL) and
// stops the VM.
void vm_stop(struct vm *vm, struct vcpu *vcpu, const char *why, ...) PRINTF_LIKE(3, 4);

// Whether one more line that a guest can bring about at will may go to the log: many at once, few a
// second for long. Takes vm->lock.
bool vm_may_log(struct vm *vm);
#define vm_log(vm, ...)            \
    do {                           \
        if (vm_may_log(vm))        \
            log_info(__VA_ARGS__); \
    } while (0)

// Physical placement of what a guest finds at reset, filled by a loader (core/load_*.c) on the pCPU
// of vCPU 0 in the VM's space. The loader writes vCPU 0's first state through vcpu_modify.
int vm_load(struct vm *vm);
