// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/config.c core/hide.c nested/features.c core/format.c
// unit-libs: -lfdt
//
// The configuration: what is right is read wholly; each mistake gives its line and leaves the guest
// out; damaged blobs, cut and with random bytes changed, are refused or read without harm.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <libfdt.h>

#include <nestor/config.h>
#include <nestor/nested.h>
#include <nestor/string.h>

static char lines[65536];

static void report(const char *line)
{
    size_t used = strlen(lines);

    assert_true(strlen(line) < 256);
    snprintf(lines + used, sizeof(lines) - used, "%s\n", line);
}

// --- a blob in the making ---

static char blob[65536];
static struct config config;

static void begin(const char *compatible)
{
    assert_int_equal(fdt_create(blob, sizeof(blob)), 0);
    fdt_finish_reservemap(blob);
    fdt_begin_node(blob, "");
    fdt_property_string(blob, "compatible", compatible);
    fdt_begin_node(blob, "guests");
}

static void guest(const char *name, u32 memory, u32 vcpus, const char *kernel)
{
    assert_int_equal(fdt_begin_node(blob, name), 0);
    fdt_property_u32(blob, "memory", memory);
    fdt_property_u32(blob, "vcpus", vcpus);
    fdt_property_string(blob, "kernel", kernel);
}

static void end_guest(void)
{
    assert_int_equal(fdt_end_node(blob), 0);
}

static int parse(void)
{
    fdt_end_node(blob);
    fdt_end_node(blob);
    assert_int_equal(fdt_finish(blob), 0);
    lines[0] = 0;
    return config_parse(&config, blob, fdt_totalsize(blob), report);
}

static void expect(const char *text)
{
    if (strcmp(lines, text) != 0)
        fail_msg("found:\n%sexpected:\n%s", lines, text);
}

static void cpus(unsigned count, ...)
{
    fdt32_t cells[64];
    va_list args;

    va_start(args, count);
    for (unsigned i = 0; i < count; i++)
        cells[i] = cpu_to_fdt32(va_arg(args, unsigned));
    va_end(args);
    fdt_property(blob, "cpus", cells, (int)(count * 4));
}

static void test_right(void **state)
{
    (void)state;
    begin("nestor,config-v1");
    guest("linux", 512, 2, "kernel");
    fdt_property_string(blob, "initrd", "initrd");
    fdt_property_string(blob, "command-line", "console=ttyS0 a=\"b c\"");
    fdt_property(blob, "nested", NULL, 0);
    end_guest();
    guest("test", 64, 1, "k2");
    fdt_property(blob, "modules", "env\0two", 8);
    fdt_property(blob, "test-device", NULL, 0);
    fdt_property(blob, "hide", "umip\0pku\0tsc-adjust", 20);
    fdt_property_u32(blob, "phandle", 1);
    cpus(1, 7);
    end_guest();
    assert_int_equal(parse(), 2);
    expect("");

    const struct vm_config *vm = &config.guests[0];

    assert_string_equal(vm->name, "linux");
    assert_int_equal(vm->memory, 512ull << 20);
    assert_int_equal(vm->vcpus, 2);
    assert_string_equal(vm->kernel, "kernel");
    assert_string_equal(vm->initrd, "initrd");
    assert_string_equal(vm->command_line, "console=ttyS0 a=\"b c\"");
    assert_true(vm->nested && vm->console && !vm->test_device && !vm->pinned);
    vm++;
    assert_null(vm->initrd);
    assert_string_equal(vm->command_line, "");
    assert_int_equal(vm->module_count, 2);
    assert_string_equal(vm->modules[1], "two");
    assert_true(!vm->nested && !vm->console && vm->test_device && vm->pinned);
    assert_int_equal(vm->cpus[0], 7);
    assert_int_equal(vm->hidden, config_hideable("umip") | config_hideable("pku") |
                                     config_hideable("tsc-adjust"));
    assert_int_equal(config_hidden_bits(vm, 7, 0, 2), BIT(2) | BIT(3)); // ECX: UMIP PKU
    assert_int_equal(config_hidden_bits(vm, 7, 0, 1), BIT(1));          // EBX: TSC_ADJUST
    assert_int_equal(config_hidden_bits(vm, 0xd, 0, 0), BIT(9));        // PKU's state
    assert_int_equal(config_hidden_bits(vm, 0xd, 1, 0), 0);
    assert_int_equal(config_hidden_bits(vm - 1, 7, 0, 2), 0);
}

