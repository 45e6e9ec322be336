// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/decode.c core/decode_table.c core/emulate.c
// unit-sources: core/emulate_stack.c core/emulate_string.c
// unit-sources: core/emulate_alu.c core/emulate_ops.c core/emulate_rare.c core/emulate_vector.c
// unit-sources: core/emulate_system.c core/emulate_selector.c core/emulate_syscall.c
// unit-sources: core/task.c
// unit-sources: core/emulate_far.c core/emulate_segment.c core/descriptor.c
//
// The emulator against the CPU that runs the tests: random instructions of the 64-bit user-mode
// subset with random operands, executed for real in a copied code page and by the emulator on a
// copy of the data; registers, defined flags, memory and the next RIP must be the same. Fixed seed.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <cmocka.h>

#include <arch/x86/regs.h>
#include <nestor/emulate.h>

#if defined(__x86_64__)
#include <cpuid.h>

#include "rng.h"

#define DATA_BASE  0x20000000ull // below 4 GiB for the 32-bit address forms
#define DATA_SIZE  0x8000u
#define CODE_BASE  0x30000000ull
#define TAKEN      0x100 // where a taken branch goes, from the code's beginning
#define ARITHMETIC (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF)
#define CASES      1000000u

static u8 *host_data = (u8 *)DATA_BASE, *code = (u8 *)CODE_BASE;
static u8 model_data[DATA_SIZE], initial_data[DATA_SIZE];

// --- running on the CPU ---

// Exchanged with the assembly: registers in encoding order, then RFLAGS and which way out was
// taken.
u64 host_gpr[16], host_rflags, host_taken, host_stack;
// FXSAVE images: of the process, of the instruction on the CPU, of the emulator's.
struct fx {
    u16 fcw, fsw;
    u8 ftw, unused[19];
    u32 mxcsr, mxcsr_mask;
    u8 st[8][16], xmm[16][16], rest[96];
} __attribute__((aligned(16))) own_fx, host_fx, model_fx;
static struct fx initial_fx;
const u64 host_code = CODE_BASE;
void host_run(void);

extern const char host_back[], host_back_taken[];

// clang-format off
__asm__(".text\n"
        ".globl host_run, host_back, host_back_taken\n"
        "host_run:\n"
        "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n pushfq\n"
        "mov %rsp, host_stack(%rip)\n"
        "fxsave own_fx(%rip)\n fxrstor host_fx(%rip)\n"
        "push host_rflags(%rip)\n popfq\n"
        "mov host_gpr+0(%rip), %rax\n mov host_gpr+8(%rip), %rcx\n mov host_gpr+16(%rip), %rdx\n"
        "mov host_gpr+24(%rip), %rbx\n mov host_gpr+32(%rip), %rsp\n mov host_gpr+40(%rip), %rbp\n"
        "mov host_gpr+48(%rip), %rsi\n mov host_gpr+56(%rip), %rdi\n mov host_gpr+64(%rip), %r8\n"
        "mov host_gpr+72(%rip), %r9\n mov host_gpr+80(%rip), %r10\n mov host_gpr+88(%rip), %r11\n"
        "mov host_gpr+96(%rip), %r12\n mov host_gpr+104(%rip), %r13\n"
        "mov host_gpr+112(%rip), %r14\n mov host_gpr+120(%rip), %r15\n"
        "jmp *host_code(%rip)\n"
        "host_back_taken:\n movq $1, host_taken(%rip)\n jmp 1f\n"
        "host_back:\n movq $0, host_taken(%rip)\n"
        "1: mov %rax, host_gpr+0(%rip)\n mov %rcx, host_gpr+8(%rip)\n mov %rdx, host_gpr+16(%rip)\n"
        "mov %rbx, host_gpr+24(%rip)\n mov %rsp, host_gpr+32(%rip)\n mov %rbp, host_gpr+40(%rip)\n"
        "mov %rsi, host_gpr+48(%rip)\n mov %rdi, host_gpr+56(%rip)\n mov %r8, host_gpr+64(%rip)\n"
        "mov %r9, host_gpr+72(%rip)\n mov %r10, host_gpr+80(%rip)\n mov %r11, host_gpr+88(%rip)\n"
        "mov %r12, host_gpr+96(%rip)\n mov %r13, host_gpr+104(%rip)\n"
        "mov %r14, host_gpr+112(%rip)\n mov %r15, host_gpr+120(%rip)\n"
        "mov host_stack(%rip), %rsp\n"
        "pushfq\n pop host_rflags(%rip)\n"
        "fxsave host_fx(%rip)\n fxrstor own_fx(%rip)\n"
        "popfq\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n");
