// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A guest that points its descriptor tables, stacks and string operands at devices, at nothing and
// at non-canonical addresses, and has instructions emulated there: by operands behind MMIO, and by
// the prefix that asks for it. Each must end as the manual says. With the option "fatal=N" the N-th
// of a list of accesses that no CPU could make sense of: those may stop this guest, and nothing
// else.

#include "guest.h"

enum {
    DEVICE = 0xff000000,  // the test device's memory
    NOWHERE = 0xd0000000, // no device, no RAM
};
#define NON_CANONICAL 0x8000000000000000ull
#define FORCED        "ud2; .ascii \"kvm\"; "

static bool forced_works;

static void forced_nop(void *unused)
{
    (void)unused;
    __asm__ volatile(FORCED "nop");
}

// `address` is the operand's.
#define ACCESS(name, insn)                                             \
    static void name(void *address)                                    \
    {                                                                  \
        u64 count = 4, to = (u64)address, from = (u64)address;         \
                                                                       \
        __asm__ volatile(insn                                          \
                         : "+c"(count), "+D"(to), "+S"(from)           \
                         :                                             \
                         : "rax", "rbx", "rdx", "r8", "memory", "cc"); \
    }
ACCESS(plain_load, "mov (%%rsi), %%rax")
ACCESS(plain_store, "mov %%rax, (%%rdi)")
ACCESS(locked_add, "lock addq $1, (%%rdi)")
ACCESS(exchange_16, "lock cmpxchg16b (%%rdi)")
ACCESS(vector_load, "movups (%%rsi), %%xmm0")
ACCESS(vector_store, "movups %%xmm0, (%%rdi)")
ACCESS(string_move, "rep movsb")
ACCESS(string_store, "rep stosq")
ACCESS(string_load, "rep lodsl")
ACCESS(string_compare, "repe cmpsb")
ACCESS(string_in, "mov $0xe0, %%edx; rep insb")
ACCESS(string_out, "mov $0xe0, %%edx; rep outsb")
ACCESS(load_gdt, "lgdt (%%rsi)")
ACCESS(store_idt, "sidt (%%rdi)")
ACCESS(load_task, "ltr (%%rsi)")
ACCESS(load_selector, "mov (%%rsi), %%es")
ACCESS(far_jump, "rex.w ljmp *(%%rsi)")
ACCESS(x87_store, "fnstcw (%%rdi)")
ACCESS(on_stack, "mov %%rsp, %%r8; mov %%rsi, %%rsp; push %%rax; mov %%r8, %%rsp")
ACCESS(off_stack, "mov %%rsp, %%r8; mov %%rsi, %%rsp; pop %%rax; mov %%r8, %%rsp")
ACCESS(enter_stack, "mov %%rsp, %%r8; push %%rbp; mov %%rsi, %%rbp; xchg %%rsi, %%rsp;"
                    "enter $16, $3; xchg %%rsi, %%rsp; mov %%r8, %%rsp; mov -8(%%r8), %%rbp")
ACCESS(forced_load, FORCED "mov (%%rsi), %%rax")
ACCESS(forced_store, FORCED "mov %%rax, (%%rdi)")
ACCESS(forced_move, FORCED "rep movsb")
ACCESS(forced_push, "mov %%rsp, %%r8; mov %%rsi, %%rsp;" FORCED "push %%rax; mov %%r8, %%rsp")
ACCESS(forced_exchange, FORCED "lock cmpxchg16b (%%rdi)")
ACCESS(forced_load_gdt, FORCED "lgdt (%%rsi)")

