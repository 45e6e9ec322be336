// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulator (emulate.h, pure) put to a vCPU: memory through the guest's paging to RAM or a
// device, ports to the bus, segments and faults to the model. The instruction's effects are
// committed here, RIP last.

#include "emulation.h"
#include <arch/x86/regs.h>
#include <nestor/breakpoint.h>
#include <nestor/config.h>
#include <nestor/device.h>
#include <nestor/emulate.h>
#include <nestor/guest_walk.h>
#include <nestor/nested.h>
#include <nestor/run.h>
#include <nestor/string.h>

static u32 walk_bits(const struct emulate_ctx *ctx, unsigned access)
{
    static const u32 bits[] = {
        [EMULATE_READ] = WALK_READ,
        [EMULATE_WRITE] = WALK_WRITE,
        [EMULATE_READ_MODIFY] = WALK_WRITE,
        [EMULATE_FETCH] = WALK_FETCH,
    };
    u32 walk = bits[access & 3];

    if (access & EMULATE_SUPERVISOR)
        return walk | WALK_IMPLICIT;
    return walk | (ctx->cpl == 3 ? WALK_USER : 0);
}

static enum emulate_result find(struct emulate_ctx *ctx, gva_t la, unsigned access, gpa_t *gpa,
                                u8 **host)
{
    struct vcpu *vcpu = ctx->opaque;
    struct walk_fault fault = {0};
    int error = guest_translate(vcpu, la, walk_bits(ctx, access), gpa, host, &fault);

    if (!error)
        return EMULATE_OK;
    if (fault.stage2 && !nested_refused(vcpu))
        return EMULATE_UNHANDLED;
    // No fault, and the guest executes the instruction again; or commit_fault() makes L1's exit.
    if (error == -E_AGAIN || fault.stage2) {
        ctx->fault.valid = false;
        return EMULATE_FAULT;
    }
    ctx->fault = (struct event){.valid = true,
                                .vector = VECTOR_PF,
                                .type = EVENT_EXCEPTION,
                                .has_error = true,
                                .error = fault.error_code,
                                .has_payload = true,
                                .payload = la};
    return EMULATE_FAULT;
}

static void look_for_breakpoints(struct emulate_ctx *ctx, enum breakpoint_access access,
                                 u64 address, unsigned size)
{
    const struct vcpu *vcpu = ctx->opaque;

    if (unlikely(ctx->dr7))
        ctx->hits |= breakpoint_hits(ctx->dr7, vcpu->dr, access, address, size);
}

// A device takes 1, 2, 4 or 8 bytes; anything else is cut as the bus would.
static void device_access(struct vcpu *vcpu, gpa_t gpa, u8 *buf, unsigned size, bool write)
{
    while (size) {
        unsigned piece = size >= 8 ? 8 : size >= 4 ? 4 : size >= 2 ? 2 : 1;
        u64 value = ~0ull;

        if (write) {
            value = 0;
            memcpy(&value, buf, piece);
        }
        bus_mmio(vcpu, gpa, piece, write, &value);
        if (!write)
            memcpy(buf, &value, piece);
        gpa += piece;
        buf += piece;
        size -= piece;
    }
}

// Between RAM and a buffer. What the CPU does at once is done at once (SDM volume 3 "Guaranteed
// Atomic Operations"): another CPU may look at the RAM, or change it.
static void copy(void *to, const void *from, unsigned size)
{
    switch (size) {
    case 2:
        *(volatile u16 *)to = *(const volatile u16 *)from;
        break;
    case 4:
        *(volatile u32 *)to = *(const volatile u32 *)from;
        break;
    case 8:
        *(volatile u64 *)to = *(const volatile u64 *)from;
        break;
    default:
        memcpy(to, from, size);
    }
}

