// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The bench guest: what an instruction or an event costs, in ticks of the TSC, which under icount
// and on Bochs are instructions. Each row runs a round many times; the ticks of an empty round are
// taken off. A row with an interrupt holds the guest's own handler and its EOI, too. Where the
// Nestor below counts its instructions (count.h), it also prints how many of them a round took.
//
//   BENCH row ticks            COUNT row name=number ...            SKIP row

#include "guest.h"

#include "bench.h"
#include "count.h"

enum { ROUNDS = 200, TRIES = 3, VECTOR = 0xe0, DEADLINE_AHEAD = 30000 };
enum { MSR_SELF_IPI = MSR_X2APIC_FIRST + 0x3f, LVT_TSC_DEADLINE = 2 << 17 };
enum { CMOS_INDEX = 0x70, CMOS_DATA = 0x71, PIC_IMR = 0x21 };

static u16 pm_timer_port;
static u64 cr0, cr4, tsc_adjust;
static u64 wake_deadline, wake_latency;
volatile u64 bench_interrupts, bench_interrupt_tsc;
void bench_handler(void), bench_handler_x2(void);

// Their own, short handlers: the library's saves everything.
__asm__(".text\n"
        "bench_handler:\n"
        "    push %rax\n"
        "    push %rdx\n"
        "    rdtsc\n"
        "    mov %eax, bench_interrupt_tsc(%rip)\n"
        "    mov %edx, bench_interrupt_tsc + 4(%rip)\n"
        "    incq bench_interrupts(%rip)\n"
        "    mov $0xfee000b0, %eax\n"
        "    movl $0, (%rax)\n"
        "    pop %rdx\n"
        "    pop %rax\n"
        "    iretq\n"
        "bench_handler_x2:\n"
        "    push %rax\n"
        "    push %rcx\n"
        "    push %rdx\n"
        "    rdtsc\n"
        "    mov %eax, bench_interrupt_tsc(%rip)\n"
        "    mov %edx, bench_interrupt_tsc + 4(%rip)\n"
        "    incq bench_interrupts(%rip)\n"
        "    mov $0x80b, %ecx\n"
        "    xor %eax, %eax\n"
        "    xor %edx, %edx\n"
        "    wrmsr\n"
        "    pop %rdx\n"
        "    pop %rcx\n"
        "    pop %rax\n"
        "    iretq\n");

static void sti_hlt(void)
{
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}

static void sti_nop(void)
{
    __asm__ volatile("sti; nop; cli" : : : "memory");
}

// --- the rows ---

void row_nothing(void)
{
}

void row_cpuid(void)
{
    u32 a = 0, b, c = 0, d;

    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
}

static void row_vmmcall(void)
{
    u64 a = ~0ull;

    __asm__ volatile("vmmcall" : "+a"(a) : : "memory");
}

static void row_vmcall(void)
{
    u64 a = ~0ull;

    __asm__ volatile("vmcall" : "+a"(a) : : "memory");
}

void row_pic_read(void)
{
    in8(PIC_IMR);
}

static void row_pic_write(void)
{
    out8(PIC_IMR, 0xff);
}

static void row_cmos_index(void)
{
    out8(CMOS_INDEX, 0x0f);
}

static void row_cmos_data(void)
{
    in8(CMOS_DATA);
}

static void row_unknown_port(void)
{
    in8(0x2f9);
}

static void row_pm_timer(void)
{
    in32(pm_timer_port);
}

void row_rdmsr(void)
{
    msr_read(MSR_TSC_ADJUST);
}

static void row_wrmsr(void)
{
    msr_write(MSR_TSC_ADJUST, tsc_adjust);
}

static void row_lapic_read(void)
{
    apic_read(APIC_ID);
}

static void row_lapic_write(void)
{
    apic_write(APIC_TPR, 0);
}

static void row_lapic_eoi(void)
{
    apic_eoi();
}

static void row_ioapic_read(void)
{
    *(volatile u32 *)0xfec00010ull;
}

static void row_cr0_wp(void)
{
    write_cr0(cr0 ^ CR0_WP);
    write_cr0(cr0);
}

static void row_cr4_pge(void)
{
    write_cr4(cr4 ^ CR4_PGE);
    write_cr4(cr4);
}

static void row_deadline_now(void)
{
    msr_write(MSR_TSC_DEADLINE, rdtsc());
    sti_nop();
}

static void ipi_self(void)
{
    if (x2apic)
        msr_write(MSR_SELF_IPI, VECTOR);
    else
        apic_write(APIC_ICR, ICR_SELF | VECTOR);
}

static void row_ipi_nop(void)
{
    ipi_self();
    sti_nop();
}

static void row_ipi_hlt(void)
{
    ipi_self();
    sti_hlt();
}

static void row_timer_now(void)
{
    apic_write(APIC_TIMER_INITIAL, 1);
    sti_hlt();
}

static void row_hlt_wake(void)
{
    wake_deadline = rdtsc() + DEADLINE_AHEAD;
    msr_write(MSR_TSC_DEADLINE, wake_deadline);
    sti_hlt();
    wake_latency += bench_interrupt_tsc - wake_deadline;
}

// --- measuring ---

struct measure {
    u64 ticks, latency;
    u32 counts[COUNT_KINDS];
};

static bool counting(void)
{
    return cpuid(COUNT_LEAF, 0).ebx == COUNT_SIGNATURE;
}

static void read_counts(u32 *counts)
{
    for (u32 i = 0; i < COUNT_KINDS; i++)
        counts[i] = cpuid(COUNT_LEAF, i).eax;
}