// What each does at a non-canonical address and where nothing is mapped.
static const struct {
    const char *name;
    void (*run)(void *address);
    u8 non_canonical; // the vector
    bool forced;
} accesses[] = {
    {"MOV from", plain_load, VECTOR_GP, false},
    {"MOV to", plain_store, VECTOR_GP, false},
    {"LOCK ADD", locked_add, VECTOR_GP, false},
    {"LOCK CMPXCHG16B", exchange_16, VECTOR_GP, false},
    {"MOVUPS from", vector_load, VECTOR_GP, false},
    {"MOVUPS to", vector_store, VECTOR_GP, false},
    {"REP MOVSB", string_move, VECTOR_GP, false},
    {"REP STOSQ", string_store, VECTOR_GP, false},
    {"REP LODSL", string_load, VECTOR_GP, false},
    {"REPE CMPSB", string_compare, VECTOR_GP, false},
    {"REP INSB", string_in, VECTOR_GP, false},
    {"REP OUTSB", string_out, VECTOR_GP, false},
    {"LGDT", load_gdt, VECTOR_GP, false},
    {"SIDT", store_idt, VECTOR_GP, false},
    {"LTR", load_task, VECTOR_GP, false},
    {"MOV to ES", load_selector, VECTOR_GP, false},
    {"far JMP", far_jump, VECTOR_GP, false},
    {"FNSTCW", x87_store, VECTOR_GP, false},
    {"PUSH on", on_stack, VECTOR_SS, false},
    {"POP from", off_stack, VECTOR_SS, false},
    {"emulated MOV from", forced_load, VECTOR_GP, true},
    {"emulated MOV to", forced_store, VECTOR_GP, true},
    {"emulated REP MOVSB", forced_move, VECTOR_GP, true},
    {"emulated PUSH on", forced_push, VECTOR_SS, true},
    {"emulated LOCK CMPXCHG16B", forced_exchange, VECTOR_GP, true},
    {"emulated LGDT", forced_load_gdt, VECTOR_GP, true},
};

// QEMU (7.2) raises #GP for the stack too; string I/O and what is forced is Nestor's to do.
static bool cpu_decides(unsigned i)
{
    return accesses[i].non_canonical == VECTOR_SS && !accesses[i].forced;
}

static void test_addresses(void)
{
    u8 *end = map_half(pages(1)) + PAGE_SIZE;

    for (unsigned i = 0; i < ARRAY_SIZE(accesses); i++) {
        int vector;

        if (accesses[i].forced && !forced_works)
            continue;
        vector = try(accesses[i].run, (void *)NON_CANONICAL);
        if (cpu_decides(i))
            report_cpu(MACHINE_QEMU, vector == accesses[i].non_canonical && last_trap.error == 0,
                       "%s a non-canonical address: vector %d", accesses[i].name, vector);
        else
            report(vector == accesses[i].non_canonical && last_trap.error == 0,
                   "%s a non-canonical address: vector %d", accesses[i].name, vector);
        // 64 bytes beyond the end: pushes, too, hit the page that is not there.
        vector = try(accesses[i].run, end + 64);
        report(vector == VECTOR_PF && (last_cr2 & PAGE_MASK) == (u64)end,
               "%s a page that is not there: vector %d, CR2 %#llx", accesses[i].name, vector,
               (unsigned long long)last_cr2);
    }
    map_half(NULL);
}

// With operands on a device's memory, on its last byte and beyond it, and where there is none: no
// exception but what the bytes there mean (selectors, far pointers), and no harm.
static void test_devices(void)
{
    static const u64 places[] = {DEVICE, DEVICE + 0xff8, DEVICE + 0xfff8, DEVICE + 0xfffd, NOWHERE};

    for (unsigned place = 0; place < ARRAY_SIZE(places); place++) {
        for (unsigned i = 0; i < ARRAY_SIZE(accesses); i++) {
            bool tables = accesses[i].run == load_gdt || accesses[i].run == forced_load_gdt ||
                          accesses[i].run == far_jump;
            int vector;

            if (tables || (accesses[i].forced && !forced_works))
                continue; // what they load would be used
            vector = try(accesses[i].run, (void *)places[place]);
            report(vector == NO_TRAP || vector == VECTOR_GP, "%s device memory at %#llx: vector %d",
                   accesses[i].name, (unsigned long long)places[place], vector);
        }
        report(try(enter_stack, (void *)(places[place] | 0x800)) == NO_TRAP,
               "ENTER with its frame and stack on a device");
    }
}

