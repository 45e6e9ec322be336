// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// SVM for guests: VMRUN with the VMCB that L1 wrote (VMCB12), VMLOAD, VMSAVE, STGI, CLGI, and the
// #VMEXIT back to L1. APM vol. 2 chapter 15 ("VMRUN and #VMEXIT", "Intercept Operation", "Event
// Injection", "Global Interrupt Flag"). What is not offered is refused: an entry that asks for
// nested paging, virtual interrupts, virtual GIF, LBR virtualization or an instruction's intercept
// that Nestor can't set ends in VMEXIT_INVALID.
//
// Not exact: a CR8 access by an L2 with V_INTR_MASKING reaches the physical TPR, not V_TPR; an
// interrupt that L1 neither intercepts nor masks by its IF waits for L2's IF also with
// V_INTR_MASKING.

#include "nested.h"
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <arch/x86/svm.h>
#include <nestor/log.h>
#include <nestor/page.h>
#include <nestor/string.h>

enum { MSRPM_SIZE = 0x2000, IOPM_SIZE = 0x3000, MSRPM_USED = 0x1800 };

struct nested {
    u64 hsave_pa;
    gpa_t vmcb12_gpa;
    bool host_if; // L1's RFLAGS.IF at VMRUN
    struct vmcb
        vmcb; // VMCB12 as it was read at VMRUN: checked and used from here, never read twice
};

// --- between VMCB12's layout and the model's ---

static struct segment segment_from_vmcb(const struct vmcb_segment *v)
{
    struct segment s = {.selector = v->selector, .limit = v->limit, .base = v->base};

    s.access = (v->attrib & 0xffu) | (v->attrib & 0xf00u) << 4;
    if (!(s.access & SEG_P))
        s.access |= SEG_UNUSABLE;
    return s;
}

static struct vmcb_segment segment_to_vmcb(const struct segment *s)
{
    struct vmcb_segment v = {.selector = s->selector, .limit = s->limit, .base = s->base};

    v.attrib = (u16)((s->access & 0xff) | (s->access >> 4 & 0xf00));
    if (s->access & SEG_UNUSABLE)
        v.attrib &= (u16)~SEG_P;
    return v;
}

// The shared groups are L1's until here: what VMRUN loads of them is changed in the model.
static void state_from_vmcb(struct vcpu *vcpu, const struct vmcb *v)
{
    struct guest_state *s = &vcpu->ctx[1].state;

    s->seg[SEG_ES] = segment_from_vmcb(&v->es);
    s->seg[SEG_CS] = segment_from_vmcb(&v->cs);
    s->seg[SEG_SS] = segment_from_vmcb(&v->ss);
    s->seg[SEG_DS] = segment_from_vmcb(&v->ds);
    // The CPL field counts; the model keeps it in SS.DPL.
    s->seg[SEG_SS].access = (s->seg[SEG_SS].access & ~(u32)SEG_DPL) | (u32)(v->cpl & 3)
                                                                          << SEG_DPL_SHIFT;
    s->gdtr = (struct table_register){v->gdtr.base, v->gdtr.limit};
    s->idtr = (struct table_register){v->idtr.base, v->idtr.limit};
    s->rip = v->rip;
    s->rsp = v->rsp;
    s->rflags = v->rflags | RFLAGS_FIXED;
    s->cr0 = v->cr0;
    s->cr3 = v->cr3;
    s->cr4 = v->cr4;
    s->efer = v->efer;
    s->dr7 = v->dr7 | DR7_FIXED;
    s->interruptibility = v->interrupt_shadow & 1 ? BLOCK_STI : 0;
    s->activity = ACTIVITY_ACTIVE;
    s->pending_dbg = 0;
    vcpu->gpr[GPR_RAX] = v->rax;
    vcpu_modify(vcpu, GROUP_CR2 | GROUP_DR);
    vcpu->cr2 = v->cr2;
    vcpu->dr6 = (v->dr6 & 0xe00f) | DR6_FIXED;
}

static void state_to_vmcb(struct vcpu *vcpu, struct vmcb *v)
{
    const struct guest_state *s =
        vcpu_state(vcpu, GROUP_RIP | GROUP_CR | GROUP_CODE | GROUP_DATA | GROUP_TABLES |
                             GROUP_EFER_PAT | GROUP_DEBUG | GROUP_BLOCKING | GROUP_CR2 | GROUP_DR);

    v->es = segment_to_vmcb(&s->seg[SEG_ES]);
    v->cs = segment_to_vmcb(&s->seg[SEG_CS]);
    v->ss = segment_to_vmcb(&s->seg[SEG_SS]);
    v->ds = segment_to_vmcb(&s->seg[SEG_DS]);
    v->cpl = (u8)vcpu_cpl(vcpu);
    v->gdtr.base = s->gdtr.base;
    v->gdtr.limit = s->gdtr.limit;
    v->idtr.base = s->idtr.base;
    v->idtr.limit = s->idtr.limit;
    v->rip = s->rip;
    v->rsp = s->rsp;
    v->rax = vcpu->gpr[GPR_RAX];
    v->rflags = s->rflags;
    v->cr0 = s->cr0;
    v->cr2 = vcpu->cr2;
    v->cr3 = s->cr3;
    v->cr4 = s->cr4;
    v->efer = s->efer;
    v->dr6 = vcpu->dr6;
    v->dr7 = s->dr7;
    v->interrupt_shadow = s->interruptibility & (BLOCK_STI | BLOCK_MOV_SS) ? 1 : 0;
}

