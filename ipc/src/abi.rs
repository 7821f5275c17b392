//! The boundary between the kernel and a service: system calls, registers, handles, errors, the start page.
//!
//! A service enters the kernel by `SYSCALL` with these registers (all others are preserved, but for `rcx` and
//! `r11`, which the instruction itself overwrites, and the SSE and x87 state, below):
//!
//! | register | in | out |
//! | --- | --- | --- |
//! | `rax` | [`Syscall`] number | status: an [`Outcome`] or an [`Error`] |
//! | `rdi` | handle, or reply token | reply token, or a value |
//! | `rsi` | [`Label`] | label |
//! | `rdx`, `r8`, `r9`, `r10` | message words 0 to 3 | message words 0 to 3 |
//! | `r12` | deadline in TSC ticks, [`NEVER`] for none, 0 to poll | preserved |
//! | `r13` | notification mask ([`Syscall::Receive`]) | preserved |
//!
//! What each call makes of them is said at [`Syscall`].
//!
//! The SSE and x87 registers are caller-saved, as in any System V function call. Their control modes are not: at the way
//! out of every system call MXCSR is 0x1f80 and the x87 control word 0x37f, as at a thread's start, whatever the caller
//! had set, and all registers are empty or zero. So neither modes nor contents travel from one service to another. Who
//! computes in another mode sets it again after each call. An interrupt changes nothing of all this.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in a page frame, the unit of every region.
pub const PAGE_SIZE: usize = 4096;
/// The most services one image can hold.
pub const MAX_SERVICES: usize = 32;
/// The most threads one service can have.
pub const MAX_THREADS_PER_SERVICE: usize = 16;
/// The most threads on one node, over all services.
pub const MAX_THREADS: usize = 128;
/// The most capabilities one service can hold.
pub const MAX_CAPABILITIES: usize = 64;
/// The most regions on one node, over all services.
pub const MAX_REGIONS: usize = 128;
/// The most cores the kernel starts.
pub const MAX_CORES: usize = 64;
/// The priorities: 0 is the most urgent.
pub const PRIORITIES: usize = 16;
/// Message words that travel in registers.
pub const MESSAGE_WORDS: usize = 4;
/// The longest message, in bytes, that travels in a message page.
pub const MAX_MESSAGE_BYTES: usize = PAGE_SIZE;
/// The longest log frame, in bytes, that [`Syscall::Log`] takes.
pub const MAX_LOG_BYTES: usize = 512;
/// The longest panic message, in bytes, that [`Syscall::Panic`] takes.
pub const MAX_PANIC_BYTES: usize = 256;
/// The longest name of a service, region, device or channel, in bytes.
pub const MAX_NAME_BYTES: usize = 16;

/// A deadline that never comes.
pub const NEVER: u64 = u64::MAX;

/// Where a service's ELF image is linked.
pub const IMAGE_BASE: u64 = 0x0040_0000;
/// The end of the space for a service's ELF image.
pub const IMAGE_END: u64 = 0x1000_0000;
/// Where the read-only [`StartPage`] is mapped.
pub const START_PAGE: u64 = 0x1000_0000;
/// Where the heap begins.
pub const HEAP_BASE: u64 = 0x2000_0000;
/// Where the first thread's slot begins. A slot holds the message page at its start and the stack at its end;
/// what lies between is never mapped and guards both.
pub const THREAD_BASE: u64 = 0x3000_0000;
/// The distance between two threads' slots.
pub const THREAD_STRIDE: u64 = 0x0010_0000;
/// The largest stack of a thread in bytes.
pub const MAX_STACK_BYTES: u64 = 0x0008_0000;
/// Where the regions that a manifest names begin; xtask gives each its address.
pub const REGION_BASE: u64 = 0x1_0000_0000;
/// The end of what the kernel maps for a service.
pub const USER_END: u64 = 0x7fff_0000_0000;

/// The address of a thread's message page, by the thread's slot in its service.
#[must_use]
pub const fn message_page(slot: usize) -> u64 {
    THREAD_BASE + slot as u64 * THREAD_STRIDE
}

