// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Instructions of an L2 that exit, in every mode: what is #UD before it exits, and the instruction
// information, qualification, length and linear address of each operand's form (SDM vol. 3
// "Recording VM-Exit Information": tables "Format of the VM-Exit Instruction-Information Field as
// Used for ..."). And an L2 that changes its mode.

#include "vmx.h"

enum mode { LONG, COMPATIBILITY, FLAT32, FLAT16, REAL };
static const char *const mode_names[] = {"64-bit", "compatibility", "32-bit", "16-bit", "real"};

#define L16(name, code) L2(name, ".code16; " code "; .code64")
#define L32(name, code) L2(name, ".code32; " code "; .code64")

// What the tables say of an operand. SCALE 0 to 3; ADDR 0 to 2.
#define ADDR(n)    ((u64)(n) << 7)
#define REGISTER   BIT(10)
#define REG1(r)    ((u64)(r) << 3)
#define OP32       BIT(11)
#define OPERAND(n) ((u64)(n) << 11)
#define SEG(n)     ((u64)(n) << 15)
#define INDEX(r)   ((u64)(r) << 18)
#define NO_INDEX   BIT(22)
#define BASE(r)    ((u64)(r) << 23)
#define NO_BASE    BIT(27)
#define REG2(r)    ((u64)(r) << 28)
#define ANY_ID     REG2(3)
#define ANY_REG2   REG2(15)
#define IN_MEMORY  (ADDR(7) | SEG(7) | NO_INDEX | NO_BASE)
#define WITH_INDEX (INDEX(15) | 3)
#define WITH_BASE  BASE(15)
// Bochs says nothing of SGDT's operand size, and takes the address size for RDRAND's. (The mask is
// of 32 bits.)
#define BOCHS_DIFFERS BIT(63)

enum { ES, CS, SS, DS, FS, GS };
enum { EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI }; // as encoded

L32(sgdt32, "sgdt 0x12(%ebx,%esi,4)");
L32(lgdt32, "data16 lgdt %fs:-0x10(%ebp)");
L32(str32, "str 4(%esp)");
L32(lldt32, "lldt %si");
L32(read32, "vmread %eax, %ebx");
L32(write32, "vmwrite 8(%edx), %ecx");
L32(vmxon32, "vmxon (%edi)");
L32(vmptrst32, "vmptrst %es:0x7f(%esi)");
L32(invept32, "invept (%eax), %edi");
L32(invvpid32, "invvpid 0x400(,%ecx,2), %edx");
L32(vmlaunch32, "vmlaunch");
L32(rdrand32, "rdrand %edi");
L32(ins32, "rep insl");
L16(lidt16, "lidt 0x1234");
L16(sgdt16, "sgdt 6(%bp,%di)");
L16(sidt16, "addr32 sidt (%eax,%ecx,8)");
L16(sldt16, "sldt %dx");
L16(read16, ".byte 0x0f, 0x78, 0x07"); // VMREAD [BX], EAX
L16(rdrand16, "rdrand %cx");
L16(rdrand16_32, "rdrand %ebx");
L16(outs16, "outsw %es:(%si), %dx");
L16(vmcall16, "vmcall");
L16(vmclear16, ".byte 0x66, 0x0f, 0xc7, 0x36, 0x20, 0x00"); // VMCLEAR [0020H]
L2(sgdt64, "sgdt 0x10(%rip); sgdt64_end:");
L2(lidt64, "lidt %gs:0x12345678(,%r12,8)");
L2(write64, "vmwrite -4(%r8d,%r9d,2), %r10");
L2(read64, "vmread %r15, %r14");
L2(invept64, "invept -0x80(%rbp), %r11");
L2(sldt64, "sldt %r13");
extern char sgdt64_end[];

#define TABLES SECONDARY_DESCRIPTOR_TABLE
#define IO     PRIMARY_UNCONDITIONAL_IO

