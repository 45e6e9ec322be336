// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// Port I/O: every instruction form and width, strings in every address size, faults in their
// middle, and what CPL 3 may do (SDM vol. 1 "Input/Output", vol. 2 "IN", "INS", "OUT", "OUTS").

#include "guest.h"

enum {
    PIC_MASK = 0x21,
    CMOS_INDEX = 0x70,
    CMOS_DATA = 0x71,
    CMOS_FREE = 0x51, // a byte of NVRAM that nobody uses
    PCI_ADDRESS = 0xcf8,
    UNUSED = 0x1f00, // no device there
    DEBUG_CONSOLE = 0xe9,
    LATCH = 0xe0, // of the test device: reads give what was written
};

static void test_immediate(void)
{
    u64 rax = 0x1122334455667788;

    __asm__ volatile("out %%al, $0x21" : : "a"(0xa5));
    __asm__ volatile("in $0x21, %%al" : "+a"(rax));
    report(rax == 0x11223344556677a5, "IN AL, imm8 changes AL alone: %#llx",
           (unsigned long long)rax);
    __asm__ volatile("mov $0x21, %%edx; mov $0x5a, %%al; out %%al, %%dx" : : : "rax", "rdx");
    report(in8(PIC_MASK) == 0x5a, "OUT DX, AL");
    out8(PIC_MASK, 0xff);
}

static void test_unused(void)
{
    u64 rax = 0;
    u64 dx = 0xffffffffffff0000 | UNUSED;

    __asm__ volatile("in %%dx, %%al" : "+a"(rax) : "d"(dx));
    report(rax == 0xff, "IN AL of an unused port: %#llx", (unsigned long long)rax);
    rax = 0x1111111111111111;
    __asm__ volatile("in %%dx, %%ax" : "+a"(rax) : "d"(dx));
    report(rax == 0x111111111111ffff, "IN AX of an unused port: %#llx", (unsigned long long)rax);
    __asm__ volatile("in %%dx, %%eax" : "+a"(rax) : "d"(dx));
    report(rax == 0xffffffff, "IN EAX of an unused port clears the upper half: %#llx",
           (unsigned long long)rax);
    rax = 0x1111111111111111;
    __asm__ volatile(".byte 0x48; in %%dx, %%eax" : "+a"(rax) : "d"(dx));
    report(rax == 0xffffffff, "REX.W changes nothing: %#llx", (unsigned long long)rax);
    __asm__ volatile("in $0x21, %%al; .byte 0x66; in $0xed, %%eax" : "=a"(rax));
    __asm__ volatile("out %%al, %%dx; out %%ax, %%dx; out %%eax, %%dx" : : "a"(0), "d"(UNUSED));
    report(true, "OUT of every width to an unused port");
}

static void test_dword(void)
{
    u32 before = in32(PCI_ADDRESS);
    u32 value;

    out32(PCI_ADDRESS, 0x80001234);
    report(in32(PCI_ADDRESS) == 0x80001234, "32 bits at 0xCF8");
    out32(PCI_ADDRESS, 0x80000000);
    value = in32(0xcfc);
    report(value != ~0u && in16(0xcfe) == value >> 16 && in16(0xcfc) == (value & 0xffff) &&
               in8(0xcff) == value >> 24 && in8(0xcfd) == (value >> 8 & 0xff),
           "0xCFC in 32, 16 and 8 bits: host bridge %#x", value);
    out32(PCI_ADDRESS, before);
}

static void test_latch(void)
{
    if (!has_test_device()) {
        report_skip("no test device: its latch in three widths");
        return;
    }
    out32(LATCH, 0x89abcdef);
    report(in32(LATCH) == 0x89abcdef, "latch in 32 bits");
    out16(LATCH, 0x1234);
    report(in16(LATCH) == 0x1234, "latch in 16 bits");
    out8(LATCH, 0x56);
    report(in8(LATCH) == 0x56, "latch in 8 bits");
}

// --- strings ---

