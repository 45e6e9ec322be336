// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A VM's life: built once on the boot CPU, then carried by the CPUs of its vCPUs through boot,
// reset and end. vCPU 0's CPU leads: it waits until the others are out of the guest, has everybody
// zero his part of the RAM, loads the guest, and lets all go.

#include <nestor/cpu.h>
#include <nestor/device.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/nested.h>
#include <nestor/run.h>
#include <nestor/string.h>
#include <nestor/time.h>
#include <nestor/vm_life.h>

// --- building ---

static int add_ram(struct vm *vm, gpa_t gpa, u64 size)
{
    hpa_t hpa;
    u64 piece;
    int err;

    // One extent if there is one, else halves: a server's memory has holes.
    while (size) {
        piece = size;
        while ((err = ram_alloc(piece, piece >= SIZE_1G ? SIZE_1G : SIZE_2M, &hpa)) &&
               piece > SIZE_2M)
            piece = ALIGN_UP(piece / 2, SIZE_2M);
        if (err)
            return err;
        if (vm->ram_count == VM_RAM_MAX) {
            ram_free(hpa, piece);
            return -E_NOMEM;
        }
        vm->ram[vm->ram_count++] = (struct vm_ram){.gpa = gpa, .size = piece, .hpa = hpa};
        vm->ram_size += piece;
        gpa += piece;
        size -= piece;
    }
    return 0;
}

// The legacy hole (VGA) is left out of stage 2 and of the window alike: no guest ever reaches what
// lies behind it.
#define VGA_HOLE     0xa0000ull
#define VGA_HOLE_END 0xc0000ull

static int map_piece(struct vm *vm, gpa_t gpa, hpa_t hpa, u64 size)
{
    int ret = stage2_map(&vm->stage2, gpa, hpa, size, STAGE2_RWX, MEM_WB);

    return ret < 0 ? ret : host_space_map(&vm->space, gpa, hpa, size);
}

static int map_ram(struct vm *vm)
{
    int err = 0;

    for (u32 i = 0; i < vm->ram_count && !err; i++) {
        const struct vm_ram *ram = &vm->ram[i];

        if (ram->gpa) {
            err = map_piece(vm, ram->gpa, ram->hpa, ram->size);
            continue;
        }
        err = map_piece(vm, 0, ram->hpa, VGA_HOLE);
        if (!err)
            err = map_piece(vm, VGA_HOLE_END, ram->hpa + VGA_HOLE_END, ram->size - VGA_HOLE_END);
    }
    return err;
}

// vm->ram[] as guests and vm_ram_ptr see it: without the hole.
static void split_ram_at_hole(struct vm *vm)
{
    struct vm_ram *low = &vm->ram[0];

    memmove(&vm->ram[2], &vm->ram[1], (vm->ram_count - 1) * sizeof(vm->ram[0]));
    vm->ram[1] = (struct vm_ram){
        .gpa = VGA_HOLE_END, .size = low->size - VGA_HOLE_END, .hpa = low->hpa + VGA_HOLE_END};
    low->size = VGA_HOLE;
    vm->ram_count++;
}

static int create_memory(struct vm *vm)
{
    u64 memory = vm->config->memory;
    u64 low = MIN(memory, VM_LOW_RAM_LIMIT);
    int err = add_ram(vm, 0, low);

    if (!err && memory > low)
        err = add_ram(vm, VM_HIGH_RAM_BASE, memory - low);
    if (!err && vm->ram_count >= VM_RAM_MAX)
        err = -E_NOMEM;
    if (!err)
        err = stage2_create(&vm->stage2, backend->stage2_format, backend->stage2_levels(),
                            backend->stage2_1g);
    if (!err)
        err = host_space_create(&vm->space);
    if (!err)
        err = map_ram(vm);
    if (!err) {
        vm->apic_access_page = vm->ram[0].hpa + VGA_HOLE; // RAM that nothing else uses
        split_ram_at_hole(vm);
    }
    return err;
}

static void free_memory(struct vm *vm)
{
    if (vm->stage2.root)
        stage2_destroy(&vm->stage2);
    if (vm->space.cr3)
        host_space_destroy(&vm->space);
    for (u32 i = 0; i < vm->ram_count; i++) {
        struct vm_ram *ram = &vm->ram[i];

        if (ram->gpa == VGA_HOLE_END) // the other half of the extent that starts at 0
            continue;
        ram_free(ram->hpa,
                 ram->gpa || ram->size > VGA_HOLE ? ram->size : ram[1].size + VGA_HOLE_END);
    }
    vm->ram_count = 0;
}

