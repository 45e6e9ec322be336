// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// CPU features with state of their own, each if CPUID offers it, and its #GP or #UD if not:
// protection keys (SDM vol. 3 "Protection Keys"), shadow stacks and indirect-branch tracking (vol.
// 1 "Control- Flow Enforcement Technology"), XSAVES (vol. 1 "Managing State Using the XSAVE Feature
// Set"), user wait (vol. 2 TPAUSE), RDPRU (APM vol. 3). Their state survives exits, and is each
// CPU's own.

#include "guest.h"

enum { EAX, EBX, ECX, EDX };
enum { KEY = 3, LARGE_PAGE = 2 << 20, SHADOW_TOP = 4096 };

// Beyond the machine's RAM in linear addresses: a user-mode page and a supervisor-mode page, both
// at 32 MiB, and a shadow-stack page at 34 MiB.
#define USER_PAGE   0x40000000ull
#define KERNEL_PAGE 0x80200000ull
#define SHADOW_PAGE 0x40400000ull
#define RAM         0x2000000ull
#define LEAF        (BIT(0) | BIT(5) | BIT(6) | BIT(7)) // P A D PS

static void map(void)
{
    u64 *pdpt = (u64 *)(pml4[0] & ~0xfffull);

    // Bochs takes PKRU's rights, not PKRS's, if only the last entry makes it a supervisor-mode
    // page.
    pdpt[KERNEL_PAGE >> 30] &= ~BIT(2);
    directories[USER_PAGE >> 21] = RAM | LEAF | BIT(1) | BIT(2) | (u64)KEY << 59;
    directories[KERNEL_PAGE >> 21] = RAM | LEAF | BIT(1) | (u64)KEY << 59;
    directories[SHADOW_PAGE >> 21] = (RAM + LARGE_PAGE) | LEAF;
    write_cr3((u64)pml4);
}

static bool has(u32 leaf, unsigned reg, unsigned bit)
{
    struct cpuid_regs r = cpuid(leaf, 0);
    const u32 regs[4] = {r.eax, r.ebx, r.ecx, r.edx};

    return regs[reg] >> bit & 1;
}

// --- accesses that may fault ---

static void read_byte(void *at)
{
    (void)*(volatile u8 *)at;
}

static void write_byte(void *at)
{
    *(volatile u8 *)at = 1;
}

// A string instruction from a port: a hypervisor makes this access for its guest.
static void insb(void *at)
{
    __asm__ volatile("insb" : "+D"(at) : "d"(0x80) : "memory");
}

static void set_cr4(void *bit)
{
    write_cr4(read_cr4() | (u64)bit);
}

static void clear_wp(void *unused)
{
    (void)unused;
    write_cr0(read_cr0() & ~CR0_WP);
}

struct msr_value {
    u32 msr;
    u64 value;
};

static void write_msr(void *arg)
{
    const struct msr_value *m = arg;

    msr_write(m->msr, m->value);
}

static void read_msr(void *msr)
{
    (void)msr_read((u32)(u64)msr);
}

// Without Nestor the emulators read and write MSRs that do not exist as if they did.
#define NO_MSRS (bare_machine() == MACHINE_QEMU ? MACHINE_QEMU : MACHINE_BOCHS)

static bool msr_refused(u32 msr, u64 value)
{
    struct msr_value m = {msr, value};

    return try(write_msr, &m) == VECTOR_GP;
}

static bool msr_missing(u32 msr)
{
    return try(read_msr, (void *)(u64)msr) == VECTOR_GP && msr_refused(msr, 0);
}

// An exit to the hypervisor under any hypervisor.
static void leave(void)
{
    (void)cpuid(0, 0);
}

// --- protection keys ---

static void wrpkru(u32 value)
{
    __asm__ volatile(".byte 0x0f, 0x01, 0xef" : : "a"(value), "c"(0), "d"(0) : "memory");
}

static void try_rdpkru(void *unused)
{
    (void)unused;
    (void)rdpkru();
}

#define AD (1u << (2 * KEY)) // access disable
#define WD (2u << (2 * KEY)) // write disable

static bool faults(void (*fn)(void *), u64 at, u64 error)
{
    return try(fn, (void *)at) == VECTOR_PF && last_trap.error == error && last_cr2 == at;
}

static bool allowed(void (*fn)(void *), u64 at)
{
    return try(fn, (void *)at) == NO_TRAP;
}