static const struct row {
    const char *name;
    const void *code;
    u8 mode;
    u8 reason, length;
    u32 primary, secondary;
    u64 qualification, mask, info;
} rows[] = {
    {"SGDT", sgdt32, FLAT32, REASON_GDTR_IDTR, 5, 0, TABLES, 0x12,
     IN_MEMORY | WITH_INDEX | WITH_BASE | ANY_ID | OP32 | BOCHS_DIFFERS,
     2 | ADDR(1) | SEG(DS) | INDEX(ESI) | BASE(EBX) | OP32},
    {"SGDT", sgdt32, COMPATIBILITY, REASON_GDTR_IDTR, 5, 0, TABLES, 0x12,
     IN_MEMORY | WITH_INDEX | WITH_BASE | ANY_ID | OP32 | BOCHS_DIFFERS,
     2 | ADDR(1) | SEG(DS) | INDEX(ESI) | BASE(EBX) | OP32},
    {"LGDT, 16-bit", lgdt32, FLAT32, REASON_GDTR_IDTR, 6, 0, TABLES, (u32)-0x10,
     IN_MEMORY | WITH_BASE | ANY_ID | OP32, ADDR(1) | SEG(FS) | NO_INDEX | BASE(EBP) | REG2(2)},
    {"STR", str32, FLAT32, REASON_LDTR_TR, 5, 0, TABLES, 4,
     IN_MEMORY | WITH_BASE | ANY_ID | REGISTER, ADDR(1) | SEG(SS) | NO_INDEX | BASE(ESP) | REG2(1)},
    {"LLDT", lldt32, FLAT32, REASON_LDTR_TR, 3, 0, TABLES, 0, ANY_ID | REGISTER | REG1(15),
     REGISTER | REG1(ESI) | REG2(2)},
    {"VMREAD", read32, FLAT32, REASON_VMREAD, 3, 0, 0, 0, ANY_REG2 | REGISTER | REG1(15),
     REGISTER | REG1(EBX) | REG2(EAX)},
    {"VMREAD", read32, COMPATIBILITY, 0, 0, 0, 0, 0, 0, 0},
    {"VMWRITE", write32, FLAT32, REASON_VMWRITE, 4, 0, 0, 8,
     IN_MEMORY | WITH_BASE | ANY_REG2 | REGISTER,
     ADDR(1) | SEG(DS) | NO_INDEX | BASE(EDX) | REG2(ECX)},
    {"VMXON", vmxon32, FLAT32, REASON_VMXON, 4, 0, 0, 0, IN_MEMORY | WITH_BASE | REGISTER,
     ADDR(1) | SEG(DS) | NO_INDEX | BASE(EDI)},
    {"VMXON", vmxon32, COMPATIBILITY, 0, 0, 0, 0, 0, 0, 0},
    {"VMPTRST", vmptrst32, FLAT32, REASON_VMPTRST, 5, 0, 0, 0x7f, IN_MEMORY | WITH_BASE | REGISTER,
     ADDR(1) | SEG(ES) | NO_INDEX | BASE(ESI)},
    {"INVEPT", invept32, FLAT32, REASON_INVEPT, 5, 0, 0, 0,
     IN_MEMORY | WITH_BASE | REGISTER | ANY_REG2,
     ADDR(1) | SEG(DS) | NO_INDEX | BASE(EAX) | REG2(EDI)},
    {"INVVPID", invvpid32, FLAT32, REASON_INVVPID, 10, 0, 0, 0x400,
     IN_MEMORY | WITH_INDEX | REGISTER | ANY_REG2,
     1 | ADDR(1) | SEG(DS) | NO_BASE | INDEX(ECX) | REG2(EDX)},
    {"VMLAUNCH", vmlaunch32, FLAT32, REASON_VMLAUNCH, 3, 0, 0, 0, 0, 0},
    {"VMLAUNCH", vmlaunch32, COMPATIBILITY, 0, 0, 0, 0, 0, 0, 0},
    {"RDRAND", rdrand32, FLAT32, REASON_RDRAND, 3, 0, SECONDARY_RDRAND, 0, OPERAND(3) | REG1(15),
     OPERAND(1) | REG1(EDI)},
    {"REP INSD", ins32, FLAT32, REASON_IO, 2, IO, 0, 3 | BITS(5, 3) | 0x1234 << 16, ADDR(7),
     ADDR(1)},
    {"LIDT", lidt16, FLAT16, REASON_GDTR_IDTR, 5, 0, TABLES, 0x1234, IN_MEMORY | ANY_ID | OP32,
     ADDR(0) | SEG(DS) | NO_INDEX | NO_BASE | REG2(3)},
    {"LIDT", lidt16, REAL, REASON_GDTR_IDTR, 5, 0, TABLES, 0x1234, IN_MEMORY | ANY_ID | OP32,
     ADDR(0) | SEG(DS) | NO_INDEX | NO_BASE | REG2(3)},
    {"SGDT", sgdt16, REAL, REASON_GDTR_IDTR, 4, 0, TABLES, 6,
     IN_MEMORY | WITH_INDEX | WITH_BASE | ANY_ID, ADDR(0) | SEG(SS) | INDEX(EDI) | BASE(EBP)},
    {"SIDT", sidt16, REAL, REASON_GDTR_IDTR, 5, 0, TABLES, 0,
     IN_MEMORY | WITH_INDEX | WITH_BASE | ANY_ID,
     3 | ADDR(1) | SEG(DS) | INDEX(ECX) | BASE(EAX) | REG2(1)},
    {"SLDT", sldt16, FLAT16, REASON_LDTR_TR, 3, 0, TABLES, 0, ANY_ID | REGISTER | REG1(15),
     REGISTER | REG1(EDX)},
    {"SLDT", sldt16, REAL, 0, 0, 0, TABLES, 0, 0, 0},
    {"VMREAD", read16, FLAT16, REASON_VMREAD, 3, 0, 0, 0,
     IN_MEMORY | WITH_BASE | REGISTER | ANY_REG2,
     ADDR(0) | SEG(DS) | NO_INDEX | BASE(EBX) | REG2(EAX)},
    {"VMREAD", read16, REAL, 0, 0, 0, 0, 0, 0, 0},
    {"VMCLEAR", vmclear16, FLAT16, REASON_VMCLEAR, 6, 0, 0, 0x20, IN_MEMORY | REGISTER,
     ADDR(0) | SEG(DS) | NO_INDEX | NO_BASE},
    {"VMCLEAR", vmclear16, REAL, 0, 0, 0, 0, 0, 0, 0},
    {"RDRAND", rdrand16, REAL, REASON_RDRAND, 3, 0, SECONDARY_RDRAND, 0, OPERAND(3) | REG1(15),
     OPERAND(0) | REG1(ECX)},
    {"RDRAND, 32-bit", rdrand16_32, REAL, REASON_RDRAND, 4, 0, SECONDARY_RDRAND, 0,
     OPERAND(3) | REG1(15) | BOCHS_DIFFERS, OPERAND(1) | REG1(EBX)},
    {"OUTSW", outs16, REAL, REASON_IO, 2, IO, 0, 1 | BIT(4) | 0x1234 << 16, ADDR(7) | SEG(7),
     ADDR(0) | SEG(ES)},
    {"VMCALL", vmcall16, FLAT16, REASON_VMCALL, 3, 0, 0, 0, 0, 0},
    {"VMCALL", vmcall16, REAL, REASON_VMCALL, 3, 0, 0, 0, 0, 0},
    {"SGDT, RIP-relative", sgdt64, LONG, REASON_GDTR_IDTR, 7, 0, TABLES, ~0ull, IN_MEMORY | ANY_ID,
     ADDR(2) | SEG(DS) | NO_INDEX | NO_BASE},
    {"LIDT", lidt64, LONG, REASON_GDTR_IDTR, 10, 0, TABLES, 0x12345678,
     IN_MEMORY | WITH_INDEX | ANY_ID, 3 | ADDR(2) | SEG(GS) | INDEX(12) | NO_BASE | REG2(3)},
    {"VMWRITE, 32-bit address", write64, LONG, REASON_VMWRITE, 7, 0, 0, (u32)-4,
     IN_MEMORY | WITH_INDEX | WITH_BASE | REGISTER | ANY_REG2,
     1 | ADDR(1) | SEG(DS) | INDEX(9) | BASE(8) | REG2(10)},
    {"VMREAD", read64, LONG, REASON_VMREAD, 4, 0, 0, 0, ANY_REG2 | REGISTER | REG1(15),
     REGISTER | REG1(14) | REG2(15)},
    {"INVEPT", invept64, LONG, REASON_INVEPT, 7, 0, 0, (u64)-0x80,
     IN_MEMORY | WITH_BASE | REGISTER | ANY_REG2,
     ADDR(2) | SEG(SS) | NO_INDEX | BASE(5) | REG2(11)},
    {"SLDT", sldt64, LONG, REASON_LDTR_TR, 4, 0, TABLES, 0, ANY_ID | REGISTER | REG1(15),
     REGISTER | REG1(13)},
};