static void free_all(struct vm *vm)
{
    machine_destroy(vm);
    for (u32 i = 0; vm->vcpus && i < vm->vcpu_count; i++)
        if (vm->vcpus[i])
            vcpu_destroy(vm->vcpus[i]);
    if (vm->vcpus)
        heap_free(vm->vcpus, vm->vcpu_count * sizeof(vm->vcpus[0]));
    cpuid_destroy(vm);
    free_memory(vm);
    heap_free(vm, sizeof(*vm));
}

struct vm *vm_create(const struct vm_config *config, u32 id, struct cpu *const *on)
{
    struct vm *vm = heap_alloc(sizeof(*vm));
    int err;

    if (!vm)
        return NULL;
    vm->id = id;
    vm->config = config;
    vm->vcpu_count = config->vcpus;
    vm->vcpus = heap_alloc(config->vcpus * sizeof(vm->vcpus[0]));
    err = vm->vcpus ? create_memory(vm) : -E_NOMEM;
    if (!err)
        err = cpuid_create(vm);
    for (u32 i = 0; i < config->vcpus && !err; i++)
        err = vcpu_create(vm, i, on[i]);
    if (!err)
        err = machine_create(vm);
    if (!err)
        return vm;
    log_error("guest %s: not created: out of memory (%d; %llu MiB free for guests)", config->name,
              err, (unsigned long long)(ram_free_bytes() >> 20));
    free_all(vm);
    return NULL;
}

void vm_apic_page(struct vm *vm, bool mapped)
{
    const gpa_t gpa = 0xfee00000;

    // An L2 shares stage 2, but is not to meet that page.
    if (!backend->knows_apic_page || vm->config->nested || vm->apic_page_mapped == mapped)
        return;
    if (mapped) {
        vm->apic_page_mapped =
            stage2_map(&vm->stage2, gpa, vm->apic_access_page, PAGE_SIZE, STAGE2_RW, MEM_WB) >= 0;
        return;
    }
    // The flag falls last: who sees it fallen has the flush behind him.
    stage2_unmap(&vm->stage2, gpa, PAGE_SIZE);
    tlb_flush_vm(vm, TLB_FLUSH_STAGE2);
    vm->apic_page_mapped = false;
}

// --- running ---

static void stop_all(struct vm *vm)
{
    for (u32 i = 0; i < vm->vcpu_count; i++)
        vcpu_post(vm->vcpus[i], REQUEST_STOP);
}

// Goes to `state` if the VM is in one of `from` (a mask of enum vm_state); returns whether it was.
static bool change_state(struct vm *vm, u32 from, enum vm_state state, u32 status)
{
    bool ok;

    spin_lock(&vm->lock);
    ok = BIT(vm->state) & from;
    if (ok) {
        vm->exit_status = status;
        __atomic_store_n(&vm->state, state, __ATOMIC_RELEASE);
    }
    spin_unlock(&vm->lock);
    return ok;
}

enum { LOG_BURST = 1000, LOG_RATE = 20 }; // lines, and lines a second

bool vm_may_log(struct vm *vm)
{
    u64 interval = tsc_hz / LOG_RATE, burst = interval * LOG_BURST, now = tsc_now() + burst;
    u32 dropped = 0;
    bool may;

    spin_lock(&vm->lock);
    vm->log_due = MAX(vm->log_due, now - burst);
    may = vm->log_due <= now;
    if (may) {
        vm->log_due += interval;
        dropped = vm->log_dropped;
    }
    vm->log_dropped = may ? 0 : vm->log_dropped + 1;
    spin_unlock(&vm->lock);
    if (dropped)
        log_info("guest %s: %u lines left out", vm->config->name, dropped);
    return may;
}

// The first to end a run decides how; returns whether this call was it.
static bool leave_running(struct vm *vm, enum vm_state state, u32 status)
{
    bool first = change_state(vm, BIT(VM_RUNNING), state, status);

    if (first)
        stop_all(vm);
    return first;
}

