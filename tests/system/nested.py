# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""Real hypervisors as Nestor's guests (L1), whose own guests (L2) boot and power off: Linux with
KVM from Debian's kernel package (tests/l1), and Nestor itself."""

import os
import re
import sys
import tempfile

import linux
from session import BUILD, ROOT, Session, expect

sys.path.insert(0, os.path.join(ROOT, "tests", "lib"))

import image  # noqa: E402

IMAGE = os.path.join(BUILD, "l1", "initramfs.cpio.gz")
QEMU_IMAGE = os.path.join(BUILD, "l1", "qemu.cpio.gz")
TINY = os.path.join(BUILD, "system", "tiny.elf")
NESTOR = os.path.join(BUILD, "nestor")
L1_MEM = 768  # with 512 or less Linux has no large pages to give
SCALE = {"qemu-svm": 1, "bochs-vmx": 5}
# Devices four times as slow as elsewhere: an L2's timer tick costs its hypervisor some 30 exits.
SLOW_DEVICES = {"qemu-svm": [], "bochs-vmx": ["--emulator-option", "cpu: ips=200000000"]}
# Said by an L1 that has no fault of its own: KVM with an emulated CPU below.
L1_KNOWN_NEWS = (*linux.KNOWN_NEWS, "TSC_DEADLINE disabled due to Errata")


def l1(machine, cpus, environment, initrd=IMAGE):
    """tests/run's options for a Linux that does tests/l1/start with this environment."""
    words = ["console=ttyS0", "quiet", "run=/l1/start"]
    words += ["%s=%s" % item for item in environment.items()]
    return ["--machine", machine, "--nested", "--initrd", initrd, "--mem", L1_MEM, "--kernel",
            os.path.join(BUILD, "kernel", "vmlinuz"), "--cpus", cpus, "--append",
            " ".join(words)] + SLOW_DEVICES[machine]


def ends_well(session):
    session.wait(rb"L1: vmm ended with status 0\n", 60)
    status = session.finish()
    expect(status == 0, "after L1's power-off: status %d", status)
    for line in session.output.decode(errors="replace").splitlines():
        expect(not linux.BAD_NEWS.search(line) or any(news in line for news in L1_KNOWN_NEWS),
               "%s", line)


def kvm(machine, parameter, cpus, limit, l2_cpus=1, **more):
    """A Linux in KVM in Linux, to its shell, and some commands typed there."""
    def run(log):
        options = l1(machine, cpus, {"kvm": parameter, "l2": "linux", "l2_cpus": l2_cpus,
                                     "l2_mem": 128, "l2_append": "console=ttyS0,quiet", **more})
        with Session(log, options, limit) as session:
            session.wait(rb"L1: kvm-\w+, nested paging [YN]\n", limit)
            session.wait(rb"guest: up, (\d+) CPU", limit)
            session.wait(linux.PROMPT, limit)
            for command, answer in (("nproc", str(l2_cpus)), ("echo $((6 * 7))", "42")):
                found = session.command(command, 60 * SCALE[machine]).strip()
                expect(found == answer, "%s: %r", command, found)
            session.command("for i in $(seq %d); do sleep 0.1 & done; wait" % (l2_cpus * 3), 120)
            session.type("poweroff\n")
            ends_well(session)
    return run


def kvm_tiny(machine, parameter, limit):
    """The smallest guest in KVM in Linux."""
    def run(log):
        options = l1(machine, 1, {"kvm": parameter, "l2": "tiny", "l2_append": "all"})
        with Session(log, options, limit) as session:
            session.wait(rb"TINY: up, modules 0, command line kernel all\n", limit)
            ends_well(session)
    return run


def kvm_qemu(machine, parameter, cpus, limit):
    """Debian's QEMU, -M microvm, with a Linux in it that ends by a reset, which QEMU exits on."""
    def run(log):
        options = l1(machine, cpus, {"kvm": parameter, "l2": "linux", "l2_cpus": cpus,
                                     "vmm": "qemu", "l2_append": "console=ttyS0,quiet"}, QEMU_IMAGE)
        with Session(log, options, limit) as session:
            session.wait(rb"guest: up, %d CPU" % cpus, limit)
            session.wait(linux.PROMPT, limit)
            expect(session.command("echo $((6 * 7))", 60).strip() == "42", "no sums")
            session.type("reboot\n")
            ends_well(session)
    return run


# --- Nestor in Nestor ---

INNER_LINUX = ({"kernel": os.path.join(BUILD, "kernel", "vmlinuz"),
                "initrd": os.path.join(BUILD, "initramfs.cpio.gz")}, 128, "console=ttyS0 quiet")
INNER_TINY = ({"kernel": TINY}, 32, "all")
NESTOR_NEEDS = 64  # MiB beside its guest's memory and its modules


