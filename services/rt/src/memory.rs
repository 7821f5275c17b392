//! What the memory functions that compiled code calls are made of; [`symbols`] gives them their names.
//!
//! On the target that services are built for they come from the C library; a service has none. Bytes are
//! moved by string instructions, so the compiler cannot recognise the functions' own idiom in them and make
//! them call themselves.
#![expect(unsafe_code, reason = "moves bytes behind raw pointers")]

#[cfg(feature = "metal")]
mod symbols;

use core::arch::asm;

/// Copies `bytes` bytes, from the first to the last.
///
/// # Safety
/// As for `memmove`, and when the areas overlap `to` lies below `from`.
#[inline]
pub(crate) unsafe fn copy_up(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: the caller answers for both areas; DF is clear, as the ABI says.
    unsafe {
        asm!(
            "rep movsq",
            "mov ecx, eax",
            "rep movsb",
            inout("rcx") bytes / 8 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            in("eax") bytes % 8,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies `bytes` bytes between areas that may overlap.
///
/// # Safety
/// `from` and `to` are valid for `bytes` bytes.
#[inline]
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
    if to.addr().wrapping_sub(from.addr()) >= bytes {
        // `to` lies below `from` or past its end.
        // SAFETY: this function's caller owes the rest.
        unsafe { copy_up(to, from, bytes) };
        return;
    }
    // SAFETY: the caller answers for both areas; they are walked from their last bytes down, and DF is clear
    // again after. Overlap upwards means that `bytes` is at least 1, so the last bytes exist.
    unsafe {
        asm!(
            "std",
            "rep movsb",
            "cld",
            inout("rcx") bytes => _,
            inout("rdi") to.wrapping_add(bytes).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(bytes).wrapping_sub(1) => _,
            options(nostack)
        );
    }
}

/// Writes `value` to `bytes` bytes.
///
/// # Safety
/// `to` is valid for `bytes` bytes.
#[inline]
pub(crate) unsafe fn fill(to: *mut u8, value: u8, bytes: usize) {
    let pattern = u64::from(value) * 0x0101_0101_0101_0101;
    // SAFETY: the caller answers for the area; DF is clear, as the ABI says.
    unsafe {
        asm!(
            "rep stosq",
            "mov ecx, edx",
            "rep stosb",
            inout("rcx") bytes / 8 => _,
            inout("rdi") to => _,
            in("rax") pattern,
            in("edx") bytes % 8,
            options(nostack, preserves_flags)
        );
    }
}

/// Compares `bytes` bytes as `memcmp` does: negative, zero or positive.
///
/// # Safety
/// `left` and `right` are valid for `bytes` bytes.
#[inline]
pub(crate) unsafe fn compare(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    let mut at = 0;
    while at + 8 <= bytes {
        // SAFETY: the 8 bytes lie within the area that the caller answers for.
        let a = unsafe { left.wrapping_add(at).cast::<u64>().read_unaligned() };
        // SAFETY: likewise.
        let b = unsafe { right.wrapping_add(at).cast::<u64>().read_unaligned() };
        if a != b {
            return if a.swap_bytes() < b.swap_bytes() { -1 } else { 1 };
        }
        at += 8;
    }
    while at < bytes {
        // SAFETY: the byte lies within the area that the caller answers for.
        let a = unsafe { left.wrapping_add(at).read() };
        // SAFETY: likewise.
        let b = unsafe { right.wrapping_add(at).read() };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
        at += 1;
    }
    0
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    /// Bytes that all differ from their neighbours.
    fn pattern(length: u8) -> Vec<u8> {
        (0..length).map(|n| n.wrapping_mul(37)).collect()
    }

    #[test]
    fn every_overlap_and_length_is_copied_right() {
        for bytes in 0..40 {
            for (from, to) in (0..20).flat_map(|from| (0..20).map(move |to| (from, to))) {
                let mut memory = pattern(64);
                let mut expected = memory.clone();
                expected.copy_within(from..from + bytes, to);
                let base = memory.as_mut_ptr();
                // SAFETY: both areas lie in the 64 bytes.
                unsafe { copy(base.wrapping_add(to), base.wrapping_add(from), bytes) };
                assert_eq!(memory, expected, "{bytes} bytes from {from} to {to}");
            }
        }
    }

    #[test]
    fn every_length_is_filled_right() {
        for (start, bytes) in (0..9).flat_map(|start| (0..40).map(move |bytes| (start, bytes))) {
            let mut memory = pattern(64);
            let mut expected = memory.clone();
            expected[start..start + bytes].fill(0xa5);
            // SAFETY: the area lies in the 64 bytes.
            unsafe { fill(memory.as_mut_ptr().wrapping_add(start), 0xa5, bytes) };
            assert_eq!(memory, expected, "{bytes} bytes at {start}");
        }
    }

    #[test]
    fn the_first_difference_decides() {
        for bytes in 0..30usize {
            let left = pattern(30);
            // SAFETY: both areas lie in the 30 bytes.
            assert_eq!(unsafe { compare(left.as_ptr(), left.clone().as_ptr(), bytes) }, 0);
            for at in 0..bytes {
                let mut right = left.clone();
                right[at] = left[at].wrapping_add(100);
                // What comes after the first difference does not matter.
                right[at + 1..].fill(0xff);
                // SAFETY: both areas lie in the 30 bytes.
                let order = unsafe { compare(left.as_ptr(), right.as_ptr(), bytes) };
                assert_eq!(order.signum(), left[..bytes].cmp(&right[..bytes]) as i32, "{at} of {bytes}");
            }
        }
    }
}
