//! The second table: directories, streams and free space of each row, from a map with metadata.

use crate::arbiter::{Ranges, total};
use crate::counts::{Bytes, grouped};
use crate::flat::Flat;
use crate::guests::Row;
use crate::peers;
use crate::table::Line;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use virt_bmap_map::{Balance, Filesystem, Kind, Map, Object, PieceFlags};
use virt_bmap_testutil::oracle_directories::{Directories, Sleuthkit, debugfs, xfs_db};
use virt_bmap_testutil::ranges::normalise;
use virt_bmap_testutil::tools;

/// The numbers of one row.
#[derive(Default)]
pub(crate) struct Books {
    /// Its name.
    pub(crate) name: String,
    /// The number of directories in the map.
    directories: usize,
    /// Their bytes, and the program that was asked about them.
    in_directories: Option<(&'static str, Bytes)>,
    /// The number of streams and resource forks, and their bytes by the scan for patterns.
    streams: (usize, Bytes),
    /// Free bytes by the map, and by `statfs`.
    free: Option<(u64, u64)>,
    /// Why these may differ.
    free_differs: Option<&'static str>,
    balance: Option<Balance>,
    /// What other programs find, and whether the map has it.
    peers: String,
    /// What noise in free space has changed.
    noise: String,
    /// What is not as it must be.
    pub(crate) wrong: Vec<String>,
}

impl Books {
    /// The books of a row. `line` is its line in the first table.
    pub(crate) fn of(row: &Row, map: &Map, flat: Option<&Flat>, line: &Line) -> Self {
        let devices = devices(map, row);
        let mut books = Self {
            name: row.name.to_owned(),
            streams: line.streams,
            free_differs: row.free_differs,
            ..Self::default()
        };
        let is_here =
            |object: &Object<'_>| object.kind() == Kind::Directory && devices.contains(object.name().device);
        books.directories = map.objects().filter(is_here).count();
        books.in_directories = flat.and_then(|flat| compare_directories(map, flat, is_here));
        if let Some((flat, device)) = flat.zip(devices.first()) {
            let peers = peers::ask(flat, row.rules.block, map, device);
            books.peers = peers.summary;
            books.wrong.extend(peers.unexplained);
        }
        if let Some((oracle, bytes)) = books.in_directories
            && !bytes.is_perfect()
        {
            books.wrong.push(format!("directories by {oracle}: {bytes:?}"));
        }
        let filesystems: Vec<&Filesystem> =
            map.header().filesystems.iter().filter(|f| devices.contains(&f.device[..])).collect();
        assert_eq!(filesystems.len(), devices.len(), "{}", row.name);
        books.free = filesystems.iter().map(|f| f.free_mapped.zip(f.free)).sum_pairs();
        if let Some((mapped, free)) = books.free
            && mapped != free
            && row.free_differs.is_none()
        {
            books.wrong.push(format!("{mapped} bytes are free by the map, {free} by the filesystem"));
        }
        let balances: Option<Vec<Balance>> = filesystems.iter().map(|f| f.balance).collect();
        books.balance = balances.map(|all| all.into_iter().fold(Balance::default(), add));
        if let Some(balance) = books.balance.filter(|balance| !balance.is_even()) {
            books.wrong.push(format!("the balance is not even: {balance:?}"));
        }
        books
    }

    /// Adds what noise has changed in the filesystem. `None`: it has not been examined.
    pub(crate) fn noise(&mut self, free: &Ranges, change: Option<&Option<String>>) {
        self.noise = match change {
            _ if total(free) == 0 => "no free space is known".into(),
            None => "not examined".into(),
            Some(None) => format!("{}, nothing changed", crate::noise::mib(free)),
            Some(Some(what)) => {
                self.wrong.push(format!("noise in free space: {what}"));
                format!("{}, **changed**", crate::noise::mib(free))
            }
        };
    }
}

trait SumPairs {
    fn sum_pairs(self) -> Option<(u64, u64)>;
}

impl<I: Iterator<Item = Option<(u64, u64)>>> SumPairs for I {
    /// The sums of both numbers, if all are known.
    fn sum_pairs(mut self) -> Option<(u64, u64)> {
        self.try_fold((0, 0), |(a, b), pair| pair.map(|(c, d)| (a + c, b + d)))
    }
}

fn add(a: Balance, b: Balance) -> Balance {
    Balance {
        used: a.used + b.used,
        files: a.files + b.files,
        directories: a.directories + b.directories,
        metadata: a.metadata + b.metadata,
        superseded: a.superseded + b.superseded,
        unexplained: a.unexplained + b.unexplained,
        claimed_twice: a.claimed_twice + b.claimed_twice,
        claimed_free: a.claimed_free + b.claimed_free,
    }
}

/// The devices with the files of a row.
fn devices<'a>(map: &'a Map, row: &Row) -> BTreeSet<&'a [u8]> {
    let within = format!("/{}/", row.slug());
    let names = map.objects().filter(|object| object.kind() == Kind::File).map(Object::name);
    names
        .filter(|name| memchr::memmem::find(name.path, within.as_bytes()).is_some())
        .map(|name| name.device)
        .collect()
}

