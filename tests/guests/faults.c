// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Faults of emulated instructions are the CPU's: each row is executed and, behind the prefix of
// forced emulation, emulated, at CPL 0 and 3, with operands that are misaligned, not canonical, not
// mapped, on a device or no selectors. Vector, error code, CR2, RIP, RSP and registers must be the
// same (SDM vol. 3 "Priority Among Concurrent Events", vol. 2 for each instruction).

#include "guest.h"

#define LLU(v) ((unsigned long long)(v))

// A row's flags, which the assembler reads too.
#define MEMORY 1 // with operands that are addresses; else with values
#define USER   2 // at CPL 3 only: at CPL 0 it would succeed, or lose the stack
#define FAULTS 4 // only with addresses that fault: it goes where it points to

// RDI is the operand. R15 is where the instruction is. Which of its two words LGDT reads first is
// the CPU's business, and so is CR2 at CPL 0.
// clang-format off
__asm__(".macro row flags:req, code:vararg\n"
        ".irp prefix, 0, 1\n"
        ".text\n"
        "1: push %rbx; push %rbp; push %r15; mov %rsp, faults_stack(%rip)\n"
        "mov $0x55, %eax; mov $3, %ecx; xor %edx, %edx; lea faults_page(%rip), %rsi; lea 2f(%rip), %r15\n"
        ".if \\prefix; .byte 0x0f, 0x0b, 0x6b, 0x76, 0x6d; .endif\n"
        "2: \\code\n"
        "jmp faults_over\n"
        ".section .rodata.faults, \"a\"; .quad 1b; .previous\n"
        ".endr\n"
        ".section .rodata.faults, \"a\"; .quad 3f, \\flags; .previous\n"
        ".section .rodata.faults_text, \"a\"; 3: .asciz \"\\code\"; .previous\n"
        ".endm\n"
        ".section .rodata.faults, \"a\"; faults_rows: .previous\n"
        ".text; faults_over: mov faults_stack(%rip), %rsp; pop %r15; pop %rbp; pop %rbx; cld; ret\n");
#define STRING(x)        STRING_AGAIN(x)
#define STRING_AGAIN(x)  #x
#define ROW(flags, code) __asm__("row " STRING((flags)) ", " code);

ROW(MEMORY, "mov (%rdi), %rbx")
ROW(MEMORY, "mov %ax, (%rdi)")
ROW(MEMORY, "addl $1, (%rdi)")
ROW(MEMORY, "lock addq $1, (%rdi)")
ROW(MEMORY, "cmpxchg8b (%rdi)")
ROW(MEMORY, "lock cmpxchg16b (%rdi)")
ROW(MEMORY, "movaps (%rdi), %xmm0")
ROW(MEMORY, "movups %xmm0, (%rdi)")
ROW(MEMORY, "movdqa %xmm1, (%rdi)")
ROW(MEMORY, "vmovaps (%rdi), %ymm0")
ROW(MEMORY, "movq (%rdi), %mm0; emms")
ROW(MEMORY, "movnti %rax, (%rdi)")
ROW(MEMORY, "idivq (%rdi)")
ROW(MEMORY, "divb (%rdi)")
ROW(MEMORY, "btsq %rdi, (%rdi)")
ROW(MEMORY, "movbe (%rdi), %rcx")
ROW(MEMORY, "rep movsb")
ROW(MEMORY, "rep stosq")
ROW(MEMORY, "repe scasb")
ROW(MEMORY | USER, "insb")
ROW(MEMORY, "str (%rdi)")
ROW(MEMORY, "fldcw (%rdi)")
ROW(MEMORY, "fnstcw (%rdi)")
ROW(MEMORY, "mov %fs:(%rdi), %al")
ROW(MEMORY, "invlpg (%rdi)")
ROW(MEMORY, "mov %rdi, %rbp; mov %eax, (%rbp)")
ROW(MEMORY, ".byte 0xf0; mov %eax, (%rdi)")
ROW(FAULTS, "push (%rdi)")
ROW(FAULTS, "pop (%rdi)")
ROW(FAULTS, "call *(%rdi)")
ROW(FAULTS, "jmp *(%rdi)")
ROW(FAULTS, "rex.w ljmp *(%rdi)")
ROW(FAULTS | USER, "lgdt (%rdi)")
ROW(FAULTS | USER, "lidt (%rdi)")
ROW(FAULTS | USER, "mov %rdi, %rsp; push %rax")
ROW(FAULTS | USER, "mov %rdi, %rsp; pop %rax")
ROW(FAULTS | USER, "mov %rdi, %rsp; enter $16, $2")
ROW(FAULTS | USER, "mov %rdi, %rbp; leave")
ROW(FAULTS | USER, "mov %rdi, %rsp; iretq")
ROW(FAULTS | USER, "mov %rdi, %rsp; lretq")
ROW(FAULTS | USER, "mov %rdi, %rsp; ret")
ROW(0, "mov %edi, %ds")
ROW(0, "mov %edi, %fs")
ROW(USER, "mov %edi, %ss")
ROW(USER, "lldt %di")
ROW(USER, "ltr %di")
ROW(0, "lar %edi, %eax")
ROW(0, "lsl %edi, %eax")
ROW(0, "verr %di")
ROW(0, "div %edx")
ROW(0, "mov $5, %edx; div %ecx")
ROW(0, ".byte 0xf0; nop")
ROW(0, "ud2")
ROW(USER, "int3")
ROW(USER, "cli")
ROW(USER, "hlt")
ROW(USER, "in $0x21, %al")
ROW(USER, "clts")
ROW(USER, "wbinvd")
ROW(USER, "mov %cr0, %rax")
ROW(USER, "mov %rdi, %cr3")
ROW(USER, "mov %rdi, %dr6")
ROW(USER, "rdmsr")
ROW(USER, "swapgs")
ROW(USER, "xsetbv")
ROW(0, "rdpmc")
ROW(0, "mov $7, %ecx; xgetbv")
ROW(0, "mov $0x4000, %ecx; rdmsr")
ROW(0, ".fill 15, 1, 0x66; nop")
// clang-format on
__asm__(".section .rodata.faults, \"a\"; faults_rows_end: .previous");

