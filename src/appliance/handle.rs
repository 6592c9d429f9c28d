//! The libguestfs handle: the `guestfs` crate, and a few calls of the C library that it lacks.

use super::ffi;
use super::kill::KillSwitch;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

/// A call into libguestfs that failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// libguestfs's message, control characters escaped; it may quote output of the appliance.
    pub message: String,
}

impl CallError {
    /// The same without the advice that libguestfs appends when a launch fails: a page on variables
    /// for debugging, which `--verbose` replaces here.
    pub(super) fn without_advice(mut self) -> Self {
        // The line feed is escaped.
        if let Some(end) = self.message.find("\\n") {
            self.message.truncate(end);
        }
        self
    }
}

/// The last lines of the appliance's console, qemu's own messages among them.
#[derive(Debug, Default)]
pub struct Console {
    lines: Mutex<ConsoleLines>,
}

#[derive(Debug, Default)]
struct ConsoleLines {
    whole: VecDeque<String>,
    /// Bytes of a line whose end has not come.
    partial: Vec<u8>,
    /// The message of the kernel's panic. A long backtrace may follow it.
    panic: Option<String>,
}

/// Lines of the console that are kept.
const CONSOLE_LINES: usize = 10;
/// A line longer than this is cut.
const CONSOLE_WIDTH: usize = 400;

impl Console {
    /// Appends what the appliance has written.
    pub(super) fn append(&self, text: &[u8]) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in text {
            if *byte == b'\n' || *byte == b'\r' {
                lines.end_line();
            } else if lines.partial.len() < CONSOLE_WIDTH {
                lines.partial.push(*byte);
            }
        }
    }

    /// The message of the kernel's panic, if it panicked, escaped for a terminal.
    pub fn panic(&self) -> Option<String> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.end_line();
        lines.panic.clone()
    }

    /// The last lines, oldest first, escaped for a terminal.
    pub fn tail(&self) -> Vec<String> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.end_line();
        lines.whole.iter().cloned().collect()
    }
}

impl ConsoleLines {
    fn end_line(&mut self) {
        let line = printable(&std::mem::take(&mut self.partial));
        if let Some((_, said)) = line.split_once("Kernel panic - not syncing: ") {
            self.panic = Some(said.trim_end_matches(" ]---").to_owned());
        }
        if !line.trim().is_empty() {
            self.whole.push_back(line);
            while self.whole.len() > CONSOLE_LINES {
                self.whole.pop_front();
            }
        }
    }
}

/// Text from the appliance, escaped for a terminal. Control sequences (ECMA-48), with which
/// consoles are coloured and cleared, are removed.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut printable = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' && rest.next_if_eq(&'[').is_some() {
            while rest.next_if(|c| matches!(c, '\u{20}'..='\u{3f}')).is_some() {}
            rest.next_if(|c| matches!(c, '\u{40}'..='\u{7e}'));
        } else if c.is_control() {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

/// An open libguestfs handle. Stays on the thread that made it.
pub(crate) struct Handle {
    // Dropped first: closing the handle may still call the call-back.
    guestfs: guestfs::Handle,
    console: Arc<Console>,
    kill: KillSwitch,
}

impl Drop for Handle {
    fn drop(&mut self) {
        // This ends qemu, and may hang; the kill switch still works then. Closing the handle then
        // starts children, too (`rm` for its temporary directory), which must not be killed.
        let _ = self.call(guestfs::Handle::shutdown);
        self.kill.disarm();
    }
}

impl Handle {
    /// Makes a handle that reports errors only through results, and arms the kill switch. `echo`:
    /// the console goes to standard error instead.
    pub(crate) fn create(console: Arc<Console>, kill: KillSwitch, echo: bool) -> Result<Self, CallError> {
        kill.arm();
        // Closing at exit would happen on another thread.
        let flags = guestfs::CreateFlags::new().create_no_close_on_exit_flag(true);
        let guestfs = guestfs::Handle::create_flags(flags)
            .map_err(|_| CallError { message: "libguestfs cannot create a handle".into() })?;
        ffi::print_no_errors(&guestfs);
        let handle = Self { guestfs, console, kill };
        if !echo {
            #[allow(unsafe_code)]
            // SAFETY: `handle.console` is dropped after the handle has been closed.
            unsafe {
                ffi::set_console(&handle.guestfs, Arc::as_ptr(&handle.console));
            }
        }
        if std::env::var_os("LIBGUESTFS_BACKEND").is_none_or(|backend| backend.is_empty()) {
            // The default may be libvirt, whose SELinux or AppArmor rules deny qemu our socket, and
            // which does not know its qemu before it launches one.
            handle.call(|g| g.set_backend("direct"))?;
        }
        Ok(handle)
    }

    /// Calls into libguestfs. A panic in the binding (it takes every message for UTF-8) is an
    /// error.
    pub(crate) fn call<T>(
        &self,
        call: impl FnOnce(&guestfs::Handle) -> Result<T, guestfs::Error>,
    ) -> Result<T, CallError> {
        match catch_unwind(AssertUnwindSafe(|| call(&self.guestfs))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(guestfs::Error::API(_))) | Err(_) => Err(CallError { message: self.last_error() }),
            Ok(Err(other)) => Err(CallError { message: format!("{other:?}") }),
        }
    }

    /// Whether the kill switch has been thrown.
    pub(crate) fn is_ending(&self) -> bool {
        self.kill.is_thrown()
    }

    fn last_error(&self) -> String {
        ffi::last_error(&self.guestfs).map_or_else(
            || "libguestfs reported an error without a message".into(),
            |message| printable(&message),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_keeps_its_last_lines_and_no_control_codes() {
        let console = Console::default();
        for number in 0..30 {
            console.append(format!("line {number}\r\n").as_bytes());
        }
        console.append(b"\x1b[2J\x1b[1;31mpa\x07rt\x1bc");
        let tail = console.tail();
        assert_eq!(tail.len(), CONSOLE_LINES);
        assert_eq!(tail.last().unwrap(), "pa\\u{7}rt\\u{1b}c");
        assert_eq!(tail[0], "line 21");
    }

    #[test]
    fn a_panic_is_found_on_the_console() {
        let console = Console::default();
        console.append(b"[    1.0] Kernel: panic is what it said\n");
        assert_eq!(console.panic(), None);
        console.append(
            b"[    2.0] Kernel panic - not syncing: Fatal exception\r\n[    2.1] Kernel Offset: 0x1\r\n",
        );
        assert_eq!(console.panic().unwrap(), "Fatal exception");
        console.append(b"[    2.2] ---[ end Kernel panic - not syncing: Fatal exception ]---\n");
        assert_eq!(console.panic().unwrap(), "Fatal exception");
    }

    #[test]
    fn errors_come_back_as_results() {
        let handle = Handle::create(Arc::default(), KillSwitch::default(), false).unwrap();
        let error = handle.call(guestfs::Handle::list_devices).unwrap_err();
        assert!(error.message.contains("launch"), "{error}");
    }
}
