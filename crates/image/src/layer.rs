//! The data that an image itself holds, its dirty bitmaps, and its internal snapshots.

use super::block_device::Description;
use super::link::Link;
use super::map_entry::MapEntry;
use super::served::Served;
use super::{Image, ImageFormat, OpenError, QemuArguments, Source, qemu_img, qemu_nbd};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use virt_bmap_child as child;
use virt_bmap_ranges::DiskRange;
use virt_bmap_ranges::IndexedRanges;

/// Asks for the extents of a metadata context of an NBD server.
const NBDINFO: &str = "nbdinfo";

/// Serves an image to nbdinfo.
const QEMU_NBD: &str = "qemu-nbd";

/// Most processor time for one of these programs: they read all of an image's tables.
const MAX_CPU: Duration = Duration::from_secs(1800);

/// What an image is that is asked for a snapshot and cannot have one.
pub(super) const NO_SNAPSHOTS: &str = "no qcow2 image, and so it has no snapshots inside";

/// The bytes of the disk that an image itself holds, without the images below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The bytes of the disk that take room in the image's file.
    pub data: IndexedRanges,
    /// The bytes that the image declares to be zeroes, whatever is below it.
    pub zeroes: IndexedRanges,
    /// Unit of allocation in the image, in bytes, if qemu knows it: a write of one byte allocates
    /// so many.
    pub cluster: Option<u64>,
}

impl Image {
    /// The bytes that this image itself holds, by `qemu-img map`. An image without images below it
    /// holds all, and so does a snapshot, whose tables qemu-img does not list.
    ///
    /// # Errors
    /// qemu-img cannot be run, or fails.
    pub fn layer(&self) -> Result<Layer, OpenError> {
        let QemuArguments { description, top, access, .. } = &self.qemu;
        let size = self.source.size();
        if self.chain.len() < 2 || self.snapshot.is_some() {
            let all = IndexedRanges::from_iter([DiskRange::new(0, size)]);
            return Ok(Layer { data: all, zeroes: IndexedRanges::default(), cluster: None });
        }
        let cluster = qemu_img::info(top, access)?.cluster_size;
        let (mut data, mut zeroes) = (Vec::new(), Vec::new());
        qemu_img::map(description, &top.path, MAX_CPU, access.force_share, |entry| {
            let range = entry.within(size);
            match entry {
                MapEntry { depth: 1.., .. } => {}
                MapEntry { data: true, .. } | MapEntry { present: true, offset: Some(_), .. } => {
                    join(&mut data, range);
                }
                MapEntry { present: true, zero: true, .. } => join(&mut zeroes, range),
                _ => {}
            }
        })?;
        Ok(Layer {
            data: IndexedRanges::from_unsorted(data),
            zeroes: IndexedRanges::from_unsorted(zeroes),
            cluster,
        })
    }

    /// The disk as it was at the internal snapshot `name` of a qcow2 image.
    ///
    /// # Errors
    /// It is not a qcow2 image, or has no such snapshot.
    pub fn snapshot(&self, name: &str) -> Result<Arc<dyn Source>, OpenError> {
        let QemuArguments { description, top, .. } = &self.qemu;
        Ok(Arc::new(snapshot(description, top, name)?))
    }

    /// The names of the snapshots inside a qcow2 image, the oldest first.
    ///
    /// # Errors
    /// It is not a qcow2 image, or qemu-img cannot be run.
    pub fn snapshots(&self) -> Result<Vec<String>, OpenError> {
        let QemuArguments { top, access, .. } = &self.qemu;
        if top.format != Some(ImageFormat::Qcow2) {
            return Err(OpenError::Unsupported { path: top.path.clone(), kind: NO_SNAPSHOTS });
        }
        Ok(qemu_img::info(top, access)?.snapshots.into_iter().map(|snapshot| snapshot.name).collect())
    }

    /// Passes the dirty bitmap `name` of a qcow2 image, or of one below it, to `read`: the output
    /// of `nbdinfo --map --json` for qemu-nbd's metadata context `qemu:dirty-bitmap:NAME`. Its
    /// extents are `dirty` or `clean`, in units of the bitmap's granularity.
    ///
    /// # Errors
    /// The programs cannot be run, the image has no such bitmap, the bitmap is inconsistent, or
    /// `read` fails.
    pub fn dirty_bitmap<T, E: std::error::Error>(
        &self,
        name: &str,
        read: impl FnOnce(&mut dyn io::Read) -> Result<T, E>,
    ) -> Result<T, OpenError> {
        let QemuArguments { description, top, .. } = &self.qemu;
        let refuse = |kind| Err(OpenError::Unsupported { path: top.path.clone(), kind });
        if self.format != ImageFormat::Qcow2 {
            return refuse("no qcow2 image, and so it has no bitmaps");
        }
        if self.snapshot.is_some() {
            return refuse("opened at a snapshot, and bitmaps are of the present state");
        }
        let mut command = child::command(NBDINFO.as_ref());
        command.arg(format!("--map=qemu:dirty-bitmap:{name}")).args(["--json", "--", "["]);
        command.args([QEMU_NBD, "--read-only", "--bitmap", name]);
        description.state(&mut command, &top.path)?;
        command.arg("]");
        qemu_img::ask(NBDINFO, command, &top.path, MAX_CPU, read)
    }
}

/// Starts a child that serves a snapshot inside a qcow2 image. `name`: the snapshot's name.
///
/// # Errors
/// As for [`Image::snapshot`].
pub(super) fn snapshot(description: &Description, top: &Link, name: &str) -> Result<Served, OpenError> {
    if top.format != Some(ImageFormat::Qcow2) {
        return Err(OpenError::Unsupported { path: top.path.clone(), kind: NO_SNAPSHOTS });
    }
    match qemu_nbd::start(description, top, Some(name)) {
        // The image itself has been opened before.
        Err(OpenError::Corrupt { path, reason, .. }) => Err(OpenError::Refused {
            program: QEMU_NBD,
            path,
            reason: format!("snapshot {name:?}: {reason}"),
        }),
        other => other,
    }
}

/// Neighbours are joined: most answers are long rows of them.
fn join(ranges: &mut Vec<DiskRange>, range: DiskRange) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
