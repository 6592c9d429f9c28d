//! Lists the files of a map: bytes on the disk, fragments, and shared bytes.

mod prefetch;

use globset::{GlobBuilder, GlobMatcher};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

pub use prefetch::prefetch;

use crate::hardlinks::{self, File};
use crate::{Kind, Map, Object};
use virt_bmap_ranges::{DiskNumber, DiskRange, IndexedRanges};

/// A file in the list.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The file, by the first of its selected names.
    pub file: File<'a>,
    /// Number of its bytes on all disks, each counted once.
    pub on_disk: u64,
    /// Number of ranges of the disks that these bytes form; 1 for a file that is not fragmented.
    pub pieces: u64,
    /// Number of its bytes that another file has as well.
    pub shared: u64,
    /// The first of its ranges: disk and range.
    pub first: Option<(DiskNumber, DiskRange)>,
}

/// Selects the objects to list.
#[derive(Clone, Debug)]
pub struct Select {
    /// The kinds.
    pub kinds: Vec<Kind>,
    /// Only this device, if given.
    pub device: Option<Vec<u8>>,
    /// The path must match one of these patterns; an empty list matches any path.
    pub globs: Vec<GlobMatcher>,
}

impl Select {
    fn is_on_device(&self, object: Object<'_>) -> bool {
        self.device.as_ref().is_none_or(|device| object.name().device == device)
    }

    fn wants(&self, object: Object<'_>) -> bool {
        let name = object.name();
        self.kinds.contains(&name.kind)
            && self.is_on_device(object)
            && (self.globs.is_empty()
                || self.globs.iter().any(|glob| glob.is_match(Path::new(OsStr::from_bytes(name.path)))))
    }
}

/// A pattern for whole paths: `*` and `?` match anything but a `/`, and `**` matches a `/` as well.
///
/// # Errors
/// The pattern is not valid.
pub fn glob(pattern: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build()?.compile_matcher())
}

/// A pattern as someone writes it who thinks of Windows: with backslashes between names, perhaps a
/// drive's letter, and in any case.
///
/// # Errors
/// The pattern is not valid.
pub fn windows_glob(pattern: &str) -> Result<GlobMatcher, globset::Error> {
    let mut pattern = pattern.replace('\\', "/");
    if pattern.as_bytes().get(1) == Some(&b':') {
        pattern.drain(..2);
    }
    if !pattern.starts_with('/') {
        pattern.insert(0, '/');
    }
    Ok(GlobBuilder::new(&pattern).literal_separator(true).case_insensitive(true).build()?.compile_matcher())
}

/// The selected files, in the order of the map.
pub fn list<'a>(map: &'a Map, select: &Select) -> Vec<Listed<'a>> {
    let shared = Shared::of(map);
    let files = hardlinks::files(map.objects().filter(|object| select.wants(*object)));
    let tell = |file: File<'a>| {
        let mut listed = Listed { file, on_disk: 0, pieces: 0, shared: 0, first: None };
        let is_file = file.object.kind() == Kind::File;
        for (disk, span) in hardlinks::disk_ranges(file.object) {
            listed.on_disk += span.len();
            listed.pieces += 1;
            listed.first.get_or_insert((disk, span));
            if is_file {
                listed.shared += shared.bytes_in(disk, span);
            }
        }
        listed
    };
    files.into_iter().map(tell).collect()
}

/// The bytes of the selected objects: ascending, each once.
pub fn ranges(map: &Map, select: &Select) -> Vec<(DiskNumber, DiskRange)> {
    let objects = map.objects().filter(|object| select.wants(*object));
    let mut pieces: Vec<_> = objects.flat_map(hardlinks::disk_ranges).collect();
    pieces.sort_unstable();
    let of_disk = |pieces: &[(DiskNumber, DiskRange)]| {
        let ranges: IndexedRanges = pieces.iter().map(|(_, range)| *range).collect();
        let disk = pieces[0].0;
        ranges.iter().map(|range| (disk, range)).collect::<Vec<_>>()
    };
    pieces.chunk_by(|a, b| a.0 == b.0).flat_map(of_disk).collect()
}

