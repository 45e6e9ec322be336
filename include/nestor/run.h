// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// core's own rooms, seen by each other and by nested/: the run loop, the exit table, events, CPUID
// and MSR policies, instruction fetch and emulation. Everything here runs on the vCPU's own pCPU.

#pragma once

#include <arch/x86/regs.h>
#include <nestor/tlb.h>
#include <nestor/vcpu.h>
#include <nestor/vm.h>

// --- vCPU (core/vcpu.c) ---
int vcpu_create(struct vm *vm, u32 id, struct cpu *cpu);
void vcpu_destroy(struct vcpu *vcpu);
// The state after RESET (SDM vol. 3 table "IA-32 Processor States Following Power-up, Reset, or
// INIT"); init: after INIT, which keeps the FPU, most MSRs and CR0.CD/NW.
void vcpu_reset(struct vcpu *vcpu, bool init);
bool vcpu_mode_long(struct vcpu *vcpu);  // IA-32e mode
bool vcpu_mode_64bit(struct vcpu *vcpu); // 64-bit code

// The same of a state whose groups RIP, CR, CODE and EFER_PAT are valid.
static inline bool state_is_64bit(const struct guest_state *s)
{
    return (s->efer & EFER_LMA) && (s->seg[SEG_CS].access & SEG_L);
}

static inline unsigned state_cpl(const struct guest_state *s)
{
    if (unlikely(!(s->cr0 & CR0_PE)))
        return 0;
    if (unlikely(s->rflags & RFLAGS_VM))
        return 3;
    return (s->seg[SEG_SS].access & SEG_DPL) >> SEG_DPL_SHIFT;
}

// --- run loop (core/run.c) ---
// Runs the vCPU until REQUEST_STOP.
void vcpu_run(struct vcpu *vcpu);

// --- exits (core/exit.c) ---
// Handles an exit that is Nestor's. Never skips an instruction that it does not know.
void exit_handle(struct vcpu *vcpu, struct vm_exit *exit);

// --- events (core/event.c) ---
// Chooses what the next entry injects and which windows it opens.
void events_choose(struct vcpu *vcpu); // where there is something to choose from
static inline void events_prepare(struct vcpu *vcpu)
{
    const struct vcpu_events *ev = &vcpu->events;
    struct controls *ctl = &vcpu->cur->ctl;

    ctl->inject.valid = false;
    ctl->windows = controls_windows(ctl);
    if (unlikely(ev->waiting || ev->exception.valid || ev->reinject.valid))
        events_choose(vcpu);
}
// An exit interrupted a delivery: moves it into the model.
void events_take_interrupted(struct vcpu *vcpu, const struct event *event);
void events_reset(struct vcpu *vcpu);
// The combination of a second exception with one that is being delivered (SDM vol. 3 "Interrupt
// 8"): pure.
enum event_merge { MERGE_SECOND, MERGE_DOUBLE_FAULT, MERGE_TRIPLE_FAULT };
enum event_merge event_merge_exceptions(u8 first, u8 second);
// What delivering a #DB with this payload leaves in DR6 (SDM vol. 3 "Debug Status Register"): pure.
u64 event_db_dr6(u64 dr6, u64 payload);

// --- policies ---
int cpuid_create(struct vm *vm); // builds the VM's leaves from the CPU's and the policy table
void cpuid_destroy(struct vm *vm);
void cpuid_read(struct vcpu *vcpu, u32 leaf, u32 subleaf, u32 out[4]);
// A feature bit as this guest sees it: register index 0..3 = eax..edx.
bool cpuid_has(const struct vm *vm, u32 leaf, unsigned reg, unsigned bit);
u8 cpuid_phys_bits(const struct vm *vm);

bool cpuid_has_xsaves(const struct vm *vm); // leaf Dh, subleaf 1
u64 cpuid_xss(const struct vm *vm);         // the bits of IA32_XSS that this guest may set
int msr_create(struct vcpu *vcpu);
void msr_destroy(struct vcpu *vcpu);
void msr_reset(struct vcpu *vcpu, bool init);
// Whether IA32_MISC_ENABLE has one of these; never on AMD.
bool msr_misc_enabled(struct vcpu *vcpu, u64 bits);
// 0, or -E_FAULT where the guest gets #GP. Checks wholly before it changes anything.
int msr_read_guest(struct vcpu *vcpu, u32 msr, u64 *value);
int msr_write_guest(struct vcpu *vcpu, u32 msr, u64 value);
u64 efer_allowed(struct vcpu *vcpu); // the bits that this guest may set, and LMA

