// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: nested/vmcs12.c nested/vmcs12_operand.c nested/vmcs12_fields.c nested/vmcs12_caps.c nested/vmcs12_check.c nested/vmcs12_check_host.c nested/vmcs12_check_guest.c nested/vmcs12_shadow.c
//
// VMCS12: the fields, the capability MSRs, and each check of VM entry (nested/vmcs12_check.c) by
// spoiling one field of a VMCS12 that passes (SDM vol. 3 "Checks on VMX Controls and Host-State
// Area", "Checking and Loading Guest State").

#include <nestor/log.h>

#include "vmcs12_fake.h"

#define BAD_ADDRESS 0x8000000000000000ull

static bool shadow_stacks, branch_tracking, pks;

// --- fakes ---

static void no_pull(struct vcpu *v, u32 groups)
{
    v->cur->valid |= groups & GROUP_ALL_CTX;
}

static const struct backend fake_backend = {.pull = no_pull};
const struct backend *backend = &fake_backend;

bool cpuid_has(const struct vm *v, u32 leaf, unsigned reg, unsigned bit)
{
    (void)v;
    return leaf == 7 &&
           ((la57 && reg == 2 && bit == 16) || (shadow_stacks && reg == 2 && bit == 7) ||
            (branch_tracking && reg == 3 && bit == 20) || (pks && reg == 2 && bit == 31));
}

bool cpuid_has_xsaves(const struct vm *v)
{
    (void)v;
    return false;
}

u64 cr4_allowed(const struct vcpu *v)
{
    (void)v;
    return BITS(10, 0) | CR4_VMXE | CR4_PCIDE | (la57 ? CR4_LA57 : 0);
}

u64 cr_read_guest(struct vcpu *v, unsigned number)
{
    return number == 4 ? v->cur->state.cr4 : v->cur->state.cr0;
}

bool vcpu_mode_64bit(struct vcpu *v)
{
    return vcpu_mode_long(v) && (v->cur->state.seg[SEG_CS].access & SEG_L);
}

unsigned vcpu_cpl(struct vcpu *v)
{
    (void)v;
    return 0;
}

// Memory: one page, at MEMORY.
#define MEMORY 0x5000ull
static u8 memory[PAGE_SIZE];

int guest_read_gpa(struct vcpu *v, gpa_t gpa, void *buf, u64 size)
{
    (void)v;
    if (gpa < MEMORY || gpa + size > MEMORY + PAGE_SIZE)
        return -E_FAULT;
    memcpy(buf, memory + (gpa - MEMORY), size);
    return 0;
}

// What only instructions use.
#define UNUSED(name) fail_msg("%s is not expected here", #name)
int guest_write_gpa(struct vcpu *v, gpa_t gpa, const void *buf, u64 size)
{
    (void)v, (void)gpa, (void)buf, (void)size;
    UNUSED(guest_write_gpa);
    return 0;
}
int guest_read_linear(struct vcpu *v, gva_t la, void *buf, unsigned size, u32 access)
{
    (void)v, (void)la, (void)buf, (void)size, (void)access;
    UNUSED(guest_read_linear);
    return 0;
}
int guest_write_linear(struct vcpu *v, gva_t la, const void *buf, unsigned size, u32 access)
{
    (void)v, (void)la, (void)buf, (void)size, (void)access;
    UNUSED(guest_write_linear);
    return 0;
}
void vcpu_inject_exception(struct vcpu *v, u8 vector, bool has_error, u32 error)
{
    (void)v, (void)vector, (void)has_error, (void)error;
    UNUSED(vcpu_inject_exception);
}
int guest_translate(struct vcpu *v, gva_t la, u32 access, gpa_t *gpa, u8 **host,
                    struct walk_fault *fault)
{
    (void)v, (void)la, (void)access, (void)gpa, (void)host, (void)fault;
    UNUSED(guest_translate);
    return 0;
}
u64 vmcs12_tsc_moved(struct vcpu *v, u64 by)
{
    (void)v, (void)by;
    UNUSED(vmcs12_tsc_moved);
    return 0;
}
bool insn_decode_current(struct vcpu *v, struct insn *insn)
{
    (void)v, (void)insn;
    UNUSED(insn_decode_current);
    return false;
}
void insn_exit_operand(const struct insn *insn, u64 next_rip, struct exit_operand *op)
{
    (void)insn, (void)next_rip, (void)op;
    UNUSED(insn_exit_operand);
}
void vcpu_finish_exit(struct vcpu *v, struct vm_exit *exit)
{
    (void)v, (void)exit;
    UNUSED(vcpu_finish_exit);
}
enum log_level log_level;
void log_line(enum log_level level, const char *fmt, ...)
{
    (void)level, (void)fmt;
}
void vmcs12_bitmap_reset(struct vcpu *v)
{
    (void)v;
}
void vmcs12_enter(struct vcpu *v)
{
    (void)v;
    UNUSED(vmcs12_enter);
}
void vmcs12_settle(struct vcpu *v)
{
    (void)v;
}
int vmcs12_virtual_interrupt(struct vcpu *v)
{
    (void)v;
    return -E_NOENT;
}

void vmcs12_entry_failed(struct vcpu *v, u32 reason, u64 qualification)
{
    (void)v, (void)reason, (void)qualification;
    UNUSED(vmcs12_entry_failed);
}
void vmcs12_stage2_fault(struct vcpu *v, const struct vm_exit *exit, const struct l1_fault *fault)
{
    (void)v, (void)exit, (void)fault;
    UNUSED(vmcs12_stage2_fault);
}
void nested_invept(struct vcpu *v, bool all, u64 eptp)
{
    (void)v, (void)all, (void)eptp;
    UNUSED(nested_invept);
}
void nested_invalidate_tag(struct vcpu *v, bool all, u32 tag)
{
    (void)v, (void)all, (void)tag;
    UNUSED(nested_invalidate_tag);
}
bool vmcs12_reflect(struct vcpu *v, struct vm_exit *exit)
{
    (void)v, (void)exit;
    UNUSED(vmcs12_reflect);
    return false;
}
enum nested_answer vmcs12_event(struct vcpu *v, enum nested_event event)
{
    (void)v, (void)event;
    UNUSED(vmcs12_event);
    return NESTED_DELIVER;
}
bool vmcs12_wants_exception(struct vcpu *v, const struct event *event)
{
    (void)v, (void)event;
    UNUSED(vmcs12_wants_exception);
    return false;
}

