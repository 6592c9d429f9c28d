//! Uploads the probe agent into the appliance and runs it there.

use super::{Appliance, CallError};
use std::io::{self, Write as _};
use std::time::Duration;
use virt_bmap_agent_protocol::inventory::{self, Report};

/// The agent, a static program; see `build.rs`.
const AGENT: &[u8] = include_bytes!(env!("VIRT_BMAP_AGENT"));
/// Where it is put in the appliance: `debug_upload` takes a path there, whatever its manual says of
/// `/tmp`.
const AGENT_PATH: &str = "/tmp/virt-bmap-agent";
const KEY_PATH: &str = "/tmp/virt-bmap-key";
/// Where libguestfs mounts the guest's `/`.
pub const SYSROOT: &str = "/sysroot";

/// Why the agent did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// What is to be uploaded could not be written to a temporary file.
    #[error("cannot write a temporary file")]
    Temporary(#[source] io::Error),
    /// It could not be uploaded.
    #[error("cannot upload the probe agent")]
    Upload(#[source] CallError),
    /// It ended in failure.
    #[error("the probe agent failed")]
    Run(#[source] CallError),
}

impl Appliance {
    /// Uploads the agent and has it turn off all that reads ahead.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn start_agent(&self) -> Result<(), AgentError> {
        self.upload(AGENT, AGENT_PATH, 0o755)?;
        self.run("disable-readahead").map(drop)
    }

    /// What the kernel has said since the last time, or since the agent was started.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn kernel_log(&self) -> Result<String, AgentError> {
        self.run("log")
    }

    /// What the appliance's kernel knows of the guest's block devices: of those that are named,
    /// then of all.
    pub(super) fn describe(&self, named: &[String]) -> Result<Vec<Report>, AgentError> {
        let named: String = named.iter().map(|name| format!(" {}", quote(name))).collect();
        Ok(inventory::parse(&self.run(&format!("devices {}{named}", self.control))?))
    }

    /// Has the agent do the task that lies on the control disk.
    ///
    /// # Errors
    /// [`AgentError`]
    pub fn work(&self) -> Result<(), AgentError> {
        let spent = self.run(&format!("work {}", self.control))?;
        tracing::debug!("the agent's time: {}", spent.trim_end());
        Ok(())
    }

    /// Unlocks an encrypted device as `/dev/mapper/NAME`.
    ///
    /// # Errors
    /// [`AgentError`] where the key could not be brought into the appliance.
    pub fn unlock(
        &self,
        device: &str,
        name: &str,
        secret: &[u8],
        bitlocker: bool,
    ) -> Result<Unlocked, AgentError> {
        self.upload(secret, KEY_PATH, 0o600)?;
        let kind = if bitlocker { "--type bitlk " } else { "" };
        // udev has been ended; without the variable cryptsetup would wait for it for ever.
        // Writable, because a journal may have to be replayed; what is written stays with us.
        let command = format!(
            "DM_DISABLE_UDEV=1 timeout -k 5 {} cryptsetup open {kind}--key-file {KEY_PATH} {} {}",
            UNLOCKING.as_secs(),
            quote(device),
            quote(name)
        );
        let ended = self.shell(&format!("{command} >/dev/null 2>&1; echo $?"));
        self.shell(&format!("rm -f {KEY_PATH}")).map_err(AgentError::Run)?;
        Ok(match ended.as_deref().map(str::trim) {
            Ok("0") => Unlocked::Yes,
            // timeout(1): 124, or 137 where it had to use SIGKILL.
            Ok("124" | "137") => Unlocked::Never,
            _ => Unlocked::No,
        })
    }

    fn upload(&self, bytes: &[u8], to: &str, mode: i32) -> Result<(), AgentError> {
        let mut file = tempfile::NamedTempFile::new().map_err(AgentError::Temporary)?;
        file.write_all(bytes).map_err(AgentError::Temporary)?;
        let path = file.path().to_string_lossy();
        self.call(|g| g.debug_upload(&path, to, mode)).map_err(AgentError::Upload)
    }

    fn run(&self, arguments: &str) -> Result<String, AgentError> {
        self.shell(&format!("{AGENT_PATH} {arguments}")).map_err(AgentError::Run)
    }
}

/// How an attempt to unlock a device ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlocked {
    /// It is open.
    Yes,
    /// The key is not one of it.
    No,
    /// It took longer than [`UNLOCKING`].
    Never,
}

/// How long it may take to unlock a device: a key that takes seconds to derive takes a minute under
/// emulation. There are BitLocker headers for which cryptsetup never ends.
pub const UNLOCKING: Duration = Duration::from_secs(240);

/// A word for the shell, whatever is in it.
pub(super) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
