# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""The life of guests: one is killed while another runs on, one resets over and over; and all that
they took is given back."""

import os
import re
import tempfile

from session import BUILD, Session, expect

TINY = os.path.join(BUILD, "system", "tiny.elf")
RANDOM = {"qemu-svm": 100000, "bochs-vmx": 50000}  # accesses
HOSTILE = {"qemu-svm": ("hostile_svm", 600), "bochs-vmx": ("hostile_vmx", 200)}  # L1, entries
LOG_LIMIT = 64 << 10
MACHINES = {"qemu-svm": 60, "bochs-vmx": 180}
KILLED = 126
RESETS = 20
TREE = '/dts-v1/; / { compatible = "nestor,config-v1"; guests { %s }; };'
GUEST = '%s { memory = <%d>; vcpus = <%d>; kernel = "%s"; command-line = "%s"; %s };'
MEMORY = re.compile(r"memory (before guests|after a guest): (\d+) KiB in use by Nestor, (\d+) KiB")


def start(log, directory, machine, guests, option, cpus, image="random_access", more=0):
    config = os.path.join(directory, "config.dts")
    with open(config, "w") as file:
        file.write(TREE % " ".join(GUEST % guest for guest in guests))
    return Session(log, ["--machine", machine, "--host-cpus", cpus, "--host-mem", 256,
                         "--config", config, "--module", "tiny=" + TINY, "--module",
                         "random=" + os.path.join(BUILD, "guests", image + ".elf"), "--option", option],
                   MACHINES[machine] + more)


def log_of(session):
    return session.nestor.decode(errors="replace")


def wait_log(session, pattern):
    while not re.search(pattern, log_of(session)):
        expect(session.pump(0.5), "the run ended before its log said %r", pattern)


def check_memory(text, guests):
    """What is in use, and what there is in all, is at the end as it was before the guests."""
    lines = [match.groups() for match in MEMORY.finditer(text)]
    expect(len(lines) == 1 + guests, "%d lines about memory, not %d", len(lines), 1 + guests)
    expect(lines[0][1:] == lines[-1][1:], "memory: %s before the guests, %s after them",
           lines[0], lines[-1])


def kill(machine, word):
    """The guest `victim` is killed; `stays` does not notice."""
    def run(log):
        guests = [("victim", 32, 2, "tiny", word, ""), ("stays", 32, 1, "tiny", "echo", "console;")]
        with tempfile.TemporaryDirectory() as directory, \
                start(log, directory, machine, guests, "stop-guest=victim,2", 3) as session:
            session.wait(rb"TINY: up")
            wait_log(session, "guest victim: ended, status %d" % KILLED)
            wait_log(session, "memory after a guest")
            session.type("still here qq")
            session.wait(rb"still here qq")
            status = session.finish()
            text = log_of(session)
        expect(status == KILLED, "status %d, expected the killed guest's", status)
        expect("guest stays: powers off" in text, "the other guest did not end by itself")
        check_memory(text, 2)
    return run


def resets(machine):
    """A guest of two vCPUs that resets for ever until it is killed."""
    def run(log):
        with tempfile.TemporaryDirectory() as directory, \
                start(log, directory, machine, [("round", 16, 2, "tiny", "reset", "")],
                      "stop-guest=round,%d" % (12 if machine == "qemu-svm" else 4), 2) as session:
            status = session.finish()
            text = log_of(session)
        count = text.count("guest round: resets")
        expect(status == KILLED, "status %d", status)
        expect(count >= RESETS, "only %d resets", count)
        check_memory(text, 1)
    return run


def neighbour(machine, image, words, properties, vcpus, seconds=0, ends=(0,)):
    """One guest, `random`, does its worst; the other answers all the while."""
    def run(log):
        guests = [("random", 64, vcpus, "random", words, properties),
                  ("stays", 32, 1, "tiny", "echo", "console;")]
        with tempfile.TemporaryDirectory() as directory, \
                start(log, directory, machine, guests, "mitigations=auto", vcpus + 1,
                      image, seconds) as session:
            session.wait(rb"TINY: up")
            answers = 0
            while "guest random: ended" not in log_of(session):
                answers += 1
                session.type("answer %d\n" % answers)
                session.wait(rb"answer %d" % answers, 20)
            session.type("still here qq")
            session.wait(rb"still here qq")
            status = session.finish()
            text = log_of(session)
        expect(answers > 2, "the random guest was done after %d answers", answers)
        expect(status in ends, "status %d", status)
        expect("guest stays: powers off" in text, "the other guest did not end by itself")
        expect("PANIC" not in text, "Nestor panicked")
        expect(len(text) < LOG_LIMIT, "%d bytes of log", len(text))
        check_memory(text, 2)
    return run


def random_neighbour(machine):
    return neighbour(machine, "random_access", "count=%d seed=3" % RANDOM[machine],
                     "test-device; pci-test-device;", 1)


def hostile_neighbour(machine, words, vcpus):
    """With a second CPU that writes to what the first one's L2 is made of, L1 may well be stopped."""
    image, count = HOSTILE[machine]
    return neighbour(machine, image, "count=%d seed=3 %s" % (count, words), "test-device; nested;",
                     vcpus, 60, (0, KILLED) if vcpus > 1 else (0,))


def tests(level):
    out = []
    for machine, seconds in MACHINES.items():
        out += [("life-kill-%s-%s" % (word, machine), seconds / 8, kill(machine, word))
                for word in ("hang", "spin")]
        out.append(("life-random-" + machine, seconds / 6, random_neighbour(machine)))
        out.append(("life-hostile-" + machine, seconds / 4, hostile_neighbour(machine, "", 1)))
        if level == "all":
            out.append(("life-hostile-race-" + machine, seconds / 4,
                        hostile_neighbour(machine, "race", 2)))
        out.append(("life-resets-" + machine, seconds / 4, resets(machine)))
    return out
