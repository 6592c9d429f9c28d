//! The disk that is served, with its map and the log.

use crate::log::{Log, say};
use crate::parameters::Parameters;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use virt_bmap_image::{self, Allocation, ImageFormat, OpenOptions, Source};
use virt_bmap_map::{self as bmap, Map};
use virt_bmap_ranges::{DiskOffset, DiskRange};
use virt_bmap_trace::{Op, TraceEvent, freshness};

/// What went wrong, in words for people.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The disk; what is read of it is logged. Any number of threads may use it at once.
pub(crate) struct Disk {
    source: Arc<dyn Source>,
    map: Arc<Map>,
    log: Log,
    connections: AtomicU64,
}

impl Disk {
    /// Opens what the parameters name. Starts neither threads nor processes: nbdkit may leave them
    /// behind when it goes into the background.
    ///
    /// # Errors
    /// One of these is missing, cannot be opened, or does not go with another.
    pub(crate) fn open(parameters: &Parameters) -> Result<Self, Failure> {
        let file = parameters.file.as_deref().ok_or("file=IMAGE is missing: the disk to serve")?;
        let bmap = parameters.bmap();
        // The original served any file as it is, and its maps count the bytes of that.
        let image =
            virt_bmap_image::open(file, &OpenOptions { format: Some(ImageFormat::Raw), force_share: false })?;
        let map =
            bmap::load(bmap).map_err(|error| format!("the map {}", virt_bmap_ranges::error_chain(&error)))?;
        if let Err(stale) = freshness::check(&map, bmap, std::slice::from_ref(&image)) {
            if !parameters.force {
                return Err(format!("{stale}; make it anew, or take it all the same with force=true").into());
            }
            say(format_args!("warning: {stale}"));
        }
        for warning in &image.warnings {
            say(format_args!("warning: {warning}"));
        }
        // The index is made before the guest begins.
        map.at(1, DiskOffset(0));
        let log = Log::begin(parameters.logfile.as_deref(), &[file, bmap])?;
        Ok(Self { source: image.source, map: Arc::new(map), log, connections: AtomicU64::new(0) })
    }

    /// Has what is read logged from now on. To be called when nbdkit has gone into the background.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(crate) fn start(&self) -> io::Result<()> {
        self.log.start(self.map.clone())
    }

    /// Has all of it in the log. To be called when all clients have gone.
    pub(crate) fn finish(&self) {
        self.log.finish();
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.source.size()
    }

    /// Number of a new connection, from 1.
    pub(crate) fn connect(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Carries a read out and writes it down.
    ///
    /// # Errors
    /// The bytes cannot be read.
    pub(crate) fn read(&self, connection: u64, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let received = Instant::now();
        let result = self.source.read_at(buf, DiskOffset(offset));
        self.log.queue.push(TraceEvent {
            time: received.saturating_duration_since(self.log.queue.began()),
            latency: received.elapsed(),
            connection,
            disk: 1,
            op: Op::Read,
            fua: false,
            failed: result.is_err(),
            range: DiskRange::new(offset, offset.saturating_add(buf.len() as u64)),
        });
        result
    }

    /// Which parts of a range are holes.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn allocation(&self, length: u32, offset: u64) -> io::Result<Vec<Allocation>> {
        self.source.allocation(DiskRange::saturating(offset, length.into()))
    }
}
