// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: svm/enter.c svm/exit.c svm/context.c svm/quirks.c svm/state.c
//
// The SVM back end's entries, with a function in the place of VMRUN that looks at the VMCB as the
// CPU would and makes the exit: what is written and read back, ASIDs, injection with and without
// nRIP save, windows, NMI blocking and the step over IRET.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/regs.h>
#include <nestor/cpu.h>
#include <nestor/page.h>
#include <nestor/switched.h>
#include <nestor/tlb.h>
#include <nestor/vm.h>

#include "svm/quirks.h"
#include "svm/svm.h"

u32 svm_features, svm_clean_after;
u64 svm_cr4_supplied;

static struct svm_cpu cpu_part;
static struct cpu cpu;
static struct vm vm;
static struct vcpu vcpu;
static struct vm_exit result;
static unsigned self_ipis, vmruns;
static struct vmcb seen; // as VMRUN found it
static void (*guest)(struct vmcb *vmcb);

// --- what the back end calls ---

void *page_alloc(unsigned order)
{
    void *page = aligned_alloc(4096, 4096ul << order);

    memset(page, 0, 4096ul << order);
    return page;
}

void page_free(void *page, unsigned order)
{
    (void)order;
    free(page);
}

void *heap_alloc(size_t size)
{
    return calloc(1, size);
}

void heap_free(void *object, size_t size)
{
    (void)size;
    free(object);
}

hpa_t virt_to_phys(const void *va)
{
    return (hpa_t)va;
}

// No feature here has such MSRs.
void switched_pull(struct vcpu *of)
{
    (void)of;
}

void switched_write(const struct vcpu *of)
{
    (void)of;
}

int msr_read_safe(u32 msr, u64 *value);
int msr_read_safe(u32 msr, u64 *value)
{
    (void)msr;
    *value = 0;
    return 0;
}

int msr_write_safe(u32 msr, u64 value);
int msr_write_safe(u32 msr, u64 value) // no CPU that takes any address
{
    (void)msr, (void)value;
    return -E_FAULT;
}

void apic_send_ipi(u32 apic_id, u8 vector);
void apic_send_ipi(u32 apic_id, u8 vector)
{
    assert_int_equal(apic_id, 7);
    assert_int_equal(vector, HOST_VECTOR_KICK);
    self_ipis++;
}

void fake_vmrun(void);
void fake_vmrun(void)
{
    struct vmcb *vmcb = vcpu.cur->hw->vmcb;

    vmruns++;
    seen = *vmcb;
    vmcb->exitintinfo = 0;
    vmcb->exitinfo1 = vmcb->exitinfo2 = 0;
    guest(vmcb);
}

// Called with any stack alignment, and free to lose every register but RDI.
__asm__(".globl svm_vmrun\n"
        "svm_vmrun: push %rdi\n"
        "mov %rsp, %rbp\n"
        "and $-16, %rsp\n"
        "call fake_vmrun\n"
        "mov %rbp, %rsp\n"
        "pop %rdi\n"
        "ret\n"
        ".section .note.GNU-stack, \"\", @progbits\n"
        ".text\n");

// --- guests ---

static void guest_cpuid(struct vmcb *vmcb)
{
    vmcb->rax = 1;
    vmcb->rip += 0x10;
    vmcb->exitcode = VMEXIT_CPUID;
}

static void guest_at_iret(struct vmcb *vmcb)
{
    assert_true(vmcb->intercept[SVM_WORD_3] & SVM_INTERCEPT_IRET);
    vmcb->rip = 0x2000;
    vmcb->exitcode = VMEXIT_IRET;
}

static void guest_iret_done(struct vmcb *vmcb)
{
    assert_true(vmcb->rflags & RFLAGS_TF);
    assert_false(vmcb->intercept[SVM_WORD_3] & SVM_INTERCEPT_IRET);
    assert_int_equal(vmcb->intercept[SVM_WORD_EXCEPTIONS], ~(u32)BIT(VECTOR_NMI));
    vmcb->rip = 0x3000;
    vmcb->rflags = RFLAGS_FIXED | RFLAGS_IF;
    vmcb->dr6 = DR6_FIXED | DR6_BS;
    vmcb->exitcode = VMEXIT_EXCP0 + VECTOR_DB;
}

