// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small hypervisor for guests that use VMX (lib/vmx.c).

#pragma once

#include <arch/x86/vmx.h>

#include "l1.h"

#define VMCALL "\x0f\x01\xc1"
enum { CPUID_VMX = 1 << 5 };
enum { EPT_R = 1, EPT_W = 2, EPT_X = 4, EPT_RWX = 7, EPT_WB = 6 << 3 };

extern void *vmxon_region, *vmcs_region;
extern u64 vmx_basic; // IA32_VMX_BASIC
extern bool launched; // what run() executes: VMRESUME

// VMLAUNCH (0), VMRESUME (1), or VMLAUNCH behind MOV SS (2). Returns RFLAGS & (CF | ZF) if that
// failed, 0 after an exit.
u64 vmx_enter(u64 how);
// HOST_RIP: for a host state as init() makes it, or for one of anything with that RIP and CR3.
extern char vmx_exit[], vmx_exit_anyhow[];

// VMX instructions: 0, or CF and ZF.
u64 vmxon(const void *region);
u64 vmclear(const void *region);
u64 vmptrld(const void *region);
u64 invept(u64 type, u64 eptp);

static inline u64 vmwrite(u64 field, u64 value)
{
    u64 flags;

    __asm__ volatile("vmwrite %2, %1; pushfq; pop %0"
                     : "=r"(flags)
                     : "r"(field), "r"(value)
                     : "cc");
    return flags & (RFLAGS_CF | RFLAGS_ZF);
}

static inline u64 vmread_flags(u64 field, u64 *value)
{
    u64 flags;

    __asm__ volatile("vmread %2, %1; pushfq; pop %0"
                     : "=r"(flags), "=r"(*value)
                     : "r"(field)
                     : "cc");
    return flags & (RFLAGS_CF | RFLAGS_ZF);
}

static inline u64 vmread(u64 field)
{
    u64 value = 0;

    vmread_flags(field, &value);
    return value;
}

static inline void vmxoff(void)
{
    __asm__ volatile("vmxoff" : : : "cc", "memory");
}

enum {
    TYPE_INTERRUPT = 0,
    TYPE_NMI = 2,
    TYPE_EXCEPTION = 3,
    TYPE_SOFT_INTERRUPT = 4,
    TYPE_INT1 = 5,
    TYPE_SOFT_EXCEPTION = 6,
    TYPE_OTHER = 7
};
// VM-entry interruption information: an event to inject.
#define INJECT(type, vector) (INFO_VALID | (u64)(type) << INFO_TYPE_SHIFT | (vector))
enum { FAILED = 0x10000 }; // of run(), VMfail: | CF or ZF

// Controls: those wanted that may be 1, and those that must.
u32 control(u32 msr, u32 wanted);
u32 capability_msr(u32 plain, u32 true_one);
u32 pin_msr(void);
void set_pin(u32 wanted);
void set_primary(u32 wanted);
void set_exit(u32 wanted);
void set_entry(u32 wanted);
bool offers(u32 msr, u32 bit);
void put_controls(void);
void put_host(void);
void put_guest(const void *code);
void put_segment(unsigned n, u16 selector, u32 access, u32 limit, u64 base);
// All that precedes VMXON (SDM vol. 3 "Enabling and Entering VMX Operation"): IA32_FEATURE_CONTROL,
// CR0 and CR4, the regions, and L2's IDT.
void vmx_prepare(void);
// The same and VMXON; false: there is no VMX.
bool vmx_start(void);
// Sets these controls beside HLT exiting, of the VMCS that init() has made; false: not all of them
// are offered.
bool use_secondary(u32 primary, u32 secondary);
// Another VMXON region or VMCS.
void *new_region(void);
// The EPT pointer of a 4-level root; and an L2 behind such tables (EPT must be offered).
u64 eptp_of(const u64 *root, bool ad);
void use_ept(u64 eptp);
// A fresh VMCS for an L2 that runs `code`.
void init(const void *code);
// Enters it. The exit reason, or FAILED.
u64 run(void);
u64 run_code(const void *code);
// Whether these flags of a VMX instruction are VMfailValid, with this VM-instruction error.
bool failed_with(u64 flags, u64 error);
// What the last exit says.
void report_exit(bool ok, const char *what);
bool at(const void *code);
bool in_handler(unsigned vector);
u64 pushed(unsigned i);
// An exception with this type, error code bit and vector.
bool excepted(u64 type, unsigned vector, bool error);
