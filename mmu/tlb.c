// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// TLB flushes as requests: noted per context, carried out by the back end before the next entry. A
// vCPU's context->flush is written by its own CPU only; others post REQUEST_TLB_FLUSH, and the run
// loop turns it into notes.

#include <nestor/cpu.h>
#include <nestor/tlb.h>
#include <nestor/vcpu.h>
#include <nestor/vm.h>

void tlb_flush_vcpu(struct vcpu *vcpu, unsigned kinds)
{
    vcpu->cur->flush |= kinds;
}

// A CPU that is not in its guest takes the request before it enters again; one that is has been
// kicked by vcpu_post and leaves. Either way no translation that is older than the request is used
// after in_guest has been seen clear.
static void wait_until_seen(const struct vcpu *vcpu)
{
    while ((__atomic_load_n(&vcpu->requests, __ATOMIC_ACQUIRE) & REQUEST_TLB_FLUSH) &&
           __atomic_load_n(&vcpu->cpu->in_guest, __ATOMIC_ACQUIRE))
        __builtin_ia32_pause();
}

void tlb_flush_vm(struct vm *vm, unsigned kinds)
{
    (void)
        // each vCPU flushes both kinds: remote flushes are rare, and the request has no room for
        // them
        kinds;
    for (u32 i = 0; i < vm->vcpu_count; i++)
        vcpu_post(vm->vcpus[i], REQUEST_TLB_FLUSH);
    for (u32 i = 0; i < vm->vcpu_count; i++)
        if (vm->vcpus[i]->cpu != this_cpu())
            wait_until_seen(vm->vcpus[i]);
}