/// The end of a thread's stack (its highest address), by the thread's slot in its service.
#[must_use]
pub const fn stack_top(slot: usize) -> u64 {
    message_page(slot) + THREAD_STRIDE
}

/// The slot of the thread whose stack holds `stack_pointer`, or `None` for an address in no stack.
#[must_use]
pub const fn slot_of_stack(stack_pointer: u64) -> Option<usize> {
    // The top of a stack belongs to the slot below it.
    let Some(offset) = stack_pointer.checked_sub(THREAD_BASE + 1) else { return None };
    let slot = offset / THREAD_STRIDE;
    if slot < MAX_THREADS_PER_SERVICE as u64 { Some(slot as usize) } else { None }
}

/// What a service asks of the kernel.
///
/// Unless said otherwise a call's status is [`Outcome::Message`] (zero) or an [`Error`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum Syscall {
    /// Sends a message to the endpoint `rdi` and waits for the reply until the deadline `r12`. A message whose
    /// label has a length carries that many bytes from the caller's message page into the server's, and back.
    Call = 0,
    /// Replies to the token `rdi` (0: to nobody) with `rsi` and the words, then waits until the deadline `r12` for
    /// a message to the service's endpoint (when bit [`RECEIVE_MESSAGES`] of `r13` is set) or a notification among
    /// the other bits of `r13`. Status [`Outcome::Message`]: token in `rdi`, label and words. Status
    /// [`Outcome::Notified`]: the bits raised, now cleared, in `rdx`. A reply to a token that is no longer waited
    /// for is dropped and counted; the wait goes on. With a deadline of 0 the call is a poll.
    Receive = 1,
    /// Replies to the token `rdi` and returns. [`Error::Stale`] when nobody waits for it.
    Reply = 2,
    /// Raises the notification bits of the capability `rdi`. Never blocks.
    Notify = 3,
    /// Lets the interrupt `rdi` come again.
    AcknowledgeInterrupt = 4,
    /// Goes to the end of the run queue of its priority.
    Yield = 5,
    /// Waits while the aligned 32-bit word at `rdi` equals `rsi`, until a wake or the deadline `r12`.
    /// [`Error::Again`] when it does not equal.
    FutexWait = 6,
    /// Wakes up to `rsi` threads of this service that wait at `rdi`; how many, in `rdi`.
    FutexWake = 7,
    /// Starts a thread at `rdi` with the argument `rsi` on core `rdx` (taken modulo the number of cores); its slot
    /// in `rdi`. [`Error::NoRoom`] when all of the manifest's threads are taken.
    SpawnThread = 8,
    /// Ends the calling thread. When the first thread (slot 0) ends, the whole service faults as
    /// [`FaultCause::Exit`] with `rdi` as its code.
    ExitThread = 9,
    /// Appends the bytes at `rdi`, `rsi` of them and at most [`MAX_LOG_BYTES`], to the node's log as one record: a
    /// defmt frame, or UTF-8 text when bit 0 of `rdx` is set ([`LOG_TEXT`]).
    Log = 10,
    /// Ends the calling service as panicked with the UTF-8 text at `rdi`, `rsi` bytes.
    Panic = 11,
    /// The physical (DMA) address of offset `rsi` in the DMA region whose handle is `rdi`; the address in `rdi`.
    DmaAddress = 12,
    /// Reads `rdx` (1, 2 or 4) bytes from port `rsi` of the port range `rdi`; the value in `rdi`.
    PortRead = 13,
    /// Writes `r8` as `rdx` (1, 2 or 4) bytes to port `rsi` of the port range `rdi`.
    PortWrite = 14,
    /// Writes `r8` bytes at `rdx` one after another to the 8-bit port `rsi` of the port range `rdi`; at most 64.
    PortWriteBytes = 15,
    /// Reads `rdx` (1, 2 or 4) bytes at the aligned offset `rsi` of the PCI configuration space of device `rdi`; the
    /// value in `rdi`.
    ConfigRead = 16,
    /// Writes `r8` as `rdx` (1, 2 or 4) bytes at the aligned offset `rsi` of the configuration space of device
    /// `rdi`. BARs and the MSI-X capability belong to the kernel: [`Error::Refused`].
    ConfigWrite = 17,
    /// Reads the [`Inspect`] item `rdi` of index `rsi`; its words in `rdx`, `r8`, `r9`, `r10`. Needs the right to
    /// inspect. [`Error::NoSuchItem`] past the last index.
    Inspect = 18,
    /// Copies the oldest untold [`FaultReport`] into the caller's message page, or [`Error::Again`]. Needs the right
    /// to supervise.
    NextFault = 19,
    /// Does [`ServiceOperation`] `rsi` to service number `rdi`. Needs the right to supervise.
    Control = 20,
    /// Copies log records of core `rdi` from cursor `rsi` on into the caller's message page: bytes copied in `rdi`,
    /// the next cursor in `rsi`, records lost since the cursor in `rdx`. Needs the right to read logs.
    LogRead = 21,
    /// The current [`Handle`], in `rdi`, of the capability whose older handle is `rdi`: the way on from
    /// [`Error::Restarted`].
    Refresh = 22,
    /// Stops the node at once; `rdi` is 0 to power off, 1 to reset. Needs the right to supervise or to stop the node.
    StopNode = 23,
    /// Says what is at guest memory. Needs the guest capability `rdi`, held as its memory's owner. `rsi`: the first
    /// guest page; `rdx`: the pool's frame for it, the next page gets the next frame; `r8`: pages, 1 to 512; `r9`:
    /// [`GUEST_ACCESS_NONE`], [`GUEST_ACCESS_READ`] or [`GUEST_ACCESS_WRITE`], and [`GUEST_ZERO`] to zero the frames first
    /// (at most [`MAX_ZERO_PAGES`]). 512 pages at a multiple of 512 in frames that are aligned alike become one page of
    /// 2 MiB. When the call returns no processor and no view uses what was there before. [`Error::Malformed`],
    /// [`Error::NoSuchItem`] for pages that the guest does not have or frames that the pool does not have.
    GuestMap = 24,
    /// Starts vCPU `rsi`, which must be stopped; it comes with [`crate::vcpu::ExitReason::Started`]. Needs the guest
    /// capability `rdi`, held as the platform, as do the next three. [`Error::Again`] when it runs.
    VcpuStart = 25,
    /// Stops vCPU `rsi` wherever it is; a reply to its exit is stale from then on.
    VcpuStop = 26,
    /// Makes vCPU `rsi` come with [`crate::vcpu::ExitReason::Kicked`] soon; when it is at an exit, after the reply.
    VcpuKick = 27,
    /// Writes vCPU `rsi`'s [`crate::vcpu::SystemState`] to its state page. [`Error::Again`] when it is not at an exit.
    VcpuFetch = 28,
    /// Makes core `rdx` the home of vCPU `rsi`. Needs the guest capability `rdi`, held for placement.
    VcpuPlace = 29,
    /// How far vCPU `rsi` has come: in `rdi` a [`crate::vcpu::Progress`]. Needs the guest capability `rdi`, held as its memory's
    /// owner.
    GuestProgress = 30,
}

