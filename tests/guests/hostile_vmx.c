// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A hostile VMX hypervisor: from a fixed seed it takes a good VMCS, spoils fields of all groups and
// what they point at, and enters. Each entry must end as the SDM says (vol. 3 "VM Entries", "VM
// Exits"): VMfail with a number, an entry failure, an exit; and the good VMCS must work in between.
// hostile.h tells the words on the command line.
//
// What ends this L1 by the manual is left out, see the functions called spare_*: host state that
// leads it into the void, MSR lists that abort VMX, states out of which only another CPU helps.

#include "hostile.h"
#include "vmx.h"

enum { FIELDS = 256, WATCHDOG_TICKS = 3000000, STEPS = 4 };
enum { LISTS = 3 };

static struct {
    u16 encoding;
    u64 good;
} fields[FIELDS];
static u32 field_count;
static u8 *msr_bitmap, *io_bitmaps, *virtual_apic, *lists, *other_vmcs, *vmxon_spare;
static u32 outcomes[4]; // VMfail, entry failures, exits, instructions that fault
static u64 phys_limit;

HOSTILE_L2("vmcall", "hlt");

// --- the good VMCS ---

static void write_secondary(u32 wanted)
{
    u64 primary = vmread(PRIMARY_CONTROLS);

    if (!offers(MSR_VMX_PROCBASED_CTLS, PRIMARY_SECONDARY))
        return;
    vmwrite(PRIMARY_CONTROLS, primary | PRIMARY_SECONDARY);
    vmwrite(SECONDARY_CONTROLS, control(MSR_VMX_PROCBASED_CTLS2, wanted));
}

