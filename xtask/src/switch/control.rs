//! The handle by which tests and commands change and watch a switch that runs.

use super::counters::{PortId, PortSet, PortSnapshot, Snapshot};
use super::impairment::Impairment;
use super::shell::{Shared, lock};
use anyhow::{Result, ensure};
use std::sync::Arc;

/// A handle to a switch.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

impl Control {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Lets no frame through, in either direction, between a port of `one` and a port of `other`, in addition to
    /// earlier cuts. Delayed frames are lost; those that already wait in a port's queue still come.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn cut(&self, one: &[PortId], other: &[PortId]) -> Result<()> {
        one.iter().chain(other).try_for_each(|port| check(&self.shared, *port))?;
        let set = |ports: &[PortId]| ports.iter().copied().collect::<PortSet>();
        lock(&self.shared.fabric).cut(set(one), set(other));
        Ok(())
    }

    /// Undoes all cuts.
    pub fn heal(&self) {
        lock(&self.shared.fabric).heal();
    }

    /// Sets what happens to all frames that come in from now on.
    pub fn set_impairment(&self, impairment: Impairment) {
        let mut fabric = lock(&self.shared.fabric);
        for from in fabric.ports() {
            for to in fabric.ports() {
                fabric.set_impairment(from, to, impairment);
            }
        }
    }

    /// All counters, at about the same moment.
    #[must_use]
    pub fn counters(&self) -> Snapshot {
        let snapshot = |port: &super::shell::Port| {
            let (link, counters) = {
                let fabric = lock(&self.shared.fabric);
                (fabric.link(port.id), *fabric.counters(port.id))
            };
            let counters = counters.plus(lock(&port.egress).counters());
            let status = *lock(&port.status);
            PortSnapshot {
                port: port.id,
                link,
                connections: status.connections,
                counters,
                errors: status.errors,
                last_error: status.last_error,
            }
        };
        let taps = [&self.shared.delivered, &self.shared.entered];
        Snapshot {
            ports: self.shared.ports.iter().map(snapshot).collect(),
            recording_errors: taps.into_iter().flatten().filter_map(|tap| tap.lock().error()).collect(),
        }
    }
}

/// Checks that the switch has the port.
pub(super) fn check(shared: &Shared, port: PortId) -> Result<()> {
    let ports = shared.ports.len();
    ensure!(port.index() < ports, "the switch has no {port}: its ports are 0 to {}", ports.saturating_sub(1));
    Ok(())
}