static u8 cmos(u8 index)
{
    out8(CMOS_INDEX, index);
    return in8(CMOS_DATA);
}

static void test_outs(void)
{
    const char *text = "OUTS to COM1\r\n";
    const void *at = text;
    u64 count = strlen(text); // no more than the FIFO holds

    print(" ");
    delay_us(20000);
    __asm__ volatile("rep outsb" : "+S"(at), "+c"(count) : "d"(0x3f8) : "memory");
    delay_us(20000);
    report(count == 0 && at == text + strlen(text), "REP OUTSB");

    u8 byte = 0x3c;

    at = &byte;
    __asm__ volatile("outsb" : "+S"(at) : "d"(PIC_MASK), "m"(byte));
    report(in8(PIC_MASK) == 0x3c && at == &byte + 1, "OUTSB once");
    u8 backwards[4] = {0, 0x11, 0x22, 0x33};

    at = &backwards[3];
    count = 3;
    __asm__ volatile("std; rep outsb; cld" : "+S"(at), "+c"(count) : "d"(PIC_MASK), "m"(backwards));
    report(in8(PIC_MASK) == 0x11 && at == backwards && count == 0, "REP OUTSB downwards");
    count = 0;
    __asm__ volatile("rep outsb" : "+S"(at), "+c"(count) : "d"(PIC_MASK), "m"(backwards));
    report(in8(PIC_MASK) == 0x11 && at == backwards, "REP OUTSB of nothing");
    out8(PIC_MASK, 0xff);
}

static void test_ins(void)
{
    u8 buffer[8] = {0};
    void *at = buffer;
    u64 count = 3;

    out8(CMOS_INDEX, CMOS_FREE);
    out8(CMOS_DATA, 0x77);
    out8(CMOS_INDEX, CMOS_FREE);
    __asm__ volatile("insb" : "+D"(at) : "d"(CMOS_DATA) : "memory");
    report(buffer[0] == 0x77 && at == buffer + 1, "INSB");
    __asm__ volatile("rep insb" : "+D"(at), "+c"(count) : "d"(PIC_MASK) : "memory");
    report(buffer[1] == 0xff && buffer[3] == 0xff && buffer[4] == 0 && count == 0 &&
               at == buffer + 4,
           "REP INSB");

    u32 words[4] = {0};

    out32(PCI_ADDRESS, 0x80001234);
    at = words;
    count = 2;
    __asm__ volatile("rep insl" : "+D"(at), "+c"(count) : "d"(PCI_ADDRESS) : "memory");
    report(words[0] == 0x80001234 && words[1] == 0x80001234 && words[2] == 0 && at == words + 2,
           "REP INSD");
    words[0] = 0x80005678;
    at = words;
    __asm__ volatile("outsl" : "+S"(at) : "d"(PCI_ADDRESS), "m"(words));
    report(in32(PCI_ADDRESS) == 0x80005678 && at == words + 1, "OUTSD");
    report(cmos(CMOS_FREE) == 0x77, "CMOS kept its byte");
}

static void test_address_size(void)
{
    static u8 bytes[4] = {0xf1, 0xf2, 0xf3, 0xf4};
    u64 rsi = 0xdead000000000000 | (u64)bytes, rcx = 0xdead000000000002;
    u64 rdi;

    __asm__ volatile("rep addr32 outsb" : "+S"(rsi), "+c"(rcx) : "d"(PIC_MASK), "m"(bytes));
    report(in8(PIC_MASK) == 0xf2 && rsi == (u64)bytes + 2 && rcx == 0,
           "REP OUTSB with 32-bit addresses: RSI %#llx, RCX %#llx", (unsigned long long)rsi,
           (unsigned long long)rcx);
    rdi = 0xdead000000000000 | (u64)bytes;
    __asm__ volatile("addr32 insb" : "+D"(rdi) : "d"(PIC_MASK) : "memory");
    report(bytes[0] == 0xf2 && rdi == (u64)bytes + 1, "INSB with 32-bit addresses");
    msr_write(MSR_FS_BASE, (u64)bytes);
    rsi = 3;
    __asm__ volatile("fs outsb" : "+S"(rsi) : "d"(PIC_MASK), "m"(bytes));
    report(in8(PIC_MASK) == 0xf4 && rsi == 4, "OUTSB with FS");
    out8(PIC_MASK, 0xff);
}

