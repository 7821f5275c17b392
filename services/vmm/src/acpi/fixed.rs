//! The FADT and the FACS: the fixed hardware (ACPI 6.5, 5.2.9 and 5.2.10).

use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, SCI_IRQ};
use crate::{power, rtc};

/// IAPC_BOOT_ARCH (ACPI 6.5, table 5.11): there are devices on an ISA-like bus, here COM1 and the clock.
pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
/// IAPC_BOOT_ARCH: nothing answers at VGA's ports and memory. The bits that stay 0 say: no 8042; the CMOS clock is there.
pub(super) const VGA_NOT_PRESENT: u16 = 1 << 2;

/// A C2 latency above 100 us: there is no such state (ACPI 6.5, table 5.9).
const NO_C2: u16 = 101;
/// A C3 latency above 1,000 us: there is no such state.
const NO_C3: u16 = 1001;

/// An I/O port's generic address. The width is in bits.
fn port(port: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, port.into())
}

/// The FADT, with the addresses of the FACS and the DSDT.
///
/// SMI_CMD is 0: the platform is in ACPI mode from the start and SCI_EN reads as 1. There is a fixed power
/// button, no sleep button, and no general-purpose event block.
pub(super) fn fadt(facs: u64, dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_64(facs)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.sci_int = u16::from(SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(power::EVENT_PORT).into();
    fadt.pm1_evt_len = power::EVENT_BYTES;
    fadt.x_pm1a_evt_blk = port(power::EVENT_PORT, power::EVENT_BYTES, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(power::CONTROL_PORT).into();
    fadt.pm1_cnt_len = power::CONTROL_BYTES;
    fadt.x_pm1a_cnt_blk = port(power::CONTROL_PORT, power::CONTROL_BYTES, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(power::TIMER_PORT).into();
    fadt.pm_tmr_len = power::TIMER_BYTES;
    fadt.x_pm_tmr_blk = port(power::TIMER_PORT, power::TIMER_BYTES, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = rtc::CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    fadt.reset_reg = port(power::RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = power::RESET_VALUE;
    fadt.finalize()
}

/// The FACS: no waking vector, and a global lock that nobody contends for.
pub(super) fn facs() -> FACS {
    FACS::new()
}
