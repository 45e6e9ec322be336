// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The small words that every file uses: integer and address types, bit helpers and error codes.

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64; // %llu on every platform, which uint64_t is not
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef long long s64;

typedef u64 hpa_t; // host-physical address
typedef u64 gpa_t; // guest-physical address (of an L1, or nested: of an L2 where the name says so)
typedef u64 gva_t; // guest-linear address

#define PAGE_SHIFT 12
#define PAGE_SIZE  4096ull
#define PAGE_MASK  (~(PAGE_SIZE - 1))
#define SIZE_2M    (2ull << 20)
#define SIZE_1G    (1ull << 30)
#define KIB(n)     ((u64)(n) << 10)
#define MIB(n)     ((u64)(n) << 20)

#define BIT(n)                          (1ull << (n))
#define BITS(high, low)                 ((~0ull >> (63 - (high))) & (~0ull << (low)))
#define ALIGN_DOWN(x, a)                ((x) & ~((a)-1))
#define ALIGN_UP(x, a)                  (((x) + (a)-1) & ~((a)-1))
#define IS_ALIGNED(x, a)                (((x) & ((a)-1)) == 0)
#define MIN(a, b)                       ((a) < (b) ? (a) : (b))
#define MAX(a, b)                       ((a) > (b) ? (a) : (b))
#define ARRAY_SIZE(a)                   (sizeof(a) / sizeof((a)[0]))
#define CONTAINER_OF(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

#define likely(x)              __builtin_expect(!!(x), 1)
#define unlikely(x)            __builtin_expect(!!(x), 0)
#define PRINTF_LIKE(fmt, args) __attribute__((format(printf, fmt, args)))
#define ALWAYS_INLINE          inline __attribute__((always_inline))
#define PACKED                 __attribute__((packed))
#define ALIGNED(n)             __attribute__((aligned(n)))
#define INIT_TEXT              __attribute__((section(".init.text"), cold))
#define INIT_BSS               __attribute__((section(".bss.init"))) // zeroed

// The compiler keeps the address of a table's row instead of computing it again for each field.
#define KEEP_ADDRESS(p) __asm__("" : "+r"(p))

// Functions that can fail return 0 or a positive result, or one of these negated.
enum nestor_error {
    E_NOENT = 2,
    E_AGAIN = 11,
    E_NOMEM = 12,
    E_FAULT = 14,
    E_EXIST = 17,
    E_NODEV = 19,
    E_INVAL = 22,
    E_NOSPC = 28,
    E_RANGE = 34,
};
