// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// SVM for guests: the instructions, VM_CR and VM_HSAVE_PA, CPUID (APM vol. 2, 15.4 "Enabling SVM",
// 15.5, 15.16.3 INVLPGA, 15.17 "Global Interrupt Flag", 15.30 MSRs; vol. 3 each instruction's
// page). What is offered of the optional features is what Nestor implements, whatever this CPU has.

#include "nested_stage2.h"
#include "vmcb12.h"
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/decode.h>
#include <nestor/l1_stage2.h>
#include <nestor/string.h>

// --- VMLOAD, VMSAVE ---

static void do_vmload(struct vcpu *vcpu, const struct vmcb *v)
{
    struct guest_state *s = vcpu_modify(vcpu, GROUP_SYSTEM | GROUP_SYSENTER | GROUP_SYSCALL);

    s->seg[SEG_FS] = vmcb12_get_segment(&v->fs);
    s->seg[SEG_GS] = vmcb12_get_segment(&v->gs);
    s->seg[SEG_TR] = vmcb12_get_segment(&v->tr);
    s->seg[SEG_LDTR] = vmcb12_get_segment(&v->ldtr);
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

    v->fs = vmcb12_put_segment(&s->seg[SEG_FS]);
    v->gs = vmcb12_put_segment(&s->seg[SEG_GS]);
    v->tr = vmcb12_put_segment(&s->seg[SEG_TR]);
    v->ldtr = vmcb12_put_segment(&s->seg[SEG_LDTR]);
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

// rAX as far as the effective address size goes. False: the instruction can't be read, which L1 has
// a fault for.
static bool operand(struct vcpu *vcpu, const struct vm_exit *exit, gpa_t *address)
{
    enum { WITHOUT_PREFIX = 3 };
    unsigned size = vcpu_code_size(vcpu);
    struct insn insn;

    if (unlikely(exit->insn_len != WITHOUT_PREFIX)) {
        if (!insn_decode_current(vcpu, &insn))
            return false;
        size = insn.addr_size;
    }
    *address = vcpu->gpr[GPR_RAX] & BITS(size * 8 - 1, 0);
    return true;
}

bool vmcb12_may_execute(struct vcpu *vcpu)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CR | GROUP_EFER_PAT | GROUP_RIP);

    if (!(s->efer & EFER_SVME) || !(s->cr0 & CR0_PE) || (s->rflags & RFLAGS_VM)) {
        vcpu_inject_ud(vcpu);
        return false;
    }
    if (vcpu_cpl(vcpu)) {
        vcpu_inject_gp0(vcpu);
        return false;
    }
    return true;
}

// L2's own VMLOAD and VMSAVE are by L2's addresses with this, else by L1's (15.33.1).
static bool by_l2_address(struct vcpu *vcpu)
{
    const struct vmcb *v = &vcpu->nested->vmcb;

    return vcpu->level && (v->lbr_control & SVM_VIRTUAL_VMLOAD) && (v->np_enable & 1) &&
           vmcb12_has(vcpu, SVM_FEATURE_VLS) && vcpu_mode_long(vcpu);
}

// The VMCB that rAX names. NULL: the instruction is done with.
static struct vmcb *operand_vmcb(struct vcpu *vcpu, const struct vm_exit *exit, u32 access)
{
    gpa_t address;
    struct vmcb *v;
    int error;

    if (!vmcb12_may_execute(vcpu) || !operand(vcpu, exit, &address))
        return NULL;
    if (IS_ALIGNED(address, PAGE_SIZE) && by_l2_address(vcpu)) {
        error = nested_translate(vcpu, &address, 0, access);
        if (error == -E_FAULT)
            nested_tell_refused(vcpu);
        if (error)
            return NULL;
    }
    v = IS_ALIGNED(address, PAGE_SIZE) ? vm_ram_ptr(vcpu->vm, address, PAGE_SIZE) : NULL;
    if (!v)
        vcpu_inject_gp0(vcpu);
    else if (exit->kind == EXIT_VMRUN)
        vcpu->nested->vmcb12_gpa = address;
    return v;
}

static void run_vmrun(struct vcpu *vcpu, struct vm_exit *exit)
{
    const struct vmcb *v = operand_vmcb(vcpu, exit, L1_READ);
    u32 news;

    if (!v)
        return;
    vcpu->nested->host_rax = vcpu->gpr[GPR_RAX];
    news = vmcb12_read(vcpu->nested, v);
    vcpu_finish_exit(vcpu, exit);
    vmcb12_enter(vcpu, news);
}

static void run_vmload(struct vcpu *vcpu, struct vm_exit *exit)
{
    const struct vmcb *v = operand_vmcb(vcpu, exit, L1_READ);

    if (!v)
        return;
    do_vmload(vcpu, v);
    vcpu_finish_exit(vcpu, exit);
}

static void run_vmsave(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct vmcb *v = operand_vmcb(vcpu, exit, L1_WRITE);

    if (!v)
        return;
    do_vmsave(vcpu, v);
    vcpu_finish_exit(vcpu, exit);
}

// An L2's own GIF is the virtual one, if L1 gives it that (15.33).
static void run_gif(struct vcpu *vcpu, struct vm_exit *exit)
{
    bool clear = exit->kind == EXIT_CLGI;
    u8 *v_irq = &vcpu->nested->vmcb.v_irq;

    if (!vmcb12_may_execute(vcpu))
        return;
    if (vcpu->level && vmcb12_vgif(vcpu))
        *v_irq = (u8)(clear ? *v_irq & ~SVM_V_GIF : *v_irq | SVM_V_GIF);
    else
        vmcb12_set_gif(vcpu, !clear);
    vcpu->events.interrupts_check = true;
    vcpu_finish_exit(vcpu, exit);
}

