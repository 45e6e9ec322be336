# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""Linux, from GRUB to its shell and back to power-off, with commands typed on its console."""

import re

from session import Session, expect

PROMPT = rb"guest:[^\n]*# "
BAD_NEWS = re.compile(r"BUG|WARNING|Call Trace|Oops|[Ss]oft lockup|rcu:.*stall")
# True of Bochs' Skylake, which has no SPEC_CTRL, and of QEMU's EPYC, which has no newer microcode:
# said with and without Nestor.
KNOWN_NEWS = ("RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable",
              "Speculative Return Stack Overflow: WARNING")

QEMU = ["--machine", "qemu-svm"]
BOCHS = ["--machine", "bochs-vmx"]

# name, seconds allowed, tests/run's options; the CPU count is --cpus. The Bochs is Debian's 2.7, or
# the one that BOCHS in the environment names.
RUNS = [
    ("linux-svm-%s-%dcpu-%s" % (firmware, cpus, paging), 180,
     QEMU + ["--firmware", firmware, "--cpus", cpus, "--model", model])
    for firmware in ("bios", "uefi") for cpus in (1, 2)
    for paging, model in (("la57", "max"), ("la48", "max,-la57"))
] + [
    ("linux-vmx-bios-%dcpu" % cpus, 300 * cpus, BOCHS + ["--cpus", cpus]) for cpus in (1, 2)
]

# More of them, for make check-all.
MORE_RUNS = [
    ("linux-svm-4cpu", 300, QEMU + ["--cpus", 4]),
    ("linux-svm-epyc", 180, QEMU + ["--cpus", 2, "--model", "EPYC"]),
    ("linux-svm-la57-off", 180, QEMU + ["--cpus", 2, "--option", "la57=off"]),
    ("linux-svm-mitigations-off", 180, QEMU + ["--cpus", 1, "--option", "mitigations=off"]),
    ("linux-svm-icount", 300, QEMU + ["--cpus", 1, "--icount"]),
    ("linux-svm-of-4-cpus", 180, QEMU + ["--cpus", 1, "--host-cpus", 4]),
    ("linux-vmx-tigerlake", 400, BOCHS + ["--cpus", 1, "--model", "tigerlake"]),
    ("linux-vmx-arrandale", 400, BOCHS + ["--cpus", 1, "--model", "corei5_arrandale_m520"]),
    ("linux-vmx-4cpu", 1500, BOCHS + ["--cpus", 4]),
]


def interrupts(text):
    """The counts per CPU of the local timer's line, and the serial port's sum, in
    /proc/interrupts."""
    timer = re.search(r"LOC:((?:\s+\d+)+)", text)
    serial = re.search(r"^\s*4:((?:\s+\d+)+).*ttyS0", text, re.MULTILINE)
    expect(timer and serial, "/proc/interrupts lacks LOC or ttyS0:\n%s", text)
    return [int(n) for n in timer.group(1).split()], sum(map(int, serial.group(1).split()))


def check_time(session):
    """The clock moves. A second is long on Bochs with two idle CPUs: 40 of ours."""
    session.command("s=$(date +%s); until [ $(date +%s) -gt $s ]; do sleep 0.05; done", 200)
    before, after = (int(session.command(command, 60).split()[0].replace(".", ""))  # in hundredths
                     for command in ("cat /proc/uptime", "sleep 0.1; cat /proc/uptime"))
    expect(10 <= after - before < 3000, "uptime went from %d to %d hundredths around a sleep of 0.1 seconds",
           before, after)


def check_interrupts(session, cpus):
    timer, serial = interrupts(session.command("cat /proc/interrupts"))
    expect(len(timer) == cpus, "/proc/interrupts has %d columns, not %d", len(timer), cpus)
    # Something to do on every CPU, so that a tickless one has a reason for a timer.
    session.command("for i in $(seq %d); do sleep 0.1 & done; wait" % (cpus * 3), 120)
    timer2, serial2 = interrupts(session.command("cat /proc/interrupts"))
    expect(sum(timer2) > sum(timer), "the local timers stand still: %s, %s", timer, timer2)
    expect(all(timer2), "a CPU has no timer interrupts: %s", timer2)
    expect(serial2 > serial, "the serial port's interrupts stand still: %d, %d", serial, serial2)


def check_linux(session, cpus, mem, seconds):
    """What every booted Linux is asked, up to its power-off."""
    session.wait(rb"guest: up, (\d+) CPU", seconds)
    session.wait(PROMPT, 120)
    session.command("dmesg -n 1")  # no kernel messages in between; dmesg has them all
    expect(session.command("nproc").strip() == str(cpus), "nproc is not %d", cpus)
    processors = session.command("grep -c ^processor /proc/cpuinfo").strip()
    expect(processors == str(cpus), "/proc/cpuinfo has %s processors, not %d", processors, cpus)
    total = int(re.search(r"MemTotal:\s+(\d+)", session.command("grep MemTotal /proc/meminfo"))[1])
    expect(mem * 0.8 < total / 1024 <= mem, "MemTotal is %d kB of %d MiB", total, mem)
    check_time(session)
    check_interrupts(session, cpus)
    news = [line for line in session.command("dmesg", 120).splitlines()
            if BAD_NEWS.search(line) and not any(known in line for known in KNOWN_NEWS)]
    expect(not news, "dmesg: %s", "; ".join(news))
    session.type("poweroff\n")
    status = session.finish()
    expect(status == 0, "after poweroff: status %d", status)


def linux(seconds, options):
    cpus = options[options.index("--cpus") + 1]

    def run(log):
        with Session(log, options + ["--mem", 512], seconds) as session:
            check_linux(session, cpus, 512, seconds)
    return run


def tests(level):
    """(name, seconds, function of a log) of each test."""
    return [(name, seconds, linux(seconds, options))
            for name, seconds, options in RUNS + (MORE_RUNS if level == "all" else [])]
