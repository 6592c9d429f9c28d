//! An appliance that is kept: it maps one state of a guest's disks after the other.
//!
//! A look at a state costs a boot if an appliance is started for it. Here the first look starts one
//! and examines everything. Before each further look, the disks are exchanged for the next state
//! below the same drives, while no filesystem is mounted and the appliance's kernel remembers
//! nothing of them. If only filesystems were written to, only these are walked again, as for an
//! update. If anything else was, such as a partition table, the devices may have changed, so a new
//! appliance examines everything.

use super::session::{Session, serve};
use super::{Cancel, LeftOut, MapError, MapEvent, Mapped, MapperOptions, map_sources};
use crate::probe::baseline::Baseline;
use crate::probe::context::Context;
use crate::probe::survey::{self, Surveyed};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use virt_bmap_image::{Allocation, Source};
use virt_bmap_map::{ImageInfo, Map};
use virt_bmap_nbd::Service;
use virt_bmap_ranges::{DiskNumber, DiskOffset, DiskRange, IndexedRanges, RangeSet};

/// Baselines, by the device of their filesystem.
type Baselines = BTreeMap<String, Arc<Baseline>>;

/// Maps of an earlier state, by the device of a filesystem.
pub type EarlierMaps = BTreeMap<Vec<u8>, Arc<Map>>;

/// The map of a state: of all of the guest, or of the filesystems that have changed.
#[derive(Debug)]
pub struct Look {
    /// The map.
    pub map: Map,
    /// Ranges of each disk that mounting wrote, for instance by replaying a journal.
    pub replayed: Vec<RangeSet<DiskOffset>>,
}

/// An appliance that is kept.
pub struct KeptAppliance {
    options: MapperOptions,
    images: Vec<ImageInfo>,
    running: Option<Running>,
}

impl KeptAppliance {
    /// Nothing is started yet. `images` describes the disks in the headers of maps.
    pub fn new(options: MapperOptions, images: Vec<ImageInfo>) -> Self {
        Self { options, images, running: None }
    }

    /// Maps a state of the disks. `written` is what was written since the last look, for each disk;
    /// `maps` are those of the last look, with which the walks begin.
    ///
    /// # Errors
    /// As for [`map_guest`](super::map_guest).
    pub fn look(
        &mut self,
        disks: &[Arc<dyn Source>],
        written: &[RangeSet<DiskOffset>],
        maps: &EarlierMaps,
        cancel: &Cancel,
        observe: &mut dyn FnMut(MapEvent<'_>),
    ) -> Result<Look, MapError> {
        if let Some(running) = &self.running
            && let Some(devices) = running.surveyed.concerned(written)
        {
            let baselines = baselines(&devices, written, maps);
            match running.again(disks, devices, baselines, &self.images, cancel, observe) {
                Ok(Some(look)) => return Ok(look),
                Err(MapError::Cancelled) => return Err(MapError::Cancelled),
                Ok(None) => tracing::debug!("a filesystem cannot be mounted any more: starting anew"),
                Err(error) => tracing::debug!(%error, "the kept appliance is given up"),
            }
        }
        self.running = None;
        match Running::start(disks, &self.options, &self.images, cancel, observe) {
            Ok((running, look)) => {
                self.running = Some(running);
                Ok(look)
            }
            Err(MapError::Cancelled) => Err(MapError::Cancelled),
            // This leaves out what makes an appliance fail.
            Err(error) => {
                tracing::debug!(%error, "no appliance can be kept");
                let Mapped { map, rewritten, .. } =
                    map_sources(disks, self.images.clone(), Vec::new(), &self.options, cancel, observe)?;
                Ok(Look { map, replayed: rewritten })
            }
        }
    }
}

/// A running appliance, and the thread that calls into it.
struct Running {
    service: Option<Service>,
    session: Session,
    disks: Vec<Arc<Exchangeable>>,
    surveyed: Arc<Surveyed>,
    thread: Option<JoinHandle<()>>,
    tasks: Option<Sender<Task>>,
    results: Receiver<Result<bool, MapError>>,
}

/// Filesystems to walk again.
struct Task {
    devices: BTreeSet<String>,
    baselines: Baselines,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.session.kill();
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(service) = self.service.take() {
            service.stop();
        }
    }
}

