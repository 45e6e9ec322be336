// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Hardware task switches in 32-bit protected mode, without paging, with 32-bit paging and with PAE:
// by CALL, JMP and IRET, through task gates in the GDT and the IDT, with an error code, to a 16-bit
// TSS; the T flag; and the faults before and after the switch (SDM vol. 3 "Task Management").

#include "guest.h"

enum {
    MAIN = 0x58,
    SUB = 0x60,
    GATE = 0x68,
    SUB16 = 0x70,
    ABSENT = 0x78,
    SHORT = 0x80,
    LDT = 0x88,
    CODE_SUB16 = 0x90,
    DATA_ABSENT = 0x98,
    FIX = 0xa0,
    FAR_BEYOND = 0x1230,
    BUSY = 2,
    STACK16 = 0x6000,
    MARK = 0x13572468,
};

struct tss32 {
    u32 link, inner[6], cr3, eip, eflags;
    u32 eax, ecx, edx, ebx, esp, ebp, esi, edi;
    u32 es, cs, ss, ds, fs, gs, ldt;
    u16 trap, io_map;
};
_Static_assert(sizeof(struct tss32) == 104, "SDM");

struct tss16 {
    u16 link, inner[6], ip, flags, ax, cx, dx, bx, sp, bp, si, di, es, cs, ss, ds, ldt;
};
_Static_assert(sizeof(struct tss16) == 44, "SDM");

u64 gdt32[22], idt32[256];
struct tss32 main_tss;
static struct tss32 sub_tss, fix_tss;
static struct tss16 sub16_tss;
static u64 ldt[4];
static u32 stack[256];

void task_run(u32 step, u32 cr3, u32 cr4);
extern char step_call[], step_gate[], step_jmp[], step_int[], step_int3[], step_fault[],
    step_call16[], step_absent[], step_short[], step_busy[], step_iret[];
extern char sub_iret[], sub_jmp[], sub_fault[], sub_abandon[], sub16[];
extern char on_db[], on_ts[], on_np[], on_ss[], on_gp[];
extern volatile u32 seen_esp, seen_eax, seen_flags, seen_tr, seen_cr0, seen_cr3, seen_ldt, seen_gs,
    seen_count, seen_error, seen_vector, fault_tr, fault_dr6, skip, main_cr3, main_lost, main_tr,
    main_cr0, main_flags;

static const char *mode;
static u32 cr3, cr3_sub, cr4;

static u32 at(const void *p)
{
    return (u32)(u64)p;
}

static u64 descriptor(u32 base, u32 limit, u32 access)
{
    return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 |
           (u64)(base >> 24) << 56;
}

static u64 gate(u32 selector, u32 offset, u32 access)
{
    return (offset & 0xffff) | selector << 16 | (u64)access << 40 | (u64)(offset >> 16) << 48;
}

static void set_int(unsigned vector, const char *handler)
{
    idt32[vector] = gate(CODE32, at(handler), 0x8e);
}

// Everything as before the first switch; the other task begins at `eip`.
static void prepare(const char *eip)
{
    memcpy(gdt32, gdt, 0x58);
    gdt32[MAIN / 8] = descriptor(at(&main_tss), 103, 0x89);
    gdt32[SUB / 8] = descriptor(at(&sub_tss), 103, 0x89);
    gdt32[GATE / 8] = gate(SUB, 0, 0x85);
    gdt32[SUB16 / 8] = descriptor(at(&sub16_tss), 43, 0x81);
    gdt32[ABSENT / 8] = descriptor(at(&sub_tss), 103, 0x09);
    gdt32[SHORT / 8] = descriptor(at(&sub_tss), 102, 0x89);
    gdt32[LDT / 8] = descriptor(at(ldt), sizeof(ldt) - 1, 0x82);
    gdt32[CODE_SUB16 / 8] = descriptor(at(sub16), 0xffff, 0x9b) | BIT(54);
    gdt32[DATA_ABSENT / 8] = gdt[DATA / 8] & ~BIT(47);
    gdt32[FIX / 8] = descriptor(at(&fix_tss), 103, 0x89);
    ldt[1] = gdt[DATA / 8] & ~BIT(40); // not accessed yet
    memset(&main_tss, 0, sizeof(main_tss));
    main_tss.cr3 = cr3;
    sub_tss = (struct tss32){.cr3 = cr3_sub,
                             .eip = at(eip),
                             .eflags = RFLAGS_FIXED,
                             .eax = MARK,
                             .esp = at(stack + 200),
                             .es = DATA,
                             .cs = CODE32,
                             .ss = DATA,
                             .ds = DATA,
                             .fs = 0,
                             .gs = 8 | 4,
                             .ldt = LDT,
                             .io_map = 104};
    sub16_tss = (struct tss16){.flags = RFLAGS_FIXED,
                               .sp = STACK16,
                               .cs = CODE_SUB16,
                               .es = DATA,
                               .ss = DATA,
                               .ds = DATA,
                               .ax = 0x2468};
    set_int(1, on_db);
    set_int(10, on_ts);
    set_int(11, on_np);
    set_int(12, on_ss);
    set_int(13, on_gp);
    idt32[3] = idt32[0x50] = gate(SUB, 0, 0x85);
    seen_count = seen_error = seen_vector = fault_tr = skip = seen_tr = 0;
    __asm__ volatile("mov %0, %%dr6" : : "r"(0xffff0ff0ull));
}

