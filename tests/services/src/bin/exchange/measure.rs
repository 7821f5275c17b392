//! The measurement: of all nodes on the wire, the one whose card has the lowest address measures with the next. Each
//! figure is logged as a line that `cargo xtask bench` reads.

use core::time::Duration;

use ipc::interfaces::interconnect::{ExchangeRequest, ExchangeTimes, MAX_EXCHANGES, Shape};
use rt::start::Start;
use rt::text::Text;

use crate::link::{Attempt, Link};
use crate::{Failure, fail};

/// Between two looks whether a measurement is over: rare, since each look disturbs it.
const LOOK: Duration = Duration::from_millis(50);
/// Exchanges before those that count, so that nothing happens for the first time in these.
const WARM_UP: u16 = 100;

/// Measures, if that is for this node to do.
pub fn run(start: &Start<'_>, mut link: Link) -> Result<(), Failure> {
    let counters = link.counters()?;
    let peer = link.first_peer()?;
    if peer.mac < counters.mac {
        return Ok(());
    }
    for (shape, name) in
        [(Shape::Short, "exchange-64"), (Shape::Page, "exchange-page"), (Shape::Fetch, "fetch-page")]
    {
        measure(&mut link, ExchangeRequest { node: peer.node, shape, count: WARM_UP })?;
        let times = measure(&mut link, ExchangeRequest { node: peer.node, shape, count: MAX_EXCHANGES })?;
        log(start, name, &times);
    }
    defmt::info!("bench done");
    Ok(())
}

fn measure(link: &mut Link, request: ExchangeRequest) -> Result<ExchangeTimes, Failure> {
    let times = match link.attempt(&request, LOOK)? {
        Attempt::Measured(times) => times,
        Attempt::NoPeer => fail!("node {} is gone", request.node),
        Attempt::Restarted => fail!("the interconnect was restarted"),
    };
    if times.completed < request.count {
        fail!("node {} has stopped answering", request.node);
    }
    if times.wrong > 0 {
        fail!("{} answers held wrong contents", times.wrong);
    }
    Ok(times)
}

fn log(start: &Start<'_>, name: &str, times: &ExchangeTimes) {
    for (figure, ticks) in
        [("min", times.least_ticks), ("p50", times.median_ticks), ("p99", times.percentile_99_ticks)]
    {
        let tenths = start.clock().duration(ticks).as_nanos() / 100;
        let line = Text::<80>::of(format_args!("bench {name}-{figure} {}.{} us", tenths / 10, tenths % 10));
        defmt::info!("{=str}", line.as_str());
    }
    let line = Text::<80>::of(format_args!("bench {name}-lost {} exchanges", times.lost));
    defmt::info!("{=str}", line.as_str());
}
