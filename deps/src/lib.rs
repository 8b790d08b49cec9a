//! Rust libraries for a program in C. `include/realm_deps.h` is the interface and its documentation;
//! this file holds what all of it shares: results, strings and the wall that no panic passes.

// Linked for its C functions, which `wasmtime.h` declares; nothing here calls it.
pub use wasmtime_c_api as _wasmtime;

pub mod grammar;
mod python;
pub mod template;

use std::any::Any;
use std::ffi::{c_char, c_int, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::slice;

/// The failures of `realm_deps_result`, with the sentence for `*error`.
#[derive(Debug)]
pub enum Failure {
    Invalid(String),
    TooLarge(String),
    Internal(String),
}

impl Failure {
    fn code(&self) -> c_int {
        match self {
            Failure::Invalid(_) => -1,
            Failure::TooLarge(_) => -15,
            Failure::Internal(_) => -16,
        }
    }

    pub fn message(&self) -> &str {
        match self {
            Failure::Invalid(m) | Failure::TooLarge(m) | Failure::Internal(m) => m,
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| s.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("a library failed: {}", text.as_deref().unwrap_or("no reason given"))
}

/// Runs `body` for a C caller: its failure or panic becomes a result and a text in `*error`.
///
/// # Safety
/// `error` is null or may be written.
unsafe fn guard(error: *mut *mut c_char, body: impl FnOnce() -> Result<(), Failure>) -> c_int {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return 0,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure::Internal(panic_message(&*panic)),
    };
    if !error.is_null() {
        // SAFETY: the caller's promise.
        unsafe { *error = to_c(failure.message().as_bytes()) };
    }
    failure.code()
}

/// Copies bytes into memory of the C library's, with a zero after them. Null only without memory.
fn to_c(bytes: &[u8]) -> *mut c_char {
    // SAFETY: malloc gives len + 1 bytes or null, and both writes stay inside.
    unsafe {
        let copy = libc::malloc(bytes.len() + 1).cast::<u8>();
        if !copy.is_null() {
            copy.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            copy.add(bytes.len()).write(0);
        }
        copy.cast()
    }
}

/// Hands a string to C.
///
/// # Safety
/// `out` and `out_size` may be written.
unsafe fn hand_out(
    bytes: &[u8],
    out: *mut *mut c_char,
    out_size: *mut usize,
) -> Result<(), Failure> {
    let copy = to_c(bytes);
    if copy.is_null() {
        return Err(Failure::TooLarge(format!("no memory for {} bytes of output", bytes.len())));
    }
    // SAFETY: the caller's promise.
    unsafe {
        *out = copy;
        *out_size = bytes.len();
    }
    Ok(())
}

/// # Safety
/// `data` points to `size` values, or `size` is 0.
unsafe fn borrow<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        // SAFETY: the caller's promise.
        unsafe { slice::from_raw_parts(data, size) }
    }
}

/// # Safety
/// As for [`borrow`].
unsafe fn borrow_text<'a>(
    data: *const c_char,
    size: usize,
    limit: usize,
    what: &str,
) -> Result<&'a str, Failure> {
    if size > limit {
        return Err(Failure::TooLarge(format!("{what} has {size} bytes; at most {limit} are allowed")));
    }
    // SAFETY: the caller's promise.
    std::str::from_utf8(unsafe { borrow(data.cast(), size) })
        .map_err(|e| Failure::Invalid(format!("{what} is not UTF-8 at byte {}", e.valid_up_to())))
}

/// # Safety
/// `string` is null or came from a function here and was not freed.
#[no_mangle]
pub unsafe extern "C" fn realm_deps_string_free(string: *mut c_char) {
    // SAFETY: to_c allocates with malloc.
    unsafe { libc::free(string.cast()) };
}

#[no_mangle]
pub extern "C" fn realm_deps_version() -> *const c_char {
    const VERSION: &CStr = c"wasmtime 48.0.8, llguidance 1.9.1, minijinja 2.24.0";
    VERSION.as_ptr()
}
