// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Exceptions through the IDT: every vector that software can raise, its error code, what RIP is
// saved, CR2 and RF; INT n for all n; double fault (SDM vol. 3 "Interrupt and Exception Handling").

#include "guest.h"

// Each of them labels the instruction that faults, so that the saved RIP can be checked.
#define FAULT(name, code)                                                             \
    static void name(void *arg)                                                       \
    {                                                                                 \
        (void)arg;                                                                    \
        __asm__ volatile(code                                                         \
                         :                                                            \
                         : "D"(arg)                                                   \
                         : "rax", "rcx", "rdx", "r10", "r11", "r15", "memory", "cc"); \
    }

extern u64 expected_rip;
u64 expected_rip;

#define AT "lea 1f(%%rip), %%r10; mov %%r10, expected_rip(%%rip); "

FAULT(divide, AT "xor %%ecx, %%ecx; xor %%edx, %%edx; 1: div %%ecx")
FAULT(divide_overflow, AT "mov $1, %%ecx; mov %%ecx, %%edx; 1: div %%ecx")
FAULT(int1, AT ".byte 0xf1; 1: nop")
FAULT(int3, AT "int3; 1: nop")
FAULT(int4, AT "int $4; 1: nop")
FAULT(ud2, AT "1: ud2")
FAULT(lock_ud, AT "1: .byte 0xf0; mov %%eax, (%%rdi)")
FAULT(no_x87, AT "mov %%cr0, %%rax; or $8, %%eax; mov %%rax, %%cr0; 1: fnop")
FAULT(no_sse, AT "1: xorps %%xmm0, %%xmm0")
FAULT(load_absent, AT "1: mov %%edi, %%ds")
FAULT(load_stack, AT "1: mov %%edi, %%ss")
FAULT(load_fs, AT "1: mov %%edi, %%fs")
FAULT(load_tr, AT "1: ltr %%di")
FAULT(stack_access,
      AT "mov %%rsp, %%r15; mov %%rbp, %%r11; mov %%rdi, %%rbp; 1: mov (%%rbp), %%eax")
FAULT(read, AT "1: mov (%%rdi), %%eax")
FAULT(write, AT "1: mov %%eax, (%%rdi)")
FAULT(jump, "mov %%rdi, expected_rip(%%rip); jmp *%%rdi")
FAULT(x87_error,
      AT "fninit; pushw $0x37e; fldcw (%%rsp); add $2, %%rsp; fldz; fldz; fdivp; 1: fwait")
FAULT(sse_error, AT "pushq $0x1f00; ldmxcsr (%%rsp); add $8, %%rsp; xorps %%xmm0, %%xmm0; "
                    "1: divss %%xmm0, %%xmm0")
FAULT(unaligned, AT "pushfq; orl $0x40000, (%%rsp); popfq; 1: mov 1(%%rsp), %%eax")
FAULT(bad_cr4, AT "mov %%rdi, %%rax; 1: mov %%rax, %%cr4")
FAULT(privileged, AT "1: hlt")
FAULT(mov_cr, AT "1: mov %%cr0, %%rax")
FAULT(user_cli, AT "1: cli")
FAULT(call_gate, AT "1: lcall *(%%rdi)")
FAULT(int_gate, AT "1: int $0x30")

// What an exception must have pushed. `error` NO_ERROR_CODE: none.
static void check(const char *what, int vector, int expected, s64 error, bool fault)
{
    bool rf = last_trap.rflags & RFLAGS_RF;

    report(vector == expected && last_trap.error == (u64)error && last_trap.rip == expected_rip,
           "%s: vector %d, error %lld, RIP off by %lld", what, vector, (long long)last_trap.error,
           (long long)(last_trap.rip - expected_rip));
    // SDM vol. 3 "Instruction-Breakpoint Exception Condition": faults push RF = 1; of emulators
    // only Bochs does it
    if (fault)
        report_cpu(MACHINE_QEMU, rf, "%s: RF is set in the image of RFLAGS", what);
}

