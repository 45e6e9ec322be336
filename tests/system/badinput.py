# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""Wrong input of every kind. Each wrong thing must give a clear line in Nestor's log, the guests
that are right must start all the same, and Nestor must not panic.

A case's configuration holds any number of wrong guests and, mostly, a right one, "good", which has
the console and ends with code 7."""

import os
import re
import struct
import subprocess
import tempfile
import threading

from session import BUILD, ROOT, Session, expect

TINY = os.path.join(BUILD, "system", "tiny.elf")
VMLINUZ = os.path.join(BUILD, "kernel", "vmlinuz")
GOOD_CODE = 7
LIMIT = 60
HOST_MEM = 512

GOOD = ('good { memory = <32>; vcpus = <1>; kernel = "tiny"; command-line = "code=%d"; '
        "test-device; console; };" % GOOD_CODE)
HEAD = '/dts-v1/; / { compatible = "nestor,config-v1"; '


def tree(*nodes):
    return HEAD + "guests { %s }; };" % " ".join(nodes)


def guest(name, **properties):
    """A guest's node that is right but for what `properties` (with _ for -) says; None leaves the
    property out."""
    values = {"memory": "<32>", "vcpus": "<1>", "kernel": '"tiny"'}
    values.update({key.replace("_", "-"): value for key, value in properties.items()})
    return "%s { %s };" % (name, " ".join(
        "%s;" % key if value == "" else "%s = %s;" % (key, value)
        for key, value in values.items() if value is not None))


class Case:
    """One boot. `lines` are regular expressions that lines of the log must match; `files` are
    modules {name: bytes}; `status` is what may come of the run."""

    def __init__(self, name, source, lines, files=None, options=(), good=True, statuses=None):
        self.name = name
        self.source = source  # device tree source, or the bytes of a blob
        self.lines = lines
        self.files = files or {}
        self.options = list(options)
        self.good = good
        self.statuses = statuses or ((GOOD_CODE,) if good else (126,))

    def arguments(self, directory):
        config = os.path.join(directory, "config.dts")
        data = self.source
        if isinstance(data, str):
            data = data.encode()
        else:
            config = os.path.join(directory, "config.dtb")
        with open(config, "wb") as file:
            file.write(data)
        out = ["--machine", "qemu-svm", "--host-mem", HOST_MEM, "--config", config,
               "--module", "tiny=" + TINY]
        for name, content in self.files.items():
            path = os.path.join(directory, name)
            with open(path, "wb") as file:
                file.write(content() if callable(content) else content)
            out += ["--module", "%s=%s" % (name, path)]
        return out + self.options

    def __call__(self, log):
        with tempfile.TemporaryDirectory() as directory:
            with Session(log, self.arguments(directory), LIMIT) as session:
                status = session.finish()
                nestor = session.nestor.decode(errors="replace")
                output = session.output
        expect("PANIC" not in nestor, "Nestor panicked")
        for line in self.lines:
            expect(re.search(line, nestor, re.MULTILINE | re.IGNORECASE),
                   "no line of the log matches %r", line)
        expect((b"TINY: up" in output) == self.good,
               "the right guest did not start" if self.good else "a guest started")
        expect(status in self.statuses, "status %d, expected one of %s", status, self.statuses)


# --- the configuration ---

# property, value, what the line must say of it
WRONG_PROPERTIES = (
    ("memory", '"512"', 'found "512", expected'),
    ("memory", "<0>", "found <0>, expected"),
    ("memory", "<33>", "found <33>, expected"),
    ("memory", "<64 64>", "found <64 64>, expected"),
    ("memory", "[01 02]", "found 2 bytes, expected"),
    ("memory", "<0xffffffff>", "found <4294967295>, expected"),
    ("memory", None, "not found, expected"),
    ("vcpus", '"two"', 'found "two", expected'),
    ("vcpus", "<0>", "found <0>, expected"),
    ("vcpus", "<1 1>", "found <1 1>, expected"),
    ("vcpus", "<1000>", "found <1000>, expected"),
    ("vcpus", None, "not found, expected"),
    ("kernel", "<7>", "found .*, expected"),
    ("kernel", '"two words"', "found .*, expected"),
    ("kernel", '""', "found .*, expected"),
    ("kernel", '"a", "b"', "found .*, expected"),
    ("kernel", None, "not found, expected"),
    ("initrd", "<1 2>", "found .*, expected"),
    ("command-line", "<1 2 3>", "found .*, expected"),
    ("command-line", '"a", "b"', "found .*, expected"),
    ("modules", "<5>", "found .*, expected"),
    ("nested", '"yes"', 'found "yes", expected'),
    ("test-device", "<1>", "found .*, expected"),
    ("cpus", '"zero"', "found .*, expected"),
    ("cpus", "<0 0>", "found .*, expected"),
    ("colour", '"red"', "found .*, expected"),
)


def wrong_properties():
    nodes, lines = [], []
    for number, (name, value, says) in enumerate(WRONG_PROPERTIES):
        nodes.append(guest("bad%d" % number, **{name: value}))
        lines.append("/guests/bad%d: %s: %s" % (number, name, says.replace("[", "\\[")))
    return Case("properties", tree(*nodes, GOOD), lines)


def blob(source):
    return subprocess.run(["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", "-", "-"],
                          input=source.encode(), stdout=subprocess.PIPE, check=True).stdout


def lying_blob(offset, value):
    """A right blob with one big-endian word of its header overwritten (Devicetree Specification
    0.4, 5.2)."""
    data = bytearray(blob(tree(GOOD)))
    struct.pack_into(">I", data, offset, value)
    return bytes(data)


UNUSABLE = "configuration"
NO_GUEST = "no guest"


def config_cases():
    yield wrong_properties()
    yield Case("subnode", tree("bad { memory = <32>; vcpus = <1>; kernel = \"tiny\"; inner {}; };",
                               GOOD), ["/guests/bad: found a node inner"])
    yield Case("no-guests", tree(), [NO_GUEST], good=False)
    yield Case("no-guests-node", HEAD + "};", ["no node guests"], good=False)
    yield Case("all-wrong", tree(guest("bad", memory="<0>")), ["/guests/bad: memory", NO_GUEST],
               good=False)
    yield Case("compatible", '/dts-v1/; / { compatible = "other"; guests { %s }; };' % GOOD,
               ["compatible: .*expected"], good=False)
    yield Case("empty-blob", b"", [UNUSABLE], good=False)
    yield Case("not-a-blob", b"This is no device tree.\n" * 40, [UNUSABLE], good=False)
    yield Case("truncated-blob", blob(tree(GOOD))[:-60], [UNUSABLE], good=False)
    for name, offset in (("size", 4), ("struct", 8), ("strings", 12), ("struct-size", 36)):
        yield Case("lying-blob-" + name, lying_blob(offset, 0xFFFFFFF0), [UNUSABLE], good=False)


# --- CPUs and memory that are not there ---

def resource_cases():
    yield Case("too-much-memory", tree(guest("bad", memory="<1000000>"), GOOD),
               [r"/guests/bad\b.*memory"])
    yield Case("memory-of-two", tree(GOOD, guest("bad", memory="<480>")),
               [r"/guests/bad\b.*memory"])
    yield Case("too-many-cpus", tree(guest("bad", vcpus="<8>"), GOOD), [r"/guests/bad\b.*cpu"])
    yield Case("cpu-not-there", tree(guest("bad", cpus="<31>"), GOOD), [r"/guests/bad\b.*cpu"])
    yield Case("same-cpu-twice", tree(guest("first", cpus="<0>", command_line='"code=7"',
                                            test_device="", console=""),
                                      guest("second", cpus="<0>")), ["/guests/second: cpus: "])
    yield Case("more-guests-than-cpus", tree(GOOD, guest("second"), guest("third")),
               [r"/guests/second\b.*cpu", r"/guests/third\b.*cpu"])
    yield Case("cpus-fewer-than-vcpus", tree(guest("bad", vcpus="<2>", cpus="<0>"), GOOD),
               ["/guests/bad: cpus: "])


# --- guest files ---

def read(path):
    with open(path, "rb") as file:
        return file.read()


def first(path, share):
    """A function of the file's first bytes, for when the test runs: the file is built by then."""
    def make():
        data = read(path)
        return data[:share(len(data))]
    return make


