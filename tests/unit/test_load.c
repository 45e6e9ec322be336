// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
// unit-sources: core/load_image.c core/load_linux.c core/load_multiboot.c core/load_multiboot2.c core/load_plan.c core/format.c
//
// The guest loaders: images made here, right ones whose every byte in guest RAM is looked up, and
// wrong ones, one lie at a time; then thousands with random bytes changed. Guest RAM and files are
// malloc'd, so the sanitizer sees each byte too far.

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <arch/x86/regs.h>
#include <nestor/load.h>
#include <nestor/string.h>

static u8 image[65536];
static size_t image_size;
static struct load load;
static u8 *ram;
static const u64 ram_size = MIB(32);

static void put(size_t offset, u64 value, unsigned size)
{
    memcpy(image + offset, &value, size);
}

static u64 get(const void *at, unsigned size)
{
    u64 value = 0;

    memcpy(&value, at, size);
    return value;
}

static u64 guest(gpa_t gpa, unsigned size)
{
    assert_true(gpa + size <= ram_size);
    return get(ram + gpa, size);
}

static int setup(void **state)
{
    (void)state;
    ram = malloc(ram_size);
    return ram == NULL;
}

static int teardown(void **state)
{
    (void)state;
    free(ram);
    return 0;
}

static u8 *file_copy;

static int run(void)
{
    free(file_copy);
    file_copy = malloc(image_size ? image_size : 1);
    memcpy(file_copy, image, image_size);
    load.kernel = (struct load_file){"kernel", "", file_copy, image_size};
    load.window = ram;
    load.why[0] = 0;
    int error = load_image(&load);
    free(file_copy);
    file_copy = NULL;
    return error;
}

static void must_fail(const char *why)
{
    int error = run();

    if (error != -E_INVAL || strcmp(load.why, why) != 0)
        fail_msg("returned %d, found:\n%s\nexpected:\n%s", error, load.why, why);
}

static void fresh(void)
{
    memset(&load, 0, sizeof(load));
    memset(image, 0, sizeof(image));
    memset(ram, 0xcc, ram_size);
    load.low_size = ram_size;
    load.command_line = "";
}

// --- Linux ---

enum {
    SETUP_SECTS = 0x1f1,
    SYSSIZE = 0x1f4,
    JUMP = 0x201,
    VERSION = 0x206,
    LOADFLAGS = 0x211,
    INITRD_MAX = 0x22c,
    ALIGNMENT = 0x230,
    RELOCATABLE = 0x234,
    XLOADFLAGS = 0x236,
    CMDLINE_SIZE = 0x238,
    PREF = 0x258,
    INIT_SIZE = 0x260
};

static void make_linux(void)
{
    fresh();
    put(SETUP_SECTS, 2, 1);
    put(SYSSIZE, 0x1000 / 16, 4);
    put(0x1fe, 0xaa55, 2);
    put(0x200, 0x6aeb, 2);
    memcpy(image + 0x202, "HdrS", 4);
    put(VERSION, 0x20f, 2);
    put(LOADFLAGS, 1, 1);
    put(INITRD_MAX, 0x7fffffff, 4);
    put(ALIGNMENT, 0x200000, 4);
    put(RELOCATABLE, 1, 1);
    put(XLOADFLAGS, 0x3f, 2);
    put(CMDLINE_SIZE, 2047, 4);
    put(PREF, 0x1000000, 8);
    put(INIT_SIZE, 0x800000, 4);
    image_size = 3 * 512 + 0x1000;
    for (size_t i = 3 * 512; i < image_size; i++)
        image[i] = (u8)(i * 7);
}

