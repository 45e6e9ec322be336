# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
"""Boot images: what kind of kernel a file is, Nestor's configuration (device tree), and the GRUB
ISO, for BIOS and UEFI, that carries them. ISOs are kept by the hash of what is in them."""

import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
CACHE = os.path.join(BUILD, "iso-cache")
KEEP_SECONDS = 2 * 24 * 3600  # an ISO that nobody used for so long is removed

# The few GRUB modules that the menus below use; all_video is for UEFI kernels that ask for a mode,
# memrw for tests that spoil firmware tables.
GRUB_MODULES = "normal iso9660 multiboot multiboot2 linux all_video memrw"

LINUX, MULTIBOOT, MULTIBOOT2 = "linux", "multiboot", "multiboot2"


class UsageError(Exception):
    """Something that the user asked for cannot be: exit status 127."""


def read_file(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError("%s: %s" % (path, error.strerror)) from error


def kernel_kind(path):
    """LINUX, MULTIBOOT or MULTIBOOT2 by the headers, None if it is none of them."""
    data = read_file(path)[:32768]
    if data[0x202:0x206] == b"HdrS":
        return LINUX
    for offset in range(0, min(len(data), 8192) - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", data, offset)
        if magic == 0x1BADB002 and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return MULTIBOOT
    for offset in range(0, len(data) - 15, 8):
        words = struct.unpack_from("<IIII", data, offset)
        if words[0] == 0xE85250D6 and sum(words) & 0xFFFFFFFF == 0:
            return MULTIBOOT2
    return None


def dts_string(text):
    return '"%s"' % re.sub(r'(["\\])', r"\\\1", text)


def config_dts(guest):
    """The device tree source for one guest; `guest` is a dict with the keys used below."""
    lines = ["memory = <%d>; /* MiB */" % guest["mem"], "vcpus = <%d>;" % guest["cpus"],
             'kernel = "kernel";']
    if guest.get("initrd"):  # for a Multiboot image, its module
        lines.append('initrd = "initrd";')
    if guest.get("append") is not None:
        lines.append("command-line = %s;" % dts_string(guest["append"]))
    lines += ["%s;" % flag for flag in ("nested", "test-device", "pci-test-device")
              if guest.get(flag)]
    for names in ("hide", "nested-features"):
        if guest.get(names):
            lines.append("%s = %s;" % (names, ", ".join(map(dts_string, guest[names]))))
    return ('/dts-v1/;\n\n/ {\n\tcompatible = "nestor,config-v1";\n\n\tguests {\n\t\t%s {\n%s\t\t};'
            "\n\t};\n};\n" % (guest["name"], "".join("\t\t\t%s\n" % line for line in lines)))


def compile_dts(path, source=None):
    """The device tree blob of the file `path`, or of the text `source`, by dtc."""
    try:
        done = subprocess.run(["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", "-", path or "-"],
                              input=source, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              check=False)
    except FileNotFoundError as error:
        raise UsageError("dtc is missing: run tests/deps run") from error
    if done.returncode != 0:
        raise UsageError("dtc: " + done.stderr.decode(errors="replace").strip())
    return done.stdout


def quote(text):
    """A word in GRUB's script language."""
    return "'%s'" % text.replace("'", "'\\''")


class Boot:
    """A GRUB menu entry in the making: its commands and the files they name."""

    def __init__(self, commands=()):
        self.lines = list(commands)  # GRUB commands before the kernel's
        self.files = []  # (path in /boot, bytes)

    def add(self, command, content, arguments=""):
        name = "m%d" % len(self.files)
        self.files.append((name, content))
        self.lines.append("%s /boot/%s %s" % (command, name, arguments))

    def add_nestor(self, nestor, options, config, modules):
        """Nestor, its configuration blob, and the modules [(name, path)]."""
        self.add("multiboot2", read_file(nestor), " ".join(map(quote, ["console=com2"] + options)))
        if config is not None:
            self.add("module2", config, "config")
        for name, path in modules:
            self.add("module2", read_file(path), quote(name))

    def add_bare(self, kind, kernel, initrd, append):
        """The guest's own image, with no Nestor below it."""
        module = {LINUX: "initrd", MULTIBOOT: "module", MULTIBOOT2: "module2"}[kind]
        words = [word if re.fullmatch(r"[\w=,.:/+-]+", word) else quote(word)
                 for word in (append or "").split()]
        self.add(kind, read_file(kernel), " ".join(words))
        if initrd:
            self.add(module, read_file(initrd), "" if kind == LINUX else quote("initrd"))

    def grub_cfg(self, title="Nestor", timeout=0):
        return ("set timeout=%d\nset default=0\nmenuentry %s {\n%s}\n" % (
            timeout, quote(title),
            "".join("\t%s\n" % line.rstrip() for line in self.lines))).encode()

    def iso(self, path=None):
        """Make the ISO, at `path` or in the cache; return where it is."""
        files = [("boot/grub/grub.cfg", self.grub_cfg())]
        files += [("boot/" + name, content) for name, content in self.files]
        digest = hashlib.sha256(GRUB_MODULES.encode())
        for name, content in files:
            digest.update(b"\0%s\0%d\0" % (name.encode(), len(content)))
            digest.update(content)
        os.makedirs(CACHE, exist_ok=True)
        cached = os.path.join(CACHE, digest.hexdigest()[:32] + ".iso")
        if os.path.exists(cached):
            os.utime(cached)
        else:
            prune()
            build_iso(files, cached)
        if path is None:
            return cached
        shutil.copyfile(cached, path + ".new")
        os.rename(path + ".new", path)
        return path


def prune():
    """Remove ISOs that were not used for long, and what killed runs left."""
    for name in os.listdir(CACHE):
        path = os.path.join(CACHE, name)
        try:
            if time.time() - os.stat(path).st_mtime > KEEP_SECONDS:
                shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
        except OSError:
            pass  # another run removed it first


def build_iso(files, out):
    """grub-mkrescue of [(path, bytes)] to `out`, which appears only when it is whole."""
    tree = tempfile.mkdtemp(dir=CACHE)
    try:
        for name, content in files:
            path = os.path.join(tree, "root", name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        image = os.path.join(tree, "image.iso")
        command = ["grub-mkrescue", "--install-modules=" + GRUB_MODULES, "--locales=", "--fonts=",
                   "--themes=", "--compress=xz", "-o", image, os.path.join(tree, "root")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0 or not os.path.exists(image):
            sys.stderr.write(done.stdout.decode(errors="replace"))
            raise UsageError("grub-mkrescue failed")
        os.rename(image, out)
    except FileNotFoundError as error:
        raise UsageError("%s is missing: run tests/deps run" % error.filename) from error
    finally:
        shutil.rmtree(tree, ignore_errors=True)
