// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What Nestor does once the machine is up: reads the configuration, places each guest's vCPUs on
// CPUs, starts them, and powers the machine off when the last guest has ended.

#include <nestor/cpu.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/main.h>
#include <nestor/page.h>
#include <nestor/string.h>
#include <nestor/time.h>
#include <nestor/vcpu.h>
#include <nestor/vm_life.h>

static struct config config;
static struct vcpu *assigned[CPU_MAX]; // written by the boot CPU, taken by the CPU itself
static u32 wake[CPU_MAX];
static u32 guests_alive;
static u32 statuses[CONFIG_GUEST_MAX];      // how each guest ended
static struct vm *guests[CONFIG_GUEST_MAX]; // under guests_lock once they run
static struct spinlock guests_lock;

static void report_config_line(const char *line)
{
    log_error("configuration: %s", line);
}

static int read_config(void)
{
    const char *name = option_get("config");
    const struct boot_module *module = boot_module_find(name ? name : "config");
    const void *dtb = module ? module->data : builtin_dtb_start;
    u64 size = module ? module->size : (u64)(builtin_dtb_end - builtin_dtb_start);

    if (name && !module)
        log_error("option config=%s: there is no module %s", name, name);
    log_info("configuration: %s, %llu bytes", module ? module->name : "built in",
             (unsigned long long)size);
    return config_parse(&config, dtb, size, report_config_line);
}

// --- placing vCPUs ---

static bool cpu_taken[CPU_MAX];

static bool place_pinned(const struct vm_config *guest, struct cpu **on)
{
    for (u32 i = 0; i < guest->vcpus; i++) {
        u32 id = guest->cpus[i];

        if (id >= cpu_count) {
            log_error("/guests/%s: cpus: found CPU %u, expected 0..%u: the machine has no more",
                      guest->name, id, cpu_count - 1);
            return false;
        }
        if (cpu_taken[id]) {
            log_error("/guests/%s: cpus: found CPU %u, expected one that no other guest has",
                      guest->name, id);
            return false;
        }
        on[i] = cpus[id];
    }
    return true;
}

static bool place_anywhere(const struct vm_config *guest, struct cpu **on)
{
    u32 found = 0;

    for (u32 id = 0; id < cpu_count && found < guest->vcpus; id++)
        if (!cpu_taken[id])
            on[found++] = cpus[id];
    if (found == guest->vcpus)
        return true;
    log_error(
        "/guests/%s: vcpus: found %u, expected at most %u: each vCPU needs a CPU of its own, and so many are free",
        guest->name, guest->vcpus, found);
    return false;
}

// Nestor's own pages for a guest (tables, vCPUs, devices) come out of the same memory: 1 % and 2
// MiB stay for them.
static bool enough_memory(const struct vm_config *guest)
{
    u64 free = ram_free_bytes(),
        most = free > SIZE_2M ? ALIGN_DOWN((free - SIZE_2M) / 101 * 100, SIZE_2M) : 0;

    if (guest->memory <= most)
        return true;
    log_error("/guests/%s: memory: found %llu MiB, expected at most %llu MiB: so much is free",
              guest->name, (unsigned long long)(guest->memory >> 20),
              (unsigned long long)(most >> 20));
    return false;
}

static bool module_there(const struct vm_config *guest, const char *property, const char *name)
{
    if (!name || boot_module_find(name))
        return true;
    log_error(
        "/guests/%s: %s: found \"%s\", expected the name of a Multiboot2 module: none is called so",
        guest->name, property, name);
    return false;
}

static bool files_there(const struct vm_config *guest)
{
    bool ok =
        module_there(guest, "kernel", guest->kernel) & module_there(guest, "initrd", guest->initrd);

    for (u32 i = 0; i < guest->module_count; i++)
        ok &= module_there(guest, "modules", guest->modules[i]);
    return ok;
}

static void create_guest(u32 id)
{
    const struct vm_config *guest = &config.guests[id];
    struct cpu *on[CONFIG_VCPU_MAX];

    if (!files_there(guest) || !enough_memory(guest) ||
        !(guest->pinned ? place_pinned(guest, on) : place_anywhere(guest, on)))
        return;
    guests[id] = vm_create(guest, id, on);
    if (!guests[id])
        return;
    guests_alive++;
    for (u32 i = 0; i < guest->vcpus; i++) {
        cpu_taken[on[i]->id] = true;
        assigned[on[i]->id] = guests[id]->vcpus[i];
    }
    log_info("guest %s: %u vCPUs from CPU %u, %llu MiB%s%s", guest->name, guest->vcpus, on[0]->id,
             (unsigned long long)(guest->memory >> 20), guest->nested ? ", nested" : "",
             guest->test_device ? ", test device" : "");
}