static void test_linux_state(void **state)
{
    (void)state;
    make_linux();
    load.rsdp = 0xe1230;
    assert_int_equal(run(), 0);
    assert_int_equal(load.rip, 0x1000200);
    assert_int_equal(load.cr0, CR0_PG | CR0_NE | CR0_ET | CR0_PE);
    assert_int_equal(load.cr4, CR4_PAE);
    assert_int_equal(load.efer, EFER_LME | EFER_LMA);
    assert_memory_equal(ram + 0x1000000, image + 3 * 512, 0x1000);
    assert_int_equal(guest(load.gdt + 0x10, 8), 0x00af9b000000ffff);
    assert_int_equal(guest(load.gdt + 0x18, 8), 0x00cf93000000ffff);
    // the identity map, walked for addresses at both ends
    for (u64 va = 0; va < 4 * SIZE_1G; va += SIZE_1G - SIZE_2M) {
        u64 pml4e = guest(load.cr3 + (va >> 39) * 8, 8);
        u64 pdpte = guest((pml4e & PAGE_MASK) + (va >> 30) * 8, 8);
        u64 pde = guest((pdpte & PAGE_MASK) + (va >> 21 & 511) * 8, 8);

        assert_true((pml4e & 0x81) == 1 && (pdpte & 0x81) == 1);
        assert_int_equal(pde, ALIGN_DOWN(va, SIZE_2M) | 0x83);
    }
}

static void test_linux_zero_page(void **state)
{
    u8 initrd[5000];
    gpa_t zero_page, initrd_gpa;

    (void)state;
    make_linux();
    memset(initrd, 0x5a, sizeof(initrd));
    load.command_line = "console=ttyS0 quiet";
    load.files[load.file_count++] = (struct load_file){"initrd", "", initrd, sizeof(initrd)};
    load.high_size = MIB(512);
    load.rsdp = 0xe1230;
    assert_int_equal(run(), 0);
    zero_page = load.rsi;
    assert_int_equal(guest(zero_page + 0x70, 8), 0xe1230);
    assert_memory_equal(ram + zero_page + 0x1f1, image + 0x1f1, 0x210 - 0x1f1);
    assert_int_equal(guest(zero_page + 0x210, 1), 0xff);
    assert_string_equal(ram + guest(zero_page + 0x228, 4), "console=ttyS0 quiet");
    initrd_gpa = guest(zero_page + 0x218, 4);
    assert_int_equal(guest(zero_page + 0x21c, 4), sizeof(initrd));
    assert_int_equal(initrd_gpa, ram_size - 0x2000);
    assert_memory_equal(ram + initrd_gpa, initrd, sizeof(initrd));
    assert_int_equal(guest(zero_page + 0x1ef, 1), 0); // the sentinel
    assert_int_equal(guest(zero_page + 0x1e8, 1), 4);

    static const u64 map[][3] = {{0, 0x9fc00, 1},
                                 {0x9fc00, 0x60400, 2},
                                 {0x100000, 31 << 20, 1},
                                 {1ull << 32, 512 << 20, 1}};

    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(guest(zero_page + 0x2d0 + i * 20, 8), map[i][0]);
        assert_int_equal(guest(zero_page + 0x2d0 + i * 20 + 8, 8), map[i][1]);
        assert_int_equal(guest(zero_page + 0x2d0 + i * 20 + 16, 4), map[i][2]);
    }
}

// A kernel that doesn't fit where it would like to be goes lower if it can.
static void test_linux_relocated(void **state)
{
    (void)state;
    make_linux();
    put(PREF, 0x1c00000, 8);
    assert_int_equal(run(), 0);
    assert_int_equal(load.rip, 0x200200);
    put(RELOCATABLE, 0, 1);
    must_fail("kernel: needs 8192 KiB at 0x1c00000, the guest has 32768 KiB of RAM below 4 GiB");
    put(PREF, ~0ull - 0x1000, 8);
    must_fail("kernel: needs 8192 KiB at 0xffffffffffffefff, the guest has 32768 KiB of RAM below "
              "4 GiB");
    put(PREF, 0x8000, 8);
    must_fail("kernel: needs 8192 KiB at 0x8000, the guest has 32768 KiB of RAM below 4 GiB");
}

