// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Physical CPUs: each one's area with GDT, TSS and stacks, starting them all (SDM vol. 3,
// "Multiple-Processor Initialization"), and how they reach each other: kicks and calls.

#include "../boot/offsets.h"
#include <arch/x86/desc.h>
#include <arch/x86/insn.h>
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/page.h>
#include <nestor/string.h>
#include <nestor/time.h>

enum { STACK_PAGES = 4, IST_COUNT = 3, IST_PAGES = 1 };
enum { INIT_DELAY_US = 10000, STARTUP_DELAY_US = 200, ANSWER_TIMEOUT_US = 500000 };

enum { AP_WAIT, AP_CHECK_TSC, AP_RELEASED };

#define PAT_DEFAULT  0x0007040600070406ull // as after reset
#define MADT_ENABLED 1u

struct PACKED tss {
    u32 reserved0;
    u64 rsp[3];
    u64 reserved1;
    u64 ist[7];
    u64 reserved2;
    u16 reserved3, io_map;
};

struct cpu_block {
    struct cpu cpu; // first: a struct cpu * is one of these
    u64 gdt[GDT_SIZE / 8];
    struct tss tss;
    u64 fs_area[6]; // FS base: libfdt reads its stack protector's canary at FS:28h
};

struct trampoline_args {
    u32 cr3, cr4;
    u16 reserved, gdt_limit;
    u32 gdt;
    struct {
        u32 offset, selector;
    } jump32, jump64;
};

_Static_assert(offsetof(struct cpu, self) == CPU_SELF, "offsets.h");
_Static_assert(offsetof(struct cpu, stack_top) == CPU_STACK_TOP, "offsets.h");
_Static_assert(offsetof(struct cpu, scratch) == CPU_SCRATCH, "offsets.h");
_Static_assert(offsetof(struct cpu, current) == CPU_CURRENT, "offsets.h");
_Static_assert(offsetof(struct trampoline_args, cr3) == TRAMPOLINE_CR3, "offsets.h");
_Static_assert(offsetof(struct trampoline_args, cr4) == TRAMPOLINE_CR4, "offsets.h");
_Static_assert(offsetof(struct trampoline_args, gdt_limit) == TRAMPOLINE_GDT_LIMIT, "offsets.h");
_Static_assert(offsetof(struct trampoline_args, gdt) == TRAMPOLINE_GDT, "offsets.h");
_Static_assert(offsetof(struct trampoline_args, jump32) == TRAMPOLINE_JUMP32, "offsets.h");
_Static_assert(offsetof(struct trampoline_args, jump64) == TRAMPOLINE_JUMP64, "offsets.h");
_Static_assert(sizeof(struct cpu_block) <= PAGE_SIZE, "a CPU's area is one page");

struct cpu *cpus[CPU_MAX];
u32 cpu_count;

// What the trampoline draws from. The limit is 0 again once the boot CPU has counted who came.
u32 ap_ticket, ap_limit;
struct cpu *ap_cpus[CPU_MAX] INIT_BSS;

static u32 ap_targets[CPU_MAX] INIT_BSS; // APIC IDs
static u32 ap_target_count;
static u32 ap_phase; // what the others do; written by the boot CPU

static struct cpu_block boot_block;
static u8 boot_ist[IST_COUNT][1024] INIT_BSS ALIGNED(16);

extern const u8 trampoline_start[], trampoline_end[];
extern const struct trampoline_args trampoline_args;
extern u8 boot_pml4[], boot_pml5[];

void cpu_main_ap(struct cpu_block *block);

// --- A CPU's own area. ---

// The word at the stack's top tells core/trap.S which CPU this is.
static void set_ist(struct cpu_block *block, u32 ist, void *top)
{
    u64 *word = (u64 *)top - 2;

    *word = (u64)block;
    block->tss.ist[ist - 1] = (u64)word;
}

static void block_init(struct cpu_block *block, u32 id)
{
    u64 tss = (u64)&block->tss;

    block->cpu.self = &block->cpu;
    block->cpu.id = id;
    block->cpu.timer_first = ~0ull;
    block->gdt[GDT_CODE / 8] = GDT_CODE_DESCRIPTOR;
    block->gdt[GDT_DATA / 8] = GDT_DATA_DESCRIPTOR;
    block->gdt[GDT_TSS / 8] = (sizeof(struct tss) - 1) | (tss & 0xffffff) << 16 | 0x89ull << 40 |
                              (tss >> 24 & 0xff) << 56;
    block->gdt[GDT_TSS / 8 + 1] = tss >> 32;
    block->tss.io_map = sizeof(struct tss);
}

