// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Loading a guest: what the loaders (core/load_linux.c, core/load_multiboot*.c) get and give. They
// write guest RAM and the first state of vCPU 0 into struct load and touch nothing else, so that
// tests can run them on the host. Every number in a file is taken for a lie until it is checked;
// what fails leaves a sentence in `why` and gives -E_INVAL.

#pragma once

#include <nestor/config.h>
#include <nestor/types.h>

// The memory of a PC below 1 MiB, as firmware leaves it.
// end of low RAM; from here to 1 MiB all is reserved (ACPI tables)
#define LOAD_EBDA        0x9fc00ull
#define LOAD_HIGH_MEMORY 0x100000ull // RAM again

enum { LOAD_FILE_MAX = CONFIG_MODULE_MAX + 1, LOAD_REGION_MAX = 4, LOAD_WHY_SIZE = 160 };

struct load_file {
    const char *name, *args; // args may be empty
    const u8 *data;
    u64 size;
};

struct load_region { // of RAM as the guest is told: Multiboot's and E820's types
    gpa_t base;
    u64 size;
    u32 type;
};
enum { LOAD_REGION_RAM = 1, LOAD_REGION_RESERVED = 2 };

struct load {
    // What is to be loaded, and where to.
    struct load_file kernel;
    struct load_file files[LOAD_FILE_MAX]; // initrd first if there is one, then modules
    u32 file_count;
    const char *command_line;
    gpa_t rsdp;
    u8 *window;              // GPA 0 as this program sees it
    u64 low_size, high_size; // bytes of RAM from 0, and from VM_HIGH_RAM_BASE

    // The first state of vCPU 0, beside flat segments, an empty IDT, interrupts off and all else
    // zero.
    u64 rip, rax, rbx, rsi;
    u64 cr0, cr3, cr4, efer;
    u32 code_access; // CS, struct segment's layout; selector LOAD_GDT_CODE
    gpa_t gdt;
    char why[LOAD_WHY_SIZE];
};

// The loaders' GDT has Linux's __BOOT_CS and __BOOT_DS.
enum { LOAD_GDT_CODE = 0x10, LOAD_GDT_DATA = 0x18, LOAD_GDT_SIZE = 0x20 };

// Accessed, present, 4 GiB by pages.
#define LOAD_CODE64_ACCESS 0xa09bu
#define LOAD_CODE32_ACCESS 0xc09bu
#define LOAD_DATA_ACCESS   0xc093u

// Loads whatever it is: tells the kind of kernel by its headers. 0 or -E_INVAL.
int load_image(struct load *load);

bool load_is_linux(const struct load_file *kernel);
int load_linux(struct load *load);
bool load_is_multiboot(const struct load_file *kernel);
int load_multiboot(struct load *load);
bool load_is_multiboot2(const struct load_file *kernel);
int load_multiboot2(struct load *load);

// --- what the loaders share (core/load_image.c) ---
int load_fail(struct load *load, const char *fmt, ...) PRINTF_LIKE(2, 3); // always -E_INVAL
// Guest RAM below 4 GiB; NULL unless [gpa, +size) is RAM wholly, outside the first page and the
// reserved part below 1 MiB.
void *load_ram(const struct load *load, gpa_t gpa, u64 size);
// Copies `size` bytes to RAM that load_ram has approved, and zeroes up to `memory_size`.
void load_copy(const struct load *load, gpa_t gpa, const void *data, u64 size, u64 memory_size);
u32 load_memory_map(const struct load *load, struct load_region map[LOAD_REGION_MAX]);
void load_put_gdt(struct load *load, gpa_t gdt, u32 code_access);