static void test_simple(void)
{
    check("#DE by zero", try(divide, NULL), VECTOR_DE, NO_ERROR_CODE, true);
    check("#DE by overflow", try(divide_overflow, NULL), VECTOR_DE, NO_ERROR_CODE, true);
    report_cpu(MACHINE_QEMU, try(int1, NULL) == VECTOR_DB && last_trap.rip == expected_rip, "INT1");
    check("INT3", try(int3, NULL), VECTOR_BP, NO_ERROR_CODE, false);
    check("INT 4", try(int4, NULL), VECTOR_OF, NO_ERROR_CODE, false);
    check("UD2", try(ud2, NULL), VECTOR_UD, NO_ERROR_CODE, true);
    report_cpu(MACHINE_QEMU, try(lock_ud, pages(1)) == VECTOR_UD, "LOCK MOV: #UD");
    check("#NM by CR0.TS, x87", try(no_x87, NULL), VECTOR_NM, NO_ERROR_CODE, true);
    check("#NM by CR0.TS, SSE", try(no_sse, NULL), VECTOR_NM, NO_ERROR_CODE, true);
    __asm__ volatile("clts");
    check("#MF", try(x87_error, NULL), VECTOR_MF, NO_ERROR_CODE, true);
    __asm__ volatile("fninit");
    report_cpu(MACHINE_QEMU, try(sse_error, NULL) == VECTOR_XM, "#XM"); // QEMU raises none
    write_cr0(read_cr0() | CR0_AM);
    report_cpu(MACHINE_QEMU, try_user(unaligned, NULL) == VECTOR_AC && last_trap.error == 0,
               "#AC(0)");
    write_cr0(read_cr0() & ~CR0_AM);
}

static void test_segments(void)
{
    gdt[SPARE / 8] = 0x00cf13000000ffff; // data, not present
    check("#NP, DS", try(load_absent, (void *)SPARE), VECTOR_NP, SPARE, true);
    check("#SS, SS", try(load_stack, (void *)SPARE), VECTOR_SS, SPARE, true);
    check("#GP, FS with code", try(load_fs, (void *)(SPARE + 0x100)), VECTOR_GP, SPARE + 0x100,
          true);
    check("#GP, SS with code", try(load_stack, (void *)CODE64), VECTOR_GP, CODE64, true);
    gdt[SPARE / 8] = 0x0000130000000067 ^ 0x0000100000000000 ^ 0x00000a0000000000; // TSS, absent
    gdt[SPARE / 8 + 1] = 0;
    check("#NP, TR", try(load_tr, (void *)SPARE), VECTOR_NP, SPARE, true);
    check("#GP, TR busy", try(load_tr, (void *)TSS), VECTOR_GP, TSS, true);
}

// A call gate from CPL 3 into CPL 1, whose stack lies beyond the TSS's limit, while RSP0 does not.
static void test_invalid_tss(void)
{
    struct PACKED {
        u32 offset;
        u16 selector;
    } pointer = {0, SPARE | 3};
    u16 inner = SPARE + 16;

    gdt[inner / 8] = 0x00afbb000000ffff; // code, 64-bit, DPL 1
    gdt[SPARE / 8] = (u64)(inner | 1) << 16 | 0xec0000000000;
    gdt[SPARE / 8 + 1] = 0;
    tss_load(11);
    // QEMU saves another RIP
    report_cpu(MACHINE_QEMU,
               try_user(call_gate, &pointer) == VECTOR_TS && last_trap.error == TSS &&
                   last_trap.rip == expected_rip,
               "#TS from a call gate, RSP1 beyond the TSS");
    tss_load(103);
}

