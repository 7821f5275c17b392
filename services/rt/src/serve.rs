//! The loop of a service: it answers calls, takes notifications and keeps its own deadlines, one thing at a
//! time.

use ipc::abi::{NEVER, RECEIVE_MESSAGES, Token};
use ipc::message::{Caller, Message, MessagePage};

/// What a service does with what comes.
pub trait Service {
    /// Answers a message.
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message;

    /// Answers a message, or keeps the caller's token to answer it later (`syscall::reply`); then the answer is `None`.
    #[inline]
    fn call_or_keep<P: MessagePage>(
        &mut self,
        caller: Caller,
        message: Message,
        page: &mut P,
    ) -> Option<Message> {
        Some(self.call(caller, message, page))
    }

    /// The notification bits that the service waits for.
    fn bits(&self) -> u64 {
        0
    }

    /// Takes notification bits that were raised.
    fn notified(&mut self, _bits: u64) {}

    /// When the service wants [`Service::deadline_passed`], in TSC ticks; asked again after everything that
    /// came.
    fn deadline(&self) -> u64 {
        NEVER
    }

    /// Does what was to be done at the deadline.
    fn deadline_passed(&mut self, _now: u64) {}
}

/// What the loop waits for next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wait {
    /// The mask of the receive.
    pub mask: u64,
    /// Its deadline in TSC ticks.
    pub deadline: u64,
    /// The reply that goes out with it, and to whom.
    pub reply: (Token, Message),
}

/// What came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Came {
    /// A message.
    Message(Token, Message),
    /// Notification bits.
    Notified(u64),
    /// The deadline.
    Nothing,
}

const NO_REPLY: (Token, Message) = (Token::NOBODY, Message { label: ipc::abi::Label(0), words: [0; 4] });

/// The first wait of a service's loop.
pub fn first<S: Service>(service: &S) -> Wait {
    next(service, NO_REPLY)
}

fn next<S: Service>(service: &S, reply: (Token, Message)) -> Wait {
    Wait { mask: RECEIVE_MESSAGES | service.bits(), deadline: service.deadline(), reply }
}

/// One turn of the loop: has the service take what came at `now`, and says what to wait for next.
#[inline]
pub fn turn<S: Service, P: MessagePage>(service: &mut S, came: Came, now: u64, page: &mut P) -> Wait {
    let reply = match came {
        Came::Message(token, message) => match service.call_or_keep(Caller::of(token), message, page) {
            Some(reply) => (token, reply),
            None => NO_REPLY,
        },
        Came::Notified(bits) => {
            service.notified(bits);
            NO_REPLY
        }
        Came::Nothing => NO_REPLY,
    };
    // Looked at each time, and not only when nothing came: a flood of calls must not keep the deadline from
    // being kept. A call is answered first: what is done at the deadline may use the message page that holds
    // the reply.
    if reply.0 == Token::NOBODY && now >= service.deadline() {
        service.deadline_passed(now);
    }
    let mut wait = next(service, reply);
    if reply.0 != Token::NOBODY && now >= wait.deadline {
        // Reply, and take no further call before the deadline was kept.
        wait.mask &= !RECEIVE_MESSAGES;
        wait.deadline = 0;
    }
    wait
}

