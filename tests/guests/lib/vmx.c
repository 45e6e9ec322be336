// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The small hypervisor of the guests that use VMX: VMXON, a VMCS with an L2 of a few instructions,
// entries, and what the VMCS and the registers hold after each exit (SDM vol. 3 "VMX Instruction
// Reference", "VM Entries").

#include "vmx.h"

void *vmxon_region, *vmcs_region;
u64 vmx_basic;
bool launched;
extern u64 l1_saved[]; // (l1_run.S)

// --- VMX instructions ---

#define POINTER_INSN(name)                           \
    u64 name(const void *region)                     \
    {                                                \
        u64 flags, address = (u64)region;            \
                                                     \
        __asm__ volatile(#name " %1; pushfq; pop %0" \
                         : "=r"(flags)               \
                         : "m"(address)              \
                         : "cc", "memory");          \
        return flags & (RFLAGS_CF | RFLAGS_ZF);      \
    }
POINTER_INSN(vmxon)
POINTER_INSN(vmclear)
POINTER_INSN(vmptrld)
#undef POINTER_INSN

u64 invept(u64 type, u64 eptp)
{
    u64 flags, descriptor[2] = {eptp, 0};

    __asm__ volatile("invept %1, %2; pushfq; pop %0"
                     : "=r"(flags)
                     : "m"(descriptor), "r"(type)
                     : "cc", "memory");
    return flags & (RFLAGS_CF | RFLAGS_ZF);
}

// --- the VMCS ---

u32 control(u32 msr, u32 wanted)
{
    u64 capability = msr_read(msr);

    return (wanted | (u32)capability) & (u32)(capability >> 32);
}

u32 capability_msr(u32 plain, u32 true_one)
{
    return vmx_basic & VMX_BASIC_TRUE_CTLS ? true_one : plain;
}

u32 pin_msr(void)
{
    return capability_msr(MSR_VMX_PINBASED_CTLS, MSR_VMX_TRUE_PINBASED_CTLS);
}

void put_segment(unsigned n, u16 selector, u32 access, u32 limit, u64 base)
{
    vmwrite(GUEST_ES_SELECTOR + n * 2, selector);
    vmwrite(GUEST_ES_ACCESS + n * 2, access);
    vmwrite(GUEST_ES_LIMIT + n * 2, limit);
    vmwrite(GUEST_ES_BASE + n * 2, base);
}

void put_guest(const void *code)
{
    static const struct {
        u16 field;
        u64 value;
    } values[] = {
        {GUEST_GDTR_LIMIT, 0x67},    {GUEST_IDTR_LIMIT, sizeof(l2_idt) - 1},
        {GUEST_DR7, DR7_FIXED},      {GUEST_RFLAGS, RFLAGS_FIXED},
        {GUEST_SYSENTER_CS, 0},      {GUEST_SYSENTER_ESP, 0},
        {GUEST_SYSENTER_EIP, 0},     {GUEST_DEBUGCTL, 0},
        {GUEST_INTERRUPTIBILITY, 0}, {GUEST_ACTIVITY_STATE, 0},
        {GUEST_PENDING_DBG, 0},      {VMCS_LINK_POINTER, ~0ull},
    };

    for (unsigned i = 0; i < ARRAY_SIZE(values); i++)
        vmwrite(values[i].field, values[i].value);
    for (unsigned n = 0; n < 6; n++)
        put_segment(n, DATA, 0xc093, ~0u, 0);
    put_segment(1, CODE64, 0xa09b, ~0u, 0);
    put_segment(6, 0, 0x10000, 0, 0); // LDTR
    put_segment(7, TSS, 0x8b, 103, (u64)&tss);
    vmwrite(GUEST_GDTR_BASE, (u64)gdt);
    vmwrite(GUEST_IDTR_BASE, (u64)l2_idt);
    vmwrite(GUEST_CR0, read_cr0());
    vmwrite(GUEST_CR3, read_cr3());
    vmwrite(GUEST_CR4, read_cr4());
    vmwrite(GUEST_EFER, msr_read(MSR_EFER));
    vmwrite(GUEST_PAT, msr_read(MSR_PAT));
    vmwrite(GUEST_RSP, (u64)(l2_stack + sizeof(l2_stack)));
    vmwrite(GUEST_RIP, (u64)code);
}