void vm_power_off(struct vm *vm, u32 status)
{
    if (leave_running(vm, VM_POWERED_OFF, status))
        log_info("guest %s: powers off, status %u", vm->config->name, status);
}

void vm_reset(struct vm *vm)
{
    if (leave_running(vm, VM_RESETTING, 0))
        vm_log(vm, "guest %s: resets", vm->config->name);
}

void vm_sleep(struct vm *vm)
{
    if (leave_running(vm, VM_SLEEPING, 0))
        vm_log(vm, "guest %s: sleeps (S3)", vm->config->name);
}

enum { STATUS_STOPPED = 126 };

void vm_stop(struct vm *vm, struct vcpu *vcpu, const char *why, ...)
{
    char text[160];
    va_list args;

    if (!leave_running(vm, VM_STOPPED, STATUS_STOPPED))
        return;
    va_start(args, why);
    fmt_vsnprintf(text, sizeof(text), why, args);
    va_end(args);
    log_error("guest %s: stopped: %s", vm->config->name, text);
    if (vcpu)
        vcpu_report(vcpu);
}

// Also between two runs: start_guest finds it.
void vm_kill(struct vm *vm)
{
    u32 living = BIT(VM_OFF) | BIT(VM_RUNNING) | BIT(VM_RESETTING) | BIT(VM_SLEEPING);

    if (!change_state(vm, living, VM_STOPPED, STATUS_STOPPED))
        return;
    log_warn("guest %s: killed", vm->config->name);
    stop_all(vm);
}

// Waits until `*word` is no longer `value`, idle between looks.
static void wait_while_equal(const u32 *word, u32 value)
{
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value) {
        __builtin_ia32_pause();
        cpu_call_poll();
    }
}

static void zero_slice(const struct vm *vm, u32 index)
{
    for (u32 i = 0; i < vm->ram_count; i++) {
        u64 pages = vm->ram[i].size / PAGE_SIZE;
        u64 first = pages * index / vm->vcpu_count, last = pages * (index + 1) / vm->vcpu_count;

        memset((void *)(VM_WINDOW_BASE + vm->ram[i].gpa + first * PAGE_SIZE), 0,
               (last - first) * PAGE_SIZE);
    }
}

// Every vCPU's CPU zeroes a part; all parts are done when it returns.
static void zero_ram(struct vm *vm, u32 index)
{
    u64 start = tsc_now();
    u64 goal =
        (__atomic_load_n(&vm->zeroed, __ATOMIC_ACQUIRE) / vm->vcpu_count + 1) * vm->vcpu_count;

    zero_slice(vm, index);
    __atomic_fetch_add(&vm->zeroed, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&vm->zeroed, __ATOMIC_ACQUIRE) < goal) {
        __builtin_ia32_pause();
        cpu_call_poll();
    }
    if (index == 0)
        vm_log(vm, "guest %s: %llu MiB zeroed in %llu us (%llu ticks)", vm->config->name,
               (unsigned long long)(vm->ram_size >> 20),
               (unsigned long long)(tsc_to_ns(tsc_now() - start) / 1000),
               (unsigned long long)(tsc_now() - start));
}

// vCPU 0's CPU runs the timers, of which one may wake the machine. Who kills the VM changes its
// state before he posts a request.
static void sleep_until_woken(struct vm *vm)
{
    u32 *requests = &vm->vcpus[0]->requests;

    for (;;) {
        __atomic_store_n(requests, 0, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&vm->state, __ATOMIC_SEQ_CST) != VM_SLEEPING || !machine_asleep(vm))
            return;
        cpu_idle(requests);
    }
}

// As firmware does: in real mode, at the waking vector (ACPI "Firmware ACPI Control Structure").
static int wake_guest(struct vm *vm, u32 vector)
{
    struct guest_state *state = vcpu_modify(vm->vcpus[0], GROUP_RIP | GROUP_CODE);

    if (!vector) {
        log_error("guest %s: sleeps with no waking vector", vm->config->name);
        return -E_INVAL;
    }
    state->seg[SEG_CS].selector = (u16)(vector >> 4);
    state->seg[SEG_CS].base = (u64)state->seg[SEG_CS].selector << 4;
    state->rip = vector & 0xf;
    return 0;
}

