# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""One run of tests/run with a conversation on its console."""

import os
import re
import select
import signal
import subprocess
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
RUN = os.path.join(ROOT, "tests", "run")

# What a terminal would swallow: escape sequences, such as busybox's question for the cursor.
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Failure(Exception):
    """A test found something wrong."""


def expect(condition, message, *arguments):
    if not condition:
        raise Failure(message % arguments if arguments else message)


LIVE = set()  # the processes of sessions that have not ended


def end_all():
    """End what still runs: tests/run takes its emulator with it."""
    for process in list(LIVE):
        if process.poll() is None:
            process.terminate()


class Session:
    """tests/run with `arguments`; what it prints is copied to `log` (a binary file). Use it as a
    context manager: the run ends with the block."""

    def __init__(self, log, arguments, limit):
        self.log = log
        self.limit = limit
        self.deadline = time.monotonic() + limit + 15  # tests/run's own limit comes first
        self.output = b""  # what the guest printed
        self.closed = []  # of stdout and stderr
        self.seen = 0  # how much of its text earlier waits have used up
        self.nestor = b""  # what Nestor and tests/run printed
        command = [RUN, "--timeout", str(limit)] + [str(argument) for argument in arguments]
        log.write(b"$ %s\n" % " ".join(command).encode())
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, start_new_session=True)
        LIVE.add(self.process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        LIVE.discard(self.process)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def pump(self, seconds):
        """Read what there is; whether the run can still say something."""
        streams = [self.process.stdout, self.process.stderr]
        open_streams = [stream for stream in streams if stream not in self.closed]
        if not open_streams:
            return False
        for stream in select.select(open_streams, [], [], seconds)[0]:
            data = os.read(stream.fileno(), 65536)
            self.log.write(data)
            if not data:
                self.closed.append(stream)
            elif stream is self.process.stdout:
                self.output += data
            else:
                self.nestor += data
        self.log.flush()
        expect(time.monotonic() < self.deadline, "tests/run did not keep its time limit")
        return True

    def text(self):
        return ESCAPES.sub(b"", self.output.replace(b"\r", b""))[self.seen:]

    def wait(self, pattern, seconds=None):
        """Wait until the guest has printed `pattern` since the last wait; the match."""
        limit = time.monotonic() + (seconds or self.limit)
        while True:
            match = re.search(pattern, self.text())
            if match:
                self.seen += match.end()
                return match
            expect(time.monotonic() < limit, "no %r within %g seconds", pattern, seconds)
            if not self.pump(0.5):
                raise Failure("the run ended with status %d before it printed %r" %
                              (self.finish(), pattern))

    def type(self, text):
        try:
            self.process.stdin.write(text.encode())
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Failure("the run ended before %r could be typed" % text) from error

    def command(self, text, seconds=60):
        """Type a shell command; its output. The marks are split so that their echo is none."""
        self.type("echo @''@; %s; echo \"#$?\"#\n" % text)
        match = self.wait(rb"(?s)@@\n(.*?)#(\d+)#\n", seconds)
        return match.group(1).decode(errors="replace")

    def finish(self):
        """Wait for the end of the run; its exit status."""
        while self.pump(0.5):
            pass
        return self.process.wait()