static void guest_iret_watched(struct vmcb *vmcb)
{
    guest_iret_done(vmcb);
    vmcb->dr6 |= DR6_B(2);
}

static void guest_iret_faults(struct vmcb *vmcb)
{
    assert_true(vmcb->rflags & RFLAGS_TF);
    vmcb->exitcode = VMEXIT_EXCP0 + VECTOR_PF;
    vmcb->exitinfo1 = PF_U;
    vmcb->exitinfo2 = 0x7000;
}

static void guest_delivery_faults(struct vmcb *vmcb)
{
    vmcb->exitintinfo = vmcb->eventinj;
    vmcb->exitcode = VMEXIT_NPF;
    vmcb->exitinfo1 = SVM_NPF_FINAL | PF_W;
    vmcb->exitinfo2 = 0x5000;
}

static int setup(void **state)
{
    (void)state;
    memset(&vcpu, 0, sizeof(vcpu));
    memset(&cpu_part, 0, sizeof(cpu_part));
    svm_features = svm_clean_after = 0;
    svm_repeats_injection = false;
    self_ipis = vmruns = 0;
    cpu_part.asid_count = 4;
    cpu_part.next_asid = 1;
    cpu_part.asid_generation = 1;
    cpu.backend = &cpu_part;
    cpu.apic_id = 7;
    vcpu.cpu = &cpu;
    vcpu.vm = &vm;
    vcpu.cur = &vcpu.ctx[0];
    assert_int_equal(svm_maps_create(), 0);
    for (unsigned level = 0; level < 2; level++) {
        assert_int_equal(svm_ctx_create(&vcpu, level), 0);
        vcpu.ctx[level].state.rflags = RFLAGS_FIXED;
        vcpu.ctx[level].state.rip = 0x1000;
        vcpu.ctx[level].flush = TLB_FLUSH_GUEST;
        vcpu.ctx[level].dirty = GROUP_ALL_CTX;
    }
    guest = guest_cpuid;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    svm_ctx_destroy(&vcpu, 0);
    svm_ctx_destroy(&vcpu, 1);
    return 0;
}

static void enter(void (*code)(struct vmcb *))
{
    guest = code;
    svm_enter(&vcpu, &result);
    vcpu.cur->ctl.inject.valid = false;
    vcpu.cur->ctl.interrupt_window = vcpu.cur->ctl.nmi_window = false;
    vcpu.immediate_exit = false;
}

// --- tests ---

static void test_round_trip(void **state)
{
    (void)state;
    vcpu.gpr[GPR_RAX] = 42;
    vcpu.ctx[0].state.rsp = 0x8000;
    enter(guest_cpuid);
    assert_int_equal(seen.rax, 42);
    assert_int_equal(seen.rip, 0x1000);
    assert_int_equal(seen.rsp, 0x8000);
    assert_int_equal(seen.efer & EFER_SVME, EFER_SVME);
    assert_true(seen.np_enable && seen.guest_asid == 1);
    assert_int_equal(vcpu.gpr[GPR_RAX], 1);
    assert_int_equal(vcpu.ctx[0].state.rip, 0x1010);
    assert_int_equal(result.kind, EXIT_CPUID);
    assert_int_equal(vcpu.ctx[0].dirty, 0);
    assert_int_equal(vcpu.ctx[0].valid, GROUP_RIP | GROUP_BLOCKING | SVM_MODEL_GROUPS);
    assert_int_equal(vcpu.shared_valid, 0);
    assert_false(vcpu.ctx[0].hw->prepare);
}

