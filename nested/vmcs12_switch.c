// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// From L1 to L2 and back: VMCS12's guest state and controls into the model, the model and an exit
// into VMCS12, L1's host state (SDM vol. 3 "VM Entries" from "Loading Guest State" on, "VM Exits").
// What L1 wants is looked up in VMCS12 at the exit.

#include "vmcs12.h"
#include <arch/x86/msr.h>
#include <arch/x86/regs.h>
#include <nestor/device.h>
#include <nestor/log.h>
#include <nestor/string.h>

// --- guest state ---

static void segments_from_vmcs12(struct nested *n, struct guest_state *s)
{
    // The segments stand in the same order in every width, and so does enum segment_index.
    for (unsigned i = 0; i < SEG_COUNT; i++) {
        struct segment *seg = &s->seg[i];

        seg->selector = (u16)vmcs12_read(n, (enum vmcs_field)(GUEST_ES_SELECTOR + 2 * i));
        seg->limit = (u32)vmcs12_read(n, (enum vmcs_field)(GUEST_ES_LIMIT + 2 * i));
        seg->access = (u32)vmcs12_read(n, (enum vmcs_field)(GUEST_ES_ACCESS + 2 * i));
        seg->base = vmcs12_read(n, (enum vmcs_field)(GUEST_ES_BASE + 2 * i));
    }
}

static void segments_to_vmcs12(struct nested *n, const struct guest_state *s)
{
    for (unsigned i = 0; i < SEG_COUNT; i++) {
        const struct segment *seg = &s->seg[i];

        vmcs12_write(n, (enum vmcs_field)(GUEST_ES_SELECTOR + 2 * i), seg->selector);
        vmcs12_write(n, (enum vmcs_field)(GUEST_ES_LIMIT + 2 * i), seg->limit);
        vmcs12_write(n, (enum vmcs_field)(GUEST_ES_ACCESS + 2 * i), seg->access);
        vmcs12_write(n, (enum vmcs_field)(GUEST_ES_BASE + 2 * i), seg->base);
    }
}

// Fields whose place in the model is a u64 of guest_state, both ways alike.
static const struct {
    u16 field, offset;
} plain[] = {
#define PLAIN(field, member)                        \
    {                                               \
        field, offsetof(struct guest_state, member) \
    }
    PLAIN(GUEST_RIP, rip),
    PLAIN(GUEST_RSP, rsp),
    PLAIN(GUEST_RFLAGS, rflags),
    PLAIN(GUEST_CR0, cr0),
    PLAIN(GUEST_CR3, cr3),
    PLAIN(GUEST_CR4, cr4),
    PLAIN(GUEST_GDTR_BASE, gdtr.base),
    PLAIN(GUEST_IDTR_BASE, idtr.base),
    PLAIN(GUEST_SYSENTER_CS, sysenter_cs),
    PLAIN(GUEST_SYSENTER_ESP, sysenter_esp),
    PLAIN(GUEST_SYSENTER_EIP, sysenter_eip),
    PLAIN(GUEST_PENDING_DBG, pending_dbg),
#undef PLAIN
};

static u64 *plain_at(struct guest_state *s, unsigned i)
{
    return (u64 *)((u8 *)s + plain[i].offset);
}

static void load_guest_state(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    const struct guest_state *l1 = vcpu_state(vcpu, GROUP_EFER_PAT | GROUP_DEBUG | GROUP_CR);
    struct guest_state *s = &vcpu->ctx[1].state;
    u64 entry = vmcs12_read(n, ENTRY_CONTROLS);

    for (unsigned i = 0; i < ARRAY_SIZE(plain); i++)
        *plain_at(s, i) = vmcs12_read(n, plain[i].field);
    segments_from_vmcs12(n, s);
    // CR0.ET is fixed; CD and NW are not loaded by an entry ("Loading Guest Control Registers").
    s->cr0 = (s->cr0 & ~(CR0_CD | CR0_NW)) | (l1->cr0 & (CR0_CD | CR0_NW)) | CR0_ET;
    s->gdtr.limit = (u32)vmcs12_read(n, GUEST_GDTR_LIMIT);
    s->idtr.limit = (u32)vmcs12_read(n, GUEST_IDTR_LIMIT);
    s->dr7 = (entry & ENTRY_CTL_LOAD_DEBUG ? vmcs12_read(n, GUEST_DR7) : l1->dr7) | DR7_FIXED;
    s->debugctl = entry & ENTRY_CTL_LOAD_DEBUG ? vmcs12_read(n, GUEST_DEBUGCTL) : l1->debugctl;
    s->pat = entry & ENTRY_CTL_LOAD_PAT ? vmcs12_read(n, GUEST_PAT) : l1->pat;
    s->efer = entry & ENTRY_CTL_LOAD_EFER ? vmcs12_read(n, GUEST_EFER)
                                          : l1->efer & ~(EFER_LMA | EFER_LME);
    if (!(entry & ENTRY_CTL_LOAD_EFER) && (entry & ENTRY_CTL_IA32E_GUEST))
        s->efer |= EFER_LMA | EFER_LME;
    s->interruptibility = (u32)vmcs12_read(n, GUEST_INTERRUPTIBILITY);
    // An injected event wakes a halted L2.
    s->activity = vmcs12_read(n, ENTRY_INTERRUPTION_INFO) & INFO_VALID
                      ? (u32)ACTIVITY_ACTIVE
                      : (u32)vmcs12_read(n, GUEST_ACTIVITY_STATE);
}

