// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A guest's x87, SSE and extended state between the registers and its save area (SDM vol. 1
// "Managing State Using the XSAVE Feature Set"). Nestor itself has no such state, so this happens
// only when a vCPU comes to a pCPU or leaves it.

#pragma once

#include <arch/x86/insn.h>
#include <arch/x86/regs.h>

#define FPU_INITIAL_FCW   0x37f
#define FPU_INITIAL_MXCSR 0x1f80

// The area's first words; bytes 464..511 are software's, and `used` is 0 in an area that was only
// zeroed.
struct fpu_area {
    u16 fcw;
    u8 pad1[22];
    u32 mxcsr;
    u8 pad2[436];
    u64 used;
};
_Static_assert(offsetof(struct fpu_area, mxcsr) == 24, "FXSAVE layout");
_Static_assert(offsetof(struct fpu_area, used) == 464, "FXSAVE layout");

// XCR0 with every component that the CPU has; 0 without XSAVE (or with CR4.OSXSAVE clear).
static inline u64 fpu_components(void)
{
    struct cpuid_regs regs;

    if (!(read_cr4() & CR4_OSXSAVE))
        return 0;
    regs = cpuid(0xd, 0);
    return (u64)regs.edx << 32 | regs.eax;
}

// `components` from fpu_components(). All of them are moved, whatever the guest's XCR0 says: a
// component that the guest has switched off keeps its contents. Leaves XCR0 = components.
static inline void fpu_store(struct fpu_area *area, u64 components)
{
    if (!components) {
        __asm__ volatile("fxsave64 %0" : "=m"(*area) : : "memory");
        return;
    }
    xsetbv(0, components);
    __asm__ volatile("xsave64 %0"
                     : "+m"(*area)
                     : "a"((u32)components), "d"((u32)(components >> 32))
                     : "memory");
}

static inline void fpu_load(struct fpu_area *area, u64 components)
{
    // XRSTOR takes MXCSR, and FXRSTOR everything, from the area even if it is in its initial state.
    if (!area->used) {
        area->fcw = FPU_INITIAL_FCW;
        area->mxcsr = FPU_INITIAL_MXCSR;
        area->used = 1;
    }
    if (!components) {
        __asm__ volatile("fxrstor64 %0" : : "m"(*area) : "memory");
        return;
    }
    xsetbv(0, components);
    __asm__ volatile("xrstor64 %0"
                     :
                     : "m"(*area), "a"((u32)components), "d"((u32)(components >> 32))
                     : "memory");
}
