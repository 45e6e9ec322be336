// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small hypervisor: VMXON, a VMCS, VMLAUNCH and VMRESUME of a guest of a few instructions that exits by CPUID, HLT and others;
// what the VMCS and the registers hold after each exit; with EPT off and on; failures (SDM vol. 3 "VM Entries", "VM Exits").

#include <arch/x86/vmx.h>

#include "guest.h"

enum { CPUID_VMX = 1 << 5, REGISTERS = 15 };

static void *vmxon_region, *vmcs_region;
static u64 basic;

// RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8 .. R15 of the guest; RSP is in the VMCS.
extern u64 l2_registers[REGISTERS];
u64 l2_registers[REGISTERS];

// VMLAUNCH (0) or VMRESUME. Returns RFLAGS & (CF | ZF) if that failed, 0 after an exit.
u64 vmx_enter(u64 resume);
extern char vmx_exit[];
__asm__(".globl vmx_enter\n"
        "vmx_enter:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "mov $0x6c14, %eax; vmwrite %rsp, %rax\n" // HOST_RSP
        "test %rdi, %rdi\n"
        "lea l2_registers(%rip), %rdi\n"
        "mov 0(%rdi), %rax; mov 8(%rdi), %rbx; mov 16(%rdi), %rcx; mov 24(%rdi), %rdx\n"
        "mov 32(%rdi), %rsi; mov 48(%rdi), %rbp; mov 56(%rdi), %r8; mov 64(%rdi), %r9\n"
        "mov 72(%rdi), %r10; mov 80(%rdi), %r11; mov 88(%rdi), %r12; mov 96(%rdi), %r13\n"
        "mov 104(%rdi), %r14; mov 112(%rdi), %r15; mov 40(%rdi), %rdi\n"
        "jnz 1f\n"
        "vmlaunch\n"
        "jmp 2f\n"
        "1: vmresume\n"
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
        "ret\n");

// The guests.
extern char l2_start[], l2_after_cpuid[], l2_hlt[], l2_vmcall[], l2_ud[], l2_write[], l2_io[],
    l2_end[];
__asm__("l2_start: cpuid\n"
        "l2_after_cpuid: mov %rbx, %r15\n"
        "add $1, %r8\n"
        "l2_hlt: hlt\n"
        "l2_vmcall: vmcall\n"
        "l2_ud: ud2\n"
        "l2_write: mov %rax, (%rdi)\n"
        "l2_io: out %al, $0x80\n"
        "l2_end: ud2\n");

// --- VMX instructions: 0, or CF and ZF ---

static u64 vmwrite(u64 field, u64 value)
{
    u64 flags;

    __asm__ volatile("vmwrite %2, %1; pushfq; pop %0"
                     : "=r"(flags)
                     : "r"(field), "r"(value)
                     : "cc");
    return flags & (RFLAGS_CF | RFLAGS_ZF);
}

static u64 vmread(u64 field)
{
    u64 value;

    __asm__ volatile("vmread %1, %0" : "=r"(value) : "r"(field) : "cc");
    return value;
}

#define POINTER_INSN(name)                           \
    static u64 name(void *region)                    \
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

static void vmxon_ud(void *region)
{
    vmxon(region);
}

// --- the VMCS ---

static u32 control(u32 msr, u32 wanted)
{
    u64 capability = msr_read(msr);

    return (wanted | (u32)capability) & (u32)(capability >> 32);
}

static u32 capability_msr(u32 plain, u32 true_one)
{
    return basic & VMX_BASIC_TRUE_CTLS ? true_one : plain;
}

static void put_segment(unsigned n, u16 selector, u32 access, u32 limit, u64 base)
{
    vmwrite(GUEST_ES_SELECTOR + n * 2, selector);
    vmwrite(GUEST_ES_ACCESS + n * 2, access);
    vmwrite(GUEST_ES_LIMIT + n * 2, limit);
    vmwrite(GUEST_ES_BASE + n * 2, base);
}

