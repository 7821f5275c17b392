//! A vCPU and a platform for tests, which check each access as it comes.

mod addressing;
mod arithmetic;
mod control;
mod fetching;
mod forms;
mod hostile;
mod strings;

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use ipc::abi::UserRegisters;
use ipc::vcpu::{Event, Mode, Segment};

use super::{
    Access, CodeMemory, Encoding, Fault, Platform, Progress, SegmentRegister, Stop, TranslationError, Vcpu,
    emulate_memory,
};
use crate::memory::{GuestPhysAddr, GuestVirtAddr, NotMemory};

/// Where the code is.
const CODE: u64 = 0x1000;
/// Where the device is.
const DEVICE: u64 = 0xfec0_0000;
const PAGE: u64 = 4096;
/// The bits of a page fault's error code.
const FAULT_WRITE: u32 = 2;
const FAULT_EXECUTE: u32 = 16;

/// What the platform was asked to do.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Asked {
    Read(u64, Vec<u8>),
    Write(u64, Vec<u8>),
    In(u16, Vec<u8>),
    Out(u16, Vec<u8>),
}

/// A platform with memory everywhere, made of what was written and zeros.
#[derive(Clone, Debug, Default)]
struct Machine {
    bytes: BTreeMap<u64, u8>,
    segments: [Segment; 6],
    /// Pages that are elsewhere than at their own number.
    moved: BTreeMap<u64, u64>,
    /// Pages that are not there.
    absent: BTreeSet<u64>,
    /// Pages that cannot be written.
    read_only: BTreeSet<u64>,
    /// Pages whose tables are nowhere.
    lost: BTreeSet<u64>,
    /// Pages whose tables never come to rest.
    contended: BTreeSet<u64>,
    /// What ports give, one byte after another.
    input: u8,
    asked: Vec<Asked>,
    /// The physical pages that translations have granted so far.
    granted: BTreeSet<(u64, bool)>,
    segments_asked: Vec<SegmentRegister>,
}

impl Machine {
    /// With flat segments.
    fn flat() -> Self {
        let data = Segment { selector: 0x18, attributes: 0xc93, limit: u32::MAX, base: 0 };
        let code = Segment { selector: 0x10, attributes: 0xc9b, ..data };
        Self { segments: [data, code, data, data, data, data], ..Self::default() }
    }

    /// With segments of real mode.
    fn real() -> Self {
        let segment = Segment { selector: 0, attributes: 0x93, limit: 0xffff, base: 0 };
        Self { segments: [segment; 6], ..Self::default() }
    }

    fn segment_mut(&mut self, register: SegmentRegister) -> &mut Segment {
        &mut self.segments[register as usize]
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        for (offset, &byte) in (0..).zip(bytes) {
            self.bytes.insert(at.wrapping_add(offset), byte);
        }
    }

    fn get(&self, at: u64, bytes: u64) -> Vec<u8> {
        (0..bytes).map(|offset| self.bytes.get(&at.wrapping_add(offset)).copied().unwrap_or(0)).collect()
    }

    fn get_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.get(at, 8).try_into().unwrap())
    }

    fn check(&self, at: GuestPhysAddr, bytes: usize, write: bool) {
        assert!((1..=16).contains(&bytes));
        assert_eq!(at.0 / PAGE, at.0.wrapping_add(bytes as u64 - 1) / PAGE, "an access crosses a page");
        let page = at.0 / PAGE;
        let granted = self.granted.contains(&(page, true)) || !write && self.granted.contains(&(page, false));
        assert!(granted, "an access to a page without translation: {at:x?}");
    }
}

