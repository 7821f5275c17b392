//! The MADT: interrupt controllers (ACPI 6.5, 5.2.12).

use alloc::vec::Vec;

use acpi_tables::sdt::Sdt;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use super::{
    IO_APIC_ADDRESS, IO_APIC_ID, LOCAL_APIC_ADDRESS, LegacyPic, Platform, Processor, SCI_IRQ, TIMER_PIN,
    table,
};

/// ACPI 6.5, table 5.19.
const REVISION: u8 = 6;
/// MADT flags: there is a pair of 8259s as well.
const PCAT_COMPAT: u32 = 1;
/// Flags of a local APIC: ready to use.
const ENABLED: u32 = 1;
/// Flags of an interrupt: as its bus has it (ACPI 6.5, table 5.26).
const CONFORMS: u16 = 0;
/// Flags of an interrupt: active high, level-triggered.
const HIGH_LEVEL: u16 = 0b11_01;
/// The UIDs that mean every processor.
const ALL_PROCESSORS: u8 = u8::MAX;
const ALL_X2APIC_PROCESSORS: u32 = u32::MAX;
/// The local interrupt input that NMIs come to.
const NMI_LINT: u8 = 1;

/// An APIC ID that an entry with 8 bits can hold. 0xff is broadcast there (ACPI 6.5, 5.2.12.12).
pub(super) fn xapic_id(processor: Processor) -> Option<u8> {
    u8::try_from(processor.apic_id).ok().filter(|&id| id != u8::MAX)
}

/// Type 0.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct LocalApic {
    kind: u8,
    length: u8,
    processor_uid: u8,
    apic_id: u8,
    flags: U32,
}

/// Type 1.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct IoApic {
    kind: u8,
    length: u8,
    id: u8,
    reserved: u8,
    address: U32,
    interrupt_base: U32,
}

/// Type 2.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct InterruptSourceOverride {
    kind: u8,
    length: u8,
    bus: u8,
    source: u8,
    interrupt: U32,
    flags: U16,
}

/// Type 4.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct LocalApicNmi {
    kind: u8,
    length: u8,
    processor_uid: u8,
    flags: U16,
    lint: u8,
}

/// Type 9.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct LocalX2Apic {
    kind: u8,
    length: u8,
    reserved: U16,
    x2apic_id: U32,
    flags: U32,
    processor_uid: U32,
}

/// Type 10.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct LocalX2ApicNmi {
    kind: u8,
    length: u8,
    flags: U16,
    processor_uid: U32,
    lint: u8,
    reserved: [u8; 3],
}

const _: () = {
    assert!(size_of::<LocalApic>() == 8);
    assert!(size_of::<IoApic>() == 12);
    assert!(size_of::<InterruptSourceOverride>() == 10);
    assert!(size_of::<LocalApicNmi>() == 6);
    assert!(size_of::<LocalX2Apic>() == 16);
    assert!(size_of::<LocalX2ApicNmi>() == 12);
};

pub(super) fn madt(platform: &Platform) -> Sdt {
    let flags = match platform.pic {
        LegacyPic::Present => PCAT_COMPAT,
        LegacyPic::Absent => 0,
    };
    let mut body = Vec::new();
    body.extend_from_slice(&LOCAL_APIC_ADDRESS.to_le_bytes());
    body.extend_from_slice(&flags.to_le_bytes());
    // The boot processor's entry has to come first (ACPI 6.5, 5.2.12.1), so both kinds are in the processors' order.
    for &processor in &platform.processors {
        match xapic_id(processor) {
            Some(id) => body.extend_from_slice(
                LocalApic { kind: 0, length: 8, processor_uid: id, apic_id: id, flags: ENABLED.into() }
                    .as_bytes(),
            ),
            None => body.extend_from_slice(
                LocalX2Apic {
                    kind: 9,
                    length: 16,
                    reserved: U16::ZERO,
                    x2apic_id: processor.apic_id.into(),
                    flags: ENABLED.into(),
                    processor_uid: processor.apic_id.into(),
                }
                .as_bytes(),
            ),
        }
    }
    body.extend_from_slice(
        IoApic {
            kind: 1,
            length: 12,
            id: IO_APIC_ID,
            reserved: 0,
            address: IO_APIC_ADDRESS.into(),
            interrupt_base: U32::ZERO,
        }
        .as_bytes(),
    );
    for (source, interrupt, flags) in [(0, TIMER_PIN, CONFORMS), (SCI_IRQ, SCI_IRQ.into(), HIGH_LEVEL)] {
        body.extend_from_slice(
            InterruptSourceOverride {
                kind: 2,
                length: 10,
                bus: 0,
                source,
                interrupt: interrupt.into(),
                flags: flags.into(),
            }
            .as_bytes(),
        );
    }
    body.extend_from_slice(
        LocalApicNmi {
            kind: 4,
            length: 6,
            processor_uid: ALL_PROCESSORS,
            flags: CONFORMS.into(),
            lint: NMI_LINT,
        }
        .as_bytes(),
    );
    if platform.processors.iter().any(|&processor| xapic_id(processor).is_none()) {
        body.extend_from_slice(
            LocalX2ApicNmi {
                kind: 10,
                length: 12,
                flags: CONFORMS.into(),
                processor_uid: ALL_X2APIC_PROCESSORS.into(),
                lint: NMI_LINT,
                reserved: [0; 3],
            }
            .as_bytes(),
        );
    }
    table(*b"APIC", REVISION, &body)
}
