// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The small hypervisor of the guests that use VMX: VMXON, a VMCS with an L2 of a few instructions,
// entries, and what the VMCS and the registers hold after each exit. An L2 shares L1's paging and
// GDT and has an IDT of its own, behind whose gates there is a VMCALL each.

#include "vmx.h"

void *vmxon_region, *vmcs_region;
u64 basic;
bool launched;
u64 l2_idt[512] ALIGNED(16);
u8 l2_stack[L2_STACK] ALIGNED(16);

u64 l2_registers[REGISTERS];

extern char vmx_exit[];
extern u16 vmx_ss; // for the assembly
u16 vmx_ss = DATA;
__asm__(".globl vmx_enter\n"
        "vmx_enter:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "mov $0x6c14, %eax; vmwrite %rsp, %rax\n" // HOST_RSP
        "cmp $1, %rdi\n"
        "lea l2_registers(%rip), %rdi\n"
        "mov 0(%rdi), %rax; mov 8(%rdi), %rbx; mov 16(%rdi), %rcx; mov 24(%rdi), %rdx\n"
        "mov 32(%rdi), %rsi; mov 48(%rdi), %rbp; mov 56(%rdi), %r8; mov 64(%rdi), %r9\n"
        "mov 72(%rdi), %r10; mov 80(%rdi), %r11; mov 88(%rdi), %r12; mov 96(%rdi), %r13\n"
        "mov 104(%rdi), %r14; mov 112(%rdi), %r15; mov 40(%rdi), %rdi\n"
        "je 1f\n"
        "ja 4f\n"
        "vmlaunch\n"
        "jmp 2f\n"
        "1: vmresume\n"
        "jmp 2f\n"
        "4: mov vmx_ss(%rip), %ss\n"
        "vmlaunch\n"
        "2: pushfq; pop %rax; and $0x41, %eax\n"
        "jmp 3f\n"
        "vmx_exit:\n"
        "push %rdi\n"
        "lea l2_registers(%rip), %rdi\n"
        "mov %rax, 0(%rdi); mov %rbx, 8(%rdi); mov %rcx, 16(%rdi); mov %rdx, 24(%rdi)\n"
        "mov %rsi, 32(%rdi); mov %rbp, 48(%rdi); mov %r8, 56(%rdi); mov %r9, 64(%rdi)\n"
        "mov %r10, 72(%rdi); mov %r11, 80(%rdi); mov %r12, 88(%rdi); mov %r13, 96(%rdi)\n"
        "mov %r14, 104(%rdi); mov %r15, 112(%rdi)\n"
        "pop 40(%rdi)\n"
        "xor %eax, %eax\n"
        "3: pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "ret\n"
        ".globl l2_handlers\n"
        ".balign 4\n"
        "l2_handlers:\n" // one VMCALL for each vector, 4 bytes apart
        ".rept 256; .balign 4; vmcall; .endr\n");

// --- VMX instructions: 0, or CF and ZF ---

u64 vmwrite(u64 field, u64 value)
{
    u64 flags;

    __asm__ volatile("vmwrite %2, %1; pushfq; pop %0"
                     : "=r"(flags)
                     : "r"(field), "r"(value)
                     : "cc");
    return flags & (RFLAGS_CF | RFLAGS_ZF);
}

u64 vmread_flags(u64 field, u64 *value)
{
    u64 flags;

    __asm__ volatile("vmread %2, %1; pushfq; pop %0"
                     : "=r"(flags), "=r"(*value)
                     : "r"(field)
                     : "cc");
    return flags & (RFLAGS_CF | RFLAGS_ZF);
}

u64 vmread(u64 field)
{
    u64 value = 0;

    vmread_flags(field, &value);
    return value;
}

#define POINTER_INSN(name)                           \
    u64 name(void *region)                           \
    {                                                \
        u64 flags, address = (u64)region;            \
                                                     \
        __asm__ volatile(#name " %1; pushfq; pop %0" \
                         : "=r"(flags)               \
                         : "m"(address)              \
                         : "cc", "memory");          \
        return flags & (RFLAGS_CF | RFLAGS_ZF);      \
    }
POINTER_INSN(vmxon)
POINTER_INSN(vmclear)
POINTER_INSN(vmptrld)

// --- the VMCS ---

u32 control(u32 msr, u32 wanted)
{
    u64 capability = msr_read(msr);

    return (wanted | (u32)capability) & (u32)(capability >> 32);
}

u32 capability_msr(u32 plain, u32 true_one)
{
    return basic & VMX_BASIC_TRUE_CTLS ? true_one : plain;
}

void put_segment(unsigned n, u16 selector, u32 access, u32 limit, u64 base)
{
    vmwrite(GUEST_ES_SELECTOR + n * 2, selector);
    vmwrite(GUEST_ES_ACCESS + n * 2, access);
    vmwrite(GUEST_ES_LIMIT + n * 2, limit);
    vmwrite(GUEST_ES_BASE + n * 2, base);
}

