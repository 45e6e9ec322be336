// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A minimal hypervisor for small guests, VMX: one VMCS whose L2 shares L1's paging and GDT, and an
// exit that finds back to L1 whatever the VMCS's host state said of it, as long as CR3 and RIP
// hold.

#pragma once

#include <arch/x86/vmx.h>

#include "guest.h"

enum { L1_FAILED = 0x10000, L1_REGISTERS = 15 }; // VMfail: | CF or ZF
// RAX, RBX, RCX, RDX, RSI, RDI, RBP, R8 .. R15 of L2; RSP is in the VMCS.
extern u64 l1_registers[L1_REGISTERS];
extern void *l1_vmcs;
extern char l1_vmx_exit[]; // HOST_RIP
extern char
    l1_vmx_quick_exit[]; // the same for an L2 that does no harm: L1's state is as VMX made it

// VMXON and a VMCS; false: no VMX.
bool l1_vmx_start(void);
void *l1_vmx_region(void); // another VMCS region
// All fields of the VMCS, for an L2 that runs `code` until it halts.
void l1_vmx_init(const void *code);
// RFLAGS & (CF | ZF) if VMLAUNCH or VMRESUME failed, ~0 after an exit.
u64 l1_vmx_switch(u64 resume);
// VMLAUNCH or VMRESUME: the exit reason, or L1_FAILED.
u64 l1_vmx_enter(bool resume);
// What the capability MSRs make of wanted controls.
u32 l1_vmx_control(u32 msr, u32 wanted);
bool l1_vmx_offers(u32 msr, u32 bit);

// 0, or CF and ZF.
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

#define L1_POINTER_INSN(name)                        \
    static inline u64 name(u64 address)              \
    {                                                \
        u64 flags;                                   \
                                                     \
        __asm__ volatile(#name " %1; pushfq; pop %0" \
                         : "=r"(flags)               \
                         : "m"(address)              \
                         : "cc", "memory");          \
        return flags & (RFLAGS_CF | RFLAGS_ZF);      \
    }
L1_POINTER_INSN(vmxon)
L1_POINTER_INSN(vmclear)
L1_POINTER_INSN(vmptrld)
#undef L1_POINTER_INSN
static inline void vmxoff(void)
{
    __asm__ volatile("vmxoff" : : : "cc", "memory");
}
