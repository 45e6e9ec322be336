// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The guests' small L1 on SVM (svm.h).

#include "svm.h"

u64 l2_regs[16];
struct vmcb *vmcb;
u8 *iopm, *msrpm;
u64 svm_l2_idt[512] ALIGNED(16);
u8 svm_l2_stack[L2_STACK_SIZE] ALIGNED(16);
volatile u32 timer_count, ipi_count, nmi_count;

void set_segment(struct vmcb_segment *s, u16 selector, u16 attrib)
{
    *s = (struct vmcb_segment){.selector = selector, .attrib = attrib, .limit = 0xffffffff};
}

void l2_init(const void *code)
{
    memset(vmcb, 0, sizeof(*vmcb));
    memset(l2_regs, 0, sizeof(l2_regs));
    vmcb->intercept[SVM_WORD_3] = SVM_INTERCEPT_CPUID | SVM_INTERCEPT_HLT | SVM_INTERCEPT_SHUTDOWN;
    vmcb->intercept[SVM_WORD_4] = SVM_INTERCEPT_VMRUN | SVM_INTERCEPT_VMMCALL;
    vmcb->iopm_base_pa = (u64)iopm;
    vmcb->msrpm_base_pa = (u64)msrpm;
    vmcb->guest_asid = 1;
    set_segment(&vmcb->cs, CODE64, 0xa9b);
    set_segment(&vmcb->ss, DATA, 0xc93);
    set_segment(&vmcb->ds, DATA, 0xc93);
    set_segment(&vmcb->es, DATA, 0xc93);
    vmcb->gdtr.base = (u64)gdt;
    vmcb->gdtr.limit = 0x67;
    vmcb->idtr.base = (u64)svm_l2_idt;
    vmcb->idtr.limit = sizeof(svm_l2_idt) - 1;
    vmcb->efer = msr_read(MSR_EFER);
    vmcb->cr0 = read_cr0();
    vmcb->cr3 = read_cr3();
    vmcb->cr4 = read_cr4();
    vmcb->dr6 = DR6_FIXED;
    vmcb->dr7 = DR7_FIXED;
    vmcb->g_pat = msr_read(MSR_PAT);
    vmcb->rflags = RFLAGS_FIXED;
    vmcb->rip = vmcb->nrip = (u64)code; // with nRIP save an injected INT n pushes nRIP
    vmcb->rsp = (u64)(svm_l2_stack + sizeof(svm_l2_stack));
}

u64 l2_run(void)
{
    svm_run(l2_regs, (u64)vmcb);
    stgi();
    return vmcb->exitcode;
}

u64 l2_run_code(const void *code)
{
    l2_init(code);
    return l2_run();
}

void report_vmexit(bool ok, const char *what)
{
    report(ok, "%s: EXITCODE %#llx, EXITINFO1 %#llx", what, LLU(vmcb->exitcode),
           LLU(vmcb->exitinfo1));
}

bool l2_at(const void *code)
{
    return vmcb->rip == (u64)code;
}

bool l2_in_handler(unsigned vector)
{
    return vmcb->exitcode == VMEXIT_VMMCALL && vmcb->rip == (u64)l2_gates + 4 * (u64)vector;
}

u64 l2_pushed(unsigned i)
{
    return ((const u64 *)vmcb->rsp)[i];
}

static void on_timer(struct trap *trap)
{
    (void)trap;
    timer_count++;
    apic_eoi();
}

static void on_ipi(struct trap *trap)
{
    (void)trap;
    ipi_count++;
    apic_eoi();
}

static void on_nmi(struct trap *trap)
{
    (void)trap;
    nmi_count++;
}

void start_timer(u32 ticks)
{
    timer_count = 0;
    apic_write(APIC_LVT_TIMER, TIMER_VECTOR);
    apic_write(APIC_TIMER_DIVIDE, 0xb);
    apic_write(APIC_TIMER_INITIAL, ticks);
}

void self_ipi(void)
{
    ipi_count = 0;
    apic_icr(0, ICR_SELF | ICR_FIXED | ICR_ASSERT | IPI_VECTOR);
}

void self_nmi(void)
{
    nmi_count = 0;
    apic_icr(apic_id(), ICR_NMI | ICR_ASSERT);
}

void l2_prepare(void)
{
    vmcb = pages(1);
    iopm = pages(3);
    msrpm = pages(2);
    for (unsigned i = 0; i < 256; i++) {
        u64 handler = (u64)l2_gates + 4 * i;

        svm_l2_idt[i * 2] = (handler & 0xffff) | CODE64 << 16 | (u64)GATE_INTERRUPT << 40 |
                            (handler >> 16 & 0xffff) << 48;
        svm_l2_idt[i * 2 + 1] = handler >> 32;
    }
    trap_handlers[TIMER_VECTOR] = on_timer;
    trap_handlers[IPI_VECTOR] = on_ipi;
    trap_handlers[VECTOR_NMI] = on_nmi;
}

bool svm_enable(void)
{
    struct cpuid_regs r = cpuid(0x80000001, 0);

    if (!(r.ecx & BIT(2)) || cpuid(0x80000000, 0).eax < 0x8000000a)
        return false;
    msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_SVME);
    msr_write(MSR_VM_HSAVE_PA, (u64)pages(1));
    return true;
}
