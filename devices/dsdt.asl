// SPDX-License-Identifier: BSD-2-Clause
// Copyright (c) 2026 The Nestor authors
//
// The guest's DSDT: what ACPI can't say in fixed tables of the machine that devices/*.c make. Compiled
// at build time by iasl; tables.c puts it into guest memory.

DefinitionBlock ("dsdt.aml", "DSDT", 2, "NESTOR", "NESTORPC", 1)
{
    // Suspend to RAM is sleep type 1, soft off is 0 (acpi_pm.c).
    Name (\_S3, Package () { 1, 0, 0, 0 })
    Name (\_S5, Package () { 0, 0, 0, 0 })

    // 0: the system uses the PIC, 1: the IOAPIC.
    Name (\PICM, 0)
    Method (\_PIC, 1, NotSerialized) { PICM = Arg0 }

    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A03"))
            Name (_BBN, 0)
            Name (_UID, 0)

            Name (_CRS, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode,
                    0, 0, 0, 0, 1)
                IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0, 0x0000, 0x0CF7, 0, 0x0CF8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange,
                    0, 0x0D00, 0xFFFF, 0, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0, 0xC0000000, 0xFEAFFFFF, 0, 0x3EB00000)
            })

            // INTA-INTD of all devices, swizzled: IOAPIC pins 16-19, or IRQ 10 and 11 of the PIC.
            Method (_PRT, 0, NotSerialized)
            {
                Local7 = Package (128) {}
                Local0 = 0
                While (Local0 < 128)
                {
                    Local1 = ((Local0 >> 2) << 16) | 0xFFFF
                    Local2 = (Local0 + (Local0 >> 2)) & 3
                    If (PICM) { Local3 = 16 + Local2 }
                    Else { Local3 = 10 + (Local2 & 1) }
                    Local7 [Local0] = Package (4) { 0, 0, 0, 0 }
                    DerefOf (Local7 [Local0]) [0] = Local1
                    DerefOf (Local7 [Local0]) [1] = (Local0 & 3)
                    DerefOf (Local7 [Local0]) [3] = Local3
                    Local0++
                }
                Return (Local7)
            }

            Device (PIC)
            {
                Name (_HID, EisaId ("PNP0000"))
                Name (_CRS, ResourceTemplate ()
                {
                    IO (Decode16, 0x0020, 0x0020, 1, 2)
                    IO (Decode16, 0x00A0, 0x00A0, 1, 2)
                    IO (Decode16, 0x04D0, 0x04D0, 1, 2)
                    IRQNoFlags () { 2 }
                })
            }

            Device (TMR)
            {
                Name (_HID, EisaId ("PNP0100"))
                Name (_CRS, ResourceTemplate ()
                {
                    IO (Decode16, 0x0040, 0x0040, 1, 4)
                    IRQNoFlags () { 0 }
                })
            }

            Device (RTC)
            {
                Name (_HID, EisaId ("PNP0B00"))
                Name (_CRS, ResourceTemplate ()
                {
                    IO (Decode16, 0x0070, 0x0070, 1, 2)
                    IRQNoFlags () { 8 }
                })
            }

            Device (COM1)
            {
                Name (_HID, EisaId ("PNP0501"))
                Name (_UID, 1)
                Name (_CRS, ResourceTemplate ()
                {
                    IO (Decode16, 0x03F8, 0x03F8, 1, 8)
                    IRQNoFlags () { 4 }
                })
            }

            Device (MBRD)
            {
                Name (_HID, EisaId ("PNP0C02"))
                Name (_CRS, ResourceTemplate ()
                {
                    IO (Decode16, 0x0061, 0x0061, 1, 1)
                    IO (Decode16, 0x0080, 0x0080, 1, 1)
                    IO (Decode16, 0x0092, 0x0092, 1, 1)
                    IO (Decode16, 0x0600, 0x0600, 1, 16)
                    Memory32Fixed (ReadWrite, 0xFEB00000, 0x100000) // ECAM of bus 0
                    Memory32Fixed (ReadOnly, 0xFEC00000, 0x1000)
                    Memory32Fixed (ReadWrite, 0xFEE00000, 0x1000)
                })
            }
        }
    }
}
