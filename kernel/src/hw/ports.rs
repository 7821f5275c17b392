//! I/O ports by width.
#![expect(unsafe_code, reason = "port I/O")]

use kernel::machine::Width;

use super::instructions::{in8, in16, in32, out8, out16, out32};

/// Reads a port that the kernel uses, or that the manifest gives to a service.
#[must_use]
pub fn read(port: u16, width: Width) -> u32 {
    match width {
        // SAFETY: a device's register; the manifest's author answers for what a service's ports can do.
        Width::Byte => u32::from(unsafe { in8(port) }),
        // SAFETY: as above.
        Width::Word => u32::from(unsafe { in16(port) }),
        // SAFETY: as above.
        Width::Dword => unsafe { in32(port) },
    }
}

/// Writes a port, likewise.
#[expect(clippy::cast_possible_truncation, reason = "the width says how many bits count")]
pub fn write(port: u16, width: Width, value: u32) {
    match width {
        // SAFETY: a device's register; the manifest's author answers for what a service's ports can do.
        Width::Byte => unsafe { out8(port, value as u8) },
        // SAFETY: as above.
        Width::Word => unsafe { out16(port, value as u16) },
        // SAFETY: as above.
        Width::Dword => unsafe { out32(port, value) },
    }
}
