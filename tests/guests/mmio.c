// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Memory-mapped I/O: each instruction below runs twice through the same window, once with RAM
// behind it, where the CPU itself does all, and once with the test device's memory behind MMIO.
// Registers, flags and memory must be the same after both. Then the local APIC's registers, and
// faults in the middle of emulated instructions.

#include "guest.h"

enum {
    WINDOW = 0x40000000,
    RAM_BEHIND = 0x1800000,
    DEVICE_BEHIND = 0xff000000, // the test device's 64 KiB
    TABLE_ENTRY = WINDOW / SIZE_2M,
    COMPARED = 128,
    FLAGS = RFLAGS_CF | RFLAGS_PF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF,
};

// Registers in the order in which run_case() loads and stores them.
struct state {
    u64 rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r12, r13, rflags;
};

struct test_case {
    void *code;
    const char *text;
    u64 flags; // defined ones after it
};
extern const struct test_case cases_start[], cases_end[];
extern struct state case_state;
void run_case(void *code);

__asm__(
    ".globl window\n"
    ".set window, 0x40000000\n"
    ".globl run_case\n"
    "run_case:\n"
    "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rdi, %r14\n"
    "mov case_state+8(%rip), %rbx; mov case_state+16(%rip), %rcx; mov case_state+24(%rip), %rdx\n"
    "mov case_state+32(%rip), %rsi; mov case_state+40(%rip), %rdi; mov case_state+48(%rip), %rbp\n"
    "mov case_state+56(%rip), %r8; mov case_state+64(%rip), %r9; mov case_state+72(%rip), %r12\n"
    "mov case_state+80(%rip), %r13; mov case_state(%rip), %rax\n"
    "push case_state+88(%rip); popfq\n"
    "call *%r14\n"
    "pushfq; pop case_state+88(%rip); cld\n"
    "mov %rax, case_state(%rip); mov %rbx, case_state+8(%rip); mov %rcx, case_state+16(%rip)\n"
    "mov %rdx, case_state+24(%rip); mov %rsi, case_state+32(%rip); mov %rdi, case_state+40(%rip)\n"
    "mov %rbp, case_state+48(%rip); mov %r8, case_state+56(%rip); mov %r9, case_state+64(%rip)\n"
    "mov %r12, case_state+72(%rip); mov %r13, case_state+80(%rip)\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "ret\n");

struct state case_state;

#define CASE_FLAGS(text, flags)                                           \
    __asm__(".pushsection .text; 1: " text "; ret; .popsection\n"         \
            ".pushsection .rodata; 2: .asciz \"" text "\"; .popsection\n" \
            ".pushsection cases, \"a\"; .quad 1b, 2b, " flags "; .popsection");
#define CASE(text)    CASE_FLAGS(text, "0x8c5")
#define CASE_CF(text) CASE_FLAGS(text, "0x41") // the others are undefined

#define CASE_ZF(text) CASE_FLAGS(text, "0x40")
// Above the flags: what the CPU needs for it, as in XCR0.
#define CASE_AVX(text)    CASE_FLAGS(text, "0x4000008c5")
#define CASE_AVX512(text) CASE_FLAGS(text, "0xe4000008c5")

// clang-format off
// Widths and directions. R8, RSI, RDI, RBP, R12, R13 and FS's base point into the window, RCX is 3.
CASE("mov %al, (%r8)") CASE("mov %ax, (%r8)") CASE("mov %eax, (%r8)") CASE("mov %rax, (%r8)")
CASE("mov (%r8), %bl") CASE("mov (%r8), %bx") CASE("mov (%r8), %ebx") CASE("mov (%r8), %rbx")
CASE("mov %ah, 1(%rsi)") CASE("mov 3(%rsi), %bh") CASE("mov %sil, 1(%r8)") CASE("mov 1(%r8), %r9b")
CASE("mov %r9, 8(%r8)") CASE("mov %r9w, 8(%r8)") CASE("mov 8(%r8), %r9d")
CASE("movb $0x81, 2(%r8)") CASE("movw $0x8182, 2(%r8)") CASE("movl $0x81828384, 4(%r8)")
CASE("movq $-0x7e7d7c7c, 8(%r8)")
// Addressing forms.
CASE("mov -16(%r8), %eax") CASE("mov 0x180(%r8), %eax") CASE("mov %eax, (%r8, %rcx, 4)")
CASE("mov 4(%r8, %rcx, 8), %rax") CASE("mov (%r8, %rcx), %al") CASE("mov (%r8, %rcx, 2), %ax")
CASE("mov (%r12), %eax") CASE("mov (%r13), %eax") CASE("mov (%rbp), %eax") CASE("mov 4(%rbp, %rcx, 4), %eax")
CASE("mov (%r12, %rcx, 8), %eax") CASE("mov 4(%r13, %rcx, 4), %eax")
CASE("mov window+0x44(%rip), %eax") CASE("mov %eax, window+0x44(%rip)") CASE("movl $0x1234567, window+0x48(%rip)")
CASE("mov window+0x48, %eax") CASE("mov window+0x40(, %rcx, 8), %eax")
CASE("mov %fs:0x50, %eax") CASE("mov %eax, %fs:0x40(, %rcx, 4)") CASE("movl $7, %fs:0x44")
CASE("mov (%r8d), %eax") CASE("mov 4(%esi, %ecx, 4), %eax") CASE("mov %eax, 4(%r8d)") CASE("mov %fs:0x40(%ecx), %eax")
CASE("movabs 0x40000041, %al") CASE("movabs 0x40000042, %ax") CASE("movabs 0x40000044, %eax")
CASE("movabs 0x40000048, %rax") CASE("movabs %al, 0x40000041") CASE("movabs %rax, 0x40000048")
CASE("addr32 mov 0x40000044, %eax") CASE("movabs %eax, %fs:0x44")
CASE("mov 1(%r8), %eax") CASE("mov %rax, 3(%r8)") CASE("mov %ax, 7(%r8)") // not aligned
// over a page's end
CASE("mov 0xfbe(%r8), %eax") CASE("mov %rax, 0xfbd(%r8)") CASE("addl $0x1000, 0xfbe(%r8)")
// Extension.
CASE("movzbw (%r8), %ax") CASE("movzbl (%r8), %eax") CASE("movzbq (%r8), %rax") CASE("movzwl 2(%r8), %eax")
CASE("movzwq 2(%r8), %rax") CASE("movsbw 1(%r8), %ax") CASE("movsbl 1(%r8), %eax") CASE("movsbq 1(%r8), %rax")
CASE("movswl 2(%r8), %eax") CASE("movswq 2(%r8), %rax") CASE("movslq 4(%r8), %rax")

// Arithmetic and logic, memory to register, register and immediate to memory.
CASE("add (%r8), %al") CASE("add (%r8), %ax") CASE("add (%r8), %eax") CASE("add (%r8), %rax")
CASE("sub (%r8), %eax") CASE("adc (%r8), %rax") CASE("sbb (%r8), %ax") CASE("cmp (%r8), %eax") CASE("cmp (%r8), %al")
CASE("and (%r8), %eax") CASE("or (%r8), %eax") CASE("xor (%r8), %eax") CASE("test %eax, (%r8)") CASE("test %al, (%r8)")
CASE("add %al, (%r8)") CASE("add %ax, (%r8)") CASE("add %eax, (%r8)") CASE("add %rax, (%r8)")
CASE("sub %eax, (%r8)") CASE("adc %eax, (%r8)") CASE("sbb %rax, (%r8)") CASE("cmp %eax, (%r8)") CASE("cmp %rax, (%r8)")
CASE("and %eax, (%r8)") CASE("or %ax, (%r8)") CASE("xor %rax, (%r8)")
CASE("addl $5, (%r8)") CASE("addq $-5, (%r8)") CASE("subb $0x80, (%r8)") CASE("andl $0xffff00, (%r8)")
CASE("orl $0x80000000, (%r8)") CASE("xorw $0x7fff, (%r8)") CASE("cmpl $0x44434241, (%r8)") CASE("cmpb $0, (%r8)")
CASE("cmpq $-1, (%r8)") CASE("testl $0x8000, (%r8)") CASE("testb $1, (%r8)") CASE("adcl $0, (%r8)") CASE("sbbw $1, (%r8)")
CASE("incb (%r8)") CASE("incw (%r8)") CASE("incl (%r8)") CASE("incq (%r8)") CASE("decl (%r8)") CASE("negl (%r8)")
CASE("negb (%r8)") CASE("notl (%r8)") CASE("notq (%r8)")
CASE("lock addl $1, (%r8)") CASE("lock orl $0x10, (%r8)") CASE("lock andl $-2, (%r8)") CASE("lock decq (%r8)")
CASE("lock xor %eax, (%r8)")
// Exchanges.
CASE("xchg %al, (%r8)") CASE("xchg %ax, (%r8)") CASE("xchg %eax, (%r8)") CASE("xchg %rax, (%r8)")
CASE("xadd %al, (%r8)") CASE("xadd %eax, (%r8)") CASE("lock xadd %rax, (%r8)")
CASE("cmpxchg %ebx, (%r8)") CASE("mov (%r8), %eax; lock cmpxchg %ebx, (%r8)") CASE("mov (%r8), %al; cmpxchg %bl, (%r8)")
CASE("mov (%r8), %rax; lock cmpxchg %rbx, (%r8)")
// Bits.
CASE_CF("bt %ecx, (%r8)") CASE_CF("btl $9, (%r8)") CASE_CF("btsl $9, (%r8)") CASE_CF("btrl $6, (%r8)") CASE_CF("btcl $31, (%r8)")
CASE_CF("bts %ecx, (%r8)") CASE_CF("lock btsl $2, (%r8)") CASE_CF("lock btrq $40, (%r8)") CASE_CF("btcw $15, (%r8)")
CASE_CF("mov $70, %ecx; bt %rcx, (%r8)") CASE_CF("mov $-5, %rcx; bts %rcx, (%r8)") CASE_CF("mov $100, %ecx; btc %ecx, (%r8)")
// The stack.
CASE("push (%r8); pop %rax") CASE("push %rax; pop 8(%r8)") CASE("pushw (%r8); popw %ax")
// Strings.
CASE("lea 0x20(%r8), %rdi; movsb") CASE("lea 0x20(%r8), %rdi; movsw") CASE("lea 0x20(%r8), %rdi; movsl")
CASE("lea 0x20(%r8), %rdi; movsq") CASE("lea 0x20(%r8), %rdi; rep movsb") CASE("lea 0x20(%r8), %rdi; rep movsl")
CASE("lea scratch(%rip), %rdi; rep movsl") CASE("lea scratch(%rip), %rsi; rep movsq") CASE("std; lea 0x20(%r8), %rdi; rep movsb; cld")
CASE("lea 0x40, %rsi; rep movsb %fs:(%rsi), %es:(%rdi)") CASE("xor %ecx, %ecx; rep movsb") CASE("addr32 rep movsb")
CASE("stosb") CASE("stosw") CASE("stosl") CASE("stosq") CASE("rep stosb") CASE("rep stosl") CASE("rep stosq")
CASE("std; rep stosw; cld") CASE("xor %ecx, %ecx; rep stosb")
CASE("lodsb") CASE("lodsw") CASE("lodsl") CASE("lodsq") CASE("rep lodsb")
// Rarer ones.
CASE_ZF("bsf (%r8), %eax") CASE_ZF("bsr (%r8), %rax") CASE_ZF("bsf (%r8), %ax") CASE("mov %r8, %rbx; xlat")
CASE("mov %rsp, %r9; lea 0x80(%r8), %rsp; mov %rsp, %rbp; enter $8, $3; leave; mov %r9, %rsp; xor %r9d, %r9d") CASE("lock cmpxchg8b (%r8)") CASE("cmpxchg8b 8(%r8)")
CASE("mov (%r8), %rax; mov 8(%r8), %rdx; lock cmpxchg16b (%r8)") CASE("cmpxchg16b 16(%r8)")
CASE("movnti %rax, (%r8)") CASE("smsw (%r8)") CASE("sidt (%r8)") CASE("sgdt 2(%r8)") CASE("str (%r8)")
CASE("sldt (%r8)") CASE("sgdt (%r8); lgdt (%r8)") CASE("sidt 6(%r8); lidt 6(%r8)")
CASE("smsw %ax; mov %ax, (%r8); lmsw (%r8)") CASE("mov %ss, (%r8)") CASE("movw $0x10, (%r8); mov (%r8), %es")
CASE_FLAGS("movw $0x10, (%r8); lar (%r8), %eax; setz %bl; and $0xf0ff00, %eax", "0") CASE_ZF("movw $0x10, (%r8); lsl (%r8), %rax")
CASE_ZF("movw $0x8, (%r8); verr (%r8)") CASE_ZF("movw $0x8, (%r8); verw (%r8)") CASE_ZF("movw $0xfff0, (%r8); lar (%r8), %eax")
// Vector registers, as memory shows them.
#define SHOW0 "; movups %xmm0, scratch(%rip)"
#define LOADED(insn) CASE("movups scratch+16(%rip), %xmm0; " insn ", %xmm0" SHOW0)
#define STORED(insn) CASE("movups scratch+9(%rip), %xmm0; " insn)
LOADED("movups 1(%r8)") LOADED("movupd 2(%r8)") LOADED("movaps (%r8)") LOADED("movapd 16(%r8)") LOADED("movdqa (%r8)")
LOADED("movdqu 3(%r8)") LOADED("movss (%r8)") LOADED("movsd (%r8)") LOADED("movlps (%r8)") LOADED("movhps 8(%r8)")
LOADED("movlpd (%r8)") LOADED("movhpd 8(%r8)") LOADED("movd (%r8)") LOADED("movq (%r8)") LOADED("rex.w movd (%r8)")
LOADED("movups 0xfb8(%r8)")
STORED("movups %xmm0, 1(%r8)") STORED("movupd %xmm0, 2(%r8)") STORED("movaps %xmm0, (%r8)") STORED("movdqa %xmm0, 16(%r8)")
STORED("movdqu %xmm0, 3(%r8)") STORED("movss %xmm0, (%r8)") STORED("movsd %xmm0, (%r8)") STORED("movlps %xmm0, (%r8)")
STORED("movhps %xmm0, (%r8)") STORED("movlpd %xmm0, (%r8)") STORED("movhpd %xmm0, (%r8)") STORED("movd %xmm0, (%r8)")
STORED("movq %xmm0, (%r8)") STORED("movntps %xmm0, (%r8)") STORED("movntpd %xmm0, (%r8)") STORED("movntdq %xmm0, (%r8)")
STORED("movups %xmm0, 0xfb8(%r8)")
CASE("movups 1(%r8), %xmm11; movdqu %xmm11, 17(%r8)")
CASE("movq (%r8), %mm3; movq %mm3, scratch(%rip); emms") CASE("movq scratch(%rip), %mm2; movq %mm2, 8(%r8); emms")
CASE("movd (%r8), %mm1; movntq %mm1, 8(%r8); movd %mm1, (%r8); emms")
CASE("fnstcw (%r8); fldcw (%r8)") CASE("fnstsw (%r8)") CASE("fildl (%r8); fistpll 8(%r8)") CASE("flds (%r8); fstpl 8(%r8)")
CASE("fldpi; fstpt (%r8); fldt (%r8); fstps scratch(%rip)") CASE("fld1; faddl 8(%r8); fiadds (%r8); fstpl scratch(%rip)")
CASE("fildq (%r8); fbstp 16(%r8); fbld 16(%r8); fistps (%r8)")
CASE_AVX("vmovups (%r8), %ymm1; vmovups %ymm1, scratch(%rip)") CASE_AVX("vmovdqu scratch(%rip), %ymm9; vmovdqu %ymm9, 1(%r8)")
CASE_AVX("vmovups scratch(%rip), %ymm1; vmovups 1(%r8), %xmm1; vmovups %ymm1, scratch(%rip)")
CASE_AVX("vmovups scratch(%rip), %ymm1; movups 1(%r8), %xmm1; vmovups %ymm1, scratch(%rip)")
CASE_AVX("vmovups scratch(%rip), %ymm1; vmovlps (%r8), %xmm1, %xmm2; vmovups %ymm2, scratch(%rip)")
CASE_AVX("vmovups scratch(%rip), %ymm1; vmovhpd (%r8), %xmm1, %xmm12; vmovups %ymm12, scratch(%rip)")
CASE_AVX("vmovd (%r8), %xmm1; vmovq 8(%r8), %xmm2; vmovss %xmm1, 16(%r8); vmovsd %xmm2, 24(%r8)")
CASE_AVX("vmovaps (%r8), %xmm3; vmovntdq %xmm3, 16(%r8)") CASE_AVX("vlddqu 5(%r8), %ymm4; vmovdqu %ymm4, scratch(%rip)")
CASE_AVX512("vmovups scratch(%rip), %zmm20; vmovdqu64 %zmm20, (%r8)") CASE_AVX512("vmovdqu32 64(%r8), %ymm17; vmovups %zmm17, scratch(%rip)")
    // clang-format on

    u8 scratch[64] __attribute__((aligned(16)));

static void map_window(u64 behind)
{
    directories[TABLE_ENTRY] = behind | 0x87;
    __asm__ volatile("invlpg %0" : : "m"(*(char *)WINDOW));
}

// The same bytes behind both; what the window holds afterwards goes to `after`.
static void run_one(const struct test_case *c, u64 behind, u64 flags, struct state *out, u8 *after)
{
    volatile u32 *words = (void *)WINDOW;
    u32 value = 0x84434241;

    map_window(behind);
    for (unsigned i = 0; i < 128; i++, value = value * 5 + 0x1030507)
        words[i] = value;
    words[0xffc / 4] = 0x99aabbcc;
    words[0x1000 / 4] = 0x11223344;
    for (unsigned i = 0; i < sizeof(scratch); i++)
        scratch[i] = (u8)(i * 11 + 1);
    case_state = (struct state){0x8877665544332211,
                                0xa1a2a3a4a5a6a7a8,
                                3,
                                0x1234,
                                WINDOW + 0x40,
                                WINDOW + 0x40,
                                WINDOW + 0x40,
                                WINDOW + 0x40,
                                0x1111222233334444,
                                WINDOW + 0x40,
                                WINDOW + 0x40,
                                flags | RFLAGS_FIXED};
    run_case(c->code);
    *out = case_state;
    for (unsigned i = 0; i < COMPARED; i += 4)
        memcpy(after + i, (const void *)&words[i / 4], 4);
    memcpy(after + COMPARED, (const void *)&words[0xffc / 4], 4);
    memcpy(after + COMPARED + 4, (const void *)&words[0x1000 / 4], 4);
    memcpy(after + COMPARED + 8, scratch, sizeof(scratch));
}

static bool same(const struct test_case *c, u64 flags)
{
    static u8 memory[2][COMPARED + 8 + sizeof(scratch)];
    struct state s[2];

    run_one(c, RAM_BEHIND, flags, &s[0], memory[0]);
    run_one(c, DEVICE_BEHIND, flags, &s[1], memory[1]);
    if (memcmp(&s[0], &s[1], offsetof(struct state, rflags)) != 0 ||
        (s[0].rflags ^ s[1].rflags) & c->flags) {
        const u64 *a = (void *)&s[0], *b = (void *)&s[1];

        for (unsigned i = 0; i < sizeof(s[0]) / 8; i++)
            if (a[i] != b[i])
                print("  register %u: %#llx, expected %#llx\n", i, (unsigned long long)b[i],
                      (unsigned long long)a[i]);
        return false;
    }
    for (unsigned i = 0; i < sizeof(memory[0]); i++) {
        if (memory[0][i] != memory[1][i]) {
            print("  byte %u: %#x, expected %#x\n", i, memory[1][i], memory[0][i]);
            return false;
        }
    }
    return true;
}

// What XCR0 holds then: everything that MOVs of this test can use.
static u64 enable_vectors(void)
{
    u64 have = XCR0_X87 | XCR0_SSE;

    write_cr0(read_cr0() & ~(CR0_EM | CR0_TS));
    write_cr4(read_cr4() | CR4_OSFXSR);
    __asm__ volatile("fninit");
    if (!(cpuid(1, 0).ecx & BIT(26)))
        return have;
    write_cr4(read_cr4() | CR4_OSXSAVE);
    have |= cpuid(0xd, 0).eax & (XCR0_AVX | BITS(7, 5));
    xsetbv(0, have);
    return have;
}

static void test_cases(void)
{
    u64 have = enable_vectors();

    msr_write(MSR_FS_BASE, WINDOW);
    for (const struct test_case *c = cases_start; c < cases_end; c++)
        if (c->flags >> 32 & ~have)
            report_skip("%s", c->text);
        else
            report(same(c, 0) && same(c, FLAGS), "%s", c->text);
}

// --- the local APIC: 32-bit accesses on 16-byte boundaries ---

static void test_apic(void)
{
    volatile u32 *icr2 = (void *)(APIC_BASE + (u64)APIC_ICR2);
    u32 value = 0x12000000;

    *icr2 = 0x55000000;
    report(*icr2 == 0x55000000, "local APIC: MOV to and from ICR2");
    __asm__ volatile("xchg %0, %1" : "+r"(value), "+m"(*icr2));
    report(value == 0x55000000 && *icr2 == 0x12000000, "local APIC: XCHG");
    __asm__ volatile("orl $0x1000000, %0" : "+m"(*icr2));
    report(*icr2 == 0x13000000, "local APIC: OR");
    __asm__ volatile("addl %1, %0" : "+m"(*icr2) : "r"(0x2000000));
    report(*icr2 == 0x15000000, "local APIC: ADD");
    __asm__ volatile("andl $0xf0000000, %0" : "+m"(*icr2));
    report(*icr2 == 0x10000000, "local APIC: AND");
    __asm__ volatile("movl $0x7000000, %0" : "=m"(*icr2));
    report(*icr2 == 0x7000000, "local APIC: MOV of an immediate");
    report((apic_read(APIC_VERSION) & 0xf0) == 0x10, "local APIC: version %#x",
           apic_read(APIC_VERSION));
}

// --- faults in the middle ---

static void copy_out(void *to)
{
    const void *from = (const void *)WINDOW;
    u64 count = 8;

    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

static void copy_in(void *from)
{
    void *to = (void *)WINDOW;
    u64 count = 8;

    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

static void push_without_stack(void *stack)
{
    __asm__ volatile("mov %%rsp, %%r15; mov %0, %%rsp; push (%1); mov %%r15, %%rsp"
                     :
                     : "r"(stack), "r"((u64)WINDOW)
                     : "r15", "memory");
}

static void write_read_only(void *unused)
{
    (void)unused;
    *(volatile u32 *)WINDOW = 1;
}

static void user_read(void *unused)
{
    (void)unused;
    (void)*(volatile u32 *)WINDOW;
}

#define AT_WINDOW(name, insn)                                            \
    static void name(void *offset)                                       \
    {                                                                    \
        __asm__ volatile(insn : : "r"(WINDOW + (u64)offset) : "memory"); \
    }
AT_WINDOW(load_aligned, "movaps (%0), %%xmm0")
AT_WINDOW(load_any, "movups (%0), %%xmm0")
AT_WINDOW(store_aligned, "movntdq %%xmm0, (%0)")
AT_WINDOW(load_mmx, "movq (%0), %%mm0; emms")
AT_WINDOW(load_x87, "fildl (%0); fstp %%st(0)")
AT_WINDOW(exchange_16, "lock cmpxchg16b (%0)")

// Not at the window: what stands in for UMIP must see them without an access that exits.
enum { VENDOR_AUTH = 0x68747541 }; // "AuthenticAMD"
static u8 table_register[10];
#define TO_MEMORY(name)                                       \
    static void user_##name(void *unused)                     \
    {                                                         \
        (void)unused;                                         \
        __asm__ volatile(#name " %0" : "=m"(table_register)); \
    }
TO_MEMORY(sgdt)
TO_MEMORY(sidt)
TO_MEMORY(sldt)
TO_MEMORY(str)
TO_MEMORY(smsw)

// Exception classes 1, 4 and 5 of SDM volume 2 section 2.4, with the operand behind MMIO.
static void test_vector_faults(void)
{
    static const struct {
        const char *name;
        void (*run)(void *);
    } umip[] = {{"SGDT", user_sgdt},
                {"SIDT", user_sidt},
                {"SLDT", user_sldt},
                {"STR", user_str},
                {"SMSW", user_smsw}};
    u64 cr0 = read_cr0(), cr4 = read_cr4();

    report(try(load_aligned, (void *)8) == VECTOR_GP && last_trap.error == 0,
           "MOVAPS not aligned: #GP(0)");
    report(try(store_aligned, (void *)4) == VECTOR_GP, "MOVNTDQ not aligned: #GP(0)");
    report(try(exchange_16, (void *)8) == VECTOR_GP, "CMPXCHG16B not aligned: #GP(0)");
    report(try(load_any, (void *)8) == NO_TRAP, "MOVUPS not aligned: no fault");
    write_cr0(cr0 | CR0_TS);
    report(try(load_any, NULL) == VECTOR_NM, "MOVUPS with CR0.TS: #NM");
    report(try(load_x87, NULL) == VECTOR_NM, "FILD with CR0.TS: #NM");
    write_cr0(cr0 | CR0_EM);
    report(try(load_any, NULL) == VECTOR_UD, "MOVUPS with CR0.EM: #UD");
    report(try(load_mmx, NULL) == VECTOR_UD, "MOVQ to MMX with CR0.EM: #UD");
    report(try(load_x87, NULL) == VECTOR_NM, "FILD with CR0.EM: #NM");
    write_cr0(cr0);
    write_cr4(cr4 & ~CR4_OSFXSR);
    report(try(load_any, NULL) == VECTOR_UD, "MOVUPS without CR4.OSFXSR: #UD");
    write_cr4(cr4);
    if (!(cpuid(7, 0).ecx & BIT(2)))
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(umip); i++) {
        if (umip[i].run == user_smsw && cpuid(0, 0).ebx != VENDOR_AUTH) {
            report_skip("no VMX control stands in for UMIP at SMSW");
            continue;
        }
        write_cr4(cr4 | CR4_UMIP);
        report(read_cr4() & CR4_UMIP, "CR4.UMIP stays set");
        report(try_user(umip[i].run, NULL) == VECTOR_GP, "%s at CPL 3 with CR4.UMIP: #GP",
               umip[i].name);
        report(try(umip[i].run, NULL) == NO_TRAP, "at CPL 0: none");
        write_cr4(cr4);
        report(try_user(umip[i].run, NULL) == USER_RETURN, "at CPL 3 without: none");
    }
}

static void test_faults(void)
{
    u8 *end = map_half(pages(1)) + PAGE_SIZE;

    set_gate(VECTOR_PF, trap_stubs + VECTOR_PF * 16, CODE64, 1, GATE_INTERRUPT);
    tss.ist[0] = (u64)pages(2) + 2 * PAGE_SIZE;
    map_window(DEVICE_BEHIND);
    report(try(copy_out, end - 3) == VECTOR_PF && last_cr2 == (u64)end && last_trap.error == PF_W,
           "REP MOVSB from MMIO into a page that is not there: #PF(%#llx), CR2 %#llx",
           (unsigned long long)last_trap.error, (unsigned long long)last_cr2);
    report(last_trap.rcx == 5 && last_trap.rdi == (u64)end && last_trap.rsi == WINDOW + 3,
           "what came before it is done: RCX %llu", (unsigned long long)last_trap.rcx);
    report(try(copy_in, end - 3) == VECTOR_PF && last_cr2 == (u64)end && last_trap.error == 0,
           "REP MOVSB to MMIO from a page that is not there: #PF(%#llx)",
           (unsigned long long)last_trap.error);
    report(last_trap.rcx == 5 && last_trap.rsi == (u64)end && last_trap.rdi == WINDOW + 3,
           "what came before it is done: RCX %llu", (unsigned long long)last_trap.rcx);
    report(try(push_without_stack, end + 8) == VECTOR_PF && last_cr2 == (u64)end &&
               last_trap.error == PF_W && last_trap.rsp == (u64)end + 8,
           "PUSH from MMIO with no stack: #PF(%#llx)", (unsigned long long)last_trap.error);
    write_cr0(read_cr0() | CR0_WP);
    directories[TABLE_ENTRY] = DEVICE_BEHIND | 0x81;
    __asm__ volatile("invlpg %0" : : "m"(*(char *)WINDOW));
    report(try(write_read_only, NULL) == VECTOR_PF && last_trap.error == (PF_P | PF_W),
           "MOV to read-only MMIO: #PF(%#llx)", (unsigned long long)last_trap.error);
    report(try_user(user_read, NULL) == VECTOR_PF && last_trap.error == (PF_P | PF_U),
           "CPL 3 reads supervisor MMIO: #PF(%#llx)", (unsigned long long)last_trap.error);
    write_cr0(read_cr0() & ~CR0_WP);
    map_half(NULL);
}

void guest_main(void)
{
    test_apic();
    if (!has_test_device()) {
        report_skip("no test device: every width and form on its memory behind MMIO");
        return;
    }
    test_cases();
    test_vector_faults();
    test_faults();
}