static const struct lie {
    size_t offset;
    unsigned size;
    u64 value;
    const char *why;
} linux_lies[] = {
    {0x202, 4, 0, "kernel (5632 bytes): no bzImage and no Multiboot image"},
    {0x1fe, 2, 0, "kernel (5632 bytes): no bzImage and no Multiboot image"},
    {VERSION, 2, 0x20b, "kernel: boot protocol 2.11, expected 2.12 or newer"},
    {JUMP, 1, 0x62, "kernel: setup header ends at 0x264, expected 0x268 or more"},
    {LOADFLAGS, 1, 0, "kernel: loadflags 0x0, expected LOADED_HIGH (a bzImage)"},
    {XLOADFLAGS, 2, 2, "kernel: xloadflags 0x2, expected XLF_KERNEL_64 (a 64-bit entry)"},
    {ALIGNMENT, 4, 0, "kernel: kernel_alignment 0x0, expected a power of two"},
    {ALIGNMENT, 4, 0x3000, "kernel: kernel_alignment 0x3000, expected a power of two"},
    {SETUP_SECTS, 1, 0xff, "kernel: cut off: 5632 bytes, expected 135168"},
    {SETUP_SECTS, 1, 3, "kernel: cut off: 5632 bytes, expected 6144"},
    {SYSSIZE, 4, 0xffffffff, "kernel: cut off: 5632 bytes, expected 68719478256"},
    {INIT_SIZE, 4, 0xffffffff,
     "kernel: needs 4194303 KiB at 0x200000, the guest has 32768 KiB of RAM below 4 GiB"},
    {CMDLINE_SIZE, 4, 3, "command line of 4 bytes, kernel takes 3"},
    {INITRD_MAX, 4, 0x1000fff,
     "initrd: 0 KiB, too large to fit between the kernel's end at 0x1800000 and 0x1001000"},
};

static void test_linux_lies(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(linux_lies); i++) {
        make_linux();
        load.command_line = "abcd";
        load.files[load.file_count++] = (struct load_file){"initrd", "", (const u8 *)"x", 1};
        assert_int_equal(run(), 0);
        put(linux_lies[i].offset, linux_lies[i].value, linux_lies[i].size);
        must_fail(linux_lies[i].why);
    }
}

static void test_linux_sizes(void **state)
{
    static char long_line[70000];

    (void)state;
    make_linux();
    put(SYSSIZE, 0, 4);
    for (image_size = 0; image_size <= 3 * 512 + 0x200; image_size++)
        assert_int_equal(run(), -E_INVAL);
    assert_string_equal(load.why, "kernel: 512 bytes of kernel, expected an entry at 0x200");
    assert_int_equal(run(), 0);

    make_linux();
    load.files[load.file_count++] = (struct load_file){"initrd", "", image, MIB(33)};
    must_fail("initrd: 33792 KiB, too large to fit between the kernel's end at 0x1800000 and "
              "0x2000000");
    load.file_count = 0;
    put(CMDLINE_SIZE, 0xffffffff, 4);
    memset(long_line, 'x', sizeof(long_line) - 1);
    load.command_line = long_line;
    must_fail("command line of 69999 bytes, kernel takes 65535");
}

// --- Multiboot ---

enum { EHDR = 0, PHDR = 0x40, HEADER = 0xc0, TEXT = 0x1000 };

static void put_header(size_t at, u32 flags)
{
    put(at, 0x1badb002, 4);
    put(at + 4, flags, 4);
    put(at + 8, 0u - 0x1badb002 - flags, 4);
}

static void put_phdr(unsigned n, u32 type, u32 offset, u32 gpa, u32 file_size, u32 memory_size)
{
    const u32 fields[] = {type, offset, gpa + 0x10000000, gpa, file_size, memory_size, 7, 4096};

    memcpy(image + PHDR + n * sizeof(fields), fields, sizeof(fields));
}

