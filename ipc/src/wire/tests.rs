//! Good frames, and each way to be a bad one.

use super::*;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const HERE: Identity = Identity { cluster: 7, epoch: 3, node: 1, incarnation: 9 };
const THERE: Identity = Identity { node: 2, ..HERE };
const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);

const MESSAGE: [u8; MESSAGE_BYTES] =
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24];

const MAC_HERE: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

fn frame(payload_bytes: u16) -> FrameHeader {
    let message = Message {
        acknowledged: Class::Request,
        transmission: 3,
        fragment: Fragment { index: 2, last: false },
        payload_bytes,
        sequence: 5,
        acknowledgement: 4,
        message: MESSAGE,
        ..Message::new(Kind::EchoRequest, Class::Page)
    };
    FrameHeader::new(THERE, MAC, MAC_HERE, message).seal(0x1234_5678)
}

fn parse(header: &FrameHeader, payload: usize) -> Result<Parsed, WireError> {
    FrameHeader::parse(header.as_bytes(), HEADER_BYTES + payload)
}

/// Like `frame(0)` with one field changed and the checksum made to fit.
fn altered(change: impl FnOnce(&mut UnumHeader)) -> FrameHeader {
    let mut header = frame(0);
    change(&mut header.unum);
    header.unum.integrity[0] = header.checksum().into();
    header
}

