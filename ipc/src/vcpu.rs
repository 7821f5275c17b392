//! Between the kernel and the vmm service: a virtual processor's state page, and what its exits say.
//!
//! A vCPU is a thread that runs in guest mode. What the kernel does not finish itself becomes a call that the kernel
//! makes for the vCPU, on the vCPU's time: a miss in nested paging to the service that owns guest memory, every other exit
//! to the one that owns the platform. The message of such an exit is the label [`exit_label`] and four words: the vCPU's
//! number and three that [`ExitReason`] explains. The reply says nothing: what the vCPU goes on with is in its
//! [`VcpuPage`], which the service writes only between an exit and its reply, and the kernel only in between or when asked
//! ([`crate::abi::Syscall::VcpuFetch`]).
//!
//! Nothing here is of one maker: AMD SVM and Intel VMX both fill it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi::{Label, PAGE_SIZE, UserRegisters};

/// The most vCPUs of one guest on one node.
pub const MAX_VCPUS: usize = 64;
/// Where the platform's service finds the state pages, one after another.
pub const VCPU_PAGES: u64 = 0x5000_0000;
/// Where the platform's service finds guest-physical address 0. The window is as large as what it shows.
pub const WINDOW_BASE: u64 = 0x4000_0000_0000;
/// Guest memory below 4 GiB ends here at the latest; devices' registers follow.
pub const LOW_MEMORY_END: u64 = 0xc000_0000;
/// Guest memory that has no room below [`LOW_MEMORY_END`] begins here.
pub const HIGH_MEMORY_START: u64 = 1 << 32;
/// Guest-physical memory that the guest never gets to see: the walk cache's tables.
pub const PRIVATE_START: u64 = 1 << 38;

/// Where a guest of `pages` pages has its memory: first page number and pages, low and high.
#[must_use]
pub const fn memory_ranges(pages: u64) -> [(u64, u64); 2] {
    let low_end = LOW_MEMORY_END / PAGE_SIZE as u64;
    let low = if pages < low_end { pages } else { low_end };
    [(0, low), (HIGH_MEMORY_START / PAGE_SIZE as u64, pages - low)]
}

/// Why a vCPU left guest mode. Words 1 to 3 of the message are explained at each; those that are not named are 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum ExitReason {
    /// It was started ([`crate::abi::Syscall::VcpuStart`]): the reply's page has the state to begin with.
    Started = 1,
    /// Nothing happened to it: it was asked to come ([`crate::abi::Syscall::VcpuKick`]), or its deadline passed.
    Kicked = 2,
    /// `CPUID`.
    Cpuid = 3,
    /// `HLT`.
    Halt = 4,
    /// `IN`, `OUT`, `INS`, `OUTS`: 1: [`PortAccess`]; 2: the address of the next instruction.
    Port = 5,
    /// `RDMSR`.
    ReadMsr = 6,
    /// `WRMSR`.
    WriteMsr = 7,
    /// An access to guest-physical memory that is not there: 1: the address; 2: [`ACCESS_WRITE`], [`ACCESS_EXECUTE`],
    /// [`ACCESS_DELIVERY`], [`ACCESS_TABLES`].
    Memory = 8,
    /// An exception that is intercepted: 1: its vector; 2: its error code; 3: for a page fault its address.
    Exception = 9,
    /// The vCPU can take an interrupt now, as [`EntryControl::window`] asked.
    InterruptWindow = 10,
    /// The vCPU can take an NMI now, as [`EntryControl::window`] asked.
    NmiWindow = 11,
    /// Shutdown: a triple fault.
    Shutdown = 12,
    /// The processor refuses to run this state: 1: the processor's own code for it.
    InvalidState = 13,
    /// `XSETBV`.
    SetXcr = 14,
    /// `VMCALL` or `VMMCALL`.
    Hypercall = 15,
    /// An instruction that a guest here must not have (`VMRUN`, `MONITOR`, `SKINIT`, `RDPMC`, ...).
    Forbidden = 16,
    /// `WBINVD`, `INVD`, `WBNOINVD`.
    Caches = 17,
    /// A task switch: 1: the selector; 2: the error code, if any.
    TaskSwitch = 18,
    /// `MOV` to a control register, with [`EntryControl::intercepts`]: 1: its number.
    WriteControl = 19,
    /// `MOV` from CR3 or CR4, with [`EntryControl::intercepts`].
    ReadControl = 20,
    /// `INVLPG`, with [`EntryControl::intercepts`].
    InvalidatePage = 21,
    /// `INVPCID`, with [`EntryControl::intercepts`].
    InvalidateContext = 22,
    /// An exit that the kernel does not know: 1: the processor's code; 2 and 3: its details.
    Unknown = 23,
    /// The service that owns guest memory could not say what is at an address: 1: the address.
    MemoryLost = 24,
}

