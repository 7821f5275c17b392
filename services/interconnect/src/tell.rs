//! What the log is told.

use core::fmt::Write;

use interconnect::membership::Event;
use ipc::interfaces::interconnect::{Counters, View};
use ipc::wire::MacAddress;
use rt::text::Text;

/// A card's address.
pub fn text(mac: MacAddress) -> Text<17> {
    Text::of(format_args!("{mac}"))
}

/// How a link is.
pub const fn up_or_down(link_up: bool) -> &'static str {
    if link_up { "up" } else { "down" }
}

/// Logs what happened; the view that is installed is told of by itself.
pub fn report(event: Event) {
    match event {
        Event::Found(node, mac) => {
            defmt::info!("node {=u16} is there, at {=str}", node, text(mac).as_str());
        }
        Event::Restarted(node, mac) => {
            defmt::warn!("node {=u16} at {=str} has begun a new life", node, text(mac).as_str());
        }
        Event::Installed(_) => {}
        Event::Suspected(node) => defmt::warn!("node {=u16} has fallen silent", node),
        Event::Removed(node) => defmt::warn!("node {=u16} is no member any more", node),
        Event::Expelled(incarnation) => {
            defmt::warn!("this node's life is over: it begins life {=u16}", incarnation);
        }
        Event::Left => defmt::info!("this node has left"),
        Event::QuorumLost => defmt::warn!("this node must not act: too few members are heard of"),
        Event::Quorum => defmt::info!("this node may act"),
        Event::Refused(node, mac, refusal) => {
            let why = Text::<48>::of(format_args!("{refusal}"));
            defmt::error!("node {=u16} at {=str} is refused: {=str}", node, text(mac).as_str(), why.as_str());
        }
        Event::OwnNumberTaken(mac) => {
            defmt::error!("{=str} claims this node's number: not heeded", text(mac).as_str());
        }
    }
}

/// Logs the view that is installed.
pub fn tell_view(view: &View) {
    if view.epoch == 0 {
        return;
    }
    defmt::info!("the view of epoch {=u32}: nodes{=str}", view.epoch, members(view).as_str());
}

/// Logs how it stands.
pub fn tell_summary(view: &View, counters: &Counters) {
    defmt::info!(
        "epoch {=u32}, {=usize} members; the cluster's clock is known to {=u64} ns; sent {=u64} frames, received \
         {=u64}, dropped {=u64}",
        view.epoch,
        view.members.len(),
        view.clock_error_ns.unwrap_or(u64::MAX),
        counters.sent.frames,
        counters.received.frames,
        counters.dropped.total()
    );
}

fn members(view: &View) -> Text<384> {
    let mut text = Text::new();
    for node in &view.members {
        // There is room for 64 numbers of five digits.
        let _ = write!(text, " {node}");
    }
    text
}
