// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// What the local APIC asks of KVM's paravirtual interface: an interrupt's end told in the guest's
// memory. Own pCPU.

#pragma once

#include <nestor/types.h>

struct vcpu;

// The guest may end its interrupt in service by clearing the flag in its memory. Only where it has
// named one (vcpu->pv.eoi), and where nothing waits for that end.
void paravirt_offer_eoi(struct vcpu *vcpu);
// Takes the offer back (vcpu->pv.eoi_offered): whether the guest has made use of it.
bool paravirt_take_eoi(struct vcpu *vcpu);
