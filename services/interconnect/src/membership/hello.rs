//! What a node says of itself, again and again: what it is, which view it has installed, and which it has promised to
//! install next or proposes. All of membership is in this one kind of frame; losing one costs time alone.

use heapless::Vec;
use ipc::wire::MacAddress;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::view::{MAX_MEMBERS, Member, View};

/// The node is about to leave.
const FLAG_LEAVING: u8 = 1;
/// The node has been quiet for long enough to agree to a view.
const FLAG_READY: u8 = 2;
/// The node hears enough of its view's members to act in it.
const FLAG_QUORATE: u8 = 4;
const FLAGS: u8 = FLAG_LEAVING | FLAG_READY | FLAG_QUORATE;

/// The payload's fixed part; the members of both views follow.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    /// Which image the node runs: a hash.
    image: U64,
    /// Which processor features it offers: a hash.
    features: U64,
    /// How many nodes the cluster is configured for; 0 when that is not known.
    expected: U16,
    /// Which life of the node.
    incarnation: U16,
    /// A member that the node cannot reach, or `NO_NODE`.
    complaint: U16,
    /// Whose proposal it has promised.
    promised_by: U16,
    promised_epoch: U32,
    installed_epoch: U32,
    /// Of both views.
    origin: U32,
    flags: u8,
    installed_count: u8,
    proposed_count: u8,
    reserved: u8,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    node: U16,
    incarnation: U16,
    mac: MacAddress,
}

const _: () = assert!(size_of::<Fixed>() == 40);
const _: () = assert!(size_of::<Record>() == 10);

/// The most bytes of a hello.
pub const MAX_HELLO: usize = size_of::<Fixed>() + 2 * MAX_MEMBERS * size_of::<Record>();
// It fits a link of 1,500 bytes.
const _: () = assert!(MAX_HELLO + size_of::<ipc::wire::UnumHeader>() <= 1500);

/// What all members must have in common.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Profile {
    /// Which image the node runs: a hash.
    pub image: u64,
    /// Which processor features it offers: a hash.
    pub features: u64,
    /// How many nodes the cluster is configured for, if that is known.
    pub expected: Option<u16>,
}

/// What a node has promised: to install no view below this epoch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Promise {
    /// The epoch.
    pub epoch: u32,
    /// Who proposed it.
    pub by: u16,
}

/// What a node says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hello {
    /// What it is.
    pub profile: Profile,
    /// Which life of it.
    pub incarnation: u16,
    /// A member that it cannot reach.
    pub complaint: u16,
    /// What it has promised.
    pub promise: Promise,
    /// The view that it has installed.
    pub installed: View,
    /// The members that it proposes, under its promise's epoch; no view when it proposes none.
    pub proposed: View,
    /// Whether it is about to leave.
    pub leaving: bool,
    /// Whether it may agree to a view.
    pub ready: bool,
    /// Whether it acts in the view that it has installed.
    pub quorate: bool,
}

impl Hello {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8, MAX_HELLO> {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let count = |view: &View| u8::try_from(view.members().len()).unwrap_or(0);
        let origin = if self.proposed.is_some() { self.proposed.origin } else { self.installed.origin };
        let fixed = Fixed {
            image: self.profile.image.into(),
            features: self.profile.features.into(),
            expected: self.profile.expected.unwrap_or(0).into(),
            incarnation: self.incarnation.into(),
            complaint: self.complaint.into(),
            promised_by: self.promise.by.into(),
            promised_epoch: self.promise.epoch.into(),
            installed_epoch: self.installed.epoch.into(),
            origin: origin.into(),
            flags: flag(self.leaving, FLAG_LEAVING)
                | flag(self.ready, FLAG_READY)
                | flag(self.quorate, FLAG_QUORATE),
            installed_count: count(&self.installed),
            proposed_count: count(&self.proposed),
            reserved: 0,
        };
        let mut bytes = Vec::new();
        // There is room for all of it: see `MAX_HELLO`.
        let _ = bytes.extend_from_slice(fixed.as_bytes());
        for member in self.installed.members().iter().chain(self.proposed.members()) {
            let Member { node, incarnation, mac } = *member;
            let record = Record { node: node.into(), incarnation: incarnation.into(), mac };
            let _ = bytes.extend_from_slice(record.as_bytes());
        }
        bytes
    }

