// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the fuzz targets share. A target reads its input through `input`, which gives zeros once it
// is used up, and says FUZZ_CHECK where something must hold: what fails there, or in the
// sanitizers, is written to a file by libFuzzer. A unit test's model of the world is included as it
// is, with its main() out of the way. "fuzz-tests:" names such unit tests, whose sources and
// libraries are then the target's.

#pragma once

#include <nestor/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FUZZ_CHECK(condition)                                                       \
    do {                                                                            \
        if (!(condition)) {                                                         \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                \
        }                                                                           \
    } while (0)

int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

static struct {
    const u8 *at;
    size_t left;
} input;

static inline u64 take(unsigned bytes)
{
    u64 value = 0;
    size_t n = bytes < input.left ? bytes : input.left;

    memcpy(&value, input.at, n);
    input.at += n;
    input.left -= n;
    return value;
}
