//! What `cargo xtask top` shows of this node, as records of its log.
//!
//! A record's text is `state SUBJECT KEY=NUMBER ...`, with `SUBJECT/NUMBER` where there are several of a kind. xtask
//! keeps the latest of each in place of the merged log's lines; it takes every key of small letters and underscores, so a
//! new one is written here and shown there (`xtask/src/top/overview.rs`). They have no level, so that no choice of levels
//! takes them away.
//!
//! The line carries them beside the log: 2 records of 40 bytes and 4 of 100 a second, and of vCPUs, hot pages and hot
//! instructions so many that it stays below 1.5 KiB.

use health::observer::Observer;
use health::turns::in_turns;
use ipc::interfaces::{ept, interconnect};
use rt::capability::Endpoint;
use rt::inspector::Inspector;
use rt::start::Start;

/// How long another service is waited for, in milliseconds: five calls are short against the beat.
const PATIENCE_MS: u64 = 50;
/// vCPUs told of in a second, at 40 bytes: all of 64 take 6 seconds.
const VCPUS_AT_A_TIME: usize = 12;
/// Hot pages and instructions told of in a second, at 35 bytes: all of 32 take 4 seconds.
const HOT_AT_A_TIME: usize = 8;

/// Tells of the node.
pub(crate) struct Teller {
    ept: Option<ept::Client<Endpoint>>,
    interconnect: Option<interconnect::Client<Endpoint>>,
    next_vcpu: usize,
    next_hot: usize,
}

impl Teller {
    /// One that asks the services that this one may call.
    pub(crate) fn of(start: &Start<'_>) -> Self {
        let patience = start.clock().milliseconds_to_ticks(PATIENCE_MS);
        let endpoint = |name| start.endpoint(name).ok();
        Self {
            ept: endpoint("ept").map(|endpoint| ept::Client::new(endpoint).within(patience)),
            interconnect: endpoint("interconnect")
                .map(|endpoint| interconnect::Client::new(endpoint).within(patience)),
            next_vcpu: 0,
            next_hot: 0,
        }
    }

    /// Writes all records of one second. What a service does not tell in time is left out.
    pub(crate) fn tell<I: Inspector>(&mut self, observer: &Observer<I>, log: (u64, u64)) {
        tell_node(observer, log);
        in_turns(&mut self.next_vcpu, VCPUS_AT_A_TIME, |number| tell_vcpu(observer, number));
        if let Some(ept) = &mut self.ept {
            if let Ok(Some(counters)) = ept.counters() {
                // One that spans no nodes shares nothing.
                match ept.sharing() {
                    Ok(Some(sharing)) => tell_shared_memory(&counters, &sharing),
                    Ok(None) => tell_memory(&counters),
                    Err(_) => {}
                }
            }
            if let Ok(hottest) = ept.hottest() {
                in_turns(&mut self.next_hot, HOT_AT_A_TIME, |number| tell_hot(&hottest, number));
            }
        }
        if let Some(interconnect) = &mut self.interconnect {
            if let Ok(Some(view)) = interconnect.view() {
                tell_view(&view);
            }
            if let Ok(Some(counters)) = interconnect.counters() {
                tell_wire(&counters);
            }
        }
    }
}

fn tell_node<I: Inspector>(observer: &Observer<I>, (records, lost): (u64, u64)) {
    let summary = observer.summary();
    defmt::println!(
        "state node vcpus={=u8} cores={=u32} load={=u32} most={=u32} free_kib={=u64} total_kib={=u64} log_records={=u64} log_lost={=u64}",
        u8::try_from(observer.vcpus()).unwrap_or(u8::MAX),
        summary.cores,
        summary.mean_permille,
        summary.most_permille,
        summary.free_kib,
        summary.total_kib,
        records,
        lost
    );
}

/// Whether there is a vCPU of this number.
fn tell_vcpu<I: Inspector>(observer: &Observer<I>, number: usize) -> bool {
    let Some(vcpu) = observer.vcpu(number) else { return false };
    let number = u8::try_from(number).unwrap_or(u8::MAX);
    defmt::println!(
        "state vcpu/{=u8} activity={=u8} core={=u16} load={=u16} steal={=u16} exits={=u32} faults={=u32} halts={=u32}",
        number,
        vcpu.activity as u8,
        vcpu.core,
        vcpu.load_permille,
        vcpu.steal_permille,
        vcpu.exits.per_second,
        vcpu.faults.per_second,
        vcpu.halts.per_second
    );
    true
}