// VMRUN and #VMEXIT leave FS, GS, TR, LDTR and SYSENTER alone: the running context has them.
static void hand_over_vmload_group(const struct guest_state *from, struct guest_state *to)
{
    memcpy(&to->seg[SEG_FS], &from->seg[SEG_FS], (SEG_COUNT - SEG_FS) * sizeof(to->seg[0]));
    to->sysenter_cs = from->sysenter_cs;
    to->sysenter_esp = from->sysenter_esp;
    to->sysenter_eip = from->sysenter_eip;
}

// --- VMRUN ---

static bool wants_unoffered(const struct vmcb *v)
{
    return v->np_enable || v->lbr_control || (v->v_irq & SVM_V_IRQ) ||
           (v->v_ctl & SVM_V_GIF_ENABLE) || (v->intercept[SVM_WORD_4] & BITS(31, 15)) ||
           (v->intercept[SVM_WORD_5] & ~(u32)SVM_INTERCEPT_INVPCID);
}

static bool bad_control_registers(struct vcpu *vcpu, const struct vmcb *v)
{
    bool long_mode = (v->efer & EFER_LME) && (v->cr0 & CR0_PG);

    if ((!(v->cr0 & CR0_CD) && (v->cr0 & CR0_NW)) || v->cr0 >> 32)
        return true;
    if (long_mode && (v->cr3 & ~BITS(cpuid_phys_bits(vcpu->vm) - 1, 0)))
        return true;
    if ((v->cr4 & ~cr4_allowed(vcpu)) || v->dr6 >> 32 || v->dr7 >> 32)
        return true;
    if (long_mode && (!(v->cr4 & CR4_PAE) || !(v->cr0 & CR0_PE)))
        return true;
    return long_mode && (v->cs.attrib & BIT(9)) && (v->cs.attrib & BIT(10)); // CS.L and CS.D
}

// "Event Injection": a reserved type, or an exception that is none (vector 2 is the NMI).
static bool bad_eventinj(u64 eventinj)
{
    u8 type = eventinj >> SVM_EVENT_TYPE_SHIFT & 7, vector = (u8)eventinj;

    if (!(eventinj & SVM_EVENT_V))
        return false;
    return type == 1 || type > SVM_EVENT_SOFT_INT ||
           (type == SVM_EVENT_EXCEPTION && (vector > 31 || vector == VECTOR_NMI));
}

static bool beyond_memory(struct vcpu *vcpu, u64 address, u64 size)
{
    u64 limit = 1ull << cpuid_phys_bits(vcpu->vm);

    return address >= limit || limit - address < size;
}

// The consistency checks ("Canonicalization and Consistency Checks").
static bool is_illegal(struct vcpu *vcpu, const struct vmcb *v)
{
    u64 efer_known = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX | EFER_SVME | EFER_FFXSR;

    if (!(v->efer & EFER_SVME) || (v->efer & ~efer_known) || bad_control_registers(vcpu, v))
        return true;
    if (!(v->intercept[SVM_WORD_4] & SVM_INTERCEPT_VMRUN) || !v->guest_asid)
        return true;
    if (beyond_memory(vcpu, v->msrpm_base_pa & PAGE_MASK, MSRPM_SIZE) ||
        beyond_memory(vcpu, v->iopm_base_pa & PAGE_MASK, IOPM_SIZE))
        return true;
    return bad_eventinj(v->eventinj) || wants_unoffered(v);
}

// What is injected as INT n, INT3 or INTO pushes RIP as it is: nRIP save is not offered.
static void take_eventinj(struct vcpu *vcpu, u64 eventinj)
{
    u8 vector = (u8)eventinj, type = eventinj >> SVM_EVENT_TYPE_SHIFT & 7;
    bool software = type == SVM_EVENT_SOFT_INT;

    if (!(eventinj & SVM_EVENT_V))
        return;
    if (type == SVM_EVENT_EXCEPTION && (vector == VECTOR_BP || vector == VECTOR_OF)) {
        type = EVENT_SOFT_EXCEPTION;
        software = true;
    }
    vcpu->events.reinject = (struct event){
        .valid = true,
        .vector = vector,
        .type = type,
        .has_error = eventinj & SVM_EVENT_EV,
        .error = (u32)(eventinj >> 32),
        .rip_is_next = software,
    };
}

