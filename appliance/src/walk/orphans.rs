//! The part of a walk that finds files of ext2, ext3 and ext4 that no directory names. The kernel
//! neither lists nor opens them. Their inodes say what they are, and debugfs(8) where they lie.

use super::Walker;
use super::batches::block_device;
use super::debugfs::{ASKED, ask};
use crate::Fatal;
use crate::ext::{Filesystem, Orphan};
use rustix::fs::{FileType, OFlags};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use virt_bmap_agent_protocol::Record;
use virt_bmap_agent_protocol::record::{ATTRIBUTES, Extent, Object, ObjectKind};

impl Walker {
    /// Reports the orphans.
    pub(super) fn find_orphans(&mut self) -> Result<(), Fatal> {
        if !self.kind.is_ext() {
            return Ok(());
        }
        // The kernel has replayed the journal into its cache, so the reads go through that.
        let Some((path, device)) = block_device(self.device, OFlags::empty()) else { return Ok(()) };
        let device = File::from(device);
        let read = |at: u64, length: u64| -> Option<Vec<u8>> {
            let mut bytes = vec![0; usize::try_from(length).ok()?];
            device.read_exact_at(&mut bytes, at).ok()?;
            Some(bytes)
        };
        let Some(filesystem) = Filesystem::read(&read) else { return Ok(()) };
        let block = filesystem.block();
        let of_file = filesystem.orphan_file().map(|inode| ask(&path, [inode].into_iter(), block));
        let blocks =
            of_file.iter().flat_map(HashMap::values).flat_map(|places| &places.extents).flat_map(|extent| {
                (0..extent.length / block).map(move |number| extent.physical + number * block)
            });
        let blocks: Vec<u64> = blocks.collect();
        for orphans in filesystem.orphans(&read, &blocks).chunks(ASKED) {
            let places = ask(&path, orphans.iter().map(|orphan| orphan.inode), block);
            for orphan in orphans {
                let extents = places.get(&orphan.inode).map_or(&[][..], |places| &places.extents);
                self.orphan(orphan, extents, block)?;
            }
        }
        Ok(())
    }

    fn orphan(&mut self, orphan: &Orphan, extents: &[Extent], block: u64) -> Result<(), Fatal> {
        let kind = match FileType::from_raw_mode(orphan.mode) {
            FileType::Directory => ObjectKind::Directory,
            FileType::Symlink => ObjectKind::Symlink,
            FileType::RegularFile => ObjectKind::File,
            _ => return Ok(()),
        };
        let id = self.number()?;
        let nanoseconds = |seconds: i64| seconds.saturating_mul(1_000_000_000);
        self.control.put(&Record::Object(Object {
            id,
            parent: 0,
            kind,
            inode: orphan.inode,
            size: orphan.size,
            allocated: orphan.allocated,
            links: 0,
            mode: orphan.mode,
            modified: nanoseconds(orphan.modified),
            changed: nanoseconds(orphan.changed),
            name: Vec::new(),
        }));
        self.put_extents(id, extents);
        self.control.put(&Record::Placed { id });
        if let Some(physical) = orphan.attributes {
            let extent = Extent { logical: 0, physical, length: block, flags: 0 };
            self.put_extents(id | ATTRIBUTES, &[extent]);
        }
        self.found()
    }
}
