//! Calling other services and raising their notifications, across their restarts.
//!
//! When a service was restarted, the call says so once, with [`Error::Restarted`], because whatever the
//! service knew of this client is lost; the handle is renewed by then, and the next call goes to the new
//! generation.

use ipc::abi::Error;
use ipc::message::{Message, MessagePage, Transport};

use crate::capability::{Current, Endpoint, Notification};
use crate::entry;
use crate::page::Page;
use crate::syscall;

/// Keeps `current` up to date with what a use of it ended with.
fn follow<T>(current: &Current, result: Result<T, Error>) -> Result<T, Error> {
    if let Err(Error::Restarted) = result {
        renew(current)?;
    }
    result
}

fn renew(current: &Current) -> Result<(), Error> {
    current.set(syscall::refresh(current.get())?);
    Ok(())
}

impl Notification {
    /// Raises the notification.
    ///
    /// # Errors
    /// [`Error::Restarted`] once after the other service was restarted, [`Error::Down`].
    #[inline]
    pub fn raise(&self) -> Result<(), Error> {
        follow(&self.0, syscall::notify(self.0.get()))
    }
}

impl MessagePage for Endpoint {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        Page.write(bytes);
    }

    #[inline]
    fn read(&self, out: &mut [u8]) {
        Page.read(out);
    }
}

impl Transport for Endpoint {
    #[inline]
    fn call(&mut self, message: Message, deadline: u64) -> Result<Message, Error> {
        follow(&self.0, syscall::call(self.0.get(), message, deadline))
    }

    fn refresh(&mut self) -> Result<(), Error> {
        renew(&self.0)
    }

    #[inline]
    fn now(&self) -> u64 {
        entry::now()
    }
}