// --- a VMCS12 that passes ---

static void put_controls(void)
{
    put(PIN_BASED_CONTROLS, (u32)vmcs12_capability(&vcpu, MSR_VMX_TRUE_PINBASED_CTLS));
    put(PRIMARY_CONTROLS, (u32)vmcs12_capability(&vcpu, MSR_VMX_TRUE_PROCBASED_CTLS) |
                              PRIMARY_IO_BITMAPS | PRIMARY_MSR_BITMAPS);
    put(EXIT_CONTROLS, (u32)vmcs12_capability(&vcpu, MSR_VMX_TRUE_EXIT_CTLS) | EXIT_CTL_HOST_64 |
                           EXIT_CTL_LOAD_PAT | EXIT_CTL_LOAD_EFER);
    put(ENTRY_CONTROLS, (u32)vmcs12_capability(&vcpu, MSR_VMX_TRUE_ENTRY_CTLS) |
                            ENTRY_CTL_IA32E_GUEST | ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT |
                            ENTRY_CTL_LOAD_EFER);
    put(EXIT_MSR_STORE_ADDRESS, 0x1000);
    put(EXIT_MSR_LOAD_ADDRESS, 0x2000);
    put(ENTRY_MSR_LOAD_ADDRESS, 0x3000);
}

static int setup(void **state)
{
    (void)state;
    la57 = shadow_stacks = branch_tracking = pks = false;
    vm.disabled_isa = ISA_CET;
    fake_reset();
    vcpu.cur->valid = GROUP_ALL_CTX;
    vcpu.cur->state.cr4 = CR4_PAE | CR4_VMXE;
    put_controls();
    put_host();
    put_guest();
    put(VMCS_LINK_POINTER, ~0ull);
    return 0;
}

enum result { PASSES, CONTROLS, HOST, GUEST };

static u64 qualification;

static enum result check(void)
{
    u32 result;

    nested.due = DUE_ALL;
    result = vmcs12_check_entry(&vcpu, &qualification);
    return result == VMX_ERROR_CONTROLS           ? CONTROLS
           : result == VMX_ERROR_HOST_STATE       ? HOST
           : result == REASON_INVALID_GUEST_STATE ? GUEST
                                                  : PASSES;
}

static void change(enum vmcs_field field, u64 clear, u64 set)
{
    put(field, (vmcs12_read(&nested, field) & ~clear) | set);
}

struct row {
    u16 field;
    u64 clear, set;
    const char *name;
};

// Each row spoils the good VMCS12 in one field.
static void check_rows(const struct row *rows, unsigned count, enum result result)
{
    for (unsigned i = 0; i < count; i++) {
        setup(NULL);
        change(rows[i].field, rows[i].clear, rows[i].set);
        if (check() != result)
            fail_msg("%s", rows[i].name);
    }
}

static void test_good(void **state)
{
    (void)state;
    assert_int_equal(check(), PASSES);
}

// --- controls ---

#define INFO(type, vector) (INFO_VALID | (u64)(type) << INFO_TYPE_SHIFT | (vector))

static void test_controls(void **state)
{
    static const struct row rows[] = {
        {PIN_BASED_CONTROLS, 2, 0, "pin-based, bit 1 clear"},
        {PIN_BASED_CONTROLS, 0, PIN_VIRTUAL_NMIS, "virtual NMIs"},
        {PIN_BASED_CONTROLS, 0, PIN_POSTED_INTERRUPTS, "posted interrupts"},
        {PRIMARY_CONTROLS, 2, 0, "primary, bit 1 clear"},
        {PRIMARY_CONTROLS, 0, PRIMARY_MTF, "MTF"},
        {PRIMARY_CONTROLS, 0, PRIMARY_NMI_WINDOW, "NMI window"},
        {CR3_TARGET_COUNT, 0, 5, "CR3-target count"},
        {IO_BITMAP_A, 0, 1, "I/O bitmap A, misaligned"},
        {IO_BITMAP_A, 0, 1ull << PHYS_BITS, "I/O bitmap A, beyond"},
        {IO_BITMAP_B, 0, 0x800, "I/O bitmap B, misaligned"},
        {MSR_BITMAP, 0, 0x800, "MSR bitmap, misaligned"},
        {MSR_BITMAP, 0, 1ull << 63, "MSR bitmap, beyond"},
        {EXIT_CONTROLS, 1, 0, "exit, bit 0 clear"},
        {EXIT_CONTROLS, 0, EXIT_CTL_SAVE_TIMER, "save timer"},
        {ENTRY_CONTROLS, 1, 0, "entry, bit 0 clear"},
        {ENTRY_CONTROLS, 0, ENTRY_CTL_SMM, "entry to SMM"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(1, 0x40), "type 1"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(7, 0), "type 7"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(0, 0x40) | BIT(12), "information, bit 12"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(0, 0x40) | BIT(30), "information, bit 30"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(2, 3), "NMI, vector 3"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(3, 32), "exception 32"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(3, VECTOR_GP), "#GP without error code"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(3, VECTOR_UD) | INFO_ERROR_CODE, "#UD with error code"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(0, VECTOR_GP) | INFO_ERROR_CODE, "interrupt with one"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(4, 0x40), "INT n, length 0"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(5, VECTOR_DB), "INT1, length 0"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(6, VECTOR_BP), "INT3, length 0"},
    };

    (void)state;
    check_rows(rows, ARRAY_SIZE(rows), CONTROLS);
}

static void test_bitmaps_that_are_not_used(void **state)
{
    (void)state;
    change(PRIMARY_CONTROLS, PRIMARY_IO_BITMAPS | PRIMARY_MSR_BITMAPS, 0);
    put(IO_BITMAP_A, 1);
    put(IO_BITMAP_B, 1);
    put(MSR_BITMAP, 1);
    put(CR3_TARGET_COUNT, 4);
    assert_int_equal(check(), PASSES);
}

