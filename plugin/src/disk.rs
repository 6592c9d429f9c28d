//! The served disk with its map and its log.

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

/// An error with a message for people.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The disk, whose reads are logged. Any number of threads may use it at once.
pub(crate) struct Disk {
    source: Arc<dyn Source>,
    map: Arc<Map>,
    log: Log,
    connections: AtomicU64,
}

impl Disk {
    /// Opens the files that the parameters name. Starts neither threads nor processes, which nbdkit
    /// might lose when it forks into the background.
    ///
    /// # Errors
    /// A file is missing, cannot be opened, or does not fit the others.
    pub(crate) fn open(parameters: &Parameters) -> Result<Self, Failure> {
        let file = parameters.file.as_deref().ok_or("file=IMAGE is missing: the disk to serve")?;
        let bmap = parameters.bmap();
        // The original served the bytes of any file, and its maps count those bytes.
        let image = virt_bmap_image::open(
            &file.to_owned().into(),
            &OpenOptions { format: Some(ImageFormat::Raw), ..OpenOptions::default() },
        )?;
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

    /// Starts to log reads. Call it when nbdkit has forked into the background.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start(&self) -> io::Result<()> {
        self.log.start(self.map.clone())
    }

    /// Completes the log. Call it when all clients have disconnected.
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

    /// Carries out a read and logs it.
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
    /// The system's error.
    pub(crate) fn allocation(&self, length: u32, offset: u64) -> io::Result<Vec<Allocation>> {
        self.source.allocation(DiskRange::saturating(offset, length.into()))
    }
}
