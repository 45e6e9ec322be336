// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The configuration: a device tree blob (Devicetree Specification 0.4 chapter 5, read by libfdt)
// becomes struct config. Everything is checked here; a guest that is wrong is left out with a line
// for each mistake, and the others stay. Pure: no state but a call's.

#include <libfdt.h>
#include <nestor/config.h>
#include <nestor/cpu.h>
#include <nestor/nested.h>
#include <nestor/string.h>

enum { MEMORY_MIB_MIN = 16, MEMORY_MIB_MAX = 16 << 20, LINE_SIZE = 256, FOUND_SIZE = 96 };

enum { TSC_HZ_MIN = 1000000 };
#define TSC_HZ_MAX 100000000000ull

struct parser {
    struct config *config;
    const void *dtb;
    void (*report)(const char *line);
    char path[64]; // of the node being read
    u32 cpu_count; // in its cpus
};

struct value {
    const char *name;
    const char *data;
    u32 size;
};

static void PRINTF_LIKE(2, 3) say(struct parser *p, const char *fmt, ...)
{
    char line[LINE_SIZE];
    int len = fmt_snprintf(line, sizeof(line), "%s: ", p->path);
    va_list args;

    va_start(args, fmt);
    fmt_vsnprintf(line + len, sizeof(line) - (size_t)len, fmt, args);
    va_end(args);
    p->report(line);
}

static bool is_text(const struct value *v)
{
    if (v->size == 0 || v->data[v->size - 1] != 0)
        return false;
    for (u32 i = 0; i < v->size; i++)
        if (v->data[i] && (v->data[i] < ' ' || v->data[i] > '~'))
            return false;
    return v->data[0] != 0 || v->size == 1;
}

static u32 cell(const struct value *v, u32 index)
{
    fdt32_t raw;

    memcpy(&raw, v->data + index * sizeof(raw), sizeof(raw));
    return fdt32_to_cpu(raw);
}

// A value as its author would have written it, as far as one can tell from the bytes.
static void describe(const struct value *v, char *out, size_t size)
{
    u32 cells = v->size / 4;
    int len = 0;

    if (v->size == 0) {
        fmt_snprintf(out, size, "no value");
    } else if (is_text(v)) {
        fmt_snprintf(out, size, "\"%.60s\"%s", v->data,
                     strlen(v->data) + 1 < v->size ? " and more" : "");
    } else if (v->size % 4 || cells > 6) {
        fmt_snprintf(out, size, "%u bytes", v->size);
    } else {
        for (u32 i = 0; i < cells; i++)
            len += fmt_snprintf(out + len, size - (size_t)len, "%s%u", i ? " " : "<", cell(v, i));
        fmt_snprintf(out + len, size - (size_t)len, ">");
    }
}

static bool PRINTF_LIKE(3, 4)
    wrong(struct parser *p, const struct value *v, const char *expected, ...)
{
    char found[FOUND_SIZE], text[FOUND_SIZE];
    va_list args;

    describe(v, found, sizeof(found));
    va_start(args, expected);
    fmt_vsnprintf(text, sizeof(text), expected, args);
    va_end(args);
    say(p, "%.31s: found %s, expected %s", v->name, found, text);
    return false;
}

// --- one function for each property: stores it, or reports and returns false ---

typedef bool (*read_fn)(struct parser *p, const struct value *v, struct vm_config *vm);

static bool read_memory(struct parser *p, const struct value *v, struct vm_config *vm)
{
    u32 mib = v->size == 4 ? cell(v, 0) : 0;

    if (mib < MEMORY_MIB_MIN || mib > MEMORY_MIB_MAX || mib % 2)
        return wrong(p, v, "%u..%u, an even number of MiB", MEMORY_MIB_MIN, MEMORY_MIB_MAX);
    vm->memory = MIB(mib);
    return true;
}

static bool read_vcpus(struct parser *p, const struct value *v, struct vm_config *vm)
{
    u32 count = v->size == 4 ? cell(v, 0) : 0;

    if (count == 0 || count > CONFIG_VCPU_MAX)
        return wrong(p, v, "1..%u", CONFIG_VCPU_MAX);
    vm->vcpus = count;
    return true;
}

// A module's name is the first word of what GRUB hands over, so it has no spaces.
static bool is_module_name(const char *name)
{
    return name[0] != 0 && strchr(name, ' ') == NULL;
}

static bool read_module(struct parser *p, const struct value *v, const char **out)
{
    if (!is_text(v) || strlen(v->data) + 1 != v->size || !is_module_name(v->data))
        return wrong(p, v, "the name of one module, without spaces");
    *out = v->data;
    return true;
}

static bool read_kernel(struct parser *p, const struct value *v, struct vm_config *vm)
{
    return read_module(p, v, &vm->kernel);
}