static void test_segments(void **state)
{
    struct guest_state *s = &vcpu.ctx[0].state;

    (void)state;
    s->cr0 = CR0_PE;
    s->seg[SEG_CS] = (struct segment){.selector = 0x33, .access = 0xa0fb, .limit = 0xffffffff};
    s->seg[SEG_SS] = (struct segment){.access = SEG_UNUSABLE | SEG_P | 3u << SEG_DPL_SHIFT};
    s->seg[SEG_GS] =
        (struct segment){.selector = 0x2b, .access = 0xc0f3, .limit = 0xffffffff, .base = 0x1234};
    s->seg[SEG_TR] =
        (struct segment){.selector = 0x40, .access = 0x8b, .limit = 0x67, .base = 0x5678};
    enter(guest_cpuid);
    assert_int_equal(seen.cs.attrib, 0xafb);
    assert_int_equal(seen.cpl, 3);
    assert_false(seen.ss.attrib & SEG_P);
    assert_int_equal(seen.gs.attrib, 0xcf3);
    assert_int_equal(seen.gs.base, 0x1234);
    vcpu.ctx[0].hw->vmcb->tr.attrib = 0x89; // some CPUs show it available
    vcpu.ctx[0].hw->vmcb->cpl = 2;
    memset(s->seg, 0, sizeof(s->seg));
    svm_pull(&vcpu, GROUP_CODE | GROUP_SYSTEM);
    assert_int_equal(s->seg[SEG_CS].access, 0xa0fb);
    assert_int_equal(s->seg[SEG_SS].access & (SEG_UNUSABLE | SEG_DPL),
                     SEG_UNUSABLE | 2u << SEG_DPL_SHIFT);
    assert_int_equal(s->seg[SEG_GS].access, 0xc0f3);
    assert_int_equal(s->seg[SEG_TR].access, 0x8b);
    assert_int_equal(s->seg[SEG_LDTR].access & SEG_UNUSABLE, SEG_UNUSABLE);
    // CPL where SS says nothing of it.
    s->rflags |= RFLAGS_VM;
    s->seg[SEG_SS].access = 0x93;
    vcpu.ctx[0].dirty = GROUP_CODE;
    enter(guest_cpuid);
    assert_int_equal(seen.cpl, 3);
    s->cr0 = 0;
    vcpu.ctx[0].dirty = GROUP_CODE | GROUP_CR;
    enter(guest_cpuid);
    assert_int_equal(seen.cpl, 0);
}

static void test_efer(void **state)
{
    struct guest_state *s = &vcpu.ctx[0].state;

    (void)state;
    s->efer = EFER_LME;
    enter(guest_cpuid);
    vcpu.ctx[0].hw->vmcb->efer |= EFER_LMA;
    svm_pull(&vcpu, GROUP_EFER_PAT);
    assert_int_equal(s->efer, EFER_LME | EFER_LMA); // SVME is not the guest's
    s->efer |= EFER_SVME;
    vcpu.ctx[0].dirty |= GROUP_EFER_PAT;
    enter(guest_cpuid);
    svm_pull(&vcpu, GROUP_EFER_PAT);
    assert_int_equal(s->efer, EFER_LME | EFER_LMA | EFER_SVME); // but here it is
}

static void test_intercepts(void **state)
{
    struct controls ctl = {.intercepts = INTERCEPT_HLT | INTERCEPT_RDTSC | INTERCEPT_RDTSCP |
                                         INTERCEPT_CR8_WRITE,
                           .exception_bitmap = BIT(14) | BIT(2)};
    u32 words[SVM_WORD_COUNT];

    (void)state;
    svm_intercepts(&ctl, 0, 0, words);
    assert_int_equal(words[SVM_WORD_CR], SVM_CR_WRITE(8));
    assert_int_equal(words[SVM_WORD_EXCEPTIONS], BIT(14) | BIT(18));
    assert_true(words[SVM_WORD_3] & SVM_INTERCEPT_RDTSC &&
                words[SVM_WORD_4] & SVM_INTERCEPT_RDTSCP);
    assert_true(words[SVM_WORD_3] & SVM_INTERCEPT_HLT &&
                words[SVM_WORD_3] & SVM_INTERCEPT_SHUTDOWN);
    assert_false(words[SVM_WORD_3] & (SVM_INTERCEPT_IRET | SVM_INTERCEPT_PAUSE));
    assert_true(words[SVM_WORD_4] & SVM_INTERCEPT_VMLOAD && words[SVM_WORD_4] & SVM_INTERCEPT_STGI);
    assert_false(words[SVM_WORD_5] & SVM_INTERCEPT_INVPCID);
    ctl.disabled_isa = ISA_INVPCID; // what is hidden must not execute
    svm_intercepts(&ctl, 0, 0, words);
    assert_true(words[SVM_WORD_5] & SVM_INTERCEPT_INVPCID);
    ctl.disabled_isa = ISA_RDTSCP;
    ctl.intercepts &= ~(u64)INTERCEPT_RDTSCP;
    svm_intercepts(&ctl, 0, 0, words);
    assert_true(words[SVM_WORD_4] & SVM_INTERCEPT_RDTSCP);
    assert_false(words[SVM_WORD_5] & SVM_INTERCEPT_INVPCID);
    ctl.cr0_mask = CR0_CD; // TS is the guest's: CLTS must not exit
    svm_intercepts(&ctl, CR0_PE, 0, words);
    assert_int_equal(words[SVM_WORD_CR], SVM_CR_WRITE(8));
    assert_true(words[SVM_WORD_3] & SVM_INTERCEPT_CR0_SEL_WRITE);
    ctl.cr0_shadow = CR0_CD;
    svm_intercepts(&ctl, CR0_PE, 0, words);
    assert_true(words[SVM_WORD_CR] & SVM_CR_READ(0));
    ctl.cr0_mask |= CR0_TS;
    ctl.cr4_mask = CR4_VMXE;
    svm_intercepts(&ctl, CR0_PE | CR0_CD, CR4_VMXE, words);
    assert_int_equal(words[SVM_WORD_CR],
                     SVM_CR_WRITE(8) | SVM_CR_WRITE(0) | SVM_CR_WRITE(4) | SVM_CR_READ(4));
}

