// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The VMX instructions as a guest hypervisor executes them, without an L2: their operands in every
// form of addressing, the faults of these (SDM vol. 3 "VMX Instruction Reference"), compatibility
// mode and CPL 3, INVEPT and INVVPID with all their types, and the same behind the prefix that has
// Nestor's emulator execute them. What nested_vmx does for the rest is not repeated.

#include "vmx.h"

enum { VALUE = 0x1234567 };
#define STATUS_FLAGS  (RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF)
#define NOT_CANONICAL ((void *)0x0000800000000000ull)
#define NOT_MAPPED    ((void *)(3ull << 39))

// --- operands ---

// Each takes a field in RDI and where the operand is in RSI, and returns RFLAGS.
extern u64 vmx_operand[4];
u64 vmx_operand[4];
static u64 *const operand = vmx_operand;

#define FORM(n, insn)                                                                            \
    u64 form_##n(u64 field, void *at);                                                           \
    u64 forced_##n(u64 field, void *at);                                                         \
    __asm__("form_" #n ": mov $0x8d5, %eax; push %rax; popfq; " insn "; pushfq; pop %rax; ret\n" \
            "forced_" #n ": mov $0x8d5, %eax; push %rax; popfq; ud2; .ascii \"kvm\"; " insn      \
            "; pushfq; pop %rax; ret\n");
FORM(read_base, "vmread %rdi, (%rsi)")
FORM(read_displacement, "vmread %rdi, -0x1000(%rsi)")
FORM(read_index, "xor %ecx, %ecx; add $1, %ecx; vmread %rdi, -8(%rsi,%rcx,8)")
FORM(read_relative, "vmread %rdi, vmx_operand(%rip)")
FORM(read_absolute, "vmread %rdi, vmx_operand")
FORM(read_addr32, "addr32 vmread %rdi, (%esi)")
FORM(read_fs, "vmread %rdi, %fs:-0x40(%rsi)")
FORM(read_stack, "vmread %rdi, -0x10(%rsp)")
FORM(read_rbp, "push %rbp; mov %rsi, %rbp; vmread %rdi, (%rbp); pop %rbp")
FORM(read_register, "vmread %rdi, %rdx")
FORM(read_r9, "mov %rdi, %r9; vmread %r9, %r10")
FORM(write_base, "vmwrite (%rsi), %rdi")
FORM(write_relative, "vmwrite vmx_operand(%rip), %rdi")
FORM(write_register, "vmwrite %rsi, %rdi")
FORM(vmptrst, "vmptrst (%rsi)")
FORM(vmptrst_rbp, "push %rbp; mov %rsi, %rbp; vmptrst (%rbp); pop %rbp")
FORM(vmptrld, "vmptrld (%rsi)")
FORM(vmclear, "vmclear (%rsi)")
FORM(vmxon, "vmxon (%rsi)")
FORM(invept, "invept (%rsi), %rdi")
FORM(invvpid, "invvpid (%rsi), %rdi")
FORM(vmxoff, "vmxoff")
FORM(vmlaunch, "vmlaunch")
FORM(vmresume, "vmresume")

typedef u64 (*form_fn)(u64 field, void *at);

// Calls it: its flags, or with a trap ~0.
static struct call {
    form_fn fn;
    u64 field;
    void *at;
    u64 flags;
} call;

static void make_call(void *unused)
{
    (void)unused;
    call.flags = call.fn(call.field, call.at) & STATUS_FLAGS;
}

static int trap_of(form_fn fn, u64 field, void *at)
{
    call = (struct call){fn, field, at, ~0ull};
    return try(make_call, NULL);
}

static u64 flags_of(form_fn fn, u64 field, void *at)
{
    return trap_of(fn, field, at) == NO_TRAP ? call.flags : ~0ull;
}

static u64 field_value(u64 field)
{
    operand[3] = 0;
    return flags_of(form_read_base, field, &operand[3]) == 0 ? operand[3] : ~0ull;
}

