// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Formatted output into a buffer (C11 7.21.6, the part that nestor/string.h names) and reading
// numbers. Pure.

#include <nestor/string.h>

struct output {
    char *buf;
    size_t size;
    size_t len; // of the whole text, fitting or not
};

struct spec {
    bool left, zero, alternate;
    int width, precision; // precision -1: none
    unsigned longs;       // l, ll; z counts as l
};

static void put(struct output *out, char c)
{
    if (out->len + 1 < out->size)
        out->buf[out->len] = c;
    out->len++;
}

static void put_padded(struct output *out, const struct spec *spec, const char *prefix,
                       const char *text, size_t len, size_t zeros)
{
    size_t used = strlen(prefix) + zeros + len;
    size_t pad = spec->width > 0 && (size_t)spec->width > used ? (size_t)spec->width - used : 0;

    for (; !spec->left && pad > 0; pad--)
        put(out, ' ');
    while (*prefix)
        put(out, *prefix++);
    for (; zeros > 0; zeros--)
        put(out, '0');
    for (size_t i = 0; i < len; i++)
        put(out, text[i]);
    for (; pad > 0; pad--)
        put(out, ' ');
}

static void put_number(struct output *out, const struct spec *spec, const char *prefix, u64 value,
                       unsigned base, bool upper)
{
    const char *digits = upper ? "0123456789ABCDEF" : "0123456789abcdef";
    char text[24];
    size_t pos = sizeof(text), len, zeros = 0;

    while (value) {
        text[--pos] = digits[value % base];
        value /= base;
    }
    len = sizeof(text) - pos;
    if (spec->precision >= 0)
        zeros = (size_t)spec->precision > len ? (size_t)spec->precision - len : 0;
    else if (spec->zero && !spec->left && (size_t)spec->width > strlen(prefix) + len)
        zeros = (size_t)spec->width - strlen(prefix) - len;
    if (spec->precision < 0 && len + zeros == 0)
        zeros = 1;
    put_padded(out, spec, prefix, text + pos, len, zeros);
}

static void put_string(struct output *out, const struct spec *spec, const char *text)
{
    size_t limit = spec->precision >= 0 ? (size_t)spec->precision : ~(size_t)0;

    if (!text)
        text = "(null)";
    put_padded(out, spec, "", text, strnlen(text, limit), 0);
}

static int read_int(const char **fmt, va_list *args)
{
    int value = 0;

    if (**fmt == '*') {
        (*fmt)++;
        return va_arg(*args, int);
    }
    for (; **fmt >= '0' && **fmt <= '9' && value < 100000; (*fmt)++)
        value = value * 10 + (**fmt - '0');
    return value;
}

static void read_spec(struct spec *spec, const char **fmt, va_list *args)
{
    *spec = (struct spec){.precision = -1};
    for (;; (*fmt)++) {
        if (**fmt == '-')
            spec->left = true;
        else if (**fmt == '0')
            spec->zero = true;
        else if (**fmt == '#')
            spec->alternate = true;
        else
            break;
    }
    spec->width = read_int(fmt, args);
    if (spec->width < 0) {
        spec->left = true;
        spec->width = -spec->width;
    }
    if (**fmt == '.') {
        (*fmt)++;
        spec->precision = read_int(fmt, args);
    }
    for (; **fmt == 'l' || **fmt == 'z'; (*fmt)++)
        spec->longs++;
}

static void put_signed(struct output *out, const struct spec *spec, s64 value)
{
    u64 magnitude = value < 0 ? 0 - (u64)value : (u64)value;

    put_number(out, spec, value < 0 ? "-" : "", magnitude, 10, false);
}

static void put_conversion(struct output *out, struct spec *spec, char kind, va_list *args)
{
    u64 value;
    char c;

    switch (kind) {
    case 'd':
    case 'i':
        put_signed(out, spec, spec->longs ? va_arg(*args, s64) : va_arg(*args, s32));
        break;
    case 'u':
        put_number(out, spec, "", spec->longs ? va_arg(*args, u64) : va_arg(*args, u32), 10, false);
        break;
    case 'x':
    case 'X':
        value = spec->longs ? va_arg(*args, u64) : va_arg(*args, u32);
        put_number(out, spec, spec->alternate && value ? (kind == 'x' ? "0x" : "0X") : "", value,
                   16, kind == 'X');
        break;
    case 'p':
        put_number(out, spec, "0x", (u64)va_arg(*args, void *), 16, false);
        break;
    case 's':
        put_string(out, spec, va_arg(*args, const char *));
        break;
    case 'c':
        c = (char)va_arg(*args, int);
        put_padded(out, spec, "", &c, 1, 0);
        break;
    default: // %% and what nobody knows
        put(out, kind);
    }
}

int fmt_vsnprintf(char *buf, size_t size, const char *fmt, va_list args)
{
    struct output out = {.buf = buf, .size = size};
    struct spec spec;
    va_list copy; // a parameter of this type may be a pointer, and has no address of use

    va_copy(copy, args);
    while (*fmt) {
        if (*fmt != '%') {
            put(&out, *fmt++);
            continue;
        }
        fmt++;
        read_spec(&spec, &fmt, &copy);
        if (!*fmt)
            break;
        put_conversion(&out, &spec, *fmt++, &copy);
    }
    va_end(copy);
    if (size > 0)
        buf[MIN(out.len, size - 1)] = 0;
    return (int)out.len;
}

int fmt_snprintf(char *buf, size_t size, const char *fmt, ...)
{
    va_list args;
    int len;

    va_start(args, fmt);
    len = fmt_vsnprintf(buf, size, fmt, args);
    va_end(args);
    return len;
}

static unsigned digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return (unsigned)(c - '0');
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10 : 16;
}

int parse_u64(const char *text, u64 *out)
{
    unsigned base = 10, digit;
    u64 value = 0;

    if (text[0] == '0' && (text[1] | 0x20) == 'x') {
        base = 16;
        text += 2;
    }
    if (!*text)
        return -E_INVAL;
    for (; *text; text++) {
        digit = digit_value(*text);
        if (digit >= base)
            return -E_INVAL;
        if (value > (~0ull - digit) / base)
            return -E_RANGE;
        value = value * base + digit;
    }
    *out = value;
    return 0;
}
