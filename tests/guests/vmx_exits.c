// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What an exit leaves behind, and an entry that fails: RFLAGS.RF, blocking by NMI, the activity
// state, the guest-linear address; and how wide an access to the APIC-access page may be (SDM vol.
// 3 "Saving RIP, RSP, RFLAGS, and SSP", "VM-Entry Failures During or After Loading Guest State",
// "Changes to Instruction Behavior in VMX Non-Root Operation", "Virtualizing Memory-Mapped APIC
// Accesses").

#include "vmx.h"

L2(l2_cpuid, "cpuid; vmcall");
L2(l2_nops, "nop; nop; vmcall");
L2(l2_get, "mov (%rdi), %rax; vmcall");

// --- RF ---

static bool saved_rf(void)
{
    return vmread(GUEST_RFLAGS) & RFLAGS_RF;
}

static void *access_page, *virtual_page;

static bool use_access_page(const void *code, u32 primary, u32 secondary)
{
    init(code);
    if (!use_secondary(primary, SECONDARY_APIC_ACCESSES | secondary))
        return false;
    vmwrite(APIC_ACCESS_ADDRESS, (u64)access_page);
    if (primary & PRIMARY_TPR_SHADOW)
        vmwrite(VIRTUAL_APIC_ADDRESS, (u64)virtual_page);
    memset(virtual_page, 0, PAGE_SIZE);
    return true;
}

static void test_rf(void)
{
    init(l2_cpuid);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_RF);
    report_exit(run() == REASON_CPUID && !saved_rf(), "an instruction that exits saves RF 0");
    if (!use_access_page(l2_get, 0, 0)) {
        report_skip("no APIC-access page");
        return;
    }
    l2_registers[RDI] = (u64)access_page;
    run();
    // Bochs 2.7 leaves RF as it is
    report_known(MACHINE_BOCHS, vmread(EXIT_REASON) == REASON_APIC_ACCESS && saved_rf(),
                 "an APIC access saves RF 1: RFLAGS %#llx", LLU(vmread(GUEST_RFLAGS)));
}

// --- NMIs ---

static volatile u32 nmi_inside;
static bool nmi_fails_entry;

static void send_nmi(void)
{
    apic_icr(apic_id(), ICR_NMI | ICR_ASSERT);
}

// The first one makes an entry fail, with another one on its way.
static void on_nmi(struct trap *trap)
{
    (void)trap;
    nmi_count = nmi_count + 1;
    if (nmi_count > 1 || !nmi_fails_entry)
        return;
    run();
    send_nmi();
    nmi_inside = nmi_count;
}

static void test_failed_entry(void)
{
    init(l2_nops);
    if (!offers(pin_msr(), PIN_VIRTUAL_NMIS)) {
        report_skip("no virtual NMIs");
        return;
    }
    set_pin(PIN_NMI | PIN_VIRTUAL_NMIS);
    vmwrite(GUEST_RFLAGS, 0); // bit 1 must be 1
    nmi_count = nmi_inside = 0;
    nmi_fails_entry = true;
    send_nmi();
    nmi_fails_entry = false;
    report_exit(vmread(EXIT_REASON) == (REASON_INVALID_GUEST_STATE | EXIT_REASON_ENTRY_FAILURE),
                "an entry fails in L1's NMI handler");
    report(nmi_inside == 1 && nmi_count == 2,
           "NMIs are blocked behind it as they were before: %u inside, %u in all", nmi_inside,
           nmi_count);
}

L2(l2_nmi_iret, "iretq; 1: nop; vmcall; l2_iret_to: nop; l2_iret_end: vmcall");
extern char l2_iret_to[], l2_iret_end[];

static void put_frame(const void *rip)
{
    u64 *frame = (u64 *)(void *)(l2_stack + sizeof(l2_stack)) - 5;

    frame[0] = (u64)rip;
    frame[1] = CODE64;
    frame[2] = RFLAGS_FIXED;
    frame[3] = (u64)(l2_stack + sizeof(l2_stack));
    frame[4] = DATA;
    vmwrite(GUEST_RSP, (u64)frame);
}

