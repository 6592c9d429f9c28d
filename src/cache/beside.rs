//! Maps beside their images, which carry what they were made from.
//!
//! The content of a map has no times, so that two runs on one image give the same bytes. What a map
//! was made from is in an extended attribute of its file, see xattr(7). A copy that lacks the
//! attribute is a map that the user has to name.

use super::maps::KeptMap;
use super::origin::{Digests, Origin};
use super::trusted::{self, TrustError};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use virt_bmap_map::{self as bmap, FileType};
use virt_bmap_ranges::Printable;

/// The extended attribute.
const ATTRIBUTE: &str = "user.virt-bmap.origin";
/// Longest attribute that is read.
const MOST_BYTES: usize = 4096;

/// Suffixes of maps that can be read, those that lose least first.
const SUFFIXES: [&str; 9] =
    ["jsonl", "jsonl.zst", "jsonl.gz", "csv", "csv.zst", "csv.gz", "bmap", "bmap.zst", "bmap.gz"];

/// The value of the attribute.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    /// What the map was made from.
    #[serde(flatten)]
    origin: Digests,
    /// Size of the map's file.
    size: u64,
    /// Its modification time, which is the time at which the map was begun.
    modified: SystemTime,
}

/// Why no map beside an image is used.
#[derive(Debug, thiserror::Error)]
pub enum NotUsed {
    /// There is no file of such a name.
    #[error("there is no map beside {}", Printable::path(.0))]
    Missing(PathBuf),
    /// Somebody else may have written it.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It does not carry what it was made from, or was changed afterwards.
    #[error("{} does not carry what it was made from", Printable::path(.0))]
    Unmarked(PathBuf),
    /// The image has changed.
    #[error("{} was made from an earlier state of the image", Printable::path(.0))]
    Images(PathBuf),
    /// The options are others.
    #[error("{} was made with other options for mapping", Printable::path(.0))]
    Options(PathBuf),
    /// The program is another.
    #[error("{} was made by another build of this program", Printable::path(.0))]
    Program(PathBuf),
    /// It is damaged.
    #[error("{}: {reason}", Printable::path(.path))]
    Damaged {
        /// The map.
        path: PathBuf,
        /// Why it cannot be read.
        reason: bmap::ReadError,
    },
}

/// Marks a map's file, whose modification time is that at which the map was begun, with what it was
/// made from.
///
/// # Errors
/// The filesystem has no extended attributes, for instance.
pub fn mark(map: &File, origin: &Origin) -> io::Result<()> {
    let metadata = map.metadata()?;
    let mark =
        Mark { origin: origin.digests().clone(), size: metadata.len(), modified: metadata.modified()? };
    let value = serde_json::to_vec(&mark)?;
    Ok(rustix::fs::fsetxattr(map, ATTRIBUTE, &value, rustix::fs::XattrFlags::empty())?)
}

/// The map beside an image that was made from its present state. The name of the map is that of the
/// image with the suffix of a map, in place of its own or after it. Unless metadata is needed, a
/// map without it serves as well.
///
/// # Errors
/// [`NotUsed`] for the first of the files that have such a name.
pub fn find(image: &Path, origin: &Origin, needs_metadata: bool) -> Result<KeptMap, NotUsed> {
    let mut origins = vec![origin.clone()];
    if !needs_metadata {
        origins.push(origin.clone().of_content(false));
    }
    let mut first = None;
    for suffix in SUFFIXES {
        let mut after = OsString::from(image);
        after.push(".");
        after.push(suffix);
        for path in [image.with_extension(suffix), after.into()] {
            match open(&path, &origins) {
                Ok(map) => return Ok(map),
                Err(NotUsed::Missing(_)) => {}
                Err(why) => drop(first.get_or_insert(why)),
            }
        }
    }
    Err(first.unwrap_or_else(|| NotUsed::Missing(image.to_owned())))
}

/// Opens a map that was made from one of these origins, which differ in the options at most.
fn open(path: &Path, origins: &[Origin]) -> Result<KeptMap, NotUsed> {
    let at = || path.to_owned();
    let Some(file) = trusted::file(path)? else { return Err(NotUsed::Missing(at())) };
    let mark = read_mark(&file).ok_or_else(|| NotUsed::Unmarked(at()))?;
    let is_now = |part: fn(&Digests) -> &str| {
        origins.iter().any(|origin| part(origin.digests()) == part(&mark.origin))
    };
    if !is_now(|digests| &digests.images) {
        return Err(NotUsed::Images(at()));
    }
    if !is_now(|digests| &digests.options) {
        return Err(NotUsed::Options(at()));
    }
    if !is_now(|digests| &digests.program) {
        return Err(NotUsed::Program(at()));
    }
    let format = FileType::of(path).format;
    let map = bmap::read(file, format).map_err(|reason| NotUsed::Damaged { path: at(), reason })?;
    Ok(KeptMap { map, path: at(), made: mark.modified })
}

/// The mark of a map's file that has not changed since it was made.
fn read_mark(map: &File) -> Option<Mark> {
    let mut value = vec![0; MOST_BYTES];
    let length = rustix::fs::fgetxattr(map, ATTRIBUTE, &mut value[..]).ok()?;
    let mark: Mark = serde_json::from_slice(value.get(..length)?).ok()?;
    let metadata = map.metadata().ok()?;
    (metadata.len() == mark.size && metadata.modified().ok()? == mark.modified).then_some(mark)
}