// PAE paging loads its pointers at the entry, and at the exit, from memory, as L1 has no EPT.
// Returns false if one is reserved.
static bool load_pdptes(struct vcpu *vcpu, struct guest_state *s)
{
    u64 reserved = ~BITS(cpuid_phys_bits(vcpu->vm) - 1, 0) | BITS(8, 5) | BITS(2, 1);

    if ((s->efer & EFER_LMA) || !(s->cr4 & CR4_PAE))
        return true;
    if (guest_read_gpa(vcpu, s->cr3 & BITS(31, 5), s->pdpte, sizeof(s->pdpte)))
        return false;
    for (unsigned i = 0; i < 4; i++)
        if ((s->pdpte[i] & 1) && (s->pdpte[i] & reserved))
            return false;
    return true;
}

static void save_guest_state(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    struct guest_state *s = vcpu_state(vcpu, GROUP_ALL_CTX & ~(u32)(GROUP_CET | GROUP_PDPTE));
    u64 exit = vmcs12_read(n, EXIT_CONTROLS);

    for (unsigned i = 0; i < ARRAY_SIZE(plain); i++)
        vmcs12_write(n, plain[i].field, *plain_at(s, i));
    segments_to_vmcs12(n, s);
    vmcs12_write(n, GUEST_GDTR_LIMIT, s->gdtr.limit);
    vmcs12_write(n, GUEST_IDTR_LIMIT, s->idtr.limit);
    vmcs12_write(n, GUEST_INTERRUPTIBILITY, s->interruptibility);
    vmcs12_write(n, GUEST_ACTIVITY_STATE, s->activity);
    if (exit & EXIT_CTL_SAVE_DEBUG) {
        vmcs12_write(n, GUEST_DR7, s->dr7);
        vmcs12_write(n, GUEST_DEBUGCTL, s->debugctl);
    }
    if (exit & EXIT_CTL_SAVE_PAT)
        vmcs12_write(n, GUEST_PAT, s->pat);
    if (exit & EXIT_CTL_SAVE_EFER)
        vmcs12_write(n, GUEST_EFER, s->efer);
    vmcs12_write(n, ENTRY_CONTROLS,
                 (vmcs12_read(n, ENTRY_CONTROLS) & ~(u64)ENTRY_CTL_IA32E_GUEST) |
                     (s->efer & EFER_LMA ? (u64)ENTRY_CTL_IA32E_GUEST : 0));
}

// --- entry ---

// L2's own MSR bitmap: what Nestor passes, less what L1 intercepts.
static void merge_msr_bitmap(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    const u64 *own = (const u64 *)vcpu->vm->msr_bitmap, *l1s = NULL;
    u64 *merged = vcpu->nested_bitmap;

    if (vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_MSR_BITMAPS)
        l1s = vm_ram_ptr(vcpu->vm, vmcs12_read(n, MSR_BITMAP), PAGE_SIZE);
    for (unsigned i = 0; i < PAGE_SIZE / sizeof(u64); i++)
        merged[i] = l1s ? own[i] | l1s[i] : ~0ull;
    vcpu->ctx[1].ctl.msr_bitmap = merged;
}

static void merge_cr_masks(struct nested *n, struct controls *ctl)
{
    u64 mask0 = vmcs12_read(n, CR0_GUEST_HOST_MASK), mask4 = vmcs12_read(n, CR4_GUEST_HOST_MASK);

    ctl->cr0_mask |= mask0;
    ctl->cr0_shadow = vmcs12_read(n, CR0_READ_SHADOW) & mask0;
    ctl->cr4_mask |= mask4;
    ctl->cr4_shadow = vmcs12_read(n, CR4_READ_SHADOW) & mask4;
}

