//! A guest session: one run of the appliance on a thread of its own, and the watchdog over it.

use super::exports::{CONTROL_EXPORT, ControlExport, DiskExport, disk_export};
use super::{Cancel, LeftOut, MapError, MapEvent, MapperOptions};
use crate::appliance::{Appliance, KillSwitch, Launching};
use crate::geometry::Geometry;
use crate::probe::channel::Channel;
use crate::probe::context::Context;
use crate::probe::{Phase, Probe, guestfsd, survey};
use crate::recorder::Recorder;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
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
    let recorder = Arc::new(Recorder::new());
    let channel = Arc::new(Channel::new(recorder.clone()));
    let lost = Arc::new(OnceLock::new());
    let geometry: Vec<Geometry> = sources.iter().map(|source| Geometry::of(&**source)).collect();
    let (exports, overlays) = exports(sources, &geometry, &recorder, &channel, &lost, options)?;
    let limits = Limits { connections: 2 * sources.len() + 8, ..Limits::default() };
    let service = Service::start(exports, limits, &ListenAddress::Private)?;
    let Address::Unix(socket) = service.address().clone() else {
        unreachable!("a private place is a Unix socket")
    };
    let session = Session {
        options: options.clone(),
        socket,
        recorder,
        channel: channel.clone(),
        disks: sources.to_vec(),
        geometry: geometry.into(),
        overlays: overlays.clone(),
        left_out: left_out.clone(),
        kill: KillSwitch::default(),
        phase: Arc::default(),
        launches: Arc::default(),
    };
    let result = session.watch(cancel, &lost, observe);
    service.stop();
    // Other errors are consequences of this one.
    if !cancel.is_cancelled()
        && let Some(error) = Arc::into_inner(lost).and_then(OnceLock::into_inner)
    {
        return Err(MapError::Lost(error));
    }
    let rewritten = || overlays.iter().map(|overlay| overlay.written()).collect();
    Ok((result.map(|()| (channel, rewritten())), session.phase()))
}

/// The exports of the guest's disks and of the control disk, and the overlays of the disks, in
/// order.
fn exports(
    sources: &[Arc<dyn Source>],
    geometry: &[Geometry],
    recorder: &Arc<Recorder>,
    channel: &Arc<Channel>,
    lost: &Arc<OnceLock<io::Error>>,
    options: &MapperOptions,
) -> Result<(Exports, Vec<Arc<Overlay>>), MapError> {
    let what = "a temporary file for what the guest's filesystems write";
    let mut exports =
        Exports::new().with(CONTROL_EXPORT, Arc::new(ControlExport { channel: channel.clone() }))?;
    let mut overlays = Vec::new();
    for (disk, (source, geometry)) in (1..).zip(sources.iter().zip(geometry)) {
        let overlay = Overlay::new(source.clone(), options.overlay_limit, &std::env::temp_dir())
            .map_err(|source| MapError::SetUp { what, source })?;
        geometry.mend(&overlay).map_err(|source| MapError::SetUp { what, source })?;
        let overlay = Arc::new(overlay);
        overlays.push(overlay.clone());
        let export = DiskExport { disk, overlay, recorder: recorder.clone(), lost: lost.clone() };
        exports = exports.with(&disk_export(disk), Arc::new(export))?;
    }
    Ok((exports, overlays))
}

/// The work of a session. It runs on a thread of its own, because libguestfs is synchronous.
#[derive(Clone)]
struct Session {
    options: MapperOptions,
    socket: PathBuf,
    recorder: Arc<Recorder>,
    channel: Arc<Channel>,
    disks: Vec<Arc<dyn Source>>,
    geometry: Arc<[Geometry]>,
    overlays: Vec<Arc<Overlay>>,
    left_out: LeftOut,
    kill: KillSwitch,
    phase: Arc<Mutex<Phase>>,
    /// The launches that were not yet reported.
    launches: Arc<Mutex<Vec<Launching>>>,
}

impl Session {
    /// Runs the session and watches over it. It always ends: by itself, by the watchdog or by the
    /// user.
    fn watch(
        &self,
        cancel: &Cancel,
        lost: &OnceLock<io::Error>,
        observe: &mut dyn FnMut(MapEvent<'_>),
    ) -> Result<(), MapError> {
        let inside = self.clone();
        let thread = thread::Builder::new()
            .name("guestfs".into())
            .spawn(move || inside.run())
            .map_err(|source| MapError::SetUp { what: "the session's thread", source })?;
        let mut last_sign = (self.signs_of_life(), Instant::now());
        let mut hung = None;
        while !thread.is_finished() {
            thread::sleep(TICK);
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
            if cancel.is_cancelled() || hung.is_some() || lost.get().is_some() {
                self.kill.throw();
            }
        }
        let result = thread.join().unwrap_or(Err(MapError::Panicked));
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

    fn phase(&self) -> Phase {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_phase(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    fn run(&self) -> Result<(), MapError> {
        let disks: Vec<String> = (1..=self.disks.len() as DiskNumber).map(disk_export).collect();
        let announce = |launching| {
            self.launches.lock().unwrap_or_else(PoisonError::into_inner).push(launching);
        };
        let appliance = Appliance::launch(
            &self.options.launch,
            &self.kill,
            &self.socket,
            &disks,
            CONTROL_EXPORT,
            announce,
        )?;
        let context = Context {
            appliance: &appliance,
            channel: &self.channel,
            disks: &self.disks,
            geometry: &self.geometry,
            keys: &self.options.keys,
            derivation: self.options.derivation,
            metadata: self.options.metadata,
            legs: self.options.legs,
            sample: self.options.probe.sample(),
            baseline: self.options.baseline.as_ref(),
            overlays: &self.overlays,
            left_out: &self.left_out,
            phase: &|phase| self.set_phase(phase),
        };
        match self.options.probe {
            Probe::Agent | Probe::Extents { .. } => survey::survey(&context)?,
            Probe::Guestfsd => guestfsd::survey(&context, &self.recorder)?,
        }
        self.set_phase(Phase::Closing);
        Ok(())
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