static bool form_failed_with(u64 flags, u64 error)
{
    return flags == RFLAGS_ZF && field_value(VM_INSTRUCTION_ERROR) == error;
}

// --- the forms of addressing ---

static const struct {
    form_fn fn, forced;
    u8 *at; // what it wants in RSI for operand[0]
    const char *name;
} reads[] = {
#define READ(n, offset, name)                                            \
    {                                                                    \
        form_read_##n, forced_read_##n, (u8 *)vmx_operand + offset, name \
    }
    READ(base, 0, "(base)"),
    READ(displacement, 0x1000, "displacement(base)"),
    READ(relative, 0, "RIP-relative"),
    READ(absolute, 0, "absolute"),
    READ(addr32, 0, "32-bit address"),
    READ(fs, 0, "FS"),
    READ(rbp, 0, "(RBP)"),
};

static void check_read(form_fn fn, u8 *at, const char *name, const char *how)
{
    u64 flags;

    operand[0] = operand[1] = ~0ull;
    flags = flags_of(fn, GUEST_RIP, at);
    report(flags == 0 && operand[0] == VALUE && operand[1] == ~0ull,
           "VMREAD to memory, %s%s: flags %#llx, %#llx", name, how, LLU(flags), LLU(operand[0]));
}

static void test_addressing(bool forced)
{
    const char *how = forced ? ", emulated" : "";

    msr_write(MSR_FS_BASE, 0x40);
    for (unsigned i = 0; i < ARRAY_SIZE(reads); i++)
        check_read(forced ? reads[i].forced : reads[i].fn, reads[i].at, reads[i].name, how);
    operand[0] = 0x55;
    report(flags_of(forced ? forced_write_base : form_write_base, GUEST_RSP, operand) == 0 &&
               field_value(GUEST_RSP) == 0x55,
           "VMWRITE from memory%s", how);
    operand[0] = 0x66;
    report(flags_of(forced ? forced_write_relative : form_write_relative, GUEST_RSP, NULL) == 0 &&
               field_value(GUEST_RSP) == 0x66,
           "VMWRITE from memory, RIP-relative%s", how);
    report(flags_of(forced ? forced_write_register : form_write_register, GUEST_RSP, (void *)7) ==
                   0 &&
               field_value(GUEST_RSP) == 7,
           "VMWRITE from a register%s", how);
    report(flags_of(forced ? forced_vmptrst : form_vmptrst, 0, operand) == 0 &&
               operand[0] == (u64)vmcs_region,
           "VMPTRST%s: %#llx", how, LLU(operand[0]));
    report(flags_of(forced ? forced_vmptrld : form_vmptrld, 0, operand) == 0, "VMPTRLD%s", how);
    operand[0] = 1;
    report(form_failed_with(flags_of(forced ? forced_vmptrld : form_vmptrld, 0, operand), 9),
           "VMPTRLD, misaligned%s: error 9, all other flags 0", how);
    report(form_failed_with(flags_of(forced ? forced_vmclear : form_vmclear, 0, operand), 2),
           "VMCLEAR, misaligned%s: error 2", how);
}

static void test_64bit_forms(void)
{
    report(flags_of(form_read_index, GUEST_RIP, operand) == 0 && operand[0] == VALUE,
           "VMREAD to memory, base + index * scale");
    report(flags_of(form_read_stack, GUEST_RIP, NULL) == 0, "VMREAD to memory, below RSP");
    report(flags_of(form_read_register, GUEST_RIP, NULL) == 0 &&
               flags_of(form_read_r9, GUEST_RIP, NULL) == 0,
           "VMREAD to registers");
}

// --- faults ---

static const struct {
    form_fn fn;
    bool write;
    u8 size;
    const char *name;
} memory_forms[] = {
    {form_read_base, true, 8, "VMREAD"},     {form_write_base, false, 8, "VMWRITE"},
    {form_vmptrst, true, 8, "VMPTRST"},      {form_vmptrld, false, 8, "VMPTRLD"},
    {form_vmclear, false, 8, "VMCLEAR"},     {form_vmxon, false, 8, "VMXON"},
    {form_invept, false, 16, "INVEPT"},      {form_invvpid, false, 16, "INVVPID"},
    {form_vmptrst_rbp, true, 8, "VMPTRST "}, {form_read_rbp, true, 8, "VMREAD "},
};