impl CodeMemory for Machine {
    fn translate(&mut self, at: GuestVirtAddr, access: Access) -> Result<GuestPhysAddr, TranslationError> {
        let page = at.0 / PAGE;
        if self.contended.contains(&page) {
            return Err(TranslationError::Contended);
        }
        if self.lost.contains(&page) {
            return Err(TranslationError::NotMemory(NotMemory(GuestPhysAddr(1 << 40))));
        }
        let code = match access {
            Access::Read => 0,
            Access::Write => FAULT_WRITE,
            Access::Execute => FAULT_EXECUTE,
        };
        if self.absent.contains(&page) {
            return Err(TranslationError::PageFault(code));
        }
        if access == Access::Write && self.read_only.contains(&page) {
            return Err(TranslationError::PageFault(code | 1));
        }
        let page = self.moved.get(&page).copied().unwrap_or(page);
        if access != Access::Execute {
            self.granted.insert((page, access == Access::Write));
        }
        Ok(GuestPhysAddr(page * PAGE + at.0 % PAGE))
    }

    fn fetch(&mut self, at: GuestPhysAddr, into: &mut [u8]) -> Result<(), NotMemory> {
        assert!((1..=15).contains(&into.len()));
        assert_eq!(at.0 / PAGE, at.0.wrapping_add(into.len() as u64 - 1) / PAGE);
        if (DEVICE..DEVICE + 2 * PAGE).contains(&at.0) {
            return Err(NotMemory(at));
        }
        into.copy_from_slice(&self.get(at.0, into.len() as u64));
        Ok(())
    }
}

impl Platform for Machine {
    fn segment(&mut self, register: SegmentRegister) -> Segment {
        self.segments_asked.push(register);
        self.segments[register as usize]
    }

    fn read(&mut self, at: GuestPhysAddr, into: &mut [u8]) {
        self.check(at, into.len(), false);
        into.copy_from_slice(&self.get(at.0, into.len() as u64));
        self.asked.push(Asked::Read(at.0, into.to_vec()));
    }

    fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]) {
        self.check(at, bytes.len(), true);
        self.put(at.0, bytes);
        self.asked.push(Asked::Write(at.0, bytes.to_vec()));
    }

    fn port_in(&mut self, port: u16, into: &mut [u8]) {
        for byte in &mut *into {
            self.input = self.input.wrapping_add(1);
            *byte = self.input;
        }
        self.asked.push(Asked::In(port, into.to_vec()));
    }

    fn port_out(&mut self, port: u16, bytes: &[u8]) {
        self.asked.push(Asked::Out(port, bytes.to_vec()));
    }
}

const LONG: Mode =
    Mode { cr0: 0x8000_0001, cr3: 0, cr4: 0x20, efer: 0x500, cs_base: 0, cs_attributes: 0xa9b, cpl: 0 };
const PROTECTED: Mode = Mode { cr0: 0x8000_0001, efer: 0, cs_attributes: 0xc9b, ..LONG };
const PROTECTED_16: Mode = Mode { cs_attributes: 0x9b, ..PROTECTED };
const REAL: Mode = Mode { cr0: 0x10, cr4: 0, cs_attributes: 0x9b, ..PROTECTED };

/// A vCPU and its platform.
#[derive(Clone, Debug)]
struct Bench {
    registers: UserRegisters,
    mode: Mode,
    prefetched: Vec<u8>,
    machine: Machine,
}

impl Bench {
    fn new(mode: Mode, code: &[u8]) -> Self {
        let machine = if mode.cr0 & 1 == 0 { Machine::real() } else { Machine::flat() };
        let registers = UserRegisters { rip: CODE, rflags: 2, ..UserRegisters::ZERO };
        let mut bench = Self { registers, mode, prefetched: Vec::new(), machine };
        bench.machine.put(CODE, code);
        bench
    }

    fn with<T>(&mut self, action: impl FnOnce(&mut Vcpu<'_>, &mut Machine) -> T) -> T {
        let mut vcpu =
            Vcpu { registers: &mut self.registers, mode: &self.mode, prefetched: &self.prefetched };
        action(&mut vcpu, &mut self.machine)
    }

    fn run(&mut self) -> Result<Progress, Stop> {
        self.with(emulate_memory)
    }
}

fn page_fault(at: u64, code: u32) -> Stop {
    Stop::Fault(Fault { event: Event::exception(14, Some(code)), address: Some(GuestVirtAddr(at)) })
}

fn fault(vector: u8, code: Option<u32>) -> Stop {
    Stop::Fault(Fault { event: Event::exception(vector, code), address: None })
}
