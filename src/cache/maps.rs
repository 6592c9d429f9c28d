//! Maps that this program has made, kept for later questions about the same images.
//!
//! A map is found again under a key of all files of the images (device, inode, size, times of the
//! last change to content and to inode), the options that shape a map, and the program. It is kept
//! only if no file was changed while it was made, or in the second before: a file may be written to
//! twice within the resolution of its times.

use super::{KeyBuilder, TrustedDirectory};
use crate::mapper::MapperOptions;
use crate::probe::{Legs, Probe};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use virt_bmap_image::Image;
use virt_bmap_map::output::Output;
use virt_bmap_map::{self as bmap, Map};

/// The directory of the maps in the cache.
const DIRECTORY: &str = "maps";
const SUFFIX: &str = ".jsonl.zst";
/// The maps in the cache take at most so many bytes.
const MOST_BYTES: u64 = 1 << 30;
/// How long before a map is begun its images must have been left alone.
const SETTLED: Duration = Duration::from_secs(1);

/// The state of all files of some images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFiles(Vec<FileState>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FileState {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl ImageFiles {
    /// The present state. `None` if one of the files is not a regular one: nothing shows whether a
    /// block device or a source in the network was written to.
    pub fn of(images: &[Image]) -> Option<Self> {
        let files = images.iter().flat_map(|image| &image.chain);
        let paths = files.flat_map(|file| std::iter::once(&file.filename).chain(&file.data_files));
        paths.map(|path| FileState::of(path)).collect::<Option<_>>().map(Self)
    }

    /// Whether all files were left alone for a second before this time.
    fn were_settled(&self, at: SystemTime) -> bool {
        let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at = seconds(at).saturating_sub(SETTLED);
        let at = (i64::try_from(at.as_secs()).unwrap_or(i64::MAX), i64::from(at.subsec_nanos()));
        self.0.iter().all(|file| file.modified <= at && file.changed <= at)
    }
}

impl FileState {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        Some(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// A map from the cache.
#[derive(Debug)]
pub struct KeptMap {
    /// The map.
    pub map: Map,
    /// Its file.
    pub path: PathBuf,
    /// When it was begun.
    pub made: SystemTime,
}

/// A place for the map of these images in the cache.
#[derive(Debug)]
pub struct Place {
    directory: TrustedDirectory,
    name: String,
    files: ImageFiles,
}

impl Place {
    /// The place for a map that is made with these options. `None` if it cannot be kept: the cache
    /// cannot be used, a file is not a regular one, a key is needed to open a device, or another
    /// program may be writing to the images.
    pub fn of(images: &[Image], options: &MapperOptions) -> Option<Self> {
        if !options.keys.is_empty() || options.force_share {
            return None;
        }
        let files = ImageFiles::of(images)?;
        let name = key(&files, images, options)? + SUFFIX;
        let directory = TrustedDirectory::make(&super::directory()?.join(DIRECTORY)).ok()?;
        Some(Self { directory, name, files })
    }

    /// The map that is kept there.
    pub fn find(&self) -> Option<KeptMap> {
        let file = self.directory.file(&self.name).ok()??;
        let made = file.metadata().ok()?.modified().ok()?;
        let path = self.directory.path().join(&self.name);
        // One that was damaged is made again.
        let map = bmap::load(&path).ok()?;
        Some(KeptMap { map, path, made })
    }

    /// Keeps a map that was begun at this time. Returns whether it was kept.
    ///
    /// # Errors
    /// The map could not be written.
    pub fn keep(&self, map: &Map, began: SystemTime) -> io::Result<bool> {
        let now: Option<Vec<FileState>> = self.files.0.iter().map(|file| FileState::of(&file.path)).collect();
        if now.as_ref() != Some(&self.files.0) || !self.files.were_settled(began) {
            return Ok(false);
        }
        let path = self.directory.path().join(&self.name);
        let mut output = Output::create(&path).map_err(io::Error::other)?;
        bmap::write(map, &mut output).map_err(io::Error::other)?;
        output.commit().map_err(io::Error::other)?;
        let file = fs::File::options().write(true).open(&path)?;
        // Whatever the umask is.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.set_modified(began)?;
        self.make_room()?;
        Ok(true)
    }

    /// Removes the oldest maps until those that are left take at most [`MOST_BYTES`].
    fn make_room(&self) -> io::Result<()> {
        let mut maps = Vec::new();
        for entry in fs::read_dir(self.directory.path())? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            maps.push((metadata.modified()?, metadata.len(), entry.path()));
        }
        maps.sort();
        let mut bytes: u64 = maps.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in maps {
            if bytes <= MOST_BYTES {
                break;
            }
            fs::remove_file(path)?;
            bytes -= size;
        }
        Ok(())
    }
}

/// The key, in hexadecimal. `None` if this program's file cannot be examined.
fn key(files: &ImageFiles, images: &[Image], options: &MapperOptions) -> Option<String> {
    let program = FileState::of(&fs::read_link("/proc/self/exe").ok()?)?;
    let mut key = KeyBuilder::default();
    let mut add = |part: &[u8]| key.add(part);
    add(env!("CARGO_PKG_VERSION").as_bytes());
    for FileState { path, device, inode, size, modified, changed } in files.0.iter().chain([&program]) {
        add(path.as_os_str().as_encoded_bytes());
        for number in [*device, *inode, *size] {
            add(&number.to_le_bytes());
        }
        for number in [modified.0, modified.1, changed.0, changed.1] {
            add(&number.to_le_bytes());
        }
    }
    for image in images {
        add(image.format.to_string().as_bytes());
        // The header of the map contains the name that the user gave.
        add(image.name.as_os_str().as_encoded_bytes());
    }
    let (probe, every) = match options.probe {
        Probe::Agent => (0, 0),
        Probe::Extents { every } => (1, every.get()),
        Probe::Guestfsd => (2, 0),
    };
    let legs = match options.legs {
        Legs::All => 0,
        Legs::One => 1,
    };
    add(&[probe, u8::from(options.metadata), legs]);
    add(&every.to_le_bytes());
    Some(key.finish())
}
