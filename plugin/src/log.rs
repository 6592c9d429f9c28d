//! The log, which a thread of its own writes, as in `virt-bmap-rs trace`.
//!
//! The thread is started when nbdkit has forked for the last time. nbdkit waits for `unload` before
//! it ends, also when the command of `--run` has ended (nbdkit-plugin(3), "SHUTDOWN"), so only a
//! signal that cannot be caught loses entries.

use crate::disk::Failure;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use virt_bmap_map::{Hit, Map};
use virt_bmap_trace::{LogFormat, LogOutput};
use virt_bmap_trace::{Overflow, Queue, TraceEvent, Tracer};

/// The log.
pub(crate) struct Log {
    /// The queue of events. It drops none: if the reader of the log waits, so do requests.
    pub(crate) queue: Arc<Queue>,
    writer: Mutex<Writer>,
}

/// The writer of the log.
enum Writer {
    /// Not started.
    None(Box<dyn LogOutput>),
    /// A thread.
    Thread(Tracer),
    /// Ended.
    Gone,
}

impl Log {
    /// Opens the log: a file, which must not be one of `others`, or standard output.
    ///
    /// # Errors
    /// It cannot be written to.
    pub(crate) fn begin(path: Option<&Path>, others: &[&Path]) -> Result<Self, Failure> {
        let (file, name) = match path {
            None => (stdout()?, "standard output".to_owned()),
            Some(path) => (create(path, others)?, path.display().to_string()),
        };
        let output = ReportingLog { name, output: LogFormat::Text.output(file, &[])? };
        let writer = Mutex::new(Writer::None(Box::new(output)));
        Ok(Self { queue: Arc::new(Queue::new(Overflow::Wait)), writer })
    }

    /// Starts to write events, with the objects of `map`. Call it after the last fork.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start(&self, map: Arc<Map>) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Writer::None(output) = std::mem::replace(&mut *writer, Writer::Gone) {
            *writer = Writer::Thread(Tracer::start(self.queue.clone(), map, output, None)?);
        }
        Ok(())
    }

    /// Writes the remaining events. Call it after the last request.
    pub(crate) fn finish(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Writer::Thread(tracer) = std::mem::replace(&mut *writer, Writer::Gone) {
            tracer.finish();
        }
    }
}

/// A log that reports on standard error when it cannot be written any further. The guest goes on.
struct ReportingLog {
    name: String,
    output: Box<dyn LogOutput>,
}

impl ReportingLog {
    fn tell(&self, result: io::Result<()>) -> io::Result<()> {
        result.inspect_err(|error| {
            let name = &self.name;
            say(format_args!(
                "{name}: the log could not be written any further: {error}; the disk is served all the same"
            ));
        })
    }
}

impl LogOutput for ReportingLog {
    fn request(&mut self, number: u64, event: &TraceEvent, hits: &[Hit<'_>]) -> io::Result<()> {
        let result = self.output.request(number, event, hits);
        self.tell(result)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.output.flush();
        self.tell(result)
    }
}

/// Prints a message to standard error, if that is still open.
pub(crate) fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "nbdkit: bmaplogger: {what}");
}

/// A duplicate of standard output, since nbdkit closes it for its plugins before it serves.
fn stdout() -> Result<File, Failure> {
    if !nbdkit::is_stdio_safe() {
        return Err(
            "standard output is the client's connection; name a file for the log with logfile=".into()
        );
    }
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

/// Creates a file, which must not be one of `others`.
fn create(path: &Path, others: &[&Path]) -> Result<File, Failure> {
    let identity = |path: &Path| {
        let metadata = path.metadata().ok().filter(|found| !found.file_type().is_char_device())?;
        Some((metadata.dev(), metadata.ino()))
    };
    let log = identity(path);
    if let Some(other) = others.iter().find(|other| log.is_some() && identity(other) == log) {
        return Err(format!("the log would overwrite {}; name another file", other.display()).into());
    }
    let unwritable = |error| format!("{}: the log could not be written: {error}", path.display());
    Ok(File::create(path).map_err(unwritable)?)
}
