//! What `cargo xtask top` knows, as one structure: `--json` prints it, the screen shows it.
//!
//! What is not known is `None` (`null` in JSON): a service did not answer, or does not tell of it. The keys of the nodes'
//! lines are written by `services/health/src/state.rs`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::symbols::Symbols;
use crate::logs::{NodeState, Sample, State, Told};

/// A state as old as this is one that nobody renews, in milliseconds.
pub const OLD_MS: u64 = 5_000;
/// What is older than the last that the node told, by as much, is not so any more, in nanoseconds: each vCPU and each hot
/// page is told of every 6 seconds at the latest.
const GONE_NANOS: u64 = 8_000_000_000;

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Overview {
    /// How long ago the last of it came, in milliseconds.
    pub age_ms: u64,
    /// By their numbers.
    pub nodes: Vec<Node>,
    /// Of all nodes.
    pub vcpus: Vec<Vcpu>,
    /// Pages of guest memory with the most faults, the most first.
    pub hot_pages: Vec<Hot>,
    /// Instructions of the guest with the most faults, the most first.
    pub hot_instructions: Vec<Hot>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Node {
    /// Its number.
    pub node: u8,
    /// How long ago it told of itself, in milliseconds.
    pub age_ms: u64,
    /// Whether it is a member of the view that it has installed.
    pub member: Option<bool>,
    /// Whether it hears enough of the members to act.
    pub may_act: Option<bool>,
    /// The view's epoch.
    pub epoch: Option<u64>,
    /// How many members the view has.
    pub members: Option<u64>,
    /// Its cores.
    pub cores: Option<u64>,
    /// The cores' mean load.
    pub load_permille: Option<u64>,
    /// The load of the busiest core.
    pub most_permille: Option<u64>,
    /// Memory that no service has.
    pub free_kib: Option<u64>,
    /// Memory in all.
    pub total_kib: Option<u64>,
    /// How far its reading of the cluster's clock may be off.
    pub clock_error_ns: Option<u64>,
    /// Log records passed on.
    pub log_records: Option<u64>,
    /// Log records lost.
    pub log_lost: Option<u64>,
    /// The guest's memory on it.
    pub memory: Memory,
    /// Faults in the guest's memory on it.
    pub faults: Faults,
    /// Its network card.
    pub wire: Wire,
}

/// The guest's memory on a node, in pages and frames of 4 KiB.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Frames that the guest's memory can have.
    pub frames_total: Option<u64>,
    /// Frames that hold a page.
    pub frames_used: Option<u64>,
    /// Pages that may be read.
    pub read: Option<u64>,
    /// Pages that may be written.
    pub write: Option<u64>,
    /// Pages that are mapped to the one of zeros.
    pub zero: Option<u64>,
    /// Pages that nobody wrote yet.
    pub dormant: Option<u64>,
    /// Ranges of 2 MiB mapped by one large page.
    pub large_ranges: Option<u64>,
    /// Pages by class, of those that the node is home to.
    pub classes: Classes,
}

/// Pages by how they are used.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Classes {
    /// Read by many, written rarely.
    pub read_mostly: Option<u64>,
    /// Written by one node after another.
    pub migratory: Option<u64>,
    /// Written by several nodes in turns.
    pub bouncing: Option<u64>,
    /// Used by devices.
    pub device: Option<u64>,
}

/// Faults in the guest's memory, and what became of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Faults {
    /// All faults in a second.
    pub faults_per_second: Option<u64>,
    /// Reads among them.
    pub reads_per_second: Option<u64>,
    /// Writes among them.
    pub writes_per_second: Option<u64>,
    /// Those that the platform's window had, and no vCPU.
    pub window_per_second: Option<u64>,
    /// Pages that came from other nodes.
    pub fetched_per_second: Option<u64>,
    /// Rights that came without contents, because the node had them.
    pub kept_per_second: Option<u64>,
    /// Pages that went to other nodes.
    pub given_per_second: Option<u64>,
    /// Copies that were taken away because another node wrote.
    pub invalidated_per_second: Option<u64>,
    /// Faults refused since the service's start, which is none as long as all is well.
    pub refused: Option<u64>,
}

/// A node's network card.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Wire {
    /// Whether the link is up.
    pub link_up: Option<bool>,
    /// Bytes sent in a second.
    pub sent_bytes_per_second: Option<u64>,
    /// Frames sent in a second.
    pub sent_frames_per_second: Option<u64>,
    /// Bytes received in a second.
    pub received_bytes_per_second: Option<u64>,
    /// Frames received in a second.
    pub received_frames_per_second: Option<u64>,
    /// Frames not accepted or not sent, since the service's start.
    pub dropped: Option<u64>,
    /// Frames sent again, since the service's start.
    pub retransmitted: Option<u64>,
    /// Half of the round trips took no longer.
    pub round_trip_p50_ns: Option<u64>,
    /// 99 of 100 round trips took no longer.
    pub round_trip_p99_ns: Option<u64>,
}

