//! The heap: the memory at [`HEAP_BASE`] that the manifest gives, behind a lock.
#![expect(unsafe_code, reason = "a global allocator deals in raw memory")]

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

use ipc::abi::HEAP_BASE;
use linked_list_allocator::Heap;

use crate::lock::Mutex;
use crate::region::address;

struct Allocator {
    heap: Mutex<Heap>,
}

#[global_allocator]
static ALLOCATOR: Allocator = Allocator { heap: Mutex::new(Heap::empty()) };

/// Takes the heap into use.
///
/// # Safety
/// Called once, before the first allocation, with the size that the start page gives.
pub(crate) unsafe fn initialise(bytes: usize) {
    if bytes == 0 {
        return;
    }
    let base = ptr::with_exposed_provenance_mut::<u8>(address(HEAP_BASE));
    // SAFETY: the kernel mapped these bytes for the heap, and nothing else refers to them.
    unsafe { ALLOCATOR.heap.lock().init(base, bytes) };
}

/// Bytes of the heap in use, and bytes free.
#[must_use]
pub fn usage() -> (usize, usize) {
    let heap = ALLOCATOR.heap.lock();
    (heap.used(), heap.free())
}

// SAFETY: the memory comes from `Heap`, which keeps allocations apart, and no two threads use it at once.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.heap.lock().allocate_first_fit(layout).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        let Some(memory) = NonNull::new(memory) else { return };
        // SAFETY: the caller owes that the memory came from `alloc` with this layout.
        unsafe { self.heap.lock().deallocate(memory, layout) };
    }
}
