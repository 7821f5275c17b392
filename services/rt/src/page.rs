//! The calling thread's message page.
#![expect(unsafe_code, reason = "copies to and from memory that the kernel mapped and writes")]

use core::ptr;

use ipc::abi::{MAX_MESSAGE_BYTES, message_page};
use ipc::message::MessagePage;

use crate::region::address;
use crate::stack::current_slot;

/// The message page of whichever thread uses it. Reached by copies alone, so that no reference into it is
/// alive while a system call changes it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Page;

fn start() -> *mut u8 {
    ptr::with_exposed_provenance_mut(address(message_page(current_slot())))
}

impl MessagePage for Page {
    fn write(&mut self, bytes: &[u8]) {
        let count = bytes.len().min(MAX_MESSAGE_BYTES);
        // SAFETY: the kernel mapped the page for this thread, which alone writes it; a slice of this service
        // cannot lie in it, as no reference to it is ever made.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start(), count) };
    }

    fn read(&self, out: &mut [u8]) {
        let count = out.len().min(MAX_MESSAGE_BYTES);
        // SAFETY: as above; nothing writes the page while this thread is here.
        unsafe { ptr::copy_nonoverlapping(start().cast_const(), out.as_mut_ptr(), count) };
    }
}
