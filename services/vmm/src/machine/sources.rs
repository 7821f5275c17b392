//! What a guest is made from, and how that gets into its memory.

use core::num::NonZeroU64;

use ipc::guest::GuestConfig;

use super::Host;
use crate::acpi::{LegacyPic, Platform};
use crate::boot::{BootError, LoadError, ProcessorState, plan};
use crate::memory::{GuestMemory, GuestPhysAddr, NotMemory};

/// What a guest is made from.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// What it is to be.
    pub config: &'a GuestConfig,
    /// A bzImage.
    pub kernel: &'a [u8],
    /// The initrd, if any.
    pub initrd: Option<&'a [u8]>,
    /// The node's own CPUID.
    pub cpuid: fn(u32, u32) -> [u32; 4],
    /// Ticks of the node's TSC in a second.
    pub tsc_hz: NonZeroU64,
    /// Seconds since 1970.
    pub unix_seconds: u64,
    /// Pages from [`PRIVATE_START`] on, for the walk cache.
    pub private_pages: u32,
    /// Which of the shares is this node's.
    pub place: usize,
    /// What is added to the node's TSC to make the guest's; `None` when the guest's time begins now.
    pub tsc_offset: Option<u64>,
}

/// Why a guest cannot start.
#[derive(Debug)]
pub enum StartError {
    /// Kernel, initrd, command line and memory do not fit.
    Boot(BootError),
    /// They could not be put into the guest's memory.
    Load(LoadError),
    /// There are too many vCPUs.
    TooManyVcpus,
    /// There are too few pages for the walk cache's tables.
    TooFewTables,
}

impl core::fmt::Display for StartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Boot(error) => error.fmt(f),
            Self::Load(error) => error.fmt(f),
            Self::TooManyVcpus => f.write_str("there are too many vCPUs"),
            Self::TooFewTables => f.write_str("there is too little memory for the walk cache's tables"),
        }
    }
}

impl Sources<'_> {
    /// Loads the guest's memory; how its first processor begins.
    pub(super) fn load<H: Host>(&self, host: &mut H) -> Result<ProcessorState, StartError> {
        let Sources { config, kernel, initrd, .. } = *self;
        let plan = plan(kernel, initrd, &config.command_line, &config.shares);
        let platform = Platform::spanning(&config.shares, LegacyPic::Present);
        plan.map_err(StartError::Boot)?.load(&mut Tended(host), &platform).map_err(StartError::Load)
    }
}

/// Guest memory that is written for long: of a guest that spans nodes, each page is another node's to give.
struct Tended<'a, H>(&'a mut H);

impl<H: Host> GuestMemory for Tended<'_, H> {
    fn read(&self, at: GuestPhysAddr, into: &mut [u8]) -> Result<(), NotMemory> {
        self.0.read(at, into)
    }

    fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]) -> Result<(), NotMemory> {
        self.0.tend();
        self.0.write(at, bytes)
    }

    fn compare_exchange_u64(
        &mut self,
        at: GuestPhysAddr,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, NotMemory> {
        self.0.compare_exchange_u64(at, old, new)
    }

    fn compare_exchange_u32(
        &mut self,
        at: GuestPhysAddr,
        old: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, NotMemory> {
        self.0.compare_exchange_u32(at, old, new)
    }
}