void put_host(void)
{
    vmwrite(HOST_CS_SELECTOR, CODE64);
    vmwrite(HOST_SS_SELECTOR, DATA);
    vmwrite(HOST_DS_SELECTOR, DATA);
    vmwrite(HOST_ES_SELECTOR, DATA);
    vmwrite(HOST_FS_SELECTOR, 0);
    vmwrite(HOST_GS_SELECTOR, 0);
    vmwrite(HOST_TR_SELECTOR, TSS);
    vmwrite(HOST_FS_BASE, msr_read(MSR_FS_BASE));
    vmwrite(HOST_GS_BASE, msr_read(MSR_GS_BASE));
    vmwrite(HOST_TR_BASE, (u64)&tss);
    vmwrite(HOST_GDTR_BASE, (u64)gdt);
    vmwrite(HOST_IDTR_BASE, (u64)idt);
    vmwrite(HOST_CR0, read_cr0());
    vmwrite(HOST_CR3, read_cr3());
    vmwrite(HOST_CR4, read_cr4());
    vmwrite(HOST_SYSENTER_CS, 0);
    vmwrite(HOST_SYSENTER_ESP, 0);
    vmwrite(HOST_SYSENTER_EIP, 0);
    vmwrite(HOST_EFER, msr_read(MSR_EFER));
    vmwrite(HOST_PAT, msr_read(MSR_PAT));
    vmwrite(HOST_RSP, (u64)l1_saved);
    vmwrite(HOST_RIP, (u64)vmx_exit);
}

void set_pin(u32 wanted)
{
    vmwrite(PIN_BASED_CONTROLS, control(pin_msr(), wanted));
}

void set_primary(u32 wanted)
{
    vmwrite(PRIMARY_CONTROLS,
            control(capability_msr(MSR_VMX_PROCBASED_CTLS, MSR_VMX_TRUE_PROCBASED_CTLS), wanted));
}

void set_exit(u32 wanted)
{
    vmwrite(EXIT_CONTROLS,
            control(capability_msr(MSR_VMX_EXIT_CTLS, MSR_VMX_TRUE_EXIT_CTLS), wanted));
}

void set_entry(u32 wanted)
{
    vmwrite(ENTRY_CONTROLS,
            control(capability_msr(MSR_VMX_ENTRY_CTLS, MSR_VMX_TRUE_ENTRY_CTLS), wanted));
}

bool offers(u32 msr, u32 bit)
{
    return msr_read(msr) >> 32 & bit;
}

void put_controls(void)
{
    static const u16 zero[] = {
        EXCEPTION_BITMAP,     PF_ERROR_CODE_MASK,       PF_ERROR_CODE_MATCH,  CR3_TARGET_COUNT,
        EXIT_MSR_STORE_COUNT, EXIT_MSR_LOAD_COUNT,      ENTRY_MSR_LOAD_COUNT, CR0_GUEST_HOST_MASK,
        CR4_GUEST_HOST_MASK,  ENTRY_INTERRUPTION_INFO,  CR0_READ_SHADOW,      CR4_READ_SHADOW,
        TSC_OFFSET,           ENTRY_INSTRUCTION_LENGTH,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(zero); i++)
        vmwrite(zero[i], 0);
    set_pin(0);
    set_primary(PRIMARY_HLT);
    set_exit(EXIT_CTL_HOST_64 | EXIT_CTL_SAVE_DEBUG | EXIT_CTL_SAVE_PAT | EXIT_CTL_LOAD_PAT |
             EXIT_CTL_SAVE_EFER | EXIT_CTL_LOAD_EFER);
    set_entry(ENTRY_CTL_IA32E_GUEST | ENTRY_CTL_LOAD_DEBUG | ENTRY_CTL_LOAD_PAT |
              ENTRY_CTL_LOAD_EFER);
}

void *new_region(void)
{
    u32 *region = pages(1);

    region[0] = (u32)(vmx_basic & VMX_BASIC_REVISION);
    return region;
}