static void block_load(struct cpu_block *block)
{
    struct table_pointer pointer = {sizeof(block->gdt) - 1, (u64)block->gdt};

    __asm__ volatile("lgdt %0\n"
                     "pushq %1\n"
                     "lea 1f(%%rip), %%rax\n"
                     "push %%rax\n"
                     "lretq\n"
                     "1: mov %2, %%ds\n"
                     "mov %2, %%es\n"
                     "mov %2, %%ss\n"
                     "mov %3, %%fs\n"
                     "mov %3, %%gs\n"
                     "lldt %w3\n"
                     "ltr %w4\n"
                     :
                     : "m"(pointer), "i"(GDT_CODE), "r"(GDT_DATA), "r"(0), "r"(GDT_TSS)
                     : "rax", "memory");
    msr_write(MSR_GS_BASE, (u64)block);
    msr_write(MSR_FS_BASE, (u64)block->fs_area);
    idt_load_cpu();
}

INIT_TEXT void cpu_init_boot(void)
{
    idt_init();
    block_init(&boot_block, 0);
    for (u32 ist = 1; ist <= IST_COUNT; ist++)
        set_ist(&boot_block, ist, boot_ist[ist]);
    block_load(&boot_block);
    cpus[0] = &boot_block.cpu;
    cpu_count = 1;
    boot_block.cpu.online = 1;
}

static bool allocate_stacks(struct cpu_block *block)
{
    void *top = stack_alloc(STACK_PAGES);

    block->cpu.stack_top = (u64)top;
    for (u32 ist = 1; ist <= IST_COUNT && top; ist++) {
        top = stack_alloc(IST_PAGES);
        if (top)
            set_ist(block, ist, top);
    }
    return top;
}

INIT_TEXT void cpu_init_boot_stacks(void)
{
    if (!allocate_stacks(&boot_block))
        panic("no memory for the boot CPU's stacks");
}

static u64 cr4_wanted(void)
{
    struct cpuid_regs leaf1 = cpuid(1, 0), leaf7 = cpuid(7, 0);
    u64 cr4 = CR4_PAE | CR4_PGE | CR4_MCE | CR4_OSFXSR | CR4_OSXMMEXCPT | (read_cr4() & CR4_LA57);

    cr4 |= leaf1.ecx & BIT(26) ? CR4_OSXSAVE : 0;
    cr4 |= leaf7.ebx & BIT(7) ? CR4_SMEP : 0;
    cr4 |= leaf7.ebx & BIT(20) ? CR4_SMAP : 0;
    cr4 |= leaf7.ecx & BIT(3) ? CR4_PKE : 0; // for RDPKRU: Nestor has no user-mode pages
    return cr4;
}

void cpu_init_registers(void)
{
    write_cr0(CR0_PG | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE);
    write_cr4(cr4_wanted());
    write_dr7(DR7_FIXED);
    if (msr_read(MSR_PAT) != PAT_DEFAULT)
        msr_write(MSR_PAT, PAT_DEFAULT);
}

// --- Starting the others. ---

static INIT_TEXT bool is_target(u32 id)
{
    for (u32 i = 0; i < ap_target_count; i++)
        if (ap_targets[i] == id)
            return true;
    return false;
}

static INIT_TEXT void add_target(u32 id, u32 flags)
{
    if (!(flags & MADT_ENABLED) || id == this_cpu()->apic_id || is_target(id))
        return;
    if (id >= 0xff && !apic_is_x2apic())
        log_warn("the CPU with x2APIC ID %u needs x2APIC mode: left out", id);
    else if (ap_target_count == CPU_MAX - 1)
        log_warn("the CPU with APIC ID %u is one too many: left out", id);
    else
        ap_targets[ap_target_count++] = id;
}

static INIT_TEXT void find_targets(void)
{
    for (const struct madt_entry *e = madt_next(NULL); e; e = madt_next(e)) {
        if (e->type == MADT_LAPIC)
            add_target(e->lapic.apic_id, e->lapic.flags);
        else if (e->type == MADT_X2APIC)
            add_target(e->x2apic.apic_id, e->x2apic.flags);
    }
}