// --- faults ---

static void ins_across(void *at)
{
    u64 count = 8;

    __asm__ volatile("rep insb" : "+D"(at), "+c"(count) : "d"(PIC_MASK) : "memory");
}

static void ins_split(void *at)
{
    __asm__ volatile("insl" : "+D"(at) : "d"(PCI_ADDRESS) : "memory");
}

static void outs_beyond(void *at)
{
    __asm__ volatile("outsb" : "+S"(at) : "d"(PIC_MASK));
}

static void test_string_faults(void)
{
    u8 *page = map_half(pages(1));
    u8 *end = page + PAGE_SIZE;

    report(try(ins_across, end - 3) == VECTOR_PF && last_cr2 == (u64)end && last_trap.error == PF_W,
           "REP INSB into a page that is not there: #PF(%#llx)",
           (unsigned long long)last_trap.error);
    report(last_trap.rcx == 5 && last_trap.rdi == (u64)end && end[-1] == 0xff,
           "what came before it is done: RCX %llu", (unsigned long long)last_trap.rcx);
    report(try(ins_split, end - 2) == VECTOR_PF && last_cr2 == (u64)end,
           "INSD over the edge: #PF, CR2 %#llx", (unsigned long long)last_cr2);
    report(last_trap.rdi == (u64)end - 2 && end[-2] == 0xff, "and nothing is done");
    report(try(outs_beyond, end) == VECTOR_PF && last_trap.error == 0,
           "OUTSB from no page: #PF(0)");
    map_half(NULL);
}

static void noncanonical(void *unused)
{
    (void)unused;
    outs_beyond((void *)0x1234567890abcdef);
}

static void user_in(void *port)
{
    in8((u16)(u64)port);
}

static void user_in32(void *port)
{
    in32((u16)(u64)port);
}

static void test_protection(void)
{
    report(try(noncanonical, NULL) == VECTOR_GP, "OUTSB from a non-canonical address: #GP");
    report(try_user(user_in, (void *)PIC_MASK) == VECTOR_GP, "IN at CPL 3 without a bitmap: #GP");
    tss.io_map = offsetof(struct tss64, bitmap);
    memset(tss.bitmap, 0xff, sizeof(tss.bitmap));
    tss.bitmap[PIC_MASK / 8] &= (u8)~BIT(PIC_MASK % 8);
    tss_load(sizeof(tss) - 1);
    report(try_user(user_in, (void *)PIC_MASK) == USER_RETURN,
           "IN at CPL 3, allowed by the bitmap");
    report(try_user(user_in, (void *)(PIC_MASK + 1)) == VECTOR_GP && last_trap.error == 0,
           "IN at CPL 3, not allowed by the bitmap: #GP(0)");
    report(try_user(user_in32, (void *)PIC_MASK) == VECTOR_GP,
           "IN EAX at CPL 3 needs the bits of four ports");
    tss_load(103);
}

// More lines by the debug console than Nestor's log takes: it says how many it left out.
static void flood(void)
{
    for (unsigned i = 0; i < 20000; i++) {
        out8(DEBUG_CONSOLE, 'x');
        out8(DEBUG_CONSOLE, '\n');
    }
    delay_us(50000);
    delay_us(50000);
    out8(DEBUG_CONSOLE, '\n');
    report(true, "20,000 lines");
}

void guest_main(void)
{
    if (option("flood")) {
        flood();
        return;
    }
    test_immediate();
    test_unused();
    test_dword();
    test_latch();
    test_outs();
    test_ins();
    test_address_size();
    test_string_faults();
    test_protection();
}
