//! Loads, memory and services, and the interface that tells of them.

use heapless::Vec;
use ipc::abi::{Inspect, MAX_CORES, MAX_NAME_BYTES, MAX_SERVICES, Name, ServiceState};
use ipc::interfaces::health::{NodeReport, Server, ServiceHealth, Services, VcpuHealth};
use ipc::message::{Caller, Refused};
use rt::inspector::{Inspector, LoadMeter};
use rt::time::Clock;

use crate::vcpus::{GuestSummary, Vcpus};

/// Looks at the node.
#[derive(Debug)]
pub struct Observer<I> {
    inspector: I,
    clock: Clock,
    cores: Vec<LoadMeter, MAX_CORES>,
    services: Vec<LoadMeter, MAX_SERVICES>,
    vcpus: Vcpus,
}

/// The node in a few numbers, for one line of the log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Summary {
    /// Cores.
    pub cores: u32,
    /// The mean load of the cores in permille.
    pub mean_permille: u32,
    /// The load of the busiest core in permille.
    pub most_permille: u32,
    /// Memory that nobody has, in KiB.
    pub free_kib: u64,
    /// Memory in all, in KiB.
    pub total_kib: u64,
}

impl<I: Inspector> Observer<I> {
    /// An observer that has not looked yet.
    pub fn new(inspector: I, clock: Clock) -> Self {
        Self { inspector, clock, cores: Vec::new(), services: Vec::new(), vcpus: Vcpus::new(clock) }
    }

    /// Takes a look at all cores, services and vCPUs at `now`; loads are those between the last two looks.
    pub fn look(&mut self, now: u64) {
        look_at_all(&mut self.cores, |index| {
            let [busy, idle, ..] = self.inspector.inspect(Inspect::Core, index).ok()?;
            Some((busy, busy.saturating_add(idle)))
        });
        look_at_all(&mut self.services, |index| {
            let [run_time, ..] = self.inspector.inspect(Inspect::Service, index).ok()?;
            Some((run_time, now))
        });
        self.vcpus.look(&self.inspector, now);
    }

    /// The guest in a few numbers since the last time that this was asked; `None` when none ran.
    pub fn guest_summary(&mut self) -> Option<GuestSummary> {
        self.vcpus.summary()
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.vcpus.count()
    }

    /// The vCPU with this number, if there is one.
    pub fn vcpu(&self, number: usize) -> Option<VcpuHealth> {
        self.vcpus.vcpu(&self.inspector, number)
    }

    fn memory(&self) -> (u64, u64) {
        match self.inspector.inspect(Inspect::Node, 0) {
            Ok([total, free, ..]) => (total, free),
            Err(_) => (0, 0),
        }
    }

    /// The node in a few numbers.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let (total, free) = self.memory();
        let loads = || self.cores.iter().map(|meter| u32::from(meter.permille()));
        let cores = u32::try_from(self.cores.len()).unwrap_or(u32::MAX);
        Summary {
            cores,
            mean_permille: loads().sum::<u32>() / cores.max(1),
            most_permille: loads().max().unwrap_or(0),
            free_kib: free.saturating_mul(4),
            total_kib: total.saturating_mul(4),
        }
    }

    fn service(&self, index: usize) -> Option<ServiceHealth> {
        let [first, second, ..] = self.inspector.inspect(Inspect::ServiceName, index as u64).ok()?;
        let [_, state, generation, calls_served] =
            self.inspector.inspect(Inspect::Service, index as u64).ok()?;
        let mut name = [0; MAX_NAME_BYTES];
        name.as_mut_slice().copy_from_slice([first.to_le_bytes(), second.to_le_bytes()].as_flattened());
        let [state, threads, ..] = state.to_le_bytes();
        Some(ServiceHealth {
            name: Name(name).as_str().try_into().unwrap_or_default(),
            state: ServiceState::from_number(state)?,
            threads,
            restarts: u32::try_from(generation).unwrap_or(u32::MAX),
            load_permille: self.services.get(index).map_or(0, LoadMeter::permille),
            calls_served,
        })
    }
}

/// Looks at each thing that there is, up to the meters' capacity.
fn look_at_all<const N: usize>(meters: &mut Vec<LoadMeter, N>, counters: impl Fn(u64) -> Option<(u64, u64)>) {
    for index in 0..N {
        let Some((busy, total)) = counters(index as u64) else { return };
        if index == meters.len() {
            // There is room for N.
            let _ = meters.push(LoadMeter::default());
        }
        if let Some(meter) = meters.get_mut(index) {
            meter.look(busy, total);
        }
    }
}

/// Answers one message at one time.
#[derive(Debug)]
pub struct Desk<'a, I> {
    /// What is known.
    pub observer: &'a Observer<I>,
    /// The time, in ticks.
    pub now: u64,
    /// Log records passed on, and lost.
    pub log: (u64, u64),
}

