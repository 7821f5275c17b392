//! Services: their capabilities, memory and life.

use heapless::Vec;
use ipc::abi::{
    FaultReport, Handle, MAX_CAPABILITIES, MAX_THREADS_PER_SERVICE, Name, PAGE_SIZE, ServiceState,
};

use crate::address::{PhysAddr, VirtAddr};
use crate::ids::{ServiceId, ThreadId};
use crate::machine::PciAddress;

/// The most pieces of memory that one service is made of: ELF segments, heap, stacks, message pages, regions.
pub const MAX_MAPPINGS: usize = 96;

/// What a capability stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Object {
    /// Nothing: the slot is empty.
    Empty,
    /// The guest; what may be done with it follows from who holds it.
    Guest,
    /// Calling a service.
    Endpoint(ServiceId),
    /// Raising notification bits.
    Notification(ServiceId, u64),
    /// Memory; nothing can be asked of the kernel about it.
    Region,
    /// DMA-capable memory.
    Dma {
        /// Its first byte.
        physical: PhysAddr,
        /// Its size.
        bytes: u64,
    },
    /// An interrupt, by its place in the kernel's table.
    Interrupt(u8),
    /// I/O ports.
    Ports {
        /// The first.
        first: u16,
        /// How many.
        count: u16,
    },
    /// A PCI function's configuration space.
    PciFunction {
        /// Where it is.
        address: PciAddress,
        /// The offset of its MSI-X capability, which belongs to the kernel; 0 for none.
        msix: u16,
    },
}

/// What becomes of memory when its service restarts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnRestart {
    /// Nothing: it is read-only, kept, shared, or a device's.
    Keep,
    /// It is filled anew from the ELF file, and with zeros beyond.
    Restore {
        /// The bytes in the boot module.
        source: PhysAddr,
        /// How many; zeros follow.
        source_bytes: u64,
    },
}

impl OnRestart {
    /// It is filled with zeros.
    pub const ZEROS: Self = Self::Restore { source: PhysAddr(0), source_bytes: 0 };
}

/// A piece of a service's memory, physically contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// Where the service sees it.
    pub start: VirtAddr,
    /// Its size: whole pages.
    pub bytes: u64,
    /// Where it is.
    pub physical: PhysAddr,
    /// What becomes of it at a restart.
    pub on_restart: OnRestart,
}

/// How far the restoring of a stopped service's memory is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ReloadCursor {
    /// The mapping that is next.
    pub mapping: usize,
    /// Bytes of it that are done.
    pub offset: u64,
}

/// One isolated service.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: Name,
    /// Where it stands.
    pub state: ServiceState,
    /// Restarts so far. Handles to the service, and its own, carry it.
    pub generation: u32,
    /// Whether its threads serve calls on their own time.
    pub serving: Serving,
    /// Ticks that a thread may run without waiting.
    pub budget: u64,
    /// Its `ipc::image::RIGHT_*`.
    pub rights: u32,
    /// The number of its first thread; the others follow.
    pub first_thread: ThreadId,
    /// Threads it may have.
    pub threads: u8,
    /// Bytes of each stack.
    pub stack_bytes: u64,
    /// Entry point.
    pub entry: VirtAddr,
    /// Page-table root.
    pub root: PhysAddr,
    /// What it may use.
    pub capabilities: [Object; MAX_CAPABILITIES],
    /// Its memory.
    pub mappings: Vec<Mapping, MAX_MAPPINGS>,
    /// The frame of its start page.
    pub start_page: PhysAddr,
    /// Notification bits raised and not yet received.
    pub pending: u64,
    /// Its threads that wait for a message, by slot.
    pub receivers: u16,
    /// Threads whose calls wait to be taken, by thread number.
    pub callers: u128,
    /// Calls it took.
    pub served: u64,
    /// The latest fault that the supervisor was not yet told.
    pub report: Option<FaultReport>,
    /// While reloading.
    pub reload: ReloadCursor,
    /// Restart limit and the period that it counts over in milliseconds, and the beat's, for the supervisor to read.
    pub restart_limit: u16,
    /// See `restart_limit`.
    pub restart_period_ms: u32,
    /// See `restart_limit`.
    pub beat_ms: u32,
}

/// On whose time a service serves calls.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Serving {
    /// The caller's core, time and priority.
    OnCallersTime,
    /// Its own.
    Pinned,
}

const _: () = assert!(MAX_THREADS_PER_SERVICE <= 16, "receivers is a 16-bit set");

impl Service {
    /// A service that is not there.
    #[must_use]
    pub const fn absent() -> Self {
        Self {
            name: Name([0; 16]),
            state: ServiceState::Down,
            generation: 0,
            serving: Serving::OnCallersTime,
            budget: u64::MAX,
            rights: 0,
            first_thread: ThreadId::new(0),
            threads: 0,
            stack_bytes: 0,
            entry: VirtAddr(0),
            root: PhysAddr(0),
            capabilities: [Object::Empty; MAX_CAPABILITIES],
            mappings: Vec::new(),
            start_page: PhysAddr(0),
            pending: 0,
            receivers: 0,
            callers: 0,
            served: 0,
            report: None,
            reload: ReloadCursor { mapping: 0, offset: 0 },
            restart_limit: 0,
            restart_period_ms: 0,
            beat_ms: 0,
        }
    }

    /// The thread in a slot.
    #[must_use]
    pub const fn thread(&self, slot: u8) -> ThreadId {
        ThreadId::new(self.first_thread.number().wrapping_add(slot))
    }

    /// Takes the first of the threads that wait for a message; there is one.
    #[expect(clippy::cast_possible_truncation, reason = "a bit's number in 16 bits")]
    pub fn take_receiver(&mut self) -> ThreadId {
        let slot = self.receivers.trailing_zeros() as u8;
        self.receivers &= self.receivers.wrapping_sub(1);
        self.served += 1;
        self.thread(slot)
    }

    /// Its threads.
    pub fn thread_ids(&self) -> impl Iterator<Item = ThreadId> + use<> {
        let first = self.first_thread.number();
        (0..self.threads).map(move |slot| ThreadId::new(first.wrapping_add(slot)))
    }

    /// What the slot of a handle holds.
    #[must_use]
    pub fn object(&self, handle: Handle) -> Object {
        self.capabilities.get(handle.slot()).copied().unwrap_or(Object::Empty)
    }

    /// Where `bytes` bytes at `address` lie, when they lie in one piece of this service's memory, all of which it may
    /// read.
    #[must_use]
    pub fn translate(&self, address: VirtAddr, bytes: u64) -> Option<PhysAddr> {
        self.mappings.iter().find_map(|m| {
            let offset = address.0.checked_sub(m.start.0)?;
            let inside = offset.checked_add(bytes)? <= m.bytes && bytes > 0;
            inside.then_some(PhysAddr(m.physical.0 + offset))
        })
    }

    /// The slot whose stack guard (the space between message page and stack) holds `address`.
    #[must_use]
    pub fn stack_guard_slot(&self, address: VirtAddr) -> Option<u8> {
        (0..self.threads).find(|&slot| {
            let page = ipc::abi::message_page(usize::from(slot));
            let stack = ipc::abi::stack_top(usize::from(slot)) - self.stack_bytes;
            (page + PAGE_SIZE as u64..stack).contains(&address.0)
        })
    }
}
