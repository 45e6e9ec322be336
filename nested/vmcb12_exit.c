// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// #VMEXIT: the model into VMCB12, and L1 goes on behind its VMRUN with GIF clear (APM vol. 2, 15.6
// "#VMEXIT"; 15.7.1 nRIP; 15.20 EXITINTINFO; 15.21 V_TPR and V_IRQ).

#include "vmcb12.h"
#include <arch/x86/regs.h>
#include <nestor/string.h>

static struct vmcb *in_memory(struct vcpu *vcpu)
{
    return vm_ram_ptr(vcpu->vm, vcpu->nested->vmcb12_gpa, PAGE_SIZE);
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

// What the next VMRUN finds unchanged it need not load: all is also kept in `image`.
static void save_segments(struct vcpu *vcpu, const struct guest_state *s, struct vmcb *image)
{
    image->es = vmcb12_put_segment(&s->seg[SEG_ES]);
    image->cs = vmcb12_put_segment(&s->seg[SEG_CS]);
    image->ss = vmcb12_put_segment(&s->seg[SEG_SS]);
    image->ds = vmcb12_put_segment(&s->seg[SEG_DS]);
    image->cpl = (u8)vcpu_cpl(vcpu);
}

static void save_tables(const struct guest_state *s, struct vmcb *image)
{
    image->gdtr.base = s->gdtr.base;
    image->gdtr.limit = s->gdtr.limit;
    image->idtr.base = s->idtr.base;
    image->idtr.limit = s->idtr.limit;
}

static void save_state(struct vcpu *vcpu, struct vmcb *v)
{
    struct vmcb *image = &vcpu->nested->vmcb;
    struct vcpu_ctx *ctx = &vcpu->ctx[1];
    const struct guest_state *s =
        vcpu_state(vcpu, GROUP_RIP | GROUP_CR | GROUP_CODE | GROUP_DATA | GROUP_TABLES |
                             GROUP_EFER_PAT | GROUP_DEBUG | GROUP_BLOCKING | GROUP_CR2 | GROUP_DR6);

    if (unlikely((ctx->news | ctx->dirty) & (GROUP_CODE | GROUP_DATA)))
        save_segments(vcpu, s, image);
    ctx->news = 0;
    save_tables(s, image);
    memcpy(&v->es, &image->es, 4 * sizeof(v->es));
    v->cpl = image->cpl;
    v->gdtr = image->gdtr;
    v->idtr = image->idtr;
    v->rip = s->rip;
    v->rsp = s->rsp;
    v->rax = vcpu->gpr[GPR_RAX];
    v->rflags = s->rflags;
    v->cr0 = image->cr0 = s->cr0;
    v->cr2 = vcpu->cr2;
    v->cr3 = image->cr3 = s->cr3;
    v->cr4 = image->cr4 = s->cr4;
    v->efer = image->efer = s->efer;
    v->dr6 = image->dr6 = vcpu->dr6;
    v->dr7 = image->dr7 = s->dr7;
    if (vmcb12_npt(vcpu))
        v->g_pat = image->g_pat = s->pat;
    v->interrupt_shadow = s->interruptibility & (BLOCK_STI | BLOCK_MOV_SS) ? 1 : 0;
}

static void save_branches(const struct guest_state *s, struct vmcb *v)
{
    v->dbgctl = s->debugctl;
    v->br_from = s->last_branch[0];
    v->br_to = s->last_branch[1];
    v->last_excp_from = s->last_branch[2];
    v->last_excp_to = s->last_branch[3];
}

static void save_virtual(const struct nested *n, struct vmcb *v)
{
    v->v_tpr = n->vmcb.v_tpr;
    v->v_irq = n->vmcb.v_irq;
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

// Where nRIP save is offered: the next instruction's address for instructions, else 0 (15.7.1).
static void write_nrip(struct vcpu *vcpu, struct vmcb *v, const struct vm_exit *exit)
{
    if (!vmcb12_has(vcpu, SVM_FEATURE_NRIPS))
        return;
    v->nrip = 0;
    if (!exit)
        return;
    v->nrip = exit->next_rip ? exit->next_rip : vcpu->cur->state.rip + exit->insn_len;
    if (!exit->next_rip && !vcpu_mode_64bit(vcpu))
        v->nrip = (u32)v->nrip;
}

// Decode assists: the instruction of an intercepted #PF, or nested page fault, on data (15.8.4).
static void write_insn_bytes(struct vcpu *vcpu, struct vmcb *v)
{
    bool fault = v->exitcode == VMEXIT_EXCP0 + VECTOR_PF || v->exitcode == VMEXIT_NPF;

    if (!vmcb12_has(vcpu, SVM_FEATURE_DECODE_ASSISTS))
        return;
    v->insn_bytes_count = 0;
    if (fault && !(v->exitinfo1 & PF_I) && !(v->exitintinfo & SVM_EVENT_V))
        v->insn_bytes_count = (u8)insn_peek(vcpu, v->insn_bytes);
}

// To where L1 goes on: behind its VMRUN, with the VMLOAD group that L2 had.
static void leave(struct vcpu *vcpu)
{
    const struct guest_state *l1;

    vcpu->events.reinject.valid = false;
    vcpu->events.exception.valid = false;
    nested_leave_l2(vcpu);
    l1 = vcpu_state(vcpu, GROUP_DEBUG | GROUP_BLOCKING);
    if (l1->dr7 != DR7_FIXED)
        vcpu_modify(vcpu, GROUP_DEBUG)->dr7 = DR7_FIXED;
    if (unlikely(backend->last_branches) && !vmcb12_lbrv(vcpu))
        vmcb12_hand_branches(&vcpu->ctx[1].state, vcpu_modify(vcpu, GROUP_DEBUG));
    if ((l1->interruptibility ^ vcpu->ctx[1].state.interruptibility) & BLOCK_NMI)
        vcpu_modify(vcpu, GROUP_BLOCKING)->interruptibility ^= BLOCK_NMI;
    if (!vmcb12_npt(vcpu) && l1->pat != vcpu->ctx[1].state.pat) // one PAT for both
        vcpu_modify(vcpu, GROUP_EFER_PAT)->pat = vcpu->ctx[1].state.pat;
    vcpu->gpr[GPR_RAX] = vcpu->nested->host_rax;
    vmcb12_set_gif(vcpu, false);
    vcpu->events.debug_check |= l1->pending_dbg != 0; // the single step of VMRUN itself
}

void vmcb12_exit(struct vcpu *vcpu, u64 code, u64 info1, u64 info2, const struct vm_exit *exit)
{
    struct vmcb *v = in_memory(vcpu);

    save_state(vcpu, v);
    if (unlikely(vmcb12_lbrv(vcpu)))
        save_branches(&vcpu->ctx[1].state, v);
    save_virtual(vcpu->nested, v);
    write_exit(v, code, info1, info2, exitintinfo(&vcpu->events.reinject));
    write_nrip(vcpu, v, exit);
    write_insn_bytes(vcpu, v);
    leave(vcpu);
}

void vmcb12_exit_invalid(struct vcpu *vcpu)
{
    write_exit(in_memory(vcpu), VMEXIT_INVALID, 0, 0, 0);
    vcpu_modify(vcpu, GROUP_DEBUG)->dr7 = DR7_FIXED;
    vmcb12_set_gif(vcpu, false);
}

// A nested page fault (15.25.6): what L1's tables lack; bits 33:32 say for what they were walked.
void vmcb12_stage2_fault(struct vcpu *vcpu, const struct vm_exit *exit,
                         const struct l1_fault *fault)
{
    u64 stage = exit->stage2.gla_final ? SVM_NPF_FINAL : SVM_NPF_TABLE;

    vmcb12_exit(vcpu, VMEXIT_NPF, fault->error_code | stage, exit->stage2.gpa, NULL);
}
