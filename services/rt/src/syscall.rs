//! The system calls: one stub in assembly, and a typed function for each call.
//!
//! [`ipc::abi`] says what each register carries. The functions take handles as they are in the capability
//! table and add nothing; what holds a handle and follows restarts is in [`crate::endpoint`] and its
//! neighbours.
#![expect(
    unsafe_code,
    reason = "the SYSCALL instruction, and pointers that the kernel reads or writes through"
)]

use core::arch::asm;
use core::sync::atomic::AtomicU32;

use ipc::abi::{
    Error, Handle, Inspect, Label, MESSAGE_WORDS, NEVER, Outcome, RECEIVE_MESSAGES, ServiceOperation,
    Syscall, Token,
};
use ipc::message::Message;
use ipc::vcpu::Progress;

/// What goes into a system call besides its number.
#[derive(Clone, Copy, Debug)]
pub struct Arguments {
    /// `rdi`: a handle or a token.
    pub rdi: u64,
    /// `rsi`: a label.
    pub rsi: u64,
    /// `rdx`, `r8`, `r9`, `r10`: the message words.
    pub words: [u64; MESSAGE_WORDS],
    /// `r12`: the deadline in TSC ticks.
    pub deadline: u64,
    /// `r13`: the notification mask.
    pub mask: u64,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { rdi: 0, rsi: 0, words: [0; MESSAGE_WORDS], deadline: NEVER, mask: 0 }
    }
}

/// What comes out of a system call.
#[derive(Clone, Copy, Debug)]
pub struct Results {
    /// `rax`: an [`Outcome`] or an [`Error`].
    pub status: u64,
    /// `rdi`: a token or a value.
    pub rdi: u64,
    /// `rsi`: a label.
    pub rsi: u64,
    /// `rdx`, `r8`, `r9`, `r10`: the message words.
    pub words: [u64; MESSAGE_WORDS],
}

impl Results {
    /// The error in the status, if it is one.
    #[inline]
    fn check(self) -> Result<Self, Error> {
        // Zero is by far the most frequent status.
        if self.status == Outcome::Message as u64 {
            return Ok(self);
        }
        match Error::from_status(self.status) {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }
}

/// Enters the kernel with any number and any registers: what the typed functions below are made of, and what
/// a test of the kernel uses to ask for what no typed function would.
///
/// # Safety
/// Addresses among the arguments that the call reads or writes through must be of memory that may be read or
/// written so at this moment. A [`Syscall::SpawnThread`] must name a function that does not return.
#[inline]
pub unsafe fn raw(number: u64, arguments: Arguments) -> Results {
    let status;
    let (rdi, rsi);
    let [mut word0, mut word1, mut word2, mut word3] = arguments.words;
    // SAFETY: SYSCALL leaves RSP and what lies below it alone, changes the registers that are declared as
    // outputs or clobbered by the System V ABI, and memory only as the caller of this function answers for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => status,
            inlateout("rdi") arguments.rdi => rdi,
            inlateout("rsi") arguments.rsi => rsi,
            inlateout("rdx") word0,
            inlateout("r8") word1,
            inlateout("r9") word2,
            inlateout("r10") word3,
            in("r12") arguments.deadline,
            in("r13") arguments.mask,
            clobber_abi("sysv64"),
            options(nostack),
        );
    }
    Results { status, rdi, rsi, words: [word0, word1, word2, word3] }
}

/// A call that reads and writes no memory of the service but its message page, and starts no thread.
#[inline]
fn plain(call: Syscall, arguments: Arguments) -> Result<Results, Error> {
    // SAFETY: none of the calls passed here takes an address; the message page is only ever accessed through
    // `crate::page`, by copies that do not span a system call.
    unsafe { raw(call as u64, arguments) }.check()
}

/// How a receive ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Received {
    /// A message came; the reply goes to the token.
    Message(Token, Message),
    /// These notification bits were raised, and are now cleared.
    Notified(u64),
}

