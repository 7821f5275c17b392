//! The walk cache: page tables of ours that the processor walks in the place of the guest's.
//!
//! AMD's nested paging treats every access of the walk to the guest's tables as a write (APM 2, 15.25.6). As soon as a guest
//! spans nodes these tables would have to be writable everywhere, so hardware's CR3 points to tables of this cache
//! instead, in guest-physical pages that only this node maps. They hold translations from guest-virtual to
//! guest-physical addresses, put in at the guest's page faults, which are intercepted, and are private to the vCPU. What is
//! really the guest's fault is reflected to it.
//!
//! They may be stale exactly where a TLB may be (Intel SDM 3A, 4.10; AMD APM 2, 5.5), so CR0, CR3 and CR4 writes, `INVLPG`
//! and `INVPCID` are intercepted and told to the cache. What the processor itself keeps is always part of what the
//! tables hold: whenever something is taken out, [`Update::flush`] asks for the processor's translations to be flushed,
//! and when nothing was there, none is needed.
//!
//! - *Roots*: one per PCID, of which the most recently used are kept. Without PCIDs there is one, and a write of CR3 empties it,
//!   as the manuals want.
//! - *Shared part*: with CR4.PGE, the upper half of the address space is one for all roots, which link its level-3 tables.
//!   Global pages stay in it. A page that is not global is a *visitor* there: it is noted, and leaves when the PCID
//!   changes. A guest whose upper half is mostly not global (it isolates its kernel's tables) loses the sharing.
//! - *Rights*: the processor runs with the guest's own CR4 and EFER, so SMEP, SMAP and NX are its work; a page has in
//!   these tables the rights that all levels of the guest's leave it. It is writable only when the guest's dirty bit is
//!   set: the first write faults, and sets it. With CR0.WP clear ring 0 would not fault, so such a guest is not cached.
//! - *Large pages* keep the guest's size, so that an `INVLPG` takes out what it would take out of a TLB.
//! - *Pages* come from a pool of fixed size. When it is empty the least recently used root goes, then the current root's own
//!   part when that is worth it, then everything.
//!
//! Time: a fill takes at most four steps down and three new tables; a page is cleared when it is taken, of as many entries
//! as were once put in. Emptying a root clears its own entries of the top level, rarely more than two, and gives all
//! its tables back at once. Only a large page in the place of a table walks what was below that, at most the pool.
//!
//! Guest-physical addresses that are no memory are put in as well: nested paging misses there, and the access becomes
//! one of a device. Those of the private range are never put in: [`crate::walk`] leads them elsewhere.

mod pool;
mod roots;
mod tree;

use ipc::vcpu::{Mode, PRIVATE_START};

use crate::memory::{GuestMemory, GuestPhysAddr, GuestVirtAddr, NotMemory};
use crate::walk::control::{
    CR0_PG, CR0_WP, CR4_LA57, CR4_PAE, CR4_PCIDE, CR4_PGE, CR4_PSE, CR4_SMEP, EFER_LMA, EFER_NXE,
};
use crate::walk::{Access, Privilege, Processor, WalkError, error, tells_fetches, translate};
pub use roots::MIN_PAGES;
use roots::{Keep, Roots, Sharing};
use tree::Put;

/// CR3's bit that keeps the translations of the PCID that it selects.
const CR3_NO_FLUSH: u64 = 1 << 63;
const CR3_BASE: u64 = 0x000f_ffff_ffff_f000;
const CR3_PCID: u64 = 0xfff;

/// Whether a guest in this mode runs on the cache's tables: in long mode with four levels, and with CR0.WP. In any other
/// it runs on its own, which only boot code does for long.
#[must_use]
pub const fn is_cached(mode: &Mode) -> bool {
    const CR0: u64 = CR0_PG | CR0_WP;
    mode.cr0 & CR0 == CR0 && mode.efer & EFER_LMA != 0 && mode.cr4 & (CR4_PAE | CR4_LA57) == CR4_PAE
}

/// What the vCPU must go on with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[must_use]
pub struct Update {
    /// Hardware's CR3, when it is another from now on.
    pub cr3: Option<u64>,
    /// Whether the processor must forget the translations of this vCPU, global ones too.
    pub flush: bool,
}