/// [`Syscall::GuestMap`]: nothing is there.
pub const GUEST_ACCESS_NONE: u64 = 0;
/// [`Syscall::GuestMap`]: it can be read and executed.
pub const GUEST_ACCESS_READ: u64 = 1;
/// [`Syscall::GuestMap`]: it can be written, too.
pub const GUEST_ACCESS_WRITE: u64 = 2;
/// [`Syscall::GuestMap`]: the frames are zeroed first.
pub const GUEST_ZERO: u64 = 4;
/// The most pages that one [`Syscall::GuestMap`] zeroes.
pub const MAX_ZERO_PAGES: u64 = 32;
/// The most pages of one [`Syscall::GuestMap`].
pub const MAX_MAP_PAGES: u64 = 512;

impl Syscall {
    const ALL: [Self; 31] = [
        Self::Call,
        Self::Receive,
        Self::Reply,
        Self::Notify,
        Self::AcknowledgeInterrupt,
        Self::Yield,
        Self::FutexWait,
        Self::FutexWake,
        Self::SpawnThread,
        Self::ExitThread,
        Self::Log,
        Self::Panic,
        Self::DmaAddress,
        Self::PortRead,
        Self::PortWrite,
        Self::PortWriteBytes,
        Self::ConfigRead,
        Self::ConfigWrite,
        Self::Inspect,
        Self::NextFault,
        Self::Control,
        Self::LogRead,
        Self::Refresh,
        Self::StopNode,
        Self::GuestMap,
        Self::VcpuStart,
        Self::VcpuStop,
        Self::VcpuKick,
        Self::VcpuFetch,
        Self::VcpuPlace,
        Self::GuestProgress,
    ];
    /// How many there are: their numbers are those below it.
    pub const COUNT: u64 = Self::ALL.len() as u64;