struct row {
    void (*run[2])(void *operand); // executed, emulated
    const char *text;
    u64 flags;
};
extern const struct row faults_rows[], faults_rows_end[];
extern u64 faults_stack;
extern u8 faults_page[];
u64 faults_stack;
u8 faults_page[2 * PAGE_SIZE] ALIGNED(PAGE_SIZE);

struct outcome {
    int vector;
    u64 error, rip, cr2, rax, rcx, rdi, rsp, rflags;
};

static struct outcome run(void (*fn)(void *), u64 operand, bool user)
{
    struct outcome o;

    memset(&o, 0, sizeof(o));
    memset(faults_page, 0, 2 * PAGE_SIZE);
    last_cr2 = 0;
    o.vector = user ? try_user(fn, (void *)operand) : try(fn, (void *)operand);
    if (o.vector == NO_TRAP || o.vector == USER_RETURN)
        return o;
    o.error = last_trap.error;
    o.rip = last_trap.rip - last_trap.r15;
    o.cr2 = o.vector == VECTOR_PF ? last_cr2 : 0;
    o.rax = last_trap.rax;
    o.rcx = last_trap.rcx;
    o.rdi = last_trap.rdi;
    o.rsp = last_trap.rsp - faults_stack;
    o.rflags = last_trap.rflags;
    return o;
}

static unsigned compared;

static void compare(const struct row *row, u64 operand, bool user)
{
    struct outcome cpu = run(row->run[0], operand, user), own = run(row->run[1], operand, user);

    compared++;
    if (memcmp(&cpu, &own, sizeof(cpu)) != 0)
        report(false, "%s, %#llx, CPL %u: vector %d and %d, error %llx and %llx, RIP %llx and %llx",
               row->text, LLU(operand), user ? 3 : 0, cpu.vector, own.vector, LLU(cpu.error),
               LLU(own.error), LLU(cpu.rip), LLU(own.rip));
}

// Not canonical, at that border, not mapped; the others don't fault, or not all do.
static const u64 addresses[] = {0x8000000000000000, 0x7ffffffffffc, 0x7fffffffffff,
                                0xffff800000000000, 0x123456789000, 0xff000100,
                                0xff000101};
enum { FAULTING = 5 };
static const u64 values[] = {0, DATA, 0x13, TSS, 0x1000, 0xffff, 0x123456789000};

static void test_row(const struct row *row, bool user)
{
    unsigned before = compared;

    if ((row->flags & USER) && !user)
        return;
    if (row->flags & (MEMORY | FAULTS))
        for (unsigned i = 0; i < (row->flags & FAULTS ? FAULTING : ARRAY_SIZE(addresses)); i++)
            compare(row, addresses[i], user);
    else
        for (unsigned i = 0; i < ARRAY_SIZE(values); i++)
            compare(row, values[i], user);
    if (row->flags & MEMORY) {
        compare(row, (u64)faults_page + 64, user);
        compare(row, (u64)faults_page + 65, user);
    }
    report(compared > before, "%s, CPL %u", row->text, user ? 3 : 0);
}

void guest_main(void)
{
    for (const struct row *row = faults_rows; row < faults_rows_end; row++)
        for (int user = 0; user < 2; user++)
            test_row(row, user);
}