static void test_addresses(void)
{
    void *bad = (void *)0x8000000000000000;

    check("#GP, not canonical", try(read, bad), VECTOR_GP, 0, true);
    report_cpu(MACHINE_QEMU, try(stack_access, bad) == VECTOR_SS && last_trap.error == 0,
               "#SS(0), not canonical through RBP");
    // QEMU 7.2 repeats this instruction for ever
    if (cpu_machine() == MACHINE_QEMU)
        report_skip("#GP, CR4 reserved bit");
    else
        check("#GP, CR4 reserved bit", try(bad_cr4, (void *)(BIT(63) | read_cr4())), VECTOR_GP, 0,
              true);
    check("#GP, HLT at CPL 3", try_user(privileged, NULL), VECTOR_GP, 0, true);
    check("#GP, MOV CR0 at CPL 3", try_user(mov_cr, NULL), VECTOR_GP, 0, true);
    check("#GP, CLI at CPL 3", try_user(user_cli, NULL), VECTOR_GP, 0, true);
    // QEMU takes 16 times the vector for the error code of a gate in 64-bit mode
    report_cpu(MACHINE_QEMU,
               try_user(int_gate, NULL) == VECTOR_GP && last_trap.error == 0x30 * 8 + 2,
               "#GP, INT 30h at CPL 3: error %#llx", (unsigned long long)last_trap.error);
}

static void check_fault(const char *what, int vector, void *address, u64 error)
{
    report(vector == VECTOR_PF && last_trap.error == error && last_cr2 == (u64)address &&
               last_trap.rip == expected_rip,
           "#PF, %s: vector %d, error %#llx, CR2 %#llx", what, vector,
           (unsigned long long)last_trap.error, (unsigned long long)last_cr2);
}

// One entry of page tables made anew for each check.
static u64 *page_entry(u64 flags)
{
    static u64 *tables;
    u64 page;

    if (!tables)
        tables = pages(4);
    page = (u64)(tables + 1536);
    tables[0] = (u64)(tables + 512) | 7;
    tables[512] = (u64)(tables + 1024) | 7;
    tables[1024] = page | flags;
    pml4[4] = (u64)tables | 7;
    write_cr3(read_cr3());
    return &tables[1024];
}

static void test_page_faults(void)
{
    char *at = (char *)(4ull << 39) + 0x123;

    page_entry(0);
    check_fault("read", try(read, at), at, 0);
    check_fault("write", try(write, at), at, PF_W);
    check_fault("fetch without NXE", try(jump, at), at, 0);
    check_fault("read at CPL 3", try_user(read, at), at, PF_U);
    check_fault("write at CPL 3", try_user(write, at), at, PF_U | PF_W);
    page_entry(7);
    report(try(read, at) == NO_TRAP, "no fault on a page that is there");
    page_entry(1);
    write_cr0(read_cr0() | CR0_WP);
    check_fault("write to a read-only page", try(write, at), at, PF_P | PF_W);
    write_cr0(read_cr0() & ~CR0_WP);
    report(try(write, at) == NO_TRAP, "write without CR0.WP");
    check_fault("supervisor page", try_user(read, at), at, PF_P | PF_U);
    page_entry(BIT(51) | 7);
    // QEMU: reserved-bit faults lose the P bit
    report_cpu(MACHINE_QEMU,
               try(read, at) == VECTOR_PF && last_trap.error == (PF_P | PF_RSVD) &&
                   last_cr2 == (u64)at,
               "#PF, reserved bit: error %#llx", (unsigned long long)last_trap.error);
    msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_NX);
    page_entry(BIT(63) | 7);
    check_fault("fetch from an NX page", try(jump, at), at, PF_P | PF_I);
    check_fault("the same at CPL 3", try_user(jump, at), at, PF_P | PF_I | PF_U);
    page_entry(0);
    check_fault("fetch with NXE", try(jump, at), at, PF_I);
    page_entry(7);
    report(try(write, at) == NO_TRAP, "no fault once it is there again");
    pml4[4] = 0;
    write_cr3(read_cr3());
}