// Bochs judges an access to a page that it has looked up before wrongly: by the rights of both
// registers, and PKRU's do not count at CPL 0. The same for PKRU on user-mode pages and IA32_PKRS
// on the others.
static void test_rights(const char *name, u64 page, void (*set)(u32 rights))
{
    write_cr0(read_cr0() | CR0_WP);
    set(0);
    report_cpu(MACHINE_BOCHS, allowed(read_byte, page) && allowed(write_byte, page),
               "%s 0: all is allowed", name);
    set(AD);
    report_cpu(MACHINE_BOCHS, faults(read_byte, page, PF_P | PF_PK), "%s AD: a read faults", name);
    report_cpu(MACHINE_BOCHS, faults(write_byte, page, PF_P | PF_W | PF_PK),
               "%s AD: a write faults", name);
    report_known(MACHINE_BOCHS, faults(insb, page, PF_P | PF_W | PF_PK), "%s AD: INSB faults",
                 name);
    set(WD);
    report_cpu(MACHINE_BOCHS, allowed(read_byte, page), "%s WD: a read does not fault", name);
    report_cpu(MACHINE_BOCHS, faults(write_byte, page, PF_P | PF_W | PF_PK),
               "%s WD: a write faults with CR0.WP", name);
    report_known(MACHINE_BOCHS, faults(insb, page, PF_P | PF_W | PF_PK),
                 "%s WD: INSB faults with CR0.WP", name);
    write_cr0(read_cr0() & ~CR0_WP);
    report_cpu(MACHINE_BOCHS, allowed(write_byte, page), "%s WD: a supervisor write without CR0.WP",
               name);
    report_known(MACHINE_BOCHS, allowed(insb, page), "%s WD: INSB without CR0.WP", name);
    set(AD << 2 | WD << 2);
    report_cpu(MACHINE_BOCHS, allowed(write_byte, page) && allowed(insb, page),
               "%s: another key's rights", name);
    set(0);
}

static void test_pku(void)
{
    u32 value = 0x5a5a5a54;

    if (!has(7, ECX, 3)) {
        report(try(set_cr4, (void *)CR4_PKE) == VECTOR_GP, "no PKU: CR4.PKE is #GP");
        return;
    }
    report(!has(7, ECX, 4), "OSPKE is clear without CR4.PKE");
    report(try(try_rdpkru, NULL) == VECTOR_UD, "RDPKRU is #UD without CR4.PKE");
    set_cr4((void *)CR4_PKE);
    report(has(7, ECX, 4), "OSPKE is set with CR4.PKE");
    test_rights("PKRU", USER_PAGE, wrpkru);
    wrpkru(AD);
    // Bochs takes PKRU's rights for pages of both kinds.
    report_cpu(MACHINE_BOCHS, allowed(read_byte, KERNEL_PAGE) && allowed(write_byte, KERNEL_PAGE),
               "PKRU says nothing about supervisor-mode pages");
    wrpkru(value);
    leave();
    report(rdpkru() == value, "PKRU survives an exit");
    wrpkru(0);
}

static void write_pkrs(u32 value)
{
    msr_write(MSR_PKRS, value);
}

static void test_pks(void)
{
    if (!has(7, ECX, 31)) {
        report(try(set_cr4, (void *)CR4_PKS) == VECTOR_GP, "no PKS: CR4.PKS is #GP");
        report_known(NO_MSRS, msr_missing(MSR_PKRS), "no PKS: IA32_PKRS is #GP");
        return;
    }
    set_cr4((void *)CR4_PKS);
    report_known(NO_MSRS, msr_refused(MSR_PKRS, BIT(32)), "IA32_PKRS: bit 32 is #GP");
    test_rights("PKRS", KERNEL_PAGE, write_pkrs);
    write_pkrs(AD);
    report_cpu(MACHINE_BOCHS, allowed(read_byte, USER_PAGE),
               "PKRS says nothing about user-mode pages");
    leave();
    report_known(NO_MSRS, msr_read(MSR_PKRS) == AD, "IA32_PKRS survives an exit");
    write_pkrs(0);
}

// --- control-flow enforcement ---

#define SH_STK_EN BIT(0)
#define ENDBR_EN  BIT(2)

static u64 cp_error;
void cp_entry(void);

// #CP's gate: notes the error code, switches CET off and goes on at R15.
__asm__(".globl cp_entry\n"
        "cp_entry: endbr64\n"
        "pop cp_error\n"
        "mov $0x6a2, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr\n"
        "mov %r15, (%rsp)\n"
        "iretq");

