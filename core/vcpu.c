// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A vCPU's birth, reset and end, and what its mode is. SDM vol. 3 "Processor Management and
// Initialization" (table of states following power-up, reset and INIT); APM vol. 2 "Processor
// Initialization State".

#include <arch/x86/insn.h>
#include <arch/x86/regs.h>
#include <nestor/cpu.h>
#include <nestor/device.h>
#include <nestor/log.h>
#include <nestor/nested.h>
#include <nestor/page.h>
#include <nestor/run.h>
#include <nestor/string.h>
#include <nestor/switched.h>
#include <nestor/time.h>

enum { FPU_AREA_ORDER = 2 }; // 16 KiB: AVX-512 and AMX's tile data fit

// The back ends save every component that the CPU has, whatever the guest is offered.
static bool fpu_area_suffices(void)
{
    u32 need = cpuid(0, 0).eax >= 0xd ? cpuid(0xd, 0).ecx : 0;

    if (need <= PAGE_SIZE << FPU_AREA_ORDER)
        return true;
    log_error("the CPU's extended state takes %u bytes, more than Nestor has room for", need);
    return false;
}

static void controls_init(struct vcpu *vcpu, struct controls *ctl)
{
    struct vm *vm = vcpu->vm;

    memset(ctl, 0, sizeof(*ctl));
    ctl->intercepts = INTERCEPT_HLT | INTERCEPT_MWAIT | INTERCEPT_MONITOR | INTERCEPT_CR8_READ |
                      INTERCEPT_CR8_WRITE | INTERCEPT_XSETBV | INTERCEPT_TASK_SWITCH |
                      INTERCEPT_RDPMC | INTERCEPT_SVM | INTERCEPT_WBINVD | INTERCEPT_RDPRU |
                      INTERCEPT_RSM | INTERCEPT_DR_WRITE;
    // SVM: the #DB that INT1 raises cannot be told from others, whose RIP and DR6 are not its own.
    ctl->intercepts |= INTERCEPT_ICEBP;
    // #DB and #AC delivery can loop inside the CPU for ever, with no exit, if the guest's own
    // handler raises them anew. #MF: FERR# (core/exit.c).
    ctl->exception_bitmap = BIT(VECTOR_AC) | BIT(VECTOR_DB) | BIT(VECTOR_MF);
    if (vm->config->test_device)
        ctl->exception_bitmap |= BIT(VECTOR_UD); // forced emulation
    ctl->stage2_root = vm->stage2.root;
    ctl->stage2_levels = vm->stage2.levels;
    ctl->disabled_isa = vm->disabled_isa;
}

int vcpu_create(struct vm *vm, u32 id, struct cpu *cpu)
{
    struct vcpu *vcpu = heap_alloc(sizeof(*vcpu));
    int err;

    if (!vcpu)
        return -E_NOMEM;
    vm->vcpus[id] = vcpu;
    vcpu->vm = vm;
    vcpu->id = id;
    vcpu->cpu = cpu;
    vcpu->cur = &vcpu->ctx[0];
    vcpu->fpu = fpu_area_suffices() ? page_alloc(FPU_AREA_ORDER) : NULL;
    if (!vcpu->fpu)
        return -E_NOMEM;
    err = msr_create(vcpu);
    if (!err)
        err = insn_cache_create(vcpu);
    if (!err)
        err = backend->ctx_create(vcpu, 0);
    controls_init(vcpu, &vcpu->ctx[0].ctl);
    if (!err)
        err = nested_create(vcpu);
    // What the guest is not offered exits, to be refused, whatever this CPU would allow.
    vcpu->switched = switched_rows(vm);
    vcpu->cr4_allowed = cr4_allowed(vcpu);
    vcpu->ctx[0].ctl.cr4_mask = ~vcpu->cr4_allowed;
    return err;
}

void vcpu_destroy(struct vcpu *vcpu)
{
    nested_destroy(vcpu);
    if (vcpu->ctx[0].hw)
        backend->ctx_destroy(vcpu, 0);
    msr_destroy(vcpu);
    insn_cache_destroy(vcpu);
    if (vcpu->fpu)
        page_free(vcpu->fpu, FPU_AREA_ORDER);
    heap_free(vcpu, sizeof(*vcpu));
}

static const struct segment reset_segments[SEG_COUNT] = {
    [SEG_ES] = {.access = 0x93, .limit = 0xffff},
    [SEG_CS] = {.selector = 0xf000, .access = 0x9b, .limit = 0xffff, .base = 0xffff0000},
    [SEG_SS] = {.access = 0x93, .limit = 0xffff},
    [SEG_DS] = {.access = 0x93, .limit = 0xffff},
    [SEG_FS] = {.access = 0x93, .limit = 0xffff},
    [SEG_GS] = {.access = 0x93, .limit = 0xffff},
    [SEG_LDTR] = {.access = 0x82, .limit = 0xffff},
    [SEG_TR] = {.access = 0x8b, .limit = 0xffff},
};

#define PAT_RESET 0x0007040600070406ull

