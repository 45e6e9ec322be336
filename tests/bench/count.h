// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What a counting Nestor (make COUNT=1) tells its guest: CPUID leaf COUNT_LEAF with a number below
// gives that count in ECX:EAX, and COUNT_SIGNATURE in EBX. The numbers are count.inc's, too.

#pragma once

#define COUNT_LEAF      0x4e455354
#define COUNT_SIGNATURE 0x544e5543

#define COUNT_NAMES                                                                                \
    {                                                                                              \
        "entries", "vmload", "vmsave", "vmread", "vmwrite", "wrmsr", "rdmsr", "invept", "invvpid", \
            "xsetbv", "vmptrld", "cpuid"                                                           \
    }
enum { COUNT_KINDS = 12, COUNT_GUEST_TICKS = COUNT_KINDS, COUNT_HALTED_TICKS, COUNT_ALL };
