// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// APIC acceleration on VMX: TPR shadow, APIC-register virtualization and virtual-interrupt
// delivery, in xAPIC mode by the APIC-access page, in x2APIC mode by the MSR bitmap. SDM vol. 3
// "APIC Virtualization and Virtual Interrupts".

#include "vmx.h"
#include <arch/x86/msr.h>
#include <nestor/host.h>
#include <nestor/page.h>
#include <nestor/string.h>
#include <nestor/vm.h>

// The VMs' own policy and what an x2APIC that the CPU plays needs no exit for; constant after boot.
static u8 x2apic_bitmap[PAGE_SIZE] ALIGNED(PAGE_SIZE);

#define DELIVERY (SECONDARY_APIC_REGISTERS | SECONDARY_INTERRUPT_DELIVERY)

// Bochs, 2.7 and 3, whatever CPU it plays: an external interrupt that arrives while a virtual
// interrupt is pending delivers that one, with RFLAGS.IF = 0 as well (its InterruptAcknowledge asks
// what is pending, not what is unmasked; SDM "Recognition and Delivery of Virtual Interrupts" wants
// IF = 1), and Linux then hangs in a lock. Such a CPU gets to know of a virtual interrupt only when
// the guest can take it at once: an interrupt window tells when (core/event.c), an EOI with one
// more behind it exits (devices/lapic_accel.c), so do a self-IPI and the writes of TPR. The
// APIC-access page has no control for these two, so xAPIC mode is left to the model; and nothing is
// posted. Where another machine is taken for Bochs it costs exits and nothing else. apicv=on does
// without it all.
static bool is_leaky(void)
{
    return acpi_is_bochs() && !option_is("apicv", "on");
}

void vmx_apic_probe(struct vmx_caps *caps)
{
    const u32 *allowed = caps->controls.allowed;
    u32 secondary = allowed[CONTROL_SECONDARY];

    if (option_off("apicv") || !(allowed[CONTROL_PRIMARY] & PRIMARY_TPR_SHADOW) ||
        (secondary & DELIVERY) != DELIVERY)
        return;
    caps->apic_leaky = is_leaky();
    caps->posts_interrupts = (allowed[CONTROL_PIN] & PIN_POSTED_INTERRUPTS) && !caps->apic_leaky;
    if ((secondary & SECONDARY_APIC_ACCESSES) && !caps->apic_leaky)
        caps->apic_modes |= BIT(ACCEL_XAPIC);
    if (secondary & SECONDARY_X2APIC)
        caps->apic_modes |= BIT(ACCEL_X2APIC);
}

enum { X2APIC_EOI = 0x0b };

// The x2APIC's registers whose reads are those of the page, and those that the CPU writes itself.
// The rest exits: the current count runs, ICR is sent, and what is not there raises #GP.
static const struct {
    u16 first, last; // MSR - 800h
    bool read, write;
} x2apic_passed[] = {
    {0x02, 0x03, true, false}, // ID, version
    {0x08, 0x08, true, true},  // TPR
    {0x0a, 0x0a, true, false}, // PPR
    {X2APIC_EOI, X2APIC_EOI, false, true},
    {0x0d, 0x0d, true, false}, // LDR
    {0x0f, 0x0f, true, false}, // SVR
    {0x10, 0x28, true, false}, // ISR, TMR, IRR, ESR
    {0x32, 0x38, true, false}, // LVT, initial count
    {0x3e, 0x3e, true, false}, // divide configuration
    {0x3f, 0x3f, false, true}, // self-IPI
};

// The notification found the CPU out of its guest, or in one whose LAPIC is not accelerated.
static void posted_while_outside(void)
{
    if (this_cpu()->current)
        vcpu_post(this_cpu()->current, REQUEST_EVENT);
}

void vmx_apic_notify(struct vcpu *vcpu)
{
    if (__atomic_load_n(&vcpu->cpu->in_guest, __ATOMIC_SEQ_CST))
        apic_send_ipi(vcpu->cpu->apic_id, HOST_VECTOR_POSTED);
    else
        vcpu_post(vcpu, REQUEST_EVENT);
}