static u64 exitintinfo(const struct event *event)
{
    u8 type = event->type == EVENT_SOFT_EXCEPTION || event->type == EVENT_INT1
                  ? (u8)SVM_EVENT_EXCEPTION
                  : event->type;

    if (!event->valid)
        return 0;
    return event->vector | (u64)type << SVM_EVENT_TYPE_SHIFT | SVM_EVENT_V |
           (event->has_error ? SVM_EVENT_EV | (u64)event->error << 32 : 0);
}

// L2's own MSR map: what Nestor passes, less what L1 intercepts. The last 2 KiB of both are not
// used.
static void merge_msrpm(struct vcpu *vcpu, const struct vmcb *v)
{
    struct controls *ctl = &vcpu->ctx[1].ctl;
    u64 *merged = vcpu->nested_bitmap;
    const u64 *own = (const u64 *)vcpu->vm->msr_bitmap, *l1s;

    if (!(v->intercept[SVM_WORD_3] & SVM_INTERCEPT_MSR))
        return; // Nestor's own
    l1s = vm_ram_ptr(vcpu->vm, v->msrpm_base_pa & PAGE_MASK, MSRPM_SIZE);
    for (unsigned i = 0; i < MSRPM_USED / 8; i++)
        merged[i] = l1s ? own[i] | l1s[i] : ~0ull;
    ctl->msr_bitmap = merged;
}

// What L1 wants beside what Nestor needs; the neutral controls name it, the answer is looked up in
// VMCB12 at the exit.
static const struct {
    u8 word;
    u32 bits;
    u64 intercept;
} intercept_rows[] = {
    {SVM_WORD_3, SVM_INTERCEPT_CR0_SEL_WRITE, INTERCEPT_CR0_SELECTIVE},
    {SVM_WORD_3, SVM_INTERCEPT_IDTR_READ, INTERCEPT_IDTR_READ},
    {SVM_WORD_3, SVM_INTERCEPT_GDTR_READ, INTERCEPT_GDTR_READ},
    {SVM_WORD_3, SVM_INTERCEPT_LDTR_READ, INTERCEPT_LDTR_READ},
    {SVM_WORD_3, SVM_INTERCEPT_TR_READ, INTERCEPT_TR_READ},
    {SVM_WORD_3, SVM_INTERCEPT_IDTR_WRITE, INTERCEPT_IDTR_WRITE},
    {SVM_WORD_3, SVM_INTERCEPT_GDTR_WRITE, INTERCEPT_GDTR_WRITE},
    {SVM_WORD_3, SVM_INTERCEPT_LDTR_WRITE, INTERCEPT_LDTR_WRITE},
    {SVM_WORD_3, SVM_INTERCEPT_TR_WRITE, INTERCEPT_TR_WRITE},
    {SVM_WORD_3, SVM_INTERCEPT_RDTSC, INTERCEPT_RDTSC},
    {SVM_WORD_3, SVM_INTERCEPT_RDPMC, INTERCEPT_RDPMC},
    {SVM_WORD_3, SVM_INTERCEPT_PUSHF, INTERCEPT_PUSHF},
    {SVM_WORD_3, SVM_INTERCEPT_POPF, INTERCEPT_POPF},
    {SVM_WORD_3, SVM_INTERCEPT_RSM, INTERCEPT_RSM},
    {SVM_WORD_3, SVM_INTERCEPT_IRET, INTERCEPT_IRET},
    {SVM_WORD_3, SVM_INTERCEPT_SWINT, INTERCEPT_SOFT_INT},
    {SVM_WORD_3, SVM_INTERCEPT_PAUSE, INTERCEPT_PAUSE},
    {SVM_WORD_3, SVM_INTERCEPT_HLT, INTERCEPT_HLT},
    {SVM_WORD_3, SVM_INTERCEPT_INVLPG, INTERCEPT_INVLPG},
    {SVM_WORD_4, SVM_INTERCEPT_RDTSCP, INTERCEPT_RDTSCP},
    {SVM_WORD_4, SVM_INTERCEPT_ICEBP, INTERCEPT_ICEBP},
    {SVM_WORD_4, SVM_INTERCEPT_WBINVD, INTERCEPT_WBINVD},
    {SVM_WORD_4, SVM_INTERCEPT_MONITOR, INTERCEPT_MONITOR},
    {SVM_WORD_4, SVM_INTERCEPT_MWAIT | SVM_INTERCEPT_MWAIT_CONDITIONAL, INTERCEPT_MWAIT},
    {SVM_WORD_4, SVM_INTERCEPT_RDPRU, INTERCEPT_RDPRU},
    {SVM_WORD_5, SVM_INTERCEPT_INVPCID, INTERCEPT_INVPCID},
};

static void merge_controls(struct vcpu *vcpu, const struct vmcb *v)
{
    struct controls *ctl = &vcpu->ctx[1].ctl;

    nested_base_controls(vcpu);
    for (unsigned i = 0; i < ARRAY_SIZE(intercept_rows); i++)
        if (v->intercept[intercept_rows[i].word] & intercept_rows[i].bits)
            ctl->intercepts |= intercept_rows[i].intercept;
    ctl->cr_intercepts = v->intercept[SVM_WORD_CR];
    ctl->dr_intercepts = v->intercept[SVM_WORD_DR];
    ctl->exception_bitmap |= v->intercept[SVM_WORD_EXCEPTIONS];
    ctl->tsc_offset += v->tsc_offset;
    merge_msrpm(vcpu, v);
}