def patched(path, patch, size=None):
    """The same of its first `size` bytes with (offset, struct format, value) written over."""
    def make():
        data = bytearray(read(path))
        struct.pack_into(patch[1], data, patch[0], patch[2])
        return bytes(data[:size])
    return make


# Of the ELF32 header and of the first program header behind it (ELF specification, 1-3 and 2-2).
E_TYPE, E_MACHINE, E_ENTRY, E_PHOFF, E_PHENTSIZE, E_PHNUM = 16, 18, 24, 28, 42, 44
P_OFFSET, P_PADDR, P_FILESZ, P_MEMSZ = 52 + 4, 52 + 12, 52 + 16, 52 + 20

LYING_ELF = {
    "class": (4, "<B", 2),
    "type": (E_TYPE, "<H", 1),
    "machine": (E_MACHINE, "<H", 40),
    "entry": (E_ENTRY, "<I", 0xFFFFFFF0),
    "phoff": (E_PHOFF, "<I", 0xFFFFFFE0),
    "phentsize": (E_PHENTSIZE, "<H", 1),
    "phnum": (E_PHNUM, "<H", 0xFFFF),
    "no-phdrs": (E_PHNUM, "<H", 0),
    "offset": (P_OFFSET, "<I", 0xFFFFF000),
    "paddr-beyond": (P_PADDR, "<I", 0x40000000),
    "paddr-wraps": (P_PADDR, "<I", 0xFFFFF800),
    "filesz": (P_FILESZ, "<I", 0x7FFFFFFF),
    "memsz-less": (P_MEMSZ, "<I", 1),
    "memsz-huge": (P_MEMSZ, "<I", 0xFFFFFFFF),
}

