// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The checks of VM entry on VMX controls (SDM vol. 3 "VM Entries", section "Checks on VMX
// Controls"), in its order, and what the groups share. Pure but for the guest's memory.

#include "vmcs12_check.h"
#include <arch/x86/msr.h>

// --- what the groups share ---

static inline bool is_plain(const struct nested *n)
{
    return !((vmcs12_read(n, ENTRY_INTERRUPTION_INFO) & INFO_VALID) |
             vmcs12_read(n, GUEST_ACTIVITY_STATE) | vmcs12_read(n, GUEST_INTERRUPTIBILITY) |
             vmcs12_read(n, GUEST_PENDING_DBG) | ~vmcs12_read(n, VMCS_LINK_POINTER) |
             (vmcs12_read(n, PRIMARY_CONTROLS) & PRIMARY_TPR_SHADOW));
}

static void fill_words(struct check *c)
{
    const struct nested *n = c->n;
    u64 info = get(c, ENTRY_INTERRUPTION_INFO);

    c->word[WORD_NONE] = 0;
    c->word[WORD_PIN] = get(c, PIN_BASED_CONTROLS);
    c->word[WORD_PRIMARY] = get(c, PRIMARY_CONTROLS);
    c->word[WORD_SECONDARY] = vmcs12_secondary(n);
    c->word[WORD_EXIT] = get(c, EXIT_CONTROLS);
    c->word[WORD_ENTRY] = get(c, ENTRY_CONTROLS);
    c->word[WORD_EVENT] = info & INFO_VALID ? info : 0;
    c->word[WORD_STATE] = (c->word[WORD_EVENT] | get(c, GUEST_ACTIVITY_STATE) |
                           get(c, GUEST_INTERRUPTIBILITY) | get(c, GUEST_PENDING_DBG)) != 0;
    c->word[WORD_LINK] = ~get(c, VMCS_LINK_POINTER) != 0;
    c->word[WORD_EACH_CONTROLS] =
        c->word[WORD_EVENT] | (c->word[WORD_PRIMARY] & PRIMARY_TPR_SHADOW);
    c->word[WORD_EACH_GUEST] = c->word[WORD_STATE] | c->word[WORD_LINK];
    c->unrestricted = c->word[WORD_SECONDARY] & SECONDARY_UNRESTRICTED_GUEST;
    c->ia32e = c->word[WORD_ENTRY] & ENTRY_CTL_IA32E_GUEST;
    c->v8086 = get(c, GUEST_RFLAGS) & RFLAGS_VM;
}

static unsigned first_row(const struct check *c, const struct check_table *table)
{
    if (c->n->due & table->due)
        return 0;
    if (c->word[table->each])
        return table->always;
    return c->n->due & table->due_late ? table->late : table->count;
}

static const struct check_row *first_failing(const struct check *c, const struct check_table *table)
{
    const struct check_row *row = table->rows + first_row(c, table);

    for (; row < table->rows + table->count; row++)
        if ((!row->bits || (c->word[row->word] & row->bits)) && row->fails(c, row))
            return row;
    return NULL;
}

const struct check_row *vmcs12_refusing_row(struct vcpu *vcpu, u32 *result)
{
    static const struct check_table *const tables[] = {&vmcs12_control_checks, &vmcs12_host_checks,
                                                       &vmcs12_guest_checks};
    struct nested *n = vcpu->nested;
    struct check c;

    c.vcpu = vcpu;
    c.n = n;
    c.phys_bits = cpuid_phys_bits(vcpu->vm);
    // by the width that the CPU has, whatever paging is in use
    c.linear_bits = vmcs12_capability(vcpu, MSR_VMX_CR4_FIXED1) & CR4_LA57 ? 57 : 48;
    fill_words(&c);
    for (unsigned i = 0; i < ARRAY_SIZE(tables); i++) {
        const struct check_row *row = first_failing(&c, tables[i]);

        *result = tables[i]->result;
        if (row)
            return row;
        n->due &= (u8) ~(tables[i]->due | tables[i]->due_late);
    }
    *result = 0;
    return NULL;
}

u32 vmcs12_check_entry(struct vcpu *vcpu, u64 *qualification)
{
    const struct check_row *row;
    u32 result;

    *qualification = 0;
    // No row would be looked at.
    if (likely(!(vcpu->nested->due & DUE_CHECKS) && is_plain(vcpu->nested)))
        return 0;
    row = vmcs12_refusing_row(vcpu, &result);
    *qualification = row ? row->qualification : 0;
    return result;
}