    /// The call with this number.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "compared with the array's length")]
    pub const fn from_number(number: u64) -> Option<Self> {
        if number < Self::COUNT { Some(Self::ALL[number as usize]) } else { None }
    }
}

/// The bit of [`Syscall::Receive`]'s mask that asks for messages as well as notifications.
pub const RECEIVE_MESSAGES: u64 = 1 << 63;
/// The notification bit that the kernel raises for the supervisor when a [`FaultReport`] waits.
pub const FAULT_BIT: u64 = 1 << 62;
/// The notification bits that a manifest can give out: 0 to 61.
pub const USER_BITS: u64 = FAULT_BIT - 1;

/// How a system call ended when it did not fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum Outcome {
    /// Done; for a receive or a call: a message is in the registers.
    Message = 0,
    /// A receive ended with notification bits.
    Notified = 1,
}

/// Why a system call failed. The value is what `rax` holds, as a negative number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i64)]
pub enum Error {
    /// There is no such system call.
    BadCall = -1,
    /// The handle names no capability of this service.
    BadHandle = -2,
    /// The handle names a capability of another kind than the call needs.
    WrongKind = -3,
    /// The service does not hold the right to do this.
    Refused = -4,
    /// The service behind the handle was restarted (or is down) since the handle was obtained; a call that was under
    /// way is abandoned. [`Syscall::Refresh`] gives the handle to go on with.
    Restarted = -5,
    /// The deadline passed.
    TimedOut = -6,
    /// The message or an argument has not the form that the call needs.
    Malformed = -7,
    /// A pointer argument does not lie, whole, in memory of this service that allows the access.
    BadPointer = -8,
    /// Nobody waits for this reply.
    Stale = -9,
    /// There is nothing now; try later.
    Again = -10,
    /// A bounded table is full.
    NoRoom = -11,
    /// The index is past the last item.
    NoSuchItem = -12,
    /// The service stays down: past its restart limit.
    Down = -13,
}

impl Error {
    /// The error that a status register holds, or `None` when the status is an [`Outcome`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "compared with the array's length")]
    pub const fn from_status(status: u64) -> Option<Self> {
        const ALL: [Error; 13] = [
            Error::BadCall,
            Error::BadHandle,
            Error::WrongKind,
            Error::Refused,
            Error::Restarted,
            Error::TimedOut,
            Error::Malformed,
            Error::BadPointer,
            Error::Stale,
            Error::Again,
            Error::NoRoom,
            Error::NoSuchItem,
            Error::Down,
        ];
        let index = status.wrapping_neg().wrapping_sub(1);
        if index < ALL.len() as u64 { Some(ALL[index as usize]) } else { None }
    }

    /// The status register's value for this error.
    #[must_use]
    pub const fn status(self) -> u64 {
        (self as i64).cast_unsigned()
    }
}

impl core::fmt::Display for Error {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::BadCall => "no such system call",
            Self::BadHandle => "the handle names no capability",
            Self::WrongKind => "the handle is of the wrong kind",
            Self::Refused => "refused",
            Self::Restarted => "the service was restarted",
            Self::TimedOut => "timed out",
            Self::Malformed => "malformed",
            Self::BadPointer => "the pointer is not this service's memory",
            Self::Stale => "nobody waits for this reply",
            Self::Again => "nothing now, try later",
            Self::NoRoom => "no room",
            Self::NoSuchItem => "no such item",
            Self::Down => "the service is down",
        })
    }
}

impl core::error::Error for Error {}

