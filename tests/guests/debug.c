// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Debug facilities: the debug registers, INT1, INT3 and INTO, what comes after MOV SS and STI,
// single steps and breakpoints where instructions exit, and the order of events that meet (SDM vol.
// 3 "Debug Exceptions", "Masking Exceptions and Interrupts When Switching Stacks", "Priority Among
// Concurrent Events"). step.c steps over many instructions.

#include "guest.h"

enum { LOG_MAX = 8, VECTOR_SELF = 0x40, VECTOR_SOFT = 0x41, VECTOR_TIMER = 0x42 };

struct happening {
    u64 vector, rip, dr6; // of #DB; | RF_SET where the image of RFLAGS must have RF
};
#define RF_SET BIT(32)
enum { KNOWN_QEMU = 1, KNOWN_BOCHS = 2, KNOWN_BARE = 4, CRASHES_QEMU = 8 };

// Code, and the events that it must bring, in the order in which their handlers get to the log.
struct scene {
    void (*code)(void);
    const char *text;
    u64 known; // KNOWN_*: whose CPU does it wrong
    struct happening expected[4];
};
extern const struct scene cases_start[], cases_end[];

static volatile u32 logged, wanted;
static struct happening entries[LOG_MAX];

// Ends stepping behind what is wanted. DR0 is for data, DR1 and DR2 are for code: RF lets that go
// on.
static void handler(struct trap *trap)
{
    u64 dr6 = read_dr6();
    u32 n = logged++;

    if (n < LOG_MAX)
        entries[n] = (struct happening){trap->vector, trap->rip, 0};
    if (n < LOG_MAX && trap->vector == VECTOR_DB)
        entries[n].dr6 = (dr6 ^ DR6_FIXED) | (trap->rflags & RFLAGS_RF ? RF_SET : 0);
    if (trap->vector == VECTOR_DB) {
        write_dr6(DR6_FIXED);
        if (dr6 & (DR6_B(1) | DR6_B(2)))
            trap->rflags |= RFLAGS_RF;
    }
    if (logged >= wanted)
        trap->rflags &= ~RFLAGS_TF;
    if (logged >= LOG_MAX)
        write_dr7(DR7_FIXED);
    if (trap->vector == VECTOR_SELF)
        apic_eoi();
    if (trap->vector == VECTOR_UD)
        trap->rip++; // INT1 on a CPU that has none
}

static void on_timer(struct trap *trap)
{
    (void)trap;
    apic_eoi();
}

static u64 watched[2] = {DATA};

// Calls code(): RSI = watched memory, which holds a stack segment, RDI = the APIC, EBP = DATA.
void run_scene(void (*code)(void), u64 apic, void *memory);
__asm__(".globl run_scene\n"
        "run_scene:\n"
        "push %rbx; push %rbp; push %r12\n"
        "mov %rdi, %r8; mov %rsi, %rdi; mov %rdx, %rsi; mov $0x10, %ebp\n"
        "call *%r8\n"
        "pop %r12; pop %rbp; pop %rbx\n"
        "ret\n");

#define SCENE(text, known, code, expected)                                          \
    __asm__(".pushsection .text; 9: " code "; ret; .popsection\n"                   \
            ".pushsection .rodata; 8: .asciz \"" text "\"; .popsection\n"           \
            ".pushsection cases, \"a\"; 7: .quad 9b, 8b, " known "; " expected "\n" \
            ".org 7b + 120; .popsection");
#define EVENT(vector, rip, dr6) ".quad " #vector ", " #rip ", " #dr6 ";"
#define STEP(rip)               EVENT(1, rip, 0x4000)
#define NONE                    ""
#define OK                      "0"
#define QEMU                    "1"
#define BOCHS                   "2"
#define BOTH                    "3"
#define BARE                    "4" // both without Nestor
#define QEMU_AND_BARE           "5"
#define CRASHES                 "8" // QEMU without Nestor triple-faults

#define TF          "pushfq; orl $0x100, (%rsp); popfq; "
#define WATCH       "mov %rsi, %dr0; mov $0xf0402, %eax; mov %rax, %dr7; " // reads and writes
#define WATCH_WRITE "mov %rsi, %dr0; mov $0xd0402, %eax; mov %rax, %dr7; "
#define BREAK       "lea 1f(%rip), %rax; mov %rax, %dr1; mov $0x408, %eax; mov %rax, %dr7; "
#define BREAK_TWO                                                                  \
    "lea 1f(%rip), %rax; mov %rax, %dr1; lea 2f(%rip), %rax; mov %rax, %dr2; mov " \
    "$0x428, %eax; mov %rax, %dr7; xor %eax, %eax; "
