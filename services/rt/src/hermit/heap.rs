//! Memory from the service's heap.

extern crate alloc as alloc_crate;

use alloc_crate::alloc::{alloc, alloc_zeroed, dealloc, realloc};
use core::alloc::Layout;
use core::ptr::null_mut;

use super::same_as_declared;

same_as_declared! {
    sys_malloc = malloc: unsafe extern "C" fn(usize, usize) -> *mut u8;
    sys_alloc = alloc: unsafe extern "C" fn(usize, usize) -> *mut u8;
    sys_alloc_zeroed = alloc_zeroed: unsafe extern "C" fn(usize, usize) -> *mut u8;
    sys_realloc = realloc: unsafe extern "C" fn(*mut u8, usize, usize, usize) -> *mut u8;
    sys_free = free: unsafe extern "C" fn(*mut u8, usize, usize);
    sys_dealloc = dealloc: unsafe extern "C" fn(*mut u8, usize, usize);
}

/// A layout that can be allocated: not of zero bytes.
fn layout(size: usize, align: usize) -> Option<Layout> {
    Layout::from_size_align(size, align).ok().filter(|layout| layout.size() != 0)
}

#[unsafe(no_mangle)]
extern "C" fn sys_alloc(size: usize, align: usize) -> *mut u8 {
    let Some(layout) = layout(size, align) else { return null_mut() };
    // SAFETY: the layout is not of zero bytes.
    unsafe { alloc(layout) }
}

#[unsafe(no_mangle)]
extern "C" fn sys_malloc(size: usize, align: usize) -> *mut u8 {
    sys_alloc(size, align)
}

#[unsafe(no_mangle)]
extern "C" fn sys_alloc_zeroed(size: usize, align: usize) -> *mut u8 {
    let Some(layout) = layout(size, align) else { return null_mut() };
    // SAFETY: the layout is not of zero bytes.
    unsafe { alloc_zeroed(layout) }
}

/// # Safety
/// As hermit-abi says: `memory` came from here with this size and alignment.
#[unsafe(no_mangle)]
unsafe extern "C" fn sys_realloc(memory: *mut u8, size: usize, align: usize, new_size: usize) -> *mut u8 {
    let (Some(old), Some(new)) = (layout(size, align), layout(new_size, align)) else { return null_mut() };
    if memory.is_null() {
        return null_mut();
    }
    // SAFETY: the caller owes where the memory came from; the new layout is possible and not of zero bytes.
    unsafe { realloc(memory, old, new.size()) }
}

/// # Safety
/// As hermit-abi says: `memory` is null or came from here with this size and alignment.
#[unsafe(no_mangle)]
unsafe extern "C" fn sys_dealloc(memory: *mut u8, size: usize, align: usize) {
    let Some(layout) = layout(size, align) else { return };
    if memory.is_null() {
        return;
    }
    // SAFETY: the caller owes where the memory came from.
    unsafe { dealloc(memory, layout) };
}

/// # Safety
/// As [`sys_dealloc`].
#[unsafe(no_mangle)]
unsafe extern "C" fn sys_free(memory: *mut u8, size: usize, align: usize) {
    // SAFETY: this function's caller owes the same.
    unsafe { sys_dealloc(memory, size, align) };
}