static enum emulate_result op_read(struct emulate_ctx *ctx, gva_t la, void *buf, unsigned size,
                                   unsigned access)
{
    gpa_t gpa;
    u8 *host;
    enum emulate_result result = find(ctx, la, access, &gpa, &host);

    if (result != EMULATE_OK)
        return result;
    if (access != EMULATE_FETCH)
        look_for_breakpoints(ctx, BREAKPOINT_READ, la, size);
    if (host)
        copy(buf, host, size);
    else
        device_access(ctx->opaque, gpa, buf, size, false);
    return EMULATE_OK;
}

static enum emulate_result op_write(struct emulate_ctx *ctx, gva_t la, const void *buf,
                                    unsigned size, unsigned access)
{
    gpa_t gpa;
    u8 *host, bytes[64];
    enum emulate_result result = find(ctx, la, access | EMULATE_WRITE, &gpa, &host);

    if (result != EMULATE_OK)
        return result;
    look_for_breakpoints(ctx, BREAKPOINT_WRITE, la, size);
    if (host) {
        copy(host, buf, size);
        return EMULATE_OK;
    }
    if (size > sizeof(bytes))
        return EMULATE_UNHANDLED;
    memcpy(bytes, buf, size);
    device_access(ctx->opaque, gpa, bytes, size, true);
    return EMULATE_OK;
}

static enum emulate_result op_check(struct emulate_ctx *ctx, gva_t la, unsigned size,
                                    unsigned access)
{
    gpa_t gpa;
    u8 *host;

    (void)size; // within one page
    return find(ctx, la, access | EMULATE_WRITE, &gpa, &host);
}

#define CMPXCHG_AS(type)                                                                        \
    *swapped = __atomic_compare_exchange_n((type *)host, (type *)old, *(const type *)new_value, \
                                           false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);          \
    return EMULATE_OK

// A split lock, over the end of a page of which a device has at least one side, holds no other CPU
// off: it becomes two writes.
static enum emulate_result op_cmpxchg_split(struct emulate_ctx *ctx, gva_t la,
                                            const void *new_value, unsigned size, bool *swapped)
{
    unsigned first = (unsigned)(PAGE_SIZE - (la & ~PAGE_MASK));
    enum emulate_result result = op_check(ctx, la + first, size - first, EMULATE_WRITE);

    if (result == EMULATE_OK)
        result = op_write(ctx, la, new_value, first, EMULATE_WRITE);
    if (result == EMULATE_OK)
        result =
            op_write(ctx, la + first, (const u8 *)new_value + first, size - first, EMULATE_WRITE);
    *swapped = true;
    return result;
}

// The operand is aligned: the instruction requires it.
static bool cmpxchg_16(void *at, u64 old[2], const u64 value[2])
{
    bool swapped;

    __asm__ volatile("lock cmpxchg16b %1"
                     : "=@ccz"(swapped), "+m"(*(u64(*)[2])at), "+a"(old[0]), "+d"(old[1])
                     : "b"(value[0]), "c"(value[1])
                     : "memory");
    return swapped;
}

static enum emulate_result op_cmpxchg(struct emulate_ctx *ctx, gva_t la, void *old,
                                      const void *new_value, unsigned size, bool *swapped)
{
    gpa_t gpa;
    u8 *host;
    enum emulate_result result;

    if ((la & ~PAGE_MASK) + size > PAGE_SIZE)
        return op_cmpxchg_split(ctx, la, new_value, size, swapped);
    result = find(ctx, la, EMULATE_WRITE, &gpa, &host);
    if (result != EMULATE_OK)
        return result;
    look_for_breakpoints(ctx, BREAKPOINT_WRITE, la, size);
    if (!host) {
        u8 bytes[16];

        memcpy(bytes, new_value, size);
        device_access(ctx->opaque, gpa, bytes, size, true);
        *swapped = true;
        return EMULATE_OK;
    }
    switch (size) {
    case 1:
        CMPXCHG_AS(u8);
    case 2:
        CMPXCHG_AS(u16);
    case 4:
        CMPXCHG_AS(u32);
    case 8:
        CMPXCHG_AS(u64);
    case 16:
        *swapped = cmpxchg_16(host, old, new_value);
        return EMULATE_OK;
    default:
        return EMULATE_UNHANDLED;
    }
}

