// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Controls of a small hypervisor, each by what an L2 sees of it or what exits: secondary
// processor-based controls, TSC scaling, the preemption timer, the virtual APIC, activity states,
// unrestricted guest (SDM vol. 3 "VM-Execution Control Fields", "VMX Non-Root Operation", "APIC
// Virtualization and Virtual Interrupts").

#include "vmx.h"

#define TABLE_INFO (BITS(9, 7) | BIT(10) | BITS(29, 28)) // address size, register, which of them

L2(l2_sgdt, "sgdt (%rsp)");
L2(l2_sidt, "sidt (%rsp)");
L2(l2_lgdt, "lgdt (%rsp)");
L2(l2_lidt, "lidt (%rsp)");
L2(l2_sldt, "sldt %ecx");
L2(l2_str, "str (%rsp)");
L2(l2_lldt, "lldt %cx");
L2(l2_ltr, "ltr %cx");
L2(l2_wbinvd, "wbinvd; vmcall");
L2(l2_rdrand, "rdrand %ebx; vmcall");
L2(l2_rdseed, "rdseed %r9; vmcall");
L2(l2_rdtsc, "rdtsc; shl $32, %rdx; or %rdx, %rax; vmcall");
L2(l2_rdtscp, "rdtscp; vmcall");
L2(l2_invpcid, "push $0; push $0; mov $2, %r10d; invpcid (%rsp), %r10; vmcall");
L2(l2_xsaves, "xor %edx, %edx; mov $1, %eax; xsaves (%rdi); vmcall");
L2(l2_pauses, "1: pause; loop 1b; vmcall");
L2(l2_vmcall, "vmcall");
L2(l2_hlt, "hlt; l2_woken: vmcall");
L2(l2_spin, "l2_spins: jmp l2_spins");
extern char l2_spins[], l2_woken[];

static const struct {
    const char *name;
    const void *code;
    u32 primary, secondary;
    u32 leaf; // 0, or a CPUID bit
    u8 reg, bit;
    u64 reason;
    u64 info_mask, info; // exit instruction information
} exits[] = {
    {"SGDT", l2_sgdt, 0, SECONDARY_DESCRIPTOR_TABLE, 0, 0, 0, REASON_GDTR_IDTR, TABLE_INFO, 2 << 7},
    {"SIDT", l2_sidt, 0, SECONDARY_DESCRIPTOR_TABLE, 0, 0, 0, REASON_GDTR_IDTR, TABLE_INFO,
     2 << 7 | 1 << 28},
    {"LGDT", l2_lgdt, 0, SECONDARY_DESCRIPTOR_TABLE, 0, 0, 0, REASON_GDTR_IDTR, TABLE_INFO,
     2 << 7 | 2 << 28},
    {"LIDT", l2_lidt, 0, SECONDARY_DESCRIPTOR_TABLE, 0, 0, 0, REASON_GDTR_IDTR, TABLE_INFO,
     2 << 7 | 3 << 28},
    {"SLDT", l2_sldt, 0, SECONDARY_DESCRIPTOR_TABLE, 0, 0, 0, REASON_LDTR_TR,
     BIT(10) | BITS(29, 28) | BITS(6, 3), BIT(10) | 1 << 3},
    {"STR", l2_str, 0, SECONDARY_DESCRIPTOR_TABLE, 0, 0, 0, REASON_LDTR_TR, TABLE_INFO,
     2 << 7 | 1 << 28},
    {"LLDT", l2_lldt, 0, SECONDARY_DESCRIPTOR_TABLE, 0, 0, 0, REASON_LDTR_TR,
     BIT(10) | BITS(29, 28) | BITS(6, 3), BIT(10) | 1 << 3 | 2 << 28},
    {"LTR", l2_ltr, 0, SECONDARY_DESCRIPTOR_TABLE, 0, 0, 0, REASON_LDTR_TR,
     BIT(10) | BITS(29, 28) | BITS(6, 3), BIT(10) | 1 << 3 | 3ull << 28},
    {"WBINVD", l2_wbinvd, 0, SECONDARY_WBINVD, 0, 0, 0, REASON_WBINVD, 0, 0},
    {"RDRAND", l2_rdrand, 0, SECONDARY_RDRAND, 1, 2, 30, REASON_RDRAND, BITS(6, 3) | BITS(12, 11),
     3 << 3 | 1 << 11},
    {"RDSEED", l2_rdseed, 0, SECONDARY_RDSEED, 7, 1, 18, REASON_RDSEED, BITS(6, 3) | BITS(12, 11),
     9 << 3 | 2 << 11},
    {"RDTSCP", l2_rdtscp, PRIMARY_RDTSC, SECONDARY_RDTSCP, 0x80000001, 3, 27, REASON_RDTSCP, 0, 0},
    {"INVPCID", l2_invpcid, PRIMARY_INVLPG, SECONDARY_INVPCID, 7, 1, 10, REASON_INVPCID,
     BITS(9, 7) | BIT(10) | BITS(31, 28), 2 << 7 | 10ull << 28},
};

