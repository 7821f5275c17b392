//! The walk of the guest's own page tables, as the processor does it.
//!
//! It is used where the platform reads or writes by guest-virtual address, and to fill the walk cache. Four levels, PAE,
//! two levels and paging off; five levels are refused, protection keys and shadow stacks are not offered to the guest.
//!
//! Every entry is read once and used as it was read. When the access is allowed and not before, the accessed bits on the
//! way and for a write the page's dirty bit are set where they are clear, each by a compare-exchange: so a walk that
//! changes nothing writes nothing, and a page of tables stays shared among nodes. An entry that changed in between
//! starts the walk again.
//!
//! Addresses from [`PRIVATE_START`] on are not the guest's: tables there are no memory, and pages there are translated to
//! [`UNBACKED`], where nothing ever is.
//!
//! Sources: Intel SDM 3A, 4.3 to 4.8; AMD APM 2, 5.2 to 5.6. Bit 8 of upper entries is ignored as Intel has it, though AMD
//! reserves it in level 4.

mod format;

use ipc::vcpu::{Mode, PRIVATE_START};

use crate::memory::{GuestMemory, GuestPhysAddr, GuestVirtAddr, NotMemory};
use format::{
    ACCESSED, ADDRESS, DIRTY, FOUR_LEVELS, Format, GLOBAL, Kind, NO_EXECUTE, PAE, PAT_OF_LARGE, PAT_OF_SMALL,
    PRESENT, TWO_LEVELS, USER, WRITABLE, bits,
};

/// Where pages lead that the guest maps beyond its address space: as much as the largest page, with nothing in it.
pub const UNBACKED: GuestPhysAddr = GuestPhysAddr(1 << 39);
const _: () = assert!(PRIVATE_START.is_multiple_of(PageSize::Gib1.bytes()), "no page lies on both sides");
const _: () = assert!(UNBACKED.0 > PRIVATE_START && UNBACKED.0.is_multiple_of(PageSize::Gib1.bytes()));

/// Bits of CR0, CR4, EFER and RFLAGS that translation looks at.
pub mod control {
    #![expect(missing_docs, reason = "the processor's bits, by their names")]
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_PG: u64 = 1 << 31;
    pub const CR4_PSE: u64 = 1 << 4;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_LA57: u64 = 1 << 12;
    pub const CR4_PCIDE: u64 = 1 << 17;
    pub const CR4_SMEP: u64 = 1 << 20;
    pub const CR4_SMAP: u64 = 1 << 21;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;
    pub const RFLAGS_AC: u64 = 1 << 18;
}
use control::{
    CR0_PG, CR0_WP, CR4_LA57, CR4_PAE, CR4_PGE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_NXE, RFLAGS_AC,
};

/// Bits of a page fault's error code (Intel SDM 3A, 4.7; AMD APM 2, 8.4.2).
pub mod error {
    /// The page was there, its rights did not allow the access.
    pub const PRESENT: u32 = 1;
    /// A write.
    pub const WRITE: u32 = 1 << 1;
    /// An access with the rights of ring 3.
    pub const USER: u32 = 1 << 2;
    /// An entry has a reserved bit set.
    pub const RESERVED: u32 = 1 << 3;
    /// An instruction fetch; told only when SMEP or NX is in use.
    pub const FETCH: u32 = 1 << 4;
}

/// What an access does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// It reads data.
    Read,
    /// It writes data, or reads and then writes it.
    Write,
    /// It fetches an instruction.
    Execute,
}

/// With whose rights an access is done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Privilege {
    /// Ring 3's.
    User,
    /// Those of rings 0 to 2; also, at any privilege level, those of the processor's implicit accesses to descriptor tables and
    /// task state. SMAP is in force.
    Supervisor,
    /// Those of rings 0 to 2 with RFLAGS.AC set, which lifts SMAP for explicit accesses.
    SupervisorAc,
}

impl Privilege {
    /// That of the explicit accesses of an instruction.
    #[must_use]
    pub const fn explicit(mode: &Mode, rflags: u64) -> Self {
        match (mode.cpl, rflags & RFLAGS_AC) {
            (3, _) => Self::User,
            (_, 0) => Self::Supervisor,
            _ => Self::SupervisorAc,
        }
    }

    /// That of the implicit accesses, to which RFLAGS.AC means nothing.
    #[must_use]
    pub const fn implicit(self) -> Self {
        match self {
            Self::User => Self::User,
            Self::Supervisor | Self::SupervisorAc => Self::Supervisor,
        }
    }
}

/// What differs between processors, as CPUID tells the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Processor {
    /// Bits of a physical address: at most 52, and 40 at least for [`UNBACKED`] to be one.
    pub physical_bits: u8,
    /// Whether there are pages of 1 GiB.
    pub gigabyte_pages: bool,
}

