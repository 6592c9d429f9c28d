//! A guest session: one run of the appliance on a thread of its own, and the watchdog over it.

use super::exports::{CONTROL_EXPORT, ControlExport, DiskExport, Lost, disk_export};
use super::{Cancel, LeftOut, MapError, MapEvent, MapperOptions};
use crate::appliance::{Appliance, KillSwitch, Launching};
use crate::geometry::Geometry;
use crate::probe::baseline::Baseline;
use crate::probe::channel::Channel;
use crate::probe::context::Context;
use crate::probe::{Phase, Probe, guestfsd, survey};
use crate::recorder::Recorder;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use virt_bmap_image::{Overlay, Source};
use virt_bmap_nbd::{Address, Exports, Limits, ListenAddress, Service};
use virt_bmap_ranges::{DiskNumber, DiskOffset, RangeSet};

/// How often the caller's thread checks the session.
const TICK: Duration = Duration::from_millis(50);

/// The result of an attempt: the channel with the objects, and the written ranges of the overlays.
pub(super) type Attempt = (Arc<Channel>, Vec<RangeSet<DiskOffset>>);

/// Maps the guest in one run of an appliance, without the filesystems in `left_out`. Returns the
/// result and the last phase.
///
/// # Errors
/// [`MapError`], if another attempt would be useless.
pub(super) fn attempt(
    sources: &[Arc<dyn Source>],
    options: &MapperOptions,
    left_out: &LeftOut,
    cancel: &Cancel,
    observe: &mut dyn FnMut(MapEvent<'_>),
) -> Result<(Result<Attempt, MapError>, Phase), MapError> {
    let (service, session) = serve(sources, options, left_out)?;
    let result = session.watch(cancel, observe);
    service.stop();
    // Other errors are consequences of this one.
    if !cancel.is_cancelled()
        && let Some(error) = session.take_lost()
    {
        return Err(MapError::Lost(error));
    }
    Ok((result.map(|()| (session.channel.clone(), session.rewritten())), session.phase()))
}

/// Serves the disks, and prepares a session.
///
/// # Errors
/// [`MapError`]
pub(super) fn serve(
    sources: &[Arc<dyn Source>],
    options: &MapperOptions,
    left_out: &LeftOut,
) -> Result<(Service, Session), MapError> {
    let recorder = Arc::new(Recorder::new());
    let channel = Arc::new(Channel::new(recorder.clone()));
    let lost = Arc::new(Mutex::new(None));
    let geometry: Vec<Geometry> = sources.iter().map(|source| Geometry::of(&**source)).collect();
    let (exports, overlays) = exports(sources, &geometry, &recorder, &channel, &lost, options)?;
    let limits = Limits { connections: 2 * sources.len() + 8, ..Limits::default() };
    let service = Service::start(exports, limits, &ListenAddress::Private)?;
    let Address::Unix(socket) = service.address().clone() else {
        unreachable!("a private place is a Unix socket")
    };
    let phase: Arc<Mutex<Phase>> = Arc::default();
    let note_phase = {
        let phase = phase.clone();
        move |now| *phase.lock().unwrap_or_else(PoisonError::into_inner) = now
    };
    let session = Session {
        options: options.clone(),
        socket,
        recorder,
        channel,
        disks: sources.to_vec(),
        geometry: geometry.into(),
        overlays,
        left_out: left_out.clone(),
        kill: KillSwitch::default(),
        phase,
        note_phase: Arc::new(note_phase),
        launches: Arc::default(),
        lost,
    };
    Ok((service, session))
}

/// The exports of the guest's disks and of the control disk, and the overlays of the disks, in
/// order.
fn exports(
    sources: &[Arc<dyn Source>],
    geometry: &[Geometry],
    recorder: &Arc<Recorder>,
    channel: &Arc<Channel>,
    lost: &Lost,
    options: &MapperOptions,
) -> Result<(Exports, Vec<Arc<Overlay>>), MapError> {
    let mut exports =
        Exports::new().with(CONTROL_EXPORT, Arc::new(ControlExport { channel: channel.clone() }))?;
    let mut overlays = Vec::new();
    for (disk, (source, geometry)) in (1..).zip(sources.iter().zip(geometry)) {
        let overlay = Overlay::new(source.clone(), options.overlay_limit, &std::env::temp_dir())
            .map_err(cannot_keep_writes)?;
        geometry.mend(&overlay).map_err(cannot_keep_writes)?;
        let overlay = Arc::new(overlay);
        overlays.push(overlay.clone());
        let export = DiskExport { disk, overlay, recorder: recorder.clone(), lost: lost.clone() };
        exports = exports.with(&disk_export(disk), Arc::new(export))?;
    }
    Ok((exports, overlays))
}

/// The error for the temporary files of the overlays.
pub(super) fn cannot_keep_writes(source: io::Error) -> MapError {
    MapError::SetUp { what: "a temporary file for what the guest's filesystems write", source }
}

/// The work of a session. It runs on a thread of its own, because libguestfs is synchronous.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) options: MapperOptions,
    socket: PathBuf,
    recorder: Arc<Recorder>,
    pub(super) channel: Arc<Channel>,
    disks: Vec<Arc<dyn Source>>,
    geometry: Arc<[Geometry]>,
    overlays: Vec<Arc<Overlay>>,
    left_out: LeftOut,
    kill: KillSwitch,
    phase: Arc<Mutex<Phase>>,
    /// Sets the phase.
    note_phase: Arc<dyn Fn(Phase) + Send + Sync>,
    /// The launches that were not yet reported.
    launches: Arc<Mutex<Vec<Launching>>>,
    lost: Lost,
}