#define DETECT  "mov $0x2400, %eax; mov %rax, %dr7; "
#define LOAD_SS "mov (%rsi), %ss; "
#define SELF    "movl $0x44040, 0x300(%rdi); " // a fixed interrupt to itself
#define TIMER   "movl $0x20042, 0x320(%rdi); movl $1000000, 0x380(%rdi); " // ticks
#define SYSCALL(mask)                                                                             \
    "lea 1f(%rip), %rax; xor %edx, %edx; mov $0xc0000082, %ecx; wrmsr; mov $" mask                \
    ", %eax; mov $0xc0000084, %ecx; wrmsr; xor %eax, %eax; mov $8, %edx; mov $0xc0000081, %ecx; " \
    "wrmsr; mov $0xc0000080, %ecx; rdmsr; or $1, %eax; wrmsr; "
#define NMI "movl $0x4400, 0x300(%rdi); " // to APIC ID 0

// clang-format off
// QEMU 7.2 has no INT1
SCENE("INT1", QEMU, ".byte 0xf1; 1: nop", EVENT(1, 1b, 0))
SCENE("INT1 with prefixes", QEMU, ".byte 0x2e, 0x66, 0xf1; 1: nop", EVENT(1, 1b, 0))
SCENE("INT3", OK, "int3; 1: nop", EVENT(3, 1b, 0))
SCENE("INTO", OK, "lcall *6f(%rip); jmp 5f; .code32; 2: mov $0x7fffffff, %eax; inc %eax; into; 1: lret; .code64; "
      "6: .long 2b; .word 0x18; 5: nop", EVENT(4, 1b, 0))
SCENE("INTO without OF", OK, "lcall *6f(%rip); jmp 5f; .code32; 2: xor %eax, %eax; into; 1: lret; .code64; "
      "6: .long 2b; .word 0x18; 5: nop", NONE)
SCENE("INT3 with prefixes", OK, ".byte 0x2e, 0x66, 0xcc; 1: nop", EVENT(3, 1b, 0))
SCENE("INT1 with TF", QEMU, TF ".byte 0xf1; 1: nop; 2: nop", EVENT(1, 1b, 0) STEP(2b))
SCENE("INT3 with TF", OK, TF "int3; 1: nop; 2: nop", EVENT(3, 1b, 0) STEP(2b))
SCENE("INT n with TF", OK, TF "int $0x41; 1: nop; 2: nop", EVENT(0x41, 1b, 0) STEP(2b))
SCENE("IRET that sets TF", OK, "mov %rsp, %rax; pushq $0x10; push %rax; pushfq; orl $0x100, (%rsp); pushq $8; "
      "lea 1f(%rip), %rax; push %rax; iretq; 1: nop; 2: nop", STEP(2b))
// QEMU 7.2: no trap after STI
SCENE("STI with TF", QEMU, "cli; " TF "sti; 1: nop; 2: nop; 3: cli", STEP(1b) STEP(2b) STEP(3b))
SCENE("STI, CPUID with TF", QEMU, "cli; xor %eax, %eax; " TF "sti; 1: cpuid; 2: nop; 3: cli", STEP(1b) STEP(2b) STEP(3b))
// A debug exception ends HLT. The emulators forget that: the timer wakes them, and the trap comes
// next.
SCENE("HLT with TF", BARE, TIMER "sti; " TF "nop; 1: hlt; 2: nop; cli; movl $0, 0x380(%rdi)", STEP(1b) STEP(2b))
// SYSCALL, to CODE64: the trap comes at its target, unless SFMASK clears TF
SCENE("SYSCALL with TF", OK, SYSCALL("0") TF "nop; 3: syscall; nop; 1: nop; 2: nop", STEP(3b) STEP(1b) STEP(2b))
SCENE("SYSCALL with TF in SFMASK", OK, SYSCALL("0x100") TF "nop; 3: syscall; nop; 1: nop; 2: nop", STEP(3b))
SCENE("MOV SS, INT1 with TF", QEMU, TF "mov %ebp, %ss; .byte 0xf1; 1: nop; 2: nop", EVENT(1, 1b, 0) STEP(2b))
SCENE("MOV SS, INT3 with TF", OK, TF "mov %ebp, %ss; int3; 1: nop; 2: nop", EVENT(3, 1b, 0) STEP(2b))

