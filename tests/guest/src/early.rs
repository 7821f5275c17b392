//! Kernels that try a virtual machine monitor before any operating system runs: small bzImages for a loader of Linux's
//! 64-bit boot protocol.
//!
//! The code is assembled into this library as data (`early/*.S`) and runs wherever it is loaded; an image is that code with
//! the parameters filled in. It writes to COM1 (port 0x3f8), first of all a line with `early` and the scenario's name.
#![expect(unsafe_code, reason = "symbols of the assembly")]

use core::fmt;
use core::slice;
use core::str::FromStr;

core::arch::global_asm!(include_str!("../early/setup.S"), options(att_syntax, raw));
core::arch::global_asm!(
    include_str!("../early/payload.S"),
    include_str!("../early/fuzz.S"),
    include_str!("../early/fuzz_processor.S"),
    options(att_syntax, raw)
);

// SAFETY: the assembly above defines them, the first and the last of each pair in one section.
unsafe extern "C" {
    static guest_kit_setup_begin: u8;
    static guest_kit_setup_end: u8;
    static guest_kit_payload_begin: u8;
    static guest_kit_payload_end: u8;
}

/// What an image does, in the order of the assembly's table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Scenario {
    /// Random operations of ring 0: ports, MMIO, MSRs, CPUID and hypercalls, control and debug registers, privileged
    /// instructions. Ends with `early-fuzz done` and powers off.
    Fuzz {
        /// What they are.
        seed: u64,
        /// How many they are; a dot is printed after each 256.
        iterations: u32,
    } = 0,
    /// An exception without a handler, with no handler for that either.
    TripleFault = 1,
    /// HLT with interrupts off: never goes on by itself.
    HaltForever = 2,
    /// VMRUN with several addresses, after trying to turn SVM on.
    Vmrun = 3,
    /// An SSE store to the I/O APIC, which no kernel does.
    VectorStore = 4,
    /// Exits without end.
    ExitStorm = 5,
    /// Goes on where there is no memory.
    JumpNowhere = 6,
    /// Page tables where there is no memory.
    TablesNowhere = 7,
    /// An exception with the stack where there is no memory.
    StackNowhere = 8,
    /// An exception with the table of its handlers where there is no memory.
    VectorsNowhere = 9,
}

/// Every scenario; the fuzz with a seed and length that take a few seconds under emulation.
pub const SCENARIOS: [Scenario; 10] = [
    Scenario::Fuzz { seed: 1, iterations: 20_000 },
    Scenario::TripleFault,
    Scenario::HaltForever,
    Scenario::Vmrun,
    Scenario::VectorStore,
    Scenario::ExitStorm,
    Scenario::JumpNowhere,
    Scenario::TablesNowhere,
    Scenario::StackNowhere,
    Scenario::VectorsNowhere,
];

/// What an image that could go on, though it should not have, prints before it powers off.
pub const SURVIVED: &str = "early survived";
/// What the fuzz prints at its end, before it powers off.
pub const FUZZ_DONE: &str = "early-fuzz done";

impl Scenario {
    /// The name that the image prints after `early`; `--kind` of the program `early-image`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fuzz { .. } => "fuzz",
            Self::TripleFault => "triple-fault",
            Self::HaltForever => "halt-forever",
            Self::Vmrun => "vmrun",
            Self::VectorStore => "vector-store",
            Self::ExitStorm => "exit-storm",
            Self::JumpNowhere => "jump-nowhere",
            Self::TablesNowhere => "tables-nowhere",
            Self::StackNowhere => "stack-nowhere",
            Self::VectorsNowhere => "vectors-nowhere",
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Fuzz { .. } => 0,
            Self::TripleFault => 1,
            Self::HaltForever => 2,
            Self::Vmrun => 3,
            Self::VectorStore => 4,
            Self::ExitStorm => 5,
            Self::JumpNowhere => 6,
            Self::TablesNowhere => 7,
            Self::StackNowhere => 8,
            Self::VectorsNowhere => 9,
        }
    }
}

/// No scenario has this name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnknownScenario(pub String);

impl fmt::Display for UnknownScenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no scenario is called {}", self.0)
    }
}

impl std::error::Error for UnknownScenario {}