static void merge_controls(struct vcpu *vcpu)
{
    static const struct {
        u32 bit;
        u64 intercept;
    } rows[] = {
        {PRIMARY_HLT, INTERCEPT_HLT},
        {PRIMARY_INVLPG, INTERCEPT_INVLPG},
        {PRIMARY_MWAIT, INTERCEPT_MWAIT},
        {PRIMARY_RDPMC, INTERCEPT_RDPMC},
        {PRIMARY_RDTSC, INTERCEPT_RDTSC},
        {PRIMARY_CR3_LOAD, INTERCEPT_CR3_WRITE},
        {PRIMARY_CR3_STORE, INTERCEPT_CR3_READ},
        {PRIMARY_CR8_LOAD, INTERCEPT_CR8_WRITE},
        {PRIMARY_CR8_STORE, INTERCEPT_CR8_READ},
        {PRIMARY_MOV_DR, INTERCEPT_DR_READ | INTERCEPT_DR_WRITE},
        {PRIMARY_MONITOR, INTERCEPT_MONITOR},
        {PRIMARY_PAUSE, INTERCEPT_PAUSE},
        {PRIMARY_INTERRUPT_WINDOW, INTERCEPT_INTERRUPT_WINDOW},
    };
    struct nested *n = vcpu->nested;
    struct controls *ctl = &vcpu->ctx[1].ctl;
    u64 primary = vmcs12_read(n, PRIMARY_CONTROLS);

    nested_base_controls(vcpu);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        if (primary & rows[i].bit)
            ctl->intercepts |= rows[i].intercept;
    ctl->exception_bitmap |= (u32)vmcs12_read(n, EXCEPTION_BITMAP);
    if (vmcs12_read(n, PF_ERROR_CODE_MASK) || vmcs12_read(n, PF_ERROR_CODE_MATCH))
        ctl->exception_bitmap |= BIT(VECTOR_PF); // mask and match are looked up at the exit
    merge_cr_masks(n, ctl);
    merge_msr_bitmap(vcpu);
    if (primary & PRIMARY_TSC_OFFSETTING)
        ctl->tsc_offset += vmcs12_read(n, TSC_OFFSET);
}

static void take_injection(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    u64 info = vmcs12_read(n, ENTRY_INTERRUPTION_INFO);

    if (!(info & INFO_VALID))
        return;
    vcpu->events.reinject = (struct event){
        .valid = true,
        .vector = (u8)info,
        .type = info >> INFO_TYPE_SHIFT & 7,
        .has_error = info & INFO_ERROR_CODE,
        .error = (u32)vmcs12_read(n, ENTRY_EXCEPTION_ERROR_CODE),
        .insn_len = (u8)vmcs12_read(n, ENTRY_INSTRUCTION_LENGTH),
    };
}

// --- the MSR areas (SDM vol. 3 "Loading MSRs", "Saving MSRs") ---

struct msr_entry {
    u32 index, reserved;
    u64 value;
};

// MSRs that the areas can't load: FS_BASE and GS_BASE, which have fields, and the x2APIC's.
static bool is_barred(u32 msr)
{
    return msr == MSR_FS_BASE || msr == MSR_GS_BASE || msr >> 8 == MSR_X2APIC_FIRST >> 8;
}

// Loads entry by entry, as WRMSR would at CPL 0. Returns 0, or the number of the entry that fails,
// from 1 on.
static u32 load_msr_area(struct vcpu *vcpu, gpa_t gpa, u64 count)
{
    struct msr_entry entry;

    for (u32 i = 0; i < count; i++) {
        if (guest_read_gpa(vcpu, gpa + i * sizeof(entry), &entry, sizeof(entry)) ||
            entry.reserved || is_barred(entry.index) ||
            msr_write_guest(vcpu, entry.index, entry.value))
            return i + 1;
    }
    return 0;
}

static void abort_vmx(struct vcpu *vcpu, const char *why)
{
    vm_stop(vcpu->vm, vcpu, "VMX abort: %s", why);
}

static void store_msr_area(struct vcpu *vcpu)
{
    gpa_t gpa = vmcs12_read(vcpu->nested, EXIT_MSR_STORE_ADDRESS);
    u64 count = vmcs12_read(vcpu->nested, EXIT_MSR_STORE_COUNT);
    struct msr_entry entry;

    for (u32 i = 0; i < count; i++) {
        if (guest_read_gpa(vcpu, gpa + i * sizeof(entry), &entry, sizeof(entry)) ||
            entry.reserved || entry.index >> 8 == MSR_X2APIC_FIRST >> 8 ||
            msr_read_guest(vcpu, entry.index, &entry.value) ||
            guest_write_gpa(vcpu, gpa + i * sizeof(entry), &entry, sizeof(entry)))
            abort_vmx(vcpu, "a guest MSR can't be saved");
    }
}

