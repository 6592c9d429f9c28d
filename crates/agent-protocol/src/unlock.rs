//! Unlocking an encrypted device: the task, the secret in it, and the agent's answer.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes that open a device. They are overwritten when they are dropped, and never printed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(#[serde(with = "serde_bytes")] Vec<u8>);

impl Secret {
    /// Takes over these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Keeps the bytes out of logs.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// Overwrites bytes with zeroes.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // The compiler must take the zeroes for read, or it may leave the write out. The standard
    // library promises no more than its best effort; without unsafe code nobody does.
    std::hint::black_box(bytes);
}

/// What opens a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Opener {
    /// A passphrase, from which the key is derived in the appliance.
    Passphrase(Secret),
    /// The volume key itself.
    VolumeKey(Secret),
}

/// The encryption of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encryption {
    /// LUKS.
    Luks,
    /// BitLocker.
    BitLocker,
}

/// Open an encrypted device as `/dev/mapper/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unlock {
    /// Number of the next frame.
    pub sequence: u32,
    /// Path of the device in the appliance.
    pub device: String,
    /// Name of the device to make.
    pub name: String,
    /// How it is encrypted.
    pub encryption: Encryption,
    /// What opens it.
    pub opener: Opener,
    /// Time limit in seconds.
    pub seconds: u64,
}

/// How an attempt to unlock a device ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unlocked {
    /// It is open.
    Yes,
    /// The key does not fit.
    No,
    /// Deriving the key takes more memory than there is.
    Memory,
    /// It took longer than the limit.
    Never,
}