static void test_iret(void)
{
    static const struct {
        const char *what;
        u32 pin;
        u64 after;
    } rows[] = {
        {"without NMI exiting", 0, 0},
        {"with NMI exiting alone", PIN_NMI, 8},
        {"with virtual NMIs", PIN_NMI | PIN_VIRTUAL_NMIS, 0},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        init(l2_nmi_iret);
        if ((rows[i].pin & PIN_VIRTUAL_NMIS) && !offers(pin_msr(), PIN_VIRTUAL_NMIS)) {
            report_skip("no virtual NMIs");
            continue;
        }
        set_pin(rows[i].pin);
        put_frame(l2_iret_to);
        vmwrite(GUEST_INTERRUPTIBILITY, 8);
        run();
        report(vmread(EXIT_REASON) == REASON_VMCALL && at(l2_iret_end) &&
                   vmread(GUEST_INTERRUPTIBILITY) == rows[i].after,
               "IRET %s: interruptibility %#llx", rows[i].what,
               LLU(vmread(GUEST_INTERRUPTIBILITY)));
        iret(); // L1's own blocking ends
    }
}

L2(l2_send_nmi, "mov %eax, (%rdi); mov $64, %ecx; 1: pause; loop 1b; vmcall");

// An NMI that comes meanwhile waits for L1.
static void test_blocked_nmi(void)
{
    init(l2_send_nmi);
    set_pin(PIN_NMI);
    vmwrite(GUEST_INTERRUPTIBILITY, 8);
    l2_registers[RAX] = ICR_NMI | ICR_ASSERT | ICR_SELF;
    l2_registers[RDI] = APIC_BASE + APIC_ICR;
    nmi_count = 0;
    report_exit(run() == REASON_VMCALL, "NMIs that are blocked do not exit");
    report(nmi_count == 0, "and are blocked behind the exit, too");
    iret();
    report_known(MACHINE_BOCHS, nmi_count == 1, "until L1's IRET"); // Bochs loses it
}

// --- a pending MTF is no vectored event ---

static void test_pending_mtf(void)
{
    init(l2_nops);
    if (!offers(MSR_VMX_PROCBASED_CTLS, PRIMARY_MTF)) {
        report_skip("no monitor trap flag");
        return;
    }
    vmwrite(ENTRY_INTERRUPTION_INFO, INJECT(TYPE_OTHER, 0));
    vmwrite(GUEST_ACTIVITY_STATE, 1);
    run();
    // Bochs treats it as a vectored one
    report_known(
        MACHINE_BOCHS,
        vmread(EXIT_REASON) == REASON_MTF && at(l2_nops) && vmread(GUEST_ACTIVITY_STATE) == 1,
        "a pending MTF does not wake L2: activity %#llx", LLU(vmread(GUEST_ACTIVITY_STATE)));
    init(l2_nops);
    vmwrite(ENTRY_INTERRUPTION_INFO, INJECT(TYPE_OTHER, 0));
    vmwrite(GUEST_INTERRUPTIBILITY, 2);
    run();
    report_known(
        MACHINE_BOCHS,
        vmread(EXIT_REASON) == REASON_MTF && at(l2_nops) && vmread(GUEST_INTERRUPTIBILITY) == 2,
        "nor does it end a shadow: interruptibility %#llx", LLU(vmread(GUEST_INTERRUPTIBILITY)));
}

// --- inactive states ---

static bool use_timer(void)
{
    init(l2_nops);
    if (!offers(pin_msr(), PIN_PREEMPTION_TIMER))
        return false;
    set_pin(PIN_PREEMPTION_TIMER);
    vmwrite(PREEMPTION_TIMER_VALUE, 1000);
    return true;
}

static void test_inactive(void)
{
    if (!use_timer()) {
        report_skip("no preemption timer");
        return;
    }
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_TF);
    vmwrite(GUEST_ACTIVITY_STATE, 1);
    vmwrite(GUEST_PENDING_DBG, DR6_BS);
    vmwrite(EXCEPTION_BITMAP, BIT(VECTOR_DB));
    run();
    report(excepted(TYPE_EXCEPTION, VECTOR_DB, false) && at(l2_nops) &&
               vmread(GUEST_ACTIVITY_STATE) == 1,
           "a #DB that exits does not wake L2: reason %#llx, activity %#llx",
           LLU(vmread(EXIT_REASON)), LLU(vmread(GUEST_ACTIVITY_STATE)));
    use_timer();
    if (!(msr_read(MSR_VMX_MISC) & VMX_MISC_ACTIVITY_SHUTDOWN)) {
        report_skip("no shutdown state");
        return;
    }
    vmwrite(GUEST_ACTIVITY_STATE, 2);
    vmwrite(GUEST_PENDING_DBG, DR6_BS);
    vmwrite(EXCEPTION_BITMAP, BIT(VECTOR_DB));
    run();
    // Bochs takes it
    report_known(MACHINE_BOCHS,
                 vmread(EXIT_REASON) == REASON_PREEMPTION_TIMER &&
                     vmread(GUEST_ACTIVITY_STATE) == 2 && vmread(GUEST_PENDING_DBG) == 0,
                 "none is pending in shutdown: reason %#llx, activity %#llx, pending %#llx",
                 LLU(vmread(EXIT_REASON)), LLU(vmread(GUEST_ACTIVITY_STATE)),
                 LLU(vmread(GUEST_PENDING_DBG)));
}

