//! Where things are below 1 MiB when the guest starts.
//!
//! | from | bytes | what | in the guest's memory map |
//! | --- | --- | --- | --- |
//! | 0x0_0000 | 4 KiB | interrupt vectors and BIOS data area | memory |
//! | 0x0_1000 | 4 KiB | GDT | memory |
//! | 0x0_2000 | 4 KiB | boot parameters, the "zero page" | memory |
//! | 0x0_3000 | 4 KiB | command line | memory |
//! | 0x0_4000 | 4 KiB | stack | memory |
//! | 0x0_5000 | 24 KiB | page tables | memory |
//! | 0x9_fc00 | 1 KiB | extended BIOS data area | reserved |
//! | 0xa_0000 | 256 KiB | not used, though there is memory | not named |
//! | 0xe_0000 | 128 KiB | ACPI tables | reserved |
//! | 0x10_0000 | | the rest, with kernel and initrd | memory |
//!
//! What is needed only until Linux has its own is plain memory. All of it is far below the kernel's own scratch memory, a
//! trampoline that its decompressor puts right under the extended BIOS data area.

use ipc::abi::PAGE_SIZE;

use crate::memory::GuestPhysAddr;

/// A page, in bytes.
const PAGE: u64 = PAGE_SIZE as u64;

/// The BIOS data area, in the first page.
pub const BIOS_DATA: GuestPhysAddr = GuestPhysAddr(0x400);
/// The GDT: one page.
pub const GDT: GuestPhysAddr = GuestPhysAddr(0x1000);
/// The boot parameters, which Linux calls zero page: one page.
pub const BOOT_PARAMS: GuestPhysAddr = GuestPhysAddr(0x2000);
/// The command line, with its final zero: one page.
pub const COMMAND_LINE: GuestPhysAddr = GuestPhysAddr(0x3000);
/// The longest command line in bytes, without its final zero.
pub const COMMAND_LINE_BYTES: u64 = PAGE - 1;
/// The first stack pointer: the end of a page.
pub const STACK_TOP: GuestPhysAddr = GuestPhysAddr(0x5000);
/// The page tables, [`PAGE_TABLE_PAGES`] pages, the root first.
pub const PAGE_TABLES: GuestPhysAddr = GuestPhysAddr(0x5000);
/// Pages of page tables: PML4, page-directory pointers, and a directory for each of 4 GiB.
pub const PAGE_TABLE_PAGES: usize = 2 + 4;
/// The extended BIOS data area, to the end of conventional memory.
pub const EXTENDED_BIOS_DATA: GuestPhysAddr = GuestPhysAddr(0x9_fc00);
/// The end of conventional memory.
pub const CONVENTIONAL_END: GuestPhysAddr = GuestPhysAddr(0xa_0000);
/// The ACPI tables, the RSDP first. It is where a guest without boot parameters would look for it (ACPI 6.5, 5.2.5.1).
pub const ACPI_START: GuestPhysAddr = GuestPhysAddr(0xe_0000);
/// Bytes for the ACPI tables.
pub const ACPI_BYTES: usize = 0x2_0000;
/// Where memory is plain again.
pub const HIGH_START: GuestPhysAddr = GuestPhysAddr(0x10_0000);

const _: () = {
    assert!(BOOT_PARAMS.0 == GDT.0 + PAGE && COMMAND_LINE.0 == BOOT_PARAMS.0 + PAGE);
    assert!(COMMAND_LINE.0 + COMMAND_LINE_BYTES < STACK_TOP.0 - PAGE && STACK_TOP.0 <= PAGE_TABLES.0);
    assert!(PAGE_TABLES.0 + PAGE_TABLE_PAGES as u64 * PAGE <= EXTENDED_BIOS_DATA.0);
    assert!(ACPI_START.0 + ACPI_BYTES as u64 == HIGH_START.0);
};
