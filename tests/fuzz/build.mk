# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) 2026 The Nestor authors
#
# The fuzz targets: tests/fuzz/NAME.c becomes $(BUILD)/fuzz/fuzz-NAME by clang's libFuzzer; the programs of single devices are
# links to fuzz-device, which looks at its name.

FUZZ_CC ?= clang
FUZZ_CFLAGS := -std=gnu11 -O1 -g -D_GNU_SOURCE -fno-omit-frame-pointer -fno-strict-aliasing -fsanitize=fuzzer,address,undefined \
	-fno-sanitize-recover=all -w
FUZZ_SOURCES := emulate config load vmcs12 vmcb12 device
FUZZ_DEVICES := lapic ioapic pit rtc uart pci i8042 pic fwcfg machine
fuzz_units = $(patsubst %,tests/unit/%.c,$(shell sed -n 's|^// fuzz-tests: *||p' tests/fuzz/$(1).c))
fuzz_words = $(sort $(foreach unit,$(call fuzz_units,$(1)),$(call unit_words,$(2),$(unit))))

.PHONY: fuzz-programs
fuzz-programs: $(FUZZ_SOURCES:%=$(BUILD)/fuzz/fuzz-%) $(FUZZ_DEVICES:%=$(BUILD)/fuzz/fuzz-%)

$(FUZZ_DEVICES:%=$(BUILD)/fuzz/fuzz-%): $(BUILD)/fuzz/fuzz-device
	@ln -f $< $@

$(FUZZ_SOURCES:%=$(BUILD)/fuzz/fuzz-%): $(BUILD)/fuzz/fuzz-%: tests/fuzz/%.c tests/fuzz/fuzz.h $$(call fuzz_units,$$*) \
		$$(call fuzz_words,$$*,sources) $(HEADERS) tests/fuzz/build.mk
	@mkdir -p $(@D)
	$(call quiet,FUZZCC  $<)$(FUZZ_CC) $(FUZZ_CFLAGS) $(call fuzz_words,$*,cflags) $(CPPFLAGS) -I. $< $(call fuzz_words,$*,sources) \
		-o $@ -lcmocka $(call fuzz_words,$*,libs)
