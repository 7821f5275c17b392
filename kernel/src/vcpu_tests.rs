//! Tests of vCPUs: what their exits become, kicks, halts, stops, moves, and faults in guest memory.

extern crate std;

use ipc::abi::{
    Error, FaultCause, Inspect, Label, NEVER, Outcome, RECEIVE_MESSAGES, ServiceOperation, ServiceState,
    Syscall, Token, VcpuActivity,
};
use ipc::vcpu::{
    ACCESS_DELIVERY, ACCESS_EXECUTE, ACCESS_WRITE, BLOCKED_BY_NMI, BLOCKED_BY_SHADOW, DIRTY_SYSTEM,
    EntryControl, Event, ExitReason, FAULT_OF_WINDOW, FLUSH_TRANSLATIONS, GUEST_FAULT, HALT, INTERCEPT_WALKS,
    PortAccess, RESUME_AS_BEFORE, WINDOW_BASE, WINDOW_NMI, exit_label,
};

use crate::address::PhysAddr;
use crate::ids::{CoreId, ServiceId, ThreadId, VcpuId};
use crate::svm::vmcb::code;
use crate::testing::guest::{MEMORY, Node, PAGES, PLACEMENT, PLATFORM, first};
use crate::testing::{DATA, SUPERVISOR, handle};
use crate::thread::{Queued, ThreadState};
use crate::vcpu::Pending;

mod exits;
mod faults;
mod moves;
mod random;
mod stops;

const CORE: CoreId = CoreId(0);
const OTHER: CoreId = CoreId(1);
const V0: VcpuId = VcpuId(0);
const V1: VcpuId = VcpuId(1);
/// An address that no range of the guest's memory has.
const HOLE: u64 = PAGES * 4096 + 0x30;

impl Node {
    /// The message that the service's thread that is current on a core has.
    fn message(&self, core: CoreId) -> (Label, [u64; 4]) {
        let r = self.registers(self.current(core).unwrap());
        assert_eq!(r.rax, Outcome::Message as u64);
        (Label(r.rsi), [r.rdx, r.r8, r.r9, r.r10])
    }

    #[track_caller]
    fn expect_exit(&self, core: CoreId, vcpu: VcpuId, reason: ExitReason, words: [u64; 3]) {
        assert_eq!(self.serves(core), Some(vcpu));
        let [first, second, third] = words;
        let words = [u64::from(vcpu.0), first, second, third];
        assert_eq!(self.message(core), (exit_label(reason), words));
        assert_eq!(self.registers(self.current(core).unwrap()).rdi, self.thread(vcpu).token.0);
    }

    #[track_caller]
    fn expect_fault(&self, core: CoreId, address: u64, access: u64, who: u64) {
        let id = self.current(core).unwrap();
        assert_eq!(self.state.thread(id).service, MEMORY);
        let (label, words) = self.message(core);
        assert_eq!((label, &words[..3]), (Label::new(GUEST_FAULT, 0), &[address, access, who][..]));
    }

    /// Replies to the call whose time the current thread of a core has.
    fn answer(&mut self, core: CoreId, label: Label) {
        let token = self.registers(self.current(core).unwrap()).rdi;
        self.syscall(core, Syscall::Receive, |r| (r.rdi, r.rsi) = (token, label.0));
    }

    /// The platform lets a vCPU halt.
    fn halt(&mut self, core: CoreId, vcpu: VcpuId, deadline: u64) {
        self.exit(core, code::HLT, [0; 2]);
        self.write(vcpu, |page| (page.control.activity, page.control.deadline) = (HALT, deadline));
        self.reply(core, vcpu);
    }

    /// A second thread of the service whose first is current on one core, current on the other.
    fn second_thread(&mut self) -> ThreadId {
        assert_eq!(self.syscall(CORE, Syscall::SpawnThread, |r| (r.rdi, r.rdx) = (DATA, 1)), 0);
        let slot = self.registers(self.current(CORE).unwrap()).rdi;
        self.wake();
        let id = self.current(OTHER).unwrap();
        assert_eq!(u64::from(self.state.thread(id).slot), slot);
        id
    }

    /// Raises the bit that a service waits for besides messages; it runs then, if it is urgent enough.
    fn call_up(&mut self, core: CoreId, service: ServiceId) {
        self.interrupted(core, Event::NONE, |state, m, core| {
            state.raise(m, core, service, 1);
            state.reschedule(m, core);
        });
        self.wake();
    }

    fn memory_stops(&mut self, core: CoreId) {
        let stop = ServiceOperation::Stop;
        self.interrupted(core, Event::NONE, |state, m, core| {
            state.control(m, core, SUPERVISOR, MEMORY, stop).unwrap();
            state.reschedule(m, core);
        });
    }

    fn operate(&mut self, service: ServiceId, operation: ServiceOperation) {
        self.interrupted(CORE, Event::NONE, |state, m, core| {
            while state.control(m, core, SUPERVISOR, service, operation) == Err(Error::Again) {}
            state.reschedule(m, core);
        });
    }
}
