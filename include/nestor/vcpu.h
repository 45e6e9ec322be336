// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The vendor-neutral vCPU: two contexts (ctx[0] = L1 or a plain guest, ctx[1] = L2), each with the
// guest state in groups, the controls as data, and an opaque part of the back end; plus what both
// contexts share.
//
// Who writes: the vCPU's own pCPU writes everything but `requests` (atomic, any CPU) and the
// LAPIC's posted bits.

#pragma once

#include <nestor/exit.h>
#include <nestor/segment.h>
#include <nestor/time.h>
#include <nestor/types.h>

struct vm;
struct lapic;
struct cpu;

enum gpr {
    GPR_RAX,
    GPR_RCX,
    GPR_RDX,
    GPR_RBX,
    GPR_RSP,
    GPR_RBP,
    GPR_RSI,
    GPR_RDI,
    GPR_R8,
    GPR_R15 = 15
};

struct table_register {
    u64 base;
    u32 limit;
};

// The groups of guest state. A group is `valid` when the model holds it, `dirty` when the model's
// value is newer than the hardware's.
enum state_group {
    GROUP_RIP = BIT(0),      // rip, rsp, rflags: always valid after an exit
    GROUP_CR = BIT(1),       // cr0, cr3, cr4
    GROUP_PDPTE = BIT(2),    // pdpte[]
    GROUP_CODE = BIT(3),     // CS, SS
    GROUP_DATA = BIT(4),     // DS, ES
    GROUP_SYSTEM = BIT(5),   // FS, GS, LDTR, TR (SVM: of the VMLOAD group)
    GROUP_TABLES = BIT(6),   // gdtr, idtr
    GROUP_SYSENTER = BIT(7), // (SVM: of the VMLOAD group)
    GROUP_EFER_PAT = BIT(8),
    GROUP_DEBUG = BIT(9), // dr7, debugctl, last_branch[]
    GROUP_CET = BIT(10),
    GROUP_BLOCKING = BIT(11),    // interruptibility, activity
    GROUP_PENDING_DBG = BIT(12), // pending_dbg
    GROUP_ALL_CTX = BITS(12, 0),
    // shared by both contexts
    GROUP_SYSCALL = BIT(16), // star, lstar, cstar, sfmask, kernel_gs_base
    GROUP_DR = BIT(17),      // dr0-3
    GROUP_CR2 = BIT(18),
    GROUP_SWITCHED = BIT(19), // u_cet, pl_ssp, pkrs, umwait_control (core/switched.c)
    GROUP_DR6 = BIT(20),
    GROUP_EXTENDED = BIT(21), // xcr0, xss, tsc_aux: always valid, but for XSETBV on QEMU's SVM
    GROUP_ALL_SHARED = BITS(21, 16),
};

// SDM vol. 3 "Guest Non-Register State"; SVM's one interrupt shadow is BLOCK_STI
enum interruptibility {
    BLOCK_STI = BIT(0),
    BLOCK_MOV_SS = BIT(1),
    BLOCK_SMI = BIT(2),
    BLOCK_NMI = BIT(3),
};

enum activity { ACTIVITY_ACTIVE, ACTIVITY_HLT, ACTIVITY_SHUTDOWN, ACTIVITY_WAIT_SIPI };

// What the guest of this context architecturally has. CR0/CR4 are its effective values without what
// the back end adds for itself (VMX: CR0.NE, CR4.VMXE; SVM: EFER.SVME).
struct guest_state {
    u64 rip, rsp, rflags;
    u64 cr0, cr3, cr4;
    u64 pdpte[4];
    struct segment seg[SEG_COUNT];
    struct table_register gdtr, idtr;
    u64 sysenter_cs, sysenter_esp, sysenter_eip;
    u64 efer, pat;
    u64 dr7, debugctl;
    u64 last_branch[4]; // from and to; the same of the last exception (backend->last_branches)
    u64 s_cet, ssp, interrupt_ssp_table;
    u32 interruptibility, activity;
    // SDM "Pending Debug Exceptions": B0-3, bit 12 enabled breakpoint, BS (14), RTM (16)
    u64 pending_dbg;
};

