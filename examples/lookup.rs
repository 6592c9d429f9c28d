//! Prints the objects at given offsets of a guest's disk, from its map.
//!
//! ```text
//! cargo run --example lookup -- guest.bmap 0x541000 2:1048576
//! ```
//!
//! An offset is decimal, or hexadecimal after `0x`. If the disk is not disk 1, its number and a
//! colon precede the offset.

use std::path::Path;
use virt_bmap_map as bmap;
use virt_bmap_ranges::DiskOffset;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [map, places @ ..] = &arguments[..] else {
        anyhow::bail!("usage: lookup MAP [DISK:]OFFSET...");
    };
    let map = bmap::load(Path::new(map))?;
    for place in places {
        let (disk, offset) = parse(place)?;
        println!("{place}:");
        for hit in map.at(disk, offset) {
            match hit.file_offset {
                Some(inside) => println!("  {} + {inside:#x}", hit.object.name()),
                None => println!("  {}", hit.object.name()),
            }
        }
    }
    Ok(())
}

fn parse(place: &str) -> anyhow::Result<(u16, DiskOffset)> {
    let (disk, offset) = place.split_once(':').unwrap_or(("1", place));
    let offset = match offset.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => offset.parse(),
    };
    Ok((disk.parse()?, DiskOffset(offset?)))
}