impl Session {
    /// Runs the session and watches over it. It always ends: by itself, by the watchdog or by the
    /// user.
    fn watch(&self, cancel: &Cancel, observe: &mut dyn FnMut(MapEvent<'_>)) -> Result<(), MapError> {
        let inside = self.clone();
        let thread = self.spawn(move || inside.run())?;
        let wait = |time| {
            let is_done = thread.is_finished();
            if !is_done {
                thread::sleep(time);
            }
            is_done
        };
        let hung = self.watch_until(&wait, cancel, observe);
        let result = thread.join().unwrap_or(Err(MapError::Panicked));
        self.explained(result, hung, cancel)
    }

    /// Starts the session's thread.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>, MapError> {
        let thread = thread::Builder::new().name("guestfs".into()).spawn(work);
        thread.map_err(|source| MapError::SetUp { what: "the session's thread", source })
    }

    /// Waits until the session has done its work, and ends the appliance if that takes too long or
    /// is not wanted any more. `wait` waits at most so long, and returns whether the work is done.
    /// Returns the phase in which it hung.
    pub(super) fn watch_until(
        &self,
        wait: &dyn Fn(Duration) -> bool,
        cancel: &Cancel,
        observe: &mut dyn FnMut(MapEvent<'_>),
    ) -> Option<Phase> {
        let mut last_sign = (self.signs_of_life(), Instant::now());
        let mut hung = None;
        while !wait(TICK) {
            let launches = std::mem::take(&mut *self.launches.lock().unwrap_or_else(PoisonError::into_inner));
            for launching in launches {
                observe(MapEvent::Launching(launching));
            }
            let phase = self.phase();
            observe(MapEvent::Progress(&phase, self.channel.snapshot()));
            let sign = self.signs_of_life();
            if sign != last_sign.0 {
                last_sign = (sign, Instant::now());
            } else if last_sign.1.elapsed() > self.options.timeout {
                hung.get_or_insert(phase);
            }
            if cancel.is_cancelled() || hung.is_some() || self.is_lost() {
                self.kill.throw();
            }
        }
        hung
    }

    /// The result of work, with the reason for its failure.
    pub(super) fn explained<T>(
        &self,
        result: Result<T, MapError>,
        hung: Option<Phase>,
        cancel: &Cancel,
    ) -> Result<T, MapError> {
        // The reason for the appliance's death is known here, not there.
        if cancel.is_cancelled() {
            return Err(MapError::Cancelled);
        }
        match (result, hung) {
            (Err(_), Some(phase)) => {
                Err(MapError::Hung { limit: self.options.timeout, during: during(&phase) })
            }
            (result, _) => result,
        }
    }

    /// A value that changes as long as the session makes progress. Repeated reads of the same bytes
    /// are no progress in a filesystem, but normal while devices are examined.
    fn signs_of_life(&self) -> (u64, u64, Phase) {
        let phase = self.phase();
        let reads = match phase {
            Phase::Filesystem { .. } => self.recorder.news(),
            _ => self.recorder.totals().0,
        };
        (reads, self.channel.snapshot().frames, phase)
    }

    /// The ranges of each overlay that were written.
    pub(super) fn rewritten(&self) -> Vec<RangeSet<DiskOffset>> {
        self.overlays.iter().map(|overlay| overlay.written()).collect()
    }

    /// The disks, with what the appliance has written to them.
    pub(super) fn overlays(&self) -> &[Arc<Overlay>] {
        &self.overlays
    }

    /// Forgets what the appliance has written to the disks, which have been exchanged for another
    /// state of them.
    ///
    /// # Errors
    /// [`MapError::SetUp`]
    pub(super) fn reset_overlays(&self) -> Result<(), MapError> {
        for (overlay, geometry) in self.overlays.iter().zip(&*self.geometry) {
            overlay.reset().and_then(|()| geometry.mend(overlay)).map_err(cannot_keep_writes)?;
        }
        Ok(())
    }

    /// Whether the partition tables of these disks say the same of the disks as a whole.
    pub(super) fn has_geometry_of(&self, disks: &[Arc<dyn Source>]) -> bool {
        self.geometry.iter().eq(&disks.iter().map(|disk| Geometry::of(&**disk)).collect::<Vec<_>>())
    }

    fn is_lost(&self) -> bool {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The error, if an image as a whole was lost.
    pub(super) fn take_lost(&self) -> Option<io::Error> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends the appliance.
    pub(super) fn kill(&self) {
        self.kill.throw();
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn run(&self) -> Result<(), MapError> {
        let appliance = self.launch()?;
        let baseline = |_: &str| self.options.baseline.clone();
        let context = self.context(&appliance, &baseline);
        match self.options.probe {
            Probe::Agent | Probe::Extents(_) => drop(survey::survey(&context)?),
            Probe::Guestfsd => guestfsd::survey(&context, &self.recorder)?,
        }
        (self.note_phase)(Phase::Closing);
        Ok(())
    }

    /// Launches the appliance.
    pub(super) fn launch(&self) -> Result<Appliance, MapError> {
        let disks: Vec<String> = (1..=self.disks.len() as DiskNumber).map(disk_export).collect();
        let announce = |launching| {
            self.launches.lock().unwrap_or_else(PoisonError::into_inner).push(launching);
        };
        let (options, socket) = (&self.options.launch, &self.socket);
        Ok(Appliance::launch(options, &self.kill, socket, &disks, CONTROL_EXPORT, announce)?)
    }

    /// What a probe works with in this appliance.
    pub(super) fn context<'a>(
        &'a self,
        appliance: &'a Appliance,
        baseline: &'a dyn Fn(&str) -> Option<Arc<Baseline>>,
    ) -> Context<'a> {
        Context {
            appliance,
            channel: &self.channel,
            disks: &self.disks,
            geometry: &self.geometry,
            keys: &self.options.keys,
            derivation: self.options.derivation,
            metadata: self.options.metadata,
            legs: self.options.legs,
            sample: self.options.probe.sample(),
            baseline,
            is_again: false,
            overlays: &self.overlays,
            left_out: &self.left_out,
            phase: &*self.note_phase,
        }
    }
}

/// A phase, as the end of a sentence after "while".
fn during(phase: &Phase) -> String {
    match phase {
        Phase::Launching => "the appliance was starting".into(),
        Phase::Devices => "the guest's devices were being examined".into(),
        Phase::Unlocking { device } => format!("{device} was being unlocked"),
        Phase::Filesystem { name, .. } => format!("{name} was being read"),
        Phase::Closing => "the appliance was being shut down".into(),
    }
}
