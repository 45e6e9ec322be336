// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The exits of an L2's instructions that Nestor emulates (by the forced-emulation prefix) beside
// those that the CPU makes of the same instructions: reason, qualification, length, instruction
// information as far as it is defined, guest-linear address, RFLAGS (SDM vol. 3 "Recording VM-Exit
// Information and Updating VM-Entry Control Fields", "Relative Priority of Faults and VM Exits").

#include "vmx.h"

// A row's instruction, alone and behind the prefix.
struct row {
    const char *name;
    const char *plain, *forced;
};

#define ROW(name, code)                                                                         \
    L2(l2_##name, code "; vmcall; ud2; .ascii \"kvm\"; l2_forced_" #name ": " code "; vmcall"); \
    extern char l2_forced_##name[]

#define ROWS(X)                                 \
    X(cpuid, "cpuid")                           \
    X(hlt, "hlt")                               \
    X(rdtsc, "rdtsc")                           \
    X(rdtscp, "rdtscp")                         \
    X(rdpmc, "rdpmc")                           \
    X(rdmsr, "rdmsr")                           \
    X(wrmsr, "wrmsr")                           \
    X(invd, "invd")                             \
    X(wbinvd, "wbinvd")                         \
    X(xsetbv, "xsetbv")                         \
    X(pause, "pause")                           \
    X(to_cr0, "mov %rax, %cr0")                 \
    X(to_cr3, "mov %r9, %cr3")                  \
    X(to_cr4, "mov %rax, %cr4")                 \
    X(to_cr8, "mov %rbx, %cr8")                 \
    X(from_cr3, "mov %cr3, %r12")               \
    X(from_cr8, "mov %cr8, %rbp")               \
    X(clts, "clts")                             \
    X(lmsw, "lmsw %bx")                         \
    X(lmsw_mem, "lmsw 8(%rdi)")                 \
    X(to_dr, "mov %r11, %dr6")                  \
    X(from_dr, "mov %dr7, %r10")                \
    X(in_imm, "in $0x80, %al")                  \
    X(in_dx, "in %dx, %eax")                    \
    X(out_dx, "out %ax, %dx")                   \
    X(ins, "insb")                              \
    X(rep_ins, "rep insw")                      \
    X(outs, "outsl")                            \
    X(rep_outs, "rep outsb")                    \
    X(outs_fs, "fs outsb")                      \
    X(outs_32, "addr32 outsb")                  \
    X(invlpg, "invlpg 0x123(%rdi,%rcx,2)")      \
    X(sgdt, "sgdt 0x10(%rdi)")                  \
    X(sidt, "sidt -8(%rdi,%rcx,4)")             \
    X(lgdt, "lgdt %gs:(%rdi)")                  \
    X(lidt, "lidt l2_idt(%rip)")                \
    X(sldt, "sldt %ebx")                        \
    X(sldt_mem, "sldt (%rdi)")                  \
    X(str, "str %r9")                           \
    X(str_mem, "str (%rsp)")                    \
    X(lldt, "lldt %r9w")                        \
    X(ltr_mem, "ltr 2(%rdi)")                   \
    X(vmread, "vmread %rbx, %r9")               \
    X(vmread_mem, "vmread %rbx, (%rdi,%rcx)")   \
    X(vmwrite, "vmwrite %r9, %rbx")             \
    X(vmwrite_mem, "vmwrite 0x100(%rdi), %rbx") \
    X(vmptrld, "vmptrld (%rdi)")                \
    X(vmptrst, "vmptrst (%r8)")                 \
    X(vmclear, "vmclear 8(%rbp,%rdx,8)")        \
    X(vmxon, "vmxon (%rdi)")                    \
    X(vmxoff, "vmxoff")                         \
    X(vmlaunch, "vmlaunch")                     \
    X(vmresume, "vmresume")                     \
    X(vmcall, "vmcall")                         \
    X(invept, "invept (%rdi), %r9")             \
    X(invvpid, "invvpid 0x40(%rdi,%rcx,8), %rbx")

#define DEFINE(name, code) ROW(name, code);
ROWS(DEFINE)

#define ENTRY(name, code) {#name, l2_##name, l2_forced_##name},
static const struct row rows[] = {ROWS(ENTRY)};

// What an exit has left.
enum {
    REASON,
    QUALIFICATION,
    LENGTH,
    INFORMATION,
    LINEAR,
    FLAGS,
    INTERRUPTIBILITY,
    EVENT,
    ERROR,
    OFFSET,
    VALUES
};
static const char *const names[VALUES] = {"reason",           "qualification",
                                          "length",           "instruction information",
                                          "linear address",   "RFLAGS",
                                          "interruptibility", "interruption",
                                          "error code",       "RIP"};

static const struct mode {
    const char *name;
    bool user;
    u64 cr4; // beside L1's
} modes[] = {
    {"CPL 0", false, 0},
    {"CPL 0, all of CR4", false, CR4_OSXSAVE | CR4_PCE | CR4_DE},
    {"CPL 3", true, CR4_OSXSAVE},
    {"CPL 3, TSD", true, CR4_TSD | CR4_PCE},
};

// Of the instruction information, what its table defines.
static u64 defined(u64 reason, u64 info)
{
    u64 memory = 0x0fff8383, mask = memory;

    if (info & BIT(22)) // no index, and no scale
        memory &= ~(u64)(BITS(21, 18) | BITS(1, 0));
    if (info & BIT(27))
        memory &= ~(u64)BITS(26, 23);
    mask = memory;
    switch (reason) {
    case REASON_IO:
        return BITS(17, 15) | BITS(9, 7);
    case REASON_GDTR_IDTR:
        return memory | BITS(29, 28) | BIT(10);
    case REASON_LDTR_TR:
        return BITS(29, 28) | BIT(10) | (info & BIT(10) ? BITS(6, 3) : memory);
    case REASON_VMREAD:
    case REASON_VMWRITE:
        return BITS(31, 28) | BIT(10) | (info & BIT(10) ? BITS(6, 3) : memory);
    case REASON_INVEPT:
    case REASON_INVVPID:
        return mask | BITS(31, 28);
    case REASON_VMCLEAR:
    case REASON_VMPTRLD:
    case REASON_VMPTRST:
    case REASON_VMXON:
        return mask;
    default:
        return 0;
    }
}

static u8 buffer[PAGE_SIZE] ALIGNED(PAGE_SIZE);

static void put_user(void)
{
    for (unsigned n = 0; n < 6; n++)
        put_segment(n, USER_DATA, 0xc0f3, ~0u, 0);
    put_segment(1, USER_CODE64, 0xa0fb, ~0u, 0);
}

// #UD is the prefix's as well: it is L2's own.
static u64 place(const char *code)
{
    u64 rip = vmread(GUEST_RIP), handlers = (u64)l2_handlers;

    return rip - handlers < sizeof(l2_handlers) ? 0x10000 + rip - handlers : rip - (u64)code;
}

static void take(const struct mode *mode, const char *code, bool forced, u64 values[VALUES])
{
    const u32 primary = PRIMARY_HLT | PRIMARY_INVLPG | PRIMARY_RDPMC | PRIMARY_RDTSC |
                        PRIMARY_CR3_LOAD | PRIMARY_CR3_STORE | PRIMARY_CR8_LOAD |
                        PRIMARY_CR8_STORE | PRIMARY_MOV_DR | PRIMARY_UNCONDITIONAL_IO |
                        PRIMARY_PAUSE;
    u64 info;

    init(code - (forced ? 5 : 0));
    if (!use_secondary(primary, SECONDARY_DESCRIPTOR_TABLE | SECONDARY_WBINVD | SECONDARY_RDTSCP))
        set_primary(primary);
    if (mode->user)
        put_user();
    vmwrite(EXCEPTION_BITMAP, ~(u32)BIT(VECTOR_UD));
    vmwrite(GUEST_CR4, read_cr4() | mode->cr4);
    vmwrite(CR4_READ_SHADOW, mode->cr4);
    vmwrite(CR0_GUEST_HOST_MASK, ~0ull);
    vmwrite(CR0_READ_SHADOW, 0x8005003b); // TS is set
    vmwrite(CR4_GUEST_HOST_MASK, ~0ull);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | 0x8d5 | RFLAGS_RF); // the status flags
    for (unsigned i = 0; i < REGISTERS; i++)
        l2_registers[i] = 0x11 * i + 3;
    l2_registers[RAX] = 0x80051033;
    l2_registers[RBX] = 0x6c16;
    l2_registers[RDI] = l2_registers[R8] = (u64)buffer + 0x200;
    l2_registers[RSI] = (u64)buffer + 0x300;
    l2_registers[RBP] = (u64)buffer + 0x400;
    l2_registers[R9] = 2;
    run();
    info = vmread(EXIT_INSTRUCTION_INFO);
    values[REASON] = vmread(EXIT_REASON);
    values[QUALIFICATION] = vmread(EXIT_QUALIFICATION);
    values[LENGTH] = vmread(EXIT_INSTRUCTION_LENGTH);
    values[INFORMATION] = info & defined(values[REASON], info);
    if (values[REASON] == REASON_IO && !(values[QUALIFICATION] & BIT(4)))
        values[INFORMATION] = 0; // of strings only
    if (values[REASON] == REASON_IO && (values[QUALIFICATION] & BIT(3)))
        values[INFORMATION] &= BITS(9, 7); // INS has no segment
    values[LINEAR] = values[REASON] == REASON_IO || values[REASON] == REASON_CR_ACCESS
                         ? vmread(GUEST_LINEAR_ADDRESS)
                         : 0;
    if (values[REASON] == REASON_IO && !(values[QUALIFICATION] & BIT(4)))
        values[LINEAR] = 0;
    // RF behind a fault: Bochs 2.7 leaves it 0
    values[FLAGS] = vmread(GUEST_RFLAGS) & (values[REASON] ? ~0ull : ~(u64)RFLAGS_RF);
    values[INTERRUPTIBILITY] = vmread(GUEST_INTERRUPTIBILITY);
    values[EVENT] = vmread(EXIT_INTERRUPTION_INFO);
    values[ERROR] = values[EVENT] & INFO_ERROR_CODE ? vmread(EXIT_INTERRUPTION_ERROR_CODE) : 0;
    if (values[REASON] == REASON_EXCEPTION_NMI)
        values[LENGTH] = 0;
    else
        values[EVENT] = 0;
    values[OFFSET] = place(code);
}

