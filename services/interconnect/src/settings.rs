//! What this node is, and how long things take.

use core::time::Duration;

use interconnect::membership::{Member, Profile, Timing};
use interconnect::node::Config;
use interconnect::station::DEFAULT_MTU;
use interconnect::transport::Limits;
use interconnect::transport::rtt::RtoLimits;
use ipc::wire::{CLASSES, MacAddress, NO_NODE};
use rt::processor::cpuid;
use rt::start::Start;

use crate::nic::spanning;

/// The cluster's number. One wire has one cluster until images name theirs.
const CLUSTER: u16 = 1;
/// The times of membership. Nodes under an emulator stand still for hundreds of milliseconds.
const HELLO: Duration = Duration::from_millis(250);
const HELLO_GAP: Duration = Duration::from_millis(10);
const SUSPECT: Duration = Duration::from_millis(1500);
const DEATH: Duration = Duration::from_secs(3);
const PROPOSAL: Duration = Duration::from_millis(750);
const QUIET: Duration = Duration::from_millis(1500);
const FORM: Duration = Duration::from_secs(3);
/// Retransmission time-outs: the first, the least, and the most.
const RTO: [Duration; 3] = [Duration::from_millis(20), Duration::from_millis(2), Duration::from_millis(500)];
/// The most that an acknowledgement waits for a frame to go with.
const ACKNOWLEDGE: Duration = Duration::from_micros(500);
/// Frames that a peer may send in each class before the first is dealt with.
const WINDOWS: [u32; CLASSES] = [16, 16, 16, 16];
/// Page frames that may wait for others before them: a sixth of all.
const WAITING_FRAMES: usize = 32;
/// Pages that the card holds at a time.
const PAGES_IN_CARD: usize = 8;
/// Between two questions for the time.
const CLOCK: Duration = Duration::from_millis(100);
/// Between two summaries in the log.
pub const SUMMARY: Duration = Duration::from_secs(60);

/// What this node is.
pub fn config(start: &Start<'_>, mac: MacAddress, mtu: Option<u16>, now: u64) -> Config {
    let clock = start.clock();
    let ticks = |duration| clock.ticks(duration);
    let [initial, min, max] = RTO.map(ticks);
    // A guest that spans nodes has need of all of them; other nodes do not know how many there are.
    let expected = spanning(start).map(|guest| guest.nodes.into());
    Config {
        cluster: CLUSTER,
        life: life(start, mac, now),
        profile: Profile { image: start.image(), features: features(), expected },
        timing: Timing {
            hello: ticks(HELLO),
            hello_gap: ticks(HELLO_GAP),
            suspect: ticks(SUSPECT),
            death: ticks(DEATH),
            proposal: ticks(PROPOSAL),
            quiet: ticks(QUIET),
            form: ticks(FORM),
        },
        limits: Limits {
            rto: RtoLimits { initial, min, max },
            acknowledge_delay: ticks(ACKNOWLEDGE),
            windows: WINDOWS,
            waiting_frames: WAITING_FRAMES,
            pages_in_card: PAGES_IN_CARD,
            mtu: mtu.unwrap_or(DEFAULT_MTU),
        },
        clock_interval: ticks(CLOCK),
    }
}

/// This life of the node. Its number is the one that it was given, or else one from its card's address. The start's
/// time and count tell this life from the last.
fn life(start: &Start<'_>, mac: MacAddress, now: u64) -> Member {
    let given = u16::try_from(start.node()).ok().filter(|&node| node != 0 && node != NO_NODE);
    let [.., high, low] = mac.0;
    let node = given.unwrap_or_else(|| u16::from_be_bytes([high, low]).min(NO_NODE - 1));
    let [_, b0, b1, ..] = now.wrapping_add(start.generation() << 8).to_le_bytes();
    Member { node, incarnation: u16::from_le_bytes([b0, b1]), mac }
}

/// A hash of what CPUID says of the processor's features, from which the guest's are chosen: FNV-1a over the registers
/// of AMD APM 3, appendix E, that do not differ between the cores of a node or change while it runs.
fn features() -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    const OSXSAVE: u32 = 1 << 27;
    const OSPKE: u32 = 1 << 4;
    let [signature, _, ecx, edx] = cpuid(1, 0);
    let highest = cpuid(0, 0)[0];
    let [_, extended_ebx, extended_ecx, extended_edx] = if highest >= 7 { cpuid(7, 0) } else { [0; 4] };
    let [components, ..] = if highest >= 0xd { cpuid(0xd, 0) } else { [0; 4] };
    let [saving, ..] = if highest >= 0xd { cpuid(0xd, 1) } else { [0; 4] };
    let [.., amd_ecx, amd_edx] = cpuid(0x8000_0001, 0);
    let [sizes, amd_ebx, ..] = cpuid(0x8000_0008, 0);
    let registers = [
        signature,
        ecx & !OSXSAVE,
        edx,
        extended_ebx,
        extended_ecx & !OSPKE,
        extended_edx,
        components,
        saving,
        amd_ecx,
        amd_edx,
        sizes,
        amd_ebx,
    ];
    let bytes = registers.into_iter().flat_map(u32::to_le_bytes);
    bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}