static enum emulate_result op_in(struct emulate_ctx *ctx, u16 port, unsigned size, u32 *value)
{
    *value = ~0u;
    if (ctx->cr4 & CR4_DE)
        look_for_breakpoints(ctx, BREAKPOINT_PORT, port, size);
    bus_pio(ctx->opaque, port, size, false, value);
    return EMULATE_OK;
}

static enum emulate_result op_out(struct emulate_ctx *ctx, u16 port, unsigned size, u32 value)
{
    if (ctx->cr4 & CR4_DE)
        look_for_breakpoints(ctx, BREAKPOINT_PORT, port, size);
    bus_pio(ctx->opaque, port, size, true, &value);
    return EMULATE_OK;
}

static const u32 segment_groups[SEG_COUNT] = {
    [SEG_ES] = GROUP_DATA,     [SEG_CS] = GROUP_CODE,   [SEG_SS] = GROUP_CODE,
    [SEG_DS] = GROUP_DATA,     [SEG_FS] = GROUP_SYSTEM, [SEG_GS] = GROUP_SYSTEM,
    [SEG_LDTR] = GROUP_SYSTEM, [SEG_TR] = GROUP_SYSTEM,
};

static void op_get_seg(struct emulate_ctx *ctx, enum segment_index seg, struct segment *out)
{
    *out = vcpu_state(ctx->opaque, segment_groups[seg])->seg[seg];
}

static void op_get_gdt(struct emulate_ctx *ctx, u64 *base, u32 *limit)
{
    const struct guest_state *s = vcpu_state(ctx->opaque, GROUP_TABLES);

    *base = s->gdtr.base;
    *limit = s->gdtr.limit;
}

static enum emulate_result op_load_cr3(struct emulate_ctx *ctx, u64 cr3)
{
    return cr_write_guest(ctx->opaque, 3, cr3) ? emulate_raise(ctx, VECTOR_GP, true, 0)
                                               : EMULATE_OK;
}

// An emulated instruction's task switch is an exit like the hardware's.
static enum emulate_result op_task_switch(struct emulate_ctx *ctx,
                                          const struct exit_task_switch *task)
{
    struct vcpu *vcpu = ctx->opaque;
    struct vm_exit exit = {.kind = EXIT_TASK_SWITCH, .insn_len = ctx->insn.length, .task = *task};
    enum emulate_result r = vcpu->level ? emulate_task_check(ctx, task) : EMULATE_OK;

    if (r != EMULATE_OK)
        return r;
    if (vcpu->level && nested_reflect(vcpu, &exit))
        return EMULATE_INTERCEPTED;
    return emulate_task_switch(ctx, task);
}

// What the repetition brought about itself, what others posted, and what is due by now.
static bool op_interrupted(struct emulate_ctx *ctx)
{
    const struct vcpu *vcpu = ctx->opaque;
    const struct vcpu_events *ev = &vcpu->events;

    return __atomic_load_n(&vcpu->requests, __ATOMIC_RELAXED) || timer_next() <= tsc_now() ||
           (ev->interrupts_check && (ctx->next_rflags & RFLAGS_IF));
}

static const struct emulate_ops ops = {
    .read_mem = op_read,
    .write_mem = op_write,
    .check_mem = op_check,
    .cmpxchg_mem = op_cmpxchg,
    .io_in = op_in,
    .io_out = op_out,
    .get_seg = op_get_seg,
    .load_seg = emulate_load_seg,
    .get_gdt = op_get_gdt,
    .task_switch = op_task_switch,
    .load_cr3 = op_load_cr3,
    .system = op_system,
    .intercept = op_intercept,
    .interrupted = op_interrupted,
    .offers = op_offers,
    .vector = op_vector,
    .x87 = op_x87,
    .x87_status = op_x87_status,
    .xcr0 = op_xcr0,
    .msr = op_msr,
};