static bool busy(u32 selector)
{
    return gdt32[selector / 8] >> 40 & BUSY;
}

static void run(const char *step)
{
    task_run(at(step), cr3, cr4);
}

// What holds after every way there and back.
static void check(const char *what, bool nested)
{
    report(seen_count == 1 && seen_tr == SUB && main_tr == MAIN, "%s: %s: TR %#x, then %#x", mode,
           what, seen_tr, main_tr);
    report(!main_lost, "%s: %s: the registers are back", mode, what);
    report(!(seen_flags & RFLAGS_NT) == !nested && !(main_flags & RFLAGS_NT) &&
               (!nested || sub_tss.link == MAIN),
           "%s: %s: NT and the link %#x", mode, what, sub_tss.link);
    report(busy(MAIN) && !busy(SUB), "%s: %s: the busy bits", mode, what);
    report((seen_cr0 & CR0_TS) && (main_cr0 & CR0_TS), "%s: %s: CR0.TS", mode, what);
    report(seen_ldt == LDT && seen_gs == 12, "%s: %s: LDT %#x, GS %#x", mode, what, seen_ldt,
           seen_gs);
    report_cpu(MACHINE_QEMU, ldt[1] & BIT(40), "%s: %s: GS's accessed bit", mode, what);
    if (cr3)
        report(seen_cr3 == cr3_sub && main_cr3 == cr3, "%s: %s: CR3 %#x, then %#x", mode, what,
               seen_cr3, main_cr3);
}

static void test_ways(void)
{
    static const struct {
        const char *name, *step, *eip;
        bool nested;
    } ways[] = {
        {"CALL", step_call, sub_iret, true}, {"task gate", step_gate, sub_iret, true},
        {"JMP", step_jmp, sub_jmp, false},   {"INT n", step_int, sub_iret, true},
        {"INT3", step_int3, sub_iret, true},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(ways); i++) {
        prepare(ways[i].eip);
        run(ways[i].step);
        check(ways[i].name, ways[i].nested);
        report(seen_eax == MARK && seen_esp == at(stack + 200), "%s: %s: EAX and ESP %#x", mode,
               ways[i].name, seen_esp);
    }
}

static void test_error_code(void)
{
    prepare(sub_fault);
    idt32[13] = gate(SUB, 0, 0x85);
    run(step_fault);
    check("#GP", true);
    report(seen_error == FAR_BEYOND && seen_esp == at(stack + 200), "%s: #GP: error %#x, ESP %#x",
           mode, seen_error, seen_esp);
    report_cpu(MACHINE_QEMU, main_tss.eflags & RFLAGS_RF, "%s: #GP: a fault stores RF", mode);
}

static void test_16(void)
{
    prepare(sub_iret);
    run(step_call16);
    report(seen_count == 1 && seen_tr == SUB16 && main_tr == MAIN && !main_lost,
           "%s: 16-bit TSS: TR %#x, then %#x", mode, seen_tr, main_tr);
    report((u16)seen_eax == 0x2468 && (u16)seen_esp == STACK16 && sub16_tss.link == MAIN &&
               seen_gs == 0,
           "%s: 16-bit TSS: AX %#x, SP %#x, link %#x", mode, seen_eax, seen_esp, sub16_tss.link);
    report(sub16_tss.ip != 0 && sub16_tss.cs == CODE_SUB16, "%s: 16-bit TSS: stored", mode);
}

static void test_trap(void)
{
    prepare(sub_iret);
    sub_tss.trap = 1;
    run(step_call);
    report_cpu(
        MACHINE_QEMU, seen_vector == 1 && fault_tr == SUB && fault_dr6 & BIT(15) && seen_count == 1,
        "%s: T flag: vector %u, DR6 %#x, in task %#x", mode, seen_vector, fault_dr6, fault_tr);
}