// clang-format on

static int fault_signal;

// Leaves the code page by the ordinary way out: the interrupted registers are those of the guest.
static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)info;
    fault_signal = signal;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)host_back;
}

static void put_exit(u8 *where, const char *target)
{
    u64 address = (u64)(uintptr_t)target;

    memcpy(where, "\xff\x25\x00\x00\x00\x00", 6); // jmp *[rip]
    memcpy(where + 6, &address, 8);
}

static int setup(void **state)
{
    (void)state;
    if (mmap(host_data, DATA_SIZE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != host_data ||
        mmap(code, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != code)
        return -1;
    return 0;
}

// In the test itself, since cmocka installs its own handlers before it.
static void catch_faults(void)
{
    static const int signals[] = {SIGFPE, SIGSEGV, SIGILL, SIGBUS, SIGTRAP};
    static u8 stack[65536];
    const stack_t ss = {.ss_sp = stack, .ss_size = sizeof(stack)};
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_ONSTACK | SA_SIGINFO};

    sigaltstack(&ss, NULL);
    for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
        sigaction(signals[i], &action, NULL);
}

// --- the emulator's side ---

static enum emulate_result check_mem(struct emulate_ctx *c, gva_t la, unsigned size,
                                     unsigned access)
{
    (void)c;
    (void)access;
    if (la - DATA_BASE > DATA_SIZE - size)
        return emulate_raise(c, VECTOR_PF, true, 0);
    return EMULATE_OK;
}

static enum emulate_result read_mem(struct emulate_ctx *c, gva_t la, void *buf, unsigned size,
                                    unsigned access)
{
    enum emulate_result r = check_mem(c, la, size, access);

    if (r == EMULATE_OK)
        memcpy(buf, model_data + (la - DATA_BASE), size);
    return r;
}

static enum emulate_result write_mem(struct emulate_ctx *c, gva_t la, const void *buf,
                                     unsigned size, unsigned access)
{
    enum emulate_result r = check_mem(c, la, size, access);

    if (r == EMULATE_OK)
        memcpy(model_data + (la - DATA_BASE), buf, size);
    return r;
}

static enum emulate_result cmpxchg_mem(struct emulate_ctx *c, gva_t la, void *old,
                                       const void *value, unsigned size, bool *swapped)
{
    assert_memory_equal(model_data + (la - DATA_BASE), old, size);
    *swapped = true;
    return write_mem(c, la, value, size, EMULATE_WRITE);
}

static void get_seg(struct emulate_ctx *c, enum segment_index seg, struct segment *out)
{
    u16 selector = 0;

    (void)c;
    switch (seg) {
    case SEG_ES:
        __asm__("mov %%es, %0" : "=r"(selector));
        break;
    case SEG_CS:
        __asm__("mov %%cs, %0" : "=r"(selector));
        break;
    case SEG_SS:
        __asm__("mov %%ss, %0" : "=r"(selector));
        break;
    case SEG_DS:
        __asm__("mov %%ds, %0" : "=r"(selector));
        break;
    case SEG_FS:
        __asm__("mov %%fs, %0" : "=r"(selector));
        break;
    case SEG_GS:
        __asm__("mov %%gs, %0" : "=r"(selector));
        break;
    default:
        break;
    }
    *out = (struct segment){.selector = selector};
}

// Registers and x87 stack slots stand where FXSAVE has them; MMX registers are slots from the top,
// which stays 0 here.
static void vector(struct emulate_ctx *c, enum emulate_bank bank, unsigned n, bool write, void *buf)
{
    u8 *reg = bank == EMULATE_MMX ? model_fx.st[n] : model_fx.xmm[n];
    unsigned size = bank == EMULATE_MMX ? 8 : 16;

    (void)c;
    assert_true(bank <= EMULATE_XMM);
    if (bank == EMULATE_MMX) { // any MMX instruction
        model_fx.ftw = 0xff;
        model_fx.fsw &= (u16)~0x3800;
    }
    if (write && bank == EMULATE_MMX)
        memset(reg + 8, 0xff, 2);
    memcpy(write ? reg : buf, write ? buf : reg, size);
}

// As the hypervisor does it: the CPU executes the instruction on a buffer.
static void x87(struct emulate_ctx *c, unsigned opcode, unsigned reg, void *buf)
{
    u8 *stub = code + 0x800;

    (void)c;
    stub[0] = (u8)(0xd8 + opcode);
    stub[1] = (u8)(reg << 3 | 7);
    stub[2] = 0xc3;
    __asm__ volatile("fxsave own_fx(%%rip)\n fxrstor model_fx(%%rip)\n call *%0\n"
                     "fxsave model_fx(%%rip)\n fxrstor own_fx(%%rip)"
                     :
                     : "r"(stub), "D"(buf)
                     : "memory");
}

static u16 x87_status(struct emulate_ctx *c)
{
    (void)c;
    return model_fx.fsw;
}

static const struct emulate_ops ops = {
    .read_mem = read_mem,
    .write_mem = write_mem,
    .check_mem = check_mem,
    .cmpxchg_mem = cmpxchg_mem,
    .get_seg = get_seg,
    .vector = vector,
    .x87 = x87,
    .x87_status = x87_status,
};

// --- making cases ---

static bool has_movbe;

// What user mode may execute and what comes back. Everything else that the generator hits is
// dropped.
static bool wanted(const struct insn *insn)
{
    // clang-format off
    switch (insn->op) {
    case INSN_MOV_TO_SREG: case INSN_POP_SREG: case INSN_INS: case INSN_OUTS: case INSN_IN:
    case INSN_OUT:
    case INSN_CLI: case INSN_STI: case INSN_HLT: case INSN_UD: case INSN_OTHER:
    case INSN_LSS: case INSN_LFAR:
    case INSN_CALL_FAR: case INSN_JMP_FAR: case INSN_RET_FAR: case INSN_IRET: case INSN_INT:
    case INSN_INT3: case INSN_INTO: case INSN_INT1:
        return false;
    case INSN_VEC_LOAD: case INSN_VEC_STORE: return insn->encoding == INSN_LEGACY;
    case INSN_BSWAP: return insn->opsize > 2;
    case INSN_MOVBE: return has_movbe;
    default: return insn->op <= INSN_PAUSE;
    }
    // clang-format on
}

static bool is_branch(const struct insn *insn)
{
    return insn->op >= INSN_CALL && insn->op <= INSN_JCXZ;
}

static void random_bytes(u8 *bytes)
{
    static const u8 prefixes[] = {0x66, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e};
    unsigned len = 0;
    u64 r = random_u64();

    for (unsigned i = 0; i < 16; i++)
        bytes[i] = (u8)random_u64();
    if (r % 4 == 0)
        bytes[len++] = prefixes[(r >> 8) % sizeof(prefixes)];
    if (r % 16 == 0)
        bytes[len++] = prefixes[(r >> 16) % sizeof(prefixes)];
    if ((r >> 24) % 2)
        bytes[len++] = (u8)(0x40 | (r >> 32 & 15));
    if ((r >> 40) % 3 == 0)
        bytes[len++] = 0x0f;
    if ((r >> 44) % 64 == 0) { // MOVBE is rare otherwise, and CRC32
        if (r >> 51 & 1)
            bytes[len++] = 0xf2;
        memcpy(bytes + len, "\x0f\x38\xf0", 3);
        bytes[len + 2] |= (u8)(r >> 50 & 1);
    }
}

static u64 interesting(void)
{
    static const u64 values[] = {0,
                                 1,
                                 0x7f,
                                 0x80,
                                 0xff,
                                 0x7fff,
                                 0x8000,
                                 0x7fffffff,
                                 0x80000000,
                                 ~0ull,
                                 0x7fffffffffffffff,
                                 0x8000000000000000};
    u64 r = random_u64();

    return r % 3 == 0 ? values[r / 3 % ARRAY_SIZE(values)] : random_u64() >> (r >> 8) % 64;
}

static u64 data_address(u64 align)
{
    return DATA_BASE + 0x1000 + (random_u64() % (DATA_SIZE - 0x2000) & ~(align - 1));
}

// Gives registers such values that the memory operand lies in the data. False: can't be done.
static bool aim(const struct insn *insn, struct emulate_regs *regs)
{
    bool bit_string = insn->op >= INSN_BT && insn->op <= INSN_BTC && insn->src == OPERAND_REG;
    bool aligned = insn->prefixes & INSN_LOCK || insn->op == INSN_XCHG ||
                   (insn->mem_size == 16 && (insn->op == INSN_CMPXCHG8B || random_u64() % 4));
    u64 target = data_address(aligned && insn->mem_size ? insn->mem_size : 1), rest;
    u64 garbage = insn->addr_size == 4 ? random_u64() << 32 : 0;

    if (!insn->has_mem || !insn->mem_size)
        return true;
    if (insn->prefixes & INSN_SEGMENT || insn->base > 15 || insn->base == insn->index)
        return false;
    if (bit_string && (insn->base == insn->reg || insn->index == insn->reg))
        return false;
    if (bit_string)
        regs->gpr[insn->reg] = (u64)((s64)(random_u64() % 8192) - 4096);
    if (insn->op == INSN_POP && insn->base == 4)
        target = data_address(8);
    rest = (u64)insn->disp;
    if (insn->index != INSN_REG_NONE)
        rest += regs->gpr[insn->index] * insn->scale;
    regs->gpr[insn->base] = target - rest;
    if (insn->addr_size == 4)
        regs->gpr[insn->base] = (u32)(target - rest) | garbage;
    return true;
}

static bool aim_implicit(const struct insn *insn, struct emulate_regs *regs)
{
    // clang-format off
    switch (insn->op) {
    case INSN_MOVS: case INSN_CMPS: case INSN_STOS: case INSN_LODS: case INSN_SCAS:
        regs->gpr[1] = random_u64() % 20;
        regs->gpr[6] = data_address(1);
        regs->gpr[7] = data_address(1);
        return !(insn->prefixes & INSN_SEGMENT);
    case INSN_XLAT:
        regs->gpr[3] = data_address(1);
        return insn->addr_size == 8 && !(insn->prefixes & INSN_SEGMENT);
    case INSN_ENTER: case INSN_LEAVE:
        regs->gpr[5] = data_address(1);
        return true;
    default: return true;
    }
    // clang-format on
}

static bool aim_branch(const struct insn *insn, struct emulate_regs *regs, u8 *bytes)
{
    u64 target = CODE_BASE + TAKEN, offset = TAKEN - insn->length;
    unsigned size =
        insn->opcode == 0xe8 || insn->opcode == 0xe9 || insn->map == INSN_MAP_0F ? 4 : 1;

    if (insn->prefixes & INSN_OPSIZE) // AMD's 16-bit branches would leave the page
        return false;
    if (insn->src == OPERAND_IMM && insn->op != INSN_RET) {
        if (size == 1)
            offset = 0x70; // a second way out is there
        memcpy(bytes + insn->length - size, &offset, size);
        return true;
    }
    if (insn->op == INSN_RET)
        memcpy(initial_data + (regs->gpr[4] - DATA_BASE), &target, 8);
    else if (!insn->has_mem)
        regs->gpr[insn->rm] = target;
    else
        memcpy(initial_data + (insn_offset(insn, regs->gpr, 0) - DATA_BASE), &target, 8);
    return !(insn->op != INSN_RET && !insn->has_mem && insn->rm == 4);
}

static u64 undefined_flags(const struct insn *insn, const struct emulate_regs *regs)
{
    u64 count = insn->src == OPERAND_CL || insn->opcode == 0xa5 || insn->opcode == 0xad
                    ? regs->gpr[1]
                    : insn->imm;
    u64 many;

    count &= insn->opsize == 8 ? 63 : 31;
    many = count > 1 ? RFLAGS_OF : 0;
    // clang-format off
    switch (insn->op) {
    case INSN_AND: case INSN_OR: case INSN_XOR: case INSN_TEST: return RFLAGS_AF;
    case INSN_ROL: case INSN_ROR: case INSN_RCL: case INSN_RCR: return many;
    case INSN_SHL: case INSN_SHR: case INSN_SAL: case INSN_SAR: case INSN_SHLD: case INSN_SHRD:
        if (count >= 8u * insn->opsize)
            many |= RFLAGS_CF;
        return count ? many | RFLAGS_AF : 0;
    case INSN_MUL: case INSN_IMUL1: case INSN_IMUL2: case INSN_IMUL3:
        return RFLAGS_SF | RFLAGS_ZF | RFLAGS_AF | RFLAGS_PF;
    case INSN_DIV: case INSN_IDIV: return ARITHMETIC;
    case INSN_BSF: case INSN_BSR: case INSN_TZCNT: case INSN_LZCNT:
        return ARITHMETIC &
               ~(RFLAGS_ZF | (insn->op >= INSN_TZCNT ? RFLAGS_CF : 0));
    case INSN_BT: case INSN_BTS: case INSN_BTR: case INSN_BTC:
        return RFLAGS_OF | RFLAGS_SF | RFLAGS_AF | RFLAGS_PF;
    default: return 0;
    }
    // clang-format on
}

// A 16-bit double shift by more than 16 has no defined result.
static bool result_undefined(const struct insn *insn, const struct emulate_regs *regs)
{
    u64 count = insn->opcode & 1 ? regs->gpr[1] : insn->imm;

    return (insn->op == INSN_SHLD || insn->op == INSN_SHRD) && insn->opsize == 2 &&
           (count & 31) > 16;
}

static void random_registers(struct emulate_regs *regs)
{
    for (unsigned i = 0; i < 16; i++)
        regs->gpr[i] = interesting();
    regs->gpr[4] = data_address(1);
    regs->rip = CODE_BASE;
    regs->rflags = RFLAGS_FIXED | RFLAGS_IF | (random_u64() & (ARITHMETIC | RFLAGS_DF));
}

static bool make_case(u8 *bytes, struct insn *insn, struct emulate_regs *regs)
{
    random_bytes(bytes);
    if (insn_decode(insn, bytes, 15, INSN_MODE_64) != INSN_OK || !wanted(insn))
        return false;
    random_registers(regs);
    if (!aim_implicit(insn, regs) || !aim(insn, regs) || result_undefined(insn, regs))
        return false;
    if (insn->op == INSN_POPF) { // no TF, NT or AC from noise
        u64 flags = random_u64() & (ARITHMETIC | RFLAGS_DF | RFLAGS_IF | RFLAGS_IOPL | RFLAGS_ID);

        memcpy(initial_data + (regs->gpr[4] - DATA_BASE), &flags, 8);
    }
    return !is_branch(insn) || aim_branch(insn, regs, bytes);
}

static int run_host(const u8 *bytes, const struct insn *insn, const struct emulate_regs *regs)
{
    memset(code, 0xcc, 0x200);
    memcpy(code, bytes, insn->length);
    put_exit(code + insn->length, host_back);
    put_exit(code + insn->length + 0x70, host_back_taken);
    put_exit(code + TAKEN, host_back_taken);
    memcpy(host_data, initial_data, DATA_SIZE);
    memcpy(host_gpr, regs->gpr, sizeof(host_gpr));
    host_rflags = regs->rflags;
    host_fx = initial_fx;
    fault_signal = 0;
    host_run();
    return fault_signal;
}

static const char *compare_results(const struct insn *insn, const struct emulate_regs *before,
                                   const struct emulate_regs *after, const struct emulate_ctx *c)
{
    u64 mask = (ARITHMETIC | RFLAGS_DF | RFLAGS_IF | RFLAGS_IOPL | RFLAGS_ID) &
               ~undefined_flags(insn, before);

    if (memcmp(after->gpr, host_gpr, sizeof(host_gpr)))
        return "registers";
    if ((c->next_rflags ^ host_rflags) & mask)
        return "flags";
    if (memcmp(model_data, host_data, DATA_SIZE))
        return "memory";
    if (memcmp(model_fx.xmm, host_fx.xmm, sizeof(host_fx.xmm)))
        return "vector registers";
    if (memcmp(&model_fx, &host_fx, 5) || memcmp(model_fx.st, host_fx.st, sizeof(host_fx.st)))
        return "x87 and MMX";
    if (is_branch(insn) && host_taken != (c->next_rip != CODE_BASE + insn->length))
        return "branch";
    if (!is_branch(insn) && c->next_rip != CODE_BASE + insn->length)
        return "next RIP";
    return NULL;
}

static void print_case(const char *error, const u8 *bytes, const struct insn *insn,
                       const struct emulate_regs *before, const struct emulate_regs *after,
                       const struct emulate_ctx *c)
{
    printf("%s: op %u, bytes", error, insn->op);
    for (unsigned i = 0; i < insn->length; i++)
        printf(" %02x", bytes[i]);
    printf("\n  rflags before %llx model %llx host %llx\n", (unsigned long long)before->rflags,
           (unsigned long long)c->next_rflags, (unsigned long long)host_rflags);
    for (unsigned i = 0; i < 16; i++)
        if (after->gpr[i] != host_gpr[i])
            printf("  gpr %u before %llx model %llx host %llx\n", i,
                   (unsigned long long)before->gpr[i], (unsigned long long)after->gpr[i],
                   (unsigned long long)host_gpr[i]);
}

static unsigned mismatches, faults[32], covered[INSN_OP_COUNT];

// What the emulator refuses because Intel and AMD do not do the same.
static bool vendors_differ(const struct insn *insn)
{
    if (insn->op == INSN_LOOPE || insn->op == INSN_LOOPNE)
        return insn->prefixes & (INSN_REP | INSN_REPNE);
    return insn->op == INSN_CMPXCHG && !insn->has_mem && insn->opsize == 4;
}

// How Linux shows a fault to the process.
static int signal_of(u8 vector)
{
    switch (vector) {
    case VECTOR_DE:
        return SIGFPE;
    case VECTOR_SS:
        return SIGBUS;
    case VECTOR_GP:
        return SIGSEGV;
    default:
        return -1;
    }
}

static void run_case(const u8 *bytes, const struct insn *insn, const struct emulate_regs *before)
{
    struct emulate_regs regs = *before;
    struct emulate_ctx c = {
        .ops = &ops,
        .regs = &regs,
        .mode = INSN_MODE_64,
        .cpl = 3,
        .cr0 = CR0_PE,
        .cr4 = CR4_OSFXSR,
        .bytes_count = 15,
    };
    const char *error = NULL;
    enum emulate_result r;
    int signal;

    memcpy(c.bytes, bytes, 15);
    memcpy(model_data, initial_data, DATA_SIZE);
    model_fx = initial_fx;
    r = emulate_insn(&c);
    if (r == EMULATE_FAULT && c.fault.vector == VECTOR_PF)
        return; // the data ends here
    if (r == EMULATE_UNHANDLED && vendors_differ(insn))
        return;
    signal = run_host(bytes, insn, before);
    covered[insn->op]++;
    if (r == EMULATE_FAULT && signal == signal_of(c.fault.vector))
        faults[c.fault.vector]++;
    else if (signal)
        error = strsignal(signal);
    else if (r != EMULATE_OK)
        error = "not emulated";
    else
        error = compare_results(insn, before, &regs, &c);
    if (error && mismatches++ < 20)
        print_case(error, bytes, insn, before, &regs, &c);
}

static void test_against_host(void **state)
{
    static const u8 must[] = {
        INSN_ADD,       INSN_SBB,    INSN_RCL,      INSN_SAR,     INSN_BTC,       INSN_MUL,
        INSN_IDIV,      INSN_SHLD,   INSN_CMPXCHG,  INSN_XADD,    INSN_CMPXCHG8B, INSN_MOVSX,
        INSN_MOVBE,     INSN_CMOVCC, INSN_PUSH,     INSN_POP,     INSN_PUSHF,     INSN_POPF,
        INSN_LEAVE,     INSN_CALL,   INSN_CALL_IND, INSN_JMP_IND, INSN_RET,       INSN_JCC,
        INSN_LOOPNE,    INSN_JCXZ,   INSN_MOVS,     INSN_CMPS,    INSN_SCAS,      INSN_XLAT,
        INSN_CWD,       INSN_SAHF,   INSN_LEA,      INSN_SETCC,   INSN_BSF,       INSN_BSR,
        INSN_TZCNT,     INSN_LZCNT,  INSN_POPCNT,   INSN_CRC32,   INSN_ENTER,     INSN_VEC_LOAD,
        INSN_VEC_STORE, INSN_X87,
    };
    struct emulate_regs regs;
    struct insn insn;
    unsigned cases = 0, a, b, features, d;
    u8 bytes[16];

    (void)state;
    catch_faults();
    has_movbe = __get_cpuid(1, &a, &b, &features, &d) && features & bit_MOVBE;
    for (unsigned i = 0; i < DATA_SIZE; i++) // few values, so that comparisons are sometimes equal
        initial_data[i] = i & 0x400 ? (u8)(random_u64() % 2) : (u8)random_u64();
    initial_fx.fcw = 0x37f;
    initial_fx.mxcsr = 0x1f80;
    for (unsigned i = 0; i < sizeof(initial_fx.xmm); i++)
        ((u8 *)initial_fx.xmm)[i] = (u8)random_u64();
    for (unsigned i = 0; i < 8; i++)
        memcpy(initial_fx.st[i], "\0\0\0\0\x12\x34\x56\xc8\x05\x40", 10);
    while (cases < CASES) {
        initial_fx.ftw = random_u64() & 1 ? 0 : 0x7f; // one register is free
        if (!make_case(bytes, &insn, &regs))
            continue;
        run_case(bytes, &insn, &regs);
        cases++;
    }
    printf("%u cases, %u #DE, %u #SS, %u #GP, %u mismatches\n", cases, faults[VECTOR_DE],
           faults[VECTOR_SS], faults[VECTOR_GP], mismatches);
    for (unsigned i = 0; i < ARRAY_SIZE(must); i++)
        if (covered[must[i]] < 20 && (must[i] != INSN_MOVBE || has_movbe))
            fail_msg("instruction %u executed %u times", must[i], covered[must[i]]);
    assert_true(faults[VECTOR_DE] > 10);
    assert_int_equal(mismatches, 0);
}

#else
static int setup(void **state)
{
    (void)state;
    return 0;
}

static void test_against_host(void **state)
{
    (void)state;
    printf("this machine is no x86-64: nothing to compare with\n");
    skip();
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_host)};

    return cmocka_run_group_tests(tests, setup, NULL);
}
