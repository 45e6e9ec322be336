// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// fuzz-tests: test_config
//
// The configuration from any bytes: what is taken for right lies in its bounds.

#define main unit_main
#include "tests/unit/test_config.c"
#undef main
#include "fuzz.h"

static void no_report(const char *line)
{
    FUZZ_CHECK(strlen(line) < 512);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    static struct config config;
    u8 *copy = malloc(size + !size);
    int guests;

    memcpy(copy, data, size);
    guests = config_parse(&config, copy, size, no_report);
    FUZZ_CHECK(guests < 0 || (u32)guests == config.guest_count);
    for (int i = 0; i < guests; i++) {
        const struct vm_config *vm = &config.guests[i];

        FUZZ_CHECK(vm->vcpus >= 1 && vm->vcpus <= CONFIG_VCPU_MAX);
        FUZZ_CHECK(vm->memory && vm->memory % MIB(2) == 0);
        FUZZ_CHECK(vm->kernel && strlen(vm->kernel) && memchr(vm->name, 0, CONFIG_NAME_MAX));
        FUZZ_CHECK(vm->module_count <= CONFIG_MODULE_MAX);
    }
    free(copy);
    return 0;
}
