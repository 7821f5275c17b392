//! The guest's physical memory on this node: for each page, which frame, and what may be done with it.
//!
//! One table is the only truth, and every view goes through it: vCPUs use it as their nested page table, and the
//! platform's service sees the same tables as a part of its own address space (the window). What the memory's service
//! changes with one call has therefore changed everywhere, and no TLB holds anything else when the call returns.
//!
//! The frames are the guest's pool, set aside at boot, as are the frames for tables: enough of them for every page.

use heapless::Vec;
use ipc::abi::{
    Error, FaultCause, GUEST_ACCESS_NONE, GUEST_ACCESS_READ, GUEST_ACCESS_WRITE, GUEST_ZERO, MAX_MAP_PAGES,
    MAX_ZERO_PAGES, PAGE_SIZE,
};
use ipc::vcpu::{PRIVATE_START, WINDOW_BASE, memory_ranges};

use crate::address::{FrameNumber, GuestPhysAddr, PhysAddr, VirtAddr};
use crate::frames::FrameRange;
use crate::ids::{CoreId, ServiceId, ThreadId, VcpuId};
use crate::machine::Machine;
use crate::paging::nested::GuestAccess;
use crate::paging::npt::NptFormat;
use crate::paging::{PageTable, Stale, TableMemory};
use crate::service::Object;
use crate::state::State;
use crate::svm::Features;
use crate::syscall::Request;

/// The most pieces that a guest's pool is made of.
pub const MAX_RUNS: usize = 16;
const PAGE: u64 = PAGE_SIZE as u64;

/// The guest.
#[derive(Debug)]
pub struct Guest {
    /// Who gets the exits of its vCPUs and sees its memory in the window.
    pub platform: ServiceId,
    /// Who owns its memory.
    pub memory: ServiceId,
    /// Who places its vCPUs.
    pub placement: ServiceId,
    /// Its pages: first and how many; low, high, private.
    pub ranges: [(u64, u64); 3],
    /// The frames that its pages can have.
    pub pool: Vec<FrameRange, MAX_RUNS>,
    /// The nested table.
    pub nested: PageTable<NptFormat>,
    /// Where tables come from.
    pub stock: TableStock,
    /// Changes so far that made a translation stale.
    pub generation: u64,
    /// Whether other nodes have part in it.
    pub spans: bool,
    /// What the processor offers.
    pub features: Features,
    /// Which ports and which model-specific registers are intercepted.
    pub permission_maps: [PhysAddr; 2],
}

/// What a guest of so many pages has where.
#[must_use]
pub const fn ranges(pages: u64, private_pages: u32) -> [(u64, u64); 3] {
    let [low, high] = memory_ranges(pages);
    [low, high, (PRIVATE_START / PAGE, private_pages as u64)]
}

/// How many tables the ranges need at most.
#[must_use]
pub fn tables_needed(ranges: &[(u64, u64)]) -> u64 {
    let tables = |first: u64, pages: u64, shift: u32| {
        if pages == 0 { 0 } else { ((first + pages - 1) >> shift) - (first >> shift) + 1 }
    };
    // The root and the one table below it that the window shares.
    2 + ranges.iter().map(|&(first, pages)| tables(first, pages, 9) + tables(first, pages, 18)).sum::<u64>()
}

/// Frames for nested tables, those given back first. A free one's first word has the next.
#[derive(Debug)]
pub struct TableStock {
    frames: FrameRange,
    used: u64,
    free: Option<FrameNumber>,
}

impl TableStock {
    /// A stock of zeroed frames.
    #[must_use]
    pub const fn new(frames: FrameRange) -> Self {
        Self { frames, used: 0, free: None }
    }
}

/// Nested tables in memory.
pub struct Tables<'a, M> {
    /// The memory.
    pub m: &'a mut M,
    /// Where new ones come from.
    pub stock: &'a mut TableStock,
}

impl<M: Machine> TableMemory for Tables<'_, M> {
    fn read_entry(&self, table: FrameNumber, index: usize) -> u64 {
        self.m.read_u64(PhysAddr(table.start().0 + index as u64 * 8))
    }

    fn write_entry(&mut self, table: FrameNumber, index: usize, entry: u64) {
        self.m.write_u64(PhysAddr(table.start().0 + index as u64 * 8), entry);
    }

    fn allocate_table(&mut self) -> Option<FrameNumber> {
        let stock = &mut *self.stock;
        if let Some(table) = stock.free {
            let next = self.m.read_u64(table.start()) >> 12;
            stock.free = (next != 0).then_some(FrameNumber(next));
            self.m.zero(table.start(), PAGE_SIZE);
            return Some(table);
        }
        let fresh = (stock.used < stock.frames.pages).then_some(stock.frames.first.0 + stock.used)?;
        stock.used += 1;
        Some(FrameNumber(fresh))
    }

    fn retire_table(&mut self, table: FrameNumber) {
        // Until the flush a processor may still walk it, so the link to the next is an absent entry.
        let next = self.stock.free.map_or(0, |free| free.0);
        self.m.write_u64(table.start(), next << 12);
        self.stock.free = Some(table);
    }
}

impl Guest {
    /// Whether it has all of these pages, in one range.
    #[must_use]
    pub fn has_pages(&self, first: u64, count: u64) -> bool {
        let inside = |&(start, pages): &(u64, u64)| {
            first.checked_sub(start).is_some_and(|offset| offset < pages && count <= pages - offset)
        };
        self.ranges.iter().any(inside)
    }

