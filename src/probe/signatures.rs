//! Signatures on devices, and warnings of those that nothing uses.
//!
//! wipefs(8) lists every signature that it finds on a device, where blkid(8) chooses one. The few
//! that are younger than the appliance's wipefs are looked for here.

use super::context::Context;
use super::device::{Fields as _, Read};
use super::devices::Layouts;
use super::unlock::is_encrypted;
use crate::appliance::{BlockDevice, DeviceKind, DeviceNumber, DmTarget, Inventory};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use virt_bmap_agent_protocol::{Class, FsKind};
use virt_bmap_map::Cause;

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
pub(super) fn find(context: &Context<'_>, inventory: &Inventory, layouts: &Layouts) -> Signatures {
    /// Devices in one call: it has a program to start, and libguestfs's messages hold 4 MiB.
    const AT_ONCE: usize = 32;
    let devices: Vec<&BlockDevice> = inventory.devices().filter(|device| device.size > 0).collect();
    let mut all = Signatures::new();
    for some in devices.chunks(AT_ONCE) {
        // wipefs ends at the first device that it cannot read.
        let found = ask(context, some)
            .unwrap_or_else(|| some.iter().filter_map(|device| ask(context, &[device])).flatten().collect());
        for (device, signature) in found {
            add(all.entry(device).or_default(), signature);
        }
    }
    for device in devices {
        let Some(layout) = layouts.by_path.get(&device.path) else { continue };
        if let Some(bcachefs) = bcachefs(&|at, length| layout.read(context.disks, at, length)) {
            let known = all.entry(device.path.clone()).or_default();
            if !known.iter().any(|known| matches!(known.kind.name(), "bcachefs" | "bcache")) {
                add(known, bcachefs);
            }
        }
    }
    all
}

/// The signatures of some devices, each with the device's name; `None` if wipefs failed.
fn ask(context: &Context<'_>, devices: &[&BlockDevice]) -> Option<Vec<(String, Signature)>> {
    let nodes: Vec<String> = devices.iter().map(|device| kernel_node(device)).collect();
    let quoted: Vec<String> = nodes.iter().map(|node| crate::appliance::quote(node)).collect();
    let said = context.appliance.shell(&format!(
        "wipefs --json -O DEVICE,USAGE,TYPE,LABEL {} 2>/dev/null > /tmp/signatures || exit; \
         LC_ALL=C tr -c '\\n -~' '?' < /tmp/signatures",
        quoted.join(" ")
    ));
    let named = |(node, signature): (String, Signature)| {
        let is_it = |name: &&String| name.strip_prefix("/dev/") == Some(node.as_str());
        let index = nodes.iter().position(|name| is_it(&name))?;
        Some((devices[index].path.clone(), signature))
    };
    Some(listed(&said.ok()?).into_iter().filter_map(named).collect())
}

/// The kernel's own name of a device, whose last part, which wipefs prints, is no other's.
fn kernel_node(device: &BlockDevice) -> String {
    let is_plain = ["/dev/sd", "/dev/md"].iter().any(|start| device.node.starts_with(start));
    if is_plain { device.node.clone() } else { format!("/dev/dm-{}", device.number.1) }
}

/// Adds a signature, once for each kind.
fn add(signatures: &mut Vec<Signature>, new: Signature) {
    match signatures.iter_mut().find(|known| known.kind == new.kind) {
        Some(known) => known.label = known.label.take().or(new.label),
        None => signatures.push(new),
    }
}

/// The signatures in a report of wipefs, each with the last part of its device's name.
fn listed(report: &str) -> Vec<(String, Signature)> {
    #[derive(Deserialize)]
    struct Report {
        signatures: Vec<Row>,
    }
    #[derive(Deserialize)]
    struct Row {
        device: String,
        usage: Usage,
        #[serde(rename = "type")]
        name: String,
        label: Option<String>,
    }
    let rows = serde_json::from_str::<Report>(report).map(|report| report.signatures).unwrap_or_default();
    let signature = |Row { device, usage, name, label }| {
        let label = label.filter(|label: &String| !label.is_empty() && label.len() <= LABEL);
        (device, Signature { kind: FsKind::from_name(&name), usage, label })
    };
    rows.into_iter().map(signature).collect()
}

/// `struct bch_sb` of bcachefs's `bcachefs_format.h`: the superblock is 4096 bytes from the
/// beginning, its magic number 24 bytes into it, and its label after that and two UUIDs. libblkid
/// knows it since 2.39.
fn bcachefs(read: Read<'_>) -> Option<Signature> {
    /// `BCHFS_MAGIC`, and `BCACHE_MAGIC`, which the first versions have.
    const MAGIC: [[u8; 16]; 2] = [
        *b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
        *b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ];
    let superblock = read(4096, 512)?;
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
                // The boot sector of a filesystem ends like an MBR. Where the kernel finds no
                // partitions, there are none to speak of.
                Usage::PartitionTable => !(is_split && mounted.contains_key(&device.path)),
                _ if mounted.get(&device.path) == Some(signature) => true,
                // Where blkid chooses none, each was tried.
                Usage::Filesystem if kind.is_none() && !serves => true,
                _ if kind != Some(signature) => false,
                // A mount was tried, or a key was; or its array or volume group was looked for.
                _ if signature.is_journal() => false,
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
        DeviceKind::Dm { targets } => targets.iter().flat_map(DmTarget::devices).collect(),
        DeviceKind::Disk | DeviceKind::Partition { .. } => Vec::new(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_wipefs_are_read() {
        let report = r#"{ "signatures": [
            {"device":"sda", "usage":"filesystem", "type":"ext4", "label":null},
            {"device":"sda", "usage":"partition-table", "type":"dos", "label":null},
            {"device":"sda", "usage":"raid", "type":"zfs_member", "label":null},
            {"device":"sda", "usage":"raid", "type":"zfs_member", "label":"tank"},
            {"device":"sda", "usage":"new", "type":"news", "label":""} ] }"#;
        let mut found = Vec::new();
        for (device, signature) in listed(report) {
            assert_eq!(device, "sda");
            add(&mut found, signature);
        }
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
