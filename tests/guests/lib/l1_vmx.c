// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The small guests' minimal VMX hypervisor (SDM vol. 3 "VMX Instruction Reference", "VM Entries").

#include "l1_vmx.h"

enum { CPUID_VMX = 1 << 5 };

u64 l1_registers[L1_REGISTERS];
void *l1_vmcs;
static void *vmxon_region;
static u8 l2_stack[4096] ALIGNED(16);

extern u64 l1_saved[7]; // RSP, CR3, CR4, GDTR, IDTR
u64 l1_saved[7];

// HOST_RSP and the host's tables may hold anything: nothing is pushed before RSP is back.
#define SAVE_REGISTERS                                                                 \
    "mov %rdi, l1_registers + 40(%rip)\n"                                              \
    "lea l1_registers(%rip), %rdi\n"                                                   \
    "mov %rax, 0(%rdi); mov %rbx, 8(%rdi); mov %rcx, 16(%rdi); mov %rdx, 24(%rdi)\n"   \
    "mov %rsi, 32(%rdi); mov %rbp, 48(%rdi); mov %r8, 56(%rdi); mov %r9, 64(%rdi)\n"   \
    "mov %r10, 72(%rdi); mov %r11, 80(%rdi); mov %r12, 88(%rdi); mov %r13, 96(%rdi)\n" \
    "mov %r14, 104(%rdi); mov %r15, 112(%rdi)\n"                                       \
    "mov l1_saved(%rip), %rsp\n"
__asm__(".globl l1_vmx_switch, l1_vmx_exit, l1_vmx_quick_exit\n"
        "l1_vmx_switch:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "mov %rsp, l1_saved(%rip)\n"
        "mov %cr3, %rax; mov %rax, l1_saved + 8(%rip)\n"
        "mov %cr4, %rax; mov %rax, l1_saved + 16(%rip)\n"
        "sgdt l1_saved + 24(%rip); sidt l1_saved + 40(%rip)\n"
        "test %rdi, %rdi\n"
        "lea l1_registers(%rip), %rdi\n"
        "mov 0(%rdi), %rax; mov 8(%rdi), %rbx; mov 16(%rdi), %rcx; mov 24(%rdi), %rdx\n"
        "mov 32(%rdi), %rsi; mov 48(%rdi), %rbp; mov 56(%rdi), %r8; mov 64(%rdi), %r9\n"
        "mov 72(%rdi), %r10; mov 80(%rdi), %r11; mov 88(%rdi), %r12; mov 96(%rdi), %r13\n"
        "mov 104(%rdi), %r14; mov 112(%rdi), %r15; mov 40(%rdi), %rdi\n"
        "jne 1f\n"
        "vmlaunch\n"
        "jmp 2f\n"
        "1: vmresume\n"
        "2: pushfq; pop %rax; and $0x41, %eax\n"
        "jmp 3f\n"
        "l1_vmx_exit:\n" SAVE_REGISTERS "lgdt l1_saved + 24(%rip); lidt l1_saved + 40(%rip)\n"
        "mov $0x10, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss\n"
        "xor %eax, %eax; mov %eax, %fs; mov %eax, %gs\n"
        "push $8; lea 4f(%rip), %rax; push %rax; lretq\n"
        "4: mov l1_saved + 8(%rip), %rax; mov %rax, %cr3\n"
        "mov l1_saved + 16(%rip), %rax; mov %rax, %cr4\n"
        "5: mov $-1, %rax\n"
        "3: pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "ret\n"
        "l1_vmx_quick_exit:\n" SAVE_REGISTERS "jmp 5b\n");

u32 l1_vmx_control(u32 msr, u32 wanted)
{
    bool exact = msr_read(MSR_VMX_BASIC) & VMX_BASIC_TRUE_CTLS && msr <= MSR_VMX_ENTRY_CTLS;
    u64 capability =
        msr_read(exact ? msr + MSR_VMX_TRUE_PINBASED_CTLS - MSR_VMX_PINBASED_CTLS : msr);

    return (wanted | (u32)capability) & (u32)(capability >> 32);
}

bool l1_vmx_offers(u32 msr, u32 bit)
{
    return msr_read(msr) >> 32 & bit;
}

void *l1_vmx_region(void)
{
    u32 *region = pages(1);

    region[0] = (u32)(msr_read(MSR_VMX_BASIC) & VMX_BASIC_REVISION);
    return region;
}

bool l1_vmx_start(void)
{
    u64 lock;

    if (!(cpuid(1, 0).ecx & CPUID_VMX))
        return false;
    lock = msr_read(MSR_FEATURE_CONTROL);
    if (!(lock & FEATURE_CONTROL_LOCK))
        msr_write(MSR_FEATURE_CONTROL,
                  lock | FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX);
    vmxon_region = l1_vmx_region();
    l1_vmcs = l1_vmx_region();
    write_cr4(read_cr4() | msr_read(MSR_VMX_CR4_FIXED0) | CR4_VMXE);
    write_cr0(read_cr0() | msr_read(MSR_VMX_CR0_FIXED0));
    return vmxon((u64)vmxon_region) == 0;
}

