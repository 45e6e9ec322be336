// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small hypervisor: VMRUN of a guest of a few instructions that exits by CPUID, HLT and others; what is in the VMCB and in the
// registers after each exit; with nested paging off and on (APM vol. 2 chapter 15).

#include <arch/x86/svm.h>

#include "guest.h"

enum { CPUID_SVM = 1 << 2, GPRS = 15 };

static struct vmcb *vmcb;
static bool has_nrip;

// RBX, RCX, RDX, RSI, RDI, RBP, R8 .. R15 of the guest; RAX and RSP are in the VMCB.
extern u64 l2_registers[14];
u64 l2_registers[14];

// Loads the guest's registers, runs it until its exit, stores them. Interrupts stay off; GIF is set again at the end.
void svm_run(u64 vmcb_gpa);
__asm__(".globl svm_run\n"
        "svm_run:\n"
        "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
        "push %rdi\n"
        "mov %rdi, %rax\n"
        "lea l2_registers(%rip), %rdi\n"
        "mov 0(%rdi), %rbx; mov 8(%rdi), %rcx; mov 16(%rdi), %rdx; mov 24(%rdi), %rsi\n"
        "mov 40(%rdi), %rbp; mov 48(%rdi), %r8; mov 56(%rdi), %r9; mov 64(%rdi), %r10\n"
        "mov 72(%rdi), %r11; mov 80(%rdi), %r12; mov 88(%rdi), %r13; mov 96(%rdi), %r14\n"
        "mov 104(%rdi), %r15; mov 32(%rdi), %rdi\n"
        "clgi\n"
        "vmrun\n"
        "push %rdi\n"
        "lea l2_registers(%rip), %rdi\n"
        "mov %rbx, 0(%rdi); mov %rcx, 8(%rdi); mov %rdx, 16(%rdi); mov %rsi, 24(%rdi)\n"
        "mov %rbp, 40(%rdi); mov %r8, 48(%rdi); mov %r9, 56(%rdi); mov %r10, 64(%rdi)\n"
        "mov %r11, 72(%rdi); mov %r12, 80(%rdi); mov %r13, 88(%rdi); mov %r14, 96(%rdi)\n"
        "mov %r15, 104(%rdi)\n"
        "pop 32(%rdi)\n"
        "mov %rax, svm_rax_after(%rip)\n"
        "stgi\n"
        "pop %rdi\n"
        "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
        "ret\n");
extern u64 svm_rax_after; // RAX is the host's after an exit
u64 svm_rax_after;

// The guests.
extern char l2_start[], l2_after_cpuid[], l2_hlt[], l2_vmmcall[], l2_ud[], l2_write[], l2_io[],
    l2_end[];
__asm__("l2_start: cpuid\n"
        "l2_after_cpuid: mov %rbx, %r15\n"
        "add $1, %r8\n"
        "l2_hlt: hlt\n"
        "l2_vmmcall: vmmcall\n"
        "l2_ud: ud2\n"
        "l2_write: mov %rax, (%rdi)\n"
        "l2_io: out %al, $0x80\n"
        "l2_end: ud2\n");

static struct vmcb_segment segment(u16 selector, u16 attrib)
{
    return (struct vmcb_segment){selector, attrib, ~0u, 0};
}