impl Running {
    /// Starts an appliance, and examines everything.
    fn start(
        disks: &[Arc<dyn Source>],
        options: &MapperOptions,
        images: &[ImageInfo],
        cancel: &Cancel,
        observe: &mut dyn FnMut(MapEvent<'_>),
    ) -> Result<(Self, Look), MapError> {
        let disks: Vec<Arc<Exchangeable>> =
            disks.iter().map(|disk| Arc::new(Exchangeable::new(disk.clone()))).collect();
        let sources: Vec<Arc<dyn Source>> =
            disks.iter().map(|disk| disk.clone() as Arc<dyn Source>).collect();
        let (service, session) = serve(&sources, options, &LeftOut::new())?;
        let (tasks, todo) = channel();
        let (put, results) = channel();
        let (put_first, first) = channel();
        let thread = session.spawn({
            let session = session.clone();
            move || session.work(&put_first, &todo, &put)
        })?;
        let mut running = Self {
            service: Some(service),
            session,
            disks,
            surveyed: Arc::default(),
            thread: Some(thread),
            tasks: Some(tasks),
            results,
        };
        running.surveyed = wait_for(&running.session, &first, cancel, observe)?;
        let look = taken(&running.session, images)?;
        Ok((running, look))
    }

    /// Walks these filesystems again, in another state of the disks. `None`: one of them cannot be
    /// mounted any more.
    fn again(
        &self,
        disks: &[Arc<dyn Source>],
        devices: BTreeSet<String>,
        baselines: Baselines,
        images: &[ImageInfo],
        cancel: &Cancel,
        observe: &mut dyn FnMut(MapEvent<'_>),
    ) -> Result<Option<Look>, MapError> {
        self.disks.iter().zip(disks).for_each(|(drive, disk)| drive.exchange(disk.clone()));
        self.session.reset_overlays()?;
        let Some(tasks) = &self.tasks else { return Ok(None) };
        let task = Task { devices, baselines };
        if tasks.send(task).is_err() {
            return Err(MapError::Panicked);
        }
        let is_done = wait_for(&self.session, &self.results, cancel, observe)?;
        is_done.then(|| taken(&self.session, images)).transpose()
    }
}

/// The baselines of these devices. Whatever was written since is read again.
fn baselines(devices: &BTreeSet<String>, written: &[RangeSet<DiskOffset>], maps: &EarlierMaps) -> Baselines {
    let written: BTreeMap<DiskNumber, IndexedRanges> =
        (1..).zip(written.iter().map(|ranges| ranges.iter().collect())).collect();
    let of = |device: &String| {
        let map = maps.get(device.as_bytes())?;
        let baseline = Baseline::new(map.clone(), written.clone())?;
        Some((device.clone(), Arc::new(baseline)))
    };
    devices.iter().filter_map(of).collect()
}

/// What the session has found, as a map.
fn taken(session: &Session, images: &[ImageInfo]) -> Result<Look, MapError> {
    let (mut found, warnings) = session.channel.take();
    let header = found.header_mut();
    header.images = images.to_vec();
    header.warnings = warnings.list();
    Ok(Look { map: found.into_map()?, replayed: session.rewritten() })
}

/// Waits for the session's next result, and watches over it meanwhile.
fn wait_for<T>(
    session: &Session,
    results: &Receiver<Result<T, MapError>>,
    cancel: &Cancel,
    observe: &mut dyn FnMut(MapEvent<'_>),
) -> Result<T, MapError> {
    let result = RefCell::new(None);
    let wait = |time: Duration| match results.recv_timeout(time) {
        Ok(done) => result.replace(Some(done)).is_none(),
        Err(RecvTimeoutError::Timeout) => false,
        Err(RecvTimeoutError::Disconnected) => true,
    };
    let hung = session.watch_until(&wait, cancel, observe);
    if !cancel.is_cancelled()
        && let Some(error) = session.take_lost()
    {
        return Err(MapError::Lost(error));
    }
    session.explained(result.into_inner().unwrap_or(Err(MapError::Panicked)), hung, cancel)
}

impl Session {
    /// The thread's work: a survey, and then one task after the other.
    fn work(
        &self,
        surveyed: &Sender<Result<Arc<Surveyed>, MapError>>,
        tasks: &Receiver<Task>,
        results: &Sender<Result<bool, MapError>>,
    ) {
        let appliance = match self.launch() {
            Ok(appliance) => appliance,
            Err(error) => return drop(surveyed.send(Err(error))),
        };
        let baseline = |_: &str| self.options.baseline.clone();
        let context = self.context(&appliance, &baseline);
        let first = survey::survey(&context).and_then(|first| first.leave(&context).map(|()| first));
        let first = match first {
            Ok(first) => Arc::new(first),
            Err(error) => return drop(surveyed.send(Err(error.into()))),
        };
        let _ = surveyed.send(Ok(first.clone()));
        for Task { devices, baselines } in tasks {
            let baseline = |device: &str| baselines.get(device).cloned();
            let context = Context { is_again: true, ..self.context(&appliance, &baseline) };
            let began = Instant::now();
            let done = first.again(&context, &devices);
            tracing::debug!("looked again at {} filesystems in {:?}", devices.len(), began.elapsed());
            if results.send(done.map_err(MapError::from)).is_err() {
                return;
            }
        }
    }
}

/// A drive below which the disk can be exchanged for one of the same size.
struct Exchangeable {
    size: u64,
    disk: RwLock<Arc<dyn Source>>,
}

impl Exchangeable {
    fn new(disk: Arc<dyn Source>) -> Self {
        Self { size: disk.size(), disk: RwLock::new(disk) }
    }

    fn exchange(&self, disk: Arc<dyn Source>) {
        *self.disk.write().unwrap_or_else(PoisonError::into_inner) = disk;
    }

    fn disk(&self) -> Arc<dyn Source> {
        self.disk.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Source for Exchangeable {
    fn size(&self) -> u64 {
        self.size
    }

    fn try_read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<bool> {
        self.disk().try_read_at(buf, offset)
    }

    fn read_at(&self, buf: &mut [u8], offset: DiskOffset) -> io::Result<()> {
        self.disk().read_at(buf, offset)
    }

    fn allocation(&self, range: DiskRange) -> io::Result<Vec<Allocation>> {
        self.disk().allocation(range)
    }
}
