//! The baseline: the earlier map of a guest, with which an update begins.
//!
//! A file that has the same stamps as in the baseline, and extents in the same places, need not be
//! read again: these places were verified when the baseline was made. The extents are those of the
//! present file, so a reused file is never older than the image. A renamed file is the same file.

mod directories;
mod doubts;
mod inodes;
mod unchanged;

pub use directories::Directories;
pub(super) use directories::Directory;
pub(super) use inodes::{Blocks, InodeSource, Inodes, Items, digest_of_rest};
pub use unchanged::UnchangedObjects;

use doubts::Doubts;

use super::expected::PlacedRange;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use virt_bmap_map::{Attributes, InodeDigests, Kind, Map, Marks, Object, ObjectId, Piece, Role};
use virt_bmap_ranges::{DiskNumber, DiskRange, IndexedRanges};

/// How many files with the same stamps are compared. There may be several: each subvolume of a
/// btrfs numbers its inodes by itself.
const MOST_ALIKE: usize = 64;

/// The stamps of a guest's file, by which a change of it is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileStamps {
    /// Number of the inode.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// When its data was last modified, in nanoseconds since 1970.
    pub modified: i64,
    /// When its inode was last changed, in nanoseconds since 1970.
    pub changed: i64,
}

impl FileStamps {
    fn of(attributes: &Attributes) -> Option<Self> {
        let Attributes { inode, size, modified, changed, .. } = *attributes;
        Some(Self { inode: inode?, size: size?, modified: modified?, changed: changed? })
    }
}

/// The earlier map of a guest, with an index of its files by their stamps.
#[derive(Debug)]
pub struct Baseline {
    map: Arc<Map>,
    /// Verified files, sorted by device and stamps. A file with several names is here several
    /// times.
    files: Vec<ObjectId>,
    /// Devices whose objects in the map may be incomplete.
    incomplete: HashSet<Vec<u8>>,
    /// What has been written since, of the disks of which that is known.
    written: BTreeMap<DiskNumber, IndexedRanges>,
}

