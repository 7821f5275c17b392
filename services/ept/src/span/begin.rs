//! The begin of a guest whose memory nodes share.

use ipc::abi::NEVER;
use ipc::guest::{Share, share_of, total_pages};
use ipc::interfaces::ept::{Begin, Dropped};
use ipc::interfaces::interconnect::NO_FRAME;

use super::ahead::Ahead;
use super::foresight::{Foresight, MOST_AHEAD};
use super::hands::Desk;
use super::links::{BeginError, Links, Times};
use super::waiters::Waiters;
use super::{EVICTIONS, Round, Span};
use crate::coherence::homes::Homes;
use crate::coherence::node::NodeId;
use crate::coherence::profile::Profile;
use crate::coherence::{Coherence, Config};

impl Span {
    /// Begins to share the memory of a guest with the nodes that `begin` names; this one has number `node` and runs `vcpus`
    /// vCPUs.
    ///
    /// # Errors
    /// [`BeginError`]; nothing has begun then.
    pub fn begin<S, L: Links>(
        round: &mut Round<'_, S, L>,
        begin: &Begin,
        (node, vcpus): (u64, u8),
        times: Times,
    ) -> Result<Self, BeginError> {
        let shares = &begin.shares;
        let (place, share) = share_of(shares, node).ok_or(BeginError::Shares)?;
        let homes = Homes::new(shares.iter().map(|share| share.pages)).ok_or(BeginError::Shares)?;
        let most_vcpus = shares.iter().map(|share| share.vcpus).max().unwrap_or(0);
        let is_mine = share.vcpus == vcpus && total_pages(shares) == round.memory.shown();
        let waiters = most_vcpus.checked_add(1 + MOST_AHEAD).filter(|_| is_mine).ok_or(BeginError::Shares)?;
        let carried = round.links.frames().map_err(BeginError::Call)?;
        if carried.is_empty() {
            return Err(BeginError::Frames);
        }
        let frames = round.memory.begin_sharing(&carried).ok_or(BeginError::Frames)?;
        let made = Self::make(begin, homes, place, waiters, frames, round.links.now(), times);
        let made = made.and_then(|made| Ok((made, Foresight::new(vcpus + 1).map_err(BeginError::Config)?)));
        made.map(|((coherence, profile), foresight)| Self {
            coherence,
            desk: Desk {
                nodes: shares.iter().map(|share| share.node).collect(),
                run: begin.run,
                ..Desk::default()
            },
            me: NodeId(u8::try_from(place).unwrap_or(u8::MAX)),
            waiters: Waiters::new(vcpus),
            ahead: Ahead::new(foresight, vcpus + 1),
            times,
            profile,
            carried: carried.iter().copied().collect(),
            owed: NO_FRAME,
            failures: 0,
            next_poll: NEVER,
            next_try: NEVER,
            has_more: true,
            stuck: None,
            is_severed: false,
            received: 0,
            dropped: Dropped::default(),
            remote: 0,
            remote_user: 0,
            refused: 0,
            starved: 0,
        })
        .inspect_err(|_| round.memory.begin_reset())
    }

    fn make(
        begin: &Begin,
        homes: Homes,
        place: usize,
        waiters: u8,
        frames: u32,
        now: u64,
        times: Times,
    ) -> Result<(Coherence, Profile), BeginError> {
        // A page that was asked for and waits for room is the one page of its requester's slot.
        let slots = usize::from(waiters) + usize::from(EVICTIONS);
        let on_their_way = (begin.shares.len() - 1) * slots + usize::from(EVICTIONS);
        let frames = u32::try_from(on_their_way).ok().and_then(|slack| frames.checked_sub(slack));
        let frames = frames.filter(|frames| *frames > 0).ok_or(BeginError::Frames)?;
        // What is over when all pages of this node's share are here is for its own faults.
        let share = begin.shares.get(place).map_or(0, |share: &Share| share.pages);
        let spare = u64::from(frames).saturating_sub(share).min(u64::from(frames / 8));
        let config = Config {
            node: NodeId(u8::try_from(place).map_err(|_| BeginError::Shares)?),
            homes,
            waiters,
            evictions: EVICTIONS,
            frames,
            spare_frames: u32::try_from(spare).unwrap_or(0),
            hold: times.hold,
            epoch: begin.run,
            seed: now ^ u64::from(begin.run) << 32,
        };
        Ok((Coherence::new(config).map_err(BeginError::Config)?, Profile::new().map_err(BeginError::Config)?))
    }
}
