# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""What tests/kvm-unit-tests promises, tried with the smallest guest in the place of the suite: the
verdict of each way to end, the parameters of unittests.cfg, and that what got worse fails."""

import os
import re
import shutil
import subprocess
import tempfile

from session import BUILD, ROOT, expect

TINY = os.path.join(BUILD, "system", "tiny.elf")
ROWS = """\
# a comment
[good]
file = tiny.flat
smp = 2
test_args = 'code=0'

[bad]
file = tiny.flat
test_args = "code=1"

[skipped]
file = tiny.flat
test_args = code=`echo 38`
qemu_params = -cpu max,-x2apic -m 64

[gone]
file = tiny.flat
test_args = triple

[hung]
file = tiny.flat
test_args = hang

[absent]
file = absent.flat

[other]
file = tiny.flat
accel = kvm

[seldom]
file = tiny.flat
groups = nodefault
"""
VERDICTS = {"good": "pass", "bad": "fail", "skipped": "skip", "gone": "stopped",
            "hung": "timeout", "absent": "-", "other": "-"}
EXPECTED = """\
# machine test verdict pass fail
qemu-svm good    {good} 0 0
qemu-svm bad     fail   0 0 # a reason
qemu-svm skipped {skipped} 0 0
bochs-vmx bad    pass   0 0
"""
# An image of several tests as its sources list them, two of which the row leaves out.
LISTS = {"unittests.cfg": """\
[list]
file = tiny.flat
test_args = "-hang -tri*"

[one]
file = tiny.flat
test_args = 'code=38'
""", "tiny.c": """\
    if (test_wanted("triple", argv, argc))
""", "tiny_tests.c": """\
struct tiny_test tiny_tests[] = {
    { "code=0", NULL, main, },
    TEST(code=1),
    V2_TEST(hang, main),
    { NULL },
};
""", "expected": """\
qemu-svm list:code=1 pass 0 0
"""}


def suite(folder, files, *arguments):
    shutil.copy(TINY, os.path.join(folder, "tiny.flat"))
    for name, text in files.items():
        with open(os.path.join(folder, name), "w", encoding="ascii") as file:
            file.write(text)
    done = subprocess.run([os.path.join(ROOT, "tests", "kvm-unit-tests"), "--machine", "qemu-svm",
                           "--timeout", "15", "--logs", os.path.join(folder, "logs"),
                           "--expected", os.path.join(folder, "expected"), *arguments, folder],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=200, check=False, text=True)
    return done.returncode, done.stdout


def with_expectations(status, worse, **expected):
    def run(log):
        with tempfile.TemporaryDirectory(prefix="nestor-suite-") as folder:
            ended, output = suite(folder, {"unittests.cfg": ROWS,
                                           "expected": EXPECTED.format(**expected)})
        log.write(output.encode())
        found = dict(re.findall(r"^(\w+) +(\w+|-) ", output, re.M))
        for name, verdict in VERDICTS.items():
            expect(found.get(name) == verdict, "%s: %s", name, found.get(name))
        expect("seldom" not in output, "a row that runs only by name ran")
        expect(re.findall(r"^(\w+) .*WORSE", output, re.M) == worse, "others got worse")
        expect(ended == status, "status %d", ended)
    return run


def split(log):
    with tempfile.TemporaryDirectory(prefix="nestor-suite-") as folder:
        ended, output = suite(folder, LISTS, "--split")
    log.write(output.encode())
    found = re.findall(r"^(list\S*|one\S*) +(\w+) ", output, re.M)
    expect(found == [("list:code=0", "pass"), ("list:code=1", "fail"), ("one", "skip")],
           "other rows: %s", found)
    expect(re.findall(r"^(\S+) .*WORSE", output, re.M) == ["list:code=1"], "others got worse")
    expect(ended == 1, "status %d", ended)


def tests():
    return [("suite-as-expected", 20, with_expectations(0, [], good="pass", skipped="skip")),
            ("suite-got-worse", 20, with_expectations(1, ["skipped"], good="fail",
                                                      skipped="pass")),
            ("suite-split", 15, split)]
