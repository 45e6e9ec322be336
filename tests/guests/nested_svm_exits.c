// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Instructions of a small L1's L2 that are intercepted, by the VMCB's vectors and by the permission
// maps, and those that are not (APM vol. 2, 15.8 to 15.11). Their information is in svm_intercepts.

#include "svm.h"

L2(l2_vmmcall, "vmmcall");
L2(l2_vmload, "vmload");
L2(l2_vmsave, "vmsave");
L2(l2_stgi, "stgi");
L2(l2_clgi, "clgi");
L2(l2_vmrun, "vmrun");
L2(l2_invlpga, "invlpga");
L2(l2_rdtsc, "rdtsc; hlt");
L2(l2_pushf, "pushfq; hlt");
L2(l2_popf, "push $2; popfq; hlt");
L2(l2_iret, "iretq");
L2(l2_int, "int $0x42");
L2(l2_pause, "pause; hlt");
L2(l2_invlpg, "invlpg (%rdi); hlt");
L2(l2_wbinvd, "wbinvd; hlt");
L2(l2_read_cr0, "mov %cr0, %rbx; hlt");
L2(l2_write_cr0, "mov %rbx, %cr0; hlt");
L2(l2_read_cr3, "mov %cr3, %rbx; hlt");
L2(l2_write_cr3, "mov %rbx, %cr3; hlt");
L2(l2_read_cr4, "mov %cr4, %rbx; hlt");
L2(l2_write_cr4, "mov %rbx, %cr4; hlt");
L2(l2_read_dr7, "mov %dr7, %rbx; hlt");
L2(l2_write_dr0, "mov %rbx, %dr0; hlt");
L2(l2_sidt, "sidt -16(%rsp); hlt");
L2(l2_lgdt, "sgdt -16(%rsp); lgdt -16(%rsp); hlt");
L2(l2_str, "str %eax; hlt");

static const struct {
    const char *name;
    char *code;
    u8 offset; // of the instruction
    u8 word;
    u32 bit;
    u64 exitcode;
} intercepts[] = {
    {"VMMCALL", l2_vmmcall, 0, SVM_WORD_4, SVM_INTERCEPT_VMMCALL, VMEXIT_VMMCALL},
    {"VMLOAD", l2_vmload, 0, SVM_WORD_4, SVM_INTERCEPT_VMLOAD, VMEXIT_VMLOAD},
    {"VMSAVE", l2_vmsave, 0, SVM_WORD_4, SVM_INTERCEPT_VMSAVE, VMEXIT_VMSAVE},
    {"STGI", l2_stgi, 0, SVM_WORD_4, SVM_INTERCEPT_STGI, VMEXIT_STGI},
    {"CLGI", l2_clgi, 0, SVM_WORD_4, SVM_INTERCEPT_CLGI, VMEXIT_CLGI},
    {"VMRUN", l2_vmrun, 0, SVM_WORD_4, SVM_INTERCEPT_VMRUN, VMEXIT_VMRUN},
    {"INVLPGA", l2_invlpga, 0, SVM_WORD_3, SVM_INTERCEPT_INVLPGA, VMEXIT_INVLPGA},
    {"RDTSC", l2_rdtsc, 0, SVM_WORD_3, SVM_INTERCEPT_RDTSC, VMEXIT_RDTSC},
    {"PUSHF", l2_pushf, 0, SVM_WORD_3, SVM_INTERCEPT_PUSHF, VMEXIT_PUSHF},
    {"POPF", l2_popf, 2, SVM_WORD_3, SVM_INTERCEPT_POPF, VMEXIT_POPF},
    {"IRET", l2_iret, 0, SVM_WORD_3, SVM_INTERCEPT_IRET, VMEXIT_IRET},
    {"INT n", l2_int, 0, SVM_WORD_3, SVM_INTERCEPT_SWINT, VMEXIT_SWINT},
    {"PAUSE", l2_pause, 0, SVM_WORD_3, SVM_INTERCEPT_PAUSE, VMEXIT_PAUSE},
    {"INVLPG", l2_invlpg, 0, SVM_WORD_3, SVM_INTERCEPT_INVLPG, VMEXIT_INVLPG},
    {"WBINVD", l2_wbinvd, 0, SVM_WORD_4, SVM_INTERCEPT_WBINVD, VMEXIT_WBINVD},
    {"MOV from CR0", l2_read_cr0, 0, SVM_WORD_CR, SVM_CR_READ(0), VMEXIT_CR0_READ},
    {"MOV to CR0", l2_write_cr0, 0, SVM_WORD_CR, SVM_CR_WRITE(0), VMEXIT_CR0_WRITE},
    {"MOV from CR3", l2_read_cr3, 0, SVM_WORD_CR, SVM_CR_READ(3), VMEXIT_CR0_READ + 3},
    {"MOV to CR3", l2_write_cr3, 0, SVM_WORD_CR, SVM_CR_WRITE(3), VMEXIT_CR0_WRITE + 3},
    {"MOV from CR4", l2_read_cr4, 0, SVM_WORD_CR, SVM_CR_READ(4), VMEXIT_CR0_READ + 4},
    {"MOV to CR4", l2_write_cr4, 0, SVM_WORD_CR, SVM_CR_WRITE(4), VMEXIT_CR0_WRITE + 4},
    {"MOV from DR7", l2_read_dr7, 0, SVM_WORD_DR, 1u << 7, VMEXIT_DR0_READ + 7},
    {"MOV to DR0", l2_write_dr0, 0, SVM_WORD_DR, 1u << 16, VMEXIT_DR0_WRITE},
    {"SIDT", l2_sidt, 0, SVM_WORD_3, SVM_INTERCEPT_IDTR_READ, VMEXIT_IDTR_READ},
    {"LGDT", l2_lgdt, 5, SVM_WORD_3, SVM_INTERCEPT_GDTR_WRITE, VMEXIT_GDTR_WRITE},
    {"STR", l2_str, 0, SVM_WORD_3, SVM_INTERCEPT_TR_READ, VMEXIT_TR_READ},
};

