// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The features that a configuration may hide from a guest, by name: the CPUID bits (SDM vol. 2
// "CPUID") that go, and with them, since everything asks cpuid_has(), MSRs, CR4 bits and components
// of XCR0. Pure.

#include <nestor/config.h>
#include <nestor/string.h>

enum reg { EAX, EBX, ECX, EDX };

// Several rows may have one name.
static const struct hideable {
    const char *name;
    u32 leaf, subleaf;
    u8 reg;
    u32 bits;
} hideable[] = {
    {"hypervisor", 0x1, 0, ECX, BIT(31)},
    {"x2apic", 0x1, 0, ECX, BIT(21)},
    {"tsc-deadline", 0x1, 0, ECX, BIT(24)},
    {"tsc-adjust", 0x7, 0, EBX, BIT(1)},
    {"invariant-tsc", 0x80000007, 0, EDX, BIT(8)},
    {"rdtscp", 0x80000001, 0, EDX, BIT(27)},
    {"rdpid", 0x7, 0, ECX, BIT(22)},
    {"1g-pages", 0x80000001, 0, EDX, BIT(26)},
    {"la57", 0x7, 0, ECX, BIT(16)},
    {"pcid", 0x1, 0, ECX, BIT(17)},
    {"invpcid", 0x7, 0, EBX, BIT(10)},
    {"smep", 0x7, 0, EBX, BIT(7)},
    {"smap", 0x7, 0, EBX, BIT(20)},
    {"umip", 0x7, 0, ECX, BIT(2)},
    {"fsgsbase", 0x7, 0, EBX, BIT(0)},
    {"pku", 0x7, 0, ECX, BIT(3)},
    {"pku", 0xd, 0, EAX, BIT(9)},
    {"pks", 0x7, 0, ECX, BIT(31)},
    {"shstk", 0x7, 0, ECX, BIT(7)},
    {"ibt", 0x7, 0, EDX, BIT(20)},
    {"waitpkg", 0x7, 0, ECX, BIT(5)},
    {"xsave", 0x1, 0, ECX, BIT(26)},
    {"xsaves", 0xd, 1, EAX, BIT(3)},
    {"avx", 0xd, 0, EAX, BIT(2) | BITS(7, 5)},
    {"avx512", 0xd, 0, EAX, BITS(7, 5)},
    // KVM's paravirtual leaf (devices/paravirt.c)
    {"kvmclock", 0x40000001, 0, EAX, BIT(0) | BIT(3) | BIT(24)},
    {"steal-time", 0x40000001, 0, EAX, BIT(5)},
    {"pv-eoi", 0x40000001, 0, EAX, BIT(6)},
    {"pv-ipi", 0x40000001, 0, EAX, BIT(11)},
};
_Static_assert(ARRAY_SIZE(hideable) <= 64, "vm_config.hidden has a bit for each row");

u64 config_hideable(const char *name)
{
    u64 rows = 0;

    for (u32 i = 0; i < ARRAY_SIZE(hideable); i++)
        if (strcmp(hideable[i].name, name) == 0)
            rows |= BIT(i);
    return rows;
}

const char *config_hideable_name(u32 n)
{
    return n < ARRAY_SIZE(hideable) ? hideable[n].name : NULL;
}

u32 config_hidden_bits(const struct vm_config *vm, u32 leaf, u32 subleaf, unsigned reg)
{
    u32 bits = 0;

    for (u64 rows = vm->hidden; rows; rows &= rows - 1) {
        const struct hideable *h = &hideable[__builtin_ctzll(rows)];

        if (h->leaf == leaf && h->subleaf == subleaf && h->reg == reg)
            bits |= h->bits;
    }
    return bits;
}