static void put_guest(void)
{
    struct table_pointer gdtr, idtr;

    __asm__ volatile("sgdt %0; sidt %1" : "=m"(gdtr), "=m"(idtr));
    for (unsigned n = 0; n < 6; n++)
        put_segment(n, DATA, 0xc093, ~0u, 0);
    put_segment(1, CODE64, 0xa09b, ~0u, 0);
    put_segment(6, 0, 0x10000, 0, 0); // LDTR
    put_segment(7, TSS, 0x8b, 103, (u64)&tss);
    vmwrite(GUEST_GDTR_BASE, gdtr.base);
    vmwrite(GUEST_GDTR_LIMIT, gdtr.limit);
    vmwrite(GUEST_IDTR_BASE, idtr.base);
    vmwrite(GUEST_IDTR_LIMIT, idtr.limit);
    vmwrite(GUEST_CR0, read_cr0());
    vmwrite(GUEST_CR3, read_cr3());
    vmwrite(GUEST_CR4, read_cr4());
    vmwrite(GUEST_DR7, DR7_FIXED);
    vmwrite(GUEST_RSP, (u64)pages(1) + PAGE_SIZE);
    vmwrite(GUEST_RIP, (u64)l2_start);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED);
    vmwrite(GUEST_SYSENTER_CS, 0);
    vmwrite(GUEST_SYSENTER_ESP, 0);
    vmwrite(GUEST_SYSENTER_EIP, 0);
    vmwrite(GUEST_DEBUGCTL, 0);
    vmwrite(GUEST_INTERRUPTIBILITY, 0);
    vmwrite(GUEST_ACTIVITY_STATE, 0);
    vmwrite(GUEST_PENDING_DBG, 0);
    vmwrite(VMCS_LINK_POINTER, ~0ull);
    vmwrite(GUEST_EFER, msr_read(MSR_EFER));
}

static void put_host(void)
{
    struct table_pointer gdtr, idtr;

    __asm__ volatile("sgdt %0; sidt %1" : "=m"(gdtr), "=m"(idtr));
    vmwrite(HOST_CS_SELECTOR, CODE64);
    vmwrite(HOST_SS_SELECTOR, DATA);
    vmwrite(HOST_DS_SELECTOR, DATA);
    vmwrite(HOST_ES_SELECTOR, DATA);
    vmwrite(HOST_FS_SELECTOR, 0);
    vmwrite(HOST_GS_SELECTOR, 0);
    vmwrite(HOST_TR_SELECTOR, TSS);
    vmwrite(HOST_FS_BASE, 0);
    vmwrite(HOST_GS_BASE, 0);
    vmwrite(HOST_TR_BASE, (u64)&tss);
    vmwrite(HOST_GDTR_BASE, gdtr.base);
    vmwrite(HOST_IDTR_BASE, idtr.base);
    vmwrite(HOST_CR0, read_cr0());
    vmwrite(HOST_CR3, read_cr3());
    vmwrite(HOST_CR4, read_cr4());
    vmwrite(HOST_SYSENTER_CS, 0);
    vmwrite(HOST_SYSENTER_ESP, 0);
    vmwrite(HOST_SYSENTER_EIP, 0);
    vmwrite(HOST_EFER, msr_read(MSR_EFER));
    vmwrite(HOST_RIP, (u64)vmx_exit);
}

static u64 *ept; // PML4, PDPT, then four directories

static void make_ept(void)
{
    ept = pages(6);
    ept[0] = (u64)(ept + 512) | 7;
    for (unsigned i = 0; i < 4; i++)
        ept[512 + i] = (u64)(ept + 1024 + 512 * i) | 7;
    for (u64 i = 0; i < 2048; i++)
        ept[1024 + i] = i * SIZE_2M | 0xb7; // write-back, 2 MiB, RWX
}

static void put_controls(bool use_ept)
{
    u32 primary = PRIMARY_HLT | (use_ept ? PRIMARY_SECONDARY : 0);

    vmwrite(PIN_BASED_CONTROLS,
            control(capability_msr(MSR_VMX_PINBASED_CTLS, MSR_VMX_TRUE_PINBASED_CTLS), 0));
    vmwrite(PRIMARY_CONTROLS,
            control(capability_msr(MSR_VMX_PROCBASED_CTLS, MSR_VMX_TRUE_PROCBASED_CTLS), primary));
    if (use_ept) {
        vmwrite(SECONDARY_CONTROLS, control(MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT));
        vmwrite(EPT_POINTER, (u64)ept | 3 << EPTP_LEVELS_SHIFT | EPTP_TYPE_WB);
    }
    vmwrite(EXIT_CONTROLS,
            control(capability_msr(MSR_VMX_EXIT_CTLS, MSR_VMX_TRUE_EXIT_CTLS), EXIT_CTL_HOST_64));
    vmwrite(ENTRY_CONTROLS, control(capability_msr(MSR_VMX_ENTRY_CTLS, MSR_VMX_TRUE_ENTRY_CTLS),
                                    ENTRY_CTL_IA32E_GUEST));
    vmwrite(EXCEPTION_BITMAP, BIT(VECTOR_UD));
    vmwrite(PF_ERROR_CODE_MASK, 0);
    vmwrite(PF_ERROR_CODE_MATCH, 0);
    vmwrite(CR3_TARGET_COUNT, 0);
    vmwrite(EXIT_MSR_STORE_COUNT, 0);
    vmwrite(EXIT_MSR_LOAD_COUNT, 0);
    vmwrite(ENTRY_MSR_LOAD_COUNT, 0);
    vmwrite(ENTRY_INTERRUPTION_INFO, 0);
    vmwrite(CR0_GUEST_HOST_MASK, 0);
    vmwrite(CR4_GUEST_HOST_MASK, 0);
}

