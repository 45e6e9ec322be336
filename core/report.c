// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What a stopped guest leaves in the log: registers, the bytes at RIP, its last exits, the back
// end's control structure.

#include <nestor/log.h>
#include <nestor/run.h>
#include <nestor/string.h>
#include <nestor/vm_life.h>

const char *const exit_kind_names[EXIT_KIND_COUNT] = {
#define NAME(kind) [EXIT_##kind] = #kind
    NAME(NONE),
    NAME(EXTERNAL_INTERRUPT),
    NAME(NMI),
    NAME(MACHINE_CHECK),
    NAME(TIMER),
    NAME(STAGE2),
    NAME(STAGE2_MISCONFIG),
    NAME(EXCEPTION),
    NAME(TRIPLE_FAULT),
    NAME(INIT),
    NAME(SIPI),
    NAME(SMI),
    NAME(INTERRUPT_WINDOW),
    NAME(NMI_WINDOW),
    NAME(MTF),
    NAME(TASK_SWITCH),
    NAME(TPR_THRESHOLD),
    NAME(APIC_ACCESS),
    NAME(APIC_WRITE),
    NAME(EOI),
    NAME(ENTRY_FAILED),
    NAME(CPUID),
    NAME(HLT),
    NAME(IO),
    NAME(RDMSR),
    NAME(WRMSR),
    NAME(CR),
    NAME(DR),
    NAME(INVD),
    NAME(WBINVD),
    NAME(INVLPG),
    NAME(INVPCID),
    NAME(RDTSC),
    NAME(RDTSCP),
    NAME(RDPMC),
    NAME(RDPRU),
    NAME(RSM),
    NAME(PAUSE),
    NAME(MONITOR),
    NAME(MWAIT),
    NAME(XSETBV),
    NAME(XSAVES),
    NAME(XRSTORS),
    NAME(GDTR_IDTR),
    NAME(LDTR_TR),
    NAME(PUSHF),
    NAME(POPF),
    NAME(IRET),
    NAME(SOFT_INT),
    NAME(ICEBP),
    NAME(RDRAND),
    NAME(RDSEED),
    NAME(GETSEC),
    NAME(ENCLS),
    NAME(VMFUNC),
    NAME(UMWAIT),
    NAME(TPAUSE),
    NAME(UNDEFINED),
    NAME(FERR_FREEZE),
    NAME(VMCALL),
    NAME(VMMCALL),
    NAME(VMXON),
    NAME(VMXOFF),
    NAME(VMCLEAR),
    NAME(VMPTRLD),
    NAME(VMPTRST),
    NAME(VMREAD),
    NAME(VMWRITE),
    NAME(VMLAUNCH),
    NAME(VMRESUME),
    NAME(INVEPT),
    NAME(INVVPID),
    NAME(VMRUN),
    NAME(VMLOAD),
    NAME(VMSAVE),
    NAME(STGI),
    NAME(CLGI),
    NAME(SKINIT),
    NAME(INVLPGA),
    NAME(UNKNOWN),
#undef NAME
};

#define LLU(x) ((unsigned long long)(x))

static void report_registers(struct vcpu *vcpu)
{
    const struct guest_state *s = vcpu_state(vcpu, GROUP_ALL_CTX | GROUP_CR2);
    static const char names[SEG_COUNT][5] = {"ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR"};

    log_error("  RIP %016llx RSP %016llx RFLAGS %08llx", LLU(s->rip), LLU(s->rsp), LLU(s->rflags));
    for (unsigned i = 0; i < 16; i += 4)
        log_error("  r%-2u %016llx %016llx %016llx %016llx", i, LLU(vcpu_gpr(vcpu, i)),
                  LLU(vcpu_gpr(vcpu, i + 1)), LLU(vcpu_gpr(vcpu, i + 2)),
                  LLU(vcpu_gpr(vcpu, i + 3)));
    log_error("  CR0 %llx CR2 %llx CR3 %llx CR4 %llx EFER %llx", LLU(s->cr0), LLU(vcpu->cr2),
              LLU(s->cr3), LLU(s->cr4), LLU(s->efer));
    for (unsigned i = 0; i < SEG_COUNT; i++)
        log_error("  %-4s %04x base %llx limit %x access %x", names[i], s->seg[i].selector,
                  LLU(s->seg[i].base), s->seg[i].limit, s->seg[i].access);
    log_error("  GDTR %llx/%x IDTR %llx/%x blocking %x activity %u pending-dbg %llx",
              LLU(s->gdtr.base), s->gdtr.limit, LLU(s->idtr.base), s->idtr.limit,
              s->interruptibility, s->activity, LLU(s->pending_dbg));
}

static void report_bytes(struct vcpu *vcpu)
{
    u8 bytes[15];
    char text[15 * 3 + 1] = "";
    int n = insn_peek(vcpu, bytes);

    for (int i = 0; i < n; i++)
        fmt_snprintf(text + i * 3, sizeof(text) - (size_t)i * 3, "%02x ", bytes[i]);
    log_error("  bytes at RIP: %s", n > 0 ? text : "(not readable)");
}

static void report_history(const struct vcpu *vcpu)
{
    u64 n = MIN(vcpu->exits, ARRAY_SIZE(vcpu->history));

    for (u64 i = vcpu->exits - n; i < vcpu->exits; i++)
        log_error("  exit %llu: L%u %s (raw %x) at %llx", LLU(i),
                  vcpu->history[i % ARRAY_SIZE(vcpu->history)].level + 1u,
                  exit_kind_names[vcpu->history[i % ARRAY_SIZE(vcpu->history)].kind],
                  vcpu->history[i % ARRAY_SIZE(vcpu->history)].raw,
                  LLU(vcpu->history[i % ARRAY_SIZE(vcpu->history)].rip));
}

void vcpu_report(struct vcpu *vcpu)
{
    log_error("vCPU %u of guest %s at level %u:", vcpu->id, vcpu->vm->config->name, vcpu->level);
    report_registers(vcpu);
    report_bytes(vcpu);
    report_history(vcpu);
    backend->report(vcpu);
}

void vcpu_log_exits(const struct vcpu *vcpu)
{
    char text[300] = "";
    size_t used = 0;

    for (unsigned kind = 0; kind < EXIT_KIND_COUNT && used < sizeof(text) - 48; kind++)
        if (vcpu->exit_counts[kind])
            used += (size_t)fmt_snprintf(text + used, sizeof(text) - used, " %s %llu",
                                         exit_kind_names[kind], LLU(vcpu->exit_counts[kind]));
    vm_log(vcpu->vm, "guest %s: vCPU %u: exits%s", vcpu->vm->config->name, vcpu->id, text);
}