static u64 *ept;

// Code of 16 bits lies at the beginning of its segment.
static void put_mode(const struct row *row)
{
    u64 cr0 = read_cr0() & ~(u64)CR0_PG;

    if (row->mode == LONG)
        return;
    if (row->mode == COMPATIBILITY) {
        put_segment(1, CODE32, 0xc09b, ~0u, 0);
        return;
    }
    set_entry(ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT | ENTRY_CTL_LOAD_EFER);
    vmwrite(GUEST_EFER, 0);
    vmwrite(GUEST_CR0, row->mode == REAL ? cr0 & ~(u64)CR0_PE : cr0);
    put_segment(1, CODE32, 0xc09b, ~0u, 0);
    if (row->mode != FLAT32) {
        put_segment(1, CODE32, 0x9b, 0xffff, (u64)row->code);
        vmwrite(GUEST_RIP, 0);
    }
}

static bool prepare(const struct row *row)
{
    bool unpaged = row->mode >= FLAT32;
    u32 secondary = row->secondary;

    init(row->code);
    if (unpaged)
        secondary |= SECONDARY_EPT | SECONDARY_UNRESTRICTED_GUEST;
    if (secondary && !use_secondary(row->primary, secondary))
        return false;
    if (!secondary)
        set_primary(PRIMARY_HLT | row->primary);
    if (unpaged)
        vmwrite(EPT_POINTER, eptp_of(ept, false));
    put_mode(row);
    vmwrite(EXCEPTION_BITMAP, BIT(VECTOR_UD));
    return true;
}

