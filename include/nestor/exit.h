// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// struct vm_exit: why a guest stopped, in neutral terms. A back end fills it from hardware; core
// builds the same struct for what it emulates itself; a front end turns it into VMCS12's or
// VMCB12's exit fields. (SDM vol. 3 "VM Exits", APM vol. 2 "Intercept Operation".)

#pragma once

#include <nestor/types.h>

// VMX's interruption types (SDM vol. 3, "VM-Entry Controls for Event Injection"); SVM's are mapped
// to them.
enum event_type {
    EVENT_INTERRUPT = 0,
    EVENT_NMI = 2,
    EVENT_EXCEPTION = 3,      // hardware exception
    EVENT_SOFT_INTERRUPT = 4, // INT n
    EVENT_INT1 = 5,           // privileged software exception
    EVENT_SOFT_EXCEPTION = 6, // INT3, INTO
    EVENT_OTHER = 7,          // pending MTF, as an injected event
};

struct event {
    bool valid;
    u8 vector;
    u8 type; // enum event_type
    bool has_error;
    u32 error;
    u8 insn_len; // of INT n, INT1, INT3, INTO; 0 = not known
    // of the same: RIP is behind the instruction already (SVM without nRIP save injects them so)
    bool rip_is_next;
    bool nmis_open; // an NMI that an L1 on SVM injects: it blocks no others
    bool has_payload;
    // #PF: CR2; #DB: the DR6 bits (B0-3, BD, BS, BT; BLD and RTM positive, as in pending debug
    // exceptions)
    u64 payload;
};

enum exit_kind {
    // nothing for anybody: an immediate exit done, a host interrupt that the back end has served
    EXIT_NONE,
    // Nestor's own, mostly
    EXIT_EXTERNAL_INTERRUPT,
    EXIT_NMI,
    EXIT_MACHINE_CHECK,
    EXIT_TIMER,  // VMX preemption timer
    EXIT_STAGE2, // EPT violation, NPF: the translation is missing or forbids the access
    EXIT_STAGE2_MISCONFIG,
    // events
    EXIT_EXCEPTION,
    EXIT_TRIPLE_FAULT, // SVM: shutdown
    EXIT_INIT,
    EXIT_SIPI,
    EXIT_SMI,
    EXIT_INTERRUPT_WINDOW, // SVM: VINTR
    EXIT_NMI_WINDOW,       // SVM: IRET completed
    EXIT_MTF,
    EXIT_TASK_SWITCH,
    EXIT_TPR_THRESHOLD,
    EXIT_APIC_ACCESS,
    EXIT_APIC_WRITE,
    EXIT_EOI,
    EXIT_ENTRY_FAILED, // the hardware refused the guest state or controls
    // instructions
    EXIT_CPUID,
    EXIT_HLT,
    EXIT_IO,
    EXIT_RDMSR,
    EXIT_WRMSR,
    EXIT_CR,
    EXIT_DR,
    EXIT_INVD,
    EXIT_WBINVD,
    EXIT_INVLPG,
    EXIT_INVPCID,
    EXIT_RDTSC,
    EXIT_RDTSCP,
    EXIT_RDPMC,
    EXIT_RDPRU,
    EXIT_RSM,
    EXIT_PAUSE,
    EXIT_MONITOR,
    EXIT_MWAIT,
    EXIT_XSETBV,
    EXIT_XSAVES,
    EXIT_XRSTORS,
    EXIT_GDTR_IDTR, // SGDT SIDT LGDT LIDT
    EXIT_LDTR_TR,   // SLDT STR LLDT LTR
    EXIT_PUSHF,
    EXIT_POPF,
    EXIT_IRET,
    EXIT_SOFT_INT, // SVM's INTn intercept
    EXIT_ICEBP,
    EXIT_RDRAND,
    EXIT_RDSEED,
    EXIT_GETSEC,
    EXIT_ENCLS,
    EXIT_VMFUNC,
    EXIT_UMWAIT,
    EXIT_TPAUSE,
    EXIT_UNDEFINED, // one that exits, and that no guest is offered: #UD
    EXIT_FERR_FREEZE,
    // hypervisor instructions
    EXIT_VMCALL,
    EXIT_VMMCALL,
    EXIT_VMXON,
    EXIT_VMXOFF,
    EXIT_VMCLEAR,
    EXIT_VMPTRLD,
    EXIT_VMPTRST,
    EXIT_VMREAD,
    EXIT_VMWRITE,
    EXIT_VMLAUNCH,
    EXIT_VMRESUME,
    EXIT_INVEPT,
    EXIT_INVVPID,
    EXIT_VMRUN,
    EXIT_VMLOAD,
    EXIT_VMSAVE,
    EXIT_STGI,
    EXIT_CLGI,
    EXIT_SKINIT,
    EXIT_INVLPGA,
    EXIT_UNKNOWN, // a reason that the back end has no name for: ends the guest with a report
    EXIT_KIND_COUNT,
};

