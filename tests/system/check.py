#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""make check: run every test, two at a time, the long ones first; print a line for each and, last,
the count of all results. A unit test program and a small guest give as many results as they have
cases, a system test one. Each test's output is in build/check/NAME.log.

    check.py [--level check|all] [--only PATTERN]... [--list] [--jobs N]"""

import argparse
import fnmatch
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import badinput  # noqa: E402
import fuzz  # noqa: E402
import guests  # noqa: E402
import life  # noqa: E402
import linux  # noqa: E402
import nested  # noqa: E402
import runner  # noqa: E402
import session  # noqa: E402
import suite  # noqa: E402
from session import BUILD, ROOT, Failure, expect  # noqa: E402

LOGS = os.path.join(BUILD, "check")
CMOCKA_PASSED = re.compile(rb"\[  PASSED  \] (\d+) test")
CMOCKA_FAILED = re.compile(rb"\[  FAILED  \] (\d+) test")
UNIT_LIMIT = 300


def execute(log, command, limit):
    """Run a program of the tests; (exit status, output)."""
    log.write(b"$ %s\n" % " ".join(command).encode())
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT,
                              stderr=subprocess.STDOUT, timeout=limit, check=False)
    except FileNotFoundError as error:
        raise Failure("%s is not there" % command[0]) from error
    except subprocess.TimeoutExpired as error:
        log.write(error.output or b"")
        raise Failure("not done after %d seconds" % limit) from error
    log.write(done.stdout)
    return done.returncode, done.stdout


def unit(path):
    def run(log):
        status, output = execute(log, [path], UNIT_LIMIT)
        passed = sum(map(int, CMOCKA_PASSED.findall(output)))
        failed = sum(map(int, CMOCKA_FAILED.findall(output)))
        if status == 0:
            expect(passed, "no test ran")
        return passed, failed or (1 if status else 0)
    return run


def unit_tests():
    """What make unit built of what tests/unit has; a source without a program fails."""
    sources = sorted(os.listdir(os.path.join(ROOT, "tests", "unit")))
    names = [name[:-2] for name in sources if name.startswith("test_") and name.endswith(".c")]
    return [("unit-" + name[5:], 30, unit(os.path.join(BUILD, "unit", name))) for name in names]


def style(log):
    status, output = execute(log, ["make", "-s", "format-check"], 120)
    lines = re.findall(rb"^(\S+?):\d+:\d+: (?:error|warning)", output, re.MULTILINE)
    expect(status == 0, "wants make format: %s",
           b" ".join(sorted(set(lines))[:8]).decode() or output.decode(errors="replace")[-200:])


def all_tests(level):
    """(name, seconds it may take about, function), the longest first."""
    tests = unit_tests() + [("style", 5, style)] + runner.tests() + guests.tests(level)
    tests += linux.tests(level) + badinput.tests() + life.tests(level) + fuzz.tests()
    tests += suite.tests() + nested.tests(level)
    return sorted(tests, key=lambda test: -test[1])


class Report:
    """The lines on stdout and the sum, from two threads."""

    def __init__(self):
        self.lock = threading.Lock()
        self.passed = self.failed = 0

    def add(self, name, passed, failed, seconds, why):
        with self.lock:
            self.passed += passed
            self.failed += failed
            count = "" if passed + failed == 1 else " (%d of %d)" % (passed, passed + failed)
            print("%s %s %.1f s%s%s" % ("FAIL" if failed else "PASS", name, seconds, count,
                                        ": " + why if why else ""), flush=True)


def run_test(name, function, report):
    start = time.monotonic()
    why = ""
    with open(os.path.join(LOGS, name + ".log"), "wb") as log:
        try:
            result = function(log)
        except Failure as failure:
            result, why = (0, 1), str(failure)
        except Exception as error:  # a test's own mistake fails that test, not the others
            result, why = (0, 1), "%s: %s" % (type(error).__name__, error)
            log.write(traceback.format_exc().encode())
        log.write(b"\n%s\n" % why.encode())
    passed, failed = result if result else (1, 0)
    report.add(name, passed, failed, time.monotonic() - start, why)


def work(queue, lock, report):
    while True:
        with lock:
            if not queue:
                return
            name, _, function = queue.pop(0)
        run_test(name, function, report)


def main():
    parser = argparse.ArgumentParser(prog="check.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", choices=("check", "all"), default="check")
    parser.add_argument("--only", action="append", metavar="PATTERN")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    tests = [test for test in all_tests(options.level) if not options.only or
             any(fnmatch.fnmatch(test[0], pattern) for pattern in options.only)]
    if options.list:
        print("\n".join(test[0] for test in tests))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.makedirs(LOGS, exist_ok=True)
    report, lock = Report(), threading.Lock()
    threads = [threading.Thread(target=work, args=(tests, lock, report), daemon=True)
               for _ in range(options.jobs)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        session.end_all()  # what an interrupt left running
    print("%d passed, %d failed" % (report.passed, report.failed))
    return 1 if report.failed or not report.passed else 0


if __name__ == "__main__":
    sys.exit(main())