/// The free space of a row, and that of all devices.
pub(crate) fn free(map: &Map, row: Option<&Row>) -> Ranges {
    let devices = row.map(|row| devices(map, row));
    let mut free = Ranges::new();
    for object in map.objects().filter(|object| object.kind() == Kind::Free) {
        if devices.as_ref().is_none_or(|devices| devices.contains(object.name().device)) {
            ranges_of(object, PieceFlags::empty()).into_iter().for_each(|(disk, ranges)| {
                free.entry(disk).or_default().extend(ranges);
            });
        }
    }
    free.values_mut().for_each(|ranges| *ranges = normalise(std::mem::take(ranges)));
    free
}

/// The ranges of an object, without those that have any of `flags`.
pub(crate) fn ranges_of(object: Object<'_>, without: PieceFlags) -> Ranges {
    let mut ranges = Ranges::new();
    for piece in object.pieces().filter(|piece| !piece.role.flags.intersects(without)) {
        let range = piece.range.start.0..piece.range.end.0;
        ranges.entry(u32::from(piece.disk)).or_default().push(range);
    }
    ranges.values_mut().for_each(|ranges| *ranges = normalise(std::mem::take(ranges)));
    ranges
}

/// Asks another program about the directories of a filesystem that lies on one partition.
fn compare_directories(
    map: &Map,
    flat: &Flat,
    is_here: impl Fn(&Object<'_>) -> bool,
) -> Option<(&'static str, Bytes)> {
    let (mut of_map, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    for object in map.objects().filter(is_here) {
        let path = String::from_utf8_lossy(object.name().path).into_owned();
        // A directory that is in other metadata has no blocks of its own.
        of_map.insert(path.clone(), ranges_of(object, PieceFlags::INLINE));
        inodes.insert(path, object.attributes().inode.unwrap_or_default());
    }
    let (oracle, said) = ask(flat.place.kind, &flat.image, &inodes)?;
    if flat.place.kind == "iso9660" {
        // It knows other names. No two directories share a block.
        let all = flat.to_disk(&normalise(said.into_values().flatten()));
        let mapped = normalise(of_map.into_values().flatten().flat_map(|(_, ranges)| ranges));
        return Some((oracle, Bytes::compare(&all, &Ranges::from([(flat.place.disk, mapped)]))));
    }
    let nothing = Ranges::new();
    let paths: BTreeSet<&String> = of_map.keys().chain(said.keys()).collect();
    let each = paths.into_iter().map(|path| {
        let said = said.get(path).map(|ranges| flat.to_disk(ranges)).unwrap_or_default();
        Bytes::compare(&said, of_map.get(path).unwrap_or(&nothing))
    });
    Some((oracle, each.sum()))
}

/// What another program says about the directories of an image.
fn ask(kind: &str, flat: &Path, inodes: &BTreeMap<String, u64>) -> Option<(&'static str, Directories)> {
    let sleuthkit = match kind {
        "vfat" => Some(Sleuthkit::FAT),
        "exfat" => Some(Sleuthkit::EXFAT),
        "iso9660" => Some(Sleuthkit::ISO),
        "ntfs" => Some(Sleuthkit::ntfs(ntfs_cluster(flat))),
        _ => None,
    };
    let has = |program| tools::installed(&[program]);
    match (kind, sleuthkit) {
        (_, Some(kind)) if has("istat") => Some(("istat", kind.directories(flat))),
        ("ext4", _) if has("debugfs") => Some(("debugfs", debugfs(flat, inodes))),
        ("xfs", _) if has("xfs_db") => Some(("xfs_db", xfs_db(flat, inodes))),
        _ => None,
    }
}

/// Bytes in a cluster of NTFS: bytes in a sector times sectors in a cluster, in the boot sector.
fn ntfs_cluster(flat: &Path) -> u64 {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = [0; 3];
    std::fs::File::open(flat).unwrap().read_exact_at(&mut bytes, 11).unwrap();
    u64::from(u16::from_le_bytes([bytes[0], bytes[1]])) * u64::from(bytes[2])
}

/// The table as Markdown.
pub(crate) fn markdown(rows: &[Books]) -> String {
    let mut text = String::from(
        "| filesystem or layer | directories | recall | precision | oracle | streams | recall | precision \
         | free by the map | free by the filesystem | used | unexplained | claimed twice | claimed free \
         | noise in free space | peers |\n|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|---|\n",
    );
    for row in rows {
        let (oracle, in_directories) = row.in_directories.unwrap_or_default();
        let (streams, in_streams) = row.streams;
        let streams = if streams == 0 { String::new() } else { streams.to_string() };
        let (mapped, mut free) = row.free.map(|(a, b)| (grouped(a), grouped(b))).unwrap_or_default();
        free += &row.free_differs.map(|why| format!(" ({why})")).unwrap_or_default();
        let balance =
            row.balance.map(|b| [b.used, b.unexplained, b.claimed_twice, b.claimed_free].map(grouped));
        let [used, unexplained, twice, claimed_free] = balance.unwrap_or_default();
        writeln!(
            text,
            "| {} | {} | {} | {} | {oracle} | {streams} | {} | {} | {mapped} | {free} | {used} \
             | {unexplained} | {twice} | {claimed_free} | {} | {} |",
            row.name,
            row.directories,
            in_directories.recall(),
            in_directories.precision(),
            in_streams.recall(),
            in_streams.precision(),
            row.noise,
            row.peers,
        )
        .unwrap();
    }
    text
}
