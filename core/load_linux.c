// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Loads a Linux bzImage by the 64-bit boot protocol (kernel tree, Documentation/arch/x86/boot.rst
// and zero-page.rst): setup header 2.12 or newer, entry at 0x200 of the protected-mode part in long
// mode, RSI = zero page. Pure.

#include <arch/x86/regs.h>
#include <nestor/load.h>
#include <nestor/string.h>

// Where things go in the guest's low RAM; the kernel copies them before it uses that memory for
// itself.
enum low_memory {
    GDT_GPA = 0x9000,
    ZERO_PAGE_GPA = 0xa000,
    PAGE_TABLES_GPA = 0x10000, // PML4, PDPT, four page directories
    COMMAND_LINE_GPA = 0x20000,
    COMMAND_LINE_MAX = 0x10000, // with its NUL
};

// Offsets in the file and in the zero page (struct boot_params).
enum {
    SETUP_HEADER = 0x1f1,
    ACPI_RSDP_ADDR = 0x70,
    E820_ENTRIES = 0x1e8,
    E820_TABLE = 0x2d0,
    SECTOR = 512,
    ENTRY_64 = 0x200,
};

struct PACKED setup_header {
    u8 setup_sects;
    u16 root_flags;
    u32 syssize; // in 16 bytes
    u16 ram_size;
    u16 vid_mode;
    u16 root_dev;
    u16 boot_flag;
    u16 jump; // its second byte tells the header's end, from 0x202
    u32 header;
    u16 version;
    u32 realmode_swtch;
    u16 start_sys_seg;
    u16 kernel_version;
    u8 type_of_loader;
    u8 loadflags;
    u16 setup_move_size;
    u32 code32_start;
    u32 ramdisk_image;
    u32 ramdisk_size;
    u32 bootsect_kludge;
    u16 heap_end_ptr;
    u8 ext_loader_ver;
    u8 ext_loader_type;
    u32 cmd_line_ptr;
    u32 initrd_addr_max;
    u32 kernel_alignment;
    u8 relocatable_kernel;
    u8 min_alignment;
    u16 xloadflags;
    u32 cmdline_size; // without the NUL
    u32 hardware_subarch;
    u64 hardware_subarch_data;
    u32 payload_offset;
    u32 payload_length;
    u64 setup_data;
    u64 pref_address;
    u32 init_size;
    u32 handover_offset;
};

struct PACKED e820_entry {
    u64 addr;
    u64 size;
    u32 type;
};

enum {
    BOOT_FLAG = 0xaa55,
    HEADER_MAGIC = 0x53726448, // "HdrS"
    VERSION_MIN = 0x20c,
    LOADED_HIGH = 1,
    XLF_KERNEL_64 = 1,
    LOADER_UNDEFINED = 0xff,
};

_Static_assert(sizeof(struct setup_header) == 0x268 - SETUP_HEADER, "the header of version 2.12");

struct plan {
    struct setup_header header;
    const u8 *payload; // the protected-mode part
    u64 payload_size;
    gpa_t kernel;
    u64 kernel_span; // RAM that the kernel wants until it has its own allocator
    gpa_t initrd;
    u64 initrd_size;
};

bool load_is_linux(const struct load_file *kernel)
{
    struct setup_header h;

    if (kernel->size < SETUP_HEADER + sizeof(h))
        return false;
    memcpy(&h, kernel->data + SETUP_HEADER, sizeof(h));
    return h.boot_flag == BOOT_FLAG && h.header == HEADER_MAGIC;
}

static int check_header(struct load *load, const struct setup_header *h)
{
    const char *name = load->kernel.name;

    if (h->version < VERSION_MIN)
        return load_fail(load, "%s: boot protocol %u.%02u, expected 2.12 or newer", name,
                         h->version >> 8, h->version & 0xff);
    if ((h->jump >> 8) + 0x202u < SETUP_HEADER + sizeof(*h))
        return load_fail(load, "%s: setup header ends at 0x%x, expected 0x%zx or more", name,
                         (h->jump >> 8) + 0x202u, SETUP_HEADER + sizeof(*h));
    if (!(h->loadflags & LOADED_HIGH))
        return load_fail(load, "%s: loadflags 0x%x, expected LOADED_HIGH (a bzImage)", name,
                         h->loadflags);
    if (!(h->xloadflags & XLF_KERNEL_64))
        return load_fail(load, "%s: xloadflags 0x%x, expected XLF_KERNEL_64 (a 64-bit entry)", name,
                         h->xloadflags);
    if (h->kernel_alignment == 0 || h->kernel_alignment & (h->kernel_alignment - 1))
        return load_fail(load, "%s: kernel_alignment 0x%x, expected a power of two", name,
                         h->kernel_alignment);
    return 0;
}

static int find_payload(struct load *load, struct plan *plan)
{
    u64 sectors = plan->header.setup_sects ? plan->header.setup_sects : 4;
    u64 offset = (sectors + 1) * SECTOR;
    u64 size = (u64)plan->header.syssize * 16;

    if (offset >= load->kernel.size || size > load->kernel.size - offset)
        return load_fail(load, "%s: cut off: %llu bytes, expected %llu", load->kernel.name,
                         (unsigned long long)load->kernel.size,
                         (unsigned long long)(offset + size));
    plan->payload = load->kernel.data + offset;
    plan->payload_size = load->kernel.size - offset;
    if (plan->payload_size <= ENTRY_64)
        return load_fail(load, "%s: %llu bytes of kernel, expected an entry at 0x%x",
                         load->kernel.name, (unsigned long long)plan->payload_size, ENTRY_64);
    return 0;
}

static bool fits(const struct load *load, gpa_t gpa, u64 size)
{
    return gpa >= LOAD_HIGH_MEMORY && load_ram(load, gpa, size);
}