static bool read_initrd(struct parser *p, const struct value *v, struct vm_config *vm)
{
    return read_module(p, v, &vm->initrd);
}

static bool read_command_line(struct parser *p, const struct value *v, struct vm_config *vm)
{
    if (!is_text(v) || strlen(v->data) + 1 != v->size)
        return wrong(p, v, "one string");
    vm->command_line = v->data;
    return true;
}

static bool read_modules(struct parser *p, const struct value *v, struct vm_config *vm)
{
    u32 used = 0;

    if (!is_text(v))
        return wrong(p, v, "names of modules");
    for (; used < v->size; used += (u32)strlen(v->data + used) + 1) {
        if (vm->module_count == CONFIG_MODULE_MAX || !is_module_name(v->data + used))
            return wrong(p, v, "1..%u names of modules, without spaces", CONFIG_MODULE_MAX);
        vm->modules[vm->module_count++] = v->data + used;
    }
    return true;
}

// There are more names than fit a line.
static bool unknown_name(struct parser *p, const struct value *v, const char *name,
                         const char *(*known)(u32 n))
{
    char list[FOUND_SIZE] = "";
    const char *one, *last = "";

    say(p, "%.31s: found \"%.40s\", expected names of features:", v->name, name);
    for (u32 i = 0; (one = known(i)) != NULL; last = one, i++) {
        size_t len = strlen(list);

        if (strcmp(one, last) == 0)
            continue;
        fmt_snprintf(list + len, sizeof(list) - len, " %s", one);
        if (len > FOUND_SIZE - 40) {
            say(p, "%.31s:%s", v->name, list);
            list[0] = 0;
        }
    }
    if (list[0])
        say(p, "%.31s:%s", v->name, list);
    return false;
}

static bool read_hide(struct parser *p, const struct value *v, struct vm_config *vm)
{
    if (!is_text(v))
        return wrong(p, v, "names of features");
    for (u32 used = 0; used < v->size; used += (u32)strlen(v->data + used) + 1) {
        u64 rows = config_hideable(v->data + used);

        if (!rows)
            return unknown_name(p, v, v->data + used, config_hideable_name);
        vm->hidden |= rows;
    }
    return true;
}

static u64 nested_feature_bit(const char *name)
{
    const char *one;

    for (u32 i = 0; (one = nested_feature_name(i)) != NULL; i++)
        if (strcmp(one, name) == 0)
            return BIT(i);
    return 0;
}

// Just the features named; or, if a '-' stands before the first one, all but those.
static bool read_nested_features(struct parser *p, const struct value *v, struct vm_config *vm)
{
    bool without = is_text(v) && v->data[0] == '-';
    u64 named = 0, bit;

    if (!is_text(v))
        return wrong(p, v, "names of features");
    for (u32 used = 0; used < v->size; used += (u32)strlen(v->data + used) + 1) {
        const char *name = v->data + used;

        if ((name[0] == '-') != without)
            return wrong(p, v, "a '-' before each name or before none");
        if (v->size == 1) // "": none of them
            break;
        bit = nested_feature_bit(name + without);
        if (!bit)
            return unknown_name(p, v, name + without, nested_feature_name);
        named |= bit;
    }
    vm->nested_features = without ? ~named : named;
    return true;
}

static bool read_cpus(struct parser *p, const struct value *v, struct vm_config *vm)
{
    u32 count = v->size / 4;

    if (v->size % 4 || count == 0 || count > CONFIG_VCPU_MAX)
        return wrong(p, v, "1..%u CPU numbers", CONFIG_VCPU_MAX);
    for (u32 i = 0; i < count; i++) {
        vm->cpus[i] = cell(v, i);
        if (vm->cpus[i] >= CPU_MAX)
            return wrong(p, v, "CPU numbers 0..%u", CPU_MAX - 1);
        for (u32 other = 0; other < i; other++)
            if (vm->cpus[other] == vm->cpus[i])
                return wrong(p, v, "another CPU than %u for each vCPU", vm->cpus[i]);
    }
    vm->pinned = true;
    p->cpu_count = count;
    return true;
}

static bool read_flag(struct parser *p, const struct value *v, bool *out)
{
    if (v->size != 0)
        return wrong(p, v, "no value");
    *out = true;
    return true;
}

static bool read_tsc_frequency(struct parser *p, const struct value *v, struct vm_config *vm)
{
    u64 hz = v->size == 4 ? cell(v, 0) : v->size == 8 ? (u64)cell(v, 0) << 32 | cell(v, 1) : 0;

    if (hz < TSC_HZ_MIN || hz > TSC_HZ_MAX)
        return wrong(p, v, "%u..%llu Hz in one cell or two", TSC_HZ_MIN, TSC_HZ_MAX);
    vm->tsc_frequency = hz;
    return true;
}

