// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A small L1 that runs small L2s by VMRUN (APM vol. 2 chapter 15): the instructions and what they
// refuse, what an entry and a #VMEXIT load and leave, the consistency checks, nested paging, VMLOAD
// and VMSAVE. Its L2's events and exits are in nested_svm_events and nested_svm_exits.

#include "svm.h"

// --- what must be there ---

static void do_vmrun(void *address)
{
    __asm__ volatile("vmrun" : : "a"(address) : "memory");
}
static void do_vmload(void *address)
{
    __asm__ volatile("vmload" : : "a"(address) : "memory");
}
static void do_vmsave(void *address)
{
    __asm__ volatile("vmsave" : : "a"(address) : "memory");
}
static void do_stgi(void *unused)
{
    (void)unused;
    stgi();
}
static void do_clgi(void *unused)
{
    (void)unused;
    clgi();
}
static void do_invlpga(void *address)
{
    __asm__ volatile("invlpga" : : "a"(address), "c"(1) : "memory");
}
static void write_hsave(void *value)
{
    msr_write(MSR_VM_HSAVE_PA, (u64)value);
}

static const struct {
    void (*fn)(void *);
    const char *name;
    bool has_address;
} instructions[] = {
    {do_vmrun, "VMRUN", true}, {do_vmload, "VMLOAD", true},    {do_vmsave, "VMSAVE", true},
    {do_stgi, "STGI", false},  {do_invlpga, "INVLPGA", false}, {do_clgi, "CLGI", false},
};

static bool test_presence(void)
{
    struct cpuid_regs r = cpuid(0x80000001, 0);

    if (!(r.ecx & BIT(2)) || cpuid(0x80000000, 0).eax < 0x8000000a) {
        report_skip("no SVM");
        return false;
    }
    r = cpuid(0x8000000a, 0);
    report((r.eax & 0xff) == 1 && r.ebx >= 2, "revision %u, %u ASIDs", r.eax & 0xff, r.ebx);
    report(!(msr_read(MSR_VM_CR) & VM_CR_SVMDIS), "VM_CR.SVMDIS is clear");
    for (unsigned i = 0; i < ARRAY_SIZE(instructions); i++)
        report(try(instructions[i].fn, vmcb) == VECTOR_UD, "%s without EFER.SVME: #UD",
               instructions[i].name);
    msr_write(MSR_EFER, msr_read(MSR_EFER) | EFER_SVME);
    report(msr_read(MSR_EFER) & EFER_SVME, "EFER.SVME can be set");
    msr_write(MSR_VM_HSAVE_PA, (u64)pages(1));
    report(msr_read(MSR_VM_HSAVE_PA) != 0, "VM_HSAVE_PA");
    return true;
}

static void test_faults(void)
{
    // QEMU 7.2 takes any address in VM_HSAVE_PA
    report_known(MACHINE_QEMU, try(write_hsave, (void *)0x1001) == VECTOR_GP,
                 "VM_HSAVE_PA, misaligned: #GP");
    report_known(MACHINE_QEMU, try(write_hsave, (void *)(1ull << 52)) == VECTOR_GP,
                 "VM_HSAVE_PA, bit 52: #GP");
    for (unsigned i = 0; i < ARRAY_SIZE(instructions); i++) {
        const char *name = instructions[i].name;

        report(try_user(instructions[i].fn, vmcb) == VECTOR_GP && last_trap.error == 0,
               "%s at CPL 3: #GP(0)", name);
        if (!instructions[i].has_address)
            continue;
        report(try(instructions[i].fn, (u8 *)vmcb + 8) == VECTOR_GP && last_trap.error == 0,
               "%s, misaligned address: #GP(0)", name);
        report_known(MACHINE_QEMU, try(instructions[i].fn, (void *)(1ull << 52)) == VECTOR_GP,
                     "%s, address beyond the physical ones: #GP", name);
    }
    report(try(do_invlpga, vmcb) == NO_TRAP, "INVLPGA");
}

// --- the round trip ---

L2(l2_cpuid, "push %rax; stc; l2_at_cpuid: cpuid; l2_after_cpuid: hlt; l2_after_hlt: nop");
extern char l2_at_cpuid[], l2_after_cpuid[], l2_after_hlt[];

