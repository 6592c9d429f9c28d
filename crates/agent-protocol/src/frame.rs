//! Frames: the unit in which the agent writes to the control disk.
//!
//! | bytes | what |
//! |-------|------|
//! | 0..4  | [`MAGIC`] |
//! | 4..8  | sequence number, counted from 0 by one |
//! | 8..12 | length of the payload in bytes |
//! | 12..  | payload, then zeroes up to a multiple of [`ALIGNMENT`] |
//!
//! A frame is so small that neither the appliance's kernel nor qemu splits it: the halves of a
//! split write could arrive in either order.

/// First bytes of each frame.
pub const MAGIC: [u8; 4] = *b"vbm1";

/// Bytes before the payload.
pub const HEADER: usize = 12;

/// Frames are whole sectors.
pub const ALIGNMENT: usize = 512;

/// Largest frame in bytes. Sixteen pages are below every limit on the segments of one request.
pub const MAX: usize = 64 << 10;

/// Largest payload in bytes.
pub const ROOM: usize = MAX - HEADER;

/// Why bytes are not the expected frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than a header, longer than [`MAX`], or shorter than its payload.
    #[error("frame of impossible length {0}")]
    Length(usize),
    /// Does not begin with [`MAGIC`].
    #[error("not a frame")]
    Magic,
    /// Not the next sequence number.
    #[error("frame {got} arrived in place of frame {expected}")]
    Sequence {
        /// The number that comes next.
        expected: u32,
        /// The number in the frame.
        got: u32,
    },
}

/// Writes a frame into `buffer` and returns its length in bytes. The caller's buffer is in memory
/// that `O_DIRECT` accepts, so the payload is copied only once.
///
/// # Panics
/// If the payload is longer than [`ROOM`], or the buffer shorter than [`MAX`].
pub fn fill(buffer: &mut [u8], sequence: u32, payload: &[u8]) -> usize {
    let end = HEADER + payload.len();
    let length = end.next_multiple_of(ALIGNMENT);
    buffer[0..4].copy_from_slice(&MAGIC);
    buffer[4..8].copy_from_slice(&sequence.to_le_bytes());
    buffer[8..HEADER].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    buffer[HEADER..end].copy_from_slice(payload);
    buffer[end..length].fill(0);
    length
}

/// Returns a frame in a vector of its own.
///
/// # Panics
/// As [`fill`].
pub fn of(sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; MAX];
    let length = fill(&mut frame, sequence, payload);
    frame.truncate(length);
    frame
}

/// Returns the payload of a frame. `expected` is the sequence number that comes next.
///
/// # Errors
/// [`FrameError`] if the bytes are not that frame.
pub fn open(frame: &[u8], expected: u32) -> Result<&[u8], FrameError> {
    let word = |at: usize| frame.get(at..at + 4).and_then(|w| w.first_chunk::<4>()).copied();
    let (Some(magic), Some(sequence), Some(length)) = (word(0), word(4), word(8)) else {
        return Err(FrameError::Length(frame.len()));
    };
    if magic != MAGIC {
        return Err(FrameError::Magic);
    }
    let got = u32::from_le_bytes(sequence);
    if got != expected {
        return Err(FrameError::Sequence { expected, got });
    }
    if frame.len() > MAX {
        return Err(FrameError::Length(frame.len()));
    }
    let length = u32::from_le_bytes(length) as usize;
    frame[HEADER..].get(..length).ok_or(FrameError::Length(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_frame_never_change() {
        let frame = of(7, b"abc");
        assert_eq!(frame.len(), 512);
        assert_eq!(&frame[..16], b"vbm1\x07\0\0\0\x03\0\0\0abc\0");
        assert_eq!(open(&frame, 7), Ok(&b"abc"[..]));
    }

    #[test]
    fn other_bytes_are_refused() {
        let mut frame = of(0, b"");
        assert_eq!(open(&frame, 1), Err(FrameError::Sequence { expected: 1, got: 0 }));
        assert_eq!(open(&frame[..11], 0), Err(FrameError::Length(11)));
        assert_eq!(open(&[0; 512], 0), Err(FrameError::Magic));
        frame[8..12].copy_from_slice(&501u32.to_le_bytes());
        assert_eq!(open(&frame, 0), Err(FrameError::Length(501)));
        frame[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(open(&frame, 0), Err(FrameError::Length(u32::MAX as usize)));
        let mut long = of(0, &[1; ROOM]);
        assert_eq!(open(&long, 0).map(<[u8]>::len), Ok(ROOM));
        long.push(0);
        assert_eq!(open(&long, 0), Err(FrameError::Length(MAX + 1)));
    }
}