static bool has(u32 leaf, unsigned reg, unsigned bit)
{
    struct cpuid_regs r = cpuid(leaf, 0);
    const u32 regs[4] = {r.eax, r.ebx, r.ecx, r.edx};

    return !leaf || (regs[reg] >> bit & 1);
}

static void test_exits(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(exits); i++) {
        init(exits[i].code);
        if (!has(exits[i].leaf, exits[i].reg, exits[i].bit) ||
            !use_secondary(exits[i].primary, exits[i].secondary)) {
            report_skip("%s exiting is not offered", exits[i].name);
            continue;
        }
        run();
        if (vmread(EXIT_REASON) == REASON_VMCALL)
            report(false, "%s exits", exits[i].name);
        else
            report(vmread(EXIT_REASON) == exits[i].reason &&
                       (vmread(EXIT_INSTRUCTION_INFO) & exits[i].info_mask) == exits[i].info,
                   "%s exits: reason %#llx, instruction information %#llx", exits[i].name,
                   LLU(vmread(EXIT_REASON)), LLU(vmread(EXIT_INSTRUCTION_INFO)));
    }
}

// Without the control they are #UD, whatever CPUID says.
static void test_enabling(void)
{
    static const struct {
        const char *name;
        const void *code;
        u32 control, leaf;
        u8 reg, bit;
    } rows[] = {
        {"RDTSCP", l2_rdtscp, SECONDARY_RDTSCP, 0x80000001, 3, 27},
        {"INVPCID", l2_invpcid, SECONDARY_INVPCID, 7, 1, 10},
        {"XSAVES", l2_xsaves, SECONDARY_XSAVES, 1, 2, 26},
    };
    void *area = pages(1);

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        init(rows[i].code);
        if (!has(rows[i].leaf, rows[i].reg, rows[i].bit) || !use_secondary(0, rows[i].control)) {
            report_skip("%s is not offered", rows[i].name);
            continue;
        }
        l2_registers[RDI] = (u64)area;
        vmwrite(GUEST_CR4, read_cr4() | (rows[i].leaf == 1 ? CR4_OSXSAVE : 0));
        report(run() == REASON_VMCALL && !in_handler(VECTOR_UD), "%s with its control",
               rows[i].name);
        init(rows[i].code);
        use_secondary(0, 0);
        vmwrite(GUEST_CR4, read_cr4() | (rows[i].leaf == 1 ? CR4_OSXSAVE : 0));
        l2_registers[RDI] = (u64)area;
        run();
        report(in_handler(VECTOR_UD), "%s without it: #UD", rows[i].name);
    }
}