static u8 due_after(u32 encoding, u64 changed)
{
    static const u8 by_type[] = {DUE_CONTROLS | DUE_MERGE, 0, DUE_GUEST | DUE_LOAD, DUE_HOST};

    switch (encoding & ~1u) {
    case PRIMARY_CONTROLS:
        return changed & PRIMARY_SECONDARY ? DUE_ALL : DUE_CONTROLS | DUE_MERGE;
    case PIN_BASED_CONTROLS: // rows of other groups depend on these
    case SECONDARY_CONTROLS:
    case EXIT_CONTROLS:
    case ENTRY_CONTROLS:
        return DUE_ALL;
    case GUEST_RIP:
        return DUE_RIP;
    case GUEST_RFLAGS: // segments depend on VM
        return changed & RFLAGS_VM ? DUE_GUEST | DUE_LOAD : DUE_RIP;
    case ENTRY_INTERRUPTION_INFO: // only rows that such an entry looks at, and always loaded
    case ENTRY_EXCEPTION_ERROR_CODE:
    case ENTRY_INSTRUCTION_LENGTH:
    case TPR_THRESHOLD:
    case GUEST_RSP:
    case GUEST_INTERRUPTIBILITY:
    case GUEST_ACTIVITY_STATE:
    case GUEST_PENDING_DBG:
    case GUEST_INTERRUPT_STATUS: // none, here and below
    case PML_INDEX:
    case PREEMPTION_TIMER_VALUE:
    case HOST_RSP:
        return 0;
    default:
        return by_type[encoding >> 10 & 3];
    }
}

void vmcs12_note_write(struct nested *n, u32 encoding, u64 changed)
{
    if (changed)
        n->due |= due_after(encoding, changed);
}

bool check_reserved(const struct check *c, const struct check_row *row)
{
    return field_of(c, row) & row->arg;
}

bool check_zero(const struct check *c, const struct check_row *row)
{
    return !field_of(c, row);
}

bool check_address(const struct check *c, const struct check_row *row)
{
    return bad_address(c, field_of(c, row), row->arg);
}

bool check_canonical(const struct check *c, const struct check_row *row)
{
    return !is_sign_extended(field_of(c, row), c->linear_bits);
}

bool check_pat(const struct check *c, const struct check_row *row)
{
    return pat_is_illegal(field_of(c, row));
}

static bool outside(const struct check *c, u64 value, u32 fixed0)
{
    return (capability(c, fixed0) & ~value) || (value & ~capability(c, fixed0 + 1));
}

bool check_cr0(const struct check *c, const struct check_row *row)
{
    return outside(c, field_of(c, row), MSR_VMX_CR0_FIXED0);
}

bool check_cr4(const struct check *c, const struct check_row *row)
{
    return outside(c, field_of(c, row), MSR_VMX_CR4_FIXED0);
}

// IA32_S_CET: bits 9:6 are reserved, bits 1:0 without shadow stacks (CPUID.7:ECX[7]), all others
// without branch tracking (EDX[20]); SUPPRESS (10) and TRACKER (11) exclude each other.
bool check_s_cet(const struct check *c, const struct check_row *row)
{
    u64 s_cet = field_of(c, row);
    u64 reserved = BITS(9, 6) | (cpuid_has(c->vcpu->vm, 7, 2, 7) ? 0 : BITS(1, 0)) |
                   (cpuid_has(c->vcpu->vm, 7, 3, 20) ? 0 : BITS(63, 10) | BITS(5, 2));

    return (s_cet & reserved) || (s_cet & BITS(11, 10)) == BITS(11, 10) ||
           !is_sign_extended(s_cet, c->linear_bits);
}

// --- "VM-Execution Control Fields" ---

// `arg`: the capability MSR.
static bool control_bits(const struct check *c, const struct check_row *row)
{
    u64 cap = capability(c, (u32)row->arg), value = field_of(c, row);

    return (~value & (u32)cap) || (value & ~(cap >> 32));
}

static bool cr3_targets(const struct check *c, const struct check_row *row)
{
    return field_of(c, row) > (capability(c, MSR_VMX_MISC) >> 16 & 0x1ff);
}

// `field` names the word that must have `arg`; without(): must not have any of it.
static bool needs(const struct check *c, const struct check_row *row)
{
    return (c->word[row->field] & row->arg) != row->arg;
}

static bool without(const struct check *c, const struct check_row *row)
{
    return c->word[row->field] & row->arg;
}

static bool delivers_interrupts(const struct check *c)
{
    return c->word[WORD_SECONDARY] & SECONDARY_INTERRUPT_DELIVERY;
}