static bool is_right(const struct row *row)
{
    u64 width = row->mode == LONG && (row->mask & ADDR(2)) && (row->info & ADDR(2)) ? ~0ull : ~0u;
    u64 qualification = ~row->qualification ? row->qualification : (u64)sgdt64_end + 0x10;

    if (!row->reason)
        return excepted(TYPE_EXCEPTION, VECTOR_UD, false);
    return vmread(EXIT_REASON) == row->reason && vmread(EXIT_INSTRUCTION_LENGTH) == row->length &&
           !((vmread(EXIT_QUALIFICATION) ^ qualification) & width) &&
           (vmread(EXIT_INSTRUCTION_INFO) & row->mask) == row->info;
}

static void check(const struct row *row)
{
    bool io = row->reason == REASON_IO;

    if (!prepare(row)) {
        report_skip("%s in %s mode: not offered", row->name, mode_names[row->mode]);
        return;
    }
    if (io) {
        l2_registers[RDX] = 0x1234;
        l2_registers[RSI] = 0x23456;
        l2_registers[RDI] = 0x34567;
        l2_registers[RCX] = 1;
        put_segment(0, DATA, 0xc093, ~0u, 0x100000);
    }
    run();
    report_cpu(row->mask & BOCHS_DIFFERS ? MACHINE_BOCHS : MACHINE_NONE, is_right(row),
               "%s in %s mode: reason %#llx, length %llu, qualification %#llx, information %#llx",
               row->name, mode_names[row->mode], LLU(vmread(EXIT_REASON)),
               LLU(vmread(EXIT_INSTRUCTION_LENGTH)), LLU(vmread(EXIT_QUALIFICATION)),
               LLU(vmread(EXIT_INSTRUCTION_INFO)));
    if (io)
        report(vmread(GUEST_LINEAR_ADDRESS) == 0x100000 + (row->mode == REAL ? 0x3456 : 0x34567),
               "its linear address: %#llx", LLU(vmread(GUEST_LINEAR_ADDRESS)));
}

