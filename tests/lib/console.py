# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""The stretch between starting a machine and its end: the guest's COM1 goes to stdout and stdin
to it, byte for byte; Nestor's log on COM2 goes to the log and says how the run ended."""

import errno
import os
import re
import select
import signal
import sys
import termios
import time
import tty

CTRL_A = 0x01

# Nestor's last words (core/power.c): the guest's code, or what became of it, as the exit status.
MACHINE_OFF = re.compile(rb"machine off, status (\d+)")
PANIC = re.compile(rb"PANIC:")
LOG_LINE = re.compile(rb"\[ *\d+\.\d{6}\] cpu\d+ ")
SHARED_MARK = b"nestor: "  # before each line of the log that shares COM1 with the guest
SUMMARY = re.compile(rb"SUMMARY: \d+ tests, (\d+) unexpected failures")

AFTER_OFF = 5.0    # seconds that a machine may take to go off once Nestor has said so
AFTER_PANIC = 2.0  # seconds that a panic may take to print its report
POLL = 0.1

STATUS_OTHER_CODE = 120
STATUS_TIMEOUT = 124
STATUS_PANIC = 125
STATUS_STOPPED = 126
STATUS_USAGE = 127
STATUS_QUIT = 130


class Ended(Exception):
    """The run is over for a reason outside the machine: a signal, a time limit, Ctrl-A x."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status
        self.message = message


def write_all(fd, data):
    while data:
        data = data[os.write(fd, data):]


class Terminal:
    """stdin; if it is a terminal, in raw mode until restore()."""

    def __init__(self):
        self.fd = sys.stdin.fileno() if sys.stdin else -1
        self.saved = None
        self.escape = False
        # A background job may not touch its terminal: such a run has no input.
        if self.fd >= 0 and os.isatty(self.fd):
            if os.tcgetpgrp(self.fd) == os.getpgrp():
                self.saved = termios.tcgetattr(self.fd)
                tty.setraw(self.fd)
            else:
                self.fd = -1

    def restore(self):
        if self.saved is not None:
            try:
                termios.tcsetattr(self.fd, termios.TCSADRAIN, self.saved)
            except termios.error:  # it is gone
                pass
            self.saved = None

    def read(self):
        """What was typed. A terminal in raw mode has no end but its own: its window was closed, of
        which only the leader of the session (make, maybe) is told by a signal."""
        try:
            data = os.read(self.fd, 4096)
        except OSError:
            data = b""
        if not data and self.saved is not None:
            raise Ended(128 + signal.SIGHUP, "the terminal is gone")
        return data

    def filter(self, data):
        """What of the typed `data` goes to the guest. Ctrl-A x ends the run, twice Ctrl-A is one;
        only for terminals: a pipe's bytes all go to the guest."""
        if self.saved is None:
            return data
        out = bytearray()
        for byte in data:
            if self.escape:
                self.escape = False
                if byte in b"xX":
                    raise Ended(STATUS_QUIT, "ended by Ctrl-A x")
                out.append(byte)
            elif byte == CTRL_A:
                self.escape = True
            else:
                out.append(byte)
        return bytes(out)


