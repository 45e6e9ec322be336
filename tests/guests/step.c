// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Debug exceptions: single-stepping over instructions that a hypervisor intercepts or emulates, MOV
// SS, string instructions, breakpoints and DR7.GD (SDM vol. 3 "Debug Exceptions").

#include "guest.h"

enum { LOG_MAX = 8 };

static volatile u32 traps, wanted;
static struct {
    u64 rip, dr6, rflags, rcx;
} entries[LOG_MAX];

// Ends stepping after the traps that the test wants.
static void handler(struct trap *trap)
{
    u32 n = traps++;

    if (n < LOG_MAX) {
        entries[n].rip = trap->rip;
        entries[n].dr6 = read_dr6();
        entries[n].rflags = trap->rflags;
        entries[n].rcx = trap->rcx;
    }
    write_dr6(DR6_FIXED);
    if (traps >= wanted)
        trap->rflags &= ~RFLAGS_TF;
}

struct step_case {
    void *code;
    u64 first, second; // where the first two traps must come
    const char *text;
};
extern const struct step_case cases_start[], cases_end[];

// Calls code(): RAX = 0 and RDX = 0, ECX = IA32_PAT, RDI = the APIC's ICR2, RSI = memory.
void run_case(void *code, u64 apic, void *memory);
__asm__(".globl run_case\n"
        "run_case:\n"
        "push %rbx; push %rbp; push %r12\n"
        "mov %rdi, %r8; mov %rsi, %rdi; mov %rdx, %rsi\n"
        "mov $0x277, %ecx; xor %eax, %eax; xor %edx, %edx; mov $0x10, %ebp\n"
        "call *%r8\n"
        "pop %r12; pop %rbp; pop %rbx\n"
        "ret\n");

#define STEP_INTO(text, code)                                                 \
    __asm__(".pushsection .text; 3: pushfq; orl $0x100, (%rsp); popfq; " code \
            "; ret; .popsection\n"                                            \
            ".pushsection .rodata; 4: .asciz \"" text "\"; .popsection\n"     \
            ".pushsection cases, \"a\"; .quad 3b, 1b, 2b, 4b; .popsection");
#define STEP(code) STEP_INTO(code, code "; 1: nop; 2: nop")

// clang-format off
STEP("nop") STEP("cpuid") STEP("in $0x21, %al") STEP("in $0x21, %ax") STEP("out %al, $0x80") STEP("rdtsc") STEP("rdmsr")
STEP("mov (%rdi), %eax") STEP("mov %eax, (%rdi)") STEP("orl $0, (%rdi)") STEP("xchg %eax, (%rdi)") STEP("lodsb") STEP("pause")
STEP("wbinvd") STEP("mov %cr0, %r9") STEP("mov %cr3, %r9") STEP("mov %cr4, %r9") STEP("mov %cr8, %r9") STEP("clts")
STEP("invlpg (%rsi)") STEP("sgdt (%rsi)") STEP("mov %dr7, %r9") STEP("str %r9d")
STEP_INTO("wrmsr", "rdmsr; 1: wrmsr; 2: nop") STEP_INTO("mov %cr0", "mov %cr0, %rax; 1: mov %rax, %cr0; 2: nop")
STEP_INTO("mov %cr3", "mov %cr3, %rax; 1: mov %rax, %cr3; 2: nop") STEP_INTO("mov %cr8", "mov %rax, %cr8; 1: nop; 2: nop")
// no trap between MOV SS and what follows it
STEP_INTO("mov %ss", "mov %ebp, %ss; nop; 1: nop; 2: nop")
STEP_INTO("mov %ss, cpuid", "mov %ebp, %ss; cpuid; 1: nop; 2: nop")
STEP_INTO("mov %ss, in", "mov %ebp, %ss; in $0x21, %al; 1: nop; 2: nop")
STEP_INTO("mov %ss, mmio", "mov %ebp, %ss; mov (%rdi), %eax; 1: nop; 2: nop")
STEP_INTO("cpuid, cpuid", "cpuid; 1: cpuid; 2: nop") STEP_INTO("in, out", "in $0x21, %al; 1: out %al, $0x21; 2: nop")
STEP_INTO("branch", "jmp 1f; 2: ret; 1: jmp 2b")
    // clang-format on

    static u8 buffer[16] = "abcdefgh";

