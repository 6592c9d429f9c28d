//! A series of states of one disk that are given as images: backups, the overlays of a chain,
//! snapshots inside a qcow2 image.

use super::{Span, States};
use crate::changed::{Compared, compare, not_in_holes};
use std::io;
use std::sync::Arc;
use virt_bmap_image::{Image, ImageFile, OpenError};
use virt_bmap_map::SECTOR;
use virt_bmap_ranges::{DiskOffset, DiskRange, IndexedRanges, RangeSet};

/// A state of a disk.
pub struct NamedState {
    /// What the user calls it.
    pub name: Arc<[u8]>,
    /// The disk.
    pub image: Image,
}

/// Why two states cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum SeriesError {
    /// It is not known which bytes an image holds itself.
    #[error(transparent)]
    Layer(#[from] OpenError),
    /// It is not known which parts are holes.
    #[error("cannot find out which parts of the images are holes")]
    Holes(#[source] io::Error),
}

/// The parts of the disk that can differ between two states of it.
///
/// # Errors
/// [`SeriesError`]
pub fn possible(old: &NamedState, new: &NamedState) -> Result<IndexedRanges, SeriesError> {
    let (old, new) = (&old.image, &new.image);
    if old.snapshot.is_none() && new.snapshot.is_none() && is_below(old, new) {
        let layer = new.layer()?;
        return Ok(layer.data.iter().chain(layer.zeroes.iter()).collect());
    }
    not_in_holes(&*old.source, &*new.source).map_err(SeriesError::Holes)
}

/// Whether `old` is the image right below `new`, which then holds all that differs.
fn is_below(old: &Image, new: &Image) -> bool {
    let path = |image: Option<&ImageFile>| image?.location.file()?.canonicalize().ok();
    let (old, below) = (path(old.chain.first()), path(new.chain.get(1)));
    old.is_some() && old == below
}

/// Compares two states of the disk where they [can](possible) differ. The result is the later state
/// with what was written since the earlier one: whole sectors, since a disk has no smaller unit.
/// What could not be compared counts as written; the first error says why.
///
/// `progress` is called as by [`compare`].
pub fn between(
    old: &NamedState,
    new: &NamedState,
    possible: &IndexedRanges,
    progress: &(dyn Fn(u64) + Sync),
) -> (States, Option<io::Error>) {
    let (before, after) = (&*old.image.source, &*new.image.source);
    let Compared { differs, unknown, error } = compare(before, after, possible, progress);
    let size = after.size();
    let sectors = |range: DiskRange| {
        let (start, end) = (range.start.0 / SECTOR * SECTOR, range.end.0.next_multiple_of(SECTOR));
        DiskRange::new(start, end.min(size))
    };
    let written: RangeSet<DiskOffset> = differs.iter().chain(unknown.iter()).map(sectors).collect();
    let span = Span::Between { from: old.name.clone(), to: new.name.clone() };
    (States { disks: vec![new.image.source.clone()], written: vec![written], span }, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;
    use virt_bmap_image::{ImageFormat, OpenOptions};

    fn state(path: &Path, format: ImageFormat) -> NamedState {
        let options = OpenOptions { format: Some(format), ..OpenOptions::default() };
        let image = virt_bmap_image::open(&path.to_owned().into(), &options).unwrap();
        NamedState { name: path.file_name().unwrap().as_encoded_bytes().into(), image }
    }

    #[test]
    fn what_differs_is_written_in_whole_sectors() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["old", "new"].map(|name| dir.path().join(name));
        let mut bytes = vec![7; 1 << 20];
        fs::write(&paths[0], &bytes).unwrap();
        (bytes[1000], bytes[4096], bytes[5000]) = (8, 8, 8);
        fs::write(&paths[1], &bytes).unwrap();
        let [old, new] = paths.each_ref().map(|path| state(path, ImageFormat::Raw));
        let all = possible(&old, &new).unwrap();
        assert_eq!(all.bytes(), 1 << 20);
        let (states, error) = between(&old, &new, &all, &|_| ());
        assert!(error.is_none());
        let expected = [(512, 1024), (4096, 4608), (4608, 5120)].map(|(a, b)| DiskRange::new(a, b));
        assert_eq!(states.written, [expected.into_iter().collect()]);
        assert_eq!(states.span.to_string(), "old to new");
    }

    #[test]
    fn of_an_overlay_only_what_it_holds_can_differ() {
        virt_bmap_testutil::tools::needs!("qemu-img", "qemu-io");
        let dir = tempfile::tempdir().unwrap();
        let (base, top) = (dir.path().join("base"), dir.path().join("top"));
        fs::write(&base, vec![7; 1 << 20]).unwrap();
        let qemu = |program, words: &[&str]| {
            virt_bmap_testutil::tools::output(
                virt_bmap_testutil::tools::command(program).args(words).arg(&top),
            );
        };
        qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base"]);
        qemu("qemu-io", &["-f", "qcow2", "-c", "write -q -P 9 131072 512", "-c", "write -q -z 0 65536"]);
        let [old, new] = [state(&base, ImageFormat::Raw), state(&top, ImageFormat::Qcow2)];
        let some = possible(&old, &new).unwrap();
        let expected = [DiskRange::new(0, 65536), DiskRange::new(131_072, 196_608)];
        assert_eq!(some.iter().collect::<Vec<_>>(), expected);
        // Below is another image.
        let copy = dir.path().join("copy");
        fs::copy(&base, &copy).unwrap();
        let all = possible(&state(&copy, ImageFormat::Raw), &new).unwrap();
        assert_eq!(all.bytes(), 1 << 20);
        let (states, _) = between(&old, &new, &some, &|_| ());
        let expected = [DiskRange::new(0, 65536), DiskRange::new(131_072, 131_584)];
        assert_eq!(states.written, [expected.into_iter().collect()]);
    }
}
