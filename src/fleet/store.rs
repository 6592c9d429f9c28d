//! The directory of a fleet's maps.
//!
//! ```text
//! maps/web1.bmap, maps/web1.jsonl.zst     the maps of the guest web1
//! maps/fleet.jsonl                        all records, merged by `merge`
//! maps/fleet.parquet                      all maps as one table, written on demand
//! maps/.fleet/guests/web1.json            its record: written last, so a guest with one is finished
//! maps/.fleet/work/web1/                  the working directory of its mapper: unfinished files
//! maps/.fleet/lock.2-8                    locked by the run that maps shard 2 of 8
//! ```
//!
//! Every file is renamed to its final name when it is complete on disk. A killed run leaves at most
//! a directory below `work`, which the next run that maps the guest empties.

use super::error::{FleetError, shown};
use super::{Guest, GuestId, MappedDisk, Record, Shard};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use virt_bmap_map as bmap;
use virt_bmap_map::jsonl::Text;
use virt_bmap_map::output::Output;
use virt_bmap_map::parquet::FleetTable;

/// Suffixes of the maps of a guest; the ID comes before them.
pub const MAP_SUFFIXES: [&str; 2] = ["bmap", RICH_SUFFIX];

/// Suffix of the map in JSON Lines, which holds all attributes.
pub const RICH_SUFFIX: &str = "jsonl.zst";

/// A directory with maps and records.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// Why a guest must be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// It was never mapped.
    Missing,
    /// The last mapping ended in this way, without a map.
    Failed(super::Status),
    /// This map does not exist any more, or has another size.
    MapGone(String),
    /// The manifest lists other disks now.
    OtherDisks,
    /// It was mapped with other options.
    OtherOptions,
    /// This image has changed.
    Changed(PathBuf),
    /// Changes of this image cannot be detected, and such guests are mapped again on request.
    Undetectable(PathBuf),
}

