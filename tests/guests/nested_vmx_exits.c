// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Instructions of a small hypervisor's L2 that exit: by themselves, by a control, by CR0's and
// CR4's masks, by the I/O and MSR bitmaps; what each exit tells; and the MSR areas (SDM vol. 3
// "Instructions That Cause VM Exits", "Information for VM Exits Due to Instruction Execution").
// What depends on L2's mode is in vmx_modes.

#include "vmx.h"

L2(l2_vmcall, "vmcall");
L2(l2_vmxoff, "vmxoff");
L2(l2_vmlaunch, "vmlaunch");
L2(l2_vmread, "vmread %rcx, 8(%rdi, %rsi, 4)");
L2(l2_vmwrite, "vmwrite %rdx, %rcx");
L2(l2_vmptrld, "vmptrld 0x40(%rbx)");
L2(l2_invd, "invd");
L2(l2_rdtsc, "rdtsc; hlt");
L2(l2_rdpmc, "rdpmc");
L2(l2_invlpg, "invlpg 16(%rdi); hlt");
L2(l2_pause, "pause; hlt");
L2(l2_read_cr3, "mov %cr3, %rbx; hlt");
L2(l2_write_cr3, "mov %rbx, %cr3; hlt");
L2(l2_read_cr8, "mov %cr8, %rbx; hlt");
L2(l2_write_cr8, "mov %rbx, %cr8; hlt");
L2(l2_read_dr7, "mov %dr7, %rbx; hlt");
L2(l2_write_dr0, "mov %rcx, %dr0; hlt");
L2(l2_monitor, "monitor");
L2(l2_mwait, "mwait");
L2(l2_rdmsr, "rdmsr; hlt");
L2(l2_wrmsr, "wrmsr; hlt");

static const struct {
    const char *name;
    char *code;
    u32 primary;
    u16 reason;
    u8 length;
    u64 qualification;
} exits[] = {
    {"VMCALL", l2_vmcall, 0, REASON_VMCALL, 3, 0},
    {"VMXOFF", l2_vmxoff, 0, REASON_VMXOFF, 3, 0},
    {"VMLAUNCH", l2_vmlaunch, 0, REASON_VMLAUNCH, 3, 0},
    {"VMREAD", l2_vmread, 0, REASON_VMREAD, 5, 8},
    {"VMWRITE", l2_vmwrite, 0, REASON_VMWRITE, 3, 0},
    {"VMPTRLD", l2_vmptrld, 0, REASON_VMPTRLD, 4, 0x40},
    {"INVD", l2_invd, 0, REASON_INVD, 2, 0},
    {"RDMSR", l2_rdmsr, 0, REASON_RDMSR, 2, 0},
    {"WRMSR", l2_wrmsr, 0, REASON_WRMSR, 2, 0},
    {"RDTSC", l2_rdtsc, PRIMARY_RDTSC, REASON_RDTSC, 2, 0},
    {"RDPMC", l2_rdpmc, PRIMARY_RDPMC, REASON_RDPMC, 2, 0},
    {"INVLPG", l2_invlpg, PRIMARY_INVLPG, REASON_INVLPG, 4, UNMAPPED + 16},
    {"PAUSE", l2_pause, PRIMARY_PAUSE, REASON_PAUSE, 2, 0},
    {"MOV from CR3", l2_read_cr3, PRIMARY_CR3_STORE, REASON_CR_ACCESS, 3, 3 | 1 << 4 | 3 << 8},
    {"MOV to CR3", l2_write_cr3, PRIMARY_CR3_LOAD, REASON_CR_ACCESS, 3, 3 | 3 << 8},
    {"MOV from CR8", l2_read_cr8, PRIMARY_CR8_STORE, REASON_CR_ACCESS, 4, 8 | 1 << 4 | 3 << 8},
    {"MOV to CR8", l2_write_cr8, PRIMARY_CR8_LOAD, REASON_CR_ACCESS, 4, 8 | 3 << 8},
    {"MOV from DR7", l2_read_dr7, PRIMARY_MOV_DR, REASON_MOV_DR, 3, 7 | 1 << 4 | 3 << 8},
    {"MOV to DR0", l2_write_dr0, PRIMARY_MOV_DR, REASON_MOV_DR, 3, 1 << 8},
    {"MONITOR", l2_monitor, PRIMARY_MONITOR, REASON_MONITOR, 3, 0},
    {"MWAIT", l2_mwait, PRIMARY_MWAIT, REASON_MWAIT, 3, 0},
};