// Two segments, linked 256 MiB above where they are loaded.
static void make_elf(void)
{
    fresh();
    memcpy(image, "\177ELF\1\1\1", 7);
    put(16, 2, 2);
    put(18, 3, 2);
    put(24, 0x10400010, 4);
    put(28, PHDR, 4);
    put(42, 32, 2);
    put(44, 3, 2);
    put_phdr(0, 1, TEXT, 0x400000, 0x800, 0x2000);
    put_phdr(1, 4, 0xffffffff, 0, ~0u, 0); // a note, never looked at
    put_phdr(2, 1, TEXT + 0x800, 0x8000, 0x10, 0x10);
    put_header(HEADER, 0);
    for (size_t i = TEXT; i < TEXT + 0x810; i++)
        image[i] = (u8)(i * 3 + 1);
    image_size = TEXT + 0x810;
}

static void test_elf(void **state)
{
    (void)state;
    make_elf();
    assert_int_equal(run(), 0);
    assert_int_equal(load.rip, 0x400010);
    assert_int_equal(load.rax, 0x2badb002);
    assert_int_equal(load.cr0, CR0_ET | CR0_PE);
    assert_int_equal(load.cr4 | load.efer | load.cr3, 0);
    assert_memory_equal(ram + 0x400000, image + TEXT, 0x800);
    for (gpa_t gpa = 0x400800; gpa < 0x402000; gpa++)
        assert_int_equal(ram[gpa], 0);
    assert_int_equal(ram[0x402000], 0xcc);
    assert_memory_equal(ram + 0x8000, image + TEXT + 0x800, 0x10);
    assert_int_equal(guest(load.gdt + 0x10, 8), 0x00cf9b000000ffff);
}

static void test_information(void **state)
{
    u8 env[6000];
    gpa_t info, modules, map;

    (void)state;
    make_elf();
    memset(env, 'e', sizeof(env));
    load.command_line = "one two";
    load.files[load.file_count++] = (struct load_file){"env", "", env, sizeof(env)};
    load.files[load.file_count++] = (struct load_file){"b", "x y", env, 1};
    load.high_size = MIB(64);
    assert_int_equal(run(), 0);
    info = load.rbx;
    assert_int_equal(guest(info, 4), 1 | 4 | 8 | 0x40 | 0x200);
    assert_int_equal(guest(info + 4, 4), 639);
    assert_int_equal(guest(info + 8, 4), 31 * 1024);
    assert_string_equal(ram + guest(info + 16, 4), "kernel one two");
    assert_int_equal(guest(info + 20, 4), 2);
    modules = guest(info + 24, 4);
    assert_int_equal(guest(modules, 4), 0x402000);
    assert_int_equal(guest(modules + 4, 4), 0x402000 + sizeof(env));
    assert_string_equal(ram + guest(modules + 8, 4), "env");
    assert_memory_equal(ram + 0x402000, env, sizeof(env));
    assert_int_equal(guest(modules + 16, 4), 0x404000);
    assert_string_equal(ram + guest(modules + 16 + 8, 4), "b x y");
    assert_int_equal(guest(info + 44, 4), 4 * 24);
    map = guest(info + 48, 4);
    assert_int_equal(guest(map + 3 * 24, 4), 20);
    assert_int_equal(guest(map + 3 * 24 + 4, 8), 1ull << 32);
    assert_int_equal(guest(map + 3 * 24 + 12, 8), MIB(64));
    assert_int_equal(guest(map + 3 * 24 + 20, 4), 1);
    assert_string_equal(ram + guest(info + 64, 4), "Nestor");
}

static void test_elf64(void **state)
{
    const u64 program[] = {1 | 7ull << 32, TEXT, 0x200000, 0x200000, 0x100, 0x200, 4096};

    (void)state;
    make_elf();
    memset(image + 4, 0, 0xc0 - 4);
    memcpy(image + 4, "\2\1\1", 3);
    put(16, 2, 2);
    put(18, 62, 2);
    put(24, 0x200004, 8);
    put(32, PHDR, 8);
    put(54, 56, 2);
    put(56, 1, 2);
    memcpy(image + PHDR, program, sizeof(program));
    assert_int_equal(run(), 0);
    assert_int_equal(load.rip, 0x200004);
    assert_memory_equal(ram + 0x200000, image + TEXT, 0x100);
    put(PHDR + 24, 0x100000000, 8);
    must_fail("kernel: segment of 512 bytes at 0x100000000, not in the guest's free RAM");
    put(PHDR + 24, ~0ull - 8, 8);
    must_fail("kernel: segment of 512 bytes at 0xfffffffffffffff7, not in the guest's free RAM");
    put(PHDR + 8, ~0ull - 8, 8);
    must_fail("kernel: segment of 256 bytes at offset 18446744073709551607, the file has 6160");
}

