// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A hostile SVM hypervisor: from a fixed seed it takes a good VMCB, spoils fields of it and what
// they point at, and runs it. Each VMRUN must end as the APM says (vol. 2, 15.5, appendix C):
// VMEXIT_INVALID or an exit code; and the good VMCB must work in between. hostile.h tells the words
// on the command line.
//
// L1 keeps what gets it its CPU back: the intercepts of INTR and of shutdown, see keep_control.

#include "hostile.h"
#include "svm.h"

enum { WATCHDOG_TICKS = 4000000, STEPS = 4, CONTROL_END = 0xe0 };
enum { SAVE_START = 0x400, SAVE_END = 0x698 };

static struct vmcb good;
static u8 *own, *spare_vmcb;
static u32 outcomes[3]; // invalid, exits, instructions that fault

HOSTILE_L2("vmmcall", "vmmcall; hlt");

static bool has_npt(void)
{
    return cpuid(0x8000000a, 0).edx & SVM_FEATURE_NP;
}

static void make_good(void)
{
    struct vmcb *v = vmcb;

    l2_init(l2.code);
    v->intercept[SVM_WORD_EXCEPTIONS] = ~0u & ~BIT(VECTOR_NMI);
    v->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR | SVM_INTERCEPT_NMI | SVM_INTERCEPT_IOIO |
                                SVM_INTERCEPT_MSR | SVM_INTERCEPT_INVLPGA |
                                SVM_INTERCEPT_TASK_SWITCH;
    v->intercept[SVM_WORD_4] |= SVM_INTERCEPT_VMLOAD | SVM_INTERCEPT_VMSAVE | SVM_INTERCEPT_STGI |
                                SVM_INTERCEPT_CLGI | SVM_INTERCEPT_SKINIT;
    v->v_ctl = SVM_V_INTR_MASKING;
    v->cr3 = (u64)l2.paging;
    v->rsp = (u64)l2.stack;
    v->gdtr.base = (u64)l2.gdt;
    v->idtr.base = (u64)l2.idt;
    v->tr =
        (struct vmcb_segment){.selector = TSS, .attrib = 0x8b, .limit = 103, .base = (u64)l2.tss};
    v->rflags = RFLAGS_FIXED | RFLAGS_IF;
    if (has_npt()) {
        v->np_enable = SVM_NP_ENABLE;
        v->n_cr3 = (u64)l2.nested;
    }
    good = *v;
}

// --- spoiling it ---

static const u16 addresses[] = {
    offsetof(struct vmcb, iopm_base_pa),  offsetof(struct vmcb, msrpm_base_pa),
    offsetof(struct vmcb, n_cr3),         offsetof(struct vmcb, cr3),
    offsetof(struct vmcb, avic_apic_bar), offsetof(struct vmcb, ghcb_pa)};

// What the hardware below would do without it only another CPU could end; and without nested
// paging L2's own is what keeps it away from L1.
static void keep_control(struct vmcb *v)
{
    v->intercept[SVM_WORD_3] |= SVM_INTERCEPT_INTR | SVM_INTERCEPT_SHUTDOWN;
    if (!(v->v_ctl & SVM_V_INTR_MASKING))
        v->rflags |= RFLAGS_IF;
    if (v->np_enable & SVM_NP_ENABLE)
        return;
    v->cr0 |= CR0_PG;
    v->cr3 = hostile_root(v->cr3);
}

static void spoil_field(struct vmcb *v)
{
    u16 offset = (u16)(below(2) ? below(CONTROL_END / 4) * 4
                                : SAVE_START + below((SAVE_END - SAVE_START) / 4) * 4);
    u64 value, *at = (u64 *)((u8 *)v + (offset & (below(2) ? ~7 : ~3)));

    switch (below(6)) {
    case 0:
    case 1:
        value = *at ^ BIT(below(64));
        break;
    case 2:
        value = *at + below(16) - 8;
        break;
    case 3:
        *(u64 *)((u8 *)v + addresses[below(ARRAY_SIZE(addresses))]) = hostile_address();
        return;
    default:
        value = random_value();
    }
    *at = value;
}

