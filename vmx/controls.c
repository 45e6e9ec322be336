// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The VMX controls as data: what Nestor needs, what it uses if it is there, and how intercepts map
// to controls. SDM vol. 3 appendix A "VMX Capability Reporting Facility", sections "VM-Execution
// Control Fields", "VM-Exit" and "VM-Entry Controls".

#include "controls.h"
#include <arch/x86/vmx.h>
#include <nestor/vcpu.h>

enum control_use {
    USE_NEEDED,  // always 1; without it Nestor does not run
    USE_WANTED,  // 1 if the CPU has it; named in the log's list of features
    USE_AT_TIME, // switched on and off; Nestor does not run on a CPU that can't
    USE_IF_ASKED // switched on where a guest hypervisor or core asks for it, if the CPU has it
};

struct control {
    u8 field;
    u8 use;
    u32 bit;
    const char *name;
};

static const char *const msr_names[CONTROL_FIELDS] = {
    [CONTROL_PIN] = "IA32_VMX_PINBASED_CTLS",         [CONTROL_PRIMARY] = "IA32_VMX_PROCBASED_CTLS",
    [CONTROL_SECONDARY] = "IA32_VMX_PROCBASED_CTLS2", [CONTROL_EXIT] = "IA32_VMX_EXIT_CTLS",
    [CONTROL_ENTRY] = "IA32_VMX_ENTRY_CTLS",
};

