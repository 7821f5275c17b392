//! Which vCPUs move, when it is known what each wants and what it is owed.

use heapless::Vec;
use ipc::abi::MAX_CORES;
use ipc::vcpu::MAX_VCPUS;

use super::{ACTIVE, MARGIN, MOST_MOVES, Microseconds, Move, Moves, Permille, ROTATE_AT, SLACK};

/// Whether a vCPU may move.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Mobility {
    Free,
    /// It moved a short while ago.
    Rests,
}

/// A vCPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Candidate {
    pub(super) number: usize,
    pub(super) home: usize,
    pub(super) demand: Permille,
    /// `None` when it has what it wants.
    pub(super) lag: Option<Microseconds>,
    pub(super) mobility: Mobility,
}

impl Candidate {
    fn may_move(&self) -> bool {
        self.mobility == Mobility::Free
    }
}

/// A core.
#[derive(Clone, Copy, Debug, Default)]
struct Core {
    load: Permille,
    owed: Owed,
}

/// What vCPUs that do not have what they want are owed.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    lags: Microseconds,
    vcpus: i64,
}

impl Owed {
    fn of(vcpu: &Candidate) -> Self {
        vcpu.lag.map_or(Self::default(), |lags| Self { lags, vcpus: 1 })
    }

    fn without(self, other: Self) -> Self {
        Self { lags: self.lags - other.lags, vcpus: self.vcpus - other.vcpus }
    }

    fn mean(self) -> Option<Microseconds> {
        self.lags.checked_div(self.vcpus)
    }
}

/// All active vCPUs and all cores at one moment.
#[derive(Debug)]
pub(super) struct View {
    vcpus: Vec<Candidate, MAX_VCPUS>,
    cores: Vec<Core, MAX_CORES>,
}

impl View {
    /// Cores that services load so much.
    pub(super) fn new(services: impl Iterator<Item = Permille>) -> Self {
        let cores = services.take(MAX_CORES).map(|load| Core { load, ..Core::default() }).collect();
        Self { vcpus: Vec::new(), cores }
    }

    /// Adds a vCPU; one that wants next to nothing counts for nothing.
    pub(super) fn add(&mut self, vcpu: Candidate) {
        let Some(core) = self.cores.get_mut(vcpu.home).filter(|_| vcpu.demand >= ACTIVE) else { return };
        core.load += vcpu.demand;
        let owed = Owed::of(&vcpu);
        core.owed.lags += owed.lags;
        core.owed.vcpus += owed.vcpus;
        // There is room for MAX_VCPUS.
        let _ = self.vcpus.push(vcpu);
    }

    /// The moves to make now.
    pub(super) fn choose(&mut self) -> Moves {
        let mut moves = Moves::new();
        while moves.len() < MOST_MOVES
            && let Some(chosen) = self.balance()
        {
            // There is room for MOST_MOVES.
            let _ = moves.push(chosen);
            self.apply(chosen);
        }
        if moves.is_empty() { self.rotate() } else { moves }
    }

    fn apply(&mut self, chosen: Move) {
        let Some(vcpu) = self.vcpus.iter_mut().find(|vcpu| vcpu.number == chosen.vcpu) else { return };
        for (core, sign) in [(vcpu.home, -1), (chosen.core, 1)] {
            if let Some(core) = self.cores.get_mut(core) {
                core.load += sign * vcpu.demand;
            }
        }
        (vcpu.home, vcpu.mobility) = (chosen.core, Mobility::Rests);
    }

    fn core(&self, number: usize) -> Core {
        self.cores.get(number).copied().unwrap_or_default()
    }

    /// The move that takes most off the larger load of two cores, if it is worth it; of several the one of the vCPU that
    /// is owed most.
    fn balance(&self) -> Option<Move> {
        let (least, there) = self.cores.iter().enumerate().min_by_key(|(_, core)| core.load)?;
        let gain = |vcpu: &Candidate| {
            let here = self.core(vcpu.home).load;
            here - (here - vcpu.demand).max(there.load + vcpu.demand)
        };
        let movable = self.vcpus.iter().filter(|vcpu| vcpu.may_move() && vcpu.home != least);
        let (_, best) = movable
            .map(|vcpu| (gain(vcpu), vcpu))
            .filter(|(gain, _)| *gain >= MARGIN)
            .max_by_key(|(gain, vcpu)| (*gain, vcpu.lag.unwrap_or(0)))?;
        Some(Move { vcpu: best.number, core: least })
    }

    /// The change of places that is most due, if any: by one move, or else by two.
    fn rotate(&self) -> Moves {
        self.hand_over().or_else(|| self.trade()).unwrap_or_default()
    }

    /// One vCPU moves from a more loaded core to a less loaded one, which is then the more loaded: those that it leaves
    /// gain what those that it joins lose.
    fn hand_over(&self) -> Option<Moves> {
        let (mut best, mut most) = (None, ROTATE_AT - 1);
        for vcpu in self.vcpus.iter().filter(|vcpu| vcpu.may_move()) {
            let here = self.core(vcpu.home);
            let Some(left) = here.owed.without(Owed::of(vcpu)).mean() else { continue };
            for (core, there) in self.cores.iter().enumerate() {
                let difference = here.load - there.load;
                let turns = difference >= SLACK && 2 * vcpu.demand > difference;
                if !turns || vcpu.demand > difference + SLACK {
                    continue;
                }
                if let Some(behind) = there.owed.mean().map(|joined| left - joined)
                    && behind > most
                {
                    (best, most) = (Some(Move { vcpu: vcpu.number, core }), behind);
                }
            }
        }
        best.map(|chosen| Moves::from_iter([chosen]))
    }

    /// A vCPU of a more loaded core and one of a less loaded core trade places.
    fn trade(&self) -> Option<Moves> {
        let (mut best, mut most) = (None, ROTATE_AT - 1);
        let movable = || self.vcpus.iter().filter(|vcpu| vcpu.may_move());
        let owed = || movable().filter_map(|vcpu| Some((vcpu, vcpu.lag?)));
        for (behind, lag) in owed() {
            for (ahead, other_lag) in owed() {
                let difference = self.core(behind.home).load - self.core(ahead.home).load;
                let shift = behind.demand - ahead.demand;
                if difference < SLACK || shift < -SLACK || shift > difference + SLACK {
                    continue;
                }
                if lag - other_lag > most {
                    let moves = [(behind.number, ahead.home), (ahead.number, behind.home)];
                    (best, most) = (Some(moves), lag - other_lag);
                }
            }
        }
        best.map(|moves| moves.map(|(vcpu, core)| Move { vcpu, core }).into_iter().collect())
    }
}