static bool has_invept, has_invvpid;

static bool is_there(form_fn fn)
{
    return (fn != form_invept || has_invept) && (fn != form_invvpid || has_invvpid);
}

// The field or type that is right for each.
static u64 field_for(form_fn fn)
{
    return fn == form_invept || fn == form_invvpid ? INVEPT_ALL : GUEST_RIP;
}

static void check_fault(unsigned i, void *at, u8 vector, const char *what)
{
    form_fn fn = memory_forms[i].fn;
    bool stack = fn == form_vmptrst_rbp || fn == form_read_rbp;
    int trap = trap_of(fn, field_for(fn), at);

    if (vector == VECTOR_GP && stack)
        vector = VECTOR_SS;
    report(trap == vector && (last_trap.rflags & STATUS_FLAGS) == STATUS_FLAGS,
           "%s%s, %s: vector %d, flags as before", memory_forms[i].name, stack ? "through SS" : "",
           what, trap);
    if (vector == VECTOR_PF)
        report(last_trap.error == (memory_forms[i].write ? 2 : 0), "... error code %#llx",
               LLU(last_trap.error));
    else
        report(last_trap.error == 0, "... error code 0");
}

static void test_faults(bool in_operation)
{
    u8 *half = map_half(pages(1));

    for (unsigned i = 0; i < ARRAY_SIZE(memory_forms); i++) {
        // VMXON fails in VMX operation before it looks at its operand
        if (!is_there(memory_forms[i].fn) || in_operation == (memory_forms[i].fn == form_vmxon))
            continue;
        check_fault(i, NOT_CANONICAL, VECTOR_GP, "not canonical");
        check_fault(i, (u8 *)NOT_CANONICAL - 4, VECTOR_GP, "its end not canonical");
        check_fault(i, NOT_MAPPED, VECTOR_PF, "not mapped");
        report(last_cr2 == (u64)NOT_MAPPED, "... CR2 %#llx", LLU(last_cr2));
        memset(half + PAGE_SIZE - 4, 0x5a, 4);
        check_fault(i, half + PAGE_SIZE - 4, VECTOR_PF, "its end not mapped");
        report(*(u32 *)(half + PAGE_SIZE - 4) == 0x5a5a5a5a, "... nothing is written");
        report(last_cr2 == (u64)half + PAGE_SIZE, "... CR2 %#llx", LLU(last_cr2));
    }
    map_half(NULL);
}

// --- privilege and mode ---

static const struct {
    form_fn fn;
    const char *name;
    u8 bytes[6]; // with [ESI], EAX
} all[] = {
    {form_vmclear, "VMCLEAR", {0x66, 0x0f, 0xc7, 0x36}},
    {form_vmptrld, "VMPTRLD", {0x0f, 0xc7, 0x36}},
    {form_vmptrst, "VMPTRST", {0x0f, 0xc7, 0x3e}},
    {form_read_base, "VMREAD", {0x0f, 0x78, 0x06}},
    {form_write_base, "VMWRITE", {0x0f, 0x79, 0x06}},
    {form_vmxon, "VMXON", {0xf3, 0x0f, 0xc7, 0x36}},
    {form_vmxoff, "VMXOFF", {0x0f, 0x01, 0xc4}},
    {form_vmlaunch, "VMLAUNCH", {0x0f, 0x01, 0xc2}},
    {form_vmresume, "VMRESUME", {0x0f, 0x01, 0xc3}},
    {form_invept, "INVEPT", {0x66, 0x0f, 0x38, 0x80, 0x06}},
    {form_invvpid, "INVVPID", {0x66, 0x0f, 0x38, 0x81, 0x06}},
};

