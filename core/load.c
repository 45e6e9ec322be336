// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// vm_load: finds a guest's files among the modules, lets a loader place them, and gives vCPU 0 its
// first state in the model. Also at a guest's reset. The state satisfies VM entry's checks (SDM
// vol. 3 "Checks on the Guest State Area").

#include <arch/x86/regs.h>
#include <nestor/device.h>
#include <nestor/host.h>
#include <nestor/load.h>
#include <nestor/log.h>
#include <nestor/string.h>
#include <nestor/vcpu.h>
#include <nestor/vm.h>

// BIOS data area, what guests read of it: COM1's port, the EBDA's segment, low memory in KiB.
enum { BDA_COM1 = 0x400, BDA_EBDA = 0x40e, BDA_MEMORY = 0x413, COM1_PORT = 0x3f8 };

enum { TSS_ACCESS = 0x8b, TSS_LIMIT = 0xffff }; // busy, 32- or 64-bit

static int add_file(struct vm *vm, const char *property, const char *name, struct load_file *file)
{
    const struct boot_module *module = boot_module_find(name);

    if (!module) {
        log_error("guest %s: %s: there is no module %s", vm->config->name, property, name);
        return -E_NOENT;
    }
    *file = (struct load_file){module->name, module->args ? module->args : "", module->data,
                               module->size};
    return 0;
}

static int add_files(struct vm *vm, struct load *load)
{
    const struct vm_config *config = vm->config;
    int error = add_file(vm, "kernel", config->kernel, &load->kernel);

    if (!error && config->initrd)
        error = add_file(vm, "initrd", config->initrd, &load->files[load->file_count++]);
    for (u32 i = 0; !error && i < config->module_count; i++)
        error = add_file(vm, "modules", config->modules[i], &load->files[load->file_count++]);
    return error;
}

// The extents lie side by side from 0 (but for the legacy hole) and from 4 GiB on, ascending.
static void measure_ram(const struct vm *vm, struct load *load)
{
    for (u32 i = 0; i < vm->ram_count; i++) {
        u64 end = vm->ram[i].gpa + vm->ram[i].size;

        if (vm->ram[i].gpa < VM_HIGH_RAM_BASE)
            load->low_size = end;
        else
            load->high_size = end - VM_HIGH_RAM_BASE;
    }
}

static void put_word(const struct load *load, gpa_t gpa, u64 value)
{
    u16 word = (u16)value;

    memcpy(load->window + gpa, &word, sizeof(word));
}

// Real-mode vectors at a PC firmware's own addresses: an IRET for all but IRQ 0, which is served
// from the start (devices/pic.c) and acknowledged.
static void put_vectors(const struct load *load)
{
    enum { FIRMWARE = 0xf000, TIMER = 0xfea5, IRET = 0xff53, VECTOR_IRQ0 = 8 };
    static const u8 timer[] = {0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf}; // out 20h, 20h; iret

    for (unsigned i = 0; i < 256; i++) {
        put_word(load, i * 4u, i == VECTOR_IRQ0 ? TIMER : IRET);
        put_word(load, i * 4u + 2, FIRMWARE);
    }
    memcpy(load->window + (FIRMWARE << 4) + TIMER, timer, sizeof(timer));
    load->window[(FIRMWARE << 4) + IRET] = 0xcf;
}

static void set_registers(struct vcpu *vcpu, const struct load *load)
{
    struct guest_state *s = vcpu_modify(vcpu, GROUP_RIP | GROUP_CR | GROUP_EFER_PAT);

    s->rip = load->rip;
    s->rsp = 0;
    s->rflags = RFLAGS_FIXED;
    s->cr0 = load->cr0;
    s->cr3 = load->cr3;
    s->cr4 = load->cr4;
    s->efer = load->efer;
    memset(vcpu->gpr, 0, sizeof(vcpu->gpr));
    vcpu->gpr[GPR_RAX] = load->rax;
    vcpu->gpr[GPR_RBX] = load->rbx;
    vcpu->gpr[GPR_RSI] = load->rsi;
}

static void set_segments(struct vcpu *vcpu, const struct load *load)
{
    struct guest_state *s =
        vcpu_modify(vcpu, GROUP_CODE | GROUP_DATA | GROUP_SYSTEM | GROUP_TABLES);

    for (unsigned i = SEG_ES; i <= SEG_GS; i++)
        s->seg[i] =
            (struct segment){.selector = LOAD_GDT_DATA, .access = LOAD_DATA_ACCESS, .limit = ~0u};
    s->seg[SEG_CS].selector = LOAD_GDT_CODE;
    s->seg[SEG_CS].access = load->code_access;
    s->seg[SEG_LDTR] = (struct segment){.access = SEG_UNUSABLE};
    s->seg[SEG_TR] = (struct segment){.access = TSS_ACCESS, .limit = TSS_LIMIT};
    s->gdtr = (struct table_register){load->gdt, LOAD_GDT_SIZE - 1};
    s->idtr = (struct table_register){0, 0};
}

int vm_load(struct vm *vm)
{
    struct load load = {
        .command_line = vm->config->command_line,
        .window = (u8 *)VM_WINDOW_BASE,
    };
    int error = add_files(vm, &load);

    if (error)
        return error;
    measure_ram(vm, &load);
    load.rsdp = machine_write_tables(vm);
    put_vectors(&load);
    put_word(&load, BDA_COM1, COM1_PORT);
    put_word(&load, BDA_EBDA, LOAD_EBDA >> 4);
    put_word(&load, BDA_MEMORY, LOAD_EBDA >> 10);
    error = load_image(&load);
    if (error) {
        log_error("guest %s: %s", vm->config->name, load.why);
        return error;
    }
    set_registers(vm->vcpus[0], &load);
    set_segments(vm->vcpus[0], &load);
    return 0;
}
