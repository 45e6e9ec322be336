// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The smallest guest: a Multiboot 1 image in 32-bit protected mode that does what its command line
// says, one word after the other, and powers off at its end. For tests of the runner and of wrong
// input, where a whole guest would only be slow. (Multiboot Specification 0.6.96)

#include <stdint.h>

enum {
    COM1 = 0x3f8,
    LSR = 5,
    LSR_DATA_READY = 1,
    LSR_THR_EMPTY = 0x20,
    LSR_EMPTY = 0x40,
    STACK_SIZE = 4096
};
enum { MBI_CMDLINE = 4, MBI_MODULE_COUNT = 5 }; // 32-bit words of the Multiboot information

void tiny_main(const uint32_t *mbi);

uint8_t tiny_stack[STACK_SIZE];

__asm__(".section .multiboot, \"a\"\n"
        ".long 0x1badb002, 0, -0x1badb002\n"
        ".text\n"
        ".globl _start\n"
        "_start:\n"
        "mov $tiny_stack + 4096, %esp\n"
        "push %ebx\n"
        "call tiny_main\n"
        "1: cli\n"
        "hlt\n"
        "jmp 1b\n");

static void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static void out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static uint8_t in8(uint16_t port)
{
    uint8_t value;

    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void put(uint8_t byte)
{
    while (!(in8(COM1 + LSR) & LSR_THR_EMPTY))
        ;
    out8(COM1, byte);
}

// Before anything that ends the machine, or the last bytes are never sent.
static void flush(void)
{
    while (!(in8(COM1 + LSR) & LSR_EMPTY))
        ;
}

static uint8_t get(void)
{
    while (!(in8(COM1 + LSR) & LSR_DATA_READY))
        ;
    return in8(COM1);
}

static void print(const char *text)
{
    while (*text)
        put((uint8_t)*text++);
}

static void uart_init(void)
{
    static const uint8_t setup[][2] = {{3, 0x80}, {0, 1}, {1, 0}, {3, 3}, {2, 7}, {4, 3}};

    for (unsigned i = 0; i < sizeof(setup) / sizeof(setup[0]); i++)
        out8((uint16_t)(COM1 + setup[i][0]), setup[i][1]);
}

static void all_bytes(uint32_t unused)
{
    (void)unused;
    for (unsigned byte = 0; byte < 256; byte++)
        put((uint8_t)byte);
}

// Gives back what comes in, up to two q in a row.
static void echo(uint32_t unused)
{
    uint8_t byte = 0, last;

    (void)unused;
    do {
        last = byte;
        byte = get();
        put(byte);
    } while (byte != 'q' || last != 'q');
}

static void hang(uint32_t unused)
{
    (void)unused;
    for (;;)
        __asm__ volatile("cli; hlt");
}

// With interrupts closed and no exit of its own making.
static void spin(uint32_t unused)
{
    (void)unused;
    __asm__ volatile("cli");
    for (;;)
        __asm__ volatile("");
}

static void reset(uint32_t unused)
{
    (void)unused;
    flush();
    out8(0xcf9, 2);
    out8(0xcf9, 6);
    hang(0);
}

static void triple_fault(uint32_t unused)
{
    static const uint8_t no_idt[6];

    (void)unused;
    __asm__ volatile("lidt %0; int3" : : "m"(no_idt));
}

static void exit_code(uint32_t code)
{
    flush();
    out32(0xf4, code);
}

static void power_off(void)
{
    flush();
    out16(0x604, 0x2000);
    out16(0x4004, 0x3400);
    for (const char *byte = "Shutdown"; *byte; byte++)
        out8(0x8900, (uint8_t)*byte);
}

static const struct {
    const char *name;
    void (*run)(uint32_t number);
} words[] = {
    {"all", all_bytes}, {"echo", echo},           {"hang", hang},       {"spin", spin},
    {"reset", reset},   {"triple", triple_fault}, {"code=", exit_code},
};

// The rest of `text` behind `prefix`, or 0.
static const char *after(const char *text, const char *prefix)
{
    while (*prefix && *text == *prefix)
        text++, prefix++;
    return *prefix ? 0 : text;
}

static uint32_t number(const char *text)
{
    uint32_t value = 0;

    while (*text >= '0' && *text <= '9')
        value = value * 10 + (uint32_t)(*text++ - '0');
    return value;
}

static void do_word(const char *word)
{
    for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        const char *rest = after(word, words[i].name);

        if (rest)
            words[i].run(number(rest));
    }
}

void tiny_main(const uint32_t *mbi)
{
    const char *text = (const char *)mbi[MBI_CMDLINE];

    uart_init();
    print("TINY: up, modules ");
    put((uint8_t)('0' + mbi[MBI_MODULE_COUNT]));
    print(", command line ");
    print(text);
    print("\n");
    while (*text) {
        do_word(text);
        while (*text && *text != ' ')
            text++;
        while (*text == ' ')
            text++;
    }
    power_off();
}
