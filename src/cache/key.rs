//! Keys of what is in the cache.

use sha2::{Digest as _, Sha256};

/// Bytes of the digest that a key shows.
const SHOWN: usize = 16;

/// Makes a key out of all that a thing in the cache depends on.
#[derive(Default)]
pub(crate) struct KeyBuilder(Sha256);

impl KeyBuilder {
    /// Adds a part. Its length counts as well, so parts cannot run into each other.
    pub(crate) fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
    }

    /// The key, in hexadecimal.
    pub(crate) fn finish(self) -> String {
        hex(&self.0.finalize()[..SHOWN])
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
