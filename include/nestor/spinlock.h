// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A ticket lock, fair between CPUs. Nestor runs with interrupts off everywhere but in its idle HLT,
// so a lock never has to save RFLAGS.IF. NMI and #MC handlers take no locks.

#pragma once

#include <nestor/types.h>

struct spinlock {
    u32 next;
    u32 owner;
};

static inline void spin_lock(struct spinlock *lock)
{
    u32 ticket = __atomic_fetch_add(&lock->next, 1, __ATOMIC_RELAXED);

    while (__atomic_load_n(&lock->owner, __ATOMIC_ACQUIRE) != ticket)
        __builtin_ia32_pause();
}

static inline void spin_unlock(struct spinlock *lock)
{
    __atomic_store_n(&lock->owner, lock->owner + 1, __ATOMIC_RELEASE);
}
