//! The log, written as the original does: each request is in it before it is answered.
//!
//! nbdkit does not wait for its plugins when the command of `--run` has ended, so a log that is written
//! behind the requests' backs, as that of `virt-bmap-rs trace`, would lack its end.

use crate::disk::Failure;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use virt_bmap::bmap::Hit;
use virt_bmap::trace::Event;
use virt_bmap::trace::output::{Form, Output};

/// The log.
pub(crate) struct Log {
    name: String,
    /// `None` when it could not be written any further.
    open: Mutex<Option<Open>>,
}

struct Open {
    output: Box<dyn Output>,
    requests: u64,
}

impl Log {
    /// Begins the log in a file, which may be none of `others`, or on standard output.
    ///
    /// # Errors
    /// It cannot be written to.
    pub(crate) fn begin(path: Option<&Path>, others: &[&Path]) -> Result<Self, Failure> {
        let (file, name) = match path {
            None => (stdout()?, "standard output".to_owned()),
            Some(path) => (create(path, others)?, path.display().to_string()),
        };
        let open = Open { output: Form::Text.output(file, &[])?, requests: 0 };
        Ok(Self { name, open: Mutex::new(Some(open)) })
    }

    /// Writes a request down. A log that cannot be written does not keep the guest from running.
    pub(crate) fn write(&self, event: &Event, hits: &[Hit<'_>]) {
        let mut log = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = &mut *log else { return };
        open.requests += 1;
        if let Err(error) = open.output.request(open.requests, event, hits).and_then(|()| open.output.flush())
        {
            *log = None;
            let name = &self.name;
            say(format_args!(
                "{name}: the log could not be written any further: {error}; the disk is served all the same"
            ));
        }
    }
}

/// Says something that does not end the service. Where there is no standard error any more, there is
/// nobody to be told.
pub(crate) fn say(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "nbdkit: bmaplogger: {what}");
}

/// Standard output, kept: nbdkit takes it away from its plugins before it serves.
fn stdout() -> Result<File, Failure> {
    if !nbdkit::is_stdio_safe() {
        return Err(
            "standard output is the client's connection; name a file for the log with logfile=".into()
        );
    }
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

/// Begins a file, which may be none of `others`.
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