# Of the setup header (Documentation/arch/x86/boot.rst).
SETUP_SECTS, SYSSIZE, HDRS, VERSION, LOADFLAGS = 0x1F1, 0x1F4, 0x202, 0x206, 0x211
INITRD_ADDR_MAX, XLOADFLAGS, CMDLINE_SIZE, PREF_ADDRESS, INIT_SIZE = 0x22C, 0x236, 0x238, 0x258, 0x260

LYING_SETUP = {
    "setup-sects": (SETUP_SECTS, "<B", 255, 4096),
    "syssize": (SYSSIZE, "<I", 0x0FFFFFFF, 65536),
    "version": (VERSION, "<H", 0x0100, 65536),
    "not-64-bit": (XLOADFLAGS, "<H", 0, 65536),
    "init-size": (INIT_SIZE, "<I", 0xFFFFF000, 65536),
    "pref-address": (PREF_ADDRESS, "<Q", 0xFFFFFFFFFFE00000, 65536),
}


def file_case(name, files):
    """A boot for each of `files` {name: bytes, or a function of them}: a kernel that can't start."""
    return [Case("%s-%s" % (name, key), tree(guest("bad", kernel='"%s"' % key), GOOD),
                 ["error: guest bad: %s\\b" % key], {key: content},
                 options=["--host-cpus", 2], statuses=(GOOD_CODE, 126))
            for key, content in files.items()]