// --- tables and stacks that the CPU itself would use ---

static void load_tables(u64 gdt_base, u64 idt_base)
{
    struct PACKED {
        u16 limit;
        u64 base;
    } g = {0xffff, gdt_base}, i = {0xffff, idt_base};

    __asm__ volatile("lgdt %0; lidt %1" : : "m"(g), "m"(i));
}

static void gdt_on_device(void)
{
    load_tables(DEVICE, (u64)idt);
    __asm__ volatile("mov %0, %%es" : : "r"(0x10));
}

static void idt_on_device(void)
{
    load_tables((u64)gdt, DEVICE);
    __asm__ volatile("int3");
}

static void idt_nowhere(void)
{
    load_tables((u64)gdt, NOWHERE);
    __asm__ volatile("ud2");
}

static void stack_on_device(void)
{
    __asm__ volatile("mov %0, %%rsp; ud2" : : "r"((u64)DEVICE + 0x800));
}

static void emulated_gdt_nowhere(void)
{
    load_tables(NOWHERE, (u64)idt);
    __asm__ volatile(FORCED "mov %0, %%es" : : "r"(0x10));
}

static void emulated_interrupt(void)
{
    load_tables((u64)gdt, 0xffff800000000000); // not mapped
    __asm__ volatile(FORCED "int $0x33");
}

static void page_tables_on_device(void)
{
    write_cr3(DEVICE);
    __asm__ volatile("nop");
}

static void task_on_device(void)
{
    u64 *descriptor = &gdt[SPARE / 8];

    descriptor[0] = 0x0000890000000067 | (DEVICE & 0xffffffull) << 16 | (u64)DEVICE >> 24 << 56;
    descriptor[1] = 0;
    set_gate(0x21, trap_stubs + 0x21 * 16, CODE64, 1, GATE_INTERRUPT); // its stack is in the TSS
    __asm__ volatile("ltr %w0; int $0x21" : : "r"(SPARE));
}

static void jump_to_device(void)
{
    ((void (*)(void))(u64)(DEVICE + 0x100))();
}

static void (*const fatal[])(void) = {
    gdt_on_device,         idt_on_device,        idt_nowhere,
    stack_on_device,       emulated_gdt_nowhere, emulated_interrupt,
    page_tables_on_device, task_on_device,       jump_to_device,
};

void guest_main(void)
{
    static const char digits[] = "012345678";
    char word[] = "fatal=0";

    for (unsigned i = 0; i < ARRAY_SIZE(fatal); i++) {
        word[6] = digits[i];
        if (option(word))
            fatal[i]();
    }
    if (!has_test_device()) {
        report_skip("no test device: nothing to point at");
        return;
    }
    set_gate(VECTOR_PF, trap_stubs + VECTOR_PF * 16, CODE64, 1, GATE_INTERRUPT);
    set_gate(VECTOR_GP, trap_stubs + VECTOR_GP * 16, CODE64, 1, GATE_INTERRUPT);
    set_gate(VECTOR_SS, trap_stubs + VECTOR_SS * 16, CODE64, 1, GATE_INTERRUPT);
    tss.ist[0] = (u64)pages(2) + 2 * PAGE_SIZE;
    write_cr4(read_cr4() | CR4_OSFXSR);
    write_cr0(read_cr0() & ~(CR0_EM | CR0_TS));
    forced_works = try(forced_nop, NULL) == NO_TRAP;
    if (bare_machine() == MACHINE_OTHER)
        report(forced_works, "the prefix UD2 \"kvm\" asks for emulation");
    test_addresses();
    test_devices();
}
