//! What a map was made from: the state of its images, the options, and the program.
//!
//! Two maps of one origin say the same. An origin is known only if all files of the images are
//! regular ones: nothing shows whether a block device or a source in the network was written to.

use super::KeyBuilder;
use crate::mapper::MapperOptions;
use crate::probe::{Legs, Probe, Proof};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use virt_bmap_image::Image;

/// How long before a map is begun its images must have been left alone: a file may be written to
/// twice within the resolution of its times.
const SETTLED: Duration = Duration::from_secs(1);

/// What a map was made from, or would be made from now.
#[derive(Clone, Debug)]
pub struct Origin {
    files: Vec<(PathBuf, FileState)>,
    digests: Digests,
    /// The digest of the options, if the map has no metadata.
    plain_options: String,
}

/// Digests of the parts of an origin, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// Of the state of all files of the images, and of the formats.
    pub images: String,
    /// Of the options that affect the content of a map.
    pub options: String,
    /// Of the program.
    pub program: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Origin {
    /// The present origin of a map of these images. `None` if it is not known: a file is not a
    /// regular one, a key is needed to open a device, or another program may be writing to the
    /// images.
    pub fn of(images: &[Image], options: &MapperOptions) -> Option<Self> {
        if !options.keys.is_empty() || options.access.force_share || options.access.key.is_some() {
            return None;
        }
        let mut files = Vec::new();
        for path in images.iter().map(Image::files).collect::<Option<Vec<_>>>()?.into_iter().flatten() {
            files.push((path.to_owned(), FileState::of(path)?));
        }
        let digests = Digests {
            images: of_images(&files, images),
            options: of_options(options, options.metadata),
            program: of_program()?,
        };
        Some(Self { files, digests, plain_options: of_options(options, false) })
    }

    /// The digests of its parts.
    pub fn digests(&self) -> &Digests {
        &self.digests
    }

    /// The origin of a map with or without metadata. One with metadata has it only if the options
    /// asked for it.
    pub fn of_content(mut self, has_metadata: bool) -> Self {
        if !has_metadata {
            self.digests.options.clone_from(&self.plain_options);
        }
        self
    }

    /// A digest of all its parts, in hexadecimal.
    pub fn key(&self) -> String {
        let mut key = KeyBuilder::default();
        let Digests { images, options, program } = &self.digests;
        [images, options, program].iter().for_each(|part| key.add(part.as_bytes()));
        key.finish()
    }

    /// Whether the images are unchanged, and were left alone for a second before the map was begun.
    pub fn held_since(&self, began: SystemTime) -> bool {
        let since_1970 = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at = since_1970.saturating_sub(SETTLED);
        let at = (i64::try_from(at.as_secs()).unwrap_or(i64::MAX), i64::from(at.subsec_nanos()));
        self.files.iter().all(|(path, state)| {
            state.modified <= at && state.changed <= at && FileState::of(path) == Some(*state)
        })
    }
}

impl FileState {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    fn add_to(&self, key: &mut KeyBuilder) {
        for number in [self.device, self.inode, self.size] {
            key.add(&number.to_le_bytes());
        }
        for number in [self.modified.0, self.modified.1, self.changed.0, self.changed.1] {
            key.add(&number.to_le_bytes());
        }
    }
}

fn of_images(files: &[(PathBuf, FileState)], images: &[Image]) -> String {
    let mut key = KeyBuilder::default();
    files.iter().for_each(|(_, state)| state.add_to(&mut key));
    for image in images {
        key.add(image.format.to_string().as_bytes());
        key.add(&[u8::from(image.snapshot.is_some())]);
        key.add(image.snapshot.as_deref().unwrap_or_default().as_bytes());
        // How many of the files are this image's.
        key.add(&(image.chain.len() as u64).to_le_bytes());
    }
    key.finish()
}

fn of_options(options: &MapperOptions, has_metadata: bool) -> String {
    let (probe, one_in) = match options.probe {
        Probe::Agent => (0, 0),
        Probe::Extents(Proof::Every) => (1, 1),
        Probe::Extents(Proof::Sample { one_in, .. }) => (1, one_in.get()),
        Probe::Guestfsd => (2, 0),
    };
    let legs = match options.legs {
        Legs::All => 0,
        Legs::One => 1,
    };
    let mut key = KeyBuilder::default();
    key.add(&[probe, u8::from(has_metadata), legs]);
    key.add(&one_in.to_le_bytes());
    key.finish()
}

/// `None` if this program's file cannot be examined.
fn of_program() -> Option<String> {
    let mut key = KeyBuilder::default();
    key.add(env!("CARGO_PKG_VERSION").as_bytes());
    FileState::of(&fs::read_link("/proc/self/exe").ok()?)?.add_to(&mut key);
    Some(key.finish())
}
