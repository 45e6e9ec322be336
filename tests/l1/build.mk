# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
#
# What a Linux needs to be the guest that is a hypervisor: $(BUILD)/l1/initramfs.cpio.gz.

.PHONY: l1-files
l1-files: $(BUILD)/l1/vmm $(BUILD)/system/tiny.elf guest-files
	@tests/l1/initramfs

$(BUILD)/l1/vmm: tests/l1/vmm.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call quiet,CC      $<)$(CC) -std=gnu11 -O2 -Wall -Wextra -Wshadow -Wstrict-prototypes -Werror \
		-static -pthread -o $@ $<
