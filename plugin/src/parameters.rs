//! The parameters of the plugin on nbdkit's command line.

use std::path::{Path, PathBuf};

/// For `nbdkit --help`; `docs/trace.md` says the same.
pub(crate) const HELP: &str = "\
file=IMAGE      (required) The disk, raw.
bmap=MAP        Its map, in any format that virt-bmap-rs reads; by default the file `bmap`.
logfile=LOG     Where to write the log; by default standard output.
force=BOOL      Take a map that seems to be of another disk or of an earlier time.";

/// The parameters: those of the original plugin, and `force`.
#[derive(Debug)]
pub(crate) struct Parameters {
    /// The disk.
    pub(crate) file: Option<PathBuf>,
    bmap: Option<PathBuf>,
    /// The file of the log; standard output by default.
    pub(crate) logfile: Option<PathBuf>,
    /// Whether a stale map is accepted.
    pub(crate) force: bool,
}

impl Parameters {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Self { file: None, bmap: None, logfile: None, force: false }
    }

    /// The map.
    pub(crate) fn bmap(&self) -> &Path {
        self.bmap.as_deref().unwrap_or(Path::new("bmap"))
    }

    /// Sets a parameter.
    ///
    /// # Errors
    /// There is no such parameter, or the value is not valid.
    pub(crate) fn set(&mut self, key: &str, value: &str) -> nbdkit::Result<()> {
        match key {
            "file" => self.file = Some(value.into()),
            "bmap" => self.bmap = Some(value.into()),
            "logfile" => self.logfile = Some(value.into()),
            "force" => self.force = nbdkit::parse_bool(value)?,
            _ => {
                let message = format!("unknown parameter {key:?}; there are file, bmap, logfile and force");
                return Err(nbdkit::Error::new(libc::EINVAL, message));
            }
        }
        Ok(())
    }
}