static bool read_nested(struct parser *p, const struct value *v, struct vm_config *vm)
{
    return read_flag(p, v, &vm->nested);
}

static bool read_test_device(struct parser *p, const struct value *v, struct vm_config *vm)
{
    return read_flag(p, v, &vm->test_device);
}

static bool read_pci_test_device(struct parser *p, const struct value *v, struct vm_config *vm)
{
    return read_flag(p, v, &vm->pci_test_device);
}

static bool read_console(struct parser *p, const struct value *v, struct vm_config *vm)
{
    return read_flag(p, v, &vm->console);
}

// dtc adds a phandle where a label is referred to.
static bool read_nothing(struct parser *p, const struct value *v, struct vm_config *vm)
{
    (void)p, (void)v, (void)vm;
    return true;
}

static const struct property {
    const char *name;
    read_fn read;
    bool required;
} properties[] = {
    {"memory", read_memory, true},
    {"vcpus", read_vcpus, true},
    {"kernel", read_kernel, true},
    {"initrd", read_initrd, false},
    {"command-line", read_command_line, false},
    {"modules", read_modules, false},
    {"cpus", read_cpus, false},
    {"hide", read_hide, false},
    {"tsc-frequency", read_tsc_frequency, false},
    {"nested", read_nested, false},
    {"nested-features", read_nested_features, false},
    {"test-device", read_test_device, false},
    {"pci-test-device", read_pci_test_device, false},
    {"console", read_console, false},
    {"phandle", read_nothing, false},
};

static const struct property *find_property(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(properties); i++)
        if (strcmp(properties[i].name, name) == 0)
            return &properties[i];
    return NULL;
}

// --- a guest's node ---

static bool read_property(struct parser *p, int offset, struct vm_config *vm)
{
    struct value v;
    int len;

    v.data = fdt_getprop_by_offset(p->dtb, offset, &v.name, &len);
    if (v.data == NULL || v.name == NULL) {
        say(p, "an unreadable property: %s", fdt_strerror(len));
        return false;
    }
    v.size = (u32)len;

    const struct property *property = find_property(v.name);

    return property ? property->read(p, &v, vm) : wrong(p, &v, "no property of that name");
}

static bool check_required(struct parser *p, int node)
{
    bool right = true;
    int len;

    for (size_t i = 0; i < ARRAY_SIZE(properties); i++) {
        if (properties[i].required && !fdt_getprop(p->dtb, node, properties[i].name, &len)) {
            say(p, "%s: not found, expected in every guest", properties[i].name);
            right = false;
        }
    }
    return right;
}

static bool has_cpu(const struct vm_config *vm, u32 cpu)
{
    for (u32 i = 0; vm->pinned && i < vm->vcpus; i++)
        if (vm->cpus[i] == cpu)
            return true;
    return false;
}

// What can be judged only beside the other guests, those before it that are right.
static bool check_against(struct parser *p, const struct vm_config *vm,
                          const struct vm_config *other)
{
    if (strcmp(vm->name, other->name) == 0) {
        say(p, "found twice, expected once: the first one stays");
        return false;
    }
    if (vm->console && other->console) {
        say(p, "console: found here and in /guests/%s, expected in one guest", other->name);
        return false;
    }
    for (u32 i = 0; vm->pinned && i < vm->vcpus; i++) {
        if (has_cpu(other, vm->cpus[i])) {
            say(p, "cpus: found <%u>, which is /guests/%s's, expected a CPU of its own",
                vm->cpus[i], other->name);
            return false;
        }
    }
    return true;
}

static bool check_guest(struct parser *p, const struct vm_config *vm)
{
    if (vm->nested_features != ~0ull && !vm->nested) {
        say(p, "nested-features: found without nested, expected nested as well");
        return false;
    }
    if (vm->pinned && p->cpu_count != vm->vcpus) {
        say(p, "cpus: found %u, expected as many as vcpus: %u", p->cpu_count, vm->vcpus);
        return false;
    }
    for (u32 i = 0; i < p->config->guest_count; i++)
        if (!check_against(p, vm, &p->config->guests[i]))
            return false;
    return true;
}

static bool read_properties(struct parser *p, int node, struct vm_config *vm)
{
    bool right = true;
    int offset;

    fdt_for_each_property_offset(offset, p->dtb, node)
    {
        right &= read_property(p, offset, vm);
    }
    fdt_for_each_subnode(offset, p->dtb, node)
    {
        say(p, "found a node %.31s, expected none", fdt_get_name(p->dtb, offset, NULL));
        right = false;
    }
    return check_required(p, node) && right;
}