// controls.intercepts: instructions and events that exit beside those that always must
enum intercept {
    INTERCEPT_HLT = BIT(0),
    INTERCEPT_PAUSE = BIT(1),
    INTERCEPT_RDTSC = BIT(2), // (VMX: and RDTSCP)
    INTERCEPT_RDPMC = BIT(3),
    INTERCEPT_INVLPG = BIT(4),
    INTERCEPT_INVPCID = BIT(5),
    INTERCEPT_MWAIT = BIT(6),
    INTERCEPT_MONITOR = BIT(7),
    INTERCEPT_WBINVD = BIT(8),  // and INVD (VMX: INVD always exits)
    INTERCEPT_DR_READ = BIT(9), // MOV DR (VMX: both directions)
    INTERCEPT_DR_WRITE = BIT(10),
    INTERCEPT_CR3_READ = BIT(11),
    INTERCEPT_CR3_WRITE = BIT(12),
    INTERCEPT_CR8_READ = BIT(13),
    INTERCEPT_CR8_WRITE = BIT(14),
    INTERCEPT_TABLES_READ = BIT(15), // SGDT SIDT SLDT STR (VMX: "descriptor-table exiting" for all)
    INTERCEPT_TABLES_WRITE = BIT(16),
    INTERCEPT_TASK_SWITCH = BIT(17),
    INTERCEPT_MTF = BIT(18),
    INTERCEPT_XSETBV = BIT(19),
    INTERCEPT_SVM =
        BIT(20), // VMRUN VMLOAD VMSAVE STGI CLGI SKINIT INVLPGA (SVM back end: VMRUN always)
    INTERCEPT_RDPRU = BIT(21),
    INTERCEPT_IRET = BIT(22),
    INTERCEPT_PUSHF = BIT(23),
    INTERCEPT_POPF = BIT(24),
    INTERCEPT_SOFT_INT = BIT(25),
    INTERCEPT_RSM = BIT(26),
    INTERCEPT_CR0_READ = BIT(27), // SVM: whatever the mask says
    INTERCEPT_CR4_READ = BIT(28),
    INTERCEPT_RDTSCP = BIT(29),
    INTERCEPT_ICEBP = BIT(30),
    // L1 waits for its L2's window: each entry opens it (the places: controls_windows)
    INTERCEPT_INTERRUPT_WINDOW = BIT(31),
    INTERCEPT_NMI_WINDOW = BIT(39),
    INTERCEPT_CR0_SELECTIVE = BIT(32), // SVM: CR0 writes that change more than TS and MP
    INTERCEPT_IDTR_READ = BIT(33),     // SVM: the instructions of INTERCEPT_TABLES_* one by one
    INTERCEPT_GDTR_READ = BIT(34),
    INTERCEPT_LDTR_READ = BIT(35),
    INTERCEPT_TR_READ = BIT(36),
    INTERCEPT_IDTR_WRITE = BIT(37),
    INTERCEPT_GDTR_WRITE = BIT(38),
    INTERCEPT_LDTR_WRITE = BIT(44),
    INTERCEPT_TR_WRITE = BIT(40),
    INTERCEPT_RDRAND = BIT(41),
    INTERCEPT_RDSEED = BIT(42),
    INTERCEPT_PAUSE_LOOP = BIT(43), // PAUSE in a loop: controls.pause_gap and pause_window
};

// Instructions that a CPU has but not each guest: what the back end lacks, and what a guest is not
// offered (VMX: the controls that enable them are then 0, so that they are #UD).
enum guest_isa {
    ISA_RDTSCP = BIT(0), // and RDPID
    ISA_INVPCID = BIT(1),
    ISA_XSAVES = BIT(2),
    ISA_USER_WAIT = BIT(3), // TPAUSE UMONITOR UMWAIT
    ISA_CET = BIT(4),
    ISA_ALL = BITS(4, 0),
};

enum control_group {         // which part of the controls the back end must write again
    CTL_INTERCEPTS = BIT(0), // intercepts, exception_bitmap, cr masks and shadows
    CTL_STAGE2 = BIT(1),
    CTL_TSC = BIT(2),
    CTL_BITMAPS = BIT(3),
    CTL_GIF = BIT(4), // events.gif_clear, where the hardware keeps an L1's GIF
    CTL_ALL = BITS(4, 0),
};