/// What came of a page fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The guest is to execute the instruction again.
    Filled,
    /// The fault is the guest's own: it gets it with this error code.
    Reflect {
        /// See [`error`].
        error_code: u32,
    },
}

/// Why `INVPCID` was not done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ContextError {
    /// The guest gets #GP(0).
    GeneralProtection,
    /// As elsewhere.
    NotMemory(NotMemory),
}

impl From<NotMemory> for ContextError {
    fn from(error: NotMemory) -> Self {
        Self::NotMemory(error)
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Translations put in.
    pub fills: u64,
    /// Page faults that were the guest's own.
    pub reflected: u64,
    /// Flushes of the processor's translations that were asked for.
    pub flushes: u64,
    /// Times that the pool was empty and something had to go, or a root for another.
    pub evictions: u64,
}

/// The control bits that translations depend on.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
struct Regime {
    cached: bool,
    cr4: u64,
    efer: u64,
}

impl Regime {
    const fn of(mode: &Mode) -> Self {
        const CR4: u64 = CR4_PSE | CR4_PAE | CR4_PGE | CR4_LA57 | CR4_PCIDE | CR4_SMEP;
        Self { cached: is_cached(mode), cr4: mode.cr4 & CR4, efer: mode.efer & (EFER_LMA | EFER_NXE) }
    }

    const fn has(self, cr4: u64) -> bool {
        self.cr4 & cr4 != 0
    }
}

/// Who knows of the guest's PCIDs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pcids {
    /// The processor, which tells their translations apart.
    Hardware,
    /// The cache alone: CR4.PCIDE is clear in hardware, and another root needs a flush.
    Virtual,
}

/// The walk cache of one vCPU.
pub struct WalkCache {
    processor: Processor,
    pcids: Pcids,
    regime: Regime,
    guest_cr3: u64,
    roots: Roots,
    /// The address of the last fault, when its translation was there already.
    repeated: Option<GuestVirtAddr>,
    /// Hardware's CR3 as the caller knows it.
    told_cr3: Option<u64>,
    counters: Counters,
}

impl WalkCache {
    /// A cache whose tables are in `pages` zeroed pages of guest-physical memory from `base` on, which nothing else
    /// writes to. `None` for fewer than [`MIN_PAGES`] or more than 32,768 pages, and for a base that is not a page's or
    /// not private. [`Self::load`] comes first.
    #[must_use]
    pub fn new(processor: Processor, base: GuestPhysAddr, pages: u16) -> Option<Self> {
        if base.0 < PRIVATE_START || !base.0.is_multiple_of(4096) {
            return None;
        }
        Some(Self {
            processor,
            pcids: Pcids::Hardware,
            regime: Regime::default(),
            guest_cr3: 0,
            roots: Roots::new(base, pages)?,
            repeated: None,
            told_cr3: None,
            counters: Counters::default(),
        })
    }

    /// The same for a processor without PCIDs, when the guest has them nevertheless: hardware's CR4 is to be
    /// [`Self::hardware_cr4`], and the guest, when it reads its own, must see [`Self::guest_mode`]'s.
    #[must_use]
    pub const fn with_virtual_pcids(mut self) -> Self {
        self.pcids = Pcids::Virtual;
        self
    }

    /// The guest's CR3 as it reads it.
    #[must_use]
    pub const fn guest_cr3(&self) -> u64 {
        self.guest_cr3
    }

    /// The guest's mode, of one as hardware has it: with the guest's CR3, and CR4.PCIDE where only the cache knows of it.
    #[must_use]
    pub const fn guest_mode(&self, hardware: &Mode) -> Mode {
        let cr4 = match self.pcids {
            Pcids::Hardware => hardware.cr4,
            Pcids::Virtual => hardware.cr4 | self.regime.cr4 & CR4_PCIDE,
        };
        Mode { cr3: self.guest_cr3, cr4, ..*hardware }
    }

    /// What hardware's CR4 is to be for the guest's.
    #[must_use]
    pub const fn hardware_cr4(&self, guest: u64) -> u64 {
        match self.pcids {
            Pcids::Hardware => guest,
            Pcids::Virtual => guest & !CR4_PCIDE,
        }
    }

