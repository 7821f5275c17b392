//! Decides over every page of guest memory: the program.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use ept::around::Policy;
use ept::fault::Fault;
use ept::frames::{Frame, Frames};
use ept::layout::{GuestPage, Layout};
use ept::memory::GuestMemory;
use ept::space::{Access, Contents, Space};
use ept::span::links::{BeginError, Links, Lost, Times};
use ept::{Ept, Guest, Place, StartError};
use ipc::abi::{Error, GUEST_ACCESS_NONE, GUEST_ACCESS_READ, GUEST_ACCESS_WRITE, GUEST_ZERO, Handle, Token};
use ipc::interfaces::ept::{INTERFACE, dispatch};
use ipc::interfaces::interconnect::{self, Frames as Carried, Incoming, Next, Outgoing, Sent};
use ipc::message::{CallError, Caller, Message, MessagePage};
use ipc::vcpu::Progress;
use rt::capability::{self, Endpoint, Notification};
use rt::inspector::Kernel;
use rt::membership::{self, Membership};
use rt::serve::{Service, serve};
use rt::start::Start;
use rt::syscall;

rt::entry!(main);

fn main(start: &'static Start<'static>) -> ! {
    let guest = start.guest().ok();
    let mut space = GuestSpace(guest.map(|guest| guest.handle));
    let mut links = Outside::new(start, guest.as_ref());
    let guest = guest.and_then(|guest| match memory(&guest) {
        Ok((layout, memory)) => {
            if start.generation() > 0 {
                lose(&mut links, &mut space, &layout);
            }
            let place = Place {
                platform: guest.platform.into(),
                nodes: guest.nodes,
                node: start.node(),
                vcpus: guest.vcpus,
                times: Times::new(start.clock()),
            };
            Some(Guest::new(memory, place))
        }
        Err(error) => {
            defmt::error!("no memory for a guest: {}", defmt::Debug2Format(&error));
            None
        }
    });
    serve(&mut Program {
        arrived: start.incoming("arrived-memory").unwrap_or(0),
        ept: Ept { inspector: Kernel, space, links, guest },
        membership: membership::own(env!("CARGO_PKG_VERSION"), Some(INTERFACE)),
    })
}

fn memory(guest: &capability::Guest) -> Result<(Layout, GuestMemory), StartError> {
    let layout = Layout::new(guest.pages, guest.private_pages.into())?;
    let count = u32::try_from(guest.frames).map_err(|_| StartError::TooManyFrames)?;
    // The kernel makes the pool of whole blocks; it refuses to make one page of what is not contiguous.
    let frames = Frames::new(count, |_| true)?;
    Ok((layout, GuestMemory::new(layout, frames, Policy::default())?))
}

/// What was known of the guest's pages is lost, and so are they: nothing is mapped any more, and the platform is told.
fn lose(links: &mut Outside, space: &mut GuestSpace, layout: &Layout) {
    for chunk in 0..layout.chunks() {
        let (first, count) = layout.chunk(chunk);
        if let Err(error) = space.unmap(first, count) {
            defmt::error!("guest page {=u64} stays mapped: {}", first.0, defmt::Display2Format(&error));
        }
    }
    links.tell_platform();
}

/// The interconnect, the platform, and those that wait for an answer.
struct Outside {
    guest: Option<Handle>,
    /// There when the guest spans nodes.
    interconnect: Option<interconnect::Client<Endpoint>>,
    memory_lost: Option<Notification>,
}

impl Outside {
    fn new(start: &Start<'_>, guest: Option<&capability::Guest>) -> Self {
        let interconnect = start.endpoint("interconnect").ok().map(interconnect::Client::new);
        if guest.is_some_and(|guest| guest.nodes > 1) && interconnect.is_none() {
            defmt::error!("the manifest does not let this service call the interconnect");
        }
        let guest = guest.map(|guest| guest.handle);
        Self { guest, interconnect, memory_lost: start.notification("memory-lost").ok() }
    }

    fn tell_platform(&self) {
        if let Some(lost) = &self.memory_lost
            && let Err(error) = lost.raise()
        {
            defmt::warn!("the platform is not told: {}", defmt::Display2Format(&error));
        }
    }

    fn interconnect(&mut self) -> Result<&mut interconnect::Client<Endpoint>, CallError> {
        self.interconnect.as_mut().ok_or(CallError::Kernel(Error::BadHandle))
    }
}

impl Links for Outside {
    #[inline]
    fn send(&mut self, outgoing: &Outgoing) -> Result<Sent, CallError> {
        self.interconnect()?.send(outgoing)
    }

    #[inline]
    fn receive(&mut self, next: Next) -> Result<Incoming, CallError> {
        self.interconnect()?.receive(&next)
    }

    fn frames(&mut self) -> Result<Carried, CallError> {
        let interconnect = self.interconnect()?;
        match interconnect.frames() {
            // It is told once, and nothing is lost by that now.
            Err(CallError::Restarted) => interconnect.frames(),
            answer => answer,
        }
    }

    fn are_there(&mut self, nodes: &[u16]) -> Result<bool, CallError> {
        let view = self.interconnect()?.view()?;
        Ok(view.is_some_and(|view| view.may_act && nodes.iter().all(|node| view.members.contains(node))))
    }

    fn reply(&mut self, token: Token, message: Message) {
        // One that was stopped meanwhile has no use for it.
        let _ = syscall::reply(token, message);
    }

    fn progress(&mut self, vcpu: u8) -> Option<Progress> {
        syscall::guest_progress(self.guest?, vcpu.into()).ok()
    }

    fn lost(&mut self, why: Lost) {
        defmt::error!("the guest's memory is lost: {}", defmt::Display2Format(&why));
        self.tell_platform();
    }

    fn not_begun(&mut self, why: BeginError) {
        defmt::error!("the guest's memory is not shared: {}", defmt::Debug2Format(&why));
    }

    fn now(&self) -> u64 {
        rt::now()
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
    ept: Ept<Kernel, GuestSpace, Outside>,
    membership: Membership<Endpoint>,
    /// The notification bits that say that there may be messages of other nodes.
    arrived: u64,
}

impl Service for Program {
    fn call<P: MessagePage>(&mut self, caller: Caller, message: Message, page: &mut P) -> Message {
        dispatch(&mut self.ept, caller, message, page)
    }

    #[inline]
    fn call_or_keep<P: MessagePage>(
        &mut self,
        caller: Caller,
        message: Message,
        page: &mut P,
    ) -> Option<Message> {
        match Fault::of(&message) {
            Some(fault) => self.ept.fault(fault, &message, caller.token),
            None => Some(self.call(caller, message, page)),
        }
    }

    fn bits(&self) -> u64 {
        self.arrived
    }

    fn notified(&mut self, bits: u64) {
        if bits & self.arrived != 0 {
            self.ept.arrived();
        }
    }

    fn deadline(&self) -> u64 {
        self.membership.due().min(self.ept.deadline())
    }

    fn deadline_passed(&mut self, now: u64) {
        if now >= self.membership.due() {
            membership::keep(&mut self.membership, now);
        }
        if now >= self.ept.deadline() {
            self.ept.work(now);
        }
    }
}