static void test_exits(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(exits); i++) {
        u64 reason;

        if (!offers(MSR_VMX_PROCBASED_CTLS, exits[i].primary) && exits[i].primary)
            continue;
        init(exits[i].code);
        set_primary(PRIMARY_HLT | exits[i].primary);
        l2_registers[RDI] = UNMAPPED;
        reason = run();
        report(reason == exits[i].reason && at(exits[i].code) &&
                   vmread(EXIT_INSTRUCTION_LENGTH) == exits[i].length &&
                   vmread(EXIT_QUALIFICATION) == exits[i].qualification,
               "%s exits: reason %llu, length %llu, qualification %#llx", exits[i].name,
               LLU(reason), LLU(vmread(EXIT_INSTRUCTION_LENGTH)), LLU(vmread(EXIT_QUALIFICATION)));
    }
}

// Table "Format of the VM-Exit Instruction-Information Field as Used for VMREAD and VMWRITE", and
// for VMPTRLD.
static void test_instruction_information(void)
{
    u64 info;

    run_code(l2_vmread);
    info = vmread(EXIT_INSTRUCTION_INFO);
    report((info & 0xffff8783) == (2 | 2 << 7 | 3 << 15 | 6u << 18 | 7u << 23 | 1u << 28),
           "VMREAD to memory: information %#llx", LLU(info));
    run_code(l2_vmwrite);
    info = vmread(EXIT_INSTRUCTION_INFO);
    report((info & 0xf0000478) == (2 << 3 | 1 << 10 | 1u << 28),
           "VMWRITE from a register: information %#llx", LLU(info));
    run_code(l2_vmptrld);
    info = vmread(EXIT_INSTRUCTION_INFO);
    report((info & 0x0fc38780) == (2 << 7 | 3 << 15 | 1 << 22 | 3u << 23),
           "VMPTRLD: information %#llx", LLU(info));
}

L2(l2_read_cr0, "mov %cr0, %rbx; mov %cr4, %rcx; hlt");
L2(l2_write_cr0, "mov %rbx, %cr0; mov %cr0, %rcx; hlt");
L2(l2_clts, "clts; mov %cr0, %rcx; hlt");
L2(l2_lmsw, "lmsw %bx; hlt");
L2(l2_write_cr4, "mov %rbx, %cr4; hlt");

static void test_control_registers(void)
{
    u64 cr0 = read_cr0();

    init(l2_read_cr0);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_AM | CR0_WP);
    vmwrite(CR0_READ_SHADOW, CR0_AM);
    vmwrite(CR4_GUEST_HOST_MASK, CR4_VMXE);
    report_exit(run() == REASON_HLT && l2_registers[RBX] == ((cr0 & ~CR0_WP) | CR0_AM) &&
                    l2_registers[RCX] == (read_cr4() & ~CR4_VMXE),
                "L2 reads the shadows of masked bits");
    init(l2_write_cr0);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_AM);
    l2_registers[RBX] = cr0 ^ CR0_AM;
    report_exit(run() == REASON_CR_ACCESS && vmread(EXIT_QUALIFICATION) == 3 << 8 &&
                    at(l2_write_cr0),
                "MOV to CR0 that differs from the shadow in a masked bit");
    init(l2_write_cr0);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_AM);
    l2_registers[RBX] = cr0 ^ CR0_WP;
    report_exit(run() == REASON_HLT && vmread(GUEST_CR0) == (cr0 ^ CR0_WP) &&
                    l2_registers[RCX] == ((cr0 ^ CR0_WP) & ~CR0_AM),
                "MOV to CR0 that does not");
    init(l2_write_cr0);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_GP);
    l2_registers[RBX] = cr0 & ~CR0_NE;
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_GP, true),
                "MOV to CR0 against its fixed bits: #GP");
    init(l2_clts);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_TS);
    vmwrite(CR0_READ_SHADOW, CR0_TS);
    report_exit(run() == REASON_CR_ACCESS && vmread(EXIT_QUALIFICATION) == 2 << 4, "CLTS");
    init(l2_clts);
    vmwrite(GUEST_CR0, cr0 | CR0_TS);
    report_exit(run() == REASON_HLT && vmread(GUEST_CR0) == cr0, "CLTS that L1 does not want");
    init(l2_lmsw);
    vmwrite(CR0_GUEST_HOST_MASK, CR0_TS);
    l2_registers[RBX] = CR0_PE | CR0_TS;
    report_exit(run() == REASON_CR_ACCESS &&
                    vmread(EXIT_QUALIFICATION) == (3 << 4 | (CR0_PE | CR0_TS) << 16),
                "LMSW");
    init(l2_write_cr4);
    vmwrite(CR4_GUEST_HOST_MASK, CR4_PGE);
    l2_registers[RBX] = read_cr4() | CR4_PGE;
    report_exit(run() == REASON_CR_ACCESS && vmread(EXIT_QUALIFICATION) == (4 | 3 << 8),
                "MOV to CR4 of a masked bit");
    init(l2_write_cr4);
    l2_registers[RBX] = read_cr4() | CR4_DE;
    report_exit(run() == REASON_HLT && vmread(GUEST_CR4) == (read_cr4() | CR4_DE),
                "MOV to CR4 of another");
    init(l2_write_cr4);
    vmwrite(EXCEPTION_BITMAP, 1u << VECTOR_GP);
    l2_registers[RBX] = read_cr4() | 1ull << 31;
    run();
    report_exit(excepted(TYPE_EXCEPTION, VECTOR_GP, true), "MOV to CR4 of a reserved bit: #GP");
    init(l2_write_cr3);
    set_primary(PRIMARY_HLT | PRIMARY_CR3_LOAD);
    vmwrite(CR3_TARGET_COUNT, 2);
    vmwrite(CR3_TARGET_VALUE1, read_cr3());
    l2_registers[RBX] = read_cr3();
    report_exit(run() == REASON_HLT, "MOV to CR3 of a target value");
}

