//! Maps the guests without a current map, several at a time.

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

/// How to map a fleet.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// The guests to map.
    pub shard: Shard,
    /// Number of guests mapped at the same time; at least one.
    pub jobs: usize,
    /// Number of further attempts for a guest whose mapping failed.
    pub retries: u32,
    /// A mapper without any output for this time is ended.
    pub silence: Duration,
    /// A mapper that takes longer than this is ended.
    pub limit: Option<Duration>,
    /// Time for an orderly end, after which the mapper is killed.
    pub grace: Duration,
    /// Also map guests again for which changes cannot be detected: see [`Store::stale`].
    pub remap_uncertain: bool,
    /// Update the maps of changed guests, instead of reading these guests in full.
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
            remap_uncertain: false,
            update: false,
        }
    }
}

/// What a run reports while it works, from several threads.
#[derive(Debug)]
pub enum Notice<'a> {
    /// The work has been determined.
    Planned {
        /// Number of guests to map.
        pending: usize,
        /// Number of guests whose maps are current.
        current: usize,
    },
    /// The mapper of a guest is started.
    Started {
        /// The guest.
        id: &'a GuestId,
        /// Why the guest is mapped.
        why: &'a Stale,
        /// Number of the attempt, from 1.
        attempt: u32,
    },
    /// Progress of the mapper of a guest.
    Progress {
        /// The guest.
        id: &'a GuestId,
        /// The current phase; untrusted text, not yet printable.
        doing: String,
        /// The finished part of the phase, from 0 to 1.
        share: Option<f64>,
    },
    /// A guest is finished, and its record is stored.
    Finished(&'a Record),
}

/// The result of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Number of guests in the shard.
    pub guests: usize,
    /// Number of guests whose maps were already current.
    pub current: usize,
    /// Number of guests that this run finished.
    pub finished: usize,
}

/// Maps those of `guests` that are in the shard and have no current map in `store`. A lock excludes
/// other runs on the same guests. The failure of a guest is a record, not an error. The store keeps
/// `guests` as its manifest. If the shard is the whole fleet, the records are merged.
///
/// # Errors
/// If another run holds the lock, records cannot be read or written, or the maps will not fit. The
/// results finished so far are kept.
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
        match store.stale(guest, record.as_ref(), &noted, options.remap_uncertain) {
            Some(stale) => pending.push((guest, stale)),
            None => {
                summary.current += 1;
                // A killed run may have stored the record without removing its working directory.
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
            // A separate statement, so that the lock is not held while the guest is mapped.
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
    // A mapper is ended with the thread that started it, so these threads last until all work is
    // done.
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

/// The mapping of one guest.
struct Job<'a> {
    store: &'a Store,
    guest: &'a Guest,
    mapper: &'a Mapper,
    options: &'a FleetOptions,
    cancel: &'a Cancel,
    observe: &'a (dyn Fn(Notice<'_>) + Sync),
}

impl Job<'_> {
    /// Maps the guest, with retries. `None` if the run was cancelled.
    fn run(&self, why: &Stale) -> Result<Option<Record>, FleetError> {
        let id = &self.guest.id;
        let workplace = self.store.workplace(id);
        let baseline = self.store.map(id, RICH_SUFFIX);
        let can_update = self.options.update && why.has_map();
        let patience =
            Patience { silence: self.options.silence, limit: self.options.limit, grace: self.options.grace };
        for attempt in 1.. {
            empty(&workplace)?;
            (self.observe)(Notice::Started { id, why, attempt });
            let started = DateTime::<Utc>::from(SystemTime::now());
            let began = Instant::now();
            let before = OpenedDisk::not_opened(&self.guest.disks);
            // The baseline may be the cause of a failure, so retries do without it.
            let baseline = Some(baseline.as_path()).filter(|_| can_update && attempt == 1);
            let mut progress = |doing, share| (self.observe)(Notice::Progress { id, doing, share });
            let mut outcome = worker::map(
                self.mapper,
                self.guest,
                baseline,
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
            // Exit status 2 is a usage error: another attempt would fail in the same way.
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
                balance: None,
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

    /// Fills the record from the outcome, and renames the maps to their final names if all exist.
    fn take(&self, record: &mut Record, outcome: Outcome, workplace: &Path) -> Result<(), FleetError> {
        let has_changed = !outcome.images_are_same();
        record.peak_memory = outcome.peak_memory;
        record.counts = outcome.counts;
        record.balance = outcome.balance;
        record.changes = outcome.changes;
        record.unexamined = outcome.unexamined;
        record.warnings = outcome.warnings;
        record.disks = MappedDisk::all(self.guest, outcome.opened);
        if !record.status.has_map() {
            return Ok(());
        }
        if has_changed {
            record.warnings.push(Warning::on_guest(Cause::ImageChanged));
        }
        for suffix in MAP_SUFFIXES {
            let made = workplace.join(format!("map.{suffix}"));
            let map = self.store.map(&record.id, suffix);
            let Ok(metadata) = made.metadata() else {
                record.status = Status::Failed;
                record.error = Some(format!("the mapper reported success but wrote no map.{suffix}"));
                return Ok(());
            };
            fs::rename(&made, &map)
                .map_err(FleetError::io(&map, "cannot rename the new map to this path"))?;
            record.maps.push(MapFile { name: format!("{}.{suffix}", record.id), bytes: metadata.len() });
        }
        Ok(())
    }
}

/// Creates the directory; the files of a killed run in it are removed.
fn empty(workplace: &Path) -> Result<(), FleetError> {
    remove(workplace)?;
    fs::create_dir(workplace).map_err(FleetError::io(workplace, "cannot create this directory"))
}

fn remove(workplace: &Path) -> Result<(), FleetError> {
    match fs::remove_dir_all(workplace) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FleetError::io(workplace, "cannot remove this directory")(error))
        }
        _ => Ok(()),
    }
}