static void test_tsc_scaling(void)
{
    u64 before, after;

    init(l2_rdtsc);
    if (!use_secondary(PRIMARY_TSC_OFFSETTING, SECONDARY_TSC_SCALING)) {
        report_skip("no TSC scaling");
        return;
    }
    vmwrite(TSC_MULTIPLIER, 3ull << 48);
    vmwrite(TSC_OFFSET, 1ull << 60);
    before = rdtsc();
    run();
    after = rdtsc();
    report(l2_registers[RAX] >= before * 3 + (1ull << 60) &&
               l2_registers[RAX] <= after * 3 + (1ull << 60),
           "L2's TSC is three times L1's, and the offset");
    init(l2_rdtsc);
    use_secondary(PRIMARY_TSC_OFFSETTING, SECONDARY_TSC_SCALING);
    vmwrite(TSC_MULTIPLIER, 1ull << 47);
    vmwrite(TSC_OFFSET, 0);
    before = rdtsc();
    run();
    after = rdtsc();
    report(l2_registers[RAX] >= before / 2 && l2_registers[RAX] <= after / 2, "half of L1's");
}

// --- the preemption timer ---

static bool use_timer(u64 value)
{
    if (!offers(capability_msr(MSR_VMX_PINBASED_CTLS, MSR_VMX_TRUE_PINBASED_CTLS),
                PIN_PREEMPTION_TIMER))
        return false;
    set_pin(PIN_PREEMPTION_TIMER);
    vmwrite(PREEMPTION_TIMER_VALUE, value);
    return true;
}

static void test_timer(void)
{
    unsigned rate = msr_read(MSR_VMX_MISC) & VMX_MISC_TIMER_RATE;
    u64 ticks = 100000, before, took;

    init(l2_vmcall);
    if (!use_timer(0)) {
        report_skip("no VMX-preemption timer");
        return;
    }
    report_exit(run() == REASON_PREEMPTION_TIMER && at(l2_vmcall), "a timer of 0");
    init(l2_spin);
    use_timer(ticks >> rate);
    before = rdtsc();
    run();
    took = rdtsc() - before;
    report(vmread(EXIT_REASON) == REASON_PREEMPTION_TIMER && at(l2_spins) && took >= ticks,
           "a timer of %llu ticks takes %llu", LLU(ticks), LLU(took));
    init(l2_vmcall);
    use_timer(1 << 24);
    set_exit(EXIT_CTL_HOST_64 | EXIT_CTL_SAVE_DEBUG | EXIT_CTL_SAVE_TIMER);
    run();
    report(vmread(EXIT_REASON) == REASON_VMCALL && vmread(PREEMPTION_TIMER_VALUE) < 1 << 24 &&
               vmread(PREEMPTION_TIMER_VALUE) > 0,
           "an exit saves what is left: %#llx", LLU(vmread(PREEMPTION_TIMER_VALUE)));
    init(l2_hlt);
    set_primary(0);
    use_timer(ticks >> rate);
    report_exit(run() == REASON_PREEMPTION_TIMER && at(l2_woken) &&
                    vmread(GUEST_ACTIVITY_STATE) == 1,
                "it wakes a halted L2, which is saved as halted");
}

// --- PAUSE loops ---

static void test_pause_loop(void)
{
    init(l2_pauses);
    if (!use_secondary(0, SECONDARY_PAUSE_LOOP)) {
        report_skip("no PAUSE-loop exiting");
        return;
    }
    vmwrite(PLE_GAP, 1000);
    vmwrite(PLE_WINDOW, 2000);
    l2_registers[RCX] = 1000000;
    report_exit(run() == REASON_PAUSE && l2_registers[RCX] > 1, "a loop of PAUSE");
}

// --- the virtual APIC ---

L2(l2_cr8, "mov %cr8, %rax; mov %rdi, %cr8; l2_cr8_set: vmcall");
L2(l2_msr, "mov $0x808, %ecx; rdmsr; mov %eax, %r8d; mov $0x50, %eax; xor %edx, %edx; wrmsr;"
           "rdmsr; vmcall");
