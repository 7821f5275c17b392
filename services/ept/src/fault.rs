//! A fault in guest memory as the kernel tells of it, and the answer.

use ipc::abi::Label;
use ipc::message::Message;
use ipc::vcpu::{ACCESS_WRITE, FAULT_OF_WINDOW, GUEST_FAULT};

use crate::space::Access;

/// Where a fault comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// The vCPU of this number.
    Vcpu(u64),
    /// The platform's window.
    Window,
}

/// A fault in guest memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// The guest-physical address.
    pub address: u64,
    /// What was tried.
    pub access: Access,
    /// By whom.
    pub source: Source,
}

impl Fault {
    /// The fault that a message tells of; `None` when it is about something else ([`GUEST_FAULT`]).
    #[inline]
    #[must_use]
    pub const fn of(message: &Message) -> Option<Self> {
        if message.label.0 != Label::new(GUEST_FAULT, 0).0 {
            return None;
        }
        let [address, access, who, _] = message.words;
        Some(Self {
            address,
            access: if access & ACCESS_WRITE == 0 { Access::Read } else { Access::ReadWrite },
            source: if who == FAULT_OF_WINDOW { Source::Window } else { Source::Vcpu(who) },
        })
    }
}

/// What the kernel says besides of who faults.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Trace {
    /// Of the vCPU's registers; 0 of the window.
    pub fingerprint: u32,
    /// The vCPU's RIP.
    pub instruction: u64,
}

impl Trace {
    /// What a fault's message says besides ([`GUEST_FAULT`]).
    #[must_use]
    pub const fn of(message: &Message) -> Self {
        let [_, access, _, instruction] = message.words;
        // The upper half.
        Self { fingerprint: (access >> 32) as u32, instruction }
    }
}

/// Why a fault is not answered with a page. The number is the method of the reply, which ends the access as
/// [`ipc::vcpu::ExitReason::MemoryLost`]; the access can be tried again later, but for `Outside`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u16)]
pub enum Refusal {
    /// There is no guest memory at the address.
    Outside = 1,
    /// All of the node's frames hold pages.
    OutOfMemory = 2,
    /// The kernel did not map what it was asked to.
    NotMapped = 3,
    /// The guest's memory is being taken away.
    Stopping = 4,
}

/// The reply to a fault's message.
#[inline]
#[must_use]
pub const fn reply(answer: Result<(), Refusal>) -> Message {
    let method = match answer {
        Ok(()) => 0,
        Err(refusal) => refusal as u16,
    };
    Message { label: Label::new(method, 0), words: [0; 4] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::vcpu::ACCESS_EXECUTE;

    fn message(words: [u64; 4]) -> Message {
        Message { label: Label::new(GUEST_FAULT, 0), words }
    }

    #[test]
    fn a_fault_is_what_the_kernel_says() {
        let fault = Fault::of(&message([0x1234, ACCESS_WRITE | ACCESS_EXECUTE, 3, 9])).unwrap();
        assert_eq!(fault, Fault { address: 0x1234, access: Access::ReadWrite, source: Source::Vcpu(3) });
        let fault = Fault::of(&message([u64::MAX, ACCESS_EXECUTE, FAULT_OF_WINDOW, 0])).unwrap();
        assert_eq!(fault, Fault { address: u64::MAX, access: Access::Read, source: Source::Window });
        // Bits of the access that nobody knows are no writes.
        assert_eq!(Fault::of(&message([0, !ACCESS_WRITE, 0, 0])).unwrap().access, Access::Read);
    }

    #[test]
    fn registers_are_told_beside_the_access() {
        let message = message([0x1000, 0xabcd_1234_0000_0000 | ACCESS_WRITE, 3, 0xffff_8000]);
        assert_eq!(Fault::of(&message).unwrap().access, Access::ReadWrite);
        assert_eq!(Trace::of(&message), Trace { fingerprint: 0xabcd_1234, instruction: 0xffff_8000 });
    }

    #[test]
    fn other_messages_are_no_faults() {
        for label in
            [Label::new(GUEST_FAULT, 1), Label::new(0x301, 0), Label(1 << 32 | 0xff00), Label(u64::MAX)]
        {
            assert_eq!(Fault::of(&Message { label, words: [0; 4] }), None);
        }
    }

    #[test]
    fn only_success_lets_the_access_be_tried_again() {
        assert_eq!(reply(Ok(())), Message::default());
        for refusal in [Refusal::Outside, Refusal::OutOfMemory, Refusal::NotMapped, Refusal::Stopping] {
            assert_ne!(reply(Err(refusal)).label.method(), 0);
        }
    }
}
