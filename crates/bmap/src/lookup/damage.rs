//! Finds the files that the bad parts of a disk hit.

use crate::hardlinks::{self, File};
use crate::{Kind, Map, Piece};
use virt_bmap_ranges::{DiskNumber, DiskRange, FileOffset, IndexedRanges, Range};

/// A part of a file that is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HitRange {
    /// Where it is on the disk.
    pub disk: DiskRange,
    /// Its range in the file, if the map knows it.
    pub file: Option<Range<FileOffset>>,
}

/// A file, directory or piece of metadata that is hit.
#[derive(Clone, Debug)]
pub struct FileHit<'a> {
    /// It.
    pub file: File<'a>,
    /// Number of bad bytes among its bytes on the disk, each counted once.
    pub bytes: u64,
    /// The bad parts, sorted by file offset if known, then by disk offset.
    pub ranges: Vec<HitRange>,
}

/// The result of [`damage`].
#[derive(Clone, Debug)]
pub struct Damage<'a> {
    /// The objects that are hit, in the order of the map: directories, files, metadata.
    pub hit: Vec<FileHit<'a>>,
    /// Number of whole files: none of their bytes is bad.
    pub whole: Vec<File<'a>>,
    /// Number of files that are not empty and have no place in the map: their data lies inside
    /// metadata, or they are one hole. Whether they are whole is not known.
    pub unplaced: Vec<File<'a>>,
}

impl Damage<'_> {
    /// Number of objects of this kind that are hit.
    pub fn count(&self, kind: Kind) -> usize {
        self.hit.iter().filter(|hit| hit.file.object.kind() == kind).count()
    }
}

/// Finds the objects that `bad`, bytes of disk number `disk`, hits.
///
/// The rest of a file's last block, after the end of the file, does not count, if the map knows the
/// file's size and the file offset of each range.
pub fn damage<'a>(map: &'a Map, disk: DiskNumber, bad: &IndexedRanges) -> Damage<'a> {
    let mut found = Damage { hit: Vec::new(), whole: Vec::new(), unplaced: Vec::new() };
    let known = |kind| matches!(kind, Kind::File | Kind::Directory | Kind::Symlink | Kind::Metadata);
    for file in hardlinks::files(map.objects().filter(|object| known(object.kind()))) {
        if let Some(hit) = hit(file, disk, bad) {
            found.hit.push(hit);
        } else if file.object.kind() != Kind::File {
            // Directories and metadata matter only if they are hit.
        } else if file.object.pieces().next().is_some() || file.object.attributes().size == Some(0) {
            found.whole.push(file);
        } else {
            found.unplaced.push(file);
        }
    }
    found
}

/// The parts of `file` that are among `asked`, bytes of disk number `disk`; `None` if there are
/// none.
///
/// Parity, unwritten ranges, and bytes after the end of the file do not count.
pub fn hit<'a>(file: File<'a>, disk: DiskNumber, asked: &IndexedRanges) -> Option<FileHit<'a>> {
    let size = file.object.attributes().size.filter(|_| file.object.kind() == Kind::File);
    let mut ranges: Vec<HitRange> = Vec::new();
    for piece in file.object.pieces().filter(|piece| piece.disk == disk && piece.role.holds_data()) {
        ranges.extend(asked.overlap(piece.range).filter_map(|part| inside(&piece, part, size)));
    }
    if ranges.is_empty() {
        return None;
    }
    let bytes = ranges.iter().map(|range| range.disk).collect::<IndexedRanges>().bytes();
    ranges.sort_unstable_by_key(|range| (range.file.map(|file| file.start), range.disk.start));
    Some(FileHit { file, bytes, ranges })
}

/// A piece without the bytes after the end of the file; `None` if nothing is left.
fn inside(piece: &Piece, part: DiskRange, size: Option<u64>) -> Option<HitRange> {
    let Some(offset) = piece.file_offset else { return Some(HitRange { disk: part, file: None }) };
    let start = offset.0 + (part.start.0 - piece.range.start.0);
    let length = size.map_or(part.len(), |size| size.saturating_sub(start).min(part.len()));
    (length > 0).then(|| HitRange {
        disk: DiskRange::new(part.start.0, part.start.0 + length),
        file: Some(Range::new(start, start + length)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, Header, MapBuilder, ObjectName};

    #[test]
    fn files_are_hit_where_their_bytes_are_bad() {
        let mut builder = MapBuilder::new(Header::default());
        type Pieces<'a> = &'a [(u64, u64, Option<u64>)];
        let objects: [(Kind, &[u8], Option<u64>, Pieces<'_>); 8] = [
            (Kind::Directory, b"/", None, &[(0, 64, None)]),
            (Kind::File, b"/cut", Some(150), &[(64, 128, Some(100)), (128, 192, Some(0))]),
            (Kind::File, b"/empty", Some(0), &[]),
            (Kind::File, b"/inline", Some(5), &[]),
            (Kind::File, b"/slack", Some(10), &[(192, 256, Some(0))]),
            (Kind::File, b"/text", None, &[(256, 320, None)]),
            (Kind::File, b"/whole", Some(64), &[(320, 384, Some(0))]),
            (Kind::Metadata, b"journal", None, &[(384, 448, None)]),
        ];
        for (inode, (kind, path, size, pieces)) in (11..).zip(objects) {
            let attributes = Attributes { inode: Some(inode), size, links: Some(1), ..Attributes::default() };
            let object = builder.object(ObjectName::path(kind, b"/dev/sda1", path), attributes).unwrap();
            for &(start, end, offset) in pieces {
                builder.piece(object, 1, DiskRange::new(start, end), offset.map(FileOffset)).unwrap();
            }
        }
        let map = builder.build();
        let bad = IndexedRanges::from_iter([
            DiskRange::new(100, 140),
            DiskRange::new(202, 210),
            DiskRange::new(300, 301),
            DiskRange::new(400, 500),
        ]);
        let damage = damage(&map, 1, &bad);
        let path = |file: &File<'_>| String::from_utf8_lossy(file.object.name().path).into_owned();
        let hit: Vec<_> = damage.hit.iter().map(|hit| (path(&hit.file), hit.bytes)).collect();
        assert_eq!(
            hit,
            [("/cut", 26), ("/text", 1), ("journal", 48)].map(|(name, bytes)| (name.to_owned(), bytes))
        );
        assert_eq!(
            damage.hit[0].ranges,
            [
                HitRange { disk: DiskRange::new(128, 140), file: Some(Range::new(0, 12)) },
                // The file ends at 150.
                HitRange { disk: DiskRange::new(100, 114), file: Some(Range::new(136, 150)) },
            ]
        );
        assert_eq!(damage.hit[1].ranges, [HitRange { disk: DiskRange::new(300, 301), file: None }]);
        assert_eq!(damage.whole.iter().map(path).collect::<Vec<_>>(), ["/empty", "/slack", "/whole"]);
        assert_eq!(damage.unplaced.iter().map(path).collect::<Vec<_>>(), ["/inline"]);
        assert_eq!(damage.count(Kind::Metadata), 1);

        let other_disk = super::damage(&map, 2, &bad);
        assert!(other_disk.hit.is_empty());
    }
}
