//! Frames: what one write to the control disk carries.
//!
//! | bytes | what |
//! |-------|------|
//! | 0..4  | [`MAGIC`] |
//! | 4..8  | sequence number, counted from 0 by one |
//! | 8..12 | length of the payload in bytes |
//! | 12..  | payload, then zeroes up to a multiple of [`ALIGNMENT`] |
//!
//! A frame is small enough that neither the appliance's kernel nor qemu splits it: two halves of one
//! write could arrive in either order.

/// First bytes of each frame.
pub const MAGIC: [u8; 4] = *b"vbm1";

/// Bytes before the payload.
pub const HEADER: usize = 12;

/// Frames are whole sectors.
pub const ALIGNMENT: usize = 512;

/// Largest frame. Sixteen pages stay below every limit on the segments of one request.
pub const MAX: usize = 64 << 10;

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Shorter than a header, longer than [`MAX`], or shorter than it says.
    Length(usize),
    /// Does not begin with [`MAGIC`].
    Magic,
    /// Not the number that comes next.
    Sequence {
        /// The number that was due.
        expected: u32,
        /// The number in the frame.
        got: u32,
    },
}

impl std::fmt::Display for FrameError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length(length) => write!(f, "frame of impossible length {length}"),
            Self::Magic => write!(f, "not a frame"),
            Self::Sequence { expected, got } => write!(f, "frame {got} arrived in place of frame {expected}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Fills in the header of `frame`, whose payload begins at [`HEADER`] and ends with the vector, and
/// pads it.
pub fn seal(frame: &mut Vec<u8>, sequence: u32) {
    let payload = (frame.len() - HEADER) as u32;
    frame[0..4].copy_from_slice(&MAGIC);
    frame[4..8].copy_from_slice(&sequence.to_le_bytes());
    frame[8..12].copy_from_slice(&payload.to_le_bytes());
    frame.resize(frame.len().next_multiple_of(ALIGNMENT), 0);
}

/// Takes a frame apart and returns its payload. `expected` is the sequence number that is due.
///
/// # Errors
/// [`FrameError`] for whatever is not that frame.
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
    let length = u32::from_le_bytes(length) as usize;
    match frame.get(HEADER..).and_then(|payload| payload.get(..length)) {
        Some(payload) if frame.len() <= MAX => Ok(payload),
        _ => Err(FrameError::Length(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_frame_never_change() {
        let mut frame = vec![0; HEADER];
        frame.extend(b"abc");
        seal(&mut frame, 7);
        assert_eq!(frame.len(), 512);
        assert_eq!(&frame[..16], b"vbm1\x07\0\0\0\x03\0\0\0abc\0");
        assert_eq!(open(&frame, 7), Ok(&b"abc"[..]));
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let mut frame = vec![0; HEADER];
        seal(&mut frame, 0);
        assert_eq!(open(&frame, 1), Err(FrameError::Sequence { expected: 1, got: 0 }));
        assert_eq!(open(&frame[..11], 0), Err(FrameError::Length(11)));
        assert_eq!(open(&[0; 512], 0), Err(FrameError::Magic));
        frame[8..12].copy_from_slice(&501u32.to_le_bytes());
        assert_eq!(open(&frame, 0), Err(FrameError::Length(501)));
    }
}
