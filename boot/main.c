// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The boot CPU's way from entry.S to core_main, as a list; and the Multiboot2 modules.

#include "multiboot.h"
#include <arch/x86/insn.h>
#include <arch/x86/regs.h>
#include <nestor/host.h>
#include <nestor/log.h>
#include <nestor/machine.h>
#include <nestor/page.h>
#include <nestor/string.h>
#include <nestor/time.h>

#ifndef NESTOR_VERSION
#define NESTOR_VERSION "unknown"
#endif

enum { REGION_RAM = 1, INFO_SIZE_MAX = 16 << 20 };

u64 image_phys_offset; // set by entry.S, before .bss is of use to anybody

struct boot_module boot_modules[BOOT_MODULE_MAX];
u32 boot_module_count;

static struct boot_info boot_info INIT_BSS;
static struct mem_region reserved[BOOT_MODULE_MAX + 2] INIT_BSS;
static u32 info_address INIT_BSS;
static const void *info_mapped INIT_BSS;
static u32 info_size INIT_BSS;

extern u8 image_start[], image_end[], init_text_start[], init_text_end[], init_data_start[],
    init_data_end[];

void boot_main(u32 information);
_Noreturn void boot_switch_stack(u64 top, void (*fn)(void));

static INIT_TEXT void log_start(void)
{
    const char *la57 = option_get("la57"); // entry.S has obeyed it

    log_info("Nestor %s, loaded at 0x%llx by %s, %s, %u-level paging", NESTOR_VERSION,
             image_phys_offset, boot_info.loader, boot_info.efi ? "UEFI" : "BIOS",
             read_cr4() & CR4_LA57 ? 5 : 4);
    log_info("entered at tick %llu", boot_tsc);
    if (la57 && strcmp(la57, "off") != 0)
        log_warn("option la57=%s: expected off", la57);
    features_log();
}

// On the identity map, which host_map_init takes away.
static INIT_TEXT void read_information(u32 information)
{
    const u32 *info = (const u32 *)(u64)information;

    info_address = information;
    info_size = info[0] > INFO_SIZE_MAX ? INFO_SIZE_MAX : info[0];
    (void)multiboot_parse(info, info_size, &boot_info);
    options_init(boot_info.cmdline);
    serial_init();
    log_init();
    log_start();
}

// And once more where it is mapped now.
static INIT_TEXT void map_information(void)
{
    host_map_init();
    info_mapped = mmio_map(info_address, info_size, MAP_READ_ONLY);
    if (!info_mapped)
        panic("no room to map the boot information");
    if (multiboot_parse(info_mapped, info_size, &boot_info) < 0)
        log_error("Multiboot2: the information is torn: its end is ignored");
    if (boot_info.regions_lost)
        log_warn("Multiboot2: %u regions of the memory map are ignored", boot_info.regions_lost);
    if (boot_info.modules_lost)
        log_warn("Multiboot2: %u modules are ignored", boot_info.modules_lost);
}

static INIT_TEXT void init_memory(void)
{
    u32 count = 0;
    u64 ram = 0;

    reserved[count++] =
        (struct mem_region){virt_to_phys(image_start), (u64)(image_end - image_start), 0};
    reserved[count++] = (struct mem_region){info_address, info_size, 0};
    for (u32 i = 0; i < boot_info.module_count; i++)
        reserved[count++] = (struct mem_region){
            boot_info.modules[i].start, boot_info.modules[i].end - boot_info.modules[i].start, 0};
    page_init(boot_info.regions, boot_info.region_count, reserved, count);
    for (u32 i = 0; i < boot_info.region_count; i++)
        ram += boot_info.regions[i].type == REGION_RAM ? boot_info.regions[i].size : 0;
    log_info("memory: %llu MiB in a map of %u regions, %llu MiB free for guests", ram >> 20,
             boot_info.region_count, ram_free_bytes() >> 20);
}

// "name arguments", copied out of the boot information.
static INIT_TEXT void name_module(struct boot_module *module, const char *string)
{
    size_t size = strlen(string) + 1;
    char *copy = heap_alloc(size), *space;

    module->name = module->args = "";
    if (!copy)
        return;
    memcpy(copy, string, size);
    module->name = copy;
    space = strchr(copy, ' ');
    if (space) {
        *space = 0;
        module->args = space + 1;
    }
}

static INIT_TEXT void init_modules(void)
{
    for (u32 i = 0; i < boot_info.module_count; i++) {
        struct boot_module *module = &boot_modules[boot_module_count];

        module->start = boot_info.modules[i].start;
        module->size = boot_info.modules[i].end - module->start;
        module->data = module->size ? mmio_map(module->start, module->size, MAP_READ_ONLY) : "";
        if (!module->data) {
            log_error("no memory to map the module \"%s\"", boot_info.modules[i].string);
            continue;
        }
        name_module(module, boot_info.modules[i].string);
        log_debug("module %s: %llu bytes at 0x%llx", module->name, module->size, module->start);
        boot_module_count++;
    }
}

const struct boot_module *boot_module_find(const char *name)
{
    for (u32 i = 0; i < boot_module_count; i++)
        if (strcmp(boot_modules[i].name, name) == 0)
            return &boot_modules[i];
    return NULL;
}

static INIT_TEXT void release_information(void)
{
    mmio_unmap((void *)info_mapped, info_size);
    page_give(info_address, info_size);
}

// Not in .init.text: that is what it gives back.
static __attribute__((noinline)) void finish_boot(void)
{
    host_image_release(init_text_start, init_text_end);
    host_image_release(init_data_start, init_data_end);
    cpu_release_all();
    core_main();
    panic("core_main returned");
}

static INIT_TEXT void boot_on_stack(void)
{
    u8 rsdp[ACPI_RSDP_SIZE_2] = {0};

    init_modules();
    if (boot_info.rsdp)
        memcpy(rsdp, boot_info.rsdp, boot_info.rsdp_size);
    acpi_init(boot_info.rsdp ? rsdp : NULL);
    irq_chips_init();
    apic_init_cpu();
    this_cpu()->apic_id = apic_id();
    time_init();
    timer_init_cpu();
    cpu_start_all();
    log_info("CPUs: %u online, %s", cpu_count, apic_is_x2apic() ? "x2APIC" : "xAPIC");
    features_check();
    cpu_check_tsc();
    features_backend_on();
    serial_start_input();
    release_information();
    finish_boot();
}

void boot_main(u32 information)
{
    boot_tsc = tsc_now();
    cpu_init_boot();
    read_information(information);
    map_information();
    cpu_init_registers();
    init_memory();
    cpu_init_boot_stacks();
    boot_switch_stack(this_cpu()->stack_top, boot_on_stack);
}