static void test_tsc(void)
{
    u64 before;

    init(l2_rdtsc);
    set_primary(PRIMARY_HLT | PRIMARY_TSC_OFFSETTING);
    vmwrite(TSC_OFFSET, 1ull << 50);
    before = rdtsc();
    run();
    before = ((u32)l2_registers[RAX] | l2_registers[RDX] << 32) - before - (1ull << 50);
    report(before < 1ull << 32, "TSC offset: RDTSC is that much ahead, and %llu ticks",
           LLU(before));
}

// --- bitmaps ---

L2(l2_in8, "in %dx, %al; hlt");
L2(l2_in16, "in %dx, %ax; hlt");
L2(l2_out32, "out %eax, %dx; hlt");
L2(l2_out_imm, "out %al, $0x80; hlt");
L2(l2_outs, "rep outsb %fs:(%rsi), %dx; hlt");

static u8 *io_bitmaps, *msr_bitmap;

static u64 run_io(const void *code, u16 port)
{
    init(code);
    set_primary(PRIMARY_HLT | PRIMARY_IO_BITMAPS);
    vmwrite(IO_BITMAP_A, (u64)io_bitmaps);
    vmwrite(IO_BITMAP_B, (u64)io_bitmaps + PAGE_SIZE);
    l2_registers[RDX] = port;
    l2_registers[RCX] = 1;
    l2_registers[RSI] = (u64)l2_stack;
    return run();
}

static void test_io(void)
{
    io_bitmaps[0x80 / 8] = 1;
    io_bitmaps[0x9000 / 8] = 1;
    report_exit(run_io(l2_in8, 0x80) == REASON_IO &&
                    vmread(EXIT_QUALIFICATION) == (0x80 << 16 | 1 << 3),
                "IN");
    report_exit(run_io(l2_out32, 0x80) == REASON_IO &&
                    vmread(EXIT_QUALIFICATION) == (0x80 << 16 | 3),
                "OUT of 32 bits");
    report_exit(run_io(l2_out_imm, 0) == REASON_IO &&
                    vmread(EXIT_QUALIFICATION) == (0x80 << 16 | 1 << 6),
                "OUT to an immediate port");
    report_exit(run_io(l2_in16, 0x7f) == REASON_IO, "IN of 16 bits whose second byte's bit is set");
    report_exit(run_io(l2_in8, 0x9000) == REASON_IO, "bitmap B");
    report_exit(run_io(l2_in8, 0x81) == REASON_HLT, "another port does not exit");
    report_exit(run_io(l2_in16, 0xffff) == REASON_IO, "an access that wraps around");
    report_exit(run_io(l2_outs, 0x80) == REASON_IO &&
                    vmread(EXIT_QUALIFICATION) == (0x80 << 16 | 1 << 4 | 1 << 5) &&
                    vmread(GUEST_LINEAR_ADDRESS) == (u64)l2_stack,
                "REP OUTSB");
    if (vmx_basic & VMX_BASIC_INS_OUTS_INFO)
        report((vmread(EXIT_INSTRUCTION_INFO) & 0x38380) == (2 << 7 | 4 << 15),
               "its instruction information %#llx", LLU(vmread(EXIT_INSTRUCTION_INFO)));
    init(l2_in8);
    l2_registers[RDX] = 0x80;
    report_exit(run() == REASON_HLT, "no I/O control: no exit");
    init(l2_in8);
    set_primary(PRIMARY_HLT | PRIMARY_UNCONDITIONAL_IO);
    l2_registers[RDX] = 0x81;
    report_exit(run() == REASON_IO, "unconditional I/O exiting");
}