impl Baseline {
    /// Indexes a map. `None` if nothing of it can be reused: text maps have no inode numbers.
    ///
    /// `written` is what has been written since the map was made, of the disks of which that is
    /// known: objects there are read again, whatever their stamps.
    pub fn new(map: Arc<Map>, written: BTreeMap<DiskNumber, IndexedRanges>) -> Option<Self> {
        let doubts = Doubts::of(map.header());
        if doubts.everything {
            return None;
        }
        let is_verified = |object: &Object<'_>| {
            let attributes = object.attributes();
            object.kind() == Kind::File
                && FileStamps::of(&attributes).is_some()
                && !attributes.marks.intersects(Marks::INEXACT | Marks::UNVERIFIED)
                && !doubts.files.contains(object.name().device)
        };
        let mut files: Vec<ObjectId> = map.objects().filter(is_verified).map(Object::id).collect();
        files.sort_by(|a, b| {
            let [(a, a_stamps), (b, b_stamps)] = [*a, *b].map(|id| stamped(map.object(id)));
            a.cmp(b).then(a_stamps.cmp(&b_stamps))
        });
        (!files.is_empty()).then_some(Self { map, files, incomplete: doubts.directories, written })
    }

    /// Whether the map has such a filesystem on this device.
    pub(super) fn has_filesystem(&self, device: &[u8], kind: &str, block_size: u64, size: u64) -> bool {
        self.map.header().filesystems.iter().any(|known| {
            known.device == device
                && known.kind == kind
                && (known.block_size, known.size) == (Some(block_size), Some(size))
        })
    }

    /// The inode digests of such a filesystem on this device.
    pub(super) fn inodes(&self, device: &[u8], kind: &str) -> Option<&InodeDigests> {
        let filesystems = &self.map.header().filesystems;
        let known = filesystems.iter().find(|known| known.device == device && known.kind == kind);
        known.map(|known| &known.inodes).filter(|inodes| !inodes.is_empty())
    }

    /// The objects of a kind on this device.
    fn on(&self, device: &[u8], kind: Kind) -> impl Iterator<Item = Object<'_>> {
        let objects = self.map.objects();
        objects.filter(move |object| object.kind() == kind && object.name().device == device)
    }

    /// The pieces of directories on this device, each with the inode of its directory.
    pub(super) fn directory_pieces(&self, device: &[u8]) -> impl Iterator<Item = (u64, Piece)> {
        let directories = self.on(device, Kind::Directory);
        let inodes = directories.filter_map(|directory| Some((directory.attributes().inode?, directory)));
        inodes.flat_map(|(inode, directory)| directory.pieces().map(move |piece| (inode, piece)))
    }

    /// The unchanged directories on this device, by inode. `is_same` says whether the inode of a
    /// directory and its blocks, of this size in total, have not changed; `is_touched` whether a
    /// place was written.
    pub(super) fn unchanged_directories(
        &self,
        device: &[u8],
        is_same: impl Fn(u64, u64) -> bool,
        is_touched: impl Fn(DiskNumber, DiskRange) -> bool,
    ) -> HashMap<u64, ObjectId> {
        if self.incomplete.contains(device) {
            return HashMap::new();
        }
        let unchanged = self.on(device, Kind::Directory).filter_map(|directory| {
            let Attributes { inode, size, marks, .. } = directory.attributes();
            let is_sure = !marks.intersects(Marks::INEXACT | Marks::UNVERIFIED | Marks::ENCRYPTED);
            let is_unchanged = is_sure && is_same(inode?, size?) && self.is_untouched(directory, &is_touched);
            is_unchanged.then_some((inode?, directory.id()))
        });
        unchanged.collect()
    }

    /// Whether no piece of an object was written.
    fn is_untouched(&self, object: Object<'_>, is_touched: impl Fn(DiskNumber, DiskRange) -> bool) -> bool {
        object.pieces().all(|piece| {
            let written = self.written.get(&piece.disk);
            written.is_none_or(|written| written.bytes_in(piece.range) == 0)
                && !is_touched(piece.disk, piece.range)
        })
    }

    /// The unchanged files on this device that have one name, by inode. `is_same` says whether an
    /// inode with this link count is one of a single name, unchanged and self-contained;
    /// `is_touched` whether a place was written.
    pub(super) fn unchanged_files(
        &self,
        device: &[u8],
        is_same: impl Fn(u64, Option<u32>) -> bool,
        is_touched: impl Fn(DiskNumber, DiskRange) -> bool,
    ) -> HashMap<u64, ObjectId> {
        let first = self.files.partition_point(|id| stamped(self.map.object(*id)).0 < device);
        let files = self.files[first..].iter().map(|id| self.map.object(*id));
        let files = files.take_while(|file| file.name().device == device);
        let unchanged = files.filter_map(|file| {
            let Attributes { inode, links, marks, .. } = file.attributes();
            let is_plain = !marks.contains(Marks::ENCRYPTED);
            let is_unchanged = is_plain && is_same(inode?, links) && self.is_untouched(file, &is_touched);
            is_unchanged.then_some((inode?, file.id()))
        });
        unchanged.collect()
    }

    /// The unchanged symbolic links on this device that have one name and no blocks, by inode.
    /// `is_same` says whether an inode is such a link and unchanged.
    pub(super) fn unchanged_links(
        &self,
        device: &[u8],
        is_same: impl Fn(u64) -> bool,
    ) -> HashMap<u64, ObjectId> {
        let unchanged = self.on(device, Kind::Symlink).filter_map(|link| {
            let Attributes { inode, links, marks, .. } = link.attributes();
            let is_plain = links == Some(1) && !marks.contains(Marks::ENCRYPTED) && link.pieces().len() == 0;
            (is_plain && is_same(inode?)).then_some((inode?, link.id()))
        });
        unchanged.collect()
    }

    /// Whether the map has the symbolic links: a directory without them would lack them for ever.
    pub(super) fn has_links(&self) -> bool {
        self.map.lists_metadata()
    }

    /// A file or directory in the map.
    pub(super) fn object(&self, id: ObjectId) -> Object<'_> {
        self.map.object(id)
    }

    /// Whether the map has a file on this device with these stamps and exactly these places, none
    /// of which was written since.
    pub(super) fn has_file(&self, device: &[u8], stamps: FileStamps, places: &[PlacedRange]) -> bool {
        let is_written = |place: &PlacedRange| {
            self.written.get(&place.disk).is_some_and(|written| written.bytes_in(place.range) > 0)
        };
        if places.iter().any(is_written) {
            return false;
        }
        let order = |id: &ObjectId| -> Ordering {
            let (its_device, its_stamps) = stamped(self.map.object(*id));
            its_device.cmp(device).then(its_stamps.cmp(&Some(stamps)))
        };
        let first = self.files.partition_point(|id| order(id) == Ordering::Less);
        let alike = self.files[first..].iter().take_while(|id| order(id) == Ordering::Equal);
        let now = joined(
            places.iter().map(|place| (place.disk, place.role, place.file_offset.map(|o| o.0), place.range)),
        );
        alike.take(MOST_ALIKE).any(|id| {
            let then = self.map.object(*id).pieces();
            then.len() == now.len()
                && joined(
                    then.map(|piece| (piece.disk, piece.role, piece.file_offset.map(|o| o.0), piece.range)),
                ) == now
        })
    }
}

fn stamped(object: Object<'_>) -> (&[u8], Option<FileStamps>) {
    (object.name().device, FileStamps::of(&object.attributes()))
}