enum { OFFSET = 4, GPA = 12, FILE_SIZE = 16, MEMORY_SIZE = 20 };

static const struct lie elf_lies[] = {
    {HEADER, 4, 0, "kernel (6160 bytes): no bzImage and no Multiboot image"},
    {HEADER + 8, 4, 0, "kernel (6160 bytes): no bzImage and no Multiboot image"},
    {0, 4, 0,
     "kernel: Multiboot header without addresses, and no executable ELF file for the 386 or x86-64"},
    {18, 2, 40,
     "kernel: Multiboot header without addresses, and no executable ELF file for the 386 or x86-64"},
    {16, 2, 3,
     "kernel: Multiboot header without addresses, and no executable ELF file for the 386 or x86-64"},
    {28, 4, 0xfffffff0,
     "kernel: 3 program headers of 32 bytes at 4294967280, the file has 6160 bytes"},
    {28, 4, 6160 - 95, "kernel: 3 program headers of 32 bytes at 6065, the file has 6160 bytes"},
    {42, 2, 31, "kernel: 3 program headers of 31 bytes at 64, the file has 6160 bytes"},
    {44, 2, 0xffff, "kernel: 65535 program headers of 32 bytes at 64, the file has 6160 bytes"},
    {44, 2, 0, "kernel: entry 0x10400010, not in any segment"},
    {24, 4, 0x10402000, "kernel: entry 0x10402000, not in any segment"},
    {PHDR + OFFSET, 4, 6160 - 0x7ff,
     "kernel: segment of 2048 bytes at offset 4113, the file has 6160"},
    {PHDR + OFFSET, 4, ~0u,
     "kernel: segment of 2048 bytes at offset 4294967295, the file has 6160"},
    {PHDR + FILE_SIZE, 4, ~0u,
     "kernel: segment of 4294967295 bytes at offset 4096, the file has 6160"},
    {PHDR + MEMORY_SIZE, 4, 0x7ff, "kernel: segment of 2048 bytes in the file, of 2047 in memory"},
    {PHDR + MEMORY_SIZE, 4, 0x1c00001,
     "kernel: segment of 29360129 bytes at 0x400000, not in the guest's free RAM"},
    {PHDR + MEMORY_SIZE, 4, ~0u,
     "kernel: segment of 4294967295 bytes at 0x400000, not in the guest's free RAM"},
    {PHDR + GPA, 4, 0, "kernel: segment of 8192 bytes at 0x0, not in the guest's free RAM"},
    {PHDR + GPA, 4, 0x8fff0,
     "kernel: segment of 8192 bytes at 0x8fff0, not in the guest's free RAM"},
    {PHDR + GPA, 4, 0x9e000,
     "kernel: segment of 8192 bytes at 0x9e000, not in the guest's free RAM"},
    {PHDR + GPA, 4, 0xff000,
     "kernel: segment of 8192 bytes at 0xff000, not in the guest's free RAM"},
    {PHDR + GPA, 4, 0x6001, "kernel: segments at 0x6001 and 0x8000 overlap"},
    {PHDR + GPA, 4, 0x800f, "kernel: segments at 0x800f and 0x8000 overlap"},
};