#define S_CET_WRITE(value) "mov $0x6a2, %%ecx; mov $" #value ", %%eax; xor %%edx, %%edx; wrmsr\n"
#define CET_CLOBBERS       "rax", "rbx", "rcx", "rdx", "r14", "r15", "memory"

// A token at the top of the shadow stack, which SETSSBSY takes; the SSP in the middle of a call,
// behind it, and over an exit.
static void test_shadow_stack(void)
{
    u64 *token = (u64 *)(RAM + LARGE_PAGE + SHADOW_TOP - 8);
    u64 top = SHADOW_PAGE + SHADOW_TOP - 8, inside, behind, after_exit;

    *token = top;
    msr_write(MSR_PL0_SSP, top);
    __asm__ volatile(
        "mov %%rsp, %%r14; lea 9f(%%rip), %%r15\n" S_CET_WRITE(
            1) ".byte 0xf3, 0x0f, 0x01, 0xe8\n" // SETSSBSY
               "call 1f\n"
               ".byte 0xf3, 0x48, 0x0f, 0x1e, 0xce\n" // RDSSPQ RSI
               "mov %%rsi, %1\n"
               "xor %%eax, %%eax; cpuid\n"
               ".byte 0xf3, 0x48, 0x0f, 0x1e, 0xce\n"
               "mov %%rsi, %2\n" S_CET_WRITE(0) "jmp 9f\n"
                                                "1: .byte 0xf3, 0x48, 0x0f, 0x1e, 0xce\n"
                                                "mov %%rsi, %0\n"
                                                "ret\n"
                                                "9: mov %%r14, %%rsp"
        : "=m"(inside), "=m"(behind), "=m"(after_exit)
        :
        : CET_CLOBBERS, "rsi");
    report(*token == (top | 1), "SETSSBSY marks the token busy");
    report(inside == top - 8, "CALL pushes 8 bytes on the shadow stack");
    report(behind == top && after_exit == top, "SSP survives an exit");
    report(*(token - 1) >> 20 != 0, "the return address is there");

    *token = top;
    cp_error = ~0ull;
    __asm__ volatile("mov %%rsp, %%r14; lea 9f(%%rip), %%r15\n" S_CET_WRITE(
                         1) ".byte 0xf3, 0x0f, 0x01, 0xe8\n"
                            "call 1f\n"
                            "nop\n" S_CET_WRITE(0) "jmp 9f\n"
                                                   "1: incq (%%rsp)\n"
                                                   "ret\n"
                                                   "9: mov %%r14, %%rsp"
                     :
                     :
                     : CET_CLOBBERS);
    report(cp_error == 1, "a RET to another address: #CP(near RET), error %lld",
           (long long)cp_error);
    // The exception left the changed return address on the stack.
    report(faults(write_byte, SHADOW_PAGE, PF_P | PF_W), "the shadow stack cannot be written");
}

static void test_branch_tracking(void)
{
    u64 reached = 0;

    cp_error = ~0ull;
    __asm__ volatile("mov %%rsp, %%r14; lea 9f(%%rip), %%r15; lea 1f(%%rip), %%rbx\n" S_CET_WRITE(
                         4) "jmp *%%rbx\n"
                            "1: endbr64\n"
                            "incq %0\n"
                            "xor %%eax, %%eax; cpuid\n"
                            "lea 2f(%%rip), %%rbx\n"
                            "jmp *%%rbx\n"
                            "2: incq %0\n" S_CET_WRITE(0) "9: mov %%r14, %%rsp"
                     : "+m"(reached)
                     :
                     : CET_CLOBBERS);
    report(reached == 1 && cp_error == 3,
           "IBT: ENDBR64 passes, %lld; anything else is #CP, error %lld", (long long)reached,
           (long long)cp_error);
}

static const u32 cet_msrs[] = {MSR_U_CET,
                               MSR_S_CET,
                               MSR_PL0_SSP,
                               MSR_PL0_SSP + 1,
                               MSR_PL0_SSP + 2,
                               MSR_PL0_SSP + 3,
                               MSR_INTERRUPT_SSP_TABLE};

