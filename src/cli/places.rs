//! Places on a guest's disks, as users give them to `lookup`.

use anyhow::{Context as _, Result, anyhow, bail};
use virt_bmap_map::lookup::{DiskSize, disk_size, on_device};
use virt_bmap_map::{Map, SECTOR};
use virt_bmap_ranges::{DiskNumber, Printable, parse_bytes};

/// A place: how many of a unit, counted from where.
#[derive(Clone, Debug)]
pub(super) struct At {
    from: From,
    number: u64,
    unit: Unit,
}

#[derive(Clone, Debug)]
enum From {
    /// The beginning of a disk; `None`: the one of `--disk`.
    Disk(Option<DiskNumber>),
    /// The beginning of a partition or volume; `None`: the only one with an NTFS.
    Device(Option<String>),
}

#[derive(Clone, Copy, Debug)]
enum Unit {
    Bytes,
    /// Of so many bytes; `None`: as many as those of the disk have.
    Sectors(Option<u64>),
    /// Of the NTFS on the device.
    Clusters,
}

/// A place on a map's disk.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) disk: DiskNumber,
    pub(super) offset: u64,
    /// What was counted, if it was not bytes of the disk.
    pub(super) counted: Option<String>,
}

/// Reads `[DISK:]OFFSET` or `DEVICE+OFFSET`, where OFFSET may be a number of sectors: `2048s`.
pub(super) fn offset(text: &str) -> Result<At, String> {
    if text.starts_with('/') {
        let (device, offset) = text.rsplit_once('+').ok_or("write DEVICE+OFFSET")?;
        let (number, unit) = count(offset)?;
        return Ok(At { from: From::Device(Some(device.to_owned())), number, unit });
    }
    let (disk, offset) = match text.split_once(':') {
        Some((disk, offset)) => {
            let number = disk.parse().ok().filter(|&number| number > 0);
            let number =
                number.ok_or("the part before the colon must be the number of a disk, from 1 to 65535")?;
            (Some(number), offset)
        }
        None => (None, text),
    };
    let (number, unit) = count(offset)?;
    Ok(At { from: From::Disk(disk), number, unit })
}

/// A number of bytes, or of sectors if an `s` follows.
fn count(text: &str) -> Result<(u64, Unit), String> {
    match text.strip_suffix('s') {
        Some(sectors) => Ok((number(sectors)?, Unit::Sectors(None))),
        None => Ok((number(text)?, Unit::Bytes)),
    }
}

fn number(text: &str) -> Result<u64, String> {
    parse_bytes(text.as_bytes()).map_err(|error| error.to_string())
}

/// Reads `N[:SIZE]`.
pub(super) fn sector(text: &str) -> Result<At, String> {
    let (sector, size) = match text.split_once(':') {
        Some((sector, size)) => (sector, Some(number(size)?)),
        None => (text, None),
    };
    Ok(At { from: From::Disk(None), number: number(sector)?, unit: Unit::Sectors(size) })
}

/// Reads `[DEVICE:]N`.
pub(super) fn cluster(text: &str) -> Result<At, String> {
    let (device, cluster) = match text.rsplit_once(':') {
        Some((device, cluster)) => (Some(device.to_owned()), cluster),
        None => (None, text),
    };
    Ok(At { from: From::Device(device), number: number(cluster)?, unit: Unit::Clusters })
}

impl At {
    /// The offset in a file on the host: in bytes, or in sectors of 512 unless their size is given.
    pub(super) fn in_container(&self) -> Result<u64> {
        let size = match (&self.from, self.unit) {
            (From::Disk(None), Unit::Bytes) => 1,
            (From::Disk(None), Unit::Sectors(size)) => size.unwrap_or(SECTOR),
            _ => bail!("with --container, an offset counts in that file: it has no disk, device or cluster"),
        };
        self.number.checked_mul(size).context("the offset does not fit into 64 bits")
    }

    /// The place in a map. `disk` is that of `--disk`.
    pub(super) fn place(&self, map: &Map, disk: DiskNumber) -> Result<Place> {
        let device = match (&self.from, self.unit) {
            (From::Device(Some(device)), _) => Some(device.clone()),
            (From::Device(None), _) => Some(only_ntfs(map)?),
            (From::Disk(_), _) => None,
        };
        let disk = match self.from {
            From::Disk(Some(disk)) => disk,
            From::Disk(None) | From::Device(_) => disk,
        };
        let (size, what) = match (self.unit, &device) {
            (Unit::Bytes, _) => (1, None),
            (Unit::Sectors(size), _) => {
                let on =
                    device.as_ref().and_then(|device| Some(on_device(map, device.as_bytes(), 0).ok()?.0));
                (size.unwrap_or_else(|| sector_size(map, on.unwrap_or(disk))), Some("sector"))
            }
            (Unit::Clusters, device) => {
                let device = device.as_deref().unwrap_or_default();
                (cluster_size(map, device)?, Some("cluster"))
            }
        };
        let offset = self.number.checked_mul(size).context("the offset does not fit into 64 bits")?;
        let counted = what.map(|what| format!("{what} {} of {size} bytes", self.number));
        let Some(device) = device else {
            match disk_size(map, disk) {
                DiskSize::NoDisk => bail!("the map has no disk {disk}"),
                DiskSize::Bytes(size) if offset >= size => {
                    bail!("offset {offset} ({offset:#x}) is past the end of disk {disk} ({size} bytes)")
                }
                _ => {}
            }
            return Ok(Place { disk, offset, counted });
        };
        let name = Printable(device.as_bytes()).to_string();
        let (disk, at) = on_device(map, device.as_bytes(), offset)
            .with_context(|| format!("{name}: no place for offset {offset} ({offset:#x})"))?;
        let counted = counted.map_or_else(
            || format!("{name} + {offset:#x}"),
            |counted| format!("{counted} of {name}, {name} + {offset:#x}"),
        );
        Ok(Place { disk, offset: at.0, counted: Some(counted) })
    }
}

/// Bytes in a sector of a disk.
fn sector_size(map: &Map, disk: DiskNumber) -> u64 {
    let image = map.header().images.iter().find(|image| image.disk == disk);
    image.map_or(SECTOR, |image| image.sector)
}

/// Bytes in a cluster of the NTFS on a device.
fn cluster_size(map: &Map, device: &str) -> Result<u64> {
    let filesystem = map.header().filesystems.iter().find(|it| it.device == device.as_bytes());
    let size = filesystem.filter(|it| it.kind == "ntfs").and_then(|it| it.block_size);
    size.with_context(|| format!("{}: the map knows no NTFS on it", Printable(device.as_bytes())))
}

/// The device with the only NTFS of a map.
fn only_ntfs(map: &Map) -> Result<String> {
    let all = map.header().filesystems.iter().filter(|filesystem| filesystem.kind == "ntfs");
    match all.map(|it| String::from_utf8_lossy(&it.device).into_owned()).collect::<Vec<_>>().as_slice() {
        [only] => Ok(only.clone()),
        [] => bail!("the map has no NTFS, whose clusters could be counted"),
        all => Err(anyhow!("the map has several NTFS; write DEVICE:N, with one of {}", all.join(", "))),
    }
}
