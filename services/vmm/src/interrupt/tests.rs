use std::vec::Vec;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use ipc::vcpu::MAX_VCPUS;

const WIDTHS: [DestinationWidth; 2] = [DestinationWidth::Narrow, DestinationWidth::Extended];

fn fixed(destination: Destination, vector: u8) -> Interrupt {
    Interrupt { destination, delivery: DeliveryMode::Fixed, vector, trigger: Trigger::Edge }
}

#[test]
fn commands_as_linux_writes_them() {
    // A reschedule interrupt to one CPU, in physical and in cluster mode.
    assert_eq!(Interrupt::from_command(0x12 << 32 | 0xfd), Some(fixed(Destination::Physical(0x12), 0xfd)));
    assert_eq!(
        Interrupt::from_command(0x0001_0004 << 32 | 0x8fb),
        Some(fixed(Destination::Logical(0x0001_0004), 0xfb))
    );
    // To all but itself.
    assert_eq!(Interrupt::from_command(0xc_00fd), Some(fixed(Destination::Others, 0xfd)));
    // INIT asserted (level), then de-asserted, then SIPI for page 0x9a.
    let init = Interrupt::from_command(5 << 32 | 0xc500).unwrap();
    assert_eq!((init.delivery, init.destination), (DeliveryMode::Init, Destination::Physical(5)));
    assert_eq!(Interrupt::from_command(5 << 32 | 0x8500), None);
    let start = Interrupt::from_command(5 << 32 | 0x69a).unwrap();
    assert_eq!((start.delivery, start.vector), (DeliveryMode::StartUp, 0x9a));
    let nmi = Interrupt::from_command(5 << 32 | 0x400).unwrap();
    assert_eq!((nmi.delivery, nmi.has_illegal_vector()), (DeliveryMode::Nmi, false));
}

#[test]
fn a_command_never_is_level_triggered_and_goes_with_its_shorthand() {
    for mode in 0..8u64 {
        for shorthand in 0..4u64 {
            for flags in 0..8u64 {
                let command =
                    7 << 32 | shorthand << 18 | (flags & 3) << 14 | flags >> 2 << 11 | mode << 8 | 0x40;
                let deasserts = mode == 5 && flags & 3 == 2;
                let valid = match (mode, shorthand) {
                    (0, _) => true,
                    (1 | 2 | 4 | 5 | 6, 0 | 3) => !deasserts,
                    _ => false,
                };
                let interrupt = Interrupt::from_command(command);
                assert_eq!(interrupt.is_some(), valid, "{command:#x}");
                assert!(interrupt.is_none_or(|interrupt| interrupt.trigger == Trigger::Edge));
            }
        }
    }
}

#[test]
fn a_redirection_entry_says_where_how_and_when() {
    // Level, active low, lowest priority, logical, vector 0x31, to 0x05.
    let entry = 0x05 << 56 | 0xa931;
    for width in WIDTHS {
        assert_eq!(
            Interrupt::from_redirection_entry(entry, width),
            Some(Interrupt {
                destination: Destination::Logical(5),
                delivery: DeliveryMode::LowestPriority,
                vector: 0x31,
                trigger: Trigger::Level,
            })
        );
    }
    // 15 bits: 0x1234.
    let entry = 0x34 << 56 | 0x12 << 49 | 0x31;
    let to = |width| Interrupt::from_redirection_entry(entry, width).unwrap().destination;
    assert_eq!(to(DestinationWidth::Narrow), Destination::Physical(0x34));
    assert_eq!(to(DestinationWidth::Extended), Destination::Physical(0x1234));
    // 0xff: everyone, or an ID.
    let to = |width| Interrupt::from_redirection_entry(0xff << 56 | 0x31, width).unwrap().destination;
    assert_eq!(to(DestinationWidth::Narrow), Destination::Physical(BROADCAST));
    assert_eq!(to(DestinationWidth::Extended), Destination::Physical(0xff));
}

