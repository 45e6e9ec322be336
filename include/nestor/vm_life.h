// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What core's main asks of VMs.

#pragma once

#include <nestor/vm.h>

struct cpu;

// Builds a VM with everything it owns; `on` names the CPU of each vCPU. Boot CPU. NULL (logged) if
// memory does not suffice.
struct vm *vm_create(const struct vm_config *config, u32 id, struct cpu *const *on);
// A CPU gives itself to its vCPU until the VM has ended for good. The VM is freed, its RAM
// scrubbed, when vCPU 0's call returns.
void vm_run_vcpu(struct vcpu *vcpu);
// Ends a VM from outside, wherever its vCPUs run. Any CPU; the caller keeps vm_ended from returning
// meanwhile.
void vm_kill(struct vm *vm);
// main's: a VM has ended; its memory is about to be freed.
void vm_ended(u32 id, u32 status);
// Logs registers, bytes at RIP, the last exits and the back end's raw control structure. On the
// vCPU's own pCPU.
void vcpu_report(struct vcpu *vcpu);
// Logs how many exits of which kind there have been, since the VM was made.
void vcpu_log_exits(const struct vcpu *vcpu);