static INIT_TEXT void allocate_cpus(void)
{
    struct cpu_block *block;

    for (u32 i = 0; i < ap_target_count; i++) {
        block = page_alloc(0);
        if (block)
            block_init(block, i + 1);
        if (!block || !allocate_stacks(block)) {
            log_error("no memory for more than %u CPUs", i + 1);
            ap_target_count = i;
            return;
        }
        ap_cpus[i] = &block->cpu;
    }
}

// Returns the page's address, 0 if there is none.
static INIT_TEXT u32 prepare_trampoline(void)
{
    u32 page = (u32)low_page_alloc();
    u64 size = (u64)(trampoline_end - trampoline_start);
    struct trampoline_args *args;
    u8 *copy;

    copy = page ? mmio_map(page, PAGE_SIZE, MAP_CACHED) : NULL;
    if (!copy)
        return 0;
    memcpy(copy, trampoline_start, size);
    args = (struct trampoline_args *)(copy + ((u64)&trampoline_args - (u64)trampoline_start));
    args->cr3 = (u32)virt_to_phys(read_cr4() & CR4_LA57 ? boot_pml5 : boot_pml4);
    args->cr4 = (u32)(CR4_PAE | (read_cr4() & CR4_LA57));
    args->gdt += page;
    args->jump32.offset += page;
    args->jump64.offset += page;
    mmio_unmap(copy, PAGE_SIZE);
    return page;
}

static INIT_TEXT u32 answered(void)
{
    u32 n = 0;

    for (u32 i = 0; i < ap_target_count; i++)
        n += __atomic_load_n(&ap_cpus[i]->online, __ATOMIC_ACQUIRE);
    return n;
}

static INIT_TEXT void wait_for_answers(u32 us)
{
    for (; us >= STARTUP_DELAY_US && answered() < ap_target_count; us -= STARTUP_DELAY_US)
        time_delay_us(STARTUP_DELAY_US);
}

static INIT_TEXT void send_startups(u32 page)
{
    for (u32 i = 0; i < ap_target_count; i++)
        apic_send_init(ap_targets[i]);
    time_delay_us(INIT_DELAY_US);
    for (u32 n = 0; n < 2 && answered() < ap_target_count; n++) {
        for (u32 i = 0; i < ap_target_count; i++)
            apic_send_startup(ap_targets[i], (u8)(page >> PAGE_SHIFT));
        wait_for_answers(STARTUP_DELAY_US);
    }
    wait_for_answers(ANSWER_TIMEOUT_US);
}

// CPUs come in any order; their numbers follow the MADT's. One that did not come gets another INIT:
// it must not come later, when the boot code is gone.
static INIT_TEXT void number_cpus(void)
{
    for (u32 i = 0; i < ap_target_count; i++) {
        struct cpu *cpu = NULL;

        for (u32 j = 0; j < ap_target_count; j++)
            if (ap_cpus[j]->online && ap_cpus[j]->apic_id == ap_targets[i])
                cpu = ap_cpus[j];
        if (cpu) {
            cpu->id = cpu_count;
            cpus[cpu_count++] = cpu;
            continue;
        }
        log_error("the CPU with APIC ID %u does not answer: left out", ap_targets[i]);
        apic_send_init(ap_targets[i]);
    }
}

INIT_TEXT void cpu_start_all(void)
{
    u32 page;

    find_targets();
    if (ap_target_count == 0)
        return;
    page = prepare_trampoline();
    if (!page) {
        log_error("no page below 640 KiB to start the other CPUs from: going on with one");
        return;
    }
    allocate_cpus();
    __atomic_store_n(&ap_limit, ap_target_count, __ATOMIC_RELEASE);
    send_startups(page);
    __atomic_store_n(&ap_limit, 0, __ATOMIC_RELEASE);
    number_cpus();
}

// --- Is the TSC one clock? Every CPU takes the time in turn, as the lock gives it: one that reads
// less than the one before it is behind. ---

enum { TSC_ROUNDS = 200 };

static struct {
    struct spinlock lock;
    u64 last, worst;
    u32 arrived, finished;
} tsc_check;

static void check_tsc_here(void)
{
    __atomic_fetch_add(&tsc_check.arrived, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&tsc_check.arrived, __ATOMIC_ACQUIRE) < cpu_count)
        __builtin_ia32_pause();
    for (u32 i = 0; i < TSC_ROUNDS; i++) {
        u64 now;

        spin_lock(&tsc_check.lock);
        __asm__ volatile("lfence" : : : "memory");
        now = tsc_now();
        if (now < tsc_check.last)
            tsc_check.worst = MAX(tsc_check.worst, tsc_check.last - now);
        tsc_check.last = now;
        spin_unlock(&tsc_check.lock);
    }
    __atomic_fetch_add(&tsc_check.finished, 1, __ATOMIC_ACQ_REL);
}