static void test_injection(void **state)
{
    static const u8 with_error[] = {VECTOR_DF, VECTOR_TS, VECTOR_NP, VECTOR_SS,
                                    VECTOR_GP, VECTOR_PF, VECTOR_AC};

    (void)state;
    for (unsigned vector = 0; vector < 32; vector++) {
        bool error = memchr(with_error, (int)vector, sizeof(with_error)) != NULL;

        put(ENTRY_INTERRUPTION_INFO, INFO(3, vector) | (error ? INFO_ERROR_CODE : 0));
        assert_int_equal(check(), PASSES);
        put(ENTRY_INTERRUPTION_INFO, INFO(3, vector) | (error ? 0 : INFO_ERROR_CODE));
        assert_int_equal(check(), CONTROLS);
    }
    put(ENTRY_INTERRUPTION_INFO, INFO(3, VECTOR_GP) | INFO_ERROR_CODE);
    put(ENTRY_EXCEPTION_ERROR_CODE, 0xffff);
    assert_int_equal(check(), PASSES);
    put(ENTRY_EXCEPTION_ERROR_CODE, 0x10000);
    assert_int_equal(check(), CONTROLS);
    for (unsigned type = 4; type <= 6; type++) {
        put(ENTRY_INTERRUPTION_INFO, INFO(type, 3));
        for (unsigned length = 0; length <= 16; length++) {
            put(ENTRY_INSTRUCTION_LENGTH, length);
            assert_int_equal(check(), length >= 1 && length <= 15 ? PASSES : CONTROLS);
        }
    }
    put(ENTRY_INTERRUPTION_INFO, 0x7fffffff); // not valid: nothing is looked at
    assert_int_equal(check(), PASSES);
}

static void test_msr_areas(void **state)
{
    static const struct {
        enum vmcs_field count, address;
    } areas[] = {
        {EXIT_MSR_STORE_COUNT, EXIT_MSR_STORE_ADDRESS},
        {EXIT_MSR_LOAD_COUNT, EXIT_MSR_LOAD_ADDRESS},
        {ENTRY_MSR_LOAD_COUNT, ENTRY_MSR_LOAD_ADDRESS},
    };

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(areas); i++) {
        setup(NULL);
        put(areas[i].address, 8);
        assert_int_equal(check(), PASSES); // no entry
        put(areas[i].count, 1);
        assert_int_equal(check(), CONTROLS);
        put(areas[i].address, (1ull << PHYS_BITS) - 32);
        put(areas[i].count, 2);
        assert_int_equal(check(), PASSES);
        put(areas[i].count, 3); // its last byte is beyond
        assert_int_equal(check(), CONTROLS);
        put(areas[i].address, 1ull << PHYS_BITS);
        put(areas[i].count, 1);
        assert_int_equal(check(), CONTROLS);
        put(areas[i].address, ~0xfull); // wraps around
        put(areas[i].count, 2);
        assert_int_equal(check(), CONTROLS);
    }
}

// --- host state ---

static void test_host(void **state)
{
    static const struct row rows[] = {
        {HOST_CR0, CR0_PE, 0, "CR0.PE clear"},
        {HOST_CR0, CR0_NE, 0, "CR0.NE clear"},
        {HOST_CR0, CR0_PG, 0, "CR0.PG clear"},
        {HOST_CR0, 0, 1ull << 32, "CR0[32]"},
        {HOST_CR4, CR4_VMXE, 0, "CR4.VMXE clear"},
        {HOST_CR4, 0, CR4_SMXE, "CR4.SMXE"},
        {HOST_CR4, CR4_PAE, 0, "CR4.PAE clear"},
        {HOST_CR3, 0, 1ull << PHYS_BITS, "CR3"},
        {HOST_SYSENTER_ESP, 0, BAD_ADDRESS, "SYSENTER_ESP"},
        {HOST_SYSENTER_EIP, 0, BAD_ADDRESS, "SYSENTER_EIP"},
        {HOST_PAT, 0xff, 2, "PAT 2"},
        {HOST_PAT, 0xffull << 56, 3ull << 56, "PAT 3 in the last"},
        {HOST_PAT, 0xff00, 8 << 8, "PAT 8"},
        {HOST_EFER, 0, BIT(1), "EFER[1]"},
        {HOST_EFER, 0, EFER_SVME, "EFER.SVME"},
        {HOST_EFER, EFER_LMA, 0, "EFER.LMA"},
        {HOST_EFER, EFER_LME, 0, "EFER.LME"},
        {HOST_ES_SELECTOR, 0, 1, "ES"},
        {HOST_CS_SELECTOR, 0, 4, "CS with TI"},
        {HOST_SS_SELECTOR, 0, 2, "SS"},
        {HOST_DS_SELECTOR, 0, 3, "DS"},
        {HOST_FS_SELECTOR, 0, 3, "FS"},
        {HOST_GS_SELECTOR, 0, 3, "GS"},
        {HOST_TR_SELECTOR, 0, 3, "TR"},
        {HOST_CS_SELECTOR, 0xffff, 0, "CS 0"},
        {HOST_TR_SELECTOR, 0xffff, 0, "TR 0"},
        {HOST_FS_BASE, 0, BAD_ADDRESS, "FS base"},
        {HOST_GS_BASE, 0, BAD_ADDRESS, "GS base"},
        {HOST_TR_BASE, 0, BAD_ADDRESS, "TR base"},
        {HOST_GDTR_BASE, 0, BAD_ADDRESS, "GDTR base"},
        {HOST_IDTR_BASE, 0, BAD_ADDRESS, "IDTR base"},
        {HOST_RIP, 0xffff000000000000, 0, "RIP"},
        {EXIT_CONTROLS, EXIT_CTL_HOST_64, 0, "host address-space size"},
    };

    (void)state;
    check_rows(rows, ARRAY_SIZE(rows), HOST);
}

// What no control asks for is not looked at; SS may be 0 for a 64-bit host.
static void test_host_not_checked(void **state)
{
    (void)state;
    put(HOST_SS_SELECTOR, 0);
    change(EXIT_CONTROLS, EXIT_CTL_LOAD_PAT | EXIT_CTL_LOAD_EFER, 0);
    put(HOST_PAT, 2);
    put(HOST_EFER, ~0ull);
    assert_int_equal(check(), PASSES);
}

