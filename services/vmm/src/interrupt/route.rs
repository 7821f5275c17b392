//! From a destination to vCPUs.

use ipc::vcpu::MAX_VCPUS;

use super::{BROADCAST, DeliveryMode, Destination, Interrupt};

const _: () = assert!(MAX_VCPUS == u64::BITS as usize);

/// A set of vCPUs, by their numbers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct VcpuSet(u64);

impl VcpuSet {
    /// Nobody.
    pub const EMPTY: Self = Self(0);

    /// The vCPUs numbered 0 to `count` - 1; [`MAX_VCPUS`] at most.
    #[must_use]
    pub const fn first(count: usize) -> Self {
        if count >= MAX_VCPUS { Self(u64::MAX) } else { Self((1 << count) - 1) }
    }

    /// One vCPU; nobody when there can be none with this number.
    #[must_use]
    pub const fn one(vcpu: usize) -> Self {
        if vcpu < MAX_VCPUS { Self(1 << vcpu) } else { Self(0) }
    }

    /// Whether this vCPU is in it.
    #[must_use]
    pub const fn contains(self, vcpu: usize) -> bool {
        self.0 & Self::one(vcpu).0 != 0
    }

    /// How many they are.
    #[must_use]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether it is nobody.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl IntoIterator for VcpuSet {
    type Item = usize;
    type IntoIter = Vcpus;

    fn into_iter(self) -> Vcpus {
        Vcpus(self.0)
    }
}

/// The numbers of a [`VcpuSet`], in order.
#[derive(Clone, Debug)]
pub struct Vcpus(u64);

impl Iterator for Vcpus {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let vcpu = self.0.trailing_zeros();
        // Without a lowest bit there is none to take away, and it is over.
        self.0 &= self.0.checked_sub(1)?;
        Some(vcpu as usize)
    }
}

/// The logical x2APIC ID of an x2APIC ID: its cluster of 16 and its bit there (Intel SDM 3A, 11.12.10.2).
#[must_use]
pub const fn logical_id(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}

/// The vCPUs that messages can reach, by their x2APIC IDs, and whose turn it is where only one of several gets a message.
#[derive(Clone, Debug)]
pub struct Processors {
    ids: [u32; MAX_VCPUS],
    count: usize,
    /// The vCPU that is the first candidate of the next arbitration.
    turn: u32,
}

impl Processors {
    /// The vCPUs numbered as these IDs are listed. `None`: they are too many, not different, or one is [`BROADCAST`].
    #[must_use]
    pub fn new(ids: &[u32]) -> Option<Self> {
        let mut processors = Self { ids: [BROADCAST; MAX_VCPUS], count: ids.len(), turn: 0 };
        for (number, &id) in ids.iter().enumerate() {
            let place = processors.ids.get_mut(number)?;
            if id == BROADCAST || ids.iter().take(number).any(|&earlier| earlier == id) {
                return None;
            }
            *place = id;
        }
        Some(processors)
    }

    /// The vCPUs that get this message. `sender` is the vCPU that sends it, if it is one.
    ///
    /// A message of lowest priority that names several goes to the one whose `priority` is lowest; those without a
    /// priority do not take interrupts now. Among equals, turns are taken.
    pub fn resolve(
        &mut self,
        interrupt: &Interrupt,
        sender: Option<usize>,
        priority: impl FnMut(usize) -> Option<u8>,
    ) -> VcpuSet {
        let named = self.named(interrupt.destination, sender);
        match interrupt.delivery {
            DeliveryMode::LowestPriority if named.len() > 1 => self.arbitrate(named, priority),
            _ => named,
        }
    }

    /// The vCPUs that a destination names.
    #[must_use]
    pub fn named(&self, destination: Destination, sender: Option<usize>) -> VcpuSet {
        let all = VcpuSet::first(self.count);
        let sender = sender.map_or(VcpuSet::EMPTY, VcpuSet::one);
        match destination {
            Destination::Physical(BROADCAST) | Destination::Logical(BROADCAST) | Destination::All => all,
            Destination::Physical(id) => self.with_id(id),
            Destination::Logical(mask) => self.with_id_that(|id| {
                let logical = logical_id(id);
                logical >> 16 == mask >> 16 && logical & mask & 0xffff != 0
            }),
            Destination::Myself => sender,
            Destination::Others => all.without(sender),
        }
    }

    fn with_id(&self, id: u32) -> VcpuSet {
        // IDs usually are the numbers: then there is nothing to search.
        let same = id as usize;
        if same < self.count && self.ids.get(same) == Some(&id) {
            return VcpuSet::one(same);
        }
        self.with_id_that(|other| other == id)
    }

    fn with_id_that(&self, matches: impl Fn(u32) -> bool) -> VcpuSet {
        let with_numbers = self.ids.iter().take(self.count).enumerate();
        with_numbers
            .filter(|&(_, &id)| matches(id))
            .fold(VcpuSet::EMPTY, |set, (vcpu, _)| set.and(VcpuSet::one(vcpu)))
    }

    fn arbitrate(&mut self, candidates: VcpuSet, mut priority: impl FnMut(usize) -> Option<u8>) -> VcpuSet {
        let turn = self.turn as usize;
        let in_turn = Vcpus(candidates.0.rotate_right(self.turn)).map(|place| (place + turn) % MAX_VCPUS);
        let chosen = in_turn
            .filter_map(|vcpu| Some((priority(vcpu)?, vcpu)))
            // The first of several that are lowest.
            .min_by_key(|&(priority, _)| priority);
        let Some((_, vcpu)) = chosen else { return VcpuSet::EMPTY };
        self.turn = u32::try_from((vcpu + 1) % MAX_VCPUS).unwrap_or(0);
        VcpuSet::one(vcpu)
    }
}