impl ExitReason {
    /// The reason with this number.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        const ALL: [ExitReason; 24] = [
            ExitReason::Started,
            ExitReason::Kicked,
            ExitReason::Cpuid,
            ExitReason::Halt,
            ExitReason::Port,
            ExitReason::ReadMsr,
            ExitReason::WriteMsr,
            ExitReason::Memory,
            ExitReason::Exception,
            ExitReason::InterruptWindow,
            ExitReason::NmiWindow,
            ExitReason::Shutdown,
            ExitReason::InvalidState,
            ExitReason::SetXcr,
            ExitReason::Hypercall,
            ExitReason::Forbidden,
            ExitReason::Caches,
            ExitReason::TaskSwitch,
            ExitReason::WriteControl,
            ExitReason::ReadControl,
            ExitReason::InvalidatePage,
            ExitReason::InvalidateContext,
            ExitReason::Unknown,
            ExitReason::MemoryLost,
        ];
        if number >= 1 && (number as usize) <= ALL.len() { Some(ALL[number as usize - 1]) } else { None }
    }
}

/// The label of an exit's message. Who gets it knows it from another's by the token, whose service is its own.
#[must_use]
pub const fn exit_label(reason: ExitReason) -> Label {
    Label::new(reason as u16, 0)
}

/// The method of the reply to an exit whose instruction was done, and changed nothing but the page's registers: the event that
/// the exit told of is still delivered, the deadline of the entry before holds, and an interrupt shadow is over. Method 0 says
/// that all of the page counts.
pub const RESUME_AS_BEFORE: u16 = 1;

/// The label's method of a fault in guest memory, which goes to the service that owns it: words: 0 the guest-physical
/// address; 1 `ACCESS_*` in the lower half, and in the upper half, when the guest spans nodes, a vCPU's *fingerprint*: a hash
/// of its general registers and RIP, which is the same as long as no instruction of it is retired; 2 the vCPU's number or
/// [`FAULT_OF_WINDOW`]; 3 a vCPU's RIP. A reply with method 0 lets the access be tried again; any other ends it as
/// [`ExitReason::MemoryLost`].
pub const GUEST_FAULT: u16 = 0xff00;
/// See [`GUEST_FAULT`]: a miss in the platform's window.
pub const FAULT_OF_WINDOW: u64 = u64::MAX;

/// An access writes.
pub const ACCESS_WRITE: u64 = 1;
/// An access fetches an instruction.
pub const ACCESS_EXECUTE: u64 = 2;
/// An access is made by the delivery of an event, a software interrupt's too, and not by the instruction at RIP.
pub const ACCESS_DELIVERY: u64 = 4;
/// An access to the guest's page tables, by the processor's walk through them.
pub const ACCESS_TABLES: u64 = 8;

/// How far a vCPU has come ([`crate::abi::Syscall::GuestProgress`]).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// Of its registers as of when it last left guest mode, as in [`GUEST_FAULT`]: another one than before, and it has retired
    /// an instruction.
    pub fingerprint: u32,
    /// It is in guest mode now: nobody knows what it has retired.
    pub in_guest_mode: bool,
}

impl Progress {
    /// As the call gives it: the fingerprint in the lower half, and bit 32 says whether it is in guest mode.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.fingerprint as u64 | (self.in_guest_mode as u64) << 32
    }

    /// What [`Progress::to_bits`] gave.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    pub const fn from_bits(bits: u64) -> Self {
        Self { fingerprint: bits as u32, in_guest_mode: bits >> 32 & 1 != 0 }
    }
}