static void test_shadowed_cr0_follows_the_state(void **state)
{
    struct vcpu_ctx *ctx = &vcpu.ctx[0];

    (void)state;
    ctx->ctl.cr0_mask = CR0_CD;
    ctx->state.cr0 = CR0_PE;
    ctx->ctl.cr0_shadow = CR0_PE | CR0_CD;
    enter(guest_cpuid);
    assert_true(seen.intercept[SVM_WORD_CR] & SVM_CR_READ(0));
    ctx->state.cr0 |= CR0_CD; // only the state changes: reads need not exit any more
    ctx->dirty |= GROUP_CR;
    enter(guest_cpuid);
    assert_false(seen.intercept[SVM_WORD_CR] & SVM_CR_READ(0));
}

static void test_asids(void **state)
{
    (void)state;
    for (u32 asid = 1; asid < 4; asid++) {
        vcpu.ctx[0].flush = TLB_FLUSH_GUEST;
        enter(guest_cpuid);
        assert_int_equal(seen.guest_asid, asid);
        assert_int_equal(seen.tlb_control, SVM_TLB_NOTHING);
        assert_int_equal(vcpu.ctx[0].flush, TLB_FLUSH_NONE);
    }
    svm_select(&vcpu, 1, 0); // the fourth that is needed, of three
    enter(guest_cpuid);
    assert_int_equal(seen.guest_asid, 1);
    assert_int_equal(seen.tlb_control, SVM_TLB_FLUSH_ALL);
    enter(guest_cpuid);
    assert_int_equal(seen.tlb_control, SVM_TLB_NOTHING);
    svm_select(&vcpu, 0, 0); // its old tag is of the old generation
    enter(guest_cpuid);
    assert_int_equal(seen.guest_asid, 2);
    assert_int_equal(seen.tlb_control, SVM_TLB_NOTHING);
    svm_features = SVM_FEATURE_FLUSH_BY_ASID;
    vcpu.ctx[0].flush = TLB_FLUSH_STAGE2;
    enter(guest_cpuid);
    assert_int_equal(seen.guest_asid, 2);
    assert_int_equal(seen.tlb_control, SVM_TLB_FLUSH_ASID);
    vcpu.ctx[0].ctl.stage2_root = 0x123000; // another root owes a flush by itself
    vcpu.ctx[0].ctl_dirty = CTL_STAGE2;
    enter(guest_cpuid);
    assert_int_equal(seen.n_cr3, 0x123000);
    assert_int_equal(seen.tlb_control, SVM_TLB_FLUSH_ASID);
}

