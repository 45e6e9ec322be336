# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
#
# The Makefile's targets that boot and prove Nestor. Each first installs what it
# needs (tests/deps), then builds by a second make, because the first one may
# have started without a compiler.

MACHINE ?= auto
MODULES ?=
OPTIONS ?=
export BUILD

# For people who configure the default guest: CONFIG= builds a configuration in, MODULES=
# (NAME=FILE ...) adds the files it names, OPTIONS= are hypervisor options.
ISO_FLAGS = $(if $(CONFIG),--builtin-config) $(foreach option,$(OPTIONS),--option $(option)) $(MODULES)
RUN_DEPS = $(if $(filter bochs%,$(MACHINE)),bochs,run)
SUB_MAKE = +@$(MAKE) --no-print-directory

.PHONY: run iso guest-files check check-all fuzz bench format format-check

run:
	@tests/deps $(RUN_DEPS)
	$(SUB_MAKE) $(BUILD)/nestor.iso
	@tests/run --machine $(MACHINE) --iso $(BUILD)/nestor.iso --host-cpus 2 --host-mem 768 || \
		[ $$? -eq 130 ] # the user's Ctrl-A x

iso:
	@tests/deps run
	$(SUB_MAKE) $(BUILD)/nestor.iso
	@echo "$(BUILD)/nestor.iso boots on BIOS and UEFI"

guest-files:
	@tests/kernel
	@tests/initramfs

# What is unchanged comes from build/iso-cache, so this may always run.
.PHONY: $(BUILD)/nestor.iso
$(BUILD)/nestor.iso: $(BUILD)/nestor guest-files
	@tests/iso --output $@ $(ISO_FLAGS)

check:
	@tests/deps check
	$(SUB_MAKE) -j2 check-built LEVEL=check

check-all:
	@tests/deps check
	$(SUB_MAKE) -j2 check-built LEVEL=all

# ONLY= takes a pattern of test names.
LEVEL ?= check
ONLY ?=
.PHONY: check-built
check-built: $(BUILD)/nestor unit guests fuzz-programs $(BUILD)/system/tiny.elf l1-files
	@tests/system/check.py --level $(LEVEL) $(if $(ONLY),--only '$(ONLY)')

fuzz:
	@tests/deps check
	$(SUB_MAKE) -j2 fuzz-programs guests $(BUILD)/system/tiny.elf
	@tests/fuzz/run

bench:
	@tests/deps check
	$(SUB_MAKE) $(BUILD)/nestor l1-files bench-files
	@tests/bench/run

CLANG_FORMAT ?= clang-format
STYLED = $(shell git ls-files '*.c' '*.h')

format-check:
	@$(CLANG_FORMAT) --dry-run --Werror $(STYLED)

format:
	@$(CLANG_FORMAT) -i $(STYLED)

# The guest of the system tests that need none in particular.
$(BUILD)/system/tiny.elf: tests/system/tiny.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(CC) -m32 -std=gnu11 -O1 -ffreestanding -fno-pic -fno-stack-protector -mgeneral-regs-only \
		-fno-asynchronous-unwind-tables -fcf-protection=none $(WARNINGS) -nostdlib -static \
		-Wl,-Ttext=0x400000,--section-start=.multiboot=0x3ff000,--build-id=none,-z,noexecstack \
		-Wl,--no-warn-rwx-segments -o $@ $<
-include tests/bench/build.mk
-include tests/l1/build.mk
-include tests/fuzz/build.mk
