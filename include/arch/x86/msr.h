// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// MSR numbers (SDM vol. 4; APM vol. 2 appendix A) and their access.

#pragma once

#include <nestor/types.h>

#define MSR_TSC                   0x10
#define MSR_PLATFORM_ID           0x17
#define MSR_APIC_BASE             0x1b
#define MSR_FEATURE_CONTROL       0x3a
#define MSR_TSC_ADJUST            0x3b
#define MSR_SPEC_CTRL             0x48
#define MSR_PRED_CMD              0x49
#define MSR_UCODE_WRITE           0x79 // IA32_BIOS_UPDT_TRIG
#define MSR_UCODE_REV             0x8b
#define MSR_PLATFORM_INFO         0xce
#define MSR_UMWAIT_CONTROL        0xe1
#define MSR_MTRRCAP               0xfe
#define MSR_ARCH_CAPABILITIES     0x10a
#define MSR_FLUSH_CMD             0x10b
#define MSR_MISC_FEATURES_ENABLES 0x140
#define MSR_SYSENTER_CS           0x174
#define MSR_SYSENTER_ESP          0x175
#define MSR_SYSENTER_EIP          0x176
#define MSR_MCG_CAP               0x179
#define MSR_MCG_STATUS            0x17a
#define MSR_MCG_CTL               0x17b
#define MSR_MISC_ENABLE           0x1a0
#define MISC_CPUID_LIMIT          BIT(22) // limit CPUID maxval
#define MISC_XD                   BIT(34) // XD bit disable
#define MSR_DEBUGCTL              0x1d9
#define MSR_LAST_BRANCH_FROM      0x1db // AMD; then its target, and both of the last exception
#define MSR_MTRR_PHYSBASE0        0x200
#define MSR_MTRR_FIX64K           0x250
#define MSR_MTRR_FIX16K_80000     0x258
#define MSR_MTRR_FIX16K_A0000     0x259
#define MSR_MTRR_FIX4K_C0000      0x268
#define MSR_PAT                   0x277
#define MSR_MTRR_DEF_TYPE         0x2ff
#define MSR_MC0_CTL               0x400
#define MSR_VMX_BASIC             0x480
#define MSR_TSC_DEADLINE          0x6e0
#define MSR_PKRS                  0x6e1
#define MSR_U_CET                 0x6a0
#define MSR_S_CET                 0x6a2
#define CET_SH_STK_EN             BIT(0)
#define CET_ENDBR_EN              BIT(2)
#define MSR_PL0_SSP               0x6a4
#define MSR_INTERRUPT_SSP_TABLE   0x6a8
#define MSR_X2APIC_FIRST          0x800
#define MSR_X2APIC_LAST           0x8ff
#define MSR_XSS                   0xda0
#define MSR_EFER                  0xc0000080
#define MSR_STAR                  0xc0000081
#define MSR_LSTAR                 0xc0000082
#define MSR_CSTAR                 0xc0000083
#define MSR_SFMASK                0xc0000084
#define MSR_FS_BASE               0xc0000100
#define MSR_GS_BASE               0xc0000101
#define MSR_KERNEL_GS_BASE        0xc0000102
#define MSR_TSC_AUX               0xc0000103
#define MSR_AMD_TSC_RATIO         0xc0000104
#define MSR_SYSCFG                0xc0010010
#define MSR_HWCR                  0xc0010015
#define MSR_TOP_MEM               0xc001001a
#define MSR_TOP_MEM2              0xc001001d
#define MSR_VM_CR                 0xc0010114
#define MSR_VM_HSAVE_PA           0xc0010117
#define MSR_VIRT_SPEC_CTRL        0xc001011f
#define MSR_DE_CFG                0xc0011029
#define DE_CFG_LFENCE_SERIALIZE   BIT(1)

#define APIC_BASE_BSP    BIT(8)
#define APIC_BASE_X2APIC BIT(10)
#define APIC_BASE_ENABLE BIT(11)

static inline u64 msr_read(u32 msr)
{
    u32 lo, hi;

    __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return (u64)hi << 32 | lo;
}

static inline void msr_write(u32 msr, u64 value)
{
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

// With the fault caught (core/idt.c's exception table). Returns 0, or -E_FAULT if the CPU raised
// #GP.
int msr_read_safe(u32 msr, u64 *value);
int msr_write_safe(u32 msr, u64 value);
