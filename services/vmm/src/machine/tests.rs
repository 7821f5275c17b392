//! A guest on a node of the tests: the node keeps what the hardware would, and a test makes the exits.

use core::num::NonZeroU64;
use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

use ipc::abi::{NEVER, PAGE_SIZE};
use ipc::guest::{AtEnd, GuestConfig, Share};
use ipc::vcpu::{BLOCKED_BY_SHADOW, EntryControl, Mode, SystemState};
use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::cluster::message::Message;
use crate::memory::{NotMemory, testing::Ram};

mod ends;
mod hostile;
mod instructions;
mod interrupts;
mod nodes;
mod start;

const MIB: usize = 1 << 20;
const GUEST_BYTES: usize = 20 * MIB;
/// Where a test puts a vCPU's instructions: a page for each.
const CODE: u64 = 0x20_0000;
/// The node's time when the guest is made.
const START: u64 = 1_000_000;
const TSC_HZ: u64 = 2_000_000_000;
/// Pages of the walk cache for each vCPU.
const PRIVATE_PAGES: usize = 256;

const RFLAGS_TF: u64 = 1 << 8;
const RFLAGS_IF: u64 = 1 << 9;

const ICR: u32 = 0x830;
const SPURIOUS: u32 = 0x80f;
const EOI: u32 = 0x80b;
/// Interrupt commands.
const FIXED: u64 = 0x4000;
const NMI: u64 = 0x4400;
const INIT: u64 = 0x4500;
const START_UP: u64 = 0x4600;

/// The node.
struct Node {
    ram: Ram,
    private: Ram,
    pages: Vec<VcpuPage>,
    /// The system state as the hardware has it.
    hardware: Vec<SystemState>,
    /// What each vCPU went on with last.
    entered: Vec<EntryControl>,
    now: u64,
    kicks: Vec<usize>,
    unparked: Vec<usize>,
    output: Vec<u8>,
    console_is_full: bool,
    /// Its number.
    number: u16,
    /// What it said to the platforms of other nodes.
    sent: Vec<(u16, Say)>,
    /// The first node, when that is another.
    first: Option<Rc<RefCell<Guest>>>,
}

impl Node {
    fn new(vcpus: usize, private_bytes: usize) -> Self {
        Self {
            ram: Ram::new(GUEST_BYTES),
            private: Ram::new(private_bytes),
            pages: vec![VcpuPage::new_zeroed(); vcpus],
            hardware: vec![SystemState::default(); vcpus],
            entered: vec![EntryControl::default(); vcpus],
            now: START,
            kicks: Vec::new(),
            unparked: Vec::new(),
            output: Vec::new(),
            console_is_full: false,
            number: 1,
            sent: Vec::new(),
            first: None,
        }
    }

    /// The kernel takes what the platform left in the page, and the vCPU runs.
    fn enter(&mut self, vcpu: usize) {
        let (page, hardware) = (&mut self.pages[vcpu], &mut self.hardware[vcpu]);
        if page.control.dirty & DIRTY_SYSTEM != 0 {
            *hardware = page.system;
        }
        self.entered[vcpu] = page.control;
        self.leave(vcpu);
    }

    /// The guest has run, and the page tells what the next exit begins with.
    fn leave(&mut self, vcpu: usize) {
        let (page, hardware) = (&mut self.pages[vcpu], &self.hardware[vcpu]);
        page.mode = Mode {
            cr0: hardware.cr0,
            cr3: hardware.cr3,
            cr4: hardware.cr4,
            efer: hardware.efer,
            cs_base: hardware.cs.base,
            cs_attributes: hardware.cs.attributes.into(),
            cpl: u32::try_from(hardware.cpl).unwrap(),
        };
        let EntryControl { intercepts, blocked, .. } = page.control;
        page.control = EntryControl { deadline: NEVER, intercepts, blocked, ..EntryControl::default() };
        // Nobody may rely on what was not fetched.
        page.system = SystemState { cr0: !0, cr3: !0, cr4: !0, efer: !0, xcr0: !0, ..SystemState::default() };
    }

    fn place(&self, at: GuestPhysAddr) -> (&Ram, GuestPhysAddr) {
        match at.0.checked_sub(PRIVATE_START) {
            Some(offset) => (&self.private, GuestPhysAddr(offset)),
            None => (&self.ram, at),
        }
    }

    fn place_mut(&mut self, at: GuestPhysAddr) -> (&mut Ram, GuestPhysAddr) {
        match at.0.checked_sub(PRIVATE_START) {
            Some(offset) => (&mut self.private, GuestPhysAddr(offset)),
            None => (&mut self.ram, at),
        }
    }
}

impl GuestMemory for Node {
    fn read(&self, at: GuestPhysAddr, into: &mut [u8]) -> Result<(), NotMemory> {
        let (ram, at) = self.place(at);
        ram.read(at, into)
    }

    fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]) -> Result<(), NotMemory> {
        let (ram, at) = self.place_mut(at);
        ram.write(at, bytes)
    }

    fn compare_exchange_u64(
        &mut self,
        at: GuestPhysAddr,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, NotMemory> {
        let (ram, at) = self.place_mut(at);
        ram.compare_exchange_u64(at, old, new)
    }

    fn compare_exchange_u32(
        &mut self,
        at: GuestPhysAddr,
        old: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, NotMemory> {
        let (ram, at) = self.place_mut(at);
        ram.compare_exchange_u32(at, old, new)
    }
}

impl Host for Node {
    fn now(&self) -> u64 {
        self.now
    }

    fn page(&mut self, vcpu: usize) -> &mut VcpuPage {
        &mut self.pages[vcpu]
    }

    fn fetch(&mut self, vcpu: usize) {
        self.pages[vcpu].system = self.hardware[vcpu];
    }

    fn kick(&mut self, vcpu: usize) {
        self.kicks.push(vcpu);
    }

    fn unpark(&mut self, vcpu: usize) {
        self.unparked.push(vcpu);
        self.enter(vcpu);
    }

    fn console_has_room(&mut self) -> bool {
        !self.console_is_full
    }

    fn console(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= 16);
        self.output.extend_from_slice(bytes);
    }

    fn tend(&mut self) {}

    fn send(&mut self, node: u16, say: Say) {
        self.sent.push((node, say));
    }

    fn ask(&mut self, access: Access) -> u32 {
        let Some(first) = &self.first else { return u32::MAX };
        let mut first = first.borrow_mut();
        first.tell(self.number, Say::Access { id: 7, access });
        match first.node.sent.pop() {
            Some((to, Say::Answer { id: 7, value })) if to == self.number => value,
            other => panic!("{other:?} is no answer"),
        }
    }
}

/// Whether the walk cache is on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Walks {
    /// No: the processor walks the guest's tables.
    Nested,
    /// Yes.
    Cached,
}

/// A guest and its node.
struct Guest {
    machine: Machine,
    node: Node,
}

impl Guest {
    /// A guest whose vCPUs have not started.
    fn made(vcpus: u8, walks: Walks) -> Self {
        let pages = (GUEST_BYTES / PAGE_SIZE) as u64;
        Self::part(&[Share { node: 1, vcpus, pages }], 0, walks)
    }

    /// A node's part of a guest that has these shares.
    fn part(shares: &[Share], place: usize, walks: Walks) -> Self {
        let Share { node: number, vcpus, .. } = shares[place];
        let config = GuestConfig {
            shares: shares.iter().copied().collect(),
            patience_s: 1,
            command_line: "quiet".try_into().unwrap(),
            walk_cache: walks == Walks::Cached,
            at_end: AtEnd::Stay,
        };
        let private_pages =
            if walks == Walks::Cached || shares.len() > 1 { PRIVATE_PAGES * usize::from(vcpus) } else { 0 };
        let mut node = Node { number, ..Node::new(vcpus.into(), private_pages * PAGE_SIZE) };
        let sources = Sources {
            config: &config,
            kernel: &bzimage(),
            initrd: None,
            cpuid: node_cpuid,
            tsc_hz: NonZeroU64::new(TSC_HZ).unwrap(),
            unix_seconds: 1_700_000_000,
            private_pages: u32::try_from(private_pages).unwrap(),
            place,
            tsc_offset: None,
        };
        let machine = Machine::new(&mut node, &sources).unwrap();
        Self { machine, node }
    }

    /// One whose first vCPU runs and whose others wait for a start-up interrupt.
    fn started(vcpus: u8, walks: Walks) -> Self {
        let mut guest = Self::made(vcpus, walks);
        for vcpu in 0..vcpus.into() {
            guest.exit(vcpu, ExitReason::Started, [0; 3]);
        }
        guest
    }

    /// One whose vCPUs all run, those after the first in real mode, with their APICs enabled.
    fn running(vcpus: u8, walks: Walks) -> Self {
        let mut guest = Self::started(vcpus, walks);
        for vcpu in 1..vcpus.into() {
            guest.send(0, vcpu, START_UP | 0x10);
        }
        for vcpu in 0..vcpus.into() {
            guest.write_msr(vcpu, SPURIOUS, 0x1ff);
        }
        guest.node.kicks.clear();
        guest.node.unparked.clear();
        guest
    }

    /// An exit; the vCPU goes on if its exit is answered.
    fn exit(&mut self, vcpu: usize, reason: ExitReason, words: [u64; 3]) -> Disposition {
        let told = self.node.pages[vcpu].control;
        let disposition = self.machine.exit(&mut self.node, vcpu, reason, words);
        match disposition {
            Disposition::Resume => self.node.enter(vcpu),
            Disposition::ResumeAsBefore => {
                let page = &mut self.node.pages[vcpu];
                let rest = |control: EntryControl| EntryControl { blocked: 0, ..control };
                assert_eq!(rest(page.control).as_bytes(), rest(told).as_bytes(), "nothing to take over");
                page.control.blocked = told.blocked & !BLOCKED_BY_SHADOW;
                self.node.entered[vcpu] =
                    EntryControl { deadline: self.node.entered[vcpu].deadline, ..page.control };
                self.node.leave(vcpu);
            }
            Disposition::Park | Disposition::Ended => {}
        }
        disposition
    }

