//! A guest's disks, served and watched.

use super::disk::{Storage, TracedDisk};
use super::live::Live;
use super::output::LogOutput;
use super::queue::{Overflow, Queue};
use super::tracer::{Outcome, Tracer};
use std::io;
use std::sync::Arc;
use virt_bmap_history::{Bases, History, HistoryOptions};
use virt_bmap_image::{Image, OpenError, Overlay, Stamp, Writable, WritableRaw};
use virt_bmap_map::Map;
use virt_bmap_nbd::{Address, Exports, ExportsError, Limits, ListenAddress, Service, ServiceError};

/// Where what the guest writes goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// To a copy-on-write layer, which is discarded at the end.
    #[default]
    Private,
    /// To the image, which must be raw.
    Through,
    /// Nowhere: the disks are read-only.
    Refused,
}

/// Options of a [`Session`].
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// Where what the guest writes goes.
    pub writes: Writes,
    /// What happens to an event when the queue is full.
    pub overflow: Overflow,
    /// Where to listen.
    pub place: ListenAddress,
    /// Receives the state of the running trace.
    pub live: Option<Arc<Live>>,
    /// Keeps the [history](Session::history) of what the guest writes. The identities of a
    /// recording are set by [`Session::start`].
    pub history: Option<HistoryOptions>,
}

