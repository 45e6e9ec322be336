// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The small guests' start, console, reports and end; the traps; time by the PIT.

#include "guest.h"

enum { COM1 = 0x3f8, LSR = 5, LSR_THR_EMPTY = 0x20, LSR_EMPTY = 0x40 };
enum { EXIT_PORT = 0xf4, BOCHS_SHUTDOWN = 0x8900, PM1_CONTROL = 0x604, LATCH_PORT = 0xe0 };

void lib_main(void);
void trap_handle(struct trap *trap);
void enter_user(void);

extern u32 multiboot_info, multiboot_magic;
extern char image_end[], try_end[], user_stack_top[];
extern u64 try_rsp;
extern void (*user_fn)(void *);
extern void *user_arg;

char command_line[256];
trap_fn trap_handlers[256];
struct trap last_trap;
u64 last_cr2;
u64 idt[512] ALIGNED(16);
struct tss64 tss ALIGNED(16);
static u8 kernel_stack[16384] ALIGNED(16); // RSP0
static u32 tests, failures;
static char *next_page = image_end;

// --- console and reports ---

static void put_char(char c)
{
    while (!(in8(COM1 + LSR) & LSR_THR_EMPTY))
        ;
    out8(COM1, (u8)c);
}

static void put_text(const char *text)
{
    for (; *text; text++) {
        if (*text == '\n')
            put_char('\r');
        put_char(*text);
    }
}

static void print_args(const char *before, const char *fmt, va_list args)
{
    char text[512];

    fmt_vsnprintf(text, sizeof(text), fmt, args);
    put_text(before);
    put_text(text);
}

void print(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    print_args("", fmt, args);
    va_end(args);
}

static void PRINTF_LIKE(3, 0) report_args(bool ok, bool known, const char *fmt, va_list args)
{
    tests++;
    failures += !ok && !known;
    print_args(ok ? "PASS: " : known ? "XFAIL: " : "FAIL: ", fmt, args);
    put_text("\n");
}

void report(bool ok, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    report_args(ok, false, fmt, args);
    va_end(args);
}

void report_known(enum machine machine, bool ok, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    report_args(ok, machine == bare_machine(), fmt, args);
    va_end(args);
}

void report_cpu(enum machine machine, bool ok, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    report_args(ok, machine == cpu_machine(), fmt, args);
    va_end(args);
}

void report_skip(const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    print_args("SKIP: ", fmt, args);
    va_end(args);
    put_text("\n");
}

void print_summary(void)
{
    print("SUMMARY: %u tests, %u unexpected failures\n", tests, failures);
    while (!(in8(COM1 + LSR) & LSR_EMPTY))
        ;
}

void finish(void)
{
    print_summary();
    finish_with(failures != 0);
}

void finish_with(u32 code)
{
    out32(EXIT_PORT, code);
    for (const char *c = "Shutdown"; *c; c++)
        out8(BOCHS_SHUTDOWN, (u8)*c);
    out16(PM1_CONTROL, 0x2000);
    for (;;)
        __asm__ volatile("cli; hlt");
}

// --- the machine ---

bool under_hypervisor(void)
{
    return cpuid(1, 0).ecx >> 31;
}

enum machine bare_machine(void)
{
    struct cpuid_regs r = cpuid(0x40000000, 0);

    if (!under_hypervisor())
        return MACHINE_BOCHS; // or silicon, where nothing is known to fail
    return r.ebx == 0x54474354 && r.ecx == 0x43544743 && r.edx == 0x47435447 ? MACHINE_QEMU
                                                                             : MACHINE_OTHER;
}

// QEMU by its brand string; Bochs by a time stamp counter that counts instructions.
enum machine cpu_machine(void)
{
    u64 least = ~0ull;

    if (cpuid(0x80000002, 0).eax == 0x554d4551) // "QEMU"
        return MACHINE_QEMU;
    for (int i = 0; i < 16; i++) {
        u64 start = rdtsc(), delta = rdtsc() - start;

        least = MIN(least, delta);
    }
    return least < 8 ? MACHINE_BOCHS : MACHINE_OTHER;
}

bool has_test_device(void)
{
    out32(LATCH_PORT, 0x12345678);
    return in32(LATCH_PORT) == 0x12345678;
}

bool option(const char *word)
{
    size_t size = strlen(word);

    for (const char *at = command_line; *at;) {
        const char *end = strchr(at, ' ');
        size_t length = end ? (size_t)(end - at) : strlen(at);

        if (length == size && memcmp(at, word, size) == 0)
            return true;
        at += length + (end != NULL);
    }
    return false;
}

void *pages(unsigned count)
{
    void *at = next_page;

    next_page += count * PAGE_SIZE;
    memset(at, 0, count * PAGE_SIZE);
    return at;
}