SCENE("data read", OK, WATCH "mov (%rsi), %eax; 1: nop", EVENT(1, 1b, 1))
SCENE("data written, not read", OK, WATCH_WRITE "mov (%rsi), %eax; mov %rax, (%rsi); 1: nop", EVENT(1, 1b, 1))
SCENE("data with TF", CRASHES, WATCH TF "mov (%rsi), %eax; 1: nop", EVENT(1, 1b, 0x4001))
SCENE("data with TF, then CPUID", CRASHES, WATCH "xor %eax, %eax; " TF "cmp %eax, (%rsi); 1: cpuid; 2: nop", EVENT(1, 1b, 0x4001) STEP(2b))
// QEMU 7.2: RIP stays at the instruction
SCENE("data in REP LODSB", QEMU, WATCH "mov $2, %ecx; lea -1(%rsi), %rsi; 1: rep lodsb; 2: nop", EVENT(1, 2b, 1))
// The breakpoint of MOV SS itself waits for the next instruction's end. QEMU 7.2: it does not.
SCENE("MOV SS from data, NOP", QEMU, WATCH LOAD_SS "nop; 1: nop", EVENT(1, 1b, 1))
SCENE("MOV SS from data, CPUID", QEMU, WATCH "xor %eax, %eax; " LOAD_SS "cpuid; 1: nop", EVENT(1, 1b, 1))
SCENE("MOV SS from data, IN", QEMU, WATCH LOAD_SS "in $0x21, %al; 1: nop", EVENT(1, 1b, 1))
SCENE("MOV SS from data, MMIO", QEMU, WATCH LOAD_SS "mov 0x20(%rdi), %eax; 1: nop", EVENT(1, 1b, 1))
SCENE("MOV SS from data, MOV CR8", QEMU, WATCH "xor %eax, %eax; " LOAD_SS "mov %rax, %cr8; 1: nop", EVENT(1, 1b, 1))
SCENE("MOV SS from data, CPUID with TF", QEMU, WATCH "xor %eax, %eax; " TF LOAD_SS "cpuid; 1: nop; 2: nop", EVENT(1, 1b, 0x4001) STEP(2b))
SCENE("MOV SS from data, interrupt to itself", QEMU, WATCH "sti; nop; " LOAD_SS SELF "1: cli; 2: nop",
      EVENT(1, 1b, 1) EVENT(0x40, 1b, 0))
// Bochs drops the breakpoint, QEMU does not wait with it
SCENE("MOV SS from data, INT3", BOTH, WATCH LOAD_SS "int3; 1: nop", EVENT(1, trap_stubs + 48, 1) EVENT(3, 1b, 0))
SCENE("MOV SS from data, INT 65", BOTH, WATCH LOAD_SS "int $0x41; 1: nop", EVENT(1, trap_stubs + 0x410, 1) EVENT(0x41, 1b, 0))

SCENE("breakpoint", OK, BREAK "1: nop; 2: nop", EVENT(1, 1b, 2))
SCENE("breakpoints on CPUID and behind it", OK, BREAK_TWO "1: cpuid; 2: nop", EVENT(1, 1b, 2) EVENT(1, 2b, 4))
SCENE("breakpoints on IN and behind it", OK, BREAK_TWO "1: in $0x21, %al; 2: nop", EVENT(1, 1b, 2) EVENT(1, 2b, 4))
SCENE("breakpoints on HLT and behind it", OK, BREAK_TWO SELF "1: cpuid; 2: sti; hlt; 3: cli", EVENT(1, 1b, 2) EVENT(1, 2b, 4) EVENT(0x40, 3b, 0))
SCENE("breakpoint after MOV SS", QEMU, BREAK "mov %ebp, %ss; 1: nop; 2: nop", NONE)
SCENE("general detect, write", QEMU_AND_BARE, "xor %ecx, %ecx; " DETECT "1: mov %rcx, %dr3; 2: nop", EVENT(1, 1b, 0x100002000))
SCENE("general detect, read", QEMU_AND_BARE, DETECT "1: mov %dr6, %rcx; 2: nop", EVENT(1, 1b, 0x100002000))
// Bochs forgets RF and, with TF, adds BS. The trap of MOV SS is suppressed.
SCENE("general detect with TF", QEMU_AND_BARE, DETECT TF "1: mov %dr3, %rcx; 2: nop", EVENT(1, 1b, 0x100002000) STEP(2b))
SCENE("general detect after MOV SS with TF", QEMU_AND_BARE, DETECT TF "mov %ebp, %ss; 1: mov %dr3, %rcx; 2: nop", EVENT(1, 1b, 0x100002000) STEP(2b))