/// The lock on a shard; released when this is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Store {
    /// Opens the directory, and creates it if it does not exist.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(directory: &Path) -> Result<Self, FleetError> {
        let store = Self { directory: directory.to_owned() };
        for inner in [store.inner("guests"), store.inner("work")] {
            fs::create_dir_all(&inner).map_err(FleetError::io(&inner, "cannot create this directory"))?;
        }
        Ok(store)
    }

    /// Opens a directory that a run has created.
    ///
    /// # Errors
    /// If it does not exist or is not that of a fleet.
    pub fn open(directory: &Path) -> Result<Self, FleetError> {
        let store = Self { directory: directory.to_owned() };
        let inner = store.inner("guests");
        inner.metadata().map_err(FleetError::io(&inner, "cannot find the records of a fleet here"))?;
        Ok(store)
    }

    /// The directory of the maps.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path of a map of a guest, whether it exists or not.
    pub fn map(&self, id: &GuestId, suffix: &str) -> PathBuf {
        self.directory.join(format!("{id}.{suffix}"))
    }

    /// The working directory of the mapper of a guest.
    pub(super) fn workplace(&self, id: &GuestId) -> PathBuf {
        self.inner("work").join(id.as_str())
    }

    fn inner(&self, name: &str) -> PathBuf {
        self.directory.join(".fleet").join(name)
    }

    /// Locks a shard. Different shards of the same N can be locked at the same time. Shards of
    /// different N cannot, as they may have guests in common.
    ///
    /// # Errors
    /// [`FleetError::Busy`] if another run holds a lock that conflicts.
    pub fn lock(&self, shard: Shard) -> Result<Lock, FleetError> {
        let Some(ours) = self.try_lock(shard)? else { return Err(self.busy(shard)) };
        // A run that locks a shard of another N at the same moment sees this lock, as this run sees
        // its lock.
        let inner = self.directory.join(".fleet");
        for entry in inner.read_dir().map_err(FleetError::io(&inner, "cannot list this directory"))?.flatten()
        {
            let name = entry.file_name();
            let other = name.to_str().and_then(|name| name.strip_prefix("lock."));
            let other = other.and_then(|other| other.replacen('-', "/", 1).parse::<Shard>().ok());
            if let Some(other) = other.filter(|other| other.of() != shard.of())
                && self.try_lock(other)?.is_none()
            {
                return Err(self.busy(other));
            }
        }
        Ok(Lock { _file: ours })
    }

    fn busy(&self, other: Shard) -> FleetError {
        FleetError::Busy { path: self.directory.clone(), other }
    }

    /// `None` if another process holds the lock. The kernel releases a lock when its holder ends.
    fn try_lock(&self, shard: Shard) -> Result<Option<File>, FleetError> {
        let path = self.inner(&format!("lock.{}-{}", shard.index(), shard.of()));
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(FleetError::io(&path, "cannot open this file"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(FleetError::io(&path, "cannot lock this file")(error.into())),
        }
    }

    /// Stores the list of guests, so that later commands know which are missing.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_manifest(&self, guests: &[Guest]) -> Result<(), FleetError> {
        let path = self.inner("manifest.jsonl");
        write(&path, |out| super::manifest::write(guests, out))
    }

    /// The list of guests of the last run.
    ///
    /// # Errors
    /// If it does not exist or is invalid.
    pub fn manifest(&self) -> Result<Vec<Guest>, FleetError> {
        let path = self.inner("manifest.jsonl");
        let file = File::open(&path).map_err(FleetError::io(&path, "cannot open this file"))?;
        super::manifest::read(BufReader::new(file), &path, Path::new("/"))
    }

    /// The record of a guest; `None` if the guest is not finished.
    ///
    /// # Errors
    /// If the record cannot be read or is invalid.
    pub fn record(&self, id: &GuestId) -> Result<Option<Record>, FleetError> {
        let path = self.record_path(id);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FleetError::io(&path, "cannot read this file")(error)),
        };
        let wrong = |reason: String| FleetError::Record { path: path.clone(), reason };
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if record.id == *id { Ok(Some(record)) } else { Err(wrong(format!("its ID is {}", record.id))) }
    }

    /// Stores the record of a guest. After that the guest is finished.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_record(&self, record: &Record) -> Result<(), FleetError> {
        write(&self.record_path(&record.id), |out| {
            serde_json::to_writer(&mut *out, record)?;
            out.write_all(b"\n")
        })
    }

    fn record_path(&self, id: &GuestId) -> PathBuf {
        self.inner("guests").join(format!("{id}.json"))
    }

    /// Why the guest must be mapped; `None` if its maps are current, as far as can be judged
    /// without reading the images. `record` is its record. Writes to a block device or an NBD
    /// server cannot be detected: its map counts as current, unless `remap_uncertain` is set.
    pub fn stale(
        &self,
        guest: &Guest,
        record: Option<&Record>,
        options: &[Text],
        remap_uncertain: bool,
    ) -> Option<Stale> {
        let Some(record) = record else { return Some(Stale::Missing) };
        if !record.status.has_map() {
            return Some(Stale::Failed(record.status));
        }
        if record.options != options {
            return Some(Stale::OtherOptions);
        }
        let asked = MappedDisk::all(guest, Vec::new());
        let is_same = |(a, b): (&MappedDisk, &MappedDisk)| {
            (&a.path, &a.stated, &a.snapshot) == (&b.path, &b.stated, &b.snapshot)
        };
        if asked.len() != record.disks.len() || !asked.iter().zip(&record.disks).all(is_same) {
            return Some(Stale::OtherDisks);
        }
        for map in &record.maps {
            let is_present =
                self.directory.join(&map.name).metadata().is_ok_and(|metadata| metadata.len() == map.bytes);
            if !is_present {
                return Some(Stale::MapGone(map.name.clone()));
            }
        }
        for (disk, opened) in record.disks.iter().filter_map(|disk| Some((disk, disk.opened.as_ref()?))) {
            for file in &opened.files {
                if !file.is_same() {
                    return Some(Stale::Changed(file.path()));
                }
                if remap_uncertain && !file.is_telling() {
                    return Some(Stale::Undetectable(file.path()));
                }
            }
            // It is on a server.
            if remap_uncertain && opened.files.is_empty() {
                return Some(Stale::Undetectable(disk.path.to_path()));
            }
        }
        None
    }

    /// Writes the records of these guests to `fleet.jsonl`, in the order of the guests, and returns
    /// them. Guests without a record are left out.
    ///
    /// # Errors
    /// If a record cannot be read or the file cannot be written.
    pub fn merge(&self, guests: &[Guest]) -> Result<Vec<Record>, FleetError> {
        let records = guests.iter().filter_map(|guest| self.record(&guest.id).transpose());
        let records = records.collect::<Result<Vec<_>, _>>()?;
        write(&self.directory.join("fleet.jsonl"), |out| {
            for record in &records {
                serde_json::to_writer(&mut *out, record)?;
                out.write_all(b"\n")?;
            }
            Ok(())
        })?;
        Ok(records)
    }
}