struct controls {
    u64 intercepts;       // enum intercept
    u32 disabled_isa;     // enum guest_isa
    u32 exception_bitmap; // beside #MC, which always exits
    u32 cr_intercepts,
        // SVM, beside the others: by number, reads in bits 15:0, writes in bits 31:16
        dr_intercepts;
    u64 cr0_mask, cr4_mask;      // bits whose change exits (guest/host mask)
    u64 cr0_shadow, cr4_shadow;  // what the guest reads for those bits
    u64 cr0_owned, cr4_owned;    // those of them that are L1's: they keep their value
    u32 pause_gap, pause_window; // TSC ticks (SDM vol. 3 "PAUSE-Loop Exiting")
    u64 xss_exits;               // VMX: XSAVES and XRSTORS exit for these components
    hpa_t stage2_root;
    u8 stage2_levels;
    bool stage2_ad; // EPT: A/D bits enabled
    u64 tsc_offset;
    u64 tsc_multiplier; // 0 = none; VMX's fixed point (48 fraction bits)
    const void *
        // an L2's merged bitmap in the vendor's format (page_alloc'd), NULL: the VM's own policy
        msr_bitmap;
    // Decided anew for every entry (core/event.c); no dirty bit.
    struct event inject;
    union {
        struct {
            bool interrupt_window, nmi_window;
            // The local APIC's interrupt that the CPU may deliver by itself as soon as the guest
            // takes one (backend->delivers_offers); 0: none.
            u8 offer;
        };
        u32 windows; // any of these
    };
};

// The windows that L1 asks for: interrupt_window and nmi_window are the lowest two bytes.
static inline u32 controls_windows(const struct controls *ctl)
{
    return (u32)(ctl->intercepts >> 31) & 0x101;
}

// A back end's per-context part: its VMCS or VMCB and what belongs to it.
struct backend_ctx;

struct vcpu_ctx {
    struct guest_state state;
    u32 valid, dirty; // enum state_group
    u32 ctl_dirty;    // enum control_group
    // What may have changed since a front end last cleared it here: CODE and DATA by pulls that
    // found something new, all groups by writes; controls by writes.
    u32 news, ctl_news;
    // A number for what CR, CODE and EFER_PAT hold: a new one whenever they change, never one of
    // the other context's. 0: the back end does not say.
    u64 mode;
    struct controls ctl;
    struct backend_ctx *hw;
    u32 flush; // TLB flush owed before the next entry with this context: enum tlb_flush_kind
};

enum vcpu_request {         // vcpu->requests: set by any CPU with vcpu_post, taken by the run loop
    REQUEST_EVENT = BIT(0), // the LAPIC, PIC or NMI latch has something new: look
    REQUEST_NMI = BIT(1),
    REQUEST_INIT = BIT(2),
    REQUEST_SIPI = BIT(3),
    REQUEST_STOP = BIT(4), // leave vcpu_run (kill, reset, power-off)
    REQUEST_TLB_FLUSH = BIT(5),
    REQUEST_SMI = BIT(6),
};

// Events on their way (core/event.c owns them).
struct vcpu_events {
    struct event reinject; // a delivery that an exit interrupted: goes first, always
    struct event
        exception; // raised by emulation; at most one (vcpu_inject_exception merges to #DF)
    union {
        struct {
            u8 nmi_count; // 0..2: one may be latched while one is in service
            bool init : 1, sipi : 1, smi : 1;
            bool mtf_pending;
            bool debug_check;      // pending_dbg may have become non-zero
            bool interrupts_check; // the LAPIC/PIC may have a deliverable interrupt
            bool nested_check;     // L1 may have a virtual interrupt for the L2 that runs
        };
        u64 waiting; // any of these
    };
    bool gif_clear;       // SVM's global interrupt flag of an L1 is 0: INIT, NMI, interrupts wait
    bool init_blocked;    // VMX root operation: INIT waits while the vCPU is at level 0
    bool init_redirected; // SVM's VM_CR.R_INIT: an INIT that is not intercepted is #SX
    u8 sipi_vector;
};