/// Runs a service.
#[cfg(feature = "metal")]
pub fn serve<S: Service>(service: &mut S) -> ! {
    use crate::syscall::{self, Received};

    let mut page = crate::page::Page;
    let mut wait = first(service);
    loop {
        let (token, reply) = wait.reply;
        let came = match syscall::receive(token, reply, wait.mask, wait.deadline) {
            Ok(Received::Message(token, message)) => Came::Message(token, message),
            Ok(Received::Notified(bits)) => Came::Notified(bits),
            // The deadline, or a poll that found nothing. The kernel refuses no receive of this form.
            Err(_) => Came::Nothing,
        };
        wait = turn(service, came, crate::entry::now(), &mut page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::abi::Label;

    #[derive(Default)]
    struct Recorder {
        calls: u64,
        bits: u64,
        kept: u64,
        due: u64,
    }

    struct NoPage;

    impl MessagePage for NoPage {
        fn write(&mut self, _bytes: &[u8]) {}
        fn read(&self, _out: &mut [u8]) {}
    }

    impl Service for Recorder {
        fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, _page: &mut P) -> Message {
            self.calls += 1;
            Message { label: message.label, words: [caller.service as u64, 0, 0, 0] }
        }

        fn bits(&self) -> u64 {
            6
        }

        fn notified(&mut self, bits: u64) {
            self.bits |= bits;
        }

        fn deadline(&self) -> u64 {
            self.due
        }

        fn deadline_passed(&mut self, now: u64) {
            self.kept += 1;
            self.due = now + 100;
        }
    }

    /// Keeps the token of every second call.
    struct Keeper(Token, u64);

    impl Service for Keeper {
        fn call<P: MessagePage>(&mut self, _caller: Caller, message: Message, _page: &mut P) -> Message {
            message
        }

        fn call_or_keep<P: MessagePage>(
            &mut self,
            caller: Caller,
            message: Message,
            page: &mut P,
        ) -> Option<Message> {
            self.1 += 1;
            if self.1.is_multiple_of(2) {
                self.0 = caller.token;
                return None;
            }
            Some(self.call(caller, message, page))
        }
    }

    #[test]
    fn a_call_that_is_kept_gets_no_reply() {
        let mut service = Keeper(Token::NOBODY, 0);
        assert_eq!(turn(&mut service, CALL, 10, &mut NoPage).reply.0, Token::new(3, 7, 1));
        let wait = turn(&mut service, CALL, 10, &mut NoPage);
        assert_eq!((wait.reply, wait.mask), (NO_REPLY, RECEIVE_MESSAGES));
        assert_eq!(service.0, Token::new(3, 7, 1));
    }

    const CALL: Came = Came::Message(Token::new(3, 7, 1), Message { label: Label(9), words: [0; 4] });

    #[test]
    fn a_reply_goes_out_with_the_next_wait() {
        let mut service = Recorder { due: 100, ..Recorder::default() };
        assert_eq!(first(&service), Wait { mask: RECEIVE_MESSAGES | 6, deadline: 100, reply: NO_REPLY });
        let wait = turn(&mut service, CALL, 10, &mut NoPage);
        assert_eq!(wait.reply.0, Token::new(3, 7, 1));
        assert_eq!(wait.reply.1, Message { label: Label(9), words: [7, 0, 0, 0] });
        assert_eq!((wait.mask, wait.deadline), (RECEIVE_MESSAGES | 6, 100));
        let wait = turn(&mut service, Came::Notified(4), 20, &mut NoPage);
        assert_eq!((wait.reply, service.bits), (NO_REPLY, 4));
    }

    #[test]
    fn a_deadline_is_kept_once_even_in_a_flood_of_calls() {
        let mut service = Recorder { due: 100, ..Recorder::default() };
        // The flood: each time calls are accepted there is one.
        let mut now = 0;
        let mut came = CALL;
        while now < 1_000 {
            now += 10;
            let wait = turn(&mut service, came, now, &mut NoPage);
            came = if wait.mask & RECEIVE_MESSAGES != 0 { CALL } else { Came::Nothing };
        }
        assert!(service.calls > 80, "{} calls", service.calls);
        assert!((8..=10).contains(&service.kept), "kept {} times", service.kept);
    }

    #[test]
    fn a_deadline_waits_for_nothing_else() {
        let mut service = Recorder { due: 100, ..Recorder::default() };
        turn(&mut service, Came::Nothing, 99, &mut NoPage);
        assert_eq!(service.kept, 0);
        turn(&mut service, Came::Nothing, 100, &mut NoPage);
        assert_eq!((service.kept, service.due), (1, 200));
        turn(&mut service, Came::Notified(2), 250, &mut NoPage);
        assert_eq!((service.kept, service.due), (2, 350));
    }
}