void vmcs12_enter(struct vcpu *vcpu)
{
    struct nested *n = vcpu->nested;
    u32 failed;

    load_guest_state(vcpu);
    if (!load_pdptes(vcpu, &vcpu->ctx[1].state)) {
        vmcs12_entry_failed(vcpu, REASON_INVALID_GUEST_STATE, 2); // qualification 2: PDPTE loading
        return;
    }
    merge_controls(vcpu);
    nested_enter_l2(vcpu);
    failed = load_msr_area(vcpu, vmcs12_read(n, ENTRY_MSR_LOAD_ADDRESS),
                           vmcs12_read(n, ENTRY_MSR_LOAD_COUNT));
    if (failed) {
        nested_leave_l2(vcpu);
        vmcs12_entry_failed(vcpu, REASON_MSR_LOADING, failed);
        return;
    }
    n->was_launched = n->vmcs.launched;
    n->vmcs.launched = 1;
    take_injection(vcpu);
    vcpu->events.debug_check = true;
}

// --- exit ---

static void host_segment(struct guest_state *s, unsigned seg, u64 selector, u64 base, u32 access)
{
    s->seg[seg] = (struct segment){
        .selector = (u16)selector, .base = base, .limit = 0xffffffff, .access = access};
    if (!selector && seg != SEG_CS)
        s->seg[seg].access |= SEG_UNUSABLE;
}

static void load_host_segments(struct nested *n, struct guest_state *s, bool host64)
{
    host_segment(s, SEG_CS, vmcs12_read(n, HOST_CS_SELECTOR), 0,
                 0x9b | SEG_P | SEG_G | (host64 ? SEG_L : SEG_DB));
    host_segment(s, SEG_SS, vmcs12_read(n, HOST_SS_SELECTOR), 0, 0x93 | SEG_G | SEG_DB);
    host_segment(s, SEG_DS, vmcs12_read(n, HOST_DS_SELECTOR), 0, 0x93 | SEG_G | SEG_DB);
    host_segment(s, SEG_ES, vmcs12_read(n, HOST_ES_SELECTOR), 0, 0x93 | SEG_G | SEG_DB);
    host_segment(s, SEG_FS, vmcs12_read(n, HOST_FS_SELECTOR), vmcs12_read(n, HOST_FS_BASE),
                 0x93 | SEG_G | SEG_DB);
    host_segment(s, SEG_GS, vmcs12_read(n, HOST_GS_SELECTOR), vmcs12_read(n, HOST_GS_BASE),
                 0x93 | SEG_G | SEG_DB);
    s->seg[SEG_TR] = (struct segment){.selector = (u16)vmcs12_read(n, HOST_TR_SELECTOR),
                                      .base = vmcs12_read(n, HOST_TR_BASE),
                                      .limit = 0x67,
                                      .access = 0x8b};
    s->seg[SEG_LDTR] = (struct segment){.access = SEG_UNUSABLE};
    s->gdtr = (struct table_register){vmcs12_read(n, HOST_GDTR_BASE), 0xffff};
    s->idtr = (struct table_register){vmcs12_read(n, HOST_IDTR_BASE), 0xffff};
}

// "Loading Host State": ctx[0] becomes what VMCS12's host-state area says. What it does not say
// stays as it is in `before`: L2's state, or L1's own if L2's was not loaded.
static void load_host_state(struct vcpu *vcpu, const struct guest_state *before)
{
    struct nested *n = vcpu->nested;
    struct guest_state *s = &vcpu->ctx[0].state;
    u64 controls = vmcs12_read(n, EXIT_CONTROLS);
    bool host64 = controls & EXIT_CTL_HOST_64;
    u32 groups = GROUP_ALL_CTX & ~(u32)(GROUP_CET | (host64 ? GROUP_PDPTE : 0));

    vcpu->ctx[0].valid |= groups; // all of it is written here: nothing need be read
    vcpu->ctx[0].dirty |= groups;

    s->rip = vmcs12_read(n, HOST_RIP);
    s->rsp = vmcs12_read(n, HOST_RSP);
    s->rflags = RFLAGS_FIXED;
    s->cr0 = (vmcs12_read(n, HOST_CR0) & ~(CR0_CD | CR0_NW)) | (before->cr0 & (CR0_CD | CR0_NW)) |
             CR0_ET;
    s->cr3 = vmcs12_read(n, HOST_CR3);
    s->cr4 = vmcs12_read(n, HOST_CR4) | (host64 ? CR4_PAE : 0);
    if (!host64)
        s->cr4 &= ~(u64)CR4_PCIDE;
    s->efer = controls & EXIT_CTL_LOAD_EFER ? vmcs12_read(n, HOST_EFER)
                                            : before->efer & ~(EFER_LMA | EFER_LME);
    s->efer |= host64 ? EFER_LMA | EFER_LME : 0;
    s->pat = controls & EXIT_CTL_LOAD_PAT ? vmcs12_read(n, HOST_PAT) : before->pat;
    s->dr7 = DR7_FIXED;
    s->debugctl = 0;
    load_host_segments(n, s, host64);
    s->sysenter_cs = vmcs12_read(n, HOST_SYSENTER_CS);
    s->sysenter_esp = vmcs12_read(n, HOST_SYSENTER_ESP);
    s->sysenter_eip = vmcs12_read(n, HOST_SYSENTER_EIP);
    s->interruptibility = before->interruptibility & BLOCK_NMI; // there are no virtual NMIs
    s->activity = ACTIVITY_ACTIVE;
    s->pending_dbg = 0;
    if (!load_pdptes(vcpu, s))
        abort_vmx(vcpu, "the host's PDPTEs are wrong");
    tlb_flush_vcpu(vcpu, TLB_FLUSH_GUEST);
    if (load_msr_area(vcpu, vmcs12_read(n, EXIT_MSR_LOAD_ADDRESS),
                      vmcs12_read(n, EXIT_MSR_LOAD_COUNT)))
        abort_vmx(vcpu, "a host MSR can't be loaded");
}