static u64 run_msr(const void *code, u32 msr, u64 value)
{
    init(code);
    set_primary(PRIMARY_HLT | PRIMARY_MSR_BITMAPS);
    vmwrite(MSR_BITMAP, (u64)msr_bitmap);
    l2_registers[RCX] = msr;
    l2_registers[RAX] = (u32)value;
    l2_registers[RDX] = value >> 32;
    return run();
}

static void test_msrs(void)
{
    unsigned lstar = MSR_LSTAR & 0x1fff;
    u8 bit = (u8)(1u << lstar % 8);

    msr_bitmap[0x400 + lstar / 8] = bit;
    report_exit(run_msr(l2_rdmsr, MSR_LSTAR, 0) == REASON_RDMSR && at(l2_rdmsr),
                "RDMSR whose bit is set");
    report_exit(run_msr(l2_wrmsr, MSR_LSTAR, 0x123456789ab) == REASON_HLT &&
                    msr_read(MSR_LSTAR) == 0x123456789ab,
                "WRMSR whose bit is clear; L1 sees what it wrote");
    msr_bitmap[0x400 + lstar / 8] = 0;
    msr_bitmap[0xc00 + lstar / 8] = bit;
    report_exit(run_msr(l2_wrmsr, MSR_LSTAR, 0) == REASON_WRMSR && at(l2_wrmsr),
                "WRMSR whose bit is set");
    report_exit(run_msr(l2_rdmsr, MSR_LSTAR, 0) == REASON_HLT &&
                    (l2_registers[RAX] | l2_registers[RDX] << 32) == 0x123456789ab,
                "RDMSR whose bit is clear");
    msr_bitmap[0xc00 + lstar / 8] = 0;
    report_exit(run_msr(l2_rdmsr, 0x40001234, 0) == REASON_RDMSR, "an MSR outside the bitmap");
    report_exit(run_msr(l2_wrmsr, MSR_FS_BASE, 0x8000) == REASON_HLT &&
                    vmread(GUEST_FS_BASE) == 0x8000 && msr_read(MSR_FS_BASE) == 0,
                "WRMSR to FS_BASE changes L2's");
}

L2(l2_cpuid, "cpuid; vmcall");

// The MSR areas: 16 bytes an entry.
static void test_msr_areas(void)
{
    u64 *area = pages(1);

    msr_write(MSR_CSTAR, 0x1000);
    init(l2_cpuid);
    area[0] = MSR_CSTAR;
    area[1] = 0x2000;
    area[2] = MSR_CSTAR; // stored by the exit
    area[4] = MSR_CSTAR;
    area[5] = 0x3000;
    vmwrite(ENTRY_MSR_LOAD_ADDRESS, (u64)area);
    vmwrite(EXIT_MSR_STORE_ADDRESS, (u64)(area + 2));
    vmwrite(EXIT_MSR_LOAD_ADDRESS, (u64)(area + 4));
    vmwrite(ENTRY_MSR_LOAD_COUNT, 1);
    vmwrite(EXIT_MSR_STORE_COUNT, 1);
    vmwrite(EXIT_MSR_LOAD_COUNT, 1);
    report_exit(run() == REASON_CPUID && area[3] == 0x2000 && msr_read(MSR_CSTAR) == 0x3000,
                "the MSR areas");
    init(l2_cpuid);
    area[0] = MSR_CSTAR;
    area[1] = 0x4000;
    area[2] = MSR_FS_BASE; // is not to be loaded so
    area[3] = 0;
    vmwrite(ENTRY_MSR_LOAD_ADDRESS, (u64)area);
    vmwrite(ENTRY_MSR_LOAD_COUNT, 2);
    report_exit(run() == (EXIT_REASON_ENTRY_FAILURE | REASON_MSR_LOADING) &&
                    vmread(EXIT_QUALIFICATION) == 2 && msr_read(MSR_CSTAR) == 0x4000,
                "an entry's MSR that can't be loaded");
}

void guest_main(void)
{
    if (!vmx_start()) {
        report(false, "no VMX");
        return;
    }
    io_bitmaps = pages(2);
    msr_bitmap = pages(1);
    test_exits();
    test_instruction_information();
    test_control_registers();
    test_tsc();
    test_io();
    test_msrs();
    test_msr_areas();
}