// Compatibility mode: the bytes, NOPs, and a jump back.
extern u8 vmx_code32[];
void vmx_run32(void *unused);
__asm__(".data\n"
        ".globl vmx_code32\n"
        "vmx_code32: .fill 16, 1, 0x90\n"
        ".byte 0xea; .long vmx_back; .word 8\n" // JMP CODE64:vmx_back
        ".text\n"
        "vmx_run32:\n"
        "lea vmx_operand(%rip), %rsi\n"
        "push $0x18\n" // CODE32
        "lea vmx_code32(%rip), %rax\n"
        "push %rax\n"
        "lretq\n"
        "vmx_back: ret\n");

static void test_modes(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(all); i++) {
        int expected = is_there(all[i].fn) ? VECTOR_GP : VECTOR_UD, trap;

        call = (struct call){all[i].fn, GUEST_RIP, operand, 0};
        trap = try_user(make_call, NULL);
        report(trap == expected, "%s at CPL 3: vector %d", all[i].name, trap);
        memset(vmx_code32, 0x90, 16);
        memcpy(vmx_code32, all[i].bytes, sizeof(all[i].bytes));
        for (unsigned n = 3; n < sizeof(all[i].bytes); n++)
            if (!all[i].bytes[n])
                vmx_code32[n] = 0x90;
        trap = try(vmx_run32, NULL);
        report(trap == VECTOR_UD && last_trap.cs == CODE32,
               "%s in compatibility mode: vector %d, CS %#llx", all[i].name, trap,
               LLU(last_trap.cs));
    }
}

// --- INVEPT, INVVPID ---

static u64 run_invalidation(form_fn fn, u64 type, u64 low, u64 high)
{
    operand[0] = low;
    operand[1] = high;
    return flags_of(fn, type, operand);
}

static void test_invept(u64 cap)
{
    u64 eptp = 0x1000 | 3 << EPTP_LEVELS_SHIFT | (cap & EPT_CAP_WB ? EPTP_TYPE_WB : 0);

    if (!has_invept) {
        report(trap_of(form_invept, INVEPT_ALL, operand) == VECTOR_UD, "no INVEPT: #UD");
        return;
    }
    report(run_invalidation(form_invept, INVEPT_SINGLE, eptp, 0) == 0, "INVEPT, single-context");
    report(run_invalidation(form_invept, INVEPT_ALL, ~0ull, 0) == 0,
           "INVEPT, global, whatever the EPTP");
    report(form_failed_with(run_invalidation(form_invept, 0, eptp, 0), 28),
           "INVEPT, type 0: error 28");
    report(form_failed_with(run_invalidation(form_invept, 3, eptp, 0), 28),
           "INVEPT, type 3: error 28");
    // Bochs looks at 32 bits of the type
    report_known(MACHINE_BOCHS,
                 form_failed_with(run_invalidation(form_invept, BIT(32) | INVEPT_ALL, eptp, 0), 28),
                 "INVEPT, type with bit 32: error 28");
    report(form_failed_with(run_invalidation(form_invept, INVEPT_SINGLE, eptp ^ 1, 0), 28),
           "INVEPT, memory type of EPTP: error 28");
    report(form_failed_with(run_invalidation(form_invept, INVEPT_SINGLE, eptp ^ 0x20, 0), 28),
           "INVEPT, levels of EPTP: error 28");
    report(form_failed_with(run_invalidation(form_invept, INVEPT_SINGLE, eptp | BIT(62), 0), 28),
           "INVEPT, EPTP beyond the physical addresses: error 28");
}