static u64 event_info(const struct event *event)
{
    if (!event->valid)
        return 0;
    return event->vector | (u64)event->type << INFO_TYPE_SHIFT |
           (event->has_error ? (u64)INFO_ERROR_CODE : 0) | INFO_VALID;
}

// Tables "Format of the VM-Exit Instruction-Information Field as Used for ...".
static u32 instruction_info(const struct vm_exit *exit)
{
    const struct exit_operand *op = &exit->operand;
    u32 info = (u32)op->reg2 << 28;

    if (exit->kind == EXIT_IO && exit->io.string && exit->io.addr_size <= 8)
        return (u32)exit->io.addr_size >> 2 << 7 | (u32)(exit->io.seg & 7) << 15;
    if (!op->known)
        return 0;
    if (op->is_reg)
        return info | (u32)op->reg1 << 3 | (u32)BIT(10);
    info |= op->scale | (u32)op->addr_size >> 2 << 7 | (u32)op->seg << 15;
    info |= op->index == EXIT_GPR_UNKNOWN ? (u32)BIT(22) : (u32)op->index << 18;
    return info | (op->base == EXIT_GPR_UNKNOWN ? (u32)BIT(27) : (u32)op->base << 23);
}

// INS and OUTS: where their memory operand is.
static u64 string_address(struct vcpu *vcpu, const struct exit_io *io)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_CODE | GROUP_DATA | GROUP_SYSTEM);
    u64 offset = vcpu->gpr[io->in ? GPR_RDI : GPR_RSI];
    unsigned seg = io->in ? SEG_ES : io->seg <= SEG_GS ? io->seg : SEG_DS;

    if (io->addr_size == 2 || io->addr_size == 4)
        offset &= io->addr_size == 4 ? 0xffffffffull : 0xffffull;
    if (!vcpu_mode_64bit(vcpu))
        return (u32)(offset + s->seg[seg].base);
    return offset + (seg >= SEG_FS ? s->seg[seg].base : 0);
}

static u8 exit_length(const struct vm_exit *exit, const struct event *vectoring)
{
    bool software = vectoring->valid && vectoring->type >= EVENT_SOFT_INTERRUPT;

    return !exit->insn_len && software ? vectoring->insn_len : exit->insn_len;
}

static void save_exit_information(struct vcpu *vcpu, u32 reason, u64 qualification,
                                  const struct vm_exit *exit)
{
    struct nested *n = vcpu->nested;
    const struct event *event = &exit->event, *vectoring = &vcpu->events.reinject;
    bool has_event = exit->kind == EXIT_EXCEPTION || exit->kind == EXIT_NMI ||
                     exit->kind == EXIT_EXTERNAL_INTERRUPT;
    u64 unblocking =
        exit->kind == EXIT_EXCEPTION && exit->nmi_unblocked_by_iret ? INFO_NMI_UNBLOCKING : 0;

    vmcs12_write(n, EXIT_REASON, reason);
    vmcs12_write(n, EXIT_QUALIFICATION, qualification);
    vmcs12_write(n, EXIT_INTERRUPTION_INFO, has_event ? event_info(event) | unblocking : 0);
    vmcs12_write(n, EXIT_INTERRUPTION_ERROR_CODE, has_event && event->has_error ? event->error : 0);
    vmcs12_write(n, IDT_VECTORING_INFO, event_info(vectoring));
    vmcs12_write(n, IDT_VECTORING_ERROR_CODE, vectoring->has_error ? vectoring->error : 0);
    vmcs12_write(n, EXIT_INSTRUCTION_LENGTH, exit_length(exit, vectoring));
    vmcs12_write(n, EXIT_INSTRUCTION_INFO, instruction_info(exit));
    vmcs12_write(n, GUEST_LINEAR_ADDRESS,
                 exit->kind == EXIT_IO && exit->io.string ? string_address(vcpu, &exit->io) : 0);
    vmcs12_write(n, ENTRY_INTERRUPTION_INFO,
                 vmcs12_read(n, ENTRY_INTERRUPTION_INFO) & ~(u64)INFO_VALID);
}