    /// The frames with these places in the pool, when there are so many and they are contiguous.
    fn frames(&self, index: u64, count: u64) -> Option<FrameNumber> {
        let mut index = index;
        for run in &self.pool {
            if index < run.pages {
                return (count <= run.pages - index).then_some(FrameNumber(run.first.0 + index));
            }
            index -= run.pages;
        }
        None
    }
}

/// The guest-physical address that a platform's service means by an address in its window.
#[must_use]
pub fn window_address(address: VirtAddr) -> Option<GuestPhysAddr> {
    address.0.checked_sub(WINDOW_BASE).map(GuestPhysAddr)
}

impl State {
    /// The guest, to a service that holds it as `role`.
    pub(crate) fn guest_of(
        &self,
        request: &Request,
        role: impl FnOnce(&Guest) -> ServiceId,
    ) -> Result<&Guest, Error> {
        let Object::Guest = self.object(request)? else { return Err(Error::WrongKind) };
        self.guest.as_ref().filter(|guest| role(guest) == request.service).ok_or(Error::Refused)
    }

    /// [`ipc::abi::Syscall::GuestMap`].
    pub(crate) fn guest_map(&mut self, m: &mut impl Machine, request: &Request) -> Result<(), Error> {
        let registers = &request.registers;
        let (first, index, count) = (registers.rsi, registers.rdx, registers.r8);
        let guest = self.guest_of(request, |guest| guest.memory)?;
        if count == 0 || count > MAX_MAP_PAGES {
            return Err(Error::Malformed);
        }
        if !guest.has_pages(first, count) {
            return Err(Error::NoSuchItem);
        }
        let access = match registers.r9 & !GUEST_ZERO {
            GUEST_ACCESS_NONE => None,
            GUEST_ACCESS_READ => Some(GuestAccess::Read),
            GUEST_ACCESS_WRITE => Some(GuestAccess::ReadWrite),
            _ => return Err(Error::Malformed),
        };
        let to = match access {
            Some(access) => Some((guest.frames(index, count).ok_or(Error::NoSuchItem)?, access)),
            None => None,
        };
        if registers.r9 & GUEST_ZERO != 0 {
            let Some((frame, _)) = to.filter(|_| count <= MAX_ZERO_PAGES) else {
                return Err(Error::Malformed);
            };
            // At most 64 KiB.
            m.zero(frame.start(), usize::try_from(count * PAGE).unwrap_or(0));
        }
        let Some(guest) = &mut self.guest else { return Err(Error::Refused) };
        let tables = &mut Tables { m, stock: &mut guest.stock };
        let changed = guest.nested.replace(tables, GuestPhysAddr(first * PAGE), to, count);
        // The stock has a table for everything that the ranges can need.
        if changed.map_err(|_| Error::NoRoom)? == Stale::Something {
            guest.generation += 1;
            self.expel_users(m, request.core);
        }
        Ok(())
    }

    /// Makes every other core that may use a stale translation of guest memory leave guest mode or the platform's
    /// service. A core flushes before it goes on there, because the guest's generation has changed.
    fn expel_users(&mut self, m: &mut impl Machine, here: CoreId) {
        let Some(guest) = &self.guest else { return };
        let root = self.services[guest.platform.index()].root;
        for index in 0..self.cores.len() {
            let id = CoreId::from_index(index);
            // A vCPU has its platform's root, so this finds those too.
            if id != here && self.cores[index].current.is_some() && self.cores[index].space == root {
                m.expel(index);
            }
        }
    }

    /// Whether an exception of a thread is a miss in the window; then its memory's service is asked, and the thread tries
    /// again after the reply.
    pub(crate) fn window_fault<M: Machine>(
        &mut self,
        m: &mut M,
        core: CoreId,
        id: ThreadId,
        error_code: u64,
        address: u64,
    ) -> bool {
        let Some(guest) = &self.guest else { return false };
        let Some(at) = window_address(VirtAddr(address)) else { return false };
        // Bit 1: a write; bit 4: a fetch, which no page of the window allows (AMD APM 2, 8.4.2).
        let fetch = error_code >> 4 & 1 != 0;
        if fetch || self.threads[id.index()].service != guest.platform || !guest.has_pages(at.0 / PAGE, 1) {
            return false;
        }
        let access = error_code >> 1 & 1;
        self.fault_call(m, core, id, at, access, None);
        true
    }

    /// What becomes of a thread whose fault in guest memory has no answer.
    pub(crate) fn memory_lost<M: Machine>(&mut self, m: &mut M, core: CoreId, id: ThreadId, address: u64) {
        match self.threads[id.index()].vcpu {
            Some(vcpu) => self.vcpus[vcpu.index()].pending = crate::vcpu::Pending::MemoryLost(address),
            None => self.fail(m, core, id, FaultCause::PageFault, |report| {
                report.address = WINDOW_BASE.wrapping_add(address);
            }),
        }
    }

    /// The vCPU with a number that a service gave.
    pub(crate) fn known_vcpu(&self, number: u64) -> Result<VcpuId, Error> {
        let index = usize::try_from(number).ok().filter(|&index| index < self.vcpus.len());
        index.map(VcpuId::from_index).ok_or(Error::NoSuchItem)
    }
}