static void test_elf_lies(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(elf_lies); i++) {
        make_elf();
        assert_int_equal(run(), 0);
        put(elf_lies[i].offset, elf_lies[i].value, elf_lies[i].size);
        must_fail(elf_lies[i].why);
    }
    make_elf();
    put_header(HEADER, 4);
    must_fail("kernel: Multiboot flags 0x4, of which 0x4 are not supported");
    put_header(HEADER, 3);
    assert_int_equal(run(), 0);
    // the header must lie in the first 8 KiB
    put(HEADER, 0, 4);
    image_size = 16384;
    put_header(8192 - 12, 0);
    assert_int_equal(run(), 0);
    put(8192 - 12, 0, 4);
    put_header(8192 - 8, 0);
    must_fail("kernel (16384 bytes): no bzImage and no Multiboot image");
}

static void test_elf_segments(void **state)
{
    (void)state;
    make_elf();
    put(44, 40, 2);
    put(28, 0x2000, 4);
    image_size = 0x4000;
    for (u32 i = 0; i < 40; i++) {
        const u32 fields[] = {1, TEXT, 0x10400000 + i * 4096, 0x400000 + i * 4096, 16, 16, 7, 4};

        memcpy(image + 0x2000 + i * sizeof(fields), fields, sizeof(fields));
    }
    must_fail("kernel: more than 32 segments");
    put(44, 32, 2);
    put(24, 0x1041f00f, 4);
    assert_int_equal(run(), 0);
    assert_int_equal(load.rip, 0x41f00f);
}

// A flat image with address fields.
static void make_flat(void)
{
    fresh();
    image_size = 0x1000;
    for (size_t i = 0; i < image_size; i++)
        image[i] = (u8)(i * 5);
    put_header(0x20, 0x10003);
    put(0x2c, 0x200010, 4); // header_addr: file offset 0x10 is loaded first
    put(0x30, 0x200000, 4);
    put(0x34, 0x200800, 4);
    put(0x38, 0x203000, 4);
    put(0x3c, 0x200100, 4);
}

static void test_flat(void **state)
{
    (void)state;
    make_flat();
    assert_int_equal(run(), 0);
    assert_int_equal(load.rip, 0x200100);
    assert_memory_equal(ram + 0x200000, image + 0x10, 0x800);
    assert_int_equal(guest(0x200800, 8), 0);
    assert_int_equal(ram[0x202fff], 0);
    assert_int_equal(ram[0x203000], 0xcc);
    put(0x34, 0, 4); // load to the file's end
    put(0x38, 0, 4);
    assert_int_equal(run(), 0);
    assert_memory_equal(ram + 0x200000, image + 0x10, 0xff0);
    put(0x34, 0x201000, 4);
    must_fail("kernel: segment of 4096 bytes at offset 16, the file has 4096");
    put(0x34, 0x1fffff, 4);
    must_fail(
        "kernel: addresses of header 0x200010 (at offset 32), load 0x200000..0x1fffff, bss end "
        "0x0 contradict each other");
    make_flat();
    put(0x2c, 0x200021, 4);
    must_fail(
        "kernel: addresses of header 0x200021 (at offset 32), load 0x200000..0x200800, bss end "
        "0x203000 contradict each other");
    make_flat();
    put(0x3c, 0x203000, 4);
    must_fail("kernel: entry 0x203000, not in any segment");
}

static void test_modules(void **state)
{
    static char long_line[70000];

    (void)state;
    make_elf();
    load.files[load.file_count++] = (struct load_file){"big", "", image, MIB(32)};
    must_fail("big: module of 33554432 bytes, no RAM is left for it at 0x402000");
    memset(long_line, 'x', sizeof(long_line) - 1);
    load.files[0].size = 1;
    load.command_line = long_line;
    must_fail("command line of 69999 bytes, expected at most 32256");
    // lines that leave nearly no room: never out of the loader's own part
    for (size_t size = 63800; size < 64512; size++) {
        load.command_line = long_line + sizeof(long_line) - 1 - size;
        memset(ram + LOAD_EBDA, 0xcc, 64);
        if (run() == 0)
            assert_string_equal(ram + guest(guest(load.rbx + 24, 4) + 8, 4), "big");
        else
            assert_true(load.why[0] != 0);
        assert_int_equal(guest(LOAD_EBDA, 8), 0xcccccccccccccccc);
    }
}

