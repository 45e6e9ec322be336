# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""The fuzz targets of tests/fuzz, ten seconds each."""

import os
import re
import subprocess

from session import ROOT, expect

RUN = os.path.join(ROOT, "tests", "fuzz", "run")
SECONDS = 10


def names():
    with open(os.path.join(ROOT, "tests", "fuzz", "build.mk"), encoding="ascii") as file:
        lines = re.findall(r"(?m)^FUZZ_(?:SOURCES|DEVICES) := (.*)", file.read())
    return [name for line in lines for name in line.split() if name != "device"]


def fuzz(name):
    def run(log):
        done = subprocess.run([RUN, "--seconds", str(SECONDS), name], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT,
                              timeout=SECONDS + 90, check=False)
        log.write(done.stdout)
        expect(done.returncode == 0, "%s", done.stdout.decode(errors="replace").strip()[-300:])
    return run


def tests():
    return [("fuzz-" + name, SECONDS, fuzz(name)) for name in names()]