void vmx_apic_accept(const u8 *msr_bitmap)
{
    memcpy(x2apic_bitmap, msr_bitmap, sizeof(x2apic_bitmap));
    for (unsigned i = 0; i < ARRAY_SIZE(x2apic_passed); i++)
        for (u32 n = x2apic_passed[i].first; n <= x2apic_passed[i].last; n++)
            vmx_msr_pass(x2apic_bitmap, MSR_X2APIC_FIRST + n, x2apic_passed[i].read,
                         x2apic_passed[i].write && (!vmx_caps.apic_leaky || n == X2APIC_EOI));
    irq_register(HOST_VECTOR_POSTED, posted_while_outside);
    vmx_backend.knows_apic_page = vmx_caps.apic_modes & BIT(ACCEL_XAPIC);
}

enum { PAGE_ORDER = 1 }; // the virtual-APIC page, and behind it the posted-interrupt descriptor

int vmx_apic_create(struct vcpu *vcpu)
{
    struct apic_accel *apic = &vcpu->apic;

    apic->page = page_alloc(PAGE_ORDER);
    if (apic->page && vmx_caps.posts_interrupts)
        apic->posted = (struct apic_posted *)(void *)(apic->page + PAGE_SIZE);
    apic->access_page = vcpu->vm->apic_access_page;
    apic->offered = vmx_caps.apic_modes;
    apic->leaky = vmx_caps.apic_leaky;
    if (vcpu->vm->config->nested) // an L2 must not meet the APIC-access page
        apic->offered &= (u8)~BIT(ACCEL_XAPIC);
    return apic->page ? 0 : -E_NOMEM;
}

void vmx_apic_destroy(struct vcpu *vcpu)
{
    page_free(vcpu->apic.page, PAGE_ORDER);
    vcpu->apic.page = NULL;
    vcpu->apic.posted = NULL;
}

void vmx_apic_write_constants(const struct backend_ctx *hw)
{
    const struct apic_accel *apic = hw->apic;

    vmwrite(VIRTUAL_APIC_ADDRESS, virt_to_phys(apic->page));
    vmwrite(TPR_THRESHOLD, 0);
    if (apic->posted) {
        vmwrite(POSTED_INTERRUPT_VECTOR, HOST_VECTOR_POSTED);
        vmwrite(POSTED_INTERRUPT_DESCRIPTOR, virt_to_phys(apic->posted));
    }
    if (vmx_caps.apic_modes & BIT(ACCEL_XAPIC))
        vmwrite(APIC_ACCESS_ADDRESS, apic->access_page);
}

// A vCPU that does not use the APIC-access page, although stage 2 maps it, exits on every access to
// it; except with an x2APIC, and then it is not mapped.
void vmx_apic_controls(struct backend_ctx *hw)
{
    u32 pin = vmx_caps.controls.base[CONTROL_PIN];
    u8 mode = hw->apic->mode;

    if (hw->apic->posted)
        vmwrite(PIN_BASED_CONTROLS, mode == ACCEL_OFF ? pin : pin | PIN_POSTED_INTERRUPTS);
    if (mode == ACCEL_X2APIC)
        hw->secondary |= SECONDARY_X2APIC;
    else if (vmx_caps.apic_modes & BIT(ACCEL_XAPIC))
        hw->secondary |= SECONDARY_APIC_ACCESSES;
    if (mode == ACCEL_OFF)
        return;
    hw->secondary |= DELIVERY;
    hw->primary |= PRIMARY_TPR_SHADOW;
    hw->primary &= ~(u32)(PRIMARY_CR8_STORE | (hw->apic->leaky ? 0 : PRIMARY_CR8_LOAD));
}

const u8 *vmx_apic_msr_bitmap(const struct backend_ctx *hw, const u8 *plain)
{
    return hw->apic && hw->apic->mode == ACCEL_X2APIC ? x2apic_bitmap : plain;
}

void vmx_apic_update(struct vcpu *vcpu)
{
    struct apic_accel *apic = &vcpu->apic;

    vmwrite(GUEST_INTERRUPT_STATUS, (u64)apic->in_service << 8 | apic->requesting);
    if (likely(!apic->eoi_exit_new))
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(apic->eoi_exit); i++)
        vmwrite(EOI_EXIT_BITMAP_0 + 2 * i, apic->eoi_exit[i]);
    apic->eoi_exit_new = false;
}
