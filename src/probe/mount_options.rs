//! Mount options that one filesystem needs, besides those of its kind: what its superblock says.

use super::context::Context;
use super::device::{Device, Fields as _};
use super::superblock::Ext;
use crate::appliance::{Content, Inventory};
use virt_bmap_agent_protocol::FsKind;

/// What a filesystem needs to be mounted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) options: Option<String>,
    /// Its journal, if that is on another device.
    pub(super) journal: Option<Journal>,
}

/// The journal of a filesystem that is on another device.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Journal {
    /// On a device.
    On {
        /// The device.
        device: String,
        /// What it is called there.
        kind: FsKind,
    },
    /// The device is not there.
    Missing,
}

/// What this filesystem needs.
pub(super) fn of(context: &Context<'_>, inventory: &Inventory, filesystem: &Content) -> Needs {
    let kind = filesystem.kind.clone().unwrap_or_default();
    let size = inventory.device(&filesystem.device).map_or(0, |device| device.size);
    let device = Device::new(context.appliance, &filesystem.device, size);
    match kind {
        FsKind::Ufs => {
            let read = |at, length| device.read(at, length);
            Needs { options: ufs_type(&read).map(|kind| format!("ufstype={kind}")), journal: None }
        }
        FsKind::Ext3 | FsKind::Ext4 => {
            let superblock = device.read(Ext::AT, 1024).unwrap_or_default();
            external_journal(&superblock).map_or_else(Needs::default, |uuid| with_journal(inventory, &uuid))
        }
        FsKind::Xfs => {
            let uuid = device.read(0, 64).and_then(|superblock| external_log(&superblock));
            let is_it = |content: &&Content| content.kind == Some(FsKind::XfsLog);
            let mut logs = inventory.members.iter().filter(is_it);
            let log = uuid.and_then(|uuid| {
                logs.find(|log| {
                    let size = inventory.device(&log.device).map_or(0, |device| device.size);
                    let device = Device::new(context.appliance, &log.device, size);
                    device.read(0, size.min(LOG_BEGINNING)).is_some_and(|bytes| is_log_of(&bytes, uuid))
                })
            });
            // Without its log, the kernel does not mount it, and says so.
            log.map_or_else(Needs::default, |log| Needs {
                options: Some(format!("logdev={}", log.node)),
                journal: Some(Journal::On { device: log.device.clone(), kind: FsKind::XfsLog }),
            })
        }
        _ => Needs::default(),
    }
}