// DR7 if it enables one, else 0; DR0 to DR3 are in the model then.
static u64 armed_breakpoints(struct vcpu *vcpu)
{
    u64 dr7 = vcpu_state(vcpu, GROUP_DEBUG)->dr7;

    if (!(dr7 & DR7_ENABLES))
        return 0;
    vcpu_state(vcpu, GROUP_DR);
    return dr7;
}

static void prepare(struct vcpu *vcpu, struct emulate_ctx *ctx, struct emulate_regs *regs,
                    const struct vm_exit *exit)
{
    const struct guest_state *s =
        vcpu_state(vcpu, GROUP_RIP | GROUP_CR | GROUP_CODE | GROUP_EFER_PAT);
    unsigned size = vcpu_code_size(vcpu);

    memcpy(regs->gpr, vcpu->gpr, sizeof(regs->gpr));
    regs->gpr[GPR_RSP] = s->rsp;
    regs->rip = s->rip;
    regs->rflags = s->rflags;
    ctx->ops = &ops;
    ctx->opaque = vcpu;
    ctx->regs = regs;
    ctx->mode = size == 8 ? INSN_MODE_64 : size == 4 ? INSN_MODE_32 : INSN_MODE_16;
    ctx->cpl = (u8)vcpu_cpl(vcpu);
    ctx->cr0 = s->cr0;
    ctx->cr4 = s->cr4;
    ctx->la57 = vcpu->cr4_allowed & CR4_LA57;
    ctx->amd = backend == &svm_backend;
    ctx->long_mode = s->efer & EFER_LMA;
    ctx->shadow = ctx->seg_loaded = 0;
    ctx->branched = ctx->unblock_nmi = ctx->switched = ctx->task_trap = false;
    ctx->dr7 = ctx->hits = 0;
    if (unlikely(vcpu->breakpoints | vcpu->level))
        ctx->dr7 = armed_breakpoints(vcpu);
    ctx->max_repeat = s->rflags & RFLAGS_TF || ctx->dr7 || vcpu->cur->ctl.intercepts & INTERCEPT_MTF
                          ? 1 // each repetition traps, or exits
                          : 0;
    ctx->bytes_count = 0;
    if (exit->bytes_count) {
        memcpy(ctx->bytes, exit->bytes, exit->bytes_count);
        ctx->bytes_count = exit->bytes_count;
    }
}

static void commit_registers(struct vcpu *vcpu, const struct emulate_regs *regs)
{
    u64 rsp = regs->gpr[GPR_RSP];

    memcpy(vcpu->gpr, regs->gpr, sizeof(vcpu->gpr));
    if (vcpu->cur->state.rsp != rsp)
        vcpu_modify(vcpu, GROUP_RIP)->rsp = rsp;
}

// Segments and what else far transfers and IRET change.
static void commit_far(struct vcpu *vcpu, const struct emulate_ctx *ctx)
{
    for (unsigned i = 0; i < SEG_COUNT; i++)
        if (ctx->seg_loaded & BIT(i))
            vcpu_modify(vcpu, segment_groups[i])->seg[i] = ctx->seg[i];
    if (ctx->unblock_nmi)
        vcpu_modify(vcpu, GROUP_BLOCKING)->interruptibility &= ~(u32)BLOCK_NMI;
    if (ctx->switched) {
        vcpu_modify(vcpu, GROUP_RIP)->rflags &= ~RFLAGS_TF; // no trap of the old task's
        vcpu_modify(vcpu, GROUP_CR)->cr0 |= CR0_TS;
        vcpu_modify(vcpu, GROUP_DEBUG)->dr7 &= ~(u64)DR7_LOCAL;
    }
}