static void compare(const struct mode *mode, const struct row *row)
{
    u64 cpu[VALUES], own[VALUES];
    bool same = true;

    take(mode, row->plain, false, cpu);
    take(mode, row->forced, true, own);
    if (mode->user && (mode->cr4 & CR4_OSXSAVE) && cpu[REASON] == REASON_XSETBV) {
        // Bochs exits before it looks at the CPL
        report_cpu(MACHINE_BOCHS, false, "%s, %s: the CPU's exit", mode->name, row->name);
        return;
    }
    for (unsigned i = 0; i < VALUES; i++) {
        if (cpu[i] == own[i])
            continue;
        same = false;
        report(false, "%s, %s: %s: %#llx, of the CPU %#llx", mode->name, row->name, names[i],
               LLU(own[i]), LLU(cpu[i]));
    }
    if (same)
        report(true, "%s, %s: reason %#llx, qualification %#llx, interruption %#llx", mode->name,
               row->name, LLU(cpu[REASON]), LLU(cpu[QUALIFICATION]), LLU(cpu[EVENT]));
}

void guest_main(void)
{
    if (!vmx_start()) {
        report(false, "no VMX");
        return;
    }
    for (unsigned m = 0; m < ARRAY_SIZE(modes); m++)
        for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
            compare(&modes[m], &rows[i]);
}
