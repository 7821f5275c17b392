//! The kernel lock. Taken once at a kernel entry and given back before the way out, with interrupts off all the while;
//! it is the only lock that is held while another (the console's) is taken.
//!
//! It is not fair, and on purpose: with a ticket lock a virtual core whose turn it is but which does not run holds up
//! all others. Measured with 16 virtual cores on 2 real ones, a system call took 65 times longer that way. What is
//! done under the lock is short and bounded, so on cores of their own waiters are few.
#![expect(unsafe_code, reason = "the value is behind an UnsafeCell")]

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, Ordering};

use super::percpu;

/// A value behind a spin lock.
#[repr(align(64))]
pub struct Lock<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the lock lets one core at a time reach the value.
unsafe impl<T: Send> Sync for Lock<T> {}

/// The right to the value; dropping it frees the lock. Only a lock in a static gives one out.
pub struct Guard<T: 'static> {
    lock: &'static Lock<T>,
}

impl<T> Lock<T> {
    /// A free lock.
    pub const fn new(value: T) -> Self {
        Self { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Waits for the lock. A core that holds it already waits for ever.
    #[inline]
    pub fn lock(&'static self) -> Guard<T> {
        if self.taken.swap(true, Ordering::Acquire) {
            self.wait();
        }
        Guard { lock: self }
    }

    #[cold]
    fn wait(&self) {
        let status = percpu::status();
        status.wait_for_lock(true);
        loop {
            while self.taken.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
            if !self.taken.swap(true, Ordering::Acquire) {
                status.wait_for_lock(false);
                return;
            }
        }
    }
}

impl<T> Deref for Guard<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one, and it lends the value no longer than it lives.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Guard<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard is the only one, and it lends the value no longer than it lives.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Guard<T> {
    #[inline]
    fn drop(&mut self) {
        self.lock.taken.store(false, Ordering::Release);
    }
}
