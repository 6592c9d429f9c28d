//! The directory of a fleet's maps.
//!
//! ```text
//! maps/web1.bmap, maps/web1.jsonl.zst     the maps of the guest web1
//! maps/fleet.jsonl                        all records, put together by `merge`
//! maps/fleet.parquet                      all maps as one table, made on demand
//! maps/.fleet/guests/web1.json            its record: written last, so what has one is finished
//! maps/.fleet/work/web1/                  where its mapper writes; whatever is there is in the making
//! maps/.fleet/lock.2-8                    held by whoever works on share 2 of 8
//! ```
//!
//! Every file takes its name when all of it is on the disk. A run that is killed leaves at most a
//! directory below `work`, which the next one that maps the guest empties.

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

/// What the maps of a guest are called after its id.
pub const MAP_SUFFIXES: [&str; 2] = ["bmap", RICH_SUFFIX];

/// That of the map in which nothing is lost.
pub const RICH_SUFFIX: &str = "jsonl.zst";

/// A directory with maps and records.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// Why a guest is to be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stale {
    /// It never was.
    Missing,
    /// There is no map because of this.
    Failed(super::Status),
    /// One of its maps is gone.
    MapGone(String),
    /// The manifest has other disks than it had.
    OtherDisks,
    /// It was mapped with other options.
    OtherOptions,
    /// This image is no longer what it was.
    Changed(PathBuf),
    /// Whether this image was written to cannot be told, and that is wanted.
    Untold(PathBuf),
}

/// Says that a share of the guests is being worked on, for as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Store {
    /// The directory, which is made if it is not there.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn create(directory: &Path) -> Result<Self, FleetError> {
        let store = Self { directory: directory.to_owned() };
        for inner in [store.inner("guests"), store.inner("work")] {
            fs::create_dir_all(&inner).map_err(FleetError::io(&inner, "could not be created"))?;
        }
        Ok(store)
    }

    /// A directory that a run has made.
    ///
    /// # Errors
    /// If none has.
    pub fn open(directory: &Path) -> Result<Self, FleetError> {
        let store = Self { directory: directory.to_owned() };
        let inner = store.inner("guests");
        inner.metadata().map_err(FleetError::io(&inner, "there is no fleet's record here"))?;
        Ok(store)
    }

    /// Where the maps are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A map of a guest, there or not.
    pub fn map(&self, id: &GuestId, suffix: &str) -> PathBuf {
        self.directory.join(format!("{id}.{suffix}"))
    }

    /// Where the mapper of a guest writes.
    pub(super) fn workplace(&self, id: &GuestId) -> PathBuf {
        self.inner("work").join(id.as_str())
    }

    fn inner(&self, name: &str) -> PathBuf {
        self.directory.join(".fleet").join(name)
    }

    /// Takes the guests of a share for us. Shares of one division may be worked on at the same time, those
    /// of different divisions may not, as they have guests in common.
    ///
    /// # Errors
    /// [`FleetError::Busy`] if another run is at work on any of them.
    pub fn lock(&self, shard: Shard) -> Result<Lock, FleetError> {
        let Some(ours) = self.try_lock(shard)? else { return Err(self.busy(shard)) };
        // Who comes at the same moment with another division sees this lock, as we see theirs.
        let inner = self.directory.join(".fleet");
        for entry in inner.read_dir().map_err(FleetError::io(&inner, "could not be listed"))?.flatten() {
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

    /// `None` if another has it. The kernel frees it when its holder ends, however that comes about.
    fn try_lock(&self, shard: Shard) -> Result<Option<File>, FleetError> {
        let path = self.inner(&format!("lock.{}-{}", shard.index(), shard.of()));
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(FleetError::io(&path, "could not be opened"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(FleetError::io(&path, "could not be locked")(error.into())),
        }
    }

    /// Keeps the list of guests, for whoever asks later which are missing.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_manifest(&self, guests: &[Guest]) -> Result<(), FleetError> {
        let path = self.inner("manifest.jsonl");
        write(&path, |out| super::manifest::write(guests, out))
    }

    /// The list of guests that the last run worked on.
    ///
    /// # Errors
    /// If it is not there, or damaged.
    pub fn manifest(&self) -> Result<Vec<Guest>, FleetError> {
        let path = self.inner("manifest.jsonl");
        let file = File::open(&path).map_err(FleetError::io(&path, "could not be opened"))?;
        super::manifest::read(BufReader::new(file), &path, Path::new("/"))
    }

    /// What became of a guest; `None` if nothing has yet.
    ///
    /// # Errors
    /// If there is a record that cannot be read.
    pub fn record(&self, id: &GuestId) -> Result<Option<Record>, FleetError> {
        let path = self.record_path(id);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FleetError::io(&path, "could not be read")(error)),
        };
        let wrong = |what: String| FleetError::Record { path: path.clone(), what };
        let record: Record = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if record.id == *id { Ok(Some(record)) } else { Err(wrong(format!("it is of {}", record.id))) }
    }

    /// Keeps what became of a guest. Once this returns, it is finished.
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

    /// Why the guest has to be mapped; `None` if its maps are what a run would make now, as far as can be
    /// seen without reading the images. `record` is what became of it. A block device never tells whether it
    /// was written to: its map is taken for good, unless `doubt` is set.
    pub fn stale(
        &self,
        guest: &Guest,
        record: Option<&Record>,
        options: &[Text],
        doubt: bool,
    ) -> Option<Stale> {
        let Some(record) = record else { return Some(Stale::Missing) };
        if !record.status.has_map() {
            return Some(Stale::Failed(record.status));
        }
        if record.options != options {
            return Some(Stale::OtherOptions);
        }
        let asked = MappedDisk::all(guest, Vec::new());
        let is_same = |(a, b): (&MappedDisk, &MappedDisk)| a.path == b.path && a.stated == b.stated;
        if asked.len() != record.disks.len() || !asked.iter().zip(&record.disks).all(is_same) {
            return Some(Stale::OtherDisks);
        }
        for map in &record.maps {
            let is_there =
                self.directory.join(&map.name).metadata().is_ok_and(|metadata| metadata.len() == map.bytes);
            if !is_there {
                return Some(Stale::MapGone(map.name.clone()));
            }
        }
        let files = record.disks.iter().filter_map(|disk| disk.opened.as_ref()).flat_map(|disk| &disk.files);
        for file in files {
            if !file.is_same() {
                return Some(Stale::Changed(file.path()));
            }
            if doubt && !file.is_telling() {
                return Some(Stale::Untold(file.path()));
            }
        }
        None
    }

    /// Writes `fleet.jsonl`, the records of these guests in their order, and returns them; those that have
    /// none are left out.
    ///
    /// # Errors
    /// If a record cannot be read, or the file not be written.
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
    /// Writes the table `fleet.parquet`: the rows of all maps that these records name, with a column `guest`.
    /// One map is held in memory at a time.
    ///
    /// # Errors
    /// If a map cannot be read, or the table not be written.
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