/// A piece: its disk, role, file offset, and range on the disk.
type Part = (DiskNumber, Role, Option<u64>, DiskRange);

/// Pieces of a file, sorted and joined as a map has them.
fn joined(parts: impl Iterator<Item = Part>) -> Vec<Part> {
    let shift = |(_, _, offset, range): &Part| offset.map(|offset| range.start.0.wrapping_sub(offset));
    let mut parts: Vec<Part> = parts.collect();
    parts.sort_unstable_by_key(|part| (part.0, part.1, shift(part), part.3));
    parts.dedup_by(|next, kept| {
        let is_one =
            (next.0, next.1, shift(next)) == (kept.0, kept.1, shift(kept)) && next.3.start <= kept.3.end;
        if is_one {
            kept.3.end = kept.3.end.max(next.3.end);
        }
        is_one
    });
    parts
}

#[cfg(test)]
pub(in crate::probe) mod tests {
    use super::*;
    use virt_bmap_map::{Cause, FileOperation, Filesystem, Header, MapBuilder, ObjectName, Warning};
    use virt_bmap_ranges::FileOffset;

    const STAMPS: FileStamps = FileStamps { inode: 12, size: 8192, modified: 5, changed: 6 };

    fn place(start: u64, end: u64, offset: u64) -> PlacedRange {
        PlacedRange {
            disk: 1,
            range: DiskRange::new(start, end),
            file_offset: Some(FileOffset(offset)),
            role: Role::default(),
        }
    }

    /// A map of one file, at 4096 and at 65536.
    fn map(warnings: Vec<Warning>, marks: Marks) -> Arc<Map> {
        let filesystem = Filesystem {
            device: b"/dev/sda1".to_vec(),
            kind: "ext4".into(),
            block_size: Some(4096),
            size: Some(1 << 20),
            ..Filesystem::default()
        };
        let mut builder =
            MapBuilder::new(Header { filesystems: vec![filesystem], warnings, ..Header::default() });
        let attributes = Attributes {
            inode: Some(STAMPS.inode),
            size: Some(STAMPS.size),
            modified: Some(STAMPS.modified),
            changed: Some(STAMPS.changed),
            marks,
            ..Attributes::default()
        };
        for name in [&b"/a"[..], b"/b"] {
            let file = builder.object(ObjectName::path(Kind::File, b"/dev/sda1", name), attributes).unwrap();
            for place in [place(4096, 8192, 0), place(65536, 69632, 4096)] {
                builder.piece_as(file, place.disk, place.range, place.file_offset, place.role).unwrap();
            }
        }
        Arc::new(builder.build())
    }

    fn file_failed(operation: FileOperation) -> Cause {
        Cause::FileFailed { operation, errno: Some(5), offset: None }
    }

    fn baseline_with(warning: impl Into<Option<Warning>>) -> Option<Baseline> {
        Baseline::new(map(warning.into().into_iter().collect(), Marks::empty()), BTreeMap::new())
    }

    pub(in crate::probe) const DEVICE: &[u8] = b"/dev/sda";
    pub(in crate::probe) const TOP: u64 = 30;
    pub(in crate::probe) const CLEAN: u64 = 31;

    /// The content of a filesystem, with its inodes.
    pub(in crate::probe) const BASELINE_TREE: [(Kind, &str, u64); 13] = [
        (Kind::Directory, "/", 2),
        (Kind::File, "/top-file", 60),
        (Kind::Directory, "/top", TOP),
        (Kind::File, "/top/same", 40),
        (Kind::File, "/top/changed", 41),
        (Kind::Directory, "/top/clean", CLEAN),
        (Kind::File, "/top/clean/one", 42),
        (Kind::File, "/top/clean/two", 43),
        (Kind::Directory, "/top/listed", 32),
        (Kind::Directory, "/top/listed/below", 33),
        (Kind::File, "/top/listed/below/file", 44),
        (Kind::Directory, "/top/partly", 34),
        (Kind::File, "/top/partly/changed", 45),
    ];

    /// A map of it in which each file and directory except the root has a block.
    pub(in crate::probe) fn tree() -> Baseline {
        let mut builder = MapBuilder::new(Header::default());
        for (kind, path, inode) in BASELINE_TREE {
            let attributes = Attributes {
                inode: Some(inode),
                size: Some(4096),
                allocated: Some(4096),
                links: Some(1),
                modified: Some(1),
                changed: Some(1),
                ..Attributes::default()
            };
            let object = builder.object(ObjectName::path(kind, DEVICE, path.as_bytes()), attributes).unwrap();
            if inode != 2 {
                builder.piece(object, 1, DiskRange::new(inode << 12, (inode + 1) << 12), None).unwrap();
            }
        }
        Baseline::new(Arc::new(builder.build()), BTreeMap::new()).unwrap()
    }

