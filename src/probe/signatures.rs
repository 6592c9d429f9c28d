//! Signatures on devices, and warnings of those that nothing uses.
//!
//! wipefs(8) lists every signature that it finds on a device, where blkid(8) chooses one. The few
//! that are younger than the appliance's wipefs are looked for here.

use super::context::Context;
use super::device::{Device, Fields as _};
use super::unlock::is_encrypted;
use crate::appliance::{BlockDevice, DeviceKind, DeviceNumber, Inventory};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use virt_bmap_agent_protocol::{Class, FsKind};
use virt_bmap_map::Cause;

/// Most signatures of one device that are taken in. ZFS has hundreds, of one kind.
const MOST: usize = 1024;

/// Longest label.
const LABEL: usize = 256;

/// A signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Signature {
    /// Its name in blkid(8).
    pub(super) kind: FsKind,
    pub(super) usage: Usage,
    /// The label that it bears.
    pub(super) label: Option<String>,
}

/// What the bearer of a signature is, as libblkid classes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Usage {
    Filesystem,
    Raid,
    Crypto,
    PartitionTable,
    #[serde(other)]
    Other,
}

/// The signatures of each device, by its name. Each kind is there once.
pub(super) type Signatures = BTreeMap<String, Vec<Signature>>;

/// Finds the signatures of all devices.
pub(super) fn find(context: &Context<'_>, inventory: &Inventory) -> Signatures {
    let mut all = Signatures::new();
    for block_device in inventory.devices().filter(|device| device.size > 0) {
        let device =
            Device::new(context.appliance, &block_device.path, &block_device.node, block_device.size);
        let node = crate::appliance::quote(&block_device.node);
        let said = device.ask(&format!(
            "wipefs --json -O USAGE,TYPE,LABEL {node} 2>/dev/null | LC_ALL=C tr -c '\\n -~' '?'"
        ));
        let mut signatures = listed(&said.unwrap_or_default());
        let is_table = |it: &Signature| it.usage == Usage::PartitionTable && it.kind.name() == "dos";
        if signatures.iter().any(is_table)
            && device.read(0, 512).is_some_and(|sector| has_no_partitions(&sector))
        {
            signatures.retain(|it| !is_table(it));
        }
        if let Some(bcachefs) = bcachefs(&device)
            && !signatures.iter().any(|known| matches!(known.kind.name(), "bcachefs" | "bcache"))
        {
            signatures.push(bcachefs);
        }
        if !signatures.is_empty() {
            all.insert(block_device.path.clone(), signatures);
        }
    }
    all
}

/// The signatures in a report of wipefs.
fn listed(report: &str) -> Vec<Signature> {
    #[derive(Deserialize)]
    struct Report {
        signatures: Vec<Row>,
    }
    #[derive(Deserialize)]
    struct Row {
        usage: Usage,
        #[serde(rename = "type")]
        name: String,
        label: Option<String>,
    }
    let rows = serde_json::from_str::<Report>(report).map(|report| report.signatures).unwrap_or_default();
    let mut signatures: Vec<Signature> = Vec::new();
    for Row { usage, name, label } in rows.into_iter().take(MOST) {
        let kind = FsKind::from_name(&name);
        let label = label.filter(|label| !label.is_empty() && label.len() <= LABEL);
        match signatures.iter_mut().find(|known| known.kind == kind) {
            Some(known) => known.label = known.label.take().or(label),
            None => signatures.push(Signature { kind, usage, label }),
        }
    }
    signatures
}

/// Whether a boot sector has no partition. It ends like an MBR, and wipefs takes that of an NTFS that
/// mkntfs made for one; the four entries of its table are zeroes.
fn has_no_partitions(sector: &[u8]) -> bool {
    sector.get(446..510).is_some_and(|entries| entries.iter().all(|byte| *byte == 0))
}