struct l1_state {
    u64 cr0, cr3, cr4, efer, rflags, fs, gs;
    u16 cs, ss, ds, es, tr;
    struct table_pointer gdtr, idtr;
};

static void note_state(struct l1_state *s)
{
    memset(s, 0, sizeof(*s));
    s->cr0 = read_cr0();
    s->cr3 = read_cr3();
    s->cr4 = read_cr4();
    s->efer = msr_read(MSR_EFER);
    s->rflags =
        read_rflags() & ~(RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF);
    s->fs = msr_read(MSR_FS_BASE);
    s->gs = msr_read(MSR_GS_BASE);
    __asm__ volatile("mov %%cs, %0; mov %%ss, %1; mov %%ds, %2; mov %%es, %3; str %4"
                     : "=m"(s->cs), "=m"(s->ss), "=m"(s->ds), "=m"(s->es), "=m"(s->tr));
    __asm__ volatile("sgdt %0; sidt %1" : "=m"(s->gdtr), "=m"(s->idtr));
}

static void test_round_trip(void)
{
    u64 code, info1, info2;

    l2_init(l2_cpuid);
    vmcb->rax = 0x1122334455667788;
    for (unsigned i = 0; i < 16; i++)
        l2_registers[i] = 0x1000 + i;
    vmcb->eventinj = 0x12; // not valid
    code = l2_run();
    info1 = vmcb->exitinfo1;
    info2 = vmcb->exitinfo2;
    report(code == VMEXIT_CPUID, "CPUID exits: EXITCODE %#llx, EXITINFO %#llx %#llx", LLU(code),
           LLU(info1), LLU(info2));
    report(l2_at(l2_at_cpuid), "RIP is the instruction's, off by %lld",
           (long long)(vmcb->rip - (u64)l2_at_cpuid));
    report(vmcb->rax == 0x1122334455667788, "RAX %#llx", LLU(vmcb->rax));
    report(vmcb->rsp == (u64)(l2_stack + sizeof(l2_stack) - 8) &&
               l2_pushed(0) == 0x1122334455667788,
           "RSP and the stack");
    report(vmcb->rflags == (RFLAGS_FIXED | RFLAGS_CF), "RFLAGS %#llx", LLU(vmcb->rflags));
    report(l2_registers[0] == (u64)vmcb, "L1's RAX is the VMCB's address");
    report(l2_registers[RBX] == 0x1003 && l2_registers[RDI] == 0x1007 && l2_registers[15] == 0x100f,
           "other registers pass through");
    report(vmcb->cpl == 0 && vmcb->cs.selector == CODE64 && vmcb->cs.attrib == 0xa9b &&
               vmcb->ss.selector == DATA,
           "CPL %u, CS %#x, attributes %#x", vmcb->cpl, vmcb->cs.selector, vmcb->cs.attrib);
    report(!(vmcb->exitintinfo & SVM_EVENT_V) && vmcb->interrupt_shadow == 0,
           "no event, no interrupt shadow");
    vmcb->rax = 5;
    vmcb->rip = (u64)l2_after_cpuid;
    code = l2_run();
    report(code == VMEXIT_HLT && l2_at(l2_after_cpuid) && vmcb->rax == 5,
           "and on: HLT exits, EXITCODE %#llx, RIP off by %lld", LLU(code),
           (long long)(vmcb->rip - (u64)l2_after_cpuid));
}