// APIC acceleration: how far the CPU itself is the LAPIC of a vCPU at level 0. The LAPIC's model
// (devices/lapic_accel.c) decides and writes it; the back end writes it into the hardware's control
// structure.
enum apic_accel_mode { ACCEL_OFF, ACCEL_XAPIC, ACCEL_X2APIC };

// SDM vol. 3 "Posted-Interrupt Processing": what other CPUs send while the vCPU runs.
struct apic_posted {
    u64 requests[4];
    u32 outstanding; // bit 0: a notification is on its way
    u32 unused[7];
} ALIGNED(64);

struct apic_accel {
    u8 *page;                   // the virtual-APIC page; NULL: the CPU can't
    struct apic_posted *posted; // NULL: the CPU can't
    u8 offered;                 // modes that it can run in: BIT(enum apic_accel_mode)
    u8 mode;           // enum apic_accel_mode; its changes set CTL_INTERCEPTS and CTL_BITMAPS
    bool eoi_exit_new; // eoi_exit has changed
    bool leaky;        // the CPU delivers with IF = 0 too, when an interrupt for the host comes
    u8 requesting;     // RVI, and
    u8 in_service;     // SVI, of the page's IRR and ISR
    hpa_t access_page; // the VM's
    u64 eoi_exit[4];   // vectors whose EOI the IOAPIC must hear of, or all
};

// What a guest has asked of KVM's paravirtual interface, by its MSRs' values (devices/paravirt.c).
struct paravirt {
    u64 clock, steal_time;
    u64 eoi;          // 0 unless enabled
    bool eoi_offered; // the guest may end the interrupt in service in its own memory
};

struct vcpu {
    // Assembly (entry stubs) knows the offsets of gpr[] and spec_ctrl: keep them first.
    // gpr[GPR_RSP] is unused: RSP is in the context.
    u64 gpr[16];
    u64 spec_ctrl;
    u64 cr2;                                        // GROUP_CR2
    u64 dr[4], dr6;                                 // GROUP_DR, GROUP_DR6
    u64 star, lstar, cstar, sfmask, kernel_gs_base; // GROUP_SYSCALL
    u32 shared_valid, shared_dirty;
    struct vcpu_ctx ctx[2];
    struct vcpu_ctx *cur; // &ctx[level]
    u8 level;             // 0: L1 or plain guest, 1: L2
    // for the next entry: exit before the guest's first instruction, after an injection
    bool immediate_exit;
    // DR7 may enable breakpoints: accesses that Nestor makes look for them. Until the guest first
    // does so, MOV DR exits.
    bool breakpoints;
    u32 requests; // enum vcpu_request, atomic
    u32 nmis;     // how many REQUEST_NMI stands for, atomic
    struct vcpu_events events;

    struct vm *vm;
    u32 id;          // within the VM
    struct cpu *cpu; // where it runs
    void *fpu; // XSAVE area, 64-byte aligned, used only when it does not live in the registers
    u64 cr4_allowed; // cr4_allowed(): the bits of CR4 that this guest may set
    u64 xcr0, xss;   // GROUP_EXTENDED, as tsc_aux
    u64 u_cet, pl_ssp[4], pkrs, umwait_control; // GROUP_SWITCHED
    u32 switched; // which of them the guest has: rows of core/switched.c
    u64 tsc_aux, tsc_adjust, tsc_offset_base;
    struct lapic *lapic;
    struct apic_accel apic;
    struct paravirt pv;
    struct nested *nested;               // front end's state, NULL when nested is off
    struct timer l2_timer;               // an L1's deadline for its L2: armed at level 1 only
    struct nested_stage2 *nested_stage2; // likewise
    bool refusal_told;                   // that the CPU has refused an L2
    u64 world; // which guest-physical addresses those of the running level are: 0 = the VM's own
    void *nested_bitmap;    // page_alloc'd: where the front end merges its L2's MSR bitmap
    struct vcpu_msrs *msrs; // what core/msr.c keeps for MSRs that are only remembered
    struct insn_cache *insn_cache;
    u64 modes; // how many numbers its contexts' `mode` has had
    u32 asid_generation;
    u16 tag[2]; // VPID or ASID of each context, private to the back end
    u64 exits;
    u64 retry_exit; // insn_retry's last
    u32 retries;    // exits without another between them
    u64 exit_counts[EXIT_KIND_COUNT];
    struct {
        u16 kind;
        u16 level;
        u32 raw;
        u64 rip;
    } history[16]; // the last exits, for reports
};