static void test_32bit_host(void **state)
{
    (void)state;
    vcpu.cur->state.efer = 0;
    change(EXIT_CONTROLS, EXIT_CTL_HOST_64 | EXIT_CTL_LOAD_EFER, 0);
    assert_int_equal(check(), HOST); // IA-32e mode guest
    change(ENTRY_CONTROLS, ENTRY_CTL_IA32E_GUEST, 0);
    put(HOST_RIP, 0x1000);
    assert_int_not_equal(check(), HOST);
    put(HOST_RIP, 1ull << 32);
    assert_int_equal(check(), HOST);
    put(HOST_RIP, 0x1000);
    put(HOST_SS_SELECTOR, 0);
    assert_int_equal(check(), HOST);
    put(HOST_SS_SELECTOR, 0x10);
    change(HOST_CR4, 0, CR4_PCIDE);
    assert_int_equal(check(), HOST);
    change(HOST_CR4, CR4_PCIDE, 0);
    change(EXIT_CONTROLS, 0, EXIT_CTL_HOST_64);
    assert_int_equal(check(), HOST); // from outside IA-32e mode
}

static void test_57bit_addresses(void **state)
{
    (void)state;
    la57 = true;
    vmcs12_caps_reset(&vcpu);
    put(HOST_FS_BASE, 1ull << 50);
    put(GUEST_FS_BASE, 1ull << 50);
    assert_int_equal(check(), PASSES); // by the CPU's width
    put(HOST_RIP, 1ull << 50);
    assert_int_equal(check(), HOST); // by the host's CR4
    change(HOST_CR4, 0, CR4_LA57);
    assert_int_equal(check(), PASSES);
}

// --- guest state ---

static void test_guest(void **state)
{
    static const struct row rows[] = {
        {GUEST_CR0, CR0_NE, 0, "CR0.NE clear"},
        {GUEST_CR0, CR0_PG, 0, "CR0.PG clear"},
        {GUEST_CR0, 0, 1ull << 32, "CR0[32]"},
        {GUEST_CR4, CR4_VMXE, 0, "CR4.VMXE clear"},
        {GUEST_CR4, 0, CR4_SMXE, "CR4.SMXE"},
        {GUEST_CR4, CR4_PAE, 0, "CR4.PAE clear"},
        {GUEST_CR3, 0, 1ull << PHYS_BITS, "CR3"},
        {GUEST_DR7, 0, 1ull << 32, "DR7"},
        {GUEST_DEBUGCTL, 0, 1ull << 2, "DEBUGCTL"},
        {GUEST_SYSENTER_ESP, 0, BAD_ADDRESS, "SYSENTER_ESP"},
        {GUEST_SYSENTER_EIP, 0, BAD_ADDRESS, "SYSENTER_EIP"},
        {GUEST_PAT, 0xff, 2, "PAT 2"},
        {GUEST_EFER, 0, BIT(1), "EFER[1]"},
        {GUEST_EFER, EFER_LMA, 0, "EFER.LMA"},
        {GUEST_EFER, EFER_LME, 0, "EFER.LME"},
        {GUEST_CS_ACCESS, 0xf, 3, "CS, data"},
        {GUEST_CS_ACCESS, 1, 0, "CS, not accessed"},
        {GUEST_CS_ACCESS, SEG_S, 0, "CS, system"},
        {GUEST_CS_ACCESS, SEG_P, 0, "CS, not present"},
        {GUEST_CS_ACCESS, SEG_P, SEG_UNUSABLE, "CS, not present, unusable"},
        {GUEST_CS_ACCESS, 0, SEG_DB, "CS.L and CS.D"},
        {GUEST_CS_ACCESS, 0, BIT(8), "CS, bit 8"},
        {GUEST_CS_ACCESS, 0, BIT(17), "CS, bit 17"},
        {GUEST_CS_ACCESS, 0, SEG_DPL, "CS.DPL"},
        {GUEST_CS_ACCESS, 0, SEG_DPL | 4, "CS.DPL, conforming"},
        {GUEST_CS_LIMIT, 1, 0, "CS limit with G"},
        {GUEST_CS_ACCESS, SEG_G, 0, "CS limit without G"},
        {GUEST_CS_SELECTOR, 0, 1, "CS.RPL"},
        {GUEST_CS_BASE, 0, 1ull << 32, "CS base"},
        {GUEST_SS_ACCESS, 0xf, 0xb, "SS, code"},
        {GUEST_SS_ACCESS, 0xf, 1, "SS, read-only"},
        {GUEST_SS_ACCESS, SEG_S, 0, "SS, system"},
        {GUEST_SS_ACCESS, SEG_P, 0, "SS, not present"},
        {GUEST_SS_ACCESS, 0, SEG_DPL, "SS.DPL"},
        {GUEST_SS_SELECTOR, 0, 3, "SS.RPL"},
        {GUEST_SS_BASE, 0, 1ull << 32, "SS base"},
        {GUEST_ES_ACCESS, 1, 0, "ES, not accessed"},
        {GUEST_DS_ACCESS, 0xf, 9, "DS, code that can't be read"},
        {GUEST_FS_ACCESS, SEG_S, 0, "FS, system"},
        {GUEST_GS_ACCESS, SEG_P, 0, "GS, not present"},
        {GUEST_DS_SELECTOR, 0, 3, "DS.RPL above DPL"},
        {GUEST_DS_ACCESS, 0, BIT(11), "DS, bit 11"},
        {GUEST_DS_LIMIT, 1, 0, "DS limit with G"},
        {GUEST_DS_BASE, 0, 1ull << 32, "DS base"},
        {GUEST_ES_BASE, 0, 1ull << 32, "ES base"},
        {GUEST_FS_BASE, 0, BAD_ADDRESS, "FS base"},
        {GUEST_GS_BASE, 0, BAD_ADDRESS, "GS base"},
        {GUEST_TR_SELECTOR, 0, 4, "TR with TI"},
        {GUEST_TR_ACCESS, 0xf, 3, "TR, 16-bit"},
        {GUEST_TR_ACCESS, 0xf, 9, "TR, not busy"},
        {GUEST_TR_ACCESS, 0, SEG_S, "TR, not system"},
        {GUEST_TR_ACCESS, SEG_P, 0, "TR, not present"},
        {GUEST_TR_ACCESS, 0, SEG_UNUSABLE, "TR, unusable"},
        {GUEST_TR_ACCESS, 0, BIT(9), "TR, bit 9"},
        {GUEST_TR_ACCESS, 0, BIT(31), "TR, bit 31"},
        {GUEST_TR_ACCESS, 0, SEG_G, "TR limit with G"},
        {GUEST_TR_LIMIT, 0, 1 << 20, "TR limit without G"},
        {GUEST_TR_BASE, 0, BAD_ADDRESS, "TR base"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 0x83, "LDTR, type 3"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 0x92, "LDTR, not system"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 2, "LDTR, not present"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 0x182, "LDTR, bit 8"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 0x8082, "LDTR limit with G"},
        {GUEST_GDTR_BASE, 0, BAD_ADDRESS, "GDTR base"},
        {GUEST_IDTR_BASE, 0, BAD_ADDRESS, "IDTR base"},
        {GUEST_GDTR_LIMIT, 0, 1 << 16, "GDTR limit"},
        {GUEST_IDTR_LIMIT, 0, 1 << 31, "IDTR limit"},
        {GUEST_RIP, 0, 1ull << 48, "RIP, bit 48"},
        {GUEST_RIP, 0, 1ull << 63, "RIP, bit 63"},
        {GUEST_RFLAGS, RFLAGS_FIXED, 0, "RFLAGS[1] clear"},
        {GUEST_RFLAGS, 0, BIT(3), "RFLAGS[3]"},
        {GUEST_RFLAGS, 0, BIT(5), "RFLAGS[5]"},
        {GUEST_RFLAGS, 0, BIT(15), "RFLAGS[15]"},
        {GUEST_RFLAGS, 0, BIT(22), "RFLAGS[22]"},
        {GUEST_RFLAGS, 0, BIT(63), "RFLAGS[63]"},
        {GUEST_RFLAGS, 0, RFLAGS_VM, "RFLAGS.VM"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(0, 0x40), "an interrupt with IF = 0"},
        {GUEST_ACTIVITY_STATE, 0, 4, "activity state 4"},
        {GUEST_INTERRUPTIBILITY, 0, BLOCK_STI, "STI with IF = 0"},
        {GUEST_INTERRUPTIBILITY, 0, BLOCK_SMI, "SMI blocking"},
        {GUEST_INTERRUPTIBILITY, 0, BIT(4), "enclave interruption"},
        {GUEST_INTERRUPTIBILITY, 0, BIT(31), "interruptibility, bit 31"},
        {GUEST_PENDING_DBG, 0, BIT(4), "pending debug, bit 4"},
        {GUEST_PENDING_DBG, 0, BIT(11), "pending debug, bit 11"},
        {GUEST_PENDING_DBG, 0, BIT(13), "pending debug, bit 13"},
        {GUEST_PENDING_DBG, 0, BIT(15), "pending debug, bit 15"},
        {GUEST_PENDING_DBG, 0, BIT(16), "pending debug, RTM"},
        {GUEST_PENDING_DBG, 0, BIT(63), "pending debug, bit 63"},
        {VMCS_LINK_POINTER, 1, 0, "VMCS link pointer"},
    };

    (void)state;
    check_rows(rows, ARRAY_SIZE(rows), GUEST);
}