impl<I: Inspector> Server for Desk<'_, I> {
    fn node(&mut self, _caller: Caller) -> Result<NodeReport, Refused> {
        let (frames_total, frames_free) = self.observer.memory();
        let (log_records, log_lost) = self.log;
        Ok(NodeReport {
            uptime_ms: self.observer.clock.microseconds(self.now) / 1_000,
            loads_permille: self.observer.cores.iter().map(LoadMeter::permille).collect(),
            frames_total,
            frames_free,
            log_records,
            log_lost,
        })
    }

    fn services(&mut self, _caller: Caller) -> Result<Services, Refused> {
        Ok((0..MAX_SERVICES).map_while(|index| self.observer.service(index)).collect())
    }

    fn vcpu(&mut self, _caller: Caller, number: u8) -> Result<Option<VcpuHealth>, Refused> {
        Ok(self.observer.vcpu(usize::from(number)))
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;
    use ipc::abi::{Error, Token};

    /// Two cores, two services and a vCPU, whose counters grow with the time.
    struct Node(Cell<u64>);

    impl Inspector for &Node {
        fn inspect(&self, item: Inspect, index: u64) -> Result<[u64; 4], Error> {
            let now = self.0.get();
            match (item, index) {
                (Inspect::Node, 0) => Ok([1_000, 250, 2, 1_000]),
                (Inspect::Core, 0 | 1) => Ok([now / (index + 1), now - now / (index + 1), 0, 0]),
                (Inspect::Service, 0) => Ok([now / 4, 0x0200, 0, 9]),
                (Inspect::Service, 1) => Ok([now / 10, 0x0101, 3, 0]),
                (Inspect::ServiceName, 0) => {
                    Ok([u64::from_le_bytes(*b"supervis"), u64::from_le_bytes(*b"or\0\0\0\0\0\0"), 0, 0])
                }
                (Inspect::ServiceName, 1) => Ok([u64::from_le_bytes(*b"ept\0\0\0\0\0"), 0, 0, 0]),
                (Inspect::Vcpu, 0) => Ok([now / 2, now, 0, 0x1_0001]),
                (Inspect::VcpuTime, 0) => Ok([0; 4]),
                _ => Err(Error::NoSuchItem),
            }
        }
    }

    const CALLER: Caller = Caller::of(Token::new(0, 1, 1));

    #[test]
    fn the_node_is_reported_as_the_kernel_counts() {
        let node = Node(Cell::new(0));
        let mut observer = Observer::new(&node, Clock::new(1_000));
        for now in [1_000, 3_000] {
            node.0.set(now);
            observer.look(now);
        }
        let mut desk = Desk { observer: &observer, now: 3_500, log: (10, 2) };
        let report = desk.node(CALLER).unwrap();
        assert_eq!(report.loads_permille.as_slice(), [1_000, 500]);
        assert_eq!((report.frames_total, report.frames_free), (1_000, 250));
        assert_eq!((report.uptime_ms, report.log_records, report.log_lost), (3_500, 10, 2));

        let services = desk.services(CALLER).unwrap();
        assert_eq!(services.len(), 2);
        let [supervisor, ept] = [&services[0], &services[1]];
        assert_eq!((supervisor.name.as_str(), supervisor.state), ("supervisor", ServiceState::Running));
        assert_eq!((supervisor.threads, supervisor.load_permille, supervisor.calls_served), (2, 250, 9));
        assert_eq!((ept.name.as_str(), ept.state, ept.restarts), ("ept", ServiceState::Stopped, 3));
        assert_eq!(ept.load_permille, 100);

        let vcpu = desk.vcpu(CALLER, 0).unwrap().unwrap();
        assert_eq!((vcpu.core, vcpu.load_permille, vcpu.exits.total), (1, 500, 3_000));
        assert_eq!(desk.vcpu(CALLER, 1), Ok(None));
        assert_eq!(observer.guest_summary().unwrap().exits, 1_000);

        let summary = observer.summary();
        assert_eq!((summary.cores, summary.mean_permille, summary.most_permille), (2, 750, 1_000));
        assert_eq!((summary.free_kib, summary.total_kib), (1_000, 4_000));
    }

    #[test]
    fn an_observer_without_rights_knows_nothing_and_fails_not() {
        struct Blind;
        impl Inspector for Blind {
            fn inspect(&self, _: Inspect, _: u64) -> Result<[u64; 4], Error> {
                Err(Error::Refused)
            }
        }
        let mut observer = Observer::new(Blind, Clock::new(1_000));
        observer.look(1);
        assert_eq!((observer.summary(), observer.guest_summary()), (Summary::default(), None));
        let mut desk = Desk { observer: &observer, now: 0, log: (0, 0) };
        assert_eq!(desk.node(CALLER), Ok(NodeReport::default()));
        assert_eq!(desk.services(CALLER), Ok(Services::new()));
        assert_eq!(desk.vcpu(CALLER, 0), Ok(None));
    }
}