fn tell_memory(counters: &ept::Counters) {
    let ept::Counters { pages, zero_pages, frames, ranges, faults } = *counters;
    // One of those that are used holds the zeros. The others are written pages.
    let write = frames.used.saturating_sub(1);
    let refused = [faults.outside, faults.out_of_memory, faults.not_mapped, faults.stopping];
    let refused = refused.into_iter().fold(0, u64::saturating_add);
    defmt::println!(
        "state memory frames_total={=u64} frames_used={=u64} frames_reserved={=u64} write={=u64} zero={=u64} dormant={=u64} large_ranges={=u64}",
        frames.total,
        frames.used,
        frames.reserved,
        write,
        zero_pages,
        pages.saturating_sub(zero_pages).saturating_sub(write),
        ranges.large
    );
    defmt::println!(
        "state faults reads={=u64} writes={=u64} spurious={=u64} refused={=u64} window={=u64} around={=u64}",
        faults.read_dormant,
        faults.write_dormant.saturating_add(faults.upgrade),
        faults.spurious,
        refused,
        faults.of_window,
        faults.around_pages
    );
}

/// The memory of a guest that spans nodes. Pages that are not here may be another's or nobody's: no node knows how many are.
fn tell_shared_memory(counters: &ept::Counters, sharing: &ept::Sharing) {
    let ept::Counters { frames, ranges, faults, .. } = *counters;
    let ept::Sharing { zero, read, write, reads, writes, refused, .. } = *sharing;
    let ept::Sharing { fetched, kept, given, invalidated, remote, remote_user, .. } = *sharing;
    defmt::println!(
        "state memory frames_total={=u64} frames_used={=u64} frames_reserved={=u64} read={=u64} write={=u64} zero={=u64} large_ranges={=u64}",
        frames.total,
        frames.used,
        frames.reserved,
        read,
        write,
        zero,
        ranges.large
    );
    defmt::println!(
        "state faults reads={=u64} writes={=u64} refused={=u64} around={=u64} fetched={=u64} kept={=u64} given={=u64} invalidated={=u64} remote={=u64} remote_user={=u64}",
        reads,
        writes,
        refused,
        faults.around_pages,
        fetched,
        kept,
        given,
        invalidated,
        remote,
        remote_user
    );
}

/// Whether there is a hot page, or an instruction after the pages, of this number.
fn tell_hot(hottest: &ept::HotList, number: usize) -> bool {
    let ept::HotList { pages, instructions } = hottest;
    if let Some((rank, hot)) = pages.iter().enumerate().nth(number) {
        defmt::println!("state hot_page/{=usize} page={=u64} faults={=u64}", rank, hot.what, hot.count);
        return true;
    }
    let Some(rank) = number.checked_sub(pages.len()) else { return false };
    let Some(hot) = instructions.get(rank) else { return false };
    defmt::println!("state hot_instruction/{=usize} rip={=u64} faults={=u64}", rank, hot.what, hot.count);
    true
}

fn tell_view(view: &interconnect::View) {
    let is_member = view.members.contains(&view.node);
    defmt::println!(
        "state view epoch={=u32} members={=u16} member={=u8} may_act={=u8}",
        view.epoch,
        u16::try_from(view.members.len()).unwrap_or(u16::MAX),
        u8::from(is_member),
        u8::from(view.may_act)
    );
    if let Some(error) = view.clock_error_ns {
        defmt::println!("state clock error_ns={=u64}", error);
    }
}

fn tell_wire(counters: &interconnect::Counters) {
    let interconnect::Counters { link_up, sent, received, dropped, messages, .. } = *counters;
    let interconnect::Counters { interrupts, retransmissions, round_trips, copies, .. } = *counters;
    defmt::println!(
        "state wire link_up={=u8} sent_frames={=u64} sent_bytes={=u64} received_frames={=u64} received_bytes={=u64} dropped={=u64} no_room={=u64} messages={=u64} abandoned={=u64} interrupts={=u64} retransmitted={=u64} median_ns={=u64} slow_ns={=u64} copies={=u64}",
        u8::from(link_up),
        sent.frames,
        sent.bytes,
        received.frames,
        received.bytes,
        dropped.total(),
        dropped.no_room,
        messages.sent,
        messages.abandoned,
        interrupts,
        retransmissions,
        round_trips.median_ns,
        round_trips.percentile_99_ns,
        copies
    );
}
