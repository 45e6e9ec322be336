# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
#
# Builds $(BUILD)/nestor, the Multiboot2 image that GRUB loads ($(BUILD)/nestor.elf is the same with
# debugging information), and the unit tests. tests/targets.mk has the targets that boot things.
#
#   make                      the image             make unit       build the unit tests
#   make CONFIG=my.dts        with a configuration  make unit-run   and run them
#   make CROSS_COMPILE=...    another toolchain     make size       code lines and image size

VERSION := 0.1
BUILD ?= build
CONFIG ?= core/default.dts
CROSS_COMPILE ?= $(if $(shell command -v x86_64-elf-gcc),x86_64-elf-,x86_64-linux-gnu-)
CC := $(CROSS_COMPILE)gcc
LD := $(CROSS_COMPILE)ld
NM := $(CROSS_COMPILE)nm
OBJDUMP := $(CROSS_COMPILE)objdump
STRIP := $(CROSS_COMPILE)strip
HOSTCC ?= gcc
LIBFDT ?= $(firstword $(wildcard /usr/lib/x86_64-linux-gnu/libfdt.a) $(shell $(CC) -print-file-name=libfdt.a))

DIRS := boot core vmx svm mmu nested devices
SOURCES := $(sort $(foreach dir,$(DIRS),$(wildcard $(dir)/*.c $(dir)/*.S)))
OBJECTS := $(patsubst %,$(BUILD)/%.o,$(SOURCES))

WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes -Wvla -Werror
CFLAGS := -std=gnu11 -O2 -g -ffreestanding -mcmodel=kernel -mno-red-zone -mgeneral-regs-only \
	-march=x86-64 -mtune=generic -fno-pic -fno-stack-protector -fno-omit-frame-pointer \
	-fno-asynchronous-unwind-tables -fno-common -fno-strict-aliasing -fcf-protection=none \
	-ffunction-sections -fdata-sections $(WARNINGS)
CPPFLAGS := -Iinclude -DNESTOR_VERSION='"$(VERSION)"'
LDFLAGS := -nostdlib -static -z max-page-size=4096 -z noexecstack --build-id=none --gc-sections \
	--no-warn-rwx-segments -T linker.ld
LDFLAGS := $(filter-out $(if $(shell $(LD) --help | grep -o no-warn-rwx),,--no-warn-rwx-segments),$(LDFLAGS))

# make V=1 shows the commands.
V ?= 0
ifeq ($(V),0)
quiet = @echo '  $(1)';
endif

.PHONY: all
all: $(BUILD)/nestor

# Each is written only when what it holds has changed: the compiler's command, the configuration.
.PHONY: FORCE
FORCE:
keep = @mkdir -p $(@D); echo '$(1)' | cmp -s - $@ || echo '$(1)' > $@
$(BUILD)/flags: FORCE
	$(call keep,$(CC) $(CPPFLAGS) $(CFLAGS))
$(BUILD)/config: FORCE
	$(call keep,$(CONFIG))

$(BUILD)/%.c.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call quiet,CC      $<)$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/%.S.o: %.S $(BUILD)/flags
	@mkdir -p $(@D)
	$(call quiet,AS      $<)$(CC) $(CPPFLAGS) -g -MMD -MP -I$(BUILD) -c $< -o $@

# What boot/blobs.S includes: the built-in configuration and the guests' DSDT.
$(BUILD)/boot/blobs.S.o: $(BUILD)/builtin.dtb $(BUILD)/dsdt.aml
$(BUILD)/builtin.dtb: $(or $(CONFIG),core/default.dts) $(BUILD)/config
	@dtc -q -I dts -O dtb -o $@ $<
$(BUILD)/dsdt.aml: $(wildcard devices/dsdt.asl) $(BUILD)/flags
	@$(if $(wildcard devices/dsdt.asl),iasl -vs -ve -p $(BUILD)/dsdt devices/dsdt.asl > $(BUILD)/dsdt.log || { cat $(BUILD)/dsdt.log; exit 1; },: > $@)

# The image carries a table of its functions' names for backtraces. It is made from a first link
# without it; the table lies behind all code, so the second link moves no function.
$(BUILD)/nestor.elf: $(OBJECTS) linker.ld boot/symbols.awk $(LIBFDT)
	@echo '  LD      $@'
	@$(LD) $(LDFLAGS) -o $(BUILD)/nestor.pass1 $(OBJECTS) $(LIBFDT)
	@$(NM) -n $(BUILD)/nestor.pass1 | awk -f boot/symbols.awk > $(BUILD)/symbols.S
	@$(CC) -c $(BUILD)/symbols.S -o $(BUILD)/symbols.o
	@$(LD) $(LDFLAGS) -Map=$(BUILD)/nestor.map -o $@.new $(OBJECTS) $(BUILD)/symbols.o $(LIBFDT)
	@$(NM) -n $(BUILD)/nestor.pass1 | grep -i ' t ' > $(BUILD)/pass1.functions
	@$(NM) -n $@.new | grep -i ' t ' | cmp - $(BUILD)/pass1.functions
	@if $(OBJDUMP) -d $@.new | awk '/^[0-9a-f]+ </ {own = /<vector_stubs>/} !own' | grep -E '%[xyz]?mm[0-9]'; then \
		echo 'SSE or MMX in the image: it would destroy guest state' >&2; exit 1; fi
	@mv $@.new $@

$(BUILD)/nestor: $(BUILD)/nestor.elf
	@$(STRIP) -o $@ $<

# A unit test names what it is linked with: "// unit-sources: a.c b.c" and "// unit-libs: -lX"; "// unit-cflags: -X".
# GCC's sanitizers; the code is compiled as for the target but for the host's own libc.
UNIT_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/unit/%,$(wildcard tests/unit/test_*.c))
UNIT_CFLAGS := -std=gnu11 -O1 -g -D_GNU_SOURCE -fno-omit-frame-pointer -fno-strict-aliasing \
	-fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra -Wshadow -Werror -Wno-error=format
HEADERS := $(wildcard include/*/*.h include/*/*/*.h $(DIRS:%=%/*.h) tests/unit/*.h)
.PHONY: unit unit-run
unit: $(UNIT_TESTS)
unit_words = $(shell sed -n 's|^// unit-$(1): *||p' $(2))
.SECONDEXPANSION:
$(BUILD)/unit/%: tests/unit/%.c $$(call unit_words,sources,tests/unit/$$*.c) $(HEADERS) Makefile
	@mkdir -p $(@D)
	$(call quiet,HOSTCC  $<)$(HOSTCC) $(UNIT_CFLAGS) $(call unit_words,cflags,$<) $(CPPFLAGS) -I. $< $(call unit_words,sources,$<) \
		-o $@ -lcmocka $(call unit_words,libs,$<)
unit-run: unit
	@failed=0; for test in $(UNIT_TESTS); do $$test || failed=1; done; exit $$failed

.PHONY: size clean
EMULATOR = $(wildcard core/breakpoint.* core/decode* core/descriptor.* core/emulat* core/task.* core/vector.S)
size: $(BUILD)/nestor
	@count() { cat "$$@" 2>/dev/null | sed 's|//.*||' | grep -c '[^[:space:]]'; }; \
	for dir in boot core mmu vmx svm nested devices; do \
		printf '%-8s %6d code lines\n' $$dir "$$(count $$dir/*.[chS])"; done; \
	printf 'of core, the instruction emulator: %d\n' "$$(count $(EMULATOR))"
	@stat -c 'image    %s bytes' $<

clean:
	rm -rf $(addprefix $(BUILD)/,$(DIRS) unit guests nestor nestor.* symbols.* builtin.dtb dsdt.* flags config \
		pass1.functions system l1 bench count check fuzz)

-include $(OBJECTS:.o=.d)
-include tests/guests/build.mk
-include tests/targets.mk