// A single step is by TF as it was before the instruction; by the new one behind SYSCALL, so that
// SFMASK can keep it out of the handler, and SYSRET.
static void prepare_trap(struct vcpu *vcpu, const struct emulate_ctx *ctx)
{
    if (ctx->insn.op == INSN_SYSCALL || ctx->insn.op == INSN_SYSRET)
        vcpu_modify(vcpu, GROUP_RIP)->rflags = ctx->next_rflags;
    if (vcpu->cur->state.rflags & RFLAGS_TF && (ctx->branched || ctx->seg_loaded & BIT(SEG_CS)))
        vcpu_trap_branch(vcpu);
}

static void commit_insn(struct vcpu *vcpu, const struct emulate_ctx *ctx)
{
    commit_registers(vcpu, ctx->regs);
    if (unlikely(ctx->seg_loaded | ctx->unblock_nmi))
        commit_far(vcpu, ctx);
    if (unlikely(ctx->hits))
        vcpu_trap_breakpoints(vcpu, ctx->hits);
    if (unlikely((vcpu->cur->state.rflags | ctx->next_rflags) & RFLAGS_TF) && !ctx->switched)
        prepare_trap(vcpu, ctx);
    vcpu_finish_insn(vcpu, ctx->next_rip);
    vcpu_modify(vcpu, GROUP_RIP)->rflags = ctx->next_rflags;
    if (ctx->shadow)
        vcpu_modify(vcpu, GROUP_BLOCKING)->interruptibility |= ctx->shadow;
}

// A boundary inside REP: the registers have moved, RIP has not; an event taken here pushes RF = 1.
// A lost LOCK race moves nothing.
static void commit_repeat(struct vcpu *vcpu, const struct emulate_ctx *ctx)
{
    bool moved = ctx->regs->gpr[GPR_RCX] != vcpu->gpr[GPR_RCX];

    commit_registers(vcpu, ctx->regs);
    vcpu_modify(vcpu, GROUP_RIP)->rflags = ctx->next_rflags | RFLAGS_RF;
    if (moved)
        vcpu_finish_repetition(vcpu);
    if (unlikely(moved && ctx->hits))
        vcpu_trap_breakpoints(vcpu, ctx->hits);
}

static void raise_task_trap(struct vcpu *vcpu, const struct emulate_ctx *ctx)
{
    static const struct event trap = {
        .vector = VECTOR_DB, .type = EVENT_EXCEPTION, .has_payload = true, .payload = DR6_BT};

    if (unlikely(ctx->task_trap))
        vcpu_inject_event(vcpu, &trap);
}

// A fault in the new task after its switch is taken there.
static void commit_fault(struct vcpu *vcpu, const struct emulate_ctx *ctx)
{
    if (ctx->switched)
        commit_insn(vcpu, ctx);
    else
        commit_registers(vcpu, ctx->regs);
    if (ctx->unblock_nmi)
        vcpu_modify(vcpu, GROUP_BLOCKING)->interruptibility &= ~(u32)BLOCK_NMI;
    if (ctx->fault.valid)
        vcpu_inject_event(vcpu, &ctx->fault);
    else
        nested_tell_refused(vcpu);
}

// What precedes the switch: the event that it delivers is not lost if that faults, and goes into
// the faults' error codes (EXT) if no instruction made it.
static bool prepare_task_switch(struct vcpu *vcpu, struct emulate_ctx *ctx, struct vm_exit *exit)
{
    const struct event *event = &vcpu->events.reinject;
    bool software = event->type == EVENT_SOFT_INTERRUPT || event->type == EVENT_SOFT_EXCEPTION ||
                    event->type == EVENT_INT1;
    struct insn insn = {.length = exit->insn_len};

    if (exit->task.source == TASK_GATE && software && event->insn_len)
        insn.length = event->insn_len;
    if ((exit->task.source != TASK_GATE || software) && !insn.length &&
        !insn_decode_current(vcpu, &insn))
        return false;
    memcpy(ctx->gpr, ctx->regs->gpr, sizeof(ctx->gpr));
    ctx->next_rip = ctx->regs->rip;
    if (exit->task.source != TASK_GATE || (software && !event->rip_is_next))
        ctx->next_rip = (u32)(ctx->regs->rip + insn.length);
    ctx->next_rflags = ctx->regs->rflags | (exit->task.rf ? RFLAGS_RF : 0);
    ctx->unblock_nmi = exit->task.source == TASK_IRET;
    return true;
}