/// Sends a message and waits for the reply.
///
/// # Errors
/// [`Error::Restarted`], [`Error::Down`], [`Error::TimedOut`], [`Error::Malformed`], [`Error::BadHandle`],
/// [`Error::WrongKind`].
#[inline]
pub fn call(endpoint: Handle, message: Message, deadline: u64) -> Result<Message, Error> {
    let Message { label, words } = message;
    let results =
        plain(Syscall::Call, Arguments { rdi: endpoint.0, rsi: label.0, words, deadline, mask: 0 })?;
    Ok(Message { label: Label(results.rsi), words: results.words })
}

/// Replies to `to` ([`Token::NOBODY`]: to nobody), then waits for a message (when `mask` has
/// [`RECEIVE_MESSAGES`]) or for notification bits in `mask`.
///
/// # Errors
/// [`Error::TimedOut`], [`Error::Again`] when polled, [`Error::Malformed`].
#[inline]
pub fn receive(to: Token, reply: Message, mask: u64, deadline: u64) -> Result<Received, Error> {
    let Message { label, words } = reply;
    let results = plain(Syscall::Receive, Arguments { rdi: to.0, rsi: label.0, words, deadline, mask })?;
    if results.status == Outcome::Notified as u64 {
        let [bits, ..] = results.words;
        return Ok(Received::Notified(bits));
    }
    Ok(Received::Message(Token(results.rdi), Message { label: Label(results.rsi), words: results.words }))
}

/// Replies and goes on.
///
/// # Errors
/// [`Error::Stale`] when nobody waits for it any longer.
#[inline]
pub fn reply(to: Token, reply: Message) -> Result<(), Error> {
    let Message { label, words } = reply;
    plain(Syscall::Reply, Arguments { rdi: to.0, rsi: label.0, words, ..Arguments::default() }).map(drop)
}

/// Waits for notification bits in `mask`; they are cleared.
///
/// # Errors
/// [`Error::TimedOut`], [`Error::Again`] when polled.
pub fn wait(mask: u64, deadline: u64) -> Result<u64, Error> {
    let arguments = Arguments { mask: mask & !RECEIVE_MESSAGES, deadline, ..Arguments::default() };
    let [bits, ..] = plain(Syscall::Receive, arguments)?.words;
    Ok(bits)
}

/// Raises a notification of another service.
///
/// # Errors
/// [`Error::Restarted`], [`Error::Down`], [`Error::BadHandle`], [`Error::WrongKind`].
#[inline]
pub fn notify(notification: Handle) -> Result<(), Error> {
    plain(Syscall::Notify, Arguments { rdi: notification.0, ..Arguments::default() }).map(drop)
}

/// Lets an interrupt come again.
///
/// # Errors
/// [`Error::BadHandle`], [`Error::WrongKind`].
#[inline]
pub fn acknowledge_interrupt(interrupt: Handle) -> Result<(), Error> {
    plain(Syscall::AcknowledgeInterrupt, Arguments { rdi: interrupt.0, ..Arguments::default() }).map(drop)
}

/// Goes to the end of the run queue of its priority.
pub fn yield_now() {
    // A yield cannot fail.
    let _ = plain(Syscall::Yield, Arguments::default());
}

/// Waits while `word` equals `expected`, until a wake or the deadline.
///
/// # Errors
/// [`Error::Again`] when it does not equal, [`Error::TimedOut`].
pub fn futex_wait(word: &AtomicU32, expected: u32, deadline: u64) -> Result<(), Error> {
    let arguments = Arguments {
        rdi: word.as_ptr().expose_provenance() as u64,
        rsi: u64::from(expected),
        deadline,
        ..Arguments::default()
    };
    // SAFETY: the kernel reads the word atomically, and it is alive as long as the reference.
    unsafe { raw(Syscall::FutexWait as u64, arguments) }.check().map(drop)
}