void put_guest(const void *code)
{
    static const struct {
        u16 field;
        u64 value;
    } values[] = {
        {GUEST_GDTR_LIMIT, 0x67},    {GUEST_IDTR_LIMIT, sizeof(l2_idt) - 1},
        {GUEST_DR7, DR7_FIXED},      {GUEST_RFLAGS, RFLAGS_FIXED},
        {GUEST_SYSENTER_CS, 0},      {GUEST_SYSENTER_ESP, 0},
        {GUEST_SYSENTER_EIP, 0},     {GUEST_DEBUGCTL, 0},
        {GUEST_INTERRUPTIBILITY, 0}, {GUEST_ACTIVITY_STATE, 0},
        {GUEST_PENDING_DBG, 0},      {VMCS_LINK_POINTER, ~0ull},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(values); i++)
        vmwrite(values[i].field, values[i].value);
    for (unsigned n = 0; n < 6; n++)
        put_segment(n, DATA, 0xc093, ~0u, 0);
    put_segment(1, CODE64, 0xa09b, ~0u, 0);
    put_segment(6, 0, 0x10000, 0, 0); // LDTR
    put_segment(7, TSS, 0x8b, 103, (u64)&tss);
    vmwrite(GUEST_GDTR_BASE, (u64)gdt);
    vmwrite(GUEST_IDTR_BASE, (u64)l2_idt);
    vmwrite(GUEST_CR0, read_cr0());
    vmwrite(GUEST_CR3, read_cr3());
    vmwrite(GUEST_CR4, read_cr4());
    vmwrite(GUEST_EFER, msr_read(MSR_EFER));
    vmwrite(GUEST_PAT, msr_read(MSR_PAT));
    vmwrite(GUEST_RSP, (u64)(l2_stack + sizeof(l2_stack)));
    vmwrite(GUEST_RIP, (u64)code);
}

void put_host(void)
{
    vmwrite(HOST_CS_SELECTOR, CODE64);
    vmwrite(HOST_SS_SELECTOR, DATA);
    vmwrite(HOST_DS_SELECTOR, DATA);
    vmwrite(HOST_ES_SELECTOR, DATA);
    vmwrite(HOST_FS_SELECTOR, 0);
    vmwrite(HOST_GS_SELECTOR, 0);
    vmwrite(HOST_TR_SELECTOR, TSS);
    vmwrite(HOST_FS_BASE, msr_read(MSR_FS_BASE));
    vmwrite(HOST_GS_BASE, msr_read(MSR_GS_BASE));
    vmwrite(HOST_TR_BASE, (u64)&tss);
    vmwrite(HOST_GDTR_BASE, (u64)gdt);
    vmwrite(HOST_IDTR_BASE, (u64)idt);
    vmwrite(HOST_CR0, read_cr0());
    vmwrite(HOST_CR3, read_cr3());
    vmwrite(HOST_CR4, read_cr4());
    vmwrite(HOST_SYSENTER_CS, 0);
    vmwrite(HOST_SYSENTER_ESP, 0);
    vmwrite(HOST_SYSENTER_EIP, 0);
    vmwrite(HOST_EFER, msr_read(MSR_EFER));
    vmwrite(HOST_PAT, msr_read(MSR_PAT));
    vmwrite(HOST_RIP, (u64)vmx_exit);
}

void set_pin(u32 wanted)
{
    vmwrite(PIN_BASED_CONTROLS,
            control(capability_msr(MSR_VMX_PINBASED_CTLS, MSR_VMX_TRUE_PINBASED_CTLS), wanted));
}

void set_primary(u32 wanted)
{
    vmwrite(PRIMARY_CONTROLS,
            control(capability_msr(MSR_VMX_PROCBASED_CTLS, MSR_VMX_TRUE_PROCBASED_CTLS), wanted));
}

void set_exit(u32 wanted)
{
    vmwrite(EXIT_CONTROLS,
            control(capability_msr(MSR_VMX_EXIT_CTLS, MSR_VMX_TRUE_EXIT_CTLS), wanted));
}

void set_entry(u32 wanted)
{
    vmwrite(ENTRY_CONTROLS,
            control(capability_msr(MSR_VMX_ENTRY_CTLS, MSR_VMX_TRUE_ENTRY_CTLS), wanted));
}

bool offers(u32 msr, u32 bit)
{
    return msr_read(msr) >> 32 & bit;
}

