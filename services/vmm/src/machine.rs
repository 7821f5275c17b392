//! The guest as a whole: its processors and devices, and what each exit does.
//!
//! An exit is handled to its end on the exiting vCPU's time: the instruction is done, interrupts are routed, and
//! [`resume`](self) says how the vCPU goes on. A vCPU that waits for a start-up interrupt is *parked*: its exit is not
//! answered until that comes. A halted one is answered, and the kernel wakes it by its deadline or a kick.
//!
//! * `instructions`: what exits by an instruction do.
//! * `interrupts`: from a message to the vCPUs that it reaches; device lines.
//! * `nodes`: what the platforms of a guest that spans nodes ask of each other.
//! * `resume`: how a vCPU goes on.
//! * `view`: guest memory and devices as an emulated instruction sees them.
//! * `report`: how a guest ended.
//! * `sources`: what a guest is made from.

mod instructions;
mod interrupts;
mod nodes;
mod pace;
mod report;
mod resume;
mod sources;
#[cfg(test)]
mod tests;
mod view;
mod walks;

use alloc::boxed::Box;
use alloc::vec::Vec;

use ipc::guest::Share;
use ipc::vcpu::{DIRTY_SYSTEM, ExitReason, INTERCEPT_WALKS, PRIVATE_START, PortAccess, VcpuPage};

use crate::apic::{self, LocalApic, Role};
use crate::boot::ProcessorState;
use crate::clock::{Clock, Timebase};
use crate::cluster::first_vcpu;
use crate::cluster::message::{Access, Say};
use crate::interrupt::{DestinationWidth, Processors};
use crate::ioapic::IoApic;
use crate::memory::{GuestMemory, GuestPhysAddr};
use crate::topology::Topology;
use crate::walk::Processor;
use crate::walk_cache::WalkCache;
use crate::{cpuid, msr, ports};

pub use report::{Console, End, Report};
pub use sources::{Sources, StartError};

/// What the platform needs of the node.
pub trait Host: GuestMemory {
    /// The node's time, in TSC ticks.
    fn now(&self) -> u64;
    /// The state page of a vCPU that is at an exit.
    fn page(&mut self, vcpu: usize) -> &mut VcpuPage;
    /// Has the kernel write [`VcpuPage::system`] of a vCPU that is at an exit.
    fn fetch(&mut self, vcpu: usize);
    /// Makes a vCPU come soon.
    fn kick(&mut self, vcpu: usize);
    /// Answers the exit of a parked vCPU.
    fn unpark(&mut self, vcpu: usize);
    /// Whether the console takes bytes now: 16 at least.
    fn console_has_room(&mut self) -> bool;
    /// Writes bytes to the console, 16 at most.
    fn console(&mut self, bytes: &[u8]);
    /// Something that takes long goes on: what else is due meanwhile is done.
    fn tend(&mut self);
    /// Tells the platform of another node, of a guest that spans nodes.
    fn send(&mut self, node: u16, say: Say);
    /// Has the platform of the first node do an access, and waits for what it gives: all ones when that never comes.
    fn ask(&mut self, access: Access) -> u32;
}

/// What to do with an exit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disposition {
    /// Answer it.
    Resume,
    /// Answer it with [`ipc::vcpu::RESUME_AS_BEFORE`].
    ResumeAsBefore,
    /// Keep it: the vCPU waits until it is started.
    Park,
    /// The guest has ended: [`Machine::end`] says how.
    Ended,
}

/// Where a vCPU stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// It runs.
    Running,
    /// It executes nothing until an interrupt comes.
    Halted,
    /// After INIT: it waits for a start-up interrupt.
    WaitsForStartUp,
}

/// A processor of the guest.
struct Cpu {
    apic: LocalApic,
    msrs: msr::Msrs,
    /// What is added to the node's TSC to make its own.
    tsc_offset: u64,
    phase: Phase,
    /// Its exit is not answered.
    parked: bool,
    /// An INIT has come and was not acted upon.
    init_pending: bool,
    /// The page of a start-up interrupt that came after it.
    start_up: Option<u8>,
    nmi_pending: bool,
    /// How soon its timer interrupts it again, when the guest spans nodes.
    pace: Option<pace::Pace>,
    /// The walk cache, when it is on.
    walks: Option<WalkCache>,
    /// Where instructions that exit lie.
    code: resume::CodeCache,
}

/// What the guest is made of, besides its memory; of one that spans nodes, this node's part.
///
/// vCPUs are numbered from 0 on each node. Only for [`Processors`], and in what nodes tell each other, they have numbers among
/// all of the guest's. The first share's node alone has devices: what the others access is done there.
pub struct Machine {
    cpus: Vec<Cpu>,
    /// All of the guest's.
    processors: Processors,
    shares: Box<[Share]>,
    /// Which of them is this node's.
    place: usize,
    /// The number among all of the guest's of this node's first vCPU.
    first_vcpu: usize,
    io_apic: IoApic,
    ports: ports::Devices,
    cpuid: cpuid::Table,
    model: msr::Model,
    clock: Clock,
    processor: Processor,
    timebase: Timebase,
    /// What is added to the node's TSC to make the guest's.
    tsc_offset: u64,
    /// How the guest's first vCPU begins, where that one is.
    entry: Option<ProcessorState>,
    console: Console,
    /// When the first vCPU comes for a device, in the guest's time.
    device_event: Option<u64>,
    end: Option<Report>,
}