// Rows that look wrong and are right.
static void test_guest_allowed(void **state)
{
    static const struct row rows[] = {
        {GUEST_CS_ACCESS, 0, SEG_UNUSABLE, "CS's unusable bit alone"},
        {GUEST_CS_ACCESS, 0, 4, "CS, conforming"},
        {GUEST_SS_ACCESS, 0, SEG_UNUSABLE, "SS, unusable"},
        {GUEST_SS_ACCESS, 0, 4, "SS, expand-down"},
        {GUEST_DS_ACCESS, ~0ull, SEG_UNUSABLE, "DS, null"},
        {GUEST_ES_ACCESS, 0xf, 0xb, "ES, code that can be read"},
        {GUEST_DS_ACCESS, 0, SEG_AVL | SEG_DPL, "DS, AVL, DPL 3"},
        {GUEST_LDTR_ACCESS, SEG_UNUSABLE, 0x82, "LDTR, an LDT"},
        {GUEST_RIP, ~0ull, 0x800000000000, "RIP, not canonical, but its high bits are alike"},
        {GUEST_RIP, ~0ull, 0xffff000000000000, "the same with ones"},
        {GUEST_RFLAGS, 0, 0x3f7fd5 & ~RFLAGS_VM & ~(u64)RFLAGS_TF, "RFLAGS, every bit"},
        {GUEST_INTERRUPTIBILITY, 0, BLOCK_MOV_SS, "MOV SS with IF = 0"},
        {GUEST_INTERRUPTIBILITY, 0, BLOCK_NMI, "NMI blocking"},
        {GUEST_PENDING_DBG, 0, BIT(12) | BIT(14) | 0xf, "pending debug, every bit"},
        {GUEST_ACTIVITY_STATE, 0, ACTIVITY_HLT, "HLT"},
        {GUEST_DEBUGCTL, 0, DEBUGCTL_LBR | DEBUGCTL_BTF, "LBR and BTF"},
        {ENTRY_INTERRUPTION_INFO, 0, INFO(2, VECTOR_NMI), "an NMI with IF = 0"},
    };

    (void)state;
    check_rows(rows, ARRAY_SIZE(rows), PASSES);
}

static void test_guest_not_checked(void **state)
{
    (void)state;
    change(ENTRY_CONTROLS, ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT | ENTRY_CTL_LOAD_EFER, 0);
    put(GUEST_DR7, ~0ull);
    put(GUEST_PAT, 2);
    put(GUEST_EFER, 0);
    assert_int_equal(check(), PASSES);
}

static void test_unusable_segments(void **state)
{
    (void)state;
    put(GUEST_DS_ACCESS, SEG_UNUSABLE);
    put(GUEST_DS_BASE, ~0ull);
    put(GUEST_DS_LIMIT, 1 << 21);
    put(GUEST_DS_SELECTOR, 3);
    put(GUEST_LDTR_BASE, BAD_ADDRESS);
    put(GUEST_LDTR_SELECTOR, 4);
    put(GUEST_LDTR_LIMIT, 1 << 21);
    assert_int_equal(check(), PASSES);
    put(GUEST_FS_ACCESS, SEG_UNUSABLE);
    put(GUEST_FS_BASE, BAD_ADDRESS); // of FS, GS and TR it counts always
    assert_int_equal(check(), GUEST);
}

