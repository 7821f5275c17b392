use super::*;
use crate::address::{FrameNumber, GuestPhysAddr};
use crate::paging::host::{self, HostFormat};
use crate::paging::nested::GuestAccess;
use crate::paging::{Entry, Format, Level};

const READ: GuestAccess = GuestAccess::Read;
const WRITE: GuestAccess = GuestAccess::ReadWrite;

#[test]
fn entries_say_what_the_manual_says() {
    let page = |access, level| NptFormat::encode(Entry::Page(FrameNumber(0x1_4000_0000), access), level);
    assert_eq!(page(READ, Level::One), 0x0000_1400_0000_0065);
    assert_eq!(page(WRITE, Level::One), 0x0000_1400_0000_0067);
    assert_eq!(page(READ, Level::Two), 0x0000_1400_0000_00e5);
    assert_eq!(page(WRITE, Level::Three), 0x0000_1400_0000_00e7);
    for level in [Level::Two, Level::Three, Level::Four] {
        assert_eq!(NptFormat::encode(Entry::Table(FrameNumber(5)), level), 0x5027);
    }
    assert_eq!(NptFormat::encode(Entry::Absent, Level::One), 0);
    assert_eq!(NptFormat::decode(!1, Level::One), Entry::Absent);
}

#[test]
fn what_is_encoded_is_decoded() {
    for level in [Level::One, Level::Two, Level::Three] {
        for access in [READ, WRITE] {
            let entry = Entry::Page(FrameNumber(0xf_ffff_c000_0000 >> 12), access);
            assert_eq!(NptFormat::decode(NptFormat::encode(entry, level), level), entry);
        }
    }
    for level in [Level::Two, Level::Three, Level::Four] {
        let entry = Entry::Table(FrameNumber(0xff_ffff_ffff));
        assert_eq!(NptFormat::decode(NptFormat::encode(entry, level), level), entry);
    }
}

/// The window of a service shares these tables.
#[test]
fn a_host_table_says_the_same() {
    let cache = host::Cache::WriteBack;
    let owner = host::Owner::User;
    for level in [Level::One, Level::Two, Level::Three] {
        for access in [READ, WRITE] {
            let entry = NptFormat::encode(Entry::Page(FrameNumber(1 << 18), access), level);
            // Without its own prohibition, as the level above prohibits it.
            let executes = host::HostAttributes { access: host::Access::ReadExecute, owner, cache };
            assert_eq!(HostFormat::decode(entry, level), Entry::Page(FrameNumber(1 << 18), executes));
            let access = if access == WRITE { host::Access::ReadWrite } else { host::Access::Read };
            let host = Entry::Page(FrameNumber(1 << 18), host::HostAttributes { access, owner, cache });
            assert_eq!(HostFormat::encode(host, level) & !(1 << 63), entry);
        }
    }
    for level in [Level::Two, Level::Three, Level::Four] {
        let entry = Entry::Table(FrameNumber(7));
        assert_eq!(HostFormat::decode(NptFormat::encode(entry, level), level), Entry::Table(FrameNumber(7)));
        assert_eq!(NptFormat::encode(entry, level), HostFormat::encode(Entry::Table(FrameNumber(7)), level));
    }
}

#[test]
fn four_levels_translate_48_bits() {
    assert_eq!(NptFormat::input(GuestPhysAddr((1 << 48) - 1)), Some((1 << 48) - 1));
    assert_eq!(NptFormat::input(GuestPhysAddr(1 << 48)), None);
    assert_eq!(NptFormat::input(GuestPhysAddr(u64::MAX)), None);
    assert_eq!(NptFormat::address(1 << 47), GuestPhysAddr(1 << 47));
}
