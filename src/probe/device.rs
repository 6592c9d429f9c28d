//! Reads of the few bytes of a device that describe where its metadata lies.

use super::context::Context;
use super::layout::Layout;
use crate::appliance::Appliance;
use std::sync::Arc;
use virt_bmap_agent_protocol::FsKind;
use virt_bmap_image::Source;
pub(super) use virt_bmap_on_disk::{Fields, Read};

/// Bytes asked for at a time; libguestfs's messages hold 4 MiB.
const CHUNK: u64 = 1 << 20;

/// A device of the guest.
pub(super) struct Device<'a> {
    appliance: &'a Appliance,
    path: &'a str,
    pub(super) size: u64,
    /// Where its bytes are on the disks, if they are read there.
    on_disks: Option<(&'a Layout, Vec<Arc<dyn Source>>)>,
}

impl<'a> Device<'a> {
    /// A device that is read through the appliance: an unlocked device is read decrypted.
    pub(super) fn new(appliance: &'a Appliance, path: &'a str, size: u64) -> Self {
        Self { appliance, path, size, on_disks: None }
    }

    /// The device of a filesystem that is mounted. If that was done [again](Context::is_again), the
    /// device is read from the disks, which is faster. The driver must have written to them
    /// whatever it changed when it was mounted.
    pub(super) fn mounted(
        context: &'a Context<'_>,
        path: &'a str,
        kind: &FsKind,
        layout: &'a Layout,
    ) -> Self {
        let is_written = kind.is_ext() || *kind == FsKind::Xfs || !kind.facts().has_journal;
        let on_disks = (context.is_again && is_written).then(|| (layout, context.as_seen()));
        Self { appliance: context.appliance, path, size: layout.size(), on_disks }
    }

    /// Reads `length` bytes at `at`; `None` if that fails, or lies beyond the end.
    pub(super) fn read(&self, at: u64, length: u64) -> Option<Vec<u8>> {
        if at.checked_add(length)? > self.size {
            return None;
        }
        if let Some((layout, disks)) = &self.on_disks {
            return layout.read(disks, at, length);
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