static struct vmcb *vmcb12_in_memory(struct vcpu *vcpu)
{
    return vm_ram_ptr(vcpu->vm, vcpu->nested->vmcb12_gpa, PAGE_SIZE);
}

// What an exit leaves in the VMCB beside the state.
static void write_exit(struct vmcb *v, u64 code, u64 info1, u64 info2, u64 intinfo)
{
    v->exitcode = code;
    v->exitinfo1 = info1;
    v->exitinfo2 = info2;
    v->exitintinfo = intinfo;
    v->eventinj &= ~SVM_EVENT_V;
}

// #VMEXIT (APM 15.6): fills VMCB12 from the model, then L1 goes on behind its VMRUN with GIF clear.
static void vmexit(struct vcpu *vcpu, u64 code, u64 info1, u64 info2)
{
    struct nested *n = vcpu->nested;
    struct vmcb *v = vmcb12_in_memory(vcpu);
    struct vcpu_events *ev = &vcpu->events;
    struct guest_state *l1;

    state_to_vmcb(vcpu, v);
    write_exit(v, code, info1, info2, exitintinfo(&ev->reinject));
    ev->reinject.valid = false;
    ev->exception.valid = false;
    vcpu_state(vcpu, GROUP_SYSTEM | GROUP_SYSENTER);
    nested_leave_l2(vcpu);
    l1 = vcpu_modify(vcpu, GROUP_DEBUG | GROUP_SYSTEM | GROUP_SYSENTER);
    hand_over_vmload_group(&vcpu->ctx[1].state, l1);
    l1->dr7 = DR7_FIXED;
    vcpu->gpr[GPR_RAX] = n->vmcb12_gpa;
    ev->gif_clear = true;
}

// A VMRUN that its checks refuse: exits at once, nothing of L2's loaded (APM 15.5.1).
static void vmexit_invalid(struct vcpu *vcpu)
{
    write_exit(vmcb12_in_memory(vcpu), VMEXIT_INVALID, 0, 0, 0);
    vcpu_modify(vcpu, GROUP_DEBUG)->dr7 = DR7_FIXED;
    vcpu->events.gif_clear = true;
}

static void do_vmrun(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    const struct vmcb *v = &n->vmcb;
    const struct guest_state *l1 =
        vcpu_state(vcpu, GROUP_RIP | GROUP_SYSTEM | GROUP_SYSENTER | GROUP_EFER_PAT);

    n->host_if = l1->rflags & RFLAGS_IF;
    if (is_illegal(vcpu, v)) {
        vmexit_invalid(vcpu);
        return;
    }
    state_from_vmcb(vcpu, v);
    vcpu->ctx[1].state.pat = l1->pat; // no nested paging: one PAT for both
    hand_over_vmload_group(l1, &vcpu->ctx[1].state);
    merge_controls(vcpu, v);
    vcpu->events.gif_clear = false;
    nested_enter_l2(vcpu);
    take_eventinj(vcpu, v->eventinj);
}

// --- VMLOAD, VMSAVE ---

static void do_vmload(struct vcpu *vcpu, const struct vmcb *v)
{
    struct guest_state *s = vcpu_modify(vcpu, GROUP_SYSTEM | GROUP_SYSENTER | GROUP_SYSCALL);

    s->seg[SEG_FS] = segment_from_vmcb(&v->fs);
    s->seg[SEG_GS] = segment_from_vmcb(&v->gs);
    s->seg[SEG_TR] = segment_from_vmcb(&v->tr);
    s->seg[SEG_LDTR] = segment_from_vmcb(&v->ldtr);
    s->sysenter_cs = v->sysenter_cs;
    s->sysenter_esp = v->sysenter_esp;
    s->sysenter_eip = v->sysenter_eip;
    vcpu->star = v->star;
    vcpu->lstar = v->lstar;
    vcpu->cstar = v->cstar;
    vcpu->sfmask = v->sfmask;
    vcpu->kernel_gs_base = v->kernel_gs_base;
}

static void do_vmsave(struct vcpu *vcpu, struct vmcb *v)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_SYSTEM | GROUP_SYSENTER | GROUP_SYSCALL);

    v->fs = segment_to_vmcb(&s->seg[SEG_FS]);
    v->gs = segment_to_vmcb(&s->seg[SEG_GS]);
    v->tr = segment_to_vmcb(&s->seg[SEG_TR]);
    v->ldtr = segment_to_vmcb(&s->seg[SEG_LDTR]);
    v->sysenter_cs = s->sysenter_cs;
    v->sysenter_esp = s->sysenter_esp;
    v->sysenter_eip = s->sysenter_eip;
    v->star = vcpu->star;
    v->lstar = vcpu->lstar;
    v->cstar = vcpu->cstar;
    v->sfmask = vcpu->sfmask;
    v->kernel_gs_base = vcpu->kernel_gs_base;
}