// L2's state differs from L1's in all that VMRUN switches.
static void test_host_state(void)
{
    static u64 other_gdt[13];
    struct l1_state before, after;
    u64 *other_pml4 = pages(1);

    memcpy(other_pml4, pml4, PAGE_SIZE);
    memcpy(other_gdt, gdt, sizeof(other_gdt));
    note_state(&before);
    l2_init(l2_cpuid);
    vmcb->cr0 = before.cr0 ^ CR0_AM ^ CR0_WP;
    vmcb->cr3 = (u64)other_pml4;
    vmcb->cr4 = before.cr4 ^ CR4_PGE ^ CR4_DE;
    vmcb->efer = before.efer ^ EFER_SCE ^ EFER_NX;
    vmcb->gdtr.base = (u64)other_gdt;
    vmcb->gdtr.limit = 0x4f;
    vmcb->ds.selector = vmcb->es.selector = USER_DATA;
    vmcb->rflags |= RFLAGS_DF | RFLAGS_AC | RFLAGS_ID;
    vmcb->dr7 = DR7_FIXED | 1;
    l2_run();
    note_state(&after);
    report(vmcb->exitcode == VMEXIT_CPUID, "an L2 with other control registers: EXITCODE %#llx",
           LLU(vmcb->exitcode));
    report(memcmp(&before, &after, sizeof(before)) == 0,
           "L1's CR0, CR3, CR4, EFER, RFLAGS, segments, GDTR, IDTR are back");
    report(vmcb->cr3 == (u64)other_pml4 && vmcb->cr4 == (before.cr4 ^ CR4_PGE ^ CR4_DE) &&
               vmcb->efer == (before.efer ^ EFER_SCE ^ EFER_NX) &&
               vmcb->cr0 == (before.cr0 ^ CR0_AM ^ CR0_WP),
           "L2's are in the VMCB");
    report(vmcb->gdtr.base == (u64)other_gdt && vmcb->gdtr.limit == 0x4f &&
               vmcb->dr7 == (DR7_FIXED | 1),
           "GDTR, DR7");
    report((read_dr7() & 0xffff) == DR7_FIXED, "#VMEXIT disables breakpoints: DR7 %#llx",
           LLU(read_dr7()));
}

L2(l2_32, ".code32; l2_32_code: mov $0x12345678, %eax; cpuid; .code64");

static void test_other_modes(void)
{
    l2_init(l2_32);
    vmcb->cr0 = CR0_PE | CR0_ET;
    vmcb->cr4 = 0;
    vmcb->efer = EFER_SVME;
    set_segment(&vmcb->cs, CODE32, 0xc9b);
    l2_run();
    report(vmcb->exitcode == VMEXIT_CPUID && l2_at(l2_32 + 5) && vmcb->rax == 0x12345678,
           "an L2 in protected mode without paging: EXITCODE %#llx", LLU(vmcb->exitcode));
    l2_init(NULL);
    memcpy((void *)0x9000, "\x8c\xc8\x0f\xa2", 4); // mov %cs, %ax; cpuid
    vmcb->cr0 = CR0_ET;
    vmcb->cr4 = 0;
    vmcb->efer = EFER_SVME;
    vmcb->cs =
        (struct vmcb_segment){.selector = 0x900, .attrib = 0x9b, .limit = 0xffff, .base = 0x9000};
    vmcb->ss = vmcb->ds = vmcb->es = (struct vmcb_segment){.attrib = 0x93, .limit = 0xffff};
    l2_run();
    report(vmcb->exitcode == VMEXIT_CPUID && vmcb->rip == 2 && vmcb->rax == 0x900,
           "an L2 in real mode: EXITCODE %#llx, RIP %#llx", LLU(vmcb->exitcode), LLU(vmcb->rip));
}

// --- the consistency checks (APM vol. 2 "Canonicalization and Consistency Checks") ---

#define SPOIL(name, code)          \
    static void spoil_##name(void) \
    {                              \
        code;                      \
    }
SPOIL(svme, vmcb->efer &= ~EFER_SVME)
SPOIL(nw, vmcb->cr0 |= CR0_NW)
SPOIL(cr0, vmcb->cr0 |= 1ull << 32)
SPOIL(cr3, vmcb->cr3 |= 1ull << 52)
SPOIL(cr4_high, vmcb->cr4 |= 1ull << 32)
SPOIL(cr4_low, vmcb->cr4 |= 1ull << 15)
SPOIL(dr6, vmcb->dr6 |= 1ull << 32)
SPOIL(dr7, vmcb->dr7 |= 1ull << 63)
SPOIL(efer, vmcb->efer |= 1ull << 40)
SPOIL(efer_low, vmcb->efer |= 1ull << 9)
SPOIL(pae, vmcb->cr4 &= ~CR4_PAE)
SPOIL(pe, vmcb->cr0 &= ~CR0_PE)
SPOIL(cs, vmcb->cs.attrib |= 1 << 10)
SPOIL(vmrun, vmcb->intercept[SVM_WORD_4] &= ~(u32)SVM_INTERCEPT_VMRUN)
SPOIL(msrpm, vmcb->msrpm_base_pa = 1ull << 52)
SPOIL(iopm, vmcb->iopm_base_pa = 1ull << 52)
SPOIL(asid, vmcb->guest_asid = 0)
SPOIL(type1, vmcb->eventinj = SVM_EVENT_V | 1 << SVM_EVENT_TYPE_SHIFT)
SPOIL(type5, vmcb->eventinj = SVM_EVENT_V | 5 << SVM_EVENT_TYPE_SHIFT | 3)
SPOIL(vector2, vmcb->eventinj = SVM_EVENT_V | SVM_EVENT_EXCEPTION << SVM_EVENT_TYPE_SHIFT | 2)
SPOIL(vector32, vmcb->eventinj = SVM_EVENT_V | SVM_EVENT_EXCEPTION << SVM_EVENT_TYPE_SHIFT | 32)