def file_cases():
    two = ["--host-cpus", 2]
    yield Case("missing-kernel", tree(guest("bad", kernel='"nothere"'), GOOD),
               [r"bad\b.*nothere"], options=two)
    yield Case("missing-initrd", tree(guest("bad", initrd='"nothere"'), GOOD),
               [r"bad\b.*nothere"], options=two)
    yield Case("missing-module", tree(guest("bad", modules='"nothere"'), GOOD),
               [r"bad\b.*nothere"], options=two)
    files = {"empty": b"", "junk": bytes(range(256)) * 64, "zeros": bytes(65536),
             "truncated-header": first(VMLINUZ, lambda size: 0x210),
             "truncated-kernel": first(VMLINUZ, lambda size: size // 2),
             "one-byte": b"\x7f"}
    yield from file_case("kernel", files)
    yield from file_case("setup", {
        key: patched(VMLINUZ, patch, patch[3] if key in ("setup-sects", "syssize") else None)
        for key, patch in LYING_SETUP.items()})
    yield from file_case("elf", {key: patched(TINY, patch) for key, patch in LYING_ELF.items()})


# --- hypervisor options ---

def option_cases():
    for name, option, line in (("unknown", "frobnicate=7", "frobnicate"),
                               ("bad-value", "loglevel=purple", "purple"),
                               ("bad-switch", "mitigations=purple", "expected auto or off"),
                               ("long", "x" * 3000, "xxxx"), ("equals", "=", "option")):
        yield Case("option-" + name, tree(GOOD), [line], options=["--option", option])


# --- ACPI tables ---

LENGTH, CHECKSUM, RSDT_ENTRIES, MADT_ENTRIES = 4, 9, 36, 44

# name, table, {offset: byte}, whether the checksum is made right again, what the log must say
SPOILT_TABLES = (
    ("madt-checksum", "APIC", {CHECKSUM: 0x5A}, False, r"\(APIC\).* checksum"),
    ("madt-length-huge", "APIC", {LENGTH + 3: 0x7F}, True, "%x.* bytes"),
    ("madt-length-small", "APIC", {LENGTH: 8}, True, "%x.* bytes"),
    ("madt-entry-zero", "APIC", {MADT_ENTRIES + 1: 0}, True, "MADT.* entry"),
    ("madt-entry-long", "APIC", {MADT_ENTRIES + 1: 0xFF}, True, "MADT.* entry"),
    ("fadt-checksum", "FACP", {CHECKSUM: 0x5A}, False, r"\(FACP\).* checksum"),
    ("fadt-length", "FACP", {LENGTH: 40}, True, "%x.*FACP"),
    ("rsdt-checksum", "RSDT", {CHECKSUM: 0x5A}, False, r"\(RSDT\).* checksum"),
    ("rsdt-length-huge", "RSDT", {LENGTH + 3: 0x7F}, True, "%x.* bytes"),
    ("rsdt-length-small", "RSDT", {LENGTH: 35}, True, "%x.* bytes"),
    ("rsdt-entry", "RSDT", {RSDT_ENTRIES + 3: 0xFF}, True, "the table at 0xff"),
)
MACHINE = ["--machine", "qemu-svm", "--host-mem", HOST_MEM, "--host-cpus", 2]


class Firmware:
    """The tables that the emulator's firmware makes: {name: (address, bytes)}, read out of the
    machine's memory. They are the same in every boot with as much memory and as many CPUs."""

    def __init__(self):
        self.lock = threading.Lock()
        self.tables = None

    def get(self, log):
        with self.lock:
            if self.tables is None:
                self.tables = self.find(self.memory(log))
            return self.tables

    @staticmethod
    def memory(log):
        with tempfile.NamedTemporaryFile(dir=BUILD) as file:
            arguments = ["--bare", "--kernel", TINY, "--append", "code=0"]
            for argument in ("-object", "memory-backend-file,id=ram,share=on,size=%dM,mem-path=%s" %
                             (HOST_MEM, file.name), "-machine", "memory-backend=ram"):
                arguments.append("--emulator-option=" + argument)
            with Session(log, MACHINE + arguments, LIMIT) as session:
                expect(session.finish() == 0, "the machine did not start")
            with open(file.name, "rb") as ram:
                return ram.read()

    @staticmethod
    def find(memory):
        """By ACPI 6.5, 5.2.5: RSDP on a 16-byte boundary from 0xe0000, then the RSDT's entries."""
        def table(address):
            size = struct.unpack_from("<I", memory, address + LENGTH)[0]
            return address, memory[address:address + size]

        rsdp = next(address for address in range(0xE0000, 0x100000, 16)
                    if memory[address:address + 8] == b"RSD PTR "
                    and sum(memory[address:address + 20]) & 0xFF == 0)
        rsdt = table(struct.unpack_from("<I", memory, rsdp + 16)[0])
        found = [rsdt] + [table(entry[0]) for entry in struct.iter_unpack("<I", rsdt[1][36:])]
        return {data[:4].decode(): (address, data) for address, data in found}


FIRMWARE = Firmware()


def acpi(table, patches, fix, says):
    """A test: GRUB spoils a table before Nestor reads it."""
    def run(log):
        tables = FIRMWARE.get(log)
        expect(table in tables, "the firmware has no table %s", table)
        address, data = tables[table]
        writes = dict(patches)
        if fix:
            writes[CHECKSUM] = (data[CHECKSUM] - sum(
                value - data[offset] for offset, value in patches.items())) & 0xFF
        commands = []
        for offset, value in writes.items():
            commands += ["--grub-command", "write_byte 0x%x 0x%x" % (address + offset, value)]
        Case("", tree(GOOD), ["error: ACPI: .*" + says.replace("%x", "%x" % address)],
             options=commands + ["--host-cpus", 2])(log)
    return run


# --- dtc's own errors ---

def dtc_line(log):
    """A syntax error in a configuration stops tests/run and the build with dtc's file and line."""
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "bad.dts")
        with open(path, "w", encoding="ascii") as file:
            file.write(HEAD + "\n\nguests { bad { memory = ; }; };\n};\n")
        with Session(log, ["--config", path], 20) as session:
            status = session.finish()
            text = session.nestor.decode(errors="replace")
        expect(status == 127, "tests/run: status %d", status)
        expect(re.search(r"bad\.dts:3", text), "tests/run: no line number of dtc's")
        target = os.path.join(directory, "build", "builtin.dtb")
        done = subprocess.run(["make", "-C", ROOT, "BUILD=" + os.path.dirname(target),
                               "CONFIG=" + path, target], stdin=subprocess.DEVNULL, timeout=60,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        log.write(done.stdout)
        expect(done.returncode != 0, "make went on with a wrong CONFIG")
        expect(b"bad.dts:3" in done.stdout, "make: no line number of dtc's")


def tests():
    cases = [*config_cases(), *resource_cases(), *file_cases(), *option_cases()]
    out = [("bad-" + case.name, 4, case) for case in cases]
    out += [("bad-acpi-" + name, 8, acpi(*rest)) for name, *rest in SPOILT_TABLES]
    return out + [("bad-dts-syntax", 1, dtc_line)]
