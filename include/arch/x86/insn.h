// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Single instructions as functions: control registers, CPUID, port I/O, descriptor tables.

#pragma once

#include <nestor/types.h>

#define DEFINE_CR(n)                                                   \
    static inline u64 read_cr##n(void)                                 \
    {                                                                  \
        u64 v;                                                         \
        __asm__ volatile("mov %%cr" #n ", %0" : "=r"(v) : : "memory"); \
        return v;                                                      \
    }                                                                  \
    static inline void write_cr##n(u64 v)                              \
    {                                                                  \
        __asm__ volatile("mov %0, %%cr" #n : : "r"(v) : "memory");     \
    }
DEFINE_CR(0)
DEFINE_CR(2)
DEFINE_CR(3)
DEFINE_CR(4)
#undef DEFINE_CR

#define DEFINE_DR(n)                                      \
    static inline u64 read_dr##n(void)                    \
    {                                                     \
        u64 v;                                            \
        __asm__ volatile("mov %%dr" #n ", %0" : "=r"(v)); \
        return v;                                         \
    }                                                     \
    static inline void write_dr##n(u64 v)                 \
    {                                                     \
        __asm__ volatile("mov %0, %%dr" #n : : "r"(v));   \
    }
DEFINE_DR(0)
DEFINE_DR(1)
DEFINE_DR(2)
DEFINE_DR(3)
DEFINE_DR(6)
DEFINE_DR(7)
#undef DEFINE_DR

// The breakpoints' addresses, DR0 to DR3.
static inline void read_dr0_to_3(u64 dr[4])
{
    dr[0] = read_dr0();
    dr[1] = read_dr1();
    dr[2] = read_dr2();
    dr[3] = read_dr3();
}

static inline void write_dr0_to_3(const u64 dr[4])
{
    write_dr0(dr[0]);
    write_dr1(dr[1]);
    write_dr2(dr[2]);
    write_dr3(dr[3]);
}

// Each width has its own text: GCC 12 takes functions whose assembly texts are the same for one,
// whatever their operands' sizes.
#define DEFINE_IO(suffix, letter, type)                                              \
    static inline type in##suffix(u16 port)                                          \
    {                                                                                \
        type v;                                                                      \
        __asm__ volatile("in" #letter " %1, %0" : "=a"(v) : "Nd"(port) : "memory");  \
        return v;                                                                    \
    }                                                                                \
    static inline void out##suffix(u16 port, type v)                                 \
    {                                                                                \
        __asm__ volatile("out" #letter " %0, %1" : : "a"(v), "Nd"(port) : "memory"); \
    }
DEFINE_IO(8, b, u8)
DEFINE_IO(16, w, u16)
DEFINE_IO(32, l, u32)
#undef DEFINE_IO

struct cpuid_regs {
    u32 eax, ebx, ecx, edx;
};

static inline struct cpuid_regs cpuid(u32 leaf, u32 subleaf)
{
    struct cpuid_regs r;

    __asm__ volatile("cpuid"
                     : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
                     : "a"(leaf), "c"(subleaf));
    return r;
}

struct PACKED table_pointer {
    u16 limit;
    u64 base;
};

static inline u32 rdpkru(void)
{
    u32 value;

    __asm__ volatile(".byte 0x0f, 0x01, 0xee" : "=a"(value) : "c"(0) : "edx");
    return value;
}

static inline u64 xgetbv(u32 index)
{
    u32 lo, hi;

    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(index));
    return (u64)hi << 32 | lo;
}

static inline void xsetbv(u32 index, u64 value)
{
    __asm__ volatile("xsetbv" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)));
}
