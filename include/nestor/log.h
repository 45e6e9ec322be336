// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Nestor's log (core/log.c): one line an event, with a timestamp, the CPU and the level, on the
// log's serial port; and panic (core/panic.c) for Nestor's own broken invariants.

#pragma once

#include <nestor/types.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

extern enum log_level log_level; // `loglevel=error|warn|info|debug|trace`, or 0..4

// Writes one line (no newline at its end) if `level` is wanted. Any CPU, any context but NMI; takes
// the log's own lock.
void log_line(enum log_level level, const char *fmt, ...) PRINTF_LIKE(2, 3);

#define log_at(level, ...)                \
    do {                                  \
        if ((level) <= log_level)         \
            log_line(level, __VA_ARGS__); \
    } while (0)
#define log_error(...) log_at(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_at(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_at(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_DEBUG, __VA_ARGS__)
#define log_trace(...) log_at(LOG_TRACE, __VA_ARGS__)

// Prints "PANIC: ...", the registers, a symbolised backtrace and the last exits, stops every CPU
// and never returns.
_Noreturn void panic(const char *fmt, ...) PRINTF_LIKE(1, 2);

// Called by a panic after its own report, with the other CPUs stopped: the run loop prints the last
// exits. Takes no locks.
extern void (*panic_hook)(void);
// Set for ever once a CPU panics. One that sees it (after an NMI exit, for one) calls panic_stop.
extern u32 panic_active;
_Noreturn void panic_stop(void);
// A line of a panic's report: takes no lock.
void log_panic(const char *fmt, ...) PRINTF_LIKE(1, 2);

#define ASSERT(cond)                                                         \
    do {                                                                     \
        if (unlikely(!(cond)))                                               \
            panic("%s:%d: assertion failed: %s", __FILE__, __LINE__, #cond); \
    } while (0)