class Console:
    def __init__(self, machine, log_fd, timeout):
        self.machine = machine
        self.log_fd = log_fd
        self.timeout = timeout
        self.terminal = Terminal()
        self.closed = set()  # descriptors of the machine that have ended
        self.to_guest = b""
        self.next_write = 0.0
        self.stdin_open = self.terminal.fd >= 0
        self.log_line = b""
        self.log_on_com2 = False
        self.guest_line = b""
        self.failures = None  # the last SUMMARY's
        self.off_status = None
        self.panicked = False
        self.deadline = None  # when the machine is ended without further ado

    # The guest's output.

    def guest_output(self, data):
        write_all(sys.stdout.fileno(), data)
        self.guest_line = (self.guest_line + data)[-4096:]
        *lines, self.guest_line = self.guest_line.split(b"\n")
        for line in lines:
            match = SUMMARY.search(line)
            if match:
                self.failures = int(match.group(1))
            if not self.log_on_com2 and line.startswith(SHARED_MARK):
                self.log_said(line)

    # Nestor's log.

    def log_output(self, data):
        shown = data
        if self.terminal.saved is not None and os.isatty(self.log_fd):
            shown = re.sub(rb"\r?\n", b"\r\n", data)
        write_all(self.log_fd, shown)
        self.log_line = (self.log_line + data)[-65536:]
        *lines, self.log_line = self.log_line.split(b"\n")
        for line in lines:
            self.log_on_com2 |= LOG_LINE.match(line) is not None
            self.log_said(line)

    def log_said(self, line):
        match = MACHINE_OFF.search(line)
        if match:
            self.off_status = int(match.group(1))
            self.end_in(AFTER_OFF)
        elif PANIC.search(line) and not self.panicked:
            self.panicked = True
            self.end_in(AFTER_PANIC)

    def end_in(self, seconds):
        if self.deadline is None:
            self.deadline = time.monotonic() + seconds

    # The loop.

    def step(self):
        """Wait for something to do and do it; whether anything was read from the machine."""
        machine = self.machine
        readers = [fd for fd in (machine.com1, machine.com2) if fd not in self.closed]
        if self.stdin_open and len(self.to_guest) < 65536:
            readers.append(self.terminal.fd)
        may_write = machine.com1_input not in self.closed and time.monotonic() >= self.next_write
        writers = [machine.com1_input] if self.to_guest and may_write else []
        wait = POLL if may_write or not self.to_guest else machine.input_pause
        readable, writable, _ = select.select(readers, writers, [], wait)
        for fd, sink in ((machine.com2, self.log_output), (machine.com1, self.guest_output)):
            if fd in readable:
                data = self.read(fd)
                if data:
                    sink(data)
        if self.terminal.fd in readable:
            data = self.terminal.read()
            self.stdin_open = bool(data)
            self.to_guest += self.terminal.filter(data)
        if writable:
            self.to_guest = self.to_guest[self.write(machine.com1_input, self.to_guest):]
        return machine.com1 in readable or machine.com2 in readable

    def read(self, fd):
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return b""
        except OSError:  # EIO: the other end of a pseudo-terminal is closed; or a reset socket
            data = b""
        if not data:
            self.closed.add(fd)
        return data

    def write(self, fd, data):
        try:
            self.next_write = time.monotonic() + self.machine.input_pause
            return os.write(fd, data[:self.machine.input_burst])
        except BlockingIOError:
            return 0
        except OSError:
            self.closed.add(fd)
            return len(data)

    def run(self):
        """Until the machine is off."""
        for fd in (self.machine.com1, self.machine.com2, self.machine.com1_input):
            os.set_blocking(fd, False)
        while self.machine.process.poll() is None:
            self.step()
            if self.deadline is not None and time.monotonic() > self.deadline:
                self.machine.kill()
        while self.step():  # what it said last
            pass

    def run_limited(self):
        """run(), ended by the time limit, a signal to this process or a closed stdout as well."""
        def on_signal(number, _frame):
            if number == signal.SIGALRM:
                raise Ended(STATUS_TIMEOUT, "timeout after %g seconds" % self.timeout)
            raise Ended(128 + number, "ended by %s" % signal.Signals(number).name)

        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, on_signal)
        if self.timeout:
            signal.setitimer(signal.ITIMER_REAL, self.timeout)
        try:
            self.run()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            raise Ended(128 + signal.SIGPIPE, "stdout or the log was closed") from error
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.terminal.restore()


def status_of_code(code):
    return code if code < STATUS_OTHER_CODE else STATUS_OTHER_CODE


def status_with_nestor(console):
    """(exit status, message or None) of a run with Nestor, by its log alone."""
    if console.panicked:
        return STATUS_PANIC, "Nestor panicked"
    if console.off_status is None:
        return STATUS_PANIC, "the machine went off, and Nestor's log does not say why"
    return console.off_status, None


def status_bare(console):
    """The same without Nestor: by the guest's exit code where the emulator passes it on, else by
    the guest's own summary."""
    code = console.machine.guest_code()
    if code is None:
        code = 1 if console.failures else 0
    return status_of_code(code), None