// --- the instructions ---

static gpa_t operand(struct vcpu *vcpu)
{
    return vcpu_mode_64bit(vcpu) ? vcpu->gpr[GPR_RAX] : (u32)vcpu->gpr[GPR_RAX];
}

// #UD without SVME or outside protected mode, then #GP for CPL and, where rAX is an address, for a
// bad one. True: go on.
static bool may_execute(struct vcpu *vcpu, bool has_address)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_EFER_PAT | GROUP_RIP);
    gpa_t address = operand(vcpu);

    if (!(s->efer & EFER_SVME) || !(s->cr0 & CR0_PE) || (s->rflags & RFLAGS_VM)) {
        vcpu_inject_ud(vcpu);
        return false;
    }
    if (vcpu_cpl(vcpu) || (has_address && (!IS_ALIGNED(address, PAGE_SIZE) ||
                                           !vm_ram_ptr(vcpu->vm, address, PAGE_SIZE)))) {
        vcpu_inject_gp0(vcpu);
        return false;
    }
    return true;
}

static void run_vmrun(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;

    if (!may_execute(vcpu, true))
        return;
    n->vmcb12_gpa = operand(vcpu);
    guest_read_gpa(vcpu, n->vmcb12_gpa, &n->vmcb, sizeof(n->vmcb));
    vcpu_finish_exit(vcpu, exit);
    do_vmrun(vcpu);
}

static void run_vmload(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (!may_execute(vcpu, true))
        return;
    do_vmload(vcpu, vm_ram_ptr(vcpu->vm, operand(vcpu), PAGE_SIZE));
    vcpu_finish_exit(vcpu, exit);
}

static void run_vmsave(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (!may_execute(vcpu, true))
        return;
    do_vmsave(vcpu, vm_ram_ptr(vcpu->vm, operand(vcpu), PAGE_SIZE));
    vcpu_finish_exit(vcpu, exit);
}

static void run_gif(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (!may_execute(vcpu, false))
        return;
    vcpu->events.gif_clear = exit->kind == EXIT_CLGI;
    vcpu->events.interrupts_check = true;
    vcpu_finish_exit(vcpu, exit);
}

static void run_invlpga(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (!may_execute(vcpu, false))
        return;
    vcpu->ctx[0].flush |= TLB_FLUSH_GUEST;
    vcpu->ctx[1].flush |= TLB_FLUSH_GUEST;
    vcpu_finish_exit(vcpu, exit);
}

static void vmcb12_instruction(struct vcpu *vcpu, struct vm_exit *exit)
{
    switch (exit->kind) {
    case EXIT_VMRUN:
        run_vmrun(vcpu, exit);
        break;
    case EXIT_VMLOAD:
        run_vmload(vcpu, exit);
        break;
    case EXIT_VMSAVE:
        run_vmsave(vcpu, exit);
        break;
    case EXIT_STGI:
    case EXIT_CLGI:
        run_gif(vcpu, exit);
        break;
    case EXIT_INVLPGA:
        run_invlpga(vcpu, exit);
        break;
    default: // SKINIT is not offered in CPUID; VMX's instructions do not exist here
        vcpu_inject_ud(vcpu);
        break;
    }
}

// --- does L1 want this exit? ---

struct exit_row {
    u8 kind, word;
    u32 bit;
    u16 code;
};

