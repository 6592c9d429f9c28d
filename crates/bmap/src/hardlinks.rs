//! Groups the names of one file.
//!
//! A map has one object for each name. Questions about changes or damage are about files.

use hashbrown::DefaultHashBuilder;
use std::hash::{BuildHasher, Hasher as _};

use crate::{Kind, Object};
use virt_bmap_ranges::{DiskNumber, DiskRange};

/// A file, directory or other object, by the first of its names.
#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    /// The object of the first name, in the order of the map.
    pub object: Object<'a>,
    /// Number of names, at least 1.
    pub names: u32,
}

/// The bytes of an object on each disk: ascending, disjoint, joined where they touch. A file may
/// use a byte in two places; it is here once.
pub fn disk_ranges<'a>(object: Object<'a>) -> impl Iterator<Item = (DiskNumber, DiskRange)> + 'a {
    let mut pieces = object.pieces().map(|piece| (piece.disk, piece.range)).peekable();
    std::iter::from_fn(move || {
        let (disk, mut span) = pieces.next()?;
        while let Some((_, next)) = pieces.next_if(|(next, range)| *next == disk && range.start <= span.end) {
            span.end = span.end.max(next.end);
        }
        Some((disk, span))
    })
}

/// Number of bytes that an object has on all disks, each counted once.
pub fn bytes_on_disk(object: Object<'_>) -> u64 {
    disk_ranges(object).map(|(_, span)| span.len()).sum()
}

/// Whether two objects of one map are names of one file: they have the same kind, device and bytes,
/// and the same inode if it is known. For a file without bytes the inode decides, if it has several
/// links.
///
/// Copies that share all their blocks have inodes of their own and are different files. A map
/// without inodes cannot distinguish them, and they count as one file.
pub fn is_same_file(a: Object<'_>, b: Object<'_>) -> bool {
    let (known_a, known_b) = (a.attributes(), b.attributes());
    let same = a.kind() == b.kind()
        && known_a.inode == known_b.inode
        && a.name().device == b.name().device
        && disk_ranges(a).eq(disk_ranges(b));
    let has_bytes = || a.pieces().next().is_some();
    same && (has_bytes() || (known_a.inode.is_some() && known_a == known_b && known_a.links > Some(1)))
}

/// A hash of the disk ranges, the device and, on request, the inode. Names of one file have equal
/// hashes.
pub fn fingerprint(state: &DefaultHashBuilder, object: Object<'_>, with_inode: bool) -> u64 {
    let mut hasher = state.build_hasher();
    let inode = object.attributes().inode.filter(|_| with_inode);
    hasher.write_u64(inode.unwrap_or(0));
    hasher.write(object.name().device);
    for (disk, span) in disk_ranges(object) {
        hasher.write_u16(disk);
        hasher.write_u64(span.start.0);
        hasher.write_u64(span.end.0);
    }
    hasher.finish()
}

/// Groups the names of each file. `objects` are in the order of the map, and so are the files. An
/// object without a directory entry is a group of its own.
pub fn files<'a>(objects: impl Iterator<Item = Object<'a>>) -> Vec<File<'a>> {
    let state = DefaultHashBuilder::default();
    let mut files: Vec<File<'a>> = objects.map(|object| File { object, names: 1 }).collect();
    let has_names =
        |file: &File<'_>| matches!(file.object.kind(), Kind::File | Kind::Directory | Kind::Symlink);
    let mut order: Vec<(u64, u32)> = (0u32..)
        .zip(&files)
        .filter(|(_, file)| has_names(file))
        .map(|(place, file)| (fingerprint(&state, file.object, true), place))
        .collect();
    order.sort_unstable();
    for alike in order.chunk_by(|a, b| a.0 == b.0) {
        // Nearly always all of these are one file; another one is only here by chance.
        let (_, first) = alike[0];
        for &(_, other) in &alike[1..] {
            if is_same_file(files[first as usize].object, files[other as usize].object) {
                files[first as usize].names += 1;
                files[other as usize].names = 0;
            }
        }
    }
    files.retain(|file| file.names > 0);
    files
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Attributes, Header, Map, MapBuilder, ObjectName, text};
    use virt_bmap_ranges::FileOffset;

    fn names(map: &Map) -> Vec<(String, u32)> {
        files(map.objects())
            .iter()
            .map(|file| (String::from_utf8(file.object.name().path.to_vec()).unwrap(), file.names))
            .collect()
    }

    #[test]
    fn names_with_the_same_bytes_are_one_file() {
        let map = "1 0 10 f /dev/sda1 /a\n1 0 10 f /dev/sda1 /b\n1 0 10 f /dev/sda2 /a\n1 10 20 f /dev/sda1 /c\n1 20 30 f /dev/sda1 /b2\n1 20 30 f /dev/sda1 /c\n";
        let map = text::read(map.as_bytes()).unwrap();
        assert_eq!(
            names(&map),
            [("/a", 2), ("/b2", 1), ("/c", 1), ("/a", 1)].map(|(n, c)| (n.to_owned(), c))
        );
    }

    #[test]
    fn inodes_distinguish_files() {
        let mut builder = MapBuilder::new(Header::default());
        for (path, inode, links, bytes) in [
            (&b"/copy"[..], 7, 1, 16),
            (b"/data", 8, 2, 16),
            (b"/empty", 9, 1, 0),
            (b"/inline", 10, 2, 0),
            (b"/inline link", 10, 2, 0),
            (b"/link", 8, 2, 16),
            (b"/subvolume/empty", 9, 1, 0),
        ] {
            let attributes =
                Attributes { inode: Some(inode), size: Some(9), links: Some(links), ..Attributes::default() };
            let file = builder.object(ObjectName::path(Kind::File, b"/dev/sda1", path), attributes).unwrap();
            builder.piece(file, 1, DiskRange::new(0, bytes), Some(FileOffset(0))).unwrap();
        }
        assert_eq!(
            names(&builder.build()),
            [("/copy", 1), ("/data", 2), ("/empty", 1), ("/inline", 2), ("/subvolume/empty", 1)]
                .map(|(n, c)| (n.to_owned(), c))
        );
    }

    #[test]
    fn a_byte_that_is_used_twice_counts_once() {
        let mut builder = MapBuilder::new(Header::default());
        let file =
            builder.object(ObjectName::path(Kind::File, b"/dev/sda1", b"/a"), Attributes::default()).unwrap();
        for (start, end, offset) in [(0, 16, 0), (8, 24, 100), (24, 32, 9), (40, 48, 32)] {
            builder.piece(file, 1, DiskRange::new(start, end), Some(FileOffset(offset))).unwrap();
        }
        let map = builder.build();
        let object = map.objects().next().unwrap();
        assert_eq!(
            disk_ranges(object).collect::<Vec<_>>(),
            [(1, DiskRange::new(0, 32)), (1, DiskRange::new(40, 48))]
        );
        assert_eq!(bytes_on_disk(object), 40);
    }
}