/// What a message is about, and how many bytes of it are in the message page.
///
/// Bits 0 to 15: the method, whose meaning the interface gives. Bits 16 to 31: bytes in the message page, at most
/// [`MAX_MESSAGE_BYTES`]. Bits 32 to 63: free for the interface.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(transparent)]
pub struct Label(pub u64);

impl Label {
    /// A label from a method and the bytes in the message page.
    #[must_use]
    pub const fn new(method: u16, bytes: u16) -> Self {
        Self(method as u64 | (bytes as u64) << 16)
    }

    /// The method.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the method is the low 16 bits")]
    pub const fn method(self) -> u16 {
        self.0 as u16
    }

    /// Bytes in the message page: a claim of the sender's until compared with [`MAX_MESSAGE_BYTES`].
    #[must_use]
    pub const fn bytes(self) -> usize {
        (self.0 >> 16 & 0xffff) as usize
    }
}

/// A service's name for one of its capabilities: the slot in its table (bits 0 to 15) and the generation (bits 16
/// to 47) that the object behind it had when the handle was obtained. A handle of another generation is harmless:
/// the call ends with [`Error::Restarted`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct Handle(pub u64);

impl Handle {
    /// The handle of `slot` at `generation`.
    #[must_use]
    pub const fn new(slot: u16, generation: u32) -> Self {
        Self(slot as u64 | (generation as u64) << 16)
    }

    /// The slot in the capability table.
    #[must_use]
    pub const fn slot(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    /// The generation of the object behind the capability.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the generation is 32 bits")]
    pub const fn generation(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// Whether the bits above the generation are clear, as in every handle the kernel made.
    #[must_use]
    pub const fn is_well_formed(self) -> bool {
        self.0 >> 48 == 0
    }
}

/// Whom a reply goes to. Made by the kernel, so a server can believe the caller's identity in it.
///
/// Bits 0 to 15: the calling thread's number plus one, so that 0 is nobody. Bits 16 to 31: the calling service's
/// number. Bits 32 to 63: the sequence number of the call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct Token(pub u64);

impl Token {
    /// A token that stands for nobody.
    pub const NOBODY: Self = Self(0);

    /// The token of a call.
    #[must_use]
    pub const fn new(thread: u16, service: u16, sequence: u32) -> Self {
        Self((thread as u64 + 1) | (service as u64) << 16 | (sequence as u64) << 32)
    }

    /// The token of the same thread's next call.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1 << 32))
    }

    /// The calling thread's number on this node, or `None` for nobody.
    #[must_use]
    pub const fn thread(self) -> Option<usize> {
        ((self.0 & 0xffff) as usize).checked_sub(1)
    }

    /// The calling service's number.
    #[must_use]
    pub const fn service(self) -> usize {
        (self.0 >> 16 & 0xffff) as usize
    }

    /// The call's sequence number.
    #[must_use]
    pub const fn sequence(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// What [`Syscall::Control`] does to a service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum ServiceOperation {
    /// Ends all its threads where they are and reports [`FaultCause::Stopped`]; its callers get
    /// [`Error::Restarted`].
    Stop = 0,
    /// Restores the next piece of a stopped service's memory to what its ELF file says, all but its kept regions.
    /// [`Error::Again`] until it is whole: call again.
    Reload = 1,
    /// Starts a reloaded service as a new generation.
    Start = 2,
    /// Marks a stopped service as staying down: calls to it end with [`Error::Down`].
    GiveUp = 3,
}

impl ServiceOperation {
    /// The operation with this number.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Stop),
            1 => Some(Self::Reload),
            2 => Some(Self::Start),
            3 => Some(Self::GiveUp),
            _ => None,
        }
    }
}

