// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Memory and string functions (C11 7.24), which GCC and libfdt call by these names, and formatted
// output into a buffer.

#pragma once

#include <nestor/types.h>
#include <stdarg.h>

void *memcpy(void *dst, const void *src, size_t n);
void *memmove(void *dst, const void *src, size_t n);
void *memset(void *dst, int c, size_t n);
int memcmp(const void *a, const void *b, size_t n);
void *memchr(const void *s, int c, size_t n);
size_t strlen(const char *s);
size_t strnlen(const char *s, size_t n);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, size_t n);
char *strchr(const char *s, int c);
char *strrchr(const char *s, int c);

// Freestanding C has no built-in ones: say so, and a copy of a few bytes is a few moves.
#if !__STDC_HOSTED__
#define memcpy(dst, src, n) __builtin_memcpy(dst, src, n)
#define memset(dst, c, n)   __builtin_memset(dst, c, n)
#define memcmp(a, b, n)     __builtin_memcmp(a, b, n)
#endif

// Formats as C's vsnprintf does: d i u x X c s p %, with - 0 width .precision, and l ll z. Returns
// the length the whole text would have; what does not fit is cut off, and buf is always terminated
// when size > 0.
int fmt_vsnprintf(char *buf, size_t size, const char *fmt, va_list args);
int fmt_snprintf(char *buf, size_t size, const char *fmt, ...) PRINTF_LIKE(3, 4);
// Parses a number (decimal, or hex after 0x) that fills `text` wholly. Returns 0, or -E_INVAL /
// -E_RANGE.
int parse_u64(const char *text, u64 *out);
