//! Decides over every page of guest memory.
//!
//! There is no guest yet, so what it answers is what memory this node has to give.
#![no_std]
#![forbid(unsafe_code)]

use ipc::abi::Inspect;
use ipc::interfaces::ept::{Memory, Server};
use ipc::message::{Caller, Refused};
use rt::inspector::Inspector;

/// The service's state.
#[derive(Debug)]
pub struct Ept<I> {
    /// The kernel's counters.
    pub inspector: I,
}

impl<I: Inspector> Server for Ept<I> {
    fn memory(&mut self, _caller: Caller) -> Result<Memory, Refused> {
        let [frames_total, frames_free, ..] =
            self.inspector.inspect(Inspect::Node, 0).map_err(|_| Refused)?;
        Ok(Memory { frames_total, frames_free })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::abi::{Error, Token};

    struct Node(Result<[u64; 4], Error>);

    impl Inspector for Node {
        fn inspect(&self, item: Inspect, index: u64) -> Result<[u64; 4], Error> {
            assert_eq!((item, index), (Inspect::Node, 0));
            self.0
        }
    }

    #[test]
    fn memory_is_what_the_kernel_says() {
        let caller = Caller::of(Token::new(0, 1, 1));
        let mut ept = Ept { inspector: Node(Ok([1_000, 600, 4, 1])) };
        assert_eq!(ept.memory(caller), Ok(Memory { frames_total: 1_000, frames_free: 600 }));
        ept.inspector = Node(Err(Error::Refused));
        assert_eq!(ept.memory(caller), Err(Refused));
    }
}
