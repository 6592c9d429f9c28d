//! What lies around file systems: partition tables and boot code, labels and metadata of LVM, superblocks of
//! md, headers of LUKS, swap.
//!
//! The kernel and LVM have used all of these by now, and the devices that they describe exist. What is read
//! here is where they begin and end; each is looked for by its magic number.

use super::{Blocks, Put};
use crate::appliance::{BlockDevice, DeviceKind, Inventory};
use crate::bmap::{Kind, Marks};
use crate::probe::ProbeError;
use crate::probe::device::{Device, Fields};
use crate::probe::layout::Layout;
use crate::probe::survey::Context;
use crate::range::{DeviceOffset, Range};
use std::collections::HashMap;
use std::sync::Arc;

const SECTOR: u64 = 512;

/// Most logical partitions; Linux has 256 minors at most.
const MOST_LOGICAL: usize = 256;

/// How much of the gap before the first partition is looked at.
const LARGEST_GAP: u64 = 8 << 20;

/// A name, and what has it. `true`: its magic number is there, and so is all that it says of itself.
type Found = (&'static str, Vec<(u64, u64)>, bool);

/// Adds the metadata objects of devices, whose layouts have been proved.
pub(in crate::probe) fn devices(
    context: &Context<'_>,
    inventory: &Inventory,
    layouts: &HashMap<String, Arc<Layout>>,
) -> Result<(), ProbeError> {
    let mut free_extents = None;
    for block_device in inventory.devices() {
        let Some(layout) = layouts.get(&block_device.path) else { continue };
        let device =
            Device::new(context.appliance, &block_device.path, &block_device.node, block_device.size);
        let put = Put { context, device: &block_device.path };
        let all = inventory.contents.iter().chain(&inventory.members);
        let content =
            all.filter(|content| content.device == block_device.path).find_map(|c| c.kind.as_deref());
        let first = first_partition(inventory, block_device);
        let found = match content {
            _ if first.is_some() => partition_tables(&device, first.unwrap_or(0)),
            Some("LVM2_member") => {
                let free = free_extents.get_or_insert_with(|| ask_for_free_extents(&device));
                if let Some(free) = free.get(&block_device.node) {
                    let free: Blocks = free.iter().copied().collect();
                    put.blocks(Kind::Free, b"", &free, Marks::empty(), layout)?;
                }
                physical_volume(&device)
            }
            Some("linux_raid_member") => array_member(&device),
            Some("crypto_LUKS") => luks(&device),
            Some("swap") => Some(vec![("[swap]", vec![(0, block_device.size)], true)]),
            _ => None,
        };
        for (name, pieces, proved) in found.unwrap_or_default() {
            let inside = pieces.into_iter().filter_map(|(start, length)| {
                let range = Range::at(DeviceOffset(start), length)?;
                (range.end.0 <= block_device.size).then_some(range)
            });
            let marks = if proved { Marks::empty() } else { Marks::UNVERIFIED };
            put.blocks(Kind::Metadata, name.as_bytes(), &inside.collect(), marks, layout)?;
        }
    }
    Ok(())
}

/// Where the first partition of a disk begins.
fn first_partition(inventory: &Inventory, disk: &BlockDevice) -> Option<u64> {
    let starts = inventory.partitions.iter().filter_map(|partition| match partition.kind {
        DeviceKind::Partition { of, start } if of == disk.number => Some(start),
        _ => None,
    });
    starts.min()
}

fn partition_tables(device: &Device<'_>, first: u64) -> Option<Vec<Found>> {
    /// Where boot code ends: the disk's signature and the four entries follow.
    const CODE: usize = 440;
    let sector = device.read(0, SECTOR)?;
    if sector.le16(510)? != 0xaa55 {
        return None;
    }
    let has_code = sector[..CODE].iter().any(|byte| *byte != 0);
    let mut table = vec![if has_code { (CODE as u64, SECTOR - CODE as u64) } else { (0, SECTOR) }];
    let mut code = if has_code { vec![(0, CODE as u64)] } else { Vec::new() };
    let mut found = Vec::new();
    let mut end = SECTOR;
    if let Some((pieces, other)) = gpt(device, 1) {
        end = pieces.iter().map(|(start, length)| start.saturating_add(*length)).max().unwrap_or(end);
        table.extend(pieces);
        if let Some((pieces, _)) = gpt(device, other) {
            found.push(("[partition table copy]", pieces, true));
        }
    } else {
        table.extend(logical_tables(device, &sector));
    }
    found.push(("[partition table]", table, true));
    let gap = device.read(end, first.saturating_sub(end).min(LARGEST_GAP)).unwrap_or_default();
    for (start, sector) in (end..).step_by(SECTOR as usize).zip(gap.chunks(SECTOR as usize)) {
        if sector.iter().any(|byte| *byte != 0) {
            code.push((start, sector.len() as u64));
        }
    }
    // What else could be there is not said anywhere.
    found.push(("[boot code]", code, false));
    Some(found)
}

/// The header at a logical block and its array of entries, and where the other header is (UEFI specification,
/// "GUID Partition Table").
fn gpt(device: &Device<'_>, block: u64) -> Option<(Vec<(u64, u64)>, u64)> {
    let header = device.read(block.checked_mul(SECTOR)?, SECTOR)?;
    if header.get(..8)? != b"EFI PART" || header.le64(24)? != block {
        return None;
    }
    let length = u64::from(header.le32(80)?).checked_mul(header.le32(84)?.into())?;
    let entries = (header.le64(72)?.checked_mul(SECTOR)?, length.next_multiple_of(SECTOR));
    // Tables of a megabyte have thousands of entries.
    (length <= 1 << 20).then_some((vec![(block * SECTOR, SECTOR), entries], header.le64(32)?))
}

/// The sectors that chain the logical partitions inside of an extended one.
fn logical_tables(device: &Device<'_>, sector: &[u8]) -> Vec<(u64, u64)> {
    let extended = |sector: &[u8]| {
        (0..4).map(|n| 446 + 16 * n).find_map(|at| {
            let kind = sector.u8_at(at + 4)?;
            matches!(kind, 0x05 | 0x0f | 0x85).then(|| sector.le32(at + 8).map(u64::from)).flatten()
        })
    };
    let mut tables = Vec::new();
    let Some(base) = extended(sector) else { return tables };
    let mut next = Some(base);
    while let Some(at) = next.filter(|_| tables.len() < MOST_LOGICAL) {
        let Some(table) = device.read(at * SECTOR, SECTOR).filter(|t| t.le16(510) == Some(0xaa55)) else {
            break;
        };
        tables.push((at * SECTOR, SECTOR));
        next = extended(&table).map(|after| base + after);
    }
    tables
}

/// `label_header` and `pv_header` of LVM2's `lib/format_text/layout.h`: the label is in one of the first four
/// sectors, and lists the areas of data and of metadata.
fn physical_volume(device: &Device<'_>) -> Option<Vec<Found>> {
    let start = device.read(0, 4 * SECTOR)?;
    let (number, label) =
        (0..).zip(start.chunks(SECTOR as usize)).find(|(_, sector)| sector.starts_with(b"LABELONE"))?;
    let header = usize::try_from(label.le32(20)?).ok()?;
    let mut areas = Vec::new();
    let mut at = header.checked_add(40)?;
    // Two lists of offset and size, each ended by zeroes.
    for list in 0..2 {
        while let (offset @ 1.., size) = (label.le64(at)?, label.le64(at + 8)?) {
            if list == 1 {
                areas.push((offset, size));
            }
            at += 16;
        }
        at += 16;
    }
    Some(vec![("[LVM label]", vec![(number * SECTOR, SECTOR)], true), ("[LVM metadata]", areas, true)])
}

/// Free extents of the physical volumes, by the kernel's names of these.
fn ask_for_free_extents(device: &Device<'_>) -> HashMap<String, Vec<Range<DeviceOffset>>> {
    let command = "lvm pvs --noheadings --segments --units b --nosuffix --separator , \
                   -o pv_name,pe_start,vg_extent_size,pvseg_start,pvseg_size,segtype 2>/dev/null";
    let mut free = HashMap::<String, Vec<Range<DeviceOffset>>>::new();
    for line in device.ask(command).unwrap_or_default().lines() {
        if let Some((name, range)) = free_extent(line.trim()) {
            free.entry(name).or_default().push(range);
        }
    }
    free
}

fn free_extent(line: &str) -> Option<(String, Range<DeviceOffset>)> {
    let [name, start, extent, first, count, "free"] = line.split(',').collect::<Vec<_>>()[..] else {
        return None;
    };
    let number = |text: &str| text.parse::<u64>().ok();
    let extent = number(extent)?;
    let start = number(start)?.checked_add(number(first)?.checked_mul(extent)?)?;
    Some((name.to_owned(), Range::at(DeviceOffset(start), number(count)?.checked_mul(extent)?)?))
}

/// `struct mdp_superblock_1` of `linux/raid/md_p.h`, and the older `mdp_superblock_s`.
fn array_member(device: &Device<'_>) -> Option<Vec<Found>> {
    const MAGIC: u32 = 0xa92b_4efc;
    // Versions 1.0, 1.1 and 1.2 (super_1_load of drivers/md/md.c).
    for at in [(device.size / SECTOR).checked_sub(16)? / 8 * 8 * SECTOR, 0, 8 * SECTOR] {
        let Some(superblock) = device.read(at, 4096) else { continue };
        let is_one = superblock.le32(0)? == MAGIC && superblock.le32(4)? == 1;
        if !is_one || superblock.le64(144)?.checked_mul(SECTOR) != Some(at) {
            continue;
        }
        let length = (256 + 2 * u64::from(superblock.le32(220)?)).min(4096).next_multiple_of(SECTOR);
        let mut found = vec![("[md superblock]", vec![(at, length)], true)];
        // Offsets from the superblock, with their signs.
        let near = |sectors: i32| at.checked_add_signed(i64::from(sectors) * SECTOR as i64);
        let (features, bitmap) = (superblock.le32(8)?, superblock.le32(96)?.cast_signed());
        if features & 1 != 0
            && let Some(at) = near(bitmap)
            && let Some(length) = device.read(at, SECTOR).and_then(|bitmap| bitmap_length(&bitmap))
        {
            found.push(("[md bitmap]", vec![(at, length)], true));
        }
        let (size, offset) = (u64::from(superblock.le16(186)?), superblock.le32(188)?.cast_signed());
        if features & 8 != 0
            && let Some(at) = near(offset)
        {
            found.push(("[md bad block log]", vec![(at, size * SECTOR)], true));
        }
        return Some(found);
    }
    // Version 0.90 keeps it in the last whole 64 KiB but one.
    let at = (device.size & !0xffff).checked_sub(64 << 10)?;
    let superblock = device.read(at, 4096)?;
    (superblock.le32(0)? == MAGIC).then(|| vec![("[md superblock]", vec![(at, 4096)], true)])
}

/// Bytes of a bitmap with its header, `bitmap_super_s` of `drivers/md/md-bitmap.h`.
fn bitmap_length(header: &[u8]) -> Option<u64> {
    if header.get(..4)? != b"bitm" {
        return None;
    }
    let (sectors, chunk) = (header.le64(40)?, u64::from(header.le32(52)?) / SECTOR);
    (chunk > 0).then(|| (256 + sectors.div_ceil(chunk).div_ceil(8)).next_multiple_of(SECTOR))
}

/// The LUKS1 and LUKS2 on-disk format specifications.
fn luks(device: &Device<'_>) -> Option<Vec<Found>> {
    /// Of the two copies of a LUKS2 header with its JSON area.
    const LARGEST: u64 = 4 << 20;
    let header = device.read(0, 4096)?;
    if header.get(..6)? != b"LUKS\xba\xbe" {
        return None;
    }
    if header.be16(6)? == 1 {
        return Some(vec![("[LUKS header]", vec![(0, u64::from(header.be32(104)?) * SECTOR)], true)]);
    }
    let size = header.be64(8).filter(|size| (4097..=LARGEST).contains(size))?;
    let text = device.read(4096, size - 4096)?;
    let text = text.split(|byte| *byte == 0).next()?;
    let json: serde_json::Value = serde_json::from_slice(text).ok()?;
    let offsets = json.get("segments")?.as_object()?.values();
    let offset = offsets.filter_map(|segment| segment.get("offset")?.as_str()?.parse::<u64>().ok()).min()?;
    Some(vec![("[LUKS header]", vec![(0, offset)], true)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_extents_are_told_from_used_ones() {
        let of = |line| free_extent(line).map(|(name, range)| (name, range.start.0, range.end.0));
        assert_eq!(
            of("/dev/sdb4,1048576,4194304,10,5,free"),
            Some(("/dev/sdb4".to_owned(), 1_048_576 + 10 * 4_194_304, 1_048_576 + 15 * 4_194_304))
        );
        assert_eq!(of("/dev/sdb4,1048576,4194304,0,10,linear"), None);
        assert_eq!(of("/dev/sdb4,1048576,0,free"), None);
    }

    #[test]
    fn bitmaps_have_a_bit_for_each_chunk() {
        let mut header = vec![0; 512];
        header[..4].copy_from_slice(b"bitm");
        header[40..48].copy_from_slice(&1_000_000u64.to_le_bytes());
        header[52..56].copy_from_slice(&(64u32 << 10).to_le_bytes());
        // 7,813 bits are 977 bytes.
        assert_eq!(bitmap_length(&header), Some(1536));
        header[52] = 0;
        header[53] = 0;
        header[54] = 0;
        assert_eq!(bitmap_length(&header), None);
    }
}
