//! The life of a guest that spans nodes, from the first node's wait for the others to the last page given back: a state machine
//! without clock and I/O of its own, of which each node has one.
//!
//! ```text
//! first node                              another
//! gathers: all are members
//! begins                  Prepare ->
//!                                         begins
//!                         <- Ready
//! loads memory, runs      Go ->           runs
//! ...                     <- Ended        is over
//! stops its vCPUs         Stop ->         stops its vCPUs
//!                         <- Stopped
//! gives memory back       Release ->      gives memory back
//! ```
//!
//! Memory is given back only when all vCPUs are stopped and all platforms are back in their loops: until then a platform may wait
//! for a page that another node has. No answer to `Release` is needed, because what one node tells another comes in order: the
//! next `Prepare` finds it done.
//!
//! * `message`: what the nodes say to each other.
//! * `ending`: how a guest ended.
//! * `queue`: messages that wait.
//! * `shares`: which node is where, and what is seen of it.

pub mod ending;
pub mod message;
pub mod queue;
mod shares;
#[cfg(test)]
mod tests;

use alloc::collections::VecDeque;

use ipc::abi::NEVER;
use ipc::guest::{MAX_NODES, Share, Shares};
use rt::time::Clock;

use ending::{Ending, Refusal};
use message::{ANY_RUN, Go, Message, Say};
pub use shares::{Life, Places, Sight, first_vcpu, vcpu_at};

/// How often to look who is there while something is awaited, in milliseconds.
const SOON_MS: u64 = 100;
/// The same while the guest runs.
const CALM_MS: u64 = 1000;
/// How long the first node waits until the others' vCPUs are stopped, in milliseconds.
const STOP_MS: u64 = 5000;
/// How long another waits to hear that memory is not needed any more, in milliseconds.
const RELEASE_MS: u64 = 10_000;
/// How long it waits when the first node is lost: until all others have seen that, too, and stopped their vCPUs.
const ALONE_MS: u64 = 2 * CALM_MS;
/// How long a node may hear too little of the others, in milliseconds. It begins after the time of suspicion (1.5 s), and both
/// together are what a member must be silent to be taken for dead. Meanwhile nobody takes the others' place, so that a
/// guest whose node was only slow loses nothing but time.
const GRACE_MS: u64 = 1500;
/// Who was silent so long is named as lost when a node is cut off, in milliseconds.
const SILENT_MS: u32 = 1000;

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Send a message to a node.
    Send(u16, Message),
    /// Tell that so many seconds at most are waited for the shares of this set.
    Waits(Places),
    /// Have the service of memory begin; then [`Cluster::begun`].
    Begin(u32),
    /// Make the machine and load its memory; then [`Cluster::loaded`] or [`Cluster::end`].
    Load,
    /// Make the machine, unless it is loaded, and start its vCPUs; [`Cluster::end`] if that fails.
    Run(Go),
    /// Stop the vCPUs.
    Halt,
    /// Have the service of memory give all back.
    Release,
    /// The guest is over.
    Over {
        /// How it ended.
        ending: Ending,
        /// Whether the node is powered off now.
        power_off: bool,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// There is no guest.
    Idle,
    /// First node: waits until all are members.
    Gathers { until: u64, told: bool },
    /// Its memory's service is about to begin.
    Begins,
    /// First: the others begin; these have.
    Prepares { ready: Places, until: u64 },
    /// Another: it has begun, and says so when it knows the time.
    Begun { said: bool },
    /// First: its machine is about to be loaded.
    Loads,
    /// The guest runs.
    Runs,
    /// First: waits until the vCPUs of all are stopped; those of these are.
    Stops { ending: Ending, stopped: Places, until: u64 },
    /// Another: its vCPUs are stopped, its memory is still there.
    Halted { ending: Ending, until: u64 },
}

/// A node's part in the life of guests.
#[derive(Debug)]
pub struct Cluster {
    shares: Shares,
    /// Which of them is this node's; the first one's node is the first node.
    place: usize,
    patience_s: u16,
    clock: Clock,
    state: State,
    run: u32,
    /// Whether the nodes are powered off after this guest.
    last: bool,
    /// For each share the life of its node that takes part, once it was seen.
    lives: [Option<u16>; MAX_NODES],
    sight: Sight,
    /// Since when this node may not act.
    cut_off_since: Option<u64>,
    actions: VecDeque<Action>,
}