#[test]
fn only_what_has_a_vector_can_be_level_triggered() {
    for (mode, delivery) in (0..8).zip([
        Some(DeliveryMode::Fixed),
        Some(DeliveryMode::LowestPriority),
        Some(DeliveryMode::Smi),
        None,
        Some(DeliveryMode::Nmi),
        Some(DeliveryMode::Init),
        None,
        Some(DeliveryMode::ExtInt),
    ]) {
        let register = mode << 8 | 0xc040;
        let entry = Interrupt::from_redirection_entry(register.into(), DestinationWidth::Narrow);
        let msi = Interrupt::from_msi(0xfee0_0000, register, DestinationWidth::Narrow);
        assert_eq!(entry, msi);
        assert_eq!(entry.map(|interrupt| interrupt.delivery), delivery);
        let is_level = entry.is_some_and(|interrupt| interrupt.trigger == Trigger::Level);
        assert_eq!(is_level, mode < 2);
    }
}

#[test]
fn msis() {
    let msi = |address, data, width| Interrupt::from_msi(address, data, width);
    let narrow = DestinationWidth::Narrow;
    assert_eq!(msi(0xfee0_3000, 0x4041, narrow), Some(fixed(Destination::Physical(3), 0x41)));
    assert_eq!(msi(0xfee0_3004, 0x41, narrow), Some(fixed(Destination::Logical(3), 0x41)));
    // The redirection hint: one of those that are named.
    let hinted = msi(0xfee0_300c, 0x41, narrow).unwrap();
    assert_eq!(hinted.delivery, DeliveryMode::LowestPriority);
    // 15 bits: 0x7f in bits 5 to 11.
    let address = 0xfee0_3000 | 0x7f << 5;
    assert_eq!(msi(address, 0x41, narrow), Some(fixed(Destination::Physical(3), 0x41)));
    assert_eq!(
        msi(address, 0x41, DestinationWidth::Extended),
        Some(fixed(Destination::Physical(0x7f03), 0x41))
    );
    assert_eq!(msi(0xfeef_f000, 0x41, narrow), Some(fixed(Destination::Physical(BROADCAST), 0x41)));
    // Level-triggered: assert and take back.
    assert_eq!(msi(0xfee0_0000, 0xc041, narrow).unwrap().trigger, Trigger::Level);
    assert_eq!(msi(0xfee0_0000, 0x8041, narrow), None);
    // Not the address of interrupts.
    for address in [0, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, u64::MAX] {
        assert_eq!(msi(address, 0x41, narrow), None);
    }
}

#[test]
fn logical_ids_have_a_cluster_and_a_bit() {
    assert_eq!(logical_id(0), 1);
    assert_eq!(logical_id(0x1f), 0x0001_8000);
    assert_eq!(logical_id(0x000f_fff2), 0xffff_0004);
}

/// The definition, one vCPU at a time.
fn is_named(id: u32, number: usize, destination: Destination, sender: Option<usize>) -> bool {
    match destination {
        Destination::Physical(to) => to == id || to == u32::MAX,
        Destination::Logical(to) => {
            to == u32::MAX
                || (to >> 16) == (id / 16) & 0xffff && (0..16).any(|bit| to >> bit & 1 == 1 && id % 16 == bit)
        }
        Destination::Myself => sender == Some(number),
        Destination::All => true,
        Destination::Others => sender != Some(number),
    }
}

#[test]
fn those_named_are_those_of_the_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..2_000 {
        let count = rng.random_range(0..=MAX_VCPUS);
        let mut ids: Vec<u32> = if rng.random() {
            (0..).take(count).collect()
        } else {
            (0..count).map(|_| rng.random_range(0..200)).collect()
        };
        if rng.random_ratio(1, 10) && count > 0 {
            ids[0] = rng.random_range(0..u32::MAX);
        }
        let mut unique = ids.clone();
        unique.sort_unstable();
        unique.dedup();
        let processors = Processors::new(&ids);
        assert_eq!(processors.is_some(), unique.len() == ids.len());
        let Some(processors) = processors else { continue };
        for _ in 0..50 {
            let sender = if count > 0 && rng.random() { Some(rng.random_range(0..count)) } else { None };
            let id = match rng.random_range(0..4) {
                0 => rng.random_range(0..220),
                1 => u32::MAX,
                2 => rng.random(),
                _ => ids.first().copied().unwrap_or(0),
            };
            let destination = match rng.random_range(0..6) {
                0 => Destination::Physical(id),
                1 => Destination::Logical(rng.random_range(0..14) << 16 | rng.random_range(0..0x1_0000)),
                2 => Destination::Logical(id),
                3 => Destination::Myself,
                4 => Destination::All,
                _ => Destination::Others,
            };
            let named: Vec<usize> = processors.named(destination, sender).into_iter().collect();
            let expected: Vec<usize> =
                (0..count).filter(|&number| is_named(ids[number], number, destination, sender)).collect();
            assert_eq!(named, expected, "{destination:?} from {sender:?} among {ids:?}");
        }
    }
}

