# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""The machines that Nestor runs on here: how each emulator is started with an ISO, and where its
two serial ports end: a machine has com1 and com2 to read what they say, and com1_input to write."""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile

from image import UsageError

MACHINES = ("qemu-svm", "qemu-kvm", "bochs-vmx", "bochs-svm")
OVMF = "/usr/share/OVMF/OVMF_CODE.fd"
DEBUG_EXIT_PORT = 0xF4
PR_SET_PDEATHSIG = 1
FIFO_SIZE = 1 << 20


def kvm_nests():
    """Whether /dev/kvm can run a guest that is itself a hypervisor. That the file exists says
    nothing: the CPU flag must be there and the module must say nested."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    for flag, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd")):
        try:
            with open("/sys/module/%s/parameters/nested" % module, encoding="ascii") as file:
                nested = file.read().strip() in ("1", "Y")
        except OSError:
            nested = False
        if flag in flags and nested:
            return os.access("/dev/kvm", os.R_OK | os.W_OK)
    return False


def choose(name):
    """The machine for `name`: itself, or for "auto" the best one there is."""
    if name != "auto":
        return name
    return "qemu-kvm" if kvm_nests() else "qemu-svm"


def find(program):
    path = shutil.which(program)
    if path is None:
        raise UsageError("%s is missing: run tests/deps check" % program)
    return path


class Emulator:
    """A started emulator. It is in a process group of its own and dies with this process, however
    that ends, because Bochs ignores SIGTERM and a forgotten emulator takes a whole CPU."""

    # How fast input may go in: at most so many bytes at once, then a pause of so many seconds.
    input_burst, input_pause = 256, 0.0

    def __init__(self, options):
        self.options = options
        self.process = None
        self.com1 = self.com2 = self.com1_input = -1
        self.directory = tempfile.mkdtemp(prefix="nestor-run-")
        self.report = os.path.join(self.directory, "emulator.log")

    def spawn(self, command, env=None):
        libc = ctypes.CDLL(None)

        def die_with_parent():
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        with open(self.report, "wb") as report:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=report, stderr=subprocess.STDOUT,
                env=env, cwd=self.directory, start_new_session=True,
                preexec_fn=die_with_parent)

    def kill(self):
        if self.process and self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.process:
            self.process.wait()

    def clean(self):
        self.kill()
        for fd in {self.com1, self.com2, self.com1_input} - {-1}:
            os.close(fd)
        self.com1 = self.com2 = self.com1_input = -1
        shutil.rmtree(self.directory, ignore_errors=True)

    def report_tail(self, lines=12):
        try:
            with open(self.report, "rb") as file:
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-lines:])