static void *new_region(void)
{
    u32 *region = pages(1);

    region[0] = (u32)(basic & VMX_BASIC_REVISION);
    return region;
}

static void make_vmcs(bool use_ept)
{
    vmcs_region = new_region();
    report(vmclear(vmcs_region) == 0 && vmptrld(vmcs_region) == 0, "VMCLEAR and VMPTRLD");
    put_controls(use_ept);
    put_host();
    put_guest();
}

// --- the tests ---

static u64 qualification, information, gpa; // of the last exit

static bool exited(u64 entered, u64 reason, const void *rip, u64 length)
{
    u64 found = vmread(EXIT_REASON), at = vmread(GUEST_RIP),
        bytes = vmread(EXIT_INSTRUCTION_LENGTH);

    qualification = vmread(EXIT_QUALIFICATION);
    information = vmread(EXIT_INTERRUPTION_INFO);
    gpa = vmread(GUEST_PHYSICAL_ADDRESS);
    if (entered == 0 && found == reason && at == (u64)rip && (length == 0 || bytes == length))
        return true;
    print("  flags %#llx, error %llu, reason %#llx at %#llx, length %llu, qualification %#llx\n",
          (unsigned long long)entered, (unsigned long long)vmread(VM_INSTRUCTION_ERROR),
          (unsigned long long)found, (unsigned long long)at, (unsigned long long)bytes,
          (unsigned long long)vmread(EXIT_QUALIFICATION));
    return false;
}

static void test_round_trip(const char *mode)
{
    bool ok;
    u64 cr3 = read_cr3(), efer = msr_read(MSR_EFER), cr0 = read_cr0(), entered;
    struct table_pointer idtr;

    for (unsigned i = 0; i < REGISTERS; i++)
        l2_registers[i] = 0x1111111111111111ull * i;
    entered = vmx_enter(false);
    report(exited(entered, REASON_CPUID, l2_start, 2), "%s: CPUID exits", mode);
    report(l2_registers[0] == 0 && l2_registers[1] == 0x1111111111111111 &&
               l2_registers[14] == 0xeeeeeeeeeeeeeeee,
           "%s: registers went in and came out", mode);
    __asm__ volatile("sidt %0" : "=m"(idtr));
    report(read_cr3() == cr3 && msr_read(MSR_EFER) == efer && read_cr0() == cr0 &&
               idtr.limit == 0xffff,
           "%s: the host's CR0, CR3, EFER and IDTR are as they must be", mode);
    __asm__ volatile("lidt %0" : : "m"((struct table_pointer){sizeof(idt) - 1, (u64)idt}));
    vmwrite(GUEST_RIP, (u64)l2_after_cpuid); // as a hypervisor emulates CPUID
    l2_registers[1] = 0xfeedface12345678;
    entered = vmx_enter(true);
    report(exited(entered, REASON_HLT, l2_hlt, 1), "%s: HLT exits", mode);
    report(l2_registers[14] == 0xfeedface12345678 && l2_registers[7] == 0x7777777777777778,
           "%s: the guest worked with what it got", mode);
    vmwrite(GUEST_RIP, (u64)l2_vmcall);
    report(exited(vmx_enter(true), REASON_VMCALL, l2_vmcall, 3), "%s: VMCALL exits", mode);
    vmwrite(GUEST_RIP, (u64)l2_ud);
    ok = exited(vmx_enter(true), REASON_EXCEPTION_NMI, l2_ud, 0);
    report(ok && information == (BIT(31) | 3 << 8 | VECTOR_UD), "%s: #UD exits, information %#llx",
           mode, (unsigned long long)information);
}

static volatile u32 host_interrupts;

static void count_interrupt(struct trap *trap)
{
    (void)trap;
    host_interrupts++;
    apic_eoi();
}