u8 *map_half(void *page)
{
    static u64 *tables;

    if (!tables)
        tables = pages(3);
    tables[0] = (u64)(tables + 512) | 7;
    tables[512] = (u64)(tables + 1024) | 7;
    tables[1024] = (u64)page | 7;
    pml4[2] = page ? (u64)tables | 7 : 0;
    write_cr3(read_cr3());
    return (u8 *)(2ull << 39);
}

void delay_us(u32 us)
{
    u32 ticks = (u32)((u64)us * 1193182 / 1000000) + 1;

    out8(0x61, (u8)((in8(0x61) & ~2) | 1)); // gate on, speaker off
    out8(0x43, 0xb0);                       // channel 2, both bytes, mode 0
    out8(0x42, (u8)ticks);
    out8(0x42, (u8)(ticks >> 8));
    while (!(in8(0x61) & 0x20))
        ;
}

bool wait_for(volatile u32 *word, u32 value, u32 ms)
{
    for (u32 i = 0; i < ms * 10; i++) {
        if (*word >= value)
            return true;
        delay_us(100);
    }
    return *word >= value;
}

// --- traps ---

void make_gate(u64 gate[2], const void *handler, unsigned selector, unsigned ist,
               unsigned attributes)
{
    u64 offset = (u64)handler;

    gate[0] = (offset & 0xffff) | selector << 16 | (u64)ist << 32 | (u64)attributes << 40 |
              (offset >> 16 & 0xffff) << 48;
    gate[1] = offset >> 32;
}

void set_gate(unsigned vector, const void *handler, unsigned selector, unsigned ist,
              unsigned attributes)
{
    make_gate(&idt[vector * 2], handler, selector, ist, attributes);
}

static void unexpected(const struct trap *t)
{
    report(
        false, "unexpected vector %llu, error %#llx, rip %#llx, cs %#llx, rflags %#llx, cr2 %#llx",
        (unsigned long long)t->vector, (unsigned long long)t->error, (unsigned long long)t->rip,
        (unsigned long long)t->cs, (unsigned long long)t->rflags, (unsigned long long)read_cr2());
    finish();
}

void trap_handle(struct trap *trap)
{
    if (trap_handlers[trap->vector]) {
        trap_handlers[trap->vector](trap);
        return;
    }
    if (trap->vector == APIC_SPURIOUS)
        return; // what it was for has gone; it has no EOI
    if (!try_rsp || (trap->vector >= 32 && trap->vector != USER_RETURN))
        unexpected(trap);
    last_trap = *trap;
    last_cr2 = read_cr2();
    trap->rax = trap->vector;
    trap->rip = (u64)try_end;
    trap->rsp = try_rsp;
    trap->cs = CODE64;
    trap->ss = DATA;
    trap->rflags = RFLAGS_FIXED;
}

static void user_start(void *unused)
{
    (void)unused;
    enter_user();
}

int try_user(void (*fn)(void *), void *arg)
{
    user_fn = fn;
    user_arg = arg;
    return try(user_start, NULL);
}

void tss_load(u32 limit)
{
    u64 base = (u64)&tss;

    gdt[TSS / 8] = (limit & 0xffff) | (base & 0xffffff) << 16 | 0x89ull << 40 |
                   (u64)(limit >> 16 & 15) << 48 | (base >> 24 & 0xff) << 56;
    gdt[TSS / 8 + 1] = base >> 32;
    __asm__ volatile("ltr %w0" : : "r"(TSS));
}

static void traps_start(void)
{
    struct table_pointer pointer = {sizeof(idt) - 1, (u64)idt};

    for (unsigned i = 0; i < 256; i++)
        set_gate(i, trap_stubs + i * 16, CODE64, 0, i == USER_RETURN ? GATE_USER : GATE_INTERRUPT);
    __asm__ volatile("lidt %0" : : "m"(pointer));
    tss.rsp[0] = (u64)(kernel_stack + sizeof(kernel_stack));
    tss.io_map = sizeof(tss);
    tss_load(103);
}

// --- the start ---

// Behind the program's name, which is the first word.
static void read_command_line(void)
{
    const u32 *info = (void *)(u64)multiboot_info;
    const char *space;

    if (multiboot_magic != 0x2badb002 || !(info[0] & 4))
        return;
    space = strchr((const char *)(u64)info[4], ' ');
    fmt_snprintf(command_line, sizeof(command_line), "%s", space ? space + 1 : "");
}

void lib_main(void)
{
    out8(COM1 + 3, 0x83);
    out8(COM1, 1); // 115200 8N1
    out8(COM1 + 1, 0);
    out8(COM1 + 3, 0x03);
    out8(COM1 + 2, 0x07);
    read_command_line();
    traps_start();
    pic_mask_all();
    apic_enable();
    guest_main();
    finish();
}
