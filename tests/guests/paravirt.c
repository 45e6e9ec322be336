// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// KVM's paravirtual interface as the Linux kernel documents it (Documentation/virt/kvm/x86: cpuid,
// msr, hypercalls): what an MSR may name, steal time, PV EOI, PV IPI. kvmclock's pace is clock.c's.

#include "guest.h"

enum { WALL_CLOCK = 0x4b564d00, CLOCK, STEAL_TIME = 0x4b564d03, PV_EOI, VECTOR = 0x51 };
enum { SEND_IPI = 10, EPERM = 1, EINVAL = 22, ENOSYS = 1000 };
#define NOT_RAM 0xfed00000ull // nothing is there, nor below 4 GiB behind it

static volatile u32 taken[2], ended_in_memory;
static bool use_memory;
static struct {
    u32 flag ALIGNED(64);
    u32 steal[16] ALIGNED(64), wall[4] ALIGNED(64), clock[8] ALIGNED(64);
} page ALIGNED(4096);

// The flag first: reading the APIC's ID takes the offer back.
static void handler(struct trap *trap)
{
    (void)trap;
    if (use_memory && (__atomic_fetch_and(&page.flag, ~1u, __ATOMIC_SEQ_CST) & 1))
        ended_in_memory++;
    else
        apic_eoi();
    taken[this_cpu_number()]++;
}

struct write {
    u32 msr;
    u64 value;
};

static void write_msr(void *arg)
{
    const struct write *w = arg;

    msr_write(w->msr, w->value);
}

