// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the SVM back end's files share. Manual: APM vol. 2 chapter 15.

#pragma once

// Offsets in struct svm_cpu, and its stub_flags, for enter.S; cpu.c asserts them.
#define SVM_CPU_HOST_VMCB      0
#define SVM_CPU_STUB_FLAGS     8
#define SVM_CPU_HOST_SPEC_CTRL 16
#define VCPU_SPEC_CTRL         128 // in struct vcpu
// The CPU has MSR SPEC_CTRL: switch it where the guest's value differs.
#define SVM_STUB_SPEC_CTRL 1
// After an exit, fill the return stack buffer and clear the guest's values from registers.
#define SVM_STUB_CLEAR 2

#ifndef __ASSEMBLER__

#include <arch/x86/svm.h>
#include <nestor/vcpu.h>

// Per CPU: struct cpu's `backend`. Private to its CPU.
struct svm_cpu {
    hpa_t host_vmcb_pa; // for VMSAVE and VMLOAD of Nestor's own FS, GS, TR, LDTR
    u32 stub_flags;
    u64 host_spec_ctrl;
    void *host_vmcb, *save_area;
    u32 asid_count; // ASIDs 1 .. asid_count - 1 are for guests
    u32 next_asid;
    u32 asid_generation; // never 0
    // What the guest's registers that neither VMRUN nor VMLOAD switch hold now.
    u64 xcr0, xss, tsc_aux;
    u64 xcr0_all; // every component the CPU knows; 0: no XSAVE
    bool has_rdtscp, has_ibpb;
    bool restores_fp_pointers; // XRSTOR loads FIP, FDP and FOP always
    struct vcpu *last;         // whose branch predictions are in the CPU
};

enum { SVM_CPL_UNKNOWN = 0xff };
enum svm_prepare { SVM_PREPARE_EVENTS = 1, SVM_PREPARE_GIF = 2 };
enum svm_step { SVM_STEP_NONE, SVM_STEP_IRET, SVM_STEP_SHADOW };

struct backend_ctx {
    struct vmcb *vmcb;
    hpa_t vmcb_pa;
    const struct svm_cpu *ran_on;
    // Intercepts that the controls ask for; the VMCB's differ while NMIs are blocked or a step is
    // made.
    u32 exceptions, word3;
    // CS, SS and CPL as they were when the model's were taken from them.
    struct vmcb_segment seen_cs, seen_ss;
    u8 seen_cpl;    // or SVM_CPL_UNKNOWN
    bool seen_data; // likewise:
    struct vmcb_segment seen_ds, seen_es;
    u64 efer_added; // SVME, where the guest's EFER is without it
    u64 cr4_held;   // UMIP, where the guest's CR4 has it and the CPU does not know it
    u8 prepare; // enum svm_prepare: what the next entry must look at although core asks for nothing
    u32 stays;  // groups of which the model's value is right behind an exit without a look
    union {
        struct {
            bool adjust; // prepare() ran for this entry: its traces go
            bool vgif;   // GIF is the hardware's: the model follows it
        };
        u16 after; // any of these: adjust_exit() has something to do
    };
    u8 blocking; // BLOCK_NMI, BLOCK_SMI over the entry
    u8 shadow;   // the interrupt shadow that the CPU forgets, of the instruction at shadow_rip
    u64 shadow_rip;
    bool at_iret; // the IRET that ends NMI blocking is at iret_rip, not yet executed
    u64 iret_rip;
    u8 step; // enum svm_step, during one entry
    u64 step_rflags, step_dr6;
    u64 soft_rip; // RIP of the software interrupt that was injected by advancing RIP (no nRIP save)
    u8 soft_len;  // 0: none
};

// enum SVM_FEATURE_*: what every CPU has and no option turned off.
extern u32 svm_features;
extern u64 svm_cr4_supplied; // UMIP, where the CPUs lack it: by intercepts
extern u32 svm_clean_after;  // what the VMCB's clean field may say after an exit

static inline bool svm_has(u32 feature)
{
    return svm_features & feature;
}

// --- cpu.c ---
int svm_probe(void);
void svm_describe(char *buf, size_t size);
int svm_cpu_on(void);
void svm_cpu_off(void);
u8 svm_stage2_levels(void);

// --- context.c ---
extern u8 *svm_msrpm; // the VM's own policy: 8 KiB
int svm_ctx_create(struct vcpu *vcpu, unsigned level);
void svm_ctx_destroy(struct vcpu *vcpu, unsigned level);
// Writes the controls that are dirty. After svm_write_state: whether CR reads exit depends on the
// VMCB's CR0 and CR4.
void svm_write_controls(struct vcpu *vcpu);
// The CR reads that must exit because the guest is to see something else, or (SMSW) nothing. Pure.
static inline u32 svm_cr_reads(const struct controls *ctl, u64 cr0, u64 cr4)
{
    return ((cr0 ^ ctl->cr0_shadow) & ctl->cr0_mask ? SVM_CR_READ(0) : 0) |
           ((cr4 ^ ctl->cr4_shadow) & ctl->cr4_mask ? SVM_CR_READ(4) : 0) |
           (cr4 & svm_cr4_supplied ? SVM_CR_READ(0) | SVM_CR_READ(4) : 0);
}
// The intercept words for `ctl` and the guest's CR0 and CR4. Pure.
void svm_intercepts(const struct controls *ctl, u64 cr0, u64 cr4, u32 words[SVM_WORD_COUNT]);
int svm_maps_create(void); // the MSR and I/O permission maps, once

// --- state.c ---
// Groups that no VMCB field holds: the model's value is the only one, so they stay valid over an
// entry.
#define SVM_MODEL_GROUPS   (GROUP_PDPTE | GROUP_CET | GROUP_PENDING_DBG)
#define SVM_STAYING_GROUPS (GROUP_RIP | GROUP_BLOCKING | SVM_MODEL_GROUPS)
void svm_pull(struct vcpu *vcpu, u32 groups);
void svm_write_state(struct vcpu *vcpu);
// `kept`: none, or GROUP_SYSTEM and GROUP_SYSENTER.
void svm_select(struct vcpu *vcpu, unsigned level, u32 kept);
void svm_load(struct vcpu *vcpu);
void svm_put(struct vcpu *vcpu);
void svm_load_registers(struct vcpu *vcpu, struct svm_cpu *cpu); // XCR0, XSS, TSC_AUX
void svm_drop_tags(struct vcpu *vcpu);                           // both contexts need new ASIDs

// --- enter.c, enter.S ---
void svm_enter(struct vcpu *vcpu, struct vm_exit *exit);
// EVENTINJ for an event. Pure.
u64 svm_encode_event(const struct event *event);

// --- report.c ---
void svm_report(struct vcpu *vcpu);

#endif