static void test_console_moves(void **state)
{
    (void)state;
    begin("nestor,config-v1");
    guest("a", 16, 1, "k");
    end_guest();
    guest("b", 16, 1, "k");
    fdt_property(blob, "console", NULL, 0);
    end_guest();
    guest("c", 16, 1, "k");
    fdt_property(blob, "console", NULL, 0);
    end_guest();
    assert_int_equal(parse(), 2);
    assert_true(!config.guests[0].console && config.guests[1].console);
    expect("/guests/c: console: found here and in /guests/b, expected in one guest\n"
           "/guests/c: this guest is left out\n");
}

// Each of them stands beside a guest that is right, and that one must stay.
static const struct mistake {
    const char *name, *data;
    int size;
    const char *expected;
} mistakes[] = {
    {"memory", "\0\0\0\0", 4, "memory: found <0>, expected 16..16777216, an even number of MiB"},
    {"memory", "\0\0\0\21", 4, "memory: found <17>, expected 16..16777216, an even number of MiB"},
    {"memory", "\0\0\0\16", 4, "memory: found <14>, expected 16..16777216, an even number of MiB"},
    {"memory", "\377\377\377\376", 4,
     "memory: found <4294967294>, expected 16..16777216, an even number of MiB"},
    {"memory", "512M", 5, "memory: found \"512M\", expected 16..16777216, an even number of MiB"},
    {"memory", "\0\0\0\0\0\0\2\0", 8,
     "memory: found <0 512>, expected 16..16777216, an even number of MiB"},
    {"vcpus", "\0\0\0\0", 4, "vcpus: found <0>, expected 1..64"},
    {"vcpus", "\0\0\0\101", 4, "vcpus: found <65>, expected 1..64"},
    {"vcpus", "", 0, "vcpus: found no value, expected 1..64"},
    {"vcpus", "\1\2\3", 3, "vcpus: found 3 bytes, expected 1..64"},
    {"kernel", "", 1, "kernel: found \"\", expected the name of one module, without spaces"},
    {"kernel", "a b", 4, "kernel: found \"a b\", expected the name of one module, without spaces"},
    {"kernel", "a\0b", 4,
     "kernel: found \"a\" and more, expected the name of one module, without spaces"},
    {"kernel", "abcd", 4,
     "kernel: found <1633837924>, expected the name of one module, without spaces"},
    {"initrd", "\0\0\0\1", 4, "initrd: found <1>, expected the name of one module, without spaces"},
    {"command-line", "", 0, "command-line: found no value, expected one string"},
    {"command-line", "a\nb", 4, "command-line: found <1628070400>, expected one string"},
    {"modules", "a\0\0b", 5,
     "modules: found \"a\" and more, expected 1..8 names of modules, without spaces"},
    {"modules", "a\0b\0c\0d\0e\0f\0g\0h\0i", 18,
     "modules: found \"a\" and more, expected 1..8 names of modules, without spaces"},
    {"tsc-frequency", "\0\0\0\1", 4,
     "tsc-frequency: found <1>, expected 1000000..100000000000 Hz in one cell or two"},
    {"nested", "\0\0\0\1", 4, "nested: found <1>, expected no value"},
    {"nested-features", "\0\0\0\1", 4, "nested-features: found <1>, expected names of features"},
    {"nested-features", "ept\0-vpid", 10,
     "nested-features: found \"ept\" and more, expected a '-' before each name or before none"},
    {"nested-features", "ept", 4, "nested-features: found without nested, expected nested as well"},
    {"hide", "\0\0\0\1", 4, "hide: found <1>, expected names of features"},
    {"hide", "", 0, "hide: found no value, expected names of features"},
    {"cpus", "", 0, "cpus: found no value, expected 1..64 CPU numbers"},
    {"cpus", "\0\0\4\0", 4, "cpus: found <1024>, expected CPU numbers 0..1023"},
    {"cpus", "\0\0\0\1", 4, "cpus: found 1, expected as many as vcpus: 2"},
    {"cpus", "\0\0\0\1\0\0\0\1", 8, "cpus: found <1 1>, expected another CPU than 1 for each vCPU"},
    {"cpus", "\0\0\0\3\0\0\0\2", 8,
     "cpus: found <2>, which is /guests/right's, expected a CPU of its own"},
    {"vcpu", "\0\0\0\1", 4, "vcpu: found <1>, expected no property of that name"},
};