static void test_interrupt(const char *mode)
{
    u64 pin = vmread(PIN_BASED_CONTROLS);

    trap_handlers[0x51] = count_interrupt;
    host_interrupts = 0;
    vmwrite(PIN_BASED_CONTROLS, pin | PIN_EXTERNAL_INTERRUPT);
    vmwrite(GUEST_RIP, (u64)l2_after_cpuid);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    apic_icr(0, ICR_SELF | ICR_ASSERT | 0x51);
    report(exited(vmx_enter(true), REASON_EXTERNAL_INTERRUPT, l2_after_cpuid, 0),
           "%s: an external interrupt exits", mode);
    sti();
    cli();
    report(host_interrupts == 1, "%s: and the host takes it", mode);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED);
    apic_icr(0, ICR_SELF | ICR_ASSERT | 0x51);
    // Bochs leaves it pending if the guest is entered with IF = 0 (MACHINES.md)
    report_cpu(MACHINE_BOCHS, exited(vmx_enter(true), REASON_EXTERNAL_INTERRUPT, l2_after_cpuid, 0),
               "%s: also when the guest's IF is clear", mode);
    sti();
    cli();
    report(host_interrupts == 2, "%s: and the host takes it", mode);
    vmwrite(PIN_BASED_CONTROLS, pin);
}

static void test_injection(const char *mode)
{
    u64 rsp = vmread(GUEST_RSP), *frame;

    vmwrite(GUEST_RIP, (u64)l2_after_cpuid);
    vmwrite(ENTRY_INTERRUPTION_INFO, BIT(31) | BIT(11) | 3 << 8 | VECTOR_GP);
    vmwrite(ENTRY_EXCEPTION_ERROR_CODE, 0x1234);
    // its handler is l2_end, where UD2 exits
    set_gate(VECTOR_GP, l2_end, CODE64, 0, GATE_INTERRUPT);
    report(exited(vmx_enter(true), REASON_EXCEPTION_NMI, l2_end, 0),
           "%s: an injected #GP reaches its handler", mode);
    set_gate(VECTOR_GP, trap_stubs + VECTOR_GP * 16, CODE64, 0, GATE_INTERRUPT);
    frame = (u64 *)vmread(GUEST_RSP);
    report(frame[0] == 0x1234 && frame[1] == (u64)l2_after_cpuid, "%s: with its error code and RIP",
           mode);
    report(!(vmread(ENTRY_INTERRUPTION_INFO) & BIT(31)), "%s: the information's valid bit is clear",
           mode);
    vmwrite(GUEST_RSP, rsp);
}

static void test_io(const char *mode)
{
    bool ok;
    u64 primary = vmread(PRIMARY_CONTROLS);
    u8 *bitmaps = pages(2);

    memset(bitmaps, 0xff, 2 * PAGE_SIZE);
    vmwrite(PRIMARY_CONTROLS, primary | PRIMARY_IO_BITMAPS);
    vmwrite(IO_BITMAP_A, (u64)bitmaps);
    vmwrite(IO_BITMAP_B, (u64)bitmaps + PAGE_SIZE);
    vmwrite(GUEST_RIP, (u64)l2_io);
    ok = exited(vmx_enter(true), REASON_IO, l2_io, 2);
    report(ok && qualification == (0x80 << 16 | 0x40), "%s: OUT exits, qualification %#llx", mode,
           (unsigned long long)qualification);
    memset(bitmaps, 0, 2 * PAGE_SIZE);
    report(exited(vmx_enter(true), REASON_EXCEPTION_NMI, l2_end, 0),
           "%s: and does not if the bitmap says so", mode);
    vmwrite(PRIMARY_CONTROLS, primary);
}

static void invept(void)
{
    struct {
        u64 pointer, reserved;
    } descriptor = {(u64)ept | 3 << EPTP_LEVELS_SHIFT | EPTP_TYPE_WB, 0};

    __asm__ volatile("invept %0, %1" : : "m"(descriptor), "r"(1ull) : "cc", "memory");
}

static void test_ept_violation(void)
{
    bool ok;
    u64 *entry = &ept[1024 + 0x30000000 / SIZE_2M];

    *entry = 0;
    invept();
    vmwrite(GUEST_RIP, (u64)l2_write);
    l2_registers[0] = 0x600df00d;
    l2_registers[5] = 0x30000008;
    ok = exited(vmx_enter(true), REASON_EPT_VIOLATION, l2_write, 0);
    report(ok && (qualification & 0x1bf) == 0x182 && gpa == 0x30000008 &&
               vmread(GUEST_LINEAR_ADDRESS) == 0x30000008,
           "EPT violation: qualification %#llx, address %#llx", (unsigned long long)qualification,
           (unsigned long long)gpa);
    // mapped elsewhere now: the guest's write must land there
    *entry = 0x2000000 | 0xb7;
    report(exited(vmx_enter(true), REASON_EXCEPTION_NMI, l2_end, 0),
           "it goes on when the page is there");
    report(*(volatile u64 *)0x2000008 == 0x600df00d, "and its write lands where L1 mapped it");
    *entry = 0x30000000 | 0xc6 | 0x80; // write without read
    invept();
    vmwrite(GUEST_RIP, (u64)l2_write);
    report(exited(vmx_enter(true), REASON_EPT_MISCONFIGURATION, l2_write, 0),
           "EPT misconfiguration");
    *entry = 0x30000000 | 0xb7;
    invept();
}