impl Cluster {
    /// The part of the node whose share is at this place. `patience_s` is how long the first node waits for the others, twice:
    /// until they are members, and until they have begun.
    #[must_use]
    pub fn new(shares: &Shares, place: usize, patience_s: u16, clock: Clock) -> Self {
        Self {
            shares: shares.clone(),
            place,
            patience_s,
            clock,
            state: State::Idle,
            run: ANY_RUN,
            last: false,
            lives: [None; MAX_NODES],
            sight: Sight::default(),
            cut_off_since: None,
            actions: VecDeque::new(),
        }
    }

    /// Which of the shares is this node's.
    #[must_use]
    pub const fn place(&self) -> usize {
        self.place
    }

    /// Whether this is the first node.
    #[must_use]
    pub const fn is_first(&self) -> bool {
        self.place == 0
    }

    /// Whether something is to be done.
    #[must_use]
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// What is to be done next.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The guest that runs here, by its start's number: its platforms' messages are of it.
    #[must_use]
    pub const fn running(&self) -> Option<u32> {
        if matches!(self.state, State::Runs) { Some(self.run) } else { None }
    }

    /// Whether the service of memory has begun with a guest that is not over.
    #[must_use]
    pub const fn has_memory(&self) -> bool {
        !matches!(self.state, State::Idle | State::Gathers { .. } | State::Begins)
    }

    /// Whether no guest is here, none starts and none ends.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    /// How long after a look the next is due, in ticks; [`NEVER`] when none is.
    #[must_use]
    pub fn period(&self) -> u64 {
        match self.state {
            State::Idle => NEVER,
            State::Runs => self.clock.milliseconds_to_ticks(CALM_MS),
            _ => self.clock.milliseconds_to_ticks(SOON_MS),
        }
    }

    /// Starts a guest, on the first node. `run` is hardly ever the number of an earlier start; with `last` the nodes are powered
    /// off when it is over. `false`: there is one, or this is not the first node.
    pub fn start(&mut self, now: u64, run: u32, last: bool) -> bool {
        if !self.is_idle() || !self.is_first() {
            return false;
        }
        let is_free = run != ANY_RUN && run != self.run;
        self.run = if is_free { run } else { self.run.wrapping_add(1).max(1) };
        self.last = last;
        self.state = State::Gathers { until: self.after(now, self.patience_ms()), told: false };
        true
    }

    /// This platform has failed and was restarted: a guest there may have been is over, whatever its number. The memory that it has
    /// here is given back as that of every other.
    pub fn restarted(&mut self, now: u64, last: bool) {
        (self.state, self.run, self.last) = (State::Runs, ANY_RUN, last);
        self.end(now, Ending::Failed(self.own()));
    }

    /// Takes a look at who is there.
    pub fn see(&mut self, now: u64, sight: Sight) {
        self.sight = sight;
        if self.sight.may_act {
            self.cut_off_since = None;
        } else if self.cut_off_since.is_none() {
            self.cut_off_since = Some(now);
        }
        match self.state {
            State::Idle => return,
            State::Gathers { .. } => return self.gather(now),
            _ => {}
        }
        let lost = self.lost(now);
        if let Some(ending) = lost {
            self.end(now, ending);
        }
        match &mut self.state {
            State::Prepares { ready, until } if now >= *until => {
                let ready = *ready;
                let late = (1..self.shares.len()).find(|&place| !ready.has(place)).unwrap_or(0);
                self.end(now, Ending::DidNotCome(self.node(late)));
            }
            State::Begun { .. } => self.say_ready(),
            State::Stops { stopped, .. } => {
                for place in 0..self.shares.len() {
                    // Who is lost runs nothing of this guest that anybody sees.
                    if self.lives.get(place).copied().flatten()
                        != self.sight.life(place).map(|life| life.incarnation)
                    {
                        stopped.add(place);
                    }
                }
                self.conclude(now);
            }
            State::Halted { ending, until } if now >= *until => {
                let ending = *ending;
                self.over(ending, false);
            }
            State::Halted { until, .. } if lost_first(lost, &self.shares) => {
                *until = (*until).min(now.saturating_add(self.clock.milliseconds_to_ticks(ALONE_MS)));
            }
            _ => {}
        }
    }

