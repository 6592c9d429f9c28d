//! Offsets on a partition or volume, as places on the disks.

use crate::{Kind, Map};
use virt_bmap_ranges::{DiskNumber, DiskOffset};

/// Why an offset on a device has no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// The map has no such device.
    #[error("the map has no device of this name")]
    NoDevice,
    /// The offset is past the end of the device.
    #[error("it is past the end of the device ({size} bytes)")]
    PastEnd {
        /// Bytes of the device that the map has.
        size: u64,
    },
    /// The device lies on the disks in several pieces, and the map does not say in which order.
    #[error("the device is in several pieces, and this map does not have their order")]
    Unordered,
}

/// Where a byte of a disk, partition or volume lies: the number of the disk, and the offset on it.
/// Of a mirrored device it is the first copy.
///
/// # Errors
/// [`PlaceError`]
pub fn on_device(map: &Map, device: &[u8], offset: u64) -> Result<(DiskNumber, DiskOffset), PlaceError> {
    let is_device =
        |kind| matches!(kind, Kind::Disk | Kind::Partition | Kind::LogicalVolume | Kind::MappedDevice);
    let mut objects =
        map.objects().filter(|object| is_device(object.kind()) && object.name().device == device);
    let object = objects.next().ok_or(PlaceError::NoDevice)?;
    let pieces: Vec<_> =
        object.pieces().filter(|piece| piece.role.copy == 0 && piece.role.holds_data()).collect();
    let size = pieces.iter().map(|piece| piece.range.len()).sum();
    if let [only] = &pieces[..] {
        let is_inside = offset < only.range.len();
        let place = (only.disk, DiskOffset(only.range.start.0.saturating_add(offset)));
        return if is_inside { Ok(place) } else { Err(PlaceError::PastEnd { size }) };
    }
    if pieces.iter().any(|piece| piece.file_offset.is_none()) {
        return Err(PlaceError::Unordered);
    }
    let place = pieces.iter().find_map(|piece| {
        let inside = offset.checked_sub(piece.file_offset?.0).filter(|inside| *inside < piece.range.len())?;
        Some((piece.disk, DiskOffset(piece.range.start.0 + inside)))
    });
    place.ok_or(PlaceError::PastEnd { size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, Header, MapBuilder, ObjectName};
    use virt_bmap_ranges::{DiskRange, FileOffset};

    #[test]
    fn offsets_on_devices_are_found_on_the_disks() {
        let mut builder = MapBuilder::new(Header::default());
        type Pieces<'a> = &'a [(u64, u64, Option<u64>)];
        let devices: [(Kind, &str, Pieces<'_>); 3] = [
            (Kind::Partition, "/dev/sda1", &[(512, 1024, None)]),
            (Kind::LogicalVolume, "/dev/vg/lv", &[(2048, 3072, Some(1024)), (4096, 5120, Some(0))]),
            (Kind::LogicalVolume, "/dev/vg/old", &[(6144, 7168, None), (8192, 9216, None)]),
        ];
        for (kind, device, pieces) in devices {
            let name = ObjectName::device(kind, device.as_bytes());
            let object = builder.object(name, Attributes::default()).unwrap();
            for &(start, end, offset) in pieces {
                builder.piece(object, 1, DiskRange::new(start, end), offset.map(FileOffset)).unwrap();
            }
        }
        let map = builder.build();
        let at = |device: &str, offset| on_device(&map, device.as_bytes(), offset).map(|(_, at)| at.0);
        assert_eq!(at("/dev/sda1", 511), Ok(1023));
        assert_eq!(at("/dev/sda1", 512), Err(PlaceError::PastEnd { size: 512 }));
        assert_eq!([at("/dev/vg/lv", 5), at("/dev/vg/lv", 1029)], [Ok(4101), Ok(2053)]);
        assert_eq!(at("/dev/vg/lv", 2048), Err(PlaceError::PastEnd { size: 2048 }));
        assert_eq!(at("/dev/vg/old", 0), Err(PlaceError::Unordered));
        assert_eq!(at("/dev/sdb", 0), Err(PlaceError::NoDevice));
    }
}