/// What [`Syscall::Inspect`] shows. Times are in TSC ticks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum Inspect {
    /// Of core `index`: busy time, idle time, thread switches, interrupts taken.
    Core = 0,
    /// Of service `index`: run time, [`ServiceState`] | threads << 8, generation, calls it served.
    Service = 1,
    /// Of the service `index`: its name's 16 bytes in words 0 and 1; restart limit (low half) and the period in
    /// milliseconds that it counts over (high half) in 2; in 3 the milliseconds between two beats, 0 for none due.
    ServiceName = 2,
    /// Of the node (index 0): frames in all, frames free, cores, TSC ticks per second.
    Node = 3,
    /// Of the log ring of core `index`: records written, bytes written, records refused, 0.
    Log = 4,
    /// Of calls (index 0): calls that servers took, replies that nobody waited for, calls that ended as restarted, 0.
    Calls = 5,
    /// Of the boot (index 0): when the kernel was entered, when it left to the first service, 0, 0.
    Boot = 6,
    /// Of vCPU `index`: ticks it ran (its exits' service included), exits to services, misses in nested paging, and its home
    /// core (low 16 bits), state (bits 16 to 23: [`VcpuActivity`]) and halts (high half).
    Vcpu = 7,
    /// Of vCPU `index`: ticks it was ready and did not run (steal), kicks, world switches, 0.
    VcpuTime = 8,
}

/// What a vCPU does, as [`Inspect::Vcpu`] shows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum VcpuActivity {
    /// It is stopped.
    Stopped = 0,
    /// It runs, or waits for its core.
    Running = 1,
    /// It is halted.
    Halted = 2,
    /// It waits for a service.
    AtExit = 3,
}

impl Inspect {
    /// The item with this number.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Core),
            1 => Some(Self::Service),
            2 => Some(Self::ServiceName),
            3 => Some(Self::Node),
            4 => Some(Self::Log),
            5 => Some(Self::Calls),
            6 => Some(Self::Boot),
            7 => Some(Self::Vcpu),
            8 => Some(Self::VcpuTime),
            _ => None,
        }
    }
}

/// Where a service stands, as [`Inspect::Service`] shows it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum ServiceState {
    /// Its threads run or wait.
    Running = 0,
    /// It faulted or was stopped; its memory is as it was.
    Stopped = 1,
    /// Its memory is being restored.
    Reloading = 2,
    /// Its memory is restored; it waits for its start.
    Ready = 3,
    /// It stays down.
    Down = 4,
}

impl ServiceState {
    /// The state with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Running),
            1 => Some(Self::Stopped),
            2 => Some(Self::Reloading),
            3 => Some(Self::Ready),
            4 => Some(Self::Down),
            _ => None,
        }
    }
}

/// Why a service was stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum FaultCause {
    /// A processor exception that is none of the others: `vector` and `error_code` say which.
    Exception = 0,
    /// An access to an address that is not mapped, or not so (`address`).
    PageFault = 1,
    /// An access just below a stack (`address`).
    StackOverflow = 2,
    /// The service panicked; the text is in the report.
    Panic = 3,
    /// It ran longer than its budget without waiting.
    Budget = 4,
    /// Its first thread ended.
    Exit = 5,
    /// The supervisor stopped it.
    Stopped = 6,
}

impl FaultCause {
    /// The cause with this number.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Exception),
            1 => Some(Self::PageFault),
            2 => Some(Self::StackOverflow),
            3 => Some(Self::Panic),
            4 => Some(Self::Budget),
            5 => Some(Self::Exit),
            6 => Some(Self::Stopped),
            _ => None,
        }
    }
}

/// What the kernel tells the supervisor of a stopped service.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct FaultReport {
    /// The service's number.
    pub service: u32,
    /// The slot of the thread that faulted.
    pub thread: u32,
    /// A [`FaultCause`].
    pub cause: u64,
    /// The exception's vector, when there was one.
    pub vector: u64,
    /// The exception's error code; the exit code of [`FaultCause::Exit`].
    pub error_code: u64,
    /// The address of a page fault (CR2).
    pub address: u64,
    /// The generation that faulted.
    pub generation: u64,
    /// When, in TSC ticks.
    pub tsc: u64,
    /// The thread's registers then.
    pub registers: UserRegisters,
    /// How many bytes of `text` count.
    pub text_bytes: u64,
    /// The panic's text, UTF-8.
    pub text: [u8; MAX_PANIC_BYTES],
}