// --- Multiboot2: the same ELF file with the other header ---

enum { HEADER_2 = 0xa0, TAGS_2 = HEADER_2 + 16, RSDP = 0xe1230 };

static void put_header_2(u32 length)
{
    const u32 header[] = {0xe85250d6, 0, length, 0u - 0xe85250d6 - length};

    memcpy(image + HEADER_2, header, sizeof(header));
}

static void put_header_tag(size_t at, u16 type, u16 flags, u32 size)
{
    put(at, type, 2);
    put(at + 2, flags, 2);
    put(at + 4, size, 4);
}

// As Nestor's own: information wished for, modules aligned, an end.
static void make_multiboot2(void)
{
    make_elf();
    put(44, 3, 2);
    memset(image + HEADER_2, 0, HEADER + 12 - HEADER_2);
    put_header_2(16 + 24 + 8 + 8);
    put_header_tag(TAGS_2, 1, 0, 20);
    put(TAGS_2 + 8, 1, 4);
    put(TAGS_2 + 12, 3, 4);
    put(TAGS_2 + 16, 15, 4);
    put_header_tag(TAGS_2 + 24, 6, 0, 8);
    put_header_tag(TAGS_2 + 32, 0, 0, 8);
    load.rsdp = RSDP;
}

// Where the payload of the `nth` tag of `type` is; `size` is the tag's.
static gpa_t find_tag(u32 type, unsigned nth, u32 *size)
{
    gpa_t info = load.rbx, end = info + guest(info, 4);

    for (gpa_t at = info + 8; at < end; at += (guest(at + 4, 4) + 7) & ~7ull) {
        *size = (u32)guest(at + 4, 4);
        if (guest(at, 4) == type && !nth--)
            return at + 8;
    }
    fail_msg("no tag %u", type);
    return 0;
}

static void test_multiboot2(void **state)
{
    u8 data[5000];
    gpa_t at;
    u32 size;

    (void)state;
    make_multiboot2();
    memset(data, 'd', sizeof(data));
    load.command_line = "loglevel=debug x";
    load.files[load.file_count++] = (struct load_file){"config", "", data, sizeof(data)};
    load.files[load.file_count++] = (struct load_file){"b", "x y", data, 1};
    load.high_size = MIB(64);
    assert_int_equal(run(), 0);
    assert_int_equal(load.rax, 0x36d76289);
    assert_int_equal(load.rip, 0x400010);
    assert_int_equal(load.cr0, CR0_ET | CR0_PE);
    assert_int_equal(load.rbx & 7, 0);
    assert_string_equal(ram + find_tag(1, 0, &size), "loglevel=debug x");
    assert_string_equal(ram + find_tag(2, 0, &size), "Nestor");
    at = find_tag(3, 0, &size);
    assert_int_equal(guest(at, 4), 0x402000);
    assert_int_equal(guest(at + 4, 4), 0x402000 + sizeof(data));
    assert_string_equal(ram + at + 8, "config");
    assert_memory_equal(ram + 0x402000, data, sizeof(data));
    at = find_tag(3, 1, &size);
    assert_int_equal(guest(at, 4), 0x404000);
    assert_string_equal(ram + at + 8, "b x y");
    at = find_tag(4, 0, &size);
    assert_int_equal(guest(at, 4), 639);
    assert_int_equal(guest(at + 4, 4), 31 * 1024);
    at = find_tag(6, 0, &size);
    assert_int_equal(size, 16 + 4 * 24);
    assert_int_equal(guest(at, 8), 24);
    assert_int_equal(guest(at + 8 + 3 * 24, 8), 1ull << 32);
    assert_int_equal(guest(at + 8 + 3 * 24 + 8, 8), MIB(64));
    assert_int_equal(guest(at + 8 + 3 * 24 + 16, 8), 1);
    assert_memory_equal(ram + find_tag(14, 0, &size), ram + RSDP, 20);
    assert_memory_equal(ram + find_tag(15, 0, &size), ram + RSDP, 36);
    assert_int_equal(size, 8 + 36);
    at = find_tag(0, 0, &size);
    assert_int_equal(at, load.rbx + guest(load.rbx, 4));
}