// Traps on the previous instruction come before NMIs and interrupts.
SCENE("step, interrupt", OK, "sti; nop; " TF SELF "1: nop; 2: cli", STEP(1b) EVENT(0x40, 1b, 0))
SCENE("step, NMI", OK, TF NMI "1: nop; 2: nop", EVENT(2, trap_stubs + 16, 0) STEP(1b))
// clang-format on

static bool as_expected(const struct scene *s)
{
    for (u32 i = 0; i < wanted; i++) {
        const struct happening *e = &s->expected[i];

        if (entries[i].vector != e->vector || entries[i].rip != e->rip || entries[i].dr6 != e->dr6)
            return false;
    }
    return logged == wanted;
}

static void test_scenes(void)
{
    enum machine machine = cpu_machine();
    u64 known = machine == MACHINE_QEMU ? KNOWN_QEMU : machine == MACHINE_BOCHS ? KNOWN_BOCHS : 0;

    known |= bare_machine() != MACHINE_OTHER ? KNOWN_BARE : 0;
    for (const struct scene *s = cases_start; s < cases_end; s++) {
        if ((s->known & CRASHES_QEMU) && bare_machine() == MACHINE_QEMU) {
            report_skip("%s", s->text);
            continue;
        }
        logged = wanted = 0;
        while (wanted < ARRAY_SIZE(s->expected) && s->expected[wanted].vector)
            wanted++;
        watched[0] = DATA;
        write_dr6(DR6_FIXED);
        run_scene(s->code, APIC_BASE, watched);
        write_dr7(DR7_FIXED);
        cli();
        report_cpu(s->known & known ? machine : MACHINE_NONE, as_expected(s), "%s: %u events",
                   s->text, logged);
        for (u32 i = 0; i < logged && i < LOG_MAX && !as_expected(s); i++)
            print("  vector %llu at %#llx (wanted %llu, %#llx), DR6 %#llx\n",
                  (unsigned long long)entries[i].vector, (unsigned long long)entries[i].rip,
                  (unsigned long long)(i < wanted ? s->expected[i].vector : 0),
                  (unsigned long long)(i < wanted ? s->expected[i].rip : 0),
                  (unsigned long long)entries[i].dr6);
    }
}

// --- the registers themselves ---

#define DR_CASE(name, code)                                    \
    static void name(void *arg)                                \
    {                                                          \
        __asm__ volatile(code : : "D"(arg) : "rax", "memory"); \
    }
DR_CASE(to_dr0, "mov %%rdi, %%dr0")
DR_CASE(to_dr4, "mov %%rdi, %%dr4")
DR_CASE(to_dr6, "mov %%rdi, %%dr6")
DR_CASE(to_dr7, "mov %%rdi, %%dr7")
DR_CASE(from_dr5, "mov %%dr5, %%rax; mov %%rax, (%%rdi)")
DR_CASE(from_dr7, "mov %%dr7, %%rax")

static void test_registers(void)
{
    void *high = (void *)BIT(32);
    u64 value = 0;

    report(read_dr6() == DR6_FIXED && read_dr7() == DR7_FIXED, "DR6 and DR7 at rest");
    write_dr6(0xffffffff);
    // QEMU keeps bit 12
    report_cpu(MACHINE_QEMU, read_dr6() == (DR6_FIXED | 0xe00f), "DR6, all written: %#llx",
               (unsigned long long)read_dr6());
    write_dr6(0);
    report(read_dr6() == DR6_FIXED, "DR6, nothing written");
    write_dr7(0xffffd3ff & ~(u64)DR7_GD & ~0xffull);
    // QEMU keeps reserved bits
    report_cpu(MACHINE_QEMU, read_dr7() == 0xffff0700, "DR7, reserved bits written: %#llx",
               (unsigned long long)read_dr7());
    write_dr7(0);
    report(read_dr7() == DR7_FIXED, "DR7, nothing written");
    report(try(to_dr0, (void *)0x8000000000001234) == NO_TRAP && read_dr0() == 0x8000000000001234,
           "DR0 takes what is no canonical address");
    report(try(to_dr6, high) == VECTOR_GP && last_trap.error == 0, "MOV to DR6, bit 32: #GP");
    report(try(to_dr7, high) == VECTOR_GP && last_trap.error == 0, "MOV to DR7, bit 32: #GP");
    report(try(to_dr4, (void *)(DR6_FIXED | 5)) == NO_TRAP && read_dr6() == (DR6_FIXED | 5),
           "DR4 is DR6 without CR4.DE");
    report(try(from_dr5, &value) == NO_TRAP && value == DR7_FIXED, "DR5 is DR7 without CR4.DE");
    write_cr4(read_cr4() | CR4_DE);
    report(try(to_dr4, (void *)DR6_FIXED) == VECTOR_UD, "DR4 with CR4.DE: #UD");
    report(try(from_dr5, &value) == VECTOR_UD, "DR5 with CR4.DE: #UD");
    write_cr4(read_cr4() & ~(u64)CR4_DE);
    report(try_user(from_dr7, NULL) == VECTOR_GP, "MOV from DR7 at CPL 3: #GP");
    write_dr6(DR6_FIXED);
    write_dr0(0);
}