static void test_mistake(const struct mistake *m)
{
    char expected[512];

    begin("nestor,config-v1");
    guest("right", 16, 1, "k");
    cpus(1, 2);
    end_guest();
    fdt_begin_node(blob, "bad");
    if (strcmp(m->name, "memory") != 0)
        fdt_property_u32(blob, "memory", 64);
    if (strcmp(m->name, "vcpus") != 0)
        fdt_property_u32(blob, "vcpus", 2);
    if (strcmp(m->name, "kernel") != 0)
        fdt_property_string(blob, "kernel", "k");
    assert_int_equal(fdt_property(blob, m->name, m->data, m->size), 0);
    end_guest();
    guest("good", 32, 3, "k");
    end_guest();
    assert_int_equal(parse(), 2);
    snprintf(expected, sizeof(expected), "/guests/bad: %s\n/guests/bad: this guest is left out\n",
             m->expected);
    expect(expected);
    assert_string_equal(config.guests[1].name, "good");
}

static void test_mistakes(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(mistakes); i++)
        test_mistake(&mistakes[i]);
}

// The names it expects are said, over several lines.
static void test_hide_unknown(void **state)
{
    static const char first[] =
        "/guests/a: hide: found \"x3apic\", expected names of features:\n/guests/a: hide: hypervisor "
        "x2apic tsc-deadline ";
    static const char last[] = " pv-ipi\n/guests/a: this guest is left out\n";

    (void)state;
    begin("nestor,config-v1");
    guest("a", 64, 1, "k");
    fdt_property(blob, "hide", "umip\0x3apic", 12);
    end_guest();
    assert_int_equal(parse(), 0);
    assert_memory_equal(lines, first, sizeof(first) - 1);
    assert_non_null(strstr(lines, last));
}

static u64 features_of(const char *names, int size)
{
    begin("nestor,config-v1");
    guest("a", 64, 1, "k");
    fdt_property(blob, "nested", NULL, 0);
    if (names)
        fdt_property(blob, "nested-features", names, size);
    end_guest();
    return parse() == 1 ? config.guests[0].nested_features : BIT(63);
}

static void test_nested_features(void **state)
{
    static const char first[] =
        "/guests/a: nested-features: found \"eptt\", expected names of features:\n"
        "/guests/a: nested-features: true-controls ";

    (void)state;
    assert_int_equal(features_of(NULL, 0), ~0ull);
    assert_int_equal(features_of("", 1), 0);
    assert_int_equal(features_of("ept\0vgif", 9), BIT(OFFER_EPT) | BIT(OFFER_VGIF));
    assert_int_equal(features_of("-ept\0-mtf", 10), ~(BIT(OFFER_EPT) | BIT(OFFER_MTF)));
    expect("");
    for (u32 i = 0; i < OFFER_FEATURE_COUNT; i++) {
        const char *name = nested_feature_name(i);

        assert_non_null(name);
        assert_int_equal(features_of(name, (int)strlen(name) + 1), BIT(i));
    }
    assert_int_equal(features_of("-vpid\0-eptt", 12), BIT(63));
    assert_memory_equal(lines, first, sizeof(first) - 1);
}

static void test_several(void **state)
{
    (void)state;
    begin("nestor,config-v1");
    fdt_begin_node(blob, "empty");
    fdt_begin_node(blob, "inside");
    fdt_end_node(blob);
    fdt_end_node(blob);
    guest("a-name-that-is-one-too-long-12345", 64, 1, "k");
    end_guest();
    guest("twice", 64, 1, "k");
    end_guest();
    guest("twice", 64, 2, "k");
    end_guest();
    assert_int_equal(parse(), 1);
    expect("/guests/empty: found a node inside, expected none\n"
           "/guests/empty: memory: not found, expected in every guest\n"
           "/guests/empty: vcpus: not found, expected in every guest\n"
           "/guests/empty: kernel: not found, expected in every guest\n"
           "/guests/empty: this guest is left out\n"
           "/guests/a-name-that-is-one-too-long-12345: "
           "found a name of 33 characters, expected at most 31\n"
           "/guests/twice: found twice, expected once: the first one stays\n"
           "/guests/twice: this guest is left out\n");
    assert_int_equal(config.guests[0].vcpus, 1);
}