class Qemu(Emulator):
    """QEMU. Its serial ports are FIFOs: QEMU sends byte by byte, of which a FIFO holds a million
    but a socket only 300; and a guest does not wait for ever until its port takes another."""

    def fifo(self, name):
        """The path for a chardev, and both ends of it: what QEMU writes, what it reads."""
        path = os.path.join(self.directory, name)
        ends = []
        for suffix in (".out", ".in"):
            os.mkfifo(path + suffix)
            ends.append(os.open(path + suffix, os.O_RDWR | os.O_NONBLOCK))
        try:
            fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, FIFO_SIZE)
        except (AttributeError, OSError):
            pass  # then it has 64 KiB
        return path, ends[0], ends[1]

    def start(self, iso):
        options = self.options
        path1, self.com1, self.com1_input = self.fifo("com1")
        path2, self.com2, com2_input = self.fifo("com2")
        os.close(com2_input)
        command = [find("qemu-system-x86_64"), "-name", "nestor", "-M", "q35", "-nodefaults",
                   "-no-user-config", "-display", "none", "-m", str(options.host_mem),
                   "-smp", str(options.host_cpus)]
        if options.machine == "qemu-kvm":
            command += ["-accel", "kvm", "-cpu", options.model or "host"]
        else:
            multi = options.host_cpus > 1 and not options.icount
            command += ["-accel", "tcg,thread=%s" % ("multi" if multi else "single"),
                        "-cpu", options.model or "max"]
        for number, path in ((1, path1), (2, path2)):
            command += ["-chardev", "pipe,id=com%d,path=%s" % (number, path),
                        "-serial", "chardev:com%d" % number]
        command += ["-device", "isa-debug-exit,iobase=0x%x,iosize=4" % DEBUG_EXIT_PORT,
                    "-cdrom", iso]
        if options.bare and options.test_device:
            command += ["-device", "pc-testdev"]
        if options.bare and options.pci_test_device:
            command += ["-device", "pci-testdev"]
        if not options.bare:
            command += ["-no-reboot"]  # a reset then is Nestor's crash: end, don't boot again
        if options.firmware == "uefi":
            if not os.path.exists(OVMF):
                raise UsageError("%s is missing: run tests/deps run" % OVMF)
            command += ["-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + OVMF]
        if options.icount:
            command += ["-icount", "shift=0,sleep=off", "-rtc",
                        "base=2026-01-01T00:00:00,clock=vm", "-seed", "42"]
        command += options.emulator_option
        self.spawn(command)

    def guest_code(self):
        """The guest's code after a bare run: isa-debug-exit gives (code << 1) | 1."""
        status = self.process.returncode
        return status >> 1 if status > 0 and status & 1 else 0

    def failed_to_start(self):
        return self.process.returncode == 1 and "qemu-system" in self.report_tail()


BOCHSRC = """\
{display}
config_interface: textconfig
plugin_ctrl: unmapped=1, biosdev=1, speaker=0, extfpuirq=1, parallel=0, serial=1, iodebug=1
memory: guest={mem}, host={mem}
cpu: model={model}, count={cpus}, ips={ips}, ignore_bad_msrs=1, reset_on_triple_fault={reset}
romimage: file={share}/BIOS-bochs-latest
vgaromimage: file={share}/VGABIOS-lgpl-latest
vga: extension=vbe, update_freq=1
clock: sync=none, time0={time0}
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path="{iso}", status=inserted
boot: cdrom
com1: enabled=1, mode=term, dev={com1}
com2: enabled=1, mode=term, dev={com2}
port_e9_hack: enabled=0
log: {log}
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
"""

BOCHS_MODELS = {"bochs-vmx": "corei7_skylake_x", "bochs-svm": "ryzen"}
# MiB; a newer Bochs has room for what a test of nested paging takes
BOCHS_MAX_MEM = 8192 if os.environ.get("BOCHS") else 2048
BOCHS_TIME0 = 1767225600  # the RTC at power-on: 2026-01-01 00:00:00 UTC
# Instructions to a second of the devices' time (PIT, PM timer, UART, RTC), and so the TSC's rate as
# Nestor and its guests measure it. (CPUID 15h says some GHz, which no value can honour: a character
# on the serial port would cost 300,000 instructions.) With less a guest's timer ticks, a few
# thousand instructions each on Nestor, leave it too little time; with 4 million Linux crawls.
BOCHS_IPS = 50000000


class Bochs(Emulator):
    """Bochs: Debian's 2.7, or a newer one named by $BOCHS. Its serial ports are pseudo-terminals:
    mode=file takes no input, and the socket modes wait or drop bytes. Its UART overruns where real
    flow would wait, hence the pace."""

    input_burst, input_pause = 8, 0.02

    def start(self, iso):
        options = self.options
        if options.firmware == "uefi":
            raise UsageError("Bochs is run with its BIOS only; use --machine qemu-svm for UEFI")
        if options.icount:
            raise UsageError("Bochs always counts instructions; --icount is for QEMU")
        if options.host_mem > BOCHS_MAX_MEM:
            raise UsageError("Bochs has at most %d MiB of memory" % BOCHS_MAX_MEM)
        program = os.environ.get("BOCHS") or "bochs"
        path = find(program)
        debugger = self.has_debugger(path)
        self.com1, slave1 = raw_pty()
        self.com1_input = self.com1
        self.com2, slave2 = raw_pty()
        config = os.path.join(self.directory, "bochsrc")
        with open(config, "w", encoding="utf-8") as file:
            file.write(BOCHSRC.format(
                display="display_library: " + ("term" if debugger else "nogui"),
                mem=options.host_mem, cpus=options.host_cpus, ips=BOCHS_IPS,
                model=options.model or BOCHS_MODELS[options.machine],
                reset=1 if options.bare else 0, time0=BOCHS_TIME0, share=self.share(path), iso=iso,
                com1=os.ttyname(slave1), com2=os.ttyname(slave2),
                log=os.path.join(self.directory, "bochs.log")))
            if debugger:  # Debian's build has sound, a Bochs of the user's own perhaps not
                file.write("sound: waveoutdrv=dummy, waveindrv=dummy\n")
            file.write("".join(line + "\n" for line in options.emulator_option))
        command = [path, "-q", "-f", config]
        if debugger:
            script = os.path.join(self.directory, "debugger")
            with open(script, "w", encoding="ascii") as file:
                file.write("c\n" * 64 + "q\n")  # a reset by triple fault ends one c
            command += ["-rc", script]
        self.spawn(command, env=dict(os.environ, TERM="vt102"))
        self.slaves = (slave1, slave2)

    @staticmethod
    def has_debugger(path):
        """Debian's 2.7 has the debugger in its way; versions from 3 on are taken to have none."""
        done = subprocess.run([path, "--help"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False)
        return b"-rc" in done.stdout

    @staticmethod
    def share(path):
        """Where the ROMs are: beside a Bochs of the user's own, else the distribution's."""
        own = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(path))),
                           "share", "bochs")
        share = own if os.path.exists(os.path.join(own, "BIOS-bochs-latest")) else \
            "/usr/share/bochs"
        if not os.path.exists(os.path.join(share, "VGABIOS-lgpl-latest")):
            raise UsageError("Bochs' ROM images are missing: run tests/deps check")
        return share

    def clean(self):
        super().clean()
        for fd in getattr(self, "slaves", ()):
            os.close(fd)
        self.slaves = ()

    def guest_code(self):
        """Bochs says nothing about the guest's code: None, the serial output must tell."""
        return None

    def failed_to_start(self):
        return "/bochsrc:" in super().report_tail()

    def report_tail(self, lines=12):
        if self.failed_to_start():
            return super().report_tail()
        try:
            with open(os.path.join(self.directory, "bochs.log"), "rb") as file:
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return super().report_tail(lines)


def raw_pty():
    import pty
    import tty
    master, slave = pty.openpty()
    tty.setraw(slave)
    return master, slave


def create(options):
    return (Qemu if options.machine.startswith("qemu") else Bochs)(options)