// --- the back end ---

// VMCS shadowing: a VMCS field that a guest hypervisor has without an exit.
struct shadow_field {
    u16 encoding;
    bool writable;
};

struct backend {
    const char *name; // "VMX", "SVM"
    const struct stage2_format *stage2_format;
    // Boot. Logs one line for each thing it needs and does not find, by its manual's name. On every
    // CPU (also before any changes the machine). Returns 0 or -E_NODEV.
    int (*probe)(void);
    void (*describe)(char *buf, size_t size); // optional features found and used, after cpu_on
    int (*cpu_on)(void); // this CPU; page_alloc'd memory in this_cpu()->backend
    void (*cpu_off)(void);
    // Slow path. Creates a context's hardware part with Nestor's host state and default controls. 0
    // or -E_NOMEM.
    int (*ctx_create)(struct vcpu *vcpu, unsigned level);
    void (*ctx_destroy)(struct vcpu *vcpu, unsigned level);
    // On the vCPU's own pCPU from here on.
    // Puts the vCPU on this pCPU: loads what lives in registers (shared groups, XCR0/XSS, TSC_AUX,
    // SPEC_CTRL) / takes it off again (everything of the guest's that lives in hardware is in the
    // model afterwards).
    void (*load)(struct vcpu *vcpu);
    void (*put)(struct vcpu *vcpu);
    // vcpu->level and cur are set by it. `kept` groups stay as they are, of whichever level.
    void (*select)(struct vcpu *vcpu, unsigned level, u32 kept);
    void (*pull)(struct vcpu *vcpu, u32 groups); // reads groups into the model, sets valid
    // Writes what is dirty, enters, and fills *exit. Interrupts closed. Returns with GROUP_RIP
    // valid (and GROUP_BLOCKING where free). Moves nothing else: the interrupted event is in
    // exit->interrupted.
    void (*enter)(struct vcpu *vcpu, struct vm_exit *exit);
    // APIC acceleration: the page's IRR or ISR has changed, or eoi_exit: the hardware looks at them
    // at the next entry. At level 0 only; NULL where no CPU of this vendor is accelerated.
    void (*apic_update)(struct vcpu *vcpu);
    // Posted notify: apic.posted has something that it had not; any CPU. The hardware takes it
    // without an exit if the vCPU runs with its LAPIC accelerated, else the run loop looks.
    void (*apic_notify)(struct vcpu *vcpu);
    // VMCS shadowing, if shadows_vmcs: of the fields, those `offered` are a guest hypervisor's at
    // level 0 (once): returns all that the CPU has. Their values become visible to it; what it has
    // made of the first ones, to `values`: returns which of them have changed; none is visible any
    // more. Values stand in the fields' order.
    bool shadows_vmcs;
    u32 (*shadow_allow)(struct vcpu *vcpu, const struct shadow_field *fields, unsigned count,
                        u32 offered);
    void (*shadow_publish)(struct vcpu *vcpu, const struct shadow_field *fields, u32 which,
                           const u64 *values);
    u32 (*shadow_collect)(struct vcpu *vcpu, const struct shadow_field *fields, unsigned count,
                          u64 *values);
    void (*shadow_close)(struct vcpu *vcpu);
    // Stage 2 maps vm->apic_access_page at the xAPIC's address: the CPU knows accesses to it.
    bool knows_apic_page;
    u8 (*stage2_levels)(void); // what the hardware will walk for Nestor's own tables: 4 or 5
    bool stage2_1g;
    bool stage2_execute_only, stage2_ad; // its entries can say so; A and D flags can be on
    bool has_mtf;
    bool scales_tsc;    // controls.tsc_multiplier
    bool last_branches; // switches DEBUGCTL with LBR and BTF, and last_branch[] (SVM)
    // controls.offer: exit->offer_taken says that the guest has taken it (APM vol. 2, 15.21.4)
    bool delivers_offers;
    bool injects_dearly; // an interrupt that is injected costs an exit, an offer does not
    // PAE's PDPTEs are CPU state (VMX); else they are read from memory (SVM, nested paging)
    bool holds_pdptes;
    // The CPU has no UMIP, and intercepts stand in for it while a guest has CR4.UMIP set.
    bool supplies_umip;
    // What a guest cannot execute although the CPU can: not offered in CPUID.
    u32 lacks;                         // enum guest_isa
    void (*report)(struct vcpu *vcpu); // logs the raw control structure, for a guest's end
};