static const struct exit_row exit_rows[] = {
    {EXIT_CPUID, SVM_WORD_3, SVM_INTERCEPT_CPUID, VMEXIT_CPUID},
    {EXIT_HLT, SVM_WORD_3, SVM_INTERCEPT_HLT, VMEXIT_HLT},
    {EXIT_PAUSE, SVM_WORD_3, SVM_INTERCEPT_PAUSE, VMEXIT_PAUSE},
    {EXIT_INVD, SVM_WORD_3, SVM_INTERCEPT_INVD, VMEXIT_INVD},
    {EXIT_WBINVD, SVM_WORD_4, SVM_INTERCEPT_WBINVD, VMEXIT_WBINVD},
    {EXIT_INVLPG, SVM_WORD_3, SVM_INTERCEPT_INVLPG, VMEXIT_INVLPG},
    {EXIT_INVLPGA, SVM_WORD_3, SVM_INTERCEPT_INVLPGA, VMEXIT_INVLPGA},
    {EXIT_RDTSC, SVM_WORD_3, SVM_INTERCEPT_RDTSC, VMEXIT_RDTSC},
    {EXIT_RDTSCP, SVM_WORD_4, SVM_INTERCEPT_RDTSCP, VMEXIT_RDTSCP},
    {EXIT_RDPMC, SVM_WORD_3, SVM_INTERCEPT_RDPMC, VMEXIT_RDPMC},
    {EXIT_RSM, SVM_WORD_3, SVM_INTERCEPT_RSM, VMEXIT_RSM},
    {EXIT_FERR_FREEZE, SVM_WORD_3, SVM_INTERCEPT_FERR_FREEZE, VMEXIT_FERR_FREEZE},
    {EXIT_PUSHF, SVM_WORD_3, SVM_INTERCEPT_PUSHF, VMEXIT_PUSHF},
    {EXIT_POPF, SVM_WORD_3, SVM_INTERCEPT_POPF, VMEXIT_POPF},
    {EXIT_IRET, SVM_WORD_3, SVM_INTERCEPT_IRET, VMEXIT_IRET},
    {EXIT_SOFT_INT, SVM_WORD_3, SVM_INTERCEPT_SWINT, VMEXIT_SWINT},
    {EXIT_TRIPLE_FAULT, SVM_WORD_3, SVM_INTERCEPT_SHUTDOWN, VMEXIT_SHUTDOWN},
    {EXIT_VMRUN, SVM_WORD_4, SVM_INTERCEPT_VMRUN, VMEXIT_VMRUN},
    {EXIT_VMMCALL, SVM_WORD_4, SVM_INTERCEPT_VMMCALL, VMEXIT_VMMCALL},
    {EXIT_VMLOAD, SVM_WORD_4, SVM_INTERCEPT_VMLOAD, VMEXIT_VMLOAD},
    {EXIT_VMSAVE, SVM_WORD_4, SVM_INTERCEPT_VMSAVE, VMEXIT_VMSAVE},
    {EXIT_STGI, SVM_WORD_4, SVM_INTERCEPT_STGI, VMEXIT_STGI},
    {EXIT_CLGI, SVM_WORD_4, SVM_INTERCEPT_CLGI, VMEXIT_CLGI},
    {EXIT_SKINIT, SVM_WORD_4, SVM_INTERCEPT_SKINIT, VMEXIT_SKINIT},
    {EXIT_MONITOR, SVM_WORD_4, SVM_INTERCEPT_MONITOR, VMEXIT_MONITOR},
    {EXIT_MWAIT, SVM_WORD_4, SVM_INTERCEPT_MWAIT, VMEXIT_MWAIT},
    {EXIT_XSETBV, SVM_WORD_4, SVM_INTERCEPT_XSETBV, VMEXIT_XSETBV},
    {EXIT_RDPRU, SVM_WORD_4, SVM_INTERCEPT_RDPRU, VMEXIT_RDPRU},
    {EXIT_ICEBP, SVM_WORD_4, SVM_INTERCEPT_ICEBP, VMEXIT_ICEBP},
    {EXIT_INVPCID, SVM_WORD_5, SVM_INTERCEPT_INVPCID, VMEXIT_INVPCID},
};

// SGDT and the like: word 3 has their bits, appendix C their codes, in one order.
static bool reflect_tables(struct vcpu *vcpu, const struct vm_exit *exit)
{
    static const u8 order[2][4] = {{1, 0, 5, 4},
                                   {2, 3, 6, 7}}; // by `identity`: GDTR and IDTR, LDTR and TR
    unsigned n = order[exit->kind == EXIT_LDTR_TR][exit->operand.identity & 3];

    if (!(vcpu->nested->vmcb.intercept[SVM_WORD_3] & (u32)SVM_INTERCEPT_IDTR_READ << n))
        return false;
    vmexit(vcpu, (u64)VMEXIT_IDTR_READ + n, 0, 0);
    return true;
}

static bool reflect_by_bit(struct vcpu *vcpu, const struct vm_exit *exit)
{
    const struct vmcb *v = &vcpu->nested->vmcb;

    for (unsigned i = 0; i < ARRAY_SIZE(exit_rows); i++)
        if (exit_rows[i].kind == exit->kind) {
            if (!(v->intercept[exit_rows[i].word] & exit_rows[i].bit))
                return false;
            vmexit(vcpu, exit_rows[i].code, 0, 0); // decode assists are not offered
            return true;
        }
    return false;
}

// EXITINFO1 of IOIO and EXITINFO2 of task switches (APM 15.10.2, 15.14.1), from the neutral exit:
// one that Nestor makes itself has no other.
static u64 io_info(struct vcpu *vcpu, const struct exit_io *io)
{
    unsigned addr_size = io->addr_size <= 8 ? io->addr_size : vcpu_code_size(vcpu);
    u64 seg = io->seg < SEG_LDTR ? io->seg : SEG_DS;

    return (io->in ? SVM_IOIO_IN : 0) |
           (io->string ? SVM_IOIO_STR | seg << SVM_IOIO_SEG_SHIFT : 0) |
           (io->rep ? SVM_IOIO_REP : 0) | (u64)io->size << SVM_IOIO_SIZE_SHIFT |
           (u64)(addr_size / 2) << SVM_IOIO_ADDR_SHIFT | (u64)io->port << SVM_IOIO_PORT_SHIFT;
}