L2(l2_sti, "sti; nop; nop; vmcall");
L2(l2_eoi, "mov $0x80b, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr; l2_eoi_done: vmcall");
L2(l2_self_ipi, "mov $0x83f, %ecx; mov $0x61, %eax; xor %edx, %edx; wrmsr; sti; nop; nop; vmcall");
extern char l2_cr8_set[], l2_eoi_done[];

static u32 *apic_page;

static u32 *vreg(u32 offset)
{
    return apic_page + offset / 4;
}

static bool use_apic(const void *code, u32 secondary)
{
    init(code);
    if (!apic_page)
        apic_page = pages(1);
    memset(apic_page, 0, PAGE_SIZE);
    if (!use_secondary(PRIMARY_TPR_SHADOW, secondary))
        return false;
    vmwrite(VIRTUAL_APIC_ADDRESS, (u64)apic_page);
    vmwrite(TPR_THRESHOLD, 0);
    for (unsigned i = 0; i < 4; i++)
        vmwrite(EOI_EXIT_BITMAP_0 + 2 * i, 0);
    if (secondary & SECONDARY_INTERRUPT_DELIVERY) {
        set_pin(PIN_EXTERNAL_INTERRUPT);
        vmwrite(GUEST_INTERRUPT_STATUS, 0);
    }
    return true;
}

static void test_tpr_shadow(void)
{
    if (!use_apic(l2_cr8, 0)) {
        report_skip("no TPR shadow");
        return;
    }
    *vreg(APIC_TPR) = 0x75;
    l2_registers[RDI] = 3;
    run();
    report(vmread(EXIT_REASON) == REASON_VMCALL && l2_registers[RAX] == 7 &&
               *vreg(APIC_TPR) == 0x30,
           "CR8 is the page's TPR: %#llx, then %#x", LLU(l2_registers[RAX]), *vreg(APIC_TPR));
    use_apic(l2_cr8, 0);
    *vreg(APIC_TPR) = 0x70;
    vmwrite(TPR_THRESHOLD, 4);
    l2_registers[RDI] = 3;
    report_exit(run() == REASON_TPR_BELOW_THRESHOLD && at(l2_cr8_set), "a TPR below the threshold");
    use_apic(l2_cr8, 0);
    set_primary(PRIMARY_HLT | PRIMARY_TPR_SHADOW | PRIMARY_CR8_LOAD | PRIMARY_SECONDARY);
    vmwrite(SECONDARY_CONTROLS, 0);
    report_exit(run() == REASON_CR_ACCESS && vmread(EXIT_QUALIFICATION) == (8 | RDI << 8),
                "CR8-load exiting goes first");
}

static void use_msr_bitmap(void)
{
    static u8 *bitmap;

    if (!bitmap)
        bitmap = pages(1);
    vmwrite(MSR_BITMAP, (u64)bitmap);
    vmwrite(PRIMARY_CONTROLS, vmread(PRIMARY_CONTROLS) | PRIMARY_MSR_BITMAPS);
}

static void test_x2apic_mode(void)
{
    if (!use_apic(l2_msr, SECONDARY_X2APIC)) {
        report_skip("no virtualized x2APIC mode");
        return;
    }
    use_msr_bitmap();
    *vreg(APIC_TPR) = 0x30;
    run();
    report(vmread(EXIT_REASON) == REASON_VMCALL && l2_registers[R8] == 0x30 &&
               l2_registers[RAX] == 0x50 && *vreg(APIC_TPR) == 0x50,
           "MSR 808h is the page's TPR: %#llx", LLU(l2_registers[RAX]));
}