// --- LMSW ---

L2(l2_lmsw, "lmsw %gs:8(%rdi); vmcall");
L2(l2_lmsw_reg, "lmsw %ax; vmcall");

static void test_lmsw(void)
{
    u16 word[8] = {0};
    u16 source = (u16)read_cr0() | (u16)CR0_TS;

    word[4] = source;
    init(l2_lmsw);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_TS);
    vmwrite(GUEST_GS_BASE, (u64)word - 0x1000);
    l2_registers[RDI] = 0x1000;
    report_exit(run() == REASON_CR_ACCESS && vmread(EXIT_INSTRUCTION_LENGTH) == 5 &&
                    vmread(EXIT_QUALIFICATION) == (3 << 4 | 1 << 6 | (u64)source << 16),
                "LMSW of memory");
    report(vmread(GUEST_LINEAR_ADDRESS) == (u64)(word + 4), "its linear address: %#llx",
           LLU(vmread(GUEST_LINEAR_ADDRESS)));
    init(l2_lmsw_reg);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_TS);
    l2_registers[RAX] = source;
    report_exit(run() == REASON_CR_ACCESS && vmread(EXIT_INSTRUCTION_LENGTH) == 3 &&
                    vmread(EXIT_QUALIFICATION) == (3 << 4 | (u64)source << 16),
                "LMSW of a register");
}

// --- the width of APIC accesses ---

L2(l2_get8, "movb (%rdi), %al; vmcall");
L2(l2_get16, "movw (%rdi), %ax; vmcall");
L2(l2_get32, "movl (%rdi), %eax; vmcall");
L2(l2_put64, "mov %rax, (%rdi); vmcall");
L2(l2_push, "push %rax; vmcall");
L2(l2_icr, "movl %eax, (%rdi); sti; nop; vmcall");

static void test_widths(void)
{
    static const struct {
        const char *what;
        const void *code;
        u32 offset;
        u64 type; // of the exit, ~0: none
    } rows[] = {
        {"a byte of the TPR", l2_get8, 0x80, ~0ull},
        {"its last byte", l2_get8, 0x83, ~0ull},
        {"the byte behind it", l2_get8, 0x84, 0},
        {"its upper word", l2_get16, 0x82, ~0ull},
        {"a word over its end", l2_get16, 0x83, 0},
        {"a doubleword over its end", l2_get32, 0x82, 0},
        {"a quadword", l2_get, 0x80, 0},
        {"a quadword written", l2_put64, 0x80, 1},
        {"a push", l2_push, 0x80, 1},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        if (!use_access_page(rows[i].code, PRIMARY_TPR_SHADOW, 0)) {
            report_skip("no APIC-access page with a TPR shadow");
            return;
        }
        l2_registers[RDI] = (u64)access_page + rows[i].offset;
        if (rows[i].code == l2_push)
            vmwrite(GUEST_RSP, (u64)access_page + rows[i].offset + 8);
        run();
        if (!~rows[i].type) // Bochs wants accesses to begin at the register
            report_known(rows[i].offset == 0x80 ? MACHINE_NONE : MACHINE_BOCHS,
                         vmread(EXIT_REASON) == REASON_VMCALL, "%s: reason %#llx", rows[i].what,
                         LLU(vmread(EXIT_REASON)));
        else
            report_exit(vmread(EXIT_REASON) == REASON_APIC_ACCESS && at(rows[i].code) &&
                            vmread(EXIT_QUALIFICATION) == (rows[i].offset | rows[i].type << 12),
                        rows[i].what);
    }
}

// --- who accesses the APIC-access page ---

L2(l2_jump, "jmp *%rdi");
L2(l2_soft, "int $0x44; vmcall");

static void accessed(enum machine wrong, u64 type, u32 offset, const char *what)
{
    run();
    report_known(wrong,
                 vmread(EXIT_REASON) == REASON_APIC_ACCESS &&
                     vmread(EXIT_QUALIFICATION) == (offset | type << 12),
                 "%s: reason %#llx, qualification %#llx", what, LLU(vmread(EXIT_REASON)),
                 LLU(vmread(EXIT_QUALIFICATION)));
}