static void make_vmcb(bool nested_paging)
{
    struct table_pointer gdtr, idtr;

    memset(vmcb, 0, sizeof(*vmcb));
    __asm__ volatile("sgdt %0; sidt %1" : "=m"(gdtr), "=m"(idtr));
    vmcb->intercept[SVM_WORD_3] = SVM_INTERCEPT_CPUID | SVM_INTERCEPT_HLT | SVM_INTERCEPT_SHUTDOWN;
    vmcb->intercept[SVM_WORD_4] = SVM_INTERCEPT_VMRUN | SVM_INTERCEPT_VMMCALL;
    vmcb->guest_asid = 1;
    vmcb->tlb_control = SVM_TLB_FLUSH_ALL;
    vmcb->np_enable = nested_paging;
    vmcb->n_cr3 = read_cr3();
    vmcb->g_pat = msr_read(MSR_PAT);
    vmcb->cs = segment(CODE64, 0xa9b);
    vmcb->ss = vmcb->ds = vmcb->es = segment(DATA, 0xc93);
    vmcb->gdtr = (struct vmcb_segment){0, 0, gdtr.limit, gdtr.base};
    vmcb->idtr = (struct vmcb_segment){0, 0, idtr.limit, idtr.base};
    vmcb->efer = msr_read(MSR_EFER);
    vmcb->cr0 = read_cr0();
    vmcb->cr3 = read_cr3();
    vmcb->cr4 = read_cr4();
    vmcb->dr6 = DR6_FIXED;
    vmcb->dr7 = DR7_FIXED;
    vmcb->rflags = RFLAGS_FIXED;
    vmcb->rip = (u64)l2_start;
    vmcb->rsp = (u64)pages(1) + PAGE_SIZE;
}

static void run(void)
{
    svm_run((u64)vmcb);
}

static bool exited(u64 code, const void *rip)
{
    if (vmcb->exitcode == code && vmcb->rip == (u64)rip)
        return true;
    print("  exit %#llx at %#llx, expected %#llx at %#llx; info %#llx %#llx\n",
          (unsigned long long)vmcb->exitcode, (unsigned long long)vmcb->rip,
          (unsigned long long)code, (unsigned long long)(u64)rip,
          (unsigned long long)vmcb->exitinfo1, (unsigned long long)vmcb->exitinfo2);
    return false;
}

static void test_round_trip(const char *mode)
{
    u64 cr3 = read_cr3(), efer = msr_read(MSR_EFER), cr0 = read_cr0();

    for (unsigned i = 0; i < 14; i++)
        l2_registers[i] = 0x1111111111111111ull * (i + 1);
    vmcb->rax = 0;
    run();
    report(exited(VMEXIT_CPUID, l2_start), "%s: CPUID exits", mode);
    report(vmcb->rax == 0 && l2_registers[0] == 0x1111111111111111 &&
               l2_registers[13] == 0xeeeeeeeeeeeeeeee,
           "%s: registers went in and came out", mode);
    report(!has_nrip || vmcb->nrip == (u64)l2_after_cpuid, "%s: nRIP %#llx", mode,
           (unsigned long long)vmcb->nrip);
    report(svm_rax_after == (u64)vmcb, "%s: the host's RAX is as before: %#llx", mode,
           (unsigned long long)svm_rax_after);
    report(read_cr3() == cr3 && msr_read(MSR_EFER) == efer && read_cr0() == cr0,
           "%s: the host's CR0, CR3 and EFER are as before", mode);
    vmcb->rip = (u64)l2_after_cpuid; // as a hypervisor emulates CPUID
    vmcb->rax = 0x1234567890;
    l2_registers[0] = 0xfeedface12345678;
    run();
    report(exited(VMEXIT_HLT, l2_hlt), "%s: HLT exits", mode);
    report(l2_registers[13] == 0xfeedface12345678 && l2_registers[6] == 0x7777777777777778 &&
               vmcb->rax == 0x1234567890,
           "%s: the guest worked with what it got", mode);
    vmcb->rip = (u64)l2_vmmcall;
    run();
    report(exited(VMEXIT_VMMCALL, l2_vmmcall), "%s: VMMCALL exits", mode);
    vmcb->intercept[SVM_WORD_EXCEPTIONS] = BIT(VECTOR_UD);
    vmcb->rip = (u64)l2_ud;
    run();
    report(exited(VMEXIT_EXCP0 + VECTOR_UD, l2_ud), "%s: #UD exits", mode);
}

static volatile u32 host_interrupts;

static void count_interrupt(struct trap *trap)
{
    (void)trap;
    host_interrupts++;
    apic_eoi();
}