def nested_configs(depth, inner):
    """The configurations of `depth` Nestors in one another, the outermost first: the last one runs
    `inner`, each of the others the next one. Files are modules by their names all the way."""
    files, memory, append = inner
    names = list(files)
    properties = ['kernel = "kernel";', 'command-line = "%s";' % append]
    if "initrd" in files:
        properties.append('initrd = "initrd";')
    texts = []
    for level in range(depth - 1, -1, -1):
        texts.insert(0, '/dts-v1/;\n/ { compatible = "nestor,config-v1"; guests { level%d { '
                        'memory = <%d>; vcpus = <1>; %s }; }; };\n' %
                     (level + 1, memory, " ".join(properties)))
        names = names + ["config%d" % level]
        memory += NESTOR_NEEDS
        properties = ['kernel = "nestor"; nested;',
                      "modules = %s;" % ", ".join('"%s"' % name for name in names),
                      'command-line = "config=config%d console=com1";' % level]
        if level == depth - 1:
            names = names + ["nestor"]
    return texts, memory


def nestors(folder, machine, depth, inner):
    """tests/run's options for that."""
    texts, memory = nested_configs(depth, inner)
    modules = dict(inner[0], nestor=NESTOR)
    for level, text in enumerate(texts[1:], 1):
        modules["config%d" % level] = path = os.path.join(folder, "config%d" % level)
        with open(path, "wb") as file:
            file.write(image.compile_dts(None, text.encode()))
    outer = os.path.join(folder, "config0.dts")
    with open(outer, "w", encoding="ascii") as file:
        file.write(texts[0])
    options = ["--machine", machine, "--config", outer, "--host-cpus", 1, "--host-mem", memory]
    options += SLOW_DEVICES[machine]
    for item in modules.items():
        options += ["--module", "%s=%s" % item]
    return options


def nestor(machine, depth, inner, limit):
    """Nestors in one another; the inmost one's guest says what it says to the outermost's COM1,
    which all their logs share."""
    def run(log):
        with tempfile.TemporaryDirectory(prefix="nestor-nested-") as folder, \
                Session(log, nestors(folder, machine, depth, inner), limit) as session:
            if inner is INNER_TINY:
                session.wait(rb"TINY: up, modules 0, command line kernel all\n", limit)
            else:
                session.wait(rb"guest: up, 1 CPU", limit)
                session.wait(linux.PROMPT, limit)
                expect(session.command("echo $((6 * 7))").strip() == "42", "no sums")
                session.type("poweroff\n")
            status = session.finish()
            expect(status == 0, "after the power-off: status %d", status)
            offs = len(re.findall(rb"machine off, status 0", session.output))
            expect(offs == depth - 1, "%d of %d inner Nestors ended well", offs, depth - 1)
    return run


# name, seconds allowed, function
TESTS = [
    ("nested-kvm-svm-shadow-tiny", 60, kvm_tiny("qemu-svm", "npt=0", 60)),
    ("nested-kvm-svm-npt-1cpu", 120, kvm("qemu-svm", "npt=1", 1, 120)),
    ("nested-kvm-svm-qemu", 120, kvm_qemu("qemu-svm", "npt=1", 1, 120)),
    ("nested-nestor-svm-linux", 120, nestor("qemu-svm", 2, INNER_LINUX, 120)),
    ("nested-nestor-svm-thrice", 120, nestor("qemu-svm", 3, INNER_TINY, 120)),
    ("nested-kvm-vmx-ept-tiny", 150, kvm_tiny("bochs-vmx", "ept=1", 150)),
    ("nested-nestor-vmx-thrice", 120, nestor("bochs-vmx", 3, INNER_TINY, 120)),
]

# More of them, for make check-all.
MORE_TESTS = [
    ("nested-kvm-svm-npt-small", 200, kvm("qemu-svm", "npt=1", 1, 200, l2_pages="-s")),
    ("nested-kvm-svm-npt-2cpu", 200, kvm("qemu-svm", "npt=1", 2, 200, 2)),
    ("nested-kvm-svm-shadow-1cpu", 200, kvm("qemu-svm", "npt=0", 1, 200)),
    ("nested-kvm-svm-shadow-2cpu", 300, kvm("qemu-svm", "npt=0", 2, 300, 2)),
    ("nested-kvm-svm-qemu-2cpu", 200, kvm_qemu("qemu-svm", "npt=1", 2, 200)),
    ("nested-kvm-vmx-qemu", 900, kvm_qemu("bochs-vmx", "ept=1", 1, 900)),
    ("nested-kvm-vmx-shadow-tiny", 150, kvm_tiny("bochs-vmx", "ept=0", 150)),
    ("nested-kvm-vmx-ept-1cpu", 600, kvm("bochs-vmx", "ept=1", 1, 600)),
    ("nested-kvm-vmx-ept-2cpu", 1200, kvm("bochs-vmx", "ept=1", 2, 1200, 2)),
    ("nested-kvm-vmx-shadow-1cpu", 900, kvm("bochs-vmx", "ept=0", 1, 900)),
    ("nested-nestor-vmx-linux", 600, nestor("bochs-vmx", 2, INNER_LINUX, 600)),
]


def tests(level):
    return TESTS + (MORE_TESTS if level == "all" else [])