/// The size of a page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the sizes, by their names")]
pub enum PageSize {
    Kib4,
    Mib2,
    Mib4,
    Gib1,
}

impl PageSize {
    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << match self {
            Self::Kib4 => 12,
            Self::Mib2 => 21,
            Self::Mib4 => 22,
            Self::Gib1 => 30,
        }
    }
}

/// What a guest-virtual address is translated to, and what all levels together allow there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Translation {
    /// The guest-physical address; never one of the private range.
    pub address: GuestPhysAddr,
    /// The size of the page around it.
    pub size: PageSize,
    /// Writing is allowed to all that are subject to it (with CR0.WP clear, ring 0 is not).
    pub writable: bool,
    /// It is a user's page.
    pub user: bool,
    /// Fetching is allowed.
    pub executable: bool,
    /// It outlives a switch of address space: the page's bit with CR4.PGE.
    pub global: bool,
    /// The page's dirty bit, as it is after the walk.
    pub dirty: bool,
    /// The entry of the guest's PAT that gives the memory type, 0 to 7: the page's PAT, PCD and PWT bits.
    pub pat_index: u8,
}

/// Why there is no translation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WalkError {
    /// The access is a page fault with this error code.
    PageFault {
        /// See [`error`].
        error_code: u32,
    },
    /// A table lies where there is no memory.
    NotMemory(GuestPhysAddr),
    /// The guest changes its tables faster than they can be walked; let it execute the instruction again.
    Contended,
    /// The guest uses five levels.
    FiveLevels,
}

impl From<NotMemory> for WalkError {
    fn from(error: NotMemory) -> Self {
        Self::NotMemory(error.0)
    }
}

/// How often a walk starts again before it is given up.
const ATTEMPTS: usize = 64;

/// An entry on the way, to get its accessed bit.
#[derive(Clone, Copy, Default)]
struct Used {
    at: GuestPhysAddr,
    entry: u64,
}

/// Translates an address as the processor does for this access, and sets accessed and dirty bits as it does.
/// `address` is canonical; without long mode its lower half counts.
///
/// # Errors
/// See [`WalkError`].
pub fn translate(
    memory: &mut impl GuestMemory,
    processor: Processor,
    mode: &Mode,
    privilege: Privilege,
    address: GuestVirtAddr,
    access: Access,
) -> Result<Translation, WalkError> {
    if mode.cr0 & CR0_PG == 0 {
        return Ok(untranslated(address));
    }
    let format = match (mode.efer & EFER_LMA, mode.cr4 & CR4_PAE) {
        (0, 0) => &TWO_LEVELS,
        (0, _) => &PAE,
        _ if mode.cr4 & CR4_LA57 != 0 => return Err(WalkError::FiveLevels),
        _ => &FOUR_LEVELS,
    };
    let walk = Walk { processor, mode, privilege, access, format };
    for _ in 0..ATTEMPTS {
        if let Some(translation) = walk.attempt(memory, address)? {
            return Ok(translation);
        }
    }
    Err(WalkError::Contended)
}

/// Whether the error code tells a fetch from a read.
pub(crate) const fn tells_fetches(mode: &Mode) -> bool {
    mode.cr4 & CR4_SMEP != 0 || mode.cr4 & CR4_PAE != 0 && mode.efer & EFER_NXE != 0
}

/// With paging off (Intel SDM 3A, 4.1.1).
const fn untranslated(address: GuestVirtAddr) -> Translation {
    Translation {
        address: GuestPhysAddr(address.0 & bits(0, 31)),
        size: PageSize::Kib4,
        writable: true,
        user: true,
        executable: true,
        global: false,
        dirty: true,
        pat_index: 0,
    }
}

/// What a walk needs to know, but for the address.
struct Walk<'a> {
    processor: Processor,
    mode: &'a Mode,
    privilege: Privilege,
    access: Access,
    format: &'static Format,
}

