//! Whatever exits there are, and whatever they say.

use std::collections::BTreeMap;
use std::vec::Vec;

use ipc::vcpu::{Event, EventKind, HALT};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zerocopy::IntoBytes;

use super::{CODE, Disposition, ExitReason, FIXED, Guest, ICR, INIT, NMI, RFLAGS_IF, START_UP, Walks};

/// What comes of exits.
const KINDS: [&str; 4] = ["resumed", "parked", "started", "ended"];
/// Exits that end a guest.
const FINAL: [ExitReason; 5] = [
    ExitReason::Shutdown,
    ExitReason::InvalidState,
    ExitReason::TaskSwitch,
    ExitReason::Unknown,
    ExitReason::MemoryLost,
];

/// A value that is often a special one.
fn word(random: &mut ChaCha8Rng) -> u64 {
    const ADDRESSES: [u64; 8] =
        [CODE, 0x5000, 0xfec0_0000, 0xfec0_0010, 0x3f8, 0x604, 1 << 38, 0x8000_0000_0000];
    match random.random_range(0..4) {
        0 => random.random::<u64>() >> random.random_range(0..64),
        1 => ADDRESSES[random.random_range(0..ADDRESSES.len())],
        2 => random.random_range(0..0x20),
        _ => random.random(),
    }
}

fn msr(random: &mut ChaCha8Rng) -> u64 {
    match random.random_range(0..5) {
        0 => random.random_range(0x800..0x840),
        1 => ICR.into(),
        2 => [0x10, 0x1b, 0x3b, 0x6e0, 0x4b56_4d00, 0x4b56_4d01][random.random_range(0..6)],
        3 => random.random_range(0xc000_0080..0xc000_0104),
        _ => random.random::<u32>().into(),
    }
}

/// Bytes of an instruction that makes such an exit, or any.
fn code(random: &mut ChaCha8Rng, reason: ExitReason) -> [u8; 15] {
    let mut bytes = [0; 15];
    random.fill_bytes(&mut bytes);
    let fitting: &[u8] = match reason {
        ExitReason::Cpuid => &[0x0f, 0xa2],
        ExitReason::ReadMsr => &[0x0f, 0x32],
        ExitReason::WriteMsr => &[0x0f, 0x30],
        ExitReason::Halt => &[0xf4],
        ExitReason::Hypercall => &[0x0f, 0x01, 0xd9],
        ExitReason::SetXcr => &[0x0f, 0x01, 0xd1],
        ExitReason::Caches => &[0x0f, 0x09],
        ExitReason::Memory => &[[0x89, 0x8b, 0x31, 0xf3][random.random_range(0..4)]],
        ExitReason::Port => &[0xf3, [0x6c, 0x6e][random.random_range(0..2)]],
        ExitReason::WriteControl => &[0x0f, 0x22],
        ExitReason::ReadControl => &[0x0f, 0x20],
        ExitReason::InvalidatePage => &[0x0f, 0x01],
        ExitReason::InvalidateContext => &[0x66, 0x0f, 0x38, 0x82],
        _ => &[],
    };
    if random.random_range(0..8) != 0 {
        bytes[..fitting.len()].copy_from_slice(fitting);
    }
    bytes
}

/// Makes something else of a vCPU that is about to exit.
fn disturb(random: &mut ChaCha8Rng, guest: &mut Guest, vcpu: usize, reason: ExitReason) {
    let bytes = code(random, reason);
    guest.load(vcpu, &bytes);
    let node = &mut guest.node;
    let page = &mut node.pages[vcpu];
    let rip = page.registers.rip;
    for register in page.registers.as_mut_bytes().chunks_exact_mut(8) {
        if random.random_range(0..3) == 0 {
            register.copy_from_slice(&word(random).to_le_bytes());
        }
    }
    if random.random_range(0..8) != 0 {
        page.registers.rip = rip;
    }
    if matches!(reason, ExitReason::ReadMsr | ExitReason::WriteMsr) {
        page.registers.rcx = msr(random);
        if random.random() {
            // Often what is reserved is 0.
            page.registers.rax &= 0x000c_cfff;
            page.registers.rdx &= 3;
        }
        if page.registers.rcx == ICR.into() && random.random() {
            page.registers.rax =
                [FIXED, NMI, INIT, START_UP][random.random_range(0..4)] | word(random) & 0xff;
        }
    }
    if random.random_range(0..8) == 0 {
        page.control.event = Event(random.random());
    }
    if random.random_range(0..8) == 0 {
        page.control.blocked = random.random_range(0..4);
    }
    page.instruction_length = if random.random_range(0..8) == 0 { random.random_range(1..16) } else { 0 };
    random.fill_bytes(&mut page.instruction);
    page.instruction_bytes = if random.random_range(0..8) == 0 { random.random() } else { 0 };
    if random.random_range(0..8) == 0 {
        let mode = &mut page.mode;
        match random.random_range(0..7) {
            0 => mode.cr0 ^= 1 << 31,
            1 => mode.cr3 = word(random),
            2 => mode.cr4 ^= 1 << random.random_range(0..32),
            3 => mode.efer ^= 1 << 10,
            4 => mode.cs_base = word(random),
            5 => mode.cs_attributes ^= 1 << random.random_range(9..11),
            _ => mode.cpl = random.random_range(0..4),
        }
    }
    if random.random_range(0..4) == 0 {
        node.now = node.now.wrapping_add(random.random::<u64>() >> random.random_range(1..64));
    }
    node.console_is_full = random.random_range(0..4) == 0;
}