static void test_cet_msrs(void)
{
    bool kept = true;

    for (unsigned i = 0; i < ARRAY_SIZE(cet_msrs); i++)
        msr_write(cet_msrs[i], i < 2 ? BIT(4) : 0x7fff00001000ull + i * 4096);
    leave();
    for (unsigned i = 0; i < ARRAY_SIZE(cet_msrs); i++) {
        kept &= msr_read(cet_msrs[i]) == (i < 2 ? BIT(4) : 0x7fff00001000ull + i * 4096);
        msr_write(cet_msrs[i], 0);
    }
    report(kept, "CET's MSRs survive an exit");
    report_known(NO_MSRS, msr_refused(MSR_U_CET, BIT(6)) && msr_refused(MSR_S_CET, BIT(9)),
                 "bits 9:6 are #GP");
    report_known(NO_MSRS, msr_refused(MSR_PL0_SSP + 3, 1) && msr_refused(MSR_PL0_SSP, 2),
                 "an SSP's bits 1:0 are #GP");
    report_known(MACHINE_BOCHS,
                 msr_refused(MSR_PL0_SSP + 1, BIT(62)) &&
                     msr_refused(MSR_INTERRUPT_SSP_TABLE, BIT(62)) &&
                     msr_refused(MSR_U_CET, BIT(62)),
                 "addresses that are not canonical are #GP");
    report_known(NO_MSRS, msr_missing(0x6a1) && msr_missing(0x6a3),
                 "there is nothing at 6A1H and 6A3H");
}

static void test_cet(void)
{
    bool ss = has(7, ECX, 7), ibt = has(7, EDX, 20);

    if (!ss && !ibt) {
        if (bare_machine() != MACHINE_QEMU) // 7.2 hangs
            report_known(NO_MSRS, try(set_cr4, (void *)CR4_CET) == VECTOR_GP,
                         "no CET: CR4.CET is #GP");
        report_known(NO_MSRS,
                     msr_missing(MSR_U_CET) && msr_missing(MSR_S_CET) && msr_missing(MSR_PL0_SSP),
                     "no CET: its MSRs are #GP");
        return;
    }
    write_cr0(read_cr0() & ~CR0_WP);
    report(try(set_cr4, (void *)CR4_CET) == VECTOR_GP, "CR4.CET without CR0.WP is #GP");
    write_cr0(read_cr0() | CR0_WP);
    set_cr4((void *)CR4_CET);
    report(try(clear_wp, NULL) == VECTOR_GP, "clearing CR0.WP under CR4.CET is #GP");
    set_gate(VECTOR_CP, cp_entry, CODE64, 0, GATE_INTERRUPT);
    if (ss) {
        test_cet_msrs();
        test_shadow_stack();
    }
    if (ibt)
        test_branch_tracking();
    write_cr4(read_cr4() & ~CR4_CET);
}

// --- XSAVES ---

static u8 area[4096] ALIGNED(64);

static void xsaves(void *components)
{
    __asm__ volatile("xsaves64 %0" : "+m"(area) : "a"((u32)(u64)components), "d"(0));
}

static void xrstors(u32 components)
{
    __asm__ volatile("xrstors64 %0" : : "m"(area), "a"(components), "d"(0) : "memory");
}

static void test_xsaves(void)
{
    struct cpuid_regs sub1;
    u32 size;

    if (!has(1, ECX, 26))
        return;
    set_cr4((void *)CR4_OSXSAVE);
    xsetbv(0, XCR0_X87 | XCR0_SSE);
    sub1 = cpuid(0xd, 1);
    if (!(sub1.eax & BIT(3))) {
        report_known(NO_MSRS, msr_missing(MSR_XSS), "no XSAVES: IA32_XSS is #GP");
        // SVM has nothing that switches the instruction off.
        if (cpuid(0, 0).ebx == 0x756e6547)
            report(try(xsaves, (void *)1) == VECTOR_UD, "no XSAVES: it is #UD");
        return;
    }
    report_known(NO_MSRS, msr_refused(MSR_XSS, BIT(0)) && msr_refused(MSR_XSS, BIT(62)),
                 "IA32_XSS: #GP");
    report(try(xsaves, (void *)3) == NO_TRAP && *(u64 *)(area + 520) == (BIT(63) | 3),
           "XSAVES is in the compacted format");
    if (!(sub1.ecx & BIT(11)))
        return;
    size = sub1.ebx;
    msr_write(MSR_XSS, BIT(11));
    report(cpuid(0xd, 1).ebx == size + cpuid(0xd, 11).eax, "CET_U makes the area %u bytes larger",
           cpuid(0xd, 1).ebx - size);
    msr_write(MSR_U_CET, BIT(4));
    msr_write(MSR_PL0_SSP + 3, 0x123000);
    xsaves((void *)BIT(11));
    report(*(u64 *)(area + 576) == BIT(4) && *(u64 *)(area + 584) == 0x123000,
           "XSAVES writes IA32_U_CET and IA32_PL3_SSP");
    *(u64 *)(area + 584) = 0x456000;
    xrstors(BIT(11));
    leave();
    report_known(NO_MSRS, msr_read(MSR_PL0_SSP + 3) == 0x456000,
                 "XRSTORS loads IA32_PL3_SSP, over an exit");
    msr_write(MSR_U_CET, 0);
    msr_write(MSR_PL0_SSP + 3, 0);
    msr_write(MSR_XSS, 0);
}

