// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The smallest user of /dev/kvm that boots Linux to its shell: runs in a Linux that is Nestor's
// guest (L1), because QEMU is slow under emulators and large. KVM has the interrupt controllers
// and the PIT; here are a COM1 on stdin and stdout, an empty PCI bus, a clock that stands still and
// the ACPI registers for power-off. (Documentation/virt/kvm/api.rst,
// Documentation/arch/x86/boot.rst and zero-page.rst of Linux; ACPI 6.4 chapter 5; Multiboot 0.6.96;
// National PC16550D.)
//
// vmm [-i INITRD] [-a COMMAND-LINE] [-c CPUS] [-m MIB] [-s] KERNEL: the status is the guest's code.
// Its memory is large pages where L1 has any (a Linux with less than 512 MiB free has none); with
// -s small ones only. What it took in ticks of the TSC is said last.

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

enum { BOOT_PARAMS = 0x10000, COMMAND_LINE = 0x20000, PAGE_TABLES = 0x30000, GDT = 0x38000 };
enum { ACPI_TABLES = 0xe0000, MULTIBOOT_INFO = 0x10000, LOAD_ADDRESS = 0x1000000 };
enum { LOW_END = 0x9f000, HIGH_START = 0x100000, MIB = 0x100000 };
enum { MAX_CPUS = 8, MAX_CPUID = 256 };
enum { COM1 = 0x3f8, COM1_IRQ = 4, PM1_EVENT = 0x600, PM1_CONTROL = 0x604, SCI = 9 };
enum { STATUS_TRIPLE_FAULT = 101, STATUS_BROKEN = 102 };

static int kvm, vm;
static uint8_t *ram;
static uint64_t ram_size = 128 * MIB;
static unsigned cpu_count = 1;
static int small_pages;
static const char *command_line = "console=ttyS0";
static struct termios terminal;
static int terminal_changed;
static uint64_t start_tick;

static void finish(int status)
{
    if (start_tick)
        printf("vmm: %llu ticks\n", (unsigned long long)(__builtin_ia32_rdtsc() - start_tick));
    if (terminal_changed)
        tcsetattr(0, TCSANOW, &terminal);
    fflush(NULL);
    _exit(status);
}

static void die(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    fprintf(stderr, "\r\nvmm: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\r\n");
    va_end(args);
    finish(STATUS_BROKEN);
}

static int control(int fd, unsigned long request, void *argument, const char *what)
{
    int result = ioctl(fd, request, argument);

    if (result < 0)
        die("%s: %m", what);
    return result;
}

// --- COM1 ---

enum { RBR, IER, IIR, LCR, MCR, LSR, MSR, SCR };
enum { IER_RX = 1, IER_TX = 2, LCR_DLAB = 0x80, MCR_LOOP = 0x10, LSR_READY = 1, LSR_EMPTY = 0x60 };
enum { IIR_NONE = 1, IIR_TX = 2, IIR_RX = 4, IIR_FIFO = 0xc0, MSR_READY = 0xb0 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t taken;
    uint8_t ier, lcr, mcr, scr, fifo, divisor[2];
    uint8_t byte;
    int has_byte, tx_pending, line;
} uart = {.lock = PTHREAD_MUTEX_INITIALIZER, .taken = PTHREAD_COND_INITIALIZER};

static void uart_update(void)
{
    int line = ((uart.ier & IER_RX) && uart.has_byte) || ((uart.ier & IER_TX) && uart.tx_pending);
    struct kvm_irq_level level = {.irq = COM1_IRQ, .level = (uint32_t)line};

    if (line != uart.line)
        control(vm, KVM_IRQ_LINE, &level, "KVM_IRQ_LINE");
    uart.line = line;
}

static void uart_send(uint8_t byte)
{
    if (!(uart.mcr & MCR_LOOP) && write(1, &byte, 1) != 1)
        die("stdout: %m");
    uart.tx_pending = 1;
}