    /// The first node looks for the others.
    fn gather(&mut self, now: u64) {
        let State::Gathers { until, told } = self.state else { return };
        let mut missing = Places::default();
        let places = 0..self.shares.len();
        places.clone().filter(|&place| self.sight.life(place).is_none()).for_each(|place| missing.add(place));
        if missing == Places::default() && self.sight.may_act && self.sight.knows_time {
            for place in places {
                if let Some(life) = self.lives.get_mut(place) {
                    *life = self.sight.life(place).map(|life| life.incarnation);
                }
            }
            self.state = State::Begins;
            self.actions.push_back(Action::Begin(self.run));
        } else if now >= until {
            // Without one that is missing it is this one that may not act.
            let place = missing.iter().next().unwrap_or(0);
            self.end(now, Ending::DidNotCome(self.node(place)));
        } else if !told {
            self.state = State::Gathers { until, told: true };
            self.actions.push_back(Action::Waits(missing));
        }
    }

    /// Whether the guest cannot go on, because a node of it is not there any more.
    fn lost(&mut self, now: u64) -> Option<Ending> {
        for place in 0..self.shares.len() {
            let there = self.sight.life(place).map(|life| life.incarnation);
            let node = self.node(place);
            match self.lives.get_mut(place) {
                // One that was not seen yet is on its way: this node's view may be the older one.
                Some(life @ None) => *life = there,
                Some(&mut life) if life != there => return Some(Ending::Lost(node)),
                _ => {}
            }
        }
        let since = self.cut_off_since?;
        if now < self.after(since, GRACE_MS) {
            return None;
        }
        // Where two are all, who hears nothing cannot know better than that the other is lost.
        let is_silent = |place: usize| {
            place != self.place && self.sight.life(place).is_some_and(|life| life.silent_ms >= SILENT_MS)
        };
        let silent = (0..self.shares.len()).find(|&place| is_silent(place));
        Some(silent.map_or(Ending::CutOff(self.own()), |place| Ending::Lost(self.node(place))))
    }

    /// Takes a message of the guest's life; `false` when it is of another guest, or nobody who may say so.
    pub fn receive(&mut self, now: u64, from: u16, message: &Message) -> bool {
        let Some(place) = self.shares.iter().position(|share| share.node == from) else { return false };
        let is_of_this =
            !self.is_idle() && (message.run == self.run || message.run == ANY_RUN || self.run == ANY_RUN);
        if self.is_first() {
            return is_of_this && self.receive_as_first(now, place, message);
        }
        if place != 0 {
            return false;
        }
        match (message.say, &self.state) {
            (Say::Prepare, _) if message.run != ANY_RUN => {
                if !self.is_idle() {
                    // The first node does not know of that guest any more.
                    self.actions.push_back(Action::Halt);
                    self.over(Ending::Failed(from), false);
                }
                self.run = message.run;
                self.lives = [None; MAX_NODES];
                // What was before is the loss of an earlier guest.
                self.cut_off_since = self.cut_off_since.map(|_| now);
                self.state = State::Begins;
                self.actions.push_back(Action::Begin(self.run));
            }
            (Say::Go(go), State::Begun { .. }) if is_of_this => {
                self.state = State::Runs;
                self.actions.push_back(Action::Run(go));
            }
            (Say::Stop, State::Idle) => self.tell_first(message.run, Say::Stopped),
            (Say::Stop, _) if is_of_this => {
                let ending = match self.state {
                    State::Halted { ending, .. } => ending,
                    // The first node has not said how; it does when memory is given back.
                    _ => Ending::Stopped,
                };
                self.halt(now, ending);
                self.tell_first(message.run, Say::Stopped);
            }
            (Say::Release { ending, power_off }, _) if is_of_this => {
                self.actions.push_back(Action::Halt);
                self.over(ending, power_off);
            }
            _ => return false,
        }
        true
    }

    fn receive_as_first(&mut self, now: u64, place: usize, message: &Message) -> bool {
        if place == 0 {
            return false;
        }
        match (message.say, &mut self.state) {
            (Say::Ready, State::Prepares { ready, .. }) => {
                ready.add(place);
                let ready = *ready;
                if (1..self.shares.len()).all(|place| ready.has(place)) {
                    self.state = State::Loads;
                    self.actions.push_back(Action::Load);
                }
            }
            (Say::Stopped, State::Stops { stopped, .. }) => {
                stopped.add(place);
                self.conclude(now);
            }
            // From one that forgot it: it was not asked to take part yet.
            (Say::Ended(_), State::Gathers { .. } | State::Begins) => {}
            (Say::Ended(ending), _) => self.end(now, ending),
            _ => return false,
        }
        true
    }

