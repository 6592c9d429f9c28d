//! Reads uncompressed data directly from an image's files, and the rest through the captive
//! `qemu-nbd`.
//!
//! For each range of the disk, `qemu-img map` reports the image of the chain that holds it and the
//! offset in that image's file, or that it reads as zeroes. It reports no offset for compressed
//! data. A read from the file costs one system call, a request to another process two wake-ups.
//! qemu keeps the images locked, so the answers stay valid.
//!
//! The answers are verified at a few places of each image by reading them both ways.

use super::block_device::Description;
use super::file::PlainFile;
use super::link::Link;
use super::map_entry::MapEntry;
use super::raw::RawFile;
use super::served::Served;
use super::{OpenError, Source, lock, qemu_img, within_file};
use std::io;
use std::time::Duration;
use virt_bmap_ranges::{DiskOffset, DiskRange};

/// Most runs that are kept, some 32 MiB. qemu-nbd reads everything after the last of them.
const MAX_RUNS: usize = 1 << 20;

/// Most processor time for `qemu-img map`: more than the tables of some terabytes take.
const MAX_CPU: Duration = Duration::from_secs(20);

/// Bytes that are compared at each verified place.
const PROOF: u64 = 4096;

/// A [`Source`] that has the place of most bytes in the image's files.
pub(super) struct Direct {
    /// For all else; it also keeps the images locked.
    below: Served,
    /// The files of the chain's images, from the top down. `None`: qemu-nbd reads this image.
    files: Vec<Option<RawFile>>,
    /// Ascending; qemu-nbd reads the bytes between them.
    runs: Vec<Run>,
}

/// Consecutive bytes in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    range: DiskRange,
    place: StoredAt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoredAt {
    /// They are zeroes.
    Zero,
    /// They are in the file of this image of the chain, from this offset on.
    File(u16, u64),
    /// They are read through qemu-nbd.
    Elsewhere,
}

impl StoredAt {
    /// The place that is `ahead` bytes further.
    fn after(self, ahead: u64) -> Self {
        match self {
            Self::File(image, offset) => Self::File(image, offset + ahead),
            same => same,
        }
    }
}