static void test_addresses(void)
{
    static const struct {
        const char *what;
        struct write write;
    } rows[] = {
        {"a clock that is not in RAM", {CLOCK, NOT_RAM | 1}},
        {"a clock across the end of RAM below VGA's", {CLOCK, 0x9fff0 | 1}},
        {"a clock at the end of all addresses", {CLOCK, ~0ull & ~2ull}},
        {"a wall clock that is not in RAM", {WALL_CLOCK, NOT_RAM}},
        {"steal time that is not in RAM", {STEAL_TIME, NOT_RAM | 1}},
        {"steal time that is not aligned", {STEAL_TIME, 0x5010 | 1}},
        {"an EOI flag that is not in RAM", {PV_EOI, NOT_RAM | 1}},
        {"an EOI flag that is not aligned", {PV_EOI, 0x5002 | 1}},
        {"what is not offered", {0x4b564d02, 0}},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        report(try(write_msr, (void *)(u64)&rows[i].write) == VECTOR_GP, "#GP: %s", rows[i].what);
}

static void test_pages(void)
{
    static u64 *volatile const vector2 = (u64 *)8; // what the compiler need not know
    u64 low = *vector2;
    u32 seconds;

    msr_write(WALL_CLOCK, 0);
    report(*vector2 == low, "a wall clock at 0 is none");
    msr_write(WALL_CLOCK, (u64)page.wall);
    report(page.wall[1] > 1600000000 && !(page.wall[0] & 1), "wall clock: %u s", page.wall[1]);
    seconds = page.wall[1];
    msr_write(WALL_CLOCK, (u64)page.wall + 1);
    report(page.wall[1] >> 8 == (seconds & 0xffffff),
           "a wall clock at an odd address, as KVM has it");
    msr_write(CLOCK, (u64)page.clock | 1);
    report(!(page.clock[0] & 1) && page.clock[6], "kvmclock has a pace: %#x", page.clock[6]);
    memset(page.steal, 0xff, sizeof(page.steal));
    msr_write(STEAL_TIME, (u64)page.steal | 1);
    report(!page.steal[0] && !page.steal[1] && !page.steal[15], "no time was stolen");
}

// Each must end: the next one has the same priority.
static void interrupt_self(u32 n)
{
    sti();
    for (u32 i = 1; i <= n; i++) {
        apic_icr(0, ICR_SELF | ICR_ASSERT | VECTOR);
        if (!wait_for(&taken[0], i, 100))
            break;
    }
    cli();
}

static void test_eoi(void)
{
    taken[0] = 0;
    msr_write(PV_EOI, (u64)&page.flag | 1);
    use_memory = true;
    interrupt_self(10);
    report(taken[0] == 10, "%u of 10 interrupts with PV EOI", taken[0]);
    // Bochs's CPU plays the APIC itself; nothing is offered then.
    report(ended_in_memory == 10 || cpu_machine() == MACHINE_BOCHS, "%u of them ended in memory",
           ended_in_memory);
    apic_icr(0, ICR_SELF | ICR_ASSERT | VECTOR);
    sti();
    wait_for(&taken[0], 11, 100);
    cli();
    report(apic_read(APIC_ISR + 0x20) == 0, "ISR knows of it");
    msr_write(PV_EOI, 0);
    use_memory = false;
    taken[0] = 0;
    interrupt_self(2);
    report(taken[0] == 2 && !page.flag, "EOI by register again");
}

static u64 hypercall(u64 number, u64 low, u64 high, u64 first, u64 icr)
{
    u64 ret = number;

    if (cpuid(0, 0).ecx == 0x6c65746e) // "ntel"
        __asm__ volatile("vmcall"
                         : "+a"(ret)
                         : "b"(low), "c"(high), "d"(first), "S"(icr)
                         : "memory");
    else
        __asm__ volatile("vmmcall"
                         : "+a"(ret)
                         : "b"(low), "c"(high), "d"(first), "S"(icr)
                         : "memory");
    return ret;
}

static volatile u64 other_wall_clock;

static void read_wall_clock(void *unused)
{
    (void)unused;
    other_wall_clock = msr_read(WALL_CLOCK);
}

static void test_wall_clock(void)
{
    smp_call(1, read_wall_clock, NULL);
    smp_wait(1);
    report(other_wall_clock && other_wall_clock == msr_read(WALL_CLOCK),
           "the wall clock's MSR is one for all CPUs");
}

static volatile u32 ready, stop;

static void spin(void *unused)
{
    (void)unused;
    sti();
    for (ready = 1; !stop;)
        pause();
    cli();
}

static void test_ipi(void)
{
    taken[0] = taken[1] = 0;
    smp_call(1, spin, NULL);
    wait_for(&ready, 1, 1000);
    sti();
    report(hypercall(SEND_IPI, 3, 0, 0, VECTOR) == 2, "IPI to two CPUs");
    report(wait_for(&taken[0], 1, 100) && wait_for(&taken[1], 1, 100), "both take it: %u %u",
           taken[0], taken[1]);
    report(hypercall(SEND_IPI, 1, 0, 1, VECTOR) == 1 && wait_for(&taken[1], 2, 100),
           "IPI to CPU 1, counted from 1");
    report(hypercall(SEND_IPI, ~0ull, ~0ull, 2, VECTOR) == 0, "nobody from 2 on");
    report(hypercall(SEND_IPI, ~0ull, ~0ull, 0xffffffff, VECTOR) == 0, "nobody at the last ID");
    report(hypercall(SEND_IPI, 3, 0, 0, VECTOR | ICR_LOGICAL) == (u64)-EINVAL, "no logical IDs");
    report(hypercall(999, 0, 0, 0, 0) == (u64)-ENOSYS, "an unknown hypercall");
    delay_us(1000);
    report(taken[0] == 1 && taken[1] == 2, "nothing else came: %u %u", taken[0], taken[1]);
    cli();
    stop = 1;
    smp_wait(1);
}

static void user_hypercall(void *unused)
{
    (void)unused;
    taken[0] = (u32)-hypercall(SEND_IPI, 1, 0, 0, VECTOR);
}

void guest_main(void)
{
    struct cpuid_regs leaf = cpuid(0x40000000, 0);

    if (!under_hypervisor() || leaf.ebx != 0x4b4d564b) { // "KVMK"
        report_skip("no KVM leaves");
        return;
    }
    trap_handlers[VECTOR] = handler;
    pic_mask_all();
    apic_enable();
    test_addresses();
    test_pages();
    test_eoi();
    try_user(user_hypercall, NULL);
    report(taken[0] == EPERM, "CPL 3 may not send: %u", taken[0]);
    report(smp_start(2), "a second CPU");
    if (cpus_online == 2) {
        test_wall_clock();
        test_ipi();
    }
}