/// A thread's general registers. The kernel's entry code knows the offsets.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the registers of the processor, by their names")]
pub struct UserRegisters {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

impl UserRegisters {
    /// All registers zero.
    pub const ZERO: Self = Self {
        rax: 0,
        rbx: 0,
        rcx: 0,
        rdx: 0,
        rsi: 0,
        rdi: 0,
        rbp: 0,
        rsp: 0,
        r8: 0,
        r9: 0,
        r10: 0,
        r11: 0,
        r12: 0,
        r13: 0,
        r14: 0,
        r15: 0,
        rip: 0,
        rflags: 0,
    };
}

const _: () = assert!(size_of::<UserRegisters>() == 18 * 8);
const _: () = assert!(size_of::<FaultReport>() <= PAGE_SIZE);

/// A name of at most [`MAX_NAME_BYTES`] bytes, padded with zeros.
#[derive(Clone, Copy, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(transparent)]
pub struct Name(pub [u8; MAX_NAME_BYTES]);

impl Name {
    /// The name, or `None` when it is empty, too long or has a zero byte.
    #[must_use]
    pub const fn new(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.is_empty() || bytes.len() > MAX_NAME_BYTES {
            return None;
        }
        let mut name = [0; MAX_NAME_BYTES];
        let mut i = 0;
        while i < bytes.len() {
            if bytes[i] == 0 {
                return None;
            }
            name[i] = bytes[i];
            i += 1;
        }
        Some(Self(name))
    }

    /// The name as text; what is not UTF-8 shows as `?`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(MAX_NAME_BYTES);
        core::str::from_utf8(&self.0[..end]).unwrap_or("?")
    }
}

impl core::fmt::Debug for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl core::fmt::Display for Name {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What kind of object a [`StartEntry`] stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum CapabilityKind {
    /// Another service's endpoint; `length` is that service's number.
    Endpoint = 0,
    /// A notification of another service; `bits` are what it raises there.
    Notification = 1,
    /// Memory at `address`, `length` bytes.
    Region = 2,
    /// DMA-capable memory at `address`, `length` bytes; `bits` is the physical address of its first byte.
    DmaRegion = 3,
    /// A device's memory at `address`, `length` bytes; `bits` is its physical address.
    DeviceMemory = 4,
    /// An interrupt that raises `bits` here.
    Interrupt = 5,
    /// I/O ports from `address`, `length` of them.
    Ports = 6,
    /// A PCI function's configuration space; `address` is bus << 8 | device << 3 | function.
    PciFunction = 7,
    /// The guest: `address` is how many frames its pool has, `length` its pages of memory on all nodes; `bits` 0 to 7 its vCPUs
    /// on this node, 8 to 15 the nodes that it spans, 32 to 63 the pages of its private memory; `index` the numbers of the
    /// services of its platform (low byte) and of its memory (high byte).
    Guest = 8,
}

impl CapabilityKind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        match number {
            0 => Some(Self::Endpoint),
            1 => Some(Self::Notification),
            2 => Some(Self::Region),
            3 => Some(Self::DmaRegion),
            4 => Some(Self::DeviceMemory),
            5 => Some(Self::Interrupt),
            6 => Some(Self::Ports),
            7 => Some(Self::PciFunction),
            8 => Some(Self::Guest),
            _ => None,
        }
    }
}

/// One capability, as a service finds it on its start page.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct StartEntry {
    /// The manifest's name for it. A device's parts carry the device's name.
    pub name: Name,
    /// A [`CapabilityKind`].
    pub kind: u16,
    /// Which of several alike: a device's BAR number, an interrupt's MSI-X entry; 0 otherwise.
    pub index: u16,
    /// [`ENTRY_KEPT`], [`ENTRY_WRITABLE`], [`ENTRY_CONSTANT`].
    pub flags: u32,
    /// The [`Handle`].
    pub handle: u64,
    /// See [`CapabilityKind`].
    pub address: u64,
    /// See [`CapabilityKind`].
    pub length: u64,
    /// See [`CapabilityKind`].
    pub bits: u64,
}

/// [`StartEntry::flags`]: the region outlives a restart.
pub const ENTRY_KEPT: u32 = 1;
/// [`StartEntry::flags`]: the region can be written.
pub const ENTRY_WRITABLE: u32 = 2;