// Control registers with every check of a MOV to CR: 0 or -E_FAULT (#GP), nothing changed then.
int cr_write_guest(struct vcpu *vcpu, unsigned number, u64 value);
// Whether it would raise #GP for the value, PAE's pointers left aside.
bool cr_refuses_guest(struct vcpu *vcpu, unsigned number, u64 value);
u64 cr_read_guest(struct vcpu *vcpu, unsigned number);
u64 cr_visible(struct vcpu *vcpu, unsigned number); // as a MOV from CR reads it (core/exit.c)
u64 cr4_allowed(const struct vcpu *vcpu);           // the bits that this guest's CPUID offers
// Whether XSETBV of XCR0 raises #GP (SDM vol. 1 "XCR0"); the components offered are CPUID leaf
// Dh's.
bool xcr0_refused(struct vcpu *vcpu, u64 value);

// --- memory and instructions (core/insn.c) ---
int insn_cache_create(struct vcpu *vcpu); // 0 or -E_NOMEM
void insn_cache_destroy(struct vcpu *vcpu);
// Reads the instruction at RIP, wholly: bytes in buf, returns their number (1..15), or -E_FAULT:
// the guest has its fault, or executes the instruction again, or is stopped.
int insn_fetch(struct vcpu *vcpu, u8 buf[15]);
// Its first four bytes, the first one lowest, if the cache knows its page and they lie in it.
bool insn_first_word(struct vcpu *vcpu, u32 *word);
// The same for a report: injects nothing; 0 if nothing can be read.
int insn_peek(struct vcpu *vcpu, u8 buf[15]);
// Sets exit->insn_len of an instruction's exit where the hardware did not say it. False: it is no
// such instruction; the guest has its fault, or executes what is there, or is stopped.
bool insn_find_length(struct vcpu *vcpu, struct vm_exit *exit);
// What is in memory is not what has exited. True: the guest executes what is there now; false: it
// has done so often enough.
bool insn_retry(struct vcpu *vcpu);
// Guest-physical accesses to RAM: 0 or -E_FAULT.
int guest_read_gpa(struct vcpu *vcpu, gpa_t gpa, void *buf, u64 size);
int guest_write_gpa(struct vcpu *vcpu, gpa_t gpa, const void *buf, u64 size);
// Guest-linear access as the guest's own (CPL, SMAP..) would be; -E_FAULT as insn_fetch.
int guest_read_linear(struct vcpu *vcpu, gva_t la, void *buf, unsigned size, u32 access);
int guest_write_linear(struct vcpu *vcpu, gva_t la, const void *buf, unsigned size, u32 access);

// Fetches and decodes the instruction at RIP; false: a fault is injected, or it is no instruction.
struct insn;
bool insn_decode_current(struct vcpu *vcpu, struct insn *insn);
// The same without a fault: false if it can't be read, or is no instruction.
bool insn_peek_current(struct vcpu *vcpu, struct insn *insn);
// Of an interrupted INT n, INT3 or INTO, whose length the hardware did not say: that, and which of
// them it is.
void insn_name_interrupted(struct vcpu *vcpu, struct event *event);
// Its operand as a VMX exit's instruction information and displacement would have it.
struct exit_operand;
void insn_exit_operand(const struct insn *insn, u64 next_rip, struct exit_operand *op);
// The same for an exit in 64-bit code, from what has been decoded before; NULL where the page of
// RIP is not known, or it is no instruction. Until the next call.
const struct insn *insn_known(struct vcpu *vcpu, const struct vm_exit *exit);
// Whether `la` is known to be no RAM, for `access`, and at which guest-physical address.
bool guest_device_known(struct vcpu *vcpu, gva_t la, u32 access, gpa_t *gpa);
// Translates `la` as guest_walk does for `access` (WALK_*, guest_walk.h). host is NULL where there
// is no RAM. Its errors.
struct walk_fault;
int guest_translate(struct vcpu *vcpu, gva_t la, u32 access, gpa_t *gpa, u8 **host,
                    struct walk_fault *fault);

// --- emulation (core/emulation.c) ---
// Emulates the instruction at RIP (string I/O, MMIO). Injects its faults, advances RIP, stops the
// guest if it is unknown.
void vcpu_emulate(struct vcpu *vcpu, struct vm_exit *exit);
// A #UD of the prefix that asks for the next instruction to be emulated; false: it is none.
bool vcpu_emulate_forced(struct vcpu *vcpu);
// EXIT_TASK_SWITCH: with the event that it delivers in events.reinject.
void vcpu_task_switch(struct vcpu *vcpu, struct vm_exit *exit);