static const struct control table[] = {
    {CONTROL_PIN, USE_NEEDED, PIN_EXTERNAL_INTERRUPT, "external-interrupt exiting"},
    {CONTROL_PIN, USE_NEEDED, PIN_NMI, "NMI exiting"},
    {CONTROL_PIN, USE_NEEDED, PIN_VIRTUAL_NMIS, "virtual NMIs"},
    {CONTROL_PIN, USE_WANTED, PIN_PREEMPTION_TIMER, "VMX-preemption timer"},
    {CONTROL_PRIMARY, USE_AT_TIME, PRIMARY_INTERRUPT_WINDOW, "interrupt-window exiting"},
    {CONTROL_PRIMARY, USE_NEEDED, PRIMARY_TSC_OFFSETTING, "use TSC offsetting"},
    {CONTROL_PRIMARY, USE_AT_TIME, PRIMARY_HLT, "HLT exiting"},
    {CONTROL_PRIMARY, USE_IF_ASKED, PRIMARY_INVLPG, "INVLPG exiting"},
    {CONTROL_PRIMARY, USE_AT_TIME, PRIMARY_MWAIT, "MWAIT exiting"},
    {CONTROL_PRIMARY, USE_NEEDED, PRIMARY_RDPMC, "RDPMC exiting"},
    {CONTROL_PRIMARY, USE_IF_ASKED, PRIMARY_RDTSC, "RDTSC exiting"},
    {CONTROL_PRIMARY, USE_IF_ASKED, PRIMARY_CR3_LOAD, "CR3-load exiting"},
    {CONTROL_PRIMARY, USE_IF_ASKED, PRIMARY_CR3_STORE, "CR3-store exiting"},
    {CONTROL_PRIMARY, USE_NEEDED, PRIMARY_CR8_LOAD, "CR8-load exiting"},
    {CONTROL_PRIMARY, USE_NEEDED, PRIMARY_CR8_STORE, "CR8-store exiting"},
    {CONTROL_PRIMARY, USE_AT_TIME, PRIMARY_NMI_WINDOW, "NMI-window exiting"},
    {CONTROL_PRIMARY, USE_IF_ASKED, PRIMARY_MOV_DR, "MOV-DR exiting"},
    {CONTROL_PRIMARY, USE_NEEDED, PRIMARY_UNCONDITIONAL_IO, "unconditional I/O exiting"},
    {CONTROL_PRIMARY, USE_IF_ASKED, PRIMARY_MTF, "monitor trap flag"},
    {CONTROL_PRIMARY, USE_NEEDED, PRIMARY_MSR_BITMAPS, "use MSR bitmaps"},
    {CONTROL_PRIMARY, USE_AT_TIME, PRIMARY_MONITOR, "MONITOR exiting"},
    {CONTROL_PRIMARY, USE_IF_ASKED, PRIMARY_PAUSE, "PAUSE exiting"},
    {CONTROL_PRIMARY, USE_NEEDED, (u32)PRIMARY_SECONDARY, "activate secondary controls"},
    {CONTROL_SECONDARY, USE_NEEDED, SECONDARY_EPT, "enable EPT"},
    {CONTROL_SECONDARY, USE_IF_ASKED, SECONDARY_DESCRIPTOR_TABLE, "descriptor-table exiting"},
    {CONTROL_SECONDARY, USE_WANTED, SECONDARY_RDTSCP, "RDTSCP"},
    {CONTROL_SECONDARY, USE_WANTED, SECONDARY_VPID, "VPID"},
    {CONTROL_SECONDARY, USE_IF_ASKED, SECONDARY_WBINVD, "WBINVD exiting"},
    {CONTROL_SECONDARY, USE_NEEDED, SECONDARY_UNRESTRICTED_GUEST, "unrestricted guest"},
    {CONTROL_SECONDARY, USE_IF_ASKED, SECONDARY_PAUSE_LOOP, "PAUSE-loop exiting"},
    {CONTROL_SECONDARY, USE_IF_ASKED, SECONDARY_RDRAND, "RDRAND exiting"},
    {CONTROL_SECONDARY, USE_IF_ASKED, SECONDARY_RDSEED, "RDSEED exiting"},
    {CONTROL_SECONDARY, USE_WANTED, SECONDARY_INVPCID, "INVPCID"},
    {CONTROL_SECONDARY, USE_WANTED, SECONDARY_XSAVES, "XSAVES"},
    {CONTROL_SECONDARY, USE_WANTED, SECONDARY_USER_WAIT_PAUSE, "user wait and pause"},
    {CONTROL_SECONDARY, USE_IF_ASKED, SECONDARY_TSC_SCALING, "use TSC scaling"},
    {CONTROL_EXIT, USE_NEEDED, EXIT_CTL_SAVE_DEBUG, "save debug controls"},
    {CONTROL_EXIT, USE_NEEDED, EXIT_CTL_HOST_64, "host address-space size"},
    {CONTROL_EXIT, USE_NEEDED, EXIT_CTL_ACK_INTERRUPT, "acknowledge interrupt on exit"},
    {CONTROL_EXIT, USE_NEEDED, EXIT_CTL_LOAD_PAT, "load IA32_PAT"},
    {CONTROL_EXIT, USE_NEEDED, EXIT_CTL_SAVE_EFER, "save IA32_EFER"},
    {CONTROL_EXIT, USE_NEEDED, EXIT_CTL_LOAD_EFER, "load IA32_EFER"},
    {CONTROL_EXIT, USE_WANTED, EXIT_CTL_LOAD_CET, "load CET state"},
    {CONTROL_ENTRY, USE_NEEDED, ENTRY_CTL_LOAD_DEBUG, "load debug controls"},
    {CONTROL_ENTRY, USE_AT_TIME, ENTRY_CTL_IA32E_GUEST, "IA-32e mode guest"},
    {CONTROL_ENTRY, USE_NEEDED, ENTRY_CTL_LOAD_PAT, "load IA32_PAT"},
    {CONTROL_ENTRY, USE_NEEDED, ENTRY_CTL_LOAD_EFER, "load IA32_EFER"},
    {CONTROL_ENTRY, USE_WANTED, ENTRY_CTL_LOAD_CET, "CET"},
};

unsigned vmx_controls_negotiate(const u64 msrs[CONTROL_FIELDS], struct vmx_controls *out,
                                void (*missing)(const char *msr, const char *control))
{
    unsigned count = 0;

    for (unsigned i = 0; i < CONTROL_FIELDS; i++) {
        out->base[i] = (u32)msrs[i];
        out->allowed[i] = (u32)(msrs[i] >> 32);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++) {
        const struct control *control = &table[i];
        bool found = out->allowed[control->field] & control->bit;

        if (found && (control->use == USE_NEEDED || control->use == USE_WANTED))
            out->base[control->field] |= control->bit;
        if (!found && (control->use == USE_NEEDED || control->use == USE_AT_TIME)) {
            missing(msr_names[control->field], control->name);
            count++;
        }
    }
    return count;
}