void vmcs12_exit(struct vcpu *vcpu, u32 reason, u64 qualification, const struct vm_exit *exit)
{
    save_guest_state(vcpu);
    save_exit_information(vcpu, reason, qualification, exit);
    store_msr_area(vcpu);
    vcpu->events.reinject.valid = false;
    vcpu->events.exception.valid = false;
    nested_leave_l2(vcpu);
    load_host_state(vcpu, &vcpu->ctx[1].state);
}

// "VM-Entry Failures During or After Loading Guest State": no guest state is saved, host state is
// loaded as by an exit.
void vmcs12_entry_failed(struct vcpu *vcpu, u32 reason, u64 qualification)
{
    struct guest_state before = *vcpu_state(vcpu, GROUP_CR | GROUP_EFER_PAT | GROUP_BLOCKING);

    vmcs12_write(vcpu->nested, EXIT_REASON, reason | EXIT_REASON_ENTRY_FAILURE);
    vmcs12_write(vcpu->nested, EXIT_QUALIFICATION, qualification);
    load_host_state(vcpu, &before);
}

// --- does L1 want this exit? ---

// Exits by one primary control bit (0: always), with their reasons.
static const struct {
    u8 kind;
    u8 reason;
    u32 primary;
} rows[] = {
    {EXIT_CPUID, REASON_CPUID, 0},
    {EXIT_INVD, REASON_INVD, 0},
    {EXIT_XSETBV, REASON_XSETBV, 0},
    {EXIT_GETSEC, REASON_GETSEC, 0},
    {EXIT_VMCALL, REASON_VMCALL, 0},
    {EXIT_VMXON, REASON_VMXON, 0},
    {EXIT_VMXOFF, REASON_VMXOFF, 0},
    {EXIT_VMCLEAR, REASON_VMCLEAR, 0},
    {EXIT_VMPTRLD, REASON_VMPTRLD, 0},
    {EXIT_VMPTRST, REASON_VMPTRST, 0},
    {EXIT_VMREAD, REASON_VMREAD, 0},
    {EXIT_VMWRITE, REASON_VMWRITE, 0},
    {EXIT_VMLAUNCH, REASON_VMLAUNCH, 0},
    {EXIT_VMRESUME, REASON_VMRESUME, 0},
    {EXIT_TRIPLE_FAULT, REASON_TRIPLE_FAULT, 0},
    {EXIT_HLT, REASON_HLT, PRIMARY_HLT},
    {EXIT_INVLPG, REASON_INVLPG, PRIMARY_INVLPG},
    {EXIT_MWAIT, REASON_MWAIT, PRIMARY_MWAIT},
    {EXIT_RDPMC, REASON_RDPMC, PRIMARY_RDPMC},
    {EXIT_RDTSC, REASON_RDTSC, PRIMARY_RDTSC},
    {EXIT_MONITOR, REASON_MONITOR, PRIMARY_MONITOR},
    {EXIT_PAUSE, REASON_PAUSE, PRIMARY_PAUSE},
    {EXIT_DR, REASON_MOV_DR, PRIMARY_MOV_DR},
};

static bool bitmap_bit(struct vcpu *vcpu, gpa_t bitmap, u32 bit)
{
    u8 byte = 0xff;

    guest_read_gpa(vcpu, bitmap + bit / 8, &byte, 1);
    return byte >> (bit % 8) & 1;
}

static bool wants_msr(struct vcpu *vcpu, bool write)
{
    struct nested *n = vcpu->nested;
    u32 msr = (u32)vcpu->gpr[GPR_RCX];
    gpa_t bitmap = vmcs12_read(n, MSR_BITMAP) + (write ? 0x800 : 0);

    if (!(vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_MSR_BITMAPS))
        return true;
    if (msr < 0x2000)
        return bitmap_bit(vcpu, bitmap, msr);
    if (msr - 0xc0000000u < 0x2000)
        return bitmap_bit(vcpu, bitmap + 0x400, msr - 0xc0000000u);
    return true;
}

