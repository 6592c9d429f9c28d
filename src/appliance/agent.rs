//! Uploads the agent into the appliance and runs it there.

use super::{Appliance, CallError};
use std::io::{self, Write as _};
use virt_bmap_agent_protocol::inventory::{self, Report};

/// The agent, a static program; see `build.rs`.
const AGENT: &[u8] = include_bytes!(env!("VIRT_BMAP_AGENT"));
/// Where it is in our own appliance: its init program puts it there.
const OWN_AGENT_PATH: &str = "/run/virt-bmap-agent";

/// Where it is put in libguestfs's appliance: `debug_upload` takes any path there, in spite of its
/// manual.
const AGENT_PATH: &str = "/tmp/virt-bmap-agent";
/// Where libguestfs mounts the guest's `/`.
pub const SYSROOT: &str = "/sysroot";

/// Why the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The upload could not be written to a temporary file.
    #[error("cannot write a temporary file")]
    Temporary(#[source] io::Error),
    /// It could not be uploaded.
    #[error("cannot upload the agent")]
    Upload(#[source] CallError),
    /// It ended in failure.
    #[error("the agent failed")]
    Run(#[source] CallError),
    /// Its inventory is too long.
    #[error(transparent)]
    Inventory(#[from] inventory::TooManyLines),
}

impl Appliance {
    /// Uploads the agent and has it disable readahead. Our own appliance has the agent in it, and
    /// has done this when it booted.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn start_agent(&self) -> Result<(), AgentError> {
        if self.own.is_some() {
            return Ok(());
        }
        self.upload(AGENT, AGENT_PATH, 0o755)?;
        self.run("disable-readahead").map(drop)
    }

    /// Drops whatever the kernel remembers of the content of the guest's disks. No filesystem may
    /// be mounted.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn forget(&self) -> Result<(), AgentError> {
        self.run("forget").map(drop)
    }

    /// Takes apart all arrays and volumes on the guest's disks, and forgets them. `None`: this
    /// appliance cannot put them together again.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn detach(&self) -> Option<Result<(), AgentError>> {
        self.own.as_ref()?;
        self.renamed_groups.borrow_mut().clear();
        Some(self.run("detach").map(drop))
    }

    /// Has partitions, arrays and volumes on the guest's disks found as when the appliance booted.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn attach(&self) -> Result<(), AgentError> {
        self.run("attach").map(drop)
    }

    /// Starts an agent that stays and does the tasks on the control disk, when the one before has
    /// ended. Its next frame has the number `sequence`.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn stay(&self, sequence: u32) -> Result<(), AgentError> {
        self.run("gone")?;
        let streams = "</dev/null >/dev/null 2>&1 &";
        self.run(&format!("stay {} {sequence} {streams}", self.control)).map(drop)
    }

    /// Whether the appliance has ended, or is being ended: nothing in it answers any more.
    pub fn has_ended(&self) -> bool {
        let state = self.call(guestfs::Handle::get_pid).ok().and_then(|id| {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            // The name of the program, in parentheses, may have any characters (proc_pid_stat(5)).
            stat.rsplit_once(')')?.1.trim_start().chars().next()
        });
        self.is_ending() || matches!(state, None | Some('Z' | 'X'))
    }

    /// The kernel's messages since the previous call, or since the agent was started.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn kernel_log(&self) -> Result<String, AgentError> {
        self.run("log")
    }

    /// The agent's reports on the guest's block devices: first the named ones, then all.
    pub(super) fn describe(&self, named: &[String]) -> Result<Vec<Report>, AgentError> {
        let named: String = named.iter().map(|name| format!(" {}", quote(name))).collect();
        Ok(inventory::parse(&self.run(&format!("devices {}{named}", self.control))?)?)
    }

    /// Has an agent do the task on the control disk. Returns its output.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn work(&self) -> Result<String, AgentError> {
        self.run(&format!("work {}", self.control))
    }

    fn upload(&self, bytes: &[u8], to: &str, mode: i32) -> Result<(), AgentError> {
        let mut file = tempfile::NamedTempFile::new().map_err(AgentError::Temporary)?;
        file.write_all(bytes).map_err(AgentError::Temporary)?;
        let path = file.path().to_string_lossy();
        self.call(|g| g.debug_upload(&path, to, mode)).map_err(AgentError::Upload)
    }

    fn run(&self, arguments: &str) -> Result<String, AgentError> {
        let agent = if self.own.is_some() { OWN_AGENT_PATH } else { AGENT_PATH };
        self.shell(&format!("{agent} {arguments}")).map_err(AgentError::Run)
    }
}

/// Quotes a word for the shell.
pub(crate) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