    /// What hardware's CR3 is to be.
    #[must_use]
    pub fn hardware_cr3(&self) -> u64 {
        match (self.roots.current(), self.pcids) {
            (Some((table, pcid)), Pcids::Hardware) => table | u64::from(pcid),
            (Some((table, _)), Pcids::Virtual) => table,
            (None, Pcids::Virtual) if self.regime.has(CR4_PCIDE) => self.guest_cr3 & !CR3_PCID,
            (None, _) => self.guest_cr3,
        }
    }

    /// See there.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        Counters { evictions: self.roots.evictions(), ..self.counters }
    }

    /// All control registers are new: at the start, after a reset, after the vCPU came from elsewhere. `guest` has the guest's
    /// own. Empties the cache.
    ///
    /// # Errors
    /// [`NotMemory`], here and in what follows, when the cache's own pages are not there; the guest cannot go on then.
    pub fn load(&mut self, memory: &mut impl GuestMemory, guest: &Mode) -> Result<Update, NotMemory> {
        self.guest_cr3 = guest.cr3 & !CR3_NO_FLUSH;
        self.start(memory, Regime::of(guest))?;
        Ok(self.update())
    }

    /// CR0, CR4 or EFER is new: `guest` has the guest's own, but its CR3 is not looked at.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn write_control(
        &mut self,
        memory: &mut impl GuestMemory,
        guest: &Mode,
    ) -> Result<Update, NotMemory> {
        self.check_regime(memory, guest)?;
        Ok(self.update())
    }

    /// The guest moves `value` to CR3, in which the caller found no bit that is reserved (the highest is, without PCIDs).
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn write_cr3(&mut self, memory: &mut impl GuestMemory, value: u64) -> Result<Update, NotMemory> {
        self.guest_cr3 = value & !CR3_NO_FLUSH;
        let keeps = self.regime.has(CR4_PCIDE) && value & CR3_NO_FLUSH != 0;
        if self.regime.cached {
            self.select(memory, if keeps { Keep::Translations } else { Keep::Globals })?;
            return Ok(self.update());
        }
        Ok(self.update_uncached())
    }

    /// `INVLPG`.
    ///
    /// # Errors
    /// See [`Self::load`].
    pub fn invalidate_page(
        &mut self,
        memory: &mut impl GuestMemory,
        address: GuestVirtAddr,
    ) -> Result<Update, NotMemory> {
        if !self.regime.cached {
            return Ok(self.update_uncached());
        }
        self.roots.remove(memory, address)?;
        Ok(self.update())
    }

    /// `INVPCID` of a type with a descriptor of two words (Intel SDM 2A, INVPCID; AMD APM 3).
    ///
    /// # Errors
    /// See [`ContextError`].
    pub fn invalidate_context(
        &mut self,
        memory: &mut impl GuestMemory,
        kind: u64,
        descriptor: [u64; 2],
    ) -> Result<Update, ContextError> {
        let [pcid, address] = descriptor;
        let pcid = u16::try_from(pcid).ok().filter(|pcid| u64::from(*pcid) <= CR3_PCID);
        let pcid = pcid.ok_or(ContextError::GeneralProtection)?;
        let canonical = matches!(address.cast_signed() >> 47, 0 | -1);
        if kind > 3 || kind < 2 && pcid != 0 && !self.regime.has(CR4_PCIDE) || kind == 0 && !canonical {
            return Err(ContextError::GeneralProtection);
        }
        if !self.regime.cached {
            return Ok(self.update_uncached());
        }
        match kind {
            0 => self.roots.remove_of(memory, pcid, GuestVirtAddr(address))?,
            1 => self.roots.clear_pcid(memory, pcid)?,
            2 => self.roots.empty(memory)?,
            _ => self.roots.clear_all_pcids(memory)?,
        }
        Ok(self.update())
    }

    /// A page fault of the guest was intercepted, in this mode and with these flags, at an address and with an error code,
    /// all as hardware tells them.
    ///
    /// # Errors
    /// [`NotMemory`] also when a table of the guest lies where there is no memory.
    pub fn page_fault(
        &mut self,
        memory: &mut impl GuestMemory,
        mode: &Mode,
        rflags: u64,
        address: GuestVirtAddr,
        error_code: u32,
    ) -> Result<(Outcome, Update), NotMemory> {
        let guest = self.guest_mode(mode);
        self.check_regime(memory, &guest)?;
        let outcome = if self.regime.cached {
            self.resolve(memory, &guest, rflags, address, error_code)?
        } else {
            Outcome::Reflect { error_code }
        };
        self.counters.reflected += u64::from(matches!(outcome, Outcome::Reflect { .. }));
        Ok((outcome, self.update()))
    }

    fn resolve(
        &mut self,
        memory: &mut impl GuestMemory,
        guest: &Mode,
        rflags: u64,
        address: GuestVirtAddr,
        error_code: u32,
    ) -> Result<Outcome, NotMemory> {
        let has = |bit| error_code & bit != 0;
        // An access that may be one of two is first taken for the one that SMAP spares.
        let (access, strictly) = match (has(error::FETCH), has(error::WRITE)) {
            (true, _) => (Access::Execute, Access::Execute),
            (_, true) => (Access::Write, Access::Write),
            _ if tells_fetches(guest) => (Access::Read, Access::Read),
            _ => (Access::Execute, Access::Read),
        };
        let privilege = match (has(error::USER), Privilege::explicit(guest, rflags)) {
            (true, _) => Privilege::User,
            // Ring 3 has a supervisor's access only where the processor does it by itself.
            (_, Privilege::User) => Privilege::Supervisor,
            (_, explicit) => explicit,
        };
        let mut result = translate(memory, self.processor, guest, privilege, address, access);
        let mut spurious = false;
        if let Ok(page) = result {
            if self.roots.fill(memory, address, &page)? != Put::Same {
                self.repeated = None;
                self.counters.fills += 1;
                return Ok(Outcome::Filled);
            }
            // The translation is there and the processor does not take it. Either it remembers an older one, or this is
            // what SMAP forbids: an implicit access, whatever RFLAGS.AC says, or a read. Then it comes again after a flush.
            if self.repeated == Some(address) {
                result = translate(memory, self.processor, guest, privilege.implicit(), address, strictly);
            }
            spurious = result.is_ok();
        }
        self.repeated = spurious.then_some(address);
        match result {
            Ok(_) => {
                self.roots.ask_flush();
                Ok(Outcome::Filled)
            }
            Err(WalkError::Contended) => Ok(Outcome::Filled),
            Err(WalkError::NotMemory(at)) => Err(NotMemory(at)),
            Err(WalkError::FiveLevels) => Ok(Outcome::Reflect { error_code }),
            Err(WalkError::PageFault { error_code: own }) => {
                // A page fault ends what the processor knows of the page (Intel SDM 3A, 4.10.4.1).
                if has(error::PRESENT) {
                    self.roots.remove(memory, address)?;
                }
                Ok(Outcome::Reflect { error_code: own })
            }
        }
    }

    fn check_regime(&mut self, memory: &mut impl GuestMemory, guest: &Mode) -> Result<(), NotMemory> {
        let regime = Regime::of(guest);
        if regime == self.regime { Ok(()) } else { self.start(memory, regime) }
    }

    /// Begins again with nothing in the tables.
    fn start(&mut self, memory: &mut impl GuestMemory, regime: Regime) -> Result<(), NotMemory> {
        self.regime = regime;
        self.repeated = None;
        let shares = regime.cached && regime.has(CR4_PGE);
        self.roots.start(memory, if shares { Sharing::UpperHalf } else { Sharing::Nothing })?;
        if regime.cached { self.select(memory, Keep::Globals) } else { Ok(()) }
    }

    /// Makes the root of the guest's CR3 the current one.
    fn select(&mut self, memory: &mut impl GuestMemory, keep: Keep) -> Result<(), NotMemory> {
        let pcid = if self.regime.has(CR4_PCIDE) { self.guest_cr3 & CR3_PCID } else { 0 };
        let pcid = u16::try_from(pcid).unwrap_or_default();
        self.roots.select(memory, pcid, self.guest_cr3 & CR3_BASE, keep)
    }

    /// Where hardware walks the guest's own tables, it forgets everything at each invalidation.
    fn update_uncached(&mut self) -> Update {
        self.roots.ask_flush();
        self.update()
    }

    /// What came of it all since the last time.
    fn update(&mut self) -> Update {
        let cr3 = self.hardware_cr3();
        let changed = self.told_cr3.replace(cr3) != Some(cr3);
        let flush = self.roots.take_flush() || changed && self.pcids == Pcids::Virtual;
        self.counters.flushes += u64::from(flush);
        Update { cr3: changed.then_some(cr3), flush }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
