use std::fmt::Debug;

use heapless::{String, Vec};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Serialize, de::DeserializeOwned};
use zerocopy::{Immutable, IntoBytes, TryFromBytes};

use super::{ept, health, interconnect, scheduler, supervisor, vmm};
use crate::abi::{FaultCause, MAX_MESSAGE_BYTES, MAX_NAME_BYTES, ServiceState, VcpuActivity};
use crate::guest::{MAX_NODES, Share};
use crate::interface::are_distinct;
use crate::wire::Class;

/// Asserts that the largest value of a type fits a message page, survives it, and that no damage to it panics.
fn holds<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let mut buffer = [0; MAX_MESSAGE_BYTES];
    let bytes = postcard::to_slice(value, &mut buffer).expect("fits a message page").to_vec();
    assert_eq!(&postcard::from_bytes::<T>(&bytes).unwrap(), value);
    let mut random = ChaCha8Rng::seed_from_u64(bytes.len() as u64);
    for _ in 0..2000 {
        let mut damaged = bytes.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..damaged.len());
            damaged[at] = random.random();
        }
        damaged.truncate(random.random_range(0..=damaged.len()));
        // Whatever it gives, value or error, it gives.
        drop(postcard::from_bytes::<T>(&damaged));
    }
}

fn name<const N: usize>() -> String<N> {
    core::iter::repeat_n('n', N).collect()
}

#[test]
fn the_largest_messages_fit_a_page() {
    assert_eq!(name::<MAX_NAME_BYTES>().len(), MAX_NAME_BYTES);
    holds(&supervisor::Description { name: name(), version: name(), interface: Some(u8::MAX) });
    holds(&supervisor::Registration { service: u8::MAX, beat_ms: u32::MAX });
    let last_fault = supervisor::LastFault {
        cause: FaultCause::Stopped,
        instruction: u64::MAX,
        address: u64::MAX,
        age_ms: u64::MAX,
    };
    holds(&Some(supervisor::ServiceReport {
        name: name(),
        standing: supervisor::Standing::Down,
        generation: u32::MAX,
        recent_restarts: u16::MAX,
        last_fault: Some(last_fault),
        beat_age_ms: Some(u32::MAX),
    }));
    holds(&supervisor::NodeState { up: u8::MAX, down: u8::MAX, total: u8::MAX, since_ms: u64::MAX });
    holds(&health::NodeReport {
        uptime_ms: u64::MAX,
        loads_permille: Vec::from_array([u16::MAX; 64]),
        frames_total: u64::MAX,
        frames_free: u64::MAX,
        log_records: u64::MAX,
        log_lost: u64::MAX,
    });
    let service = health::ServiceHealth {
        name: name(),
        state: ServiceState::Down,
        threads: u8::MAX,
        restarts: u32::MAX,
        load_permille: u16::MAX,
        calls_served: u64::MAX,
    };
    holds(&health::Services::from_array([(); 32].map(|()| service.clone())));
    let most = health::Count { total: u64::MAX, per_second: u32::MAX };
    holds(&Some(health::VcpuHealth {
        activity: VcpuActivity::AtExit,
        core: u16::MAX,
        load_permille: u16::MAX,
        steal_permille: u16::MAX,
        exits: most,
        faults: most,
        halts: most,
        steal_ms: u64::MAX,
    }));
    holds(&ept::Memory { frames_total: u64::MAX, frames_free: u64::MAX });
    let all = u64::MAX;
    holds(&Some(ept::Counters {
        pages: all,
        zero_pages: all,
        frames: ept::Frames { total: all, used: all, reserved: all },
        ranges: ept::Ranges { reserved: all, large: all, broken: all, not_promoted: all },
        faults: ept::Faults {
            read_dormant: all,
            write_dormant: all,
            upgrade: all,
            spurious: all,
            outside: all,
            out_of_memory: all,
            not_mapped: all,
            stopping: all,
            of_window: all,
            around_pages: all,
        },
    }));
    holds(&vmm::GuestStatus { running: true, starts: u64::MAX, last_end: name() });
    let traffic = interconnect::Traffic { frames: u64::MAX, bytes: u64::MAX };
    holds(&Some(interconnect::Counters {
        mac: [255; 6],
        mtu: Some(u16::MAX),
        link_up: true,
        sent: traffic,
        received: traffic,
        dropped: interconnect::Drops {
            short: u64::MAX,
            foreign: u64::MAX,
            malformed: u64::MAX,
            corrupt: u64::MAX,
            elsewhere: u64::MAX,
            duplicate: u64::MAX,
            unexpected: u64::MAX,
            no_room: u64::MAX,
            ..interconnect::Drops::default()
        },
        refused: u64::MAX,
        messages: interconnect::Messages { sent: 1, acknowledged: 2, abandoned: u64::MAX },
        interrupts: u64::MAX,
        retransmissions: u64::MAX,
        round_trips: interconnect::RoundTrips {
            count: u64::MAX,
            median_ns: u64::MAX,
            percentile_99_ns: u64::MAX,
        },
        copies: u64::MAX,
    }));
    let peer = interconnect::Peer {
        node: u16::MAX,
        mac: [255; 6],
        incarnation: u16::MAX,
        is_member: true,
        silent_ms: u32::MAX,
    };
    holds(&interconnect::Peers::from_array([peer; interconnect::MAX_PEERS]));
    let shape = interconnect::Shape::Fetch;
    let request = interconnect::ExchangeRequest { node: u16::MAX, shape, count: u16::MAX };
    holds(&request);
    holds(&interconnect::ExchangeAnswer::TooLong(Some(u16::MAX)));
    holds(&interconnect::Exchange::Done(interconnect::ExchangeTimes {
        request,
        completed: u16::MAX,
        lost: u16::MAX,
        wrong: u16::MAX,
        least_ticks: u64::MAX,
        median_ticks: u64::MAX,
        percentile_99_ticks: u64::MAX,
        most_ticks: u64::MAX,
    }));
    let core = scheduler::CoreLoad { load_permille: u16::MAX, switches: u64::MAX, interrupts: u64::MAX };
    holds(&scheduler::Cores::from_array([core; 64]));
    let vcpu = scheduler::VcpuLoad { core: u16::MAX, load_permille: u16::MAX, steal_permille: u16::MAX };
    holds(&scheduler::Vcpus::from_array([vcpu; 64]));
}

