//! Mutual exclusion between the threads of one service, by futex.
//!
//! A thread that finds the lock taken sleeps, so a holder of the same core gets to run. A thread that faults
//! while it holds the lock takes the whole service with it, so a lock is never found taken by nobody.
#![expect(unsafe_code, reason = "a lock hands out a mutable reference from a shared one")]

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

use ipc::abi::NEVER;

use crate::syscall;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and somebody may sleep.
const WAITED_FOR: u32 = 2;

/// A value that one thread at a time may use.
#[derive(Debug)]
pub struct Mutex<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: `lock` lets one thread at a time at the value, which may itself go from thread to thread.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// A free lock.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self { state: AtomicU32::new(FREE), value: UnsafeCell::new(value) }
    }

    /// Waits until the value is free, and takes it until the guard is dropped. A thread that already holds it
    /// waits until its service's time budget or beat ends the service.
    pub fn lock(&self) -> Guard<'_, T> {
        if self.state.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.state.swap(WAITED_FOR, Ordering::Acquire) != FREE {
                // Every way in which the wait ends leads to the next attempt.
                let _ = syscall::futex_wait(&self.state, WAITED_FOR, NEVER);
            }
        }
        Guard { mutex: self }
    }
}

/// The right to use a [`Mutex`]'s value.
#[derive(Debug)]
pub struct Guard<'a, T> {
    mutex: &'a Mutex<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard exists once, so nobody else has a reference to the value.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard exists once and is borrowed mutably, so this reference is the only one.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        if self.mutex.state.swap(FREE, Ordering::Release) == WAITED_FOR {
            syscall::futex_wake(&self.mutex.state, 1);
        }
    }
}