/// [`StartEntry::flags`]: nobody ever writes to the region: it is a blob of the image.
pub const ENTRY_CONSTANT: u32 = 4;

const _: () = assert!(size_of::<StartEntry>() == 56);

/// What a service finds, read-only, at [`START_PAGE`] (and in `rdi` at its entry).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct StartPage {
    /// [`START_MAGIC`].
    pub magic: u64,
    /// This service's number.
    pub service: u32,
    /// How many threads it may have.
    pub threads: u32,
    /// Which start this is: 0 at boot, one more at each restart.
    pub generation: u64,
    /// This service's name.
    pub name: Name,
    /// TSC ticks per second.
    pub tsc_hz: u64,
    /// Cores on this node.
    pub cores: u32,
    /// Entries that count.
    pub entry_count: u32,
    /// Bytes of heap at [`HEAP_BASE`].
    pub heap_bytes: u64,
    /// The node's number in its cluster as far as the image or the command line says; 0 otherwise.
    pub node: u64,
    /// [`Image::checksum`](crate::image::Image::checksum) of the image that the node runs.
    pub image: u64,
    /// Capabilities.
    pub entries: [StartEntry; MAX_CAPABILITIES],
}

/// The first word of a [`StartPage`]: "UNUMSTRT".
pub const START_MAGIC: u64 = u64::from_le_bytes(*b"UNUMSTRT");

const _: () = assert!(size_of::<StartPage>() <= PAGE_SIZE);

/// The header of each record that [`Syscall::LogRead`] copies; `bytes` bytes follow, padded to 8.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct LogRecord {
    /// When, in TSC ticks.
    pub tsc: u64,
    /// The service's number; [`LOG_KERNEL`] for the kernel.
    pub service: u16,
    /// The core.
    pub core: u16,
    /// Bytes that follow.
    pub bytes: u16,
    /// [`LOG_TEXT`] or 0.
    pub flags: u16,
}

/// [`LogRecord::service`] of the kernel itself.
pub const LOG_KERNEL: u16 = 0xffff;
/// [`LogRecord::flags`]: the bytes are UTF-8 text, not defmt.
pub const LOG_TEXT: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for n in 0..31 {
            assert_eq!(Syscall::from_number(n).unwrap() as u64, n);
        }
        assert_eq!(Syscall::from_number(31), None);
        assert_eq!(Syscall::from_number(u64::MAX), None);
        for n in 1..=13u64 {
            let error = Error::from_status(n.wrapping_neg()).unwrap();
            assert_eq!(error.status(), n.wrapping_neg());
        }
        assert_eq!(Error::from_status(0), None);
        assert_eq!(Error::from_status(1), None);
        assert_eq!(Error::from_status(14u64.wrapping_neg()), None);
    }

    #[test]
    fn packed_words_keep_their_parts() {
        let label = Label::new(0xbeef, 4096);
        assert_eq!((label.method(), label.bytes()), (0xbeef, 4096));
        let handle = Handle::new(63, 0xffff_fffe);
        assert_eq!((handle.slot(), handle.generation()), (63, 0xffff_fffe));
        assert!(handle.is_well_formed());
        assert!(!Handle(1 << 48).is_well_formed());
        let token = Token::new(127, 31, 0xdead_beef);
        assert_eq!((token.thread(), token.service(), token.sequence()), (Some(127), 31, 0xdead_beef));
        assert_eq!(Token::NOBODY.thread(), None);
    }

    #[test]
    fn a_stack_pointer_tells_its_slot() {
        assert_eq!(slot_of_stack(stack_top(0)), Some(0));
        assert_eq!(slot_of_stack(stack_top(0) - 8), Some(0));
        assert_eq!(slot_of_stack(stack_top(15)), Some(15));
        assert_eq!(slot_of_stack(stack_top(15) + 8), None);
        assert_eq!(slot_of_stack(0), None);
    }

    #[test]
    fn names_are_bounded() {
        assert!(Name::new("").is_none());
        assert!(Name::new("seventeen-letters").is_none());
        assert_eq!(Name::new("sixteen-letters!").unwrap().as_str(), "sixteen-letters!");
    }
}