impl Store {
    /// Writes the table `fleet.parquet`: the rows of all maps of these records, with a column
    /// `guest`. Only one map at a time is in memory.
    ///
    /// # Errors
    /// If a map cannot be read or the table cannot be written.
    pub fn write_table(&self, records: &[Record]) -> Result<(), FleetError> {
        let mut output = Output::create(&self.directory.join("fleet.parquet"))?;
        let failed = |guest: &str, source| FleetError::Table { guest: guest.to_owned(), source };
        let mut table = FleetTable::new(&mut output).map_err(|error| failed("no guest", error.into()))?;
        for record in records.iter().filter(|record| record.status.has_map()) {
            let id = record.id.as_str();
            let map =
                bmap::load(&self.map(&record.id, RICH_SUFFIX)).map_err(|error| failed(id, error.into()))?;
            table.add(id, &map).map_err(|error| failed(id, error.into()))?;
        }
        table.finish().map_err(|error| failed("the last guest", error.into()))?;
        Ok(output.commit()?)
    }
}

/// Writes a file atomically: it is complete or does not exist.
fn write(path: &Path, fill: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Result<(), FleetError> {
    let mut out = BufWriter::new(Output::create(path)?);
    let written = fill(&mut out).and_then(|()| out.flush());
    written.map_err(FleetError::io(path, "cannot write this file"))?;
    let out = out.into_inner().map_err(io::IntoInnerError::into_error);
    Ok(out.map_err(FleetError::io(path, "cannot write this file"))?.commit()?)
}

impl Stale {
    /// Whether there is a map of the same disks that an update can start from.
    pub fn has_map(&self) -> bool {
        matches!(self, Self::Changed(_) | Self::Undetectable(_) | Self::OtherOptions)
    }
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("not mapped yet"),
            Self::Failed(status) => write!(f, "last attempt: {}", status.word()),
            Self::MapGone(name) => write!(f, "{name} is missing, or its size has changed"),
            Self::OtherDisks => f.write_str("the manifest lists other disks now"),
            Self::OtherOptions => f.write_str("it was mapped with other options"),
            Self::Changed(path) => write!(f, "{} has changed", shown(path)),
            Self::Undetectable(path) => write!(f, "{} may have changed", shown(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_exclude_overlapping_ones() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let shard = |text: &str| text.parse::<Shard>().unwrap();
        let first = store.lock(shard("1/3")).unwrap();
        let _second = store.lock(shard("2/3")).unwrap();
        for other in ["1/3", "2/3", "1/2", "1/1"] {
            let error = store.lock(shard(other)).unwrap_err().to_string();
            assert!(error.contains("another run is using"), "{error}");
        }
        drop(first);
        store.lock(shard("1/3")).unwrap();
        assert!(store.lock(Shard::WHOLE).is_err(), "the second share is still locked");
        drop(_second);
        let _whole = store.lock(Shard::WHOLE).unwrap();
        assert!(store.lock(shard("3/3")).is_err());
    }

    #[test]
    fn a_damaged_record_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            Store::open(dir.path()).unwrap_err().to_string().contains("cannot find the records of a fleet")
        );
        let store = Store::create(dir.path()).unwrap();
        let id: GuestId = "a".parse().unwrap();
        assert_eq!(store.record(&id).unwrap(), None);
        fs::write(store.record_path(&id), b"{}").unwrap();
        let error = store.record(&id).unwrap_err().to_string();
        assert!(error.contains("a.json: invalid record of a guest"), "{error}");
    }
}
