// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// A triple fault: Nestor stops the guest with a report, and tests/run's status is 126 (SDM vol. 3
// "Double Fault Exception (#DF)").

#include "guest.h"

void guest_main(void)
{
    struct table_pointer none = {0, 0};

    report(true, "a triple fault comes next");
    print_summary();
    __asm__ volatile("lidt %0; int3" : : "m"(none));
    report(false, "the guest goes on");
}