// An interrupt for the hypervisor ends the guest and is taken after STGI and STI.
static void test_interrupt(const char *mode)
{
    trap_handlers[0x51] = count_interrupt;
    host_interrupts = 0;
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR;
    vmcb->v_ctl = SVM_V_INTR_MASKING;
    vmcb->rip = (u64)l2_after_cpuid;
    apic_icr(0, ICR_SELF | ICR_ASSERT | 0x51);
    // with V_INTR_MASKING it is the host's IF that counts, which svm_run() has clear
    run();
    report(exited(VMEXIT_HLT, l2_hlt), "%s: with the host's IF clear no interrupt exits", mode);
    sti();
    cli();
    report(host_interrupts == 1, "%s: the host takes it", mode);
    vmcb->v_ctl = 0;
    vmcb->rflags |= RFLAGS_IF;
    vmcb->rip = (u64)l2_after_cpuid;
    apic_icr(0, ICR_SELF | ICR_ASSERT | 0x51);
    run();
    report(exited(VMEXIT_INTR, l2_after_cpuid), "%s: with the guest's IF set it exits", mode);
    sti();
    cli();
    report(host_interrupts == 2, "%s: and the host takes it", mode);
    vmcb->rflags &= ~RFLAGS_IF;
    vmcb->intercept[SVM_WORD_3] &= ~(u32)SVM_INTERCEPT_INTR;
}

static void test_injection(const char *mode)
{
    vmcb->rip = (u64)l2_after_cpuid;
    vmcb->intercept[SVM_WORD_EXCEPTIONS] = BIT(VECTOR_UD);
    vmcb->eventinj = SVM_EVENT_V | SVM_EVENT_EXCEPTION << SVM_EVENT_TYPE_SHIFT | SVM_EVENT_EV |
                     VECTOR_GP | 0x1234ull << 32;
    // its handler is l2_end, where UD2 exits
    set_gate(VECTOR_GP, l2_end, CODE64, 0, GATE_INTERRUPT);
    run();
    set_gate(VECTOR_GP, trap_stubs + VECTOR_GP * 16, CODE64, 0, GATE_INTERRUPT);
    report(exited(VMEXIT_EXCP0 + VECTOR_UD, l2_end), "%s: an injected #GP reaches its handler",
           mode);
    report(((u64 *)vmcb->rsp)[0] == 0x1234 && ((u64 *)vmcb->rsp)[1] == (u64)l2_after_cpuid,
           "%s: with its error code and RIP", mode);
    report(!(vmcb->eventinj & SVM_EVENT_V), "%s: EVENTINJ is used up", mode);
    vmcb->rsp += 48;
}

static void test_io(const char *mode)
{
    u8 *iopm = pages(3);

    memset(iopm, 0xff, 3 * PAGE_SIZE);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_IOIO;
    vmcb->iopm_base_pa = (u64)iopm;
    vmcb->rip = (u64)l2_io;
    run();
    report(exited(VMEXIT_IOIO, l2_io) && vmcb->exitinfo1 >> 16 == 0x80 &&
               (vmcb->exitinfo1 & 0x71) == 0x10 && vmcb->exitinfo2 == (u64)l2_end,
           "%s: OUT exits, information %#llx, next RIP %#llx", mode,
           (unsigned long long)vmcb->exitinfo1, (unsigned long long)vmcb->exitinfo2);
    memset(iopm, 0, 3 * PAGE_SIZE);
    run();
    report(exited(VMEXIT_EXCP0 + VECTOR_UD, l2_end), "%s: and does not if the bitmap says so",
           mode);
    vmcb->intercept[SVM_WORD_3] &= ~(u32)SVM_INTERCEPT_IOIO;
}