static void reset_context(struct vcpu *vcpu, bool init)
{
    struct guest_state *state = &vcpu->cur->state;
    u64 cr0 = CR0_ET | (init ? vcpu_state(vcpu, GROUP_CR)->cr0 & (CR0_CD | CR0_NW) : 0);
    u64 pat = init ? vcpu_state(vcpu, GROUP_EFER_PAT)->pat : PAT_RESET;

    memset(state, 0, sizeof(*state));
    memcpy(state->seg, reset_segments, sizeof(reset_segments));
    state->rip = 0xfff0;
    state->rflags = RFLAGS_FIXED;
    state->cr0 = cr0;
    state->pat = pat;
    state->gdtr.limit = 0xffff;
    state->idtr.limit = 0xffff;
    state->dr7 = DR7_FIXED;
    state->activity = vcpu->id ? ACTIVITY_WAIT_SIPI : ACTIVITY_ACTIVE;
    vcpu->cur->valid = vcpu->cur->dirty = GROUP_ALL_CTX;
    vcpu->cur->ctl_dirty = CTL_ALL;
}

static void reset_shared(struct vcpu *vcpu)
{
    u32 signature[4];

    cpuid_read(vcpu, 1, 0, signature);
    memset(vcpu->gpr, 0, sizeof(vcpu->gpr));
    vcpu->gpr[GPR_RDX] = signature[0];
    vcpu->cr2 = 0;
    memset(vcpu->dr, 0, sizeof(vcpu->dr));
    vcpu->dr6 = DR6_FIXED;
    vcpu->shared_valid |= GROUP_CR2 | GROUP_DR | GROUP_DR6;
    vcpu->shared_dirty |= GROUP_CR2 | GROUP_DR | GROUP_DR6;
    switched_reset(vcpu);
}

static void reset_power_on(struct vcpu *vcpu)
{
    vcpu->star = vcpu->lstar = vcpu->cstar = vcpu->sfmask = vcpu->kernel_gs_base = 0;
    vcpu->shared_valid = vcpu->shared_dirty = GROUP_ALL_SHARED;
    vcpu->xcr0 = XCR0_X87;
    vcpu->xss = 0;
    vcpu->tsc_aux = 0;
    vcpu->tsc_adjust = 0;
    vcpu->spec_ctrl = 0;
    vcpu->pkrs = vcpu->umwait_control = 0;
    memset(
        vcpu->fpu, 0,
        (size_t)PAGE_SIZE << FPU_AREA_ORDER); // XSTATE_BV = 0: every component in its initial state
}

void vcpu_reset(struct vcpu *vcpu, bool init)
{
    nested_reset(vcpu, init);
    if (!init)
        reset_power_on(vcpu);
    reset_context(vcpu, init);
    reset_shared(vcpu);
    msr_reset(vcpu, init);
    events_reset(vcpu);
    paravirt_reset(vcpu);
    lapic_reset(vcpu, init);
    vcpu->cur->ctl.tsc_offset = vcpu_guest_tsc(vcpu, 0);
    vcpu->cur->ctl.tsc_multiplier = vcpu->vm->tsc_multiplier;
    vcpu->cur->flush |= TLB_FLUSH_GUEST;
}

bool vcpu_mode_long(struct vcpu *vcpu)
{
    return vcpu_state(vcpu, GROUP_EFER_PAT)->efer & EFER_LMA;
}

bool vcpu_mode_64bit(struct vcpu *vcpu)
{
    return state_is_64bit(vcpu_state(vcpu, GROUP_EFER_PAT | GROUP_CODE));
}

unsigned vcpu_code_size(struct vcpu *vcpu)
{
    if (vcpu_mode_64bit(vcpu))
        return 8;
    return vcpu_state(vcpu, GROUP_CODE)->seg[SEG_CS].access & SEG_DB ? 4 : 2;
}

unsigned vcpu_cpl(struct vcpu *vcpu)
{
    return state_cpl(vcpu_state(vcpu, GROUP_RIP | GROUP_CR | GROUP_CODE));
}

static u64 tsc_scaled(u64 tsc, u64 multiplier)
{
    return (u64)((unsigned __int128)tsc * multiplier >> 48);
}

u64 vcpu_guest_tsc(struct vcpu *vcpu, u64 host_tsc)
{
    u64 multiplier = vcpu->vm->tsc_multiplier, base = vcpu->vm->tsc_base;

    if (likely(!multiplier))
        return host_tsc - base + vcpu->tsc_offset_base;
    // As the CPU does it: the product's bits 111:48, then the offset.
    return tsc_scaled(host_tsc, multiplier) - tsc_scaled(base, multiplier) + vcpu->tsc_offset_base;
}

u64 vcpu_level_tsc(struct vcpu *vcpu, u64 host_tsc)
{
    const struct controls *ctl = &vcpu->cur->ctl;

    if (likely(!vcpu->level))
        return vcpu_guest_tsc(vcpu, host_tsc);
    if (ctl->tsc_multiplier)
        host_tsc = tsc_scaled(host_tsc, ctl->tsc_multiplier);
    return host_tsc + ctl->tsc_offset;
}