// Where the kernel would like to be, else as low as it may be.
static int place_kernel(struct load *load, struct plan *plan)
{
    const struct setup_header *h = &plan->header;
    u64 lowest = ALIGN_UP(LOAD_HIGH_MEMORY, (u64)h->kernel_alignment);

    plan->kernel_span = MAX((u64)h->init_size, plan->payload_size);
    plan->kernel = h->pref_address;
    if (fits(load, plan->kernel, plan->kernel_span))
        return 0;
    plan->kernel = lowest;
    if (h->relocatable_kernel && fits(load, plan->kernel, plan->kernel_span))
        return 0;
    return load_fail(load,
                     "%s: needs %llu KiB at 0x%llx, the guest has %llu KiB of RAM below 4 GiB",
                     load->kernel.name, (unsigned long long)(plan->kernel_span >> 10),
                     (unsigned long long)(h->relocatable_kernel ? lowest : h->pref_address),
                     (unsigned long long)(load->low_size >> 10));
}

// As high as the kernel allows.
static int place_initrd(struct load *load, struct plan *plan)
{
    u64 top = MIN(load->low_size, (u64)plan->header.initrd_addr_max + 1);

    if (load->file_count == 0)
        return 0;
    plan->initrd_size = load->files[0].size;
    if (plan->initrd_size <= top)
        plan->initrd = ALIGN_DOWN(top - plan->initrd_size, PAGE_SIZE);
    if (plan->initrd >= plan->kernel + plan->kernel_span)
        return 0;
    return load_fail(
        load, "%s: %llu KiB, too large to fit between the kernel's end at 0x%llx and 0x%llx",
        load->files[0].name, (unsigned long long)(plan->initrd_size >> 10),
        (unsigned long long)(plan->kernel + plan->kernel_span), (unsigned long long)top);
}

static int check_command_line(struct load *load, const struct plan *plan)
{
    u64 size = strlen(load->command_line);
    u64 max = MIN((u64)plan->header.cmdline_size, (u64)COMMAND_LINE_MAX - 1);

    if (size > max)
        return load_fail(load, "command line of %llu bytes, %s takes %llu",
                         (unsigned long long)size, load->kernel.name, (unsigned long long)max);
    return 0;
}

static int make_plan(struct load *load, struct plan *plan)
{
    int error;

    memcpy(&plan->header, load->kernel.data + SETUP_HEADER, sizeof(plan->header));
    if ((error = check_header(load, &plan->header)) || (error = find_payload(load, plan)) ||
        (error = place_kernel(load, plan)) || (error = place_initrd(load, plan)))
        return error;
    return check_command_line(load, plan);
}

static void put_zero_page(const struct load *load, struct plan *plan)
{
    u8 *zero_page = load->window + ZERO_PAGE_GPA;
    struct load_region map[LOAD_REGION_MAX];
    u8 count = (u8)load_memory_map(load, map);
    struct setup_header *h = &plan->header;

    h->type_of_loader = LOADER_UNDEFINED;
    h->cmd_line_ptr = COMMAND_LINE_GPA;
    h->ramdisk_image = (u32)plan->initrd;
    h->ramdisk_size = (u32)plan->initrd_size;
    memset(zero_page, 0, PAGE_SIZE);
    memcpy(zero_page + SETUP_HEADER, h, sizeof(*h));
    memcpy(zero_page + ACPI_RSDP_ADDR, &load->rsdp, sizeof(load->rsdp));
    zero_page[E820_ENTRIES] = count;
    for (u32 i = 0; i < count; i++) {
        struct e820_entry entry = {map[i].base, map[i].size, map[i].type};

        memcpy(zero_page + E820_TABLE + i * sizeof(entry), &entry, sizeof(entry));
    }
}

// The first 4 GiB, each address to itself, by 2 MiB pages (not every CPU has larger ones).
static void put_page_tables(const struct load *load)
{
    enum { TABLE = 0x03, LARGE_PAGE = 0x83, DIRECTORIES = 4 };
    u64 *pml4 = (void *)(load->window + PAGE_TABLES_GPA);
    u64 *pdpt = pml4 + 512, *directory = pml4 + 1024;

    memset(pml4, 0, 2 * PAGE_SIZE);
    pml4[0] = (PAGE_TABLES_GPA + PAGE_SIZE) | TABLE;
    for (u64 i = 0; i < DIRECTORIES; i++)
        pdpt[i] = (PAGE_TABLES_GPA + (2 + i) * PAGE_SIZE) | TABLE;
    for (u64 i = 0; i < DIRECTORIES * 512; i++)
        directory[i] = i * SIZE_2M | LARGE_PAGE;
}

int load_linux(struct load *load)
{
    struct plan plan = {0};
    int error = make_plan(load, &plan);
    u64 command_line_size = strlen(load->command_line) + 1;

    if (error)
        return error;
    load_copy(load, plan.kernel, plan.payload, plan.payload_size, plan.payload_size);
    if (plan.initrd_size)
        load_copy(load, plan.initrd, load->files[0].data, plan.initrd_size, plan.initrd_size);
    load_copy(load, COMMAND_LINE_GPA, load->command_line, command_line_size, command_line_size);
    put_zero_page(load, &plan);
    put_page_tables(load);
    load_put_gdt(load, GDT_GPA, LOAD_CODE64_ACCESS);
    load->rip = plan.kernel + ENTRY_64;
    load->rsi = ZERO_PAGE_GPA;
    load->cr0 = CR0_PG | CR0_NE | CR0_ET | CR0_PE;
    load->cr3 = PAGE_TABLES_GPA;
    load->cr4 = CR4_PAE;
    load->efer = EFER_LME | EFER_LMA;
    return 0;
}