static void test_interrupt_delivery(void)
{
    if (!use_apic(l2_sti, SECONDARY_X2APIC | SECONDARY_INTERRUPT_DELIVERY)) {
        report_skip("no virtual-interrupt delivery");
        return;
    }
    *vreg(APIC_IRR + 0x20) = 1u << 1 | 1u << 5; // 41h and 45h
    vmwrite(GUEST_INTERRUPT_STATUS, 0x45);
    report(run() == REASON_VMCALL && in_handler(0x45) && pushed(0) == (u64)l2_sti + 2,
           "a virtual interrupt is delivered behind STI's shadow");
    report(vmread(GUEST_INTERRUPT_STATUS) == 0x4541 && *vreg(APIC_IRR + 0x20) == 1u << 1 &&
               *vreg(APIC_ISR + 0x20) == 1u << 5 && *vreg(APIC_PPR) == 0x40,
           "RVI, SVI %#llx, PPR %#x", LLU(vmread(GUEST_INTERRUPT_STATUS)), *vreg(APIC_PPR));
    use_apic(l2_sti, SECONDARY_X2APIC | SECONDARY_INTERRUPT_DELIVERY);
    *vreg(APIC_TPR) = 0x40;
    vmwrite(GUEST_INTERRUPT_STATUS, 0x45);
    report(run() == REASON_VMCALL && !in_handler(0x45), "not if the TPR forbids it");
    use_apic(l2_eoi, SECONDARY_X2APIC | SECONDARY_INTERRUPT_DELIVERY);
    use_msr_bitmap();
    *vreg(APIC_ISR + 0x20) = 1u << 5 | 1u << 1;
    vmwrite(GUEST_INTERRUPT_STATUS, 0x4500);
    run();
    report(vmread(EXIT_REASON) == REASON_VMCALL && vmread(GUEST_INTERRUPT_STATUS) == 0x4100,
           "EOI: SVI %#llx", LLU(vmread(GUEST_INTERRUPT_STATUS)));
    use_apic(l2_eoi, SECONDARY_X2APIC | SECONDARY_INTERRUPT_DELIVERY);
    use_msr_bitmap();
    *vreg(APIC_ISR + 0x20) = 1u << 5;
    vmwrite(GUEST_INTERRUPT_STATUS, 0x4500);
    vmwrite(EOI_EXIT_BITMAP_1, 1 << 5);
    report_exit(run() == REASON_VIRTUALIZED_EOI && vmread(EXIT_QUALIFICATION) == 0x45 &&
                    at(l2_eoi_done),
                "an EOI that L1 wants");
    use_apic(l2_self_ipi, SECONDARY_X2APIC | SECONDARY_INTERRUPT_DELIVERY);
    use_msr_bitmap();
    report(run() == REASON_VMCALL && in_handler(0x61), "a self-IPI comes back");
}

L2(l2_apic_read, "mov (%rdi), %eax; vmcall");
L2(l2_apic_write, "movl $0x20, (%rdi); l2_apic_written: vmcall");
extern char l2_apic_written[];

static void test_apic_accesses(void)
{
    static const struct {
        const char *what;
        const void *code;
        u32 offset, secondary;
        u64 reason, qualification;
    } rows[] = {
        {"a read of the version", l2_apic_read, APIC_VERSION, 0, REASON_APIC_ACCESS, APIC_VERSION},
        {"a write of SVR", l2_apic_write, APIC_SVR, 0, REASON_APIC_ACCESS, APIC_SVR | 1 << 12},
        {"a read of the TPR", l2_apic_read, APIC_TPR, 0, REASON_VMCALL, 0},
        {"a write of the TPR", l2_apic_write, APIC_TPR, 0, REASON_VMCALL, 0},
        {"a read of the version, virtualized", l2_apic_read, APIC_VERSION, SECONDARY_APIC_REGISTERS,
         REASON_VMCALL, 0},
        {"a write of SVR, virtualized", l2_apic_write, APIC_SVR, SECONDARY_APIC_REGISTERS,
         REASON_APIC_WRITE, APIC_SVR},
        {"a write of the version", l2_apic_write, APIC_VERSION, SECONDARY_APIC_REGISTERS,
         REASON_APIC_ACCESS, APIC_VERSION | 1 << 12},
    };
    u32 *access_page = pages(1);

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        bool write = rows[i].code == l2_apic_write;

        if (!use_apic(rows[i].code, SECONDARY_APIC_ACCESSES | rows[i].secondary)) {
            report_skip("%s: not offered", rows[i].what);
            continue;
        }
        vmwrite(APIC_ACCESS_ADDRESS, (u64)access_page);
        *vreg(rows[i].offset) = 0x77;
        l2_registers[RDI] = (u64)access_page + rows[i].offset;
        run();
        report_exit(vmread(EXIT_REASON) == rows[i].reason &&
                        (rows[i].reason == REASON_VMCALL ||
                         vmread(EXIT_QUALIFICATION) == rows[i].qualification),
                    rows[i].what);
        if (rows[i].reason != REASON_APIC_ACCESS)
            report(write ? *vreg(rows[i].offset) == 0x20 : l2_registers[RAX] == 0x77,
                   "%s: of the virtual-APIC page", rows[i].what);
        report(access_page[rows[i].offset / 4] == 0, "the APIC-access page stays as it is");
    }
}