static void test_cases(void)
{
    for (const struct step_case *c = cases_start; c < cases_end; c++) {
        traps = 0;
        wanted = 2;
        run_case(c->code, APIC_BASE + APIC_ICR2, buffer);
        // QEMU counts PAUSE and what follows it as one step
        report_cpu(strcmp(c->text, "pause") == 0 ? MACHINE_QEMU : MACHINE_NONE,
                   traps == 2 && entries[0].rip == c->first && entries[1].rip == c->second &&
                       entries[0].dr6 == (DR6_FIXED | DR6_BS) &&
                       entries[1].dr6 == (DR6_FIXED | DR6_BS),
                   "%s: %u traps, RIP off by %lld and %lld, DR6 %#llx", c->text, traps,
                   (long long)(entries[0].rip - c->first), (long long)(entries[1].rip - c->second),
                   (unsigned long long)entries[0].dr6);
    }
}

// A trap after each iteration, RIP staying until the last.
static void test_string(const char *name, void *code)
{
    u64 at = (u64)code;

    traps = 0;
    wanted = 4;
    run_case(code, 0, buffer);
    report(traps == 4 && entries[0].rcx == 2 && entries[1].rcx == 1 && entries[2].rcx == 0 &&
               entries[0].rip == entries[1].rip && entries[2].rip == entries[1].rip + 2,
           "%s: %u traps, RCX %llu %llu %llu, RIP %lld %lld %lld", name, traps,
           (unsigned long long)entries[0].rcx, (unsigned long long)entries[1].rcx,
           (unsigned long long)entries[2].rcx, (long long)(entries[0].rip - at),
           (long long)(entries[1].rip - at), (long long)(entries[2].rip - at));
}

#define STEP_STRING(name, code)                                                        \
    extern char name[];                                                                \
    __asm__(#name ": mov $3, %ecx; mov $0x80, %edx; lea buffer2(%rip), %rdi; pushfq; " \
                  "orl $0x100, (%rsp); popfq; rep " code "; nop; ret");
STEP_STRING(step_outs, "outsb")
STEP_STRING(step_ins, "insb")
STEP_STRING(step_movs, "movsb")
STEP_STRING(step_stos, "stosb")
u8 buffer2[16];

static void test_strings(void)
{
    test_string("REP OUTSB", step_outs);
    test_string("REP INSB", step_ins);
    test_string("REP MOVSB", step_movs);
    test_string("REP STOSB", step_stos);
}

// An exception under TF: no single-step trap for it; its frame shows TF, its handler runs without.
extern char step_ud[];
__asm__("step_ud: pushfq; orl $0x100, (%rsp); popfq; ud2");

static void test_exception(void)
{
    int vector;

    traps = 0;
    wanted = 100;
    vector = try((void (*)(void *))(void *)step_ud, NULL);

    report(vector == VECTOR_UD && traps == 0 && last_trap.rflags & RFLAGS_TF,
           "UD2 with TF: vector %d, %u traps, TF in the frame %llu", vector, traps,
           (unsigned long long)(last_trap.rflags >> 8 & 1));
}

static void test_pushf(void)
{
    u64 flags;

    traps = 0;
    wanted = 3;
    __asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; pushfq; pop %0; nop" : "=r"(flags));
    report(traps == 3 && flags & RFLAGS_TF, "PUSHF shows TF");
    traps = 0;
    wanted = 100;
    __asm__ volatile("pushfq; orl $0x100, (%%rsp); popfq; pushfq; andl $~0x100, (%%rsp); popfq; nop"
                     :
                     :
                     : "memory", "cc");
    report(traps == 3 && !(entries[2].rflags & RFLAGS_TF),
           "POPF that clears TF traps still: %u traps", traps);
}