    /// The unchanged directories and files in it.
    pub(in crate::probe) fn known_in_tree(
        baseline: &Baseline,
    ) -> (HashMap<u64, ObjectId>, HashMap<u64, ObjectId>) {
        let is_changed = |inode| [32, 41, 45].contains(&inode);
        let directories = baseline.unchanged_directories(
            DEVICE,
            |inode, size| !is_changed(inode) && size == 4096,
            |_, _| false,
        );
        let files = baseline.unchanged_files(DEVICE, |inode, _| !is_changed(inode), |_, _| false);
        (directories, files)
    }

    #[test]
    fn a_directory_with_missing_objects_is_listed() {
        let touched = |disk, range: DiskRange| (disk, range.start.0) == (1, TOP << 12);
        let unchanged = |baseline: &Baseline| {
            let unchanged = baseline.unchanged_directories(DEVICE, |_, _| true, touched);
            let mut unchanged: Vec<u64> = unchanged.into_keys().collect();
            unchanged.sort_unstable();
            unchanged
        };
        let mut baseline = tree();
        assert_eq!(unchanged(&baseline), [2, 31, 32, 33, 34]);
        baseline.incomplete.insert(b"/dev/sda1".to_vec());
        assert_eq!(unchanged(&baseline).len(), 5);
        baseline.incomplete.insert(DEVICE.to_vec());
        assert!(unchanged(&baseline).is_empty());

        let incomplete = |cause| {
            let baseline = baseline_with(Warning::on_path("/dev/sda1", b"/b", cause)).unwrap();
            baseline.incomplete.contains(&b"/dev/sda1"[..])
        };
        assert!(incomplete(file_failed(FileOperation::Open)));
        assert!(incomplete(Cause::WalkCutShort { error: "the agent failed".into() }));
        assert!(!incomplete(Cause::JournalReplayed));
    }

    #[test]
    fn a_file_is_found_by_its_stamps_and_places() {
        let baseline = baseline_with(None).unwrap();
        let has = |device: &[u8], stamps, places: &[PlacedRange]| baseline.has_file(device, stamps, places);
        let places = [place(65536, 66560, 4096), place(66560, 69632, 5120), place(4096, 8192, 0)];
        assert!(has(b"/dev/sda1", STAMPS, &places));
        assert!(!has(b"/dev/sda2", STAMPS, &places));
        assert!(!has(b"/dev/sda1", STAMPS, &places[1..]));
        assert!(!has(b"/dev/sda1", STAMPS, &[place(4096, 8192, 4096), place(65536, 69632, 0)]));
        let others = [
            FileStamps { inode: 13, ..STAMPS },
            FileStamps { size: 1, ..STAMPS },
            FileStamps { modified: 7, ..STAMPS },
            FileStamps { changed: 7, ..STAMPS },
        ];
        assert!(others.iter().all(|stamps| !has(b"/dev/sda1", *stamps, &places)));
    }

    #[test]
    fn files_in_written_places_are_not_reused() {
        let written = BTreeMap::from([(1, IndexedRanges::from_iter([DiskRange::new(69000, 69001)]))]);
        let baseline = Baseline::new(map(Vec::new(), Marks::empty()), written).unwrap();
        assert!(!baseline.has_file(b"/dev/sda1", STAMPS, &[place(4096, 8192, 0), place(65536, 69632, 4096)]));
    }

    #[test]
    fn unverified_files_are_not_reused() {
        let failed = |device| Warning::on_path(device, b"/b", file_failed(FileOperation::Read));
        assert!(baseline_with(Warning::on_device("/dev/sda1", Cause::JournalReplayed)).is_some());
        assert!(baseline_with(failed("/dev/sda1")).is_none());
        assert!(baseline_with(failed("/dev/sda10")).is_some());
        assert!(baseline_with(Warning::on_guest(Cause::MoreOmitted { count: 7 })).is_none());
        for marks in [Marks::INEXACT, Marks::UNVERIFIED] {
            assert!(Baseline::new(map(Vec::new(), marks), BTreeMap::new()).is_none());
        }
        assert!(Baseline::new(map(Vec::new(), Marks::SPARSE), BTreeMap::new()).is_some());
    }

    #[test]
    fn a_filesystem_of_another_kind_or_size_is_another_one() {
        let baseline = baseline_with(None).unwrap();
        assert!(baseline.has_filesystem(b"/dev/sda1", "ext4", 4096, 1 << 20));
        assert!(!baseline.has_filesystem(b"/dev/sda1", "ext4", 1024, 1 << 20));
        assert!(!baseline.has_filesystem(b"/dev/sda1", "xfs", 4096, 1 << 20));
        assert!(!baseline.has_filesystem(b"/dev/sda1", "ext4", 4096, 2 << 20));
        assert!(!baseline.has_filesystem(b"/dev/sda2", "ext4", 4096, 1 << 20));
    }
}
