//! Maps that this program has made, kept for later questions about the same images.
//!
//! A map is found again under a key of its [`Origin`], and of the names that its header shows.

use super::origin::Origin;
use super::{KeyBuilder, TrustedDirectory};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::SystemTime;
use virt_bmap_image::Image;
use virt_bmap_map::output::Output;
use virt_bmap_map::{self as bmap, Map};

/// The directory of the maps in the cache.
const DIRECTORY: &str = "maps";
const SUFFIX: &str = ".jsonl.zst";
/// The maps in the cache take at most so many bytes.
const MOST_BYTES: u64 = 1 << 30;

/// A map that was made before.
#[derive(Debug)]
pub struct KeptMap {
    /// The map.
    pub map: Map,
    /// Its file.
    pub path: PathBuf,
    /// When it was begun.
    pub made: SystemTime,
}

/// A place for a map in the cache.
#[derive(Debug)]
pub struct Place<'a> {
    directory: TrustedDirectory,
    name: String,
    origin: &'a Origin,
}

impl<'a> Place<'a> {
    /// The place for the map of this origin. `None` if the cache cannot be used.
    pub fn of(images: &[Image], origin: &'a Origin) -> Option<Self> {
        let mut key = KeyBuilder::default();
        key.add(origin.key().as_bytes());
        for image in images {
            key.add(image.location.name().as_encoded_bytes());
            image.chain.iter().for_each(|file| key.add(file.location.name().as_encoded_bytes()));
        }
        let directory = TrustedDirectory::make(&super::directory()?.join(DIRECTORY)).ok()?;
        Some(Self { directory, name: key.finish() + SUFFIX, origin })
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
        if !self.origin.held_since(began) {
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
