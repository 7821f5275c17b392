//! What will be needed next: streams, pages one after another, as when memory is used for the first time or
//! something is copied.

use alloc::vec::Vec;

use crate::coherence::error::ConfigError;
use crate::coherence::message::Page;

/// The most pages that are on their way at one time before somebody needs them.
pub const MOST_AHEAD: u8 = 16;
/// With fewer faults one after another something is no stream yet: hot pages can be neighbours, and each that is asked for
/// in vain is taken from a node that needs it.
const ENOUGH: u32 = 4;
/// Streams of a vCPU, or of the window, that are followed at one time.
const STREAMS: usize = 16;

/// Pages that are needed one after another.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The page of the latest fault.
    last: u32,
    /// The first page after it that was not asked for.
    next: u32,
    /// Twice as much with each fault of the stream, half as much each time that another stream wants its place; 0 when there
    /// was one fault alone. From [`ENOUGH`] on, how many pages are to be on their way.
    ahead: u32,
}

#[derive(Clone, Debug, Default)]
struct Streams {
    streams: [Stream; STREAMS],
    /// The one that is asked next to make room.
    turn: usize,
}

/// What those who wait for pages will need.
#[derive(Clone, Debug)]
pub struct Foresight(Vec<Streams>);

impl Foresight {
    /// Nothing seen yet of so many waiters.
    ///
    /// # Errors
    /// [`ConfigError::NoRoom`].
    pub fn new(waiters: u8) -> Result<Self, ConfigError> {
        let streams = crate::filled(Streams::default(), waiters.into());
        Ok(Self(streams.map_err(|_| ConfigError::NoRoom)?))
    }

    /// Takes a waiter's fault that needs another node. `ask` is to ask for what is foreseen, and tells whether the page is
    /// here or on its way then.
    pub fn fault(&mut self, waiter: u8, page: Page, mut ask: impl FnMut(Page) -> bool) {
        let streams = self.0.get_mut(usize::from(waiter));
        let Some(stream) = streams.and_then(|streams| streams.of(page.0)) else { return };
        if stream.ahead < ENOUGH {
            return;
        }
        let end = page.0.saturating_add(1 + stream.ahead);
        while stream.next < end && ask(Page(stream.next)) {
            stream.next += 1;
        }
    }
}

impl Streams {
    /// The stream that a fault goes on with; a new one may begin with it.
    fn of(&mut self, page: u32) -> Option<&mut Stream> {
        let known = self.streams.iter().position(|stream| stream.last <= page && page <= stream.next);
        if let Some(place) = known {
            let stream = &mut self.streams[place];
            if stream.last == page {
                return None;
            }
            stream.last = page;
            stream.next = stream.next.max(page.saturating_add(1));
            stream.ahead = (2 * stream.ahead).clamp(1, MOST_AHEAD.into());
            return Some(stream);
        }
        loop {
            self.turn = (self.turn + 1) % STREAMS;
            let stream = &mut self.streams[self.turn];
            if stream.ahead == 0 {
                *stream = Stream { last: page, next: page.saturating_add(1), ahead: 0 };
                return None;
            }
            stream.ahead /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Has a waiter need pages that nobody has yet, and what it asks for come at once; its faults, and what was asked for.
    fn need(pages: impl IntoIterator<Item = u32>) -> (usize, usize) {
        let mut foresight = Foresight::new(1).unwrap();
        let mut here = std::collections::BTreeSet::new();
        let (mut faults, mut asked) = (0, 0);
        for page in pages {
            if here.insert(page) {
                faults += 1;
                foresight.fault(0, Page(page), |page| {
                    asked += usize::from(here.insert(page.0));
                    true
                });
            }
        }
        (faults, asked)
    }

    #[test]
    fn a_stream_waits_for_one_page_of_seventeen() {
        let (faults, asked) = need(1_000..2_000);
        assert!(faults <= 8 + 1_000 / 17 && asked <= 1_000 + 16, "{faults}, {asked}");
    }

    #[test]
    fn streams_are_known_among_each_other_and_other_faults() {
        let mut random = Random(1);
        let pages = (0..1_000).flat_map(|step| {
            let other = 1_000_000 + random.below(10_000_000_u32);
            [100_000 + step, 200_000 + step, 300_000 + step, other]
        });
        let (faults, asked) = need(pages);
        assert!(faults < 1_000 + 300 && asked < 3_100, "{faults}, {asked}");
    }

    #[test]
    fn without_a_stream_nothing_is_asked_for() {
        let mut random = Random(2);
        let (faults, asked) = need((0..10_000).map(|_| random.below(10_000_000_u32)));
        assert!(faults > 9_000 && asked < 10, "{faults}, {asked}");
        // The end of the numbers is no reason to stop.
        need([u32::MAX - 1, u32::MAX, u32::MAX - 1, 0]);
    }

    #[test]
    fn what_could_not_be_asked_for_is_asked_for_again() {
        let mut foresight = Foresight::new(1).unwrap();
        foresight.fault(1, Page(5), |_| unreachable!("there is no such waiter"));
        for page in 0..10 {
            foresight.fault(0, Page(page), |_| false);
        }
        let mut asked = Vec::new();
        foresight.fault(0, Page(10), |page| {
            asked.push(page.0);
            asked.len() < 4
        });
        assert_eq!(asked, [11, 12, 13, 14]);
        foresight.fault(0, Page(11), |page| {
            assert!((14..=27).contains(&page.0));
            true
        });
    }
}