#[test]
fn crc_is_castagnolis() {
    // RFC 3720 B.4, and the check value of the CRC catalogues.
    assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(0, &[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(0, &[0xff; 32]), 0x62a8_ab43);
    assert_eq!(crc32c(crc32c(0, b"1234"), b"56789"), 0xe306_9283);
    assert_eq!(crc32c(0, b""), 0);
}

#[test]
fn a_frame_survives_the_wire() {
    for payload in [0, 8, 4096] {
        let parsed = parse(&frame(payload), usize::from(payload)).unwrap();
        assert_eq!(parsed.payload_bytes, usize::from(payload));
        assert_eq!((parsed.kind, parsed.class, parsed.from), (Kind::EchoRequest, Class::Page, MAC));
        assert_eq!(parsed.payload_checksum, 0x1234_5678);
        assert_eq!(parsed.header.sequence.get(), 5);
        assert_eq!(parsed.header.acknowledgement.get(), 4);
        assert_eq!(
            (parsed.acknowledged, parsed.fragment),
            (Class::Request, Fragment { index: 2, last: false })
        );
        assert_eq!((parsed.header.transmission, parsed.header.message), (3, MESSAGE));
        assert_eq!(parsed.header.tag(), 0x0807_0605_0403_0201);
        assert_eq!(tag(parsed.header.tag())[..9], [1, 2, 3, 4, 5, 6, 7, 8, 0]);
        parsed.check_address(&HERE, MAC_HERE).unwrap();
    }
}

#[test]
fn the_layout_is_little_endian_and_fixed() {
    let header = frame(0x123);
    let bytes = header.as_bytes();
    assert_eq!(bytes[12..14], [0x88, 0xb5]);
    assert_eq!(bytes[14..18], [3, 0, 2 | 3 << 4 | 2 << 6, 3]);
    assert_eq!(bytes[18..24], [7, 0, 3, 0, 0, 0]);
    assert_eq!(bytes[24..28], [2, 0, 0x23, 0x01 | 2 << 5 | 1 << 7]);
    assert_eq!(bytes[28..36], [5, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(bytes[36..60], MESSAGE);
    assert_eq!(bytes[64..68], [0x78, 0x56, 0x34, 0x12]);
}

/// The frame that `docs/wire-protocol.md` shows.
#[test]
fn the_documented_question_is_what_is_sent() {
    let identity = Identity { cluster: 1, epoch: 1, node: 2, incarnation: 639 };
    let station = |node| MacAddress([0x52, 0x54, 0, 0, 0, node]);
    let message = Message { sequence: 7, ..Message::new(Kind::ClockRequest, Class::Control) };
    let header = FrameHeader::new(identity, station(2), station(1), message).seal(0);
    let shown = include_str!("../../../docs/wire-protocol.md");
    let (_, shown) = shown.split_once("Node 2 asks node 1 what time it is:\n\n```text\n").unwrap();
    let (shown, _) = shown.split_once("```").unwrap();
    let is_byte = |word: &&str| word.len() == 2;
    let lines = shown.lines().map(|line| line.split("   ").next().unwrap());
    let bytes: std::vec::Vec<u8> = lines
        .flat_map(|line| line.split_whitespace().filter(is_byte))
        .map(|word| u8::from_str_radix(word, 16).unwrap())
        .collect();
    assert_eq!(header.as_bytes(), bytes);
}

#[test]
fn every_wrong_field_is_named() {
    let mut wrong = frame(0);
    wrong.ethernet.ether_type = BigU16::new(0x0800);
    assert_eq!(parse(&wrong, 0), Err(WireError::EtherType(0x0800)));
    let mut wrong = frame(0);
    wrong.ethernet.source = ALL_STATIONS;
    assert_eq!(parse(&wrong, 0), Err(WireError::EthernetSource(ALL_STATIONS)));
    let mut wrong = frame(0);
    wrong.unum.sequence = 6.into();
    assert_eq!(parse(&wrong, 0), Err(WireError::HeaderChecksum));
    assert_eq!(parse(&altered(|h| h.version = 2), 0), Err(WireError::Version(2)));
    assert_eq!(parse(&altered(|h| h.key = 1), 0), Err(WireError::Key(1)));
    assert_eq!(parse(&altered(|h| h.kind = 0), 0), Err(WireError::Kind(0)));
    assert_eq!(parse(&altered(|h| h.kind = 0x3f), 0), Err(WireError::Kind(0x3f)));
    assert_eq!(parse(&altered(|h| h.source = NO_NODE.into()), 0), Err(WireError::Source(NO_NODE)));
    assert_eq!(parse(&frame(10), 9), Err(WireError::PayloadLength { said: 10, there: 9 }));
    assert_eq!(parse(&frame(10), 11), Err(WireError::PayloadLength { said: 10, there: 11 }));
    assert_eq!(parse(&frame(7), 7), Err(WireError::PayloadLength { said: 7, there: 7 }));
    assert_eq!(parse(&frame(4097), 4097), Err(WireError::PayloadLength { said: 4097, there: 4097 }));
    for bytes in 0..HEADER_BYTES {
        assert_eq!(
            FrameHeader::parse(&frame(0).as_bytes()[..bytes], bytes),
            Err(WireError::Truncated { bytes })
        );
        assert_eq!(FrameHeader::parse(frame(0).as_bytes(), bytes), Err(WireError::Truncated { bytes }));
    }
}

#[test]
fn a_frame_for_others_is_not_ours() {
    let check =
        |change: fn(&mut UnumHeader)| parse(&altered(change), 0).unwrap().check_address(&HERE, MAC_HERE);
    assert_eq!(check(|h| h.cluster = 8.into()), Err(WireError::Cluster(8)));
    assert_eq!(check(|h| h.epoch = 2.into()), Err(WireError::Epoch(2)));
    assert_eq!(check(|h| h.source = HERE.node.into()), Err(WireError::OwnSource));
    assert_eq!(parse(&frame(0), 0).unwrap().check_address(&HERE, MAC), Err(WireError::Destination(MAC_HERE)));
    let to_all = FrameHeader::new(THERE, MAC, ALL_STATIONS, Message::new(Kind::Hello, Class::Control));
    assert_eq!(parse(&to_all.seal(0), 0).unwrap().check_address(&HERE, MAC_HERE), Ok(()));
}

#[test]
fn one_flipped_bit_is_found() {
    let good = frame(0);
    // All but the payload's checksum, which is compared with the payload.
    for bit in 0..(HEADER_BYTES - 4) * 8 {
        let mut bytes: [u8; HEADER_BYTES] = good.as_bytes().try_into().unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(FrameHeader::parse(&bytes, HEADER_BYTES).is_err(), "bit {bit}");
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut random = ChaCha8Rng::seed_from_u64(0x88b5);
    for _ in 0..100_000 {
        let mut bytes = [0; 96];
        random.fill(&mut bytes[..]);
        if random.random() {
            // Past the first checks, so that the later ones see random bytes too.
            bytes[12..15].copy_from_slice(&[0x88, 0xb5, VERSION]);
            bytes[6] &= !1;
            bytes[17] = KEY_NONE;
        }
        let length = random.random_range(0..=96);
        let total = random.random_range(0..=8192);
        assert!(FrameHeader::parse(&bytes[..length], total).is_err());
    }
}

proptest! {
    #[test]
    fn what_parses_says_what_was_sent(
        payload_bytes in 8u16..=4096, sequence: u32, acknowledgement: u32, message: [u8; MESSAGE_BYTES], transmission: u8,
        number in 2u8..=10, class in 0u8..4, acknowledged in 0u8..4, index in 0u8..4, last: bool, checksum: u32,
    ) {
        let sent = Message {
            kind: Kind::from_number(number).unwrap(), class: Class::from_bits(class),
            acknowledged: Class::from_bits(acknowledged), transmission, fragment: Fragment { index, last },
            payload_bytes, sequence, acknowledgement, message,
        };
        let header = FrameHeader::new(THERE, MAC, ALL_STATIONS, sent).seal(checksum);
        let parsed = parse(&header, usize::from(payload_bytes)).unwrap();
        let Parsed { kind, class, acknowledged, fragment, header: said, .. } = parsed;
        let again = Message {
            kind, class, acknowledged, transmission: said.transmission, fragment,
            payload_bytes: u16::try_from(parsed.payload_bytes).unwrap(), sequence: said.sequence.get(),
            acknowledgement: said.acknowledgement.get(), message: said.message,
        };
        prop_assert_eq!(again, sent);
        prop_assert_eq!(said, header.unum);
        prop_assert_eq!(parsed.payload_checksum, checksum);
    }
}