impl Machine {
    /// Makes a node's part of a guest. The first node loads the guest's memory, which is all zeros.
    ///
    /// # Errors
    /// [`StartError`]: nothing has started.
    pub fn new<H: Host>(host: &mut H, sources: &Sources<'_>) -> Result<Self, StartError> {
        let Sources { config, cpuid, tsc_hz, unix_seconds, private_pages, place, .. } = *sources;
        let shares = &config.shares;
        let vcpus = shares.get(place).map_or(0, |share| share.vcpus);
        let first_vcpu = first_vcpu(shares, place);
        let entry = if place == 0 { Some(sources.load(host)?) } else { None };
        // Nested paging writes to the guest's page tables at each walk: no two nodes could share an address space.
        let walk_cache = config.walk_cache || shares.len() > 1;
        let topology = Topology::of(shares);
        let policy = cpuid::Policy {
            vcpus: topology.cores.get(place).copied().unwrap_or(0),
            core_bits: topology.core_bits,
            cache_bits: topology.cache_bits,
            tsc_hz,
            pcid: if walk_cache { cpuid::Pcid::Always } else { cpuid::Pcid::AsNode },
        };
        let node_has_pcids = cpuid(1, 0)[2] >> 17 & 1 != 0;
        // The walk cache's tables have no protection keys: leaf 7 and the component of the extended state.
        let without_keys = |leaf: u32, subleaf: u32| {
            let [mut eax, ebx, mut ecx, edx] = cpuid(leaf, subleaf);
            match (leaf, subleaf) {
                (7, 0) if walk_cache => ecx &= !(1 << 3),
                (0xd, 0) if walk_cache => eax &= !(1 << 9),
                _ => {}
            }
            [eax, ebx, ecx, edx]
        };
        let cpuid = cpuid::Table::new(without_keys, &policy);
        let [sizes, ..] = leaf(&cpuid, 0x8000_0008);
        let [.., features] = leaf(&cpuid, 0x8000_0001);
        let processor =
            Processor { physical_bits: sizes.to_le_bytes()[0], gigabyte_pages: features >> 26 & 1 != 0 };
        let timebase = Timebase::new(tsc_hz);
        let tsc_offset = sources.tsc_offset.unwrap_or_else(|| host.now().wrapping_neg());
        let tables = private_pages / u32::from(vcpus.max(1));
        let mut cpus = Vec::with_capacity(usize::from(vcpus));
        let own_ids = topology.ids.iter().skip(first_vcpu).take(vcpus.into());
        for (number, &id) in (0_u32..).zip(own_ids) {
            let is_first = first_vcpu == 0 && number == 0;
            let walks = if walk_cache {
                let base = PRIVATE_START + u64::from(number * tables) * ipc::abi::PAGE_SIZE as u64;
                let pages = u16::try_from(tables.min(32_768)).unwrap_or(0);
                let cache = WalkCache::new(processor, GuestPhysAddr(base), pages);
                let cache = cache.ok_or(StartError::TooFewTables)?;
                Some(if node_has_pcids { cache } else { cache.with_virtual_pcids() })
            } else {
                None
            };
            cpus.push(Cpu {
                apic: LocalApic::new(apic::Config {
                    id,
                    role: if is_first { Role::Bootstrap } else { Role::Application },
                    timebase,
                    physical_address_bits: processor.physical_bits,
                }),
                msrs: msr::Msrs::new(),
                tsc_offset,
                phase: if is_first { Phase::Running } else { Phase::WaitsForStartUp },
                parked: false,
                init_pending: false,
                start_up: None,
                nmi_pending: false,
                pace: (shares.len() > 1).then(pace::Pace::default),
                walks,
                code: resume::CodeCache::default(),
            });
        }
        let model = msr::Model::new(&cpuid, tsc_hz);
        Ok(Self {
            cpus,
            processors: Processors::new(&topology.ids).ok_or(StartError::TooManyVcpus)?,
            shares: shares.as_slice().into(),
            place,
            first_vcpu,
            io_apic: IoApic::new(DestinationWidth::Narrow),
            ports: ports::Devices::new(timebase, unix_seconds),
            cpuid,
            model,
            clock: Clock::new(timebase, unix_seconds.saturating_mul(1_000_000_000)),
            processor,
            timebase,
            tsc_offset,
            entry,
            console: Console::new(),
            device_event: None,
            end: None,
        })
    }

    /// How the guest ended, once it has.
    #[must_use]
    pub const fn end(&self) -> Option<&Report> {
        self.end.as_ref()
    }

    /// The last of what the console said.
    #[must_use]
    pub const fn console(&self) -> &Console {
        &self.console
    }