static bool wants_io(struct vcpu *vcpu, const struct exit_io *io)
{
    struct nested *n = vcpu->nested;
    u64 primary = vmcs12_read(n, PRIMARY_CONTROLS);

    if (!(primary & PRIMARY_IO_BITMAPS))
        return primary & PRIMARY_UNCONDITIONAL_IO;
    for (unsigned i = 0; i < io->size; i++) {
        u32 port = io->port + i;

        if (port > 0xffff) // wraps around: exits
            return true;
        if (bitmap_bit(vcpu, vmcs12_read(n, port & 0x8000 ? IO_BITMAP_B : IO_BITMAP_A),
                       port & 0x7fff))
            return true;
    }
    return false;
}

static u64 io_qualification(const struct exit_io *io)
{
    return (u64)(io->size - 1) | (u64)io->in << 3 | (u64)io->string << 4 | (u64)io->rep << 5 |
           (u64)io->immediate << 6 | (u64)io->port << 16;
}

static bool wants_cr_write(struct vcpu *vcpu, const struct exit_cr *cr)
{
    struct nested *n = vcpu->nested;
    u64 value = cr->access == CR_WRITE
                    ? vcpu_gpr(vcpu, cr->gpr) & (vcpu_mode_64bit(vcpu) ? ~0ull : 0xffffffffull)
                    : 0;
    u64 mask = vmcs12_read(n, CR0_GUEST_HOST_MASK), shadow = vmcs12_read(n, CR0_READ_SHADOW);

    if (cr->access == CR_CLTS)
        return (mask & CR0_TS) && (shadow & CR0_TS);
    if (cr->access == CR_LMSW) {
        u64 change = (cr->lmsw_source ^ shadow) & mask & (CR0_MP | CR0_EM | CR0_TS);

        return change || ((cr->lmsw_source & CR0_PE) && (mask & CR0_PE) && !(shadow & CR0_PE));
    }
    if (cr->number == 0)
        return (value ^ shadow) & mask;
    if (cr->number == 4)
        return (value ^ vmcs12_read(n, CR4_READ_SHADOW)) & vmcs12_read(n, CR4_GUEST_HOST_MASK);
    if (cr->number == 8)
        return vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_CR8_LOAD;
    if (!(vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_CR3_LOAD))
        return false;
    for (unsigned i = 0; i < vmcs12_read(n, CR3_TARGET_COUNT); i++)
        if (value == vmcs12_read(n, (enum vmcs_field)(CR3_TARGET_VALUE0 + 2 * i)))
            return false;
    return true;
}

static bool wants_cr(struct vcpu *vcpu, const struct exit_cr *cr)
{
    u64 primary = vmcs12_read(vcpu->nested, PRIMARY_CONTROLS);

    if (cr->access == CR_READ)
        return primary & (cr->number == 3 ? PRIMARY_CR3_STORE : PRIMARY_CR8_STORE);
    return wants_cr_write(vcpu, cr);
}

static u64 cr_qualification(const struct exit_cr *cr)
{
    return cr->number | (u64)cr->access << 4 |
           (cr->access == CR_LMSW ? (u64)cr->lmsw_memory << 6 : (u64)(cr->gpr & 0xf) << 8) |
           (u64)cr->lmsw_source << 16;
}

bool vmcs12_wants_exception(struct vcpu *vcpu, const struct event *event)
{
    struct nested *n = vcpu->nested;
    struct vm_exit exit = {.kind = EXIT_EXCEPTION, .event = *event};
    bool wanted = vmcs12_read(n, EXCEPTION_BITMAP) & BIT(event->vector);

    if (event->type == EVENT_SOFT_INTERRUPT)
        return false;
    if (event->vector == VECTOR_PF &&
        (event->error & vmcs12_read(n, PF_ERROR_CODE_MASK)) != vmcs12_read(n, PF_ERROR_CODE_MATCH))
        wanted = !wanted;
    if (!wanted)
        return false;
    exit.event.valid = true;
    exit.insn_len = event->insn_len;
    vmcs12_exit(vcpu, REASON_EXCEPTION_NMI, event->has_payload ? event->payload : 0, &exit);
    return true;
}

static bool exit_if(struct vcpu *vcpu, bool wanted, u32 reason, u64 qualification,
                    const struct vm_exit *exit)
{
    if (wanted)
        vmcs12_exit(vcpu, reason, qualification, exit);
    return wanted;
}

static bool reflect_by_row(struct vcpu *vcpu, const struct vm_exit *exit)
{
    u64 primary = vmcs12_read(vcpu->nested, PRIMARY_CONTROLS), qualification = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        if (rows[i].kind != exit->kind)
            continue;
        if (exit->kind == EXIT_INVLPG)
            qualification = exit->linear;
        else if (exit->operand.known && !exit->operand.is_reg)
            qualification = (u64)exit->operand.displacement;
        else if (exit->kind == EXIT_DR)
            qualification =
                exit->dr.number | (exit->dr.write ? 0 : BIT(4)) | (u64)exit->dr.gpr << 8;
        return exit_if(vcpu, !rows[i].primary || (primary & rows[i].primary), rows[i].reason,
                       qualification, exit);
    }
    return false;
}

