use std::vec::Vec;

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::cluster::ending::Refusal;
use crate::emulate::Encoding;
use crate::machine::End;

fn endings() -> Vec<Ending> {
    let encoding = Encoding { bytes: core::array::from_fn(|at| if at < 7 { 0x90 } else { 0 }), length: 7 };
    let ends = [
        End::PoweredOff,
        End::Reset,
        End::TripleFault,
        End::HaltedForEver,
        End::Unsupported(encoding),
        End::CodeNotMemory(0xfec0_0000),
        End::DeliveryNotMemory(u64::MAX),
        End::TablesNotMemory(0),
        End::MemoryLost(0x1234_5678_9abc),
        End::InvalidState,
        End::TaskSwitch,
        End::UnknownExit([0x99, 0, 0]),
    ];
    let refusals = [Refusal::Memory, Refusal::Machine, Refusal::Vcpus, Refusal::Time];
    ends.map(|end| Ending::Guest { end, vcpu: 63 })
        .into_iter()
        .chain(refusals.map(|why| Ending::Refused { node: 3, why }))
        .chain([
            Ending::Stopped,
            Ending::DidNotCome(2),
            Ending::Lost(65_535),
            Ending::CutOff(1),
            Ending::Failed(4),
        ])
        .collect()
}

fn all() -> Vec<Say> {
    let signal = Signal { vcpu: 7, delivery: DeliveryMode::Fixed, vector: 0x41, trigger: Trigger::Level };
    let read = Access { space: Space::Ports, address: 0xffff, bytes: 4, write: None };
    let write = Access { space: Space::IoApic, address: 0x10, bytes: 15, write: Some(u32::MAX) };
    let mut all = vec![
        Say::Prepare,
        Say::Ready,
        Say::Go(Go { start: u64::MAX - 1, unix_seconds: 0x8000_0001, tsc_khz: 0xffff_fffe }),
        Say::Signal(signal),
        Say::Signal(Signal { delivery: DeliveryMode::StartUp, trigger: Trigger::Edge, ..signal }),
        Say::Access { id: u32::MAX, access: read },
        Say::Access { id: 0, access: write },
        Say::Answer { id: 9, value: u32::MAX },
        Say::EndOfInterrupt { vector: 0xff },
        Say::Stop,
        Say::Stopped,
    ];
    for ending in endings() {
        all.extend([Say::Ended(ending), Say::Release { ending, power_off: true }]);
        all.push(Say::Release { ending, power_off: false });
    }
    all
}

#[test]
fn what_is_said_is_understood() {
    for (run, say) in (1..).zip(all()) {
        let message = Message { run: run | 0x8000_0000, say };
        assert_eq!(Message::decode(&message.encode()), Some(message));
    }
}

#[test]
fn the_layout_is_as_told() {
    let access = Access { space: Space::IoApic, address: 0x1234, bytes: 4, write: Some(0xdead_beef) };
    let message = Message { run: 0x0403_0201, say: Say::Access { id: 0x0807_0605, access } };
    let bytes = [1, 2, 3, 4, 5, 1, 4, 1, 5, 6, 7, 8, 0x34, 0x12, 0, 0, 0xef, 0xbe, 0xad, 0xde, 0, 0, 0, 0];
    assert_eq!(message.encode(), bytes);
    let go = Go { start: 0x0807_0605_0403_0201, unix_seconds: 0x1413_1211, tsc_khz: 0x1817_1615 };
    let bytes = Message { run: 0, say: Say::Go(go) }.encode();
    assert_eq!(bytes[8..16], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(bytes[16..], [0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
}

/// Whatever bytes come: what is understood is said in the same bytes.
#[test]
fn other_bytes_are_no_message() {
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let all = all();
    let (mut none, mut some) = (0, 0);
    for _ in 0..200_000 {
        let mut bytes =
            Message { run: random.random(), say: all[random.random_range(0..all.len())] }.encode();
        match random.random_range(0..3) {
            0 => random.fill_bytes(&mut bytes),
            1 => bytes[random.random_range(0..24)] = random.random(),
            _ => {
                bytes = [0; 24];
                bytes[4] = random.random_range(0..14);
                bytes[random.random_range(0..24)] = random.random();
            }
        }
        match Message::decode(&bytes) {
            Some(message) => {
                assert_eq!(message.encode(), bytes, "{message:?}");
                some += 1;
            }
            None => none += 1,
        }
    }
    assert!(none > 10_000 && some > 10_000, "{none} {some}");
}

#[test]
fn endings_are_told_in_words() {
    use ipc::guest::Share;
    let shares = [Share { node: 1, vcpus: 2, pages: 512 }, Share { node: 2, vcpus: 2, pages: 65_536 }];
    let told = |ending: Ending| format!("{}", ending.told(&shares, 60));
    assert_eq!(told(Ending::Guest { end: End::PoweredOff, vcpu: 3 }), "powered off");
    assert_eq!(
        told(Ending::Guest { end: End::TripleFault, vcpu: 3 }),
        "crashed: triple fault (vCPU 3, which is 1 of node 2)"
    );
    assert_eq!(told(Ending::DidNotCome(3)), "refused: node 3 did not come within 60 s");
    assert_eq!(told(Ending::Lost(2)), "crashed: node 2 is lost, and with it 2 vCPUs and 256 MiB");
    for ending in endings() {
        let told = told(ending);
        assert!(told.len() < 128 && !told.is_empty(), "{told}");
    }
}