    /// Carries on what the guest wrote to its console, as far as there is room for it.
    pub(crate) fn drain<H: Host>(&mut self, host: &mut H) {
        let mut bytes = [0; 16];
        while self.ports.uart.has_output() && host.console_has_room() {
            let count = self.ports.uart.take_output(&mut bytes);
            let written = bytes.get(..count).unwrap_or(&[]);
            self.console.note(written);
            host.console(written);
        }
    }

    /// The console has room again; whether there is still something that waits.
    pub fn console_ready<H: Host>(&mut self, host: &mut H) -> bool {
        self.drain(host);
        self.update_lines(host, None);
        self.ports.uart.has_output()
    }

    /// What CPUID function 1 shows in EAX.
    fn signature(&self) -> u32 {
        leaf(&self.cpuid, 1)[0]
    }

    /// How much input the console takes now.
    #[must_use]
    pub const fn input_room(&self) -> usize {
        self.ports.uart.input_room()
    }

    /// Input for the console.
    pub fn input<H: Host>(&mut self, host: &mut H, bytes: &[u8]) {
        self.ports.uart.receive(bytes);
        self.update_lines(host, None);
    }

    /// The node lost the guest's memory.
    pub fn memory_lost<H: Host>(&mut self, host: &mut H) {
        self.end_with(host, 0, End::MemoryLost(0));
    }

    /// Handles an exit of a vCPU, whose number is one of the guest's.
    #[inline]
    pub fn exit<H: Host>(
        &mut self,
        host: &mut H,
        vcpu: usize,
        reason: ExitReason,
        words: [u64; 3],
    ) -> Disposition {
        let [first, second, third] = words;
        match reason {
            ExitReason::Cpuid => {
                self.cpuid(host, vcpu);
                if self.goes_on(host, vcpu) {
                    return Disposition::ResumeAsBefore;
                }
            }
            ExitReason::ReadMsr | ExitReason::WriteMsr => self.msr(host, vcpu, reason),
            ExitReason::Halt => self.halt(host, vcpu),
            ExitReason::Kicked => {
                if vcpu == 0 {
                    self.update_lines(host, Some(vcpu));
                }
            }
            ExitReason::InterruptWindow | ExitReason::NmiWindow => {}
            ExitReason::Port => self.port(host, vcpu, PortAccess(first), second),
            ExitReason::Memory => self.device_memory(host, vcpu, first, second),
            ExitReason::Exception if first == u64::from(PAGE_FAULT) => {
                self.page_fault(host, vcpu, second, third);
            }
            ExitReason::Exception => self.exception(host, vcpu, first, second),
            ExitReason::WriteControl
            | ExitReason::ReadControl
            | ExitReason::InvalidatePage
            | ExitReason::InvalidateContext => self.control(host, vcpu),
            ExitReason::Started => self.started(host, vcpu),
            ExitReason::SetXcr => self.set_xcr(host, vcpu),
            ExitReason::Hypercall => self.hypercall(host, vcpu),
            ExitReason::Forbidden => self.forbidden(host, vcpu),
            // Caches are coherent, and what they hold is the node's.
            ExitReason::Caches => {
                self.skip(host, vcpu, reason);
            }
            ExitReason::Shutdown => self.end_with(host, vcpu, End::TripleFault),
            ExitReason::InvalidState => self.end_with(host, vcpu, End::InvalidState),
            ExitReason::TaskSwitch => self.end_with(host, vcpu, End::TaskSwitch),
            ExitReason::Unknown => self.end_with(host, vcpu, End::UnknownExit(words)),
            ExitReason::MemoryLost => self.end_with(host, vcpu, End::MemoryLost(first)),
        }
        self.resume(host, vcpu)
    }

    /// A vCPU was started: the guest's first one enters the kernel, the others wait.
    fn started<H: Host>(&mut self, host: &mut H, vcpu: usize) {
        if let (0, Some(entry)) = (vcpu, self.entry) {
            self.begin(host, vcpu, &entry);
        }
    }

    /// Gives a vCPU a whole state.
    fn begin<H: Host>(&mut self, host: &mut H, vcpu: usize, state: &ProcessorState) {
        let Some(cpu) = self.cpus.get_mut(vcpu) else { return };
        let intercepts = if cpu.walks.is_some() { INTERCEPT_WALKS } else { 0 };
        let page = host.page(vcpu);
        page.registers = state.registers;
        page.system = state.system;
        page.system.tsc_offset = cpu.tsc_offset;
        page.control.dirty |= DIRTY_SYSTEM;
        page.control.intercepts = intercepts;
        page.control.activity = 0;
        page.control.blocked = 0;
        page.control.event = ipc::vcpu::Event::NONE;
        self.reload_walks(host, vcpu);
    }
}

const PAGE_FAULT: u8 = 14;

/// A leaf of CPUID as it is at the start.
fn leaf(table: &cpuid::Table, leaf: u32) -> cpuid::Registers {
    let start = cpuid::Dynamic { apic_id: 0, cr4: 0, xcr0: 1, apic: cpuid::Apic::Enabled };
    table.lookup(leaf, 0, &start)
}