    /// What these bytes say; `None` when they are no hello.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (fixed, rest) = Fixed::read_from_prefix(bytes).ok()?;
        let (installed, proposed) = (usize::from(fixed.installed_count), usize::from(fixed.proposed_count));
        let records = <[Record]>::ref_from_bytes(rest).ok()?;
        let (installed_epoch, promised_epoch) = (fixed.installed_epoch.get(), fixed.promised_epoch.get());
        let is_valid = fixed.reserved == 0
            && fixed.flags & !FLAGS == 0
            && records.len() == installed + proposed
            && (installed_epoch == 0) == (installed == 0)
            && (proposed == 0 || promised_epoch > installed_epoch);
        if !is_valid {
            return None;
        }
        let (installed, proposed) = records.split_at_checked(installed)?;
        let view = |epoch, records: &[Record]| {
            let members = records.iter().map(|record| Member {
                node: record.node.get(),
                incarnation: record.incarnation.get(),
                mac: record.mac,
            });
            View::new(if records.is_empty() { 0 } else { epoch }, fixed.origin.get(), members)
        };
        Some(Self {
            profile: Profile {
                image: fixed.image.get(),
                features: fixed.features.get(),
                expected: Some(fixed.expected.get()).filter(|&expected| expected != 0),
            },
            incarnation: fixed.incarnation.get(),
            complaint: fixed.complaint.get(),
            promise: Promise { epoch: promised_epoch, by: fixed.promised_by.get() },
            installed: view(installed_epoch, installed)?,
            proposed: view(promised_epoch, proposed)?,
            leaving: fixed.flags & FLAG_LEAVING != 0,
            ready: fixed.flags & FLAG_READY != 0,
            quorate: fixed.flags & FLAG_QUORATE != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lives() -> impl Strategy<Value = std::collections::BTreeMap<u16, (u16, [u8; 6])>> {
        prop::collection::btree_map(any::<u16>(), any::<(u16, [u8; 6])>(), 0..=MAX_MEMBERS)
    }

    fn view(epoch: u32, origin: u32, lives: &std::collections::BTreeMap<u16, (u16, [u8; 6])>) -> View {
        let members = lives.iter().map(|(&node, &(incarnation, mac))| Member {
            node,
            incarnation,
            mac: MacAddress(mac),
        });
        View::new(if lives.is_empty() { 0 } else { epoch }, origin, members).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard(
            installed in lives(), proposed in lives(), epoch in 1..u32::MAX, origin: u32,
            numbers: (u64, u64, u16, u16, u16), flags: (bool, bool, bool),
        ) {
            let (image, features, incarnation, complaint, by) = numbers;
            let (leaving, ready, quorate) = flags;
            let hello = Hello {
                profile: Profile { image, features, expected: Some(by).filter(|&n| n != 0) },
                incarnation, complaint, leaving, ready, quorate,
                promise: Promise { epoch: epoch + 1, by },
                installed: view(epoch, origin, &installed),
                proposed: view(epoch + 1, origin, &proposed),
            };
            prop_assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        }

        #[test]
        fn any_bytes_are_a_hello_that_says_them_or_none(mut bytes: [u8; 80], length in 0usize..=80, fits: bool) {
            if fits {
                // Past the first checks: the members of both views make up the length.
                bytes[36] &= FLAGS;
                (bytes[37], bytes[38], bytes[39]) = (3, 1, 0);
            }
            if let Some(hello) = Hello::decode(&bytes[..length]) {
                let again = Hello::decode(&hello.encode());
                prop_assert_eq!(again, Some(hello));
            }
        }
    }

    #[test]
    fn a_hello_that_contradicts_itself_is_none() {
        let life = Member { node: 1, incarnation: 2, mac: MacAddress([2; 6]) };
        let hello = Hello {
            profile: Profile { image: 1, features: 2, expected: None },
            incarnation: 2,
            complaint: 0xffff,
            promise: Promise { epoch: 6, by: 1 },
            installed: View::new(5, 9, [life]).unwrap(),
            proposed: View::new(6, 9, [life]).unwrap(),
            leaving: false,
            ready: true,
            quorate: true,
        };
        let bytes = hello.encode();
        assert_eq!(Hello::decode(&bytes), Some(hello));
        let with = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            Hello::decode(&bytes)
        };
        // Reserved fields; an epoch without members; a proposal that is not newer; counts that are not the length.
        for (at, value) in [(39, 1), (36, 8), (28, 0), (24, 5), (37, 0), (37, 2), (38, 0), (38, 255)] {
            assert_eq!(with(at, value), None, "{at}");
        }
        for length in 0..bytes.len() {
            assert_eq!(Hello::decode(&bytes[..length]), None);
        }
    }
}
