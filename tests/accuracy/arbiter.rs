//! The first oracle, which needs no parser. It looks for the patterns of the files on the disks,
//! and judges a map by the places where it finds them.

use crate::compressed;
use crate::counts::Bytes;
use crate::population::{SectorName, TestFile, bytes_of, name_in};
use rustix::fs::{SeekFrom, seek};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use virt_bmap_testutil::ranges::{Range, bytes, difference, normalise};
use virt_bmap_testutil::special::{MAGIC, SECTOR};

/// A byte of a guest: the number of its disk, counted from 1, and the offset there.
pub(crate) type Place = (u32, u64);

/// Ranges on a guest's disks, by disk. The list of each disk is normalised.
pub(crate) type Ranges = BTreeMap<u32, Vec<Range>>;

/// An encrypted area on a guest's disks.
#[derive(Clone, Debug)]
pub(crate) struct Plain {
    /// Where a decrypted copy of it lies.
    pub(crate) at: Place,
    /// Its largest possible length in bytes.
    pub(crate) length: u64,
    /// Where it lies encrypted, for each copy.
    pub(crate) copies: Vec<Place>,
}

/// The disks of a guest, and the places of the sectors of patterns on them.
pub(crate) struct Scan {
    disks: Vec<File>,
    plain: Vec<Plain>,
    found: BTreeMap<SectorName, Vec<Place>>,
    /// The same for compressed data: the place and length of each frame that holds the sector.
    frames: BTreeMap<SectorName, Vec<(Place, u64)>>,
}

impl Scan {
    /// Looks for patterns at every byte of the raw images `disks`.
    pub(crate) fn of<P: AsRef<Path>>(disks: &[P], plain: &[Plain]) -> Self {
        let disks: Vec<File> = disks.iter().map(|disk| File::open(disk).unwrap()).collect();
        let mut found: BTreeMap<SectorName, Vec<Place>> = BTreeMap::new();
        let finder = memchr::memmem::Finder::new(&MAGIC);
        let mut buffer = vec![0; (1 << 20) + SECTOR];
        for (disk, file) in (1..).zip(&disks) {
            let size = file.metadata().unwrap().len();
            let mut at = 0;
            while at < size {
                // Skip the holes of the image.
                at = match seek(file, SeekFrom::Data(at)) {
                    Ok(data) => data,
                    Err(_) => break,
                };
                let part = &mut buffer[..(size - at).min((1 << 20) + SECTOR as u64) as usize];
                file.read_exact_at(part, at).unwrap();
                for hit in finder.find_iter(part).take_while(|hit| *hit < 1 << 20) {
                    if let Some(name) = name_in(&part[hit..]) {
                        found.entry(name).or_default().push((disk, at + hit as u64));
                    }
                }
                at += 1 << 20;
            }
        }
        Self { disks, plain: plain.to_vec(), found, frames: BTreeMap::new() }
    }

    /// Looks for patterns in compressed data too.
    pub(crate) fn decompress(&mut self) {
        let mut frames: BTreeMap<SectorName, Vec<(Place, u64)>> = BTreeMap::new();
        for (disk, file) in (1..).zip(&self.disks) {
            let lz4 = compressed::lz4_blocks(file, &MAGIC);
            for (at, length, content) in compressed::frames(file).into_iter().chain(lz4) {
                for bytes in content.windows(16).filter(|bytes| bytes.starts_with(&MAGIC)) {
                    let name = name_in(bytes).unwrap();
                    let places = frames.entry(name).or_default();
                    if places.last() != Some(&((disk, at), length)) {
                        places.push(((disk, at), length));
                    }
                }
            }
        }
        self.frames = frames;
    }