// --- user wait, RDPRU ---

static void tpause(void *until)
{
    __asm__ volatile(".byte 0x66, 0x0f, 0xae, 0xf1" // TPAUSE ECX
                     :
                     : "c"(1), "a"((u32)(u64)until), "d"((u32)((u64)until >> 32)));
}

static void test_waitpkg(void)
{
    if (!has(7, ECX, 5)) {
        report_cpu(MACHINE_QEMU, try(tpause, NULL) == VECTOR_UD, "no WAITPKG: TPAUSE is #UD");
        report_known(NO_MSRS, msr_missing(MSR_UMWAIT_CONTROL),
                     "no WAITPKG: IA32_UMWAIT_CONTROL is #GP");
        return;
    }
    report_known(MACHINE_BOCHS,
                 msr_refused(MSR_UMWAIT_CONTROL, BIT(1)) &&
                     msr_refused(MSR_UMWAIT_CONTROL, BIT(32)),
                 "IA32_UMWAIT_CONTROL: reserved bits are #GP");
    msr_write(MSR_UMWAIT_CONTROL, 100001);
    leave();
    report_known(NO_MSRS, msr_read(MSR_UMWAIT_CONTROL) == 100001,
                 "IA32_UMWAIT_CONTROL survives an exit");
    report(try(tpause, (void *)(rdtsc() + 1000)) == NO_TRAP, "TPAUSE ends at its deadline");
    msr_write(MSR_UMWAIT_CONTROL, 0);
}

static void rdpru(void *unused)
{
    (void)unused;
    __asm__ volatile(".byte 0x0f, 0x01, 0xfd" : : "c"(0) : "rax", "rdx");
}

// --- another CPU ---

static volatile bool second_clean;

// What the first one has set is not to be seen here.
static void look(void *unused)
{
    bool clean = true;

    (void)unused;
    if (has(7, ECX, 3)) {
        write_cr4(read_cr4() | CR4_PKE);
        clean &= rdpkru() == 0;
    }
    if (has(7, ECX, 31))
        clean &= msr_read(MSR_PKRS) == 0;
    if (has(7, ECX, 7))
        for (unsigned i = 0; i < ARRAY_SIZE(cet_msrs); i++)
            clean &= msr_read(cet_msrs[i]) == 0;
    second_clean = clean;
}

static void test_second_cpu(void)
{
    if (!smp_start(2)) {
        report_skip("one CPU only");
        return;
    }
    if (has(7, ECX, 3))
        wrpkru(0x10);
    if (has(7, ECX, 31))
        write_pkrs(0x10);
    if (has(7, ECX, 7))
        msr_write(MSR_PL0_SSP + 2, 0x1000);
    smp_call(1, look, NULL);
    report(smp_wait(1) && second_clean, "the other CPU has its own PKRU, IA32_PKRS and CET MSRs");
}

// Bochs 2.7 has PKRU's component, but an empty leaf for it.
static void test_components(void)
{
    u32 components = cpuid(0xd, 0).eax, end = 576;

    for (unsigned i = 2; i < 32; i++) {
        struct cpuid_regs r = cpuid(0xd, i);

        if (!(components & BIT(i)))
            continue;
        report_known(MACHINE_BOCHS, r.eax && r.ebx >= end, "XCR0 bit %u has a place: %u at %u", i,
                     r.eax, r.ebx);
        end = MAX(end, r.eax + r.ebx);
    }
    report_known(MACHINE_BOCHS, cpuid(0xd, 0).ecx == end, "the area's size: %u", end);
}

void guest_main(void)
{
    map();
    if (has(1, ECX, 26))
        test_components();
    test_pku();
    test_pks();
    test_cet();
    test_xsaves();
    test_waitpkg();
    if (!has(0x80000008, EBX, 4))
        report(try(rdpru, NULL) == VECTOR_UD, "no RDPRU: it is #UD");
    test_second_cpu();
}
