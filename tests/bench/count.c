// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What a counting Nestor (make COUNT=1) has more than the other: the counts of count.inc, and the
// CPUID leaf that shows them. The linker puts __wrap_cpuid_read in cpuid_read's place.

#include "count.h"

#include <nestor/cpu.h>
#include <nestor/run.h>

extern u64 count_table[COUNT_ALL], count_rax, count_rdx;
void __real_cpuid_read(struct vcpu *vcpu, u32 leaf, u32 subleaf, u32 out[4]);
void __wrap_cpuid_read(struct vcpu *vcpu, u32 leaf, u32 subleaf, u32 out[4]);

u64 count_table[COUNT_ALL], count_rax, count_rdx;

void __wrap_cpuid_read(struct vcpu *vcpu, u32 leaf, u32 subleaf, u32 out[4])
{
    if (leaf != COUNT_LEAF || subleaf >= COUNT_ALL) {
        __real_cpuid_read(vcpu, leaf, subleaf, out);
        return;
    }
    out[0] = (u32)count_table[subleaf];
    out[1] = COUNT_SIGNATURE;
    out[2] = (u32)(count_table[subleaf] >> 32);
    out[3] = 0;
}
