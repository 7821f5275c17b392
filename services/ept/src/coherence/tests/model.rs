//! The model check: every order of deliveries, page operations and instructions on a few nodes and pages.
//!
//! It drives the same [`Coherence`] as the service. Each vCPU makes a few accesses, any of its choice; so there is no cycle and
//! every path ends, and a path that ends before all is done is a deadlock.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;
use std::vec::Vec;

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::super::environment::Outcome;
use super::super::message::Channel;
use super::*;

/// An instruction: it touches pages of a bit mask, all at once.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Instruction {
    pages: u8,
    access: Access,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum State {
    /// It chooses an instruction.
    Free,
    /// Its fault at a page is not answered.
    Waits(Instruction, Page),
    /// Its fault at a page is answered, and it tries again.
    Resumed(Instruction, Page),
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Vcpu {
    state: State,
    /// Instructions that it has yet to choose.
    left: u8,
}

#[derive(Clone, Debug, Hash, PartialEq)]
struct World {
    sites: Vec<Site>,
    network: BTreeMap<(u8, u8, Channel), VecDeque<Letter>>,
    vcpus: Vec<Vcpu>,
    /// How often each page was written.
    writes: Vec<u64>,
    /// What should never be.
    wrong: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Action {
    /// A vCPU chooses an instruction.
    Choose(usize, Instruction),
    /// A vCPU tries its instruction again.
    Retry(usize),
    Deliver((u8, u8, Channel)),
    Perform(usize, usize),
    /// Time passes on a node.
    Wait(usize),
}

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Broken {
    Nothing,
    /// The end of a page operation is told before it is carried out.
    EarlyCompletion,
    /// Who is granted the right to write is not told of the readers.
    ForgottenReaders,
    /// A page may leave before the instruction that it was granted for.
    NoHold,
    /// Acknowledgements are lost.
    LostAcknowledgements,
}

struct Setting {
    nodes: u16,
    pages: u32,
    frames: u32,
    waiters: u8,
    /// Instructions of each vCPU of each node; further nodes' have as many as the last.
    instructions: &'static [u8],
    /// Whether instructions may touch several pages.
    several: bool,
    /// Whether the first node is the home of all pages, and takes those that nobody has touched at once.
    claims: bool,
    broken: Broken,
}

impl Setting {
    fn take_outputs(&self, world: &mut World, index: usize) {
        let site = &mut world.sites[index];
        let from = u8::try_from(index).unwrap();
        for (to, (mut message, contents)) in site.around.sent.drain(..) {
            if self.broken == Broken::LostAcknowledgements && message.kind == Kind::Ack {
                continue;
            }
            if self.broken == Broken::ForgottenReaders {
                message.readers = super::super::word::Readers::EMPTY;
            }
            let channel = (from, to.0, message.kind.channel());
            world.network.entry(channel).or_default().push_back((message, contents));
        }
        if self.broken == Broken::EarlyCompletion {
            // Told now, carried out later.
            for place in 0..site.around.operations.len() {
                let (ticket, ..) = site.around.operations[place];
                if site.coherence.completed(&mut site.around, site.now, ticket, Ok(())).is_ok() {
                    return self.take_outputs(world, index);
                }
            }
        }
        for (waiter, outcome) in std::mem::take(&mut site.around.resumed) {
            let vcpu = index * usize::from(self.waiters) + usize::from(waiter.0);
            let State::Waits(instruction, page) = world.vcpus[vcpu].state else {
                world.wrong = Some("a vCPU goes on that did not wait");
                return;
            };
            world.vcpus[vcpu].state =
                if outcome == Outcome::Granted { State::Resumed(instruction, page) } else { State::Free };
            if self.broken == Broken::NoHold || outcome != Outcome::Granted {
                self.retire(world, vcpu);
            }
        }
    }

    fn retire(&self, world: &mut World, vcpu: usize) {
        let (index, waiter) = self.place(vcpu);
        if world.sites[index].retired(waiter).is_err() {
            world.wrong = Some("a vCPU cannot retire");
        }
        self.take_outputs(world, index);
    }

    fn place(&self, vcpu: usize) -> (usize, u8) {
        (vcpu / usize::from(self.waiters), u8::try_from(vcpu % usize::from(self.waiters)).unwrap())
    }

    /// The highest page that the instruction needs and the node does not have: the worst order.
    fn missing(site: &Site, instruction: Instruction) -> Option<Page> {
        let needs = |page: &usize| instruction.pages >> page & 1 != 0;
        let lacks = |page: &usize| !site.around.views[*page].allows(instruction.access);
        let page = (0..site.around.views.len()).rev().filter(needs).find(lacks)?;
        Some(Page(u32::try_from(page).unwrap()))
    }

    /// A vCPU executes an instruction, or faults.
    fn execute(&self, world: &mut World, vcpu: usize, instruction: Instruction) {
        let (index, waiter) = self.place(vcpu);
        let site = &mut world.sites[index];
        if let Some(page) = Self::missing(site, instruction) {
            if self.claims && instruction.access == Access::Write && site.claim(waiter, page) {
                world.vcpus[vcpu].state = State::Resumed(instruction, page);
                return self.take_outputs(world, index);
            }
            world.vcpus[vcpu].state = State::Waits(instruction, page);
            if site.fault(waiter, page, instruction.access).is_err() {
                world.wrong = Some("a fault is refused");
            }
            return self.take_outputs(world, index);
        }
        for page in (0..site.around.views.len()).filter(|page| instruction.pages >> page & 1 != 0) {
            if instruction.access == Access::Write {
                world.writes[page] += 1;
                site.around.frames[page] = Some(world.writes[page]);
            }
        }
        world.vcpus[vcpu].state = State::Free;
        self.retire(world, vcpu);
    }

    /// Whether nothing happens any more unless a vCPU chooses.
    fn is_quiet(world: &World) -> bool {
        world.network.is_empty()
            && world
                .sites
                .iter()
                .all(|site| site.around.operations.is_empty() && site.coherence.deadline().is_none())
            && !world.vcpus.iter().any(|vcpu| matches!(vcpu.state, State::Resumed(..)))
    }
}

impl Model for Setting {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let site = |node| {
            let config = config(node, self.nodes, self.pages, self.frames);
            let of_first =
                Homes::new((0..self.nodes).map(|node| if node == 0 { self.pages.into() } else { 0 }));
            let homes = of_first.filter(|_| self.claims).unwrap_or_else(|| config.homes.clone());
            Site::new(Config { waiters: self.waiters, homes, ..config })
        };
        let vcpu = |number: usize| {
            let node = (number / usize::from(self.waiters)).min(self.instructions.len() - 1);
            Vcpu { state: State::Free, left: self.instructions[node] }
        };
        let vcpus = usize::from(self.nodes) * usize::from(self.waiters);
        std::vec![World {
            sites: (0..self.nodes).map(site).collect(),
            network: BTreeMap::new(),
            vcpus: (0..vcpus).map(vcpu).collect(),
            writes: std::vec![0; self.pages as usize],
            wrong: None,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (number, vcpu) in world.vcpus.iter().enumerate() {
            match vcpu.state {
                State::Free if vcpu.left > 0 => {
                    for pages in 1_u8..1 << self.pages {
                        for access in [Access::Read, Access::Write] {
                            if pages.is_power_of_two() || self.several && access == Access::Write {
                                actions.push(Action::Choose(number, Instruction { pages, access }));
                            }
                        }
                    }
                }
                State::Resumed(..) => actions.push(Action::Retry(number)),
                State::Free | State::Waits(..) => {}
            }
        }
        actions.extend(world.network.keys().copied().map(Action::Deliver));
        for (number, site) in world.sites.iter().enumerate() {
            let can = (0..site.around.operations.len()).filter(|index| site.can_perform(*index));
            actions.extend(can.map(|index| Action::Perform(number, index)));
            actions.extend(site.coherence.deadline().map(|_| Action::Wait(number)));
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut world = last.clone();
        match action {
            Action::Choose(vcpu, instruction) => {
                world.vcpus[vcpu].left -= 1;
                self.execute(&mut world, vcpu, instruction);
            }
            Action::Retry(vcpu) => {
                let State::Resumed(instruction, granted) = world.vcpus[vcpu].state else { return None };
                let (index, _) = self.place(vcpu);
                if !world.sites[index].around.views[granted.0 as usize].allows(instruction.access) {
                    world.wrong = Some("a page left before the instruction that it was granted for");
                }
                self.execute(&mut world, vcpu, instruction);
            }
            Action::Deliver(channel) => {
                let letters = world.network.get_mut(&channel)?;
                let letter = letters.pop_front()?;
                if letters.is_empty() {
                    world.network.remove(&channel);
                }
                let (from, to, _) = channel;
                let site = &mut world.sites[usize::from(to)];
                if site.receive(NodeId(from), letter).is_err() || site.coherence.errors().total() > 0 {
                    world.wrong = Some("a message is refused");
                }
                self.take_outputs(&mut world, to.into());
            }
            Action::Perform(index, place) => {
                let site = &mut world.sites[index];
                if self.broken == Broken::EarlyCompletion {
                    let (_, page, operation) = site.around.operations.remove(place);
                    site.around.perform(page, operation);
                } else if site.perform(place).is_err() {
                    world.wrong = Some("the end of an operation is refused");
                }
                self.take_outputs(&mut world, index);
            }
            Action::Wait(index) => {
                world.sites[index].wait();
                self.take_outputs(&mut world, index);
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        std::vec![
            Property::always("one writer or many readers", |_, world: &World| {
                (0..world.writes.len()).all(|page| {
                    let views = || world.sites.iter().map(|site| site.around.views[page]);
                    let writers = views().filter(|view| *view == View::Write).count();
                    let holders = views().filter(|view| *view != View::Nothing).count();
                    writers == 0 || holders == 1
                })
            }),
            Property::always("who can read sees the latest value", |_, world: &World| {
                world.sites.iter().all(|site| {
                    let values = (0_u32..).zip(&world.writes);
                    values
                        .map(|(page, latest)| (site.around.value(Page(page)), latest))
                        .all(|(value, latest)| value.is_none_or(|value| value == *latest))
                })
            }),
            Property::always("nothing is wrong", |_, world: &World| {
                world.wrong.is_none() && world.sites.iter().all(|site| site.around.wrong.is_none())
            }),
            Property::always("no request is left over", |_, world: &World| {
                !Self::is_quiet(world)
                    || world.vcpus.iter().all(|vcpu| vcpu.state == State::Free)
                        && world.sites.iter().all(|site| site.coherence.is_idle())
            }),
            Property::always("no frame is lost", |model: &Self, world: &World| {
                !Self::is_quiet(world)
                    || world.sites.iter().all(|site| {
                        let used = site.around.frames.iter().flatten().count();
                        used + site.coherence.free_frames() as usize == model.frames as usize
                    })
            }),
            Property::eventually("all instructions are executed", |_, world: &World| {
                world.vcpus.iter().all(|vcpu| vcpu.left == 0 && vcpu.state == State::Free)
            }),
        ]
    }
}

const SOUND: Setting = Setting {
    nodes: 2,
    pages: 1,
    frames: 8,
    waiters: 1,
    instructions: &[2],
    several: false,
    claims: false,
    broken: Broken::Nothing,
};

fn print<C: Checker<Setting>>(name: &str, begin: Instant, checker: &C) -> (usize, Vec<&'static str>) {
    let broken: Vec<_> = checker.discoveries().into_keys().collect();
    std::println!(
        "model {name}: {} states, {} generated, depth {}, {:.1} s; broken: {broken:?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begin.elapsed().as_secs_f64()
    );
    (checker.unique_state_count(), broken)
}

/// Explores all states; none of them breaks a property.
#[track_caller]
fn holds(name: &str, setting: Setting) {
    let begin = Instant::now();
    if std::env::var_os("SHOW").is_some() {
        // A short way to break each that can be broken.
        for (name, path) in setting.checker().spawn_bfs().join().discoveries() {
            std::println!("{name}:\n{:#?}\n{:#?}", path.last_state(), path.clone().into_actions());
        }
        return;
    }
    // What is broken may have endless ways: the first that is found will do.
    let checker = setting.checker().finish_when(HasDiscoveries::AnyFailures).spawn_dfs().join();
    let (states, broken) = print(name, begin, &checker);
    assert!(states > 1_000 && broken.is_empty(), "{broken:?} in {states} states");
}

const TWO_BY_TWO: Setting = Setting { pages: 2, several: true, ..SOUND };
const THREE_BY_ONE: Setting = Setting { nodes: 3, ..SOUND };

#[test]
fn two_nodes_and_one_page() {
    holds("2 nodes, 1 page, 5 instructions each", Setting { instructions: &[5], ..SOUND });
}

#[test]
fn two_nodes_and_two_pages() {
    holds("2 nodes, 2 pages, 3 and 2 instructions", Setting { instructions: &[3, 2], ..TWO_BY_TWO });
}

#[test]
fn three_nodes_and_one_page() {
    holds("3 nodes, 1 page, 3, 2 and 2 instructions", Setting { instructions: &[3, 2], ..THREE_BY_ONE });
}

#[test]
fn two_vcpus_a_node() {
    holds("2 nodes of 2 vCPUs, 1 page, 2 instructions each", Setting { waiters: 2, ..SOUND });
}

#[test]
fn nodes_that_are_short_of_frames() {
    let short = Setting { pages: 2, frames: 1, ..SOUND };
    holds("2 nodes of 1 frame, 2 pages, 3 and 2 instructions", Setting { instructions: &[3, 2], ..short });
    holds(
        "3 nodes of 1 frame, 2 pages, 2, 1 and 1 instructions",
        Setting { nodes: 3, instructions: &[2, 1], ..short },
    );
}

#[test]
fn pages_that_are_taken_at_once() {
    let claims = Setting { claims: true, ..TWO_BY_TWO };
    holds(
        "2 nodes, 2 pages of the first, taken at once, 3 and 2 instructions",
        Setting { instructions: &[3, 2], ..claims },
    );
    holds(
        "2 nodes of 1 frame, 2 pages of the first, taken at once, 3 and 2 instructions",
        Setting { instructions: &[3, 2], frames: 1, several: false, ..claims },
    );
}

#[test]
#[ignore = "takes minutes"]
fn more_of_all() {
    holds("2 nodes, 2 pages, 3 instructions each", Setting { instructions: &[3], ..TWO_BY_TWO });
    holds("3 nodes, 1 page, 3 instructions each", Setting { instructions: &[3], ..THREE_BY_ONE });
}

/// The checker finds what is broken on purpose. It looks at short ways first, for the broken have endless ones.
#[track_caller]
fn finds(broken: Broken, property: &'static str) {
    let begin = Instant::now();
    let checker = Setting { broken, ..SOUND }.checker();
    let checker = checker.finish_when(HasDiscoveries::AnyOf([property].into())).spawn_bfs().join();
    let (_, found) = print(&std::format!("{broken:?}"), begin, &checker);
    assert!(found.contains(&property), "{property}: {found:?}");
}

#[test]
fn an_acknowledgement_before_the_flush_is_found() {
    finds(Broken::EarlyCompletion, "one writer or many readers");
}

#[test]
fn a_writer_that_does_not_wait_for_readers_is_found() {
    finds(Broken::ForgottenReaders, "who can read sees the latest value");
}

#[test]
fn a_page_that_leaves_too_early_is_found() {
    finds(Broken::NoHold, "nothing is wrong");
}

#[test]
fn a_lost_acknowledgement_is_found() {
    finds(Broken::LostAcknowledgements, "no request is left over");
}
