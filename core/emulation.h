// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The emulator's operations that are not memory, ports or segments: emulation_system.c for
// emulation.c.

#pragma once

#include <nestor/emulate.h>

enum emulate_result op_system(struct emulate_ctx *ctx);
enum emulate_result op_intercept(struct emulate_ctx *ctx, enum emulate_point point);
bool op_offers(struct emulate_ctx *ctx, u8 op);
void op_vector(struct emulate_ctx *ctx, enum emulate_bank bank, unsigned n, bool write, void *buf);
void op_x87(struct emulate_ctx *ctx, unsigned opcode, unsigned reg, void *buf);
u16 op_x87_status(struct emulate_ctx *ctx);
u64 op_xcr0(struct emulate_ctx *ctx);
u64 op_msr(struct emulate_ctx *ctx, u32 msr);