/// Word 1 of [`ExitReason::Port`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PortAccess(pub u64);

impl PortAccess {
    /// Bit 16: it reads.
    pub const IN: u64 = 1 << 16;
    /// Bit 17: `INS` or `OUTS`.
    pub const STRING: u64 = 1 << 17;
    /// Bit 18: repeated.
    pub const REPEATED: u64 = 1 << 18;

    /// An access to a port of so many bytes, with the flags above.
    #[must_use]
    pub const fn new(port: u16, bytes: u8, flags: u64) -> Self {
        Self(port as u64 | flags | (bytes as u64) << 24)
    }

    /// The port.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low 16 bits")]
    pub const fn port(self) -> u16 {
        self.0 as u16
    }

    /// Bytes: 1, 2 or 4.
    #[must_use]
    pub const fn bytes(self) -> u8 {
        (self.0 >> 24 & 7) as u8
    }

    /// Whether the flag (or all flags) given are set.
    #[must_use]
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }
}

/// An event to inject, as AMD's EVENTINJ and Intel's VM-entry interruption information have it: bits 0 to 7 the vector,
/// 8 to 10 the [`EventKind`], 11 whether an error code is delivered, 31 whether there is an event at all, 32 to 63 the
/// error code (AMD APM 2, 15.20; Intel SDM 3C, 25.8.3).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(transparent)]
pub struct Event(pub u64);

/// The kind of an [`Event`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum EventKind {
    /// An external interrupt.
    Interrupt = 0,
    /// NMI; its vector is 2.
    Nmi = 2,
    /// An exception.
    Exception = 3,
    /// `INT n`.
    SoftwareInterrupt = 4,
}

impl Event {
    /// No event.
    pub const NONE: Self = Self(0);
    const VALID: u64 = 1 << 31;
    const HAS_ERROR_CODE: u64 = 1 << 11;

    /// An interrupt.
    #[must_use]
    pub const fn interrupt(vector: u8) -> Self {
        Self(Self::VALID | vector as u64)
    }

    /// An NMI.
    #[must_use]
    pub const fn nmi() -> Self {
        Self(Self::VALID | (EventKind::Nmi as u64) << 8 | 2)
    }

    /// An exception, with its error code where it has one.
    #[must_use]
    pub const fn exception(vector: u8, error_code: Option<u32>) -> Self {
        let event = Self::VALID | (EventKind::Exception as u64) << 8 | vector as u64;
        match error_code {
            Some(code) => Self(event | Self::HAS_ERROR_CODE | (code as u64) << 32),
            None => Self(event),
        }
    }