static u64 next_rip_of(struct vcpu *vcpu, const struct vm_exit *exit)
{
    return exit->next_rip ? exit->next_rip : vcpu->cur->state.rip + exit->insn_len;
}

static u64 task_info(const struct exit_task_switch *task)
{
    enum { SOURCE_IRET = 1, SOURCE_JMP = 2 };

    return task->error | (task->source == SOURCE_IRET ? SVM_TASK_IRET : 0) |
           (task->source == SOURCE_JMP ? SVM_TASK_JMP : 0) |
           (task->has_error ? SVM_TASK_HAS_ERROR : 0) | (task->rf ? SVM_TASK_RF : 0);
}

// IOPM: a bit per port; an access exits if the bit of any byte is set (APM 15.10.1).
static bool reflect_io(struct vcpu *vcpu, const struct vm_exit *exit)
{
    const struct vmcb *v = &vcpu->nested->vmcb;
    u8 bytes[2] = {0xff, 0xff};
    unsigned mask = (1u << exit->io.size) - 1;

    if (!(v->intercept[SVM_WORD_3] & SVM_INTERCEPT_IOIO))
        return false;
    guest_read_gpa(vcpu, (v->iopm_base_pa & PAGE_MASK) + exit->io.port / 8, bytes, 2);
    if (!((unsigned)(bytes[0] | bytes[1] << 8) >> (exit->io.port % 8) & mask))
        return false;
    vmexit(vcpu, VMEXIT_IOIO, io_info(vcpu, &exit->io), next_rip_of(vcpu, exit));
    return true;
}

// MSRPM: two bits an MSR, three ranges (APM 15.11); MSRs outside them always exit.
static bool reflect_msr(struct vcpu *vcpu, const struct vm_exit *exit)
{
    static const u32 bases[] = {0, 0xc0000000, 0xc0010000};
    const struct vmcb *v = &vcpu->nested->vmcb;
    u32 msr = (u32)vcpu->gpr[GPR_RCX];
    bool write = exit->kind == EXIT_WRMSR;
    u8 byte = 0xff;

    if (!(v->intercept[SVM_WORD_3] & SVM_INTERCEPT_MSR))
        return false;
    for (unsigned i = 0; i < ARRAY_SIZE(bases); i++)
        if (msr - bases[i] < 0x2000)
            guest_read_gpa(vcpu, (v->msrpm_base_pa & PAGE_MASK) + i * 0x800 + (msr - bases[i]) / 4,
                           &byte, 1);
    if (!(byte >> (msr % 4 * 2 + write) & 1))
        return false;
    vmexit(vcpu, VMEXIT_MSR, write, 0);
    return true;
}

static bool reflect_cr(struct vcpu *vcpu, const struct vm_exit *exit)
{
    const struct vmcb *v = &vcpu->nested->vmcb;
    bool read = exit->cr.access == CR_READ;
    u32 bit = read ? SVM_CR_READ(exit->cr.number) : SVM_CR_WRITE(exit->cr.number);

    if (exit->cr.selective && (v->intercept[SVM_WORD_3] & SVM_INTERCEPT_CR0_SEL_WRITE)) {
        vmexit(vcpu, VMEXIT_CR0_SEL_WRITE, 0, 0);
        return true;
    }
    if (!(v->intercept[SVM_WORD_CR] & bit))
        return false;
    vmexit(vcpu, (u64)(read ? VMEXIT_CR0_READ : VMEXIT_CR0_WRITE) + exit->cr.number, 0, 0);
    return true;
}

static bool reflect_dr(struct vcpu *vcpu, const struct vm_exit *exit)
{
    u32 bit = 1u << (exit->dr.number + (exit->dr.write ? 16 : 0));

    if (!(vcpu->nested->vmcb.intercept[SVM_WORD_DR] & bit))
        return false;
    vmexit(vcpu, (u64)(exit->dr.write ? VMEXIT_DR0_WRITE : VMEXIT_DR0_READ) + exit->dr.number, 0,
           0);
    return true;
}

static bool vmcb12_wants_exception(struct vcpu *vcpu, const struct event *event)
{
    u64 info2 = event->vector == VECTOR_PF ? event->payload : 0;
    struct guest_state *s;

    if (event->type == EVENT_SOFT_INTERRUPT ||
        !(vcpu->nested->vmcb.intercept[SVM_WORD_EXCEPTIONS] & BIT(event->vector)))
        return false;
    if (event->vector == VECTOR_DB &&
        event->has_payload) { // DR6 and DR7 are what the handler would see ("#DB (Debug)")
        s = vcpu_modify(vcpu, GROUP_DR | GROUP_DEBUG);
        vcpu->dr6 = event_db_dr6(vcpu->dr6, event->payload);
        s->dr7 &= ~DR7_GD;
    }
    vmexit(vcpu, (u64)VMEXIT_EXCP0 + event->vector, event->has_error ? event->error : 0, info2);
    return true;
}