static void point_l2(void)
{
    vmwrite(GUEST_CR3, (u64)l2.paging);
    vmwrite(GUEST_RIP, (u64)l2.code);
    vmwrite(GUEST_RSP, (u64)l2.stack);
    vmwrite(GUEST_GDTR_BASE, (u64)l2.gdt);
    vmwrite(GUEST_IDTR_BASE, (u64)l2.idt);
    vmwrite(GUEST_TR_BASE, (u64)l2.tss);
    vmwrite(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
}

// Nearly all that there is, so that each field counts.
static void make_good(void)
{
    vmclear(vmcs_region);
    vmptrld(vmcs_region);
    for (u64 field = 0; field < 0x6c20; field += 2)
        vmwrite(field, 0); // those that are there
    init(NULL);
    vmwrite(HOST_RIP, (u64)vmx_exit_anyhow);
    point_l2();
    set_pin(PIN_EXTERNAL_INTERRUPT | PIN_NMI | PIN_VIRTUAL_NMIS | PIN_PREEMPTION_TIMER);
    set_primary(PRIMARY_HLT | PRIMARY_TSC_OFFSETTING | PRIMARY_TPR_SHADOW | PRIMARY_IO_BITMAPS |
                PRIMARY_MSR_BITMAPS);
    write_secondary(SECONDARY_EPT | SECONDARY_VPID | SECONDARY_UNRESTRICTED_GUEST |
                    SECONDARY_APIC_REGISTERS | SECONDARY_TSC_SCALING | SECONDARY_XSAVES);
    vmwrite(EXCEPTION_BITMAP, ~0u);
    vmwrite(IO_BITMAP_A, (u64)io_bitmaps);
    vmwrite(IO_BITMAP_B, (u64)io_bitmaps + PAGE_SIZE);
    vmwrite(MSR_BITMAP, (u64)msr_bitmap);
    vmwrite(VIRTUAL_APIC_ADDRESS, (u64)virtual_apic);
    vmwrite(EPT_POINTER, eptp_of(l2.nested, false));
    vmwrite(VPID, 1);
    vmwrite(TSC_MULTIPLIER, 1ull << 48);
    vmwrite(PREEMPTION_TIMER_VALUE, 200000);
    vmwrite(EXIT_MSR_STORE_ADDRESS, (u64)lists);
    vmwrite(EXIT_MSR_LOAD_ADDRESS, (u64)lists + PAGE_SIZE);
    vmwrite(ENTRY_MSR_LOAD_ADDRESS, (u64)lists + 2 * PAGE_SIZE);
}

static void note_good(void)
{
    for (u32 encoding = 0; encoding < 0x6c20; encoding += 2) {
        u64 value;

        if (vmread_flags(encoding, &value) || field_count == FIELDS)
            continue;
        fields[field_count].encoding = (u16)encoding;
        fields[field_count++].good = value;
    }
}

static void restore_good(void)
{
    for (u32 i = 0; i < field_count; i++)
        vmwrite(fields[i].encoding, fields[i].good);
}

static void make_lists(void)
{
    static const u32 msrs[] = {MSR_SYSENTER_CS, MSR_KERNEL_GS_BASE, MSR_LSTAR, MSR_STAR};
    u64 *entries = (u64 *)lists;

    for (u32 list = 0; list < LISTS; list++)
        for (u32 i = 0; i < PAGE_SIZE / 16; i++) {
            entries[(list * PAGE_SIZE / 8) + i * 2] = msrs[i % ARRAY_SIZE(msrs)];
            entries[(list * PAGE_SIZE / 8) + i * 2 + 1] = 0;
        }
}

// --- spoiling it ---

static bool is_host(u32 encoding)
{
    return (encoding & 0xc00) == 0xc00;
}

static bool is_address(u32 encoding)
{
    return (encoding < 0x2034 && encoding >= 0x2000 && encoding != TSC_OFFSET &&
            encoding != TSC_MULTIPLIER) ||
           encoding == VMCS_LINK_POINTER || encoding == GUEST_CR3;
}

// A legal value, or one that the checks refuse; never one that only the CPU would find out about.
static u64 spare_host(u32 encoding, u64 good, u64 value)
{
    u64 bad = BIT(63) | (value & BITS(61, 0));

    switch (encoding) {
    case HOST_RIP:
        return below(2) ? good : bad; // not canonical
    case HOST_CR3:
        return good | BIT(52 + below(12));
    case HOST_CR4:
        value = good ^ BIT(below(64));
        return (value & ~(u64)(CR4_SMEP | CR4_SMAP | CR4_LA57 | CR4_CET)) |
               (good & (CR4_SMEP | CR4_SMAP | CR4_LA57 | CR4_CET));
    case HOST_CR0:
    case HOST_EFER:
        return good ^ BIT(below(64));
    case HOST_TR_SELECTOR:
    case HOST_CS_SELECTOR:
        return below(2) ? value & 7 : good;
    default:
        return value;
    }
}

static u64 spoiled(u32 encoding, u64 good)
{
    u64 value;

    if (is_address(encoding))
        return encoding == EPT_POINTER && below(2) ? hostile_address() | (good & 0xfff)
                                                   : hostile_address();
    switch (below(4)) {
    case 0:
        value = good ^ BIT(below(64));
        break;
    case 1:
        value = good ^ BIT(below(32));
        break;
    case 2:
        value = good + below(16) - 8;
        break;
    default:
        value = random_value();
    }
    return is_host(encoding) ? spare_host(encoding, good, value) : value;
}

// Lists that VM exits use abort VMX if they are wrong: the good ones, or such as no entry takes.
static void spare_lists(void)
{
    static const u16 counts[] = {EXIT_MSR_STORE_COUNT, EXIT_MSR_LOAD_COUNT};

    for (u32 i = 0; i < ARRAY_SIZE(counts); i++) {
        u16 address = (u16)(EXIT_MSR_STORE_ADDRESS + 2 * i);

        if (!(u32)vmread(counts[i]) || (vmread(address) & 15) || vmread(address) >= phys_limit)
            continue;
        vmwrite(counts[i], 1 + below(4));
        vmwrite(address, (u64)lists + i * PAGE_SIZE);
    }
}

// Something must end what does not end by itself: not wait-for-SIPI, and interrupts or the timer.
static void spare_silence(void)
{
    u64 pin = vmread(PIN_BASED_CONTROLS);

    if (vmread(GUEST_ACTIVITY_STATE) == 3)
        vmwrite(GUEST_ACTIVITY_STATE, 1);
    if (!(pin & PIN_PREEMPTION_TIMER) || (u32)vmread(PREEMPTION_TIMER_VALUE) > 1000000)
        vmwrite(PIN_BASED_CONTROLS, pin | PIN_EXTERNAL_INTERRUPT);
}

// Without EPT L2's paging is what keeps it away from L1.
static void spare_memory(void)
{
    if ((vmread(PRIMARY_CONTROLS) & PRIMARY_SECONDARY) &&
        (vmread(SECONDARY_CONTROLS) & SECONDARY_EPT))
        return;
    vmwrite(GUEST_CR3, hostile_root(vmread(GUEST_CR3)));
    vmwrite(GUEST_CR0, vmread(GUEST_CR0) | CR0_PG | CR0_PE);
}

static void invalidate(u64 type, u64 first, u64 second)
{
    u64 descriptor[2] = {first, second};

    invept(type, first);
    __asm__ volatile("invvpid %0, %1" : : "m"(descriptor), "r"(type) : "cc", "memory");
}

static void spoil(void)
{
    restore_good();
    for (u32 n = below(3) ? 1 : 1 + below(4); n; n--) {
        u32 i = below(field_count);

        vmwrite(fields[i].encoding, spoiled(fields[i].encoding, fields[i].good));
    }
    if (below(8) == 0)
        vmwrite(SECONDARY_CONTROLS,
                vmread(SECONDARY_CONTROLS) ^ (SECONDARY_EPT | SECONDARY_UNRESTRICTED_GUEST));
    if (below(4) == 0)
        hostile_l2_spoil();
    if (hostile_l2_stale()) // an L2 whose code is not the same for all ends the guest
        invalidate(2, 0, 0);
    if (below(8) == 0) { // an entry list of anything
        u64 *list = (u64 *)(lists + 2 * PAGE_SIZE);

        list[below(8)] = random_value();
        vmwrite(ENTRY_MSR_LOAD_COUNT, below(2) ? below(8) : random_value());
    }
    spare_lists();
    spare_silence();
    spare_memory();
}

// --- running it ---

// What an exit may have left of L2's, or taken from the spoiled host state.
static void l1_again(void)
{
    tss_load(103);
    msr_write(MSR_PAT, 0x0007040600070406);
    msr_write(MSR_EFER, EFER_LME | EFER_LMA);
    write_cr0(CR0_PG | CR0_NE | CR0_ET | CR0_MP | CR0_PE);
}

static bool is_error(u64 number)
{
    return number == 4 || number == 5 || number == 7 || number == 8 || number == 26;
}

// Whether the SDM knows this end of an entry.
static bool judge(u64 reason)
{
    u64 basic = reason & EXIT_REASON_BASIC;

    if (reason & FAILED) {
        outcomes[0]++;
        return (reason & 0xffff) == RFLAGS_ZF && is_error(vmread(VM_INSTRUCTION_ERROR));
    }
    if (reason & EXIT_REASON_ENTRY_FAILURE) {
        outcomes[1]++;
        return basic == REASON_INVALID_GUEST_STATE || basic == REASON_MSR_LOADING;
    }
    outcomes[2]++;
    return basic < REASON_COUNT && reason == basic && basic != REASON_INVALID_GUEST_STATE &&
           basic != REASON_MSR_LOADING;
}

static u64 enter(bool resume)
{
    launched = resume;
    return run();
}

static bool run_spoiled(u64 number)
{
    bool resume = false;

    for (u32 step = 0; step < STEPS; step++) {
        u64 reason;

        watchdog_arm(WATCHDOG_TICKS);
        reason = enter(resume);
        l1_again();
        watchdog_quiet();
        if (!judge(reason)) {
            report(false, "case %llu: reason %#llx, error %llu", LLU(number), LLU(reason),
                   LLU(vmread(VM_INSTRUCTION_ERROR)));
            return false;
        }
        if (reason & (FAILED | EXIT_REASON_ENTRY_FAILURE))
            return true;
        resume = true;
        vmwrite(GUEST_RIP, vmread(GUEST_RIP) + vmread(EXIT_INSTRUCTION_LENGTH));
        spare_lists();
        spare_silence();
    }
    return true;
}

// The second CPU may be at its revision.
static void load_vmcs(void)
{
    do {
        *(u32 *)vmcs_region = *(u32 *)vmxon_spare;
        vmclear(vmcs_region);
    } while (vmptrld(vmcs_region));
}

// The fields that are not as they were.
static void show(u64 number)
{
    print("case %llu:", LLU(number));
    for (u32 i = 0; i < field_count; i++)
        if (vmread(fields[i].encoding) != fields[i].good)
            print(" %x: %llx, was %llx;", fields[i].encoding, LLU(vmread(fields[i].encoding)),
                  LLU(fields[i].good));
    print("\n");
}

static bool run_good(void)
{
    u64 reason;

    hostile_l2_again();
    memset(virtual_apic, 0, PAGE_SIZE);
    memset(msr_bitmap, 0, PAGE_SIZE);
    memset(io_bitmaps, 0, 2 * PAGE_SIZE);
    make_lists();
    load_vmcs();
    restore_good();
    invalidate(2, 0, 0);
    reason = enter(false);
    watchdog_quiet();
    while (reason == REASON_EXTERNAL_INTERRUPT) { // the last case's may still come
        reason = enter(true);
        watchdog_quiet();
    }
    return reason == REASON_CPUID && vmread(GUEST_RIP) == (u64)l2.code;
}

// --- VMX instructions on anything ---

static void do_pointer(void *address)
{
    switch (below(6)) {
    case 0:
        vmxon(address);
        break;
    case 1:
        vmclear(address);
        break;
    case 2:
    case 3:
        vmptrld(address);
        break;
    case 4:
        enter(below(2));
        break;
    default:
        vmwrite(random_value(), random_value());
        vmread(random_value());
    }
}

static void do_invalidate(void *address)
{
    invalidate(below(8) ? below(5) : random_value(), below(2) ? random_value() : (u64)address,
               below(2) ? 0 : random_value());
}

static void do_outside(void *address)
{
    vmxoff();
    if (below(2) && vmxon(address) == 0)
        vmxoff();
    vmxon(vmxon_spare);
}

// No VMCS that could be entered is current in these.
static void instructions(void)
{
    static void (*const fns[])(void *) = {do_pointer, do_pointer, do_invalidate, do_outside};

    vmclear(vmcs_region);
    for (u32 n = below(16); n; n--) {
        if (below(4) == 0)
            for (u32 i = 0; i < 64; i++)
                ((u32 *)other_vmcs)[below(PAGE_SIZE / 4)] = (u32)random_u64();
        if (below(2))
            *(u32 *)other_vmcs = *(u32 *)vmxon_spare;
        outcomes[3] += try(fns[below(ARRAY_SIZE(fns))],
                           (void *)(below(4) ? hostile_address() : (u64)other_vmcs)) != NO_TRAP;
    }
}

// --- the second CPU ---

static void race(void *unused)
{
    u8 *const at[] = {vmcs_region, msr_bitmap, io_bitmaps, virtual_apic, lists + 2 * PAGE_SIZE};
    struct hostile_race r = {88172645463325252ull, at, ARRAY_SIZE(at), 0};

    (void)unused;
    while (!hostile_stop_race)
        hostile_race_step(&r);
}

// --- all of it ---

static bool start(void)
{
    if (!vmx_start()) {
        report_skip("no VMX");
        return false;
    }
    phys_limit = BIT(cpuid(0x80000008, 0).eax & 0xff);
    hostile_l2_make(l2_code, l2_code_end, 7, 7 | 6 << 3);
    msr_bitmap = pages(1);
    io_bitmaps = pages(2);
    virtual_apic = pages(1);
    lists = pages(LISTS + 1);
    other_vmcs = new_region();
    vmxon_spare = new_region();
    vmxoff();
    vmxon(vmxon_spare);
    pages(1);
    hostile_add_target(msr_bitmap);
    hostile_add_target(io_bitmaps);
    hostile_add_target(virtual_apic);
    hostile_add_target(other_vmcs);
    hostile_add_target(vmcs_region);
    watchdog_start();
    make_good();
    note_good();
    make_lists();
    report(run_good(), "the good VMCS");
    return true;
}

static void fatal(u64 which)
{
    restore_good();
    vmwrite(EXIT_MSR_STORE_COUNT, which == 0 ? 1 : 0);
    vmwrite(EXIT_MSR_STORE_ADDRESS, 0xfee00000);
    vmwrite(EXIT_MSR_LOAD_COUNT, which == 1 ? 1 : 0);
    vmwrite(EXIT_MSR_LOAD_ADDRESS, HOSTILE_RAM + PAGE_SIZE);
    if (which == 2)
        vmwrite(HOST_CR3, 0xfee00000);
    if (which == 3)
        vmwrite(HOST_RIP, 0x5000000000);
    if (which == 3)
        vmwrite(HOST_IDTR_BASE, 0xfec00000);
    enter(false);
}

static void report_outcomes(void)
{
    report(outcomes[0] && outcomes[1] && outcomes[2],
           "%u VMfail, %u entry failures, %u exits, %u faults, %u interrupts", outcomes[0],
           outcomes[1], outcomes[2], outcomes[3], watchdog_count);
}

void guest_main(void)
{
    static const struct hostile vmx = {
        .cases = "entries",
        .start = start,
        .race = race,
        .fatal = fatal,
        .instructions = instructions,
        .run_good = run_good,
        .load = load_vmcs,
        .spoil = spoil,
        .show = show,
        .run_spoiled = run_spoiled,
        .report = report_outcomes,
    };

    hostile_main(&vmx);
}