static bool tpr_threshold_bits(const struct check *c, const struct check_row *row)
{
    return !delivers_interrupts(c) && (field_of(c, row) & row->arg);
}

// The threshold is not above VTPR's class, byte 80H of the virtual-APIC page.
static bool tpr_threshold_class(const struct check *c, const struct check_row *row)
{
    u8 vtpr = 0xff; // what a read of no memory gives

    if (delivers_interrupts(c) || (c->word[WORD_SECONDARY] & SECONDARY_APIC_ACCESSES))
        return false;
    guest_read_gpa(c->vcpu, get(c, VIRTUAL_APIC_ADDRESS) + 0x80, &vtpr, 1);
    return (field_of(c, row) & 0xf) > vtpr >> 4;
}

bool vmcs12_eptp_valid(const struct vcpu *vcpu, u64 eptp)
{
    u64 cap = vmcs12_capability(vcpu, MSR_VMX_EPT_VPID_CAP);
    u64 type = eptp & 7, walk = eptp >> EPTP_LEVELS_SHIFT & 7;

    if (!(type == 0 && (cap & EPT_CAP_UC)) && !(type == EPTP_TYPE_WB && (cap & EPT_CAP_WB)))
        return false;
    if (!(walk == 3 && (cap & EPT_CAP_WALK_4)) && !(walk == 4 && (cap & EPT_CAP_WALK_5)))
        return false;
    return !((eptp & EPTP_AD) && !(cap & EPT_CAP_AD)) && !(eptp & BITS(11, 7)) &&
           !(eptp >> cpuid_phys_bits(vcpu->vm));
}

static bool ept_pointer(const struct check *c, const struct check_row *row)
{
    return !vmcs12_eptp_valid(c->vcpu, field_of(c, row));
}

static bool vm_functions(const struct check *c, const struct check_row *row)
{
    return field_of(c, row) & ~capability(c, MSR_VMX_VMFUNC);
}

static bool eptp_switching(const struct check *c, const struct check_row *row)
{
    return (get(c, VM_FUNCTION_CONTROLS) & BIT(0)) &&
           (!(c->word[WORD_SECONDARY] & SECONDARY_EPT) || check_address(c, row));
}

// --- "VM-Exit Control Fields", "VM-Entry Control Fields" ---

// The area of `arg`, a count, entries of 16 bytes: aligned, and its last byte has no bits beyond.
static bool msr_area(const struct check *c, const struct check_row *row)
{
    u64 entries = get(c, (enum vmcs_field)row->arg), start = field_of(c, row);

    return entries && (bad_address(c, start, 0xf) || bad_address(c, start + entries * 16 - 1, 0));
}

static u8 injected_type(const struct check *c)
{
    return c->word[WORD_EVENT] >> INFO_TYPE_SHIFT & 7;
}

static bool injection_type(const struct check *c, const struct check_row *row)
{
    (void)row;
    return injected_type(c) == 1 || (injected_type(c) == EVENT_OTHER &&
                                     !(capability(c, MSR_VMX_PROCBASED_CTLS) >> 32 & PRIMARY_MTF));
}

static bool injection_vector(const struct check *c, const struct check_row *row)
{
    u8 vector = (u8)field_of(c, row);

    switch (injected_type(c)) {
    case EVENT_NMI:
        return vector != VECTOR_NMI;
    case EVENT_EXCEPTION:
        return vector > 31;
    case EVENT_OTHER:
        return vector != 0;
    default:
        return false;
    }
}

static bool has_error_code(u8 vector)
{
    const u64 with = BIT(VECTOR_DF) | BIT(VECTOR_TS) | BIT(VECTOR_NP) | BIT(VECTOR_SS) |
                     BIT(VECTOR_GP) | BIT(VECTOR_PF) | BIT(VECTOR_AC);

    return vector < 32 && (with >> vector & 1);
}

// Of an exception in protected mode; with bit 56 of IA32_VMX_BASIC of any, or none.
static bool injection_error_code(const struct check *c, const struct check_row *row)
{
    u64 info = field_of(c, row);
    bool can =
        (!c->unrestricted || (get(c, GUEST_CR0) & CR0_PE)) && injected_type(c) == EVENT_EXCEPTION;

    if (can && (capability(c, MSR_VMX_BASIC) & VMX_BASIC_ANY_ERROR))
        return false;
    return !!(info & INFO_ERROR_CODE) != (can && has_error_code((u8)info));
}

