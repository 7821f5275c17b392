//! What the node gives the platform: guest memory through the window, state pages, and the kernel's calls for vCPUs.

use alloc::boxed::Box;

use ipc::abi::{NEVER, Token};
use ipc::message::Message;
use ipc::vcpu::{MAX_VCPUS, VcpuPage};
use rt::capability::Guest;
use rt::guest::{StatePages, Window};
use rt::membership;
use rt::syscall;
use vmm::cluster::message::{Access, Say};
use vmm::machine::Host;
use vmm::memory::{GuestMemory, GuestPhysAddr, NotMemory};

use crate::link::{Beats, Link};
use crate::terminal::Terminal;

/// The node.
pub struct Node {
    guest: Guest,
    window: Window,
    pages: StatePages,
    /// The console.
    pub terminal: Terminal,
    /// The way to the other nodes' platforms, when the guest spans nodes.
    pub link: Option<Box<Link>>,
    beats: Beats,
    /// An exit left something to do: output that the console took not at once, or messages.
    pub unfinished: bool,
    /// Of vCPUs whose exits are not answered yet.
    parked: [Token; MAX_VCPUS],
}

impl Node {
    /// The node of this guest; `None` when it was taken before.
    pub fn take(guest: Guest, terminal: Terminal, link: Option<Link>, beats: &Beats) -> Option<Self> {
        let pages = StatePages::take(&guest)?;
        let window = Window::new(&guest);
        let parked = [Token::NOBODY; MAX_VCPUS];
        let (link, beats) = (link.map(Box::new), beats.clone());
        Some(Self { guest, window, pages, terminal, link, beats, unfinished: false, parked })
    }

    /// The guest that the manifest describes.
    pub const fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Keeps the token of an exit.
    pub fn park(&mut self, vcpu: usize, token: Token) {
        if let Some(place) = self.parked.get_mut(vcpu) {
            *place = token;
        }
    }

    /// Starts every vCPU; whether all of them were stopped.
    pub fn start(&mut self) -> bool {
        (0..self.guest.vcpus).all(|vcpu| syscall::vcpu_start(self.guest.handle, vcpu.into()).is_ok())
    }

    /// Stops every vCPU.
    pub fn stop(&mut self) {
        for vcpu in 0..self.guest.vcpus {
            // There are as many as the manifest says.
            let _ = syscall::vcpu_stop(self.guest.handle, vcpu.into());
        }
        self.parked = [Token::NOBODY; MAX_VCPUS];
    }
}

fn number(vcpu: usize) -> u32 {
    u32::try_from(vcpu).unwrap_or(u32::MAX)
}

impl GuestMemory for Node {
    #[inline]
    fn read(&self, at: GuestPhysAddr, into: &mut [u8]) -> Result<(), NotMemory> {
        self.window.read(at.0, into).ok_or(NotMemory(at))
    }

    #[inline]
    fn write(&mut self, at: GuestPhysAddr, bytes: &[u8]) -> Result<(), NotMemory> {
        self.window.write(at.0, bytes).ok_or(NotMemory(at))
    }

    fn compare_exchange_u64(
        &mut self,
        at: GuestPhysAddr,
        old: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, NotMemory> {
        self.window.compare_exchange_u64(at.0, old, new).ok_or(NotMemory(at))
    }

    fn compare_exchange_u32(
        &mut self,
        at: GuestPhysAddr,
        old: u32,
        new: u32,
    ) -> Result<Result<u32, u32>, NotMemory> {
        self.window.compare_exchange_u32(at.0, old, new).ok_or(NotMemory(at))
    }
}

impl Host for Node {
    #[inline]
    fn now(&self) -> u64 {
        rt::now()
    }

    #[inline]
    fn page(&mut self, vcpu: usize) -> &mut VcpuPage {
        self.pages.get(vcpu)
    }

    fn fetch(&mut self, vcpu: usize) {
        // The vCPU is at an exit, or this is not asked.
        let _ = syscall::vcpu_fetch(self.guest.handle, number(vcpu));
    }

    fn kick(&mut self, vcpu: usize) {
        let _ = syscall::vcpu_kick(self.guest.handle, number(vcpu));
    }

    fn console_has_room(&mut self) -> bool {
        !self.terminal.is_full()
    }

    fn console(&mut self, bytes: &[u8]) {
        self.terminal.write(bytes);
        self.unfinished |= self.terminal.waits();
    }

    fn send(&mut self, node: u16, say: Say) {
        if let Some(link) = &mut self.link {
            link.send(node, say);
            self.unfinished |= link.due() != NEVER;
        }
    }

    fn ask(&mut self, access: Access) -> u32 {
        let Some(link) = &mut self.link else { return u32::MAX };
        self.unfinished = true;
        link.ask(access)
    }

    fn tend(&mut self) {
        membership::keep(&mut self.beats.borrow_mut(), rt::now());
    }

    fn unpark(&mut self, vcpu: usize) {
        let token = self.parked.get_mut(vcpu).map(|place| core::mem::replace(place, Token::NOBODY));
        if let Some(token) = token {
            // One that was stopped meanwhile has no use for it.
            let _ = syscall::reply(token, Message::default());
        }
    }
}