/// A vCPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Vcpu {
    /// Its number in the guest, when all nodes before its own have told how many they have.
    pub vcpu: Option<u64>,
    /// The node that it is on.
    pub node: u8,
    /// Its number there.
    pub local: u64,
    /// What it does.
    pub activity: Option<&'static str>,
    /// The core that it has.
    pub core: Option<u64>,
    /// How long it ran.
    pub load_permille: Option<u64>,
    /// How long it was ready and another ran.
    pub steal_permille: Option<u64>,
    /// Exits that its platform was asked about.
    pub exits_per_second: Option<u64>,
    /// Misses in guest memory.
    pub faults_per_second: Option<u64>,
    /// Halts.
    pub halts_per_second: Option<u64>,
}

/// A page or an instruction, and how many faults it had on all nodes together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Hot {
    /// A page's guest-physical address, or an instruction's guest-virtual one.
    pub address: u64,
    /// Faults.
    pub faults: u64,
    /// The nodes that had them.
    pub nodes: Vec<u8>,
    /// The guest's name for it.
    pub symbol: Option<String>,
}

impl Overview {
    /// What a state tells at a time, in milliseconds since 1970. `None` when no node told anything.
    pub fn of(state: &State, now_ms: u64, symbols: &Symbols) -> Option<Self> {
        let reports: BTreeMap<u8, Reports> =
            state.nodes.iter().map(|(&node, state)| (node, Reports::of(state))).collect();
        let age = |state: &NodeState| now_ms.saturating_sub(state.came_ms);
        let nodes = state.nodes.iter().zip(reports.values());
        let page = |number: u64| number.saturating_mul(4096);
        Some(Self {
            age_ms: state.nodes.values().map(age).min()?,
            nodes: nodes.map(|((&node, state), reports)| Node::of(node, age(state), reports)).collect(),
            vcpus: vcpus(&reports),
            hot_pages: hot(&reports, "hot_page", "page", page, |address| symbols.at_physical(address)),
            hot_instructions: hot(&reports, "hot_instruction", "rip", |rip| rip, |rip| symbols.at(rip)),
        })
    }

    /// Whether nobody renews it.
    pub fn is_old(&self) -> bool {
        self.age_ms > OLD_MS
    }
}

/// What a node told and is still so.
struct Reports<'a>(BTreeMap<&'a str, &'a Told>);

impl<'a> Reports<'a> {
    fn of(state: &'a NodeState) -> Self {
        // Every second the node tells this first.
        let newest = state.subjects.get("node").map_or(0, |told| told.last.nanos);
        let is_so = |told: &Told| newest.saturating_sub(told.last.nanos) <= GONE_NANOS;
        let told = state.subjects.iter().filter(|(_, told)| is_so(told));
        Self(told.map(|(subject, told)| (subject.as_str(), told)).collect())
    }

    /// A number as it was told.
    fn value(&self, subject: &str, key: &str) -> Option<u64> {
        self.0.get(subject)?.last.values.get(key).copied()
    }

    /// Yes or no.
    fn flag(&self, subject: &str, key: &str) -> Option<bool> {
        self.value(subject, key).map(|number| number != 0)
    }

    /// By how much a counter grew in a second.
    fn rate(&self, subject: &str, key: &str) -> Option<u64> {
        let Told { last, before } = self.0.get(subject)?;
        rate(before.as_ref()?, last, key)
    }

    /// The subjects of a kind with their numbers.
    fn each(&self, kind: &str) -> impl Iterator<Item = (u64, &'a str)> {
        let numbered = |(&subject, _): (&&'a str, &&'a Told)| {
            let number = subject.strip_prefix(kind)?.strip_prefix('/')?.parse().ok()?;
            Some((number, subject))
        };
        let mut all: Vec<_> = self.0.iter().filter_map(numbered).collect();
        all.sort_unstable();
        all.into_iter()
    }
}

/// By how much a counter grew in a second; `None` when it became less (its service was restarted), or when no time passed.
fn rate(before: &Sample, last: &Sample, key: &str) -> Option<u64> {
    let grown = last.values.get(key)?.checked_sub(*before.values.get(key)?)?;
    let nanos = last.nanos.checked_sub(before.nanos).filter(|nanos| *nanos > 0)?;
    u64::try_from(u128::from(grown) * 1_000_000_000 / u128::from(nanos)).ok()
}

impl Node {
    fn of(node: u8, age_ms: u64, reports: &Reports) -> Self {
        let value = |key| reports.value("node", key);
        Self {
            node,
            age_ms,
            member: reports.flag("view", "member"),
            may_act: reports.flag("view", "may_act"),
            epoch: reports.value("view", "epoch"),
            members: reports.value("view", "members"),
            cores: value("cores"),
            load_permille: value("load"),
            most_permille: value("most"),
            free_kib: value("free_kib"),
            total_kib: value("total_kib"),
            clock_error_ns: reports.value("clock", "error_ns"),
            log_records: value("log_records"),
            log_lost: value("log_lost"),
            memory: Memory::of(reports),
            faults: Faults::of(reports),
            wire: Wire::of(reports),
        }
    }
}

