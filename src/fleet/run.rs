//! Maps what has to be mapped, several guests at a time.

use super::capacity::Space;
use super::error::FleetError;
use super::record::MappedDisk;
use super::worker::{self, Outcome, Patience};
use super::{
    Guest, GuestId, MAP_SUFFIXES, MapFile, Mapper, RICH_SUFFIX, Record, Shard, Stale, Status, Store,
};
use crate::mapper::Cancel;
use crate::mapper::progress::OpenedDisk;
use chrono::{DateTime, SecondsFormat, Utc};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use virt_bmap_map::{Cause, Warning};

/// How to work through a fleet.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// Which guests.
    pub shard: Shard,
    /// How many at a time; at least one.
    pub jobs: usize,
    /// How often a guest of which there is no map is tried again.
    pub retries: u32,
    /// A mapper that says nothing for so long is given up.
    pub silence: Duration,
    /// So is one that takes so long.
    pub limit: Option<Duration>,
    /// How long a mapper that is given up may take to end in good order.
    pub grace: Duration,
    /// Map again what may have changed, too: see [`Store::stale`].
    pub doubt: bool,
    /// Bring the maps of guests that have changed up to date, instead of reading all of these.
    pub update: bool,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self {
            shard: Shard::WHOLE,
            jobs: 1,
            retries: 1,
            silence: Duration::from_secs(330),
            limit: None,
            grace: Duration::from_secs(10),
            doubt: false,
            update: false,
        }
    }
}

/// What a run tells while it goes on, from several threads.
#[derive(Debug)]
pub enum Notice<'a> {
    /// What is to be done has been found out.
    Planned {
        /// Guests that are to be mapped.
        pending: usize,
        /// Guests whose maps are good.
        current: usize,
    },
    /// A guest's mapper is started.
    Started {
        /// The guest.
        id: &'a GuestId,
        /// Why it has to be mapped.
        why: &'a Stale,
        /// From 1.
        attempt: u32,
    },
    /// Where a guest's mapper is.
    Progress {
        /// The guest.
        id: &'a GuestId,
        /// What is being done; from outside, not yet printable.
        doing: String,
        /// How much of that has been done, from 0 to 1.
        share: Option<f64>,
    },
    /// A guest is finished, and its record kept.
    Finished(&'a Record),
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Guests of the share.
    pub guests: usize,
    /// Those of them whose maps were good already.
    pub current: usize,
    /// Those that were finished now.
    pub finished: usize,
}

/// Maps those of `guests` that are in the share and have no good map in `store`. Another run on the same
/// guests is excluded meanwhile. A guest that fails is a record and no error. The store keeps `guests` as
/// its manifest; if it was not a share but all, the records are merged.
///
/// # Errors
/// When another run is at work; when records cannot be read, or written; when the maps would not fit. What
/// has been finished until then is kept.
pub fn run(
    store: &Store,
    guests: &[Guest],
    mapper: &Mapper,
    options: &FleetOptions,
    cancel: &Cancel,
    observe: &(dyn Fn(Notice<'_>) + Sync),
) -> Result<Summary, FleetError> {
    let _lock = store.lock(options.shard)?;
    store.keep_manifest(guests)?;
    let noted = mapper.noted_options();
    let mut summary = Summary::default();
    let mut pending = Vec::new();
    let mut sizes = Vec::new();
    for guest in guests.iter().filter(|guest| options.shard.has(&guest.id)) {
        summary.guests += 1;
        let record = store.record(&guest.id)?;
        match store.stale(guest, record.as_ref(), &noted, options.doubt) {
            Some(stale) => pending.push((guest, stale)),
            None => {
                summary.current += 1;
                // A run that was killed may have kept the record and no more.
                remove(&store.workplace(&guest.id))?;
            }
        }
        let maps = record.map(|record| record.maps).unwrap_or_default();
        sizes.extend((!maps.is_empty()).then(|| maps.iter().map(|map| map.bytes).sum::<u64>()));
    }
    observe(Notice::Planned { pending: pending.len(), current: summary.current });
    let at_once = options.jobs.max(1).min(pending.len());
    let space = |finished: &[u64]| Space::of(store, finished.iter().copied());
    if at_once > 0 {
        space(&sizes)?.check(store, at_once)?;
    }

    let left = Mutex::new(pending.iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let sizes = Mutex::new(sizes);
    let failed = Mutex::new(None);
    let finished = Mutex::new(0);
    let work = || {
        let stop = || cancel.is_cancelled() || lock(&failed).is_some();
        while !stop()
            && let Some((guest, why)) = next()
        {
            let job = Job { store, guest, mapper, options, cancel, observe };
            // A statement of its own: the lock is not held while the guest is mapped.
            let space = space(&lock(&sizes));
            let result = space.and_then(|space| space.check(store, 1)).and_then(|()| job.run(why));
            match result {
                Ok(Some(record)) => {
                    if record.status.has_map() {
                        lock(&sizes).push(record.maps.iter().map(|map| map.bytes).sum());
                    }
                    observe(Notice::Finished(&record));
                    *lock(&finished) += 1;
                }
                Ok(None) => {}
                Err(error) => {
                    lock(&failed).get_or_insert(error);
                }
            }
        }
    };
    // A mapper ends with the thread that started it, so these threads last as long as the work does.
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(work);
        }
    });
    summary.finished = *lock(&finished);
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => return Err(error),
        None if options.shard == Shard::WHOLE => store.merge(guests)?,
        None => Vec::new(),
    };
    Ok(summary)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One guest's turn.