impl FromStr for Scenario {
    type Err = UnknownScenario;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        SCENARIOS
            .into_iter()
            .find(|scenario| scenario.name() == name)
            .ok_or_else(|| UnknownScenario(name.to_owned()))
    }
}

const SECTOR: usize = 512;
/// Sectors before the protected-mode part: the boot sector and those that the header's `setup_sects` counts.
const SETUP_SECTORS: usize = 5;
/// Where the header has the size of the protected-mode part, in units of 16 bytes.
const SYSSIZE: usize = 0x1f4;
/// Where the parameters are in the protected-mode part, after their mark of 8 bytes.
const PARAMETERS: usize = 0x218;

/// The image of a scenario.
#[must_use]
pub fn bzimage(scenario: Scenario) -> Vec<u8> {
    let setup = bytes(&raw const guest_kit_setup_begin, &raw const guest_kit_setup_end);
    let payload = bytes(&raw const guest_kit_payload_begin, &raw const guest_kit_payload_end);
    let mut image = setup.to_vec();
    image.resize(SETUP_SECTORS * SECTOR, 0);
    image.extend(payload);
    image.resize(image.len().next_multiple_of(SECTOR), 0);

    let paragraphs = u32::try_from((image.len() - SETUP_SECTORS * SECTOR) / 16).unwrap_or(u32::MAX);
    image[SYSSIZE..SYSSIZE + 4].copy_from_slice(&paragraphs.to_le_bytes());
    let (seed, iterations) = match scenario {
        Scenario::Fuzz { seed, iterations } => (seed, iterations),
        _ => (0, 0),
    };
    let parameters = &mut image[SETUP_SECTORS * SECTOR + PARAMETERS..][..16];
    parameters[..4].copy_from_slice(&scenario.number().to_le_bytes());
    parameters[4..8].copy_from_slice(&iterations.to_le_bytes());
    parameters[8..].copy_from_slice(&seed.to_le_bytes());
    image
}

fn bytes(begin: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: called with both ends of constant data in one section.
    unsafe { slice::from_raw_parts(begin, end.addr() - begin.addr()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(image: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(image[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_header_is_linux_s() {
        // Offsets: Documentation/arch/x86/boot.rst.
        let image = bzimage(Scenario::TripleFault);
        assert_eq!(image[0x1f1], 4, "setup_sects");
        assert_eq!(usize::try_from(u32_at(&image, 0x1f4) * 16).unwrap(), image.len() - 5 * 512, "syssize");
        assert_eq!(image[0x1fe..0x202], [0x55, 0xaa, 0xeb, 0x6a], "boot_flag, jump");
        assert_eq!(&image[0x202..0x206], b"HdrS");
        assert_eq!(image[0x206..0x208], [0x0f, 0x02], "version");
        assert_eq!(image[0x211], 1, "loadflags");
        assert_eq!(u32_at(&image, 0x214), 0x10_0000, "code32_start");
        assert_eq!(u32_at(&image, 0x230), 0x10_0000, "kernel_alignment");
        assert_eq!(image[0x234..0x238], [1, 20, 1, 0], "relocatable_kernel, min_alignment, xloadflags");
        assert_eq!(u32_at(&image, 0x258), 0x10_0000, "pref_address");
        let init_size = u32_at(&image, 0x260);
        assert_eq!(init_size, 0x3_0000, "init_size");
        // The code ends before its own data begin.
        assert!(image.len() - 5 * 512 < 0x1_0000);
    }

    #[test]
    fn parameters_are_where_the_code_reads_them() {
        let image = bzimage(Scenario::Fuzz { seed: 0x1122_3344_5566_7788, iterations: 99 });
        let payload = &image[5 * 512..];
        assert_eq!(&payload[0x210..0x218], b"EARLYKIT");
        assert_eq!((u32_at(payload, 0x218), u32_at(payload, 0x21c)), (0, 99));
        assert_eq!(u32_at(payload, 0x220), 0x5566_7788);
        assert_eq!(u32_at(&bzimage(Scenario::VectorsNowhere)[5 * 512..], 0x218), 9);
    }

    #[test]
    fn names_are_read_back() {
        for scenario in SCENARIOS {
            assert_eq!(scenario.name().parse(), Ok(scenario));
        }
        assert!("fuzz ".parse::<Scenario>().is_err());
    }
}