// The address may stay: a flush may always drop more.
static void run_invlpga(struct vcpu *vcpu, struct vm_exit *exit)
{
    if (!vmcb12_may_execute(vcpu))
        return;
    nested_invalidate_tag(vcpu, false, (u32)vcpu->gpr[GPR_RCX]);
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

// --- MSRs, CPUID ---

static int vmcb12_read_msr(struct vcpu *vcpu, u32 msr, u64 *value)
{
    if (msr != MSR_VM_CR && msr != MSR_VM_HSAVE_PA)
        return -E_NOENT;
    *value = msr == MSR_VM_CR ? vcpu->nested->vm_cr : vcpu->nested->hsave_pa;
    return 0;
}

// SVMDIS can't be set while SVM is on; LOCK holds both as they are (15.30.1). Of the others A20M
// and debug-port disabling have nothing to act on here.
static int write_vm_cr(struct vcpu *vcpu, u64 value)
{
    u64 held = vcpu->nested->vm_cr & VM_CR_LOCK ? VM_CR_LOCK | VM_CR_SVMDIS : 0;

    if (value & ~BITS(4, 0))
        return -E_FAULT;
    if ((value & VM_CR_SVMDIS) && (vcpu_state(vcpu, GROUP_EFER_PAT)->efer & EFER_SVME))
        return -E_FAULT;
    vcpu->nested->vm_cr = (value & ~held) | (vcpu->nested->vm_cr & held);
    vcpu->events.init_redirected = value & VM_CR_R_INIT;
    return 0;
}

static int vmcb12_write_msr(struct vcpu *vcpu, u32 msr, u64 value)
{
    if (msr == MSR_VM_CR)
        return write_vm_cr(vcpu, value);
    if (msr != MSR_VM_HSAVE_PA)
        return -E_NOENT;
    if (!IS_ALIGNED(value, PAGE_SIZE) || value >> cpuid_phys_bits(vcpu->vm))
        return -E_FAULT;
    vcpu->nested->hsave_pa = value;
    return 0;
}

static u64 vmcb12_efer_bits(const struct vcpu *vcpu)
{
    return vcpu->nested->vm_cr & VM_CR_SVMDIS ? 0 : EFER_SVME;
}

static int vmcb12_check_cr(const struct vcpu *vcpu, unsigned number, u64 value)
{
    (void)vcpu, (void)number, (void)value;
    return 0;
}

// By their names in `nested-features`. Clean bits save nothing here: a VMCB12 is read anew at each
// VMRUN, which they allow.
static const struct {
    u32 bit;
    u8 name; // enum nested_feature
} offered[] = {
    {SVM_FEATURE_NP, OFFER_NPT},
    {SVM_FEATURE_NRIPS, OFFER_NRIP},
    {SVM_FEATURE_VMCB_CLEAN, OFFER_CLEAN_BITS},
    {SVM_FEATURE_FLUSH_BY_ASID, OFFER_FLUSH_BY_ASID},
    {SVM_FEATURE_DECODE_ASSISTS, OFFER_DECODE_ASSISTS},
    {SVM_FEATURE_PAUSE_FILTER, OFFER_PAUSE_FILTER},
    {SVM_FEATURE_LBR_VIRT, OFFER_LBRV}, // where this CPU has it
    {SVM_FEATURE_VGIF, OFFER_VGIF},
    {SVM_FEATURE_VLS, OFFER_VIRTUAL_VMLOAD},
};

static u32 features_of(const struct vm *vm)
{
    u32 features = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(offered); i++)
        if (vm->config->nested_features & BIT(offered[i].name))
            features |= offered[i].bit;
    return backend->last_branches ? features : features & ~(u32)SVM_FEATURE_LBR_VIRT;
}

static void vmcb12_cpuid(const struct vm *vm, u32 leaf, u32 regs[4])
{
    if (leaf == 0x80000001)
        regs[2] |= BIT(2); // SVM
    if (leaf == 0x8000000a) {
        regs[0] = 1; // revision
        regs[1] = VMCB12_ASIDS;
        regs[2] = 0;
        regs[3] = features_of(vm);
    }
}

// INIT leaves VM_HSAVE_PA and VM_CR alone, but for SVMDIS where LOCK does not hold it (15.30.1).
static void vmcb12_reset(struct vcpu *vcpu)
{
    if (!(vcpu->nested->vm_cr & VM_CR_LOCK))
        vcpu->nested->vm_cr &= ~(u64)VM_CR_SVMDIS;
    vmcb12_set_gif(vcpu, true);
    vcpu->nested->features = features_of(vcpu->vm);
    vmcb12_prepare_msrpm(vcpu);
}

const struct nested_ops vmcb12_ops = {
    .state_size = sizeof(struct nested),
    .init_keeps = offsetof(struct nested, features),
    .bitmap_order = 1,
    .kept = GROUP_SYSTEM | GROUP_SYSENTER,
    .reset = vmcb12_reset,
    .reflect = vmcb12_reflect,
    .instruction = vmcb12_instruction,
    .event = vmcb12_event,
    .wants_exception = vmcb12_wants_exception,
    .virtual_interrupt = vmcb12_virtual_interrupt,
    .cr8 = vmcb12_cr8,
    .read_msr = vmcb12_read_msr,
    .write_msr = vmcb12_write_msr,
    .efer_bits = vmcb12_efer_bits,
    .check_cr = vmcb12_check_cr,
    .stage2_fault = vmcb12_stage2_fault,
    .cpuid = vmcb12_cpuid,
};