struct Job<'a> {
    store: &'a Store,
    guest: &'a Guest,
    mapper: &'a Mapper,
    options: &'a FleetOptions,
    cancel: &'a Cancel,
    observe: &'a (dyn Fn(Notice<'_>) + Sync),
}

impl Job<'_> {
    /// Maps the guest, if need be several times. `None` if that was cancelled.
    fn run(&self, why: &Stale) -> Result<Option<Record>, FleetError> {
        let id = &self.guest.id;
        let workplace = self.store.workplace(id);
        let earlier = self.store.map(id, RICH_SUFFIX);
        let is_of_use = self.options.update && why.has_map();
        let patience =
            Patience { silence: self.options.silence, limit: self.options.limit, grace: self.options.grace };
        for attempt in 1.. {
            empty(&workplace)?;
            (self.observe)(Notice::Started { id, why, attempt });
            let started = DateTime::<Utc>::from(SystemTime::now());
            let began = Instant::now();
            let before = OpenedDisk::not_opened(&self.guest.disks);
            // It may be the map that the mapper cannot bear.
            let earlier = Some(earlier.as_path()).filter(|_| is_of_use && attempt == 1);
            let mut progress = |doing, share| (self.observe)(Notice::Progress { id, doing, share });
            let mut outcome = worker::map(
                self.mapper,
                self.guest,
                earlier,
                &workplace,
                patience,
                self.cancel,
                &mut progress,
            );
            if outcome.opened.len() != self.guest.disks.len() {
                outcome.opened = before;
            }
            let Some(status) = outcome.status else {
                remove(&workplace)?;
                return Ok(None);
            };
            // 2: the command line makes no sense, and will not at the next try.
            if !status.has_map() && outcome.exit_code != Some(2) && attempt <= self.options.retries {
                continue;
            }
            let mut record = Record {
                id: id.clone(),
                status,
                exit_code: outcome.exit_code,
                signal: outcome.signal,
                error: outcome.error.clone(),
                tries: attempt,
                started: started.to_rfc3339_opts(SecondsFormat::Secs, true),
                seconds: (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
                peak_memory: None,
                counts: None,
                changes: None,
                unexamined: Vec::new(),
                warnings: Vec::new(),
                disks: Vec::new(),
                maps: Vec::new(),
                options: self.mapper.noted_options(),
                generator: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).to_owned(),
            };
            self.take(&mut record, outcome, &workplace)?;
            self.store.keep_record(&record)?;
            remove(&workplace)?;
            return Ok(Some(record));
        }
        Ok(None)
    }

    /// Takes what the mapper has left: the maps get their names, if all of them are there.
    fn take(&self, record: &mut Record, outcome: Outcome, workplace: &Path) -> Result<(), FleetError> {
        let is_torn = !outcome.images_are_same();
        record.peak_memory = outcome.peak_memory;
        record.counts = outcome.counts;
        record.changes = outcome.changes;
        record.unexamined = outcome.unexamined;
        record.warnings = outcome.warnings;
        record.disks = MappedDisk::all(self.guest, outcome.opened);
        if !record.status.has_map() {
            return Ok(());
        }
        if is_torn {
            record.warnings.push(Warning::on_guest(Cause::ImageChanged));
        }
        for suffix in MAP_SUFFIXES {
            let made = workplace.join(format!("map.{suffix}"));
            let map = self.store.map(&record.id, suffix);
            let Ok(metadata) = made.metadata() else {
                record.status = Status::Failed;
                record.error = Some(format!("the mapper ended well, but there is no map.{suffix}"));
                return Ok(());
            };
            fs::rename(&made, &map).map_err(FleetError::io(&map, "could not be put in its place"))?;
            record.maps.push(MapFile { name: format!("{}.{suffix}", record.id), bytes: metadata.len() });
        }
        Ok(())
    }
}

/// Makes the directory, without what a run that was killed may have left there.
fn empty(workplace: &Path) -> Result<(), FleetError> {
    remove(workplace)?;
    fs::create_dir(workplace).map_err(FleetError::io(workplace, "could not be created"))
}

fn remove(workplace: &Path) -> Result<(), FleetError> {
    match fs::remove_dir_all(workplace) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FleetError::io(workplace, "could not be removed")(error))
        }
        _ => Ok(()),
    }
}