static const struct lie multiboot2_lies[] = {
    {HEADER_2 + 12, 4, 0, "kernel (6160 bytes): no bzImage and no Multiboot image"},
    {TAGS_2, 2, 3, "kernel: Multiboot2 header tag 3 is not supported"},
    {TAGS_2, 2, 99, "kernel: Multiboot2 header tag 99 is not supported"},
    {TAGS_2 + 4, 4, 7, "kernel: Multiboot2 header without an end"},
    {TAGS_2 + 4, 4, ~0u, "kernel: Multiboot2 header without an end"},
    {TAGS_2 + 12, 4, 17, "kernel: Multiboot2 information 17 is not supported"},
    {TAGS_2 + 12, 4, 64, "kernel: Multiboot2 information 64 is not supported"},
    {TAGS_2 + 32, 2, 6, "kernel: Multiboot2 header without an end"},
    {24, 4, 0x10402000, "kernel: entry 0x10402000, not in any segment"},
};

static void test_multiboot2_lies(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(multiboot2_lies); i++) {
        make_multiboot2();
        assert_int_equal(run(), 0);
        put(multiboot2_lies[i].offset, multiboot2_lies[i].value, multiboot2_lies[i].size);
        must_fail(multiboot2_lies[i].why);
    }
    make_multiboot2();
    put_header_tag(TAGS_2, 3, 1, 20); // optional
    assert_int_equal(run(), 0);
    put_header_2(0x10000);
    must_fail("kernel: Multiboot2 header for architecture 0, of 65536 bytes at 160");
}

// Lines that leave nearly no room: never out of the loader's own part.
static void test_multiboot2_room(void **state)
{
    static char line[70000];

    (void)state;
    make_multiboot2();
    memset(line, 'x', sizeof(line) - 1);
    load.files[load.file_count++] = (struct load_file){"big", "", image, 1};
    for (size_t size = 63800; size < 64512; size++) {
        load.command_line = line + sizeof(line) - 1 - size;
        memset(ram + LOAD_EBDA, 0xcc, 64);
        assert_true(run() == 0 || load.why[0] != 0);
        assert_int_equal(guest(LOAD_EBDA, 8), 0xcccccccccccccccc);
    }
}

static void fuzz(void (*make)(void), size_t from, size_t to)
{
    for (int round = 0; round < 1500; round++) {
        make();
        for (long n = random() % 6; n >= 0; n--)
            image[from + (size_t)random() % (to - from)] = (u8)random();
        if (random() % 4 == 0)
            image_size = (size_t)random() % image_size;
        if (run() == 0)
            assert_true(load.rip < ram_size);
    }
}

static void test_random(void **state)
{
    (void)state;
    srandom(1);
    fuzz(make_linux, 0x1f1, 0x268);
    fuzz(make_elf, 0, 0xcc);
    fuzz(make_flat, 0x20, 0x40);
    fuzz(make_multiboot2, 0, HEADER);
    fuzz(make_multiboot2, HEADER_2, TAGS_2 + 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linux_state),
        cmocka_unit_test(test_linux_zero_page),
        cmocka_unit_test(test_linux_relocated),
        cmocka_unit_test(test_linux_lies),
        cmocka_unit_test(test_linux_sizes),
        cmocka_unit_test(test_elf),
        cmocka_unit_test(test_information),
        cmocka_unit_test(test_elf64),
        cmocka_unit_test(test_elf_lies),
        cmocka_unit_test(test_elf_segments),
        cmocka_unit_test(test_flat),
        cmocka_unit_test(test_modules),
        cmocka_unit_test(test_multiboot2),
        cmocka_unit_test(test_multiboot2_lies),
        cmocka_unit_test(test_multiboot2_room),
        cmocka_unit_test(test_random),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
