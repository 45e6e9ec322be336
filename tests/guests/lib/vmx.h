// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small hypervisor for guests that use VMX (lib/vmx.c).

#pragma once

#include <arch/x86/vmx.h>

#include "guest.h"

enum { CPUID_VMX = 1 << 5, REGISTERS = 15, L2_STACK = 4096 };
#define LLU(x) ((unsigned long long)(x))

// L2's code: a label and its instructions.
#define L2(name, code)  \
    extern char name[]; \
    __asm__(".pushsection .text; " #name ": " code "; .popsection")

extern void *vmxon_region, *vmcs_region;
extern u64 basic; // IA32_VMX_BASIC
extern bool launched;
extern u64 l2_idt[512];
extern u8 l2_stack[L2_STACK];
extern char l2_handlers[]; // behind the gates, 4 bytes apart

// RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8 .. R15 of the guest; RSP is in the VMCS.
enum { RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8 };
extern u64 l2_registers[REGISTERS];

// VMLAUNCH (0), VMRESUME (1), or VMLAUNCH behind MOV SS (2). Returns RFLAGS & (CF | ZF) if that
// failed, 0 after an exit.
u64 vmx_enter(u64 how);

// VMX instructions: 0, or CF and ZF.
u64 vmxon(void *region);
u64 vmclear(void *region);
u64 vmptrld(void *region);
u64 vmwrite(u64 field, u64 value);
u64 vmread_flags(u64 field, u64 *value);
u64 vmread(u64 field);

enum {
    TYPE_INTERRUPT = 0,
    TYPE_NMI = 2,
    TYPE_EXCEPTION = 3,
    TYPE_SOFT_INTERRUPT = 4,
    TYPE_INT1 = 5,
    TYPE_SOFT_EXCEPTION = 6,
    TYPE_OTHER = 7
};
enum { FAILED = 0x10000 }; // of run(), VMfail: | CF or ZF

// Controls: those wanted that may be 1, and those that must.
u32 control(u32 msr, u32 wanted);
u32 capability_msr(u32 plain, u32 true_one);
void set_pin(u32 wanted);
void set_primary(u32 wanted);
void set_exit(u32 wanted);
void set_entry(u32 wanted);
bool offers(u32 msr, u32 bit);
void put_controls(void);
void put_host(void);
void put_guest(const void *code);
void put_segment(unsigned n, u16 selector, u32 access, u32 limit, u64 base);
void put_l2_idt(void);
// All that precedes a first VMCS; false: there is no VMX.
bool vmx_start(void);
// Sets these controls beside HLT exiting, of the VMCS that init() has made; false: not all of them
// are offered.
bool use_secondary(u32 primary, u32 secondary);
void *new_region(void);
// A fresh VMCS for an L2 that runs `code`.
void init(const void *code);
// Enters it. The exit reason, or FAILED.
u64 run(void);
u64 run_code(const void *code);
// What the last exit says.
void report_exit(bool ok, const char *what);
bool at(const void *code);
bool in_handler(unsigned vector);
u64 pushed(unsigned i);
// An exception with this type, error code bit and vector.
bool excepted(u64 type, unsigned vector, bool error);
