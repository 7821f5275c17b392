//! Decides over every page of guest memory: the program.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use ept::around::Policy;
use ept::frames::{Frame, Frames};
use ept::layout::{GuestPage, Layout};
use ept::memory::GuestMemory;
use ept::space::{Access, Contents, Space};
use ept::{Ept, StartError};
use ipc::abi::{Error, GUEST_ACCESS_NONE, GUEST_ACCESS_READ, GUEST_ACCESS_WRITE, GUEST_ZERO, Handle};
use ipc::interfaces::ept::{INTERFACE, dispatch};
use ipc::message::{Caller, Message, MessagePage};
use rt::capability::{Endpoint, Guest};
use rt::inspector::Kernel;
use rt::membership::{self, Membership};
use rt::serve::{Service, serve};
use rt::start::Start;
use rt::syscall;

rt::entry!(main);

fn main(start: &'static Start<'static>) -> ! {
    let guest = start.guest().ok();
    let mut space = GuestSpace(guest.map(|guest| guest.handle));
    let memory = guest.and_then(|guest| match memory(&guest) {
        Ok((layout, memory)) => {
            if start.generation() > 0 {
                lose(start, &mut space, &layout);
            }
            Some((memory, usize::from(guest.platform)))
        }
        Err(error) => {
            defmt::error!("no memory for a guest: {}", defmt::Debug2Format(&error));
            None
        }
    });
    serve(&mut Program {
        ept: Ept { inspector: Kernel, space, guest: memory },
        membership: membership::own(env!("CARGO_PKG_VERSION"), Some(INTERFACE)),
    })
}

fn memory(guest: &Guest) -> Result<(Layout, GuestMemory), StartError> {
    let layout = Layout::new(guest.pages, guest.private_pages.into())?;
    let count = u32::try_from(guest.frames).map_err(|_| StartError::TooManyFrames)?;
    // The kernel makes the pool of whole blocks; it refuses to make one page of what is not contiguous.
    let frames = Frames::new(count, |_| true)?;
    Ok((layout, GuestMemory::new(layout, frames, Policy::default())?))
}

/// What was known of the guest's pages is lost, and so are they: nothing is mapped any more, and the platform is told.
fn lose(start: &Start<'_>, space: &mut GuestSpace, layout: &Layout) {
    for chunk in 0..layout.chunks() {
        let (first, count) = layout.chunk(chunk);
        if let Err(error) = space.unmap(first, count) {
            defmt::error!("guest page {=u64} stays mapped: {}", first.0, defmt::Display2Format(&error));
        }
    }
    if let Ok(lost) = start.notification("memory-lost")
        && let Err(error) = lost.raise()
    {
        defmt::warn!("the platform is not told: {}", defmt::Display2Format(&error));
    }
}

/// The kernel's guest space.
struct GuestSpace(Option<Handle>);

impl Space for GuestSpace {
    #[inline]
    fn map(
        &mut self,
        first: GuestPage,
        frame: Frame,
        count: usize,
        access: Access,
        contents: Contents,
    ) -> Result<(), Error> {
        let access = match access {
            Access::Read => GUEST_ACCESS_READ,
            Access::ReadWrite => GUEST_ACCESS_WRITE,
        };
        let contents = match contents {
            Contents::Zero => GUEST_ZERO,
            Contents::AsIs => 0,
        };
        let handle = self.0.ok_or(Error::BadHandle)?;
        syscall::guest_map(handle, first.0, frame.0.into(), count as u64, access | contents)
    }

    fn unmap(&mut self, first: GuestPage, count: usize) -> Result<(), Error> {
        if count == 0 {
            return Ok(());
        }
        let handle = self.0.ok_or(Error::BadHandle)?;
        syscall::guest_map(handle, first.0, 0, count as u64, GUEST_ACCESS_NONE)
    }
}

struct Program {
    ept: Ept<Kernel, GuestSpace>,
    membership: Membership<Endpoint>,
}

impl Service for Program {
    #[inline]
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message {
        match self.ept.fault(&message) {
            Some(answer) => answer,
            None => dispatch(&mut self.ept, caller, message, page),
        }
    }

    fn deadline(&self) -> u64 {
        self.membership.due()
    }

    fn deadline_passed(&mut self, now: u64) {
        membership::keep(&mut self.membership, now);
    }
}