void put_controls(void)
{
    static const u16 zero[] = {
        EXCEPTION_BITMAP,     PF_ERROR_CODE_MASK,       PF_ERROR_CODE_MATCH,  CR3_TARGET_COUNT,
        EXIT_MSR_STORE_COUNT, EXIT_MSR_LOAD_COUNT,      ENTRY_MSR_LOAD_COUNT, CR0_GUEST_HOST_MASK,
        CR4_GUEST_HOST_MASK,  ENTRY_INTERRUPTION_INFO,  CR0_READ_SHADOW,      CR4_READ_SHADOW,
        TSC_OFFSET,           ENTRY_INSTRUCTION_LENGTH,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(zero); i++)
        vmwrite(zero[i], 0);
    set_pin(0);
    set_primary(PRIMARY_HLT);
    set_exit(EXIT_CTL_HOST_64 | EXIT_CTL_SAVE_DEBUG | EXIT_CTL_SAVE_PAT | EXIT_CTL_LOAD_PAT |
             EXIT_CTL_SAVE_EFER | EXIT_CTL_LOAD_EFER);
    set_entry(ENTRY_CTL_IA32E_GUEST | ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT |
              ENTRY_CTL_LOAD_EFER);
}

void *new_region(void)
{
    u32 *region = pages(1);

    region[0] = (u32)(basic & VMX_BASIC_REVISION);
    return region;
}

// A fresh VMCS for an L2 that runs `code`.
void init(const void *code)
{
    memset(l2_registers, 0, sizeof(l2_registers));
    vmclear(vmcs_region);
    vmptrld(vmcs_region);
    launched = false;
    put_controls();
    put_host();
    put_guest(code);
}

// --- runs and their results ---

// The exit reason, or FAILED.
u64 run(void)
{
    u64 flags = vmx_enter(launched);

    // An exit leaves a limit of ffffh, as if the tables went on
    __asm__ volatile("lidt %0" : : "m"((struct table_pointer){sizeof(idt) - 1, (u64)idt}));
    if (flags)
        return FAILED | flags;
    if (!(vmread(EXIT_REASON) & EXIT_REASON_ENTRY_FAILURE))
        launched = true;
    return vmread(EXIT_REASON);
}

u64 run_code(const void *code)
{
    init(code);
    return run();
}

void report_exit(bool ok, const char *what)
{
    report(ok, "%s: reason %#llx, qualification %#llx, interruption %#llx", what,
           LLU(vmread(EXIT_REASON)), LLU(vmread(EXIT_QUALIFICATION)),
           LLU(vmread(EXIT_INTERRUPTION_INFO)));
}

bool at(const void *code)
{
    return vmread(GUEST_RIP) == (u64)code;
}

bool in_handler(unsigned vector)
{
    return vmread(EXIT_REASON) == REASON_VMCALL &&
           vmread(GUEST_RIP) == (u64)l2_handlers + 4 * (u64)vector;
}

u64 pushed(unsigned i)
{
    return ((const u64 *)vmread(GUEST_RSP))[i];
}

// An exit by an exception, with this type, error code bit and vector.
bool excepted(u64 type, unsigned vector, bool error)
{
    return vmread(EXIT_REASON) == REASON_EXCEPTION_NMI &&
           vmread(EXIT_INTERRUPTION_INFO) ==
               (INFO_VALID | type << INFO_TYPE_SHIFT | vector | (error ? INFO_ERROR_CODE : 0));
}

void put_l2_idt(void)
{
    for (unsigned i = 0; i < 256; i++) {
        u64 handler = (u64)l2_handlers + 4 * i;

        l2_idt[i * 2] = (handler & 0xffff) | CODE64 << 16 | (u64)GATE_INTERRUPT << 40 |
                        (handler >> 16 & 0xffff) << 48;
        l2_idt[i * 2 + 1] = handler >> 32;
    }
}

bool vmx_start(void)
{
    u64 lock = msr_read(MSR_FEATURE_CONTROL);

    if (!(cpuid(1, 0).ecx & CPUID_VMX))
        return false;
    if (!(lock & FEATURE_CONTROL_LOCK))
        msr_write(MSR_FEATURE_CONTROL,
                  lock | FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX);
    basic = msr_read(MSR_VMX_BASIC);
    vmxon_region = new_region();
    vmcs_region = new_region();
    write_cr4(read_cr4() | msr_read(MSR_VMX_CR4_FIXED0) | CR4_VMXE);
    write_cr0(read_cr0() | msr_read(MSR_VMX_CR0_FIXED0));
    put_l2_idt();
    return vmxon(vmxon_region) == 0;
}

bool use_secondary(u32 primary, u32 secondary)
{
    primary |= PRIMARY_SECONDARY;
    if ((msr_read(MSR_VMX_PROCBASED_CTLS) >> 32 & primary) != primary ||
        (msr_read(MSR_VMX_PROCBASED_CTLS2) >> 32 & secondary) != secondary)
        return false;
    set_primary(PRIMARY_HLT | primary);
    vmwrite(SECONDARY_CONTROLS, secondary);
    return true;
}
