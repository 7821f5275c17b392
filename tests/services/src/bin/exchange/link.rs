//! The interconnect, for who exchanges frames through it.

use core::time::Duration;

use ipc::interfaces::interconnect::{
    Client, Counters, Exchange, ExchangeAnswer, ExchangeRequest, ExchangeTimes, Peer,
};
use ipc::message::CallError;
use rt::capability::Endpoint;

use crate::{Failure, fail};

/// How often it is asked for other nodes.
const LOOK: Duration = Duration::from_millis(50);
/// How long another node may take to appear.
const PEER_LIMIT: Duration = Duration::from_secs(60);

/// The interconnect.
pub struct Link {
    interconnect: Client<Endpoint>,
}

/// How an attempt at exchanges ended.
pub enum Attempt {
    /// The interconnect measured; not all of them need have been answered.
    Measured(ExchangeTimes),
    /// The other node is no member.
    NoPeer,
    /// The interconnect was restarted meanwhile; the next attempt goes to the new one.
    Restarted,
}

impl Link {
    /// Through this endpoint.
    pub fn new(interconnect: Endpoint) -> Self {
        Self { interconnect: Client::new(interconnect) }
    }

    /// What passed the node's card.
    pub fn counters(&mut self) -> Result<Counters, Failure> {
        match self.interconnect.counters() {
            Ok(Some(counters)) => Ok(counters),
            Ok(None) => fail!("this node has no network card"),
            Err(error) => fail!("the interconnect's counters: {error}"),
        }
    }

    /// Of the other members of the cluster the one whose card has the lowest address, once there is one.
    pub fn first_peer(&mut self) -> Result<Peer, Failure> {
        let deadline = rt::deadline_in(PEER_LIMIT);
        while rt::now() < deadline {
            match self.interconnect.peers() {
                Ok(peers) => {
                    let members = peers.iter().filter(|peer| peer.is_member);
                    if let Some(peer) = members.min_by_key(|peer| peer.mac) {
                        return Ok(*peer);
                    }
                }
                Err(error) => fail!("the interconnect's peers: {error}"),
            }
            rt::sleep(LOOK);
        }
        fail!("no other member within {} s", PEER_LIMIT.as_secs())
    }

    /// Has the interconnect exchange frames, and asks every `look` whether it is done.
    pub fn attempt(&mut self, request: &ExchangeRequest, look: Duration) -> Result<Attempt, Failure> {
        match self.begin(request)? {
            Some(ended) => Ok(ended),
            None => self.finish(look),
        }
    }

    /// Has the interconnect begin to exchange frames; how it ended, if it did not even begin.
    pub fn begin(&mut self, request: &ExchangeRequest) -> Result<Option<Attempt>, Failure> {
        match self.interconnect.begin_exchange(request) {
            Ok(ExchangeAnswer::Begun) => Ok(None),
            Ok(ExchangeAnswer::NoSuchPeer) => Ok(Some(Attempt::NoPeer)),
            Ok(ExchangeAnswer::NoCard) => fail!("this node has no network card"),
            Ok(ExchangeAnswer::TooLong(mtu)) => fail!("the link carries no page: its MTU is {mtu:?}"),
            Ok(ExchangeAnswer::Busy | ExchangeAnswer::OutOfRange) => {
                fail!("the interconnect does not begin {:?}", request.shape)
            }
            Err(CallError::Restarted) => Ok(Some(Attempt::Restarted)),
            Err(error) => fail!("the interconnect does not begin: {error}"),
        }
    }

    /// Waits for the end of what was begun.
    pub fn finish(&mut self, look: Duration) -> Result<Attempt, Failure> {
        loop {
            rt::sleep(look);
            match self.interconnect.exchange() {
                Ok(Exchange::Done(times)) => return Ok(Attempt::Measured(times)),
                Ok(Exchange::Running(_)) => {}
                Ok(Exchange::None) => fail!("the interconnect knows nothing of what it began"),
                Err(CallError::Restarted) => return Ok(Attempt::Restarted),
                Err(error) => fail!("the interconnect does not tell how it stands: {error}"),
            }
        }
    }
}