    /// Reads bytes of a disk, decrypted if they are encrypted. At the end of the disk there may be
    /// fewer than `length`.
    fn read(&self, (mut disk, mut at): Place, length: usize) -> Vec<u8> {
        for plain in &self.plain {
            let mut copies = plain.copies.iter();
            let within = |copy: &&Place| copy.0 == disk && (copy.1..copy.1 + plain.length).contains(&at);
            if let Some(copy) = copies.find(within) {
                (disk, at) = (plain.at.0, plain.at.1 + (at - copy.1));
                break;
            }
        }
        let file = &self.disks[disk as usize - 1];
        let size = file.metadata().unwrap().len();
        let mut bytes = vec![0; length.min(size.saturating_sub(at) as usize)];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// The places that the program should name for a place: in a decrypted copy, the encrypted
    /// places of the same bytes, otherwise the place itself.
    fn encrypted(&self, place: Place) -> Vec<Place> {
        let (disk, at) = place;
        let within =
            |plain: &&Plain| plain.at.0 == disk && (plain.at.1..plain.at.1 + plain.length).contains(&at);
        let Some(plain) = self.plain.iter().find(within) else { return vec![place] };
        plain.copies.iter().map(|copy| (copy.0, copy.1 + (at - plain.at.1))).collect()
    }

    /// The first sector of a pattern in `ranges`, and its place.
    fn pattern_in(&self, ranges: &Ranges) -> Option<(Place, SectorName)> {
        for (disk, list) in ranges {
            for range in list {
                for at in (range.start.next_multiple_of(SECTOR as u64)..range.end).step_by(SECTOR) {
                    if let Some(name) = name_in(&self.read((*disk, at), SECTOR)) {
                        return Some(((*disk, at), name));
                    }
                }
            }
        }
        None
    }

    /// The places of the first `length` bytes of a sector, each with the number of bytes there.
    fn places(&self, name: SectorName, length: usize, compressible: bool) -> Vec<(Place, u64)> {
        if compressible && let Some(frames) = self.frames.get(&name) {
            return frames.clone();
        }
        let whole = bytes_of(name, compressible);
        let places = self.found.get(&name).into_iter().flatten().copied();
        let right = places.filter(|place| self.read(*place, length) == whole[..length]);
        right.flat_map(|place| self.encrypted(place)).map(|place| (place, length as u64)).collect()
    }
}

/// The size of the largest block of metadata. If a file lies inside metadata, the map may name this
/// block as the file's.
const NODE: u64 = 16 << 10;

/// The fewest bytes of a sector that the oracle can distinguish from other data.
const SHORTEST: usize = 16;

/// What the map of a row may and must name, besides the places of the files.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Bytes in a block. The map may name the whole last block of a file.
    pub(crate) block: u64,
    /// Files of more than so many bytes have blocks of another size, and so many bytes are in one.
    pub(crate) large: Option<(u64, u64)>,
    /// Which copies of a block the map must name.
    pub(crate) copies: Copies,
    /// Whether the contents of files compress.
    pub(crate) compressible: bool,
    /// Whether several files share blocks that hold only data of files.
    pub(crate) packed: bool,
    /// Whether metadata may hold a sector of a file at the beginning of a sector of the disk. Then
    /// what does not lie in a block as it lies in the file is in metadata.
    pub(crate) has_tails: bool,
    /// Whether the probe names the metadata that it reads together with a file.
    pub(crate) metadata: bool,
}

/// Which copies the map must name if a block has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copies {
    /// All of them.
    All,
    /// Only the one in use. The others are left over, and the oracle cannot distinguish them.
    Any,
}