static void test_ldtr(void **state)
{
    (void)state;
    put(GUEST_LDTR_ACCESS, 0x82);
    put(GUEST_LDTR_SELECTOR, 4);
    assert_int_equal(check(), GUEST);
    put(GUEST_LDTR_SELECTOR, 0x20);
    put(GUEST_LDTR_BASE, BAD_ADDRESS);
    assert_int_equal(check(), GUEST);
    put(GUEST_LDTR_BASE, 0xffff800000000000);
    assert_int_equal(check(), PASSES);
}

static void test_cpl3(void **state)
{
    (void)state;
    put_segment(SEG_CS, 0x33, 0xa0fb, ~0u, 0);
    put_segment(SEG_SS, 0x2b, 0xc0f3, ~0u, 0);
    put_segment(SEG_DS, 0x2b, 0xc0f3, ~0u, 0);
    assert_int_equal(check(), PASSES);
    put_segment(SEG_DS, 0x2b, 0xc093, ~0u, 0); // DPL 0, RPL 3
    assert_int_equal(check(), GUEST);
    put_segment(SEG_DS, 0x2b, 0xc09f, ~0u, 0); // conforming code
    assert_int_equal(check(), PASSES);
    put_segment(SEG_DS, 0x2a, 0xc0b3, ~0u, 0); // DPL 1, RPL 2
    assert_int_equal(check(), GUEST);
    put_segment(SEG_DS, 0x2a, 0xc0d3, ~0u, 0);
    put_segment(SEG_CS, 0x33, 0xa09f, ~0u, 0); // conforming, of a lower DPL
    assert_int_equal(check(), PASSES);
    put_segment(SEG_CS, 0x33, 0xa09b, ~0u, 0); // not conforming
    assert_int_equal(check(), GUEST);
    put_segment(SEG_CS, 0x33, 0xa0fb, ~0u, 0);
    put(GUEST_ACTIVITY_STATE, ACTIVITY_HLT); // HLT is of CPL 0
    assert_int_equal(check(), GUEST);
}

static void test_compatibility_mode(void **state)
{
    (void)state;
    put_segment(SEG_CS, 8, 0xc09b, ~0u, 0);
    assert_int_equal(check(), PASSES);
    put(GUEST_RIP, 0xffff800000000000);
    assert_int_equal(check(), GUEST);
}

static void make_32bit(void)
{
    change(ENTRY_CONTROLS, ENTRY_CTL_IA32E_GUEST, 0);
    put(GUEST_EFER, 0);
    put(GUEST_CR4, CR4_VMXE);
    put_segment(SEG_CS, 8, 0xc09b, ~0u, 0);
}

static void test_32bit_guest(void **state)
{
    (void)state;
    make_32bit();
    assert_int_equal(check(), PASSES);
    put(GUEST_TR_ACCESS, 0x83); // a 16-bit TSS
    assert_int_equal(check(), PASSES);
    put(GUEST_RIP, 1ull << 32);
    assert_int_equal(check(), GUEST);
    put(GUEST_RIP, 0);
    change(GUEST_CR4, 0, CR4_PCIDE);
    assert_int_equal(check(), GUEST);
    change(GUEST_CR4, CR4_PCIDE, 0);
    put(GUEST_EFER, EFER_LME);
    assert_int_equal(check(), GUEST); // CR0.PG is 1
}

static void make_v8086(void)
{
    make_32bit();
    put(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_VM);
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++) {
        put_segment(seg, 0x1234, 0xf3, 0xffff, 0);
        put((enum vmcs_field)(GUEST_ES_BASE + 2 * seg), 0x12340);
    }
}

static void test_v8086(void **state)
{
    (void)state;
    make_v8086();
    assert_int_equal(check(), PASSES);
    for (unsigned seg = SEG_ES; seg <= SEG_GS; seg++) {
        make_v8086();
        put((enum vmcs_field)(GUEST_ES_BASE + 2 * seg), 0x12341);
        assert_int_equal(check(), GUEST);
        make_v8086();
        put((enum vmcs_field)(GUEST_ES_LIMIT + 2 * seg), 0xfffff);
        assert_int_equal(check(), GUEST);
        make_v8086();
        put((enum vmcs_field)(GUEST_ES_ACCESS + 2 * seg), 0x93);
        assert_int_equal(check(), GUEST);
    }
}

static void test_activity(void **state)
{
    static const struct {
        u64 info;
        enum result result;
    } cases[] = {
        {0, PASSES},
        {INFO(0, 0x40), PASSES},
        {INFO(2, VECTOR_NMI), PASSES},
        {INFO(3, VECTOR_DB), PASSES},
        {INFO(3, VECTOR_MC), PASSES},
        {INFO(3, VECTOR_UD), GUEST},
        {INFO(4, 0x40), GUEST},
        {INFO(5, VECTOR_DB), GUEST},
        {INFO(6, VECTOR_BP), GUEST},
    };

    (void)state;
    put(GUEST_ACTIVITY_STATE, ACTIVITY_HLT);
    put(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    put(ENTRY_INSTRUCTION_LENGTH, 1);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        put(ENTRY_INTERRUPTION_INFO, cases[i].info);
        assert_int_equal(check(), cases[i].result);
    }
    put(ENTRY_INTERRUPTION_INFO, 0);
    put(GUEST_INTERRUPTIBILITY, BLOCK_STI);
    assert_int_equal(check(), GUEST);
    put(GUEST_INTERRUPTIBILITY, BLOCK_MOV_SS);
    assert_int_equal(check(), GUEST);
    put(GUEST_INTERRUPTIBILITY, BLOCK_NMI);
    assert_int_equal(check(), PASSES);
}

static void test_interruptibility(void **state)
{
    static const struct {
        u64 blocking, info;
        enum result result;
    } cases[] = {
        {BLOCK_STI, 0, PASSES},
        {BLOCK_MOV_SS, 0, PASSES},
        {BLOCK_STI | BLOCK_MOV_SS, 0, GUEST},
        {BLOCK_STI, INFO(0, 0x40), GUEST},
        {BLOCK_MOV_SS, INFO(0, 0x40), GUEST},
        {BLOCK_NMI, INFO(0, 0x40), PASSES},
        {BLOCK_STI, INFO(2, VECTOR_NMI), PASSES},
        {BLOCK_MOV_SS, INFO(2, VECTOR_NMI), GUEST},
        {BLOCK_NMI, INFO(2, VECTOR_NMI), PASSES}, // no virtual NMIs
        {BLOCK_MOV_SS, INFO(3, VECTOR_UD), PASSES},
    };

    (void)state;
    put(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        put(GUEST_INTERRUPTIBILITY, cases[i].blocking);
        put(ENTRY_INTERRUPTION_INFO, cases[i].info);
        assert_int_equal(check(), cases[i].result);
    }
}