static void uart_out(unsigned reg, uint8_t value)
{
    if (reg <= IER && (uart.lcr & LCR_DLAB))
        uart.divisor[reg] = value;
    else if (reg == RBR)
        uart_send(value);
    else if (reg == IER) {
        uart.tx_pending |= (value & ~uart.ier & IER_TX) != 0;
        uart.ier = value & 0xf;
    } else if (reg == IIR)
        uart.fifo = value & 1 ? IIR_FIFO : 0;
    else if (reg == LCR)
        uart.lcr = value;
    else if (reg == MCR)
        uart.mcr = value & 0x1f;
    else if (reg == SCR)
        uart.scr = value;
}

static uint8_t uart_receive(void)
{
    uart.has_byte = 0;
    pthread_cond_signal(&uart.taken);
    return uart.byte;
}

static uint8_t uart_identify(void)
{
    if ((uart.ier & IER_RX) && uart.has_byte)
        return IIR_RX | uart.fifo;
    if (!(uart.ier & IER_TX) || !uart.tx_pending)
        return IIR_NONE | uart.fifo;
    uart.tx_pending = 0;
    return IIR_TX | uart.fifo;
}

// The modem's lines; in loopback they are the outputs (DTR, RTS, OUT1, OUT2).
static uint8_t uart_modem(void)
{
    uint8_t m = uart.mcr;

    if (!(m & MCR_LOOP))
        return MSR_READY;
    return (uint8_t)((m & 1) << 5 | (m & 2) << 3 | (m & 4) << 4 | (m & 8) << 4);
}

static uint8_t uart_in(unsigned reg)
{
    if (reg <= IER && (uart.lcr & LCR_DLAB))
        return uart.divisor[reg];
    switch (reg) {
    case RBR:
        return uart_receive();
    case IER:
        return uart.ier;
    case IIR:
        return uart_identify();
    case LCR:
        return uart.lcr;
    case MCR:
        return uart.mcr;
    case LSR:
        return LSR_EMPTY | (uart.has_byte ? LSR_READY : 0);
    case MSR:
        return uart_modem();
    default:
        return uart.scr;
    }
}

static void uart_access(unsigned reg, int in, uint8_t *data)
{
    pthread_mutex_lock(&uart.lock);
    if (in)
        *data = uart_in(reg);
    else
        uart_out(reg, *data);
    uart_update();
    pthread_mutex_unlock(&uart.lock);
}

// A byte waits until the guest has taken the one before it.
static void *read_input(void *unused)
{
    uint8_t byte;

    (void)unused;
    while (read(0, &byte, 1) == 1) {
        pthread_mutex_lock(&uart.lock);
        while (uart.has_byte)
            pthread_cond_wait(&uart.taken, &uart.lock);
        uart.byte = byte;
        uart.has_byte = 1;
        uart_update();
        pthread_mutex_unlock(&uart.lock);
    }
    return NULL;
}

// --- ports ---

// The RTC's date, noon of the first day of 2026 in BCD, and its status B: 24 hours.
static uint8_t clock_read(uint8_t index)
{
    static const uint8_t registers[14] = {[4] = 0x12, [6] = 5, 1, 1, 0x26, [11] = 2, [13] = 0x80};

    return index == 0x32 ? 0x20 : index < sizeof(registers) ? registers[index] : 0;
}

static uint8_t pm1_event[4]; // status, never any; enables, which read back what was written

static void port_out(unsigned port, unsigned size, const uint8_t *data, uint8_t *clock_index)
{
    uint32_t value = 0;

    memcpy(&value, data, size);
    if (port == 0xf4)
        finish((int)value);
    if (port == PM1_EVENT + 2 && size == 2)
        memcpy(pm1_event + 2, data, 2);
    if (port == 0x70)
        *clock_index = value & 0x7f;
    if (port == PM1_CONTROL && (value & 0x2000)) // SLP_EN
        finish(0);
    if ((port == 0x64 && value == 0xfe) || (port == 0xcf9 && (value & 4)))
        finish(0);
}

static void port_in(unsigned port, unsigned size, uint8_t *data, uint8_t clock_index)
{
    memset(data, 0xff, size);
    if (port - PM1_EVENT < sizeof(pm1_event) && size <= sizeof(pm1_event) - (port - PM1_EVENT))
        memcpy(data, pm1_event + port - PM1_EVENT, size);
    if (port == 0x71)
        data[0] = clock_read(clock_index);
    if (port == PM1_CONTROL)
        data[0] = 1, data[1] = 0; // SCI_EN
}

