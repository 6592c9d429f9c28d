//! Saves the state of an appliance that has started, for later launches to go on from.

use super::launch::{LaunchError, Launcher, Launching};
use super::machine::{Disks, Machine, Start};
use super::own::Own;
use super::own::cache::CacheError;
use super::own::saved::SavedState;
use crate::qmp::{Qmp, QmpError};
use serde_json::json;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Why no state was saved.
#[derive(Debug, thiserror::Error)]
pub(super) enum SaveError {
    /// The appliance did not start.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// qemu's monitor failed.
    #[error(transparent)]
    Monitor(#[from] QmpError),
    /// qemu could not write the state.
    #[error("qemu did not save it: it says {0:?}")]
    Qemu(String),
    /// A file could not be written.
    #[error(transparent)]
    File(#[from] io::Error),
    /// The cache cannot be locked.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// How long qemu may take to write a state.
const DEADLINE: Duration = Duration::from_secs(60);

/// Bytes of a blank disk. A run that goes on has disks of other sizes: at least its control disk.
const BLANK: u64 = 1 << 20;
const _: () = assert!(BLANK != virt_bmap_agent_protocol::CONTROL_SIZE);

/// Blank disks for an appliance whose state is saved, and the socket of its qemu's monitor.
struct Blank {
    _directory: tempfile::TempDir,
    disks: Vec<String>,
    monitor: PathBuf,
}

impl Blank {
    fn new(count: usize) -> io::Result<Self> {
        // qemu's options separate their parts with commas, and a socket's path is at most 107 bytes.
        let directory = tempfile::Builder::new().prefix("virt-bmap-save-").tempdir_in("/tmp")?;
        let place = directory.path().display();
        let disks: Vec<String> = (0..count).map(|number| format!("{place}/disk{number}")).collect();
        for disk in &disks {
            File::create(disk)?.set_len(BLANK)?;
        }
        let monitor = directory.path().join("monitor");
        Ok(Self { _directory: directory, disks, monitor })
    }
}

impl Launcher<'_> {
    /// Starts an appliance with blank disks, and saves its state, unless another process has done so
    /// meanwhile. Calls `announce` before.
    pub(super) fn save(
        &self,
        own: &Own,
        state: &SavedState,
        mut announce: impl FnMut(Launching),
    ) -> Result<PathBuf, SaveError> {
        let _lock = state.lock(&|| self.kill.is_thrown())?;
        if let Some(path) = state.find() {
            return Ok(path);
        }
        announce(Launching::Saving);
        let blank = Blank::new(self.machine.disks.names.len())?;
        let disks = Disks { socket: None, names: blank.disks.iter().map(String::as_str).collect() };
        let machine = Machine { disks, ..*self.machine };
        let start = Start::ToSave { monitor: &blank.monitor };
        let launcher = Launcher { machine: &machine, ..*self };
        let appliance = launcher.launch_once(Some(own.clone()), start)?;
        let file = state.create()?;
        write(&blank.monitor, file.as_file())?;
        drop(appliance);
        Ok(state.keep(file)?)
    }
}

/// Has qemu write the state of its virtual machine to a file.
fn write(monitor: &Path, file: &File) -> Result<(), SaveError> {
    let mut qmp = Qmp::connect(monitor)?;
    qmp.execute("migrate-set-parameters", &json!({"max-bandwidth": 1_u64 << 40}))?;
    qmp.execute_with("getfd", &json!({"fdname": "state"}), Some(file.as_fd()))?;
    qmp.execute("migrate", &json!({"uri": "fd:state"}))?;
    let begun = Instant::now();
    loop {
        let answer = qmp.execute("query-migrate", &json!({}))?;
        let status = answer.get("status").and_then(serde_json::Value::as_str).unwrap_or_default();
        match status {
            "completed" => return Ok(()),
            "failed" | "cancelled" => return Err(SaveError::Qemu(answer.to_string())),
            _ if begun.elapsed() > DEADLINE => return Err(SaveError::Qemu(answer.to_string())),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