/// For each disk, the bytes that several files have.
struct Shared(Vec<(DiskNumber, IndexedRanges)>);

impl Shared {
    fn of(map: &Map) -> Self {
        let files = hardlinks::files(map.objects().filter(|object| object.kind() == Kind::File));
        let mut spans: Vec<(DiskNumber, DiskRange)> =
            files.iter().flat_map(|file| hardlinks::disk_ranges(file.object)).collect();
        spans.sort_unstable();
        let mut disks = Vec::new();
        for spans in spans.chunk_by(|a, b| a.0 == b.0) {
            let mut twice = Vec::new();
            let mut end = spans[0].1.start;
            for &(_, span) in spans {
                // The ranges of one file are disjoint, so bytes before `end` belong to another
                // file.
                twice.extend(span.intersection(DiskRange { start: span.start, end: end.max(span.start) }));
                end = end.max(span.end);
            }
            disks.push((spans[0].0, IndexedRanges::from_unsorted(twice)));
        }
        Self(disks)
    }

    fn bytes_in(&self, disk: DiskNumber, range: DiskRange) -> u64 {
        let place = self.0.binary_search_by_key(&disk, |(disk, _)| *disk);
        place.map_or(0, |place| self.0[place].1.bytes_in(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text;

    const MAP: &str = "\
1 0 100 f /dev/sda1 /a
1 100 180 f /dev/sda1 /a
1 100 180 f /dev/sda1 /b
1 180 200 f /dev/sda1 /b
1 200 300 d /dev/sda1 /
1 300 400 f /dev/sda1 /a
1 400 500 f /dev/sda1 /etc/link
1 400 500 f /dev/sda1 /etc/motd
2 0 100 f /dev/sda1 /b
";

    fn listed(globs: &[&str], kinds: &[Kind]) -> Vec<(String, u32, u64, u64, u64)> {
        let map = text::read(MAP.as_bytes()).unwrap();
        let globs = globs.iter().map(|pattern| glob(pattern).unwrap()).collect();
        list(&map, &Select { kinds: kinds.to_vec(), device: None, globs })
            .into_iter()
            .map(|l| {
                (
                    String::from_utf8_lossy(l.file.object.name().path).into(),
                    l.file.names,
                    l.on_disk,
                    l.pieces,
                    l.shared,
                )
            })
            .collect()
    }

    #[test]
    fn files_are_measured() {
        assert_eq!(
            listed(&[], &[Kind::File]),
            [
                ("/a".into(), 1, 0x280, 2, 0x80),
                ("/b".into(), 1, 0x200, 2, 0x80),
                ("/etc/link".into(), 2, 0x100, 1, 0),
            ]
        );
        assert_eq!(listed(&[], &[Kind::Directory]), [("/".into(), 1, 0x100, 1, 0)]);
    }

    #[test]
    fn globs_select_by_path() {
        let paths =
            |globs: &[&str]| listed(globs, &[Kind::File]).into_iter().map(|l| l.0).collect::<Vec<_>>();
        assert_eq!(paths(&["/*"]), ["/a", "/b"]);
        assert_eq!(paths(&["/etc/**"]), ["/etc/link"]);
        assert_eq!(paths(&["/etc/m*"]), ["/etc/motd"]);
        assert_eq!(paths(&["/a", "/[b-c]"]), ["/a", "/b"]);
        assert!(paths(&["a"]).is_empty());
        assert!(glob("/[a").is_err());
        for pattern in [r"C:\ETC\motd", r"\etc\Mot?", "etc/motd", "/ETC/MOTD"] {
            assert!(windows_glob(pattern).unwrap().is_match("/etc/motd"), "{pattern}");
        }
        assert!(!windows_glob(r"\*").unwrap().is_match("/etc/motd"));
    }
}