const char *vmx_controls_optional(const struct vmx_controls *controls, unsigned n)
{
    for (unsigned i = 0; i < ARRAY_SIZE(table); i++)
        if (table[i].use == USE_WANTED && table[i].field != CONTROL_EXIT &&
            (controls->base[table[i].field] & table[i].bit) && n-- == 0)
            return table[i].name;
    return NULL;
}

// Those that are not here always exit (CR8, RDPMC, XSETBV, task switches), or VMX can't intercept
// them.
static const struct {
    u64 intercepts;
    u8 field;
    u32 bit;
} intercept_table[] = {
    {INTERCEPT_HLT, CONTROL_PRIMARY, PRIMARY_HLT},
    {INTERCEPT_PAUSE, CONTROL_PRIMARY, PRIMARY_PAUSE},
    {INTERCEPT_RDTSC, CONTROL_PRIMARY, PRIMARY_RDTSC},
    {INTERCEPT_INVLPG | INTERCEPT_INVPCID, CONTROL_PRIMARY, PRIMARY_INVLPG},
    {INTERCEPT_MWAIT, CONTROL_PRIMARY, PRIMARY_MWAIT},
    {INTERCEPT_MONITOR, CONTROL_PRIMARY, PRIMARY_MONITOR},
    {INTERCEPT_DR_READ | INTERCEPT_DR_WRITE, CONTROL_PRIMARY, PRIMARY_MOV_DR},
    {INTERCEPT_CR3_WRITE, CONTROL_PRIMARY, PRIMARY_CR3_LOAD},
    {INTERCEPT_CR3_READ, CONTROL_PRIMARY, PRIMARY_CR3_STORE},
    {INTERCEPT_MTF, CONTROL_PRIMARY, PRIMARY_MTF},
    {INTERCEPT_WBINVD, CONTROL_SECONDARY, SECONDARY_WBINVD},
    {INTERCEPT_PAUSE_LOOP, CONTROL_SECONDARY, SECONDARY_PAUSE_LOOP},
    {INTERCEPT_RDRAND, CONTROL_SECONDARY, SECONDARY_RDRAND},
    {INTERCEPT_RDSEED, CONTROL_SECONDARY, SECONDARY_RDSEED},
    {INTERCEPT_TABLES_READ | INTERCEPT_TABLES_WRITE, CONTROL_SECONDARY, SECONDARY_DESCRIPTOR_TABLE},
};

u32 vmx_intercept_controls(u64 intercepts, enum vmx_control_field field)
{
    u32 bits = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(intercept_table); i++)
        if (intercept_table[i].field == field && (intercept_table[i].intercepts & intercepts))
            bits |= intercept_table[i].bit;
    return bits;
}

// The controls without which an instruction is #UD, or its state not switched.
static const struct {
    u32 isa; // enum guest_isa
    u8 field;
    u32 bit;
} isa_table[] = {
    {ISA_RDTSCP, CONTROL_SECONDARY, SECONDARY_RDTSCP},
    {ISA_INVPCID, CONTROL_SECONDARY, SECONDARY_INVPCID},
    {ISA_XSAVES, CONTROL_SECONDARY, SECONDARY_XSAVES},
    {ISA_USER_WAIT, CONTROL_SECONDARY, SECONDARY_USER_WAIT_PAUSE},
    {ISA_CET, CONTROL_ENTRY, ENTRY_CTL_LOAD_CET},
    {ISA_CET, CONTROL_EXIT, EXIT_CTL_LOAD_CET},
};

u32 vmx_controls_lacks(const struct vmx_controls *controls)
{
    u32 lacks = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(isa_table); i++)
        if (!(controls->base[isa_table[i].field] & isa_table[i].bit))
            lacks |= isa_table[i].isa;
    return lacks;
}

u32 vmx_secondary_disabled(u32 isa)
{
    u32 bits = 0;

    for (unsigned i = 0; i < ARRAY_SIZE(isa_table); i++)
        if (isa_table[i].field == CONTROL_SECONDARY && (isa_table[i].isa & isa))
            bits |= isa_table[i].bit;
    return bits;
}