static void create_guests(bool pinned)
{
    for (u32 i = 0; i < config.guest_count; i++)
        if (config.guests[i].pinned == pinned)
            create_guest(i);
}

void vm_ended(u32 id, u32 status)
{
    __atomic_store_n(&statuses[id], status, __ATOMIC_RELEASE);
    spin_lock(&guests_lock);
    guests[id] = NULL;
    spin_unlock(&guests_lock);
    log_info("guest %s: ended, status %u", config.guests[id].name, status);
}

// The machine's status: the first in the configuration's order that is not 0.
static u32 final_status(void)
{
    for (u32 i = 0; i < config.guest_count; i++)
        if (__atomic_load_n(&statuses[i], __ATOMIC_ACQUIRE))
            return statuses[i];
    return 0;
}

// What is in use must be the same after a guest as before it; pages that Nestor has taken for
// itself it keeps.
static void log_memory(const char *when)
{
    log_info("memory %s: %llu KiB in use by Nestor, %llu KiB its own or free for guests", when,
             (unsigned long long)(page_used_bytes() >> 10),
             (unsigned long long)((page_owned_bytes() + ram_free_bytes()) >> 10));
}

static void guest_gone(void)
{
    log_memory("after a guest");
    if (__atomic_sub_fetch(&guests_alive, 1, __ATOMIC_ACQ_REL) == 0)
        machine_power_off(final_status());
}

_Noreturn void core_main_cpu(void)
{
    u32 id = this_cpu()->id;
    struct vcpu *vcpu;

    for (;;) {
        if (__atomic_exchange_n(&wake[id], 0, __ATOMIC_ACQ_REL)) {
            bool leads;

            vcpu = assigned[id];
            leads = vcpu->id == 0;
            vm_run_vcpu(vcpu);
            if (leads)
                guest_gone();
        }
        timer_arm_hardware(timer_poll());
        cpu_idle(&wake[id]);
        cpu_call_poll();
    }
}

// --- option stop-guest=NAME,SECONDS, for tests: kills that guest so long after the start ---

static struct timer stop_timer;
static u32 stop_id;

static void stop_guest(struct timer *timer)
{
    (void)timer;
    spin_lock(&guests_lock);
    if (guests[stop_id])
        vm_kill(guests[stop_id]);
    spin_unlock(&guests_lock);
}

static bool is_name(const struct vm_config *guest, const char *name, const char *end)
{
    size_t length = (size_t)(end - name);

    return !strncmp(guest->name, name, length) && !guest->name[length];
}

static void arm_stop_guest(void)
{
    const char *option = option_get("stop-guest"), *comma = option ? strchr(option, ',') : NULL;
    u64 seconds;

    if (!option)
        return;
    for (stop_id = 0; comma && stop_id < config.guest_count; stop_id++)
        if (is_name(&config.guests[stop_id], option, comma) && !parse_u64(comma + 1, &seconds) &&
            seconds < BIT(20)) {
            stop_timer.fn = stop_guest;
            timer_arm(&stop_timer, this_cpu()->id, tsc_now() + seconds * tsc_hz);
            return;
        }
    log_warn("option stop-guest=%s: expected a guest's name, a comma and seconds", option);
}

enum { STATUS_NO_GUEST = 126 };

void core_main(void)
{
    u32 used_before;

    if (read_config() < 0)
        log_error("configuration: unusable");
    used_before = (u32)(page_used_bytes() >> 10);
    log_memory("before guests");
    create_guests(true); // who names his CPUs chooses first
    create_guests(false);
    log_info(
        "memory: %u KiB of Nestor's own before guests, %u KiB with them; %llu MiB free for guests",
        used_before, (u32)(page_used_bytes() >> 10), (unsigned long long)(ram_free_bytes() >> 20));
    arm_stop_guest();
    options_check();
    if (!guests_alive) {
        log_error("no guest to start");
        machine_power_off(STATUS_NO_GUEST);
    }
    for (u32 id = 0; id < cpu_count; id++)
        if (assigned[id]) {
            __atomic_store_n(&wake[id], 1, __ATOMIC_RELEASE);
            cpu_kick(cpus[id]);
        }
    core_main_cpu();
}