// A page that L1's nested tables do not have.
static void test_nested_fault(void)
{
    u64 *entry = &directories[0x30000000 / SIZE_2M], saved = *entry;
    u64 *tables = pages(3); // L1's own nested tables: a copy of the lowest GiB's directory

    memcpy(tables + 1024, directories, PAGE_SIZE);
    tables[512] = (u64)(tables + 1024) | 7;
    tables[0] = (u64)(tables + 512) | 7;
    tables[1024 + 0x30000000 / SIZE_2M] = 0;
    vmcb->n_cr3 = (u64)tables;
    vmcb->tlb_control = SVM_TLB_FLUSH_ALL;
    vmcb->rip = (u64)l2_write;
    vmcb->rax = 0x600df00d;
    l2_registers[4] = 0x30000008;
    run();
    report(exited(VMEXIT_NPF, l2_write) && vmcb->exitinfo2 == 0x30000008 &&
               (vmcb->exitinfo1 & 0x1f) == (PF_W | PF_U) && vmcb->exitinfo1 & SVM_NPF_FINAL,
           "nested page fault: information %#llx, address %#llx",
           (unsigned long long)vmcb->exitinfo1, (unsigned long long)vmcb->exitinfo2);
    // mapped elsewhere now: the guest's write must land there
    tables[1024 + 0x30000000 / SIZE_2M] = 0x2000000 | 0x87;
    run();
    report(exited(VMEXIT_EXCP0 + VECTOR_UD, l2_end), "it goes on when the page is there");
    report(*(volatile u64 *)0x2000008 == 0x600df00d, "and its write lands where L1 mapped it");
    *entry = saved;
}

static void enable_svme(void *unused)
{
    (void)unused;
    msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_SVME);
}

static void vmrun_ud(void *unused)
{
    (void)unused;
    __asm__ volatile("vmrun" : : "a"(vmcb));
}

static void test_invalid(void)
{
    make_vmcb(false);
    vmcb->guest_asid = 0;
    run();
    // QEMU stores VMEXIT_INVALID as 32 bits (MACHINES.md) and knows few of the checks
    report_known(MACHINE_QEMU, vmcb->exitcode == VMEXIT_INVALID, "ASID 0: exit code %#llx",
                 (unsigned long long)vmcb->exitcode);
    make_vmcb(false);
    vmcb->intercept[SVM_WORD_4] &= ~(u32)SVM_INTERCEPT_VMRUN;
    run();
    report_known(MACHINE_QEMU, vmcb->exitcode == VMEXIT_INVALID,
                 "no VMRUN intercept: exit code %#llx", (unsigned long long)vmcb->exitcode);
    make_vmcb(false);
    vmcb->efer &= ~EFER_SVME;
    run();
    report_known(MACHINE_QEMU, vmcb->exitcode == VMEXIT_INVALID, "EFER.SVME clear: exit code %#llx",
                 (unsigned long long)vmcb->exitcode);
}

void guest_main(void)
{
    if (!(cpuid(0x80000001, 0).ecx & CPUID_SVM)) {
        report(false, "CPUID has no SVM");
        return;
    }
    has_nrip = cpuid(0x8000000a, 0).edx & SVM_FEATURE_NRIPS;
    vmcb = pages(1);
    report(try(vmrun_ud, NULL) == VECTOR_UD, "VMRUN without EFER.SVME: #UD");
    report(try(enable_svme, NULL) == NO_TRAP && msr_read(MSR_EFER) & EFER_SVME, "EFER.SVME");
    msr_write(MSR_VM_HSAVE_PA, (u64)pages(1));
    make_vmcb(false);
    test_round_trip("shadow");
    test_interrupt("shadow");
    test_injection("shadow");
    test_io("shadow");
    if (cpuid(0x8000000a, 0).edx & SVM_FEATURE_NP) {
        make_vmcb(true);
        test_round_trip("nested paging");
        test_interrupt("nested paging");
        test_injection("nested paging");
        test_io("nested paging");
        test_nested_fault();
    } else {
        report_skip("no nested paging");
    }
    test_invalid();
}
