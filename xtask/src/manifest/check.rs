//! What the parts of a manifest say of each other: who may call whom, and that nothing is given twice.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use ipc::abi::{MAX_SERVICES, MAX_THREADS};

use super::parse::{Draft, PortsDraft, ServiceDraft};
use super::{At, Mistakes, guest};

/// Ports that the kernel keeps for itself.
const KERNEL_PORTS: [(RangeInclusive<u16>, &str); 4] = [
    (0x20..=0x21, "the interrupt controller (PIC 1)"),
    (0xa0..=0xa1, "the interrupt controller (PIC 2)"),
    (COM1, "its console (COM1)"),
    (0xcf8..=0xcff, "PCI configuration"),
];
/// After the boot the kernel uses its console only to say why it gives up, so the guest's platform may have it.
const COM1: RangeInclusive<u16> = 0x3f8..=0x3ff;
/// The ISA line on which the second PIC hangs: no device can use it.
const CASCADE_LINE: u8 = 2;

/// Reports every mistake that shows between two parts.
pub fn check(draft: &Draft, mistakes: &mut Mistakes) {
    services(draft, mistakes);
    for service in &draft.services {
        calls(draft, service, mistakes);
        notifies(draft, service, mistakes);
    }
    ports(draft, mistakes);
    interrupts(draft, mistakes);
    devices(draft, mistakes);
    channels(draft, mistakes);
    pools(draft, mistakes);
    for service in &draft.services {
        own_names(draft, service, mistakes);
    }
    if let Some(guest) = &draft.guest {
        guest::check(draft, guest, mistakes);
    }
}

/// The service with this name.
pub fn find<'a>(draft: &'a Draft, name: &str) -> Option<&'a ServiceDraft> {
    draft.services.iter().find(|service| service.name() == name)
}

fn services(draft: &Draft, mistakes: &mut Mistakes) {
    let names = draft.services.iter().map(|service| (service.name(), service.line));
    twice(names, "a service", mistakes);
    if draft.services.is_empty() {
        mistakes.add(draft.line, "the manifest has no [[service]]");
        return;
    }
    if let Some(service) = draft.services.get(MAX_SERVICES) {
        mistakes.add(service.line, format!("too many services: {MAX_SERVICES} at most"));
    }
    let mut threads = 0;
    for service in &draft.services {
        threads += usize::from(service.threads.value);
        if threads > MAX_THREADS {
            let text =
                format!("too many threads: with '{}' there are more than {MAX_THREADS}", service.name());
            mistakes.add(service.threads.line, text);
            break;
        }
    }
    if let Some(guest) = &draft.guest {
        // The most that one node has.
        let vcpus = guest.shares().iter().map(|share| usize::from(share.vcpus)).max().unwrap_or(0);
        if threads <= MAX_THREADS && threads + vcpus > MAX_THREADS {
            let text = format!(
                "too many threads: the services have {threads}, and with the guest's {vcpus} vCPUs there are more \
                 than {MAX_THREADS}"
            );
            mistakes.add(guest.cpus.line, text);
        }
    }
    let mut supervisors = draft.services.iter().filter(|service| service.supervises());
    let Some(supervisor) = supervisors.next() else {
        mistakes.add(draft.line, "missing right: no service has the right 'supervise'");
        return;
    };
    for other in supervisors {
        let (first, second) = (supervisor.name(), other.name());
        let text = format!("'{second}' cannot supervise too: '{first}' does, and there is one supervisor");
        mistakes.add(other.rights_line, text);
    }
    for service in &draft.services {
        let Some(priority) = &service.priority else { continue };
        let text = match (std::ptr::eq(service, supervisor), priority.value) {
            (false, 0) => "priority 0 is the supervisor's alone",
            (true, 1..) => "the supervisor must have priority 0",
            _ => continue,
        };
        mistakes.add(priority.line, text);
    }
}