/// Wakes up to `count` threads of this service that wait at `word`; how many it woke.
pub fn futex_wake(word: &AtomicU32, count: u32) -> u64 {
    let arguments = Arguments {
        rdi: word.as_ptr().expose_provenance() as u64,
        rsi: u64::from(count),
        ..Arguments::default()
    };
    // SAFETY: the kernel uses the address only to compare it with those of waiting threads.
    let results = unsafe { raw(Syscall::FutexWake as u64, arguments) };
    results.check().map_or(0, |results| results.rdi)
}

/// Starts a thread that runs `entry(argument, slot)` on a core; its slot.
///
/// # Errors
/// [`Error::NoRoom`] when all of the manifest's threads are taken.
pub fn spawn_thread(
    entry: extern "C" fn(usize, usize) -> !,
    argument: usize,
    core: u64,
) -> Result<usize, Error> {
    let arguments = Arguments {
        rdi: entry as usize as u64,
        rsi: argument as u64,
        words: [core, 0, 0, 0],
        ..Arguments::default()
    };
    // SAFETY: `entry` takes what the kernel passes and never returns.
    let results = unsafe { raw(Syscall::SpawnThread as u64, arguments) }.check()?;
    usize::try_from(results.rdi).map_err(|_| Error::Malformed)
}

/// Ends the calling thread; in the first thread, the service, with `code`.
pub fn exit_thread(code: u64) -> ! {
    loop {
        // The call does not return; were a kernel to let it, asking again is all that is left.
        let _ = plain(Syscall::ExitThread, Arguments { rdi: code, ..Arguments::default() });
    }
}

/// Appends a defmt frame to the node's log.
///
/// # Errors
/// [`Error::Malformed`] when it is longer than [`ipc::abi::MAX_LOG_BYTES`].
pub fn log(frame: &[u8]) -> Result<(), Error> {
    let arguments = Arguments {
        rdi: frame.as_ptr().expose_provenance() as u64,
        rsi: frame.len() as u64,
        ..Arguments::default()
    };
    // SAFETY: the kernel reads the bytes of a slice that is alive.
    unsafe { raw(Syscall::Log as u64, arguments) }.check().map(drop)
}

/// Ends the service as panicked.
pub fn panic(text: &str) -> ! {
    let arguments = Arguments {
        rdi: text.as_ptr().expose_provenance() as u64,
        rsi: text.len() as u64,
        ..Arguments::default()
    };
    // SAFETY: the kernel reads the bytes of a string that is alive.
    let _ = unsafe { raw(Syscall::Panic as u64, arguments) };
    exit_thread(u64::MAX)
}

/// The physical address of an offset in a DMA region.
///
/// # Errors
/// [`Error::NoSuchItem`] past its end, [`Error::BadHandle`], [`Error::WrongKind`].
pub fn dma_address(region: Handle, offset: u64) -> Result<u64, Error> {
    let results =
        plain(Syscall::DmaAddress, Arguments { rdi: region.0, rsi: offset, ..Arguments::default() })?;
    Ok(results.rdi)
}

/// How wide a port or configuration-space access is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum Width {
    /// 8 bits.
    Byte = 1,
    /// 16 bits.
    Word = 2,
    /// 32 bits.
    Dword = 4,
}

/// Reads an I/O port.
///
/// # Errors
/// [`Error::Refused`] outside the range, [`Error::BadHandle`], [`Error::WrongKind`].
pub fn port_read(ports: Handle, port: u16, width: Width) -> Result<u32, Error> {
    read_device(Syscall::PortRead, ports, port, width)
}

/// Writes an I/O port.
///
/// # Errors
/// [`Error::Refused`] outside the range, [`Error::BadHandle`], [`Error::WrongKind`].
pub fn port_write(ports: Handle, port: u16, width: Width, value: u32) -> Result<(), Error> {
    write_device(Syscall::PortWrite, ports, port, width, value)
}