// --- DEBUGCTL: LBR and BTF can always be written; what reads back works ---

static void read_msr(void *value)
{
    *(u64 *)value = msr_read(MSR_DEBUGCTL);
}

static void write_msr(void *value)
{
    msr_write(MSR_DEBUGCTL, *(u64 *)value);
}

static void read_last_branch(void *unused)
{
    (void)unused;
    (void)msr_read(0x1db); // AMD's LastBranchFromIP; Intel's models have others beside it
}

static void test_debugctl(void)
{
    u64 value = ~0ull, lbr = DEBUGCTL_LBR, btf = DEBUGCTL_BTF, reserved = BIT(63), zero = 0;

    if (bare_machine() != MACHINE_OTHER) { // QEMU ignores the MSR, Bochs has none
        report_skip("DEBUGCTL");
        return;
    }
    report(try(read_msr, &value) == NO_TRAP && value == 0, "DEBUGCTL reads 0");
    report(try(write_msr, &lbr) == NO_TRAP && try(read_msr, &value) == NO_TRAP &&
               (value == 0 || (value == DEBUGCTL_LBR && try(read_last_branch, NULL) == NO_TRAP)),
           "DEBUGCTL takes LBR, and keeps it only where there are records: %#llx",
           (unsigned long long)value);
    report(try(write_msr, &btf) == NO_TRAP && try(read_msr, &value) == NO_TRAP &&
               !(value & ~(u64)DEBUGCTL_BTF),
           "DEBUGCTL takes BTF: %#llx", (unsigned long long)value);
    report(try(write_msr, &reserved) == VECTOR_GP, "DEBUGCTL, bit 63: #GP");
    report(try(write_msr, &zero) == NO_TRAP, "DEBUGCTL takes 0");
}

// --- a hypercall is stepped over as any other instruction ---

extern char stepped_vmcall[], stepped_vmmcall[];
__asm__("stepped_vmcall: pushfq; orl $0x100, (%rsp); popfq; vmcall; nop; ret\n"
        "stepped_vmmcall: pushfq; orl $0x100, (%rsp); popfq; vmmcall; nop; ret");

static void test_hypercall(void)
{
    bool amd = cpuid(0, 0).ecx == 0x444d4163; // "cAMD"
    char *code = amd ? stepped_vmmcall : stepped_vmcall;

    if (bare_machine() != MACHINE_OTHER) {
        report_skip("hypercall with TF");
        return;
    }
    logged = 0;
    wanted = 2;
    __asm__ volatile("call *%0" : : "r"(code) : "rax", "memory", "cc");
    report(logged == 2 && entries[0].vector == VECTOR_DB && entries[0].rip == (u64)code + 12 &&
               entries[1].rip == (u64)code + 13,
           "hypercall with TF: %u events, %lld", logged, (long long)(entries[0].rip - (u64)code));
}

void guest_main(void)
{
    static const u8 vectors[] = {VECTOR_DB,   VECTOR_NMI,  VECTOR_BP, VECTOR_OF,
                                 VECTOR_SELF, VECTOR_SOFT, VECTOR_UD};

    for (unsigned i = 0; i < ARRAY_SIZE(vectors); i++)
        trap_handlers[vectors[i]] = handler;
    pic_mask_all();
    trap_handlers[VECTOR_TIMER] = on_timer;
    apic_enable();
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    test_scenes();
    test_hypercall();
    trap_handlers[VECTOR_UD] = NULL;
    test_registers();
    test_debugctl();
}