/// Asserts that a layout fills no more than a hot call's registers, and that each of its bytes keeps its place.
fn is_laid_out<T: IntoBytes + Immutable + TryFromBytes + PartialEq + Debug>(value: &T, bytes: &[u8]) {
    assert_eq!(value.as_bytes(), bytes);
    assert_eq!(&T::try_read_from_bytes(bytes).unwrap(), value);
    let mut random = ChaCha8Rng::seed_from_u64(bytes.len() as u64);
    for _ in 0..2000 {
        let damaged: std::vec::Vec<u8> = bytes.iter().map(|_| random.random()).collect();
        if let Ok(value) = T::try_read_from_bytes(&damaged) {
            assert_eq!(value.as_bytes(), damaged);
        }
    }
}

#[test]
fn messages_between_nodes_fill_the_registers() {
    use interconnect::{Contents, Incoming, IncomingKind, NO_FRAME, Next, Outgoing, SendAnswer, Sent};

    let message = core::array::from_fn(|place| u8::try_from(place).unwrap());
    let mut bytes = [0; 32];
    bytes[..24].copy_from_slice(&message);
    bytes[24..].copy_from_slice(&[4, 3, 2, 1, 6, 5, 2, 2]);
    let (frame, node, class) = (0x0102_0304, 0x0506, Class::Request);
    is_laid_out(&Outgoing { message, frame, node, class, contents: Contents::Given }, &bytes);
    is_laid_out(&Incoming { message, frame, node, class, kind: IncomingKind::Owed }, &bytes);
    is_laid_out(&Sent { answer: SendAnswer::Full, frame: NO_FRAME }, &[3, 0, 0, 0, 255, 255, 255, 255]);
    is_laid_out(&Next { frame: 7, reserved: 0 }, &[7, 0, 0, 0, 0, 0, 0, 0]);
    holds(&interconnect::Frames::from_array([u32::MAX; crate::guest::CARRIER_FRAMES as usize]));
    holds(&Some(interconnect::Time { local: u64::MAX, cluster: u64::MAX, error: u64::MAX }));
    holds(&Some(interconnect::View {
        epoch: u32::MAX,
        members: Vec::from_array([u16::MAX; interconnect::MAX_PEERS]),
        clock_error_ns: Some(u64::MAX),
        ..interconnect::View::default()
    }));
    let shares = Vec::from_array([Share { node: 31, vcpus: u8::MAX, pages: u64::MAX }; MAX_NODES]);
    holds(&ept::Begin { run: u32::MAX, shares });
}

#[test]
fn causes_and_states_keep_their_numbers() {
    for number in 0..7u8 {
        let cause = FaultCause::from_number(number.into()).unwrap();
        let fault = supervisor::LastFault { cause, instruction: 0, address: 0, age_ms: 0 };
        let mut buffer = [0; 32];
        assert_eq!(postcard::to_slice(&fault, &mut buffer).unwrap()[0], number);
    }
    for number in 0..5u8 {
        let state = ServiceState::from_number(number).unwrap();
        let service = health::ServiceHealth {
            name: String::new(),
            state,
            threads: 1,
            restarts: 0,
            load_permille: 0,
            calls_served: 0,
        };
        let mut buffer = [0; 32];
        assert_eq!(postcard::to_slice(&service, &mut buffer).unwrap()[1], number);
    }
    let activities =
        [VcpuActivity::Stopped, VcpuActivity::Running, VcpuActivity::Halted, VcpuActivity::AtExit];
    for (number, activity) in (0..).zip(activities) {
        assert_eq!(activity as u8, number);
        let vcpu = health::VcpuHealth {
            activity,
            core: 0,
            load_permille: 0,
            steal_permille: 0,
            exits: health::Count::default(),
            faults: health::Count::default(),
            halts: health::Count::default(),
            steal_ms: 0,
        };
        let mut buffer = [0; 32];
        assert_eq!(postcard::to_slice(&vcpu, &mut buffer).unwrap()[0], number);
    }
}

#[test]
fn interfaces_have_numbers_of_their_own() {
    assert!(are_distinct(&[
        supervisor::INTERFACE,
        health::INTERFACE,
        ept::INTERFACE,
        interconnect::INTERFACE,
        scheduler::INTERFACE,
        vmm::INTERFACE,
    ]));
}