static void test_too_many(void **state)
{
    char name[8];

    (void)state;
    begin("nestor,config-v1");
    for (unsigned i = 0; i <= CONFIG_GUEST_MAX; i++) {
        snprintf(name, sizeof(name), "g%u", i);
        guest(name, 64, 1, "k");
        end_guest();
    }
    assert_int_equal(parse(), CONFIG_GUEST_MAX);
    expect("/guests/g64: found one more guest, expected at most 64\n");
}

static void test_trees(void **state)
{
    (void)state;
    begin("nestor,config-v1");
    assert_int_equal(parse(), 0);
    expect("/guests: no guest found, expected a node for each guest\n");

    begin("nestor,config-v2");
    assert_int_equal(parse(), -E_INVAL);
    expect("/: compatible: expected \"nestor,config-v1\"\n");

    begin("nestor,config-v1");
    fdt_property_u32(blob, "count", 1);
    guest("a", 16, 1, "k");
    end_guest();
    fdt_end_node(blob);
    fdt_begin_node(blob, "hosts");
    assert_int_equal(parse(), 1);
    expect("/: found a node hosts, expected only guests\n"
           "/guests: found a property, expected only a node for each guest\n");

    fdt_create(blob, sizeof(blob));
    fdt_finish_reservemap(blob);
    fdt_begin_node(blob, "");
    fdt_property_string(blob, "compatible", "nestor,config-v1");
    fdt_property_string(blob, "model", "x");
    fdt_begin_node(blob, "guest");
    assert_int_equal(parse(), -E_INVAL);
    expect("/: model: found, expected no property of that name\n"
           "/: found a node guest, expected only guests\n"
           "/: no node guests: expected one that holds a node for each guest\n");
}

// A copy of exactly the size claimed, so that the sanitizer sees each byte too many.
static int parse_copy(const void *data, size_t size)
{
    void *copy = malloc(size ? size : 1);

    memcpy(copy, data, size);
    lines[0] = 0;
    int result = config_parse(&config, copy, size, report);

    free(copy);
    return result;
}

// Lengths that lead back into the blob when they are added to an offset in 32 bits.
static void test_lengths(void **state)
{
    static const u32 lengths[] = {0xfffffffd, 0xfffffff4, 0xfffffff0, 0x80000000, 0x7fffffff};
    int len;

    test_right(state);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        int node = fdt_path_offset(blob, "/guests");
        int at = fdt_first_property_offset(blob, fdt_first_subnode(blob, node));
        struct fdt_property *property =
            (void *)(uintptr_t)fdt_get_property_by_offset(blob, at, &len);
        fdt32_t before = property->len;

        property->len = cpu_to_fdt32(lengths[i]);
        assert_int_equal(parse_copy(blob, fdt_totalsize(blob)), -E_INVAL);
        property->len = before;
    }
}

static void test_old_version(void **state)
{
    static const u32 versions[] = {0, 3, 6, 0x10};

    test_right(state);
    fdt_set_last_comp_version(blob, 3);
    for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++) {
        fdt_set_version(blob, versions[i]);
        assert_int_equal(parse_copy(blob, fdt_totalsize(blob)), -E_INVAL);
    }
}

static void test_damaged(void **state)
{
    static char copy[sizeof(blob)];

    test_right(state);
    u32 size = fdt_totalsize(blob);

    for (u32 cut = 0; cut < size; cut++) {
        assert_int_equal(parse_copy(blob, cut), -E_INVAL);
        assert_non_null(strstr(lines, "/: the configuration is no device tree blob ("));
    }
    assert_int_equal(config_parse(&config, blob, ~0ull, report), -E_INVAL);
    srandom(1);
    for (int round = 0; round < 100000; round++) {
        memcpy(copy, blob, size);
        for (long n = random() % 4; n >= 0; n--)
            copy[random() % size] = (char)random();
        assert_true(parse_copy(copy, size) <= 2);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right),           cmocka_unit_test(test_console_moves),
        cmocka_unit_test(test_mistakes),        cmocka_unit_test(test_hide_unknown),
        cmocka_unit_test(test_nested_features), cmocka_unit_test(test_several),
        cmocka_unit_test(test_too_many),        cmocka_unit_test(test_trees),
        cmocka_unit_test(test_lengths),         cmocka_unit_test(test_old_version),
        cmocka_unit_test(test_damaged),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