// PKRU is for user pages: those that each level lets CPL 3 to (SDM vol. 3 "Protection Keys").
static void test_protection_keys(void)
{
    char *at = (char *)(4ull << 39) + 0x123;

    if (!(cpuid(7, 0).ecx & BIT(3))) {
        report_skip("protection keys");
        return;
    }
    write_cr4(read_cr4() | CR4_PKE);
    __asm__ volatile("wrpkru" : : "a"(1 << 2), "c"(0), "d"(0)); // key 1: no access
    page_entry(BIT(59) | 7);
    check_fault("protection key", try(read, at), at, PF_P | PF_PK);
    page_entry(BIT(59) | 3);
    // newer Bochs (3.x head) looks at the key of a supervisor page, too
    report_cpu(MACHINE_BOCHS, try(read, at) == NO_TRAP, "no protection key on a supervisor page");
    __asm__ volatile("wrpkru" : : "a"(0), "c"(0), "d"(0));
    write_cr4(read_cr4() & ~(u64)CR4_PKE);
    pml4[4] = 0;
    write_cr3(read_cr3());
}

static void test_accessed_dirty(void)
{
    char *at = (char *)(4ull << 39) + 0x123;
    u64 *entry = page_entry(7);

    try(read, at);
    report((*entry & 0x60) == 0x20, "a read sets A alone");
    try(write, at);
    report((*entry & 0x60) == 0x60, "a write sets D");
    pml4[4] = 0;
    write_cr3(read_cr3());
}

// --- INT n ---

static volatile u32 soft_vector, soft_count;

static void soft(struct trap *trap)
{
    soft_vector = (u32)trap->vector;
    soft_count++;
}

static void test_int_n(void)
{
    u8 *code = pages(1); // int N; ret
    u32 wrong = 0;

    for (unsigned n = 32; n < 256; n++) {
        trap_handlers[n] = soft;
        code[0] = 0xcd;
        code[1] = (u8)n;
        code[2] = 0xc3;
        soft_vector = 0;
        ((void (*)(void))code)();
        wrong += soft_vector != n;
        trap_handlers[n] = NULL;
    }
    report(soft_count == 224 && wrong == 0, "INT 32 to INT 255: %u came, %u wrong", soft_count,
           wrong);
}

// --- double fault: the handler of the first is not there ---

static void test_double_fault(void)
{
    u64 stack = (u64)pages(2) + 2 * PAGE_SIZE;
    int vector;

    tss.ist[1] = stack;
    set_gate(VECTOR_DF, trap_stubs + VECTOR_DF * 16, CODE64, 2, GATE_INTERRUPT);
    set_gate(VECTOR_GP, trap_stubs + VECTOR_GP * 16, CODE64, 0, 0x0e); // not present
    vector = try(read, (void *)0x8000000000000000);
    report(vector == VECTOR_DF && last_trap.error == 0,
           "#GP without a gate: vector %d, error %#llx", vector,
           (unsigned long long)last_trap.error);
    set_gate(VECTOR_GP, trap_stubs + VECTOR_GP * 16, CODE64, 0, GATE_INTERRUPT);

    set_gate(VECTOR_PF, trap_stubs + VECTOR_PF * 16, SPARE + 0x100, 0, GATE_INTERRUPT);
    page_entry(0);
    vector = try(read, (void *)(4ull << 39));
    report(vector == VECTOR_DF && last_trap.error == 0 && last_cr2 == 4ull << 39,
           "#PF with a bad selector in its gate: vector %d, CR2 %#llx", vector,
           (unsigned long long)last_cr2);
    set_gate(VECTOR_PF, trap_stubs + VECTOR_PF * 16, CODE64, 0, GATE_INTERRUPT);

    // benign and contributory: no double fault
    set_gate(VECTOR_UD, trap_stubs + VECTOR_UD * 16, CODE64, 0, 0x0e);
    vector = try(ud2, NULL);
    report_cpu(MACHINE_QEMU, vector == VECTOR_NP && last_trap.error == VECTOR_UD * 8 + 3,
               "#UD without a gate: vector %d, error %#llx", vector,
               (unsigned long long)last_trap.error);
    set_gate(VECTOR_UD, trap_stubs + VECTOR_UD * 16, CODE64, 0, GATE_INTERRUPT);
}

void guest_main(void)
{
    test_simple();
    test_segments();
    test_invalid_tss();
    test_addresses();
    test_page_faults();
    test_protection_keys();
    test_accessed_dirty();
    test_int_n();
    test_double_fault();
}