// --- activity states ---

static void test_activity(void)
{
    u64 misc = msr_read(MSR_VMX_MISC);

    init(l2_vmcall);
    if ((misc & VMX_MISC_ACTIVITY_SHUTDOWN) && use_timer(1000)) {
        vmwrite(GUEST_ACTIVITY_STATE, 2);
        report_exit(run() == REASON_PREEMPTION_TIMER && vmread(GUEST_ACTIVITY_STATE) == 2,
                    "the timer in shutdown");
    } else {
        report_skip("no shutdown state");
    }
    init(l2_vmcall);
    if (use_timer(1000)) {
        vmwrite(GUEST_ACTIVITY_STATE, 1);
        report_exit(run() == REASON_PREEMPTION_TIMER && at(l2_vmcall) &&
                        vmread(GUEST_ACTIVITY_STATE) == 1,
                    "the timer in HLT");
    }
}

// --- unrestricted guest ---

L2(l2_unpaged, ".code32; mov %cr0, %eax; mov %eax, %esi; or $0x80000000, %eax; mov %eax, %cr0;"
               "mov %cr0, %ebx; mov %esi, %cr0; vmcall; .code64");
L2(l2_pg_off, "mov %cr0, %rax; and $0x7fffffff, %eax; mov %rax, %cr0; vmcall");

static void put_unpaged(void)
{
    set_entry(ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT | ENTRY_CTL_LOAD_EFER);
    put_segment(1, CODE32, 0xc09b, ~0u, 0);
    vmwrite(GUEST_EFER, 0);
    vmwrite(GUEST_CR0, read_cr0() & ~CR0_PG);
}

static void test_unrestricted(void)
{
    u64 *root = identity_tables(EPT_RWX, EPT_WB | EPT_RWX), *pdpt = pages(1);

    for (unsigned i = 0; i < 4; i++)
        pdpt[i] = (u64)&directories[512 * i] | 1;
    init(l2_pg_off);
    run();
    report(in_handler(VECTOR_GP), "CR0.PG can't be cleared: #GP");
    init(l2_unpaged);
    if (!use_secondary(0, SECONDARY_EPT | SECONDARY_UNRESTRICTED_GUEST)) {
        report_skip("no unrestricted guest");
        return;
    }
    vmwrite(EPT_POINTER, eptp_of(root, false));
    put_unpaged();
    vmwrite(GUEST_CR3, (u64)pdpt);
    report_exit(run() == REASON_VMCALL && !(vmread(GUEST_CR0) & CR0_PG) &&
                    (l2_registers[RBX] & CR0_PG) && !(l2_registers[RSI] & CR0_PG),
                "an L2 without paging switches it on and off");
}

void guest_main(void)
{
    if (!vmx_start()) {
        report(false, "no VMX");
        return;
    }
    test_exits();
    test_enabling();
    test_tsc_scaling();
    test_timer();
    test_pause_loop();
    test_tpr_shadow();
    test_x2apic_mode();
    test_interrupt_delivery();
    test_apic_accesses();
    test_activity();
    test_unrestricted();
}
