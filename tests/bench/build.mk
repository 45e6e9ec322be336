# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
#
# What `make bench` runs beside Nestor: the bench guest, built as the small guests are; Linux' init; and, under make COUNT=1, a
# Nestor that counts (count.inc, count.c), in a build directory of its own.

.PHONY: bench-files
bench-files: $(BUILD)/bench/guest.elf $(BUILD)/bench/init $(BUILD)/bench/stamp
	+@$(MAKE) --no-print-directory COUNT=1 BUILD=$(BUILD)/count CONFIG= $(BUILD)/count/nestor

$(BUILD)/bench/guest.elf: $(GUEST_OBJ)/tests/bench/guest.c.o $(GUEST_OBJ)/tests/bench/nested.c.o $(GUEST_LIB) tests/guests/lib/guest.ld
	@mkdir -p $(@D)
	$(CROSS_COMPILE)ld -m elf_x86_64 -nostdlib -static -z max-page-size=4096 -z noexecstack --build-id=none \
		-T tests/guests/lib/guest.ld -o $@64 $(filter %.o,$^)
	$(CROSS_COMPILE)objcopy -O elf32-i386 --strip-debug $@64 $@

$(BUILD)/bench/init: tests/bench/init.c tests/bench/count.h
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -ffreestanding -fno-pic -no-pie -fno-stack-protector -fcf-protection=none -Wall -Wextra -Werror \
		-nostdlib -static -Wl,--build-id=none,-z,noexecstack -o $@ $<

$(BUILD)/bench/stamp: tests/bench/stamp.S
	@mkdir -p $(@D)
	$(CC) -m32 -c -o $@.o $<
	$(CROSS_COMPILE)objcopy -O binary -j .text $@.o $@

-include $(GUEST_OBJ)/tests/bench/guest.c.d $(GUEST_OBJ)/tests/bench/nested.c.d

# core/idt.c and core/trap.S are left out: their RDMSR and WRMSR have places in the exception table.
ifdef COUNT
$(if $(filter build,$(BUILD)),$(error make COUNT=1 needs a BUILD= of its own))
COUNTED := -Wa,tests/bench/count.inc
$(BUILD)/core/% $(BUILD)/svm/% $(BUILD)/vmx/%: CPPFLAGS += $(COUNTED)
$(BUILD)/core/idt.c.o $(BUILD)/core/trap.S.o: CPPFLAGS := $(CPPFLAGS)
OBJECTS += $(BUILD)/tests/bench/count.c.o
LDFLAGS += --wrap=cpuid_read
$(BUILD)/nestor.elf: $(BUILD)/tests/bench/count.c.o
$(OBJECTS): tests/bench/count.inc
endif
