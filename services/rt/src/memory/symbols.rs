//! The five names by which compiled code calls the memory functions, and the unwinder's that the precompiled
//! `core` names.
#![expect(unsafe_code, reason = "symbols with the C ABI, on raw pointers")]

/// # Safety
/// `from` and `to` are valid for `bytes` bytes and do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: this function's caller owes the same.
    unsafe { super::copy_up(to, from, bytes) };
    to
}

/// # Safety
/// `from` and `to` are valid for `bytes` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // SAFETY: this function's caller owes the same.
    unsafe { super::copy(to, from, bytes) };
    to
}

/// # Safety
/// `to` is valid for `bytes` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, bytes: usize) -> *mut u8 {
    let [value, ..] = value.to_le_bytes();
    // SAFETY: this function's caller owes the same.
    unsafe { super::fill(to, value, bytes) };
    to
}

/// # Safety
/// `left` and `right` are valid for `bytes` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    // SAFETY: this function's caller owes the same.
    unsafe { super::compare(left, right, bytes) }
}

/// # Safety
/// `left` and `right` are valid for `bytes` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, bytes: usize) -> i32 {
    // SAFETY: this function's caller owes the same.
    unsafe { super::compare(left, right, bytes) }
}

/// With `panic = "abort"` nothing calls it.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