static void load(void)
{
    *vmcb = good;
}

static void spoil(void)
{
    struct vmcb *v = vmcb;

    for (u32 n = below(3) ? 1 : 1 + below(4); n; n--)
        spoil_field(v);
    if (below(8) == 0)
        v->np_enable ^= SVM_NP_ENABLE;
    if (below(8) == 0)
        v->clean = (u32)random_value();
    if (below(4) == 0)
        hostile_l2_spoil();
    if (hostile_l2_stale()) // an L2 whose code is not the same for all ends the guest
        v->tlb_control = SVM_TLB_FLUSH_ALL;
    if (below(4) == 0)
        msrpm[below(2 * PAGE_SIZE)] = (u8)random_u64();
    keep_control(v);
}

// --- running it ---

static bool known_code(u64 code)
{
    return code <= VMEXIT_IDLE_HLT || code == VMEXIT_NPF;
}

// The length of the instruction that exited, of those in l2_code.
static u64 length_of(u64 code)
{
    return code == VMEXIT_CPUID || code == VMEXIT_MSR || code == VMEXIT_PAUSE ? 2
           : code == VMEXIT_VMMCALL || code < VMEXIT_DR0_READ                 ? 3
           : code == VMEXIT_IOIO || code == VMEXIT_HLT                        ? 1
                                                                              : 0;
}

static void l1_again(void)
{
    msr_write(MSR_PAT, 0x0007040600070406);
    msr_write(MSR_EFER, EFER_LME | EFER_LMA | EFER_SVME);
}

// With GIF clear and RFLAGS.IF set around VMRUN, and all of L1's state that it leaves to VMLOAD put
// back.
static void enter(u64 address)
{
    __asm__ volatile("vmsave; clgi; sti" : : "a"(own) : "memory");
    svm_run(address);
    __asm__ volatile("cli; vmload; stgi" : : "a"(own) : "memory");
}

static bool run_spoiled(u64 number)
{
    struct vmcb *v = vmcb;

    for (u32 step = 0; step < STEPS; step++) {
        v->exitcode = 0xdead;
        watchdog_arm(WATCHDOG_TICKS);
        enter((u64)v);
        watchdog_quiet();
        if (v->exitcode == VMEXIT_INVALID) {
            outcomes[0]++;
            return true;
        }
        outcomes[1]++;
        if (!known_code(v->exitcode) && !hostile_racing) {
            report(false, "case %llu: EXITCODE %#llx", LLU(number), LLU(v->exitcode));
            return false;
        }
        v->rip += length_of(v->exitcode);
        keep_control(v);
    }
    return true;
}

static bool run_good(void)
{
    hostile_l2_again();
    memset(msrpm, 0xff, 2 * PAGE_SIZE);
    memset(iopm, 0xff, 3 * PAGE_SIZE);
    load();
    vmcb->tlb_control = SVM_TLB_FLUSH_ALL; // L2's tables were elsewhere
    do {                                   // the last case's interrupt may still come
        enter((u64)vmcb);
        watchdog_quiet();
    } while (vmcb->exitcode == VMEXIT_INTR);
    return vmcb->exitcode == VMEXIT_CPUID && vmcb->rip == (u64)l2.code;
}

// --- SVM's instructions on anything ---

static void do_address(void *address)
{
    switch (below(4)) {
    case 0:
        __asm__ volatile("vmload" : : "a"(address) : "memory");
        break;
    case 1:
        __asm__ volatile("vmsave" : : "a"(address) : "memory");
        break;
    case 2:
        __asm__ volatile("invlpga" : : "a"(address), "c"(random_value()) : "memory");
        break;
    default:
        enter((u64)address);
    }
}

static void do_gif(void *unused)
{
    (void)unused;
    clgi();
    if (below(2))
        clgi();
    stgi();
    if (below(2))
        stgi();
}

