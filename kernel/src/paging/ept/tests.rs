use super::*;
use crate::address::{FrameNumber, GuestPhysAddr};
use crate::paging::nested::GuestAccess;
use crate::paging::{Entry, Format, Level};

const READ: GuestAccess = GuestAccess::Read;
const WRITE: GuestAccess = GuestAccess::ReadWrite;

#[test]
fn entries_say_what_the_manual_says() {
    let page = |access, level| EptFormat::encode(Entry::Page(FrameNumber(0x1_4000_0000), access), level);
    assert_eq!(page(READ, Level::One), 0x0000_1400_0000_0075);
    assert_eq!(page(WRITE, Level::One), 0x0000_1400_0000_0077);
    assert_eq!(page(READ, Level::Two), 0x0000_1400_0000_00f5);
    assert_eq!(page(WRITE, Level::Three), 0x0000_1400_0000_00f7);
    for level in [Level::Two, Level::Three, Level::Four] {
        assert_eq!(EptFormat::encode(Entry::Table(FrameNumber(5)), level), 0x5007);
    }
    assert_eq!(EptFormat::encode(Entry::Absent, Level::One), 0);
    assert_eq!(EptFormat::decode(!7, Level::One), Entry::Absent);
}

#[test]
fn what_is_encoded_is_decoded() {
    for level in [Level::One, Level::Two, Level::Three] {
        for access in [READ, WRITE] {
            let entry = Entry::Page(FrameNumber(0xf_ffff_c000_0000 >> 12), access);
            assert_eq!(EptFormat::decode(EptFormat::encode(entry, level), level), entry);
        }
    }
    for level in [Level::Two, Level::Three, Level::Four] {
        let entry = Entry::Table(FrameNumber(0xff_ffff_ffff));
        assert_eq!(EptFormat::decode(EptFormat::encode(entry, level), level), entry);
    }
}

#[test]
fn the_pointer_says_what_the_manual_says() {
    assert_eq!(ept_pointer(FrameNumber(0x1234)), 0x0123_401e);
}

#[test]
fn four_levels_translate_48_bits() {
    assert_eq!(EptFormat::input(GuestPhysAddr((1 << 48) - 1)), Some((1 << 48) - 1));
    assert_eq!(EptFormat::input(GuestPhysAddr(1 << 48)), None);
    assert_eq!(EptFormat::address(1 << 47), GuestPhysAddr(1 << 47));
}