    /// The service of memory has begun, or refuses.
    pub fn begun(&mut self, now: u64, has: bool) {
        if self.state != State::Begins {
            return;
        }
        if !has {
            self.end(now, Ending::Refused { node: self.own(), why: Refusal::Memory });
        } else if self.is_first() {
            let until = self.after(now, self.patience_ms());
            self.state = State::Prepares { ready: Places::default(), until };
            self.tell_others(self.run, Say::Prepare);
        } else {
            self.state = State::Begun { said: false };
            self.say_ready();
        }
    }

    fn say_ready(&mut self) {
        // The guest runs as soon as all have said so. After a cut this one may be a member again for the first node, and not know yet.
        let can_run = self.sight.knows_time && self.sight.may_act;
        if can_run && self.state == (State::Begun { said: false }) {
            self.state = State::Begun { said: true };
            self.tell_first(self.run, Say::Ready);
        }
    }

    /// The first node's machine is made, and the guest's memory is loaded.
    pub fn loaded(&mut self, go: Go) {
        if self.state == State::Loads {
            self.state = State::Runs;
            self.tell_others(self.run, Say::Go(go));
            self.actions.push_back(Action::Run(go));
        }
    }

    /// The guest is over here, however it came to that; the first reason counts.
    pub fn end(&mut self, now: u64, ending: Ending) {
        match self.state {
            State::Idle | State::Stops { .. } | State::Halted { .. } => {}
            State::Gathers { .. } => {
                self.state = State::Idle;
                self.actions.push_back(Action::Over { ending, power_off: self.powers_off(ending) });
            }
            _ if self.is_first() => {
                self.actions.push_back(Action::Halt);
                // An end can come before the others were asked to take part; they answer all the same.
                self.tell_others(self.run, Say::Stop);
                let until = self.after(now, STOP_MS);
                self.state = State::Stops { ending, stopped: Places::one(0), until };
                if let (Ending::Lost(node), State::Stops { stopped, .. }) = (ending, &mut self.state)
                    && let Some(place) = self.shares.iter().position(|share| share.node == node)
                {
                    stopped.add(place);
                }
                self.conclude(now);
            }
            _ => {
                self.halt(now, ending);
                self.tell_first(self.run, Say::Ended(ending));
            }
        }
    }

    /// Another node's vCPUs are stopped, and it waits for the first node's word.
    fn halt(&mut self, now: u64, ending: Ending) {
        if !matches!(self.state, State::Halted { .. }) {
            self.actions.push_back(Action::Halt);
            self.state = State::Halted { ending, until: self.after(now, RELEASE_MS) };
        }
    }

    /// The first node: when nobody's vCPUs run any more, memory is given back.
    fn conclude(&mut self, now: u64) {
        let State::Stops { ending, stopped, until } = self.state else { return };
        if now < until && !(0..self.shares.len()).all(|place| stopped.has(place)) {
            return;
        }
        let power_off = self.powers_off(ending);
        self.tell_others(self.run, Say::Release { ending, power_off });
        self.over(ending, power_off);
    }

    fn over(&mut self, ending: Ending, power_off: bool) {
        self.state = State::Idle;
        self.actions.extend([Action::Release, Action::Over { ending, power_off }]);
    }

    const fn powers_off(&self, ending: Ending) -> bool {
        self.last && !matches!(ending, Ending::Stopped)
    }

    fn tell_others(&mut self, run: u32, say: Say) {
        let others = self.shares.iter().skip(1);
        self.actions.extend(others.map(|share| Action::Send(share.node, Message { run, say })));
    }

    fn tell_first(&mut self, run: u32, say: Say) {
        self.actions.push_back(Action::Send(self.node(0), Message { run, say }));
    }

    /// The number of a share's node.
    fn node(&self, place: usize) -> u16 {
        self.shares.get(place).map_or(0, |share| share.node)
    }

    fn own(&self) -> u16 {
        self.node(self.place)
    }

    fn patience_ms(&self) -> u64 {
        u64::from(self.patience_s) * 1000
    }

    fn after(&self, now: u64, milliseconds: u64) -> u64 {
        now.saturating_add(self.clock.milliseconds_to_ticks(milliseconds))
    }
}

/// Whether nobody is left who would say that the guest's memory is not needed any more.
fn lost_first(ending: Option<Ending>, shares: &[Share]) -> bool {
    match ending {
        Some(Ending::Lost(node)) => shares.first().is_some_and(|first| first.node == node),
        Some(Ending::CutOff(_)) => true,
        _ => false,
    }
}
