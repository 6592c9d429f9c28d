//! The calls of libguestfs that the `guestfs` crate lacks.
//!
//! The crate offers neither error handlers nor event call-backs. Without the first, libguestfs
//! prints every failed call to standard error itself; without the second, the appliance's console,
//! which says why it died, is lost. Both need the C handle, which the crate keeps to itself.
//! guestfs(3) describes the calls.
#![allow(unsafe_code)]

use super::handle::Console;
use std::ffi::{CStr, c_char, c_int, c_void};

type EventCallback = unsafe extern "C" fn(
    g: *mut c_void,
    opaque: *mut c_void,
    event: u64,
    event_handle: c_int,
    flags: c_int,
    buf: *const c_char,
    buf_len: usize,
    array: *const u64,
    array_len: usize,
);

/// `GUESTFS_EVENT_APPLIANCE`: text on the appliance's console.
const EVENT_APPLIANCE: u64 = 0x10;

// From <guestfs.h>; the `guestfs` crate links the library.
unsafe extern "C" {
    fn guestfs_last_error(g: *mut c_void) -> *const c_char;
    fn guestfs_set_error_handler(
        g: *mut c_void,
        callback: Option<unsafe extern "C" fn(*mut c_void, *mut c_void, *const c_char)>,
        opaque: *mut c_void,
    );
    fn guestfs_set_event_callback(
        g: *mut c_void,
        callback: EventCallback,
        event_bitmask: u64,
        flags: c_int,
        opaque: *mut c_void,
    ) -> c_int;
}

/// The C handle.
fn raw(g: &guestfs::Handle) -> *mut c_void {
    const { assert!(size_of::<guestfs::Handle>() == size_of::<*mut c_void>()) };
    // SAFETY: the only field of `guestfs::Handle` is the C pointer, and the assertion above shows
    // that there is no room for another.
    unsafe { std::mem::transmute_copy(g) }
}

/// The message of the last call that failed.
pub(super) fn last_error(g: &guestfs::Handle) -> Option<Vec<u8>> {
    // SAFETY: the handle is open. It owns the text until its next call, and the text is copied
    // before that.
    unsafe {
        let text = guestfs_last_error(raw(g));
        (!text.is_null()).then(|| CStr::from_ptr(text).to_bytes().to_vec())
    }
}

/// Stops libguestfs from printing the messages of failed calls.
pub(super) fn print_no_errors(g: &guestfs::Handle) {
    // SAFETY: the handle is open. A null handler takes no data.
    unsafe { guestfs_set_error_handler(raw(g), None, std::ptr::null_mut()) }
}

/// Has the appliance's console appended to `console`.
///
/// # Safety
/// `console` must be valid until the handle has been closed.
pub(super) unsafe fn set_console(g: &guestfs::Handle, console: *const Console) {
    // SAFETY: the handle is open, and the caller keeps what the call-back uses.
    unsafe {
        guestfs_set_event_callback(raw(g), on_console, EVENT_APPLIANCE, 0, console.cast_mut().cast());
    }
}

unsafe extern "C" fn on_console(
    _g: *mut c_void,
    opaque: *mut c_void,
    _event: u64,
    _event_handle: c_int,
    _flags: c_int,
    buf: *const c_char,
    buf_len: usize,
    _array: *const u64,
    _array_len: usize,
) {
    if buf.is_null() {
        return;
    }
    // SAFETY: `opaque` is the pointer that `set_console` registered, to a `Console` that outlives
    // the handle. libguestfs passes `buf_len` bytes that are valid during the call.
    let (console, text) =
        unsafe { (&*opaque.cast::<Console>(), std::slice::from_raw_parts(buf.cast::<u8>(), buf_len)) };
    console.append(text);
}
