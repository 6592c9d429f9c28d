//! The end of a command's output.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Most bytes that are kept.
const ROOM: usize = 16 << 10;

/// The last bytes of a stream. It can be read while more arrive.
#[derive(Clone, Debug, Default)]
pub struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    /// Starts to read `from` to its end, on a thread of its own. Nobody waits for that thread,
    /// since a process that inherits the stream may keep it open for ever.
    pub fn of(mut from: impl Read + Send + 'static) -> Self {
        let tail = Self::default();
        let kept = tail.clone();
        thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut buf) {
                kept.push(&buf[..length]);
            }
        });
        tail
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let too_many = kept.len().saturating_sub(ROOM);
        kept.drain(..too_many);
    }

    /// The last lines, up to `most`, as the command wrote them. The first may be incomplete.
    pub fn lines(&self, most: usize) -> Vec<Vec<u8>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &*kept.make_contiguous();
        let mut lines: Vec<Vec<u8>> = bytes
            .strip_suffix(b"\n")
            .unwrap_or(bytes)
            .rsplit(|&byte| byte == b'\n')
            .take(if bytes.is_empty() { 0 } else { most })
            .map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec())
            .collect();
        lines.reverse();
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept() {
        let tail = Tail::default();
        assert!(tail.lines(3).is_empty());
        tail.push(b"one\r\ntwo\n\nth");
        assert_eq!(tail.lines(9), [&b"one"[..], b"two", b"", b"th"]);
        tail.push(b"ree\n");
        assert_eq!(tail.lines(2), [&b""[..], b"three"]);
        (0..10_000).for_each(|number| tail.push(format!("{number}\n").as_bytes()));
        assert_eq!(tail.lines(1), [b"9999"]);
        assert!(tail.lines(usize::MAX).concat().len() <= ROOM);
    }
}