static bool vmcb12_reflect(struct vcpu *vcpu, struct vm_exit *exit)
{
    switch (exit->kind) {
    case EXIT_EXCEPTION:
        return vmcb12_wants_exception(vcpu, &exit->event);
    case EXIT_IO:
        return reflect_io(vcpu, exit);
    case EXIT_RDMSR:
    case EXIT_WRMSR:
        return reflect_msr(vcpu, exit);
    case EXIT_CR:
        return reflect_cr(vcpu, exit);
    case EXIT_DR:
        return reflect_dr(vcpu, exit);
    case EXIT_TASK_SWITCH:
        if (!(vcpu->nested->vmcb.intercept[SVM_WORD_3] & SVM_INTERCEPT_TASK_SWITCH))
            return false;
        vmexit(vcpu, VMEXIT_TASK_SWITCH, exit->task.selector, task_info(&exit->task));
        return true;
    case EXIT_GDTR_IDTR:
    case EXIT_LDTR_TR:
        return reflect_tables(vcpu, exit);
    case EXIT_VMMCALL: // Nestor's hypercalls are for L1
        if (!reflect_by_bit(vcpu, exit))
            vcpu_inject_ud(vcpu);
        return true;
    case EXIT_ENTRY_FAILED:
        log_error("guest %s: the CPU refused an L2 that Nestor's checks passed",
                  vcpu->vm->config->name);
        vmexit(vcpu, VMEXIT_INVALID, 0, 0);
        return true;
    default:
        return reflect_by_bit(vcpu, exit);
    }
}

static enum nested_answer exit_if(struct vcpu *vcpu, u32 bit, u64 code)
{
    if (!(vcpu->nested->vmcb.intercept[SVM_WORD_3] & bit))
        return NESTED_DELIVER;
    vmexit(vcpu, code, 0, 0);
    return NESTED_EXITED;
}

static enum nested_answer vmcb12_event(struct vcpu *vcpu, enum nested_event event)
{
    const struct nested *n = vcpu->nested;
    bool masking = n->vmcb.v_ctl & SVM_V_INTR_MASKING;
    const struct guest_state *s;

    switch (event) {
    case NESTED_INIT:
        return exit_if(vcpu, SVM_INTERCEPT_INIT, VMEXIT_INIT);
    case NESTED_NMI:
        return exit_if(vcpu, SVM_INTERCEPT_NMI, VMEXIT_NMI);
    case NESTED_INTERRUPT:
        s = vcpu_state(vcpu, GROUP_RIP | GROUP_BLOCKING);
        if (masking && !n->host_if)
            return NESTED_BLOCKED;
        if (!masking && !(s->rflags & RFLAGS_IF))
            return NESTED_DELIVER; // opens a window
        return exit_if(vcpu, SVM_INTERCEPT_INTR, VMEXIT_INTR);
    default:
        return NESTED_DELIVER;
    }
}

// --- MSRs, CPUID ---

// VM_CR is as firmware leaves it where SVM may be used for good: locked.
static int vmcb12_read_msr(struct vcpu *vcpu, u32 msr, u64 *value)
{
    if (msr != MSR_VM_CR && msr != MSR_VM_HSAVE_PA)
        return -E_NOENT;
    *value = msr == MSR_VM_CR ? VM_CR_LOCK : vcpu->nested->hsave_pa;
    return 0;
}

static int vmcb12_write_msr(struct vcpu *vcpu, u32 msr, u64 value)
{
    if (msr == MSR_VM_CR)
        return value & ~BITS(4, 0) ? -E_FAULT : 0;
    if (msr != MSR_VM_HSAVE_PA)
        return -E_NOENT;
    if (!IS_ALIGNED(value, PAGE_SIZE) || beyond_memory(vcpu, value, PAGE_SIZE))
        return -E_FAULT;
    vcpu->nested->hsave_pa = value;
    return 0;
}

static int vmcb12_check_cr(const struct vcpu *vcpu, unsigned number, u64 value)
{
    (void)vcpu, (void)number, (void)value;
    return 0;
}

static void vmcb12_cpuid(u32 leaf, u32 regs[4])
{
    if (leaf == 0x80000001)
        regs[2] |= BIT(2); // SVM
    if (leaf == 0x8000000a) {
        regs[0] = 1;           // revision
        regs[1] = 16;          // ASIDs
        regs[2] = regs[3] = 0; // no optional feature yet
    }
}

static void vmcb12_reset(struct vcpu *vcpu)
{
    vcpu->events.gif_clear = false;
}

const struct nested_ops vmcb12_ops = {
    .state_size = sizeof(struct nested),
    .bitmap_order = 1,
    .reset = vmcb12_reset,
    .reflect = vmcb12_reflect,
    .instruction = vmcb12_instruction,
    .event = vmcb12_event,
    .wants_exception = vmcb12_wants_exception,
    .read_msr = vmcb12_read_msr,
    .write_msr = vmcb12_write_msr,
    .efer_bits = EFER_SVME,
    .check_cr = vmcb12_check_cr,
    .cpuid = vmcb12_cpuid,
};
