// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// MSRs of single features that a guest has in the registers as long as its vCPU is on a CPU:
// GROUP_SWITCHED. Nestor itself runs with none of these features on, so no entry and no exit
// touches them.

#pragma once

#include <nestor/vcpu.h>

u32 switched_rows(const struct vm *vm); // vcpu->switched: those that CPUID offers
void switched_reset(struct vcpu *vcpu); // INIT and RESET
// The back ends' part: between the registers and the model. On the vCPU's own pCPU.
void switched_pull(struct vcpu *vcpu);
void switched_write(const struct vcpu *vcpu);
// Rows of core/msr.c: these MSRs, and IA32_S_CET, IA32_INTERRUPT_SSP_TABLE_ADDR and IA32_XSS.
int switched_read_msr(struct vcpu *vcpu, u32 msr, u64 *value);
int switched_write_msr(struct vcpu *vcpu, u32 msr, u64 value);