static bool is_external(const struct event *event)
{
    return event->valid && event->type != EVENT_SOFT_INTERRUPT &&
           event->type != EVENT_SOFT_EXCEPTION;
}

void vcpu_task_switch(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct event *event = &vcpu->events.reinject;
    struct emulate_ctx ctx;
    struct emulate_regs regs;
    enum emulate_result r;

    prepare(vcpu, &ctx, &regs, exit);
    if (!prepare_task_switch(vcpu, &ctx, exit))
        return;
    r = emulate_task_switch(&ctx, &exit->task);
    if (ctx.switched && event->valid && event->type == EVENT_NMI)
        vcpu_modify(vcpu, GROUP_BLOCKING)->interruptibility |= BLOCK_NMI;
    if (r == EMULATE_FAULT) {
        if (ctx.fault.vector != VECTOR_PF && is_external(event))
            ctx.fault.error |= 1;
        commit_fault(vcpu, &ctx);
    } else if (r == EMULATE_OK) {
        event->valid = false;
        commit_insn(vcpu, &ctx);
        raise_task_trap(vcpu, &ctx);
    } else if (!vcpu_shutdown_l2(vcpu)) {
        vm_stop(vcpu->vm, vcpu,
                "task switch to selector %#x: a TSS or the GDT is not in RAM, or CET is on",
                exit->task.selector);
    }
}

// `forced`: an instruction that the guest asked for to be emulated is #UD if it can't be.
static void emulate_fully(struct vcpu *vcpu, const struct vm_exit *exit, bool forced)
{
    struct emulate_ctx ctx;
    struct emulate_regs regs;

    prepare(vcpu, &ctx, &regs, exit);
    switch (emulate_insn(&ctx)) {
    case EMULATE_OK:
        commit_insn(vcpu, &ctx);
        raise_task_trap(vcpu, &ctx);
        break;
    case EMULATE_HALT:
        commit_insn(vcpu, &ctx);
        vcpu_modify(vcpu, GROUP_BLOCKING)->activity = ACTIVITY_HLT;
        vcpu->events.interrupts_check = true; // as on_hlt
        break;
    case EMULATE_REPEAT:
        commit_repeat(vcpu, &ctx);
        break;
    case EMULATE_FAULT:
        commit_fault(vcpu, &ctx);
        break;
    case EMULATE_INTERCEPTED:
        break;
    case EMULATE_UNHANDLED:
        if (forced || vcpu->level) { // an L2 can't end its hypervisor with it
            vcpu_inject_ud(vcpu);
            break;
        }
        vm_stop(vcpu->vm, vcpu,
                "an instruction that the emulator does not know (exit %s, GPA %#llx)",
                exit_kind_names[exit->kind],
                exit->kind == EXIT_STAGE2 ? (unsigned long long)exit->stage2.gpa : 0);
        break;
    }
}

// A MOV of 4 or 8 bytes between a register or immediate and a device in 64-bit code, where all that
// the emulator would look up is known.
struct plain_move {
    const struct insn *insn;
    bool write;
    gpa_t gpa;
};