/// So many exits; how often each of [`KINDS`] came of them.
fn exits(seed: u64, count: usize, walks: Walks) -> BTreeMap<&'static str, usize> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut seen = BTreeMap::new();
    let (mut guest, mut parked) = (Guest::made(1, walks), Vec::new());
    let mut ended = true;
    let mut done = 0;
    while done < count {
        if ended {
            let vcpus = random.random_range(1..=4);
            guest = Guest::running(vcpus, walks);
            parked = vec![false; vcpus.into()];
            if walks == Walks::Cached {
                guest.set_write_protection();
            }
            ended = false;
        }
        let Some(vcpu) = Some(random.random_range(0..parked.len())).filter(|&vcpu| !parked[vcpu]) else {
            // Also when all wait for a start that nobody can send.
            ended = parked.iter().all(|&parked| parked);
            continue;
        };
        let reason = match random.random_range(0..4) {
            0 => ExitReason::WriteMsr,
            _ => ExitReason::from_number(random.random_range(1..=24)).unwrap(),
        };
        if FINAL.contains(&reason) && random.random_range(0..16) != 0 {
            continue;
        }
        disturb(&mut random, &mut guest, vcpu, reason);
        let words = [word(&mut random), word(&mut random), word(&mut random)];
        guest.node.kicks.clear();
        guest.node.unparked.clear();
        done += 1;
        let disposition = guest.exit(vcpu, reason, words);
        for started in guest.node.unparked.drain(..) {
            assert!(core::mem::take(&mut parked[started]), "only one that waits is started");
            *seen.entry("started").or_insert(0) += 1;
        }
        assert!(guest.node.kicks.iter().all(|&kicked| kicked != vcpu && kicked < parked.len()));
        match disposition {
            Disposition::Resume | Disposition::ResumeAsBefore => {
                let entered = guest.node.entered[vcpu];
                assert!(guest.machine.end().is_none());
                assert!(entered.window < 4);
                let takes = guest.node.pages[vcpu].registers.rflags & RFLAGS_IF != 0;
                let waits = entered.event.kind() == Some(EventKind::Interrupt) && !takes;
                assert!(entered.activity != HALT || !entered.event.is_some() || waits, "{entered:?}");
                *seen.entry("resumed").or_insert(0) += 1;
            }
            Disposition::Park => {
                parked[vcpu] = true;
                *seen.entry("parked").or_insert(0) += 1;
            }
            Disposition::Ended => {
                assert!(guest.machine.end().is_some());
                ended = true;
                *seen.entry("ended").or_insert(0) += 1;
            }
        }
        if random.random_range(0..16) == 0 && !ended {
            let input = [random.random(); 4];
            let room = guest.machine.input_room().min(input.len());
            guest.machine.input(&mut guest.node, &input[..room]);
            guest.machine.console_ready(&mut guest.node);
        }
    }
    seen
}

#[test]
fn no_exit_does_harm() {
    let seen = exits(1, 20_000, Walks::Nested);
    assert!(KINDS.iter().all(|kind| seen.contains_key(kind)), "{seen:?}");
}

#[test]
fn no_exit_does_harm_with_the_walk_cache() {
    let seen = exits(2, 10_000, Walks::Cached);
    assert!(KINDS.iter().all(|kind| seen.contains_key(kind)), "{seen:?}");
}
