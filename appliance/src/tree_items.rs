//! Sends the items of the trees of a btrfs, by which the host knows which inodes have changed.

use crate::Fatal;
use crate::btrfs;
use crate::control::Control;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use virt_bmap_agent_protocol::bounds::ITEM_BYTES;
use virt_bmap_agent_protocol::{Record, TreeItems, VERSION};

/// Sends the devices, and the items. An error if there are too many.
pub(crate) fn run(control: &str, task: &TreeItems) -> Result<(), Fatal> {
    let mut control = Control::open(control, task.sequence)?;
    control.put(&Record::Hello { version: VERSION });
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME | OFlags::CLOEXEC;
    let root = open(&*task.root, flags, Mode::empty())?;
    for member in btrfs::members(&root)? {
        control.put(&Record::Member(member));
    }
    let mut left = ITEM_BYTES;
    for tree in btrfs::trees_of_files(&root)? {
        let mut sent = Ok(());
        let searched = btrfs::items(&root, tree, |items| {
            let rest = left.checked_sub(items.len() as u64);
            control.put(&Record::Items { tree, items: items.to_vec() });
            sent = rest.ok_or_else(|| "too many items".into()).and_then(|rest| {
                left = rest;
                control.flush()
            });
            sent.is_ok()
        });
        sent?;
        match searched {
            // A subvolume that is being deleted.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    control.put(&Record::Done);
    control.flush()
}