// A slower TSC than half the machine's is refused, so that deadlines in it can be converted.
static void choose_tsc_rate(struct vm *vm)
{
    u64 wanted = vm->config->tsc_frequency;
    bool scale = wanted && wanted != tsc_hz && wanted >= tsc_hz / 2 && backend->scales_tsc;

    vm->tsc_hz = scale ? wanted : tsc_hz;
    vm->tsc_multiplier = scale ? mul_div(wanted, BIT(48), tsc_hz) : 0;
    if (wanted && vm->tsc_hz != wanted && vm_may_log(vm))
        log_warn("guest %s: tsc-frequency: its TSC runs at %llu Hz: %s", vm->config->name,
                 (unsigned long long)tsc_hz,
                 backend->scales_tsc ? "it can't be slower than half of that"
                                     : "this CPU or back end has no TSC scaling");
}

// vCPU 0, alone: the machine and the guest as after power-on, or as after S3.
static void start_guest(struct vm *vm)
{
    bool wakes = vm->next == VM_SLEEPING;
    u32 vector = 0;

    if (wakes)
        sleep_until_woken(vm);
    if (!wakes) // the TSC goes on in S3: Linux's clock may go by it where it is not called invariant
        vm->tsc_base = tsc_now();
    choose_tsc_rate(vm);
    if (wakes)
        vector = machine_wake(vm);
    else
        machine_reset(vm);
    for (u32 i = 0; i < vm->vcpu_count; i++) {
        __atomic_store_n(&vm->vcpus[i]->requests, 0, __ATOMIC_RELEASE);
        __atomic_store_n(&vm->vcpus[i]->nmis, 0, __ATOMIC_RELEASE);
        vcpu_reset(vm->vcpus[i], false);
    }
    if (!change_state(vm, BIT(VM_OFF) | BIT(VM_RESETTING) | BIT(VM_SLEEPING), VM_RUNNING, 0))
        stop_all(vm); // killed meanwhile
    else if (wakes ? wake_guest(vm, vector) : vm_load(vm))
        leave_running(vm, VM_STOPPED, STATUS_STOPPED);
    else
        vm_log(vm, "guest %s: %s with %u vCPUs, %llu MiB, at tick %llu", vm->config->name,
               wakes ? "wakes" : "starts", vm->vcpu_count, (unsigned long long)(vm->ram_size >> 20),
               (unsigned long long)tsc_now());
    __atomic_fetch_add(&vm->run_generation, 1, __ATOMIC_RELEASE);
}

static void run_vcpu(struct vm *vm, struct vcpu *vcpu)
{
    backend->load(vcpu);
    vcpu_run(vcpu);
    nested_reset(vcpu, false); // out of an L2 here: vcpu_reset comes from vCPU 0's CPU
    backend->put(vcpu);
    __atomic_fetch_add(&vm->left, 1, __ATOMIC_RELEASE);
}

static void wait_for_others(struct vm *vm)
{
    u32 left;

    while ((left = __atomic_load_n(&vm->left, __ATOMIC_ACQUIRE)) < vm->vcpu_count)
        wait_while_equal(&vm->left, left);
    __atomic_store_n(&vm->left, 0, __ATOMIC_RELEASE);
}

void vm_run_vcpu(struct vcpu *vcpu)
{
    struct vm *vm = vcpu->vm;
    u32 generation = 0;

    this_cpu()->current = vcpu;
    host_space_load(&vm->space);
    do {
        if (vm->next != VM_SLEEPING)
            zero_ram(vm, vcpu->id);
        if (vcpu->id == 0)
            start_guest(vm);
        wait_while_equal(&vm->run_generation, generation++);
        run_vcpu(vm, vcpu);
        if (vcpu->id == 0) {
            wait_for_others(vm);
            vm->next = __atomic_load_n(&vm->state, __ATOMIC_ACQUIRE);
            __atomic_fetch_add(&vm->ended_generation, 1, __ATOMIC_RELEASE);
        }
        wait_while_equal(&vm->ended_generation, generation - 1);
    } while (vm->next == VM_RESETTING || vm->next == VM_SLEEPING);
    zero_ram(vm, vcpu->id); // scrub
    host_space_load(NULL);
    this_cpu()->current = NULL;
    __atomic_fetch_add(&vm->left, 1, __ATOMIC_RELEASE);
    if (vcpu->id)
        return;
    wait_for_others(vm);
    vm_ended(vm->id, vm->exit_status);
    free_all(vm);
}