// --- breakpoints ---

static void test_breakpoints(void)
{
    static u32 word;
    u64 at;

    traps = 0;
    wanted = 1;
    write_dr0((u64)&word);
    write_dr7(DR7_FIXED | 0x000d0001 | 2); // DR0: writes of 4 bytes
    __asm__ volatile("lea 1f(%%rip), %0; movl $1, %1; 1: nop" : "=&r"(at), "=m"(word));
    report(traps == 1 && entries[0].rip == at && entries[0].dr6 == (DR6_FIXED | DR6_B(0)),
           "data breakpoint: %u traps, DR6 %#llx", traps, (unsigned long long)entries[0].dr6);
    write_dr7(DR7_FIXED);
}

// The fault comes before the instruction; the handler's RF lets it go on.
static void set_rf(struct trap *trap)
{
    handler(trap);
    trap->rflags |= RFLAGS_RF;
}

static void test_execution_breakpoint(void)
{
    u64 at;

    trap_handlers[VECTOR_DB] = set_rf;
    traps = 0;
    wanted = 1;
    __asm__ volatile(
        "lea 1f(%%rip), %0; mov %0, %%dr1; mov %1, %%dr7; xor %%eax, %%eax; 1: cpuid; nop"
        : "=&r"(at)
        : "r"(DR7_FIXED | 0xc)
        : "rax", "rbx", "rcx", "rdx");
    report(traps == 1 && entries[0].rip == at && entries[0].dr6 == (DR6_FIXED | DR6_B(1)),
           "execution breakpoint on CPUID: %u traps, DR6 %#llx", traps,
           (unsigned long long)entries[0].dr6);
    write_dr7(DR7_FIXED);
    trap_handlers[VECTOR_DB] = handler;
}

static void test_general_detect(void)
{
    u64 at, value = 0x1234;

    traps = 0;
    wanted = 1;
    trap_handlers[VECTOR_DB] = handler;
    // the #DB comes in place of MOV and clears GD, so that the MOV is done when it is tried again
    __asm__ volatile("mov %2, %%dr7; lea 1f(%%rip), %0; 1: mov %1, %%dr3"
                     : "=&r"(at)
                     : "r"(value), "r"(DR7_FIXED | DR7_GD));
    report_cpu(MACHINE_QEMU,
               traps == 1 && entries[0].rip == at && entries[0].dr6 == (DR6_FIXED | DR6_BD) &&
                   read_dr3() == value,
               "DR7.GD: %u traps, DR6 %#llx", traps, (unsigned long long)entries[0].dr6);
    report_cpu(MACHINE_QEMU, read_dr7() == DR7_FIXED, "and GD is clear: DR7 %#llx",
               (unsigned long long)read_dr7());
    write_dr7(DR7_FIXED);
    write_dr3(0);
}

static void test_registers(void)
{
    write_dr0(0x123456789abc);
    write_dr1(0xffff800000001000);
    write_dr6(DR6_FIXED | DR6_BS);
    cpuid(0, 0);
    report(read_dr0() == 0x123456789abc && read_dr1() == 0xffff800000001000,
           "DR0 and DR1 are kept");
    report(read_dr6() == (DR6_FIXED | DR6_BS), "DR6 is kept: %#llx",
           (unsigned long long)read_dr6());
    write_dr6(0);
    report(read_dr6() == DR6_FIXED, "DR6 has its fixed bits: %#llx",
           (unsigned long long)read_dr6());
}

void guest_main(void)
{
    trap_handlers[VECTOR_DB] = handler;
    write_dr6(DR6_FIXED);
    test_cases();
    test_strings();
    test_exception();
    test_pushf();
    test_breakpoints();
    test_execution_breakpoint();
    test_general_detect();
    test_registers();
}