static void test_clean_bits(void **state)
{
    (void)state;
    svm_clean_after = SVM_CLEAN_ALL;
    enter(guest_cpuid);
    assert_int_equal(seen.clean, 0);
    enter(guest_cpuid);
    assert_int_equal(seen.clean, SVM_CLEAN_ALL);
    vcpu.ctx[0].dirty = GROUP_CR | GROUP_TABLES;
    vcpu.cur->ctl.interrupt_window = true;
    enter(guest_cpuid);
    assert_int_equal(seen.clean, SVM_CLEAN_ALL & ~(SVM_CLEAN_CRX | SVM_CLEAN_DT | SVM_CLEAN_TPR));
    vcpu.ctx[0].ctl_dirty = CTL_TSC | CTL_BITMAPS;
    enter(guest_cpuid);
    assert_int_equal(seen.clean, SVM_CLEAN_ALL & ~(SVM_CLEAN_I | SVM_CLEAN_IOPM | SVM_CLEAN_TPR));
    enter(guest_cpuid);
    assert_int_equal(seen.clean, SVM_CLEAN_ALL);
}

// LBR virtualization: DEBUGCTL and the last branches go in when they are dirty, and are looked at
// behind each exit.
static void guest_branches(struct vmcb *vmcb)
{
    guest_cpuid(vmcb);
    vmcb->dbgctl = 0; // as #DB leaves it
    vmcb->br_from = 0x1000;
    vmcb->last_excp_to = 0x4000;
}

static void test_last_branches(void **state)
{
    (void)state;
    svm_clean_after = SVM_CLEAN_ALL;
    enter(guest_branches);
    assert_int_equal(seen.dbgctl, 0); // without it
    svm_pull(&vcpu, GROUP_DEBUG);
    assert_int_equal(vcpu.cur->state.last_branch[0], 0);
    svm_features = SVM_FEATURE_LBR_VIRT;
    vcpu.cur->ctl_dirty = CTL_INTERCEPTS;
    enter(guest_branches);
    assert_false(vcpu.cur->valid & GROUP_DEBUG);
    svm_pull(&vcpu, GROUP_DEBUG);
    vcpu.cur->state.debugctl = DEBUGCTL_LBR | DEBUGCTL_BTF;
    vcpu.cur->dirty = GROUP_DEBUG;
    enter(guest_branches);
    assert_int_equal(seen.dbgctl, DEBUGCTL_LBR | DEBUGCTL_BTF);
    assert_int_equal(seen.br_from, 0x1000);
    assert_int_equal(seen.clean, SVM_CLEAN_ALL & ~(SVM_CLEAN_DRX | SVM_CLEAN_LBR));
    svm_pull(&vcpu, GROUP_DEBUG);
    assert_int_equal(vcpu.cur->state.debugctl, 0);
    assert_int_equal(vcpu.cur->state.last_branch[0], 0x1000);
    assert_int_equal(vcpu.cur->state.last_branch[3], 0x4000);
    enter(guest_branches);
    assert_int_equal(seen.clean, SVM_CLEAN_ALL);
}

static void test_select_carries_shared_state(void **state)
{
    (void)state;
    enter(guest_cpuid);
    vcpu.ctx[0].hw->vmcb->lstar = 0x1111;
    vcpu.ctx[0].hw->vmcb->cr2 = 0x2222;
    vcpu.star = 0x3333; // in the model, not yet in hardware
    vcpu.lstar = 0x1111;
    vcpu.shared_valid = vcpu.shared_dirty = GROUP_SYSCALL;
    svm_select(&vcpu, 1, 0);
    assert_int_equal(vcpu.level, 1);
    assert_ptr_equal(vcpu.cur, &vcpu.ctx[1]);
    enter(guest_cpuid);
    assert_int_equal(seen.star, 0x3333);
    assert_int_equal(seen.lstar, 0x1111);
    assert_int_equal(seen.cr2, 0x2222);
    svm_pull(&vcpu, GROUP_SYSCALL | GROUP_CR2);
    assert_int_equal(vcpu.star, 0x3333);
    assert_int_equal(vcpu.cr2, 0x2222);
}