// Not const: probe fills stage2_1g and has_mtf; nothing changes them afterwards.
extern struct backend vmx_backend;
extern struct backend svm_backend;
extern const struct backend *backend; // chosen once at boot

// --- state access. All on the vCPU's own pCPU. ---

static inline struct guest_state *vcpu_state(struct vcpu *vcpu, u32 groups)
{
    u32 missing = groups & ~(vcpu->cur->valid | vcpu->shared_valid);

    if (unlikely(missing))
        backend->pull(vcpu, missing);
    return &vcpu->cur->state;
}

// The same, and the caller is about to change those groups.
static inline struct guest_state *vcpu_modify(struct vcpu *vcpu, u32 groups)
{
    struct guest_state *state = vcpu_state(vcpu, groups);

    vcpu->cur->dirty |= groups & GROUP_ALL_CTX;
    vcpu->shared_dirty |= groups & GROUP_ALL_SHARED;
    return state;
}

static inline u64 vcpu_gpr(struct vcpu *vcpu, unsigned n)
{
    return n == GPR_RSP ? vcpu->cur->state.rsp : vcpu->gpr[n];
}

static inline void vcpu_set_gpr(struct vcpu *vcpu, unsigned n, u64 value)
{
    if (n == GPR_RSP)
        vcpu_modify(vcpu, GROUP_RIP)->rsp = value;
    else
        vcpu->gpr[n] = value;
}

// Posts a request and makes the vCPU see it soon. Any CPU, any context but NMI.
void vcpu_post(struct vcpu *vcpu, u32 requests);

// --- events (core/event.c) ---
void vcpu_inject_exception(struct vcpu *vcpu, u8 vector, bool has_error, u32 error);
void vcpu_inject_page_fault(struct vcpu *vcpu, u32 error, u64 cr2);
void vcpu_inject_event(struct vcpu *vcpu, const struct event *event);
// If an L2 runs: its triple fault, for what Nestor can't do for it. False: none does.
bool vcpu_shutdown_l2(struct vcpu *vcpu);
static inline void vcpu_inject_gp0(struct vcpu *vcpu)
{
    vcpu_inject_exception(vcpu, 13, true, 0);
}
static inline void vcpu_inject_ud(struct vcpu *vcpu)
{
    vcpu_inject_exception(vcpu, 6, false, 0);
}

// The one place that advances RIP: after the instruction's effects. Clears the interrupt shadow,
// raises the single-step #DB, notes a pending MTF.
void vcpu_finish_insn(struct vcpu *vcpu, u64 next_rip);
// The same at a boundary between two repetitions, where RIP and RFLAGS.RF are the caller's.
void vcpu_finish_repetition(struct vcpu *vcpu);
// Breakpoints (DR6 bits) that it hit: a trap after it.
void vcpu_trap_breakpoints(struct vcpu *vcpu, u64 hits);
// Before vcpu_finish_insn for a taken branch that began with RFLAGS.TF: a trap if DEBUGCTL.BTF
// asks.
void vcpu_trap_branch(struct vcpu *vcpu);
// vcpu_finish_insn for an exit's instruction, whose length or next RIP is known (insn_find_length).
void vcpu_finish_exit(struct vcpu *vcpu, struct vm_exit *exit);

// Mode of the guest's code.
unsigned vcpu_cpl(struct vcpu *vcpu);
unsigned vcpu_code_size(struct vcpu *vcpu); // 2, 4 or 8 bytes: real/16, 32, 64-bit code