extern const char *const exit_kind_names[EXIT_KIND_COUNT];

enum { EXIT_GPR_UNKNOWN = 0xff };

// An operand in memory or a register, as the instruction encodes it (VMX instruction information;
// else Nestor's decoder).
struct exit_operand {
    bool known;     // false: the hardware did not say (decode the instruction)
    bool is_reg;    // reg1 is the operand
    u8 seg;         // enum segment_index
    u8 base, index; // GPR numbers, EXIT_GPR_UNKNOWN = none
    u8 scale;       // shift: 0..3
    u8 addr_size;   // bytes: 2, 4, 8
    u8 op_size;     // bytes
    u8 reg1, reg2;
    // GDTR_IDTR/LDTR_TR: 0 store GDTR/LDTR, 1 store IDTR/TR, 2 load GDTR/LDTR, 3 load IDTR/TR
    u8 identity;
    s64 displacement;
};

struct exit_stage2 {
    gpa_t gpa;
    gva_t gla;
    bool gla_valid;
    bool gla_final; // the access to the translation's result, not to a paging structure
    bool read, write, execute;
    bool present;  // some translation was there
    u8 rights;     // EPT: the entry's rights (R 1, W 2, X 4) as the qualification reports them
    bool user;     // SVM: error code U
    bool reserved; // a reserved bit was set
    bool shadow_stack;
};

struct exit_io {
    u16 port;
    u8 size; // bytes
    bool in, string, rep, immediate;
    u8 addr_size, seg; // string forms; 0xff = not known
};

enum cr_access { CR_WRITE, CR_READ, CR_CLTS, CR_LMSW };

struct exit_cr {
    u8 number, access; // enum cr_access
    u8 gpr;            // EXIT_GPR_UNKNOWN: decode
    bool lmsw_memory;
    u16 lmsw_source;
    bool selective; // SVM: CR0 selective write
};

struct exit_dr {
    u8 number, gpr;
    bool write;
};

enum task_source { TASK_CALL, TASK_IRET, TASK_JMP, TASK_GATE }; // GATE: in the IDT

struct exit_task_switch {
    u16 selector;
    u8 source; // enum task_source
    bool has_error, rf;
    u32 error;
};

struct vm_exit {
    u8 kind; // enum exit_kind
    bool entry_failed;
    u8 insn_len; // 0 = not known
    u8 bytes_count;
    bool nmi_unblocked_by_iret;
    // EXTERNAL_INTERRUPT: acknowledged, `vector` is it; otherwise the host has taken it already
    bool vector_valid;
    u8 vector;
    u8 bytes[15];
    bool offer_taken;                     // of controls.offer; not filled if there was none
    u64 next_rip;                         // 0 = not known
    u64 raw_reason, raw_info1, raw_info2; // for reports only
    struct event event;                   // EXCEPTION, NMI, SOFT_INT
    struct event interrupted;             // the delivery that was under way
    struct exit_operand operand;
    union {
        struct exit_stage2 stage2;
        struct exit_io io;
        struct exit_cr cr;
        struct exit_dr dr;
        struct exit_task_switch task;
        gva_t linear;    // INVLPG, and memory operands' displacement where hardware gives it
        u32 apic_offset; // APIC_ACCESS, APIC_WRITE
    };
};

_Static_assert(offsetof(struct vm_exit, kind) == 0 && offsetof(struct vm_exit, bytes) == 7,
               "exit_begin writes what stands before `bytes` as one word");

// Nothing is known but the kind, which says what of the rest means anything.
static inline void exit_begin(struct vm_exit *exit, enum exit_kind kind)
{
    *(u64 *)exit = kind; // bytes[0] counts only with bytes_count
    exit->next_rip = 0;
    exit->interrupted.valid = false;
    exit->operand.known = false;
}