static bool injection_length(const struct check *c, const struct check_row *row)
{
    u64 length = field_of(c, row);
    bool software = injected_type(c) >= EVENT_SOFT_INTERRUPT && injected_type(c) != EVENT_OTHER;

    return software &&
           (length > 15 || (!length && !(capability(c, MSR_VMX_MISC) & VMX_MISC_ZERO_LENGTH)));
}

#define PAGE_LOW 0xfff
#define INFO_BIT (u32) INFO_VALID

enum { ROWS_OF_INJECTION = 8 }; // the last ones
static const struct check_row rows[] = {
    // "VM-Execution Control Fields"
    {"pin-based controls: reserved bits", control_bits, 0, 0, 0, PIN_BASED_CONTROLS,
     MSR_VMX_TRUE_PINBASED_CTLS},
    {"primary controls: reserved bits", control_bits, 0, 0, 0, PRIMARY_CONTROLS,
     MSR_VMX_TRUE_PROCBASED_CTLS},
    {"secondary controls: reserved bits", control_bits, WORD_PRIMARY, 0, PRIMARY_SECONDARY,
     SECONDARY_CONTROLS, MSR_VMX_PROCBASED_CTLS2},
    {"CR3-target count", cr3_targets, 0, 0, 0, CR3_TARGET_COUNT, 0},
    {"I/O-bitmap A address", check_address, WORD_PRIMARY, 0, PRIMARY_IO_BITMAPS, IO_BITMAP_A,
     PAGE_LOW},
    {"I/O-bitmap B address", check_address, WORD_PRIMARY, 0, PRIMARY_IO_BITMAPS, IO_BITMAP_B,
     PAGE_LOW},
    {"MSR-bitmap address", check_address, WORD_PRIMARY, 0, PRIMARY_MSR_BITMAPS, MSR_BITMAP,
     PAGE_LOW},
    {"virtual-APIC address", check_address, WORD_PRIMARY, 0, PRIMARY_TPR_SHADOW,
     VIRTUAL_APIC_ADDRESS, PAGE_LOW},
    {"virtual NMIs without NMI exiting", needs, WORD_PIN, 0, PIN_VIRTUAL_NMIS, WORD_PIN, PIN_NMI},
    {"NMI-window exiting without virtual NMIs", needs, WORD_PRIMARY, 0, PRIMARY_NMI_WINDOW,
     WORD_PIN, PIN_VIRTUAL_NMIS},
    {"APIC-access address", check_address, WORD_SECONDARY, 0, SECONDARY_APIC_ACCESSES,
     APIC_ACCESS_ADDRESS, PAGE_LOW},
    {"x2APIC, APIC registers, interrupt delivery without TPR shadow", needs, WORD_SECONDARY, 0,
     SECONDARY_X2APIC | SECONDARY_APIC_REGISTERS | SECONDARY_INTERRUPT_DELIVERY, WORD_PRIMARY,
     PRIMARY_TPR_SHADOW},
    {"x2APIC mode with APIC accesses", without, WORD_SECONDARY, 0, SECONDARY_X2APIC, WORD_SECONDARY,
     SECONDARY_APIC_ACCESSES},
    {"interrupt delivery without external-interrupt exiting", needs, WORD_SECONDARY, 0,
     SECONDARY_INTERRUPT_DELIVERY, WORD_PIN, PIN_EXTERNAL_INTERRUPT},
    {"posted interrupts without interrupt delivery", needs, WORD_PIN, 0, PIN_POSTED_INTERRUPTS,
     WORD_SECONDARY, SECONDARY_INTERRUPT_DELIVERY},
    {"posted interrupts without acknowledge on exit", needs, WORD_PIN, 0, PIN_POSTED_INTERRUPTS,
     WORD_EXIT, EXIT_CTL_ACK_INTERRUPT},
    {"posted-interrupt notification vector", check_reserved, WORD_PIN, 0, PIN_POSTED_INTERRUPTS,
     POSTED_INTERRUPT_VECTOR, BITS(15, 8)},
    {"posted-interrupt descriptor address", check_address, WORD_PIN, 0, PIN_POSTED_INTERRUPTS,
     POSTED_INTERRUPT_DESCRIPTOR, 0x3f},
    {"VPID 0", check_zero, WORD_SECONDARY, 0, SECONDARY_VPID, VPID, 0},
    {"EPTP", ept_pointer, WORD_SECONDARY, 0, SECONDARY_EPT, EPT_POINTER, 0},
    {"PML without EPT", needs, WORD_SECONDARY, 0, SECONDARY_PML, WORD_SECONDARY, SECONDARY_EPT},
    {"PML address", check_address, WORD_SECONDARY, 0, SECONDARY_PML, PML_ADDRESS, PAGE_LOW},
    {"unrestricted guest without EPT", needs, WORD_SECONDARY, 0,
     SECONDARY_UNRESTRICTED_GUEST | SECONDARY_MBEC, WORD_SECONDARY, SECONDARY_EPT},
    {"VM-function controls: reserved bits", vm_functions, WORD_SECONDARY, 0, SECONDARY_VM_FUNCTIONS,
     VM_FUNCTION_CONTROLS, 0},
    {"EPTP-list address", eptp_switching, WORD_SECONDARY, 0, SECONDARY_VM_FUNCTIONS,
     EPTP_LIST_ADDRESS, PAGE_LOW},
    {"VMREAD-bitmap address", check_address, WORD_SECONDARY, 0, SECONDARY_VMCS_SHADOWING,
     VMREAD_BITMAP, PAGE_LOW},
    {"VMWRITE-bitmap address", check_address, WORD_SECONDARY, 0, SECONDARY_VMCS_SHADOWING,
     VMWRITE_BITMAP, PAGE_LOW},
    {"virtualization-exception information address", check_address, WORD_SECONDARY, 0,
     SECONDARY_EPT_VIOLATION_VE, VE_INFO_ADDRESS, PAGE_LOW},
    {"TSC multiplier 0", check_zero, WORD_SECONDARY, 0, SECONDARY_TSC_SCALING, TSC_MULTIPLIER, 0},
    // "VM-Exit Control Fields"
    {"exit controls: reserved bits", control_bits, 0, 0, 0, EXIT_CONTROLS, MSR_VMX_TRUE_EXIT_CTLS},
    {"save preemption timer without the timer", needs, WORD_EXIT, 0, EXIT_CTL_SAVE_TIMER, WORD_PIN,
     PIN_PREEMPTION_TIMER},
    {"exit MSR-store address", msr_area, 0, 0, 0, EXIT_MSR_STORE_ADDRESS, EXIT_MSR_STORE_COUNT},
    {"exit MSR-load address", msr_area, 0, 0, 0, EXIT_MSR_LOAD_ADDRESS, EXIT_MSR_LOAD_COUNT},
    // "VM-Entry Control Fields"
    {"entry controls: reserved bits", control_bits, 0, 0, 0, ENTRY_CONTROLS,
     MSR_VMX_TRUE_ENTRY_CTLS},
    {"entry MSR-load address", msr_area, 0, 0, 0, ENTRY_MSR_LOAD_ADDRESS, ENTRY_MSR_LOAD_COUNT},
    // Always looked at; the error is the same. VTPR is in L1's memory.
    {"TPR threshold: bits 31:4", tpr_threshold_bits, WORD_PRIMARY, 0, PRIMARY_TPR_SHADOW,
     TPR_THRESHOLD, BITS(31, 4)},
    {"TPR threshold: above VTPR", tpr_threshold_class, WORD_PRIMARY, 0, PRIMARY_TPR_SHADOW,
     TPR_THRESHOLD, 0},
    {"interruption information: type", injection_type, WORD_EVENT, 0, INFO_BIT,
     ENTRY_INTERRUPTION_INFO, 0},
    {"interruption information: vector", injection_vector, WORD_EVENT, 0, INFO_BIT,
     ENTRY_INTERRUPTION_INFO, 0},
    {"interruption information: deliver error code", injection_error_code, WORD_EVENT, 0, INFO_BIT,
     ENTRY_INTERRUPTION_INFO, 0},
    {"interruption information: bits 30:12", check_reserved, WORD_EVENT, 0, INFO_BIT,
     ENTRY_INTERRUPTION_INFO, BITS(30, 12)},
    {"exception error code: bits 31:16", check_reserved, WORD_EVENT, 0, INFO_ERROR_CODE,
     ENTRY_EXCEPTION_ERROR_CODE, BITS(31, 16)},
    {"instruction length", injection_length, WORD_EVENT, 0, INFO_BIT, ENTRY_INSTRUCTION_LENGTH, 0},
};

const struct check_table vmcs12_control_checks = {rows,
                                                  ARRAY_SIZE(rows),
                                                  ARRAY_SIZE(rows) - ROWS_OF_INJECTION,
                                                  ARRAY_SIZE(rows),
                                                  WORD_EACH_CONTROLS,
                                                  DUE_CONTROLS,
                                                  0,
                                                  VMX_ERROR_CONTROLS};