static void test_encoding(void **state)
{
    (void)state;
    assert_int_equal(svm_encode_event(&(struct event){.vector = 0x30, .type = EVENT_INTERRUPT}),
                     0x80000030);
    assert_int_equal(svm_encode_event(&(struct event){.vector = 2, .type = EVENT_NMI}), 0x80000202);
    assert_int_equal(svm_encode_event(&(struct event){
                         .vector = 14, .type = EVENT_EXCEPTION, .has_error = true, .error = 6}),
                     0x680000b0eull);
    assert_int_equal(
        svm_encode_event(&(struct event){.vector = 6, .type = EVENT_EXCEPTION, .error = 6}),
        0x80000306);
    assert_int_equal(
        svm_encode_event(&(struct event){.vector = 0x80, .type = EVENT_SOFT_INTERRUPT}),
        0x80000480);
    assert_int_equal(svm_encode_event(&(struct event){.vector = 3, .type = EVENT_SOFT_EXCEPTION}),
                     0x80000303);
    assert_int_equal(svm_encode_event(&(struct event){.vector = 1, .type = EVENT_INT1}),
                     0x80000301);
}

static void inject(u8 vector, u8 type, u8 length)
{
    vcpu.cur->ctl.inject =
        (struct event){.valid = true, .vector = vector, .type = type, .insn_len = length};
}

static void test_injection(void **state)
{
    (void)state;
    inject(0x30, EVENT_INTERRUPT, 0);
    vcpu.immediate_exit = true;
    enter(guest_cpuid);
    assert_int_equal(seen.eventinj, 0x80000030);
    assert_int_equal(self_ipis, 1);
    enter(guest_cpuid);
    assert_int_equal(seen.eventinj, 0);
    assert_int_equal(self_ipis, 1);
}

// An NMI comes as soon as another event's delivery is done; behind an NMI it waits for IRET.
static void test_nmi_behind_an_injection(void **state)
{
    (void)state;
    inject(VECTOR_DB, EVENT_EXCEPTION, 0);
    vcpu.cur->ctl.nmi_window = true;
    enter(guest_cpuid);
    assert_int_equal(self_ipis, 1);
    assert_false(seen.rflags & RFLAGS_TF);
    inject(VECTOR_NMI, EVENT_NMI, 0);
    vcpu.cur->ctl.nmi_window = true;
    enter(guest_cpuid);
    assert_int_equal(self_ipis, 1);
}

static void test_software_interrupt_without_nrip(void **state)
{
    (void)state;
    inject(0x80, EVENT_SOFT_INTERRUPT, 2);
    enter(guest_delivery_faults);
    assert_int_equal(seen.rip, 0x1002);
    assert_true(result.interrupted.valid);
    assert_int_equal(result.interrupted.type, EVENT_SOFT_INTERRUPT);
    assert_int_equal(result.interrupted.insn_len, 2);
    assert_int_equal(vcpu.ctx[0].state.rip, 0x1000); // as if it had never been advanced
    inject(3, EVENT_SOFT_EXCEPTION, 0);
    enter(guest_cpuid);
    assert_int_equal(seen.rip, 0x1001);
    assert_int_equal(vcpu.ctx[0].state.rip, 0x1011);
    inject(1, EVENT_INT1, 1);
    enter(guest_delivery_faults);
    assert_int_equal(result.interrupted.type, EVENT_INT1);
    assert_int_equal(vcpu.ctx[0].state.rip, 0x1011);
}

static void test_software_interrupt_with_nrip(void **state)
{
    (void)state;
    svm_features = SVM_FEATURE_NRIPS;
    inject(0x80, EVENT_SOFT_INTERRUPT, 2);
    enter(guest_delivery_faults);
    assert_int_equal(seen.rip, 0x1000);
    assert_int_equal(seen.nrip, 0x1002);
    assert_int_equal(result.interrupted.insn_len, 2);
    assert_int_equal(vcpu.ctx[0].state.rip, 0x1000);
}

static void test_interrupt_window_and_shadow(void **state)
{
    (void)state;
    vcpu.cur->ctl.interrupt_window = true;
    vcpu.ctx[0].state.interruptibility = BLOCK_MOV_SS;
    enter(guest_cpuid);
    assert_int_equal(seen.v_irq, SVM_V_IRQ);
    assert_int_equal(seen.interrupt_shadow, 1);
    assert_int_equal(vcpu.ctx[0].state.interruptibility, BLOCK_STI); // SVM has but one
    vcpu.ctx[0].hw->vmcb->interrupt_shadow = 0;
    vcpu.ctx[0].state.interruptibility = 0;
    enter(guest_cpuid);
    assert_int_equal(seen.v_irq, 0);
    assert_int_equal(seen.interrupt_shadow, 0);
    assert_int_equal(vcpu.ctx[0].state.interruptibility, 0);
}