static void test_intercepts(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(intercepts); i++) {
        l2_init(intercepts[i].code);
        vmcb->intercept[intercepts[i].word] |= intercepts[i].bit;
        vmcb->rax = (u64)vmcb;
        l2_registers[RBX] = intercepts[i].code == l2_write_cr3   ? vmcb->cr3
                            : intercepts[i].code == l2_write_cr4 ? vmcb->cr4
                                                                 : vmcb->cr0;
        l2_run();
        report(vmcb->exitcode == intercepts[i].exitcode &&
                   l2_at(intercepts[i].code + intercepts[i].offset),
               "%s intercepted: EXITCODE %#llx, RIP off by %lld", intercepts[i].name,
               LLU(vmcb->exitcode), (long long)(vmcb->rip - (u64)intercepts[i].code));
    }
}

// The same where L1 does not want them: L2 goes on to its HLT.
static void test_not_intercepted(void)
{
    u64 before;

    l2_init(l2_write_cr0);
    l2_registers[RBX] = vmcb->cr0 ^ CR0_AM;
    before = vmcb->cr0;
    report_vmexit(l2_run() == VMEXIT_HLT && vmcb->cr0 == (before ^ CR0_AM), "MOV to CR0 goes on");
    l2_init(l2_write_cr4);
    l2_registers[RBX] = vmcb->cr4 ^ CR4_DE;
    before = vmcb->cr4;
    report_vmexit(l2_run() == VMEXIT_HLT && vmcb->cr4 == (before ^ CR4_DE), "MOV to CR4 goes on");
    report(l2_run_code(l2_read_cr3) == VMEXIT_HLT && l2_registers[RBX] == read_cr3(),
           "MOV from CR3 goes on");
    report(l2_run_code(l2_popf) == VMEXIT_HLT, "POPF goes on");
    report(l2_run_code(l2_pause) == VMEXIT_HLT && l2_run_code(l2_wbinvd) == VMEXIT_HLT,
           "PAUSE and WBINVD go on");
    l2_run_code(l2_int);
    report(l2_in_handler(0x42) && l2_pushed(0) == (u64)l2_int + 2, "INT n goes on");
    l2_init(l2_vmmcall);
    vmcb->intercept[SVM_WORD_4] &= ~(u32)SVM_INTERCEPT_VMMCALL;
    vmcb->intercept[SVM_WORD_EXCEPTIONS] = 1u << VECTOR_UD;
    report_vmexit(l2_run() == VMEXIT_EXCP0 + VECTOR_UD && l2_at(l2_vmmcall),
                  "VMMCALL that is not intercepted: #UD");
    l2_init(l2_rdtsc);
    vmcb->tsc_offset = 1ull << 50;
    before = rdtsc();
    l2_run();
    before = (vmcb->rax | l2_registers[RDX] << 32) - before - (1ull << 50);
    report(before < 1ull << 32, "TSC_OFFSET: RDTSC is that much ahead, and %llu ticks",
           LLU(before));
}