/// Why a guest's disks cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// An image cannot be written to.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The disks could not be named; a defect of this library.
    #[error(transparent)]
    Exports(#[from] ExportsError),
    /// The server could not be started.
    #[error(transparent)]
    Serve(#[from] ServiceError),
    /// Another part could not be set up.
    #[error("cannot set up {what}")]
    SetUp {
        /// The part.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// A guest's disks, served and watched. To be [finished](Self::finish).
pub struct Session {
    service: Service,
    tracer: Tracer,
    disks: usize,
    history: Option<Arc<History>>,
}

/// Name of the export of a guest's disk, from 1. The first is also the default.
fn export_name(disk: usize) -> String {
    format!("disk{disk}")
}

impl Session {
    /// Starts to serve `images` and to log their requests to `output`. `map` is the map of these
    /// images.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn start(
        images: Vec<Image>,
        map: Arc<Map>,
        output: Box<dyn LogOutput>,
        options: &TraceOptions,
    ) -> Result<Self, SessionError> {
        let queue = Arc::new(Queue::new(options.overflow));
        let disks = images.len();
        let mut exports = Exports::new();
        let (storages, history) = match &options.history {
            Some(kept) if options.writes != Writes::Refused => {
                let history = start_history(images, options.writes, kept.clone())?;
                let disks = history.disks().into_iter().map(|disk| Storage::Writable(disk)).collect();
                (disks, Some(history))
            }
            _ => {
                let each = images.into_iter().map(|image| storage(image, options.writes));
                (each.collect::<Result<Vec<_>, _>>()?, None)
            }
        };
        for (number, storage) in (1..).zip(storages) {
            let disk = TracedDisk::new(number, storage, queue.clone());
            exports = exports.with(&export_name(number.into()), Arc::new(disk))?;
        }
        if disks > 0 {
            exports = exports.with_default(&export_name(1))?;
        }
        let service = Service::start(exports, Limits::default(), &options.place)?;
        let tracer = Tracer::start(queue, map, output, options.live.clone())
            .map_err(|source| SessionError::SetUp { what: "the log's thread", source })?;
        Ok(Self { service, tracer, disks, history })
    }

    /// The address of the server.
    pub fn address(&self) -> &Address {
        self.service.address()
    }

    /// The NBD URIs of the disks, in their order.
    pub fn uris(&self) -> Vec<String> {
        let name = |disk| if disk == 1 { String::new() } else { export_name(disk) };
        (1..=self.disks).map(|disk| self.address().uri(&name(disk))).collect()
    }

    /// The history of what the guest writes; `None` if it is not kept or the disks are read-only.
    pub fn history(&self) -> Option<Arc<History>> {
        self.history.clone()
    }

    /// The error that ended the log, if there was one.
    pub fn log_error(&self) -> Option<&io::Error> {
        self.tracer.log_error()
    }

    /// Number of requests so far that are not in the log because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.tracer.dropped()
    }

    /// Stops the server and the log. Requests in flight are answered, and all requests are logged.
    pub fn finish(self) -> Outcome {
        self.service.stop();
        self.tracer.finish()
    }
}

/// Starts the history of the disks of these images.
fn start_history(
    images: Vec<Image>,
    writes: Writes,
    mut options: HistoryOptions,
) -> Result<Arc<History>, SessionError> {
    if let Some(recording) = &mut options.record {
        recording.identities = images.iter().map(identity).collect();
    }
    let bases = match writes {
        Writes::Through => {
            let open = |image| WritableRaw::open(image).map(|disk| -> Arc<dyn Writable> { Arc::new(disk) });
            Bases::Through(images.into_iter().map(open).collect::<Result<_, _>>()?)
        }
        Writes::Private | Writes::Refused => {
            Bases::Private(images.into_iter().map(|image| image.source).collect())
        }
    };
    let what = "the history of what the guest writes";
    History::start(bases, options).map_err(|source| SessionError::SetUp { what, source })
}

/// The bytes by which a recorded history knows its base again: the snapshot and the stamps of all
/// files, as JSON. An image that is not on this host has no stamps.
pub fn identity(image: &Image) -> Vec<u8> {
    let stamps = image.files().map(|files| files.into_iter().map(|file| Stamp::of(file).ok()).collect());
    let stamps: Option<Vec<Option<Stamp>>> = stamps;
    serde_json::json!({ "snapshot": image.snapshot, "files": stamps }).to_string().into_bytes()
}

fn storage(image: Image, writes: Writes) -> Result<Storage, SessionError> {
    Ok(match writes {
        Writes::Refused => Storage::ReadOnly(image.source),
        Writes::Through => Storage::Writable(Arc::new(WritableRaw::open(image)?)),
        Writes::Private => {
            let size = image.source.size();
            let what = "a temporary file for what the guest writes";
            let overlay = Overlay::new(image.source, size, &std::env::temp_dir())
                .map_err(|source| SessionError::SetUp { what, source })?;
            Storage::Writable(Arc::new(overlay))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LogFormat;
    use virt_bmap_history::{Recorded, RecordedBase, Recording};
    use virt_bmap_image::{ImageFormat, OpenOptions, open};
    use virt_bmap_ranges::DiskOffset;

    #[test]
    fn a_recorded_history_knows_its_base_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest.raw");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let raw = OpenOptions { format: Some(ImageFormat::Raw), ..OpenOptions::default() };
        let image = || open(&path.clone().into(), &raw).unwrap();
        let map = Arc::new(virt_bmap_map::text::read(&b"1 0 100000 v /dev/sda\n"[..]).unwrap());
        for writes in [Writes::Private, Writes::Through, Writes::Refused] {
            let log = dir.path().join(format!("{writes:?}"));
            let recording = Recording { path: log.clone(), identities: Vec::new() };
            let options = TraceOptions {
                writes,
                overflow: Overflow::Drop,
                place: ListenAddress::Private,
                live: None,
                history: Some(HistoryOptions { record: Some(recording), ..HistoryOptions::default() }),
            };
            let output = LogFormat::Text.output(std::io::sink(), &[]).unwrap();
            let session = Session::start(vec![image()], map.clone(), output, &options).unwrap();
            let Some(history) = session.history() else {
                assert_eq!(writes, Writes::Refused);
                continue;
            };
            let disk = history.disks().remove(0);
            disk.write_at(&[8; 512], DiskOffset(512)).unwrap();
            disk.flush().unwrap();
            assert_eq!(history.next().unwrap().written[0].bytes(), 512);
            session.finish();
            drop((disk, history));

            let image = image();
            let base = RecordedBase { source: image.source.clone(), identity: identity(&image) };
            let recorded = Recorded::open(&log, vec![base]);
            // An image that was written to is another base.
            assert_eq!(recorded.is_ok(), writes == Writes::Private);
            let states: Vec<_> = recorded.into_iter().flatten().map(Result::unwrap).collect();
            let mut bytes = [0; 1024];
            for state in &states {
                state.disks()[0].read_at(&mut bytes, DiskOffset(0)).unwrap();
                assert!(bytes[..512] == [7; 512] && bytes[512..] == [8; 512]);
            }
            assert_eq!(states.len(), usize::from(writes == Writes::Private));
        }
    }
}
