//! The processors' APIC IDs, and what they say of who is near to whom.

#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use ipc::guest::{Share, total_vcpus};

use crate::acpi::IO_APIC_ID;

/// How the vCPUs of all shares are numbered for the guest, in their order.
///
/// Each node is a package: the upper bits of an ID are its place among the shares, the lower ones number its vCPUs. When an
/// ID would not stay below that of the I/O APIC, IDs are the vCPUs' numbers and all are one package.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Topology {
    /// The APIC IDs.
    pub ids: Vec<u32>,
    /// Bits of an ID that number the vCPUs of a package.
    pub core_bits: u32,
    /// How many there are in the package of each share.
    pub cores: Vec<u8>,
    /// Bits of an ID that number vCPUs which have a cache in common: those of a package, unless nodes share one.
    pub cache_bits: u32,
}

/// Bits for so many numbers.
const fn bits_for(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

impl Topology {
    /// The numbers of a guest that has these shares.
    #[must_use]
    pub fn of(shares: &[Share]) -> Self {
        let largest = shares.iter().map(|share| share.vcpus).max().unwrap_or(0);
        let core_bits = bits_for(largest.into());
        let in_packages: Vec<u32> = (0..)
            .zip(shares)
            .flat_map(|(place, share)| (0..u32::from(share.vcpus)).map(move |core| place << core_bits | core))
            .collect();
        if in_packages.iter().all(|&id| id < IO_APIC_ID.into()) {
            let cores = shares.iter().map(|share| share.vcpus).collect();
            return Self { ids: in_packages, core_bits, cores, cache_bits: core_bits };
        }
        let total = total_vcpus(shares);
        let all = u8::try_from(total).unwrap_or(u8::MAX);
        // A cache must not reach beyond a node: Linux does not believe in that.
        let cache_bits = if shares.len() > 1 { 0 } else { bits_for(total) };
        Self {
            ids: (0..total).collect(),
            core_bits: bits_for(total),
            cores: shares.iter().map(|_| all).collect(),
            cache_bits,
        }
    }
}