static void check_fault(const char *what, u32 vector, u32 error, u32 task)
{
    report(seen_vector == vector && seen_error == error && fault_tr == task,
           "%s: %s: vector %u, error %#x, in task %#x", mode, what, seen_vector, seen_error,
           fault_tr);
}

static void test_refused(void)
{
    static const struct {
        const char *name, *step;
        u32 vector, error, length;
    } cases[] = {
        {"absent TSS", step_absent, 11, ABSENT, 7},
        {"short TSS", step_short, 10, SHORT, 7},
        {"busy TSS", step_busy, 13, MAIN, 7},
        {"IRET to a TSS that is not busy", step_iret, 10, SUB, 1},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        if (cases[i].vector == 11 && cpu_machine() == MACHINE_QEMU) {
            report_skip("QEMU switches to a TSS that is not present");
            continue;
        }
        prepare(sub_iret);
        main_tss.link = SUB;
        skip = cases[i].length;
        run(cases[i].step);
        check_fault(cases[i].name, cases[i].vector, cases[i].error, MAIN);
        report(seen_count == 0 && busy(MAIN) && !busy(SUB) && !main_lost,
               "%s: %s: nothing is changed", mode, cases[i].name);
    }
}

// Faults of the new task. What is wrong is mended by the handler, or not needed.
static void test_new_task(void)
{
    static const struct {
        const char *name;
        u32 selector, vector;
    } cases[] = {
        {"DS beyond the GDT", FAR_BEYOND, 10},
        {"DS is a TSS", SUB16, 10},
        {"DS absent", DATA_ABSENT, 11},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        prepare(sub_iret);
        sub_tss.ds = cases[i].selector;
        run(step_call);
        check_fault(cases[i].name, cases[i].vector, cases[i].selector, SUB);
        report(seen_count == 1 && seen_tr == SUB && main_tr == MAIN && !main_lost, "%s: %s: and on",
               mode, cases[i].name);
    }
}

// Where CS, SS or the LDT is bad the new task can't take the fault itself: a third one does.
static void test_no_task(void)
{
    static const struct {
        const char *name;
        u32 cs, ss, ldt, error;
    } cases[] = {
        {"CS null", 0, DATA, 0, 0},
        {"CS is data", DATA, DATA, 0, DATA},
        {"CS for another level", CODE32 | 3, USER_DATA, 0, CODE32},
        {"SS null", CODE32, 0, 0, 0},
        {"SS is code", CODE32, CODE32, 0, CODE32},
        {"SS absent", CODE32, DATA_ABSENT, 0, DATA_ABSENT},
        {"LDT is data", CODE32, DATA, DATA, DATA},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        prepare(sub_iret);
        sub_tss.gs = 0;
        fix_tss = sub_tss;
        fix_tss.eip = at(sub_abandon);
        fix_tss.ldt = 0;
        sub_tss.ds = sub_tss.es = 0;
        sub_tss.cs = cases[i].cs;
        sub_tss.ss = cases[i].ss;
        sub_tss.ldt = cases[i].ldt;
        idt32[10] = idt32[12] = gate(FIX, 0, 0x85);
        run(step_call);
        report(seen_count == 1 && seen_error == cases[i].error && fix_tss.link == SUB,
               "%s: %s: error %#x, in task %#x", mode, cases[i].name, seen_error, fix_tss.link);
        report(sub_tss.eip == at(sub_iret) && sub_tss.eax == MARK && main_tr == MAIN && !main_lost,
               "%s: %s: stored as it was loaded", mode, cases[i].name);
    }
}

static u32 table_pse(void)
{
    u32 *directory = pages(1);

    for (u32 i = 0; i < 1024; i++)
        directory[i] = i << 22 | 0x83;
    return at(directory);
}

static u32 table_pae(void)
{
    u64 *pdpt = pages(1);

    for (u64 i = 0; i < 4; i++)
        pdpt[i] = (u64)(directories + 512 * i) | 1;
    return at(pdpt);
}

static void test_all(const char *name, u32 main_table, u32 sub_table, u32 features)
{
    mode = name;
    cr3 = main_table;
    cr3_sub = sub_table;
    cr4 = features;
    test_ways();
    test_error_code();
    test_16();
    test_trap();
    test_refused();
    if (cpu_machine() != MACHINE_QEMU) {
        test_new_task();
        test_no_task();
    } else {
        report_skip("QEMU does not end a switch that faults in the new task");
    }
}

void guest_main(void)
{
    pic_mask_all();
    test_all("no paging", 0, 0, 0);
    test_all("32-bit paging", table_pse(), table_pse(), CR4_PSE);
    test_all("PAE", table_pae(), table_pae(), CR4_PAE);
    tss_load(0x67);
}