static void read_guest(struct parser *p, int node)
{
    const char *name = fdt_get_name(p->dtb, node, NULL);
    struct vm_config *vm = &p->config->guests[p->config->guest_count];

    fmt_snprintf(p->path, sizeof(p->path), "/guests/%.40s", name);
    if (p->config->guest_count == CONFIG_GUEST_MAX) {
        say(p, "found one more guest, expected at most %u", CONFIG_GUEST_MAX);
        return;
    }
    if (strlen(name) >= CONFIG_NAME_MAX) {
        say(p, "found a name of %zu characters, expected at most %u", strlen(name),
            CONFIG_NAME_MAX - 1);
        return;
    }
    memset(vm, 0, sizeof(*vm));
    memcpy(vm->name, name, strlen(name) + 1);
    vm->command_line = "";
    vm->nested_features = ~0ull;
    if (read_properties(p, node, vm) && check_guest(p, vm))
        p->config->guest_count++;
    else
        say(p, "this guest is left out");
}

// --- the tree ---

static void report_strangers(struct parser *p, int root)
{
    const char *name;
    int offset;

    fdt_for_each_property_offset(offset, p->dtb, root)
    {
        if (fdt_getprop_by_offset(p->dtb, offset, &name, NULL) && strcmp(name, "compatible") != 0)
            say(p, "%.31s: found, expected no property of that name", name);
    }
    fdt_for_each_subnode(offset, p->dtb, root)
    {
        name = fdt_get_name(p->dtb, offset, NULL);
        if (strcmp(name, "guests") != 0)
            say(p, "found a node %.31s, expected only guests", name);
    }
}

// libfdt (1.6) adds up a property's length before it looks at it, so one near 4 GiB leads back into
// the blob: fdt_check_full takes that for right, or never ends.
static int check_lengths(const void *dtb)
{
    fdt32_t len = 0;
    u32 tag;

    for (int at = 0, next; (tag = fdt_next_tag(dtb, at, &next)) != FDT_END; at = next) {
        const char *property = fdt_offset_ptr(dtb, at, sizeof(struct fdt_property));

        if (property) // which need not be aligned
            memcpy(&len, property + offsetof(struct fdt_property, len), sizeof(len));
        if (tag == FDT_PROP && (!property || fdt32_to_cpu(len) > fdt_totalsize(dtb)))
            return -FDT_ERR_BADSTRUCTURE;
    }
    return 0;
}

static int check_blob(const void *dtb, u64 size)
{
    int error = size > INT32_MAX                   ? -FDT_ERR_BADSTRUCTURE
                : size < sizeof(struct fdt_header) ? -FDT_ERR_TRUNCATED
                                                   : fdt_check_header(dtb);

    // Devicetree Specification 0.4, 5.2; fdt_check_full reads a root without a name by NULL before
    if (!error && fdt_version(dtb) < FDT_LAST_SUPPORTED_VERSION)
        error = -FDT_ERR_BADVERSION;
    if (!error && fdt_totalsize(dtb) > size)
        error = -FDT_ERR_TRUNCATED;
    if (!error)
        error = check_lengths(dtb);
    return error ?: fdt_check_full(dtb, size);
}

// Returns the offset of /guests.
static int check_tree(struct parser *p, u64 size)
{
    int error = check_blob(p->dtb, size);
    int guests;

    if (error) {
        say(p, "the configuration is no device tree blob (%llu bytes): %s",
            (unsigned long long)size, fdt_strerror(error));
        return -E_INVAL;
    }
    if (fdt_node_check_compatible(p->dtb, 0, "nestor,config-v1") != 0) {
        say(p, "compatible: expected \"nestor,config-v1\"");
        return -E_INVAL;
    }
    report_strangers(p, 0);
    guests = fdt_subnode_offset(p->dtb, 0, "guests");
    if (guests < 0) {
        say(p, "no node guests: expected one that holds a node for each guest");
        return -E_INVAL;
    }
    return guests;
}

// Without the property, the console is the first guest's.
static void choose_console(struct config *config)
{
    for (u32 i = 0; i < config->guest_count; i++)
        if (config->guests[i].console)
            return;
    if (config->guest_count)
        config->guests[0].console = true;
}

int config_parse(struct config *config, const void *dtb, u64 dtb_size,
                 void (*report)(const char *line))
{
    struct parser p = {.config = config, .dtb = dtb, .report = report, .path = "/"};
    int guests, node, offset;

    memset(config, 0, sizeof(*config));
    guests = check_tree(&p, dtb_size);
    if (guests < 0)
        return guests;
    fmt_snprintf(p.path, sizeof(p.path), "/guests");
    fdt_for_each_property_offset(offset, dtb, guests)
    {
        say(&p, "found a property, expected only a node for each guest");
    }
    if (fdt_first_subnode(dtb, guests) < 0)
        say(&p, "no guest found, expected a node for each guest");
    fdt_for_each_subnode(node, dtb, guests)
    {
        read_guest(&p, node);
    }
    choose_console(config);
    return (int)config->guest_count;
}