impl Memory {
    fn of(reports: &Reports) -> Self {
        let value = |key| reports.value("memory", key);
        let class = |key| reports.value("classes", key);
        Self {
            frames_total: value("frames_total"),
            frames_used: value("frames_used"),
            read: value("read"),
            write: value("write"),
            zero: value("zero"),
            dormant: value("dormant"),
            large_ranges: value("large_ranges"),
            classes: Classes {
                read_mostly: class("read_mostly"),
                migratory: class("migratory"),
                bouncing: class("bouncing"),
                device: class("device"),
            },
        }
    }
}

impl Faults {
    fn of(reports: &Reports) -> Self {
        let rate = |key| reports.rate("faults", key);
        let kinds = ["reads", "writes", "spurious", "refused"];
        let known = || kinds.iter().filter_map(|key| rate(key));
        Self {
            faults_per_second: known().next().map(|_| known().fold(0, u64::saturating_add)),
            reads_per_second: rate("reads"),
            writes_per_second: rate("writes"),
            window_per_second: rate("window"),
            fetched_per_second: rate("fetched"),
            kept_per_second: rate("kept"),
            given_per_second: rate("given"),
            invalidated_per_second: rate("invalidated"),
            refused: reports.value("faults", "refused"),
        }
    }
}

impl Wire {
    fn of(reports: &Reports) -> Self {
        let value = |key| reports.value("wire", key);
        let rate = |key| reports.rate("wire", key);
        Self {
            link_up: reports.flag("wire", "link_up"),
            sent_bytes_per_second: rate("sent_bytes"),
            sent_frames_per_second: rate("sent_frames"),
            received_bytes_per_second: rate("received_bytes"),
            received_frames_per_second: rate("received_frames"),
            dropped: value("dropped").map(|in_| in_.saturating_add(value("no_room").unwrap_or(0))),
            retransmitted: value("retransmitted"),
            round_trip_p50_ns: value("median_ns"),
            round_trip_p99_ns: value("slow_ns"),
        }
    }
}

/// All vCPUs. The guest numbers them through all nodes, by the nodes' numbers.
fn vcpus(reports: &BTreeMap<u8, Reports>) -> Vec<Vcpu> {
    let mut all = Vec::new();
    // How many the nodes before have, as long as each of them has told.
    let mut before = Some(0);
    for ((&node, reports), expected) in reports.iter().zip(1..) {
        before = before.filter(|_| node == expected);
        for (local, subject) in reports.each("vcpu") {
            let value = |key| reports.value(subject, key);
            let activity = |number| match number {
                0 => Some("stopped"),
                1 => Some("running"),
                2 => Some("halted"),
                3 => Some("at exit"),
                _ => None,
            };
            all.push(Vcpu {
                vcpu: before.map(|before: u64| before.saturating_add(local)),
                node,
                local,
                activity: value("activity").and_then(activity),
                core: value("core"),
                load_permille: value("load"),
                steal_permille: value("steal"),
                exits_per_second: value("exits"),
                faults_per_second: value("faults"),
                halts_per_second: value("halts"),
            });
        }
        let count = reports.value("node", "vcpus");
        before = before.and_then(|before| before.checked_add(count?));
    }
    all
}

/// What is hot on all nodes together, the hottest first.
fn hot(
    reports: &BTreeMap<u8, Reports>,
    kind: &str,
    key: &str,
    address: impl Fn(u64) -> u64,
    symbol: impl Fn(u64) -> Option<String>,
) -> Vec<Hot> {
    let mut all: BTreeMap<u64, Hot> = BTreeMap::new();
    for (&node, reports) in reports {
        // What has changed its place between two turns of the node's may be there twice.
        let mut own = BTreeMap::new();
        for (_, subject) in reports.each(kind) {
            if let (Some(what), Some(faults)) =
                (reports.value(subject, key), reports.value(subject, "faults"))
            {
                let most = own.entry(address(what)).or_insert(0);
                *most = faults.max(*most);
            }
        }
        for (address, faults) in own {
            let new = || Hot { address, symbol: symbol(address), ..Hot::default() };
            let hot = all.entry(address).or_insert_with(new);
            hot.faults = hot.faults.saturating_add(faults);
            hot.nodes.push(node);
        }
    }
    let mut all: Vec<_> = all.into_values().filter(|hot| hot.faults > 0).collect();
    all.sort_by_key(|hot| std::cmp::Reverse(hot.faults));
    all
}

#[cfg(test)]
mod tests;