static bool is_plain_move(struct vcpu *vcpu, const struct vm_exit *exit, struct plain_move *move)
{
    const struct guest_state *s;
    const struct insn *insn = insn_known(vcpu, exit);
    unsigned unused;
    u64 la;

    if (!insn || vcpu->breakpoints || insn->op != INSN_MOV || !insn->has_mem || insn->opsize < 4 ||
        insn->mem_size != insn->opsize || insn->seg >= SEG_FS)
        return false;
    s = &vcpu->cur->state;
    vcpu->gpr[GPR_RSP] = s->rsp;
    la = insn_offset(insn, vcpu->gpr, s->rip + insn->length);
    unused = s->cr4 & CR4_LA57 ? 64 - 57 : 64 - 48;
    if ((u64)((s64)(la << unused) >> unused) != la || (s->rflags & RFLAGS_AC) ||
        (la & ~PAGE_MASK) + insn->opsize > PAGE_SIZE)
        return false;
    move->insn = insn;
    move->write = insn->dst == OPERAND_RM;
    return guest_device_known(
        vcpu, la, (move->write ? (u32)WALK_WRITE : 0) | (state_cpl(s) == 3 ? (u32)WALK_USER : 0),
        &move->gpa);
}

static void do_plain_move(struct vcpu *vcpu, const struct plain_move *move)
{
    const struct insn *insn = move->insn;
    u8 operand = move->write ? insn->src : insn->dst;
    unsigned reg = operand == OPERAND_REG ? insn->reg : GPR_RAX;
    u64 mask = insn->opsize == 8 ? ~0ull : ~0u, value = 0;

    if (move->write)
        value = (operand == OPERAND_IMM ? insn->imm : vcpu_gpr(vcpu, reg)) & mask;
    bus_mmio(vcpu, move->gpa, insn->opsize, move->write, &value);
    if (!move->write)
        vcpu_set_gpr(vcpu, reg, value & mask);
}

void vcpu_emulate(struct vcpu *vcpu, struct vm_exit *exit)
{
    struct plain_move move;

    if (!is_plain_move(vcpu, exit, &move)) {
        emulate_fully(vcpu, exit, false);
        return;
    }
    exit->insn_len = move.insn->length;
    do_plain_move(vcpu, &move);
    vcpu_finish_insn(vcpu, vcpu->cur->state.rip + exit->insn_len);
}

// A code breakpoint behind the prefix has not been looked for by the CPU. On VMX the exit by #UD
// has set RF (SDM volume 3 section 28.3.3; Bochs 2.7 forgets it), which holds it off.
static bool code_breakpoint(struct vcpu *vcpu)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_RIP | GROUP_CODE);
    u64 la = vcpu_mode_64bit(vcpu) ? s->rip : (u32)(s->rip + s->seg[SEG_CS].base);
    u64 dr7 = vcpu->breakpoints && !(s->rflags & RFLAGS_RF) ? armed_breakpoints(vcpu) : 0;
    u64 hits = dr7 ? breakpoint_hits(dr7, vcpu->dr, BREAKPOINT_EXECUTE, la, 1) : 0;

    if (!hits || backend != &svm_backend)
        return false;
    vcpu_inject_event(vcpu, &(struct event){.vector = VECTOR_DB,
                                            .type = EVENT_EXCEPTION,
                                            .has_payload = true,
                                            .payload = hits});
    return true;
}

// KVM's prefix, which its unit tests look for: UD2 and "kvm". The guest sees faults of the
// instruction behind it with RIP there.
bool vcpu_emulate_forced(struct vcpu *vcpu)
{
    static const u8 prefix[] = {0x0f, 0x0b, 'k', 'v', 'm'};
    const struct vm_exit exit = {.kind = EXIT_EXCEPTION};
    u8 bytes[15];

    if (!vcpu->vm->config->test_device || insn_peek(vcpu, bytes) < (int)sizeof(prefix) ||
        memcmp(bytes, prefix, sizeof(prefix)))
        return false;
    vcpu_modify(vcpu, GROUP_RIP)->rip += sizeof(prefix);
    if (!code_breakpoint(vcpu))
        emulate_fully(vcpu, &exit, true);
    return true;
}