/// How the map of one file is judged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// The map names the file's blocks and nothing else.
    Exact,
    /// The file has no blocks of its own, for this reason, and the map names none.
    Without(&'static str),
    /// The oracle does not find the file, for this reason.
    Unseen(&'static str),
    /// The map names one copy of each block exactly, but not the other copies.
    OneCopy,
    /// The map is wrong.
    Wrong(String),
}

/// Where the oracle has found the sectors of a file.
#[derive(Default)]
struct Seen {
    /// All places of the sectors that lie in blocks of files' data.
    places: Vec<(Place, u64)>,
    /// The number of sectors that the map does not name.
    unnamed: usize,
    /// The number of sectors that lie in metadata.
    inside: usize,
    /// The places of those sectors that the map names.
    held: Vec<(Place, u64)>,
    /// The number of sectors that were not found.
    hidden: usize,
    /// The bytes of `places`, each sector counted once, and how many of them the map names.
    once: (u64, u64),
}

impl Seen {
    fn of(scan: &Scan, file: &TestFile, mapped: &Ranges, rules: Rules) -> Self {
        let mut seen = Self::default();
        let is_named = total(mapped) > 0;
        // The oracle cannot distinguish shorter sectors from other data.
        for (name, length) in file.sectors().into_iter().filter(|(_, length)| *length >= SHORTEST) {
            let mut places = scan.places(name, length, rules.compressible);
            if places.is_empty() && !is_named {
                // Metadata may hold a file in pieces. The first piece is long enough to be found.
                places = scan.places(name, length.min(2 * SHORTEST), rules.compressible);
            }
            let named: Vec<_> =
                places.iter().copied().filter(|(place, length)| contains(mapped, *place, *length)).collect();
            // A tree may hold several copies of a file in its nodes. By chance one of them may lie
            // at the beginning of a sector.
            let offset = u64::from(name.number) * SECTOR as u64;
            let is_tail = |at: u64, length: u64| {
                // Compressed data are longer than a sector, and lie as they like.
                rules.has_tails && length <= SECTOR as u64 && at % rules.block != offset % rules.block
            };
            let is_inside =
                places.iter().any(|&((_, at), length)| at % SECTOR as u64 != 0 || is_tail(at, length));
            if places.is_empty() {
                seen.hidden += 1;
            } else if is_inside && !rules.packed {
                seen.inside += 1;
                seen.held.extend(named);
            } else {
                seen.unnamed += usize::from(named.is_empty());
                seen.once.0 += length as u64;
                seen.once.1 += if named.is_empty() { 0 } else { length as u64 };
                seen.places.extend(places);
            }
        }
        seen
    }

    /// The bytes of the file that do not lie in metadata. If it is not known which copies of a
    /// block are in use, each counts once.
    fn bytes(&self, mapped: &Ranges, rules: Rules) -> Bytes {
        let all = ranges_of(&self.places);
        let mut bytes = Bytes::compare(&all, mapped);
        if rules.copies == Copies::Any {
            (bytes.known, bytes.found) = self.once;
        }
        bytes.right = bytes.named - total(&self.extra(&all, mapped, rules));
        bytes
    }

    /// What the map names besides the blocks of the file and the metadata that holds it.
    fn extra(&self, all: &Ranges, mapped: &Ranges, rules: Rules) -> Ranges {
        let rest = subtract(mapped, &with_slack(all, rules.block));
        subtract(&rest, &with_slack(&ranges_of(&self.held), NODE))
    }
}

/// Judges the ranges that the map gives to a file, and counts its bytes.
pub(crate) fn judge(scan: &Scan, file: &TestFile, mapped: &Ranges, rules: Rules) -> (Verdict, Bytes) {
    let sectors = file.sectors();
    if !sectors.is_empty() && sectors.iter().all(|(_, length)| *length < SHORTEST) {
        let verdict = judge_tiny(scan, &sectors, mapped, rules);
        let (known, named) = (sectors.iter().map(|(_, length)| *length as u64).sum(), total(mapped));
        let bytes = match verdict {
            Verdict::Exact => Bytes { known, found: known, named, right: named },
            Verdict::Without("inside metadata") => Bytes::default(),
            _ => Bytes { known, found: 0, named, right: 0 },
        };
        return (verdict, bytes);
    }
    let size: u64 = sectors.iter().map(|(_, length)| *length as u64).sum();
    let large = rules.large.filter(|(most, _)| size > *most);
    let rules = Rules { block: large.map_or(rules.block, |(_, block)| block), ..rules };
    let seen = Seen::of(scan, file, mapped, rules);
    (judge_seen(scan, &sectors, &seen, mapped, rules), seen.bytes(mapped, rules))
}

/// Judges a file by the places where its sectors were found.
fn judge_seen(
    scan: &Scan,
    sectors: &[(SectorName, usize)],
    seen: &Seen,
    mapped: &Ranges,
    rules: Rules,
) -> Verdict {
    if seen.hidden == sectors.len() && seen.hidden > 0 {
        return Verdict::Unseen("not in the clear");
    }
    if seen.hidden > 0 {
        return Verdict::Wrong(format!("the oracle misses {} of {} sectors", seen.hidden, sectors.len()));
    }
    let all = ranges_of(&seen.places);
    let extra = seen.extra(&all, mapped, rules);
    let missing = subtract(&all, mapped);
    let (extra_bytes, missing_bytes) = (total(&extra), total(&missing));
    if rules.metadata && extra_bytes > 0 && seen.unnamed == 0 && scan.pattern_in(&extra).is_none() {
        return Verdict::Without("and metadata read along");
    }
    if extra_bytes > 0 || seen.unnamed > 0 {
        return Verdict::Wrong(format!(
            "oracle {}; map {}; {missing_bytes} bytes missing, {extra_bytes} too many ({})",
            show(&all),
            show(mapped),
            show(&extra),
        ));
    }
    let slack = subtract(mapped, &all);
    if let Some((place, name)) = scan.pattern_in(&slack).filter(|_| !rules.packed && seen.held.is_empty()) {
        return Verdict::Wrong(format!("map {}: at {place:x?} is {name:?}", show(mapped)));
    }
    if missing_bytes > 0 && rules.copies == Copies::All {
        return Verdict::OneCopy;
    }
    match (sectors.len(), seen.inside) {
        (0, _) => Verdict::Without("no data"),
        (all, inside) if inside == all => Verdict::Without("inside metadata"),
        (_, 0) => Verdict::Exact,
        _ => Verdict::Without("in part inside metadata"),
    }
}

/// Judges a file of a few bytes. The ranges that the map names must begin with these bytes.
fn judge_tiny(scan: &Scan, sectors: &[(SectorName, usize)], mapped: &Ranges, rules: Rules) -> Verdict {
    let [(name, length)] = sectors[..] else { unreachable!("a file of a few bytes has one sector") };
    let content = &bytes_of(name, rules.compressible)[..length];
    let places: Vec<_> =
        mapped.iter().flat_map(|(disk, ranges)| ranges.iter().map(|r| (*disk, r.clone()))).collect();
    if places.is_empty() && !rules.packed {
        return Verdict::Without("inside metadata");
    }
    if rules.metadata && scan.pattern_in(mapped).is_none() {
        return Verdict::Without("and metadata read along");
    }
    // In a block that files share the oracle cannot find so few bytes. It looks for other files in
    // the block.
    if rules.packed {
        let holds_others = |disk: u32, range: &Range| {
            let within = |(d, at): &Place| *d == disk && range.contains(at);
            scan.found.values().flatten().any(within)
                || scan.frames.values().flatten().any(|(place, _)| within(place))
        };
        return match places[..] {
            [(disk, ref range)]
                if range.end - range.start <= 2 * rules.block && holds_others(disk, range) =>
            {
                Verdict::Exact
            }
            _ => Verdict::Wrong(format!("{length} bytes; map {}", show(mapped))),
        };
    }
    let right = !places.is_empty()
        && places.iter().all(|(disk, range)| {
            let bytes = scan.read((*disk, range.start), SECTOR);
            range.end - range.start <= rules.block
                && bytes.starts_with(content)
                && bytes[length..].iter().all(|b| *b == 0)
        });
    // The oracle cannot tell how many copies there are.
    if right {
        return Verdict::Exact;
    }
    Verdict::Wrong(format!("{length} bytes; map {}", show(mapped)))
}

fn contains(mapped: &Ranges, (disk, at): Place, length: u64) -> bool {
    let ranges = mapped.get(&disk).map_or(&[][..], Vec::as_slice);
    ranges.iter().any(|range| range.start <= at && at + length <= range.end)
}

fn ranges_of(places: &[(Place, u64)]) -> Ranges {
    let mut ranges = Ranges::new();
    for &((disk, at), length) in places {
        // A disk reads whole sectors.
        let sector = SECTOR as u64;
        let end = if at.is_multiple_of(sector) { at + length.next_multiple_of(sector) } else { at + length };
        ranges.entry(disk).or_default().push(at..end);
    }
    ranges.values_mut().for_each(|list| *list = normalise(std::mem::take(list)));
    ranges
}

/// Each range with the rest of the blocks in which it begins and ends. The rest is less than a
/// block, so it does not matter where blocks begin.
fn with_slack(ranges: &Ranges, block: u64) -> Ranges {
    let slack = |range: &Range| {
        let before = if range.start.is_multiple_of(SECTOR as u64) { 0 } else { block - 1 };
        range.start.saturating_sub(before)..range.end + block - 1
    };
    ranges.iter().map(|(disk, list)| (*disk, normalise(list.iter().map(slack)))).collect()
}

/// The bytes of `from` that are not in `minus`.
pub(crate) fn subtract(from: &Ranges, minus: &Ranges) -> Ranges {
    from.iter()
        .map(|(disk, list)| (*disk, difference(list, minus.get(disk).map_or(&[], Vec::as_slice))))
        .collect()
}

/// The number of bytes.
pub(crate) fn total(ranges: &Ranges) -> u64 {
    ranges.values().map(|list| bytes(list)).sum()
}

/// Ranges as text for a finding. Of many ranges only the first few are shown.
fn show(ranges: &Ranges) -> String {
    let all: Vec<String> = ranges
        .iter()
        .flat_map(|(disk, list)| list.iter().map(move |r| format!("{disk}:{:x}-{:x}", r.start, r.end)))
        .collect();
    match all.len() {
        0 => "nothing".into(),
        1..=6 => all.join(" "),
        n => format!("{} … ({n} ranges, {} bytes)", all[..6].join(" "), total(ranges)),
    }
}
