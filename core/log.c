// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The log: a line is formatted on its caller's stack and goes out as one piece under the port's
// lock. Where it shares the port with the guest's console, each line starts with a mark.

#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/string.h>
#include <nestor/time.h>

enum { LINE_MAX = 400 };

enum log_level log_level = LOG_INFO;

static enum serial_index log_port = SERIAL_COM2;
static bool log_shared; // with the guest's console

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};

// Returns the length. Always ends in a line end.
static size_t format_line(char *buf, enum log_level level, const char *fmt, va_list args)
{
    const char *mark = !log_shared ? "" : serial_in_line(log_port) ? "\r\nnestor: " : "nestor: ";
    u64 us = tsc_hz ? tsc_to_ns(tsc_now() - boot_tsc) / 1000 : 0;
    int len = fmt_snprintf(buf, LINE_MAX, "%s[%5llu.%06llu] cpu%u %s: ", mark, us / 1000000,
                           us % 1000000, this_cpu()->id, level_names[level]);

    len += fmt_vsnprintf(buf + len, (size_t)(LINE_MAX - len - 2), fmt, args);
    len = MIN(len, LINE_MAX - 3);
    buf[len++] = '\r';
    buf[len++] = '\n';
    return (size_t)len;
}

void log_line(enum log_level level, const char *fmt, ...)
{
    char buf[LINE_MAX];
    va_list args;
    size_t len;

    va_start(args, fmt);
    len = format_line(buf, level, fmt, args);
    va_end(args);
    serial_write(log_port, buf, len);
}

void log_panic(const char *fmt, ...)
{
    static char buf[LINE_MAX]; // one CPU panics; its stack may be the trouble
    va_list args;
    size_t len;

    va_start(args, fmt);
    len = format_line(buf, LOG_ERROR, fmt, args);
    va_end(args);
    serial_write_panic(log_port, buf, len);
}

static INIT_TEXT void choose_level(void)
{
    const char *text = option_get("loglevel");

    for (u32 i = 0; text && i < ARRAY_SIZE(level_names); i++) {
        if (strcmp(text, level_names[i]) == 0 || (text[0] == (char)('0' + i) && !text[1])) {
            log_level = (enum log_level)i;
            return;
        }
    }
    if (text)
        log_warn("option loglevel=%s: expected error, warn, info, debug, trace or 0..4", text);
}

INIT_TEXT void log_init(void)
{
    const char *port = option_get("console");

    if (option_is("console", "com1") || !serial_present(SERIAL_COM2))
        log_port = SERIAL_COM1;
    log_shared = log_port == SERIAL_COM1;
    if (port && strcmp(port, "com1") != 0 && strcmp(port, "com2") != 0)
        log_warn("option console=%s: expected com1 or com2", port);
    choose_level();
}