INIT_TEXT void cpu_check_tsc(void)
{
    if (cpu_count == 1)
        return;
    __atomic_store_n(&ap_phase, AP_CHECK_TSC, __ATOMIC_RELEASE);
    check_tsc_here();
    while (__atomic_load_n(&tsc_check.finished, __ATOMIC_ACQUIRE) < cpu_count)
        __builtin_ia32_pause();
    if (tsc_check.worst)
        log_warn("clock: the CPUs' TSCs differ by %llu ticks (%llu ns): guests' time may jump",
                 tsc_check.worst, tsc_to_ns(tsc_check.worst));
}

static void wait_in_phase(u32 phase)
{
    while (__atomic_load_n(&ap_phase, __ATOMIC_ACQUIRE) == phase) {
        cpu_call_poll();
        __builtin_ia32_pause();
    }
}

// The first C code of the other CPUs. They wait here, carrying out calls, until the boot CPU is
// through.
void cpu_main_ap(struct cpu_block *block)
{
    struct cpu *cpu = &block->cpu;

    block_load(block);
    cpu_init_registers();
    apic_init_cpu();
    cpu->apic_id = apic_id();
    timer_init_cpu();
    __atomic_store_n(&cpu->online, 1, __ATOMIC_RELEASE);
    wait_in_phase(AP_WAIT);
    check_tsc_here();
    wait_in_phase(AP_CHECK_TSC);
    core_main_cpu();
}

void cpu_release_all(void)
{
    __atomic_store_n(&ap_phase, AP_RELEASED, __ATOMIC_RELEASE);
}

// --- Reaching each other. ---

static u32 call_busy; // the one call at a time

void cpu_call_poll(void)
{
    struct cpu *cpu = this_cpu();
    void (*fn)(void *) = __atomic_load_n(&cpu->call_fn, __ATOMIC_ACQUIRE);

    if (unlikely(__atomic_load_n(&panic_active, __ATOMIC_RELAXED)))
        panic_stop();
    if (likely(!fn))
        return;
    cpu->call_fn = NULL;
    fn(cpu->call_arg);
    __atomic_store_n(&cpu->call_done, 1, __ATOMIC_RELEASE);
}

// While it waits, this CPU's own mailbox is served, or two that call each other would wait for
// ever. The IPI is always sent: to a CPU that is about to enter its guest it makes an exit right
// after.
void cpu_call(struct cpu *cpu, void (*fn)(void *), void *arg)
{
    if (cpu == this_cpu()) {
        fn(arg);
        return;
    }
    while (__atomic_exchange_n(&call_busy, 1, __ATOMIC_ACQUIRE))
        cpu_call_poll();
    cpu->call_arg = arg;
    cpu->call_done = 0;
    __atomic_store_n(&cpu->call_fn, fn, __ATOMIC_RELEASE);
    apic_send_ipi(cpu->apic_id, HOST_VECTOR_CALL);
    while (!__atomic_load_n(&cpu->call_done, __ATOMIC_ACQUIRE)) {
        cpu_call_poll();
        __builtin_ia32_pause();
    }
    __atomic_store_n(&call_busy, 0, __ATOMIC_RELEASE);
}

void cpu_kick(struct cpu *cpu)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST); // the caller's request before these two
    if (cpu != this_cpu() && (__atomic_load_n(&cpu->in_guest, __ATOMIC_RELAXED) ||
                              __atomic_load_n(&cpu->idle, __ATOMIC_RELAXED)))
        apic_send_ipi(cpu->apic_id, HOST_VECTOR_KICK);
}

void cpu_idle(const u32 *wake)
{
    struct cpu *cpu = this_cpu();
    u64 next;

    __atomic_store_n(&cpu->idle, 1, __ATOMIC_SEQ_CST);
    next = timer_next();
    if (!(wake && __atomic_load_n(wake, __ATOMIC_SEQ_CST)) &&
        !__atomic_load_n(&cpu->call_fn, __ATOMIC_SEQ_CST) && next > tsc_now()) {
        timer_arm_hardware(next);
        __asm__ volatile("sti; hlt; cli" : : : "memory");
    }
    __atomic_store_n(&cpu->idle, 0, __ATOMIC_RELEASE);
    cpu_call_poll();
    timer_poll();
}
