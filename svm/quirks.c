// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Finds out which departures from the manual this machine needs rules for (quirks.h).

#include <arch/x86/insn.h>
#include <arch/x86/msr.h>

#include "quirks.h"

#define CPUID_40000000_EBX_TCG 0x54474354 // "TCGT": QEMU without an accelerator

bool svm_forgets_shadow, svm_repeats_injection;

void svm_probe_quirks(void)
{
    bool tcg = cpuid(0x40000000, 0).ebx == CPUID_40000000_EBX_TCG;

    svm_forgets_shadow = svm_repeats_injection = tcg;
}

bool svm_wrmsr_checks_addresses(void)
{
    u64 before = 0;
    bool checks;

    (void)msr_read_safe(MSR_KERNEL_GS_BASE, &before);
    checks = msr_write_safe(MSR_KERNEL_GS_BASE, BIT(63)) != 0;
    (void)msr_write_safe(MSR_KERNEL_GS_BASE, before);
    return checks;
}