bool vmcs12_reflect(struct vcpu *vcpu, struct vm_exit *exit)
{
    switch (exit->kind) {
    case EXIT_EXCEPTION:
        return vmcs12_wants_exception(vcpu, &exit->event);
    case EXIT_RDMSR:
        return exit_if(vcpu, wants_msr(vcpu, false), REASON_RDMSR, 0, exit);
    case EXIT_WRMSR:
        return exit_if(vcpu, wants_msr(vcpu, true), REASON_WRMSR, 0, exit);
    case EXIT_IO:
        return exit_if(vcpu, wants_io(vcpu, &exit->io), REASON_IO, io_qualification(&exit->io),
                       exit);
    case EXIT_CR:
        return exit_if(vcpu, wants_cr(vcpu, &exit->cr), REASON_CR_ACCESS,
                       cr_qualification(&exit->cr), exit);
    case EXIT_INTERRUPT_WINDOW:
        return exit_if(vcpu, vmcs12_read(vcpu->nested, PRIMARY_CONTROLS) & PRIMARY_INTERRUPT_WINDOW,
                       REASON_INTERRUPT_WINDOW, 0, exit);
    case EXIT_TASK_SWITCH:
        return exit_if(vcpu, true, REASON_TASK_SWITCH,
                       exit->task.selector | (u64)exit->task.source << 30, exit);
    case EXIT_ENTRY_FAILED:
        log_error("guest %s: the CPU refused an L2 that Nestor's checks passed (%#llx)",
                  vcpu->vm->config->name, (unsigned long long)exit->raw_reason);
        vcpu->nested->vmcs.launched = vcpu->nested->was_launched;
        vcpu->events.reinject.valid = false;
        nested_leave_l2(vcpu);
        vmcs12_entry_failed(vcpu, REASON_INVALID_GUEST_STATE, 0);
        return true;
    case EXIT_INVEPT: // without the secondary controls none of these exists in L2
    case EXIT_INVVPID:
    case EXIT_RDTSCP:
    case EXIT_INVPCID:
    case EXIT_XSAVES:
    case EXIT_XRSTORS:
        vcpu_inject_ud(vcpu);
        return true;
    default:
        return reflect_by_row(vcpu, exit);
    }
}

enum nested_answer vmcs12_event(struct vcpu *vcpu, enum nested_event event)
{
    struct nested *n = vcpu->nested;
    u64 pin = vmcs12_read(n, PIN_BASED_CONTROLS);
    struct vm_exit exit = {.kind = EXIT_NONE};
    const struct guest_state *s = vcpu_state(vcpu, GROUP_RIP | GROUP_BLOCKING);

    switch (event) {
    case NESTED_INIT: // an L1 in VMX operation takes INIT as an exit of L2
        vmcs12_exit(vcpu, REASON_INIT, 0, &exit);
        return NESTED_EXITED;
    case NESTED_NMI:
        if (!(pin & PIN_NMI) || (s->interruptibility & (BLOCK_NMI | BLOCK_MOV_SS)))
            return NESTED_DELIVER; // or waits for its window
        vcpu->events.nmi_count--;
        exit.kind = EXIT_NMI;
        exit.event = (struct event){.valid = true, .vector = VECTOR_NMI, .type = EVENT_NMI};
        vmcs12_exit(vcpu, REASON_EXCEPTION_NMI, 0, &exit);
        vcpu_modify(vcpu, GROUP_BLOCKING)->interruptibility |= BLOCK_NMI;
        return NESTED_EXITED;
    case NESTED_INTERRUPT:
        if (!(pin & PIN_EXTERNAL_INTERRUPT))
            return NESTED_DELIVER;
        if ((s->rflags & RFLAGS_IF) && (s->interruptibility & (BLOCK_STI | BLOCK_MOV_SS)))
            return NESTED_DELIVER; // waits for its window
        if (vmcs12_read(n, EXIT_CONTROLS) & EXIT_CTL_ACK_INTERRUPT) {
            int vector = irq_ack(vcpu);

            exit.kind = EXIT_EXTERNAL_INTERRUPT;
            exit.event =
                (struct event){.valid = vector >= 0, .vector = (u8)vector, .type = EVENT_INTERRUPT};
        }
        vmcs12_exit(vcpu, REASON_EXTERNAL_INTERRUPT, 0, &exit);
        return NESTED_EXITED;
    default:
        return NESTED_DELIVER;
    }
}