/// `struct bch_sb` of bcachefs's `bcachefs_format.h`: the superblock is 4096 bytes from the
/// beginning, its magic number 24 bytes into it, and its label after that and two UUIDs. libblkid
/// knows it since 2.39.
fn bcachefs(device: &Device<'_>) -> Option<Signature> {
    /// `BCHFS_MAGIC`, and `BCACHE_MAGIC`, which the first versions have.
    const MAGIC: [[u8; 16]; 2] = [
        *b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
        *b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ];
    let superblock = device.read(4096, 512)?;
    if !MAGIC.contains(&superblock.bytes_at(24)?) {
        return None;
    }
    let label = superblock.get(72..104)?.split(|byte| *byte == 0).next()?;
    let label = String::from_utf8_lossy(label).into_owned();
    let kind = FsKind::from_name("bcachefs");
    Some(Signature { kind, usage: Usage::Filesystem, label: (!label.is_empty()).then_some(label) })
}

/// Warns of each signature that nothing uses. `mounted` are the devices whose filesystems were
/// mounted, with the types as which they were.
pub(super) fn warn_of_unused(
    context: &Context<'_>,
    inventory: &Inventory,
    signatures: &Signatures,
    mounted: &BTreeMap<String, FsKind>,
) {
    let used = used_by_others(inventory);
    for device in inventory.devices() {
        let Some(found) = signatures.get(&device.path) else { continue };
        let content = inventory.content(&device.path);
        let kind = content.and_then(|content| content.kind.as_ref());
        let is_split = inventory.is_partitioned(device.number);
        let is_used = used.contains(&device.number);
        let serves = mounted.contains_key(&device.path)
            || is_split
            || is_used
            || kind.is_some_and(|kind| kind.class() == Class::Swap)
            || content.is_some_and(is_encrypted);
        for Signature { kind: signature, usage, label } in found {
            let has_been_said = match usage {
                Usage::PartitionTable => !mounted.contains_key(&device.path),
                _ if mounted.get(&device.path) == Some(signature) => true,
                // Where blkid chooses none, each was tried.
                Usage::Filesystem if kind.is_none() && !serves => true,
                _ if kind != Some(signature) => false,
                // A mount was tried, or a key was; or its array or volume group was looked for.
                _ if *signature == FsKind::Jbd => false,
                _ => !matches!(signature, FsKind::Other(_)) || signature.class() != Class::Member || is_used,
            };
            if has_been_said {
                continue;
            }
            let (signature, label) = (signature.name().to_owned(), label.clone());
            context.warn(
                &device.path,
                if serves && !(is_split && *usage == Usage::Raid) {
                    Cause::SignatureBesides { signature, label }
                } else {
                    Cause::SignatureUnused { signature, label }
                },
            );
        }
    }
}

/// The devices that arrays and mapped devices are made of. An array that could not be started, and
/// the container of arrays that a disk controller's set is, have no bytes.
fn used_by_others(inventory: &Inventory) -> BTreeSet<DeviceNumber> {
    let all = inventory.devices().chain(&inventory.hidden).filter(|device| device.size > 0);
    all.flat_map(|device: &BlockDevice| match &device.kind {
        DeviceKind::Md(array) => {
            array.members.iter().map(|member| member.device).chain(array.spares.iter().copied()).collect()
        }
        DeviceKind::Dm { targets } => targets.iter().flat_map(|target| target.devices()).collect(),
        DeviceKind::Disk | DeviceKind::Partition { .. } => Vec::new(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_sector_without_entries_is_no_partition_table() {
        let mut sector = vec![0; 512];
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        assert!(has_no_partitions(&sector) && !has_no_partitions(&sector[..500]));
        sector[450] = 7;
        assert!(!has_no_partitions(&sector));
    }

    #[test]
    fn reports_of_wipefs_are_read() {
        let report = r#"{ "signatures": [
            {"usage":"filesystem", "type":"ext4", "label":null},
            {"usage":"partition-table", "type":"dos", "label":null},
            {"usage":"raid", "type":"zfs_member", "label":null},
            {"usage":"raid", "type":"zfs_member", "label":"tank"},
            {"usage":"new", "type":"news", "label":""} ] }"#;
        let found = listed(report);
        let named: Vec<_> = found.iter().map(|it| (it.kind.name(), it.usage, it.label.as_deref())).collect();
        assert_eq!(
            named,
            [
                ("ext4", Usage::Filesystem, None),
                ("dos", Usage::PartitionTable, None),
                ("zfs_member", Usage::Raid, Some("tank")),
                ("news", Usage::Other, None),
            ]
        );
        for report in ["", "{}", "wipefs: error", r#"{"signatures":[{"type":1}]}"#] {
            assert_eq!(listed(report), []);
        }
    }
}
