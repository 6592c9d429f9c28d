//! Memory that `O_DIRECT` accepts.

use std::ops::{Deref, DerefMut};

/// What `O_DIRECT` may ask of addresses, lengths and offsets: the largest logical block size that
/// Linux had when this was written, which is a page.
pub(crate) const ALIGNMENT: usize = 4096;

/// Zeroed bytes that begin on a page.
pub(crate) struct AlignedBuffer {
    /// One page more than asked for, so that an aligned part of the right length is in it.
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    pub(crate) fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, length }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}