/// Writes a file that is whole or not there.
fn write(path: &Path, fill: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> Result<(), FleetError> {
    let mut out = BufWriter::new(Output::create(path)?);
    let written = fill(&mut out).and_then(|()| out.flush());
    written.map_err(FleetError::io(path, "could not be written"))?;
    let out = out.into_inner().map_err(io::IntoInnerError::into_error);
    Ok(out.map_err(FleetError::io(path, "could not be written"))?.commit()?)
}

impl Stale {
    /// Whether there is a map of the same disks, made when they were others.
    pub fn has_map(&self) -> bool {
        matches!(self, Self::Changed(_) | Self::Untold(_) | Self::OtherOptions)
    }
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => f.write_str("not mapped yet"),
            Self::Failed(status) => write!(f, "{} the last time", status.word()),
            Self::MapGone(name) => write!(f, "{name} is gone, or of another size"),
            Self::OtherDisks => f.write_str("its disks are others now"),
            Self::OtherOptions => f.write_str("it was mapped with other options"),
            Self::Changed(path) => write!(f, "{} has changed", shown(path)),
            Self::Untold(path) => write!(f, "{} may have changed", shown(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_exclude_what_overlaps_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path()).unwrap();
        let shard = |text: &str| text.parse::<Shard>().unwrap();
        let first = store.lock(shard("1/3")).unwrap();
        let _second = store.lock(shard("2/3")).unwrap();
        for other in ["1/3", "2/3", "1/2", "1/1"] {
            let error = store.lock(shard(other)).unwrap_err().to_string();
            assert!(error.contains("another run is at work"), "{error}");
        }
        drop(first);
        store.lock(shard("1/3")).unwrap();
        assert!(store.lock(Shard::WHOLE).is_err(), "the second share is still being worked on");
        drop(_second);
        let _whole = store.lock(Shard::WHOLE).unwrap();
        assert!(store.lock(shard("3/3")).is_err());
    }

    #[test]
    fn a_damaged_record_is_said() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Store::open(dir.path()).unwrap_err().to_string().contains("no fleet's record"));
        let store = Store::create(dir.path()).unwrap();
        let id: GuestId = "a".parse().unwrap();
        assert_eq!(store.record(&id).unwrap(), None);
        fs::write(store.record_path(&id), b"{}").unwrap();
        let error = store.record(&id).unwrap_err().to_string();
        assert!(error.contains("a.json: this is no record of a guest"), "{error}");
    }
}