/// The kind of a UFS, in the words of Linux's driver (`fs/ufs/super.c`), by the magic number at the
/// end of the superblock (`struct fs` of FreeBSD's `ufs/ffs/fs.h`). UFS2 has it 64 KiB from the
/// beginning, UFS1 8 KiB.
fn ufs_type(read: super::device::Read<'_>) -> Option<&'static str> {
    const MAGIC_AT: u64 = 1372;
    let magic = |superblock: u64| read(superblock + MAGIC_AT, 4)?.le32(0);
    const UFS2: Option<u32> = Some(0x1954_0119);
    // Some programs put the superblock of UFS2 where that of UFS1 is, and Linux says so.
    if magic(64 << 10) == UFS2 || magic(8 << 10) == UFS2 {
        Some("ufs2")
    } else if magic(8 << 10) == Some(0x0001_1954) {
        Some("44bsd")
    } else {
        None
    }
}

/// The UUID of the journal of an ext3 or ext4 that has it on another device (`s_feature_compat`,
/// `s_journal_uuid`, `s_journal_inum`: "Super Block" in `Documentation/filesystems/ext4`).
fn external_journal(superblock: &[u8]) -> Option<String> {
    const HAS_JOURNAL: u32 = 4;
    let has_one = superblock.le32(0x5c)? & HAS_JOURNAL != 0 && superblock.le32(0xe0)? == 0;
    let uuid: [u8; 16] = superblock.bytes_at(0xd0).filter(|uuid| has_one && *uuid != [0; 16])?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    Some([0..4, 4..6, 6..8, 8..10, 10..16].map(|part| hex(&uuid[part])).join("-"))
}

/// Bytes of an XFS log in which the header of a record is looked for, as blkid does.
const LOG_BEGINNING: u64 = 256 << 10;

/// The UUID of an XFS that has its log on another device (`sb_logstart` and `sb_uuid`: "XFS
/// Algorithms & Data Structures", chapter "Allocation Groups").
fn external_log(superblock: &[u8]) -> Option<[u8; 16]> {
    let is_one = superblock.get(..4)? == b"XFSB" && superblock.le64(48)? == 0;
    superblock.bytes_at(32).filter(|_| is_one)
}

/// Whether the beginning of an XFS log has the header of a record of this filesystem
/// (`xlog_rec_header`: chapter "Journaling Log").
fn is_log_of(bytes: &[u8], uuid: [u8; 16]) -> bool {
    const MAGIC: u32 = 0xfeed_babe;
    let headers = bytes.chunks(512).filter(|sector| sector.be32(0) == Some(MAGIC));
    headers.filter_map(|header| header.bytes_at(304)).any(|it: [u8; 16]| it == uuid)
}

/// A mount with the journal of this UUID, or without it if no device has it.
fn with_journal(inventory: &Inventory, uuid: &str) -> Needs {
    let is_it = |content: &&Content| {
        content.kind == Some(FsKind::Jbd) && content.uuid.as_deref().is_some_and(|it| it == uuid)
    };
    match inventory.members.iter().find(is_it) {
        Some(Content { device, node, .. }) => Needs {
            options: Some(format!("journal_path={node}")),
            journal: Some(Journal::On { device: device.clone(), kind: FsKind::Jbd }),
        },
        None => Needs { options: Some("noload".to_owned()), journal: Some(Journal::Missing) },
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::reader;
    use super::*;

    #[test]
    fn kinds_of_ufs_are_told_by_their_magic_numbers() {
        let mut disk = vec![0; 128 << 10];
        assert_eq!(ufs_type(&reader(&disk)), None);
        disk[8192 + 1372..8192 + 1376].copy_from_slice(&[0x54, 0x19, 0x01, 0x00]);
        assert_eq!(ufs_type(&reader(&disk)), Some("44bsd"));
        disk[65536 + 1372..65536 + 1376].copy_from_slice(&[0x19, 0x01, 0x54, 0x19]);
        assert_eq!(ufs_type(&reader(&disk)), Some("ufs2"));
        assert_eq!(ufs_type(&reader(&disk[..9000])), None);
    }

    #[test]
    fn a_journal_on_another_device_is_found_by_its_uuid() {
        let mut superblock = vec![0; 1024];
        superblock[0x5c] = 4;
        superblock[0xd0..0xe0].copy_from_slice(&(0x10..0x20).collect::<Vec<u8>>());
        let uuid = "10111213-1415-1617-1819-1a1b1c1d1e1f";
        assert_eq!(external_journal(&superblock).as_deref(), Some(uuid));
        let journal = Content {
            device: "/dev/sda".into(),
            node: "/dev/sdb".into(),
            kind: Some(FsKind::Jbd),
            uuid: Some(uuid.into()),
            mount_options: None,
        };
        let inventory = Inventory { members: vec![journal], ..Inventory::default() };
        let needs = with_journal(&inventory, uuid);
        assert_eq!(needs.options.as_deref(), Some("journal_path=/dev/sdb"));
        let on = Journal::On { device: "/dev/sda".into(), kind: FsKind::Jbd };
        assert_eq!(needs.journal, Some(on));
        assert_eq!(with_journal(&Inventory::default(), uuid).journal, Some(Journal::Missing));
        superblock[0xe0] = 8;
        assert_eq!(external_journal(&superblock), None);
        assert_eq!(external_journal(&[]), None);
    }

    #[test]
    fn a_log_on_another_device_is_found_by_the_header_of_a_record() {
        let uuid = [7; 16];
        let mut superblock = vec![0; 64];
        superblock[..4].copy_from_slice(b"XFSB");
        superblock[32..48].copy_from_slice(&uuid);
        assert_eq!(external_log(&superblock), Some(uuid));
        superblock[55] = 1;
        assert_eq!(external_log(&superblock), None);
        assert_eq!(external_log(&superblock[..50]), None);
        let mut log = vec![0; 2048];
        log[1024..1028].copy_from_slice(&[0xfe, 0xed, 0xba, 0xbe]);
        log[1024 + 304..1024 + 320].copy_from_slice(&uuid);
        assert!(is_log_of(&log, uuid) && !is_log_of(&log, [8; 16]));
        assert!(!is_log_of(&log[..1300], uuid) && !is_log_of(&log[1..], uuid));
    }
}
