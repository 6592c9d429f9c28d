//! Reads of the few bytes of a device that describe where its metadata lies.

use crate::appliance::Appliance;
pub(super) use virt_bmap_on_disk::{Fields, Read};

/// Bytes asked for at a time; libguestfs's messages hold 4 MiB.
const CHUNK: u64 = 1 << 20;

/// A device of the guest, read through the appliance: an unlocked device is read decrypted.
pub(super) struct Device<'a> {
    appliance: &'a Appliance,
    path: &'a str,
    pub(super) size: u64,
}

impl<'a> Device<'a> {
    pub(super) fn new(appliance: &'a Appliance, path: &'a str, size: u64) -> Self {
        Self { appliance, path, size }
    }

    /// Reads `length` bytes at `at`; `None` if that fails, or lies beyond the end.
    pub(super) fn read(&self, at: u64, length: u64) -> Option<Vec<u8>> {
        if at.checked_add(length)? > self.size {
            return None;
        }
        self.chunks(at, length, |count, at| {
            self.appliance.call(|g| g.pread_device(self.path, count, at)).ok()
        })
    }

    /// The output of a command in the appliance.
    pub(super) fn ask(&self, command: &str) -> Option<String> {
        self.appliance.shell(command).ok()
    }

    fn chunks(&self, at: u64, length: u64, read: impl Fn(i32, i64) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < length {
            let left = (length - bytes.len() as u64).min(CHUNK);
            let chunk = read(i32::try_from(left).ok()?, i64::try_from(at + bytes.len() as u64).ok()?)?;
            if chunk.is_empty() {
                return None;
            }
            bytes.extend(chunk);
        }
        Some(bytes)
    }
}

/// A reader of these bytes.
#[cfg(test)]
pub(super) fn reader(disk: &[u8]) -> impl Fn(u64, u64) -> Option<Vec<u8>> {
    let disk = disk.to_vec();
    move |at, length| Some(disk.get(at as usize..)?.get(..length as usize)?.to_vec())
}