static void test_invvpid(void)
{
    static const char *const names[] = {"individual-address", "single-context", "all-contexts",
                                        "single-context, globals kept"};

    if (!has_invvpid) {
        report(trap_of(form_invvpid, INVVPID_ALL, operand) == VECTOR_UD, "no INVVPID: #UD");
        return;
    }
    for (unsigned type = 0; type < 4; type++) {
        report(run_invalidation(form_invvpid, type, 1, 0x1000) == 0, "INVVPID, %s", names[type]);
        report(form_failed_with(run_invalidation(form_invvpid, type, 0x10001, 0), 28),
               "INVVPID, %s, reserved bits: error 28", names[type]);
        if (type != INVVPID_ALL)
            report(form_failed_with(run_invalidation(form_invvpid, type, 0, 0), 28),
                   "INVVPID, %s, VPID 0: error 28", names[type]);
        else
            report(run_invalidation(form_invvpid, type, 0, 0) == 0, "INVVPID, %s, VPID 0",
                   names[type]);
    }
    report(form_failed_with(run_invalidation(form_invvpid, INVVPID_ADDRESS, 1, (u64)NOT_CANONICAL),
                            28),
           "INVVPID, an address that is not canonical: error 28");
    report(run_invalidation(form_invvpid, INVVPID_SINGLE, 1, (u64)NOT_CANONICAL) == 0,
           "... which other types do not look at");
    report(form_failed_with(run_invalidation(form_invvpid, 4, 1, 0), 28),
           "INVVPID, type 4: error 28");
}

// --- fields ---

static void test_halves(void)
{
    report(flags_of(form_write_register, TSC_OFFSET, (void *)0x1122334455667788) == 0 &&
               field_value(TSC_OFFSET) == 0x1122334455667788,
           "a 64-bit field");
    report(field_value(TSC_OFFSET | 1) == 0x11223344, "its high half");
    report(flags_of(form_write_register, TSC_OFFSET | 1, (void *)0x99aabbccddeeff00) == 0 &&
               field_value(TSC_OFFSET) == 0xddeeff0055667788,
           "its high half written: the rest stays");
    report(form_failed_with(flags_of(form_read_base, GUEST_RIP | 1, operand), 12),
           "no high half of a natural-width field: error 12");
    report(form_failed_with(flags_of(form_write_register, EXCEPTION_BITMAP | 1, NULL), 12),
           "nor of a 32-bit field: error 12");
    report(flags_of(form_write_register, EXCEPTION_BITMAP, (void *)0x1ffffffff) == 0 &&
               field_value(EXCEPTION_BITMAP) == 0xffffffff,
           "a 32-bit field keeps 32 bits");
    report(form_failed_with(flags_of(form_read_base, BIT(12) | GUEST_RIP, operand), 12) &&
               form_failed_with(flags_of(form_read_base, BIT(15) | GUEST_RIP, operand), 12),
           "reserved bits of an encoding: error 12");
}

static bool make_ready(void)
{
    vmx_prepare();
    operand[0] = (u64)vmxon_region;
    test_faults(false);
    return flags_of(form_vmxon, 0, operand) == 0;
}

static u64 ept_vpid_cap(void)
{
    u64 primary = msr_read(MSR_VMX_PROCBASED_CTLS) >> 32, secondary;

    if (!(primary & PRIMARY_SECONDARY))
        return 0;
    secondary = msr_read(MSR_VMX_PROCBASED_CTLS2) >> 32;
    return secondary & (SECONDARY_EPT | SECONDARY_VPID) ? msr_read(MSR_VMX_EPT_VPID_CAP) : 0;
}

void guest_main(void)
{
    u64 cap;

    if (!(cpuid(1, 0).ecx & CPUID_VMX)) {
        report_skip("no VMX");
        return;
    }
    cap = ept_vpid_cap();
    has_invept = cap & EPT_CAP_INVEPT;
    has_invvpid = cap & VPID_CAP_INVVPID;
    report(make_ready(), "VMXON");
    operand[0] = (u64)vmcs_region;
    report(flags_of(form_vmclear, 0, operand) == 0 && flags_of(form_vmptrld, 0, operand) == 0,
           "VMCLEAR, VMPTRLD");
    flags_of(form_write_register, GUEST_RIP, (void *)VALUE);
    test_addressing(false);
    if (has_test_device() && under_hypervisor())
        test_addressing(true);
    test_64bit_forms();
    test_faults(true);
    test_modes();
    test_invept(cap);
    test_invvpid();
    test_halves();
    report(flags_of(form_vmxoff, 0, NULL) == 0, "VMXOFF");
}