static const struct {
    void (*spoil)(void);
    const char *name;
} spoils[] = {
    {spoil_svme, "EFER.SVME clear"},
    {spoil_nw, "CR0.NW without CD"},
    {spoil_cr0, "CR0[32]"},
    {spoil_cr3, "CR3[52]"},
    {spoil_cr4_high, "CR4[32]"},
    {spoil_cr4_low, "CR4[15]"},
    {spoil_dr6, "DR6[32]"},
    {spoil_dr7, "DR7[63]"},
    {spoil_efer, "EFER[40]"},
    {spoil_efer_low, "EFER[9]"},
    {spoil_pae, "LME and PG without PAE"},
    {spoil_pe, "LME and PG without PE"},
    {spoil_cs, "CS.L and CS.D"},
    {spoil_vmrun, "VMRUN not intercepted"},
    {spoil_msrpm, "MSRPM beyond the physical addresses"},
    {spoil_iopm, "IOPM beyond the physical addresses"},
    {spoil_asid, "ASID 0"},
    {spoil_type1, "EVENTINJ type 1"},
    {spoil_type5, "EVENTINJ type 5"},
    {spoil_vector2, "EVENTINJ exception 2"},
    {spoil_vector32, "EVENTINJ exception 32"},
};

static void test_invalid(void)
{
    struct l1_state before, after;

    note_state(&before);
    for (unsigned i = 0; i < ARRAY_SIZE(spoils); i++) {
        l2_init(l2_cpuid);
        spoils[i].spoil();
        l2_run();
        note_state(&after);
        // QEMU 7.2 stores the low half only, and lacks several checks
        report_known(MACHINE_QEMU, vmcb->exitcode == VMEXIT_INVALID, "%s: EXITCODE %#llx",
                     spoils[i].name, LLU(vmcb->exitcode));
        if (memcmp(&before, &after, sizeof(before)) != 0 || l2_registers[0] != (u64)vmcb)
            report(false, "%s: L1's state changed", spoils[i].name);
    }
    l2_init(l2_cpuid);
    vmcb->guest_asid = 0;
    svm_run((u64)vmcb);
    self_ipi();
    sti();
    pause();
    report(ipi_count == 0, "GIF is 0 after VMEXIT_INVALID");
    stgi();
    pause();
    cli();
    report(ipi_count == 1, "STGI sets it");
}

// --- nested paging (15.25) ---

L2(l2_write, "mov %rbx, (%rdi); vmmcall");

static void test_nested_paging(void)
{
    u64 *tables = identity_tables(NPT_ALL, NPT_ALL), target = 0x30000000;

    if (!(cpuid(0x8000000a, 0).edx & SVM_FEATURE_NP)) {
        report_skip("no nested paging");
        return;
    }
    tables[DIRECTORIES + target / SIZE_2M] = 0;
    l2_init(l2_write);
    vmcb->np_enable = 1;
    vmcb->n_cr3 = (u64)tables;
    vmcb->tlb_control = SVM_TLB_FLUSH_ALL;
    l2_registers[RDI] = target + 8;
    l2_registers[RBX] = 0x600df00d;
    report_vmexit(l2_run() == VMEXIT_NPF && l2_at(l2_write) && vmcb->exitinfo2 == target + 8 &&
                      (vmcb->exitinfo1 & 0x1f) == (PF_W | PF_U) &&
                      (vmcb->exitinfo1 & SVM_NPF_FINAL),
                  "nested page fault");
    tables[DIRECTORIES + target / SIZE_2M] = 0x2000000 | 0x87;
    report_vmexit(l2_run() == VMEXIT_VMMCALL && *(volatile u64 *)0x2000008 == 0x600df00d,
                  "L2 goes on when the page is there, and its write lands where L1 mapped it");
}