// With STI or MOV SS blocking, or halted, BS must say whether a single step is due.
static void test_pending_step(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 16; i++) {
        bool tf = i & 1, btf = i & 2, bs = i & 4, blocked = i & 8;

        put(GUEST_RFLAGS, RFLAGS_FIXED | RFLAGS_IF | (tf ? RFLAGS_TF : 0));
        put(GUEST_DEBUGCTL, btf ? DEBUGCTL_BTF : 0);
        put(GUEST_PENDING_DBG, bs ? DR6_BS : 0);
        put(GUEST_INTERRUPTIBILITY, blocked ? BLOCK_MOV_SS : 0);
        put(GUEST_ACTIVITY_STATE, ACTIVITY_ACTIVE);
        assert_int_equal(check(), !blocked || bs == (tf && !btf) ? PASSES : GUEST);
        put(GUEST_INTERRUPTIBILITY, blocked ? BLOCK_STI : BLOCK_NMI);
        assert_int_equal(check(), !blocked || bs == (tf && !btf) ? PASSES : GUEST);
        put(GUEST_INTERRUPTIBILITY, 0);
        put(GUEST_ACTIVITY_STATE, ACTIVITY_HLT);
        assert_int_equal(check(), bs == (tf && !btf) ? PASSES : GUEST);
    }
}

// --- fields and capabilities ---

static void test_fields(void **state)
{
    unsigned count = 0;
    u64 highest = vmcs12_capability(&vcpu, MSR_VMX_VMCS_ENUM);

    (void)state;
    for (u32 encoding = 0; encoding < 0x8000; encoding++) {
        u64 *slot = vmcs12_field(&nested, encoding);

        if (!slot)
            continue;
        count++;
        assert_false(encoding & 1);
        assert_false(encoding & BIT(12));
        assert_true((encoding & BITS(9, 1)) <= highest);
        assert_true(slot >= nested.vmcs.field && slot < nested.vmcs.field + VMCS12_FIELDS);
        *slot = encoding; // each has a place of its own
    }
    assert_true(count > 100 && count <= VMCS12_FIELDS);
    for (u32 encoding = 0; encoding < 0x8000; encoding++)
        if (vmcs12_field(&nested, encoding))
            assert_int_equal(*vmcs12_field(&nested, encoding), encoding);
    assert_null(vmcs12_field(&nested, PML_ADDRESS));
    assert_null(vmcs12_field(&nested, 0x10000 | GUEST_RIP));
}

// By bits 14:13 of the encoding: 16, 64, 32 bits, natural width (appendix B).
static void test_fields_from_memory(void **state)
{
    static const u64 all[] = {0xffff, ~0ull, 0xffffffff, ~0ull};

    (void)state;
    memset(nested.vmcs.field, 0xff, sizeof(nested.vmcs.field));
    vmcs12_fields_cut(&nested);
    for (u32 encoding = 0; encoding < 0x8000; encoding++)
        if (vmcs12_field(&nested, encoding))
            assert_int_equal(*vmcs12_field(&nested, encoding), all[encoding >> 13]);
}

static bool offered(u32 entry, u32 exit)
{
    bool in = vmcs12_capability(&vcpu, MSR_VMX_ENTRY_CTLS) >> 32 & entry;

    assert_int_equal(in, !!(vmcs12_capability(&vcpu, MSR_VMX_EXIT_CTLS) >> 32 & exit));
    return in;
}

static bool has_fields(u32 guest, u32 host)
{
    assert_int_equal(!vmcs12_field(&nested, guest), !vmcs12_field(&nested, host));
    return vmcs12_field(&nested, guest);
}

static void offer_cet(bool ss, bool ibt)
{
    shadow_stacks = ss;
    branch_tracking = ibt;
    vm.disabled_isa = ss || ibt ? 0 : ISA_CET;
    vmcs12_caps_reset(&vcpu);
    put_controls();
    change(ENTRY_CONTROLS, 0, ss || ibt ? ENTRY_CTL_LOAD_CET : 0);
}

// Controls and fields are there with the feature; no guest has performance counters.
static void test_offered_state(void **state)
{
    (void)state;
    assert_false(offered(ENTRY_CTL_LOAD_CET, EXIT_CTL_LOAD_CET));
    assert_false(has_fields(GUEST_S_CET, HOST_S_CET) || has_fields(GUEST_SSP, HOST_SSP));
    assert_false(offered(ENTRY_CTL_LOAD_PKRS, EXIT_CTL_LOAD_PKRS));
    assert_false(has_fields(GUEST_PKRS, HOST_PKRS));
    assert_false(vmcs12_capability(&vcpu, MSR_VMX_BASIC) & VMX_BASIC_ANY_ERROR);
    assert_false(offered(ENTRY_CTL_LOAD_PERF_GLOBAL, EXIT_CTL_LOAD_PERF_GLOBAL));
    assert_false(has_fields(GUEST_PERF_GLOBAL_CTRL, HOST_PERF_GLOBAL_CTRL));
    change(ENTRY_CONTROLS, 0, ENTRY_CTL_LOAD_PERF_GLOBAL);
    assert_int_equal(check(), CONTROLS);
    put_controls();
    change(EXIT_CONTROLS, 0, EXIT_CTL_LOAD_PERF_GLOBAL);
    assert_int_equal(check(), CONTROLS);

    pks = true;
    offer_cet(true, true);
    assert_true(offered(ENTRY_CTL_LOAD_CET, EXIT_CTL_LOAD_CET));
    assert_true(has_fields(GUEST_S_CET, HOST_S_CET) && has_fields(GUEST_SSP, HOST_SSP));
    assert_true(offered(ENTRY_CTL_LOAD_PKRS, EXIT_CTL_LOAD_PKRS));
    assert_true(has_fields(GUEST_PKRS, HOST_PKRS));
    assert_true(vmcs12_capability(&vcpu, MSR_VMX_BASIC) & VMX_BASIC_ANY_ERROR);
    config.nested_features = ~(BIT(OFFER_CET) | BIT(OFFER_PKRS));
    offer_cet(true, true);
    assert_false(offered(ENTRY_CTL_LOAD_CET, EXIT_CTL_LOAD_CET));
    assert_false(offered(ENTRY_CTL_LOAD_PKRS, EXIT_CTL_LOAD_PKRS));
}

