// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// boot/multiboot.c: right information, torn information, and every prefix and many mutations of
// the right one.
//
// unit-sources: boot/multiboot.c core/options.c

#include "boot/multiboot.h"
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/string.h>
#include <setjmp.h>
#include <stdlib.h>
#include <cmocka.h>

static struct boot_info info;
static u8 buffer[4096] ALIGNED(8);
static u32 used;
static u32 warnings;

enum log_level log_level = LOG_INFO;

void log_line(enum log_level level, const char *fmt, ...)
{
    (void)fmt;
    warnings += level == LOG_WARN;
}

static void begin(void)
{
    memset(buffer, 0, sizeof(buffer));
    used = 8;
}

static void add(u32 type, const void *data, u32 size)
{
    u32 header[2] = {type, size + 8};

    memcpy(buffer + used, header, 8);
    memcpy(buffer + used + 8, data, size);
    used = (u32)ALIGN_UP(used + 8 + size, 8u);
}

static void finish(void)
{
    add(0, "", 0);
    memcpy(buffer, &used, 4);
}

struct entry {
    u64 base, size;
    u32 type, zero;
};

static void add_mmap(const struct entry *entries, u32 count)
{
    u8 data[1024];
    u32 head[2] = {sizeof(*entries), 0};

    memcpy(data, head, 8);
    memcpy(data + 8, entries, count * sizeof(*entries));
    add(6, data, 8 + count * (u32)sizeof(*entries));
}

static void add_module(u32 start, u32 end, const char *text)
{
    u8 data[128];

    memcpy(data, &start, 4);
    memcpy(data + 4, &end, 4);
    memcpy(data + 8, text, strlen(text) + 1);
    add(3, data, 8 + (u32)strlen(text) + 1);
}

static void add_efi(u32 type, u64 base, u64 pages)
{
    u64 data[1 + 6] = {48,    type, base, 0,
                       pages, 0,    0}; // descriptors may be longer than what we know

    add(17, data, sizeof(data));
}

static void build(void)
{
    const struct entry map[] = {
        {0, 0x9fc00, 1, 0}, {0x100000, 0x1ff00000, 1, 0}, {0xfffc0000, 0x40000, 2, 0}};

    begin();
    add(1, "console=com2 loglevel=debug", 28);
    add(2, "GRUB", 5);
    add_mmap(map, 3);
    add_module(0x101000, 0x102388, "config");
    add_module(0x103000, 0x104388, "kernel a b");
    add(14, "RSD PTR 1___________", 20);
    add(15, "RSD PTR 2___________________________", 36);
    add(9, "sections that nobody wants", 26);
    finish();
}

static void right(void **state)
{
    (void)state;
    build();
    assert_int_equal(multiboot_parse(buffer, used, &info), 0);
    assert_string_equal(info.cmdline, "console=com2 loglevel=debug");
    assert_string_equal(info.loader, "GRUB");
    assert_int_equal(info.region_count, 3);
    assert_int_equal(info.regions[1].base, 0x100000);
    assert_int_equal(info.regions[1].size, 0x1ff00000);
    assert_int_equal(info.regions[2].type, 2);
    assert_int_equal(info.module_count, 2);
    assert_int_equal(info.modules[1].start, 0x103000);
    assert_int_equal(info.modules[1].end, 0x104388);
    assert_string_equal(info.modules[1].string, "kernel a b");
    assert_int_equal(info.rsdp_size, 36);
    assert_memory_equal(info.rsdp, "RSD PTR 2", 9);
    assert_false(info.efi);
}

static void efi_map(void **state)
{
    (void)state;
    begin();
    add_efi(7, 0x100000, 16); // conventional: the other map's business
    add_efi(5, 0x7000000, 2); // runtime services code
    add_efi(4, 0x8000000, 2); // boot services data: free
    add_efi(6, 0, BIT(41));   // nonsense
    finish();
    assert_int_equal(multiboot_parse(buffer, used, &info), 0);
    assert_true(info.efi);
    assert_int_equal(info.region_count, 1);
    assert_int_equal(info.regions[0].base, 0x7000000);
    assert_int_equal(info.regions[0].size, 0x2000);
    assert_int_equal(info.regions[0].type, 2);
}

static void wrong_tags(void **state)
{
    const struct entry map[] = {{~0ull - 10, 100, 1, 0}, {0x1000, 0, 1, 0}};

    (void)state;
    begin();
    add(1, "not terminated", 14);
    add_module(2000, 1000, "backwards");
    add(6, "\x08\0\0\0\0\0\0\0", 8); // entries that are too short
    add(14, "RSD PTR short", 13);
    add_mmap(map, 2); // wraps around; empty
    finish();
    assert_int_equal(multiboot_parse(buffer, used, &info), 0);
    assert_string_equal(info.cmdline, "");
    assert_int_equal(info.module_count, 0);
    assert_int_equal(info.region_count, 0);
    assert_null(info.rsdp);
}

static void too_many(void **state)
{
    (void)state;
    begin();
    for (u32 i = 0; i < BOOT_MODULE_MAX + 3; i++)
        add_module(i * 4096, i * 4096 + 1, "m");
    finish();
    assert_int_equal(multiboot_parse(buffer, used, &info), 0);
    assert_int_equal(info.module_count, BOOT_MODULE_MAX);
    assert_int_equal(info.modules_lost, 3);
}

// The sanitizer watches: each is in a block of exactly its size.
static void torn(void **state)
{
    (void)state;
    build();
    for (u32 size = 0; size < used; size++) {
        u8 *copy = malloc(size ? size : 1);

        memcpy(copy, buffer, size);
        assert_int_equal(multiboot_parse(copy, size, &info), -E_INVAL);
        free(copy);
    }
}

static void mutated(void **state)
{
    (void)state;
    srand(1);
    for (u32 round = 0; round < 100000; round++) {
        u8 *copy;

        build();
        copy = malloc(used);
        memcpy(copy, buffer, used);
        for (u32 i = 0; i < 4; i++)
            copy[(u32)rand() % used] = (u8)rand();
        (void)multiboot_parse(copy, used, &info);
        (void)strlen(info.cmdline);
        for (u32 i = 0; i < info.module_count; i++)
            (void)strlen(info.modules[i].string);
        free(copy);
    }
}

static void options(void **state)
{
    (void)state;
    options_init("/boot/nestor  a=1 b=x=y  flag a=2 other");
    assert_string_equal(option_get("a"), "2");
    assert_true(option_is("b", "x=y"));
    assert_string_equal(option_get("flag"), "");
    assert_null(option_get("x"));
    warnings = 0;
    options_check();
    assert_int_equal(warnings, 1); // other
    options_init("");
    assert_null(option_get("a"));
}

static void many_options(void **state)
{
    static char line[8192];

    (void)state;
    for (u32 i = 0; i < sizeof(line) - 1; i++)
        line[i] = i % 4 == 3 ? ' ' : (char)('a' + i % 23);
    options_init(line);
    warnings = 0;
    options_check();
    assert_int_equal(warnings, 64 + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(right),    cmocka_unit_test(efi_map),      cmocka_unit_test(wrong_tags),
        cmocka_unit_test(too_many), cmocka_unit_test(torn),         cmocka_unit_test(mutated),
        cmocka_unit_test(options),  cmocka_unit_test(many_options),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