    /// Another node's platform says something, through the wire; whether it is something for this one.
    fn tell(&mut self, from: u16, say: Say) -> bool {
        let message = Message { run: 1, say };
        let Message { say, .. } = Message::decode(&message.encode()).unwrap();
        self.machine.receive(&mut self.node, from, &say)
    }

    /// Puts instructions where the vCPU executes next.
    fn load(&mut self, vcpu: usize, code: &[u8]) -> u64 {
        let page = &mut self.node.pages[vcpu];
        let at = CODE + (vcpu * PAGE_SIZE) as u64;
        page.registers.rip = at - page.mode.cs_base;
        let rip = page.registers.rip;
        self.node.ram.write(GuestPhysAddr(at), code).unwrap();
        rip
    }

    /// The vCPU executes an instruction that exits; how far RIP went.
    fn execute(&mut self, vcpu: usize, reason: ExitReason, code: &[u8]) -> u64 {
        let rip = self.load(vcpu, code);
        let disposition = self.exit(vcpu, reason, [0; 3]);
        assert!(matches!(disposition, Disposition::Resume | Disposition::ResumeAsBefore));
        self.node.pages[vcpu].registers.rip - rip
    }

    fn write_msr(&mut self, vcpu: usize, register: u32, value: u64) {
        let registers = &mut self.node.pages[vcpu].registers;
        (registers.rax, registers.rdx, registers.rcx) = (value & 0xffff_ffff, value >> 32, register.into());
        assert_eq!(self.execute(vcpu, ExitReason::WriteMsr, &[0x0f, 0x30]), 2, "{register:#x}");
    }

    /// `MOV CR0, RAX` by the first vCPU, which turns the walk cache on where there is one.
    fn set_write_protection(&mut self) {
        self.node.pages[0].registers.rax = self.node.pages[0].mode.cr0 | 1 << 16;
        assert_eq!(self.execute(0, ExitReason::WriteControl, &[0x0f, 0x22, 0xc0]), 3);
    }

    /// Sends an interrupt command to a vCPU.
    fn send(&mut self, from: usize, to: usize, command: u64) {
        self.write_msr(from, ICR, (to as u64) << 32 | command);
    }

    /// `OUT`.
    fn out(&mut self, vcpu: usize, port: u16, bytes: u8, value: u64) -> Disposition {
        let registers = &mut self.node.pages[vcpu].registers;
        registers.rax = value;
        let next = registers.rip + 1;
        self.exit(vcpu, ExitReason::Port, [PortAccess::new(port, bytes, 0).0, next, 0])
    }

    /// `IN`, into RAX.
    fn input(&mut self, vcpu: usize, port: u16, bytes: u8) -> u64 {
        let next = self.node.pages[vcpu].registers.rip + 1;
        self.exit(vcpu, ExitReason::Port, [PortAccess::new(port, bytes, PortAccess::IN).0, next, 0]);
        self.node.pages[vcpu].registers.rax
    }

    /// What the vCPU went on with after a kick.
    fn kicked(&mut self, vcpu: usize) -> EntryControl {
        assert_eq!(self.exit(vcpu, ExitReason::Kicked, [0; 3]), Disposition::Resume);
        self.node.entered[vcpu]
    }

    fn set_rflags(&mut self, vcpu: usize, rflags: u64) {
        self.node.pages[vcpu].registers.rflags = 2 | rflags;
    }

    fn end(&self) -> End {
        self.machine.end().unwrap().end
    }
}

/// A bzImage of boot protocol 2.15: four setup sectors and a page.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0x90; 5 * 512 + 0x1000];
    let mut set = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x1f1, &[4]);
    set(0x1f4, &0x100u32.to_le_bytes());
    set(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    set(0x202, b"HdrS\x0f\x02");
    set(0x211, &[1]);
    set(0x22c, &0x7fff_ffffu32.to_le_bytes());
    set(0x230, &0x20_0000u32.to_le_bytes());
    set(0x234, &[1, 0, 0x3f, 0]);
    set(0x238, &2047u32.to_le_bytes());
    set(0x250, &[0; 8]);
    set(0x258, &(16 * MIB as u64).to_le_bytes());
    set(0x260, &0x20_0000u32.to_le_bytes());
    file
}

/// A processor of AMD with XSAVE, x2APIC, TSC deadline and PCID.
fn node_cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    match (leaf, subleaf) {
        (0, _) => [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        (0x8000_0000, _) => [0x8000_0008, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        (1, _) => [0x0080_0f12, 0x800, 0xf6fa_320b, 0x078b_fbfd],
        (7, 0) => [0, 0x0098_01a9, 0, 0],
        (0xd, 0) => [7, 0x240, 0x340, 0],
        (0xd, 1) => [1, 0, 0, 0],
        (0xd, 2) => [0x100, 0x240, 0, 0],
        (0x8000_0001, _) => [0x0080_0f12, 0, 0x75, 0x2dd3_fbfd],
        (0x8000_0008, _) => [0x3030, 0, 0, 0],
        _ => [0; 4],
    }
}