static void test_access_types(void)
{
    u64 *ept;

    if (!use_access_page(l2_jump, 0, 0)) {
        report_skip("no APIC-access page");
        return;
    }
    l2_registers[RDI] = (u64)access_page + 0x80;
    if (bare_machine() == MACHINE_BOCHS)
        report_skip("Bochs fetches from the APIC-access page");
    else
        accessed(MACHINE_NONE, 2, 0x80, "a fetch from the APIC-access page");
    use_access_page(l2_soft, 0, 0);
    vmwrite(GUEST_IDTR_BASE, (u64)access_page);
    accessed(MACHINE_NONE, 3, 0x440, "the delivery of an event");
    report(vmread(IDT_VECTORING_INFO) == INJECT(TYPE_SOFT_INTERRUPT, 0x44) &&
               vmread(EXIT_INSTRUCTION_LENGTH) == 2,
           "which is told of: %#llx, length %llu", LLU(vmread(IDT_VECTORING_INFO)),
           LLU(vmread(EXIT_INSTRUCTION_LENGTH)));
    // The newer Bochs sets it there, too
    report_cpu(MACHINE_BOCHS, !saved_rf(), "RF is what it would push");
    if (!use_access_page(l2_nops, 0, SECONDARY_EPT)) {
        report_skip("no EPT");
        return;
    }
    ept = identity_tables(EPT_RWX, EPT_WB | EPT_RWX);
    vmwrite(EPT_POINTER, eptp_of(ept, false));
    vmwrite(GUEST_CR3, (u64)access_page);
    accessed(MACHINE_BOCHS, 15, 0, "a paging structure there"); // Bochs says that it is linear
}

static void test_icr(void)
{
    static const struct {
        const char *what;
        u32 icr;
        bool exits;
    } rows[] = {
        {"a self-IPI", 1 << 18 | 0x61, false},
        {"in logical mode, with the level bit", 1 << 18 | 1 << 14 | 1 << 11 | 0x61, false},
        {"with delivery status", 1 << 18 | 1 << 12 | 0x61, true},
        {"level-triggered", 1 << 18 | 1 << 15 | 0x61, true},
        {"a vector below 16", 1 << 18 | 0xf, true},
        {"to all", 2 << 18 | 0x61, true},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        if (!use_access_page(l2_icr, PRIMARY_TPR_SHADOW, SECONDARY_INTERRUPT_DELIVERY)) {
            report_skip("no virtual-interrupt delivery");
            return;
        }
        set_pin(PIN_EXTERNAL_INTERRUPT);
        vmwrite(GUEST_INTERRUPT_STATUS, 0);
        l2_registers[RDI] = (u64)access_page + APIC_ICR;
        l2_registers[RAX] = rows[i].icr;
        run();
        report_exit(rows[i].exits ? vmread(EXIT_REASON) == REASON_APIC_WRITE &&
                                        vmread(EXIT_QUALIFICATION) == APIC_ICR
                                  : in_handler(0x61),
                    rows[i].what);
    }
}

// --- the TSC ---

L2(l2_tsc, "xor %eax, %eax; xor %edx, %edx; mov $0x10, %ecx; wrmsr; rdtsc; vmcall");

// L2's WRMSR sets L1's TSC; its own is that, scaled.
static void test_tsc(void)
{
    static u8 *bitmap;
    u64 before = rdtsc(), tsc;

    init(l2_tsc);
    if (!use_secondary(PRIMARY_TSC_OFFSETTING | PRIMARY_MSR_BITMAPS, SECONDARY_TSC_SCALING)) {
        report_skip("no TSC scaling");
        return;
    }
    bitmap = pages(1);
    vmwrite(MSR_BITMAP, (u64)bitmap);
    vmwrite(TSC_MULTIPLIER, 8ull << 48);
    vmwrite(TSC_OFFSET, 1ull << 40);
    run();
    tsc = (u32)l2_registers[RAX] | l2_registers[RDX] << 32;
    report(vmread(EXIT_REASON) == REASON_VMCALL && tsc - (1ull << 40) < before / 2,
           "a TSC that was cleared, scaled by 8: %#llx, L1's was %#llx", LLU(tsc), LLU(before));
}

void guest_main(void)
{
    if (!vmx_start()) {
        report(false, "no VMX");
        return;
    }
    apic_enable();
    trap_handlers[VECTOR_NMI] = on_nmi;
    access_page = pages(1);
    virtual_page = pages(1);
    test_rf();
    test_failed_entry();
    test_iret();
    test_blocked_nmi();
    test_pending_mtf();
    test_inactive();
    test_lmsw();
    test_widths();
    test_access_types();
    test_icr();
    test_tsc();
}