static void run_once(void (*row)(void), struct measure *m)
{
    u32 before[COUNT_KINDS], after[COUNT_KINDS];
    u64 start;

    read_counts(before);
    wake_latency = 0;
    start = rdtsc();
    for (u32 i = 0; i < ROUNDS; i++)
        row();
    m->ticks = rdtsc() - start;
    m->latency = wake_latency;
    read_counts(after);
    for (u32 i = 0; i < COUNT_KINDS; i++)
        m->counts[i] = after[i] - before[i];
}

// The least of a few tries: a timer interrupt of Nestor's own may fall into one.
static struct measure run_row(void (*row)(void))
{
    struct measure best, m;

    run_once(row, &best); // decodes, allocates, logs
    best.ticks = ~0ull;
    for (u32 i = 0; i < TRIES; i++) {
        run_once(row, &m);
        if (m.ticks < best.ticks)
            best = m;
    }
    return best;
}

static struct measure empty;

static void print_counts(const char *name, const struct measure *m)
{
    static const char *const names[] = COUNT_NAMES;

    print("COUNT %s", name);
    for (u32 i = 0; i < COUNT_KINDS; i++) {
        u32 hundredths = (m->counts[i] - empty.counts[i]) * 100 / ROUNDS;

        print(" %s=%u.%02u", names[i], hundredths / 100, hundredths % 100);
    }
    print("\n");
}

void bench(const char *name, void (*row)(void), bool there)
{
    struct measure m;

    if (!there) {
        print("SKIP %s\n", name);
        return;
    }
    m = run_row(row);
    print("BENCH %s %llu\n", name,
          (unsigned long long)((m.ticks - empty.ticks + ROUNDS / 2) / ROUNDS));
    if (row == row_hlt_wake)
        print("BENCH %s-latency %llu\n", name, (unsigned long long)(m.latency / ROUNDS));
    if (counting())
        print_counts(name, &m);
}

void bench_empty(void)
{
    empty = run_row(row_nothing);
}

// --- the machine ---

// The FADT's PM_TMR_BLK, found as without UEFI (ACPI 6 "Finding the RSDP on IA-PC Systems"); 0:
// none.
static u16 find_pm_timer(void)
{
    for (u64 at = 0xe0000; at < 0x100000; at += 16) {
        const u32 *rsdt;

        if (memcmp((void *)at, "RSD PTR ", 8) != 0)
            continue;
        rsdt = (void *)(u64) * (const u32 *)(at + 16);
        for (u32 i = 9; i < rsdt[1] / 4; i++) {
            const u8 *table = (void *)(u64)rsdt[i];

            if (memcmp(table, "FACP", 4) == 0)
                return (u16) * (const u32 *)(table + 76);
        }
    }
    return 0;
}

static void bench_instructions(void)
{
    bool intel = cpuid(0, 0).ecx == 0x6c65746e; // "ntel"

    bench("cpuid", row_cpuid, true);
    bench("hypercall", intel ? row_vmcall : row_vmmcall,
          under_hypervisor() && bare_machine() == MACHINE_OTHER);
    bench("pic-read", row_pic_read, true);
    bench("pic-write", row_pic_write, true);
    bench("cmos-read", row_cmos_data, true);
    bench("cmos-write", row_cmos_index, true);
    bench("unknown-port-read", row_unknown_port, true);
    bench("pm-timer", row_pm_timer, pm_timer_port != 0);
    bench("msr-read", row_rdmsr, cpuid(7, 0).ebx & BIT(1));
    bench("msr-write", row_wrmsr, cpuid(7, 0).ebx & BIT(1));
    bench("cr0-wp", row_cr0_wp, true);
    bench("cr4-pge", row_cr4_pge, true);
}

static void bench_apic(const char *mode)
{
    bool deadline = cpuid(1, 0).ecx & BIT(24);
    char name[32];

    set_gate(VECTOR, x2apic ? bench_handler_x2 : bench_handler, CODE64, 0, GATE_INTERRUPT);
#define NAME(text) (fmt_snprintf(name, sizeof(name), "%s-%s", mode, text), name)
    bench(NAME("read"), row_lapic_read, true);
    bench(NAME("tpr-write"), row_lapic_write, true);
    bench(NAME("eoi"), row_lapic_eoi, true);
    apic_write(APIC_LVT_TIMER, LVT_TSC_DEADLINE | VECTOR);
    bench(NAME("deadline-now"), row_deadline_now, deadline);
    bench(NAME("hlt-wake"), row_hlt_wake, deadline);
    apic_write(APIC_LVT_TIMER, VECTOR);
    bench(NAME("timer-hlt"), row_timer_now, true);
    apic_write(APIC_LVT_TIMER, LVT_MASKED);
    bench(NAME("ipi-nop"), row_ipi_nop, true);
    bench(NAME("ipi-hlt"), row_ipi_hlt, true);
#undef NAME
}

void guest_main(void)
{
    if (option("quit"))
        return;
    if (option("nested")) {
        bench_nested();
        return;
    }
    if (option("cpuid")) {
        bench_empty();
        bench("cpuid", row_cpuid, true);
        return;
    }
    cr0 = read_cr0();
    cr4 = read_cr4();
    tsc_adjust = cpuid(7, 0).ebx & BIT(1) ? msr_read(MSR_TSC_ADJUST) : 0;
    pm_timer_port = find_pm_timer();
    bench_empty();
    bench_instructions();
    bench("ioapic-read", row_ioapic_read, true);
    bench_apic("xapic");
    if (apic_enable_x2())
        bench_apic("x2apic");
    report(bench_interrupts > 0, "interrupts arrived");
}
