//! Measures bare exchanges with another node: of all nodes on the wire, the one whose card has the lowest address does,
//! with the next. Each figure is logged as a line that `cargo xtask bench` reads.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::time::Duration;

use ipc::interfaces::interconnect::{
    Client, Exchange, ExchangeAnswer, ExchangeRequest, ExchangeTimes, MAX_EXCHANGES, Peer,
};
use ipc::message::CallError;
use rt::capability::Endpoint;
use rt::membership::{Membership, description, keep};
use rt::start::Start;
use rt::text::Text;

rt::entry!(main);

/// How often the interconnect is asked.
const LOOK: Duration = Duration::from_millis(50);
/// Exchanges before those that count, so that nothing happens for the first time in these.
const WARM_UP: u16 = 100;
/// What follows the 64 bytes of the headers, and the name of the figures.
const SIZES: [(u16, &str); 2] = [(0, "exchange-64"), (4096, "exchange-page")];

fn main(start: &'static Start<'static>) -> ! {
    let endpoint = |name| match start.endpoint(name) {
        Ok(endpoint) => endpoint,
        Err(missing) => panic!("{missing}"),
    };
    let description = description(start.name(), env!("CARGO_PKG_VERSION"), None);
    keep(&mut Membership::new(endpoint("supervisor"), description, start.clock()), rt::now());
    let mut interconnect = Client::new(endpoint("interconnect"));
    if let Some(peer) = find_peer(&mut interconnect) {
        for (payload_bytes, name) in SIZES {
            let request = ExchangeRequest { node: peer.node, payload_bytes, count: WARM_UP };
            measure(&mut interconnect, request);
            log(
                start,
                name,
                &measure(&mut interconnect, ExchangeRequest { count: MAX_EXCHANGES, ..request }),
            );
        }
        defmt::info!("bench done");
    }
    loop {
        rt::sleep(Duration::from_secs(3600));
    }
}

/// The reply to a call, which an interconnect that works gives.
fn replied<T>(result: Result<T, CallError>) -> T {
    match result {
        Ok(reply) => reply,
        Err(error) => panic!("the interconnect: {error}"),
    }
}

/// The node to measure with, once one is there; `None` when that is for another node to do.
fn find_peer(interconnect: &mut Client<Endpoint>) -> Option<Peer> {
    let Some(counters) = replied(interconnect.counters()) else {
        defmt::error!("there is no card to measure with");
        return None;
    };
    loop {
        let peers = replied(interconnect.peers());
        if let Some(peer) = peers.iter().min_by_key(|peer| peer.mac) {
            return (counters.mac < peer.mac).then_some(*peer);
        }
        rt::sleep(LOOK);
    }
}

fn measure(interconnect: &mut Client<Endpoint>, request: ExchangeRequest) -> ExchangeTimes {
    let answer = replied(interconnect.begin_exchange(&request));
    if answer != ExchangeAnswer::Begun {
        let why = match answer {
            ExchangeAnswer::TooLong(mtu) => Text::<80>::of(format_args!("the link's MTU is {mtu:?}")),
            ExchangeAnswer::NoSuchPeer => Text::of(format_args!("node {} is gone", request.node)),
            _ => Text::of(format_args!("it is busy, or the request is wrong")),
        };
        panic!("no exchange of {} bytes: {}", request.payload_bytes, why.as_str());
    }
    loop {
        rt::sleep(LOOK);
        if let Exchange::Done(times) = replied(interconnect.exchange()) {
            return times;
        }
    }
}

fn log(start: &Start<'_>, name: &str, times: &ExchangeTimes) {
    let nanoseconds = |ticks| start.clock().duration(ticks).as_nanos();
    for (figure, ticks) in
        [("least", times.least_ticks), ("median", times.median_ticks), ("p99", times.percentile_99_ticks)]
    {
        let line = Text::<80>::of(format_args!("bench {name}-{figure} {} ns", nanoseconds(ticks)));
        defmt::info!("{=str}", line.as_str());
    }
    let line = Text::<80>::of(format_args!("bench {name}-lost {} exchanges", times.lost));
    defmt::info!("{=str}", line.as_str());
}