impl Walk<'_> {
    /// Walks once; `None` when an entry changed before its accessed or dirty bit was set.
    fn attempt(
        &self,
        memory: &mut impl GuestMemory,
        address: GuestVirtAddr,
    ) -> Result<Option<Translation>, WalkError> {
        let address = address.0 & bits(0, self.format.input_bits - 1);
        let mut table = self.mode.cr3 & self.format.root;
        let mut way = [Used::default(); 4];
        // What all levels allow; NX the other way round.
        let mut rights = WRITABLE | USER;
        let mut marked = ACCESSED;
        let reserved = self.format.reserved(self.processor, self.mode);
        for (level, used) in self.format.levels.iter().zip(0..) {
            let index = address >> level.shift & bits(0, self.format.index_bits - 1);
            let at = GuestPhysAddr(table + index * self.format.entry_bytes);
            let entry = self.read(memory, at)?;
            if entry & PRESENT == 0 {
                return Err(self.fault(0));
            }
            let page = level.kind.page(self.mode, entry);
            if entry & (reserved | level.kind.reserved(self.processor, page)) != 0 {
                return Err(self.fault(error::PRESENT | error::RESERVED));
            }
            table = entry & ADDRESS;
            if !matches!(level.kind, Kind::Pointer) {
                rights = rights & (entry | NO_EXECUTE) | entry & NO_EXECUTE;
                marked &= entry;
                way[used] = Used { at, entry };
            }
            if let Some(size) = page {
                let mut translation = self.translation(address, entry, size, rights);
                if !self.allows(&translation) {
                    return Err(self.fault(error::PRESENT));
                }
                let dirties = self.access == Access::Write && !translation.dirty;
                if (marked == 0 || dirties) && !self.mark(memory, &way[..=used])? {
                    return Ok(None);
                }
                translation.dirty |= dirties;
                return Ok(Some(translation));
            }
        }
        // The last level has pages only, so the loop does not end by itself.
        Err(self.fault(0))
    }

    fn read(&self, memory: &impl GuestMemory, at: GuestPhysAddr) -> Result<u64, NotMemory> {
        if at.0 >= PRIVATE_START {
            return Err(NotMemory(at));
        }
        if self.format.entry_bytes == 4 { memory.get::<u32>(at).map(u64::from) } else { memory.get(at) }
    }

    fn translation(&self, address: u64, entry: u64, size: PageSize, rights: u64) -> Translation {
        let offset = address & (size.bytes() - 1);
        let page = match size {
            PageSize::Mib4 => entry & bits(22, 31) | (entry & bits(13, 20)) << 19,
            _ => entry & ADDRESS & !(size.bytes() - 1),
        };
        let page = if page >= PRIVATE_START { UNBACKED.0 } else { page };
        let pat = if size == PageSize::Kib4 { PAT_OF_SMALL } else { PAT_OF_LARGE };
        Translation {
            address: GuestPhysAddr(page + offset),
            size,
            writable: rights & WRITABLE != 0,
            user: rights & USER != 0,
            executable: rights & NO_EXECUTE == 0,
            global: entry & GLOBAL != 0 && self.mode.cr4 & CR4_PGE != 0,
            dirty: entry & DIRTY != 0,
            pat_index: u8::from(entry & pat != 0) << 2 | (entry >> 3 & 3) as u8,
        }
    }

    /// Whether the access is allowed (Intel SDM 3A, 4.6.1; AMD APM 2, 5.6).
    const fn allows(&self, page: &Translation) -> bool {
        let by_privilege = match (self.privilege, self.access) {
            (Privilege::User, _) => page.user,
            (_, Access::Execute) => !page.user || self.mode.cr4 & CR4_SMEP == 0,
            (Privilege::Supervisor, _) => !page.user || self.mode.cr4 & CR4_SMAP == 0,
            (Privilege::SupervisorAc, _) => true,
        };
        by_privilege
            && match self.access {
                Access::Read => true,
                Access::Execute => page.executable,
                Access::Write => {
                    page.writable || !matches!(self.privilege, Privilege::User) && self.mode.cr0 & CR0_WP == 0
                }
            }
    }

    /// Sets the accessed bits, and the last entry's dirty bit for a write. False when an entry is another by now.
    #[cold]
    fn mark(&self, memory: &mut impl GuestMemory, way: &[Used]) -> Result<bool, NotMemory> {
        let last = way.len() - 1;
        for (number, Used { at, entry }) in way.iter().enumerate() {
            let dirty = if number == last && self.access == Access::Write { DIRTY } else { 0 };
            let marked = entry | ACCESSED | dirty;
            // PAE's first level is not on the way: it has no such bits.
            if marked == *entry || entry & PRESENT == 0 {
                continue;
            }
            let same = if self.format.entry_bytes == 4 {
                let low = |value: u64| u32::try_from(value & bits(0, 31)).unwrap_or_default();
                memory.compare_exchange_u32(*at, low(*entry), low(marked))?.is_ok()
            } else {
                memory.compare_exchange_u64(*at, *entry, marked)?.is_ok()
            };
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }

    const fn fault(&self, cause: u32) -> WalkError {
        let user = if matches!(self.privilege, Privilege::User) { error::USER } else { 0 };
        let access = match self.access {
            Access::Write => error::WRITE,
            Access::Execute if tells_fetches(self.mode) => error::FETCH,
            Access::Read | Access::Execute => 0,
        };
        WalkError::PageFault { error_code: cause | user | access }
    }
}

#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;