static void put_segment(unsigned n, u16 selector, u32 access, u32 limit, u64 base)
{
    vmwrite(GUEST_ES_SELECTOR + n * 2, selector);
    vmwrite(GUEST_ES_ACCESS + n * 2, access);
    vmwrite(GUEST_ES_LIMIT + n * 2, limit);
    vmwrite(GUEST_ES_BASE + n * 2, base);
}

static void put_guest(const void *code)
{
    for (unsigned n = 0; n < 6; n++)
        put_segment(n, DATA, 0xc093, ~0u, 0);
    put_segment(1, CODE64, 0xa09b, ~0u, 0);
    put_segment(6, 0, 0x10000, 0, 0); // LDTR
    put_segment(7, TSS, 0x8b, 103, (u64)&tss);
    vmwrite(GUEST_GDTR_BASE, (u64)gdt);
    vmwrite(GUEST_GDTR_LIMIT, 0x67);
    vmwrite(GUEST_IDTR_BASE, (u64)idt);
    vmwrite(GUEST_IDTR_LIMIT, sizeof(idt) - 1);
    vmwrite(GUEST_DR7, DR7_FIXED);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED);
    vmwrite(VMCS_LINK_POINTER, ~0ull);
    vmwrite(GUEST_CR0, read_cr0());
    vmwrite(GUEST_CR3, read_cr3());
    vmwrite(GUEST_CR4, read_cr4());
    vmwrite(GUEST_EFER, msr_read(MSR_EFER));
    vmwrite(GUEST_PAT, msr_read(MSR_PAT));
    vmwrite(GUEST_RSP, (u64)(l2_stack + sizeof(l2_stack)));
    vmwrite(GUEST_RIP, (u64)code);
}

static void put_host(void)
{
    static const u16 data[] = {HOST_SS_SELECTOR, HOST_DS_SELECTOR, HOST_ES_SELECTOR};

    for (unsigned i = 0; i < ARRAY_SIZE(data); i++)
        vmwrite(data[i], DATA);
    vmwrite(HOST_CS_SELECTOR, CODE64);
    vmwrite(HOST_TR_SELECTOR, TSS);
    vmwrite(HOST_TR_BASE, (u64)&tss);
    vmwrite(HOST_GDTR_BASE, (u64)gdt);
    vmwrite(HOST_IDTR_BASE, (u64)idt);
    vmwrite(HOST_CR0, read_cr0());
    vmwrite(HOST_CR3, read_cr3());
    vmwrite(HOST_CR4, read_cr4());
    vmwrite(HOST_EFER, msr_read(MSR_EFER));
    vmwrite(HOST_PAT, msr_read(MSR_PAT));
    vmwrite(HOST_RSP, (u64)(l2_stack + sizeof(l2_stack)));
    vmwrite(HOST_RIP, (u64)l1_vmx_exit);
}

static void put_controls(void)
{
    vmwrite(PIN_BASED_CONTROLS, l1_vmx_control(MSR_VMX_PINBASED_CTLS, 0));
    vmwrite(PRIMARY_CONTROLS, l1_vmx_control(MSR_VMX_PROCBASED_CTLS, PRIMARY_HLT));
    vmwrite(EXIT_CONTROLS,
            l1_vmx_control(MSR_VMX_EXIT_CTLS, EXIT_CTL_HOST_64 | EXIT_CTL_SAVE_DEBUG |
                                                  EXIT_CTL_SAVE_PAT | EXIT_CTL_LOAD_PAT |
                                                  EXIT_CTL_SAVE_EFER | EXIT_CTL_LOAD_EFER));
    vmwrite(ENTRY_CONTROLS,
            l1_vmx_control(MSR_VMX_ENTRY_CTLS, ENTRY_CTL_IA32E_GUEST | ENTRY_CTL_LOAD_DEBUG |
                                                   ENTRY_CTL_LOAD_PAT | ENTRY_CTL_LOAD_EFER));
}

void l1_vmx_init(const void *code)
{
    memset(l1_registers, 0, sizeof(l1_registers));
    vmclear((u64)l1_vmcs);
    vmptrld((u64)l1_vmcs);
    for (u64 field = 0; field < 0x6c20; field += 2)
        vmwrite(field, 0); // those that are there
    put_controls();
    put_host();
    put_guest(code);
}

u64 l1_vmx_enter(bool resume)
{
    u64 flags = l1_vmx_switch(resume);

    return flags == ~0ull ? vmread(EXIT_REASON) : L1_FAILED | flags;
}