impl Direct {
    /// Finds the places of the bytes that `below` serves. If that fails, `below` reads everything.
    pub(super) fn new(below: Served, description: &Description, chain: &[Link]) -> Self {
        // Anything but a local file may not support two readers.
        if !chain.iter().all(Link::is_local) {
            return Self { below, files: Vec::new(), runs: Vec::new() };
        }
        let files = chain.iter().map(|link| open(link).ok().flatten()).collect();
        let mut direct = Self { below, files, runs: Vec::new() };
        match direct.ask(description, &chain[0]) {
            Ok(()) => direct.prove(),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "qemu-nbd reads all of the image");
                direct.runs.clear();
            }
        }
        direct
    }

    fn ask(&mut self, description: &Description, top: &Link) -> Result<(), OpenError> {
        let Self { below, files, runs } = self;
        let size = below.size();
        qemu_img::map(description, &top.path, MAX_CPU, false, |entry| {
            let range = entry.within(size);
            let place = place(&entry, range, files);
            if place != StoredAt::Elsewhere && !range.is_empty() && runs.len() < MAX_RUNS {
                append(runs, Run { range, place });
            }
        })
    }

    /// Reads the beginning, the middle and the end of each image's data both ways. If they differ,
    /// qemu-nbd reads this image.
    fn prove(&mut self) {
        for image in 0..self.files.len() {
            let held: Vec<_> = self
                .runs
                .iter()
                .filter(|run| matches!(run.place, StoredAt::File(of, _) if usize::from(of) == image))
                .map(|run| run.range)
                .collect();
            let (Some(first), Some(last)) = (held.first(), held.last()) else { continue };
            let middle = held[held.len() / 2];
            let starts =
                [first.start, middle.start, DiskOffset(last.end.0.saturating_sub(PROOF).max(last.start.0))];
            if !starts.into_iter().zip([*first, middle, *last]).all(|(start, run)| self.is_same(start, run)) {
                tracing::warn!(
                    image,
                    "qemu-img map and qemu-nbd do not agree: qemu-nbd reads all of this image"
                );
                self.files[image] = None;
            }
        }
        let Self { files, runs, .. } = self;
        runs.retain(|run| match run.place {
            StoredAt::File(image, _) => files[usize::from(image)].is_some(),
            _ => true,
        });
    }

    fn is_same(&self, start: DiskOffset, run: DiskRange) -> bool {
        let length = (run.end.0 - start.0).min(PROOF) as usize;
        let (mut ours, mut theirs) = (vec![0; length], vec![1; length]);
        self.read_at(&mut ours, start).is_ok()
            && self.below.read_at(&mut theirs, start).is_ok()
            && ours == theirs
    }

    /// Splits `range` by place: ascending, without gaps.
    fn pieces(&self, range: DiskRange) -> impl Iterator<Item = (DiskRange, StoredAt)> + '_ {
        let mut next = self.runs.partition_point(|run| run.range.end <= range.start);
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let run = self.runs.get(next).filter(|run| run.range.start < range.end);
            let (end, place) = match run {
                Some(run) if run.range.start <= at => {
                    next += 1;
                    (run.range.end.min(range.end), run.place.after(at.0 - run.range.start.0))
                }
                Some(run) => (run.range.start, StoredAt::Elsewhere),
                None => (range.end, StoredAt::Elsewhere),
            };
            let piece = DiskRange { start: at, end };
            at = end;
            Some((piece, place))
        })
    }

    /// Fills `buf` piece by piece by calling `read` with the disk offset and the place of each.
    /// Stops and returns false as soon as `read` does.
    fn fill(
        &self,
        buf: &mut [u8],
        offset: DiskOffset,
        mut read: impl FnMut(&mut [u8], DiskOffset, StoredAt) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let mut rest = within_file(buf, offset, self.size())?;
        for (range, place) in self.pieces(DiskRange::new(offset.0, offset.0 + rest.len() as u64)) {
            let (part, behind) = rest.split_at_mut(range.len() as usize);
            rest = behind;
            if !read(part, range.start, place)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn file(&self, image: u16) -> io::Result<&RawFile> {
        let file = self.files.get(usize::from(image)).and_then(Option::as_ref);
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Source for Direct {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        self.fill(buf, offset, |part, _, place| match place {
            StoredAt::Zero => {
                part.fill(0);
                Ok(true)
            }
            StoredAt::File(image, offset) => self.file(image)?.try_read_at(part, DiskOffset(offset)),
            StoredAt::Elsewhere => Ok(false),
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        let read = |part: &mut [u8], start, place| {
            match place {
                StoredAt::Zero => part.fill(0),
                StoredAt::File(image, offset) => self.file(image)?.read_at(part, DiskOffset(offset))?,
                StoredAt::Elsewhere => self.below.read_at(part, start)?,
            }
            Ok(true)
        };
        self.fill(buf, offset, read).map(|_| ())
    }
}

/// The file of an image, if it holds all of the image's data and is readable.
fn open(link: &Link) -> Result<Option<RawFile>, OpenError> {
    if link.format.is_none() || link.data_file.is_some() || !link.extents.is_empty() {
        return Ok(None);
    }
    let PlainFile { file, size, .. } = PlainFile::open(&link.path)?;
    // Longer than qemu-nbd lives.
    lock::hold(&file);
    Ok(Some(RawFile::new(file, size)))
}

/// The place of `range`, which is the entry's range within the disk.
fn place(entry: &MapEntry, range: DiskRange, files: &[Option<RawFile>]) -> StoredAt {
    if entry.zero {
        return StoredAt::Zero;
    }
    let (true, Some(offset), Ok(image)) = (entry.data, entry.offset, u16::try_from(entry.depth)) else {
        return StoredAt::Elsewhere;
    };
    let file = files.get(usize::from(image)).and_then(Option::as_ref);
    let is_inside = |file: &RawFile| offset.checked_add(range.len()).is_some_and(|end| end <= file.size());
    if file.is_some_and(is_inside) { StoredAt::File(image, offset) } else { StoredAt::Elsewhere }
}

/// Neighbours that continue in the same place become one run.
fn append(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last)
            if last.range.end == run.range.start && last.place.after(last.range.len()) == run.place =>
        {
            last.range.end = run.range.end;
        }
        // Entries ascend; qemu-nbd reads those that do not.
        Some(last) if last.range.end > run.range.start => {}
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use super::super::access::Access;
    use super::super::{chain::follow, qemu_nbd};
    use super::*;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    #[test]
    fn continuing_runs_are_joined() {
        let mut runs = Vec::new();
        for (start, end, place) in [
            (0, 10, StoredAt::File(0, 100)),
            (10, 20, StoredAt::File(0, 110)),
            (20, 30, StoredAt::File(0, 200)),
            (30, 40, StoredAt::Zero),
            (40, 50, StoredAt::Zero),
            (60, 70, StoredAt::Zero),
        ] {
            append(&mut runs, Run { range: DiskRange::new(start, end), place });
        }
        let joined = [
            (0, 20, StoredAt::File(0, 100)),
            (20, 30, StoredAt::File(0, 200)),
            (30, 50, StoredAt::Zero),
            (60, 70, StoredAt::Zero),
        ];
        assert_eq!(runs, joined.map(|(start, end, place)| Run { range: DiskRange::new(start, end), place }));
    }

    #[test]
    fn nothing_is_read_past_the_end_of_a_file() {
        let files = [Some(RawFile::new(tempfile::tempfile().unwrap(), 4096)), None];
        let range = DiskRange::new(0, 4096);
        let entry = |depth, offset| MapEntry {
            start: 0,
            length: 4096,
            depth,
            present: true,
            zero: false,
            data: true,
            offset,
        };
        assert_eq!(place(&entry(0, Some(0)), range, &files), StoredAt::File(0, 0));
        for (depth, offset) in
            [(0, Some(1)), (0, Some(u64::MAX)), (0, None), (1, Some(0)), (2, Some(0)), (1 << 40, Some(0))]
        {
            assert_eq!(
                place(&entry(depth, offset), range, &files),
                StoredAt::Elsewhere,
                "{depth} {offset:?}"
            );
        }
    }

    /// Runs one of qemu's programs.
    fn qemu(program: &str, arguments: &[&str], directory: &Path) {
        let output = Command::new(program).args(arguments).current_dir(directory).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// A raw image, an overlay of it that is compressed in part, and on top one with data and
    /// zeroes.
    fn chain(directory: &Path, format: &str) -> PathBuf {
        qemu("qemu-img", &["create", "-f", "raw", "base", "8M"], directory);
        qemu("qemu-io", &["-f", "raw", "-c", "write -P 1 1M 3M", "base"], directory);
        qemu("qemu-img", &["create", "-f", "qcow2", "-b", "base", "-F", "raw", "middle"], directory);
        qemu(
            "qemu-io",
            &["-f", "qcow2", "-c", "write -c -P 2 2M 128k", "-c", "write -P 3 3M 512k", "middle"],
            directory,
        );
        qemu("qemu-img", &["create", "-f", format, "-b", "middle", "-F", "qcow2", "top"], directory);
        let writes = ["-c", "write -P 4 3200k 100k", "-c", "write -P 5 6M 64k", "-c", "write -z 1M 64k"];
        qemu("qemu-io", &[&["-f", format], &writes[..], &["top"]].concat(), directory);
        qemu("qemu-img", &["convert", "-f", format, "-O", "raw", "top", "flat"], directory);
        directory.join("top")
    }

    fn open_chain(top: &Path) -> Direct {
        let links = follow(top, None, &Access::default()).unwrap().links;
        let description = Description::of_chain(&links, &Access::default()).unwrap();
        Direct::new(qemu_nbd::start(&description, &links[0], None).unwrap(), &description, &links)
    }

    #[test]
    fn a_chain_is_read_from_its_files() {
        for format in ["qcow2", "qed"] {
            let directory = tempfile::tempdir().unwrap();
            let direct = open_chain(&chain(directory.path(), format));
            let flat = std::fs::read(directory.path().join("flat")).unwrap();
            let all = DiskRange::new(0, direct.size());
            assert_eq!(all.len(), flat.len() as u64);

            let mut amounts = std::collections::BTreeMap::new();
            let mut at = all.start;
            for (piece, place) in direct.pieces(all) {
                assert_eq!(piece.start, at);
                at = piece.end;
                let key = match place {
                    StoredAt::Zero => "zero".to_owned(),
                    StoredAt::File(image, _) => format!("file {image}"),
                    StoredAt::Elsewhere => "elsewhere".to_owned(),
                };
                *amounts.entry(key).or_insert(0) += piece.len() >> 10;
            }
            assert_eq!(at, all.end);
            // Only what is compressed has no place of its own.
            assert_eq!(amounts["elsewhere"], 128, "{format}: {amounts:?}");
            assert_eq!(amounts.values().sum::<u64>(), 8 << 10);
            assert!(
                ["file 0", "file 1", "file 2", "zero"].iter().all(|key| amounts[*key] >= 64),
                "{amounts:?}"
            );

            // Reads of all lengths, across all borders.
            for (start, length) in
                (0..flat.len()).step_by(61 << 10).zip([1, 4096, 70_000, 1 << 20].into_iter().cycle())
            {
                let expected = &flat[start..(start + length).min(flat.len())];
                let mut buf = vec![0xee; expected.len()];
                direct.read_at(&mut buf, DiskOffset(start as u64)).unwrap();
                assert!(buf == expected, "{length} bytes at {start} of {format}");
                buf.fill(0xee);
                if direct.try_read_at(&mut buf, DiskOffset(start as u64)).unwrap() {
                    assert!(buf == expected, "{length} bytes at {start} of {format}, without waiting");
                }
            }
            assert!(direct.read_at(&mut [0; 2], DiskOffset(all.end.0 - 1)).is_err());
        }
    }

    #[test]
    fn qemu_nbd_reads_an_image_whose_place_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let top = chain(directory.path(), "qcow2");
        let mut direct = open_chain(&top);
        let run = direct.runs.iter_mut().find(|run| matches!(run.place, StoredAt::File(0, _))).unwrap();
        run.place = run.place.after(512 << 10);
        direct.prove();
        assert!(direct.files[0].is_none() && direct.files[1].is_some() && direct.files[2].is_some());
        let flat = std::fs::read(directory.path().join("flat")).unwrap();
        let mut buf = vec![0; flat.len()];
        direct.read_at(&mut buf, DiskOffset(0)).unwrap();
        assert!(buf == flat);
    }
}
