# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
#
# The small guests: $(BUILD)/guests/NAME.elf of each tests/guests/NAME.c (with NAME.S if there is one) and lib/. They hold
# 64-bit code in an ELF file for the 386, as Multiboot loaders want it.

GUEST_NAMES := $(sort $(patsubst tests/guests/%.c,%,$(wildcard tests/guests/*.c)))
GUEST_OBJ := $(BUILD)/guests/obj
GUEST_LIB := $(patsubst %,$(GUEST_OBJ)/%.o,$(wildcard tests/guests/lib/*.[cS]) core/format.c core/string.c)
GUEST_CPPFLAGS := -Iinclude -Itests/guests/lib
GUEST_CFLAGS := -std=gnu11 -O2 -g -ffreestanding -mcmodel=kernel -mno-red-zone -mgeneral-regs-only \
	-march=x86-64 -mtune=generic -fno-pic -fno-pie -fno-stack-protector -fno-omit-frame-pointer \
	-fno-asynchronous-unwind-tables -fno-common -fno-strict-aliasing -fcf-protection=none \
	-fno-delete-null-pointer-checks -Wall -Wextra -Wshadow -Wstrict-prototypes \
	-Wmissing-prototypes -Wvla -Werror

.PHONY: guests
guests: $(GUEST_NAMES:%=$(BUILD)/guests/%.elf)

$(GUEST_OBJ)/%.c.o: %.c tests/guests/build.mk
	@mkdir -p $(@D)
	$(call quiet,CC      $<)$(CROSS_COMPILE)gcc $(GUEST_CPPFLAGS) $(GUEST_CFLAGS) -MMD -MP -c $< -o $@

$(GUEST_OBJ)/%.S.o: %.S tests/guests/build.mk
	@mkdir -p $(@D)
	$(call quiet,AS      $<)$(CROSS_COMPILE)gcc $(GUEST_CPPFLAGS) -g -MMD -MP -c $< -o $@

define GUEST_RULE
$(BUILD)/guests/$(1).elf: $(patsubst %,$(GUEST_OBJ)/%.o,$(wildcard tests/guests/$(1).[cS])) \
		$(GUEST_LIB) tests/guests/lib/guest.ld
	$$(call quiet,LD      $$@)$(CROSS_COMPILE)ld -m elf_x86_64 -nostdlib -static -z max-page-size=4096 -z noexecstack --build-id=none \
		-T tests/guests/lib/guest.ld -o $(BUILD)/guests/$(1).elf64 $$(filter %.o,$$^)
	@$(CROSS_COMPILE)objcopy -O elf32-i386 --strip-debug $(BUILD)/guests/$(1).elf64 $$@
endef
$(foreach name,$(GUEST_NAMES),$(eval $(call GUEST_RULE,$(name))))

-include $(wildcard $(GUEST_OBJ)/tests/guests/*.d $(GUEST_OBJ)/tests/guests/lib/*.d $(GUEST_OBJ)/core/*.d)
