//! An appliance that is kept: it maps one state of a guest's disks after the other.
//!
//! A look at a state costs a boot if an appliance is started for it. Here the first look starts one
//! and examines everything. Before each further look, the disks are exchanged for the next state
//! below the same drives, while no filesystem is mounted and the appliance's kernel remembers
//! nothing of them. If only filesystems were written to, only these are walked again, as for an
//! update. If anything else was, such as a partition table, the devices may have changed: arrays
//! and volumes are taken apart before the exchange, and everything is examined afterwards. Where
//! that is not possible, or fails, a new appliance does it.

use super::session::{Session, serve};
use super::{Cancel, LeftOut, MapError, MapEvent, Mapped, MapperOptions, map_sources};
use crate::appliance::Appliance;
use crate::probe::ProbeError;
use crate::probe::baseline::Baseline;
use crate::probe::context::Context;
use crate::probe::survey::{self, Surveyed};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
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

    /// The disks as the last look has left them, with what mounting wrote; none if nothing is kept.
    pub fn disks(&self) -> Vec<Arc<dyn Source>> {
        let overlays = self.running.iter().flat_map(|running| running.session.overlays());
        overlays.map(|overlay| overlay.clone() as Arc<dyn Source>).collect()
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
        if let Some(running) = &mut self.running {
            let look = match running.surveyed.concerned(written) {
                Some(devices) => {
                    let baselines = baselines(&devices, written, maps);
                    running.again(disks, devices, baselines, &self.images, cancel, observe)
                }
                None => running.survey(disks, maps, written, &self.images, cancel, observe),
            };
            match look {
                Ok(Some(look)) => return Ok(look),
                Err(MapError::Cancelled) => return Err(MapError::Cancelled),
                Ok(None) => tracing::debug!("the kept appliance cannot do that: starting anew"),
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
    results: Receiver<Result<Done, MapError>>,
}

/// What the thread has to do.
enum Task {
    /// Walk these filesystems again.
    Again { devices: BTreeSet<String>, baselines: Baselines },
    /// Take apart what lies on the disks.
    Detach,
    /// Examine everything.
    Survey { baselines: Baselines },
}

/// What the thread has done.
enum Done {
    /// The task.
    Walked,
    /// The task, and these are the devices.
    Surveyed(Arc<Surveyed>),
    /// Not the task, which needs a new appliance.
    Nothing,
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
        self.exchange(disks)?;
        match self.do_task(Task::Again { devices, baselines }, cancel, observe)? {
            Done::Walked => Ok(Some(taken(&self.session, images)?)),
            Done::Surveyed(_) | Done::Nothing => Ok(None),
        }
    }

    /// Examines everything again, in another state of the disks. `None`: that needs a new
    /// appliance.
    fn survey(
        &mut self,
        disks: &[Arc<dyn Source>],
        maps: &EarlierMaps,
        written: &[RangeSet<DiskOffset>],
        images: &[ImageInfo],
        cancel: &Cancel,
        observe: &mut dyn FnMut(MapEvent<'_>),
    ) -> Result<Option<Look>, MapError> {
        // What was unlocked would have to be locked first.
        if !self.session.options.keys.is_empty() || !self.session.has_geometry_of(disks) {
            return Ok(None);
        }
        let Done::Walked = self.do_task(Task::Detach, cancel, observe)? else { return Ok(None) };
        self.exchange(disks)?;
        let devices = maps.keys().filter_map(|device| String::from_utf8(device.clone()).ok()).collect();
        let baselines = baselines(&devices, written, maps);
        let Done::Surveyed(surveyed) = self.do_task(Task::Survey { baselines }, cancel, observe)? else {
            return Ok(None);
        };
        self.surveyed = surveyed;
        Ok(Some(taken(&self.session, images)?))
    }

    fn exchange(&self, disks: &[Arc<dyn Source>]) -> Result<(), MapError> {
        self.disks.iter().zip(disks).for_each(|(drive, disk)| drive.exchange(disk.clone()));
        self.session.reset_overlays()
    }

    fn do_task(
        &self,
        task: Task,
        cancel: &Cancel,
        observe: &mut dyn FnMut(MapEvent<'_>),
    ) -> Result<Done, MapError> {
        let is_sent = self.tasks.as_ref().is_some_and(|tasks| tasks.send(task).is_ok());
        if !is_sent {
            return Err(MapError::Panicked);
        }
        wait_for(&self.session, &self.results, cancel, observe)
    }
}

/// The baselines of these devices. Whatever was written since is read again.
fn baselines(devices: &BTreeSet<String>, written: &[RangeSet<DiskOffset>], maps: &EarlierMaps) -> Baselines {
    let written: BTreeMap<DiskNumber, IndexedRanges> =
        (1..).zip(written.iter().map(|ranges| ranges.iter().collect())).collect();
    // Most filesystems are in one map, which is indexed once.
    let mut indexed: HashMap<*const Map, Option<Arc<Baseline>>> = HashMap::new();
    let of = |device: &String| {
        let map = maps.get(device.as_bytes())?;
        let baseline = indexed
            .entry(Arc::as_ptr(map))
            .or_insert_with(|| Baseline::new(map.clone(), written.clone()).map(Arc::new));
        Some((device.clone(), baseline.clone()?))
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
        results: &Sender<Result<Done, MapError>>,
    ) {
        let appliance = match self.launch() {
            Ok(appliance) => appliance,
            Err(error) => return drop(surveyed.send(Err(error))),
        };
        let first = self.survey_and_leave(&appliance, &|_| self.options.baseline.clone());
        let mut present = match first {
            Ok(first) => first,
            Err(error) => return drop(surveyed.send(Err(error.into()))),
        };
        let _ = surveyed.send(Ok(present.clone()));
        let nothing = |_: &str| None;
        for task in tasks {
            let began = Instant::now();
            let done = match task {
                Task::Again { devices, baselines } => {
                    let baseline = |device: &str| baselines.get(device).cloned();
                    let context = Context { is_again: true, ..self.context(&appliance, &baseline) };
                    let done = present.again(&context, &devices);
                    done.map(|is_done| if is_done { Done::Walked } else { Done::Nothing })
                }
                Task::Detach => detach(&Context { is_again: true, ..self.context(&appliance, &nothing) }),
                Task::Survey { baselines } => {
                    let baseline = |device: &str| baselines.get(device).cloned();
                    let attached = appliance.attach().map_err(ProbeError::from);
                    let next = attached.and_then(|()| self.survey_and_leave(&appliance, &baseline));
                    next.map(|next| {
                        present = next.clone();
                        Done::Surveyed(next)
                    })
                }
            };
            tracing::debug!("a task of the kept appliance took {:?}", began.elapsed());
            if results.send(done.map_err(MapError::from)).is_err() {
                return;
            }
        }
    }

    /// Examines everything, and lets the appliance forget it.
    fn survey_and_leave(
        &self,
        appliance: &Appliance,
        baseline: &dyn Fn(&str) -> Option<Arc<Baseline>>,
    ) -> Result<Arc<Surveyed>, ProbeError> {
        let context = self.context(appliance, baseline);
        let surveyed = survey::survey(&context)?;
        surveyed.leave(&context)?;
        appliance.stay(self.channel.sequence())?;
        Ok(Arc::new(surveyed))
    }
}

/// Takes apart what lies on the disks, after the agent that stays has ended.
fn detach(context: &Context<'_>) -> Result<Done, ProbeError> {
    context.end_agent()?;
    match context.appliance.detach() {
        Some(done) => Ok(done.map(|()| Done::Walked)?),
        None => Ok(Done::Nothing),
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