// --- a change of mode ("Checks on Guest Control Registers, Debug Registers, and MSRs") ---

#define SET_PG "mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0; cpuid"
L32(set_pg, SET_PG);
L32(clear_lme, "mov $0xc0000080, %ecx; xor %eax, %eax; xor %edx, %edx; wrmsr; " SET_PG);

// An exit that does not save IA32_EFER leaves the field as L1 wrote it: with LME, without LMA. It
// does not fit what L2 has become, whether that is IA-32e mode or paging without LME, and the next
// entry looks at it although L1 has written nothing.
static void check_unsaved_efer(bool ia32e)
{
    u32 *directory = pages(1);

    for (u32 i = 0; i < 1024; i++)
        directory[i] = i << 22 | 0x87;
    init(ia32e ? set_pg : clear_lme);
    if (!use_secondary(PRIMARY_MSR_BITMAPS, SECONDARY_EPT | SECONDARY_UNRESTRICTED_GUEST)) {
        report_skip("unrestricted guest is not offered");
        return;
    }
    vmwrite(MSR_BITMAP, (u64)pages(1));
    vmwrite(EPT_POINTER, eptp_of(ept, false));
    set_exit(EXIT_CTL_HOST_64 | EXIT_CTL_LOAD_EFER | EXIT_CTL_SAVE_DEBUG);
    set_entry(ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_EFER);
    put_segment(1, CODE32, 0xc09b, ~0u, 0);
    vmwrite(GUEST_CR0, read_cr0() & ~(u64)CR0_PG);
    vmwrite(GUEST_EFER, EFER_LME);
    if (!ia32e) {
        vmwrite(GUEST_CR3, (u64)directory);
        vmwrite(GUEST_CR4, (read_cr4() & ~CR4_PAE) | CR4_PSE);
    }
    report_exit(run() == REASON_CPUID && (vmread(GUEST_CR0) & CR0_PG) &&
                    !(vmread(ENTRY_CONTROLS) & ENTRY_CTL_IA32E_GUEST) == !ia32e,
                ia32e ? "an L2 enters IA-32e mode" : "an L2 clears LME and enables paging");
    report(vmread(GUEST_EFER) == EFER_LME, "IA32_EFER is not saved");
    report_exit(run() == (EXIT_REASON_ENTRY_FAILURE | REASON_INVALID_GUEST_STATE),
                "it does not fit any longer");
}

L16(wrmsr16, "wrmsr; vmcall");

// In real-address mode exceptions have no error code, whoever finds them.
static void test_real_fault(void)
{
    static const struct row row = {"", wrmsr16, REAL, 0, 0, PRIMARY_MSR_BITMAPS, 0, 0, 0, 0};

    if (!prepare(&row)) {
        report_skip("no unrestricted guest");
        return;
    }
    vmwrite(MSR_BITMAP, (u64)pages(1));
    vmwrite(EXCEPTION_BITMAP, BIT(VECTOR_GP));
    l2_registers[RCX] = MSR_EFER;
    l2_registers[RDX] = 0xffffffff; // which are reserved
    run();
    // Bochs has one
    report_known(MACHINE_BOCHS, excepted(TYPE_EXCEPTION, VECTOR_GP, false),
                 "#GP in real mode: reason %#llx, interruption %#llx", LLU(vmread(EXIT_REASON)),
                 LLU(vmread(EXIT_INTERRUPTION_INFO)));
}

void guest_main(void)
{
    if (!vmx_start()) {
        report(false, "no VMX");
        return;
    }
    ept = identity_tables(EPT_RWX, EPT_WB | EPT_RWX);
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        check(&rows[i]);
    check_unsaved_efer(true);
    check_unsaved_efer(false);
    test_real_fault();
}
