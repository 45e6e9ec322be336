// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// fuzz-tests: test_load
//
// The loaders (bzImage, Multiboot, ELF) with any bytes as the kernel: a guest that is loaded starts
// within its memory, one that is not has a reason.

#define main unit_main
#include "tests/unit/test_load.c"
#undef main
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
    if (!ram)
        ram = malloc(ram_size);
    memset(&load, 0, sizeof(load));
    load.low_size = ram_size;
    load.command_line = "word";
    image_size = size < sizeof(image) ? size : sizeof(image);
    memcpy(image, data, image_size);
    if (run() == 0)
        FUZZ_CHECK(load.rip < ram_size);
    else
        FUZZ_CHECK(load.why[0] && strlen(load.why) < LOAD_WHY_SIZE);
    return 0;
}
