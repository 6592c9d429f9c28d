//! The part of a walk that finds files of ext2, ext3 and ext4 that no directory names. The kernel
//! neither lists nor opens them.

use super::Walker;
use crate::Fatal;
use crate::ext::{Ext, extents};
use rustix::fs::FileType;
use virt_bmap_agent_protocol::Record;
use virt_bmap_agent_protocol::record::{ATTRIBUTES, Extent, Object, ObjectKind};
use virt_bmap_on_disk::ext::Orphan;
use virt_bmap_on_disk::nanoseconds;

impl Walker {
    /// Reports the orphans.
    pub(super) fn find_orphans(&mut self) -> Result<(), Fatal> {
        let ext = self.kind.is_ext().then(|| Ext::open(self.device)).flatten();
        ext.iter().flat_map(Ext::orphans).try_for_each(|orphan| self.orphan(&orphan))
    }

    fn orphan(&mut self, orphan: &Orphan) -> Result<(), Fatal> {
        let kind = match FileType::from_raw_mode(orphan.mode) {
            FileType::Directory => ObjectKind::Directory,
            FileType::Symlink => ObjectKind::Symlink,
            FileType::RegularFile => ObjectKind::File,
            _ => return Ok(()),
        };
        let id = self.number()?;
        self.control.put(&Record::Object(Object {
            id,
            parent: 0,
            kind,
            inode: orphan.inode,
            size: orphan.size,
            allocated: orphan.allocated,
            links: 0,
            mode: orphan.mode,
            owner: None,
            modified: nanoseconds(orphan.modified, 0),
            changed: nanoseconds(orphan.changed, 0),
            born: None,
            name: Vec::new(),
        }));
        self.put_extents(
            id,
            &orphan.place.as_ref().map(|place| extents(place.data.iter().copied())).unwrap_or_default(),
        );
        self.control.put(&Record::Placed { id });
        if let Some(block) = orphan.place.as_ref().and_then(|place| place.attributes) {
            let extent = Extent { logical: 0, physical: block.start.0, length: block.len(), flags: 0 };
            self.put_extents(id | ATTRIBUTES, &[extent]);
        }
        self.found()
    }
}