static void test_failures(void)
{
    report(vmx_enter(false) == RFLAGS_ZF && vmread(VM_INSTRUCTION_ERROR) == 4,
           "VMLAUNCH of a launched VMCS: error 4");
    report(vmwrite(0xf000, 0) == RFLAGS_ZF && vmread(VM_INSTRUCTION_ERROR) == 12,
           "VMWRITE of no field: error 12");
    report(vmptrld(vmxon_region) == RFLAGS_ZF && vmread(VM_INSTRUCTION_ERROR) == 10,
           "VMPTRLD of the VMXON region: error 10");
    report(vmclear((char *)vmcs_region + 1) == RFLAGS_ZF && vmread(VM_INSTRUCTION_ERROR) == 2,
           "VMCLEAR of a bad address: error 2");
    report(vmxon(vmxon_region) == RFLAGS_ZF && vmread(VM_INSTRUCTION_ERROR) == 15,
           "VMXON in VMX operation: error 15");
    vmwrite(GUEST_RFLAGS, 0);
    report(vmx_enter(true) == 0 && vmread(EXIT_REASON) == (BIT(31) | REASON_INVALID_GUEST_STATE),
           "invalid guest state: reason 0x80000021");
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED);
    vmwrite(HOST_CS_SELECTOR, 0);
    report(vmx_enter(true) == RFLAGS_ZF && vmread(VM_INSTRUCTION_ERROR) == 8,
           "invalid host state: error 8");
    vmwrite(HOST_CS_SELECTOR, CODE64);
    vmwrite(PIN_BASED_CONTROLS, 0);
    report(vmx_enter(true) == RFLAGS_ZF && vmread(VM_INSTRUCTION_ERROR) == 7,
           "invalid controls: error 7");
    report(vmclear(vmcs_region) == 0 && vmx_enter(true) == RFLAGS_CF, "without a VMCS: CF");
}

static bool enable(void)
{
    u64 lock = msr_read(MSR_FEATURE_CONTROL);

    if (!(lock & FEATURE_CONTROL_LOCK))
        msr_write(MSR_FEATURE_CONTROL,
                  lock | FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX);
    lock = msr_read(MSR_FEATURE_CONTROL);
    report((lock & 5) == 5, "IA32_FEATURE_CONTROL %#llx", (unsigned long long)lock);
    basic = msr_read(MSR_VMX_BASIC);
    report((basic >> 32 & 0x1fff) <= PAGE_SIZE && (basic >> 50 & 15) == 6, "IA32_VMX_BASIC %#llx",
           (unsigned long long)basic);
    vmxon_region = new_region();
    report(try(vmxon_ud, vmxon_region) == VECTOR_UD, "VMXON without CR4.VMXE: #UD");
    write_cr0(read_cr0() | msr_read(MSR_VMX_CR0_FIXED0));
    write_cr4(read_cr4() | msr_read(MSR_VMX_CR4_FIXED0) | CR4_VMXE);
    report(vmxon(vmxon_region) == 0, "VMXON");
    return true;
}

static bool has_ept(void)
{
    u64 primary = msr_read(MSR_VMX_PROCBASED_CTLS);

    return primary >> 32 & PRIMARY_SECONDARY &&
           msr_read(MSR_VMX_PROCBASED_CTLS2) >> 32 & SECONDARY_EPT;
}

void guest_main(void)
{
    if (!(cpuid(1, 0).ecx & CPUID_VMX)) {
        report(false, "CPUID has no VMX");
        return;
    }
    enable();
    make_vmcs(false);
    test_round_trip("shadow");
    test_interrupt("shadow");
    test_injection("shadow");
    test_io("shadow");
    if (has_ept()) {
        make_ept();
        make_vmcs(true);
        test_round_trip("EPT");
        test_interrupt("EPT");
        test_injection("EPT");
        test_io("EPT");
        test_ept_violation();
    } else {
        report_skip("no EPT");
    }
    test_failures();
    __asm__ volatile("vmxoff");
    report(true, "VMXOFF");
}