fn calls(draft: &Draft, service: &ServiceDraft, mistakes: &mut Mistakes) {
    let name = service.name();
    for call in &service.calls {
        let Some(callee) = find(draft, &call.value) else {
            mistakes.add(call.line, format!("'{name}' calls '{}', but there is no such service", call.value));
            continue;
        };
        let (Some(own), Some(other)) = (&service.priority, &callee.priority) else { continue };
        if other.value >= own.value {
            let text = format!(
                "upward call: '{name}' (priority {}) may call only services with a smaller priority number, \
                 and '{}' has {}",
                own.value, call.value, other.value
            );
            mistakes.add(call.line, text);
        }
    }
    twice(service.calls.iter().map(|call| (call.value.as_str(), call.line)), "a call of", mistakes);
    let Some(beat) = &service.beat_ms else { return };
    if service.supervises() {
        mistakes.add(beat.line, format!("'{name}' is the supervisor: there is nobody it could beat to"));
    } else if let Some(supervisor) = draft.services.iter().find(|service| service.supervises())
        && !service.calls.iter().any(|call| call.value == supervisor.name())
    {
        let text = format!(
            "missing capability: '{name}' must beat, but '{}' is not in its 'calls'",
            supervisor.name()
        );
        mistakes.add(beat.line, text);
    }
}

fn notifies(draft: &Draft, service: &ServiceDraft, mistakes: &mut Mistakes) {
    let name = service.name();
    for notify in &service.notifies {
        let target = &notify.service;
        if target == name {
            mistakes.add(notify.line, format!("'{name}' cannot notify itself"));
        } else if find(draft, target).is_none() {
            mistakes.add(notify.line, format!("'{name}' notifies '{target}', but there is no such service"));
        } else if draft.channels.iter().any(|channel| {
            channel.name == notify.name
                && [&channel.producer, &channel.consumer].iter().any(|s| s.value == *target)
        }) {
            let text = format!("'{target}' already knows the channel '{}' by this name", notify.name);
            mistakes.add(notify.line, text);
        }
    }
}

fn ports(draft: &Draft, mistakes: &mut Mistakes) {
    let last = |range: &PortsDraft| range.first + (range.count - 1);
    let is_platform = |service: &ServiceDraft| {
        draft.guest.as_ref().is_some_and(|guest| guest.platform.value == service.name())
    };
    let mut given: Vec<(&ServiceDraft, &PortsDraft)> = Vec::new();
    for service in &draft.services {
        for range in &service.ports {
            let (first, last_port) = (range.first, last(range));
            let is_console = COM1.contains(&first) && COM1.contains(&last_port);
            for (own, use_of) in &KERNEL_PORTS {
                if *own == COM1 && is_console && is_platform(service) {
                    continue;
                }
                if first <= *own.end() && last_port >= *own.start() {
                    let text = format!(
                        "the ports {first:#x}-{last_port:#x} of '{}' overlap {:#x}-{:#x}, which the kernel keeps \
                         for {use_of}",
                        range.name,
                        own.start(),
                        own.end()
                    );
                    mistakes.add(range.line, text);
                }
            }
            for (holder, other) in &given {
                if first <= last(other) && last_port >= other.first {
                    let text = format!(
                        "the ports {first:#x}-{last_port:#x} of '{}' overlap those of '{}' ('{}')",
                        service.name(),
                        holder.name(),
                        other.name
                    );
                    mistakes.add(range.line, text);
                }
            }
            given.push((service, range));
        }
    }
}

fn interrupts(draft: &Draft, mistakes: &mut Mistakes) {
    let mut holders: HashMap<u8, &str> = HashMap::new();
    for service in &draft.services {
        for interrupt in &service.interrupts {
            let line = interrupt.isa_line;
            if line == CASCADE_LINE {
                mistakes.add(interrupt.line, "interrupt line 2 joins the two PICs: no device uses it");
            }
            if let Some(holder) = holders.insert(line, service.name()) {
                let text = format!(
                    "interrupt line {line} is given twice, to '{holder}' and to '{}'",
                    service.name()
                );
                mistakes.add(interrupt.line, text);
            }
        }
    }
}