static void guest_takes_offer(struct vmcb *vmcb)
{
    vmcb->v_irq = 0;
    guest_cpuid(vmcb);
}

static void guest_offer_faults(struct vmcb *vmcb)
{
    guest_delivery_faults(vmcb);
    vmcb->v_irq = 0;
    vmcb->exitintinfo = 0x41 | SVM_EVENT_V;
}

static void guest_offer_faults_qemu(struct vmcb *vmcb)
{
    guest_offer_faults(vmcb);
    vmcb->exitintinfo |= SVM_EVENT_EXCEPTION << SVM_EVENT_TYPE_SHIFT;
    vmcb->v_irq = SVM_V_IRQ;
}

static void test_offer(void **state)
{
    (void)state;
    vcpu.cur->ctl.offer = 0x41;
    enter(guest_cpuid);
    assert_int_equal(seen.v_irq, SVM_V_IRQ);
    assert_int_equal(seen.v_intr_vector, 0x41);
    assert_false(seen.intercept[SVM_WORD_3] & SVM_INTERCEPT_VINTR);
    assert_false(result.offer_taken);
    enter(guest_takes_offer);
    assert_true(result.offer_taken);
    enter(guest_offer_faults); // taken, and to be injected again
    assert_true(result.offer_taken && result.interrupted.valid);
    svm_repeats_injection = true;
    enter(guest_offer_faults_qemu);
    svm_repeats_injection = false;
    assert_true(result.offer_taken && result.interrupted.valid);
    assert_int_equal(result.interrupted.type, EVENT_INTERRUPT);
    inject(0x30, EVENT_INTERRUPT, 0);
    enter(guest_delivery_faults);
    assert_false(result.offer_taken);
    inject(0x41, EVENT_INTERRUPT, 0); // the PIC's
    enter(guest_delivery_faults);
    assert_false(result.offer_taken);
    vcpu.cur->ctl.offer = 0;
    enter(guest_cpuid);
    assert_int_equal(seen.v_irq, 0);
    vcpu.cur->ctl.interrupt_window = true;
    enter(guest_cpuid);
    assert_int_equal(seen.v_irq, SVM_V_IRQ);
    assert_true(seen.intercept[SVM_WORD_3] & SVM_INTERCEPT_VINTR);
    enter(guest_cpuid);
    assert_int_equal(seen.v_irq, 0);
}

// Where EVENTINJ's interrupt may come twice.
static void test_exit_behind_an_interrupt(void **state)
{
    (void)state;
    svm_repeats_injection = true;
    inject(0x41, EVENT_INTERRUPT, 0);
    enter(guest_cpuid);
    assert_int_equal(seen.eventinj, 0x80000041);
    assert_int_equal(self_ipis, 1);
    inject(VECTOR_GP, EVENT_EXCEPTION, 0);
    enter(guest_cpuid);
    assert_int_equal(self_ipis, 1);
}

static void block_nmis(void)
{
    inject(2, EVENT_NMI, 0);
    enter(guest_cpuid);
    assert_true(seen.intercept[SVM_WORD_3] & SVM_INTERCEPT_IRET);
    assert_int_equal(vcpu.ctx[0].state.interruptibility, BLOCK_NMI);
    enter(guest_cpuid);
    assert_int_equal(vcpu.ctx[0].state.interruptibility, BLOCK_NMI);
    enter(guest_at_iret);
    assert_int_equal(result.kind, EXIT_NONE);
    assert_int_equal(vcpu.ctx[0].state.interruptibility, BLOCK_NMI);
}