// With CET an exception may have an error code or not, but not in real mode, nor what is none.
static void test_any_error_code(void **state)
{
    (void)state;
    offer_cet(true, true);
    for (unsigned vector = 0; vector < 32; vector++)
        for (unsigned error = 0; error < 2; error++) {
            put(ENTRY_INTERRUPTION_INFO, INFO(3, vector) | (error ? INFO_ERROR_CODE : 0));
            assert_int_equal(check(), PASSES);
        }
    put(ENTRY_INTERRUPTION_INFO, INFO(0, 0x40) | INFO_ERROR_CODE);
    assert_int_equal(check(), CONTROLS);
    put(ENTRY_INTERRUPTION_INFO, INFO(2, VECTOR_NMI) | INFO_ERROR_CODE);
    assert_int_equal(check(), CONTROLS);
}

static void test_s_cet(void **state)
{
    static const struct {
        u64 value;
        bool ss, ibt; // passes with
    } values[] = {
        {0, true, true},        {1, true, false},        {2, true, false},
        {BIT(2), false, true},  {BIT(5), false, true},   {BIT(6), false, false},
        {BIT(9), false, false}, {BIT(10), false, true},  {BIT(11), false, true},
        {0x1000, false, true},  {BIT(47), false, false}, {BITS(63, 47), false, true},
        {0xc00, false, false},
    };

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(values); i++) {
        offer_cet(true, false);
        put(GUEST_S_CET, values[i].value);
        assert_int_equal(check(), values[i].ss ? PASSES : GUEST);
        offer_cet(false, true);
        assert_int_equal(check(), values[i].ibt ? PASSES : GUEST);
        offer_cet(true, true);
        assert_int_equal(check(), values[i].ss || values[i].ibt ? PASSES : GUEST);
    }
}

// The bits above the CPU's width must be alike; canonical it need not be.
static void test_guest_ssp(void **state)
{
    (void)state;
    offer_cet(true, true);
    put(GUEST_S_CET, 0);
    put(GUEST_SSP, BIT(47));
    assert_int_equal(check(), PASSES);
    put(GUEST_SSP, BITS(63, 48));
    assert_int_equal(check(), PASSES);
    put(GUEST_SSP, BIT(48));
    assert_int_equal(check(), GUEST);
    put(GUEST_SSP, 1);
    assert_int_equal(check(), GUEST);
}

static void test_capabilities(void **state)
{
    static const u32 pairs[][2] = {
        {MSR_VMX_PINBASED_CTLS, MSR_VMX_TRUE_PINBASED_CTLS},
        {MSR_VMX_PROCBASED_CTLS, MSR_VMX_TRUE_PROCBASED_CTLS},
        {MSR_VMX_EXIT_CTLS, MSR_VMX_TRUE_EXIT_CTLS},
        {MSR_VMX_ENTRY_CTLS, MSR_VMX_TRUE_ENTRY_CTLS},
    };
    // SDM vol. 3 appendices A.3 to A.5: the default1 classes
    static const u32 default1[] = {0x16, 0x0401e172, 0x00036dff, 0x000011ff};

    (void)state;
    for (unsigned i = 0; i < ARRAY_SIZE(pairs); i++) {
        u64 plain = vmcs12_capability(&vcpu, pairs[i][0]);
        u64 exact = vmcs12_capability(&vcpu, pairs[i][1]);

        assert_int_equal((u32)plain, default1[i]);
        assert_int_equal(plain >> 32, exact >> 32);
        assert_int_equal((u32)exact & ~(u32)plain, 0);    // may allow more zeros
        assert_int_equal((u32)plain & ~(plain >> 32), 0); // what must be 1 may be 1
    }
    assert_true(vmcs12_capability(&vcpu, MSR_VMX_BASIC) & VMX_BASIC_TRUE_CTLS);
    assert_int_equal(vmcs12_capability(&vcpu, MSR_VMX_CR4_FIXED1), cr4_allowed(&vcpu));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_good, setup),
        cmocka_unit_test_setup(test_controls, setup),
        cmocka_unit_test_setup(test_bitmaps_that_are_not_used, setup),
        cmocka_unit_test_setup(test_offered_state, setup),
        cmocka_unit_test_setup(test_any_error_code, setup),
        cmocka_unit_test_setup(test_s_cet, setup),
        cmocka_unit_test_setup(test_guest_ssp, setup),
        cmocka_unit_test_setup(test_injection, setup),
        cmocka_unit_test_setup(test_msr_areas, setup),
        cmocka_unit_test_setup(test_host, setup),
        cmocka_unit_test_setup(test_host_not_checked, setup),
        cmocka_unit_test_setup(test_32bit_host, setup),
        cmocka_unit_test_setup(test_57bit_addresses, setup),
        cmocka_unit_test_setup(test_guest, setup),
        cmocka_unit_test_setup(test_guest_allowed, setup),
        cmocka_unit_test_setup(test_guest_not_checked, setup),
        cmocka_unit_test_setup(test_unusable_segments, setup),
        cmocka_unit_test_setup(test_ldtr, setup),
        cmocka_unit_test_setup(test_cpl3, setup),
        cmocka_unit_test_setup(test_compatibility_mode, setup),
        cmocka_unit_test_setup(test_32bit_guest, setup),
        cmocka_unit_test_setup(test_v8086, setup),
        cmocka_unit_test_setup(test_activity, setup),
        cmocka_unit_test_setup(test_interruptibility, setup),
        cmocka_unit_test_setup(test_pending_step, setup),
        cmocka_unit_test_setup(test_fields, setup),
        cmocka_unit_test_setup(test_fields_from_memory, setup),
        cmocka_unit_test_setup(test_capabilities, setup),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
