//! Who is a member: one agreed view after another, each with its epoch.

use heapless::Vec;
use ipc::wire::MacAddress;

/// The most members of a view.
pub const MAX_MEMBERS: usize = 64;

/// One life of a node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Member {
    /// Its number.
    pub node: u16,
    /// Which life.
    pub incarnation: u16,
    /// Its card.
    pub mac: MacAddress,
}

/// A set of members that all of them agreed on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct View {
    /// Which: 0 for none, else more than that of any former one.
    pub epoch: u32,
    /// Who formed the first of this series of views: node and incarnation.
    pub origin: u32,
    members: Vec<Member, MAX_MEMBERS>,
}

impl View {
    /// No view.
    pub const NONE: Self = Self { epoch: 0, origin: 0, members: Vec::new() };

    /// A view of these members, in whatever order; none when a number is there twice or there are too many.
    #[must_use]
    pub fn new(epoch: u32, origin: u32, members: impl IntoIterator<Item = Member>) -> Option<Self> {
        let mut view = Self { epoch, origin, members: Vec::new() };
        for member in members {
            view.members.push(member).ok()?;
        }
        view.members.sort_unstable_by_key(|member| member.node);
        let twice = view.members.iter().zip(view.members.iter().skip(1)).any(|(a, b)| a.node == b.node);
        (!twice).then_some(view)
    }

    /// Whether it is one.
    #[must_use]
    pub const fn is_some(&self) -> bool {
        self.epoch != 0
    }

    /// The members, by number.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether this life is a member.
    #[must_use]
    pub fn contains(&self, life: Member) -> bool {
        self.members.contains(&life)
    }

    /// The member with this number.
    #[must_use]
    pub fn get(&self, node: u16) -> Option<Member> {
        self.members.iter().copied().find(|member| member.node == node)
    }

    /// Whether the lives of which `is_there` speak for this view: more than half of its members, or half with the
    /// lowest among them. Of two disjoint sets at most one does.
    #[must_use]
    pub fn is_majority(&self, is_there: impl Fn(Member) -> bool) -> bool {
        let count = self.members.iter().filter(|member| is_there(**member)).count();
        let has_lowest = self.members.first().is_some_and(|lowest| is_there(*lowest));
        count * 2 > self.members.len() || (count * 2 == self.members.len() && has_lowest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u16) -> Member {
        Member { node, incarnation: 0, mac: MacAddress([2, 0, 0, 0, 0, 1]) }
    }

    #[test]
    fn of_two_disjoint_sets_at_most_one_speaks_for_a_view() {
        for size in 1..=7 {
            let view = View::new(1, 0, (1..=size).rev().map(member)).unwrap();
            for set in 0u32..1 << size {
                let has = |set: u32| move |member: Member| set >> (member.node - 1) & 1 == 1;
                let both = view.is_majority(has(set)) && view.is_majority(has(!set));
                assert!(
                    !both && (view.is_majority(has(set)) || view.is_majority(has(!set))),
                    "{size} {set:b}"
                );
            }
        }
    }

    #[test]
    fn a_number_is_one_members() {
        assert_eq!(View::new(1, 0, [member(1), member(2), member(1)]), None);
        assert_eq!(View::new(1, 0, (0..65).map(member)), None);
        assert!(View::new(1, 0, (0..64).map(member)).unwrap().contains(member(63)));
    }
}