fn devices(draft: &Draft, mistakes: &mut Mistakes) {
    let mut given: Vec<(&str, &super::parse::DeviceDraft)> = Vec::new();
    for service in &draft.services {
        for device in &service.devices {
            for (holder, other) in &given {
                let same_id = device.ids.iter().any(|id| other.ids.contains(id));
                if device.vendor == other.vendor && device.skip == other.skip && same_id {
                    let text = format!(
                        "the device '{}' of '{}' matches the same PCI functions as '{}' of '{holder}'; \
                         'skip' tells them apart",
                        device.name,
                        service.name(),
                        other.name
                    );
                    mistakes.add(device.line, text);
                }
            }
            given.push((service.name(), device));
        }
    }
}

fn channels(draft: &Draft, mistakes: &mut Mistakes) {
    let shared = draft.channels.iter().map(|c| (c.name.as_str(), c.line));
    let shared = shared.chain(draft.pools.iter().map(|p| (p.name.as_str(), p.line)));
    twice(shared, "a channel or pool", mistakes);
    for channel in &draft.channels {
        for (side, what) in [(&channel.producer, "producer"), (&channel.consumer, "consumer")] {
            holder(draft, side, &format!("the {what} of channel '{}'", channel.name), mistakes);
        }
        if channel.producer.value == channel.consumer.value && !channel.producer.value.is_empty() {
            let text = format!("the channel '{}' has the same service at both ends", channel.name);
            mistakes.add(channel.line, text);
        }
    }
}

fn pools(draft: &Draft, mistakes: &mut Mistakes) {
    for pool in &draft.pools {
        for name in &pool.holders {
            holder(draft, name, &format!("a holder of pool '{}'", pool.name), mistakes);
        }
        twice(pool.holders.iter().map(|h| (h.value.as_str(), h.line)), "a holder", mistakes);
    }
}

/// Reports a service that is to get a capability and is not there. An empty name was reported as absent.
fn holder(draft: &Draft, name: &At<String>, role: &str, mistakes: &mut Mistakes) {
    if !name.value.is_empty() && find(draft, &name.value).is_none() {
        let text = format!("missing capability: {role} is '{}', but there is no such service", name.value);
        mistakes.add(name.line, text);
    }
}

/// What one service calls its own things: it finds each by kind and name, so two of a kind must differ.
fn own_names(draft: &Draft, service: &ServiceDraft, mistakes: &mut Mistakes) {
    let name = service.name();
    let notifies = service.notifies.iter().map(|n| (n.name.as_str(), n.line));
    twice(notifies, "a notification", mistakes);
    twice(service.ports.iter().map(|p| (p.name.as_str(), p.line)), "a port range", mistakes);
    let interrupts = service.interrupts.iter().map(|i| (i.name.as_str(), i.line));
    let devices = service.devices.iter().map(|d| (d.name.as_str(), d.line));
    twice(interrupts.chain(devices), "an interrupt or device", mistakes);
    let own = service.regions.iter().map(|r| (r.name.as_str(), r.line));
    twice(own, "overlapping regions: a region", mistakes);
    for region in &service.regions {
        let channel = draft
            .channels
            .iter()
            .any(|c| c.name == region.name && (c.producer.value == name || c.consumer.value == name));
        let pool =
            draft.pools.iter().any(|p| p.name == region.name && p.holders.iter().any(|h| h.value == name));
        if channel || pool {
            let text =
                format!("the region '{}' of '{name}' has the name of its channel or pool", region.name);
            mistakes.add(region.line, text);
        }
    }
}

/// Reports names that come more than once. An empty one was reported as absent.
fn twice<'a>(names: impl IntoIterator<Item = (&'a str, usize)>, what: &str, mistakes: &mut Mistakes) {
    let mut seen = HashMap::new();
    for (name, line) in names.into_iter().filter(|(name, _)| !name.is_empty()) {
        if let Some(first) = seen.insert(name, line) {
            mistakes.add(line, format!("{what} '{name}' stands here twice; the other is in line {first}"));
        }
    }
}
