//! The SRAT and the SLIT: what is near to what (ACPI 6.5, 5.2.16 and 5.2.17).

use alloc::vec::Vec;

use acpi_tables::sdt::Sdt;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{Immutable, IntoBytes};

use super::madt::xapic_id;
use super::{Platform, table};

/// Domains are 32 bits wide everywhere since revision 2.
const SRAT_REVISION: u8 = 3;
const SLIT_REVISION: u8 = 1;
/// Flags of every entry: to be used.
const ENABLED: u32 = 1;

/// Type 0.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct LocalApicAffinity {
    kind: u8,
    length: u8,
    domain_low: u8,
    apic_id: u8,
    flags: U32,
    local_sapic_eid: u8,
    domain_high: [u8; 3],
    clock_domain: U32,
}

/// Type 1.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct MemoryAffinity {
    kind: u8,
    length: u8,
    domain: U32,
    reserved: U16,
    base: U64,
    bytes: U64,
    reserved_2: U32,
    flags: U32,
    reserved_3: U64,
}

/// Type 2.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct LocalX2ApicAffinity {
    kind: u8,
    length: u8,
    reserved: U16,
    domain: U32,
    x2apic_id: U32,
    flags: U32,
    clock_domain: U32,
    reserved_2: U32,
}

const _: () = {
    assert!(size_of::<LocalApicAffinity>() == 16);
    assert!(size_of::<MemoryAffinity>() == 40);
    assert!(size_of::<LocalX2ApicAffinity>() == 24);
};

pub(super) fn srat(platform: &Platform) -> Sdt {
    let mut body = Vec::new();
    // Reserved, but 1 for old readers; then 8 bytes that are only reserved.
    body.extend_from_slice(&1u32.to_le_bytes());
    body.extend_from_slice(&0u64.to_le_bytes());
    for &processor in &platform.processors {
        let domain = processor.domain.0;
        match xapic_id(processor) {
            Some(apic_id) => {
                let [domain_low, domain_high @ ..] = domain.to_le_bytes();
                body.extend_from_slice(
                    LocalApicAffinity {
                        kind: 0,
                        length: 16,
                        domain_low,
                        apic_id,
                        flags: ENABLED.into(),
                        local_sapic_eid: 0,
                        domain_high,
                        clock_domain: U32::ZERO,
                    }
                    .as_bytes(),
                );
            }
            None => body.extend_from_slice(
                LocalX2ApicAffinity {
                    kind: 2,
                    length: 24,
                    reserved: U16::ZERO,
                    domain: domain.into(),
                    x2apic_id: processor.apic_id.into(),
                    flags: ENABLED.into(),
                    clock_domain: U32::ZERO,
                    reserved_2: U32::ZERO,
                }
                .as_bytes(),
            ),
        }
    }
    for range in &platform.memory {
        body.extend_from_slice(
            MemoryAffinity {
                kind: 1,
                length: 40,
                domain: range.domain.0.into(),
                reserved: U16::ZERO,
                base: range.start.0.into(),
                bytes: range.bytes.into(),
                reserved_2: U32::ZERO,
                flags: ENABLED.into(),
                reserved_3: U64::ZERO,
            }
            .as_bytes(),
        );
    }
    table(*b"SRAT", SRAT_REVISION, &body)
}

pub(super) fn slit(platform: &Platform) -> Sdt {
    let mut body = Vec::new();
    body.extend_from_slice(&(platform.distances.len() as u64).to_le_bytes());
    for row in &platform.distances {
        body.extend_from_slice(row);
    }
    table(*b"SLIT", SLIT_REVISION, &body)
}