static void port_access(struct kvm_run *run, uint8_t *clock_index)
{
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    int in = run->io.direction == KVM_EXIT_IO_IN;

    for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
        if ((unsigned)run->io.port - COM1 < 8 && run->io.size == 1)
            uart_access(run->io.port - COM1, in, data);
        else if (in)
            port_in(run->io.port, run->io.size, data, *clock_index);
        else
            port_out(run->io.port, run->io.size, data, clock_index);
    }
}

// --- what the guest finds in memory ---

static uint8_t *file_read(const char *name, size_t *size)
{
    struct stat status;
    uint8_t *data;
    int fd = open(name, O_RDONLY);

    if (fd < 0 || fstat(fd, &status) < 0)
        die("%s: %m", name);
    *size = (size_t)status.st_size;
    data = mmap(NULL, *size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        die("%s: %m", name);
    close(fd);
    return data;
}

static void put(uint64_t address, const void *data, size_t size)
{
    if (address > ram_size || ram_size - address < size)
        die("memory is too small");
    memcpy(ram + address, data, size);
}

#define FIELD(type, table, offset) (*(type *)((table) + (offset)))

static uint64_t acpi_next = ACPI_TABLES + 64;

// A table's header and its body; where it lies.
static uint64_t acpi_table(const char *name, uint8_t revision, const void *body, uint32_t size)
{
    uint8_t *table = ram + acpi_next, sum = 0;
    uint64_t address = acpi_next;
    uint32_t length = 36 + size;

    memcpy(table, name, 4);
    FIELD(uint32_t, table, 4) = length;
    table[8] = revision;
    memcpy(table + 10, "NESTORTESTVMM   ", 16);
    memcpy(table + 36, body, size);
    for (uint32_t i = 0; i < length; i++)
        sum = (uint8_t)(sum + table[i]);
    table[9] = (uint8_t)-sum;
    acpi_next += (length + 15) & ~15u;
    return address;
}

static uint64_t acpi_madt(void)
{
    // The IOAPIC, IRQ 0 on its pin 2, and the SCI: level, active high.
    static const uint8_t rest[] = {1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0,   0,   0, 2, 10, 0,  0,
                                   2, 0,  0, 0, 0, 0, 2,    10,   0, SCI, SCI, 0, 0, 0,  13, 0};
    uint8_t body[8 + 8 * MAX_CPUS + sizeof(rest)] = {0, 0, 0xe0, 0xfe, 1};
    uint32_t size = 8;

    for (unsigned i = 0; i < cpu_count; i++, size += 8) {
        const uint8_t lapic[8] = {0, 8, (uint8_t)i, (uint8_t)i, 1};

        memcpy(body + size, lapic, 8);
    }
    memcpy(body + size, rest, sizeof(rest));
    return acpi_table("APIC", 3, body, size + (uint32_t)sizeof(rest));
}

// Name (_S5_, Package () {Zero, Zero, Zero, Zero})
static uint64_t acpi_fadt(void)
{
    static const uint8_t s5[] = {8, '_', 'S', '5', '_', 0x12, 6, 4, 0, 0, 0, 0};
    uint8_t body[244 - 36] = {0};

    FIELD(uint32_t, body, 40 - 36) = (uint32_t)acpi_table("DSDT", 2, s5, sizeof(s5));
    FIELD(uint16_t, body, 46 - 36) = SCI;
    FIELD(uint32_t, body, 56 - 36) = PM1_EVENT;
    FIELD(uint32_t, body, 64 - 36) = PM1_CONTROL;
    body[88 - 36] = 4;
    body[89 - 36] = 2;
    FIELD(uint32_t, body, 112 - 36) = 1 | 7 << 4; // WBINVD; no buttons, no waking by the RTC
    return acpi_table("FACP", 3, body, sizeof(body));
}

static void acpi_write(void)
{
    uint64_t tables[2] = {acpi_fadt(), acpi_madt()};
    uint8_t *rsdp = ram + ACPI_TABLES, sum = 0;

    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, "NESTOR", 6);
    rsdp[15] = 2;
    FIELD(uint32_t, rsdp, 20) = 36;
    FIELD(uint64_t, rsdp, 24) = acpi_table("XSDT", 1, tables, sizeof(tables));
    for (int i = 0; i < 20; i++)
        sum = (uint8_t)(sum + rsdp[i]);
    rsdp[8] = (uint8_t)-sum;
    sum = 0;
    for (int i = 0; i < 36; i++)
        sum = (uint8_t)(sum + rsdp[i]);
    rsdp[32] = (uint8_t)-sum;
}