/// Writes bytes, 64 at most, one after another to an 8-bit I/O port.
///
/// # Errors
/// [`Error::Malformed`] when there are more, [`Error::Refused`] outside the range, [`Error::BadHandle`],
/// [`Error::WrongKind`].
pub fn port_write_bytes(ports: Handle, port: u16, bytes: &[u8]) -> Result<(), Error> {
    let arguments = Arguments {
        rdi: ports.0,
        rsi: u64::from(port),
        words: [bytes.as_ptr().expose_provenance() as u64, bytes.len() as u64, 0, 0],
        ..Arguments::default()
    };
    // SAFETY: the kernel reads the bytes of a slice that is alive.
    unsafe { raw(Syscall::PortWriteBytes as u64, arguments) }.check().map(drop)
}

/// Reads the PCI configuration space of a device at an aligned offset.
///
/// # Errors
/// [`Error::Malformed`] for an offset past its end or not aligned, [`Error::BadHandle`],
/// [`Error::WrongKind`].
pub fn config_read(device: Handle, offset: u16, width: Width) -> Result<u32, Error> {
    read_device(Syscall::ConfigRead, device, offset, width)
}

/// Writes the PCI configuration space of a device at an aligned offset.
///
/// # Errors
/// [`Error::Refused`] for a register that belongs to the kernel, [`Error::Malformed`] for an offset past its
/// end or not aligned, [`Error::BadHandle`], [`Error::WrongKind`].
pub fn config_write(device: Handle, offset: u16, width: Width, value: u32) -> Result<(), Error> {
    write_device(Syscall::ConfigWrite, device, offset, width, value)
}

fn read_device(call: Syscall, handle: Handle, place: u16, width: Width) -> Result<u32, Error> {
    let words = [width as u64, 0, 0, 0];
    let results =
        plain(call, Arguments { rdi: handle.0, rsi: u64::from(place), words, ..Arguments::default() })?;
    u32::try_from(results.rdi).map_err(|_| Error::Malformed)
}

fn write_device(call: Syscall, handle: Handle, place: u16, width: Width, value: u32) -> Result<(), Error> {
    let words = [width as u64, u64::from(value), 0, 0];
    plain(call, Arguments { rdi: handle.0, rsi: u64::from(place), words, ..Arguments::default() }).map(drop)
}

/// Reads one of the kernel's counters.
///
/// # Errors
/// [`Error::NoSuchItem`] past the last index, [`Error::Refused`] without the right to inspect.
pub fn inspect(item: Inspect, index: u64) -> Result<[u64; MESSAGE_WORDS], Error> {
    let results =
        plain(Syscall::Inspect, Arguments { rdi: item as u64, rsi: index, ..Arguments::default() })?;
    Ok(results.words)
}

/// Copies the oldest untold fault report into the message page.
///
/// # Errors
/// [`Error::Again`] when there is none, [`Error::Refused`] without the right to supervise.
pub fn next_fault() -> Result<(), Error> {
    plain(Syscall::NextFault, Arguments::default()).map(drop)
}

/// Does an operation to a service.
///
/// # Errors
/// [`Error::Again`] when a reload has more to do, [`Error::NoSuchItem`], [`Error::Refused`] without the right
/// to supervise or in a state that the operation does not fit.
pub fn control(service: u64, operation: ServiceOperation) -> Result<(), Error> {
    plain(Syscall::Control, Arguments { rdi: service, rsi: operation as u64, ..Arguments::default() })
        .map(drop)
}

/// What [`log_read`] copied into the message page.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogSlice {
    /// Bytes copied.
    pub bytes: usize,
    /// Where to go on.
    pub cursor: u64,
    /// Records that were overwritten before they could be read.
    pub lost: u64,
}

/// Copies log records of a core into the message page, from a cursor on.
///
/// # Errors
/// [`Error::NoSuchItem`] for a core that is not there, [`Error::Refused`] without the right to read logs.
pub fn log_read(core: u64, cursor: u64) -> Result<LogSlice, Error> {
    let results = plain(Syscall::LogRead, Arguments { rdi: core, rsi: cursor, ..Arguments::default() })?;
    let [lost, ..] = results.words;
    let bytes = usize::try_from(results.rdi).map_err(|_| Error::Malformed)?;
    Ok(LogSlice { bytes, cursor: results.rsi, lost })
}