// --- VMLOAD, VMSAVE ---

static const struct {
    u32 msr;
    u16 offset;
} vmload_msrs[] = {
    {MSR_FS_BASE, offsetof(struct vmcb, fs.base)},
    {MSR_GS_BASE, offsetof(struct vmcb, gs.base)},
    {MSR_STAR, offsetof(struct vmcb, star)},
    {MSR_LSTAR, offsetof(struct vmcb, lstar)},
    {MSR_CSTAR, offsetof(struct vmcb, cstar)},
    {MSR_SFMASK, offsetof(struct vmcb, sfmask)},
    {MSR_KERNEL_GS_BASE, offsetof(struct vmcb, kernel_gs_base)},
    {MSR_SYSENTER_CS, offsetof(struct vmcb, sysenter_cs)},
    {MSR_SYSENTER_ESP, offsetof(struct vmcb, sysenter_esp)},
    {MSR_SYSENTER_EIP, offsetof(struct vmcb, sysenter_eip)},
};

static u64 *slot(struct vmcb *v, unsigned i)
{
    return (u64 *)((u8 *)v + vmload_msrs[i].offset);
}

static void test_vmload(void)
{
    struct vmcb *saved = pages(1);
    bool stored = true, loaded = true, kept = true;
    u16 ldt;

    for (unsigned i = 0; i < ARRAY_SIZE(vmload_msrs); i++)
        msr_write(vmload_msrs[i].msr, 0x1000 + i * 0x100);
    memset(saved, 0x5a, sizeof(*saved));
    do_vmsave(saved);
    for (unsigned i = 0; i < ARRAY_SIZE(vmload_msrs); i++)
        stored &= *slot(saved, i) == 0x1000 + i * 0x100;
    report(stored, "VMSAVE stores the bases, SYSCALL's and SYSENTER's MSRs");
    report(saved->tr.selector == TSS && saved->tr.base == (u64)&tss && saved->tr.limit == 103,
           "VMSAVE stores TR");
    report(saved->cs.base == 0x5a5a5a5a5a5a5a5a && saved->rip == 0x5a5a5a5a5a5a5a5a &&
               saved->exitcode == 0x5a5a5a5a5a5a5a5a,
           "and nothing else");
    for (unsigned i = 0; i < ARRAY_SIZE(vmload_msrs); i++)
        *slot(saved, i) += 0x2000;
    saved->ldtr =
        (struct vmcb_segment){.selector = 0x58, .attrib = 0x82, .limit = 0xff, .base = 0x5000};
    do_vmload(saved);
    for (unsigned i = 0; i < ARRAY_SIZE(vmload_msrs); i++)
        loaded &= msr_read(vmload_msrs[i].msr) == 0x3000 + i * 0x100;
    __asm__ volatile("sldt %0" : "=m"(ldt));
    report(loaded, "VMLOAD loads them");
    report(ldt == 0x58, "VMLOAD loads LDTR: %#x", ldt);
    l2_run_code(l2_cpuid);
    for (unsigned i = 0; i < ARRAY_SIZE(vmload_msrs); i++)
        kept &= msr_read(vmload_msrs[i].msr) == 0x3000 + i * 0x100;
    __asm__ volatile("sldt %0" : "=m"(ldt));
    report(kept && ldt == 0x58, "VMRUN and #VMEXIT leave them alone");
    saved->ldtr = (struct vmcb_segment){0};
    do_vmload(saved);
}

void guest_main(void)
{
    svm_prepare();
    if (!test_presence())
        return;
    test_faults();
    test_round_trip();
    test_host_state();
    test_other_modes();
    test_nested_paging();
    test_invalid();
    test_vmload();
}
