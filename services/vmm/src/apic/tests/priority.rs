//! Which interrupt is next, against the manual's rules written down plainly (Intel SDM 3A, 11.8.3 to 11.8.5).

use std::collections::{BTreeMap, BTreeSet};

use super::*;

#[derive(Default)]
struct Model {
    requested: BTreeSet<u8>,
    in_service: BTreeSet<u8>,
    triggers: BTreeMap<u8, bool>,
    task_priority: u8,
}

impl Model {
    fn processor_priority(&self) -> u8 {
        let serviced = self.in_service.last().map_or(0, |vector| vector / 16);
        let task = self.task_priority / 16;
        let sub_class = if task >= serviced { self.task_priority % 16 } else { 0 };
        task.max(serviced) * 16 + sub_class
    }

    fn deliverable(&self) -> Option<u8> {
        self.requested.iter().rev().copied().find(|vector| vector / 16 > self.processor_priority() / 16)
    }

    fn register(set: &BTreeSet<u8>, index: u32) -> u64 {
        set.iter().filter(|&&vector| u32::from(vector) / 32 == index).map(|vector| 1 << (vector % 32)).sum()
    }
}

#[test]
fn random_sequences_follow_the_rules() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for round in 0..200 {
        let mut apic = enabled();
        let mut model = Model::default();
        let (lowest, highest) = if round % 2 == 0 { (0, 255) } else { (0x3e, 0x52) };
        for _ in 0..1_000 {
            match rng.random_range(0..10) {
                0..4 => {
                    let vector = rng.random_range(lowest..=highest);
                    let is_level = rng.random();
                    let trigger = if is_level { Trigger::Level } else { Trigger::Edge };
                    let is_new = vector >= 16 && model.requested.insert(vector);
                    assert_eq!(apic.accept(vector, trigger), is_new);
                    if vector >= 16 {
                        model.triggers.insert(vector, is_level);
                    }
                }
                4..7 => {
                    let expected = model.deliverable();
                    assert_eq!(apic.acknowledge(), expected);
                    if let Some(vector) = expected {
                        model.requested.remove(&vector);
                        model.in_service.insert(vector);
                    }
                }
                7..9 => {
                    let ended = model.in_service.pop_last();
                    let effect = match ended {
                        Some(vector) if model.triggers[&vector] => Effect::EndOfInterrupt(vector),
                        _ => Effect::None,
                    };
                    assert_eq!(apic.write(0x80b, 0, 0), Ok(effect));
                }
                _ => {
                    model.task_priority = if rng.random() { 0 } else { rng.random() };
                    if rng.random() {
                        write(&mut apic, 0x808, model.task_priority.into());
                    } else {
                        apic.set_task_priority(model.task_priority);
                    }
                }
            }
            assert_eq!(apic.deliverable(), model.deliverable());
            assert_eq!(apic.read(0x80a, 0), Ok(model.processor_priority().into()));
            assert_eq!(apic.read(0x808, 0), Ok(model.task_priority.into()));
            let level: BTreeSet<u8> =
                model.triggers.iter().filter(|&(_, &is_level)| is_level).map(|(&vector, _)| vector).collect();
            for index in 0..8 {
                assert_eq!(apic.read(0x810 + index, 0), Ok(Model::register(&model.in_service, index)));
                assert_eq!(apic.read(0x818 + index, 0), Ok(Model::register(&level, index)));
                assert_eq!(apic.read(0x820 + index, 0), Ok(Model::register(&model.requested, index)));
            }
        }
    }
}

#[test]
fn sets_of_vectors() {
    for vector in 0..=255u8 {
        let mut set = Vectors::default();
        assert_eq!(set.highest(), None);
        set.insert(vector);
        assert_eq!(set.highest(), Some(vector));
        set.insert(0);
        assert_eq!(set.highest(), Some(vector));
        assert!(set.contains(vector) && set.contains(0));
        set.remove(vector);
        assert_eq!(set.highest(), (vector != 0).then_some(0));
    }
}

/// The manual's example: a class that is served holds back its own and lower ones.
#[test]
fn a_class_in_service_holds_back_its_own() {
    let mut apic = enabled();
    apic.accept(0x45, Trigger::Edge);
    assert_eq!(apic.acknowledge(), Some(0x45));
    apic.accept(0x4f, Trigger::Edge);
    apic.accept(0x31, Trigger::Edge);
    assert_eq!(apic.deliverable(), None);
    apic.accept(0x50, Trigger::Edge);
    assert_eq!(apic.acknowledge(), Some(0x50));
    // The end is that of the highest.
    write(&mut apic, 0x80b, 0);
    assert_eq!(apic.read(0x812, 0), Ok(1 << 5));
    write(&mut apic, 0x80b, 0);
    assert_eq!(apic.acknowledge(), Some(0x4f));
    write(&mut apic, 0x80b, 0);
    write(&mut apic, 0x808, 0x30);
    assert_eq!(apic.deliverable(), None);
    write(&mut apic, 0x808, 0x2f);
    assert_eq!(apic.deliverable(), Some(0x31));
}
