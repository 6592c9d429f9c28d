//! The kernel's messages: syslog(2).

use crate::Fatal;
use std::io;

const READ_CLEAR: libc::c_int = 4;
const CLEAR: libc::c_int = 5;
const SIZE_BUFFER: libc::c_int = 10;

/// The kernel's messages since the last call.
pub(crate) fn messages() -> Result<String, Fatal> {
    let mut buffer = vec![0; syslog(SIZE_BUFFER, &mut [])?];
    let length = syslog(READ_CLEAR, &mut buffer)?;
    buffer.truncate(length);
    // They may repeat any bytes, such as the label of a filesystem; libguestfs requires text.
    for byte in buffer.iter_mut().filter(|byte| !byte.is_ascii() || **byte == 0) {
        *byte = b'?';
    }
    Ok(String::from_utf8(buffer)?)
}

/// Skips the messages so far: printing those of a boot takes longer than everything that follows.
pub(crate) fn clear() -> Result<(), Fatal> {
    syslog(CLEAR, &mut []).map(drop)
}

/// Keeps messages off the console, a serial line for which drivers wait with each message. The
/// message of a panic is printed all the same. A user who wants messages has set a level above 4.
pub(crate) fn quieten() -> Result<(), Fatal> {
    let levels = std::fs::read_to_string("/proc/sys/kernel/printk")?;
    let level = levels.split_whitespace().next().and_then(|level| level.parse::<u8>().ok());
    if level.is_none_or(|level| level <= 4) {
        std::fs::write("/proc/sys/kernel/printk", "1")?;
    }
    Ok(())
}

fn syslog(action: libc::c_int, buffer: &mut [u8]) -> Result<usize, Fatal> {
    let room = libc::c_int::try_from(buffer.len())?;
    #[allow(unsafe_code)]
    // SAFETY: the kernel writes at most `room` bytes into the buffer, which has as many.
    let result = unsafe { libc::klogctl(action, buffer.as_mut_ptr().cast(), room) };
    Ok(usize::try_from(result).map_err(|_| io::Error::last_os_error())?)
}