/// The current handle of the capability of an older handle.
///
/// # Errors
/// [`Error::BadHandle`].
pub fn refresh(old: Handle) -> Result<Handle, Error> {
    let results = plain(Syscall::Refresh, Arguments { rdi: old.0, ..Arguments::default() })?;
    Ok(Handle(results.rdi))
}

/// Says what is at `count` pages of guest memory from page `first` on: the pool's frames from `frame` on, with `access`
/// ([`ipc::abi::GUEST_ACCESS_READ`], say).
///
/// # Errors
/// [`Error::Malformed`], [`Error::NoSuchItem`] for pages or frames that are not there, [`Error::Refused`] to all but the
/// memory's owner.
pub fn guest_map(guest: Handle, first: u64, frame: u64, count: u64, access: u64) -> Result<(), Error> {
    let words = [frame, count, access, 0];
    plain(Syscall::GuestMap, Arguments { rdi: guest.0, rsi: first, words, ..Arguments::default() }).map(drop)
}

fn vcpu(call: Syscall, guest: Handle, vcpu: u32, word: u64) -> Result<(), Error> {
    let words = [word, 0, 0, 0];
    plain(call, Arguments { rdi: guest.0, rsi: u64::from(vcpu), words, ..Arguments::default() }).map(drop)
}

/// Starts a vCPU.
///
/// # Errors
/// [`Error::Again`] when it runs, [`Error::NoSuchItem`], [`Error::Refused`] to all but the platform; so are the next.
pub fn vcpu_start(guest: Handle, number: u32) -> Result<(), Error> {
    vcpu(Syscall::VcpuStart, guest, number, 0)
}

/// Stops a vCPU wherever it is.
///
/// # Errors
/// As [`vcpu_start`].
pub fn vcpu_stop(guest: Handle, number: u32) -> Result<(), Error> {
    vcpu(Syscall::VcpuStop, guest, number, 0)
}

/// Makes a vCPU come soon.
///
/// # Errors
/// As [`vcpu_start`].
pub fn vcpu_kick(guest: Handle, number: u32) -> Result<(), Error> {
    vcpu(Syscall::VcpuKick, guest, number, 0)
}

/// Has the whole state of a vCPU that is at an exit written to its state page.
///
/// # Errors
/// [`Error::Again`] when it is not at an exit; else as [`vcpu_start`].
pub fn vcpu_fetch(guest: Handle, number: u32) -> Result<(), Error> {
    vcpu(Syscall::VcpuFetch, guest, number, 0)
}

/// Makes a core the home of a vCPU.
///
/// # Errors
/// [`Error::NoSuchItem`], [`Error::Refused`] to all but the placement service.
pub fn vcpu_place(guest: Handle, number: u32, core: u32) -> Result<(), Error> {
    vcpu(Syscall::VcpuPlace, guest, number, u64::from(core))
}

/// How far a vCPU has come.
///
/// # Errors
/// [`Error::NoSuchItem`], [`Error::Refused`] to all but the owner of its memory.
pub fn guest_progress(guest: Handle, number: u32) -> Result<Progress, Error> {
    let arguments = Arguments { rdi: guest.0, rsi: u64::from(number), ..Arguments::default() };
    Ok(Progress::from_bits(plain(Syscall::GuestProgress, arguments)?.rdi))
}

/// How to leave the node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum StopKind {
    /// Power off.
    PowerOff = 0,
    /// Reset.
    Reset = 1,
}

/// Leaves the node at once.
///
/// # Errors
/// [`Error::Refused`] without the right to supervise.
pub fn stop_node(kind: StopKind) -> Result<(), Error> {
    plain(Syscall::StopNode, Arguments { rdi: kind as u64, ..Arguments::default() }).map(drop)
}