static void do_msr(void *address)
{
    static const u32 msrs[] = {MSR_VM_HSAVE_PA, MSR_VM_CR, MSR_EFER};
    u32 msr = msrs[below(ARRAY_SIZE(msrs))];
    u64 before = msr_read(msr);

    if (msr == MSR_VM_HSAVE_PA)
        msr_write(msr, (u64)address);
    else if (msr == MSR_VM_CR)
        msr_write(msr, random_value() & ~(u64)VM_CR_LOCK);
    else
        msr_write(msr, before ^ EFER_SVME);
    msr_write(msr, before);
}

static void do_skinit(void *unused)
{
    (void)unused;
    __asm__ volatile("skinit" : : "a"(random_value()) : "memory");
}

// VMLOAD of anything would change L1's own; so that is put back.
static void instructions(void)
{
    static void (*const fns[])(void *) = {do_address, do_address, do_address,
                                          do_gif,     do_msr,     do_skinit};
    static u8 before[PAGE_SIZE] ALIGNED(PAGE_SIZE);

    __asm__ volatile("vmsave" : : "a"(before) : "memory");
    for (u32 n = below(16); n; n--) {
        void *address = below(8) ? (void *)hostile_address() : spare_vmcb;

        memcpy(spare_vmcb, &good, PAGE_SIZE);
        spoil_field((struct vmcb *)spare_vmcb);
        keep_control((struct vmcb *)spare_vmcb);
        watchdog_arm(WATCHDOG_TICKS);
        outcomes[2] += try(fns[below(ARRAY_SIZE(fns))], address) != NO_TRAP;
        stgi();
        __asm__ volatile("vmload" : : "a"(before) : "memory");
        l1_again();
        watchdog_quiet();
    }
}

// --- the second CPU ---

static void race(void *unused)
{
    u8 *const at[] = {(u8 *)vmcb, msrpm, iopm, spare_vmcb};
    struct hostile_race r = {88172645463325252ull, at, ARRAY_SIZE(at),
                             offsetof(struct vmcb, intercept[SVM_WORD_4]) + 1};

    (void)unused;
    while (!hostile_stop_race) {
        hostile_race_step(&r);
        keep_control(vmcb);
    }
}

// --- all of it ---

static bool start(void)
{
    if (!svm_start()) {
        report_skip("no SVM");
        return false;
    }
    hostile_l2_make(l2_code, l2_code_end, 7, 7);
    own = pages(1);
    spare_vmcb = pages(1);
    pages(1);
    hostile_add_target(iopm);
    hostile_add_target(msrpm);
    hostile_add_target(spare_vmcb);
    watchdog_start();
    make_good();
    report(run_good(), "the good VMCB");
    return true;
}

static void fatal(u64 which)
{
    if (which == 0) { // a shutdown that nobody intercepts
        vmcb->intercept[SVM_WORD_3] &= ~SVM_INTERCEPT_SHUTDOWN;
        vmcb->intercept[SVM_WORD_EXCEPTIONS] = 0;
        vmcb->idtr.limit = 0;
        vmcb->rip = 0x5000000000;
    }
    enter((u64)vmcb);
}

static void show(u64 number)
{
    const u32 *now = (const u32 *)vmcb, *was = (const u32 *)&good;

    print("case %llu:", LLU(number));
    for (u32 i = 0; i < sizeof(good) / sizeof(*now); i++)
        if (now[i] != was[i])
            print(" %x: %x, was %x;", i * 4, now[i], was[i]);
    print("\n");
}

static void report_outcomes(void)
{
    report(outcomes[0] && outcomes[1], "%u invalid, %u exits, %u faults, %u interrupts",
           outcomes[0], outcomes[1], outcomes[2], watchdog_count);
}

void guest_main(void)
{
    static const struct hostile svm = {
        .cases = "VMCBs",
        .start = start,
        .race = race,
        .fatal = fatal,
        .instructions = instructions,
        .run_good = run_good,
        .load = load,
        .spoil = spoil,
        .show = show,
        .run_spoiled = run_spoiled,
        .report = report_outcomes,
    };

    hostile_main(&svm);
}