// --- permission maps ---

L2(l2_in8, "in %dx, %al; l2_after_in8: hlt");
L2(l2_in16, "in %dx, %ax; hlt");
L2(l2_out32, "out %eax, %dx; hlt");
L2(l2_rdmsr, "rdmsr; hlt");
L2(l2_wrmsr, "wrmsr; hlt");
extern char l2_after_in8[];

static u64 run_io(const void *code, u16 port)
{
    l2_init(code);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_IOIO;
    l2_registers[RDX] = port;
    return l2_run();
}

static void test_iopm(void)
{
    iopm[0x80 / 8] |= 1;
    report_vmexit(run_io(l2_in8, 0x80) == VMEXIT_IOIO && l2_at(l2_in8),
                  "IN from an intercepted port");
    report((vmcb->exitinfo1 &
            (0xffff0000 | SVM_IOIO_SIZE | SVM_IOIO_IN | SVM_IOIO_STR | SVM_IOIO_REP)) ==
                   (0x800000 | 1 << SVM_IOIO_SIZE_SHIFT | SVM_IOIO_IN) &&
               vmcb->exitinfo2 == (u64)l2_after_in8,
           "EXITINFO1 %#llx, EXITINFO2 is the next RIP", LLU(vmcb->exitinfo1));
    report_vmexit(run_io(l2_out32, 0x80) == VMEXIT_IOIO &&
                      (vmcb->exitinfo1 & (0xffff0000 | SVM_IOIO_SIZE | SVM_IOIO_IN)) ==
                          (0x800000 | 4 << SVM_IOIO_SIZE_SHIFT),
                  "OUT of 32 bits");
    report_vmexit(run_io(l2_in16, 0x7f) == VMEXIT_IOIO,
                  "IN of 16 bits whose second byte is intercepted");
    report_vmexit(run_io(l2_in8, 0x81) == VMEXIT_HLT, "another port does not exit");
    l2_init(l2_in8);
    l2_registers[RDX] = 0x80;
    report_vmexit(l2_run() == VMEXIT_HLT, "without the intercept no port does");
    iopm[0x80 / 8] = 0;
}

static u64 run_msr(const void *code, u32 msr, u64 value)
{
    l2_init(code);
    vmcb->intercept[SVM_WORD_3] |= SVM_INTERCEPT_MSR;
    l2_registers[RCX] = msr;
    vmcb->rax = (u32)value;
    l2_registers[RDX] = value >> 32;
    return l2_run();
}

static void test_msrpm(void)
{
    unsigned lstar = 0x800 + (MSR_LSTAR - 0xc0000000) / 4, shift = MSR_LSTAR % 4 * 2;

    msrpm[lstar] = (u8)(1u << shift); // reads
    report_vmexit(run_msr(l2_rdmsr, MSR_LSTAR, 0) == VMEXIT_MSR && vmcb->exitinfo1 == 0 &&
                      l2_at(l2_rdmsr),
                  "RDMSR intercepted");
    report_vmexit(run_msr(l2_wrmsr, MSR_LSTAR, 0x123456789ab) == VMEXIT_HLT &&
                      msr_read(MSR_LSTAR) == 0x123456789ab,
                  "WRMSR that is not goes on");
    msrpm[lstar] = (u8)(2u << shift); // writes
    report_vmexit(run_msr(l2_wrmsr, MSR_LSTAR, 0) == VMEXIT_MSR && vmcb->exitinfo1 == 1 &&
                      l2_at(l2_wrmsr),
                  "WRMSR intercepted");
    report_vmexit(run_msr(l2_rdmsr, MSR_LSTAR, 0) == VMEXIT_HLT &&
                      (vmcb->rax | l2_registers[RDX] << 32) == 0x123456789ab,
                  "RDMSR that is not goes on");
    msrpm[lstar] = 0;
    report_vmexit(run_msr(l2_rdmsr, 0x40001234, 0) == VMEXIT_MSR, "an MSR outside the map exits");
    report_vmexit(run_msr(l2_rdmsr, MSR_EFER, 0) == VMEXIT_HLT && vmcb->rax == vmcb->efer,
                  "EFER as L2 reads it");
}

void guest_main(void)
{
    if (!svm_start()) {
        report_skip("no SVM");
        return;
    }
    test_intercepts();
    test_not_intercepted();
    test_iopm();
    test_msrpm();
}