    /// Whether there is one.
    #[must_use]
    pub const fn is_some(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Its vector.
    #[must_use]
    pub const fn vector(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Its kind, when there is an event and its kind is one of those that there are.
    #[must_use]
    pub const fn kind(self) -> Option<EventKind> {
        if !self.is_some() {
            return None;
        }
        match self.0 >> 8 & 7 {
            0 => Some(EventKind::Interrupt),
            2 => Some(EventKind::Nmi),
            3 => Some(EventKind::Exception),
            4 => Some(EventKind::SoftwareInterrupt),
            _ => None,
        }
    }

    /// Its error code, if it delivers one.
    #[must_use]
    pub const fn error_code(self) -> Option<u32> {
        if self.0 & Self::HAS_ERROR_CODE != 0 { Some((self.0 >> 32) as u32) } else { None }
    }
}

/// What a vCPU goes on with; the kernel sets all of it back at each exit, but for `event`.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct EntryControl {
    /// The event to deliver. An exception or an NMI comes at the entry; an interrupt when the vCPU can take it, and while it
    /// waits, an exception or NMI that is given in its place goes before it. At an exit: the one that was not delivered yet,
    /// which is unless this is changed.
    pub event: Event,
    /// When to come with [`ExitReason::Kicked`], in TSC ticks of the node; [`crate::abi::NEVER`] for not at all. An exit
    /// sets it to never.
    pub deadline: u64,
    /// [`WINDOW_INTERRUPT`], [`WINDOW_NMI`].
    pub window: u32,
    /// [`HALT`]: wait for a kick or the deadline instead of running.
    pub activity: u32,
    /// Parts that the service changed and the kernel must load: [`DIRTY_SYSTEM`].
    pub dirty: u32,
    /// Which optional exits there are from now on (not set back at an exit): [`INTERCEPT_WALKS`].
    pub intercepts: u32,
    /// [`FLUSH_TRANSLATIONS`].
    pub flush: u32,
    /// At an exit: [`BLOCKED_BY_SHADOW`], [`BLOCKED_BY_NMI`]; in force unless changed.
    pub blocked: u32,
}

/// [`EntryControl::window`]: exit as soon as an interrupt can be taken. Not heeded beside an interrupt to deliver.
pub const WINDOW_INTERRUPT: u32 = 1;
/// [`EntryControl::window`]: exit as soon as an NMI can be taken.
pub const WINDOW_NMI: u32 = 2;
/// [`EntryControl::activity`]: halted.
pub const HALT: u32 = 1;
/// [`EntryControl::dirty`]: [`VcpuPage::system`].
pub const DIRTY_SYSTEM: u32 = 1;
/// [`EntryControl::intercepts`]: page faults, writes of CR0, CR3 and CR4, reads of CR3 and CR4, `INVLPG` and `INVPCID`, as the walk
/// cache needs them.
pub const INTERCEPT_WALKS: u32 = 1;
/// [`EntryControl::flush`]: forget the guest's translations of this vCPU.
pub const FLUSH_TRANSLATIONS: u32 = 1;
/// [`EntryControl::blocked`]: the instruction after `STI` or `MOV SS` comes first.
pub const BLOCKED_BY_SHADOW: u32 = 1;
/// [`EntryControl::blocked`]: the handler of an NMI runs.
pub const BLOCKED_BY_NMI: u32 = 2;

/// A segment register, its attributes packed into 12 bits: type, S, DPL, P, AVL, L, D/B, G (AMD APM 2, table 15-2).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Segment {
    /// The selector.
    pub selector: u16,
    /// The attributes.
    pub attributes: u16,
    /// The limit in bytes.
    pub limit: u32,
    /// The base.
    pub base: u64,
}

/// What few exits need: loaded when [`DIRTY_SYSTEM`] is set, there after `Started` and
/// [`crate::abi::Syscall::VcpuFetch`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the registers of the processor, by their names")]
pub struct SystemState {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Segment,
    pub idtr: Segment,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub dr6: u64,
    pub dr7: u64,
    pub pat: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub xcr0: u64,
    /// Added to the node's TSC, it is the guest's.
    pub tsc_offset: u64,
    /// The privilege level, 0 to 3.
    pub cpl: u64,
    /// Not a register: set to 1, the FPU and extended state become as after a reset; the kernel sets it back to 0.
    pub reset_fpu: u64,
}

/// A vCPU's state page.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VcpuPage {
    /// General registers, RIP and RFLAGS: of the exit, and to go on with.
    pub registers: UserRegisters,
    /// See there.
    pub control: EntryControl,
    /// CR0 to CR4, EFER and the code segment at the exit, to read only: enough to know how the guest reads its bytes.
    pub mode: Mode,
    /// The instruction's bytes where the processor tells them.
    pub instruction: [u8; 15],
    /// How many of `instruction` count; 0 when the processor does not tell.
    pub instruction_bytes: u8,
    /// The length of the instruction that exited; 0 when the processor does not tell.
    pub instruction_length: u64,
    /// See there.
    pub system: SystemState,
}

/// The registers that say how the guest reads instructions and translates addresses.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the registers of the processor, by their names")]
pub struct Mode {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs_base: u64,
    pub cs_attributes: u32,
    pub cpl: u32,
}

const _: () = assert!(size_of::<VcpuPage>() <= PAGE_SIZE);
const _: () = assert!(size_of::<Segment>() == 16);