// A fresh VMCS for an L2 that runs `code`.
void init(const void *code)
{
    memset(l2_registers, 0, sizeof(l2_registers));
    vmclear(vmcs_region);
    vmptrld(vmcs_region);
    launched = false;
    put_controls();
    put_host();
    put_guest(code);
}

// --- runs and their results ---

// The exit reason, or FAILED.
u64 run(void)
{
    u64 flags = vmx_enter(launched);

    // An exit leaves a limit of ffffh, as if the tables went on
    __asm__ volatile("lidt %0" : : "m"((struct table_pointer){sizeof(idt) - 1, (u64)idt}));
    if (flags)
        return FAILED | flags;
    if (!(vmread(EXIT_REASON) & EXIT_REASON_ENTRY_FAILURE))
        launched = true;
    return vmread(EXIT_REASON);
}

u64 run_code(const void *code)
{
    init(code);
    return run();
}

bool failed_with(u64 flags, u64 error)
{
    return flags == RFLAGS_ZF && vmread(VM_INSTRUCTION_ERROR) == error;
}

void report_exit(bool ok, const char *what)
{
    report(ok, "%s: reason %#llx, qualification %#llx, interruption %#llx", what,
           LLU(vmread(EXIT_REASON)), LLU(vmread(EXIT_QUALIFICATION)),
           LLU(vmread(EXIT_INTERRUPTION_INFO)));
}

bool at(const void *code)
{
    return vmread(GUEST_RIP) == (u64)code;
}

bool in_handler(unsigned vector)
{
    return vmread(EXIT_REASON) == REASON_VMCALL &&
           vmread(GUEST_RIP) == (u64)l2_handlers + 4 * (u64)vector;
}

u64 pushed(unsigned i)
{
    return ((const u64 *)vmread(GUEST_RSP))[i];
}

// An exit by an exception, with this type, error code bit and vector.
bool excepted(u64 type, unsigned vector, bool error)
{
    return vmread(EXIT_REASON) == REASON_EXCEPTION_NMI &&
           vmread(EXIT_INTERRUPTION_INFO) ==
               (INFO_VALID | type << INFO_TYPE_SHIFT | vector | (error ? INFO_ERROR_CODE : 0));
}

void vmx_prepare(void)
{
    u64 lock = msr_read(MSR_FEATURE_CONTROL);

    if (!(lock & FEATURE_CONTROL_LOCK))
        msr_write(MSR_FEATURE_CONTROL,
                  lock | FEATURE_CONTROL_LOCK | FEATURE_CONTROL_VMX_OUTSIDE_SMX);
    vmx_basic = msr_read(MSR_VMX_BASIC);
    vmxon_region = new_region();
    vmcs_region = new_region();
    write_cr4(read_cr4() | msr_read(MSR_VMX_CR4_FIXED0) | CR4_VMXE);
    write_cr0(read_cr0() | msr_read(MSR_VMX_CR0_FIXED0));
    l1_prepare(VMCALL);
}

bool vmx_start(void)
{
    if (!(cpuid(1, 0).ecx & CPUID_VMX))
        return false;
    vmx_prepare();
    return vmxon(vmxon_region) == 0;
}

bool use_secondary(u32 primary, u32 secondary)
{
    primary |= PRIMARY_SECONDARY;
    if ((msr_read(MSR_VMX_PROCBASED_CTLS) >> 32 & primary) != primary ||
        (msr_read(MSR_VMX_PROCBASED_CTLS2) >> 32 & secondary) != secondary)
        return false;
    set_primary(PRIMARY_HLT | primary);
    vmwrite(SECONDARY_CONTROLS, secondary);
    return true;
}

u64 eptp_of(const u64 *root, bool ad)
{
    return (u64)root | 3 << EPTP_LEVELS_SHIFT | (ad ? EPTP_AD : 0) | EPTP_TYPE_WB;
}

void use_ept(u64 eptp)
{
    set_primary(PRIMARY_HLT | PRIMARY_SECONDARY);
    vmwrite(SECONDARY_CONTROLS, control(MSR_VMX_PROCBASED_CTLS2, SECONDARY_EPT));
    vmwrite(EPT_POINTER, eptp);
}