static void test_nmi_blocking_ends_after_iret(void **state)
{
    (void)state;
    block_nmis();
    vcpu.cur->ctl.nmi_window = true;
    enter(guest_iret_done);
    assert_int_equal(result.kind, EXIT_NMI_WINDOW);
    assert_false(result.interrupted.valid);
    assert_int_equal(vcpu.ctx[0].state.interruptibility, 0);
    assert_int_equal(vcpu.ctx[0].state.rflags, RFLAGS_FIXED | RFLAGS_IF);
    assert_int_equal(vcpu.ctx[0].hw->vmcb->dr6 & DR6_BS, 0);
    enter(guest_cpuid);
    assert_false(seen.intercept[SVM_WORD_3] & SVM_INTERCEPT_IRET);
    assert_int_equal(seen.intercept[SVM_WORD_EXCEPTIONS], BIT(VECTOR_MC));
    assert_false(seen.rflags & RFLAGS_TF);
    enter(guest_cpuid);
    assert_false(vcpu.ctx[0].hw->prepare);
}

static void test_nmi_step_keeps_a_breakpoint(void **state)
{
    (void)state;
    block_nmis();
    enter(guest_iret_watched);
    assert_int_equal(result.kind, EXIT_NONE); // nobody waited for the window
    assert_true(result.interrupted.valid);
    assert_int_equal(result.interrupted.vector, VECTOR_DB);
    assert_int_equal(result.interrupted.payload, DR6_B(2));
    assert_int_equal(vcpu.ctx[0].state.interruptibility, 0);
}

static void test_nmi_step_of_a_faulting_iret(void **state)
{
    (void)state;
    block_nmis();
    enter(guest_iret_faults);
    assert_int_equal(result.kind, EXIT_NONE);
    assert_true(result.interrupted.valid);
    assert_int_equal(result.interrupted.vector, VECTOR_PF);
    assert_int_equal(vcpu.ctx[0].hw->vmcb->cr2, 0x7000);
    assert_int_equal(vcpu.ctx[0].state.rflags, RFLAGS_FIXED);
    assert_int_equal(vcpu.ctx[0].state.interruptibility, BLOCK_NMI);
    enter(guest_at_iret); // after the fault's handler it comes again
    enter(guest_iret_done);
    assert_int_equal(vcpu.ctx[0].state.interruptibility, 0);
}

static void test_an_event_before_the_iret(void **state)
{
    (void)state;
    block_nmis();
    inject(0x30, EVENT_INTERRUPT, 0);
    enter(guest_cpuid);
    assert_false(seen.rflags & RFLAGS_TF); // its handler runs first: no step
    assert_true(seen.intercept[SVM_WORD_3] & SVM_INTERCEPT_IRET);
}

static void test_interrupted_nmi_is_not_in_service(void **state)
{
    (void)state;
    inject(2, EVENT_NMI, 0);
    enter(guest_delivery_faults);
    assert_int_equal(result.interrupted.type, EVENT_NMI);
    assert_int_equal(vcpu.ctx[0].state.interruptibility, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_segments, setup, teardown),
        cmocka_unit_test_setup_teardown(test_efer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_intercepts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_shadowed_cr0_follows_the_state, setup, teardown),
        cmocka_unit_test_setup_teardown(test_asids, setup, teardown),
        cmocka_unit_test_setup_teardown(test_clean_bits, setup, teardown),
        cmocka_unit_test_setup_teardown(test_last_branches, setup, teardown),
        cmocka_unit_test_setup_teardown(test_select_carries_shared_state, setup, teardown),
        cmocka_unit_test_setup_teardown(test_encoding, setup, teardown),
        cmocka_unit_test_setup_teardown(test_injection, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nmi_behind_an_injection, setup, teardown),
        cmocka_unit_test_setup_teardown(test_software_interrupt_without_nrip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_software_interrupt_with_nrip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_interrupt_window_and_shadow, setup, teardown),
        cmocka_unit_test_setup_teardown(test_offer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_exit_behind_an_interrupt, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nmi_blocking_ends_after_iret, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nmi_step_keeps_a_breakpoint, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nmi_step_of_a_faulting_iret, setup, teardown),
        cmocka_unit_test_setup_teardown(test_an_event_before_the_iret, setup, teardown),
        cmocka_unit_test_setup_teardown(test_interrupted_nmi_is_not_in_service, setup, teardown),
    };

    return cmocka_run_group_tests_name("svm entries", tests, NULL, NULL);
}
