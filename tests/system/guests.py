# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""The small guests of tests/guests, each run on the machines that tests/guests/tests.cfg names.

tests.cfg has a section for each test. Keys, all optional: image (default: the section's name),
cpus (1), mem (64), machines (qemu-svm, bochs-vmx and both of them with -bare appended), append,
options (more of tests/run's options), status (0), status-bare (0), timeout (60), log (a regular
expression that Nestor's log must match), level (check; "all" runs only in make check-all)."""

import configparser
import os
import re
import shlex

from session import BUILD, ROOT, Failure, Session, expect

CONFIG = os.path.join(ROOT, "tests", "guests", "tests.cfg")
IMAGES = os.path.join(BUILD, "guests")
DEFAULTS = {
    "cpus": "1", "mem": "64", "status": "0", "status-bare": "0", "timeout": "60", "append": "",
    "options": "", "log": "", "level": "check",
    "machines": "qemu-svm bochs-vmx qemu-svm-bare bochs-vmx-bare",
}
SUMMARY = re.compile(rb"^SUMMARY: (\d+) tests, (\d+) unexpected failures", re.MULTILINE)


def arguments(section, machine):
    bare = machine.endswith("-bare")
    out = ["--machine", machine[:-5] if bare else machine, "--kernel",
           os.path.join(IMAGES, section.get("image", section.name) + ".elf"),
           "--cpus", section["cpus"], "--mem", section["mem"]] + shlex.split(section["options"])
    if section["append"]:
        out += ["--append", section["append"]]
    return out + (["--bare"] if bare else [])


def results(output):
    """(passed, failed) by the guest's own lines, which its summary must agree with."""
    lines = output.replace(b"\r", b"").split(b"\n")
    passed = sum(line.startswith(b"PASS:") for line in lines)
    failed = sum(line.startswith(b"FAIL:") for line in lines)
    summaries = SUMMARY.findall(output.replace(b"\r", b""))
    expect(summaries, "no SUMMARY line")
    expect(int(summaries[-1][1]) == failed, "the summary says %s failures, there are %d FAIL lines",
           summaries[-1][1].decode(), failed)
    expect(passed + failed, "neither a PASS nor a FAIL line")
    return passed, failed


def guest(section, machine):
    limit = float(section["timeout"]) * (2 if machine.startswith("bochs") else 1)
    status = int(section["status-bare" if machine.endswith("-bare") else "status"])
    pattern = section["log"]

    def run(log):
        with Session(log, arguments(section, machine), limit) as session:
            ended = session.finish()
            nestor = session.nestor.decode(errors="replace")
            finishes = status == 0 or b"SUMMARY" in session.output
            passed, failed = results(session.output) if finishes else (0, 0)
            if failed:
                for line in re.findall(rb"(?m)^FAIL:.*", session.output):
                    print("     " + line.decode(errors="replace").strip(), flush=True)
                return passed, failed
            expect(ended == status, "status %d, expected %d: %s", ended, status,
                   nestor.strip().splitlines()[-1:])
            if pattern and not machine.endswith("-bare"):
                expect(re.search(pattern, nestor), "Nestor's log does not match %r", pattern)
            return passed or 1, 0
    return run


def missing(name):
    def run(_log):
        raise Failure("tests/guests/tests.cfg does not name this image: " + name)
    return run


def tests(level):
    config = configparser.ConfigParser(defaults=DEFAULTS, interpolation=None)
    config.read(CONFIG)
    out = []
    images = set()
    for name in config.sections():
        section = config[name]
        images.add(section.get("image", name))
        if section["level"] == "all" and level != "all":
            continue
        for machine in section["machines"].split():
            out.append(("guest-%s-%s" % (name, machine), float(section["timeout"]) / 10,
                        guest(section, machine)))
    built = os.listdir(IMAGES) if os.path.isdir(IMAGES) else []
    for image in sorted(name[:-4] for name in built if name.endswith(".elf")):
        if image not in images:
            out.append(("guest-" + image, 0, missing(image)))
    return out