static uint64_t initrd_put(const char *name, size_t *size)
{
    uint8_t *data = file_read(name, size);
    uint64_t address = (ram_size - *size) & ~0xfffull;

    put(address, data, *size);
    return address;
}

// --- kernels ---

static struct kvm_regs regs = {.rflags = 2};
static int long_mode;

static void e820_add(uint8_t *params, uint64_t start, uint64_t end)
{
    uint8_t *entry = params + 0x2d0 + 20 * params[0x1e8]++;

    FIELD(uint64_t, entry, 0) = start;
    FIELD(uint64_t, entry, 8) = end - start;
    FIELD(uint32_t, entry, 16) = 1;
}

// The first 4 GiB, by pages of 2 MiB, as the 64-bit entry wants.
static void identity_map(void)
{
    uint64_t *tables = (uint64_t *)(void *)(ram + PAGE_TABLES);

    tables[0] = (PAGE_TABLES + 0x1000) | 3;
    for (uint64_t i = 0; i < 4; i++)
        tables[512 + i] = (PAGE_TABLES + 0x2000 + i * 0x1000) | 3;
    for (uint64_t i = 0; i < 2048; i++)
        tables[1024 + i] = i << 21 | 0x83;
}

static void load_linux(const uint8_t *image, size_t size, const char *initrd)
{
    uint8_t *params = ram + BOOT_PARAMS;
    size_t setup = ((image[0x1f1] ? image[0x1f1] : 4) + 1u) * 512, initrd_size;

    memcpy(params + 0x1f1, image + 0x1f1, (size_t)0x202 + image[0x201] - 0x1f1);
    params[0x210] = 0xff;
    params[0x211] |= 1;
    FIELD(uint32_t, params, 0x228) = COMMAND_LINE;
    FIELD(uint64_t, params, 0x70) = ACPI_TABLES;
    if (initrd) {
        FIELD(uint32_t, params, 0x218) = (uint32_t)initrd_put(initrd, &initrd_size);
        FIELD(uint32_t, params, 0x21c) = (uint32_t)initrd_size;
    }
    e820_add(params, 0, LOW_END);
    e820_add(params, HIGH_START, ram_size);
    put(COMMAND_LINE, command_line, strlen(command_line) + 1);
    put(LOAD_ADDRESS, image + setup, size - setup);
    identity_map();
    regs.rip = LOAD_ADDRESS + 0x200;
    regs.rsi = BOOT_PARAMS;
    long_mode = 1;
}

static void load_multiboot(const uint8_t *image, const char *initrd)
{
    const Elf32_Ehdr *elf = (const void *)image;
    const Elf32_Phdr *ph = (const void *)(image + elf->e_phoff);
    uint32_t *info = (uint32_t *)(void *)(ram + MULTIBOOT_INFO), *module = info + 32;
    size_t size;

    for (int i = 0; i < elf->e_phnum; i++)
        if (ph[i].p_type == PT_LOAD)
            put(ph[i].p_paddr, image + ph[i].p_offset, ph[i].p_filesz);
    snprintf((char *)ram + COMMAND_LINE, 0x1000, "kernel %s", command_line);
    info[0] = 1 | 4 | 8;
    info[1] = LOW_END >> 10;
    info[2] = (uint32_t)((ram_size - HIGH_START) >> 10);
    info[4] = COMMAND_LINE;
    if (initrd) {
        module[0] = (uint32_t)initrd_put(initrd, &size);
        module[1] = module[0] + (uint32_t)size;
        info[5] = 1;
        info[6] = MULTIBOOT_INFO + 32 * 4;
    }
    regs.rip = elf->e_entry;
    regs.rax = 0x2badb002;
    regs.rbx = MULTIBOOT_INFO;
}

