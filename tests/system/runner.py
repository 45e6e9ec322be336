# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""What tests/run promises: its exit statuses, and a console that carries every byte."""

import os

from session import BUILD, Session, expect

TINY = os.path.join(BUILD, "system", "tiny.elf")
EVERY_BYTE = bytes(range(256))
TYPED = bytes(byte for byte in range(256) if byte != ord("q")) * 2 + b"qq"
LIMIT = 60
MACHINES = ("qemu-svm", "bochs-vmx")
BOCHS = {"qemu-svm": 1, "bochs-vmx": 2}


def tiny(machine, append, *more):
    return ["--machine", machine, "--kernel", TINY, "--mem", 64, "--append", append] + list(more)


def ends_with(status, arguments, limit=LIMIT, log_says=None):
    """A test: the run with these arguments ends with `status`."""
    def run(log):
        with Session(log, arguments, limit) as session:
            ended = session.finish()
            nestor = session.nestor.decode(errors="replace")
            expect(ended == status, "status %d, expected %d", ended, status)
            expect(log_says is None or log_says in nestor, "no %r in the log", log_says)
    return run


def bytes_pass(arguments):
    """A test: every byte value comes out of the guest, and goes in and comes back."""
    def run(log):
        with Session(log, arguments, LIMIT * 2) as session:
            while len(session.output.partition(b"\n")[2]) < len(EVERY_BYTE):
                expect(session.pump(0.5), "the run ended before it had printed every byte")
            expect(session.output.partition(b"\n")[2] == EVERY_BYTE, "not every byte came out")
            start = len(session.output)
            session.process.stdin.write(TYPED)
            session.process.stdin.flush()
            status = session.finish()
            expect(session.output[start:] == TYPED, "not every byte went in and came back")
            expect(status == 0, "status %d", status)
    return run


def usage(*arguments):
    return ends_with(127, list(arguments), 20)


def machine_tests(machine):
    device = "--test-device"
    yield "code-0", ends_with(0, tiny(machine, "code=0", device))
    yield "code-38", ends_with(38, tiny(machine, "code=38", device))
    yield "code-127", ends_with(120, tiny(machine, "code=127", device))
    yield "power-off", ends_with(0, tiny(machine, "off"))
    yield "module", ends_with(0, tiny(machine, "off", "--initrd", TINY))
    yield "triple-fault", ends_with(126, tiny(machine, "triple"), log_says="triple fault")
    yield "timeout", ends_with(124, tiny(machine, "hang"), 10)
    yield "bytes", bytes_pass(tiny(machine, "all echo"))


def tests():
    out = [("runner-%s-%s" % (machine, name), 3 * BOCHS[machine], function)
           for machine in MACHINES for name, function in machine_tests(machine)]
    out += [
        ("runner-bare-qemu-code", 3, ends_with(38, tiny("qemu-svm", "code=38", "--bare"))),
        ("runner-bare-qemu-bytes", 3, bytes_pass(tiny("qemu-svm", "all echo", "--bare"))),
        ("runner-bare-bochs-bytes", 6, bytes_pass(tiny("bochs-vmx", "all echo", "--bare"))),
        ("runner-no-such-machine", 1, usage("--machine", "none")),
        ("runner-no-such-kernel", 1, usage("--kernel", "/nonexistent")),
        ("runner-no-such-model", 1, usage("--machine", "qemu-svm", "--model", "none")),
        ("runner-bare-not-a-kernel", 1, usage("--bare", "--kernel", __file__)),
    ]
    return out