#[test]
fn too_many_or_reserved_ids_are_refused() {
    let ids: Vec<u32> = (0..).take(MAX_VCPUS + 1).collect();
    assert!(Processors::new(&ids).is_none());
    assert!(Processors::new(&ids[..MAX_VCPUS]).is_some());
    assert!(Processors::new(&[0, BROADCAST]).is_none());
}

#[test]
fn lowest_priority_is_one_of_the_lowest_in_turn() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for _ in 0..500 {
        let count = rng.random_range(2..=MAX_VCPUS);
        let ids: Vec<u32> = (0..).take(count).collect();
        let mut processors = Processors::new(&ids).unwrap();
        let mut last = MAX_VCPUS - 1;
        for _ in 0..50 {
            let priorities: Vec<Option<u8>> =
                (0..count).map(|_| rng.random_ratio(3, 4).then(|| rng.random_range(0..3))).collect();
            let interrupt = Interrupt {
                delivery: DeliveryMode::LowestPriority,
                ..fixed(
                    Destination::Logical(rng.random_range(0..4) << 16 | rng.random_range(0..0x1_0000)),
                    0x40,
                )
            };
            let named = processors.named(interrupt.destination, None);
            let chosen = processors.resolve(&interrupt, None, |vcpu| priorities[vcpu]);
            if named.len() < 2 {
                assert_eq!(chosen, named);
                continue;
            }
            let lowest = named.into_iter().filter_map(|vcpu| priorities[vcpu]).min();
            let expected = (1..=MAX_VCPUS)
                .map(|step| (last + step) % MAX_VCPUS)
                .find(|&vcpu| lowest.is_some() && named.contains(vcpu) && priorities[vcpu] == lowest);
            assert_eq!(chosen.into_iter().next(), expected);
            assert_eq!(chosen.len(), u32::from(expected.is_some()));
            last = expected.unwrap_or(last);
        }
    }
}

#[test]
fn equals_share_evenly() {
    let mut processors = Processors::new(&[0, 1, 2, 3, 4]).unwrap();
    let interrupt =
        Interrupt { delivery: DeliveryMode::LowestPriority, ..fixed(Destination::Logical(0b10110), 0x40) };
    let mut shares = [0; 5];
    for _ in 0..300 {
        for vcpu in processors.resolve(&interrupt, None, |_| Some(0)) {
            shares[vcpu] += 1;
        }
    }
    assert_eq!(shares, [0, 100, 100, 0, 100]);
}

#[test]
fn random_messages_never_panic_and_keep_their_promises() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..200_000 {
        let (high, low): (u64, u32) = (rng.random(), rng.random());
        let width = WIDTHS[rng.random_range(0..2)];
        let messages = [
            Interrupt::from_command(high),
            Interrupt::from_redirection_entry(high, width),
            Interrupt::from_msi(0xfee0_0000 | high & 0xf_ffff, low, width),
        ];
        for interrupt in messages.into_iter().flatten() {
            assert!(interrupt.trigger == Trigger::Edge || interrupt.delivery.has_vector());
        }
        let limit = if width == DestinationWidth::Narrow { 0xff } else { 0x8000 };
        if let Some(Interrupt { destination: Destination::Physical(id) | Destination::Logical(id), .. }) =
            messages[1]
        {
            assert!(id < limit || id == BROADCAST && width == DestinationWidth::Narrow);
        }
    }
}