static void load(const char *kernel, const char *initrd)
{
    size_t size;
    uint8_t *image = file_read(kernel, &size);

    if (size > 0x10000 && !memcmp(image + 0x202, "HdrS", 4))
        load_linux(image, size, initrd);
    else if (size > 52 && !memcmp(image, ELFMAG, SELFMAG) && image[EI_CLASS] == ELFCLASS32)
        load_multiboot(image, initrd);
    else
        die("%s is neither a bzImage nor a 32-bit ELF file", kernel);
}

// --- vCPUs ---

static struct kvm_segment flat(uint16_t selector, int code)
{
    return (struct kvm_segment){
        .limit = ~0u,
        .selector = selector,
        .type = code ? 11 : 3,
        .present = 1,
        .s = 1,
        .g = 1,
        .db = !(code && long_mode),
        .l = (uint8_t)(code && long_mode),
    };
}

static void set_registers(int fd)
{
    static const uint64_t gdt[] = {0, 0, 0xaf9b000000ffff, 0xcf93000000ffff};
    struct kvm_sregs s;

    control(fd, KVM_GET_SREGS, &s, "KVM_GET_SREGS");
    put(GDT, gdt, sizeof(gdt));
    s.cs = flat(0x10, 1);
    s.ds = s.es = s.fs = s.gs = s.ss = flat(0x18, 0);
    s.gdt.base = GDT;
    s.gdt.limit = sizeof(gdt) - 1;
    s.cr0 = 0x11;
    if (long_mode) {
        s.cr0 |= 1u << 31;
        s.cr3 = PAGE_TABLES;
        s.cr4 = 0x20;
        s.efer = 0x500;
    }
    control(fd, KVM_SET_SREGS, &s, "KVM_SET_SREGS");
    control(fd, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

// What KVM supports, with this CPU's APIC ID, and the TSC-deadline timer where KVM has it.
static void set_cpuid(int fd, unsigned id)
{
    size_t size = sizeof(struct kvm_cpuid2) + MAX_CPUID * sizeof(struct kvm_cpuid_entry2);
    struct kvm_cpuid2 *cpuid = calloc(1, size);

    cpuid->nent = MAX_CPUID;
    control(kvm, KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID");
    for (unsigned i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *e = &cpuid->entries[i];

        if (e->function == 1) {
            e->ebx = (e->ebx & 0xff00) | id << 24 | cpu_count << 16;
            e->ecx |= 1u << 31; // there is a hypervisor: the guest looks for KVM's leaves and clock
            if (ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
                e->ecx |= 1 << 24;
        }
        if (e->function == 0xb || e->function == 0x1f)
            e->edx = id;
        if (e->function == 0x8000001e)
            e->eax = id;
    }
    control(fd, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2");
    free(cpuid);
}

// Fast strings on, as firmware leaves them and KVM does not. Linux 6.1 fails without them on a CPU
// with fast short REP MOV, as Ice Lake and later: it forgets ERMS but not FSRM, and its memmove of
// less than 32 bytes then has no end. (Intel SDM volume 4, IA32_MISC_ENABLE.)
static void set_misc_enable(int fd)
{
    union {
        struct kvm_msrs msrs;
        uint8_t size[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
    } list = {.msrs = {.nmsrs = 1}};

    list.msrs.entries[0].index = 0x1a0;
    control(fd, KVM_GET_MSRS, &list, "KVM_GET_MSRS");
    list.msrs.entries[0].data |= 1;
    control(fd, KVM_SET_MSRS, &list, "KVM_SET_MSRS");
}

static void report_error(int fd, const struct kvm_run *run)
{
    struct kvm_regs r = {0};

    ioctl(fd, KVM_GET_REGS, &r);
    die("exit %u, reason %#llx, at rip %#llx", run->exit_reason,
        run->exit_reason == KVM_EXIT_FAIL_ENTRY
            ? (unsigned long long)run->fail_entry.hardware_entry_failure_reason
            : run->internal.suberror,
        (unsigned long long)r.rip);
}

static void run_cpu(int fd, struct kvm_run *run)
{
    uint8_t clock_index = 0;

    for (;;) {
        if (ioctl(fd, KVM_RUN, NULL) < 0) {
            if (errno != EAGAIN && errno != EINTR) // the first is a start by INIT and SIPI
                die("KVM_RUN: %m");
            continue;
        }
        switch (run->exit_reason) {
        case KVM_EXIT_IO:
            port_access(run, &clock_index);
            break;
        case KVM_EXIT_MMIO:
            memset(run->mmio.data, 0xff, run->mmio.is_write ? 0 : 8);
            break;
        case KVM_EXIT_INTR:
            break;
        case KVM_EXIT_SHUTDOWN:
            fprintf(stderr, "\r\nvmm: triple fault\r\n");
            finish(STATUS_TRIPLE_FAULT);
            break;
        default:
            report_error(fd, run);
        }
    }
}

static int cpu_fd[MAX_CPUS];

static void *cpu_thread(void *argument)
{
    int fd = *(int *)argument, size = control(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "mmap size");
    struct kvm_run *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (run == MAP_FAILED)
        die("vCPU: %m");
    run_cpu(fd, run);
    return NULL;
}

// --- start ---

static void create_vm(void)
{
    struct kvm_userspace_memory_region region = {.memory_size = ram_size};
    struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
    uint64_t identity = 0xfffbc000;

    kvm = open("/dev/kvm", O_RDWR);
    if (kvm < 0)
        die("/dev/kvm: %m");
    vm = control(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
    ram =
        mmap(NULL, ram_size + 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (ram == MAP_FAILED)
        die("memory: %m");
    ram += -(uintptr_t)ram & (2 * MIB - 1);
    if (madvise(ram, ram_size, small_pages ? MADV_NOHUGEPAGE : MADV_HUGEPAGE))
        die("page size: %m");
    region.userspace_addr = (uintptr_t)ram;
    control(vm, KVM_SET_TSS_ADDR, (void *)0xfffbd000, "KVM_SET_TSS_ADDR");
    control(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity, "KVM_SET_IDENTITY_MAP_ADDR");
    control(vm, KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");
    control(vm, KVM_CREATE_IRQCHIP, NULL, "KVM_CREATE_IRQCHIP");
    control(vm, KVM_CREATE_PIT2, &pit, "KVM_CREATE_PIT2");
}

static void start(void)
{
    pthread_t thread;

    for (unsigned i = 0; i < cpu_count; i++) {
        cpu_fd[i] = control(vm, KVM_CREATE_VCPU, (void *)(uintptr_t)i, "KVM_CREATE_VCPU");
        set_cpuid(cpu_fd[i], i);
        set_misc_enable(cpu_fd[i]);
    }
    set_registers(cpu_fd[0]);
    pthread_create(&thread, NULL, read_input, NULL);
    for (unsigned i = 1; i < cpu_count; i++)
        pthread_create(&thread, NULL, cpu_thread, &cpu_fd[i]);
    cpu_thread(&cpu_fd[0]);
}

static void make_terminal_raw(void)
{
    struct termios raw;

    if (tcgetattr(0, &terminal))
        return;
    raw = terminal;
    cfmakeraw(&raw);
    raw.c_oflag |= OPOST; // \n of the guest is what a program's is
    terminal_changed = !tcsetattr(0, TCSANOW, &raw);
}

int main(int argc, char **argv)
{
    const char *initrd = NULL;
    int option;

    while ((option = getopt(argc, argv, "i:a:c:m:s")) >= 0) {
        if (option == 'i')
            initrd = optarg;
        else if (option == 'a')
            command_line = optarg;
        else if (option == 'c')
            cpu_count = (unsigned)atoi(optarg);
        else if (option == 's')
            small_pages = 1;
        else if (option == 'm')
            ram_size = strtoull(optarg, NULL, 10) * MIB;
        else
            die("usage: vmm [-i INITRD] [-a COMMAND-LINE] [-c CPUS] [-m MIB] [-s] KERNEL");
    }
    if (optind != argc - 1 || !cpu_count || cpu_count > MAX_CPUS || ram_size < 2 * MIB)
        die("one kernel, 1 to %d CPUs, 2 MiB or more", MAX_CPUS);
    create_vm();
    load(argv[optind], initrd);
    acpi_write();
    make_terminal_raw();
    start_tick = __builtin_ia32_rdtsc();
    start();
}
